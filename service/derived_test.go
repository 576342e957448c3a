package service_test

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// Variables of a batch may depend on each other in any order, and on others.
func TestBatchRegistersConnectedVariables(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.integer("x")
	b.set("x", client.Integer(5))
	integer := setpointv1.VariableType_VARIABLE_TYPE_INTEGER
	request := func(atomic bool) *setpointv1.BatchRegisterVariablesRequest {
		return &setpointv1.BatchRegisterVariablesRequest{
			SessionId: "s", Atomic: atomic, Registrations: []*setpointv1.VariableRegistration{
				{Name: "c", Type: integer, Expression: "b + x"},
				{Name: "b", Type: integer, Expression: `deps["a"] * 2`},
				{Name: "a", Type: integer, Value: client.Integer(3)},
				{Name: "left", Type: integer, Expression: "right + 1"},
				{Name: "right", Type: integer, Expression: "left + 1"},
				{Name: "after", Type: integer, Expression: "left + a"},
				{Name: "orphan", Type: integer, Value: client.Integer(1), DependsOn: []string{"a", "nobody"}},
				{Name: "x", Type: integer, Expression: "a"},
				{Name: "follows", Type: integer, Expression: "x + 1"},
				{Name: "self", Type: integer, Value: client.Integer(1), DependsOn: []string{"self"}},
			},
		}
	}
	_, err := b.Variables.BatchRegisterVariables(b.ctx, request(true))
	wantPath(t, err, "left", "right", "left")
	equal(t, "revision", int64(2), b.revision())
	r, err := b.Variables.BatchRegisterVariables(b.ctx, request(false))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, result := range r.GetResults() {
		if e := result.GetError(); e != nil {
			got = append(got, e.GetReason().String())
			continue
		}
		v := result.GetVariable()
		got = append(got, fmt.Sprintf("%s=%d %v", v.GetName(), v.GetValue().GetInteger(), v.GetDependsOn()))
		equal(t, "what is read", v, b.get(v.GetName()))
	}
	equal(t, "results", []string{
		"c=11 [b x]", "b=6 [a]", "a=3 []", "WOULD_CREATE_CYCLE", "WOULD_CREATE_CYCLE", "INVALID_EXPRESSION",
		"VARIABLE_NOT_FOUND", "VARIABLE_EXISTS", "follows=6 [x]", "WOULD_CREATE_CYCLE",
	}, got)
	set := b.set("a", client.Integer(4))
	equal(t, "recomputed", []string{"b=8 v1", "c=13 v1"}, recomputedText(set.GetRecomputed()))
}

