package client

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// lessor is the service as one lease sees it, in the bubble's time: calls take out to arrive and back to be answered,
// and the clock that decides is another one than the keeper's, 30 years ahead and as much faster as rate says.
type lessor struct {
	setpointv1.OptimizationServiceClient

	ttl       time.Duration
	out, back time.Duration
	rate      float64
	started   time.Time

	mu         sync.Mutex
	expires    time.Time
	preemption *setpointv1.Preemption
	progress   time.Duration // the progress_timeout
	reported   time.Time
	fault      func(ctx context.Context) error // of renewals
	reportErr  error
	reportKept *setpointv1.ReportProgressResponse // answered again, as to a repeat under one request_id
	stopErr    error
	stopBack   time.Duration // longer than back
	ended      error
	mute       bool        // answers do not say how much time is left
	renewals   []time.Time // when they arrived, by the bubble's clock
	reports    []*setpointv1.ReportProgressRequest
	stops      []*setpointv1.StopOptimizationRequest
}

const leaseID, leaseToken = "opt_0123456789abcdefghjkmnpqrs", 7

func newLessor(ttl time.Duration) *lessor {
	l := &lessor{ttl: ttl, rate: 1, started: time.Now()}
	l.expires = l.now().Add(ttl)
	l.reported = l.now()
	return l
}

func (l *lessor) now() time.Time {
	since := time.Duration(float64(time.Since(l.started)) * l.rate)
	return time.Date(2056, 1, 1, 0, 0, 0, 0, time.UTC).Add(since)
}

// set changes the lessor under its lock.
func (l *lessor) set(change func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change()
}

// left is how long the lease holds yet, by the clock that decides.
func (l *lessor) left() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.expires.Sub(l.now())
}

func (l *lessor) extend() {
	if l.preemption != nil {
		return
	}
	l.expires = l.now().Add(l.ttl)
	if l.progress > 0 && l.reported.Add(l.progress).Before(l.expires) {
		l.expires = l.reported.Add(l.progress)
	}
}

func (l *lessor) preempt(grace time.Duration) {
	l.set(func() {
		deadline := l.now().Add(grace)
		l.preemption = &setpointv1.Preemption{By: "opt_b", OptimizerId: "urgent", Deadline: timestamppb.New(deadline)}
		if deadline.Before(l.expires) {
			l.expires = deadline
		}
	})
}

func (l *lessor) refusal(t *testing.T) error {
	if l.ended != nil {
		return l.ended
	}
	if !l.now().Before(l.expires) {
		state := "EXPIRED"
		if l.preemption != nil {
			state = "PREEMPTED"
		}
		return refusal(t, codes.FailedPrecondition, "OPTIMIZATION_ENDED", "over", map[string]string{"state": state})
	}
	return nil
}

func (l *lessor) optimization() *setpointv1.Optimization {
	o := &setpointv1.Optimization{
		SessionId: "s", OptimizationId: leaseID, FencingToken: leaseToken,
		State:      setpointv1.OptimizationState_OPTIMIZATION_STATE_ACTIVE,
		Ttl:        durationpb.New(l.ttl),
		ExpiresAt:  timestamppb.New(l.expires),
		Remaining:  durationpb.New(l.expires.Sub(l.now())),
		Preemption: l.preemption,
	}
	if l.mute {
		o.Remaining = nil
	}
	if l.progress > 0 {
		o.ProgressTimeout = durationpb.New(l.progress)
	}
	return o
}

// travel is the time on the wire.
func travel(ctx context.Context, d time.Duration) error {
	if err := elapse(ctx, d); err != nil {
		return status.FromContextError(err).Err()
	}
	return nil
}

