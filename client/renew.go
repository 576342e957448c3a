package client

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"google.golang.org/grpc/codes"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

const (
	// defaultRenewInterval leaves two renewals and the margin within the grace of 5 s that preemptors give by default.
	defaultRenewInterval = 2 * time.Second
	// leastRenewInterval keeps a lease that cannot be extended from being renewed ever faster towards its end.
	leastRenewInterval = 50 * time.Millisecond

	leastMargin = 100 * time.Millisecond
	mostMargin  = 5 * time.Second
	// clockDrift is the part of a time by which two clocks that are kept right can differ in it, or less.
	clockDrift = 1000

	// leastAttempt is what a renewal gets before it is given up for another, if the lease holds for that long.
	leastAttempt = time.Second
	// firstAttempt is what the first one gets, when nothing is known yet.
	firstAttempt = 10 * time.Second
)

// reckoning is what is known of the lease's end.
type reckoning struct {
	latest   answer    // the latest by the database's clock
	received time.Time // when it was
	renewed  answer    // the latest to a renewal
	ends     time.Time // when the lease is over, by the database's clock
	cancelAt time.Time // when the context has to be cancelled, by the monotonic clock
	why      error     // what the cause will be then
}

// answer is what one answer tells about the lease.
type answer struct {
	// sent is the monotonic clock before the request was.
	sent time.Time
	// repeatable is true of an answer that the server may have kept from before the request was sent, to give it again
	// to a repeat: its remaining time is not of now.
	repeatable bool
	expiresAt  time.Time
	remaining  time.Duration
	preemption *setpointv1.Preemption
	// silent is true of a renewal that did not extend the lease by its ttl, since a report is due before that.
	silent bool
}

// reading is the database's clock as it was for the answer.
func (a answer) reading() time.Time {
	return a.expiresAt.Add(-a.remaining)
}

// observe takes in an answer.
func (k *LeaseKeeper) observe(a answer) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.work.Err() != nil || !k.isNews(a) {
		return
	}
	k.take(a, k.options.margin)
	k.failure = nil
	left := time.Until(k.cancelAt)
	k.next = time.Now().Add(k.options.wait(left))
	k.tell(a.preemption)
	if k.timer == nil {
		k.timer = time.AfterFunc(left, func() { _ = k.Err() })
	} else {
		k.timer.Reset(left)
	}
	_ = k.check()
}

// isNews tells whether an answer was given after the one that is known. Answers overtake each other, and a report that
// is repeated gets its first one. What was asked after the last answer came is news even if the database's clock was
// set back in between, unless it may be a repeat.
func (r *reckoning) isNews(a answer) bool {
	return !a.reading().Before(r.latest.reading()) || !a.repeatable && a.sent.After(r.received)
}

