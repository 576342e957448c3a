package service

import (
	"context"
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/setpointdb/setpoint/db/dbgen"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/identity"
)

// StopOptimization ends an optimization, with the values of its best trial if it is asked to.
func (s *Service) StopOptimization(ctx context.Context, req *setpointv1.StopOptimizationRequest) (
	*setpointv1.StopOptimizationResponse, error,
) {
	principal := identity.FromContext(ctx)
	if req.GetForce() && req.GetReason() == "" {
		return nil, invalid("reason", "to stop somebody else's optimization needs a reason")
	}
	response, replayed, err := write(ctx, s, req, &setpointv1.StopOptimizationResponse{},
		func(ctx context.Context, q transaction, _ dbgen.SessionStateRow) (*setpointv1.StopOptimizationResponse, error) {
			return s.stop(ctx, q, req, principal)
		})
	switch {
	case replayed:
		s.events.RequestReplayed(ctx, req.GetSessionId(), principal.Name)
	case err != nil:
		s.recordRefusal(ctx, req.GetSessionId(), principal.Name, err)
	}
	return response, err
}

func (s *Service) stop(
	ctx context.Context, q transaction, req *setpointv1.StopOptimizationRequest, principal identity.Principal,
) (*setpointv1.StopOptimizationResponse, error) {
	row, err := lookUpOptimization(ctx, q.Queries, req, false, identity.Optimize)
	if err != nil {
		return nil, err
	}
	if err := row.allows(ctx, q.Queries, req.GetSessionId(), stopTakes(req, row, principal)); err != nil {
		return nil, err
	}
	state, err := mayStop(req, row, principal)
	if err != nil {
		return nil, err
	}
	if req.GetForce() {
		if err := auditForce(ctx, q.Queries, req.GetSessionId(), principal.Name, row.OptimizationID, req.GetReason()); err != nil {
			return nil, err
		}
	}
	response := &setpointv1.StopOptimizationResponse{}
	var followers []follower
	if req.GetApplyBest() {
		if followers, err = s.applyBest(ctx, q, req, row, principal.Name); err != nil {
			return nil, err
		}
	}
	reason := req.GetReason()
	switch {
	case reason == "":
		reason = "stopped by " + principal.Name
	case req.GetForce():
		reason += " (forced by " + principal.Name + ")"
	}
	if err := s.end(ctx, q, dbgen.OptimizationEndParams{
		SessionID: req.GetSessionId(), OptimizationID: row.OptimizationID, State: state, Reason: reason,
		Principal: principal.Name, Now: row.ReadAt,
	}); err != nil {
		return nil, err
	}
	if isHolding(row.State) {
		if err := s.finalValues(ctx, q, req, response); err != nil {
			return nil, err
		}
	}
	row.State, row.EndReason, row.EndedAt, row.QueuePosition = state, reason, row.ReadAt, 0
	var omitted bool
	response.Recomputed, response.Stale, omitted = tell(followers, s.limits.PageBytes)
	response.ValuesOmitted = response.ValuesOmitted || omitted
	response.Optimization, err = row.proto(req.GetSessionId(), principal.Name)
	return response, err
}

// stopTakes is what it takes, on all variables, to stop an optimization: whoever started it may give up what they may read, with
// credentials that they could have started it with, but to apply the best values, or to come with the token alone, is to do something
// under the lease.
func stopTakes(
	req *setpointv1.StopOptimizationRequest, row optimizationRow, principal identity.Principal,
) identity.Permissions {
	switch {
	case req.GetApplyBest():
		return identity.Optimize
	case req.GetForce() && row.StartedBy != principal.Name:
		return identity.Read // mayStop asks for more.
	case row.StartedBy == principal.Name && principal.Authority(req.GetSessionId())&identity.Optimize != 0:
		return identity.Read
	case row.StartedBy == principal.Name:
		return identity.Optimize
	case req.FencingToken != nil:
		return identity.Optimize
	}
	return identity.Read
}

