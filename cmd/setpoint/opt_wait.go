package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

const (
	// firstPause and longestPause bound the pauses between attempts to get back to the server.
	firstPause   = 200 * time.Millisecond
	longestPause = 5 * time.Second
	// farewell is how long a command that is interrupted takes at most to leave nothing behind, for each of its calls.
	farewell = 3 * time.Second
)

// startOptimization makes the call to its end though it be interrupted: without the answer, nobody could give back what the
// server has granted.
func (c *cli) startOptimization(ctx context.Context, api *client.Client, request *setpointv1.StartOptimizationRequest) (
	*setpointv1.Optimization, error,
) {
	call, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(farewell, cancel) })()
	o, err := api.Optimizations.StartOptimization(call, request)
	if err == nil && ctx.Err() != nil {
		return nil, c.giveUp(ctx, api, o, ctx.Err())
	}
	return o, err
}

// waitForGrant follows an optimization that waits until it has its variables. A wait that ends otherwise gives up its
// place in the queue.
func (c *cli) waitForGrant(ctx context.Context, api *client.Client, o *setpointv1.Optimization) (
	*setpointv1.Optimization, error,
) {
	line := newQueueLine(c, o)
	w := &waiter{
		api:     api,
		request: &setpointv1.AwaitOptimizationRequest{SessionId: c.session, OptimizationId: o.GetOptimizationId()},
		line:    line,
		// A place in the queue that nobody holds open is lost after the ttl, and a lease that came of it just before after
		// one more. The rest is for a server that notices late that the connection is gone.
		patience: 2*o.GetTtl().AsDuration() + time.Minute,
		// Some attempts fall into the time for which the place is kept.
		pause: max(firstPause, min(o.GetTtl().AsDuration()/3, longestPause)),
	}
	end := line.begin()
	granted, err := w.run(ctx)
	end()
	if err != nil {
		return nil, c.giveUp(ctx, api, o, err)
	}
	return granted, nil
}

// waiter waits for the grant of one optimization.
type waiter struct {
	api     *client.Client
	request *setpointv1.AwaitOptimizationRequest
	line    *queueLine
	// patience is for how long it seeks a server that it has lost, and pause the longest time between two attempts.
	patience, pause time.Duration
}

func (w *waiter) run(ctx context.Context) (*setpointv1.Optimization, error) {
	heard, pause := time.Now(), firstPause
	for {
		last, err := w.follow(ctx)
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case err == nil:
			return last, nil
		case !isUnavailable(err):
			return nil, err
		case last != nil:
			heard, pause = time.Now(), firstPause
		case time.Since(heard) > w.patience:
			return nil, &hintedError{error: err, hint: "the place in the queue is lost"}
		}
		w.line.lost()
		timer := time.NewTimer(rand.N(pause))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, ctx.Err()
		}
		pause = min(2*pause, w.pause)
	}
}

// follow makes one call, and returns the optimization as it heard of it last; nil: it heard nothing. Without an error,
// that is the grant.
func (w *waiter) follow(ctx context.Context) (*setpointv1.Optimization, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := w.api.Optimizations.AwaitOptimization(ctx, w.request)
	if err != nil {
		return nil, err
	}
	var last *setpointv1.Optimization
	for {
		o, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return last, errNoAnswer
		case err != nil:
			return last, err
		case hasLease(o):
			return o, nil
		case o.GetState() != setpointv1.OptimizationState_OPTIMIZATION_STATE_WAITING:
			return o, &reasonError{
				reason:  setpointv1.ErrorReason_OPTIMIZATION_ENDED.String(),
				message: fmt.Sprintf("%s is %s", o.GetOptimizationId(), stateName(o.GetState())),
			}
		}
		last = o
		w.line.moved(o.GetQueuePosition())
	}
}

// errNoAnswer: a server, or a proxy on the way, ended the call as if all were said.
var errNoAnswer = errors.New("the server ended the wait without an answer")

// isUnavailable tells whether a later attempt may find what this one did not.
func isUnavailable(err error) bool {
	var call *client.Error
	return errors.Is(err, errNoAnswer) || errors.As(err, &call) && call.Code == codes.Unavailable
}