// take reckons when the context has to be cancelled.
func (r *reckoning) take(a answer, margin time.Duration) {
	at := a.sent
	if a.repeatable {
		// The database read its clock this long after it had for the last renewal, or longer: not by this process's
		// clock, but an answer of long ago shows.
		at = earlier(at, r.renewed.sent.Add(a.reading().Sub(r.renewed.reading())))
	} else {
		r.renewed = a
	}
	ends, why := a.expiresAt, ErrNotRenewed
	if p := a.preemption; p != nil {
		ends = earlier(ends, p.GetDeadline().AsTime())
		why = preemptedBy(p)
	} else if a.silent {
		why = ErrNoProgress
	}
	left := ends.Sub(a.reading())
	cancelAt := at.Add(left - marginOf(left, margin))
	switch fixed := a.preemption != nil || a.silent; {
	case !fixed && a.repeatable && ends.Equal(r.ends):
		// A report of a trial that was reported before does not extend: nothing is new but the reading of the clock.
		cancelAt = r.cancelAt
		if errors.Is(r.why, ErrNoProgress) {
			why = r.why
		}
	case (fixed || a.repeatable) && !ends.After(r.ends):
		// An end that does not move keeps the margin that it had, although a tenth of what is left is less each time.
		cancelAt = earlier(cancelAt, r.cancelAt)
	case a.preemption == nil && !ends.Before(r.ends) && cancelAt.Before(r.cancelAt):
		// A slow call counts from long ago. What is to end no earlier than was known holds no shorter than was known.
		cancelAt = r.cancelAt
	}
	r.latest, r.received, r.ends, r.cancelAt, r.why = a, time.Now(), ends, cancelAt, why
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func preemptedBy(p *setpointv1.Preemption) error {
	return fmt.Errorf("%w by %s (%s), which has the variables from %s on",
		ErrPreempted, p.GetBy(), p.GetOptimizerId(), p.GetDeadline().AsTime().Format(time.RFC3339Nano))
}

// marginOf is how long before the end of a lease that holds for another while the context is cancelled. The work has all
// that it asked for; the default is more than enough for the clocks.
func marginOf(left, wanted time.Duration) time.Duration {
	if wanted > 0 {
		return wanted + max(left, 0)/clockDrift
	}
	return min(max(left/10, leastMargin), mostMargin)
}

// wait is how long to wait before the next renewal, where the context is to be cancelled after left. The jitter keeps
// those apart who began together.
func (o keepOptions) wait(left time.Duration) time.Duration {
	wait := min(left/3, o.interval)
	if wait > leastRenewInterval {
		wait -= rand.N(wait / 5)
	}
	return max(wait, leastRenewInterval)
}

// check cancels the context if it is time for that, and returns why the lease is not kept, or nil. The caller has the
// lock.
func (k *LeaseKeeper) check() error {
	if k.work.Err() == nil && !k.cancelAt.IsZero() && k.left() <= 0 {
		why := k.why
		if errors.Is(why, ErrNotRenewed) && k.failure != nil {
			why = fmt.Errorf("%w: %w", ErrNotRenewed, k.failure)
		}
		if ahead := time.Until(k.cancelAt); ahead > 0 {
			why = fmt.Errorf("%w, by the wall clock, which went on for %s more than this process did", why, ahead-k.left())
		}
		k.cancel(why)
	}
	return context.Cause(k.work)
}

// left is how long it is until the context has to be cancelled, by the clock that has come further: the monotonic one
// stands still while the machine is suspended, and the wall clock may be set back. The caller has the lock.
func (k *LeaseKeeper) left() time.Duration {
	return min(time.Until(k.cancelAt), k.cancelAt.Round(0).Sub(k.wall().Round(0)))
}

// tell passes a preemption on, or forgets one that was taken back. The caller has the lock.
func (k *LeaseKeeper) tell(p *setpointv1.Preemption) {
	if p == nil {
		if k.notice != nil {
			k.notice = nil
			k.drop()
		}
		return
	}
	notice := Preemption{
		By: p.GetBy(), OptimizerID: p.GetOptimizerId(), Deadline: p.GetDeadline().AsTime(), Until: k.cancelAt,
	}
	known := k.notice != nil && k.notice.By == notice.By && k.notice.Deadline.Equal(notice.Deadline)
	k.notice = &notice
	if known {
		return
	}
	k.drop()
	k.preempts <- notice // there is room: only who has the lock sends
}

// drop takes back a notice that nobody has received.
func (k *LeaseKeeper) drop() {
	select {
	case <-k.preempts:
	default:
	}
}

// begin renews for the first time, as often as the policy repeats a call. What StartOptimization and AwaitOptimization
// told of the time left is of no use: their answers may have been kept for a repeat, or lain unread while this process
// was stopped.
func (k *LeaseKeeper) begin() error {
	for attempt := 1; ; attempt++ {
		err := k.renew()
		if err == nil {
			return k.hasBegun()
		}
		e := asError(err)
		if attempt >= k.policy.MaxAttempts || k.work.Err() != nil || !e.retryable(true) && e.Code != codes.DeadlineExceeded {
			return e
		}
		if err := pause(k.work, k.policy.wait(attempt, e), e); err != nil {
			return err
		}
	}
}

// hasBegun returns why the first renewal left nothing to keep, if so.
func (k *LeaseKeeper) hasBegun() error {
	err := k.Err()
	margin, left := k.options.margin, k.latest.remaining
	if errors.Is(err, ErrNotRenewed) && margin > 0 && marginOf(left, margin) >= left {
		return fmt.Errorf("a margin of %s leaves nothing of the %s for which the lease holds", margin, left)
	}
	return err
}

// renew is one attempt, with its own moment from which the time is counted. One that hangs is given up in time for
// others.
func (k *LeaseKeeper) renew() error {
	timeout := firstAttempt
	k.mu.Lock()
	if !k.cancelAt.IsZero() {
		timeout = max(k.left()/3, leastAttempt)
	}
	k.mu.Unlock()
	ctx, cancel := context.WithTimeout(k.work, timeout)
	defer cancel()
	sent := time.Now()
	optimization, err := k.calls.RenewOptimization(ctx, k.renewal, once{})
	if err != nil {
		return fmt.Errorf("renew: %w", err)
	}
	if optimization.GetRemaining() == nil {
		return errors.New("renew: the answer does not say how long the lease holds")
	}
	remaining, ttl := optimization.GetRemaining().AsDuration(), optimization.GetTtl().AsDuration()
	k.observe(answer{
		sent:       sent,
		expiresAt:  optimization.GetExpiresAt().AsTime(),
		remaining:  remaining,
		preemption: optimization.GetPreemption(),
		silent:     optimization.GetProgressTimeout() != nil && remaining < ttl-leastRenewInterval,
	})
	return nil
}

// failed says when to try again, or ends it where that is of no use.
func (k *LeaseKeeper) failed(e *Error, failures int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case k.work.Err() != nil:
		return
	case k.stopping && errors.Is(e, ErrOptimizationEnded):
		k.cancel(ErrKeeperClosed)
		return
	case isOver(e) || errors.Is(e, ErrAccessDenied):
		k.cancel(causeOf(e))
		return
	}
	k.failure = e
	wait := min(k.policy.wait(failures, e), max(k.left()/4, leastRenewInterval))
	k.next = time.Now().Add(wait)
}

