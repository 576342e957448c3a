package value

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"math/big"
	"slices"
	"strconv"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

const (
	// maxConstraintsBytes bounds the constraints of one variable, as a protobuf message.
	maxConstraintsBytes = 1 << 20
	// maxDimensions bounds the constraint dimensions: that many float32 are 16 MiB.
	maxDimensions = 1 << 22
)

// constraintTypes tells which types each field of Constraints belongs to.
var constraintTypes = map[protoreflect.Name][]setpointv1.VariableType{
	"min":             {typeInteger, typeFloat},
	"max":             {typeInteger, typeFloat},
	"step":            {typeInteger, typeFloat},
	"min_length":      {typeString},
	"max_length":      {typeString},
	"pattern":         {typeString},
	"enum":            {typeString},
	"choices":         {typeChoice},
	"allowed_modules": {typeModule},
	"dimensions":      {typeEmbedding},
	"shape":           {typeTensor},
	"dtype":           {typeTensor},
	"json_schema":     {typeJSON},
}

// Definition is a variable's type and compiled constraints. It is safe for concurrent use and never changes.
type Definition struct {
	typ         setpointv1.VariableType
	constraints *setpointv1.Constraints // nil if there are none

	// What is compiled; the plain bounds are read from constraints.
	steps   *wholeSteps // where an integer's min and step are whole
	pattern *pattern
	allowed *allowList
	schema  *jsonSchema
}

// allowList is the values that enum, choices or allowed_modules lists.
type allowList struct {
	field, what string
	values      []string
	set         map[string]struct{}
}

// wholeSteps is min and step of an integer where both are whole: then the check is exact, also beyond 2^53.
type wholeSteps struct {
	from, step *big.Int
}

// NewDefinition compiles the constraints of a variable of type t; nil is none. It does not keep c. It refuses, as a
// [*Refusal], with INVALID_CONSTRAINTS and the metadata "constraint" (the name of the field) constraints that contradict
// themselves or do not fit the type, with LIMIT_EXCEEDED those of more than 1 MiB, and with INVALID_REQUEST a type that
// does not exist.
func NewDefinition(t setpointv1.VariableType, c *setpointv1.Constraints) (*Definition, error) {
	if TypeName(t) == "" {
		return nil, &Refusal{
			Reason:  setpointv1.ErrorReason_INVALID_REQUEST,
			Message: fmt.Sprintf("there is no variable type %d", t),
		}
	}
	size := proto.Size(c)
	if size > maxConstraintsBytes {
		return nil, &Refusal{
			Reason:   setpointv1.ErrorReason_LIMIT_EXCEEDED,
			Message:  fmt.Sprintf("the constraints have %d bytes, more than the limit of %d", size, maxConstraintsBytes),
			Metadata: map[string]string{"limit": "constraints_bytes", "value": strconv.Itoa(maxConstraintsBytes)},
		}
	}
	if err := checkBelonging(t, c); err != nil {
		return nil, err
	}
	d := &Definition{typ: t}
	if size > 0 {
		d.constraints = proto.CloneOf(c)
	}
	if err := d.compile(); err != nil {
		return nil, err
	}
	return d, nil
}

// Type returns the type.
func (d *Definition) Type() setpointv1.VariableType {
	return d.typ
}

// Constraints returns the constraints as they were given; nil if there are none. The caller must not change them.
func (d *Definition) Constraints() *setpointv1.Constraints {
	return d.constraints
}

// checkBelonging refuses a constraint that the type does not have, in the order of the fields. A field that this server
// does not know is refused too: a constraint that nobody enforces is worse than none.
func checkBelonging(t setpointv1.VariableType, c *setpointv1.Constraints) error {
	message := c.ProtoReflect()
	fields := message.Descriptor().Fields()
	for i := range fields.Len() {
		field := fields.Get(i)
		if message.Has(field) && !slices.Contains(constraintTypes[field.Name()], t) {
			return badConstraint(string(field.Name()), "is not a constraint of type %s", TypeName(t))
		}
	}
	if len(message.GetUnknown()) > 0 {
		return badConstraint("constraints", "a field of them is not known to this server")
	}
	return nil
}

// compile checks the constraints in themselves. That each belongs to the type has been checked.
func (d *Definition) compile() error {
	c := d.constraints
	switch d.typ {
	case typeInteger, typeFloat:
		return d.compileBounds(c)
	case typeString:
		return d.compileText(c)
	case typeChoice:
		if len(c.GetChoices()) == 0 {
			return badConstraint("choices", "a choice needs at least one")
		}
		return d.compileAllowed("choices", "choices", c.GetChoices())
	case typeModule:
		return d.compileAllowed("allowed_modules", "allowed modules", c.GetAllowedModules())
	case typeEmbedding:
		if c != nil && c.Dimensions != nil && (*c.Dimensions < 1 || *c.Dimensions > maxDimensions) {
			return badConstraint("dimensions", "%d is not between 1 and %d", *c.Dimensions, maxDimensions)
		}
	case typeTensor:
		return checkTensorConstraints(c)
	case typeJSON:
		if c.GetJsonSchema() == nil {
			return nil
		}
		schema, err := compileSchema(c.GetJsonSchema())
		if err != nil {
			return err
		}
		d.schema = schema
	}
	return nil
}

