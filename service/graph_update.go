package service

import (
	"context"
	"slices"
	"strings"

	"github.com/setpointdb/setpoint/db/dbgen"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/identity"
	"github.com/setpointdb/setpoint/internal/value"
)

// changesGraph tells whether an update is about dependencies or an expression.
func changesGraph(req *setpointv1.UpdateVariableRequest) bool {
	return req.Expression != nil || len(req.GetDependsOn()) > 0 || req.GetClearDependsOn()
}

// mayCompute tells whether an update of a derived variable that could not be computed gives it other constraints.
func mayCompute(req *setpointv1.UpdateVariableRequest, row variableRow) bool {
	return req.Constraints != nil && row.Expression != "" && row.StaleRevision > 0
}

// graphUpdate is an update of what a variable depends on and is computed by, after the update of its row.
type graphUpdate struct {
	s             *Service
	q             *dbgen.Queries
	events        *afterCommit
	req           *setpointv1.UpdateVariableRequest
	row           variableRow
	before, after *setpointv1.Variable
	principal     string
	// needs are the dependencies of before; wanted those of after, by name.
	needs  []dbgen.DependencyOfRow
	wanted map[string]dbgen.VariableGetManyRow
	// refused are those that the request names and the caller may not read, or that there are not.
	refused map[string]dbgen.VariableGetManyRow
}

// run changes the edges, computes a new expression and has dependents follow. It returns the variable as it then is.
func (u *graphUpdate) run(ctx context.Context) (*setpointv1.Variable, error) {
	var err error
	u.needs, err = u.q.DependencyOf(ctx, dbgen.DependencyOfParams{
		SessionID: u.req.GetSessionId(), DependentID: u.row.VariableID,
	})
	if err != nil {
		return nil, err
	}
	p := propagation{sessionID: u.req.GetSessionId(), principal: u.principal, first: u.after.GetRevision(), after: u.events}
	if changesGraph(u.req) {
		err = u.change(ctx, &p)
	} else {
		err = u.tryAgain(&p)
	}
	if err != nil {
		return nil, err
	}
	if _, refused, err := u.s.follow(ctx, u.q, p); err != nil || refused != nil {
		return nil, refusedOr(refused, err)
	}
	row, err := getVariable(ctx, u.q, u.req.GetSessionId(), u.row.VariableID, identity.Write)
	if err != nil {
		return nil, err
	}
	return row.proto(u.req.GetSessionId())
}

// change gives the variable other edges, or another expression.
func (u *graphUpdate) change(ctx context.Context, p *propagation) error {
	if err := u.want(ctx); err != nil {
		return err
	}
	if err := u.relink(ctx, p); err != nil {
		return err
	}
	return u.compute(ctx, p)
}

// tryAgain has the variable computed from what it depends on, if its expression still fits that.
func (u *graphUpdate) tryAgain(p *propagation) error {
	_, err := u.s.compile(derivationOf(u.row, u.needs))
	switch {
	case isRefusal(err):
		return nil
	case err == nil:
		p.changes = append(p.changes, change{variableID: u.row.VariableID, revision: u.after.GetRevision(), again: true})
	}
	return err
}

// want decides what the variable is to depend on: what the request names, else what it depended on apart from the old
// expression's needs; and what its expression uses.
func (u *graphUpdate) want(ctx context.Context) error {
	kept, err := u.kept()
	if err != nil {
		return err
	}
	named, _, err := uses(u.after.GetName(), u.after.GetExpression())
	if err != nil {
		return err
	}
	found, err := u.lookUp(ctx, named, kept)
	if err != nil {
		return err
	}
	u.wanted = make(map[string]dbgen.VariableGetManyRow, len(kept))
	for _, identifier := range kept {
		row, ok := found[identifier]
		if !ok {
			return u.notFound(identifier)
		}
		u.wanted[row.Name] = row
	}
	if u.after.GetExpression() != "" {
		if err := u.wantUsed(named, found); err != nil {
			return err
		}
	}
	if n := int64(len(u.wanted)); n > u.s.limits.Dependencies {
		return tooManyDependencies(u.after.GetName(), u.s.limits.Dependencies)
	}
	return nil
}

