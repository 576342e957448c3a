package service_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/identity"
)

// checkDesk is a session with rules of many kinds about "temperature", a variable "closed" that only the owner knows of, and "open"
// for everybody.
func checkDesk(t *testing.T) (*desk, map[string]*setpointv1.AccessRule) {
	d := newDesk(t)
	d.variable("temperature")
	d.variable("closed")
	_, err := d.RegisterVariable(d.owner(), &setpointv1.RegisterVariableRequest{
		SessionId: "s", Name: "open", Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Value: client.Integer(0),
		AccessMode: setpointv1.AccessMode_ACCESS_MODE_PROTECTED,
	})
	d.must(err)
	return d, map[string]*setpointv1.AccessRule{
		"low":    d.permit("", "user:*", to(mayWrite)),
		"high":   d.permit("temperature", "user:bob", deny, to(mayWrite), priority(5)),
		"ops":    d.permit("temperature", "group:ops", to(mayAdmin), priority(9)),
		"closed": d.permit("closed", "*", deny, priority(100)),
		"svc":    d.permit("temperature", "service:*", to(mayObserve), priority(1)),
	}
}

func TestCheckAccess(t *testing.T) {
	t.Parallel()
	d, rules := checkDesk(t)
	low, high, ops := rules["low"].GetRuleId(), rules["high"].GetRuleId(), rules["ops"].GetRuleId()
	const (
		byAdmin   = setpointv1.AccessDecider_ACCESS_DECIDER_SERVER_ADMIN
		byOwner   = setpointv1.AccessDecider_ACCESS_DECIDER_OWNER
		byRule    = setpointv1.AccessDecider_ACCESS_DECIDER_RULE
		byMode    = setpointv1.AccessDecider_ACCESS_DECIDER_ACCESS_MODE
		byScope   = setpointv1.AccessDecider_ACCESS_DECIDER_CREDENTIALS
		noTelling = setpointv1.AccessDecider_ACCESS_DECIDER_HIDDEN
	)
	tests := map[string]struct {
		ctx     context.Context
		query   *setpointv1.AccessQuery
		allowed bool
		decider setpointv1.AccessDecider
		reason  string
		rule    string
		// whole: the rule is told with its subject.
		whole bool
	}{
		"denied by priority": {
			d.as("user:bob"), &setpointv1.AccessQuery{Variable: "temperature", Permission: mayWrite}, false, byRule,
			"user:bob may not write temperature: rule " + high + " denies it (priority 5)", high, false,
		},
		"allowed below it": {
			d.as("user:bob"), &setpointv1.AccessQuery{Variable: "temperature", Permission: mayRead}, true, byRule,
			"user:bob may read temperature: rule " + low + " allows it (priority 0)", low, false,
		},
		"by a group": {
			d.as("user:bob", "group:dev", "group:ops"), &setpointv1.AccessQuery{Variable: "temperature", Permission: mayAdmin}, true,
			byRule, "user:bob may admin temperature: rule " + ops + " allows it (priority 9)", ops, true,
		},
		"in the session as a whole": {
			d.as("user:bob"), &setpointv1.AccessQuery{Permission: mayWrite}, true, byRule,
			"user:bob may write in the whole session: rule " + low + " allows it (priority 0)", low, false,
		},
		"not in the session as a whole": {
			d.as("user:bob"), &setpointv1.AccessQuery{Permission: mayOptimize}, false, byMode,
			"user:bob may not optimize in the whole session: no rule for the whole session is about it", "", false,
		},
		"by the access mode": {
			d.as("service:a"), &setpointv1.AccessQuery{Variable: "open", Permission: mayObserve}, true, byMode,
			"service:a may observe open: no rule is about it and the access mode is protected", "", false,
		},
		"not by the access mode": {
			d.as("service:a"), &setpointv1.AccessQuery{Variable: "open", Permission: mayWrite}, false, byMode,
			"service:a may not write open: no rule is about it and the access mode is protected", "", false,
		},
		"hidden": {
			d.as("user:bob"), &setpointv1.AccessQuery{Variable: "closed", Permission: mayWrite}, false, noTelling,
			"user:bob may not read closed, or there is no such variable", "", false,
		},
		"absent": {
			d.as("user:bob"), &setpointv1.AccessQuery{Variable: "absent", Permission: mayWrite}, false, noTelling,
			"user:bob may not read absent, or there is no such variable", "", false,
		},
		"the owner": {
			d.owner(), &setpointv1.AccessQuery{Variable: "closed", Permission: mayAdmin}, true, byOwner,
			"user:owner may admin closed: it owns the session", "", false,
		},
		"the session": {
			d.as("session:s"), &setpointv1.AccessQuery{Variable: "closed", Permission: mayAdmin}, true, byOwner,
			"session:s may admin closed: it is the session", "", false,
		},
		"a server admin": {
			d.admin(identity.Scope{}), &setpointv1.AccessQuery{Variable: "closed", Permission: mayAdmin}, true, byAdmin,
			"user:root may admin closed: it is a server admin", "", false,
		},
		"narrowed": {
			d.admin(identity.Scope{Permissions: identity.Write}), &setpointv1.AccessQuery{Variable: "closed", Permission: mayOptimize},
			false, byScope, "user:root may not optimize closed: the credentials are narrowed to read,write", "", false,
		},
		"by its own name": {
			d.as("user:bob"), &setpointv1.AccessQuery{Variable: "temperature", Permission: mayWrite, Subject: "user:bob"}, false, byRule,
			"user:bob may not write temperature: rule " + high + " denies it (priority 5)", high, false,
		},
		"of another": {
			d.owner(), &setpointv1.AccessQuery{Variable: "temperature", Permission: mayWrite, Subject: "user:bob"}, false, byRule,
			"user:bob may not write temperature: rule " + high + " denies it (priority 5)", high, true,
		},
		"of another in a group": {
			d.owner(), &setpointv1.AccessQuery{
				Variable: "temperature", Permission: mayWrite, Subject: "user:bob", SubjectGroups: []string{"group:ops"},
			}, true, byRule, "user:bob may write temperature: rule " + ops + " allows it (priority 9)", ops, true,
		},
		"of another, by the admin of the variable": {
			d.as("user:ann", "group:ops"), &setpointv1.AccessQuery{Variable: "temperature", Permission: mayRead, Subject: "user:eve"},
			true, byRule, "user:eve may read temperature: rule " + low + " allows it (priority 0)", low, false, // It is not hers.
		},
		"of another, that the variable is closed to": {
			d.owner(), &setpointv1.AccessQuery{Variable: "closed", Permission: mayRead, Subject: "user:bob"}, false, byRule,
			"user:bob may not read closed: rule " + rules["closed"].GetRuleId() + " denies it (priority 100)",
			rules["closed"].GetRuleId(), true,
		},
		"of the owner": {
			d.admin(identity.Scope{}), &setpointv1.AccessQuery{Permission: mayAdmin, Subject: theOwner}, true, byOwner,
			"user:owner may admin in the whole session: it owns the session", "", false,
		},
		"of a server admin, which nobody looks at": {
			d.owner(), &setpointv1.AccessQuery{Permission: mayAdmin, Subject: "user:root"}, false, byMode,
			"user:root may not admin in the whole session: no rule for the whole session is about it", "", false,
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			q := test.query
			got, err := d.CheckAccess(test.ctx, &setpointv1.CheckAccessRequest{
				SessionId: "s", Variable: q.GetVariable(), Permission: q.GetPermission(), Subject: q.GetSubject(),
				SubjectGroups: q.GetSubjectGroups(),
			})
			if err != nil {
				t.Fatal(err)
			}
			want := &setpointv1.CheckAccessResponse{Allowed: test.allowed, Decider: test.decider, Reason: test.reason}
			for _, r := range rules {
				switch {
				case r.GetRuleId() != test.rule:
				case test.whole:
					want.Rule = r
				default:
					want.Rule = &setpointv1.AccessRule{
						RuleId: r.GetRuleId(), Permissions: r.GetPermissions(), Effect: r.GetEffect(), Priority: r.GetPriority(),
					}
				}
			}
			equal(t, "answer", want, got)
			batch, err := d.BatchCheckAccess(test.ctx, &setpointv1.BatchCheckAccessRequest{
				SessionId: "s", Checks: []*setpointv1.AccessQuery{{Permission: mayRead}, q, {Permission: mayWrite}},
			})
			if err != nil {
				t.Fatal(err)
			}
			equal(t, "answer in a batch", want, batch.GetResults()[1])
		})
	}
}

