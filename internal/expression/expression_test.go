package expression

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/testing/protocmp"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/value"
)

// world is the variables that the tests use, of every type and with every kind of name.
func world(t testing.TB) ([]Input, map[string]*setpointv1.Value) {
	t.Helper()
	variables := []struct {
		name  string
		typ   setpointv1.VariableType
		value *setpointv1.Value
	}{
		{"on", typeBoolean, boolean(true)},
		{"n", typeInteger, integer(7)},
		{"least", typeInteger, integer(math.MinInt64)},
		{"a", typeFloat, number(0.5)},
		{"nan", typeFloat, number(math.NaN())},
		{"inf", typeFloat, number(math.Inf(1))},
		{"s", typeString, text("héllo")},
		{"mode", typeChoice, choice("fast")},
		{"program", typeModule, module("cot")},
		{"v", typeEmbedding, embedding(3, 4, 0.5)},
		{"j", typeJSON, jsonText(t, `{"z": 1, "a": [1, 2.5, "x"], "m": {"k": null}, "b": true, "key": "z"}`)},
		{"three", typeJSON, jsonText(t, `[3, 1, 2]`)},
		{"list", typeJSON, jsonText(t, `[]`)},
		{"whole", typeJSON, jsonText(t, `3`)},
		{"part", typeJSON, jsonText(t, `3.5`)},
		{"weights", typeTensor, &setpointv1.Value{Kind: &setpointv1.Value_Tensor{Tensor: &setpointv1.Tensor{}}}},
		{"math", typeFloat, number(9)},
		{"strings", typeString, text("x")},
		{"size", typeInteger, integer(3)},
		{"int", typeInteger, integer(4)},
		{"in", typeInteger, integer(5)},
		{"for", typeInteger, integer(6)},
		{"deps", typeInteger, integer(8)},
		{"a.b", typeInteger, integer(9)},
		{"any name ☃ \"", typeInteger, integer(10)},
		{"@0", typeInteger, integer(11)},
	}
	inputs := make([]Input, 0, len(variables))
	values := map[string]*setpointv1.Value{}
	for _, v := range variables {
		inputs = append(inputs, Input{v.name, v.typ})
		values[v.name] = v.value
	}
	return inputs, values
}

// plain returns the inputs that expressions can read.
func plain(inputs []Input) []Input {
	return slices.DeleteFunc(slices.Clone(inputs), func(i Input) bool { return i.Type == typeTensor })
}

// compile parses and compiles an expression that must be right.
func compile(t testing.TB, text string, result setpointv1.VariableType, inputs []Input) *Program {
	t.Helper()
	s, err := Parse(text)
	if err != nil {
		t.Fatalf("Parse of %s: %v", text, err)
	}
	p, err := s.Compile(result, inputs)
	if err != nil {
		t.Fatalf("Compile of %s: %v", text, err)
	}
	return p
}

// show writes a value for a comparison: in JSON, after its kind.
func show(t testing.TB, v *setpointv1.Value) string {
	t.Helper()
	switch k := v.GetKind().(type) {
	case *setpointv1.Value_Number:
		return fmt.Sprintf("number %v", k.Number)
	case *setpointv1.Value_Embedding:
		return fmt.Sprintf("embedding %v", k.Embedding.GetValues())
	case *setpointv1.Value_Json:
		data, err := protojson.Marshal(k.Json)
		if err != nil {
			t.Fatal(err)
		}
		return "json " + strings.NewReplacer(", ", ",", ": ", ":").Replace(string(data))
	case *setpointv1.Value_Boolean:
		return fmt.Sprintf("boolean %v", k.Boolean)
	case *setpointv1.Value_Integer:
		return fmt.Sprintf("integer %v", k.Integer)
	case *setpointv1.Value_String_:
		return fmt.Sprintf("string %s", k.String_)
	}
	return fmt.Sprint(v)
}

