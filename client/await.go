package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// streamWorked is for how long a stream has to have been open for its end to count as the first failure again.
const streamWorked = 5 * time.Second

// ErrOutOfPatience is what [Client.AwaitLease] returns when it heard nothing of the optimization for the time of
// [WithPatience]. What the last attempt failed with is wrapped too.
var ErrOutOfPatience = errors.New("the server has not answered for too long")

// AwaitOption changes how [Client.AwaitLease] waits.
type AwaitOption func(*awaitOptions)

type awaitOptions struct {
	patience time.Duration
	lost     func(error)
	back     func(*setpointv1.Optimization)
}

// WithPatience bounds for how long the server is sought when the connection is lost, or there never was one: past that
// [ErrOutOfPatience] is returned, after the attempt under way. How long the optimization is in the queue does not
// matter, while the server answers. After the optimization's ttl without an answer its place is lost, unless it was
// granted the lease just before: so twice that, and a minute for a server that notices late that the connection is gone,
// is as long as anything can come of it. Zero or less is the default, for ever.
func WithPatience(patience time.Duration) AwaitOption {
	return func(o *awaitOptions) { o.patience = patience }
}

// WithLostNotice has a function called with an [*Error] when the connection is lost, and each time that an attempt to get
// it back fails, if another is to follow; on the goroutine of [Client.AwaitLease], as onChange.
func WithLostNotice(lost func(err error)) AwaitOption {
	return func(o *awaitOptions) { o.lost = lost }
}

// WithBackNotice has a function called when the server answers again after the connection was lost, with the optimization
// as it is now, although nothing may have changed; on the goroutine of [Client.AwaitLease], before onChange.
func WithBackNotice(back func(*setpointv1.Optimization)) AwaitOption {
	return func(o *awaitOptions) { o.back = back }
}

// AwaitLease waits for the lease of an optimization that is in the queue, and returns the optimization with its fencing
// token; that of one which has the lease already at once. While it waits, onChange (unless nil) is told of what comes:
// the optimization as it is now, each change of its place in the queue or its state, and the grant; on the caller's
// goroutine, which must not stay in it for long.
//
// Where the connection breaks, or the server goes away or starts again, it asks anew, after a wait that doubles from
// failure to failure, for as long as the optimization is in the queue: the server keeps one that nobody waits for until
// its ttl is over. Errors: [ErrAlreadyOptimizing] past max_wait, of which [Holder] tells who is in front;
// [ErrOptimizationEnded] (somebody stopped it, or it left the queue because nobody waited for its ttl),
// [ErrOptimizationNotFound], [ErrAccessDenied] to others than the principal that started it, [ErrCredentialsInvalid] where
// the token was revoked and there is no new one ([WithTokenFile]), [ErrOutOfPatience], and the context's. There is no time limit but that of ctx and [WithPatience]. To give up is not to leave the queue: that is what
// StopOptimization is for.
//
// Nobody renews the lease once it is granted: [Client.KeepLease] does.
func (c *Client) AwaitLease(ctx context.Context, sessionID, optimizationID string,
	onChange func(*setpointv1.Optimization), opts ...AwaitOption) (*setpointv1.Optimization, error) {
	w := &waiter{
		calls:    c.Optimizations,
		request:  &setpointv1.AwaitOptimizationRequest{SessionId: sessionID, OptimizationId: optimizationID},
		onChange: onChange,
	}
	for _, opt := range opts {
		opt(&w.options)
	}
	policy, heard := c.retry.withDefaults(), time.Now()
	for failures, silent := 1, 1; ; failures, silent = failures+1, silent+1 {
		opened := time.Now()
		answered, err := w.follow(ctx)
		if err == nil {
			return w.last, nil
		}
		if time.Since(opened) > streamWorked {
			failures = 1
		}
		if answered {
			silent, heard = 1, time.Now()
		}
		e := asError(err)
		// A stream is closed whose credentials no longer hold: that of a token that has been replaced meanwhile goes on with the
		// new one.
		replaced := answered && e.Reason == setpointv1.ErrorReason_CREDENTIALS_INVALID
		if ctx.Err() != nil || !replaced && !awaitsAgain(e, silent, policy) {
			return nil, e
		}
		if patience := w.options.patience; patience > 0 && time.Since(heard) >= patience {
			return nil, fmt.Errorf("%w: %w", ErrOutOfPatience, e)
		}
		w.lose(e)
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
	options  awaitOptions
	last     *setpointv1.Optimization
	lost     bool // nothing was heard since a stream failed
}

// follow reads one stream until the grant, which is then the last message, or until the stream fails; and tells whether
// anything came on it.
func (w *waiter) follow(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := w.calls.AwaitOptimization(ctx, w.request)
	if err != nil {
		return false, fmt.Errorf("await optimization: %w", err)
	}
	for answered := false; ; answered = true {
		optimization, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return answered, status.Error(codes.Unavailable, "the stream ended before the grant")
		}
		if err != nil {
			return answered, fmt.Errorf("await optimization: %w", err)
		}
		w.tell(optimization)
		switch {
		case holdsLease(optimization):
			return true, nil
		case hasEnded(optimization):
			return true, ended(optimization)
		}
	}
}

// tell passes on what is new: a stream that was opened again begins with what the one before had told.
func (w *waiter) tell(optimization *setpointv1.Optimization) {
	old := w.last
	w.last = optimization
	if w.lost {
		w.lost = false
		if w.options.back != nil {
			w.options.back(optimization)
		}
	}
	if w.onChange == nil || old != nil && old.GetState() == optimization.GetState() &&
		old.GetQueuePosition() == optimization.GetQueuePosition() {
		return
	}
	w.onChange(optimization)
}

// lose passes on that a stream failed which is to be opened again.
func (w *waiter) lose(e *Error) {
	w.lost = true
	if w.options.lost != nil {
		w.options.lost(e)
	}
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
// as often in a row as the policy repeats a call, where nothing came before the cut.
func awaitsAgain(e *Error, silent int, policy RetryPolicy) bool {
	if e.retryable(true) {
		return true
	}
	switch e.Code {
	case codes.Canceled, codes.DeadlineExceeded, codes.Internal, codes.Unknown:
		return e.ReasonName == "" && silent < policy.MaxAttempts
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

// hasEnded tells whether the optimization is over for good, by what the server said of it.
func hasEnded(o *setpointv1.Optimization) bool {
	switch o.GetState() {
	case setpointv1.OptimizationState_OPTIMIZATION_STATE_COMPLETED, setpointv1.OptimizationState_OPTIMIZATION_STATE_FAILED,
		setpointv1.OptimizationState_OPTIMIZATION_STATE_CANCELLED, setpointv1.OptimizationState_OPTIMIZATION_STATE_EXPIRED,
		setpointv1.OptimizationState_OPTIMIZATION_STATE_PREEMPTED:
		return true
	}
	return false
}

// ended is the error of a call that came after the end, made of what the server said of the optimization.
func ended(o *setpointv1.Optimization) error {
	state := o.GetState().String()
	message := fmt.Sprintf("%s has ended: %s", o.GetOptimizationId(), strings.ToLower(strings.TrimPrefix(state, statePrefix)))
	if why := o.GetEndReason(); why != "" {
		message += ": " + why
	}
	return FromItem(&setpointv1.ItemError{
		Code:     int32(codes.FailedPrecondition),
		Reason:   setpointv1.ErrorReason_OPTIMIZATION_ENDED,
		Message:  message,
		Metadata: map[string]string{"optimization_id": o.GetOptimizationId(), "state": state},
	})
}
