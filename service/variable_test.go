package service_test

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/types/known/structpb"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/server"
)

func jsonOf(t *testing.T, v any) *setpointv1.Value {
	t.Helper()
	value, err := client.JSON(v)
	if err != nil {
		t.Fatal(err)
	}
	return value
}

// Every type goes in and comes out, by register, get, set, list, batch and history, with what its constraints refuse.
func TestEveryType(t *testing.T) {
	t.Parallel()
	b := setup(t)
	schema, err := structpb.NewStruct(map[string]any{"type": "object", "required": []any{"a"}})
	if err != nil {
		t.Fatal(err)
	}
	tensor := client.Tensor("float16", []int64{2, 1}, []byte{1, 2, 3, 4})
	tests := map[setpointv1.VariableType]struct {
		first, second, refused *setpointv1.Value
		constraints            *setpointv1.Constraints
	}{
		setpointv1.VariableType_VARIABLE_TYPE_BOOLEAN: {client.Bool(true), client.Bool(false), nil, nil},
		setpointv1.VariableType_VARIABLE_TYPE_INTEGER: {
			client.Integer(math.MinInt64), client.Integer(9007199254740993), client.Integer(math.MaxInt64),
			&setpointv1.Constraints{Max: ptr(1e18)},
		},
		setpointv1.VariableType_VARIABLE_TYPE_FLOAT: {
			client.Float(math.Copysign(0, -1)), client.Float(math.Inf(-1)), client.Float(math.NaN()),
			&setpointv1.Constraints{Max: ptr(2.0)},
		},
		setpointv1.VariableType_VARIABLE_TYPE_STRING: {
			client.String(""), client.String("naïve 🤖\n"), client.String("0123456789"),
			&setpointv1.Constraints{MaxLength: ptr(int64(9))},
		},
		setpointv1.VariableType_VARIABLE_TYPE_CHOICE: {
			client.Choice("a"), client.Choice("b"), client.Choice("c"), &setpointv1.Constraints{Choices: []string{"a", "b"}},
		},
		setpointv1.VariableType_VARIABLE_TYPE_MODULE: {
			client.Module("cot"), client.Module("react"), client.Module("predict"),
			&setpointv1.Constraints{AllowedModules: []string{"cot", "react"}},
		},
		setpointv1.VariableType_VARIABLE_TYPE_EMBEDDING: {
			client.Embedding([]float32{0.1, -0}), client.Embedding([]float32{1e-45, float32(math.Inf(1))}),
			client.Embedding([]float32{1}), &setpointv1.Constraints{Dimensions: ptr(int64(2))},
		},
		setpointv1.VariableType_VARIABLE_TYPE_TENSOR: {
			tensor, client.Tensor("float16", []int64{0, 1}, nil), client.Tensor("int8", []int64{1, 1}, []byte{1}),
			&setpointv1.Constraints{Shape: []int64{-1, 1}, Dtype: ptr("float16")},
		},
		setpointv1.VariableType_VARIABLE_TYPE_JSON: {
			jsonOf(t, map[string]any{"a": []any{1.5, nil, "x"}}), jsonOf(t, map[string]any{"a": nil}),
			jsonOf(t, map[string]any{"b": 1}), &setpointv1.Constraints{JsonSchema: schema},
		},
	}
	if want := len(setpointv1.VariableType_name) - 1; len(tests) != want {
		t.Fatalf("%d types are tested, of %d", len(tests), want)
	}
	for kind, test := range tests {
		t.Run(kind.String(), func(t *testing.T) {
			name := kind.String()
			v := b.register(&setpointv1.RegisterVariableRequest{
				Name: name, Type: kind, Value: test.first, Constraints: test.constraints,
			})
			equal(t, "registered", test.first, v.GetValue())
			equal(t, "constraints", test.constraints, b.get(name).GetConstraints())
			equal(t, "got", v, b.get(v.GetVariableId()))
			b.set(name, test.second)
			equal(t, "after set", test.second, b.get(name).GetValue())
			if test.refused != nil {
				e := wantReason(t, set(b, name, test.refused), setpointv1.ErrorReason_CONSTRAINT_VIOLATION)
				if e.Metadata["variable"] != name || !strings.Contains(e.Message, name) {
					t.Errorf("%v does not name the variable", e)
				}
			}
			old, err := b.History.GetVariableVersion(b.ctx, &setpointv1.GetVariableVersionRequest{SessionId: "s", Variable: name})
			if err != nil {
				t.Fatal(err)
			}
			equal(t, "version 0", test.first, old.GetValue())
			list, err := b.Variables.ListVariables(b.ctx, &setpointv1.ListVariablesRequest{
				SessionId: "s", Types: []setpointv1.VariableType{kind},
			})
			if err != nil || len(list.GetVariables()) != 1 {
				t.Fatalf("list of the type: %v, %v", list, err)
			}
			equal(t, "listed", b.get(name), list.GetVariables()[0])
		})
	}
}

