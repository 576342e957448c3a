package db_test

import (
	"context"
	"strings"
	"testing"

	"github.com/setpointdb/setpoint/db"
)

// What would lose acknowledged writes, or cannot carry them, is refused before anything is connected.
func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	for url, want := range map[string]string{
		"postgres://h/d?synchronous_commit=off":                  "synchronous_commit",
		"postgres://h/d?default_query_exec_mode=exec":            "cache_describe",
		"postgres://h/d?default_query_exec_mode=simple_protocol": "cache_describe",
		"postgres://h:port/d":                                    "database URL",
	} {
		d, err := db.Open(context.Background(), db.Config{URL: url})
		if err == nil {
			d.Close()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want an error about %s", url, err, want)
		}
	}
}