func elapse(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// lease is a lessor with the test that its errors need.
type lease struct {
	*lessor
	t *testing.T
}

func (l lease) RenewOptimization(ctx context.Context, r *setpointv1.RenewOptimizationRequest,
	_ ...grpc.CallOption) (*setpointv1.Optimization, error) {
	if r.GetSessionId() != "s" || r.GetOptimizationId() != leaseID || r.GetFencingToken() != leaseToken {
		l.t.Errorf("renewal: got %v", r)
	}
	if err := travel(ctx, l.out); err != nil {
		return nil, err
	}
	l.mu.Lock()
	l.renewals = append(l.renewals, time.Now())
	fault := l.fault
	l.mu.Unlock()
	if fault != nil {
		if err := fault(ctx); err != nil {
			return nil, err
		}
	}
	l.mu.Lock()
	err := l.refusal(l.t)
	if err == nil {
		l.extend()
	}
	answer := l.optimization()
	l.mu.Unlock()
	if err := travel(ctx, l.back); err != nil {
		return nil, err
	}
	return answer, err
}

func (l lease) ReportProgress(ctx context.Context, r *setpointv1.ReportProgressRequest,
	_ ...grpc.CallOption) (*setpointv1.ReportProgressResponse, error) {
	if err := travel(ctx, l.out); err != nil {
		return nil, err
	}
	l.mu.Lock()
	l.reports = append(l.reports, r)
	if kept := l.reportKept; kept != nil {
		l.mu.Unlock()
		return kept, nil
	}
	late := l.refusal(l.t) != nil
	if !late && l.reportErr == nil {
		l.reported = l.now()
		l.extend()
	}
	o, err := l.optimization(), l.reportErr
	l.mu.Unlock()
	if err := travel(ctx, l.back); err != nil {
		return nil, err
	}
	answer := &setpointv1.ReportProgressResponse{Trial: &setpointv1.Trial{Number: 3}, ExpiresAt: o.GetExpiresAt(), Late: late}
	if !late {
		answer.Preemption, answer.Remaining = o.GetPreemption(), o.GetRemaining()
	}
	return answer, err
}

func (l lease) StopOptimization(ctx context.Context, r *setpointv1.StopOptimizationRequest,
	_ ...grpc.CallOption) (*setpointv1.StopOptimizationResponse, error) {
	if err := travel(ctx, l.out); err != nil {
		return nil, err
	}
	l.mu.Lock()
	l.stops = append(l.stops, r)
	err := l.stopErr
	if err == nil {
		err = l.refusal(l.t)
	}
	if err == nil {
		l.ended = refusal(l.t, codes.FailedPrecondition, "OPTIMIZATION_ENDED", "stopped", map[string]string{"state": "COMPLETED"})
	}
	l.mu.Unlock()
	if err := travel(ctx, l.stopBack); err != nil {
		return nil, err
	}
	return &setpointv1.StopOptimizationResponse{}, err
}

// keep begins to keep the lease; the keeper is closed before the bubble ends.
func (l *lessor) keep(t *testing.T, opts ...KeepOption) *LeaseKeeper {
	t.Helper()
	k, err := l.client(t).KeepLease(t.Context(), l.optimization(), opts...)
	if err != nil {
		t.Fatalf("KeepLease: %v", err)
	}
	t.Cleanup(k.Close)
	return k
}

func (l *lessor) client(t *testing.T) *Client {
	return &Client{Optimizations: lease{l, t}}
}

// wants fails unless the context is cancelled for that reason.
func wants(t *testing.T, k *LeaseKeeper, reasons ...error) {
	t.Helper()
	if k.Context().Err() == nil {
		t.Fatalf("the context is not cancelled; want %v", reasons)
	}
	for _, want := range reasons {
		if got := context.Cause(k.Context()); !errors.Is(got, want) || !errors.Is(k.Err(), want) {
			t.Errorf("cause: got %v, want %v", got, want)
		}
	}
}

func TestKeeperRenews(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name        string
		ttl         time.Duration
		opts        []KeepOption
		least, most time.Duration // between two renewals
	}{
		{"the shortest lease", time.Second, nil, 200 * time.Millisecond, 300 * time.Millisecond},
		{"a minute, every 2 s so as to hear of a preemption", time.Minute, nil, 1600 * time.Millisecond, 2 * time.Second},
		{"an hour", time.Hour, nil, 1600 * time.Millisecond, 2 * time.Second},
		{"a minute, by thirds", time.Minute, []KeepOption{WithRenewInterval(time.Hour)},
			55 * time.Second / 3 * 4 / 5, 55 * time.Second / 3},
		{"with a margin", time.Minute, []KeepOption{WithRenewInterval(time.Hour), WithLeaseMargin(30 * time.Second)},
			7980 * time.Millisecond, 10 * time.Second},
		{"zeros are the defaults", time.Minute, []KeepOption{WithRenewInterval(0), WithLeaseMargin(0)},
			1600 * time.Millisecond, 2 * time.Second},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				l := newLessor(tt.ttl)
				k := l.keep(t, tt.opts...)
				_ = elapse(t.Context(), 20*tt.most)
				if err := k.Err(); err != nil {
					t.Fatalf("the lease is not kept: %v", err)
				}
				if want := int(20*tt.most/tt.ttl) + 3; len(l.renewals) < want {
					t.Errorf("renewals: got %d, want %d or more", len(l.renewals), want)
				}
				for i, at := range l.renewals[1:] {
					if gap := at.Sub(l.renewals[i]); gap < tt.least-time.Millisecond || gap > tt.most {
						t.Errorf("gap %d: got %s, want from %s to %s", i, gap, tt.least, tt.most)
					}
				}
			})
		})
	}
}

