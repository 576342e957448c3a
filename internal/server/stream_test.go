package server

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"buf.build/go/protovalidate"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/authenticate"
	"github.com/setpointdb/setpoint/internal/identity"
	"github.com/setpointdb/setpoint/internal/telemetry"
	"github.com/setpointdb/setpoint/service"
)

// await answers one AwaitOptimization, as the test has it.
type await func(grpc.ServerStreamingServer[setpointv1.Optimization]) error

// scripted is an OptimizationService whose streams, and whose GetOptimization, do what the test says.
type scripted struct {
	setpointv1.UnimplementedOptimizationServiceServer
	await await
	get   func()
}

func (s *scripted) AwaitOptimization(_ *setpointv1.AwaitOptimizationRequest,
	stream grpc.ServerStreamingServer[setpointv1.Optimization],
) error {
	return s.await(stream)
}

func (s *scripted) GetOptimization(context.Context, *setpointv1.GetOptimizationRequest) (*setpointv1.Optimization, error) {
	s.get()
	return &setpointv1.Optimization{}, nil
}

// streamed is a server of scripted streams, reached by gRPC and over HTTP, with the interceptors of a real one.
type streamed struct {
	*caller
	client setpointv1.OptimizationServiceClient
	// log is to be read once the calls that write it have ended.
	log *lockedText
	// conns are the connections that HTTP was spoken on.
	conns chan *timedConn
}

const (
	awaited   = "opt_00000000000000000000000000"
	awaitPath = "/v1/sessions/s/optimizations/" + awaited + ":await"
)

func startStreamed(t *testing.T, api *scripted) *streamed {
	t.Helper()
	return startJudged(t, api, nil)
}

func startJudged(t *testing.T, api *scripted, judge judge) *streamed {
	t.Helper()
	log := &lockedText{}
	s := &Server{judge: judge, config: Config{Log: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))}}
	var err error
	if s.exporters, err = newExporters(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	if s.events, err = telemetry.New(s.config.Log, s.exporters.meters); err != nil {
		t.Fatal(err)
	}
	if s.validator, err = protovalidate.New(); err != nil {
		t.Fatal(err)
	}
	known, err := authenticate.New(authenticate.Config{Modes: []authenticate.Mode{authenticate.None}})
	if err != nil {
		t.Fatal(err)
	}
	s.guard = newGuard(known, s.events)
	register := func(r grpc.ServiceRegistrar) { setpointv1.RegisterOptimizationServiceServer(r, api) }
	if s.rest, err = s.newREST(t.Context(), register); err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.rest.serve() }()
	front := httptest.NewUnstartedServer(s.rest)
	conns := make(chan *timedConn, 10)
	front.Listener = &timedListener{front.Listener, conns}
	front.Config.ReadTimeout, front.Config.WriteTimeout = readTimeout, writeTimeout
	front.Start()
	t.Cleanup(func() {
		front.CloseClientConnections()
		front.Close()
		s.rest.close()
		if err := <-served; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			t.Error(err)
		}
	})
	return &streamed{
		caller: &caller{t: t, url: front.URL, client: front.Client(), server: s},
		client: setpointv1.NewOptimizationServiceClient(serveGRPC(t, s.newGRPC(fromTransport), register)), log: log, conns: conns,
	}
}

// serveGRPC serves on a free port until the test ends, and returns a connection.
func serveGRPC(t *testing.T, server *grpc.Server, register func(grpc.ServiceRegistrar)) *grpc.ClientConn {
	t.Helper()
	register(server)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	conn, err := grpc.NewClient(listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		server.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return conn
}

// lockedText is text that is written while it is read.
type lockedText struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lockedText) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lockedText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// timedConn knows until when it may be read and written.
type timedConn struct {
	net.Conn
	mu          sync.Mutex
	read, write time.Time
}

func (c *timedConn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.read = t
	return c.Conn.SetReadDeadline(t)
}

func (c *timedConn) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.write = t
	return c.Conn.SetWriteDeadline(t)
}

// bounded tells whether there is a time until when it may be read, and one until when it may be written.
func (c *timedConn) bounded() (bool, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.read.IsZero(), !c.write.IsZero()
}

