package expression

import (
	"math"
	"strings"

	"cel.dev/cel-go/common/functions"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/overloads"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"
)

// implementation computes a function of arguments none of which is an error. It charges for what it does beyond a fixed
// amount of work, and bounds its result.
type implementation func(m *meter, args []ref.Val) ref.Val

// implementationOf returns how a function is computed; the overload is empty where only the arguments tell which it is.
func implementationOf(function, overload string) implementation {
	original := originalOf(function, overload)
	plain := func(m *meter, args []ref.Val) ref.Val {
		for _, arg := range args {
			m.shallow(arg)
		}
		return bounded(m, original(args))
	}
	switch function {
	case operators.Add:
		return add(plain)
	case operators.Equals:
		return func(m *meter, args []ref.Val) ref.Val {
			m.comparison(args[0], args[1])
			return types.Bool(types.Equal(args[0], args[1]) == types.True)
		}
	case operators.NotEquals:
		return func(m *meter, args []ref.Val) ref.Val {
			m.comparison(args[0], args[1])
			return types.Bool(types.Equal(args[0], args[1]) != types.True)
		}
	case operators.In:
		return in(plain)
	case overloads.Matches:
		return matches
	case "replace":
		return replace(plain)
	case "split":
		return split(plain)
	case "join":
		return join
	case "format":
		return format(plain)
	case "indexOf", "lastIndexOf":
		return search(plain)
	case "math.@max", "math.@min":
		return walked(plain)
	case keyFunction:
		return identity
	case rangeFunction:
		return iterated
	}
	return plain
}

// originalOf returns CEL's implementation of a function.
func originalOf(function, overload string) func(args []ref.Val) ref.Val {
	bindings := shared().bindings
	o, ok := bindings[overload]
	if !ok || overload == "" {
		o = bindings[function]
	}
	return func(args []ref.Val) ref.Val {
		v := invoke(o, args)
		err, failed := v.(*types.Err)
		switch {
		case v == nil, failed && strings.HasPrefix(err.String(), "no such overload"):
			return noOverload(function, args)
		case failed && strings.HasPrefix(err.String(), "type conversion error"):
			return types.NewErr("%s cannot be converted to %s", describe(args[0]), function)
		}
		return v
	}
}

// invoke calls an implementation of CEL; nil if it does not take the arguments.
func invoke(o *functions.Overload, args []ref.Val) ref.Val {
	switch {
	case o == nil:
		return nil
	case o.OperandTrait != 0 && (len(args) == 0 || !args[0].Type().HasTrait(o.OperandTrait)):
		return nil
	case len(args) == 1 && o.Unary != nil:
		return o.Unary(args[0])
	case len(args) == 2 && o.Binary != nil:
		return o.Binary(args[0], args[1])
	case o.Function != nil:
		return o.Function(args...)
	}
	return nil
}

// noOverload tells that a function does not take its arguments.
func noOverload(function string, args []ref.Val) ref.Val {
	names := make([]string, len(args))
	for i, arg := range args {
		names[i] = typeName(arg)
	}
	list := strings.Join(names, ", ")
	return types.NewErr("%s does not apply to (%s)%s", functionName(function), list, mixed(list))
}

// tooLarge is the error of a result that is not made.
func tooLarge(what string, n, most int64) ref.Val {
	return types.NewErr("the result is too large: %d %s, at most %d", n, what, most)
}

// bounded refuses a text that is too large, and charges for one that is not.
func bounded(m *meter, v ref.Val) ref.Val {
	n := 0
	switch v := v.(type) {
	case types.String:
		n = len(v)
	case types.Bytes:
		n = len(v)
	}
	if n > MaxResultBytes {
		return tooLarge("bytes", int64(n), MaxResultBytes)
	}
	m.text(n)
	return v
}

// walked is for functions that look at all elements of a list.
func walked(plain implementation) implementation {
	return func(m *meter, args []ref.Val) ref.Val {
		for _, arg := range args {
			if _, ok := arg.(traits.Lister); ok {
				m.walk(arg)
			}
		}
		return plain(m, args)
	}
}

