// Package sweep removes what has ended: the variables of expired sessions, and records of requests past their day. It
// makes nothing true: a session is gone at its expires_at whether or not a sweeper has been.
//
// Of all the servers on one database one sweeps at a time, elected for each round by a transaction-level advisory lock
// that is tried and not waited for. Every transaction is short: it removes one bounded batch under one session's lock.
package sweep

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/setpointdb/setpoint/db"
	"github.com/setpointdb/setpoint/db/dbgen"
)

const (
	// Interval is the time between rounds.
	Interval = 10 * time.Second
	// batchRows bounds the rows that one transaction removes.
	batchRows = 1000
	// roundSessions bounds the sessions of one round.
	roundSessions = 100
)

// Events is told what the sweeper does.
type Events interface {
	SessionExpired(ctx context.Context, session string, variables int64)
	SweepFailed(ctx context.Context, err error)
}

// Sweeper sweeps one database. Its zero value is not usable.
type Sweeper struct {
	db     *db.DB
	events Events
}

// New makes a sweeper.
func New(database *db.DB, events Events) *Sweeper { return &Sweeper{db: database, events: events} }

// Run sweeps every Interval until the context ends.
func (s *Sweeper) Run(ctx context.Context) {
	ticker := time.NewTicker(Interval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			if err := s.Sweep(ctx); err != nil && ctx.Err() == nil {
				s.events.SweepFailed(ctx, err)
			}
		}
	}
}

// Sweep does one round, or nothing if another server is at it.
func (s *Sweeper) Sweep(ctx context.Context) error {
	var sessions []string
	err := s.db.InTx(ctx, "find ended sessions", func(ctx context.Context, tx pgx.Tx) error {
		sessions = nil
		elected, err := db.TryLock(ctx, tx, db.LockSweep, 0)
		if err != nil || !elected {
			return err
		}
		q := dbgen.New(tx)
		if _, err := q.RequestPrune(ctx, dbgen.RequestPruneParams{RowLimit: batchRows}); err != nil {
			return err
		}
		sessions, err = q.SessionSweepFind(ctx, dbgen.SessionSweepFindParams{RowLimit: roundSessions})
		return err
	})
	if err != nil {
		return err
	}
	for _, id := range sessions {
		if err := s.session(ctx, id); err != nil {
			return fmt.Errorf("session %s: %w", id, err)
		}
	}
	return nil
}

// session removes an ended session's variables, batch by batch.
func (s *Sweeper) session(ctx context.Context, id string) error {
	var total int64
	for {
		removed, ended, err := s.batch(ctx, id)
		if err != nil {
			return err
		}
		total += removed
		if ended {
			s.events.SessionExpired(ctx, id, total)
			return nil
		}
		if removed == 0 {
			return nil // Alive again, or another server was faster.
		}
	}
}

func (s *Sweeper) batch(ctx context.Context, id string) (int64, bool, error) {
	var removed, ended int64
	err := s.db.InTx(ctx, "sweep a session", func(ctx context.Context, tx pgx.Tx) error {
		q := dbgen.New(tx)
		if err := q.SessionLock(ctx, dbgen.SessionLockParams{SessionIds: []string{id}}); err != nil {
			return err
		}
		state, err := q.SessionState(ctx, dbgen.SessionStateParams{SessionID: id})
		if err != nil {
			return err
		}
		removed, ended = 0, 0
		if state.Alive {
			return nil
		}
		removed, err = q.SessionSweepVariables(ctx, dbgen.SessionSweepVariablesParams{SessionID: id, RowLimit: batchRows})
		if err != nil || removed == batchRows {
			return err
		}
		ended, err = q.SessionSweepDone(ctx, dbgen.SessionSweepDoneParams{SessionID: id})
		return err
	})
	return removed, ended > 0, err
}
