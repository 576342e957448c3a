package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/setpointdb/setpoint/db"
	"github.com/setpointdb/setpoint/internal/server"
	"github.com/setpointdb/setpoint/migrations"
	"github.com/setpointdb/setpoint/service"
)

// serveFlags are the flags that serve and dev share.
type serveFlags struct {
	grpcAddr, httpAddr  string
	logLevel, logFormat string
	corsOrigins         []string
	metrics             bool
	drain               time.Duration
	databaseTimeout     time.Duration
	retention           time.Duration
	databaseConns       int32
	maxValueBytes       int
	maxVariables        int64
}

func addServeFlags(flags *pflag.FlagSet) *serveFlags {
	f := &serveFlags{}
	flags.SortFlags = false
	flags.StringVar(&f.grpcAddr, "grpc-addr", "127.0.0.1:7420", "`address` to serve gRPC on; port 0 takes a free one")
	flags.StringVar(&f.httpAddr, "http-addr", "127.0.0.1:7421",
		"`address` to serve REST, /openapi.json, /livez, /readyz and /metrics on; empty for none")
	flags.StringArrayVar(&f.corsOrigins, "cors-origin", nil,
		"`site` whose pages may call over HTTP, like https://example.com; * for all; may be repeated")
	flags.BoolVar(&f.metrics, "metrics", false, "measure, and serve the figures to Prometheus at /metrics")
	flags.StringVar(&f.logLevel, "log-level", "info", "`least` level to log: debug, info, warn or error")
	flags.StringVar(&f.logFormat, "log-format", "text", "`form` of the log: text or json")
	flags.DurationVar(&f.drain, "drain-timeout", 10*time.Second, "`time` that calls under way may take when told to stop")
	flags.DurationVar(&f.databaseTimeout, "database-timeout", 10*time.Second,
		"`limit` for each operation of the database; past it a call fails with DATABASE_UNAVAILABLE")
	flags.Int32Var(&f.databaseConns, "database-max-conns", 16, "`number` of connections for writes, and as many for reads")
	flags.DurationVar(&f.retention, "history-retention", 30*24*time.Hour,
		"`time` that history is kept at least, also beyond a variable's history limit")
	flags.IntVar(&f.maxValueBytes, "max-value-bytes", service.DefaultLimits.ValueBytes, "largest value, in `bytes`")
	flags.Int64Var(&f.maxVariables, "max-variables", service.DefaultLimits.Variables, "most variables in a session, a `number`")
	return f
}

// config reads the flags.
func (f *serveFlags) config(log io.Writer) (server.Config, error) {
	logger, err := newLogger(log, f.logLevel, f.logFormat)
	if err != nil {
		return server.Config{}, err
	}
	limits := service.DefaultLimits
	limits.ValueBytes, limits.Variables = f.maxValueBytes, f.maxVariables
	switch {
	case limits.ValueBytes < 1 || limits.ValueBytes > server.MaxMessageBytes/2:
		return server.Config{}, usagef("--max-value-bytes is from 1 to %d", server.MaxMessageBytes/2)
	case limits.Variables < 1:
		return server.Config{}, usagef("--max-variables is at least 1")
	case f.retention < 24*time.Hour:
		return server.Config{}, usagef("--history-retention is at least 24h: as long as a request_id is remembered")
	case f.databaseTimeout <= 0 || f.drain <= 0 || f.databaseConns < 1:
		return server.Config{}, usagef("--database-timeout, --drain-timeout and --database-max-conns are positive")
	}
	for _, origin := range f.corsOrigins {
		if err := server.CheckOrigin(origin); err != nil {
			return server.Config{}, usagef("--cors-origin: %v", err)
		}
	}
	return server.Config{
		GRPCAddr: f.grpcAddr, HTTPAddr: f.httpAddr, CORSOrigins: f.corsOrigins, Limits: limits, Metrics: f.metrics,
		Log: logger, DrainTimeout: f.drain, HistoryRetention: f.retention,
		Database: db.Config{Timeout: f.databaseTimeout, MaxConns: f.databaseConns},
	}, nil
}

