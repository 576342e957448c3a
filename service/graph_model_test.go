package service_test

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	"github.com/setpointdb/setpoint/client"
	"github.com/setpointdb/setpoint/db"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/server"
	"github.com/setpointdb/setpoint/service"
)

// The model of a session whose variables depend on each other. It is written as the rules read, for one variable at a time
// and without a thought of cost: what becomes of a variable is asked of those that it depends on, again and again.

// graphForm is a form of expression.
type graphForm struct {
	text     string
	operands int
	value    func(v []int64) (int64, string)
}

// What the errors of derived variables are about.
const (
	zeroProblem    = "division by zero"
	maxProblem     = "above the maximum"
	missingProblem = "undeclared reference"
	deletedProblem = "was deleted"
)

var graphForms = []graphForm{
	{"%s + %s", 2, func(v []int64) (int64, string) { return v[0] + v[1], "" }},
	{"%s * 2", 1, func(v []int64) (int64, string) { return v[0] * 2, "" }},
	{"%s > 3 ? %s : %s", 3, func(v []int64) (int64, string) {
		if v[0] > 3 {
			return v[1], ""
		}
		return v[2], ""
	}},
	{"%s / %s", 2, func(v []int64) (int64, string) {
		if v[1] == 0 {
			return 0, zeroProblem
		}
		return v[0] / v[1], ""
	}},
	{"size(deps)", 0, nil}, // Looks at whatever there is.
}

// graphExpression is a form with operands. The zero expression has no text, and is none.
type graphExpression struct {
	Form     int
	Operands []string
}

func (e *graphExpression) String() string {
	if e == nil {
		return ""
	}
	operands := make([]any, len(e.Operands))
	for i, name := range e.Operands {
		operands[i] = name
		if i%2 == 1 || strings.Contains(name, " ") {
			operands[i] = fmt.Sprintf("deps[%q]", name)
		}
	}
	return fmt.Sprintf(graphForms[e.Form].text, operands...)
}

func (e *graphExpression) usesAny() bool { return e != nil && graphForms[e.Form].operands == 0 }

// uses tells whether a dependency may not be removed for the expression's sake.
func (e *graphExpression) uses(name string) bool {
	return e != nil && (e.usesAny() || slices.Contains(e.Operands, name))
}

// compute is the expression's value over dependencies, or why there is none.
func (e *graphExpression) compute(values map[string]int64) (int64, string) {
	if e.usesAny() {
		return int64(len(values)), ""
	}
	var operands []int64
	for _, name := range e.Operands {
		v, ok := values[name]
		if !ok {
			return 0, missingProblem
		}
		operands = append(operands, v)
	}
	return graphForms[e.Form].value(operands)
}

// graphCause is the change that others follow from.
type graphCause struct {
	revision int64
	name     string
}

func (c graphCause) String() string { return fmt.Sprintf("%s@%d", c.name, c.revision) }

// graphVariable is a variable of the model. What it needs is by name, with the revision at which the edge came.
type graphVariable struct {
	id, metadata   string
	version, value int64
	revision       int64
	expression     *graphExpression
	strict         bool
	max            int64 // 0 is none.
	needs          map[string]int64
	stale          graphCause // The zero cause: it is not.
	problem        string
}

// accepts is why a constraint refuses a value; empty if it does not.
func (v graphVariable) accepts(value int64) string {
	if v.max > 0 && value > v.max {
		return maxProblem
	}
	return ""
}

// whole tells whether a variable is derived, and has all that its expression names.
func (v graphVariable) whole() bool {
	return v.expression != nil && !slices.ContainsFunc(v.expression.Operands, func(name string) bool {
		_, ok := v.needs[name]
		return !ok
	})
}

func (v graphVariable) text(name string) string {
	text := fmt.Sprintf("%s %s v%d=%d @%d m=%s needs %q", name, v.id, v.version, v.value, v.revision, v.metadata,
		slices.Sorted(maps.Keys(v.needs)))
	if v.expression != nil {
		text += fmt.Sprintf(" := %s strict=%t", v.expression, v.strict)
	}
	if v.stale != (graphCause{}) {
		text += fmt.Sprintf(" stale by %s %s", v.stale, v.problem)
	}
	return text
}

// graphState is the variables by name. States are not changed once they are made.
type graphState map[string]graphVariable

// with is the state with another form of one variable.
func (s graphState) with(name string, change func(*graphVariable)) graphState {
	next := maps.Clone(s)
	v := next[name]
	v.needs = maps.Clone(v.needs)
	if v.needs == nil {
		v.needs = map[string]int64{}
	}
	change(&v)
	next[name] = v
	return next
}

// dependents are those that depend directly on a variable, by name.
func (s graphState) dependents(name string) []string {
	var out []string
	for _, other := range slices.Sorted(maps.Keys(s)) {
		if _, ok := s[other].needs[name]; ok {
			out = append(out, other)
		}
	}
	return out
}

// reach is what can be reached from some variables along next, without them unless they are reached again.
func reach(from []string, next func(string) []string) map[string]bool {
	seen := map[string]bool{}
	for todo := slices.Clone(from); len(todo) > 0; todo = todo[1:] {
		for _, name := range next(todo[0]) {
			if !seen[name] {
				seen[name] = true
				todo = append(todo, name)
			}
		}
	}
	return seen
}

func (s graphState) needsOf(name string) []string { return slices.Sorted(maps.Keys(s[name].needs)) }

// order sorts variables: each after what it needs among them, and of those that could come next the first by name.
func (s graphState) order(among map[string]bool) []string {
	left := maps.Clone(among)
	var out []string
	for len(left) > 0 {
		for _, name := range slices.Sorted(maps.Keys(left)) {
			if !slices.ContainsFunc(s.needsOf(name), func(need string) bool { return left[need] }) {
				out = append(out, name)
				delete(left, name)
				break
			}
		}
	}
	return out
}

// cycle tells whether a path is a way from a variable along one of its new dependencies back to itself, and none is shorter.
func (s graphState) cycle(path []string, dependent string, added []string) bool {
	if len(path) < 2 || path[0] != dependent || path[len(path)-1] != dependent || !slices.Contains(added, path[1]) {
		return false
	}
	for i := 1; i+1 < len(path); i++ {
		if _, ok := s[path[i]].needs[path[i+1]]; !ok {
			return false
		}
	}
	edges, at := 1, added
	for ; !slices.Contains(at, dependent); edges++ {
		var next []string
		for _, name := range at {
			next = append(next, s.needsOf(name)...)
		}
		at = distinctNames(next)
	}
	return edges == len(path)-1
}

// closes tells whether new dependencies of a variable would depend on it.
func (s graphState) closes(dependent string, added []string) bool {
	return slices.Contains(added, dependent) || reach(added, s.needsOf)[dependent]
}

func distinctNames(in []string) []string {
	out := slices.Sorted(slices.Values(in))
	return slices.Compact(out)
}

// graphRow is a row of the history, as a text but for what a snapshot needs of it.
type graphRow struct {
	name, text string
	after      graphVariable
	gone       bool
	follows    bool
}

// What stands for a version and an expression that a row does not have.
const (
	noVersion = -1
	notGiven  = "not given"
)

// rowText is what the history says of a change.
func rowText(
	change setpointv1.HistoryChange, name string, version, value int64, metadata, reason string, cause graphCause,
	problem, dependency, expression string,
) string {
	kind := strings.ToLower(strings.TrimPrefix(change.String(), "HISTORY_CHANGE_"))
	text := fmt.Sprintf("%s %s m=%s reason=%s", kind, name, metadata, reason)
	if version != noVersion {
		text += fmt.Sprintf(" v%d=%d", version, value)
	}
	if cause != (graphCause{}) {
		text += " caused by " + cause.String()
	}
	for _, part := range []string{problem, dependency, expression} {
		text += " [" + part + "]"
	}
	return text
}

// graphRoot is what a transaction does to a variable itself.
type graphRoot struct {
	cause graphCause
	// changed: it has another value. again: it is to be computed again. problem: it cannot be computed any more, for a cause;
	// fresh: as of now, and not as it may have been before.
	changed, again, fresh bool
	problem               string
}

// graphWrite is a transaction of the model.
type graphWrite struct {
	now    graphState
	first  int64
	rows   []graphRow
	roots  map[string]graphRoot
	reason string
	// derives: the call gives an expression, or takes it away.
	derives bool
	// What followed, for the answer.
	recomputed, stale []string
}

func newGraphWrite(s graphState, at int64, reason string) *graphWrite {
	return &graphWrite{now: s, first: at + 1, roots: map[string]graphRoot{}, reason: reason}
}

func (w *graphWrite) next() int64 { return w.first + int64(len(w.rows)) }

// row changes a variable and appends the row that says so.
func (w *graphWrite) row(
	kind setpointv1.HistoryChange, name string, cause graphCause, dependency string, change func(v *graphVariable),
) graphCause {
	at := w.next()
	before := w.now[name]
	w.now = w.now.with(name, func(v *graphVariable) {
		v.revision = at
		change(v)
	})
	after := w.now[name]
	version, problem, expression, reason := int64(noVersion), "", notGiven, w.reason
	if after.version != before.version || kind == setpointv1.HistoryChange_HISTORY_CHANGE_REGISTERED {
		version = after.version
	}
	switch kind {
	case setpointv1.HistoryChange_HISTORY_CHANGE_REGISTERED:
		problem, reason = after.problem, ""
		if after.expression != nil {
			expression = after.expression.String()
		}
	case setpointv1.HistoryChange_HISTORY_CHANGE_STALE:
		problem = after.problem
	case setpointv1.HistoryChange_HISTORY_CHANGE_UPDATED:
		if w.derives {
			expression = after.expression.String()
		}
	}
	if cause != (graphCause{}) {
		reason = ""
	}
	w.rows = append(w.rows, graphRow{
		name: name, after: after, follows: cause != (graphCause{}),
		text: rowText(kind, name, version, after.value, after.metadata, reason, cause, problem, dependency, expression),
	})
	return graphCause{at, name}
}

