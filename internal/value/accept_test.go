package value

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/structpb"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// TestAcceptPlain has what each type without a payload takes, and how it is stored.
func TestAcceptPlain(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		typ  setpointv1.VariableType
		v    *setpointv1.Value
		want string
	}{
		{"true", typeBoolean, boolean(true), `true`},
		{"false", typeBoolean, boolean(false), `false`},
		{"json true", typeBoolean, jsonText(t, `true`), `true`},

		{"integer", typeInteger, integer(-7), `-7`},
		{"least integer", typeInteger, integer(math.MinInt64), `-9223372036854775808`},
		{"greatest integer", typeInteger, integer(math.MaxInt64), `9223372036854775807`},
		{"whole float", typeInteger, number(3), `3`},
		{"negative zero is the integer zero", typeInteger, number(math.Copysign(0, -1)), `0`},
		{"whole float beyond 2^53", typeInteger, number(1 << 62), `4611686018427387904`},
		{"least whole float", typeInteger, number(-1 << 63), `-9223372036854775808`},
		{"greatest whole float", typeInteger, number(math.Nextafter(1<<63, 0)), `9223372036854774784`},
		{"json number", typeInteger, jsonText(t, `7.0`), `7`},
		{"json number beyond 2^53 arrives rounded", typeInteger, jsonText(t, `9007199254740993`), `9007199254740992`},
		{"json text", typeInteger, jsonText(t, `"9007199254740993"`), `9007199254740993`},
		{"json text of the least", typeInteger, jsonText(t, `"-9223372036854775808"`), `-9223372036854775808`},
		{"json text of negative zero", typeInteger, jsonText(t, `"-0"`), `0`},

		{"float", typeFloat, number(0.1), `0.1`},
		{"float without exponent", typeFloat, number(1e21), `1000000000000000000000`},
		{"small float without exponent", typeFloat, number(1.5e-7), `0.00000015`},
		{"NaN", typeFloat, number(math.NaN()), `"NaN"`},
		{"infinity", typeFloat, number(math.Inf(1)), `"Infinity"`},
		{"negative infinity", typeFloat, number(math.Inf(-1)), `"-Infinity"`},
		{"negative zero", typeFloat, number(math.Copysign(0, -1)), `"-0"`},
		{"integer as float", typeFloat, integer(3), `3`},
		{"integer as float is rounded", typeFloat, integer(1<<53 + 1), `9007199254740992`},
		{"json number as float", typeFloat, jsonText(t, `2.5`), `2.5`},
		{"json NaN as float", typeFloat, jsonText(t, `"NaN"`), `"NaN"`},
		{"json infinity as float", typeFloat, jsonText(t, `"Infinity"`), `"Infinity"`},
		{"json negative infinity as float", typeFloat, jsonText(t, `"-Infinity"`), `"-Infinity"`},
		{"json negative zero as float", typeFloat, jsonText(t, `"-0"`), `"-0"`},
		{"json text as float", typeFloat, jsonText(t, `"1.5e3"`), `1500`},

		{"string", typeString, text("a\"\\\n\r\t\x01é☃"), `"a\"\\\n\r\t\u0001é☃"`},
		{"empty string", typeString, text(""), `""`},
		{"choice as string", typeString, choice("a"), `"a"`},
		{"module as string", typeString, module("a"), `"a"`},
		{"json as string", typeString, jsonText(t, `"a"`), `"a"`},
		{"choice", typeChoice, choice("a"), `"a"`},
		{"string as choice", typeChoice, text("a"), `"a"`},
		{"module as choice", typeChoice, module("a"), `"a"`},
		{"json as choice", typeChoice, jsonText(t, `"a"`), `"a"`},
		{"module", typeModule, module("a"), `"a"`},
		{"string as module", typeModule, text("a"), `"a"`},
		{"choice as module", typeModule, choice("a"), `"a"`},
		{"json as module", typeModule, jsonText(t, `"a"`), `"a"`},

		{"json null", typeJSON, jsonText(t, `null`), `null`},
		{"json stays what it is", typeJSON, jsonText(t, `"NaN"`), `"NaN"`},
		{"json sorted and dense", typeJSON, jsonText(t, `{"b": [1, 2.5, true], "a": {"": null}}`),
			`{"a":{"":null},"b":[1,2.5,true]}`},
		{"json negative zero becomes zero", typeJSON, jsonOf(structpb.NewNumberValue(math.Copysign(0, -1))), `0`},
		{"json number without exponent", typeJSON, jsonText(t, `[1e21, 1e-7]`), `[1000000000000000000000,0.0000001]`},
		{"json empty list and object", typeJSON, jsonText(t, `[[], {}]`), `[[],{}]`},
		{"json as deep as may be", typeJSON, jsonText(t, nested(maxJSONDepth)), nested(maxJSONDepth)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := free(t, tt.typ).Accept("v", tt.v, limit)
			if err != nil {
				t.Fatalf("Accept: %v", err)
			}
			want := Stored{JSON: []byte(tt.want), Bytes: len(tt.want)}
			switch tt.typ {
			case typeString, typeChoice, typeModule:
				var text string
				if err := json.Unmarshal([]byte(tt.want), &text); err != nil {
					t.Fatal(err)
				}
				want.Bytes = len(text) // Without quotes and escapes.
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("stored (-want +got):\n%s", diff)
			}
		})
	}
}