// compileBounds checks min, max and step.
func (d *Definition) compileBounds(c *setpointv1.Constraints) error {
	if c == nil {
		return nil
	}
	if c.Min != nil && math.IsNaN(*c.Min) {
		return badConstraint("min", "NaN is not a minimum")
	}
	if c.Max != nil && math.IsNaN(*c.Max) {
		return badConstraint("max", "NaN is not a maximum")
	}
	if c.Min != nil && c.Max != nil && *c.Min > *c.Max {
		return badConstraint("min", "%s is above max, %s", formatNumber(*c.Min), formatNumber(*c.Max))
	}
	if c.Step == nil {
		return nil
	}
	if !(*c.Step > 0) || math.IsInf(*c.Step, 0) {
		return badConstraint("step", "%s is not a positive number", formatNumber(*c.Step))
	}
	from := c.GetMin()
	if math.IsInf(from, 0) {
		return badConstraint("step", "it cannot be counted from min, %s", formatNumber(from))
	}
	if d.typ == typeInteger && isWhole(from) && isWhole(*c.Step) {
		d.steps = &wholeSteps{from: toBigInt(from), step: toBigInt(*c.Step)}
	}
	return nil
}

func isWhole(f float64) bool {
	return f == math.Trunc(f)
}

// toBigInt returns a whole double exactly.
func toBigInt(f float64) *big.Int {
	n, _ := big.NewFloat(f).Int(nil)
	return n
}

// compileText checks the constraints of a string.
func (d *Definition) compileText(c *setpointv1.Constraints) error {
	if c == nil {
		return nil
	}
	if c.MinLength != nil && *c.MinLength < 0 {
		return badConstraint("min_length", "%d is negative", *c.MinLength)
	}
	if c.MaxLength != nil && *c.MaxLength < 0 {
		return badConstraint("max_length", "%d is negative", *c.MaxLength)
	}
	if c.MinLength != nil && c.MaxLength != nil && *c.MinLength > *c.MaxLength {
		return badConstraint("min_length", "%d is above max_length, %d", *c.MinLength, *c.MaxLength)
	}
	if c.Pattern != nil {
		if why := textFault(*c.Pattern); why != "" {
			return badConstraint("pattern", "%s %s", quote(*c.Pattern), why)
		}
		p, err := compilePattern(*c.Pattern)
		if err != nil {
			return badConstraint("pattern", "%s", shorten(err.Error(), shownReason))
		}
		d.pattern = p
	}
	return d.compileAllowed("enum", "values of enum", c.GetEnum())
}

// compileAllowed checks a list of the only values allowed; an empty one allows all.
func (d *Definition) compileAllowed(field, what string, values []string) error {
	if len(values) == 0 {
		return nil
	}
	set := make(map[string]struct{}, len(values))
	for _, v := range values {
		if why := textFault(v); why != "" {
			return badConstraint(field, "%s %s", quote(v), why)
		}
		if _, ok := set[v]; ok {
			return badConstraint(field, "%s is listed twice", quote(v))
		}
		set[v] = struct{}{}
	}
	d.allowed = &allowList{field: field, what: what, values: values, set: set}
	return nil
}

// checkTensorConstraints checks shape and dtype.
func checkTensorConstraints(c *setpointv1.Constraints) error {
	if len(c.GetShape()) > maxTensorRank {
		return badConstraint("shape", "a tensor has at most %d dimensions, not %d", maxTensorRank, len(c.GetShape()))
	}
	for _, n := range c.GetShape() {
		if n < -1 {
			return badConstraint("shape", "%d is neither a size nor -1", n)
		}
	}
	if c != nil && c.Dtype != nil && dtypeSizes[*c.Dtype] == 0 {
		return badConstraint("dtype", "there is no dtype %s", quote(*c.Dtype))
	}
	return nil
}

// MarshalConstraints returns constraints as the database keeps them: protobuf's JSON with the fields' names as in the
// .proto file, "{}" for nil or empty ones. Constraints that [NewDefinition] took cannot fail here.
func MarshalConstraints(c *setpointv1.Constraints) ([]byte, error) {
	if proto.Size(c) == 0 {
		return []byte("{}"), nil
	}
	data, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("marshal constraints: %w", err)
	}
	// protojson spaces its output differently from build to build.
	var compact bytes.Buffer
	if err := json.Compact(&compact, data); err != nil {
		return nil, fmt.Errorf("compact constraints: %w", err)
	}
	return compact.Bytes(), nil
}

// UnmarshalConstraints is the inverse of [MarshalConstraints]; nil for "{}". A field that this server does not know is an
// error, since it could not be enforced.
func UnmarshalConstraints(data []byte) (*setpointv1.Constraints, error) {
	c := &setpointv1.Constraints{}
	if err := protojson.Unmarshal(data, c); err != nil {
		return nil, fmt.Errorf("unmarshal constraints: %w", err)
	}
	if proto.Size(c) == 0 {
		return nil, nil
	}
	return c, nil
}