// write gives a variable a value, as a call does.
func (w *graphWrite) write(kind setpointv1.HistoryChange, name string, value int64, metadata string) {
	changed := w.now[name].value != value
	cause := w.row(kind, name, graphCause{}, "", func(v *graphVariable) {
		v.version, v.value, v.stale, v.problem = v.version+1, value, graphCause{}, ""
		if metadata != "" {
			v.metadata = metadata
		}
	})
	w.roots[name] = graphRoot{cause: cause, changed: changed}
}

// graphEffect is what becomes of a variable.
type graphEffect struct {
	changed, disturbed, computed bool
	cause                        graphCause
	value                        int64
	problem                      string
}

func earliest(causes []graphCause) graphCause {
	return slices.MinFunc(causes, func(a, b graphCause) int { return cmp.Compare(a.revision, b.revision) })
}

// effect is what becomes of a variable, by what becomes of those that it needs.
func (w *graphWrite) effect(name string) graphEffect {
	v := w.now[name]
	root, isRoot := w.roots[name]
	var changes, disturbances []graphCause
	values := map[string]int64{}
	for need := range v.needs {
		e := w.effect(need)
		values[need] = e.value
		if e.changed {
			changes = append(changes, e.cause)
		}
		if e.changed || e.disturbed {
			disturbances = append(disturbances, e.cause)
		}
	}
	if root.again {
		changes = append(changes, root.cause)
	}
	switch {
	case root.problem != "":
		return graphEffect{disturbed: true, cause: root.cause, value: v.value, problem: root.problem}
	case root.changed:
		return graphEffect{changed: true, cause: root.cause, value: v.value}
	case isRoot && !root.again || v.expression == nil:
		if len(disturbances) == 0 {
			return graphEffect{value: v.value}
		}
		return graphEffect{disturbed: true, cause: earliest(disturbances), value: v.value}
	case len(changes) == 0:
		return graphEffect{value: v.value}
	}
	fresh, problem := v.expression.compute(values)
	if problem == "" {
		problem = v.accepts(fresh)
	}
	switch {
	case problem != "" && len(changes) == 1 && root.again && v.stale != (graphCause{}): // Nothing is other than before.
		return graphEffect{value: v.value}
	case problem != "":
		return graphEffect{disturbed: true, cause: earliest(changes), value: v.value, problem: problem}
	case fresh != v.value:
		return graphEffect{changed: true, computed: true, cause: earliest(changes), value: fresh}
	}
	return graphEffect{computed: true, cause: earliest(changes), value: v.value}
}

// follow has dependents follow; the strict variables that refuse it, in order, if there are such.
func (w *graphWrite) follow() []strictProblem {
	var from []string
	among := map[string]bool{}
	for name, root := range w.roots {
		if root.changed || root.again || root.problem != "" {
			from = append(from, name)
			among[name] = true
		}
	}
	maps.Copy(among, reach(from, w.now.dependents))
	effects := map[string]graphEffect{}
	var failed []strictProblem
	order := w.now.order(among)
	for _, name := range order {
		effects[name] = w.effect(name)
		if effects[name].problem != "" && w.now[name].strict {
			failed = append(failed, strictProblem{name, effects[name].problem})
		}
	}
	if len(failed) > 0 {
		return failed
	}
	for _, name := range order {
		w.followOne(name, effects[name])
	}
	return nil
}

type strictProblem struct{ name, problem string }

func (w *graphWrite) followOne(name string, e graphEffect) {
	root, isRoot := w.roots[name]
	stale := w.now[name].stale != (graphCause{})
	switch {
	case isRoot && !root.again && root.problem == "":
	case e.changed:
		w.row(setpointv1.HistoryChange_HISTORY_CHANGE_RECOMPUTED, name, e.cause, "", func(v *graphVariable) {
			v.version, v.value, v.stale, v.problem = v.version+1, e.value, graphCause{}, ""
		})
		w.recomputed = append(w.recomputed, fmt.Sprintf("%s=%d v%d", name, e.value, w.now[name].version))
	case e.computed && stale:
		w.row(setpointv1.HistoryChange_HISTORY_CHANGE_STALE_CLEARED, name, e.cause, "", func(v *graphVariable) {
			v.stale, v.problem = graphCause{}, ""
		})
	case e.disturbed && (!stale || root.fresh):
		w.row(setpointv1.HistoryChange_HISTORY_CHANGE_STALE, name, e.cause, "", func(v *graphVariable) {
			v.stale, v.problem = e.cause, e.problem
		})
		w.stale = append(w.stale, name+" "+e.problem)
	}
}

// graphResult is what a call does in the model: it is refused, or writes, or only answers.
type graphResult struct {
	refused string
	rows    []graphRow
	after   graphState
	answer  []string
}

func refusedFor(reason setpointv1.ErrorReason, detail string) graphResult {
	return graphResult{refused: strings.TrimSpace(reason.String() + " " + detail)}
}

func (w *graphWrite) result(answer ...string) graphResult {
	return graphResult{rows: w.rows, after: w.now, answer: answer}
}

func followText(recomputed, stale []string) []string {
	return []string{fmt.Sprintf("recomputed %q", recomputed), fmt.Sprintf("stale %q", stale)}
}

// graphWorld is a session as the model knows it: as of each revision, and as of the end of each transaction.
type graphWorld struct {
	rows []graphRow
	// at is the variables by revision, and settled the revision that stands for it: the last one of a transaction in which
	// others followed.
	at      []graphState
	settled []int64
	// ends are the revisions at which transactions ended.
	ends []int64
	// values are those of each version, by id.
	values map[string]map[int64]int64
}

func newGraphWorld() *graphWorld {
	return &graphWorld{at: []graphState{{}}, settled: []int64{0}, ends: []int64{0}, values: map[string]map[int64]int64{}}
}

func (w *graphWorld) last() int64 { return int64(len(w.at)) - 1 }

func (w *graphWorld) now() graphState { return w.at[w.last()] }

// commit appends a transaction.
func (w *graphWorld) commit(r graphResult) {
	last := w.last() + int64(len(r.rows))
	followed := slices.ContainsFunc(r.rows, func(row graphRow) bool { return row.follows })
	for _, row := range r.rows {
		next := maps.Clone(w.now())
		next[row.name] = row.after
		if row.gone {
			delete(next, row.name)
		}
		if id := row.after.id; !row.gone {
			if w.values[id] == nil {
				w.values[id] = map[int64]int64{}
			}
			w.values[id][row.after.version] = row.after.value
		}
		w.at = append(w.at, next)
		if settled := w.last(); followed {
			w.settled = append(w.settled, last)
		} else {
			w.settled = append(w.settled, settled)
		}
	}
	w.at[last] = r.after
	w.rows = append(w.rows, r.rows...)
	w.ends = append(w.ends, last)
}

// graphCaller sends calls.
type graphCaller struct {
	*client.Client
	ctx             context.Context
	session, reason string
}

// graphAnswer is what a call answered.
type graphAnswer struct {
	refused string
	lines   []string
	// path is that of a refused cycle; of a batch, paths are those of its items, and items why they are refused.
	path  []string
	paths map[string][]string
	items map[string]string
	// ids are those of registered variables, and revision is that of the first one.
	ids      map[string]string
	revision int64
}

// graphCall is a call: to the server, and to the model, which is told what the server answered where that is a choice.
type graphCall interface {
	send(c graphCaller) (graphAnswer, error)
	apply(w *graphWorld, s graphState, at int64, reason string, got graphAnswer) graphResult
}

// problemOf is what an error of a derived variable is about.
func problemOf(text string) string {
	for _, known := range []string{zeroProblem, maxProblem, missingProblem, deletedProblem} {
		if strings.Contains(text, known) {
			return known
		}
	}
	return text
}

// detailOf is what a refusal says to programs.
func detailOf(reason setpointv1.ErrorReason, metadata map[string]string, message string) string {
	detail := ""
	for _, key := range []string{"variable", "dependent", "dependency", "dependents", "current_version"} {
		if metadata[key] != "" {
			detail += key + "=" + metadata[key] + " "
		}
	}
	switch reason {
	case setpointv1.ErrorReason_DERIVATION_FAILED:
		detail += problemOf(message)
	case setpointv1.ErrorReason_WOULD_CREATE_CYCLE:
		detail = fmt.Sprintf("%q", pathOf(metadata))
	}
	return strings.TrimSpace(reason.String() + " " + detail)
}

func pathOf(metadata map[string]string) []string {
	var path []string
	if text := metadata["path"]; text != "" && json.Unmarshal([]byte(text), &path) != nil {
		return []string{"no JSON: " + text}
	}
	return path
}

// answered makes an answer of a call's outcome. An error that is no refusal stays one.
func graphAnswered(answer graphAnswer, err error) (graphAnswer, error) {
	if err == nil {
		return answer, nil
	}
	e, ok := errors.AsType[*client.Error](err)
	if !ok || e.Reason == setpointv1.ErrorReason_INTERNAL_ERROR || e.Reason == setpointv1.ErrorReason_CONFLICT_RETRY {
		return graphAnswer{}, err
	}
	return graphAnswer{refused: detailOf(e.Reason, e.Metadata, e.Message), path: pathOf(e.Metadata)}, nil
}

func staleLine(s *setpointv1.Stale) string {
	if s == nil {
		return ""
	}
	return fmt.Sprintf(" stale by %s %s", graphCause{s.GetRevision(), s.GetCause()}, problemOf(s.GetError()))
}

// variableLine is a variable as the model writes it.
func variableLine(v *setpointv1.Variable) string {
	text := fmt.Sprintf("%s %s v%d=%d @%d m=%s needs %q", v.GetName(), v.GetVariableId(), v.GetVersion(),
		v.GetValue().GetInteger(), v.GetRevision(), v.GetMetadata()["m"], v.GetDependsOn())
	if v.GetExpression() != "" {
		text += fmt.Sprintf(" := %s strict=%t", v.GetExpression(), v.GetStrict())
	}
	return text + staleLine(v.GetStale())
}

func followLines(recomputed []*setpointv1.RecomputedVariable, stale []*setpointv1.StaleVariable) []string {
	var lines []string
	for _, s := range stale {
		lines = append(lines, s.GetVariable()+" "+problemOf(s.GetError()))
	}
	return followText(recomputedText(recomputed), lines)
}

