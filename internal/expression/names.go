package expression

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"cel.dev/cel-go/common"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"
)

const (
	// depsName is how an expression names the map of all inputs.
	depsName = "deps"
	// depsSlot is what that becomes: no expression can say it.
	depsSlot = "@deps"
	// slotPrefix and a number is what the name of a variable becomes. It tells a variable from everything else that has
	// the same name: a type, a namespace of functions, a variable of a macro.
	slotPrefix = "@"
)

// slotName returns the identifier of the candidate with a number.
func slotName(number int) string {
	return slotPrefix + strconv.Itoa(number)
}

// slotNumber is the inverse of slotName.
func slotNumber(name string) (int, bool) {
	digits, ok := strings.CutPrefix(name, slotPrefix)
	if !ok {
		return 0, false
	}
	n, err := strconv.Atoi(digits)
	return n, err == nil
}

// resolution finds out what the names in an expression stand for, and replaces those that stand for inputs by slots.
type resolution struct {
	env  *environment
	tree *ast.AST
	make ast.ExprFactory
	// scope counts the variables of the macros around a place, by name.
	scope map[string]int
	// found are the parts of the expression that stand for a variable, by its name.
	found map[string][]ast.Expr
	// whole tells that the map of all inputs is used.
	whole bool
	// types are the names of types, in the order in which they come.
	types  []string
	nextID int64
	err    *Error
}

// resolve replaces the names of variables in the tree by slots, of which each has the number of the name's place in p.names.
func (p *parsed) resolve(env *environment) error {
	tree := p.ast.NativeRep()
	r := &resolution{
		env: env, tree: tree, make: ast.NewExprFactory(),
		scope: map[string]int{}, found: map[string][]ast.Expr{},
		nextID: ast.MaxID(tree) + 1,
	}
	r.expr(tree.Expr())
	if r.err != nil {
		return r.err
	}
	if err := checkShape(tree); err != nil {
		return err
	}
	p.names = slices.Sorted(maps.Keys(r.found))
	p.places = make([]common.Location, len(p.names))
	p.whole, p.types = r.whole, r.types
	for i, name := range p.names {
		for _, e := range r.found[name] {
			e.SetKindCase(r.make.NewIdent(e.ID(), slotName(i)))
			place := tree.SourceInfo().GetStartLocation(e.ID())
			if p.places[i] == nil || before(place, p.places[i]) {
				p.places[i] = place
			}
		}
	}
	return nil
}

// before tells whether one location comes before another.
func before(a, b common.Location) bool {
	return a.Line() < b.Line() || a.Line() == b.Line() && a.Column() < b.Column()
}

// expr looks through an expression.
func (r *resolution) expr(e ast.Expr) {
	switch e.Kind() {
	case ast.IdentKind:
		r.ident(e)
	case ast.SelectKind:
		r.selection(e)
	case ast.CallKind:
		r.call(e)
	case ast.ListKind:
		r.exprs(e.AsList().Elements())
	case ast.MapKind:
		r.mapping(e)
	case ast.ComprehensionKind:
		r.comprehension(e)
	case ast.StructKind:
		if r.err == nil {
			r.err = errorAt(r.tree.SourceInfo().GetStartLocation(e.ID()),
				"messages like "+e.AsStruct().TypeName()+"{...} cannot be made; a map is written {\"key\": value}")
		}
	}
}

func (r *resolution) exprs(list []ast.Expr) {
	for _, e := range list {
		r.expr(e)
	}
}

// free returns the name of an identifier unless it is a variable of a macro. A leading point looks past those.
func (r *resolution) free(e ast.Expr) (string, bool) {
	if e.Kind() != ast.IdentKind {
		return "", false
	}
	name, global := strings.CutPrefix(e.AsIdent(), ".")
	return name, global || r.scope[name] == 0
}

// isDeps tells whether an expression is the map of all inputs.
func (r *resolution) isDeps(e ast.Expr) bool {
	name, free := r.free(e)
	return free && name == depsName
}

