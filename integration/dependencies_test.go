package integration

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/testkit"
)

// depend makes a variable depend on another one.
func depend(t *testing.T, c *client.Client, session, dependent, dependency string) *setpointv1.Dependency {
	t.Helper()
	edge, err := c.Dependencies.AddDependency(t.Context(), &setpointv1.AddDependencyRequest{
		SessionId: session, Dependent: dependent, Dependency: dependency})
	if err != nil {
		t.Fatalf("have %s depend on %s: %v", dependent, dependency, err)
	}
	return edge
}

// derive registers an integer that is computed.
func derive(t *testing.T, c *client.Client, session, name, expression string) *setpointv1.Variable {
	t.Helper()
	variable, err := c.Variables.RegisterVariable(t.Context(), &setpointv1.RegisterVariableRequest{
		SessionId: session, Name: name, Type: typeInteger, Expression: expression, HistoryLimit: new(int64)})
	if err != nil {
		t.Fatalf("register %s = %s: %v", name, expression, err)
	}
	return variable
}

// graph is what each variable of a session with edges depends on.
func graph(t *testing.T, c *client.Client, session string) map[string][]string {
	t.Helper()
	found := map[string][]string{}
	request := &setpointv1.GetGraphRequest{SessionId: session}
	for {
		page, err := c.Dependencies.GetGraph(t.Context(), request)
		if err != nil {
			t.Fatal(err)
		}
		for _, node := range page.GetNodes() {
			found[node.GetName()] = node.GetDependsOn()
		}
		if request.PageToken = page.GetNextPageToken(); request.PageToken == "" {
			return found
		}
	}
}

// checkAcyclic takes away the variables that depend on nothing that is left, until nothing is.
func checkAcyclic(t *testing.T, graph map[string][]string) {
	t.Helper()
	left := map[string][]string{}
	for name, needs := range graph {
		left[name] = slices.Clone(needs)
	}
	for len(left) > 0 {
		before := len(left)
		for name, needs := range left {
			if !slices.ContainsFunc(needs, func(need string) bool { _, there := left[need]; return there }) {
				delete(left, name)
			}
		}
		if len(left) == before {
			t.Fatalf("there is a cycle in %v", left)
		}
	}
}

func staleNames(stale []*setpointv1.StaleVariable) []string {
	var names []string
	for _, s := range stale {
		names = append(names, s.GetVariable())
	}
	return names
}

func recomputedValues(recomputed []*setpointv1.RecomputedVariable) map[string]int64 {
	values := map[string]int64{}
	for _, r := range recomputed {
		values[r.GetVariable()] = r.GetValue().GetInteger()
	}
	return values
}

// What one server is told about the graph binds the writes of the other at once. Both have written before, and so know the
// variables as they were without it.
func TestGraphBindsEveryServer(t *testing.T) {
	t.Parallel()
	clients, _ := serveMany(t, 2)
	newSession(t, clients[0], "shared")
	for _, name := range []string{"var_a", "var_b", "var_c"} {
		register(t, clients[0], "shared", name, typeInteger, client.Integer(0))
		for i, c := range clients {
			set(t, c, "shared", name, client.Integer(int64(i)))
		}
	}
	for round := range int64(4) {
		here, there := clients[round%2], clients[(round+1)%2]
		value := 10 * (round + 1)

		depend(t, here, "shared", "var_b", "var_a")
		answer := set(t, there, "shared", "var_a", client.Integer(value))
		if diff := cmp.Diff([]string{"var_b"}, staleNames(answer.GetStale())); diff != "" {
			t.Errorf("stale after an edge from the other server (-want +got):\n%s", diff)
		}
		want := &setpointv1.Stale{Revision: answer.GetRevision(), Cause: "var_a"}
		if diff := cmp.Diff(want, get(t, here, "shared", "var_b").GetStale(), protocmp.Transform()); diff != "" {
			t.Errorf("var_b on the server of the edge (-want +got):\n%s", diff)
		}
		set(t, here, "shared", "var_b", client.Integer(value))
		if v := get(t, there, "shared", "var_b"); v.GetStale() != nil {
			t.Errorf("var_b was set on the other server: got %v", v)
		}

		expression := fmt.Sprintf("var_a + var_b + %d", round)
		_, err := there.Variables.UpdateVariable(t.Context(), &setpointv1.UpdateVariableRequest{
			SessionId: "shared", Variable: "var_c", Expression: proto.String(expression)})
		if err != nil {
			t.Fatal(err)
		}
		answer = set(t, here, "shared", "var_b", client.Integer(value+1))
		if diff := cmp.Diff(map[string]int64{"var_c": 2*value + 1 + round}, recomputedValues(answer.GetRecomputed())); diff != "" {
			t.Errorf("recomputed after an expression from the other server (-want +got):\n%s", diff)
		}
		if got := get(t, there, "shared", "var_c"); got.GetValue().GetInteger() != 2*value+1+round || got.GetExpression() != expression {
			t.Errorf("var_c on the server of the expression: got %v", got)
		}
		_, err = here.Variables.SetVariable(t.Context(), &setpointv1.SetVariableRequest{
			SessionId: "shared", Variable: "var_c", Value: client.Integer(1)})
		refused(t, "set what is derived on the other server", err, client.ErrDerivedVariable)

		// The end of both is seen, too.
		_, err = here.Variables.UpdateVariable(t.Context(), &setpointv1.UpdateVariableRequest{
			SessionId: "shared", Variable: "var_c", Expression: proto.String(""), ClearDependsOn: true})
		if err != nil {
			t.Fatal(err)
		}
		_, err = here.Dependencies.RemoveDependency(t.Context(), &setpointv1.RemoveDependencyRequest{
			SessionId: "shared", Dependent: "var_b", Dependency: "var_a"})
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"var_a", "var_b", "var_c"} {
			if answer := set(t, there, "shared", name, client.Integer(-value)); answer.GetStale() != nil || answer.GetRecomputed() != nil {
				t.Errorf("%s has no dependents any more: got %v", name, answer)
			}
		}
	}
}

