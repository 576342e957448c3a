package service_test

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
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

// What is true of a session after the calls: the history explains it, and the graph and the snapshots are the model's.

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
func (b *bundle) startServer(change ...func(*server.Config)) string {
	b.t.Helper()
	config := server.Config{
		GRPCAddr: "127.0.0.1:0", Limits: service.DefaultLimits, Database: db.Config{URL: b.url, MaxConns: 8},
		Log: slog.New(slog.NewTextHandler(b.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	for _, c := range change {
		c(&config)
	}
	s, err := server.Start(b.ctx, config)
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