func (r *resolution) ident(e ast.Expr) {
	name, free := r.free(e)
	switch {
	case !free:
	case name == depsName:
		r.wholeMap(e)
	case r.env.isDeclared(name):
		r.types = append(r.types, name)
	default:
		r.found[name] = append(r.found[name], e)
	}
}

// wholeMap replaces deps by its slot.
func (r *resolution) wholeMap(e ast.Expr) {
	r.whole = true
	e.SetKindCase(r.make.NewIdent(e.ID(), depsSlot))
}

func (r *resolution) selection(e ast.Expr) {
	s := e.AsSelect()
	// has(deps.name) asks whether there is such an input, so it must not need one.
	if !s.IsTestOnly() && r.isDeps(s.Operand()) {
		r.found[s.FieldName()] = append(r.found[s.FieldName()], e)
		return
	}
	r.expr(s.Operand())
}

func (r *resolution) call(e ast.Expr) {
	c := e.AsCall()
	if c.IsMemberFunction() {
		// math.abs(x) is a function, whatever variable has the name math.
		if path, ok := qualified(c.Target()); !ok || !r.env.cel.HasFunction(path+"."+c.FunctionName()) {
			r.expr(c.Target())
		}
	} else if c.FunctionName() == operators.Index && r.isDeps(c.Args()[0]) {
		if name, ok := literalText(c.Args()[1]); ok {
			r.found[name] = append(r.found[name], e)
			return
		}
	}
	r.exprs(c.Args())
}

// qualified returns the text of identifiers with points between.
func qualified(e ast.Expr) (string, bool) {
	switch e.Kind() {
	case ast.IdentKind:
		return e.AsIdent(), true
	case ast.SelectKind:
		s := e.AsSelect()
		path, ok := qualified(s.Operand())
		return path + "." + s.FieldName(), ok && !s.IsTestOnly()
	}
	return "", false
}

// literalText returns the text of a literal string.
func literalText(e ast.Expr) (string, bool) {
	if e.Kind() != ast.LiteralKind {
		return "", false
	}
	text, ok := e.AsLiteral().(types.String)
	return string(text), ok
}

// mapping looks through a map that the expression writes, and has its computed keys checked. Without that the keys could
// be maps themselves, of which the type would take more than time and memory to write down.
func (r *resolution) mapping(e ast.Expr) {
	entries := e.AsMap().Entries()
	checked := make([]ast.EntryExpr, len(entries))
	for i, entry := range entries {
		m := entry.AsMapEntry()
		key := m.Key()
		r.expr(key)
		r.expr(m.Value())
		if key.Kind() != ast.LiteralKind {
			key = r.wrap(keyFunction, key)
		}
		checked[i] = r.make.NewMapEntry(entry.ID(), key, m.Value(), m.IsOptional())
	}
	e.SetKindCase(r.make.NewMap(e.ID(), checked))
}

// wrap puts a function around an expression.
func (r *resolution) wrap(function string, e ast.Expr) ast.Expr {
	info := r.tree.SourceInfo()
	if place, ok := info.GetOffsetRange(e.ID()); ok {
		info.SetOffsetRange(r.nextID, place)
	}
	e = r.make.NewCall(r.nextID, function, e)
	r.nextID++
	return e
}

func (r *resolution) comprehension(e ast.Expr) {
	c := e.AsComprehension()
	r.expr(c.IterRange())
	r.expr(c.AccuInit())
	variables := []string{c.IterVar(), c.IterVar2(), c.AccuVar()}
	for _, name := range variables {
		r.scope[name]++
	}
	r.expr(c.LoopCondition())
	r.expr(c.LoopStep())
	for _, name := range variables[:2] {
		r.scope[name]--
	}
	r.expr(c.Result())
	r.scope[c.AccuVar()]--
	e.SetKindCase(r.make.NewComprehensionTwoVar(e.ID(), r.wrap(rangeFunction, c.IterRange()), c.IterVar(), c.IterVar2(),
		c.AccuVar(), c.AccuInit(), c.LoopCondition(), c.LoopStep(), c.Result()))
}