// add is the operator +, which makes larger things of smaller ones.
func add(plain implementation) implementation {
	return func(m *meter, args []ref.Val) ref.Val {
		switch left := args[0].(type) {
		case types.String:
			if right, ok := args[1].(types.String); ok && len(left)+len(right) > MaxResultBytes {
				return tooLarge("bytes", int64(len(left)+len(right)), MaxResultBytes)
			}
		case types.Bytes:
			if right, ok := args[1].(types.Bytes); ok && len(left)+len(right) > MaxResultBytes {
				return tooLarge("bytes", int64(len(left)+len(right)), MaxResultBytes)
			}
		case traits.Lister:
			if right, ok := args[1].(traits.Lister); ok {
				return concatenate(m, left, right)
			}
		}
		return plain(m, args)
	}
}

// concatenate makes one list of two. CEL only remembers the two, which makes lists without bounds of very little, and
// every access slower.
func concatenate(m *meter, left, right traits.Lister) ref.Val {
	n, k := left.Size().(types.Int), right.Size().(types.Int)
	if n+k > MaxElements {
		return tooLarge("elements", int64(n+k), MaxElements)
	}
	if _, ok := left.(traits.MutableLister); ok {
		// This is what a macro collects its result in.
		m.charge(uint64(k) / 4)
		return left.Add(right)
	}
	m.charge(uint64(n+k) / 4)
	elements := make([]ref.Val, 0, n+k)
	for i := range n {
		elements = append(elements, left.Get(i))
	}
	for i := range k {
		elements = append(elements, right.Get(i))
	}
	return types.NewRefValList(shared().cel.CELTypeAdapter(), elements)
}

// in is the operator in, which compares with every element of a list.
func in(plain implementation) implementation {
	return func(m *meter, args []ref.Val) ref.Val {
		if _, ok := args[1].(traits.Lister); ok {
			m.walk(args[1])
		}
		return plain(m, args)
	}
}

// search is for indexOf and lastIndexOf, which compare the sought text with every place of the other.
func search(plain implementation) implementation {
	return func(m *meter, args []ref.Val) ref.Val {
		text, ok := args[0].(types.String)
		sought, also := args[1].(types.String)
		if ok && also {
			m.charge(uint64(len(text)) * uint64(len(sought)) / textPerUnit)
		}
		return plain(m, args)
	}
}

// replace refuses a result that is too large before it is made.
func replace(plain implementation) implementation {
	return func(m *meter, args []ref.Val) ref.Val {
		text, ok := args[0].(types.String)
		from, fromOK := args[1].(types.String)
		to, toOK := args[2].(types.String)
		if !ok || !fromOK || !toOK {
			return plain(m, args)
		}
		m.text(len(text) + len(from) + len(to))
		n := int64(strings.Count(string(text), string(from)))
		if len(args) > 3 {
			if most, ok := args[3].(types.Int); ok && most >= 0 {
				n = min(n, int64(most))
			}
		}
		if size := int64(len(text)) + n*int64(len(to)-len(from)); size > MaxResultBytes {
			return tooLarge("bytes", size, MaxResultBytes)
		}
		return plain(m, args)
	}
}

// split refuses a result that is too large before it is made.
func split(plain implementation) implementation {
	return func(m *meter, args []ref.Val) ref.Val {
		text, ok := args[0].(types.String)
		separator, also := args[1].(types.String)
		if !ok || !also {
			return plain(m, args)
		}
		m.text(len(text) + len(separator))
		n := int64(strings.Count(string(text), string(separator))) + 1
		if len(args) > 2 {
			if most, ok := args[2].(types.Int); ok && most >= 0 {
				n = min(n, int64(most))
			}
		}
		if n > MaxElements {
			return tooLarge("elements", n, MaxElements)
		}
		m.charge(uint64(n) / 4)
		return plain(m, args)
	}
}

