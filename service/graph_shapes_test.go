package service_test

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/server"
	"github.com/setpointdb/setpoint/internal/testkit"
)

// shapeVariable is a variable of a graph of a shape. It is derived if it has an expression; value is then its value.
type shapeVariable struct {
	name       string
	needs      []string
	expression string
	value      func(values map[string]int64) int64
}

// shapeGraph is a graph: its roots, and what depends on them, each after what it needs.
type shapeGraph struct {
	roots      []string
	dependents []shapeVariable
}

// shapes make graphs of a size.
var shapes = map[string]struct {
	small, large int
	graph        func(n int) shapeGraph
}{
	"chain":           {10, 1000, func(n int) shapeGraph { return chainOf(n, true) }},
	"chain of plain":  {10, 1000, func(n int) shapeGraph { return chainOf(n, false) }},
	"wide":            {10, 1000, func(n int) shapeGraph { return wideOf(n, true) }},
	"wide of plain":   {10, 1000, func(n int) shapeGraph { return wideOf(n, false) }},
	"fork":            {4, 499, forkOf},
	"join":            {4, 500, joinOf},
	"diamonds":        {3, 300, diamondsOf},
	"layers":          {3, 20, func(n int) shapeGraph { return layersOf(n, true) }},
	"layers of plain": {3, 20, func(n int) shapeGraph { return layersOf(n, false) }},
	"many roots":      {3, 300, manyRootsOf},
}

// shapeOf is a variable that depends on others; if it is derived, it is their sum and a number, modulo 1,000.
func shapeOf(derived bool, name string, add int64, needs ...string) shapeVariable {
	v := shapeVariable{name: name, needs: needs}
	if !derived {
		return v
	}
	terms := make([]string, len(needs))
	for i, need := range needs {
		terms[i] = fmt.Sprintf("deps[%q]", need)
	}
	v.expression = fmt.Sprintf("(%s + %d) %% 1000", strings.Join(terms, " + "), add)
	v.value = func(values map[string]int64) int64 {
		sum := add
		for _, need := range needs {
			sum += values[need]
		}
		return sum % 1000
	}
	return v
}

func chainOf(n int, derived bool) shapeGraph {
	all := names("v", n+1)
	g := shapeGraph{roots: all[:1]}
	for i := range n {
		g.dependents = append(g.dependents, shapeOf(derived, all[i+1], 1, all[i]))
	}
	return g
}

func wideOf(n int, derived bool) shapeGraph {
	g := shapeGraph{roots: []string{"root"}}
	for i, name := range names("v", n) {
		g.dependents = append(g.dependents, shapeOf(derived, name, int64(i), "root"))
	}
	return g
}

// forkOf is a root with a chain of derived variables and one of plain ones.
func forkOf(n int) shapeGraph {
	g := shapeGraph{roots: []string{"root"}}
	for _, side := range []string{"l", "r"} {
		before := "root"
		for _, name := range names(side, n) {
			g.dependents = append(g.dependents, shapeOf(side == "l", name, 3, before))
			before = name
		}
	}
	return g
}

// joinOf is one derived and one plain variable that depend on many roots.
func joinOf(n int) shapeGraph {
	g := shapeGraph{roots: names("root", n)}
	g.dependents = []shapeVariable{
		{name: "derived", needs: g.roots, expression: "size(deps) + root0000", value: func(values map[string]int64) int64 {
			return int64(n) + values["root0000"]
		}},
		{name: "plain", needs: g.roots},
	}
	return g
}

// diamondsOf is a chain of diamonds.
func diamondsOf(n int) shapeGraph {
	g := shapeGraph{roots: []string{"root"}}
	top := "root"
	for i := range n {
		l, r, end := fmt.Sprintf("l%d", i), fmt.Sprintf("r%d", i), fmt.Sprintf("end%d", i)
		g.dependents = append(g.dependents, shapeOf(true, l, 1, top), shapeOf(true, r, 7, top), shapeOf(true, end, 1, l, r))
		top = end
	}
	return g
}

func layerName(layer, place int) string { return fmt.Sprintf("l%02d.%02d", layer, place) }