// kept are the identifiers of what the variable depends on whatever its expression uses.
func (u *graphUpdate) kept() ([]string, error) {
	if len(u.req.GetDependsOn()) > 0 || u.req.GetClearDependsOn() {
		return u.req.GetDependsOn(), nil
	}
	var used []string
	if u.after.GetExpression() != "" { // One that ends keeps its dependencies.
		var err error
		if used, _, err = uses(u.row.Name, u.row.Expression); err != nil {
			return nil, err
		}
	}
	var kept []string
	for _, need := range u.needs {
		if !slices.Contains(used, need.Name) {
			kept = append(kept, need.VariableID)
		}
	}
	return kept, nil
}

// lookUp reads what the new expression and the new dependencies name: what the caller may read, and what the variable depends on
// already and the request does not name, which is the variable's own affair unless the caller wants to compute from it.
func (u *graphUpdate) lookUp(ctx context.Context, named, kept []string) (map[string]dbgen.VariableGetManyRow, error) {
	identifiers := distinct(slices.Concat(named, kept))
	found := make(map[string]dbgen.VariableGetManyRow, len(identifiers))
	u.refused = make(map[string]dbgen.VariableGetManyRow)
	if len(identifiers) == 0 {
		return found, nil
	}
	rows, err := getVariables(ctx, u.q, callerIn(ctx, u.req.GetSessionId()), u.req.GetSessionId(), identifiers)
	if err != nil {
		return nil, err
	}
	var stays []string
	for _, row := range rows {
		switch {
		case row.Refused == "":
			found[row.Identifier] = row
		case u.req.GetExpression() != "" && len(u.req.GetDependsOn()) == 0 && slices.Contains(kept, row.Identifier):
			return nil, denied(identity.Read, hiddenName, "")
		case u.needed(row.VariableID) && !u.names(row.Identifier, named):
			stays = append(stays, row.Identifier)
		default:
			u.refused[row.Identifier] = row
		}
	}
	if len(stays) == 0 {
		return found, nil
	}
	rows, err = getVariables(ctx, u.q, everything, u.req.GetSessionId(), stays)
	for _, row := range rows {
		found[row.Identifier] = row
	}
	return found, err
}

// names tells whether the request names a variable. used is what the expression uses that the variable is to have.
func (u *graphUpdate) names(identifier string, used []string) bool {
	return slices.Contains(u.req.GetDependsOn(), identifier) || u.req.Expression != nil && slices.Contains(used, identifier)
}

// needed tells whether the variable depends on another one already.
func (u *graphUpdate) needed(variableID string) bool {
	return slices.ContainsFunc(u.needs, func(n dbgen.DependencyOfRow) bool { return n.VariableID == variableID })
}

// notFound refuses a variable that cannot be depended on, because there is none or the caller may not read it.
func (u *graphUpdate) notFound(identifier string) *Error {
	if row, ok := u.refused[identifier]; ok {
		if e := refusalOfRow(row, u.req.GetSessionId(), identifier, identity.Read); e != nil {
			return e
		}
	}
	return variableNotFound(u.req.GetSessionId(), identifier)
}

// wantUsed adds what the expression uses.
func (u *graphUpdate) wantUsed(named []string, found map[string]dbgen.VariableGetManyRow) error {
	possible := make(map[string]dbgen.VariableGetManyRow, len(found))
	for name, row := range u.wanted {
		possible[name] = row
	}
	for _, identifier := range named {
		if row, ok := found[identifier]; ok {
			possible[row.Name] = row
		}
	}
	program, err := u.s.compile(u.derivation(possible))
	if err != nil {
		return err
	}
	for _, name := range program.Uses() {
		u.wanted[name] = possible[name]
	}
	return nil
}

// derivation is how the variable is to be computed from others.
func (u *graphUpdate) derivation(from map[string]dbgen.VariableGetManyRow) derivation {
	d := derivation{text: u.after.GetExpression(), kind: u.after.GetType(), name: u.after.GetName()}
	for _, row := range from {
		d.inputs = append(d.inputs, storedInput(row.Name, row.Type, row.Value, row.Payload))
	}
	slices.SortFunc(d.inputs, func(a, b input) int { return strings.Compare(a.name, b.name) })
	return d
}

