package service_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/setpointdb/setpoint/db"
	"github.com/setpointdb/setpoint/db/dbgen"
)

// beliefs are what the planner knows of the tables when it makes a plan that is then used for ever: a server plans a statement
// when it first needs it, and again only after the tables were analyzed.
var beliefs = map[string]struct {
	// before prepares the tables; early: the plans are made then, and not when the tables are full; after follows the filling.
	before func(b *bundle)
	early  bool
	after  func(b *bundle)
}{
	"fresh statistics":               {after: analyze},
	"no statistics":                  {},
	"plans of empty tables":          {early: true},
	"plans of analyzed empty tables": {before: analyze, early: true},
	"plans of many small ones":       {before: fillSmall, early: true},
	"statistics of many small ones":  {before: fillSmall},
}

func analyze(b *bundle) { b.exec(`analyze`) }

// fillSmall has 20,000 sessions with one optimization of one variable and one trial each.
func fillSmall(b *bundle) {
	b.exec(`insert into setpoint.sessions (session_id, owner, ttl_us, expires_at, changed_at, created_at)
		select 'small' || i, 'user:a', 0, 'infinity', clock_timestamp(), clock_timestamp() from generate_series(1, 20000) i`)
	b.exec(`insert into setpoint.variables (session_id, variable_id, name, type, value, value_bytes, revision,
			definition_revision, created_at, updated_at, updated_by)
		select 'small' || i, 'var_only', 'only', 'integer', '1', 1, 1, 1, clock_timestamp(), clock_timestamp(), 'user:a'
		from generate_series(1, 20000) i`)
	b.exec(`insert into setpoint.optimizations (session_id, optimization_id, created_revision, state, optimizer_id,
			optimizer_process, variables, conflict, priority, ttl_us, started_by, requested_at, renewed_until, ended_at)
		select 'small' || i, 'opt_' || lpad(i::text, 26, '0'), 0, case when i % 2 = 0 then 'waiting' else 'cancelled' end, 'a', '',
			'{only}', 'wait', 0, 60000000, 'user:a', clock_timestamp(), 'infinity', case when i % 2 = 1 then clock_timestamp() end
		from generate_series(1, 20000) i`)
	b.exec(`insert into setpoint.optimization_variables (session_id, optimization_id, variable_id, name, type)
		select 'small' || i, 'opt_' || lpad(i::text, 26, '0'), 'var_only', 'only', 'integer' from generate_series(1, 20000) i`)
	b.exec(`insert into setpoint.optimization_waiters (session_id, optimization_id, variable_id, rank, ticket)
		select 'small' || i, 'opt_' || lpad(i::text, 26, '0'), 'var_only', 0, 1 from generate_series(2, 20000, 2) i`)
	b.exec(`insert into setpoint.trials (session_id, optimization_id, number, step, vals, metrics, bytes, note, applied,
			late, reported_by, reported_at)
		select 'small' || i, 'opt_' || lpad(i::text, 26, '0'), 1, -1, '{}', '{"loss": 1}', 20, '', false, false, 'user:a',
			clock_timestamp()
		from generate_series(1, 20000) i`)
	b.exec(`insert into setpoint.trial_metrics (session_id, optimization_id, metric, value, number)
		select 'small' || i, 'opt_' || lpad(i::text, 26, '0'), 'loss', i, 1 from generate_series(1, 20000) i`)
	b.exec(`analyze`)
}

var leaseTables = []string{
	"sessions", "variables", "optimizations", "optimization_variables", "optimization_waiters", "trials", "trial_metrics",
}

// eachBelief runs the battery for each of the beliefs but those to skip, on a database that open begins and fill makes large.
func eachBelief(t *testing.T, open, fill func(b *bundle), battery func(b *bundle, p *planned), skip ...string) {
	t.Helper()
	for name, belief := range beliefs {
		if slices.Contains(skip, name) {
			continue
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
			defer cancel()
			b.ctx = ctx
			for _, table := range leaseTables {
				b.exec(`alter table setpoint.` + table + ` set (autovacuum_enabled = off)`)
			}
			open(b)
			if belief.before != nil {
				belief.before(b)
			}
			p := newPlanned(b)
			if belief.early {
				p.quiet = true
				battery(b, p)
				p.quiet = false
			}
			fill(b)
			if belief.after != nil {
				belief.after(b)
			}
			battery(b, p)
		})
	}
}

