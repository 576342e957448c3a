package service

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/setpointdb/setpoint/db/dbgen"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/identity"
	"github.com/setpointdb/setpoint/internal/telemetry"
)

// The rules of a session come and go under its lock, each with a row of history and an audit event in the same transaction.

// ruleChange is a change of the rules of a variable, or of those for all of a session.
type ruleChange struct {
	sessionID string
	// variableID and variable are empty for all of the session.
	variableID, variable      string
	principal, reason, method string
}

// ruleTarget is what the caller wants to change the rules of, and has admin on.
func ruleTarget(
	ctx context.Context, q transaction, state dbgen.SessionStateRow, change ruleChange, variable string,
) (ruleChange, error) {
	switch {
	case !state.Alive:
		return change, sessionNotFound(change.sessionID)
	case variable == "" && state.Access&int32(identity.Admin) == 0:
		return change, denied(identity.Admin, "", "")
	case variable == "":
		return change, nil
	}
	c := callerIn(ctx, change.sessionID)
	rows, err := q.SightCheck(ctx, dbgen.SightCheckParams{
		SessionID: change.sessionID, Principal: c.principal, Groups: c.groups, Authority: c.authority,
		Identifiers: []string{variable}, Permissions: []int32{int32(identity.Admin)},
	})
	if err != nil {
		return change, err
	}
	if e := checked(rows[0]).refusal(change.sessionID); e != nil {
		return change, e
	}
	change.variableID, change.variable = rows[0].VariableID, rows[0].Name
	return change, nil
}

// addRules adds rules; it tells who granted them, when, and with which revisions. There are some.
func (s *Service) addRules(ctx context.Context, q transaction, change ruleChange, rules []accessRule) error {
	if err := s.roomForRules(ctx, q, change, rules); err != nil {
		return err
	}
	params := dbgen.AccessRuleAddParams{
		SessionID: change.sessionID, VariableID: change.variableID, Principal: change.principal, Reason: change.reason,
	}
	for _, r := range rules {
		pattern, wild := identity.SubjectLike(r.subject)
		if !wild {
			pattern = ""
		}
		reach := r.permissions.IncludedBy()
		if r.allows {
			reach = r.permissions.Including()
		}
		params.RuleIds, params.Subjects = append(params.RuleIds, r.id), append(params.Subjects, r.subject)
		params.Patterns, params.Allows = append(params.Patterns, pattern), append(params.Allows, r.allows)
		params.Permissions = append(params.Permissions, int32(r.permissions))
		params.Reaches, params.Priorities = append(params.Reaches, int32(reach)), append(params.Priorities, r.priority)
		params.Expiries, params.Records = append(params.Expiries, r.expiresAt), append(params.Records, r.record())
	}
	added, err := q.AccessRuleAdd(ctx, params)
	if err != nil {
		return err
	}
	for i := range rules {
		r := &rules[i]
		r.variableID, r.variable, r.grantedBy, r.grantedAt = change.variableID, change.variable, change.principal, added.ChangedAt
		r.revision = added.Revision - int64(len(rules)-1-i)
	}
	return s.auditRules(ctx, q, change, "added", auditRuleAdded, rules)
}

// roomForRules refuses rules that would be too many. What has expired does not count: it goes where there would be no room, without a
// word in history, which has when it was to end.
func (s *Service) roomForRules(ctx context.Context, q transaction, change ruleChange, rules []accessRule) error {
	wildcards := int64(0)
	for _, r := range rules {
		if _, wild := identity.SubjectLike(r.subject); wild {
			wildcards++
		}
	}
	for forgot := false; ; forgot = true {
		has, err := q.AccessRuleCount(ctx, dbgen.AccessRuleCountParams{SessionID: change.sessionID, VariableID: change.variableID})
		if err != nil {
			return err
		}
		tooMany := has.Rules+int64(len(rules)) > s.limits.AccessRules
		tooWild := wildcards > 0 && has.Wildcards+wildcards > s.limits.WildcardRules
		switch {
		case !tooMany && !tooWild:
			return nil
		case forgot && tooMany:
			return limitExceeded("access_rules", s.limits.AccessRules, fmt.Sprintf("a session has at most %d access rules",
				s.limits.AccessRules))
		case forgot:
			return limitExceeded("wildcard_rules", s.limits.WildcardRules, fmt.Sprintf(
				"at most %d access rules with a wildcard are for one variable, and as many for the whole session", s.limits.WildcardRules))
		}
		if err := q.AccessRuleForget(ctx, dbgen.AccessRuleForgetParams{SessionID: change.sessionID}); err != nil {
			return err
		}
	}
}

