package service_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/identity"
	"github.com/setpointdb/setpoint/internal/testkit"
	"github.com/setpointdb/setpoint/service"
)

// A rule that comes and goes: what is answered, what history and the audit keep of it, and what it decides meanwhile.
func TestRuleComesAndGoes(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	id := d.variable("x")
	bob := d.as("user:bob")
	get := func() string {
		_, err := d.GetVariable(bob, &setpointv1.GetVariableRequest{SessionId: "s", Variable: "x"})
		return answered(t, err)
	}
	equal(t, "before", "SESSION_NOT_FOUND", get())
	rule, err := d.AddAccessRule(d.owner(), &setpointv1.AddAccessRuleRequest{
		SessionId: "s", Variable: "x", Reason: "bob helps", Rule: spec("user:*", to(mayRead, mayWrite), priority(3)),
	})
	d.must(err)
	if !strings.HasPrefix(rule.GetRuleId(), "rule_") || rule.GetGrantedAt() == nil {
		t.Errorf("rule %v", rule)
	}
	equal(t, "the rule", &setpointv1.AccessRule{
		RuleId: rule.GetRuleId(), Subject: "user:*", Permissions: []setpointv1.Permission{mayRead, mayWrite},
		Effect: setpointv1.AccessEffect_ACCESS_EFFECT_ALLOW, Priority: 3, Variable: "x", VariableId: id, GrantedBy: theOwner,
		GrantedAt: rule.GetGrantedAt(), Revision: 2,
	}, rule)
	equal(t, "with the rule", "OK", get())
	removed, err := d.RemoveAccessRule(d.owner(), &setpointv1.RemoveAccessRuleRequest{
		SessionId: "s", RuleId: rule.GetRuleId(), Reason: "done",
	})
	d.must(err)
	equal(t, "revision", int64(3), removed.GetRevision())
	equal(t, "without it", "SESSION_NOT_FOUND", get())

	record := fmt.Sprintf(`{"effect": "allow", "rule_id": "%s", "subject": "user:*", "priority": 3, "expires_at": null, `+
		`"permissions": ["read", "write"]}`, rule.GetRuleId())
	equal(t, "history", []string{
		join("2 access_rule_added x integer bob helps", theOwner, record), join("3 access_rule_removed x integer done", theOwner, record),
	}, d.texts(`select concat_ws(' ', revision, change, name, type, reason, changed_by, access_rule::text)
		from setpoint.history where access_rule is not null and variable_id = $1 order by revision`, id))
	equal(t, "audit", []string{
		join("s rule_added", theOwner, "x setpoint.v1.AccessService/AddAccessRule bob helps", record),
		join("s rule_removed", theOwner, "x setpoint.v1.AccessService/RemoveAccessRule done", record),
	}, d.texts(`select concat_ws(' ', session_id, kind, principal, variable, method, reason, access_rule::text)
		from setpoint.audit_events order by event_id`))
	changes := d.events("access_rule_changed")
	if len(changes) != 2 || changes[0]["change"] != "added" || changes[1]["change"] != "removed" ||
		changes[1]["rule"] != rule.GetRuleId() || changes[1]["variable"] != "x" || changes[1]["by"] != theOwner {
		t.Errorf("told of %v", changes)
	}
}

// A rule for the whole session has no variable, in history neither.
func TestRuleForSession(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.variable("x")
	rule := d.permit("", "group:ops", deny, func(s *setpointv1.AccessRuleSpec) {
		s.Expiry = &setpointv1.AccessRuleSpec_Ttl{Ttl: durationpb.New(time.Hour)}
	})
	equal(t, "what it is for", "", rule.GetVariable()+rule.GetVariableId())
	if left := rule.GetExpiresAt().AsTime().Sub(rule.GetGrantedAt().AsTime()); left < time.Hour-time.Second || left > time.Hour {
		t.Errorf("it ends after %v", left)
	}
	row := d.texts(`select variable_id || '|' || name || '|' || type || '|' || (access_rule->>'effect') || '|' || (access_rule->>'expires_at')
		from setpoint.history where change = 'access_rule_added'`)
	equal(t, "history", []string{"|||deny|" + rule.GetExpiresAt().AsTime().Format(time.RFC3339Nano)}, row)
	stored := d.texts(`select concat_ws(' ', subject, coalesce(pattern, '-'), permissions, reach, allows) from setpoint.access_rules`)
	equal(t, "as it is kept", []string{"group:ops - 1 31 f"}, stored)
}