func TestRegisterRefuses(t *testing.T) {
	t.Parallel()
	b := setup(t, func(c *server.Config) { c.Limits.ValueBytes = 1000 })
	integer := setpointv1.VariableType_VARIABLE_TYPE_INTEGER
	one := client.Integer(1)
	text := setpointv1.VariableType_VARIABLE_TYPE_STRING
	tests := map[string]struct {
		req    *setpointv1.RegisterVariableRequest
		reason setpointv1.ErrorReason
	}{
		"no name":           {&setpointv1.RegisterVariableRequest{Type: integer, Value: one}, setpointv1.ErrorReason_INVALID_REQUEST},
		"a name too long":   {&setpointv1.RegisterVariableRequest{Name: strings.Repeat("é", 257), Type: integer, Value: one}, setpointv1.ErrorReason_INVALID_REQUEST},
		"a control in it":   {&setpointv1.RegisterVariableRequest{Name: "a\tb", Type: integer, Value: one}, setpointv1.ErrorReason_INVALID_REQUEST},
		"NUL in it":         {&setpointv1.RegisterVariableRequest{Name: "a\x00b", Type: integer, Value: one}, setpointv1.ErrorReason_INVALID_REQUEST},
		"the form of an id": {&setpointv1.RegisterVariableRequest{Name: "var_0123456789abcdefghijklmnop", Type: integer, Value: one}, setpointv1.ErrorReason_INVALID_REQUEST},
		"no type":           {&setpointv1.RegisterVariableRequest{Name: "a", Value: one}, setpointv1.ErrorReason_INVALID_REQUEST},
		"an unknown type":   {&setpointv1.RegisterVariableRequest{Name: "a", Type: 99, Value: one}, setpointv1.ErrorReason_INVALID_REQUEST},
		"no value":          {&setpointv1.RegisterVariableRequest{Name: "a", Type: integer}, setpointv1.ErrorReason_INVALID_REQUEST},
		"an empty value":    {&setpointv1.RegisterVariableRequest{Name: "a", Type: integer, Value: &setpointv1.Value{}}, setpointv1.ErrorReason_INVALID_REQUEST},
		"another type":      {&setpointv1.RegisterVariableRequest{Name: "a", Type: integer, Value: client.String("1")}, setpointv1.ErrorReason_TYPE_MISMATCH},
		"NUL in the value":  {&setpointv1.RegisterVariableRequest{Name: "a", Type: text, Value: client.String("\x00")}, setpointv1.ErrorReason_INVALID_REQUEST},
		"too large a value": {&setpointv1.RegisterVariableRequest{Name: "a", Type: text, Value: client.String(strings.Repeat("x", 1001))}, setpointv1.ErrorReason_LIMIT_EXCEEDED},
		"a negative limit":  {&setpointv1.RegisterVariableRequest{Name: "a", Type: integer, Value: one, HistoryLimit: ptr(int64(-1))}, setpointv1.ErrorReason_INVALID_REQUEST},
		"no choices": {&setpointv1.RegisterVariableRequest{
			Name: "a", Type: setpointv1.VariableType_VARIABLE_TYPE_CHOICE, Value: client.Choice("a"),
		}, setpointv1.ErrorReason_INVALID_CONSTRAINTS},
		"contradicting bounds": {&setpointv1.RegisterVariableRequest{
			Name: "a", Type: integer, Value: one, Constraints: &setpointv1.Constraints{Min: ptr(2.0), Max: ptr(1.0)},
		}, setpointv1.ErrorReason_INVALID_CONSTRAINTS},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			test.req.SessionId = "s"
			_, err := b.Variables.RegisterVariable(b.ctx, test.req)
			wantReason(t, err, test.reason)
			if got := b.revision(); got != 0 {
				t.Errorf("something was written: revision %d", got)
			}
		})
	}
}