// However renewals fail, the context is cancelled while the lease still holds, by about the margin.
func TestContextEndsBeforeTheLease(t *testing.T) {
	t.Parallel()
	faults := map[string]struct {
		fault func(context.Context) error
		cause error
	}{
		"the server is away": {func(context.Context) error { return status.Error(codes.Unavailable, "gone") }, ErrUnreachable},
		"the answers do not come": {func(ctx context.Context) error {
			<-ctx.Done()
			return status.FromContextError(ctx.Err()).Err()
		}, ErrNotRenewed},
		"the token is not taken": {func(context.Context) error {
			return status.Error(codes.Unauthenticated, "who?")
		}, ErrNotRenewed},
	}
	tests := []struct {
		ttl, out, back time.Duration
		rate           float64
		margin         time.Duration // as an option
		least, most    time.Duration // what is left of the lease
	}{
		{ttl: time.Second, rate: 1, least: 100 * time.Millisecond, most: 100 * time.Millisecond},
		{ttl: 20 * time.Second, rate: 1, least: 2 * time.Second, most: 2 * time.Second},
		{ttl: time.Hour, rate: 1, least: 5 * time.Second, most: 5 * time.Second},
		{ttl: time.Hour, rate: 1.001, least: 1300 * time.Millisecond, most: 1500 * time.Millisecond},
		{ttl: time.Minute, out: 300 * time.Millisecond, rate: 1, least: 5300 * time.Millisecond, most: 5300 * time.Millisecond},
		{ttl: time.Minute, back: 300 * time.Millisecond, rate: 1, least: 5 * time.Second, most: 5 * time.Second},
		{ttl: time.Minute, rate: 1, margin: 20 * time.Second, least: 20060 * time.Millisecond, most: 20060 * time.Millisecond},
		{ttl: time.Hour, rate: 1.001, margin: 20 * time.Second, least: 20 * time.Second, most: 20100 * time.Millisecond},
	}
	for name, fault := range faults {
		for _, tt := range tests {
			t.Run(fmt.Sprintf("%s, %s", name, tt.ttl), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					l := newLessor(tt.ttl)
					l.out, l.back, l.rate = tt.out, tt.back, tt.rate
					k := l.keep(t, WithLeaseMargin(tt.margin))
					_ = elapse(t.Context(), tt.ttl)
					l.set(func() { l.fault = fault.fault })
					<-k.Context().Done()
					if left := l.left(); left < tt.least || left > tt.most {
						t.Errorf("left of the lease: got %s, want from %s to %s", left, tt.least, tt.most)
					}
					wants(t, k, ErrNotRenewed, fault.cause)
				})
			})
		}
	}
}

// Random faults and delays, many times over: while the context is not cancelled, the lease holds.
func TestTheContextNeverOutlivesTheLease(t *testing.T) {
	t.Parallel()
	for seed := range uint64(150) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { outliveNever(t, rand.New(rand.NewPCG(seed, 1))) })
		})
	}
}

func outliveNever(t *testing.T, random *rand.Rand) {
	upTo := func(d time.Duration) time.Duration { return time.Duration(random.Int64N(int64(d) + 1)) }
	l := newLessor(time.Second + upTo(20*time.Second))
	l.out, l.back = upTo(l.ttl/4), upTo(l.ttl/4)
	l.rate = 0.999 + 0.002*random.Float64()
	k := l.keep(t, WithRenewInterval(time.Second+upTo(time.Minute)))
	over := make(chan time.Duration, 1)
	context.AfterFunc(k.Context(), func() { over <- l.left() })
	var reports sync.WaitGroup
	defer reports.Wait()
	defer k.Close()
	for range 40 {
		away, slow := random.IntN(3) == 0, upTo(l.ttl/2)
		l.set(func() {
			l.fault = func(ctx context.Context) error {
				if away {
					return status.Error(codes.Unavailable, "gone")
				}
				return travel(ctx, slow)
			}
		})
		if random.IntN(2) == 0 {
			reports.Go(func() { _, _ = k.Report(t.Context(), &setpointv1.ReportProgressRequest{}) })
		}
		_ = elapse(t.Context(), upTo(l.ttl/2))
		if k.Err() == nil && l.left() <= 0 {
			t.Fatal("the lease is over, and the context is not cancelled")
		}
	}
	if k.Context().Err() != nil {
		if left := <-over; left <= 0 {
			t.Errorf("the context was cancelled %s after the end of the lease: %v", -left, k.Err())
		}
	}
}

func TestKeeperOutlastsARestart(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLessor(time.Minute)
		k := l.keep(t)
		l.set(func() { l.fault = func(context.Context) error { return status.Error(codes.Unavailable, "gone") } })
		_ = elapse(t.Context(), 50*time.Second)
		l.set(func() { l.fault = nil })
		_ = elapse(t.Context(), 10*time.Second)
		if err := k.Err(); err != nil || l.left() < 50*time.Second {
			t.Errorf("after the restart: %v, and %s left", err, l.left())
		}
		if n := len(l.renewals); n > 100 {
			t.Errorf("attempts in a minute without a server: %d", n)
		}
	})
}

func TestPreemption(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLessor(time.Minute)
		k := l.keep(t)
		_ = elapse(t.Context(), 10*time.Second)
		if p, ok := k.Preemption(); ok {
			t.Fatalf("preempted before anybody came: %+v", p)
		}
		l.preempt(5 * time.Second)
		p := <-k.Preemptions()
		if p.By != "opt_b" || p.OptimizerID != "urgent" || !p.Deadline.Equal(l.expires) || k.Err() != nil {
			t.Errorf("notice: got %+v, %v", p, k.Err())
		}
		left := time.Until(p.Until)
		if left < 2*time.Second || left > 4900*time.Millisecond {
			t.Errorf("time left to finish: got %s", left)
		}
		<-k.Context().Done()
		if left := l.left(); left < 300*time.Millisecond || left > 500*time.Millisecond {
			t.Errorf("left of the lease: got %s, want from 300 to 500 ms", left)
		}
		if late := time.Since(p.Until); late != 0 {
			t.Errorf("cancelled %s after what was told", late)
		}
		wants(t, k, ErrPreempted)
		if _, ok := k.Preemption(); !ok {
			t.Error("the notice is gone")
		}
	})
}

func TestPreemptionIsTakenBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLessor(time.Minute)
		k := l.keep(t)
		l.preempt(20 * time.Second)
		_ = elapse(t.Context(), 5*time.Second)
		if _, ok := k.Preemption(); !ok {
			t.Fatal("no notice")
		}
		l.set(func() { l.preemption = nil })
		_ = elapse(t.Context(), time.Minute)
		if _, ok := k.Preemption(); ok || k.Err() != nil {
			t.Errorf("kept after all: notice %t, %v", ok, k.Err())
		}
		select {
		case p := <-k.Preemptions():
			t.Errorf("an old notice: %+v", p)
		default:
		}
		l.preempt(20 * time.Second)
		<-k.Preemptions()
	})
}

func TestGraceOverBeforeItIsHeardOf(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLessor(time.Minute)
		k := l.keep(t)
		_ = elapse(t.Context(), time.Millisecond)
		l.preempt(time.Millisecond)
		began := time.Now()
		<-k.Context().Done()
		wants(t, k, ErrPreempted, ErrOptimizationEnded)
		if after := time.Since(began); after > 2*time.Second {
			t.Errorf("heard of it after %s", after)
		}
	})
}

func TestServerEndsTheLease(t *testing.T) {
	t.Parallel()
	for reason, want := range map[string]error{
		"OPTIMIZATION_ENDED": ErrOptimizationEnded, "LEASE_LOST": ErrLeaseLost, "SESSION_NOT_FOUND": ErrSessionNotFound,
		"OPTIMIZATION_NOT_FOUND": ErrOptimizationNotFound, "ACCESS_DENIED": ErrAccessDenied,
	} {
		t.Run(reason, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				l := newLessor(time.Minute)
				k := l.keep(t)
				l.set(func() {
					l.ended = refusal(t, codes.FailedPrecondition, reason, "x", map[string]string{"state": "CANCELLED"})
				})
				began := time.Now()
				<-k.Context().Done()
				if after := time.Since(began); after > 2*time.Second {
					t.Errorf("heard of it after %s", after)
				}
				wants(t, k, want)
				if got := k.Lease(); got.GetOptimizationId() != leaseID || got.GetFencingToken() != leaseToken {
					t.Errorf("lease: got %v; without one, writes to a variable that is free would come through", got)
				}
			})
		})
	}
}

func TestNoProgress(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLessor(time.Minute)
		l.progress = 90 * time.Second
		k := l.keep(t)
		for range 5 {
			_ = elapse(t.Context(), time.Minute)
			if _, err := k.Report(t.Context(), nil); err != nil {
				t.Fatalf("Report: %v", err)
			}
		}
		began := time.Now()
		<-k.Context().Done()
		wants(t, k, ErrNoProgress)
		if after := time.Since(began); after < 84*time.Second || after > 86*time.Second {
			t.Errorf("cancelled %s after the last report, with %s left", after, l.left())
		}
	})
}

func TestReport(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLessor(10 * time.Second)
		k := l.keep(t)
		l.set(func() { l.fault = func(context.Context) error { return status.Error(codes.Unavailable, "gone") } })
		request := &setpointv1.ReportProgressRequest{SessionId: "other", Metrics: map[string]float64{"loss": 0.1}, Apply: true}
		before := proto.Clone(request)
		for range 10 {
			response, err := k.Report(t.Context(), request)
			if err != nil || response.GetTrial().GetNumber() != 3 {
				t.Fatalf("Report: %v, %v", response, err)
			}
			_ = elapse(t.Context(), 5*time.Second)
			if err := k.Err(); err != nil {
				t.Fatalf("reports extend the lease, too, but: %v", err)
			}
		}
		got := l.reports[0]
		if got.GetSessionId() != "s" || got.GetOptimizationId() != leaseID || got.GetFencingToken() != leaseToken ||
			got.GetMetrics()["loss"] != 0.1 || !got.GetApply() {
			t.Errorf("sent: got %v", got)
		}
		if !proto.Equal(before, request) {
			t.Errorf("the caller's request was changed: %v", request)
		}
		<-k.Context().Done()
		if left := l.left(); left < time.Second || left > 1100*time.Millisecond {
			t.Errorf("left of the lease: got %s, want 1 s", left)
		}
		_ = elapse(t.Context(), time.Minute)
		if response, err := k.Report(t.Context(), request); err != nil || !response.GetLate() {
			t.Errorf("after the end: %v, %v; want late, and no error", response, err)
		}
		wants(t, k, ErrNotRenewed, ErrUnreachable)
	})
}

// Under a request_id that was sent before, a report is answered as it was then.
func TestRepeatedReportDoesNotExtend(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLessor(10 * time.Second)
		k := l.keep(t)
		l.set(func() { l.fault = func(context.Context) error { return status.Error(codes.Unavailable, "gone") } })
		_ = elapse(t.Context(), 2*time.Second)
		kept, err := k.Report(t.Context(), nil)
		if err != nil {
			t.Fatalf("Report: %v", err)
		}
		l.set(func() { l.reportKept = kept })
		for range 4 {
			_ = elapse(t.Context(), 2*time.Second)
			if _, err := k.Report(t.Context(), nil); err != nil {
				t.Fatalf("Report: %v", err)
			}
		}
		<-k.Context().Done()
		if left := l.left(); left < time.Second {
			t.Errorf("left of the lease: got %s, want 1 s or more", left)
		}
	})
}

func TestOvertakenAnswerTakesNothingBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLessor(time.Minute)
		k := l.keep(t, WithRenewInterval(time.Hour))
		_ = elapse(t.Context(), time.Second)
		slow := answer{sent: time.Now(), expiresAt: l.expires, remaining: l.left()}
		_ = elapse(t.Context(), time.Second)
		l.preempt(10 * time.Second)
		if _, err := k.Report(t.Context(), nil); err != nil {
			t.Fatalf("Report: %v", err)
		}
		k.observe(slow)
		if _, ok := k.Preemption(); !ok {
			t.Error("the notice is gone")
		}
	})
}

// What went wrong before the last renewal is not why there was no other.
func TestCauseForgetsWhatWasMended(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLessor(time.Minute)
		k := l.keep(t)
		l.set(func() { l.fault = func(context.Context) error { return status.Error(codes.Unavailable, "gone") } })
		_ = elapse(t.Context(), 10*time.Second)
		l.set(func() { l.fault = nil })
		_ = elapse(t.Context(), 10*time.Second)
		k.mu.Lock()
		k.cancelAt = time.Now()
		k.mu.Unlock()
		if err := k.Err(); !errors.Is(err, ErrNotRenewed) || errors.Is(err, ErrUnreachable) {
			t.Errorf("cause: got %v, want that of a process that was not running", err)
		}
	})
}

func TestReportTellsOfAPreemption(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLessor(time.Minute)
		k := l.keep(t, WithRenewInterval(time.Hour))
		l.preempt(3 * time.Second)
		if _, err := k.Report(t.Context(), nil); err != nil {
			t.Fatalf("Report: %v", err)
		}
		<-k.Preemptions()
		_ = elapse(t.Context(), 2800*time.Millisecond)
		wants(t, k, ErrPreempted)
	})
}

func TestLateReport(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLessor(time.Minute)
		k := l.keep(t)
		l.set(func() { l.expires = l.now() })
		response, err := k.Report(t.Context(), nil)
		if err != nil || !response.GetLate() {
			t.Fatalf("Report: %v, %v", response, err)
		}
		wants(t, k, ErrLeaseLost, ErrOptimizationEnded)
		if errors.Is(k.Err(), ErrPreempted) {
			t.Errorf("cause: got %v of one that was not preempted", k.Err())
		}
	})
}

// Where there was no grace, a report may be the first to meet the end.
func TestLateReportTellsOfAPreemption(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		fault func(context.Context) error
		want  []error
		most  time.Duration // that it takes
	}{
		{"which the server says", nil, []error{ErrLeaseLost, ErrPreempted, ErrOptimizationEnded}, 0},
		{"unless it is away", func(context.Context) error { return status.Error(codes.Unavailable, "gone") }, []error{ErrLeaseLost}, 0},
		{"or silent", func(ctx context.Context) error {
			<-ctx.Done()
			return status.FromContextError(ctx.Err()).Err()
		}, []error{ErrLeaseLost}, time.Second},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				l := newLessor(time.Minute)
				k := l.keep(t, WithRenewInterval(time.Hour))
				l.preempt(0)
				l.set(func() { l.fault = tt.fault })
				began := time.Now()
				response, err := k.Report(t.Context(), nil)
				if err != nil || !response.GetLate() {
					t.Fatalf("Report: %v, %v", response, err)
				}
				if took := time.Since(began); took > tt.most {
					t.Errorf("told after %s", took)
				}
				wants(t, k, tt.want...)
			})
		})
	}
}

// The answer to a repeat tells nothing of the lease.
func TestRepeatedReportAsksWhatIsSo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLessor(time.Minute)
		k := l.keep(t, WithRenewInterval(time.Hour))
		l.set(func() {
			l.reportKept = &setpointv1.ReportProgressResponse{Trial: &setpointv1.Trial{Number: 3}, ExpiresAt: timestamppb.New(l.now())}
		})
		report := func() {
			if response, err := k.Report(t.Context(), nil); err != nil || response.GetTrial().GetNumber() != 3 {
				t.Fatalf("Report: %v, %v", response, err)
			}
			synctest.Wait()
		}
		report()
		if err := k.Err(); err != nil || len(l.renewals) != 2 {
			t.Errorf("after %d renewals: %v; want 2, and the lease kept", len(l.renewals), err)
		}
		l.preempt(0)
		report()
		wants(t, k, ErrPreempted, ErrOptimizationEnded)
	})
}

// A start that is repeated is answered without the time that is left.
func TestKeepLeaseOfARepeatedStart(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLessor(time.Minute)
		k, err := l.client(t).KeepLease(t.Context(),
			&setpointv1.Optimization{SessionId: "s", OptimizationId: leaseID, FencingToken: leaseToken})
		if err != nil {
			t.Fatalf("KeepLease: %v", err)
		}
		defer k.Close()
		if left := time.Until(k.cancelAt); left != 55*time.Second {
			t.Errorf("time left: got %s", left)
		}
		// An answer that leaves it out is none: it is not taken for an end.
		l.set(func() { l.mute = true })
		_ = elapse(t.Context(), 50*time.Second)
		if err := k.Err(); err != nil {
			t.Fatalf("the lease is not kept: %v", err)
		}
		l.set(func() { l.mute = false })
		_ = elapse(t.Context(), time.Minute)
		if err := k.Err(); err != nil {
			t.Errorf("the lease is not kept: %v", err)
		}
	})
}

