package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/identity"
)

const (
	adasToken  = "tok_aaaaaaaaaaaaaaaaaaaaaaaaaa"
	evesToken  = "tok_eeeeeeeeeeeeeeeeeeeeeeeeee"
	adasSecret = "setpoint_aaaaaaaaaaaaaaaaaaaaaaaaaa_ssssssssssssssssssssssssssssssssssssssssssssssssssss"
)

func newTokenOfAda() *setpointv1.CreateTokenResponse {
	return &setpointv1.CreateTokenResponse{Secret: adasSecret, Token: &setpointv1.Token{TokenId: adasToken, Principal: "user:ada",
		CreatedBy: "user:root", CreatedAt: at("16:00:00")}}
}

func TestCreateToken(t *testing.T) {
	t.Parallel()
	narrowed := newTokenOfAda()
	narrowed.Token.Groups, narrowed.Token.Sessions = []string{"group:ops", "group:a"}, []string{"run-*"}
	narrowed.Token.Permissions = []setpointv1.Permission{mayRead, mayWrite}
	narrowed.Token.ExpiresAt, narrowed.Token.ServerAdmin = inYear(2999), true
	tests := []struct {
		args    []string
		answer  *setpointv1.CreateTokenResponse
		request *setpointv1.CreateTokenRequest
		note    string
	}{
		{nil, newTokenOfAda(), &setpointv1.CreateTokenRequest{Principal: "user:ada"}, "created " + adasToken + " for user:ada  (never ends)\n"},
		{
			[]string{"--group", "group:ops", "--group", "group:a", "--expires", "720h", "--permission", "write", "--only-session", "run-*",
				"--description", "for the laptop"}, narrowed,
			&setpointv1.CreateTokenRequest{Principal: "user:ada", Groups: []string{"group:ops", "group:a"}, Description: "for the laptop",
				Permissions: []setpointv1.Permission{mayWrite}, Sessions: []string{"run-*"},
				Expiry: &setpointv1.CreateTokenRequest_Ttl{Ttl: durationpb.New(720 * time.Hour)}},
			"created " + adasToken + " for user:ada  (until 2999-01-31 15:04:05; in group:ops, group:a; a server admin; " +
				"narrowed to read, write; narrowed to sessions run-*)\n",
		},
		{
			[]string{"--expires", "2999-01-31T15:04:05Z"}, newTokenOfAda(),
			&setpointv1.CreateTokenRequest{Principal: "user:ada", Expiry: &setpointv1.CreateTokenRequest_ExpiresAt{ExpiresAt: inYear(2999)}},
			"created " + adasToken + " for user:ada  (never ends)\n",
		},
	}
	for _, tt := range tests {
		t.Run(strings.Join(tt.args, " "), func(t *testing.T) {
			t.Parallel()
			p := newPeer(t, always(tt.answer, nil))
			args := append([]string{"token", "create", "user:ada"}, tt.args...)
			want := result{out: adasSecret + "\n", err: tt.note + "its secret, which is not shown again:\n"}
			if diff := cmp.Diff(want, p.setpoint(t, args...), cmp.AllowUnexported(result{})); diff != "" {
				t.Errorf("result (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(proto.Message(tt.request), p.last(t), protocmp.Transform()); diff != "" {
				t.Errorf("request (-want +got):\n%s", diff)
			}
			checkJSON(t, p.setpoint(t, append(args, "-o", "json")...), tt.answer)
		})
	}
}

func TestCreateTokenToAFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p := newPeer(t, always(newTokenOfAda(), nil))
	path := filepath.Join(dir, "ada.token")
	if err := os.WriteFile(path, []byte("an old secret, longer than the new one is in any case, and for all to read"), 0o644); err != nil {
		t.Fatal(err)
	}
	check := func() {
		t.Helper()
		text, err := os.ReadFile(path)
		if err != nil || string(text) != adasSecret+"\n" {
			t.Errorf("the file has %q: %v", text, err)
		}
		if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
			t.Errorf("the file's mode: %v, %v", info.Mode(), err)
		}
		if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
			t.Errorf("the folder has %v: %v", entries, err)
		}
	}
	got := p.setpoint(t, "token", "create", "user:ada", "--out", path)
	want := result{err: "created " + adasToken + " for user:ada  (never ends)\nits secret is in " + path + "\n"}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(result{})); diff != "" {
		t.Errorf("result (-want +got):\n%s", diff)
	}
	check()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	asJSON := p.setpoint(t, "token", "create", "user:ada", "--out", path, "-o", "json")
	shown := newTokenOfAda()
	shown.Secret = ""
	checkJSON(t, asJSON, shown)
	check()
}

