package integration

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/testkit"
)

// holds returns the optimization of a process that has its lease and has written.
func holds(t *testing.T, c *client.Client, p *process, session string) *setpointv1.Optimization {
	t.Helper()
	id := p.await(t, p.out, `^asked as (\S+)`)[1]
	p.await(t, p.out, `^wrote 2\n`)
	return optimization(t, c, session, id)
}

// checkEnded fails the test unless history has one lease of an optimization on one variable, which begins, is written under,
// and ends.
func checkEnded(t *testing.T, rows []leaseRow, o *setpointv1.Optimization) {
	t.Helper()
	changes := changesOf(rows, o)
	last := len(changes) - 1
	if last < 1 || changes[0] != "lease_granted" || slices.Index(changes, "lease_ended") != last {
		t.Errorf("history of %s: got %v, want a lease that is granted, used, and ended once", o.GetOptimizerId(), changes)
	}
}

// A process that slept through the end of its lease and wakes believing that it has it changes nothing: whether another has the
// variable by then, or nobody.
func TestPausedHolderIsHarmless(t *testing.T) {
	t.Parallel()
	for name, taken := range map[string]bool{"another has the lease": true, "nobody has the lease": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := testkit.NewDatabase(t)
			s := serve(t, url)
			c := dial(t, s)
			newSession(t, c, "paused")
			register(t, c, "paused", "var_a", typeInteger, client.Integer(0))
			p := startOptimizer(t, task{Addr: s.grpc, Session: "paused", Variable: "var_a", Optimizer: "sleeper", TTL: 2 * time.Second})
			old := holds(t, c, p, "paused")
			p.pause(t)

			var lease *setpointv1.Lease
			if taken {
				next := optimize(t, c, queues("paused", "next", time.Minute, "var_a"))
				next = granted(t, awaitLease(t.Context(), c, next))
				if next.GetFencingToken() <= old.GetFencingToken() {
					t.Errorf("token %d was granted after %d", next.GetFencingToken(), old.GetFencingToken())
				}
				lease = leaseOf(next)
			}
			old = awaitState(t, c, old, stateExpired)
			if err := setUnder(t.Context(), c, "paused", "var_a", -1, lease); err != nil {
				t.Fatalf("a write after the sleeper's time: %v", err)
			}
			before := get(t, c, "paused", "var_a")

			p.resume(t)
			p.await(t, p.out, `^write: LEASE_LOST\n`)
			p.await(t, p.out, `^report: late true, applied false\n`)
			p.await(t, p.out, `^stop: OPTIMIZATION_ENDED\n`)
			if exit := p.wait(t); exit != 0 {
				t.Errorf("the sleeper ended with status %d", exit)
			}
			after := get(t, c, "paused", "var_a")
			if after.GetVersion() != before.GetVersion() || after.GetValue().GetInteger() != -1 {
				t.Errorf("var_a: got %v at version %d, want -1 at %d", after.GetValue(), after.GetVersion(), before.GetVersion())
			}
			old = optimization(t, c, "paused", old.GetOptimizationId())
			if old.GetState() != stateExpired || old.GetTrialCount() != 0 || old.GetLateCount() != 1 || old.GetBestTrial() != nil ||
				!old.GetEndedAt().AsTime().Equal(old.GetExpiresAt().AsTime()) {
				t.Errorf("the sleeper's record: got %v", old)
			}
			pool := testkit.Pool(t, url)
			testkit.Eventually(t, patience, func() error {
				if changes := changesOf(leaseHistory(t, pool, "paused"), old); !slices.Contains(changes, "lease_ended") {
					return fmt.Errorf("the end is not in history: %v", changes)
				}
				return nil
			})
			if taken { // Else a write comes between the end and the sweeper's note of it.
				checkEnded(t, leaseHistory(t, pool, "paused"), old)
				checkLeases(t, pool, "paused")
			}
			checkHistory(t, pool, "paused")
		})
	}
}

