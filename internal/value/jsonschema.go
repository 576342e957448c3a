package value

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/santhosh-tekuri/jsonschema/v6/kind"
	"google.golang.org/protobuf/types/known/structpb"
)

const (
	// schemaURL is the base of a schema without $id: an address that nothing can be loaded from.
	schemaURL = "setpoint:///schema"
	// schemaDialect is the only $schema.
	schemaDialect = "https://json-schema.org/draft/2020-12/schema"
	// maxSchemaValues bounds a schema's own size, in values of JSON: compiling takes the square of it.
	maxSchemaValues = 10_000
	// maxSchemaChain bounds how many schemas may apply to one value by way of another ($ref, allOf, if, …): they nest on
	// the stack.
	maxSchemaChain = 64
	// maxSchemaSteps bounds the work of one check, in applications of a schema to a value or work alike: a few lines of
	// allOf and $ref can ask for 2^30 of them. They take a second or two, and suffice for most of a million elements.
	maxSchemaSteps = 2_000_000
	// patternUnit is the work of a search that counts as one step.
	patternUnit = 256
)

// outOfSteps is what a check panics with when its steps are used up: the library has no other way out.
type outOfSteps struct{}

// jsonSchema is a compiled JSON Schema of draft 2020-12, in which format is an annotation and asserts nothing. Checks run
// one at a time: the count of steps is shared by what the library calls back.
type jsonSchema struct {
	root    *jsonschema.Schema
	anchors []*jsonschema.Schema // what $dynamicRef may lead to

	steps int // that one check may take

	mu   sync.Mutex
	left int // of these
}

// compileSchema compiles a schema that refers to nothing outside itself.
func compileSchema(doc *structpb.Struct) (*jsonSchema, error) {
	data, err := encodeJSON(structpb.NewStructValue(doc), maxConstraintsBytes)
	if errors.Is(err, errTooLarge) {
		return nil, badConstraint("json_schema", "has more than %d bytes", maxConstraintsBytes)
	}
	if err != nil {
		return nil, badConstraint("json_schema", "%v", err)
	}
	parsed, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
	if err != nil {
		return nil, badConstraint("json_schema", "%v", err)
	}
	if countValues(parsed, maxSchemaValues) == maxSchemaValues {
		return nil, badConstraint("json_schema", "has %d values or more", maxSchemaValues)
	}
	dialect, ok := doc.GetFields()["$schema"].GetKind().(*structpb.Value_StringValue)
	if ok && strings.TrimSuffix(dialect.StringValue, "#") != schemaDialect {
		return nil, badConstraint("json_schema", "$schema is %s; only %s is supported", quote(dialect.StringValue),
			schemaDialect)
	}
	j := &jsonSchema{steps: maxSchemaSteps}
	if err := j.build(parsed); err != nil {
		return nil, badConstraint("json_schema", "%s", schemaReason(err))
	}
	return j, nil
}

// build compiles a parsed schema and prepares it for counting. What the library panics with is an error here, since the
// schema is the caller's.
func (j *jsonSchema) build(doc any) error {
	var err error
	if p := panicOf(func() { err = j.compile(doc) }); p != nil {
		return fmt.Errorf("it cannot be compiled: %v", p)
	}
	return err
}

// panicOf calls f and returns what it panicked with; nil if it returned.
func panicOf(f func()) any {
	var p any
	func() {
		defer func() { p = recover() }()
		f()
	}()
	return p
}

func (j *jsonSchema) compile(doc any) error {
	compiler := jsonschema.NewCompiler()
	compiler.DefaultDraft(jsonschema.Draft2020)
	compiler.UseLoader(noLoader{})
	compiler.UseRegexpEngine(j.compileRegexp)
	if err := compiler.AddResource(schemaURL, doc); err != nil {
		return fmt.Errorf("add the schema: %w", err)
	}
	root, err := compiler.Compile(schemaURL)
	if err != nil {
		return fmt.Errorf("compile the schema: %w", err)
	}
	j.root = root
	for _, pointer := range dynamicAnchors(doc, "", nil) {
		// What looks like an anchor inside const or enum is data, and need not compile.
		if anchor, err := compiler.Compile(schemaURL + "#" + pointer); err == nil {
			j.anchors = append(j.anchors, anchor)
		}
	}
	return j.arm()
}

// noLoader refuses to load anything.
type noLoader struct{}

