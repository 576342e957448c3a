package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// farewell is how long a command that is interrupted takes at most to leave nothing behind, for each of its calls.
const farewell = 3 * time.Second

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
	end := line.begin()
	granted, err := c.await(ctx, api, o, line, patienceOf(o))
	end()
	if err != nil {
		return nil, c.giveUp(ctx, api, o, err)
	}
	return granted, nil
}

// patienceOf is for how long a server is sought that is lost. A place in the queue that nobody holds open is lost after the
// ttl, and a lease that came of it just before after one more. The rest is for a server that notices late that the
// connection is gone.
func patienceOf(o *setpointv1.Optimization) time.Duration {
	return 2*o.GetTtl().AsDuration() + time.Minute
}

// await shows in a line how the wait goes.
func (c *cli) await(ctx context.Context, api *client.Client, o *setpointv1.Optimization, line *queueLine,
	patience time.Duration) (*setpointv1.Optimization, error) {
	show := func(o *setpointv1.Optimization) {
		if o.GetState() == setpointv1.OptimizationState_OPTIMIZATION_STATE_WAITING {
			line.moved(o.GetQueuePosition())
		}
	}
	granted, err := api.AwaitLease(ctx, c.session, o.GetOptimizationId(), show, client.WithBackNotice(show),
		client.WithLostNotice(func(error) { line.lost() }), client.WithPatience(patience))
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err() // though the grant may just have come
	case errors.Is(err, client.ErrOutOfPatience):
		return nil, &hintedError{error: err, hint: "the place in the queue is lost"}
	}
	return granted, err
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
