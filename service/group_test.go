package service_test

import (
	"bytes"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/testkit"
)

// holdSession takes a session's lock until the returned function is called.
func (b *bundle) holdSession(id string) func() {
	b.t.Helper()
	tx, err := b.sql.Begin(b.ctx)
	if err != nil {
		b.t.Fatal(err)
	}
	if _, err := tx.Exec(b.ctx, `select from setpoint.sessions where session_id = $1 for no key update`, id); err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = tx.Rollback(b.ctx) })
	return func() { commitTx(b, tx) }
}

func commitTx(b *bundle, tx pgx.Tx) {
	b.t.Helper()
	if err := tx.Commit(b.ctx); err != nil {
		b.t.Fatal(err)
	}
}

// waiting returns when n of the server's statements wait for a lock.
func (b *bundle) waiting(n int) {
	b.t.Helper()
	testkit.Eventually(b.t, 20*time.Second, func() error {
		var found int
		b.row(&found, `select count(*) from pg_stat_activity where datname = current_database()
			and application_name = 'setpoint' and wait_event_type = 'Lock'`)
		if found < n {
			return fmt.Errorf("%d of %d statements wait", found, n)
		}
		return nil
	})
}

// A session that somebody holds does not hold up the writes of others, though they came in one group with its own; those
// are done when it is free.
func TestLockedSessionHoldsNobodyUp(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.integer("x")
	b.set("x", client.Integer(1))
	for i := range 8 {
		id := fmt.Sprintf("other%d", i)
		b.session(id)
		if _, err := b.Variables.RegisterVariable(b.ctx, &setpointv1.RegisterVariableRequest{
			SessionId: id, Name: "x", Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Value: client.Integer(0),
		}); err != nil {
			t.Fatal(err)
		}
	}
	release := b.holdSession("s")
	held := make(chan error, 4)
	for range cap(held) {
		go func() { held <- set(b, "x", client.Integer(2)) }()
	}
	b.waiting(1)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 5 {
				if _, err := b.Variables.SetVariable(b.ctx, &setpointv1.SetVariableRequest{
					SessionId: fmt.Sprintf("other%d", i), Variable: "x", Value: client.Integer(3),
				}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait() // While the session is still held.
	select {
	case err := <-held:
		t.Fatalf("a write went through a lock: %v", err)
	default:
	}
	release()
	for range cap(held) {
		if err := <-held; err != nil {
			t.Error(err)
		}
	}
	if v := b.get("x"); v.GetVersion() != 1+int64(cap(held)) {
		t.Errorf("version %d after %d writes", v.GetVersion(), 1+cap(held))
	}
}

// Of a group whose statement fails, each is done alone: the one that makes it fail fails, and no other.
func TestOneSpoilsItForNobody(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, name := range names("v", 10) {
		b.integer(name)
	}
	b.exec(`create function spoil() returns trigger language plpgsql as $$ begin
		if new.value = '13' then raise exception 'spoilt'; end if; return new; end $$`)
	b.exec(`create trigger spoil before update on setpoint.variables for each row execute function spoil()`)
	release := b.holdSession("s")
	errs := make([]error, 10)
	var wg sync.WaitGroup
	for i, name := range names("v", 10) {
		wg.Go(func() { errs[i] = set(b, name, client.Integer(int64(10+i))) })
	}
	b.waiting(1)
	release()
	wg.Wait()
	for i, err := range errs {
		if i == 3 {
			wantReason(t, err, setpointv1.ErrorReason_INTERNAL_ERROR)
			continue
		}
		if err != nil {
			t.Errorf("write %d: %v", i, err)
		}
	}
	var problem *string
	b.row(&problem, `select string_agg(revision::text, ' ') from (select revision, row_number() over (order by revision) as n
		from setpoint.history where session_id = 's') h where revision <> n`)
	if problem != nil {
		t.Errorf("revisions with gaps: %s", *problem)
	}
}

// Concurrent writes share statements.
func TestConcurrentWritesShareStatements(t *testing.T) {
	t.Parallel()
	m := measure(t)
	variables := names("v", 100)
	register := &setpointv1.BatchRegisterVariablesRequest{SessionId: "s", Atomic: true}
	for _, name := range variables {
		register.Registrations = append(register.Registrations, &setpointv1.VariableRegistration{
			Name: name, Type: setpointv1.VariableType_VARIABLE_TYPE_STRING, Value: client.String(""),
		})
	}
	if _, err := m.BatchRegisterVariables(m.ctx, register); err != nil {
		t.Fatal(err)
	}
	writeAll := func() {
		var wg sync.WaitGroup
		for i, name := range variables {
			wg.Go(func() {
				if _, err := m.SetVariable(m.ctx, &setpointv1.SetVariableRequest{
					SessionId: "s", Variable: name, Value: client.String(strings.Repeat("x", i)),
				}); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
	writeAll() // Learns the definitions.
	trips, statements := m.cost(t, func() error { writeAll(); return nil })
	if trips > 50 || statements != 2*trips {
		t.Errorf("100 concurrent writes took %d round trips and %d statements; want far fewer, two each", trips, statements)
	}
	t.Logf("100 concurrent writes took %d round trips", trips)
}

// Concurrent writes of one variable without an expected version are all done, one after the other, whichever of its
// identifiers they use.
func TestConcurrentWritesOfOneVariable(t *testing.T) {
	t.Parallel()
	b := setup(t)
	x := b.integer("x")
	var wg sync.WaitGroup
	for i := range 60 {
		wg.Go(func() {
			name := "x"
			if i%2 == 0 {
				name = x.GetVariableId()
			}
			if err := set(b, name, client.Integer(int64(i))); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if v := b.get("x"); v.GetVersion() != 60 || v.GetRevision() != 61 {
		t.Errorf("version %d at revision %d after 60 writes", v.GetVersion(), v.GetRevision())
	}
}

// Concurrent reads share statements, and are each told their own variable; large values come whole all the same, however
// many are asked for at once.
func TestConcurrentReadsShareStatements(t *testing.T) {
	t.Parallel()
	m := measure(t)
	variables := names("v", 60)
	for i, name := range variables {
		size := 10 + i
		if i%10 == 0 {
			size = 3 << 20 // Six of these are more than one statement returns.
		}
		if _, err := m.RegisterVariable(m.ctx, &setpointv1.RegisterVariableRequest{
			SessionId: "s", Name: name, Type: setpointv1.VariableType_VARIABLE_TYPE_TENSOR,
			Value: client.Tensor("uint8", []int64{int64(size)}, bytes.Repeat([]byte{byte(i)}, size)),
		}); err != nil {
			t.Fatal(err)
		}
	}
	readAll := func() error {
		var wg sync.WaitGroup
		for i, name := range append(variables, "absent") {
			wg.Go(func() {
				v, err := m.GetVariable(m.ctx, &setpointv1.GetVariableRequest{SessionId: "s", Variable: name})
				if name == "absent" {
					if err == nil || !strings.Contains(err.Error(), "VARIABLE_NOT_FOUND") {
						t.Errorf("absent: %v", err)
					}
					return
				}
				data := v.GetValue().GetTensor().GetData()
				if err != nil || v.GetName() != name || len(data) < 10 || data[0] != byte(i) || data[len(data)-1] != byte(i) {
					t.Errorf("%s: %s with %d bytes, %v", name, v.GetName(), len(data), err)
				}
			})
		}
		wg.Wait()
		_, err := m.GetVariable(m.ctx, &setpointv1.GetVariableRequest{SessionId: "no", Variable: "x"})
		if err == nil || !strings.Contains(err.Error(), "SESSION_NOT_FOUND") {
			t.Errorf("another session: %v", err)
		}
		return nil
	}
	m.cost(t, readAll) // Prepares the statement.
	if trips, statements := m.cost(t, readAll); trips > 30 || statements > 30 {
		t.Errorf("62 reads took %d round trips and %d statements; want far fewer", trips, statements)
	}
}
