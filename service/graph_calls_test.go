package service_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// The calls that change a graph: how each is sent, and what the model has become of it.

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