// TestEval has what expressions yield.
func TestEval(t *testing.T) {
	t.Parallel()
	tests := []struct {
		typ  setpointv1.VariableType
		text string
		want string
	}{
		// Each type of variables.
		{typeBoolean, `!on`, `boolean false`},
		{typeInteger, `n * 2 - 1`, `integer 13`},
		{typeInteger, `n / 2 + n % 2`, `integer 4`},
		{typeInteger, `-n / 2 * 10 + -n % 2`, `integer -31`},
		{typeInteger, `int(2.9) * 10 + int(-2.9)`, `integer 18`},
		{typeFloat, `a * 2.0`, `number 1`},
		{typeFloat, `n`, `number 7`},
		{typeFloat, `nan`, `number NaN`},
		{typeFloat, `-inf`, `number -Inf`},
		{typeFloat, `a / 0.0`, `number +Inf`},
		{typeString, `s + "!"`, `string héllo!`},
		{typeString, `mode + "/" + program`, `string fast/cot`},
		{typeChoice, `on ? "fast" : "slow"`, `string fast`},
		{typeModule, `program`, `string cot`},
		{typeEmbedding, `v`, `embedding [3 4 0.5]`},
		{typeEmbedding, `v.map(x, x * 2.0) + [1.0]`, `embedding [6 8 1 1]`},
		{typeEmbedding, `[1, 2]`, `embedding [1 2]`},
		{typeEmbedding, `three`, `embedding [3 1 2]`},
		{typeEmbedding, `[nan, inf, 1u]`, `embedding [NaN +Inf 1]`},
		{typeEmbedding, `[]`, `embedding []`},
		{typeFloat, `v[0] + v[1]`, `number 7`},
		{typeInteger, `v.size() + size(v)`, `integer 6`},
		{typeJSON, `j`, `json {"a":[1,2.5,"x"],"b":true,"key":"z","m":{"k":null},"z":1}`},
		{typeJSON, `j.m`, `json {"k":null}`},
		{typeJSON, `{"n": n, "l": [a, s, null, on], "e": {}}`, `json {"e":{},"l":[0.5,"héllo",null,true],"n":7}`},
		{typeJSON, `v`, `json [3,4,0.5]`},
		{typeJSON, `[1] + three`, `json [1,3,1,2]`},
		{typeJSON, `n`, `json 7`},
		{typeJSON, `null`, `json null`},
		{typeJSON, `9007199254740992`, `json 9007199254740992`},

		// What only the evaluation can tell.
		{typeInteger, `whole`, `number 3`},
		{typeInteger, `part`, `number 3.5`}, // the definition of the variable refuses it
		{typeInteger, `j.a.size()`, `integer 3`},
		{typeInteger, `dyn(7u)`, `integer 7`},
		{typeInteger, `7u`, `integer 7`},
		{typeFloat, `j.a[1]`, `number 2.5`},
		{typeFloat, `j["a"][whole - 2.0]`, `number 2.5`},
		{typeString, `j.a[2]`, `string x`},
		{typeBoolean, `j.b`, `boolean true`},
		{typeFloat, `j[j.key]`, `number 1`},
		{typeBoolean, `j.z == 1 && j.z == 1.0 && j.z < 2 && j.m.k == null`, `boolean true`},

		// Numbers of different types can be compared, not calculated with.
		{typeBoolean, `a < 1 && n > 6.5 && 1u < n`, `boolean true`},
		{typeFloat, `double(n) + a`, `number 7.5`},
		{typeInteger, `int(a * 5.0)`, `integer 2`},
		{typeInteger, `int("12") + int(3u)`, `integer 15`},

		// Names.
		{typeInteger, `deps["n"]`, `integer 7`},
		{typeFloat, `deps["a"] * 2.0`, `number 1`},
		{typeInteger, `deps.n + deps["n"] + n`, `integer 21`},
		{typeInteger, `deps["int"] + deps["in"] + deps["for"] + deps["deps"]`, `integer 23`},
		{typeInteger, `deps["a.b"] + deps["any name ☃ \""] + deps["@0"]`, `integer 30`},
		{typeInteger, `deps['''n''']`, `integer 7`},
		{typeInteger, `.n + .deps["n"]`, `integer 14`},
		{typeFloat, `math + math.abs(-1.0) + math.greatest(a, 3.0)`, `number 13`},
		{typeFloat, `math.least(math, deps["math"], deps.math)`, `number 9`},
		{typeString, `strings + strings.quote(strings)`, `string x"x"`},
		{typeInteger, `size + size([1, 2]) + [1].size()`, `integer 6`},
		{typeBoolean, `type(n) == int && type(a) == double`, `boolean true`},
		{typeFloat, `j.a[0]`, `number 1`}, // and not the variable a
		{typeBoolean, `has(j.a) && !has(j.nothing)`, `boolean true`},
		{typeBoolean, `has(deps.j.a) && !has(deps.j.nothing)`, `boolean true`},

		// The map of all inputs.
		{typeBoolean, `has(deps.n) && !has(deps.nothing)`, `boolean true`},
		{typeBoolean, `"a.b" in deps && !("nothing" in deps)`, `boolean true`},
		{typeInteger, `deps["a" + ".b"]`, `integer 9`},
		{typeInteger, `deps[j.key + ""] == null ? 1 : 2`, ``},
		{typeInteger, `deps.size()`, `integer 25`},
		{typeBoolean, `deps.exists(k, k == "any name ☃ \"") && deps.all(k, k.size() > 0)`, `boolean true`},
		{typeJSON, `deps.filter(k, type(deps[k]) == double)`, `json ["a","inf","math","nan","part","whole"]`},
		{typeFloat, `[deps].map(d, d["a"])[0] + deps.a`, `number 1`},

		// Scope.
		{typeEmbedding, `v.map(a, a + 1.0) + [a]`, `embedding [4 5 1.5 0.5]`},
		{typeEmbedding, `[a].map(a, a + 1.0)`, `embedding [1.5]`},
		{typeEmbedding, `v.map(x, v.map(a, a + x)[0] + a)`, `embedding [6.5 7.5 4]`},
		{typeEmbedding, `v.map(a, .a + a)`, `embedding [3.5 4.5 1]`},
		{typeInteger, `[1].map(deps, deps + 1)[0] + deps["n"]`, `integer 9`},
		{typeInteger, `[{"n": 1}].map(deps, deps["n"] + deps.n)[0]`, `integer 2`},
		{typeInteger, `[{"n": 1}].map(deps, deps["n"] + .deps["n"])[0]`, `integer 8`},
		{typeBoolean, `[true].all(n, n) && n == 7`, `boolean true`},
		{typeBoolean, `[n].exists(n, n == 7) && [n].exists_one(x, x == n)`, `boolean true`},
		{typeJSON, `three.filter(n, n > 1.0).map(n, n > 2.0, n * 2.0)`, `json [6]`},
		{typeInteger, `[1, 2].map(math, math.abs(-1) + math)[1]`, `integer 3`},

		// Maps are gone through in the order of their keys.
		{typeJSON, `j.map(k, k)`, `json ["a","b","key","m","z"]`},
		{typeJSON, `{"z": 1, "b": 2, "a": 3}.map(k, k)`, `json ["a","b","z"]`},
		{typeString, `"%s".format([{2: "c", 10: "d", 1: "b"}])`, `string {1: b, 10: d, 2: c}`},
		{typeJSON, `{true: 1, "x": 2, 3: 3, 18446744073709551615u: 4, 2u: 5, false: 6}.map(k, string(k))`,
			`json ["false","true","2","3","18446744073709551615","x"]`},
		{typeInteger, `{1: 10, 2: 20}[dyn(2.0)] + {1u: 5}[dyn(1)]`, `integer 25`},
		{typeBoolean, `{"a": 1, "b": [2]} == {"b": [2.0], "a": 1u} && {"a": 1} != {"a": 2} && {"a": 1} != {"b": 1}`,
			`boolean true`},
		{typeBoolean, `j.m == {"k": null} && !(j == j.m) && j != 1`, `boolean true`},
		{typeBoolean, `"z" in j && !("y" in j) && 1.0 in three && !(9 in three)`, `boolean true`},
		{typeInteger, `{n + 1: "x"}.map(k, k)[0]`, `integer 8`},

		// Texts.
		{typeString, `"a-b-c".replace("-", "+") + "aaa".replace("a", "b", 2) + "ab".replace("", "-")`,
			`string a+b+cbba-a-b-`},
		{typeString, `"a,b,c".split(",").join("|") + "abc".split("").join() + "a,b".split(",", 1)[0]`,
			`string a|b|cabca,b`},
		{typeInteger, `"a,b".split(",", 0).size() + "a,b".split(",", -1).size()`, `integer 2`},
		{typeInteger, `s.size() + s.indexOf("l") + s.lastIndexOf("l")`, `integer 10`},
		{typeString, `s.substring(1, 3).upperAscii() + s.charAt(0) + s.reverse() + " x ".trim()`, `string éLholléhx`},
		{typeString, `"%s %d %.2f %x %e".format([mode, n, a, 255, 1.5])`, `string fast 7 0.50 ff 1.500000e+00`},
		{typeString, `strings.quote("a\"\n")`, `string "a\"\n"`},
		{typeBoolean, `s.matches("^h.*o$") && matches(s, "l+") && !s.matches(mode)`, `boolean true`},
		{typeBoolean, `s.startsWith("h") && s.endsWith("o") && s.contains("él") && "b" > "a"`, `boolean true`},
		{typeString, `string(n) + string(a) + string(on) + string(b"x")`, `string 70.5truex`},

		// Mathematics, and what has no result of its own.
		{typeFloat, `math.sqrt(math) + math.round(a) + math.ceil(0.1) + math.floor(0.9)`, `number 5`},
		{typeFloat, `math.greatest(v) + math.least(v)`, `number 4.5`},
		{typeInteger, `math.bitAnd(6, 3) + math.bitShiftLeft(1, 3) + math.sign(-5)`, `integer 9`},
		{typeBoolean, `math.isNaN(nan) && math.isInf(inf) && math.isFinite(a)`, `boolean true`},
		{typeInteger, `timestamp("2026-01-02T03:04:05Z").getFullYear()`, `integer 2026`},
		{typeInteger, `(timestamp("2026-01-02T00:00:00Z") - timestamp("2026-01-01T00:00:00Z")).getHours()`, `integer 24`},
		{typeInteger, `bytes(s).size()`, `integer 6`},

		// An error that does not matter.
		{typeBoolean, `n == 7 || n / 0 == 1`, `boolean true`},
		{typeBoolean, `n / 0 == 1 || n == 7`, `boolean true`},
		{typeBoolean, `has(j.nothing) && j.nothing.more == 1`, `boolean false`},
	}
	inputs, values := world(t)
	inputs = plain(inputs)
	for _, tt := range tests {
		t.Run(tt.text, func(t *testing.T) {
			t.Parallel()
			p := compile(t, tt.text, tt.typ, inputs)
			v, cost, err := p.Eval(t.Context(), values)
			if tt.want == "" {
				if err == nil {
					t.Fatalf("got %s, want an error", show(t, v))
				}
				return
			}
			if err != nil {
				t.Fatalf("Eval: %v", err)
			}
			if got := show(t, v); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
			if cost == 0 || cost > 1000 {
				t.Errorf("the cost is %d", cost)
			}
		})
	}
}