func graphMetadata(m string) map[string]string {
	if m == "" {
		return nil
	}
	return map[string]string{"m": m}
}

func graphConstraints(most int64) *setpointv1.Constraints {
	if most == 0 {
		return nil
	}
	return &setpointv1.Constraints{Max: ptr(float64(most))}
}

// notFound is the refusal of a name; false if there is a variable of that name.
func (s graphState) notFound(names ...string) (graphResult, bool) {
	for _, name := range names {
		if _, ok := s[name]; !ok {
			return refusedFor(setpointv1.ErrorReason_VARIABLE_NOT_FOUND, "variable="+name), true
		}
	}
	return graphResult{}, false
}

func derivationRefused(p strictProblem) graphResult {
	return refusedFor(setpointv1.ErrorReason_DERIVATION_FAILED, fmt.Sprintf("variable=%s %s", p.name, p.problem))
}

// cycleRefused is the refusal of new dependencies, with the path that the server chose if that is right.
func (s graphState) cycleRefused(dependent string, added, path []string) graphResult {
	if !s.cycle(path, dependent, added) {
		path = []string{"a shortest path of a cycle"}
	}
	return refusedFor(setpointv1.ErrorReason_WOULD_CREATE_CYCLE, fmt.Sprintf("%q", path))
}

// graphEdge adds or removes a dependency.
type graphEdge struct {
	Remove                bool
	Dependent, Dependency string
}

func (e graphEdge) send(c graphCaller) (graphAnswer, error) {
	if e.Remove {
		r, err := c.Dependencies.RemoveDependency(c.ctx, &setpointv1.RemoveDependencyRequest{
			SessionId: c.session, Dependent: e.Dependent, Dependency: e.Dependency, Reason: c.reason,
		})
		return graphAnswered(graphAnswer{lines: []string{fmt.Sprint(r.GetRevision())}}, err)
	}
	r, err := c.Dependencies.AddDependency(c.ctx, &setpointv1.AddDependencyRequest{
		SessionId: c.session, Dependent: e.Dependent, Dependency: e.Dependency, Reason: c.reason,
	})
	return graphAnswered(graphAnswer{lines: []string{fmt.Sprintf("%d %s %s %s %s", r.GetRevision(), r.GetDependent(),
		r.GetDependentId(), r.GetDependency(), r.GetDependencyId())}}, err)
}

func (e graphEdge) apply(_ *graphWorld, s graphState, at int64, reason string, got graphAnswer) graphResult {
	if refused, ok := s.notFound(e.Dependent, e.Dependency); ok {
		return refused
	}
	revision, exists := s[e.Dependent].needs[e.Dependency]
	write := newGraphWrite(s, at, reason)
	if e.Remove {
		switch {
		case !exists:
			return refusedFor(setpointv1.ErrorReason_DEPENDENCY_NOT_FOUND,
				fmt.Sprintf("dependent=%s dependency=%s", e.Dependent, e.Dependency))
		case s[e.Dependent].expression.uses(e.Dependency):
			return refusedFor(setpointv1.ErrorReason_DERIVED_VARIABLE,
				fmt.Sprintf("variable=%s dependency=%s", e.Dependent, e.Dependency))
		}
		write.row(setpointv1.HistoryChange_HISTORY_CHANGE_DEPENDENCY_REMOVED, e.Dependent, graphCause{}, e.Dependency,
			func(v *graphVariable) { delete(v.needs, e.Dependency) })
		return write.result(fmt.Sprint(write.first))
	}
	line := func(revision int64) string {
		return fmt.Sprintf("%d %s %s %s %s", revision, e.Dependent, s[e.Dependent].id, e.Dependency, s[e.Dependency].id)
	}
	switch {
	case exists:
		return graphResult{after: s, answer: []string{line(revision)}}
	case s.closes(e.Dependent, []string{e.Dependency}):
		return s.cycleRefused(e.Dependent, []string{e.Dependency}, got.path)
	}
	cause := write.row(setpointv1.HistoryChange_HISTORY_CHANGE_DEPENDENCY_ADDED, e.Dependent, graphCause{}, e.Dependency,
		func(v *graphVariable) { v.needs[e.Dependency] = write.first })
	if v := write.now[e.Dependent]; v.expression.usesAny() || v.stale != (graphCause{}) && v.whole() {
		write.roots[e.Dependent] = graphRoot{cause: cause, again: true}
	}
	if failed := write.follow(); failed != nil {
		return derivationRefused(failed[0])
	}
	return write.result(line(write.first))
}

// graphItem is a value to set.
type graphItem struct {
	Name     string
	Value    int64
	Metadata string
}

// graphSet sets values: one, or a batch.
type graphSet struct {
	Batch, Atomic, Dry bool
	Items              []graphItem
}

func (g graphSet) send(c graphCaller) (graphAnswer, error) {
	if !g.Batch {
		item := g.Items[0]
		r, err := c.Variables.SetVariable(c.ctx, &setpointv1.SetVariableRequest{
			SessionId: c.session, Variable: item.Name, Value: client.Integer(item.Value), Reason: c.reason, DryRun: g.Dry,
			Metadata: graphMetadata(item.Metadata),
		})
		return graphAnswered(graphAnswer{lines: append([]string{
			fmt.Sprintf("%s %s v%d @%d", item.Name, r.GetVariableId(), r.GetVersion(), r.GetRevision()),
		}, followLines(r.GetRecomputed(), r.GetStale())...)}, err)
	}
	req := &setpointv1.BatchSetVariablesRequest{SessionId: c.session, Atomic: g.Atomic, DryRun: g.Dry}
	for _, item := range g.Items {
		req.Writes = append(req.Writes, &setpointv1.VariableWrite{
			Variable: item.Name, Value: client.Integer(item.Value), Reason: c.reason, Metadata: graphMetadata(item.Metadata),
		})
	}
	r, err := c.Variables.BatchSetVariables(c.ctx, req)
	answer := graphAnswer{items: map[string]string{}}
	for _, result := range r.GetResults() {
		if e := result.GetError(); e != nil {
			answer.items[result.GetVariable()] = detailOf(e.GetReason(), e.GetMetadata(), e.GetMessage())
			answer.lines = append(answer.lines, answer.items[result.GetVariable()])
			continue
		}
		answer.lines = append(answer.lines, fmt.Sprintf("%s %s v%d @%d", result.GetVariable(), result.GetVariableId(),
			result.GetVersion(), result.GetRevision()))
	}
	answer.lines = append(answer.lines, followLines(r.GetRecomputed(), r.GetStale())...)
	return graphAnswered(answer, err)
}

// refuses is why an item is refused before anything follows.
func (s graphState) refuses(item graphItem) string {
	v, ok := s[item.Name]
	switch {
	case !ok:
		return "VARIABLE_NOT_FOUND variable=" + item.Name
	case v.expression != nil:
		return "DERIVED_VARIABLE variable=" + item.Name
	case v.accepts(item.Value) != "":
		return "CONSTRAINT_VIOLATION variable=" + item.Name
	}
	return ""
}

func (g graphSet) apply(_ *graphWorld, s graphState, at int64, reason string, got graphAnswer) graphResult {
	refused := map[string]string{}
	for _, item := range g.Items {
		if why := s.refuses(item); why != "" {
			refused[item.Name] = why
		}
	}
	for {
		if g.Atomic || !g.Batch {
			for _, item := range g.Items {
				if refused[item.Name] != "" {
					return graphResult{refused: refused[item.Name]}
				}
			}
		}
		write := newGraphWrite(s, at, reason)
		for _, item := range g.Items {
			if refused[item.Name] == "" {
				write.write(setpointv1.HistoryChange_HISTORY_CHANGE_SET, item.Name, item.Value, item.Metadata)
			}
		}
		failed := write.follow()
		if failed == nil {
			return g.result(write, s, refused)
		}
		for _, item := range g.Items {
			if refused[item.Name] == "" && s.blames(item, failed, got) {
				refused[item.Name] = derivationRefused(failed[0]).refused
			}
		}
	}
}

// blames tells whether strict variables refuse an item: all that change and from which one of them can be reached. One that
// does not change anything may be refused with them.
func (s graphState) blames(item graphItem, failed []strictProblem, got graphAnswer) bool {
	reached := reach([]string{item.Name}, s.dependents)
	if !slices.ContainsFunc(failed, func(p strictProblem) bool { return reached[p.name] }) {
		return false
	}
	return s[item.Name].value != item.Value || got.items[item.Name] != ""
}

func (g graphSet) result(write *graphWrite, s graphState, refused map[string]string) graphResult {
	var lines []string
	at := write.first
	for _, item := range g.Items {
		if why := refused[item.Name]; why != "" {
			lines = append(lines, why)
			continue
		}
		lines = append(lines, fmt.Sprintf("%s %s v%d @%d", item.Name, s[item.Name].id, s[item.Name].version+1, at))
		at++
	}
	result := write.result(append(lines, followText(write.recomputed, write.stale)...)...)
	if g.Dry {
		result.rows, result.after = nil, s
	}
	return result
}

// graphRollback rolls a variable back.
type graphRollback struct {
	Name    string
	Version int64
}

func (g graphRollback) send(c graphCaller) (graphAnswer, error) {
	v, err := c.History.RollbackVariable(c.ctx, &setpointv1.RollbackVariableRequest{
		SessionId: c.session, Variable: g.Name, Version: g.Version, Reason: c.reason,
	})
	return graphAnswered(graphAnswer{lines: []string{variableLine(v)}}, err)
}

