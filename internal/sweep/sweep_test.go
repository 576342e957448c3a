package sweep_test

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgxpool"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	"github.com/setpointdb/setpoint/client"
	"github.com/setpointdb/setpoint/db"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/identity"
	"github.com/setpointdb/setpoint/internal/lease"
	"github.com/setpointdb/setpoint/internal/sweep"
	"github.com/setpointdb/setpoint/internal/telemetry"
	"github.com/setpointdb/setpoint/internal/testkit"
	"github.com/setpointdb/setpoint/service"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// retention is what the sweepers of these tests keep.
const retention = time.Hour

// bundle is a service, and a sweeper on a connection of its own, on one database.
type bundle struct {
	*service.Service
	t       *testing.T
	ctx     context.Context
	sql     *pgxpool.Pool
	sweeper *sweep.Sweeper
	noted   *noted
	url     string
}

// noted is what a sweeper told of.
type noted struct {
	mu      sync.Mutex
	expired map[string]int64
	pruned  int64
	audit   int64
	errs    []error
	changes []lease.Change
}

func (n *noted) OptimizationStatusChanged(_ context.Context, change lease.Change) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.changes = append(n.changes, change)
}

func (n *noted) SessionExpired(_ context.Context, session string, variables int64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.expired[session] = variables
}

func (n *noted) AuditPruned(_ context.Context, rows int64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.audit += rows
}

func (n *noted) HistoryPruned(_ context.Context, _ string, rows int64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.pruned += rows
}

func (n *noted) SweepFailed(_ context.Context, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.errs = append(n.errs, err)
}

func setup(t *testing.T) *bundle {
	t.Helper()
	ctx := identity.NewContext(context.Background(), identity.Anonymous)
	url := testkit.NewDatabase(t)
	events, err := telemetry.New(slog.New(slog.DiscardHandler), nil)
	if err != nil {
		t.Fatal(err)
	}
	database := open(t, url)
	b := &bundle{
		Service: service.New(database, service.DefaultLimits, events), t: t, ctx: ctx, sql: testkit.Pool(t, url),
		noted: &noted{expired: map[string]int64{}}, url: url,
	}
	t.Cleanup(func() { b.Close(ctx) })
	b.sweeper = sweep.New(open(t, url+separator(url)+"application_name=sweeper"), b.noted, retention)
	b.session("s")
	return b
}

func separator(url string) string {
	for _, c := range url {
		if c == '?' {
			return "&"
		}
	}
	return "?"
}

func open(t *testing.T, url string) *db.DB {
	t.Helper()
	d, err := db.Open(context.Background(), db.Config{URL: url})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	return d
}

func (b *bundle) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

func (b *bundle) session(id string) {
	b.t.Helper()
	_, err := b.CreateSession(b.ctx, &setpointv1.CreateSessionRequest{SessionId: id})
	b.must(err)
}

func (b *bundle) register(session, name string, limit int64) {
	b.t.Helper()
	_, err := b.RegisterVariable(b.ctx, &setpointv1.RegisterVariableRequest{
		SessionId: session, Name: name, Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Value: client.Integer(0),
		HistoryLimit: &limit,
	})
	b.must(err)
}

func (b *bundle) set(session, name string, v int64) error {
	_, err := b.SetVariable(b.ctx, &setpointv1.SetVariableRequest{SessionId: session, Variable: name, Value: client.Integer(v)})
	return err
}

func (b *bundle) exec(sql string, args ...any) {
	b.t.Helper()
	_, err := b.sql.Exec(b.ctx, sql, args...)
	b.must(err)
}

func (b *bundle) number(sql string, args ...any) int64 {
	b.t.Helper()
	var n int64
	b.must(b.sql.QueryRow(b.ctx, sql, args...).Scan(&n))
	return n
}

