package integration

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/testkit"
)

// clock is the database's.
func clock(t *testing.T, pool *pgxpool.Pool) time.Time {
	t.Helper()
	var now time.Time
	if err := pool.QueryRow(t.Context(), "select clock_timestamp()").Scan(&now); err != nil {
		t.Fatal(err)
	}
	return now
}

// alive asks for a session in the one way that is no sign of life of it.
func alive(ctx context.Context, c *client.Client, id string) (bool, error) {
	list, err := c.Sessions.ListSessions(ctx, &setpointv1.ListSessionsRequest{Pattern: id})
	return len(list.GetSessions()) > 0, err
}

func TestSessionExpiresAtItsInstant(t *testing.T) {
	t.Parallel()
	url := testkit.NewDatabase(t)
	pool := testkit.Pool(t, url)
	c, other := dial(t, serve(t, url)), dial(t, serve(t, url))
	session := newSessionFor(t, c, "brief", 2*time.Second)
	if got := session.GetExpiresAt().AsTime().Sub(session.GetCreatedAt().AsTime()); got != 2*time.Second {
		t.Errorf("the session was made for %v, want 2s", got)
	}
	register(t, c, "brief", "var_a", typeInteger, client.Integer(0))
	written, err := c.Sessions.KeepSessionAlive(t.Context(), &setpointv1.KeepSessionAliveRequest{SessionId: "brief"})
	if err != nil {
		t.Fatal(err)
	}
	end := written.GetExpiresAt().AsTime()
	testkit.Eventually(t, patience, func() error {
		before := clock(t, pool)
		there, err := alive(t.Context(), other, "brief")
		after := clock(t, pool)
		switch {
		case err != nil:
			return err
		case there && !before.Before(end):
			t.Fatalf("the session was alive at %v, past its end at %v", before, end)
		case !there && after.Before(end):
			t.Fatalf("the session was gone at %v, before its end at %v", after, end)
		case there:
			return errors.New("the session is alive")
		}
		return nil
	})
	for _, each := range []*client.Client{c, other} {
		_, err := each.Variables.GetVariable(t.Context(), &setpointv1.GetVariableRequest{SessionId: "brief", Variable: "var_a"})
		refused(t, "get after the end", err, client.ErrSessionNotFound)
		_, err = each.Sessions.KeepSessionAlive(t.Context(), &setpointv1.KeepSessionAliveRequest{SessionId: "brief"})
		refused(t, "keep alive after the end", err, client.ErrSessionNotFound)
	}
}