type timedListener struct {
	net.Listener
	conns chan<- *timedConn
}

func (l *timedListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	timed := &timedConn{Conn: conn}
	l.conns <- timed
	return timed, nil
}

// A streaming call passes what other calls pass.
func TestStreamInterceptors(t *testing.T) {
	t.Parallel()
	for name, row := range map[string]struct {
		id, principal string
		await         await
		code          codes.Code
		reason        string
		messages      int
		logged        []string
	}{
		"served": {
			id: awaited, principal: "user:ada", messages: 1,
			await: func(stream grpc.ServerStreamingServer[setpointv1.Optimization]) error {
				return stream.Send(&setpointv1.Optimization{
					StartedBy: identity.FromContext(stream.Context()).Name, EndReason: telemetry.Request(stream.Context()),
				})
			},
			logged: []string{"msg=call method=/setpoint.v1.OptimizationService/AwaitOptimization code=OK", "by=user:ada", "request=mine"},
		},
		"refused": {
			id: awaited, principal: "user:ada", code: codes.NotFound, reason: "SESSION_NOT_FOUND",
			await: func(grpc.ServerStreamingServer[setpointv1.Optimization]) error {
				return &service.Error{Reason: setpointv1.ErrorReason_SESSION_NOT_FOUND, Message: "gone"}
			},
			logged: []string{"code=NotFound reason=SESSION_NOT_FOUND by=user:ada"},
		},
		"refused later": {
			id: awaited, principal: "user:ada", code: codes.NotFound, reason: "SESSION_NOT_FOUND", messages: 1,
			await: func(stream grpc.ServerStreamingServer[setpointv1.Optimization]) error {
				sent := stream.Send(&setpointv1.Optimization{StartedBy: "user:ada", EndReason: "mine"})
				return errors.Join(sent, &service.Error{Reason: setpointv1.ErrorReason_SESSION_NOT_FOUND, Message: "gone"})
			},
		},
		"failed": {
			id: awaited, principal: "user:ada", code: codes.Internal, reason: "INTERNAL_ERROR",
			await:  func(grpc.ServerStreamingServer[setpointv1.Optimization]) error { return errors.New("mislaid") },
			logged: []string{"mislaid", "request=mine"},
		},
		"panicked": {
			id: awaited, principal: "user:ada", code: codes.Internal, reason: "INTERNAL_ERROR",
			await:  func(grpc.ServerStreamingServer[setpointv1.Optimization]) error { panic("mislaid") },
			logged: []string{"msg=panic", "value=mislaid", "stream_test.go"},
		},
		"bad message": {
			id: "x", principal: "user:ada", code: codes.InvalidArgument, reason: "INVALID_REQUEST",
			logged: []string{"reason=INVALID_REQUEST by=user:ada"},
		},
		"bad principal": {
			id: awaited, principal: "ada", code: codes.InvalidArgument, reason: "INVALID_REQUEST",
			logged: []string{"reason=INVALID_REQUEST"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if row.await == nil {
				row.await = func(grpc.ServerStreamingServer[setpointv1.Optimization]) error {
					t.Error("the handler was called")
					return nil
				}
			}
			s := startStreamed(t, &scripted{await: row.await})
			ctx := metadata.AppendToOutgoingContext(t.Context(), identity.Header, row.principal, requestHeader, "mine")
			stream, err := s.client.AwaitOptimization(ctx, &setpointv1.AwaitOptimizationRequest{SessionId: "s", OptimizationId: row.id})
			if err != nil {
				t.Fatal(err)
			}
			messages := 0
			for {
				var message *setpointv1.Optimization
				if message, err = stream.Recv(); err != nil {
					break
				}
				messages++
				if message.GetStartedBy() != "user:ada" || message.GetEndReason() != "mine" {
					t.Errorf("the handler saw %v", message)
				}
			}
			if errors.Is(err, io.EOF) {
				err = nil
			}
			st := status.Convert(err)
			if st.Code() != row.code || reasonOf(st) != row.reason || messages != row.messages || strings.Contains(st.Message(), "mislaid") {
				t.Errorf("%d messages, then %v; want %d, then %v %s", messages, st, row.messages, row.code, row.reason)
			}
			header, err := stream.Header()
			if id := header.Get(requestHeader); err != nil || !slices.Equal(id, []string{"mine"}) {
				t.Errorf("the request is called %q, %v", id, err)
			}
			for _, want := range row.logged {
				if !strings.Contains(s.log.String(), want) {
					t.Errorf("the log lacks %q: %s", want, s.log)
				}
			}
			if got := strings.Count(s.log.String(), "msg=call"); got != 1 {
				t.Errorf("recorded %d times: %s", got, s.log)
			}
		})
	}
}