// nested returns the text of n lists in each other.
func nested(n int) string {
	return strings.Repeat("[", n) + strings.Repeat("]", n)
}

// TestAcceptPayload has what embeddings and tensors take, and how they are stored.
func TestAcceptPayload(t *testing.T) {
	t.Parallel()
	const inf, nan = "\x00\x00\x80\x7f", "\x00\x00\xc0\x7f"
	tests := []struct {
		name    string
		typ     setpointv1.VariableType
		v       *setpointv1.Value
		about   string // without the hash
		payload string
	}{
		{"embedding", typeEmbedding, embedding(3, -4), `{"dtype":"float32","shape":[2],"norm":5`,
			"\x00\x00\x40\x40\x00\x00\x80\xc0"},
		{"embedding keeps negative zero", typeEmbedding, embedding(float32(math.Copysign(0, -1))),
			`{"dtype":"float32","shape":[1],"norm":0`, "\x00\x00\x00\x80"},
		{"embedding of json", typeEmbedding, jsonText(t, `[1, "Infinity"]`),
			`{"dtype":"float32","shape":[2],"norm":"Infinity"`, "\x00\x00\x80\x3f" + inf},
		{"embedding with NaN", typeEmbedding, embedding(float32(math.Inf(1)), math.Float32frombits(0x7fc00000)),
			`{"dtype":"float32","shape":[2],"norm":"NaN"`, inf + nan},
		{"tensor", typeTensor, tensor("int16", []int64{1, 2}, 1, 2, 3, 4),
			`{"dtype":"int16","shape":[1,2],"norm":null`, "\x01\x02\x03\x04"},
		{"tensor of float32", typeTensor, tensor("float32", []int64{1}, 0, 0, 0x80, 0xbf),
			`{"dtype":"float32","shape":[1],"norm":1`, "\x00\x00\x80\xbf"},
		{"tensor of float64", typeTensor, tensor("float64", []int64{1}, 0, 0, 0, 0, 0, 0, 0x04, 0xc0),
			`{"dtype":"float64","shape":[1],"norm":2.5`, "\x00\x00\x00\x00\x00\x00\x04\xc0"},
		{"scalar tensor", typeTensor, tensor("uint8", nil, 9), `{"dtype":"uint8","shape":[],"norm":null`, "\x09"},
		{"empty tensor", typeTensor, tensor("float32", []int64{3, 0}), `{"dtype":"float32","shape":[3,0],"norm":0`, ""},
		{"tensor of bool", typeTensor, tensor("bool", []int64{2}, 0, 1), `{"dtype":"bool","shape":[2],"norm":null`,
			"\x00\x01"},
		{"tensor of json", typeTensor, jsonText(t, `{"dtype": "uint8", "shape": [3], "data": "AQID"}`),
			`{"dtype":"uint8","shape":[3],"norm":null`, "\x01\x02\x03"},
		{"tensor of protobuf's json", typeTensor, jsonText(t, `{"dtype": "uint8", "shape": ["1"], "data": "AQ=="}`),
			`{"dtype":"uint8","shape":[1],"norm":null`, "\x01"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := free(t, tt.typ).Accept("v", tt.v, limit)
			if err != nil {
				t.Fatalf("Accept: %v", err)
			}
			sum := sha256.Sum256([]byte(tt.payload))
			want := Stored{
				JSON:    []byte(tt.about + `,"sha256":"` + hexOf(sum[:]) + `"}`),
				Payload: []byte(tt.payload),
				SHA256:  sum[:],
				Bytes:   len(tt.payload),
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("stored (-want +got):\n%s", diff)
			}
			if got.Payload == nil {
				t.Error("the payload is nil")
			}
		})
	}
}