// Whoever reads in a session keeps it alive, whatever is read.
func TestReadsKeepSessionsAlive(t *testing.T) {
	t.Parallel()
	const ttl = 3 * time.Second
	url := testkit.NewDatabase(t)
	c, pool := dial(t, serve(t, url)), testkit.Pool(t, url)
	ended := map[string]string{} // an optimization of each session
	reads := map[string]func(id string) error{
		"get-session": func(id string) error {
			_, err := c.Sessions.GetSession(t.Context(), &setpointv1.GetSessionRequest{SessionId: id})
			return err
		},
		"get": func(id string) error {
			_, err := c.Variables.GetVariable(t.Context(), &setpointv1.GetVariableRequest{SessionId: id, Variable: "var_a"})
			return err
		},
		"batch-get": func(id string) error {
			_, err := c.Variables.BatchGetVariables(t.Context(),
				&setpointv1.BatchGetVariablesRequest{SessionId: id, Variables: []string{"var_a"}})
			return err
		},
		"list": func(id string) error {
			_, err := c.Variables.ListVariables(t.Context(), &setpointv1.ListVariablesRequest{SessionId: id})
			return err
		},
		"history": func(id string) error {
			_, err := c.History.ListHistory(t.Context(), &setpointv1.ListHistoryRequest{SessionId: id})
			return err
		},
		"versions": func(id string) error {
			_, err := c.History.ListHistory(t.Context(), &setpointv1.ListHistoryRequest{SessionId: id, Variable: "var_a"})
			return err
		},
		"snapshot": func(id string) error {
			_, err := c.History.GetSnapshot(t.Context(), &setpointv1.GetSnapshotRequest{SessionId: id})
			return err
		},
		"version": func(id string) error {
			_, err := c.History.GetVariableVersion(t.Context(),
				&setpointv1.GetVariableVersionRequest{SessionId: id, Variable: "var_a"})
			return err
		},
		"dependencies": func(id string) error {
			_, err := c.Dependencies.ListDependencies(t.Context(),
				&setpointv1.ListDependenciesRequest{SessionId: id, Variable: "var_a"})
			return err
		},
		"dependents": func(id string) error {
			_, err := c.Dependencies.ListDependents(t.Context(),
				&setpointv1.ListDependentsRequest{SessionId: id, Variable: "var_a"})
			return err
		},
		"order": func(id string) error {
			_, err := c.Dependencies.GetUpdateOrder(t.Context(),
				&setpointv1.GetUpdateOrderRequest{SessionId: id, Variable: "var_a"})
			return err
		},
		"graph": func(id string) error {
			_, err := c.Dependencies.GetGraph(t.Context(), &setpointv1.GetGraphRequest{SessionId: id})
			return err
		},
		"optimization": func(id string) error {
			_, err := c.Optimizations.GetOptimization(t.Context(),
				&setpointv1.GetOptimizationRequest{SessionId: id, OptimizationId: ended[id]})
			return err
		},
		"optimizations": func(id string) error {
			_, err := c.Optimizations.ListOptimizations(t.Context(), &setpointv1.ListOptimizationsRequest{SessionId: id})
			return err
		},
		"status": func(id string) error {
			_, err := c.Optimizations.GetOptimizationStatus(t.Context(),
				&setpointv1.GetOptimizationStatusRequest{SessionId: id, Variable: "var_a"})
			return err
		},
		"trials": func(id string) error {
			_, err := c.Optimizations.ListTrials(t.Context(),
				&setpointv1.ListTrialsRequest{SessionId: id, OptimizationId: ended[id]})
			return err
		},
	}
	newSessionFor(t, c, "unread", ttl)
	for name := range reads {
		id := "read-" + name
		newSessionFor(t, c, id, ttl)
		register(t, c, id, "var_a", typeInteger, client.Integer(0))
		o := optimize(t, c, asks(id, "tuner", time.Minute, "var_a"))
		stop(t, c, o)
		ended[id] = o.GetOptimizationId()
	}

	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for until := clock(t, pool).Add(2*ttl + ttl/2); clock(t, pool).Before(until); <-ticker.C {
		for name, read := range reads {
			if err := read("read-" + name); err != nil {
				t.Fatalf("%s, in a session that is read again and again: %v", name, err)
			}
		}
	}
	if there, err := alive(t.Context(), c, "unread"); there || err != nil {
		t.Errorf("the session that nobody read: alive %v, %v", there, err)
	}
	testkit.Eventually(t, patience, func() error {
		there, err := alive(t.Context(), c, "read-*")
		if there {
			err = errors.New("sessions that are not read any more are alive")
		}
		return err
	})
}

