package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// printable keeps text on one line and off the terminal's controls: whoever wrote it was not necessarily a friend.
func printable(text string) string {
	text = strings.ToValidUTF8(text, string(unicode.ReplacementChar))
	if !strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return text
	}
	var safe strings.Builder
	for _, r := range text {
		if unicode.IsPrint(r) {
			safe.WriteRune(r)
			continue
		}
		quoted := strconv.QuoteRune(r)
		safe.WriteString(quoted[1 : len(quoted)-1])
	}
	return safe.String()
}

func (c *cli) timeText(t *timestamppb.Timestamp) string {
	if t == nil {
		return absent
	}
	return t.AsTime().In(c.zone).Format(timeLayout)
}

// typeText is a type's name as "setpoint var register" takes it.
func typeText(t setpointv1.VariableType) string {
	return enumText(t.String(), "VARIABLE_TYPE_")
}

func enumText(name, prefix string) string {
	return strings.ToLower(strings.TrimPrefix(name, prefix))
}

// namesText is names of variables on one line.
func namesText(names []string) string {
	shown := make([]string, 0, len(names))
	for _, name := range names {
		shown = append(shown, printable(name))
	}
	return strings.Join(shown, ", ")
}

// staleNote says since when a variable is stale, and why; empty: it is not.
func staleNote(stale *setpointv1.Stale) string {
	if stale == nil {
		return ""
	}
	note := fmt.Sprintf("stale since revision %d", stale.GetRevision())
	if stale.GetCause() != "" {
		note += ", after " + printable(stale.GetCause())
	}
	if stale.GetError() != "" {
		note += ": " + printable(stale.GetError())
	}
	return note
}

// stateText says what the graph makes of a variable: how it is derived, and whether it is stale.
func stateText(expression string, stale *setpointv1.Stale) string {
	var parts []string
	if expression != "" {
		parts = append(parts, "derived: "+printable(expression))
	}
	if note := staleNote(stale); note != "" {
		parts = append(parts, note)
	}
	return strings.Join(parts, "; ")
}

// markedType is a variable's type, with a few words for each thing about it that one should know: most have none, and then the
// column is no wider.
func markedType(v *setpointv1.Variable) string {
	text := typeText(v.GetType())
	if v.GetExpression() != "" {
		text += ", derived"
	}
	if v.GetStale() != nil {
		text += ", stale"
	}
	if note := optimizedNote(v.GetOptimization()); note != "" {
		text += ", " + note
	}
	return text
}

// wrapped is words in lines of at most width bytes.
func wrapped(words []string, width int) string {
	var text strings.Builder
	used := 0
	for _, word := range words {
		switch {
		case used == 0:
		case used+1+len(word) > width:
			text.WriteByte('\n')
			used = 0
		default:
			text.WriteByte(' ')
			used++
		}
		text.WriteString(word)
		used += len(word)
	}
	return text.String()
}

// mapText is metadata on one line.
func mapText(metadata map[string]string) string {
	pairs := make([]string, 0, len(metadata))
	for _, key := range slices.Sorted(maps.Keys(metadata)) {
		pairs = append(pairs, printable(key)+"="+printable(metadata[key]))
	}
	return strings.Join(pairs, ", ")
}

// constraintsText is the constraints that are set, on one line, by the names of their fields.
func constraintsText(constraints *setpointv1.Constraints) string {
	m := constraints.ProtoReflect()
	fields := m.Descriptor().Fields()
	var parts []string
	for i := range fields.Len() {
		field := fields.Get(i)
		if !m.Has(field) {
			continue
		}
		parts = append(parts, strings.ReplaceAll(string(field.Name()), "_", "-")+" "+fieldText(field, m.Get(field)))
	}
	return strings.Join(parts, ", ")
}

