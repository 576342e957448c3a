package value

import (
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/structpb"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// TestConstraintTypes documents which constraint belongs to which type. It walks the fields of the message, so a field
// that is new there needs an entry here, in the table, and a check.
func TestConstraintTypes(t *testing.T) {
	t.Parallel()
	belongs := map[string]struct {
		c     *setpointv1.Constraints
		types string
	}{
		"min":             {&setpointv1.Constraints{Min: ptr(0.0)}, "integer float"},
		"max":             {&setpointv1.Constraints{Max: ptr(0.0)}, "integer float"},
		"step":            {&setpointv1.Constraints{Step: ptr(1.0)}, "integer float"},
		"min_length":      {&setpointv1.Constraints{MinLength: ptr(int64(0))}, "string"},
		"max_length":      {&setpointv1.Constraints{MaxLength: ptr(int64(0))}, "string"},
		"pattern":         {&setpointv1.Constraints{Pattern: ptr("")}, "string"},
		"enum":            {&setpointv1.Constraints{Enum: []string{"a"}}, "string"},
		"choices":         {&setpointv1.Constraints{Choices: []string{"a"}}, "choice"},
		"allowed_modules": {&setpointv1.Constraints{AllowedModules: []string{"a"}}, "module"},
		"dimensions":      {&setpointv1.Constraints{Dimensions: ptr(int64(1))}, "embedding"},
		"shape":           {&setpointv1.Constraints{Shape: []int64{1}}, "tensor"},
		"dtype":           {&setpointv1.Constraints{Dtype: ptr("int8")}, "tensor"},
		"json_schema":     {&setpointv1.Constraints{JsonSchema: &structpb.Struct{}}, "json"},
	}
	fields := (&setpointv1.Constraints{}).ProtoReflect().Descriptor().Fields()
	if len(constraintTypes) != fields.Len() {
		t.Errorf("constraintTypes has %d entries for %d fields", len(constraintTypes), fields.Len())
	}
	for i := range fields.Len() {
		name := string(fields.Get(i).Name())
		field, ok := belongs[name]
		if !ok {
			t.Errorf("%s: to which types does it belong?", name)
			continue
		}
		if !field.c.ProtoReflect().Has(fields.Get(i)) {
			t.Errorf("%s: the example does not set it", name)
		}
		for _, typ := range allTypes() {
			c := proto.CloneOf(field.c)
			if typ == typeChoice && c.Choices == nil {
				c.Choices = []string{"a"}
			}
			_, err := NewDefinition(typ, c)
			if strings.Contains(" "+field.types+" ", " "+TypeName(typ)+" ") {
				if err != nil {
					t.Errorf("%s of %s: %v", name, TypeName(typ), err)
				}
				continue
			}
			want := &Refusal{
				Reason:   setpointv1.ErrorReason_INVALID_CONSTRAINTS,
				Message:  name + ": is not a constraint of type " + TypeName(typ),
				Metadata: map[string]string{"constraint": name},
			}
			if diff := cmp.Diff(want, refusalOf(t, err)); diff != "" {
				t.Errorf("%s of %s (-want +got):\n%s", name, TypeName(typ), diff)
			}
		}
	}
}

func TestNewDefinition(t *testing.T) {
	t.Parallel()
	for _, c := range []*setpointv1.Constraints{nil, {}} {
		d := define(t, typeFloat, c)
		if d.Type() != typeFloat || d.Constraints() != nil {
			t.Errorf("of %v: type %v, constraints %v", c, d.Type(), d.Constraints())
		}
	}
	given := &setpointv1.Constraints{Min: ptr(1.0), Step: ptr(0.5)}
	d := define(t, typeFloat, given)
	want := proto.CloneOf(given)
	given.Min = ptr(7.0)
	if diff := cmp.Diff(want, d.Constraints(), protocmp.Transform()); diff != "" {
		t.Errorf("constraints changed after they were given (-want +got):\n%s", diff)
	}
}

func TestNewDefinitionUnknownType(t *testing.T) {
	t.Parallel()
	for _, typ := range []setpointv1.VariableType{0, 99} {
		_, err := NewDefinition(typ, nil)
		if got := refusalOf(t, err); got.Reason != setpointv1.ErrorReason_INVALID_REQUEST {
			t.Errorf("type %d: %v", typ, got.Reason)
		}
	}
}

// TestInvalidConstraints has the constraints that are refused in themselves.
func TestInvalidConstraints(t *testing.T) {
	t.Parallel()
	inf, nan := math.Inf(1), math.NaN()
	tests := []struct {
		typ  setpointv1.VariableType
		c    *setpointv1.Constraints
		want string // "constraint: why"
	}{
		{typeFloat, &setpointv1.Constraints{Min: &nan}, `min: NaN is not a minimum`},
		{typeFloat, &setpointv1.Constraints{Max: &nan}, `max: NaN is not a maximum`},
		{typeFloat, &setpointv1.Constraints{Min: ptr(2.0), Max: ptr(1.5)}, `min: 2 is above max, 1.5`},
		{typeInteger, &setpointv1.Constraints{Min: ptr(1e6), Max: ptr(-1.0)}, `min: 1000000 is above max, -1`},
		{typeFloat, &setpointv1.Constraints{Step: ptr(0.0)}, `step: 0 is not a positive number`},
		{typeFloat, &setpointv1.Constraints{Step: ptr(-0.5)}, `step: -0.5 is not a positive number`},
		{typeInteger, &setpointv1.Constraints{Step: &inf}, `step: +Inf is not a positive number`},
		{typeInteger, &setpointv1.Constraints{Step: &nan}, `step: NaN is not a positive number`},
		{typeFloat, &setpointv1.Constraints{Min: ptr(math.Inf(-1)), Step: ptr(1.0)},
			`step: it cannot be counted from min, -Inf`},

		{typeString, &setpointv1.Constraints{MinLength: ptr(int64(-1))}, `min_length: -1 is negative`},
		{typeString, &setpointv1.Constraints{MaxLength: ptr(int64(-1))}, `max_length: -1 is negative`},
		{typeString, &setpointv1.Constraints{MinLength: ptr(int64(3)), MaxLength: ptr(int64(2))},
			`min_length: 3 is above max_length, 2`},
		{typeString, &setpointv1.Constraints{Pattern: ptr("(a")},
			"pattern: \"(a\" does not compile: error parsing regexp: missing closing ): `(a`"},
		{typeString, &setpointv1.Constraints{Pattern: ptr(`(?=a)`)},
			"pattern: \"(?=a)\" does not compile: error parsing regexp: invalid or unsupported Perl syntax: `(?=`"},
		{typeString, &setpointv1.Constraints{Pattern: ptr("a\x00")}, `pattern: "a\x00" contains U+0000`},
		{typeString, &setpointv1.Constraints{Pattern: ptr(strings.Repeat("a", maxPatternBytes+1))},
			`pattern: has 4097 bytes, more than 4096`},
		{typeString, &setpointv1.Constraints{Pattern: ptr(strings.Repeat("x{1000}", 11))},
			`pattern: "` + strings.Repeat("x{1000}", 9) + `x…" compiles to 11002 instructions, more than 10000`},
		{typeString, &setpointv1.Constraints{Enum: []string{"a", "b", "a"}}, `enum: "a" is listed twice`},
		{typeString, &setpointv1.Constraints{Enum: []string{"a\x00"}}, `enum: "a\x00" contains U+0000`},
		{typeString, &setpointv1.Constraints{Enum: []string{"\xff"}}, `enum: "\xff" is not valid UTF-8`},

		{typeChoice, nil, `choices: a choice needs at least one`},
		{typeChoice, &setpointv1.Constraints{}, `choices: a choice needs at least one`},
		{typeChoice, &setpointv1.Constraints{Choices: []string{"", ""}}, `choices: "" is listed twice`},
		{typeChoice, &setpointv1.Constraints{Choices: []string{"\x00"}}, `choices: "\x00" contains U+0000`},
		{typeModule, &setpointv1.Constraints{AllowedModules: []string{"m", "m"}}, `allowed_modules: "m" is listed twice`},

		{typeEmbedding, &setpointv1.Constraints{Dimensions: ptr(int64(0))},
			`dimensions: 0 is not between 1 and 4194304`},
		{typeEmbedding, &setpointv1.Constraints{Dimensions: ptr(int64(4194305))},
			`dimensions: 4194305 is not between 1 and 4194304`},
		{typeTensor, &setpointv1.Constraints{Shape: []int64{1, -2}}, `shape: -2 is neither a size nor -1`},
		{typeTensor, &setpointv1.Constraints{Shape: make([]int64, 33)},
			`shape: a tensor has at most 32 dimensions, not 33`},
		{typeTensor, &setpointv1.Constraints{Dtype: ptr("float")}, `dtype: there is no dtype "float"`},
		{typeTensor, &setpointv1.Constraints{Dtype: ptr("")}, `dtype: there is no dtype ""`},
	}
	for _, tt := range tests {
		t.Run(tt.want, func(t *testing.T) {
			t.Parallel()
			_, err := NewDefinition(tt.typ, tt.c)
			field, _, _ := strings.Cut(tt.want, ":")
			want := &Refusal{
				Reason:   setpointv1.ErrorReason_INVALID_CONSTRAINTS,
				Message:  tt.want,
				Metadata: map[string]string{"constraint": field},
			}
			if diff := cmp.Diff(want, refusalOf(t, err)); diff != "" {
				t.Errorf("refusal (-want +got):\n%s", diff)
			}
		})
	}
}

// TestUnknownConstraint has a field of a later version of the API: to leave it out would let values pass.
func TestUnknownConstraint(t *testing.T) {
	t.Parallel()
	c := &setpointv1.Constraints{}
	c.ProtoReflect().SetUnknown(protoreflect.RawFields{0xa0, 0x06, 0x01}) // field 100
	_, err := NewDefinition(typeFloat, c)
	if got := refusalOf(t, err); got.Reason != setpointv1.ErrorReason_INVALID_CONSTRAINTS {
		t.Errorf("got %v: %s", got.Reason, got.Message)
	}
}

func TestConstraintsLimit(t *testing.T) {
	t.Parallel()
	big := strings.Repeat("a", 1<<20-10)
	define(t, typeChoice, &setpointv1.Constraints{Choices: []string{big}})
	_, err := NewDefinition(typeChoice, &setpointv1.Constraints{Choices: []string{big + "0123456789"}})
	want := &Refusal{
		Reason:   setpointv1.ErrorReason_LIMIT_EXCEEDED,
		Message:  "the constraints have 1048580 bytes, more than the limit of 1048576",
		Metadata: map[string]string{"limit": "constraints_bytes", "value": "1048576"},
	}
	if diff := cmp.Diff(want, refusalOf(t, err)); diff != "" {
		t.Errorf("refusal (-want +got):\n%s", diff)
	}
}

// TestConstraints has values that constraints let pass (want is empty) or refuse.
func TestConstraints(t *testing.T) {
	t.Parallel()
	inf, nan := math.Inf(1), math.NaN()
	zeroToTwo := &setpointv1.Constraints{Min: ptr(0.0), Max: ptr(2.0)}
	tenths := &setpointv1.Constraints{Step: ptr(0.1)}
	tenthsFrom := &setpointv1.Constraints{Min: ptr(0.05), Step: ptr(0.1)}
	sevens := &setpointv1.Constraints{Min: ptr(3.0), Step: ptr(7.0)}
	big := &setpointv1.Constraints{Min: ptr(float64(1 << 53)), Max: ptr(float64(1 << 63))}
	length := &setpointv1.Constraints{MinLength: ptr(int64(2)), MaxLength: ptr(int64(3))}
	digits := &setpointv1.Constraints{Pattern: ptr(`[0-9]+`)}
	enum := &setpointv1.Constraints{Enum: []string{"red", "green"}}
	choices := &setpointv1.Constraints{Choices: []string{"slow", "safe"}}
	modules := &setpointv1.Constraints{AllowedModules: []string{"cot", "react"}}
	three := &setpointv1.Constraints{Dimensions: ptr(int64(3))}
	matrix := &setpointv1.Constraints{Shape: []int64{-1, 2}, Dtype: ptr("int8")}
	many := make([]string, 20)
	for i := range many {
		many[i] = fmt.Sprint(i)
	}
	tests := []struct {
		name string
		typ  setpointv1.VariableType
		c    *setpointv1.Constraints
		v    *setpointv1.Value
		want string // "constraint | message"
	}{
		{"at min", typeFloat, zeroToTwo, number(0), ""},
		{"negative zero at min", typeFloat, zeroToTwo, number(math.Copysign(0, -1)), ""},
		{"at max", typeFloat, zeroToTwo, number(2), ""},
		{"above max", typeFloat, zeroToTwo, number(2.5), `max | temperature: 2.5 is above the maximum 2`},
		{"just above max", typeFloat, zeroToTwo, number(math.Nextafter(2, 3)),
			`max | temperature: 2.0000000000000004 is above the maximum 2`},
		{"below min", typeFloat, zeroToTwo, number(-1e-9), `min | temperature: -1e-09 is below the minimum 0`},
		{"NaN and min", typeFloat, zeroToTwo, number(nan), `min | temperature: NaN does not satisfy the minimum 0`},
		{"NaN and max", typeFloat, &setpointv1.Constraints{Max: ptr(2.0)}, number(nan),
			`max | temperature: NaN does not satisfy the maximum 2`},
		{"NaN and an infinite max", typeFloat, &setpointv1.Constraints{Max: &inf}, number(nan),
			`max | temperature: NaN does not satisfy the maximum +Inf`},
		{"NaN and step", typeFloat, tenths, number(nan), `step | temperature: NaN is not a multiple of the step 0.1`},
		{"infinity and max", typeFloat, zeroToTwo, number(inf), `max | temperature: +Inf is above the maximum 2`},
		{"infinity and an infinite max", typeFloat, &setpointv1.Constraints{Max: &inf}, number(inf), ""},
		{"infinity and step", typeFloat, tenths, number(inf), `step | temperature: +Inf is not a multiple of the step 0.1`},
		{"converted integer above max", typeFloat, zeroToTwo, integer(3), `max | temperature: 3 is above the maximum 2`},
		{"json above max", typeFloat, zeroToTwo, jsonText(t, `"Infinity"`),
			`max | temperature: +Inf is above the maximum 2`},

		{"on step", typeFloat, tenths, number(0.3), ""},
		{"on step by arithmetic", typeFloat, tenths, number(0.1 + 0.2), ""},
		{"on step below zero", typeFloat, tenths, number(-0.7), ""},
		{"on step far away", typeFloat, tenths, number(1e9 + 0.1), ""},
		{"within tolerance", typeFloat, tenths, number(0.3 + 0.9e-9), ""},
		{"outside tolerance", typeFloat, tenths, number(0.3 + 1.1e-9),
			`step | temperature: 0.3000000011 is not a multiple of the step 0.1`},
		{"off step", typeFloat, tenths, number(0.35), `step | temperature: 0.35 is not a multiple of the step 0.1`},
		{"on step from min", typeFloat, tenthsFrom, number(0.25), ""},
		{"off step from min", typeFloat, tenthsFrom, number(0.2),
			`step | temperature: 0.2 is not the minimum 0.05 plus a multiple of the step 0.1`},
		{"step of the largest difference", typeFloat,
			&setpointv1.Constraints{Min: ptr(-math.MaxFloat64), Step: ptr(1.0)}, number(math.MaxFloat64),
			`step | temperature: ` + formatNumber(math.MaxFloat64) + ` is not the minimum ` +
				formatNumber(-math.MaxFloat64) + ` plus a multiple of the step 1`},

		{"integer on step", typeInteger, sevens, integer(17), ""},
		{"integer off step", typeInteger, sevens, integer(18),
			`step | temperature: 18 is not the minimum 3 plus a multiple of the step 7`},
		{"integer on step beyond 2^53", typeInteger, &setpointv1.Constraints{Step: ptr(2.0)}, integer(math.MaxInt64 - 1), ""},
		{"integer off step beyond 2^53", typeInteger, &setpointv1.Constraints{Step: ptr(2.0)}, integer(math.MaxInt64),
			`step | temperature: 9223372036854775807 is not a multiple of the step 2`},
		{"integer on step from far below", typeInteger, &setpointv1.Constraints{Min: ptr(-1e300), Step: ptr(1.0)},
			integer(5), ""},
		{"integer on a broken step", typeInteger, &setpointv1.Constraints{Step: ptr(2.5)}, integer(5), ""},
		{"integer off a broken step", typeInteger, &setpointv1.Constraints{Step: ptr(2.5)}, integer(6),
			`step | temperature: 6 is not a multiple of the step 2.5`},
		{"integer at a bound beyond 2^53", typeInteger, big, integer(1 << 53), ""},
		{"integer one below a bound beyond 2^53", typeInteger,
			&setpointv1.Constraints{Min: ptr(float64(1<<53 + 2))}, integer(1<<53 + 1),
			`min | temperature: 9007199254740993 is below the minimum 9007199254740994`},
		{"greatest integer is below 2^63", typeInteger, big, integer(math.MaxInt64), ""},
		{"greatest integer is above the double before 2^63", typeInteger,
			&setpointv1.Constraints{Max: ptr(math.Nextafter(1<<63, 0))}, integer(math.MaxInt64),
			`max | temperature: 9223372036854775807 is above the maximum 9223372036854775000`},
		{"integer and a broken bound", typeInteger, &setpointv1.Constraints{Min: ptr(2.5)}, integer(2),
			`min | temperature: 2 is below the minimum 2.5`},
		{"integer and a broken negative bound", typeInteger, &setpointv1.Constraints{Max: ptr(-2.5)}, integer(-2),
			`max | temperature: -2 is above the maximum -2.5`},
		{"integer and infinite bounds", typeInteger,
			&setpointv1.Constraints{Min: ptr(math.Inf(-1)), Max: &inf}, integer(math.MinInt64), ""},

		{"length in characters", typeString, length, text("éé☃"), ""},
		{"too short", typeString, length, text("é"),
			`min_length | temperature: "é" has 1 characters, fewer than the minimum length 2`},
		{"too long", typeString, length, text("abcd"),
			`max_length | temperature: "abcd" has 4 characters, more than the maximum length 3`},
		{"pattern is searched", typeString, digits, text("abc123def"), ""},
		{"pattern not found", typeString, digits, text("abc"),
			`pattern | temperature: "abc" does not match the pattern "[0-9]+"`},
		{"empty pattern", typeString, &setpointv1.Constraints{Pattern: ptr("")}, text(""), ""},
		{"enum", typeString, enum, text("green"), ""},
		{"enum converted", typeString, enum, choice("green"), ""},
		{"not in enum", typeString, enum, text("blue"),
			`enum | temperature: "blue" is not one of the values of enum "red", "green"`},
		{"not in a long enum", typeString, &setpointv1.Constraints{Enum: many}, text("x"), `enum | temperature: "x" ` +
			`is not one of the values of enum "0", "1", "2", "3", "4", "5", "6", "7", …`},
		{"choice", typeChoice, choices, choice("safe"), ""},
		{"not a choice", typeChoice, choices, choice("fast"),
			`choices | temperature: "fast" is not one of the choices "slow", "safe"`},
		{"module", typeModule, modules, module("cot"), ""},
		{"any module", typeModule, nil, module("anything"), ""},
		{"not an allowed module", typeModule, modules, text("exec"),
			`allowed_modules | temperature: "exec" is not one of the allowed modules "cot", "react"`},

		{"dimensions", typeEmbedding, three, embedding(1, 2, 3), ""},
		{"wrong dimensions", typeEmbedding, three, embedding(1, 2),
			`dimensions | temperature: an embedding of 2 dimensions does not have the required 3`},
		{"shape", typeTensor, matrix, tensor("int8", []int64{1, 2}, 1, 2), ""},
		{"open shape", typeTensor, matrix, tensor("int8", []int64{0, 2}), ""},
		{"wrong shape", typeTensor, matrix, tensor("int8", []int64{2, 1}, 1, 2),
			`shape | temperature: shape [2, 1] is not the required [-1, 2]`},
		{"wrong rank", typeTensor, matrix, tensor("int8", []int64{2}, 1, 2),
			`shape | temperature: shape [2] is not the required [-1, 2]`},
		{"wrong dtype", typeTensor, matrix, tensor("uint8", []int64{1, 2}, 1, 2),
			`dtype | temperature: dtype uint8 is not the required int8`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := define(t, tt.typ, tt.c).Accept("temperature", tt.v, limit)
			checkViolation(t, err, "temperature", tt.want)
		})
	}
}

