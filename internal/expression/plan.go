package expression

import (
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/interpreter"
)

// weights are what the parts of an expression cost whatever their values are.
type weights struct {
	// base is for everything that is computed once.
	base uint64
	// steps is for one round of a macro's loop, by the loop's step.
	steps map[int64]uint64
}

// weigh counts the parts of an expression: one for each operator, call and access, and one for each element of a list.
// What a condition leaves out is counted too. Names and literals are free.
func weigh(e ast.Expr) *weights {
	w := &weights{steps: map[int64]uint64{}}
	w.base = w.expr(e) + 1
	return w
}

func (w *weights) expr(e ast.Expr) uint64 {
	switch e.Kind() {
	case ast.SelectKind:
		return 1 + w.expr(e.AsSelect().Operand())
	case ast.CallKind:
		n := 1 + w.exprs(e.AsCall().Args())
		if e.AsCall().IsMemberFunction() {
			n += w.expr(e.AsCall().Target())
		}
		return n
	case ast.ListKind:
		return 1 + uint64(e.AsList().Size()) + w.exprs(e.AsList().Elements())
	case ast.MapKind:
		n := uint64(1)
		for _, entry := range e.AsMap().Entries() {
			m := entry.AsMapEntry()
			n += 2 + w.expr(m.Key()) + w.expr(m.Value())
		}
		return n
	case ast.ComprehensionKind:
		c := e.AsComprehension()
		w.steps[c.LoopStep().ID()] = 1 + w.expr(c.LoopCondition()) + w.expr(c.LoopStep())
		return 1 + w.expr(c.IterRange()) + w.expr(c.AccuInit()) + w.expr(c.Result())
	}
	return 0
}

func (w *weights) exprs(list []ast.Expr) uint64 {
	n := uint64(0)
	for _, e := range list {
		n += w.expr(e)
	}
	return n
}

// decorate replaces the parts of CEL's plan that need a bound by others that have one.
func (w *weights) decorate(part interpreter.InterpretableV2) (interpreter.InterpretableV2, error) {
	switch p := part.(type) {
	case interpreter.InterpretableCall:
		// This one takes errors as arguments, and only looks whether there is one.
		if p.Function() != operators.NotStrictlyFalse {
			part = newCall(p)
		}
	case interpreter.InterpretableConstructor:
		if p.Type() == types.MapType {
			part = &mapLiteral{InterpretableV2: p, parts: p.InitVals()}
		}
	}
	if weight, ok := w.steps[part.ID()]; ok {
		part = &loopStep{InterpretableV2: part, weight: weight}
	}
	return part, nil
}

// loopStep charges for a round of a loop before it begins.
type loopStep struct {
	interpreter.InterpretableV2
	weight uint64
}

// Exec implements [interpreter.InterpretableV2].
func (s *loopStep) Exec(frame *interpreter.ExecutionFrame) ref.Val {
	meterOf(frame).charge(s.weight)
	return s.InterpretableV2.Exec(frame)
}

// Eval implements [interpreter.Interpretable].
func (s *loopStep) Eval(vars interpreter.Activation) ref.Val {
	return s.Exec(interpreter.AsFrame(vars))
}

// mapLiteral makes a map.
type mapLiteral struct {
	interpreter.InterpretableV2
	// parts are keys and values, in turn.
	parts []interpreter.InterpretableV2
}

// Exec implements [interpreter.InterpretableV2].
func (l *mapLiteral) Exec(frame *interpreter.ExecutionFrame) ref.Val {
	keys, values := make([]ref.Val, 0, len(l.parts)/2), make([]ref.Val, 0, len(l.parts)/2)
	for i, part := range l.parts {
		v := part.Exec(frame)
		if types.IsUnknownOrError(v) {
			return v
		}
		if i%2 == 0 {
			keys = append(keys, v)
		} else {
			values = append(values, v)
		}
	}
	return labelled(l.ID(), newObject(keys, values))
}

// Eval implements [interpreter.Interpretable].
func (l *mapLiteral) Eval(vars interpreter.Activation) ref.Val {
	return l.Exec(interpreter.AsFrame(vars))
}

// call calls a function.
type call struct {
	id   int64
	args []interpreter.InterpretableV2
	impl implementation
}

func newCall(c interpreter.InterpretableCall) *call {
	return &call{id: c.ID(), args: c.Args(), impl: implementationOf(c.Function(), c.OverloadID())}
}

// ID implements [interpreter.Interpretable].
func (c *call) ID() int64 {
	return c.id
}

// Exec implements [interpreter.InterpretableV2].
func (c *call) Exec(frame *interpreter.ExecutionFrame) ref.Val {
	args := make([]ref.Val, len(c.args))
	for i, arg := range c.args {
		v := arg.Exec(frame)
		if types.IsUnknownOrError(v) {
			return v
		}
		args[i] = v
	}
	return labelled(c.id, c.impl(meterOf(frame), args))
}

// Eval implements [interpreter.Interpretable].
func (c *call) Eval(vars interpreter.Activation) ref.Val {
	return c.Exec(interpreter.AsFrame(vars))
}

// labelled gives an error the place where it happened. The error is a new one: some of CEL's are shared by everybody.
func labelled(id int64, v ref.Val) ref.Val {
	if err, ok := v.(*types.Err); ok {
		return types.NewErrWithNodeID(id, "%s", err.String())
	}
	return v
}
