package service_test

import (
	"errors"
	"fmt"
	"io"
	"math"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/server"
	"github.com/setpointdb/setpoint/internal/testkit"
)

const (
	waiting    = setpointv1.OptimizationState_OPTIMIZATION_STATE_WAITING
	active     = setpointv1.OptimizationState_OPTIMIZATION_STATE_ACTIVE
	preempting = setpointv1.OptimizationState_OPTIMIZATION_STATE_PREEMPTING
	completed  = setpointv1.OptimizationState_OPTIMIZATION_STATE_COMPLETED
	failed     = setpointv1.OptimizationState_OPTIMIZATION_STATE_FAILED
	cancelled  = setpointv1.OptimizationState_OPTIMIZATION_STATE_CANCELLED
	expired    = setpointv1.OptimizationState_OPTIMIZATION_STATE_EXPIRED
	preempted  = setpointv1.OptimizationState_OPTIMIZATION_STATE_PREEMPTED
)

// setupClock is a bundle on a clock that stands still until the test moves it. The session never ends.
func setupClock(t *testing.T) (*bundle, *testkit.Clock) {
	t.Helper()
	var clock *testkit.Clock
	b := setup(t, func(config *server.Config) { clock = testkit.TakeClock(t, config.Database.URL) })
	b.exec(`update setpoint.sessions set ttl_us = 0, expires_at = 'infinity' where session_id = 's'`)
	return b, clock
}

func seconds(n float64) *durationpb.Duration {
	return durationpb.New(time.Duration(n * float64(time.Second)))
}

// ask asks for variables; change may alter the request.
func (b *bundle) ask(variables []string, change ...func(*setpointv1.StartOptimizationRequest)) (*setpointv1.Optimization, error) {
	req := &setpointv1.StartOptimizationRequest{SessionId: "s", Variables: variables}
	for _, c := range change {
		c(req)
	}
	return b.Optimizations.StartOptimization(b.ctx, req)
}

func (b *bundle) start(variables []string, change ...func(*setpointv1.StartOptimizationRequest)) *setpointv1.Optimization {
	b.t.Helper()
	o, err := b.ask(variables, change...)
	if err != nil {
		b.t.Fatal(err)
	}
	return o
}

func waits(req *setpointv1.StartOptimizationRequest) {
	req.Conflict = setpointv1.ConflictStrategy_CONFLICT_STRATEGY_WAIT
}

func preempts(priority int32) func(*setpointv1.StartOptimizationRequest) {
	return func(req *setpointv1.StartOptimizationRequest) {
		req.Conflict, req.Priority = setpointv1.ConflictStrategy_CONFLICT_STRATEGY_PREEMPT, priority
	}
}

func (b *bundle) optimization(id string) *setpointv1.Optimization {
	b.t.Helper()
	o, err := b.Optimizations.GetOptimization(b.ctx, &setpointv1.GetOptimizationRequest{SessionId: "s", OptimizationId: id})
	if err != nil {
		b.t.Fatal(err)
	}
	return o
}

func (b *bundle) wantState(id string, want setpointv1.OptimizationState) *setpointv1.Optimization {
	b.t.Helper()
	o := b.optimization(id)
	if o.GetState() != want {
		b.t.Fatalf("%s is %s, want %s (%s)", id, o.GetState(), want, o.GetEndReason())
	}
	return o
}

func (b *bundle) renew(o *setpointv1.Optimization) (*setpointv1.Optimization, error) {
	return b.Optimizations.RenewOptimization(b.ctx, &setpointv1.RenewOptimizationRequest{
		SessionId: "s", OptimizationId: o.GetOptimizationId(), FencingToken: o.GetFencingToken(),
	})
}

