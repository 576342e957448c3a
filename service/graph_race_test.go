package service_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// graphLink is an edge by the names of its ends.
type graphLink struct{ dependent, dependency string }

// graphLinks is when the edges of a session were there, by its history.
type graphLinks struct {
	t *testing.T
	// since is when each edge that is there came; were is from when to when it was there before.
	since map[graphLink]int64
	were  map[graphLink][][2]int64
	// ends tells of each revision whether a transaction ended with it.
	ends []bool
}

// linksOf follows the history of the session "s". registered is what registered variables depend on, which the history does
// not say. No edge may close a cycle with those that are there when it comes.
func linksOf(b *bundle, registered map[string][]string) *graphLinks {
	b.t.Helper()
	r := &graphRun{b: b, session: "s", clients: []*client.Client{b.Client}}
	l := &graphLinks{t: b.t, since: map[graphLink]int64{}, were: map[graphLink][][2]int64{}, ends: []bool{true}}
	for _, e := range r.history(b.t, 1000) {
		if e.GetCausedBy() != nil {
			l.ends[len(l.ends)-1] = false
		}
		l.ends = append(l.ends, true)
		switch e.GetChange() {
		case setpointv1.HistoryChange_HISTORY_CHANGE_REGISTERED:
			for _, need := range registered[e.GetName()] {
				l.add(graphLink{e.GetName(), need}, e.GetRevision())
			}
		case setpointv1.HistoryChange_HISTORY_CHANGE_DEPENDENCY_ADDED:
			l.add(graphLink{e.GetName(), e.GetDependency()}, e.GetRevision())
		case setpointv1.HistoryChange_HISTORY_CHANGE_DEPENDENCY_REMOVED:
			link := graphLink{e.GetName(), e.GetDependency()}
			from, ok := l.since[link]
			if !ok {
				b.t.Errorf("revision %d removes %v, which is not there", e.GetRevision(), link)
			}
			delete(l.since, link)
			l.were[link] = append(l.were[link], [2]int64{from, e.GetRevision()})
		}
	}
	return l
}

func (l *graphLinks) add(link graphLink, revision int64) {
	l.t.Helper()
	if _, ok := l.since[link]; ok {
		l.t.Errorf("revision %d adds %v again", revision, link)
	}
	needs := l.needs()
	if reach([]string{link.dependency}, func(name string) []string { return needs[name] })[link.dependent] {
		l.t.Errorf("%v at revision %d closes a cycle", link, revision)
	}
	l.since[link] = revision
}

// needs are the edges that are there.
func (l *graphLinks) needs() map[string][]string {
	needs := map[string][]string{}
	for link := range l.since {
		needs[link.dependent] = append(needs[link.dependent], link.dependency)
	}
	for _, of := range needs {
		slices.Sort(of)
	}
	return needs
}

func (l *graphLinks) there(link graphLink, revision int64) bool {
	if since, ok := l.since[link]; ok && since <= revision {
		return true
	}
	return slices.ContainsFunc(l.were[link], func(time [2]int64) bool { return time[0] <= revision && revision < time[1] })
}

// wantRefusal checks the refusal of new dependencies between two revisions: all edges of the cycle that it tells, but the new
// one, were there at one moment.
func (l *graphLinks) wantRefusal(err error, dependent string, dependencies []string, before, after int64) {
	l.t.Helper()
	path := pathOf(wantReason(l.t, err, setpointv1.ErrorReason_WOULD_CREATE_CYCLE).Metadata)
	last := len(path) - 1
	if last < 1 || path[0] != dependent || path[last] != dependent || !slices.Contains(dependencies, path[1]) {
		l.t.Errorf("%s on %q closes the cycle %q", dependent, dependencies, path)
		return
	}
	for revision := before; revision <= after; revision++ {
		there := l.ends[revision]
		for i := 1; i < last && there; i++ {
			there = l.there(graphLink{path[i], path[i+1]}, revision)
		}
		if there {
			return
		}
	}
	l.t.Errorf("between revisions %d and %d the cycle %q was never closed but for its first edge", before, after, path)
}

