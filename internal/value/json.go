package value

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"

	"google.golang.org/protobuf/types/known/structpb"
)

// maxJSONDepth is how many lists and objects may lie in each other; the package's documentation has the reason.
const maxJSONDepth = 30

// errTooLarge is what encodeJSON gives up with.
var errTooLarge = errors.New("the JSON is too large")

// encodeJSON writes a JSON value with sorted keys and without spaces, and checks on the way that jsonb and every client
// can hold it. It stops with errTooLarge as soon as there are more than maxBytes.
func encodeJSON(v *structpb.Value, maxBytes int) ([]byte, error) {
	e := jsonEncoder{maxBytes: maxBytes}
	if err := e.value(v, 0); err != nil {
		return nil, err
	}
	return e.data, nil
}

type jsonEncoder struct {
	data     []byte
	maxBytes int
}

// value writes v, which lies in depth lists and objects.
func (e *jsonEncoder) value(v *structpb.Value, depth int) error {
	if len(e.data) > e.maxBytes {
		return errTooLarge
	}
	switch k := v.GetKind().(type) {
	case *structpb.Value_NullValue:
		e.data = append(e.data, "null"...)
	case *structpb.Value_BoolValue:
		e.data = strconv.AppendBool(e.data, k.BoolValue)
	case *structpb.Value_NumberValue:
		return e.number(k.NumberValue)
	case *structpb.Value_StringValue:
		return e.text(k.StringValue)
	case *structpb.Value_ListValue:
		return e.list(k.ListValue.GetValues(), depth+1)
	case *structpb.Value_StructValue:
		return e.object(k.StructValue.GetFields(), depth+1)
	default:
		return errors.New("the JSON has an element without a value")
	}
	return nil
}

func (e *jsonEncoder) number(f float64) error {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return fmt.Errorf("the JSON has a number %s, which JSON does not know", formatNumber(f))
	}
	// Adding 0 makes 0 of −0.
	e.data = strconv.AppendFloat(e.data, f+0, 'f', -1, 64)
	return nil
}

func (e *jsonEncoder) text(text string) error {
	if len(text) > e.maxBytes {
		return errTooLarge
	}
	if why := textFault(text); why != "" {
		return fmt.Errorf("the text %s in the JSON %s", quote(text), why)
	}
	e.data = appendString(e.data, text)
	return nil
}

func (e *jsonEncoder) list(values []*structpb.Value, depth int) error {
	if err := checkDepth(depth); err != nil {
		return err
	}
	e.data = append(e.data, '[')
	for i, v := range values {
		if i > 0 {
			e.data = append(e.data, ',')
		}
		if err := e.value(v, depth); err != nil {
			return err
		}
	}
	e.data = append(e.data, ']')
	return nil
}

func (e *jsonEncoder) object(fields map[string]*structpb.Value, depth int) error {
	if err := checkDepth(depth); err != nil {
		return err
	}
	e.data = append(e.data, '{')
	for i, key := range slices.Sorted(maps.Keys(fields)) {
		if i > 0 {
			e.data = append(e.data, ',')
		}
		if err := e.text(key); err != nil {
			return err
		}
		e.data = append(e.data, ':')
		if err := e.value(fields[key], depth); err != nil {
			return err
		}
	}
	e.data = append(e.data, '}')
	return nil
}

func checkDepth(depth int) error {
	if depth > maxJSONDepth {
		return fmt.Errorf("the JSON nests deeper than %d levels", maxJSONDepth)
	}
	return nil
}

// appendString writes a text as a JSON string, escaping no more than JSON demands: what is longest in the database is not
// longer than it must be, and PostgreSQL writes strings the same way.
func appendString(data []byte, text string) []byte {
	const digits = "0123456789abcdef"
	data = append(data, '"')
	start := 0
	for i := range len(text) {
		c := text[i]
		if c >= ' ' && c != '"' && c != '\\' {
			continue
		}
		data = append(data, text[start:i]...)
		start = i + 1
		switch c {
		case '"', '\\':
			data = append(data, '\\', c)
		case '\n':
			data = append(data, '\\', 'n')
		case '\t':
			data = append(data, '\\', 't')
		case '\r':
			data = append(data, '\\', 'r')
		default:
			data = append(data, '\\', 'u', '0', '0', digits[c>>4], digits[c&15])
		}
	}
	data = append(data, text[start:]...)
	return append(data, '"')
}
