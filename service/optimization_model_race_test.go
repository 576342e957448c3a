package service_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// Many optimizers of two servers at once, on a clock that they move: what they did is checked afterwards, from the history,
// the records and what they were answered.

// leaseRace is what optimizers of one session were answered.
type leaseRace struct {
	*leaseServers
	mu sync.Mutex
	// writes are the accepted ones, by revision: the optimization that each presented, or none.
	writes map[int64]string
	// granted are the tokens of optimizations.
	granted map[string]int64
	// lost are the refusals of leases: none of them held any more at that time.
	lost []raceRefusal
	// inTheWay are the refusals for somebody else's lease or place in the queue, which was there at some moment between.
	inTheWay []raceRefusal
	calls    int
}

// raceRefusal is a refusal for an optimization, between two readings of the clock and after a revision of the session.
type raceRefusal struct {
	optimization  string
	before, after time.Time
	revision      int64
}

// racer is one optimizer.
type racer struct {
	*leaseRace
	*rand.Rand
	clients []*client.Client
	// old are those that were granted, most of which are over.
	old []*setpointv1.Optimization
}

var raceNames = []string{"a", "b", "c", "d", "e"}

func (r *racer) client() *client.Client { return r.clients[r.IntN(len(r.clients))] }

func (r *racer) one(choices ...int) int { return choices[r.IntN(len(choices))] }

// call makes a call that has to return in time, and now and then moves the clock.
func (r *racer) call(do func(ctx context.Context, c *client.Client) error) error {
	if r.IntN(10) < 3 {
		r.clock.Advance(time.Duration(50*(1+r.IntN(12))) * time.Millisecond)
	}
	ctx, cancel := context.WithTimeout(r.b.ctx, 30*time.Second)
	defer cancel()
	before, revision := r.clock.Now(), r.b.revision()
	err := do(ctx, r.client())
	e, ok := errors.AsType[*client.Error](err)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls++
	if err == nil {
		return nil
	}
	if !ok {
		r.b.t.Errorf("no refusal: %v", err)
		return err
	}
	refusal := raceRefusal{e.Metadata["optimization_id"], before, r.clock.Now(), revision}
	switch e.Reason {
	case setpointv1.ErrorReason_LEASE_LOST, setpointv1.ErrorReason_OPTIMIZATION_ENDED:
		r.lost = append(r.lost, refusal)
	case setpointv1.ErrorReason_ALREADY_OPTIMIZING:
		r.inTheWay = append(r.inTheWay, refusal)
	default:
		r.b.t.Errorf("%v", err)
	}
	return err
}

// forged sees that a write with a lease that was never granted is refused.
func (r *racer) forged(name string, lease *setpointv1.Lease) {
	_, err := r.client().Variables.SetVariable(r.b.ctx, &setpointv1.SetVariableRequest{
		SessionId: "s", Variable: name, Value: client.Integer(-1), Lease: lease,
	})
	if e, ok := errors.AsType[*client.Error](err); !ok || e.Reason != setpointv1.ErrorReason_LEASE_LOST {
		r.b.t.Errorf("forged %v: %v", lease, err)
	}
}

func (r *racer) set(name string, lease *setpointv1.Lease) error {
	return r.call(func(ctx context.Context, c *client.Client) error {
		got, err := c.Variables.SetVariable(ctx, &setpointv1.SetVariableRequest{
			SessionId: "s", Variable: name, Value: client.Integer(r.Int64N(1000)), Lease: lease,
		})
		if err == nil {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.writes[got.GetRevision()] = lease.GetOptimizationId()
		}
		return err
	})
}

func (r *racer) start() (*setpointv1.Optimization, error) {
	names := slices.Clone(raceNames)
	r.Shuffle(len(names), func(i, k int) { names[i], names[k] = names[k], names[i] })
	req := &setpointv1.StartOptimizationRequest{
		SessionId: "s", Variables: names[:r.one(1, 1, 1, 2, 2, 3)], Priority: int32(r.IntN(4)),
		Conflict: setpointv1.ConflictStrategy(r.one(1, 2, 2, 2, 3)),
		Ttl:      durationpb.New(time.Duration(r.one(2, 2, 3, 5)) * time.Second), Grace: durationpb.New(time.Second),
	}
	if r.IntN(4) == 0 {
		req.ProgressTimeout = durationpb.New(2 * time.Second)
	}
	if r.IntN(4) == 0 {
		req.MaxWait = durationpb.New(3 * time.Second)
	}
	var o *setpointv1.Optimization
	err := r.call(func(ctx context.Context, c *client.Client) error {
		var err error
		o, err = c.Optimizations.StartOptimization(ctx, req)
		return err
	})
	return o, err
}