func TestVariablesOfASessionAreLimited(t *testing.T) {
	t.Parallel()
	b := setup(t, func(c *server.Config) { c.Limits.Variables = 3 })
	b.integer("a")
	registrations := func(names ...string) *setpointv1.BatchRegisterVariablesRequest {
		req := &setpointv1.BatchRegisterVariablesRequest{SessionId: "s"}
		for _, n := range names {
			req.Registrations = append(req.Registrations, &setpointv1.VariableRegistration{
				Name: n, Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Value: client.Integer(1),
			})
		}
		return req
	}
	response, err := b.Variables.BatchRegisterVariables(b.ctx, registrations("a", "b", "c", "d"))
	if err != nil {
		t.Fatal(err)
	}
	var got []setpointv1.ErrorReason
	for _, r := range response.GetResults() {
		got = append(got, r.GetError().GetReason())
	}
	equal(t, "reasons", []setpointv1.ErrorReason{setpointv1.ErrorReason_VARIABLE_EXISTS, 0, 0,
		setpointv1.ErrorReason_LIMIT_EXCEEDED}, got)
	_, err = b.Variables.RegisterVariable(b.ctx, &setpointv1.RegisterVariableRequest{
		SessionId: "s", Name: "e", Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Value: client.Integer(1),
	})
	wantMetadata(t, wantReason(t, err, setpointv1.ErrorReason_LIMIT_EXCEEDED), map[string]string{"limit": "variables", "value": "3"})
	if _, err := b.Variables.DeleteVariable(b.ctx, &setpointv1.DeleteVariableRequest{SessionId: "s", Variable: "a"}); err != nil {
		t.Fatal(err)
	}
	b.integer("e")
	s, err := b.Sessions.GetSession(b.ctx, &setpointv1.GetSessionRequest{SessionId: "s"})
	if err != nil || s.GetVariableCount() != 3 {
		t.Errorf("%v, %v; want 3 variables", s, err)
	}
}

func TestBatchGetVariables(t *testing.T) {
	t.Parallel()
	b := setup(t, func(c *server.Config) { c.Limits.PageBytes = 100 })
	x := b.integer("x")
	b.register(&setpointv1.RegisterVariableRequest{
		Name: "large", Type: setpointv1.VariableType_VARIABLE_TYPE_EMBEDDING, Value: client.Embedding(make([]float32, 30)),
	})
	ask := func(variables ...string) (*setpointv1.BatchGetVariablesResponse, error) {
		return b.Variables.BatchGetVariables(b.ctx, &setpointv1.BatchGetVariablesRequest{SessionId: "s", Variables: variables})
	}
	got, err := ask("no", "x", x.GetVariableId(), "nor", "no", "x")
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "answer", &setpointv1.BatchGetVariablesResponse{
		Variables: map[string]*setpointv1.Variable{"x": x, x.GetVariableId(): x}, Missing: []string{"no", "nor"},
	}, got)
	_, err = ask("x", "large")
	wantMetadata(t, wantReason(t, err, setpointv1.ErrorReason_LIMIT_EXCEEDED), map[string]string{"limit": "batch_bytes", "value": "100"})
	if large := b.get("large"); len(large.GetValue().GetEmbedding().GetValues()) != 30 {
		t.Error("a value that is larger than a batch may be is to be had alone")
	}
	_, err = ask()
	wantReason(t, err, setpointv1.ErrorReason_INVALID_REQUEST)
	_, err = ask(names("n", 1001)...)
	wantMetadata(t, wantReason(t, err, setpointv1.ErrorReason_LIMIT_EXCEEDED), map[string]string{"limit": "batch_items", "value": "1000"})
}

