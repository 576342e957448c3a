package service_test

import (
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5/pgtype"

	"github.com/setpointdb/setpoint/db/dbgen"
)

const (
	// largeEnded and largeWaiting are how many optimizations of a large session have ended, and wait.
	largeEnded   = 50_000
	largeWaiting = 1_000
	// holds, comesNext and comesLast are the one with the lease of the first three variables, which all others wait for, and two
	// of those; isAlone waits for another, which nobody has; preempts waits in front of all.
	holds     = "opt_z0000000000000000000000000"
	comesNext = "opt_w0000000000000000000000001"
	comesLast = "opt_w0000000000000000000001000"
	isAlone   = "opt_x0000000000000000000000000"
	isUrgent  = "opt_y0000000000000000000000000"
)

// fillLeases gives the session "s" 100,000 variables, ended optimizations of them, a tenth of those of the first, and a queue
// for that, a tenth of which waits for two more.
func fillLeases(b *bundle) {
	b.exec(`insert into setpoint.variables (session_id, variable_id, name, type, value, value_bytes, version, revision,
			definition_revision, created_at, updated_at, updated_by)
		select 's', 'var_' || lpad(i::text, 26, '0'), 'v' || lpad(i::text, 6, '0'), 'integer', '1'::jsonb, 1, 1, i, i,
			clock_timestamp(), clock_timestamp(), 'user:a'
		from generate_series(1, $1::bigint) i`, largeVariables)
	insert := `insert into setpoint.optimizations (session_id, optimization_id, created_revision, state, optimizer_id,
			optimizer_process, variables, conflict, priority, ttl_us, started_by, requested_at, fencing_token, started_at,
			renewed_until, ended_at)
		select 's', x.id, (select created_revision from setpoint.sessions where session_id = 's'), x.state, 'a', '', '{v}', 'wait',
			x.priority, 60000000, 'anonymous', clock_timestamp(), x.token, case when x.token > 0 then clock_timestamp() end,
			clock_timestamp() + interval '1 hour', x.ended_at from `
	b.exec(insert+`(select 'opt_a' || lpad(i::text, 25, '0') as id, case when i % 100 = 0 then 'failed' else 'completed' end as state,
			0 as priority, i as token, clock_timestamp() as ended_at from generate_series(1, $1::bigint) i) x`, largeEnded)
	b.exec(insert+`(select 'opt_w' || lpad(i::text, 25, '0') as id, 'waiting' as state, 0 as priority, 0 as token,
			null::timestamptz as ended_at from generate_series(1, $1::bigint) i) x`, largeWaiting)
	b.exec(insert+`(values ($1, 'active', 0, 100000, null::timestamptz), ($2, 'waiting', 0, 0, null), ($3, 'waiting', 9, 0, null))
		x (id, state, priority, token, ended_at)`, holds, isAlone, isUrgent)
	of := `insert into setpoint.optimization_variables (session_id, optimization_id, variable_id, name, type)
		select 's', x.id, 'var_' || lpad(x.v::text, 26, '0'), 'v' || lpad(x.v::text, 6, '0'), 'integer' from `
	b.exec(of+`(select 'opt_a' || lpad(i::text, 25, '0'), case when i % 10 = 0 then 1 else i end from generate_series(1, $1::bigint) i)
		x (id, v)`, largeEnded)
	b.exec(of+`(select 'opt_w' || lpad(i::text, 25, '0'), v from generate_series(1, $1::bigint) i, generate_series(1, 3) v
		where v = 1 or i % 10 = 0) x (id, v)`, largeWaiting)
	b.exec(of+`(values ($1, 1), ($1, 2), ($1, 3), ($2, 77777), ($3, 2)) x (id, v)`, holds, isAlone, isUrgent)
	b.exec(`insert into setpoint.optimization_waiters (session_id, optimization_id, variable_id, rank, ticket)
		select 's', o.optimization_id, x.variable_id, case when o.priority > 0 then -10 else 0 end,
			row_number() over (order by o.optimization_id)
		from setpoint.optimizations o
		join setpoint.optimization_variables x on x.session_id = o.session_id and x.optimization_id = o.optimization_id
		where o.session_id = 's' and o.state = 'waiting'`)
	b.exec(`update setpoint.optimization_waiters w set ticket = 1 + right(w.optimization_id, 4)::bigint where session_id = 's'`)
	b.exec(`update setpoint.variables set optimization_id = $1, fencing_token = 100000, lease_optimizer_id = 'a',
			lease_started_at = clock_timestamp(), lease_expires_at = clock_timestamp() + interval '1 hour'
		where session_id = 's' and name in ('v000001', 'v000002', 'v000003')`, holds)
}

