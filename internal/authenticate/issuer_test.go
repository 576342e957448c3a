package authenticate

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"

	"github.com/setpointdb/setpoint/internal/identity"
	"github.com/setpointdb/setpoint/internal/telemetry"
)

// signer is a key of an issuer's.
type signer struct {
	algorithm jose.SignatureAlgorithm
	key       crypto.Signer
	id        string
}

func newRSA(t testing.TB, id string) signer {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return signer{jose.RS256, key, id}
}

func newEC(t testing.TB, id string) signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return signer{jose.ES256, key, id}
}

func (s signer) public() jose.JSONWebKey {
	return jose.JSONWebKey{Key: s.key.Public(), KeyID: s.id, Use: "sig"}
}

// sign makes a JWT.
func (s signer) sign(t testing.TB, claims any) string {
	t.Helper()
	options := (&jose.SignerOptions{}).WithType("JWT")
	if s.id != "" {
		options = options.WithHeader("kid", s.id)
	}
	with, err := jose.NewSigner(jose.SigningKey{Algorithm: s.algorithm, Key: s.key}, options)
	if err != nil {
		t.Fatal(err)
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	object, err := with.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	text, err := object.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// provider is an OpenID Connect issuer on this machine.
type provider struct {
	*httptest.Server
	mu   sync.Mutex
	keys []jose.JSONWebKey
	// extra keys are given as they are.
	extra []json.RawMessage
	away  bool
	// hits are the requests for the configuration and for the keys.
	configHits, keyHits int
	change              func(config map[string]any)
}

func newProvider(t testing.TB, signers ...signer) *provider {
	t.Helper()
	p := &provider{}
	for _, s := range signers {
		p.keys = append(p.keys, s.public())
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.configHits++
		config := map[string]any{"issuer": p.URL, "jwks_uri": p.URL + "/keys"}
		if p.change != nil {
			p.change(config)
		}
		p.answer(w, config)
	})
	mux.HandleFunc("/keys", func(w http.ResponseWriter, _ *http.Request) {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.keyHits++
		all := slices.Clone(p.extra)
		for _, key := range p.keys {
			text, err := key.MarshalJSON()
			if err != nil {
				t.Error(err)
			}
			all = append(all, text)
		}
		p.answer(w, map[string]any{"keys": all})
	})
	p.Server = httptest.NewServer(mux)
	t.Cleanup(p.Close)
	return p
}

func (p *provider) answer(w http.ResponseWriter, document any) {
	if p.away {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	_ = json.NewEncoder(w).Encode(document)
}

func (p *provider) setKeys(signers ...signer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.keys = nil
	for _, s := range signers {
		p.keys = append(p.keys, s.public())
	}
}

func (p *provider) setAway(away bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.away = away
}

func (p *provider) hits() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.keyHits
}

// claims are good ones for ada, changed.
func (p *provider) claims(c *clock, change map[string]any) map[string]any {
	claims := map[string]any{
		"iss": p.URL, "aud": "setpoint", "sub": "ada", "iat": c.Now().Unix(), "exp": c.Now().Add(time.Hour).Unix(),
	}
	for name, value := range change {
		if claims[name] = value; value == nil {
			delete(claims, name)
		}
	}
	return claims
}

func newOIDC(t testing.TB, p *provider, change ...func(*Config)) (*Authenticator, *clock) {
	t.Helper()
	c := newClock()
	config := Config{Modes: []Mode{OIDC}, Issuer: Issuer{URL: p.URL, Audience: "setpoint"}, Now: c.Now}
	for _, f := range change {
		f(&config)
	}
	a := newAuthenticator(t, config)
	t.Cleanup(func() {
		if a.issuer != nil {
			a.issuer.keys.client.CloseIdleConnections()
		}
	})
	return a, c
}

// from shows a token as another peer each time, so that failures are not limited.
var peers struct {
	sync.Mutex
	n uint32
}

func fromAnywhere(text string) Credentials {
	peers.Lock()
	defer peers.Unlock()
	peers.n++
	shown := showing(text)
	shown.Peer = netip.AddrFrom4([4]byte{10, byte(peers.n >> 16), byte(peers.n >> 8), byte(peers.n)})
	return shown
}

func b64(data []byte) string { return base64.RawURLEncoding.EncodeToString(data) }

// forge makes a JWT of a header and claims, and signs it with HMAC and a key.
func forge(t *testing.T, header string, claims any, key []byte) string {
	t.Helper()
	payload, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	text := b64([]byte(header)) + "." + b64(payload)
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(text))
	return text + "." + b64(mac.Sum(nil))
}