// inSession is a request for every call in a session; what a call needs beyond the session is of no account where there is none.
var inSession = map[protoreflect.FullName]proto.Message{
	"setpoint.v1.SessionService.GetSession":       &setpointv1.GetSessionRequest{},
	"setpoint.v1.SessionService.KeepSessionAlive": &setpointv1.KeepSessionAliveRequest{},
	"setpoint.v1.SessionService.DeleteSession":    &setpointv1.DeleteSessionRequest{},
	"setpoint.v1.VariableService.RegisterVariable": &setpointv1.RegisterVariableRequest{
		Name: "var_b", Type: typeInteger, Value: client.Integer(0)},
	"setpoint.v1.VariableService.BatchRegisterVariables": &setpointv1.BatchRegisterVariablesRequest{
		Registrations: []*setpointv1.VariableRegistration{{Name: "var_b", Type: typeInteger, Value: client.Integer(0)}}},
	"setpoint.v1.VariableService.GetVariable":       &setpointv1.GetVariableRequest{Variable: "var_a"},
	"setpoint.v1.VariableService.BatchGetVariables": &setpointv1.BatchGetVariablesRequest{Variables: []string{"var_a"}},
	"setpoint.v1.VariableService.ListVariables":     &setpointv1.ListVariablesRequest{},
	"setpoint.v1.VariableService.SetVariable":       &setpointv1.SetVariableRequest{Variable: "var_a", Value: client.Integer(1)},
	"setpoint.v1.VariableService.BatchSetVariables": &setpointv1.BatchSetVariablesRequest{
		Writes: []*setpointv1.VariableWrite{{Variable: "var_a", Value: client.Integer(1)}}},
	"setpoint.v1.VariableService.UpdateVariable": &setpointv1.UpdateVariableRequest{
		Variable: "var_a", Constraints: &setpointv1.Constraints{Max: proto.Float64(1)}},
	"setpoint.v1.VariableService.DeleteVariable":    &setpointv1.DeleteVariableRequest{Variable: "var_a"},
	"setpoint.v1.HistoryService.ListHistory":        &setpointv1.ListHistoryRequest{},
	"setpoint.v1.HistoryService.GetVariableVersion": &setpointv1.GetVariableVersionRequest{Variable: "var_a"},
	"setpoint.v1.HistoryService.RollbackVariable":   &setpointv1.RollbackVariableRequest{Variable: "var_a"},
	"setpoint.v1.HistoryService.GetSnapshot":        &setpointv1.GetSnapshotRequest{},
	"setpoint.v1.HistoryService.RollbackSession": &setpointv1.RollbackSessionRequest{
		To: &setpointv1.RollbackSessionRequest_Revision{Revision: 1}},
	"setpoint.v1.DependencyService.AddDependency":    &setpointv1.AddDependencyRequest{Dependent: "var_b", Dependency: "var_a"},
	"setpoint.v1.DependencyService.RemoveDependency": &setpointv1.RemoveDependencyRequest{Dependent: "var_b", Dependency: "var_a"},
	"setpoint.v1.DependencyService.ListDependencies": &setpointv1.ListDependenciesRequest{Variable: "var_a"},
	"setpoint.v1.DependencyService.ListDependents":   &setpointv1.ListDependentsRequest{Variable: "var_a"},
	"setpoint.v1.DependencyService.GetUpdateOrder":   &setpointv1.GetUpdateOrderRequest{Variable: "var_a"},
	"setpoint.v1.DependencyService.GetGraph":         &setpointv1.GetGraphRequest{},

	"setpoint.v1.OptimizationService.StartOptimization": &setpointv1.StartOptimizationRequest{Variables: []string{"var_a"}},
	"setpoint.v1.OptimizationService.AwaitOptimization": &setpointv1.AwaitOptimizationRequest{OptimizationId: noOptimization},
	"setpoint.v1.OptimizationService.RenewOptimization": &setpointv1.RenewOptimizationRequest{
		OptimizationId: noOptimization, FencingToken: 1},
	"setpoint.v1.OptimizationService.ReportProgress": &setpointv1.ReportProgressRequest{
		OptimizationId: noOptimization, FencingToken: 1},
	"setpoint.v1.OptimizationService.StopOptimization":      &setpointv1.StopOptimizationRequest{OptimizationId: noOptimization},
	"setpoint.v1.OptimizationService.GetOptimization":       &setpointv1.GetOptimizationRequest{OptimizationId: noOptimization},
	"setpoint.v1.OptimizationService.ListOptimizations":     &setpointv1.ListOptimizationsRequest{},
	"setpoint.v1.OptimizationService.GetOptimizationStatus": &setpointv1.GetOptimizationStatusRequest{Variable: "var_a"},
	"setpoint.v1.OptimizationService.ListTrials":            &setpointv1.ListTrialsRequest{OptimizationId: noOptimization},

	"setpoint.v1.AccessService.SetVariablePermissions": &setpointv1.SetVariablePermissionsRequest{Variable: "var_a"},
	"setpoint.v1.AccessService.AddAccessRule":          &setpointv1.AddAccessRuleRequest{Rule: mayRead("user:ada")},
	"setpoint.v1.AccessService.RemoveAccessRule":       &setpointv1.RemoveAccessRuleRequest{RuleId: noRule},
	"setpoint.v1.AccessService.ListAccessRules":        &setpointv1.ListAccessRulesRequest{},
	"setpoint.v1.AccessService.CheckAccess":            &setpointv1.CheckAccessRequest{Permission: read},
	"setpoint.v1.AccessService.BatchCheckAccess": &setpointv1.BatchCheckAccessRequest{
		Checks: []*setpointv1.AccessQuery{{Permission: read}}},
	"setpoint.v1.AccessService.ListAuditEvents": &setpointv1.ListAuditEventsRequest{},
}

