package expression

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"unicode/utf8"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/interpreter"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

const (
	// MaxBytes is how long an expression may be, in bytes of UTF-8.
	MaxBytes = 4096
	// CostLimit is how much an evaluation may cost.
	CostLimit = 100_000
	// MaxResultBytes bounds the text of every intermediate result and the size of the final one, in bytes.
	MaxResultBytes = 1 << 20
	// MaxElements is how many elements a list that an expression makes may have.
	MaxElements = 1 << 17
)

// Source is a parsed expression: what it could refer to. It is immutable and safe for concurrent use.
type Source struct {
	text       string
	candidates []string
	// tree is the work of Parse for the first Compile, which changes it; others parse again.
	tree  atomic.Pointer[parsed]
	whole bool
}

// parsed is an expression with the names of its variables replaced by slots.
type parsed struct {
	ast   *cel.Ast
	names []string
	// places has where each of the names comes first.
	places []common.Location
	// whole tells that the map of all inputs is used.
	whole bool
	// types are the types that the expression names.
	types []string
}

// Parse parses an expression. An error is always an [*Error]: the text is longer than [MaxBytes], is not CEL, or nests too
// deep.
func Parse(text string) (*Source, error) {
	p, err := parse(text)
	if err != nil {
		return nil, err
	}
	s := &Source{text: text, candidates: p.names, whole: p.whole}
	s.tree.Store(p)
	return s, nil
}

func parse(text string) (*parsed, error) {
	if len(text) > MaxBytes {
		return nil, newError("an expression has at most %d bytes, not %d", MaxBytes, len(text))
	}
	switch {
	case !utf8.ValidString(text):
		return nil, newError("the expression is not valid UTF-8")
	case strings.TrimSpace(text) == "":
		return nil, newError("the expression is empty")
	}
	env := shared()
	tree, issues := env.cel.Parse(text)
	if err := firstIssue(issues); err != nil {
		return nil, err
	}
	p := &parsed{ast: tree}
	if err := p.resolve(env); err != nil {
		return nil, err
	}
	return p, nil
}

// Candidates returns the names that may be variables, sorted and distinct: identifiers that are neither a variable of a
// macro nor known to CEL itself, and the names in deps["name"] and deps.name.
func (s *Source) Candidates() []string {
	return slices.Clone(s.candidates)
}

// UsesAny tells whether the expression looks into deps other than by a literal key, so that every input counts as used.
func (s *Source) UsesAny() bool {
	return s.whole
}

// Input is a variable that an expression may use.
type Input struct {
	Name string
	Type setpointv1.VariableType
}

// Program is an expression that can be computed. It is immutable and safe for concurrent use.
type Program struct {
	program cel.Program
	result  setpointv1.VariableType
	info    sourceInfo
	base    uint64
	// slots are the inputs that the expression names, in the order of their slots.
	slots []Input
	// inputs are all of them, in the order of their names; nil unless the expression uses the map of all.
	inputs []Input
}

// Compile checks the expression's types against the inputs and against the type of the variable that gets the result. An
// error is always an [*Error].
func (s *Source) Compile(result setpointv1.VariableType, inputs []Input) (*Program, error) {
	p := s.tree.Swap(nil)
	if p == nil {
		var err error
		if p, err = parse(s.text); err != nil {
			return nil, err
		}
	}
	return p.compile(result, inputs)
}

func (p *parsed) compile(result setpointv1.VariableType, inputs []Input) (*Program, error) {
	if _, ok := resultTypes[result]; !ok {
		return nil, newError("the value of a %s cannot be computed by an expression", variableTypeName(result))
	}
	program := &Program{result: result, slots: make([]Input, len(p.names))}
	byName := make(map[string]setpointv1.VariableType, len(inputs))
	for _, input := range inputs {
		byName[input.Name] = input.Type
	}
	declared := make([]cel.EnvOption, 0, len(p.names)+1)
	for i, name := range p.names {
		typ, ok := byName[name]
		if !ok {
			return nil, errorAt(p.places[i], fmt.Sprintf("undeclared reference to %s: there is no such variable",
				quote(name)))
		}
		celType, ok := inputTypes[typ]
		if !ok {
			return nil, errorAt(p.places[i], fmt.Sprintf("%s is a %s, which expressions cannot read", quote(name),
				variableTypeName(typ)))
		}
		program.slots[i] = Input{name, typ}
		declared = append(declared, cel.Variable(slotName(i), celType))
	}
	if p.whole {
		program.inputs = make([]Input, 0, len(byName))
		for name, typ := range byName {
			if _, ok := inputTypes[typ]; !ok {
				return nil, newError("deps without a literal key uses all dependencies, and %s is a %s, which expressions "+
					"cannot read", quote(name), variableTypeName(typ))
			}
			program.inputs = append(program.inputs, Input{name, typ})
		}
		slices.SortFunc(program.inputs, compareInputs)
		declared = append(declared, cel.Variable(depsSlot, cel.MapType(cel.StringType, cel.DynType)))
	}
	if err := program.build(p.ast, declared); err != nil {
		return nil, p.aboutTypes(err)
	}
	return program, nil
}