// TestEvalErrors has what cannot be computed, with the message.
func TestEvalErrors(t *testing.T) {
	t.Parallel()
	tests := []struct {
		typ  setpointv1.VariableType
		text string
		want string
	}{
		{typeInteger, `n / 0`, `1:3: division by zero`},
		{typeInteger, `1 + n % (n - 7)`, `1:7: modulus by zero`},
		{typeInteger, `least - n`, `1:7: integer overflow`},
		{typeInteger, "1 +\n  -least", `2:3: integer overflow`},
		{typeInteger, `n * 9223372036854775807`, `1:3: integer overflow`},
		{typeInteger, `math.abs(least)`, `1:9: integer overflow`},
		{typeInteger, `int(inf)`, `1:4: integer overflow`},
		{typeInteger, `int(s)`, `1:4: "héllo" cannot be converted to int`},
		{typeFloat, `v[3]`, `1:2: index out of bounds: 3`},
		{typeFloat, `v[-1]`, `1:2: index out of bounds: -1`},
		{typeFloat, `j.a[7]`, `1:4: index out of bounds: 7`},
		{typeJSON, `j.nothing`, `1:2: no such key: nothing`},
		{typeJSON, `j[s]`, `1:2: no such key: héllo`},
		{typeJSON, `j[three]`, `1:2: an index is a number, and a key of a map is a string, a number or a bool`},
		{typeJSON, `deps[s]`, `1:5: no such key: héllo`},
		{typeInteger, `whole + 1`, `1:7: + does not apply to (double, int); int and double do not mix: ` +
			`write 2.0 instead of 2, or convert with double(...) or int(...)`},
		{typeFloat, `j.key * 2.0`, `1:7: * does not apply to (string, double)`},
		{typeFloat, `-j.key`, `1:1: - does not apply to (string)`},
		{typeString, `j.z.upperAscii()`, `1:15: upperAscii does not apply to (double)`},
		{typeString, `j.a.join()`, `1:9: join takes a list of strings, but element 0 is a double`},
		{typeFloat, `math.greatest(j.a)`, `1:14: math.greatest does not apply to (list)`},
		{typeBoolean, `j.z ? true : false`, `1:5: no such overload`},
		{typeBoolean, `j.z && true`, `1:5: no such overload`},
		{typeJSON, `whole.map(x, x)`, `1:1: a macro goes through a list or the keys of a map, not through a double`},
		{typeJSON, `{"a": 1, "a": 2}`, `1:1: the map has the key "a" twice`},
		{typeJSON, `{n: 1, 7.0: 2}`, ``},
		{typeJSON, `{dyn([1]): 1}`, `1:1: a key of a map is a string, an int, a uint or a bool, not a list`},
		{typeJSON, `{dyn(1.5): 1}`, ``},
		{typeJSON, `{dyn(1): 1}`,
			`the expression yields a map with a key of type int, but the keys of a JSON object are strings`},
		{typeBoolean, `s.matches(s + "(")`,
			"1:10: the pattern \"héllo(\" does not compile: error parsing regexp: missing closing ): `héllo(`"},
		{typeString, `s.substring(9)`, `1:12: index out of range: 9`},
		{typeString, `(mode + "%d").format([s])`, ``},

		// Results that do not fit.
		{typeBoolean, `whole`, `the expression yields a value of type double, but the variable is of type boolean`},
		{typeInteger, `j.key`, `the expression yields a value of type string, but the variable is of type integer`},
		{typeFloat, `j.a`, `the expression yields a value of type list, but the variable is of type float`},
		{typeString, `whole`, `the expression yields a value of type double, but the variable is of type string`},
		{typeChoice, `j`, `the expression yields a value of type map, but the variable is of type choice`},
		{typeInteger, `j.m.k`, `the expression yields a value of type null, but the variable is of type integer`},
		{typeInteger, `18446744073709551615u`,
			`the expression yields 18446744073709551615, which does not fit in an integer of 64 bits`},
		{typeEmbedding, `whole`, `the expression yields a value of type double, but the variable is of type embedding`},
		{typeEmbedding, `j.a`,
			`the expression yields a list whose element 2 is of type string, but the variable is of type embedding`},
		{typeEmbedding, `[1.0, -1e39]`,
			`the expression yields a list whose element 1, -1e+39, is too large for a float of 32 bits`},
		{typeJSON, `[nan]`, `the expression yields NaN in JSON, which has no such number`},
		{typeJSON, `-inf`, `the expression yields -Inf in JSON, which has no such number`},
		{typeJSON, `deps`, `the expression yields +Inf in JSON, which has no such number`},
		{typeJSON, `9007199254740993`,
			`the expression yields 9007199254740993 in JSON, whose numbers are exact up to 2^53 only: ` +
				`use double(...) or string(...)`},
		{typeJSON, `[-9007199254740993]`,
			`the expression yields -9007199254740993 in JSON, whose numbers are exact up to 2^53 only: ` +
				`use double(...) or string(...)`},
		{typeJSON, `18446744073709551615u`,
			`the expression yields 18446744073709551615 in JSON, whose numbers are exact up to ` +
				`2^53 only: use double(...) or string(...)`},
		{typeJSON, `{"t": dyn(timestamp(0))}`,
			`the expression yields a value of type google.protobuf.Timestamp, which JSON does not have`},
		{typeJSON, `dyn(b"x")`, `the expression yields a value of type bytes, which JSON does not have`},
		{typeJSON, `dyn(int)`, `the expression yields a value of type type, which JSON does not have`},
	}
	inputs, values := world(t)
	inputs = plain(inputs)
	for _, tt := range tests {
		t.Run(tt.text, func(t *testing.T) {
			t.Parallel()
			p := compile(t, tt.text, tt.typ, inputs)
			v, _, err := p.Eval(t.Context(), values)
			var got *EvalError
			if !errors.As(err, &got) {
				t.Fatalf("got %v and error %v, want an EvalError", v, err)
			}
			checkMessage(t, got.Message)
			if tt.want != "" && got.Message != tt.want {
				t.Errorf("got  %s\nwant %s", got.Message, tt.want)
			}
		})
	}
}

