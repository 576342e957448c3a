package service_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

func TestSetVariable(t *testing.T) {
	t.Parallel()
	b := setup(t)
	x := b.register(&setpointv1.RegisterVariableRequest{
		Name: "x", Type: setpointv1.VariableType_VARIABLE_TYPE_FLOAT, Value: client.Float(1),
		Metadata: map[string]string{"from": "start"},
	})
	first, err := b.Variables.SetVariable(b.ctx, &setpointv1.SetVariableRequest{
		SessionId: "s", Variable: x.GetVariableId(), Value: client.Integer(2), ExpectedVersion: ptr(int64(0)),
		Metadata: map[string]string{"score": "0.9"}, Reason: "better",
	})
	if err != nil {
		t.Fatal(err)
	}
	if first.GetVersion() != 1 || first.GetRevision() != 2 || first.GetVariableId() != x.GetVariableId() {
		t.Errorf("answer %v", first)
	}
	got := b.get("x")
	equal(t, "after set", &setpointv1.Variable{
		VariableId: x.GetVariableId(), SessionId: "s", Name: "x", Type: x.GetType(), Value: client.Float(2),
		Metadata: map[string]string{"score": "0.9"}, Version: 1, Revision: 2, HistoryLimit: 50, CreatedAt: x.GetCreatedAt(),
		UpdatedAt: first.GetUpdatedAt(), UpdatedBy: "user:anonymous",
		AccessMode: setpointv1.AccessMode_ACCESS_MODE_PRIVATE,
	}, got)
	b.set("x", client.Float(2)) // An equal value is a version too, and keeps the metadata.
	if v := b.get("x"); v.GetVersion() != 2 || v.GetMetadata()["score"] != "0.9" {
		t.Errorf("after an equal set: %v", v)
	}
	if _, err := b.Variables.SetVariable(b.ctx, &setpointv1.SetVariableRequest{
		SessionId: "s", Variable: "x", Value: client.Float(3), ClearMetadata: true,
	}); err != nil {
		t.Fatal(err)
	}
	if v := b.get("x"); len(v.GetMetadata()) != 0 {
		t.Errorf("metadata was to be cleared: %v", v)
	}
	entry, err := b.History.GetVariableVersion(b.ctx, &setpointv1.GetVariableVersionRequest{SessionId: "s", Variable: "x", Version: 1})
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "history of version 1", &setpointv1.HistoryEntry{
		Revision: 2, Version: ptr(int64(1)), VariableId: x.GetVariableId(), Name: "x",
		Change: setpointv1.HistoryChange_HISTORY_CHANGE_SET, Value: client.Float(2),
		Metadata: map[string]string{"score": "0.9"}, Reason: "better", ChangedBy: "user:anonymous",
		ChangedAt: first.GetUpdatedAt(),
	}, entry)
}

func TestSetConverts(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.register(&setpointv1.RegisterVariableRequest{
		Name: "f", Type: setpointv1.VariableType_VARIABLE_TYPE_FLOAT, Value: jsonOf(t, "NaN"),
	})
	b.integer("i")
	b.register(&setpointv1.RegisterVariableRequest{
		Name: "m", Type: setpointv1.VariableType_VARIABLE_TYPE_MODULE, Value: client.String("cot"),
	})
	for _, test := range []struct {
		name     string
		in, want *setpointv1.Value
		mismatch bool
	}{
		{"f", client.Integer(3), client.Float(3), false},
		{"f", jsonNumber(0.25), client.Float(0.25), false},
		{"f", jsonOf(t, "-Infinity"), client.Float(-inf()), false},
		{"f", client.Bool(true), nil, true},
		{"i", client.Float(4), client.Integer(4), false},
		{"i", client.Float(4.5), nil, true},
		{"i", jsonOf(t, "9007199254740993"), client.Integer(9007199254740993), false},
		{"m", client.Choice("react"), client.Module("react"), false},
		{"m", client.Integer(1), nil, true},
	} {
		err := set(b, test.name, test.in)
		if test.mismatch {
			wantReason(t, err, setpointv1.ErrorReason_TYPE_MISMATCH)
			continue
		}
		if err != nil {
			t.Errorf("%s := %v: %v", test.name, test.in, err)
			continue
		}
		equal(t, fmt.Sprintf("%s := %v", test.name, test.in), test.want, b.get(test.name).GetValue())
	}
}

