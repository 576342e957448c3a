// Package authenticate finds out who is calling.
//
// A caller shows credentials with every call, and is known by the first of these that there is:
//
//   - a bearer token (`Authorization: Bearer …`): one of the server's own, which begins with `setpoint_` and is looked up in the
//     database, or a JWT that an OpenID Connect issuer has signed;
//   - a client certificate that the transport has verified, by its subject alternative names (see Certificate).
//
// Which of them count is the server's Modes. A server that does not authenticate (None) takes everybody for identity.Anonymous, or
// for whom the metadata identity.Header names; with Config.Certificates it takes nobody without a certificate.
//
// # What is promised
//
// Who shows credentials that have been revoked is refused cacheFor after that at the latest: verified ones are remembered for as
// long, counted from before they were looked up, and never past their own end. That end is judged by the database's clock for tokens,
// and by this machine's, give or take clockSkew, for JWTs. Nothing is remembered of credentials that are not good.
//
// Secrets are compared in constant time, also where there is no token of the id. Errors and events show nothing of what a caller has
// shown, unless it was good: then its principal.
//
// # What a stranger can cost
//
// Nobody is refused for what others at its address did, for many may share one, behind a proxy: failures decide how much is spent on a
// peer's credentials. They are counted for its address, IPv6 ones by their /64. Below failureBurst of them, and failureRate more a
// second, lookupsAtOnce are looked at at a time. A peer above that has what it shows looked at in a slow lane, which has slowAtOnce
// places for all such peers together, who take turns; what turns out good passes, and what does not is answered with Limited and
// counted. Who waits longer than patience for a place is refused with Busy. So a guesser costs the database slowAtOnce look-ups at a
// time, and those at its address who are new here some of their patience; one that has more under way at a time than the lane can look
// at in that, has them try again.
//
// What is in no form is not looked up at all, and counted. Credentials that were good when they were last looked up, and calls that are
// open, take no place in any lane. Missing credentials are not counted, for they cost nothing. The addresses of the last maxPeers peers
// are remembered; who has more addresses than that guesses on: what is guessed has 256 bits.
//
// An issuer's keys are fetched when they are needed, so the server starts without the issuer; see keySet for how long they count and
// how often they are fetched. Where they cannot be, the call is refused with Unavailable, which passes, and not with Invalid, on which
// clients give up.
package authenticate

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/sync/singleflight"

	"github.com/setpointdb/setpoint/internal/identity"
	"github.com/setpointdb/setpoint/internal/telemetry"
)

// Mode is a way to tell who is calling.
type Mode string

// The modes.
const (
	// None believes whoever is calling, and lets everybody do everything: for one machine, or a network that is trusted.
	None Mode = "none"
	// Token takes the server's own tokens.
	Token Mode = "token"
	// OIDC takes JWTs of an OpenID Connect issuer.
	OIDC Mode = "oidc"
)

// ParseModes reads one mode, or Token and OIDC with a comma between.
func ParseModes(text string) ([]Mode, error) {
	var modes []Mode
	for word := range strings.SplitSeq(text, ",") {
		modes = append(modes, Mode(word))
	}
	return modes, checkModes(modes)
}

func checkModes(modes []Mode) error {
	for i, mode := range modes {
		switch {
		case mode != None && mode != Token && mode != OIDC:
			return errors.New("is none, token or oidc, or token,oidc")
		case mode == None && len(modes) > 1:
			return errors.New("is none, or something else, not both")
		case slices.Contains(modes[:i], mode):
			return fmt.Errorf("has %s twice", mode)
		}
	}
	if len(modes) == 0 {
		return errors.New("is none, token or oidc, or token,oidc")
	}
	return nil
}

// LookUp finds a token by its id, whether it still counts or not; false if there is none.
type LookUp func(ctx context.Context, id string) (identity.TokenRecord, bool, error)

// Config says who is believed to be who.
type Config struct {
	// Modes are the ways to tell: None alone, or others.
	Modes []Mode
	// Admins are patterns over principals and groups, as of rules; who matches one is a server admin, in every mode.
	Admins []string
	// Certificates says that the transport verifies client certificates. With None it takes one to call at all; else one does in the
	// place of a bearer token.
	Certificates bool
	// Issuer signs JWTs; for OIDC.
	Issuer Issuer
	// LookUp finds tokens; for Token.
	LookUp LookUp
	// Events takes what happens. Nil records nothing.
	Events *telemetry.Events
	// Now is this machine's clock; nil is time.Now.
	Now func() time.Time
}

