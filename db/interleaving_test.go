package db_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/setpointdb/setpoint/db"
	"github.com/setpointdb/setpoint/db/dbgen"
	"github.com/setpointdb/setpoint/internal/testkit"
)

// Two connections meet on one session's row. The first is in a transaction that holds the lock; the second sends its
// statement and waits. Whatever the first then does and commits, the second must act on it and on the clock after its
// wait, not on what it saw when it was sent.

// stage is a database with a live session "s" that has an integer variable "x" at version 0, value 0.
type stage struct {
	db    *db.DB
	first *pgxpool.Pool // The connections of the first party, and of the test itself.
}

func newStage(t *testing.T) *stage {
	t.Helper()
	ctx := context.Background()
	url := testkit.NewDatabase(t)
	d, err := db.Open(ctx, db.Config{URL: url})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	s := &stage{db: d, first: testkit.Pool(t, url)}
	s.exec(t, `insert into setpoint.sessions (session_id, owner, ttl_us, expires_at, changed_at, created_at)
		values ('s', 'user:a', 3600000000, clock_timestamp() + interval '1 hour', clock_timestamp(), clock_timestamp())`)
	s.register(t, "x")
	s.exec(t, `insert into setpoint.access_rules (session_id, rule_id, variable_id, subject, permissions, reach, allows,
			priority, granted_by, granted_at, revision)
		values ('s', 'rule_b', 'var_x', 'user:b', 2, 3, true, 0, 'user:a', clock_timestamp(), 1)`)
	return s
}

func (s *stage) exec(t *testing.T, sql string, args ...any) {
	t.Helper()
	if _, err := s.first.Exec(context.Background(), sql, args...); err != nil {
		t.Fatal(err)
	}
}

func registration(names ...string) dbgen.VariableRegisterParams {
	p := dbgen.VariableRegisterParams{SessionID: "s", Principal: "user:a", Authority: 31, BodyHash: []byte{}, MaxVariables: 3}
	for i, name := range names {
		p.Ords = append(p.Ords, int32(i))
		p.VariableIds = append(p.VariableIds, "var_"+name)
		p.Names = append(p.Names, name)
		p.Types = append(p.Types, "integer")
		p.Vals = append(p.Vals, []byte("0"))
		p.PayloadHashes = append(p.PayloadHashes, []byte{})
		p.Payloads = append(p.Payloads, []byte{})
		p.ValueBytes = append(p.ValueBytes, 1)
		p.Constraints = append(p.Constraints, []byte("{}"))
		p.Metadatas = append(p.Metadatas, []byte("{}"))
		p.AccessModes = append(p.AccessModes, "private")
		p.HistoryLimits = append(p.HistoryLimits, 50)
		p.Expressions = append(p.Expressions, "")
		p.Stricts = append(p.Stricts, false)
		p.StaleErrors = append(p.StaleErrors, "")
		p.Refusals = append(p.Refusals, []byte("null"))
	}
	return p
}

func (s *stage) register(t *testing.T, names ...string) []dbgen.VariableRegisterRow {
	t.Helper()
	rows, err := s.registerErr(registration(names...))
	if err != nil {
		t.Fatal(err)
	}
	return rows
}

func (s *stage) registerErr(p dbgen.VariableRegisterParams) ([]dbgen.VariableRegisterRow, error) {
	var rows []dbgen.VariableRegisterRow
	err := s.db.Locked(context.Background(), "register", []string{"s"}, func(ctx context.Context, q *dbgen.Queries) error {
		var err error
		rows, err = q.VariableRegister(ctx, p)
		return err
	})
	return rows, err
}

// write is one write of "x" by user:b, whom a rule lets do so: the version that it expects (-1 is any), and its request_id.
type write struct {
	expected      int64
	request, hash string
}