func (b *bundle) stop(o *setpointv1.Optimization) *setpointv1.StopOptimizationResponse {
	b.t.Helper()
	r, err := b.Optimizations.StopOptimization(b.ctx, &setpointv1.StopOptimizationRequest{
		SessionId: "s", OptimizationId: o.GetOptimizationId(),
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return r
}

func lease(o *setpointv1.Optimization) *setpointv1.Lease {
	return &setpointv1.Lease{OptimizationId: o.GetOptimizationId(), FencingToken: o.GetFencingToken()}
}

// write sets an integer, under a lease if there is one.
func (b *bundle) write(name string, v int64, lease *setpointv1.Lease) error {
	_, err := b.Variables.SetVariable(b.ctx, &setpointv1.SetVariableRequest{
		SessionId: "s", Variable: name, Value: client.Integer(v), Lease: lease,
	})
	return err
}

func TestALockedVariableRefusesOthers(t *testing.T) {
	t.Parallel()
	b, clock := setupClock(t)
	b.integer("x")
	o := b.start([]string{"x"}, func(req *setpointv1.StartOptimizationRequest) { req.OptimizerId = "tuner" })
	if o.GetState() != active || o.GetFencingToken() != 1 {
		t.Fatalf("started as %v", o)
	}
	want := map[string]string{
		"variable": "x", "optimizer_id": "tuner", "optimization_id": o.GetOptimizationId(),
		"started_at": clock.Now().UTC().Format(time.RFC3339Nano),
		"expires_at": clock.Now().Add(time.Minute).UTC().Format(time.RFC3339Nano),
	}
	_, err := b.ask([]string{"x"})
	wantMetadata(t, wantReason(t, err, setpointv1.ErrorReason_ALREADY_OPTIMIZING), want)
	wantMetadata(t, wantReason(t, b.write("x", 1, nil), setpointv1.ErrorReason_ALREADY_OPTIMIZING), want)
	if err := b.write("x", 2, lease(o)); err != nil {
		t.Fatal(err)
	}
	equal(t, "who optimizes", &setpointv1.VariableOptimization{
		OptimizationId: o.GetOptimizationId(), OptimizerId: "tuner", StartedAt: o.GetStartedAt(), ExpiresAt: o.GetExpiresAt(),
	}, b.get("x").GetOptimization())

	b.stop(o)
	wantReason(t, b.write("x", 3, lease(o)), setpointv1.ErrorReason_LEASE_LOST)
	if err := b.write("x", 3, nil); err != nil {
		t.Fatal(err)
	}
	second := b.start([]string{"x"})
	if second.GetFencingToken() != 2 {
		t.Errorf("token %d", second.GetFencingToken())
	}
	clock.Advance(time.Minute)
	wantReason(t, b.write("x", 4, lease(second)), setpointv1.ErrorReason_LEASE_LOST)
	b.wantState(second.GetOptimizationId(), expired)
	if err := b.write("x", 4, nil); err != nil {
		t.Fatal(err)
	}
	b.start([]string{"x"})
	wantReason(t, b.write("x", 5, lease(second)), setpointv1.ErrorReason_LEASE_LOST)
}

func TestWaitersGoInOrder(t *testing.T) {
	t.Parallel()
	b, _ := setupClock(t)
	b.integer("x")
	b.integer("y")
	first := b.start([]string{"x"})
	second := b.start([]string{"x", "y"}, waits)
	third := b.start([]string{"y"}, waits) // y is free, but the second is before it.
	for i, o := range []*setpointv1.Optimization{second, third} {
		if o.GetState() != waiting || o.GetFencingToken() != 0 || o.GetQueuePosition() != 1 && i == 0 {
			t.Fatalf("%d waits as %v", i, o)
		}
	}
	_, err := b.ask([]string{"y"})
	e := wantReason(t, err, setpointv1.ErrorReason_ALREADY_OPTIMIZING)
	if e.Metadata["optimization_id"] != second.GetOptimizationId() {
		t.Errorf("in the way: %v", e.Metadata)
	}
	granted := make(chan string, 2)
	for _, o := range []*setpointv1.Optimization{third, second} {
		stream, err := b.Optimizations.AwaitOptimization(b.ctx, &setpointv1.AwaitOptimizationRequest{
			SessionId: "s", OptimizationId: o.GetOptimizationId(),
		})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := stream.Recv(); err != nil || got.GetState() != waiting {
			t.Fatal(got, err)
		}
		go func() { granted <- await(stream) }()
	}
	b.stop(first)
	equal(t, "granted first", second.GetOptimizationId()+" ACTIVE", <-granted)
	b.wantState(third.GetOptimizationId(), waiting)
	b.stop(second)
	equal(t, "granted then", third.GetOptimizationId()+" ACTIVE", <-granted)
}

// await follows a stream to its end.
func await(stream grpc.ServerStreamingClient[setpointv1.Optimization]) string {
	last := ""
	for {
		o, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return last
		}
		if err != nil {
			return err.Error()
		}
		last = fmt.Sprintf("%s %s", o.GetOptimizationId(), o.GetState().String()[len("OPTIMIZATION_STATE_"):])
	}
}

func TestPreemption(t *testing.T) {
	t.Parallel()
	b, clock := setupClock(t)
	b.integer("x")
	o := b.start([]string{"x"}, func(req *setpointv1.StartOptimizationRequest) { req.Priority = 1 })
	_, err := b.ask([]string{"x"}, preempts(1))
	wantReason(t, err, setpointv1.ErrorReason_ALREADY_OPTIMIZING)
	p := b.start([]string{"x"}, preempts(2))
	if p.GetState() != waiting || p.GetQueuePosition() != 1 {
		t.Fatalf("preempts as %v", p)
	}
	renewed, err := b.renew(o)
	if err != nil {
		t.Fatal(err)
	}
	if renewed.GetState() != preempting || renewed.GetPreemption().GetBy() != p.GetOptimizationId() ||
		!renewed.GetExpiresAt().AsTime().Equal(clock.Now().Add(5*time.Second)) {
		t.Fatalf("told %v", renewed)
	}
	if err := b.write("x", 1, lease(o)); err != nil {
		t.Fatal(err)
	}
	clock.Advance(5 * time.Second)
	wantReason(t, b.write("x", 2, lease(o)), setpointv1.ErrorReason_LEASE_LOST)
	b.wantState(o.GetOptimizationId(), preempted)
	granted, err := b.renew(p)
	if err != nil || granted.GetState() != active || granted.GetFencingToken() != 2 {
		t.Fatal(granted, err)
	}
}

func TestTrials(t *testing.T) {
	t.Parallel()
	b, clock := setupClock(t)
	b.integer("x")
	o := b.start([]string{"x"}, func(req *setpointv1.StartOptimizationRequest) {
		req.Objective = &setpointv1.Objective{Metric: "loss", Direction: setpointv1.Direction_DIRECTION_MINIMIZE}
	})
	report := func(x int64, loss float64, change ...func(*setpointv1.ReportProgressRequest)) *setpointv1.ReportProgressResponse {
		t.Helper()
		req := &setpointv1.ReportProgressRequest{
			SessionId: "s", OptimizationId: o.GetOptimizationId(), FencingToken: o.GetFencingToken(),
			Values: map[string]*setpointv1.Value{"x": client.Integer(x)}, Metrics: map[string]float64{"loss": loss},
		}
		for _, c := range change {
			c(req)
		}
		r, err := b.Optimizations.ReportProgress(b.ctx, req)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	if r := report(1, 0.5); !r.GetIsBest() || r.GetTrial().GetNumber() != 1 {
		t.Errorf("first: %v", r)
	}
	if r := report(2, math.NaN()); r.GetIsBest() {
		t.Errorf("NaN: %v", r)
	}
	if r := report(3, 0.25, func(req *setpointv1.ReportProgressRequest) { req.Apply = true }); !r.GetIsBest() || !r.GetTrial().GetApplied() {
		t.Errorf("third: %v", r)
	}
	if v := b.get("x"); v.GetValue().GetInteger() != 3 || v.GetVersion() != 1 {
		t.Errorf("applied: %v", v)
	}
	report(4, 0.75)
	again := report(9, 0.1, func(req *setpointv1.ReportProgressRequest) { req.Number = ptr(int64(3)) })
	if again.GetTrial().GetValues()["x"].GetInteger() != 3 || !again.GetIsBest() {
		t.Errorf("again: %v", again)
	}
	list, err := b.Optimizations.ListTrials(b.ctx, &setpointv1.ListTrialsRequest{
		SessionId: "s", OptimizationId: o.GetOptimizationId(), Metric: "loss",
	})
	if err != nil {
		t.Fatal(err)
	}
	var order []int64
	for _, trial := range list.GetTrials() {
		order = append(order, trial.GetNumber())
	}
	equal(t, "best first", []int64{3, 1, 4}, order)
	b.set2("x", 7, lease(o))
	stopped, err := b.Optimizations.StopOptimization(b.ctx, &setpointv1.StopOptimizationRequest{
		SessionId: "s", OptimizationId: o.GetOptimizationId(), ApplyBest: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	if stopped.GetFinalValues()["x"].GetInteger() != 3 || stopped.GetOptimization().GetState() != completed ||
		stopped.GetOptimization().GetTrialCount() != 4 {
		t.Errorf("stopped: %v", stopped)
	}
	clock.Advance(time.Hour)
	if r := report(5, 0.01, func(req *setpointv1.ReportProgressRequest) { req.Apply = true }); !r.GetLate() || r.GetIsBest() {
		t.Errorf("late: %v", r)
	}
	if got := b.optimization(o.GetOptimizationId()); got.GetBestTrial().GetNumber() != 3 || got.GetLateCount() != 1 {
		t.Errorf("after the late one: %v", got)
	}
}

func (b *bundle) set2(name string, v int64, lease *setpointv1.Lease) {
	b.t.Helper()
	if err := b.write(name, v, lease); err != nil {
		b.t.Fatal(err)
	}
}

// The grace is the holder's for as long as it renews, and not longer, however short its ttl; and who loses it and keeps it is
// recomputed as those who want it come and go.
func TestTheGraceOfAPreemption(t *testing.T) {
	t.Parallel()
	b, clock := setupClock(t)
	b.integer("x")
	grace := func(n float64) func(*setpointv1.StartOptimizationRequest) {
		return func(r *setpointv1.StartOptimizationRequest) { r.Grace, r.Ttl = seconds(n), seconds(3600) }
	}
	short := func(r *setpointv1.StartOptimizationRequest) { r.Ttl, r.ProgressTimeout = seconds(2), seconds(3) }
	o := b.start([]string{"x"}, short)
	p := b.start([]string{"x"}, preempts(1), grace(5))
	deadline := clock.Now().Add(5 * time.Second)
	for range 4 {
		clock.Advance(time.Second)
		if _, err := b.renew(o); err != nil {
			t.Fatal(err)
		}
		b.report(o)
	}
	told := b.wantState(o.GetOptimizationId(), preempting)
	if !told.GetExpiresAt().AsTime().Equal(deadline) || !told.GetPreemption().GetDeadline().AsTime().Equal(deadline) {
		t.Errorf("told %v, want the deadline %s", told, deadline)
	}
	clock.Advance(time.Second)
	equal(t, "why it ended", "preempted by "+p.GetOptimizationId(), b.wantState(o.GetOptimizationId(), preempted).GetEndReason())
	b.stop(p)

	o = b.start([]string{"x"}, func(r *setpointv1.StartOptimizationRequest) { r.Ttl = seconds(3600) })
	first := b.start([]string{"x"}, preempts(1), grace(60))
	second := b.start([]string{"x"}, preempts(2), grace(1))
	_, err := b.ask([]string{"x"}, preempts(2))
	wantReason(t, err, setpointv1.ErrorReason_ALREADY_OPTIMIZING) // Not against one that is to have it already.
	want := func(by *setpointv1.Optimization, left float64) {
		t.Helper()
		told := b.wantState(o.GetOptimizationId(), preempting).GetPreemption()
		if told.GetBy() != by.GetOptimizationId() || !told.GetDeadline().AsTime().Equal(clock.Now().Add(seconds(left).AsDuration())) {
			t.Errorf("told %v, want %s in %v s", told, by.GetOptimizationId(), left)
		}
	}
	want(second, 1)
	b.stop(second)
	want(first, 60)
	b.stop(first)
	kept := b.wantState(o.GetOptimizationId(), active)
	if kept.GetPreemption() != nil || !kept.GetExpiresAt().AsTime().Equal(o.GetExpiresAt().AsTime()) {
		t.Errorf("kept: %v", kept)
	}
	if err := b.write("x", 1, lease(o)); err != nil {
		t.Error(err)
	}
	// Of several holders each is told; a preempting one is before those who merely wait.
	b.integer("y")
	other := b.start([]string{"y"})
	queued := b.start([]string{"x", "y"}, waits)
	third := b.start([]string{"x", "y"}, preempts(3), grace(0))
	for _, holder := range []*setpointv1.Optimization{o, other} {
		b.wantState(holder.GetOptimizationId(), preempted)
	}
	if granted, err := b.renew(third); err != nil || granted.GetState() != active {
		t.Fatal(granted, err)
	}
	b.wantState(queued.GetOptimizationId(), waiting)
}