// What LIKE would take for wildcards is none.
func TestSubjectsAsKept(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.variable("x")
	for _, subject := range []string{"*", "user:a_b", `user:100%\*`, "user:a*b*"} {
		d.permit("x", subject, to(mayOptimize))
	}
	equal(t, "as they are kept", []string{
		"* %", "user:a_b -", `user:100%\* user:100\%\\%`, "user:a*b* user:a%b%",
	}, d.texts(`select subject || ' ' || coalesce(pattern, '-') from setpoint.access_rules order by rule_id`))
	equal(t, "what they reach", int64(4), d.number(`select count(*) from setpoint.access_rules where permissions = 8 and reach = 11`))
}

func TestSetVariablePermissions(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.variable("x")
	d.variable("y")
	kept := []string{d.permit("", "user:all").GetRuleId(), d.permit("y", "user:other").GetRuleId()}
	old := []string{d.permit("x", "user:a").GetRuleId(), d.permit("x", "user:b").GetRuleId()}
	response, err := d.SetVariablePermissions(d.owner(), &setpointv1.SetVariablePermissionsRequest{
		SessionId: "s", Variable: "x", Rules: []*setpointv1.AccessRuleSpec{spec("user:c"), spec("user:d", deny), spec("user:e")},
	})
	d.must(err)
	equal(t, "removed", int32(2), response.GetRemovedCount())
	var told []string
	for _, r := range response.GetRules() {
		told = append(told, fmt.Sprint(r.GetSubject(), " ", r.GetVariable(), " ", r.GetRevision()))
	}
	equal(t, "rules", []string{"user:c x 9", "user:d x 10", "user:e x 11"}, told)
	equal(t, "revision", int64(11), response.GetRevision())
	equal(t, "history", []string{
		"7 access_rule_removed " + old[0], "8 access_rule_removed " + old[1], "9 access_rule_added " + response.GetRules()[0].GetRuleId(),
		"10 access_rule_added " + response.GetRules()[1].GetRuleId(), "11 access_rule_added " + response.GetRules()[2].GetRuleId(),
	}, d.texts(`select concat_ws(' ', revision, change, access_rule->>'rule_id') from setpoint.history where revision > 6 order by revision`))
	equal(t, "audit", []string{"rule_removed", "rule_removed", "rule_added", "rule_added", "rule_added"},
		d.texts(`select kind from setpoint.audit_events where method like '%SetVariablePermissions' order by event_id`))
	list, err := d.ListAccessRules(d.owner(), &setpointv1.ListAccessRulesRequest{SessionId: "s"})
	d.must(err)
	equal(t, "all rules", append(kept, ids(response.GetRules())...), ids(list.GetRules()))

	for round, removed := range []int32{3, 0} {
		response, err = d.SetVariablePermissions(d.owner(), &setpointv1.SetVariablePermissionsRequest{SessionId: "s", Variable: "x"})
		d.must(err)
		equal(t, fmt.Sprintf("round %d without rules", round),
			&setpointv1.SetVariablePermissionsResponse{RemovedCount: removed, Revision: 14}, response)
	}
	equal(t, "the session's revision", int64(14), d.number(`select revision from setpoint.sessions where session_id = 's'`))
}

