package value

import (
	"testing"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

func TestTypeNames(t *testing.T) {
	t.Parallel()
	want := []string{"boolean", "integer", "float", "string", "choice", "module", "embedding", "tensor", "json"}
	types := allTypes()
	if len(types) != len(want) {
		t.Fatalf("there are %d types, want %d", len(types), len(want))
	}
	for i, typ := range types {
		if got := TypeName(typ); got != want[i] {
			t.Errorf("TypeName(%v) = %q, want %q", typ, got, want[i])
		}
		if got, ok := ParseType(want[i]); !ok || got != typ {
			t.Errorf("ParseType(%q) = %v, %v", want[i], got, ok)
		}
	}
}

func TestTypeNamesUnknown(t *testing.T) {
	t.Parallel()
	for _, typ := range []setpointv1.VariableType{0, -1, 99} {
		if got := TypeName(typ); got != "" {
			t.Errorf("TypeName(%d) = %q, want none", typ, got)
		}
	}
	for _, name := range []string{"", "Float", "VARIABLE_TYPE_FLOAT", "int"} {
		if got, ok := ParseType(name); ok {
			t.Errorf("ParseType(%q) = %v, want none", name, got)
		}
	}
}