func TestJWT(t *testing.T) {
	t.Parallel()
	_, pss, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rs, ec, ed := newRSA(t, "rsa"), newEC(t, "ec"), signer{jose.EdDSA, pss, "ed"}
	ps := rs
	ps.algorithm = jose.PS512
	p := newProvider(t, rs, ec, ed)
	a, c := newOIDC(t, p, func(config *Config) { config.Admins = []string{"group:ops", "user:root"} })
	for name, row := range map[string]struct {
		text string
		want identity.Principal
	}{
		"RSA":     {rs.sign(t, p.claims(c, nil)), identity.Principal{Name: "user:ada"}},
		"PSS":     {ps.sign(t, p.claims(c, nil)), identity.Principal{Name: "user:ada"}},
		"EC":      {ec.sign(t, p.claims(c, nil)), identity.Principal{Name: "user:ada"}},
		"Ed25519": {ed.sign(t, p.claims(c, nil)), identity.Principal{Name: "user:ada"}},
		"without a key's id": {
			signer{ec.algorithm, ec.key, ""}.sign(t, p.claims(c, nil)), identity.Principal{Name: "user:ada"},
		},
		"several audiences": {
			rs.sign(t, p.claims(c, map[string]any{"aud": []string{"x", "setpoint"}})), identity.Principal{Name: "user:ada"},
		},
		"groups": {
			rs.sign(t, p.claims(c, map[string]any{"groups": []any{"b", "ops", "b", "a b\t%", "/c"}})),
			identity.Principal{Name: "user:ada", Groups: []string{"group:/c", "group:a%20b%09%25", "group:b", "group:ops"}, Admin: true},
		},
		"a group": {
			rs.sign(t, p.claims(c, map[string]any{"groups": "b"})), identity.Principal{Name: "user:ada", Groups: []string{"group:b"}},
		},
		"an admin":  {rs.sign(t, p.claims(c, map[string]any{"sub": "root"})), identity.Principal{Name: "user:root", Admin: true}},
		"odd names": {rs.sign(t, p.claims(c, map[string]any{"sub": "auth0|a:b"})), identity.Principal{Name: "user:auth0|a:b"}},
		"just expired": {
			rs.sign(t, p.claims(c, map[string]any{"exp": c.Now().Add(1-clockSkew).Unix() + 1})), identity.Principal{Name: "user:ada"},
		},
		"just not yet": {
			rs.sign(t, p.claims(c, map[string]any{"nbf": c.Now().Add(clockSkew).Unix()})), identity.Principal{Name: "user:ada"},
		},
	} {
		got, err := a.Authenticate(t.Context(), fromAnywhere(row.text))
		if diff := cmp.Diff(row.want, got); err != nil || diff != "" {
			t.Errorf("%s: %v %s", name, err, diff)
		}
	}
}

