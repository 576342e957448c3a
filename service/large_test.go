package service_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/setpointdb/setpoint/client"
	"github.com/setpointdb/setpoint/db"
	"github.com/setpointdb/setpoint/db/dbgen"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// largeVariables is as many as a session may have.
const largeVariables = 100_000

// fillLarge gives the session "s" its variables, of three types in turn, each at version 1.
func fillLarge(t *testing.T, exec func(sql string, args ...any)) {
	t.Helper()
	exec(`insert into setpoint.variables (session_id, variable_id, name, type, value, value_bytes, version, revision,
			definition_revision, created_at, updated_at, updated_by)
		select 's', 'var_' || lpad(i::text, 26, '0'), (array['alpha.', 'beta.', 'gamma.'])[1 + i % 3] || lpad(i::text, 6, '0'),
			(array['integer', 'float', 'string'])[1 + i / 3 % 3], case when i / 3 % 3 = 2 then '"x"'::jsonb else '1'::jsonb end,
			1, 1, $1::bigint + i, i, clock_timestamp(), clock_timestamp(), 'user:a'
		from generate_series(1, $1::bigint) i`, largeVariables)
	exec(`insert into setpoint.history (session_id, revision, variable_id, name, type, change, version, value, value_bytes,
			changed_by, changed_at)
		select 's', v.version * $1::bigint + x.definition_revision, x.variable_id, x.name, x.type, 'set', v.version, x.value, 1,
			'user:a', x.created_at
		from setpoint.variables x, (values (0::bigint), (1)) v (version)
		where x.session_id = 's' and x.variable_id like 'var_000%'`, largeVariables)
	exec(`update setpoint.sessions set revision = 2 * $1::bigint, variable_count = $1::bigint where session_id = 's'`, largeVariables)
}

// explained is what a plan of PostgreSQL's tells of itself.
type explained struct {
	Plan planNode `json:"Plan"`
}

type planNode struct {
	Hit   int64      `json:"Shared Hit Blocks"`
	Read  int64      `json:"Shared Read Blocks"`
	Rows  float64    `json:"Actual Rows"`
	Loops float64    `json:"Actual Loops"`
	Plans []planNode `json:"Plans"`
}

// mostRows is the most rows that a node of the plan made.
func (n planNode) mostRows() float64 {
	most := n.Rows * n.Loops
	for _, child := range n.Plans {
		most = math.Max(most, child.mostRows())
	}
	return most
}

// explainer is a dbgen.DBTX that runs statements explained: it notes the blocks and rows that they took.
type explainer struct {
	pgx.Tx
	t      *testing.T
	blocks int64
	rows   float64
}

func (e *explainer) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	e.t.Helper()
	var plans []byte
	err := e.QueryRow(ctx, "explain (analyze, timing off, buffers, format json) "+sql, args...).Scan(&plans)
	if err != nil {
		return nil, err
	}
	var all []explained
	if err := json.Unmarshal(plans, &all); err != nil {
		return nil, err
	}
	e.blocks, e.rows = all[0].Plan.Hit+all[0].Plan.Read, all[0].Plan.mostRows()
	return e.Tx.Query(ctx, sql, args...)
}

// pageCost is what one page took.
type pageCost struct {
	blocks int64
	rows   float64
}