// removeRules removes rules, if any; it returns the session's revision after.
func (s *Service) removeRules(ctx context.Context, q transaction, change ruleChange, rules []accessRule) (int64, error) {
	params := dbgen.AccessRuleRemoveParams{
		SessionID: change.sessionID, Principal: change.principal, Reason: change.reason, RuleIds: []string{}, Records: [][]byte{},
	}
	for _, r := range rules {
		params.RuleIds, params.Records = append(params.RuleIds, r.id), append(params.Records, r.record())
	}
	removed, err := q.AccessRuleRemove(ctx, params)
	if err != nil {
		return 0, err
	}
	return removed.Revision, s.auditRules(ctx, q, change, "removed", auditRuleRemoved, rules)
}

// auditRules audits changes, and has them told of when they are committed.
func (s *Service) auditRules(
	ctx context.Context, q transaction, change ruleChange, word, kind string, rules []accessRule,
) error {
	var events []auditEvent
	for _, r := range rules {
		about := change.variable
		if about == "" {
			about = change.variableID
		}
		events = append(events, auditEvent{
			sessionID: change.sessionID, kind: kind, principal: change.principal, variable: about, rule: r.record(),
			method: change.method, reason: change.reason,
		})
		q.after.add(func(ctx context.Context) {
			s.events.AccessRuleChanged(ctx, telemetry.RuleChange{
				Session: change.sessionID, Change: word, Rule: r.id, Variable: about, Subject: r.subject, Principal: change.principal,
				Token: identity.FromContext(ctx).Credentials,
			})
		})
	}
	return insertAudit(ctx, q.Queries, events)
}

// SetVariablePermissions replaces the rules of a variable.
func (s *Service) SetVariablePermissions(ctx context.Context, req *setpointv1.SetVariablePermissionsRequest) (
	*setpointv1.SetVariablePermissionsResponse, error,
) {
	if err := s.checkBatch(len(req.GetRules())); err != nil {
		return nil, err
	}
	for i, spec := range req.GetRules() {
		if err := checkRule(fmt.Sprintf("rules[%d]", i), spec); err != nil {
			return nil, err
		}
	}
	change := ruleChange{
		sessionID: req.GetSessionId(), principal: identity.FromContext(ctx).Name, reason: req.GetReason(),
		method: methodName(setpointv1.AccessService_SetVariablePermissions_FullMethodName),
	}
	response, replayed, err := write(ctx, s, req, &setpointv1.SetVariablePermissionsResponse{},
		func(ctx context.Context, q transaction, state dbgen.SessionStateRow) (*setpointv1.SetVariablePermissionsResponse, error) {
			change, err := ruleTarget(ctx, q, state, change, req.GetVariable())
			if err != nil {
				return nil, err
			}
			return s.replaceRules(ctx, q, state, change, req.GetRules())
		})
	if replayed {
		s.events.RequestReplayed(ctx, req.GetSessionId(), change.principal)
	}
	return response, err
}

