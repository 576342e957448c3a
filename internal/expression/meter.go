package expression

import (
	"context"

	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"
	"cel.dev/cel-go/interpreter"
)

// meterName is under what the parts of a program find the meter. Expressions cannot say it.
const meterName = "@meter"

// textPerUnit is how many bytes of text are read or written for a unit of cost.
const textPerUnit = 64

// checkEvery is after how many units the context is looked at.
const checkEvery = 1024

// meter is a single evaluation: what it may see and what it has spent. Everything that takes time or memory is charged
// before it happens; who spends more than there is panics with an EvalCancelledError, which CEL turns into an error that
// no operator of the expression can swallow.
type meter struct {
	ctx   context.Context
	used  uint64
	check uint64
	// slots are the inputs, by the number of the candidate; nil where there is none.
	slots []ref.Val
	// deps is the map of all inputs; nil where it is not used.
	deps ref.Val
}

// ResolveName is how the program reads the inputs.
func (m *meter) ResolveName(name string) (any, bool) {
	switch name {
	case meterName:
		return m, true
	case depsSlot:
		return m.deps, m.deps != nil
	}
	i, ok := slotNumber(name)
	if !ok || i >= len(m.slots) || m.slots[i] == nil {
		return nil, false
	}
	return m.slots[i], true
}

// Parent tells that there are no other names.
func (m *meter) Parent() interpreter.Activation {
	return nil
}

// meterOf finds the meter of the evaluation that a frame belongs to.
func meterOf(frame *interpreter.ExecutionFrame) *meter {
	v, _ := frame.ResolveName(meterName)
	return v.(*meter)
}

// charge spends n units.
func (m *meter) charge(n uint64) {
	if m.used += n; m.used >= m.check {
		m.settle()
	}
}

// settle looks whether the evaluation may go on.
func (m *meter) settle() {
	if m.used > CostLimit {
		m.used = CostLimit // The rest was not done.
		panic(interpreter.EvalCancelledError{Cause: interpreter.CostLimitExceeded, Message: "cost limit exceeded"})
	}
	if err := m.ctx.Err(); err != nil {
		panic(interpreter.EvalCancelledError{Cause: interpreter.ContextCancelled, Message: err.Error()})
	}
	m.check = min(m.used+checkEvery, CostLimit+1)
}

// text spends what it takes to read or write a text of n bytes.
func (m *meter) text(n int) {
	m.charge(uint64(n) / textPerUnit)
}

// shallow spends what it takes to read a value that is not walked through: the text of a string, nothing else.
func (m *meter) shallow(v ref.Val) {
	switch v := v.(type) {
	case types.String:
		m.text(len(v))
	case types.Bytes:
		m.text(len(v))
	}
}

// walk spends what it takes to look at every part of a value. A list may be in many places of another one, so a value can
// have many more parts than memory holds; the walk ends when the units do.
func (m *meter) walk(v ref.Val) {
	m.charge(1)
	switch v := v.(type) {
	case types.String:
		m.text(len(v))
	case types.Bytes:
		m.text(len(v))
	case traits.Lister:
		for i := range v.Size().(types.Int) {
			m.walk(v.Get(i))
		}
	case *object:
		m.charge(uint64(v.size))
		for _, key := range v.order() {
			m.shallow(key)
			value, _ := v.Find(key)
			m.walk(value)
		}
	}
}

// comparison spends what it takes to find out whether two values are equal.
func (m *meter) comparison(left, right ref.Val) {
	switch l := left.(type) {
	case types.String:
		if r, ok := right.(types.String); ok && len(l) == len(r) {
			m.text(len(l))
		}
	case types.Bytes:
		if r, ok := right.(types.Bytes); ok && len(l) == len(r) {
			m.text(len(l))
		}
	case traits.Sizer:
		// Two values of the same size are compared part by part, so no further than either of them goes.
		if r, ok := right.(traits.Sizer); ok && l.Size() == r.Size() {
			m.walk(left)
		}
	}
}
