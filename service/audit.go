package service

import (
	"context"
	"fmt"
	"time"

	"github.com/setpointdb/setpoint/db/dbgen"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/identity"
)

// What changes who may do what is audited in its own transaction.

const eventPrefix = "evt_"

// The kinds of audit events as the database has them.
const (
	auditDenied        = "access_denied"
	auditRuleAdded     = "rule_added"
	auditRuleRemoved   = "rule_removed"
	auditAccessModeSet = "access_mode_set"
	auditTokenCreated  = "token_created"
	auditTokenRevoked  = "token_revoked"
	auditStopForced    = "stop_forced"
)

var auditKinds = map[setpointv1.AuditEventKind]string{
	setpointv1.AuditEventKind_AUDIT_EVENT_KIND_ACCESS_DENIED:   auditDenied,
	setpointv1.AuditEventKind_AUDIT_EVENT_KIND_RULE_ADDED:      auditRuleAdded,
	setpointv1.AuditEventKind_AUDIT_EVENT_KIND_RULE_REMOVED:    auditRuleRemoved,
	setpointv1.AuditEventKind_AUDIT_EVENT_KIND_ACCESS_MODE_SET: auditAccessModeSet,
	setpointv1.AuditEventKind_AUDIT_EVENT_KIND_TOKEN_CREATED:   auditTokenCreated,
	setpointv1.AuditEventKind_AUDIT_EVENT_KIND_TOKEN_REVOKED:   auditTokenRevoked,
	setpointv1.AuditEventKind_AUDIT_EVENT_KIND_STOP_FORCED:     auditStopForced,
}

var auditKindsByName = func() map[string]setpointv1.AuditEventKind {
	names := make(map[string]setpointv1.AuditEventKind, len(auditKinds))
	for kind, name := range auditKinds {
		names[name] = kind
	}
	return names
}()

// auditEvent is something to be audited.
type auditEvent struct {
	// id is made where there is none.
	id string
	// age is how long ago it was.
	age                                              time.Duration
	sessionID, kind, principal, permission, variable string
	// rule is a ruleRecord; nil for none.
	rule []byte
	// tokenID is empty for the token that the caller has shown, if any.
	tokenID, optimizationID, method, reason, detail string
}

// insertAudit writes events down, in the transaction of what they are about, whose context knows the caller.
func insertAudit(ctx context.Context, q *dbgen.Queries, events []auditEvent) error {
	if len(events) == 0 {
		return nil
	}
	var p dbgen.AuditInsertParams
	for _, e := range events {
		if e.id == "" {
			id, err := newID(eventPrefix)
			if err != nil {
				return fmt.Errorf("make an audit event's id: %w", err)
			}
			e.id = id
		}
		if e.rule == nil {
			e.rule = []byte("null")
		}
		if e.tokenID == "" {
			e.tokenID = identity.FromContext(ctx).Credentials
		}
		p.SessionIds, p.EventIds = append(p.SessionIds, e.sessionID), append(p.EventIds, e.id)
		p.AgesUs, p.Kinds = append(p.AgesUs, e.age.Microseconds()), append(p.Kinds, e.kind)
		p.Principals, p.Permissions = append(p.Principals, e.principal), append(p.Permissions, e.permission)
		p.Variables, p.AccessRules = append(p.Variables, e.variable), append(p.AccessRules, e.rule)
		p.TokenIds, p.OptimizationIds = append(p.TokenIds, e.tokenID), append(p.OptimizationIds, e.optimizationID)
		p.Methods, p.Reasons = append(p.Methods, e.method), append(p.Reasons, e.reason)
		p.Details = append(p.Details, e.detail)
	}
	return q.AuditInsert(ctx, p)
}

// auditForce audits that an optimization is stopped by force.
func auditForce(ctx context.Context, q *dbgen.Queries, sessionID, principal, optimizationID, reason string) error {
	return insertAudit(ctx, q, []auditEvent{{
		sessionID: sessionID, kind: auditStopForced, principal: principal, optimizationID: optimizationID, reason: reason,
		method: methodName(setpointv1.OptimizationService_StopOptimization_FullMethodName),
	}})
}

// modeChange is a variable that is registered with, or gets, another access mode.
type modeChange struct {
	variable string
	// from is empty of a registration.
	from, to string
}

// auditAccessMode audits that variables get other access modes. method is an RPC, as methodName has it.
func auditAccessMode(
	ctx context.Context, q *dbgen.Queries, sessionID, principal, method, reason string, changes ...modeChange,
) error {
	var events []auditEvent
	for _, c := range changes {
		detail := "registered as " + c.to
		if c.from != "" {
			detail = fmt.Sprintf("from %s to %s", c.from, c.to)
		}
		events = append(events, auditEvent{
			sessionID: sessionID, kind: auditAccessModeSet, principal: principal, variable: c.variable, method: method,
			reason: reason, detail: detail,
		})
	}
	return insertAudit(ctx, q, events)
}
