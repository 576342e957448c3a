package server

import (
	"fmt"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// findNUL returns the path of a text field or map key that holds U+0000, "" if there is none.
func findNUL(m protoreflect.Message) string {
	found := ""
	m.Range(func(field protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if path := nulInField(field, v); path != "" {
			found = string(field.Name()) + path
		}
		return found == ""
	})
	return strings.TrimRight(found, " ")
}

// nulInField returns "" for none, and else the path below the field, which is a space for the field itself.
func nulInField(field protoreflect.FieldDescriptor, v protoreflect.Value) string {
	switch {
	case field.IsMap():
		return nulInMap(field, v.Map())
	case field.IsList():
		return nulInList(field, v.List())
	default:
		return nulInSingle(field, v)
	}
}

func nulInMap(field protoreflect.FieldDescriptor, m protoreflect.Map) string {
	found := ""
	m.Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
		if field.MapKey().Kind() == protoreflect.StringKind && strings.ContainsRune(k.String(), 0) {
			found = "[key]"
		} else if path := nulInSingle(field.MapValue(), v); path != "" {
			found = fmt.Sprintf("[%q]%s", k.String(), path)
		}
		return found == ""
	})
	return found
}

func nulInList(field protoreflect.FieldDescriptor, l protoreflect.List) string {
	if kind := field.Kind(); kind != protoreflect.StringKind && kind != protoreflect.MessageKind {
		return "" // A vector has many elements.
	}
	for i := range l.Len() {
		if path := nulInSingle(field, l.Get(i)); path != "" {
			return fmt.Sprintf("[%d]%s", i, path)
		}
	}
	return ""
}

func nulInSingle(field protoreflect.FieldDescriptor, v protoreflect.Value) string {
	switch field.Kind() {
	case protoreflect.StringKind:
		if strings.ContainsRune(v.String(), 0) {
			return " "
		}
	case protoreflect.MessageKind:
		if path := findNUL(v.Message()); path != "" {
			return "." + path
		}
	}
	return ""
}