// Who may change and see which rules.
func TestRulesNeedAdmin(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.variable("x")
	d.variable("y")
	ofX, ofY, ofAll := d.permit("x", "user:z"), d.permit("y", "user:z"), d.permit("", "user:z")
	d.permit("x", "user:reader")
	d.permit("x", "user:xadmin", to(mayAdmin))
	d.permit("", "user:writer", to(mayWrite, mayObserve, mayOptimize))
	d.permit("", "user:manager", to(mayAdmin))
	d.permit("", "group:ops", to(mayAdmin))
	d.permit("", "user:nearly", to(mayAdmin))
	d.permit("y", "user:nearly", deny, to(mayAdmin))
	narrow := func(name string, scope identity.Scope) context.Context {
		return identity.NewContext(d.ctx, identity.Principal{Name: name, Scope: scope})
	}
	const ok, hidden, no, none = "OK", "SESSION_NOT_FOUND", "ACCESS_DENIED", "RULE_NOT_FOUND"
	tests := map[string]struct {
		ctx context.Context
		// addX and addAll are what adding a rule for x and for the session comes to; setX and setY what replacing rules does; dropY,
		// dropAll and dropNone what removing one of y, of the session and none at all does.
		addX, addAll, setX, setY, dropY, dropAll, dropNone string
		// sees are the subjects of rules that are listed: x's, y's, the session's.
		sees string
	}{
		"owner":           {d.owner(), ok, ok, ok, ok, ok, ok, none, "x y all"},
		"the session":     {d.as("session:s"), ok, ok, ok, ok, ok, ok, none, "x y all"},
		"server admin":    {d.admin(identity.Scope{}), ok, ok, ok, ok, ok, ok, none, "x y all"},
		"manager":         {d.as("user:manager"), ok, ok, ok, ok, ok, ok, none, "x y all"},
		"member":          {d.as("user:m", "group:dev", "group:ops"), ok, ok, ok, ok, ok, ok, none, "x y all"},
		"admin of x":      {d.as("user:xadmin"), ok, no, ok, no, no, no, no, "x"},
		"all but y":       {d.as("user:nearly"), ok, ok, ok, no, none, ok, none, "x all"},
		"writer":          {d.as("user:writer"), no, no, no, no, no, no, no, ""},
		"reader":          {d.as("user:reader"), no, no, no, no, no, no, no, ""},
		"stranger":        {d.as("user:nobody"), hidden, hidden, hidden, hidden, hidden, hidden, hidden, hidden},
		"owner, narrowed": {narrow(theOwner, identity.Scope{Permissions: identity.Optimize}), no, no, no, no, no, no, no, ""},
		"owner, elsewhere": {
			narrow(theOwner, identity.Scope{Sessions: []string{"t*"}}), hidden, hidden, hidden, hidden, hidden, hidden, hidden, hidden,
		},
		"admin, narrowed": {d.admin(identity.Scope{Permissions: identity.Write}), no, no, no, no, no, no, no, ""},
	}
	// Each in a transaction of its own would change what the next one sees: what succeeds is for rules that nobody minds.
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			add := func(variable string) string {
				_, err := d.AddAccessRule(test.ctx, &setpointv1.AddAccessRuleRequest{
					SessionId: "s", Variable: variable, Rule: spec("user:unknown"),
				})
				return answered(t, err)
			}
			list, err := d.ListAccessRules(test.ctx, &setpointv1.ListAccessRulesRequest{SessionId: "s"})
			var sees []string
			for _, rule := range []struct {
				id, word string
			}{{ofX.GetRuleId(), "x"}, {ofY.GetRuleId(), "y"}, {ofAll.GetRuleId(), "all"}} {
				if slices.Contains(ids(list.GetRules()), rule.id) {
					sees = append(sees, rule.word)
				}
			}
			if err != nil {
				sees = []string{answered(t, err)}
			}
			drop := func(id string) string {
				before := d.traces()
				_, err := d.RemoveAccessRule(test.ctx, &setpointv1.RemoveAccessRuleRequest{SessionId: "s", RuleId: id})
				if err != nil && d.traces() != before {
					t.Errorf("refused, yet it left something behind")
				}
				return answered(t, err)
			}
			set := func(variable string) string {
				var rules []*setpointv1.AccessRuleSpec
				old, err := d.ListAccessRules(d.owner(), &setpointv1.ListAccessRulesRequest{SessionId: "s", Variable: variable})
				d.must(err)
				for _, r := range old.GetRules() {
					rules = append(rules, &setpointv1.AccessRuleSpec{
						Subject: r.GetSubject(), Permissions: r.GetPermissions(), Effect: r.GetEffect(), Priority: r.GetPriority(),
					})
				}
				_, err = d.SetVariablePermissions(test.ctx, &setpointv1.SetVariablePermissionsRequest{
					SessionId: "s", Variable: variable, Rules: rules,
				})
				return answered(t, err)
			}
			want := []string{test.addX, test.addAll, test.dropY, test.dropAll, test.dropNone, test.sees}
			got := []string{
				add("x"), add(""), drop(d.permit("y", "user:unknown").GetRuleId()), drop(d.permit("", "user:unknown").GetRuleId()),
				drop("rule_" + strings.Repeat("0", 26)), strings.Join(sees, " "),
			}
			equal(t, "add to x, add to all, drop of y, drop of all, drop of none, sees", want, got)
			equal(t, "set of x, set of y", []string{test.setX, test.setY}, []string{set("x"), set("y")})
			// What was replaced has other ids now.
			for _, again := range []struct {
				variable string
				rule     **setpointv1.AccessRule
			}{{"x", &ofX}, {"y", &ofY}} {
				*again.rule = d.permit(again.variable, "user:z")
			}
		})
	}
}

