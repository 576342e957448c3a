package service

import (
	"context"
	"errors"
	"math"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/setpointdb/setpoint/db"
	"github.com/setpointdb/setpoint/db/dbgen"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/identity"
	"github.com/setpointdb/setpoint/internal/lease"
)

// The queue: how a waiting optimization comes to its lease, and how an end lets the others go on.

// settle writes down what the clock has ended in a session, and lets the others go on. The caller holds its lock.
func (s *Service) settle(ctx context.Context, q transaction, sessionID string, now pgtype.Timestamptz) error {
	return s.end(ctx, q, dbgen.OptimizationEndParams{SessionID: sessionID, Now: now})
}

// end ends an optimization, and what the clock has ended. Who was to lose a lease to one of them keeps it, and those who wait
// on this server look again once it is committed.
func (s *Service) end(ctx context.Context, q transaction, params dbgen.OptimizationEndParams) error {
	rows, err := q.OptimizationEnd(ctx, params)
	if err != nil || len(rows) == 0 {
		return err
	}
	waited := false
	for _, row := range rows {
		waited = waited || row.Was == stateWaiting
		q.after.add(func(ctx context.Context) {
			s.events.OptimizationStatusChanged(ctx, lease.Change{
				Session: params.SessionID, Optimization: row.OptimizationID, Optimizer: row.OptimizerID, From: row.Was,
				To: row.State, Variables: row.Variables, Reason: row.Reason,
			})
		})
	}
	q.after.add(func(context.Context) { s.queue.Wake(params.SessionID) })
	if !waited {
		return nil
	}
	return s.keep(ctx, q, params)
}

// endOptimizations ends what a session that has ended left open, where no sweeper has been yet.
func (s *Service) endOptimizations(ctx context.Context, q transaction, sessionID string) error {
	open, err := q.SweepEndOptimizations(ctx, dbgen.SweepEndOptimizationsParams{SessionID: sessionID, RowLimit: math.MaxInt32})
	for _, o := range open {
		q.after.add(func(ctx context.Context) {
			s.events.OptimizationStatusChanged(ctx, lease.Change{
				Session: sessionID, Optimization: o.OptimizationID, Optimizer: o.OptimizerID, From: o.Was, To: o.State,
				Variables: o.Variables, Reason: o.EndReason,
			})
		})
	}
	return err
}

// keep gives those their leases back who were to lose them to somebody who is gone.
func (s *Service) keep(ctx context.Context, q transaction, params dbgen.OptimizationEndParams) error {
	principal := params.Principal
	if principal == "" {
		principal = lease.ServerPrincipal
	}
	kept, err := q.OptimizationKeep(ctx, dbgen.OptimizationKeepParams{
		SessionID: params.SessionID, Principal: principal, Now: params.Now,
	})
	for _, k := range kept {
		q.after.add(func(ctx context.Context) {
			s.events.OptimizationStatusChanged(ctx, lease.Kept(params.SessionID, k.OptimizationID, k.OptimizerID, k.Variables))
		})
	}
	return err
}

// grant gives a waiting optimization its lease, if nothing stands in the way. One that can never be granted is cancelled.
// was is its state before the transaction.
func (s *Service) grant(
	ctx context.Context, q transaction, sessionID, id, was string, now pgtype.Timestamptz,
) (dbgen.OptimizationGrantRow, error) {
	row, err := q.OptimizationGrant(ctx, dbgen.OptimizationGrantParams{SessionID: sessionID, OptimizationID: id, Now: now})
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return row, nil // It does not wait any more.
	case err != nil:
		return row, err
	case row.Missing != "":
		return row, s.end(ctx, q, dbgen.OptimizationEndParams{
			SessionID: sessionID, OptimizationID: id, State: "cancelled", Reason: row.Missing + " was deleted",
			Principal: lease.ServerPrincipal, Now: now,
		})
	case row.Derived != "":
		return row, s.end(ctx, q, dbgen.OptimizationEndParams{
			SessionID: sessionID, OptimizationID: id, State: "cancelled", Reason: row.Derived + " became a derived variable",
			Principal: lease.ServerPrincipal, Now: now,
		})
	case row.Granted:
		q.after.add(func(ctx context.Context) { s.recordGrant(ctx, sessionID, id, was, row) })
	}
	return row, nil
}

