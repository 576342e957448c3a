package service_test

import (
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/server"
)

// Metadata is bounded wherever it comes in.
func TestMetadataIsBounded(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.integer("x")
	before := b.revision()
	metadata := map[string]string{"k": strings.Repeat("v", 16<<10)}
	for name, call := range map[string]func() error{
		"CreateSession": func() error {
			_, err := b.Sessions.CreateSession(b.ctx, &setpointv1.CreateSessionRequest{SessionId: "t", Metadata: metadata})
			return err
		},
		"RegisterVariable": func() error {
			_, err := b.Variables.RegisterVariable(b.ctx, &setpointv1.RegisterVariableRequest{
				SessionId: "s", Name: "y", Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Value: client.Integer(1),
				Metadata: metadata,
			})
			return err
		},
		"SetVariable": func() error {
			_, err := b.Variables.SetVariable(b.ctx, &setpointv1.SetVariableRequest{
				SessionId: "s", Variable: "x", Value: client.Integer(1), Metadata: metadata,
			})
			return err
		},
		"UpdateVariable": func() error {
			_, err := b.Variables.UpdateVariable(b.ctx, &setpointv1.UpdateVariableRequest{
				SessionId: "s", Variable: "x", Metadata: metadata,
			})
			return err
		},
	} {
		e := wantReason(t, call(), setpointv1.ErrorReason_LIMIT_EXCEEDED)
		wantMetadata(t, e, map[string]string{"limit": "metadata_bytes", "value": "16384"})
		if t.Failed() {
			t.Fatal(name)
		}
	}
	if got := b.revision(); got != before {
		t.Errorf("something was written: revision %d", got)
	}
}

// The values of a batch are bounded together, as they are stored.
func TestBatchBytesAreBounded(t *testing.T) {
	t.Parallel()
	m := measure(t)
	data := make([]byte, 14<<20)
	register := &setpointv1.BatchRegisterVariablesRequest{SessionId: "s"}
	write := &setpointv1.BatchSetVariablesRequest{SessionId: "s"}
	for _, name := range names("v", 5) {
		if _, err := m.RegisterVariable(m.ctx, &setpointv1.RegisterVariableRequest{
			SessionId: "s", Name: name, Type: setpointv1.VariableType_VARIABLE_TYPE_TENSOR,
			Value: client.Tensor("uint8", []int64{1}, []byte{1}),
		}); err != nil {
			t.Fatal(err)
		}
		large := client.Tensor("uint8", []int64{int64(len(data))}, data)
		register.Registrations = append(register.Registrations, &setpointv1.VariableRegistration{
			Name: "new" + name, Type: setpointv1.VariableType_VARIABLE_TYPE_TENSOR, Value: large,
		})
		write.Writes = append(write.Writes, &setpointv1.VariableWrite{Variable: name, Value: large})
	}
	_, registerErr := m.BatchRegisterVariables(m.ctx, register)
	_, writeErr := m.BatchSetVariables(m.ctx, write)
	for name, err := range map[string]error{"register": registerErr, "set": writeErr} {
		if err == nil || !strings.Contains(err.Error(), "LIMIT_EXCEEDED: the values of a batch have at most 67108864 bytes") {
			t.Errorf("%s 70 MiB: %v", name, err)
		}
	}
	write.Writes = write.Writes[:4]
	if _, err := m.BatchSetVariables(m.ctx, write); err != nil {
		t.Errorf("set 56 MiB: %v", err)
	}
}

// However much is wrong, the status fits into what clients take as headers, and every failing item is told with its reason.
func TestStatusIsBounded(t *testing.T) {
	t.Parallel()
	b := setup(t)
	batch := &setpointv1.BatchSetVariablesRequest{SessionId: "s", Atomic: true}
	for _, name := range names("missing", 1000) {
		batch.Writes = append(batch.Writes, &setpointv1.VariableWrite{Variable: name, Value: client.Integer(1)})
	}
	_, err := b.Variables.BatchSetVariables(b.ctx, batch)
	wantReason(t, err, setpointv1.ErrorReason_VARIABLE_NOT_FOUND)
	if size := proto.Size(status.Convert(err).Proto()); size > 16<<10 {
		t.Errorf("1,000 failing items make a status of %d bytes", size)
	}
	failed := 0
	for _, detail := range status.Convert(err).Details() {
		if f, ok := detail.(*setpointv1.BatchFailure); ok {
			for i, item := range f.GetItems() {
				if int(item.GetIndex()) != i || item.GetError().GetReason() != setpointv1.ErrorReason_VARIABLE_NOT_FOUND ||
					codes.Code(item.GetError().GetCode()) != codes.NotFound {
					t.Fatalf("item %d: %v", i, item)
				}
				failed++
			}
		}
	}
	if failed != 1000 {
		t.Errorf("%d failing items are told, of 1000", failed)
	}
	for _, w := range batch.GetWrites() {
		w.Value = nil
	}
	_, err = b.Variables.BatchSetVariables(b.ctx, batch)
	e := wantReason(t, err, setpointv1.ErrorReason_INVALID_REQUEST)
	if len(e.Violations) != 10 || !strings.Contains(e.Message, "and 990 more") {
		t.Errorf("%d violations in %q", len(e.Violations), e.Message)
	}
}

