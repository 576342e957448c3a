package client

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	grpcpeer "google.golang.org/grpc/peer"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// authority signs certificates, which it writes to a folder.
type authority struct {
	t           *testing.T
	dir         string
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
	serial      int64
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t, dir: t.TempDir()}
	a.key = a.newKey()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &a.key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.certificate, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.write("ca.pem", "CERTIFICATE", der)
	return a
}

func (a *authority) newKey() *ecdsa.PrivateKey {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	return key
}

func (a *authority) path(name string) string { return filepath.Join(a.dir, name) }

// write makes a new file under the name, as tools replace certificates.
func (a *authority) write(name, kind string, der []byte) {
	a.t.Helper()
	path := a.path(name)
	if err := os.WriteFile(path+".new", pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		a.t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		a.t.Fatal(err)
	}
}

// issue writes a certificate for a DNS name and loopback addresses, and its key.
func (a *authority) issue(name, certFile, keyFile string) {
	a.t.Helper()
	a.serial++
	key := a.newKey()
	template := &x509.Certificate{SerialNumber: big.NewInt(1 + a.serial), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, &key.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	a.write(certFile, "CERTIFICATE", der)
	a.write(keyFile, "EC PRIVATE KEY", keyDER)
}

// callers answers each GetVariable with the name of the certificate that the caller showed.
type callers struct {
	setpointv1.UnimplementedVariableServiceServer
}

func (callers) GetVariable(ctx context.Context, _ *setpointv1.GetVariableRequest) (*setpointv1.Variable, error) {
	caller, _ := grpcpeer.FromContext(ctx)
	if info, ok := caller.AuthInfo.(credentials.TLSInfo); ok && len(info.State.PeerCertificates) > 0 {
		return &setpointv1.Variable{Name: info.State.PeerCertificates[0].DNSNames[0]}, nil
	}
	return &setpointv1.Variable{Name: "nobody"}, nil
}

// serve serves over TLS, and asks for certificates.
func (a *authority) serve() (string, func()) {
	a.t.Helper()
	certificate, err := tls.LoadX509KeyPair(a.path("server.pem"), a.path("server.key"))
	if err != nil {
		a.t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(a.certificate)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		a.t.Fatal(err)
	}
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS12,
		Certificates: []tls.Certificate{certificate}, ClientCAs: pool, ClientAuth: tls.VerifyClientCertIfGiven})))
	setpointv1.RegisterVariableServiceServer(server, callers{})
	go func() { _ = server.Serve(listener) }()
	a.t.Cleanup(server.Stop)
	return listener.Addr().String(), server.Stop
}

func TestTLS(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	a.issue("localhost", "server.pem", "server.key")
	a.issue("tuner.example", "client.pem", "client.key")
	addr, _ := a.serve()
	pool := x509.NewCertPool()
	pool.AddCert(a.certificate)
	tests := []struct {
		name string
		opts []Option
		want string // who the server knows the caller as; empty: the call fails
	}{
		{"an authority of its own", []Option{WithTLS(a.path("ca.pem"))}, "nobody"},
		{"with a token", []Option{WithTLS(a.path("ca.pem")), WithToken("t")}, "nobody"},
		{"a configuration", []Option{WithTLSConfig(&tls.Config{RootCAs: pool})}, "nobody"},
		{"a client certificate", []Option{WithTLS(a.path("ca.pem")),
			WithClientCertificate(a.path("client.pem"), a.path("client.key"))}, "tuner.example"},
		{"a client certificate and a configuration", []Option{WithTLSConfig(&tls.Config{RootCAs: pool}),
			WithClientCertificate(a.path("client.pem"), a.path("client.key"))}, "tuner.example"},
		{"an authority that the system does not trust", []Option{WithTLS("")}, ""},
		{"the same, with a client certificate", []Option{WithClientCertificate(a.path("client.pem"), a.path("client.key"))}, ""},
		{"in the clear", nil, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c, err := Dial(addr, append(tt.opts, WithoutRetry(), WithTimeout(10*time.Second))...)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			v, err := c.Variables.GetVariable(t.Context(), &setpointv1.GetVariableRequest{})
			if tt.want == "" {
				if !errors.Is(err, ErrUnreachable) {
					t.Errorf("got %v, %v", v, err)
				}
				return
			}
			if err != nil || v.GetName() != tt.want {
				t.Errorf("got %q, %v, want %q", v.GetName(), err, tt.want)
			}
		})
	}
	if _, err := Dial(addr, WithClientCertificate(a.path("client.pem"), a.path("server.key"))); err == nil ||
		!strings.Contains(err.Error(), "private key does not match") {
		t.Errorf("of a key of another certificate: %v", err)
	}
}

// A new certificate is shown on the next connection; a half-written pair is not.
func TestClientCertificateIsReadAgain(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	a.issue("localhost", "server.pem", "server.key")
	a.issue("one.example", "client.pem", "client.key")
	var addr atomic.Pointer[string]
	dialer := grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", *addr.Load())
	})
	c, err := Dial("passthrough:///localhost", WithDialOptions(dialer), WithTLS(a.path("ca.pem")), WithClientCertificate(a.path("client.pem"), a.path("client.key")),
		WithRetry(RetryPolicy{MaxAttempts: 100, MaxBackoff: 100 * time.Millisecond}))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	stop := func() {}
	for _, step := range []struct {
		change func()
		want   string
	}{
		{func() {}, "one.example"},
		{func() { a.issue("two.example", "client.pem", "client.key") }, "two.example"},
		{func() { a.issue("three.example", "client.pem", "other.key") }, "two.example"},
		{func() { _ = os.Remove(a.path("client.key")) }, "two.example"},
		{func() { a.issue("four.example", "client.pem", "client.key") }, "four.example"},
	} {
		step.change()
		stop() // and with the server its connections
		var next string
		next, stop = a.serve()
		addr.Store(&next)
		v, err := c.Variables.GetVariable(t.Context(), &setpointv1.GetVariableRequest{})
		if err != nil || v.GetName() != step.want {
			t.Errorf("got %q, %v, want %q", v.GetName(), err, step.want)
		}
	}
}