func hexOf(data []byte) string {
	const digits = "0123456789abcdef"
	var text bytes.Buffer
	for _, b := range data {
		text.WriteByte(digits[b>>4])
		text.WriteByte(digits[b&15])
	}
	return text.String()
}

// TestAcceptConversions walks every kind of value against every type: what converts and what does not.
func TestAcceptConversions(t *testing.T) {
	t.Parallel()
	kinds := []struct {
		name string
		v    *setpointv1.Value
		to   string // the types that take it
	}{
		{"boolean", boolean(true), "boolean"},
		{"integer", integer(1), "integer float"},
		{"whole number", number(1), "integer float"},
		{"number", number(1.5), "float"},
		{"string", text("a"), "string choice module"},
		{"string of digits", text("1"), "string module"},
		{"choice", choice("a"), "string choice module"},
		{"module", module("a"), "string choice module"},
		{"embedding", embedding(1), "embedding"},
		{"tensor", tensor("uint8", nil, 1), "tensor"},
		{"json null", jsonText(t, `null`), "json"},
		{"json boolean", jsonText(t, `true`), "boolean json"},
		{"json whole number", jsonText(t, `1`), "integer float json"},
		{"json number", jsonText(t, `1.5`), "float json"},
		{"json string", jsonText(t, `"a"`), "string choice module json"},
		{"json string of digits", jsonText(t, `"1"`), "integer float string module json"},
		{"json NaN", jsonText(t, `"NaN"`), "float string module json"},
		{"json list of numbers", jsonText(t, `[1]`), "embedding json"},
		{"json list of strings", jsonText(t, `["a"]`), "json"},
		{"json tensor", jsonText(t, `{"dtype": "uint8", "shape": [], "data": "AQ=="}`), "tensor json"},
		{"json object", jsonText(t, `{"a": 1}`), "json"},
	}
	for _, tt := range kinds {
		for _, typ := range allTypes() {
			t.Run(tt.name+" to "+TypeName(typ), func(t *testing.T) {
				t.Parallel()
				_, err := free(t, typ).Accept("v", tt.v, limit)
				takes := strings.Contains(" "+tt.to+" ", " "+TypeName(typ)+" ")
				if takes && err != nil {
					t.Fatalf("Accept: %v", err)
				}
				if takes {
					return
				}
				got := refusalOf(t, err)
				// A choice takes every text as such, and then looks whether it is one of its own.
				if typ == typeChoice && got.Reason == setpointv1.ErrorReason_CONSTRAINT_VIOLATION {
					return
				}
				if got.Reason != setpointv1.ErrorReason_TYPE_MISMATCH {
					t.Errorf("reason %v (%s), want TYPE_MISMATCH", got.Reason, got.Message)
				}
				want := map[string]string{"variable": "v", "type": TypeName(typ)}
				if diff := cmp.Diff(want, got.Metadata); diff != "" {
					t.Errorf("metadata (-want +got):\n%s", diff)
				}
			})
		}
	}
}