func TestListVariables(t *testing.T) {
	t.Parallel()
	b := setup(t, func(c *server.Config) { c.Limits.PageBytes = 300 })
	all := []string{"Zeta", "a%b", "a_b", "alpha", "beta", "beta.1", "beta.2", "élan", "日本"}
	for _, n := range all {
		b.integer(n)
	}
	list := func(req *setpointv1.ListVariablesRequest) ([]string, int) {
		t.Helper()
		req.SessionId = "s"
		var got []string
		for pages := 1; ; pages++ {
			page, err := b.Variables.ListVariables(b.ctx, req)
			if err != nil {
				t.Fatal(err)
			}
			for _, v := range page.GetVariables() {
				got = append(got, v.GetName())
			}
			if req.PageToken = page.GetNextPageToken(); req.PageToken == "" {
				return got, pages
			}
		}
	}
	for pattern, want := range map[string][]string{
		"": all, "*": all, "beta*": {"beta", "beta.1", "beta.2"}, "beta": {"beta"}, "*1": {"beta.1"}, "a_*": {"a_b"},
		"a%*": {"a%b"}, "é*": {"élan"}, "b*.2": {"beta.2"}, "x*": nil, `\*`: nil,
	} {
		for _, size := range []int32{0, 1, 3, 1000} {
			got, pages := list(&setpointv1.ListVariablesRequest{Pattern: pattern, PageSize: size})
			equal(t, fmt.Sprintf("%q by %d", pattern, size), want, got)
			if size == 1 && pages != max(1, len(want)) {
				t.Errorf("%q by 1: %d pages", pattern, pages)
			}
		}
	}
	for i := range 3 {
		b.register(&setpointv1.RegisterVariableRequest{
			Name: fmt.Sprintf("vector%d", i), Type: setpointv1.VariableType_VARIABLE_TYPE_EMBEDDING,
			Value: client.Embedding(make([]float32, 60)),
		})
	}
	embeddings := []setpointv1.VariableType{setpointv1.VariableType_VARIABLE_TYPE_EMBEDDING}
	got, pages := list(&setpointv1.ListVariablesRequest{Types: embeddings})
	if !slices.Equal(got, []string{"vector0", "vector1", "vector2"}) || pages != 3 {
		t.Errorf("240 bytes each, 300 a page: %v on %d pages", got, pages)
	}
	empty, err := b.Variables.ListVariables(b.ctx, &setpointv1.ListVariablesRequest{SessionId: b.session("empty").GetSessionId()})
	if err != nil || len(empty.GetVariables()) != 0 || empty.GetNextPageToken() != "" {
		t.Errorf("an empty session: %v, %v", empty, err)
	}
}

func TestPageTokensAreChecked(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, n := range names("v", 5) {
		b.integer(n)
	}
	first, err := b.Variables.ListVariables(b.ctx, &setpointv1.ListVariablesRequest{SessionId: "s", PageSize: 2, Pattern: "v*"})
	if err != nil {
		t.Fatal(err)
	}
	token := first.GetNextPageToken()
	for name, req := range map[string]*setpointv1.ListVariablesRequest{
		"another pattern": {SessionId: "s", PageToken: token, Pattern: "w*"},
		"another session": {SessionId: b.session("t").GetSessionId(), PageToken: token, Pattern: "v*"},
		"garbage":         {SessionId: "s", PageToken: "garbage!", Pattern: "v*"},
		"cut":             {SessionId: "s", PageToken: token[:len(token)/2], Pattern: "v*"},
		"page size":       {SessionId: "s", PageSize: 1001},
		"negative size":   {SessionId: "s", PageSize: -1},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := b.Variables.ListVariables(b.ctx, req)
			wantReason(t, err, setpointv1.ErrorReason_INVALID_REQUEST)
		})
	}
	_, err = b.History.ListHistory(b.ctx, &setpointv1.ListHistoryRequest{SessionId: "s", PageToken: token})
	wantReason(t, err, setpointv1.ErrorReason_INVALID_REQUEST)
}