func (w write) params() dbgen.VariableSetParams {
	return dbgen.VariableSetParams{
		Ords: []int32{0}, SessionIds: []string{"s"}, Variables: []string{"x"}, Definitions: []int64{1},
		Vals: [][]byte{[]byte("7")}, PayloadHashes: [][]byte{{}}, Payloads: [][]byte{{}}, ValueBytes: []int64{1},
		Metadatas: [][]byte{[]byte("null")}, ExpectedVersions: []int64{w.expected}, Refusals: [][]byte{[]byte("null")},
		Principals: []string{"user:b"}, Groups: []string{""}, Authorities: []int32{31}, Reasons: []string{""}, RequestIds: []string{w.request},
		BodyHashes: [][]byte{[]byte(w.hash)}, Change: "set",
	}
}

func (s *stage) set(w write) (dbgen.VariableSetRow, error) {
	var row dbgen.VariableSetRow
	err := s.db.Locked(context.Background(), "set", []string{"s"}, func(ctx context.Context, q *dbgen.Queries) error {
		rows, err := q.VariableSet(ctx, w.params())
		if err == nil {
			row = rows[0]
		}
		return err
	})
	return row, err
}

// lock begins the first party's transaction and takes the session's lock in it.
func (s *stage) lock(t *testing.T) pgx.Tx {
	t.Helper()
	ctx := context.Background()
	tx, err := s.first.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tx.Rollback(ctx) })
	if err := dbgen.New(tx).SessionLock(ctx, dbgen.SessionLockParams{SessionIds: []string{"s"}}); err != nil {
		t.Fatal(err)
	}
	return tx
}

// waiting returns when n statements of this database wait for a lock.
func (s *stage) waiting(t *testing.T, n int) {
	t.Helper()
	testkit.Eventually(t, 20*time.Second, func() error {
		var found int
		err := s.first.QueryRow(context.Background(), `select count(*) from pg_stat_activity
			where datname = current_database() and wait_event_type = 'Lock'`).Scan(&found)
		if err == nil && found < n {
			err = fmt.Errorf("%d of %d statements wait", found, n)
		}
		return err
	})
}

