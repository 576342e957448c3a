package service_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgxpool"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/setpointdb/setpoint/client"
	"github.com/setpointdb/setpoint/db"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/server"
	"github.com/setpointdb/setpoint/internal/testkit"
	"github.com/setpointdb/setpoint/service"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// bundle is a server on a database of its own, with a session "s", and a client that does not retry.
type bundle struct {
	*client.Client
	t    *testing.T
	ctx  context.Context
	addr string
	sql  *pgxpool.Pool
	url  string
	log  *logBuffer
	// tokens is the address of a server that tells callers by their tokens, if there is one.
	tokens string
	// first is a revision that a test goes back to.
	first int64
	// lease is one that a test has taken.
	lease *setpointv1.Optimization
	// rule is one that a test has added.
	rule *setpointv1.AccessRule
}

// logBuffer is a log that a test can read while it is written.
type logBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// setup starts a bundle; change may alter the server's configuration.
func setup(t *testing.T, change ...func(*server.Config)) *bundle {
	t.Helper()
	url := testkit.NewDatabase(t)
	b := &bundle{t: t, url: url, sql: testkit.Pool(t, url), log: &logBuffer{}}
	// Long enough for subtests that wait for their turn among all parallel ones.
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	t.Cleanup(cancel)
	b.ctx = ctx
	config := server.Config{
		GRPCAddr: "127.0.0.1:0", Limits: service.DefaultLimits, Database: db.Config{URL: url, MaxConns: 8},
		Log: slog.New(slog.NewTextHandler(b.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	for _, c := range change {
		c(&config)
	}
	s, err := server.Start(ctx, config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Stop(context.Background()) })
	b.addr = s.GRPCAddr()
	b.Client = b.dial()
	b.session("s")
	return b
}

func (b *bundle) dial(options ...client.Option) *client.Client {
	b.t.Helper()
	c, err := client.Dial(b.addr, append([]client.Option{client.WithoutRetry()}, options...)...)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = c.Close() })
	return c
}

func (b *bundle) session(id string) *setpointv1.Session {
	b.t.Helper()
	s, err := b.Sessions.CreateSession(b.ctx, &setpointv1.CreateSessionRequest{SessionId: id})
	if err != nil {
		b.t.Fatal(err)
	}
	return s
}

// allow lets a principal do everything with the variables of a session but administer them, without a trace in the history.
func (b *bundle) allow(session, principal string) {
	b.t.Helper()
	b.exec(`insert into setpoint.access_rules
		(session_id, rule_id, subject, permissions, reach, allows, priority, granted_by, granted_at, revision)
		values ($1, 'rule_' || $2, $2, 15, 15, true, 0, 'user:anonymous', clock_timestamp(), 0)`, session, principal)
}

// integer registers an integer variable at value 0.
func (b *bundle) integer(name string) *setpointv1.Variable {
	b.t.Helper()
	return b.register(&setpointv1.RegisterVariableRequest{
		Name: name, Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Value: client.Integer(0),
	})
}

func (b *bundle) register(req *setpointv1.RegisterVariableRequest) *setpointv1.Variable {
	b.t.Helper()
	req.SessionId = "s"
	v, err := b.Variables.RegisterVariable(b.ctx, req)
	if err != nil {
		b.t.Fatal(err)
	}
	return v
}

func (b *bundle) set(name string, v *setpointv1.Value) *setpointv1.SetVariableResponse {
	b.t.Helper()
	r, err := b.Variables.SetVariable(b.ctx, &setpointv1.SetVariableRequest{SessionId: "s", Variable: name, Value: v})
	if err != nil {
		b.t.Fatal(err)
	}
	return r
}

func (b *bundle) get(name string) *setpointv1.Variable {
	b.t.Helper()
	v, err := b.Variables.GetVariable(b.ctx, &setpointv1.GetVariableRequest{SessionId: "s", Variable: name})
	if err != nil {
		b.t.Fatal(err)
	}
	return v
}

// revision is the session's revision: what tells whether anything was written.
func (b *bundle) revision() int64 {
	b.t.Helper()
	var revision int64
	b.row(&revision, `select revision from setpoint.sessions where session_id = 's'`)
	return revision
}

func (b *bundle) row(target any, sql string, args ...any) {
	b.t.Helper()
	if err := b.sql.QueryRow(b.ctx, sql, args...).Scan(target); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bundle) exec(sql string, args ...any) {
	b.t.Helper()
	if _, err := b.sql.Exec(b.ctx, sql, args...); err != nil {
		b.t.Fatal(err)
	}
}

// wantReason fails the test unless an error has the reason, and returns it.
func wantReason(t *testing.T, err error, reason setpointv1.ErrorReason) *client.Error {
	t.Helper()
	e, ok := errors.AsType[*client.Error](err)
	if !ok || e.Reason != reason {
		t.Fatalf("error %v, want %s", err, reason)
	}
	return e
}

func wantMetadata(t *testing.T, e *client.Error, want map[string]string) {
	t.Helper()
	if diff := cmp.Diff(want, e.Metadata); diff != "" {
		t.Errorf("metadata of %s (-want +got):\n%s", e.Reason, diff)
	}
}

func equal(t *testing.T, what string, want, got any) {
	t.Helper()
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

func jsonNumber(f float64) *setpointv1.Value {
	return &setpointv1.Value{Kind: &setpointv1.Value_Json{Json: structpb.NewNumberValue(f)}}
}

func ptr[T any](v T) *T { return &v }

func names(prefix string, n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprintf("%s%04d", prefix, i)
	}
	return out
}
