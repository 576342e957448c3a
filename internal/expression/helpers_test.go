package expression

import (
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/structpb"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

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

// jsonText makes a value of kind json of its text.
func jsonText(t testing.TB, text string) *setpointv1.Value {
	t.Helper()
	v := &structpb.Value{}
	if err := protojson.Unmarshal([]byte(text), v); err != nil {
		t.Fatalf("parse %s: %v", text, err)
	}
	return &setpointv1.Value{Kind: &setpointv1.Value_Json{Json: v}}
}