// To those without admin a rule that they do not manage and one that there is not are the same.
func TestRemoveTellsNothing(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.variable("x")
	d.permit("x", "user:reader")
	there, absent := d.permit("", "user:a").GetRuleId(), "rule_"+strings.Repeat("a", 26)
	refusal := func(id string) *service.Error {
		_, err := d.RemoveAccessRule(d.as("user:reader"), &setpointv1.RemoveAccessRuleRequest{SessionId: "s", RuleId: id})
		return refused(t, err, setpointv1.ErrorReason_ACCESS_DENIED)
	}
	a, b := refusal(there), refusal(absent)
	equal(t, "message", a.Message, b.Message)
	equal(t, "metadata", a.Metadata, b.Metadata)
	equal(t, "metadata", map[string]string{"permission": "admin"}, a.Metadata)
	_, err := d.RemoveAccessRule(d.owner(), &setpointv1.RemoveAccessRuleRequest{SessionId: "s", RuleId: absent})
	equal(t, "metadata", map[string]string{"session_id": "s", "rule_id": absent},
		refused(t, err, setpointv1.ErrorReason_RULE_NOT_FOUND).Metadata)
}

// Bad rules, and what they leave behind: nothing.
func TestRulesRefused(t *testing.T) {
	t.Parallel()
	d := newDesk(t, func(l *service.Limits) { l.AccessRules, l.BatchItems = 5, 3 })
	d.variable("x")
	d.permit("x", "user:a")
	d.permit("x", "user:b")
	past := func(s *setpointv1.AccessRuleSpec) {
		s.Expiry = &setpointv1.AccessRuleSpec_ExpiresAt{ExpiresAt: timestamppb.New(time.Now().Add(-time.Hour))}
	}
	noTime := func(s *setpointv1.AccessRuleSpec) {
		s.Expiry = &setpointv1.AccessRuleSpec_ExpiresAt{ExpiresAt: &timestamppb.Timestamp{Seconds: 1 << 60}}
	}
	set := func(variable string, rules ...*setpointv1.AccessRuleSpec) error {
		_, err := d.SetVariablePermissions(d.owner(), &setpointv1.SetVariablePermissionsRequest{
			SessionId: "s", Variable: variable, Rules: rules,
		})
		return err
	}
	add := func(variable string, rule *setpointv1.AccessRuleSpec) error {
		_, err := d.AddAccessRule(d.owner(), &setpointv1.AddAccessRuleRequest{SessionId: "s", Variable: variable, Rule: rule})
		return err
	}
	const bad = setpointv1.ErrorReason_INVALID_REQUEST
	tests := map[string]struct {
		do     func() error
		reason setpointv1.ErrorReason
		says   string // Part of the message.
	}{
		"a subject without a kind":  {func() error { return add("", spec("bob")) }, bad, "rule.subject: must be a kind"},
		"a subject with a space":    {func() error { return add("x", spec("user:a b")) }, bad, "rule.subject: must not contain spaces"},
		"a subject in a list":       {func() error { return set("x", spec("user:a"), spec("")) }, bad, "rules[1].subject"},
		"over before it begins":     {func() error { return add("x", spec("user:a", past)) }, bad, "rule.expires_at: must be in the future"},
		"one of a list is over":     {func() error { return set("x", spec("user:a"), spec("user:b", past)) }, bad, "rules[1].expires_at"},
		"at no time":                {func() error { return add("x", spec("user:a", noTime)) }, bad, "rule.expires_at: must be a time"},
		"for a variable of no name": {func() error { return set("nope", spec("user:a")) }, setpointv1.ErrorReason_VARIABLE_NOT_FOUND, "nope"},
		"for no variable":           {func() error { return add("nope", spec("user:a")) }, setpointv1.ErrorReason_VARIABLE_NOT_FOUND, "nope"},
		"a long list": {
			func() error { return set("x", spec("user:a"), spec("user:b"), spec("user:c"), spec("user:d")) },
			setpointv1.ErrorReason_LIMIT_EXCEEDED, "at most 3",
		},
	}
	for name, test := range tests {
		before := d.traces()
		e := refused(t, test.do(), test.reason)
		if !strings.Contains(e.Error(), test.says) {
			t.Errorf("%s: %v does not say %q", name, e, test.says)
		}
		if after := d.traces(); after != before {
			t.Errorf("%s: refused, yet it left something behind: %d, then %d", name, before, after)
		}
	}
}

