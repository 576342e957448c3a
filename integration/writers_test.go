package integration

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/testkit"
)

// written is an acknowledged write.
type written struct {
	version, revision int64
	value             string
}

// ledger is what was acknowledged, by revision.
type ledger struct {
	mu   sync.Mutex
	rows map[int64]written
}

func (l *ledger) add(w written) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.rows == nil {
		l.rows = map[int64]written{}
	}
	if before, twice := l.rows[w.revision]; twice {
		return fmt.Errorf("revision %d was given to %+v and to %+v", w.revision, before, w)
	}
	l.rows[w.revision] = w
	return nil
}

// check compares the acknowledged writes with the rows of history that are sets: each is the other's.
func (l *ledger) check(t *testing.T, rows []row) {
	t.Helper()
	sets := 0
	for _, r := range rows {
		if r.Change != "set" {
			continue
		}
		sets++
		got, want := written{*r.Version, r.Revision, *r.Value}, l.rows[r.Revision]
		if got != want {
			t.Errorf("revision %d: history has %+v, acknowledged was %+v", r.Revision, got, want)
		}
	}
	if sets != len(l.rows) {
		t.Errorf("history has %d sets, and %d were acknowledged", sets, len(l.rows))
	}
}

// serveMany runs servers on one new database and returns a client of each, and the database.
func serveMany(t *testing.T, n int) ([]*client.Client, string) {
	t.Helper()
	url := testkit.NewDatabase(t)
	clients := make([]*client.Client, n)
	for i := range clients {
		clients[i] = dial(t, serve(t, url))
	}
	return clients, url
}

// Of the writers that expect one version exactly one gets it, and the others are told which version there is.
func TestWritersThatExpectAVersion(t *testing.T) {
	t.Parallel()
	for servers, enough := range map[int]int64{1: 500, 2: 2000} {
		t.Run(fmt.Sprintf("servers=%d", servers), func(t *testing.T) {
			t.Parallel()
			testWritersThatExpectAVersion(t, servers, enough)
		})
	}
}

