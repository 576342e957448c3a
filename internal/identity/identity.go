// Package identity says who is calling.
package identity

import (
	"context"
	"slices"
	"strings"
)

// Principal is a caller: `user:ada`, `service:trainer-1`, `session:abc`.
type Principal struct {
	// Name is the kind, a colon, and the name within the kind: at most 256 bytes of UTF-8, without spaces or control
	// characters.
	Name string
	// Groups are those that the caller is in, like `group:ops`, in the form of names.
	Groups []string
	// Admin is a server admin.
	Admin bool
	// Scope is what the credentials may be used for at most, whatever the caller may do.
	Scope Scope
	// Credentials name what the caller was known by, for logs and the audit: a token's id; empty if there is nothing to name.
	Credentials string
}

// Scope narrows credentials. The zero Scope does not.
type Scope struct {
	// Permissions are what they may be used for, with what those include; 0 is everything.
	Permissions Permissions
	// Sessions are globs over the ids of the sessions in which they count, `*` being any run of characters; none is all.
	Sessions []string
}

// Authority is what the credentials allow in a session at most: none where they do not count there.
func (p Principal) Authority(sessionID string) Permissions {
	if len(p.Scope.Sessions) > 0 && !slices.ContainsFunc(p.Scope.Sessions, func(glob string) bool { return MatchGlob(glob, sessionID) }) {
		return 0
	}
	return p.ServerAuthority()
}

// ServerAuthority is what the credentials allow at most, in sessions where they count.
func (p Principal) ServerAuthority() Permissions {
	if p.Scope.Permissions == 0 {
		return AllPermissions
	}
	return p.Scope.Permissions.Including()
}

// ServesServer tells whether the caller may do what is for server admins and in no session: the credentials must not be narrowed to
// some sessions, nor to less than admin.
func (p Principal) ServesServer() bool {
	return p.Admin && len(p.Scope.Sessions) == 0 && p.ServerAuthority()&Admin != 0
}

// MatchGlob tells whether a text matches a pattern whose only wildcard is `*`, any run of characters.
func MatchGlob(pattern, text string) bool {
	parts := strings.Split(pattern, "*")
	if len(parts) == 1 {
		return pattern == text
	}
	rest, ok := strings.CutPrefix(text, parts[0])
	if !ok {
		return false
	}
	for _, part := range parts[1 : len(parts)-1] {
		i := strings.Index(rest, part)
		if i < 0 {
			return false
		}
		rest = rest[i+len(part):]
	}
	return strings.HasSuffix(rest, parts[len(parts)-1])
}

// Anonymous is every caller of a server that does not authenticate, and a server admin, unless the caller names another
// principal, which is an ordinary one. No credentials are of this name (ParsePrincipal).
var Anonymous = Principal{Name: "user:anonymous", Admin: true}

// Header is the request metadata that names a principal to a server that does not authenticate.
const Header = "setpoint-principal"

// maxNameBytes bounds a principal's name.
const maxNameBytes = 256

// Parse checks a principal's name, of whatever kind. Errors do not show it: it may be a secret that was put in the wrong place.
func Parse(name string) (Principal, error) {
	if err := checkForm("principal", name); err != nil {
		return Principal{}, err
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
