package identity_test

import (
	"context"
	"strings"
	"testing"

	"github.com/setpointdb/setpoint/internal/identity"
)

func TestParse(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		name string
		says string // Part of the refusal; empty if the name is taken.
	}{
		"a user":              {name: "user:ada"},
		"a service":           {name: "service:trainer-1"},
		"a name with colons":  {name: "session:a:b"},
		"letters of anywhere": {name: "user:Ольга"},
		"256 bytes":           {name: "user:" + strings.Repeat("a", 251)},
		"empty":               {"", "must be a kind, a colon and a name"},
		"no colon":            {"ada", "must be a kind, a colon and a name"},
		"no kind":             {":x", "must be a kind, a colon and a name"},
		"no name":             {"x:", "must be a kind, a colon and a name"},
		"a space":             {"user:ada lovelace", "must not contain spaces"},
		"a space at the end":  {"user:ada ", "must not contain spaces"},
		"a space in the kind": {"the user:ada", "must not contain spaces"},
		"a no-break space":    {"user:ada\u00a0lovelace", "must not contain spaces"},
		"a line feed":         {"user:ada\n", "must not contain spaces or control characters"},
		"a NUL":               {"user:a\x00b", "must not contain spaces or control characters"},
		"an invisible":        {"user:a\u200bb", "must not contain spaces or control characters"},
		"257 bytes":           {"user:" + strings.Repeat("a", 252), "must not be longer than 256 bytes"},
		"not UTF-8":           {"user:\xff", "must be UTF-8"},
		"not UTF-8 kind":      {"\xc3:ada", "must be UTF-8"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := identity.Parse(test.name)
			if test.says == "" {
				if err != nil || got.Name != test.name {
					t.Errorf("got %q, %v", got.Name, err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), test.says) {
				t.Errorf("error %v, want one that says %q", err, test.says)
			}
			if got.Name != "" {
				t.Errorf("refused, yet got %q", got.Name)
			}
		})
	}
}

func TestAnonymousIsAPrincipal(t *testing.T) {
	t.Parallel()
	if got, err := identity.Parse(identity.Anonymous.Name); err != nil || got.Name != identity.Anonymous.Name || got.Admin {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestContext(t *testing.T) {
	t.Parallel()
	outer := context.Background()
	if got := identity.FromContext(outer); got.Name != "" {
		t.Errorf("of an empty context: %v", got)
	}
	ada := identity.Principal{Name: "user:ada"}
	ctx := identity.NewContext(outer, ada)
	if got := identity.FromContext(ctx); got.Name != ada.Name {
		t.Errorf("got %v, want %v", got, ada)
	}
	bob := identity.Principal{Name: "user:bob"}
	if got := identity.FromContext(identity.NewContext(ctx, bob)); got.Name != bob.Name {
		t.Errorf("of the inner context: %v, want %v", got, bob)
	}
}