// wantLinks checks the edges in the database against those of the history.
func (l *graphLinks) wantLinks(b *bundle) {
	l.t.Helper()
	needs := l.needs()
	equal(l.t, "edges", needs, (&graphRun{b: b, session: "s"}).edges(l.t))
	wantAcyclic(l.t, needs)
	wrong := ""
	b.row(&wrong, `select coalesce(string_agg(v.name, ' '), '') from setpoint.variables v where v.session_id = 's' and (
		v.has_dependents <> exists (select from setpoint.dependencies e where e.session_id = 's' and e.dependency_id = v.variable_id)
		or v.has_dependencies <> exists (select from setpoint.dependencies e where e.session_id = 's' and e.dependent_id = v.variable_id))`)
	if wrong != "" {
		l.t.Errorf("wrongly marked: %s", wrong)
	}
}

// linkTry is a call that was to add dependencies.
type linkTry struct {
	dependent     string
	dependencies  []string
	before, after int64
	err           error
}

// integers registers integers at 0 in batches.
func (b *bundle) integers(names ...string) {
	b.t.Helper()
	for some := range slices.Chunk(names, 1000) {
		req := &setpointv1.BatchRegisterVariablesRequest{SessionId: "s", Atomic: true}
		for _, name := range some {
			req.Registrations = append(req.Registrations, &setpointv1.VariableRegistration{
				Name: name, Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Value: client.Integer(0),
			})
		}
		if _, err := b.Variables.BatchRegisterVariables(b.ctx, req); err != nil {
			b.t.Fatal(err)
		}
	}
}

func addLink(b *bundle, c *client.Client, dependent, dependency string) error {
	_, err := c.Dependencies.AddDependency(b.ctx, &setpointv1.AddDependencyRequest{
		SessionId: "s", Dependent: dependent, Dependency: dependency,
	})
	return err
}

// Many callers add random edges at once: those that are accepted close no cycle, and each that is refused would have closed
// one at that moment.
func TestGraphOfRandomEdgesHasNoCycle(t *testing.T) {
	t.Parallel()
	const callers, each = 32, 30
	b := setup(t)
	all := names("v", 200)
	b.integers(all...)
	tries := make([][]linkTry, callers)
	var wg sync.WaitGroup
	for i := range callers {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(1, uint64(i)))
			for range each {
				try := linkTry{dependent: all[random.IntN(len(all))], dependencies: []string{all[random.IntN(len(all))]}}
				try.before = b.revision()
				try.err = addLink(b, b.Client, try.dependent, try.dependencies[0])
				try.after = b.revision()
				tries[i] = append(tries[i], try)
			}
		})
	}
	wg.Wait()
	links := linksOf(b, nil)
	links.wantLinks(b)
	added, refused := map[graphLink]bool{}, 0
	for _, try := range slices.Concat(tries...) {
		if try.err == nil {
			added[graphLink{try.dependent, try.dependencies[0]}] = true
			continue
		}
		refused++
		links.wantRefusal(try.err, try.dependent, try.dependencies, try.before, try.after)
	}
	if len(added) != len(links.since) || refused == 0 {
		t.Errorf("%d edges for %d accepted, %d refused", len(links.since), len(added), refused)
	}
	t.Logf("%d edges, %d refused", len(added), refused)
}

// linker makes random calls that change edges.
type linker struct {
	b      *bundle
	c      *client.Client
	random *rand.Rand
	// all are the names of the variables, of which some are registered meanwhile.
	mu         *sync.Mutex
	all        *[]string
	registered map[string][]string
	mine       []graphLink
	tries      []linkTry
}

func (l *linker) some(n int) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []string
	for range n {
		out = append(out, (*l.all)[l.random.IntN(len(*l.all))])
	}
	return out
}