// wait waits for the lease, on a stream or by asking; nil if it is not to be had.
func (r *racer) wait(o *setpointv1.Optimization) *setpointv1.Optimization {
	if r.IntN(2) == 0 {
		ctx, cancel := context.WithTimeout(r.b.ctx, time.Second)
		defer cancel()
		stream, err := r.client().Optimizations.AwaitOptimization(ctx, &setpointv1.AwaitOptimizationRequest{
			SessionId: "s", OptimizationId: o.GetOptimizationId(),
		})
		for err == nil {
			if o, err = stream.Recv(); err == nil && o.GetState() != waiting {
				return o
			}
		}
		return nil
	}
	for range r.one(0, 5, 20, 30) {
		if err := r.call(func(ctx context.Context, c *client.Client) error {
			got, err := c.Optimizations.RenewOptimization(ctx, &setpointv1.RenewOptimizationRequest{
				SessionId: "s", OptimizationId: o.GetOptimizationId(),
			})
			if err == nil {
				o = got
			}
			return err
		}); err != nil {
			return nil
		}
		if o.GetState() != waiting {
			return o
		}
	}
	return nil // It dies, and holds up the others until its stay is over.
}

// work does what an optimizer does under its lease, until it has lost it or had enough.
func (r *racer) work(o *setpointv1.Optimization) {
	l := lease(o)
	name := o.GetVariables()[0]
	for range 1 + r.IntN(8) {
		var err error
		switch r.IntN(5) {
		case 0:
			err = r.call(func(ctx context.Context, c *client.Client) error {
				_, err := c.Optimizations.RenewOptimization(ctx, &setpointv1.RenewOptimizationRequest{
					SessionId: "s", OptimizationId: l.GetOptimizationId(), FencingToken: l.GetFencingToken(),
				})
				return err
			})
		case 1:
			err = r.call(func(ctx context.Context, c *client.Client) error {
				_, err := c.Optimizations.ReportProgress(ctx, &setpointv1.ReportProgressRequest{
					SessionId: "s", OptimizationId: l.GetOptimizationId(), FencingToken: l.GetFencingToken(),
					Values: map[string]*setpointv1.Value{name: client.Integer(1)}, Apply: true,
				})
				return err
			})
		default:
			err = r.set(o.GetVariables()[r.IntN(len(o.GetVariables()))], l)
		}
		if err != nil {
			return
		}
	}
	if r.IntN(3) > 0 {
		_ = r.call(func(ctx context.Context, c *client.Client) error {
			_, err := c.Optimizations.StopOptimization(ctx, &setpointv1.StopOptimizationRequest{
				SessionId: "s", OptimizationId: l.GetOptimizationId(), FencingToken: &l.FencingToken,
			})
			return err
		})
	}
}

// race is the life of an optimizer: between its optimizations it writes with what it should not write with.
func (r *racer) race(optimizations int) {
	for range optimizations {
		o, err := r.start()
		if err == nil && o.GetState() == waiting {
			o = r.wait(o)
		}
		name := raceNames[r.IntN(len(raceNames))]
		_ = r.set(name, nil)
		if len(r.old) > 0 {
			had := r.old[r.IntN(len(r.old))]
			_ = r.set(had.GetVariables()[0], lease(had))
		}
		if err != nil || o == nil || o.GetFencingToken() == 0 {
			continue
		}
		r.mu.Lock()
		r.granted[o.GetOptimizationId()] = o.GetFencingToken()
		r.mu.Unlock()
		r.old = append(r.old, o)
		r.forged(o.GetVariables()[0], &setpointv1.Lease{
			OptimizationId: o.GetOptimizationId(), FencingToken: o.GetFencingToken() + 1,
		})
		r.forged(name, &setpointv1.Lease{OptimizationId: noOptimization, FencingToken: o.GetFencingToken()})
		if !slices.Contains(o.GetVariables(), name) {
			r.forged(name, lease(o))
		}
		r.work(o)
	}
}

