// Package db connects to PostgreSQL: its pools, one transaction helper, and what a database error means to a caller.
// Statements live in queries/ and come as Go from package dbgen.
package db

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Config says which database and how to use it. The zero value of a field is its default.
type Config struct {
	// URL is a postgres:// URL or a keyword/value string as libpq takes them. Required.
	URL string
	// Timeout bounds every operation, connecting included. Default 10 s.
	Timeout time.Duration
	// MaxConns bounds the pool for writes and that for reads, each. Default 16.
	MaxConns int32
	// Tracer sees every statement; nil is none.
	Tracer pgx.QueryTracer
}

// DB is a database: a pool for writes, whose statements are planned once and give up soon; one for groups of writes, which
// do not wait long for a lock either; and one for reads. Safe for concurrent use.
type DB struct {
	writes  *pgxpool.Pool
	groups  *pgxpool.Pool
	reads   *pgxpool.Pool
	timeout time.Duration
	retried func(ctx context.Context, err error)
	gates   gates
	// groupSettings is run first in the transaction of a group, where its connections cannot carry settings.
	groupSettings string
}

// Open prepares the pools; it does not wait for the database, which may come up later. Close gives them back.
func Open(ctx context.Context, config Config) (*DB, error) {
	if config.Timeout <= 0 {
		config.Timeout = 10 * time.Second
	}
	if config.MaxConns <= 0 {
		config.MaxConns = 16
	}
	// Statements give up a little before the server does, and end as what they are.
	patience := config.Timeout * 9 / 10
	writing := map[string]string{
		"statement_timeout": milliseconds(min(patience, 5*time.Second)),
		// A generic plan made while the tables were empty would scan them for ever.
		"plan_cache_mode": "force_generic_plan",
		"enable_seqscan":  "off",
		// Workers take longer to start than any of ours does, and a plan with them may read what one in order would not.
		"max_parallel_workers_per_gather": "0",
	}
	reading := maps.Clone(ReadSettings)
	reading["statement_timeout"] = milliseconds(patience)
	grouping := maps.Clone(writing)
	grouping["lock_timeout"] = "100ms"
	d := &DB{timeout: config.Timeout, retried: func(context.Context, error) {}}
	for _, pool := range []struct {
		to       **pgxpool.Pool
		conns    int32
		settings map[string]string
	}{
		{&d.writes, config.MaxConns, writing},
		{&d.groups, groupConns, grouping},
		{&d.reads, config.MaxConns, reading},
	} {
		config.MaxConns = pool.conns
		p, err := open(ctx, config, pool.settings)
		if err != nil {
			d.Close()
			return nil, err
		}
		*pool.to = p
	}
	if d.groups.Config().ConnConfig.DefaultQueryExecMode == pgx.QueryExecModeCacheDescribe {
		d.groupSettings = "select set_config('lock_timeout', '" + grouping["lock_timeout"] + "', true)"
	}
	return d, nil
}

// ReadSettings are the settings of the connections for reads. Pages of a list are to be read in the order of an index up
// to their limit, also where the planner thinks that what is left of the list could as well be read whole and sorted.
var ReadSettings = map[string]string{
	// To plan a read takes longer than to do it.
	"plan_cache_mode":                 "force_generic_plan",
	"enable_seqscan":                  "off",
	"enable_bitmapscan":               "off",
	"max_parallel_workers_per_gather": "0",
}

// probeAfter is how long a connection is idle before it is asked whether it still works.
const probeAfter = 30 * time.Second

// groupConns is the connections for groups: one on which a group is on its way, and one to take over if that breaks.
const groupConns = 2

