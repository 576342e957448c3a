package main

import (
	"github.com/spf13/pflag"
	"google.golang.org/protobuf/reflect/protoreflect"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

const constraintsHelp = `Constraints, by type:
  integer, float   --min --max --step
  string           --min-length --max-length --pattern --enum
  choice           --choice (required)
  module           --allowed-module
  embedding        --dimensions
  tensor           --shape --dtype
  json             --json-schema`

// constraintFlags are the flags that make up a variable's constraints.
type constraintFlags struct {
	flags *pflag.FlagSet

	min, max, step       float64
	minLength, maxLength int64
	pattern              string
	enum                 []string
	choices              []string
	allowedModules       []string
	dimensions           int64
	shape                []int64
	dtype                string
	jsonSchema           string
}

func addConstraintFlags(flags *pflag.FlagSet) *constraintFlags {
	f := &constraintFlags{flags: flags}
	flags.Float64Var(&f.min, "min", 0, "smallest `number` allowed")
	flags.Float64Var(&f.max, "max", 0, "largest `number` allowed")
	flags.Float64Var(&f.step, "step", 0, "values are min + k × `step`; without --min, k × step")
	flags.Int64Var(&f.minLength, "min-length", 0, "least `number` of characters")
	flags.Int64Var(&f.maxLength, "max-length", 0, "greatest `number` of characters")
	flags.StringVar(&f.pattern, "pattern", "", "RE2 `expression` to be found in the text; anchor it to match the whole")
	flags.StringArrayVar(&f.enum, "enum", nil, "a `text` allowed, and no others; repeatable")
	flags.StringArrayVar(&f.choices, "choice", nil, "a `text` to choose from; repeatable")
	flags.StringArrayVar(&f.allowedModules, "allowed-module", nil, "a `module` allowed, and no others; repeatable")
	flags.Int64Var(&f.dimensions, "dimensions", 0, "exact `number` of dimensions")
	flags.Int64SliceVar(&f.shape, "shape", nil, "exact `shape`, as 2,3; -1 lets a dimension have any size")
	flags.StringVar(&f.dtype, "dtype", "", "exact element `type`, as float32")
	flags.StringVar(&f.jsonSchema, "json-schema", "", "JSON Schema (2020-12): `JSON or @FILE`")
	return f
}

// read returns the constraints that the flags give, or nil where none was given.
func (f *constraintFlags) read(c *cli) (*setpointv1.Constraints, error) {
	result, given := &setpointv1.Constraints{}, false
	apply := func(flag string, set func()) {
		if f.flags.Changed(flag) {
			given = true
			set()
		}
	}
	apply("min", func() { result.Min = &f.min })
	apply("max", func() { result.Max = &f.max })
	apply("step", func() { result.Step = &f.step })
	apply("min-length", func() { result.MinLength = &f.minLength })
	apply("max-length", func() { result.MaxLength = &f.maxLength })
	apply("pattern", func() { result.Pattern = &f.pattern })
	apply("enum", func() { result.Enum = f.enum })
	apply("choice", func() { result.Choices = f.choices })
	apply("allowed-module", func() { result.AllowedModules = f.allowedModules })
	apply("dimensions", func() { result.Dimensions = &f.dimensions })
	apply("shape", func() { result.Shape = f.shape })
	apply("dtype", func() { result.Dtype = &f.dtype })
	var err error
	apply("json-schema", func() { err = f.readSchema(c, result) })
	if err != nil || !given {
		return nil, err
	}
	return result, nil
}

// overlaid is base with the fields that over has in place of its own; lists are replaced, not joined.
func overlaid(base, over *setpointv1.Constraints) *setpointv1.Constraints {
	result := &setpointv1.Constraints{}
	for _, source := range []*setpointv1.Constraints{base, over} {
		source.ProtoReflect().Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
			result.ProtoReflect().Set(field, value)
			return true
		})
	}
	return result
}

func (f *constraintFlags) readSchema(c *cli, result *setpointv1.Constraints) error {
	object, err := c.readObject("--json-schema", f.jsonSchema)
	result.JsonSchema = object
	return err
}
