package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/setpointdb/setpoint/client"
	"github.com/setpointdb/setpoint/db"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/authenticate"
	"github.com/setpointdb/setpoint/internal/server"
	"github.com/setpointdb/setpoint/internal/testkit"
	"github.com/setpointdb/setpoint/service"
)

func TestMain(m *testing.M) {
	testkit.Main(m)
}

const (
	stateCompleted = setpointv1.OptimizationState_OPTIMIZATION_STATE_COMPLETED
	stateCancelled = setpointv1.OptimizationState_OPTIMIZATION_STATE_CANCELLED
)

// listener is what a run prints, and does something once it has printed a word.
type listener struct {
	word string
	do   func()

	once sync.Once
	text strings.Builder
}

func (l *listener) Write(p []byte) (int, error) {
	l.text.Write(p)
	if strings.Contains(l.text.String(), l.word) {
		l.once.Do(l.do)
	}
	return len(p), nil
}

// startServer runs a server on a database.
func startServer(t *testing.T, url string, modes ...authenticate.Mode) string {
	t.Helper()
	s, err := server.Start(t.Context(), server.Config{
		GRPCAddr: "127.0.0.1:0", Limits: service.DefaultLimits, Log: slog.New(slog.DiscardHandler),
		Database: db.Config{URL: url, MaxConns: 4}, Authentication: authenticate.Config{Modes: modes},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Stop(context.Background()) })
	return s.GRPCAddr()
}

// newTuner is a run against a server of its own, which says what it does to a listener.
func newTuner(t *testing.T, out *listener) *tuner {
	t.Helper()
	api, err := client.Dial(startServer(t, testkit.NewDatabase(t), authenticate.None))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = api.Close() })
	return &tuner{api: api, session: "s", eval: newEvaluator(&corpus{data: prose(20 << 10)}), out: out}
}

// other starts an optimization of somebody else's.
func (t *tuner) other(ctx context.Context, conflict setpointv1.ConflictStrategy) error {
	_, err := t.api.Optimizations.StartOptimization(ctx, &setpointv1.StartOptimizationRequest{
		SessionId: t.session, Variables: []string{levelVariable}, OptimizerId: "urgent", Priority: 1, Conflict: conflict,
		Ttl: durationpb.New(time.Hour), Grace: durationpb.New(time.Hour),
	})
	return err
}

// endsAs checks the state that the record of a run is in, and that the variables have the best trial's values, if it has one.
func (t *tuner) endsAs(test *testing.T, state setpointv1.OptimizationState, reason string) {
	test.Helper()
	record, err := t.api.Optimizations.GetOptimization(test.Context(), &setpointv1.GetOptimizationRequest{
		SessionId: t.session, OptimizationId: t.optimization,
	})
	if err != nil {
		test.Fatal(err)
	}
	if record.GetState() != state || !strings.Contains(record.GetEndReason(), reason) {
		test.Errorf("it is %s: %s; want %s: %s", record.GetState(), record.GetEndReason(), state, reason)
	}
	if record.GetBestTrial() == nil {
		return
	}
	best, err := settingOf(record.GetBestTrial().GetValues())
	if err != nil {
		test.Fatal(err)
	}
	if at, err := t.read(test.Context()); err != nil || at != best {
		test.Errorf("the variables are at %v, %v; the best is %v", at, err, best)
	}
}

func TestRun(t *testing.T) {
	t.Parallel()
	out := &listener{word: "start: ", do: func() {}}
	run := newTuner(t, out)
	if err := run.run(t.Context(), 2, 10, 1); err != nil {
		t.Fatal(err)
	}
	run.endsAs(t, stateCompleted, "tuned")
	if text := out.text.String(); !strings.Contains(text, "the best of 21 trials") {
		t.Errorf("it printed\n%s", text)
	}
}

// endless is more rounds than a test waits for.
const endless = 1_000_000

func TestInterruptedRunLeavesTheBest(t *testing.T) {
	t.Parallel()
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	out := &listener{word: "worker ", do: interrupt}
	run := newTuner(t, out)
	if err := run.run(ctx, 2, endless, 1); !errors.Is(err, errInterrupted) {
		t.Fatalf("got %v", err)
	}
	run.endsAs(t, stateCancelled, "interrupted")
	if text := out.text.String(); !strings.Contains(text, "the best of ") {
		t.Errorf("it printed\n%s", text)
	}
}