// A derived variable that comes while others write follows every write after it, also those that had begun before.
func TestDerivedVariablesComeWhileOthersWrite(t *testing.T) {
	t.Parallel()
	const derived = 40
	clients, url := serveMany(t, 2)
	newSession(t, clients[0], "busy")
	register(t, clients[0], "busy", "var_a", typeInteger, client.Integer(0))
	var stop atomic.Bool
	writing := make(chan error, 1)
	go func() {
		writing <- together(8, func(w int) error {
			for n := 0; !stop.Load(); n++ {
				_, err := clients[w%2].Variables.SetVariable(t.Context(), &setpointv1.SetVariableRequest{
					SessionId: "busy", Variable: "var_a", Value: client.Integer(int64(w*1_000_000 + n))})
				if err != nil {
					return err
				}
			}
			return nil
		})
	}()
	err := together(4, func(w int) error {
		for n := range derived / 4 {
			k := 4*n + w
			_, err := clients[k%2].Variables.RegisterVariable(t.Context(), &setpointv1.RegisterVariableRequest{
				SessionId: "busy", Name: fmt.Sprintf("times_%02d", k), Type: typeInteger, Expression: fmt.Sprintf("var_a * %d", k)})
			if err != nil {
				return err
			}
		}
		return nil
	})
	stop.Store(true)
	if err := errors.Join(err, <-writing); err != nil {
		t.Fatal(err)
	}
	root := get(t, clients[0], "busy", "var_a").GetValue().GetInteger()
	for k := range int64(derived) {
		v := get(t, clients[k%2], "busy", fmt.Sprintf("times_%02d", k))
		if v.GetValue().GetInteger() != k*root || v.GetStale() != nil {
			t.Errorf("%s is %v while var_a is %d", v.GetName(), v, root)
		}
	}
	checkHistory(t, testkit.Pool(t, url), "busy")
}

// connectWays are the ways in which a variable can come to depend on another one.
var connectWays = []func(ctx context.Context, c *client.Client, dependent, dependency string) error{
	func(ctx context.Context, c *client.Client, dependent, dependency string) error {
		_, err := c.Dependencies.AddDependency(ctx, &setpointv1.AddDependencyRequest{
			SessionId: "ring", Dependent: dependent, Dependency: dependency})
		return err
	},
	func(ctx context.Context, c *client.Client, dependent, dependency string) error {
		_, err := c.Variables.UpdateVariable(ctx, &setpointv1.UpdateVariableRequest{
			SessionId: "ring", Variable: dependent, DependsOn: []string{dependency}})
		return err
	},
	func(ctx context.Context, c *client.Client, dependent, dependency string) error {
		_, err := c.Variables.UpdateVariable(ctx, &setpointv1.UpdateVariableRequest{
			SessionId: "ring", Variable: dependent, Expression: proto.String(dependency + " + 1")})
		return err
	},
}