// The limit counts all of a session's rules. A replacement that is refused undoes what it has removed, audit events included.
func TestRuleLimit(t *testing.T) {
	t.Parallel()
	d := newDesk(t, func(l *service.Limits) { l.AccessRules = 4 })
	d.variable("x")
	d.variable("y")
	d.permit("y", "user:a")
	d.permit("", "user:a")
	d.permit("x", "user:a")
	d.permit("x", "user:b")
	before := d.traces()
	_, err := d.AddAccessRule(d.owner(), &setpointv1.AddAccessRuleRequest{SessionId: "s", Rule: spec("user:c")})
	e := refused(t, err, setpointv1.ErrorReason_LIMIT_EXCEEDED)
	equal(t, "metadata", map[string]string{"limit": "access_rules", "value": "4"}, e.Metadata)
	for _, requestID := range []string{"", "r"} {
		_, err = d.SetVariablePermissions(d.owner(), &setpointv1.SetVariablePermissionsRequest{
			SessionId: "s", Variable: "x", RequestId: requestID,
			Rules: []*setpointv1.AccessRuleSpec{spec("user:a"), spec("user:b"), spec("user:c")},
		})
		refused(t, err, setpointv1.ErrorReason_LIMIT_EXCEEDED)
	}
	if after := d.traces(); after != before {
		t.Errorf("refused, yet something is left: %d, then %d", before, after)
	}
	if told := len(d.events("access_rule_changed")); told != 4 {
		t.Errorf("told of %d changes, of which 4 were made", told)
	}
	_, err = d.SetVariablePermissions(d.owner(), &setpointv1.SetVariablePermissionsRequest{
		SessionId: "s", Variable: "x", Rules: []*setpointv1.AccessRuleSpec{spec("user:c"), spec("user:d")},
	})
	d.must(err) // Two for two.
}

// A rule stops to count when its time is over, by the database's clock, and is still listed.
func TestRuleExpires(t *testing.T) {
	t.Parallel()
	url := testkit.NewDatabase(t)
	clock := testkit.TakeClock(t, url)
	d := deskOn(t, url)
	d.begin("s")
	d.variable("x")
	lasting := func(ttl time.Duration) func(*setpointv1.AccessRuleSpec) {
		return func(s *setpointv1.AccessRuleSpec) {
			s.Expiry = &setpointv1.AccessRuleSpec_Ttl{Ttl: durationpb.New(ttl)}
		}
	}
	rule := d.permit("x", "user:bob", lasting(time.Minute))
	at := d.permit("x", "user:ann", func(s *setpointv1.AccessRuleSpec) {
		s.Expiry = &setpointv1.AccessRuleSpec_ExpiresAt{ExpiresAt: timestamppb.New(clock.Now().Add(2 * time.Minute))}
	})
	equal(t, "ends", clock.Now().Add(time.Minute), rule.GetExpiresAt().AsTime().In(clock.Now().Location()))
	equal(t, "ends", clock.Now().Add(2*time.Minute), at.GetExpiresAt().AsTime().In(clock.Now().Location()))
	check := func() string {
		var out []string
		for _, who := range []string{"user:bob", "user:ann"} {
			_, err := d.GetVariable(d.as(who), &setpointv1.GetVariableRequest{SessionId: "s", Variable: "x"})
			out = append(out, answered(t, err))
		}
		return join(out...)
	}
	equal(t, "at first", "OK OK", check())
	clock.Advance(time.Minute - time.Microsecond)
	equal(t, "just before", "OK OK", check())
	clock.Advance(time.Microsecond)
	equal(t, "at the end", "SESSION_NOT_FOUND OK", check())
	clock.Advance(time.Minute)
	equal(t, "later", "SESSION_NOT_FOUND SESSION_NOT_FOUND", check())
	list, err := d.ListAccessRules(d.owner(), &setpointv1.ListAccessRulesRequest{SessionId: "s"})
	d.must(err)
	equal(t, "listed", []string{rule.GetRuleId(), at.GetRuleId()}, ids(list.GetRules()))
}