// join makes a text of a list of texts.
func join(m *meter, args []ref.Val) ref.Val {
	list, ok := args[0].(traits.Lister)
	if !ok {
		return noOverload("join", args)
	}
	separator := types.String("")
	if len(args) > 1 {
		if separator, ok = args[1].(types.String); !ok {
			return noOverload("join", args)
		}
	}
	n := list.Size().(types.Int)
	m.charge(uint64(n))
	parts := make([]string, n)
	size := max(0, int64(n)-1) * int64(len(separator))
	for i := range n {
		part, ok := list.Get(i).(types.String)
		if !ok {
			return types.NewErr("join takes a list of strings, but element %d is a %s", i, typeName(list.Get(i)))
		}
		parts[i] = string(part)
		size += int64(len(part))
	}
	if size > MaxResultBytes {
		return tooLarge("bytes", size, MaxResultBytes)
	}
	return bounded(m, types.String(strings.Join(parts, string(separator))))
}

// format refuses a result that may be too large before it is made.
func format(plain implementation) implementation {
	return func(m *meter, args []ref.Val) ref.Val {
		text, ok := args[0].(types.String)
		list, also := args[1].(traits.Lister)
		if !ok || !also {
			return plain(m, args)
		}
		size := int64(len(text))
		for i := range list.Size().(types.Int) {
			size += formattedSize(m, list.Get(i), true)
			if size > MaxResultBytes {
				return types.NewErr("the result is too large: it may have more than %d bytes", MaxResultBytes)
			}
		}
		return plain(m, args)
	}
}

// formattedSize returns at least how many bytes a value takes when it is formatted: alone, where it may be written in many
// ways, or within a list.
func formattedSize(m *meter, v ref.Val, alone bool) int64 {
	m.charge(1)
	switch v := v.(type) {
	case types.Double:
		digits := int64(24)
		if f := math.Abs(float64(v)); f >= 1e21 || f < 1e-5 && f > 0 {
			digits = 350
		}
		if alone {
			digits += maxPrecision
		}
		return digits
	case types.String:
		m.text(len(v))
		return 2 * int64(len(v)) // in hexadecimal
	case types.Bytes:
		m.text(len(v))
		return 2 * int64(len(v))
	case traits.Lister:
		size := int64(2)
		for i := range v.Size().(types.Int) {
			if size += 2 + formattedSize(m, v.Get(i), false); size > MaxResultBytes {
				break
			}
		}
		return size
	case *object:
		m.charge(uint64(v.size))
		size := int64(2)
		for _, key := range v.order() {
			value, _ := v.Find(key)
			if size += 4 + formattedSize(m, key, false) + formattedSize(m, value, false); size > MaxResultBytes {
				break
			}
		}
		return size
	}
	if alone {
		return 64 + maxPrecision + 2
	}
	return 64
}

// identity returns its argument.
func identity(_ *meter, args []ref.Val) ref.Val {
	return args[0]
}

// iterated returns what a macro goes through. The keys of a map are put in order before, which takes time.
func iterated(m *meter, args []ref.Val) ref.Val {
	switch v := args[0].(type) {
	case *object:
		m.charge(uint64(v.size))
	case traits.Lister:
	default:
		return types.NewErr("a macro goes through a list or the keys of a map, not through a %s", typeName(v))
	}
	return args[0]
}

// describe writes a value for a message, shortened.
func describe(v ref.Val) string {
	switch v := v.(type) {
	case types.String:
		return quote(string(v))
	case types.Bool, types.Int, types.Uint, types.Double:
		text, ok := v.ConvertToType(types.StringType).(types.String)
		if ok {
			return string(text)
		}
	}
	return "a " + typeName(v)
}

// typeName returns the name of a value's type in CEL.
func typeName(v ref.Val) string {
	if v == nil {
		return "nothing"
	}
	if v == types.NullValue {
		return "null"
	}
	return v.Type().TypeName()
}