// relink changes the edges to what is wanted, and has history rows say so.
func (u *graphUpdate) relink(ctx context.Context, p *propagation) error {
	was := make(map[string]bool, len(u.needs))
	var added, removed []string
	for _, need := range u.needs {
		was[need.Name] = true
		if _, stays := u.wanted[need.Name]; !stays {
			removed = append(removed, need.VariableID)
			u.events.add(func(ctx context.Context) {
				u.s.events.DependencyRemoved(ctx, u.req.GetSessionId(), u.row.Name, need.Name, u.principal)
			})
			p.before = append(p.before, u.edge(setpointv1.HistoryChange_HISTORY_CHANGE_DEPENDENCY_REMOVED, need.VariableID, need.Name))
		}
	}
	for _, in := range u.derivation(u.wanted).inputs { // In the order of names.
		if !was[in.name] {
			id := u.wanted[in.name].VariableID
			added = append(added, id)
			u.events.add(func(ctx context.Context) {
				u.s.events.DependencyAdded(ctx, u.req.GetSessionId(), u.row.Name, in.name, u.principal)
			})
			p.before = append(p.before, u.edge(setpointv1.HistoryChange_HISTORY_CHANGE_DEPENDENCY_ADDED, id, in.name))
		}
	}
	if err := u.checkCycle(ctx, added); err != nil {
		return err
	}
	if len(removed) > 0 {
		err := u.q.DependencyUnlink(ctx, dbgen.DependencyUnlinkParams{
			SessionID: u.req.GetSessionId(), VariableID: u.row.VariableID, DependencyIds: removed,
		})
		if err != nil {
			return err
		}
	}
	if len(added) == 0 {
		return nil
	}
	return u.q.DependencyLink(ctx, dbgen.DependencyLinkParams{
		SessionID: u.req.GetSessionId(), Principal: u.principal, DependencyIds: added,
		DependentIds: slices.Repeat([]string{u.row.VariableID}, len(added)),
	})
}

func (u *graphUpdate) edge(change setpointv1.HistoryChange, id, name string) follower {
	return follower{
		variableID: u.row.VariableID, name: u.row.Name, change: change, cause: u.cause(), dependencyID: id, dependency: name,
	}
}

// cause is the update itself.
func (u *graphUpdate) cause() cause {
	return cause{revision: u.after.GetRevision(), id: u.row.VariableID, name: u.row.Name}
}

// checkCycle refuses new dependencies that depend on the variable.
func (u *graphUpdate) checkCycle(ctx context.Context, added []string) error {
	if len(added) == 0 || !u.row.HasDependents && !slices.Contains(added, u.row.VariableID) {
		return nil
	}
	path, err := cyclePath(ctx, u.q, u.req.GetSessionId(), u.row.VariableID, u.row.Name, added)
	if err != nil {
		return err
	}
	if path != nil {
		return wouldCreateCycle(path)
	}
	return nil
}

// computeAgain is for an expression that is as it was, but looks at whatever the variable depends on, or lacked something.
func (u *graphUpdate) computeAgain(p *propagation) error {
	if u.after.GetExpression() == "" {
		return nil
	}
	program, err := u.s.compile(u.derivation(u.wanted))
	if err == nil && (program.UsesAny() || u.row.StaleRevision > 0) {
		p.changes = append(p.changes, change{variableID: u.row.VariableID, revision: u.after.GetRevision(), again: true})
	}
	return err
}

// compute gives the variable the value of a new expression, as a new version; where there is none it becomes stale.
func (u *graphUpdate) compute(ctx context.Context, p *propagation) error {
	if u.req.GetExpression() == "" {
		return u.computeAgain(p)
	}
	definition, err := value.NewDefinition(u.after.GetType(), u.after.GetConstraints())
	if err != nil {
		return err
	}
	budget := u.s.limits.DerivationCost
	stored, fresh, problem, err := u.s.derive(ctx, u.derivation(u.wanted), definition, &budget)
	switch {
	case err != nil:
		return err
	case problem != "" && u.after.GetStrict():
		return derivationFailed(u.row.Name, problem)
	case problem != "":
		if u.req.Constraints != nil { // The value that it keeps has to satisfy them after all.
			if _, err := definition.Accept(u.row.Name, u.before.GetValue(), u.s.limits.ValueBytes); err != nil {
				return err
			}
		}
		p.changes = append(p.changes, change{variableID: u.row.VariableID, lost: u.cause(), error: problem, fresh: true})
		return nil
	}
	p.before = append(p.before, follower{
		variableID: u.row.VariableID, name: u.row.Name, change: setpointv1.HistoryChange_HISTORY_CHANGE_RECOMPUTED,
		stored: stored, value: fresh, version: u.row.Version + 1, cause: u.cause(),
	})
	p.changes = append(p.changes, change{
		variableID: u.row.VariableID, revision: u.after.GetRevision(), value: fresh,
		disturbs: !sameValue(u.before.GetValue(), fresh),
	})
	return nil
}