func TestListAccessRules(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	x := d.variable("x")
	d.variable("y")
	var all, xs []string
	for i := range 7 {
		all = append(all, d.permit("y", fmt.Sprintf("user:%d", i)).GetRuleId(), d.permit("x", "user:*").GetRuleId())
		xs = append(xs, all[len(all)-1])
	}
	all = append(all, d.permit("x", "user:xadmin", to(mayAdmin)).GetRuleId())
	xs = append(xs, all[len(all)-1])
	// pages are what a caller sees page by page.
	pages := func(ctx context.Context, req *setpointv1.ListAccessRulesRequest) (int, []string) {
		var got []string
		for n := 1; ; n++ {
			req.SessionId, req.PageSize = "s", 4
			list, err := d.ListAccessRules(ctx, req)
			d.must(err)
			got = append(got, ids(list.GetRules())...)
			if req.PageToken = list.GetNextPageToken(); req.PageToken == "" {
				return n, got
			}
		}
	}
	n, got := pages(d.owner(), &setpointv1.ListAccessRulesRequest{})
	equal(t, "pages", 4, n)
	equal(t, "all", all, got)
	for _, variable := range []string{"x", x} {
		n, got = pages(d.owner(), &setpointv1.ListAccessRulesRequest{Variable: variable})
		equal(t, "pages of "+variable, 2, n)
		equal(t, "of "+variable, xs, got)
	}
	_, got = pages(d.owner(), &setpointv1.ListAccessRulesRequest{Subject: "user:*"})
	equal(t, "of a subject", xs[:7], got)
	_, got = pages(d.owner(), &setpointv1.ListAccessRulesRequest{Variable: "y", Subject: "user:3"})
	equal(t, "of a subject and a variable", []string{all[6]}, got)
	// The pages of who manages x alone are full.
	n, got = pages(d.as("user:xadmin"), &setpointv1.ListAccessRulesRequest{})
	equal(t, "pages of who manages x", 2, n)
	equal(t, "of who manages x", xs, got)

	refusal := func(ctx context.Context, req *setpointv1.ListAccessRulesRequest, reason setpointv1.ErrorReason) {
		t.Helper()
		req.SessionId = "s"
		_, err := d.ListAccessRules(ctx, req)
		refused(t, err, reason)
	}
	refusal(d.owner(), &setpointv1.ListAccessRulesRequest{Variable: "z"}, setpointv1.ErrorReason_VARIABLE_NOT_FOUND)
	refusal(d.as("user:xadmin"), &setpointv1.ListAccessRulesRequest{Variable: "z"}, setpointv1.ErrorReason_ACCESS_DENIED)
	refusal(d.as("user:xadmin"), &setpointv1.ListAccessRulesRequest{Variable: "y"}, setpointv1.ErrorReason_ACCESS_DENIED)
	refusal(d.owner(), &setpointv1.ListAccessRulesRequest{PageToken: "?"}, setpointv1.ErrorReason_INVALID_REQUEST)
	list, err := d.ListAccessRules(d.owner(), &setpointv1.ListAccessRulesRequest{SessionId: "s", PageSize: 1})
	d.must(err)
	refusal(d.owner(), &setpointv1.ListAccessRulesRequest{Variable: "x", PageToken: list.GetNextPageToken()},
		setpointv1.ErrorReason_INVALID_REQUEST)
}

