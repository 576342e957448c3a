package integration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/testkit"
)

// allow adds a rule, for one variable or, where it names none, for the session.
func allow(t *testing.T, c *client.Client, session, variable, subject string, permissions ...setpointv1.Permission) *setpointv1.AccessRule {
	t.Helper()
	rule, err := c.Access.AddAccessRule(t.Context(), &setpointv1.AddAccessRuleRequest{
		SessionId: session, Variable: variable, Rule: &setpointv1.AccessRuleSpec{Subject: subject, Permissions: permissions}})
	if err != nil {
		t.Fatalf("allow %s: %v", subject, err)
	}
	return rule
}

// tokens are files with tokens, made by the commands that make them.
type tokens struct {
	t   *testing.T
	dir string
	s   *server
}

// newTokens makes the first token, of user:root, in the database, where no server runs.
func newTokens(t *testing.T, url string) *tokens {
	t.Helper()
	k := &tokens{t: t, dir: t.TempDir()}
	got := run(t, command{args: words("token", "create", "user:root", "--bootstrap", "--out", k.file("root"), "--database-url",
		databaseFile(t, url))})
	if got.status != 0 || !strings.Contains(got.stderr+got.stdout, "tok_") {
		t.Fatalf("the first token: %+v", got)
	}
	return k
}

func (k *tokens) file(name string) string { return filepath.Join(k.dir, name) }

