package value

import (
	"bytes"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/structpb"
	"pgregory.net/rapid"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// equalValues compares values as the API sees them: NaN is NaN, and 0 is not −0.
func equalValues(a, b *setpointv1.Value) string {
	return cmp.Diff(a, b, protocmp.Transform(),
		cmp.Comparer(func(a, b float64) bool { return math.Float64bits(a) == math.Float64bits(b) || a != a && b != b }),
		cmp.Comparer(func(a, b float32) bool { return math.Float32bits(a) == math.Float32bits(b) || a != a && b != b }))
}

// anyJSON draws a JSON value that every client can read.
func anyJSON(depth int) *rapid.Generator[*structpb.Value] {
	return rapid.Custom(func(t *rapid.T) *structpb.Value {
		kinds := 6
		if depth == 0 {
			kinds = 4
		}
		switch rapid.IntRange(0, kinds-1).Draw(t, "kind") {
		case 0:
			return structpb.NewNullValue()
		case 1:
			return structpb.NewBoolValue(rapid.Bool().Draw(t, "bool"))
		case 2:
			f := rapid.Float64().Filter(func(f float64) bool { return !math.IsInf(f, 0) && !math.IsNaN(f) }).Draw(t, "number")
			return structpb.NewNumberValue(f + 0) // no −0
		case 3:
			return structpb.NewStringValue(anyText().Draw(t, "text"))
		case 4:
			list := rapid.SliceOfN(anyJSON(depth-1), 0, 4).Draw(t, "list")
			return structpb.NewListValue(&structpb.ListValue{Values: list})
		}
		fields := rapid.MapOfN(anyText(), anyJSON(depth-1), 0, 4).Draw(t, "object")
		return structpb.NewStructValue(&structpb.Struct{Fields: fields})
	})
}

func anyText() *rapid.Generator[string] {
	return rapid.String().Filter(func(s string) bool { return textFault(s) == "" })
}

// anyValue draws a value of a type's own kind.
func anyValue(typ setpointv1.VariableType) *rapid.Generator[*setpointv1.Value] {
	return rapid.Custom(func(t *rapid.T) *setpointv1.Value {
		switch typ {
		case typeBoolean:
			return boolean(rapid.Bool().Draw(t, "boolean"))
		case typeInteger:
			return integer(rapid.Int64().Draw(t, "integer"))
		case typeFloat:
			return number(rapid.OneOf(rapid.Float64(), rapid.Map(rapid.Uint64(), math.Float64frombits)).Draw(t, "number"))
		case typeString:
			return text(anyText().Draw(t, "string"))
		case typeChoice:
			return choice(rapid.SampledFrom([]string{"a", "fast", ""}).Draw(t, "choice"))
		case typeModule:
			return module(anyText().Draw(t, "module"))
		case typeEmbedding:
			bits := rapid.Map(rapid.Uint32(), math.Float32frombits)
			return embedding(rapid.SliceOfN(rapid.OneOf(rapid.Float32(), bits), 1, 20).Draw(t, "embedding")...)
		case typeTensor:
			dtype := rapid.SampledFrom([]string{"float16", "bfloat16", "float32", "float64", "int8", "int16", "int32", "int64",
				"uint8", "uint16", "uint32", "uint64", "bool"}).Draw(t, "dtype")
			shape := rapid.SliceOfN(rapid.Int64Range(0, 4), 0, 4).Draw(t, "shape")
			size, _ := tensorBytes(dtype, shape)
			most := byte(255)
			if dtype == "bool" {
				most = 1
			}
			data := rapid.SliceOfN(rapid.ByteMax(most), int(size), int(size)).Draw(t, "data")
			return tensor(dtype, shape, data...)
		}
		return jsonOf(anyJSON(4).Draw(t, "json"))
	})
}

// TestRoundTrip has every value come back from its stored form as it was.
func TestRoundTrip(t *testing.T) {
	t.Parallel()
	for _, typ := range allTypes() {
		t.Run(TypeName(typ), func(t *testing.T) {
			t.Parallel()
			d := free(t, typ)
			rapid.Check(t, func(t *rapid.T) {
				v := anyValue(typ).Draw(t, "value")
				stored, err := d.Accept("v", v, limit)
				if err != nil {
					t.Fatalf("Accept: %v", err)
				}
				back, err := Decode(typ, stored.JSON, stored.Payload)
				if err != nil {
					t.Fatalf("Decode(%s): %v", stored.JSON, err)
				}
				if diff := equalValues(v, back); diff != "" {
					t.Fatalf("came back different (-want +got):\n%s", diff)
				}
			})
		})
	}
}

// TestRoundTripPayload has bytes with a meaning beside their number: NaNs with a payload, signalling ones too.
func TestRoundTripPayload(t *testing.T) {
	t.Parallel()
	bits := []uint32{0x7fa00001, 0xffc12345, 0x80000000, 0x00000001, 0x7f800000}
	vector := make([]float32, len(bits))
	for i, b := range bits {
		vector[i] = math.Float32frombits(b)
	}
	stored, err := free(t, typeEmbedding).Accept("v", embedding(vector...), limit)
	if err != nil {
		t.Fatalf("Accept: %v", err)
	}
	back, err := Decode(typeEmbedding, stored.JSON, stored.Payload)
	if err != nil {
		t.Fatalf("Decode: %v", err)
	}
	for i, f := range back.GetEmbedding().GetValues() {
		if got := math.Float32bits(f); got != bits[i] {
			t.Errorf("element %d: %08x, want %08x", i, got, bits[i])
		}
	}
}

// TestDecode has what a database may return that Accept wrote otherwise: jsonb has its own spacing.
func TestDecode(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		typ     setpointv1.VariableType
		json    string
		payload []byte
		want    *setpointv1.Value
	}{
		{"boolean", typeBoolean, `false`, nil, boolean(false)},
		{"integer", typeInteger, `-9223372036854775808`, nil, integer(math.MinInt64)},
		{"float", typeFloat, ` 0.1`, nil, number(0.1)},
		{"float with exponent", typeFloat, `1e+21`, nil, number(1e21)},
		{"negative zero", typeFloat, `"-0"`, nil, number(math.Copysign(0, -1))},
		{"NaN", typeFloat, `"NaN"`, nil, number(math.NaN())},
		{"string", typeString, `"a\u00e9\ud83d\ude00\/"`, nil, text("aé😀/")},
		{"choice", typeChoice, `"a"`, nil, choice("a")},
		{"module", typeModule, `"a"`, nil, module("a")},
		{"json", typeJSON, `{"a": [1, null]}`, nil, jsonText(t, `{"a": [1, null]}`)},
		{"json null", typeJSON, `null`, nil, jsonText(t, `null`)},
		{"json name", typeJSON, `"NaN"`, nil, jsonText(t, `"NaN"`)},
		{"embedding", typeEmbedding, `{"norm": 1, "dtype": "float32", "shape": [1], "sha256": ""}`,
			[]byte{0, 0, 0x80, 0x3f}, embedding(1)},
		{"tensor", typeTensor, `{"dtype": "int8", "shape": [2, 1]}`, []byte{1, 2}, tensor("int8", []int64{2, 1}, 1, 2)},
		{"empty tensor", typeTensor, `{"dtype": "int8", "shape": [0]}`, nil, tensor("int8", []int64{0})},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := Decode(tt.typ, []byte(tt.json), tt.payload)
			if err != nil {
				t.Fatalf("Decode: %v", err)
			}
			if diff := equalValues(tt.want, got); diff != "" {
				t.Errorf("value (-want +got):\n%s", diff)
			}
		})
	}
}

