package service_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/identity"
	"github.com/setpointdb/setpoint/internal/testkit"
	"github.com/setpointdb/setpoint/service"
)

// However many things one call is denied, the audit has an event for each permission, and the log a line.
func TestOneCallIsOneDenial(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.variable("x")
	d.permit("x", "user:bob")
	var names []string
	for i := range 1000 {
		names = append(names, fmt.Sprint("n", i))
	}
	for range 3 {
		_, err := call(d.as("user:bob"), d, setpointv1.VariableService_BatchGetVariables_FullMethodName, d.BatchGetVariables,
			&setpointv1.BatchGetVariablesRequest{SessionId: "s", Variables: names})
		d.must(err)
	}
	event := "s|user:bob|read|n0|setpoint.v1.VariableService/BatchGetVariables"
	equal(t, "denials", []string{event, event, event}, d.denials(3))
	equal(t, "details", []string{"and 999 more: n1, n2, n3, n4, n5, n6, n7, n8, n9, n10, …"},
		d.texts(`select distinct detail from setpoint.audit_events where kind = 'access_denied'`))
	lines := d.events("access_denied")
	equal(t, "lines", 3, len(lines))
	equal(t, "more", any(999.0), lines[0]["more"])
}

// Who is denied in a loop fills no log, and is audited all the same; others have lines of their own, which tell what was left out.
func TestDenialsAreNotAllLogged(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	refuse := func(name string) {
		_, err := call(d.as(name), d, setpointv1.TokenService_ListTokens_FullMethodName, d.ListTokens, &setpointv1.ListTokensRequest{})
		refused(t, err, setpointv1.ErrorReason_ACCESS_DENIED)
	}
	linesOf := func(name string) []map[string]any {
		var lines []map[string]any
		for _, line := range d.events("access_denied") {
			if line["by"] == name {
				lines = append(lines, line)
			}
		}
		return lines
	}
	began := time.Now()
	for range 300 {
		refuse("user:eve")
	}
	most := 50 + 5*int(time.Since(began)/time.Second+1)
	if got := len(linesOf("user:eve")); got < 50 || got > most {
		t.Errorf("%d lines, want 50 to %d", got, most)
	}
	refuse("user:bob")
	equal(t, "lines about bob", 1, len(linesOf("user:bob")))
	equal(t, "audited", 301, len(d.denials(301)))
	total := 300
	eventually(t, 10*time.Second, func() bool {
		refuse("user:eve")
		total++
		lines := linesOf("user:eve")
		unlogged := 0.0
		for _, line := range lines {
			n, _ := line["unlogged"].(float64)
			unlogged += n
		}
		return unlogged > 0 && len(lines)+int(unlogged) == total
	})
}

// A denial that the database will not take is told of as lost, and holds up no other.
func TestUnacceptableDenial(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.exec(`alter table setpoint.audit_events add constraint nobody check (principal <> 'user:nobody')`)
	for i := range 20 {
		name := fmt.Sprint("user:", i)
		if i == 7 || i == 8 {
			name = "user:nobody"
		}
		_, err := call(d.as(name), d, setpointv1.TokenService_ListTokens_FullMethodName, d.ListTokens, &setpointv1.ListTokensRequest{})
		refused(t, err, setpointv1.ErrorReason_ACCESS_DENIED)
	}
	equal(t, "written", 18, len(d.denials(18)))
	d.close()
	lost := 0.0
	for _, line := range d.events("audit_lost") {
		lost += line["denials"].(float64)
	}
	equal(t, "lost", 2.0, lost)
	equal(t, "tried again in vain", 0, len(d.events("audit_failed")))
}

// What an operator can mend loses nothing: denials wait for it.
func TestMissingGrantLosesNoDenial(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.exec(`alter table setpoint.audit_events rename to away`)
	_, err := call(d.as("user:eve"), d, setpointv1.TokenService_ListTokens_FullMethodName, d.ListTokens, &setpointv1.ListTokensRequest{})
	refused(t, err, setpointv1.ErrorReason_ACCESS_DENIED)
	eventually(t, 10*time.Second, func() bool { return len(d.events("audit_failed")) > 1 })
	d.exec(`alter table setpoint.away rename to audit_events`)
	equal(t, "written", 1, len(d.denials(1)))
	equal(t, "lost", 0, len(d.events("audit_lost")))
}

