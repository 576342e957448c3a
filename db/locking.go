package db

import (
	"context"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/setpointdb/setpoint/db/dbgen"
)

// locking is a dbgen.DBTX that sends SessionLock before each statement, in the same round trip. The server makes the two
// one implicit transaction, which is committed before the rows that it returns report their end.
type locking struct {
	conn *pgx.Conn
	// settings is a query to run before the lock; empty for none.
	settings   string
	sessionIDs []string
	// queue are keys of the class LockStart to lock before; none for none.
	queue []int32
	// mark is a savepoint to set after the statement; empty for none.
	mark string
}

// LockAndMark is for the first query of a transaction: it locks the session's row before, and sets a savepoint after, all
// in one round trip.
func LockAndMark(tx pgx.Tx, sessionID string) *dbgen.Queries {
	return dbgen.New(locking{conn: tx.Conn(), sessionIDs: []string{sessionID}, mark: "savepoint " + mark})
}

// QueueLockAndMark is LockAndMark that queues first, by advisory locks of the class LockStart: in the order of the keys, and all
// before the lock of a row.
func QueueLockAndMark(tx pgx.Tx, sessionID string, keys []int32) *dbgen.Queries {
	return dbgen.New(locking{conn: tx.Conn(), sessionIDs: []string{sessionID}, queue: keys, mark: "savepoint " + mark})
}

// mark is the name of the savepoint.
const mark = "locked"

// BackToMark undoes what the transaction has done since LockAndMark. The session stays locked.
func BackToMark(ctx context.Context, tx pgx.Tx) error {
	_, err := tx.Exec(ctx, "rollback to savepoint "+mark)
	return err
}

func (l locking) send(ctx context.Context, sql string, args []any) (pgx.BatchResults, error) {
	batch := &pgx.Batch{}
	before := 1
	if l.settings != "" {
		batch.Queue(l.settings)
		before++
	}
	if len(l.queue) > 0 {
		batch.Queue(dbgen.OptimizationAdvisoryLocks, int32(LockStart), l.queue)
		before++
	}
	batch.Queue(dbgen.SessionLock, l.sessionIDs)
	batch.Queue(sql, args...)
	if l.mark != "" {
		batch.Queue(l.mark)
	}
	results := l.conn.SendBatch(ctx, batch)
	for range before {
		if _, err := results.Exec(); err != nil {
			_ = results.Close() // Says the same again.
			return nil, err
		}
	}
	return results, nil
}

// Exec runs a statement under the lock.
func (l locking) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	results, err := l.send(ctx, sql, args)
	if err != nil {
		return pgconn.CommandTag{}, err
	}
	tag, err := results.Exec()
	if closeErr := results.Close(); err == nil {
		err = closeErr
	}
	return tag, err
}

// Query runs a statement under the lock. The rows' Err includes what became of the commit.
func (l locking) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	results, err := l.send(ctx, sql, args)
	if err != nil {
		return nil, err
	}
	rows, err := results.Query()
	if err != nil {
		_ = results.Close() // Says the same again.
		return nil, err
	}
	return &lockedRows{Rows: rows, results: results}, nil
}

// QueryRow runs a statement under the lock. Its Scan includes what became of the commit.
func (l locking) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	rows, err := l.Query(ctx, sql, args...)
	return lockedRow{rows: rows, err: err}
}

// lockedRows ends the round trip when the rows end, and so learns of the commit.
type lockedRows struct {
	pgx.Rows
	results pgx.BatchResults
	err     error
}

func (r *lockedRows) Next() bool {
	if r.Rows.Next() {
		return true
	}
	r.Close()
	return false
}

func (r *lockedRows) Close() {
	r.Rows.Close()
	if r.results != nil {
		r.err = r.results.Close()
		r.results = nil
	}
}

func (r *lockedRows) Err() error {
	if err := r.Rows.Err(); err != nil {
		return err
	}
	return r.err
}

type lockedRow struct {
	rows pgx.Rows
	err  error
}

func (r lockedRow) Scan(dest ...any) error {
	if r.err != nil {
		return r.err
	}
	defer r.rows.Close()
	found := r.rows.Next()
	if !found {
		if err := r.rows.Err(); err != nil {
			return err
		}
		return pgx.ErrNoRows
	}
	if err := r.rows.Scan(dest...); err != nil {
		return err
	}
	r.rows.Close()
	return r.rows.Err()
}
