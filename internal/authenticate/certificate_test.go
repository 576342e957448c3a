package authenticate

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/setpointdb/setpoint/internal/identity"
)

func certificate(t *testing.T, uris []string, dns []string, emails []string) *x509.Certificate {
	t.Helper()
	c := &x509.Certificate{
		Subject: pkix.Name{CommonName: "root"}, DNSNames: dns, EmailAddresses: emails, NotAfter: newClock().Now().Add(time.Hour),
	}
	for _, text := range uris {
		u, err := url.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		c.URIs = append(c.URIs, u)
	}
	return c
}

func TestCertificate(t *testing.T) {
	t.Parallel()
	type names = []string
	for name, row := range map[string]struct {
		uris, dns, emails names
		want              string
	}{
		"outright":                  {names{"setpoint:user:ada"}, nil, nil, "user:ada"},
		"outright, before others":   {names{"spiffe://x/y", "https://x.example", "setpoint:service:a:b"}, names{"x"}, names{"a@b"}, "service:a:b"},
		"outright, as it is":        {names{"setpoint:user:a%20b"}, nil, nil, "user:a%20b"},
		"outright, twice":           {names{"setpoint:user:ada", "setpoint:user:ada"}, nil, nil, "user:ada"},
		"two of them":               {names{"setpoint:user:ada", "setpoint:user:bob"}, nil, nil, ""},
		"a group":                   {names{"setpoint:group:ops"}, nil, nil, ""},
		"nobody":                    {names{"setpoint:user:anonymous"}, nil, nil, ""},
		"no kind":                   {names{"setpoint:ada"}, nil, nil, ""},
		"bad, though there is more": {names{"setpoint:ada"}, names{"x"}, nil, ""},
		"too long":                  {names{"setpoint:user:" + strings.Repeat("a", 252)}, nil, nil, ""},
		"SPIFFE":                    {names{"spiffe://example.org/ns/a"}, names{"x"}, nil, "service:spiffe://example.org/ns/a"},
		"two SPIFFE ids":            {names{"spiffe://example.org/a", "spiffe://example.org/b"}, names{"x"}, nil, ""},
		"another URI":               {names{"https://x.example/"}, nil, nil, ""},
		"another URI and a host":    {names{"https://x.example/"}, names{"X.Example", "y"}, names{"a@b"}, "service:x.example"},
		"a wildcard":                {nil, names{"*.example"}, nil, ""},
		"a wildcard and a host":     {nil, names{"*.example", "a.example"}, nil, "service:a.example"},
		"a wildcard and an address": {nil, names{"*.example"}, names{"a@b.example"}, "user:a@b.example"},
		"an address":                {nil, nil, names{"Ada@b.example", "c@d"}, "user:Ada@b.example"},
		"a bad address":             {nil, nil, names{"ada b@c"}, ""},
		"a common name only":        {nil, nil, nil, ""},
	} {
		got, err := Certificate(certificate(t, row.uris, row.dns, row.emails), newClock().Now())
		if row.want == "" {
			wantKind(t, err, Invalid)
		} else if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got.Name != row.want || got.Admin || got.Groups != nil {
			t.Errorf("%s: %+v, want %q", name, got, row.want)
		}
	}
	c := certificate(t, names{"setpoint:user:ada"}, nil, nil)
	if _, err := Certificate(c, c.NotAfter); err != nil {
		t.Errorf("at its end: %v", err)
	}
	_, err := Certificate(c, c.NotAfter.Add(1))
	wantKind(t, err, Invalid)
}

// Which credentials decide.
func TestCertificatesAndTokens(t *testing.T) {
	t.Parallel()
	s, c := &store{}, newClock()
	text := s.add(t, func(r *identity.TokenRecord) { r.Principal = "user:bob" })
	ada := certificate(t, []string{"setpoint:user:ada"}, nil, nil)
	late := certificate(t, []string{"setpoint:user:ada"}, nil, nil)
	late.NotAfter = c.Now().Add(-1)
	token := newAuthenticator(t, Config{Modes: []Mode{Token}, LookUp: s.lookUp, Now: c.Now, Certificates: true, Admins: []string{"user:ada"}})
	none := newAuthenticator(t, Config{Modes: []Mode{None}, Now: c.Now, Certificates: true, Admins: []string{"user:ada"}})
	if !token.Changing() || !none.Changing() {
		t.Error("certificates expire")
	}
	bearer := []string{"Bearer " + text}
	for name, row := range map[string]struct {
		at    *Authenticator
		shown Credentials
		who   string
		kind  Kind
	}{
		"a certificate":                        {token, Credentials{Certificate: ada}, "user:ada", 0},
		"a token":                              {token, Credentials{Authorization: bearer}, "user:bob", 0},
		"both":                                 {token, Credentials{Authorization: bearer, Certificate: ada}, "user:bob", 0},
		"a bad token and a certificate":        {token, Credentials{Authorization: []string{"Bearer x"}, Certificate: ada}, "", Invalid},
		"neither":                              {token, Credentials{}, "", Missing},
		"an expired certificate":               {token, Credentials{Certificate: late}, "", Invalid},
		"a certificate, named":                 {token, Credentials{Certificate: ada, Named: []string{"user:x"}}, "", Misnamed},
		"none: a certificate":                  {none, Credentials{Certificate: ada}, "user:ada", 0},
		"none: a certificate and a token":      {none, Credentials{Certificate: ada, Authorization: bearer}, "user:ada", 0},
		"none: neither":                        {none, Credentials{}, "", Missing},
		"none: a token":                        {none, Credentials{Authorization: bearer}, "", Missing},
		"none: named":                          {none, Credentials{Named: []string{"user:ada"}}, "", Missing},
		"none: a certificate, named":           {none, Credentials{Certificate: ada, Named: []string{"user:x"}}, "", Misnamed},
		"none: an expired certificate":         {none, Credentials{Certificate: late}, "", Invalid},
		"none: a certificate of nobody's":      {none, Credentials{Certificate: certificate(t, []string{"setpoint:user:anonymous"}, nil, nil)}, "", Invalid},
		"none: a certificate without any name": {none, Credentials{Certificate: certificate(t, nil, nil, nil)}, "", Invalid},
	} {
		got, err := row.at.Authenticate(t.Context(), row.shown)
		if wantKind(t, err, row.kind); got.Name != row.who || got.Admin != (row.who == "user:ada") {
			t.Errorf("%s: %+v, %v, want %s", name, got, err, row.who)
		}
	}
}
