package value

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/structpb"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

func TestSchema(t *testing.T) {
	t.Parallel()
	const point = `{
		"$schema": "https://json-schema.org/draft/2020-12/schema",
		"$defs": {"coordinate": {"type": "number", "minimum": 0, "exclusiveMaximum": 1.5}},
		"type": "object",
		"properties": {"x": {"$ref": "#/$defs/coordinate"}, "y": {"$ref": "#/$defs/coordinate"}, "tags": {
			"items": {"type": "string", "pattern": "^[a-z]+$"}, "uniqueItems": true}},
		"required": ["x"],
		"additionalProperties": false
	}`
	const tree = `{
		"$id": "https://example.com/tree", "$dynamicAnchor": "node",
		"type": "object", "properties": {"children": {"type": "array", "items": {"$dynamicRef": "#node"}}},
		"unevaluatedProperties": false
	}`
	tests := []struct {
		name, schema, v string
		want            string // what is wrong; empty if nothing
	}{
		{"empty schema", `{}`, `[1]`, ""},
		{"fits", point, `{"x": 0, "y": 1.25, "tags": ["a", "b"]}`, ""},
		{"wrong type at the root", point, `[]`, "the value breaks the JSON schema: got array, want object"},
		{"missing", point, `{"y": 1}`, "the value breaks the JSON schema: missing property 'x'"},
		{"wrong type inside", point, `{"x": "a"}`, "the value at /x breaks the JSON schema: got string, want number"},
		{"below minimum", point, `{"x": -0.0001}`,
			"the value at /x breaks the JSON schema: -0.0001 is below the minimum 0"},
		{"not below maximum", point, `{"x": 1234567}`,
			"the value at /x breaks the JSON schema: 1234567 is not below 1.5"},
		{"first of several", point, `{"x": 1, "y": 7, "tags": ["A", "B"]}`,
			"the value at /tags/0 breaks the JSON schema: 'A' does not match pattern '^[a-z]+$'"},
		{"duplicates", point, `{"x": 1, "tags": ["a", "b", "a"]}`,
			"the value at /tags breaks the JSON schema: items at 0 and 2 are equal"},
		{"additional", point, `{"x": 1, "z": 1, "w": 2, "a": 3}`,
			"the value breaks the JSON schema: additional properties 'a', 'w', 'z' not allowed"},
		{"a path is escaped", `{"additionalProperties": {"type": "null"}}`, `{"a/b~\n": 1}`,
			`the value at /a~1b~0\n breaks the JSON schema: got number, want null`},
		{"a property's name", `{"propertyNames": {"maxLength": 2}}`, `{"abc": 1}`,
			`a property breaks the JSON schema: its name "abc": maxLength: got 3, want 2`},
		{"multiple", `{"multipleOf": 0.5}`, `0.75`, "the value breaks the JSON schema: 0.75 is not a multiple of 0.5"},
		{"maximum", `{"maximum": 5}`, `1e6`, "the value breaks the JSON schema: 1000000 is above the maximum 5"},
		{"exclusive minimum", `{"exclusiveMinimum": 5}`, `5`, "the value breaks the JSON schema: 5 is not above 5"},
		{"not", `{"not": {"type": "string"}}`, `"a"`, "the value breaks the JSON schema: 'not' failed"},
		{"const of a number", `{"const": 1}`, `1.0`, ""},
		{"enum", `{"enum": ["a", 1]}`, `2`, "the value breaks the JSON schema: value must be one of 'a', 1"},
		{"contains", `{"contains": {"const": 1}}`, `[]`,
			"the value breaks the JSON schema: no items match contains schema"},
		{"format asserts nothing", `{"format": "email"}`, `"nobody"`, ""},
		{"recursion through a dynamic reference", tree, `{"children": [{"children": []}]}`, ""},
		{"recursion refuses", tree, `{"children": [{"children": [{"x": 1}]}]}`,
			"the value at /children/0/children/0/x breaks the JSON schema: false schema"},
		{"a reference by an id inside", `{"$defs": {"a": {"$id": "https://example.com/a", "type": "null"}},
			"$ref": "https://example.com/a"}`, `1`, "the value breaks the JSON schema: got number, want null"},
		{"dependent schemas", `{"dependentSchemas": {"a": {"required": ["b"]}}}`, `{"a": 1}`,
			"the value breaks the JSON schema: missing property 'b'"},
		{"conditions", `{"if": {"type": "string"}, "then": {"minLength": 2}, "else": {"type": "null"}}`, `"a"`,
			"the value breaks the JSON schema: minLength: got 1, want 2"},
		{"prefix and rest", `{"prefixItems": [true], "items": false}`, `[1, 2]`,
			"the value at /1 breaks the JSON schema: false schema"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := define(t, typeJSON, schemaText(t, tt.schema)).Accept("config", jsonText(t, tt.v), limit)
			want := ""
			if tt.want != "" {
				want = "json_schema | config: " + tt.want
			}
			checkViolation(t, err, "config", want)
		})
	}
}

