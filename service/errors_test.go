package service_test

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/setpointdb/setpoint/client"
	"github.com/setpointdb/setpoint/db"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/server"
	"github.com/setpointdb/setpoint/internal/testkit"
	"github.com/setpointdb/setpoint/service"
)

// reasonCase is how a reason comes about, and the status code that goes with it.
type reasonCase struct {
	code codes.Code
	// err makes an error that the caller of a real server is told.
	err func(b *bundle) error
}

func set(b *bundle, variable string, v *setpointv1.Value) error {
	_, err := b.Variables.SetVariable(b.ctx, &setpointv1.SetVariableRequest{SessionId: "s", Variable: variable, Value: v})
	return err
}

var reasonCases = map[setpointv1.ErrorReason]reasonCase{
	setpointv1.ErrorReason_SESSION_NOT_FOUND: {codes.NotFound, func(b *bundle) error {
		_, err := b.Sessions.GetSession(b.ctx, &setpointv1.GetSessionRequest{SessionId: "absent"})
		return err
	}},
	setpointv1.ErrorReason_VARIABLE_NOT_FOUND: {codes.NotFound, func(b *bundle) error {
		return set(b, "absent", client.Integer(1))
	}},
	setpointv1.ErrorReason_SESSION_EXISTS: {codes.AlreadyExists, func(b *bundle) error {
		_, err := b.Sessions.CreateSession(b.ctx, &setpointv1.CreateSessionRequest{SessionId: "s"})
		return err
	}},
	setpointv1.ErrorReason_VARIABLE_EXISTS: {codes.AlreadyExists, func(b *bundle) error {
		_, err := b.Variables.RegisterVariable(b.ctx, &setpointv1.RegisterVariableRequest{
			SessionId: "s", Name: "x", Type: setpointv1.VariableType_VARIABLE_TYPE_FLOAT, Value: client.Float(1),
		})
		return err
	}},
	setpointv1.ErrorReason_VERSION_MISMATCH: {codes.Aborted, func(b *bundle) error {
		_, err := b.Variables.SetVariable(b.ctx, &setpointv1.SetVariableRequest{
			SessionId: "s", Variable: "x", Value: client.Integer(1), ExpectedVersion: ptr(int64(7)),
		})
		return err
	}},
	setpointv1.ErrorReason_CONFLICT_RETRY: {codes.Aborted, func(b *bundle) error {
		b.exec(`create function lose() returns trigger language plpgsql as
			$$ begin raise exception 'lost' using errcode = 'serialization_failure'; end $$`)
		b.exec(`create trigger lose before update on setpoint.variables for each row execute function lose()`)
		defer b.exec(`drop trigger lose on setpoint.variables`)
		return set(b, "x", client.Integer(1))
	}},
	setpointv1.ErrorReason_REQUEST_ID_REUSED: {codes.FailedPrecondition, func(b *bundle) error {
		req := &setpointv1.SetVariableRequest{SessionId: "s", Variable: "x", Value: client.Integer(1), RequestId: "r"}
		if _, err := b.Variables.SetVariable(b.ctx, req); err != nil {
			return err
		}
		req.Value = client.Integer(2)
		_, err := b.Variables.SetVariable(b.ctx, req)
		return err
	}},
	setpointv1.ErrorReason_DEPENDENCY_NOT_FOUND: {codes.NotFound, func(b *bundle) error {
		_, err := b.Dependencies.RemoveDependency(b.ctx, &setpointv1.RemoveDependencyRequest{
			SessionId: "s", Dependent: "x", Dependency: "bounded",
		})
		return err
	}},
	setpointv1.ErrorReason_WOULD_CREATE_CYCLE: {codes.FailedPrecondition, func(b *bundle) error {
		_, err := b.Dependencies.AddDependency(b.ctx, &setpointv1.AddDependencyRequest{
			SessionId: "s", Dependent: "x", Dependency: "x",
		})
		return err
	}},
	setpointv1.ErrorReason_HAS_DEPENDENTS: {codes.FailedPrecondition, func(b *bundle) error {
		b.edge("bounded", "x")
		_, err := b.Variables.DeleteVariable(b.ctx, &setpointv1.DeleteVariableRequest{SessionId: "s", Variable: "x"})
		return err
	}},
	setpointv1.ErrorReason_ALREADY_OPTIMIZING: {codes.FailedPrecondition, func(b *bundle) error {
		o := b.start([]string{"x"})
		defer b.stop(o)
		return set(b, "x", client.Integer(1))
	}},
	setpointv1.ErrorReason_LEASE_LOST: {codes.FailedPrecondition, func(b *bundle) error {
		o := b.start([]string{"x"})
		b.stop(o)
		return b.write("x", 1, lease(o))
	}},
	setpointv1.ErrorReason_OPTIMIZATION_ENDED: {codes.FailedPrecondition, func(b *bundle) error {
		o := b.start([]string{"x"})
		b.stop(o)
		_, err := b.renew(o)
		return err
	}},
	setpointv1.ErrorReason_OPTIMIZATION_NOT_FOUND: {codes.NotFound, func(b *bundle) error {
		_, err := b.Optimizations.GetOptimization(b.ctx, &setpointv1.GetOptimizationRequest{
			SessionId: "s", OptimizationId: "opt_00000000000000000000000000",
		})
		return err
	}},
	setpointv1.ErrorReason_ACCESS_DENIED: {codes.PermissionDenied, func(b *bundle) error {
		o := b.start([]string{"x"})
		defer b.stop(o)
		b.allow("s", "user:ada")
		_, err := b.dial(client.WithPrincipal("user:ada")).Optimizations.StopOptimization(b.ctx,
			&setpointv1.StopOptimizationRequest{SessionId: "s", OptimizationId: o.GetOptimizationId()})
		return err
	}},
	setpointv1.ErrorReason_RULE_NOT_FOUND: {codes.NotFound, func(b *bundle) error {
		_, err := b.Access.RemoveAccessRule(b.ctx, &setpointv1.RemoveAccessRuleRequest{
			SessionId: "s", RuleId: "rule_00000000000000000000000000",
		})
		return err
	}},
	setpointv1.ErrorReason_TOKEN_NOT_FOUND: {codes.NotFound, func(b *bundle) error {
		_, err := b.Tokens.RevokeToken(b.ctx, &setpointv1.RevokeTokenRequest{TokenId: "tok_00000000000000000000000000"})
		return err
	}},
	setpointv1.ErrorReason_CREDENTIALS_MISSING: {codes.Unauthenticated, func(b *bundle) error {
		return b.withTokens().read()
	}},
	setpointv1.ErrorReason_CREDENTIALS_INVALID: {codes.Unauthenticated, func(b *bundle) error {
		return b.withTokens(client.WithToken("setpoint_nobody")).read()
	}},
	setpointv1.ErrorReason_DERIVED_VARIABLE: {codes.FailedPrecondition, func(b *bundle) error {
		b.derived("d", "x + 1")
		return set(b, "d", client.Integer(1))
	}},
	setpointv1.ErrorReason_DERIVATION_FAILED: {codes.FailedPrecondition, func(b *bundle) error {
		_, err := b.Variables.RegisterVariable(b.ctx, &setpointv1.RegisterVariableRequest{
			SessionId: "s", Name: "d", Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Expression: "1 / x",
		})
		return err
	}},
	setpointv1.ErrorReason_INVALID_EXPRESSION: {codes.InvalidArgument, func(b *bundle) error {
		_, err := b.Variables.RegisterVariable(b.ctx, &setpointv1.RegisterVariableRequest{
			SessionId: "s", Name: "d", Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Expression: "x +",
		})
		return err
	}},
	setpointv1.ErrorReason_VERSION_NOT_AVAILABLE: {codes.OutOfRange, func(b *bundle) error {
		_, err := b.History.GetVariableVersion(b.ctx, &setpointv1.GetVariableVersionRequest{
			SessionId: "s", Variable: "x", Version: 99,
		})
		return err
	}},
	setpointv1.ErrorReason_HISTORY_TRUNCATED: {codes.OutOfRange, func(b *bundle) error {
		b.exec(`update setpoint.sessions set snapshot_floor = 1`)
		_, err := b.History.GetSnapshot(b.ctx, &setpointv1.GetSnapshotRequest{
			SessionId: "s", At: &setpointv1.GetSnapshotRequest_Revision{Revision: 0},
		})
		return err
	}},
	setpointv1.ErrorReason_INVALID_REQUEST: {codes.InvalidArgument, func(b *bundle) error {
		return set(b, "", client.Integer(1))
	}},
	setpointv1.ErrorReason_CONSTRAINT_VIOLATION: {codes.InvalidArgument, func(b *bundle) error {
		return set(b, "bounded", client.Integer(11))
	}},
	setpointv1.ErrorReason_TYPE_MISMATCH: {codes.InvalidArgument, func(b *bundle) error {
		return set(b, "x", client.String("one"))
	}},
	setpointv1.ErrorReason_INVALID_CONSTRAINTS: {codes.InvalidArgument, func(b *bundle) error {
		_, err := b.Variables.RegisterVariable(b.ctx, &setpointv1.RegisterVariableRequest{
			SessionId: "s", Name: "y", Type: setpointv1.VariableType_VARIABLE_TYPE_STRING, Value: client.String("a"),
			Constraints: &setpointv1.Constraints{Pattern: ptr("(")},
		})
		return err
	}},
	setpointv1.ErrorReason_LIMIT_EXCEEDED: {codes.ResourceExhausted, func(b *bundle) error {
		_, err := b.Variables.BatchGetVariables(b.ctx, &setpointv1.BatchGetVariablesRequest{
			SessionId: "s", Variables: names("v", 1001),
		})
		return err
	}},
	setpointv1.ErrorReason_OVERLOADED: {codes.ResourceExhausted, func(b *bundle) error {
		tx, err := b.sql.Begin(b.ctx)
		if err != nil {
			return err
		}
		defer func() { _ = tx.Rollback(b.ctx) }()
		if _, err := tx.Exec(b.ctx, `select from setpoint.sessions where session_id = 's' for update`); err != nil {
			return err
		}
		return set(b, "x", client.Integer(1)) // Waits for the lock until statement_timeout.
	}},
	setpointv1.ErrorReason_DATABASE_UNAVAILABLE: {codes.Unavailable, func(b *bundle) error {
		allow := b.elsewhere(`alter database ` + b.database() + ` allow_connections `)
		allow("false")
		defer allow("true")
		b.exec(`select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database()
			and application_name = 'setpoint'`)
		return set(b, "x", client.Integer(1))
	}},
	setpointv1.ErrorReason_INTERNAL_ERROR: {codes.Internal, func(b *bundle) error {
		b.exec(`alter table setpoint.history rename to mislaid`)
		defer b.exec(`alter table setpoint.mislaid rename to history`)
		return set(b, "x", client.Integer(1))
	}},
}

