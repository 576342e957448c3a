package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

func waiting(position int32) *setpointv1.Optimization {
	return &setpointv1.Optimization{
		State: setpointv1.OptimizationState_OPTIMIZATION_STATE_WAITING, QueuePosition: position, Ttl: durationpb.New(time.Minute),
	}
}

func granted() *setpointv1.Optimization {
	return &setpointv1.Optimization{
		State: setpointv1.OptimizationState_OPTIMIZATION_STATE_ACTIVE, FencingToken: leaseToken, Ttl: durationpb.New(time.Minute),
	}
}

// says is a stream that sends these, and then ends with err.
func says(err error, messages ...*setpointv1.Optimization) func(grpc.ServerStreamingServer[setpointv1.Optimization]) error {
	return func(stream grpc.ServerStreamingServer[setpointv1.Optimization]) error {
		for _, m := range messages {
			if err := stream.Send(m); err != nil {
				return err
			}
		}
		return err
	}
}

// Over a real connection: an await that breaks off is made again, with the caller's credentials and no time limit.
func TestAwaitLease(t *testing.T) {
	t.Parallel()
	gone := status.Error(codes.Unavailable, "gone")
	p, c := newPeer(t, nil, WithPrincipal("user:ada"), WithToken("secret"), WithTimeout(time.Millisecond))
	p.awaits = []func(grpc.ServerStreamingServer[setpointv1.Optimization]) error{
		says(gone, waiting(3), waiting(2)),
		says(gone),
		says(status.Error(codes.Internal, "stream terminated by RST_STREAM"), waiting(2), waiting(1)),
		says(nil, waiting(1)), // a server that ends it too early
		says(refusal(t, codes.ResourceExhausted, "OVERLOADED", "x", nil)),
		says(nil, granted()),
	}
	var told []int32
	optimization, err := c.AwaitLease(t.Context(), "s", leaseID, func(o *setpointv1.Optimization) {
		told = append(told, o.GetQueuePosition())
	})
	if err != nil || optimization.GetFencingToken() != leaseToken {
		t.Fatalf("got %v, %v", optimization, err)
	}
	if diff := cmp.Diff([]int32{3, 2, 1, 0}, told); diff != "" {
		t.Errorf("positions (-want +got):\n%s", diff)
	}
	if n := len(p.calls()); n != len(p.awaits) {
		t.Errorf("streams: got %d, want %d", n, len(p.awaits))
	}
	for call := range p.awaits {
		if got := p.header(t, call, PrincipalMetadata); got != "user:ada" {
			t.Errorf("principal of stream %d: got %q", call, got)
		}
		if got := p.header(t, call, "authorization"); got != "Bearer secret" {
			t.Errorf("authorization of stream %d: got %q", call, got)
		}
	}
	if p.timed {
		t.Error("a stream had a deadline")
	}
}

// A token that is replaced while the call waits: its streams end, and the next one has the new token. One that is only
// revoked ends the wait.
func TestAwaitLeaseWithAnotherToken(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "token")
	write := func(token string) {
		if err := os.WriteFile(path+".new", []byte(token), 0o600); err != nil {
			t.Error(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Error(err)
		}
	}
	write("one")
	p, c := newPeer(t, nil, WithTokenFile(path))
	revoked := refusal(t, codes.Unauthenticated, "CREDENTIALS_INVALID", "the token is revoked", nil)
	p.awaits = []func(grpc.ServerStreamingServer[setpointv1.Optimization]) error{
		func(stream grpc.ServerStreamingServer[setpointv1.Optimization]) error {
			write("two")
			return says(revoked, waiting(2))(stream)
		},
		says(revoked, waiting(2)),
		says(revoked),
	}
	_, err := c.AwaitLease(t.Context(), "s", leaseID, nil)
	if !errors.Is(err, ErrCredentialsInvalid) || len(p.calls()) != 3 {
		t.Errorf("got %v after %d streams", err, len(p.calls()))
	}
	for call, want := range []string{"one", "two", "two"} {
		if got := p.header(t, call, "authorization"); got != "Bearer "+want {
			t.Errorf("authorization of stream %d: got %q", call, got)
		}
	}
}

