package testkit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// childEnv makes the test binary a process that starts a backend, prints its URL, and stops it when its input ends.
const childEnv = "SETPOINT_TESTKIT_TEST_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		b, err := StartBackend(context.Background())
		if err == nil {
			fmt.Fprintln(os.Stdout, b.URL)
			_, err = io.Copy(io.Discard, os.Stdin)
			err = errors.Join(err, b.Stop())
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	Main(m)
}

func TestNewDatabase(t *testing.T) {
	t.Parallel()
	migrated, other, empty := NewDatabase(t), NewDatabase(t), NewEmptyDatabase(t)
	want := func(url, sql, want string) {
		t.Helper()
		if got, err := query(t.Context(), url, sql); err != nil || got != want {
			t.Errorf("%s: got %q, %v, want %q", sql, got, err, want)
		}
	}
	const sessions = "select count(*)::text from pg_tables where schemaname = 'setpoint' and tablename = 'sessions'"
	want(migrated, sessions, "1")
	want(other, sessions, "1")
	want(empty, sessions, "0")
	want(migrated, "show fsync", "on")
	if _, err := Pool(t, migrated).Exec(t.Context(), "create table only_here ()"); err != nil {
		t.Fatal(err)
	}
	want(other, "select coalesce(to_regclass('only_here')::text, 'absent')", "absent")
}

func TestNewDatabaseIsDropped(t *testing.T) {
	t.Parallel()
	var url string
	conn := func() *pgx.Conn {
		var conn *pgx.Conn
		t.Run("uses", func(t *testing.T) {
			url = NewDatabase(t)
			var err error
			if conn, err = pgx.Connect(t.Context(), url); err != nil {
				t.Fatal(err)
			}
		})
		return conn
	}()
	var sqlErr interface{ SQLState() string }
	if err := conn.Ping(t.Context()); err == nil {
		t.Error("a connection outlived its database")
	}
	if _, err := query(t.Context(), url, "select ''"); !errors.As(err, &sqlErr) || sqlErr.SQLState() != "3D000" {
		t.Errorf("got %v, want that the database does not exist", err)
	}
	if err := conn.Close(t.Context()); err != nil {
		t.Logf("closing what the server has closed: %v", err)
	}
}

func TestNewDatabaseInParallel(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	seen := make(map[string]bool)
	for range 12 {
		t.Run("", func(t *testing.T) {
			t.Parallel()
			url := NewDatabase(t)
			name, err := query(t.Context(), url, "select current_database()")
			mu.Lock()
			defer mu.Unlock()
			if err != nil || seen[name] {
				t.Errorf("got %q again, %v", name, err)
			}
			seen[name] = true
		})
	}
}

// Processes that start on a fresh server at once make one template between them.
func TestTemplateIsMadeOnce(t *testing.T) {
	t.Parallel()
	c, err := sharedCluster()
	if err != nil {
		t.Fatal(err)
	}
	var callers sync.WaitGroup
	for range 4 {
		callers.Go(func() {
			another, err := newCluster(t.Context(), &Backend{URL: c.backend.URL, stop: func() error { return nil }})
			if err != nil {
				t.Error(err)
				return
			}
			if _, err := another.template(t.Context()); err != nil {
				t.Error(err)
			}
			if err := another.close(); err != nil {
				t.Error(err)
			}
		})
	}
	callers.Wait()
	got, err := query(t.Context(), c.backend.URL,
		"select count(*) || ' ' || count(*) filter (where datallowconn) from pg_database where datname like 'setpoint_template_%'")
	if err != nil || !strings.HasSuffix(got, " 0") || strings.HasPrefix(got, "0") {
		t.Errorf("got %q, %v: want templates, and none open to connections", got, err)
	}
}

func TestCreateWaitsForUsersOfTheOriginal(t *testing.T) {
	t.Parallel()
	original := NewEmptyDatabase(t)
	c, err := sharedCluster()
	if err != nil {
		t.Fatal(err)
	}
	conn, err := pgx.Connect(t.Context(), original)
	if err != nil {
		t.Fatal(err)
	}
	name, from := databaseName(t.Name()), conn.Config().Database
	// PostgreSQL itself waits five seconds for the original to be free.
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := c.create(ctx, name, from); err == nil {
		t.Error("a database was copied while somebody was connected to it")
	}
	created := make(chan error, 1)
	go func() { created <- c.create(t.Context(), name, from) }()
	if err := conn.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(<-created, c.drop(t.Context(), name)); err != nil {
		t.Error(err)
	}
}

func TestDatabaseName(t *testing.T) {
	t.Parallel()
	for _, test := range []string{"TestX", "TestX/a_case with Ünïcode;\"'", strings.Repeat("Long/", 50), ""} {
		got := databaseName(test)
		if len(got) > 63 || quote(got) != `"`+got+`"` || strings.ToLower(got) != got {
			t.Errorf("%q: got %q", test, got)
		}
		if got == databaseName(test) {
			t.Errorf("%q: %q twice", test, got)
		}
	}
}

func TestEventually(t *testing.T) {
	t.Parallel()
	calls := 0
	check := func() error {
		if calls++; calls < 3 {
			return errors.New("not yet")
		}
		return nil
	}
	if failure := failureOf(t, func(t testing.TB) { Eventually(t, time.Minute, check) }); failure != "" || calls != 3 {
		t.Errorf("got %q after %d calls, want success after 3", failure, calls)
	}
	never := func() error { return errors.New("still wrong") }
	failure := failureOf(t, func(t testing.TB) { Eventually(t, 20*time.Millisecond, never) })
	if want := "not within 20ms: still wrong"; failure != want {
		t.Errorf("got %q, want %q", failure, want)
	}
}

// failureOf returns what a helper fails its test with, "" if it does not.
func failureOf(t *testing.T, helper func(testing.TB)) string {
	t.Helper()
	recorder := &recorder{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		helper(recorder)
	}()
	<-done
	return recorder.failure
}

type recorder struct {
	testing.TB
	failure string
}

func (r *recorder) Helper() {}

func (r *recorder) Fatalf(format string, args ...any) {
	r.failure = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

// query returns one value as text, over a connection of its own.
func query(ctx context.Context, url, sql string) (string, error) {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return "", err
	}
	defer conn.Close(ctx) //nolint:errcheck // the answer counts
	var got string
	err = conn.QueryRow(ctx, sql).Scan(&got)
	return got, err
}
