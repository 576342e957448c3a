package service

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/proto"

	"github.com/setpointdb/setpoint/db"
	"github.com/setpointdb/setpoint/db/dbgen"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/identity"
	"github.com/setpointdb/setpoint/internal/value"
)

// RollbackSession gives the session's variables their values of a revision or a time, all or none, in a number of
// statements that does not depend on how many there are.
func (s *Service) RollbackSession(ctx context.Context, req *setpointv1.RollbackSessionRequest) (
	*setpointv1.RollbackSessionResponse, error,
) {
	principal := identity.FromContext(ctx).Name
	response, replayed, err := write(db.Within(ctx, wholeSession), s, req, &setpointv1.RollbackSessionResponse{},
		func(ctx context.Context, q transaction, _ dbgen.SessionStateRow) (*setpointv1.RollbackSessionResponse, error) {
			timeout := strconv.FormatInt(wholeSession.Milliseconds(), 10)
			if err := q.TransactionTimeout(ctx, dbgen.TransactionTimeoutParams{Timeout: timeout}); err != nil {
				return nil, err
			}
			var revision *int64
			if r, ok := req.GetTo().(*setpointv1.RollbackSessionRequest_Revision); ok {
				revision = &r.Revision
			}
			at, err := findRevision(ctx, q.Queries, req.GetSessionId(), revision, req.GetTime())
			if err != nil {
				return nil, err
			}
			if err := mayRestore(ctx, q.Queries, req, at); err != nil {
				return nil, err
			}
			if err := s.checkRestored(ctx, q.tx, req.GetSessionId(), at); err != nil {
				return nil, err
			}
			return s.restore(ctx, q, req, at, principal)
		})
	switch {
	case err != nil:
		s.recordRefusal(ctx, req.GetSessionId(), principal, err)
		return nil, err
	case replayed:
		s.events.RequestReplayed(ctx, req.GetSessionId(), principal)
	case !req.GetDryRun():
		s.events.SessionRolledBack(ctx, req.GetSessionId(), response.GetTargetRevision(), len(response.GetRestored()), principal)
	}
	return response, nil
}

// mayRestore refuses a rollback of the session by who may not change all that it would change: before its values are looked at.
func mayRestore(ctx context.Context, q *dbgen.Queries, req *setpointv1.RollbackSessionRequest, at int64) error {
	c := callerIn(ctx, req.GetSessionId())
	ids := []string{}
	for _, lease := range req.GetLeases() {
		ids = append(ids, lease.GetOptimizationId())
	}
	row, err := q.SightOfRestore(ctx, dbgen.SightOfRestoreParams{
		SessionID: req.GetSessionId(), At: at, Principal: c.principal, Groups: c.groups, Authority: c.authority, LeaseIds: ids,
	})
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil
	case err != nil:
		return err
	case row.Access&int32(identity.Read) == 0:
		return denied(identity.Permissions(row.Permission), hiddenName, "")
	}
	return deniedOn(ctx, q, req.GetSessionId(), wanted{row.Name, identity.Permissions(row.Permission)})
}

// checkRestored refuses a rollback to values that the constraints of today refuse. Only definitions that have changed
// since have to be asked.
func (s *Service) checkRestored(ctx context.Context, tx pgx.Tx, sessionID string, at int64) error {
	rows, err := tx.Query(ctx, dbgen.SnapshotToCheck, at, sessionID)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() { // One by one: all values of a session may be more than there is memory.
		var row dbgen.SnapshotToCheckRow
		if err := rows.Scan(&row.Name, &row.Type, &row.Constraints, &row.Value, &row.Payload); err != nil {
			return err
		}
		if err := s.checkThen(row); err != nil {
			return err
		}
	}
	return rows.Err()
}

func (s *Service) checkThen(row dbgen.SnapshotToCheckRow) error {
	definition, err := compile(row.Type, row.Constraints)
	if err != nil {
		return err
	}
	then, err := value.Decode(definition.Type(), row.Value, row.Payload)
	if err != nil {
		return err
	}
	_, err = definition.Accept(row.Name, then, s.limits.ValueBytes)
	return err
}

