package service_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/server"
)

// state is a variable as the model knows it.
type state struct {
	ID       string
	Version  int64
	Value    int64
	Metadata string
}

// snapshots is a session as the model knows it: the variables by name, as of each revision.
type snapshots []map[string]state

// change is what an accepted call did at a revision: the variable's new state, or its end.
type change struct {
	name    string
	state   state
	deleted bool
	// metadata tells that only that changed.
	metadata bool
	// keep tells that the metadata stays.
	keep bool
	// to is the revision that a session's rollback went to, whose value this is to be; -1 otherwise.
	to int64
	// toVersion is the version that a variable's rollback went to, and then its value is that; -1 otherwise.
	toVersion int64
}

// caller makes random calls and notes what was accepted, by revision.
type caller struct {
	b       *bundle
	session string
	mu      *sync.Mutex
	changes map[int64]change
	rolled  *[]*setpointv1.RollbackSessionResponse
}

func (c *caller) note(revision int64, what change) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if before, twice := c.changes[revision]; twice {
		c.b.t.Errorf("revision %d is %+v and %+v", revision, before, what)
	}
	c.changes[revision] = what
}

// step is one random call.
type step struct {
	kind, variable int
	value, back    int64
}

func (c *caller) do(s step) error {
	name := fmt.Sprint("v", s.variable)
	ctx := c.b.ctx
	metadata := map[string]string{"m": fmt.Sprint(s.value)}
	switch s.kind {
	case 0, 1:
		v, err := c.b.Variables.RegisterVariable(ctx, &setpointv1.RegisterVariableRequest{
			SessionId: c.session, Name: name, Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER,
			Value: client.Integer(s.value), Metadata: metadata, HistoryLimit: ptr(int64(0)),
		})
		if err == nil {
			c.note(v.GetRevision(), change{name: name, to: -1, toVersion: -1,
				state: state{ID: v.GetVariableId(), Value: s.value, Metadata: metadata["m"]}})
		}
		return err
	case 2, 3, 4, 5:
		req := &setpointv1.SetVariableRequest{SessionId: c.session, Variable: name, Value: client.Integer(s.value)}
		if s.kind == 5 {
			req.Metadata = metadata
		}
		r, err := c.b.Variables.SetVariable(ctx, req)
		if err == nil {
			c.note(r.GetRevision(), change{name: name, keep: s.kind != 5, to: -1, toVersion: -1,
				state: state{ID: r.GetVariableId(), Version: r.GetVersion(), Value: s.value, Metadata: metadata["m"]}})
		}
		return err
	case 6:
		r, err := c.b.Variables.DeleteVariable(ctx, &setpointv1.DeleteVariableRequest{SessionId: c.session, Variable: name})
		if err == nil {
			c.note(r.GetRevision(), change{name: name, deleted: true})
		}
		return err
	case 7:
		v, err := c.b.Variables.UpdateVariable(ctx, &setpointv1.UpdateVariableRequest{
			SessionId: c.session, Variable: name, Metadata: metadata,
		})
		if err == nil {
			c.note(v.GetRevision(), change{name: name, metadata: true, state: state{Metadata: metadata["m"]}})
		}
		return err
	case 8:
		v, err := c.b.History.RollbackVariable(ctx, &setpointv1.RollbackVariableRequest{
			SessionId: c.session, Variable: name, Version: s.back,
		})
		if err == nil {
			c.note(v.GetRevision(), change{name: name, keep: true, to: -1, toVersion: s.back,
				state: state{ID: v.GetVariableId(), Version: v.GetVersion(), Value: v.GetValue().GetInteger()}})
		}
		return err
	default:
		r, err := c.b.History.RollbackSession(ctx, &setpointv1.RollbackSessionRequest{
			SessionId: c.session, To: &setpointv1.RollbackSessionRequest_Revision{Revision: s.back},
		})
		if err == nil {
			c.mu.Lock()
			*c.rolled = append(*c.rolled, r)
			c.mu.Unlock()
		}
		for _, v := range r.GetRestored() {
			c.note(v.GetRevision(), change{name: v.GetName(), keep: true, to: s.back, toVersion: -1,
				state: state{ID: v.GetVariableId(), Version: v.GetVersion(), Value: v.GetThen().GetInteger()}})
		}
		return err
	}
}

// expected are the refusals that random calls may meet.
func expected(err error) bool {
	for _, known := range []error{client.ErrVariableExists, client.ErrVariableNotFound, client.ErrVersionNotAvailable, client.ErrInvalidRequest} {
		if errors.Is(err, known) {
			return true
		}
	}
	return err == nil
}

