package service_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// Sessions that use each other's variables: by rules, which bind on every server from the moment on at which a change of them has
// returned.

// twoSessions are the sessions a and b on two servers. The session a has the variables x and y.
type twoSessions struct {
	*bundle
	// a is the session a, in whose name somebody calls; b is the session b on either server.
	a *client.Client
	b [2]*client.Client
}

func newTwoSessions(t *testing.T) *twoSessions {
	t.Helper()
	s := &twoSessions{bundle: setup(t)}
	s.session("a")
	s.session("b")
	other := *s.bundle
	other.addr = s.startServer()
	s.a = s.dial(client.WithPrincipal("session:a"))
	s.b = [2]*client.Client{s.dial(client.WithPrincipal("session:b")), other.dial(client.WithPrincipal("session:b"))}
	for _, name := range []string{"x", "y"} {
		if _, err := s.a.Variables.RegisterVariable(s.ctx, &setpointv1.RegisterVariableRequest{
			SessionId: "a", Name: name, Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Value: client.Integer(0),
		}); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// add has the session a add a rule for x about the session b.
func (s *twoSessions) add(change ...func(*setpointv1.AccessRuleSpec)) *setpointv1.AccessRule {
	s.t.Helper()
	rule, err := s.a.Access.AddAccessRule(s.ctx, &setpointv1.AddAccessRuleRequest{
		SessionId: "a", Variable: "x", Rule: spec("session:b", change...),
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return rule
}

func (s *twoSessions) remove(rule *setpointv1.AccessRule) {
	s.t.Helper()
	if _, err := s.a.Access.RemoveAccessRule(s.ctx, &setpointv1.RemoveAccessRuleRequest{
		SessionId: "a", RuleId: rule.GetRuleId(),
	}); err != nil {
		s.t.Fatal(err)
	}
}

// replace has the session a replace the rules of x.
func (s *twoSessions) replace(rules ...*setpointv1.AccessRuleSpec) {
	s.t.Helper()
	if _, err := s.a.Access.SetVariablePermissions(s.ctx, &setpointv1.SetVariablePermissionsRequest{
		SessionId: "a", Variable: "x", Rules: rules,
	}); err != nil {
		s.t.Fatal(err)
	}
}

// does is what reading, writing and optimizing a variable come to.
func (s *twoSessions) does(c *client.Client, variable string) string {
	s.t.Helper()
	_, read := c.Variables.GetVariable(s.ctx, &setpointv1.GetVariableRequest{SessionId: "a", Variable: variable})
	_, write := c.Variables.SetVariable(s.ctx, &setpointv1.SetVariableRequest{
		SessionId: "a", Variable: variable, Value: client.Integer(1),
	})
	o, optimize := c.Optimizations.StartOptimization(s.ctx, &setpointv1.StartOptimizationRequest{
		SessionId: "a", Variables: []string{variable},
	})
	if optimize == nil {
		if _, err := c.Optimizations.StopOptimization(s.ctx, &setpointv1.StopOptimizationRequest{
			SessionId: "a", OptimizationId: o.GetOptimizationId(),
		}); err != nil {
			s.t.Fatal(err)
		}
	}
	return join(s.came(read), s.came(write), s.came(optimize))
}

// came is what a call came to: ok, or the reason of its refusal.
func (s *twoSessions) came(err error) string {
	s.t.Helper()
	if err == nil {
		return "ok"
	}
	e, ok := errors.AsType[*client.Error](err)
	if !ok {
		s.t.Fatal(err)
	}
	return map[setpointv1.ErrorReason]string{
		setpointv1.ErrorReason_ACCESS_DENIED: "denied", setpointv1.ErrorReason_SESSION_NOT_FOUND: "gone",
	}[e.Reason]
}

const gone = "gone gone gone"

// Sessions without the right permission may not read, write or optimize; with a rule they may.
func TestSessionsNeedRules(t *testing.T) {
	t.Parallel()
	s := newTwoSessions(t)
	for i, c := range s.b {
		equal(t, fmt.Sprintf("without a rule, on server %d", i), gone, s.does(c, "x"))
	}
	equal(t, "the session itself", "ok ok ok", s.does(s.a, "x"))
	for permission, want := range map[setpointv1.Permission]string{
		mayRead: "ok denied denied", mayObserve: "ok denied denied", mayWrite: "ok ok denied", mayOptimize: "ok ok ok",
		mayAdmin: "ok ok ok",
	} {
		rule := s.add(to(permission))
		for i, c := range s.b {
			equal(t, fmt.Sprintf("with %s, on server %d", permission, i), want, s.does(c, "x"))
			equal(t, "another variable", "denied denied denied", s.does(c, "y"))
		}
		for _, c := range s.b {
			if _, err := c.Variables.RegisterVariable(s.ctx, &setpointv1.RegisterVariableRequest{
				SessionId: "a", Name: "z", Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Value: client.Integer(0),
			}); s.came(err) != "denied" {
				t.Errorf("a registration by who has %s on x: %v", permission, err)
			}
		}
		s.remove(rule)
		for i, c := range s.b {
			equal(t, fmt.Sprintf("after %s, on server %d", permission, i), gone, s.does(c, "x"))
		}
	}
}

// Whatever way rules change, the next call on any server is judged by what they are.
func TestRevocationBindsAtOnce(t *testing.T) {
	t.Parallel()
	s := newTwoSessions(t)
	ways := map[string]func() func(){
		"added and removed": func() func() {
			rule := s.add(to(mayOptimize))
			return func() { s.remove(rule) }
		},
		"set and set to none": func() func() {
			s.replace(spec("session:*", to(mayOptimize)))
			return func() { s.replace() }
		},
		"allowed and then denied": func() func() {
			s.replace(spec("session:b", to(mayOptimize)))
			return func() { s.add(deny) }
		},
		"allowed and then outdone": func() func() {
			s.replace(spec("session:b", to(mayOptimize), priority(5)))
			return func() { s.add(deny, priority(6)) }
		},
	}
	for name, way := range ways {
		s.replace()
		for i := range 4 {
			here, there := s.b[i%2], s.b[(i+1)%2]
			equal(t, name+": before", gone, s.does(here, "x"))
			revoke := way()
			equal(t, name+": allowed, here", "ok ok ok", s.does(here, "x"))
			equal(t, name+": allowed, there", "ok ok ok", s.does(there, "x"))
			revoke()
			equal(t, name+": revoked, there", gone, s.does(there, "x"))
			equal(t, name+": revoked, here", gone, s.does(here, "x"))
			s.replace()
		}
	}
}

// Who waits for a lease and may not optimize any more when its turn comes is refused, and granted nothing.
func TestRevokedWaiterIsNeverGranted(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		left []*setpointv1.AccessRuleSpec
		want setpointv1.ErrorReason
	}{
		"all but optimize": {
			[]*setpointv1.AccessRuleSpec{spec("session:b", to(mayWrite))}, setpointv1.ErrorReason_ACCESS_DENIED,
		},
		"denied optimize": {
			[]*setpointv1.AccessRuleSpec{spec("session:b", to(mayAdmin)), spec("session:b", to(mayOptimize), deny)},
			setpointv1.ErrorReason_ACCESS_DENIED,
		},
		"nothing left": {nil, setpointv1.ErrorReason_SESSION_NOT_FOUND},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newTwoSessions(t)
			s.replace(spec("session:b", to(mayOptimize)))
			held, err := s.a.Optimizations.StartOptimization(s.ctx, &setpointv1.StartOptimizationRequest{
				SessionId: "a", Variables: []string{"x"},
			})
			s.must(err)
			waiting, err := s.b[0].Optimizations.StartOptimization(s.ctx, &setpointv1.StartOptimizationRequest{
				SessionId: "a", Variables: []string{"x"}, Conflict: setpointv1.ConflictStrategy_CONFLICT_STRATEGY_WAIT,
			})
			s.must(err)
			stream, err := s.b[1].Optimizations.AwaitOptimization(s.ctx, &setpointv1.AwaitOptimizationRequest{
				SessionId: "a", OptimizationId: waiting.GetOptimizationId(),
			})
			s.must(err)
			first, err := stream.Recv()
			s.must(err)
			equal(t, "state", setpointv1.OptimizationState_OPTIMIZATION_STATE_WAITING, first.GetState())
			s.replace(test.left...)
			_, err = s.a.Optimizations.StopOptimization(s.ctx, &setpointv1.StopOptimizationRequest{
				SessionId: "a", OptimizationId: held.GetOptimizationId(),
			})
			s.must(err)
			for err == nil { // Its place may be told first.
				var next *setpointv1.Optimization
				if next, err = stream.Recv(); err == nil && next.GetFencingToken() != 0 {
					t.Fatalf("granted: %v", next)
				}
			}
			wantReason(t, err, test.want)
			_, err = s.b[0].Optimizations.RenewOptimization(s.ctx, &setpointv1.RenewOptimizationRequest{
				SessionId: "a", OptimizationId: waiting.GetOptimizationId(),
			})
			wantReason(t, err, test.want)
			var granted bool
			s.row(&granted, `select started_at is not null from setpoint.optimizations
				where session_id = 'a' and optimization_id = $1`, waiting.GetOptimizationId())
			if granted {
				t.Error("it has been granted")
			}
		})
	}
}

func (s *twoSessions) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// A holder that may not optimize any more can do nothing under its lease, on any server, but give it up; when it may again, it goes on.
func TestRevokedHolderIsPowerless(t *testing.T) {
	t.Parallel()
	s := newTwoSessions(t)
	s.replace(spec("session:b", to(mayOptimize)))
	held, err := s.b[0].Optimizations.StartOptimization(s.ctx, &setpointv1.StartOptimizationRequest{
		SessionId: "a", Variables: []string{"x"}, Objective: &setpointv1.Objective{Metric: "m"},
	})
	s.must(err)
	uses := map[string]func(c *client.Client) error{
		"write": func(c *client.Client) error {
			_, err := c.Variables.SetVariable(s.ctx, &setpointv1.SetVariableRequest{
				SessionId: "a", Variable: "x", Value: client.Integer(1), Lease: lease(held),
			})
			return err
		},
		"renew": func(c *client.Client) error {
			_, err := c.Optimizations.RenewOptimization(s.ctx, &setpointv1.RenewOptimizationRequest{
				SessionId: "a", OptimizationId: held.GetOptimizationId(), FencingToken: held.GetFencingToken(),
			})
			return err
		},
		"report": func(c *client.Client) error {
			_, err := c.Optimizations.ReportProgress(s.ctx, &setpointv1.ReportProgressRequest{
				SessionId: "a", OptimizationId: held.GetOptimizationId(), FencingToken: held.GetFencingToken(),
				Values: map[string]*setpointv1.Value{"x": client.Integer(2)}, Metrics: map[string]float64{"m": 1},
			})
			return err
		},
		"apply": func(c *client.Client) error {
			_, err := c.Optimizations.ReportProgress(s.ctx, &setpointv1.ReportProgressRequest{
				SessionId: "a", OptimizationId: held.GetOptimizationId(), FencingToken: held.GetFencingToken(), Apply: true,
				Values: map[string]*setpointv1.Value{"x": client.Integer(2)},
			})
			return err
		},
	}
	try := func(what, want string) {
		t.Helper()
		for use, do := range uses {
			for _, i := range []int{1, 0} {
				if got := s.came(do(s.b[i])); got != want {
					t.Errorf("%s: %s on server %d is %s, want %s", what, use, i, got, want)
				}
			}
		}
	}
	try("allowed", "ok")
	s.replace(spec("session:b", to(mayWrite)))
	try("revoked", "denied")
	_, err = s.b[1].Optimizations.StopOptimization(s.ctx, &setpointv1.StopOptimizationRequest{
		SessionId: "a", OptimizationId: held.GetOptimizationId(), ApplyBest: true,
	})
	wantReason(t, err, setpointv1.ErrorReason_ACCESS_DENIED)
	_, err = s.b[1].Variables.SetVariable(s.ctx, &setpointv1.SetVariableRequest{
		SessionId: "a", Variable: "x", Value: client.Integer(1),
	})
	wantReason(t, err, setpointv1.ErrorReason_ALREADY_OPTIMIZING) // The lease goes on.
	s.replace(spec("session:b", to(mayOptimize)))
	try("allowed again", "ok")
	s.replace()
	try("with nothing left", "gone")
	s.replace(spec("session:b"))
	_, err = s.b[1].Optimizations.StopOptimization(s.ctx, &setpointv1.StopOptimizationRequest{
		SessionId: "a", OptimizationId: held.GetOptimizationId(),
	})
	s.must(err)
	equal(t, "the session itself, after it was given up", "ok ok ok", s.does(s.a, "x"))
}
