// Package sweep removes what has ended: the variables and access rules of expired sessions, history beyond its limit and
// retention, audit events beyond the retention, access rules that expired an hour ago, bytes that nothing refers to, and records of
// requests past their day. It makes nothing true: a session is gone at its expires_at, and what a history_limit hides is hidden,
// whether or not a sweeper has been.
//
// Of all the servers on one database one sweeps at a time: every transaction of a sweeper begins by trying a
// transaction-level advisory lock, and ends the round if another server has it. Every transaction is short and removes one
// bounded batch. A killed sweeper leaves nothing half done that the next round does not go on with.
//
// No writer waits for the sweeper: history is removed without the session's lock, which is taken only where it is free, and
// then for one statement, to raise the floors below which the API no longer looks; they are raised before rows go.
package sweep

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/setpointdb/setpoint/db"
	"github.com/setpointdb/setpoint/db/dbgen"
	"github.com/setpointdb/setpoint/internal/lease"
)

const (
	// interval is the time between rounds, leaseInterval that between looks at leases, and historyInterval at history.
	interval        = 10 * time.Second
	leaseInterval   = time.Second
	historyInterval = time.Minute
	// batchRows bounds the rows that one transaction removes.
	batchRows = 1000
	// sessionsAtOnce bounds the sessions that one statement finds.
	sessionsAtOnce = 100
)

// Events is told what the sweeper does.
type Events interface {
	// SessionExpired: what a session that has ended held was removed.
	SessionExpired(ctx context.Context, session string, variables int64)
	// AuditPruned: audit events beyond the retention were removed.
	AuditPruned(ctx context.Context, rows int64)
	// HistoryPruned: more rows of a session's history were removed.
	HistoryPruned(ctx context.Context, session string, rows int64)
	// OptimizationStatusChanged: what the clock had done to an optimization was written down.
	OptimizationStatusChanged(ctx context.Context, change lease.Change)
	// SweepFailed: a round failed; the next goes on.
	SweepFailed(ctx context.Context, err error)
}

// Sweeper sweeps one database. Not safe for concurrent use, but Leases is beside the others.
type Sweeper struct {
	db        *db.DB
	events    Events
	retention time.Duration
	after     string // The session that pruneAll has come to.
}

// New makes a sweeper. History and audit events are kept for the retention at least.
func New(database *db.DB, events Events, retention time.Duration) *Sweeper {
	return &Sweeper{db: database, events: events, retention: retention}
}

// Run sweeps until the context ends.
func (s *Sweeper) Run(ctx context.Context) {
	var leases sync.WaitGroup
	leases.Go(func() { s.runLeases(ctx) })
	defer leases.Wait()
	often, seldom := time.NewTicker(interval), time.NewTicker(historyInterval)
	defer often.Stop()
	defer seldom.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			return
		case <-often.C:
			err = s.Sessions(ctx)
		case <-seldom.C:
			err = s.History(ctx)
		}
		if err != nil && ctx.Err() == nil {
			s.events.SweepFailed(ctx, err)
		}
	}
}

// runLeases looks at leases, which wait for no long round over history: not of this server, and not of another one.
func (s *Sweeper) runLeases(ctx context.Context) {
	ticker := time.NewTicker(leaseInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			if err := s.Leases(ctx); err != nil && ctx.Err() == nil {
				s.events.SweepFailed(ctx, err)
			}
		}
	}
}

// errNotElected ends a round: another server sweeps.
var errNotElected = errors.New("another server sweeps")

// The rounds for which sweepers are elected, as keys of the class LockSweep.
const (
	sweepAll    = 0
	sweepLeases = 1
)

// elected runs one transaction of a round.
func (s *Sweeper) elected(ctx context.Context, doing string, work func(context.Context, *dbgen.Queries) error) error {
	return s.electedFor(ctx, sweepAll, doing, work)
}

func (s *Sweeper) electedFor(
	ctx context.Context, key int32, doing string, work func(context.Context, *dbgen.Queries) error,
) error {
	return s.db.InTx(ctx, doing, func(ctx context.Context, tx pgx.Tx) error {
		mine, err := db.TryLock(ctx, tx, db.LockSweep, key)
		if err != nil {
			return err
		}
		if !mine {
			return errNotElected
		}
		return work(ctx, dbgen.New(tx))
	})
}