// mayStop is the state in which an optimization is to end, or why the caller may not end it so.
func mayStop(req *setpointv1.StopOptimizationRequest, row optimizationRow, principal identity.Principal) (string, error) {
	switch {
	case !isOpen(row.State):
		return "", optimizationEnded(row)
	case req.GetForce() && row.StartedBy != principal.Name && !mayForce(row, principal, req.GetSessionId()):
		return "", accessDenied(ownerOnly, "only the session's owner and server admins may stop somebody else's optimization")
	case !req.GetForce() && req.FencingToken == nil && row.StartedBy != principal.Name:
		return "", notStarter(row.OptimizationID)
	case !req.GetForce() && req.FencingToken != nil && (row.State == stateWaiting || req.GetFencingToken() != row.FencingToken):
		return "", tokenRefused(row.OptimizationID)
	case row.State == stateWaiting && req.GetApplyBest():
		return "", invalid("apply_best", row.OptimizationID+" waits: it has no trials")
	case req.GetApplyBest() && row.BestNumber == nil:
		return "", invalid("apply_best", row.OptimizationID+" has no best trial")
	}
	state := req.GetState()
	switch {
	case state == setpointv1.OptimizationState_OPTIMIZATION_STATE_UNSPECIFIED && (req.GetForce() || row.State == stateWaiting):
		state = setpointv1.OptimizationState_OPTIMIZATION_STATE_CANCELLED
	case state == setpointv1.OptimizationState_OPTIMIZATION_STATE_UNSPECIFIED:
		state = setpointv1.OptimizationState_OPTIMIZATION_STATE_COMPLETED
	case row.State == stateWaiting && state != setpointv1.OptimizationState_OPTIMIZATION_STATE_CANCELLED:
		return "", invalid("state", row.OptimizationID+" waits: it can only be cancelled")
	}
	return stateNames[state], nil
}

// mayForce tells of the session's owner and of server admins, unless their credentials are narrowed to less.
func mayForce(row optimizationRow, principal identity.Principal, sessionID string) bool {
	return (row.Owner == principal.Name || principal.Admin) && principal.Authority(sessionID)&identity.Admin != 0
}

// applyBest writes the values of the best trial.
func (s *Service) applyBest(
	ctx context.Context, q transaction, req *setpointv1.StopOptimizationRequest, row optimizationRow, principal string,
) ([]follower, error) {
	best, err := trialValues(row.BestVals, row.BestPayloads)
	if err != nil {
		return nil, err
	}
	if len(best) == 0 {
		return nil, invalid("apply_best", fmt.Sprintf("the best trial, %d, has no values", *row.BestNumber))
	}
	report := &setpointv1.ReportProgressRequest{SessionId: req.GetSessionId(), Values: best}
	values, err := s.reportedValues(ctx, q.Queries, report, row, false)
	if err != nil {
		return nil, err
	}
	return s.applyTrial(ctx, q, appliedTrial{
		sessionID: req.GetSessionId(), principal: principal, reason: req.GetReason(), number: *row.BestNumber, values: values,
		lease: &setpointv1.Lease{OptimizationId: row.OptimizationID, FencingToken: row.FencingToken}, now: row.ReadAt,
	})
}

// finalValues reads the variables' values as the optimization leaves them.
func (s *Service) finalValues(
	ctx context.Context, q transaction, req *setpointv1.StopOptimizationRequest, response *setpointv1.StopOptimizationResponse,
) error {
	rows, err := q.OptimizationFinal(ctx, dbgen.OptimizationFinalParams{
		SessionID: req.GetSessionId(), OptimizationID: req.GetOptimizationId(), MaxBytes: s.limits.PageBytes,
	})
	if err != nil {
		return err
	}
	response.FinalValues = make(map[string]*setpointv1.Value, len(rows))
	for _, row := range rows {
		if !row.Fits {
			response.ValuesOmitted = true
			continue
		}
		if response.FinalValues[row.Name], err = storedValue(row.Type, row.Value, row.Payload); err != nil {
			return fmt.Errorf("variable %s: %w", row.Name, err)
		}
	}
	return nil
}

// withoutFinal leaves the values out of what is recorded of a large answer: a repeat says that it does.
func withoutFinal(r *setpointv1.StopOptimizationResponse) proto.Message {
	if proto.Size(r) <= recordedBytes {
		return r
	}
	bare := proto.CloneOf(r)
	bare.FinalValues, bare.ValuesOmitted = nil, true
	if bare.GetOptimization().GetBestTrial() != nil {
		bare.Optimization.BestTrial.Values = nil
	}
	for _, v := range bare.GetRecomputed() {
		v.Value = nil
	}
	return bare
}

// withoutCheckpoint leaves out of what is recorded what is true of the moment alone, and the bytes that another record has.
func withoutCheckpoint(o *setpointv1.Optimization) proto.Message {
	bare := proto.CloneOf(o)
	bare.Remaining = nil
	if bare.GetCheckpoint() != nil {
		bare.Checkpoint.Data = nil
	}
	return bare
}

// restoreCheckpoint reads the bytes again, unless there is a newer checkpoint by now.
func restoreCheckpoint(ctx context.Context, q *dbgen.Queries, o *setpointv1.Optimization) error {
	if o.GetCheckpoint() == nil {
		return nil
	}
	row, err := getOptimization(ctx, q, o, true, identity.Read)
	if err != nil {
		return err
	}
	if orNone(row.CheckpointID) == o.GetCheckpoint().GetOptimizationId() && row.CheckpointNumber != nil &&
		*row.CheckpointNumber == o.GetCheckpoint().GetTrialNumber() {
		o.Checkpoint.Data = row.Checkpoint
	}
	return nil
}
