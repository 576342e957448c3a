package expression

import (
	"math"

	"google.golang.org/protobuf/types/known/structpb"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// The types of variables, in short.
const (
	typeBoolean   = setpointv1.VariableType_VARIABLE_TYPE_BOOLEAN
	typeInteger   = setpointv1.VariableType_VARIABLE_TYPE_INTEGER
	typeFloat     = setpointv1.VariableType_VARIABLE_TYPE_FLOAT
	typeString    = setpointv1.VariableType_VARIABLE_TYPE_STRING
	typeChoice    = setpointv1.VariableType_VARIABLE_TYPE_CHOICE
	typeModule    = setpointv1.VariableType_VARIABLE_TYPE_MODULE
	typeEmbedding = setpointv1.VariableType_VARIABLE_TYPE_EMBEDDING
	typeTensor    = setpointv1.VariableType_VARIABLE_TYPE_TENSOR
	typeJSON      = setpointv1.VariableType_VARIABLE_TYPE_JSON
)

// inputTypes has how expressions see the types of variables.
var inputTypes = map[setpointv1.VariableType]*cel.Type{
	typeBoolean:   cel.BoolType,
	typeInteger:   cel.IntType,
	typeFloat:     cel.DoubleType,
	typeString:    cel.StringType,
	typeChoice:    cel.StringType,
	typeModule:    cel.StringType,
	typeEmbedding: cel.ListType(cel.DoubleType),
	typeJSON:      cel.DynType,
}

// adapter converts the Go values of inputs when a program gets to them.
type adapter struct {
	types.Adapter
}

// NativeToValue implements [types.Adapter].
func (a adapter) NativeToValue(value any) ref.Val {
	switch v := value.(type) {
	case ref.Val:
		return v
	case *structpb.Value:
		return fromJSON(v)
	case float32:
		return types.Double(v)
	}
	return a.Adapter.NativeToValue(value)
}

// fromInput converts the value of an input.
func fromInput(input Input, value *setpointv1.Value) (ref.Val, error) {
	if value.GetKind() == nil {
		return nil, newEvalError("missing input %s", quote(input.Name))
	}
	var v ref.Val
	switch k := value.GetKind().(type) {
	case *setpointv1.Value_Boolean:
		v = types.Bool(k.Boolean)
	case *setpointv1.Value_Integer:
		v = types.Int(k.Integer)
		if input.Type == typeFloat {
			v = types.Double(k.Integer)
		}
	case *setpointv1.Value_Number:
		v = types.Double(k.Number)
	case *setpointv1.Value_String_:
		v = types.String(k.String_)
	case *setpointv1.Value_Choice:
		v = types.String(k.Choice)
	case *setpointv1.Value_Module:
		v = types.String(k.Module)
	case *setpointv1.Value_Embedding:
		v = types.NewDynamicList(shared().cel.CELTypeAdapter(), k.Embedding.GetValues())
	case *setpointv1.Value_Json:
		if input.Type == typeJSON {
			return fromJSON(k.Json), nil
		}
	}
	if v == nil || input.Type == typeJSON || !inputTypes[input.Type].IsAssignableRuntimeType(v) {
		return nil, newEvalError("the value of %s is not of type %s", quote(input.Name), variableTypeName(input.Type))
	}
	return v, nil
}

// fromJSON converts a JSON value. Lists and objects are converted when they are looked into.
func fromJSON(v *structpb.Value) ref.Val {
	switch k := v.GetKind().(type) {
	case *structpb.Value_BoolValue:
		return types.Bool(k.BoolValue)
	case *structpb.Value_NumberValue:
		return types.Double(k.NumberValue)
	case *structpb.Value_StringValue:
		return types.String(k.StringValue)
	case *structpb.Value_ListValue:
		return types.NewJSONList(shared().cel.CELTypeAdapter(), k.ListValue)
	case *structpb.Value_StructValue:
		return newJSONObject(k.StructValue.GetFields())
	}
	return types.NullValue
}

// variableTypeName returns the name of a type of variables, like "integer".
func variableTypeName(t setpointv1.VariableType) string {
	if name, ok := variableTypeNames[t]; ok {
		return name
	}
	return "variable of an unknown type"
}

var variableTypeNames = map[setpointv1.VariableType]string{
	typeBoolean:   "boolean",
	typeInteger:   "integer",
	typeFloat:     "float",
	typeString:    "string",
	typeChoice:    "choice",
	typeModule:    "module",
	typeEmbedding: "embedding",
	typeTensor:    "tensor",
	typeJSON:      "json",
}

// maxExactInteger is the greatest integer up to which JSON's numbers, which are doubles, have all.
const maxExactInteger = 1 << 53

// resultType is what a type of variables makes of an expression's result.
type resultType struct {
	// fits tells whether a static type can give such a value.
	fits func(t *cel.Type) bool
	// convert makes a value of the API; none if the type of a value that only the evaluation knows is another.
	convert func(v ref.Val) (*setpointv1.Value, error)
}

var resultTypes = map[setpointv1.VariableType]resultType{
	typeBoolean:   {isKind(types.BoolKind), toBoolean},
	typeInteger:   {isKind(types.IntKind, types.UintKind), toInteger},
	typeFloat:     {isKind(types.DoubleKind, types.IntKind, types.UintKind), toFloat},
	typeString:    {isKind(types.StringKind), toText},
	typeChoice:    {isKind(types.StringKind), toText},
	typeModule:    {isKind(types.StringKind), toText},
	typeEmbedding: {isNumbers, toEmbedding},
	typeJSON:      {isJSON, toJSON},
}

func isKind(kinds ...types.Kind) func(t *cel.Type) bool {
	return func(t *cel.Type) bool {
		for _, kind := range kinds {
			if t.Kind() == kind {
				return true
			}
		}
		return false
	}
}

// isOpen tells whether a static type says nothing: dyn, or the elements of an empty list.
func isOpen(t *cel.Type) bool {
	return t.Kind() == types.DynKind || t.Kind() == types.TypeParamKind
}

func isNumbers(t *cel.Type) bool {
	if t.Kind() != types.ListKind {
		return false
	}
	element := t.Parameters()[0]
	return isOpen(element) || isKind(types.DoubleKind, types.IntKind, types.UintKind)(element)
}

func isJSON(t *cel.Type) bool {
	switch t.Kind() {
	case types.BoolKind, types.IntKind, types.UintKind, types.DoubleKind, types.StringKind, types.NullTypeKind:
		return true
	case types.ListKind:
		element := t.Parameters()[0]
		return isOpen(element) || isJSON(element)
	case types.MapKind:
		key, value := t.Parameters()[0], t.Parameters()[1]
		return (isOpen(key) || key.Kind() == types.StringKind) && (isOpen(value) || isJSON(value))
	}
	return false
}

// checkResult refuses an expression whose type cannot give a value of the variable's.
func checkResult(t *cel.Type, variable setpointv1.VariableType) *Error {
	if isOpen(t) || resultTypes[variable].fits(t) {
		return nil
	}
	hint := ""
	switch {
	case variable == typeInteger && isKind(types.DoubleKind, types.StringKind)(t):
		hint = ": use int(...)"
	case variable == typeFloat && t.Kind() == types.StringKind:
		hint = ": use double(...)"
	case variable == typeString && isKind(types.BoolKind, types.IntKind, types.UintKind, types.DoubleKind, types.BytesKind,
		types.TimestampKind, types.DurationKind)(t):
		hint = ": use string(...)"
	case variable == typeJSON && t.Kind() == types.MapKind && !isKind(types.StringKind)(t.Parameters()[0]):
		hint = ": the keys of a JSON object are strings"
	}
	return newError("the expression yields %s, but the variable is of type %s%s", shorten(cel.FormatCELType(t), 200),
		variableTypeName(variable), hint)
}

// toResult converts the result of an evaluation.
func toResult(variable setpointv1.VariableType, v ref.Val) (*setpointv1.Value, error) {
	result, err := resultTypes[variable].convert(v)
	if result == nil && err == nil {
		return nil, newEvalError("the expression yields a value of type %s, but the variable is of type %s", typeName(v),
			variableTypeName(variable))
	}
	return result, err
}

func toBoolean(v ref.Val) (*setpointv1.Value, error) {
	b, ok := v.(types.Bool)
	if !ok {
		return nil, nil
	}
	return &setpointv1.Value{Kind: &setpointv1.Value_Boolean{Boolean: bool(b)}}, nil
}

func toInteger(v ref.Val) (*setpointv1.Value, error) {
	switch v := v.(type) {
	case types.Int:
		return &setpointv1.Value{Kind: &setpointv1.Value_Integer{Integer: int64(v)}}, nil
	case types.Uint:
		if v > math.MaxInt64 {
			return nil, newEvalError("the expression yields %d, which does not fit in an integer of 64 bits", v)
		}
		return &setpointv1.Value{Kind: &setpointv1.Value_Integer{Integer: int64(v)}}, nil
	case types.Double:
		// A whole one is an integer, which its definition decides.
		return &setpointv1.Value{Kind: &setpointv1.Value_Number{Number: float64(v)}}, nil
	}
	return nil, nil
}

func toFloat(v ref.Val) (*setpointv1.Value, error) {
	f, ok := toDouble(v)
	if !ok {
		return nil, nil
	}
	return &setpointv1.Value{Kind: &setpointv1.Value_Number{Number: f}}, nil
}

// toDouble converts a number.
func toDouble(v ref.Val) (float64, bool) {
	switch v := v.(type) {
	case types.Int:
		return float64(v), true
	case types.Uint:
		return float64(v), true
	case types.Double:
		return float64(v), true
	}
	return 0, false
}

func toText(v ref.Val) (*setpointv1.Value, error) {
	s, ok := v.(types.String)
	if !ok {
		return nil, nil
	}
	if len(s) > MaxResultBytes {
		return nil, newEvalError("the result is too large: %d bytes, at most %d", len(s), MaxResultBytes)
	}
	return &setpointv1.Value{Kind: &setpointv1.Value_String_{String_: string(s)}}, nil
}

func toEmbedding(v ref.Val) (*setpointv1.Value, error) {
	list, ok := v.(traits.Lister)
	if !ok {
		return nil, nil
	}
	n := list.Size().(types.Int)
	if n > MaxElements {
		return nil, newEvalError("the result is too large: %d elements, at most %d", n, MaxElements)
	}
	values := make([]float32, n)
	for i := range n {
		element := list.Get(i)
		f, ok := toDouble(element)
		if !ok {
			return nil, newEvalError("the expression yields a list whose element %d is of type %s, but the variable is of "+
				"type embedding", i, typeName(element))
		}
		values[i] = float32(f)
		if math.IsInf(float64(values[i]), 0) && !math.IsInf(f, 0) {
			return nil, newEvalError("the expression yields a list whose element %d, %v, is too large for a float of 32 bits",
				i, f)
		}
	}
	return &setpointv1.Value{Kind: &setpointv1.Value_Embedding{Embedding: &setpointv1.Embedding{Values: values}}}, nil
}

func toJSON(v ref.Val) (*setpointv1.Value, error) {
	w := &jsonWriter{}
	j, err := w.value(v)
	if err != nil {
		return nil, err
	}
	return &setpointv1.Value{Kind: &setpointv1.Value_Json{Json: j}}, nil
}

// jsonWriter makes JSON of values, and counts what it makes.
type jsonWriter struct {
	elements, bytes int
}

// value converts a value.
func (w *jsonWriter) value(v ref.Val) (*structpb.Value, error) {
	if w.elements++; w.elements > MaxElements {
		return nil, newEvalError("the result is too large: more than %d elements", MaxElements)
	}
	switch v := v.(type) {
	case types.Null:
		return structpb.NewNullValue(), nil
	case types.Bool:
		return structpb.NewBoolValue(bool(v)), nil
	case types.String:
		if err := w.text(string(v)); err != nil {
			return nil, err
		}
		return structpb.NewStringValue(string(v)), nil
	case types.Int, types.Uint, types.Double:
		return jsonNumber(v)
	case traits.Lister:
		return w.list(v)
	case *object:
		return w.object(v)
	}
	return nil, newEvalError("the expression yields a value of type %s, which JSON does not have", typeName(v))
}

// text counts a text.
func (w *jsonWriter) text(text string) error {
	if w.bytes += len(text); w.bytes > MaxResultBytes {
		return newEvalError("the result is too large: more than %d bytes of text", MaxResultBytes)
	}
	return nil
}

// jsonNumber converts a number, unless that would make another one of it.
func jsonNumber(v ref.Val) (*structpb.Value, error) {
	f, _ := toDouble(v)
	switch v := v.(type) {
	case types.Double:
		if math.IsNaN(f) || math.IsInf(f, 0) {
			return nil, newEvalError("the expression yields %s in JSON, which has no such number", describe(v))
		}
	case types.Int:
		if v > maxExactInteger || v < -maxExactInteger {
			return nil, inexact(v)
		}
	case types.Uint:
		if v > maxExactInteger {
			return nil, inexact(v)
		}
	}
	return structpb.NewNumberValue(f), nil
}

func inexact(v ref.Val) error {
	return newEvalError("the expression yields %s in JSON, whose numbers are exact up to 2^53 only: use double(...) or "+
		"string(...)", describe(v))
}

func (w *jsonWriter) list(list traits.Lister) (*structpb.Value, error) {
	n := list.Size().(types.Int)
	if n > MaxElements {
		return nil, newEvalError("the result is too large: more than %d elements", MaxElements)
	}
	values := make([]*structpb.Value, n)
	for i := range n {
		j, err := w.value(list.Get(i))
		if err != nil {
			return nil, err
		}
		values[i] = j
	}
	return structpb.NewListValue(&structpb.ListValue{Values: values}), nil
}

func (w *jsonWriter) object(o *object) (*structpb.Value, error) {
	if o.size > MaxElements {
		return nil, newEvalError("the result is too large: more than %d elements", MaxElements)
	}
	fields := make(map[string]*structpb.Value, o.size)
	for _, key := range o.order() {
		name, ok := key.(types.String)
		if !ok {
			return nil, newEvalError("the expression yields a map with a key of type %s, but the keys of a JSON object are "+
				"strings", typeName(key))
		}
		if err := w.text(string(name)); err != nil {
			return nil, err
		}
		value, _ := o.Find(key)
		j, err := w.value(value)
		if err != nil {
			return nil, err
		}
		fields[string(name)] = j
	}
	return structpb.NewStructValue(&structpb.Struct{Fields: fields}), nil
}
