package main

import (
	"bytes"
	"context"
	"errors"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

type waitStream = grpc.ServerStreamingServer[setpointv1.Optimization]

// queued is an optimization that waits.
func queued(position int32) *setpointv1.Optimization {
	return &setpointv1.Optimization{OptimizationId: tunerID, State: stateWaiting, QueuePosition: position,
		Variables: []string{"lr"}, Ttl: durationpb.New(time.Minute)}
}

// newQueue is a peer that makes everybody wait, at place 3, and answers AwaitOptimization with what a function says of
// the nth call, from 1.
func newQueue(t *testing.T, await func(call int, stream waitStream) error) *peer {
	t.Helper()
	p := newPeer(t, func(request proto.Message) (proto.Message, error) {
		switch request.(type) {
		case *setpointv1.StartOptimizationRequest:
			return queued(3), nil
		case *setpointv1.StopOptimizationRequest:
			return &setpointv1.StopOptimizationResponse{}, nil
		}
		return nil, errors.New("unexpected request")
	})
	var calls atomic.Int32
	p.mu.Lock() // nothing else orders it before a call from another process
	defer p.mu.Unlock()
	p.await = func(stream waitStream) error { return await(int(calls.Add(1)), stream) }
	return p
}

// sends sends each of some states, and then ends the call with an error, if any.
func sends(stream waitStream, end error, states ...*setpointv1.Optimization) error {
	for _, o := range states {
		if err := stream.Send(o); err != nil {
			return err
		}
	}
	return end
}

// stops are the requests that a peer got to stop an optimization.
func (p *peer) stops() []*setpointv1.StopOptimizationRequest {
	p.mu.Lock()
	defer p.mu.Unlock()
	var found []*setpointv1.StopOptimizationRequest
	for _, request := range p.requests {
		if stop, ok := request.(*setpointv1.StopOptimizationRequest); ok {
			found = append(found, stop)
		}
	}
	return found
}

const (
	place3 = "waiting for lr: place 3 in the queue\n"
	place2 = "waiting for lr: place 2 in the queue\n"
	lost   = "waiting for lr: the connection is lost, trying again\n"
)

func TestWaitForTheGrant(t *testing.T) {
	t.Parallel()
	away := status.Error(codes.Unavailable, "the server is stopping")
	noDatabase := refusal(t, codes.Unavailable, "DATABASE_UNAVAILABLE", "no database")
	tests := []struct {
		name  string
		await func(call int, stream waitStream) error
		err   string
	}{
		{"at once", func(_ int, stream waitStream) error { return sends(stream, nil, tuning()) }, place3},
		{"in turn", func(_ int, stream waitStream) error {
			return sends(stream, nil, queued(3), queued(3), queued(2), tuning())
		}, place3 + place2},
		{"at a place that nobody knows", func(_ int, stream waitStream) error {
			return sends(stream, nil, queued(0), tuning())
		}, place3 + "waiting for lr: in the queue\n"},
		{"and about to lose it", func(_ int, stream waitStream) error { return sends(stream, nil, preempted()) }, place3},
		{"with a server away", func(call int, stream waitStream) error {
			switch call {
			case 1:
				return sends(stream, away, queued(3))
			case 2:
				return noDatabase
			}
			return sends(stream, nil, queued(2), tuning())
		}, place3 + lost + place2},
		{"with a proxy that cuts", func(call int, stream waitStream) error {
			switch call {
			case 1:
				return sends(stream, status.Error(codes.Internal, "stream terminated by RST_STREAM"), queued(3))
			case 2:
				return status.Error(codes.Unknown, "502")
			}
			return sends(stream, nil, queued(2), tuning())
		}, place3 + lost + place2},
		{"with a server that is busy", func(call int, stream waitStream) error {
			if call == 1 {
				return refusal(t, codes.ResourceExhausted, "OVERLOADED", "too many calls")
			}
			return sends(stream, nil, queued(3), tuning())
		}, place3 + lost + place3},
		{"with a call that just ends", func(call int, stream waitStream) error {
			if call == 1 {
				return sends(stream, nil, queued(3))
			}
			return sends(stream, nil, queued(3), tuning())
		}, place3 + lost + place3},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			for _, strategy := range []string{"wait", "preempt"} {
				got := newQueue(t, tt.await).setpoint(t, "opt", "start", "lr", "--conflict", strategy)
				if got.status != 0 || !strings.HasPrefix(got.out, "lease: ") || !strings.Contains(got.out, tunerLease+"\n") || got.err != tt.err {
					t.Errorf("got %+v, want %q on standard error", got, tt.err)
				}
			}
			p := newQueue(t, tt.await)
			got := p.setpoint(t, "opt", "start", "lr", "--conflict", "wait", "-o", "json")
			if got.err != tt.err {
				t.Errorf("-o json: said %q, want %q", got.err, tt.err)
			}
			got.err = ""
			want := tuning()
			if strings.Contains(tt.name, "lose") {
				want = preempted()
			}
			checkJSON(t, got, want)
			if len(p.stops()) > 0 {
				t.Errorf("it stopped what it had got: %v", p.stops())
			}
			request := &setpointv1.AwaitOptimizationRequest{SessionId: "default", OptimizationId: tunerID}
			if diff := cmp.Diff(request, p.last(t), protocmp.Transform()); diff != "" {
				t.Errorf("request (-want +got):\n%s", diff)
			}
		})
	}
}

