package service_test

import (
	"math"
	"strings"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// writes are all RPCs that take a request_id, each as a call that succeeds once and as one that is refused. Those with
// "followed" behind the name are done where others depend on x: d is computed from x and y, and p follows x by hand.
var writes = map[string]struct {
	succeeds, refused func(b *bundle, c *client.Client, id string) (proto.Message, error)
}{
	"CreateSession": {
		func(b *bundle, c *client.Client, id string) (proto.Message, error) {
			return c.Sessions.CreateSession(b.ctx, &setpointv1.CreateSessionRequest{SessionId: "new", RequestId: id})
		},
		func(b *bundle, c *client.Client, id string) (proto.Message, error) {
			return c.Sessions.CreateSession(b.ctx, &setpointv1.CreateSessionRequest{SessionId: "s", RequestId: id})
		},
	},
	"DeleteSession": {
		func(b *bundle, c *client.Client, id string) (proto.Message, error) {
			return c.Sessions.DeleteSession(b.ctx, &setpointv1.DeleteSessionRequest{SessionId: "s", RequestId: id})
		},
		nil, // Refused only with SESSION_NOT_FOUND, which is not recorded: there is no session to record it in.
	},
	"RegisterVariable": {
		func(b *bundle, c *client.Client, id string) (proto.Message, error) {
			return c.Variables.RegisterVariable(b.ctx, &setpointv1.RegisterVariableRequest{
				SessionId: "s", Name: "new", Type: setpointv1.VariableType_VARIABLE_TYPE_EMBEDDING,
				Value: client.Embedding([]float32{1, 2}), Metadata: map[string]string{"a": "b"}, RequestId: id,
			})
		},
		func(b *bundle, c *client.Client, id string) (proto.Message, error) {
			return c.Variables.RegisterVariable(b.ctx, &setpointv1.RegisterVariableRequest{
				SessionId: "s", Name: "bad", Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER,
				Value: client.String("x"), RequestId: id,
			})
		},
	},
	"BatchRegisterVariables": {
		func(b *bundle, c *client.Client, id string) (proto.Message, error) {
			return c.Variables.BatchRegisterVariables(b.ctx, &setpointv1.BatchRegisterVariablesRequest{
				SessionId: "s", RequestId: id, Registrations: []*setpointv1.VariableRegistration{
					{Name: "new", Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Value: client.Integer(1)},
					{Name: "x", Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Value: client.Integer(1)},
					{Name: "bad", Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Value: client.Float(.5)},
				},
			})
		},
		func(b *bundle, c *client.Client, id string) (proto.Message, error) {
			return c.Variables.BatchRegisterVariables(b.ctx, &setpointv1.BatchRegisterVariablesRequest{
				SessionId: "s", RequestId: id, Atomic: true, Registrations: []*setpointv1.VariableRegistration{
					{Name: "bad", Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Value: client.Float(.5)},
				},
			})
		},
	},
	"SetVariable": {
		func(b *bundle, c *client.Client, id string) (proto.Message, error) {
			return c.Variables.SetVariable(b.ctx, &setpointv1.SetVariableRequest{
				SessionId: "s", Variable: "x", Value: client.Integer(1), RequestId: id,
			})
		},
		func(b *bundle, c *client.Client, id string) (proto.Message, error) {
			return c.Variables.SetVariable(b.ctx, &setpointv1.SetVariableRequest{
				SessionId: "s", Variable: "x", Value: client.String("no"), RequestId: id,
			})
		},
	},
	"BatchSetVariables": {
		func(b *bundle, c *client.Client, id string) (proto.Message, error) {
			return c.Variables.BatchSetVariables(b.ctx, &setpointv1.BatchSetVariablesRequest{
				SessionId: "s", RequestId: id, Writes: []*setpointv1.VariableWrite{
					{Variable: "x", Value: client.Integer(1)}, {Variable: "no", Value: client.Integer(1)},
					{Variable: "y", Value: client.Integer(1), ExpectedVersion: ptr(int64(5))},
				},
			})
		},
		func(b *bundle, c *client.Client, id string) (proto.Message, error) {
			return c.Variables.BatchSetVariables(b.ctx, &setpointv1.BatchSetVariablesRequest{
				SessionId: "s", RequestId: id, Atomic: true, Writes: []*setpointv1.VariableWrite{
					{Variable: "x", Value: client.Integer(1)}, {Variable: "y", Value: client.String("no")},
				},
			})
		},
	},
	"UpdateVariable": {
		func(b *bundle, c *client.Client, id string) (proto.Message, error) {
			return c.Variables.UpdateVariable(b.ctx, &setpointv1.UpdateVariableRequest{
				SessionId: "s", Variable: "x", Metadata: map[string]string{"a": "b"}, RequestId: id,
			})
		},
		func(b *bundle, c *client.Client, id string) (proto.Message, error) {
			return c.Variables.UpdateVariable(b.ctx, &setpointv1.UpdateVariableRequest{
				SessionId: "s", Variable: "x", Constraints: &setpointv1.Constraints{Min: ptr(1e9)}, RequestId: id,
			})
		},
	},
	"DeleteVariable": {
		func(b *bundle, c *client.Client, id string) (proto.Message, error) {
			return c.Variables.DeleteVariable(b.ctx, &setpointv1.DeleteVariableRequest{SessionId: "s", Variable: "x", RequestId: id})
		},
		func(b *bundle, c *client.Client, id string) (proto.Message, error) {
			return c.Variables.DeleteVariable(b.ctx, &setpointv1.DeleteVariableRequest{SessionId: "s", Variable: "no", RequestId: id})
		},
	},
	"RollbackSession": {
		func(b *bundle, c *client.Client, id string) (proto.Message, error) {
			return c.History.RollbackSession(b.ctx, &setpointv1.RollbackSessionRequest{
				SessionId: "s", To: &setpointv1.RollbackSessionRequest_Revision{Revision: 2}, RequestId: id,
			})
		},
		func(b *bundle, c *client.Client, id string) (proto.Message, error) {
			return c.History.RollbackSession(b.ctx, &setpointv1.RollbackSessionRequest{
				SessionId: "s", To: &setpointv1.RollbackSessionRequest_Revision{Revision: 999}, RequestId: id,
			})
		},
	},
	"AddDependency": {
		func(b *bundle, c *client.Client, id string) (proto.Message, error) {
			return c.Dependencies.AddDependency(b.ctx, &setpointv1.AddDependencyRequest{
				SessionId: "s", Dependent: "x", Dependency: "y", RequestId: id,
			})
		},
		func(b *bundle, c *client.Client, id string) (proto.Message, error) {
			return c.Dependencies.AddDependency(b.ctx, &setpointv1.AddDependencyRequest{
				SessionId: "s", Dependent: "x", Dependency: "x", RequestId: id,
			})
		},
	},
	"RemoveDependency, followed": {
		func(b *bundle, c *client.Client, id string) (proto.Message, error) {
			return c.Dependencies.RemoveDependency(b.ctx, &setpointv1.RemoveDependencyRequest{
				SessionId: "s", Dependent: "p", Dependency: "x", RequestId: id,
			})
		},
		func(b *bundle, c *client.Client, id string) (proto.Message, error) {
			return c.Dependencies.RemoveDependency(b.ctx, &setpointv1.RemoveDependencyRequest{
				SessionId: "s", Dependent: "d", Dependency: "x", RequestId: id,
			})
		},
	},
	"RegisterVariable, followed": {
		func(b *bundle, c *client.Client, id string) (proto.Message, error) {
			return c.Variables.RegisterVariable(b.ctx, &setpointv1.RegisterVariableRequest{
				SessionId: "s", Name: "new", Type: setpointv1.VariableType_VARIABLE_TYPE_EMBEDDING,
				Value: client.Embedding([]float32{1, 2}), Expression: "[1.0 / double(x), double(d) / double(1 / x)]", RequestId: id,
			})
		},
		func(b *bundle, c *client.Client, id string) (proto.Message, error) {
			return c.Variables.RegisterVariable(b.ctx, &setpointv1.RegisterVariableRequest{
				SessionId: "s", Name: "bad", Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER,
				Expression: "x + nobody", RequestId: id,
			})
		},
	},
	"BatchRegisterVariables, followed": {
		func(b *bundle, c *client.Client, id string) (proto.Message, error) {
			return c.Variables.BatchRegisterVariables(b.ctx, &setpointv1.BatchRegisterVariablesRequest{
				SessionId: "s", RequestId: id, Registrations: []*setpointv1.VariableRegistration{
					{Name: "second", Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Expression: "first + x"},
					{Name: "first", Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Expression: "d + 1"},
					{Name: "x", Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Value: client.Integer(1)},
					{Name: "bad", Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Expression: "1 +"},
				},
			})
		},
		func(b *bundle, c *client.Client, id string) (proto.Message, error) {
			return c.Variables.BatchRegisterVariables(b.ctx, &setpointv1.BatchRegisterVariablesRequest{
				SessionId: "s", RequestId: id, Atomic: true, Registrations: []*setpointv1.VariableRegistration{
					{Name: "a", Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Expression: "b"},
					{Name: "b", Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Expression: "a"},
				},
			})
		},
	},
	"SetVariable, followed": {
		func(b *bundle, c *client.Client, id string) (proto.Message, error) {
			return c.Variables.SetVariable(b.ctx, &setpointv1.SetVariableRequest{
				SessionId: "s", Variable: "x", Value: client.Integer(4), RequestId: id,
			})
		},
		func(b *bundle, c *client.Client, id string) (proto.Message, error) {
			return c.Variables.SetVariable(b.ctx, &setpointv1.SetVariableRequest{
				SessionId: "s", Variable: "x", Value: client.Integer(1000), RequestId: id, // More than strict d may be.
			})
		},
	},
	"BatchSetVariables, followed": {
		func(b *bundle, c *client.Client, id string) (proto.Message, error) {
			return c.Variables.BatchSetVariables(b.ctx, &setpointv1.BatchSetVariablesRequest{
				SessionId: "s", RequestId: id, Writes: []*setpointv1.VariableWrite{
					{Variable: "x", Value: client.Integer(1)}, {Variable: "d", Value: client.Integer(1)},
					{Variable: "y", Value: client.Integer(1)},
				},
			})
		},
		func(b *bundle, c *client.Client, id string) (proto.Message, error) {
			return c.Variables.BatchSetVariables(b.ctx, &setpointv1.BatchSetVariablesRequest{
				SessionId: "s", RequestId: id, Atomic: true, Writes: []*setpointv1.VariableWrite{
					{Variable: "y", Value: client.Integer(1)}, {Variable: "x", Value: client.Integer(1000)},
				},
			})
		},
	},
	"UpdateVariable, followed": {
		func(b *bundle, c *client.Client, id string) (proto.Message, error) {
			return c.Variables.UpdateVariable(b.ctx, &setpointv1.UpdateVariableRequest{
				SessionId: "s", Variable: "d", Expression: ptr("x - 1"), RequestId: id,
			})
		},
		func(b *bundle, c *client.Client, id string) (proto.Message, error) {
			return c.Variables.UpdateVariable(b.ctx, &setpointv1.UpdateVariableRequest{
				SessionId: "s", Variable: "x", DependsOn: []string{"d"}, RequestId: id,
			})
		},
	},
	"DeleteVariable, followed": {
		func(b *bundle, c *client.Client, id string) (proto.Message, error) {
			return c.Variables.DeleteVariable(b.ctx, &setpointv1.DeleteVariableRequest{
				SessionId: "s", Variable: "p", Cascade: true, RequestId: id,
			})
		},
		func(b *bundle, c *client.Client, id string) (proto.Message, error) {
			return c.Variables.DeleteVariable(b.ctx, &setpointv1.DeleteVariableRequest{SessionId: "s", Variable: "y", RequestId: id})
		},
	},
	"RollbackSession, followed": {
		func(b *bundle, c *client.Client, id string) (proto.Message, error) {
			return c.History.RollbackSession(b.ctx, &setpointv1.RollbackSessionRequest{
				SessionId: "s", To: &setpointv1.RollbackSessionRequest_Revision{Revision: 4}, RequestId: id,
			})
		},
		func(b *bundle, c *client.Client, id string) (proto.Message, error) {
			return c.History.RollbackSession(b.ctx, &setpointv1.RollbackSessionRequest{
				SessionId: "s", To: &setpointv1.RollbackSessionRequest_Revision{Revision: 999}, RequestId: id,
			})
		},
	},
	"RollbackVariable, followed": {
		func(b *bundle, c *client.Client, id string) (proto.Message, error) {
			return c.History.RollbackVariable(b.ctx, &setpointv1.RollbackVariableRequest{SessionId: "s", Variable: "x", RequestId: id})
		},
		func(b *bundle, c *client.Client, id string) (proto.Message, error) {
			return c.History.RollbackVariable(b.ctx, &setpointv1.RollbackVariableRequest{SessionId: "s", Variable: "d", RequestId: id})
		},
	},
	"StartOptimization": {
		func(b *bundle, c *client.Client, id string) (proto.Message, error) {
			return c.Optimizations.StartOptimization(b.ctx, &setpointv1.StartOptimizationRequest{
				SessionId: "s", Variables: []string{"y"}, RequestId: id,
			})
		},
		func(b *bundle, c *client.Client, id string) (proto.Message, error) {
			return c.Optimizations.StartOptimization(b.ctx, &setpointv1.StartOptimizationRequest{
				SessionId: "s", Variables: []string{"y"}, Priority: 1, RequestId: id,
			})
		},
	},
	"ReportProgress": {
		func(b *bundle, c *client.Client, id string) (proto.Message, error) {
			return c.Optimizations.ReportProgress(b.ctx, &setpointv1.ReportProgressRequest{
				SessionId: "s", OptimizationId: b.lease.GetOptimizationId(), FencingToken: b.lease.GetFencingToken(),
				Values: map[string]*setpointv1.Value{"y": client.Integer(4)}, Metrics: map[string]float64{"loss": math.Inf(-1)},
				Apply: true, RequestId: id,
			})
		},
		func(b *bundle, c *client.Client, id string) (proto.Message, error) {
			return c.Optimizations.ReportProgress(b.ctx, &setpointv1.ReportProgressRequest{
				SessionId: "s", OptimizationId: b.lease.GetOptimizationId(), FencingToken: 999, RequestId: id,
			})
		},
	},
	"StopOptimization": {
		func(b *bundle, c *client.Client, id string) (proto.Message, error) {
			return c.Optimizations.StopOptimization(b.ctx, &setpointv1.StopOptimizationRequest{
				SessionId: "s", OptimizationId: b.lease.GetOptimizationId(), RequestId: id,
			})
		},
		func(b *bundle, c *client.Client, id string) (proto.Message, error) {
			return c.Optimizations.StopOptimization(b.ctx, &setpointv1.StopOptimizationRequest{
				SessionId: "s", OptimizationId: b.lease.GetOptimizationId(), FencingToken: ptr(int64(999)), RequestId: id,
			})
		},
	},
	"SetVariablePermissions": {
		func(b *bundle, c *client.Client, id string) (proto.Message, error) {
			return c.Access.SetVariablePermissions(b.ctx, &setpointv1.SetVariablePermissionsRequest{
				SessionId: "s", Variable: "x", Rules: []*setpointv1.AccessRuleSpec{spec("user:b*", deny), spec("user:eve")}, RequestId: id,
			})
		},
		func(b *bundle, c *client.Client, id string) (proto.Message, error) {
			return c.Access.SetVariablePermissions(b.ctx, &setpointv1.SetVariablePermissionsRequest{
				SessionId: "s", Variable: "no", RequestId: id,
			})
		},
	},
	"AddAccessRule": {
		func(b *bundle, c *client.Client, id string) (proto.Message, error) {
			return c.Access.AddAccessRule(b.ctx, &setpointv1.AddAccessRuleRequest{SessionId: "s", Rule: spec("user:eve"), RequestId: id})
		},
		func(b *bundle, c *client.Client, id string) (proto.Message, error) {
			return c.Access.AddAccessRule(b.ctx, &setpointv1.AddAccessRuleRequest{
				SessionId: "s", Variable: "no", Rule: spec("user:eve"), RequestId: id,
			})
		},
	},
	"RemoveAccessRule": {
		func(b *bundle, c *client.Client, id string) (proto.Message, error) {
			return c.Access.RemoveAccessRule(b.ctx, &setpointv1.RemoveAccessRuleRequest{
				SessionId: "s", RuleId: b.rule.GetRuleId(), RequestId: id,
			})
		},
		func(b *bundle, c *client.Client, id string) (proto.Message, error) {
			return c.Access.RemoveAccessRule(b.ctx, &setpointv1.RemoveAccessRuleRequest{
				SessionId: "s", RuleId: "rule_00000000000000000000000000", RequestId: id,
			})
		},
	},
	"RollbackVariable": {
		func(b *bundle, c *client.Client, id string) (proto.Message, error) {
			return c.History.RollbackVariable(b.ctx, &setpointv1.RollbackVariableRequest{SessionId: "s", Variable: "x", RequestId: id})
		},
		func(b *bundle, c *client.Client, id string) (proto.Message, error) {
			return c.History.RollbackVariable(b.ctx, &setpointv1.RollbackVariableRequest{
				SessionId: "s", Variable: "x", Version: 8, RequestId: id,
			})
		},
	},
}

// changes counts everything that a write may have changed.
func (b *bundle) changes() int64 {
	b.t.Helper()
	var n int64
	b.row(&n, `select (select count(*) from setpoint.history) + (select count(*) from setpoint.sessions where expires_at > clock_timestamp())
		+ (select sum(revision) from setpoint.sessions) + (select count(*) from setpoint.requests)
		+ (select count(*) from setpoint.trials) + (select count(*) from setpoint.optimizations)
		+ (select count(*) from setpoint.optimizations where ended_at is null)
		+ (select count(*) from setpoint.access_rules)
		+ (select count(*) from setpoint.audit_events where kind <> 'access_denied')`)
	return n
}

// The same request_id again returns the first outcome, success or refusal, and writes nothing, whatever has happened in
// between; in another principal's hands it is another request.
func TestRequestIsDoneOnce(t *testing.T) {
	t.Parallel()
	tested := map[string]bool{}
	for name := range writes {
		rpc, _, _ := strings.Cut(name, ",")
		tested[rpc] = true
	}
	withRequestID := requestMessages()
	for _, name := range withRequestID {
		if !tested[name] {
			t.Errorf("%s takes a request_id and is not tested", name)
		}
	}
	if len(withRequestID) != len(tested) {
		t.Errorf("%d RPCs take a request_id, %d are tested", len(withRequestID), len(tested))
	}
	for name, write := range writes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.integer("x")
			b.integer("y")
			followed := strings.HasSuffix(name, ", followed")
			if followed {
				b.derived("d", "x + y", func(r *setpointv1.RegisterVariableRequest) {
					r.Strict, r.Constraints = true, &setpointv1.Constraints{Max: ptr(500.0)}
				})
				b.dependent("p", "x")
			}
			if followed || name == "RollbackSession" {
				b.set("x", client.Integer(5))
			}
			if name == "ReportProgress" || name == "StopOptimization" {
				b.lease = b.start([]string{"y"})
			}
			if name == "RemoveAccessRule" {
				b.rule = b.permit("x", spec("user:eve"))
			}
			first, err := write.succeeds(b, b.Client, "r")
			if err != nil {
				t.Fatal(err)
			}
			if name != "DeleteSession" && name != "DeleteVariable" {
				b.set("x", client.Integer(77)) // Time goes on.
			}
			before := b.changes()
			again, err := write.succeeds(b, b.Client, "r")
			if err != nil {
				t.Fatalf("again: %v", err)
			}
			equal(t, "answer to the repeat", withoutMoment(first), again)
			if after := b.changes(); after != before {
				t.Errorf("the repeat changed something: %d, then %d", before, after)
			}
			if name == "DeleteSession" {
				return
			}
			// Another principal's request of the same id is its own: what it is told is news.
			b.allow("s", "user:ada")
			other, err := write.succeeds(b, b.dial(client.WithPrincipal("user:ada")), "r")
			if err == nil && proto.Equal(first, other) && name != "AddDependency" { // An edge that is there is told to anybody.
				t.Error("another principal was told this one's outcome")
			}
			if write.refused == nil {
				return
			}
			_, refused := write.refused(b, b.Client, "q")
			before = b.changes()
			_, again2 := write.refused(b, b.Client, "q")
			if refused == nil || again2 == nil || refused.Error() != again2.Error() {
				t.Errorf("refusals: %v, then %v", refused, again2)
			}
			if after := b.changes(); after != before {
				t.Errorf("the refused repeat changed something: %d, then %d", before, after)
			}
			_, err = write.refused(b, b.Client, "r")
			if name == "CreateSession" {
				return // Requests are per session, and these two are in different ones.
			}
			wantReason(t, err, setpointv1.ErrorReason_REQUEST_ID_REUSED)
		})
	}
}

