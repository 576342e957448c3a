package service_test

import (
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/testkit"
)

func TestCreateSession(t *testing.T) {
	t.Parallel()
	b := setup(t)
	created, err := b.Sessions.CreateSession(b.ctx, &setpointv1.CreateSessionRequest{
		SessionId: "run:1", Metadata: map[string]string{"team": "search"}, Ttl: durationpb.New(90 * time.Second),
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := created.GetExpiresAt().AsTime().Sub(created.GetCreatedAt().AsTime()); got != 90*time.Second {
		t.Errorf("expires %s after it was created, want 90s", got)
	}
	got, err := b.Sessions.GetSession(b.ctx, &setpointv1.GetSessionRequest{SessionId: "run:1"})
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "session", &setpointv1.Session{
		SessionId: "run:1", Owner: "user:anonymous", Metadata: map[string]string{"team": "search"},
		Ttl: durationpb.New(90 * time.Second), CreatedAt: created.GetCreatedAt(), ExpiresAt: created.GetExpiresAt(),
	}, got)

	t.Run("defaults", func(t *testing.T) {
		s, err := b.Sessions.CreateSession(b.ctx, &setpointv1.CreateSessionRequest{})
		if err != nil || len(s.GetSessionId()) != 36 || s.GetTtl().AsDuration() != time.Hour {
			t.Errorf("%v, %v; want a UUID and an hour", s, err)
		}
	})
	t.Run("no end", func(t *testing.T) {
		s, err := b.Sessions.CreateSession(b.ctx, &setpointv1.CreateSessionRequest{SessionId: "ever", Ttl: durationpb.New(0)})
		if err != nil || s.Ttl != nil || s.ExpiresAt != nil {
			t.Errorf("%v, %v; want neither ttl nor expires_at", s, err)
		}
	})
	t.Run("another owner", func(t *testing.T) {
		c := b.dial(client.WithPrincipal("user:ada"))
		s, err := c.Sessions.CreateSession(b.ctx, &setpointv1.CreateSessionRequest{SessionId: "ada"})
		if err != nil || s.GetOwner() != "user:ada" {
			t.Errorf("%v, %v", s, err)
		}
	})
}

func TestCreateSessionRefuses(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for name, req := range map[string]*setpointv1.CreateSessionRequest{
		"id with a space":              {SessionId: "a b"},
		"id that begins with a dash":   {SessionId: "-a"},
		"id of 129 characters":         {SessionId: fmt.Sprintf("%0129d", 1)},
		"id with NUL":                  {SessionId: "a\x00"},
		"ttl below a second":           {SessionId: "a", Ttl: durationpb.New(time.Millisecond)},
		"ttl above 30 days":            {SessionId: "a", Ttl: durationpb.New(720*time.Hour + 1)},
		"negative ttl":                 {SessionId: "a", Ttl: durationpb.New(-time.Hour)},
		"metadata with NUL":            {SessionId: "a", Metadata: map[string]string{"k": "\x00"}},
		"metadata key with NUL":        {SessionId: "a", Metadata: map[string]string{"\x00": "v"}},
		"request_id without an id":     {RequestId: "r"},
		"request_id of 129 characters": {SessionId: "a", RequestId: fmt.Sprintf("%0129d", 1)},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := b.Sessions.CreateSession(b.ctx, req)
			if e := wantReason(t, err, setpointv1.ErrorReason_INVALID_REQUEST); len(e.Violations) == 0 {
				t.Errorf("no field is named: %v", e)
			}
		})
	}
	c := b.dial(client.WithPrincipal("nobody"))
	_, err := c.Sessions.CreateSession(b.ctx, &setpointv1.CreateSessionRequest{SessionId: "a"})
	wantReason(t, err, setpointv1.ErrorReason_INVALID_REQUEST)
}