// The audit says with which token something was done, or tried.
func TestAuditNamesTokens(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	with := func(p identity.Principal, token string) context.Context {
		p.Credentials = token
		return identity.NewContext(d.ctx, p)
	}
	owner := with(identity.Principal{Name: theOwner}, "tok_owner")
	d.variable("x")
	d.permit("x", "user:bob", to(mayOptimize))
	d.exec(`delete from setpoint.audit_events`)
	rule, err := d.AddAccessRule(owner, &setpointv1.AddAccessRuleRequest{SessionId: "s", Variable: "x", Rule: spec("user:a")})
	d.must(err)
	_, err = d.RemoveAccessRule(owner, &setpointv1.RemoveAccessRuleRequest{SessionId: "s", RuleId: rule.GetRuleId()})
	d.must(err)
	_, err = d.UpdateVariable(owner, &setpointv1.UpdateVariableRequest{
		SessionId: "s", Variable: "x", AccessMode: setpointv1.AccessMode_ACCESS_MODE_PROTECTED,
	})
	d.must(err)
	_, err = d.RegisterVariable(owner, &setpointv1.RegisterVariableRequest{
		SessionId: "s", Name: "open", Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Value: client.Integer(0),
		AccessMode: setpointv1.AccessMode_ACCESS_MODE_PUBLIC,
	})
	d.must(err)
	o, err := d.StartOptimization(d.as("user:bob"), &setpointv1.StartOptimizationRequest{SessionId: "s", Variables: []string{"x"}})
	d.must(err)
	_, err = d.StopOptimization(owner, &setpointv1.StopOptimizationRequest{
		SessionId: "s", OptimizationId: o.GetOptimizationId(), Force: true, Reason: "enough",
	})
	d.must(err)
	root := with(identity.Principal{Name: "user:root", Admin: true}, "tok_root")
	made, err := d.CreateToken(root, &setpointv1.CreateTokenRequest{Principal: "user:a"})
	d.must(err)
	id := made.GetToken().GetTokenId()
	_, err = d.RevokeToken(root, &setpointv1.RevokeTokenRequest{TokenId: id})
	d.must(err)
	_, err = call(with(identity.Principal{Name: "user:bob"}, "tok_bob"), d, setpointv1.VariableService_DeleteVariable_FullMethodName,
		d.DeleteVariable, &setpointv1.DeleteVariableRequest{SessionId: "s", Variable: "none"})
	refused(t, err, setpointv1.ErrorReason_ACCESS_DENIED)
	d.denials(1)
	equal(t, "audit", []string{
		"rule_added tok_owner ", "rule_removed tok_owner ", "access_mode_set tok_owner from private to protected",
		"access_mode_set tok_owner registered as public", "stop_forced tok_owner ",
		"token_created " + id + " for user:a; by tok_root", "token_revoked " + id + " for user:a; by tok_root", "access_denied tok_bob ",
	}, d.texts(`select concat_ws(' ', kind, token_id, detail) from setpoint.audit_events order by event_id`))
	equal(t, "told of a denial", any("tok_bob"), d.events("access_denied")[0]["token"])
	changes := d.events("access_rule_changed")
	equal(t, "told of a rule", any("tok_owner"), changes[len(changes)-1]["token"])
}

// Nothing that is to be audited is done without it.
func TestUnauditedIsUndone(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.variable("x")
	kept := d.permit("x", "user:bob", to(mayOptimize))
	root := d.admin(identity.Scope{})
	token, err := d.CreateToken(root, &setpointv1.CreateTokenRequest{Principal: "user:a"})
	d.must(err)
	o, err := d.StartOptimization(d.as("user:bob"), &setpointv1.StartOptimizationRequest{SessionId: "s", Variables: []string{"x"}})
	d.must(err)
	d.exec(`create function refuse_audit() returns trigger language plpgsql as $$ begin raise exception 'no audit'; end $$`)
	d.exec(`create trigger refuse_audit before insert on setpoint.audit_events execute function refuse_audit()`)
	state := func() []string {
		return d.texts(`select 'rules ' || count(*) from setpoint.access_rules
			union all select 'history ' || count(*) from setpoint.history
			union all select 'tokens ' || count(*) || ', revoked ' || count(revoked_at) from setpoint.tokens
			union all select 'variables ' || string_agg(name || ' ' || access_mode, ', ' order by name) from setpoint.variables
			union all select 'optimizations ' || string_agg(state, ', ') from setpoint.optimizations
			union all select 'revision ' || revision from setpoint.sessions
			union all select 'requests ' || count(*) from setpoint.requests
			union all select 'audit ' || count(*) from setpoint.audit_events`)
	}
	before := state()
	told := len(d.events("access_rule_changed"))
	for name, do := range map[string]func() error{
		"a rule added": func() error {
			_, err := d.AddAccessRule(d.owner(), &setpointv1.AddAccessRuleRequest{SessionId: "s", Rule: spec("user:c"), RequestId: "1"})
			return err
		},
		"a rule removed": func() error {
			_, err := d.RemoveAccessRule(d.owner(), &setpointv1.RemoveAccessRuleRequest{SessionId: "s", RuleId: kept.GetRuleId()})
			return err
		},
		"rules replaced": func() error {
			_, err := d.SetVariablePermissions(d.owner(), &setpointv1.SetVariablePermissionsRequest{
				SessionId: "s", Variable: "x", Rules: []*setpointv1.AccessRuleSpec{spec("user:c")},
			})
			return err
		},
		"an open variable": func() error {
			_, err := d.RegisterVariable(d.owner(), &setpointv1.RegisterVariableRequest{
				SessionId: "s", Name: "open", Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Value: client.Integer(0),
				AccessMode: setpointv1.AccessMode_ACCESS_MODE_PUBLIC,
			})
			return err
		},
		"another mode": func() error {
			_, err := d.UpdateVariable(d.owner(), &setpointv1.UpdateVariableRequest{
				SessionId: "s", Variable: "x", AccessMode: setpointv1.AccessMode_ACCESS_MODE_PROTECTED,
			})
			return err
		},
		"a forced stop": func() error {
			_, err := d.StopOptimization(d.owner(), &setpointv1.StopOptimizationRequest{
				SessionId: "s", OptimizationId: o.GetOptimizationId(), Force: true, Reason: "enough",
			})
			return err
		},
		"a token": func() error {
			_, err := d.CreateToken(root, &setpointv1.CreateTokenRequest{Principal: "user:b"})
			return err
		},
		"a revocation": func() error {
			_, err := d.RevokeToken(root, &setpointv1.RevokeTokenRequest{TokenId: token.GetToken().GetTokenId()})
			return err
		},
	} {
		if err := do(); err == nil || !strings.Contains(err.Error(), "no audit") {
			t.Errorf("%s: %v", name, err)
		}
		equal(t, name, before, state())
	}
	equal(t, "told of rules", told, len(d.events("access_rule_changed")))
	equal(t, "told of tokens", 1, len(d.events("token_created"))+len(d.events("token_revoked")))
}