// The server goes away while somebody waits, and comes back at the same address.
func TestWaitOutlivesTheServer(t *testing.T) {
	t.Parallel()
	waiting := make(chan struct{})
	p := newQueue(t, func(call int, stream waitStream) error {
		if call > 1 {
			return sends(stream, nil, queued(1), tuning())
		}
		close(waiting)
		<-stream.Context().Done()
		return stream.Context().Err()
	})
	addr, stop := p.addr, p.stop
	line := invocation{args: []string{"--addr", addr, "opt", "start", "lr", "--conflict", "wait"}}
	ended := make(chan result, 1)
	go func() { ended <- line.runIn(t.Context()) }()
	<-waiting
	stop()
	p.listen(t, addr)
	got := <-ended
	want := place3 + lost + "waiting for lr: place 1 in the queue\n"
	if got.status != 0 || !strings.Contains(got.out, tunerLease+"\n") || got.err != want {
		t.Errorf("got %+v, want %q on standard error", got, want)
	}
}

func TestInterruptedWaitLeavesTheQueue(t *testing.T) {
	t.Parallel()
	stop := &setpointv1.StopOptimizationRequest{SessionId: "default", OptimizationId: tunerID, State: stateCancelled,
		Reason: "the start was interrupted"}
	const stopped = "error: CANCELLED: interrupted; " + tunerID + " is stopped\n"
	tests := []struct {
		name   string
		await  func(interrupt func(), stream waitStream) error
		refuse error
		err    string
	}{
		{"in the queue", func(interrupt func(), stream waitStream) error {
			interrupt()
			<-stream.Context().Done()
			return nil
		}, nil, stopped},
		{"as the grant came", func(interrupt func(), stream waitStream) error {
			interrupt()
			return sends(stream, nil, tuning())
		}, nil, stopped},
		{"with the server away", func(interrupt func(), _ waitStream) error {
			interrupt()
			return status.Error(codes.Unavailable, "away")
		}, nil, stopped},
		{"and somebody was faster", func(interrupt func(), _ waitStream) error {
			interrupt()
			return nil
		}, refusal(t, codes.FailedPrecondition, "OPTIMIZATION_ENDED", "it is cancelled"), stopped},
		{"in vain", func(interrupt func(), _ waitStream) error {
			interrupt()
			return nil
		}, refusal(t, codes.Internal, "INTERNAL_ERROR", "an error"), "error: CANCELLED: interrupted; " + tunerID +
			" could not be stopped (INTERNAL_ERROR: an error), and ends after its ttl\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			ctx, interrupt := context.WithCancel(t.Context())
			defer interrupt()
			p := newQueue(t, func(_ int, stream waitStream) error { return tt.await(interrupt, stream) })
			answer := p.answer
			p.answer = func(request proto.Message) (proto.Message, error) {
				if _, ok := request.(*setpointv1.StopOptimizationRequest); ok && tt.refuse != nil {
					return nil, tt.refuse
				}
				return answer(request)
			}
			got := invocation{args: []string{"--addr", p.addr, "opt", "start", "lr", "--conflict", "wait"}}.runIn(ctx)
			if got.status != 1 || got.out != "" || !strings.HasSuffix(got.err, tt.err) || !strings.HasPrefix(got.err, place3) {
				t.Errorf("got %+v, want %q", got, tt.err)
			}
			stops := p.stops()
			for _, request := range stops {
				request.RequestId = ""
			}
			if diff := cmp.Diff([]*setpointv1.StopOptimizationRequest{stop}, stops, protocmp.Transform()); diff != "" {
				t.Errorf("stopped (-want +got):\n%s", diff)
			}
		})
	}
}