// While a machine is suspended its monotonic clock, which all else here goes by, stands still, and the wall clock goes on.
func TestSuspendedMachine(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		sleeps  time.Duration
		looks   bool // calls Err, and does not leave it to the next renewal
		away    bool // the server, from then on
		keeps   bool
		renewed int
	}{
		{"for longer than the lease holds", time.Hour, false, false, false, 1},
		{"and the work looks", time.Hour, true, false, false, 1},
		{"for as long as is left", 55 * time.Second, true, false, false, 1},
		{"for less than is left", 50 * time.Second, true, false, true, 2},
		{"for less than is left, and without a network since", 50 * time.Second, true, true, false, 2},
		{"the wall clock is set back", -time.Hour, true, false, true, 2},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				l := newLessor(time.Minute)
				k := l.keep(t)
				k.mu.Lock()
				k.wall = func() time.Time { return time.Now().Add(tt.sleeps) }
				k.mu.Unlock()
				if tt.away {
					l.set(func() { l.fault = func(context.Context) error { return status.Error(codes.Unavailable, "gone") } })
				}
				if tt.looks {
					_ = k.Err()
				}
				_ = elapse(t.Context(), 10*time.Second)
				if kept := k.Context().Err() == nil; kept != tt.keeps {
					t.Fatalf("kept: %t, %v", kept, k.Err())
				}
				if len(l.renewals) < tt.renewed || !tt.keeps && !tt.away && len(l.renewals) > 1 {
					t.Errorf("%d renewals; a lease that was slept through is not renewed, any other is", len(l.renewals))
				}
				if !tt.keeps {
					wants(t, k, ErrNotRenewed)
				}
			})
		})
	}
}

// A report may be refused for a value of a variable that never was under the lease.
func TestRefusedReportAsksWhatIsSo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLessor(time.Minute)
		k := l.keep(t, WithRenewInterval(time.Hour))
		l.set(func() { l.reportErr = refusal(t, codes.FailedPrecondition, "LEASE_LOST", "not yours", nil) })
		if _, err := k.Report(t.Context(), nil); !errors.Is(err, ErrLeaseLost) {
			t.Errorf("Report: got %v, want LEASE_LOST", err)
		}
		synctest.Wait()
		if err := k.Err(); err != nil || len(l.renewals) != 2 {
			t.Errorf("after %d renewals: %v; want 2, and the lease kept", len(l.renewals), err)
		}
		l.set(func() { l.ended = refusal(t, codes.FailedPrecondition, "OPTIMIZATION_ENDED", "x", nil) })
		_, _ = k.Report(t.Context(), nil)
		synctest.Wait()
		wants(t, k, ErrOptimizationEnded)
	})
}

func TestStop(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLessor(10 * time.Second)
		l.stopBack = 500 * time.Millisecond // so that renewals meet the end before Stop returns
		k := l.keep(t, WithRenewInterval(100*time.Millisecond))
		l.set(func() { l.stopErr = refusal(t, codes.InvalidArgument, "CONSTRAINT_VIOLATION", "too much", nil) })
		request := &setpointv1.StopOptimizationRequest{ApplyBest: true}
		if _, err := k.Stop(t.Context(), request); !errors.Is(err, ErrConstraintViolation) {
			t.Fatalf("Stop: got %v, want CONSTRAINT_VIOLATION", err)
		}
		_ = elapse(t.Context(), 10*time.Second)
		if err := k.Err(); err != nil {
			t.Fatalf("the optimization goes on, but its lease is not kept: %v", err)
		}
		l.set(func() { l.stopErr = nil })
		if _, err := k.Stop(t.Context(), nil); err != nil {
			t.Fatalf("Stop: %v", err)
		}
		wants(t, k, ErrKeeperClosed)
		got := l.stops[0]
		if got.GetSessionId() != "s" || got.GetOptimizationId() != leaseID || got.GetFencingToken() != leaseToken ||
			!got.GetApplyBest() || request.FencingToken != nil {
			t.Errorf("sent: got %v of %v", got, request)
		}
		n := len(l.renewals)
		if _, err := k.Stop(t.Context(), nil); !errors.Is(err, ErrOptimizationEnded) {
			t.Errorf("Stop again: got %v, want OPTIMIZATION_ENDED", err)
		}
		_ = elapse(t.Context(), time.Minute)
		if len(l.renewals) != n {
			t.Error("renewed after the stop")
		}
	})
}

func TestCloseAndTheContextAbove(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLessor(time.Minute)
		above := errors.New("the user went home")
		ctx, cancel := context.WithCancelCause(t.Context())
		k, err := l.client(t).KeepLease(ctx, l.optimization())
		if err != nil {
			t.Fatal(err)
		}
		cancel(above)
		synctest.Wait()
		wants(t, k, above, context.Cause(ctx))
		k.Close()
		k.Close()
		wants(t, k, above)

		k = l.keep(t)
		k.Close()
		wants(t, k, ErrKeeperClosed)
		n := len(l.renewals)
		_ = elapse(t.Context(), time.Hour)
		if len(l.renewals) != n {
			t.Error("renewed after Close")
		}
	})
}