// What an expired session held goes, whatever its size; its history stays, and what lives is left alone.
func TestExpiredSession(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.register("s", "x", 0)
	for _, id := range []string{"large", "again"} {
		b.session(id)
		for batch := range 3 {
			req := &setpointv1.BatchRegisterVariablesRequest{SessionId: id, Atomic: true}
			for i := range 900 {
				req.Registrations = append(req.Registrations, &setpointv1.VariableRegistration{
					Name: fmt.Sprintf("v%d.%d", batch, i), Type: setpointv1.VariableType_VARIABLE_TYPE_BOOLEAN, Value: client.Bool(true),
				})
			}
			_, err := b.BatchRegisterVariables(b.ctx, req)
			b.must(err)
		}
		_, err := b.DeleteSession(b.ctx, &setpointv1.DeleteSessionRequest{SessionId: id})
		b.must(err)
	}
	b.session("again")
	b.register("again", "x", 0)
	b.must(b.sweeper.Sessions(b.ctx))
	if diff := cmp.Diff(map[string]int64{"large": 2700}, b.noted.expired); diff != "" {
		t.Errorf("expired (-want +got):\n%s", diff)
	}
	for query, want := range map[string]int64{
		`select count(*) from setpoint.variables where session_id = 'large'`:                                                0,
		`select count(*) from setpoint.history where session_id = 'large'`:                                                  2700,
		`select count(*) from setpoint.sessions where session_id = 'large' and ended_at is not null and variable_count = 0`: 1,
		`select count(*) from setpoint.variables`:                                                                           2,
	} {
		if got := b.number(query); got != want {
			t.Errorf("%s: %d, want %d", query, got, want)
		}
	}
	b.must(b.sweeper.Sessions(b.ctx))
	if len(b.noted.expired) != 1 {
		t.Error("a session expired twice")
	}
}

// Records of requests go after their day, more than one batch of them in one round.
func TestRequestsArePruned(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.exec(`insert into setpoint.requests select 's', 'user:a', i::text, '', '[]',
		clock_timestamp() - case when i <= 2500 then interval '25 hours' else interval '23 hours' end
		from generate_series(1, 3000) i`)
	b.must(b.sweeper.Sessions(b.ctx))
	if got := b.number(`select count(*) from setpoint.requests`); got != 500 {
		t.Errorf("%d records are left, want 500", got)
	}
}

// While another server sweeps, a round does nothing, and is no failure.
func TestOneSweepsAtATime(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.exec(`update setpoint.sessions set expires_at = clock_timestamp()`)
	tx, err := b.sql.Begin(b.ctx)
	b.must(err)
	_, err = tx.Exec(b.ctx, `select pg_advisory_xact_lock($1, 0)`, int32(db.LockSweep))
	b.must(err)
	b.must(b.sweeper.Sessions(b.ctx))
	b.must(b.sweeper.History(b.ctx))
	if len(b.noted.expired) != 0 {
		t.Error("it swept all the same")
	}
	b.must(tx.Rollback(b.ctx))
	b.must(b.sweeper.Sessions(b.ctx))
	if len(b.noted.expired) != 1 {
		t.Error("it did not sweep when it could")
	}
}

// age makes history older, all rows up to a revision, and its session.
func (b *bundle) age(session string, upTo int64) {
	b.exec(`update setpoint.sessions set created_at = created_at - interval '2 hours' where session_id = $1`, session)
	b.exec(`update setpoint.history set changed_at = changed_at - interval '2 hours' where session_id = $1 and revision <= $2`,
		session, upTo)
}