// The lease of a holder that was killed is over its ttl after the last renewal, and not earlier; then who waits gets it, on
// whichever server.
func TestKilledHolderIsSucceeded(t *testing.T) {
	t.Parallel()
	const ttl = 2 * time.Second
	url := testkit.NewDatabase(t)
	servers := []*server{serve(t, url), serve(t, url)}
	c, other := dial(t, servers[0]), dial(t, servers[1])
	newSession(t, c, "killed")
	register(t, c, "killed", "var_a", typeInteger, client.Integer(0))
	p := startOptimizer(t, task{Addr: servers[0].grpc, Session: "killed", Variable: "var_a", Optimizer: "victim", TTL: ttl})
	victim := holds(t, c, p, "killed")
	heir := optimize(t, other, queues("killed", "heir", time.Minute, "var_a"))
	lease := awaitLease(t.Context(), other, heir)
	p.kill(t)
	pool := testkit.Pool(t, url)
	died := clock(t, pool)

	heir = granted(t, lease)
	victim = awaitState(t, c, victim, stateExpired)
	end, start := victim.GetEndedAt().AsTime(), heir.GetStartedAt().AsTime()
	if !end.Equal(victim.GetExpiresAt().AsTime()) || end.After(died.Add(ttl)) {
		t.Errorf("the lease was over at %v; it was to be at %v, and its holder died before %v",
			end, victim.GetExpiresAt().AsTime(), died)
	}
	if start.Before(end) || heir.GetFencingToken() <= victim.GetFencingToken() {
		t.Errorf("the heir got the lease at %v with token %d; it was over at %v", start, heir.GetFencingToken(), end)
	}
	if err := setUnder(t.Context(), other, "killed", "var_a", -1, leaseOf(heir)); err != nil {
		t.Errorf("a write by the heir: %v", err)
	}
	stop(t, other, heir)
	for _, s := range servers {
		s.stop(t) // Both have written all that they had to.
	}
	checkEnded(t, leaseHistory(t, pool, "killed"), victim)
	checkLeases(t, pool, "killed")
	wantStatusChanges(t, servers, victim, "active", "expired")
	wantStatusChanges(t, servers, heir, "waiting", "active", "completed")
}

// wantStatusChanges fails the test unless the servers' logs together tell of each change of an optimization's state once.
func wantStatusChanges(t *testing.T, servers []*server, o *setpointv1.Optimization, states ...string) {
	t.Helper()
	total, want := 0, map[string]int{}
	got := map[string]int{}
	for _, state := range states {
		want[state] = 1
	}
	event := `msg=optimization_status_change .*optimization=` + o.GetOptimizationId() + ` `
	for _, s := range servers {
		total += s.log.count(regexp.MustCompile(event))
		for _, state := range states {
			got[state] += s.log.count(regexp.MustCompile(event + `.*to=` + state + ` `))
		}
	}
	if diff := cmp.Diff(want, got); diff != "" || total != len(states) {
		t.Errorf("%d changes of the state of %s in the logs (-want +got):\n%s", total, o.GetOptimizerId(), diff)
	}
}

// However many servers look after them, leases and stays in the queue that are not renewed are written down as ended once each.
func TestExpiriesAreWrittenDownOnce(t *testing.T) {
	t.Parallel()
	const sessions = 12
	url := testkit.NewDatabase(t)
	servers := []*server{serve(t, url), serve(t, url), serve(t, url)}
	var left []*setpointv1.Optimization
	for i := range sessions {
		c, id := dial(t, servers[i%3]), fmt.Sprintf("left-%d", i)
		newSession(t, c, id)
		register(t, c, id, "var_a", typeInteger, client.Integer(0))
		register(t, c, id, "var_b", typeInteger, client.Integer(0))
		left = append(left, optimize(t, c, asks(id, fmt.Sprint("holder-", i), time.Second, "var_a", "var_b")))
		waiter := optimize(t, c, queues(id, fmt.Sprint("waiter-", i), time.Second, "var_b"))
		if waiter.GetState() != stateWaiting {
			t.Errorf("%s is %v", waiter.GetOptimizerId(), waiter)
		}
		left = append(left, waiter)
	}
	pool := testkit.Pool(t, url)
	awaitNoLeases(t, pool)
	for _, o := range left {
		o := optimization(t, dial(t, servers[0]), o.GetSessionId(), o.GetOptimizationId())
		if o.GetState() != stateExpired || !o.GetEndedAt().AsTime().Equal(o.GetExpiresAt().AsTime()) {
			t.Errorf("%s: got %v", o.GetOptimizerId(), o)
		}
	}
	for _, s := range servers {
		s.stop(t)
	}
	for i := range sessions {
		holder, waiter, rows := left[2*i], left[2*i+1], leaseHistory(t, pool, fmt.Sprintf("left-%d", i))
		want := []string{"lease_granted", "lease_granted", "lease_ended", "lease_ended"}
		if diff := cmp.Diff(want, changesOf(rows, holder)); diff != "" {
			t.Errorf("history of %s (-want +got):\n%s", holder.GetOptimizerId(), diff)
		}
		if changes := changesOf(rows, waiter); len(changes) > 0 {
			t.Errorf("history of %s, which never had a lease: %v", waiter.GetOptimizerId(), changes)
		}
		wantStatusChanges(t, servers, holder, "active", "expired")
		wantStatusChanges(t, servers, waiter, "waiting", "expired")
		checkHistory(t, pool, holder.GetSessionId())
	}
}