// secret is what a token's file has.
func (k *tokens) secret(name string) string {
	k.t.Helper()
	text, err := os.ReadFile(k.file(name))
	if err != nil {
		k.t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

// id is that of a token, which is also in its secret.
func (k *tokens) id(name string) string {
	k.t.Helper()
	return "tok_" + strings.Split(k.secret(name), "_")[1]
}

// create has root make a token.
func (k *tokens) create(name, principal string, flags ...string) {
	k.t.Helper()
	got := k.as("root", k.s, append(words("token", "create", principal, "--out", k.file(name)), flags...)...)
	if got.status != 0 {
		k.t.Fatalf("create a token: %+v", got)
	}
}

// as runs a command with a token, on a server.
func (k *tokens) as(name string, s *server, args ...string) answer {
	k.t.Helper()
	return run(k.t, command{args: args, env: []string{"SETPOINT_ADDR=" + s.grpc, "SETPOINT_SESSION=run-1", "SETPOINT_TOKEN_FILE=" + k.file(name)}})
}

// said fails the test unless a command said so: on standard error, if that is what it ended with.
func (k *tokens) said(got answer, want string) {
	k.t.Helper()
	if text := got.stdout + got.stderr; !regexp.MustCompile(want).MatchString(text) || (got.status != 0) != strings.HasPrefix(got.stderr, "error: ") {
		k.t.Errorf("exit status %d: got %q, want %q", got.status, text, want)
	}
}

// From an empty database to people and programs who may do different things, on two servers, by commands alone. No token is
// in what a server logs, nor in the database.
func TestTokensAndRules(t *testing.T) {
	t.Parallel()
	url := testkit.NewDatabase(t)
	k := newTokens(t, url)
	s, other := serve(t, url, "--auth", "token", "--log-level", "debug"), serve(t, url, "--auth", "token", "--log-level", "debug")
	k.s = s
	if info, err := os.Stat(k.file("root")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the token's file: %v, %v", info, err)
	}
	steps(t, []string{"SETPOINT_ADDR=" + s.grpc}, []step{
		{args: words("var", "list"), status: 1, stderr: `^error: CREDENTIALS_MISSING: `},
		{args: words("--as", "user:root", "token", "list"), status: 1, stderr: `^error: CREDENTIALS_MISSING: `},
	})
	k.create("ada", "user:ada", "--expires", "1h")
	k.create("trainer", "service:trainer", "--group", "group:ml")
	k.create("board", "service:board", "--permission", "read", "--only-session", "run-*")
	k.create("nosy", "service:board", "--only-session", "other-*")

	k.said(k.as("ada", s, "session", "create", "run-1", "--ttl", "0"), `^created session run-1`)
	k.said(k.as("ada", s, "var", "register", "lr", "float", "0.1"), `^lr = 0.1`)
	k.said(k.as("ada", s, "var", "register", "secret", "string", "hush"), `^secret = `)
	k.said(k.as("trainer", other, "var", "get", "lr"), `^error: SESSION_NOT_FOUND: `)
	k.said(k.as("trainer", other, "session", "list"), `^SESSION [^\n]*\n$`)
	k.said(k.as("ada", s, "acl", "allow", "group:ml", "optimize", "--on", "lr"), `^rule_`)
	k.said(k.as("ada", s, "acl", "allow", "service:*", "admin", "--reason", "all programs"), `^rule_`)
	k.said(k.as("ada", s, "acl", "deny", "group:ml", "read", "--on", "secret"), `^rule_`)
	k.said(k.as("trainer", other, "var", "set", "lr", "0.2"), `^lr = 0.2  \(version 1, `)
	k.said(k.as("trainer", other, "var", "get", "secret"), `^error: ACCESS_DENIED: `)
	k.said(k.as("trainer", other, "var", "get", "absent"), `^error: ACCESS_DENIED: `)
	k.said(k.as("trainer", other, "var", "list"), `^NAME [^\n]*\nlr [^\n]*\n$`)
	// What is allowed does not widen a token, and what is not does not come with being an admin of the server's.
	k.said(k.as("board", other, "var", "get", "secret"), `value: +"?hush"?\n`)
	k.said(k.as("board", other, "var", "set", "lr", "0.3"), `^error: ACCESS_DENIED: `)
	k.said(k.as("nosy", other, "var", "get", "lr"), `^error: SESSION_NOT_FOUND: `)
	k.said(k.as("ada", other, "token", "list"), `^error: ACCESS_DENIED: `)
	k.said(k.as("root", other, "var", "set", "lr", "0.4"), `^lr = 0.4`)

	if got := k.as("ada", other, "acl", "audit", "--kind", "rule_added"); strings.Count(got.stdout, "rule_added") != 3 {
		t.Errorf("of three rules the audit has: %+v", got)
	}
	for _, name := range []string{"root", "ada", "trainer", "board", "nosy"} {
		k.wantHidden(testkit.Pool(t, url), name, s, other)
	}
}

// wantHidden fails the test if a token's secret is in a log or in the database.
func (k *tokens) wantHidden(pool *pgxpool.Pool, name string, servers ...*server) {
	k.t.Helper()
	secret := k.secret(name)
	for _, s := range servers {
		if log := s.log.String() + s.out.String(); strings.Contains(log, secret) || strings.Contains(log, secret[strings.LastIndex(secret, "_")+1:]) {
			k.t.Errorf("a server's log has the token of %s", name)
		}
	}
	var found int
	err := pool.QueryRow(k.t.Context(), `select count(*) from setpoint.tokens x
		full join setpoint.audit_events e on e.token_id = x.token_id
		full join setpoint.history h on h.session_id = x.token_id
		where strpos(concat(x, e, h), $1) > 0`, secret[strings.LastIndex(secret, "_")+1:]).Scan(&found)
	if err != nil || found > 0 {
		k.t.Errorf("%d rows have the token of %s: %v", found, name, err)
	}
}

// A rule that is removed binds the next call on every server, a token that is revoked every server within 5 s, streams that
// are open included.
func TestRevocationBindsEveryServer(t *testing.T) {
	t.Parallel()
	const within = 5 * time.Second
	url := testkit.NewDatabase(t)
	k := newTokens(t, url)
	s, other := serve(t, url, "--auth", "token"), serve(t, url, "--auth", "token")
	k.s = s
	k.create("ada", "user:ada")
	k.create("bob", "user:bob")
	owner := dial(t, s, client.WithTokenFile(k.file("ada")))
	bob := dial(t, other, client.WithToken(k.secret("bob")), client.WithoutRetry())
	newSession(t, owner, "run-1")
	register(t, owner, "run-1", "lr", typeInteger, client.Integer(0))
	for i := range int64(10) {
		rule := allow(t, owner, "run-1", "", "user:b*", setpointv1.Permission_PERMISSION_WRITE)
		set(t, bob, "run-1", "lr", client.Integer(i))
		_, err := owner.Access.RemoveAccessRule(t.Context(), &setpointv1.RemoveAccessRuleRequest{SessionId: "run-1", RuleId: rule.GetRuleId()})
		if err != nil {
			t.Fatal(err)
		}
		err = setUnder(t.Context(), bob, "run-1", "lr", i, nil)
		refused(t, "a set after the removal", err, client.ErrSessionNotFound)
	}

	allow(t, owner, "run-1", "", "user:bob", setpointv1.Permission_PERMISSION_OPTIMIZE)
	optimize(t, owner, asks("run-1", "holder", time.Hour, "lr"))
	stream := follows(t.Context(), t, bob, optimize(t, bob, queues("run-1", "waiter", time.Hour, "lr")))
	k.said(k.as("root", s, "token", "revoke", k.id("bob")), `^revoked tok_`)
	revoked := time.Now()
	testkit.Eventually(t, patience, func() error {
		began := time.Now()
		_, err := bob.Variables.GetVariable(t.Context(), &setpointv1.GetVariableRequest{SessionId: "run-1", Variable: "lr"})
		if err == nil && began.Sub(revoked) > within {
			t.Fatalf("the token is taken %v after its revocation", began.Sub(revoked))
		}
		if !errors.Is(err, client.ErrCredentialsInvalid) {
			return fmt.Errorf("a call with a revoked token: got %w, want CREDENTIALS_INVALID", err)
		}
		return nil
	})
	refused(t, "the stream", <-stream, client.ErrCredentialsInvalid)
	if took := time.Since(revoked); took > within+time.Second {
		t.Errorf("the stream ended %v after the revocation", took)
	}
	k.said(k.as("bob", s, "var", "get", "lr"), `^error: CREDENTIALS_INVALID: `)
}

// REST takes the same tokens, in the header.
func TestRESTWithToken(t *testing.T) {
	t.Parallel()
	url := testkit.NewDatabase(t)
	k := newTokens(t, url)
	k.s = serve(t, url, "--auth", "token")
	k.create("ada", "user:ada")
	k.said(k.as("ada", k.s, "session", "create", "run-1"), `^created`)
	k.said(k.as("ada", k.s, "var", "register", "lr", "integer", "7"), `^lr = 7`)
	k.create("eve", "user:eve")
	for _, tt := range []struct {
		path, bearer string
		status       int
		reason       string
	}{
		{"/v1/sessions/run-1/variables/lr", "", http.StatusUnauthorized, "CREDENTIALS_MISSING"},
		{"/v1/sessions/run-1/variables/lr", "setpoint_nonsense", http.StatusUnauthorized, "CREDENTIALS_INVALID"},
		{"/v1/sessions/run-1/variables/lr", k.secret("eve"), http.StatusNotFound, "SESSION_NOT_FOUND"},
		{"/v1/sessions/run-1/variables/lr", k.secret("ada"), http.StatusOK, ""},
		{"/livez", "", http.StatusOK, ""},
		{"/readyz", "", http.StatusOK, ""},
		{"/openapi.json", "", http.StatusOK, ""},
	} {
		status, body := ask(t, http.DefaultTransport, "http://"+k.s.http+tt.path, tt.bearer)
		if status != tt.status || !strings.Contains(body, tt.reason) || tt.bearer != "" && strings.Contains(body, tt.bearer) {
			t.Errorf("%s: got %d, %s; want %d, %s", tt.path, status, body, tt.status, tt.reason)
		}
	}
}

// A denial on one server shows on another, and one that was told of just before its server was told to stop is not lost.
func TestDenialsAreAudited(t *testing.T) {
	t.Parallel()
	url := testkit.NewDatabase(t)
	k := newTokens(t, url)
	s, other := serve(t, url, "--auth", "token"), serve(t, url, "--auth", "token")
	k.s = s
	k.create("ada", "user:ada")
	k.create("eve", "user:eve")
	owner := dial(t, other, client.WithTokenFile(k.file("ada")))
	eve := dial(t, s, client.WithTokenFile(k.file("eve")), client.WithoutRetry())
	newSession(t, owner, "run-1")
	register(t, owner, "run-1", "lr", typeInteger, client.Integer(0))
	refused(t, "a stranger's set", setUnder(t.Context(), eve, "run-1", "lr", 1, nil), client.ErrSessionNotFound)
	testkit.Eventually(t, patience, func() error {
		got := k.as("ada", other, "acl", "audit", "--kind", "access_denied", "-o", "json")
		var page struct {
			Events []struct{ Principal, Permission, Variable, Method string }
		}
		if err := json.Unmarshal([]byte(got.stdout), &page); err != nil {
			t.Fatalf("%+v: %v", got, err)
		}
		want := struct{ Principal, Permission, Variable, Method string }{
			"user:eve", "PERMISSION_WRITE", "lr", "setpoint.v1.VariableService/SetVariable"}
		if len(page.Events) != 1 || page.Events[0] != want {
			return fmt.Errorf("audited: %+v, want %+v", page.Events, want)
		}
		return nil
	})

	const more = 20
	err := together(more, func(i int) error {
		if err := setUnder(t.Context(), eve, "run-1", "lr", int64(i), nil); !errors.Is(err, client.ErrSessionNotFound) {
			return fmt.Errorf("a stranger's set: %w", err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	s.stop(t)
	var denials int
	err = testkit.Pool(t, url).QueryRow(t.Context(), `select count(*) from setpoint.audit_events
		where session_id = 'run-1' and kind = 'access_denied' and principal = 'user:eve'`).Scan(&denials)
	if err != nil || denials != more+1 {
		t.Errorf("%d of %d denials are audited (%v)", denials, more+1, err)
	}
}

// ruleLoad adds and removes rules until its server is gone, and keeps what it was told of.
type ruleLoad struct {
	mu             sync.Mutex
	added, removed map[string]bool
	enough         chan struct{}
}

// run adds rules, and removes every second one.
func (l *ruleLoad) run(ctx context.Context, c *client.Client, w, most int) {
	for n := range most {
		rule, err := c.Access.AddAccessRule(ctx, &setpointv1.AddAccessRuleRequest{
			SessionId: "run-1", Rule: mayRead(fmt.Sprintf("user:w%d-%d", w, n))})
		if err != nil {
			return
		}
		l.note(l.added, rule.GetRuleId())
		if n%2 == 0 {
			continue
		}
		_, err = c.Access.RemoveAccessRule(ctx, &setpointv1.RemoveAccessRuleRequest{SessionId: "run-1", RuleId: rule.GetRuleId()})
		if err != nil {
			return
		}
		l.note(l.removed, rule.GetRuleId())
	}
}

func (l *ruleLoad) note(where map[string]bool, id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	where[id] = true
	if len(l.added) == 100 && l.enough != nil {
		close(l.enough)
		l.enough = nil
	}
}

// A server that is killed takes no change of a rule with it that it has acknowledged, nor leaves a half of one: rules, history
// and audit tell the same.
func TestKilledServerKeepsRules(t *testing.T) {
	t.Parallel()
	const writers, most = 8, 1000
	url := testkit.NewDatabase(t)
	doomed, other := serve(t, url), dial(t, serve(t, url))
	newSession(t, other, "run-1")
	l := &ruleLoad{added: map[string]bool{}, removed: map[string]bool{}, enough: make(chan struct{})}
	enough, c := l.enough, dial(t, doomed, client.WithoutRetry())
	var all sync.WaitGroup
	for w := range writers {
		all.Go(func() { l.run(t.Context(), c, w, most) })
	}
	<-enough
	doomed.kill(t)
	all.Wait()

	there := map[string]bool{}
	for token := ""; ; {
		page, err := other.Access.ListAccessRules(t.Context(), &setpointv1.ListAccessRulesRequest{SessionId: "run-1", PageToken: token})
		if err != nil {
			t.Fatal(err)
		}
		for _, rule := range page.GetRules() {
			there[rule.GetRuleId()] = true
		}
		if token = page.GetNextPageToken(); token == "" {
			break
		}
	}
	lost := 0
	for id := range l.added {
		switch {
		case l.removed[id] && there[id]:
			t.Errorf("%s was removed, and is there", id)
		case !l.removed[id] && !there[id]:
			lost++ // Unless its removal was under way.
		}
	}
	unknown := 0
	for id := range there {
		if !l.added[id] {
			unknown++ // Its acknowledgment was under way.
		}
	}
	if lost+unknown > writers {
		t.Errorf("%d rules are gone and %d are there that nobody was told of: %d calls were under way", lost, unknown, writers)
	}
	pool := testkit.Pool(t, url)
	told := changesOfRules(t, pool, `select change || ' ' || (access_rule->>'rule_id') from setpoint.history where access_rule is not null`)
	audited := changesOfRules(t, pool, `select 'access_' || kind || ' ' || (access_rule->>'rule_id') from setpoint.audit_events
		where kind like 'rule_%'`)
	if !slices.Equal(told, audited) {
		t.Errorf("history has %d changes of rules, the audit %d, and not the same", len(told), len(audited))
	}
	var adds int
	for _, change := range told {
		if strings.HasPrefix(change, "access_rule_added ") {
			adds++
		}
	}
	if removes := len(told) - adds; adds-removes != len(there) {
		t.Errorf("%d rules were added and %d removed, and %d are there", adds, removes, len(there))
	}
	checkHistory(t, pool, "run-1")
}

func changesOfRules(t *testing.T, pool *pgxpool.Pool, sql string) []string {
	t.Helper()
	var found []string
	if err := pool.QueryRow(t.Context(), `select coalesce(array_agg(x order by x), '{}') from (`+sql+`) r(x)`).Scan(&found); err != nil {
		t.Fatal(err)
	}
	return found
}

// Nobody serves everybody by accident.
func TestServeIsNotOpenByAccident(t *testing.T) {
	t.Parallel()
	url := testkit.NewDatabase(t)
	file := databaseFile(t, url)
	on := func(args ...string) []string { return append(words("serve", "--database-url", file), args...) }
	steps(t, nil, []step{
		{args: on(), status: 2, stderr: `^error: USAGE: --auth is required`},
		{args: on("--auth", "none", "--grpc-addr", "0.0.0.0:0", "--http-addr", ""), status: 2,
			stderr: `^error: USAGE: --auth none lets everybody .* or add --insecure`},
		{args: on("--auth", "none", "--grpc-addr", "127.0.0.1:0", "--http-addr", ":0"), status: 2, stderr: `^error: USAGE: --auth none`},
		{args: on("--auth", "token", "--grpc-addr", "[::]:0", "--http-addr", ""), status: 2, stderr: `^error: USAGE: without --tls-cert`},
		{args: on("--auth", "oidc"), status: 2, stderr: `^error: USAGE: --auth oidc takes --oidc-issuer`},
		{args: on("--auth", "none,token"), status: 2, stderr: `^error: USAGE: --auth `},
	})
	s := serve(t, url, "--auth", "none", "--grpc-addr", "0.0.0.0:0", "--insecure")
	newSession(t, dial(t, &server{grpc: "127.0.0.1:" + s.grpc[strings.LastIndex(s.grpc, ":")+1:]}), "open")
}

// ask gets a page, with a bearer token if there is one.
func ask(t *testing.T, through http.RoundTripper, url, bearer string) (int, string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	if bearer != "" {
		request.Header.Set("Authorization", "Bearer "+bearer)
	}
	return page(t, through, request)
}
