package sweep

import (
	"context"
	"errors"

	"github.com/setpointdb/setpoint/db"
	"github.com/setpointdb/setpoint/db/dbgen"
	"github.com/setpointdb/setpoint/internal/lease"
)

// Leases does a round over optimizations whose time is over: it writes down what the clock has made true, once each, under the
// session's lock. A session that somebody else has locked for long is left to the next round.
func (s *Sweeper) Leases(ctx context.Context) error {
	return round(s.leases(ctx))
}

func (s *Sweeper) leases(ctx context.Context) error {
	var failed error
	after := ""
	for {
		var sessions []string
		err := s.electedFor(ctx, sweepLeases, "find expired leases", func(ctx context.Context, q *dbgen.Queries) error {
			var err error
			sessions, err = q.SweepLeases(ctx, dbgen.SweepLeasesParams{After: after, RowLimit: sessionsAtOnce})
			return err
		})
		if err != nil {
			return errors.Join(failed, err)
		}
		for _, id := range sessions {
			err := s.settle(ctx, id)
			if errors.Is(err, errNotElected) {
				return failed
			}
			failed = errors.Join(failed, err)
			after = id
		}
		if len(sessions) < sessionsAtOnce || ctx.Err() != nil {
			return failed
		}
	}
}

// settlePatience is how long the lock of a session is waited for, of which there are others to look after. Writers are in and
// out of one that is busy sooner.
const settlePatience = "200ms"

// settle writes down what the clock has ended in a session, and has those keep their leases whom nobody preempts any more.
func (s *Sweeper) settle(ctx context.Context, id string) error {
	var changes []lease.Change
	err := s.electedFor(ctx, sweepLeases, "end expired leases", func(ctx context.Context, q *dbgen.Queries) error {
		changes = nil
		if err := q.SweepPatience(ctx, dbgen.SweepPatienceParams{Patience: settlePatience}); err != nil {
			return err
		}
		if err := q.SessionLock(ctx, dbgen.SessionLockParams{SessionIds: []string{id}}); err != nil {
			return err
		}
		ended, err := q.OptimizationEnd(ctx, dbgen.OptimizationEndParams{SessionID: id})
		if err != nil {
			return err
		}
		waited := false
		for _, o := range ended {
			waited = waited || o.Was == "waiting"
			changes = append(changes, lease.Change{
				Session: id, Optimization: o.OptimizationID, Optimizer: o.OptimizerID, From: o.Was, To: o.State,
				Variables: o.Variables, Reason: o.Reason,
			})
		}
		if !waited {
			return nil
		}
		kept, err := q.OptimizationKeep(ctx, dbgen.OptimizationKeepParams{SessionID: id, Principal: lease.ServerPrincipal})
		for _, o := range kept {
			changes = append(changes, lease.Kept(id, o.OptimizationID, o.OptimizerID, o.Variables))
		}
		return err
	})
	if errors.Is(err, db.ErrLocked) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, change := range changes {
		s.events.OptimizationStatusChanged(ctx, change)
	}
	return nil
}

// optimizations removes those of earlier lives of their sessions, with their trials, once they are older than the retention.
func (s *Sweeper) optimizations(ctx context.Context) error {
	params := dbgen.SweepOldOptimizationsParams{RetentionUs: s.retention.Microseconds(), RowLimit: sessionsAtOnce}
	for {
		var old []dbgen.SweepOldOptimizationsRow
		err := s.elected(ctx, "find old optimizations", func(ctx context.Context, q *dbgen.Queries) error {
			var err error
			old, err = q.SweepOldOptimizations(ctx, params)
			return err
		})
		if err != nil {
			return err
		}
		for _, o := range old {
			if err := s.removeOptimization(ctx, o); err != nil {
				return err
			}
			params.AfterSession, params.AfterOptimization = o.SessionID, o.OptimizationID
		}
		if len(old) < sessionsAtOnce {
			return nil
		}
	}
}

// removeOptimization removes an optimization: what it has most of first, so that what is left is found again.
func (s *Sweeper) removeOptimization(ctx context.Context, o dbgen.SweepOldOptimizationsRow) error {
	err := s.batches(ctx, "remove metrics", func(ctx context.Context, q *dbgen.Queries) (int64, error) {
		return q.SweepRemoveMetrics(ctx, dbgen.SweepRemoveMetricsParams{
			SessionID: o.SessionID, OptimizationID: o.OptimizationID, RowLimit: batchRows,
		})
	}, func(int64) {})
	if err != nil {
		return err
	}
	err = s.batches(ctx, "remove trials", func(ctx context.Context, q *dbgen.Queries) (int64, error) {
		return q.SweepRemoveTrials(ctx, dbgen.SweepRemoveTrialsParams{
			SessionID: o.SessionID, OptimizationID: o.OptimizationID, RowLimit: batchRows,
		})
	}, func(int64) {})
	if err != nil {
		return err
	}
	return s.elected(ctx, "remove an optimization", func(ctx context.Context, q *dbgen.Queries) error {
		return q.SweepRemoveOptimization(ctx, dbgen.SweepRemoveOptimizationParams(o))
	})
}