// An interrupt that comes before the answer leaves nothing behind either, whatever the answer is.
func TestInterruptedStart(t *testing.T) {
	t.Parallel()
	const stopped = "error: CANCELLED: interrupted; " + tunerID + " is stopped\n"
	taken := refusal(t, codes.FailedPrecondition, "ALREADY_OPTIMIZING", "lr: tuner has it")
	tests := []struct {
		name   string
		answer *setpointv1.Optimization
		refuse error
		err    string
		stops  int
	}{
		{"granted", tuning(), nil, stopped, 1},
		{"waiting", queued(2), nil, stopped, 1},
		{"refused", nil, taken, "error: ALREADY_OPTIMIZING: lr: tuner has it\n", 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			ctx, interrupt := context.WithCancel(t.Context())
			defer interrupt()
			p := newPeer(t, func(request proto.Message) (proto.Message, error) {
				if _, ok := request.(*setpointv1.StopOptimizationRequest); ok {
					return &setpointv1.StopOptimizationResponse{}, nil
				}
				interrupt()
				return tt.answer, tt.refuse
			})
			got := invocation{args: []string{"--addr", p.addr, "opt", "start", "lr"}}.runIn(ctx)
			if diff := cmp.Diff(result{status: 1, err: tt.err}, got, cmp.AllowUnexported(result{})); diff != "" {
				t.Errorf("result (-want +got):\n%s", diff)
			}
			if stops := p.stops(); len(stops) != tt.stops {
				t.Errorf("stopped %v", stops)
			}
		})
	}
}

// A wait that fails leaves nothing behind that would get the variables for nobody.
func TestFailedWait(t *testing.T) {
	t.Parallel()
	cancelled := queued(0)
	cancelled.State = stateCancelled
	tests := []struct {
		name  string
		await func(stream waitStream) error
		err   string
		stops int
	}{
		{"too long", func(waitStream) error {
			return refusal(t, codes.FailedPrecondition, "ALREADY_OPTIMIZING", "lr: tuner has it")
		}, "error: ALREADY_OPTIMIZING: lr: tuner has it\n", 0},
		{"stopped", func(waitStream) error {
			return refusal(t, codes.FailedPrecondition, "OPTIMIZATION_ENDED", "it is cancelled")
		}, "error: OPTIMIZATION_ENDED: it is cancelled\n", 0},
		{"stopped, as a state", func(stream waitStream) error { return sends(stream, nil, cancelled) },
			"error: OPTIMIZATION_ENDED: " + tunerID + " has ended: cancelled\n", 0},
		{"gone", func(waitStream) error { return refusal(t, codes.NotFound, "OPTIMIZATION_NOT_FOUND", "no such") },
			"error: OPTIMIZATION_NOT_FOUND: no such\n", 0},
		{"broken", func(waitStream) error { return refusal(t, codes.Internal, "INTERNAL_ERROR", "an error") },
			"error: INTERNAL_ERROR: an error\n", 1},
		{"an older server", func(waitStream) error { return status.Error(codes.Unimplemented, "no such method") },
			"error: UNIMPLEMENTED: no such method\n", 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := newQueue(t, func(_ int, stream waitStream) error { return tt.await(stream) })
			got := p.setpoint(t, "opt", "start", "lr", "--conflict", "wait")
			if diff := cmp.Diff(result{status: 1, err: place3 + tt.err}, got, cmp.AllowUnexported(result{})); diff != "" {
				t.Errorf("result (-want +got):\n%s", diff)
			}
			if stops := p.stops(); len(stops) != tt.stops || tt.stops > 0 && stops[0].GetReason() != "the wait failed" {
				t.Errorf("stopped %v", stops)
			}
		})
	}
}

