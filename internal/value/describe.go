package value

import (
	"fmt"
	"strconv"
	"strings"

	"google.golang.org/protobuf/types/known/structpb"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// How much of a text a message shows, in characters.
const (
	shownText   = 64
	shownReason = 200
	shownNames  = 8
)

// shorten cuts a text after n characters, and shows by an ellipsis that it did.
func shorten(text string, n int) string {
	count := 0
	for i := range text {
		if count == n {
			return text[:i] + "…"
		}
		count++
	}
	return text
}

// quote returns a text as a message shows it: in quotation marks, without control characters, shortened.
func quote(text string) string {
	return strconv.Quote(shorten(text, shownText))
}

// quoteAll lists texts as a message shows them, the first few in full.
func quoteAll(texts []string) string {
	var list strings.Builder
	for i, text := range texts {
		if i > 0 {
			list.WriteString(", ")
		}
		if i == shownNames {
			list.WriteString("…")
			break
		}
		list.WriteString(quote(text))
	}
	return list.String()
}

// formatNumber writes a double with the shortest digits that identify it, as JSON would: without exponent from 1e-6 up to
// 1e21, so that a million reads 1000000.
func formatNumber(f float64) string {
	if f != 0 && (f < 1e-6 && f > -1e-6 || f >= 1e21 || f <= -1e21) {
		return strconv.FormatFloat(f, 'e', -1, 64)
	}
	return strconv.FormatFloat(f, 'f', -1, 64)
}

// formatShape writes a shape as [2, 3].
func formatShape(shape []int64) string {
	sizes := make([]string, len(shape))
	for i, n := range shape {
		sizes[i] = strconv.FormatInt(n, 10)
	}
	return "[" + strings.Join(sizes, ", ") + "]"
}

// describe names a value and its kind for a message.
func describe(v *setpointv1.Value) string {
	switch k := v.GetKind().(type) {
	case *setpointv1.Value_Boolean:
		return strconv.FormatBool(k.Boolean) + " (boolean)"
	case *setpointv1.Value_Integer:
		return strconv.FormatInt(k.Integer, 10) + " (integer)"
	case *setpointv1.Value_Number:
		return formatNumber(k.Number) + " (number)"
	case *setpointv1.Value_String_:
		return quote(k.String_) + " (string)"
	case *setpointv1.Value_Choice:
		return quote(k.Choice) + " (choice)"
	case *setpointv1.Value_Module:
		return quote(k.Module) + " (module)"
	case *setpointv1.Value_Embedding:
		return fmt.Sprintf("an embedding of %d dimensions", len(k.Embedding.GetValues()))
	case *setpointv1.Value_Tensor:
		return fmt.Sprintf("a tensor of dtype %s and shape %s", quote(k.Tensor.GetDtype()),
			shorten(formatShape(k.Tensor.GetShape()), shownText))
	case *setpointv1.Value_Json:
		return describeJSON(k.Json) + " (json)"
	}
	return "a value without a kind"
}

// describeJSON names a JSON value for a message.
func describeJSON(v *structpb.Value) string {
	switch k := v.GetKind().(type) {
	case *structpb.Value_NullValue:
		return "null"
	case *structpb.Value_BoolValue:
		return strconv.FormatBool(k.BoolValue)
	case *structpb.Value_NumberValue:
		return formatNumber(k.NumberValue)
	case *structpb.Value_StringValue:
		return quote(k.StringValue)
	case *structpb.Value_ListValue:
		return "a list"
	case *structpb.Value_StructValue:
		return "an object"
	}
	return "a value without a kind"
}