// A holder that is cut off stops before its lease is over by the database's clock, and what it began to send meanwhile is
// refused when it gets through.
func TestHolderCutOff(t *testing.T) {
	t.Parallel()
	for name, away := range map[string]func(*testkit.Proxy){
		"cut":       func(p *testkit.Proxy) { p.Cut() },
		"blackhole": func(p *testkit.Proxy) { p.Blackhole() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := testkit.NewDatabase(t)
			s := serve(t, url)
			c, pool := dial(t, s), testkit.Pool(t, url)
			newSession(t, c, "cut")
			register(t, c, "cut", "var_a", typeInteger, client.Integer(0))
			through, proxy := testkit.NewProxy(t, "tcp://"+s.grpc)
			far := dial(t, &server{grpc: strings.TrimPrefix(through, "tcp://")}, stubborn...)
			o := optimize(t, far, asks("cut", "far", 2*time.Second, "var_a"))
			// The margin is what this test may take to look at the clock, rather than what the work would need.
			keeper, err := far.KeepLease(t.Context(), o, client.WithLeaseMargin(time.Second))
			if err != nil {
				t.Fatal(err)
			}
			defer keeper.Close()
			if err := setUnder(t.Context(), far, "cut", "var_a", 1, keeper.Lease()); err != nil {
				t.Fatal(err)
			}
			heir := optimize(t, c, queues("cut", "heir", time.Minute, "var_a"))
			lease := awaitLease(t.Context(), c, heir)

			away(proxy)
			sent := make(chan error, 1)
			go func() { sent <- setUnder(t.Context(), far, "cut", "var_a", 2, keeper.Lease()) }()
			<-keeper.Context().Done()
			stopped := clock(t, pool)
			if cause := context.Cause(keeper.Context()); !errors.Is(cause, client.ErrNotRenewed) {
				t.Errorf("the work was stopped: %v", cause)
			}
			heir = granted(t, lease)
			end := awaitState(t, c, o, stateExpired).GetEndedAt().AsTime()
			if !stopped.Before(end) {
				t.Errorf("the work was stopped at %v, and the lease was over at %v", stopped, end)
			}
			if heir.GetStartedAt().AsTime().Before(end) {
				t.Errorf("the heir has the lease since %v, before %v", heir.GetStartedAt().AsTime(), end)
			}
			if err := setUnder(t.Context(), c, "cut", "var_a", -1, leaseOf(heir)); err != nil {
				t.Errorf("a write by the heir: %v", err)
			}

			proxy.Restore()
			refused(t, "the write that was sent while cut off", <-sent, client.ErrLeaseLost)
			err = setUnder(t.Context(), far, "cut", "var_a", 3, keeper.Lease())
			refused(t, "a write after that", err, client.ErrLeaseLost)
			report, err := keeper.Report(t.Context(), &setpointv1.ReportProgressRequest{
				Apply: true, Values: map[string]*setpointv1.Value{"var_a": client.Integer(4)}})
			if err != nil || !report.GetLate() || report.GetTrial().GetApplied() {
				t.Errorf("a report after that: got %v, %v", report, err)
			}
			if v := get(t, c, "cut", "var_a"); v.GetVersion() != 2 || v.GetValue().GetInteger() != -1 {
				t.Errorf("var_a: got %v at version %d, want -1 at 2", v.GetValue(), v.GetVersion())
			}
			checkEnded(t, leaseHistory(t, pool, "cut"), o)
			checkLeases(t, pool, "cut")
		})
	}
}