func commit(t *testing.T, tx pgx.Tx) {
	t.Helper()
	if err := tx.Commit(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// firstSets writes "x" in the first party's transaction.
func firstSets(t *testing.T, tx pgx.Tx, w write) dbgen.VariableSetRow {
	t.Helper()
	rows, err := dbgen.New(tx).VariableSet(context.Background(), w.params())
	if err != nil || rows[0].Refused != "" {
		t.Fatalf("first party's write: %v, %v", rows, err)
	}
	return rows[0]
}

func TestSetAfterWaiting(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	sql := func(text string) func(*testing.T, pgx.Tx) {
		return func(t *testing.T, tx pgx.Tx) {
			if _, err := tx.Exec(ctx, text); err != nil {
				t.Fatal(err)
			}
		}
	}
	sets := func(w write) func(*testing.T, pgx.Tx) {
		return func(t *testing.T, tx pgx.Tx) { firstSets(t, tx, w) }
	}
	anyVersion := write{expected: -1}
	request := write{expected: -1, request: "r", hash: "h"}
	otherBody := write{expected: -1, request: "r", hash: "other"}
	tests := map[string]struct {
		first   func(*testing.T, pgx.Tx)
		second  write
		refused string
		found   int64 // The version that the second party is told it found.
	}{
		"nothing happened":          {first: func(*testing.T, pgx.Tx) {}, second: write{expected: 0}},
		"the version went on":       {sets(anyVersion), write{expected: 0}, "VERSION_MISMATCH", 1},
		"any version will do":       {sets(anyVersion), anyVersion, "", 1},
		"the request was answered":  {sets(request), request, "REPLAYED", 1},
		"the request_id was reused": {sets(request), otherBody, "REQUEST_ID_REUSED", 1},
		"the session was ended": {
			sql(`update setpoint.sessions set expires_at = clock_timestamp()`), anyVersion, "SESSION_NOT_FOUND", 0,
		},
		"the constraints changed": {
			sql(`update setpoint.variables set definition_revision = 9`), anyVersion, "DEFINITION_CHANGED", 0,
		},
		"the variable was deleted": { // Who may not read every variable is not told so.
			sql(`delete from setpoint.variables`), anyVersion, "ACCESS_DENIED", -1,
		},
		"the rule was revoked": {sql(`delete from setpoint.access_rules`), anyVersion, "SESSION_HIDDEN", 0},
		"the rule expired": {
			sql(`update setpoint.access_rules set expires_at = clock_timestamp()`), anyVersion, "SESSION_HIDDEN", 0,
		},
		"the rule is for reading now": {
			sql(`update setpoint.access_rules set permissions = 1, reach = 1`), anyVersion, "ACCESS_DENIED", 0,
		},
		"another rule denies": {
			sql(`insert into setpoint.access_rules (session_id, rule_id, subject, pattern, permissions, reach, allows, priority,
					granted_by, granted_at, revision)
				values ('s', 'rule_c', 'user:*', 'user:%', 2, 26, false, 0, 'user:a', clock_timestamp(), 1)`), anyVersion,
			"ACCESS_DENIED", 0,
		},
		"the rule is another variable's": {
			sql(`update setpoint.access_rules set variable_id = 'var_y'`), anyVersion, "ACCESS_DENIED", 0,
		},
		"the caller owns it now": {
			sql(`with no_rules as (delete from setpoint.access_rules)
				update setpoint.sessions set owner = 'user:b'`), anyVersion, "", 0,
		},
		"the name is another variable's": {
			sql(`with rules as (update setpoint.access_rules set variable_id = 'var_y')
				update setpoint.variables set variable_id = 'var_y', definition_revision = 5`), anyVersion,
			"DEFINITION_CHANGED", 0,
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStage(t)
			tx := s.lock(t)
			type result struct {
				row dbgen.VariableSetRow
				err error
			}
			second := make(chan result, 1)
			go func() {
				row, err := s.set(test.second)
				second <- result{row, err}
			}()
			s.waiting(t, 1)
			test.first(t, tx)
			commit(t, tx)
			r := <-second
			if r.err != nil {
				t.Fatal(r.err)
			}
			if r.row.Refused != test.refused || r.row.FoundVersion != test.found {
				t.Errorf("second party: refused %q at version %d, want %q at %d", r.row.Refused, r.row.FoundVersion,
					test.refused, test.found)
			}
			s.consistent(t)
		})
	}
}

// consistent checks what must hold after any interleaving: revisions without a gap and in the order of time, versions
// without a gap, and the variable as its last history row says.
func (s *stage) consistent(t *testing.T) {
	t.Helper()
	var problems []string
	err := s.first.QueryRow(context.Background(), `
		select array_remove(array[
			(select 'revisions: ' || string_agg(h.revision::text, ' ' order by h.revision) from setpoint.history h
				having count(*) <> coalesce(max(h.revision), 0)),
			(select 'session at revision ' || s.revision from setpoint.sessions s where s.session_id = 's'
				and s.revision <> (select coalesce(max(h.revision), 0) from setpoint.history h)),
			(select 'versions: ' || string_agg(h.version::text, ' ' order by h.version) from setpoint.history h
				where h.variable_id = 'var_x' having count(h.version) <> max(h.version) + 1),
			(select 'time runs back at ' || min(b.revision) from setpoint.history a join setpoint.history b
				on b.revision = a.revision + 1 where b.changed_at < a.changed_at),
			(select 'variable at version ' || v.version from setpoint.variables v where v.variable_id = 'var_x'
				and v.version <> (select max(h.version) from setpoint.history h where h.variable_id = 'var_x'))
		], null)`).Scan(&problems)
	if err != nil {
		t.Fatal(err)
	}
	for _, problem := range problems {
		t.Error(problem)
	}
}

// A session that expires by the clock while a writer waits is gone when the writer's turn comes.
func TestSetAfterExpiryDuringWait(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	s.exec(t, `update setpoint.sessions set expires_at = clock_timestamp() + interval '300 milliseconds'`)
	tx := s.lock(t)
	refused := make(chan string, 1)
	go func() {
		row, err := s.set(write{expected: -1})
		if err != nil {
			row.Refused = err.Error()
		}
		refused <- row.Refused
	}()
	s.waiting(t, 1)
	testkit.Eventually(t, 10*time.Second, func() error {
		var expired bool
		err := s.first.QueryRow(context.Background(),
			`select expires_at <= clock_timestamp() from setpoint.sessions`).Scan(&expired)
		if err == nil && !expired {
			err = errors.New("not expired yet")
		}
		return err
	})
	commit(t, tx)
	if got := <-refused; got != "SESSION_NOT_FOUND" {
		t.Errorf("refused %q, want SESSION_NOT_FOUND", got)
	}
	s.consistent(t)
}

// changed_at is read after the wait: it is not before an instant at which the lock was still held by another. The first
// party writes nothing, so the time of its write cannot stand in for the clock.
func TestTimeAfterWaiting(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	tx := s.lock(t)
	type result struct {
		row dbgen.VariableSetRow
		err error
	}
	second := make(chan result, 1)
	go func() {
		row, err := s.set(write{expected: -1})
		second <- result{row, err}
	}()
	s.waiting(t, 1)
	var held time.Time
	if err := tx.QueryRow(context.Background(), `select clock_timestamp()`).Scan(&held); err != nil {
		t.Fatal(err)
	}
	commit(t, tx)
	r := <-second
	if r.err != nil || r.row.Refused != "" {
		t.Fatalf("second party's write: %+v, %v", r.row, r.err)
	}
	if r.row.ChangedAt.Time.Before(held) {
		t.Errorf("second party's write is of %v, when the lock was still held: until %v", r.row.ChangedAt.Time, held)
	}
	s.consistent(t)
}

// A clock that was put back does not make time run back.
func TestTimeNeverRunsBack(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	s.exec(t, `update setpoint.sessions set changed_at = clock_timestamp() + interval '1 minute'`)
	if _, err := s.set(write{expected: -1}); err != nil {
		t.Fatal(err)
	}
	var ahead bool
	err := s.first.QueryRow(context.Background(), `select h.changed_at > clock_timestamp() + interval '50 seconds'
		from setpoint.history h order by h.revision desc limit 1`).Scan(&ahead)
	if err != nil || !ahead {
		t.Errorf("changed_at is behind that of the session: %v", err)
	}
}

// What is rolled back, or dies with its connection, leaves no gap.
func TestNoGapAfterRollbackOrKilledBackend(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	ends := map[string]func(*testing.T, *stage, pgx.Tx){
		"rolled back": func(t *testing.T, _ *stage, tx pgx.Tx) {
			if err := tx.Rollback(ctx); err != nil {
				t.Fatal(err)
			}
		},
		"killed": func(t *testing.T, s *stage, tx pgx.Tx) {
			s.exec(t, `select pg_terminate_backend($1)`, tx.Conn().PgConn().PID())
		},
	}
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStage(t)
			tx := s.lock(t)
			second := make(chan error, 1)
			go func() {
				row, err := s.set(write{expected: 0})
				if err == nil && row.Revision != 2 {
					err = fmt.Errorf("revision %d, refused %q", row.Revision, row.Refused)
				}
				second <- err
			}()
			s.waiting(t, 1)
			firstSets(t, tx, write{expected: 0})
			end(t, s, tx)
			if err := <-second; err != nil {
				t.Error(err)
			}
			s.consistent(t)
		})
	}
}

