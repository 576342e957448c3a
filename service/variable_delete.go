package service

import (
	"context"
	"fmt"

	"github.com/setpointdb/setpoint/db/dbgen"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/identity"
)

// DeleteVariable removes a variable; its history stays. Others may depend on it only if it cascades: then the edges go, and
// what is computed from it becomes stale.
func (s *Service) DeleteVariable(ctx context.Context, req *setpointv1.DeleteVariableRequest) (
	*setpointv1.DeleteVariableResponse, error,
) {
	principal := identity.FromContext(ctx).Name
	response, replayed, err := write(ctx, s, req, &setpointv1.DeleteVariableResponse{},
		func(ctx context.Context, q transaction, _ dbgen.SessionStateRow) (*setpointv1.DeleteVariableResponse, error) {
			row, err := variableToChange(ctx, q.Queries, req, identity.Write, req.ExpectedVersion, fence)
			if err != nil {
				return nil, err
			}
			return s.deleteVariable(ctx, q, req, row, principal)
		})
	switch {
	case err != nil:
		s.recordRefusals(ctx, asked{sessionID: req.GetSessionId(), variable: req.GetVariable()}, principal, asRefusal(err))
		return nil, err
	case replayed:
		s.events.RequestReplayed(ctx, req.GetSessionId(), principal)
	default:
		s.events.VariableDeleted(ctx, req.GetSessionId(), req.GetVariable(), principal)
	}
	return response, nil
}

func (s *Service) deleteVariable(
	ctx context.Context, q transaction, req *setpointv1.DeleteVariableRequest, row variableRow, principal string,
) (*setpointv1.DeleteVariableResponse, error) {
	var dependents []dbgen.DependencyOnRow
	if row.HasDependents {
		var err error
		dependents, err = q.DependencyOn(ctx, dbgen.DependencyOnParams{
			SessionID: req.GetSessionId(), DependencyID: row.VariableID,
		})
		if err != nil {
			return nil, err
		}
	}
	if len(dependents) > 0 && !req.GetCascade() {
		return nil, hasDependentsError(row.Name, names(dependents))
	}
	if err := unlink(ctx, q.Queries, req.GetSessionId(), row, len(dependents) > 0); err != nil {
		return nil, err
	}
	deleted, err := q.VariableDelete(ctx, dbgen.VariableDeleteParams{
		SessionID: req.GetSessionId(), VariableID: row.VariableID, Reason: req.GetReason(), Principal: principal,
		LeaseID: req.GetLease().GetOptimizationId(),
	})
	if err != nil {
		return nil, err
	}
	lost := cause{deleted.Revision, row.VariableID, row.Name}
	p := propagation{sessionID: req.GetSessionId(), principal: principal, first: deleted.Revision, after: q.after}
	for _, dependent := range dependents {
		p.before = append(p.before, follower{
			variableID: dependent.VariableID, name: dependent.Name, cause: lost,
			change:       setpointv1.HistoryChange_HISTORY_CHANGE_DEPENDENCY_REMOVED,
			dependencyID: row.VariableID, dependency: row.Name,
		})
		q.after.add(func(ctx context.Context) {
			s.events.DependencyRemoved(ctx, req.GetSessionId(), dependent.Name, row.Name, principal)
		})
		if dependent.Derived {
			p.changes = append(p.changes, change{
				variableID: dependent.VariableID, lost: lost, error: fmt.Sprintf("it depended on %s, which was deleted", row.Name),
			})
		}
	}
	followers, refused, err := s.follow(ctx, q.Queries, p)
	if err != nil || refused != nil {
		return nil, refusedOr(refused, err)
	}
	response := &setpointv1.DeleteVariableResponse{VariableId: row.VariableID, Revision: deleted.Revision}
	_, response.Stale, _ = tell(followers, 0)
	return response, nil
}

func names(dependents []dbgen.DependencyOnRow) []string {
	out := make([]string, len(dependents))
	for i, d := range dependents {
		out[i] = d.Name
	}
	return out
}

// unlink removes a variable's edges; those of what depends on it only if there are such.
func unlink(ctx context.Context, q *dbgen.Queries, sessionID string, row variableRow, dependents bool) error {
	if !dependents && len(row.DependsOn) == 0 {
		return nil
	}
	needs, err := q.DependencyOf(ctx, dbgen.DependencyOfParams{SessionID: sessionID, DependentID: row.VariableID})
	if err != nil {
		return err
	}
	ids := make([]string, 0, len(needs))
	for _, need := range needs {
		ids = append(ids, need.VariableID)
	}
	return q.DependencyUnlink(ctx, dbgen.DependencyUnlinkParams{
		SessionID: sessionID, VariableID: row.VariableID, DependencyIds: ids, Dependents: dependents,
	})
}