func (s *Service) recordGrant(ctx context.Context, sessionID, id, was string, row dbgen.OptimizationGrantRow) {
	s.events.LockAcquired(ctx, sessionID, id, row.GrantedAt.Time.Sub(row.RequestedAt.Time))
	s.events.OptimizationStatusChanged(ctx, lease.Change{
		Session: sessionID, Optimization: id, Optimizer: row.OptimizerID, From: was, To: "active", Variables: row.Variables,
	})
}

// claim writes down what the clock has ended in the session, and then tries to give a waiting optimization its lease.
func (s *Service) claim(ctx context.Context, req ofOptimization) error {
	var after afterCommit
	err := s.db.InSession(ctx, "claim a lease", req.GetSessionId(), func(ctx context.Context, tx pgx.Tx) error {
		after = nil
		c := callerIn(ctx, req.GetSessionId())
		state, err := db.LockAndMark(tx, req.GetSessionId()).SessionState(ctx, dbgen.SessionStateParams{
			SessionID: req.GetSessionId(), Principal: c.principal, Groups: c.groups, Authority: c.authority,
		})
		if err != nil || !state.Alive {
			return err
		}
		q := transaction{Queries: dbgen.New(tx), tx: tx, after: &after}
		// Who waits is granted nothing that a start would be refused by now.
		if _, err := getOptimization(ctx, q.Queries, req, false, identity.Optimize); err != nil {
			return err
		}
		if err := s.settle(ctx, q, req.GetSessionId(), state.ReadAt); err != nil {
			return err
		}
		_, err = s.grant(ctx, q, req.GetSessionId(), req.GetOptimizationId(), stateWaiting, state.ReadAt)
		return err
	})
	if err == nil {
		after.run(ctx)
	}
	return err
}

// leaveQueue ends the stay in the queue of an optimization whose principal may no longer do what it waits for.
func (s *Service) leaveQueue(ctx context.Context, req ofOptimization, principal string) error {
	var after afterCommit
	err := s.db.InSession(ctx, "leave the queue", req.GetSessionId(), func(ctx context.Context, tx pgx.Tx) error {
		after = nil
		state, err := db.LockAndMark(tx, req.GetSessionId()).SessionState(ctx, dbgen.SessionStateParams{
			SessionID: req.GetSessionId(),
		})
		if err != nil || !state.Alive {
			return err
		}
		q := transaction{Queries: dbgen.New(tx), tx: tx, after: &after}
		row, err := q.OptimizationGet(ctx, dbgen.OptimizationGetParams{
			SessionID: req.GetSessionId(), OptimizationID: req.GetOptimizationId(), Authority: everything.authority, Now: state.ReadAt,
		})
		if err != nil || row.State != stateWaiting {
			return err
		}
		return s.end(ctx, q, dbgen.OptimizationEndParams{
			SessionID: req.GetSessionId(), OptimizationID: req.GetOptimizationId(), State: "cancelled",
			Reason: principal + " may no longer optimize all of its variables", Principal: lease.ServerPrincipal, Now: state.ReadAt,
		})
	})
	if err == nil {
		after.run(ctx)
	}
	return err
}

// lookAtQueue tells where the optimizations are that somebody waits for on this server.
func (s *Service) lookAtQueue(ctx context.Context, keys []lease.Key) ([]lease.Seen, error) {
	var params dbgen.OptimizationQueueParams
	for _, key := range keys {
		params.SessionIds = append(params.SessionIds, key.Session)
		params.OptimizationIds = append(params.OptimizationIds, key.Optimization)
	}
	places := make([]lease.Seen, len(keys))
	err := s.db.Read(ctx, "look at the queue", func(ctx context.Context, q *dbgen.Queries) error {
		rows, err := q.OptimizationQueue(ctx, params)
		if err != nil {
			return err
		}
		for i, row := range rows {
			places[i] = lease.Seen{
				Place:     lease.Place{State: row.State, Position: int(row.QueuePosition), Ready: row.Ready},
				ExpiresAt: row.ExpiresAt.Time, ReadAt: row.ReadAt.Time,
			}
			if row.State != "" { // Who follows the queue is a sign of life.
				s.extend.Note(keys[i].Session, row.ReadAt.Time, microseconds(row.SessionTtlUs))
			}
		}
		return nil
	})
	return places, err
}

