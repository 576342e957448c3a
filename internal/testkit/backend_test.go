package testkit

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// child is a process that holds a backend.
type child struct {
	t      *testing.T
	cmd    *exec.Cmd
	stdin  io.Closer
	stderr *bytes.Buffer
	url    string
}

// startChild starts a process that starts a backend, and returns when the backend runs or the process has failed.
func startChild(t *testing.T, tmp string, env ...string) (*child, error) {
	t.Helper()
	c := &child{t: t, cmd: exec.CommandContext(t.Context(), os.Args[0]), stderr: new(bytes.Buffer)}
	c.cmd.Env = append(os.Environ(), append([]string{childEnv + "=1", "TMPDIR=" + tmp, EnvDatabaseURL + "="}, env...)...)
	c.cmd.Stderr = c.stderr
	stdin, err := c.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.stdin = stdin
	stdout, err := c.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		return c, errors.Join(err, c.cmd.Wait())
	}
	c.url = strings.TrimSpace(line)
	return c, nil
}

// end lets the process stop its backend.
func (c *child) end() {
	c.t.Helper()
	if err := errors.Join(c.stdin.Close(), c.cmd.Wait()); err != nil {
		c.t.Errorf("%v\n%s", err, c.stderr)
	}
}

// newTmp is a folder for temporary files that other accounts reach, unlike t.TempDir's when root runs the tests.
func newTmp(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "testkit-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// owned lists what processes own below a folder for temporary files.
func owned(t *testing.T, tmp string) []string {
	t.Helper()
	entries, err := filepath.Glob(filepath.Join(tmp, "setpoint-test-*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return entries
}

// Each kind of backend that this machine has leaves nothing behind: not after its end, and not after a process that was
// killed, once the next has started. A machine needs to have one of them only.
func TestBackends(t *testing.T) {
	t.Parallel()
	found := make(chan string, 2)
	t.Cleanup(func() {
		if len(found) == 0 {
			t.Error("this machine has no backend")
		}
	})
	for _, kind := range []string{"docker", "local"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			testBackend(t, kind, found)
		})
	}
}

func testBackend(t *testing.T, kind string, found chan<- string) {
	tmp := newTmp(t)
	killed, err := startChild(t, tmp, EnvBackend+"="+kind)
	if err != nil {
		t.Logf("this machine has no backend %s: %s", kind, killed.stderr)
		return
	}
	found <- kind
	if got, err := query(t.Context(), killed.url, "select 'works'"); err != nil || got != "works" {
		t.Errorf("got %q, %v", got, err)
	}
	if err := killed.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = killed.cmd.Wait() // killed
	if got := owned(t, tmp); len(got) != 1 {
		t.Errorf("after a kill: got %v, want the mark of what was left", got)
	}
	next, err := startChild(t, tmp, EnvBackend+"="+kind)
	if err != nil {
		t.Fatalf("%v\n%s", err, next.stderr)
	}
	if got := owned(t, tmp); len(got) != 1 {
		t.Errorf("after the next start: got %v, want its own mark alone", got)
	}
	if _, err := query(t.Context(), killed.url, "select ''"); err == nil {
		t.Error("the killed process's backend still answers")
	}
	next.end()
	if got := owned(t, tmp); len(got) != 0 {
		t.Errorf("after the end: got %v, want nothing", got)
	}
	if _, err := query(t.Context(), next.url, "select ''"); err == nil {
		t.Error("the backend still answers after its end")
	}
}

func TestBackendIsTheURL(t *testing.T) {
	t.Parallel()
	url := NewEmptyDatabase(t)
	c, err := startChild(t, newTmp(t), EnvDatabaseURL+"="+url)
	if err != nil || c.url != url {
		t.Fatalf("got %q, %v, want %q\n%s", c.url, err, url, c.stderr)
	}
	c.end()
	if got, err := query(t.Context(), url, "select 'still here'"); err != nil || got != "still here" {
		t.Errorf("after Stop: got %q, %v", got, err)
	}
}

func TestBackendRefuses(t *testing.T) {
	t.Parallel()
	nowhere := newTmp(t)
	for name, test := range map[string]struct{ env, message string }{
		"unknown":     {EnvBackend + "=podman", `SETPOINT_TEST_BACKEND is "podman", and may be docker or local`},
		"no binaries": {EnvBackend + "=local SETPOINT_POSTGRES_BIN=" + nowhere, "no PostgreSQL found in " + nowhere},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tmp := newTmp(t)
			c, err := startChild(t, tmp, strings.Fields(test.env)...)
			if err == nil {
				c.end()
				t.Fatal("a backend was started")
			}
			if !strings.Contains(c.stderr.String(), test.message) {
				t.Errorf("got %q, want it to contain %q", c.stderr, test.message)
			}
			if got := owned(t, tmp); len(got) != 0 {
				t.Errorf("left behind: %v", got)
			}
		})
	}
}

// Where an engine answers without having the image, local binaries do. Without an engine this shows the silent way.
func TestBackendFallsBack(t *testing.T) {
	t.Parallel()
	c, err := startChild(t, newTmp(t), EnvBackend+"=", EnvImage+"=127.0.0.1:1/absent:1")
	if err != nil {
		if !strings.Contains(c.stderr.String(), "no PostgreSQL found") {
			t.Fatalf("%v\n%s", err, c.stderr)
		}
		return
	}
	c.end()
	if got := c.stderr.String(); !strings.HasSuffix(got, "testkit: PostgreSQL from local binaries\n") {
		t.Errorf("got %q, want local binaries", got)
	}
}

func TestNewClusterRefuses(t *testing.T) {
	t.Parallel()
	for _, url := range []string{"host=/tmp dbname=x", "mysql://127.0.0.1/x", "postgres://127.0.0.1:1/x?connect_timeout=1", "%"} {
		if _, err := newCluster(t.Context(), &Backend{URL: url}); err == nil {
			t.Errorf("%s is accepted", url)
		}
	}
}
