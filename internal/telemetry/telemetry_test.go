package telemetry_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/setpointdb/setpoint/internal/lease"
	"github.com/setpointdb/setpoint/internal/telemetry"
)

// line is a log line.
type line = map[string]any

// Every method of Events that is an event, by its name.
var eventCases = map[string]struct {
	call  func(ctx context.Context, e *telemetry.Events)
	want  line
	items int64 // Of a batch.
	// propagated is the time of a propagation.
	propagated time.Duration
	// waited is the time to a grant.
	waited time.Duration
	// checked is the time of a call that was judged.
	checked time.Duration
}{
	"AccessChecked": {
		call: func(ctx context.Context, e *telemetry.Events) {
			e.AccessChecked(ctx, telemetry.Check{Session: "s", Permission: "read", Result: "denied", Took: 2 * time.Second})
		},
		want: line{
			"level": "DEBUG", "msg": "access_check", "session": "s", "permission": "read", "result": "denied", "duration": 2e9,
		},
		checked: 2 * time.Second,
	},
	"AccessDenied": {
		call: func(ctx context.Context, e *telemetry.Events) {
			e.AccessDenied(ctx, telemetry.Violation{
				Session: "s", Principal: "user:a", Permission: "write", Variable: "x", Rule: "rule_1", Method: "S/M", Token: "tok_1",
				More: 2, Unlogged: 7,
			})
		},
		want: line{
			"level": "INFO", "msg": "access_denied", "session": "s", "by": "user:a", "permission": "write", "variable": "x",
			"rule": "rule_1", "method": "S/M", "token": "tok_1", "more": 2.0, "unlogged": 7.0,
		},
	},
	"AccessRuleChanged": {
		call: func(ctx context.Context, e *telemetry.Events) {
			e.AccessRuleChanged(ctx, telemetry.RuleChange{
				Session: "s", Change: "added", Rule: "rule_1", Variable: "x", Subject: "user:*", Principal: "user:a", Token: "tok_1",
			})
		},
		want: line{
			"level": "INFO", "msg": "access_rule_changed", "session": "s", "change": "added", "rule": "rule_1", "variable": "x",
			"subject": "user:*", "by": "user:a", "token": "tok_1",
		},
	},
	"TokenCreated": {
		call: func(ctx context.Context, e *telemetry.Events) { e.TokenCreated(ctx, "tok_1", "user:b", "user:a") },
		want: line{"level": "INFO", "msg": "token_created", "token": "tok_1", "principal": "user:b", "by": "user:a"},
	},
	"TokenRevoked": {
		call: func(ctx context.Context, e *telemetry.Events) { e.TokenRevoked(ctx, "tok_1", "user:b", "user:a") },
		want: line{"level": "INFO", "msg": "token_revoked", "token": "tok_1", "principal": "user:b", "by": "user:a"},
	},
	"AuthenticationFailed": {
		call: func(ctx context.Context, e *telemetry.Events) {
			e.AuthenticationFailed(ctx, telemetry.FailedAuthentication{Peer: "192.0.2.1", Method: "S/M", Reason: "CREDENTIALS_INVALID", Unlogged: 7})
		},
		want: line{
			"level": "INFO", "msg": "authentication_failed", "peer": "192.0.2.1", "method": "S/M", "reason": "CREDENTIALS_INVALID",
			"unlogged": 7.0,
		},
	},
	"IssuerKeysFetched": {
		call: func(ctx context.Context, e *telemetry.Events) { e.IssuerKeysFetched(ctx, "https://i.example", 2) },
		want: line{"level": "DEBUG", "msg": "issuer_keys_fetched", "issuer": "https://i.example", "keys": 2.0},
	},
	"IssuerKeysFailed": {
		call: func(ctx context.Context, e *telemetry.Events) {
			e.IssuerKeysFailed(ctx, "https://i.example", errors.New("broken"))
		},
		want: line{"level": "WARN", "msg": "issuer_keys_failed", "issuer": "https://i.example", "error": "broken"},
	},
	"CertificatesReloaded": {
		call: func(ctx context.Context, e *telemetry.Events) { e.CertificatesReloaded(ctx) },
		want: line{"level": "INFO", "msg": "certificates_reloaded"},
	},
	"CertificatesNotReloaded": {
		call: func(ctx context.Context, e *telemetry.Events) { e.CertificatesNotReloaded(ctx, errors.New("broken")) },
		want: line{"level": "ERROR", "msg": "certificates_not_reloaded", "error": "broken"},
	},
	"AuditWaited": {
		call: func(ctx context.Context, e *telemetry.Events) { e.AuditWaited(ctx) },
		want: line{"level": "DEBUG", "msg": "audit_waited"},
	},
	"AuditFailed": {
		call: func(ctx context.Context, e *telemetry.Events) { e.AuditFailed(ctx, errors.New("broken")) },
		want: line{"level": "WARN", "msg": "audit_failed", "error": "broken"},
	},
	"AuditLost": {
		call: func(ctx context.Context, e *telemetry.Events) { e.AuditLost(ctx, 3, errors.New("broken")) },
		want: line{"level": "ERROR", "msg": "audit_lost", "denials": 3.0, "error": "broken"},
	},
	"AuditPruned": {
		call: func(ctx context.Context, e *telemetry.Events) { e.AuditPruned(ctx, 3) },
		want: line{"level": "INFO", "msg": "audit_pruned", "rows": 3.0},
	},
	"OptimizationStatusChanged": {
		call: func(ctx context.Context, e *telemetry.Events) {
			e.OptimizationStatusChanged(ctx, lease.Change{
				Session: "s", Optimization: "opt_1", Optimizer: "o", From: "active", To: "expired", Variables: []string{"x", "y"},
				Reason: "late",
			})
		},
		want: line{
			"level": "INFO", "msg": "optimization_status_change", "session": "s", "optimization": "opt_1", "optimizer": "o",
			"from": "active", "to": "expired", "variables": []any{"x", "y"}, "reason": "late",
		},
	},
	"OptimizationProgress": {
		call: func(ctx context.Context, e *telemetry.Events) {
			e.OptimizationProgress(ctx, "s", "opt_1", 7, true, false)
		},
		want: line{
			"level": "DEBUG", "msg": "optimization_progress", "session": "s", "optimization": "opt_1", "trial": 7.0, "best": true,
			"late": false,
		},
	},
	"LockAcquired": {
		call:   func(ctx context.Context, e *telemetry.Events) { e.LockAcquired(ctx, "s", "opt_1", 2*time.Second) },
		want:   line{"level": "DEBUG", "msg": "lock_acquired", "session": "s", "optimization": "opt_1", "wait": 2e9},
		waited: 2 * time.Second,
	},
	"LockConflict": {
		call: func(ctx context.Context, e *telemetry.Events) {
			e.LockConflict(ctx, "s", "x", "LEASE_LOST", "opt_1", "user:a")
		},
		want: line{
			"level": "INFO", "msg": "lock_conflict", "session": "s", "variable": "x", "reason": "LEASE_LOST",
			"optimization": "opt_1", "by": "user:a",
		},
	},
	"OptimizationPreempted": {
		call: func(ctx context.Context, e *telemetry.Events) {
			e.OptimizationPreempted(ctx, "s", "opt_1", "opt_2", 3*time.Second)
		},
		want: line{"level": "INFO", "msg": "preempted", "session": "s", "optimization": "opt_1", "by": "opt_2", "held": 3e9},
	},
	"QueueFailed": {
		call: func(ctx context.Context, e *telemetry.Events) { e.QueueFailed(ctx, errors.New("broken")) },
		want: line{"level": "WARN", "msg": "queue_failed", "error": "broken"},
	},
	"SessionCreated": {
		call: func(ctx context.Context, e *telemetry.Events) { e.SessionCreated(ctx, "s", "user:a") },
		want: line{"level": "INFO", "msg": "session_created", "session": "s", "owner": "user:a"},
	},
	"SessionDeleted": {
		call: func(ctx context.Context, e *telemetry.Events) { e.SessionDeleted(ctx, "s", "user:a") },
		want: line{"level": "INFO", "msg": "session_deleted", "session": "s", "by": "user:a"},
	},
	"SessionExpired": {
		call: func(ctx context.Context, e *telemetry.Events) { e.SessionExpired(ctx, "s", 3) },
		want: line{"level": "INFO", "msg": "session_expired", "session": "s", "variables": 3.0},
	},
	"HistoryPruned": {
		call: func(ctx context.Context, e *telemetry.Events) { e.HistoryPruned(ctx, "s", 3) },
		want: line{"level": "INFO", "msg": "history_pruned", "session": "s", "rows": 3.0},
	},
	"ExtendFailed": {
		call: func(ctx context.Context, e *telemetry.Events) { e.ExtendFailed(ctx, errors.New("broken")) },
		want: line{"level": "WARN", "msg": "session_extend_failed", "error": "broken"},
	},
	"VariableRegistered": {
		call: func(ctx context.Context, e *telemetry.Events) { e.VariableRegistered(ctx, "s", "x", "float", "user:a") },
		want: line{
			"level": "DEBUG", "msg": "variable_registered", "session": "s", "variable": "x", "type": "float", "by": "user:a",
		},
	},
	"VariableRead": {
		call: func(ctx context.Context, e *telemetry.Events) { e.VariableRead(ctx, "s", "x", 3) },
		want: line{"level": "DEBUG", "msg": "variable_read", "session": "s", "variable": "x", "version": 3.0},
	},
	"VariableSet": {
		call: func(ctx context.Context, e *telemetry.Events) { e.VariableSet(ctx, "s", "x", 3, "user:a") },
		want: line{
			"level": "DEBUG", "msg": "variable_set", "session": "s", "variable": "x", "version": 3.0, "by": "user:a",
		},
	},
	"VariableUpdated": {
		call: func(ctx context.Context, e *telemetry.Events) { e.VariableUpdated(ctx, "s", "x", "user:a") },
		want: line{"level": "DEBUG", "msg": "variable_updated", "session": "s", "variable": "x", "by": "user:a"},
	},
	"VariableDeleted": {
		call: func(ctx context.Context, e *telemetry.Events) { e.VariableDeleted(ctx, "s", "x", "user:a") },
		want: line{"level": "INFO", "msg": "variable_deleted", "session": "s", "variable": "x", "by": "user:a"},
	},
	"VariableRolledBack": {
		call: func(ctx context.Context, e *telemetry.Events) { e.VariableRolledBack(ctx, "s", "x", 1, 3, "user:a") },
		want: line{
			"level": "INFO", "msg": "variable_rolled_back", "session": "s", "variable": "x", "to_version": 1.0, "version": 3.0,
			"by": "user:a",
		},
	},
	"SessionRolledBack": {
		call: func(ctx context.Context, e *telemetry.Events) { e.SessionRolledBack(ctx, "s", 1, 3, "user:a") },
		want: line{
			"level": "INFO", "msg": "session_rolled_back", "session": "s", "to_revision": 1.0, "variables": 3.0, "by": "user:a",
		},
	},
	"BatchRegistered": {
		call: func(ctx context.Context, e *telemetry.Events) { e.BatchRegistered(ctx, "s", "user:a", 5, 2) },
		want: line{
			"level": "DEBUG", "msg": "batch_registered", "session": "s", "by": "user:a", "items": 5.0, "failed": 2.0,
		},
		items: 5,
	},
	"BatchSet": {
		call:  func(ctx context.Context, e *telemetry.Events) { e.BatchSet(ctx, "s", "user:a", 5, 2) },
		want:  line{"level": "DEBUG", "msg": "batch_set", "session": "s", "by": "user:a", "items": 5.0, "failed": 2.0},
		items: 5,
	},
	"BatchRead": {
		call:  func(ctx context.Context, e *telemetry.Events) { e.BatchRead(ctx, "s", "user:a", 5, 2) },
		want:  line{"level": "DEBUG", "msg": "batch_read", "session": "s", "by": "user:a", "items": 5.0, "failed": 2.0},
		items: 5,
	},
	"VersionMismatch": {
		call: func(ctx context.Context, e *telemetry.Events) { e.VersionMismatch(ctx, "s", "x", 1, 3, "user:a") },
		want: line{
			"level": "DEBUG", "msg": "version_mismatch", "session": "s", "variable": "x", "expected_version": 1.0,
			"current_version": 3.0, "by": "user:a",
		},
	},
	"ValueRefused": {
		call: func(ctx context.Context, e *telemetry.Events) {
			e.ValueRefused(ctx, "s", "x", "CONSTRAINT_VIOLATION", "user:a")
		},
		want: line{
			"level": "DEBUG", "msg": "value_refused", "session": "s", "variable": "x", "reason": "CONSTRAINT_VIOLATION",
			"by": "user:a",
		},
	},
	"RequestReplayed": {
		call: func(ctx context.Context, e *telemetry.Events) { e.RequestReplayed(ctx, "s", "user:a") },
		want: line{"level": "DEBUG", "msg": "request_replayed", "session": "s", "by": "user:a"},
	},
	"TransactionRetried": {
		call: func(ctx context.Context, e *telemetry.Events) { e.TransactionRetried(ctx, errors.New("broken")) },
		want: line{"level": "DEBUG", "msg": "transaction_retried", "error": "broken"},
	},
	"SweepFailed": {
		call: func(ctx context.Context, e *telemetry.Events) { e.SweepFailed(ctx, errors.New("broken")) },
		want: line{"level": "WARN", "msg": "sweep_failed", "error": "broken"},
	},
	"DependencyAdded": {
		call: func(ctx context.Context, e *telemetry.Events) { e.DependencyAdded(ctx, "s", "a", "b", "user:a") },
		want: line{
			"level": "DEBUG", "msg": "dependency_added", "session": "s", "dependent": "a", "dependency": "b", "by": "user:a",
		},
	},
	"DependencyRemoved": {
		call: func(ctx context.Context, e *telemetry.Events) { e.DependencyRemoved(ctx, "s", "a", "b", "user:a") },
		want: line{
			"level": "DEBUG", "msg": "dependency_removed", "session": "s", "dependent": "a", "dependency": "b", "by": "user:a",
		},
	},
	"CycleDetected": {
		call: func(ctx context.Context, e *telemetry.Events) { e.CycleDetected(ctx, "s", `["a","b","a"]`, "user:a") },
		want: line{"level": "INFO", "msg": "cycle_detected", "session": "s", "path": `["a","b","a"]`, "by": "user:a"},
	},
	"Propagated": {
		call: func(ctx context.Context, e *telemetry.Events) { e.Propagated(ctx, "s", 1500*time.Millisecond, 3) },
		want: line{"level": "DEBUG", "msg": "propagation", "session": "s", "duration": 1.5e9, "affected": 3.0},

		propagated: 1500 * time.Millisecond,
	},
	"Panicked": {
		call: func(ctx context.Context, e *telemetry.Events) { e.Panicked(ctx, "/s/M", "boom", []byte("frames")) },
		want: line{"level": "ERROR", "msg": "panic", "method": "/s/M", "value": "boom", "stack": "frames"},
	},
	"InternalError": {
		call: func(ctx context.Context, e *telemetry.Events) { e.InternalError(ctx, "/s/M", errors.New("broken")) },
		want: line{"level": "ERROR", "msg": "internal_error", "method": "/s/M", "error": "broken"},
	},
}