// checkViolation compares an error with "constraint | message"; empty is none.
func checkViolation(t *testing.T, err error, variable, want string) {
	t.Helper()
	if want == "" {
		if err != nil {
			t.Errorf("refused: %v", err)
		}
		return
	}
	constraint, message, _ := strings.Cut(want, " | ")
	refusal := &Refusal{
		Reason:   setpointv1.ErrorReason_CONSTRAINT_VIOLATION,
		Message:  message,
		Metadata: map[string]string{"variable": variable, "constraint": constraint},
	}
	if diff := cmp.Diff(refusal, refusalOf(t, err)); diff != "" {
		t.Errorf("refusal (-want +got):\n%s", diff)
	}
}

// TestPatternWork has a text that would keep a pattern busy for minutes.
func TestPatternWork(t *testing.T) {
	t.Parallel()
	d := define(t, typeString, &setpointv1.Constraints{Pattern: ptr(`(a?){900}b`)})
	_, err := d.Accept("v", text(strings.Repeat("a", 4<<20)), limit)
	checkViolation(t, err, "v", `pattern | v: "`+strings.Repeat("a", 64)+
		`…" is too long to be searched for the pattern "(a?){900}b"`)
	if _, err := d.Accept("v", text("aab"), limit); err != nil {
		t.Errorf("a short text: %v", err)
	}
}