// Rules that expired take no room: a session to which somebody is let in for a moment, again and again, is never full.
func TestExpiredRulesTakeNoRoom(t *testing.T) {
	t.Parallel()
	url := testkit.NewDatabase(t)
	clock := testkit.TakeClock(t, url)
	d := deskOn(t, url, smallLimits)
	d.begin("s")
	d.variable("x")
	lasting := d.permit("x", "user:lasting")
	for i := range 60 {
		subject := fmt.Sprint("user:", i)
		if i%2 == 0 {
			subject += "*"
		}
		d.permit("x", subject, brief)
		clock.Advance(time.Second)
		if got := d.number(`select count(*) from setpoint.access_rules`); got > 6 {
			t.Fatalf("%d rules are kept", got)
		}
	}
	list, err := d.ListAccessRules(d.owner(), &setpointv1.ListAccessRulesRequest{SessionId: "s", Subject: "user:lasting"})
	d.must(err)
	equal(t, "what lasts", []string{lasting.GetRuleId()}, ids(list.GetRules()))
	equal(t, "history", []string{"access_rule_added 61"}, d.texts(`select change || ' ' || count(*) from setpoint.history
		where change like 'access%' group by change`))
}

func smallLimits(l *service.Limits) { l.AccessRules, l.WildcardRules = 6, 2 }

func brief(s *setpointv1.AccessRuleSpec) {
	s.Expiry = &setpointv1.AccessRuleSpec_Ttl{Ttl: durationpb.New(time.Second)}
}

// Rules with a wildcard are few: for each variable, and for the session as a whole.
func TestWildcardRuleLimit(t *testing.T) {
	t.Parallel()
	d := newDesk(t, func(l *service.Limits) { l.WildcardRules = 2 })
	equal(t, "unless it is told", int64(500), service.DefaultLimits.WildcardRules)
	d.variable("x")
	d.variable("y")
	for _, variable := range []string{"", "x", "y"} {
		d.permit(variable, "user:a*")
		d.permit(variable, "*")
		before := d.traces()
		_, err := d.AddAccessRule(d.owner(), &setpointv1.AddAccessRuleRequest{SessionId: "s", Variable: variable, Rule: spec("user:*")})
		e := refused(t, err, setpointv1.ErrorReason_LIMIT_EXCEEDED)
		equal(t, "metadata", map[string]string{"limit": "wildcard_rules", "value": "2"}, e.Metadata)
		equal(t, "what it left", before, d.traces())
		d.permit(variable, "user:exact")
	}
	set := func(subjects ...string) error {
		var rules []*setpointv1.AccessRuleSpec
		for _, subject := range subjects {
			rules = append(rules, spec(subject))
		}
		_, err := d.SetVariablePermissions(d.owner(), &setpointv1.SetVariablePermissionsRequest{SessionId: "s", Variable: "x", Rules: rules})
		return err
	}
	refused(t, set("user:1*", "user:2*", "user:3*"), setpointv1.ErrorReason_LIMIT_EXCEEDED)
	d.must(set("user:1*", "user:2*", "user:3", "user:4")) // Two for two.
}