// Pages cost the same from the first to the last, with each filter, in a session as large as one may be.
func TestPagesOfALargeSession(t *testing.T) {
	t.Parallel()
	b := setup(t)
	fillLarge(t, b.exec)
	b.exec(`analyze setpoint.variables, setpoint.history`)
	tx, err := b.sql.Begin(b.ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(b.ctx) }()
	settings := maps.Clone(db.ReadSettings)
	settings["jit"] = "off"
	for name, value := range settings {
		if _, err := tx.Exec(b.ctx, `select set_config($1, $2, true)`, name, value); err != nil {
			t.Fatal(err)
		}
	}
	explain := &explainer{Tx: tx, t: t}
	q := dbgen.New(explain)
	b.allow("s", "user:ada")
	var who pageCaller
	list := func(pattern, prefix string, types ...string) func(after string) (string, int) {
		return func(after string) (string, int) {
			lo := prefix
			if after != "" {
				lo = after + "\x01"
			}
			if types == nil {
				types = []string{}
			}
			rows, err := q.VariableList(b.ctx, dbgen.VariableListParams{
				SessionID: "s", Principal: who.principal, Authority: who.authority, Lo: lo, Hi: prefix + "\U0010FFFF", Pattern: pattern, Types: types, RowLimit: 1001, MaxBytes: 8 << 20,
			})
			if err != nil {
				t.Fatal(err)
			}
			if len(rows) <= 1000 {
				return "", len(rows)
			}
			return rows[999].Name, 1000
		}
	}
	snapshot := func(at int64) func(after string) (string, int) {
		return func(after string) (string, int) {
			rows, err := q.SnapshotPage(b.ctx, dbgen.SnapshotPageParams{
				SessionID: "s", Principal: who.principal, Authority: who.authority, At: &at, After: after, RowLimit: 1001, MaxBytes: 8 << 20,
			})
			if err != nil {
				t.Fatal(err)
			}
			if len(rows) <= 1000 {
				return "", len(rows)
			}
			return rows[999].VariableID, 1000
		}
	}
	for name, test := range map[string]struct {
		page func(after string) (string, int)
		want int
	}{
		"all":                      {list("%", ""), largeVariables},
		"a prefix":                 {list("beta.%", "beta."), 33334},
		"a type":                   {list("%", "", "float"), 33333},
		"an ending":                {list("%5", ""), largeVariables / 10},
		"a prefix and a type":      {list("beta.%", "beta.", "string"), 11111},
		"a snapshot of the latest": {snapshot(2 * largeVariables), largeVariables},
		"a snapshot of before":     {snapshot(largeVariables), largeVariables},
	} {
		for _, one := range []pageCaller{{"a server admin", "user:root", 63}, {"a caller with a rule", "user:ada", 31}} {
			if who = one; one.authority == 31 && name != "a type" && name != "a snapshot of before" {
				continue // Two will do.
			}
			wantEvenPages(t, name+", of "+one.what, explain, test.page, test.want)
		}
	}
	// Who may read three of all the variables is shown them without a look at the others.
	if _, err := tx.Exec(b.ctx, `insert into setpoint.access_rules
			(session_id, rule_id, variable_id, subject, permissions, reach, allows, priority, granted_by, granted_at, revision)
		select 's', 'rule_' || variable_id, variable_id, 'user:eve', 1, 1, true, 0, 'user:a', clock_timestamp(), 0
		from setpoint.variables where name in ('alpha.000003', 'beta.077776', 'gamma.099998')`); err != nil {
		t.Fatal(err)
	}
	who = pageCaller{principal: "user:eve", authority: 31}
	if next, n := list("%", "")(""); next != "" || n != 3 || explain.blocks > 200 || explain.rows > 100 {
		t.Errorf("of three that may be read: %d, then %q, with %d blocks and %.0f rows", n, next, explain.blocks, explain.rows)
	}
}

// pageCaller is who asks for pages.
type pageCaller struct {
	what, principal string
	authority       int32
}

func wantEvenPages(t *testing.T, name string, explain *explainer, page func(after string) (string, int), want int) {
	t.Helper()
	var costs []pageCost
	total := 0
	for after := ""; ; {
		next, n := page(after)
		total += n
		costs = append(costs, pageCost{explain.blocks, explain.rows})
		if after = next; after == "" {
			break
		}
	}
	if total != want {
		t.Errorf("%s: %d variables on %d pages, want %d", name, total, len(costs), want)
	}
	first := costs[0]
	for i, c := range costs {
		if float64(c.blocks) > 1.5*float64(first.blocks)+100 || c.rows > 1.5*first.rows+100 {
			t.Errorf("%s: page %d of %d took %d blocks and %.0f rows, the first %d and %.0f", name, i+1, len(costs), c.blocks,
				c.rows, first.blocks, first.rows)
		}
	}
	last := costs[len(costs)-1]
	t.Logf("%s: %d pages; blocks and rows of the first: %d, %.0f; of the last: %d, %.0f", name, len(costs), first.blocks,
		first.rows, last.blocks, last.rows)
}

// A rollback of a session takes as many statements with 100,000 variables as with a few, and so does a page of a snapshot.
func TestRollbackOfALargeSession(t *testing.T) {
	t.Parallel()
	m := measure(t)
	conn, err := pgx.Connect(m.ctx, m.url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(m.ctx) })
	roll := func(to int64) (int64, int) {
		m.awake(t)
		var response *setpointv1.RollbackSessionResponse
		_, statements := m.cost(t, func() error {
			var err error
			response, err = m.RollbackSession(m.ctx, &setpointv1.RollbackSessionRequest{
				SessionId: "s", To: &setpointv1.RollbackSessionRequest_Revision{Revision: to}, RequestId: fmt.Sprint("to ", to),
			})
			return err
		})
		return statements, len(response.GetRestored())
	}
	few, _ := roll(0)
	fillLarge(t, func(sql string, args ...any) {
		if _, err := conn.Exec(m.ctx, sql, args...); err != nil {
			t.Fatal(err)
		}
	})
	ctx, cancel := context.WithTimeout(m.ctx, time.Minute)
	defer cancel()
	m.ctx = ctx // To fail, and not to wait, if it does not scale.
	many, restored := roll(largeVariables)
	if restored != largeVariables {
		t.Errorf("%d variables were restored, want all %d", restored, largeVariables)
	}
	if few != many {
		t.Errorf("%d statements for an empty session, %d for a large one", few, many)
	}
	pages, seen := 0, 0
	req := &setpointv1.GetSnapshotRequest{SessionId: "s", PageSize: 1000}
	for {
		var page *setpointv1.GetSnapshotResponse
		_, statements := m.cost(t, func() error {
			var err error
			page, err = m.GetSnapshot(m.ctx, req)
			return err
		})
		if statements != 1 {
			t.Errorf("a page of a snapshot took %d statements", statements)
		}
		pages++
		seen += len(page.GetVariables())
		for _, v := range page.GetVariables() {
			if v.GetVersion() != 2 {
				t.Fatalf("%s is at version %d", v.GetName(), v.GetVersion())
			}
		}
		if req.PageToken = page.GetNextPageToken(); req.PageToken == "" {
			break
		}
	}
	if pages != largeVariables/1000 || seen != largeVariables {
		t.Errorf("the snapshot has %d variables on %d pages", seen, pages)
	}
}