// layersOf is n layers of n variables, each of which depends on all of the layer before. The first are the roots. The ways
// through are n to the power of n.
func layersOf(n int, derived bool) shapeGraph {
	var g shapeGraph
	for layer := range n {
		var needs []string
		for place := range n {
			needs = append(needs, layerName(layer-1, place))
		}
		for place := range n {
			if layer == 0 {
				g.roots = append(g.roots, layerName(0, place))
				continue
			}
			g.dependents = append(g.dependents, shapeOf(derived, layerName(layer, place), int64(place), needs...))
		}
	}
	return g
}

// manyRootsOf is many roots with a derived variable each, and others, derived or not, that depend on two of these.
func manyRootsOf(n int) shapeGraph {
	g := shapeGraph{roots: names("root", n)}
	for i, root := range g.roots {
		own := fmt.Sprintf("own%04d", i)
		g.dependents = append(g.dependents, shapeOf(true, own, 5, root))
		if i > 0 {
			before := fmt.Sprintf("own%04d", i-1)
			g.dependents = append(g.dependents, shapeOf(i%2 == 0, fmt.Sprintf("both%04d", i), 0, own, before))
		}
	}
	return g
}

// order is the order of an update, without the roots: each after what it needs, by name where there is a choice.
func (g shapeGraph) order() []string {
	waits, follow := map[string]int{}, map[string][]string{}
	var out []string
	for _, v := range g.dependents {
		for _, need := range v.needs {
			waits[v.name]++
			follow[need] = append(follow[need], v.name)
		}
	}
	for ready := slices.Clone(g.roots); len(ready) > 0; {
		first := slices.Index(ready, slices.Min(ready))
		name := ready[first]
		ready = slices.Delete(ready, first, first+1)
		if !slices.Contains(g.roots, name) {
			out = append(out, name)
		}
		for _, next := range follow[name] {
			if waits[next]--; waits[next] == 0 {
				ready = append(ready, next)
			}
		}
	}
	return out
}

// values are those of all variables for a value of the roots; plain dependents stay 0.
func (g shapeGraph) values(roots int64) map[string]int64 {
	values := map[string]int64{}
	for _, root := range g.roots {
		values[root] = roots
	}
	for _, v := range g.dependents {
		values[v.name] = 0
		if v.value != nil {
			values[v.name] = v.value(values)
		}
	}
	return values
}

// registrations are those of a graph, the dependents before what they depend on.
func (g shapeGraph) registrations() []*setpointv1.VariableRegistration {
	var out []*setpointv1.VariableRegistration
	for _, root := range g.roots {
		out = append(out, &setpointv1.VariableRegistration{
			Name: root, Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Value: client.Integer(0),
		})
	}
	for _, v := range g.dependents {
		r := &setpointv1.VariableRegistration{
			Name: v.name, Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Expression: v.expression, DependsOn: v.needs,
		}
		if v.expression == "" {
			r.Value = client.Integer(0)
		}
		out = append(out, r)
	}
	slices.Reverse(out)
	return out
}

// build registers a graph: the roots, and then all others in one batch.
func (m *measured) build(t *testing.T, g shapeGraph) {
	t.Helper()
	all := g.registrations()
	m.add(t, all[len(g.dependents):])
	m.add(t, all[:len(g.dependents)])
}

func (m *measured) add(t *testing.T, registrations []*setpointv1.VariableRegistration) {
	t.Helper()
	if _, err := m.BatchRegisterVariables(m.ctx, &setpointv1.BatchRegisterVariablesRequest{
		SessionId: "s", Atomic: true, Registrations: registrations,
	}); err != nil {
		t.Fatal(err)
	}
}

// setAll sets variables, in one call.
func (m *measured) setAll(variables []string, value int64) (*setpointv1.BatchSetVariablesResponse, error) {
	req := &setpointv1.BatchSetVariablesRequest{SessionId: "s", Atomic: true}
	for _, name := range variables {
		req.Writes = append(req.Writes, &setpointv1.VariableWrite{Variable: name, Value: client.Integer(value)})
	}
	return m.BatchSetVariables(m.ctx, req)
}