// What is told of a rule to those for whom it decides has its end, and not whom else it is for.
func TestCheckTellsLittle(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.variable("x")
	rule := d.permit("x", "user:b*", func(s *setpointv1.AccessRuleSpec) {
		s.Expiry = &setpointv1.AccessRuleSpec_Ttl{Ttl: durationpb.New(time.Hour)}
	})
	got, err := d.CheckAccess(d.as("user:bob"), &setpointv1.CheckAccessRequest{SessionId: "s", Variable: "x", Permission: mayRead})
	d.must(err)
	equal(t, "rule", &setpointv1.AccessRule{
		RuleId: rule.GetRuleId(), Permissions: rule.GetPermissions(), Effect: rule.GetEffect(), ExpiresAt: rule.GetExpiresAt(),
	}, got.GetRule())
	// About the session as a whole, of which bob may read nothing, no rule is named.
	denial := d.permit("", "user:bob", deny, to(mayWrite))
	got, err = d.CheckAccess(d.as("user:bob"), &setpointv1.CheckAccessRequest{SessionId: "s", Permission: mayWrite})
	d.must(err)
	equal(t, "answer", &setpointv1.CheckAccessResponse{
		Decider: setpointv1.AccessDecider_ACCESS_DECIDER_RULE, Reason: "user:bob may not write in the whole session: a rule denies it",
	}, got)
	if strings.Contains(got.String(), denial.GetRuleId()) {
		t.Error("the rule is named")
	}
}

