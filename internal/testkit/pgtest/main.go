// Command pgtest runs a command with a PostgreSQL server for tests, and stops the server after it:
//
//	go run ./internal/testkit/pgtest -- go test ./...
//
// The command finds the server's URL in SETPOINT_TEST_DATABASE_URL. Where that is set already, that server is used. Signals
// are passed on to the command, and its exit status is pgtest's.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"github.com/setpointdb/setpoint/internal/testkit"
)

func main() {
	args := os.Args[1:]
	if len(args) > 0 && args[0] == "--" {
		args = args[1:]
	}
	if len(args) == 0 {
		fmt.Fprintln(os.Stderr, "usage: pgtest -- COMMAND [ARGUMENT]...")
		os.Exit(2)
	}
	code, err := run(args)
	if err != nil {
		fmt.Fprintf(os.Stderr, "pgtest: %v\n", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

// run returns the command's exit status, 128 and the signal's number if a signal ended it.
func run(args []string) (int, error) {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)
	b, err := start(signals)
	if err != nil {
		return 1, err
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), testkit.EnvDatabaseURL+"="+b.URL)
	if err := cmd.Start(); err != nil {
		return 1, errors.Join(err, b.Stop())
	}
	err = wait(cmd, signals)
	return exitCode(cmd), errors.Join(err, b.Stop())
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