func (s *Service) replaceRules(
	ctx context.Context, q transaction, state dbgen.SessionStateRow, change ruleChange, specs []*setpointv1.AccessRuleSpec,
) (*setpointv1.SetVariablePermissionsResponse, error) {
	var rules []accessRule
	for i, spec := range specs {
		rule, err := newRule(fmt.Sprintf("rules[%d]", i), spec, state.ReadAt)
		if err != nil {
			return nil, err
		}
		rules = append(rules, rule)
	}
	rows, err := q.AccessRuleOf(ctx, dbgen.AccessRuleOfParams{SessionID: change.sessionID, VariableID: change.variableID})
	if err != nil {
		return nil, err
	}
	var old []accessRule
	for _, row := range rows {
		old = append(old, accessRule{
			id: row.RuleID, subject: row.Subject, permissions: identity.Permissions(row.Permissions), allows: row.Allows,
			priority: row.Priority, expiresAt: row.ExpiresAt,
		})
	}
	response := &setpointv1.SetVariablePermissionsResponse{RemovedCount: int32(len(old))}
	if response.Revision, err = s.removeRules(ctx, q, change, old); err != nil || len(rules) == 0 {
		return response, err
	}
	if err := s.addRules(ctx, q, change, rules); err != nil {
		return nil, err
	}
	for _, r := range rules {
		response.Rules, response.Revision = append(response.Rules, r.proto()), r.revision
	}
	return response, nil
}

// AddAccessRule adds a rule.
func (s *Service) AddAccessRule(ctx context.Context, req *setpointv1.AddAccessRuleRequest) (*setpointv1.AccessRule, error) {
	if err := checkRule("rule", req.GetRule()); err != nil {
		return nil, err
	}
	change := ruleChange{
		sessionID: req.GetSessionId(), principal: identity.FromContext(ctx).Name, reason: req.GetReason(),
		method: methodName(setpointv1.AccessService_AddAccessRule_FullMethodName),
	}
	response, replayed, err := write(ctx, s, req, &setpointv1.AccessRule{},
		func(ctx context.Context, q transaction, state dbgen.SessionStateRow) (*setpointv1.AccessRule, error) {
			change, err := ruleTarget(ctx, q, state, change, req.GetVariable())
			if err != nil {
				return nil, err
			}
			rule, err := newRule("rule", req.GetRule(), state.ReadAt)
			if err != nil {
				return nil, err
			}
			added := []accessRule{rule}
			if err := s.addRules(ctx, q, change, added); err != nil {
				return nil, err
			}
			return added[0].proto(), nil
		})
	if replayed {
		s.events.RequestReplayed(ctx, req.GetSessionId(), change.principal)
	}
	return response, err
}

// RemoveAccessRule removes a rule.
func (s *Service) RemoveAccessRule(ctx context.Context, req *setpointv1.RemoveAccessRuleRequest) (
	*setpointv1.RemoveAccessRuleResponse, error,
) {
	change := ruleChange{
		sessionID: req.GetSessionId(), principal: identity.FromContext(ctx).Name, reason: req.GetReason(),
		method: methodName(setpointv1.AccessService_RemoveAccessRule_FullMethodName),
	}
	response, replayed, err := write(ctx, s, req, &setpointv1.RemoveAccessRuleResponse{},
		func(ctx context.Context, q transaction, state dbgen.SessionStateRow) (*setpointv1.RemoveAccessRuleResponse, error) {
			if !state.Alive {
				return nil, sessionNotFound(req.GetSessionId())
			}
			rule, err := ruleToRemove(ctx, q, state, req)
			if err != nil {
				return nil, err
			}
			change.variableID, change.variable = rule.variableID, rule.variable
			revision, err := s.removeRules(ctx, q, change, []accessRule{rule})
			return &setpointv1.RemoveAccessRuleResponse{Revision: revision}, err
		})
	if replayed {
		s.events.RequestReplayed(ctx, req.GetSessionId(), change.principal)
	}
	return response, err
}

