package value

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/structpb"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// nameNegZero is how a float of −0 is stored: jsonb has no −0 of its own.
const nameNegZero = "-0"

// Stored is a value as the database keeps it.
type Stored struct {
	// JSON is for jsonb: the value itself, or for embedding and tensor an object of dtype, shape, norm (the L2 norm of
	// float32 and float64 elements, else null) and sha256 (of Payload, in hexadecimal).
	JSON []byte
	// Payload is the little-endian, row-major elements of an embedding or tensor: never nil for them, and always nil for the
	// other types. It may share memory with the value it was made of.
	Payload []byte
	// SHA256 is the 32 bytes of Payload's hash; nil without a payload.
	SHA256 []byte
	// Bytes is what the value counts against limits: len(Payload) if there is one; of a text its length in UTF-8, without
	// the quotes and escapes of JSON; else len(JSON).
	Bytes int
}

// Accept converts v to the definition's type and checks the constraints. The name is the variable's, for messages and
// metadata; maxBytes bounds the result's Bytes. It refuses, always as a [*Refusal]:
//   - TYPE_MISMATCH: v cannot be read as the type (metadata: variable, type);
//   - CONSTRAINT_VIOLATION: a constraint refuses v (metadata: variable, constraint);
//   - LIMIT_EXCEEDED: v is larger than maxBytes (metadata: limit, which is "value_bytes", and value);
//   - INVALID_REQUEST: v is no value of any kind: none at all, text with U+0000, NaN in JSON, a tensor whose data does
//     not fit its shape (metadata: variable).
func (d *Definition) Accept(name string, v *setpointv1.Value, maxBytes int) (Stored, error) {
	s := subject{name: name, typ: d.typ, maxBytes: maxBytes}
	if v.GetKind() == nil {
		return Stored{}, s.invalid("there is no value")
	}
	var stored Stored
	var err error
	switch d.typ {
	case typeEmbedding:
		stored, err = d.acceptEmbedding(s, v)
	case typeTensor:
		stored, err = d.acceptTensor(s, v)
	case typeString, typeChoice, typeModule:
		stored, err = d.acceptText(s, v)
	default:
		var data []byte
		data, err = d.acceptPlain(s, v)
		stored = Stored{JSON: data, Bytes: len(data)}
	}
	if err != nil {
		return Stored{}, err
	}
	if stored.Bytes > maxBytes {
		return Stored{}, s.tooLarge()
	}
	return stored, nil
}

func (d *Definition) acceptText(s subject, v *setpointv1.Value) (Stored, error) {
	text, err := s.toText(v)
	if err != nil {
		return Stored{}, err
	}
	return Stored{JSON: appendString(nil, text), Bytes: len(text)}, d.checkText(s, text)
}

// acceptPlain handles the types that are neither text nor have a payload.
func (d *Definition) acceptPlain(s subject, v *setpointv1.Value) ([]byte, error) {
	switch d.typ {
	case typeBoolean:
		b, err := s.toBoolean(v)
		if err != nil {
			return nil, err
		}
		return strconv.AppendBool(nil, b), nil
	case typeInteger:
		n, err := s.toInteger(v)
		if err != nil {
			return nil, err
		}
		return strconv.AppendInt(nil, n, 10), d.checkInteger(s, n)
	case typeFloat:
		f, err := s.toFloat(v)
		if err != nil {
			return nil, err
		}
		return appendFloat(nil, f), d.checkFloat(s, f)
	}
	return d.acceptJSON(s, v)
}

func (d *Definition) acceptJSON(s subject, v *setpointv1.Value) ([]byte, error) {
	k, ok := v.GetKind().(*setpointv1.Value_Json)
	if !ok {
		return nil, s.unreadable(v)
	}
	data, err := encodeJSON(k.Json, s.maxBytes)
	if errors.Is(err, errTooLarge) {
		return nil, s.tooLarge()
	}
	if err != nil {
		return nil, s.invalid("%v", err)
	}
	if d.schema != nil {
		if why := d.schema.fault(k.Json.AsInterface()); why != "" {
			return nil, s.violation("json_schema", "%s", why)
		}
	}
	return data, nil
}

func (d *Definition) acceptEmbedding(s subject, v *setpointv1.Value) (Stored, error) {
	vector, err := s.toEmbedding(v)
	if err != nil {
		return Stored{}, err
	}
	if err := d.checkDimensions(s, len(vector)); err != nil {
		return Stored{}, err
	}
	return store("float32", []int64{int64(len(vector))}, encodeVector(vector)), nil
}

func (d *Definition) acceptTensor(s subject, v *setpointv1.Value) (Stored, error) {
	t, err := s.toTensor(v)
	if err != nil {
		return Stored{}, err
	}
	if err := d.checkTensor(s, t); err != nil {
		return Stored{}, err
	}
	payload := t.GetData()
	if payload == nil {
		payload = []byte{}
	}
	return store(t.GetDtype(), t.GetShape(), payload), nil
}

// store makes the stored form of a payload.
func store(dtype string, shape []int64, payload []byte) Stored {
	sum := sha256.Sum256(payload)
	data := append([]byte(`{"dtype":`), strconv.Quote(dtype)...)
	data = append(data, `,"shape":[`...)
	for i, n := range shape {
		if i > 0 {
			data = append(data, ',')
		}
		data = strconv.AppendInt(data, n, 10)
	}
	data = append(data, `],"norm":`...)
	if n, ok := euclideanNorm(dtype, payload); ok {
		data = appendFloat(data, n)
	} else {
		data = append(data, "null"...)
	}
	data = append(data, `,"sha256":"`...)
	data = hex.AppendEncode(data, sum[:])
	data = append(data, `"}`...)
	return Stored{JSON: data, Payload: payload, SHA256: sum[:], Bytes: len(payload)}
}