// count asks the database, past the relay.
func (m *measured) count(t *testing.T, pool *pgxpool.Pool, sql string, args ...any) int64 {
	t.Helper()
	var n int64
	if err := pool.QueryRow(m.ctx, sql, args...).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

const revisionOfS = `select revision from setpoint.sessions where session_id = 's'`

// A set of the roots of a graph of any shape has all that depends on them follow, each once and in order: with a row for
// each, and no other, in as many statements for a large graph as for a small one.
func TestGraphShapes(t *testing.T) {
	t.Parallel()
	for name, shape := range shapes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			small := costsOfShape(t, shape.graph(shape.small))
			large := costsOfShape(t, shape.graph(shape.large))
			equal(t, "round trips and statements of a small graph and of a large one", small, large)
		})
	}
}

// costsOfShape is what it costs to set the roots to a value, again to it, and to another one: round trips and statements.
func costsOfShape(t *testing.T, g shapeGraph) [][2]int64 {
	t.Helper()
	m := measure(t)
	pool := testkit.Pool(t, m.url)
	m.build(t, chainOf(20, true).elsewhere()) // Is not to be touched.
	m.build(t, g)
	if _, err := m.setAll(g.roots, 0); err != nil { // Learns the definitions; disturbs nobody.
		t.Fatal(err)
	}
	var costs [][2]int64
	var before, stale int64
	for version, value := range []int64{7, 7, 4} {
		m.awake(t)
		before = m.count(t, pool, revisionOfS)
		var answer *setpointv1.BatchSetVariablesResponse
		trips, statements := m.cost(t, func() error {
			var err error
			answer, err = m.setAll(g.roots, value)
			return err
		})
		if version > 0 { // The first has statements prepared.
			costs = append(costs, [2]int64{trips, statements})
		}
		recomputed, marked := g.follow([]int64{0, 7, 7}[version], value, version)
		equal(t, "recomputed", recomputed, recomputedText(answer.GetRecomputed()))
		if version > 0 {
			marked = nil // They are stale already.
		} else {
			stale = before + int64(len(g.roots))
		}
		equal(t, "stale", marked, staleText(answer.GetStale()))
		rows := int64(len(g.roots) + len(recomputed) + len(marked))
		after := m.count(t, pool, revisionOfS)
		touched := m.count(t, pool, `select count(*) from setpoint.variables where session_id = 's' and revision > $1`, before)
		if after != before+rows || touched != rows {
			t.Errorf("%d history rows and %d variables changed, want %d", after-before, touched, rows)
		}
	}
	wantShape(t, m, g, g.values(4), stale)
	if n := m.count(t, pool, causeless); n != 0 {
		t.Errorf("%d rows follow from what is no set before them", n)
	}
	return costs
}

// causeless counts the rows that name a cause that is none.
const causeless = `select count(*) from setpoint.history h where h.session_id = 's' and h.cause_revision is not null
	and not exists (select from setpoint.history c where c.session_id = 's' and c.revision = h.cause_revision
		and c.revision < h.revision and c.variable_id = h.cause_id and c.name = h.cause and c.change = 'set')`

// follow is what a change of the roots' value has recomputed, and what depends on what changes and is not derived, in order.
// Derived variables have had a version for each set before that changed something.
func (g shapeGraph) follow(from, to int64, sets int) ([]string, []string) {
	was, is := g.values(from), g.values(to)
	plain := map[string]bool{}
	for _, v := range g.dependents {
		plain[v.name] = v.expression == ""
	}
	var recomputed, marked []string
	for _, name := range g.order() {
		switch {
		case from == to:
		case plain[name]:
			marked = append(marked, name)
		case was[name] != is[name]:
			recomputed = append(recomputed, fmt.Sprintf("%s=%d v%d", name, is[name], 1+sets/2))
		}
	}
	return recomputed, marked
}

// first is the place of the first root that reaches each variable.
func (g shapeGraph) first() map[string]int {
	first := map[string]int{}
	for i, root := range g.roots {
		first[root] = i
	}
	for _, v := range g.dependents {
		first[v.name] = len(g.roots)
		for _, need := range v.needs {
			first[v.name] = min(first[v.name], first[need])
		}
	}
	return first
}

