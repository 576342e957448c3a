package service_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/testkit"
)

// lateWrites are the ways in which a value is changed under a lease. Each gives x the value 1, or takes it away.
var lateWrites = map[string]func(b *bundle, o *setpointv1.Optimization) error{
	"set": func(b *bundle, o *setpointv1.Optimization) error { return b.write("x", 1, lease(o)) },
	"dry run": func(b *bundle, o *setpointv1.Optimization) error {
		_, err := b.Variables.SetVariable(b.ctx, &setpointv1.SetVariableRequest{
			SessionId: "s", Variable: "x", Value: client.Integer(1), Lease: lease(o), DryRun: true,
		})
		return err
	},
	"batch": func(b *bundle, o *setpointv1.Optimization) error {
		_, err := b.Variables.BatchSetVariables(b.ctx, &setpointv1.BatchSetVariablesRequest{
			SessionId: "s", Lease: lease(o), Atomic: true, Writes: []*setpointv1.VariableWrite{
				{Variable: "y", Value: client.Integer(1)}, {Variable: "x", Value: client.Integer(1)},
			},
		})
		return err
	},
	"rollback": func(b *bundle, o *setpointv1.Optimization) error {
		_, err := b.History.RollbackVariable(b.ctx, &setpointv1.RollbackVariableRequest{
			SessionId: "s", Variable: "x", Version: 0, Lease: lease(o),
		})
		return err
	},
	"rollback of the session": func(b *bundle, o *setpointv1.Optimization) error {
		_, err := b.History.RollbackSession(b.ctx, &setpointv1.RollbackSessionRequest{
			SessionId: "s", To: &setpointv1.RollbackSessionRequest_Revision{Revision: 2}, Leases: []*setpointv1.Lease{lease(o)},
		})
		return err
	},
	"delete": func(b *bundle, o *setpointv1.Optimization) error {
		_, err := b.Variables.DeleteVariable(b.ctx, &setpointv1.DeleteVariableRequest{
			SessionId: "s", Variable: "x", Lease: lease(o),
		})
		return err
	},
	"update": func(b *bundle, o *setpointv1.Optimization) error {
		_, err := b.Variables.UpdateVariable(b.ctx, &setpointv1.UpdateVariableRequest{
			SessionId: "s", Variable: "x", Constraints: &setpointv1.Constraints{Max: ptr(9.0)}, Lease: lease(o),
		})
		return err
	},
}

// heldUp makes a call that waits for the session's lock while the clock moves, and returns its answer.
func heldUp[T any](b *bundle, advance func(), call func() (T, error)) (T, error) {
	b.t.Helper()
	type answer struct {
		response T
		err      error
	}
	release := b.holdSession("s")
	answered := make(chan answer, 1)
	go func() {
		response, err := call()
		answered <- answer{response, err}
	}()
	testkit.Eventually(b.t, 20*time.Second, func() error {
		var found int
		b.row(&found, `select count(*) from pg_stat_activity where datname = current_database()
			and application_name = 'setpoint' and wait_event_type = 'Lock'`)
		select {
		case a := <-answered:
			b.t.Fatalf("answered while the session was locked: %v, %v", a.response, a.err)
		default:
		}
		if found == 0 {
			return errors.New("the call does not wait")
		}
		return nil
	})
	advance()
	release()
	a := <-answered
	return a.response, a.err
}