// ruleToRemove finds a rule of something that the caller has admin on. Another rule is as one that there is not: who has admin in
// the session as a whole is told that there is none, and everybody else that they may not.
func ruleToRemove(
	ctx context.Context, q transaction, state dbgen.SessionStateRow, req *setpointv1.RemoveAccessRuleRequest,
) (accessRule, error) {
	c := callerIn(ctx, req.GetSessionId())
	row, err := q.AccessRuleGet(ctx, dbgen.AccessRuleGetParams{
		SessionID: req.GetSessionId(), RuleID: req.GetRuleId(), Principal: c.principal, Groups: c.groups, Authority: c.authority,
	})
	found := err == nil
	switch {
	case err != nil && !errors.Is(err, pgx.ErrNoRows):
		return accessRule{}, err
	case found && row.Access&int32(identity.Admin) != 0:
		return accessRule{
			id: row.RuleID, variableID: row.VariableID, variable: row.Variable, subject: row.Subject,
			permissions: identity.Permissions(row.Permissions), allows: row.Allows, priority: row.Priority, expiresAt: row.ExpiresAt,
		}, nil
	case state.Access&int32(identity.Admin) == 0:
		return accessRule{}, accessDenied(identity.Admin.String(), "it takes admin on what the rule is for")
	}
	e := refuse(setpointv1.ErrorReason_RULE_NOT_FOUND,
		fmt.Sprintf("no rule %s in session %q", req.GetRuleId(), req.GetSessionId()),
		"session_id", req.GetSessionId(), "rule_id", req.GetRuleId())
	if found {
		e.denial = &denial{permission: identity.Admin.String()}
	}
	return accessRule{}, e
}

// ListAccessRules returns a page of the rules of what the caller has admin on, by id.
func (s *Service) ListAccessRules(ctx context.Context, req *setpointv1.ListAccessRulesRequest) (
	*setpointv1.ListAccessRulesResponse, error,
) {
	filter := filterHash("rules", req.GetSessionId(), req.GetVariable(), req.GetSubject())
	token, err := decodePageToken(req.GetPageToken(), filter)
	if err != nil {
		return nil, err
	}
	size := pageSize(req.GetPageSize())
	var rows []dbgen.AccessRuleListRow
	err = s.db.Read(ctx, "list access rules", func(ctx context.Context, q *dbgen.Queries) error {
		c := callerIn(ctx, req.GetSessionId())
		rows, err = q.AccessRuleList(ctx, dbgen.AccessRuleListParams{
			SessionID: req.GetSessionId(), Principal: c.principal, Groups: c.groups, Authority: c.authority,
			Variable: req.GetVariable(), Subject: req.GetSubject(), After: token.Name, RowLimit: int32(size) + 1,
		})
		return err
	})
	switch {
	case err != nil:
		return nil, err
	case len(rows) == 0:
		return nil, sessionNotFound(req.GetSessionId())
	case !rows[0].Anything:
		return nil, sessionHidden(req.GetSessionId())
	}
	response := &setpointv1.ListAccessRulesResponse{}
	if len(rows) > size {
		rows = rows[:size]
		response.NextPageToken = pageToken{Filter: filter, Name: rows[size-1].RuleID}.encode()
	}
	for _, row := range rows {
		if row.RuleID != "" {
			response.Rules = append(response.Rules, listedRule(row).proto())
		}
	}
	if first := rows[0]; first.Refused != "" && len(response.Rules) == 0 {
		return nil, accessRefusal(first.Refused, req.GetSessionId(), req.GetVariable(), first.RefusedRuleID, identity.Admin)
	}
	s.extend.Note(req.GetSessionId(), rows[0].ReadAt.Time, microseconds(rows[0].TTLMicros))
	return response, nil
}

func listedRule(row dbgen.AccessRuleListRow) accessRule {
	return accessRule{
		id: row.RuleID, variableID: row.VariableID, variable: row.Variable, subject: row.Subject,
		permissions: identity.Permissions(row.Permissions), allows: row.Allows, priority: row.Priority, expiresAt: row.ExpiresAt,
		grantedBy: row.GrantedBy, grantedAt: row.GrantedAt, revision: row.Revision,
	}
}
