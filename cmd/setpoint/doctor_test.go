package main

import (
	"context"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/setpointdb/setpoint/internal/testkit"
)

// grantsOf are the statements in docs/operations.md that give a server's role its rights.
func grantsOf(t *testing.T, role string) []string {
	t.Helper()
	block := regexp.MustCompile("(?s)```sql\n(grant usage on schema setpoint to .*?)```").
		FindStringSubmatch(contents(t, "docs/operations.md"))
	if block == nil {
		t.Fatal("docs/operations.md grants nothing")
	}
	statements := strings.Split(strings.ReplaceAll(block[1], "setpoint_server", role), ";")
	return statements[:len(statements)-1]
}

// A role with the rights of the documentation is well; doctor finds each one that is taken away, and says how to give it.
func TestDoctorExaminesRights(t *testing.T) {
	t.Parallel()
	owners := testkit.NewDatabase(t)
	pool := testkit.Pool(t, owners)
	exec := func(sql string) {
		t.Helper()
		if _, err := pool.Exec(t.Context(), sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	config, err := pgx.ParseConfig(owners)
	if err != nil {
		t.Fatal(err)
	}
	role := "Doctor's " + config.Database // a cluster has one set of roles
	quoted := pgx.Identifier{role}.Sanitize()
	exec("create role " + quoted + " login password 'hunter2'")
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if _, err := pool.Exec(ctx, "drop owned by "+quoted+"; drop role "+quoted); err != nil {
			t.Error(err)
		}
	})
	serverURL, err := url.Parse(owners)
	if err != nil {
		t.Fatal(err)
	}
	serverURL.User = url.UserPassword(role, "hunter2")
	doctor := func() result {
		return invocation{args: []string{"doctor"}, env: map[string]string{"SETPOINT_DATABASE_URL": serverURL.String()}}.run(t)
	}
	if got := doctor(); got.status != 1 || !strings.Contains(got.out, "BAD   rights       "+role+" lacks usage on schema setpoint; ") {
		t.Errorf("without any: %+v", got)
	}
	for _, grant := range grantsOf(t, quoted) {
		exec(grant)
	}
	good := func(when string) {
		t.Helper()
		if got := doctor(); got.status != 0 || !strings.Contains(got.out, "ok    rights       "+role+" has what a server needs\n") {
			t.Errorf("%s: %+v", when, got)
		}
	}
	good("with those of the documentation")
	for _, what := range []string{
		"usage on schema setpoint",
		"insert on setpoint.access_rules",
		"select, insert on setpoint.tokens",
		"update (revoked_by) on setpoint.tokens",
		"insert, delete on setpoint.audit_events",
		"update on setpoint.sessions",
	} {
		exec("revoke " + what + " from " + quoted)
		got := doctor()
		remedy := "grant " + what + " to " + quoted + ";"
		if got.status != 1 || !strings.Contains(got.out, role+" lacks "+what+"\n") || !strings.Contains(got.out, remedy) {
			t.Errorf("without %s: %+v", what, got)
		}
		exec("grant " + what + " to " + quoted)
	}
	good("with all again")
	exec("revoke execute on function setpoint.access_check from public")
	got := doctor()
	if found := regexp.MustCompile(`grant (execute on function setpoint\.access_check\(.*\) to .*);\n`).FindString(got.out); got.status != 1 || found == "" {
		t.Errorf("without a function: %+v", got)
	} else {
		exec(found)
		good("with the function")
	}
}

// What is not there yet needs no rights: that is for the check of the schema to say.
func TestDoctorBeforeTheSchema(t *testing.T) {
	t.Parallel()
	got := invocation{args: []string{"doctor"}, env: map[string]string{"SETPOINT_DATABASE_URL": testkit.NewEmptyDatabase(t)}}.run(t)
	if got.status != 1 || !strings.Contains(got.out, "ok    rights ") || !strings.Contains(got.out, "run 'setpoint migrate up'") {
		t.Errorf("got %+v", got)
	}
}
