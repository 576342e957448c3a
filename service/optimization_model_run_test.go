package service_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/setpointdb/setpoint/client"
	"github.com/setpointdb/setpoint/db"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/sweep"
	"github.com/setpointdb/setpoint/internal/telemetry"
	"github.com/setpointdb/setpoint/internal/testkit"
)

// leaseServers are two servers on one database whose clock the test moves, with clients of each principal. Their own
// sweepers are kept from their rounds.
type leaseServers struct {
	b       *bundle
	clock   *testkit.Clock
	clients []map[string]*client.Client
	sweeper *sweep.Sweeper
	// hold keeps the sweepers of the servers waiting, and its result lets them go on.
	hold func() func()
}

var leasePrincipals = []string{leaseOwner, "user:bob"}

func newLeaseServers(t *testing.T) *leaseServers {
	t.Helper()
	b, clock := setupClock(t)
	s := &leaseServers{b: b, clock: clock}
	for _, addr := range []string{b.addr, b.startServer()} {
		at := *b
		at.addr = addr
		clients := map[string]*client.Client{}
		for _, principal := range leasePrincipals {
			clients[principal] = at.dial(client.WithPrincipal(principal))
		}
		s.clients = append(s.clients, clients)
	}
	events, err := telemetry.New(slog.New(slog.DiscardHandler), nil)
	if err != nil {
		t.Fatal(err)
	}
	database, err := db.Open(b.ctx, db.Config{URL: b.url})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(database.Close)
	s.sweeper = sweep.New(database, events, time.Hour)
	conn, err := b.sql.Acquire(b.ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Conn().Close(context.Background())
		conn.Release()
	})
	do := func(function string) {
		if _, err := conn.Exec(b.ctx, "select "+function+"($1, 1)", int32(db.LockSweep)); err != nil {
			t.Error(err)
		}
	}
	s.hold = func() func() {
		do("pg_advisory_lock")
		return func() { do("pg_advisory_unlock") }
	}
	return s
}

// leaseRun is a session that calls are made of, and its model.
type leaseRun struct {
	*leaseServers
	session string
	begin   time.Time
	world   *leaseWorld
	// ids are those of optimizations and variables, by what the model calls them, and called is the way back.
	ids, called map[string]string
	// release lets the servers' sweepers go on.
	release func()
	steps   []string
}

func (s *leaseServers) run(session string) *leaseRun {
	r := &leaseRun{
		leaseServers: s, session: session, begin: s.clock.Now(), world: &leaseWorld{names: []string{"a", "b", "c", "d", "e"}},
		ids: map[string]string{}, called: map[string]string{},
	}
	if _, err := s.clients[0][leaseOwner].Sessions.CreateSession(s.b.ctx, &setpointv1.CreateSessionRequest{
		SessionId: session,
	}); err != nil {
		s.b.t.Fatal(err)
	}
	s.b.allow(session, leasePrincipals[1])
	s.b.exec(`update setpoint.sessions set ttl_us = 0, expires_at = 'infinity' where session_id = $1`, session)
	r.registerAll()
	r.release = s.hold()
	return r
}

// registerAll registers a variable of each name.
func (r *leaseRun) registerAll() {
	req := &setpointv1.BatchRegisterVariablesRequest{SessionId: r.session}
	for number, name := range r.world.names {
		one := leaseRegistration(r.session, name)
		req.Registrations = append(req.Registrations, &setpointv1.VariableRegistration{
			Name: name, Type: one.GetType(), Value: one.GetValue(), Constraints: one.GetConstraints(),
		})
		v := &leaseVariable{name: name, number: number}
		r.world.all = append(r.world.all, v)
		r.world.write("REGISTERED", v, 0, "-", leaseOwner, "")
	}
	got, err := r.clients[0][leaseOwner].Variables.BatchRegisterVariables(r.b.ctx, req)
	if err != nil {
		r.b.t.Fatal(err)
	}
	for i, result := range got.GetResults() {
		r.learn(result.GetVariable().GetVariableId(), fmt.Sprintf("v%d", i))
	}
}

