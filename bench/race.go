package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// tally is what the optimizers of a race have seen.
type tally struct {
	mu sync.Mutex
	// waits are the times from asking to the grant.
	waits []time.Duration
	// tokens by the optimization's id, of all that were granted.
	tokens                map[string]int64
	refused, lost, writes int
	failures              int
	failed                error
}

func (t *tally) note(change func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	change()
}

// fail counts what nobody expects; the first is told.
func (t *tally) fail(err error) {
	t.note(func() {
		t.failures++
		if t.failed == nil {
			t.failed = err
		}
	})
}

// race has the optimizers contend, and looks at what became of it.
func (b *leaseBench) race(ctx context.Context) error {
	names := make([]string, b.variables)
	for i := range names {
		names[i] = variable(i)
	}
	if err := errors.Join(b.register(ctx, names...), b.alone(ctx)); err != nil {
		return err
	}
	t := &tally{tokens: map[string]int64{}}
	// No deadline: the servers would end the waits by it, before this process knows that the race is over.
	racing, cancel := context.WithCancel(ctx)
	defer cancel()
	defer time.AfterFunc(b.length, cancel).Stop()
	began := time.Now()
	var all sync.WaitGroup
	for i := range b.optimizers {
		all.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 1))
			for racing.Err() == nil && t.optimize(racing, b, i, names, r) {
			}
		})
	}
	all.Wait()
	took := time.Since(began)
	if err := ctx.Err(); err != nil {
		return err
	}
	b.tell(t, took)
	if err := b.out.Flush(); err != nil {
		return err
	}
	if t.failed != nil {
		return fmt.Errorf("%d calls failed, the first: %w", t.failures, t.failed)
	}
	wrong, err := b.lookBack(ctx, names, t)
	if err != nil || len(wrong) == 0 {
		return err
	}
	return fmt.Errorf("%d violations: %s", len(wrong), strings.Join(wrong[:min(len(wrong), 10)], "; "))
}

func (b *leaseBench) tell(t *tally, took time.Duration) {
	slices.Sort(t.waits)
	b.line("race\toptimizers\tvariables\tservers\tleases/s\tto the grant p50 ms\tp99 ms\trefused\tlost\twrites\t\n")
	p50, p99 := 0., 0.
	if len(t.waits) > 0 {
		p50, p99 = milliseconds(percentile(t.waits, .5)), milliseconds(percentile(t.waits, .99))
	}
	b.line("%s\t%d\t%d\t%d\t%.1f\t%.2f\t%.2f\t%d\t%d\t%d\t\n", b.conflict, b.optimizers, b.variables, len(b.addrs),
		float64(len(t.waits))/took.Seconds(), p50, p99, t.refused, t.lost, t.writes)
}

// request is what an optimizer asks for this time.
func (b *leaseBench) request(i int, names []string, r *rand.Rand) *setpointv1.StartOptimizationRequest {
	n := 1
	if r.IntN(3) == 0 {
		n = 1 + r.IntN(b.mostVariables)
	}
	req := &setpointv1.StartOptimizationRequest{
		SessionId: b.session, OptimizerId: fmt.Sprintf("optimizer-%d", i), Ttl: durationpb.New(time.Minute),
		Conflict: setpointv1.ConflictStrategy_CONFLICT_STRATEGY_WAIT,
	}
	for _, j := range r.Perm(len(names))[:n] {
		req.Variables = append(req.Variables, names[j])
	}
	switch {
	case b.conflict == "abort" || b.conflict == "mixed" && r.IntN(3) == 0:
		req.Conflict = setpointv1.ConflictStrategy_CONFLICT_STRATEGY_ABORT
	case b.conflict == "mixed" && r.IntN(2) == 0:
		req.Conflict = setpointv1.ConflictStrategy_CONFLICT_STRATEGY_PREEMPT
		req.Priority, req.Grace = int32(1+r.IntN(5)), durationpb.New(b.hold/2)
	}
	return req
}

// optimize is one optimization from the request to its end; false if that failed as nothing should.
func (t *tally) optimize(ctx context.Context, b *leaseBench, i int, names []string, r *rand.Rand) bool {
	c := b.of(i)
	began := time.Now()
	// A start under way when the race ends is still answered: what it got is given back.
	calls := context.WithoutCancel(ctx)
	o, err := c.Optimizations.StartOptimization(calls, b.request(i, names, r))
	switch {
	case errors.Is(err, client.ErrAlreadyOptimizing):
		t.note(func() { t.refused++ })
		pause(ctx, b.hold, r)
		return true
	case err != nil:
		t.fail(fmt.Errorf("start: %w", err))
		return false
	}
	if o.GetState() == setpointv1.OptimizationState_OPTIMIZATION_STATE_WAITING {
		waited, err := c.AwaitLease(ctx, b.session, o.GetOptimizationId(), nil)
		if err != nil {
			return t.leave(calls, ctx, c, o, err)
		}
		o = waited
	}
	took := time.Since(began)
	t.note(func() {
		t.waits = append(t.waits, took)
		t.tokens[o.GetOptimizationId()] = o.GetFencingToken()
	})
	if err := t.work(calls, b, c, o, r); err != nil && !isLost(err) {
		t.fail(err)
		return false
	} else if err != nil {
		t.note(func() { t.lost++ })
	}
	return true
}

// leave is what one does whose wait has ended without a lease: at the end of the race it leaves the queue.
func (t *tally) leave(calls, ctx context.Context, c *client.Client, o *setpointv1.Optimization, err error) bool {
	if ctx.Err() == nil {
		t.fail(fmt.Errorf("await: %w", err))
		return false
	}
	if err := stop(calls, c, o); err != nil && !errors.Is(err, client.ErrOptimizationEnded) {
		t.fail(fmt.Errorf("leave the queue: %w", err))
	}
	return false
}

// work is what is done under a lease: a write, a report, some time, and the end.
func (t *tally) work(ctx context.Context, b *leaseBench, c *client.Client, o *setpointv1.Optimization, r *rand.Rand) error {
	name := o.GetVariables()[r.IntN(len(o.GetVariables()))]
	err := write(ctx, c, b.session, name, r.Int64N(1000), o)
	if err == nil {
		t.note(func() { t.writes++ })
		err = report(ctx, c, o, 1) // One that is late is no error.
	}
	if err != nil {
		return errors.Join(fmt.Errorf("work: %w", err), endedOr(stop(ctx, c, o)))
	}
	pause(ctx, b.hold, r)
	if err := stop(ctx, c, o); err != nil {
		return fmt.Errorf("stop: %w", err)
	}
	return nil
}

// endedOr is nil for one that has ended.
func endedOr(err error) error {
	if errors.Is(err, client.ErrOptimizationEnded) {
		return nil
	}
	return err
}

// isLost tells of what a holder meets whose lease was taken away.
func isLost(err error) bool {
	return errors.Is(err, client.ErrLeaseLost) || errors.Is(err, client.ErrOptimizationEnded)
}

// pause is for a random time up to the longest.
func pause(ctx context.Context, longest time.Duration, r *rand.Rand) {
	timer := time.NewTimer(time.Duration(r.Int64N(int64(longest) + 1)))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