func (noLoader) Load(address string) (any, error) {
	return nil, fmt.Errorf("%s is outside the schema", address)
}

// dynamicAnchors appends to found the pointers, as in a URL's fragment, of the objects with a $dynamicAnchor.
func dynamicAnchors(doc any, pointer string, found []string) []string {
	switch doc := doc.(type) {
	case map[string]any:
		if _, ok := doc["$dynamicAnchor"].(string); ok {
			found = append(found, pointer)
		}
		for key, v := range doc {
			found = dynamicAnchors(v, pointer+"/"+url.PathEscape(escapePointer(key)), found)
		}
	case []any:
		for i, v := range doc {
			found = dynamicAnchors(v, pointer+"/"+strconv.Itoa(i), found)
		}
	}
	return found
}

// escapePointer escapes a key for a JSON pointer.
func escapePointer(key string) string {
	return strings.NewReplacer("~", "~0", "/", "~1").Replace(key)
}

// arm checks every schema that can be reached and makes it count its work. The library calls Format of a schema each time
// it applies it, after type, const and enum and before everything that leads to other schemas; so each schema pays there
// for the first part of those it leads to, and its own first part is paid by those that lead to it.
func (j *jsonSchema) arm() error {
	chains := map[*jsonschema.Schema]int{}
	todo := append([]*jsonschema.Schema{j.root}, j.anchors...)
	seen := map[*jsonschema.Schema]bool{}
	for len(todo) > 0 {
		schema := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if seen[schema] {
			continue
		}
		seen[schema] = true
		if !strings.HasPrefix(schema.Location, schemaURL+"#") {
			return fmt.Errorf("it refers to %s, which is outside the schema", schema.Location)
		}
		if schema.DraftVersion != 2020 || schema.RecursiveRef != nil {
			return errors.New("a part of it is of another draft than 2020-12")
		}
		if _, err := j.chain(schema, chains); err != nil {
			return err
		}
		links := j.links(schema)
		schema.Format = &jsonschema.Format{Name: "steps", Validate: j.meter(schema, links)}
		todo = slices.Concat(todo, links.same, links.each, links.named)
	}
	return nil
}

// links is the schemas that a schema leads to, by the value that they are applied to.
type links struct {
	same  []*jsonschema.Schema // the same value
	each  []*jsonschema.Schema // possibly each of its elements or properties
	named []*jsonschema.Schema // one element or property
}

func (j *jsonSchema) links(s *jsonschema.Schema) links {
	l := links{same: []*jsonschema.Schema{s.Ref, s.Not, s.If, s.Then, s.Else}}
	l.same = slices.Concat(l.same, s.AllOf, s.AnyOf, s.OneOf)
	if s.DynamicRef != nil {
		l.same = append(l.same, s.DynamicRef.Ref)
		for _, anchor := range j.anchors {
			if anchor.DynamicAnchor == s.DynamicRef.Anchor {
				l.same = append(l.same, anchor)
			}
		}
	}
	for _, sub := range s.DependentSchemas {
		l.same = append(l.same, sub)
	}
	for _, dependency := range s.Dependencies {
		if sub, ok := dependency.(*jsonschema.Schema); ok {
			l.same = append(l.same, sub)
		}
	}
	l.each = []*jsonschema.Schema{s.PropertyNames, s.UnevaluatedProperties, s.UnevaluatedItems, s.Contains, s.Items2020}
	if sub, ok := s.AdditionalProperties.(*jsonschema.Schema); ok {
		l.each = append(l.each, sub)
	}
	for _, sub := range s.PatternProperties {
		l.each = append(l.each, sub)
	}
	for _, sub := range s.Properties {
		l.named = append(l.named, sub)
	}
	l.named = append(l.named, s.PrefixItems...)
	absent := func(sub *jsonschema.Schema) bool { return sub == nil }
	l.same, l.each = slices.DeleteFunc(l.same, absent), slices.DeleteFunc(l.each, absent)
	return l
}

