package service

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/setpointdb/setpoint/db"
	"github.com/setpointdb/setpoint/db/dbgen"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/value"
)

// Propagation: what follows from a change of values, in the transaction that makes it. All that the change may reach is
// read in one statement, computed here in the order of an update, and written in one statement.

// cause is the change that others follow from.
type cause struct {
	revision int64
	id, name string
}

// change is what a transaction has done to a variable itself, before others follow. Such a variable is not stale after.
type change struct {
	variableID string
	revision   int64
	// disturbs: the variable has another value than before.
	disturbs bool
	// value is the variable's value where the database does not have it yet: the followers' statement will write it.
	value *setpointv1.Value
	// again: the variable is derived, and is to be computed again although what it depends on has its values of before.
	again bool
	// lost: of a derived variable that no longer has what it is computed from. It is stale, by this cause and with this error.
	lost  cause
	error string
	// fresh: the error is of something new, and takes the place of an older one.
	fresh bool
}

// follower is one row of what follows: a new version, a stale mark or its end, or an edge that came or went.
type follower struct {
	variableID, name string
	change           setpointv1.HistoryChange
	stored           value.Stored
	value            *setpointv1.Value
	version          int64
	error            string
	cause            cause
	// The other end of an edge.
	dependencyID, dependency string
}

// propagation is a transaction's change of a session's values, and those who follow it.
type propagation struct {
	sessionID, principal string
	changes              []change
	// before are rows that come before those of the followers.
	before []follower
	// first is the revision of the transaction's first history row.
	first int64
	// whole: as many may follow as there are.
	whole bool
	// all: a strict variable that cannot be computed is blamed on all changes that reach any strict variable.
	all bool
	// after is told what to record when the transaction is committed.
	after *afterCommit
}

// afterCommit is what is recorded of a transaction once it is committed.
type afterCommit []func(context.Context)

func (a afterCommit) run(ctx context.Context) {
	for _, event := range a {
		event(ctx)
	}
}

func (a *afterCommit) add(event func(context.Context)) {
	if a != nil {
		*a = append(*a, event)
	}
}

// follow has all that depends on the changes follow them. The third result is a refusal of the changes by a strict
// variable: the caller has to undo them.
func (s *Service) follow(ctx context.Context, q *dbgen.Queries, p propagation) ([]follower, *strictFailure, error) {
	began := time.Now()
	var roots []string
	for _, c := range p.changes {
		if c.disturbs || c.again || c.error != "" {
			roots = append(roots, c.variableID)
		}
	}
	followers := p.before
	if len(roots) > 0 {
		rows, err := s.affectedBy(ctx, q, p, roots)
		if err != nil {
			return nil, nil, err
		}
		g, err := newAffected(s, p, rows)
		if err != nil {
			return nil, nil, err
		}
		if err := g.update(ctx); err != nil {
			return nil, nil, err
		}
		if len(g.failed) > 0 {
			return nil, g.strictFailure(p.all), nil
		}
		followers = append(followers, g.followers...)
	}
	if len(followers) == 0 {
		return nil, nil, nil
	}
	_, err := q.DependencyFollow(ctx, followParams(p, followers))
	took, affected := time.Since(began), len(followers)-len(p.before)
	p.after.add(func(ctx context.Context) { s.events.Propagated(ctx, p.sessionID, took, affected) })
	return followers, nil, err
}

// affectedBy reads what the roots may reach. More than the session's lock can be held for is refused, before anything is
// computed.
func (s *Service) affectedBy(ctx context.Context, q *dbgen.Queries, p propagation, roots []string) (
	[]dbgen.DependencyAffectedRow, error,
) {
	most := s.limits.Affected
	if p.whole {
		most = s.limits.Variables
	}
	rows, err := q.DependencyAffected(ctx, dbgen.DependencyAffectedParams{
		SessionID: p.sessionID, RootIds: roots, RowLimit: int32(most) + 1, MaxBytes: affectedBytes,
	})
	if err != nil {
		return nil, err
	}
	switch {
	case int64(len(rows)) > most:
		return nil, limitExceeded("affected", most, fmt.Sprintf("a change affects at most %d variables", most))
	case len(rows) > 0 && rows[0].TotalBytes > affectedBytes:
		return nil, tooManyBytes()
	}
	return rows, nil
}

