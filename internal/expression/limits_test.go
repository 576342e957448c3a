package expression

import (
	"errors"
	"fmt"
	"regexp/syntax"
	"runtime"
	"strings"
	"testing"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// attackInputs are what an attacker may have set, as large as values may be.
func attackInputs(t testing.TB) ([]Input, map[string]*setpointv1.Value) {
	t.Helper()
	vector := make([]float32, 1<<14)
	for i := range vector {
		vector[i] = float32(i)
	}
	var members strings.Builder
	for i := range 140_000 {
		fmt.Fprintf(&members, `%q: %d,`, fmt.Sprint("key", i), i)
	}
	object := `{"big": {` + strings.TrimSuffix(members.String(), ",") + `}, "list": [` + strings.Repeat("1,", 140_000) + `1]}`
	return []Input{
			{"text", typeString}, {"long", typeString}, {"huge", typeString}, {"xs", typeEmbedding}, {"ys", typeEmbedding},
			{"n", typeInteger}, {"j", typeJSON}, {"pattern", typeString},
		}, map[string]*setpointv1.Value{
			"text":    text("hello"),
			"long":    text(strings.Repeat("a", 1<<20)),
			"huge":    text(strings.Repeat("é", 4<<20)),
			"xs":      embedding(vector...),
			"ys":      embedding(make([]float32, 1<<22)...),
			"n":       integer(1),
			"j":       jsonText(t, object),
			"pattern": text("(a*)*b"),
		}
}

// TestAttacks has expressions that are made to take time or memory. Each of them must be refused, or fail, having
// allocated no more than a bound. It is not parallel: what it measures is of the whole process.
func TestAttacks(t *testing.T) {
	repeat := strings.Repeat
	chain := func(head, step string, n int) string { return head + repeat(step, n) }
	nest := func(left, middle, right string, n int) string {
		return repeat(left, n) + middle + repeat(right, n)
	}
	tests := []struct{ name, text string }{
		{"replace doubles", chain("'aaaaaaaaaaaaaaaa'", ".replace('a', 'aa')", 100)},
		{"replace of nothing", "text.replace('', long)"},
		{"replace of nothing, limited", "text.replace('', long, 5)"},
		{"replace often", "xs.map(x, long.replace('a', 'b'))"},
		{"replace in a huge one", "huge.replace('é', 'ab')"},
		{"join with a long separator", "xs.map(x, text).join(long)"},
		{"join often", "xs.map(x, xs.map(y, text).join(text))"},
		{"join of shared texts", "xs.map(x, long).join()"},
		{"format with a long argument, often", "xs.map(x, '%s%s'.format([long, long]))"},
		{"format with much precision", "'%.999999999f'.format([1.0])"},
		{"format with computed precision", "('%.' + string(n) + '99999999f').format([1.0])"},
		{"format many numbers", "'%s'.format([j])"},
		{"format large numbers", "'%s'.format([xs.map(x, 1e308)])"},
		{"format shared lists", "'%s'.format([" + chain("[0]", ".map(a, [a, a])", 20) + "])"},
		{"format with a huge pattern", "huge.format([1])"},
		{"quote", "strings.quote(long + long)"},
		{"quote a huge one", "strings.quote(huge)"},
		{"text doubles", chain("[long]", ".map(a, a + a)", 30)},
		{"text grows", chain("long", " + long", 200)},
		{"huge text grows", "huge + huge"},
		{"bytes grow", chain("bytes(long)", " + bytes(long)", 100)},
		{"text in a loop", "xs.map(x, long + text)"},
		{"short text in a loop", "xs.map(x, (text + text + text + text + text).upperAscii().reverse())"},
		{"reverse in a loop", "xs.map(x, long.reverse())"},
		{"size in a loop", "xs.map(x, huge.size())"},
		{"contains in a loop", "xs.filter(x, huge.contains('b'))"},
		{"indexOf", "long.indexOf(long.substring(0, 500000) + 'b')"},
		{"lastIndexOf", "long.lastIndexOf('b' + long.substring(0, 500000))"},
		{"compare in a loop", "xs.filter(x, long < long + '')"},
		{"equal in a loop", "xs.filter(x, long == 'a' + long.substring(1))"},
		{"split", "huge.split('')"},
		{"split in a loop", "xs.map(x, long.split(''))"},
		{"split short text in a loop", "xs.map(x, (text + text).split(''))"},
		{"substring in a loop", "xs.map(x, long.substring(1))"},
		{"int of a text", "xs.map(x, int(long))"},
		{"double of a text", "xs.map(x, double(huge))"},
		{"duration of a text", "xs.map(x, duration(long))"},
		{"square", "xs.map(x, xs.map(y, x * y))"},
		{"square that keeps nothing", "xs.exists(x, xs.exists(y, x + y < 0.0))"},
		{"square without calls", "xs.exists(x, xs.exists(y, false))"},
		{"square of filters", "xs.filter(x, xs.filter(y, false) == [1.0])"},
		{"square of exists_one", "xs.exists_one(x, xs.exists_one(y, false))"},
		{"all", "ys.all(x, ys.all(y, true))"},
		{"cube", "xs.all(x, xs.all(y, xs.all(z, true)))"},
		{"many embeddings", "xs.map(x, ys + ys)"},
		{"sum of embeddings", chain("ys", " + ys", 240)},
		{"lists double", chain("[xs]", ".map(a, a + a)", 60)},
		{"lists grow", "xs.map(x, xs + xs)"},
		{"lists in lists", nest("[", "1", "]", 2000)},
		{"lists of shared lists", chain("[0]", ".map(a, [a, a])", 28)},
		{"lists of shared lists are equal", chain("[0]", ".map(a, [a, a])", 28) + " == " + chain("[0]", ".map(a, [a, a])", 28)},
		{"list of shared lists is in", "[0] in [" + chain("[0]", ".map(a, [a, a])", 28) + "]"},
		{"maps of shared maps", chain("[0]", ".map(a, {'x': a, 'y': a})", 28)},
		{"maps of shared maps are equal", chain("[0]", ".map(a, {'x': a, 'y': a})", 28) + " == " +
			chain("[0]", ".map(a, {'x': a, 'y': a})", 28)},
		{"maps with maps as keys", chain("[0]", ".map(a, {a: a})", 30)},
		{"a shared list as index", "[1][dyn(" + chain("[0]", ".map(a, [a, a])", 28) + ")]"},
		{"a shared list as key", "{'a': 1}[dyn(" + chain("[0]", ".map(a, [a, a])", 28) + ")]"},
		{"a huge key", "xs.map(x, {'a': 1}[huge])"},
		{"a huge key is written", "xs.map(x, {huge: 1})"},
		{"a long key", "xs.filter(x, {'a': 1}[long.substring(0, 60000)] == 1)"},
		{"large literals in a loop", "xs.map(x, [" + repeat("1,", 700) + "1])"},
		{"large maps in a loop", "xs.map(x, {" + repeat("'a':1,", 1) + "'b': " + nest("{'a':", "1", "}", 25) + "})"},
		{"a large object in a loop", "xs.exists(x, j.big.exists(k, false))"},
		{"a large object, begun in a loop", "xs.exists(x, !j.big.exists(k, true))"},
		{"a large object is equal in a loop", "xs.all(x, j.big == j.big)"},
		{"a large list is equal in a loop", "xs.all(x, j.list == j.list)"},
		{"size of a large object in a loop", "xs.map(x, xs.map(y, j.big.size()))"},
		{"greatest of many", "xs.map(x, math.greatest(xs))"},
		{"greatest of very many", "math.greatest(ys)"},
		{"in a long list", "xs.filter(x, x in xs)"},
		{"in a very long list", "-1.0 in ys"},
		{"pattern", "long.matches(pattern)"},
		{"pattern in a loop", "xs.filter(x, long.matches('(a|b|ab)*c'))"},
		{"large pattern", "text.matches('((a{30}){30}){30}')"},
		{"large computed pattern", "text.matches('((a{30}){30}){' + string(n) + '0}')"},
		{"many patterns", "xs.filter(x, text.matches('(a{20}){20}' + string(x)))"},
		{"long pattern", "text.matches(long)"},
		{"classes", "text.matches('[' + [" + repeat(`'\\pL',`, 320) + "''].join() + ']')"},
		{"folded classes", "text.matches('(?i)" + repeat(`[A-\\x{1E942}]`, 100) + "')"},
		{"folded classes, computed", "xs.filter(x, text.matches('(?i)" + repeat(`[A-\\x{1E942}]`, 8) + "' + string(x)))"},
		{"brackets", nest("(", "n", ")", 2000)},
		{"open brackets", repeat("(", 4096)},
		{"signs", repeat("-", 4000) + "n" + " == long"},
		{"a long chain", chain("n", "+n", 2000)},
		{"conditions", chain("", "n==1?", 400) + "n"},
		{"nested conditions", nest("n==1?[", "[]", "]:[]", 200)},
		{"types", nest("type(", "n", ")", 500)},
		{"empty lists", chain("[]", "+[]", 1300)},
		{"empty maps", "[" + repeat("{},", 1300) + "{}]"},
		{"calls that fail", chain("n==1", "||n/0==1", 400) + " && long.split('') == []"},
		{"errors in a loop", "xs.exists(x, xs.exists(y, {'a': 1}[text] == 1))"},
		{"huge errors in a loop", "xs.exists(x, {'a': 1}[long.substring(0, 60000)] == 1)"},
		{"too long", "'" + repeat("a", 5000) + "'"},
		{"the result has too many elements", "ys"},
	}
	inputs, values := attackInputs(t)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			attack(t, tt.text, typeJSON, inputs, values)
		})
	}
	t.Run("the result is too long", func(t *testing.T) {
		attack(t, "huge", typeString, inputs, values)
	})
	t.Run("the result has too many dimensions", func(t *testing.T) {
		attack(t, "ys", typeEmbedding, inputs, values)
	})
}