func (s *Service) restore(
	ctx context.Context, q transaction, req *setpointv1.RollbackSessionRequest, at int64, principal string,
) (*setpointv1.RollbackSessionResponse, error) {
	since, err := q.SnapshotSince(ctx, dbgen.SnapshotSinceParams{SessionID: req.GetSessionId(), At: at})
	if err != nil {
		return nil, err
	}
	params := dbgen.SnapshotRestoreParams{
		SessionID: req.GetSessionId(), At: at, Principal: principal, Reason: req.GetReason(),
	}
	if params.LeaseIds, params.LeaseTokens, err = presentedLeases(ctx, q.Queries, req); err != nil {
		return nil, err
	}
	done, err := q.SnapshotRestore(ctx, params)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, sessionNotFound(req.GetSessionId()) // It has expired since the transaction began.
	}
	if err != nil {
		return nil, err
	}
	switch {
	case done.Refused == "LEASE_LOST":
		return nil, leaseLost(done.OptimizationID, done.RefusedName)
	case done.Refused != "":
		return nil, alreadyOptimizing(done.RefusedName,
			holderOf(done.OptimizationID, done.LeaseOptimizerID, done.LeaseStartedAt, done.LeaseExpiresAt))
	}
	response := &setpointv1.RollbackSessionResponse{
		TargetRevision: at, Revision: done.FirstRevision + done.Restored - 1,
	}
	for _, variable := range since {
		if variable.Deleted {
			response.DeletedSince = append(response.DeletedSince, variable.Name)
		} else {
			response.RegisteredSince = append(response.RegisteredSince, variable.Name)
		}
	}
	p := propagation{
		sessionID: req.GetSessionId(), principal: principal, first: done.FirstRevision, whole: true, after: q.after,
	}
	for i, id := range done.VariableIds { // Both lists are in the order of ids.
		_, disturbs := slices.BinarySearch(done.DisturbingIds, id)
		p.changes = append(p.changes, change{variableID: id, revision: done.FirstRevision + int64(i), disturbs: disturbs})
	}
	followers, refused, err := s.follow(ctx, q.Queries, p)
	if err != nil || refused != nil {
		return nil, refusedOr(refused, err)
	}
	response.Revision += int64(len(followers))
	response.UnchangedCount, err = q.SnapshotUnchanged(ctx, dbgen.SnapshotUnchangedParams{SessionID: req.GetSessionId(), At: at})
	if err != nil {
		return nil, err
	}
	return response, s.fillRestored(ctx, q.Queries, req.GetSessionId(), done.Restored, followers, response)
}

// presentedLeases are the request's, each of which has to hold, whatever it holds on.
func presentedLeases(ctx context.Context, q *dbgen.Queries, req *setpointv1.RollbackSessionRequest) ([]string, []int64, error) {
	ids, tokens := []string{}, []int64{}
	for _, lease := range req.GetLeases() {
		if slices.Contains(ids, lease.GetOptimizationId()) {
			return nil, nil, invalid("leases", fmt.Sprintf("%s is in the list twice", lease.GetOptimizationId()))
		}
		ids, tokens = append(ids, lease.GetOptimizationId()), append(tokens, lease.GetFencingToken())
	}
	if len(ids) == 0 {
		return ids, tokens, nil
	}
	held, err := q.OptimizationHeld(ctx, dbgen.OptimizationHeldParams{
		SessionID: req.GetSessionId(), OptimizationIds: ids, FencingTokens: tokens,
	})
	if err != nil {
		return nil, nil, err
	}
	for _, id := range ids {
		if !slices.Contains(held, id) {
			return nil, nil, tokenRefused(id)
		}
	}
	return ids, tokens, nil
}

// fillRestored reads what a rollback did from the history that it made, and what followed.
func (s *Service) fillRestored(
	ctx context.Context, q *dbgen.Queries, sessionID string, restored int64, followers []follower,
	response *setpointv1.RollbackSessionResponse,
) error {
	last := response.GetRevision() - int64(len(followers))
	response.Recomputed, response.Stale, response.ValuesOmitted = tell(followers, s.limits.PageBytes)
	rows, err := q.SnapshotRestored(ctx, dbgen.SnapshotRestoredParams{
		SessionID: sessionID, At: response.GetTargetRevision(), MaxBytes: s.limits.PageBytes,
		FirstRevision: last - restored + 1, LastRevision: last,
	})
	if err != nil {
		return err
	}
	for _, row := range rows {
		then, err := storedValue(row.Type, row.Value, row.Payload)
		if err != nil {
			return fmt.Errorf("variable %s: %w", row.VariableID, err)
		}
		previous, err := storedValue(row.Type, row.PreviousValue, row.PreviousPayload)
		if err != nil {
			return fmt.Errorf("variable %s: %w", row.VariableID, err)
		}
		response.Restored = append(response.Restored, &setpointv1.RestoredVariable{
			VariableId: row.VariableID, Name: row.Name, ThenVersion: row.ThenVersion, Then: then,
			PreviousVersion: row.Version - 1, Previous: previous, Version: row.Version, Revision: row.Revision,
		})
		response.ValuesOmitted = response.ValuesOmitted || !row.WithValues
	}
	return nil
}

// withoutRestored leaves out of what is recorded what fillRestored reads again: of its list, only the length stays.
func withoutRestored(r *setpointv1.RollbackSessionResponse) proto.Message {
	bare := proto.CloneOf(&setpointv1.RollbackSessionResponse{
		TargetRevision: r.GetTargetRevision(), Revision: r.GetRevision(), UnchangedCount: r.GetUnchangedCount(),
		RegisteredSince: r.GetRegisteredSince(), DeletedSince: r.GetDeletedSince(),
	})
	bare.Restored = make([]*setpointv1.RestoredVariable, len(r.GetRestored()))
	for i := range bare.Restored {
		bare.Restored[i] = &setpointv1.RestoredVariable{}
	}
	return bare
}
