package db

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/setpointdb/setpoint/db/dbgen"
)

// conflictRetries is how often a transaction that lost to others is tried again.
const conflictRetries = 5

// Read runs statements on the read pool, each a transaction of its own. The function may run again if the database was
// not reached. doing names the operation in errors.
func (d *DB) Read(ctx context.Context, doing string, fn func(context.Context, *dbgen.Queries) error) error {
	return d.retry(ctx, doing, func(ctx context.Context) error { return fn(ctx, dbgen.New(d.reads)) })
}

// Write runs statements on the write pool, each a transaction of its own.
func (d *DB) Write(ctx context.Context, doing string, fn func(context.Context, *dbgen.Queries) error) error {
	return d.retry(ctx, doing, func(ctx context.Context) error { return fn(ctx, dbgen.New(d.writes)) })
}

// Locked runs one statement on the write pool with the rows of the sessions locked by a statement before it: both in one
// round trip, which is one transaction. The function runs exactly one query of dbgen; it may run again after a conflict.
// A nil error means that the transaction is committed.
func (d *DB) Locked(
	ctx context.Context, doing string, sessionIDs []string, fn func(context.Context, *dbgen.Queries) error,
) error {
	return d.locked(ctx, d.writes, "", doing, sessionIDs, fn)
}

// Group is Locked for a statement of many callers, who must not all wait because somebody else holds one of the locks:
// then it is ErrLocked, soon, and nothing is done.
func (d *DB) Group(
	ctx context.Context, doing string, sessionIDs []string, fn func(context.Context, *dbgen.Queries) error,
) error {
	return d.locked(ctx, d.groups, d.groupSettings, doing, sessionIDs, fn)
}

func (d *DB) locked(
	ctx context.Context, pool *pgxpool.Pool, settings, doing string, sessionIDs []string,
	fn func(context.Context, *dbgen.Queries) error,
) error {
	return d.retry(ctx, doing, func(ctx context.Context) error {
		if pool == d.writes && len(sessionIDs) == 1 {
			leave, err := d.gates.enter(ctx, sessionIDs[0])
			if err != nil {
				return d.crowded(ctx, err)
			}
			defer leave()
		}
		conn, err := pool.Acquire(ctx)
		if err != nil {
			return err
		}
		defer conn.Release()
		return fn(ctx, dbgen.New(locking{conn: conn.Conn(), settings: settings, sessionIDs: sessionIDs}))
	})
}

// GroupSkipLocked is Group for those of the sessions whose locks are free, which the function is told: in one transaction,
// not in one round trip. It waits for no lock of a session.
func (d *DB) GroupSkipLocked(
	ctx context.Context, doing string, sessionIDs []string,
	fn func(ctx context.Context, q *dbgen.Queries, locked []string) error,
) error {
	return d.inTx(ctx, d.groups, doing, func(ctx context.Context, tx pgx.Tx) error {
		q := dbgen.New(tx)
		locked, err := q.SessionLockNoWait(ctx, dbgen.SessionLockNoWaitParams{SessionIds: sessionIDs})
		if err != nil {
			return err
		}
		return fn(ctx, q, locked)
	})
}

// InTx runs fn in one READ COMMITTED transaction on the write pool: committed if fn returns nil, else rolled back, also
// when the context has been cancelled. fn may run again after a serialization failure or a deadlock, so it must not keep
// what an earlier run found. It must not call InTx.
func (d *DB) InTx(ctx context.Context, doing string, fn func(context.Context, pgx.Tx) error) error {
	return d.inTx(ctx, d.writes, doing, fn)
}

// InSession is InTx for work that locks a session's row.
func (d *DB) InSession(ctx context.Context, doing, sessionID string, fn func(context.Context, pgx.Tx) error) error {
	ctx, cancel := d.bound(ctx)
	defer cancel()
	leave, err := d.gates.enter(ctx, sessionID)
	if err != nil {
		return wrap(ctx, doing, d.crowded(ctx, err))
	}
	defer leave()
	return d.inTx(ctx, d.writes, doing, fn)
}

// crowded is the error of a wait for others who are at a session: ErrOverloaded, unless the caller gave up.
func (d *DB) crowded(ctx context.Context, err error) error {
	if errors.Is(context.Cause(ctx), errTimeout) {
		return fmt.Errorf("%w: others are at the session", ErrOverloaded)
	}
	return err
}

func (d *DB) inTx(
	ctx context.Context, pool *pgxpool.Pool, doing string, fn func(context.Context, pgx.Tx) error,
) error {
	return d.retry(ctx, doing, func(ctx context.Context) error {
		tx, err := pool.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.ReadCommitted})
		if err != nil {
			return err
		}
		if err := fn(ctx, tx); err != nil {
			return errors.Join(err, rollback(ctx, tx))
		}
		return tx.Commit(ctx)
	})
}

// DryRun is InSession that always rolls back: fn sees what it would do, and nothing is done.
func (d *DB) DryRun(ctx context.Context, doing, sessionID string, fn func(context.Context, pgx.Tx) error) error {
	err := d.InSession(ctx, doing, sessionID, func(ctx context.Context, tx pgx.Tx) error {
		if err := fn(ctx, tx); err != nil {
			return err
		}
		return errDryRun
	})
	if errors.Is(err, errDryRun) {
		return nil
	}
	return err
}

var errDryRun = errors.New("dry run")

func rollback(ctx context.Context, tx pgx.Tx) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	err := tx.Rollback(ctx)
	if errors.Is(err, pgx.ErrTxClosed) || errors.Is(err, pgconn.ErrConnClosed) {
		return nil
	}
	return err
}

// retry runs fn within the database's timeout: again after conflicts, with jitter, and once more where the connection
// turned out to be dead before anything was sent on it.
func (d *DB) retry(ctx context.Context, doing string, fn func(context.Context) error) error {
	ctx, cancel := d.bound(ctx)
	defer cancel()
	repeated := false
	for attempt := 1; ; attempt++ {
		err := wrap(ctx, doing, fn(ctx))
		switch {
		case err == nil:
			return nil
		case errors.Is(err, ErrConflict) && attempt <= conflictRetries && pause(ctx, attempt):
		case pgconn.SafeToRetry(err) && !repeated && ctx.Err() == nil:
			repeated = true
		default:
			return err
		}
		d.retried(ctx, err)
	}
}

// pause waits a random time that grows with the attempts; false if the context ends first.
func pause(ctx context.Context, attempt int) bool {
	timer := time.NewTimer(time.Duration(rand.Int64N(int64(attempt) * int64(5*time.Millisecond))))
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
