package service

import (
	"errors"
	"regexp"
	"strings"
	"testing"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

func FuzzDecodePageToken(f *testing.F) {
	for _, t := range []pageToken{{}, {Filter: "f", Name: "é\U0010FFFF"}, {Filter: "f", Before: 9}} {
		f.Add(t.encode())
	}
	f.Add("e30")
	f.Add("not base64!")
	f.Fuzz(func(t *testing.T, text string) {
		token, err := decodePageToken(text, "f")
		if err != nil {
			if e, ok := errors.AsType[*Error](err); !ok || e.Reason != setpointv1.ErrorReason_INVALID_REQUEST {
				t.Fatalf("%q: %v", text, err)
			}
			return
		}
		if again, err := decodePageToken(token.encode(), "f"); err != nil || again != token {
			t.Errorf("%q is %+v, and then %+v (%v)", text, token, again, err)
		}
		if token.Filter != "f" || token.Before < 0 || strings.ContainsRune(token.Name, 0) {
			t.Errorf("%q is %+v", text, token)
		}
	})
}

// The range of a glob holds every name that the glob matches, and LIKE's pattern means the same as the glob.
func FuzzGlobRange(f *testing.F) {
	f.Add("a*", "abc", "")
	f.Add("*", "\U0010FFFF\U0010FFFF", "")
	f.Add("a%_\\*", "a%_\\z", "a")
	f.Add("exact", "exact", "exacs")
	f.Fuzz(func(t *testing.T, glob, name, after string) {
		if checkName("name", name) != nil || len(after) > 1000 || strings.ContainsRune(glob, 0) {
			t.Skip("no name")
		}
		parts := strings.Split(glob, "*")
		for i := range parts {
			parts[i] = regexp.QuoteMeta(parts[i])
		}
		pattern, err := regexp.Compile("(?s)^" + strings.Join(parts, ".*") + "$")
		if err != nil {
			t.Skip("not UTF-8")
		}
		r := globRange(glob, after)
		matches := glob == "" || pattern.MatchString(name)
		inRange := r.Lo <= name && name < r.Hi
		if matches && name > after && !inRange {
			t.Errorf("%q matches %q but is not from %q to %q", name, glob, r.Lo, r.Hi)
		}
		if after != "" && name <= after && r.Lo <= name {
			t.Errorf("%q is on a page after %q", name, after)
		}
	})
}

func TestLikeOf(t *testing.T) {
	t.Parallel()
	for glob, want := range map[string]string{"": "", "*": "%", "a*b": "a%b", "50%_": `50\%\_`, `\*`: `\\%`} {
		if got := likeOf(glob); got != want {
			t.Errorf("likeOf(%q) = %q, want %q", glob, got, want)
		}
	}
}

func TestIDs(t *testing.T) {
	t.Parallel()
	last := ""
	for range 1000 {
		id, err := newID(variablePrefix)
		if err != nil || !isVariableID(id) {
			t.Fatalf("%q, %v", id, err)
		}
		if id <= last {
			t.Fatalf("%q after %q: ids are to sort by time", id, last)
		}
		last = id
	}
	for _, name := range []string{"", "var_", "x", last[:29], last + "0", strings.ToUpper(last), "opt_" + last[4:]} {
		if isVariableID(name) {
			t.Errorf("%q is taken for an id", name)
		}
	}
}