func (g graphRollback) apply(w *graphWorld, s graphState, at int64, reason string, _ graphAnswer) graphResult {
	if refused, ok := s.notFound(g.Name); ok {
		return refused
	}
	v := s[g.Name]
	switch {
	case v.expression != nil:
		return refusedFor(setpointv1.ErrorReason_DERIVED_VARIABLE, "variable="+g.Name)
	case g.Version > v.version:
		return refusedFor(setpointv1.ErrorReason_VERSION_NOT_AVAILABLE,
			fmt.Sprintf("variable=%s current_version=%d", g.Name, v.version))
	case v.accepts(w.values[v.id][g.Version]) != "":
		return refusedFor(setpointv1.ErrorReason_CONSTRAINT_VIOLATION, "variable="+g.Name)
	}
	write := newGraphWrite(s, at, reason)
	write.write(setpointv1.HistoryChange_HISTORY_CHANGE_ROLLED_BACK, g.Name, w.values[v.id][g.Version], "")
	line := write.now[g.Name].text(g.Name)
	if failed := write.follow(); failed != nil {
		return derivationRefused(failed[0])
	}
	return write.result(line)
}

// graphRollbackSession rolls the session back.
type graphRollbackSession struct {
	To  int64
	Dry bool
}

func (g graphRollbackSession) send(c graphCaller) (graphAnswer, error) {
	r, err := c.History.RollbackSession(c.ctx, &setpointv1.RollbackSessionRequest{
		SessionId: c.session, To: &setpointv1.RollbackSessionRequest_Revision{Revision: g.To}, Reason: c.reason, DryRun: g.Dry,
	})
	lines := []string{fmt.Sprintf("to %d, now %d, unchanged %d, registered %q, deleted %q", r.GetTargetRevision(), r.GetRevision(),
		r.GetUnchangedCount(), r.GetRegisteredSince(), r.GetDeletedSince())}
	for _, v := range r.GetRestored() {
		lines = append(lines, fmt.Sprintf("%s %s v%d=%d was v%d=%d is v%d @%d", v.GetName(), v.GetVariableId(), v.GetThenVersion(),
			v.GetThen().GetInteger(), v.GetPreviousVersion(), v.GetPrevious().GetInteger(), v.GetVersion(), v.GetRevision()))
	}
	return graphAnswered(graphAnswer{lines: append(lines, followLines(r.GetRecomputed(), r.GetStale())...)}, err)
}

func (g graphRollbackSession) apply(w *graphWorld, s graphState, at int64, reason string, _ graphAnswer) graphResult {
	if g.To > at {
		return refusedFor(setpointv1.ErrorReason_INVALID_REQUEST, "")
	}
	to := w.settled[g.To]
	then := w.at[to]
	var restored, registered, deleted []string
	for name, v := range s {
		was, existed := then[name]
		switch {
		case !existed || was.id != v.id:
			registered = append(registered, name)
		case v.expression == nil && was.version != v.version:
			restored = append(restored, name)
		}
	}
	for name, was := range then {
		if s[name].id != was.id {
			deleted = append(deleted, name)
		}
	}
	slices.SortFunc(restored, func(a, b string) int { return strings.Compare(s[a].id, s[b].id) })
	write := newGraphWrite(s, at, reason)
	var lines []string
	for _, name := range restored {
		if s[name].accepts(then[name].value) != "" {
			return refusedFor(setpointv1.ErrorReason_CONSTRAINT_VIOLATION, "variable="+name)
		}
		lines = append(lines, fmt.Sprintf("%s %s v%d=%d was v%d=%d is v%d @%d", name, s[name].id, then[name].version,
			then[name].value, s[name].version, s[name].value, s[name].version+1, write.next()))
		write.write(setpointv1.HistoryChange_HISTORY_CHANGE_ROLLED_BACK, name, then[name].value, "")
	}
	if failed := write.follow(); failed != nil {
		return derivationRefused(failed[0])
	}
	unchanged := 0
	for name, v := range write.now {
		if was := then[name]; was.id == v.id && was.version == v.version {
			unchanged++
		}
	}
	slices.Sort(registered)
	slices.Sort(deleted)
	head := fmt.Sprintf("to %d, now %d, unchanged %d, registered %q, deleted %q", to, write.next()-1, unchanged, registered, deleted)
	result := write.result(slices.Concat([]string{head}, lines, followText(write.recomputed, write.stale))...)
	if g.Dry {
		result.rows, result.after = nil, s
	}
	return result
}

// graphDelete deletes a variable.
type graphDelete struct {
	Name    string
	Cascade bool
}

func (g graphDelete) send(c graphCaller) (graphAnswer, error) {
	r, err := c.Variables.DeleteVariable(c.ctx, &setpointv1.DeleteVariableRequest{
		SessionId: c.session, Variable: g.Name, Cascade: g.Cascade, Reason: c.reason,
	})
	return graphAnswered(graphAnswer{lines: append([]string{fmt.Sprintf("%s @%d", r.GetVariableId(), r.GetRevision())},
		followLines(nil, r.GetStale())...)}, err)
}

func (g graphDelete) apply(_ *graphWorld, s graphState, at int64, reason string, _ graphAnswer) graphResult {
	if refused, ok := s.notFound(g.Name); ok {
		return refused
	}
	dependents := s.dependents(g.Name)
	if len(dependents) > 0 && !g.Cascade {
		list, _ := json.Marshal(dependents)
		return refusedFor(setpointv1.ErrorReason_HAS_DEPENDENTS, fmt.Sprintf("variable=%s dependents=%s", g.Name, list))
	}
	write := newGraphWrite(s, at, reason)
	cause := write.row(setpointv1.HistoryChange_HISTORY_CHANGE_DELETED, g.Name, graphCause{}, "", func(*graphVariable) {})
	write.rows[0].gone = true
	delete(write.now, g.Name) // The row has made a state of its own.
	for _, name := range dependents {
		write.row(setpointv1.HistoryChange_HISTORY_CHANGE_DEPENDENCY_REMOVED, name, cause, g.Name,
			func(v *graphVariable) { delete(v.needs, g.Name) })
		if s[name].expression != nil {
			write.roots[name] = graphRoot{cause: cause, problem: deletedProblem}
		}
	}
	if failed := write.follow(); failed != nil {
		return derivationRefused(failed[0])
	}
	return write.result(append([]string{fmt.Sprintf("%s @%d", s[g.Name].id, write.first)}, followText(nil, write.stale)...)...)
}

// graphUpdate changes what a variable depends on and is computed by.
type graphUpdate struct {
	Name      string
	Derive    bool // Expression is in the request; nil ends the derivation.
	DependsOn []string
	Clear     bool
	Strict    *bool
	Max       *int64 // 0 removes it.
	Metadata  string
	// Expression is the new one.
	Expression *graphExpression
}

func (g graphUpdate) send(c graphCaller) (graphAnswer, error) {
	req := &setpointv1.UpdateVariableRequest{
		SessionId: c.session, Variable: g.Name, DependsOn: g.DependsOn, ClearDependsOn: g.Clear, Strict: g.Strict,
		Metadata: graphMetadata(g.Metadata), Reason: c.reason,
	}
	if g.Derive {
		req.Expression = ptr(g.Expression.String())
	}
	if g.Max != nil {
		if req.Constraints = graphConstraints(*g.Max); req.Constraints == nil {
			req.Constraints = &setpointv1.Constraints{}
		}
	}
	v, err := c.Variables.UpdateVariable(c.ctx, req)
	return graphAnswered(graphAnswer{lines: []string{variableLine(v)}}, err)
}

// relinks tells whether an update that leaves the expression as it is names dependencies.
func (g graphUpdate) relinks() bool { return len(g.DependsOn) > 0 || g.Clear }

// again tells whether an update that leaves the expression as it is has the variable computed again: because the expression
// looks at whatever there is, or had no value, and because other constraints may let it have one, if all that it names is
// there.
func (g graphUpdate) again(v graphVariable) bool {
	lacks := func(name string) bool {
		_, there := v.needs[name]
		return !there
	}
	stale := v.stale != (graphCause{})
	switch {
	case v.expression == nil:
		return false
	case g.relinks():
		return v.expression.usesAny() || stale
	}
	return g.Max != nil && stale && !slices.ContainsFunc(v.expression.Operands, lacks)
}

// wants is what the variable is to depend on, or why it cannot.
func (g graphUpdate) wants(s graphState, after graphVariable) (map[string]bool, graphResult, bool) {
	before := s[g.Name]
	wanted := map[string]bool{}
	switch {
	case len(g.DependsOn) > 0 || g.Clear:
		if refused, ok := s.notFound(g.DependsOn...); ok {
			return nil, refused, false
		}
		for _, name := range g.DependsOn {
			wanted[name] = true
		}
	default:
		for need := range before.needs {
			named := before.expression != nil && slices.Contains(before.expression.Operands, need)
			if !g.Derive || after.expression == nil || !named {
				wanted[need] = true
			}
		}
	}
	if after.expression != nil && (g.Derive || g.relinks()) {
		for _, name := range after.expression.Operands {
			if _, ok := s[name]; !ok {
				return nil, refusedFor(setpointv1.ErrorReason_INVALID_EXPRESSION, "variable="+g.Name), false
			}
			wanted[name] = true
		}
	}
	return wanted, graphResult{}, true
}

func (g graphUpdate) apply(_ *graphWorld, s graphState, at int64, reason string, got graphAnswer) graphResult {
	if refused, ok := s.notFound(g.Name); ok {
		return refused
	}
	before := s[g.Name]
	after := before
	if g.Derive {
		after.expression = g.Expression
	}
	if g.Max != nil {
		after.max = *g.Max
		if g.Expression == nil && after.accepts(after.value) != "" {
			return refusedFor(setpointv1.ErrorReason_CONSTRAINT_VIOLATION, "variable="+g.Name)
		}
	}
	if g.Strict != nil {
		after.strict = *g.Strict
	}
	if after.strict && after.expression == nil {
		if g.Strict != nil && *g.Strict {
			return refusedFor(setpointv1.ErrorReason_INVALID_REQUEST, "")
		}
		after.strict = false
	}
	wanted, refused, ok := g.wants(s, after)
	if !ok {
		return refused
	}
	write := newGraphWrite(s, at, reason)
	write.derives = g.Derive
	cause := write.row(setpointv1.HistoryChange_HISTORY_CHANGE_UPDATED, g.Name, graphCause{}, "", func(v *graphVariable) {
		v.expression, v.strict, v.max = after.expression, after.strict, after.max
		if v.expression == nil {
			v.problem = "" // It is of what the variable was computed by.
		}
		if g.Metadata != "" {
			v.metadata = g.Metadata
		}
	})
	if added := g.relink(write, cause, before, wanted); s.closes(g.Name, added) {
		return s.cycleRefused(g.Name, added, got.path)
	}
	if refused, ok := g.compute(write, cause); !ok {
		return refused
	}
	if failed := write.follow(); failed != nil {
		return derivationRefused(failed[0])
	}
	return write.result(write.now[g.Name].text(g.Name))
}

