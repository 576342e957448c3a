package service_test

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// derived registers a float that is computed.
func (b *bundle) derived(name, expression string, change ...func(*setpointv1.RegisterVariableRequest)) *setpointv1.Variable {
	b.t.Helper()
	req := &setpointv1.RegisterVariableRequest{
		Name: name, Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Expression: expression,
	}
	for _, c := range change {
		c(req)
	}
	return b.register(req)
}

// dependent registers an integer at 0 that depends on others, and is not computed.
func (b *bundle) dependent(name string, on ...string) *setpointv1.Variable {
	b.t.Helper()
	return b.register(&setpointv1.RegisterVariableRequest{
		Name: name, Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Value: client.Integer(0), DependsOn: on,
	})
}

// state is a variable as a text: its value, its version, and whether it is stale.
func (b *bundle) state(name string) string {
	b.t.Helper()
	v := b.get(name)
	text := fmt.Sprintf("%d v%d", v.GetValue().GetInteger(), v.GetVersion())
	if stale := v.GetStale(); stale != nil {
		text += fmt.Sprintf(" stale by %s at %d", stale.GetCause(), stale.GetRevision())
		if stale.GetError() != "" {
			text += ": " + stale.GetError()
		}
	}
	return text
}

func recomputedText(recomputed []*setpointv1.RecomputedVariable) []string {
	var out []string
	for _, r := range recomputed {
		out = append(out, fmt.Sprintf("%s=%d v%d", r.GetVariable(), r.GetValue().GetInteger(), r.GetVersion()))
	}
	return out
}

func staleText(stale []*setpointv1.StaleVariable) []string {
	var out []string
	for _, s := range stale {
		out = append(out, s.GetVariable())
	}
	return out
}

func TestDiamondIsRecomputedOnce(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.integer("a")
	b.derived("l", "a + 1")
	b.derived("r", "a * 2")
	b.derived("end", "l + r")
	b.dependent("plain", "end")
	b.dependent("after", "plain")
	set := b.set("a", client.Integer(5))
	if diff := cmp.Diff([]string{"l=6 v1", "r=10 v1", "end=16 v1"}, recomputedText(set.GetRecomputed())); diff != "" {
		t.Errorf("recomputed: %s", diff)
	}
	if diff := cmp.Diff([]string{"plain", "after"}, staleText(set.GetStale())); diff != "" {
		t.Errorf("stale: %s", diff)
	}
	want := map[string]string{
		"a": "5 v1", "l": "6 v1", "r": "10 v1", "end": "16 v1",
		"plain": fmt.Sprintf("0 v0 stale by a at %d", set.GetRevision()),
		"after": fmt.Sprintf("0 v0 stale by a at %d", set.GetRevision()),
	}
	for name, state := range want {
		if got := b.state(name); got != state {
			t.Errorf("%s is %s, not %s", name, got, state)
		}
	}
}

func TestCycleIsRefusedWithItsPath(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, name := range []string{"a", "b", "c"} {
		b.integer(name)
	}
	b.edge("b", "a")
	b.edge("c", "b")
	_, err := b.Dependencies.AddDependency(b.ctx, &setpointv1.AddDependencyRequest{SessionId: "s", Dependent: "a", Dependency: "c"})
	wantPath(t, err, "a", "c", "b", "a")
}