func TestCheckAccessRefused(t *testing.T) {
	t.Parallel()
	d, _ := checkDesk(t)
	bob, nobody := d.as("user:bob"), d.as("service:nobody", "group:none")
	d.permit("", "user:manager", to(mayAdmin), priority(1))
	d.permit("", "service:nobody", deny, priority(200))
	_, err := d.UpdateVariable(d.owner(), &setpointv1.UpdateVariableRequest{
		SessionId: "s", Variable: "open", AccessMode: setpointv1.AccessMode_ACCESS_MODE_PRIVATE,
	})
	d.must(err)
	const (
		hidden = setpointv1.ErrorReason_SESSION_NOT_FOUND
		no     = setpointv1.ErrorReason_ACCESS_DENIED
		bad    = setpointv1.ErrorReason_INVALID_REQUEST
		absent = setpointv1.ErrorReason_VARIABLE_NOT_FOUND
	)
	manager := d.as("user:manager")
	tests := map[string]struct {
		ctx    context.Context
		query  *setpointv1.AccessQuery
		reason setpointv1.ErrorReason
		says   string
	}{
		"a stranger":            {nobody, &setpointv1.AccessQuery{Permission: mayRead}, hidden, ""},
		"a stranger, of others": {nobody, &setpointv1.AccessQuery{Permission: mayRead, Subject: "user:bob"}, hidden, ""},
		"of others without admin": {
			bob, &setpointv1.AccessQuery{Variable: "temperature", Permission: mayRead, Subject: "user:ann"}, no, "takes admin on temperature",
		},
		"of others in the session": {bob, &setpointv1.AccessQuery{Permission: mayRead, Subject: "user:ann"}, no, "takes admin in the whole"},
		"of others where nothing is": {
			bob, &setpointv1.AccessQuery{Variable: "absent", Permission: mayRead, Subject: "user:ann"}, no, "takes admin on absent",
		},
		"of oneself in other groups": {
			bob, &setpointv1.AccessQuery{Permission: mayRead, Subject: "user:bob", SubjectGroups: []string{"group:ops"}}, no, "admin",
		},
		"of an absent variable, who reads all": {d.owner(), &setpointv1.AccessQuery{Variable: "absent", Permission: mayRead}, absent, "absent"},
		"of others and an absent variable, who reads all": {
			d.owner(), &setpointv1.AccessQuery{Variable: "absent", Permission: mayRead, Subject: "user:ann"}, absent, "absent",
		},
		"a manager, of others where it may not": {
			manager, &setpointv1.AccessQuery{Variable: "closed", Permission: mayRead, Subject: "user:ann"}, no, "takes admin on closed",
		},
		"a manager, of others where nothing is": {
			manager, &setpointv1.AccessQuery{Variable: "absent", Permission: mayRead, Subject: "user:ann"}, no, "takes admin on absent",
		},
		"no principal":     {d.owner(), &setpointv1.AccessQuery{Permission: mayRead, Subject: "ann"}, bad, "subject: must be"},
		"groups of nobody": {d.owner(), &setpointv1.AccessQuery{Permission: mayRead, SubjectGroups: []string{"group:a"}}, bad, "subject: must not"},
		"no group": {
			d.owner(), &setpointv1.AccessQuery{Permission: mayRead, Subject: "user:ann", SubjectGroups: []string{"group:a", "user:b"}}, bad,
			"subject_groups[1]: must begin with group:",
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			q := test.query
			_, err := d.CheckAccess(test.ctx, &setpointv1.CheckAccessRequest{
				SessionId: "s", Variable: q.GetVariable(), Permission: q.GetPermission(), Subject: q.GetSubject(),
				SubjectGroups: q.GetSubjectGroups(),
			})
			if e := refused(t, err, test.reason); !strings.Contains(e.Message, test.says) {
				t.Errorf("%v does not say %q", e, test.says)
			}
			_, err = d.BatchCheckAccess(test.ctx, &setpointv1.BatchCheckAccessRequest{
				SessionId: "s", Checks: []*setpointv1.AccessQuery{{Permission: mayRead}, q},
			})
			e := refused(t, err, test.reason)
			if test.reason == bad && !strings.HasPrefix(e.Fields[0].Field, "checks[1].") {
				t.Errorf("the field is %s", e.Fields[0].Field)
			}
		})
	}
}

