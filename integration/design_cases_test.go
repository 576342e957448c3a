package integration

import (
	"testing"
	"time"

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

func TestSecondOptimizationOfALockedVariableIsRefused(t *testing.T) {
	t.Parallel()
	url := testkit.NewDatabase(t)
	s := serve(t, url)
	c, other := dial(t, s), dial(t, s, client.WithPrincipal("user:somebody-else"))
	newSession(t, c, "design")
	register(t, c, "design", "var_a", typeInteger, client.Integer(0))
	register(t, c, "design", "var_b", typeInteger, client.Integer(0))
	allow(t, c, "design", "", "user:somebody-else", setpointv1.Permission_PERMISSION_OPTIMIZE)
	first := optimize(t, c, asks("design", "first", time.Minute, "var_a"))

	attempts := map[string]func() error{
		"a second optimization": func() error {
			_, err := other.Optimizations.StartOptimization(t.Context(), asks("design", "second", time.Minute, "var_a"))
			return err
		},
		"a second optimization by the same optimizer": func() error {
			_, err := c.Optimizations.StartOptimization(t.Context(), asks("design", "first", time.Minute, "var_a"))
			return err
		},
		"an optimization of both": func() error {
			_, err := other.Optimizations.StartOptimization(t.Context(), asks("design", "second", time.Minute, "var_b", "var_a"))
			return err
		},
		"a set by somebody else":       func() error { return setUnder(t.Context(), other, "design", "var_a", 1, nil) },
		"a set that presents no lease": func() error { return setUnder(t.Context(), c, "design", "var_a", 1, nil) },
		"a batch that presents no lease": func() error {
			_, err := c.Variables.BatchSetVariables(t.Context(), &setpointv1.BatchSetVariablesRequest{
				SessionId: "design", Atomic: true, Writes: []*setpointv1.VariableWrite{
					{Variable: "var_b", Value: client.Integer(1)}, {Variable: "var_a", Value: client.Integer(1)}}})
			return err
		},
		"a rollback": func() error {
			_, err := other.History.RollbackVariable(t.Context(),
				&setpointv1.RollbackVariableRequest{SessionId: "design", Variable: "var_a", Version: 0})
			return err
		},
		"a deletion": func() error {
			_, err := other.Variables.DeleteVariable(t.Context(),
				&setpointv1.DeleteVariableRequest{SessionId: "design", Variable: "var_a"})
			return err
		},
	}
	want := client.LeaseHolder{
		Variable: "var_a", OptimizationID: first.GetOptimizationId(), OptimizerID: "first",
		StartedAt: first.GetStartedAt().AsTime(), ExpiresAt: first.GetExpiresAt().AsTime(),
	}
	for what, attempt := range attempts {
		err := attempt()
		if refusal := refused(t, what, err, client.ErrAlreadyOptimizing); refusal.Code != codes.FailedPrecondition {
			t.Errorf("%s: got code %v, want %v", what, refusal.Code, codes.FailedPrecondition)
		}
		holder, _ := client.Holder(err)
		if diff := cmp.Diff(want, holder); diff != "" {
			t.Errorf("%s names the holder (-want +got):\n%s", what, diff)
		}
	}
	if v := get(t, c, "design", "var_a"); v.GetVersion() != 0 || v.GetOptimization().GetOptimizerId() != "first" {
		t.Errorf("var_a after the refusals: got %v", v)
	}
	set(t, other, "design", "var_b", client.Integer(1)) // Nobody locked it.
	if err := setUnder(t.Context(), c, "design", "var_a", 1, leaseOf(first)); err != nil {
		t.Errorf("a set by the holder: %v", err)
	}

	// After the stop both work, and after the second one's time is over.
	if answer := stop(t, c, first); answer.GetOptimization().GetState() != stateCompleted ||
		answer.GetFinalValues()["var_a"].GetInteger() != 1 {
		t.Errorf("the first optimization was stopped as %v", answer)
	}
	if err := setUnder(t.Context(), other, "design", "var_a", 2, nil); err != nil {
		t.Errorf("a set after the stop: %v", err)
	}
	second := optimize(t, other, asks("design", "second", time.Second, "var_b", "var_a"))
	if second.GetFencingToken() <= first.GetFencingToken() {
		t.Errorf("the second token is %d, the first was %d", second.GetFencingToken(), first.GetFencingToken())
	}
	pool, end := testkit.Pool(t, url), second.GetExpiresAt().AsTime()
	testkit.Eventually(t, patience, func() error {
		before := clock(t, pool)
		err := setUnder(t.Context(), c, "design", "var_a", 3, nil)
		switch after := clock(t, pool); {
		case err != nil && !before.Before(end):
			t.Fatalf("a set at %v, past the end at %v: %v", before, end, err)
		case err == nil && after.Before(end):
			t.Fatalf("a set was accepted at %v, before the end at %v", after, end)
		}
		return err
	})
	third := optimize(t, c, asks("design", "third", time.Minute, "var_a", "var_b"))
	if third.GetFencingToken() <= second.GetFencingToken() {
		t.Errorf("the third token is %d, the second was %d", third.GetFencingToken(), second.GetFencingToken())
	}
	err := setUnder(t.Context(), other, "design", "var_a", 4, leaseOf(second))
	refused(t, "a set under the lease that is over", err, client.ErrLeaseLost)
	if v := get(t, c, "design", "var_a"); v.GetVersion() != 3 || v.GetValue().GetInteger() != 3 {
		t.Errorf("var_a: got %v at version %d, want 3 at 3", v.GetValue(), v.GetVersion())
	}
}