func TestRegisterAfterWaiting(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		first   []string
		refused string
	}{
		"the name is taken":    {[]string{"y"}, "VARIABLE_EXISTS"},
		"the session is full":  {[]string{"a", "b"}, "LIMIT_EXCEEDED"},
		"there is still room":  {[]string{"a"}, ""},
		"nobody has been here": {nil, ""},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStage(t)
			tx := s.lock(t)
			second := make(chan string, 1)
			go func() {
				p := registration("y")
				p.VariableIds[0] = "var_second"
				rows, err := s.registerErr(p)
				if err != nil {
					second <- err.Error()
					return
				}
				second <- rows[0].Refused
			}()
			s.waiting(t, 1)
			if len(test.first) > 0 {
				rows, err := dbgen.New(tx).VariableRegister(context.Background(), registration(test.first...))
				if err != nil || rows[0].Refused != "" {
					t.Fatalf("first party: %v, %v", rows, err)
				}
			}
			commit(t, tx)
			if got := <-second; got != test.refused {
				t.Errorf("second party: refused %q, want %q", got, test.refused)
			}
			s.consistent(t)
			var counted, there int64
			if err := s.first.QueryRow(context.Background(), `select s.variable_count, (select count(*)
				from setpoint.variables) from setpoint.sessions s`).Scan(&counted, &there); err != nil || counted != there {
				t.Errorf("variable_count is %d, there are %d (%v)", counted, there, err)
			}
		})
	}
}

