package service_test

import (
	"bytes"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/server"
)

const (
	invalidRequest  = setpointv1.ErrorReason_INVALID_REQUEST
	limitExceeded   = setpointv1.ErrorReason_LIMIT_EXCEEDED
	leaseLost       = setpointv1.ErrorReason_LEASE_LOST
	alreadyOptimize = setpointv1.ErrorReason_ALREADY_OPTIMIZING
)

// A start that is refused changes nothing: none of its variables is locked.
func TestStartsThatAreRefused(t *testing.T) {
	t.Parallel()
	b := setup(t, func(c *server.Config) { c.Limits.LeaseVariables, c.Limits.Optimizations = 5, 3 })
	b.integer("x")
	b.integer("y")
	y := b.get("y")
	b.derived("d", "x + 1")
	big, err := structpb.NewStruct(map[string]any{"a": strings.Repeat("a", 65<<10)})
	if err != nil {
		t.Fatal(err)
	}
	type change = func(*setpointv1.StartOptimizationRequest)
	for name, test := range map[string]struct {
		variables []string
		change    change
		want      setpointv1.ErrorReason
	}{
		"no variable":              {nil, nil, invalidRequest},
		"unknown among many":       {[]string{"x", "nobody", "y"}, nil, setpointv1.ErrorReason_VARIABLE_NOT_FOUND},
		"twice":                    {[]string{"x", "y", "x"}, nil, invalidRequest},
		"twice, by name and by id": {[]string{"y", y.GetVariableId()}, nil, invalidRequest},
		"derived":                  {[]string{"x", "d"}, nil, setpointv1.ErrorReason_DERIVED_VARIABLE},
		"too many":                 {names("v", 6), nil, limitExceeded},
		"ttl too short":            {[]string{"x"}, func(r *setpointv1.StartOptimizationRequest) { r.Ttl = seconds(0.999) }, invalidRequest},
		"ttl too long":             {[]string{"x"}, func(r *setpointv1.StartOptimizationRequest) { r.Ttl = seconds(3601) }, invalidRequest},
		"negative ttl":             {[]string{"x"}, func(r *setpointv1.StartOptimizationRequest) { r.Ttl = seconds(-1) }, invalidRequest},
		"ttl out of range": {[]string{"x"}, func(r *setpointv1.StartOptimizationRequest) {
			r.Ttl = &durationpb.Duration{Seconds: math.MaxInt64}
		}, invalidRequest},
		"negative grace":    {[]string{"x"}, func(r *setpointv1.StartOptimizationRequest) { r.Grace = seconds(-1) }, invalidRequest},
		"long grace":        {[]string{"x"}, func(r *setpointv1.StartOptimizationRequest) { r.Grace = seconds(3601) }, invalidRequest},
		"negative max_wait": {[]string{"x"}, func(r *setpointv1.StartOptimizationRequest) { r.MaxWait = seconds(-1) }, invalidRequest},
		"progress_timeout": {[]string{"x"}, func(r *setpointv1.StartOptimizationRequest) {
			r.ProgressTimeout = seconds(0.5)
		}, invalidRequest},
		"priority":  {[]string{"x"}, func(r *setpointv1.StartOptimizationRequest) { r.Priority = 1_000_001 }, invalidRequest},
		"strategy":  {[]string{"x"}, func(r *setpointv1.StartOptimizationRequest) { r.Conflict = 9 }, invalidRequest},
		"objective": {[]string{"x"}, func(r *setpointv1.StartOptimizationRequest) { r.Objective = &setpointv1.Objective{} }, invalidRequest},
		"NUL":       {[]string{"x"}, func(r *setpointv1.StartOptimizationRequest) { r.OptimizerId = "a\x00" }, invalidRequest},
		"config":    {[]string{"x"}, func(r *setpointv1.StartOptimizationRequest) { r.Config = big }, limitExceeded},
		"config NaN": {[]string{"x"}, func(r *setpointv1.StartOptimizationRequest) {
			r.Config = &structpb.Struct{Fields: map[string]*structpb.Value{"a": structpb.NewNumberValue(math.NaN())}}
		}, invalidRequest},
	} {
		for _, conflict := range []setpointv1.ConflictStrategy{1, 2, 3} {
			_, err := b.ask(test.variables, func(r *setpointv1.StartOptimizationRequest) {
				r.Conflict = conflict
				if test.change != nil {
					test.change(r)
				}
			})
			if e, ok := err.(*client.Error); !ok || e.Reason != test.want { //nolint:errorlint // The table's name goes first.
				t.Errorf("%s, %s: %v, want %s", name, conflict, err, test.want)
			}
		}
	}
	var left int
	b.row(&left, `select (select count(*) from setpoint.optimizations) + (select count(*) from setpoint.optimization_waiters)
		+ (select count(*) from setpoint.optimization_variables)
		+ (select count(*) from setpoint.variables where optimization_id is not null)`)
	equal(t, "what is left behind", 0, left)
	// As many as there may be open, and one more.
	b.start([]string{"x"})
	b.start([]string{"x"}, waits)
	b.start([]string{"x"}, waits)
	_, err = b.ask([]string{"x"}, waits)
	wantMetadata(t, wantReason(t, err, limitExceeded), map[string]string{"limit": "optimizations", "value": "3"})
}