// Who waited on a server that was killed waits on at another one, at the old place.
func TestKilledServerKeepsTheQueue(t *testing.T) {
	t.Parallel()
	const waiters, ttl = 6, 4 * time.Second
	url := testkit.NewDatabase(t)
	doomed, spare := serve(t, url), serve(t, url)
	c, pool := dial(t, spare), testkit.Pool(t, url)
	newSession(t, c, "queue")
	register(t, c, "queue", "var_a", typeInteger, client.Integer(0))
	holder := optimize(t, c, asks("queue", "holder", time.Minute, "var_a"))
	anyOf := []*client.Client{dialAny(t, []*server{doomed, spare}), dialAny(t, []*server{spare, doomed})}
	var waiting []*setpointv1.Optimization
	var leases []<-chan awaited
	for i := range waiters {
		o := optimize(t, anyOf[i%2], queues("queue", fmt.Sprintf("waiter-%d", i), ttl, "var_a"))
		waiting = append(waiting, o)
		leases = append(leases, awaitLease(t.Context(), anyOf[i%2], o))
	}

	doomed.kill(t)
	killed := clock(t, pool)
	for i, o := range waiting {
		testkit.Eventually(t, patience, func() error {
			o := optimization(t, c, "queue", o.GetOptimizationId())
			if o.GetState() != stateWaiting || o.GetQueuePosition() != int32(i)+1 {
				t.Fatalf("waiter %d after the server died: %v", i, o)
			}
			if o.GetExpiresAt().AsTime().Add(-ttl).Before(killed) {
				return fmt.Errorf("waiter %d was not seen after the server died: %v", i, o)
			}
			return nil
		})
	}
	stop(t, c, holder)
	token := holder.GetFencingToken()
	for i, lease := range leases {
		o := granted(t, lease)
		if o.GetOptimizerId() != fmt.Sprintf("waiter-%d", i) || o.GetFencingToken() <= token {
			t.Errorf("grant %d: got %v", i, o)
		}
		token = o.GetFencingToken()
		stop(t, c, o)
	}
	awaitNoLeases(t, pool)
	if n := checkLeases(t, pool, "queue"); n != waiters+1 {
		t.Errorf("there were %d leases, want %d", n, waiters+1)
	}
}

// streamsEnded is how many waits for a lease have ended on a server that measures.
func streamsEnded(t *testing.T, s *server) int {
	t.Helper()
	_, text := probe(t, s, "/metrics")
	found := regexp.MustCompile(
		`(?m)^setpoint_rpc_duration_seconds_count\{[^}]*method="/setpoint.v1.OptimizationService/AwaitOptimization"[^}]*\} (\d+)$`).
		FindAllStringSubmatch(text, -1)
	total := 0
	for _, match := range found {
		n, err := strconv.Atoi(match[1])
		if err != nil {
			t.Fatal(err)
		}
		total += n
	}
	return total
}

// Who dies in the queue is never granted what it waited for. It holds up those behind it until its stay is over, and no longer.
func TestWaiterThatDiesIsPassedOver(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"killed", "gone"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			const ttl = 2 * time.Second
			url := testkit.NewDatabase(t)
			s := ready(t, url, "--metrics")
			c, pool := dial(t, s), testkit.Pool(t, url)
			newSession(t, c, "queue")
			register(t, c, "queue", "var_a", typeInteger, client.Integer(0))
			holder := optimize(t, c, asks("queue", "holder", time.Minute, "var_a"))
			victim, die := mortal(t, how, s, c, ttl)
			behind := optimize(t, c, queues("queue", "behind", time.Minute, "var_a"))
			lease := awaitLease(t.Context(), c, behind)

			die()
			testkit.Eventually(t, patience, func() error {
				if n := streamsEnded(t, s); n != 1 {
					return fmt.Errorf("%d waits have ended", n)
				}
				return nil
			})
			died := clock(t, pool)
			stop(t, c, holder)
			behind = granted(t, lease)
			victim = optimization(t, c, "queue", victim.GetOptimizationId())
			if victim.GetState() != stateExpired || victim.GetStartedAt() != nil || victim.GetFencingToken() != 0 {
				t.Errorf("the one that died: %v", victim)
			}
			end, start := victim.GetEndedAt().AsTime(), behind.GetStartedAt().AsTime()
			if start.Before(end) || end.After(died.Add(ttl)) {
				t.Errorf("the one behind was granted the lease at %v; the stay of the other, dead at %v, was over at %v", start, died, end)
			}
			if changes := changesOf(leaseHistory(t, pool, "queue"), victim); len(changes) > 0 {
				t.Errorf("history of the one that died: %v", changes)
			}
			stop(t, c, behind)
			awaitNoLeases(t, pool)
			checkLeases(t, pool, "queue")
		})
	}
}

