// Package expression computes derived variables: it parses, checks and evaluates their expressions, which are written in
// CEL, the Common Expression Language. It knows neither gRPC nor SQL.
//
//	source, err := expression.Parse(`deps["learning rate"] * double(steps)`)
//	source.Candidates() // learning rate, steps
//	program, err := source.Compile(setpointv1.VariableType_VARIABLE_TYPE_FLOAT, inputs)
//	value, cost, err := program.Eval(ctx, values)
//
// An evaluation has no side effects, reads nothing but its inputs, ends soon, and gives the same result, or the same
// error, whenever it is repeated. What follows is the reference for who writes expressions.
//
// # Naming variables
//
//	temperature               a variable whose name is an identifier
//	deps["any name"]          every variable, whatever its name
//	deps.temperature          the same as deps["temperature"], not for true, false, null and in
//	.temperature              the variable, where a macro has a variable of the same name
//
// An identifier is letters of ASCII, digits and underscores, and does not begin with a digit. The words of CEL (true,
// false, null, in, as, break, const, continue, else, for, function, if, import, let, loop, package, namespace, return,
// var, void, while), the names of its types (bool, bytes, double, int, list, map, null_type, string, type, uint) and deps
// itself need deps["…"]. A function's namespace is no reference: math.abs(x) is the function also where a variable has
// the name math. The variable of a macro hides an input within the macro: in xs.map(a, a + 1.0) + [a] only the last a is
// the variable.
//
// With a key that is not a literal, or on its own, deps is a map of all dependencies: deps[mode], "x" in deps,
// has(deps.x), deps.exists(k, …). Such an expression counts as using every dependency, so all of them must be readable;
// what type a value has that is found this way is known when the expression is evaluated only.
//
// # Types
//
//	variable                  in an expression          a result may be
//	boolean                   bool                      bool
//	integer                   int (64 bits)             int, uint
//	float                     double                    double, int, uint
//	string, choice, module    string                    string
//	embedding                 list(double)              list of double, int or uint
//	json                      dyn                       null, bool, int, uint, double, string, lists of those, maps
//	                                                    from strings to those
//	tensor                    cannot be read            cannot be computed
//
// Types are checked when the expression is registered. Numbers of different types can be compared with <, <=, > and >=, but
// are neither equal nor calculated with before they are converted: write temperature * 2.0, or double(steps) / 3.0, or
// int(temperature). The parts of a json variable are dyn: which type they have is found out by the evaluation, and then
// int and double are equal if their values are. JSON's numbers are doubles. A result of type dyn may be for any variable;
// a double for an integer must be whole. Whether the result satisfies the variable's constraints is decided afterwards,
// as for every value.
//
// A float keeps NaN and the infinities; in JSON they are an error. So is an integer in JSON beyond 2^53, whose digits a
// number of JSON cannot hold: convert it with double(...) or string(...). An element of an embedding is rounded to 32 bits;
// one too large for that is an error. Timestamps, durations, bytes and types may be calculated with but not be results.
//
// # What there is
//
//	operators    + - * / % (also + of strings, bytes and lists), == != < <= > >=, && || !, c ? x : y, in, [ ], .
//	literals     1, -1, 0x1f, 1u, 1.5, 1e-3, true, "text", r"raw\text", b"bytes", null, [1, 2], {"a": 1, "b": [2]}
//	conversions  bool bytes double duration dyn int string timestamp uint, type(x) == int
//	macros       has(x.name); of lists and of the keys of maps: all(x, cond) exists(x, cond) exists_one(x, cond)
//	             filter(x, cond) map(x, value) map(x, cond, value)
//	sizes        size(x) or x.size(), of strings in characters
//	strings      contains startsWith endsWith matches charAt indexOf lastIndexOf substring replace split join trim
//	             lowerAscii upperAscii reverse format, strings.quote
//	mathematics  math.abs bitAnd bitOr bitXor bitNot bitShiftLeft bitShiftRight ceil floor round trunc greatest least
//	             isNaN isInf isFinite sign sqrt
//	time         getFullYear getMonth getDate getDayOfMonth getDayOfWeek getDayOfYear getHours getMinutes getSeconds
//	             getMilliseconds, in UTC
//
// They are those of CEL's definition and of its extensions for mathematics (version 2) and strings (version 5), whose
// versions are fixed so that an expression keeps its meaning. There is no clock, no chance, and no time zone but UTC:
// rules of time zones differ between machines. Protocol buffer messages cannot be made, and the optional syntax (x.?name)
// is not there. Maps are gone through in the order of their keys: false, true, numbers, strings. A map written with the
// same key twice is an error. int(2.9) is 2, 7 / 2 is 3, -7 % 2 is -1; overflow, division of integers by zero, an index
// that is out of range and a key that is not there are errors; && and || give a result in spite of an error that cannot
// change it.
//
// # Limits
//
// An expression has at most 4,096 bytes ([MaxBytes]), 1,500 parts and 64 macros and empty lists; it nests at most 250
// deep, where every operator of a chain counts except those of && and ||, and its lists and maps at most 32.
//
// An evaluation costs at most 100,000 units ([CostLimit]). A unit is an operator, a call, an access or an element of a
// list that is written; a round of a macro costs one and what its body costs; what a condition leaves out is counted too.
// Names and literals are free. Reading or writing 64 bytes of text costs a unit more; so does comparing, searching,
// formatting or joining an element of a list, and a quarter of that copying one. A pattern costs its length in
// instructions, and a unit more for every 64 steps of it at a byte of text. So an embedding of 16,384 dimensions can be
// mapped, but not be paired with itself. Spending everything took between five and forty milliseconds of one core of a
// server of 2026 for whatever is meant to compute something, and a fifth of a second for the worst that was made to take
// long.
//
// No text that an expression makes has more than 1 MiB ([MaxResultBytes]), no list more than 131,072 elements
// ([MaxElements]), and no JSON more of either in all. Inputs may be larger: a part of them can be accessed. The key of a
// map has at most 64 KiB. A pattern has at most 4,096 bytes and 1,000 instructions after its repetitions are written out.
// format takes at most 100 digits after the point.
package expression
