package service_test

import (
	"context"
	"crypto/sha256"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/setpointdb/setpoint/db"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/identity"
	"github.com/setpointdb/setpoint/internal/testkit"
	"github.com/setpointdb/setpoint/service"
)

func (d *desk) token(req *setpointv1.CreateTokenRequest) *setpointv1.CreateTokenResponse {
	d.t.Helper()
	response, err := d.CreateToken(d.admin(identity.Scope{}), req)
	d.must(err)
	return response
}

// A token from its making to its end: what is told of it, what is kept of it, and what is not.
func TestTokenComesAndGoes(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	root := d.admin(identity.Scope{})
	made := d.token(&setpointv1.CreateTokenRequest{
		Principal: "service:trainer-1", Groups: []string{"group:ops", "group:ml"}, Permissions: []setpointv1.Permission{mayOptimize},
		Sessions: []string{"team-*", "x"}, Description: "for the cluster",
		Expiry: &setpointv1.CreateTokenRequest_Ttl{Ttl: durationpb.New(time.Hour)},
	})
	token := made.GetToken()
	id, hash, err := identity.ParseToken(made.GetSecret())
	d.must(err)
	equal(t, "token", &setpointv1.Token{
		TokenId: id, Principal: "service:trainer-1", Groups: []string{"group:ops", "group:ml"},
		Permissions: []setpointv1.Permission{mayRead, mayWrite, mayOptimize}, Sessions: []string{"team-*", "x"},
		Description: "for the cluster", CreatedBy: "user:root", CreatedAt: token.GetCreatedAt(),
		ExpiresAt: timestamppb.New(token.GetCreatedAt().AsTime().Add(time.Hour)),
	}, token)

	record, found, err := d.LookUpToken(d.ctx, id)
	d.must(err)
	if !found || time.Since(record.ReadAt).Abs() > time.Minute {
		t.Errorf("found: %t, read at %v", found, record.ReadAt)
	}
	want := identity.TokenRecord{
		ID: id, SecretSHA256: hash, Principal: "service:trainer-1", Groups: []string{"group:ops", "group:ml"},
		Permissions: identity.Optimize | identity.Write | identity.Read, Sessions: []string{"team-*", "x"},
		ExpiresAt: record.ExpiresAt, ReadAt: record.ReadAt,
	}
	equal(t, "record", want, record)
	if !record.ExpiresAt.Equal(token.GetExpiresAt().AsTime()) {
		t.Errorf("ends at %v, and %v is kept", token.GetExpiresAt().AsTime(), record.ExpiresAt)
	}

	revoke := func() *setpointv1.Token {
		revoked, err := d.RevokeToken(root, &setpointv1.RevokeTokenRequest{TokenId: id})
		d.must(err)
		return revoked
	}
	first := revoke()
	if first.GetRevokedAt() == nil || first.GetRevokedBy() != "user:root" {
		t.Errorf("revoked: %v", first)
	}
	traces := d.traces()
	equal(t, "revoked again", first, revoke())
	equal(t, "what the second time left behind", traces, d.traces())
	record, _, err = d.LookUpToken(d.ctx, id)
	d.must(err)
	equal(t, "revoked", true, record.Revoked)

	const detail = "for service:trainer-1; in group:ops, group:ml; narrowed to read,write,optimize; in the sessions team-*, x"
	equal(t, "audit", []string{
		"|token_created|user:root|" + id + "|setpoint.v1.TokenService/CreateToken|" + detail,
		"|token_revoked|user:root|" + id + "|setpoint.v1.TokenService/RevokeToken|" + detail,
	}, d.texts(`select concat_ws('|', session_id, kind, principal, token_id, method, detail) from setpoint.audit_events order by event_id`))
	if told := len(d.events("token_created")) + len(d.events("token_revoked")); told != 2 {
		t.Errorf("told of %d events", told)
	}
	wantSecretNowhere(t, d, made.GetSecret())
}

// wantSecretNowhere looks for a token's secret where everything is that is kept, and in the log.
func wantSecretNowhere(t *testing.T, d *desk, secret string) {
	t.Helper()
	part := secret[strings.LastIndex(secret, "_")+1:]
	for _, table := range []string{"tokens", "audit_events", "history", "requests"} {
		if n := d.number(`select count(*) from setpoint.`+table+` x where x::text like '%' || $1 || '%'`, part); n > 0 {
			t.Errorf("the secret is in %s", table)
		}
	}
	if strings.Contains(d.log.String(), part) {
		t.Error("the secret is in the log")
	}
}

