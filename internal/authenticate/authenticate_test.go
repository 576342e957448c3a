package authenticate

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/setpointdb/setpoint/internal/identity"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// clock is one that tests move.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// store is a table of tokens.
type store struct {
	mu      sync.Mutex
	records map[string]identity.TokenRecord
	lookups int
	err     error
	// hold, if there is one, is what look-ups wait for; entered is told of each.
	hold, entered chan struct{}
}

func (s *store) lookUp(ctx context.Context, id string) (identity.TokenRecord, bool, error) {
	s.mu.Lock()
	s.lookups++
	r, ok := s.records[id]
	err, hold, entered := s.err, s.hold, s.entered
	s.mu.Unlock()
	if hold != nil {
		entered <- struct{}{}
		<-hold
	}
	if ctx.Err() != nil {
		return identity.TokenRecord{}, false, ctx.Err()
	}
	return r, ok, err
}

func (s *store) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lookups
}

// add makes a token; change may alter what the table has of it.
func (s *store) add(t testing.TB, change func(*identity.TokenRecord)) string {
	t.Helper()
	id, text, hash, err := identity.NewToken()
	if err != nil {
		t.Fatal(err)
	}
	r := identity.TokenRecord{ID: id, SecretSHA256: hash, Principal: "user:ada", ReadAt: time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC)}
	if change != nil {
		change(&r)
	}
	s.set(r)
	return text
}

func (s *store) set(r identity.TokenRecord) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.records == nil {
		s.records = make(map[string]identity.TokenRecord)
	}
	s.records[r.ID] = r
}

func (s *store) revoke(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := "tok_" + text[9:35]
	r := s.records[id]
	r.Revoked = true
	s.records[id] = r
}