func TestInvalidSchema(t *testing.T) {
	t.Parallel()
	chain := func(links int) string {
		defs := make([]string, links)
		for i := range defs {
			defs[i] = fmt.Sprintf(`"%d": {"$ref": "#/$defs/%d"}`, i, i+1)
		}
		return fmt.Sprintf(`{"$ref": "#/$defs/0", "$defs": {%s, "%d": {}}}`, strings.Join(defs, ","), links)
	}
	tests := []struct {
		name, schema, want string
	}{
		{"wrong type", `{"properties": {"a": {"type": "text"}}}`, `at /properties/a/type: value must be one of 'array', ` +
			`'boolean', 'integer', 'null', 'number', 'object', 'string'`},
		{"broken pattern", `{"pattern": "("}`,
			`at /pattern: '(' is not valid regex: "(" does not compile: error parsing regexp: missing closing ): ` + "`(`"},
		{"broken pattern of properties", `{"patternProperties": {"(": {}}}`, `at /patternProperties: its name "(": '(' is not valid ` +
			`regex: "(" does not compile: error parsing regexp: missing closing ): ` + "`(`"},
		{"remote reference", `{"properties": {"a": {"$ref": "https://example.com/a.json"}}}`,
			`it refers to "https://example.com/a.json", which is outside the schema`},
		{"reference to a file", `{"$ref": "file:///etc/passwd"}`,
			`it refers to "file:///etc/passwd", which is outside the schema`},
		{"relative reference", `{"$ref": "other.json"}`, `it refers to "other.json", which is outside the schema`},
		{"reference to the metaschema", `{"$ref": "https://json-schema.org/draft/2020-12/schema"}`,
			`it refers to https://json-schema.org/draft/2020-12/schema#, which is outside the schema`},
		{"reference that leads nowhere", `{"$ref": "#/$defs/a"}`, `json-pointer in "#/$defs/a" not found`},
		{"anchor that leads nowhere", `{"$ref": "#a"}`, `anchor in "#a" not found in schema ""`},
		{"older draft", `{"$schema": "http://json-schema.org/draft-07/schema#"}`, `$schema is ` +
			`"http://json-schema.org/draft-07/schema#"; only https://json-schema.org/draft/2020-12/schema is supported`},
		{"unknown dialect", `{"$schema": "https://example.com/schema"}`, `$schema is "https://example.com/schema"; ` +
			`only https://json-schema.org/draft/2020-12/schema is supported`},
		{"older draft inside", `{"$ref": "a", "$defs": {"a": {"$id": "a",
			"$schema": "http://json-schema.org/draft-07/schema#"}}}`, `a part of it is of another draft than 2020-12`},
		{"unknown dialect inside", `{"$ref": "a", "$defs": {"a": {"$id": "a", "$schema": "https://example.com/s"}}}`,
			`it refers to "https://example.com/s", which is outside the schema`},
		{"keyword of an older draft", `{"$recursiveRef": "#"}`, `a part of it is of another draft than 2020-12`},
		{"reference to itself", `{"$ref": "#"}`, `# applies to the same value again and again`},
		{"circle", `{"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/b"}]}, "b": {"not": {"$ref": "#/$defs/a"}}},
			"properties": {"x": {"$ref": "#/$defs/a"}}}`, `applies to the same value again and again`},
		{"dynamic circle", `{"$dynamicAnchor": "a", "$dynamicRef": "#a"}`, `# applies to the same value again and again`},
		{"long chain", chain(80), `applies more than 64 schemas to one value in a row`},
		{"duplicate id", `{"$defs": {"a": {"$id": "a"}, "b": {"$id": "a"}}}`, `duplicate id`},
		{"too deep", `{"const": ` + nested(maxJSONDepth) + `}`, `the JSON nests deeper than 30 levels`},
		{"NUL", `{"title": "\u0000"}`, `the text "\x00" in the JSON contains U+0000`},
		{"too many values", `{"enum": [` + strings.Repeat("1,", 10000) + `2]}`, `has 10000 values or more`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := NewDefinition(typeJSON, schemaText(t, tt.schema))
			got := refusalOf(t, err)
			if got.Reason != setpointv1.ErrorReason_INVALID_CONSTRAINTS {
				t.Errorf("reason %v, want INVALID_CONSTRAINTS", got.Reason)
			}
			if !strings.HasPrefix(got.Message, "json_schema: ") || !strings.Contains(got.Message, tt.want) {
				t.Errorf("got  %s\nwant json_schema: … %s", got.Message, tt.want)
			}
			if diff := cmp.Diff(map[string]string{"constraint": "json_schema"}, got.Metadata); diff != "" {
				t.Errorf("metadata (-want +got):\n%s", diff)
			}
		})
	}
}

