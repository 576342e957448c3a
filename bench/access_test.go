package main

import (
	"strings"
	"testing"
	"time"
)

func TestParseAccess(t *testing.T) {
	t.Parallel()
	c, err := parseAccess(strings.Fields("--addr a:1 --variables 10 --rules 50 --whole-session 5 --calls 3 --rounds 2 --callers 4 --most 9"))
	want := accessConfig{addr: "a:1", variables: 10, rules: 50, whole: 5, calls: 3, rounds: 2, callers: 4, most: 9}
	if err != nil || c != want {
		t.Errorf("got %+v, %v", c, err)
	}
	for args, want := range map[string]string{
		"--rounds 0":                  "at least one",
		"--rules 10":                  "--whole-session: from 1 to 10",
		"--whole-session 0":           "--whole-session",
		"--variables 1001":            "--variables",
		"more":                        `what is "more"?`,
		"--variables 1 --callers -64": "at least one",
	} {
		if _, err := parseAccess(strings.Fields(args)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", args, err, want)
		}
	}
}

func TestJudge(t *testing.T) {
	t.Parallel()
	b := &accessBench{accessConfig: accessConfig{rules: 7, most: 1.5}}
	if err := b.judge(map[string]float64{"alone": 1.49, "of 2 callers": 0.9}); err != nil {
		t.Error(err)
	}
	err := b.judge(map[string]float64{"alone": 1.5, "of 2 callers": 2})
	if err == nil || !strings.Contains(err.Error(), "with 7 rules is alone 1.50 times, of 2 callers 2.00 times") {
		t.Errorf("got %v", err)
	}
}

func TestMedian(t *testing.T) {
	t.Parallel()
	if got := median([]time.Duration{5, 1, 9}); got != 5 {
		t.Errorf("got %v", got)
	}
	if got := median([]float64{2}); got != 2 {
		t.Errorf("got %v", got)
	}
}
