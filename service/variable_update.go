package service

import (
	"context"

	"google.golang.org/protobuf/proto"

	"github.com/setpointdb/setpoint/db/dbgen"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/identity"
	"github.com/setpointdb/setpoint/internal/value"
)

// UpdateVariable changes constraints, metadata, history limit, dependencies and expression: a history row, but no new
// version, except that a new expression is computed at once.
func (s *Service) UpdateVariable(ctx context.Context, req *setpointv1.UpdateVariableRequest) (
	*setpointv1.Variable, error,
) {
	if err := checkMetadata(req.GetMetadata()); err != nil {
		return nil, err
	}
	principal := identity.FromContext(ctx).Name
	variable, replayed, err := write(ctx, s, req, &setpointv1.Variable{},
		func(ctx context.Context, q transaction, _ dbgen.SessionStateRow) (*setpointv1.Variable, error) {
			permission := identity.Write
			if req.GetAccessMode() != setpointv1.AccessMode_ACCESS_MODE_UNSPECIFIED {
				permission = identity.Admin
			}
			row, err := variableToChange(ctx, q.Queries, req, permission, req.ExpectedVersion, fenceUpdate(req))
			if err != nil {
				return nil, err
			}
			before, err := row.proto(req.GetSessionId())
			if err != nil {
				return nil, err
			}
			after, err := s.updated(before, req)
			if err != nil {
				return nil, err
			}
			if err := updateRow(ctx, q.Queries, req, before, after, principal); err != nil {
				return nil, err
			}
			if from, to := before.GetAccessMode(), after.GetAccessMode(); from != to {
				err := auditAccessMode(ctx, q.Queries, req.GetSessionId(), principal,
					methodName(setpointv1.VariableService_UpdateVariable_FullMethodName), req.GetReason(),
					modeChange{variable: row.Name, from: accessModeName(from), to: accessModeName(to)})
				if err != nil {
					return nil, err
				}
			}
			if !changesGraph(req) && !mayCompute(req, row) {
				return after, nil
			}
			u := &graphUpdate{s: s, q: q.Queries, events: q.after, req: req, row: row, before: before, after: after, principal: principal}
			return u.run(ctx)
		})
	switch {
	case replayed:
		s.events.RequestReplayed(ctx, req.GetSessionId(), principal)
	case err != nil:
		s.recordRefusals(ctx, asked{sessionID: req.GetSessionId(), variable: req.GetVariable()}, principal, asRefusal(err))
	default:
		s.events.VariableUpdated(ctx, req.GetSessionId(), variable.GetName(), principal)
	}
	return variable, err
}

// fenceUpdate has a lease stand in the way of what decides on values. An optimized variable cannot become derived.
func fenceUpdate(req *setpointv1.UpdateVariableRequest) fenceFunc {
	return func(ctx context.Context, q *dbgen.Queries, sessionID string, row variableRow, lease *setpointv1.Lease) error {
		if row.OptimizationID != "" && req.GetExpression() != "" {
			return refuse(setpointv1.ErrorReason_DERIVED_VARIABLE,
				row.Name+" is being optimized, and cannot become a derived variable", "variable", row.Name)
		}
		if req.Constraints == nil && lease == nil {
			return nil
		}
		return fence(ctx, q, sessionID, row, lease)
	}
}

// changeRequest is a request that changes one variable.
type changeRequest interface {
	GetSessionId() string
	GetVariable() string
	leased
}

// variableToChange reads a variable whose session the transaction has locked, and sees that it may be changed.
// It takes the permission, and optimize under a lease.
func variableToChange(
	ctx context.Context, q *dbgen.Queries, req changeRequest, permission identity.Permissions, expected *int64,
	fenced fenceFunc,
) (variableRow, error) {
	if permission == identity.Write {
		permission = permissionUnder(req.GetLease())
	}
	row, err := getVariable(ctx, q, req.GetSessionId(), req.GetVariable(), permission)
	if err != nil {
		return row, err
	}
	if err := fenced(ctx, q, req.GetSessionId(), row, req.GetLease()); err != nil {
		return row, err
	}
	if expected != nil && *expected != row.Version {
		return row, versionMismatch(row.Name, *expected, row.Version)
	}
	return row, nil
}

// updated is the variable as the request wants it, checked.
func (s *Service) updated(before *setpointv1.Variable, req *setpointv1.UpdateVariableRequest) (
	*setpointv1.Variable, error,
) {
	after := proto.CloneOf(before)
	if req.Constraints != nil {
		after.Constraints = req.GetConstraints()
		if proto.Size(after.Constraints) == 0 {
			after.Constraints = nil
		}
		definition, err := value.NewDefinition(after.GetType(), after.GetConstraints())
		if err != nil {
			return nil, err
		}
		if req.GetExpression() == "" { // Of a new expression, its value is what has to satisfy them.
			if _, err := definition.Accept(after.GetName(), after.GetValue(), s.limits.ValueBytes); err != nil {
				return nil, err
			}
		}
	}
	if len(req.GetMetadata()) > 0 || req.GetClearMetadata() {
		after.Metadata = req.GetMetadata()
	}
	if req.HistoryLimit != nil {
		after.HistoryLimit = req.GetHistoryLimit()
	}
	if req.Expression != nil {
		after.Expression = req.GetExpression()
	}
	if req.GetAccessMode() != setpointv1.AccessMode_ACCESS_MODE_UNSPECIFIED {
		after.AccessMode = req.GetAccessMode()
	}
	if req.Strict != nil {
		after.Strict = req.GetStrict()
	}
	if after.GetStrict() && after.GetExpression() == "" {
		if req.GetStrict() {
			return nil, invalid("strict", "only a variable with an expression can be strict")
		}
		after.Strict = false
	}
	return after, nil
}

func updateRow(
	ctx context.Context, q *dbgen.Queries, req *setpointv1.UpdateVariableRequest, before, after *setpointv1.Variable,
	principal string,
) error {
	constraints, err := value.MarshalConstraints(after.GetConstraints())
	if err != nil {
		return err
	}
	row, err := q.VariableUpdate(ctx, dbgen.VariableUpdateParams{
		SessionID: req.GetSessionId(), VariableID: after.GetVariableId(), Constraints: constraints,
		Metadata: metadataJSON(after.GetMetadata()), HistoryLimit: after.GetHistoryLimit(), Principal: principal,
		Expression: after.GetExpression(), ExpressionGiven: req.Expression != nil, Strict: after.GetStrict(),
		AccessMode: accessModeName(after.GetAccessMode()), LeaseID: req.GetLease().GetOptimizationId(), Reason: req.GetReason(), DefinitionChanged: !proto.Equal(before.GetConstraints(), after.GetConstraints()),
	})
	if err != nil {
		return err
	}
	after.Revision, after.UpdatedAt, after.UpdatedBy = row.Revision, timestamp(row.ChangedAt), principal
	return nil
}