func TestBoundsOfAStart(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.integer("x")
	o := b.start([]string{"x"}, func(r *setpointv1.StartOptimizationRequest) {
		r.Ttl, r.ProgressTimeout = seconds(1), seconds(2592000)
		r.Priority = -1_000_000
		r.OptimizerProcess = "host:1"
		r.Config = &structpb.Struct{Fields: map[string]*structpb.Value{"lr": structpb.NewNumberValue(1e-3)}}
	})
	got := b.optimization(o.GetOptimizationId())
	got.Remaining, o.Remaining = nil, nil
	if o.GetTtl().AsDuration() != time.Second || !strings.HasPrefix(o.GetOptimizerId(), "optimizer-") ||
		o.GetConfig().GetFields()["lr"].GetNumberValue() != 1e-3 || o.GetStartedBy() != "user:anonymous" {
		t.Errorf("started: %v", o)
	}
	equal(t, "read again", o, got)
	// Who does not wait at all is refused as one who aborts.
	_, err := b.ask([]string{"x"}, waits, func(r *setpointv1.StartOptimizationRequest) { r.MaxWait = seconds(0) })
	wantReason(t, err, alreadyOptimize)
	b.stop(o)
	free := b.start([]string{"x"}, waits, func(r *setpointv1.StartOptimizationRequest) { r.MaxWait = seconds(0) })
	if free.GetState() != active {
		t.Errorf("nothing to wait for: %v", free)
	}
}

