package integration

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/testkit"
)

const (
	serving    = healthv1.HealthCheckResponse_SERVING
	notServing = healthv1.HealthCheckResponse_NOT_SERVING
)

// checkUnavailable fails the test unless reading and writing are refused because the database is away: by the server, long
// before the caller gives up.
func checkUnavailable(t *testing.T, s *server) {
	t.Helper()
	c := dial(t, s, client.WithoutRetry())
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	errs := make([]error, 4)
	calls := []func() error{
		func() error {
			_, err := c.Variables.GetVariable(ctx, &setpointv1.GetVariableRequest{SessionId: "away", Variable: "var_a"})
			return err
		},
		func() error {
			_, err := c.Variables.SetVariable(ctx, &setpointv1.SetVariableRequest{
				SessionId: "away", Variable: "var_a", Value: client.Integer(1), RequestId: "while-away"})
			return err
		},
		func() error {
			_, err := c.Sessions.CreateSession(ctx, &setpointv1.CreateSessionRequest{SessionId: "while-away"})
			return err
		},
		func() error {
			_, err := c.History.ListHistory(ctx, &setpointv1.ListHistoryRequest{SessionId: "away"})
			return err
		},
	}
	_ = together(len(calls), func(i int) error {
		errs[i] = calls[i]()
		return nil
	})
	for i, doing := range []string{"get", "set", "create session", "list history"} {
		refusal := refused(t, doing, errs[i], client.ErrDatabaseUnavailable)
		if refusal.Code != codes.Unavailable || refusal.RetryAfter <= 0 {
			t.Errorf("%s: got code %v, to be tried again after %v; want %v, after a while",
				doing, refusal.Code, refusal.RetryAfter, codes.Unavailable)
		}
	}
}

// checkHealth compares what the three ways to ask say, one of them by waiting until it does.
func checkHealth(t *testing.T, s *server, want healthv1.HealthCheckResponse_ServingStatus) {
	t.Helper()
	awaitHealth(t, dial(t, s), want)
	wantReady := http.StatusServiceUnavailable
	if want == serving {
		wantReady = http.StatusOK
	}
	if code, _ := probe(t, s, "/readyz"); code != wantReady {
		t.Errorf("/readyz: got %d, want %d", code, wantReady)
	}
	if code, _ := probe(t, s, "/livez"); code != http.StatusOK {
		t.Errorf("/livez: got %d, want %d", code, http.StatusOK)
	}
}

// checkBack fails the test unless the server works again. A write whose outcome nobody knew is sent again under its
// request id, and is then there once.
func checkBack(t *testing.T, s *server, url string) {
	t.Helper()
	checkHealth(t, s, serving)
	c := dial(t, s)
	answer, err := c.Variables.SetVariable(t.Context(), &setpointv1.SetVariableRequest{
		SessionId: "away", Variable: "var_a", Value: client.Integer(1), RequestId: "while-away"})
	if err != nil || answer.GetVersion() != 1 {
		t.Errorf("the write, sent again: got %v, %v, want version 1", answer, err)
	}
	if v := get(t, c, "away", "var_a"); v.GetVersion() != 1 || v.GetValue().GetInteger() != 1 {
		t.Errorf("the variable: got %v at version %d, want 1 at 1", v.GetValue(), v.GetVersion())
	}
	if rows := checkHistory(t, testkit.Pool(t, url), "away"); len(rows) != 2 {
		t.Errorf("history has %d rows, want those of the registration and of one set", len(rows))
	}
}

func TestDatabaseGoesAndComesBack(t *testing.T) {
	t.Parallel()
	for name, away := range map[string]func(*testkit.Proxy){
		"cut":       func(p *testkit.Proxy) { p.Cut() },
		"blackhole": func(p *testkit.Proxy) { p.Blackhole() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := testkit.NewDatabase(t)
			through, proxy := testkit.NewProxy(t, url)
			s := ready(t, through, "--database-timeout", "2s")
			c := dial(t, s)
			newSession(t, c, "away")
			register(t, c, "away", "var_a", typeInteger, client.Integer(0))
			checkHealth(t, s, serving)

			away(proxy)
			checkUnavailable(t, s)
			checkHealth(t, s, notServing)
			checkUnavailable(t, s)
			proxy.Restore()
			checkBack(t, s, url)
			s.stop(t)
		})
	}
}