// Whatever the planner believes, what is done with a lease costs the same in a session that is as large as one may be and has
// had many, and no more than in proportion to those that are open.
func TestLeasesOfALargeSession(t *testing.T) {
	t.Parallel()
	eachBelief(t, func(*bundle) {}, fillLeases, leaseBattery)
}

func leaseBattery(b *bundle, p *planned) {
	// Open ones may each be looked at a few times.
	const (
		open       = largeWaiting + 3
		openBlocks = 6 * open
	)
	now := pgtype.Timestamptz{}
	id := func(i int) string { return fmt.Sprintf("var_%026d", i) }
	var some []string
	for i := range 100 {
		some = append(some, []string{id(1 + i*777), fmt.Sprintf("v%06d", 1+i*777)}[i%2])
	}
	ask := func(q *dbgen.Queries) error {
		_, err := q.OptimizationAsk(b.ctx, dbgen.OptimizationAskParams{SessionID: "s", Variables: some, Now: now})
		return err
	}
	p.read("ask for 100", 30*100, 2*open, ask)
	p.write("ask for 100", 30*100, 2*open, ask)
	p.write("add", openBlocks, 2*open, func(q *dbgen.Queries) error {
		_, err := q.OptimizationAdd(b.ctx, dbgen.OptimizationAddParams{
			SessionID: "s", OptimizationID: "opt_zz", RowLimit: 10_001, TTLMicros: 60_000_000, VariableIds: []string{id(1), id(5)},
			Names: []string{"v000001", "v000005"}, Types: []string{"integer", "integer"}, Conflict: "wait", Principal: "anonymous",
		})
		return err
	})
	for what, optimization := range map[string]string{
		"the next": comesNext, "the last": comesLast, "one that is alone": isAlone, "an urgent one": isUrgent,
	} {
		p.write("grant to "+what, 300, 20, func(q *dbgen.Queries) error {
			_, err := q.OptimizationGrant(b.ctx, dbgen.OptimizationGrantParams{SessionID: "s", OptimizationID: optimization})
			return err
		})
		get := func(q *dbgen.Queries) error {
			_, err := q.OptimizationGet(b.ctx, dbgen.OptimizationGetParams{SessionID: "s", Authority: 63, OptimizationID: optimization})
			return err
		}
		p.read("get "+what, 4*openBlocks, 4*open, get)
		p.write("get "+what, 4*openBlocks, 4*open, get)
		p.read("the place of "+what, 4*openBlocks, 4*open, func(q *dbgen.Queries) error {
			_, err := q.OptimizationQueue(b.ctx, dbgen.OptimizationQueueParams{
				SessionIds: []string{"s"}, OptimizationIds: []string{optimization},
			})
			return err
		})
	}
	var sessions, ids []string
	for i := 1; i <= largeWaiting; i++ {
		sessions, ids = append(sessions, "s"), append(ids, fmt.Sprintf("opt_w%025d", i))
	}
	p.read("all places", 4*openBlocks, 10*open, func(q *dbgen.Queries) error {
		_, err := q.OptimizationQueue(b.ctx, dbgen.OptimizationQueueParams{SessionIds: sessions, OptimizationIds: ids})
		return err
	})
	p.write("stay of all", 12*openBlocks, 2*open, func(q *dbgen.Queries) error {
		_, err := q.OptimizationStay(b.ctx, dbgen.OptimizationStayParams{SessionID: "s", OptimizationIds: ids})
		return err
	})
	p.write("preempt", 300, 20, func(q *dbgen.Queries) error {
		_, err := q.OptimizationPreempt(b.ctx, dbgen.OptimizationPreemptParams{
			SessionID: "s", OptimizationID: isUrgent, GraceUs: 1, Principal: "anonymous",
		})
		return err
	})
	p.write("keep", openBlocks, 2*open, func(q *dbgen.Queries) error {
		_, err := q.OptimizationKeep(b.ctx, dbgen.OptimizationKeepParams{SessionID: "s", Principal: "anonymous"})
		return err
	})
	for what, optimization := range map[string]string{
		"what is over": "", "the holder": holds, "the last": comesLast,
	} {
		p.write("end "+what, openBlocks, 2*open, func(q *dbgen.Queries) error {
			_, err := q.OptimizationEnd(b.ctx, dbgen.OptimizationEndParams{
				SessionID: "s", OptimizationID: optimization, State: "cancelled", Principal: "anonymous",
			})
			return err
		})
	}
	p.write("renew", 300, 20, func(q *dbgen.Queries) error {
		_, err := q.OptimizationRenew(b.ctx, dbgen.OptimizationRenewParams{
			SessionID: "s", Authority: 63, OptimizationID: holds, FencingToken: 100_000, Principal: "anonymous",
		})
		return err
	})
	p.write("report", 300, 20, func(q *dbgen.Queries) error {
		_, err := q.OptimizationReport(b.ctx, dbgen.OptimizationReportParams{
			SessionID: "s", OptimizationID: holds, Step: -1, MetricNames: []string{"loss"}, MetricValues: []float64{1},
			Vals: []byte(`{}`), Metrics: []byte(`{}`), Principal: "anonymous",
		})
		return err
	})
	p.write("which hold", 100, 20, func(q *dbgen.Queries) error {
		_, err := q.OptimizationHeld(b.ctx, dbgen.OptimizationHeldParams{
			SessionID: "s", OptimizationIds: []string{holds}, FencingTokens: []int64{100_000},
		})
		return err
	})
	p.write("the variables", 100, 20, func(q *dbgen.Queries) error {
		_, err := q.OptimizationVariables(b.ctx, dbgen.OptimizationVariablesParams{SessionID: "s", OptimizationID: holds})
		return err
	})
	p.read("who has a variable", openBlocks, 2*open, func(q *dbgen.Queries) error {
		_, err := q.OptimizationOf(b.ctx, dbgen.OptimizationOfParams{SessionID: "s", Variable: "v000001"})
		return err
	})
	const pageBlocks, pageRows = 30*largePage + openBlocks, 2 * open
	for what, list := range map[string]dbgen.OptimizationListParams{
		"all":                         {Before: "opt_~"},
		"all, in the middle":          {Before: "opt_a0000000000000000000025000"},
		"of a variable":               {Before: "opt_~", VariableID: id(4711)},
		"of a variable of many":       {Before: "opt_b", VariableID: id(1)},
		"of a variable of none":       {Before: "opt_~", VariableID: id(88888)},
		"active":                      {Before: "opt_~", States: []string{"active"}},
		"open, before the ended ones": {Before: "opt_b", States: []string{"waiting", "active", "preempting"}},
		"completed":                   {Before: "opt_b", States: []string{"completed"}},
	} {
		list.Authority = 63
		list.SessionID, list.RowLimit, list.MaxBytes = "s", largePage, 8<<20
		if list.States == nil {
			list.States = []string{}
		}
		p.read("list "+what, pageBlocks, pageRows, func(q *dbgen.Queries) error {
			_, err := q.OptimizationList(b.ctx, list)
			return err
		})
	}
	p.write("sessions with leases that are over", 15*openBlocks, 30*open, func(q *dbgen.Queries) error {
		_, err := q.SweepLeases(b.ctx, dbgen.SweepLeasesParams{RowLimit: 100})
		return err
	})
}
