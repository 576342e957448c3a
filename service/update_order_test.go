package service

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Each edge is "dependent<dependency", over names of one letter.
func TestInUpdateOrder(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ variables, edges, want string }{
		"nothing":                {"", "", ""},
		"by name":                {"cab", "", "abc"},
		"a chain against names":  {"abc", "a<b b<c", "cba"},
		"a diamond":              {"dcba", "b<a c<a d<b d<c", "abcd"},
		"a choice after another": {"abcx", "a<x b<a", "cxab"},
		"the same edge twice":    {"ab", "a<b a<b", "ba"},
		"a cycle, and after it":  {"abcd", "a<b b<a c<b", "d"},
	} {
		needs := map[int][]int{}
		for edge := range strings.FieldsSeq(test.edges) {
			dependent := strings.IndexByte(test.variables, edge[0])
			needs[dependent] = append(needs[dependent], strings.IndexByte(test.variables, edge[2]))
		}
		got := ""
		for _, i := range inUpdateOrder(len(test.variables),
			func(i int) string { return test.variables[i : i+1] }, func(i int) []int { return needs[i] }) {
			got += test.variables[i : i+1]
		}
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}
