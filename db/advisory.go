package db

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// LockClass is a space of advisory locks. They are taken at transaction level only, so that a proxy that pools
// transactions does no harm, and nothing's correctness rests on them.
type LockClass int32

// The classes, all of them here so that no two are the same.
const (
	// LockSweep elects the server that sweeps: key 0, and 1 for leases.
	LockSweep LockClass = 1
	// LockStart has those who start optimizations of the same variables queue; keys are hashes of session and variable.
	LockStart LockClass = 2
)

// TryLock takes an advisory lock until the transaction ends, if nobody has it.
func TryLock(ctx context.Context, tx pgx.Tx, class LockClass, key int32) (bool, error) {
	var taken bool
	err := tx.QueryRow(ctx, "select pg_try_advisory_xact_lock($1, $2)", int32(class), key).Scan(&taken)
	if err != nil {
		return false, fmt.Errorf("try an advisory lock: %w", err)
	}
	return taken, nil
}