// At its expiry, and at once when it is deleted, a session is gone for every operation.
func TestGoneForEveryOperation(t *testing.T) {
	t.Parallel()
	value := client.Integer(1)
	nobody := "opt_00000000000000000000000000"
	operations := map[string]func(b *bundle, s string) error{
		"GetSession": func(b *bundle, s string) error {
			_, err := b.Sessions.GetSession(b.ctx, &setpointv1.GetSessionRequest{SessionId: s})
			return err
		},
		"KeepSessionAlive": func(b *bundle, s string) error {
			_, err := b.Sessions.KeepSessionAlive(b.ctx, &setpointv1.KeepSessionAliveRequest{SessionId: s})
			return err
		},
		"DeleteSession": func(b *bundle, s string) error {
			_, err := b.Sessions.DeleteSession(b.ctx, &setpointv1.DeleteSessionRequest{SessionId: s})
			return err
		},
		"RegisterVariable": func(b *bundle, s string) error {
			_, err := b.Variables.RegisterVariable(b.ctx, &setpointv1.RegisterVariableRequest{
				SessionId: s, Name: "y", Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Value: value,
			})
			return err
		},
		"BatchRegisterVariables": func(b *bundle, s string) error {
			_, err := b.Variables.BatchRegisterVariables(b.ctx, &setpointv1.BatchRegisterVariablesRequest{
				SessionId: s, Registrations: []*setpointv1.VariableRegistration{
					{Name: "y", Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Value: value},
				},
			})
			return err
		},
		"GetVariable": func(b *bundle, s string) error {
			_, err := b.Variables.GetVariable(b.ctx, &setpointv1.GetVariableRequest{SessionId: s, Variable: "x"})
			return err
		},
		"BatchGetVariables": func(b *bundle, s string) error {
			_, err := b.Variables.BatchGetVariables(b.ctx, &setpointv1.BatchGetVariablesRequest{
				SessionId: s, Variables: []string{"x"},
			})
			return err
		},
		"ListVariables": func(b *bundle, s string) error {
			_, err := b.Variables.ListVariables(b.ctx, &setpointv1.ListVariablesRequest{SessionId: s})
			return err
		},
		"SetVariable": func(b *bundle, s string) error {
			_, err := b.Variables.SetVariable(b.ctx, &setpointv1.SetVariableRequest{SessionId: s, Variable: "x", Value: value})
			return err
		},
		"BatchSetVariables": func(b *bundle, s string) error {
			_, err := b.Variables.BatchSetVariables(b.ctx, &setpointv1.BatchSetVariablesRequest{
				SessionId: s, Writes: []*setpointv1.VariableWrite{{Variable: "x", Value: value}},
			})
			return err
		},
		"UpdateVariable": func(b *bundle, s string) error {
			_, err := b.Variables.UpdateVariable(b.ctx, &setpointv1.UpdateVariableRequest{SessionId: s, Variable: "x"})
			return err
		},
		"DeleteVariable": func(b *bundle, s string) error {
			_, err := b.Variables.DeleteVariable(b.ctx, &setpointv1.DeleteVariableRequest{SessionId: s, Variable: "x"})
			return err
		},
		"ListHistory": func(b *bundle, s string) error {
			_, err := b.History.ListHistory(b.ctx, &setpointv1.ListHistoryRequest{SessionId: s})
			return err
		},
		"GetVariableVersion": func(b *bundle, s string) error {
			_, err := b.History.GetVariableVersion(b.ctx, &setpointv1.GetVariableVersionRequest{SessionId: s, Variable: "x"})
			return err
		},
		"GetSnapshot": func(b *bundle, s string) error {
			_, err := b.History.GetSnapshot(b.ctx, &setpointv1.GetSnapshotRequest{SessionId: s})
			return err
		},
		"RollbackSession": func(b *bundle, s string) error {
			_, err := b.History.RollbackSession(b.ctx, &setpointv1.RollbackSessionRequest{
				SessionId: s, To: &setpointv1.RollbackSessionRequest_Revision{},
			})
			return err
		},
		"AddDependency": func(b *bundle, s string) error {
			_, err := b.Dependencies.AddDependency(b.ctx, &setpointv1.AddDependencyRequest{
				SessionId: s, Dependent: "x", Dependency: "x",
			})
			return err
		},
		"RemoveDependency": func(b *bundle, s string) error {
			_, err := b.Dependencies.RemoveDependency(b.ctx, &setpointv1.RemoveDependencyRequest{
				SessionId: s, Dependent: "x", Dependency: "x",
			})
			return err
		},
		"ListDependencies": func(b *bundle, s string) error {
			_, err := b.Dependencies.ListDependencies(b.ctx, &setpointv1.ListDependenciesRequest{SessionId: s, Variable: "x"})
			return err
		},
		"ListDependents": func(b *bundle, s string) error {
			_, err := b.Dependencies.ListDependents(b.ctx, &setpointv1.ListDependentsRequest{SessionId: s, Variable: "x"})
			return err
		},
		"GetUpdateOrder": func(b *bundle, s string) error {
			_, err := b.Dependencies.GetUpdateOrder(b.ctx, &setpointv1.GetUpdateOrderRequest{SessionId: s, Variable: "x"})
			return err
		},
		"GetGraph": func(b *bundle, s string) error {
			_, err := b.Dependencies.GetGraph(b.ctx, &setpointv1.GetGraphRequest{SessionId: s})
			return err
		},
		"StartOptimization": func(b *bundle, s string) error {
			_, err := b.Optimizations.StartOptimization(b.ctx, &setpointv1.StartOptimizationRequest{SessionId: s, Variables: []string{"x"}})
			return err
		},
		"RenewOptimization": func(b *bundle, s string) error {
			_, err := b.Optimizations.RenewOptimization(b.ctx, &setpointv1.RenewOptimizationRequest{SessionId: s, OptimizationId: nobody})
			return err
		},
		"ReportProgress": func(b *bundle, s string) error {
			_, err := b.Optimizations.ReportProgress(b.ctx, &setpointv1.ReportProgressRequest{SessionId: s, OptimizationId: nobody, FencingToken: 1})
			return err
		},
		"StopOptimization": func(b *bundle, s string) error {
			_, err := b.Optimizations.StopOptimization(b.ctx, &setpointv1.StopOptimizationRequest{SessionId: s, OptimizationId: nobody})
			return err
		},
		"GetOptimization": func(b *bundle, s string) error {
			_, err := b.Optimizations.GetOptimization(b.ctx, &setpointv1.GetOptimizationRequest{SessionId: s, OptimizationId: nobody})
			return err
		},
		"ListOptimizations": func(b *bundle, s string) error {
			_, err := b.Optimizations.ListOptimizations(b.ctx, &setpointv1.ListOptimizationsRequest{SessionId: s})
			return err
		},
		"GetOptimizationStatus": func(b *bundle, s string) error {
			_, err := b.Optimizations.GetOptimizationStatus(b.ctx, &setpointv1.GetOptimizationStatusRequest{SessionId: s, Variable: "x"})
			return err
		},
		"ListTrials": func(b *bundle, s string) error {
			_, err := b.Optimizations.ListTrials(b.ctx, &setpointv1.ListTrialsRequest{SessionId: s, OptimizationId: nobody})
			return err
		},
		"AwaitOptimization": func(b *bundle, s string) error {
			stream, err := b.Optimizations.AwaitOptimization(b.ctx, &setpointv1.AwaitOptimizationRequest{
				SessionId: s, OptimizationId: nobody,
			})
			if err != nil {
				return err
			}
			_, err = stream.Recv()
			return err
		},
		"RollbackVariable": func(b *bundle, s string) error {
			_, err := b.History.RollbackVariable(b.ctx, &setpointv1.RollbackVariableRequest{SessionId: s, Variable: "x"})
			return err
		},
		"SetVariablePermissions": func(b *bundle, s string) error {
			_, err := b.Access.SetVariablePermissions(b.ctx, &setpointv1.SetVariablePermissionsRequest{SessionId: s, Variable: "x"})
			return err
		},
		"AddAccessRule": func(b *bundle, s string) error {
			_, err := b.Access.AddAccessRule(b.ctx, &setpointv1.AddAccessRuleRequest{SessionId: s, Rule: spec("user:a")})
			return err
		},
		"RemoveAccessRule": func(b *bundle, s string) error {
			_, err := b.Access.RemoveAccessRule(b.ctx, &setpointv1.RemoveAccessRuleRequest{
				SessionId: s, RuleId: "rule_00000000000000000000000000",
			})
			return err
		},
		"ListAccessRules": func(b *bundle, s string) error {
			_, err := b.Access.ListAccessRules(b.ctx, &setpointv1.ListAccessRulesRequest{SessionId: s})
			return err
		},
		"CheckAccess": func(b *bundle, s string) error {
			_, err := b.Access.CheckAccess(b.ctx, &setpointv1.CheckAccessRequest{SessionId: s, Permission: mayRead})
			return err
		},
		"BatchCheckAccess": func(b *bundle, s string) error {
			_, err := b.Access.BatchCheckAccess(b.ctx, &setpointv1.BatchCheckAccessRequest{
				SessionId: s, Checks: []*setpointv1.AccessQuery{{Variable: "x", Permission: mayRead}},
			})
			return err
		},
		"ListAuditEvents": func(b *bundle, s string) error {
			_, err := b.Access.ListAuditEvents(b.ctx, &setpointv1.ListAuditEventsRequest{SessionId: s})
			return err
		},
	}
	tested := len(operations)
	// All but CreateSession, ListSessions, and what is about tokens.
	if want := countMethods() - 5; tested != want {
		t.Fatalf("%d operations are tested, of %d in a session", tested, want)
	}
	b := setup(t)
	b.integer("x")
	for _, end := range []string{"absent", "expired", "deleted"} {
		if end != "absent" {
			b.session(end)
			_, err := b.Variables.RegisterVariable(b.ctx, &setpointv1.RegisterVariableRequest{
				SessionId: end, Name: "x", Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Value: value,
			})
			if err != nil {
				t.Fatal(err)
			}
			// The server knows the variable's definition from here on.
			if err := operations["SetVariable"](b, end); err != nil {
				t.Fatal(err)
			}
		}
		switch end {
		case "expired":
			b.exec(`update setpoint.sessions set expires_at = clock_timestamp() where session_id = $1`, end)
		case "deleted":
			if err := operations["DeleteSession"](b, end); err != nil {
				t.Fatal(err)
			}
		}
		for name, operation := range operations {
			e := wantReason(t, operation(b, end), setpointv1.ErrorReason_SESSION_NOT_FOUND)
			wantMetadata(t, e, map[string]string{"session_id": end})
			if t.Failed() {
				t.Fatalf("%s in a session that is %s", name, end)
			}
		}
	}
	list, err := b.Sessions.ListSessions(b.ctx, &setpointv1.ListSessionsRequest{})
	if err != nil || len(list.GetSessions()) != 1 {
		t.Errorf("list: %v, %v; want s alone", list, err)
	}
}