// relink changes the edges to what is wanted; the new ones' dependencies.
func (g graphUpdate) relink(write *graphWrite, cause graphCause, before graphVariable, wanted map[string]bool) []string {
	for _, need := range slices.Sorted(maps.Keys(before.needs)) {
		if !wanted[need] {
			write.row(setpointv1.HistoryChange_HISTORY_CHANGE_DEPENDENCY_REMOVED, g.Name, cause, need,
				func(v *graphVariable) { delete(v.needs, need) })
		}
	}
	var added []string
	for _, need := range slices.Sorted(maps.Keys(wanted)) {
		if _, was := before.needs[need]; !was {
			added = append(added, need)
			write.row(setpointv1.HistoryChange_HISTORY_CHANGE_DEPENDENCY_ADDED, g.Name, cause, need,
				func(v *graphVariable) { v.needs[need] = cause.revision })
		}
	}
	return added
}

// compute gives the variable the value of a new expression, or has it computed again if its expression looks at whatever
// there is, or had no value.
func (g graphUpdate) compute(write *graphWrite, cause graphCause) (graphResult, bool) {
	v := write.now[g.Name]
	if !g.Derive || v.expression == nil {
		if g.again(v) {
			write.roots[g.Name] = graphRoot{cause: cause, again: true}
		}
		return graphResult{}, true
	}
	values := map[string]int64{}
	for need := range v.needs {
		values[need] = write.now[need].value
	}
	fresh, problem := v.expression.compute(values)
	if problem == "" {
		problem = v.accepts(fresh)
	}
	switch {
	case problem != "" && v.strict:
		return derivationRefused(strictProblem{g.Name, problem}), false
	case problem != "" && v.accepts(v.value) != "": // It would keep its value.
		return refusedFor(setpointv1.ErrorReason_CONSTRAINT_VIOLATION, "variable="+g.Name), false
	case problem != "":
		write.roots[g.Name] = graphRoot{cause: cause, problem: problem, fresh: true}
		return graphResult{}, true
	}
	write.row(setpointv1.HistoryChange_HISTORY_CHANGE_RECOMPUTED, g.Name, cause, "", func(v *graphVariable) {
		v.version, v.value, v.stale, v.problem = v.version+1, fresh, graphCause{}, ""
	})
	write.roots[g.Name] = graphRoot{cause: cause, changed: fresh != v.value}
	return graphResult{}, true
}

// graphRegistration is a variable to register.
type graphRegistration struct {
	Name       string
	Value      *int64
	Max        int64
	DependsOn  []string
	Expression *graphExpression
	Strict     bool
	Metadata   string
}

// graphRegister registers a variable, or a batch of them.
type graphRegister struct {
	Batch, Atomic bool
	Items         []graphRegistration
}

func (r graphRegistration) proto() *setpointv1.VariableRegistration {
	registration := &setpointv1.VariableRegistration{
		Name: r.Name, Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, DependsOn: r.DependsOn, Strict: r.Strict,
		Constraints: graphConstraints(r.Max), Metadata: graphMetadata(r.Metadata), HistoryLimit: ptr(int64(0)),
		Expression: r.Expression.String(),
	}
	if r.Value != nil {
		registration.Value = client.Integer(*r.Value)
	}
	return registration
}

func (g graphRegister) send(c graphCaller) (graphAnswer, error) {
	answer := graphAnswer{ids: map[string]string{}, items: map[string]string{}, paths: map[string][]string{}}
	registered := func(v *setpointv1.Variable) {
		answer.ids[v.GetName()] = v.GetVariableId()
		answer.lines = append(answer.lines, variableLine(v))
		if answer.revision == 0 || v.GetRevision() < answer.revision {
			answer.revision = v.GetRevision()
		}
	}
	if !g.Batch {
		r := g.Items[0].proto()
		v, err := c.Variables.RegisterVariable(c.ctx, &setpointv1.RegisterVariableRequest{
			SessionId: c.session, Name: r.GetName(), Type: r.GetType(), Value: r.GetValue(), Constraints: r.GetConstraints(),
			Metadata: r.GetMetadata(), HistoryLimit: r.HistoryLimit, DependsOn: r.GetDependsOn(), Expression: r.GetExpression(),
			Strict: r.GetStrict(),
		})
		if err == nil {
			registered(v)
		}
		return graphAnswered(answer, err)
	}
	req := &setpointv1.BatchRegisterVariablesRequest{SessionId: c.session, Atomic: g.Atomic}
	for _, item := range g.Items {
		req.Registrations = append(req.Registrations, item.proto())
	}
	r, err := c.Variables.BatchRegisterVariables(c.ctx, req)
	for i, result := range r.GetResults() {
		name, e := g.Items[i].Name, result.GetError()
		if e == nil {
			registered(result.GetVariable())
			continue
		}
		answer.items[name] = detailOf(e.GetReason(), e.GetMetadata(), e.GetMessage())
		answer.paths[name] = pathOf(e.GetMetadata())
		answer.lines = append(answer.lines, answer.items[name])
	}
	return graphAnswered(answer, err)
}

// graphMates are the variables of a batch as the model registers them.
type graphMates struct {
	s     graphState
	items map[string]graphRegistration // Those that are neither there nor refused for their value.
	got   graphAnswer
}

func (r graphRegistration) needs() []string {
	if r.Expression == nil {
		return r.DependsOn
	}
	return slices.Concat(r.DependsOn, r.Expression.Operands)
}

// mates are those of the batch that one needs.
func (m graphMates) mates(name string) []string {
	var out []string
	for _, need := range m.items[name].needs() {
		if _, ok := m.items[need]; ok {
			out = append(out, need)
		}
	}
	return out
}

// refusal is why the server refused an item.
func (m graphMates) refusal(name string) string {
	if len(m.got.items) == 0 {
		return m.got.refused
	}
	return m.got.items[name]
}

// onCycle is the refusal of a variable that needs itself. Where it also needs one of another cycle, it may be refused for
// the lack of that.
func (m graphMates) onCycle(name string) string {
	if !reach([]string{name}, m.mates)[name] {
		return ""
	}
	path := m.got.paths[name]
	if len(m.got.items) == 0 {
		path = m.got.path
	}
	right := len(path) > 1 && path[0] == name && path[len(path)-1] == name
	for i := range max(len(path)-1, 0) {
		right = right && slices.Contains(m.mates(path[i]), path[i+1])
	}
	if !right {
		path = []string{"a cycle"}
	}
	return fmt.Sprintf("WOULD_CREATE_CYCLE %q", path)
}

// resolve is the value of a variable to be, and why that cannot be computed though it stands, or why it is refused.
func (m graphMates) resolve(name string) (int64, string, string) {
	if v, ok := m.s[name]; ok {
		return v.value, "", ""
	}
	item, ok := m.items[name]
	if !ok {
		return 0, "", "no such variable"
	}
	if why := m.onCycle(name); why != "" && strings.HasPrefix(m.refusal(name), "WOULD_CREATE_CYCLE") {
		return 0, "", why
	}
	values := map[string]int64{}
	for i, need := range item.needs() {
		var v int64
		refused := m.onCycle(need)
		if refused == "" {
			v, _, refused = m.resolve(need)
		}
		switch {
		case refused != "" && i < len(item.DependsOn):
			return 0, "", "VARIABLE_NOT_FOUND variable=" + need
		case refused != "":
			return 0, "", "INVALID_EXPRESSION variable=" + name
		}
		values[need] = v
	}
	if item.Expression == nil {
		return *item.Value, "", ""
	}
	fresh, problem := item.Expression.compute(values)
	if problem == "" {
		problem = graphVariable{max: item.Max}.accepts(fresh)
	}
	switch {
	case problem == "":
		return fresh, "", ""
	case item.Strict || item.Value == nil:
		return 0, "", derivationRefused(strictProblem{name, problem}).refused
	}
	return *item.Value, problem, ""
}

// refused is why each item is refused, in the order of the batch.
func (m graphMates) refused(items []graphRegistration) []string {
	out := make([]string, len(items))
	for i, item := range items {
		if _, exists := m.s[item.Name]; exists {
			out[i] = "VARIABLE_EXISTS variable=" + item.Name
		} else if item.Value != nil && (graphVariable{max: item.Max}).accepts(*item.Value) != "" {
			out[i] = "CONSTRAINT_VIOLATION variable=" + item.Name
		} else {
			m.items[item.Name] = item
		}
	}
	for i, item := range items {
		if out[i] == "" {
			_, _, out[i] = m.resolve(item.Name)
		}
	}
	return out
}

func (g graphRegister) apply(_ *graphWorld, s graphState, at int64, reason string, got graphAnswer) graphResult {
	m := graphMates{s: s, items: map[string]graphRegistration{}, got: got}
	refused := m.refused(g.Items)
	if g.Atomic || !g.Batch {
		for _, why := range refused {
			if why != "" {
				return graphResult{refused: why}
			}
		}
	}
	write := newGraphWrite(s, at, reason)
	lines := slices.Clone(refused)
	for _, i := range g.sequence(refused) {
		item := g.Items[i]
		v, problem, _ := m.resolve(item.Name)
		write.row(setpointv1.HistoryChange_HISTORY_CHANGE_REGISTERED, item.Name, graphCause{}, "", func(to *graphVariable) {
			*to = graphVariable{
				id: got.ids[item.Name], metadata: item.Metadata, value: v, revision: write.next(), expression: item.Expression,
				strict: item.Strict, max: item.Max, needs: map[string]int64{}, problem: problem,
			}
			for _, need := range item.needs() {
				to.needs[need] = write.next()
			}
			if problem != "" {
				to.stale = graphCause{write.next(), item.Name}
			}
		})
		lines[i] = write.now[item.Name].text(item.Name)
	}
	return write.result(lines...)
}

