package expression

import (
	"errors"
	"fmt"
	"sync"
	"testing"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// TestCache has when a cache gives the same program, and when another one.
func TestCache(t *testing.T) {
	t.Parallel()
	inputs := []Input{{"a", typeFloat}, {"b", typeFloat}}
	cache := NewCache(10)
	get := func(text string, result setpointv1.VariableType, inputs ...Input) *Program {
		t.Helper()
		p, err := cache.Compile(text, result, inputs)
		if err != nil {
			t.Fatalf("Compile: %v", err)
		}
		return p
	}
	first := get("a", typeFloat, inputs...)
	if first != get("a", typeFloat, inputs...) {
		t.Error("the same again is another program")
	}
	if first != get("a", typeFloat, inputs[1], inputs[0]) {
		t.Error("the order of the inputs makes another program")
	}
	if inputs[0].Name != "a" {
		t.Error("the inputs of the caller are changed")
	}
	for name, other := range map[string]*Program{
		"text":           get("a ", typeFloat, inputs...),
		"result":         get("a", typeJSON, inputs...),
		"fewer inputs":   get("a", typeFloat, inputs[0]),
		"type of inputs": get("a", typeFloat, Input{"a", typeFloat}, Input{"b", typeInteger}),
		"names":          get("a", typeFloat, Input{"a", typeFloat}, Input{"b3;1:c", typeFloat}),
	} {
		if first == other {
			t.Errorf("%s: the programs are the same", name)
		}
	}
}

// TestCacheForgets has errors never remembered, and no more programs than there is room for.
func TestCacheForgets(t *testing.T) {
	t.Parallel()
	cache := NewCache(0)
	for range 2 {
		var refused *Error
		if _, err := cache.Compile("a +", typeFloat, nil); !errors.As(err, &refused) {
			t.Errorf("got error %v, want an Error", err)
		}
		if _, err := cache.Compile("a", typeFloat, nil); !errors.As(err, &refused) {
			t.Errorf("got error %v, want an Error", err)
		}
	}
	for i := range 3 {
		if _, err := cache.Compile(fmt.Sprint(i), typeInteger, nil); err != nil {
			t.Fatalf("Compile: %v", err)
		}
	}
	if n := cache.programs.Len(); n != 1 {
		t.Errorf("%d programs are remembered, want 1", n)
	}
}

// TestCacheAtOnce uses a cache from many places at the same time.
func TestCacheAtOnce(t *testing.T) {
	t.Parallel()
	cache := NewCache(3)
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			for i := range 40 {
				p, err := cache.Compile(fmt.Sprintf("n + %d", i%5), typeInteger, []Input{{"n", typeInteger}})
				if err != nil {
					t.Errorf("Compile: %v", err)
					return
				}
				v, _, err := p.Eval(t.Context(), map[string]*setpointv1.Value{"n": integer(1)})
				if err != nil || v.GetInteger() != int64(1+i%5) {
					t.Errorf("got %v and error %v", v, err)
				}
			}
		})
	}
	group.Wait()
}
