package server

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	"github.com/setpointdb/setpoint/db"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/authenticate"
	"github.com/setpointdb/setpoint/internal/identity"
	"github.com/setpointdb/setpoint/internal/testkit"
	"github.com/setpointdb/setpoint/service"
)

// guardedCaller calls a server that takes tokens.
type guardedCaller struct {
	*caller
	database string
	log      *lockedText
}

func startGuarded(t *testing.T, change ...func(*Config)) *guardedCaller {
	t.Helper()
	g := &guardedCaller{database: testkit.NewDatabase(t), log: &lockedText{}}
	g.caller = startREST(t, append([]func(*Config){func(config *Config) {
		config.Database.URL, config.Metrics = g.database, true
		config.Log = slog.New(slog.NewTextHandler(g.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
		config.Authentication.Modes = []authenticate.Mode{authenticate.Token}
	}}, change...)...)
	return g
}

// token makes one of a principal's, straight in the database.
func (g *guardedCaller) token(principal string) string {
	g.t.Helper()
	id, text, hash, err := identity.NewToken()
	if err != nil {
		g.t.Fatal(err)
	}
	g.insert(id, principal, hash)
	return text
}

func (g *guardedCaller) insert(id, principal string, hash [sha256.Size]byte) {
	g.t.Helper()
	_, err := testkit.Pool(g.t, g.database).Exec(g.t.Context(), `insert into setpoint.tokens
		(token_id, secret_sha256, principal, groups, sessions, description, server_admin, created_by, created_at)
		values ($1, $2, $3, '{}', '{}', '', false, 'user:x', now())`, id, hash[:], principal)
	if err != nil {
		g.t.Fatal(err)
	}
}

func (g *guardedCaller) revoke(text string) {
	g.t.Helper()
	tag, err := testkit.Pool(g.t, g.database).Exec(g.t.Context(),
		"update setpoint.tokens set revoked_at = now(), revoked_by = 'user:x' where token_id = $1", "tok_"+text[9:35])
	if err != nil || tag.RowsAffected() != 1 {
		g.t.Fatalf("%v, %v", tag, err)
	}
}

// bearing returns a context whose calls show a token.
func bearing(ctx context.Context, text string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+text)
}

// wantStatus checks a gRPC error.
func wantStatus(t *testing.T, err error, code codes.Code, reason string) {
	t.Helper()
	if s := status.Convert(err); s.Code() != code || reasonOf(s) != reason {
		t.Errorf("got %v %s, want %v %s", err, reasonOf(s), code, reason)
	}
}

// Both ports ask for the same.
func TestCredentials(t *testing.T) {
	t.Parallel()
	g := startGuarded(t)
	good, revoked := g.token("user:ada"), g.token("user:ada")
	g.revoke(revoked)
	_, unknown, _, err := identity.NewToken()
	if err != nil {
		t.Fatal(err)
	}
	sessions := setpointv1.NewSessionServiceClient(g.dial())
	for name, row := range map[string]struct {
		headers []string
		code    codes.Code
		http    int
		reason  string
	}{
		"none":            {nil, codes.Unauthenticated, 401, "CREDENTIALS_MISSING"},
		"named":           {[]string{identity.Header, "user:ada"}, codes.Unauthenticated, 401, "CREDENTIALS_MISSING"},
		"a ticket":        {[]string{ticketHeader, "x"}, codes.Unauthenticated, 401, "CREDENTIALS_MISSING"},
		"basic":           {[]string{"authorization", "Basic YTpi"}, codes.Unauthenticated, 401, "CREDENTIALS_INVALID"},
		"empty":           {[]string{"authorization", ""}, codes.Unauthenticated, 401, "CREDENTIALS_INVALID"},
		"malformed":       {[]string{"authorization", "Bearer abc"}, codes.Unauthenticated, 401, "CREDENTIALS_INVALID"},
		"unknown":         {[]string{"authorization", "Bearer " + unknown}, codes.Unauthenticated, 401, "CREDENTIALS_INVALID"},
		"revoked":         {[]string{"authorization", "Bearer " + revoked}, codes.Unauthenticated, 401, "CREDENTIALS_INVALID"},
		"twice":           {[]string{"authorization", "Bearer " + good, "authorization", "Bearer " + good}, codes.Unauthenticated, 401, "CREDENTIALS_INVALID"},
		"good":            {[]string{"authorization", "Bearer " + good}, codes.NotFound, 404, "SESSION_NOT_FOUND"},
		"good, lower":     {[]string{"authorization", "bearer  " + good}, codes.NotFound, 404, "SESSION_NOT_FOUND"},
		"good, and named": {[]string{"authorization", "Bearer " + good, identity.Header, "user:x"}, codes.InvalidArgument, 400, "INVALID_REQUEST"},
		"good, a ticket":  {[]string{"authorization", "Bearer " + good, ticketHeader, "x"}, codes.NotFound, 404, "SESSION_NOT_FOUND"},
	} {
		_, err := sessions.GetSession(metadata.AppendToOutgoingContext(t.Context(), row.headers...),
			&setpointv1.GetSessionRequest{SessionId: "s"})
		wantStatus(t, err, row.code, row.reason)
		got := g.call("GET", "/v1/sessions/s", "", row.headers...)
		wantError(t, got, row.http, row.reason)
		if challenge := got.header.Get("WWW-Authenticate"); (challenge == "Bearer") != (row.http == 401) {
			t.Errorf("%s: WWW-Authenticate: %q", name, challenge)
		}
		if t.Failed() {
			t.Fatal(name)
		}
	}
	session, err := sessions.CreateSession(bearing(t.Context(), good), &setpointv1.CreateSessionRequest{SessionId: "grpc"})
	if err != nil || session.GetOwner() != "user:ada" {
		t.Errorf("%v, %v", session, err)
	}
	if got := g.must("POST", "/v1/sessions", `{"session_id": "rest"}`, "Authorization", "Bearer "+good); !strings.Contains(got, `"owner":"user:ada"`) {
		t.Error(got)
	}
	for _, want := range []string{
		"msg=authentication_failed peer=127.0.0.1 method=/setpoint.v1.SessionService/GetSession reason=CREDENTIALS_MISSING",
		"reason=CREDENTIALS_INVALID", "code=Unauthenticated", "by=user:ada",
	} {
		if !strings.Contains(g.log.String(), want) {
			t.Errorf("the log lacks %s", want)
		}
	}
	if strings.Contains(g.log.String(), "peer=invalid") || strings.Contains(g.log.String(), "peer=bufconn") {
		t.Error("a peer is not known")
	}
}

// What needs no credentials, and what looks as if it needed none.
func TestWhatIsOpen(t *testing.T) {
	t.Parallel()
	g := startGuarded(t)
	conn := g.dial()
	health := healthv1.NewHealthClient(conn)
	for _, name := range healthServices {
		if _, err := health.Check(t.Context(), &healthv1.HealthCheckRequest{Service: name}); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	watch, err := health.Watch(t.Context(), &healthv1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := watch.Recv(); err != nil {
		t.Error(err)
	}
	for _, path := range []string{"/livez", "/metrics", "/openapi.json"} {
		response, err := g.client.Get(g.url + path)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, response.Body)
		if _ = response.Body.Close(); response.StatusCode != http.StatusOK {
			t.Errorf("%s: %s", path, response.Status)
		}
	}
	reflected := func(ctx context.Context) error {
		stream, err := reflectionv1.NewServerReflectionClient(conn).ServerReflectionInfo(ctx)
		if err != nil {
			return err
		}
		_ = stream.Send(&reflectionv1.ServerReflectionRequest{ // What became of it is told by Recv.
			MessageRequest: &reflectionv1.ServerReflectionRequest_ListServices{},
		})
		_, err = stream.Recv()
		return err
	}
	wantStatus(t, reflected(t.Context()), codes.Unauthenticated, "CREDENTIALS_MISSING")
	if err := reflected(bearing(t.Context(), g.token("user:ada"))); err != nil {
		t.Error(err)
	}
}

// Nothing of a request is read before it is known whose it is.
func TestBodiesOfStrangersAreNotRead(t *testing.T) {
	t.Parallel()
	g := startGuarded(t)
	for name, body := range map[string]io.Reader{
		"no JSON": strings.NewReader("{"), "endless": &halfBody{asked: make(chan struct{}), rest: make(chan string)},
	} {
		ctx, stop := context.WithTimeout(t.Context(), 30*time.Second)
		defer stop()
		req, err := http.NewRequestWithContext(ctx, "POST", g.url+"/v1/sessions?x=y", body)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Expect", "100-continue") // The transport sends no body before it is asked for.
		response, err := g.client.Do(req)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if _ = response.Body.Close(); response.StatusCode != http.StatusUnauthorized {
			t.Errorf("%s: %s", name, response.Status)
		}
	}
}

// The connection of a call inside the process is known by its ticket alone, which nobody else can have.
func TestTickets(t *testing.T) {
	t.Parallel()
	g := startGuarded(t)
	inside := setpointv1.NewSessionServiceClient(g.server.rest.conn)
	ctx := bearing(t.Context(), g.token("user:ada"))
	get := func(ctx context.Context) error {
		_, err := inside.GetSession(ctx, &setpointv1.GetSessionRequest{SessionId: "s"})
		return err
	}
	wantStatus(t, get(ctx), codes.Internal, "INTERNAL_ERROR")
	wantStatus(t, get(metadata.AppendToOutgoingContext(ctx, ticketHeader, "x", ticketHeader, "y")), codes.Internal, "INTERNAL_ERROR")
	wantStatus(t, get(metadata.AppendToOutgoingContext(ctx, ticketHeader, "x")), codes.Canceled, "")
	ticket, end := g.server.rest.tickets.give(connection{})
	wantStatus(t, get(metadata.AppendToOutgoingContext(ctx, ticketHeader, ticket)), codes.NotFound, "SESSION_NOT_FOUND")
	end()
	wantStatus(t, get(metadata.AppendToOutgoingContext(ctx, ticketHeader, ticket)), codes.Canceled, "")

	got := make(chan metadata.MD, 1)
	c := insideREST(t, io.Discard, func(ctx context.Context) (any, error) {
		md, _ := metadata.FromIncomingContext(ctx)
		got <- md
		return &setpointv1.Session{}, nil
	})
	c.must("GET", "/v1/sessions/s", "", "Setpoint-Ticket", "forged", "Grpc-Metadata-Setpoint-Ticket", "forged", "X-Forwarded-For", "198.51.100.9")
	if tickets := (<-got).Get(ticketHeader); len(tickets) != 1 || tickets[0] == "forged" {
		t.Errorf("the call has the tickets %q", tickets)
	}
	if n := countTickets(c.server.rest.tickets); n != 0 {
		t.Errorf("%d tickets are left", n)
	}
}

func countTickets(t *tickets) int {
	n := 0
	t.open.Range(func(any, any) bool { n++; return true })
	return n
}

// Guesses are counted whichever port they come to, and whoever has good credentials is served on, known or not.
func TestGuessesAreLimited(t *testing.T) {
	t.Parallel()
	g := startGuarded(t)
	good := g.token("user:ada")
	sessions := setpointv1.NewSessionServiceClient(g.dial())
	get := func(text string) error {
		_, err := sessions.GetSession(bearing(t.Context(), text), &setpointv1.GetSessionRequest{SessionId: "s"})
		return err
	}
	wantStatus(t, get(good), codes.NotFound, "SESSION_NOT_FOUND")
	var limited reply
	testkit.Eventually(t, 30*time.Second, func() error {
		_ = get("guess")
		if limited = g.call("GET", "/v1/sessions/s", "", "Authorization", "Bearer guess", "X-Forwarded-For", "198.51.100.9"); limited.code == 401 {
			return errors.New("not limited yet")
		}
		return nil
	})
	wantError(t, limited, http.StatusTooManyRequests, "OVERLOADED")
	if limited.header.Get("Retry-After") == "" {
		t.Errorf("no time is told: %v", limited.header)
	}
	err := get("guess")
	for status.Code(err) == codes.Unauthenticated { // One more is allowed each second.
		err = get("guess")
	}
	wantStatus(t, err, codes.ResourceExhausted, "OVERLOADED")
	wantStatus(t, get(good), codes.NotFound, "SESSION_NOT_FOUND")
	wantStatus(t, get(g.token("user:bob")), codes.NotFound, "SESSION_NOT_FOUND")
	for _, text := range []string{good, g.token("user:eve")} {
		wantError(t, g.call("GET", "/v1/sessions/s", "", "Authorization", "Bearer "+text), http.StatusNotFound, "SESSION_NOT_FOUND")
	}
	_, unknown, _, err := identity.NewToken()
	if err != nil {
		t.Fatal(err)
	}
	limited = g.call("GET", "/v1/sessions/s", "", "Authorization", "Bearer "+unknown)
	for limited.code == http.StatusUnauthorized { // As above.
		limited = g.call("GET", "/v1/sessions/s", "", "Authorization", "Bearer "+unknown)
	}
	wantError(t, limited, http.StatusTooManyRequests, "OVERLOADED")
	if lines := strings.Count(g.log.String(), "authentication_failed"); lines > 60 {
		t.Errorf("%d lines of the log", lines)
	}
}

// What passes by itself is put as such, and not as credentials on which clients give up.
func TestRefusalsOfCredentials(t *testing.T) {
	t.Parallel()
	for kind, want := range map[authenticate.Kind]setpointv1.ErrorReason{
		authenticate.Missing: setpointv1.ErrorReason_CREDENTIALS_MISSING, authenticate.Invalid: setpointv1.ErrorReason_CREDENTIALS_INVALID,
		authenticate.Limited: setpointv1.ErrorReason_OVERLOADED, authenticate.Busy: setpointv1.ErrorReason_OVERLOADED,
		authenticate.Unavailable: setpointv1.ErrorReason_OVERLOADED, authenticate.Misnamed: setpointv1.ErrorReason_INVALID_REQUEST,
	} {
		if got := refusalOf(&authenticate.Error{Kind: kind, Message: "x"}); got.Reason != want || !strings.Contains(got.Message, "x") {
			t.Errorf("%d: %v %q, want %v", kind, got.Reason, got.Message, want)
		}
	}
}

// Nobody passes for a group, or for nobody.
func TestNamesThatNobodyHas(t *testing.T) {
	t.Parallel()
	c := startREST(t)
	sessions := setpointv1.NewSessionServiceClient(c.dial())
	_, err := sessions.GetSession(metadata.AppendToOutgoingContext(t.Context(), identity.Header, "group:ops"),
		&setpointv1.GetSessionRequest{SessionId: "s"})
	wantStatus(t, err, codes.InvalidArgument, "INVALID_REQUEST")
	wantError(t, c.call("GET", "/v1/sessions/s", "", identity.Header, "group:ops"), http.StatusBadRequest, "INVALID_REQUEST")
	wantError(t, c.call("GET", "/v1/sessions/s", "", identity.Header, "user:anonymous"), http.StatusNotFound, "SESSION_NOT_FOUND")

	g := startGuarded(t)
	wantError(t, g.call("GET", "/v1/sessions/s", "", "Authorization", "Bearer "+g.token("user:anonymous")),
		http.StatusInternalServerError, "INTERNAL_ERROR")
}

// A token that cannot be looked up is neither good nor bad.
func TestTokensWithoutDatabase(t *testing.T) {
	t.Parallel()
	c := startREST(t, func(config *Config) {
		config.Database = db.Config{URL: "postgres://nobody@127.0.0.1:1/none"}
		config.Authentication.Modes = []authenticate.Mode{authenticate.Token}
	})
	_, text, _, err := identity.NewToken()
	if err != nil {
		t.Fatal(err)
	}
	wantError(t, c.call("GET", "/v1/sessions/s", "", "Authorization", "Bearer "+text), http.StatusServiceUnavailable, "DATABASE_UNAVAILABLE")
	_, err = setpointv1.NewSessionServiceClient(c.dial()).GetSession(bearing(t.Context(), text), &setpointv1.GetSessionRequest{SessionId: "s"})
	wantStatus(t, err, codes.Unavailable, "DATABASE_UNAVAILABLE")
}

// Open streams end when their token is revoked, of either port, whatever they wait for; those of others go on.
func TestStreamsEndWithTheirCredentials(t *testing.T) {
	t.Parallel()
	g := startGuarded(t)
	owner, lost := g.token("user:ada"), g.token("user:ada")
	header := []string{"Authorization", "Bearer " + owner}
	g.must("POST", "/v1/sessions", `{"session_id": "s"}`, header...)
	g.must("POST", "/v1/sessions/s/variables", `{"name": "a", "type": "VARIABLE_TYPE_INTEGER", "value": {"integer": 1}}`, header...)
	conn := g.dial()
	optimizations := setpointv1.NewOptimizationServiceClient(conn)
	var waiting string
	for range 2 {
		o, err := optimizations.StartOptimization(bearing(t.Context(), owner), &setpointv1.StartOptimizationRequest{
			SessionId: "s", Variables: []string{"a"}, Conflict: setpointv1.ConflictStrategy_CONFLICT_STRATEGY_WAIT,
		})
		if err != nil {
			t.Fatal(err)
		}
		waiting = o.GetOptimizationId()
	}
	await := func(text string) grpc.ServerStreamingClient[setpointv1.Optimization] {
		stream, err := optimizations.AwaitOptimization(bearing(t.Context(), text),
			&setpointv1.AwaitOptimizationRequest{SessionId: "s", OptimizationId: waiting})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err != nil {
			t.Fatal(err)
		}
		return stream
	}
	kept, ended := await(owner), await(lost)
	reflection, err := reflectionv1.NewServerReflectionClient(conn).ServerReflectionInfo(bearing(t.Context(), lost))
	if err != nil {
		t.Fatal(err)
	}
	rest := make(chan string, 1)
	opened := make(chan struct{})
	go func() {
		req, err := http.NewRequestWithContext(t.Context(), "GET", g.url+"/v1/sessions/s/optimizations/"+waiting+":await", nil)
		if err != nil {
			t.Error(err)
			return
		}
		req.Header.Set("Authorization", "Bearer "+lost)
		response, err := g.client.Do(req)
		close(opened)
		if err != nil {
			t.Error(err)
			return
		}
		text, _ := io.ReadAll(response.Body)
		_ = response.Body.Close()
		rest <- string(text)
	}()
	<-opened
	g.revoke(lost)
	revoked := time.Now()
	_, err = ended.Recv()
	wantStatus(t, err, codes.Unauthenticated, "CREDENTIALS_INVALID")
	_, err = reflection.Recv()
	wantStatus(t, err, codes.Unauthenticated, "CREDENTIALS_INVALID")
	if text := <-rest; !strings.Contains(text, "CREDENTIALS_INVALID") {
		t.Errorf("REST: %s", text)
	}
	if took := time.Since(revoked); took > 5*time.Second {
		t.Errorf("it took %s", took)
	}
	// The other one's is there as ever: it is told of the next place in the queue.
	still := make(chan error, 1)
	go func() {
		for {
			o, err := kept.Recv()
			if err != nil || o.GetState() == setpointv1.OptimizationState_OPTIMIZATION_STATE_ACTIVE {
				still <- err
				return
			}
		}
	}()
	list := g.must("GET", "/v1/sessions/s/optimizations?states=OPTIMIZATION_STATE_ACTIVE", "", header...)
	_, holder, _ := strings.Cut(list, `"optimization_id":"`)
	holder, _, _ = strings.Cut(holder, `"`)
	g.must("POST", "/v1/sessions/s/optimizations/"+holder+":stop", `{"force": true, "reason": "over"}`, header...)
	if err := <-still; err != nil && !errors.Is(err, io.EOF) {
		t.Errorf("the other stream: %v", err)
	}
}

// verdicts are what a judge was told.
type verdicts struct {
	mu  sync.Mutex
	all []string
}

func (v *verdicts) Judged(ctx context.Context, method string, req, answer any, err error, took time.Duration) {
	v.mu.Lock()
	defer v.mu.Unlock()
	text := method[strings.LastIndex(method, "/")+1:] + " by " + identity.FromContext(ctx).Name
	switch r := req.(type) {
	case nil:
	case interface{ GetOptimizationId() string }:
		text += " of " + r.GetOptimizationId()[:4]
	}
	if answer != nil {
		text += " answered"
	}
	if refusal, ok := errors.AsType[*service.Error](err); ok {
		text += " " + refusal.Reason.String()
	}
	if took < 0 || took > time.Minute {
		text += " in no time"
	}
	v.all = append(v.all, text)
}

// The judge is told of every call whose caller is known, before the caller is.
func TestJudged(t *testing.T) {
	t.Parallel()
	told := &verdicts{}
	gone := &service.Error{Reason: setpointv1.ErrorReason_SESSION_NOT_FOUND, Message: "gone"}
	s := startJudged(t, &scripted{await: func(stream grpc.ServerStreamingServer[setpointv1.Optimization]) error {
		return errors.Join(stream.Send(&setpointv1.Optimization{}), gone)
	}, get: func() {}}, told)
	ctx := metadata.AppendToOutgoingContext(t.Context(), identity.Header, "user:ada")
	if _, err := s.client.GetOptimization(ctx, &setpointv1.GetOptimizationRequest{SessionId: "s", OptimizationId: awaited}); err != nil {
		t.Error(err)
	}
	if _, err := s.client.GetOptimization(ctx, &setpointv1.GetOptimizationRequest{SessionId: "s", OptimizationId: "opt_"}); err == nil {
		t.Error("a bad id was taken")
	}
	stream, err := s.client.AwaitOptimization(ctx, &setpointv1.AwaitOptimizationRequest{SessionId: "s", OptimizationId: awaited})
	for err == nil {
		_, err = stream.Recv()
	}
	s.call("GET", "/v1/sessions/s/optimizations/"+awaited, "", identity.Header, "user:bob")
	s.call("GET", "/v1/sessions/s/optimizations/"+awaited, "", identity.Header, "bob")
	want := []string{
		"GetOptimization by user:ada of opt_ answered",
		"GetOptimization by user:ada of opt_",
		"AwaitOptimization by user:ada of opt_ SESSION_NOT_FOUND",
		"GetOptimization by user:bob of opt_ answered",
	}
	told.mu.Lock()
	defer told.mu.Unlock()
	if !slices.Equal(told.all, want) {
		t.Errorf("told %q, want %q", told.all, want)
	}
}
