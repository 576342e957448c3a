package expression

import (
	"fmt"
	"regexp"
	"regexp/syntax"
	"strings"
	"sync"

	lru "github.com/hashicorp/golang-lru/v2"

	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/overloads"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
)

const (
	// maxPatternBytes bounds the text of a pattern, maxPatternProgram what it becomes: a few characters like (x{100}){9}
	// make many instructions.
	maxPatternBytes   = 4096
	maxPatternProgram = 1000
	// rememberedPatterns is how many patterns are kept compiled, each of which may take about 100 KiB.
	rememberedPatterns = 128
	// maxPatternWork bounds what compiling one costs: about as many microseconds.
	maxPatternWork = 20_000
	// stepsPerUnit is how many steps of a search, of one instruction at one byte of text, are done for a unit of cost.
	stepsPerUnit = 64
)

// pattern is an RE2 expression and its size, in instructions.
type pattern struct {
	regexp *regexp.Regexp
	size   int
}

// patterns has the compiled patterns: computed patterns are few as a rule, and literal ones even fewer.
var patterns = sync.OnceValue(func() *lru.Cache[string, *pattern] {
	cache, err := lru.New[string, *pattern](rememberedPatterns)
	if err != nil {
		panic(fmt.Errorf("make a cache of patterns: %w", err)) // Only for a size below one.
	}
	return cache
})

// compilePattern compiles a pattern within the bounds.
func compilePattern(text string) (*pattern, error) {
	if len(text) > maxPatternBytes {
		return nil, fmt.Errorf("a pattern has at most %d bytes, not %d", maxPatternBytes, len(text))
	}
	if p, ok := patterns().Get(text); ok {
		return p, nil
	}
	if work := patternWork(text); work > maxPatternWork {
		return nil, fmt.Errorf("the pattern %s has too many classes of characters", quote(text))
	}
	parsed, err := syntax.Parse(text, syntax.Perl)
	if err != nil {
		return nil, fmt.Errorf("the pattern %s does not compile: %w", quote(text), err)
	}
	size := instructions(parsed) + 3 // which begin and end every program
	if size > maxPatternProgram {
		return nil, fmt.Errorf("the pattern %s is too large: it may make %d instructions, at most %d", quote(text), size,
			maxPatternProgram)
	}
	compiled, err := regexp.Compile(text)
	if err != nil {
		return nil, fmt.Errorf("the pattern %s does not compile: %w", quote(text), err)
	}
	p := &pattern{regexp: compiled, size: size}
	patterns().Add(text, p)
	return p, nil
}

// instructions returns at least how many instructions a part of a pattern compiles to, without compiling it; above the
// bound it may return any number above the bound.
func instructions(r *syntax.Regexp) int {
	n := 0
	for _, sub := range r.Sub {
		if n += instructions(sub); n > maxPatternProgram {
			return n
		}
	}
	switch r.Op {
	case syntax.OpLiteral:
		return len(r.Rune)
	case syntax.OpCharClass:
		// One, but with two numbers for every range.
		return 1 + len(r.Rune)/8
	case syntax.OpConcat:
		return n
	case syntax.OpAlternate:
		return n + len(r.Sub)
	case syntax.OpRepeat:
		if r.Max < 0 {
			return n*max(r.Min, 1) + 1
		}
		return n*r.Max + r.Max - r.Min + 1
	}
	return n + 2
}

// patternWork returns what compiling a pattern costs. The large classes of Unicode take long; longest takes a range beyond
// ASCII of which upper and lower case are the same, because each of its characters is looked at.
func patternWork(text string) int {
	work := len(text)/8 + 64*(strings.Count(text, `\p`)+strings.Count(text, `\P`))
	if foldFlag.MatchString(text) {
		work += 4096 * len(wideRange.FindAllStringIndex(text, -1))
	}
	return work
}

var (
	foldFlag  = regexp.MustCompile(`\(\?[a-zA-Z]*i`)
	wideRange = regexp.MustCompile(`-(?:\\|[^\x00-\x7f])`)
)

// matches searches a text for a pattern.
func matches(m *meter, args []ref.Val) ref.Val {
	text, ok := args[0].(types.String)
	expr, also := args[1].(types.String)
	if !ok || !also {
		return noOverload(overloads.Matches, args)
	}
	m.text(len(expr))
	if len(expr) <= maxPatternBytes {
		m.charge(uint64(patternWork(string(expr))))
	}
	p, err := compilePattern(string(expr))
	if err != nil {
		return types.WrapErr(err)
	}
	m.charge(uint64(p.size) + uint64(len(text))*uint64(p.size)/stepsPerUnit)
	return types.Bool(p.regexp.MatchString(string(text)))
}

// checkPatterns compiles the literal patterns of an expression, so that a wrong one is found when it is registered.
func checkPatterns(tree *ast.AST) *Error {
	var first *Error
	ast.PostOrderVisit(tree.Expr(), ast.NewExprVisitor(func(e ast.Expr) {
		if first != nil || e.Kind() != ast.CallKind || e.AsCall().FunctionName() != overloads.Matches {
			return
		}
		args := e.AsCall().Args()
		if len(args) == 0 {
			return
		}
		if text, ok := literalText(args[len(args)-1]); ok {
			if _, err := compilePattern(text); err != nil {
				first = errorAt(tree.SourceInfo().GetStartLocation(args[len(args)-1].ID()), err.Error())
			}
		}
	}))
	return first
}