// The writers of a session that somebody holds do not take all connections: calls of other sessions that need one get it.
// So it is behind a proxy that pools transactions, too, where the connections carry no settings.
func TestHeldSessionLeavesConnections(t *testing.T) {
	t.Parallel()
	for name, query := range map[string]string{"direct": "", "proxied": "default_query_exec_mode=cache_describe&application_name=setpoint"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, func(c *server.Config) {
				if query != "" {
					c.Database.URL += separator(c.Database.URL) + query
				}
			})
			b.integer("x")
			b.set("x", client.Integer(0))
			b.session("other")
			release := b.holdSession("s")
			held := make(chan error, 40)
			for range cap(held) {
				go func() {
					_, err := b.Variables.SetVariable(b.ctx, &setpointv1.SetVariableRequest{
						SessionId: "s", Variable: "x", Value: client.Integer(1), ExpectedVersion: ptr(int64(1)),
					})
					held <- err
				}()
			}
			b.waiting(2)
			for i := range 3 {
				if _, err := b.Variables.RegisterVariable(b.ctx, &setpointv1.RegisterVariableRequest{
					SessionId: "other", Name: fmt.Sprint("v", i), Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER,
					Value: client.Integer(0),
				}); err != nil {
					t.Errorf("register in another session: %v", err)
				}
				if _, err := b.Variables.SetVariable(b.ctx, &setpointv1.SetVariableRequest{
					SessionId: "other", Variable: fmt.Sprint("v", i), Value: client.Integer(1),
				}); err != nil {
					t.Errorf("set in another session: %v", err)
				}
			}
			release()
			won := 0
			for range cap(held) {
				if err := <-held; err == nil {
					won++
				} else {
					wantReason(t, err, setpointv1.ErrorReason_VERSION_MISMATCH)
				}
			}
			if won != 1 {
				t.Errorf("%d of the held writes won, want 1", won)
			}
		})
	}
}

// A refusal that could not be recorded is not final: the caller is told of the failure, and may repeat.
func TestUnrecordedRefusal(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.integer("x")
	b.exec(`create function fail() returns trigger language plpgsql as $$ begin raise exception 'no room'; end $$`)
	b.exec(`create trigger fail before insert on setpoint.requests for each row execute function fail()`)
	ask := func() error {
		_, err := b.History.RollbackVariable(b.ctx, &setpointv1.RollbackVariableRequest{
			SessionId: "s", Variable: "x", Version: 1, RequestId: "r",
		})
		return err
	}
	wantReason(t, ask(), setpointv1.ErrorReason_INTERNAL_ERROR)
	b.exec(`drop trigger fail on setpoint.requests`)
	b.set("x", client.Integer(1)) // Now there is a version 1.
	if err := ask(); err != nil {
		t.Errorf("the repeat: %v", err)
	}
}

// A late repeat of the call that ended a session does not end the id's next life.
func TestRepeatSparesTheNextLife(t *testing.T) {
	t.Parallel()
	b := setup(t)
	end := func() error {
		_, err := b.Sessions.DeleteSession(b.ctx, &setpointv1.DeleteSessionRequest{SessionId: "s", RequestId: "r"})
		return err
	}
	if err := end(); err != nil {
		t.Fatal(err)
	}
	b.session("s")
	if err := end(); err != nil {
		t.Errorf("the repeat: %v", err)
	}
	if _, err := b.Sessions.GetSession(b.ctx, &setpointv1.GetSessionRequest{SessionId: "s"}); err != nil {
		t.Errorf("the next life: %v", err)
	}
}

// Of a deleted variable, too, the API lists what its history limit shows.
func TestHistoryLimitOfTheDeleted(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.register(&setpointv1.RegisterVariableRequest{
		Name: "x", Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Value: client.Integer(0), HistoryLimit: ptr(int64(2)),
	})
	for i := range 5 {
		b.set("x", client.Integer(int64(i)))
	}
	if _, err := b.Variables.DeleteVariable(b.ctx, &setpointv1.DeleteVariableRequest{SessionId: "s", Variable: "x"}); err != nil {
		t.Fatal(err)
	}
	list, err := b.History.ListHistory(b.ctx, &setpointv1.ListHistoryRequest{SessionId: "s"})
	if err != nil {
		t.Fatal(err)
	}
	var revisions []int64
	for _, e := range list.GetEntries() {
		revisions = append(revisions, e.GetRevision())
	}
	equal(t, "revisions listed: the deletion, and versions 5 to 3", []int64{7, 6, 5, 4}, revisions)
}
