package identity_test

import (
	"regexp"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/setpointdb/setpoint/internal/identity"
)

func TestParsePrincipal(t *testing.T) {
	t.Parallel()
	for name, good := range map[string]bool{
		"user:ada": true, "service:spiffe://example.org/a": true, "groups:x": true, "user:group:x": true, "Group:x": true,
		"user:anonymous1": true, "service:anonymous": true, "user:Anonymous": true,
		"group:ops": false, "group:": false, "ada": false, "": false, "user:a b": false, "user:anonymous": false,
	} {
		got, err := identity.ParsePrincipal(name)
		if good != (err == nil) || good && got.Name != name || !good && got.Name != "" {
			t.Errorf("%q: %q, %v", name, got.Name, err)
		}
	}
}

func TestParseGroup(t *testing.T) {
	t.Parallel()
	for name, good := range map[string]bool{
		"group:ops": true, "group:/a/b": true, "group:a:b": true, "group:" + strings.Repeat("a", 250): true,
		"group:" + strings.Repeat("a", 251): false, "group:": false, "ops": false, "user:ada": false, "Group:ops": false,
		"group:a b": false, "group:a\x00": false, "group:\xff": false, "groups:a": false, "": false,
	} {
		if err := identity.ParseGroup(name); good != (err == nil) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestParseSubject(t *testing.T) {
	t.Parallel()
	for pattern, good := range map[string]bool{
		"*": true, "user:ada": true, "user:*": true, "group:*ops*": true, "*:ada": true, "*:*": true, "session:b": true,
		"": false, "**": false, "user*": false, "user:": false, ":x": false, "user:a b": false, "user:\u200b": false,
		"user:" + strings.Repeat("*", 252): false, "user:\xff": false, "user:a\n": false,
	} {
		if err := identity.ParseSubject(pattern); good != (err == nil) {
			t.Errorf("%q: %v", pattern, err)
		}
	}
}

func TestSubjectLike(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		pattern, like string
		wildcard      bool
	}{
		{"*", "%", true},
		{"user:ada", "user:ada", false},
		{"user:*", "user:%", true},
		{`user:100%_\*`, `user:100\%\_\\%`, true},
		{`user:a_b`, `user:a\_b`, false},
		{"*:*", "%:%", true},
	} {
		if like, wildcard := identity.SubjectLike(test.pattern); like != test.like || wildcard != test.wildcard {
			t.Errorf("%q: %q %t, want %q %t", test.pattern, like, wildcard, test.like, test.wildcard)
		}
	}
}

// No message shows what was refused: it may be a secret in the wrong place.
func TestRefusalsShowNothing(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"hidden", "hidden:", "user:hidden x", ":hidden", "group:hidden", "user:\xffhidden", strings.Repeat("hidden", 99)} {
		_, err1 := identity.Parse(text)
		_, err2 := identity.ParsePrincipal(text)
		for _, err := range []error{err1, err2, identity.ParseGroup(text), identity.ParseSubject(text)} {
			if err != nil && strings.Contains(err.Error(), "hidden") {
				t.Errorf("%q is in %q", text, err)
			}
		}
	}
}

func FuzzGlob(f *testing.F) {
	for _, seed := range [][2]string{{"*", ""}, {"a*a", "a"}, {"a*b*c", "axbxbc"}, {"*ab*ab*", "abab"}, {"", "x"}, {"**", "x"}, {"a.c", "abc"}} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, pattern, text string) {
		if !utf8.ValidString(pattern) || !utf8.ValidString(text) || len(pattern) > 256 {
			return
		}
		oracle := regexp.MustCompile(`(?s)\A` + strings.ReplaceAll(regexp.QuoteMeta(pattern), `\*`, `.*`) + `\z`)
		if got, want := identity.MatchGlob(pattern, text), oracle.MatchString(text); got != want {
			t.Errorf("%q matches %q: %t, want %t", pattern, text, got, want)
		}
	})
}

func FuzzPrincipal(f *testing.F) {
	for _, seed := range []string{"user:ada", "group:ops", "user:anonymous", ":", "a:", "user:a b", "user:\x00", "\xff:a", strings.Repeat("a:", 200)} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, name string) {
		p, err := identity.Parse(name)
		kind, rest, found := strings.Cut(name, ":")
		good := len(name) <= 256 && utf8.ValidString(name) && found && kind != "" && rest != ""
		for _, r := range name {
			good = good && unicode.IsPrint(r) && !unicode.IsSpace(r)
		}
		if good != (err == nil) || good && p.Name != name || !good && p.Name != "" || p.Admin || p.Groups != nil {
			t.Errorf("%q: %+v, %v", name, p, err)
		}
		if _, err := identity.ParsePrincipal(name); (err == nil) != (good && kind != "group" && name != "user:anonymous") {
			t.Errorf("%q of a caller who shows credentials: %v", name, err)
		}
		if err := identity.ParseGroup(name); (err == nil) != (good && kind == "group") {
			t.Errorf("%q as a group: %v", name, err)
		}
		if err := identity.ParseSubject(name); (err == nil) != (good || name == "*") {
			t.Errorf("%q as a subject: %v", name, err)
		}
	})
}