// replay turns the changes, in the order of their revisions, into the session as of each.
func replay(t *rapid.T, changes map[int64]change) snapshots {
	all := snapshots{{}}
	byVersion := map[string]map[int64]int64{} // The values of each variable's versions, by id.
	for revision := int64(1); revision <= int64(len(changes)); revision++ {
		c, ok := changes[revision]
		if !ok {
			t.Fatalf("no accepted call made revision %d of %d", revision, len(changes))
		}
		now := maps.Clone(all[revision-1])
		before, existed := now[c.name]
		after := c.state
		if c.keep {
			after.Metadata = before.Metadata
		}
		switch {
		case c.deleted:
			delete(now, c.name)
		case c.metadata:
			before.Metadata = after.Metadata
			now[c.name] = before
		default:
			if existed && (after.ID != before.ID || after.Version != before.Version+1) {
				t.Fatalf("revision %d: %+v follows %+v", revision, after, before)
			}
			if c.to >= 0 && all[c.to][c.name].Value != after.Value {
				t.Fatalf("revision %d restored %d; at revision %d it was %+v", revision, after.Value, c.to, all[c.to][c.name])
			}
			if byVersion[after.ID] == nil {
				byVersion[after.ID] = map[int64]int64{}
			}
			byVersion[after.ID][after.Version] = after.Value
			if c.toVersion >= 0 && byVersion[after.ID][c.toVersion] != after.Value {
				t.Fatalf("revision %d rolled back to %d; version %d was %d", revision, after.Value, c.toVersion,
					byVersion[after.ID][c.toVersion])
			}
			now[c.name] = after
		}
		all = append(all, now)
	}
	return all
}

// snapshot reads all pages.
func (b *bundle) snapshot(req *setpointv1.GetSnapshotRequest) (map[string]state, int64, error) {
	got := map[string]state{}
	for {
		page, err := b.History.GetSnapshot(b.ctx, req)
		if err != nil {
			return nil, 0, err
		}
		for _, v := range page.GetVariables() {
			got[v.GetName()] = state{
				ID: v.GetVariableId(), Version: v.GetVersion(), Value: v.GetValue().GetInteger(), Metadata: v.GetMetadata()["m"],
			}
		}
		if req.PageToken = page.GetNextPageToken(); req.PageToken == "" {
			return got, page.GetRevision(), nil
		}
	}
}

// Whatever several callers do at once: each accepted change has a revision of its own, without a gap, and for every
// revision the snapshot is the model's, by revision and by time.
func TestSnapshotsAreTheModels(t *testing.T) {
	t.Parallel()
	b := setup(t)
	round := 0
	rapid.Check(t, func(t *rapid.T) {
		round++
		session := fmt.Sprintf("round%d", round)
		b.session(session)
		steps := rapid.SliceOfN(rapid.SliceOfN(rapid.Custom(func(t *rapid.T) step {
			return step{
				kind: rapid.IntRange(0, 9).Draw(t, "kind"), variable: rapid.IntRange(0, 4).Draw(t, "variable"),
				value: rapid.Int64Range(0, 99).Draw(t, "value"), back: rapid.Int64Range(0, 8).Draw(t, "back"),
			}
		}), 1, 12), 1, 4).Draw(t, "calls of each caller")
		changes, mu := map[int64]change{}, &sync.Mutex{}
		var rolled []*setpointv1.RollbackSessionResponse
		var wg sync.WaitGroup
		for _, mine := range steps {
			wg.Go(func() {
				for _, s := range mine {
					c := &caller{b: b, session: session, mu: mu, changes: changes, rolled: &rolled}
					if err := c.do(s); !expected(err) {
						b.t.Errorf("%+v: %v", s, err)
					}
				}
			})
		}
		wg.Wait()
		model := replay(t, changes)
		for _, r := range rolled {
			compareRollback(t, model, r)
		}
		compareSnapshots(t, b, session, model, rapid.Int32Range(1, 5).Draw(t, "page size"))
	})
}

