package service_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"google.golang.org/protobuf/proto"

	"github.com/setpointdb/setpoint/client"
	"github.com/setpointdb/setpoint/db"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/identity"
	"github.com/setpointdb/setpoint/internal/telemetry"
	"github.com/setpointdb/setpoint/internal/testkit"
	"github.com/setpointdb/setpoint/service"
)

// desk is a service on a database of its own, called directly: by whomever a test wants, with groups and credentials that no header
// could name. It has a session "s" of user:owner.
type desk struct {
	*service.Service
	t      *testing.T
	ctx    context.Context
	url    string
	sql    *pgxpool.Pool
	log    *logBuffer
	closed bool
}

// close closes the service, once.
func (d *desk) close() {
	if !d.closed {
		d.closed = true
		d.Close(context.Background())
	}
}

const theOwner = "user:owner"

func newDesk(t *testing.T, limits ...func(*service.Limits)) *desk {
	t.Helper()
	d := deskOn(t, testkit.NewDatabase(t), limits...)
	d.begin("s")
	return d
}

// deskOn is a desk on a database that there is, and in which it begins no session.
func deskOn(t *testing.T, url string, limits ...func(*service.Limits)) *desk {
	t.Helper()
	return deskBehind(t, url, url, limits...)
}

// deskBehind is deskOn whose service reaches the database by another way than the test does.
func deskBehind(t *testing.T, url, through string, limits ...func(*service.Limits)) *desk {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute) // As in setup.
	t.Cleanup(cancel)
	database, err := db.Open(ctx, db.Config{URL: through, MaxConns: 4})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(database.Close)
	d := &desk{t: t, ctx: ctx, url: url, sql: testkit.Pool(t, url), log: &logBuffer{}}
	events, err := telemetry.New(slog.New(slog.NewJSONHandler(d.log, &slog.HandlerOptions{Level: slog.LevelDebug})), nil)
	if err != nil {
		t.Fatal(err)
	}
	bounds := service.DefaultLimits
	for _, change := range limits {
		change(&bounds)
	}
	d.Service = service.New(database, bounds, events)
	t.Cleanup(func() { d.close() })
	return d
}

// as is a context in which somebody calls; the groups are the caller's.
func (d *desk) as(name string, groups ...string) context.Context {
	return identity.NewContext(d.ctx, identity.Principal{Name: name, Groups: groups})
}

func (d *desk) owner() context.Context { return d.as(theOwner) }

// admin is a server admin, with credentials that are narrowed by the scope.
func (d *desk) admin(scope identity.Scope) context.Context {
	return identity.NewContext(d.ctx, identity.Principal{Name: "user:root", Admin: true, Scope: scope})
}

func (d *desk) begin(session string) {
	d.t.Helper()
	_, err := d.CreateSession(d.owner(), &setpointv1.CreateSessionRequest{SessionId: session})
	d.must(err)
}

func (d *desk) must(err error) {
	d.t.Helper()
	if err != nil {
		d.t.Fatal(err)
	}
}

// variable registers an integer and returns its id.
func (d *desk) variable(name string) string {
	d.t.Helper()
	v, err := d.RegisterVariable(d.owner(), &setpointv1.RegisterVariableRequest{
		SessionId: "s", Name: name, Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Value: client.Integer(0),
	})
	d.must(err)
	return v.GetVariableId()
}

// permit has the owner add a rule; an empty variable is all of the session.
func (d *desk) permit(variable, subject string, change ...func(*setpointv1.AccessRuleSpec)) *setpointv1.AccessRule {
	d.t.Helper()
	rule, err := d.AddAccessRule(d.owner(), &setpointv1.AddAccessRuleRequest{
		SessionId: "s", Variable: variable, Rule: spec(subject, change...),
	})
	d.must(err)
	return rule
}