// withoutMoment leaves out of an answer what only holds when it is given, which a repeat does not tell.
func withoutMoment(m proto.Message) proto.Message {
	switch m := m.(type) {
	case *setpointv1.Optimization:
		m.Remaining = nil
	case *setpointv1.ReportProgressResponse:
		m.Remaining = nil
	}
	return m
}

// requestMessages are the RPCs whose requests have a request_id.
func requestMessages() []string {
	var out []string
	for _, file := range apiFiles() {
		for i := range file.Services().Len() {
			methods := file.Services().Get(i).Methods()
			for j := range methods.Len() {
				if methods.Get(j).Input().Fields().ByName("request_id") != nil {
					out = append(out, string(methods.Get(j).Name()))
				}
			}
		}
	}
	return out
}

// A refusal that has been recorded stands, though the cause is gone.
func TestRecordedRefusalStands(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.integer("x")
	ask := func() error {
		_, err := b.Variables.SetVariable(b.ctx, &setpointv1.SetVariableRequest{
			SessionId: "s", Variable: "x", Value: client.Integer(5), ExpectedVersion: ptr(int64(1)), RequestId: "r",
		})
		return err
	}
	wantReason(t, ask(), setpointv1.ErrorReason_VERSION_MISMATCH)
	b.set("x", client.Integer(1)) // Now version 1 is the current one.
	e := wantReason(t, ask(), setpointv1.ErrorReason_VERSION_MISMATCH)
	if e.Metadata["current_version"] != "0" {
		t.Errorf("the repeat tells another outcome: %v", e.Metadata)
	}
}

// Copies of one request that arrive at once are done once, and all told the same.
func TestRequestAtOnce(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.integer("x")
	for round := range 10 {
		var wg sync.WaitGroup
		answers := make(chan *setpointv1.SetVariableResponse, 8)
		for range cap(answers) {
			wg.Go(func() {
				r, err := b.Variables.SetVariable(b.ctx, &setpointv1.SetVariableRequest{
					SessionId: "s", Variable: "x", Value: client.Integer(int64(round)), RequestId: string(rune('a' + round)),
				})
				if err != nil {
					t.Error(err)
				}
				answers <- r
			})
		}
		wg.Wait()
		first := <-answers
		for range cap(answers) - 1 {
			equal(t, "answer", first, <-answers)
		}
	}
	if v := b.get("x"); v.GetVersion() != 10 {
		t.Errorf("version %d after 10 requests", v.GetVersion())
	}
}