// TestAcceptRefusals has what is refused whatever the constraints, with the message.
func TestAcceptRefusals(t *testing.T) {
	t.Parallel()
	const (
		invalid  = setpointv1.ErrorReason_INVALID_REQUEST
		mismatch = setpointv1.ErrorReason_TYPE_MISMATCH
	)
	long := strings.Repeat("é", 100)
	tests := []struct {
		name   string
		typ    setpointv1.VariableType
		v      *setpointv1.Value
		reason setpointv1.ErrorReason
		want   string
	}{
		{"no value", typeFloat, nil, invalid, `v: there is no value`},
		{"no kind", typeFloat, &setpointv1.Value{}, invalid, `v: there is no value`},

		{"other kind", typeFloat, text("hot"), mismatch, `v: "hot" (string) cannot be read as float`},
		{"long text is shortened", typeFloat, text(long), mismatch,
			`v: "` + strings.Repeat("é", 64) + `…" (string) cannot be read as float`},
		{"control characters are not shown", typeFloat, choice("a\x00\x1b"), mismatch,
			`v: "a\x00\x1b" (choice) cannot be read as float`},
		{"module", typeBoolean, module("m"), mismatch, `v: "m" (module) cannot be read as boolean`},
		{"boolean", typeInteger, boolean(true), mismatch, `v: true (boolean) cannot be read as integer`},
		{"embedding", typeTensor, embedding(1, 2), mismatch,
			`v: an embedding of 2 dimensions cannot be read as tensor`},
		{"tensor", typeEmbedding, tensor("int8", []int64{2, 3}), mismatch,
			`v: a tensor of dtype "int8" and shape [2, 3] cannot be read as embedding`},
		{"json object", typeBoolean, jsonText(t, `{"a": 1}`), mismatch, `v: an object (json) cannot be read as boolean`},
		{"json list", typeString, jsonText(t, `[1]`), mismatch, `v: a list (json) cannot be read as string`},
		{"json null", typeInteger, jsonText(t, `null`), mismatch, `v: null (json) cannot be read as integer`},
		{"json without a kind", typeFloat, jsonOf(&structpb.Value{}), mismatch,
			`v: a value without a kind (json) cannot be read as float`},
		{"number as json", typeJSON, number(1.5), mismatch, `v: 1.5 (number) cannot be read as json`},
		{"a million as json", typeJSON, number(1e6), mismatch, `v: 1000000 (number) cannot be read as json`},
		{"integer as json", typeJSON, integer(1), mismatch, `v: 1 (integer) cannot be read as json`},

		{"fraction as integer", typeInteger, number(2.5), mismatch,
			`v: 2.5 cannot be read as integer: it is not a whole number`},
		{"NaN as integer", typeInteger, number(math.NaN()), mismatch,
			`v: NaN cannot be read as integer: it is not a whole number`},
		{"infinity as integer", typeInteger, number(math.Inf(-1)), mismatch,
			`v: -Inf cannot be read as integer: it is not a whole number`},
		{"2^63", typeInteger, number(1 << 63), mismatch,
			`v: 9223372036854776000 cannot be read as integer: it does not fit in 64 bits`},
		{"2^63 in json", typeInteger, jsonText(t, `9223372036854775808`), mismatch,
			`v: 9223372036854776000 cannot be read as integer: it does not fit in 64 bits`},
		{"below -2^63", typeInteger, number(math.Nextafter(-1<<63, math.Inf(-1))), mismatch,
			`v: -9223372036854778000 cannot be read as integer: it does not fit in 64 bits`},
		{"2^63 in text", typeInteger, jsonText(t, `"9223372036854775808"`), mismatch,
			`v: "9223372036854775808" (json) is not the text of an integer of 64 bits`},

		{"too large float in text", typeFloat, jsonText(t, `"1e400"`), mismatch,
			`v: "1e400" (json) is not the text of a float`},

		{"NUL in a string", typeString, text("a\x00b"), invalid, `v: "a\x00b" contains U+0000`},
		{"NUL in a choice", typeChoice, text("a\x00"), invalid, `v: "a\x00" contains U+0000`},
		{"NUL in a module", typeModule, jsonOf(structpb.NewStringValue("\x00")), invalid, `v: "\x00" contains U+0000`},
		{"bad UTF-8", typeString, text("a\xff"), invalid, `v: "a\xff" is not valid UTF-8`},
		{"NUL in json", typeJSON, jsonText(t, `{"a": ["\u0000"]}`), invalid,
			`v: the text "\x00" in the JSON contains U+0000`},
		{"NUL in a json key", typeJSON, jsonText(t, `[{"\u0000": 1}]`), invalid,
			`v: the text "\x00" in the JSON contains U+0000`},
		{"bad UTF-8 in json", typeJSON, jsonOf(structpb.NewStringValue("\xff")), invalid,
			`v: the text "\xff" in the JSON is not valid UTF-8`},
		{"NaN in json", typeJSON, jsonOf(structpb.NewNumberValue(math.NaN())), invalid,
			`v: the JSON has a number NaN, which JSON does not know`},
		{"infinity in json", typeJSON, jsonOf(structpb.NewListValue(&structpb.ListValue{
			Values: []*structpb.Value{structpb.NewNumberValue(math.Inf(1))}})), invalid,
			`v: the JSON has a number +Inf, which JSON does not know`},
		{"json without a value", typeJSON, jsonOf(nil), invalid, `v: the JSON has an element without a value`},
		{"json too deep", typeJSON, jsonText(t, nested(maxJSONDepth+1)), invalid,
			`v: the JSON nests deeper than 30 levels`},

		{"empty embedding", typeEmbedding, embedding(), mismatch, `v: an embedding has at least one dimension`},
		{"empty embedding in json", typeEmbedding, jsonText(t, `[]`), mismatch,
			`v: an embedding has at least one dimension`},
		{"text in an embedding", typeEmbedding, jsonText(t, `[1, "2"]`), mismatch,
			`v: element 1, "2", cannot be read as float32: it is not a number`},
		{"too large for float32", typeEmbedding, jsonText(t, `[1e39]`), mismatch,
			`v: element 0, 1e+39, cannot be read as float32: it is too large`},

		{"unknown dtype", typeTensor, tensor("float8", nil, 1), invalid, `v: there is no dtype "float8"`},
		{"no dtype", typeTensor, tensor("", nil), invalid, `v: there is no dtype ""`},
		{"negative size", typeTensor, tensor("int8", []int64{-1}), invalid, `v: shape [-1] has a negative size`},
		{"too many dimensions", typeTensor, tensor("int8", make([]int64, 33)), invalid,
			`v: a tensor has at most 32 dimensions, not 33`},
		{"too few data", typeTensor, tensor("int16", []int64{2}, 1, 2, 3), invalid,
			`v: a tensor of dtype int16 and shape [2] has 4 bytes of data, not 3`},
		{"too many data", typeTensor, tensor("int16", nil, 1, 2, 3), invalid,
			`v: a tensor of dtype int16 and shape [] has 2 bytes of data, not 3`},
		{"shape overflows", typeTensor, tensor("int64", []int64{1 << 31, 1 << 31}), invalid,
			`v: shape [2147483648, 2147483648] is too large`},
		{"shape overflows beside an empty dimension", typeTensor, tensor("int8", []int64{0, 1 << 62, 1 << 62}), invalid,
			`v: shape [0, 4611686018427387904, 4611686018427387904] is too large`},
		{"no bool", typeTensor, tensor("bool", []int64{2}, 1, 2), invalid,
			`v: element 1 of a tensor of dtype bool is 2, neither 0 nor 1`},

		{"tensor's json with another key", typeTensor, jsonText(t, `{"dtype": "int8", "shape": [], "data": "", "order": "C"}`),
			mismatch, `v: a tensor's JSON has no "order", only dtype, shape and data`},
		{"tensor's json without dtype", typeTensor, jsonText(t, `{"shape": [], "data": ""}`), mismatch,
			`v: a tensor's JSON needs a dtype, a string`},
		{"tensor's json without shape", typeTensor, jsonText(t, `{"dtype": "int8", "data": "AQ=="}`), mismatch,
			`v: a tensor's JSON needs a shape, a list of integers`},
		{"tensor's json without data", typeTensor, jsonText(t, `{"dtype": "int8", "shape": [0], "data": []}`), mismatch,
			`v: a tensor's JSON needs data, a string in base64`},
		{"tensor's json with a broken size", typeTensor, jsonText(t, `{"dtype": "int8", "shape": [1, 0.5], "data": ""}`),
			mismatch, `v: shape: element 1, 0.5, is not an integer`},
		{"tensor's json with a negative size", typeTensor, jsonText(t, `{"dtype": "int8", "shape": [-2], "data": ""}`),
			invalid, `v: shape [-2] has a negative size`},
		{"tensor's json with broken data", typeTensor, jsonText(t, `{"dtype": "int8", "shape": [1], "data": "A"}`), invalid,
			`v: data is not standard base64: illegal base64 data at input byte 0`},
		{"tensor's json with data in the URL's alphabet", typeTensor,
			jsonText(t, `{"dtype": "uint8", "shape": [3], "data": "_-8_"}`), invalid,
			`v: data is not standard base64: illegal base64 data at input byte 0`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := free(t, tt.typ).Accept("v", tt.v, limit)
			got := refusalOf(t, err)
			if got.Reason != tt.reason || got.Message != tt.want {
				t.Errorf("got  %v: %s\nwant %v: %s", got.Reason, got.Message, tt.reason, tt.want)
			}
			want := map[string]string{"variable": "v"}
			if tt.reason == mismatch {
				want["type"] = TypeName(tt.typ)
			}
			if diff := cmp.Diff(want, got.Metadata); diff != "" {
				t.Errorf("metadata (-want +got):\n%s", diff)
			}
		})
	}
}

