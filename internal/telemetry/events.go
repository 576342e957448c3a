package telemetry

import (
	"context"
	"log/slog"
	"time"

	"github.com/setpointdb/setpoint/internal/lease"
)

// SessionCreated records a session's beginning.
func (e *Events) SessionCreated(ctx context.Context, session, owner string) {
	e.event(ctx, slog.LevelInfo, "session_created", slog.String("session", session), slog.String("owner", owner))
}

// SessionDeleted records that somebody ended a session.
func (e *Events) SessionDeleted(ctx context.Context, session, principal string) {
	e.event(ctx, slog.LevelInfo, "session_deleted", slog.String("session", session), slog.String("by", principal))
}

// SessionExpired records that the sweeper removed what an ended session held.
func (e *Events) SessionExpired(ctx context.Context, session string, variables int64) {
	e.event(ctx, slog.LevelInfo, "session_expired", slog.String("session", session), slog.Int64("variables", variables))
}

// HistoryPruned records that more rows of a session's history, beyond limit and retention, were removed.
func (e *Events) HistoryPruned(ctx context.Context, session string, rows int64) {
	e.event(ctx, slog.LevelInfo, "history_pruned", slog.String("session", session), slog.Int64("rows", rows))
}

// ExtendFailed records that reads could not yet be counted as a session's signs of life; they will be tried again.
func (e *Events) ExtendFailed(ctx context.Context, err error) {
	e.event(ctx, slog.LevelWarn, "session_extend_failed", slog.Any("error", err))
}

// VariableRegistered records a new variable.
func (e *Events) VariableRegistered(ctx context.Context, session, name, kind, principal string) {
	e.event(ctx, slog.LevelDebug, "variable_registered", slog.String("session", session), slog.String("variable", name),
		slog.String("type", kind), slog.String("by", principal))
}

// VariableRead records a read of one variable.
func (e *Events) VariableRead(ctx context.Context, session, name string, version int64) {
	e.event(ctx, slog.LevelDebug, "variable_read", slog.String("session", session), slog.String("variable", name),
		slog.Int64("version", version))
}

// VariableSet records a new version.
func (e *Events) VariableSet(ctx context.Context, session, name string, version int64, principal string) {
	e.event(ctx, slog.LevelDebug, "variable_set", slog.String("session", session), slog.String("variable", name),
		slog.Int64("version", version), slog.String("by", principal))
}

// VariableUpdated records a change of what a variable allows or carries.
func (e *Events) VariableUpdated(ctx context.Context, session, name, principal string) {
	e.event(ctx, slog.LevelDebug, "variable_updated", slog.String("session", session), slog.String("variable", name),
		slog.String("by", principal))
}

// VariableDeleted records that a variable was removed.
func (e *Events) VariableDeleted(ctx context.Context, session, name, principal string) {
	e.event(ctx, slog.LevelInfo, "variable_deleted", slog.String("session", session), slog.String("variable", name),
		slog.String("by", principal))
}

// VariableRolledBack records that an earlier value was restored as a new version.
func (e *Events) VariableRolledBack(ctx context.Context, session, name string, to, version int64, principal string) {
	e.event(ctx, slog.LevelInfo, "variable_rolled_back", slog.String("session", session), slog.String("variable", name),
		slog.Int64("to_version", to), slog.Int64("version", version), slog.String("by", principal))
}

// SessionRolledBack records that a session's variables got their values of an earlier revision.
func (e *Events) SessionRolledBack(ctx context.Context, session string, to int64, variables int, principal string) {
	e.event(ctx, slog.LevelInfo, "session_rolled_back", slog.String("session", session), slog.Int64("to_revision", to),
		slog.Int("variables", variables), slog.String("by", principal))
}

// BatchRegistered records a batch of registrations.
func (e *Events) BatchRegistered(ctx context.Context, session, principal string, items, failed int) {
	e.batch(ctx, "batch_registered", session, principal, items, failed)
}

// BatchSet records a batch of writes.
func (e *Events) BatchSet(ctx context.Context, session, principal string, items, failed int) {
	e.batch(ctx, "batch_set", session, principal, items, failed)
}

// BatchRead records a batch of reads.
func (e *Events) BatchRead(ctx context.Context, session, principal string, items, missing int) {
	e.batch(ctx, "batch_read", session, principal, items, missing)
}

// VersionMismatch records that a writer knew an older version than there is.
func (e *Events) VersionMismatch(ctx context.Context, session, name string, expected, current int64, principal string) {
	e.event(ctx, slog.LevelDebug, "version_mismatch", slog.String("session", session), slog.String("variable", name),
		slog.Int64("expected_version", expected), slog.Int64("current_version", current), slog.String("by", principal))
}

// ValueRefused records that a type or a constraint refused a value.
func (e *Events) ValueRefused(ctx context.Context, session, name, reason, principal string) {
	e.event(ctx, slog.LevelDebug, "value_refused", slog.String("session", session), slog.String("variable", name),
		slog.String("reason", reason), slog.String("by", principal))
}