// leaseCaller sends a call for a principal, and writes what it answers as the model does.
type leaseCaller struct {
	*leaseRun
	*client.Client
	ctx    context.Context
	number int
}

func (r *leaseRun) learn(id, name string) { r.ids[name], r.called[id] = id, name }

func (r *leaseRun) id(o *leaseRecord) string {
	if o == nil {
		return noOptimization
	}
	return r.ids[o.String()]
}

func (r *leaseRun) lease(l *presentedLease) *setpointv1.Lease {
	if l == nil {
		return nil
	}
	return &setpointv1.Lease{OptimizationId: r.id(l.of), FencingToken: l.token}
}

// text puts the model's names in the place of ids.
func (r *leaseRun) text(s string) string {
	for id, name := range r.called {
		s = strings.ReplaceAll(s, id, name)
	}
	return s
}

// since is a time of the model; before the round for none.
func (r *leaseRun) since(at *timestamppb.Timestamp) time.Duration {
	if at == nil {
		return -1
	}
	return at.AsTime().Sub(r.begin)
}

// leaseTold is the metadata of refusals that is compared.
var leaseTold = []string{
	"variable", "optimization_id", "optimizer_id", "started_at", "expires_at", "state", "permission",
}

func (r *leaseRun) refused(reason setpointv1.ErrorReason, metadata map[string]string) string {
	var pairs []string
	for _, key := range leaseTold {
		told, ok := metadata[key]
		if !ok || reason == setpointv1.ErrorReason_CONSTRAINT_VIOLATION {
			continue
		}
		told = strings.TrimPrefix(r.text(told), "OPTIMIZATION_STATE_")
		if at, err := time.Parse(time.RFC3339Nano, told); err == nil {
			told = at.Sub(r.begin).String()
		}
		pairs = append(pairs, key, told)
	}
	return refusedLine(reason, pairs...)
}

func (r *leaseRun) refusal(err error) string {
	e, ok := errors.AsType[*client.Error](err)
	if ok && e.Reason != setpointv1.ErrorReason_ERROR_REASON_UNSPECIFIED && e.Reason != setpointv1.ErrorReason_INTERNAL_ERROR {
		return r.refused(e.Reason, e.Metadata)
	}
	return err.Error()
}

func (r *leaseRun) done(err error) string {
	if err != nil {
		return r.refusal(err)
	}
	return "done"
}

func integersOf(values map[string]*setpointv1.Value) map[string]int64 {
	integers := map[string]int64{}
	for name, v := range values {
		integers[name] = v.GetInteger()
	}
	return integers
}

func (r *leaseRun) trial(t *setpointv1.Trial) string {
	step := int64(-1)
	if t.Step != nil {
		step = t.GetStep()
	}
	return trialText(t.GetNumber(), step, integersOf(t.GetValues()), t.GetMetrics(), t.GetApplied(), t.GetLate(), t.GetBest(),
		r.since(t.GetReportedAt()))
}

func (r *leaseRun) preemption(p *setpointv1.Preemption) string {
	if p == nil {
		return ""
	}
	return fmt.Sprintf("by %s until %s", r.text(p.GetBy()), r.since(p.GetDeadline()))
}

func (r *leaseRun) line(o *setpointv1.Optimization) string {
	remaining, best := time.Duration(-1), "none"
	if o.GetRemaining() != nil {
		remaining = o.GetRemaining().AsDuration()
	}
	if o.GetBestTrial() != nil {
		best = r.trial(o.GetBestTrial())
	}
	return leaseLine(leaseText{
		id: r.text(o.GetOptimizationId()), state: stateText(o.GetState()), by: o.GetStartedBy(), optimizer: o.GetOptimizerId(),
		reason: r.text(o.GetEndReason()), preemption: r.preemption(o.GetPreemption()), best: best, names: o.GetVariables(),
		token: o.GetFencingToken(), count: o.GetTrialCount(), late: o.GetLateCount(), position: int(o.GetQueuePosition()),
		requested: r.since(o.GetRequestedAt()), started: r.since(o.GetStartedAt()), expires: r.since(o.GetExpiresAt()),
		ended: r.since(o.GetEndedAt()), reported: r.since(o.GetLastReportAt()), remaining: remaining,
	})
}

