package testkit

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

func TestProxy(t *testing.T) {
	t.Parallel()
	url, proxy := NewProxy(t, NewEmptyDatabase(t))
	conn := connect(t, url)
	if err := conn.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}

	proxy.Cut()
	if err := conn.Ping(t.Context()); err == nil {
		t.Error("a connection survived Cut")
	}
	if _, err := query(t.Context(), url, "select ''"); err == nil {
		t.Error("a connection was made after Cut")
	}
	proxy.Restore()
	conn = connect(t, url)
	if err := conn.Ping(t.Context()); err != nil {
		t.Errorf("after Cut and Restore: %v", err)
	}

	proxy.Blackhole()
	if err := within(t, 200*time.Millisecond, conn.Ping); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a connection in the black hole: got %v, want silence", err)
	}
	connectOnly := func(ctx context.Context) error {
		_, err := pgx.Connect(ctx, url)
		return err
	}
	if err := within(t, 200*time.Millisecond, connectOnly); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a new connection in the black hole: got %v, want silence", err)
	}
	proxy.Restore()
	if got, err := query(t.Context(), url, "select 'works'"); err != nil || got != "works" {
		t.Errorf("after Blackhole and Restore: got %q, %v", got, err)
	}

	proxy.Blackhole()
	proxy.Cut()
	proxy.Cut()
	proxy.Restore()
	proxy.Restore()
	if got, err := query(t.Context(), url, "select 'works'"); err != nil || got != "works" {
		t.Errorf("after both and Restore: got %q, %v", got, err)
	}
}

// A test that cuts off what carries data must not be told of leaks that are not its own.
func TestProxyUnderLoad(t *testing.T) {
	t.Parallel()
	url, proxy := NewProxy(t, NewEmptyDatabase(t))
	for _, harm := range []func(){proxy.Cut, proxy.Blackhole} {
		var streams sync.WaitGroup
		for range 8 {
			conn := connect(t, url)
			rows, err := conn.Query(t.Context(), "select repeat('x', 10000) from generate_series(1, 1000000)")
			if err != nil || !rows.Next() {
				t.Fatalf("no rows: %v", err)
			}
			streams.Go(func() {
				for rows.Next() {
				}
				if rows.Err() == nil {
					t.Error("every row arrived")
				}
			})
		}
		harm()
		proxy.Restore()
		streams.Wait()
	}
}

func connect(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) }) // most are broken by then
	return conn
}

func within(t *testing.T, d time.Duration, call func(context.Context) error) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	return call(ctx)
}
