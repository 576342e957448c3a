package service_test

import (
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/server"
)

func (b *bundle) update(change func(*setpointv1.UpdateVariableRequest)) (*setpointv1.Variable, error) {
	req := &setpointv1.UpdateVariableRequest{SessionId: "s"}
	change(req)
	return b.Variables.UpdateVariable(b.ctx, req)
}

// An expression over all that its variable depends on keeps that when it changes, and cannot have what it could not read.
func TestExpressionOverAllDependencies(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.integer("a")
	b.integer("b")
	b.register(&setpointv1.RegisterVariableRequest{
		Name: "tensor", Type: setpointv1.VariableType_VARIABLE_TYPE_TENSOR, Value: client.Tensor("int8", []int64{1}, []byte{1}),
	})
	b.derived("d", "size(deps)", func(r *setpointv1.RegisterVariableRequest) { r.DependsOn = []string{"a", "b"} })
	for range 2 {
		v, err := b.update(func(r *setpointv1.UpdateVariableRequest) { r.Variable, r.Expression = "d", ptr("size(deps) * 10") })
		if err != nil {
			t.Fatal(err)
		}
		equal(t, "depends on", []string{"a", "b"}, v.GetDependsOn())
		equal(t, "value", int64(20), v.GetValue().GetInteger())
	}
	_, err := b.Dependencies.AddDependency(b.ctx, &setpointv1.AddDependencyRequest{SessionId: "s", Dependent: "d", Dependency: "tensor"})
	wantReason(t, err, setpointv1.ErrorReason_INVALID_EXPRESSION)
	equal(t, "d", "20 v2", b.state("d"))
}

// A new expression that cannot be computed says so, also where the old one could not be either; other constraints let it be
// computed again; and a variable that is no longer derived has no error of computing.
func TestMarksTellOfWhatIsThere(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.integer("x")
	b.set("x", client.Integer(1))
	b.derived("d", "100 / (x - 2)", func(r *setpointv1.RegisterVariableRequest) {
		r.Constraints = &setpointv1.Constraints{Max: ptr(50.0)}
	})
	b.set("x", client.Integer(2))
	failed, err := b.update(func(r *setpointv1.UpdateVariableRequest) { r.Variable, r.Expression = "d", ptr("x * 30") })
	if err != nil {
		t.Fatal(err)
	}
	const tooLarge = "d: 60 is above the maximum 50"
	if stale := failed.GetStale(); stale.GetError() != tooLarge || stale.GetCause() != "d" {
		t.Errorf("stale %v", stale)
	}
	equal(t, "its row", tooLarge, b.changesOf("d")[0].GetError())
	raised, err := b.update(func(r *setpointv1.UpdateVariableRequest) {
		r.Variable, r.Constraints = "d", &setpointv1.Constraints{Max: ptr(60.0)}
	})
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "with another maximum", int64(60), raised.GetValue().GetInteger())
	if raised.GetStale() != nil {
		t.Errorf("still stale: %v", raised.GetStale())
	}
	b.set("x", client.Integer(3))
	ended, err := b.update(func(r *setpointv1.UpdateVariableRequest) { r.Variable, r.Expression = "d", ptr("") })
	if err != nil {
		t.Fatal(err)
	}
	if ended.GetStale() == nil || ended.GetStale().GetError() != "" || ended.GetStale().GetCause() != "x" {
		t.Errorf("no longer derived, it is stale by %v", ended.GetStale())
	}
	if last := b.changesOf("d")[0]; last.Expression == nil || last.GetExpression() != "" {
		t.Errorf("the end of the expression is told as %v", last)
	}
	if _, err := b.update(func(r *setpointv1.UpdateVariableRequest) { r.Variable, r.HistoryLimit = "d", ptr(int64(7)) }); err != nil {
		t.Fatal(err)
	}
	if last := b.changesOf("d")[0]; last.Expression != nil {
		t.Errorf("an update of something else tells of the expression %q", last.GetExpression())
	}
}

