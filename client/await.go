package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// streamWorked is for how long a stream has to have been open for its end to count as the first failure again.
const streamWorked = 5 * time.Second

// AwaitLease waits for the lease of an optimization that is in the queue, and returns the optimization with its fencing
// token; that of one which has the lease already at once. While it waits, onChange (unless nil) is told of what comes:
// the optimization as it is now, each change of its place in the queue or its state, and the grant; on the caller's
// goroutine, which must not stay in it for long.
//
// Where the connection breaks, or the server goes away or starts again, it asks anew, after a wait that doubles from
// failure to failure, for as long as the optimization is in the queue: the server keeps one that nobody waits for until
// its ttl is over. Errors: [ErrAlreadyOptimizing] past max_wait, [ErrOptimizationEnded] (somebody stopped it, or it
// left the queue because nobody waited for its ttl), [ErrOptimizationNotFound], [ErrAccessDenied] to others than the
// principal that started it, and the context's. There is no time limit but that of ctx. To give up is not to leave the
// queue: that is what StopOptimization is for.
//
// Nobody renews the lease once it is granted: [Client.KeepLease] does.
func (c *Client) AwaitLease(ctx context.Context, sessionID, optimizationID string,
	onChange func(*setpointv1.Optimization)) (*setpointv1.Optimization, error) {
	w := &waiter{
		calls:    c.Optimizations,
		request:  &setpointv1.AwaitOptimizationRequest{SessionId: sessionID, OptimizationId: optimizationID},
		onChange: onChange,
	}
	policy := c.retry.withDefaults()
	for failures := 1; ; failures++ {
		opened := time.Now()
		err := w.follow(ctx)
		if err == nil {
			return w.last, nil
		}
		if time.Since(opened) > streamWorked {
			failures = 1
		}
		e := asError(err)
		if ctx.Err() != nil || !awaitsAgain(e, failures, policy) {
			return nil, e
		}
		policy.MaxBackoff = w.longestWait(c.retry.withDefaults())
		if err := pause(ctx, policy.wait(failures, e), e); err != nil {
			return nil, err
		}
	}
}

// waiter is one AwaitLease.
type waiter struct {
	calls    setpointv1.OptimizationServiceClient
	request  *setpointv1.AwaitOptimizationRequest
	onChange func(*setpointv1.Optimization)
	last     *setpointv1.Optimization
}

// follow reads one stream until the grant, which is then the last message, or until the stream fails.
func (w *waiter) follow(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := w.calls.AwaitOptimization(ctx, w.request)
	if err != nil {
		return fmt.Errorf("await optimization: %w", err)
	}
	for {
		optimization, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return status.Error(codes.Unavailable, "the stream ended before the grant")
		}
		if err != nil {
			return fmt.Errorf("await optimization: %w", err)
		}
		w.tell(optimization)
		if holdsLease(optimization) {
			return nil
		}
	}
}

// tell passes on what is new: a stream that was opened again begins with what the one before had told.
func (w *waiter) tell(optimization *setpointv1.Optimization) {
	old := w.last
	w.last = optimization
	if w.onChange == nil || old != nil && old.GetState() == optimization.GetState() &&
		old.GetQueuePosition() == optimization.GetQueuePosition() {
		return
	}
	w.onChange(optimization)
}

// longestWait bounds the wait before the stream is opened again: the place in the queue is kept for the ttl only.
func (w *waiter) longestWait(policy RetryPolicy) time.Duration {
	longest := time.Second
	if ttl := w.last.GetTtl().AsDuration(); ttl > 0 {
		longest = ttl / 3
	}
	return min(longest, policy.MaxBackoff)
}

// awaitsAgain tells whether a stream that failed is worth opening again. A server or a database that is away may be
// back at any time. What a proxy makes of a stream that it cuts has no one code: that is taken for a broken connection
// as often in a row as the policy repeats a call.
func awaitsAgain(e *Error, failures int, policy RetryPolicy) bool {
	if e.retryable(true) {
		return true
	}
	switch e.Code {
	case codes.Canceled, codes.DeadlineExceeded, codes.Internal, codes.Unknown:
		return e.ReasonName == "" && failures < policy.MaxAttempts
	}
	return false
}

// holdsLease tells whether the optimization has its lease, by what the server said of it.
func holdsLease(o *setpointv1.Optimization) bool {
	switch o.GetState() {
	case setpointv1.OptimizationState_OPTIMIZATION_STATE_ACTIVE, setpointv1.OptimizationState_OPTIMIZATION_STATE_PREEMPTING:
		return true
	}
	return false
}