// fenced are the ways to change a value, each of which asks the fence.
var fenced = map[string]func(b *bundle, lease *setpointv1.Lease) error{
	"set": func(b *bundle, lease *setpointv1.Lease) error { return b.write("x", 5, lease) },
	"set by id": func(b *bundle, lease *setpointv1.Lease) error {
		_, err := b.Variables.SetVariable(b.ctx, &setpointv1.SetVariableRequest{
			SessionId: "s", Variable: b.get("x").GetVariableId(), Value: client.Integer(5), Lease: lease,
		})
		return err
	},
	"set, of a large value": func(b *bundle, lease *setpointv1.Lease) error {
		_, err := b.Variables.SetVariable(b.ctx, &setpointv1.SetVariableRequest{
			SessionId: "s", Variable: "text", Value: client.String(strings.Repeat("a", 20<<10)), Lease: lease,
		})
		return err
	},
	"set, with dependents": func(b *bundle, lease *setpointv1.Lease) error {
		_, err := b.Variables.SetVariable(b.ctx, &setpointv1.SetVariableRequest{
			SessionId: "s", Variable: "needed", Value: client.Integer(b.get("needed").GetVersion() + 1), Lease: lease,
		})
		return err
	},
	"set, of another version": func(b *bundle, lease *setpointv1.Lease) error {
		_, err := b.Variables.SetVariable(b.ctx, &setpointv1.SetVariableRequest{
			SessionId: "s", Variable: "x", Value: client.Integer(5), ExpectedVersion: ptr(b.get("x").GetVersion()), Lease: lease,
		})
		return err
	},
	"dry run": func(b *bundle, lease *setpointv1.Lease) error {
		_, err := b.Variables.SetVariable(b.ctx, &setpointv1.SetVariableRequest{
			SessionId: "s", Variable: "x", Value: client.Integer(5), Lease: lease, DryRun: true,
		})
		return err
	},
	"batch": func(b *bundle, lease *setpointv1.Lease) error {
		r, err := b.Variables.BatchSetVariables(b.ctx, &setpointv1.BatchSetVariablesRequest{
			SessionId: "s", Writes: []*setpointv1.VariableWrite{{Variable: "x", Value: client.Integer(5)}}, Lease: lease,
		})
		if err == nil && r.GetResults()[0].GetError() != nil {
			return client.FromItem(r.GetResults()[0].GetError())
		}
		return err
	},
	"atomic batch": func(b *bundle, lease *setpointv1.Lease) error {
		_, err := b.Variables.BatchSetVariables(b.ctx, &setpointv1.BatchSetVariablesRequest{
			SessionId: "s", Writes: []*setpointv1.VariableWrite{{Variable: "x", Value: client.Integer(5)}}, Lease: lease,
			Atomic: true,
		})
		return err
	},
	"rollback": func(b *bundle, lease *setpointv1.Lease) error {
		_, err := b.History.RollbackVariable(b.ctx, &setpointv1.RollbackVariableRequest{SessionId: "s", Variable: "x", Lease: lease})
		return err
	},
	"rollback of another version": func(b *bundle, lease *setpointv1.Lease) error {
		_, err := b.History.RollbackVariable(b.ctx, &setpointv1.RollbackVariableRequest{
			SessionId: "s", Variable: "x", ExpectedVersion: ptr(b.get("x").GetVersion()), Lease: lease,
		})
		return err
	},
	"update of constraints": func(b *bundle, lease *setpointv1.Lease) error {
		_, err := b.Variables.UpdateVariable(b.ctx, &setpointv1.UpdateVariableRequest{
			SessionId: "s", Variable: "x", Constraints: &setpointv1.Constraints{Max: ptr(100.0)}, Lease: lease,
		})
		return err
	},
	"rollback of the session": func(b *bundle, lease *setpointv1.Lease) error {
		req := &setpointv1.RollbackSessionRequest{SessionId: "s", To: &setpointv1.RollbackSessionRequest_Revision{Revision: b.first}}
		if lease != nil {
			req.Leases = []*setpointv1.Lease{lease}
		}
		_, err := b.History.RollbackSession(b.ctx, req)
		return err
	},
	"~delete": func(b *bundle, lease *setpointv1.Lease) error { // Last of all, with the lease that holds.
		_, err := b.Variables.DeleteVariable(b.ctx, &setpointv1.DeleteVariableRequest{SessionId: "s", Variable: "x", Lease: lease})
		return err
	},
}

