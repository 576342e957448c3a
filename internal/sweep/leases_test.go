package sweep_test

import (
	"fmt"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/lease"
	"github.com/setpointdb/setpoint/internal/sweep"
)

func (b *bundle) start(session, variable string, change ...func(*setpointv1.StartOptimizationRequest)) *setpointv1.Optimization {
	b.t.Helper()
	req := &setpointv1.StartOptimizationRequest{
		SessionId: session, Variables: []string{variable}, OptimizerId: "tuner", Ttl: durationpb.New(3600e9),
	}
	for _, c := range change {
		c(req)
	}
	o, err := b.StartOptimization(b.ctx, req)
	b.must(err)
	return o
}

func (b *bundle) get(o *setpointv1.Optimization) *setpointv1.Optimization {
	b.t.Helper()
	got, err := b.GetOptimization(b.ctx, &setpointv1.GetOptimizationRequest{
		SessionId: o.GetSessionId(), OptimizationId: o.GetOptimizationId(),
	})
	b.must(err)
	return got
}

// lapse has an optimization not renewed in time.
func (b *bundle) lapse(o *setpointv1.Optimization) {
	b.t.Helper()
	b.exec(`update setpoint.optimizations set renewed_until = clock_timestamp() - interval '3 seconds' where optimization_id = $1`,
		o.GetOptimizationId())
	b.exec(`update setpoint.variables set lease_expires_at = clock_timestamp() - interval '3 seconds'
		where optimization_id = $1 and lease_expires_at is not null`, o.GetOptimizationId())
}

func same(t *testing.T, what string, want, got any) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

// told are the changes that the sweeper told of, as texts.
func (n *noted) told() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []string
	for _, c := range n.changes {
		out = append(out, fmt.Sprintf("%s %s: %s to %s, %s", c.Session, c.Optimization, c.From, c.To, c.Reason))
	}
	return out
}

// What the clock has ended is written down once, by whichever of many sweepers, and tells when it was, not when it was seen.
func TestLeasesEndOnce(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.register("s", "x", 50)
	o := b.start("s", "x")
	b.lapse(o)
	before := b.get(o)
	if before.GetState() != setpointv1.OptimizationState_OPTIMIZATION_STATE_EXPIRED {
		t.Fatalf("before any sweeper: %v", before)
	}
	var sweepers sync.WaitGroup
	for range 4 {
		other := sweep.New(open(t, b.url), b.noted, retention)
		sweepers.Go(func() {
			for range 3 {
				if err := other.Leases(b.ctx); err != nil {
					t.Error(err)
				}
			}
		})
	}
	sweepers.Wait()
	b.must(b.sweeper.Leases(b.ctx)) // Where each of them found another one at it.
	same(t, "changes", []string{
		fmt.Sprintf("s %s: active to expired, the lease was not renewed in time", o.GetOptimizationId()),
	}, b.noted.told())
	same(t, "before and after", before.String(), b.get(o).String())
	same(t, "rows of the end", int64(1), b.number(`select count(*) from setpoint.history
		where change = 'lease_ended' and changed_by = $1`, lease.ServerPrincipal))
	same(t, "held", int64(0), b.number(`select count(*) from setpoint.variables where lease_expires_at is not null`))
}

// Who was to lose a lease to somebody whose stay has ended keeps it, with the time that it had.
func TestSweptPreemption(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.register("s", "x", 50)
	o := b.start("s", "x")
	p := b.start("s", "x", func(r *setpointv1.StartOptimizationRequest) {
		r.Conflict, r.Priority = setpointv1.ConflictStrategy_CONFLICT_STRATEGY_PREEMPT, 1
		r.Grace = durationpb.New(60e9)
	})
	if told := b.get(o); told.GetPreemption().GetBy() != p.GetOptimizationId() || told.GetExpiresAt().AsTime().Equal(o.GetExpiresAt().AsTime()) {
		t.Fatalf("told: %v", told)
	}
	b.lapse(p)
	b.must(b.sweeper.Leases(b.ctx))
	kept := b.get(o)
	if kept.GetState() != setpointv1.OptimizationState_OPTIMIZATION_STATE_ACTIVE || kept.GetPreemption() != nil ||
		!kept.GetExpiresAt().AsTime().Equal(o.GetExpiresAt().AsTime()) {
		t.Errorf("kept: %v", kept)
	}
	same(t, "changes", []string{
		fmt.Sprintf("s %s: waiting to expired, its stay in the queue was not renewed in time", p.GetOptimizationId()),
		fmt.Sprintf("s %s: preempting to active, nobody is to preempt it any more", o.GetOptimizationId()),
	}, b.noted.told())
	same(t, "rows", int64(1), b.number(`select count(*) from setpoint.history where change = 'lease_kept'`))
	same(t, "agreement", int64(1), b.number(`select count(*) from setpoint.variables v join setpoint.optimizations o
		using (session_id, optimization_id) where v.lease_expires_at = o.expires_at`))
	same(t, "queue", int64(0), b.number(`select count(*) from setpoint.optimization_waiters`))
}

