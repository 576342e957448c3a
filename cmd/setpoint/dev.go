package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/authenticate"
	"github.com/setpointdb/setpoint/internal/localpg"
	"github.com/setpointdb/setpoint/internal/server"
	"github.com/setpointdb/setpoint/migrations"
)

const devLong = `Runs a whole Setpoint on this machine: a PostgreSQL of its own on a free port,
migrated, and a server without authentication on it, with a session "default"
that never ends. Stopping it (Ctrl-C, SIGTERM) stops both; starting it again goes
on with the same data, also after either was killed. Commits are as durable as
anywhere.

PostgreSQL's programs are looked for in --postgres-bin, in PATH, and where systems
install them; if there are none they are downloaded once.`

func newDevCommand(c *cli) *cobra.Command {
	var dataDir, bin string
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "Run a server with a PostgreSQL of its own",
		Long:  devLong,
		Example: `  setpoint dev
  setpoint dev --data-dir ./setpoint-data --grpc-addr 127.0.0.1:0`,
		Args: takes(),
	}
	cmd.Flags().StringVar(&dataDir, "data-dir", "", "`folder` to keep the data in (default one of this user's)")
	cmd.Flags().StringVar(&bin, "postgres-bin", "", "`folder` with PostgreSQL's programs")
	flags := addServeFlags(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		config, err := flags.config(c.stderr)
		if err != nil {
			return err
		}
		config.Authentication.Modes = []authenticate.Mode{authenticate.None}
		if err := checkExposure(config, false); err != nil {
			return err
		}
		if dataDir == "" {
			if dataDir, err = localpg.DefaultDataDir(); err != nil {
				return err
			}
		}
		return c.dev(cmd.Context(), config, localpg.Config{DataDir: dataDir, BinDir: bin, Logger: config.Log})
	}
	return cmd
}

// dev runs PostgreSQL and a server on it until the context ends.
func (c *cli) dev(ctx context.Context, config server.Config, postgres localpg.Config) error {
	pg, err := localpg.Start(ctx, postgres)
	if err != nil {
		return err
	}
	config.Database.URL = pg.URL()
	err = c.devOn(ctx, config, postgres.DataDir)
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	return errors.Join(err, pg.Stop(stop))
}

func (c *cli) devOn(ctx context.Context, config server.Config, dataDir string) error {
	if err := migrations.Up(ctx, config.Database.URL); err != nil {
		return err
	}
	return serve(ctx, config, func(s *server.Server) error {
		if err := createDefaultSession(ctx, s.GRPCAddr()); err != nil {
			return err
		}
		config.Log.InfoContext(ctx, "ready", slog.String("data", dataDir))
		_, err := fmt.Fprintf(c.stdout, `Setpoint is ready. In another terminal:

  setpoint --addr %[1]s var register temperature float 0.7 --min 0 --max 2
  setpoint --addr %[1]s var set temperature 0.9

Ctrl-C stops it; the data stays in %[2]s.
`, s.GRPCAddr(), dataDir)
		return err
	})
}

// createDefaultSession makes the session that commands use where no other is named; it never ends.
func createDefaultSession(ctx context.Context, addr string) error {
	api, err := client.Dial(addr)
	if err != nil {
		return err
	}
	_, err = api.Sessions.CreateSession(ctx, &setpointv1.CreateSessionRequest{
		SessionId: "default", Ttl: durationpb.New(0),
	})
	if errors.Is(err, client.ErrSessionExists) {
		err = nil
	}
	return errors.Join(err, api.Close())
}
