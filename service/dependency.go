package service

import (
	"context"
	"slices"

	"github.com/setpointdb/setpoint/db/dbgen"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/identity"
	"github.com/setpointdb/setpoint/internal/value"
)

// AddDependency makes a variable depend on another one: one statement under the session's lock, which looks for a cycle and
// adds the edge, so that no two callers can close one together.
func (s *Service) AddDependency(ctx context.Context, req *setpointv1.AddDependencyRequest) (
	*setpointv1.Dependency, error,
) {
	principal := identity.FromContext(ctx).Name
	added := false
	edge, replayed, err := write(ctx, s, req, &setpointv1.Dependency{},
		func(ctx context.Context, q transaction, _ dbgen.SessionStateRow) (*setpointv1.Dependency, error) {
			if err := mayAll(ctx, q.Queries, req.GetSessionId(),
				wanted{req.GetDependent(), identity.Write}, wanted{req.GetDependency(), identity.Read},
			); err != nil {
				return nil, err
			}
			row, err := q.DependencyAdd(ctx, dbgen.DependencyAddParams{
				SessionID: req.GetSessionId(), Dependent: req.GetDependent(), Dependency: req.GetDependency(),
				Principal: principal, Reason: req.GetReason(), MaxDependencies: s.limits.Dependencies,
			})
			if err != nil {
				return nil, err
			}
			edge, err := edgeOf(ctx, q.Queries, req, row, s.limits.Dependencies)
			if added = row.Refused == ""; !added || !row.Derived || err != nil {
				return edge, err
			}
			return edge, s.followEdge(ctx, q, edge, principal)
		})
	switch {
	case replayed:
		s.events.RequestReplayed(ctx, req.GetSessionId(), principal)
	case err != nil:
		s.recordRefusals(ctx, asked{sessionID: req.GetSessionId(), variable: req.GetDependent()}, principal, asRefusal(err))
	case !added:
		s.signOfLife(ctx, req.GetSessionId())
	default:
		s.events.DependencyAdded(ctx, req.GetSessionId(), edge.GetDependent(), edge.GetDependency(), principal)
	}
	return edge, err
}

// followEdge computes the dependent again if its expression looks at whatever it depends on, or lacked the new edge.
func (s *Service) followEdge(ctx context.Context, q transaction, edge *setpointv1.Dependency, principal string) error {
	row, err := getVariable(ctx, q.Queries, edge.GetSessionId(), edge.GetDependentId(), identity.Write)
	if err != nil {
		return err
	}
	needs, err := q.DependencyOf(ctx, dbgen.DependencyOfParams{
		SessionID: edge.GetSessionId(), DependentID: row.VariableID,
	})
	if err != nil {
		return err
	}
	program, err := s.compile(derivationOf(row, needs))
	switch {
	case isRefusal(err) && row.StaleRevision > 0: // It did not compile before, and is stale for that.
		return nil
	case err != nil: // It did before: the edge is what it cannot have.
		return err
	case !program.UsesAny() && row.StaleRevision == 0:
		return nil
	}
	_, refused, err := s.follow(ctx, q.Queries, propagation{
		sessionID: edge.GetSessionId(), principal: principal, first: edge.GetRevision(), after: q.after,
		changes: []change{{variableID: row.VariableID, revision: edge.GetRevision(), again: true}},
	})
	return refusedOr(refused, err)
}

// edgeOf is the edge that was added or was there, or why there is none.
func edgeOf(
	ctx context.Context, q *dbgen.Queries, req *setpointv1.AddDependencyRequest, row dbgen.DependencyAddRow, most int64,
) (*setpointv1.Dependency, error) {
	switch row.Refused {
	case "SESSION_NOT_FOUND":
		return nil, sessionNotFound(req.GetSessionId())
	case "DEPENDENT_NOT_FOUND":
		return nil, variableNotFound(req.GetSessionId(), req.GetDependent())
	case "DEPENDENCY_NOT_FOUND":
		return nil, variableNotFound(req.GetSessionId(), req.GetDependency())
	case "LIMIT_EXCEEDED":
		return nil, tooManyDependencies(row.Dependent, most)
	case "CYCLE":
		path, err := cyclePath(ctx, q, req.GetSessionId(), row.DependentID, row.Dependent, []string{row.DependencyID})
		if err != nil {
			return nil, err
		}
		return nil, wouldCreateCycle(path)
	}
	return &setpointv1.Dependency{
		SessionId: req.GetSessionId(), Dependent: row.Dependent, Dependency: row.Dependency, DependentId: row.DependentID,
		DependencyId: row.DependencyID, Revision: row.Revision, CreatedAt: timestamp(row.CreatedAt), CreatedBy: row.CreatedBy,
	}, nil
}