// sequence is the order in which the items that are not refused are registered: as they come, or, where some depend on
// others, each after what it needs, and by name where that leaves a choice.
func (g graphRegister) sequence(refused []string) []int {
	var left, sequence []int
	connected := false
	for i, item := range g.Items {
		connected = connected || len(item.needs()) > 0 || item.Expression != nil
		if refused[i] == "" {
			left = append(left, i)
		}
	}
	if !connected {
		return left
	}
	slices.SortFunc(left, func(a, b int) int { return strings.Compare(g.Items[a].Name, g.Items[b].Name) })
	for len(left) > 0 {
		next := slices.IndexFunc(left, func(i int) bool {
			return !slices.ContainsFunc(left, func(j int) bool { return slices.Contains(g.Items[i].needs(), g.Items[j].Name) })
		})
		sequence = append(sequence, left[next])
		left = slices.Delete(left, next, next+1)
	}
	return sequence
}

// Generators. Small numbers are drawn more often, and failures shrink to them: what is to be frequent, and simple, comes first.

// graphRoots is how many of the first names are mostly not derived.
const graphRoots = 3

// graphNames are the names of a session's variables, in an order in which later ones mostly depend on earlier ones, so that
// most edges close no cycle.
type graphNames struct {
	names []string
	// stray is how many of a hundred choices of dependencies keep to no order.
	stray int
}

func (n graphNames) any(t *rapid.T) string { return rapid.SampledFrom(n.names).Draw(t, "variable") }

func (n graphNames) some(t *rapid.T, least, most int) []string {
	return rapid.SliceOfNDistinct(rapid.SampledFrom(n.names), least, most, rapid.ID).Draw(t, "variables")
}

// needs are names that a variable may depend on.
func (n graphNames) needs(t *rapid.T, of string, least, most int) []string {
	pool := n.names
	if i := slices.Index(pool, of); i > 0 && !graphOften(t, n.stray, "stray") {
		pool = pool[:i]
	}
	return rapid.SliceOfN(rapid.SampledFrom(pool), least, most).Draw(t, "needs")
}

func (n graphNames) expression(t *rapid.T, of string) *graphExpression {
	form := rapid.IntRange(0, len(graphForms)-1).Draw(t, "form")
	operands := graphForms[form].operands
	return &graphExpression{Form: form, Operands: n.needs(t, of, operands, operands)}
}

func graphValue(t *rapid.T) int64 { return rapid.Int64Range(0, 5).Draw(t, "value") }

// graphOften is true for that many of a hundred. A remainder is about as often one as another.
func graphOften(t *rapid.T, percent int, what string) bool {
	return rapid.IntRange(0, 1<<12-1).Draw(t, what)%100 >= 100-percent
}

func graphNote(t *rapid.T) string {
	return rapid.SampledFrom([]string{"", "p", "q"}).Draw(t, "metadata")
}

func (n graphNames) registration(t *rapid.T, name string) graphRegistration {
	item := graphRegistration{Name: name, Metadata: graphNote(t)}
	if graphOften(t, 40, "bounded") {
		item.Max = 6
	}
	derived, dependent := 70, 50
	if slices.Index(n.names, name) < graphRoots {
		derived, dependent = 12, 45
	}
	if graphOften(t, derived, "derived") {
		item.Expression = n.expression(t, name)
		item.Strict = graphOften(t, 20, "strict")
	}
	if item.Expression == nil || !graphOften(t, 15, "without a value") {
		item.Value = ptr(graphValue(t))
	}
	if graphOften(t, dependent, "dependent") {
		item.DependsOn = n.needs(t, name, 1, 2)
	}
	return item
}

func (n graphNames) registrations(t *rapid.T, names []string) []graphRegistration {
	var items []graphRegistration
	for _, name := range rapid.Permutation(names).Draw(t, "order") {
		items = append(items, n.registration(t, name))
	}
	return items
}

func (n graphNames) set(t *rapid.T, dry bool) graphSet {
	g := graphSet{Dry: dry, Batch: !graphOften(t, 50, "single")}
	if !graphOften(t, 25, "any") {
		n.names = n.names[:graphRoots+1]
	}
	names := []string{n.any(t)}
	if g.Batch {
		g.Atomic = graphOften(t, 30, "atomic")
		names = n.some(t, 2, 4)
	}
	for _, name := range names {
		g.Items = append(g.Items, graphItem{Name: name, Value: graphValue(t), Metadata: graphNote(t)})
	}
	return g
}

func (n graphNames) update(t *rapid.T) graphUpdate {
	g := graphUpdate{Name: n.any(t), Metadata: graphNote(t), Derive: !graphOften(t, 35, "keep")}
	if g.Derive && !graphOften(t, 12, "underive") {
		g.Expression = n.expression(t, g.Name)
	}
	switch {
	case graphOften(t, 35, "depends on"):
		g.DependsOn = n.needs(t, g.Name, 1, 3)
	case graphOften(t, 15, "clear"):
		g.Clear = true
	}
	if graphOften(t, 40, "bound") {
		g.Max = ptr(rapid.SampledFrom([]int64{6, 3, 0}).Draw(t, "max"))
	}
	if graphOften(t, 35, "strictness") {
		g.Strict = ptr(rapid.Bool().Draw(t, "strict"))
	}
	return g
}

// call is a random call.
func (n graphNames) call(t *rapid.T) graphCall {
	switch kind := rapid.IntRange(0, 1<<12-1).Draw(t, "kind") % 32; {
	case kind < 9:
		return n.set(t, false)
	case kind < 13:
		return n.update(t)
	case kind < 17:
		dependent := n.any(t)
		return graphEdge{Dependent: dependent, Dependency: n.needs(t, dependent, 1, 1)[0]}
	case kind < 19:
		dependent := n.any(t)
		return graphEdge{Remove: true, Dependent: dependent, Dependency: n.needs(t, dependent, 1, 1)[0]}
	case kind < 21:
		return n.set(t, true)
	case kind < 23:
		return graphRollback{Name: n.any(t), Version: rapid.Int64Range(0, 3).Draw(t, "version")}
	case kind < 26:
		return graphRollbackSession{To: rapid.Int64Range(0, 16).Draw(t, "to"), Dry: graphOften(t, 30, "dry")}
	case kind < 28:
		return graphDelete{Name: n.any(t), Cascade: !graphOften(t, 40, "no cascade")}
	case kind < 30:
		return graphRegister{Items: []graphRegistration{n.registration(t, n.any(t))}}
	}
	return graphRegister{Batch: true, Atomic: graphOften(t, 30, "atomic"), Items: n.registrations(t, n.some(t, 1, 4))}
}

// graphTry is a call as it was made: between two revisions of the session.
type graphTry struct {
	call          graphCall
	reason        string
	before, after int64
	got           graphAnswer
}

func (a graphTry) String() string {
	return fmt.Sprintf("%s %T%+v between revisions %d and %d: %s%q", a.reason, a.call, a.call, a.before, a.after, a.got.refused,
		a.got.lines)
}

// graphRun makes calls of a session and keeps what they answered.
type graphRun struct {
	b       *bundle
	session string
	clients []*client.Client
	mu      sync.Mutex
	tries   []graphTry
}

func (r *graphRun) revision() int64 {
	var revision int64
	r.b.row(&revision, `select revision from setpoint.sessions where session_id = $1`, r.session)
	return revision
}

// do makes a call, by one of the servers.
func (r *graphRun) do(call graphCall, reason string, server int) graphAnswer {
	c := graphCaller{Client: r.clients[server%len(r.clients)], ctx: r.b.ctx, session: r.session, reason: reason}
	try := graphTry{call: call, reason: reason, before: r.revision()}
	var err error
	if try.got, err = call.send(c); err != nil {
		r.b.t.Errorf("%s: %v", try, err)
	}
	try.after = r.revision()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tries = append(r.tries, try)
	return try.got
}

// together has each caller make its calls, all callers at once.
func (r *graphRun) together(calls [][]graphCall) {
	var wg sync.WaitGroup
	for i, mine := range calls {
		wg.Go(func() {
			for n, call := range mine {
				r.do(call, fmt.Sprintf("r%d.%d", i, n), i)
			}
		})
	}
	wg.Wait()
}

// rehearse makes calls dry and then in earnest: the answers are to be the same, and dry ones write nothing.
func (r *graphRun) rehearse(t graphT, calls []graphCall) {
	for i, call := range calls {
		dry := call
		switch c := call.(type) {
		case graphSet:
			c.Dry = true
			dry = c
		case graphRollbackSession:
			c.Dry = true
			dry = c
		}
		before := r.revision()
		said := r.do(dry, fmt.Sprintf("dry%d", i), i)
		if after := r.revision(); after != before {
			t.Fatalf("%T%+v wrote: revision %d after %d", dry, dry, after, before)
		}
		if did := r.do(call, fmt.Sprintf("real%d", i), i); said.refused != did.refused || !slices.Equal(said.lines, did.lines) {
			t.Fatalf("%T%+v: the dry run answered %s%q, the call then %s%q", call, call, said.refused, said.lines, did.refused,
				did.lines)
		}
	}
}

// graphT is what a check needs of a test.
type graphT interface {
	Fatalf(format string, args ...any)
	Helper()
}

// history is all of the session's, oldest first.
func (r *graphRun) history(t graphT, pageSize int32) []*setpointv1.HistoryEntry {
	t.Helper()
	req := &setpointv1.ListHistoryRequest{SessionId: r.session, PageSize: pageSize}
	var entries []*setpointv1.HistoryEntry
	for {
		page, err := r.clients[0].History.ListHistory(r.b.ctx, req)
		if err != nil {
			t.Fatalf("list history: %v", err)
		}
		entries = append(entries, page.GetEntries()...)
		if req.PageToken = page.GetNextPageToken(); req.PageToken == "" {
			slices.Reverse(entries)
			return entries
		}
	}
}

