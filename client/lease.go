package client

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// Why a [LeaseKeeper] cancelled the work's context, besides [ErrLeaseLost], [ErrOptimizationEnded],
// [ErrOptimizationNotFound], [ErrSessionNotFound] and [ErrAccessDenied], which the server gave as its answer to a
// renewal.
var (
	// ErrPreempted: an optimization of a higher priority is to have the variables, or has them.
	ErrPreempted = errors.New("the lease was preempted")
	// ErrNotRenewed: no renewal got through in time. The lease may hold for a moment yet, by as much as the margin.
	// What an attempt failed with since the last renewal is wrapped too; nothing did where the process was not running.
	ErrNotRenewed = errors.New("the lease was not renewed in time")
	// ErrNoProgress: nothing was reported for the optimization's progress_timeout.
	ErrNoProgress = errors.New("no progress was reported in time")
	// ErrKeeperClosed: [LeaseKeeper.Close] or [LeaseKeeper.Stop] was called.
	ErrKeeperClosed = errors.New("the keeper of the lease was closed")
)

// LeaseKeeper keeps the lease of one optimization: it renews it in the background, and cancels the context of the work
// that is done under it before the lease can be over. [Client.KeepLease] makes one. It is safe for concurrent use.
//
// # What is counted
//
// Only the database's clock says when a lease is over, and the keeper never compares it with a clock of its own. Each
// answer tells how much time was left when the database read its clock, and that was after the request had been sent:
// so the lease holds at least until the time left has passed since the sending, on this process's monotonic clock. From
// that the keeper takes off a margin, and there it cancels the context. A renewal that gets through moves the end, by
// about the ttl.
//
// The margin pays for what this reckoning does not know: that the two clocks do not run equally fast (those that NTP
// disciplines differ by less than 1 ms in a second, which is 3.6 s in the longest lease, an hour), that a timer and a
// goroutine start late on a busy machine, and how long the work takes to notice the cancellation and to stop. It is a
// tenth of the time that was left, at least 100 ms and at most 5 s; where the work needs more to stop, say so with
// [WithLeaseMargin]. An end that an answer does not move keeps the margin that it had.
//
// # A process that does not run
//
// Go's monotonic clock is CLOCK_MONOTONIC on Linux. It goes on while the process is stopped (SIGSTOP, a debugger, a
// frozen cgroup) or starved: on waking, the timer that cancels the context is due at once, and the keeper looks at the
// clock before it renews anything, so a lease that was slept through is never taken up again. It stands still while the
// machine is suspended. Therefore the keeper looks at the wall clock, too, before each renewal and in [LeaseKeeper.Err],
// and gives the lease up by whichever of the two has come further since the answer that the time is counted from: after
// a suspend that is at the next look, within the renewal interval. A wall clock that is set ahead by more than what is
// left of the lease cannot be told from that, and costs the lease; one that is set back changes nothing. While a
// virtual machine is paused both clocks stand still, as a rule: then the context is cancelled late, when a renewal is
// refused or the rest of the time has run. And no clock helps work that was stopped between a look at its context and
// what it does next. All of that is harmless for the variables, because every write that presents the lease
// presents its fencing token: the database refuses it with [ErrLeaseLost] once the lease is over, whatever this process
// believes. So present [LeaseKeeper.Lease] with every write; for what the work does elsewhere, carry the fencing token
// there, if it can be checked.
//
// # Preemption
//
// An optimization of a higher priority may take the variables away after a grace, of 5 s unless it asked for another.
// The holder is told with its next renewal or report, which is why the keeper renews every 2 s, however long the lease
// ([WithRenewInterval]). From then on nothing is extended; [LeaseKeeper.Preemptions] and [LeaseKeeper.Preemption] tell,
// and the context is cancelled before the deadline. A grace that is shorter than the interval may be over before it is
// heard of: then the next renewal is refused, and the context is cancelled after the lease has ended.
type LeaseKeeper struct {
	calls   setpointv1.OptimizationServiceClient
	renewal *setpointv1.RenewOptimizationRequest
	policy  RetryPolicy
	options keepOptions

	work     context.Context
	cancel   context.CancelCauseFunc
	done     chan struct{} // closed when nothing is renewed any more
	wake     chan struct{} // a renewal may be due earlier than it was
	preempts chan Preemption
	wall     func() time.Time // the wall clock

	mu sync.Mutex
	reckoning
	next     time.Time // when the next renewal is due
	failure  error     // what the last renewal met, if it failed
	timer    *time.Timer
	notice   *Preemption
	stopping bool
}