func TestJWTRefused(t *testing.T) {
	t.Parallel()
	rs, stranger, enc := newRSA(t, "rsa"), newRSA(t, "rsa"), newRSA(t, "enc")
	p := newProvider(t, rs)
	encKey := enc.public()
	encKey.Use = "enc"
	secret := []byte("0123456789abcdef0123456789abcdef")
	p.keys = append(p.keys, encKey, jose.JSONWebKey{Key: secret, KeyID: "oct"})
	p.extra = []json.RawMessage{json.RawMessage(`{"kty":"odd","kid":"odd"}`)}
	a, c := newOIDC(t, p)
	good := p.claims(c, nil)
	der, err := x509.MarshalPKIXPublicKey(rs.key.Public())
	if err != nil {
		t.Fatal(err)
	}
	asPEM := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	public := rs.public()
	asJWK, err := public.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	hs := `{"alg":"HS256","kid":"rsa","typ":"JWT"}`
	signed := rs.sign(t, good)
	parts := strings.Split(signed, ".")
	tampered, err := json.Marshal(p.claims(c, map[string]any{"sub": "root"}))
	if err != nil {
		t.Fatal(err)
	}
	claim := func(name string, value any) string { return rs.sign(t, p.claims(c, map[string]any{name: value})) }
	groups := make([]string, maxIssuedGroups+1)
	for i := range groups {
		groups[i] = fmt.Sprint(i)
	}
	embedded := `{"alg":"RS256","jwk":` + func() string {
		key := stranger.public()
		text, err := key.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}() + `}`
	strangers := strings.Split(signer{stranger.algorithm, stranger.key, ""}.sign(t, good), ".")
	for name, row := range map[string]struct{ text, says string }{
		"another key":             {stranger.sign(t, good), "signature is wrong"},
		"a key that is not there": {newEC(t, "other").sign(t, good), "does not have"},
		"a key for encryption":    {enc.sign(t, good), "does not have"},
		"the key that it brings":  {b64([]byte(embedded)) + "." + strangers[1] + "." + strangers[2], ""},
		"no algorithm":            {b64([]byte(`{"alg":"none"}`)) + "." + parts[1] + ".", "signed in a way"},
		"no algorithm, signed":    {b64([]byte(`{"alg":"none","kid":"rsa"}`)) + "." + parts[1] + "." + parts[2], "signed in a way"},
		"None":                    {b64([]byte(`{"alg":"None"}`)) + "." + parts[1] + ".", "signed in a way"},
		"HMAC with the PEM":       {forge(t, hs, good, asPEM), "signed in a way"},
		"HMAC with bare PEM":      {forge(t, hs, good, bytes.TrimSpace(asPEM)), "signed in a way"},
		"HMAC with the DER":       {forge(t, hs, good, der), "signed in a way"},
		"HMAC with the JWK":       {forge(t, hs, good, asJWK), "signed in a way"},
		"HMAC with a set's key":   {forge(t, `{"alg":"HS256","kid":"oct"}`, good, secret), "signed in a way"},
		"another algorithm":       {b64([]byte(`{"alg":"ES256","kid":"rsa"}`)) + "." + parts[1] + "." + parts[2], ""},
		"other claims":            {parts[0] + "." + b64(tampered) + "." + parts[2], "signature is wrong"},
		"no signature":            {parts[0] + "." + parts[1] + ".", ""},
		"two parts":               {parts[0] + "." + parts[1], "signed in a way"},
		"four parts":              {signed + "." + parts[2], "signed in a way"},
		"no JWT":                  {"abc", "signed in a way"},
		"dots":                    {"..", "signed in a way"},
		"too long":                {rs.sign(t, p.claims(c, map[string]any{"x": strings.Repeat("x", maxBearerBytes)})), "too long"},
		"another issuer":          {claim("iss", "https://other.example"), "another issuer"},
		"no issuer":               {claim("iss", nil), "another issuer"},
		"an issuer with a slash":  {claim("iss", p.URL+"/"), "another issuer"},
		"another audience":        {claim("aud", "other"), "another audience"},
		"no audience":             {claim("aud", nil), "another audience"},
		"an odd audience":         {claim("aud", 7), "not in form"},
		"other audiences":         {claim("aud", []string{"a", "b"}), "another audience"},
		"expired":                 {claim("exp", c.Now().Add(-clockSkew).Unix()), "expired"},
		"no end":                  {claim("exp", nil), "expired"},
		"an odd end":              {claim("exp", "soon"), "not in form"},
		"an end without end":      {claim("exp", 1e300), "expired"},
		"not yet":                 {claim("nbf", c.Now().Add(clockSkew).Unix()+1), "does not count yet"},
		"an odd beginning":        {claim("nbf", "soon"), "not in form"},
		"nobody":                  {claim("sub", nil), "sub is no text"},
		"an empty name":           {claim("sub", ""), "sub is no text"},
		"a number":                {claim("sub", 7), "not in form"},
		"a name with a space":     {claim("sub", "ada lovelace"), "names no principal"},
		"a long name":             {claim("sub", strings.Repeat("a", 252)), "names no principal"},
		"a control character":     {claim("sub", "a\nb"), "names no principal"},
		"user:anonymous":          {claim("sub", "anonymous"), "names no principal"},
		"many groups":             {claim("groups", groups), "groups"},
		"groups by name":          {claim("groups", map[string]any{"ops": 1}), "no list of groups"},
		"a group in a list":       {claim("groups", []any{[]any{"ops"}}), "no list of groups"},
		"a group that is none":    {claim("groups", []any{"ops", nil}), "no list of groups"},
		"a group without a name":  {claim("groups", []any{""}), "no list of groups"},
		"a group of a long name":  {claim("groups", strings.Repeat("a ", 200)), "no list of groups"},
	} {
		got, err := a.Authenticate(t.Context(), fromAnywhere(row.text))
		wantKind(t, err, Invalid)
		if err == nil || !strings.Contains(err.Error(), row.says) || got.Name != "" {
			t.Errorf("%s: %+v, %v, want %q", name, got, err, row.says)
		}
		if err != nil && len(row.text) > 100 && strings.Contains(err.Error(), row.text[len(row.text)-20:]) {
			t.Errorf("%s: %v shows it", name, err)
		}
	}
	_, err = a.Authenticate(t.Context(), showing("setpoint_x"))
	wantKind(t, err, Invalid)
	if _, err := a.Authenticate(t.Context(), fromAnywhere(signed)); err != nil {
		t.Errorf("the good one: %v", err)
	}
}