func TestDecodeErrors(t *testing.T) {
	t.Parallel()
	const one = `{"dtype": "float32", "shape": [1]}`
	tests := []struct {
		name    string
		typ     setpointv1.VariableType
		json    string
		payload []byte
		want    string
	}{
		{"nothing", typeBoolean, ``, nil, `"" is not a boolean`},
		{"number as boolean", typeBoolean, `1`, nil, `"1" is not a boolean`},
		{"fraction as integer", typeInteger, `1.5`, nil, `"1.5" is not an integer of 64 bits`},
		{"text as integer", typeInteger, `"1"`, nil, `not an integer of 64 bits`},
		{"text as float", typeFloat, `"warm"`, nil, `"warm" is not a float`},
		{"open text as float", typeFloat, `"`, nil, `unmarshal the text of a float`},
		{"null as float", typeFloat, `null`, nil, `"null" is not a float`},
		{"nothing as float", typeFloat, ``, nil, `"" is not a float`},
		{"null as string", typeString, `null`, nil, `null is not a string`},
		{"number as choice", typeChoice, `1`, nil, `unmarshal a string`},
		{"open json", typeJSON, `[`, nil, `unmarshal JSON`},
		{"embedding without description", typeEmbedding, `null`, nil, `there is no dtype ""`},
		{"embedding without payload", typeEmbedding, one, nil, `has 4 bytes of data, not 0`},
		{"embedding with a longer payload", typeEmbedding, one, make([]byte, 8), `has 4 bytes of data, not 8`},
		{"embedding of integers", typeEmbedding, `{"dtype": "int32", "shape": [1]}`, make([]byte, 4),
			`dtype int32 and shape [1] are not an embedding's`},
		{"embedding of two dimensions", typeEmbedding, `{"dtype": "float32", "shape": [1, 1]}`, make([]byte, 4),
			`dtype float32 and shape [1, 1] are not an embedding's`},
		{"empty embedding", typeEmbedding, `{"dtype": "float32", "shape": [0]}`, nil,
			`dtype float32 and shape [0] are not an embedding's`},
		{"tensor of another form", typeTensor, `[1]`, nil, `unmarshal the description`},
		{"unknown type", 99, `1`, nil, `there is no variable type 99`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			v, err := Decode(tt.typ, []byte(tt.json), tt.payload)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Decode = %v, %v; want error … %s", v, err, tt.want)
			}
		})
	}
}

// TestStoredIsStable has equal values make equal bytes, whatever the order in which Go walks a map.
func TestStoredIsStable(t *testing.T) {
	t.Parallel()
	d := free(t, typeJSON)
	v := jsonText(t, `{"z": 1, "y": {"c": 1, "b": 2, "a": 3}, "x": [], "w": null, "v": true}`)
	first, err := d.Accept("v", v, limit)
	if err != nil {
		t.Fatalf("Accept: %v", err)
	}
	for range 20 {
		again, err := d.Accept("v", v, limit)
		if err != nil || !bytes.Equal(again.JSON, first.JSON) {
			t.Fatalf("got %s, %v; first %s", again.JSON, err, first.JSON)
		}
	}
}