// appendFloat writes a double as JSON: a number, or a string for the four that jsonb cannot keep as one.
func appendFloat(data []byte, f float64) []byte {
	switch {
	case math.IsNaN(f):
		return append(data, `"`+nameNaN+`"`...)
	case math.IsInf(f, 1):
		return append(data, `"`+nameInfinity+`"`...)
	case math.IsInf(f, -1):
		return append(data, `"`+nameNegInfinity+`"`...)
	case f == 0 && math.Signbit(f):
		return append(data, `"`+nameNegZero+`"`...)
	}
	return strconv.AppendFloat(data, f, 'f', -1, 64)
}

// Decode is the inverse of [Definition.Accept]: the value in its own kind. The payload is only looked at for embedding
// and tensor; a tensor's data shares its memory. An error means that the database has what Accept never wrote.
func Decode(t setpointv1.VariableType, data, payload []byte) (*setpointv1.Value, error) {
	v, err := decode(t, bytes.TrimSpace(data), payload)
	if err != nil {
		return nil, fmt.Errorf("decode a stored value of type %q: %w", TypeName(t), err)
	}
	return v, nil
}

func decode(t setpointv1.VariableType, data, payload []byte) (*setpointv1.Value, error) {
	switch t {
	case typeBoolean:
		return decodeBoolean(data)
	case typeInteger:
		n, ok := parseInteger(string(data))
		if !ok {
			return nil, fmt.Errorf("%s is not an integer of 64 bits", quote(string(data)))
		}
		return &setpointv1.Value{Kind: &setpointv1.Value_Integer{Integer: n}}, nil
	case typeFloat:
		f, err := decodeFloat(data)
		if err != nil {
			return nil, err
		}
		return &setpointv1.Value{Kind: &setpointv1.Value_Number{Number: f}}, nil
	case typeString, typeChoice, typeModule:
		return decodeText(t, data)
	case typeEmbedding, typeTensor:
		return decodePayload(t, data, payload)
	case typeJSON:
		v := &structpb.Value{}
		if err := protojson.Unmarshal(data, v); err != nil {
			return nil, fmt.Errorf("unmarshal JSON: %w", err)
		}
		return &setpointv1.Value{Kind: &setpointv1.Value_Json{Json: v}}, nil
	}
	return nil, fmt.Errorf("there is no variable type %d", t)
}

func decodeBoolean(data []byte) (*setpointv1.Value, error) {
	switch string(data) {
	case "true":
		return &setpointv1.Value{Kind: &setpointv1.Value_Boolean{Boolean: true}}, nil
	case "false":
		return &setpointv1.Value{Kind: &setpointv1.Value_Boolean{Boolean: false}}, nil
	}
	return nil, fmt.Errorf("%s is not a boolean", quote(string(data)))
}

// decodeFloat reads what appendFloat writes.
func decodeFloat(data []byte) (float64, error) {
	text := string(data)
	if len(data) > 0 && data[0] == '"' {
		if err := json.Unmarshal(data, &text); err != nil {
			return 0, fmt.Errorf("unmarshal the text of a float: %w", err)
		}
	}
	f, ok := parseFloat(text)
	if !ok {
		return 0, fmt.Errorf("%s is not a float", quote(text))
	}
	return f, nil
}

func decodeText(t setpointv1.VariableType, data []byte) (*setpointv1.Value, error) {
	// A null would leave the text as it is.
	var text *string
	if err := json.Unmarshal(data, &text); err != nil {
		return nil, fmt.Errorf("unmarshal a string: %w", err)
	}
	if text == nil {
		return nil, errors.New("null is not a string")
	}
	switch t {
	case typeChoice:
		return &setpointv1.Value{Kind: &setpointv1.Value_Choice{Choice: *text}}, nil
	case typeModule:
		return &setpointv1.Value{Kind: &setpointv1.Value_Module{Module: *text}}, nil
	}
	return &setpointv1.Value{Kind: &setpointv1.Value_String_{String_: *text}}, nil
}

// decodePayload puts the description in JSON and the elements together again.
func decodePayload(t setpointv1.VariableType, data, payload []byte) (*setpointv1.Value, error) {
	var about struct {
		Dtype string  `json:"dtype"`
		Shape []int64 `json:"shape"`
	}
	if err := json.Unmarshal(data, &about); err != nil {
		return nil, fmt.Errorf("unmarshal the description: %w", err)
	}
	tensor := &setpointv1.Tensor{Dtype: about.Dtype, Shape: about.Shape, Data: payload}
	if why := tensorFault(tensor); why != "" {
		return nil, errors.New(why)
	}
	if t == typeTensor {
		return &setpointv1.Value{Kind: &setpointv1.Value_Tensor{Tensor: tensor}}, nil
	}
	if about.Dtype != "float32" || len(about.Shape) != 1 || about.Shape[0] == 0 {
		return nil, fmt.Errorf("dtype %s and shape %s are not an embedding's", about.Dtype, formatShape(about.Shape))
	}
	vector := &setpointv1.Embedding{Values: decodeVector(payload)}
	return &setpointv1.Value{Kind: &setpointv1.Value_Embedding{Embedding: vector}}, nil
}
