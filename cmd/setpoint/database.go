package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/setpointdb/setpoint/migrations"
)

// databaseFlag is the --database-url of the commands that talk to the database themselves.
type databaseFlag struct{ given string }

func addDatabaseFlag(cmd *cobra.Command) *databaseFlag {
	f := &databaseFlag{}
	cmd.Flags().StringVar(&f.given, "database-url", "",
		"`URL` of the database, postgres://…, or @FILE that holds it: others on this machine can see the list of processes "+
			"(environment: SETPOINT_DATABASE_URL)")
	return f
}

// url is the database's URL: from the flag, the file that the flag names, or the environment.
func (f *databaseFlag) url(c *cli) (string, error) {
	url := f.given
	if url == "" {
		url = c.getenv("SETPOINT_DATABASE_URL")
	}
	if path, ok := strings.CutPrefix(url, "@"); ok {
		text, err := os.ReadFile(path)
		if err != nil {
			return "", usagef("--database-url: %v", err)
		}
		url = strings.TrimSpace(string(text))
	}
	if url == "" {
		return "", usagef("--database-url is required (or SETPOINT_DATABASE_URL)")
	}
	return url, nil
}

// withMigrator opens the database's migrations for the time of a function.
func withMigrator(url string, work func(*migrations.Migrator) error) error {
	m, err := migrations.Open(url)
	if err != nil {
		return usagef("--database-url: %v", err)
	}
	return errors.Join(work(m), m.Close())
}

// errSchemaOld is a schema that lacks what this binary needs.
var errSchemaOld = errors.New("the schema is too old")

// checkSchema returns errSchemaOld if the database lacks migrations of this binary. A newer schema is good: every release
// runs on the next one's.
func checkSchema(ctx context.Context, m *migrations.Migrator) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	current, target, err := m.Versions(ctx)
	if err != nil {
		return err
	}
	if current < target {
		return fmt.Errorf("%w: it is at version %d, and this binary needs %d; run 'setpoint migrate up'",
			errSchemaOld, current, target)
	}
	return nil
}