// Preemption is the notice that a lease is to be taken away.
type Preemption struct {
	// By is the optimization that is to have the variables, and OptimizerID its optimizer.
	By          string
	OptimizerID string
	// Deadline is until when the lease holds, by the database's clock.
	Deadline time.Time
	// Until is when the keeper cancels the context, by the clock of this process.
	Until time.Time
}

// KeepOption changes what [Client.KeepLease] makes.
type KeepOption func(*keepOptions)

type keepOptions struct {
	margin   time.Duration
	interval time.Duration
}

// WithLeaseMargin says how long before the lease can be over the context is cancelled: more than the work needs to stop
// when its context is cancelled. A thousandth of the time left comes on top of it, for clocks that do not run equally
// fast. It has to be less than the optimization's ttl, and had better be less than half of it; zero or less is the
// default, a tenth of the time left, at least 100 ms and at most 5 s, all in all.
func WithLeaseMargin(margin time.Duration) KeepOption {
	return func(o *keepOptions) { o.margin = margin }
}

// WithRenewInterval bounds the time between two renewals, which else is about a third of the time left: how soon a
// preemption is heard of. Zero or less is the default, 2 s.
func WithRenewInterval(interval time.Duration) KeepOption {
	return func(o *keepOptions) { o.interval = interval }
}

// KeepLease begins to keep the lease of an optimization, as StartOptimization returned it in state ACTIVE, or
// [Client.AwaitLease]; the ids and the fencing token are all that is read of it, so one that was started by another
// process, or some time ago, will do. It renews the lease at once, and returns when it knows how long it holds. The
// context of the work, [LeaseKeeper.Context], descends from ctx.
//
// Errors: of one that has no lease yet, or a margin that leaves none of its ttl; [ErrOptimizationEnded], [ErrLeaseLost]
// and what else a renewal may meet; [ErrPreempted] of one that is about to lose its lease. Then nothing is kept. Close
// the keeper when done with it.
func (c *Client) KeepLease(ctx context.Context, optimization *setpointv1.Optimization,
	opts ...KeepOption) (*LeaseKeeper, error) {
	if optimization.GetFencingToken() < 1 {
		return nil, fmt.Errorf("keep lease of %s: it has none that this client knows (its state is %s)",
			optimization.GetOptimizationId(), optimization.GetState())
	}
	options := keepOptions{interval: defaultRenewInterval}
	for _, opt := range opts {
		opt(&options)
	}
	if options.interval <= 0 {
		options.interval = defaultRenewInterval
	}
	work, cancel := context.WithCancelCause(ctx)
	k := &LeaseKeeper{
		calls: c.Optimizations,
		renewal: &setpointv1.RenewOptimizationRequest{
			SessionId:      optimization.GetSessionId(),
			OptimizationId: optimization.GetOptimizationId(),
			FencingToken:   optimization.GetFencingToken(),
		},
		policy:   c.retry.withDefaults(),
		options:  options,
		work:     work,
		cancel:   cancel,
		done:     make(chan struct{}),
		wake:     make(chan struct{}, 1),
		preempts: make(chan Preemption, 1),
		wall:     time.Now,
	}
	if err := k.begin(); err != nil {
		k.cancel(err)
		return nil, fmt.Errorf("keep lease of %s: %w", optimization.GetOptimizationId(), err)
	}
	go k.run()
	return k, nil
}

// Context is the context of the work: it descends from the one that was given to [Client.KeepLease], and is cancelled
// before the lease can be over, or as soon as it is known to be. context.Cause of it tells why: it is [ErrPreempted],
// [ErrNotRenewed], [ErrNoProgress], [ErrKeeperClosed], what the server refused a renewal with, or the cause of the
// context above.
func (k *LeaseKeeper) Context() context.Context {
	return k.work
}

