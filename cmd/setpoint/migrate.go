package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/setpointdb/setpoint/migrations"
)

const migrateLong = `Brings the database's schema to where this binary needs it, and tells where it
is. Migrations take a lock for the time that they run, so several may be started
at once; connect directly, not through a proxy that pools connections.

Old servers run on the new schema: migrate first, then replace the servers.`

func newMigrateCommand(c *cli) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "migrate",
		Short: "Migrate the database's schema",
		Long:  migrateLong,
		Example: `  setpoint migrate plan --database-url @/etc/setpoint/database-url
  setpoint migrate up --database-url @/etc/setpoint/database-url`,
		RunE: needsSubcommand,
		Args: cobra.ArbitraryArgs,
	}
	cmd.AddCommand(newMigrateUpCommand(c), newMigrateDownCommand(c), newMigrateStatusCommand(c), newMigratePlanCommand(c))
	return cmd
}

func newMigrateUpCommand(c *cli) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "up",
		Short:   "Apply what the database lacks",
		Long:    "Applies every migration that the database lacks, each in a transaction of its own.",
		Example: "  setpoint migrate up --database-url @/etc/setpoint/database-url",
		Args:    takes(),
	}
	database := addDatabaseFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return c.migrate(database, func(m *migrations.Migrator) error {
			applied, err := m.Up(cmd.Context())
			if err != nil {
				return err
			}
			return c.printSteps(applied, "applied", "the schema is up to date")
		})
	}
	return cmd
}

func newMigrateDownCommand(c *cli) *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:     "down",
		Short:   "Take back the latest migration",
		Long:    "Takes back the latest migration. What its tables hold is lost with them.",
		Example: "  setpoint migrate down --database-url @/etc/setpoint/database-url --yes",
		Args:    takes(),
	}
	database := addDatabaseFlag(cmd)
	addYesFlag(cmd, &yes)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := c.confirm(yes, "Take back the latest migration, and lose what its tables hold?"); err != nil {
			return err
		}
		return c.migrate(database, func(m *migrations.Migrator) error {
			taken, err := m.Down(cmd.Context())
			if err != nil {
				return err
			}
			return c.printSteps(taken, "taken back", "there is nothing to take back")
		})
	}
	return cmd
}

func newMigrateStatusCommand(c *cli) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "status",
		Short:   "List the migrations and whether the database has them",
		Long:    "Lists every migration that this binary knows and whether the database has it.",
		Example: "  setpoint migrate status --database-url @/etc/setpoint/database-url",
		Args:    takes(),
	}
	database := addDatabaseFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return c.migrate(database, func(m *migrations.Migrator) error {
			steps, err := m.Status(cmd.Context())
			if err != nil {
				return err
			}
			for _, step := range steps {
				state := "pending"
				if step.Applied {
					state = "applied"
				}
				if _, err := fmt.Fprintf(c.stdout, "%-8s  %s\n", state, step.Name); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return cmd
}

func newMigratePlanCommand(c *cli) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "plan",
		Short:   "Print the SQL that 'migrate up' would run",
		Long:    "Prints the files of the migrations that the database lacks, and runs nothing.",
		Example: "  setpoint migrate plan --database-url @/etc/setpoint/database-url | less",
		Args:    takes(),
	}
	database := addDatabaseFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return c.migrate(database, func(m *migrations.Migrator) error {
			steps, err := m.Status(cmd.Context())
			if err != nil {
				return err
			}
			return c.printPlan(steps)
		})
	}
	return cmd
}

func (c *cli) printPlan(steps []migrations.Step) error {
	for _, step := range steps {
		if step.Applied {
			continue
		}
		text, err := migrations.SQL(step)
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(c.stdout, "-- %s\n%s\n", step.Name, text); err != nil {
			return err
		}
	}
	return nil
}

func (c *cli) migrate(database *databaseFlag, work func(*migrations.Migrator) error) error {
	url, err := database.url(c)
	if err != nil {
		return err
	}
	return withMigrator(url, work)
}

func (c *cli) printSteps(steps []migrations.Step, did, nothing string) error {
	for _, step := range steps {
		if _, err := fmt.Fprintf(c.stdout, "%s %s\n", did, step.Name); err != nil {
			return err
		}
	}
	if len(steps) == 0 {
		_, err := fmt.Fprintln(c.stdout, nothing)
		return err
	}
	return nil
}
