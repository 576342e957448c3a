package service

import (
	"context"
	"fmt"
	"strings"

	"github.com/setpointdb/setpoint/db/dbgen"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/identity"
)

// CheckAccess tells whether a subject has a permission, and why.
func (s *Service) CheckAccess(ctx context.Context, req *setpointv1.CheckAccessRequest) (*setpointv1.CheckAccessResponse, error) {
	results, err := s.checkAccess(ctx, req.GetSessionId(), "", []*setpointv1.AccessQuery{{
		Variable: req.GetVariable(), Permission: req.GetPermission(), Subject: req.GetSubject(), SubjectGroups: req.GetSubjectGroups(),
	}})
	if err != nil {
		return nil, err
	}
	return results[0], nil
}

// BatchCheckAccess answers several checks as of one moment.
func (s *Service) BatchCheckAccess(ctx context.Context, req *setpointv1.BatchCheckAccessRequest) (
	*setpointv1.BatchCheckAccessResponse, error,
) {
	if err := s.checkBatch(len(req.GetChecks())); err != nil {
		return nil, err
	}
	results, err := s.checkAccess(ctx, req.GetSessionId(), "checks", req.GetChecks())
	if err != nil {
		return nil, err
	}
	return &setpointv1.BatchCheckAccessResponse{Results: results}, nil
}

// accessCheck is one check.
type accessCheck struct {
	// variable is as the caller named it; empty is the session as a whole.
	variable   string
	permission identity.Permissions
	// subject is whom it is about; self: the caller, with the credentials shown.
	subject caller
	self    bool
}

// newCheck reads a check; field is where it is in the request.
func newCheck(ctx context.Context, sessionID, field string, query *setpointv1.AccessQuery) (accessCheck, error) {
	self := callerIn(ctx, sessionID)
	check := accessCheck{variable: query.GetVariable(), permission: permissions[query.GetPermission()]}
	named, groups := query.GetSubject(), query.GetSubjectGroups()
	if len(groups) == 0 && (named == "" || named == self.principal) {
		check.subject, check.self = self, true
		return check, nil
	}
	if named == "" {
		return check, invalid(field+"subject", "must not be empty where there are subject_groups")
	}
	if _, err := identity.Parse(named); err != nil {
		return check, invalid(field+"subject", "must be a kind, a colon and a name without spaces, like user:ada")
	}
	for i, group := range groups {
		if err := identity.ParseGroup(group); err != nil {
			return check, invalid(fmt.Sprintf("%ssubject_groups[%d]", field, i), strings.TrimPrefix(err.Error(), "group: "))
		}
	}
	check.subject = callerWith(identity.Principal{Name: named, Groups: groups}, identity.AllPermissions)
	return check, nil
}

// checkAccess answers checks, or refuses them all: one that is about somebody else takes admin there.
func (s *Service) checkAccess(ctx context.Context, sessionID, list string, queries []*setpointv1.AccessQuery) (
	[]*setpointv1.CheckAccessResponse, error,
) {
	c := callerIn(ctx, sessionID)
	params := dbgen.AccessCheckManyParams{
		SessionID: sessionID, Principal: c.principal, Groups: c.groups, Authority: c.authority,
	}
	checks := make([]accessCheck, 0, len(queries))
	for i, query := range queries {
		field := ""
		if list != "" {
			field = fmt.Sprintf("%s[%d].", list, i)
		}
		check, err := newCheck(ctx, sessionID, field, query)
		if err != nil {
			return nil, err
		}
		checks = append(checks, check)
		params.Variables = append(params.Variables, check.variable)
		params.Permissions = append(params.Permissions, int32(check.permission))
		params.Subjects = append(params.Subjects, check.subject.principal)
		params.SubjectGroups = append(params.SubjectGroups, check.subject.groups)
		params.SubjectAuthorities = append(params.SubjectAuthorities, check.subject.authority)
	}
	var rows []dbgen.AccessCheckManyRow
	err := s.db.Read(ctx, "check access", func(ctx context.Context, q *dbgen.Queries) error {
		var err error
		rows, err = q.AccessCheckMany(ctx, params)
		return err
	})
	switch {
	case err != nil:
		return nil, err
	case !rows[0].Alive:
		return nil, sessionNotFound(sessionID)
	case !rows[0].Anything:
		return nil, sessionHidden(sessionID)
	}
	results := make([]*setpointv1.CheckAccessResponse, 0, len(checks))
	for i, row := range rows {
		result, err := checks[i].answer(sessionID, row)
		if err != nil {
			return nil, s.withRule(ctx, sessionID, checks[i].variable, err)
		}
		results = append(results, result)
	}
	s.extend.Note(sessionID, rows[0].ReadAt.Time, microseconds(rows[0].TTLMicros))
	return results, nil
}

