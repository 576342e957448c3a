package value

import (
	"math"
	"math/big"
	"unicode/utf8"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// stepTolerance is how far a value may lie from min + k × step, in absolute terms.
const stepTolerance = 1e-9

// checkInteger applies min, max and step. Bounds are compared as numbers, not rounded to a common type.
func (d *Definition) checkInteger(s subject, v int64) error {
	c := d.constraints
	if c == nil {
		return nil
	}
	if c.Min != nil && compareExactly(v, *c.Min) < 0 {
		return s.violation("min", "%d is below the minimum %s", v, formatNumber(*c.Min))
	}
	if c.Max != nil && compareExactly(v, *c.Max) > 0 {
		return s.violation("max", "%d is above the maximum %s", v, formatNumber(*c.Max))
	}
	if c.Step == nil {
		return nil
	}
	var fits bool
	if d.steps != nil {
		fits = d.steps.reach(v)
	} else {
		fits = onStep(float64(v), c.GetMin(), *c.Step)
	}
	if !fits {
		return s.offStep(big.NewInt(v).String(), c)
	}
	return nil
}

// compareExactly compares an integer with a double that is not NaN: -1, 0 or +1.
func compareExactly(i int64, f float64) int {
	switch {
	case f >= 1<<63:
		return -1
	case f < -(1 << 63):
		return 1
	}
	floor := math.Floor(f)
	switch n := int64(floor); {
	case i > n:
		return 1
	case i < n || floor < f:
		return -1
	}
	return 0
}

// reach tells whether v is from + k × step.
func (w *wholeSteps) reach(v int64) bool {
	distance := new(big.Int).Sub(big.NewInt(v), w.from)
	return distance.Rem(distance, w.step).Sign() == 0
}

// checkFloat applies min, max and step, none of which NaN satisfies.
func (d *Definition) checkFloat(s subject, v float64) error {
	c := d.constraints
	if c == nil {
		return nil
	}
	if c.Min != nil && !(v >= *c.Min) {
		if math.IsNaN(v) {
			return s.violation("min", "NaN does not satisfy the minimum %s", formatNumber(*c.Min))
		}
		return s.violation("min", "%s is below the minimum %s", formatNumber(v), formatNumber(*c.Min))
	}
	if c.Max != nil && !(v <= *c.Max) {
		if math.IsNaN(v) {
			return s.violation("max", "NaN does not satisfy the maximum %s", formatNumber(*c.Max))
		}
		return s.violation("max", "%s is above the maximum %s", formatNumber(v), formatNumber(*c.Max))
	}
	if c.Step != nil && !onStep(v, c.GetMin(), *c.Step) {
		return s.offStep(formatNumber(v), c)
	}
	return nil
}

// onStep tells whether v is from + k × step, within the tolerance. NaN and the infinities are not: they make the
// difference NaN, which is less than nothing.
func onStep(v, from, step float64) bool {
	distance := v - from
	// The conversion keeps the compiler from fusing product and difference, which would make the answer depend on the
	// processor.
	nearest := float64(math.Round(distance/step) * step)
	return math.Abs(distance-nearest) <= stepTolerance
}

// offStep refuses a value that step does not reach.
func (s subject) offStep(v string, c *setpointv1.Constraints) error {
	if c.Min == nil {
		return s.violation("step", "%s is not a multiple of the step %s", v, formatNumber(*c.Step))
	}
	return s.violation("step", "%s is not the minimum %s plus a multiple of the step %s", v, formatNumber(*c.Min),
		formatNumber(*c.Step))
}

// checkText applies the constraints of string, choice and module.
func (d *Definition) checkText(s subject, text string) error {
	if c := d.constraints; c != nil && (c.MinLength != nil || c.MaxLength != nil) {
		length := int64(utf8.RuneCountInString(text))
		if c.MinLength != nil && length < *c.MinLength {
			return s.violation("min_length", "%s has %d characters, fewer than the minimum length %d", quote(text), length,
				*c.MinLength)
		}
		if c.MaxLength != nil && length > *c.MaxLength {
			return s.violation("max_length", "%s has %d characters, more than the maximum length %d", quote(text), length,
				*c.MaxLength)
		}
	}
	if p := d.pattern; p != nil {
		if p.work(len(text)) > maxPatternWork {
			return s.violation("pattern", "%s is too long to be searched for the pattern %s", quote(text), quote(p.text))
		}
		if !p.regexp.MatchString(text) {
			return s.violation("pattern", "%s does not match the pattern %s", quote(text), quote(p.text))
		}
	}
	if a := d.allowed; a != nil {
		if _, ok := a.set[text]; !ok {
			return s.violation(a.field, "%s is not one of the %s %s", quote(text), a.what, quoteAll(a.values))
		}
	}
	return nil
}

// checkDimensions applies dimensions.
func (d *Definition) checkDimensions(s subject, n int) error {
	if c := d.constraints; c != nil && c.Dimensions != nil && int64(n) != *c.Dimensions {
		return s.violation("dimensions", "an embedding of %d dimensions does not have the required %d", n, *c.Dimensions)
	}
	return nil
}

// checkTensor applies dtype and shape.
func (d *Definition) checkTensor(s subject, t *setpointv1.Tensor) error {
	c := d.constraints
	if c == nil {
		return nil
	}
	if c.Dtype != nil && t.GetDtype() != *c.Dtype {
		return s.violation("dtype", "dtype %s is not the required %s", t.GetDtype(), *c.Dtype)
	}
	if len(c.GetShape()) > 0 && !shapeFits(t.GetShape(), c.GetShape()) {
		return s.violation("shape", "shape %s is not the required %s", formatShape(t.GetShape()), formatShape(c.GetShape()))
	}
	return nil
}

// shapeFits compares a shape with the required one, where -1 is any size.
func shapeFits(shape, required []int64) bool {
	if len(shape) != len(required) {
		return false
	}
	for i, n := range required {
		if n != -1 && n != shape[i] {
			return false
		}
	}
	return true
}