// A row goes exactly when it is beyond both limit and retention; above the floors every snapshot is what it was.
func TestPruneIsExact(t *testing.T) {
	t.Parallel()
	b := setup(t)
	round := 0
	rapid.Check(t, func(t *rapid.T) {
		round++
		id := fmt.Sprint("round", round)
		b.session(id)
		limits := rapid.SliceOfN(rapid.SampledFrom([]int64{0, 1, 2, 5}), 1, 4).Draw(t, "history limits")
		for i, limit := range limits {
			b.register(id, fmt.Sprint("v", i), limit)
		}
		for _, step := range rapid.SliceOfN(rapid.IntRange(0, 99), 0, 40).Draw(t, "steps") {
			name := fmt.Sprint("v", step%len(limits))
			switch {
			case step < 90:
				_ = b.set(id, name, int64(step)) // Some are deleted by now.
			case step < 95:
				_, _ = b.UpdateVariable(b.ctx, &setpointv1.UpdateVariableRequest{
					SessionId: id, Variable: name, Metadata: map[string]string{"m": fmt.Sprint(step)},
				})
			default:
				_, _ = b.DeleteVariable(b.ctx, &setpointv1.DeleteVariableRequest{SessionId: id, Variable: name})
			}
		}
		last := b.number(`select revision from setpoint.sessions where session_id = $1`, id)
		before := map[int64]string{}
		for r := range last + 1 {
			before[r], _ = b.snapshot(id, r)
		}
		b.age(id, rapid.Int64Range(0, last).Draw(t, "old up to revision"))
		times := b.times(id)
		want := b.keep(id)
		b.must(b.sweeper.History(b.ctx))
		if diff := cmp.Diff(want, b.rows(id, `select h.revision from setpoint.history h where h.session_id = $1 order by 1`)); diff != "" {
			t.Fatalf("rows kept (-want +got):\n%s", diff)
		}
		floor := b.number(`select snapshot_floor from setpoint.sessions where session_id = $1`, id)
		for r := range last + 1 {
			got, err := b.snapshot(id, r)
			if (err != nil) != (r < floor) {
				t.Fatalf("snapshot at revision %d with the floor at %d: %v", r, floor, err)
			}
			if err == nil && got != before[r] {
				t.Fatalf("snapshot at revision %d was %s, is %s", r, before[r], got)
			}
			if r == 0 {
				continue
			}
			same := r // Of several changes at one time, that time is the last's.
			for same < last && times[same+1].Equal(times[r]) {
				same++
			}
			page, err := b.GetSnapshot(b.ctx, &setpointv1.GetSnapshotRequest{
				SessionId: id, At: &setpointv1.GetSnapshotRequest_Time{Time: timestamppb.New(times[r])},
			})
			if (err != nil) != (same < floor) {
				t.Fatalf("snapshot at the time of revision %d with the floor at %d: %v", same, floor, err)
			}
			if err == nil && text(page) != before[same] {
				t.Fatalf("snapshot at the time of revision %d was %s, is %s", same, before[same], text(page))
			}
		}
		if low := b.number(`select coalesce(max(r), 0) from generate_series(1, $2::bigint) r where r not in
			(select h.revision from setpoint.history h where h.session_id = $1)`, id, last); low >
			b.number(`select history_floor from setpoint.sessions where session_id = $1`, id) {
			t.Fatalf("revision %d is gone, above the history's floor", low)
		}
	})
}

// keep is the rule, in the words of the contract: the revisions that stay.
func (b *bundle) keep(session string) []int64 {
	return b.rows(session, `
		select h.revision
		from setpoint.history h
		left join setpoint.variables v on v.session_id = h.session_id and v.variable_id = h.variable_id
		where h.session_id = $1 and not (
			h.changed_at < clock_timestamp() - interval '1 hour'
			and case
				-- Of a deleted variable nothing is listed; its rows go together, when its deletion is old.
				when v.variable_id is null then (select d.changed_at from setpoint.history d where d.session_id = h.session_id
					and d.variable_id = h.variable_id and d.change = 'deleted') < clock_timestamp() - interval '1 hour'
				when v.history_limit = 0 then false
				when h.version is not null then h.version < v.version - v.history_limit
				-- What is no version goes with the versions before the first that stays.
				else h.revision < (select min(x.revision) from setpoint.history x where x.session_id = h.session_id
					and x.variable_id = h.variable_id and not (x.version is null
						or x.version < v.version - v.history_limit and x.changed_at < clock_timestamp() - interval '1 hour'))
			end)
		order by 1`)
}

func (b *bundle) rows(session, sql string) []int64 {
	b.t.Helper()
	var out []int64
	b.must(b.sql.QueryRow(b.ctx, `select coalesce(array_agg(r), '{}') from (`+sql+`) x (r)`, session).Scan(&out))
	return out
}

func (b *bundle) snapshot(session string, revision int64) (string, error) {
	page, err := b.GetSnapshot(b.ctx, &setpointv1.GetSnapshotRequest{
		SessionId: session, At: &setpointv1.GetSnapshotRequest_Revision{Revision: revision},
	})
	return text(page), err
}

func text(page *setpointv1.GetSnapshotResponse) string {
	text := ""
	for _, v := range page.GetVariables() {
		text += fmt.Sprintf("%s=%d@%d%v ", v.GetName(), v.GetValue().GetInteger(), v.GetVersion(), v.GetMetadata())
	}
	return text
}

// times are those of a session's revisions.
func (b *bundle) times(session string) map[int64]time.Time {
	b.t.Helper()
	rows, err := b.sql.Query(b.ctx, `select revision, changed_at from setpoint.history where session_id = $1`, session)
	b.must(err)
	out := map[int64]time.Time{}
	for rows.Next() {
		var revision int64
		var at time.Time
		b.must(rows.Scan(&revision, &at))
		out[revision] = at
	}
	b.must(rows.Err())
	return out
}