// TestAcceptNumberTexts has the texts that are numbers in Go, in C or nowhere, but not in JSON.
func TestAcceptNumberTexts(t *testing.T) {
	t.Parallel()
	texts := []string{"", " ", " 1", "1 ", "+1", "01", "1_000", "0x10", "0x1p4", "1e", ".5", "5.", "inf", "Inf", "+Infinity",
		"nan", "infinity", "1,5", "1 2", "--1", "-", "١", "1\n", "true", "null"}
	for _, number := range texts {
		for _, typ := range []setpointv1.VariableType{typeInteger, typeFloat} {
			_, err := free(t, typ).Accept("v", jsonOf(structpb.NewStringValue(number)), limit)
			if got := refusalOf(t, err); got.Reason != setpointv1.ErrorReason_TYPE_MISMATCH {
				t.Errorf("%q as %s: %v", number, TypeName(typ), got)
			}
		}
	}
	for _, number := range []string{"1.0", "1e2", "1E2"} {
		_, err := free(t, typeInteger).Accept("v", jsonOf(structpb.NewStringValue(number)), limit)
		if got := refusalOf(t, err); got.Reason != setpointv1.ErrorReason_TYPE_MISMATCH {
			t.Errorf("%q as integer: %v", number, got)
		}
	}
}