func (b *bundle) database() string {
	var name string
	b.row(&name, `select quote_ident(current_database())`)
	return name
}

// elsewhere runs a statement with different ends on another database of the cluster: some cannot be run on one's own.
func (b *bundle) elsewhere(statement string) func(end string) {
	return func(end string) {
		b.t.Helper()
		config, err := pgx.ParseConfig(b.url)
		if err != nil {
			b.t.Fatal(err)
		}
		config.Database = "postgres"
		conn, err := pgx.ConnectConfig(b.ctx, config)
		if err != nil {
			b.t.Fatal(err)
		}
		defer func() { _ = conn.Close(b.ctx) }()
		if _, err := conn.Exec(b.ctx, statement+end); err != nil {
			b.t.Fatal(err)
		}
	}
}

// TestEveryReason walks the enum: every reason is in the table of the service, comes from a real server with its code and
// details, has an error of the client, and is explained in docs/errors.md.
func TestEveryReason(t *testing.T) {
	t.Parallel()
	docs, err := os.ReadFile("../docs/errors.md")
	if err != nil {
		t.Fatal(err)
	}
	for number, name := range setpointv1.ErrorReason_name {
		reason := setpointv1.ErrorReason(number)
		if reason == setpointv1.ErrorReason_ERROR_REASON_UNSPECIFIED {
			continue
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if !strings.Contains(string(docs), "| `"+name+"` |") {
				t.Errorf("docs/errors.md does not explain %s", name)
			}
			test, ok := reasonCases[reason]
			if !ok {
				t.Fatalf("nothing shows how %s comes about", name)
			}
			b := setup(t, quickTimeout)
			b.integer("x")
			b.register(&setpointv1.RegisterVariableRequest{
				Name: "bounded", Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Value: client.Integer(1),
				Constraints: &setpointv1.Constraints{Max: ptr(10.0)},
			})
			err := test.err(b)
			e := wantReason(t, err, reason)
			if e.Code != test.code {
				t.Errorf("code %s, want %s", e.Code, test.code)
			}
			checkDetails(t, err, reason)
			// Whatever it was, the server goes on.
			testkit.Eventually(t, 20*time.Second, func() error { return set(b, "x", client.Integer(3)) })
		})
	}
}