// elsewhere is the graph under other names.
func (g shapeGraph) elsewhere() shapeGraph {
	other := shapeGraph{roots: []string{"else." + g.roots[0]}}
	for _, v := range g.dependents {
		other.dependents = append(other.dependents, shapeOf(true, "else."+v.name, 1, "else."+v.needs[0]))
	}
	return other
}

// wantShape checks all values, and that all plain dependents are stale since the first set, by the first root that reaches
// them; the last root's revision is given.
func wantShape(t *testing.T, m *measured, g shapeGraph, want map[string]int64, last int64) {
	t.Helper()
	got, first := map[string]int64{}, g.first()
	for token := ""; ; {
		page, err := m.ListVariables(m.ctx, &setpointv1.ListVariablesRequest{SessionId: "s", PageSize: 1000, PageToken: token})
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range page.GetVariables() {
			if _, ours := want[v.GetName()]; ours {
				got[v.GetName()] = v.GetValue().GetInteger()
			}
			stale := v.GetStale()
			switch plain := v.GetExpression() == "" && len(v.GetDependsOn()) > 0; {
			case !plain && stale == nil:
			case !plain, stale.GetCause() != g.roots[first[v.GetName()]],
				stale.GetRevision() != last-int64(len(g.roots)-1-first[v.GetName()]):
				t.Errorf("%s is stale by %v", v.GetName(), stale)
			}
		}
		if token = page.GetNextPageToken(); token == "" {
			break
		}
	}
	equal(t, "values", want, got)
}

// graphCalls are the other calls that have dependents follow, for a graph that is wide.
var graphCalls = []struct {
	name string
	do   func(m *measured) error
}{
	{"rollback", func(m *measured) error {
		_, err := m.RollbackVariable(m.ctx, &setpointv1.RollbackVariableRequest{SessionId: "s", Variable: "root", Version: 0})
		return err
	}},
	{"dry run", func(m *measured) error {
		_, err := m.SetVariable(m.ctx, &setpointv1.SetVariableRequest{
			SessionId: "s", Variable: "root", Value: client.Integer(77), DryRun: true,
		})
		return err
	}},
	{"update", func(m *measured) error {
		_, err := m.UpdateVariable(m.ctx, &setpointv1.UpdateVariableRequest{
			SessionId: "s", Variable: "root", Expression: ptr("other + 20"),
		})
		return err
	}},
	{"end of the derivation", func(m *measured) error {
		_, err := m.UpdateVariable(m.ctx, &setpointv1.UpdateVariableRequest{
			SessionId: "s", Variable: "root", Expression: ptr(""), ClearDependsOn: true,
		})
		return err
	}},
	{"rollback of the session", func(m *measured) error {
		_, err := m.RollbackSession(m.ctx, &setpointv1.RollbackSessionRequest{
			SessionId: "s", To: &setpointv1.RollbackSessionRequest_Revision{Revision: 2},
		})
		return err
	}},
	{"refused edge", func(m *measured) error {
		_, err := m.AddDependency(m.ctx, &setpointv1.AddDependencyRequest{SessionId: "s", Dependent: "root", Dependency: "v0003"})
		if err == nil || !strings.Contains(err.Error(), "WOULD_CREATE_CYCLE") {
			return fmt.Errorf("want a refusal, got %w", err)
		}
		return nil
	}},
	{"edge", func(m *measured) error {
		_, err := m.AddDependency(m.ctx, &setpointv1.AddDependencyRequest{SessionId: "s", Dependent: "root", Dependency: "other"})
		return err
	}},
	{"deletion", func(m *measured) error {
		_, err := m.DeleteVariable(m.ctx, &setpointv1.DeleteVariableRequest{SessionId: "s", Variable: "root", Cascade: true})
		return err
	}},
}

// Every call that has dependents follow costs as much for a thousand of them as for ten.
func TestGraphCallsCostTheSame(t *testing.T) {
	t.Parallel()
	costs := map[int]map[string][2]int64{}
	for _, n := range []int{10, 1000} {
		m := measure(t)
		m.add(t, shapeGraph{roots: []string{"other", "root"}}.registrations())
		m.add(t, wideOf(n, true).registrations()[:n])
		costs[n] = map[string][2]int64{}
		if _, err := m.setAll([]string{"root"}, 1); err != nil {
			t.Fatal(err)
		}
		for _, call := range graphCalls {
			m.awake(t)
			trips, statements := m.cost(t, func() error { return call.do(m) })
			costs[n][call.name] = [2]int64{trips, statements}
		}
	}
	equal(t, "round trips and statements of 10 and of 1,000 dependents", costs[10], costs[1000])
	t.Logf("round trips and statements: %v", costs[10])
}

