package service

import (
	"context"

	"github.com/setpointdb/setpoint/db/dbgen"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/identity"
	"github.com/setpointdb/setpoint/internal/value"
)

// RollbackVariable writes the value of an earlier version as a new one, under today's constraints.
func (s *Service) RollbackVariable(ctx context.Context, req *setpointv1.RollbackVariableRequest) (
	*setpointv1.Variable, error,
) {
	principal := identity.FromContext(ctx).Name
	variable, replayed, err := write(ctx, s, req, &setpointv1.Variable{},
		func(ctx context.Context, q transaction, _ dbgen.SessionStateRow) (*setpointv1.Variable, error) {
			current, err := variableToChange(ctx, q.Queries, req, identity.Write, req.ExpectedVersion, fence)
			if err != nil {
				return nil, err
			}
			if current.Expression != "" {
				return nil, derivedVariable(current.Name)
			}
			then, err := getVersion(ctx, q.Queries, req.GetSessionId(), current, req.GetVersion())
			if err != nil {
				return nil, err
			}
			return s.rollBack(ctx, q, req, current, then, principal)
		})
	switch {
	case err != nil:
		s.recordRefusals(ctx, asked{sessionID: req.GetSessionId(), variable: req.GetVariable()}, principal, asRefusal(err))
		return nil, err
	case replayed:
		s.events.RequestReplayed(ctx, req.GetSessionId(), principal)
	default:
		s.events.VariableRolledBack(ctx, req.GetSessionId(), variable.GetName(), req.GetVersion(), variable.GetVersion(),
			principal)
	}
	return variable, nil
}

// rollBack sets the value of then, by the statement of every other write.
func (s *Service) rollBack(
	ctx context.Context, q transaction, req *setpointv1.RollbackVariableRequest, current variableRow,
	then dbgen.HistoryGetVersionRow, principal string,
) (*setpointv1.Variable, error) {
	definition, err := compile(current.Type, current.Constraints)
	if err != nil {
		return nil, err
	}
	old, err := value.Decode(definition.Type(), then.Value, then.Payload)
	if err != nil {
		return nil, err
	}
	stored, err := definition.Accept(current.Name, old, s.limits.ValueBytes)
	if err != nil {
		return nil, err
	}
	item := checkedItem{
		setCall:    &setCall{sessionID: req.GetSessionId(), caller: callerIn(ctx, req.GetSessionId()), lease: req.GetLease()},
		setItem:    setItem{variable: current.VariableID, expected: current.Version, metadata: keepMetadata, reason: req.GetReason()},
		definition: current.DefinitionRevision, stored: stored,
	}
	params := setParams(setpointv1.HistoryChange_HISTORY_CHANGE_ROLLED_BACK, item)
	params.Follows = true
	rows, err := answered(1)(q.VariableSet(ctx, params))
	if err != nil {
		return nil, err
	}
	if refused := setOutcomes(rows, []checkedItem{item})[0].refusal(asked{
		sessionID: req.GetSessionId(), variable: current.Name, lease: req.GetLease(), permission: permissionUnder(req.GetLease()),
	}); refused != nil {
		return nil, refused // The session, or the lease, may have expired since the transaction began.
	}
	p := propagation{sessionID: req.GetSessionId(), principal: principal, after: q.after}
	p.written(rows)
	if _, refused, err := s.follow(ctx, q.Queries, p); err != nil || refused != nil {
		return nil, refusedOr(refused, err)
	}
	current.Value, current.Payload = stored.JSON, stored.Payload
	current.StaleRevision = 0
	current.Version, current.Revision = current.Version+1, rows[0].Revision
	current.UpdatedAt, current.UpdatedBy = rows[0].ChangedAt, principal
	return current.proto(req.GetSessionId())
}