// TestAcceptLimit has values at the limit and one byte above it.
func TestAcceptLimit(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		typ   setpointv1.VariableType
		v     *setpointv1.Value
		bytes int
	}{
		{"boolean", typeBoolean, boolean(false), 5},
		{"integer", typeInteger, integer(1234), 4},
		{"float", typeFloat, number(1e20), 21},
		{"string", typeString, text("aé\n"), 4},
		{"long string", typeString, text(strings.Repeat("a", 1000)), 1000},
		{"module", typeModule, module("abc"), 3},
		{"embedding", typeEmbedding, embedding(1, 2, 3), 12},
		{"embedding of json", typeEmbedding, jsonText(t, `[1, 2, 3]`), 12},
		{"tensor", typeTensor, tensor("int8", []int64{5}, 1, 2, 3, 4, 5), 5},
		{"tensor of json", typeTensor, jsonText(t, `{"dtype": "uint8", "shape": [4], "data": "AQIDBA=="}`), 4},
		{"tensor of json without padding", typeTensor, jsonText(t, `{"dtype": "uint8", "shape": [3], "data": "AQID"}`), 3},
		{"json", typeJSON, jsonText(t, `{"a": [1, 2], "b": "text"}`), 22},
		{"json list", typeJSON, jsonText(t, `[1e20, true, null, {}]`), 36},
		{"json string", typeJSON, jsonText(t, `"abc"`), 5},
		{"json number counts as it is read back", typeJSON, jsonText(t, `1e300`), 301},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			d := free(t, tt.typ)
			stored, err := d.Accept("v", tt.v, tt.bytes)
			if err != nil {
				t.Fatalf("Accept at the limit: %v", err)
			}
			if stored.Bytes != tt.bytes {
				t.Errorf("Bytes = %d, want %d", stored.Bytes, tt.bytes)
			}
			for _, most := range []int{tt.bytes - 1, 1, 0} {
				_, err = d.Accept("v", tt.v, most)
				got := refusalOf(t, err)
				if got.Reason != setpointv1.ErrorReason_LIMIT_EXCEEDED {
					t.Fatalf("limit %d: %v: %s", most, got.Reason, got.Message)
				}
			}
		})
	}
}