// giveUp stops an optimization that waits no more, unless the server has done that, and returns what the command fails
// with. It does so too where the grant may just have come: nobody would know its LEASE.
func (c *cli) giveUp(ctx context.Context, api *client.Client, o *setpointv1.Optimization, cause error) error {
	for _, over := range []setpointv1.ErrorReason{setpointv1.ErrorReason_ALREADY_OPTIMIZING,
		setpointv1.ErrorReason_OPTIMIZATION_ENDED, setpointv1.ErrorReason_OPTIMIZATION_NOT_FOUND} {
		if errors.Is(cause, client.Reason(over)) {
			return cause
		}
	}
	var own *reasonError
	if errors.As(cause, &own) {
		return cause // it has ended
	}
	interrupted := ctx.Err() != nil
	reason := "the wait failed"
	if interrupted {
		reason = "the start was interrupted"
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), farewell)
	defer cancel()
	_, err := api.Optimizations.StopOptimization(ctx, &setpointv1.StopOptimizationRequest{
		SessionId: c.session, OptimizationId: o.GetOptimizationId(), Reason: reason,
		State: setpointv1.OptimizationState_OPTIMIZATION_STATE_CANCELLED})
	switch ended := errors.Is(err, client.Reason(setpointv1.ErrorReason_OPTIMIZATION_ENDED)); {
	case !interrupted:
		return cause
	case err != nil && !ended:
		return &reasonError{reason: "CANCELLED", message: fmt.Sprintf(
			"interrupted; %s could not be stopped (%v), and ends after its ttl", o.GetOptimizationId(), err)}
	}
	return &reasonError{reason: "CANCELLED", message: fmt.Sprintf("interrupted; %s is stopped", o.GetOptimizationId())}
}

// queueLine tells on standard error how a wait goes: on a terminal in one line that is written over and over, elsewhere
// in a line for each change.
type queueLine struct {
	out      io.Writer
	terminal bool
	width    int
	what     string // is waited for
	begun    time.Time

	mu    sync.Mutex
	state string
	shown string
}

func newQueueLine(c *cli, o *setpointv1.Optimization) *queueLine {
	names := slices.Clone(o.GetVariables())
	const few = 3
	more := ""
	if len(names) > few {
		more = fmt.Sprintf(" and %d more", len(names)-few)
		names = names[:few]
	}
	return &queueLine{out: c.stderr, terminal: c.screen.err, width: c.screen.errWidth, what: namesText(names) + more,
		begun: time.Now(), state: placeText(o.GetQueuePosition())}
}

func placeText(position int32) string {
	if position == 0 {
		return "in the queue"
	}
	return fmt.Sprintf("place %d in the queue", position)
}

// begin shows the line, and on a terminal keeps its time going until the function is called that it returns.
func (l *queueLine) begin() func() {
	l.show(time.Now())
	if !l.terminal {
		return func() {}
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		ticker := time.NewTicker(time.Second)
		defer ticker.Stop()
		for {
			select {
			case now := <-ticker.C:
				l.show(now)
			case <-stop:
				return
			}
		}
	}()
	return func() {
		close(stop)
		<-stopped
		_, _ = io.WriteString(l.out, "\r\x1b[K")
	}
}

func (l *queueLine) moved(position int32) {
	l.change(placeText(position))
}

func (l *queueLine) lost() {
	l.change("the connection is lost, trying again")
}

func (l *queueLine) change(state string) {
	l.mu.Lock()
	l.state = state
	l.mu.Unlock()
	l.show(time.Now())
}

// show writes the line where it is another one than it was. That it cannot be written is no reason to wait no more.
func (l *queueLine) show(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	text := fmt.Sprintf("waiting for %s: %s", l.what, l.state)
	if l.terminal {
		text += ", " + durationText(now.Sub(l.begun).Truncate(time.Second))
		if l.width > 0 {
			text = truncate(text, l.width-1) // the last column would begin the next line
		}
	}
	if text == l.shown {
		return
	}
	l.shown = text
	if l.terminal {
		_, _ = io.WriteString(l.out, "\r"+text+"\x1b[K")
		return
	}
	_, _ = io.WriteString(l.out, text+"\n")
}
