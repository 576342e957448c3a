package service_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	gocmp "github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

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