// Every type can be computed from, and all but tensors can be computed.
func TestDerivedOfEveryType(t *testing.T) {
	t.Parallel()
	b := setup(t)
	type kind = setpointv1.VariableType
	const (
		boolean, integer, float      = kind(1), kind(2), kind(3)
		text, choice, module, object = kind(4), kind(5), kind(6), setpointv1.VariableType_VARIABLE_TYPE_JSON
		embedding                    = setpointv1.VariableType_VARIABLE_TYPE_EMBEDDING
	)
	inputs := []*setpointv1.RegisterVariableRequest{
		{Name: "on", Type: boolean, Value: client.Bool(true)},
		{Name: "window", Type: integer, Value: client.Integer(8192)},
		{Name: "share", Type: float, Value: client.Float(.25)},
		{Name: "model", Type: text, Value: client.String("small")},
		{Name: "vector", Type: embedding, Value: client.Embedding([]float32{3, 4})},
		{Name: "limits.of the model", Type: object, Value: jsonObject(t, `{"small": {"out": 4096}, "list": [1, 2]}`)},
	}
	for _, in := range inputs {
		b.register(in)
	}
	for name, test := range map[string]struct {
		kind       kind
		expression string
		change     func(*setpointv1.RegisterVariableRequest)
		want       *setpointv1.Value
	}{
		"a boolean":  {boolean, `on && window > 4096`, nil, client.Bool(true)},
		"an integer": {integer, `int(double(window) * share)`, nil, client.Integer(2048)},
		"a float":    {float, `math.sqrt(share)`, nil, client.Float(.5)},
		"a string":   {text, `model.upperAscii() + "!"`, nil, client.String("SMALL!")},
		"from json":  {integer, `deps["limits.of the model"][model].out`, nil, client.Integer(4096)},
		"a choice": {choice, `on ? "fast" : "slow"`, func(r *setpointv1.RegisterVariableRequest) {
			r.Constraints = &setpointv1.Constraints{Choices: []string{"fast", "slow"}}
		}, client.Choice("fast")},
		"a module":    {module, `"rerank." + model`, nil, client.Module("rerank.small")},
		"a vector":    {embedding, `vector.map(x, x / 2.0)`, nil, client.Embedding([]float32{1.5, 2})},
		"an object":   {object, `{"n": window, "of": [model]}`, nil, jsonObject(t, `{"n": 8192, "of": ["small"]}`)},
		"not finite":  {float, `share / 0.0`, nil, client.Float(math.Inf(1))},
		"of all deps": {integer, `deps.size()`, func(r *setpointv1.RegisterVariableRequest) { r.DependsOn = []string{"on", "window"} }, client.Integer(2)},
	} {
		req := &setpointv1.RegisterVariableRequest{Name: name, Type: test.kind, Expression: test.expression}
		if test.change != nil {
			test.change(req)
		}
		v := b.register(req)
		equal(t, name, test.want, v.GetValue())
		equal(t, name+", read", test.want, b.get(name).GetValue())
	}
	b.edge("of all deps", "share")
	equal(t, "an expression that looks at all dependencies follows a new one", "3 v1", b.state("of all deps"))
	_, err := b.Dependencies.RemoveDependency(b.ctx, &setpointv1.RemoveDependencyRequest{
		SessionId: "s", Dependent: "of all deps", Dependency: "share",
	})
	wantReason(t, err, setpointv1.ErrorReason_DERIVED_VARIABLE)
	v, err := b.Variables.UpdateVariable(b.ctx, &setpointv1.UpdateVariableRequest{
		SessionId: "s", Variable: "of all deps", DependsOn: []string{"on"},
	})
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "and the end of others", int64(1), v.GetValue().GetInteger())
}