func TestUpdateVariable(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.register(&setpointv1.RegisterVariableRequest{
		Name: "x", Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Value: client.Integer(5),
		Constraints: &setpointv1.Constraints{Max: ptr(10.0)}, Metadata: map[string]string{"unit": "tokens"},
	})
	update := func(req *setpointv1.UpdateVariableRequest) (*setpointv1.Variable, error) {
		req.SessionId, req.Variable = "s", "x"
		return b.Variables.UpdateVariable(b.ctx, req)
	}
	if err := set(b, "x", client.Integer(6)); err != nil {
		t.Fatal(err) // The server knows the first constraints from here on.
	}
	v, err := update(&setpointv1.UpdateVariableRequest{
		Constraints: &setpointv1.Constraints{Max: ptr(100.0)}, HistoryLimit: ptr(int64(3)), Reason: "more room",
	})
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "updated", v, b.get("x"))
	if v.GetVersion() != 1 || v.GetRevision() != 3 || v.GetHistoryLimit() != 3 || v.GetMetadata()["unit"] != "tokens" ||
		v.GetValue().GetInteger() != 6 {
		t.Errorf("updated: %v", v)
	}
	if err := set(b, "x", client.Integer(99)); err != nil {
		t.Errorf("what the new constraints allow: %v", err)
	}
	_, err = update(&setpointv1.UpdateVariableRequest{Constraints: &setpointv1.Constraints{Max: ptr(50.0)}})
	e := wantReason(t, err, setpointv1.ErrorReason_CONSTRAINT_VIOLATION)
	if e.Message != "x: 99 is above the maximum 50" {
		t.Errorf("message %q", e.Message)
	}
	_, err = update(&setpointv1.UpdateVariableRequest{Constraints: &setpointv1.Constraints{Choices: []string{"a"}}})
	wantReason(t, err, setpointv1.ErrorReason_INVALID_CONSTRAINTS)
	_, err = update(&setpointv1.UpdateVariableRequest{ExpectedVersion: ptr(int64(0))})
	wantMetadata(t, wantReason(t, err, setpointv1.ErrorReason_VERSION_MISMATCH),
		map[string]string{"variable": "x", "expected_version": "0", "current_version": "2"})
	if v, err = update(&setpointv1.UpdateVariableRequest{ClearMetadata: true, Constraints: &setpointv1.Constraints{}}); err != nil ||
		len(v.GetMetadata()) != 0 || v.GetConstraints() != nil {
		t.Errorf("cleared: %v, %v", v, err)
	}
	updates, err := b.History.ListHistory(b.ctx, &setpointv1.ListHistoryRequest{
		SessionId: "s", Variable: "x", Changes: []setpointv1.HistoryChange{setpointv1.HistoryChange_HISTORY_CHANGE_UPDATED},
	})
	if err != nil || len(updates.GetEntries()) != 2 {
		t.Fatalf("history of updates: %v, %v", updates, err)
	}
	if u := updates.GetEntries()[1]; u.Version != nil || u.Value != nil || u.GetReason() != "more room" || u.GetRevision() != 3 {
		t.Errorf("first update: %v", u)
	}
	_, err = b.Variables.UpdateVariable(b.ctx, &setpointv1.UpdateVariableRequest{SessionId: "s", Variable: "no"})
	wantReason(t, err, setpointv1.ErrorReason_VARIABLE_NOT_FOUND)
}

func TestDeleteVariable(t *testing.T) {
	t.Parallel()
	b := setup(t)
	x := b.integer("x")
	_, err := b.Variables.DeleteVariable(b.ctx, &setpointv1.DeleteVariableRequest{
		SessionId: "s", Variable: "x", ExpectedVersion: ptr(int64(3)),
	})
	wantReason(t, err, setpointv1.ErrorReason_VERSION_MISMATCH)
	deleted, err := b.Variables.DeleteVariable(b.ctx, &setpointv1.DeleteVariableRequest{
		SessionId: "s", Variable: "x", ExpectedVersion: ptr(int64(0)), Reason: "done",
	})
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "answer", &setpointv1.DeleteVariableResponse{VariableId: x.GetVariableId(), Revision: 2}, deleted)
	wantReason(t, set(b, "x", client.Integer(1)), setpointv1.ErrorReason_VARIABLE_NOT_FOUND)
	list, err := b.History.ListHistory(b.ctx, &setpointv1.ListHistoryRequest{SessionId: "s"})
	if err != nil || len(list.GetEntries()) != 2 {
		t.Fatalf("history: %v, %v", list, err)
	}
	if e := list.GetEntries()[0]; e.GetChange() != setpointv1.HistoryChange_HISTORY_CHANGE_DELETED || e.GetReason() != "done" ||
		e.GetName() != "x" || e.Version != nil {
		t.Errorf("the deletion: %v", e)
	}
	// The name may be used again, for another variable; a server that remembers the old one notices.
	again := b.register(&setpointv1.RegisterVariableRequest{
		Name: "x", Type: setpointv1.VariableType_VARIABLE_TYPE_STRING, Value: client.String("a"),
	})
	if again.GetVariableId() == x.GetVariableId() {
		t.Error("the id was used again")
	}
	if err := set(b, "x", client.String("b")); err != nil {
		t.Error(err)
	}
	wantReason(t, set(b, x.GetVariableId(), client.Integer(1)), setpointv1.ErrorReason_VARIABLE_NOT_FOUND)
}
