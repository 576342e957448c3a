package value

import (
	"fmt"
	"regexp"
	"regexp/syntax"
)

const (
	// maxPatternBytes bounds the text of a pattern, maxPatternProgram the number of its compiled instructions: a few
	// characters like (x{100}){9} make many.
	maxPatternBytes   = 4096
	maxPatternProgram = 10_000
	// maxPatternWork bounds one search: bytes of text × instructions, the worst case of RE2. It is reached by a text of
	// 16 MiB and a pattern of 16 instructions; worked out to the end it takes about a second.
	maxPatternWork = 1 << 28
)

// pattern is an RE2 expression with its cost.
type pattern struct {
	text    string
	regexp  *regexp.Regexp
	program int // instructions
}

// compilePattern compiles an RE2 expression within the bounds.
func compilePattern(text string) (*pattern, error) {
	if len(text) > maxPatternBytes {
		return nil, fmt.Errorf("has %d bytes, more than %d", len(text), maxPatternBytes)
	}
	parsed, err := syntax.Parse(text, syntax.Perl)
	if err != nil {
		return nil, fmt.Errorf("%s does not compile: %w", quote(text), err)
	}
	program, err := syntax.Compile(parsed.Simplify())
	if err != nil {
		return nil, fmt.Errorf("%s does not compile: %w", quote(text), err)
	}
	if len(program.Inst) > maxPatternProgram {
		return nil, fmt.Errorf("%s compiles to %d instructions, more than %d", quote(text), len(program.Inst),
			maxPatternProgram)
	}
	re, err := regexp.Compile(text)
	if err != nil {
		return nil, fmt.Errorf("%s does not compile: %w", quote(text), err)
	}
	return &pattern{text: text, regexp: re, program: len(program.Inst)}, nil
}

// work returns what a search in a text of n bytes may cost.
func (p *pattern) work(n int) int {
	return n * p.program
}