// stayInQueue extends the stays of those who wait on this server.
func (s *Service) stayInQueue(ctx context.Context, sessionID string, ids []string) error {
	return s.db.Locked(ctx, "stay in the queue", []string{sessionID}, func(ctx context.Context, q *dbgen.Queries) error {
		_, err := q.OptimizationStay(ctx, dbgen.OptimizationStayParams{SessionID: sessionID, OptimizationIds: ids})
		return err
	})
}

// RenewOptimization extends a lease, or a stay in the queue: one statement under the session's lock, in one round trip.
func (s *Service) RenewOptimization(ctx context.Context, req *setpointv1.RenewOptimizationRequest) (
	*setpointv1.Optimization, error,
) {
	principal := identity.FromContext(ctx).Name
	c := callerIn(ctx, req.GetSessionId())
	if err := s.refuseAgain(ctx, c, req.GetSessionId(), ""); err != nil {
		return nil, err
	}
	ids := []string{req.GetSessionId()}
	var renewed dbgen.OptimizationRenewRow
	err := s.db.Locked(ctx, "renew optimization", ids, func(ctx context.Context, q *dbgen.Queries) error {
		var err error
		renewed, err = q.OptimizationRenew(ctx, dbgen.OptimizationRenewParams{
			SessionID: req.GetSessionId(), OptimizationID: req.GetOptimizationId(), FencingToken: req.GetFencingToken(),
			Principal: c.principal, Groups: c.groups, Authority: c.authority,
		})
		if errors.Is(err, pgx.ErrNoRows) {
			return sessionNotFound(req.GetSessionId())
		}
		return err
	})
	switch {
	case err != nil:
		return nil, err
	case renewed.State == "":
		if _, err := s.readOptimization(ctx, req, false, identity.Optimize); err != nil {
			return nil, err // It says which it is.
		}
		return nil, optimizationNotFound(req.GetSessionId(), req.GetOptimizationId())
	case renewed.Refused == "LEASE_LOST":
		s.events.LockConflict(ctx, req.GetSessionId(), "", renewed.Refused, req.GetOptimizationId(), principal)
		return nil, tokenRefused(req.GetOptimizationId())
	case renewed.Refused == "ACCESS_DENIED":
		return nil, notStarter(req.GetOptimizationId())
	case renewed.State == stateWaiting:
		if err := s.claimIfReady(ctx, req); err != nil {
			return nil, err
		}
	}
	row, err := s.readOptimization(ctx, req, renewed.State == stateWaiting, identity.Optimize) // It may just have got its lease.
	switch {
	case err != nil:
		return nil, err
	case renewed.Refused != "" || !isOpen(row.State): // It may have been cancelled at its turn.
		return nil, optimizationEnded(row)
	}
	return row.proto(req.GetSessionId(), principal)
}

// notStarter is the refusal of what the principal that started an optimization may do without a token.
func notStarter(optimizationID string) *Error {
	return accessDenied("optimize", "without its fencing token only the principal that started "+optimizationID+
		" may do this; the session's owner and server admins may force it to stop, with a reason")
}

// claimIfReady is for those who do not follow the queue, but look at it now and then.
func (s *Service) claimIfReady(ctx context.Context, req ofOptimization) error {
	places, err := s.lookAtQueue(ctx, []lease.Key{{Session: req.GetSessionId(), Optimization: req.GetOptimizationId()}})
	if err != nil || !places[0].Ready {
		return err
	}
	return s.claim(ctx, req)
}