// model replays what was accepted in the order of the revisions, and has the model say of every call whether its answer
// was right: of those that wrote at their place, and of the others at some moment between their start and their end.
func (r *graphRun) model(t graphT, history []*setpointv1.HistoryEntry) *graphWorld {
	t.Helper()
	first := map[string]int64{}
	for _, entry := range slices.Backward(history) {
		first[entry.GetReason()] = entry.GetRevision()
	}
	world := newGraphWorld()
	wrote := map[int64]graphTry{}
	var others []graphTry
	for _, try := range r.tries {
		at := max(first[try.reason], try.got.revision)
		if at == 0 {
			others = append(others, try)
			continue
		}
		wrote[at] = try
	}
	for len(wrote) > 0 {
		try, ok := wrote[world.last()+1]
		if !ok {
			t.Fatalf("no call made revision %d; left are %v", world.last()+1, wrote)
		}
		delete(wrote, world.last()+1)
		result := try.call.apply(world, world.now(), world.last(), try.reason, try.got)
		if diff := try.differs(result) + result.rowsDiffer(history[world.last():]); diff != "" || len(result.rows) == 0 {
			t.Fatalf("at revision %d, %s\n%s, with %d rows, but (-model +got):\n%s\nthe state was\n%s", world.last(), try,
				result.refused, len(result.rows), diff, world.now().text())
		}
		world.commit(result)
	}
	for _, try := range others {
		r.explain(t, world, try)
	}
	return world
}

func (s graphState) text() string {
	var lines []string
	for _, name := range slices.Sorted(maps.Keys(s)) {
		lines = append(lines, s[name].text(name))
	}
	return strings.Join(lines, "\n")
}

// differs compares an answer with the model's.
func (a graphTry) differs(result graphResult) string {
	if result.refused != "" || a.got.refused != "" {
		return gocmp.Diff(result.refused, a.got.refused)
	}
	return gocmp.Diff(result.answer, a.got.lines)
}

// rowsDiffer compares the rows of a transaction with those that begin the rest of the history.
func (result graphResult) rowsDiffer(rest []*setpointv1.HistoryEntry) string {
	var want, got []string
	for _, row := range result.rows {
		want = append(want, row.text)
	}
	for i, e := range rest {
		if i >= len(want) && e.GetCausedBy() == nil {
			break
		}
		got = append(got, entryText(e))
	}
	return gocmp.Diff(want, got)
}

// explain checks a call that wrote nothing.
func (r *graphRun) explain(t graphT, world *graphWorld, try graphTry) {
	t.Helper()
	var diffs []string
	for _, end := range world.ends {
		if end < try.before || end > try.after {
			continue
		}
		result := try.call.apply(world, world.at[end], end, try.reason, try.got)
		diff := try.differs(result)
		if diff == "" && len(result.rows) == 0 {
			return
		}
		diffs = append(diffs, fmt.Sprintf("at revision %d %s, %d rows (-model +got):\n%s\nthe state was\n%s", end, result.refused,
			len(result.rows), diff, world.at[end].text()))
	}
	t.Fatalf("%s\n%s", try, strings.Join(diffs, "\n"))
}

// entryText is an entry of the history as the model writes it.
func entryText(e *setpointv1.HistoryEntry) string {
	version, value := int64(noVersion), int64(0)
	if e.Version != nil {
		version, value = e.GetVersion(), e.GetValue().GetInteger()
	}
	expression := notGiven
	if e.Expression != nil {
		expression = e.GetExpression()
	}
	return rowText(e.GetChange(), e.GetName(), version, value, e.GetMetadata()["m"], e.GetReason(),
		graphCause{e.GetCausedBy().GetRevision(), e.GetCausedBy().GetVariable()}, problemOf(e.GetError()), e.GetDependency(),
		expression)
}

// wantHistory checks the history against the model's, and what each row says of others.
func wantHistory(t graphT, world *graphWorld, history []*setpointv1.HistoryEntry) {
	t.Helper()
	var want, got []string
	for _, row := range world.rows {
		want = append(want, row.text)
	}
	for i, e := range history {
		got = append(got, entryText(e))
		if e.GetRevision() != int64(i)+1 {
			t.Fatalf("entry %d is of revision %d", i, e.GetRevision())
		}
		cause := e.GetCausedBy()
		if cause == nil {
			continue
		}
		if cause.GetRevision() < 1 || cause.GetRevision() >= e.GetRevision() {
			t.Fatalf("%s has a cause that does not come before it", got[i])
		}
		if by := history[cause.GetRevision()-1]; by.GetName() != cause.GetVariable() || by.GetCausedBy() != nil {
			t.Fatalf("%s has a cause that is no change of a caller: %v", got[i], by)
		}
	}
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Fatalf("history (-model +got):\n%s", diff)
	}
}

// replayed is a variable as far as the history tells.
type replayed struct {
	Version, Value int64
	Stale          string
}

// wantReplay checks that the history alone explains the variables of now.
func wantReplay(t graphT, history []*setpointv1.HistoryEntry, now []*setpointv1.Variable) {
	t.Helper()
	told := map[string]replayed{}
	for _, e := range history {
		v := told[e.GetName()]
		if e.Version != nil {
			v = replayed{Version: e.GetVersion(), Value: e.GetValue().GetInteger()}
		}
		switch e.GetChange() {
		case setpointv1.HistoryChange_HISTORY_CHANGE_STALE:
			v.Stale = staleLine(&setpointv1.Stale{
				Revision: e.GetCausedBy().GetRevision(), Cause: e.GetCausedBy().GetVariable(), Error: e.GetError(),
			})
		case setpointv1.HistoryChange_HISTORY_CHANGE_STALE_CLEARED:
			v.Stale = ""
		case setpointv1.HistoryChange_HISTORY_CHANGE_UPDATED:
			if by, at, ok := strings.Cut(v.Stale, "@"); ok && e.Expression != nil && e.GetExpression() == "" {
				at, _, _ = strings.Cut(at, " ")
				v.Stale = by + "@" + at + " " // An error is of what the variable was computed by.
			}
		case setpointv1.HistoryChange_HISTORY_CHANGE_REGISTERED:
			if e.GetError() != "" {
				v.Stale = staleLine(&setpointv1.Stale{Revision: e.GetRevision(), Cause: e.GetName(), Error: e.GetError()})
			}
		}
		told[e.GetName()] = v
		if e.GetChange() == setpointv1.HistoryChange_HISTORY_CHANGE_DELETED {
			delete(told, e.GetName())
		}
	}
	are := map[string]replayed{}
	for _, v := range now {
		are[v.GetName()] = replayed{v.GetVersion(), v.GetValue().GetInteger(), staleLine(v.GetStale())}
	}
	if diff := gocmp.Diff(told, are); diff != "" {
		t.Fatalf("variables (-as the history tells +got):\n%s", diff)
	}
}

// variables are all of the session's.
func (r *graphRun) variables(t graphT) []*setpointv1.Variable {
	t.Helper()
	var all []*setpointv1.Variable
	req := &setpointv1.ListVariablesRequest{SessionId: r.session, PageSize: 7}
	for {
		page, err := r.clients[0].Variables.ListVariables(r.b.ctx, req)
		if err != nil {
			t.Fatalf("list variables: %v", err)
		}
		all = append(all, page.GetVariables()...)
		if req.PageToken = page.GetNextPageToken(); req.PageToken == "" {
			return all
		}
	}
}

// wantState checks the variables of now against the model's, and the derived ones against their expressions.
func wantState(t graphT, s graphState, now []*setpointv1.Variable) {
	t.Helper()
	var lines []string
	values := map[string]int64{}
	for _, v := range now {
		lines = append(lines, variableLine(v))
		values[v.GetName()] = v.GetValue().GetInteger()
	}
	if diff := gocmp.Diff(s.text(), strings.Join(lines, "\n")); diff != "" {
		t.Fatalf("variables (-model +got):\n%s", diff)
	}
	for _, v := range now {
		expression := s[v.GetName()].expression
		if expression == nil || v.GetStale() != nil {
			continue
		}
		needs := map[string]int64{}
		for _, need := range v.GetDependsOn() {
			needs[need] = values[need]
		}
		want, problem := expression.compute(needs)
		if got := v.GetValue().GetInteger(); want != got || problem != "" {
			t.Fatalf("%s is %d and not stale; %s of %v is %d %s", v.GetName(), got, expression, needs, want, problem)
		}
	}
}

// wantEdges checks the edges in the database: they are the model's, the marks of variables say where there are some, and
// none can be reached from itself.
func (r *graphRun) wantEdges(t graphT, s graphState) {
	t.Helper()
	needs := r.edges(t)
	want := map[string][]string{}
	for name := range s {
		if of := s.needsOf(name); len(of) > 0 {
			want[name] = of
		}
	}
	if diff := gocmp.Diff(want, needs); diff != "" {
		t.Fatalf("edges (-model +got):\n%s", diff)
	}
	wantAcyclic(t, needs)
	rows, err := r.b.sql.Query(r.b.ctx, `select name, has_dependents, has_dependencies from setpoint.variables
		where session_id = $1`, r.session)
	if err != nil {
		t.Fatalf("read the marks: %v", err)
	}
	defer rows.Close()
	for rows.Next() {
		var name string
		var dependents, dependencies bool
		if err := rows.Scan(&name, &dependents, &dependencies); err != nil {
			t.Fatalf("read the marks: %v", err)
		}
		if dependents != (len(s.dependents(name)) > 0) || dependencies != (len(s[name].needs) > 0) {
			t.Fatalf("%s has dependents %q and dependencies %q, but is marked with %t and %t", name, s.dependents(name),
				s.needsOf(name), dependents, dependencies)
		}
	}
}

// edges are those in the database: what each variable depends on, by name.
func (r *graphRun) edges(t graphT) map[string][]string {
	t.Helper()
	rows, err := r.b.sql.Query(r.b.ctx, `select a.name, b.name from setpoint.dependencies e
		join setpoint.variables a on a.session_id = e.session_id and a.variable_id = e.dependent_id
		join setpoint.variables b on b.session_id = e.session_id and b.variable_id = e.dependency_id
		where e.session_id = $1 order by a.name, b.name`, r.session)
	if err != nil {
		t.Fatalf("read the edges: %v", err)
	}
	defer rows.Close()
	needs := map[string][]string{}
	for rows.Next() {
		var dependent, dependency string
		if err := rows.Scan(&dependent, &dependency); err != nil {
			t.Fatalf("read the edges: %v", err)
		}
		needs[dependent] = append(needs[dependent], dependency)
	}
	return needs
}

