package value

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/structpb"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// checkRefusal makes sure that an error is a refusal as the API promises it.
func checkRefusal(t *testing.T, err error, reasons ...setpointv1.ErrorReason) {
	t.Helper()
	var refusal *Refusal
	if !errors.As(err, &refusal) {
		t.Fatalf("%v is no refusal", err)
	}
	if !slices.Contains(reasons, refusal.Reason) {
		t.Fatalf("%v: %s", refusal.Reason, refusal.Message)
	}
	if !utf8.ValidString(refusal.Message) || strings.ContainsAny(refusal.Message, "\x00\n") || len(refusal.Message) > 4096 {
		t.Fatalf("the message is not fit to be sent: %q", refusal.Message)
	}
}

// checkAccepted accepts a value: either it is refused for a known reason, or it comes back from its stored form, and what
// comes back is stored the same way.
func checkAccepted(t *testing.T, d *Definition, v *setpointv1.Value) {
	t.Helper()
	const most = 1 << 16
	stored, err := d.Accept("v", v, most)
	if err != nil {
		checkRefusal(t, err, setpointv1.ErrorReason_TYPE_MISMATCH, setpointv1.ErrorReason_CONSTRAINT_VIOLATION,
			setpointv1.ErrorReason_INVALID_REQUEST, setpointv1.ErrorReason_LIMIT_EXCEEDED)
		return
	}
	if stored.Bytes > most {
		t.Fatalf("%d bytes are above the limit", stored.Bytes)
	}
	back, err := Decode(d.Type(), stored.JSON, stored.Payload)
	if err != nil {
		t.Fatalf("decode %s: %v", stored.JSON, err)
	}
	again, err := d.Accept("v", back, most)
	if err != nil {
		t.Fatalf("accept %v again: %v", back, err)
	}
	if !bytes.Equal(again.JSON, stored.JSON) || !bytes.Equal(again.Payload, stored.Payload) {
		t.Fatalf("stored as %s, then as %s", stored.JSON, again.JSON)
	}
}

// FuzzAcceptJSON sets variables of all types to any JSON.
func FuzzAcceptJSON(f *testing.F) {
	for _, seed := range []string{`null`, `true`, `-0.0`, `1e308`, `"NaN"`, `"-0"`, `"9223372036854775807"`, `[1, "Infinity"]`,
		`{"dtype": "bool", "shape": [1], "data": "AQ=="}`, `{"dtype": "float64", "shape": [], "data": "AAAAAAAA8H8="}`,
		`{"a": {"b": [null, "\u0000"]}}`, `"\ud83d\ude00"`, nested(31)} {
		f.Add(seed)
	}
	var definitions []*Definition
	for _, typ := range allTypes() {
		c := &setpointv1.Constraints{}
		if typ == typeChoice {
			c.Choices = []string{"", "NaN", "0"}
		}
		d, err := NewDefinition(typ, c)
		if err != nil {
			f.Fatal(err)
		}
		definitions = append(definitions, d)
	}
	f.Fuzz(func(t *testing.T, text string) {
		v := &structpb.Value{}
		if err := protojson.Unmarshal([]byte(text), v); err != nil {
			v = structpb.NewStringValue(text)
		}
		for _, d := range definitions {
			checkAccepted(t, d, jsonOf(v))
		}
	})
}