func newLogger(w io.Writer, level, format string) (*slog.Logger, error) {
	var least slog.Level
	if err := least.UnmarshalText([]byte(level)); err != nil {
		return nil, usagef("--log-level is debug, info, warn or error, not %q", level)
	}
	options := &slog.HandlerOptions{Level: least}
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(w, options)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, options)), nil
	}
	return nil, usagef("--log-format is text or json, not %q", format)
}

const serveLong = `Serves Setpoint from a PostgreSQL database until it is told to stop (SIGTERM or
Ctrl-C); calls under way are then given --drain-timeout to end.

Any number of servers may share a database. One that cannot reach it answers
DATABASE_UNAVAILABLE, and goes on by itself when it can. The database has to be
migrated: by 'setpoint migrate up', or here with --migrate.

Give the URL as @FILE or in SETPOINT_DATABASE_URL if it holds a password. A URL
with default_query_exec_mode=cache_describe suits a proxy that pools transactions;
the settings of the connection are then the role's.

--auth says who is calling:
  token   whom the bearer token shown is of: 'setpoint token create' makes them,
          the first one with --bootstrap
  oidc    whom the JWT shown is about, signed by --oidc-issuer for --oidc-audience
  none    nobody knows: every caller is a server admin, or whom it says it is
With --client-ca a client certificate says it too: its URI setpoint:user:ada, its
SPIFFE id, its host or its email address. With --auth none it is then required.

Files of certificates are read again when they change. On an address that others
can reach, --auth none needs --client-ca, and tokens need TLS, unless --insecure
says that the network is trusted or that a proxy speaks TLS.`

func newServeCommand(c *cli) *cobra.Command {
	var migrate bool
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Serve from a PostgreSQL database",
		Long:  serveLong,
		Example: `  setpoint serve --database-url @/etc/setpoint/database-url --auth token \
    --grpc-addr :7420 --http-addr :7421 --tls-cert tls.crt --tls-key tls.key
  SETPOINT_DATABASE_URL=postgres://setpoint@db/setpoint setpoint serve --auth none --migrate --metrics`,
		Args: takes(),
	}
	database := addDatabaseFlag(cmd)
	auth := addAuthFlags(cmd.Flags())
	flags := addServeFlags(cmd.Flags())
	cmd.Flags().BoolVar(&migrate, "migrate", false, "bring the schema up to date before serving")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		config, err := flags.config(c.stderr)
		if err != nil {
			return err
		}
		if err := auth.apply(cmd.Flags(), &config); err != nil {
			return err
		}
		if config.Database.URL, err = database.url(c); err != nil {
			return err
		}
		if err := prepareSchema(cmd.Context(), config.Database.URL, migrate, config.Log); err != nil {
			return err
		}
		return serve(cmd.Context(), config, nil)
	}
	return cmd
}

// prepareSchema migrates, or sees that somebody has. A database that cannot be reached is no reason not to serve: it may
// come.
func prepareSchema(ctx context.Context, url string, migrate bool, log *slog.Logger) error {
	return withMigrator(url, func(m *migrations.Migrator) error {
		if migrate {
			applied, err := m.Up(ctx)
			if err != nil {
				return err
			}
			log.InfoContext(ctx, "schema is up to date", slog.Int("migrations_applied", len(applied)))
			return nil
		}
		err := checkSchema(ctx, m)
		if pg, ok := errors.AsType[*pgconn.PgError](err); ok && strings.HasPrefix(pg.Code, "42") {
			return err // It is there, but the role may not look, or it is no database of Setpoint's.
		}
		if err != nil && !errors.Is(err, errSchemaOld) {
			log.WarnContext(ctx, "the database cannot be reached yet", slog.Any("error", err))
			return nil
		}
		return err
	})
}

// serve runs a server until the context ends. ready is told when it listens.
func serve(ctx context.Context, config server.Config, ready func(*server.Server) error) error {
	s, err := server.Start(ctx, config)
	if err != nil {
		return &reasonError{"FAILED", err.Error()}
	}
	defer s.Stop(ctx)
	logServing(ctx, config, s.GRPCAddr(), s.HTTPAddr())
	if ready != nil {
		if err := ready(s); err != nil {
			return err
		}
	}
	select {
	case <-ctx.Done():
		config.Log.InfoContext(ctx, "stopping")
		return nil
	case err := <-s.Failed():
		return fmt.Errorf("the server stopped: %w", err)
	}
}