// A token that is not narrowed and never ends says so by saying nothing.
func TestPlainToken(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	made := d.token(&setpointv1.CreateTokenRequest{Principal: "user:ada"})
	equal(t, "token", &setpointv1.Token{
		TokenId: made.GetToken().GetTokenId(), Principal: "user:ada", CreatedBy: "user:root", CreatedAt: made.GetToken().GetCreatedAt(),
	}, made.GetToken())
	record, found, err := d.LookUpToken(d.ctx, made.GetToken().GetTokenId())
	d.must(err)
	if !found || record.Permissions != 0 || len(record.Sessions)+len(record.Groups) != 0 || !record.ExpiresAt.IsZero() ||
		record.ServerAdmin || record.Revoked {
		t.Errorf("record %+v", record)
	}
	_, found, err = d.LookUpToken(d.ctx, "tok_"+strings.Repeat("0", 26))
	d.must(err)
	equal(t, "found", false, found)
}

// Tokens are for server admins whose credentials are not narrowed.
func TestTokensAreForAdmins(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	id := d.token(&setpointv1.CreateTokenRequest{Principal: "user:ada"}).GetToken().GetTokenId()
	callers := map[string]struct {
		ctx  context.Context
		want string
	}{
		"server admin":              {d.admin(identity.Scope{}), "OK"},
		"narrowed to all":           {d.admin(identity.Scope{Permissions: identity.Admin}), "OK"},
		"narrowed in permissions":   {d.admin(identity.Scope{Permissions: identity.Optimize}), "ACCESS_DENIED"},
		"narrowed in sessions":      {d.admin(identity.Scope{Sessions: []string{"*"}}), "ACCESS_DENIED"},
		"the owner of some session": {d.owner(), "ACCESS_DENIED"},
		"nobody":                    {d.ctx, "ACCESS_DENIED"},
	}
	for name, c := range callers {
		before := d.traces()
		_, create := d.CreateToken(c.ctx, &setpointv1.CreateTokenRequest{Principal: "user:eve"})
		_, list := d.ListTokens(c.ctx, &setpointv1.ListTokensRequest{})
		_, audit := d.ListAuditEvents(c.ctx, &setpointv1.ListAuditEventsRequest{})
		if c.want != "OK" && d.traces() != before {
			t.Errorf("%s: refused, yet it left something behind", name)
		}
		for rpc, err := range map[string]error{"create": create, "list": list, "audit": audit} {
			equal(t, name+", "+rpc, c.want, answered(t, err))
		}
	}
	for name, c := range callers {
		_, err := d.RevokeToken(c.ctx, &setpointv1.RevokeTokenRequest{TokenId: id})
		equal(t, name+", revoke", c.want, answered(t, err))
	}
	_, err := d.CreateToken(d.owner(), &setpointv1.CreateTokenRequest{Principal: "user:eve"})
	equal(t, "metadata", map[string]string{"permission": "admin"}, refused(t, err, setpointv1.ErrorReason_ACCESS_DENIED).Metadata)
}

func TestTokensRefused(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	before := d.traces()
	past := &setpointv1.CreateTokenRequest_ExpiresAt{ExpiresAt: timestamppb.New(time.Now().Add(-time.Second))}
	tests := map[string]struct {
		req  *setpointv1.CreateTokenRequest
		says string
	}{
		"no kind":      {&setpointv1.CreateTokenRequest{Principal: "ada"}, "principal: must be"},
		"a space":      {&setpointv1.CreateTokenRequest{Principal: "user:ada group:root"}, "principal: must be"},
		"a group":      {&setpointv1.CreateTokenRequest{Principal: "group:root"}, "principal: must be a kind other than group"},
		"no group":     {&setpointv1.CreateTokenRequest{Principal: "user:a", Groups: []string{"group:a", "ops"}}, "groups[1]: must be"},
		"another kind": {&setpointv1.CreateTokenRequest{Principal: "user:a", Groups: []string{"user:b"}}, "groups[0]: must begin with group:"},
		"no session":   {&setpointv1.CreateTokenRequest{Principal: "user:a", Sessions: []string{"a*", "b c"}}, "sessions[1]: must be a glob"},
		"over before":  {&setpointv1.CreateTokenRequest{Principal: "user:a", Expiry: past}, "expires_at: must be in the future"},
		"ends at no time": {&setpointv1.CreateTokenRequest{Principal: "user:a", Expiry: &setpointv1.CreateTokenRequest_ExpiresAt{
			ExpiresAt: &timestamppb.Timestamp{Nanos: -1},
		}}, "expires_at: must be a time"},
	}
	for name, test := range tests {
		_, err := d.CreateToken(d.admin(identity.Scope{}), test.req)
		if e := refused(t, err, setpointv1.ErrorReason_INVALID_REQUEST); !strings.Contains(e.Message, test.says) {
			t.Errorf("%s: %v does not say %q", name, e, test.says)
		}
	}
	equal(t, "what is left behind", before, d.traces())
	absent := "tok_" + strings.Repeat("0", 26)
	_, err := d.RevokeToken(d.admin(identity.Scope{}), &setpointv1.RevokeTokenRequest{TokenId: absent})
	equal(t, "metadata", map[string]string{"token_id": absent}, refused(t, err, setpointv1.ErrorReason_TOKEN_NOT_FOUND).Metadata)
	equal(t, "what is left behind", before, d.traces())
}

