// Package service has the handlers of the API, one file per noun. A handler checks the request, runs one transaction and
// converts the answer; identity, validation, telemetry and recovery are interceptors before it.
package service

import (
	"context"
	"sync"

	"google.golang.org/grpc"

	"github.com/setpointdb/setpoint/db"
	"github.com/setpointdb/setpoint/db/dbgen"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/audit"
	"github.com/setpointdb/setpoint/internal/commit"
	"github.com/setpointdb/setpoint/internal/expression"
	"github.com/setpointdb/setpoint/internal/keepalive"
	"github.com/setpointdb/setpoint/internal/lease"
	"github.com/setpointdb/setpoint/internal/telemetry"
)

// Limits bound what callers may ask for.
type Limits struct {
	// ValueBytes is the size of a value.
	ValueBytes int
	// Variables is how many variables a session has.
	Variables int64
	// BatchItems is how many items a batch has.
	BatchItems int
	// Dependencies is how many variables one depends on directly.
	Dependencies int64
	// Affected is how many variables a change reaches, with what they are computed from. While they follow, the session is
	// locked: it takes some 50 µs for each, and as much again where an expression has to be compiled. What changes the whole
	// session may reach all of it.
	Affected int64
	// LeaseVariables is how many variables one optimization has.
	LeaseVariables int
	// Optimizations is how many optimizations of a session are open, those that wait included.
	Optimizations int64
	// AccessRules is how many access rules a session has.
	AccessRules int64
	// WildcardRules is how many access rules with a wildcard are for one variable, and how many are for all of a session: each
	// decision tries all of them.
	WildcardRules int64
	// DerivationCost is what computing all that a change reaches, or a batch registers, costs, in the units of package
	// expression.
	DerivationCost uint64
	// PageBytes ends a page of a list, and bounds the values of a BatchGetVariables together.
	PageBytes int64
}

// DefaultLimits are 16 MiB a value, 100,000 variables a session, 1,000 items a batch, 1,000 dependencies of a variable,
// 10,000 variables that a change reaches, at a cost of 10,000,000 to compute, 1,000 variables an optimization, 10,000 open
// optimizations and 20,000 access rules a session, 500 of them with a wildcard for a variable and for the session, and 8 MiB a page.
var DefaultLimits = Limits{
	ValueBytes: 16 << 20, Variables: 100_000, BatchItems: 1000, Dependencies: 1000, Affected: 10_000,
	LeaseVariables: 1000, Optimizations: 10_000, AccessRules: 20_000, WildcardRules: 500, DerivationCost: 10_000_000,
	PageBytes: 8 << 20,
}

// Service implements every service of the API on one database. Safe for concurrent use.
type Service struct {
	setpointv1.UnimplementedSessionServiceServer
	setpointv1.UnimplementedVariableServiceServer
	setpointv1.UnimplementedHistoryServiceServer
	setpointv1.UnimplementedDependencyServiceServer
	setpointv1.UnimplementedOptimizationServiceServer
	setpointv1.UnimplementedAccessServiceServer
	setpointv1.UnimplementedTokenServiceServer

	db          *db.DB
	limits      Limits
	definitions *definitions
	expressions *expression.Cache
	writes      *commit.Lane[checkedItem, groupOutcome]
	reads       *commit.Lane[readItem, dbgen.VariableGetManyRow]
	extend      *keepalive.Extender
	queue       *lease.Room
	denials     *recentDenials
	audit       *audit.Buffer
	deniedLog   *deniedLog
	// draining is closed when open streams are to end.
	draining chan struct{}
	drain    sync.Once
	events   *telemetry.Events
}

// New makes the service. Close it before the database.
func New(database *db.DB, limits Limits, events *telemetry.Events) *Service {
	s := &Service{
		db:          database,
		limits:      limits,
		definitions: newDefinitions(),
		expressions: expression.NewCache(programsKept),
		extend:      keepalive.New(extendSessions(database), events.ExtendFailed),
		events:      events,
		draining:    make(chan struct{}),
		denials:     newRecentDenials(),
		deniedLog:   newDeniedLog(),
	}
	s.writes, s.reads = newWriteLane(s), newReadLane(s)
	s.queue = lease.NewRoom(lease.Config{Look: s.lookAtQueue, Stay: s.stayInQueue, Failed: events.QueueFailed})
	s.audit = s.newAudit()
	events.WatchQueue(s.writes.Queued)
	return s
}

// Register adds the services to a gRPC server.
func (s *Service) Register(server grpc.ServiceRegistrar) {
	setpointv1.RegisterSessionServiceServer(server, s)
	setpointv1.RegisterVariableServiceServer(server, s)
	setpointv1.RegisterHistoryServiceServer(server, s)
	setpointv1.RegisterDependencyServiceServer(server, s)
	setpointv1.RegisterOptimizationServiceServer(server, s)
	setpointv1.RegisterAccessServiceServer(server, s)
	setpointv1.RegisterTokenServiceServer(server, s)
}

// Drain ends the open streams, with UNAVAILABLE: whoever follows something goes on at another server.
func (s *Service) Drain() { s.drain.Do(func() { close(s.draining) }) }

// Close writes down what reads have extended, and ends the service's background work.
func (s *Service) Close(ctx context.Context) {
	s.Drain()
	s.queue.Close()
	s.writes.Close()
	s.reads.Close()
	s.closeAudit(ctx)
	s.extend.Close(ctx)
}
