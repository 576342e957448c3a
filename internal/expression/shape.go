package expression

import (
	"maps"

	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/overloads"
)

const (
	// maxTypeDepth is how deep lists and maps may lie in each other in an expression, maxOpen is how many empty ones and
	// macros there may be. Both bound the time that checking types takes, which grows with the square of either.
	maxTypeDepth = 32
	maxOpen      = 64
)

// shape measures an expression.
type shape struct {
	open  int
	scope map[string]int
}

// checkShape refuses an expression whose types would take too long to check.
func checkShape(tree *ast.AST) *Error {
	if n := ast.NodeCount(tree); n > maxNodes {
		return newError("the expression has more than %d parts", maxNodes)
	}
	s := &shape{scope: map[string]int{}}
	switch depth := s.depth(tree.Expr()); {
	case depth > maxTypeDepth:
		return newError("lists and maps lie in each other deeper than %d levels", maxTypeDepth)
	case s.open > maxOpen:
		return newError("the expression has more than %d macros, empty lists and empty maps", maxOpen)
	}
	return nil
}

// depth returns at least how deep the lists and maps of an expression's type lie in each other.
func (s *shape) depth(e ast.Expr) int {
	switch e.Kind() {
	case ast.IdentKind:
		if depth, ok := s.scope[e.AsIdent()]; ok {
			return depth
		}
		return 1
	case ast.SelectKind:
		return s.depth(e.AsSelect().Operand())
	case ast.CallKind:
		return s.callDepth(e.AsCall())
	case ast.ListKind:
		if e.AsList().Size() == 0 {
			s.open++
		}
		return 1 + s.deepest(e.AsList().Elements())
	case ast.MapKind:
		if e.AsMap().Size() == 0 {
			s.open++
		}
		depth := 0
		for _, entry := range e.AsMap().Entries() {
			depth = max(depth, s.depth(entry.AsMapEntry().Key()), s.depth(entry.AsMapEntry().Value()))
		}
		return 1 + depth
	case ast.ComprehensionKind:
		return s.loopDepth(e.AsComprehension())
	}
	return 0
}

func (s *shape) deepest(list []ast.Expr) int {
	depth := 0
	for _, e := range list {
		depth = max(depth, s.depth(e))
	}
	return depth
}

func (s *shape) callDepth(c ast.CallExpr) int {
	depth := s.deepest(c.Args())
	if c.IsMemberFunction() {
		depth = max(depth, s.depth(c.Target()))
	}
	if c.FunctionName() == overloads.TypeConvertType {
		depth++
	}
	return depth
}

func (s *shape) loopDepth(c ast.ComprehensionExpr) int {
	open := s.open + 1
	start := s.depth(c.AccuInit())
	s.open = open // What a macro collects in begins as an empty list, which does not count.
	element := max(0, s.depth(c.IterRange())-1)
	outer := s.scope
	s.scope = maps.Clone(outer)
	s.scope[c.IterVar()], s.scope[c.IterVar2()], s.scope[c.AccuVar()] = element, element, start
	depth := max(start, s.depth(c.LoopCondition()), s.depth(c.LoopStep()))
	s.scope = outer
	return max(depth, s.depth(c.Result()))
}