// checkMessage checks what holds for every message.
func checkMessage(t testing.TB, message string) {
	t.Helper()
	if message == "" || len(message) > maxMessage || strings.ContainsAny(message, "\n\r\x00") {
		t.Errorf("the message is not one line of at most %d bytes: %q", maxMessage, message)
	}
	for _, noise := range []string{"types.", "interpreter", "@result", "ERROR:"} {
		if strings.Contains(message, noise) {
			t.Errorf("the message has %q in it: %s", noise, message)
		}
	}
}

// TestErrors has what is refused when it is registered, with the message.
func TestErrors(t *testing.T) {
	t.Parallel()
	const nesting = `the expression nests deeper than 250 levels; every operator in a chain is one`
	tests := []struct {
		typ  setpointv1.VariableType
		text string
		want string
	}{
		// Not CEL.
		{typeInteger, ``, `the expression is empty`},
		{typeInteger, `n +`, `1:4: syntax error: mismatched input '<EOF>'`},
		{typeInteger, "n +\n  * 2", `2:3: syntax error: extraneous input '*'`},
		{typeInteger, `n; n`, `1:2: syntax error: token recognition error at: ';'`},
		{typeInteger, `"abc`, ``},
		{typeInteger, `for + 1`, `1:1: reserved identifier: for`},
		{typeInteger, `deps.?n`, `1:5: unsupported syntax '.?'`},
		{typeInteger, `deps[?"n"]`, `1:5: unsupported syntax '[?'`},
		{typeInteger, `has(n)`, `1:5: invalid argument to has() macro`},
		{typeInteger, `has(deps["n"])`, `1:9: invalid argument to has() macro`},
		{typeInteger, "\xff", `the expression is not valid UTF-8`},
		{typeInteger, `google.protobuf.Int64Value{value: 1}`,
			`1:27: messages like google.protobuf.Int64Value{...} cannot be made; ` +
				`a map is written {"key": value}`},

		// Bounds.
		{typeString, `"` + strings.Repeat("x", MaxBytes) + `"`, `an expression has at most 4096 bytes, not 4098`},
		{typeInteger, strings.Repeat("(", 300) + "n" + strings.Repeat(")", 300), nesting},
		{typeInteger, "n" + strings.Repeat("+n", 300), nesting},
		{typeBoolean, "on" + strings.Repeat("||on", 1000), `the expression has more than 1500 parts`},
		{typeInteger, `math.greatest(` + strings.Repeat("n,", 1600) + `n)`,
			`1:14: the expression has more than 1500 parts`},
		{typeJSON, strings.Repeat("[", 33) + strings.Repeat("]", 33), `lists and maps lie in each other deeper than 32 levels`},
		{typeJSON, `[` + strings.Repeat("[],", 64) + `{}]`,
			`the expression has more than 64 macros, empty lists and empty maps`},

		// Names.
		{typeFloat, `a + nothing`, `1:5: undeclared reference to "nothing": there is no such variable`},
		{typeFloat, `deps["no such"] + a`, `1:5: undeclared reference to "no such": there is no such variable`},
		{typeFloat, `a + deps.nothing`, `1:9: undeclared reference to "nothing": there is no such variable`},
		{typeFloat, `v.map(x, x)[0] + x`, `1:18: undeclared reference to "x": there is no such variable`},
		{typeFloat, `nothing(a)`, `1:8: undeclared reference to 'nothing'`},
		{typeFloat, `a.nothing()`, `1:10: undeclared reference to 'nothing'`},
		{typeFloat, `__result__ + @result`, ``},
		{typeFloat, `weights`, `1:1: "weights" is a tensor, which expressions cannot read`},
		{typeFloat, `a + deps["weights"]`, `1:9: "weights" is a tensor, which expressions cannot read`},
		{typeFloat, `deps[s]`,
			`deps without a literal key uses all dependencies, and "weights" is a tensor, which expressions cannot read`},

		// Types.
		{typeFloat, `a * 2`,
			`1:3: found no matching overload for '*' applied to '(double, int)'; int and double do not mix: ` +
				`write 2.0 instead of 2, or convert with double(...) or int(...)`},
		{typeFloat, `deps["a"] * n`,
			`1:11: found no matching overload for '*' applied to '(double, int)'; int and double do not mix: ` +
				`write 2.0 instead of 2, or convert with double(...) or int(...)`},
		{typeBoolean, `a == 1`,
			`1:3: found no matching overload for '==' applied to '(double, int)'; int and double do not mix: ` +
				`write 2.0 instead of 2, or convert with double(...) or int(...)`},
		{typeFloat, `on ? a : s`, `1:4: found no matching overload for '?:' applied to '(bool, double, string)'`},
		{typeFloat, `s[0]`, `1:2: found no matching overload for '[]' applied to '(string, int)'`},
		{typeFloat, `deps[0]`, ``},
		{typeFloat, `!a`, `1:1: found no matching overload for '!' applied to '(double)'`},
		{typeFloat, `a.map(x, x)`, ``},
		{typeFloat, `a.b`, `1:2: type 'double' does not support field selection`},
		{typeJSON, `{[1]: 1}`, `1:2: found no matching overload for the key of a map applied to '(list(int))'`},
		{typeJSON, `{1.5: 1}`, ``},
		{typeBoolean, `s.matches("a(")`,
			"1:11: the pattern \"a(\" does not compile: error parsing regexp: missing closing ): `a(`"},
		{typeBoolean, `s.matches("((a{99}){99}){99}")`, ``},
		{typeBoolean, `s.matches("(a{99}){9}(b{99}){9}")`, ``},
		{typeString, `"%d".format([s])`,
			`1:14: error during formatting: decimal clause can only be used on ints, uints, and doubles, was given string`},
		{typeString, `"%.101f".format([a])`, `1:16: could not parse formatting clause: error while parsing precision: ` +
			`precision 101 exceeds maximum allowed precision 100`},
		{typeInteger, `timestamp(0).getHours("Europe/Berlin")`,
			`1:22: found no matching overload for 'getHours' applied to 'timestamp.(string)'`},

		{typeJSON, `list + [1]`,
			`1:6: found no matching overload for '+' applied to '(type(list(dyn)), list(int))'; list is a type: ` +
				`a variable with that name is deps["list"]`},
		{typeJSON, `j[list]`, `an index is a number, and a key of a map is a string, a number or a bool`},

		// Results.
		{typeBoolean, `n`, `the expression yields int, but the variable is of type boolean`},
		{typeInteger, `a`, `the expression yields double, but the variable is of type integer: use int(...)`},
		{typeInteger, `s`, `the expression yields string, but the variable is of type integer: use int(...)`},
		{typeInteger, `null`, `the expression yields null, but the variable is of type integer`},
		{typeFloat, `s`, `the expression yields string, but the variable is of type float: use double(...)`},
		{typeString, `n`, `the expression yields int, but the variable is of type string: use string(...)`},
		{typeChoice, `on`, `the expression yields bool, but the variable is of type choice`},
		{typeModule, `v`, `the expression yields list(double), but the variable is of type module`},
		{typeEmbedding, `a`, `the expression yields double, but the variable is of type embedding`},
		{typeEmbedding, `[s]`, `the expression yields list(string), but the variable is of type embedding`},
		{typeJSON, `{1: n}`,
			`the expression yields map(int, int), but the variable is of type json: the keys of a JSON object are strings`},
		{typeJSON, `b"x"`, `the expression yields bytes, but the variable is of type json`},
		{typeJSON, `int`, `the expression yields type(int), but the variable is of type json; int is a type: ` +
			`a variable with that name is deps["int"]`},
		{typeJSON, `timestamp(0)`, `the expression yields timestamp, but the variable is of type json`},
		{typeJSON, `[duration("1s")]`, `the expression yields list(duration), but the variable is of type json`},
		{typeString, `timestamp(0)`,
			`the expression yields timestamp, but the variable is of type string: use string(...)`},
		{typeTensor, `n`, `the value of a tensor cannot be computed by an expression`},
		{0, `n`, `the value of a variable of an unknown type cannot be computed by an expression`},
	}
	inputs, _ := world(t)
	for _, tt := range tests {
		t.Run(shorten(tt.text, 40), func(t *testing.T) {
			t.Parallel()
			s, err := Parse(tt.text)
			if err == nil {
				_, err = s.Compile(tt.typ, inputs)
			}
			var got *Error
			if !errors.As(err, &got) {
				t.Fatalf("got error %v, want an Error", err)
			}
			checkMessage(t, got.Message)
			if tt.want != "" && got.Message != tt.want {
				t.Errorf("got  %s\nwant %s", got.Message, tt.want)
			}
		})
	}
}