// Each kind of bad input is refused by its own reason, and says what is wrong.
func TestBadDerivations(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.integer("x")
	b.register(&setpointv1.RegisterVariableRequest{
		Name: "tensor", Type: setpointv1.VariableType_VARIABLE_TYPE_TENSOR,
		Value: client.Tensor("int8", []int64{1}, []byte{1}),
	})
	b.register(&setpointv1.RegisterVariableRequest{
		Name: "long", Type: setpointv1.VariableType_VARIABLE_TYPE_EMBEDDING, Value: client.Embedding(make([]float32, 2000)),
	})
	b.session("elsewhere")
	foreign, err := b.Variables.RegisterVariable(b.ctx, &setpointv1.RegisterVariableRequest{
		SessionId: "elsewhere", Name: "foreign", Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Value: client.Integer(1),
	})
	if err != nil {
		t.Fatal(err)
	}
	before := b.revision()
	for name, test := range map[string]struct {
		change func(*setpointv1.RegisterVariableRequest)
		reason setpointv1.ErrorReason
		says   string
	}{
		"does not parse":    {expression("x + + 1)"), setpointv1.ErrorReason_INVALID_EXPRESSION, "d: "},
		"no such name":      {expression("x + y"), setpointv1.ErrorReason_INVALID_EXPRESSION, `"y"`},
		"another session's": {expression("foreign"), setpointv1.ErrorReason_INVALID_EXPRESSION, `"foreign"`},
		"does not check":    {expression(`x + "one"`), setpointv1.ErrorReason_INVALID_EXPRESSION, "no matching overload"},
		"another type":      {expression(`string(x)`), setpointv1.ErrorReason_INVALID_EXPRESSION, "string"},
		"a float":           {expression(`double(x)`), setpointv1.ErrorReason_INVALID_EXPRESSION, "int("},
		"a tensor":          {expression(`size(tensor)`), setpointv1.ErrorReason_INVALID_EXPRESSION, "tensor"},
		"itself":            {expression(`d + 1`), setpointv1.ErrorReason_WOULD_CREATE_CYCLE, "d → d"},
		"divides by zero":   {expression("1 / x"), setpointv1.ErrorReason_DERIVATION_FAILED, "division by zero"},
		"runs too long":     {expression("long.map(a, long.map(b, a * b).size()).size()"), setpointv1.ErrorReason_DERIVATION_FAILED, "cost"},
		"breaks constraints": {func(r *setpointv1.RegisterVariableRequest) {
			r.Expression, r.Constraints = "x", &setpointv1.Constraints{Min: ptr(1.0)}
		}, setpointv1.ErrorReason_DERIVATION_FAILED, "below the minimum"},
		"too long":           {expression("x" + strings.Repeat(" ", 4096)), setpointv1.ErrorReason_INVALID_REQUEST, "expression"},
		"no value":           {expression(""), setpointv1.ErrorReason_INVALID_REQUEST, "value"},
		"strict of nothing":  {func(r *setpointv1.RegisterVariableRequest) { r.Strict, r.Value = true, client.Integer(1) }, setpointv1.ErrorReason_INVALID_REQUEST, "strict"},
		"unknown dependency": {dependsOn("x", "nobody"), setpointv1.ErrorReason_VARIABLE_NOT_FOUND, "nobody"},
		"across sessions":    {dependsOn(foreign.GetVariableId()), setpointv1.ErrorReason_VARIABLE_NOT_FOUND, foreign.GetVariableId()},
		"on itself":          {dependsOn("d"), setpointv1.ErrorReason_WOULD_CREATE_CYCLE, "d → d"},
	} {
		t.Run(name, func(t *testing.T) {
			req := &setpointv1.RegisterVariableRequest{SessionId: "s", Name: "d", Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER}
			test.change(req)
			_, err := b.Variables.RegisterVariable(b.ctx, req)
			if e := wantReason(t, err, test.reason); !strings.Contains(e.Message, test.says) {
				t.Errorf("says %q, nothing of %q", e.Message, test.says)
			}
			equal(t, "revision", before, b.revision())
		})
	}
}

func expression(text string) func(*setpointv1.RegisterVariableRequest) {
	return func(r *setpointv1.RegisterVariableRequest) { r.Expression = text }
}

func dependsOn(names ...string) func(*setpointv1.RegisterVariableRequest) {
	return func(r *setpointv1.RegisterVariableRequest) { r.DependsOn, r.Value = names, client.Integer(1) }
}

// A value that is given stands where none can be computed.
func TestGivenValueStands(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.integer("x")
	given := func(r *setpointv1.RegisterVariableRequest) { r.Value = client.Integer(42) }
	v := b.derived("d", "100 / x", given)
	equal(t, "d", fmt.Sprintf("42 v0 stale by d at %d: 1:5: division by zero", v.GetRevision()), b.state("d"))
	equal(t, "what is read", v, b.get("d"))
	b.set("x", client.Integer(4))
	equal(t, "d", "25 v1", b.state("d"))
	equal(t, "one that can be computed", int64(5), b.derived("e", "x + 1", given).GetValue().GetInteger())
	_, err := b.Variables.RegisterVariable(b.ctx, &setpointv1.RegisterVariableRequest{
		SessionId: "s", Name: "f", Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Expression: "1 / (x - x)", Strict: true,
		Value: client.Integer(1),
	})
	wantReason(t, err, setpointv1.ErrorReason_DERIVATION_FAILED)
}