func (r *leaseRun) checkpoint(o *setpointv1.Optimization) string {
	c := o.GetCheckpoint()
	if c == nil {
		return ""
	}
	return fmt.Sprintf(" checkpoint of %s #%d", r.text(c.GetOptimizationId()), c.GetTrialNumber())
}

func (r *leaseRun) reported(got *setpointv1.ReportProgressResponse) string {
	remaining := time.Duration(-1)
	if got.GetRemaining() != nil {
		remaining = got.GetRemaining().AsDuration()
	}
	again := ""
	if got.GetRepeated() {
		again = " again"
	}
	return reportText(r.trial(got.GetTrial()), got.GetIsBest(), got.GetLate(), r.since(got.GetExpiresAt()), remaining,
		r.preemption(got.GetPreemption())) + again
}

// sweep has the sweepers write down all that is over.
func (r *leaseRun) sweep() {
	r.release()
	defer func() { r.release = r.hold() }()
	testkit.Eventually(r.b.t, 20*time.Second, func() error {
		if err := r.sweeper.Leases(r.b.ctx); err != nil {
			r.b.t.Error(err)
		}
		var left int
		r.b.row(&left, `select count(*) from setpoint.optimizations o cross join test_clock.face f
			where o.session_id = $1 and o.ended_at is null and o.expires_at <= f.at`, r.session)
		if left > 0 {
			return fmt.Errorf("%d are over, and open", left) // Another server is at it.
		}
		return nil
	})
}

// blockedOr returns when a statement waits for a lock, or the call has been answered.
func (r *leaseRun) blockedOr(answer <-chan string) {
	testkit.Eventually(r.b.t, 20*time.Second, func() error {
		var found int
		r.b.row(&found, `select count(*) from pg_stat_activity where datname = current_database()
			and application_name = 'setpoint' and wait_event_type = 'Lock'`)
		if found == 0 && len(answer) == 0 {
			return errors.New("the call neither waits nor is answered")
		}
		return nil
	})
}

// leaseMove is a call, by a principal.
type leaseMove struct {
	Principal string
	Call      leaseCall
}

// do makes a call, and compares the answer with the model's.
func (r *leaseRun) do(t graphT, move leaseMove) {
	t.Helper()
	number := len(r.steps)
	ctx, cancel := context.WithTimeout(r.b.ctx, 30*time.Second)
	defer cancel()
	c := leaseCaller{leaseRun: r, Client: r.clients[number%len(r.clients)][move.Principal], ctx: ctx, number: number}
	step := move.Call.bind(r.world, move.Principal)
	got := step.send(c)
	want := step.apply(got)
	r.steps = append(r.steps, fmt.Sprintf("%2d at %s %s %T%+v: %s", number, r.world.now, move.Principal, move.Call,
		move.Call, got))
	if got != want {
		t.Fatalf("%s\nbut (-model +got)\n%s", strings.Join(r.steps, "\n"), gocmp.Diff(want, got))
	}
	r.wantWhole(t)
}

// wantWhole checks what has to hold after every call: the rows of variables and the records say the same; a lease is on all
// of its variables, and only on them; and whoever waits, and nobody else, is in the queue.
func (r *leaseRun) wantWhole(t graphT) {
	t.Helper()
	var wrong []string
	r.b.row(&wrong, leaseViolations, r.session)
	if len(wrong) > 0 {
		t.Fatalf("%s\n%s", strings.Join(r.steps, "\n"), strings.Join(wrong, "\n"))
	}
}

