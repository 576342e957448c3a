// Package testkit gives each test a PostgreSQL database of its own: a copy of a template that was migrated once.
//
// A package's tests call Main from TestMain, and then
//
//	url := testkit.NewDatabase(t)
//	pool := testkit.Pool(t, url)
//
// # Where the server comes from
//
//  1. SETPOINT_TEST_DATABASE_URL, the postgres:// URL of a user who may create databases;
//  2. else a container, if a Docker engine answers (image SETPOINT_TEST_POSTGRES_IMAGE, else DefaultImage);
//  3. else PostgreSQL's binaries on this machine, found or downloaded by package localpg.
//
// SETPOINT_TEST_BACKEND=docker or =local insists on one of the latter two. Where a container cannot be had although the
// engine answers, a line says so and the binaries are used.
//
// A server of the second or third kind is started by the first test that wants a database and stopped by Main. To share
// one among all packages, run them below the command in pgtest, which sets SETPOINT_TEST_DATABASE_URL:
//
//	go run ./internal/testkit/pgtest -- go test ./...
//
// What a killed process leaves behind, a container or a data directory, is removed by the next that starts a server.
package testkit

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/goleak"
)

// patience bounds each step that a test waits for: a copy of the template, a pool's first connection.
const patience = time.Minute

// shared is this process's server, started when a test first wants one.
var shared struct {
	mu      sync.Mutex
	main    bool
	tried   bool
	cluster *cluster
	err     error
}

// Main runs a package's tests, stops the server that they used, and looks for goroutines that they left running. It exits
// the process and is to be called from TestMain:
//
//	func TestMain(m *testing.M) { testkit.Main(m) }
func Main(m *testing.M, options ...goleak.Option) {
	shared.mu.Lock()
	shared.main = true
	shared.mu.Unlock()
	code := m.Run()
	if err := stopShared(); err != nil {
		fmt.Fprintf(os.Stderr, "testkit: %v\n", err)
		code = max(code, 1)
	}
	if code == 0 {
		if err := goleak.Find(append(leaks(), options...)...); err != nil {
			fmt.Fprintf(os.Stderr, "testkit: goroutines were left running: %v\n", err)
			code = 1
		}
	}
	os.Exit(code)
}

// NewDatabase returns the postgres:// URL of a new database with all migrations applied. It is dropped at the end of the
// test, whoever is still connected.
func NewDatabase(t testing.TB) string {
	t.Helper()
	return newDatabase(t, true)
}

// NewEmptyDatabase is NewDatabase without the migrations.
func NewEmptyDatabase(t testing.TB) string {
	t.Helper()
	return newDatabase(t, false)
}

func newDatabase(t testing.TB, migrated bool) string {
	t.Helper()
	c, err := sharedCluster()
	if err != nil {
		t.Fatalf("testkit: %v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	template := "template0"
	if migrated {
		if template, err = c.template(ctx); err != nil {
			t.Fatalf("testkit: %v", err)
		}
	}
	name := databaseName(t.Name())
	if err := c.create(ctx, name, template); err != nil {
		t.Fatalf("testkit: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := c.drop(ctx, name); err != nil {
			t.Errorf("testkit: %v", err)
		}
	})
	return c.url(name)
}

// Pool connects to a database for the length of the test.
func Pool(t testing.TB, databaseURL string) *pgxpool.Pool {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	pool, err := pgxpool.New(ctx, databaseURL)
	if err != nil {
		t.Fatalf("testkit: connect: %v", err)
	}
	t.Cleanup(pool.Close)
	if err := pool.Ping(ctx); err != nil {
		t.Fatalf("testkit: connect: %v", err)
	}
	return pool
}

// Eventually calls check until it returns nil, and fails the test with its last error after the timeout. It is for what
// happens in another process, which gives no signal to wait for; inside a process, wait for a signal.
func Eventually(t testing.TB, timeout time.Duration, check func() error) {
	t.Helper()
	deadline := time.Now().Add(timeout)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %v", timeout, err)
		}
		<-time.After(10 * time.Millisecond)
	}
}

func sharedCluster() (*cluster, error) {
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if !shared.main {
		return nil, errors.New("call testkit.Main from TestMain, which stops the server that this test is about to use")
	}
	if !shared.tried {
		shared.tried = true
		shared.cluster, shared.err = openCluster()
	}
	return shared.cluster, shared.err
}

func stopShared() error {
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if shared.cluster == nil {
		return nil
	}
	return shared.cluster.close()
}

func openCluster() (*cluster, error) {
	ctx, cancel := context.WithTimeout(context.Background(), startPatience)
	defer cancel()
	b, err := StartBackend(ctx)
	if err != nil {
		return nil, err
	}
	c, err := newCluster(ctx, b)
	if err != nil {
		return nil, errors.Join(err, b.Stop())
	}
	return c, nil
}

// databaseName is unique, and tells a person which test it belongs to.
func databaseName(test string) string {
	clean := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '_'
	}, strings.ToLower(test))
	const limit = 63 // of an identifier, in bytes
	suffix := "_" + strings.ToLower(rand.Text()[:10])
	prefix := "setpoint_test_"
	return prefix + clean[:min(len(clean), limit-len(prefix)-len(suffix))] + suffix
}

func quote(name string) string { return pgx.Identifier{name}.Sanitize() }
