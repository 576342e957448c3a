package main

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/setpointdb/setpoint/client"
	"github.com/setpointdb/setpoint/db"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
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

// newTuner is a run against a server of its own, which says what it does to a listener.
func newTuner(t *testing.T, out *listener) *tuner {
	t.Helper()
	s, err := server.Start(t.Context(), server.Config{
		GRPCAddr: "127.0.0.1:0", Limits: service.DefaultLimits, Log: slog.New(slog.DiscardHandler),
		Database: db.Config{URL: testkit.NewDatabase(t), MaxConns: 4},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Stop(context.Background()) })
	api, err := client.Dial(s.GRPCAddr())
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