// What is said of the connection, between what is said of the optimization.
func TestAwaitLeaseNotices(t *testing.T) {
	t.Parallel()
	gone := status.Error(codes.Unavailable, "gone")
	p, c := newPeer(t, nil)
	p.awaits = []func(grpc.ServerStreamingServer[setpointv1.Optimization]) error{
		says(gone),
		says(gone, waiting(3)),
		says(refusal(t, codes.ResourceExhausted, "OVERLOADED", "x", nil)),
		says(status.Error(codes.Internal, "stream terminated by RST_STREAM"), waiting(3)),
		says(gone, waiting(2)),
		says(nil, granted()),
	}
	var told []string
	say := func(what string) func(*setpointv1.Optimization) {
		return func(o *setpointv1.Optimization) { told = append(told, fmt.Sprint(what, " ", o.GetQueuePosition())) }
	}
	_, err := c.AwaitLease(t.Context(), "s", leaseID, say("change"), WithBackNotice(say("back")),
		WithLostNotice(func(err error) {
			var e *Error
			if !errors.As(err, &e) {
				t.Errorf("lost: got %T", err)
				return
			}
			told = append(told, "lost "+e.Name())
		}))
	if err != nil {
		t.Fatalf("AwaitLease: %v", err)
	}
	want := []string{
		"lost UNREACHABLE", "back 3", "change 3",
		"lost UNREACHABLE", "lost OVERLOADED", "back 3",
		"lost INTERNAL", "back 2", "change 2",
		"lost UNREACHABLE", "back 0", "change 0",
	}
	if diff := cmp.Diff(want, told); diff != "" {
		t.Errorf("told (-want +got):\n%s", diff)
	}
}

// A proxy that cuts streams that work does not wear the wait out, however often it does.
func TestAwaitLeaseBearsCuts(t *testing.T) {
	t.Parallel()
	p, c := newPeer(t, nil)
	for _, code := range []codes.Code{codes.Internal, codes.Unknown, codes.Canceled, codes.DeadlineExceeded} {
		for range 3 {
			p.awaits = append(p.awaits, says(status.Error(code, "cut"), waiting(1)))
		}
	}
	p.awaits = append(p.awaits, says(nil, granted()))
	if _, err := c.AwaitLease(t.Context(), "s", leaseID, nil); err != nil {
		t.Errorf("after %d streams: %v", len(p.calls()), err)
	}
}

// A server that tells the end as a state tells it as well as one that refuses.
func TestAwaitLeaseMeetsTheEnd(t *testing.T) {
	t.Parallel()
	over := waiting(0)
	over.OptimizationId, over.State = leaseID, setpointv1.OptimizationState_OPTIMIZATION_STATE_EXPIRED
	over.EndReason = "nobody waited"
	p, c := newPeer(t, nil)
	p.awaits = append(p.awaits, says(nil, waiting(1), over))
	_, err := c.AwaitLease(t.Context(), "s", leaseID, nil)
	state, ok := EndedAs(err)
	if !errors.Is(err, ErrOptimizationEnded) || !ok || state != over.GetState() ||
		err.Error() != "OPTIMIZATION_ENDED: "+leaseID+" has ended: expired: nobody waited" {
		t.Errorf("got %v, %s", err, state)
	}
}

func TestAwaitLeaseFails(t *testing.T) {
	t.Parallel()
	cut := says(status.Error(codes.Internal, "stream terminated by RST_STREAM"))
	tests := []struct {
		name   string
		stream func(grpc.ServerStreamingServer[setpointv1.Optimization]) error
		want   error
		calls  int
	}{
		{"max_wait", says(refusal(t, codes.FailedPrecondition, "ALREADY_OPTIMIZING", "x", nil), waiting(1)),
			ErrAlreadyOptimizing, 1},
		{"ended", says(refusal(t, codes.FailedPrecondition, "OPTIMIZATION_ENDED", "x", nil)), ErrOptimizationEnded, 1},
		{"unknown", says(refusal(t, codes.NotFound, "OPTIMIZATION_NOT_FOUND", "x", nil)), ErrOptimizationNotFound, 1},
		{"somebody else's", says(refusal(t, codes.PermissionDenied, "ACCESS_DENIED", "x", nil)), ErrAccessDenied, 1},
		{"a defect", says(refusal(t, codes.Internal, "INTERNAL_ERROR", "x", nil)), ErrInternal, 1},
		{"cut before it tells anything, as often as the policy has it", cut, nil, 4},
		{"an old server", says(status.Error(codes.Unimplemented, "what?")), nil, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p, c := newPeer(t, nil)
			for range tt.calls {
				p.awaits = append(p.awaits, tt.stream)
			}
			_, err := c.AwaitLease(t.Context(), "s", leaseID, nil)
			var e *Error
			if !errors.As(err, &e) || tt.want != nil && !errors.Is(err, tt.want) {
				t.Errorf("error: got %v, want %v", err, tt.want)
			}
			if n := len(p.calls()); n != tt.calls {
				t.Errorf("streams: got %d, want %d", n, tt.calls)
			}
		})
	}
}