// TestNames has what an expression may refer to, and what it does.
func TestNames(t *testing.T) {
	t.Parallel()
	tests := []struct {
		text       string
		candidates []string
		any        bool
	}{
		{`1 + 2`, nil, false},
		{`n + a + n`, []string{"a", "n"}, false},
		{`deps["a.b"] + deps.n`, []string{"a.b", "n"}, false},
		{`deps["n"] + n`, []string{"n"}, false},
		{`.n + .deps.a`, []string{"a", "n"}, false},
		{`v.map(a, a + 1.0) + [a]`, []string{"a", "v"}, false},
		{`v.map(a, a + 1.0)`, []string{"v"}, false},
		{`v.map(x, v.map(y, x + y + a)[0])`, []string{"a", "v"}, false},
		{`v.map(a, .a)`, []string{"a", "v"}, false},
		{`[n].all(n, n == 1)`, []string{"n"}, false},
		{`math.abs(a) + math.greatest(a, 1.0)`, []string{"a"}, false},
		{`math.abs(math) + strings.quote(s)`, []string{"math", "s"}, false},
		{`math.size()`, []string{"math"}, false},
		{`int(a) + size(s) + (type(a) == double ? 1 : 2)`, []string{"a", "s"}, false},
		{`j.a.b[n]`, []string{"j", "n"}, false},
		{`has(j.a) && has(deps.j.a)`, []string{"j"}, false},
		{`{"x": n, s: [a]}`, []string{"a", "n", "s"}, false},
		{`[{}].map(deps, deps["n"])`, nil, false},
		{`"n" in deps`, nil, true},
		{`has(deps.n)`, nil, true},
		{`deps[s] + n`, []string{"n", "s"}, true},
		{`deps["a" + "b"]`, nil, true},
		{`deps.all(k, deps[k] == n)`, []string{"n"}, true},
		{`deps.size() + deps.size`, []string{"size"}, true},
	}
	inputs, _ := world(t)
	for _, tt := range tests {
		t.Run(tt.text, func(t *testing.T) {
			t.Parallel()
			s, err := Parse(tt.text)
			if err != nil {
				t.Fatalf("Parse: %v", err)
			}
			if diff := cmp.Diff(tt.candidates, s.Candidates(), emptyIsNil); diff != "" {
				t.Errorf("candidates (-want +got):\n%s", diff)
			}
			p, err := s.Compile(typeJSON, plain(inputs))
			if err != nil {
				// What they are is known before what they are good for.
				return
			}
			if diff := cmp.Diff(tt.candidates, p.Uses(), emptyIsNil); diff != "" {
				t.Errorf("uses (-want +got):\n%s", diff)
			}
			if p.UsesAny() != tt.any {
				t.Errorf("uses any: %v, want %v", p.UsesAny(), tt.any)
			}
		})
	}
}