func (l *linker) try(dependent string, dependencies []string, call func() error) {
	try := linkTry{dependent: dependent, dependencies: dependencies, before: l.b.revision()}
	try.err = call()
	try.after = l.b.revision()
	l.tries = append(l.tries, try)
}

func (l *linker) step(name string) {
	ends := l.some(4)
	switch l.random.IntN(10) {
	case 0, 1, 2, 3:
		l.try(ends[0], ends[1:2], func() error {
			err := addLink(l.b, l.c, ends[0], ends[1])
			if err == nil {
				l.mine = append(l.mine, graphLink{ends[0], ends[1]})
			}
			return err
		})
	case 4, 5:
		if len(l.mine) == 0 {
			return
		}
		link := l.mine[l.random.IntN(len(l.mine))]
		_, err := l.c.Dependencies.RemoveDependency(l.b.ctx, &setpointv1.RemoveDependencyRequest{
			SessionId: "s", Dependent: link.dependent, Dependency: link.dependency,
		})
		if err != nil {
			wantReason(l.b.t, err, setpointv1.ErrorReason_DEPENDENCY_NOT_FOUND)
		}
	case 6:
		_, err := l.c.Variables.RegisterVariable(l.b.ctx, &setpointv1.RegisterVariableRequest{
			SessionId: "s", Name: name, Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Value: client.Integer(0),
			DependsOn: ends[:2],
		})
		if err != nil {
			l.b.t.Error(err)
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		*l.all = append(*l.all, name)
		l.registered[name] = distinctNames(ends[:2])
	default:
		req := &setpointv1.UpdateVariableRequest{SessionId: "s", Variable: ends[0], DependsOn: ends[1:]}
		if l.random.IntN(4) == 0 {
			req.DependsOn, req.ClearDependsOn = nil, true
		}
		l.try(ends[0], req.GetDependsOn(), func() error {
			_, err := l.c.Variables.UpdateVariable(l.b.ctx, req)
			return err
		})
	}
}

// Edges come and go, with variables and with updates too, by many callers of two servers at once: there is never a cycle, and
// each refused call would have closed one.
func TestGraphHasNoCycleWhileEdgesComeAndGo(t *testing.T) {
	t.Parallel()
	const callers, each = 16, 30
	b := setup(t)
	clients := []*client.Client{b.Client, b.second()}
	all := names("v", 40)
	b.integers(all...)
	registered, mu := map[string][]string{}, &sync.Mutex{}
	linkers := make([]*linker, callers)
	var wg sync.WaitGroup
	for i := range linkers {
		linkers[i] = &linker{
			b: b, c: clients[i%2], random: rand.New(rand.NewPCG(2, uint64(i))), mu: mu, all: &all, registered: registered,
		}
		wg.Go(func() {
			for n := range each {
				linkers[i].step(fmt.Sprintf("n%d.%d", i, n))
			}
		})
	}
	wg.Wait()
	links := linksOf(b, registered)
	links.wantLinks(b)
	refused := 0
	for _, l := range linkers {
		for _, try := range l.tries {
			if try.err != nil {
				refused++
				links.wantRefusal(try.err, try.dependent, try.dependencies, try.before, try.after)
			}
		}
	}
	if refused == 0 {
		t.Error("nothing was refused")
	}
	t.Logf("%d edges, %d refused", len(links.since), refused)
}

// closers are the ways to make one variable depend on another.
var closers = map[string]func(b *bundle, c *client.Client, dependent, dependency string) error{
	"edge": addLink,
	"update": func(b *bundle, c *client.Client, dependent, dependency string) error {
		_, err := c.Variables.UpdateVariable(b.ctx, &setpointv1.UpdateVariableRequest{
			SessionId: "s", Variable: dependent, DependsOn: []string{dependency},
		})
		return err
	},
	"expression": func(b *bundle, c *client.Client, dependent, dependency string) error {
		_, err := c.Variables.UpdateVariable(b.ctx, &setpointv1.UpdateVariableRequest{
			SessionId: "s", Variable: dependent, Expression: ptr(dependency + " + 1"),
		})
		return err
	},
}

// Of callers of two servers who would close a cycle together, in whatever way, all but one get what they want, again and
// again; the one is told the cycle.
func TestGraphCycleIsNotClosedTogether(t *testing.T) {
	t.Parallel()
	const rounds = 60
	b := setup(t)
	clients := []*client.Client{b.Client, b.second()}
	ways := slices.Sorted(maps.Keys(closers))
	for round := range rounds {
		ring := names(fmt.Sprintf("r%dv", round), 2+round%3)
		b.integers(ring...)
		release := b.holdSession("s")
		errs := make([]error, len(ring))
		var wg sync.WaitGroup
		for i, dependent := range ring {
			way := closers[ways[(round/3+i*(round%2))%len(ways)]]
			wg.Go(func() { errs[i] = way(b, clients[i%2], dependent, ring[(i+1)%len(ring)]) })
		}
		b.waiting(len(ring))
		release()
		wg.Wait()
		refused := 0
		for i, err := range errs {
			if err == nil {
				continue
			}
			refused++
			wantPath(t, err, slices.Concat(ring[i:], ring[:i+1])...)
		}
		if refused != 1 {
			t.Errorf("round %d: %d of %d refused", round, refused, len(ring))
		}
	}
	linksOf(b, nil).wantLinks(b)
}

// Many callers of two servers at once, each with many calls, of every kind and of those that change what a propagation under
// way would have to know: the model explains all.
func TestGraphOfManyCallersIsTheModels(t *testing.T) {
	t.Parallel()
	b := setup(t)
	clients := []*client.Client{b.Client, b.second()}
	all := graphNames{names: []string{"a", "b", "c", "d", "e", "f", "g h", "i", "j", "k"}, stray: 12}
	orderly := graphNames{names: all.names}
	for name, kind := range map[string]func(*rapid.T) graphCall{
		"everything": all.call,
		"sets, edges and deletions": func(t *rapid.T) graphCall {
			for {
				switch call := all.call(t).(type) {
				case graphSet, graphEdge, graphDelete, graphRegister:
					return call
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := &graphRun{b: b, session: fmt.Sprintf("session%d", len(name)), clients: clients}
			b.session(r.session)
			calls := make([][]graphCall, 12)
			for i := range calls {
				calls[i] = rapid.SliceOfN(rapid.Custom(kind), 20, 20).Example(i)
			}
			r.do(rapid.Custom(func(t *rapid.T) graphCall {
				return graphRegister{Batch: true, Items: orderly.registrations(t, all.names)}
			}).Example(7), "first", 0)
			r.together(calls)
			world := r.want(t, 100)
			t.Logf("%d calls, %d revisions, %d transactions", len(r.tries), world.last(), len(world.ends)-1)
		})
	}
}

// Sent by several callers of two servers at once, a request with a request_id is done once, and all get its one answer with
// what followed; so does a repeat after it.
func TestGraphRequestIsDoneOnce(t *testing.T) {
	t.Parallel()
	for name, test := range onceCalls {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			clients := []*client.Client{b.Client, b.second()}
			b.integer("a")
			b.set("a", client.Integer(6))
			b.integer("z")
			b.derived("d", "a * 2")
			b.derived("e", "d + a")
			b.derived("strict", "100 / (a + 1)", func(r *setpointv1.RegisterVariableRequest) { r.Strict = true })
			b.derived("failing", "10 / (5 - a)", func(r *setpointv1.RegisterVariableRequest) { r.Value = client.Integer(1) })
			b.dependent("plain", "e")
			before := b.revision()
			release := b.holdSession("s")
			answers, errs := make([]proto.Message, 8), make([]error, 8)
			var wg sync.WaitGroup
			for i := range answers {
				wg.Go(func() { answers[i], errs[i] = test.call(b, clients[i%2], "once") })
			}
			b.waiting(2)
			release()
			wg.Wait()
			after := b.revision()
			again, err := test.call(b, clients[1], "once")
			for i := range answers {
				equal(t, "answer", again, answers[i])
				equal(t, "error", fmt.Sprint(err), fmt.Sprint(errs[i]))
			}
			if now := b.revision(); after-before != test.rows || now != after {
				t.Errorf("revisions %d, %d and %d; want %d rows", before, after, now, test.rows)
			}
			if test.refused != 0 {
				wantReason(t, err, test.refused)
			} else if err != nil {
				t.Error(err)
			}
		})
	}
}