func fieldText(field protoreflect.FieldDescriptor, value protoreflect.Value) string {
	switch {
	case field.IsList():
		elements := make([]string, 0, value.List().Len())
		for i := range value.List().Len() {
			elements = append(elements, scalarText(value.List().Get(i)))
		}
		return "[" + strings.Join(elements, ", ") + "]"
	case field.Message() != nil:
		return messageText(value.Message().Interface())
	}
	return scalarText(value)
}

func scalarText(value protoreflect.Value) string {
	switch v := value.Interface().(type) {
	case string:
		return quoted(v)
	case float64:
		return numberText(v, 64)
	}
	return value.String()
}

// valueText is a value in the form in which "setpoint var set" takes it.
func valueText(value *setpointv1.Value) string {
	switch kind := value.GetKind().(type) {
	case *setpointv1.Value_Boolean:
		return strconv.FormatBool(kind.Boolean)
	case *setpointv1.Value_Integer:
		return strconv.FormatInt(kind.Integer, 10)
	case *setpointv1.Value_Number:
		return numberText(kind.Number, 64)
	case *setpointv1.Value_String_:
		return quoted(kind.String_)
	case *setpointv1.Value_Choice:
		return quoted(kind.Choice)
	case *setpointv1.Value_Module:
		return quoted(kind.Module)
	case *setpointv1.Value_Embedding:
		elements := make([]string, 0, len(kind.Embedding.GetValues()))
		for _, v := range kind.Embedding.GetValues() {
			elements = append(elements, numberText(float64(v), 32))
		}
		return "[" + strings.Join(elements, ", ") + "]"
	case *setpointv1.Value_Tensor:
		shape := make([]string, 0, len(kind.Tensor.GetShape()))
		for _, size := range kind.Tensor.GetShape() {
			shape = append(shape, strconv.FormatInt(size, 10))
		}
		return fmt.Sprintf(`{"dtype": %s, "shape": [%s], "data": "%s"}`, quoted(kind.Tensor.GetDtype()),
			strings.Join(shape, ", "), base64.StdEncoding.EncodeToString(kind.Tensor.GetData()))
	case *setpointv1.Value_Json:
		return messageText(kind.Json)
	}
	return absent
}

func messageText(message proto.Message) string {
	raw, err := protojson.Marshal(message)
	if err != nil {
		return absent // a number that JSON has no form for, which no server sends
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, raw); err != nil {
		return absent
	}
	return escapeJSON(compact.String())
}

// numberText is a number as JSON writes it, or the name that stands for it.
func numberText(number float64, bits int) string {
	switch {
	case math.IsNaN(number):
		return "NaN"
	case math.IsInf(number, 1):
		return "Infinity"
	case math.IsInf(number, -1):
		return "-Infinity"
	}
	var raw []byte
	if bits == 32 {
		raw, _ = json.Marshal(float32(number)) // finite, so it has a form
	} else {
		raw, _ = json.Marshal(number)
	}
	return string(raw)
}

// quoted is text as a JSON string.
func quoted(text string) string {
	var buffer bytes.Buffer
	encoder := json.NewEncoder(&buffer)
	encoder.SetEscapeHTML(false)
	_ = encoder.Encode(text) // a string always has a form
	return escapeJSON(strings.TrimSuffix(buffer.String(), "\n"))
}

// escapeJSON writes what a terminal would not print, or would obey, as JSON's escapes. JSON has such characters only
// within strings.
func escapeJSON(text string) string {
	if !strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return text
	}
	var safe strings.Builder
	for _, r := range text {
		switch {
		case unicode.IsPrint(r):
			safe.WriteRune(r)
		case r > 0xffff:
			r -= 0x10000
			fmt.Fprintf(&safe, `\u%04x\u%04x`, 0xd800+r>>10, 0xdc00+r&0x3ff)
		default:
			fmt.Fprintf(&safe, `\u%04x`, r)
		}
	}
	return safe.String()
}

// durationText is a duration without its zero parts: 1h, not 1h0m0s.
func durationText(d time.Duration) string {
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}