var emptyIsNil = cmp.Transformer("emptyIsNil", func(list []string) []string {
	if len(list) == 0 {
		return nil
	}
	return list
})

// TestInputs has what an evaluation is given.
func TestInputs(t *testing.T) {
	t.Parallel()
	p := compile(t, "n + 1", typeInteger, []Input{{"n", typeInteger}, {"w", typeTensor}, {"x", typeFloat}})
	tests := []struct {
		name   string
		values map[string]*setpointv1.Value
		want   string
	}{
		{"only what is used", map[string]*setpointv1.Value{"n": integer(1)}, ""},
		{"others are ignored", map[string]*setpointv1.Value{"n": integer(1), "x": text("no float"), "y": nil}, ""},
		{"none", nil, `missing input "n"`},
		{"nil", map[string]*setpointv1.Value{"n": nil}, `missing input "n"`},
		{"no kind", map[string]*setpointv1.Value{"n": {}}, `missing input "n"`},
		{"another type", map[string]*setpointv1.Value{"n": text("1")}, `the value of "n" is not of type integer`},
		{"json", map[string]*setpointv1.Value{"n": jsonText(t, "1")}, `the value of "n" is not of type integer`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, _, err := p.Eval(t.Context(), tt.values)
			var got *EvalError
			switch {
			case tt.want == "" && err != nil:
				t.Errorf("Eval: %v", err)
			case tt.want != "" && (!errors.As(err, &got) || got.Message != tt.want):
				t.Errorf("got error %v, want %s", err, tt.want)
			}
		})
	}
	t.Run("all of them", func(t *testing.T) {
		t.Parallel()
		p := compile(t, `"x" in deps`, typeBoolean, []Input{{"n", typeInteger}, {"x", typeFloat}})
		_, _, err := p.Eval(t.Context(), map[string]*setpointv1.Value{"x": number(1)})
		if got := fmt.Sprint(err); got != `missing input "n"` {
			t.Errorf("got error %s", got)
		}
	})
	t.Run("an integer for a float", func(t *testing.T) {
		t.Parallel()
		p := compile(t, `x / 2.0`, typeFloat, []Input{{"x", typeFloat}})
		v, _, err := p.Eval(t.Context(), map[string]*setpointv1.Value{"x": integer(1)})
		if err != nil || v.GetNumber() != 0.5 {
			t.Errorf("got %v and error %v", v, err)
		}
	})
}