func (b *bundle) edge(dependent, dependency string) *setpointv1.Dependency {
	b.t.Helper()
	d, err := b.Dependencies.AddDependency(b.ctx, &setpointv1.AddDependencyRequest{
		SessionId: "s", Dependent: dependent, Dependency: dependency,
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return d
}

// wantPath fails the test unless an error tells a cycle.
func wantPath(t *testing.T, err error, want ...string) {
	t.Helper()
	e := wantReason(t, err, setpointv1.ErrorReason_WOULD_CREATE_CYCLE)
	var path []string
	if err := json.Unmarshal([]byte(e.Metadata["path"]), &path); err != nil {
		t.Fatal(err)
	}
	equal(t, "path", want, path)
}

// A variable that could not be computed keeps its value and says why, until it can be.
func TestStaleUntilItCanBeComputed(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.integer("a")
	b.set("a", client.Integer(4))
	b.derived("d", "100 / a")
	b.derived("bounded", "a * 10", func(r *setpointv1.RegisterVariableRequest) {
		r.Constraints = &setpointv1.Constraints{Max: ptr(50.0)}
	})
	b.dependent("plain", "d")
	zero := b.set("a", client.Integer(0))
	equal(t, "d", fmt.Sprintf("25 v0 stale by a at %d: 1:5: division by zero", zero.GetRevision()), b.state("d"))
	equal(t, "what depends on it", fmt.Sprintf("0 v0 stale by a at %d", zero.GetRevision()), b.state("plain"))
	equal(t, "stale", []string{"d", "plain"}, staleText(zero.GetStale()))
	equal(t, "bounded", "0 v1", b.state("bounded"))

	big := b.set("a", client.Integer(9))
	equal(t, "d", "11 v1", b.state("d"))
	equal(t, "bounded", fmt.Sprintf("0 v1 stale by a at %d: bounded: 90 is above the maximum 50", big.GetRevision()), b.state("bounded"))
	equal(t, "the first cause stays", fmt.Sprintf("0 v0 stale by a at %d", zero.GetRevision()), b.state("plain"))
	b.set("plain", client.Integer(0))
	equal(t, "set, though to an equal value", "0 v1", b.state("plain"))

	b.set("a", client.Integer(0))
	again := b.set("a", client.Integer(9))
	equal(t, "equal to what it has", "11 v1", b.state("d"))
	equal(t, "nothing is recomputed to another value", 0, len(again.GetRecomputed()))
	entries := b.changesOf("d")
	last := entries[0]
	equal(t, "the end of the mark", setpointv1.HistoryChange_HISTORY_CHANGE_STALE_CLEARED, last.GetChange())
	equal(t, "its cause", &setpointv1.Cause{Variable: "a", Revision: again.GetRevision()}, last.GetCausedBy())
	if last.Version != nil {
		t.Errorf("the end of a mark made version %d", last.GetVersion())
	}
	if e := entries[1]; e.GetChange() != setpointv1.HistoryChange_HISTORY_CHANGE_STALE || e.GetError() != "1:5: division by zero" {
		t.Errorf("the mark is told as %v", e)
	}
}

// changesOf are all changes of a variable, newest first.
func (b *bundle) changesOf(name string) []*setpointv1.HistoryEntry {
	b.t.Helper()
	var all []setpointv1.HistoryChange
	for n := range setpointv1.HistoryChange_name {
		if n != 0 {
			all = append(all, setpointv1.HistoryChange(n))
		}
	}
	r, err := b.History.ListHistory(b.ctx, &setpointv1.ListHistoryRequest{SessionId: "s", Variable: name, Changes: all})
	if err != nil {
		b.t.Fatal(err)
	}
	return r.GetEntries()
}

// A strict variable refuses what it could not follow: of a batch only that, unless it is atomic.
func TestStrictRefusesTheWrite(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.integer("a")
	b.integer("other")
	b.set("a", client.Integer(2))
	b.derived("middle", "a")
	b.derived("d", "100 / middle", func(r *setpointv1.RegisterVariableRequest) { r.Strict = true })
	b.derived("fine", "other + 1")
	before := b.revision()
	e := wantReason(t, set(b, "a", client.Integer(0)), setpointv1.ErrorReason_DERIVATION_FAILED)
	wantMetadata(t, e, map[string]string{"variable": "d"})
	if e.Message != "d cannot be computed: 1:5: division by zero" {
		t.Errorf("message %q", e.Message)
	}
	equal(t, "revision", before, b.revision())
	writes := []*setpointv1.VariableWrite{
		{Variable: "other", Value: client.Integer(7)}, {Variable: "a", Value: client.Integer(0)},
	}
	batch, err := b.Variables.BatchSetVariables(b.ctx, &setpointv1.BatchSetVariablesRequest{SessionId: "s", Writes: writes})
	if err != nil {
		t.Fatal(err)
	}
	if r := batch.GetResults(); r[0].GetError() != nil || r[1].GetError().GetReason() != setpointv1.ErrorReason_DERIVATION_FAILED {
		t.Errorf("results %v", r)
	}
	equal(t, "recomputed", []string{"fine=8 v1"}, recomputedText(batch.GetRecomputed()))
	before = b.revision()
	_, err = b.Variables.BatchSetVariables(b.ctx, &setpointv1.BatchSetVariablesRequest{SessionId: "s", Writes: writes, Atomic: true})
	wantReason(t, err, setpointv1.ErrorReason_DERIVATION_FAILED)
	equal(t, "revision", before, b.revision())
	_, err = b.Variables.DeleteVariable(b.ctx, &setpointv1.DeleteVariableRequest{SessionId: "s", Variable: "middle", Cascade: true})
	wantReason(t, err, setpointv1.ErrorReason_DERIVATION_FAILED)
	_, err = b.Variables.UpdateVariable(b.ctx, &setpointv1.UpdateVariableRequest{SessionId: "s", Variable: "d", Expression: ptr("1 / 0")})
	wantReason(t, err, setpointv1.ErrorReason_DERIVATION_FAILED)
	equal(t, "revision", before, b.revision())
	equal(t, "d", "50 v0", b.state("d"))
}

// A batch is followed once, after all of it.
func TestBatchIsFollowedOnce(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.integer("a")
	b.integer("b")
	b.derived("sum", "a + b")
	b.dependent("p", "a")
	b.dependent("q", "b")
	r, err := b.Variables.BatchSetVariables(b.ctx, &setpointv1.BatchSetVariablesRequest{
		SessionId: "s", Writes: []*setpointv1.VariableWrite{
			{Variable: "p", Value: client.Integer(1)}, {Variable: "b", Value: client.Integer(2)},
			{Variable: "a", Value: client.Integer(3)}, {Variable: "absent", Value: client.Integer(3)},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "recomputed", []string{"sum=5 v1"}, recomputedText(r.GetRecomputed()))
	equal(t, "stale, apart from what the batch has set", []string{"q"}, staleText(r.GetStale()))
	cause := b.changesOf("sum")[0].GetCausedBy()
	equal(t, "the cause is the first of both", &setpointv1.Cause{Variable: "b", Revision: r.GetResults()[1].GetRevision()}, cause)
	// As of any revision of the transaction the session is as it was after it.
	for revision := r.GetResults()[0].GetRevision(); revision <= b.revision(); revision++ {
		snapshot, err := b.History.GetSnapshot(b.ctx, &setpointv1.GetSnapshotRequest{
			SessionId: "s", At: &setpointv1.GetSnapshotRequest_Revision{Revision: revision},
		})
		if err != nil {
			t.Fatal(err)
		}
		equal(t, "revision of the snapshot", b.revision(), snapshot.GetRevision())
	}
}

// A dry run tells what would follow, and nothing does.
func TestImpactPreview(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.integer("a")
	b.derived("d", "a * 2")
	b.derived("broken", "1 / (a - 3)")
	b.dependent("p", "d")
	before := b.revision()
	req := &setpointv1.SetVariableRequest{SessionId: "s", Variable: "a", Value: client.Integer(3), DryRun: true}
	dry, err := b.Variables.SetVariable(b.ctx, req)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "revision", before, b.revision())
	equal(t, "recomputed", []string{"d=6 v1"}, recomputedText(dry.GetRecomputed()))
	equal(t, "stale", []string{"broken", "p"}, staleText(dry.GetStale()))
	equal(t, "why", "1:3: division by zero", dry.GetStale()[0].GetError())
	req.DryRun = false
	done, err := b.Variables.SetVariable(b.ctx, req)
	if err != nil {
		t.Fatal(err)
	}
	dry.UpdatedAt, done.UpdatedAt = nil, nil
	equal(t, "what is done", dry, done)
	batch, err := b.Variables.BatchSetVariables(b.ctx, &setpointv1.BatchSetVariablesRequest{
		SessionId: "s", DryRun: true, Writes: []*setpointv1.VariableWrite{{Variable: "a", Value: client.Integer(5)}},
	})
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "recomputed of the batch", []string{"d=10 v2"}, recomputedText(batch.GetRecomputed()))
	equal(t, "d", "6 v1", b.state("d"))
}

// Rollbacks are followed as sets are; a session's leaves derived variables to their expressions.
func TestRollbacksAreFollowed(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.integer("a")
	b.derived("d", "a + 1")
	b.dependent("p", "d")
	b.set("a", client.Integer(10))
	b.set("p", client.Integer(1))
	at := b.revision()
	b.set("a", client.Integer(20))
	if _, err := b.History.RollbackVariable(b.ctx, &setpointv1.RollbackVariableRequest{SessionId: "s", Variable: "a", Version: 1}); err != nil {
		t.Fatal(err)
	}
	equal(t, "d", "11 v3", b.state("d"))
	_, err := b.History.RollbackVariable(b.ctx, &setpointv1.RollbackVariableRequest{SessionId: "s", Variable: "d", Version: 1})
	wantReason(t, err, setpointv1.ErrorReason_DERIVED_VARIABLE)
	b.set("a", client.Integer(30))
	rolledBack, err := b.History.RollbackSession(b.ctx, &setpointv1.RollbackSessionRequest{
		SessionId: "s", To: &setpointv1.RollbackSessionRequest_Revision{Revision: at},
	})
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "d", "11 v5", b.state("d"))
	equal(t, "recomputed", []string{"d=11 v5"}, recomputedText(rolledBack.GetRecomputed()))
	equal(t, "revision", b.revision(), rolledBack.GetRevision())
	restored := rolledBack.GetRestored()
	if len(restored) != 1 || restored[0].GetName() != "a" || restored[0].GetRevision() != b.revision()-1 {
		t.Errorf("restored %v", restored)
	}
}

// What depends on a deleted variable stays, without the edge.
func TestDeletionCascades(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.integer("a")
	b.integer("other")
	b.derived("d", "a + other")
	b.dependent("p", "a")
	b.dependent("after", "d")
	_, err := b.Variables.DeleteVariable(b.ctx, &setpointv1.DeleteVariableRequest{SessionId: "s", Variable: "a"})
	e := wantReason(t, err, setpointv1.ErrorReason_HAS_DEPENDENTS)
	wantMetadata(t, e, map[string]string{"variable": "a", "dependents": `["d","p"]`})
	deleted, err := b.Variables.DeleteVariable(b.ctx, &setpointv1.DeleteVariableRequest{SessionId: "s", Variable: "a", Cascade: true})
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "stale", []string{"d", "after"}, staleText(deleted.GetStale()))
	equal(t, "p", "0 v0", b.state("p"))
	equal(t, "d depends on", []string{"other"}, b.get("d").GetDependsOn())
	for _, name := range []string{"d", "p"} {
		changes := b.changesOf(name)
		gone := changes[len(changes)-2]
		if gone.GetChange() != setpointv1.HistoryChange_HISTORY_CHANGE_DEPENDENCY_REMOVED || gone.GetDependency() != "a" ||
			gone.GetCausedBy().GetRevision() != deleted.GetRevision() {
			t.Errorf("the edge of %s went as %v", name, gone)
		}
	}
	b.set("other", client.Integer(3))
	equal(t, "d, which can no longer be computed", "0 v0", b.state("d")[:4])
	// A new variable of the name is another one, until somebody says that it is meant.
	b.integer("a")
	b.set("a", client.Integer(4))
	equal(t, "d", "0 v0", b.state("d")[:4])
	b.edge("d", "a")
	equal(t, "d, now that it can be computed", "7 v1", b.state("d"))
	v, err := b.Variables.UpdateVariable(b.ctx, &setpointv1.UpdateVariableRequest{SessionId: "s", Variable: "d", Expression: ptr("a + other")})
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "d", "7 v2", b.state("d"))
	equal(t, "d depends on", []string{"a", "other"}, v.GetDependsOn())
}