// cyclePath is the shortest way from a variable along one of the new dependencies back to itself, by names; nil if there is
// none.
func cyclePath(
	ctx context.Context, q *dbgen.Queries, sessionID, dependentID, dependent string, dependencyIDs []string,
) ([]string, error) {
	if slices.Contains(dependencyIDs, dependentID) {
		return []string{dependent, dependent}, nil
	}
	rows, err := q.DependencyPathEdges(ctx, dbgen.DependencyPathEdgesParams{
		SessionID: sessionID, DependencyIds: dependencyIDs,
	})
	if err != nil {
		return nil, err
	}
	nodes := make(map[string]dbgen.DependencyPathEdgesRow, len(rows))
	for _, row := range rows {
		nodes[row.VariableID] = row
	}
	from := make(map[string]string, len(rows)) // The variable before on the way.
	next := dependencyIDs
	for _, id := range next {
		from[id] = dependentID
	}
	for len(next) > 0 {
		id := next[0]
		next = next[1:]
		if id == dependentID {
			break
		}
		for _, need := range nodes[id].DependencyIds {
			if _, seen := from[need]; !seen {
				from[need] = id
				next = append(next, need)
			}
		}
	}
	if from[dependentID] == "" {
		return nil, nil
	}
	path := []string{dependent}
	for id := from[dependentID]; id != dependentID; id = from[id] {
		path = append(path, nodes[id].Name)
	}
	path = append(path, dependent)
	slices.Reverse(path)
	return path, nil
}

// RemoveDependency ends a dependency that the dependent's expression does not use.
func (s *Service) RemoveDependency(ctx context.Context, req *setpointv1.RemoveDependencyRequest) (
	*setpointv1.RemoveDependencyResponse, error,
) {
	principal := identity.FromContext(ctx).Name
	response, replayed, err := write(ctx, s, req, &setpointv1.RemoveDependencyResponse{},
		func(ctx context.Context, q transaction, _ dbgen.SessionStateRow) (*setpointv1.RemoveDependencyResponse, error) {
			dependent, err := getVariable(ctx, q.Queries, req.GetSessionId(), req.GetDependent(), identity.Write)
			if err != nil {
				return nil, err
			}
			dependency, err := getVariable(ctx, q.Queries, req.GetSessionId(), req.GetDependency(), identity.Read)
			if err != nil {
				return nil, err
			}
			if err := mayEnd(dependent, dependency); err != nil {
				return nil, err
			}
			revision, err := q.DependencyRemove(ctx, dbgen.DependencyRemoveParams{
				SessionID: req.GetSessionId(), DependentID: dependent.VariableID, DependencyID: dependency.VariableID,
				Principal: principal, Reason: req.GetReason(),
			})
			return &setpointv1.RemoveDependencyResponse{Revision: revision}, err
		})
	switch {
	case replayed:
		s.events.RequestReplayed(ctx, req.GetSessionId(), principal)
	case err == nil:
		s.events.DependencyRemoved(ctx, req.GetSessionId(), req.GetDependent(), req.GetDependency(), principal)
	}
	return response, err
}

// mayEnd refuses to end a dependency that there is not, or that the dependent is computed from.
func mayEnd(dependent, dependency variableRow) error {
	if !slices.Contains(dependent.DependsOn, dependency.Name) {
		return dependencyNotFound(dependent.Name, dependency.Name)
	}
	used, whole, err := uses(dependent.Name, dependent.Expression)
	if err != nil {
		return err
	}
	if whole || slices.Contains(used, dependency.Name) {
		return usedByExpression(dependent.Name, dependency.Name)
	}
	return nil
}

// derivationOf is how a derived variable is computed, as far as its text and types go.
func derivationOf(row variableRow, needs []dbgen.DependencyOfRow) derivation {
	kind, _ := value.ParseType(row.Type) // An unknown one fits no expression.
	d := derivation{text: row.Expression, kind: kind, name: row.Name}
	for _, need := range needs {
		needKind, _ := value.ParseType(need.Type)
		d.inputs = append(d.inputs, input{name: need.Name, kind: needKind})
	}
	return d
}