func inf() float64 { v, _ := strconv.ParseFloat("inf", 64); return v }

// A dry run answers as the call would, and writes nothing: no version, no revision, no record of its request.
func TestDryRun(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.integer("x")
	b.integer("y")
	before := b.revision()
	r, err := b.Variables.SetVariable(b.ctx, &setpointv1.SetVariableRequest{
		SessionId: "s", Variable: "x", Value: client.Integer(7), DryRun: true, RequestId: "r",
	})
	if err != nil || r.GetVersion() != 1 || r.GetRevision() != before+1 {
		t.Errorf("dry run: %v, %v", r, err)
	}
	_, err = b.Variables.SetVariable(b.ctx, &setpointv1.SetVariableRequest{
		SessionId: "s", Variable: "x", Value: client.String("seven"), DryRun: true,
	})
	wantReason(t, err, setpointv1.ErrorReason_TYPE_MISMATCH)
	batch, err := b.Variables.BatchSetVariables(b.ctx, &setpointv1.BatchSetVariablesRequest{
		SessionId: "s", DryRun: true, RequestId: "r",
		Writes: []*setpointv1.VariableWrite{{Variable: "x", Value: client.Integer(1)}, {Variable: "y", Value: client.Integer(2)}},
	})
	if err != nil || batch.GetResults()[1].GetRevision() != before+2 {
		t.Errorf("dry batch: %v, %v", batch, err)
	}
	if got := b.revision(); got != before {
		t.Errorf("revision %d after dry runs, want %d", got, before)
	}
	equal(t, "value", client.Integer(0), b.get("x").GetValue())
	var records int
	b.row(&records, `select count(*) from setpoint.requests`)
	if records != 0 {
		t.Errorf("%d requests are recorded", records)
	}
}

func TestBatchSetAlone(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, n := range []string{"a", "b", "c"} {
		b.integer(n)
	}
	b.set("c", client.Integer(1))
	before := b.revision()
	r, err := b.Variables.BatchSetVariables(b.ctx, &setpointv1.BatchSetVariablesRequest{SessionId: "s", Writes: []*setpointv1.VariableWrite{
		{Variable: "a", Value: client.Integer(1)},
		{Variable: "no", Value: client.Integer(1)},
		{Variable: "b", Value: client.String("x")},
		{Variable: "c", Value: client.Integer(1), ExpectedVersion: ptr(int64(0))},
		{Variable: b.get("b").GetVariableId() + "x", Value: client.Integer(1)},
	}})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, result := range r.GetResults() {
		got = append(got, fmt.Sprintf("%d %d %s %s", result.GetVersion(), result.GetRevision()-before,
			codes.Code(result.GetError().GetCode()), result.GetError().GetReason()))
	}
	equal(t, "results", []string{
		"1 1 OK ERROR_REASON_UNSPECIFIED",
		fmt.Sprintf("0 %d NotFound VARIABLE_NOT_FOUND", -before),
		fmt.Sprintf("0 %d InvalidArgument TYPE_MISMATCH", -before),
		fmt.Sprintf("0 %d Aborted VERSION_MISMATCH", -before),
		fmt.Sprintf("0 %d NotFound VARIABLE_NOT_FOUND", -before),
	}, got)
	if m := r.GetResults()[3].GetError().GetMetadata(); m["current_version"] != "1" {
		t.Errorf("the mismatch does not tell the current version: %v", m)
	}
	if got := b.revision(); got != before+1 {
		t.Errorf("revision went on by %d, want 1", got-before)
	}
}

