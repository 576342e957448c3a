package migrations_test

import (
	"context"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/setpointdb/setpoint/internal/testkit"
	"github.com/setpointdb/setpoint/migrations"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// schema describes everything that the migrations make, so that two states can be compared.
const schema = `
select coalesce(string_agg(line, E'\n' order by line), '') from (
	select format('%s.%s.%s %s %s %s', table_schema, table_name, column_name, data_type, is_nullable, column_default)
	from information_schema.columns where table_schema like 'setpoint%'
	union all
	select format('%s %s', conname, pg_get_constraintdef(oid)) from pg_constraint
	where connamespace::regnamespace::text like 'setpoint%'
	union all
	select indexdef from pg_indexes where schemaname like 'setpoint%'
	union all
	select format('%s.%s %s', schemaname, viewname, definition) from pg_views where schemaname like 'setpoint%'
	union all
	select format('%s %s', oid::regprocedure, md5(prosrc || coalesce(pg_get_function_sqlbody(oid), ''))) from pg_proc
	where pronamespace::regnamespace::text like 'setpoint%'
	union all
	select pg_get_triggerdef(oid) from pg_trigger where not tgisinternal
) x (line)`

func TestUpDownUp(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	url := testkit.NewEmptyDatabase(t)
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(ctx) })
	describe := func() string {
		var text string
		if err := conn.QueryRow(ctx, schema).Scan(&text); err != nil {
			t.Fatal(err)
		}
		return text
	}
	m, err := migrations.Open(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })

	var states []string // states[i] is the schema with i migrations.
	for {
		states = append(states, describe())
		applied, err := m.UpOne(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if len(applied) == 0 {
			break
		}
	}
	if states[0] != "" {
		t.Fatalf("an empty database has %s", states[0])
	}
	for i := len(states) - 2; i >= 0; i-- {
		if _, err := m.Down(ctx); err != nil {
			t.Fatalf("down to %d: %v", i, err)
		}
		if diff := cmp.Diff(states[i], describe()); diff != "" {
			t.Errorf("down to %d is not what up from it began with:\n%s", i, diff)
		}
	}
	if taken, err := m.Down(ctx); err != nil || len(taken) != 0 {
		t.Errorf("down of nothing: %v, %v", taken, err)
	}
	if _, err := m.Up(ctx); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(states[len(states)-1], describe()); diff != "" {
		t.Errorf("up again:\n%s", diff)
	}
}

func TestUpAtOnce(t *testing.T) {
	t.Parallel()
	url := testkit.NewEmptyDatabase(t)
	const servers = 4
	errs := make(chan error, servers)
	for range servers {
		go func() { errs <- migrations.Up(context.Background(), url) }()
	}
	for range servers {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

func TestStatusAndVersions(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	m, err := migrations.Open(testkit.NewEmptyDatabase(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	current, target, err := m.Versions(ctx)
	if err != nil || current != 0 || target == 0 {
		t.Fatalf("versions of an empty database: %d, %d, %v", current, target, err)
	}
	if _, err := m.UpOne(ctx); err != nil {
		t.Fatal(err)
	}
	steps, err := m.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for i, step := range steps {
		if step.Applied != (i == 0) {
			t.Errorf("%s: applied is %t", step.Name, step.Applied)
		}
		if text, err := migrations.SQL(step); err != nil || text == "" {
			t.Errorf("%s: text %q, %v", step.Name, text, err)
		}
	}
}