// plannerBeliefs are what statistics may be like when the server first needs a plan.
var plannerBeliefs = map[string]func(b *bundle){
	"no statistics":   func(*bundle) {},
	"of empty tables": func(b *bundle) { b.exec(`analyze`) },
	"of one small one": func(b *bundle) {
		b.session("other")
		if _, err := b.Variables.RegisterVariable(b.ctx, &setpointv1.RegisterVariableRequest{
			SessionId: "other", Name: "only", Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Value: client.Integer(0),
		}); err != nil {
			b.t.Fatal(err)
		}
		b.exec(`analyze`)
	},
	"of many small sessions": func(b *bundle) {
		b.exec(`insert into setpoint.sessions (session_id, owner, ttl_us, expires_at, changed_at, created_at)
			select 'small' || i, 'user:a', 0, 'infinity', clock_timestamp(), clock_timestamp() from generate_series(1, 20000) i`)
		b.exec(`insert into setpoint.variables (session_id, variable_id, name, type, value, value_bytes, revision,
				definition_revision, created_at, updated_at, updated_by)
			select 'small' || i, 'var_only', 'only', 'integer', '1', 1, 1, 1, clock_timestamp(), clock_timestamp(), 'user:a'
			from generate_series(1, 20000) i`)
		b.exec(`insert into setpoint.history (session_id, revision, variable_id, name, type, change, version, value, changed_by,
				changed_at) select 'small' || i, 1, 'var_only', 'only', 'integer', 'registered', 0, '1', 'user:a', clock_timestamp()
			from generate_series(1, 20000) i`)
		b.exec(`analyze`)
	},
}

// Whatever the planner believes of the tables, what touches a few variables of a large session reads few rows. The plans of
// writes are generic, and made when the server first needs them: before there are statistics, from those of empty tables, or
// from those of many small sessions. One that reads the whole session for each item takes minutes, and is OVERLOADED.
func TestLargeSessionWhateverThePlannerBelieves(t *testing.T) {
	t.Parallel()
	for name, prepare := range plannerBeliefs {
		t.Run(name, func(t *testing.T) {
			b := setup(t)
			b.exec(`alter table setpoint.variables set (autovacuum_enabled = off)`)
			b.exec(`alter table setpoint.history set (autovacuum_enabled = off)`)
			prepare(b)
			fillLarge(t, b.exec)
			write := &setpointv1.BatchSetVariablesRequest{SessionId: "s", Atomic: true, RequestId: "r"}
			var variables []string
			for i := 1; i <= 1000; i++ {
				variable := fmt.Sprintf("var_%026d", i*99)
				if i%2 == 0 {
					variable = fmt.Sprintf("%s.%06d", []string{"alpha", "beta", "gamma"}[i*99%3], i*99)
				}
				variables = append(variables, variable)
				v := client.Integer(1)
				if i*99/3%3 == 2 {
					v = client.String("y")
				}
				write.Writes = append(write.Writes, &setpointv1.VariableWrite{Variable: variable, Value: v})
			}
			if _, err := b.Variables.BatchSetVariables(b.ctx, write); err != nil {
				t.Errorf("set 1,000 of 100,000: %v", err)
			}
			got, err := b.Variables.BatchGetVariables(b.ctx, &setpointv1.BatchGetVariablesRequest{SessionId: "s", Variables: variables})
			if err != nil || len(got.GetVariables()) != 1000 {
				t.Errorf("get 1,000 of 100,000: %d, %v", len(got.GetVariables()), err)
			}
			if _, err := b.Variables.DeleteVariable(b.ctx, &setpointv1.DeleteVariableRequest{SessionId: "s", Variable: variables[0]}); err != nil {
				t.Errorf("delete one of 100,000: %v", err)
			}
		})
	}
}