func testWritersThatExpectAVersion(t *testing.T, servers int, enough int64) {
	const writers = 64
	clients, url := serveMany(t, servers)
	newSession(t, clients[0], "race")
	register(t, clients[0], "race", "var_a", typeInteger, client.Integer(-1))
	var accepted ledger
	var wins, losses atomic.Int64
	err := together(writers, func(w int) error {
		c, known := clients[w%len(clients)], int64(0)
		for n := int64(0); wins.Load() < enough; n++ {
			value := int64(w)*1_000_000 + n
			answer, err := c.Variables.SetVariable(t.Context(), &setpointv1.SetVariableRequest{
				SessionId: "race", Variable: "var_a", Value: client.Integer(value), ExpectedVersion: proto.Int64(known)})
			if err == nil {
				wins.Add(1)
				if answer.GetVersion() != known+1 {
					return fmt.Errorf("a set that expected version %d made version %d", known, answer.GetVersion())
				}
				known = answer.GetVersion()
				err = accepted.add(written{known, answer.GetRevision(), strconv.FormatInt(value, 10)})
				if err != nil {
					return err
				}
				continue
			}
			current, told := client.CurrentVersion(err)
			if !errors.Is(err, client.ErrVersionMismatch) || !told || current <= known {
				return fmt.Errorf("a set that expected version %d: %w (current version %d)", known, err, current)
			}
			losses.Add(1)
			known = current
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}

	rows := checkHistory(t, testkit.Pool(t, url), "race")
	accepted.check(t, rows)
	if n := wins.Load(); int64(len(rows)) != n+1 || *rows[n].Version != n {
		t.Errorf("%d writes were accepted, and history has %d rows up to version %d", n, len(rows), *rows[len(rows)-1].Version)
	}
	if v := get(t, clients[0], "race", "var_a"); v.GetVersion() != wins.Load() {
		t.Errorf("the variable is at version %d after %d writes", v.GetVersion(), wins.Load())
	}
	t.Logf("%d accepted, %d refused", wins.Load(), losses.Load())
}

// Writers that expect nothing are all accepted, in some order.
func TestWritersThatExpectNothing(t *testing.T) {
	t.Parallel()
	const writers, each = 32, 30
	clients, url := serveMany(t, 2)
	newSession(t, clients[0], "race")
	register(t, clients[0], "race", "var_a", typeInteger, client.Integer(-1))
	var accepted ledger
	err := together(writers, func(w int) error {
		last := int64(0)
		for n := range int64(each) {
			value := int64(w)*1_000_000 + n
			answer, err := clients[w%2].Variables.SetVariable(t.Context(), &setpointv1.SetVariableRequest{
				SessionId: "race", Variable: "var_a", Value: client.Integer(value)})
			if err != nil {
				return err
			}
			if answer.GetVersion() <= last {
				return fmt.Errorf("a writer's version %d came after its %d", answer.GetVersion(), last)
			}
			last = answer.GetVersion()
			err = accepted.add(written{last, answer.GetRevision(), strconv.FormatInt(value, 10)})
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	rows := checkHistory(t, testkit.Pool(t, url), "race")
	accepted.check(t, rows)
	if len(rows) != writers*each+1 {
		t.Errorf("history has %d rows after %d writes", len(rows), writers*each)
	}
}

// mixture writes to many variables of a session in every way that there is.
type mixture struct {
	clients   []*client.Client
	variables int
	accepted  ledger
}

func (m *mixture) name(i int) string { return fmt.Sprintf("var_%02d", i%m.variables) }

// single sets one variable.
func (m *mixture) single(ctx context.Context, w, n int) error {
	value := int64(w*1_000_000 + n)
	answer, err := m.clients[w%len(m.clients)].Variables.SetVariable(ctx, &setpointv1.SetVariableRequest{
		SessionId: "mix", Variable: m.name(w*7 + n), Value: client.Integer(value)})
	if err != nil {
		return err
	}
	return m.accepted.add(written{answer.GetVersion(), answer.GetRevision(), strconv.FormatInt(value, 10)})
}

// batch sets five variables, with every third call one of them against its constraints: an atomic batch is then refused
// whole, another in that item only.
func (m *mixture) batch(ctx context.Context, w, n int, atomic bool) error {
	request := &setpointv1.BatchSetVariablesRequest{SessionId: "mix", Atomic: atomic}
	bad := -1
	if n%3 == 0 {
		bad = n % 5
	}
	for i := range 5 {
		value := int64(w*1_000_000 + n*10 + i)
		if i == bad {
			value = -2
		}
		request.Writes = append(request.Writes, &setpointv1.VariableWrite{
			Variable: m.name(w + n + 3*i), Value: client.Integer(value)})
	}
	answer, err := m.clients[w%len(m.clients)].Variables.BatchSetVariables(ctx, request)
	if atomic && bad >= 0 {
		if failure := (*client.Error)(nil); !errors.As(err, &failure) || !errors.Is(err, client.ErrConstraintViolation) ||
			len(failure.Failed) != 1 || int(failure.Failed[0].GetIndex()) != bad {
			return fmt.Errorf("an atomic batch with item %d against its constraints: %w", bad, err)
		}
		return nil
	}
	if err != nil {
		return err
	}
	for i, result := range answer.GetResults() {
		if i == bad {
			if refusal := client.FromItem(result.GetError()); !errors.Is(refusal, client.ErrConstraintViolation) {
				return fmt.Errorf("item %d, against its constraints: %w", i, refusal)
			}
			continue
		}
		if result.GetError() != nil {
			return fmt.Errorf("item %d: %w", i, client.FromItem(result.GetError()))
		}
		if first := answer.GetResults()[0]; atomic && result.GetRevision() != first.GetRevision()+int64(i) {
			return fmt.Errorf("an atomic batch from revision %d has revision %d in place %d",
				first.GetRevision(), result.GetRevision(), i)
		}
		value := strconv.FormatInt(request.GetWrites()[i].GetValue().GetInteger(), 10)
		if err := m.accepted.add(written{result.GetVersion(), result.GetRevision(), value}); err != nil {
			return err
		}
	}
	return nil
}

// Single sets and batches of both kinds, on two servers, share one sequence of revisions and one of versions for each
// variable; what was refused left nothing.
func TestWritersOfEveryKind(t *testing.T) {
	t.Parallel()
	clients, url := serveMany(t, 2)
	m := &mixture{clients: clients, variables: 20}
	newSession(t, clients[0], "mix")
	request := &setpointv1.BatchRegisterVariablesRequest{SessionId: "mix", Atomic: true}
	for i := range m.variables {
		request.Registrations = append(request.Registrations, &setpointv1.VariableRegistration{
			Name: m.name(i), Type: typeInteger, Value: client.Integer(0), HistoryLimit: new(int64),
			Constraints: &setpointv1.Constraints{Min: proto.Float64(-1)}})
	}
	if _, err := clients[0].Variables.BatchRegisterVariables(t.Context(), request); err != nil {
		t.Fatal(err)
	}
	err := together(24, func(w int) error {
		for n := range 20 {
			var err error
			switch w % 3 {
			case 0:
				err = m.single(t.Context(), w, n)
			default:
				err = m.batch(t.Context(), w, n, w%3 == 1)
			}
			if err != nil {
				return fmt.Errorf("writer %d, call %d: %w", w, n, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}

	rows := checkHistory(t, testkit.Pool(t, url), "mix")
	m.accepted.check(t, rows)
	// The state is the history's end.
	last := map[string]row{}
	for _, r := range rows {
		last[r.Name] = r
	}
	for i := range m.variables {
		v, want := get(t, clients[i%2], "mix", m.name(i)), last[m.name(i)]
		if v.GetVersion() != *want.Version || strconv.FormatInt(v.GetValue().GetInteger(), 10) != *want.Value ||
			v.GetRevision() != want.Revision {
			t.Errorf("%s is %v, and history ends with %+v", m.name(i), v, want)
		}
	}
}

// What a variable allows binds every server at once: none goes by what it remembers of an earlier definition.
func TestConstraintsBindEveryServer(t *testing.T) {
	t.Parallel()
	clients, _ := serveMany(t, 2)
	newSession(t, clients[0], "shared")
	register(t, clients[0], "shared", "var_a", typeInteger, client.Integer(0))
	for _, c := range clients {
		set(t, c, "shared", "var_a", client.Integer(50))
	}
	for limit := int64(40); limit > 30; limit-- {
		here, there := clients[limit%2], clients[(limit+1)%2]
		set(t, there, "shared", "var_a", client.Integer(limit))
		_, err := here.Variables.UpdateVariable(t.Context(), &setpointv1.UpdateVariableRequest{
			SessionId: "shared", Variable: "var_a", Constraints: &setpointv1.Constraints{Max: proto.Float64(float64(limit))}})
		if err != nil {
			t.Fatal(err)
		}
		_, err = there.Variables.SetVariable(t.Context(), &setpointv1.SetVariableRequest{
			SessionId: "shared", Variable: "var_a", Value: client.Integer(limit + 1)})
		refusal := refused(t, "a set above the new maximum, on the other server", err, client.ErrConstraintViolation)
		if want := fmt.Sprintf("var_a: %d is above the maximum %d", limit+1, limit); !strings.Contains(refusal.Message, want) {
			t.Errorf("message: got %q, want %q", refusal.Message, want)
		}
		set(t, there, "shared", "var_a", client.Integer(limit-1))
	}
}