// quickTimeout makes statements give up sooner than they do by default.
func quickTimeout(c *server.Config) {
	c.Database.URL += separator(c.Database.URL) + "statement_timeout=2000"
}

func separator(url string) string {
	if strings.Contains(url, "?") {
		return "&"
	}
	return "?"
}

func checkDetails(t *testing.T, err error, reason setpointv1.ErrorReason) {
	t.Helper()
	details := map[string]bool{}
	for _, d := range status.Convert(err).Details() {
		details[fmt.Sprintf("%T", d)] = true
		if info, ok := d.(*errdetails.ErrorInfo); ok && (info.GetDomain() != "setpoint" || info.GetReason() != reason.String()) {
			t.Errorf("error info %v", info)
		}
	}
	want := map[string]bool{
		"*errdetails.ErrorInfo":  true,
		"*errdetails.BadRequest": reason == setpointv1.ErrorReason_INVALID_REQUEST,
		"*errdetails.RetryInfo": reason == setpointv1.ErrorReason_OVERLOADED ||
			reason == setpointv1.ErrorReason_DATABASE_UNAVAILABLE,
	}
	for kind, wanted := range want {
		if details[kind] != wanted {
			t.Errorf("detail %s: %t, want %t", kind, details[kind], wanted)
		}
	}
}