// What a process does that was not running while its time passed, and whose timer comes late: it looks at the clock
// before it renews.
func TestNoRenewalPastTheTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLessor(10 * time.Second)
		k := l.keep(t)
		k.mu.Lock()
		k.timer.Stop()
		k.next = time.Now().Add(time.Hour)
		k.mu.Unlock()
		_ = elapse(t.Context(), 20*time.Second)
		if k.Context().Err() != nil {
			t.Fatal("cancelled without its timer")
		}
		k.hurry()
		synctest.Wait()
		if len(l.renewals) != 1 {
			t.Errorf("renewals: got %d, want the first alone", len(l.renewals))
		}
		wants(t, k, ErrNotRenewed)
	})
}

func TestErrLooksAtTheClock(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLessor(10 * time.Second)
		k := l.keep(t)
		k.mu.Lock()
		k.cancelAt = time.Now()
		k.mu.Unlock()
		if err := k.Err(); !errors.Is(err, ErrNotRenewed) || k.Context().Err() == nil {
			t.Errorf("got %v, context %v", err, k.Context().Err())
		}
	})
}

func TestKeepLeaseRefuses(t *testing.T) {
	t.Parallel()
	away := func(context.Context) error { return status.Error(codes.Unavailable, "gone") }
	tests := []struct {
		name     string
		change   func(*lessor, *setpointv1.Optimization)
		opts     []KeepOption
		want     error // nil for any
		attempts int
	}{
		{"one that waits", func(_ *lessor, o *setpointv1.Optimization) { o.FencingToken = 0 }, nil, nil, 0},
		{"none of the ttl left", func(*lessor, *setpointv1.Optimization) {}, []KeepOption{WithLeaseMargin(time.Minute)}, nil, 1},
		{"nor with what the clocks need", func(*lessor, *setpointv1.Optimization) {},
			[]KeepOption{WithLeaseMargin(time.Minute - time.Millisecond)}, nil, 1},
		{"an answer that does not say for how long", func(l *lessor, _ *setpointv1.Optimization) { l.mute = true }, nil, nil, 1},
		{"one that is over", func(l *lessor, _ *setpointv1.Optimization) { l.expires = l.now() }, nil, ErrOptimizationEnded, 1},
		{"no server", func(l *lessor, _ *setpointv1.Optimization) { l.fault = away }, nil, ErrUnreachable, 5},
		{"one that is all but preempted", func(l *lessor, _ *setpointv1.Optimization) { l.preempt(50 * time.Millisecond) }, nil,
			ErrPreempted, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				l := newLessor(time.Minute)
				optimization := l.optimization()
				tt.change(l, optimization)
				k, err := l.client(t).KeepLease(t.Context(), optimization, tt.opts...)
				if k != nil || err == nil || tt.want != nil && !errors.Is(err, tt.want) {
					t.Errorf("got %v, %v; want %v", k, err, tt.want)
				}
				if tt.want == nil && errors.Is(err, ErrNotRenewed) {
					t.Errorf("got %v, which is not why", err)
				}
				if len(l.renewals) != tt.attempts {
					t.Errorf("attempts: got %d, want %d", len(l.renewals), tt.attempts)
				}
			})
		})
	}
}

// The first renewal is repeated, also where the first attempt was swallowed.
func TestKeepLeaseIsPatient(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLessor(time.Minute)
		first := true
		l.fault = func(ctx context.Context) error {
			if !first {
				return nil
			}
			first = false
			<-ctx.Done()
			return status.FromContextError(ctx.Err()).Err()
		}
		k := l.keep(t)
		if left := time.Until(k.cancelAt); len(l.renewals) != 2 || left < 54*time.Second {
			t.Errorf("after %d attempts the context has %s; it counts from the one that was answered", len(l.renewals), left)
		}
	})
}

