package service_test

import (
	"context"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// allowOn lets a principal do something with one variable of the session "s", without a trace in the history.
func (b *bundle) allowOn(principal, variable string, permissions, reach int) {
	b.t.Helper()
	b.exec(`insert into setpoint.access_rules
		(session_id, rule_id, variable_id, subject, permissions, reach, allows, priority, granted_by, granted_at, revision)
		select 's', 'rule_' || $1 || variable_id, variable_id, $1, $3, $4, true, 0, 'user:anonymous', clock_timestamp(), 1
		from setpoint.variables where session_id = 's' and name = $2`, principal, variable, permissions, reach)
}

// Who waits for several variables and may no longer optimize them leaves the queue at once, though its turn is far: it is not in the
// way of others.
func TestRevokedWaiterLeavesTheQueue(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.integer("x")
	b.integer("y")
	held := b.start([]string{"x"})
	defer b.stop(held)
	b.allowOn("user:bob", "x", 8, 11)
	b.allowOn("user:bob", "y", 8, 11)
	bob := b.dial(client.WithPrincipal("user:bob"))
	waiting, err := bob.Optimizations.StartOptimization(b.ctx, &setpointv1.StartOptimizationRequest{
		SessionId: "s", Variables: []string{"x", "y"}, Conflict: setpointv1.ConflictStrategy_CONFLICT_STRATEGY_WAIT,
	})
	if err != nil {
		t.Fatal(err)
	}
	stream, err := bob.Optimizations.AwaitOptimization(b.ctx, &setpointv1.AwaitOptimizationRequest{
		SessionId: "s", OptimizationId: waiting.GetOptimizationId(),
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	b.exec(`update setpoint.access_rules set permissions = 1, reach = 1
		where variable_id = (select variable_id from setpoint.variables where name = 'y')`)
	for err == nil {
		_, err = stream.Recv()
	}
	wantMetadata(t, wantReason(t, err, setpointv1.ErrorReason_ACCESS_DENIED), map[string]string{
		"permission": "optimize", "variable": "y",
	})
	b.wantState(waiting.GetOptimizationId(), setpointv1.OptimizationState_OPTIMIZATION_STATE_CANCELLED)
	b.stop(b.start([]string{"y"}))
}

// Credentials that are narrowed to less than a write, or to other sessions, are told nothing of what came of their principal's requests.
func TestNarrowedTokenIsToldNoOutcome(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.allow("s", "user:ada")
	whole := b.withTokens(client.WithToken(b.token(&setpointv1.CreateTokenRequest{Principal: "user:ada"})))
	elsewhere := b.withTokens(client.WithToken(b.token(&setpointv1.CreateTokenRequest{
		Principal: "user:ada", Sessions: []string{"other-*"},
	})))
	reading := b.withTokens(client.WithToken(b.token(&setpointv1.CreateTokenRequest{
		Principal: "user:ada", Permissions: []setpointv1.Permission{setpointv1.Permission_PERMISSION_READ},
	})))
	b.integer("x")
	calls := map[string]func(ctx context.Context, c *tokenClient, body string) error{
		"register": func(ctx context.Context, c *tokenClient, body string) error {
			_, err := c.Variables.RegisterVariable(ctx, &setpointv1.RegisterVariableRequest{
				SessionId: "s", Name: "a" + body, Type: setpointv1.VariableType_VARIABLE_TYPE_STRING, Value: client.String("told"),
				RequestId: "register",
			})
			return err
		},
		"register with dependencies": func(ctx context.Context, c *tokenClient, body string) error {
			_, err := c.Variables.RegisterVariable(ctx, &setpointv1.RegisterVariableRequest{
				SessionId: "s", Name: "b" + body, Type: setpointv1.VariableType_VARIABLE_TYPE_STRING, Value: client.String("told"),
				DependsOn: []string{"x"}, RequestId: "connected",
			})
			return err
		},
		"set": func(ctx context.Context, c *tokenClient, body string) error {
			_, err := c.Variables.SetVariable(ctx, &setpointv1.SetVariableRequest{
				SessionId: "s", Variable: "x", Value: client.Integer(int64(len(body))), RequestId: "set",
			})
			return err
		},
		"update": func(ctx context.Context, c *tokenClient, body string) error {
			_, err := c.Variables.UpdateVariable(ctx, &setpointv1.UpdateVariableRequest{
				SessionId: "s", Variable: "x", Metadata: map[string]string{"k": body}, RequestId: "update",
			})
			return err
		},
	}
	for name, call := range calls {
		if err := call(b.ctx, whole, ""); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for _, body := range []string{"", "another"} {
			for what, narrowed := range map[string]struct {
				c    *tokenClient
				want setpointv1.ErrorReason
			}{
				"in other sessions": {elsewhere, setpointv1.ErrorReason_SESSION_NOT_FOUND},
				"to reading":        {reading, setpointv1.ErrorReason_ACCESS_DENIED},
			} {
				e, ok := call(b.ctx, narrowed.c, body).(*client.Error) //nolint:errorlint // The case's name goes first.
				if !ok || e.Reason != narrowed.want {
					t.Errorf("%s, narrowed %s, body %q: %v, want %s", name, what, body, e, narrowed.want)
				}
			}
		}
		if err := call(b.ctx, whole, ""); err != nil {
			t.Errorf("%s, again: %v", name, err)
		}
	}
}

// A page of optimizations has those that the caller may see, as many as asked for, and its token tells of no other.
func TestPagesOfOptimizationsSkipTheHidden(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.integer("open")
	b.integer("secret")
	b.allowOn("user:eve", "open", 1, 1)
	eve := b.dial(client.WithPrincipal("user:eve"))
	var shown, hidden []string
	for i := range 9 {
		name := "secret"
		if i%4 == 1 {
			name = "open"
		}
		o := b.start([]string{name})
		b.stop(o)
		if name == "open" {
			shown = append([]string{o.GetOptimizationId()}, shown...)
		} else {
			hidden = append(hidden, o.GetOptimizationId())
		}
	}
	for what, states := range map[string][]setpointv1.OptimizationState{
		"all": nil, "those of a state": {setpointv1.OptimizationState_OPTIMIZATION_STATE_COMPLETED},
	} {
		var got []string
		for token := ""; ; {
			page, err := eve.Optimizations.ListOptimizations(b.ctx, &setpointv1.ListOptimizationsRequest{
				SessionId: "s", PageSize: 1, PageToken: token, States: states,
			})
			if err != nil {
				t.Fatal(err)
			}
			if len(page.GetOptimizations()) != 1 {
				t.Errorf("%s: a page of %d", what, len(page.GetOptimizations()))
			}
			for _, o := range page.GetOptimizations() {
				got = append(got, o.GetOptimizationId())
			}
			if token = page.GetNextPageToken(); token == "" {
				break
			}
			text, err := base64.RawURLEncoding.DecodeString(token)
			if err != nil {
				t.Fatal(err)
			}
			for _, id := range hidden {
				if strings.Contains(string(text), id) {
					t.Errorf("%s: the token %s tells of %s", what, text, id)
				}
			}
		}
		equal(t, what, shown, got)
	}
}

// A stranger who keeps trying is refused without waiting for the session, whatever the calls.
func TestStrangersWaitForNoLock(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.integer("x")
	eve := b.dial(client.WithPrincipal("user:eve"))
	tries := map[string]func(id string) error{
		"set": func(id string) error {
			_, err := eve.Variables.SetVariable(b.ctx, &setpointv1.SetVariableRequest{
				SessionId: "s", Variable: "x", Value: client.Integer(1), RequestId: id,
			})
			return err
		},
		"batch": func(id string) error {
			req := &setpointv1.BatchSetVariablesRequest{SessionId: "s", RequestId: id}
			for i := range 100 {
				req.Writes = append(req.Writes, &setpointv1.VariableWrite{Variable: fmt.Sprintf("v%d", i), Value: client.Integer(1)})
			}
			_, err := eve.Variables.BatchSetVariables(b.ctx, req)
			return err
		},
		"delete": func(id string) error {
			_, err := eve.Variables.DeleteVariable(b.ctx, &setpointv1.DeleteVariableRequest{SessionId: "s", Variable: "x", RequestId: id})
			return err
		},
		"start": func(id string) error {
			_, err := eve.Optimizations.StartOptimization(b.ctx, &setpointv1.StartOptimizationRequest{
				SessionId: "s", Variables: []string{"x"}, RequestId: id,
			})
			return err
		},
		"keep alive": func(string) error {
			_, err := eve.Sessions.KeepSessionAlive(b.ctx, &setpointv1.KeepSessionAliveRequest{SessionId: "s"})
			return err
		},
	}
	wantReason(t, tries["set"](""), setpointv1.ErrorReason_SESSION_NOT_FOUND)
	tx, err := b.sql.Begin(b.ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(b.ctx, `select from setpoint.sessions where session_id = 's' for no key update`); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 2*len(tries))
	for _, try := range tries {
		for _, id := range []string{"", "r"} {
			go func() { done <- try(id) }()
		}
	}
	for range 2 * len(tries) {
		select {
		case err := <-done:
			wantReason(t, err, setpointv1.ErrorReason_SESSION_NOT_FOUND)
		case <-time.After(8 * time.Second): // Less than a denial is remembered, and than a wait for a lock may take.
			t.Fatal("a stranger waits for the session's lock")
		}
	}
	if err := tx.Rollback(b.ctx); err != nil {
		t.Fatal(err)
	}
}