func TestAwaitLeaseIsGivenUp(t *testing.T) {
	t.Parallel()
	p, c := newPeer(t, nil)
	p.awaits = append(p.awaits, func(stream grpc.ServerStreamingServer[setpointv1.Optimization]) error {
		if err := stream.Send(waiting(1)); err != nil {
			return err
		}
		<-stream.Context().Done()
		return status.FromContextError(stream.Context().Err()).Err()
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	_, err := c.AwaitLease(ctx, "s", leaseID, func(*setpointv1.Optimization) { cancel() })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error: got %v, want the cancellation", err)
	}
}

// awaitFake opens streams that fail, in the bubble's time, and notes when.
type awaitFake struct {
	setpointv1.OptimizationServiceClient

	mu     sync.Mutex
	opened []time.Time
	back   int // the stream that gets the grant
	ttl    time.Duration
	open   time.Duration // for how long the first stream is, if ttl is given
}

func (f *awaitFake) AwaitOptimization(ctx context.Context, _ *setpointv1.AwaitOptimizationRequest,
	_ ...grpc.CallOption) (grpc.ServerStreamingClient[setpointv1.Optimization], error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.opened = append(f.opened, time.Now())
	switch n := len(f.opened); {
	case n == f.back:
		return &said{messages: []*setpointv1.Optimization{granted()}}, nil
	case n == 1 && f.ttl > 0:
		first := waiting(1)
		first.Ttl = durationpb.New(f.ttl)
		return &said{messages: []*setpointv1.Optimization{first}, open: f.open}, nil
	}
	return nil, status.Error(codes.Unavailable, "gone")
}

type said struct {
	grpc.ClientStream
	messages []*setpointv1.Optimization
	open     time.Duration // before it ends
}

func (s *said) Recv() (*setpointv1.Optimization, error) {
	if len(s.messages) == 0 {
		<-time.After(s.open)
		return nil, io.EOF
	}
	m := s.messages[0]
	s.messages = s.messages[1:]
	return m, nil
}

// A server that is away for long is asked again and again, less and less often, but so that the place in the queue is not
// lost.
func TestAwaitLeaseOutlastsARestart(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ ttl, most time.Duration }{
		{0, time.Second}, {time.Second, time.Second / 3}, {time.Hour, 5 * time.Second},
	} {
		t.Run(fmt.Sprint(tt.ttl), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				f := &awaitFake{back: 200, ttl: tt.ttl}
				c := &Client{Optimizations: f, retry: RetryPolicy{MaxAttempts: 1}}
				optimization, err := c.AwaitLease(t.Context(), "s", leaseID, nil)
				if err != nil || optimization.GetFencingToken() != leaseToken {
					t.Fatalf("got %v, %v", optimization, err)
				}
				for i, at := range f.opened[1:] {
					if gap := at.Sub(f.opened[i]); gap > tt.most {
						t.Errorf("gap %d: %s, want %s at most", i, gap, tt.most)
					}
				}
				if took := f.opened[199].Sub(f.opened[0]); took < 200*tt.most/4 {
					t.Errorf("200 attempts in %s: too eager", took)
				}
			})
		})
	}
}

// Patience is counted from when the server was heard last, however long the optimization was in the queue before.
func TestAwaitLeaseHasPatience(t *testing.T) {
	t.Parallel()
	for _, first := range []time.Duration{0, time.Hour} {
		t.Run(fmt.Sprint(first), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				f := &awaitFake{ttl: first, open: first}
				_, err := (&Client{Optimizations: f}).AwaitLease(t.Context(), "s", leaseID, nil, WithPatience(time.Minute))
				took := time.Since(began) - first
				if !errors.Is(err, ErrOutOfPatience) || !errors.Is(err, ErrUnreachable) ||
					took < time.Minute || took > time.Minute+5*time.Second {
					t.Errorf("after %s: %v", took, err)
				}
			})
		})
	}
}

func TestAwaitLeaseHasTheContextsTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		began := time.Now()
		_, err := (&Client{Optimizations: &awaitFake{}}).AwaitLease(ctx, "s", leaseID, nil)
		if took := time.Since(began); !errors.Is(err, ErrUnreachable) || took < 55*time.Second || took > time.Minute {
			t.Errorf("after %s: %v", took, err)
		}
	})
}
