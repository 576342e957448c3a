package authenticate

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/coreos/go-oidc/v3/oidc"

	"github.com/setpointdb/setpoint/internal/identity"
	"github.com/setpointdb/setpoint/internal/telemetry"
)

// clockSkew is how far the clocks of the issuer and of this machine may be apart: a JWT counts for as long after its end (`exp`) and
// before its beginning (`nbf`).
const clockSkew = 30 * time.Second

// maxIssuedGroups bounds the groups of a JWT. With more it is refused: to leave some out might leave out one that a rule denies.
const maxIssuedGroups = 256

// asymmetric are the algorithms whose signatures nobody but the issuer can make.
var asymmetric = []string{
	oidc.RS256, oidc.RS384, oidc.RS512, oidc.ES256, oidc.ES384, oidc.ES512, oidc.PS256, oidc.PS384, oidc.PS512, oidc.EdDSA,
}

// Issuer is an OpenID Connect issuer, and what is made of its JWTs.
type Issuer struct {
	// URL is the issuer's name, as in `iss`, and where its configuration is found: over https, or on this machine.
	URL string
	// Audience must be in a JWT's `aud`.
	Audience string
	// KeysURL is where the issuer's keys are; empty is where its configuration says.
	KeysURL string
	// PrincipalClaim gives the principal's name within PrincipalKind; empty is `sub`. An `email` is refused unless the JWT says that the
	// issuer has verified it: `email_verified` is true.
	PrincipalClaim string
	// PrincipalKind is the kind of the principals; empty is `user`.
	PrincipalKind string
	// GroupsClaim gives the names of groups within identity.GroupKind: a list of texts, or one text; empty is `groups`.
	GroupsClaim string
	// Algorithms are those of the signatures that are taken; none is every asymmetric one. Others cannot be named.
	Algorithms []string
}

func (i Issuer) check() error {
	if i.Audience == "" || i.URL == "" {
		return errors.New("oidc takes an issuer and an audience")
	}
	if err := checkURL(i.URL); err != nil {
		return fmt.Errorf("the issuer %w", err)
	}
	if i.KeysURL != "" {
		if err := checkURL(i.KeysURL); err != nil {
			return fmt.Errorf("the address of the issuer's keys %w", err)
		}
	}
	for _, algorithm := range i.Algorithms {
		if !slices.Contains(asymmetric, algorithm) {
			return fmt.Errorf("the algorithm %q is none that signs with a key of two parts", algorithm)
		}
	}
	if _, err := identity.ParsePrincipal(i.kind() + ":x"); err != nil {
		return fmt.Errorf("the kind of the issuer's principals: %w", err)
	}
	return nil
}

func (i Issuer) kind() string { return or(i.PrincipalKind, "user") }

func or(text, otherwise string) string {
	if text == "" {
		return otherwise
	}
	return text
}

// checkURL refuses addresses whose answers others could change on the way.
func checkURL(text string) error {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.User != nil || u.Fragment != "" || u.RawQuery != "" {
		return errors.New("is to be a URL like https://issuer.example")
	}
	return checkScheme(u)
}

func checkScheme(u *url.URL) error {
	ip, err := netip.ParseAddr(u.Hostname())
	local := u.Hostname() == "localhost" || err == nil && ip.IsLoopback()
	if u.Scheme == "https" || u.Scheme == "http" && local {
		return nil
	}
	return errors.New("is to be reached over https")
}

// issuer verifies an Issuer's JWTs.
type issuer struct {
	config Issuer
	now    func() time.Time
	keys   *keySet
	events *telemetry.Events
}

func newIssuer(config Issuer, now func() time.Time, events *telemetry.Events) *issuer {
	config.PrincipalKind = config.kind()
	config.PrincipalClaim, config.GroupsClaim = or(config.PrincipalClaim, "sub"), or(config.GroupsClaim, "groups")
	if len(config.Algorithms) == 0 {
		config.Algorithms = asymmetric
	}
	return &issuer{
		config: config, now: now, keys: newKeySet(config, now, events), events: events,
	}
}

// signature keeps what became of the signature in one verification: the verifier tells it as text.
type signature struct {
	keys    *keySet
	payload []byte
	err     error
}

// VerifySignature is what the verifier asks.
func (s *signature) VerifySignature(ctx context.Context, text string) ([]byte, error) {
	s.payload, s.err = s.keys.verify(ctx, text)
	return s.payload, s.err
}

// verify looks at a JWT.
func (i *issuer) verify(ctx context.Context, text string) (known, error) {
	began := i.now()
	signed := &signature{keys: i.keys}
	token, err := oidc.NewVerifier(i.config.URL, signed, &oidc.Config{
		ClientID: i.config.Audience, SupportedSigningAlgs: i.config.Algorithms,
		SkipExpiryCheck: true, // Its check allows for clocks as it sees fit.
	}).Verify(ctx, text)
	switch {
	case signed.err != nil:
		return known{}, i.orExpired(text, signed.err)
	case signed.payload == nil:
		return known{}, refuse(Invalid, "the token is no JWT that was signed in a way which is taken here")
	case err != nil:
		return known{}, refuse(Invalid, i.whyNot(signed.payload))
	}
	var claims map[string]json.RawMessage
	if err := token.Claims(&claims); err != nil {
		return known{}, refuse(Invalid, "the JWT has no claims")
	}
	if err := i.checkTime(token.Expiry, claims); err != nil {
		return known{}, err
	}
	principal, err := i.principal(claims)
	if err != nil {
		return known{}, err
	}
	until := began.Add(cacheFor)
	if end := token.Expiry.Add(clockSkew); end.Before(until) {
		until = end
	}
	return known{principal, until}, nil
}

