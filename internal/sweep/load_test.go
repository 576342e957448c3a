package sweep_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const (
	loadVariables = 100
	loadVersions  = 10_000 // Of each: a million rows.
	loadWriters   = 64
	loadCycles    = 10
	loadWrites    = 8000 // In each cycle: what the writers write is new, and stays.
)

// A million rows, of which a tenth goes and a tenth comes in each of ten cycles, while 64 writers write: no writer waits
// for the sweeper, and the space that rows leave is used again.
func TestPruneUnderLoad(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.fill()
	first := b.number(`select pg_table_size('setpoint.history')`)
	ctx, stop := context.WithCancel(b.ctx)
	var background sync.WaitGroup
	var written atomic.Int64
	quota := make(chan struct{}, loadWrites*loadCycles)
	for i := range loadWriters {
		background.Go(func() {
			for range quota {
				if err := b.set("s", fmt.Sprint("w", i), written.Add(1)); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	var waits waits
	background.Go(func() { waits.watch(ctx, b) })
	for cycle := range loadCycles {
		b.addVersions(loadVersions/10, loadVersions+cycle*loadVersions/10)
		for range loadWrites {
			quota <- struct{}{}
		}
		before, writtenBefore := b.noted.pruned, written.Load()
		b.must(b.sweeper.History(b.ctx))
		if pruned := b.noted.pruned - before; pruned < loadVariables*loadVersions/10 {
			t.Errorf("cycle %d pruned %d rows, want %d at least", cycle, pruned, loadVariables*loadVersions/10)
		}
		if written.Load() == writtenBefore {
			t.Errorf("cycle %d: nothing was written while it pruned", cycle)
		}
		b.exec(`vacuum setpoint.history`) // What autovacuum does, at a time that the test can name.
	}
	close(quota)
	stop()
	background.Wait()
	last := b.number(`select pg_table_size('setpoint.history')`)
	t.Logf("%d writes by %d writers; of %d looks at the locks %d found a writer waiting for the sweeper, %d twice in a row; "+
		"the table went from %d to %d MB", written.Load(), loadWriters, waits.looks, waits.seen, waits.lasting, first>>20, last>>20)
	// The sweeper holds a session's lock for one statement at a time: to see that is rare, to see it twice running is a wait.
	if waits.lasting > 0 || waits.looks == 0 || waits.seen > waits.looks/100 {
		t.Errorf("of %d looks at the locks %d found a writer waiting for the sweeper, %d the same twice", waits.looks, waits.seen,
			waits.lasting)
	}
	if float64(last) > 1.3*float64(first) {
		t.Errorf("the table has %d bytes after %d at first", last, first)
	}
}

// fill makes a session with a million old rows, and variables for the writers.
func (b *bundle) fill() {
	for i := range loadWriters {
		b.register("s", fmt.Sprint("w", i), 50)
	}
	b.exec(`update setpoint.history set changed_at = changed_at - interval '3 hours'`) // Time does not run back.
	b.exec(`insert into setpoint.variables (session_id, variable_id, name, type, value, value_bytes, version, revision,
			definition_revision, history_limit, created_at, updated_at, updated_by)
		select 's', 'var_old' || lpad(i::text, 3, '0'), 'old' || i, 'integer', '0', 1, 0, 0, 0, $2, clock_timestamp(),
			clock_timestamp(), 'user:a' from generate_series(1, $1) i`, loadVariables, loadVersions-1)
	b.addVersions(loadVersions, 0)
}

// addVersions gives each of the old variables more versions, from the one named on, as if they had been set two hours ago.
func (b *bundle) addVersions(n, from int) {
	b.t.Helper()
	tx, err := b.sql.Begin(b.ctx)
	b.must(err)
	defer func() { _ = tx.Rollback(b.ctx) }()
	for _, sql := range []string{
		`select from setpoint.sessions where session_id = 's' for no key update`,
		`insert into setpoint.history (session_id, revision, variable_id, name, type, change, version, value, value_bytes,
				changed_by, changed_at)
			select 's', s.revision + (v.version - $3::int) * $1::int + i, 'var_old' || lpad(i::text, 3, '0'), 'old' || i, 'integer',
				'set', v.version, to_jsonb(v.version), 5, 'user:a', clock_timestamp() - interval '2 hours'
			from setpoint.sessions s, generate_series($3::int, $3::int + $2::int - 1) v (version), generate_series(1, $1::int) i
			where s.session_id = 's'`,
		`update setpoint.variables set version = $3::int + $2::int - 1 + 0 * $1::int where variable_id like 'var_old%'`,
		`update setpoint.sessions set revision = revision + $1::int * $2::int + 0 * $3::int where session_id = 's'`,
	} {
		var args []any
		if sql[0] != 's' {
			args = []any{loadVariables, n, from}
		}
		if _, err := tx.Exec(b.ctx, sql, args...); err != nil {
			b.t.Fatal(err)
		}
	}
	b.must(tx.Commit(b.ctx))
}

// waits counts looks at the locks that found a writer waiting for the sweeper, and those that found the same wait again.
type waits struct{ looks, seen, lasting int }

// look finds the waits of the moment, named by who waits since when.
const look = `select coalesce(array_agg(w.pid || ' ' || w.query_start), '{}') from pg_stat_activity w, pg_stat_activity s
	where w.datname = current_database() and s.application_name = 'sweeper' and w.application_name = 'setpoint'
	and s.pid = any(pg_blocking_pids(w.pid))`

func (w *waits) watch(ctx context.Context, b *bundle) {
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	last := map[string]bool{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		var found []string
		if err := b.sql.QueryRow(ctx, look).Scan(&found); err != nil {
			if ctx.Err() == nil {
				b.t.Error(err)
			}
			return
		}
		now := map[string]bool{}
		w.looks++
		for _, wait := range found {
			now[wait] = true
			w.seen++
			if last[wait] {
				w.lasting++
			}
		}
		last = now
	}
}
