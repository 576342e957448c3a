package expression

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"reflect"
	"slices"

	"google.golang.org/protobuf/types/known/structpb"

	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"
)

// maxKeyBytes bounds the text of a key: looking one up reads all of it, and is not charged for.
const maxKeyBytes = 64 << 10

// object is every map of expressions: a JSON object, a map that an expression writes, deps. CEL's own maps are walked
// through in an order that changes from one evaluation to the next; this one is walked through in the order of its keys.
type object struct {
	// find returns the value of a key in the form that normalKey gives it.
	find func(key any) (ref.Val, bool)
	// size is the number of keys.
	size int
	// keys returns a new list of them.
	keys func() []ref.Val
	// sorted are the keys in their order, once somebody asked for it.
	sorted []ref.Val
}

var _ traits.Mapper = (*object)(nil)

// newObject makes a map of what an expression writes. It refuses keys of a wrong type and one that comes twice.
func newObject(keys, values []ref.Val) ref.Val {
	content := make(map[any]ref.Val, len(keys))
	for i, key := range keys {
		normal, err := normalKey(key)
		if err != nil {
			return types.WrapErr(err)
		}
		if _, ok := content[normal]; ok {
			return types.NewErr("the map has the key %s twice", describe(key))
		}
		content[normal] = values[i]
	}
	return &object{
		find: func(key any) (ref.Val, bool) {
			v, ok := content[key]
			return v, ok
		},
		size: len(keys),
		keys: func() []ref.Val { return keys },
	}
}

// newJSONObject makes a map of a JSON object, which is converted as far as it is looked at.
func newJSONObject(fields map[string]*structpb.Value) ref.Val {
	return &object{
		find: func(key any) (ref.Val, bool) {
			name, ok := key.(string)
			if !ok {
				return nil, false
			}
			v, ok := fields[name]
			if !ok {
				return nil, false
			}
			return fromJSON(v), true
		},
		size: len(fields),
		keys: func() []ref.Val {
			keys := make([]ref.Val, 0, len(fields))
			for key := range fields {
				keys = append(keys, types.String(key))
			}
			return keys
		},
	}
}

// normalKey returns a key as a Go value, so that keys are equal when CEL says so: numbers by what they are worth.
func normalKey(key ref.Val) (any, error) {
	switch k := key.(type) {
	case types.Bool:
		return bool(k), nil
	case types.Int:
		return int64(k), nil
	case types.Uint:
		if k <= math.MaxInt64 {
			return int64(k), nil
		}
		return uint64(k), nil
	case types.Double:
		// No map has such a key, but one may be looked up: JSON's numbers are doubles.
		switch {
		case k != types.Double(math.Trunc(float64(k))):
			return float64(k), nil
		case k >= -(1<<63) && k < 1<<63:
			return int64(k), nil
		case k >= 1<<63 && k < 1<<64:
			return uint64(k), nil
		}
		return float64(k), nil
	case types.String:
		if len(k) > maxKeyBytes {
			return nil, fmt.Errorf("a key of a map has at most %d bytes, not %d", maxKeyBytes, len(k))
		}
		return string(k), nil
	}
	return nil, fmt.Errorf("a key of a map is a string, an int, a uint or a bool, not a %s", typeName(key))
}

// order returns the keys, sorted: false, true, numbers, strings. That takes as long as there are keys, so who calls it
// must have charged for them.
func (o *object) order() []ref.Val {
	if o.sorted == nil {
		o.sorted = o.keys()
		slices.SortFunc(o.sorted, compareKeys)
	}
	return o.sorted
}

func compareKeys(a, b ref.Val) int {
	rank := func(v ref.Val) int {
		switch v := v.(type) {
		case types.Bool:
			if v {
				return 1
			}
			return 0
		case types.Int:
			return 2
		case types.Uint:
			// A uint that is an int's equal cannot be in the same map.
			if v > math.MaxInt64 {
				return 3
			}
			return 2
		}
		return 4
	}
	number := func(v ref.Val) int64 {
		if u, ok := v.(types.Uint); ok {
			return int64(u)
		}
		return int64(v.(types.Int))
	}
	if c := cmp.Compare(rank(a), rank(b)); c != 0 {
		return c
	}
	switch rank(a) {
	case 2:
		return cmp.Compare(number(a), number(b))
	case 3:
		return cmp.Compare(a.(types.Uint), b.(types.Uint))
	case 4:
		return cmp.Compare(a.(types.String), b.(types.String))
	}
	return 0
}

// Find implements [traits.Mapper].
func (o *object) Find(key ref.Val) (ref.Val, bool) {
	normal, err := normalKey(key)
	if err != nil {
		return types.WrapErr(err), false
	}
	return o.find(normal)
}

// Get implements [traits.Indexer].
func (o *object) Get(key ref.Val) ref.Val {
	v, ok := o.Find(key)
	switch {
	case ok:
		return v
	case v != nil:
		return v
	}
	return types.NewErr("no such key: %s", describe(key))
}

// Contains implements [traits.Container].
func (o *object) Contains(key ref.Val) ref.Val {
	v, ok := o.Find(key)
	if !ok && v != nil {
		return v
	}
	return types.Bool(ok)
}

// Iterator implements [traits.Iterable]: it gives the keys in their order.
func (o *object) Iterator() traits.Iterator {
	return types.NewRefValList(types.DefaultTypeAdapter, o.order()).Iterator()
}

// Size implements [traits.Sizer].
func (o *object) Size() ref.Val {
	return types.Int(o.size)
}

// Equal implements [ref.Val].
func (o *object) Equal(other ref.Val) ref.Val {
	p, ok := other.(*object)
	if !ok || o.size != p.size {
		return types.False
	}
	for _, key := range o.order() {
		left, _ := o.Find(key)
		right, ok := p.Find(key)
		if !ok || types.Equal(left, right) != types.True {
			return types.False
		}
	}
	return types.True
}

// ConvertToType implements [ref.Val].
func (o *object) ConvertToType(t ref.Type) ref.Val {
	switch t {
	case types.MapType:
		return o
	case types.TypeType:
		return types.MapType
	}
	return types.NewErr("a map cannot be converted to %s", t.TypeName())
}

// ConvertToNative implements [ref.Val]. Nothing needs a Go value of a map.
func (o *object) ConvertToNative(reflect.Type) (any, error) {
	return nil, errors.New("a map of an expression has no Go value")
}

// Type implements [ref.Val].
func (o *object) Type() ref.Type {
	return types.MapType
}

// Value implements [ref.Val].
func (o *object) Value() any {
	return o
}