// orExpired is the error of a signature, but that a JWT whose time has passed is refused for it also where its signature cannot be
// judged: so no open stream outlasts it because the issuer is away.
func (i *issuer) orExpired(text string, err error) error {
	if refusal, ok := errors.AsType[*Error](err); !ok || refusal.Kind != Unavailable {
		return err
	}
	_, rest, _ := strings.Cut(text, ".")
	payload, _, _ := strings.Cut(rest, ".")
	decoded, malformed := base64.RawURLEncoding.DecodeString(payload)
	var claims struct {
		End float64 `json:"exp"`
	}
	if malformed == nil && json.Unmarshal(decoded, &claims) == nil && claims.End <= float64(i.now().Add(-clockSkew).Unix()) {
		return refuse(Invalid, "the JWT has expired")
	}
	return err
}

// whyNot is what is wrong with a JWT that the issuer has signed.
func (i *issuer) whyNot(payload []byte) string {
	var claims struct {
		Issuer string `json:"iss"`
	}
	switch err := json.Unmarshal(payload, &claims); {
	case err != nil:
		return "the JWT's claims are not in form"
	case claims.Issuer != i.config.URL:
		return "the JWT is another issuer's"
	}
	return "the JWT is for another audience, or its claims are not in form"
}

// checkTime refuses a JWT outside of its time. One without an end is refused.
func (i *issuer) checkTime(end time.Time, claims map[string]json.RawMessage) error {
	now := i.now()
	if claims["exp"] == nil || !now.Before(end.Add(clockSkew)) {
		return refuse(Invalid, "the JWT has expired")
	}
	if claims["nbf"] == nil {
		return nil
	}
	var begin float64
	if err := json.Unmarshal(claims["nbf"], &begin); err != nil {
		return refuse(Invalid, "the JWT's claims are not in form")
	}
	if begin > float64(now.Add(clockSkew).Unix()) {
		return refuse(Invalid, "the JWT does not count yet")
	}
	return nil
}

// principal is whom the claims are about.
func (i *issuer) principal(claims map[string]json.RawMessage) (identity.Principal, error) {
	var name string
	if err := json.Unmarshal(claims[i.config.PrincipalClaim], &name); err != nil || name == "" {
		return identity.Principal{}, refuse(Invalid, "the JWT's claim "+i.config.PrincipalClaim+" is no text")
	}
	// At many issuers one gives oneself whatever address one likes, and they say nothing then: to believe that would be to believe anybody.
	if i.config.PrincipalClaim == "email" && string(claims["email_verified"]) != "true" {
		return identity.Principal{}, refuse(Invalid, "the JWT does not say that its email is verified (email_verified: true)")
	}
	principal, err := identity.ParsePrincipal(i.config.PrincipalKind + ":" + name)
	if err != nil {
		return identity.Principal{}, refuse(Invalid, "the JWT's claim "+i.config.PrincipalClaim+" names no principal: "+err.Error())
	}
	names, ok := groups(claims[i.config.GroupsClaim])
	switch {
	case !ok:
		return identity.Principal{}, refuse(Invalid, "the JWT's claim "+i.config.GroupsClaim+" is no list of groups' names")
	case len(names) > maxIssuedGroups:
		return identity.Principal{}, refuse(Invalid, fmt.Sprintf("the JWT has more than %d groups", maxIssuedGroups))
	}
	principal.Groups = names
	return principal, nil
}

// groups are those of a claim, each once; false if one of them cannot be told. None is left out: a rule may deny it.
func groups(claim json.RawMessage) ([]string, bool) {
	items := []any{}
	var one string
	switch {
	case len(claim) == 0 || string(claim) == "null":
		return nil, true
	case json.Unmarshal(claim, &one) == nil:
		items = []any{one}
	case json.Unmarshal(claim, &items) != nil:
		return nil, false
	}
	names := make([]string, 0, len(items))
	for _, item := range items {
		text, ok := item.(string)
		name := identity.GroupKind + ":" + escapeGroup(text)
		if !ok || identity.ParseGroup(name) != nil {
			return nil, false
		}
		names = append(names, name)
	}
	slices.Sort(names)
	return slices.Compact(names), true
}

// escapeGroup writes what names cannot have, and `%`, as bytes in percent notation: `Domain Users` is `Domain%20Users`.
func escapeGroup(name string) string {
	var out strings.Builder
	for _, r := range name {
		if r != '%' && unicode.IsPrint(r) && !unicode.IsSpace(r) {
			out.WriteRune(r)
			continue
		}
		for _, b := range []byte(string(r)) {
			fmt.Fprintf(&out, "%%%02X", b)
		}
	}
	return out.String()
}