// In a session with a large graph, a set that nobody has to follow costs what it costs without one: of a variable without
// edges; of one without dependents; of one that has many, to the value that it has.
func TestGraphCostsOthersNothing(t *testing.T) {
	t.Parallel()
	m := measure(t)
	m.build(t, layersOf(20, true))
	m.add(t, []*setpointv1.VariableRegistration{
		{Name: "apart", Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Value: client.Integer(0)},
		{
			Name: "last", Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Value: client.Integer(0),
			DependsOn: []string{layerName(19, 0)},
		},
	})
	set := func(name string, v int64) func() error {
		return func() error {
			_, err := m.SetVariable(m.ctx, &setpointv1.SetVariableRequest{SessionId: "s", Variable: name, Value: client.Integer(v)})
			return err
		}
	}
	get := func() error {
		_, err := m.GetVariable(m.ctx, &setpointv1.GetVariableRequest{SessionId: "s", Variable: layerName(0, 0)})
		return err
	}
	for _, name := range []string{"apart", "last", layerName(0, 0)} {
		m.cost(t, set(name, 1))
	}
	m.cost(t, get)
	for what, test := range map[string]struct {
		call              func() error
		trips, statements int64
	}{
		"a set without edges":      {set("apart", 2), 1, 2},
		"a set without dependents": {set("last", 2), 1, 2},
		"a set without a change":   {set(layerName(0, 0), 1), 1, 2},
		"a get":                    {get, 1, 1},
	} {
		m.awake(t)
		if trips, statements := m.cost(t, test.call); trips != test.trips || statements != test.statements {
			t.Errorf("%s: %d round trips and %d statements, want %d and %d", what, trips, statements, test.trips, test.statements)
		}
	}
}

// The ways through twenty layers of twenty variables are more than can be walked; each variable is, once.
func TestGraphOfLayersIsWalkedOnce(t *testing.T) {
	t.Parallel()
	const n = 20
	for _, derived := range []bool{true, false} {
		t.Run(fmt.Sprintf("derived %t", derived), func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			g := layersOf(n, derived)
			req := &setpointv1.BatchRegisterVariablesRequest{SessionId: "s", Atomic: true, Registrations: g.registrations()}
			if _, err := b.Variables.BatchRegisterVariables(b.ctx, req); err != nil {
				t.Fatal(err)
			}
			r := &graphRun{b: b, session: "s", clients: []*client.Client{b.Client}}
			var above []string
			for _, v := range g.dependents {
				above = append(above, v.name)
			}
			below := slices.Concat(g.roots, above[:len(above)-n])
			equal(t, "all dependents", above, firstWords(r.related(t, layerName(0, 3), true, true, 150)))
			equal(t, "all dependencies", below, firstWords(r.related(t, layerName(n-1, 3), false, true, 150)))
			equal(t, "dependents", above[n:2*n], firstWords(r.related(t, layerName(1, 3), true, false, 7)))
			equal(t, "dependencies", g.roots, firstWords(r.related(t, layerName(1, 3), false, false, 7)))
			order, err := b.Dependencies.GetUpdateOrder(b.ctx, &setpointv1.GetUpdateOrderRequest{
				SessionId: "s", Variable: layerName(0, 3),
			})
			if err != nil {
				t.Fatal(err)
			}
			var ordered []string
			for _, v := range order.GetVariables() {
				ordered = append(ordered, v.GetName())
				if v.GetDirect() != strings.HasPrefix(v.GetName(), "l01.") {
					t.Errorf("%s: direct is %t", v.GetName(), v.GetDirect())
				}
			}
			equal(t, "order", above, ordered)
			equal(t, "graph", slices.Concat(g.roots, above), firstWords(r.graph(t, false, 170)))
			wantRefusedAcross(t, b, n)
		})
	}
}