// A file that cannot be written is found out before there is a token.
func TestCreateTokenToABadFile(t *testing.T) {
	t.Parallel()
	p := newPeer(t, always(newTokenOfAda(), nil))
	dir := t.TempDir()
	for _, path := range []string{filepath.Join(dir, "missing", "token"), dir} {
		got := p.setpoint(t, "token", "create", "user:ada", "--out", path)
		if got.status != 1 || got.out != "" || !strings.HasPrefix(got.err, "error: FAILED: write file: ") || p.count() != 0 {
			t.Errorf("%s: got %+v in %d calls", path, got, p.count())
		}
	}
	// One that fails in the middle: the token is there, and its id is what there is to tell.
	if _, err := os.Stat("/dev/full"); err == nil {
		got := p.setpoint(t, "token", "create", "user:ada", "--out", "/dev/full")
		if got.status != 1 || !strings.Contains(got.err, adasToken+" was made, and nobody has its secret: revoke it") ||
			strings.Contains(got.err+got.out, adasSecret) {
			t.Errorf("of a full disk: %+v", got)
		}
	}
	// A server that refuses leaves the file that was there.
	path := filepath.Join(dir, "token")
	if err := os.WriteFile(path, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	refusing := newPeer(t, always(nil, refusal(t, codes.PermissionDenied, "ACCESS_DENIED", "tokens are for server admins")))
	got := refusing.setpoint(t, "token", "create", "user:ada", "--out", path)
	if got.status != 1 || got.err != "error: ACCESS_DENIED: tokens are for server admins\n" {
		t.Errorf("refused: %+v", got)
	}
	if text, err := os.ReadFile(path); err != nil || string(text) != "old" {
		t.Errorf("the file has %q: %v", text, err)
	}
}

// A lost answer is not asked for again: that would make another token.
func TestCreateTokenOnce(t *testing.T) {
	t.Parallel()
	p := newPeer(t, always(nil, refusal(t, codes.Unavailable, "DATABASE_UNAVAILABLE", "no database")))
	if got := p.setpoint(t, "token", "create", "user:ada"); got.status != 1 || p.count() != 1 {
		t.Errorf("got %+v after %d calls", got, p.count())
	}
}

func TestTokenCommands(t *testing.T) {
	t.Parallel()
	revoked := &setpointv1.Token{TokenId: evesToken, Principal: "user:eve", RevokedAt: at("16:00:00"), RevokedBy: "user:root"}
	tests := []struct {
		args    []string
		answer  proto.Message
		request proto.Message
		out     string
	}{
		{
			args: []string{"token", "list", "--principal", "user:e*", "--all"},
			answer: &setpointv1.ListTokensResponse{Tokens: []*setpointv1.Token{
				{TokenId: adasToken, Principal: "user:ada", CreatedBy: "os:ada@host", CreatedAt: at("15:00:00"), ServerAdmin: true, Description: "first\n"},
				{TokenId: evesToken, Principal: "user:eve", Groups: []string{"group:a", "group:b"}, Permissions: []setpointv1.Permission{mayRead, mayWrite},
					Sessions: []string{"run-*", "x"}, CreatedBy: "user:ada", CreatedAt: at("15:00:00"), ExpiresAt: inYear(2999)},
				{TokenId: evesToken, Principal: "user:eve", ExpiresAt: inYear(2001), CreatedBy: "user:ada", CreatedAt: at("15:00:00")},
				{TokenId: evesToken, Principal: "user:eve", ExpiresAt: inYear(2999), RevokedAt: inYear(2001), CreatedBy: "user:ada", CreatedAt: at("15:00:00")},
			}},
			request: &setpointv1.ListTokensRequest{Principal: "user:e*", IncludeEnded: true, PageSize: 1000},
			out: "TOKEN                           PRINCIPAL  GROUPS            NARROWED TO              SERVER ADMIN  STATUS   EXPIRES              CREATED              BY           DESCRIPTION\n" +
				adasToken + "  user:ada   -                 -                        yes           active   never                2026-11-23 15:00:00  os:ada@host  first\\n\n" +
				evesToken + "  user:eve   group:a, group:b  read, write in run-*, x  -             active   2999-01-31 15:04:05  2026-11-23 15:00:00  user:ada     -\n" +
				evesToken + "  user:eve   -                 -                        -             expired  2001-01-31 15:04:05  2026-11-23 15:00:00  user:ada     -\n" +
				evesToken + "  user:eve   -                 -                        -             revoked  2999-01-31 15:04:05  2026-11-23 15:00:00  user:ada     -\n",
		},
		{
			args:    []string{"token", "revoke", evesToken},
			answer:  revoked,
			request: &setpointv1.RevokeTokenRequest{TokenId: evesToken},
			out:     "revoked " + evesToken + " of user:eve  (2026-11-23 16:00:00, by user:root)\n",
		},
	}
	for _, tt := range tests {
		t.Run(strings.Join(tt.args, " "), func(t *testing.T) {
			t.Parallel()
			p := newPeer(t, always(tt.answer, nil))
			if diff := cmp.Diff(result{out: tt.out}, p.setpoint(t, tt.args...), cmp.AllowUnexported(result{})); diff != "" {
				t.Fatalf("result (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.request, p.last(t), protocmp.Transform()); diff != "" {
				t.Errorf("request (-want +got):\n%s", diff)
			}
			checkJSON(t, p.setpoint(t, append(tt.args, "-o", "json")...), tt.answer)
		})
	}
	p := newPeer(t, always(revoked, nil))
	got := invocation{args: []string{"--addr", p.addr, "token", "revoke", evesToken, adasToken}, screen: screen{in: true, err: true}}.run(t)
	if got.status != 0 || p.count() != 2 || got.err != "" || strings.Count(got.out, "revoked ") != 2 {
		t.Errorf("two, on a terminal: %+v in %d calls", got, p.count())
	}
}

// A secret in the place of an id is not written to where others may read it.
func TestSecretsAreNotEchoed(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{
		{"token", "revoke", adasSecret},
		{"--token", adasSecret + "\x7f", "token", "list"},
		{"--token", adasSecret, "--token-file", "x", "token", "list"},
		{"--token", adasSecret, "--addr", "10.0.0.1:1", "token", "list"},
		{"--token", adasSecret, "--addr", "127.0.0.1:1", "--timeout", "50ms", "token", "list"},
		{"--token-file", "/nonexistent", "token", "list"},
	} {
		got := invocation{args: args}.run(t)
		if got.status == 0 || strings.Contains(got.out+got.err, adasSecret) {
			t.Errorf("%q: got %+v", args, got)
		}
	}
}

func TestOperatorIsAPrincipal(t *testing.T) {
	t.Parallel()
	name := operator()
	if got, err := identity.Parse(name); err != nil || got.Name != name || !strings.HasPrefix(name, "os:") {
		t.Errorf("%q: %v", name, err)
	}
}
