package service

import (
	"context"
	"errors"
	"fmt"
	"slices"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/expression"
	"github.com/setpointdb/setpoint/internal/value"
)

// derivation is how a variable's value is computed.
type derivation struct {
	text   string
	kind   setpointv1.VariableType
	name   string
	inputs []input
}

// storedInput is an input whose value has been read; null where it was left out because there were too many bytes.
func storedInput(name, typeName string, data, payload []byte) input {
	kind, _ := value.ParseType(typeName) // An unknown one fits no expression.
	return input{name: name, kind: kind, read: func() (*setpointv1.Value, error) {
		if data == nil {
			return nil, tooManyBytes()
		}
		return value.Decode(kind, data, payload)
	}}
}

// affectedBytes bounds the values that a change reaches and that those are computed from: the server has them all at once.
const affectedBytes = 64 << 20

func tooManyBytes() *Error {
	return limitExceeded("affected_bytes", affectedBytes,
		fmt.Sprintf("the values to compute, and to compute from, have at most %d bytes together", affectedBytes))
}

// input is a variable that another one is computed from.
type input struct {
	name string
	kind setpointv1.VariableType
	read func() (*setpointv1.Value, error)
}

// programsKept is how many compiled expressions a server remembers.
const programsKept = 1 << 12

// compile type-checks a derivation. Its refusals are of kind INVALID_EXPRESSION.
func (s *Service) compile(d derivation) (*expression.Program, error) {
	inputs := make([]expression.Input, len(d.inputs))
	for i, in := range d.inputs {
		inputs[i] = expression.Input{Name: in.name, Type: in.kind}
	}
	program, err := s.expressions.Compile(d.text, d.kind, inputs)
	if err != nil {
		return nil, invalidExpression(d.name, err)
	}
	return program, nil
}

func invalidExpression(name string, err error) error {
	if e, ok := errors.AsType[*expression.Error](err); ok {
		return refuse(setpointv1.ErrorReason_INVALID_EXPRESSION, fmt.Sprintf("%s: %s", name, e.Message), "variable", name)
	}
	return fmt.Errorf("the expression of %s: %w", name, err)
}

// derive computes a variable's value, as it is to be stored and as it is read. The third result is why there is none: the
// expression no longer fits what the variable depends on, or has no value, or a constraint refuses it. budget is what it
// may still cost, and becomes less.
func (s *Service) derive(ctx context.Context, d derivation, check *value.Definition, budget *uint64) (
	value.Stored, *setpointv1.Value, string, error,
) {
	program, err := s.compile(d)
	if err != nil {
		return problem(err)
	}
	if *budget == 0 {
		return value.Stored{}, nil, "", limitExceeded("derivation_cost", int64(s.limits.DerivationCost),
			fmt.Sprintf("what is to be computed at once costs at most %d together", s.limits.DerivationCost))
	}
	values := make(map[string]*setpointv1.Value, len(d.inputs))
	for _, in := range d.inputs {
		if !program.UsesAny() && !slices.Contains(program.Uses(), in.name) {
			continue
		}
		if values[in.name], err = in.read(); err != nil {
			return value.Stored{}, nil, "", err
		}
	}
	result, cost, err := program.Eval(ctx, values)
	*budget -= min(*budget, cost)
	switch {
	case ctx.Err() != nil:
		return value.Stored{}, nil, "", ctx.Err()
	case err != nil:
		return problem(err)
	}
	stored, err := check.Accept(d.name, result, s.limits.ValueBytes)
	if err != nil {
		return problem(err)
	}
	fresh, err := value.Decode(d.kind, stored.JSON, stored.Payload)
	return stored, fresh, "", err
}

// problem tells a derivation's failure from the server's own.
func problem(err error) (value.Stored, *setpointv1.Value, string, error) {
	text := problemText(err)
	if text == "" {
		return value.Stored{}, nil, "", err
	}
	return value.Stored{}, nil, text, nil
}

// problemText is why a derivation failed; empty where the server did.
func problemText(err error) string {
	if e, ok := errors.AsType[*expression.EvalError](err); ok {
		return e.Error()
	}
	if e := asRefusal(err); e != nil {
		return e.Message
	}
	return ""
}

// uses are the names that an expression uses, as far as its variable depends on them, and whether it uses whatever that
// depends on.
func uses(name, text string) ([]string, bool, error) {
	if text == "" {
		return nil, false, nil
	}
	source, err := expression.Parse(text)
	if err != nil {
		return nil, false, invalidExpression(name, err)
	}
	return source.Candidates(), source.UsesAny(), nil
}