// Callers who close a circle together, on two servers and each in another way: all but one succeed, whoever that is.
func TestCycleIsClosedByNobody(t *testing.T) {
	t.Parallel()
	clients, url := serveMany(t, 2)
	newSession(t, clients[0], "ring")
	edges := 0
	for round := range 30 {
		n := []int{2, 2, 3, 5}[round%4]
		edges += n - 1
		names := make([]string, n)
		for i := range names {
			names[i] = fmt.Sprintf("var_%02d_%d", round, i)
			register(t, clients[0], "ring", names[i], typeInteger, client.Integer(0))
		}
		begin := make(chan struct{})
		errs := make(chan error, n)
		for i := range n {
			way := connectWays[rand.IntN(len(connectWays))]
			go func() {
				<-begin
				errs <- way(t.Context(), clients[i%2], names[i], names[(i+1)%n])
			}()
		}
		close(begin)
		refusals := 0
		for range n {
			err := <-errs
			if err == nil {
				continue
			}
			refused(t, "an edge of a circle", err, client.ErrWouldCreateCycle)
			refusals++
			if path, _ := client.CyclePath(err); len(path) != n+1 || path[0] != path[n] {
				t.Errorf("the cycle of %d variables is told as %q", n, path)
			}
		}
		if refusals != 1 {
			t.Fatalf("of %d edges that form a circle %d were refused, want 1", n, refusals)
		}
	}
	found := graph(t, clients[1], "ring")
	checkAcyclic(t, found)
	for _, needs := range found {
		edges -= len(needs)
	}
	if edges != 0 {
		t.Errorf("%d edges are missing that were accepted", edges)
	}
	checkHistory(t, testkit.Pool(t, url), "ring")
}