func followParams(p propagation, followers []follower) dbgen.DependencyFollowParams {
	params := dbgen.DependencyFollowParams{
		SessionID: p.sessionID, Principal: p.principal, TransactionFirst: p.first,
	}
	for _, f := range followers {
		data := f.stored.JSON
		if data == nil {
			data = []byte("null")
		}
		params.VariableIds = append(params.VariableIds, f.variableID)
		params.Changes = append(params.Changes, changeNames[f.change])
		params.Vals = append(params.Vals, data)
		params.PayloadHashes = append(params.PayloadHashes, orEmpty(f.stored.SHA256))
		params.Payloads = append(params.Payloads, orEmpty(f.stored.Payload))
		params.ValueBytes = append(params.ValueBytes, int64(f.stored.Bytes))
		params.Errors = append(params.Errors, f.error)
		params.CauseRevisions = append(params.CauseRevisions, f.cause.revision)
		params.CauseIds = append(params.CauseIds, f.cause.id)
		params.Causes = append(params.Causes, f.cause.name)
		params.DependencyIds = append(params.DependencyIds, f.dependencyID)
		params.Dependencies = append(params.Dependencies, f.dependency)
	}
	return params
}

// affected is the part of a session's graph that a change may reach.
type affected struct {
	s         *Service
	sessionID string
	// first is the revision of the transaction's first history row.
	first int64
	nodes map[string]*affectedNode
	// reached are the nodes that may have to follow, and the changed ones, in the order of an update.
	reached   []*affectedNode
	followers []follower
	failed    []*affectedNode
	// budget is what computing may still cost, and until is when it has to be done: the database ends a transaction that
	// sends nothing for longer.
	budget uint64
	until  time.Time
}

// computing is how long what follows a change is computed, and computingWhole where the change is of the whole session.
// Costs bound it to less, but on a machine that is too busy.
const (
	computing      = 4 * time.Second
	computingWhole = 50 * time.Second
)

// affectedNode is a variable that a change may reach, or that one of these is computed from.
type affectedNode struct {
	row     dbgen.DependencyAffectedRow
	kind    setpointv1.VariableType
	place   int // Among what is reached.
	needs   []*affectedNode
	written *change
	// value is decoded on demand, and the new one once there is one.
	value *setpointv1.Value
	// changed: it has another value than before the transaction. disturbed: it is or was already stale for the change, and
	// so is what depends on it and is not derived. cause is set with either.
	changed, disturbed bool
	cause              cause
	// problem is why a derived variable has no value.
	problem string
}

func newAffected(s *Service, p propagation, rows []dbgen.DependencyAffectedRow) (*affected, error) {
	g := &affected{
		s: s, sessionID: p.sessionID, first: p.first, nodes: make(map[string]*affectedNode, len(rows)),
		budget: s.limits.DerivationCost, until: time.Now().Add(computing),
	}
	if p.whole {
		g.until = time.Now().Add(computingWhole)
	}
	var reached []*affectedNode
	for _, row := range rows {
		kind, ok := value.ParseType(row.Type)
		if !ok {
			return nil, fmt.Errorf("variable %s: unknown type %q", row.VariableID, row.Type)
		}
		n := &affectedNode{row: row, kind: kind}
		g.nodes[row.VariableID] = n
		if row.Reached {
			reached = append(reached, n)
		}
	}
	for i := range p.changes {
		if n := g.nodes[p.changes[i].variableID]; n != nil {
			n.written, n.value = &p.changes[i], p.changes[i].value
		}
	}
	for _, n := range reached {
		for _, id := range n.row.DependencyIds {
			if need := g.nodes[id]; need != nil {
				n.needs = append(n.needs, need)
			}
		}
	}
	for i, n := range reached {
		n.place = i
	}
	for _, i := range inUpdateOrder(len(reached), func(i int) string { return reached[i].row.Name }, func(i int) []int {
		var needs []int
		for _, need := range reached[i].needs {
			if need.row.Reached {
				needs = append(needs, need.place)
			}
		}
		return needs
	}) {
		g.reached = append(g.reached, reached[i])
	}
	return g, nil
}