// raceLog is kept by the database itself: who joined the queue, where, and at which revision of the session.
const raceLog = `
create schema race_log;
create table race_log.joined (optimization_id text, variable_id text, rank bigint, ticket bigint, revision bigint);
create function race_log.join() returns trigger language plpgsql as $$
begin
	insert into race_log.joined select new.optimization_id, new.variable_id, new.rank, new.ticket, s.revision
	from setpoint.sessions s where s.session_id = new.session_id;
	return null;
end $$;
create trigger race_log after insert on setpoint.optimization_waiters for each row execute function race_log.join();`

func TestLeasesUnderARace(t *testing.T) {
	t.Parallel()
	servers := newLeaseServers(t)
	b := servers.b
	b.exec(raceLog)
	for _, name := range raceNames {
		b.integer(name)
	}
	for _, principal := range leasePrincipals {
		b.allow("s", principal)
	}
	race := &leaseRace{leaseServers: servers, writes: map[int64]string{}, granted: map[string]int64{}}
	var wg sync.WaitGroup
	for i := range 8 {
		r := &racer{leaseRace: race, Rand: rand.New(rand.NewPCG(uint64(i), 7))}
		for _, clients := range servers.clients {
			r.clients = append(r.clients, clients[leasePrincipals[i%len(leasePrincipals)]])
		}
		wg.Go(func() { r.race(25) })
	}
	wg.Wait()
	servers.clock.Advance(time.Hour)
	run := &leaseRun{leaseServers: servers, session: "s", release: func() {}}
	run.sweep()
	run.release()
	run.wantWhole(t)
	past := race.past(t)
	past.wantOneHolder(t, race)
	past.wantWholeGrants(t)
	past.wantOrder(t)
	race.wantRefusals(t, past)
	t.Logf("%d calls, %d grants of %d optimizations, %d refused for a lease that was over, %d for another's", race.calls,
		len(race.granted), len(past.records), len(race.lost), len(race.inTheWay))
}

// raceRow is a row of the history.
type raceRow struct {
	revision         int64
	variable, change string
	optimization     string
	at               time.Time
	changesValue     bool
}

// raceRecord is an optimization, as the database kept it.
type raceRecord struct {
	id, state           string
	token, rank, ticket int64
	joined              int64
	variables           []string
	started, ended      time.Time
	// granted is the revision of the first row of its grant, and freed that of the last one of its end; 0 if it had none.
	granted, freed int64
	// stopped: somebody ended it, and not the clock.
	stopped bool
}

type racePast struct {
	rows    []raceRow
	records map[string]*raceRecord
}

// past reads what the database kept.
func (race *leaseRace) past(t *testing.T) *racePast {
	t.Helper()
	b := race.b
	past := &racePast{records: map[string]*raceRecord{}}
	rows, err := b.sql.Query(b.ctx, `select o.optimization_id, o.state, o.fencing_token, min(j.rank), min(j.ticket),
			min(j.revision), array_agg(j.variable_id order by j.variable_id), coalesce(o.started_at, 'epoch'), o.ended_at,
			o.end_reason like 'stopped by%'
		from setpoint.optimizations o join race_log.joined j using (optimization_id)
		group by o.session_id, o.optimization_id`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		o := &raceRecord{}
		if err := rows.Scan(&o.id, &o.state, &o.token, &o.rank, &o.ticket, &o.joined, &o.variables, &o.started, &o.ended,
			&o.stopped); err != nil {
			t.Fatal(err)
		}
		past.records[o.id] = o
	}
	history, err := b.sql.Query(b.ctx, `select h.revision, h.variable_id, h.change, coalesce(h.optimization_id, ''),
			h.changed_at, h.version is not null
		from setpoint.history h where h.session_id = 's' and h.change <> 'registered' order by h.revision`)
	if err != nil {
		t.Fatal(err)
	}
	defer history.Close()
	for history.Next() {
		var r raceRow
		if err := history.Scan(&r.revision, &r.variable, &r.change, &r.optimization, &r.at, &r.changesValue); err != nil {
			t.Fatal(err)
		}
		switch o := past.records[r.optimization]; {
		case r.change == "lease_granted" && o.granted == 0:
			o.granted = r.revision
		case r.change == "lease_ended":
			o.freed = r.revision
		}
		past.rows = append(past.rows, r)
	}
	if err := errors.Join(rows.Err(), history.Err()); err != nil {
		t.Fatal(err)
	}
	return past
}

