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

// Each number that is on a circle is told a shortest one that it is on.
func TestCycles(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		needs [][]int
		want  map[int][]int
	}{
		"none":                    {[][]int{{1}, {2}, {}}, map[int][]int{}},
		"of itself":               {[][]int{{0}}, map[int][]int{0: {0, 0}}},
		"two, and one after":      {[][]int{{1}, {0}, {0}}, map[int][]int{0: {0, 1, 0}, 1: {1, 0, 1}}},
		"through the same":        {[][]int{{1, 3}, {2}, {3}, {1, 0}}, map[int][]int{0: {0, 3, 0}, 1: {1, 2, 3, 1}, 2: {2, 3, 1, 2}, 3: {3, 0, 3}}},
		"between two, on neither": {[][]int{{1}, {0}, {0, 3}, {4}, {3}, {2}}, map[int][]int{0: {0, 1, 0}, 1: {1, 0, 1}, 3: {3, 4, 3}, 4: {4, 3, 4}}},
	} {
		if diff := cmp.Diff(test.want, cycles(test.needs)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

// All thousand numbers that need all others take no longer than a moment, and each is told a circle.
func TestCyclesOfMany(t *testing.T) {
	t.Parallel()
	needs := make([][]int, 1000)
	for i := range needs {
		for j := range 1000 {
			if (i*7+j*13)%5 == 0 || j == (i+1)%1000 {
				needs[i] = append(needs[i], j)
			}
		}
	}
	found := cycles(needs)
	if len(found) != 1000 {
		t.Errorf("%d are on a circle", len(found))
	}
	for i, path := range found {
		if len(path) < 2 || path[0] != path[len(path)-1] {
			t.Fatalf("%d is told %v", i, path)
		}
	}
}