// The id of a session that has ended may be taken again, before any sweeper has been.
func TestSessionIDTakenAgain(t *testing.T) {
	t.Parallel()
	b := setup(t)
	old := b.integer("x")
	b.set("x", client.Integer(5))
	req := &setpointv1.SetVariableRequest{SessionId: "s", Variable: "x", Value: client.Integer(6), RequestId: "r"}
	if _, err := b.Variables.SetVariable(b.ctx, req); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Sessions.DeleteSession(b.ctx, &setpointv1.DeleteSessionRequest{SessionId: "s"}); err != nil {
		t.Fatal(err)
	}
	again := b.session("s")
	if again.GetRevision() != 3 || again.GetVariableCount() != 0 {
		t.Errorf("new life: %v; want it at revision 3, empty", again)
	}
	if _, err := b.Variables.GetVariable(b.ctx, &setpointv1.GetVariableRequest{SessionId: "s", Variable: "x"}); err == nil {
		t.Error("the new life has the old one's variable")
	}
	anew := b.integer("x")
	if anew.GetVariableId() == old.GetVariableId() || anew.GetRevision() != 4 || anew.GetVersion() != 0 {
		t.Errorf("registered anew: %v", anew)
	}
	// The request_id belongs to the old life: this write is done.
	if r, err := b.Variables.SetVariable(b.ctx, req); err != nil || r.GetVersion() != 1 || r.GetRevision() != 5 {
		t.Errorf("write in the new life: %v, %v", r, err)
	}
	list, err := b.History.ListHistory(b.ctx, &setpointv1.ListHistoryRequest{SessionId: "s"})
	if err != nil || len(list.GetEntries()) != 2 || list.GetEntries()[1].GetRevision() != 4 {
		t.Errorf("history of the new life: %v, %v", list, err)
	}
	var rows int
	b.row(&rows, `select count(*) from setpoint_analytics.variable_history where session_id = 's'`)
	if rows != 5 {
		t.Errorf("SQL sees %d changes, want 5", rows)
	}
}