// compareRollback checks what a rollback of the session says that it did against what the model says it had to do.
func compareRollback(t *rapid.T, model snapshots, got *setpointv1.RollbackSessionResponse) {
	before, then := model[got.GetRevision()-int64(len(got.GetRestored()))], model[got.GetTargetRevision()]
	thenByID := map[string]state{}
	for _, s := range then {
		thenByID[s.ID] = s
	}
	want := &setpointv1.RollbackSessionResponse{TargetRevision: got.GetTargetRevision(), Revision: got.GetRevision()}
	for _, name := range slices.Sorted(maps.Keys(before)) {
		now := before[name]
		was, existed := thenByID[now.ID]
		delete(thenByID, now.ID)
		switch {
		case !existed:
			want.RegisteredSince = append(want.RegisteredSince, name)
		case was.Version == now.Version:
			want.UnchangedCount++
		default:
			want.Restored = append(want.Restored, &setpointv1.RestoredVariable{
				VariableId: now.ID, Name: name, ThenVersion: was.Version, Then: client.Integer(was.Value),
				PreviousVersion: now.Version, Previous: client.Integer(now.Value), Version: now.Version + 1,
			})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(then)) {
		if _, gone := thenByID[then[name].ID]; gone {
			want.DeletedSince = append(want.DeletedSince, name)
		}
	}
	slices.SortFunc(want.Restored, func(a, b *setpointv1.RestoredVariable) int { return strings.Compare(a.VariableId, b.VariableId) })
	for i, v := range want.GetRestored() {
		v.Revision = got.GetRevision() - int64(len(want.GetRestored())-i-1)
	}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Fatalf("rollback to revision %d (-model +got):\n%s", got.GetTargetRevision(), diff)
	}
}

func compareSnapshots(t *rapid.T, b *bundle, session string, model snapshots, pageSize int32) {
	times := map[int64]time.Time{}
	rows, err := b.sql.Query(b.ctx, `select revision, changed_at from setpoint.history where session_id = $1`, session)
	if err != nil {
		t.Fatal(err)
	}
	for rows.Next() {
		var revision int64
		var at time.Time
		if err := rows.Scan(&revision, &at); err != nil {
			t.Fatal(err)
		}
		times[revision] = at
	}
	for revision, want := range model {
		got, at, err := b.snapshot(&setpointv1.GetSnapshotRequest{
			SessionId: session, PageSize: pageSize, At: &setpointv1.GetSnapshotRequest_Revision{Revision: int64(revision)},
		})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" || at != int64(revision) {
			t.Fatalf("snapshot at revision %d is as of %d (-model +got):\n%s", revision, at, diff)
		}
		if revision == 0 {
			continue
		}
		last := int64(revision) // Of several changes at one time, that time is the last's.
		for times[last+1].Equal(times[int64(revision)]) {
			last++
		}
		got, at, err = b.snapshot(&setpointv1.GetSnapshotRequest{
			SessionId: session, PageSize: pageSize,
			At: &setpointv1.GetSnapshotRequest_Time{Time: timestamppb.New(times[int64(revision)])},
		})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(model[last], got); diff != "" || at != last {
			t.Fatalf("snapshot at the time of revision %d is as of %d, want %d (-model +got):\n%s", revision, at, last, diff)
		}
	}
	now, _, err := b.snapshot(&setpointv1.GetSnapshotRequest{SessionId: session})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(model[len(model)-1], now); diff != "" {
		t.Fatalf("snapshot of now (-model +got):\n%s", diff)
	}
}