// chain returns how many schemas lie on the longest way from s over schemas of the same value; known has what is known,
// and 0 for those on the present way. A way that comes back to where it was could be followed for ever.
func (j *jsonSchema) chain(s *jsonschema.Schema, known map[*jsonschema.Schema]int) (int, error) {
	if length, ok := known[s]; ok {
		if length == 0 {
			return 0, fmt.Errorf("%s applies to the same value again and again", pointerOf(s))
		}
		return length, nil
	}
	known[s] = 0
	longest := 0
	for _, next := range j.links(s).same {
		length, err := j.chain(next, known)
		if err != nil {
			return 0, err
		}
		longest = max(longest, length)
	}
	if longest == maxSchemaChain {
		return 0, fmt.Errorf("%s applies more than %d schemas to one value in a row", pointerOf(s), maxSchemaChain)
	}
	known[s] = longest + 1
	return longest + 1, nil
}

// pointerOf returns where a schema is in the document, like #/properties/a.
func pointerOf(s *jsonschema.Schema) string {
	return strings.TrimPrefix(s.Location, schemaURL)
}

// entryCost is the work of a schema's type, const and enum, in steps.
func entryCost(s *jsonschema.Schema) int {
	cost := 1
	if s.Const != nil {
		cost += countValues(*s.Const, maxSchemaValues)
	}
	if s.Enum != nil {
		cost += countValues(s.Enum.Values, maxSchemaValues)
	}
	return cost
}

// meter returns the function that takes the steps of applying a schema to a value, before it is done.
func (j *jsonSchema) meter(s *jsonschema.Schema, l links) func(any) error {
	sum := func(schemas []*jsonschema.Schema) int {
		total := 0
		for _, sub := range schemas {
			total += entryCost(sub)
		}
		return total
	}
	same := sum(l.same) + len(s.Required) + len(s.Dependencies) + len(s.DependentRequired) + len(s.DependentSchemas)
	each := 1 + sum(l.each)
	prefix := sum(s.PrefixItems)
	named := make(map[string]int, len(s.Properties))
	for name, sub := range s.Properties {
		named[name] = entryCost(sub)
	}
	return func(v any) error {
		j.spend(same)
		switch v := v.(type) {
		case map[string]any:
			j.spend(each * len(v))
			for key := range v {
				j.spend(named[key])
			}
		case []any:
			j.spend(each*len(v) + prefix)
			if s.UniqueItems {
				j.spend(uniqueCost(v))
			}
		}
		return nil
	}
}

// uniqueCost is the work of uniqueItems, in steps: the library compares up to 20 items in pairs, and hashes more.
func uniqueCost(items []any) int {
	cost := countValues(items, maxSchemaSteps+1)
	if len(items) <= 20 {
		cost *= max(1, len(items)/2)
	}
	return cost
}

// spend takes steps. It panics when there are none left.
func (j *jsonSchema) spend(steps int) {
	j.left -= steps
	if j.left < 0 {
		panic(outOfSteps{})
	}
}

// meteredRegexp is a pattern whose searches take steps.
type meteredRegexp struct {
	*pattern
	schema *jsonSchema
}

func (j *jsonSchema) compileRegexp(text string) (jsonschema.Regexp, error) {
	p, err := compilePattern(text)
	if err != nil {
		return nil, err
	}
	return &meteredRegexp{p, j}, nil
}

func (m *meteredRegexp) MatchString(text string) bool {
	m.schema.spend(1 + m.work(len(text))/patternUnit)
	return m.regexp.MatchString(text)
}

func (m *meteredRegexp) String() string {
	return m.text
}

// fault tells why a value breaks the schema; "" if it does not.
func (j *jsonSchema) fault(v any) string {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.left = j.steps
	var err error
	p := panicOf(func() {
		j.spend(entryCost(j.root))
		err = j.root.Validate(v)
	})
	switch {
	case p == any(outOfSteps{}):
		return fmt.Sprintf("the value takes more than %d steps to check against the JSON schema", j.steps)
	case p != nil:
		// A defect of the library must neither let a value pass nor take the server down.
		return shorten(fmt.Sprintf("the value cannot be checked against the JSON schema: %v", p), shownReason)
	case err != nil:
		return violationText(err)
	}
	return ""
}

// countValues counts the values in a JSON document, itself included, up to limit.
func countValues(doc any, limit int) int {
	count := 1
	switch doc := doc.(type) {
	case map[string]any:
		for _, v := range doc {
			if count >= limit {
				return limit
			}
			count += countValues(v, limit-count)
		}
	case []any:
		for _, v := range doc {
			if count >= limit {
				return limit
			}
			count += countValues(v, limit-count)
		}
	}
	return min(count, limit)
}