func TestPreemptedRunGivesWay(t *testing.T) {
	t.Parallel()
	refused := make(chan error, 1)
	out := &listener{word: "worker "}
	run := newTuner(t, out)
	out.do = func() { refused <- run.other(t.Context(), setpointv1.ConflictStrategy_CONFLICT_STRATEGY_PREEMPT) }
	if err := run.run(t.Context(), 2, endless, 1); !errors.Is(err, errGivesWay) {
		t.Fatalf("got %v", err)
	}
	if err := <-refused; err != nil {
		t.Fatal(err)
	}
	run.endsAs(t, stateCancelled, "gave way to urgent")
}

func TestInterruptedInTheQueue(t *testing.T) {
	t.Parallel()
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	run := newTuner(t, &listener{word: "place 1 in the queue", do: interrupt})
	if err := run.prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := run.other(t.Context(), setpointv1.ConflictStrategy_CONFLICT_STRATEGY_ABORT); err != nil {
		t.Fatal(err)
	}
	if err := run.run(ctx, 2, endless, 1); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	run.endsAs(t, stateCancelled, "wait for the lease")
}

// program is a short run of the whole program on a folder of its own; it returns what was printed.
func program(t *testing.T, args ...string) (string, error) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), prose(20<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	out := &strings.Builder{}
	err := run(t.Context(), append([]string{"--dir", dir, "--workers", "2", "--rounds", "3"}, args...), out)
	return out.String(), err
}

// As "setpoint dev" has it: no authentication, and a default session that is not the program's.
func TestProgramHasASessionOfItsOwn(t *testing.T) {
	t.Parallel()
	addr := startServer(t, testkit.NewDatabase(t), authenticate.None)
	api, err := client.Dial(addr)
	if err != nil {
		t.Fatal(err)
	}
	defer api.Close()
	if _, err := api.Sessions.CreateSession(t.Context(), &setpointv1.CreateSessionRequest{SessionId: "default"}); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time, everything is there
		if out, err := program(t, "--addr", addr); err != nil || !strings.Contains(out, "the best of 7 trials") {
			t.Fatalf("got %v\n%s", err, out)
		}
	}
	session, err := api.Sessions.GetSession(t.Context(), &setpointv1.GetSessionRequest{SessionId: ownSession})
	if err != nil || session.GetOwner() != principal {
		t.Errorf("its session is of %q: %v", session.GetOwner(), err)
	}
	if _, err := program(t, "--addr", addr, "--session", "default"); err == nil || !strings.Contains(err.Error(), "name another by --session") {
		t.Errorf("in somebody else's session: %v", err)
	}
	if _, err := api.Access.AddAccessRule(t.Context(), &setpointv1.AddAccessRuleRequest{SessionId: "default", Rule: &setpointv1.AccessRuleSpec{
		Subject: principal, Permissions: []setpointv1.Permission{setpointv1.Permission_PERMISSION_OPTIMIZE}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := program(t, "--addr", addr, "--session", "default"); err != nil {
		t.Errorf("in somebody else's session, allowed: %v", err)
	}
}

func TestProgramShowsItsToken(t *testing.T) {
	t.Parallel()
	url := testkit.NewDatabase(t)
	database, err := db.Open(t.Context(), db.Config{URL: url, MaxConns: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer database.Close()
	made, err := service.BootstrapToken(t.Context(), database, &setpointv1.CreateTokenRequest{Principal: "service:tuner"}, "os:test")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(made.GetSecret()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	addr := startServer(t, url, authenticate.Token)
	if _, err := program(t, "--addr", addr); !errors.Is(err, client.ErrCredentialsMissing) {
		t.Errorf("without a token: %v", err)
	}
	if out, err := program(t, "--addr", addr, "--token-file", file); err != nil || !strings.Contains(out, "the best of 7 trials") {
		t.Errorf("got %v\n%s", err, out)
	}
	missing := filepath.Join(t.TempDir(), "ca.pem")
	if _, err := program(t, "--addr", addr, "--ca-cert", missing); err == nil || !strings.Contains(err.Error(), missing) {
		t.Errorf("with a file of authorities that is not there: %v", err)
	}
}
