package expression

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// FuzzParse compiles and computes whatever text there is, for every type of results. Nothing may panic or go on for ever,
// every error is one of the package's, and doing it again gives the same.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		`n + 1`, `a * 2.0 + double(n)`, `deps["a.b"] + deps.n`, `v.map(x, x * 2.0)`, `v.filter(x, x > a).size()`,
		`[n].exists(n, n == 7) || has(j.a)`, `{"a": n, "b": [a, s]}`, `"%s %.3f %d".format([s, a, n])`, `deps.map(k, k)`,
		`s.matches("^h.*o$")`, `s.replace("l", s + s)`, `s.split("").join(",")`, `math.greatest(v) + math.abs(-1.0)`,
		`j.map(k, j[k]) == [1]`, `on ? "fast" : "slow"`, `[0].map(a, [a, a]).map(a, [a, a])`, `{n: 1}[dyn(7.0)]`,
		`timestamp("2026-01-02T03:04:05Z").getFullYear()`, `type(n) == int`, `b"x" + bytes(s)`, `.n + .deps["n"]`,
		`[{"n": 1}].map(deps, deps["n"])`, `n / 0 == 1 || true`, `-9223372036854775808`, `18446744073709551615u`, `1e308 * 10.0`,
		`"a\nb" + r"\n" + '''x'''`, `j.m.k == null`, `[[1], [2]][n - 7][0]`, `s.matches("(?i)[a-z]{2,5}|x*")`, `deps[s]`,
		"((((((((((n))))))))))", "!!!!on", "----a", `math.math`, `x.y.z()`, `a ? b : c`, `"\xff"`, `{{}: 1}`, `[1, "a", null]`,
	} {
		f.Add(seed)
	}
	inputs, values := world(f)
	inputs = plain(inputs)
	results := []setpointv1.VariableType{
		typeBoolean, typeInteger, typeFloat, typeString, typeChoice, typeModule, typeEmbedding, typeTensor, typeJSON,
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := Parse(text)
		if err != nil {
			checkMessage(t, messageOf(t, err))
			return
		}
		for _, result := range results {
			p, err := s.Compile(result, inputs)
			if err != nil {
				checkMessage(t, messageOf(t, err))
				continue
			}
			v, cost, err := p.Eval(t.Context(), values)
			if err != nil {
				checkMessage(t, messageOf(t, err))
			}
			if cost > CostLimit {
				t.Errorf("the cost is %d", cost)
			}
			again, _, otherErr := p.Eval(t.Context(), values)
			if fmt.Sprint(err) != fmt.Sprint(otherErr) {
				t.Errorf("got error %v, and then %v", err, otherErr)
			}
			if diff := cmp.Diff(v, again, protocmp.Transform()); diff != "" {
				t.Errorf("the second result is another (-first +second):\n%s", diff)
			}
		}
	})
}
