// Package migrations holds the database's schema as numbered SQL files, and applies them.
//
// Migrations run on a direct connection (not through a transaction-pooling proxy) under a session-level advisory lock, so
// that of several servers that start at once one migrates and the others wait.
package migrations

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
)

//go:embed *.sql
var files embed.FS

// Files returns the migrations as they are embedded, NNNNN_name.sql each.
func Files() fs.FS { return files }

// Table is where goose keeps the versions that were applied.
const Table = "public.setpoint_schema_version"

// Step is one migration and what is known of it.
type Step struct {
	// Version is the number that leads the file's name.
	Version int64
	// Name is the file's name.
	Name string
	// Applied tells whether the database has it.
	Applied bool
}

// Migrator applies the migrations to one database.
type Migrator struct {
	conn     *sql.DB
	provider *goose.Provider
}

// Open prepares to migrate the database of a postgres:// URL. It does not connect yet. The caller closes it.
func Open(databaseURL string) (*Migrator, error) {
	config, err := pgx.ParseConfig(databaseURL)
	if err != nil {
		return nil, fmt.Errorf("read the database URL: %w", err)
	}
	conn := stdlib.OpenDB(*config)
	locker, err := lock.NewPostgresSessionLocker(lock.WithLockTimeout(1, 120))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("prepare the migration lock: %w", err), conn.Close())
	}
	provider, err := goose.NewProvider(goose.DialectPostgres, conn, files,
		goose.WithSessionLocker(locker), goose.WithTableName(Table))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("read the migrations: %w", err), conn.Close())
	}
	return &Migrator{conn: conn, provider: provider}, nil
}

// Close gives the connections back.
func (m *Migrator) Close() error { return m.conn.Close() }

// Up applies every migration that the database lacks and returns those, in order.
func (m *Migrator) Up(ctx context.Context) ([]Step, error) {
	results, err := m.provider.Up(ctx)
	if err != nil {
		return nil, fmt.Errorf("migrate up: %w", err)
	}
	return steps(results, true), nil
}

// UpOne applies the first migration that the database lacks and returns it; none if it lacks none.
func (m *Migrator) UpOne(ctx context.Context) ([]Step, error) {
	result, err := m.provider.UpByOne(ctx)
	if errors.Is(err, goose.ErrNoNextVersion) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("migrate up: %w", err)
	}
	return steps([]*goose.MigrationResult{result}, true), nil
}

// Down takes back the latest migration and returns it; none if there is nothing to take back. Data goes with its tables.
func (m *Migrator) Down(ctx context.Context) ([]Step, error) {
	result, err := m.provider.Down(ctx)
	if errors.Is(err, goose.ErrNoNextVersion) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("migrate down: %w", err)
	}
	return steps([]*goose.MigrationResult{result}, false), nil
}

// Status returns every migration that this binary knows, in order, and whether the database has it.
func (m *Migrator) Status(ctx context.Context) ([]Step, error) {
	all, err := m.provider.Status(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the schema version: %w", err)
	}
	var out []Step
	for _, s := range all {
		out = append(out, Step{Version: s.Source.Version, Name: s.Source.Path, Applied: s.State == goose.StateApplied})
	}
	return out, nil
}

// Versions returns the version of the database's schema and the latest that this binary knows. The database's is the
// greater one where a newer binary has migrated it.
func (m *Migrator) Versions(ctx context.Context) (int64, int64, error) {
	current, target, err := m.provider.GetVersions(ctx)
	if err != nil {
		return 0, 0, fmt.Errorf("read the schema version: %w", err)
	}
	return current, target, nil
}

// SQL returns the text of a migration's file.
func SQL(step Step) (string, error) {
	text, err := fs.ReadFile(files, step.Name)
	if err != nil {
		return "", fmt.Errorf("read the migration: %w", err)
	}
	return string(text), nil
}

// Up brings the database of a postgres:// URL to the latest schema.
func Up(ctx context.Context, databaseURL string) error {
	m, err := Open(databaseURL)
	if err != nil {
		return err
	}
	_, err = m.Up(ctx)
	return errors.Join(err, m.Close())
}

func steps(results []*goose.MigrationResult, applied bool) []Step {
	var out []Step
	for _, r := range results {
		out = append(out, Step{Version: r.Source.Version, Name: r.Source.Path, Applied: applied})
	}
	return out
}