// follow begins to read a stream over HTTP.
func (c *caller) follow(ctx context.Context, path string) *bufio.Scanner {
	c.t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.url+path, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	response, err := c.client.Do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = response.Body.Close() })
	if kind := response.Header.Get("Content-Type"); response.StatusCode != http.StatusOK || kind != "application/x-ndjson" {
		text, err := io.ReadAll(response.Body)
		c.t.Fatalf("%s comes as %s, %s: %s, %v", path, response.Status, kind, text, err)
	}
	return bufio.NewScanner(response.Body)
}

// line is one of a stream.
type line struct {
	Result *struct {
		State    string
		Position int `json:"queue_position"`
	}
	Error json.RawMessage
}

// nextLine reads a line; false if the stream has ended.
func nextLine(t *testing.T, lines *bufio.Scanner) (line, bool) {
	t.Helper()
	if !lines.Scan() {
		return line{}, false
	}
	var l line
	if err := json.Unmarshal(lines.Bytes(), &l); err != nil {
		t.Fatalf("%v: %s", err, lines.Bytes())
	}
	return l, true
}

// Each message is there when it was sent, and the stream has all the time that it takes.
func TestRESTStreamLine(t *testing.T) {
	t.Parallel()
	entered, next := make(chan struct{}, 1), make(chan error)
	s := startStreamed(t, &scripted{
		get: func() { entered <- struct{}{}; <-next },
		await: func(stream grpc.ServerStreamingServer[setpointv1.Optimization]) error {
			entered <- struct{}{}
			for position := int32(3); ; position-- {
				if err := <-next; err != nil {
					return err
				}
				err := stream.Send(&setpointv1.Optimization{
					State: setpointv1.OptimizationState_OPTIMIZATION_STATE_WAITING, QueuePosition: position,
				})
				if err != nil {
					return err
				}
			}
		},
	})
	bounded := make(chan *timedConn, 1)
	go func() {
		conn := <-s.conns
		select {
		case <-entered:
		case <-t.Context().Done():
			return
		}
		if read, write := conn.bounded(); read || write {
			t.Errorf("the stream is bounded: reading %t, writing %t", read, write)
		}
		bounded <- conn
		next <- nil
	}()
	lines := s.follow(t.Context(), awaitPath)
	conn := <-bounded
	for want := 3; want > 0; want-- {
		got, ok := nextLine(t, lines)
		if !ok || got.Result == nil || got.Result.Position != want || got.Result.State != "OPTIMIZATION_STATE_WAITING" {
			t.Errorf("line %+v, want position %d", got.Result, want)
		}
		if want > 1 {
			next <- nil
		}
	}
	next <- &service.Error{Reason: setpointv1.ErrorReason_OPTIMIZATION_ENDED, Message: "over"}
	got, ok := nextLine(t, lines)
	if !ok || got.Result != nil || reasonIn(t, string(got.Error)) != "OPTIMIZATION_ENDED" {
		t.Errorf("the last line is %s", got.Error)
	}
	if _, ok := nextLine(t, lines); ok || lines.Err() != nil {
		t.Errorf("there is more, or %v", lines.Err())
	}

	// On the same connection, the next request is bounded as any other.
	answered := make(chan reply)
	go func() { answered <- s.call("GET", "/v1/sessions/s/optimizations/"+awaited, "") }()
	<-entered
	if _, write := conn.bounded(); !write {
		t.Error("writing the answer to the next request is not bounded")
	}
	next <- nil
	if got := <-answered; got.code != http.StatusOK {
		t.Errorf("the next request: %d %s", got.code, got.body)
	}
	select {
	case <-s.conns:
		t.Error("the next request took another connection")
	default:
	}
}