func TestAcceptLimitMessage(t *testing.T) {
	t.Parallel()
	_, err := free(t, typeString).Accept("prompt", text(strings.Repeat("x", limit+1)), limit)
	want := &Refusal{
		Reason:   setpointv1.ErrorReason_LIMIT_EXCEEDED,
		Message:  "prompt: the value is larger than the limit of 16777216 bytes",
		Metadata: map[string]string{"limit": "value_bytes", "value": "16777216"},
	}
	if diff := cmp.Diff(want, refusalOf(t, err)); diff != "" {
		t.Errorf("refusal (-want +got):\n%s", diff)
	}
}

func TestNorm(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name     string
		elements []float64
		want     float64
	}{
		{"none", nil, 0},
		{"zeros", []float64{0, math.Copysign(0, -1)}, 0},
		{"plain", []float64{3, -4}, 5},
		{"squares overflow", []float64{3e200, -4e200}, 5e200},
		{"squares underflow", []float64{3e-200, -4e-200}, 5e-200},
		{"the norm itself overflows", []float64{math.MaxFloat64, math.MaxFloat64}, math.Inf(1)},
		{"infinity", []float64{1, math.Inf(-1)}, math.Inf(1)},
		{"NaN", []float64{1, math.NaN(), math.Inf(1)}, math.NaN()},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got := norm(len(tt.elements), func(i int) float64 { return tt.elements[i] })
			close := math.Abs(got-tt.want) <= 1e-15*math.Abs(tt.want)
			if got != tt.want && !close && !(math.IsNaN(got) && math.IsNaN(tt.want)) {
				t.Errorf("norm = %v, want %v", got, tt.want)
			}
		})
	}
}