// causeOf makes of what a renewal was refused with why the lease is not kept.
func causeOf(e *Error) error {
	if state, _ := EndedAs(e); state == setpointv1.OptimizationState_OPTIMIZATION_STATE_PREEMPTED {
		return fmt.Errorf("%w: %w", ErrPreempted, e)
	}
	return e
}

// late cancels the context because a report came after the end. Only a renewal is told how that came about, so one is
// tried, which is given up soon: the work is to stop.
func (k *LeaseKeeper) late(trial int64) {
	cause := fmt.Errorf("trial %d was reported late: %w", trial, ErrLeaseLost)
	ctx, cancel := context.WithTimeout(k.work, leastAttempt)
	defer cancel()
	if k.work.Err() == nil {
		if _, err := k.calls.RenewOptimization(ctx, k.renewal, once{}); err != nil && isOver(err) {
			cause = fmt.Errorf("%w: %w", cause, causeOf(asError(err)))
		}
	}
	k.cancel(cause)
}

// isOver tells whether the error says of the lease itself that it does not hold.
func isOver(err error) bool {
	switch asError(err).Reason {
	case setpointv1.ErrorReason_LEASE_LOST, setpointv1.ErrorReason_OPTIMIZATION_ENDED,
		setpointv1.ErrorReason_OPTIMIZATION_NOT_FOUND, setpointv1.ErrorReason_SESSION_NOT_FOUND:
		return true
	}
	return false
}

// hurry makes a renewal due now.
func (k *LeaseKeeper) hurry() {
	k.mu.Lock()
	k.next = time.Now()
	k.mu.Unlock()
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

func (k *LeaseKeeper) setStopping(stopping bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.stopping = stopping
}

// run renews until the context is done.
func (k *LeaseKeeper) run() {
	defer close(k.done)
	for failures := 0; k.waitsUntilDue(); {
		if k.Err() != nil {
			break
		}
		if err := k.renew(); err != nil {
			failures++
			k.failed(asError(err), failures)
			continue
		}
		failures = 0
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.timer.Stop()
}

// waitsUntilDue waits for the next renewal to be due; false means that there is to be none.
func (k *LeaseKeeper) waitsUntilDue() bool {
	for {
		k.mu.Lock()
		wait := time.Until(k.next)
		k.mu.Unlock()
		if wait <= 0 {
			return k.work.Err() == nil
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-k.wake:
		case <-k.work.Done():
		}
		timer.Stop()
		if k.work.Err() != nil {
			return false
		}
	}
}