func TestClaims(t *testing.T) {
	t.Parallel()
	rs := newRSA(t, "rsa")
	p := newProvider(t, rs)
	a, c := newOIDC(t, p, func(config *Config) {
		config.Issuer.PrincipalClaim, config.Issuer.PrincipalKind, config.Issuer.GroupsClaim = "email", "service", "roles"
		config.Issuer.Algorithms = []string{"RS256"}
	})
	for name, row := range map[string]struct {
		change map[string]any
		want   string
	}{
		"an address":     {map[string]any{"email": "a@b.example", "email_verified": true, "roles": []string{"x"}}, "service:a@b.example [group:x]"},
		"not said":       {map[string]any{"email": "a@b.example"}, " []"},
		"null":           {map[string]any{"email": "a@b.example", "email_verified": json.RawMessage("null")}, " []"},
		"a number":       {map[string]any{"email": "a@b.example", "email_verified": 1}, " []"},
		"only verified":  {map[string]any{"email_verified": true}, " []"},
		"not verified":   {map[string]any{"email": "a@b.example", "email_verified": false}, " []"},
		"oddly verified": {map[string]any{"email": "a@b.example", "email_verified": "true"}, " []"},
		"none":           {nil, " []"},
	} {
		got, err := a.Authenticate(t.Context(), fromAnywhere(rs.sign(t, p.claims(c, row.change))))
		if text := fmt.Sprint(got.Name, " ", got.Groups); text != row.want || (err == nil) != (got.Name != "") {
			t.Errorf("%s: %s, %v, want %s", name, text, err, row.want)
		}
	}
	ps := rs
	ps.algorithm = jose.PS256
	_, err := a.Authenticate(t.Context(), fromAnywhere(ps.sign(t, p.claims(c, map[string]any{"email": "a@b.example", "email_verified": true}))))
	wantKind(t, err, Invalid)
}

// A JWT is remembered no longer than it counts.
func TestJWTRemembered(t *testing.T) {
	t.Parallel()
	rs := newRSA(t, "rsa")
	p := newProvider(t, rs)
	a, c := newOIDC(t, p)
	text := rs.sign(t, p.claims(c, map[string]any{"exp": c.Now().Unix() + 1}))
	for _, step := range []struct {
		advance time.Duration
		kind    Kind
	}{{0, 0}, {clockSkew, 0}, {time.Second - 1, 0}, {1, Invalid}} {
		c.advance(step.advance)
		_, err := a.Authenticate(t.Context(), showing(text))
		wantKind(t, err, step.kind)
	}
}

