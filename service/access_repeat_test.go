package service_test

import (
	"context"
	"testing"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// A denial is not kept under the request_id of what was denied: once it is allowed, the same request is done, once.
func TestDenialIsNotRemembered(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	bob := d.as("user:bob")
	writes := map[string]func(ctx context.Context, variable, rule string) error{
		"set": func(ctx context.Context, variable, _ string) error {
			_, err := d.SetVariable(ctx, &setpointv1.SetVariableRequest{
				SessionId: "s", Variable: variable, Value: client.Integer(1), RequestId: "set",
			})
			return err
		},
		"batch": func(ctx context.Context, variable, _ string) error {
			_, err := d.BatchSetVariables(ctx, &setpointv1.BatchSetVariablesRequest{
				SessionId: "s", Atomic: true, Writes: []*setpointv1.VariableWrite{{Variable: variable, Value: client.Integer(1)}}, RequestId: "batch",
			})
			return err
		},
		"update": func(ctx context.Context, variable, _ string) error {
			_, err := d.UpdateVariable(ctx, &setpointv1.UpdateVariableRequest{
				SessionId: "s", Variable: variable, Metadata: map[string]string{"a": "b"}, RequestId: "update",
			})
			return err
		},
		"delete": func(ctx context.Context, variable, _ string) error {
			_, err := d.DeleteVariable(ctx, &setpointv1.DeleteVariableRequest{SessionId: "s", Variable: variable, RequestId: "delete"})
			return err
		},
		"rollback": func(ctx context.Context, variable, _ string) error {
			_, err := d.RollbackVariable(ctx, &setpointv1.RollbackVariableRequest{SessionId: "s", Variable: variable, RequestId: "rollback"})
			return err
		},
		"register": func(ctx context.Context, _, _ string) error {
			_, err := d.RegisterVariable(ctx, &setpointv1.RegisterVariableRequest{
				SessionId: "s", Name: "new", Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Value: client.Integer(0), RequestId: "register",
			})
			return err
		},
		"depend": func(ctx context.Context, variable, _ string) error {
			_, err := d.AddDependency(ctx, &setpointv1.AddDependencyRequest{
				SessionId: "s", Dependent: variable, Dependency: "base", RequestId: "depend",
			})
			return err
		},
		"start": func(ctx context.Context, variable, _ string) error {
			_, err := d.StartOptimization(ctx, &setpointv1.StartOptimizationRequest{
				SessionId: "s", Variables: []string{variable}, RequestId: "start",
			})
			return err
		},
		"rollback-session": func(ctx context.Context, _, _ string) error {
			_, err := d.RollbackSession(ctx, &setpointv1.RollbackSessionRequest{
				SessionId: "s", To: &setpointv1.RollbackSessionRequest_Revision{Revision: 1}, RequestId: "rollback-session",
			})
			return err
		},
		"add-rule": func(ctx context.Context, variable, _ string) error {
			_, err := d.AddAccessRule(ctx, &setpointv1.AddAccessRuleRequest{
				SessionId: "s", Variable: variable, Rule: spec("user:eve"), RequestId: "add-rule",
			})
			return err
		},
		"remove-rule": func(ctx context.Context, _, rule string) error {
			_, err := d.RemoveAccessRule(ctx, &setpointv1.RemoveAccessRuleRequest{SessionId: "s", RuleId: rule, RequestId: "remove-rule"})
			return err
		},
		"replace-rules": func(ctx context.Context, variable, _ string) error {
			_, err := d.SetVariablePermissions(ctx, &setpointv1.SetVariablePermissionsRequest{
				SessionId: "s", Variable: variable, Rules: []*setpointv1.AccessRuleSpec{spec("user:eve")}, RequestId: "replace-rules",
			})
			return err
		},
	}
	d.variable("base")
	_, err := d.SetVariable(d.owner(), &setpointv1.SetVariableRequest{SessionId: "s", Variable: "base", Value: client.Integer(7)})
	d.must(err)
	eves := d.permit("base", "user:eve").GetRuleId()
	for name := range writes {
		d.variable(name)
	}
	all := func(what string, want func(name string) string) {
		t.Helper()
		for name, write := range writes {
			if name == "rollback-session" && what == "allowed" {
				continue // It would take back what the others do.
			}
			equal(t, what+": "+name, want(name), answered(t, write(bob, name, eves)))
		}
	}
	all("without a rule", func(string) string { return "SESSION_NOT_FOUND" })
	read := d.permit("", "user:bob").GetRuleId()
	all("who may read", func(string) string { return "ACCESS_DENIED" })
	_, err = d.RemoveAccessRule(d.owner(), &setpointv1.RemoveAccessRuleRequest{SessionId: "s", RuleId: read})
	d.must(err)
	all("without a rule again", func(string) string { return "SESSION_NOT_FOUND" })
	equal(t, "kept under a request_id", int64(0), d.number(`select count(*) from setpoint.requests where principal = 'user:bob'`))
	d.permit("", "user:bob", to(mayAdmin))
	all("allowed", func(string) string { return "OK" })
	revision := d.number(`select revision from setpoint.sessions where session_id = 's'`)
	all("allowed", func(string) string { return "OK" })
	equal(t, "revision after the repeats", revision, d.number(`select revision from setpoint.sessions where session_id = 's'`))
	equal(t, "rolled back", "OK", answered(t, writes["rollback-session"](bob, "", "")))
}
