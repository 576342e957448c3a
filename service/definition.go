package service

import (
	"fmt"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/setpointdb/setpoint/internal/value"
)

// definition is what a variable's values are checked against, as of the revision that last changed it.
type definition struct {
	revision int64
	check    *value.Definition
	learned  time.Time
}

// definitionAge is how long a definition is remembered. It has to be less than a session that has ended is: the id of one
// that was forgotten begins with revision 1 again, and a definition of before must not be taken for one of after.
const definitionAge = 12 * time.Hour

// unknownDefinition is the revision to send for a variable whose definition is not known: no variable has it.
const unknownDefinition = -1

type definitionKey struct {
	sessionID string
	variable  string // As callers name it: id or name.
}

// definitions remembers compiled definitions, so that a write needs no read before it. They may be out of date: the
// statement that writes refuses a value that was checked against another revision, and says what the definition is now.
type definitions struct {
	cache *lru.Cache[definitionKey, definition]
}

const definitionsKept = 1 << 14

func newDefinitions() *definitions {
	cache, err := lru.New[definitionKey, definition](definitionsKept)
	if err != nil {
		panic(err) // Only a size below 1 is refused.
	}
	return &definitions{cache: cache}
}

func (d *definitions) get(sessionID, variable string) (definition, bool) {
	def, ok := d.cache.Get(definitionKey{sessionID, variable})
	if !ok || time.Since(def.learned) > definitionAge {
		return definition{}, false
	}
	return def, true
}

// learn compiles and remembers what the database says.
func (d *definitions) learn(sessionID, variable, kind string, constraints []byte, revision int64) (definition, error) {
	check, err := compile(kind, constraints)
	if err != nil {
		return definition{}, fmt.Errorf("variable %q: %w", variable, err)
	}
	def := definition{revision: revision, check: check, learned: time.Now()}
	d.remember(sessionID, variable, def)
	return def, nil
}

func (d *definitions) remember(sessionID, variable string, def definition) {
	d.cache.Add(definitionKey{sessionID, variable}, def)
}

// compile reads a definition as the database keeps it.
func compile(kind string, constraints []byte) (*value.Definition, error) {
	t, ok := value.ParseType(kind)
	if !ok {
		return nil, fmt.Errorf("unknown type %q", kind)
	}
	c, err := value.UnmarshalConstraints(constraints)
	if err != nil {
		return nil, err
	}
	return value.NewDefinition(t, c)
}
