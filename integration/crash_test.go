package integration

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/proto"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/localpg"
	"github.com/setpointdb/setpoint/internal/testkit"
)

// stubborn sends a call again, under its request id, until it is answered.
var stubborn = []client.Option{
	client.WithRetry(client.RetryPolicy{MaxAttempts: 10_000, InitialBackoff: 20 * time.Millisecond, MaxBackoff: 200 * time.Millisecond}),
	client.WithTimeout(2 * patience),
}

// load is many writers, each of whose calls has a request id, which is the reason of what it writes too.
type load struct {
	client  *client.Client
	session string

	stop   atomic.Bool
	cancel context.CancelFunc
	// passed has a channel for each number of acknowledged calls that somebody waits for, closed when it is reached.
	passed map[int64]chan struct{}
	count  atomic.Int64

	mu    sync.Mutex
	acked map[string]place
	sent  []exchange
	done  chan error
}

// exchange is a call that was answered, and the way to send it once more.
type exchange struct {
	answer proto.Message
	again  func(context.Context) (proto.Message, error)
}

// place is where in history a write was put, as its answer says.
type place struct{ version, revision int64 }

// startLoad begins to write var_a and var_b; the milestones are counts of acknowledged calls. It ends by finish
// or abandon.
func startLoad(ctx context.Context, c *client.Client, session string, milestones ...int64) *load {
	ctx, cancel := context.WithCancel(ctx)
	l := &load{client: c, session: session, passed: map[int64]chan struct{}{}, acked: map[string]place{},
		cancel: cancel, done: make(chan error, 1)}
	for _, m := range milestones {
		l.passed[m] = make(chan struct{})
	}
	go func() { l.done <- together(16, func(w int) error { return l.writer(ctx, w) }) }()
	return l
}

func (l *load) writer(ctx context.Context, w int) error {
	for n := 0; !l.stop.Load(); n++ {
		id := fmt.Sprintf("write-%d-%d", w, n)
		var err error
		switch n % 3 {
		case 0:
			err = l.set(ctx, id, client.Integer(int64(w)*1_000_000+int64(n)))
		case 1:
			err = l.batch(ctx, id, client.Integer(int64(w)*1_000_000+int64(n)))
		case 2:
			err = l.rollback(ctx, id)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", id, err)
		}
		if reached := l.passed[l.count.Add(1)]; reached != nil {
			close(reached)
		}
	}
	return nil
}

func (l *load) acknowledge(id string, at place) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.acked[id] = at
}

// send makes a call, and remembers it if it is answered.
func send[A proto.Message, R any](ctx context.Context, l *load,
	call func(context.Context, R, ...grpc.CallOption) (A, error), request R) (A, error) {
	answer, err := call(ctx, request)
	if err == nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.sent = append(l.sent, exchange{answer,
			func(ctx context.Context) (proto.Message, error) { return call(ctx, request) }})
	}
	return answer, err
}

func (l *load) set(ctx context.Context, id string, value *setpointv1.Value) error {
	answer, err := send(ctx, l, l.client.Variables.SetVariable, &setpointv1.SetVariableRequest{
		SessionId: l.session, Variable: "var_a", Value: value, Reason: id, RequestId: id})
	if err == nil {
		l.acknowledge(id, place{answer.GetVersion(), answer.GetRevision()})
	}
	return err
}

func (l *load) batch(ctx context.Context, id string, value *setpointv1.Value) error {
	request := &setpointv1.BatchSetVariablesRequest{SessionId: l.session, RequestId: id}
	for _, name := range []string{"var_b", "var_a"} {
		request.Writes = append(request.Writes,
			&setpointv1.VariableWrite{Variable: name, Value: value, Reason: id + "-" + name})
	}
	answer, err := send(ctx, l, l.client.Variables.BatchSetVariables, request)
	for _, result := range answer.GetResults() {
		if result.GetError() != nil {
			return client.FromItem(result.GetError())
		}
		l.acknowledge(id+"-"+result.GetVariable(), place{result.GetVersion(), result.GetRevision()})
	}
	return err
}

func (l *load) rollback(ctx context.Context, id string) error {
	answer, err := send(ctx, l, l.client.History.RollbackVariable, &setpointv1.RollbackVariableRequest{
		SessionId: l.session, Variable: "var_a", Version: 0, Reason: id, RequestId: id})
	if err == nil {
		l.acknowledge(id, place{answer.GetVersion(), answer.GetRevision()})
	}
	return err
}