// A server that is away for so long that the place is lost is sought no more.
func TestWaitHasAnEnd(t *testing.T) {
	t.Parallel()
	p := newQueue(t, func(int, waitStream) error { return status.Error(codes.Unavailable, "away") })
	api, err := client.Dial(p.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer api.Close()
	c := &cli{stderr: &bytes.Buffer{}, session: "default"}
	_, err = c.await(t.Context(), api, queued(1), newQueueLine(c, queued(1)), time.Millisecond)
	var hinted *hintedError
	if !errors.Is(err, client.ErrUnreachable) || !errors.As(err, &hinted) || hinted.hint != "the place in the queue is lost" {
		t.Errorf("got %v", err)
	}
	if got := patienceOf(queued(1)); got != 3*time.Minute {
		t.Errorf("patience with a ttl of a minute: got %s", got)
	}
}

// elapsed is the time that a wait has taken, at the end of a line.
var elapsed = regexp.MustCompile(`, \d+s$`)

func TestQueueLineOnATerminal(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	o := queued(2)
	o.Variables = []string{"a", "b\x1b", "c", "d", "e"}
	line := newQueueLine(&cli{stderr: &out, screen: screen{err: true, errWidth: 62}}, o)
	for _, step := range []struct {
		after time.Duration
		do    func()
		want  string
	}{
		{0, func() {}, "waiting for a, b\\x1b, c and 2 more: place 2 in the queue, 0s"},
		{900 * time.Millisecond, func() {}, ""},
		{12 * time.Second, func() {}, "waiting for a, b\\x1b, c and 2 more: place 2 in the queue, 12s"},
		{83 * time.Second, func() { line.state = placeText(1) }, "waiting for a, b\\x1b, c and 2 more: place 1 in the queue, 1m…"},
	} {
		out.Reset()
		step.do()
		line.show(line.begun.Add(step.after))
		want := step.want
		if want != "" {
			want = "\r" + want + "\x1b[K"
		}
		if out.String() != want {
			t.Errorf("after %s: got %q, want %q", step.after, out.String(), want)
		}
	}
	p := newQueue(t, func(_ int, stream waitStream) error { return sends(stream, nil, queued(1), tuning()) })
	args := []string{"--addr", p.addr, "opt", "start", "lr", "--conflict", "wait"}
	got := invocation{args: args, screen: screen{err: true, out: true}}.run(t)
	lines := strings.Split(got.err, "\r")
	for i, line := range lines {
		lines[i] = elapsed.ReplaceAllString(strings.ReplaceAll(line, "\x1b[K", ""), "")
	}
	lines = slices.Compact(lines)
	want := []string{"", "waiting for lr: place 3 in the queue", "waiting for lr: place 1 in the queue", ""}
	if got.status != 0 || !slices.Equal(lines, want) || strings.Contains(got.err, "\n") {
		t.Errorf("got %+v", got)
	}
}
