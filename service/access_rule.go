package service

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgtype"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/identity"
)

// An access rule: as it is asked for, as the database and the records have it, and as it is told.

const rulePrefix = "rule_"

// permissions are the API's permissions as package identity has them.
var permissions = map[setpointv1.Permission]identity.Permissions{
	setpointv1.Permission_PERMISSION_READ:     identity.Read,
	setpointv1.Permission_PERMISSION_WRITE:    identity.Write,
	setpointv1.Permission_PERMISSION_OBSERVE:  identity.Observe,
	setpointv1.Permission_PERMISSION_OPTIMIZE: identity.Optimize,
	setpointv1.Permission_PERMISSION_ADMIN:    identity.Admin,
}

// permissionList is a set of permissions as the API has it, from read to admin.
func permissionList(set identity.Permissions) []setpointv1.Permission {
	var list []setpointv1.Permission
	for p := setpointv1.Permission_PERMISSION_READ; p <= setpointv1.Permission_PERMISSION_ADMIN; p++ {
		if set&permissions[p] != 0 {
			list = append(list, p)
		}
	}
	return list
}

func permissionSet(list []setpointv1.Permission) identity.Permissions {
	var set identity.Permissions
	for _, p := range list {
		set |= permissions[p]
	}
	return set
}

// accessRule is a rule.
type accessRule struct {
	id string
	// variableID is empty for all of the session, and so is variable, which is also empty where the variable was deleted.
	variableID, variable string
	subject              string
	permissions          identity.Permissions
	allows               bool
	priority             int32
	expiresAt            pgtype.Timestamptz
	grantedBy            string
	grantedAt            pgtype.Timestamptz
	revision             int64
}

func (r accessRule) proto() *setpointv1.AccessRule {
	out := r.decision()
	out.Subject, out.VariableId, out.GrantedBy = r.subject, r.variableID, r.grantedBy
	out.GrantedAt, out.Revision = timestamp(r.grantedAt), r.revision
	if out.Variable = r.variable; out.Variable == "" {
		out.Variable = r.variableID
	}
	return out
}

// decision is what those may know of a rule for whom it decides.
func (r accessRule) decision() *setpointv1.AccessRule {
	effect := setpointv1.AccessEffect_ACCESS_EFFECT_DENY
	if r.allows {
		effect = setpointv1.AccessEffect_ACCESS_EFFECT_ALLOW
	}
	return &setpointv1.AccessRule{
		RuleId: r.id, Permissions: permissionList(r.permissions), Effect: effect, Priority: r.priority,
		ExpiresAt: timestamp(r.expiresAt),
	}
}

// ruleRecord is a rule as history and the audit keep it.
type ruleRecord struct {
	RuleID      string     `json:"rule_id"`
	Subject     string     `json:"subject"`
	Permissions []string   `json:"permissions"`
	Effect      string     `json:"effect"`
	Priority    int32      `json:"priority"`
	ExpiresAt   *time.Time `json:"expires_at"`
}

const (
	effectAllow = "allow"
	effectDeny  = "deny"
)

func (r accessRule) record() []byte {
	record := ruleRecord{
		RuleID: r.id, Subject: r.subject, Permissions: r.permissions.Names(), Effect: effectDeny, Priority: r.priority,
	}
	if r.allows {
		record.Effect = effectAllow
	}
	if r.expiresAt.Valid {
		at := r.expiresAt.Time.UTC()
		record.ExpiresAt = &at
	}
	data, _ := json.Marshal(record) // Texts, numbers and a time of four digits always marshal.
	return data
}

// recordedRule reads a ruleRecord; nil if there is none. Of a rule that denied, its id alone is kept.
func recordedRule(data []byte) (*setpointv1.AccessRule, error) {
	if len(data) == 0 {
		return nil, nil
	}
	var record ruleRecord
	if err := json.Unmarshal(data, &record); err != nil {
		return nil, fmt.Errorf("read a recorded rule: %w", err)
	}
	rule := &setpointv1.AccessRule{RuleId: record.RuleID, Subject: record.Subject, Priority: record.Priority}
	var set identity.Permissions
	for _, name := range record.Permissions {
		p, _ := identity.ParsePermission(name) // What a later release knows is left out.
		set |= p
	}
	rule.Permissions = permissionList(set)
	switch record.Effect {
	case effectAllow:
		rule.Effect = setpointv1.AccessEffect_ACCESS_EFFECT_ALLOW
	case effectDeny:
		rule.Effect = setpointv1.AccessEffect_ACCESS_EFFECT_DENY
	}
	if record.ExpiresAt != nil {
		rule.ExpiresAt = timestamppb.New(*record.ExpiresAt)
	}
	return rule, nil
}

// checkRule checks all of a rule but what needs the clock.
func checkRule(field string, spec *setpointv1.AccessRuleSpec) error {
	if err := identity.ParseSubject(spec.GetSubject()); err != nil {
		return invalid(field+".subject", strings.TrimPrefix(err.Error(), "subject: "))
	}
	return checkExpiry(field+".expires_at", spec.GetExpiresAt())
}

// checkExpiry checks that a time is one.
func checkExpiry(field string, at *timestamppb.Timestamp) error {
	if at != nil && !at.IsValid() {
		return invalid(field, "must be a time of the years 1 to 9999")
	}
	return nil
}

// expiryOf is when something ends, by the database's clock, which reads now.
func expiryOf(
	field string, ttl *durationpb.Duration, at *timestamppb.Timestamp, now pgtype.Timestamptz,
) (pgtype.Timestamptz, error) {
	end := now.Time.Add(ttl.AsDuration())
	switch {
	case at != nil:
		end = at.AsTime()
	case ttl == nil:
		return pgtype.Timestamptz{}, nil
	}
	end = end.Truncate(time.Microsecond) // As it is kept.
	if !end.After(now.Time) {
		return pgtype.Timestamptz{}, inThePast(field)
	}
	return pgtype.Timestamptz{Time: end, Valid: true}, nil
}

func inThePast(field string) *Error { return invalid(field, "must be in the future") }

// newRule is the rule that a specification describes, made now.
func newRule(field string, spec *setpointv1.AccessRuleSpec, now pgtype.Timestamptz) (accessRule, error) {
	id, err := newID(rulePrefix)
	if err != nil {
		return accessRule{}, fmt.Errorf("make a rule's id: %w", err)
	}
	expiresAt, err := expiryOf(field+".expires_at", spec.GetTtl(), spec.GetExpiresAt(), now)
	return accessRule{
		id: id, subject: spec.GetSubject(), permissions: permissionSet(spec.GetPermissions()),
		allows: spec.GetEffect() != setpointv1.AccessEffect_ACCESS_EFFECT_DENY, priority: spec.GetPriority(), expiresAt: expiresAt,
	}, err
}