func open(ctx context.Context, config Config, settings map[string]string) (*pgxpool.Pool, error) {
	pool, err := pgxpool.ParseConfig(config.URL)
	if err != nil {
		return nil, fmt.Errorf("read the database URL: %w", err)
	}
	if pool.ConnConfig.RuntimeParams["synchronous_commit"] == "off" {
		return nil, errors.New("the database URL: synchronous_commit is not to be off: acknowledged writes could be lost")
	}
	pool.MaxConns = config.MaxConns
	pool.MaxConnIdleTime = 5 * time.Minute
	// A connection that was used a moment ago is good: to ask would double the round trips of a lone caller. One that turns
	// out to be dead all the same is one failed call, which clients repeat.
	pool.ShouldPing = func(_ context.Context, p pgxpool.ShouldPingParams) bool { return p.IdleDuration > probeAfter }
	pool.PingTimeout = time.Second
	pool.ConnConfig.ConnectTimeout = config.Timeout
	pool.ConnConfig.Tracer = config.Tracer
	// cache_describe in its URL says that the database is behind a proxy that pools transactions, where prepared statements
	// do not outlive theirs. Such proxies refuse settings at connection: the role has to carry them (docs/operations.md).
	// The modes that describe nothing cannot tell jsonb from bytea.
	switch pool.ConnConfig.DefaultQueryExecMode {
	case pgx.QueryExecModeCacheDescribe:
	case pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol:
		return nil, errors.New("the database URL: default_query_exec_mode is to be cache_describe, or left out")
	default:
		setDefaults(pool.ConnConfig.RuntimeParams, settings, config.Timeout)
	}
	p, err := pgxpool.NewWithConfig(ctx, pool)
	if err != nil {
		return nil, fmt.Errorf("open a pool: %w", err)
	}
	return p, nil
}

func milliseconds(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) }

// setDefaults adds settings that the URL does not give.
func setDefaults(params, settings map[string]string, timeout time.Duration) {
	add := func(name, value string) {
		if _, given := params[name]; !given {
			params[name] = value
		}
	}
	for name, value := range settings {
		add(name, value)
	}
	add("application_name", "setpoint")
	// To compile a statement takes longer than any of ours does.
	add("jit", "off")
	add("synchronous_commit", "on")
	add("timezone", "UTC")
	params["default_transaction_isolation"] = "read committed"
	// A server that is cut off must not keep a session's row locked.
	add("idle_in_transaction_session_timeout", "5s")
	add("tcp_keepalives_idle", "5")
	add("tcp_keepalives_interval", "2")
	add("tcp_keepalives_count", "3")
	add("tcp_user_timeout", milliseconds(2*timeout))
}

// OnRetry has f called for every transaction that is tried again, with the error that made it so. Not safe once the
// database is in use.
func (d *DB) OnRetry(f func(ctx context.Context, err error)) { d.retried = f }

// Close closes the pools, waiting for what is under way.
func (d *DB) Close() {
	for _, pool := range []*pgxpool.Pool{d.writes, d.groups, d.reads} {
		if pool != nil {
			pool.Close()
		}
	}
}

// Ping answers nil when the pools for writes and for reads reach the database.
func (d *DB) Ping(ctx context.Context) error {
	ctx, cancel := d.bound(ctx)
	defer cancel()
	if err := d.writes.Ping(ctx); err != nil {
		return wrap(ctx, "ping", err)
	}
	if err := d.reads.Ping(ctx); err != nil {
		return wrap(ctx, "ping", err)
	}
	return nil
}

type timeoutKey struct{}

// Within returns a context whose operations may take as long as is said instead of Config.Timeout: for work on a whole
// session.
func Within(ctx context.Context, timeout time.Duration) context.Context {
	return context.WithValue(ctx, timeoutKey{}, timeout)
}

// bound limits an operation to the database's timeout, so that a database that has gone silent is told from a caller
// who has given up.
func (d *DB) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	timeout := d.timeout
	if longer, ok := ctx.Value(timeoutKey{}).(time.Duration); ok {
		timeout = longer
	}
	return context.WithTimeoutCause(ctx, timeout, errTimeout)
}

// Wait bounds a wait for the database by the time limit of an operation, past which the error is ErrUnavailable.
func (d *DB) Wait(ctx context.Context, doing string, wait func(context.Context) error) error {
	ctx, cancel := d.bound(ctx)
	defer cancel()
	return wrap(ctx, doing, wait(ctx))
}