// recorder is an Events whose log lines and measurements the test reads.
type recorder struct {
	*telemetry.Events
	log    *bytes.Buffer
	reader *metric.ManualReader
}

func newRecorder(t *testing.T, level slog.Level) *recorder {
	t.Helper()
	r := &recorder{log: &bytes.Buffer{}, reader: metric.NewManualReader()}
	log := slog.New(slog.NewJSONHandler(r.log, &slog.HandlerOptions{Level: level}))
	var err error
	r.Events, err = telemetry.New(log, metric.NewMeterProvider(metric.WithReader(r.reader)))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// lines are the log lines, without their times.
func (r *recorder) lines(t *testing.T) []line {
	t.Helper()
	var lines []line
	for d := json.NewDecoder(r.log); d.More(); {
		var l line
		if err := d.Decode(&l); err != nil {
			t.Fatal(err)
		}
		delete(l, "time")
		lines = append(lines, l)
	}
	return lines
}

// measured is what an instrument has counted, or the sum that it has recorded, by its attributes.
func (r *recorder) measured(t *testing.T, instrument string) map[string]float64 {
	t.Helper()
	var all metricdata.ResourceMetrics
	if err := r.reader.Collect(context.Background(), &all); err != nil {
		t.Fatal(err)
	}
	found := map[string]float64{}
	add := func(set attribute.Set, v float64) { found[set.Encoded(attribute.DefaultEncoder())] += v }
	for _, scope := range all.ScopeMetrics {
		for _, m := range scope.Metrics {
			if m.Name != instrument {
				continue
			}
			switch data := m.Data.(type) {
			case metricdata.Sum[int64]:
				for _, p := range data.DataPoints {
					add(p.Attributes, float64(p.Value))
				}
			case metricdata.Histogram[int64]:
				for _, p := range data.DataPoints {
					add(p.Attributes, float64(p.Sum))
				}
			case metricdata.Histogram[float64]:
				for _, p := range data.DataPoints {
					add(p.Attributes, p.Sum)
				}
			default:
				t.Fatalf("%s is a %T", instrument, data)
			}
		}
	}
	return found
}

func wantSame(t *testing.T, what string, want, got any) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

func TestEvents(t *testing.T) {
	t.Parallel()
	for name, test := range eventCases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRecorder(t, slog.LevelDebug)
			test.call(context.Background(), r.Events)
			test.call(telemetry.WithRequest(context.Background(), "req-1"), r.Events)
			within := line{"request": "req-1"}
			for key, v := range test.want {
				within[key] = v
			}
			wantSame(t, "log lines", []line{test.want, within}, r.lines(t))
			event := "event=" + test.want["msg"].(string)
			wantSame(t, "counts", map[string]float64{event: 2}, r.measured(t, "setpoint.events"))
			batches := map[string]float64{}
			if test.items > 0 {
				batches[event] = float64(2 * test.items)
			}
			wantSame(t, "items of batches", batches, r.measured(t, "setpoint.batch.items"))
			propagations := map[string]float64{}
			if test.propagated > 0 {
				propagations[""] = 2 * test.propagated.Seconds()
			}
			waits := map[string]float64{}
			if test.waited > 0 {
				waits[""] = 2 * test.waited.Seconds()
			}
			checks := map[string]float64{}
			if test.checked > 0 {
				checks["permission=read,result=denied"] = 2 * test.checked.Seconds()
			}
			wantSame(t, "seconds of checks", checks, r.measured(t, "setpoint.access.duration"))
			wantSame(t, "seconds of waits", waits, r.measured(t, "setpoint.lock.wait"))
			wantSame(t, "seconds of propagations", propagations, r.measured(t, "setpoint.propagation.duration"))
		})
	}
}