// planned runs statements on two connections, with the settings of the pools for writes and for reads, and tells what each
// took by the plan that those pools would use: the generic one, made when the statement is first run.
type planned struct {
	t      *testing.T
	ctx    context.Context
	writes *db.DB
	reads  *pgx.Conn
	names  map[*pgx.Conn]map[string]string
	// quiet: nothing is checked; the plans are made.
	quiet bool
}

func newPlanned(b *bundle) *planned {
	b.t.Helper()
	p := &planned{t: b.t, ctx: b.ctx, names: map[*pgx.Conn]map[string]string{}}
	var err error
	if p.writes, err = db.Open(b.ctx, db.Config{URL: b.url, MaxConns: 1, Timeout: time.Minute}); err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(p.writes.Close)
	config, err := pgx.ParseConfig(b.url)
	if err != nil {
		b.t.Fatal(err)
	}
	for name, value := range db.ReadSettings {
		config.RuntimeParams[name] = value
	}
	config.RuntimeParams["jit"] = "off"
	if p.reads, err = pgx.ConnectConfig(b.ctx, config); err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = p.reads.Close(context.WithoutCancel(b.ctx)) })
	return p
}

var errUndo = errors.New("to be undone")

// read runs one statement as the pool for reads does, and fails the test if it took more than that.
func (p *planned) read(what string, mostBlocks int64, mostRows float64, run func(q *dbgen.Queries) error) {
	p.t.Helper()
	tx, err := p.reads.Begin(p.ctx)
	if err != nil {
		p.t.Fatal(err)
	}
	x := &planExplainer{p: p, conn: p.reads}
	err = run(dbgen.New(x))
	if rollbackErr := tx.Rollback(p.ctx); rollbackErr != nil {
		p.t.Fatal(rollbackErr)
	}
	p.check("read", what, x, mostBlocks, mostRows, err)
}

// write is read on the pool for writes. What was written is undone.
func (p *planned) write(what string, mostBlocks int64, mostRows float64, run func(q *dbgen.Queries) error) {
	p.t.Helper()
	var x *planExplainer
	var failed error
	err := p.writes.InTx(p.ctx, what, func(_ context.Context, tx pgx.Tx) error {
		x = &planExplainer{p: p, conn: tx.Conn()}
		failed = run(dbgen.New(x))
		return errUndo
	})
	if !errors.Is(err, errUndo) {
		p.t.Fatalf("%s: %v", what, err)
	}
	p.check("write", what, x, mostBlocks, mostRows, failed)
}

func (p *planned) check(pool, what string, x *planExplainer, mostBlocks int64, mostRows float64, err error) {
	p.t.Helper()
	switch {
	case p.quiet && (err == nil || errors.Is(err, pgx.ErrNoRows)):
	case err != nil:
		p.t.Errorf("%s: %v", what, err)
	case x.blocks > mostBlocks || x.rows > mostRows:
		p.t.Errorf("%s (%s) took %d blocks and %.0f rows, want at most %d and %.0f:\n%s", what, pool, x.blocks, x.rows, mostBlocks,
			mostRows, x.plan)
	default:
		p.t.Logf("%s (%s): %d blocks, %.0f rows", what, pool, x.blocks, x.rows)
	}
}

// planExplainer is a dbgen.DBTX of one transaction that runs a statement explained, undoes that, and runs it again.
type planExplainer struct {
	p      *planned
	conn   *pgx.Conn
	blocks int64
	rows   float64
	plan   costNode
}