// Neither a call to keep a session alive, nor the lazy flush of reads, revives a session that somebody ends meanwhile.
func TestEndedSessionStaysEnded(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	s := newStage(t)
	tx := s.lock(t)
	kept := make(chan error, 1)
	go func() {
		kept <- s.db.Locked(ctx, "keep alive", []string{"s"}, func(ctx context.Context, q *dbgen.Queries) error {
			_, err := q.SessionKeepAlive(ctx, dbgen.SessionKeepAliveParams{SessionID: "s", Principal: "user:a", Authority: 31})
			return err
		})
	}()
	s.waiting(t, 1)
	if err := dbgen.New(tx).SessionEnd(ctx, dbgen.SessionEndParams{SessionID: "s"}); err != nil {
		t.Fatal(err)
	}
	// The flush does not wait for the lock; it leaves the session to its writer.
	extend := func(want int) {
		t.Helper()
		var params dbgen.SessionExtendParams
		params.SessionIds = []string{"s"}
		params.ReadAt = append(params.ReadAt, pgtype.Timestamptz{Time: time.Now(), Valid: true})
		var locked []string
		err := s.db.InTx(ctx, "extend", func(ctx context.Context, tx pgx.Tx) error {
			var err error
			locked, err = dbgen.New(tx).SessionExtend(ctx, params)
			return err
		})
		if err != nil || len(locked) != want {
			t.Fatalf("extend: %v, %v; want %d sessions to come back", locked, err, want)
		}
	}
	extend(1)
	commit(t, tx)
	if err := <-kept; !errors.Is(err, pgx.ErrNoRows) {
		t.Errorf("keep alive after the end: %v, want no rows", err)
	}
	extend(0)
	var alive bool
	if err := s.first.QueryRow(ctx, `select expires_at > clock_timestamp() from setpoint.sessions`).Scan(&alive); err != nil || alive {
		t.Errorf("the session is alive again (%v)", err)
	}
}

// Of callers that begin a session at once one does, and the id of an ended session begins anew where it ended.
func TestSessionBeginOnce(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	s := newStage(t)
	begin := func(id string) (dbgen.SessionBeginRow, error) {
		var row dbgen.SessionBeginRow
		err := s.db.InTx(ctx, "begin", func(ctx context.Context, tx pgx.Tx) error {
			q := dbgen.New(tx)
			if err := q.SessionReserve(ctx, dbgen.SessionReserveParams{SessionID: id, Owner: "user:a"}); err != nil {
				return err
			}
			if err := q.SessionLock(ctx, dbgen.SessionLockParams{SessionIds: []string{id}}); err != nil {
				return err
			}
			var err error
			row, err = q.SessionBegin(ctx, dbgen.SessionBeginParams{
				SessionID: id, Owner: "user:a", TTLMicros: 60_000_000, Metadata: []byte("{}"),
			})
			return err
		})
		return row, err
	}
	const callers = 8
	errs := make(chan error, callers)
	for range callers {
		go func() { _, err := begin("new"); errs <- err }()
	}
	began := 0
	for range callers {
		switch err := <-errs; {
		case err == nil:
			began++
		case !errors.Is(err, pgx.ErrNoRows):
			t.Error(err)
		}
	}
	if began != 1 {
		t.Errorf("%d callers began the session, want 1", began)
	}
	s.exec(t, `update setpoint.sessions set expires_at = clock_timestamp() where session_id = 's'`)
	row, err := begin("s")
	if err != nil || row.Revision != 1 || row.VariableCount != 0 {
		t.Errorf("a new life of s: %+v, %v; want it at revision 1 without variables", row, err)
	}
	if got := s.register(t, "x"); got[0].Refused != "" || got[0].Revision != 2 {
		t.Errorf("register in the new life: %+v", got)
	}
}

