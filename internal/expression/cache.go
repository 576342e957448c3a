package expression

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	lru "github.com/hashicorp/golang-lru/v2"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// Cache remembers compiled expressions. It is safe for concurrent use.
type Cache struct {
	programs *lru.Cache[string, *Program]
}

// NewCache makes a cache of the given number of programs, at least one. A program takes about 5 KiB, and up to 200
// KiB if its expression is as long as may be.
func NewCache(size int) *Cache {
	programs, err := lru.New[string, *Program](max(size, 1))
	if err != nil {
		panic(fmt.Errorf("make a cache of programs: %w", err)) // Only for a size below one.
	}
	return &Cache{programs: programs}
}

// Compile parses and compiles an expression as [Parse] and [Source.Compile] do, unless it did so before with the same
// inputs in whatever order. Errors are not remembered.
func (c *Cache) Compile(text string, result setpointv1.VariableType, inputs []Input) (*Program, error) {
	key := cacheKey(text, result, inputs)
	if p, ok := c.programs.Get(key); ok {
		return p, nil
	}
	s, err := Parse(text)
	if err != nil {
		return nil, err
	}
	p, err := s.Compile(result, inputs)
	if err != nil {
		return nil, err
	}
	c.programs.Add(key, p)
	return p, nil
}

// cacheKey tells apart what gives different programs.
func cacheKey(text string, result setpointv1.VariableType, inputs []Input) string {
	if !slices.IsSortedFunc(inputs, compareInputs) {
		inputs = slices.Clone(inputs)
		slices.SortFunc(inputs, compareInputs)
	}
	var key strings.Builder
	part := func(text string, typ setpointv1.VariableType) {
		// The length keeps one part from reading like two.
		key.WriteString(strconv.Itoa(len(text)))
		key.WriteByte(':')
		key.WriteString(text)
		key.WriteString(strconv.Itoa(int(typ)))
		key.WriteByte(';')
	}
	part(text, result)
	for _, input := range inputs {
		part(input.Name, input.Type)
	}
	return key.String()
}

func compareInputs(a, b Input) int {
	return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Type, b.Type))
}
