package service

import (
	"context"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/testkit"
)

// Every constraint of the schema is known: it means something to a caller, or only a defect can violate it.
func TestEveryConstraintIsKnown(t *testing.T) {
	t.Parallel()
	defects := map[string]bool{
		"sessions_ttl_not_negative": true, "sessions_variable_count_not_negative": true, "variables_pkey": true,
		"variables_version_not_negative": true, "variables_history_limit_not_negative": true, "variables_type_known": true,
		"variables_payload_of_type": true, "payloads_pkey": true, "history_value_of_version": true,
		"variables_stale_whole": true, "history_cause_whole": true, "history_transaction_whole": true,
		// Checked before, under the lock.
		"dependencies_pkey": true, "dependencies_not_of_itself": true, "dependencies_dependent_fkey": true,
		"dependencies_dependency_fkey": true,
		"optimizations_pkey":           true, "optimization_variables_pkey": true, "optimization_waiters_pkey": true, "trials_pkey": true,
		"trial_metrics_pkey": true, "optimizations_state_known": true, "optimizations_ended_for_good": true,
		"optimizations_token_of_lease": true, "optimizations_preempted_by_one": true, "optimizations_best_whole": true,
		"variables_lease_has_holder":  true,
		"variables_access_mode_known": true, "access_rules_pkey": true, "access_rules_session_fkey": true,
		"access_rules_permissions_known": true, "tokens_pkey": true, "tokens_secret_is_hash": true, "tokens_permissions_known": true,
		"tokens_revoked_whole": true, "audit_events_pkey": true, "audit_events_kind_known": true,
	}
	rows, err := testkit.Pool(t, testkit.NewDatabase(t)).Query(context.Background(), `
		select conname from pg_constraint where connamespace = 'setpoint'::regnamespace
		union
		select c.relname from pg_index i join pg_class c on c.oid = i.indexrelid
		where i.indisunique and c.relnamespace = 'setpoint'::regnamespace`)
	if err != nil {
		t.Fatal(err)
	}
	known := 0
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			t.Fatal(err)
		}
		reason, mapped := constraintReasons[name]
		if mapped == defects[name] {
			t.Errorf("constraint %s: has a reason: %t; is a defect's: %t", name, mapped, defects[name])
		}
		status, defect := Status(fmt.Errorf("write: %w", &pgconn.PgError{Code: "23505", ConstraintName: name}), "id")
		if defect == mapped || mapped && status.Code() != reasons[reason] {
			t.Errorf("a violation of %s is %s, a defect: %t", name, status.Code(), defect)
		}
		known++
	}
	if want := len(constraintReasons) + len(defects); known != want {
		t.Errorf("the schema has %d constraints, %d are known", known, want)
	}
	for name, reason := range constraintReasons {
		if _, ok := setpointv1.ErrorReason_name[int32(reason)]; !ok {
			t.Errorf("constraint %s has no reason", name)
		}
	}
}