// Calls in a session extend it: writes in their own statement, reads a little later.
func TestExpiryIsExtended(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.integer("x")
	remaining := func() time.Duration {
		var seconds float64
		b.row(&seconds, `select extract(epoch from expires_at - clock_timestamp()) from setpoint.sessions where session_id = 's'`)
		return time.Duration(seconds * float64(time.Second))
	}
	shorten := func() {
		b.exec(`update setpoint.sessions set expires_at = clock_timestamp() + interval '10 seconds' where session_id = 's'`)
	}
	shorten()
	b.set("x", client.Integer(1))
	if got := remaining(); got < 59*time.Minute {
		t.Errorf("%s left after a write, want an hour", got)
	}
	shorten()
	if _, err := b.Sessions.KeepSessionAlive(b.ctx, &setpointv1.KeepSessionAliveRequest{SessionId: "s"}); err != nil {
		t.Fatal(err)
	}
	if got := remaining(); got < 59*time.Minute {
		t.Errorf("%s left after KeepSessionAlive, want an hour", got)
	}
	shorten()
	// A refused write is no sign of life.
	wantReason(t, set(b, "x", client.String("no")), setpointv1.ErrorReason_TYPE_MISMATCH)
	if got := remaining(); got > 10*time.Second {
		t.Errorf("%s left after a refused write", got)
	}
}

