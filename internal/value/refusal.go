package value

import (
	"fmt"
	"strconv"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// Refusal is why a value or constraints were refused: an error with a reason of the API. The reason is one of
// INVALID_REQUEST, TYPE_MISMATCH, CONSTRAINT_VIOLATION, INVALID_CONSTRAINTS and LIMIT_EXCEEDED.
type Refusal struct {
	Reason setpointv1.ErrorReason
	// Message names the variable (or the constraint), the value and the rule. Long values are shortened.
	Message string
	// Metadata has what errors.proto promises for the reason.
	Metadata map[string]string
}

// Error returns the message.
func (r *Refusal) Error() string {
	return r.Message
}

// subject is the variable that a value is meant for: what refusals of the value speak about.
type subject struct {
	name     string
	typ      setpointv1.VariableType
	maxBytes int
}

// invalid refuses a value that no variable may hold.
func (s subject) invalid(format string, args ...any) error {
	return &Refusal{
		Reason:   setpointv1.ErrorReason_INVALID_REQUEST,
		Message:  s.name + ": " + fmt.Sprintf(format, args...),
		Metadata: map[string]string{"variable": s.name},
	}
}

// mismatch refuses a value that cannot be read as the variable's type.
func (s subject) mismatch(format string, args ...any) error {
	return &Refusal{
		Reason:   setpointv1.ErrorReason_TYPE_MISMATCH,
		Message:  s.name + ": " + fmt.Sprintf(format, args...),
		Metadata: map[string]string{"variable": s.name, "type": TypeName(s.typ)},
	}
}

// unreadable is the mismatch of a value whose kind does not fit the type at all.
func (s subject) unreadable(v *setpointv1.Value) error {
	return s.mismatch("%s cannot be read as %s", describe(v), TypeName(s.typ))
}

// violation refuses a value for one constraint, named as its field is.
func (s subject) violation(constraint, format string, args ...any) error {
	return &Refusal{
		Reason:   setpointv1.ErrorReason_CONSTRAINT_VIOLATION,
		Message:  s.name + ": " + fmt.Sprintf(format, args...),
		Metadata: map[string]string{"variable": s.name, "constraint": constraint},
	}
}

// tooLarge refuses a value for its size.
func (s subject) tooLarge() error {
	return &Refusal{
		Reason:   setpointv1.ErrorReason_LIMIT_EXCEEDED,
		Message:  fmt.Sprintf("%s: the value is larger than the limit of %d bytes", s.name, s.maxBytes),
		Metadata: map[string]string{"limit": "value_bytes", "value": strconv.Itoa(s.maxBytes)},
	}
}

// badConstraint refuses a constraint by the name of its field.
func badConstraint(field, format string, args ...any) error {
	return &Refusal{
		Reason:   setpointv1.ErrorReason_INVALID_CONSTRAINTS,
		Message:  field + ": " + fmt.Sprintf(format, args...),
		Metadata: map[string]string{"constraint": field},
	}
}