func TestTheFenceIsOnEveryPath(t *testing.T) {
	t.Parallel()
	for name, change := range fenced {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, clock := setupClock(t)
			b.integer("x")
			b.integer("needed")
			b.derived("follows", "needed")
			b.register(&setpointv1.RegisterVariableRequest{
				Name: "text", Type: setpointv1.VariableType_VARIABLE_TYPE_STRING, Value: client.String(""),
			})
			b.integer("other")
			b.first = b.revision()
			b.set("x", client.Integer(1))
			variables := []string{"x", "needed", "text"}
			old := b.start(variables)
			clock.Advance(time.Minute)
			other := b.start([]string{"other"})
			wantReason(t, change(b, lease(old)), leaseLost) // Though nobody has taken it since.
			o := b.start(variables)
			before := b.revision()
			wantReason(t, change(b, nil), alreadyOptimize)
			for _, wrong := range []*setpointv1.Lease{
				lease(old), lease(other),
				{OptimizationId: o.GetOptimizationId(), FencingToken: o.GetFencingToken() - 1},
				{OptimizationId: o.GetOptimizationId(), FencingToken: o.GetFencingToken() + 1},
				{OptimizationId: old.GetOptimizationId(), FencingToken: o.GetFencingToken()},
				{OptimizationId: "opt_00000000000000000000000000", FencingToken: o.GetFencingToken()},
			} {
				err := change(b, wrong)
				if name == "rollback of the session" && wrong.GetOptimizationId() == other.GetOptimizationId() {
					wantReason(t, err, alreadyOptimize) // It holds, but not on what is to be changed.
					continue
				}
				wantReason(t, err, leaseLost)
			}
			clock.Advance(time.Minute - time.Microsecond)
			equal(t, "the revision after refusals", before, b.revision())
			if err := change(b, lease(o)); err != nil {
				t.Fatal(err)
			}
			if name != "dry run" {
				var by string
				b.row(&by, `select optimization_id from setpoint.history where session_id = 's' and cause_revision is null
					order by revision desc limit 1`)
				equal(t, "whose change it was", o.GetOptimizationId(), by)
			}
			clock.Advance(time.Microsecond)
			if name != "~delete" {
				wantReason(t, change(b, lease(o)), leaseLost)
				if err := change(b, nil); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// What does not touch the value needs no lease.
func TestWhatALeaseDoesNotStop(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.integer("x")
	b.integer("y")
	b.start([]string{"x"})
	if _, err := b.Variables.UpdateVariable(b.ctx, &setpointv1.UpdateVariableRequest{
		SessionId: "s", Variable: "x", Metadata: map[string]string{"a": "b"}, HistoryLimit: ptr(int64(7)),
	}); err != nil {
		t.Error(err)
	}
	b.edge("y", "x")
	_, err := b.Variables.UpdateVariable(b.ctx, &setpointv1.UpdateVariableRequest{
		SessionId: "s", Variable: "x", Expression: ptr("1 + 1"),
	})
	wantReason(t, err, setpointv1.ErrorReason_DERIVED_VARIABLE)
	// Of a batch, those that are not optimized are written.
	r, err := b.Variables.BatchSetVariables(b.ctx, &setpointv1.BatchSetVariablesRequest{SessionId: "s", Writes: []*setpointv1.VariableWrite{
		{Variable: "x", Value: client.Integer(5)}, {Variable: "y", Value: client.Integer(5)},
	}})
	if err != nil || r.GetResults()[0].GetError().GetReason() != alreadyOptimize || r.GetResults()[1].GetVersion() != 1 {
		t.Error(r, err)
	}
}

func TestReportsThatAreRefused(t *testing.T) {
	t.Parallel()
	b := setup(t, func(c *server.Config) { c.Limits.ValueBytes = 1 << 10 })
	b.register(&setpointv1.RegisterVariableRequest{
		Name: "x", Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Value: client.Integer(0),
		Constraints: &setpointv1.Constraints{Max: ptr(10.0)},
	})
	b.integer("y")
	b.integer("free")
	o := b.start([]string{"x", "y"})
	other := b.start([]string{"free"})
	type values = map[string]*setpointv1.Value
	type request = setpointv1.ReportProgressRequest
	many := map[string]float64{}
	for i := range 101 {
		many[fmt.Sprint(i)] = 1
	}
	for name, test := range map[string]struct {
		change func(*request)
		want   setpointv1.ErrorReason
	}{
		"token of another":      {func(r *request) { r.FencingToken = 77 }, leaseLost},
		"token of another's id": {func(r *request) { r.OptimizationId, r.FencingToken = other.GetOptimizationId(), 9 }, leaseLost},
		"no token":              {func(r *request) { r.FencingToken = 0 }, invalidRequest},
		"not its variable":      {func(r *request) { r.Values = values{"free": client.Integer(1)} }, invalidRequest},
		"no variable":           {func(r *request) { r.Values = values{"nobody": client.Integer(1)} }, invalidRequest},
		"a variable twice": {func(r *request) {
			r.Values = values{"x": client.Integer(1), b.get("x").GetVariableId(): client.Integer(1)}
		}, invalidRequest},
		"too great":           {func(r *request) { r.Values = values{"x": client.Integer(11)} }, setpointv1.ErrorReason_CONSTRAINT_VIOLATION},
		"too great, applied":  {func(r *request) { r.Values, r.Apply = values{"x": client.Integer(11)}, true }, setpointv1.ErrorReason_CONSTRAINT_VIOLATION},
		"no integer":          {func(r *request) { r.Values = values{"x": client.String("a")} }, setpointv1.ErrorReason_TYPE_MISMATCH},
		"nothing to apply":    {func(r *request) { r.Apply = true }, invalidRequest},
		"step without number": {func(r *request) { r.Step = ptr(int64(1)) }, invalidRequest},
		"step applied": {func(r *request) {
			r.Number, r.Step, r.Apply, r.Values = ptr(int64(1)), ptr(int64(1)), true, values{"x": client.Integer(1)}
		}, invalidRequest},
		"negative number":      {func(r *request) { r.Number = ptr(int64(-1)) }, invalidRequest},
		"too many metrics":     {func(r *request) { r.Metrics = many }, invalidRequest},
		"metric without name":  {func(r *request) { r.Metrics = map[string]float64{"": 1} }, invalidRequest},
		"large checkpoint":     {func(r *request) { r.Checkpoint = bytes.Repeat([]byte{1}, 1025) }, limitExceeded},
		"large values":         {func(r *request) { r.Values = values{"x": client.String(strings.Repeat("a", 2000))} }, limitExceeded},
		"of nobody":            {func(r *request) { r.OptimizationId = "opt_00000000000000000000000000" }, setpointv1.ErrorReason_OPTIMIZATION_NOT_FOUND},
		"no optimization's id": {func(r *request) { r.OptimizationId = "x" }, invalidRequest},
	} {
		req := &request{SessionId: "s", OptimizationId: o.GetOptimizationId(), FencingToken: o.GetFencingToken()}
		test.change(req)
		_, err := b.Optimizations.ReportProgress(b.ctx, req)
		if e, ok := err.(*client.Error); !ok || e.Reason != test.want { //nolint:errorlint // The table's name goes first.
			t.Errorf("%s: %v, want %s", name, err, test.want)
		}
	}
	var trials int
	b.row(&trials, `select (select count(*) from setpoint.trials) + (select count(*) from setpoint.trial_metrics)`)
	equal(t, "trials", 0, trials)
	equal(t, "version", int64(0), b.get("x").GetVersion())
}

func TestStopsThatAreRefused(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.integer("x")
	b.integer("y")
	o := b.start([]string{"x"})
	waiter := b.start([]string{"x"}, waits)
	ada := b.dial(client.WithPrincipal("user:ada"))
	b.allow("s", "user:ada")
	owned := b.dial(client.WithPrincipal("user:bob"))
	if _, err := owned.Sessions.CreateSession(b.ctx, &setpointv1.CreateSessionRequest{SessionId: "of-bob"}); err != nil {
		t.Fatal(err)
	}
	type request = setpointv1.StopOptimizationRequest
	for name, test := range map[string]struct {
		c      *client.Client
		id     string
		change func(*request)
		want   setpointv1.ErrorReason
	}{
		"token of another":           {b.Client, o.GetOptimizationId(), func(r *request) { r.FencingToken = ptr(int64(9)) }, leaseLost},
		"nobody's token":             {b.Client, waiter.GetOptimizationId(), func(r *request) { r.FencingToken = ptr(int64(1)) }, leaseLost},
		"a stranger":                 {ada, o.GetOptimizationId(), func(*request) {}, setpointv1.ErrorReason_ACCESS_DENIED},
		"a stranger, of a waiter":    {ada, waiter.GetOptimizationId(), func(*request) {}, setpointv1.ErrorReason_ACCESS_DENIED},
		"force without a reason":     {b.Client, o.GetOptimizationId(), func(r *request) { r.Force = true }, invalidRequest},
		"force without a right":      {ada, o.GetOptimizationId(), func(r *request) { r.Force, r.Reason = true, "I like to" }, setpointv1.ErrorReason_ACCESS_DENIED},
		"no state to stop in":        {b.Client, o.GetOptimizationId(), func(r *request) { r.State = active }, invalidRequest},
		"a waiter is not completed":  {b.Client, waiter.GetOptimizationId(), func(r *request) { r.State = completed }, invalidRequest},
		"no best trial":              {b.Client, o.GetOptimizationId(), func(r *request) { r.ApplyBest = true }, invalidRequest},
		"best trial of a waiter":     {b.Client, waiter.GetOptimizationId(), func(r *request) { r.ApplyBest = true }, invalidRequest},
		"in another session":         {owned, o.GetOptimizationId(), func(r *request) { r.SessionId = "of-bob" }, setpointv1.ErrorReason_OPTIMIZATION_NOT_FOUND},
		"of a session that is no id": {b.Client, o.GetOptimizationId(), func(r *request) { r.SessionId = "?" }, invalidRequest},
	} {
		req := &request{SessionId: "s", OptimizationId: test.id}
		test.change(req)
		_, err := test.c.Optimizations.StopOptimization(b.ctx, req)
		if e, ok := err.(*client.Error); !ok || e.Reason != test.want { //nolint:errorlint // The table's name goes first.
			t.Errorf("%s: %v, want %s", name, err, test.want)
		}
	}
	b.wantState(o.GetOptimizationId(), active)
	b.wantState(waiter.GetOptimizationId(), waiting)
	// With the token anybody stops it, and a server admin does without.
	r, err := ada.Optimizations.StopOptimization(b.ctx, &request{
		SessionId: "s", OptimizationId: o.GetOptimizationId(), FencingToken: &o.FencingToken, State: failed, Reason: "diverged",
	})
	if err != nil || r.GetOptimization().GetState() != failed || r.GetOptimization().GetEndReason() != "diverged" {
		t.Fatal(r, err)
	}
	r, err = b.Optimizations.StopOptimization(b.ctx, &request{
		SessionId: "s", OptimizationId: waiter.GetOptimizationId(), Force: true, Reason: "in the way",
	})
	if err != nil || r.GetOptimization().GetState() != cancelled {
		t.Fatal(r, err)
	}
	_, err = b.Optimizations.StopOptimization(b.ctx, &request{SessionId: "s", OptimizationId: o.GetOptimizationId()})
	e := wantReason(t, err, setpointv1.ErrorReason_OPTIMIZATION_ENDED)
	wantMetadata(t, e, map[string]string{"optimization_id": o.GetOptimizationId(), "state": "OPTIMIZATION_STATE_FAILED"})
	// The owner forces what others have started, in his session.
	his, err := b.Variables.RegisterVariable(b.ctx, &setpointv1.RegisterVariableRequest{
		SessionId: "of-bob", Name: "x", Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Value: client.Integer(1),
	})
	if err != nil {
		t.Fatal(err)
	}
	b.allow("of-bob", "user:ada")
	theirs, err := ada.Optimizations.StartOptimization(b.ctx, &setpointv1.StartOptimizationRequest{
		SessionId: "of-bob", Variables: []string{his.GetVariableId()},
	})
	if err != nil {
		t.Fatal(err)
	}
	if seen, err := owned.Optimizations.GetOptimization(b.ctx, &setpointv1.GetOptimizationRequest{
		SessionId: "of-bob", OptimizationId: theirs.GetOptimizationId(),
	}); err != nil || seen.GetFencingToken() != 0 {
		t.Error("the token is shown to another principal: ", seen, err)
	}
	if _, err := owned.Optimizations.StopOptimization(b.ctx, &request{
		SessionId: "of-bob", OptimizationId: theirs.GetOptimizationId(), Force: true, Reason: "mine",
	}); err != nil {
		t.Error(err)
	}
}