func TestSnapshotRefuses(t *testing.T) {
	t.Parallel()
	b := setup(t)
	created := b.integer("x").GetCreatedAt().AsTime()
	b.set("x", client.Integer(1))
	ask := func(req *setpointv1.GetSnapshotRequest) error {
		req.SessionId = "s"
		_, err := b.History.GetSnapshot(b.ctx, req)
		return err
	}
	revision := func(r int64) *setpointv1.GetSnapshotRequest {
		return &setpointv1.GetSnapshotRequest{At: &setpointv1.GetSnapshotRequest_Revision{Revision: r}}
	}
	at := func(t time.Time) *setpointv1.GetSnapshotRequest {
		return &setpointv1.GetSnapshotRequest{At: &setpointv1.GetSnapshotRequest_Time{Time: timestamppb.New(t)}}
	}
	wantReason(t, ask(revision(3)), setpointv1.ErrorReason_INVALID_REQUEST)
	wantReason(t, ask(revision(-1)), setpointv1.ErrorReason_INVALID_REQUEST)
	wantReason(t, ask(at(time.Unix(-1e15, 0))), setpointv1.ErrorReason_INVALID_REQUEST)
	wantMetadata(t, wantReason(t, ask(at(created.Add(-time.Hour))), setpointv1.ErrorReason_HISTORY_TRUNCATED),
		map[string]string{"oldest_revision": "0"})
	if err := ask(at(time.Now().Add(24 * time.Hour))); err != nil {
		t.Errorf("a time to come is now: %v", err)
	}
	// A new life of the session begins where the old one ended, and sees nothing of it.
	if _, err := b.Sessions.DeleteSession(b.ctx, &setpointv1.DeleteSessionRequest{SessionId: "s"}); err != nil {
		t.Fatal(err)
	}
	b.session("s")
	wantMetadata(t, wantReason(t, ask(revision(1)), setpointv1.ErrorReason_HISTORY_TRUNCATED),
		map[string]string{"oldest_revision": "2"})
	if got, at, err := b.snapshot(&setpointv1.GetSnapshotRequest{SessionId: "s"}); err != nil || len(got) != 0 || at != 2 {
		t.Errorf("snapshot of the new life: %v at %d, %v", got, at, err)
	}
	b.integer("a")
	b.integer("b")
	page, err := b.History.GetSnapshot(b.ctx, &setpointv1.GetSnapshotRequest{SessionId: "s", PageSize: 1})
	if err != nil {
		t.Fatal(err)
	}
	for name, req := range map[string]*setpointv1.GetSnapshotRequest{
		"another revision": {At: &setpointv1.GetSnapshotRequest_Revision{Revision: 2}, PageToken: page.GetNextPageToken()},
		"garbage":          {PageToken: "garbage"},
	} {
		t.Run(name, func(t *testing.T) { wantReason(t, ask(req), setpointv1.ErrorReason_INVALID_REQUEST) })
	}
}

// All pages of a snapshot are as of the revision of the first, whatever is written meanwhile.
func TestSnapshotPagesAreOfOneRevision(t *testing.T) {
	t.Parallel()
	b := setup(t, func(c *server.Config) { c.Limits.PageBytes = 500 })
	for _, n := range names("v", 7) {
		b.integer(n)
	}
	b.register(&setpointv1.RegisterVariableRequest{
		Name: "large", Type: setpointv1.VariableType_VARIABLE_TYPE_EMBEDDING, Value: client.Embedding(make([]float32, 200)),
	})
	req := &setpointv1.GetSnapshotRequest{SessionId: "s", PageSize: 3}
	got := map[string]int64{}
	for pages := 0; ; pages++ {
		page, err := b.History.GetSnapshot(b.ctx, req)
		if err != nil {
			t.Fatal(err)
		}
		if page.GetRevision() != 8 {
			t.Fatalf("a page is as of revision %d", page.GetRevision())
		}
		for _, v := range page.GetVariables() {
			got[v.GetName()] = v.GetVersion()
		}
		for _, n := range names("v", 7) {
			b.set(n, client.Integer(1))
		}
		b.integer(fmt.Sprint("new", pages))
		if req.PageToken = page.GetNextPageToken(); req.PageToken == "" {
			break
		}
	}
	want := map[string]int64{"large": 0}
	for _, n := range names("v", 7) {
		want[n] = 0
	}
	equal(t, "versions in the snapshot", want, got)
}