func TestBatchSetAtomic(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, n := range []string{"a", "b"} {
		b.integer(n)
	}
	before := b.revision()
	_, err := b.Variables.BatchSetVariables(b.ctx, &setpointv1.BatchSetVariablesRequest{
		SessionId: "s", Atomic: true, Writes: []*setpointv1.VariableWrite{
			{Variable: "a", Value: client.Integer(1)},
			{Variable: "b", Value: client.Integer(1), ExpectedVersion: ptr(int64(9))},
			{Variable: "no", Value: client.Integer(1)},
		},
	})
	e := wantReason(t, err, setpointv1.ErrorReason_VERSION_MISMATCH) // The first that failed.
	if e.Metadata["current_version"] != "0" {
		t.Errorf("metadata %v", e.Metadata)
	}
	var failed []string
	for _, detail := range status.Convert(err).Details() {
		if f, ok := detail.(*setpointv1.BatchFailure); ok {
			for _, item := range f.GetItems() {
				failed = append(failed, fmt.Sprintf("%d %s", item.GetIndex(), item.GetError().GetReason()))
			}
		}
	}
	equal(t, "failing items", []string{"1 VERSION_MISMATCH", "2 VARIABLE_NOT_FOUND"}, failed)
	if got := b.revision(); got != before {
		t.Errorf("something was written: %d revisions", got-before)
	}
	r, err := b.Variables.BatchSetVariables(b.ctx, &setpointv1.BatchSetVariablesRequest{
		SessionId: "s", Atomic: true, Writes: []*setpointv1.VariableWrite{
			{Variable: "a", Value: client.Integer(1)}, {Variable: "b", Value: client.Integer(1)},
		},
	})
	if err != nil || len(r.GetResults()) != 2 || b.revision() != before+2 {
		t.Errorf("%v, %v", r, err)
	}
}

func TestBatchRefusesWhole(t *testing.T) {
	t.Parallel()
	b := setup(t)
	a := b.integer("a")
	one := client.Integer(1)
	before := b.revision()
	tests := map[string]struct {
		writes []*setpointv1.VariableWrite
		reason setpointv1.ErrorReason
	}{
		"nothing":               {nil, setpointv1.ErrorReason_INVALID_REQUEST},
		"a name twice":          {[]*setpointv1.VariableWrite{{Variable: "a", Value: one}, {Variable: "a", Value: one}}, setpointv1.ErrorReason_INVALID_REQUEST},
		"a variable by both":    {[]*setpointv1.VariableWrite{{Variable: "a", Value: one}, {Variable: a.GetVariableId(), Value: one}}, setpointv1.ErrorReason_INVALID_REQUEST},
		"an item without value": {[]*setpointv1.VariableWrite{{Variable: "a"}}, setpointv1.ErrorReason_INVALID_REQUEST},
		"more than it may have": {make([]*setpointv1.VariableWrite, 1001), setpointv1.ErrorReason_LIMIT_EXCEEDED},
	}
	for i := range tests["more than it may have"].writes {
		tests["more than it may have"].writes[i] = &setpointv1.VariableWrite{Variable: fmt.Sprint("v", i), Value: one}
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			for _, atomic := range []bool{false, true} {
				_, err := b.Variables.BatchSetVariables(b.ctx, &setpointv1.BatchSetVariablesRequest{
					SessionId: "s", Writes: test.writes, Atomic: atomic,
				})
				wantReason(t, err, test.reason)
			}
			if got := b.revision(); got != before {
				t.Errorf("something was written: revision %d", got)
			}
		})
	}
}