const read = setpointv1.Permission_PERMISSION_READ

func mayRead(subject string) *setpointv1.AccessRuleSpec {
	return &setpointv1.AccessRuleSpec{Subject: subject, Permissions: []setpointv1.Permission{read}}
}

// These are the ids of none.
const (
	noOptimization = "opt_00000000000000000000000000"
	noRule         = "rule_00000000000000000000000000"
)

// methodsInSession are the API's calls that name a session, but for the one that makes it.
func methodsInSession() []protoreflect.MethodDescriptor {
	var found []protoreflect.MethodDescriptor
	protoregistry.GlobalFiles.RangeFilesByPackage("setpoint.v1", func(file protoreflect.FileDescriptor) bool {
		for i := range file.Services().Len() {
			methods := file.Services().Get(i).Methods()
			for j := range methods.Len() {
				if m := methods.Get(j); m.Input().Fields().ByName("session_id") != nil && m.Name() != "CreateSession" {
					found = append(found, m)
				}
			}
		}
		return true
	})
	return found
}

func TestDeletedSessionIsGone(t *testing.T) {
	t.Parallel()
	url := testkit.NewDatabase(t)
	c, other := dial(t, serve(t, url)), dial(t, serve(t, url))
	newSession(t, c, "gone")
	register(t, c, "gone", "var_a", typeInteger, client.Integer(0))
	for _, each := range []*client.Client{c, other} {
		set(t, each, "gone", "var_a", client.Integer(1))
	}
	if _, err := c.Sessions.DeleteSession(t.Context(), &setpointv1.DeleteSessionRequest{SessionId: "gone"}); err != nil {
		t.Fatal(err)
	}

	for _, method := range methodsInSession() {
		request := inSession[method.FullName()]
		if request == nil {
			t.Errorf("%s has no request in this test", method.FullName())
			continue
		}
		request = proto.Clone(request)
		request.ProtoReflect().Set(method.Input().Fields().ByName("session_id"), protoreflect.ValueOfString("gone"))
		path := fmt.Sprintf("/%s/%s", method.Parent().FullName(), method.Name())
		for _, each := range []*client.Client{c, other} {
			err := each.Conn().Invoke(t.Context(), path, request, dynamicpb.NewMessage(method.Output()))
			refused(t, path, err, client.ErrSessionNotFound)
		}
	}

	// The sweeper comes, and leaves history alone.
	pool := testkit.Pool(t, url)
	testkit.Eventually(t, patience, func() error {
		var ended bool
		var variables int
		err := pool.QueryRow(t.Context(), `select ended_at is not null, (select count(*) from setpoint.variables v
			where v.session_id = s.session_id) from setpoint.sessions s where session_id = 'gone'`).Scan(&ended, &variables)
		if err == nil && (!ended || variables > 0) {
			err = fmt.Errorf("swept: %v, with %d variables left", ended, variables)
		}
		return err
	})
	if rows := checkHistory(t, pool, "gone"); len(rows) != 3 {
		t.Errorf("history has %d rows after the sweeper, want 3", len(rows))
	}
}