// An internal error tells the caller nothing but an id, and the log the rest under that id.
func TestInternalErrorIsLogged(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.integer("x")
	e := wantReason(t, reasonCases[setpointv1.ErrorReason_INTERNAL_ERROR].err(b), setpointv1.ErrorReason_INTERNAL_ERROR)
	id := e.Metadata["request_id"]
	if id == "" || !strings.Contains(e.Message, id) || strings.Contains(e.Message, "history") {
		t.Errorf("message %q, metadata %v", e.Message, e.Metadata)
	}
	for line := range strings.Lines(b.log.String()) {
		if strings.Contains(line, "internal_error") && strings.Contains(line, id) && strings.Contains(line, "history") {
			return
		}
	}
	t.Errorf("the log does not tell what request %s was about", id)
}

// A caller's own cancellation or deadline keeps gRPC's codes.
func TestCallersOwnEnd(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.integer("x")
	tx, err := b.sql.Begin(b.ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tx.Rollback(context.Background()) })
	if _, err := tx.Exec(b.ctx, `select from setpoint.sessions where session_id = 's' for update`); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(b.ctx, 200*time.Millisecond)
	defer cancel()
	_, err = b.Variables.SetVariable(ctx, &setpointv1.SetVariableRequest{
		SessionId: "s", Variable: "x", Value: client.Integer(1),
	})
	if code := status.Code(err); code != codes.DeadlineExceeded {
		t.Errorf("deadline: %v", err)
	}
	for _, known := range []error{context.Canceled, fmt.Errorf("read: %w", context.Canceled)} {
		if s, defect := service.Status(known, "id"); s.Code() != codes.Canceled || defect {
			t.Errorf("%v is %s", known, s.Code())
		}
	}
	if s, _ := service.Status(fmt.Errorf("x: %w: %w", db.ErrUnavailable, context.DeadlineExceeded), "id"); s.Code() != codes.Unavailable {
		t.Errorf("the database's deadline is %s, want it told from the caller's", s.Code())
	}
}