// Only what has another value than before is to blame for what a strict variable refuses.
func TestStrictBlamesWhatChanged(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.integer("x")
	b.integer("y")
	b.derived("z", "100 / (x + 1) + y", func(r *setpointv1.RegisterVariableRequest) { r.Strict = true })
	r, err := b.Variables.BatchSetVariables(b.ctx, &setpointv1.BatchSetVariablesRequest{
		SessionId: "s", Writes: []*setpointv1.VariableWrite{
			{Variable: "x", Value: client.Integer(-1)}, {Variable: "y", Value: client.Integer(0)},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "x", setpointv1.ErrorReason_DERIVATION_FAILED, r.GetResults()[0].GetError().GetReason())
	if e := r.GetResults()[1].GetError(); e != nil {
		t.Errorf("y, set to what it is: %v", e)
	}
}

// A batch in which each refusal leads to another one ends after a few rounds, and what is left over is refused with the rest.
func TestStrictRefusesInFewRounds(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const n = 200
	var registrations []*setpointv1.VariableRegistration
	var writes []*setpointv1.VariableWrite
	for i := range n {
		registrations = append(registrations, &setpointv1.VariableRegistration{
			Name: fmt.Sprintf("x%d", i), Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Value: client.Integer(0),
		})
		writes = append(writes, &setpointv1.VariableWrite{Variable: fmt.Sprintf("x%d", i), Value: client.Integer(1)})
		expression := fmt.Sprintf("x%d == 0 ? 0 : 1 / 0", i)
		if i > 0 {
			expression = fmt.Sprintf("x%d == 0 || x%d != 0 ? 0 : 1 / 0", i, i-1)
		}
		registrations = append(registrations, &setpointv1.VariableRegistration{
			Name: fmt.Sprintf("z%d", i), Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Expression: expression, Strict: true,
		})
	}
	if _, err := b.Variables.BatchRegisterVariables(b.ctx, &setpointv1.BatchRegisterVariablesRequest{
		SessionId: "s", Registrations: registrations, Atomic: true,
	}); err != nil {
		t.Fatal(err)
	}
	r, err := b.Variables.BatchSetVariables(b.ctx, &setpointv1.BatchSetVariablesRequest{SessionId: "s", Writes: writes})
	if err != nil {
		t.Fatal(err)
	}
	for i, result := range r.GetResults() {
		if result.GetError().GetReason() != setpointv1.ErrorReason_DERIVATION_FAILED {
			t.Fatalf("item %d: %v", i, result)
		}
	}
	equal(t, "x0", "0 v0", b.state("x0"))
}

// -0 is another value than 0 everywhere.
func TestNegativeZeroIsFollowed(t *testing.T) {
	t.Parallel()
	b := setup(t)
	float := func(name, expression string, v *setpointv1.Value) {
		b.register(&setpointv1.RegisterVariableRequest{
			Name: name, Type: setpointv1.VariableType_VARIABLE_TYPE_FLOAT, Expression: expression, Value: v,
		})
	}
	float("x", "", client.Float(0))
	float("d", "x", nil)
	float("f", "1.0 / d", nil)
	b.set("x", client.Float(math.Copysign(0, -1)))
	if got := b.get("d").GetValue().GetNumber(); !math.Signbit(got) {
		t.Errorf("d is %v", got)
	}
	if got := b.get("f").GetValue().GetNumber(); !math.IsInf(got, -1) {
		t.Errorf("f is %v", got)
	}
}

// What would take too long or too much to follow is refused as a whole.
func TestLimitsOfFollowing(t *testing.T) {
	t.Parallel()
	b := setup(t, func(c *server.Config) { c.Limits.DerivationCost = 200_000 })
	b.integer("x")
	b.register(&setpointv1.RegisterVariableRequest{
		Name: "vector", Type: setpointv1.VariableType_VARIABLE_TYPE_EMBEDDING, Value: client.Embedding(make([]float32, 110)),
	})
	b.integer("switch")
	var registrations []*setpointv1.VariableRegistration
	for i := range 20 { // Each costs some 30,000.
		registrations = append(registrations, &setpointv1.VariableRegistration{
			Name: fmt.Sprintf("heavy%03d", i), Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER,
			Expression: `x == 0 ? 0 : vector.map(a, vector.map(b, a * b).size()).size()`,
		})
	}
	if _, err := b.Variables.BatchRegisterVariables(b.ctx, &setpointv1.BatchRegisterVariablesRequest{
		SessionId: "s", Registrations: registrations, Atomic: true,
	}); err != nil {
		t.Fatal(err)
	}
	before := b.revision()
	e := wantReason(t, set(b, "x", client.Integer(1)), setpointv1.ErrorReason_LIMIT_EXCEEDED)
	equal(t, "limit", "derivation_cost", e.Metadata["limit"])
	equal(t, "revision", before, b.revision())

	for i := range 5 {
		b.register(&setpointv1.RegisterVariableRequest{
			Name: fmt.Sprintf("text%d", i), Type: setpointv1.VariableType_VARIABLE_TYPE_STRING,
			Value: client.String(strings.Repeat("x", 15<<20)),
		})
		b.derived(fmt.Sprintf("long%d", i), fmt.Sprintf("switch + (text%d == '' ? 1 : 0)", i))
	}
	before = b.revision()
	e = wantReason(t, set(b, "switch", client.Integer(1)), setpointv1.ErrorReason_LIMIT_EXCEEDED)
	equal(t, "limit", "affected_bytes", e.Metadata["limit"])
	equal(t, "revision", before, b.revision())
}

// At no revision of a batch is there a variable without what it depends on.
func TestConnectedVariablesComeInOrder(t *testing.T) {
	t.Parallel()
	b := setup(t)
	r, err := b.Variables.BatchRegisterVariables(b.ctx, &setpointv1.BatchRegisterVariablesRequest{
		SessionId: "s", Registrations: []*setpointv1.VariableRegistration{
			{Name: "a", Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Expression: "b"},
			{Name: "b", Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Expression: "c"},
			{Name: "c", Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Value: client.Integer(1)},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	var revisions []int64
	for _, result := range r.GetResults() {
		revisions = append(revisions, result.GetVariable().GetRevision())
	}
	equal(t, "revisions", []int64{3, 2, 1}, revisions)
}

// Events tell of what is committed: of no dry run, and of edges however they came.
func TestEventsOfTheGraph(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.integer("x")
	b.derived("d", "x + 1")
	count := func(what string) int { return strings.Count(b.log.String(), "msg="+what+" ") }
	equal(t, "edges told", 1, count("dependency_added"))
	if _, err := b.Variables.SetVariable(b.ctx, &setpointv1.SetVariableRequest{
		SessionId: "s", Variable: "x", Value: client.Integer(1), DryRun: true,
	}); err != nil {
		t.Fatal(err)
	}
	equal(t, "propagations told of a dry run", 0, count("propagation"))
	b.set("x", client.Integer(1))
	equal(t, "propagations told", 1, count("propagation"))
	if _, err := b.update(func(r *setpointv1.UpdateVariableRequest) { r.Variable, r.DependsOn = "x", []string{"d"} }); err == nil {
		t.Fatal("a cycle was not refused")
	}
	equal(t, "cycles told", 1, count("cycle_detected"))
	if _, err := b.Variables.DeleteVariable(b.ctx, &setpointv1.DeleteVariableRequest{SessionId: "s", Variable: "x", Cascade: true}); err != nil {
		t.Fatal(err)
	}
	equal(t, "edges told of as gone", 1, count("dependency_removed"))
}
