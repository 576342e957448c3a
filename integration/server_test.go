package integration

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

const (
	typeBoolean   = setpointv1.VariableType_VARIABLE_TYPE_BOOLEAN
	typeInteger   = setpointv1.VariableType_VARIABLE_TYPE_INTEGER
	typeFloat     = setpointv1.VariableType_VARIABLE_TYPE_FLOAT
	typeString    = setpointv1.VariableType_VARIABLE_TYPE_STRING
	typeChoice    = setpointv1.VariableType_VARIABLE_TYPE_CHOICE
	typeModule    = setpointv1.VariableType_VARIABLE_TYPE_MODULE
	typeEmbedding = setpointv1.VariableType_VARIABLE_TYPE_EMBEDDING
	typeTensor    = setpointv1.VariableType_VARIABLE_TYPE_TENSOR
	typeJSON      = setpointv1.VariableType_VARIABLE_TYPE_JSON
)

// server is a setpoint that serves.
type server struct {
	*process
	grpc, http string // addresses
}

// serve runs a server on a database and returns when it listens; its flags come after those that every test wants.
func serve(t *testing.T, databaseURL string, flags ...string) *server {
	t.Helper()
	args := []string{"serve", "--auth", "none", "--grpc-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0",
		"--database-url", databaseFile(t, databaseURL)}
	return listening(t, start(t, nil, append(args, flags...)...))
}

// withParameter adds a parameter to a database's URL.
func withParameter(url, parameter string) string {
	if strings.Contains(url, "?") {
		return url + "&" + parameter
	}
	return url + "?" + parameter
}

// listening waits until the process serves, and finds out where.
func listening(t *testing.T, p *process) *server {
	t.Helper()
	found := p.await(t, p.log, `msg=serving grpc=(\S+) http=(\S+)`)
	return &server{process: p, grpc: found[1], http: found[2]}
}

// ready is serve that waits until the server has its database.
func ready(t *testing.T, databaseURL string, flags ...string) *server {
	t.Helper()
	s := serve(t, databaseURL, flags...)
	awaitHealth(t, dial(t, s), healthv1.HealthCheckResponse_SERVING)
	return s
}