// await returns when a milestone is reached.
func (l *load) await(t *testing.T, milestone int64) {
	t.Helper()
	select {
	case <-l.passed[milestone]:
	case err := <-l.done:
		t.Fatalf("the writers ended before %d writes: %v", milestone, err)
	case <-time.After(2 * patience):
		t.Fatalf("%d writes after a long time, not %d", l.count.Load(), milestone)
	}
}

// finish ends the load, by which every call has been answered, and fails the test unless history has every write once,
// where it was acknowledged, and nothing else.
func (l *load) finish(t *testing.T, databaseURL string) {
	t.Helper()
	l.stop.Store(true)
	defer l.cancel()
	if err := <-l.done; err != nil {
		t.Fatal(err)
	}
	rows := checkHistory(t, testkit.Pool(t, databaseURL), l.session)
	found := l.check(t, rows)
	if found != len(l.acked) {
		t.Errorf("%d writes were acknowledged, and %d are in history", len(l.acked), found)
	}
	t.Logf("%d calls were acknowledged", l.count.Load())
}

// abandon ends the load with calls unanswered.
func (l *load) abandon() {
	l.stop.Store(true)
	l.cancel()
	<-l.done
}

// check fails the test unless every acknowledged write is in history where it was acknowledged, and no write twice. It
// returns how many writes are there, acknowledged or not.
func (l *load) check(t *testing.T, rows []row) int {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	found := map[string]place{}
	for _, r := range rows {
		if r.Reason == "" {
			continue // not of the load
		}
		if before, twice := found[r.Reason]; twice {
			t.Errorf("%s was written as %+v and as %+v", r.Reason, before, r)
		}
		found[r.Reason] = place{*r.Version, r.Revision}
	}
	for id, at := range l.acked {
		if found[id] != at {
			t.Errorf("%s was acknowledged as %+v, and history has %+v", id, at, found[id])
		}
	}
	return len(found)
}

func TestKilledServerLosesNothing(t *testing.T) {
	t.Parallel()
	url := testkit.NewDatabase(t)
	s := serve(t, url)
	c := dial(t, s, stubborn...)
	newSession(t, c, "crash")
	register(t, c, "crash", "var_a", typeInteger, client.Integer(-1))
	register(t, c, "crash", "var_b", typeInteger, client.Integer(-1))
	l := startLoad(t.Context(), c, "crash", 50, 150, 250, 350)
	for _, milestone := range []int64{50, 150, 250} {
		l.await(t, milestone)
		s.kill(t)
		s = serve(t, url, "--grpc-addr", s.grpc)
	}
	l.await(t, 350)
	l.finish(t, url)
}

// localDatabase runs a PostgreSQL of the test's own, whatever the other tests use: one that it may kill.
func localDatabase(t *testing.T) (*localpg.Server, string) {
	t.Helper()
	dir := folder(t)
	pg, err := localpg.Start(t.Context(), localpg.Config{DataDir: dir, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := pg.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return pg, dir
}

// postmaster is the process id of the PostgreSQL that runs on a data directory.
func postmaster(t *testing.T, dataDir string) int {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dataDir, "postgres", "postmaster.pid"))
	if err != nil {
		t.Fatal(err)
	}
	line, _, _ := strings.Cut(string(text), "\n")
	pid, err := strconv.Atoi(line)
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

func kill(t *testing.T, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatalf("kill process %d: %v", pid, err)
	}
}

func TestKilledPostgresLosesNothing(t *testing.T) {
	t.Parallel()
	pg, dir := localDatabase(t)
	if answer := run(t, command{args: []string{"migrate", "up", "--database-url", databaseFile(t, pg.URL())}}); answer.status != 0 {
		t.Fatalf("migrate up: %s", answer.stderr)
	}
	s := ready(t, pg.URL())
	c := dial(t, s, stubborn...)
	newSession(t, c, "crash")
	register(t, c, "crash", "var_a", typeInteger, client.Integer(-1))
	register(t, c, "crash", "var_b", typeInteger, client.Integer(-1))
	l := startLoad(t.Context(), c, "crash", 50, 150, 250, 350)

	l.await(t, 50)
	kill(t, postmaster(t, dir))
	// A backend's death makes PostgreSQL end all the others and recover.
	l.await(t, 150)
	conn := connect(t, pg.URL())
	kill(t, int(conn.PgConn().PID()))
	l.await(t, 250)
	kill(t, postmaster(t, dir))
	l.await(t, 350)

	l.finish(t, pg.URL())
	awaitHealth(t, dial(t, s), healthv1.HealthCheckResponse_SERVING)
}

