package client

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"strconv"
	"strings"

	"google.golang.org/protobuf/types/known/structpb"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// Bool is a value for boolean variables.
func Bool(v bool) *setpointv1.Value {
	return &setpointv1.Value{Kind: &setpointv1.Value_Boolean{Boolean: v}}
}

// Integer is a value for integer and float variables.
func Integer(v int64) *setpointv1.Value {
	return &setpointv1.Value{Kind: &setpointv1.Value_Integer{Integer: v}}
}

// Float is a value for float variables, NaN and both infinities included; a whole number suits integer variables too.
func Float(v float64) *setpointv1.Value {
	return &setpointv1.Value{Kind: &setpointv1.Value_Number{Number: v}}
}

// String is a value for string, choice and module variables. It must be UTF-8 without U+0000.
func String(v string) *setpointv1.Value {
	return &setpointv1.Value{Kind: &setpointv1.Value_String_{String_: v}}
}

// Choice is a value for choice variables: one of their choices.
func Choice(v string) *setpointv1.Value {
	return &setpointv1.Value{Kind: &setpointv1.Value_Choice{Choice: v}}
}

// Module is a value for module variables: the name of a program module.
func Module(v string) *setpointv1.Value {
	return &setpointv1.Value{Kind: &setpointv1.Value_Module{Module: v}}
}

// Embedding is a value for embedding variables. It keeps the slice, which must not change until the call is over.
func Embedding(v []float32) *setpointv1.Value {
	return &setpointv1.Value{Kind: &setpointv1.Value_Embedding{Embedding: &setpointv1.Embedding{Values: v}}}
}

// Tensor is a value for tensor variables: the elements of an array in row-major order, little-endian, so data has
// product(shape) × size of dtype bytes. It keeps both slices, which must not change until the call is over. dtype is
// one of those that setpointv1.Tensor lists, as "float32".
func Tensor(dtype string, shape []int64, data []byte) *setpointv1.Value {
	return &setpointv1.Value{Kind: &setpointv1.Value_Tensor{
		Tensor: &setpointv1.Tensor{Dtype: dtype, Shape: shape, Data: data},
	}}
}

// JSON is a value for json variables, and for every other type from its JSON form: whatever encoding/json makes of v,
// json.RawMessage included. JSON numbers are doubles on the way to the server, so an integer that a double does not hold
// exactly is an error, not silently another one; so is a number beyond a double's range.
func JSON(v any) (*setpointv1.Value, error) {
	text, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("JSON value: %w", err)
	}
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	var decoded any
	if err := decoder.Decode(&decoded); err != nil {
		return nil, fmt.Errorf("JSON value: %w", err)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("JSON value: more than one value")
	}
	value, err := jsonValue(decoded)
	if err != nil {
		return nil, fmt.Errorf("JSON value: %w", err)
	}
	return &setpointv1.Value{Kind: &setpointv1.Value_Json{Json: value}}, nil
}

func jsonValue(decoded any) (*structpb.Value, error) {
	switch v := decoded.(type) {
	case nil:
		return structpb.NewNullValue(), nil
	case bool:
		return structpb.NewBoolValue(v), nil
	case string:
		return structpb.NewStringValue(v), nil
	case json.Number:
		number, err := exactNumber(v.String())
		if err != nil {
			return nil, err
		}
		return structpb.NewNumberValue(number), nil
	case []any:
		list := &structpb.ListValue{Values: make([]*structpb.Value, 0, len(v))}
		for _, element := range v {
			converted, err := jsonValue(element)
			if err != nil {
				return nil, err
			}
			list.Values = append(list.Values, converted)
		}
		return structpb.NewListValue(list), nil
	case map[string]any:
		object := &structpb.Struct{Fields: make(map[string]*structpb.Value, len(v))}
		for key, member := range v {
			converted, err := jsonValue(member)
			if err != nil {
				return nil, err
			}
			object.Fields[key] = converted
		}
		return structpb.NewStructValue(object), nil
	}
	return nil, fmt.Errorf("unexpected %T", decoded)
}

// exactNumber is the double that a JSON number means. Fractions are rounded as everywhere; integers are not.
func exactNumber(literal string) (float64, error) {
	number, err := strconv.ParseFloat(literal, 64)
	if err != nil {
		return 0, fmt.Errorf("the number %s is beyond the range of a double", shorten(literal))
	}
	if strings.ContainsAny(literal, ".eE") {
		return number, nil
	}
	want, ok := new(big.Int).SetString(literal, 10)
	got, _ := big.NewFloat(number).Int(nil)
	if !ok || want.Cmp(got) != 0 {
		return 0, fmt.Errorf("a double does not hold the integer %s exactly; send it as a string", shorten(literal))
	}
	return number, nil
}

func shorten(literal string) string {
	if len(literal) > 40 {
		return literal[:40] + "…"
	}
	return literal
}