// The rules of a variable outlive it: they are found, and removed, by its id.
func TestRulesOfDeletedVariable(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	x := d.variable("x")
	d.permit("x", "user:xadmin", to(mayAdmin))
	rule := d.permit("x", "user:a")
	_, err := d.DeleteVariable(d.owner(), &setpointv1.DeleteVariableRequest{SessionId: "s", Variable: "x"})
	d.must(err)
	other := d.variable("x") // Of the same name, and without rules.
	for _, ctx := range []context.Context{d.owner(), d.as("user:xadmin")} {
		list, err := d.ListAccessRules(ctx, &setpointv1.ListAccessRulesRequest{SessionId: "s", Variable: x})
		d.must(err)
		equal(t, "rules", 2, len(list.GetRules()))
		equal(t, "named by the id", x+" "+x, list.GetRules()[1].GetVariable()+" "+list.GetRules()[1].GetVariableId())
	}
	list, err := d.ListAccessRules(d.owner(), &setpointv1.ListAccessRulesRequest{SessionId: "s", Variable: "x"})
	d.must(err)
	equal(t, "rules of "+other, 0, len(list.GetRules()))
	_, err = d.AddAccessRule(d.owner(), &setpointv1.AddAccessRuleRequest{SessionId: "s", Variable: x, Rule: spec("user:b")})
	refused(t, err, setpointv1.ErrorReason_VARIABLE_NOT_FOUND)
	_, err = d.RemoveAccessRule(d.as("user:xadmin"), &setpointv1.RemoveAccessRuleRequest{SessionId: "s", RuleId: rule.GetRuleId()})
	d.must(err)
	equal(t, "history", []string{x + " x integer"},
		d.texts(`select variable_id || ' ' || name || ' ' || type from setpoint.history where change = 'access_rule_removed'`))
	_, err = d.ListAccessRules(d.owner(), &setpointv1.ListAccessRulesRequest{SessionId: "s", Variable: "var_" + strings.Repeat("0", 26)})
	refused(t, err, setpointv1.ErrorReason_VARIABLE_NOT_FOUND)
}

// The id's next life has none of its rules.
func TestRulesEndWithSession(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.variable("x")
	d.permit("", "user:bob", to(mayAdmin))
	_, err := d.DeleteSession(d.owner(), &setpointv1.DeleteSessionRequest{SessionId: "s"})
	d.must(err)
	d.begin("s")
	_, err = d.GetSession(d.as("user:bob"), &setpointv1.GetSessionRequest{SessionId: "s"})
	refused(t, err, setpointv1.ErrorReason_SESSION_NOT_FOUND)
	equal(t, "rules", int64(0), d.number(`select count(*) from setpoint.access_rules`))
}

// What is kept of a rule says so in words, for SQL.
func TestRuleRecord(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	end := timestamppb.New(time.Now().Add(time.Hour).Truncate(time.Microsecond))
	rule := d.permit("", "service:*", to(mayObserve, mayAdmin), deny, priority(-1), func(s *setpointv1.AccessRuleSpec) {
		s.Expiry = &setpointv1.AccessRuleSpec_ExpiresAt{ExpiresAt: end}
	})
	var got map[string]any
	d.must(json.Unmarshal([]byte(d.texts(`select access_rule::text from setpoint.audit_events`)[0]), &got))
	equal(t, "record", map[string]any{
		"rule_id": rule.GetRuleId(), "subject": "service:*", "permissions": []any{"observe", "admin"}, "effect": "deny",
		"priority": -1.0, "expires_at": end.AsTime().Format(time.RFC3339Nano),
	}, got)
}

// permit adds a rule over the wire; an empty variable is all of the session.
func (b *bundle) permit(variable string, rule *setpointv1.AccessRuleSpec) *setpointv1.AccessRule {
	b.t.Helper()
	added, err := b.Access.AddAccessRule(b.ctx, &setpointv1.AddAccessRuleRequest{SessionId: "s", Variable: variable, Rule: rule})
	if err != nil {
		b.t.Fatal(err)
	}
	return added
}