func TestMarshalConstraints(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		c    *setpointv1.Constraints
		want string
	}{
		{"nil", nil, `{}`},
		{"empty", &setpointv1.Constraints{}, `{}`},
		{"bounds", &setpointv1.Constraints{Min: ptr(0.0), Max: ptr(math.Inf(1)), Step: ptr(0.1)},
			`{"min":0,"max":"Infinity","step":0.1}`},
		{"text", &setpointv1.Constraints{MinLength: ptr(int64(0)), MaxLength: ptr(int64(1 << 60)), Pattern: ptr(`"\`)},
			`{"min_length":"0","max_length":"1152921504606846976","pattern":"\"\\"}`},
		{"lists", &setpointv1.Constraints{Choices: []string{"b", "a"}, AllowedModules: []string{""}},
			`{"choices":["b","a"],"allowed_modules":[""]}`},
		{"tensor", &setpointv1.Constraints{Shape: []int64{-1}, Dtype: ptr("int8")}, `{"shape":["-1"],"dtype":"int8"}`},
		{"empty schema", schemaText(t, `{}`), `{"json_schema":{}}`},
		{"schema", schemaText(t, `{"type": "object"}`), `{"json_schema":{"type":"object"}}`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := MarshalConstraints(tt.c)
			if err != nil {
				t.Fatalf("MarshalConstraints: %v", err)
			}
			if string(got) != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
			back, err := UnmarshalConstraints(got)
			if err != nil {
				t.Fatalf("UnmarshalConstraints: %v", err)
			}
			if tt.want == `{}` {
				if back != nil {
					t.Errorf("got %v back, want nil", back)
				}
				return
			}
			if diff := cmp.Diff(tt.c, back, protocmp.Transform()); diff != "" {
				t.Errorf("round trip (-want +got):\n%s", diff)
			}
		})
	}
}

func TestUnmarshalConstraintsErrors(t *testing.T) {
	t.Parallel()
	for _, data := range []string{``, `null`, `[]`, `{"min": "a"}`, `{"minimum": 1}`, `{`, `{"step": 1e400}`} {
		if c, err := UnmarshalConstraints([]byte(data)); err == nil {
			t.Errorf("UnmarshalConstraints(%s) = %v, want an error", data, c)
		}
	}
}

// TestDefinitionConcurrently has many writers use one definition, as the server's cache makes them.
func TestDefinitionConcurrently(t *testing.T) {
	t.Parallel()
	d := define(t, typeJSON, schemaText(t, `{"items": {"type": "integer"}}`))
	var group sync.WaitGroup
	for i := range 8 {
		group.Go(func() {
			good := i%2 == 0
			v := structpb.NewListValue(&structpb.ListValue{Values: []*structpb.Value{structpb.NewBoolValue(true)}})
			if good {
				v.GetListValue().Values[0] = structpb.NewNumberValue(float64(i))
			}
			for range 100 {
				if _, err := d.Accept("v", jsonOf(v), limit); (err == nil) != good {
					t.Errorf("%v: %v", v, err)
				}
			}
		})
	}
	group.Wait()
}
