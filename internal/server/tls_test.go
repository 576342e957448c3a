package server

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/setpointdb/setpoint/db"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/authenticate"
	"github.com/setpointdb/setpoint/internal/identity"
	"github.com/setpointdb/setpoint/internal/testkit"
)

// authority signs certificates.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t}
	a.cert, a.key, a.pem = a.issue(&x509.Certificate{
		Subject: pkix.Name{CommonName: "authority"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	})
	return a
}

// issue signs a certificate, with the authority's own if there is one yet.
func (a *authority) issue(template *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey, []byte) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	if template.SerialNumber, err = rand.Int(rand.Reader, big.NewInt(1<<62)); err != nil {
		a.t.Fatal(err)
	}
	template.NotBefore = time.Now().Add(-time.Hour)
	if template.NotAfter.IsZero() {
		template.NotAfter = time.Now().Add(time.Hour)
	}
	parent, signer := template, key
	if a.cert != nil {
		parent, signer = a.cert, a.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// server writes a server's certificate and key, and returns its serial number.
func (a *authority) server(certFile, keyFile string) string {
	a.t.Helper()
	cert, key, text := a.issue(&x509.Certificate{
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	write(a.t, certFile, text)
	write(a.t, keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	return cert.SerialNumber.String()
}

// client makes a client's certificate.
func (a *authority) client(change func(*x509.Certificate)) *tls.Certificate {
	a.t.Helper()
	template := &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	if change != nil {
		change(template)
	}
	cert, key, _ := a.issue(template)
	return &tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}
}

func named(t *testing.T, uri string) func(*x509.Certificate) {
	t.Helper()
	u, err := url.Parse(uri)
	if err != nil {
		t.Fatal(err)
	}
	return func(c *x509.Certificate) { c.URIs = []*url.URL{u} }
}

func write(t *testing.T, path string, text []byte) {
	t.Helper()
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

// secured is a server that speaks TLS, with its files.
type secured struct {
	*caller
	server, clients           *authority
	certFile, keyFile, caFile string
	serial                    string
	log                       *lockedText
}

func startSecured(t *testing.T, change ...func(*Config)) *secured {
	t.Helper()
	dir := t.TempDir()
	s := &secured{
		server: newAuthority(t), clients: newAuthority(t), log: &lockedText{},
		certFile: filepath.Join(dir, "cert"), keyFile: filepath.Join(dir, "key"), caFile: filepath.Join(dir, "ca"),
	}
	s.serial = s.server.server(s.certFile, s.keyFile)
	write(t, s.caFile, s.clients.pem)
	s.caller = startREST(t, append([]func(*Config){func(config *Config) {
		config.TLSCertFile, config.TLSKeyFile, config.ClientCAFile = s.certFile, s.keyFile, s.caFile
		config.Log = slog.New(slog.NewTextHandler(s.log, nil))
	}}, change...)...)
	return s
}

// config is a client's.
func (s *secured) config(cert *tls.Certificate) *tls.Config {
	config := &tls.Config{RootCAs: x509.NewCertPool(), MinVersion: tls.VersionTLS12}
	config.RootCAs.AddCert(s.server.cert)
	if cert != nil {
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	}
	return config
}

// as returns a connection for gRPC, and a caller of REST, that show a certificate.
func (s *secured) as(cert *tls.Certificate) (*grpc.ClientConn, *caller) {
	s.t.Helper()
	conn, err := grpc.NewClient(s.caller.server.GRPCAddr(), grpc.WithTransportCredentials(credentials.NewTLS(s.config(cert))))
	if err != nil {
		s.t.Fatal(err)
	}
	transport := &http.Transport{TLSClientConfig: s.config(cert), ForceAttemptHTTP2: true}
	s.t.Cleanup(func() {
		_ = conn.Close()
		transport.CloseIdleConnections()
	})
	return conn, &caller{t: s.t, url: "https://" + s.caller.server.HTTPAddr(), client: &http.Client{Transport: transport}}
}

// refusesTLS checks that a certificate does not even get a connection, at either port.
func (s *secured) refusesTLS(what string, cert *tls.Certificate) {
	s.t.Helper()
	conn, rest := s.as(cert)
	_, err := healthv1.NewHealthClient(conn).Check(s.t.Context(), &healthv1.HealthCheckRequest{})
	if status.Code(err) != codes.Unavailable {
		s.t.Errorf("%s: gRPC: %v", what, err)
	}
	response, err := rest.client.Get(rest.url + "/livez")
	if err == nil {
		_ = response.Body.Close()
		s.t.Errorf("%s: HTTP: %s", what, response.Status)
	}
}

// The subject alternative names of a certificate say who calls, at both ports.
func TestClientCertificates(t *testing.T) {
	t.Parallel()
	s := startSecured(t)
	i := 0
	for want, change := range map[string]func(*x509.Certificate){
		"user:ada":               named(t, "setpoint:user:ada"),
		"service:spiffe://org/a": named(t, "spiffe://org/a"),
		"service:host.example":   func(c *x509.Certificate) { c.DNSNames = []string{"Host.example"} },
		"user:ada@mail.example":  func(c *x509.Certificate) { c.EmailAddresses = []string{"ada@mail.example"} },
		"service:by-a-name-and-more": func(c *x509.Certificate) {
			c.DNSNames, c.EmailAddresses = []string{"by-a-name-and-more"}, []string{"a@b"}
		},
	} {
		conn, rest := s.as(s.clients.client(change))
		i++
		session, err := setpointv1.NewSessionServiceClient(conn).CreateSession(t.Context(),
			&setpointv1.CreateSessionRequest{SessionId: fmt.Sprint("grpc-", i)})
		if err != nil || session.GetOwner() != want {
			t.Errorf("gRPC: %v, %v, want %s", session, err, want)
		}
		if got := rest.must("POST", "/v1/sessions", fmt.Sprintf(`{"session_id": "rest-%d"}`, i)); !strings.Contains(got, `"owner":"`+want+`"`) {
			t.Errorf("REST: %s, want %s", got, want)
		}
		_, err = setpointv1.NewSessionServiceClient(conn).GetSession(
			metadata.AppendToOutgoingContext(t.Context(), identity.Header, want), &setpointv1.GetSessionRequest{SessionId: "x"})
		wantStatus(t, err, codes.InvalidArgument, "INVALID_REQUEST")
	}
	for name, change := range map[string]func(*x509.Certificate){
		"no name":        func(c *x509.Certificate) { c.Subject.CommonName = "user:ada" },
		"a group's name": named(t, "setpoint:group:ops"),
	} {
		conn, rest := s.as(s.clients.client(change))
		_, err := setpointv1.NewSessionServiceClient(conn).GetSession(t.Context(), &setpointv1.GetSessionRequest{SessionId: "x"})
		wantStatus(t, err, codes.Unauthenticated, "CREDENTIALS_INVALID")
		wantError(t, rest.call("GET", "/v1/sessions/x", ""), http.StatusUnauthorized, "CREDENTIALS_INVALID")
		if t.Failed() {
			t.Fatal(name)
		}
	}
}

// Who has no certificate is told so; health is everybody's to look at; and a certificate that does not count gets no connection.
func TestWrongClientCertificates(t *testing.T) {
	t.Parallel()
	s := startSecured(t)
	conn, rest := s.as(nil)
	_, err := setpointv1.NewSessionServiceClient(conn).GetSession(t.Context(), &setpointv1.GetSessionRequest{SessionId: "x"})
	wantStatus(t, err, codes.Unauthenticated, "CREDENTIALS_MISSING")
	wantError(t, rest.call("GET", "/v1/sessions/x", "", identity.Header, "user:ada"), http.StatusUnauthorized, "CREDENTIALS_MISSING")
	if _, err := healthv1.NewHealthClient(conn).Check(t.Context(), &healthv1.HealthCheckRequest{}); err != nil {
		t.Error(err)
	}
	ada := named(t, "setpoint:user:ada")
	s.refusesTLS("another authority's", newAuthority(t).client(ada))
	s.refusesTLS("the server's authority's", s.server.client(ada))
	s.refusesTLS("expired", s.clients.client(func(c *x509.Certificate) { ada(c); c.NotAfter = time.Now().Add(-time.Minute) }))
	s.refusesTLS("a server's", s.clients.client(func(c *x509.Certificate) {
		ada(c)
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	}))
}

// A bearer token decides, where there is one; and nobody is asked for a certificate.
func TestCertificatesWithTokens(t *testing.T) {
	t.Parallel()
	database := testkit.NewDatabase(t)
	s := startSecured(t, func(config *Config) {
		config.Database.URL, config.Authentication.Modes = database, []authenticate.Mode{authenticate.Token}
	})
	tokens := &guardedCaller{caller: s.caller, database: database}
	ada := s.clients.client(named(t, "setpoint:user:ada"))
	bob := "Bearer " + tokens.token("user:bob")
	for i, row := range []struct {
		cert    *tls.Certificate
		headers []string
		want    string
	}{
		{ada, nil, `"owner":"user:ada"`},
		{ada, []string{"Authorization", bob}, `"owner":"user:bob"`},
		{nil, []string{"Authorization", bob}, `"owner":"user:bob"`},
		{ada, []string{"Authorization", "Bearer x"}, "CREDENTIALS_INVALID"},
		{nil, nil, "CREDENTIALS_MISSING"},
	} {
		_, rest := s.as(row.cert)
		if got := rest.call("POST", "/v1/sessions", fmt.Sprintf(`{"session_id": "s-%d"}`, i), row.headers...); !strings.Contains(got.body, row.want) {
			t.Errorf("%d: %s, want %s", i, got.body, row.want)
		}
	}
}

// A connection does not outlive its certificate.
func TestCertificateExpiresMeanwhile(t *testing.T) {
	t.Parallel()
	s := startSecured(t)
	// Certificates count to the second.
	conn, rest := s.as(s.clients.client(func(c *x509.Certificate) {
		named(t, "setpoint:user:ada")(c)
		c.NotAfter = time.Now().Add(4 * time.Second)
	}))
	rest.must("POST", "/v1/sessions", `{"session_id": "s"}`)
	rest.must("POST", "/v1/sessions/s/variables", `{"name": "a", "type": "VARIABLE_TYPE_INTEGER", "value": {"integer": 1}}`)
	rest.must("POST", "/v1/sessions/s/optimizations", `{"variables": ["a"]}`)
	optimizations := setpointv1.NewOptimizationServiceClient(conn)
	waiting, err := optimizations.StartOptimization(t.Context(), &setpointv1.StartOptimizationRequest{
		SessionId: "s", Variables: []string{"a"}, Conflict: setpointv1.ConflictStrategy_CONFLICT_STRATEGY_WAIT,
	})
	if err != nil {
		t.Fatal(err)
	}
	stream, err := optimizations.AwaitOptimization(t.Context(),
		&setpointv1.AwaitOptimizationRequest{SessionId: "s", OptimizationId: waiting.GetOptimizationId()})
	for err == nil {
		_, err = stream.Recv()
	}
	wantStatus(t, err, codes.Unauthenticated, "CREDENTIALS_INVALID")
	wantError(t, rest.call("GET", "/v1/sessions/s", ""), http.StatusUnauthorized, "CREDENTIALS_INVALID")
}

// Both ports speak HTTP/2 over TLS 1.2 or later, and nothing in the clear.
func TestTLSVersions(t *testing.T) {
	t.Parallel()
	s := startSecured(t, func(config *Config) { config.ClientCAFile = "" })
	for _, addr := range []string{s.caller.server.GRPCAddr(), s.caller.server.HTTPAddr()} {
		for _, most := range []uint16{tls.VersionTLS11, tls.VersionTLS12, tls.VersionTLS13} {
			config := s.config(nil)
			config.MinVersion, config.MaxVersion, config.NextProtos = tls.VersionTLS10, most, []string{"h2"}
			conn, err := tls.Dial("tcp", addr, config)
			if most < tls.VersionTLS12 {
				if err == nil {
					_ = conn.Close()
					t.Errorf("%s speaks %s", addr, tls.VersionName(most))
				}
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			if state := conn.ConnectionState(); state.Version != most || state.NegotiatedProtocol != "h2" {
				t.Errorf("%s speaks %s, %s; want %s", addr, tls.VersionName(state.Version), state.NegotiatedProtocol, tls.VersionName(most))
			}
			_ = conn.Close()
		}
	}
	_, rest := s.as(nil)
	response, err := rest.client.Get(rest.url + "/v1/sessions/x")
	if err != nil {
		t.Fatal(err)
	}
	if _ = response.Body.Close(); response.ProtoMajor != 2 || response.StatusCode != http.StatusNotFound {
		t.Errorf("%s %s", response.Proto, response.Status)
	}
	plain := s.dial()
	if _, err := healthv1.NewHealthClient(plain).Check(t.Context(), &healthv1.HealthCheckRequest{}); status.Code(err) != codes.Unavailable {
		t.Errorf("gRPC in the clear: %v", err)
	}
}

// serialAt is the serial number of the certificate that a port shows.
func (s *secured) serialAt(addr string) (string, error) {
	conn, err := tls.Dial("tcp", addr, s.config(nil))
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close() }()
	return conn.ConnectionState().PeerCertificates[0].SerialNumber.String(), nil
}

func (s *secured) shows(serial string) error {
	for _, addr := range []string{s.caller.server.GRPCAddr(), s.caller.server.HTTPAddr()} {
		if got, err := s.serialAt(addr); err != nil || got != serial {
			return fmt.Errorf("%s shows %s, want %s: %w", addr, got, serial, err)
		}
	}
	return nil
}

// Certificates and authorities are renewed while the server runs; what cannot be used does not take the place of what can.
func TestCertificatesAreReloaded(t *testing.T) {
	t.Parallel()
	s := startSecured(t)
	if err := s.shows(s.serial); err != nil {
		t.Fatal(err)
	}
	ada := named(t, "setpoint:user:ada")
	conn, _ := s.as(s.clients.client(ada))
	sessions := setpointv1.NewSessionServiceClient(conn)
	if _, err := sessions.CreateSession(t.Context(), &setpointv1.CreateSessionRequest{SessionId: "s"}); err != nil {
		t.Fatal(err)
	}
	logged := func(text string) func() error {
		return func() error {
			if !strings.Contains(s.log.String(), text) {
				return errors.New("not logged: " + text)
			}
			return nil
		}
	}
	write(t, s.certFile, []byte("half of a"))
	testkit.Eventually(t, 30*time.Second, logged("certificates_not_reloaded"))
	if err := s.shows(s.serial); err != nil {
		t.Error(err)
	}
	renewed := s.server.server(s.certFile, s.keyFile)
	others := newAuthority(t)
	write(t, s.caFile, others.pem)
	testkit.Eventually(t, 30*time.Second, func() error { return s.shows(renewed) })
	testkit.Eventually(t, 30*time.Second, func() error {
		next, _ := s.as(others.client(ada))
		_, err := setpointv1.NewSessionServiceClient(next).GetSession(t.Context(), &setpointv1.GetSessionRequest{SessionId: "s"})
		return err
	})
	s.refusesTLS("one of the authority before", s.clients.client(ada))
	if _, err := sessions.GetSession(t.Context(), &setpointv1.GetSessionRequest{SessionId: "s"}); err != nil {
		t.Errorf("over the connection from before: %v", err)
	}
	if !strings.Contains(s.log.String(), "certificates_reloaded") {
		t.Error("not logged")
	}
}

// load says what is new, once.
func TestCertificatesLoad(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	a := newAuthority(t)
	c := &certificates{certFile: filepath.Join(dir, "cert"), keyFile: filepath.Join(dir, "key")}
	a.server(c.certFile, c.keyFile)
	step := func(what string, changed, good bool) {
		t.Helper()
		before := c.config.Load()
		gotChanged, err := c.load()
		if gotChanged != changed || (err == nil) != good {
			t.Errorf("%s: changed %t, %v", what, gotChanged, err)
		}
		if now := c.config.Load(); (now != before) != (changed && good) {
			t.Errorf("%s: the configuration is another: %t", what, now != before)
		}
	}
	step("at first", true, true)
	step("the same", false, true)
	a.server(c.certFile, filepath.Join(dir, "other"))
	step("a certificate of another key", true, false)
	step("the same again", false, true)
	if err := os.Rename(filepath.Join(dir, "other"), c.keyFile); err != nil {
		t.Fatal(err)
	}
	step("and its key", true, true)
	text, err := os.ReadFile(c.keyFile)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(c.keyFile); err != nil {
		t.Fatal(err)
	}
	step("no key", true, false)
	step("still none", false, false)
	write(t, c.keyFile, text)
	step("there again", true, true)
}

func TestBadCertificatesAtTheStart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cert, key, bad := filepath.Join(dir, "cert"), filepath.Join(dir, "key"), filepath.Join(dir, "bad")
	newAuthority(t).server(cert, key)
	write(t, bad, []byte("bad"))
	for name, row := range map[string]struct{ cert, key, ca, says string }{
		"no key":           {cert, "", "", "TLS takes a certificate and its key"},
		"no certificate":   {"", key, "", "TLS takes a certificate and its key"},
		"authorities only": {"", "", cert, "TLS takes a certificate and its key"},
		"not there":        {cert, filepath.Join(dir, "none"), "", "no such file"},
		"no key in it":     {cert, bad, "", bad},
		"no authority":     {cert, key, bad, bad},
		"no such CA":       {cert, key, filepath.Join(dir, "none"), "no such file"},
	} {
		_, err := Start(context.Background(), Config{
			GRPCAddr: "127.0.0.1:0", HTTPAddr: "127.0.0.1:0", Log: slog.New(slog.DiscardHandler), Database: db.Config{URL: "postgres://h"},
			TLSCertFile: row.cert, TLSKeyFile: row.key, ClientCAFile: row.ca,
		})
		if err == nil || !strings.Contains(err.Error(), row.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