// round is a whole round, which another server's being at it ends without an error.
func round(err error) error {
	if errors.Is(err, errNotElected) {
		return nil
	}
	return err
}

// Sessions does a round over sessions that have ended, and over records of requests.
func (s *Sweeper) Sessions(ctx context.Context) error {
	return round(s.sessions(ctx))
}

func (s *Sweeper) sessions(ctx context.Context) error {
	err := s.batches(ctx, "prune requests", func(ctx context.Context, q *dbgen.Queries) (int64, error) {
		return q.SweepRequests(ctx, dbgen.SweepRequestsParams{RowLimit: batchRows})
	}, func(int64) {})
	if errors.Is(err, errNotElected) {
		return err
	}
	after := ""
	for {
		var ended []string
		findErr := s.elected(ctx, "find ended sessions", func(ctx context.Context, q *dbgen.Queries) error {
			var err error
			ended, err = q.SweepEnded(ctx, dbgen.SweepEndedParams{After: after, RowLimit: sessionsAtOnce})
			return err
		})
		if findErr != nil {
			return errors.Join(err, findErr)
		}
		for _, id := range ended {
			err = errors.Join(err, s.end(ctx, id)) // One that fails holds up no other.
			after = id
		}
		if len(ended) < sessionsAtOnce || ctx.Err() != nil {
			return err
		}
	}
}

// batches removes batch after batch, until one is not full. done is told the rows of each.
func (s *Sweeper) batches(
	ctx context.Context, doing string, remove func(context.Context, *dbgen.Queries) (int64, error), done func(rows int64),
) error {
	for {
		var rows int64
		err := s.elected(ctx, doing, func(ctx context.Context, q *dbgen.Queries) error {
			var err error
			rows, err = remove(ctx, q)
			return err
		})
		if err != nil {
			return err
		}
		done(rows)
		if rows < batchRows {
			return nil
		}
	}
}

// end removes what an ended session held.
func (s *Sweeper) end(ctx context.Context, id string) error {
	var removed, total int64
	var changes []lease.Change
	ended := false
	err := s.batches(ctx, "sweep a session", func(ctx context.Context, q *dbgen.Queries) (int64, error) {
		ended, removed, changes = false, 0, nil
		locked, err := q.SessionLockNoWait(ctx, dbgen.SessionLockNoWaitParams{SessionIds: []string{id}})
		if err != nil || len(locked) == 0 {
			return 0, err // The next round will find it.
		}
		state, err := q.SessionState(ctx, dbgen.SessionStateParams{SessionID: id})
		if err != nil || state.Alive {
			return 0, err // Alive again.
		}
		if edges, err := q.SweepRemoveDependencies(ctx, dbgen.SweepRemoveDependenciesParams{
			SessionID: id, RowLimit: batchRows,
		}); err != nil || edges == batchRows {
			return edges, err
		}
		if waiters, err := q.SweepRemoveWaiters(ctx, dbgen.SweepRemoveWaitersParams{
			SessionID: id, RowLimit: batchRows,
		}); err != nil || waiters == batchRows {
			return waiters, err
		}
		if rules, err := q.SweepRemoveRules(ctx, dbgen.SweepRemoveRulesParams{
			SessionID: id, RowLimit: batchRows,
		}); err != nil || rules == batchRows {
			return rules, err
		}
		open, err := q.SweepEndOptimizations(ctx, dbgen.SweepEndOptimizationsParams{SessionID: id, RowLimit: batchRows})
		for _, o := range open {
			changes = append(changes, lease.Change{
				Session: id, Optimization: o.OptimizationID, Optimizer: o.OptimizerID, From: o.Was, To: o.State,
				Variables: o.Variables, Reason: o.EndReason,
			})
		}
		if err != nil || len(open) == batchRows {
			return int64(len(open)), err
		}
		rows, err := q.SweepRemoveVariables(ctx, dbgen.SweepRemoveVariablesParams{SessionID: id, RowLimit: batchRows})
		removed = rows
		if err != nil || rows == batchRows {
			return rows, err
		}
		last, err := q.SweepEnd(ctx, dbgen.SweepEndParams{SessionID: id})
		ended = last > 0
		return rows, err
	}, func(int64) {
		total += removed
		for _, change := range changes {
			s.events.OptimizationStatusChanged(ctx, change)
		}
	})
	if err == nil && ended {
		s.events.SessionExpired(ctx, id, total)
	}
	return err
}