func TestListTokens(t *testing.T) {
	t.Parallel()
	url := testkit.NewDatabase(t)
	clock := testkit.TakeClock(t, url)
	d := deskOn(t, url)
	root := d.admin(identity.Scope{})
	var all []string
	add := func(req *setpointv1.CreateTokenRequest) string {
		all = append(all, d.token(req).GetToken().GetTokenId())
		return all[len(all)-1]
	}
	adas := []string{add(&setpointv1.CreateTokenRequest{Principal: "user:ada"})}
	ends := add(&setpointv1.CreateTokenRequest{
		Principal: "user:bob", Expiry: &setpointv1.CreateTokenRequest_ExpiresAt{ExpiresAt: timestamppb.New(clock.Now().Add(time.Minute))},
	})
	adas = append(adas, add(&setpointv1.CreateTokenRequest{
		Principal: "user:ada", Expiry: &setpointv1.CreateTokenRequest_Ttl{Ttl: durationpb.New(time.Hour)},
	}))
	revoked := add(&setpointv1.CreateTokenRequest{Principal: "user:bob"})
	_, err := d.RevokeToken(root, &setpointv1.RevokeTokenRequest{TokenId: revoked})
	d.must(err)
	list := func(req *setpointv1.ListTokensRequest) []string {
		var got []string
		for req.PageSize = 1; ; {
			page, err := d.ListTokens(root, req)
			d.must(err)
			for _, token := range page.GetTokens() {
				got = append(got, token.GetTokenId())
			}
			if req.PageToken = page.GetNextPageToken(); req.PageToken == "" {
				return got
			}
		}
	}
	equal(t, "those that count", []string{adas[0], ends, adas[1]}, list(&setpointv1.ListTokensRequest{}))
	clock.Advance(time.Minute)
	equal(t, "later", adas, list(&setpointv1.ListTokensRequest{}))
	equal(t, "all", all, list(&setpointv1.ListTokensRequest{IncludeEnded: true}))
	equal(t, "of one", []string{ends, revoked}, list(&setpointv1.ListTokensRequest{Principal: "user:bob", IncludeEnded: true}))
	equal(t, "of one, that count", 0, len(list(&setpointv1.ListTokensRequest{Principal: "user:bob"})))
	record, _, err := d.LookUpToken(d.ctx, ends)
	d.must(err)
	if record.ReadAt.Before(record.ExpiresAt) {
		t.Errorf("read at %v, which is before its end at %v", record.ReadAt, record.ExpiresAt)
	}
	page, err := d.ListTokens(root, &setpointv1.ListTokensRequest{PageSize: 1})
	d.must(err)
	_, err = d.ListTokens(root, &setpointv1.ListTokensRequest{PageToken: page.GetNextPageToken(), Principal: "user:ada"})
	refused(t, err, setpointv1.ErrorReason_INVALID_REQUEST)
}

// A token that is made against the database is a server admin's, and known to have been made so.
func TestBootstrapToken(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	database, err := db.Open(d.ctx, db.Config{URL: d.url, MaxConns: 1})
	d.must(err)
	defer database.Close()
	made, err := service.BootstrapToken(d.ctx, database, &setpointv1.CreateTokenRequest{Principal: "user:first"}, "user:os/root")
	d.must(err)
	equal(t, "server admin", true, made.GetToken().GetServerAdmin())
	id, hash, err := identity.ParseToken(made.GetSecret())
	d.must(err)
	record, found, err := d.LookUpToken(d.ctx, id)
	d.must(err)
	if !found || !record.ServerAdmin || record.SecretSHA256 != hash || hash == sha256.Sum256(nil) {
		t.Errorf("record %+v", record)
	}
	equal(t, "audit", []string{"token_created|user:os/root||for user:first; server admin"},
		d.texts(`select concat_ws('|', kind, principal, method, detail) from setpoint.audit_events`))
	wantSecretNowhere(t, d, made.GetSecret())
	for name, req := range map[string]*setpointv1.CreateTokenRequest{
		"no kind":            {Principal: "first"},
		"a short life":       {Principal: "user:a", Expiry: &setpointv1.CreateTokenRequest_Ttl{Ttl: durationpb.New(time.Millisecond)}},
		"a permission twice": {Principal: "user:a", Permissions: []setpointv1.Permission{mayRead, mayRead}},
	} {
		_, err := service.BootstrapToken(d.ctx, database, req, "user:os/root")
		equal(t, name, "INVALID_REQUEST", answered(t, err))
	}
}
