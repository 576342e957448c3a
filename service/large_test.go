package service_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"testing"

	"github.com/jackc/pgx/v5"

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
		from setpoint.variables x, (values (0::bigint), (1)) v (version)`, largeVariables)
	exec(`update setpoint.sessions set revision = 2 * $1::bigint, variable_count = $1::bigint where session_id = 's'`, largeVariables)
	exec(`analyze setpoint.variables, setpoint.history`)
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
	err := e.QueryRow(ctx, "explain (analyze, buffers, format json) "+sql, args...).Scan(&plans)
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
	tx, err := b.sql.Begin(b.ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(b.ctx) }()
	for name, value := range db.ReadSettings {
		if _, err := tx.Exec(b.ctx, `select set_config($1, $2, true)`, name, value); err != nil {
			t.Fatal(err)
		}
	}
	explain := &explainer{Tx: tx, t: t}
	q := dbgen.New(explain)
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
				SessionID: "s", Lo: lo, Hi: prefix + "\U0010FFFF", Pattern: pattern, Types: types, RowLimit: 1001, MaxBytes: 8 << 20,
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
				SessionID: "s", At: &at, After: after, RowLimit: 1001, MaxBytes: 8 << 20,
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
		var costs []pageCost
		total := 0
		for after := ""; ; {
			next, n := test.page(after)
			total += n
			costs = append(costs, pageCost{explain.blocks, explain.rows})
			if after = next; after == "" {
				break
			}
		}
		if total != test.want {
			t.Errorf("%s: %d variables on %d pages, want %d", name, total, len(costs), test.want)
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