func TestServerStartsBeforeItsDatabase(t *testing.T) {
	t.Parallel()
	url := testkit.NewDatabase(t)
	first := dial(t, serve(t, url))
	newSession(t, first, "away")
	register(t, first, "away", "var_a", typeInteger, client.Integer(0))

	through, proxy := testkit.NewProxy(t, url)
	proxy.Cut()
	s := serve(t, through, "--database-timeout", "2s")
	s.await(t, s.log, `level=WARN msg="the database cannot be reached yet"`)
	checkHealth(t, s, notServing)
	checkUnavailable(t, s)
	proxy.Restore()
	checkBack(t, s, url)
}

// Until a server has reached its database it does not claim to be ready for anything.
func TestServerIsNotReadyBeforeItsDatabase(t *testing.T) {
	t.Parallel()
	through, proxy := testkit.NewProxy(t, testkit.NewDatabase(t))
	proxy.Blackhole()
	// The server's own first attempts go on until long after the test.
	s := serve(t, withParameter(through, "connect_timeout=1"), "--database-timeout", "5m")
	if code, _ := probe(t, s, "/readyz"); code != http.StatusServiceUnavailable {
		t.Errorf("/readyz: got %d, want %d", code, http.StatusServiceUnavailable)
	}
	health := healthv1.NewHealthClient(dial(t, s, client.WithoutRetry()).Conn())
	for _, service := range append(services, "") {
		answer, err := health.Check(t.Context(), &healthv1.HealthCheckRequest{Service: service})
		if err != nil || answer.GetStatus() != notServing {
			t.Errorf("health of %q: got %v, %v, want %v", service, answer.GetStatus(), err, notServing)
		}
	}
	// It stops in order nevertheless.
	s.stop(t)
}

// A server that was cut off does not hold up the others on its database.
func TestServerCutOffHoldsNobodyUp(t *testing.T) {
	t.Parallel()
	url := testkit.NewDatabase(t)
	through, proxy := testkit.NewProxy(t, url)
	lost, other := ready(t, through, "--database-timeout", "2s"), ready(t, url)
	c := dial(t, other)
	newSession(t, c, "away")
	register(t, c, "away", "var_a", typeInteger, client.Integer(0))
	register(t, c, "away", "var_b", typeInteger, client.Integer(0))
	of, there := startLoad(t.Context(), dial(t, lost, stubborn...), "away", 50, 100), dial(t, other)
	of.await(t, 50)
	proxy.Blackhole()
	checkUnavailable(t, lost)
	set(t, there, "away", "var_a", client.Integer(-1))
	proxy.Restore()
	of.await(t, 100)
	of.finish(t, url)
}

// Writers that wait for one another learn that the database is gone when its time limit passes, not each a limit later
// than the one before: the last would be told after minutes, or not before it gave up.
func TestEveryWriterLearnsThatTheDatabaseIsGone(t *testing.T) {
	t.Parallel()
	const writers = 64
	through, proxy := testkit.NewProxy(t, testkit.NewDatabase(t))
	s := ready(t, through, "--database-timeout", "1s")
	c := dial(t, s, client.WithoutRetry())
	newSession(t, c, "away")
	register(t, c, "away", "var_a", typeInteger, client.Integer(0))
	set(t, c, "away", "var_a", client.Integer(0))

	proxy.Blackhole()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	err := together(writers, func(w int) error {
		_, err := c.Variables.SetVariable(ctx, &setpointv1.SetVariableRequest{
			SessionId: "away", Variable: "var_a", Value: client.Integer(int64(w))})
		if !errors.Is(err, client.ErrDatabaseUnavailable) {
			return fmt.Errorf("writer %d: got %w, want %w", w, err, client.ErrDatabaseUnavailable)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	proxy.Cut() // Else the server, when it stops, waits for connections that nobody closes.
}
