// Command pgtest runs a command with a PostgreSQL server for tests, and stops the server after it:
//
//	go run ./internal/testkit/pgtest -- go test ./...
//
// The command finds the server's URL in SETPOINT_TEST_DATABASE_URL. Where that is set already, that server is used. With
// -migrate it also finds the URL of a database with all migrations applied, in SETPOINT_VET_DATABASE_URL. Signals are
// passed on to the command, and its exit status is pgtest's.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"github.com/setpointdb/setpoint/internal/testkit"
)

// envMigrated names the environment variable that holds the URL of a migrated database.
const envMigrated = "SETPOINT_VET_DATABASE_URL"

func main() {
	flags := flag.NewFlagSet("pgtest", flag.ExitOnError)
	flags.Usage = func() {
		fmt.Fprintln(os.Stderr, "usage: pgtest [-migrate] -- COMMAND [ARGUMENT]...")
	}
	migrate := flags.Bool("migrate", false, "also give the URL of a migrated database, in "+envMigrated)
	_ = flags.Parse(os.Args[1:]) // it exits on errors
	if flags.NArg() == 0 {
		flags.Usage()
		os.Exit(2)
	}
	code, err := run(flags.Args(), *migrate)
	if err != nil {
		fmt.Fprintf(os.Stderr, "pgtest: %v\n", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

// run returns the command's exit status, 128 and the signal's number if a signal ended it.
func run(args []string, migrate bool) (int, error) {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)
	b, err := start(signals)
	if err != nil {
		return 1, err
	}
	code, err := runOn(b, args, migrate, signals)
	return code, errors.Join(err, b.Stop())
}

func runOn(b *testkit.Backend, args []string, migrate bool, signals <-chan os.Signal) (int, error) {
	cmd := exec.Command(args[0], args[1:]...) //nolint:noctx // signals end it
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), testkit.EnvDatabaseURL+"="+b.URL)
	drop := func() error { return nil }
	if migrate {
		url, dropMigrated, err := b.NewDatabase(context.Background())
		if err != nil {
			return 1, err
		}
		drop = dropMigrated
		cmd.Env = append(cmd.Env, envMigrated+"="+url)
	}
	if err := cmd.Start(); err != nil {
		return 1, errors.Join(err, drop())
	}
	err := wait(cmd, signals)
	return exitCode(cmd), errors.Join(err, drop())
}

// start gives up at the first signal.
func start(signals <-chan os.Signal) (*testkit.Backend, error) {
	ctx, cancel := context.WithCancelCause(context.Background())
	done := make(chan struct{})
	defer cancel(nil)
	defer close(done)
	go func() {
		select {
		case s := <-signals:
			cancel(fmt.Errorf("%v", s))
		case <-done:
		}
	}()
	b, err := testkit.StartBackend(ctx)
	if cause := context.Cause(ctx); cause != nil {
		if b != nil {
			err = b.Stop()
		}
		return nil, errors.Join(cause, err)
	}
	return b, err
}

// wait passes signals on while the command runs.
func wait(cmd *exec.Cmd, signals <-chan os.Signal) error {
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for {
		select {
		case s := <-signals:
			_ = cmd.Process.Signal(s) // a command that has just ended needs none
		case err := <-ended:
			var exit *exec.ExitError
			if errors.As(err, &exit) {
				return nil // told by the exit status
			}
			return err
		}
	}
}

func exitCode(cmd *exec.Cmd) int {
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal())
	}
	return cmd.ProcessState.ExitCode()
}