// Random edges from many callers on two servers: never a cycle, and each is refused only if it would close one.
func TestRandomEdges(t *testing.T) {
	t.Parallel()
	const variables, callers, each = 12, 8, 25
	clients, url := serveMany(t, 2)
	newSession(t, clients[0], "random")
	for i := range variables {
		register(t, clients[0], "random", fmt.Sprintf("var_%02d", i), typeInteger, client.Integer(0))
	}
	var accepted, rejected atomic.Int64
	err := together(callers, func(w int) error {
		choose := rand.New(rand.NewPCG(uint64(w), 7))
		for range each {
			request := &setpointv1.AddDependencyRequest{SessionId: "random",
				Dependent: fmt.Sprintf("var_%02d", choose.IntN(variables)), Dependency: fmt.Sprintf("var_%02d", choose.IntN(variables))}
			_, err := clients[w%2].Dependencies.AddDependency(t.Context(), request)
			switch {
			case err == nil:
				accepted.Add(1)
			case errors.Is(err, client.ErrWouldCreateCycle):
				rejected.Add(1)
			default:
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	found := graph(t, clients[0], "random")
	checkAcyclic(t, found)

	// History tells the order, and a graph in memory what was to be accepted.
	rows, err := testkit.Pool(t, url).Query(t.Context(), `select name, dependency from setpoint.history
		where session_id = 'random' and change = 'dependency_added' order by revision`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	replayed := map[string][]string{}
	for rows.Next() {
		var dependent, dependency string
		if err := rows.Scan(&dependent, &dependency); err != nil {
			t.Fatal(err)
		}
		replayed[dependent] = append(replayed[dependent], dependency)
		checkAcyclic(t, replayed)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	for name, needs := range found {
		slices.Sort(replayed[name])
		if diff := cmp.Diff(replayed[name], needs); diff != "" {
			t.Errorf("%s: history and graph differ (-history +graph):\n%s", name, diff)
		}
	}
	t.Logf("%d accepted, %d refused", accepted.Load(), rejected.Load())
}

// family is a root, here var_a and var_b, and what is computed from it in three ranks.
type family struct {
	session string
	size    int64
}

// name of the derived variable k.
func (f family) name(k int64) string { return fmt.Sprintf("d_%03d", k) }

// expression of the derived variable k: half of them are computed from the roots, the others from one of these, or from
// one of the others.
func (f family) expression(k int64) string {
	switch {
	case k < f.size/2:
		return fmt.Sprintf("var_a * %d + var_b", k)
	case k < f.size-10:
		return fmt.Sprintf("%s - var_b + %d", f.name(k-f.size/2), k)
	default:
		return fmt.Sprintf("%s + %s", f.name(k-20), f.name(k%5))
	}
}

// value that the expression has.
func (f family) value(k, a, b int64) int64 {
	switch {
	case k < f.size/2:
		return a*k + b
	case k < f.size-10:
		return f.value(k-f.size/2, a, b) - b + k
	default:
		return f.value(k-20, a, b) + f.value(k%5, a, b)
	}
}

// register adds all of them in one batch; the roots come last.
func (f family) register(t *testing.T, c *client.Client) {
	t.Helper()
	request := &setpointv1.BatchRegisterVariablesRequest{SessionId: f.session, Atomic: true}
	for k := f.size - 1; k >= 0; k-- {
		request.Registrations = append(request.Registrations, &setpointv1.VariableRegistration{
			Name: f.name(k), Type: typeInteger, Expression: f.expression(k), HistoryLimit: new(int64)})
	}
	for _, root := range []string{"var_a", "var_b"} {
		request.Registrations = append(request.Registrations, &setpointv1.VariableRegistration{
			Name: root, Type: typeInteger, Value: client.Integer(-1), HistoryLimit: new(int64)})
	}
	if _, err := c.Variables.BatchRegisterVariables(t.Context(), request); err != nil {
		t.Fatal(err)
	}
}

// names are those of all.
func (f family) names() []string {
	names := []string{"var_a", "var_b"}
	for k := range f.size {
		names = append(names, f.name(k))
	}
	return names
}

// check tells whether values that were read together fit.
func (f family) check(values map[string]*setpointv1.Value) error {
	if len(values) != int(f.size)+2 {
		return fmt.Errorf("%d values, want %d", len(values), f.size+2)
	}
	a, b := values["var_a"].GetInteger(), values["var_b"].GetInteger()
	for k := range f.size {
		if got, want := values[f.name(k)].GetInteger(), f.value(k, a, b); got != want {
			return fmt.Errorf("%s = %s is %d, and not %d, while var_a is %d and var_b is %d", f.name(k), f.expression(k), got, want, a, b)
		}
	}
	return nil
}

// read reads all at once, and checks them.
func (f family) read(ctx context.Context, c *client.Client) error {
	answer, err := c.Variables.BatchGetVariables(ctx, &setpointv1.BatchGetVariablesRequest{SessionId: f.session, Variables: f.names()})
	if err != nil {
		return err
	}
	values := map[string]*setpointv1.Value{}
	for name, v := range answer.GetVariables() {
		values[name] = v.GetValue()
		if v.GetStale() != nil {
			return fmt.Errorf("%s is stale: %v", name, v.GetStale())
		}
	}
	return f.check(values)
}

// checkSnapshot checks the session as it stood at a revision.
func (f family) checkSnapshot(t *testing.T, c *client.Client, revision int64) {
	t.Helper()
	values := map[string]*setpointv1.Value{}
	request := &setpointv1.GetSnapshotRequest{
		SessionId: f.session, At: &setpointv1.GetSnapshotRequest_Revision{Revision: revision}, PageSize: 1000}
	for {
		page, err := c.History.GetSnapshot(t.Context(), request)
		if err != nil {
			t.Fatalf("snapshot at revision %d: %v", revision, err)
		}
		for _, v := range page.GetVariables() {
			values[v.GetName()] = v.GetValue()
		}
		if request.PageToken = page.GetNextPageToken(); request.PageToken == "" {
			break
		}
	}
	if err := f.check(values); err != nil {
		t.Errorf("snapshot at revision %d: %v", revision, err)
	}
}

// Servers are killed while they write a root with 200 derived dependents. Readers on the killed server and on another one
// never see the root without what follows from it; and what was acknowledged is there, and answered again as it was.
func TestKilledServerLeavesNoGraphHalfUpdated(t *testing.T) {
	t.Parallel()
	url := testkit.NewDatabase(t)
	s := serve(t, url)
	c, other := dial(t, s, stubborn...), dial(t, serve(t, url))
	newSession(t, c, "crash")
	f := family{session: "crash", size: 200}
	f.register(t, c)

	reading, endReading := context.WithCancel(t.Context())
	defer endReading()
	var reads atomic.Int64
	readers := make(chan error, 1)
	go func() {
		readers <- together(2, func(r int) error {
			for reading.Err() == nil {
				if err := f.read(reading, []*client.Client{c, other}[r]); err != nil && reading.Err() == nil {
					return err
				}
				reads.Add(1)
			}
			return nil
		})
	}()

	l := startLoad(t.Context(), c, "crash", 20, 50, 80)
	for _, milestone := range []int64{20, 50} {
		l.await(t, milestone)
		s.kill(t)
		if err := f.read(t.Context(), other); err != nil {
			t.Errorf("after the kill: %v", err)
		}
		s = serve(t, url, "--grpc-addr", s.grpc)
	}
	l.await(t, 80)
	l.finish(t, url)
	endReading()
	if err := <-readers; err != nil {
		t.Error(err)
	}
	if err := f.read(t.Context(), c); err != nil {
		t.Errorf("at the end: %v", err)
	}
	t.Logf("%d reads", reads.Load())

	// The answers of before the kills, from the server of after, and from the other.
	for i, e := range l.sent {
		again, err := e.again(t.Context())
		if err != nil {
			t.Fatalf("call %d, sent again: %v", i, err)
		}
		if diff := cmp.Diff(e.answer, again, protocmp.Transform()); diff != "" {
			t.Errorf("call %d, sent again (-first +again):\n%s", i, diff)
		}
	}
	pool := testkit.Pool(t, url)
	rows := checkHistory(t, pool, "crash")
	for range 20 {
		f.checkSnapshot(t, other, f.size+2+rand.Int64N(int64(len(rows))-f.size-1))
	}
	// Whatever follows names the write that it follows from.
	var astray int
	err := pool.QueryRow(t.Context(), `select count(*) from setpoint.history h
		left join setpoint.history c on c.session_id = h.session_id and c.revision = h.cause_revision
			and c.name = h.cause and c.name in ('var_a', 'var_b') and c.change in ('set', 'rolled_back')
		where h.session_id = 'crash' and h.change = 'recomputed' and c.revision is null`).Scan(&astray)
	if err != nil || astray > 0 {
		t.Errorf("%d recomputed versions without their cause, %v", astray, err)
	}
}

// The edges of a session go with it, whether it is deleted or its time is over; and an id that is taken again before that
// begins without.
func TestEdgesEndWithTheirSession(t *testing.T) {
	t.Parallel()
	url := testkit.NewDatabase(t)
	clients := []*client.Client{dial(t, serve(t, url)), dial(t, serve(t, url))}
	for i, session := range []string{"deleted", "expired", "again"} {
		newSessionFor(t, clients[i%2], session, map[string]time.Duration{"expired": 2 * time.Second}[session])
		register(t, clients[i%2], session, "var_a", typeInteger, client.Integer(1))
		register(t, clients[i%2], session, "var_b", typeInteger, client.Integer(1))
		depend(t, clients[i%2], session, "var_b", "var_a")
		derive(t, clients[i%2], session, "var_c", "var_a + var_b")
	}
	for _, session := range []string{"deleted", "again"} {
		if _, err := clients[0].Sessions.DeleteSession(t.Context(), &setpointv1.DeleteSessionRequest{SessionId: session}); err != nil {
			t.Fatal(err)
		}
	}

	newSession(t, clients[1], "again")
	register(t, clients[1], "again", "var_a", typeInteger, client.Integer(1))
	register(t, clients[1], "again", "var_b", typeInteger, client.Integer(1))
	if found := graph(t, clients[0], "again"); len(found) != 0 {
		t.Errorf("the graph of a session that was taken again: %v", found)
	}
	depend(t, clients[0], "again", "var_a", "var_b") // The other way round.
	if answer := set(t, clients[1], "again", "var_b", client.Integer(2)); len(answer.GetStale()) != 1 {
		t.Errorf("stale: got %v, want var_a alone", answer.GetStale())
	}

	pool := testkit.Pool(t, url)
	testkit.Eventually(t, patience, func() error {
		var edges, variables int
		var ended bool
		err := pool.QueryRow(t.Context(), `select bool_and(s.ended_at is not null),
				(select count(*) from setpoint.dependencies e where e.session_id in ('deleted', 'expired')),
				(select count(*) from setpoint.variables v where v.session_id in ('deleted', 'expired'))
			from setpoint.sessions s where s.session_id in ('deleted', 'expired')`).Scan(&ended, &edges, &variables)
		if err == nil && (!ended || edges > 0 || variables > 0) {
			err = fmt.Errorf("swept: %v, with %d edges and %d variables left", ended, edges, variables)
		}
		return err
	})
	if diff := cmp.Diff(map[string][]string{"var_a": {"var_b"}, "var_b": nil}, graph(t, clients[1], "again")); diff != "" {
		t.Errorf("the graph of a session that lives (-want +got):\n%s", diff)
	}
}