// Every method is tested above, but those that are no events.
func TestEventCasesAreComplete(t *testing.T) {
	t.Parallel()
	names := map[string]string{}
	for m := range reflect.TypeFor[*telemetry.Events]().Methods() {
		if _, ok := eventCases[m.Name]; !ok && !slices.Contains([]string{"WatchQueue", "Call"}, m.Name) {
			t.Errorf("%s has no case", m.Name)
		}
	}
	for method, test := range eventCases {
		event := test.want["msg"].(string)
		if other, ok := names[event]; ok {
			t.Errorf("%s and %s are both %s", method, other, event)
		}
		names[event] = method
	}
}

// An event that the log does not show counts too.
func TestQuietLog(t *testing.T) {
	t.Parallel()
	r := newRecorder(t, slog.LevelError)
	r.VariableRead(context.Background(), "s", "x", 3)
	r.Call(context.Background(), "/s/M", "OK", "", "user:a", time.Second)
	if r.log.Len() > 0 {
		t.Errorf("logged: %s", r.log)
	}
	wantSame(t, "counts", map[string]float64{"event=variable_read": 1}, r.measured(t, "setpoint.events"))
	wantSame(t, "durations", map[string]float64{"code=OK,method=/s/M,reason=": 1}, r.measured(t, "setpoint.rpc.duration"))
}

