package expression

import (
	"fmt"
	"sync"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/env"
	"cel.dev/cel-go/common/functions"
	"cel.dev/cel-go/common/overloads"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/ext"
)

// The versions of CEL's libraries, pinned: a later version may add functions and change what one does, and a stored
// expression keeps its meaning when the server is upgraded.
const (
	mathVersion    = 2
	stringsVersion = 5
)

const (
	// maxDepth is how many operators, calls and brackets may lie in each other.
	maxDepth = 250
	// maxNodes is the greatest number of parts of an expression after its macros are expanded.
	maxNodes = 1500
	// maxPrecision is the greatest number of digits after the point that format takes.
	maxPrecision = 100
)

// Functions that expressions cannot name, but have inserted.
const (
	// keyFunction is around the computed keys of a map: its overloads have the types that keys can have.
	keyFunction = "@key"
	// rangeFunction is around what a macro goes through, and charges for it.
	rangeFunction = "@range"
)

// environment is what all expressions have in common. It is immutable.
type environment struct {
	cel *cel.Env
	// bindings are the implementations that CEL has, by overload and by function.
	bindings map[string]*functions.Overload
}

// shared returns the environment, which is built once.
var shared = sync.OnceValue(newEnvironment)

// newEnvironment builds the environment. It panics if CEL's own libraries do not fit together, which depends on nothing
// but the versions of the modules.
func newEnvironment() *environment {
	registry, err := types.NewRegistry()
	if err != nil {
		panic(fmt.Errorf("build the types of expressions: %w", err))
	}
	anything := cel.TypeParamType("A")
	e, err := cel.NewCustomEnv(
		cel.CustomTypeAdapter(adapter{registry}),
		cel.CustomTypeProvider(provider{registry}),
		cel.StdLib(cel.StdLibSubset(standardSubset())),
		ext.Math(ext.MathVersion(mathVersion)),
		ext.Strings(ext.StringsVersion(stringsVersion), ext.StringsMaxPrecision(maxPrecision)),
		cel.Function(keyFunction,
			cel.Overload("@key_bool", []*cel.Type{cel.BoolType}, cel.BoolType),
			cel.Overload("@key_int", []*cel.Type{cel.IntType}, cel.IntType),
			cel.Overload("@key_uint", []*cel.Type{cel.UintType}, cel.UintType),
			cel.Overload("@key_string", []*cel.Type{cel.StringType}, cel.StringType),
		),
		cel.Function(rangeFunction, cel.Overload("@range", []*cel.Type{anything}, anything)),
		cel.CrossTypeNumericComparisons(true),
		cel.EnableHiddenAccumulatorName(true),
		cel.DefaultUTCTimeZone(true),
		cel.ParserRecursionLimit(maxDepth),
		cel.ParserExpressionSizeLimit(MaxBytes),
		cel.ExpressionNodeLimit(maxNodes),
		cel.EagerlyValidateDeclarations(true),
	)
	if err != nil {
		panic(fmt.Errorf("build the environment of expressions: %w", err))
	}
	bindings := map[string]*functions.Overload{}
	for name, f := range e.Functions() {
		overloads, err := f.Bindings()
		if err != nil {
			panic(fmt.Errorf("find the implementation of %s: %w", name, err))
		}
		for _, o := range overloads {
			bindings[o.Operator] = o
		}
	}
	return &environment{cel: e, bindings: bindings}
}

// standardSubset is the standard library without what depends on the machine: a time zone's rules are read from its disk.
func standardSubset() *env.LibrarySubset {
	subset := env.NewLibrarySubset()
	for function, overload := range map[string]string{
		overloads.TimeGetFullYear:     overloads.TimestampToYearWithTz,
		overloads.TimeGetMonth:        overloads.TimestampToMonthWithTz,
		overloads.TimeGetDayOfYear:    overloads.TimestampToDayOfYearWithTz,
		overloads.TimeGetDayOfMonth:   overloads.TimestampToDayOfMonthZeroBasedWithTz,
		overloads.TimeGetDate:         overloads.TimestampToDayOfMonthOneBasedWithTz,
		overloads.TimeGetDayOfWeek:    overloads.TimestampToDayOfWeekWithTz,
		overloads.TimeGetHours:        overloads.TimestampToHoursWithTz,
		overloads.TimeGetMinutes:      overloads.TimestampToMinutesWithTz,
		overloads.TimeGetSeconds:      overloads.TimestampToSecondsWithTz,
		overloads.TimeGetMilliseconds: overloads.TimestampToMillisecondsWithTz,
	} {
		subset.AddExcludedFunctions(env.NewFunction(function, env.NewOverload(overload, nil, nil)))
	}
	return subset
}

// provider hides that it is a registry: CEL would copy one for every expression.
type provider struct {
	types.Provider
}

// isDeclared tells whether CEL itself gives an identifier a meaning, like int.
func (e *environment) isDeclared(name string) bool {
	_, ok := e.cel.CELTypeProvider().FindIdent(name)
	return ok
}
