package value

import (
	"errors"
	"slices"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/structpb"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// limit is the size limit of values in tests: what a server has by default.
const limit = 16 << 20

func boolean(b bool) *setpointv1.Value {
	return &setpointv1.Value{Kind: &setpointv1.Value_Boolean{Boolean: b}}
}

func integer(n int64) *setpointv1.Value {
	return &setpointv1.Value{Kind: &setpointv1.Value_Integer{Integer: n}}
}

func number(f float64) *setpointv1.Value {
	return &setpointv1.Value{Kind: &setpointv1.Value_Number{Number: f}}
}

func text(s string) *setpointv1.Value {
	return &setpointv1.Value{Kind: &setpointv1.Value_String_{String_: s}}
}

func choice(s string) *setpointv1.Value {
	return &setpointv1.Value{Kind: &setpointv1.Value_Choice{Choice: s}}
}

func module(s string) *setpointv1.Value {
	return &setpointv1.Value{Kind: &setpointv1.Value_Module{Module: s}}
}

func embedding(values ...float32) *setpointv1.Value {
	return &setpointv1.Value{Kind: &setpointv1.Value_Embedding{Embedding: &setpointv1.Embedding{Values: values}}}
}

func tensor(dtype string, shape []int64, data ...byte) *setpointv1.Value {
	t := &setpointv1.Tensor{Dtype: dtype, Shape: shape, Data: data}
	return &setpointv1.Value{Kind: &setpointv1.Value_Tensor{Tensor: t}}
}

// jsonOf makes a value of kind json.
func jsonOf(v *structpb.Value) *setpointv1.Value {
	return &setpointv1.Value{Kind: &setpointv1.Value_Json{Json: v}}
}

// jsonText makes a value of kind json of its text.
func jsonText(t *testing.T, text string) *setpointv1.Value {
	t.Helper()
	v := &structpb.Value{}
	if err := protojson.Unmarshal([]byte(text), v); err != nil {
		t.Fatalf("parse %s: %v", text, err)
	}
	return jsonOf(v)
}

// schemaText makes constraints of a JSON Schema's text.
func schemaText(t *testing.T, text string) *setpointv1.Constraints {
	t.Helper()
	schema := &structpb.Struct{}
	if err := protojson.Unmarshal([]byte(text), schema); err != nil {
		t.Fatalf("parse %s: %v", text, err)
	}
	return &setpointv1.Constraints{JsonSchema: schema}
}

// define makes a definition that must compile.
func define(t *testing.T, typ setpointv1.VariableType, c *setpointv1.Constraints) *Definition {
	t.Helper()
	d, err := NewDefinition(typ, c)
	if err != nil {
		t.Fatalf("NewDefinition of %s: %v", TypeName(typ), err)
	}
	return d
}

// free makes a definition of a type that allows as much as the type can.
func free(t *testing.T, typ setpointv1.VariableType) *Definition {
	t.Helper()
	if typ == typeChoice {
		return define(t, typ, &setpointv1.Constraints{Choices: []string{"a", "fast", ""}})
	}
	return define(t, typ, nil)
}

// allTypes is every type that a variable can have.
func allTypes() []setpointv1.VariableType {
	types := make([]setpointv1.VariableType, 0, len(setpointv1.VariableType_name))
	for n := range setpointv1.VariableType_name {
		if n != 0 {
			types = append(types, setpointv1.VariableType(n))
		}
	}
	slices.Sort(types)
	return types
}

// refusalOf returns the refusal that err must be.
func refusalOf(t *testing.T, err error) *Refusal {
	t.Helper()
	var refusal *Refusal
	if !errors.As(err, &refusal) {
		t.Fatalf("got error %v, want a refusal", err)
	}
	return refusal
}

func ptr[T any](v T) *T {
	return &v
}
