package service

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgtype"

	"github.com/setpointdb/setpoint/db/dbgen"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// What a lease does to writes. The protocol is told in package lease; the fence itself is the SQL function lease_refusal, which
// every statement that changes a value asks.

// holder is who stands in the way of a write or of a start: the one that has the lease, or waits for it.
type holder struct {
	OptimizationID string     `json:"optimization_id"`
	OptimizerID    string     `json:"optimizer_id"`
	StartedAt      *time.Time `json:"started_at,omitempty"`
	ExpiresAt      time.Time  `json:"expires_at"`
	// waits: it has no lease yet.
	waits bool
}

// holderOf is nil for an empty id.
func holderOf(id, optimizerID string, startedAt, expiresAt pgtype.Timestamptz) *holder {
	if id == "" {
		return nil
	}
	h := &holder{OptimizationID: id, OptimizerID: optimizerID, ExpiresAt: expiresAt.Time}
	if startedAt.Valid {
		h.StartedAt = &startedAt.Time
	}
	return h
}

// alreadyOptimizing is the refusal of whoever comes without the lease.
func alreadyOptimizing(variable string, h *holder) *Error {
	does, what := "is being optimized by", "lease holds"
	if h.waits {
		does, what = "is waited for by", "stay in the queue holds"
	}
	e := refuse(setpointv1.ErrorReason_ALREADY_OPTIMIZING,
		fmt.Sprintf("%s %s %s (%s), whose %s until %s unless it is renewed", variable, does, h.OptimizerID, h.OptimizationID, what,
			clockTime(h.ExpiresAt)),
		"variable", variable, "optimizer_id", h.OptimizerID, "optimization_id", h.OptimizationID,
		"expires_at", clockTime(h.ExpiresAt))
	if h.StartedAt != nil {
		e.Metadata["started_at"] = clockTime(*h.StartedAt)
	}
	return e
}

func clockTime(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

// leaseLost is the refusal of a lease that does not hold on a variable.
func leaseLost(optimizationID, variable string) *Error {
	return refuse(setpointv1.ErrorReason_LEASE_LOST,
		fmt.Sprintf("the lease of %s does not hold on %s: it is over, or its token is not the one that was granted", optimizationID, variable),
		"optimization_id", optimizationID, "variable", variable)
}

// tokenRefused is the refusal of a token that is not the optimization's.
func tokenRefused(optimizationID string) *Error {
	return refuse(setpointv1.ErrorReason_LEASE_LOST,
		fmt.Sprintf("the fencing token is not the one that was granted to %s", optimizationID),
		"optimization_id", optimizationID)
}

// fenceFunc refuses a change of a variable for its lease.
type fenceFunc func(ctx context.Context, q *dbgen.Queries, sessionID string, row variableRow, lease *setpointv1.Lease) error

// fence refuses a change of a variable that has no place in VariableSet. The caller holds the session's lock, and has read the
// row under it: what is not leased then is not leased now.
func fence(ctx context.Context, q *dbgen.Queries, sessionID string, row variableRow, lease *setpointv1.Lease) error {
	if lease == nil && row.OptimizationID == "" {
		return nil
	}
	refused, err := q.VariableLeaseRefusal(ctx, dbgen.VariableLeaseRefusalParams{
		SessionID: sessionID, VariableID: row.VariableID, LeaseID: lease.GetOptimizationId(), LeaseToken: lease.GetFencingToken(),
	})
	switch {
	case err != nil:
		return err
	case refused == "LEASE_LOST":
		return leaseLost(lease.GetOptimizationId(), row.Name)
	case refused != "":
		return alreadyOptimizing(row.Name, row.holder())
	}
	return nil
}

// holder is who has the lease; nil if nobody has.
func (r variableRow) holder() *holder {
	return holderOf(r.OptimizationID, r.LeaseOptimizerID, r.LeaseStartedAt, r.LeaseExpiresAt)
}

// proto is absent for nobody.
func (h *holder) proto() *setpointv1.VariableOptimization {
	if h == nil {
		return nil
	}
	v := &setpointv1.VariableOptimization{
		OptimizationId: h.OptimizationID, OptimizerId: h.OptimizerID,
		ExpiresAt: timestamp(pgtype.Timestamptz{Time: h.ExpiresAt, Valid: true}),
	}
	if h.StartedAt != nil {
		v.StartedAt = timestamp(pgtype.Timestamptz{Time: *h.StartedAt, Valid: true})
	}
	return v
}