// RequestReplayed records that a write came again and was answered from the record of the first.
func (e *Events) RequestReplayed(ctx context.Context, session, principal string) {
	e.event(ctx, slog.LevelDebug, "request_replayed", slog.String("session", session), slog.String("by", principal))
}

// TransactionRetried records that a transaction is tried again.
func (e *Events) TransactionRetried(ctx context.Context, err error) {
	e.event(ctx, slog.LevelDebug, "transaction_retried", slog.Any("error", err))
}

// SweepFailed records that a round of the sweeper failed; it tries again at its next.
func (e *Events) SweepFailed(ctx context.Context, err error) {
	e.event(ctx, slog.LevelWarn, "sweep_failed", slog.Any("error", err))
}

// Panicked records a defect that was caught.
func (e *Events) Panicked(ctx context.Context, method string, value any, stack []byte) {
	e.event(ctx, slog.LevelError, "panic", slog.String("method", method), slog.Any("value", value),
		slog.String("stack", string(stack)))
}

// InternalError records an error that has no reason of the API: a defect.
func (e *Events) InternalError(ctx context.Context, method string, err error) {
	e.event(ctx, slog.LevelError, "internal_error", slog.String("method", method), slog.Any("error", err))
}

// DependencyAdded records that a variable depends on another one.
func (e *Events) DependencyAdded(ctx context.Context, session, dependent, dependency, principal string) {
	e.event(ctx, slog.LevelDebug, "dependency_added", slog.String("session", session), slog.String("dependent", dependent),
		slog.String("dependency", dependency), slog.String("by", principal))
}

// DependencyRemoved records that a variable no longer depends on another one.
func (e *Events) DependencyRemoved(ctx context.Context, session, dependent, dependency, principal string) {
	e.event(ctx, slog.LevelDebug, "dependency_removed", slog.String("session", session), slog.String("dependent", dependent),
		slog.String("dependency", dependency), slog.String("by", principal))
}

// CycleDetected records a dependency that was refused. path is a JSON array of names.
func (e *Events) CycleDetected(ctx context.Context, session, path, principal string) {
	e.event(ctx, slog.LevelInfo, "cycle_detected", slog.String("session", session), slog.String("path", path),
		slog.String("by", principal))
}

// Propagated records that dependents followed a change: how many were recomputed, became stale or no longer are, and the
// time it took within the change's transaction, which may yet be undone.
func (e *Events) Propagated(ctx context.Context, session string, took time.Duration, affected int) {
	e.propagations.Record(ctx, took.Seconds())
	e.event(ctx, slog.LevelDebug, "propagation", slog.String("session", session), slog.Duration("duration", took),
		slog.Int("affected", affected))
}

// OptimizationStatusChanged records that an optimization came to another state.
func (e *Events) OptimizationStatusChanged(ctx context.Context, c lease.Change) {
	e.event(ctx, slog.LevelInfo, "optimization_status_change", slog.String("session", c.Session),
		slog.String("optimization", c.Optimization), slog.String("optimizer", c.Optimizer), slog.String("from", c.From),
		slog.String("to", c.To), slog.Any("variables", c.Variables), slog.String("reason", c.Reason))
}

// OptimizationProgress records a report.
func (e *Events) OptimizationProgress(ctx context.Context, session, optimization string, number int64, best, late bool) {
	e.event(ctx, slog.LevelDebug, "optimization_progress", slog.String("session", session),
		slog.String("optimization", optimization), slog.Int64("trial", number), slog.Bool("best", best), slog.Bool("late", late))
}

// LockAcquired records that an optimization got its lease, and how long after it was asked for.
func (e *Events) LockAcquired(ctx context.Context, session, optimization string, wait time.Duration) {
	e.waits.Record(ctx, wait.Seconds())
	e.event(ctx, slog.LevelDebug, "lock_acquired", slog.String("session", session), slog.String("optimization", optimization),
		slog.Duration("wait", wait))
}

// LockConflict records a write or a start that a lease refused: of whom, or, for LEASE_LOST, which it was that did not hold.
func (e *Events) LockConflict(ctx context.Context, session, name, reason, optimization, principal string) {
	e.event(ctx, slog.LevelInfo, "lock_conflict", slog.String("session", session), slog.String("variable", name),
		slog.String("reason", reason), slog.String("optimization", optimization), slog.String("by", principal))
}

// OptimizationPreempted records that an optimization was told to give way, and how long it had held its lease by then.
func (e *Events) OptimizationPreempted(ctx context.Context, session, optimization, by string, held time.Duration) {
	e.event(ctx, slog.LevelInfo, "preempted", slog.String("session", session), slog.String("optimization", optimization),
		slog.String("by", by), slog.Duration("held", held))
}

// QueueFailed records that a server could not look after those who wait on it; it tries again at once.
func (e *Events) QueueFailed(ctx context.Context, err error) {
	e.event(ctx, slog.LevelWarn, "queue_failed", slog.Any("error", err))
}
