package service_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/setpointdb/setpoint/client"
	"github.com/setpointdb/setpoint/db"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/identity"
	"github.com/setpointdb/setpoint/internal/telemetry"
	"github.com/setpointdb/setpoint/internal/testkit"
	"github.com/setpointdb/setpoint/service"
)

// relay passes a connection's bytes on and counts the round trips: how often the client speaks after the server has.
type relay struct {
	listener net.Listener
	target   string
	trips    atomic.Int64
	open     sync.WaitGroup
}

func newRelay(t *testing.T, databaseURL string) (string, *relay) {
	t.Helper()
	u, err := url.Parse(databaseURL)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{listener: listener, target: u.Host}
	r.open.Go(r.accept)
	t.Cleanup(func() {
		_ = listener.Close()
		r.open.Wait()
	})
	u.Host = listener.Addr().String()
	return u.String(), r
}

func (r *relay) accept() {
	for {
		near, err := r.listener.Accept()
		if err != nil {
			return
		}
		far, err := net.Dial("tcp", r.target)
		if err != nil {
			_ = near.Close()
			continue
		}
		var serverSpoke atomic.Bool
		serverSpoke.Store(true)
		r.open.Go(func() {
			pass(far, near, func() {
				if serverSpoke.CompareAndSwap(true, false) {
					r.trips.Add(1)
				}
			})
		})
		r.open.Go(func() { pass(near, far, func() { serverSpoke.Store(true) }) })
	}
}