// wantOneHolder walks the history: one holder at a time, greater and greater tokens, and no write but under the lease
// that holds, or under none while none does.
func (p *racePast) wantOneHolder(t *testing.T, race *leaseRace) {
	t.Helper()
	holders := map[string]*raceRecord{} // The latest, by variable.
	holding := map[string]bool{}
	for _, row := range p.rows {
		holder, o := holders[row.variable], p.records[row.optimization]
		switch {
		case row.change == "lease_granted":
			if holding[row.variable] || holder != nil && (holder.token >= o.token || holder.ended.After(o.started)) {
				t.Errorf("revision %d: granted to %+v after %+v", row.revision, o, holder)
			}
			holders[row.variable], holding[row.variable] = o, true
		case strings.HasPrefix(row.change, "lease_"):
			if !holding[row.variable] || holder != o {
				t.Errorf("revision %d: %s of %+v, but the holder is %+v", row.revision, row.change, o, holder)
			}
			holding[row.variable] = row.change != "lease_ended"
		case o == nil && holding[row.variable] && (holder.stopped || row.at.Before(holder.ended)):
			t.Errorf("revision %d: written without the lease of %+v", row.revision, holder)
		case o != nil && (!holding[row.variable] || holder != o || !o.stopped && !row.at.Before(o.ended)):
			t.Errorf("revision %d at %s: written under the lease of %+v, but the holder is %+v", row.revision, row.at, o, holder)
		}
		if under, ok := race.writes[row.revision]; ok && (under != row.optimization || !row.changesValue) {
			t.Errorf("revision %d is of %q, but was answered to %q", row.revision, row.optimization, under)
		}
	}
	for id, token := range race.granted {
		if o := p.records[id]; o == nil || o.token != token || o.granted == 0 {
			t.Errorf("%s was told of token %d, but is %+v", id, token, o)
		}
	}
}

// wantWholeGrants sees that each grant was one of all variables, row upon row, and its end too.
func (p *racePast) wantWholeGrants(t *testing.T) {
	t.Helper()
	for _, change := range []string{"lease_granted", "lease_ended"} {
		got, last := map[string][]string{}, map[string]int64{}
		for _, row := range p.rows {
			if row.change != change {
				continue
			}
			if at, begun := last[row.optimization]; begun && at != row.revision-1 {
				t.Errorf("%s of %s at revision %d and then at %d", change, row.optimization, at, row.revision)
			}
			last[row.optimization] = row.revision
			got[row.optimization] = append(got[row.optimization], row.variable)
		}
		for id, o := range p.records {
			if o.granted > 0 && !slices.Equal(got[id], o.variables) || o.granted == 0 && len(got[id]) > 0 {
				t.Errorf("%s of %v, but %s wants %v", change, got[id], id, o.variables)
			}
		}
	}
}

// wantOrder sees that nobody was granted a variable before somebody who was waiting for it in front of him.
func (p *racePast) wantOrder(t *testing.T) {
	t.Helper()
	for _, o := range p.records {
		for _, q := range p.records {
			before := q.rank < o.rank || q.rank == o.rank && q.ticket < o.ticket
			waited := q.joined < o.granted && (q.granted == 0 || q.granted > o.granted) && q.ended.After(o.started)
			shared := slices.ContainsFunc(q.variables, func(v string) bool { return slices.Contains(o.variables, v) })
			if o.granted > 0 && before && waited && shared {
				t.Errorf("%+v was granted before %+v", o, q)
			}
		}
	}
}

// wantRefusals sees that what was refused had to be.
func (race *leaseRace) wantRefusals(t *testing.T, p *racePast) {
	t.Helper()
	for _, refusal := range race.lost {
		if o := p.records[refusal.optimization]; o == nil || o.ended.After(refusal.after) {
			t.Errorf("refused as over before %s: %+v", refusal.after, o)
		}
	}
	for _, refusal := range race.inTheWay {
		o := p.records[refusal.optimization]
		// A stop has the time at which it looked, and is there for others when it is committed.
		gone := o != nil && o.stopped && o.freed > 0 && o.freed <= refusal.revision
		if o == nil || gone || !o.stopped && o.ended.Before(refusal.before) {
			t.Errorf("in the way after revision %d, %s: %+v", refusal.revision, refusal.before, o)
		}
	}
	if len(race.granted) < 10 || len(race.lost) < 10 || len(race.inTheWay) < 10 {
		t.Errorf("hardly a race: %s", fmt.Sprint(len(race.granted), len(race.lost), len(race.inTheWay)))
	}
}
