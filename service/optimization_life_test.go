package service_test

import (
	"fmt"
	"math"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

func (b *bundle) report(o *setpointv1.Optimization, change ...func(*setpointv1.ReportProgressRequest)) *setpointv1.ReportProgressResponse {
	b.t.Helper()
	req := &setpointv1.ReportProgressRequest{
		SessionId: "s", OptimizationId: o.GetOptimizationId(), FencingToken: o.GetFencingToken(),
	}
	for _, c := range change {
		c(req)
	}
	r, err := b.Optimizations.ReportProgress(b.ctx, req)
	if err != nil {
		b.t.Fatal(err)
	}
	return r
}

func (b *bundle) await(o *setpointv1.Optimization) grpc.ServerStreamingClient[setpointv1.Optimization] {
	b.t.Helper()
	stream, err := b.Optimizations.AwaitOptimization(b.ctx, &setpointv1.AwaitOptimizationRequest{
		SessionId: "s", OptimizationId: o.GetOptimizationId(),
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return stream
}

// A report in time extends the lease, and only reports keep a progress_timeout from ending it.
func TestAliveButStuck(t *testing.T) {
	t.Parallel()
	b, clock := setupClock(t)
	b.integer("x")
	o := b.start([]string{"x"}, func(r *setpointv1.StartOptimizationRequest) {
		r.Ttl, r.ProgressTimeout = seconds(10), seconds(15)
	})
	step := func() { clock.Advance(8 * time.Second) }
	step()
	if r := b.report(o); !r.GetExpiresAt().AsTime().Equal(clock.Now().Add(10*time.Second)) || r.GetRemaining().AsDuration() != 10*time.Second {
		t.Errorf("after a report: %v", r)
	}
	step()
	renewed, err := b.renew(o)
	if err != nil || !renewed.GetExpiresAt().AsTime().Equal(clock.Now().Add(7*time.Second)) {
		t.Fatalf("renewed: %v, %v", renewed, err)
	}
	step()
	_, err = b.renew(o)
	wantReason(t, err, setpointv1.ErrorReason_OPTIMIZATION_ENDED)
	ended := b.wantState(o.GetOptimizationId(), expired)
	equal(t, "why", "no progress was reported in time", ended.GetEndReason())
	equal(t, "when", clock.Now().Add(-time.Second).UTC(), ended.GetEndedAt().AsTime())
	late := b.report(o, func(r *setpointv1.ReportProgressRequest) {
		r.Values, r.Apply = map[string]*setpointv1.Value{"x": client.Integer(9)}, true
	})
	equal(t, "when it was over", ended.GetEndedAt(), late.GetExpiresAt())
	if !late.GetLate() || late.GetTrial().GetApplied() || late.GetRemaining() != nil || b.get("x").GetVersion() != 0 {
		t.Errorf("late: %v", late)
	}
}

func TestWaitingForAsLongAsItIsTo(t *testing.T) {
	t.Parallel()
	b, clock := setupClock(t)
	b.integer("x")
	o := b.start([]string{"x"})
	w := b.start([]string{"x"}, waits, func(r *setpointv1.StartOptimizationRequest) { r.MaxWait = seconds(5) })
	stream := b.await(w)
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	clock.Advance(5 * time.Second)
	_, err := stream.Recv()
	e := wantReason(t, err, alreadyOptimize)
	if e.Metadata["optimization_id"] != o.GetOptimizationId() || e.Metadata["variable"] != "x" {
		t.Errorf("metadata %v", e.Metadata)
	}
	b.wantState(w.GetOptimizationId(), cancelled)
	// Behind one that itself waits it is that one who is named.
	b.integer("y")
	before := b.start([]string{"x", "y"}, waits)
	behind := b.start([]string{"y"}, waits, func(r *setpointv1.StartOptimizationRequest) { r.MaxWait = seconds(5) })
	stream = b.await(behind)
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	clock.Advance(5 * time.Second)
	_, err = stream.Recv()
	e = wantReason(t, err, alreadyOptimize)
	if e.Metadata["optimization_id"] != before.GetOptimizationId() || e.Metadata["variable"] != "y" {
		t.Errorf("metadata %v", e.Metadata)
	}
	b.stop(before)
	_, err = b.renew(w)
	wantMetadata(t, wantReason(t, err, setpointv1.ErrorReason_OPTIMIZATION_ENDED), map[string]string{
		"optimization_id": w.GetOptimizationId(), "state": "OPTIMIZATION_STATE_CANCELLED",
	})
	// One whose stay nobody renews leaves the queue, and is never granted.
	dead := b.start([]string{"x"}, waits, func(r *setpointv1.StartOptimizationRequest) { r.Ttl = seconds(1) })
	clock.Advance(time.Second)
	b.stop(o)
	_, err = b.Optimizations.AwaitOptimization(b.ctx, &setpointv1.AwaitOptimizationRequest{
		SessionId: "s", OptimizationId: dead.GetOptimizationId(),
	})
	if err == nil {
		_, err = b.await(dead).Recv()
	}
	wantReason(t, err, setpointv1.ErrorReason_OPTIMIZATION_ENDED)
	b.start([]string{"x"})
}

// What one waits for can cease to be: then it is cancelled at its turn, and holds nobody up.
func TestWaitingForWhatCannotBeHad(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		change func(b *bundle) error
		want   string
	}{
		"deleted": {func(b *bundle) error {
			_, err := b.Variables.DeleteVariable(b.ctx, &setpointv1.DeleteVariableRequest{SessionId: "s", Variable: "y"})
			b.integer("y") // Another one of this name.
			return err
		}, "y was deleted"},
		"derived": {func(b *bundle) error {
			_, err := b.Variables.UpdateVariable(b.ctx, &setpointv1.UpdateVariableRequest{
				SessionId: "s", Variable: "y", Expression: ptr("x + 1"),
			})
			return err
		}, "y became a derived variable"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.integer("x")
			b.integer("y")
			o := b.start([]string{"x"})
			w := b.start([]string{"x", "y"}, waits)
			if err := test.change(b); err != nil {
				t.Fatal(err)
			}
			stream := b.await(w)
			if _, err := stream.Recv(); err != nil {
				t.Fatal(err)
			}
			b.stop(o)
			_, err := stream.Recv()
			e := wantReason(t, err, setpointv1.ErrorReason_OPTIMIZATION_ENDED)
			equal(t, "why", fmt.Sprintf("%s has ended: cancelled: %s", w.GetOptimizationId(), test.want), e.Message)
			b.start([]string{"x"})
		})
	}
}

// A successor is given what the one before it left, over those that left nothing.
func TestCheckpointsAreHandedOn(t *testing.T) {
	t.Parallel()
	b, clock := setupClock(t)
	b.integer("x")
	b.integer("y")
	first := b.start([]string{"x", "y"})
	if first.GetCheckpoint() != nil {
		t.Errorf("handed to the first: %v", first)
	}
	b.report(first, func(r *setpointv1.ReportProgressRequest) { r.Checkpoint = []byte("one") })
	b.report(first, func(r *setpointv1.ReportProgressRequest) { r.Checkpoint = []byte{0, 1, 255} })
	b.report(first)
	want := &setpointv1.Checkpoint{
		OptimizationId: first.GetOptimizationId(), TrialNumber: 2, Data: []byte{0, 1, 255},
		ReportedAt: b.optimization(first.GetOptimizationId()).GetCheckpoint().GetReportedAt(),
	}
	equal(t, "its own", want, b.optimization(first.GetOptimizationId()).GetCheckpoint())
	if renewed, err := b.renew(first); err != nil || renewed.GetCheckpoint().GetData() != nil {
		t.Errorf("a renewal carries the checkpoint: %v, %v", renewed, err)
	}
	clock.Advance(time.Minute) // It crashed.
	second := b.start([]string{"y"})
	equal(t, "handed to the second", want, second.GetCheckpoint())
	b.stop(second)
	third := b.start([]string{"y", "x"})
	equal(t, "handed to the third", want, third.GetCheckpoint())
	b.report(third, func(r *setpointv1.ReportProgressRequest) { r.Checkpoint = []byte("three") })
	b.stop(third)
	fourth := b.start([]string{"x"}, func(r *setpointv1.StartOptimizationRequest) { r.RequestId = "r" })
	equal(t, "handed to the fourth", "three", string(fourth.GetCheckpoint().GetData()))
	again := b.start([]string{"x"}, func(r *setpointv1.StartOptimizationRequest) { r.RequestId = "r" })
	equal(t, "the repeat of the start", withoutMoment(fourth), again)
	// What comes late from the one that left it moves it for nobody.
	b.report(first, func(r *setpointv1.ReportProgressRequest) { r.Checkpoint = []byte("zombie") })
	b.report(third, func(r *setpointv1.ReportProgressRequest) { r.Checkpoint = []byte("zombie") })
	equal(t, "its own", want, b.optimization(first.GetOptimizationId()).GetCheckpoint())
	equal(t, "of the fourth", "three", string(b.optimization(fourth.GetOptimizationId()).GetCheckpoint().GetData()))
}

// A trial that was reported before is told so, whether the lease still holds or not.
func TestReportedBefore(t *testing.T) {
	t.Parallel()
	b, clock := setupClock(t)
	b.integer("x")
	o := b.start([]string{"x"})
	five := func(x int64) func(*setpointv1.ReportProgressRequest) {
		return func(r *setpointv1.ReportProgressRequest) {
			r.Number, r.Values, r.Apply = ptr(int64(5)), map[string]*setpointv1.Value{"x": client.Integer(x)}, true
		}
	}
	if r := b.report(o, five(1)); r.GetRepeated() {
		t.Errorf("first: %v", r)
	}
	clock.Advance(time.Second)
	if r := b.report(o, five(2)); !r.GetRepeated() || r.GetTrial().GetValues()["x"].GetInteger() != 1 ||
		r.GetRemaining().AsDuration() != 59*time.Second {
		t.Errorf("again: %v", r)
	}
	ended := b.stop(o).GetOptimization().GetEndedAt()
	if r := b.report(o, five(3)); !r.GetRepeated() || r.GetRemaining() != nil || !r.GetExpiresAt().AsTime().Equal(ended.AsTime()) {
		t.Errorf("after the end: %v", r)
	}
	if v := b.get("x"); v.GetVersion() != 1 || v.GetValue().GetInteger() != 1 {
		t.Errorf("set again: %v", v)
	}
	last := b.start([]string{"x"})
	b.report(last, func(r *setpointv1.ReportProgressRequest) { r.Number = ptr(int64(1<<53 - 1)) })
	_, err := b.Optimizations.ReportProgress(b.ctx, &setpointv1.ReportProgressRequest{
		SessionId: "s", OptimizationId: last.GetOptimizationId(), FencingToken: last.GetFencingToken(),
	})
	wantReason(t, err, limitExceeded)
}

// A deleted variable does not spoil the reports of the others.
func TestReportsAfterADeletion(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.integer("x")
	b.integer("y")
	o := b.start([]string{"x", "y"}, func(r *setpointv1.StartOptimizationRequest) {
		r.Objective = &setpointv1.Objective{Metric: "m"}
	})
	if _, err := b.Variables.DeleteVariable(b.ctx, &setpointv1.DeleteVariableRequest{
		SessionId: "s", Variable: "y", Lease: lease(o),
	}); err != nil {
		t.Fatal(err)
	}
	both := map[string]*setpointv1.Value{"x": client.Integer(1), "y": client.Integer(2)}
	r := b.report(o, func(r *setpointv1.ReportProgressRequest) { r.Values, r.Metrics = both, map[string]float64{"m": 1} })
	equal(t, "what was tried", both, r.GetTrial().GetValues())
	_, err := b.Optimizations.ReportProgress(b.ctx, &setpointv1.ReportProgressRequest{
		SessionId: "s", OptimizationId: o.GetOptimizationId(), FencingToken: o.GetFencingToken(), Values: both, Apply: true,
	})
	wantReason(t, err, setpointv1.ErrorReason_VARIABLE_NOT_FOUND)
	_, err = b.Optimizations.StopOptimization(b.ctx, &setpointv1.StopOptimizationRequest{
		SessionId: "s", OptimizationId: o.GetOptimizationId(), ApplyBest: true,
	})
	wantReason(t, err, setpointv1.ErrorReason_VARIABLE_NOT_FOUND)
	b.wantState(o.GetOptimizationId(), active)
	equal(t, "version", int64(0), b.get("x").GetVersion())
	b.stop(o)
}

// Values of all types, and any metrics, come back as they were reported.
func TestTrialsKeepWhatIsReported(t *testing.T) {
	t.Parallel()
	b := setup(t)
	values := map[string]*setpointv1.Value{}
	for kind, v := range map[setpointv1.VariableType]*setpointv1.Value{
		setpointv1.VariableType_VARIABLE_TYPE_BOOLEAN:   client.Bool(true),
		setpointv1.VariableType_VARIABLE_TYPE_INTEGER:   client.Integer(math.MaxInt64),
		setpointv1.VariableType_VARIABLE_TYPE_FLOAT:     client.Float(math.Inf(-1)),
		setpointv1.VariableType_VARIABLE_TYPE_STRING:    client.String("ä\n"),
		setpointv1.VariableType_VARIABLE_TYPE_EMBEDDING: client.Embedding([]float32{1, -2.5}),
		setpointv1.VariableType_VARIABLE_TYPE_TENSOR:    client.Tensor("int8", []int64{2}, []byte{1, 2}),
	} {
		name := kind.String()
		b.register(&setpointv1.RegisterVariableRequest{Name: name, Type: kind, Value: v})
		values[name] = v
	}
	o := b.start(slices.Collect(func(yield func(string) bool) {
		for name := range values {
			if !yield(name) {
				return
			}
		}
	}))
	metrics := map[string]float64{
		"a": 1.5, "inf": math.Inf(1), "-inf": math.Inf(-1), "zero": math.Copysign(0, -1), "tiny": 5e-324, "great": math.MaxFloat64,
	}
	for i, apply := range []bool{true, false} {
		r := b.report(o, func(r *setpointv1.ReportProgressRequest) {
			r.Values, r.Metrics, r.Note, r.Apply = values, metrics, "as it was", apply
		})
		want := &setpointv1.Trial{
			Number: int64(i) + 1, Values: values, Metrics: metrics, Note: "as it was", Applied: apply,
			ReportedAt: r.GetTrial().GetReportedAt(),
		}
		equal(t, "answer", want, r.GetTrial())
		list, err := b.Optimizations.ListTrials(b.ctx, &setpointv1.ListTrialsRequest{
			SessionId: "s", OptimizationId: o.GetOptimizationId(),
		})
		if err != nil {
			t.Fatal(err)
		}
		equal(t, "list", want, list.GetTrials()[i])
	}
	for name, v := range values {
		if got := b.get(name); got.GetVersion() != 1 {
			t.Errorf("%s: %v, want %v applied once", name, got, v)
		}
	}
	nan := b.report(o, func(r *setpointv1.ReportProgressRequest) { r.Metrics = map[string]float64{"a": math.NaN()} })
	if !math.IsNaN(nan.GetTrial().GetMetrics()["a"]) {
		t.Errorf("NaN came back as %v", nan)
	}
}

// Pages of trials, by number and by metric both ways, each trial once; of equal ones the first goes first.
func TestPagesOfTrials(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.integer("x")
	o := b.start([]string{"x"})
	losses := []float64{3, 1, math.Inf(1), 1, 2, math.NaN(), 1, math.Inf(-1), 2}
	for i, loss := range losses {
		b.report(o, func(r *setpointv1.ReportProgressRequest) {
			r.Metrics = map[string]float64{"loss": loss, "other": float64(i % 2)}
		})
	}
	for step := range int64(2) { // Intermediate reports, of a trial that has a result and of one that has none.
		for _, number := range []int64{3, 50} {
			b.report(o, func(r *setpointv1.ReportProgressRequest) {
				r.Number, r.Step, r.Metrics = &number, &step, map[string]float64{"loss": -100}
			})
		}
	}
	b.report(o, func(r *setpointv1.ReportProgressRequest) { r.Metrics = map[string]float64{"other": 7} })
	type request = setpointv1.ListTrialsRequest
	for name, test := range map[string]struct {
		change func(*request)
		want   string
	}{
		"by number": {func(*request) {}, "1 2 3 4 5 6 7 8 9 51"},
		"with intermediate reports": {func(r *request) { r.IncludeIntermediate = true },
			"1 2 3 3.0 3.1 4 5 6 7 8 9 50.0 50.1 51"},
		"greatest first": {func(r *request) { r.Metric = "loss" }, "3 1 5 9 2 4 7 8"},
		"least first": {func(r *request) { r.Metric, r.Direction = "loss", setpointv1.Direction_DIRECTION_MINIMIZE },
			"8 2 4 7 5 9 1 3"},
		"another metric": {func(r *request) { r.Metric = "other" }, "51 2 4 6 8 1 3 5 7 9"},
		"of nobody":      {func(r *request) { r.Metric = "nobody" }, ""},
	} {
		for _, size := range []int32{1, 2, 3, 100} {
			got := ""
			for token, more := "", true; more; {
				req := &request{SessionId: "s", OptimizationId: o.GetOptimizationId(), PageSize: size, PageToken: token}
				test.change(req)
				page, err := b.Optimizations.ListTrials(b.ctx, req)
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				for _, trial := range page.GetTrials() {
					if got != "" {
						got += " "
					}
					got += fmt.Sprint(trial.GetNumber())
					if trial.Step != nil {
						got += fmt.Sprintf(".%d", trial.GetStep())
					}
				}
				token = page.GetNextPageToken()
				more = token != ""
			}
			equal(t, fmt.Sprintf("%s, %d at a time", name, size), test.want, got)
		}
	}
	_, err := b.Optimizations.ListTrials(b.ctx, &request{
		SessionId: "s", OptimizationId: o.GetOptimizationId(), Metric: "loss", IncludeIntermediate: true,
	})
	wantReason(t, err, invalidRequest)
}

func TestListsOfOptimizations(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.integer("x")
	b.integer("y")
	var ids []string // Newest first.
	for i := range 5 {
		o := b.start([]string{[]string{"x", "y"}[i%2]})
		ids = slices.Insert(ids, 0, o.GetOptimizationId())
		if i < 3 {
			b.stop(o)
		}
	}
	type request = setpointv1.ListOptimizationsRequest
	for name, test := range map[string]struct {
		change func(*request)
		want   []string
	}{
		"all":                 {func(*request) {}, ids},
		"of x":                {func(r *request) { r.Variable = "x" }, []string{ids[0], ids[2], ids[4]}},
		"of y by its id":      {func(r *request) { r.Variable = b.get("y").GetVariableId() }, []string{ids[1], ids[3]}},
		"active":              {func(r *request) { r.States = []setpointv1.OptimizationState{active} }, ids[:2]},
		"active or completed": {func(r *request) { r.States = []setpointv1.OptimizationState{active, completed} }, ids},
		"waiting":             {func(r *request) { r.States = []setpointv1.OptimizationState{waiting} }, nil},
	} {
		for _, size := range []int32{1, 2, 100} {
			var got []string
			for token, more := "", true; more; {
				req := &request{SessionId: "s", PageSize: size, PageToken: token}
				test.change(req)
				page, err := b.Optimizations.ListOptimizations(b.ctx, req)
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				for _, o := range page.GetOptimizations() {
					got = append(got, o.GetOptimizationId())
				}
				token = page.GetNextPageToken()
				more = token != ""
			}
			equal(t, fmt.Sprintf("%s, %d at a time", name, size), test.want, got)
		}
	}
	_, err := b.Optimizations.ListOptimizations(b.ctx, &request{SessionId: "s", Variable: "nobody"})
	wantReason(t, err, setpointv1.ErrorReason_VARIABLE_NOT_FOUND)
	status, err := b.Optimizations.GetOptimizationStatus(b.ctx, &setpointv1.GetOptimizationStatusRequest{SessionId: "s", Variable: "x"})
	if err != nil || !status.GetOptimizing() || status.GetOptimization().GetOptimizationId() != ids[0] {
		t.Errorf("status: %v, %v", status, err)
	}
	b.start([]string{"x"}, waits)
	b.stop(status.GetOptimization())
	status, err = b.Optimizations.GetOptimizationStatus(b.ctx, &setpointv1.GetOptimizationStatusRequest{SessionId: "s", Variable: "x"})
	if err != nil || status.GetOptimizing() || status.GetOptimization() != nil || status.GetWaitingCount() != 1 {
		t.Errorf("status: %v, %v", status, err)
	}
}