// A session's end is the end of its leases and of its queue. Their records stay for SQL until the retention is over, and the
// next session of the id knows nothing of them, swept or not.
func TestOptimizationsOfEndedSessions(t *testing.T) {
	t.Parallel()
	for _, swept := range []bool{false, true} {
		t.Run(fmt.Sprintf("swept %t", swept), func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.register("s", "x", 50)
			o := b.start("s", "x")
			w := b.start("s", "x", func(r *setpointv1.StartOptimizationRequest) {
				r.Conflict = setpointv1.ConflictStrategy_CONFLICT_STRATEGY_WAIT
			})
			_, err := b.ReportProgress(b.ctx, &setpointv1.ReportProgressRequest{
				SessionId: "s", OptimizationId: o.GetOptimizationId(), FencingToken: o.GetFencingToken(),
				Values:  map[string]*setpointv1.Value{"x": client.Integer(3)},
				Metrics: map[string]float64{"loss": 1},
			})
			b.must(err)
			_, err = b.DeleteSession(b.ctx, &setpointv1.DeleteSessionRequest{SessionId: "s"})
			b.must(err)
			if swept {
				b.must(b.sweeper.Sessions(b.ctx))
				same(t, "changes", []string{
					fmt.Sprintf("s %s: active to expired, the session ended", o.GetOptimizationId()),
					fmt.Sprintf("s %s: waiting to expired, the session ended", w.GetOptimizationId()),
				}, b.noted.told())
			}
			b.session("s")
			same(t, "open", int64(0), b.number(`select count(*) from setpoint.optimizations where ended_at is null`))
			same(t, "queue", int64(0), b.number(`select count(*) from setpoint.optimization_waiters`))
			same(t, "records", int64(2), b.number(`select count(*) from setpoint_analytics.optimizations where state = 'expired'`))
			list, err := b.ListOptimizations(b.ctx, &setpointv1.ListOptimizationsRequest{SessionId: "s"})
			b.must(err)
			same(t, "list of the next session", 0, len(list.GetOptimizations()))
			_, err = b.GetOptimization(b.ctx, &setpointv1.GetOptimizationRequest{SessionId: "s", OptimizationId: o.GetOptimizationId()})
			if err == nil {
				t.Error("the next session shows an optimization of the one before")
			}
			b.register("s", "x", 50)
			current := b.start("s", "x")
			b.exec(`update setpoint.optimizations set ended_at = ended_at - $1 * interval '1 microsecond' where ended_at is not null`,
				retention.Microseconds()-60e6)
			b.must(b.sweeper.History(b.ctx))
			same(t, "records before the retention", int64(3), b.number(`select count(*) from setpoint.optimizations`))
			b.exec(`update setpoint.optimizations set ended_at = ended_at - interval '2 minutes' where ended_at is not null`)
			b.must(b.sweeper.History(b.ctx))
			same(t, "records after", int64(1), b.number(`select count(*) from setpoint.optimizations`))
			same(t, "the current one", int64(1), b.number(`select count(*) from setpoint.optimizations where optimization_id = $1`,
				current.GetOptimizationId()))
			same(t, "what belongs to it", int64(1), b.number(`select (select count(*) from setpoint.optimization_variables)
				+ (select count(*) from setpoint.trials) + (select count(*) from setpoint.trial_metrics)`))
		})
	}
}