// mortal has somebody wait who can be made to die.
func mortal(t *testing.T, how string, s *server, c *client.Client, ttl time.Duration) (*setpointv1.Optimization, func()) {
	t.Helper()
	if how == "killed" {
		p := startOptimizer(t, task{Addr: s.grpc, Session: "queue", Variable: "var_a", Optimizer: "victim", TTL: ttl})
		id := p.await(t, p.out, `^asked as (\S+)`)[1]
		p.await(t, p.out, `^place 1\n`)
		return optimization(t, c, "queue", id), func() { p.kill(t) }
	}
	o := optimize(t, c, queues("queue", "victim", ttl, "var_a"))
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	follows(ctx, t, c, o)
	return o, cancel
}

// follows waits for a lease by a call of its own, which is under way when it returns; its error comes on the channel.
func follows(ctx context.Context, t *testing.T, c *client.Client, o *setpointv1.Optimization) <-chan error {
	t.Helper()
	stream, err := c.Optimizations.AwaitOptimization(ctx,
		&setpointv1.AwaitOptimizationRequest{SessionId: o.GetSessionId(), OptimizationId: o.GetOptimizationId()})
	if err != nil {
		t.Fatal(err)
	}
	if first, err := stream.Recv(); err != nil || first.GetState() != stateWaiting {
		t.Fatalf("follow %s: got %v, %v", o.GetOptimizerId(), first, err)
	}
	ended := make(chan error, 1)
	go func() {
		var err error
		for err == nil {
			_, err = stream.Recv()
		}
		ended <- err
	}()
	return ended
}

// A server that is told to stop does not wait for those who wait on it: they go on at another one, and so do those who keep a
// lease.
func TestStoppedServerSendsWaitersElsewhere(t *testing.T) {
	t.Parallel()
	const waiters, ttl = 4, 4 * time.Second
	url := testkit.NewDatabase(t)
	leaving, spare := ready(t, url, "--drain-timeout", "5m"), ready(t, url)
	c, pool := dial(t, spare), testkit.Pool(t, url)
	newSession(t, c, "drain")
	register(t, c, "drain", "var_a", typeInteger, client.Integer(0))
	anyOf := dialAny(t, []*server{leaving, spare})
	holder := optimize(t, anyOf, asks("drain", "holder", ttl, "var_a"))
	keeper, err := anyOf.KeepLease(t.Context(), holder)
	if err != nil {
		t.Fatal(err)
	}
	defer keeper.Close()
	var streams []<-chan error
	var leases []<-chan awaited
	for i := range waiters {
		o := optimize(t, anyOf, queues("drain", fmt.Sprintf("waiter-%d", i), ttl, "var_a"))
		streams = append(streams, follows(t.Context(), t, dial(t, leaving, client.WithoutRetry()), o))
		leases = append(leases, awaitLease(t.Context(), anyOf, o))
	}

	leaving.terminate(t)
	if exit := leaving.wait(t); exit != 0 {
		t.Errorf("the server stopped with exit status %d", exit)
	}
	for i, ended := range streams {
		if err := <-ended; status.Code(err) != codes.Unavailable {
			t.Errorf("stream %d ended with %v, want %v", i, err, codes.Unavailable)
		}
	}
	if strings.Contains(leaving.log.String(), "cut off") {
		t.Error("the server cut calls off")
	}
	left := clock(t, pool)
	testkit.Eventually(t, patience, func() error {
		if err := keeper.Err(); err != nil {
			t.Fatalf("the lease was not kept: %v", err)
		}
		o := optimization(t, c, "drain", holder.GetOptimizationId())
		if o.GetExpiresAt().AsTime().Add(-ttl).Before(left) {
			return errors.New("the lease was not renewed at the other server")
		}
		return nil
	})
	if _, err := keeper.Stop(t.Context(), nil); err != nil {
		t.Errorf("stop: %v", err)
	}
	for i, lease := range leases {
		o := granted(t, lease)
		if o.GetOptimizerId() != fmt.Sprintf("waiter-%d", i) {
			t.Errorf("grant %d went to %v", i, o)
		}
		stop(t, c, o)
	}
	awaitNoLeases(t, pool)
	if n := checkLeases(t, pool, "drain"); n != waiters+1 {
		t.Errorf("there were %d leases, want %d", n, waiters+1)
	}
}
