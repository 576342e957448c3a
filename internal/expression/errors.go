package expression

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"
)

// maxMessage bounds a message, in bytes.
const maxMessage = 500

// maxQuoted bounds a text that a message quotes, in characters.
const maxQuoted = 64

// Error is why an expression is refused when it is registered.
type Error struct {
	// Message is for people: one line of at most 500 bytes. It begins with line:column where there is a place.
	Message string
}

// Error returns the message.
func (e *Error) Error() string {
	return e.Message
}

// EvalError is why the value of an expression cannot be computed of its inputs.
type EvalError struct {
	// Message is for people: one line of at most 500 bytes.
	Message string
}

// Error returns the message.
func (e *EvalError) Error() string {
	return e.Message
}

func newError(format string, args ...any) *Error {
	return &Error{Message: oneLine(fmt.Sprintf(format, args...))}
}

// errorAt makes an error of a place in the expression.
func errorAt(place common.Location, message string) *Error {
	if place == nil || place.Line() < 1 {
		return newError("%s", message)
	}
	return newError("%d:%d: %s", place.Line(), max(place.Column()+1, 1), message)
}

func newEvalError(format string, args ...any) *EvalError {
	return &EvalError{Message: oneLine(fmt.Sprintf(format, args...))}
}

// firstIssue makes an error of the issue that comes first in the expression; nil if there is none.
func firstIssue(issues *cel.Issues) *Error {
	var first *cel.Error
	for _, issue := range issues.Errors() {
		if first == nil || first.Location.Line() < 1 || issue.Location.Line() >= 1 && before(issue.Location, first.Location) {
			first = issue
		}
	}
	if first == nil {
		return nil
	}
	message := compileMessage(first.Message)
	return errorAt(first.Location, message+hint(message))
}

// compileMessage takes from a message of CEL's compiler what people have no use for.
func compileMessage(message string) string {
	switch {
	case strings.Contains(message, "recursion"):
		return fmt.Sprintf("the expression nests deeper than %d levels; every operator in a chain is one", maxDepth)
	case strings.HasPrefix(message, "expression count"), strings.HasPrefix(message, "expression node"):
		return fmt.Sprintf("the expression has more than %d parts", maxNodes)
	case strings.HasPrefix(message, "error recovery"):
		return "the expression is not CEL"
	case strings.HasPrefix(message, badKey):
		return badKeyMessage
	}
	message = shorten(message, 4*maxMessage)
	message, _, _ = strings.Cut(message, " expecting {")
	message = strings.Replace(message, " (in container '')", "", 1)
	message = strings.NewReplacer("Syntax error", "syntax error", "for '@key'", "for the key of a map",
		"'math.@max'", "'math.greatest'", "'math.@min'", "'math.least'").Replace(message)
	return operatorName.ReplaceAllStringFunc(message, func(name string) string {
		return "'" + functionName(strings.Trim(name, "'")) + "'"
	})
}

// badKey begins CEL's message about what is in brackets, badKeyMessage is what it says.
const (
	badKey        = "invalid qualifier type"
	badKeyMessage = "an index is a number, and a key of a map is a string, a number or a bool"
)

// operatorName is how CEL's compiler names operators.
var operatorName = regexp.MustCompile(`'[@!_\-][^' ]*'`)

// functionName returns how an expression writes a function or an operator.
func functionName(function string) string {
	switch function {
	case operators.Conditional:
		return "?:"
	case operators.Index:
		return "[]"
	case "math.@max":
		return "math.greatest"
	case "math.@min":
		return "math.least"
	}
	if operator, ok := operators.FindReverse(function); ok && operator != "" {
		return operator
	}
	return function
}

// hint adds to a message of CEL's compiler what to do about it.
func hint(message string) string {
	if _, types, ok := strings.Cut(message, " applied to "); ok {
		return mixed(types)
	}
	return ""
}

// mixed is the hint for a function that does not take values of some types.
func mixed(types string) string {
	if strings.Contains(types, "int") && strings.Contains(types, "double") {
		return "; int and double do not mix: write 2.0 instead of 2, or convert with double(...) or int(...)"
	}
	return ""
}

// sourceInfo knows where the parts of an expression are.
type sourceInfo struct {
	info *ast.SourceInfo
}

// evalError makes an error of one of CEL.
func (s sourceInfo) evalError(err error) *EvalError {
	message := shorten(err.Error(), 4*maxMessage)
	if strings.HasPrefix(message, badKey) {
		message = badKeyMessage
	}
	var celErr *types.Err
	if errors.As(err, &celErr) {
		if place := s.info.GetStartLocation(celErr.NodeID()); place.Line() >= 1 {
			return newEvalError("%d:%d: %s", place.Line(), place.Column()+1, shorten(message, maxMessage-32))
		}
	}
	return newEvalError("%s", message)
}

// oneLine makes a line of limited length of a text.
func oneLine(text string) string {
	text = shorten(text, maxMessage)
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == '\u2028' || r == '\u2029' {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, "\ufffd"))
}

// shorten cuts a text to at most max bytes, at the border of a character.
func shorten(text string, max int) string {
	const more = "…"
	if len(text) <= max {
		return text
	}
	end := max - len(more)
	for end > 0 && !utf8.RuneStart(text[end]) {
		end--
	}
	return text[:end] + more
}

// quote writes a text for a message.
func quote(text string) string {
	short := text
	if n := 0; len(text) > maxQuoted {
		for i := range text {
			if n++; n > maxQuoted {
				short = text[:i] + "…"
				break
			}
		}
	}
	return strconv.Quote(short)
}