// A write that was sent in time, and waited for a lock until its lease was over, is refused; one that got the lock a
// moment before is done.
func TestAWriteThatWaitedUntilItsLeaseWasOver(t *testing.T) {
	t.Parallel()
	for name, write := range lateWrites {
		for _, late := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, late=%t", name, late), func(t *testing.T) {
				t.Parallel()
				b, clock := setupClock(t)
				b.integer("x")
				b.integer("y")
				b.set("x", client.Integer(2))
				o := b.start([]string{"x", "y"})
				before := b.revision()
				by := time.Minute - time.Millisecond
				if late {
					by = time.Minute
				}
				_, err := heldUp(b, func() { clock.Advance(by) }, func() (struct{}, error) { return struct{}{}, write(b, o) })
				if !late {
					if err != nil {
						t.Fatal(err)
					}
					return
				}
				wantReason(t, err, setpointv1.ErrorReason_LEASE_LOST)
				b.exec(`delete from setpoint.history where change = 'lease_ended'`) // A sweeper may have been.
				var after int64
				b.row(&after, `select max(revision) from setpoint.history where session_id = 's'`)
				if v := b.get("x"); after != before || v.GetValue().GetInteger() != 2 || v.GetVersion() != 1 {
					t.Errorf("revision %d after %d, %v", after, before, v)
				}
			})
		}
	}
}

// A report that waited for a lock until the lease was over is kept, and applies nothing; a stop has come too late.
func TestAReportThatWaitedUntilItsLeaseWasOver(t *testing.T) {
	t.Parallel()
	b, clock := setupClock(t)
	b.integer("x")
	o := b.start([]string{"x"}, func(req *setpointv1.StartOptimizationRequest) {
		req.Objective = &setpointv1.Objective{Metric: "m"}
	})
	report := func() (*setpointv1.ReportProgressResponse, error) {
		return b.Optimizations.ReportProgress(b.ctx, &setpointv1.ReportProgressRequest{
			SessionId: "s", OptimizationId: o.GetOptimizationId(), FencingToken: o.GetFencingToken(), Apply: true,
			Values: map[string]*setpointv1.Value{"x": client.Integer(1)}, Metrics: map[string]float64{"m": 1},
		})
	}
	if got, err := report(); err != nil || !got.GetTrial().GetApplied() {
		t.Fatal(got, err)
	}
	got, err := heldUp(b, func() { clock.Advance(time.Minute) }, report)
	if err != nil || !got.GetLate() || got.GetTrial().GetApplied() || got.GetIsBest() {
		t.Fatal(got, err)
	}
	if v := b.get("x"); v.GetVersion() != 1 {
		t.Errorf("a late report was applied: %v", v)
	}
	second := b.start([]string{"x"})
	_, err = heldUp(b, func() { clock.Advance(time.Minute) }, func() (*setpointv1.StopOptimizationResponse, error) {
		return b.Optimizations.StopOptimization(b.ctx, &setpointv1.StopOptimizationRequest{
			SessionId: "s", OptimizationId: second.GetOptimizationId(),
		})
	})
	wantMetadata(t, wantReason(t, err, setpointv1.ErrorReason_OPTIMIZATION_ENDED), map[string]string{
		"optimization_id": second.GetOptimizationId(), "state": "OPTIMIZATION_STATE_EXPIRED",
	})
	third := b.start([]string{"x"})
	_, err = heldUp(b, func() { clock.Advance(time.Minute) }, func() (*setpointv1.Optimization, error) {
		return b.renew(third)
	})
	wantReason(t, err, setpointv1.ErrorReason_OPTIMIZATION_ENDED)
}

// Who could have had its lease when it looked, and comes to take it when somebody has one of the variables, gets none of them.
func TestAGrantThatCameTooLate(t *testing.T) {
	t.Parallel()
	b, clock := setupClock(t)
	b.integer("x")
	b.integer("y")
	b.start([]string{"x"}, func(req *setpointv1.StartOptimizationRequest) { req.Ttl = seconds(10) })
	waiter := b.start([]string{"x", "y"}, waits)
	stream, err := b.second().Optimizations.AwaitOptimization(b.ctx, &setpointv1.AwaitOptimizationRequest{
		SessionId: "s", OptimizationId: waiter.GetOptimizationId(),
	})
	if err != nil {
		t.Fatal(err)
	}
	if o, err := stream.Recv(); err != nil || o.GetState() != waiting {
		t.Fatal(o, err)
	}
	granted := make(chan string, 1)
	go func() { granted <- await(stream) }()
	first, err := heldUp(b, func() {
		clock.Advance(10 * time.Second) // Now x is free, and the waiter comes to take both, behind the one that wants y.
		b.waiting(2)
	}, func() (*setpointv1.Optimization, error) { return b.ask([]string{"y"}, preempts(1)) })
	if err != nil || first.GetState() != active {
		t.Fatal(first, err)
	}
	b.wantState(waiter.GetOptimizationId(), waiting)
	if err := b.write("x", 1, nil); err != nil {
		t.Errorf("a part is held: %v", err)
	}
	b.stop(first)
	equal(t, "granted then", waiter.GetOptimizationId()+" ACTIVE", <-granted)
}