// An id that is taken again is a new session, which goes on with the revisions, and with nothing else, of the old one.
func TestSessionIDIsTakenAgain(t *testing.T) {
	t.Parallel()
	url := testkit.NewDatabase(t)
	c, other := dial(t, serve(t, url)), dial(t, serve(t, url))
	setOnce := func(c *client.Client, value *setpointv1.Value) *setpointv1.SetVariableResponse {
		t.Helper()
		answer, err := c.Variables.SetVariable(t.Context(), &setpointv1.SetVariableRequest{
			SessionId: "again", Variable: "var_a", Value: value, RequestId: "once"})
		if err != nil {
			t.Fatal(err)
		}
		return answer
	}
	created, err := c.Sessions.CreateSession(t.Context(), &setpointv1.CreateSessionRequest{
		SessionId: "again", Ttl: durationpb.New(0), Metadata: map[string]string{"life": "first"}})
	if err != nil {
		t.Fatal(err)
	}
	old := register(t, c, "again", "var_a", typeInteger, client.Integer(0))
	register(t, c, "again", "var_b", typeInteger, client.Integer(0))
	if first, repeat := setOnce(c, client.Integer(7)), setOnce(other, client.Integer(7)); !proto.Equal(first, repeat) {
		t.Errorf("a set sent twice: got %v and %v", first, repeat)
	}
	if _, err := c.Sessions.DeleteSession(t.Context(), &setpointv1.DeleteSessionRequest{SessionId: "again"}); err != nil {
		t.Fatal(err)
	}

	taken, err := other.Sessions.CreateSession(t.Context(), &setpointv1.CreateSessionRequest{SessionId: "again", Ttl: durationpb.New(0)})
	if err != nil {
		t.Fatal(err)
	}
	if taken.GetRevision() != 3 || taken.GetVariableCount() != 0 || len(taken.GetMetadata()) != 0 ||
		!taken.GetCreatedAt().AsTime().After(created.GetCreatedAt().AsTime()) {
		t.Errorf("the session, taken again: got %v", taken)
	}
	for _, variable := range []string{"var_a", "var_b", old.GetVariableId()} {
		_, err := c.Variables.GetVariable(t.Context(), &setpointv1.GetVariableRequest{SessionId: "again", Variable: variable})
		refused(t, "get a variable of the former life", err, client.ErrVariableNotFound)
	}
	// Of another type: both servers remember the former definition.
	fresh := register(t, other, "again", "var_a", typeString, client.String("zero"))
	if fresh.GetVariableId() == old.GetVariableId() || fresh.GetVersion() != 0 || fresh.GetRevision() != 4 {
		t.Errorf("the new variable: got %v, the old one was %v", fresh, old)
	}
	// The request id is as new as the session.
	if answer := setOnce(c, client.String("seven")); answer.GetVersion() != 1 || answer.GetRevision() != 5 {
		t.Errorf("a request id of the former life: got %v, want version 1 at revision 5", answer)
	}
	if v := get(t, other, "again", "var_a"); v.GetValue().GetString_() != "seven" {
		t.Errorf("the new variable is %v", v)
	}

	list, err := c.History.ListHistory(t.Context(), &setpointv1.ListHistoryRequest{SessionId: "again"})
	if err != nil {
		t.Fatal(err)
	}
	var seen []string
	for _, e := range list.GetEntries() {
		seen = append(seen, fmt.Sprintf("%d %s", e.GetRevision(), e.GetVariableId()))
	}
	want := fmt.Sprintf("5 %[1]s, 4 %[1]s", fresh.GetVariableId())
	if got := strings.Join(seen, ", "); got != want {
		t.Errorf("the API's history: got %s, want %s", got, want)
	}
	_, err = c.History.ListHistory(t.Context(), &setpointv1.ListHistoryRequest{SessionId: "again", Variable: old.GetVariableId()})
	refused(t, "history of a variable of the former life", err, client.ErrVariableNotFound)
	if rows := checkHistory(t, testkit.Pool(t, url), "again"); len(rows) != 5 {
		t.Errorf("SQL's history has %d rows, want those of both lives, 5", len(rows))
	}
}
