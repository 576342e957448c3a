package service_test

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
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