// TestSourceIsReusable compiles one source for several variables, at the same time.
func TestSourceIsReusable(t *testing.T) {
	t.Parallel()
	s, err := Parse(`x + x`)
	if err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	for range 4 {
		for input, result := range map[*setpointv1.Value]setpointv1.VariableType{
			integer(2): typeInteger, number(2): typeFloat, text("2"): typeString,
		} {
			group.Go(func() {
				p, err := s.Compile(result, []Input{{"x", result}})
				if err != nil {
					t.Errorf("Compile: %v", err)
					return
				}
				if _, _, err := p.Eval(t.Context(), map[string]*setpointv1.Value{"x": input}); err != nil {
					t.Errorf("Eval: %v", err)
				}
			})
		}
	}
	group.Wait()
}

// TestConcurrentEval evaluates one program many times at the same time, with different inputs.
func TestConcurrentEval(t *testing.T) {
	t.Parallel()
	const text = `{"sum": [n, 1].map(x, x + n), "m": j.map(k, j[k]), "s": s.matches("a+" + s), "e": s == "a0" || n / 0 == 1}`
	inputs := []Input{{"n", typeInteger}, {"j", typeJSON}, {"s", typeString}}
	p := compile(t, text, typeJSON, inputs)
	var group sync.WaitGroup
	for i := range 8 {
		values := map[string]*setpointv1.Value{
			"n": integer(int64(i)), "s": numbered(i), "j": jsonText(t, fmt.Sprintf(`{"b": %d, "a": [%d]}`, i, i)),
		}
		want, _, wantErr := p.Eval(t.Context(), values)
		for range 2 {
			group.Go(func() {
				for range 50 {
					got, _, err := p.Eval(t.Context(), values)
					if fmt.Sprint(err) != fmt.Sprint(wantErr) {
						t.Errorf("got error %v, want %v", err, wantErr)
					}
					if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
						t.Errorf("result (-want +got):\n%s", diff)
					}
				}
			})
		}
	}
	group.Wait()
}

// numbered makes a text of a number.
func numbered(i int) *setpointv1.Value {
	return text(fmt.Sprint("a", i))
}