// onceCall is a call, and how many rows it writes.
type onceCall struct {
	call    func(b *bundle, c *client.Client, id string) (proto.Message, error)
	rows    int64
	refused setpointv1.ErrorReason
}

var onceCalls = map[string]onceCall{
	"set": {rows: 6, call: func(b *bundle, c *client.Client, id string) (proto.Message, error) {
		return c.Variables.SetVariable(b.ctx, &setpointv1.SetVariableRequest{
			SessionId: "s", Variable: "a", Value: client.Integer(3), RequestId: id,
		})
	}},
	"set that makes stale": {rows: 6, call: func(b *bundle, c *client.Client, id string) (proto.Message, error) {
		return c.Variables.SetVariable(b.ctx, &setpointv1.SetVariableRequest{
			SessionId: "s", Variable: "a", Value: client.Integer(5), RequestId: id,
		})
	}},
	"refused set": {refused: setpointv1.ErrorReason_DERIVATION_FAILED,
		call: func(b *bundle, c *client.Client, id string) (proto.Message, error) {
			return c.Variables.SetVariable(b.ctx, &setpointv1.SetVariableRequest{
				SessionId: "s", Variable: "a", Value: client.Integer(-1), RequestId: id,
			})
		}},
	"batch": {rows: 7, call: func(b *bundle, c *client.Client, id string) (proto.Message, error) {
		return c.Variables.BatchSetVariables(b.ctx, &setpointv1.BatchSetVariablesRequest{
			SessionId: "s", RequestId: id, Writes: []*setpointv1.VariableWrite{
				{Variable: "z", Value: client.Integer(3)}, {Variable: "d", Value: client.Integer(3)},
				{Variable: "a", Value: client.Integer(3)},
			},
		})
	}},
	"rollback": {rows: 6, call: func(b *bundle, c *client.Client, id string) (proto.Message, error) {
		return c.History.RollbackVariable(b.ctx, &setpointv1.RollbackVariableRequest{
			SessionId: "s", Variable: "a", Version: 0, RequestId: id,
		})
	}},
	"rollback of the session": {rows: 6, call: func(b *bundle, c *client.Client, id string) (proto.Message, error) {
		return c.History.RollbackSession(b.ctx, &setpointv1.RollbackSessionRequest{
			SessionId: "s", To: &setpointv1.RollbackSessionRequest_Revision{Revision: 1}, RequestId: id,
		})
	}},
	"update": {rows: 6, call: func(b *bundle, c *client.Client, id string) (proto.Message, error) {
		return c.Variables.UpdateVariable(b.ctx, &setpointv1.UpdateVariableRequest{
			SessionId: "s", Variable: "d", Expression: ptr("z + 1"), RequestId: id,
		})
	}},
	"edge": {rows: 1, call: func(b *bundle, c *client.Client, id string) (proto.Message, error) {
		return c.Dependencies.AddDependency(b.ctx, &setpointv1.AddDependencyRequest{
			SessionId: "s", Dependent: "a", Dependency: "z", RequestId: id,
		})
	}},
	"end of an edge": {rows: 1, call: func(b *bundle, c *client.Client, id string) (proto.Message, error) {
		return c.Dependencies.RemoveDependency(b.ctx, &setpointv1.RemoveDependencyRequest{
			SessionId: "s", Dependent: "plain", Dependency: "e", RequestId: id,
		})
	}},
	"refused edge": {refused: setpointv1.ErrorReason_WOULD_CREATE_CYCLE,
		call: func(b *bundle, c *client.Client, id string) (proto.Message, error) {
			return c.Dependencies.AddDependency(b.ctx, &setpointv1.AddDependencyRequest{
				SessionId: "s", Dependent: "a", Dependency: "plain", RequestId: id,
			})
		}},
	"deletion": {rows: 4, call: func(b *bundle, c *client.Client, id string) (proto.Message, error) {
		return c.Variables.DeleteVariable(b.ctx, &setpointv1.DeleteVariableRequest{
			SessionId: "s", Variable: "d", Cascade: true, RequestId: id,
		})
	}},
	"registration": {rows: 2, call: func(b *bundle, c *client.Client, id string) (proto.Message, error) {
		return c.Variables.BatchRegisterVariables(b.ctx, &setpointv1.BatchRegisterVariablesRequest{
			SessionId: "s", RequestId: id, Registrations: []*setpointv1.VariableRegistration{
				{Name: "n", Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Expression: "m * 2"},
				{Name: "m", Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Expression: "d + a"},
				{Name: "a", Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Value: client.Integer(1)},
			},
		})
	}},
}