// Err returns nil while the lease is kept, and else why it is not, as context.Cause does of the context. It looks at
// the clock first, and so cancels the context where its timer should be late.
func (k *LeaseKeeper) Err() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.check()
}

// Lease is what writes present in their field lease. It is the same after the lease is over: such a write is refused
// with [ErrLeaseLost], while one that presents nothing would come through where nobody else has the variable.
func (k *LeaseKeeper) Lease() *setpointv1.Lease {
	return &setpointv1.Lease{OptimizationId: k.renewal.GetOptimizationId(), FencingToken: k.renewal.GetFencingToken()}
}

// Preemptions receives the notice when the lease is to be taken away, and again where who takes it or the deadline
// changes. It keeps the latest one only, and is never closed. The preemptor may go away, and the lease be kept after
// all: [LeaseKeeper.Preemption] tells what is so now.
func (k *LeaseKeeper) Preemptions() <-chan Preemption {
	return k.preempts
}

// Preemption returns the notice, if the lease is to be taken away by all that is known now.
func (k *LeaseKeeper) Preemption() (Preemption, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.notice == nil {
		return Preemption{}, false
	}
	return *k.notice, true
}

// Report records a trial under the lease, and extends the lease as a renewal does: ReportProgress with the session, the
// optimization and the fencing token filled in; the request stays as it is. ctx need not be the keeper's: a report that
// comes after the lease has ended is kept as a late one, answered without an error, and cancels the keeper's context,
// after asking the server once, for 1 s at most, how the lease ended. A report that was made before does not extend the
// lease.
func (k *LeaseKeeper) Report(ctx context.Context,
	request *setpointv1.ReportProgressRequest) (*setpointv1.ReportProgressResponse, error) {
	filled := fill(request)
	filled.SessionId, filled.OptimizationId = k.renewal.GetSessionId(), k.renewal.GetOptimizationId()
	filled.FencingToken = k.renewal.GetFencingToken()
	sent := time.Now()
	response, err := k.calls.ReportProgress(ctx, filled)
	switch {
	case err != nil:
		if isOver(err) {
			// It may be about one of the values only. A renewal tells what is true of the lease.
			k.hurry()
		}
		return nil, asError(err)
	case response.GetLate():
		k.late(response.GetTrial().GetNumber())
	case response.GetRemaining() == nil:
		// The answer is of a report that was made before, and the lease may have ended since. A renewal tells.
		k.hurry()
	default:
		k.observe(answer{
			sent:       sent,
			repeatable: true,
			expiresAt:  response.GetExpiresAt().AsTime(),
			remaining:  response.GetRemaining().AsDuration(),
			preemption: response.GetPreemption(),
		})
	}
	return response, nil
}

// Stop ends the optimization: StopOptimization with the session, the optimization and the fencing token filled in; a
// nil request ends it as COMPLETED. When it is done, or was ended already, the keeper is closed, and its context
// cancelled with [ErrKeeperClosed]; so ctx should be another one. Where the call fails otherwise (the server cannot be
// reached; the best trial's values are refused), the optimization goes on and the lease is kept: call again, or Close.
func (k *LeaseKeeper) Stop(ctx context.Context,
	request *setpointv1.StopOptimizationRequest) (*setpointv1.StopOptimizationResponse, error) {
	filled := fill(request)
	filled.SessionId, filled.OptimizationId = k.renewal.GetSessionId(), k.renewal.GetOptimizationId()
	filled.FencingToken = proto.Int64(k.renewal.GetFencingToken())
	k.setStopping(true)
	response, err := k.calls.StopOptimization(ctx, filled)
	if err == nil || isOver(err) {
		k.Close()
	}
	if err != nil {
		k.setStopping(false)
		return nil, asError(err)
	}
	return response, nil
}

// Close stops renewing and cancels the context; it returns when nothing runs in the background any more. The lease
// itself runs out by its time, unless it is stopped. Closing again does nothing.
func (k *LeaseKeeper) Close() {
	k.cancel(ErrKeeperClosed)
	<-k.done
}

// fill is a copy of the request to fill in.
func fill[M proto.Message](request M) M {
	return shallowCopy(request.ProtoReflect()).Interface().(M)
}
