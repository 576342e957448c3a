package testkit

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Clock is the clock of one test's database, as everybody sees it who connects after it was taken over: it stands still, and
// moves when the test says so.
type Clock struct {
	t    testing.TB
	pool *pgxpool.Pool
}

// TakeClock takes over a database's clock, by a function of the same name that is found before PostgreSQL's own. Only
// connections that are made later see it: take it before a server starts.
func TakeClock(t testing.TB, url string) *Clock {
	t.Helper()
	pool := Pool(t, url)
	c := &Clock{t: t, pool: pool}
	c.exec(`create schema test_clock`)
	c.exec(`create table test_clock.face (at timestamptz not null)`)
	c.exec(`insert into test_clock.face select date_trunc('second', pg_catalog.clock_timestamp())`)
	c.exec(`create function test_clock.clock_timestamp() returns timestamptz language sql volatile
		as 'select at from test_clock.face'`)
	var name string
	if err := pool.QueryRow(context.Background(), `select current_database()`).Scan(&name); err != nil {
		t.Fatal(err)
	}
	c.exec(`alter database ` + pgx.Identifier{name}.Sanitize() + ` set search_path = test_clock, pg_catalog, public`)
	return c
}

func (c *Clock) exec(sql string, args ...any) {
	c.t.Helper()
	if _, err := c.pool.Exec(context.Background(), sql, args...); err != nil {
		c.t.Fatal(err)
	}
}

// Advance moves the clock on.
func (c *Clock) Advance(by time.Duration) {
	c.t.Helper()
	c.exec(`update test_clock.face set at = at + make_interval(secs => $1)`, by.Seconds())
}

// Now reads the clock.
func (c *Clock) Now() time.Time {
	c.t.Helper()
	var now time.Time
	if err := c.pool.QueryRow(context.Background(), `select at from test_clock.face`).Scan(&now); err != nil {
		c.t.Fatal(err)
	}
	return now
}