// spec allows a subject to read, unless it is changed.
func spec(subject string, change ...func(*setpointv1.AccessRuleSpec)) *setpointv1.AccessRuleSpec {
	s := &setpointv1.AccessRuleSpec{Subject: subject, Permissions: []setpointv1.Permission{setpointv1.Permission_PERMISSION_READ}}
	for _, c := range change {
		c(s)
	}
	return s
}

func to(permissions ...setpointv1.Permission) func(*setpointv1.AccessRuleSpec) {
	return func(s *setpointv1.AccessRuleSpec) { s.Permissions = permissions }
}

func priority(p int32) func(*setpointv1.AccessRuleSpec) {
	return func(s *setpointv1.AccessRuleSpec) { s.Priority = p }
}

func deny(s *setpointv1.AccessRuleSpec) { s.Effect = setpointv1.AccessEffect_ACCESS_EFFECT_DENY }

const (
	mayRead     = setpointv1.Permission_PERMISSION_READ
	mayWrite    = setpointv1.Permission_PERMISSION_WRITE
	mayObserve  = setpointv1.Permission_PERMISSION_OBSERVE
	mayOptimize = setpointv1.Permission_PERMISSION_OPTIMIZE
	mayAdmin    = setpointv1.Permission_PERMISSION_ADMIN
)

func (d *desk) number(sql string, args ...any) int64 {
	d.t.Helper()
	var n int64
	d.must(d.sql.QueryRow(d.ctx, sql, args...).Scan(&n))
	return n
}

func (d *desk) exec(sql string, args ...any) {
	d.t.Helper()
	_, err := d.sql.Exec(d.ctx, sql, args...)
	d.must(err)
}

func (d *desk) texts(sql string, args ...any) []string {
	d.t.Helper()
	rows, err := d.sql.Query(d.ctx, sql, args...)
	d.must(err)
	defer rows.Close()
	var out []string
	for rows.Next() {
		var text string
		d.must(rows.Scan(&text))
		out = append(out, text)
	}
	d.must(rows.Err())
	return out
}

// traces counts what a change leaves behind: rules, history, audit events and tokens.
func (d *desk) traces() int64 {
	d.t.Helper()
	return d.number(`select (select count(*) from setpoint.access_rules) + (select count(*) from setpoint.history)
		+ (select count(*) from setpoint.audit_events) + (select count(*) from setpoint.tokens)
		+ (select sum(revision) from setpoint.sessions)`)
}

// events are the log's lines of one event.
func (d *desk) events(name string) []map[string]any {
	d.t.Helper()
	var out []map[string]any
	for decoder := json.NewDecoder(bytes.NewBufferString(d.log.String())); decoder.More(); {
		var line map[string]any
		d.must(decoder.Decode(&line))
		if line["msg"] == name {
			out = append(out, line)
		}
	}
	return out
}

// refused wants a refusal of the service, which no interceptor has turned into a status.
func refused(t *testing.T, err error, reason setpointv1.ErrorReason) *service.Error {
	t.Helper()
	e, ok := errors.AsType[*service.Error](err)
	if !ok || e.Reason != reason {
		t.Fatalf("error %v, want %s", err, reason)
	}
	return e
}

// answered is what a call came to: OK, or the reason of its refusal.
func answered(t *testing.T, err error) string {
	t.Helper()
	if err == nil {
		return "OK"
	}
	e, ok := errors.AsType[*service.Error](err)
	if !ok {
		t.Fatalf("error %v, which is no refusal", err)
	}
	return e.Reason.String()
}

// call makes a call as a server does: it is judged when it has ended.
func call[Q, A proto.Message](
	ctx context.Context, d *desk, path string, rpc func(context.Context, Q) (A, error), req Q,
) (A, error) {
	began := time.Now()
	answer, err := rpc(ctx, req)
	d.Judged(ctx, path, req, answer, err, time.Since(began))
	return answer, err
}

// ids are the ids of rules.
func ids(rules []*setpointv1.AccessRule) []string {
	var out []string
	for _, r := range rules {
		out = append(out, r.GetRuleId())
	}
	return out
}

func join(texts ...string) string { return strings.Join(texts, " ") }