// attack tries an expression that must end with an error.
func attack(t *testing.T, text string, typ setpointv1.VariableType, inputs []Input, values map[string]*setpointv1.Value) {
	t.Helper()
	const most = 96 << 20
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	p, err := NewCache(1).Compile(text, typ, inputs)
	var cost uint64
	if err == nil {
		_, cost, err = p.Eval(t.Context(), values)
	}
	runtime.ReadMemStats(&after)
	message := messageOf(t, err)
	if message == "" {
		t.Fatal("no error")
	}
	checkMessage(t, message)
	if allocated := after.TotalAlloc - before.TotalAlloc; allocated > most {
		t.Errorf("%d KiB are allocated, want at most %d: %s", allocated>>10, most>>10, message)
	}
	if cost > CostLimit {
		t.Errorf("the cost is %d", cost)
	}
}

// messageOf returns the message of an error that must be one of the package; none if there is no error.
func messageOf(t testing.TB, err error) string {
	t.Helper()
	var refused *Error
	var failed *EvalError
	switch {
	case err == nil:
		return ""
	case errors.As(err, &refused):
		return refused.Message
	case errors.As(err, &failed):
		return failed.Message
	}
	t.Errorf("got error %v, want an Error or an EvalError", err)
	return ""
}

// TestWithinLimits has what is large and must work all the same.
func TestWithinLimits(t *testing.T) {
	t.Parallel()
	tests := []struct {
		typ        setpointv1.VariableType
		name, text string
	}{
		{typeEmbedding, "an embedding of 16,384 dimensions", "xs.map(x, x * 2.0 + 1.0)"},
		{typeEmbedding, "two of them", "xs + xs"},
		{typeFloat, "the greatest of 16,384", "math.greatest(xs)"},
		{typeString, "a text of 1 MiB", "long"},
		{typeString, "some changes of it", "long.upperAscii().replace('A', 'b')"},
		{typeBoolean, "a search in it", "long.contains('b') || long.endsWith('aa')"},
		{typeFloat, "an element of a large embedding", "ys[4000000]"},
		{typeFloat, "a member of a large object", "j.big.key139999"},
		{typeBoolean, "a member that a large object does not have", "has(j.big.nothing)"},
		{typeFloat, "an element of a large list", "j.list[j.list.size() - 1]"},
		{typeFloat, "a long sum", "ys[0]" + strings.Repeat("+ys[0]", 200)},
		{typeFloat, "a long literal", "xs[0] + [" + strings.Repeat("1.0,", 700) + "2.0][700]"},
		{typeInteger, "a long alternative", strings.Repeat("n==2?1:", 200) + "n"},
		{typeBoolean, "a long condition", "n==1" + strings.Repeat("&&n==1", 300)},
	}
	inputs, values := attackInputs(t)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if _, _, err := compile(t, tt.text, tt.typ, inputs).Eval(t.Context(), values); err != nil {
				t.Errorf("Eval: %v", err)
			}
		})
	}
}

