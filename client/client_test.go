package client

import (
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestTokenIsSent(t *testing.T) {
	t.Parallel()
	p, c := newPeer(t, []error{status.Error(codes.Unavailable, "gone")}, WithToken(" sp_secret\n"))
	if err := callGet(t.Context(), c); err != nil {
		t.Fatalf("GetVariable: %v", err)
	}
	for call := range 2 {
		if got := p.header(t, call, "authorization"); got != "Bearer sp_secret" {
			t.Errorf("authorization of attempt %d: got %q", call+1, got)
		}
	}
}

func TestTokenFileIsReadAgain(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "token")
	write := func(token string) {
		t.Helper()
		// A new file under the old name, as tools replace secrets.
		if err := os.WriteFile(path+".new", []byte(token+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	write("one")
	p, c := newPeer(t, nil, WithTokenFile(path))
	want := []string{"one", "two", "two", "six"}
	for call, change := range []func(){
		func() {},
		func() { write("two") },
		func() { _ = os.Remove(path) },
		func() { write("six") },
	} {
		change()
		if err := callGet(t.Context(), c); err != nil {
			t.Fatalf("GetVariable: %v", err)
		}
		if got := p.header(t, call, "authorization"); got != "Bearer "+want[call] {
			t.Errorf("authorization of call %d: got %q, want %q", call, got, want[call])
		}
	}
}

// A file that is written over may look the same from outside, within a tick of the clock of the file system.
func TestTokenFileIsReadAgainThoughItLooksTheSame(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "token")
	p, written := (*peer)(nil), time.Now()
	var c *Client
	for call, token := range []string{"one", "two"} {
		if err := os.WriteFile(path, []byte(token), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, written, written); err != nil {
			t.Fatal(err)
		}
		if c == nil {
			p, c = newPeer(t, nil, WithTokenFile(path))
		}
		if err := callGet(t.Context(), c); err != nil {
			t.Fatalf("GetVariable: %v", err)
		}
		if got := p.header(t, call, "authorization"); got != "Bearer "+token {
			t.Errorf("authorization of call %d: got %q, want %q", call, got, token)
		}
	}
}

// Nothing that a program may print of a client or its errors has the token in it.
func TestTokenIsNotShown(t *testing.T) {
	t.Parallel()
	const secret = "sp_0123456789secret"
	path := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(path, []byte(secret), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, opt := range map[string]Option{"token": WithToken(secret), "token file": WithTokenFile(path)} {
		_, c := newPeer(t, []error{refusal(t, codes.Unauthenticated, "CREDENTIALS_INVALID", "the token is not known", nil)}, opt)
		err := callGet(t.Context(), c)
		if !errors.Is(err, ErrCredentialsInvalid) {
			t.Fatalf("%s: got %v", name, err)
		}
		for _, shown := range []string{err.Error(), fmt.Sprintf("%+v %#v", err, err), fmt.Sprint(c), fmt.Sprintf("%+v", c)} {
			if strings.Contains(shown, secret) {
				t.Errorf("%s: the secret is in %q", name, shown)
			}
		}
	}
	_, err := Dial("127.0.0.1:7420", WithToken(secret+"\x00"))
	if err == nil || strings.Contains(err.Error(), secret) {
		t.Errorf("of a malformed token: %v", err)
	}
}

func TestPrincipalIsSent(t *testing.T) {
	t.Parallel()
	p, c := newPeer(t, nil, WithPrincipal("user:ada"))
	if err := callGet(t.Context(), c); err != nil {
		t.Fatalf("GetVariable: %v", err)
	}
	if got := p.header(t, 0, PrincipalMetadata); got != "user:ada" {
		t.Errorf("%s: got %q", PrincipalMetadata, got)
	}
}

func TestDialChecksItsOptions(t *testing.T) {
	t.Parallel()
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, []byte(" \n"), 0o600); err != nil {
		t.Fatal(err)
	}
	full := filepath.Join(filepath.Dir(empty), "full")
	if err := os.WriteFile(full, []byte("sp_secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		addr string
		opts []Option
		want string // part of the error; empty for none
	}{
		{"token to loopback", "127.0.0.1:7420", []Option{WithToken("t")}, ""},
		{"token to loopback, IPv6", "[::1]:7420", []Option{WithToken("t")}, ""},
		{"token to localhost", "dns:///localhost:7420", []Option{WithToken("t")}, ""},
		{"token to a unix socket", "unix:/run/setpoint.sock", []Option{WithToken("t")}, ""},
		{"token to another machine", "10.0.0.1:7420", []Option{WithToken("t")}, ErrInsecureToken.Error()},
		{"token to a name", "localhost.example:7420", []Option{WithToken("t")}, ErrInsecureToken.Error()},
		{"token to whatever a resolver makes of it", "consul:///localhost", []Option{WithToken("t")}, ErrInsecureToken.Error()},
		{"token file to another machine", "10.0.0.1:7420", []Option{WithTokenFile(full)}, ErrInsecureToken.Error()},
		{"token to another machine over TLS", "10.0.0.1:7420", []Option{WithToken("t"), WithTLS("")}, ""},
		{"token, TLS configured", "db.example:7420", []Option{WithToken("t"), WithTLSConfig(&tls.Config{})}, ""},
		{"token, TLS configured by nothing", "db.example:7420", []Option{WithToken("t"), WithTLSConfig(nil)}, ""},
		{"no token where one was meant", "127.0.0.1:7420", []Option{WithToken("")}, "token is empty"},
		{"no token file where one was meant", "127.0.0.1:7420", []Option{WithTokenFile("")}, "no such file"},
		{"a folder as token file", "127.0.0.1:7420", []Option{WithTokenFile(filepath.Dir(full))}, "is a directory"},
		{"no file of authorities", "127.0.0.1:7420", []Option{WithTLS(empty + "x")}, "no such file"},
		{"no authority in the file", "127.0.0.1:7420", []Option{WithTLS(empty)}, "no certificate (PEM) in"},
		{"authorities twice", "127.0.0.1:7420", []Option{WithTLS(empty), WithTLSConfig(nil)}, "not both"},
		{"no client certificate", "127.0.0.1:7420", []Option{WithClientCertificate(empty+"x", empty)}, "no such file"},
		{"no key of it", "127.0.0.1:7420", []Option{WithClientCertificate(full, empty+"x")}, "no such file"},
		{"no certificate in the file", "127.0.0.1:7420", []Option{WithClientCertificate(full, full)}, "read client certificate: "},
		{"client certificates twice", "127.0.0.1:7420", []Option{WithClientCertificate(full, full),
			WithTLSConfig(&tls.Config{Certificates: []tls.Certificate{{}}})}, "not both"},
		{"token to another machine, allowed", "10.0.0.1:7420", []Option{WithToken("t"), WithInsecureToken()}, ""},
		{"two tokens", "127.0.0.1:7420", []Option{WithToken("t"), WithTokenFile(empty)}, "not both"},
		{"token of spaces", "127.0.0.1:7420", []Option{WithToken(" ")}, "empty"},
		{"token with a line break", "127.0.0.1:7420", []Option{WithToken("a\nb")}, "printable ASCII"},
		{"empty token file", "127.0.0.1:7420", []Option{WithTokenFile(empty)}, "empty"},
		{"no token file", "127.0.0.1:7420", []Option{WithTokenFile(empty + "x")}, "no such file"},
		{"principal with a line break", "127.0.0.1:7420", []Option{WithPrincipal("user:a\r\nx: y")}, "printable ASCII"},
		{"no address", "", nil, "address is empty"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c, err := Dial(tt.addr, tt.opts...)
			if err == nil {
				defer c.Close()
			}
			if err != nil && strings.Contains(err.Error(), "sp_secret") {
				t.Errorf("the error tells the secret: %v", err)
			}
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("error: got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestCallsAfterCloseFail(t *testing.T) {
	t.Parallel()
	_, c := newPeer(t, nil)
	if err := c.Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
	var e *Error
	if err := callGet(t.Context(), c); !errors.As(err, &e) || e.Code != codes.Canceled {
		t.Errorf("error: got %v, want CANCELLED", err)
	}
}