func connect(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) }) // Some are killed.
	return conn
}

// holdUp makes a call wait: it locks the session in SQL, starts a set there, and returns when the set waits for the lock.
// The set's error comes on the channel after release, or when the server gives it up.
func holdUp(t *testing.T, c *client.Client, url, session string) (func(), <-chan error) {
	t.Helper()
	conn := connect(t, url)
	tx, err := conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), "select from setpoint.sessions where session_id = $1 for update", session); err != nil {
		t.Fatal(err)
	}
	answered := make(chan error, 1)
	go func() {
		_, err := c.Variables.SetVariable(t.Context(),
			&setpointv1.SetVariableRequest{SessionId: session, Variable: "var_a", Value: client.Integer(1)})
		answered <- err
	}()
	watch := connect(t, url)
	testkit.Eventually(t, patience, func() error {
		var waiting int
		err := watch.QueryRow(t.Context(), `select count(*) from pg_stat_activity
			where datname = current_database() and wait_event_type = 'Lock'`).Scan(&waiting)
		if err == nil && waiting == 0 {
			err = errors.New("no statement waits for a lock")
		}
		return err
	})
	return func() {
		if err := tx.Rollback(t.Context()); err != nil {
			t.Errorf("release the lock: %v", err)
		}
	}, answered
}

// aLongTime lets statements wait for a lock for as long as the test does.
const aLongTime = "statement_timeout=300s"

func TestStoppedServerEndsWhatItHasBegun(t *testing.T) {
	t.Parallel()
	url := testkit.NewDatabase(t)
	s := ready(t, withParameter(url, aLongTime), "--drain-timeout", "5m", "--database-timeout", "5m")
	c := dial(t, s)
	newSession(t, c, "drain")
	register(t, c, "drain", "var_a", typeInteger, client.Integer(0))
	release, answered := holdUp(t, c, url, "drain")

	s.terminate(t)
	s.await(t, s.log, "msg=stopping")
	for what, other := range map[string]*client.Client{
		"the connection of the call under way": c,
		"another connection":                   dial(t, s),
	} {
		testkit.Eventually(t, patience, func() error {
			// With a deadline of its own the client does not go on trying.
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			_, err := other.Variables.GetVariable(ctx, &setpointv1.GetVariableRequest{SessionId: "drain", Variable: "var_a"})
			if refusal := (*client.Error)(nil); errors.As(err, &refusal) && refusal.Code == codes.Unavailable {
				return nil
			}
			return fmt.Errorf("a new call on %s: %w", what, err)
		})
	}
	select {
	case err := <-answered:
		t.Fatalf("the call under way ended before it could: %v", err)
	default:
	}

	release()
	if err := <-answered; err != nil {
		t.Errorf("the call under way: %v", err)
	}
	if status := s.wait(t); status != 0 {
		t.Errorf("exit status %d, want 0", status)
	}
	if rows := checkHistory(t, testkit.Pool(t, url), "drain"); len(rows) != 2 {
		t.Errorf("history has %d rows, want those of the registration and of the call under way", len(rows))
	}
}

func TestStoppedServerCutsOffWhatDoesNotEnd(t *testing.T) {
	t.Parallel()
	url := testkit.NewDatabase(t)
	s := ready(t, withParameter(url, aLongTime), "--drain-timeout", "200ms", "--database-timeout", "5m")
	c := dial(t, s, client.WithoutRetry())
	newSession(t, c, "drain")
	register(t, c, "drain", "var_a", typeInteger, client.Integer(0))
	release, answered := holdUp(t, c, url, "drain")

	s.terminate(t)
	if status := s.wait(t); status != 0 {
		t.Errorf("exit status %d, want 0", status)
	}
	s.await(t, s.log, "calls still under way are cut off")
	if err := <-answered; err == nil {
		t.Error("the call was answered, although the session was locked")
	}
	release()
}
