package db

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// What a failed operation means. Errors of this package match at most one of them with errors.Is.
var (
	// ErrUnavailable: the database cannot be reached, or went away; whether a write took place is unknown.
	ErrUnavailable = errors.New("the database cannot be reached")
	// ErrConflict: serialization failures or deadlocks, also after the retries. Nothing was written.
	ErrConflict = errors.New("the transaction kept losing to others")
	// ErrOverloaded: the statement waited for longer than it may. Nothing was written.
	ErrOverloaded = errors.New("the database is too busy")
	// ErrLocked is the ErrOverloaded of a lock that was not to be had in time.
	ErrLocked = fmt.Errorf("%w: a lock was not to be had", ErrOverloaded)
)

// errTimeout is the cause of a context that an operation's own bound ended.
var errTimeout = errors.New("the database did not answer in time")

// Meanings of SQLSTATEs and of classes (their first two digits); the state goes before its class.
var meanings = map[string]error{
	"40001": ErrConflict, // serialization_failure
	"40P01": ErrConflict, // deadlock_detected

	"57014": ErrOverloaded, // query_canceled: statement_timeout
	"55P03": ErrLocked,     // lock_not_available: lock_timeout
	"53":    ErrOverloaded, // insufficient_resources
	"53100": nil,           // disk_full: to try again does not help; an operator has to

	"08":    ErrUnavailable, // connection_exception
	"25P03": ErrUnavailable, // idle_in_transaction_session_timeout
	"57P01": ErrUnavailable, // admin_shutdown
	"57P02": ErrUnavailable, // crash_shutdown
	"57P03": ErrUnavailable, // cannot_connect_now
	"57P05": ErrUnavailable, // idle_session_timeout
	"25006": ErrUnavailable, // read_only_sql_transaction: a standby, during a fail-over
	"53300": ErrUnavailable, // too_many_connections
	"28":    ErrUnavailable, // invalid_authorization_specification: the operator's to mend, not the caller's
	"3D000": ErrUnavailable, // invalid_catalog_name
}

// wrap adds to an error what was being done and what it means. It returns nil for nil; a caller's own cancellation and
// pgx.ErrNoRows keep their identity.
func wrap(ctx context.Context, doing string, err error) error {
	if err == nil {
		return nil
	}
	if meaning := meaningOf(ctx, err); meaning != nil {
		return fmt.Errorf("%s: %w: %w", doing, meaning, err)
	}
	return fmt.Errorf("%s: %w", doing, err)
}

func meaningOf(ctx context.Context, err error) error {
	for _, known := range []error{ErrUnavailable, ErrConflict, ErrOverloaded} {
		if errors.Is(err, known) {
			return nil
		}
	}
	if errors.Is(context.Cause(ctx), errTimeout) {
		return ErrUnavailable
	}
	if isOver(ctx) || errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		if meaning, ok := meanings[pg.Code]; ok {
			return meaning
		}
		return meanings[pg.Code[:min(2, len(pg.Code))]]
	}
	if isConnection(err) {
		return ErrUnavailable
	}
	return nil
}

// isOver tells whether the caller has given up.
func isOver(ctx context.Context) bool { return ctx.Err() != nil }

func isConnection(err error) bool {
	if _, ok := errors.AsType[*pgconn.ConnectError](err); ok {
		return true
	}
	if _, ok := errors.AsType[net.Error](err); ok {
		return true
	}
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, pgconn.ErrConnClosed) || pgconn.SafeToRetry(err)
}

// IsRolledBack tells whether it is certain that nothing was done: the database refused a statement and lives on.
func IsRolledBack(err error) bool {
	_, refused := errors.AsType[*pgconn.PgError](err)
	return refused && !errors.Is(err, ErrUnavailable)
}

// Constraint returns the name of the constraint that refused a statement, "" if none did. Invariants are named
// constraints, so the name tells what was wrong.
func Constraint(err error) string {
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		return pg.ConstraintName
	}
	return ""
}