func pass(to, from net.Conn, heard func()) {
	defer func() {
		_ = to.Close()
		_ = from.Close()
	}()
	buffer := make([]byte, 1<<20)
	for {
		n, err := from.Read(buffer)
		if n > 0 {
			heard()
			if _, err := to.Write(buffer[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// counter counts statements, those of a pipeline each.
type counter struct{ statements atomic.Int64 }

func (c *counter) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	c.statements.Add(1)
	return ctx
}
func (c *counter) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

func (c *counter) TraceBatchStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchStartData) context.Context {
	return ctx
}
func (c *counter) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {
	c.statements.Add(1)
}
func (c *counter) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData) {}

// measured is the service alone, without interceptors and background looks at the database, on counted connections.
type measured struct {
	*service.Service
	relay   *relay
	counter *counter
	ctx     context.Context
	url     string // Past the relay.
}

func measure(t *testing.T) *measured {
	t.Helper()
	ctx := identity.NewContext(context.Background(), identity.Anonymous)
	direct := testkit.NewDatabase(t)
	databaseURL, relay := newRelay(t, direct)
	m := &measured{relay: relay, counter: &counter{}, ctx: ctx, url: direct}
	database, err := db.Open(ctx, db.Config{URL: databaseURL, MaxConns: 1, Tracer: m.counter})
	if err != nil {
		t.Fatal(err)
	}
	events, err := telemetry.New(slog.New(slog.NewTextHandler(io.Discard, nil)), nil)
	if err != nil {
		t.Fatal(err)
	}
	m.Service = service.New(database, service.DefaultLimits, events)
	t.Cleanup(func() {
		m.Close(ctx)
		database.Close()
	})
	if _, err := m.CreateSession(ctx, &setpointv1.CreateSessionRequest{
		SessionId: "s", Ttl: durationpb.New(0), // Reads need not be written down.
	}); err != nil {
		t.Fatal(err)
	}
	return m
}

// awake uses both connections: one that was idle for more than a second is probed before its next use.
func (m *measured) awake(t *testing.T) {
	t.Helper()
	if _, err := m.GetSession(m.ctx, &setpointv1.GetSessionRequest{SessionId: "s"}); err != nil {
		t.Fatal(err)
	}
	if _, err := m.KeepSessionAlive(m.ctx, &setpointv1.KeepSessionAliveRequest{SessionId: "s"}); err != nil {
		t.Fatal(err)
	}
}

// cost is how many round trips and statements a call takes.
func (m *measured) cost(t *testing.T, call func() error) (int64, int64) {
	t.Helper()
	trips, statements := m.relay.trips.Load(), m.counter.statements.Load()
	if err := call(); err != nil {
		t.Fatal(err)
	}
	return m.relay.trips.Load() - trips, m.counter.statements.Load() - statements
}

// A set is one round trip of two statements: the lock, and the write. So is one with a request_id, with a large value,
// and one that is refused. A get is one of one. The first set by a server that has not registered the variable takes another,
// to learn its definition; so does the first after that has changed.
func TestOneRoundTrip(t *testing.T) {
	t.Parallel()
	m := measure(t)
	register := &setpointv1.RegisterVariableRequest{
		SessionId: "s", Name: "x", Type: setpointv1.VariableType_VARIABLE_TYPE_TENSOR,
		Value:       client.Tensor("int8", []int64{1}, []byte{1}),
		Constraints: &setpointv1.Constraints{Dtype: ptr("int8")},
	}
	set := func(v *setpointv1.Value, id string) func() error {
		return func() error {
			_, err := m.SetVariable(m.ctx, &setpointv1.SetVariableRequest{SessionId: "s", Variable: "x", Value: v, RequestId: id})
			return err
		}
	}
	get := func() error {
		_, err := m.GetVariable(m.ctx, &setpointv1.GetVariableRequest{SessionId: "s", Variable: "x"})
		return err
	}
	refused := func() error {
		err := set(client.Tensor("int16", []int64{1}, []byte{1, 2}), "")()
		if err == nil || !strings.Contains(err.Error(), "CONSTRAINT_VIOLATION") {
			return fmt.Errorf("want a refusal, got %v", err)
		}
		return nil
	}
	small := client.Tensor("int8", []int64{2}, []byte{1, 2})
	large := client.Tensor("int8", []int64{1 << 20}, make([]byte, 1<<20))
	if _, err := m.RegisterVariable(m.ctx, register); err != nil {
		t.Fatal(err)
	}
	for range 2 { // Connections are made and statements prepared.
		m.cost(t, set(small, ""))
		m.cost(t, set(large, ""))
		m.cost(t, get)
	}
	for _, test := range []struct {
		name              string
		call              func() error
		trips, statements int64
	}{
		{"set", set(small, ""), 1, 2},
		{"set again", set(small, ""), 1, 2},
		{"set with a request_id", set(small, "r"), 1, 2},
		{"repeat", set(small, "r"), 2, 3}, // It wrote nothing, so its sign of life is noted apart.
		{"set a megabyte", set(large, ""), 1, 2},
		{"refused set", refused, 1, 2},
		{"get", get, 1, 1},
	} {
		m.awake(t)
		if trips, statements := m.cost(t, test.call); trips != test.trips || statements != test.statements {
			t.Errorf("%s: %d round trips and %d statements, want %d and %d", test.name, trips, statements, test.trips,
				test.statements)
		}
	}
	if _, err := m.UpdateVariable(m.ctx, &setpointv1.UpdateVariableRequest{
		SessionId: "s", Variable: "x", Constraints: &setpointv1.Constraints{},
	}); err != nil {
		t.Fatal(err)
	}
	m.awake(t)
	if trips, _ := m.cost(t, set(small, "")); trips != 2 {
		t.Errorf("first set after the definition changed: %d round trips, want 2", trips)
	}
}

// A batch takes as many statements for a thousand items as for one.
func TestBatchStatementsAreConstant(t *testing.T) {
	t.Parallel()
	m := measure(t)
	batches := func(n int) map[string]func() error {
		variables := names(fmt.Sprintf("of%d.", n), n)
		register := &setpointv1.BatchRegisterVariablesRequest{SessionId: "s", Atomic: true}
		write := &setpointv1.BatchSetVariablesRequest{SessionId: "s"}
		for i, name := range variables {
			register.Registrations = append(register.Registrations, &setpointv1.VariableRegistration{
				Name: name, Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Value: client.Integer(1),
			})
			write.Writes = append(write.Writes, &setpointv1.VariableWrite{Variable: name, Value: client.Integer(int64(i))})
		}
		set := func() error {
			r, err := m.BatchSetVariables(m.ctx, write)
			if err == nil && r.GetResults()[n-1].GetVersion() == 0 {
				err = fmt.Errorf("not written: %v", r.GetResults()[n-1])
			}
			return err
		}
		return map[string]func() error{
			"1 register":  func() error { _, err := m.BatchRegisterVariables(m.ctx, register); return err },
			"2 set":       set,
			"3 set again": set,
			"4 get": func() error {
				_, err := m.BatchGetVariables(m.ctx, &setpointv1.BatchGetVariablesRequest{SessionId: "s", Variables: variables})
				return err
			},
			"5 list": func() error {
				_, err := m.ListVariables(m.ctx, &setpointv1.ListVariablesRequest{SessionId: "s", Pattern: "of*", PageSize: 1000})
				return err
			},
		}
	}
	costs := map[int]map[string][2]int64{}
	for _, n := range []int{1, 2, 1000} { // The first prepares the statements.
		costs[n] = map[string][2]int64{}
		calls := batches(n)
		for _, name := range []string{"1 register", "2 set", "3 set again", "4 get", "5 list"} {
			m.awake(t)
			trips, statements := m.cost(t, calls[name])
			costs[n][name] = [2]int64{trips, statements}
		}
	}
	equal(t, "round trips and statements of 2 and of 1000 items", costs[2], costs[1000])
	equal(t, "round trips and statements of 1000 items", map[string][2]int64{
		"1 register": {1, 2}, "2 set": {1, 2}, "3 set again": {1, 2}, "4 get": {1, 1}, "5 list": {1, 1},
	}, costs[1000])
}
