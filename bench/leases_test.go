package main

import (
	"slices"
	"strings"
	"testing"
	"time"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

func TestParseLeases(t *testing.T) {
	t.Parallel()
	c, err := parseLeases(strings.Fields("--addr a:1 --servers b:2,c:3 --optimizers 7 --for 2s --conflict mixed --hold 1ms"))
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"a:1", "b:2", "c:3"}; !slices.Equal(c.addrs, want) {
		t.Errorf("servers: got %q, want %q", c.addrs, want)
	}
	if c.optimizers != 7 || c.length != 2*time.Second || c.conflict != "mixed" || c.hold != time.Millisecond || c.waitMany {
		t.Errorf("got %+v", c)
	}
	c, err = parseLeases([]string{"--wait-many"})
	if err != nil || !c.waitMany || c.waiting != 1000 || c.optimizers != 200 || c.variables != 20 || c.length != 30*time.Second ||
		c.conflict != "wait" {
		t.Errorf("defaults: got %+v, %v", c, err)
	}
}

func TestParseLeasesRefuses(t *testing.T) {
	t.Parallel()
	for args, want := range map[string]string{
		"--conflict fight":                 `"fight" is none of`,
		"--optimizers 0":                   "at least one",
		"--variables 2 --most-variables 3": "--most-variables: there are 2",
		"--for -1s":                        "negative",
		"--hold -1s":                       "negative",
		"--waiting 0":                      "at least one",
		"more":                             `what is "more"?`,
	} {
		if _, err := parseLeases(strings.Fields(args)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", args, err, want)
		}
	}
}

func TestViolations(t *testing.T) {
	t.Parallel()
	const (
		grant = setpointv1.HistoryChange_HISTORY_CHANGE_LEASE_GRANTED
		set   = setpointv1.HistoryChange_HISTORY_CHANGE_SET
		end   = setpointv1.HistoryChange_HISTORY_CHANGE_LEASE_ENDED
	)
	type change struct {
		kind         setpointv1.HistoryChange
		variable, by string
	}
	tokens := map[string]int64{"a": 1, "b": 2, "c": 3, "old": 1}
	for name, test := range map[string]struct {
		changes []change
		want    []string
		writes  int
	}{
		"nothing": {},
		"one after the other": {[]change{
			{set, "x", ""}, {grant, "x", "a"}, {set, "x", "a"}, {end, "x", "a"}, {set, "x", ""}, {grant, "x", "b"}, {grant, "y", "b"},
			{set, "y", "b"}, {end, "y", "b"}, {end, "x", "b"}, {grant, "x", "unknown"}, {end, "x", "unknown"}, {grant, "x", "c"},
			{end, "x", "c"},
		}, nil, 2},
		"two at once": {[]change{{grant, "x", "a"}, {grant, "x", "b"}, {end, "x", "b"}},
			[]string{"revision 2, x: b was granted while a held it"}, 0},
		"a token that does not grow": {[]change{{grant, "x", "b"}, {end, "x", "b"}, {grant, "x", "old"}, {end, "x", "old"}},
			[]string{"revision 3, x: token 1 was granted after 2"}, 0},
		"tokens of two variables": {[]change{{grant, "x", "b"}, {end, "x", "b"}, {grant, "y", "a"}, {end, "y", "a"}}, nil, 0},
		"a write before the grant": {[]change{{set, "x", "a"}, {grant, "x", "a"}, {end, "x", "a"}},
			[]string{`revision 1, x: "a" wrote while "" held it`}, 1},
		"a write after the end": {[]change{{grant, "x", "a"}, {end, "x", "a"}, {set, "x", "a"}},
			[]string{`revision 3, x: "a" wrote while "" held it`}, 1},
		"a write of another variable": {[]change{{grant, "x", "a"}, {set, "y", "a"}, {end, "x", "a"}},
			[]string{`revision 2, y: "a" wrote while "" held it`}, 1},
		"a write without a lease": {[]change{{grant, "x", "a"}, {set, "x", ""}, {end, "x", "a"}},
			[]string{`revision 2, x: "" wrote while "a" held it`}, 0},
		"the end of another":   {[]change{{grant, "x", "a"}, {end, "x", "b"}}, []string{`revision 2, x: b ended while "a" held it`}, 0},
		"leases that are left": {[]change{{grant, "y", "b"}, {grant, "x", "a"}}, []string{"a still holds x", "b still holds y"}, 0},
	} {
		var history []*setpointv1.HistoryEntry
		for i, c := range test.changes {
			history = append(history, &setpointv1.HistoryEntry{
				Revision: int64(i + 1), VariableId: c.variable, Name: c.variable, Change: c.kind, OptimizationId: c.by,
			})
		}
		got, writes := violations(history, tokens)
		if !slices.Equal(got, test.want) || writes != test.writes {
			t.Errorf("%s: got %q and %d writes, want %q and %d", name, got, writes, test.want, test.writes)
		}
	}
}