// Of writers that expect the same version one wins; each other is told the version that there is.
func TestRacingWriters(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.register(&setpointv1.RegisterVariableRequest{
		Name: "x", Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Value: client.Integer(0), HistoryLimit: ptr(int64(0)),
	})
	const writers, target = 16, 300
	var won [target + 1]atomic.Int64 // By version: how many were told that they made it.
	var wg sync.WaitGroup
	ctx, stop := context.WithCancel(b.ctx)
	defer stop()
	for range writers {
		wg.Go(func() {
			expected := int64(0)
			for expected < target {
				r, err := b.Variables.SetVariable(ctx, &setpointv1.SetVariableRequest{
					SessionId: "s", Variable: "x", Value: client.Integer(expected + 1), ExpectedVersion: &expected,
				})
				if err == nil {
					won[r.GetVersion()].Add(1)
					expected = r.GetVersion()
					continue
				}
				current, ok := client.CurrentVersion(err)
				if !ok || current <= expected {
					t.Errorf("refused at expected version %d: %v", expected, err)
					return
				}
				expected = current
			}
		})
	}
	wg.Wait()
	for version := 1; version <= target; version++ {
		if n := won[version].Load(); n != 1 {
			t.Errorf("version %d was won by %d", version, n)
		}
	}
	var problem *string
	b.row(&problem, `select string_agg(format('revision %s version %s value %s', revision, version, value), E'\n')
		from setpoint.history where session_id = 's' and (value::text <> version::text or revision <> version + 1)`)
	if problem != nil {
		t.Error(*problem)
	}
}

// Constraints that somebody changes while others write bind at once: no value that they refuse gets in, on a server that
// knew the old ones.
func TestRacingConstraints(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.register(&setpointv1.RegisterVariableRequest{
		Name: "x", Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Value: client.Integer(0), HistoryLimit: ptr(int64(0)),
	})
	refused := func(err error) bool {
		e, ok := errors.AsType[*client.Error](err)
		return ok && e.Reason == setpointv1.ErrorReason_CONSTRAINT_VIOLATION
	}
	narrow := func() error {
		// The metadata, which every set keeps, tells in history what was in force.
		_, err := b.Variables.UpdateVariable(b.ctx, &setpointv1.UpdateVariableRequest{
			SessionId: "s", Variable: "x", Constraints: &setpointv1.Constraints{Max: ptr(10.0)},
			Metadata: map[string]string{"max": "10"},
		})
		return err
	}
	b.set("x", client.Integer(0)) // Now the server knows the variable without constraints.
	const writers = 4
	narrowed := make(chan struct{}) // Closed when it is, for the first time.
	var wg, tried sync.WaitGroup
	tried.Add(writers)
	for range writers {
		wg.Go(func() {
			for !isClosed(narrowed) {
				if err := set(b, "x", client.Integer(0)); err != nil {
					t.Error(err)
				}
			}
			if err := set(b, "x", client.Integer(100)); !refused(err) {
				t.Errorf("100 while the maximum is 10: %v", err)
			}
			tried.Done()
			for i := range 60 {
				if err := set(b, "x", client.Integer(int64(i%2)*100)); err != nil && !refused(err) {
					t.Error(err)
				}
			}
		})
	}
	wg.Go(func() {
		if err := narrow(); err != nil { // Nobody sets more than 0 yet.
			t.Error(err)
		}
		close(narrowed)
		tried.Wait()
		for range 30 {
			if _, err := b.Variables.UpdateVariable(b.ctx, &setpointv1.UpdateVariableRequest{
				SessionId: "s", Variable: "x", Constraints: &setpointv1.Constraints{}, ClearMetadata: true,
			}); err != nil {
				t.Error(err)
			}
			if err := set(b, "x", client.Integer(0)); err != nil {
				t.Error(err)
			}
			if err := narrow(); err != nil && !refused(err) { // While somebody's 100 stands.
				t.Error(err)
			}
		}
	})
	wg.Wait()
	var times, wrong int
	b.row(&times, `select count(*) from setpoint.history where change = 'updated' and metadata ->> 'max' = '10'`)
	b.row(&wrong, `select count(*) from setpoint.history where change = 'set' and value = '100' and metadata ->> 'max' = '10'`)
	if times == 0 || wrong != 0 {
		t.Errorf("%d values were set against the constraints in force, which were narrowed %d times", wrong, times)
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