// A lease is kept though somebody of a lower priority, who preempted others, waits for the variable.
func TestAKeptLeaseOfAHigherPriority(t *testing.T) {
	t.Parallel()
	b, _ := setupClock(t)
	b.integer("x")
	b.integer("y")
	priority := func(p int32) func(*setpointv1.StartOptimizationRequest) {
		return func(req *setpointv1.StartOptimizationRequest) { req.Priority = p }
	}
	first := b.start([]string{"x", "y"}, priority(-1))
	b.start([]string{"x", "y"}, preempts(0))
	b.stop(first)
	holder := b.start([]string{"x"}, preempts(1))
	if holder.GetState() != active {
		t.Fatalf("it does not go first: %v", holder)
	}
	last := b.start([]string{"x"}, preempts(2))
	b.wantState(holder.GetOptimizationId(), preempting)
	b.stop(last)
	b.wantState(holder.GetOptimizationId(), active)
}

// Of those who are still to have a lease when one of them is gone, the first in the queue is named, and the shortest grace holds.
func TestTheGraceOfThoseWhoAreLeft(t *testing.T) {
	t.Parallel()
	b, clock := setupClock(t)
	for _, name := range []string{"x", "y", "z"} {
		b.integer(name)
	}
	holder := b.start([]string{"x", "y", "z"})
	var last *setpointv1.Optimization
	first := ""
	for i, name := range []string{"x", "y", "z"} {
		last = b.start([]string{name}, preempts(int32(3-i)), func(req *setpointv1.StartOptimizationRequest) {
			req.Grace = seconds([]float64{20, 8, 2}[i])
		})
		if i == 0 {
			first = last.GetOptimizationId()
		}
	}
	deadline := func() string {
		o, err := b.renew(holder)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(o.GetPreemption().GetBy(), " ", o.GetPreemption().GetDeadline().AsTime().Sub(clock.Now()), " ",
			o.GetRemaining().AsDuration())
	}
	equal(t, "told by all", last.GetOptimizationId()+" 2s 2s", deadline())
	b.stop(last)
	equal(t, "told by those who are left", first+" 8s 8s", deadline())
}

// Of equally good trials the one with the lowest number is the best.
func TestTheBestOfEqualTrials(t *testing.T) {
	t.Parallel()
	b, _ := setupClock(t)
	b.integer("x")
	for _, direction := range []setpointv1.Direction{
		setpointv1.Direction_DIRECTION_MAXIMIZE, setpointv1.Direction_DIRECTION_MINIMIZE,
	} {
		o := b.start([]string{"x"}, func(req *setpointv1.StartOptimizationRequest) {
			req.Objective = &setpointv1.Objective{Metric: "m", Direction: direction}
		})
		var best []int64
		for _, number := range []int64{5, 6, 2, 3} {
			if _, err := b.Optimizations.ReportProgress(b.ctx, &setpointv1.ReportProgressRequest{
				SessionId: "s", OptimizationId: o.GetOptimizationId(), FencingToken: o.GetFencingToken(), Number: &number,
				Metrics: map[string]float64{"m": 1},
			}); err != nil {
				t.Fatal(err)
			}
			best = append(best, b.optimization(o.GetOptimizationId()).GetBestTrial().GetNumber())
		}
		equal(t, "best", []int64{5, 5, 2, 2}, best)
		b.stop(o)
	}
}