// TestMacrosAreCharged has every macro pay for its rounds, whatever its body does.
func TestMacrosAreCharged(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		"xs.all(x, true)", "xs.exists(x, false)", "xs.exists_one(x, false)", "xs.map(x, 1) == []",
		"xs.map(x, false, 1) == []", "xs.filter(x, false) == []", "j.all(k, true)",
	} {
		t.Run(text, func(t *testing.T) {
			t.Parallel()
			cost := func(n int) uint64 {
				object := "{"
				for i := range n {
					object += fmt.Sprintf(`"%d": 1,`, i)
				}
				_, cost, err := compile(t, text, typeBoolean, []Input{{"xs", typeEmbedding}, {"j", typeJSON}}).Eval(t.Context(),
					map[string]*setpointv1.Value{
						"xs": embedding(make([]float32, n)...), "j": jsonText(t, strings.TrimSuffix(object, ",")+"}")})
				if err != nil {
					t.Fatalf("Eval: %v", err)
				}
				return cost
			}
			if few, many := cost(10), cost(110); many < few+200 {
				t.Errorf("10 rounds cost %d, 110 rounds %d", few, many)
			}
		})
	}
}

// TestInstructions compares the size of patterns with what they compile to.
func TestInstructions(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		``, `a`, `abc`, `^abc$`, `a|b|cd`, `(a)(b)`, `a*b+c?d*?`, `[a-z]+`, `\d{3}-\d{2,5}`, `(x{3}){4}`, `(a|b{2,}){2,7}`, `x{0}`,
		`x{0,1}`, `x{5,}`, `(?:x{0,9}){9}`, `(?i)hello`, `(?i)[k-s]+`, `(?s).*`, `.*`, `[^a]`, `\bword\b`,
		`(((((a)*)*)*)*)*`, `(a?){20}a{20}`, `(foo|foobar|fo+){3,9}`, `[\x{0}-\x{10FFFF}]`, `(?:)`, `(?:(?:)|a)`, `^*`,
	} {
		parsed, err := syntax.Parse(text, syntax.Perl)
		if err != nil {
			t.Fatal(err)
		}
		program, err := syntax.Compile(parsed.Simplify())
		if err != nil {
			t.Fatal(err)
		}
		if got := instructions(parsed) + 3; got < len(program.Inst) || got > 8*len(program.Inst)+8 {
			t.Errorf("%s: %d instructions, compiled to %d", text, got, len(program.Inst))
		}
	}
}