// schemaReason is why a schema does not compile, for a message.
func schemaReason(err error) string {
	var against *jsonschema.SchemaValidationError
	var invalid *jsonschema.ValidationError
	if errors.As(err, &against) && errors.As(against.Err, &invalid) {
		leaf := firstLeaf(invalid)
		return fmt.Sprintf("at %s: %s", pointerText(leaf.InstanceLocation), leafText(leaf))
	}
	var load *jsonschema.LoadURLError
	if errors.As(err, &load) {
		return fmt.Sprintf("it refers to %s, which is outside the schema",
			quote(strings.TrimPrefix(load.URL, "setpoint:///")))
	}
	if inner := errors.Unwrap(err); inner != nil {
		err = inner
	}
	return shorten(strings.ReplaceAll(err.Error(), schemaURL, ""), shownReason)
}

// violationText is why a value breaks a schema, for a message: the first of the rules broken, by its place in the value.
func violationText(err error) string {
	var invalid *jsonschema.ValidationError
	if !errors.As(err, &invalid) {
		return shorten(err.Error(), shownReason)
	}
	leaf := firstLeaf(invalid)
	if _, ok := leaf.ErrorKind.(*kind.PropertyNames); ok {
		return "a property breaks the JSON schema: " + leafText(leaf)
	}
	if len(leaf.InstanceLocation) == 0 {
		return "the value breaks the JSON schema: " + leafText(leaf)
	}
	return fmt.Sprintf("the value at %s breaks the JSON schema: %s", pointerText(leaf.InstanceLocation), leafText(leaf))
}

// pointerText is a JSON pointer for a message.
func pointerText(location []string) string {
	if len(location) == 0 {
		return "the root"
	}
	var text strings.Builder
	for _, key := range location {
		text.WriteString("/" + escapePointer(key))
	}
	quoted := strconv.Quote(shorten(text.String(), shownReason))
	return quoted[1 : len(quoted)-1]
}

// firstLeaf returns the error without causes that is first by its place in the value: the order in which the library
// finds them is that of Go's maps. An error about a property's name is taken as a leaf: its causes speak about the name.
func firstLeaf(err *jsonschema.ValidationError) *jsonschema.ValidationError {
	var first *jsonschema.ValidationError
	todo := []*jsonschema.ValidationError{err}
	for len(todo) > 0 {
		e := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		_, isName := e.ErrorKind.(*kind.PropertyNames)
		if len(e.Causes) > 0 && !isName {
			for _, cause := range slices.Backward(e.Causes) {
				todo = append(todo, cause)
			}
			continue
		}
		if first == nil || compareLeaves(e, first) < 0 {
			first = e
		}
	}
	return first
}

func compareLeaves(a, b *jsonschema.ValidationError) int {
	return cmp.Or(
		slices.Compare(a.InstanceLocation, b.InstanceLocation),
		cmp.Compare(a.SchemaURL, b.SchemaURL),
	)
}

// leafText is what a leaf says, in the library's words except for numbers, which it rounds.
func leafText(leaf *jsonschema.ValidationError) string {
	number := func(r *big.Rat) string {
		f, _ := r.Float64()
		return formatNumber(f)
	}
	switch k := leaf.ErrorKind.(type) {
	case nil:
		return "it does not fit"
	case *kind.Minimum:
		return fmt.Sprintf("%s is below the minimum %s", number(k.Got), number(k.Want))
	case *kind.Maximum:
		return fmt.Sprintf("%s is above the maximum %s", number(k.Got), number(k.Want))
	case *kind.ExclusiveMinimum:
		return fmt.Sprintf("%s is not above %s", number(k.Got), number(k.Want))
	case *kind.ExclusiveMaximum:
		return fmt.Sprintf("%s is not below %s", number(k.Got), number(k.Want))
	case *kind.MultipleOf:
		return fmt.Sprintf("%s is not a multiple of %s", number(k.Got), number(k.Want))
	case *kind.AdditionalProperties:
		slices.Sort(k.Properties)
	case *kind.PropertyNames:
		text := "its name " + quote(k.Property)
		if len(leaf.Causes) > 0 {
			text += ": " + leafText(firstLeaf(leaf.Causes[0]))
		}
		return text
	}
	alone := jsonschema.ValidationError{ErrorKind: leaf.ErrorKind}
	return shorten(strings.TrimPrefix(alone.Error(), "at '': "), shownReason)
}
