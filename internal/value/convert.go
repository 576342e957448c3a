package value

import (
	"encoding/base64"
	"encoding/json"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/types/known/structpb"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// The names of the doubles that JSON has no numbers for.
const (
	nameNaN         = "NaN"
	nameInfinity    = "Infinity"
	nameNegInfinity = "-Infinity"
)

// toBoolean reads a value as a boolean.
func (s subject) toBoolean(v *setpointv1.Value) (bool, error) {
	switch k := v.GetKind().(type) {
	case *setpointv1.Value_Boolean:
		return k.Boolean, nil
	case *setpointv1.Value_Json:
		if b, ok := k.Json.GetKind().(*structpb.Value_BoolValue); ok {
			return b.BoolValue, nil
		}
	}
	return false, s.unreadable(v)
}

// toInteger reads a value as an int64.
func (s subject) toInteger(v *setpointv1.Value) (int64, error) {
	var number float64
	switch k := v.GetKind().(type) {
	case *setpointv1.Value_Integer:
		return k.Integer, nil
	case *setpointv1.Value_Number:
		number = k.Number
	case *setpointv1.Value_Json:
		switch j := k.Json.GetKind().(type) {
		case *structpb.Value_NumberValue:
			number = j.NumberValue
		case *structpb.Value_StringValue:
			if n, ok := parseInteger(j.StringValue); ok {
				return n, nil
			}
			return 0, s.mismatch("%s (json) is not the text of an integer of 64 bits", quote(j.StringValue))
		default:
			return 0, s.unreadable(v)
		}
	default:
		return 0, s.unreadable(v)
	}
	n, why := wholeNumber(number)
	if why != "" {
		return 0, s.mismatch("%s cannot be read as integer: %s", formatNumber(number), why)
	}
	return n, nil
}

// wholeNumber returns a double as an int64, or why it is none. Both bounds are exact: -2^63 is a double and an int64,
// 2^63 is a double only.
func wholeNumber(f float64) (int64, string) {
	switch {
	case f != math.Trunc(f) || math.IsInf(f, 0): // NaN is not equal to itself
		return 0, "it is not a whole number"
	case f < -(1<<63) || f >= 1<<63:
		return 0, "it does not fit in 64 bits"
	}
	return int64(f), ""
}

// parseInteger reads the decimal digits of an int64, as JSON would write it: no plus sign, no leading zeros, no spaces.
func parseInteger(text string) (int64, bool) {
	const longest = len("-9223372036854775808")
	if len(text) > longest || !isNumber(text) || strings.ContainsAny(text, ".eE") {
		return 0, false
	}
	n, err := strconv.ParseInt(text, 10, 64)
	return n, err == nil
}

// isNumber tells whether a text is a number in JSON's grammar: neither hexadecimal nor with underscores, spaces or plus.
func isNumber(text string) bool {
	if text == "" || text[0] != '-' && !isDigit(text[0]) || !isDigit(text[len(text)-1]) {
		return false
	}
	return json.Valid([]byte(text))
}

func isDigit(c byte) bool {
	return '0' <= c && c <= '9'
}

// toFloat reads a value as a double.
func (s subject) toFloat(v *setpointv1.Value) (float64, error) {
	switch k := v.GetKind().(type) {
	case *setpointv1.Value_Number:
		return k.Number, nil
	case *setpointv1.Value_Integer:
		return float64(k.Integer), nil
	case *setpointv1.Value_Json:
		switch j := k.Json.GetKind().(type) {
		case *structpb.Value_NumberValue:
			return j.NumberValue, nil
		case *structpb.Value_StringValue:
			if f, ok := parseFloat(j.StringValue); ok {
				return f, nil
			}
			return 0, s.mismatch("%s (json) is not the text of a float", quote(j.StringValue))
		}
	}
	return 0, s.unreadable(v)
}

// parseFloat reads the text of a double: a number in JSON's grammar within a double's range, or one of the three names.
func parseFloat(text string) (float64, bool) {
	if f, ok := parseName(text); ok {
		return f, true
	}
	if !isNumber(text) {
		return 0, false
	}
	f, err := strconv.ParseFloat(text, 64)
	return f, err == nil
}

// parseName reads the names of NaN and the infinities.
func parseName(text string) (float64, bool) {
	switch text {
	case nameNaN:
		return math.NaN(), true
	case nameInfinity:
		return math.Inf(1), true
	case nameNegInfinity:
		return math.Inf(-1), true
	}
	return 0, false
}

// toText reads a value as a text that the database can hold: at most maxBytes of valid UTF-8 without U+0000.
func (s subject) toText(v *setpointv1.Value) (string, error) {
	var text string
	switch k := v.GetKind().(type) {
	case *setpointv1.Value_String_:
		text = k.String_
	case *setpointv1.Value_Choice:
		text = k.Choice
	case *setpointv1.Value_Module:
		text = k.Module
	case *setpointv1.Value_Json:
		j, ok := k.Json.GetKind().(*structpb.Value_StringValue)
		if !ok {
			return "", s.unreadable(v)
		}
		text = j.StringValue
	default:
		return "", s.unreadable(v)
	}
	if len(text) > s.maxBytes {
		return "", s.tooLarge()
	}
	if why := textFault(text); why != "" {
		return "", s.invalid("%s %s", quote(text), why)
	}
	return text, nil
}

// textFault tells what keeps a text from being stored; "" if nothing does.
func textFault(text string) string {
	switch {
	case strings.IndexByte(text, 0) >= 0:
		return "contains U+0000"
	case !utf8.ValidString(text):
		return "is not valid UTF-8"
	}
	return ""
}

// toEmbedding reads a value as a vector of at least one float32.
func (s subject) toEmbedding(v *setpointv1.Value) ([]float32, error) {
	var vector []float32
	switch k := v.GetKind().(type) {
	case *setpointv1.Value_Embedding:
		vector = k.Embedding.GetValues()
	case *setpointv1.Value_Json:
		list, ok := k.Json.GetKind().(*structpb.Value_ListValue)
		if !ok {
			return nil, s.unreadable(v)
		}
		elements := list.ListValue.GetValues()
		if len(elements) > s.maxBytes/4 {
			return nil, s.tooLarge()
		}
		vector = make([]float32, len(elements))
		for i, element := range elements {
			f, why := toFloat32(element)
			if why != "" {
				return nil, s.mismatch("element %d, %s, cannot be read as float32: %s", i, describeJSON(element), why)
			}
			vector[i] = f
		}
	default:
		return nil, s.unreadable(v)
	}
	if len(vector) == 0 {
		return nil, s.mismatch("an embedding has at least one dimension")
	}
	if len(vector) > s.maxBytes/4 {
		return nil, s.tooLarge()
	}
	return vector, nil
}

// toFloat32 reads an element of an embedding's JSON form, or tells why it cannot.
func toFloat32(v *structpb.Value) (float32, string) {
	switch j := v.GetKind().(type) {
	case *structpb.Value_NumberValue:
		f := float32(j.NumberValue)
		if math.IsInf(float64(f), 0) && !math.IsInf(j.NumberValue, 0) {
			return 0, "it is too large"
		}
		return f, ""
	case *structpb.Value_StringValue:
		if f, ok := parseName(j.StringValue); ok {
			return float32(f), ""
		}
	}
	return 0, "it is not a number"
}

// toTensor reads a value as a tensor whose dtype, shape and data fit each other.
func (s subject) toTensor(v *setpointv1.Value) (*setpointv1.Tensor, error) {
	var t *setpointv1.Tensor
	switch k := v.GetKind().(type) {
	case *setpointv1.Value_Tensor:
		t = k.Tensor
	case *setpointv1.Value_Json:
		object, ok := k.Json.GetKind().(*structpb.Value_StructValue)
		if !ok {
			return nil, s.unreadable(v)
		}
		var err error
		if t, err = s.tensorFromJSON(object.StructValue.GetFields()); err != nil {
			return nil, err
		}
	default:
		return nil, s.unreadable(v)
	}
	if len(t.GetData()) > s.maxBytes {
		return nil, s.tooLarge()
	}
	if why := tensorFault(t); why != "" {
		return nil, s.invalid("%s", why)
	}
	return t, nil
}

// tensorFromJSON reads the JSON form of a tensor. Whether the parts fit each other is for the caller to check.
func (s subject) tensorFromJSON(fields map[string]*structpb.Value) (*setpointv1.Tensor, error) {
	for _, key := range slices.Sorted(maps.Keys(fields)) {
		if key != "dtype" && key != "shape" && key != "data" {
			return nil, s.mismatch("a tensor's JSON has no %s, only dtype, shape and data", quote(key))
		}
	}
	dtype, ok := fields["dtype"].GetKind().(*structpb.Value_StringValue)
	if !ok {
		return nil, s.mismatch("a tensor's JSON needs a dtype, a string")
	}
	list, ok := fields["shape"].GetKind().(*structpb.Value_ListValue)
	if !ok {
		return nil, s.mismatch("a tensor's JSON needs a shape, a list of integers")
	}
	text, ok := fields["data"].GetKind().(*structpb.Value_StringValue)
	if !ok {
		return nil, s.mismatch("a tensor's JSON needs data, a string in base64")
	}
	sizes := list.ListValue.GetValues()
	if len(sizes) > maxTensorRank {
		return nil, s.invalid("a tensor has at most %d dimensions, not %d", maxTensorRank, len(sizes))
	}
	shape := make([]int64, len(sizes))
	for i, size := range sizes {
		n, ok := sizeFromJSON(size)
		if !ok {
			return nil, s.mismatch("shape: element %d, %s, is not an integer", i, describeJSON(size))
		}
		shape[i] = n
	}
	// Two bytes of padding, at most, are not data.
	if base64.StdEncoding.DecodedLen(len(text.StringValue))-2 > s.maxBytes {
		return nil, s.tooLarge()
	}
	data, err := base64.StdEncoding.Strict().DecodeString(text.StringValue)
	if err != nil {
		return nil, s.invalid("data is not standard base64: %v", err)
	}
	return &setpointv1.Tensor{Dtype: dtype.StringValue, Shape: shape, Data: data}, nil
}

// sizeFromJSON reads an element of a shape: a whole number or its text, which is how protobuf's own JSON writes int64.
func sizeFromJSON(v *structpb.Value) (int64, bool) {
	switch j := v.GetKind().(type) {
	case *structpb.Value_NumberValue:
		n, why := wholeNumber(j.NumberValue)
		return n, why == ""
	case *structpb.Value_StringValue:
		return parseInteger(j.StringValue)
	}
	return 0, false
}