func wantAcyclic(t graphT, needs map[string][]string) {
	t.Helper()
	const entered, left = 1, 2
	state := map[string]int{}
	var visit func(name string)
	visit = func(name string) {
		state[name] = entered
		for _, need := range needs[name] {
			switch state[need] {
			case entered:
				t.Fatalf("a cycle goes through %s → %s", name, need)
			case 0:
				visit(need)
			}
		}
		state[name] = left
	}
	for name := range needs {
		if state[name] == 0 {
			visit(name)
		}
	}
}

func relatedLine(v *setpointv1.RelatedVariable) string {
	return fmt.Sprintf("%s %s v%d %s direct=%t%s", v.GetName(), v.GetVariableId(), v.GetVersion(), v.GetExpression(), v.GetDirect(),
		staleLine(v.GetStale()))
}

func (s graphState) relatedLines(names []string, direct func(string) bool) []string {
	var lines []string
	for _, name := range names {
		v := s[name]
		line := fmt.Sprintf("%s %s v%d %s direct=%t", name, v.id, v.version, v.expression, direct(name))
		if v.stale != (graphCause{}) {
			line += fmt.Sprintf(" stale by %s %s", v.stale, v.problem)
		}
		lines = append(lines, line)
	}
	return lines
}

// related reads all pages of one of the lists of a variable's relatives.
func (r *graphRun) related(t graphT, name string, dependents, transitive bool, pageSize int32) []string {
	t.Helper()
	var lines []string
	for token := ""; ; {
		var page []*setpointv1.RelatedVariable
		var err error
		if dependents {
			var p *setpointv1.ListDependentsResponse
			p, err = r.clients[0].Dependencies.ListDependents(r.b.ctx, &setpointv1.ListDependentsRequest{
				SessionId: r.session, Variable: name, Transitive: transitive, PageSize: pageSize, PageToken: token,
			})
			page, token = p.GetDependents(), p.GetNextPageToken()
		} else {
			var p *setpointv1.ListDependenciesResponse
			p, err = r.clients[0].Dependencies.ListDependencies(r.b.ctx, &setpointv1.ListDependenciesRequest{
				SessionId: r.session, Variable: name, Transitive: transitive, PageSize: pageSize, PageToken: token,
			})
			page, token = p.GetDependencies(), p.GetNextPageToken()
		}
		if err != nil {
			t.Fatalf("list the relatives of %s: %v", name, err)
		}
		for _, v := range page {
			lines = append(lines, relatedLine(v))
		}
		if token == "" {
			return lines
		}
	}
}

// wantGraph checks the lists, the order of an update, and the graph.
func (r *graphRun) wantGraph(t graphT, s graphState, pageSize int32) {
	t.Helper()
	compare := func(what string, want, got []string) {
		t.Helper()
		if diff := gocmp.Diff(want, got); diff != "" {
			t.Fatalf("%s (-model +got):\n%s", what, diff)
		}
	}
	for i, name := range slices.Sorted(maps.Keys(s)) {
		dependents, transitive := i%2 == 0, i/2%2 == int(pageSize)%2 // Of each variable one of the four lists.
		direct, next := s.needsOf(name), s.needsOf
		if dependents {
			direct, next = s.dependents(name), s.dependents
		}
		related := direct
		if transitive {
			related = slices.Sorted(maps.Keys(reach([]string{name}, next)))
		}
		compare(fmt.Sprintf("relatives of %s, dependents %t, transitive %t", name, dependents, transitive),
			s.relatedLines(related, func(other string) bool { return slices.Contains(direct, other) }),
			r.related(t, name, dependents, transitive, pageSize))
		order, err := r.clients[0].Dependencies.GetUpdateOrder(r.b.ctx, &setpointv1.GetUpdateOrderRequest{
			SessionId: r.session, Variable: name,
		})
		if err != nil {
			t.Fatalf("get the update order: %v", err)
		}
		var got []string
		for _, v := range order.GetVariables() {
			got = append(got, relatedLine(v))
		}
		want := s.relatedLines(s.order(reach([]string{name}, s.dependents)), func(other string) bool {
			return slices.Contains(s.dependents(name), other)
		})
		compare("update order of "+name, want, got)
	}
	for _, unconnected := range []bool{false, true} {
		var want []string
		for _, name := range slices.Sorted(maps.Keys(s)) {
			if unconnected || len(s[name].needs) > 0 || len(s.dependents(name)) > 0 {
				want = append(want, s.relatedLines([]string{name}, func(string) bool { return false })[0]+
					fmt.Sprintf(" needs %q", s.needsOf(name)))
			}
		}
		compare("graph", want, r.graph(t, unconnected, pageSize))
	}
}

func (r *graphRun) graph(t graphT, unconnected bool, pageSize int32) []string {
	t.Helper()
	req := &setpointv1.GetGraphRequest{SessionId: r.session, IncludeUnconnected: unconnected, PageSize: pageSize}
	var lines []string
	for {
		page, err := r.clients[0].Dependencies.GetGraph(r.b.ctx, req)
		if err != nil {
			t.Fatalf("get the graph: %v", err)
		}
		for _, n := range page.GetNodes() {
			lines = append(lines, relatedLine(&setpointv1.RelatedVariable{
				VariableId: n.GetVariableId(), Name: n.GetName(), Version: n.GetVersion(), Expression: n.GetExpression(),
				Stale: n.GetStale(),
			})+fmt.Sprintf(" needs %q", n.GetDependsOn()))
		}
		if req.PageToken = page.GetNextPageToken(); req.PageToken == "" {
			return lines
		}
	}
}

// wantSnapshots checks the snapshots at every revision, and at the time of each.
func (r *graphRun) wantSnapshots(t graphT, world *graphWorld, history []*setpointv1.HistoryEntry, pageSize int32) {
	t.Helper()
	for revision := range world.at {
		req := &setpointv1.GetSnapshotRequest{
			SessionId: r.session, PageSize: pageSize, At: &setpointv1.GetSnapshotRequest_Revision{Revision: int64(revision)},
		}
		r.wantSnapshot(t, world, req, world.settled[revision])
		if revision == 0 {
			continue
		}
		at := history[revision-1].GetChangedAt().AsTime()
		if revision < len(history) && history[revision].GetChangedAt().AsTime().Equal(at) {
			continue // Of several changes at one time, that time is the last's.
		}
		if world.settled[revision] != int64(revision) {
			t.Fatalf("a transaction that ends at revision %d is not all at one time", world.settled[revision])
		}
		req = &setpointv1.GetSnapshotRequest{
			SessionId: r.session, PageSize: pageSize, At: &setpointv1.GetSnapshotRequest_Time{Time: timestamppb.New(at)},
		}
		r.wantSnapshot(t, world, req, int64(revision))
	}
}

func (r *graphRun) wantSnapshot(t graphT, world *graphWorld, req *setpointv1.GetSnapshotRequest, revision int64) {
	t.Helper()
	got, at, err := r.b.snapshot(req)
	if err != nil {
		t.Fatalf("get a snapshot: %v", err)
	}
	want := map[string]state{}
	for name, v := range world.at[revision] {
		want[name] = state{ID: v.id, Version: v.version, Value: v.value, Metadata: v.metadata}
	}
	if diff := gocmp.Diff(want, got); diff != "" || at != revision {
		t.Fatalf("snapshot at %v is as of %d, want %d (-model +got):\n%s", req.GetAt(), at, revision, diff)
	}
}

// want checks everything that was done.
func (r *graphRun) want(t graphT, pageSize int32) *graphWorld {
	t.Helper()
	history := r.history(t, max(pageSize, 20))
	world := r.model(t, history)
	wantHistory(t, world, history)
	now := r.variables(t)
	wantState(t, world.now(), now)
	wantReplay(t, history, now)
	r.wantEdges(t, world.now())
	r.wantGraph(t, world.now(), pageSize)
	r.wantSnapshots(t, world, history, pageSize)
	return world
}

// second is a client of another server on the same database.
func (b *bundle) second() *client.Client {
	b.t.Helper()
	other := *b
	other.addr = b.startServer()
	return other.dial()
}

// startServer starts another server on the same database.
func (b *bundle) startServer() string {
	b.t.Helper()
	s, err := server.Start(b.ctx, server.Config{
		GRPCAddr: "127.0.0.1:0", Limits: service.DefaultLimits, Database: db.Config{URL: b.url, MaxConns: 8},
		Log: slog.New(slog.NewTextHandler(b.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { s.Stop(context.Background()) })
	return s.GRPCAddr()
}

// Whatever several callers of two servers do at once to variables that depend on each other: there is an order of the calls
// in which the model answers each as the server did, and says what the session is and was.
func TestGraphIsTheModels(t *testing.T) {
	t.Parallel()
	b := setup(t)
	clients := []*client.Client{b.Client, b.second()}
	all := graphNames{names: []string{"a", "b", "c", "d", "e", "f", "g h", "i"}, stray: 12}
	orderly := graphNames{names: all.names, stray: 2}
	round := 0
	rapid.Check(t, func(t *rapid.T) {
		round++
		r := &graphRun{b: b, session: fmt.Sprintf("round%d", round), clients: clients}
		b.session(r.session)
		first := graphRegister{Batch: true, Items: orderly.registrations(t, all.names)}
		calls := rapid.SliceOfN(rapid.SliceOfN(rapid.Custom(all.call), 4, 9), 1, 3).Draw(t, "calls of each caller")
		rehearsed := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) graphCall {
			if graphOften(t, 30, "session") {
				return graphRollbackSession{To: rapid.Int64Range(0, 30).Draw(t, "to")}
			}
			return all.set(t, false)
		}), 0, 2).Draw(t, "rehearsed")
		r.do(first, "first", 0)
		r.together(calls)
		r.rehearse(t, rehearsed)
		r.want(t, rapid.Int32Range(3, 9).Draw(t, "page size"))
	})
}