// aboutTypes adds to an error that is about the type of a type how a variable with such a name is written.
func (p *parsed) aboutTypes(err *Error) *Error {
	if len(p.types) == 0 || !strings.Contains(err.Message, "type(") {
		return err
	}
	return newError("%s; %s is a type: a variable with that name is %s[%q]", shorten(err.Message, maxMessage-100), p.types[0],
		depsName, p.types[0])
}

// build checks the types and plans the evaluation.
func (p *Program) build(tree *cel.Ast, declared []cel.EnvOption) *Error {
	env, err := shared().cel.Extend(declared...)
	if err != nil {
		return newError("the expression's variables cannot be declared: %v", err)
	}
	checked, issues := env.Check(tree)
	if err := firstIssue(issues); err != nil {
		return err
	}
	native := checked.NativeRep()
	if err := checkPatterns(native); err != nil {
		return err
	}
	if err := checkResult(checked.OutputType(), p.result); err != nil {
		return err
	}
	weights := weigh(native.Expr())
	p.base = weights.base
	p.info = sourceInfo{native.SourceInfo()}
	// The types are known by now, so that the program need not keep the declarations.
	p.program, err = shared().cel.PlanProgram(native, cel.CustomDecoratorV2(weights.decorate))
	if err != nil {
		return newError("%s", compileMessage(err.Error()))
	}
	return nil
}

// Uses returns the names of the inputs that the expression refers to by name, sorted.
func (p *Program) Uses() []string {
	names := make([]string, len(p.slots))
	for i, input := range p.slots {
		names[i] = input.Name
	}
	return names
}

// UsesAny tells whether the expression looks into deps other than by a literal key, so that every input counts as used.
func (p *Program) UsesAny() bool {
	return p.inputs != nil
}

// Eval computes the expression. It needs the values of the inputs that Uses names, or of all inputs if UsesAny; others are
// ignored. It returns a value of which the definition of a variable with the result's type decides whether it fits, and
// what the evaluation cost.
//
// An error is an [*EvalError] if the expression and its inputs are the reason. If ctx is done it is ctx's, wrapped.
func (p *Program) Eval(ctx context.Context, values map[string]*setpointv1.Value) (*setpointv1.Value, uint64, error) {
	m := &meter{ctx: ctx, used: p.base, slots: make([]ref.Val, len(p.slots))}
	if err := p.bind(m, values); err != nil {
		return nil, 0, err
	}
	v, err := p.run(m)
	if err != nil {
		return nil, m.used, err
	}
	result, err := toResult(p.result, v)
	if err != nil {
		return nil, m.used, err
	}
	return result, m.used, nil
}

// bind gives the evaluation its inputs.
func (p *Program) bind(m *meter, values map[string]*setpointv1.Value) error {
	for i, input := range p.slots {
		v, err := fromInput(input, values[input.Name])
		if err != nil {
			return err
		}
		m.slots[i] = v
	}
	if p.inputs == nil {
		return nil
	}
	keys, all := make([]ref.Val, len(p.inputs)), make([]ref.Val, len(p.inputs))
	for i, input := range p.inputs {
		v, err := fromInput(input, values[input.Name])
		if err != nil {
			return err
		}
		keys[i], all[i] = types.String(input.Name), v
	}
	m.deps = newObject(keys, all)
	return nil
}

// run evaluates the program.
func (p *Program) run(m *meter) (ref.Val, error) {
	if err := m.ctx.Err(); err != nil {
		return nil, fmt.Errorf("evaluate an expression: %w", context.Cause(m.ctx))
	}
	v, _, err := p.program.Eval(m)
	if err == nil {
		return v, nil
	}
	var cancelled interpreter.EvalCancelledError
	if errors.As(err, &cancelled) {
		if cancelled.Cause == interpreter.ContextCancelled {
			return nil, fmt.Errorf("evaluate an expression: %w", context.Cause(m.ctx))
		}
		return nil, newEvalError("cost limit exceeded: the evaluation costs more than %d", CostLimit)
	}
	return nil, p.info.evalError(err)
}