// FuzzConstraints compiles any constraints for every type, keeps them as the database would, and uses them.
func FuzzConstraints(f *testing.F) {
	for _, seed := range []string{`{"min": 0, "max": "Infinity", "step": 0.1}`, `{"min": -1e300, "step": 5e-324}`,
		`{"min_length": 1, "max_length": "3", "pattern": "^a+$"}`, `{"enum": ["a", "b"]}`, `{"choices": ["a"]}`,
		`{"allowed_modules": ["a"]}`, `{"dimensions": 1}`, `{"shape": [-1], "dtype": "uint8"}`,
		`{"json_schema": {"$ref": "#/$defs/a", "$defs": {"a": {"$dynamicAnchor": "x", "items": {"$dynamicRef": "#x"}}}}}`,
		`{"json_schema": {"$id": "urn:x", "properties": {"a": {"$ref": "#"}}, "unevaluatedProperties": false}}`,
		`{"json_schema": {"patternProperties": {"a": {"type": "string"}}, "dependentSchemas": {"a": false}}}`,
		`{"json_schema": {"if": {"const": 1}, "else": {"not": {"enum": [[], {}]}}, "uniqueItems": true}}`} {
		f.Add(seed)
	}
	values := []*setpointv1.Value{boolean(true), integer(3), number(0.3), text("a"), embedding(1), tensor("uint8", []int64{1}, 1)}
	for _, seed := range []string{`1`, `"a"`, `[1, [2], {}]`, `{"a": 1, "b": {"a": []}}`} {
		v := &structpb.Value{}
		if err := protojson.Unmarshal([]byte(seed), v); err != nil {
			f.Fatal(err)
		}
		values = append(values, jsonOf(v))
	}
	f.Fuzz(func(t *testing.T, data string) {
		c, err := UnmarshalConstraints([]byte(data))
		if err != nil {
			return
		}
		for _, typ := range allTypes() {
			d, err := NewDefinition(typ, c)
			if err != nil {
				checkRefusal(t, err, setpointv1.ErrorReason_INVALID_CONSTRAINTS, setpointv1.ErrorReason_LIMIT_EXCEEDED)
				continue
			}
			kept, err := MarshalConstraints(d.Constraints())
			if err != nil {
				t.Fatalf("marshal: %v", err)
			}
			back, err := UnmarshalConstraints(kept)
			if err != nil {
				t.Fatalf("unmarshal %s: %v", kept, err)
			}
			again, err := NewDefinition(typ, back)
			if err != nil {
				t.Fatalf("compile %s again: %v", kept, err)
			}
			for _, v := range values {
				checkAccepted(t, again, v)
			}
		}
	})
}

// FuzzTensor accepts any tensor.
func FuzzTensor(f *testing.F) {
	f.Add("float32", []byte{2, 0, 0, 0, 0, 0, 0, 0}, []byte{0, 0, 0x80, 0x7f, 0, 0, 0xc0, 0x7f})
	f.Add("bool", []byte{}, []byte{2})
	f.Add("int8", bytes.Repeat([]byte{0xff}, 16), []byte{})
	f.Add("float64", []byte{1, 0, 0, 0, 0, 0, 0, 0}, bytes.Repeat([]byte{0xfe}, 8))
	d, err := NewDefinition(typeTensor, nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, dtype string, sizes, data []byte) {
		var shape []int64
		for ; len(sizes) >= 8; sizes = sizes[8:] {
			shape = append(shape, int64(binary.LittleEndian.Uint64(sizes)))
		}
		checkAccepted(t, d, tensor(dtype, shape, data...))
	})
}

// FuzzDecode reads any bytes as stored values: what can be read can be stored again, unless it is what Accept refuses.
func FuzzDecode(f *testing.F) {
	for typ, seed := range map[setpointv1.VariableType]string{
		typeBoolean: `true`, typeInteger: `-1`, typeFloat: `"-0"`, typeString: `"\u0000\ud800"`, typeChoice: `"a"`,
		typeModule: `""`, typeJSON: `{"a": [1e308, null]}`, typeEmbedding: `{"dtype": "float32", "shape": [1]}`,
		typeTensor: `{"dtype": "int16", "shape": [1, 2], "norm": null}`,
	} {
		f.Add(int32(typ), []byte(seed), []byte{1, 2, 3, 4})
	}
	f.Fuzz(func(t *testing.T, typ int32, data, payload []byte) {
		v, err := Decode(setpointv1.VariableType(typ), data, payload)
		if err != nil {
			return
		}
		c := &setpointv1.Constraints{}
		if setpointv1.VariableType(typ) == typeChoice {
			c.Choices = []string{"a", ""}
		}
		d, err := NewDefinition(setpointv1.VariableType(typ), c)
		if err != nil {
			t.Fatalf("type %d decodes but is not known: %v", typ, err)
		}
		checkAccepted(t, d, v)
	})
}