// TestSchemaSteps has schemas of a few lines that ask for more work than anyone can wait for: each way in which the
// library applies schemas must count.
func TestSchemaSteps(t *testing.T) {
	t.Parallel()
	// Each definition leads twice to the next.
	doubled := func(link, last string) string {
		defs := make([]string, 30)
		for i := range defs {
			next := fmt.Sprintf(`{"$ref": "#/$defs/%d"}`, i+1)
			defs[i] = fmt.Sprintf(`"%d": {%s}`, i, fmt.Sprintf(link, next, next))
		}
		return fmt.Sprintf(`"$defs": {%s, "30": %s}`, strings.Join(defs, ","), last)
	}
	deep := nested(maxJSONDepth)
	object := strings.Repeat(`{"a":`, maxJSONDepth) + "1" + strings.Repeat("}", maxJSONDepth)
	long := "[" + strings.Repeat("1,", 1500) + "1]"
	enum := `{"enum": [` + strings.Repeat(`"a",`, 8000) + `"b"]}`
	tests := []struct{ name, schema, v string }{
		{"allOf", `{"$ref": "#/$defs/0", ` + doubled(`"allOf": [%s, %s]`, `{}`) + `}`, `1`},
		{"allOf of what fails", `{"$ref": "#/$defs/0", ` + doubled(`"allOf": [%s, %s]`, `{"type": "string"}`) + `}`, `1`},
		{"anyOf of what fails", `{"$ref": "#/$defs/0", ` + doubled(`"anyOf": [%s, %s]`, `false`) + `}`, `1`},
		{"anyOf under not", `{"not": {"$ref": "#/$defs/0"}, ` + doubled(`"anyOf": [%s, %s]`, `false`) + `}`, `1`},
		{"oneOf", `{"$ref": "#/$defs/0", ` + doubled(`"oneOf": [%s, %s]`, `true`) + `}`, `1`},
		{"conditions", `{"$ref": "#/$defs/0", ` + doubled(`"if": %s, "then": %s`, `true`) + `}`, `1`},
		{"dependent schemas", `{"not": {"$ref": "#/$defs/0"}, ` +
			doubled(`"dependentSchemas": {"a": %s, "b": %s}`, `false`) + `}`, `{"a": 1, "b": 2}`},
		{"lists", `{"items": {"$ref": "#"}, "unevaluatedItems": {"$ref": "#"}, "contains": {"$ref": "#"}}`, deep},
		{"lists under not", `{"not": {"$ref": "#/$defs/a"},
			"$defs": {"a": {"items": {"$ref": "#/$defs/a"}, "contains": {"$ref": "#/$defs/a"}}}}`, deep},
		{"patterns of properties", `{"patternProperties": {"a": {"$ref": "#"}, "^a": {"$ref": "#"}}}`, object},
		{"enum of every item", `{"items": ` + enum + `}`, long},
		{"enum of contains", `{"items": {"const": [1]}, "contains": ` + enum + `}`, long},
		{"unique items in each other", `{"uniqueItems": true, "items": {"$ref": "#"}}`,
			strings.Repeat("[0,", maxJSONDepth-2) + "[" + strings.Repeat("[],", 3000) + "0]" +
				strings.Repeat("]", maxJSONDepth-2)},
		{"pattern of every item", `{"items": {"pattern": "(a?){900}b"}}`,
			`["` + strings.Repeat("a", 800_000) + `", "` + strings.Repeat("a", 800_000) + `"]`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			d := define(t, typeJSON, schemaText(t, tt.schema))
			d.schema.steps = 100_000 // what is counted does not change with the bound, only the time
			_, err := d.Accept("v", jsonText(t, tt.v), limit)
			checkViolation(t, err, "v",
				"json_schema | v: the value takes more than 100000 steps to check against the JSON schema")
		})
	}
}

// TestSchemaLargeValue has what must not run out of steps: a large value and a simple schema.
func TestSchemaLargeValue(t *testing.T) {
	t.Parallel()
	values := make([]*structpb.Value, 100_000)
	for i := range values {
		values[i] = structpb.NewNumberValue(float64(i))
	}
	v := jsonOf(structpb.NewListValue(&structpb.ListValue{Values: values}))
	d := define(t, typeJSON, schemaText(t, `{"type": "array", "items": {"type": "number", "minimum": 0}}`))
	if _, err := d.Accept("v", v, limit); err != nil {
		t.Errorf("Accept: %v", err)
	}
}