func TestKeysRotate(t *testing.T) {
	t.Parallel()
	old, young := newEC(t, "old"), newEC(t, "young")
	p := newProvider(t, old)
	a, c := newOIDC(t, p)
	check := func(s signer, kind Kind, hits int) {
		t.Helper()
		_, err := a.Authenticate(t.Context(), fromAnywhere(s.sign(t, p.claims(c, nil))))
		wantKind(t, err, kind)
		if got := p.hits(); got != hits {
			t.Errorf("fetched %d times, want %d", got, hits)
		}
	}
	check(old, 0, 1)
	check(old, 0, 1)
	check(young, Invalid, 2)
	p.setKeys(old, young)
	check(young, 0, 3) // At once.
	check(old, 0, 3)
	p.setKeys(young)
	check(old, 0, 3)
	c.advance(keysFresh)
	check(young, 0, 4)
	check(old, Invalid, 5) // The issuer has taken it back.
	if p.configHits != 1 {
		t.Errorf("the configuration was fetched %d times", p.configHits)
	}
}

// Keys that nobody has are not asked for again and again, whoever asks; the good ones count meanwhile, and new ones soon.
func TestUnknownKeysAreBounded(t *testing.T) {
	t.Parallel()
	good := newEC(t, "good")
	p := newProvider(t, good)
	a, c := newOIDC(t, p)
	if _, err := a.Authenticate(t.Context(), fromAnywhere(good.sign(t, p.claims(c, nil)))); err != nil {
		t.Fatal(err)
	}
	forger := newEC(t, "")
	var storm sync.WaitGroup
	for worker := range 4 {
		storm.Go(func() {
			for i := range 50 {
				s := forger
				s.id = fmt.Sprint(worker, "-", i)
				_, err := a.Authenticate(t.Context(), fromAnywhere(s.sign(t, p.claims(c, nil))))
				wantKind(t, err, Invalid)
			}
		})
	}
	storm.Wait()
	if got := p.hits(); got > fetchBurst {
		t.Errorf("fetched %d times", got)
	}
	_, err := a.Authenticate(t.Context(), fromAnywhere(good.sign(t, p.claims(c, nil))))
	wantKind(t, err, 0)
	young := newEC(t, "young")
	p.setKeys(good, young)
	c.advance(fetchEvery)
	_, err = a.Authenticate(t.Context(), fromAnywhere(young.sign(t, p.claims(c, nil))))
	wantKind(t, err, 0)
}

// An issuer that cannot be reached is not the caller's fault, and keys that are known go on counting for a while.
func TestIssuerAway(t *testing.T) {
	t.Parallel()
	log := &bytes.Buffer{}
	events, err := telemetry.New(slog.New(slog.NewTextHandler(log, nil)), nil)
	if err != nil {
		t.Fatal(err)
	}
	key, unknown := newEC(t, "key"), newEC(t, "unknown")
	p := newProvider(t, key)
	p.setAway(true)
	a, c := newOIDC(t, p, func(config *Config) { config.Events = events })
	check := func(s signer, kind Kind) {
		t.Helper()
		_, err := a.Authenticate(t.Context(), fromAnywhere(s.sign(t, p.claims(c, nil))))
		wantKind(t, err, kind)
	}
	for range 2 * failureBurst {
		_, err := a.Authenticate(t.Context(), showing(key.sign(t, p.claims(c, nil)))) // One peer: it is not its failure.
		wantKind(t, err, Unavailable)
	}
	ended := key.sign(t, p.claims(c, map[string]any{"exp": c.Now().Add(-time.Hour).Unix()}))
	_, err = a.Authenticate(t.Context(), fromAnywhere(ended))
	wantKind(t, err, Invalid)
	p.setAway(false)
	c.advance(fetchEvery)
	check(key, 0)
	p.setAway(true)
	c.advance(keysFresh)
	for range 3 {
		check(key, 0)
	}
	check(unknown, Unavailable)
	c.advance(keysKept - keysFresh - 1)
	check(key, 0)
	c.advance(1)
	check(key, Unavailable)
	p.setAway(false)
	c.advance(fetchEvery)
	check(key, 0)
	check(unknown, Invalid)
	if text := log.String(); !strings.Contains(text, "issuer_keys_failed") || strings.Contains(text, ended[len(ended)-30:]) {
		t.Errorf("the log: %s", text)
	}
}