// TestDeterminism evaluates what goes through maps again and again: results, costs and errors must be the same.
func TestDeterminism(t *testing.T) {
	t.Parallel()
	var members []string
	for i := range 50 {
		members = append(members, fmt.Sprintf(`"k%d": %d`, i, i))
	}
	object := jsonText(t, "{"+strings.Join(members, ",")+"}")
	for _, text := range []string{
		`j.map(k, k)`,
		`j.filter(k, j[k] > 25.0)`,
		`"%s".format([j])`,
		`{"b": 1, "c": 2, "a": 3, "e": 4, "d": 5}.map(k, k)`,
		`j.map(k, 1.0 / j[k]).map(x, int(x))`,
		`j.exists(k, int(k) == 1)`,
		`j.map(k, [k].all(x, int(x) == 1))`,
		`[j, j].map(o, o.map(k, o[k] == 7.0 ? [nothing][1] : 1))`,
		`deps.map(k, k == "j" ? 0 : int(k))`,
		`j == {"k1": 1}`,
		`j + j`,
		`[j].join()`,
	} {
		t.Run(text, func(t *testing.T) {
			t.Parallel()
			p := compile(t, text, typeJSON, []Input{{"j", typeJSON}, {"nothing", typeJSON}})
			values := map[string]*setpointv1.Value{"j": object, "nothing": jsonText(t, "null")}
			want, wantCost, wantErr := p.Eval(t.Context(), values)
			for range 30 {
				got, cost, err := p.Eval(t.Context(), values)
				if cost != wantCost || fmt.Sprint(err) != fmt.Sprint(wantErr) {
					t.Fatalf("got cost %d and error %v, want cost %d and error %v", cost, err, wantCost, wantErr)
				}
				if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
					t.Fatalf("result (-want +got):\n%s", diff)
				}
			}
		})
	}
}

// TestContext ends evaluations whose context is done: before they begin, and on the way.
func TestContext(t *testing.T) {
	t.Parallel()
	inputs := []Input{{"v", typeEmbedding}}
	values := map[string]*setpointv1.Value{"v": embedding(make([]float32, 3000)...)}
	cause := errors.New("because")
	check := func(t *testing.T, err error) {
		t.Helper()
		var failed *EvalError
		if !errors.Is(err, cause) || errors.As(err, &failed) {
			t.Errorf("got error %v, want the cause", err)
		}
	}
	t.Run("before", func(t *testing.T) {
		t.Parallel()
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(cause)
		_, _, err := compile(t, "v[0]", typeFloat, inputs).Eval(ctx, values)
		check(t, err)
	})
	t.Run("on the way", func(t *testing.T) {
		t.Parallel()
		inner, cancel := context.WithCancelCause(t.Context())
		ctx := &countdown{Context: inner, left: 3, cancel: func() { cancel(cause) }}
		_, cost, err := compile(t, "v.all(x, v.exists(y, y == x)) || true", typeBoolean, inputs).Eval(ctx, values)
		check(t, err)
		if cost == 0 || cost >= CostLimit {
			t.Errorf("the cost is %d", cost)
		}
	})
}

// countdown is a context that ends when it was asked a number of times.
type countdown struct {
	context.Context
	left   int
	cancel func()
}

func (c *countdown) Err() error {
	if c.left--; c.left == 0 {
		c.cancel()
	}
	return c.Context.Err()
}

// TestAccepted has the definitions of variables accept what expressions yield.
func TestAccepted(t *testing.T) {
	t.Parallel()
	tests := []struct {
		typ  setpointv1.VariableType
		text string
		want string
	}{
		{typeBoolean, `j.b`, `true`},
		{typeInteger, `n`, `7`},
		{typeInteger, `-9223372036854775808`, `-9223372036854775808`},
		{typeInteger, `whole`, `3`},
		{typeFloat, `n`, `7`},
		{typeFloat, `nan`, `"NaN"`},
		{typeFloat, `-inf`, `"-Infinity"`},
		{typeFloat, `-0.0`, `"-0"`},
		{typeString, `mode`, `"fast"`},
		{typeChoice, `program == "cot" ? "fast" : "slow"`, `"fast"`},
		{typeModule, `mode`, `"fast"`},
		{typeJSON, `{"b": [n, a], "a": null}`, `{"a":null,"b":[7,0.5]}`},
		{typeJSON, `whole`, `3`},
	}
	inputs, values := world(t)
	for _, tt := range tests {
		t.Run(value.TypeName(tt.typ)+" "+tt.text, func(t *testing.T) {
			t.Parallel()
			v, _, err := compile(t, tt.text, tt.typ, plain(inputs)).Eval(t.Context(), values)
			if err != nil {
				t.Fatalf("Eval: %v", err)
			}
			var constraints *setpointv1.Constraints
			if tt.typ == typeChoice {
				constraints = &setpointv1.Constraints{Choices: []string{"fast", "slow"}}
			}
			def, err := value.NewDefinition(tt.typ, constraints)
			if err != nil {
				t.Fatal(err)
			}
			stored, err := def.Accept("x", v, 1<<20)
			if err != nil {
				t.Fatalf("Accept: %v", err)
			}
			if got := string(stored.JSON); got != tt.want {
				t.Errorf("stored %s, want %s", got, tt.want)
			}
		})
	}
	t.Run("embedding", func(t *testing.T) {
		t.Parallel()
		v, _, err := compile(t, `v.map(x, x / 2.0)`, typeEmbedding, inputs).Eval(t.Context(), values)
		if err != nil {
			t.Fatalf("Eval: %v", err)
		}
		if diff := cmp.Diff(embedding(1.5, 2, 0.25), v, protocmp.Transform()); diff != "" {
			t.Errorf("result (-want +got):\n%s", diff)
		}
	})
}

// TestTypeNames keeps the names of types those of the rest of the service.
func TestTypeNames(t *testing.T) {
	t.Parallel()
	for n := range setpointv1.VariableType_name {
		if typ := setpointv1.VariableType(n); n != 0 && variableTypeName(typ) != value.TypeName(typ) {
			t.Errorf("%v is called %s, elsewhere %s", typ, variableTypeName(typ), value.TypeName(typ))
		}
	}
}
