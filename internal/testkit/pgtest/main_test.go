package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"github.com/setpointdb/setpoint/internal/testkit"
)

// mainEnv makes the test binary the command itself.
const mainEnv = "SETPOINT_PGTEST_TEST_MAIN"

// lookEnv makes the test binary, as a command below pgtest, look at the migrated database.
const lookEnv = "SETPOINT_PGTEST_TEST_LOOK"

func TestMain(m *testing.M) {
	if os.Getenv(envMigrated) != "" && os.Getenv(lookEnv) != "" {
		os.Exit(look())
	}
	if os.Getenv(mainEnv) != "" {
		main()
	}
	goleak.VerifyTestMain(m)
}

// command is pgtest with a server of its own.
func command(t *testing.T, args ...string) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], args...)
	cmd.Env = append(os.Environ(), mainEnv+"=1", testkit.EnvDatabaseURL+"=", envMigrated+"=")
	stderr := new(bytes.Buffer)
	cmd.Stderr = stderr
	return cmd, stderr
}

func ping(ctx context.Context, url string) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	return errors.Join(conn.Ping(ctx), conn.Close(ctx))
}

func wantExit(t *testing.T, err error, want int, stderr *bytes.Buffer) {
	t.Helper()
	var exit *exec.ExitError
	switch {
	case want == 0 && err == nil:
	case errors.As(err, &exit) && exit.ExitCode() == want:
	default:
		t.Errorf("got %v, want status %d\n%s", err, want, stderr)
	}
}

// The command's input is a pipe that the test holds, so that the server can be looked at while the command runs.
func TestServerLivesAsLongAsTheCommand(t *testing.T) {
	t.Parallel()
	cmd, stderr := command(t, "--", "sh", "-c", `echo "$SETPOINT_TEST_DATABASE_URL"; read line; exit 7`)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatalf("%v\n%s", errors.Join(err, cmd.Wait()), stderr)
	}
	url := strings.TrimSpace(line)
	if err := ping(t.Context(), url); err != nil {
		t.Errorf("while the command runs: %v", err)
	}
	if err := stdin.Close(); err != nil {
		t.Fatal(err)
	}
	wantExit(t, cmd.Wait(), 7, stderr)
	if err := ping(t.Context(), url); err == nil {
		t.Error("the server outlived the command")
	}
}

func TestSignalsArePassedOn(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		script string
		want   int
	}{
		"handled": {`trap 'exit 5' TERM; echo ready; while :; do read line; done`, 5},
		"deadly":  {`echo ready; read line`, 128 + int(syscall.SIGTERM)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cmd, stderr := command(t, "sh", "-c", test.script)
			if _, err := cmd.StdinPipe(); err != nil {
				t.Fatal(err)
			}
			stdout, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			if _, err := bufio.NewReader(stdout).ReadString('\n'); err != nil {
				t.Fatalf("%v\n%s", errors.Join(err, cmd.Wait()), stderr)
			}
			if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			wantExit(t, cmd.Wait(), test.want, stderr)
		})
	}
}

func TestRunsNothing(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		args    []string
		env     string
		want    int
		message string
	}{
		"no command":      {nil, "", 2, "usage: pgtest"},
		"only dashes":     {[]string{"--"}, "", 2, "usage: pgtest"},
		"unknown command": {[]string{"--", "/no/such/command"}, testkit.EnvDatabaseURL + "=postgres://x", 1, "no such file"},
		"no server":       {[]string{"--", "true"}, testkit.EnvBackend + "=wrong", 1, `"wrong"`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cmd, stderr := command(t, test.args...)
			cmd.Env = append(cmd.Env, test.env)
			wantExit(t, cmd.Run(), test.want, stderr)
			if !strings.Contains(stderr.String(), test.message) {
				t.Errorf("got %q, want it to contain %q", stderr, test.message)
			}
		})
	}
}

func TestMigrate(t *testing.T) {
	t.Parallel()
	cmd, stderr := command(t, "-migrate", "--", os.Args[0])
	cmd.Env = append(cmd.Env, lookEnv+"=1")
	wantExit(t, cmd.Run(), 0, stderr)
}

// look exits with 0 if there is a migrated database.
func look() int {
	conn, err := pgx.Connect(context.Background(), os.Getenv(envMigrated))
	if err == nil {
		_, err = conn.Exec(context.Background(), "select from setpoint.sessions")
		err = errors.Join(err, conn.Close(context.Background()))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func TestGivenServerIsUsed(t *testing.T) {
	t.Parallel()
	cmd, stderr := command(t, "sh", "-c", `test "$SETPOINT_TEST_DATABASE_URL" = postgres://given`)
	cmd.Env = append(cmd.Env, testkit.EnvDatabaseURL+"=postgres://given")
	wantExit(t, cmd.Run(), 0, stderr)
}