const leaseViolations = `
with o as (select * from setpoint.optimizations where session_id = $1),
held as (
    select o.optimization_id, o.state, o.fencing_token, o.expires_at, o.ended_at, x.variable_id, x.name,
        v.optimization_id as holder,
        v.fencing_token as token, v.lease_expires_at as until, v.lease_started_at as since, o.started_at,
        v.variable_id is not null as exists
    from o join setpoint.optimization_variables x using (session_id, optimization_id)
    left join setpoint.variables v using (session_id, variable_id)
)
select array(
    select 'held in part: ' || h.optimization_id || ' ' || h.name from held h
    where h.exists and h.state in ('active', 'preempting') and (h.holder is distinct from h.optimization_id
        or h.token <> h.fencing_token or h.until is distinct from h.expires_at or h.since is distinct from h.started_at)
    union all
    select 'a lease without a record: ' || v.name from setpoint.variables v
    where v.session_id = $1 and v.lease_expires_at is not null and not exists (
        select from held h where h.variable_id = v.variable_id and h.optimization_id = v.optimization_id
            and h.state in ('active', 'preempting') and h.ended_at is null)
    union all
    select 'in the queue, and not waiting: ' || w.optimization_id
    from setpoint.optimization_waiters w left join o using (optimization_id)
    where w.session_id = $1 and o.state is distinct from 'waiting'
    union all
    select 'waiting, and not in the queue: ' || h.optimization_id || ' ' || h.name from held h
    where h.state = 'waiting' and not exists (
        select from setpoint.optimization_waiters w
        where w.session_id = $1 and w.optimization_id = h.optimization_id and w.variable_id = h.variable_id)
    union all
    select 'a token above its variable''s: ' || h.optimization_id || ' ' || h.name from held h
    where h.exists and h.fencing_token > h.token
)`

// history is the session's, as the model writes it.
func (r *leaseRun) history(t graphT) []string {
	t.Helper()
	req := &setpointv1.ListHistoryRequest{SessionId: r.session, PageSize: 1000}
	var rows []string
	for {
		page, err := r.clients[0][leaseOwner].History.ListHistory(r.b.ctx, req)
		if err != nil {
			t.Fatalf("list history: %v", err)
		}
		for _, e := range page.GetEntries() {
			value, under := "", "-"
			if e.Version != nil {
				value = valueText(e.GetVersion(), e.GetValue().GetInteger())
			}
			if e.GetOptimizationId() != "" {
				under = r.text(e.GetOptimizationId())
			}
			if e.TrialNumber != nil {
				under += fmt.Sprintf(" trial %d", e.GetTrialNumber())
			}
			rows = append(rows, leaseRow(strings.TrimPrefix(e.GetChange().String(), "HISTORY_CHANGE_"),
				fmt.Sprintf("%s(%s)", e.GetName(), r.text(e.GetVariableId())), value, under, e.GetChangedBy(),
				r.text(e.GetReason())))
		}
		if req.PageToken = page.GetNextPageToken(); req.PageToken == "" {
			slices.Reverse(rows)
			return rows
		}
	}
}

// finish stops some, lets the clock end the others, and sees that nothing is left of them but their records.
func (r *leaseRun) finish(t graphT, stopped int) {
	t.Helper()
	for i := range min(stopped, len(r.world.records)) {
		r.do(t, leaseMove{leaseOwner, leaseStop{Who: leaseWho{whoever, i}, Force: true, Token: -1}})
	}
	for _, call := range []leaseCall{
		leaseAdvance{Time: leaseTime{On: time.Hour}}, leaseList{}, leaseSweep{}, leaseList{}, leaseVariables{},
	} {
		r.do(t, leaseMove{leaseOwner, call})
	}
	if diff := gocmp.Diff(r.world.rows, r.history(t)); diff != "" {
		t.Fatalf("%s\nhistory (-model +got):\n%s", strings.Join(r.steps, "\n"), diff)
	}
	var left int
	r.b.row(&left, `select (select count(*) from setpoint.optimization_waiters where session_id = $1)
		+ (select count(*) from setpoint.variables where session_id = $1 and lease_expires_at is not null)
		+ (select count(*) from setpoint.optimizations where session_id = $1 and ended_at is null)`, r.session)
	if left != 0 {
		t.Fatalf("%s\n%d leases, places in the queue and open records are left", strings.Join(r.steps, "\n"), left)
	}
}

func byNumber(a, b *leaseTrial) int {
	return cmp.Or(cmp.Compare(a.number, b.number), cmp.Compare(a.step, b.step))
}