// dial connects to a server for the length of the test.
func dial(t *testing.T, s *server, options ...client.Option) *client.Client {
	t.Helper()
	c, err := client.Dial(s.grpc, options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// awaitHealth returns when the health service tells the status; it need not be asked again and again.
func awaitHealth(t *testing.T, c *client.Client, want healthv1.HealthCheckResponse_ServingStatus) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	watch, err := healthv1.NewHealthClient(c.Conn()).Watch(ctx, &healthv1.HealthCheckRequest{})
	for err == nil {
		var answer *healthv1.HealthCheckResponse
		if answer, err = watch.Recv(); err == nil && answer.GetStatus() == want {
			return
		}
	}
	t.Fatalf("wait for health %v: %v", want, err)
}

// probe asks the HTTP port.
func probe(t *testing.T, s *server, path string) (int, string) {
	t.Helper()
	web := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
	answer, err := web.Get("http://" + s.http + path)
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

// newSession opens a session without an end.
func newSession(t *testing.T, c *client.Client, id string) *setpointv1.Session {
	t.Helper()
	return newSessionFor(t, c, id, 0)
}

func newSessionFor(t *testing.T, c *client.Client, id string, ttl time.Duration) *setpointv1.Session {
	t.Helper()
	session, err := c.Sessions.CreateSession(t.Context(),
		&setpointv1.CreateSessionRequest{SessionId: id, Ttl: durationpb.New(ttl)})
	if err != nil {
		t.Fatalf("create session %s: %v", id, err)
	}
	return session
}

// register adds a variable whose whole history can be seen.
func register(t *testing.T, c *client.Client, session, name string, kind setpointv1.VariableType,
	value *setpointv1.Value) *setpointv1.Variable {
	t.Helper()
	variable, err := c.Variables.RegisterVariable(t.Context(), &setpointv1.RegisterVariableRequest{
		SessionId: session, Name: name, Type: kind, Value: value, HistoryLimit: new(int64)})
	if err != nil {
		t.Fatalf("register %s: %v", name, err)
	}
	return variable
}

func get(t *testing.T, c *client.Client, session, variable string) *setpointv1.Variable {
	t.Helper()
	v, err := c.Variables.GetVariable(t.Context(),
		&setpointv1.GetVariableRequest{SessionId: session, Variable: variable})
	if err != nil {
		t.Fatalf("get %s: %v", variable, err)
	}
	return v
}

func set(t *testing.T, c *client.Client, session, variable string, value *setpointv1.Value) *setpointv1.SetVariableResponse {
	t.Helper()
	answer, err := c.Variables.SetVariable(t.Context(),
		&setpointv1.SetVariableRequest{SessionId: session, Variable: variable, Value: value})
	if err != nil {
		t.Fatalf("set %s: %v", variable, err)
	}
	return answer
}

// refused returns the refusal that a call met, and fails the test if it was not for the reason.
func refused(t *testing.T, doing string, err error, reason error) *client.Error {
	t.Helper()
	var refusal *client.Error
	if !errors.As(err, &refusal) || !errors.Is(err, reason) {
		t.Fatalf("%s: got %v, want %v", doing, err, reason)
	}
	return refusal
}

// number reads a number of a refusal's metadata.
func number(t *testing.T, refusal *client.Error, key string) int64 {
	t.Helper()
	n, err := strconv.ParseInt(refusal.Metadata[key], 10, 64)
	if err != nil {
		t.Errorf("%v: metadata %s: %v", refusal, key, err)
	}
	return n
}

// row is a row of history as SQL has it.
type row struct {
	Revision   int64
	VariableID string
	Name       string
	Change     string
	Version    *int64
	Value      *string
	Reason     string
	ChangedAt  time.Time
}

// history reads a session's whole history in SQL, by revision.
func history(t *testing.T, pool *pgxpool.Pool, session string) []row {
	t.Helper()
	found, err := pool.Query(t.Context(), `select revision, variable_id, name, change, version, value #>> '{}' as value,
		reason, changed_at from setpoint.history where session_id = $1 order by revision`, session)
	if err != nil {
		t.Fatalf("read history: %v", err)
	}
	rows, err := pgx.CollectRows(found, pgx.RowToStructByPos[row])
	if err != nil {
		t.Fatalf("read history: %v", err)
	}
	return rows
}

// checkHistory fails the test unless revisions have no gap and agree with the session's own, versions have none within
// each variable, and time does not run back. It returns the rows.
func checkHistory(t *testing.T, pool *pgxpool.Pool, session string) []row {
	t.Helper()
	rows := history(t, pool, session)
	next := map[string]int64{}
	for i, r := range rows {
		if r.Revision != int64(i)+1 {
			t.Fatalf("revision %d is in the place of %d", r.Revision, i+1)
		}
		if i > 0 && r.ChangedAt.Before(rows[i-1].ChangedAt) {
			t.Errorf("revision %d is of %v, before that of revision %d, %v", r.Revision, r.ChangedAt, i, rows[i-1].ChangedAt)
		}
		if r.Version == nil {
			continue
		}
		if *r.Version != next[r.VariableID] {
			t.Errorf("revision %d: %s has version %d after %d", r.Revision, r.Name, *r.Version, next[r.VariableID]-1)
		}
		next[r.VariableID] = *r.Version + 1
	}
	var revision int64
	err := pool.QueryRow(t.Context(), "select revision from setpoint.sessions where session_id = $1", session).Scan(&revision)
	if err != nil || revision != int64(len(rows)) {
		t.Errorf("the session's revision is %d (%v), and history has %d rows", revision, err, len(rows))
	}
	return rows
}