// Check returns what is wrong with a configuration, as far as callers give it.
func (c Config) Check() error {
	if err := checkModes(c.Modes); err != nil {
		return fmt.Errorf("the mode %w", err)
	}
	for _, pattern := range c.Admins {
		if err := identity.ParseSubject(pattern); err != nil {
			return fmt.Errorf("an admin's pattern: %w", err)
		}
	}
	if slices.Contains(c.Modes, OIDC) {
		return c.Issuer.check()
	}
	if c.Issuer.URL != "" || c.Issuer.Audience != "" || c.Issuer.KeysURL != "" {
		return errors.New("an issuer is for the mode oidc")
	}
	return nil
}

// Credentials are what a caller shows.
type Credentials struct {
	// Authorization are the values of the metadata or header `authorization`.
	Authorization []string
	// Named are the values of identity.Header.
	Named []string
	// Certificate is the client's, verified by the transport; nil if there is none.
	Certificate *x509.Certificate
	// Peer is the caller's address; the zero one if that is none of IP.
	Peer netip.Addr
	// Again says that they were good when the call began, which is still open. They wait for nobody else's: else whoever has lost them
	// would keep the call by guessing.
	Again bool
}

// How long credentials that were verified count without another look, and of how many that is known.
const (
	cacheFor  = 2500 * time.Millisecond
	cacheSize = 10_000
)

// Authenticator authenticates. Safe for concurrent use.
type Authenticator struct {
	config  Config
	now     func() time.Time
	issuer  *issuer // nil without OIDC.
	limiter *limiter
	// known are the credentials that were good when they were last verified, by their hash.
	known   *lru.Cache[[sha256.Size]byte, known]
	lookups singleflight.Group
}

// known is who has shown some credentials, and until when it need not be looked at again.
type known struct {
	principal identity.Principal
	until     time.Time
}

// New makes an Authenticator. It asks nobody for anything, so that it needs neither the database nor the issuer.
func New(config Config) (*Authenticator, error) {
	if err := config.Check(); err != nil {
		return nil, err
	}
	if config.Now == nil {
		config.Now = time.Now
	}
	if config.Events == nil {
		events, err := telemetry.New(slog.New(slog.DiscardHandler), nil)
		if err != nil {
			return nil, err
		}
		config.Events = events
	}
	if slices.Contains(config.Modes, Token) && config.LookUp == nil {
		return nil, errors.New("tokens take a way to look them up")
	}
	a := &Authenticator{config: config, now: config.Now, limiter: newLimiter()}
	if slices.Contains(config.Modes, OIDC) {
		a.issuer = newIssuer(config.Issuer, config.Now, config.Events)
	}
	var err error
	a.known, err = lru.New[[sha256.Size]byte, known](cacheSize)
	return a, err
}

// Changing tells whether credentials that were good may cease to be.
func (a *Authenticator) Changing() bool { return a.authenticates() || a.config.Certificates }

func (a *Authenticator) authenticates() bool { return !slices.Contains(a.config.Modes, None) }

// Authenticate returns who shows credentials. A refusal is an *Error; any other error is the database's, or the context's.
func (a *Authenticator) Authenticate(ctx context.Context, c Credentials) (identity.Principal, error) {
	principal, err := a.principal(ctx, c)
	if err != nil {
		return identity.Principal{}, err
	}
	principal.Admin = principal.Admin || a.isAdmin(principal)
	return principal, nil
}

func (a *Authenticator) principal(ctx context.Context, c Credentials) (identity.Principal, error) {
	if !a.authenticates() && !a.config.Certificates {
		return named(c.Named)
	}
	principal, err := a.shown(ctx, c)
	if err == nil && len(c.Named) > 0 {
		return identity.Principal{}, refuse(Misnamed, "only a server that does not authenticate lets callers name themselves")
	}
	return principal, err
}

// shown is who shows a bearer token or a certificate.
func (a *Authenticator) shown(ctx context.Context, c Credentials) (identity.Principal, error) {
	switch {
	case a.authenticates() && len(c.Authorization) > 0:
		text, err := bearer(c.Authorization)
		if err != nil {
			return identity.Principal{}, err
		}
		return a.bearer(ctx, text, c)
	case a.config.Certificates && c.Certificate != nil:
		return Certificate(c.Certificate, a.now())
	case !a.authenticates():
		return identity.Principal{}, refuse(Missing, "this server takes callers with a client certificate only")
	case a.config.Certificates:
		return identity.Principal{}, refuse(Missing, "show who you are: with `Authorization: Bearer …` or a client certificate")
	}
	return identity.Principal{}, refuse(Missing, "show who you are: with `Authorization: Bearer …`")
}

