// Package identity says who is calling.
package identity

import (
	"context"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Principal is a caller: `user:ada`, `service:trainer-1`, `session:abc`.
type Principal struct {
	// Name is the kind, a colon, and the name within the kind: at most 256 bytes of UTF-8, without spaces or control
	// characters.
	Name string
	// Admin is a server admin.
	Admin bool
}

// Anonymous is every caller of a server that does not authenticate, and a server admin, unless the caller names another
// principal, which is an ordinary one.
var Anonymous = Principal{Name: "user:anonymous", Admin: true}

// Header is the request metadata that names a principal to a server that does not authenticate.
const Header = "setpoint-principal"

// maxNameBytes bounds a principal's name.
const maxNameBytes = 256

// Parse checks a principal's name.
func Parse(name string) (Principal, error) {
	if len(name) > maxNameBytes {
		return Principal{}, fmt.Errorf("principal: must not be longer than %d bytes", maxNameBytes)
	}
	if !utf8.ValidString(name) {
		return Principal{}, fmt.Errorf("principal %q: must be UTF-8", name)
	}
	kind, rest, found := strings.Cut(name, ":")
	if !found || kind == "" || rest == "" {
		return Principal{}, fmt.Errorf("principal %q: must be a kind, a colon and a name, like user:ada", name)
	}
	if strings.ContainsFunc(name, func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsPrint(r) }) {
		return Principal{}, fmt.Errorf("principal %q: must not contain spaces or control characters", name)
	}
	return Principal{Name: name}, nil
}

type contextKey struct{}

// NewContext returns a context that carries the caller.
func NewContext(ctx context.Context, p Principal) context.Context {
	return context.WithValue(ctx, contextKey{}, p)
}

// FromContext returns the caller of the request; the zero Principal where no interceptor has set one.
func FromContext(ctx context.Context) Principal {
	p, _ := ctx.Value(contextKey{}).(Principal)
	return p
}