// A page token names no rule that its bearer may not see.
func TestRulePagesNameNothingHidden(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.variable("x")
	d.variable("y")
	d.permit("x", "user:xadmin", to(mayAdmin))
	shown := d.permit("x", "user:a").GetRuleId()
	for range 5 {
		d.permit("y", "user:a")
	}
	d.permit("", "user:a")
	d.permit("x", "user:b")
	page, err := d.ListAccessRules(d.as("user:xadmin"), &setpointv1.ListAccessRulesRequest{SessionId: "s", PageSize: 2})
	d.must(err)
	equal(t, "rules", 2, len(page.GetRules()))
	data, err := base64.RawURLEncoding.DecodeString(page.GetNextPageToken())
	d.must(err)
	var token struct {
		Name string `json:"n"`
	}
	d.must(json.Unmarshal(data, &token))
	equal(t, "the token names", shown, token.Name)
	page, err = d.ListAccessRules(d.as("user:xadmin"), &setpointv1.ListAccessRulesRequest{
		SessionId: "s", PageSize: 2, PageToken: page.GetNextPageToken(),
	})
	d.must(err)
	equal(t, "the last page", "1 ", fmt.Sprint(len(page.GetRules()), " ", page.GetNextPageToken()))
	// Who manages all but y has y's left out in the same way.
	d.permit("", "user:nearly", to(mayAdmin))
	d.permit("y", "user:nearly", deny, to(mayAdmin), priority(1))
	page, err = d.ListAccessRules(d.as("user:nearly"), &setpointv1.ListAccessRulesRequest{SessionId: "s", PageSize: 2})
	d.must(err)
	equal(t, "the token's length", len(base64.RawURLEncoding.EncodeToString(data)), len(page.GetNextPageToken()))
	equal(t, "a page of who manages nearly all", shown, page.GetRules()[1].GetRuleId())
	page, err = d.ListAccessRules(d.as("user:nearly"), &setpointv1.ListAccessRulesRequest{
		SessionId: "s", PageSize: 2, PageToken: page.GetNextPageToken(),
	})
	d.must(err)
	equal(t, "the next one", 2, len(page.GetRules()))
	for _, rule := range page.GetRules() {
		if rule.GetVariable() == "y" {
			t.Errorf("it shows %v", rule)
		}
	}
}

// A server that knows of no rules begins the next life of an id as this one does, but for them: they end all the same.
func TestRulesEndWithOldServers(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.variable("x")
	d.permit("", "user:bob", to(mayAdmin))
	d.permit("x", "user:bob")
	d.begin("t")
	_, err := d.AddAccessRule(d.owner(), &setpointv1.AddAccessRuleRequest{SessionId: "t", Rule: spec("user:bob")})
	d.must(err)
	d.exec(`update setpoint.sessions set expires_at = clock_timestamp() where session_id = 's'`)
	equal(t, "rules of what has ended", int64(2), d.number(`select count(*) from setpoint.access_rules where session_id = 's'`))
	d.exec(`update setpoint.sessions s set owner = 'user:next', ttl_us = 0, expires_at = 'infinity', created_at = clock_timestamp(),
		changed_at = clock_timestamp(), created_revision = s.revision, ended_at = null, variable_count = 0
		where s.session_id = 's' and s.expires_at <= clock_timestamp()`)
	equal(t, "rules of the next life", int64(0), d.number(`select count(*) from setpoint.access_rules where session_id = 's'`))
	equal(t, "rules of another session", int64(1), d.number(`select count(*) from setpoint.access_rules where session_id = 't'`))
	_, err = d.GetSession(d.as("user:bob"), &setpointv1.GetSessionRequest{SessionId: "s"})
	refused(t, err, setpointv1.ErrorReason_SESSION_NOT_FOUND)
}

// So it is where such a server has no rights on the rules.
func TestRulesEndWithoutRights(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.permit("", "user:bob")
	tx, err := d.sql.Begin(d.ctx)
	d.must(err)
	defer func() { _ = tx.Rollback(d.ctx) }() // The role goes with it.
	for _, sql := range []string{
		`create role rules_end_without_rights`, `grant usage on schema setpoint to rules_end_without_rights`,
		`grant select, update on setpoint.sessions to rules_end_without_rights`, `set local role rules_end_without_rights`,
		`update setpoint.sessions set created_revision = revision where session_id = 's'`, `reset role`,
	} {
		if _, err := tx.Exec(d.ctx, sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	var rules int
	d.must(tx.QueryRow(d.ctx, `select count(*) from setpoint.access_rules`).Scan(&rules))
	equal(t, "rules", 0, rules)
}