// What a server remembers of a derived variable's constraints does not outlive their change by another server. Looser ones
// have it computed at once.
func TestGraphFollowsTheConstraintsOfNow(t *testing.T) {
	t.Parallel()
	b := setup(t)
	other := b.second()
	b.integer("a")
	b.derived("d", "a * 2", func(r *setpointv1.RegisterVariableRequest) { r.Constraints = graphConstraints(10) })
	setBy := func(c *client.Client, v int64) *setpointv1.SetVariableResponse {
		t.Helper()
		r, err := c.Variables.SetVariable(b.ctx, &setpointv1.SetVariableRequest{SessionId: "s", Variable: "a", Value: client.Integer(v)})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	equal(t, "recomputed", []string{"d=2 v1"}, recomputedText(setBy(b.Client, 1).GetRecomputed()))
	equal(t, "recomputed", []string{"d=4 v2"}, recomputedText(setBy(other, 2).GetRecomputed()))
	for i, most := range []int64{5, 20} {
		if _, err := other.Variables.UpdateVariable(b.ctx, &setpointv1.UpdateVariableRequest{
			SessionId: "s", Variable: "d", Constraints: graphConstraints(most),
		}); err != nil {
			t.Fatal(err)
		}
		r := setBy(b.Client, 3+int64(i))
		equal(t, "recomputed", [][]string{nil, {"d=8 v4"}}[i], recomputedText(r.GetRecomputed()))
		equal(t, "stale", [][]string{{"d"}, nil}[i], staleText(r.GetStale()))
	}
}

// A variable that is made strict while it is stale refuses what leaves it so, and nothing else.
func TestGraphStrictWhileStale(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.integer("a")
	b.integer("b")
	b.derived("d", "a / b", func(r *setpointv1.RegisterVariableRequest) { r.Value = client.Integer(1) })
	if _, err := b.Variables.UpdateVariable(b.ctx, &setpointv1.UpdateVariableRequest{
		SessionId: "s", Variable: "d", Strict: ptr(true),
	}); err != nil {
		t.Fatal(err)
	}
	before := b.revision()
	wantReason(t, set(b, "a", client.Integer(1)), setpointv1.ErrorReason_DERIVATION_FAILED)
	b.set("a", client.Integer(0)) // No change, and nobody to follow.
	b.integer("c")
	b.edge("d", "c")
	if rows := b.revision() - before; rows != 3 {
		t.Errorf("%d rows, want 3", rows)
	}
	equal(t, "recomputed", []string{"d=0 v1"}, recomputedText(b.set("b", client.Integer(2)).GetRecomputed()))
	equal(t, "d", "0 v1", b.state("d"))
}