func firstWords(lines []string) []string {
	var out []string
	for _, line := range lines {
		word, _, _ := strings.Cut(line, " ")
		out = append(out, word)
	}
	return out
}

// wantRefusedAcross has an edge from the first layer to the last refused, with a shortest path.
func wantRefusedAcross(t *testing.T, b *bundle, n int) {
	t.Helper()
	before := b.revision()
	err := addLink(b, b.Client, layerName(0, 5), layerName(n-1, 7))
	path := pathOf(wantReason(t, err, setpointv1.ErrorReason_WOULD_CREATE_CYCLE).Metadata)
	if len(path) != n+1 || path[0] != layerName(0, 5) || path[1] != layerName(n-1, 7) || path[n] != path[0] {
		t.Fatalf("path %q", path)
	}
	for i, name := range path[1:n] {
		if !strings.HasPrefix(name, fmt.Sprintf("l%02d.", n-1-i)) {
			t.Errorf("path %q", path)
		}
	}
	if after := b.revision(); after != before {
		t.Errorf("the refused edge wrote %d rows", after-before)
	}
}

// Of a cycle of a thousand variables the path tells both ends.
func TestGraphTellsBothEndsOfALongCycle(t *testing.T) {
	t.Parallel()
	b := setup(t)
	req := &setpointv1.BatchRegisterVariablesRequest{SessionId: "s", Atomic: true, Registrations: chainOf(999, true).registrations()}
	if _, err := b.Variables.BatchRegisterVariables(b.ctx, req); err != nil {
		t.Fatal(err)
	}
	b.integer("before")
	b.edge("v0000", "before")
	err := addLink(b, b.Client, "before", "v0999")
	metadata := wantReason(t, err, setpointv1.ErrorReason_WOULD_CREATE_CYCLE).Metadata
	path := pathOf(metadata)
	last := len(path) - 1
	if last < 10 || path[0] != "before" || path[1] != "v0999" || path[last] != "before" || path[last-1] != "v0000" ||
		metadata["path_omitted"] != fmt.Sprint(1001-last) {
		t.Errorf("path %q, without %s", path, metadata["path_omitted"])
	}
	after, err := strconv.Atoi(metadata["path_omitted_after"])
	if err != nil || path[after-1] != fmt.Sprintf("v%04d", 1001-after) || path[after] != fmt.Sprintf("v%04d", last-1-after) {
		t.Errorf("path %q, which lacks some after %s", path, metadata["path_omitted_after"])
	}
}

// A chain that breaks in the middle stops there, and goes on when it is whole again.
func TestGraphChainStopsWhereItBreaks(t *testing.T) {
	t.Parallel()
	b := setup(t)
	g := chainOf(900, true)
	g.dependents[449] = shapeVariable{name: "v0450", expression: "v0449 + 1 + 0 / (v0000 - 5)"}
	req := &setpointv1.BatchRegisterVariablesRequest{SessionId: "s", Atomic: true, Registrations: g.registrations()}
	if _, err := b.Variables.BatchRegisterVariables(b.ctx, req); err != nil {
		t.Fatal(err)
	}
	b.dependent("of the last", "v0900")
	b.dependent("of the middle", "v0450")
	before := b.revision()
	broken := b.set("v0000", client.Integer(5)).GetRecomputed()
	if n := len(broken); n != 449 || broken[n-1].GetVariable() != "v0449" {
		t.Errorf("%d recomputed", n)
	}
	if rows := b.revision() - before; rows != 1+449+2 {
		t.Errorf("%d rows", rows)
	}
	stale := fmt.Sprintf(" stale by v0000 at %d", before+1)
	for name, want := range map[string]string{
		"v0449": "454 v1", "v0451": "451 v0", "v0900": "900 v0", "of the last": "0 v0", "of the middle": "0 v0" + stale,
	} {
		equal(t, name, want, b.state(name))
	}
	if got := b.state("v0450"); !strings.HasPrefix(got, "450 v0"+stale) || !strings.Contains(got, zeroProblem) {
		t.Errorf("the middle is %s", got)
	}
	whole := b.set("v0000", client.Integer(6))
	if n := len(whole.GetRecomputed()); n != 900 {
		t.Errorf("%d recomputed", n)
	}
	equal(t, "stale", []string{"of the last"}, staleText(whole.GetStale()))
	equal(t, "the middle", "456 v1", b.state("v0450"))
	equal(t, "the last", "906 v1", b.state("v0900"))
}

