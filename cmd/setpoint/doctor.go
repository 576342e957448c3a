package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/setpointdb/setpoint/migrations"
)

const doctorLong = `Checks the database that a server is to use, and says what to do about what it
finds: whether it is reached, its version and its schema's, whether commits are
durable, whether a proxy pools transactions before it, its clock, how many connections
it allows, and whether the role has the rights that a server needs. Run it with the URL
that the server has. Exit status 1 if something has to be done.`

func newDoctorCommand(c *cli) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "doctor",
		Short:   "Check the database and say what to do",
		Long:    doctorLong,
		Example: "  setpoint doctor --database-url @/etc/setpoint/database-url",
		Args:    takes(),
	}
	database := addDatabaseFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		url, err := database.url(c)
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), 15*time.Second)
		defer cancel()
		return c.printFindings(examine(ctx, url))
	}
	return cmd
}

// finding is one thing that doctor looked at.
type finding struct {
	what, found string
	// advice says what to do; empty if all is well.
	advice string
	// advisory marks advice that nothing depends on.
	advisory bool
}

func (c *cli) printFindings(findings []finding) error {
	bad := 0
	for _, f := range findings {
		mark := "ok  "
		switch {
		case f.advice != "" && f.advisory:
			mark = "note"
		case f.advice != "":
			mark = "BAD "
			bad++
		}
		if _, err := fmt.Fprintf(c.stdout, "%s  %-12s %s\n", mark, f.what, f.found); err != nil {
			return err
		}
		if f.advice != "" {
			if _, err := fmt.Fprintf(c.stdout, "      %-12s → %s\n", "", f.advice); err != nil {
				return err
			}
		}
	}
	if bad > 0 {
		return &reasonError{"UNHEALTHY", fmt.Sprintf("%d of %d checks want something done", bad, len(findings))}
	}
	return nil
}

// examine runs every check, as far as the database lets it.
func examine(ctx context.Context, url string) []finding {
	config, err := pgx.ParseConfig(url)
	if err != nil {
		return []finding{{what: "database", found: err.Error(), advice: "correct --database-url"}}
	}
	start := time.Now()
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return []finding{{
			what: "database", found: oneLine(err), advice: "start PostgreSQL, or correct --database-url, or its pg_hba.conf",
		}}
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	findings := []finding{{
		what: "database", found: fmt.Sprintf("%s:%d/%s answers in %s", config.Host, config.Port, config.Database,
			time.Since(start).Round(time.Millisecond)),
	}}
	for _, check := range []func(context.Context, *pgx.Conn) (finding, error){
		examineVersion, examineDurability, examineClock, examineConnections, examinePooling, examineRights,
	} {
		f, err := check(ctx, conn)
		if err != nil {
			f.found, f.advice = oneLine(err), "grant the role what the check needs, and run doctor again"
		}
		findings = append(findings, f)
	}
	return append(findings, examineSchema(ctx, url))
}

func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }

// oldestPostgres is the first version of PostgreSQL that Setpoint's statements run on.
const oldestPostgres = 140000

func examineVersion(ctx context.Context, conn *pgx.Conn) (finding, error) {
	f := finding{what: "version"}
	var number int
	err := conn.QueryRow(ctx, "select current_setting('server_version'), current_setting('server_version_num')::int").
		Scan(&f.found, &number)
	f.found = "PostgreSQL " + f.found
	if number < oldestPostgres {
		f.advice = "upgrade PostgreSQL to 14 or later"
	}
	return f, err
}

func examineDurability(ctx context.Context, conn *pgx.Conn) (finding, error) {
	f := finding{what: "durability"}
	var fsync, fullPageWrites, synchronousCommit string
	err := conn.QueryRow(ctx, `select current_setting('fsync'), current_setting('full_page_writes'),
		current_setting('synchronous_commit')`).Scan(&fsync, &fullPageWrites, &synchronousCommit)
	f.found = fmt.Sprintf("fsync %s, full_page_writes %s, synchronous_commit %s", fsync, fullPageWrites, synchronousCommit)
	switch {
	case fsync != "on":
		f.advice = "set fsync = on: without it a crash loses or corrupts acknowledged writes"
	case fullPageWrites != "on":
		f.advice = "set full_page_writes = on: without it a crash of the machine corrupts pages"
	case synchronousCommit == "off":
		f.advice = "set synchronous_commit = on: without it a crash loses the last acknowledged writes"
	}
	return f, err
}

func examineClock(ctx context.Context, conn *pgx.Conn) (finding, error) {
	f := finding{what: "clock"}
	var theirs time.Time
	before := time.Now()
	err := conn.QueryRow(ctx, "select clock_timestamp()").Scan(&theirs)
	after := time.Now()
	ahead := theirs.Sub(before.Add(after.Sub(before) / 2))
	f.found = fmt.Sprintf("the database's is %s from this machine's", ahead.Round(time.Millisecond))
	if ahead.Abs() > time.Second {
		f.advice = "synchronize the clocks (NTP): expiry follows the database's, and logs would not match"
		f.advisory = true
	}
	return f, err
}

func examineConnections(ctx context.Context, conn *pgx.Conn) (finding, error) {
	f := finding{what: "connections"}
	var most, used int
	err := conn.QueryRow(ctx, `select current_setting('max_connections')::int -
		current_setting('superuser_reserved_connections')::int, (select count(*) from pg_stat_activity
		where backend_type = 'client backend')`).Scan(&most, &used)
	f.found = fmt.Sprintf("%d of %d in use", used, most)
	if most-used < 40 {
		f.advice = "raise max_connections, or lower --database-max-conns: a server uses up to twice that and 2"
		f.advisory = true
	}
	return f, err
}

// examinePooling compares the backend that answers with the one that the connection was told of: a proxy tells of its own.
func examinePooling(ctx context.Context, conn *pgx.Conn) (finding, error) {
	f := finding{what: "pooling", found: "a direct connection"}
	var backend uint32
	if err := conn.QueryRow(ctx, "select pg_backend_pid()").Scan(&backend); err != nil {
		return f, err
	}
	if backend == conn.PgConn().PID() {
		return f, nil
	}
	f.found = "a proxy that pools connections"
	if conn.Config().DefaultQueryExecMode == pgx.QueryExecModeCacheDescribe {
		f.found += ", and the URL says so"
		return f, nil
	}
	f.advice = "add default_query_exec_mode=cache_describe to the URL, set the role's defaults (docs/operations.md), and migrate on a " +
		"direct connection"
	f.advisory = true
	return f, nil
}

func examineSchema(ctx context.Context, url string) finding {
	f := finding{what: "schema"}
	err := withMigrator(url, func(m *migrations.Migrator) error {
		current, target, err := m.Versions(ctx)
		f.found = fmt.Sprintf("version %d, this binary needs %d", current, target)
		if err == nil && current < target {
			f.advice = "run 'setpoint migrate up'"
		}
		return err
	})
	if err != nil {
		f.found, f.advice = oneLine(err), "grant the role the schema, or run 'setpoint migrate up' as its owner"
	}
	return f
}