func newAuthenticator(t testing.TB, config Config) *Authenticator {
	t.Helper()
	a, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func newTokens(t testing.TB, admins ...string) (*Authenticator, *store, *clock) {
	t.Helper()
	s, c := &store{}, newClock()
	return newAuthenticator(t, Config{Modes: []Mode{Token}, LookUp: s.lookUp, Now: c.Now, Admins: admins}), s, c
}

func showing(text string) Credentials {
	return Credentials{Authorization: []string{"Bearer " + text}, Peer: netip.MustParseAddr("192.0.2.1")}
}

// wantKind checks a refusal; 0 is none.
func wantKind(t *testing.T, err error, kind Kind) {
	t.Helper()
	refusal, ok := errors.AsType[*Error](err)
	if kind == 0 && err != nil || kind != 0 && (!ok || refusal.Kind != kind) {
		t.Errorf("got %v, want the kind %d", err, kind)
	}
}

func TestModes(t *testing.T) {
	t.Parallel()
	for text, want := range map[string][]Mode{
		"none": {None}, "token": {Token}, "oidc": {OIDC}, "token,oidc": {Token, OIDC}, "oidc,token": {OIDC, Token},
		"": nil, "none,token": nil, "token,token": nil, "basic": nil, "token,": nil, "Token": nil,
	} {
		got, err := ParseModes(text)
		if (err == nil) != (want != nil) || want != nil && !cmp.Equal(got, want) {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
}

func TestConfigCheck(t *testing.T) {
	t.Parallel()
	good := Issuer{URL: "https://issuer.example/realm", Audience: "setpoint"}
	with := func(change func(*Issuer)) Config {
		issuer := good
		change(&issuer)
		return Config{Modes: []Mode{OIDC}, Issuer: issuer}
	}
	for name, row := range map[string]struct {
		config Config
		says   string
	}{
		"oidc":                 {with(func(*Issuer) {}), ""},
		"this machine":         {with(func(i *Issuer) { i.URL = "http://127.0.0.1:8080" }), ""},
		"this machine by name": {with(func(i *Issuer) { i.URL = "http://localhost:8080/x" }), ""},
		"this machine, IPv6":   {with(func(i *Issuer) { i.URL = "http://[::1]:8080" }), ""},
		"no mode":              {Config{}, "none, token or oidc"},
		"no audience":          {with(func(i *Issuer) { i.Audience = "" }), "audience"},
		"no issuer":            {with(func(i *Issuer) { i.URL = "" }), "issuer"},
		"in the clear":         {with(func(i *Issuer) { i.URL = "http://issuer.example" }), "https"},
		"keys in the clear":    {with(func(i *Issuer) { i.KeysURL = "http://issuer.example/keys" }), "https"},
		"a name like local":    {with(func(i *Issuer) { i.URL = "http://localhost.example" }), "https"},
		"no host":              {with(func(i *Issuer) { i.URL = "https:///x" }), "a URL like"},
		"with a password":      {with(func(i *Issuer) { i.URL = "https://a:b@issuer.example" }), "a URL like"},
		"HMAC":                 {with(func(i *Issuer) { i.Algorithms = []string{"RS256", "HS256"} }), "HS256"},
		"no signature":         {with(func(i *Issuer) { i.Algorithms = []string{"none"} }), "none"},
		"a kind":               {with(func(i *Issuer) { i.PrincipalKind = "service" }), ""},
		"groups as principals": {with(func(i *Issuer) { i.PrincipalKind = "group" }), "must not be a group"},
		"no kind":              {with(func(i *Issuer) { i.PrincipalKind = "a b" }), "kind"},
		"issuer without oidc":  {Config{Modes: []Mode{Token}, Issuer: good}, "oidc"},
		"bad admin":            {Config{Modes: []Mode{None}, Admins: []string{"ada"}}, "admin"},
		"admins":               {Config{Modes: []Mode{None}, Admins: []string{"*", "user:*", "group:ops"}}, ""},
	} {
		err := row.config.Check()
		if (row.says == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), row.says) {
			t.Errorf("%s: %v, want %q", name, err, row.says)
		}
	}
	if _, err := New(Config{Modes: []Mode{Token}}); err == nil {
		t.Error("tokens without a way to look them up")
	}
}

func TestNone(t *testing.T) {
	t.Parallel()
	a := newAuthenticator(t, Config{Modes: []Mode{None}, Admins: []string{"user:root*", "group:x"}})
	if a.Changing() {
		t.Error("nothing changes here")
	}
	for name, row := range map[string]struct {
		shown Credentials
		who   string
		admin bool
		kind  Kind
	}{
		"nobody":             {Credentials{}, "user:anonymous", true, 0},
		"the same":           {Credentials{Named: []string{"user:anonymous"}}, "user:anonymous", true, 0},
		"another":            {Credentials{Named: []string{"user:ada"}}, "user:ada", false, 0},
		"an admin":           {Credentials{Named: []string{"user:root-1"}}, "user:root-1", true, 0},
		"a group":            {Credentials{Named: []string{"group:ops"}}, "", false, Misnamed},
		"a token as well":    {Credentials{Named: []string{"user:ada"}, Authorization: []string{"Bearer x"}}, "user:ada", false, 0},
		"a bad one":          {Credentials{Named: []string{"ada"}}, "", false, Misnamed},
		"an empty one":       {Credentials{Named: []string{""}}, "", false, Misnamed},
		"two":                {Credentials{Named: []string{"user:ada", "user:bob"}}, "", false, Misnamed},
		"an odd certificate": {Credentials{Certificate: &x509.Certificate{}}, "user:anonymous", true, 0},
	} {
		got, err := a.Authenticate(t.Context(), row.shown)
		wantKind(t, err, row.kind)
		if got.Name != row.who || got.Admin != row.admin {
			t.Errorf("%s: %+v, want %s, admin %t", name, got, row.who, row.admin)
		}
	}
}

func TestToken(t *testing.T) {
	t.Parallel()
	a, s, _ := newTokens(t, "group:ops", "user:root")
	read := time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC)
	full := s.add(t, func(r *identity.TokenRecord) {
		r.Groups, r.Permissions, r.Sessions = []string{"group:a"}, identity.Read, []string{"team-*"}
	})
	good := map[string]struct {
		text string
		want identity.Principal
	}{
		"whole": {full, identity.Principal{
			Name: "user:ada", Groups: []string{"group:a"}, Credentials: "tok_" + full[9:35],
			Scope: identity.Scope{Permissions: identity.Read, Sessions: []string{"team-*"}},
		}},
		"made offline":       {s.add(t, func(r *identity.TokenRecord) { r.ServerAdmin = true }), identity.Principal{Name: "user:ada", Admin: true}},
		"an admin":           {s.add(t, func(r *identity.TokenRecord) { r.Principal = "user:root" }), identity.Principal{Name: "user:root", Admin: true}},
		"an admin by group":  {s.add(t, func(r *identity.TokenRecord) { r.Groups = []string{"group:x", "group:ops"} }), identity.Principal{Name: "user:ada", Admin: true, Groups: []string{"group:x", "group:ops"}}},
		"with an end":        {s.add(t, func(r *identity.TokenRecord) { r.ExpiresAt = read.Add(time.Millisecond) }), identity.Principal{Name: "user:ada"}},
		"the session itself": {s.add(t, func(r *identity.TokenRecord) { r.Principal = "session:s" }), identity.Principal{Name: "session:s"}},
	}
	for name, row := range good {
		got, err := a.Authenticate(t.Context(), showing(row.text))
		row.want.Credentials = "tok_" + row.text[9:35]
		if diff := cmp.Diff(row.want, got); err != nil || diff != "" {
			t.Errorf("%s: %v %s", name, err, diff)
		}
	}
	another := s.add(t, nil)
	bad := map[string]struct {
		shown Credentials
		kind  Kind
		says  string
	}{
		"nothing":             {Credentials{}, Missing, "show who you are"},
		"named only":          {Credentials{Named: []string{"user:ada"}}, Missing, "show who you are"},
		"named as well":       {Credentials{Authorization: []string{"Bearer " + full}, Named: []string{"user:bob"}}, Misnamed, "does not authenticate"},
		"an unasked for cert": {Credentials{Certificate: &x509.Certificate{}}, Missing, "show who you are"},
		"twice":               {Credentials{Authorization: []string{"Bearer " + full, "Bearer " + full}}, Invalid, "once"},
		"unknown":             {showing("setpoint_" + strings.Repeat("0", 78-25) + full[62:]), Invalid, ""},
		"no such id":          {showing("setpoint_00000000000000000000000000" + full[35:]), Invalid, "no such token"},
		"another's secret":    {showing(full[:35] + another[35:]), Invalid, "no such token"},
		"a secret of zeros":   {showing("setpoint_00000000000000000000000000_" + strings.Repeat("0", 52)), Invalid, "no such token"},
		"revoked":             {showing(s.add(t, func(r *identity.TokenRecord) { r.Revoked = true })), Invalid, "revoked"},
		"expired":             {showing(s.add(t, func(r *identity.TokenRecord) { r.ExpiresAt = read })), Invalid, "expired"},
		"a JWT":               {showing("a.b.c"), Invalid, "of this kind"},
	}
	for name, row := range bad {
		got, err := a.Authenticate(t.Context(), row.shown)
		wantKind(t, err, row.kind)
		if err == nil || !strings.Contains(err.Error(), row.says) || got.Name != "" {
			t.Errorf("%s: %+v, %v, want %q", name, got, err, row.says)
		}
	}
}

// A principal that the table should not have is the server's trouble, not the caller's.
func TestTokenOfNobody(t *testing.T) {
	t.Parallel()
	a, s, _ := newTokens(t)
	for _, name := range []string{"ada", "group:ops", "user:anonymous"} {
		_, err := a.Authenticate(t.Context(), showing(s.add(t, func(r *identity.TokenRecord) { r.Principal = name })))
		if _, refused := errors.AsType[*Error](err); err == nil || refused {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A good token is not looked up again for a while, and its end comes no later for that.
func TestTokenRemembered(t *testing.T) {
	t.Parallel()
	a, s, c := newTokens(t)
	text := s.add(t, nil)
	short := s.add(t, func(r *identity.TokenRecord) { r.ExpiresAt = r.ReadAt.Add(time.Second) })
	check := func(text string, kind Kind, lookups int) {
		t.Helper()
		_, err := a.Authenticate(t.Context(), showing(text))
		wantKind(t, err, kind)
		if got := s.count(); got != lookups {
			t.Errorf("%d look-ups, want %d", got, lookups)
		}
	}
	check(text, 0, 1)
	s.revoke(text)
	c.advance(cacheFor - 1)
	check(text, 0, 1)
	check(text[:36]+strings.Repeat("0", 52), Invalid, 2) // Another secret finds nothing remembered.
	c.advance(1)
	check(text, Invalid, 3)
	check(text, Invalid, 4)

	check(short, 0, 5)
	c.advance(time.Second - 1)
	check(short, 0, 5)
	c.advance(1)
	check(short, 0, 6) // By the database's clock, which this test does not move, it still counts.
	if cacheFor > 3*time.Second {
		t.Error("revocation takes too long")
	}
}

// The database's failures come out as they are, count for nothing, and leave no trace.
func TestTokenDatabaseAway(t *testing.T) {
	t.Parallel()
	a, s, c := newTokens(t)
	text := s.add(t, nil)
	away := errors.New("away")
	s.err = away
	for range 3 * failureBurst {
		if _, err := a.Authenticate(t.Context(), showing(text)); !errors.Is(err, away) {
			t.Fatalf("got %v", err)
		}
	}
	s.err = nil
	if _, err := a.Authenticate(t.Context(), showing(text)); err != nil {
		t.Errorf("once it is back: %v", err)
	}
	c.advance(cacheFor)
	s.err = away
	if _, err := a.Authenticate(t.Context(), showing(text)); !errors.Is(err, away) {
		t.Errorf("what is remembered is too old: %v", err)
	}
}

// Who asks for the same token at the same time shares a look-up, also if the first goes away.
func TestLookUpsAreShared(t *testing.T) {
	t.Parallel()
	a, s, _ := newTokens(t)
	text := s.add(t, nil)
	s.hold, s.entered = make(chan struct{}), make(chan struct{}, 1)
	first, leave := context.WithCancelCause(t.Context())
	gone := errors.New("gone")
	var callers sync.WaitGroup
	callers.Go(func() {
		if _, err := a.Authenticate(first, showing(text)); !errors.Is(err, gone) {
			t.Errorf("the first: %v", err)
		}
	})
	<-s.entered
	asking := make(chan struct{}, 50)
	for range 50 {
		callers.Go(func() {
			asking <- struct{}{}
			if p, err := a.Authenticate(t.Context(), showing(text)); err != nil || p.Name != "user:ada" {
				t.Errorf("%v, %v", p, err)
			}
		})
	}
	for range 50 {
		<-asking
	}
	leave(gone)
	close(s.hold)
	s.mu.Lock()
	s.hold = nil
	s.mu.Unlock()
	callers.Wait()
	if got := s.count(); got > 10 { // A caller that came when the look-up had ended may have begun another.
		t.Errorf("%d look-ups", got)
	}
}

// Nobody is answered with what was read long before it asked, however slow the database is.
func TestOldLookUpsAreNotShared(t *testing.T) {
	t.Parallel()
	a, s, c := newTokens(t)
	text := s.add(t, nil)
	s.hold, s.entered = make(chan struct{}), make(chan struct{}, 2)
	hold := s.hold
	results := make(chan error, 2)
	ask := func() {
		_, err := a.Authenticate(t.Context(), showing(text))
		results <- err
	}
	go ask()
	<-s.entered
	s.revoke(text)
	c.advance(cacheFor)
	id, _, err := identity.ParseToken(text)
	if err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	s.hold = nil
	s.mu.Unlock()
	go func() {
		_, err := a.lookUp(t.Context(), id) // Joins the one under way, and is not content with it.
		if err == nil && s.count() != 2 {
			err = fmt.Errorf("%d look-ups", s.count())
		}
		results <- err
	}()
	close(hold)
	for range 2 {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	_, err = a.Authenticate(t.Context(), showing(text))
	wantKind(t, err, Invalid)
}

func TestBearer(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ value, want string }{
		{"Bearer abc", "abc"},
		{"bearer abc", "abc"},
		{"BEARER   abc.d-e_f~g+h/i==", "abc.d-e_f~g+h/i=="},
		{"Bearer " + strings.Repeat("a", maxBearerBytes), strings.Repeat("a", maxBearerBytes)},
		{"Bearer " + strings.Repeat("a", maxBearerBytes+1), ""},
		{"", ""},
		{"Bearer", ""},
		{"Bearer ", ""},
		{"Bearer =", ""},
		{"Bearer a=b", ""},
		{"Bearer a b", ""},
		{"Bearer a ", ""},
		{" Bearer a", ""},
		{"Bearer\ta", ""},
		{"Bearer ä", ""},
		{"Bearer \x00", ""},
		{"Basic YTpi", ""},
		{"abc", ""},
	} {
		got, err := bearer([]string{test.value})
		if got != test.want || (err == nil) != (test.want != "") {
			t.Errorf("%.40q: %.40q, %v", test.value, got, err)
		}
	}
}

func FuzzBearer(f *testing.F) {
	for _, seed := range []string{"Bearer abc", "bearer  a.b.c", "Bearer", "Basic x", "Bearer a=b", "Bearer a==", "\xff a"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, value string) {
		text, err := bearer([]string{value})
		if err != nil {
			wantKind(t, err, Invalid)
			if len(value) > 20 && strings.Contains(err.Error(), value[10:]) {
				t.Errorf("%v shows %q", err, value)
			}
			return
		}
		if text == "" || len(text) > maxBearerBytes || !strings.HasSuffix(value, " "+text) || !strings.EqualFold(value[:7], "bearer ") {
			t.Errorf("%q from %q", text, value)
		}
		if again, err := bearer([]string{"Bearer " + text}); err != nil || again != text {
			t.Errorf("%q again: %q, %v", text, again, err)
		}
	})
}