// withRule is the refusal to check what others may do with a variable, with the rule that decides so where the caller may know it.
func (s *Service) withRule(ctx context.Context, sessionID, variable string, err error) error {
	refused := asRefusal(err)
	if refused == nil || refused.Reason != setpointv1.ErrorReason_ACCESS_DENIED || variable == "" {
		return err
	}
	why := s.db.Read(ctx, "see who denies a check", func(ctx context.Context, q *dbgen.Queries) error {
		return mayAll(ctx, q, sessionID, wanted{variable, identity.Admin})
	})
	if e := asRefusal(why); e != nil && e.Reason == refused.Reason {
		refused.Metadata, refused.denial = e.Metadata, e.denial
	}
	return refused
}

// answer is the answer to a check, or why the caller may not have it.
func (c accessCheck) answer(sessionID string, row dbgen.AccessCheckManyRow) (*setpointv1.CheckAccessResponse, error) {
	absent := c.variable != "" && row.VariableID == ""
	reads := !absent && row.CallerAccess&int32(identity.Read) != 0
	manages := !absent && row.CallerAccess&int32(identity.Admin) != 0
	switch {
	case absent && row.ReadsAll:
		return nil, variableNotFound(sessionID, c.variable)
	case !c.self && !manages:
		e := denied(identity.Admin, c.variable, "")
		e.Message = "to check what others may do takes admin" + of(c.variable)
		return nil, e
	case c.variable != "" && !reads:
		return &setpointv1.CheckAccessResponse{
			Decider: setpointv1.AccessDecider_ACCESS_DECIDER_HIDDEN,
			Reason:  fmt.Sprintf("%s may not read %s, or there is no such variable", c.subject.principal, c.variable),
		}, nil
	}
	response := &setpointv1.CheckAccessResponse{Allowed: row.Access&int32(c.permission) != 0}
	decider, why := c.decided(sessionID, row, reads)
	response.Decider = decider
	verb := " may not "
	if response.Allowed {
		verb = " may "
	}
	response.Reason = c.subject.principal + verb + c.permission.String() + in(row.Variable) + ": " + why
	if decider == setpointv1.AccessDecider_ACCESS_DECIDER_RULE && reads {
		if row.RuleVariableID == "" { // Of the whole session, whoever asks about one variable.
			manages = row.SessionAccess&int32(identity.Admin) != 0
		}
		if response.Rule = decidingRule(row).decision(); manages {
			response.Rule = decidingRule(row).proto()
		}
	}
	return response, nil
}

// decided tells what decides, and says so. shown: the caller may know of the rule.
func (c accessCheck) decided(sessionID string, row dbgen.AccessCheckManyRow, shown bool) (setpointv1.AccessDecider, string) {
	switch {
	case c.subject.authority&int32(c.permission) == 0:
		held := identity.Permissions(c.subject.authority) & identity.AllPermissions
		return setpointv1.AccessDecider_ACCESS_DECIDER_CREDENTIALS, fmt.Sprintf("the credentials are narrowed to %s", held)
	case c.subject.authority >= serverAdmin:
		return setpointv1.AccessDecider_ACCESS_DECIDER_SERVER_ADMIN, "it is a server admin"
	case c.subject.principal == row.Owner:
		return setpointv1.AccessDecider_ACCESS_DECIDER_OWNER, "it owns the session"
	case c.subject.principal == "session:"+sessionID:
		return setpointv1.AccessDecider_ACCESS_DECIDER_OWNER, "it is the session"
	case row.RuleID == "" && c.variable == "":
		return setpointv1.AccessDecider_ACCESS_DECIDER_ACCESS_MODE, "no rule for the whole session is about it"
	case row.RuleID == "":
		return setpointv1.AccessDecider_ACCESS_DECIDER_ACCESS_MODE,
			fmt.Sprintf("no rule is about it and the access mode is %s", row.AccessMode)
	}
	verb, rule := "denies", "a rule"
	if row.RuleAllows {
		verb = "allows"
	}
	if shown {
		rule = "rule " + row.RuleID
	}
	why := fmt.Sprintf("%s %s it", rule, verb)
	if shown {
		why += fmt.Sprintf(" (priority %d)", row.RulePriority)
	}
	return setpointv1.AccessDecider_ACCESS_DECIDER_RULE, why
}

// in says what a permission is for: a variable, or the session as a whole.
func in(variable string) string {
	if variable == "" {
		return " in the whole session"
	}
	return " " + variable
}

// of is in, for what somebody has admin on.
func of(variable string) string {
	if variable == "" {
		return " in the whole session"
	}
	return " on " + variable
}

func decidingRule(row dbgen.AccessCheckManyRow) accessRule {
	rule := accessRule{
		id: row.RuleID, variableID: row.RuleVariableID, subject: row.RuleSubject,
		permissions: identity.Permissions(row.RulePermissions), allows: row.RuleAllows, priority: row.RulePriority,
		expiresAt: row.RuleExpiresAt, grantedBy: row.RuleGrantedBy, grantedAt: row.RuleGrantedAt, revision: row.RuleRevision,
	}
	if rule.variableID != "" {
		rule.variable = row.Variable
	}
	return rule
}