func TestIssuerConfiguration(t *testing.T) {
	t.Parallel()
	key := newEC(t, "key")
	for name, row := range map[string]struct {
		change func(map[string]any)
		kind   Kind
	}{
		"good":              {nil, 0},
		"another's":         {func(c map[string]any) { c["issuer"] = "https://other.example" }, Unavailable},
		"keys in the clear": {func(c map[string]any) { c["jwks_uri"] = "http://issuer.example/keys" }, Unavailable},
		"no keys":           {func(c map[string]any) { delete(c, "jwks_uri") }, Unavailable},
		"too much":          {func(c map[string]any) { c["x"] = strings.Repeat("x", maxKeysBytes) }, Unavailable},
	} {
		p := newProvider(t, key)
		p.change = row.change
		a, c := newOIDC(t, p)
		_, err := a.Authenticate(t.Context(), showing(key.sign(t, p.claims(c, nil))))
		if wantKind(t, err, row.kind); t.Failed() {
			t.Fatal(name)
		}
	}
	p := newProvider(t, key)
	a, c := newOIDC(t, p, func(config *Config) { config.Issuer.KeysURL = p.URL + "/keys" })
	_, err := a.Authenticate(t.Context(), showing(key.sign(t, p.claims(c, nil))))
	wantKind(t, err, 0)
	if p.configHits != 0 {
		t.Error("the configuration was asked for, though the keys' address is given")
	}
}

// A redirect to where others could change the answer is not followed.
func TestIssuerRedirects(t *testing.T) {
	t.Parallel()
	front := httptest.NewServer(http.RedirectHandler("http://issuer.example/keys", http.StatusFound))
	t.Cleanup(front.Close)
	key := newEC(t, "key")
	p := newProvider(t, key)
	a, c := newOIDC(t, p, func(config *Config) { config.Issuer.KeysURL = front.URL })
	_, err := a.Authenticate(t.Context(), showing(key.sign(t, p.claims(c, nil))))
	wantKind(t, err, Unavailable)
}

func TestCallerGoesWhileKeysAreFetched(t *testing.T) {
	t.Parallel()
	asked, answer := make(chan struct{}, 9), make(chan struct{})
	front := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		asked <- struct{}{}
		<-answer
	}))
	t.Cleanup(front.Close)
	t.Cleanup(func() { close(answer) })
	key := newEC(t, "key")
	p := newProvider(t, key)
	a, c := newOIDC(t, p, func(config *Config) { config.Issuer.KeysURL = front.URL })
	ctx, leave := context.WithCancelCause(t.Context())
	gone := errors.New("gone")
	go func() {
		<-asked
		leave(gone)
	}()
	if _, err := a.Authenticate(ctx, showing(key.sign(t, p.claims(c, nil)))); !errors.Is(err, gone) {
		t.Errorf("got %v", err)
	}
}

// Both kinds are told apart by how they begin.
func TestTokensAndJWTs(t *testing.T) {
	t.Parallel()
	key := newEC(t, "key")
	p := newProvider(t, key)
	s := &store{}
	a, c := newOIDC(t, p, func(config *Config) { config.Modes, config.LookUp = []Mode{Token, OIDC}, s.lookUp })
	for text, who := range map[string]string{
		s.add(t, func(r *identity.TokenRecord) { r.Principal = "service:x" }): "service:x", key.sign(t, p.claims(c, nil)): "user:ada",
	} {
		got, err := a.Authenticate(t.Context(), showing(text))
		if err != nil || got.Name != who {
			t.Errorf("%s, %v, want %s", got.Name, err, who)
		}
	}
}