func TestBatchCheckAccess(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.variable("x")
	d.permit("x", "user:bob", to(mayWrite))
	var checks []*setpointv1.AccessQuery
	for i := range 1000 {
		checks = append(checks, &setpointv1.AccessQuery{
			Variable: "x", Permission: []setpointv1.Permission{mayRead, mayOptimize}[i%2], Subject: fmt.Sprintf("user:%d", i),
		})
	}
	checks[500].Subject, checks[501].Subject = "user:bob", "user:bob"
	response, err := d.BatchCheckAccess(d.owner(), &setpointv1.BatchCheckAccessRequest{SessionId: "s", Checks: checks})
	d.must(err)
	equal(t, "answers", 1000, len(response.GetResults()))
	for i, r := range response.GetResults() {
		if !strings.HasPrefix(r.GetReason(), checks[i].GetSubject()+" may") || r.GetAllowed() != (i == 500) {
			t.Fatalf("answer %d is %v", i, r)
		}
	}
	_, err = d.BatchCheckAccess(d.owner(), &setpointv1.BatchCheckAccessRequest{SessionId: "s", Checks: append(checks, checks[0])})
	refused(t, err, setpointv1.ErrorReason_LIMIT_EXCEEDED)
	_, err = d.BatchCheckAccess(d.owner(), &setpointv1.BatchCheckAccessRequest{SessionId: "none", Checks: checks[:1]})
	refused(t, err, setpointv1.ErrorReason_SESSION_NOT_FOUND)
}

// What is answered is what happens: each permission of each caller, tried.
func TestCheckAccessIsWhatHappens(t *testing.T) {
	t.Parallel()
	d, _ := checkDesk(t)
	for _, ctx := range []context.Context{
		d.owner(), d.as("user:bob"), d.as("user:bob", "group:ops"), d.as("service:a"), d.as("session:s"), d.admin(identity.Scope{}),
		d.admin(identity.Scope{Permissions: identity.Read}),
	} {
		for _, variable := range []string{"temperature", "closed", "open"} {
			tries := map[setpointv1.Permission]func() error{
				mayRead: func() error {
					_, err := d.GetVariable(ctx, &setpointv1.GetVariableRequest{SessionId: "s", Variable: variable})
					return err
				},
				mayWrite: func() error {
					_, err := d.SetVariable(ctx, &setpointv1.SetVariableRequest{
						SessionId: "s", Variable: variable, Value: client.Integer(1), DryRun: true,
					})
					return err
				},
				mayAdmin: func() error {
					_, err := d.ListAccessRules(ctx, &setpointv1.ListAccessRulesRequest{SessionId: "s", Variable: variable})
					return err
				},
			}
			for permission, try := range tries {
				check, err := d.CheckAccess(ctx, &setpointv1.CheckAccessRequest{SessionId: "s", Variable: variable, Permission: permission})
				d.must(err)
				want := "ACCESS_DENIED"
				if check.GetAllowed() {
					want = "OK"
				}
				equal(t, check.GetReason(), want, answered(t, try()))
			}
		}
	}
}