// A session that the sweeper forgets just as somebody begins it anew is begun.
func TestSessionBeginAsItIsForgotten(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	s := newStage(t)
	s.exec(t, `insert into setpoint.sessions (session_id, owner, ttl_us, expires_at, changed_at, created_at, ended_at)
		values ('old', 'user:a', 1, '-infinity', clock_timestamp(), clock_timestamp(), clock_timestamp())`)
	tx, err := s.first.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tx.Rollback(ctx) })
	if n, err := dbgen.New(tx).SweepForget(ctx, dbgen.SweepForgetParams{SessionID: "old"}); err != nil || n != 1 {
		t.Fatalf("forget: %d, %v", n, err)
	}
	begun := make(chan error, 1)
	go func() {
		begun <- s.db.InTx(ctx, "begin", func(ctx context.Context, tx pgx.Tx) error {
			q := dbgen.New(tx)
			if err := q.SessionReserve(ctx, dbgen.SessionReserveParams{SessionID: "old", Owner: "user:a"}); err != nil {
				return err
			}
			if err := q.SessionLock(ctx, dbgen.SessionLockParams{SessionIds: []string{"old"}}); err != nil {
				return err
			}
			_, err := q.SessionBegin(ctx, dbgen.SessionBeginParams{
				SessionID: "old", Owner: "user:a", TTLMicros: 60_000_000, Metadata: []byte("{}"),
			})
			return err
		})
	}()
	s.waiting(t, 1)
	commit(t, tx)
	if err := <-begun; err != nil {
		t.Errorf("begin: %v", err)
	}
}

// Statements over several sessions lock them in one order, so those that name them in opposite orders do not deadlock.
func TestLockOrder(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	s := newStage(t)
	s.exec(t, `insert into setpoint.sessions (session_id, owner, ttl_us, expires_at, changed_at, created_at)
		select id, 'user:a', 0, 'infinity', clock_timestamp(), clock_timestamp() from unnest(array['a', 'b', 'c']) id`)
	retries := make(chan error, 1000)
	s.db.OnRetry(func(_ context.Context, err error) { retries <- err })
	orders := [][]string{{"a", "b", "c"}, {"c", "b", "a"}, {"b", "c", "a"}, {"s", "a"}}
	errs := make(chan error)
	for i := range 8 {
		go func() {
			var err error
			for range 20 {
				err = errors.Join(err, s.db.Locked(ctx, "end", orders[i%len(orders)], func(ctx context.Context, q *dbgen.Queries) error {
					_, err := q.SessionKeepAlive(ctx, dbgen.SessionKeepAliveParams{SessionID: "a", Authority: 63})
					return err
				}))
			}
			errs <- err
		}()
	}
	for range 8 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	select {
	case err := <-retries:
		t.Errorf("a transaction had to be tried again: %v", err)
	default:
	}
}

// A record of a request goes with its transaction, and what it says is what the first call was told.
func TestRecordedOutcome(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	w := write{expected: -1, request: "r", hash: "h"}
	first, err := s.set(w)
	if err != nil {
		t.Fatal(err)
	}
	again, err := s.set(w)
	if err != nil || again.Refused != "REPLAYED" {
		t.Fatalf("again: %+v, %v", again, err)
	}
	var revision, found int64
	err = s.first.QueryRow(context.Background(), `select (outcome->0->>'revision')::bigint,
		(outcome->0->>'found_version')::bigint from setpoint.requests`).Scan(&revision, &found)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]int64{first.Revision, first.FoundVersion}, []int64{revision, found}); diff != "" {
		t.Errorf("recorded outcome (-first +recorded):\n%s", diff)
	}
	// After a day the record counts as absent.
	s.exec(t, `update setpoint.requests set created_at = created_at - interval '25 hours'`)
	if later, err := s.set(w); err != nil || later.Refused != "" {
		t.Errorf("a day later: %+v, %v", later, err)
	}
	s.consistent(t)
}