func TestListSessions(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, id := range []string{"a.1", "a.2", "a_3", "ab", "b"} {
		b.session(id)
	}
	for pattern, want := range map[string][]string{
		"":     {"a.1", "a.2", "a_3", "ab", "b", "s"},
		"*":    {"a.1", "a.2", "a_3", "ab", "b", "s"},
		"a*":   {"a.1", "a.2", "a_3", "ab"},
		"a.*":  {"a.1", "a.2"},
		"a_*":  {"a_3"}, // No wildcard of LIKE's.
		"*b":   {"ab", "b"},
		"b":    {"b"},
		"none": nil,
	} {
		var got []string
		request := &setpointv1.ListSessionsRequest{Pattern: pattern, PageSize: 2}
		for {
			page, err := b.Sessions.ListSessions(b.ctx, request)
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range page.GetSessions() {
				got = append(got, s.GetSessionId())
			}
			if request.PageToken = page.GetNextPageToken(); request.PageToken == "" {
				break
			}
		}
		equal(t, "sessions like "+pattern, want, got)
	}
}

// What succeeds and writes nothing extends the session as a read does: a repeat, a dry run, a batch of failures, an edge
// that is there.
func TestExpiryIsExtendedWithoutAWrite(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.integer("x")
	b.integer("y")
	b.edge("y", "x")
	write := &setpointv1.SetVariableRequest{SessionId: "s", Variable: "x", Value: client.Integer(1), RequestId: "r"}
	if _, err := b.Variables.SetVariable(b.ctx, write); err != nil {
		t.Fatal(err)
	}
	update := &setpointv1.UpdateVariableRequest{
		SessionId: "s", Variable: "x", Metadata: map[string]string{"a": "b"}, RequestId: "u",
	}
	if _, err := b.Variables.UpdateVariable(b.ctx, update); err != nil {
		t.Fatal(err)
	}
	for name, call := range map[string]func() error{
		"repeat of a set": func() error { _, err := b.Variables.SetVariable(b.ctx, write); return err },
		"repeat of an update": func() error {
			_, err := b.Variables.UpdateVariable(b.ctx, update)
			return err
		},
		"dry run": func() error {
			_, err := b.Variables.SetVariable(b.ctx, &setpointv1.SetVariableRequest{
				SessionId: "s", Variable: "x", Value: client.Integer(2), DryRun: true,
			})
			return err
		},
		"batch of failures": func() error {
			_, err := b.Variables.BatchSetVariables(b.ctx, &setpointv1.BatchSetVariablesRequest{
				SessionId: "s", Writes: []*setpointv1.VariableWrite{{Variable: "absent", Value: client.Integer(2)}},
			})
			return err
		},
		"edge that is there": func() error {
			_, err := b.Dependencies.AddDependency(b.ctx, &setpointv1.AddDependencyRequest{
				SessionId: "s", Dependent: "y", Dependency: "x",
			})
			return err
		},
	} {
		b.exec(`update setpoint.sessions set expires_at = clock_timestamp() + interval '60 seconds' where session_id = 's'`)
		if err := call(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		testkit.Eventually(t, 30*time.Second, func() error {
			var extended bool
			b.row(&extended, `select expires_at > clock_timestamp() + interval '59 minutes' from setpoint.sessions where session_id = 's'`)
			if !extended {
				return fmt.Errorf("%s has not extended the session", name)
			}
			return nil
		})
	}
}