// Bytes go when neither a variable nor history refers to them; a session of which nothing is left is forgotten.
func TestBytesAndSessionsGo(t *testing.T) {
	t.Parallel()
	b := setup(t)
	vector := func(v float32) *setpointv1.Value { return client.Embedding([]float32{v}) }
	limit := int64(1)
	_, err := b.RegisterVariable(b.ctx, &setpointv1.RegisterVariableRequest{
		SessionId: "s", Name: "e", Type: setpointv1.VariableType_VARIABLE_TYPE_EMBEDDING, Value: vector(0), HistoryLimit: &limit,
	})
	b.must(err)
	for _, v := range []float32{1, 2, 0, 3} {
		_, err := b.SetVariable(b.ctx, &setpointv1.SetVariableRequest{SessionId: "s", Variable: "e", Value: vector(v)})
		b.must(err)
	}
	b.age("s", 5)
	b.must(b.sweeper.History(b.ctx))
	// Versions 3 (value 0 again) and 4 stay.
	if got := b.number(`select count(*) from setpoint.payloads`); got != 2 {
		t.Errorf("%d payloads are left, want 2", got)
	}
	_, err = b.DeleteSession(b.ctx, &setpointv1.DeleteSessionRequest{SessionId: "s"})
	b.must(err)
	b.must(b.sweeper.Sessions(b.ctx))
	b.exec(`update setpoint.sessions set ended_at = ended_at - interval '2 hours'`)
	b.must(b.sweeper.History(b.ctx)) // Its history goes, then its bytes, then itself.
	for _, table := range []string{"history", "payloads", "variables", "sessions"} {
		if got := b.number(`select count(*) from setpoint.` + table); got != 0 {
			t.Errorf("%s has %d rows", table, got)
		}
	}
	if len(b.noted.errs) != 0 {
		t.Error(b.noted.errs)
	}
}

// One round removes all bytes that nothing refers to, and forgets all sessions of which nothing is left, however many.
func TestManyBytesAndSessionsGo(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.exec(`insert into setpoint.payloads select 's', sha256(i::text::bytea), 1, 'x' from generate_series(1, 2500) i`)
	b.exec(`insert into setpoint.sessions (session_id, owner, ttl_us, expires_at, changed_at, created_at, ended_at)
		select 'gone' || i, 'user:a', 1, '-infinity', clock_timestamp(), clock_timestamp(), clock_timestamp() - interval '2 hours'
		from generate_series(1, 350) i`)
	b.must(b.sweeper.History(b.ctx))
	for table, want := range map[string]int64{"payloads": 0, "sessions": 1} {
		if got := b.number(`select count(*) from setpoint.` + table); got != want {
			t.Errorf("%s has %d rows, want %d", table, got, want)
		}
	}
}

// The history of a session that has ended stays for the retention from its end on, however old its changes are.
func TestEndedHistoryStaysForTheRetention(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.register("s", "x", 1)
	b.must(b.set("s", "x", 1))
	_, err := b.DeleteSession(b.ctx, &setpointv1.DeleteSessionRequest{SessionId: "s"})
	b.must(err)
	b.must(b.sweeper.Sessions(b.ctx))
	b.age("s", 2)
	b.must(b.sweeper.History(b.ctx))
	if got := b.number(`select count(*) from setpoint.history`); got != 2 {
		t.Errorf("%d rows are left right after the end, want 2", got)
	}
	b.exec(`update setpoint.sessions set ended_at = ended_at - interval '2 hours'`)
	b.must(b.sweeper.History(b.ctx))
	if got := b.number(`select count(*) from setpoint.history`); got != 0 {
		t.Errorf("%d rows are left after the retention", got)
	}
}

// An update that made no version is kept for the retention, though the versions before it go.
func TestUpdatesStayForTheRetention(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.register("s", "x", 1)
	_, err := b.UpdateVariable(b.ctx, &setpointv1.UpdateVariableRequest{
		SessionId: "s", Variable: "x", Metadata: map[string]string{"a": "b"},
	})
	b.must(err)
	b.must(b.set("s", "x", 1))
	b.must(b.set("s", "x", 2))
	b.age("s", 1) // Version 0 is beyond limit and retention; the update after it is not.
	b.must(b.sweeper.History(b.ctx))
	want := []int64{2, 3, 4}
	if diff := cmp.Diff(want, b.rows("s", `select revision from setpoint.history where session_id = $1 order by 1`)); diff != "" {
		t.Errorf("rows kept (-want +got):\n%s", diff)
	}
}
