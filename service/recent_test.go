package service_test

import (
	"context"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// Who was denied a write, and tries again, is refused without waiting for the session, and so without holding up others; and may as
// soon as a rule says so.
func TestDeniedAgainWithoutTheLock(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.integer("x")
	b.integer("y")
	b.exec(`insert into setpoint.access_rules
		(session_id, rule_id, variable_id, subject, permissions, reach, allows, priority, granted_by, granted_at, revision)
		select 's', 'rule_y', variable_id, 'user:ada', 2, 3, true, 0, 'user:anonymous', clock_timestamp(), 0
		from setpoint.variables where name = 'y'`)
	ada, eve := b.dial(client.WithPrincipal("user:ada")), b.dial(client.WithPrincipal("user:eve"))
	write := func(ctx context.Context, c *client.Client, name string) error {
		_, err := c.Variables.SetVariable(ctx, &setpointv1.SetVariableRequest{SessionId: "s", Variable: name, Value: client.Integer(1)})
		return err
	}
	remove := func(ctx context.Context, c *client.Client) error {
		_, err := c.Variables.DeleteVariable(ctx, &setpointv1.DeleteVariableRequest{SessionId: "s", Variable: "x"})
		return err
	}
	wantReason(t, write(b.ctx, ada, "x"), setpointv1.ErrorReason_ACCESS_DENIED)
	wantReason(t, write(b.ctx, eve, "x"), setpointv1.ErrorReason_SESSION_NOT_FOUND)

	tx, err := b.sql.Begin(b.ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(b.ctx, `select from setpoint.sessions where session_id = 's' for no key update`); err != nil {
		t.Fatal(err)
	}
	wantReason(t, write(b.ctx, ada, "x"), setpointv1.ErrorReason_ACCESS_DENIED)
	wantReason(t, write(b.ctx, eve, "x"), setpointv1.ErrorReason_SESSION_NOT_FOUND)
	wantReason(t, remove(b.ctx, eve), setpointv1.ErrorReason_SESSION_NOT_FOUND)
	brief, cancel := context.WithTimeout(b.ctx, 300*time.Millisecond)
	defer cancel()
	if err := write(brief, ada, "y"); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("what is allowed did not wait for the session: %v", err)
	}
	if err := tx.Rollback(b.ctx); err != nil {
		t.Fatal(err)
	}

	b.allow("s", "user:eve")
	for name, err := range map[string]error{"ada": write(b.ctx, ada, "y"), "eve": write(b.ctx, eve, "x"), "eve again": remove(b.ctx, eve)} {
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