// update goes over what is reached in the order of an update, each variable once.
func (g *affected) update(ctx context.Context) error {
	for _, n := range g.reached {
		if time.Now().After(g.until) {
			return fmt.Errorf("compute what follows: %w", db.ErrOverloaded)
		}
		n.inherit()
		switch {
		case n.written != nil && n.written.error != "":
			g.fail(n, n.written.lost, n.written.error)
		case n.written != nil && !n.written.again:
			if n.written.disturbs {
				n.changed, n.cause = true, cause{n.written.revision, n.row.VariableID, n.row.Name}
			}
		case n.row.Expression != "":
			if err := g.recompute(ctx, n); err != nil {
				return err
			}
		case n.disturbed:
			g.mark(n, n.cause, "")
		}
	}
	return nil
}

// inherit learns whether something that the variable depends on has changed, or is stale for a change, and which change
// came first.
func (n *affectedNode) inherit() {
	for _, need := range n.needs {
		if !need.changed && !need.disturbed {
			continue
		}
		if !n.disturbed || need.cause.revision < n.cause.revision {
			n.cause = need.cause
		}
		n.disturbed = true
	}
}

// recompute has a derived variable follow. It is out of the way of what does not change its value.
func (g *affected) recompute(ctx context.Context, n *affectedNode) error {
	n.disturbed = false
	var because *cause
	if n.written != nil {
		because = &cause{n.written.revision, n.row.VariableID, n.row.Name}
	}
	changed := false
	for _, need := range n.needs {
		if need.changed && (because == nil || need.cause.revision < because.revision) {
			because = &need.cause
		}
		changed = changed || need.changed
	}
	if because == nil {
		return nil // What it is computed from is as it was.
	}
	old, err := g.current(n)
	if err != nil {
		return err
	}
	stored, fresh, problem, err := g.compute(ctx, n)
	switch {
	case err != nil:
		return err
	case problem != "" && !changed && n.row.StaleRevision > 0:
		// It was to be computed again, cannot be as before, and is told so already.
	case problem != "":
		g.fail(n, *because, problem)
	case !sameValue(old, fresh):
		n.changed, n.cause, n.value = true, *because, fresh
		g.followers = append(g.followers, follower{
			variableID: n.row.VariableID, name: n.row.Name, change: setpointv1.HistoryChange_HISTORY_CHANGE_RECOMPUTED,
			stored: stored, value: fresh, version: n.row.Version + 1, cause: *because,
		})
	case n.row.StaleRevision > 0:
		g.followers = append(g.followers, follower{
			variableID: n.row.VariableID, name: n.row.Name, change: setpointv1.HistoryChange_HISTORY_CHANGE_STALE_CLEARED,
			cause: *because,
		})
	}
	return nil
}

// sameValue tells whether two values are stored alike: NaN is NaN, and -0 is not 0.
func sameValue(a, b *setpointv1.Value) bool {
	deterministic := proto.MarshalOptions{Deterministic: true}
	x, errX := deterministic.Marshal(a)
	y, errY := deterministic.Marshal(b)
	return errX == nil && errY == nil && bytes.Equal(x, y)
}

// fail leaves a derived variable stale, or, if it is strict, refuses the change.
func (g *affected) fail(n *affectedNode, because cause, problem string) {
	n.disturbed, n.cause, n.problem = true, because, problem
	if n.row.Strict {
		g.failed = append(g.failed, n)
	}
	g.mark(n, because, problem)
}

// mark makes a variable stale that is not already, or not for this.
func (g *affected) mark(n *affectedNode, because cause, problem string) {
	if n.row.StaleRevision > 0 && (n.written == nil || !n.written.fresh) {
		return
	}
	g.followers = append(g.followers, follower{
		variableID: n.row.VariableID, name: n.row.Name, change: setpointv1.HistoryChange_HISTORY_CHANGE_STALE,
		error: problem, cause: because,
	})
}

// current is a variable's value as far as the update has come.
func (g *affected) current(n *affectedNode) (*setpointv1.Value, error) {
	if n.value == nil {
		v, err := value.Decode(n.kind, n.row.Value, n.row.Payload)
		if err != nil {
			return nil, fmt.Errorf("variable %s: %w", n.row.VariableID, err)
		}
		n.value = v
	}
	return n.value, nil
}