// What a variable of a batch depends on may be refused, for whatever reason and wherever it stands: then so is the variable.
func TestGraphRegistrationsThatNeedRefusedOnes(t *testing.T) {
	t.Parallel()
	item := func(name string, on ...string) *setpointv1.VariableRegistration {
		return &setpointv1.VariableRegistration{
			Name: name, Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Value: client.Integer(0), DependsOn: on,
		}
	}
	derived := item("derived", "after2")
	derived.Expression = "after2 + 1"
	for name, test := range map[string]struct {
		items []*setpointv1.VariableRegistration
		want  []string
	}{
		"after a cycle": {
			[]*setpointv1.VariableRegistration{
				derived, item("after1", "after2"), item("after2", "c1"), item("c1", "c2"), item("c2", "c1"), item("alone"),
			},
			[]string{"VARIABLE_NOT_FOUND", "VARIABLE_NOT_FOUND", "VARIABLE_NOT_FOUND", "WOULD_CREATE_CYCLE", "WOULD_CREATE_CYCLE", ""},
		},
		"on two cycles": {
			[]*setpointv1.VariableRegistration{item("i", "f", "a"), item("f", "b"), item("b", "a"), item("a", "f", "i")},
			[]string{"WOULD_CREATE_CYCLE", "WOULD_CREATE_CYCLE", "WOULD_CREATE_CYCLE", "WOULD_CREATE_CYCLE"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			r, err := b.Variables.BatchRegisterVariables(b.ctx, &setpointv1.BatchRegisterVariablesRequest{
				SessionId: "s", Registrations: test.items,
			})
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, result := range r.GetResults() {
				reason := ""
				if result.GetError() != nil {
					reason = result.GetError().GetReason().String()
				}
				got = append(got, reason)
			}
			equal(t, "reasons", test.want, got)
		})
	}
}

// A variable beyond the limit of a session is refused, and with it those before it that depend on it.
func TestGraphRegistrationsBeyondTheLimit(t *testing.T) {
	t.Parallel()
	b := setup(t, func(c *server.Config) { c.Limits.Variables = 3 })
	req := &setpointv1.BatchRegisterVariablesRequest{SessionId: "s"}
	for _, name := range []string{"a", "b", "c", "d"} {
		r := &setpointv1.VariableRegistration{
			Name: name, Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Value: client.Integer(0),
		}
		if name == "a" {
			r.DependsOn = []string{"d"}
		}
		req.Registrations = append(req.Registrations, r)
	}
	r, err := b.Variables.BatchRegisterVariables(b.ctx, req)
	if err != nil {
		t.Fatal(err)
	}
	registered := map[string]bool{}
	for i, result := range r.GetResults() {
		registered[req.GetRegistrations()[i].GetName()] = result.GetVariable() != nil
	}
	if registered["a"] && !registered["d"] {
		t.Errorf("registered: %v", registered)
	}
	var edges int
	b.row(&edges, `select count(*) from setpoint.dependencies e where not exists (
		select from setpoint.variables v where v.variable_id = e.dependency_id)`)
	if edges != 0 {
		t.Errorf("%d edges to nothing", edges)
	}
}

// A derived variable that has another value than then, or gets another one by the rollback, is not counted as unchanged.
func TestGraphRollbackCountsTheUnchanged(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.integer("a")
	b.integer("same")
	b.derived("d", "a * 2")
	b.derived("same too", "same * 2")
	then := b.revision()
	b.set("a", client.Integer(1))
	r, err := b.History.RollbackSession(b.ctx, &setpointv1.RollbackSessionRequest{
		SessionId: "s", To: &setpointv1.RollbackSessionRequest_Revision{Revision: then},
	})
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "recomputed", []string{"d=0 v2"}, recomputedText(r.GetRecomputed()))
	if len(r.GetRestored()) != 1 || r.GetUnchangedCount() != 2 {
		t.Errorf("%d restored and %d unchanged, want 1 and 2", len(r.GetRestored()), r.GetUnchangedCount())
	}
}
