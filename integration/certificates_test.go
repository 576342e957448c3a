package integration

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/testkit"
)

// authority signs certificates into files of a folder.
type authority struct {
	t    *testing.T
	dir  string
	file string // with its own certificate
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	a := &authority{t: t, dir: t.TempDir()}
	a.file = filepath.Join(a.dir, name+".crt")
	a.sign(name, &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	return a
}

// sign makes a certificate and its key in files, as somebody does who renews them under a server: by files in the place of files.
// The first is the authority's own.
func (a *authority) sign(name string, template *x509.Certificate) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		a.t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	if a.cert == nil {
		if a.cert, err = x509.ParseCertificate(der); err != nil {
			a.t.Fatal(err)
		}
		a.key = key
	}
	a.put(name+".key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}))
	a.put(name+".crt", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

func (a *authority) put(name string, text []byte) {
	a.t.Helper()
	path := filepath.Join(a.dir, name)
	if err := errors.Join(os.WriteFile(path+".new", text, 0o600), os.Rename(path+".new", path)); err != nil {
		a.t.Fatal(err)
	}
}

func (a *authority) path(name string) string { return filepath.Join(a.dir, name) }

// forServer signs for one on this machine.
func (a *authority) forServer() {
	a.sign("server", &x509.Certificate{
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
}

// forClient signs for a client whom the name is about.
func (a *authority) forClient(file, uri string) {
	a.t.Helper()
	template := &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	if uri != "" {
		name, err := url.Parse(uri)
		if err != nil {
			a.t.Fatal(err)
		}
		template.URIs = []*url.URL{name}
	}
	a.sign(file, template)
}

// page is the answer to a request.
func page(t *testing.T, through http.RoundTripper, request *http.Request) (int, string) {
	t.Helper()
	web := &http.Client{Transport: through, Timeout: patience}
	answer, err := web.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer.StatusCode, string(body)
}

// By commands, gRPC and REST: a client certificate says who is calling where no token does, and without either nobody gets in.
func TestClientCertificates(t *testing.T) {
	t.Parallel()
	database := testkit.NewDatabase(t)
	k := newTokens(t, database)
	servers, clients := newAuthority(t, "authority"), newAuthority(t, "authority")
	servers.forServer()
	clients.forClient("ada", "setpoint:user:ada")
	clients.forClient("trainer", "spiffe://example.org/trainer")
	clients.forClient("nobody", "")
	servers.forClient("stranger", "setpoint:user:ada")
	s := serve(t, database, "--auth", "token", "--tls-cert", servers.path("server.crt"), "--tls-key", servers.path("server.key"),
		"--client-ca", clients.file)
	with := func(signedBy *authority, who string, more ...string) []string {
		env := []string{"SETPOINT_ADDR=" + s.grpc, "SETPOINT_SESSION=run-1", "SETPOINT_CA_CERT=" + servers.file}
		if who != "" {
			env = append(env, "SETPOINT_CERT="+signedBy.path(who+".crt"), "SETPOINT_KEY="+signedBy.path(who+".key"))
		}
		return append(env, more...)
	}
	steps(t, with(clients, "ada"), []step{
		{args: words("session", "create", "run-1"), stdout: `^created session run-1`},
		{args: words("session", "get", "run-1"), stdout: `owner: +user:ada\n`},
		{args: words("var", "register", "lr", "float", "0.1"), stdout: `^lr = 0.1`},
		{args: words("acl", "allow", "service:spiffe://example.org/*", "write"), stdout: `^rule_`},
		{args: words("token", "list"), status: 1, stderr: `^error: ACCESS_DENIED: `},
		{args: words("--as", "user:root", "var", "get", "lr"), status: 1, stderr: `^error: `},
	})
	steps(t, with(clients, "trainer"), []step{{args: words("var", "set", "lr", "0.2"), stdout: `^lr = 0.2`}})
	steps(t, with(clients, "nobody"), []step{
		{args: words("var", "get", "lr"), status: 1, stderr: `^error: (CREDENTIALS_INVALID|UNREACHABLE): `}})
	steps(t, with(servers, "stranger"), []step{
		{args: words("var", "get", "lr", "--timeout", "5s"), status: 1, stderr: `^error: UNREACHABLE: `}})
	steps(t, with(clients, ""), []step{{args: words("var", "get", "lr"), status: 1, stderr: `^error: CREDENTIALS_MISSING: `}})
	steps(t, []string{"SETPOINT_ADDR=" + s.grpc}, []step{
		{args: words("var", "get", "lr", "--timeout", "5s"), status: 1, stderr: `^error: UNREACHABLE: `}})
	// A token counts before the certificate.
	steps(t, with(clients, "ada", "SETPOINT_TOKEN_FILE="+k.file("root")), []step{
		{args: words("var", "set", "lr", "0.3"), stdout: `^lr = 0.3`},
		{args: words("history", "list", "lr"), stdout: `0.3(?s:.*)` + "0.2"},
		{args: words("var", "get", "lr"), stdout: `by user:root|user:root`},
	})

	roots := x509.NewCertPool()
	roots.AddCert(servers.cert)
	cert, err := tls.LoadX509KeyPair(clients.path("trainer.crt"), clients.path("trainer.key"))
	if err != nil {
		t.Fatal(err)
	}
	web := &http.Transport{DisableKeepAlives: true,
		TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}}
	if status, body := ask(t, web, "https://"+s.http+"/v1/sessions/run-1/variables/lr", ""); status != http.StatusOK {
		t.Errorf("REST with a certificate: %d, %s", status, body)
	}
	if status, body := ask(t, web, "https://"+s.http+"/v1/sessions/run-1/variables/lr", k.secret("root")+"x"); status != http.StatusUnauthorized {
		t.Errorf("REST with a certificate and a token that is none: %d, %s", status, body)
	}
}

// Certificates are renewed by putting new files in the place of old ones. Connections go on; a file that is broken changes nothing.
func TestCertificatesAreRenewed(t *testing.T) {
	t.Parallel()
	database := testkit.NewDatabase(t)
	k := newTokens(t, database)
	before, after := newAuthority(t, "authority"), newAuthority(t, "authority")
	before.forServer()
	s := serve(t, database, "--auth", "token", "--tls-cert", before.path("server.crt"), "--tls-key", before.path("server.key"))
	connect := func(a *authority) *client.Client {
		return dial(t, s, client.WithTLS(a.file), client.WithTokenFile(k.file("root")), client.WithoutRetry())
	}
	works := func(c *client.Client) error {
		_, err := c.Sessions.ListSessions(t.Context(), &setpointv1.ListSessionsRequest{})
		return err
	}
	open := connect(before)
	if err := works(open); err != nil {
		t.Fatal(err)
	}

	before.put("server.crt", []byte("-----BEGIN CERTIFICATE-----\n"))
	s.await(t, s.log, `certificates_not_reloaded`)
	if err := errors.Join(works(open), works(connect(before))); err != nil {
		t.Errorf("with a broken file: %v", err)
	}

	after.forServer()
	for _, name := range []string{"server.key", "server.crt"} {
		text, err := os.ReadFile(after.path(name))
		if err != nil {
			t.Fatal(err)
		}
		before.put(name, text)
	}
	s.await(t, s.log, `certificates_reloaded`)
	if err := errors.Join(works(open), works(connect(after))); err != nil {
		t.Errorf("with a new certificate: %v", err)
	}
	if err := works(connect(before)); !errors.Is(err, client.ErrUnreachable) {
		t.Errorf("who trusts the authority of before: %v", fmt.Errorf("want UNREACHABLE, got %w", err))
	}
}