// What is refused before the first message is answered as any other call.
func TestRESTStreamRefused(t *testing.T) {
	t.Parallel()
	for name, row := range map[string]struct {
		err     error
		path    string
		code    int
		reason  string
		message string
	}{
		"by the service": {
			&service.Error{Reason: setpointv1.ErrorReason_OPTIMIZATION_NOT_FOUND, Message: "gone"}, awaitPath, 404, "OPTIMIZATION_NOT_FOUND", "gone",
		},
		"for now":                {&service.Error{Reason: setpointv1.ErrorReason_DATABASE_UNAVAILABLE, Message: "away"}, awaitPath, 503, "DATABASE_UNAVAILABLE", "away"},
		"by a failure":           {errors.New("mislaid"), awaitPath, 500, "INTERNAL_ERROR", `"request_id":"mine"`},
		"while the server stops": {status.Error(codes.Unavailable, "stopping"), awaitPath, 503, "", "stopping"},
		"for its id":             {nil, "/v1/sessions/s/optimizations/opt_1:await", 400, "INVALID_REQUEST", `"field":"optimization_id"`},
		"for its query":          {nil, awaitPath + "?from=1", 400, "INVALID_REQUEST", "there is no parameter from"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := startStreamed(t, &scripted{await: func(grpc.ServerStreamingServer[setpointv1.Optimization]) error { return row.err }})
			got := s.call("GET", row.path, "", "X-Request-Id", "mine")
			wantError(t, got, row.code, row.reason)
			if !strings.Contains(got.body, row.message) || got.header.Get("X-Request-Id") != "mine" {
				t.Errorf("answered %s, which lacks %s, with %v", got.body, row.message, got.header)
			}
			if again := got.header.Get("Retry-After"); (again == "1") != (row.reason == "DATABASE_UNAVAILABLE") {
				t.Errorf("Retry-After: %q", again)
			}
			if failed := strings.Count(s.log.String(), "mislaid"); failed > 1 {
				t.Errorf("logged more than once: %s", s.log)
			}
		})
	}
}

// The call ends when the caller goes away.
func TestRESTStreamCallerGoes(t *testing.T) {
	t.Parallel()
	ended := make(chan error, 1)
	s := startStreamed(t, &scripted{await: func(stream grpc.ServerStreamingServer[setpointv1.Optimization]) error {
		err := stream.Send(&setpointv1.Optimization{})
		<-stream.Context().Done()
		ended <- errors.Join(err, context.Cause(stream.Context()))
		return stream.Context().Err()
	}})
	ctx, leave := context.WithCancel(t.Context())
	lines := s.follow(ctx, awaitPath)
	if _, ok := nextLine(t, lines); !ok {
		t.Fatal(lines.Err())
	}
	leave()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the call ended with %v", err)
	}
}

// slowWriter notes what is asked of it.
type slowWriter struct {
	*httptest.ResponseRecorder
	asked []string
}

func (w *slowWriter) SetWriteDeadline(t time.Time) error {
	bound := "never"
	if left := time.Until(t); left > writeTimeout/2 && left <= writeTimeout {
		bound = "in time"
	} else if !t.IsZero() {
		bound = left.String()
	}
	w.asked = append(w.asked, "write "+bound)
	return nil
}

func (w *slowWriter) Write(p []byte) (int, error) {
	w.asked = append(w.asked, fmt.Sprintf("%q", p))
	return len(p), nil
}

func (w *slowWriter) FlushError() error {
	w.asked = append(w.asked, "flush")
	return nil
}

// A caller that does not read is waited for as long with each line as with any answer, and not at all between lines.
func TestLineWriter(t *testing.T) {
	t.Parallel()
	w := &slowWriter{ResponseRecorder: httptest.NewRecorder()}
	r := &rest{}
	r.stream(func(w http.ResponseWriter, _ *http.Request, _ map[string]string) {
		for _, text := range []string{"a", "b"} {
			_, err := io.WriteString(w, text)
			if err := errors.Join(err, http.NewResponseController(w).Flush()); err != nil {
				t.Error(err)
			}
		}
	}, w, httptest.NewRequest(http.MethodGet, "/", nil), nil)
	want := []string{
		"write never",
		"write in time", `"a"`, "flush", "write never",
		"write in time", `"b"`, "flush", "write never",
		"write in time",
	}
	if diff := cmp.Diff(want, w.asked); diff != "" {
		t.Error(diff)
	}
}

