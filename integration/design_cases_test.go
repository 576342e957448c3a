package integration

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/testkit"
)

func TestEdgeThatClosesACycleIsRefused(t *testing.T) {
	t.Parallel()
	c := dial(t, serve(t, testkit.NewDatabase(t)))
	newSession(t, c, "design")
	register(t, c, "design", "var_a", typeFloat, client.Float(0.5))
	register(t, c, "design", "var_b", typeFloat, client.Float(0.5))
	first := depend(t, c, "design", "var_a", "var_b")

	for _, tt := range []struct {
		dependent, dependency string
		path                  []string
	}{
		{"var_b", "var_a", []string{"var_b", "var_a", "var_b"}},
		{"var_a", "var_a", []string{"var_a", "var_a"}},
	} {
		_, err := c.Dependencies.AddDependency(t.Context(), &setpointv1.AddDependencyRequest{
			SessionId: "design", Dependent: tt.dependent, Dependency: tt.dependency})
		refusal := refused(t, "an edge that closes a cycle", err, client.ErrWouldCreateCycle)
		if refusal.Code != codes.FailedPrecondition {
			t.Errorf("code: got %v, want %v", refusal.Code, codes.FailedPrecondition)
		}
		path, _ := client.CyclePath(err)
		if diff := cmp.Diff(tt.path, path); diff != "" {
			t.Errorf("path (-want +got):\n%s", diff)
		}
	}
	if again := depend(t, c, "design", "var_a", "var_b"); !proto.Equal(first, again) {
		t.Errorf("the edge, added again: got %v, want %v", again, first)
	}
	if diff := cmp.Diff(map[string][]string{"var_a": {"var_b"}, "var_b": nil}, graph(t, c, "design")); diff != "" {
		t.Errorf("graph after the refusals (-want +got):\n%s", diff)
	}
	session, err := c.Sessions.GetSession(t.Context(), &setpointv1.GetSessionRequest{SessionId: "design"})
	if err != nil || session.GetRevision() != first.GetRevision() {
		t.Errorf("the session after the refusals: got %v, %v, want revision %d", session, err, first.GetRevision())
	}
}

func TestSetWithWrongVersionIsRefused(t *testing.T) {
	t.Parallel()
	c := dial(t, serve(t, testkit.NewDatabase(t)))
	newSession(t, c, "design")
	register(t, c, "design", "var_a", typeFloat, client.Float(0.5))
	register(t, c, "design", "var_b", typeFloat, client.Float(0.5))
	setExpecting := func(variable string, value float64, version int64) (*setpointv1.SetVariableResponse, error) {
		return c.Variables.SetVariable(t.Context(), &setpointv1.SetVariableRequest{
			SessionId: "design", Variable: variable, Value: client.Float(value), ExpectedVersion: proto.Int64(version)})
	}
	first, err := setExpecting("var_a", 0.6, 0)
	if err != nil || first.GetVersion() != 1 {
		t.Fatalf("a set of the current version: got %v, %v, want version 1", first, err)
	}

	for _, wrong := range []int64{0, 2, 1000} {
		_, err := setExpecting("var_a", 0.7, wrong)
		refusal := refused(t, "a set of another version", err, client.ErrVersionMismatch)
		if refusal.Code != codes.Aborted {
			t.Errorf("code: got %v, want %v", refusal.Code, codes.Aborted)
		}
		if current := number(t, refusal, "current_version"); current != 1 {
			t.Errorf("current_version: got %d, want 1", current)
		}
		if expected := number(t, refusal, "expected_version"); expected != wrong {
			t.Errorf("expected_version: got %d, want %d", expected, wrong)
		}
	}
	if v := get(t, c, "design", "var_a"); v.GetVersion() != 1 || v.GetValue().GetNumber() != 0.6 {
		t.Errorf("var_a after the refusals: got %v at version %d, want 0.6 at 1", v.GetValue(), v.GetVersion())
	}
	if v := get(t, c, "design", "var_b"); v.GetVersion() != 0 || v.GetValue().GetNumber() != 0.5 {
		t.Errorf("var_b: got %v at version %d, want 0.5 at 0", v.GetValue(), v.GetVersion())
	}
}

func TestRollbackMakesANewVersion(t *testing.T) {
	t.Parallel()
	c := dial(t, serve(t, testkit.NewDatabase(t)))
	newSession(t, c, "design")
	register(t, c, "design", "var_a", typeInteger, client.Integer(0))
	for i, value := range []int64{100, 200} {
		if got := set(t, c, "design", "var_a", client.Integer(value)).GetVersion(); got != int64(i)+1 {
			t.Fatalf("version of %d: got %d, want %d", value, got, i+1)
		}
	}

	rolled, err := c.History.RollbackVariable(t.Context(),
		&setpointv1.RollbackVariableRequest{SessionId: "design", Variable: "var_a", Version: 1, Reason: "200 was too much"})
	if err != nil {
		t.Fatal(err)
	}
	for what, v := range map[string]*setpointv1.Variable{"answer": rolled, "variable": get(t, c, "design", "var_a")} {
		if v.GetValue().GetInteger() != 100 || v.GetVersion() != 3 {
			t.Errorf("%s: got %v at version %d, want 100 at 3", what, v.GetValue(), v.GetVersion())
		}
	}
	list, err := c.History.ListHistory(t.Context(),
		&setpointv1.ListHistoryRequest{SessionId: "design", Variable: "var_a"})
	if err != nil {
		t.Fatal(err)
	}
	type entry struct {
		Version, Value int64
		Change, Reason string
	}
	var got []entry
	for _, e := range list.GetEntries() {
		got = append(got, entry{e.GetVersion(), e.GetValue().GetInteger(), e.GetChange().String(), e.GetReason()})
	}
	want := []entry{
		{3, 100, "HISTORY_CHANGE_ROLLED_BACK", "200 was too much"},
		{2, 200, "HISTORY_CHANGE_SET", ""},
		{1, 100, "HISTORY_CHANGE_SET", ""},
		{0, 0, "HISTORY_CHANGE_REGISTERED", ""},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("history (-want +got):\n%s", diff)
	}
}