// named is who calls a server that does not authenticate.
func named(names []string) (identity.Principal, error) {
	switch len(names) {
	case 0:
		return identity.Anonymous, nil
	case 1:
	default:
		return identity.Principal{}, refuse(Misnamed, "must be given once")
	}
	if names[0] == identity.Anonymous.Name {
		return identity.Anonymous, nil // It named nobody else.
	}
	principal, err := identity.ParsePrincipal(names[0])
	if err != nil {
		return identity.Principal{}, refuse(Misnamed, err.Error())
	}
	return principal, nil
}

func (a *Authenticator) isAdmin(p identity.Principal) bool {
	return slices.ContainsFunc(a.config.Admins, func(pattern string) bool {
		return identity.MatchGlob(pattern, p.Name) ||
			slices.ContainsFunc(p.Groups, func(group string) bool { return identity.MatchGlob(pattern, group) })
	})
}

// bearer is who shows a bearer token.
func (a *Authenticator) bearer(ctx context.Context, text string, c Credentials) (identity.Principal, error) {
	hash := sha256.Sum256([]byte(text))
	before, good := a.known.Get(hash)
	if good && a.now().Before(before.until) {
		return before.principal, nil
	}
	s, err := a.parse(text)
	if !good && !c.Again {
		return a.stranger(ctx, s, err, hash, a.limiter.peer(c.Peer))
	}
	if err != nil {
		return identity.Principal{}, err
	}
	return a.verify(ctx, s, hash)
}

// stranger is who shows a bearer token that is not known to be good; malformed tells what is wrong with its form.
func (a *Authenticator) stranger(
	ctx context.Context, s shownToken, malformed error, hash [sha256.Size]byte, p *peer,
) (identity.Principal, error) {
	if malformed != nil {
		return identity.Principal{}, p.judge(malformed, a.now())
	}
	leave, err := p.enter(ctx, s.slow, a.now)
	if err != nil {
		return identity.Principal{}, err
	}
	defer leave()
	if now, good := a.known.Get(hash); good && a.now().Before(now.until) {
		return now.principal, nil // Another call has shown it meanwhile.
	}
	// It keeps its place to the end of the look-up, and is counted, also if the caller goes away: else guesses would be free for
	// those who do not wait for what becomes of them.
	principal, err := a.verify(context.WithoutCancel(ctx), s, hash)
	err = p.judge(err, a.now())
	if ctx.Err() != nil {
		return identity.Principal{}, context.Cause(ctx)
	}
	return principal, err
}

// shownToken is a bearer token in form.
type shownToken struct {
	// slow is where it waits if its peer is above the limit.
	slow *lane
	// verify looks at it.
	verify func(context.Context) (known, error)
}

// parse reads a bearer token, and looks nothing up.
func (a *Authenticator) parse(text string) (shownToken, error) {
	isToken := strings.HasPrefix(text, identity.TokenPrefix)
	switch {
	case isToken && slices.Contains(a.config.Modes, Token):
		id, hash, err := identity.ParseToken(text)
		if err != nil {
			return shownToken{}, refuse(Invalid, "the token is not in the form of one of this server's")
		}
		verify := func(ctx context.Context) (known, error) { return a.verifyToken(ctx, id, hash) }
		return shownToken{a.limiter.slowTokens, verify}, nil
	case !isToken && a.issuer != nil:
		if _, err := a.issuer.keys.parse(text); err != nil {
			return shownToken{}, err
		}
		verify := func(ctx context.Context) (known, error) { return a.issuer.verify(ctx, text) }
		return shownToken{a.limiter.slowJWTs, verify}, nil
	}
	return shownToken{}, refuse(Invalid, "bearer tokens of this kind are not taken here")
}

// verify looks at a bearer token, whatever is known of it, and keeps in mind what it finds.
func (a *Authenticator) verify(ctx context.Context, s shownToken, hash [sha256.Size]byte) (identity.Principal, error) {
	now, err := s.verify(ctx)
	if err == nil {
		a.known.Add(hash, now)
		return now.principal, nil
	}
	if refusal, ok := errors.AsType[*Error](err); ok && refusal.Kind == Invalid {
		a.known.Remove(hash)
	}
	return identity.Principal{}, err
}