// Who watches the server's health learns that it stops, and does not keep it from stopping.
func TestHealthWatchEnds(t *testing.T) {
	t.Parallel()
	log := &lockedText{}
	c := startREST(t, func(config *Config) {
		config.DrainTimeout = time.Minute
		config.Log = slog.New(slog.NewTextHandler(log, nil))
	})
	client := healthv1.NewHealthClient(c.dial())
	watches := make(map[string]grpc.ServerStreamingClient[healthv1.HealthCheckResponse])
	for _, name := range []string{"", "setpoint.v1.OptimizationService", "nobody"} {
		watch, err := client.Watch(t.Context(), &healthv1.HealthCheckRequest{Service: name})
		if err != nil {
			t.Fatal(err)
		}
		want := healthv1.HealthCheckResponse_SERVING
		if name == "nobody" {
			want = healthv1.HealthCheckResponse_SERVICE_UNKNOWN
		}
		for got := healthv1.HealthCheckResponse_UNKNOWN; got != want; {
			message, err := watch.Recv()
			if err != nil {
				t.Fatal(err)
			}
			got = message.GetStatus()
		}
		watches[name] = watch
	}
	c.stop()
	for name, watch := range watches {
		message, err := watch.Recv()
		if name != "nobody" {
			if err != nil || message.GetStatus() != healthv1.HealthCheckResponse_NOT_SERVING {
				t.Errorf("%q: told %v, %v", name, message, err)
			}
			_, err = watch.Recv()
		}
		if status.Code(err) != codes.Unavailable {
			t.Errorf("%q: ended with %v", name, err)
		}
	}
	if strings.Contains(log.String(), "cut off") {
		t.Errorf("the server waited: %s", log)
	}
}

// Who waits for a lease goes on waiting at another server, and does not keep this one from stopping.
func TestAwaitEndsWithTheServer(t *testing.T) {
	t.Parallel()
	log := &lockedText{}
	c := startREST(t, func(config *Config) {
		config.DrainTimeout = time.Minute
		config.Log = slog.New(slog.NewTextHandler(log, nil))
	})
	c.must("POST", "/v1/sessions", `{"session_id": "s"}`)
	c.must("POST", "/v1/sessions/s/variables", `{"name": "a", "type": "VARIABLE_TYPE_INTEGER", "value": {"integer": 1}}`)
	c.leased("s", `{"variables": ["a"]}`)
	waiting, _ := c.leased("s", `{"variables": ["a"], "conflict": "CONFLICT_STRATEGY_WAIT"}`)

	client := setpointv1.NewOptimizationServiceClient(c.dial())
	stream, err := client.AwaitOptimization(t.Context(), &setpointv1.AwaitOptimizationRequest{SessionId: "s", OptimizationId: waiting})
	if err != nil {
		t.Fatal(err)
	}
	if first, err := stream.Recv(); err != nil || first.GetQueuePosition() != 1 {
		t.Fatalf("first %v, %v", first, err)
	}
	lines := c.follow(t.Context(), "/v1/sessions/s/optimizations/"+waiting+":await")
	first, ok := nextLine(t, lines)
	if !ok || first.Result == nil || first.Result.State != "OPTIMIZATION_STATE_WAITING" || first.Result.Position != 1 {
		t.Fatalf("first line %+v", first)
	}
	c.stop()
	if _, err := stream.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("the call ended with %v", err)
	}
	var failure struct{ Code int }
	last, _ := nextLine(t, lines)
	if err := json.Unmarshal(last.Error, &failure); err != nil || codes.Code(failure.Code) != codes.Unavailable {
		t.Errorf("the last line is %s, %v", last.Error, err)
	}
	if _, ok := nextLine(t, lines); ok || lines.Err() != nil {
		t.Errorf("there is more, or %v", lines.Err())
	}
	if strings.Contains(log.String(), "cut off") {
		t.Errorf("the server waited: %s", log)
	}
}