// compute evaluates a variable's expression. The third result is why it has no value.
func (g *affected) compute(ctx context.Context, n *affectedNode) (value.Stored, *setpointv1.Value, string, error) {
	d := derivation{text: n.row.Expression, kind: n.kind, name: n.row.Name}
	for _, need := range n.needs {
		d.inputs = append(d.inputs, input{name: need.row.Name, kind: need.kind, read: func() (*setpointv1.Value, error) {
			return g.current(need)
		}})
	}
	check, err := g.definition(n.row)
	if err != nil {
		return value.Stored{}, nil, "", err
	}
	return g.s.derive(ctx, d, check, &g.budget)
}

func (g *affected) definition(row dbgen.DependencyAffectedRow) (*value.Definition, error) {
	if row.DefinitionRevision >= g.first { // Of this transaction, which may yet be undone.
		return compile(row.Type, row.Constraints)
	}
	def, ok := g.s.definitions.get(g.sessionID, row.VariableID)
	if ok && def.revision == row.DefinitionRevision {
		return def.check, nil
	}
	def, err := g.s.definitions.learn(g.sessionID, row.VariableID, row.Type, row.Constraints, row.DefinitionRevision)
	return def.check, err
}

// strictFailure is why strict variables refuse a change.
type strictFailure struct {
	*Error
	// roots are the variables with another value than before that they depend on.
	roots map[string]bool
}

// refusedOr is the refusal, if there is one, else the error.
func refusedOr(refused *strictFailure, err error) error {
	if refused != nil {
		return refused.Error
	}
	return err
}

func (g *affected) strictFailure(all bool) *strictFailure {
	first := g.failed[0]
	blamed := slices.Clone(g.failed)
	for _, n := range g.reached {
		if all && n.row.Strict {
			blamed = append(blamed, n)
		}
	}
	failure := &strictFailure{Error: derivationFailed(first.row.Name, first.problem), roots: map[string]bool{}}
	seen := map[*affectedNode]bool{}
	for next := blamed; len(next) > 0; {
		n := next[len(next)-1]
		next = next[:len(next)-1]
		if seen[n] {
			continue
		}
		seen[n] = true
		if n.written != nil && n.written.disturbs {
			failure.roots[n.row.VariableID] = true
		}
		next = append(next, n.needs...)
	}
	return failure
}

func derivationFailed(name, problem string) *Error {
	return refuse(setpointv1.ErrorReason_DERIVATION_FAILED,
		fmt.Sprintf("%s cannot be computed: %s", name, problem), "variable", name)
}

// tell puts what followed into an answer. Values are left out from the one on with which they would be more than maxBytes
// together; the third result tells if there are such.
func tell(followers []follower, maxBytes int64) ([]*setpointv1.RecomputedVariable, []*setpointv1.StaleVariable, bool) {
	var recomputed []*setpointv1.RecomputedVariable
	var stale []*setpointv1.StaleVariable
	total := int64(0)
	for _, f := range followers {
		switch f.change {
		case setpointv1.HistoryChange_HISTORY_CHANGE_RECOMPUTED:
			r := &setpointv1.RecomputedVariable{VariableId: f.variableID, Variable: f.name, Version: f.version}
			if total += int64(f.stored.Bytes); total <= maxBytes {
				r.Value = f.value
			}
			recomputed = append(recomputed, r)
		case setpointv1.HistoryChange_HISTORY_CHANGE_STALE:
			stale = append(stale, &setpointv1.StaleVariable{VariableId: f.variableID, Variable: f.name, Error: f.error})
		}
	}
	return recomputed, stale, total > maxBytes
}

// followed reads from history what followed the change at a revision: the same as it was told at first.
func followed(ctx context.Context, q *dbgen.Queries, sessionID string, revision int64) ([]follower, error) {
	rows, err := q.HistoryFollowing(ctx, dbgen.HistoryFollowingParams{SessionID: sessionID, Revision: revision})
	if err != nil {
		return nil, err
	}
	followers := make([]follower, 0, len(rows))
	for _, row := range rows {
		v, err := storedValue(row.Type, row.Value, row.Payload)
		if err != nil {
			return nil, fmt.Errorf("revision %d: %w", row.Revision, err)
		}
		followers = append(followers, follower{
			variableID: row.VariableID, name: row.Name, change: changesByName[row.Change], value: v, version: row.Version,
			stored: value.Stored{Bytes: int(row.ValueBytes)}, error: row.Error,
		})
	}
	return followers, nil
}