func TestRollbackSession(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.integer("changed")
	b.integer("same")
	gone := b.integer("gone")
	b.register(&setpointv1.RegisterVariableRequest{
		Name: "vector", Type: setpointv1.VariableType_VARIABLE_TYPE_EMBEDDING, Value: client.Embedding([]float32{1, 2}),
		Metadata: map[string]string{"a": "first"},
	})
	then := b.revision()
	b.set("changed", client.Integer(5))
	b.set("changed", client.Integer(6))
	if _, err := b.Variables.SetVariable(b.ctx, &setpointv1.SetVariableRequest{
		SessionId: "s", Variable: "vector", Value: client.Embedding([]float32{3}), Metadata: map[string]string{"a": "second"},
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Variables.DeleteVariable(b.ctx, &setpointv1.DeleteVariableRequest{SessionId: "s", Variable: "gone"}); err != nil {
		t.Fatal(err)
	}
	b.integer("new")
	before := b.revision()
	roll := func(dry bool, to int64) (*setpointv1.RollbackSessionResponse, error) {
		return b.History.RollbackSession(b.ctx, &setpointv1.RollbackSessionRequest{
			SessionId: "s", To: &setpointv1.RollbackSessionRequest_Revision{Revision: to}, DryRun: dry, Reason: "regression",
		})
	}
	want := &setpointv1.RollbackSessionResponse{
		TargetRevision: then, Revision: before + 2, UnchangedCount: 1, RegisteredSince: []string{"new"}, DeletedSince: []string{"gone"},
		Restored: []*setpointv1.RestoredVariable{
			{
				VariableId: b.get("changed").GetVariableId(), Name: "changed", ThenVersion: 0, Then: client.Integer(0),
				PreviousVersion: 2, Previous: client.Integer(6), Version: 3, Revision: before + 1,
			},
			{
				VariableId: b.get("vector").GetVariableId(), Name: "vector", ThenVersion: 0, Then: client.Embedding([]float32{1, 2}),
				PreviousVersion: 1, Previous: client.Embedding([]float32{3}), Version: 2, Revision: before + 2,
			},
		},
	}
	dry, err := roll(true, then)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "dry run", want, dry)
	if got := b.revision(); got != before {
		t.Fatalf("the dry run wrote: revision %d, then %d", before, got)
	}
	got, err := roll(false, then)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "rollback", want, got)
	v := b.get("vector")
	equal(t, "restored", client.Embedding([]float32{1, 2}), v.GetValue())
	if v.GetMetadata()["a"] != "second" || v.GetVersion() != 2 || v.GetRevision() != before+2 {
		t.Errorf("restored: %v; want the value only", v)
	}
	if _, err := b.Variables.GetVariable(b.ctx, &setpointv1.GetVariableRequest{SessionId: "s", Variable: gone.GetVariableId()}); err == nil {
		t.Error("the deleted variable is back")
	}
	again, err := roll(false, then)
	if err != nil || len(again.GetRestored()) != 2 {
		t.Errorf("again: %v, %v; versions 3 and 2 are not those of then", again, err)
	}
	if now, err := roll(false, b.revision()); err != nil || len(now.GetRestored()) != 0 || now.GetRevision() != b.revision() {
		t.Errorf("to now: %v, %v", now, err)
	}
	_, err = roll(false, 1000)
	wantReason(t, err, setpointv1.ErrorReason_INVALID_REQUEST)
	_, err = b.History.RollbackSession(b.ctx, &setpointv1.RollbackSessionRequest{SessionId: "s"})
	wantReason(t, err, setpointv1.ErrorReason_INVALID_REQUEST)
	// All or nothing: today's constraints refuse one value of then.
	if _, err := b.Variables.UpdateVariable(b.ctx, &setpointv1.UpdateVariableRequest{
		SessionId: "s", Variable: "changed", Constraints: &setpointv1.Constraints{Max: ptr(5.0)},
	}); err != nil {
		t.Fatal(err)
	}
	before = b.revision()
	_, err = roll(false, then+2) // "changed" was 6.
	if e := wantReason(t, err, setpointv1.ErrorReason_CONSTRAINT_VIOLATION); e.Metadata["variable"] != "changed" {
		t.Errorf("metadata %v", e.Metadata)
	}
	if got := b.revision(); got != before {
		t.Errorf("a refused rollback wrote %d revisions", got-before)
	}
}

// A rollback waits for the writers before it, and those after it find what it did.
func TestRollbackSessionAmongWriters(t *testing.T) {
	t.Parallel()
	b := setup(t)
	variables := names("v", 20)
	for _, n := range variables {
		b.integer(n)
	}
	then := b.revision()
	ctx, stop := context.WithCancel(b.ctx)
	var wg sync.WaitGroup
	for _, n := range variables {
		wg.Go(func() {
			for i := int64(1); ctx.Err() == nil; i++ {
				if err := set(b, n, client.Integer(i)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range 5 {
		r, err := b.History.RollbackSession(b.ctx, &setpointv1.RollbackSessionRequest{
			SessionId: "s", To: &setpointv1.RollbackSessionRequest_Revision{Revision: then},
		})
		if err != nil {
			t.Fatal(err)
		}
		got, at, err := b.snapshot(&setpointv1.GetSnapshotRequest{
			SessionId: "s", At: &setpointv1.GetSnapshotRequest_Revision{Revision: r.GetRevision()},
		})
		if err != nil || at != r.GetRevision() {
			t.Fatal(err)
		}
		for name, v := range got {
			if v.Value != 0 {
				t.Errorf("right after the rollback %s is %+v", name, v)
			}
		}
	}
	stop()
	wg.Wait()
	var gaps int
	b.row(&gaps, `select count(*) from (select revision, lag(revision) over (order by revision) as before from setpoint.history
		where session_id = 's') h where revision <> before + 1`)
	if gaps != 0 {
		t.Errorf("%d gaps in the revisions", gaps)
	}
}