func (x *planExplainer) prepare(ctx context.Context, sql string, args []any) (string, error) {
	names := x.p.names[x.conn]
	if names == nil {
		names = map[string]string{}
		x.p.names[x.conn] = names
	}
	if names[sql] == "" {
		names[sql] = fmt.Sprintf("explained_%d", len(names))
	}
	statement, err := x.conn.Prepare(ctx, names[sql], sql)
	if err != nil {
		return "", err
	}
	call := "explain (analyze, timing off, buffers, format json) execute " + statement.Name
	literals := []any{pgx.QueryExecModeSimpleProtocol}
	for i, arg := range args {
		if data, ok := arg.([]byte); ok && data != nil && statement.ParamOIDs[i] == pgtype.JSONBOID {
			arg = string(data)
		}
		literals = append(literals, arg)
		call += fmt.Sprintf("%s$%d", map[bool]string{true: "(", false: ", "}[i == 0], i+1)
	}
	if _, err := x.conn.Exec(ctx, `savepoint explained`); err != nil {
		return "", err
	}
	var plans []byte
	if err := x.conn.QueryRow(ctx, call+")", literals...).Scan(&plans); err != nil {
		return "", fmt.Errorf("explain: %w", err)
	}
	if _, err := x.conn.Exec(ctx, `rollback to explained`); err != nil {
		return "", err
	}
	var all []struct{ Plan costNode }
	if err := json.Unmarshal(plans, &all); err != nil {
		return "", err
	}
	x.plan, x.blocks, x.rows = all[0].Plan, all[0].Plan.allBlocks(), all[0].Plan.mostRows()
	return statement.Name, nil
}

func (x *planExplainer) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	name, err := x.prepare(ctx, sql, args)
	if err != nil {
		return pgconn.CommandTag{}, err
	}
	return x.conn.Exec(ctx, name, args...)
}

func (x *planExplainer) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	name, err := x.prepare(ctx, sql, args)
	if err != nil {
		return nil, err
	}
	return x.conn.Query(ctx, name, args...)
}

func (x *planExplainer) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	name, err := x.prepare(ctx, sql, args)
	if err != nil {
		return failedRow{err}
	}
	return x.conn.QueryRow(ctx, name, args...)
}

type failedRow struct{ error }

func (r failedRow) Scan(...any) error { return r.error }

// costNode is a node of a plan, with what it looked at in vain.
type costNode struct {
	Type      string     `json:"Node Type"`
	Index     string     `json:"Index Name"`
	Part      string     `json:"Subplan Name"`
	Hit       int64      `json:"Shared Hit Blocks"`
	Read      int64      `json:"Shared Read Blocks"`
	Rows      float64    `json:"Actual Rows"`
	Filtered  float64    `json:"Rows Removed by Filter"`
	NotJoined float64    `json:"Rows Removed by Join Filter"`
	Loops     float64    `json:"Actual Loops"`
	Plans     []costNode `json:"Plans"`
}

// allBlocks counts those of the node, with its children. The writes in its WITH are run after it, and may be in it too.
func (n costNode) allBlocks() int64 {
	blocks := n.Hit + n.Read
	for _, child := range n.Plans {
		if child.Type == "ModifyTable" {
			blocks += child.Hit + child.Read
		}
	}
	return blocks
}

// mostRows is the most rows that a node of the plan made, or looked at in vain.
func (n costNode) mostRows() float64 {
	most := (n.Rows + n.Filtered + n.NotJoined) * n.Loops
	for _, child := range n.Plans {
		most = math.Max(most, child.mostRows())
	}
	return most
}

// String is a line for each node that made or looked at a row.
func (n costNode) String() string { return n.indented("") }

func (n costNode) indented(by string) string {
	text := ""
	if n.Loops > 0 {
		text = fmt.Sprintf("%s%s %s %s: %.0f rows, %.0f in vain, %.0f times; %d blocks\n", by, n.Type, n.Index, n.Part, n.Rows,
			n.Filtered+n.NotJoined, n.Loops, n.Hit+n.Read)
	}
	for _, child := range n.Plans {
		text += child.indented(by + "  ")
	}
	return text
}