func TestReckoning(t *testing.T) {
	t.Parallel()
	here, there := time.Now(), time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC)
	// An answer to a request sent at second `sent`, for which the database read its clock at second `read`.
	said := func(sent, read, left float64) answer {
		seconds := func(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
		return answer{sent: here.Add(seconds(sent)), expiresAt: there.Add(seconds(read + left)), remaining: seconds(left)}
	}
	report := func(a answer) answer {
		a.repeatable = true
		return a
	}
	preempting := func(a answer, deadline float64) answer {
		a.preemption = &setpointv1.Preemption{By: "b",
			Deadline: timestamppb.New(there.Add(time.Duration(deadline * float64(time.Second))))}
		return a
	}
	tests := []struct {
		name    string
		answers []answer
		want    float64 // the second at which the context is cancelled, with a margin of 1 s
		why     error
	}{
		{"counted from before the sending", []answer{said(0, 3, 60)}, 59, ErrNotRenewed},
		{"a renewal moves it", []answer{said(0, 0, 60), said(10, 10, 60)}, 69, ErrNotRenewed},
		{"so does a report", []answer{said(0, 0, 60), report(said(10, 10, 60))}, 69, ErrNotRenewed},
		{"a report with the answer of long ago does not by more than it did then",
			[]answer{said(0, 0, 60), report(said(50, 5, 60))}, 64, ErrNotRenewed},
		{"nor does one that is older than the renewal", []answer{said(0, 10, 60), report(said(50, 5, 60))}, 59, ErrNotRenewed},
		{"a slow report takes nothing away",
			[]answer{said(0, 0, 60), said(20, 20, 60), report(said(1, 20.5, 60))}, 79, ErrNotRenewed},
		{"a slow renewal takes nothing away",
			[]answer{said(0, 0, 60), report(said(20, 20, 60)), said(1, 20.5, 60)}, 79, ErrNotRenewed},
		{"an answer that was overtaken is not news",
			[]answer{said(0, 0, 60), preempting(report(said(5, 6, 59)), 10), said(4, 5, 60)}, 8, ErrPreempted},
		{"a preemption shortens it", []answer{said(0, 0, 60), preempting(said(10, 10, 5), 15)}, 14, ErrPreempted},
		{"until its deadline, should that come before the end",
			[]answer{said(0, 0, 60), preempting(said(10, 10, 50), 15)}, 14, ErrPreempted},
		{"a preemption that is taken back",
			[]answer{said(0, 0, 60), preempting(said(10, 10, 5), 15), said(12, 12, 60)}, 71, ErrNotRenewed},
		{"the database's clock jumps ahead", []answer{said(0, 0, 60), said(10, 40, 60)}, 69, ErrNotRenewed},
		{"and in a report", []answer{said(0, 0, 60), report(said(10, 40, 60))}, 69, ErrNotRenewed},
		{"nothing left", []answer{said(0, 0, 0)}, -1, ErrNotRenewed},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var r reckoning
			for _, a := range tt.answers {
				if r.isNews(a) {
					r.take(a, time.Second)
					r.received = a.sent.Add(2 * time.Second)
				}
			}
			// What the clocks need on top of the margin is less than a tenth of a second.
			if got := r.cancelAt.Sub(here).Seconds(); math.Ceil(10*got)/10 != tt.want || !errors.Is(r.why, tt.why) {
				t.Errorf("cancelled at %g (%v), want %g (%v)", got, r.why, tt.want, tt.why)
			}
		})
	}
	t.Run("the database's clock is set back", func(t *testing.T) {
		t.Parallel()
		var r reckoning
		r.take(said(0, 1000, 60), time.Second)
		r.received = here.Add(time.Second)
		if !r.isNews(said(2, 10, 60)) {
			t.Error("a renewal that was asked for later is not news")
		}
		if r.isNews(report(said(2, 10, 60))) {
			t.Error("an answer that may be old is news")
		}
		r.take(said(2, 10, 60), time.Second)
		if got := r.cancelAt.Sub(here).Seconds(); got != 60.94 {
			t.Errorf("cancelled at %g, want 60.94", got)
		}
	})
	// With the default margin, a tenth of the time left.
	silent := func(a answer) answer {
		a.silent = true
		return a
	}
	for _, tt := range []struct {
		name    string
		answers []answer
		want    float64
		why     error
	}{
		{"a trial reported again", []answer{said(0, 0, 60), report(said(50, 50, 10))}, 55, ErrNotRenewed},
		{"and again", []answer{said(0, 0, 60), report(said(50, 50, 10)), report(said(54, 54, 6))}, 55, ErrNotRenewed},
		{"slowly", []answer{said(0, 0, 60), said(20, 20, 60), report(said(1, 20.5, 59.5))}, 75, ErrNotRenewed},
		{"while no progress is made", []answer{silent(said(0, 0, 40)), report(said(30, 30, 10))}, 36, ErrNoProgress},
		{"of which the next renewal tells the same",
			[]answer{silent(said(0, 0, 40)), report(said(30, 30, 10)), silent(said(32, 32, 8))}, 36, ErrNoProgress},
		{"while it is being preempted",
			[]answer{preempting(said(0, 0, 60), 40), preempting(report(said(30, 30, 30)), 40)}, 36, ErrPreempted},
		{"after it was to be preempted", []answer{preempting(said(0, 0, 40), 40), report(said(30, 30, 10))}, 36, ErrNotRenewed},
		{"to hear of an earlier end", []answer{said(0, 0, 60), report(said(10, 10, 20))}, 28, ErrNotRenewed},
		{"a renewal moves it", []answer{silent(said(0, 0, 40)), report(said(30, 30, 10)), said(32, 32, 60)}, 87, ErrNotRenewed},
	} {
		t.Run("the margin of "+tt.name, func(t *testing.T) {
			t.Parallel()
			var r reckoning
			for _, a := range tt.answers {
				if !r.isNews(a) {
					t.Fatalf("%v is not news", a)
				}
				r.take(a, 0)
				r.received = a.sent
			}
			if got := r.cancelAt.Sub(here).Seconds(); got != tt.want || !errors.Is(r.why, tt.why) {
				t.Errorf("cancelled at %g (%v), want %g (%v)", got, r.why, tt.want, tt.why)
			}
		})
	}
}

func TestMargin(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ left, wanted, want time.Duration }{
		{time.Hour, 0, 5 * time.Second},
		{time.Minute, 0, 5 * time.Second},
		{20 * time.Second, 0, 2 * time.Second},
		{time.Second, 0, 100 * time.Millisecond},
		{0, 0, 100 * time.Millisecond},
		{-time.Hour, 0, 100 * time.Millisecond},
		{time.Second, time.Minute, time.Minute + time.Millisecond},
		{time.Hour, 10 * time.Second, 13600 * time.Millisecond},
		{-time.Hour, time.Second, time.Second},
	} {
		if got := marginOf(tt.left, tt.wanted); got != tt.want {
			t.Errorf("margin of %s, asked for %s: got %s, want %s", tt.left, tt.wanted, got, tt.want)
		}
	}
}