func TestCall(t *testing.T) {
	t.Parallel()
	r := newRecorder(t, slog.LevelDebug)
	ctx := telemetry.WithRequest(context.Background(), "req-1")
	r.Call(ctx, "/s/M", "NotFound", "SESSION_NOT_FOUND", "user:a", 1500*time.Millisecond)
	wantSame(t, "log lines", []line{{
		"level": "DEBUG", "msg": "call", "method": "/s/M", "code": "NotFound", "reason": "SESSION_NOT_FOUND", "by": "user:a",
		"took": 1.5e9, "request": "req-1",
	}}, r.lines(t))
	wantSame(t, "durations in seconds", map[string]float64{"code=NotFound,method=/s/M,reason=SESSION_NOT_FOUND": 1.5},
		r.measured(t, "setpoint.rpc.duration"))
	wantSame(t, "events", map[string]float64{}, r.measured(t, "setpoint.events"))
}

// Without a meter provider there is the log alone.
func TestNoMeterProvider(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	logger := slog.New(slog.NewJSONHandler(&log, nil))
	e, err := telemetry.New(logger, nil)
	if err != nil {
		t.Fatal(err)
	}
	e.SessionCreated(context.Background(), "s", "user:a")
	if !bytes.Contains(log.Bytes(), []byte(`"msg":"session_created"`)) {
		t.Errorf("logged: %s", &log)
	}
}