// UpdateVariable gives and takes expressions and dependencies.
func TestUpdateOfTheGraph(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, name := range []string{"a", "b", "c"} {
		b.integer(name)
	}
	b.set("a", client.Integer(1))
	b.set("b", client.Integer(2))
	b.derived("d", "a + b", func(r *setpointv1.RegisterVariableRequest) { r.DependsOn = []string{"c"} })
	b.derived("after", "d * 10")
	update := func(change func(*setpointv1.UpdateVariableRequest)) (*setpointv1.Variable, error) {
		req := &setpointv1.UpdateVariableRequest{SessionId: "s", Variable: "d", Reason: "why"}
		change(req)
		return b.Variables.UpdateVariable(b.ctx, req)
	}
	v, err := update(func(r *setpointv1.UpdateVariableRequest) { r.Expression = ptr("a * 3") })
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "the old expression's needs go, others stay", []string{"a", "c"}, v.GetDependsOn())
	equal(t, "d", "3 v1", b.state("d"))
	equal(t, "an equal value is a new version of a new expression", int64(1), v.GetVersion())
	equal(t, "after", "30 v0", b.state("after"))
	changes := b.changesOf("d")
	equal(t, "the version's cause", "d", changes[0].GetCausedBy().GetVariable())
	updated := changes[2]
	equal(t, "the update", setpointv1.HistoryChange_HISTORY_CHANGE_UPDATED, updated.GetChange())
	equal(t, "its expression", "a * 3", updated.GetExpression())
	equal(t, "the edge", setpointv1.HistoryChange_HISTORY_CHANGE_DEPENDENCY_REMOVED, changes[1].GetChange())

	_, err = update(func(r *setpointv1.UpdateVariableRequest) { r.Expression = ptr("after + 1") })
	wantPath(t, err, "d", "after", "d")
	_, err = update(func(r *setpointv1.UpdateVariableRequest) { r.DependsOn = []string{"after"} })
	wantPath(t, err, "d", "after", "d")
	_, err = update(func(r *setpointv1.UpdateVariableRequest) { r.Expression = ptr("d + 1") })
	wantPath(t, err, "d", "d")
	_, err = update(func(r *setpointv1.UpdateVariableRequest) { r.Expression = ptr("nobody") })
	wantReason(t, err, setpointv1.ErrorReason_INVALID_EXPRESSION)
	_, err = update(func(r *setpointv1.UpdateVariableRequest) { r.DependsOn = []string{"nobody"} })
	wantReason(t, err, setpointv1.ErrorReason_VARIABLE_NOT_FOUND)
	_, err = update(func(r *setpointv1.UpdateVariableRequest) {
		r.Expression, r.Constraints = ptr("a * 4"), &setpointv1.Constraints{Max: ptr(2.0)}
	})
	wantReason(t, err, setpointv1.ErrorReason_CONSTRAINT_VIOLATION)

	v, err = update(func(r *setpointv1.UpdateVariableRequest) { r.ClearDependsOn = true })
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "but for what the expression uses", []string{"a"}, v.GetDependsOn())
	v, err = update(func(r *setpointv1.UpdateVariableRequest) { r.Expression = ptr("") })
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "one that ends keeps its dependencies", []string{"a"}, v.GetDependsOn())
	d := b.set("d", client.Integer(9))
	equal(t, "recomputed", []string{"after=90 v1"}, recomputedText(d.GetRecomputed()))
	stale := b.set("a", client.Integer(2))
	equal(t, "stale", []string{"d"}, staleText(stale.GetStale()))
}

func jsonObject(t *testing.T, text string) *setpointv1.Value {
	t.Helper()
	var parsed any
	if err := json.Unmarshal([]byte(text), &parsed); err != nil {
		t.Fatal(err)
	}
	v, err := client.JSON(parsed)
	if err != nil {
		t.Fatal(err)
	}
	return v
}
