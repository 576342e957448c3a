// Package integration tests Setpoint from outside: the real binary, built once, as processes of their own on a real
// PostgreSQL, spoken to over gRPC and on the command line. Several servers share a database where that matters, and
// servers, databases and the network between them are killed and cut.
//
// GOFLAGS=-race go test -race ./integration/ has the binary watch for races too.
package integration

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/setpointdb/setpoint/internal/testkit"
)

func TestMain(m *testing.M) {
	if task := os.Getenv(optimizerTask); task != "" {
		os.Exit(optimizerMain(task)) // One of the processes that the tests stop, kill and cut off.
	}
	testkit.Main(m)
}

// binary is the path of setpoint, which the first test to ask builds. Every account may run it.
func binary(t testing.TB) string {
	t.Helper()
	path, err := build()
	if err != nil {
		t.Fatalf("build setpoint: %v", err)
	}
	return path
}

var build = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "setpoint-integration-")
	if err != nil {
		return "", err
	}
	if err := errors.Join(os.Chmod(dir, 0o755), removeAfterwards(dir)); err != nil {
		return "", errors.Join(err, os.RemoveAll(dir))
	}
	path := filepath.Join(dir, "setpoint")
	if output, err := exec.Command("go", "build", "-o", path, "../cmd/setpoint").CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, output)
	}
	return path, nil
})

// removeAfterwards leaves behind a shell that removes the folder when this process ends, in whatever way: its input ends
// then. Nothing in this process could: TestMain ends with os.Exit, and a test that runs for too long with a panic.
func removeAfterwards(dir string) error {
	input, held, err := os.Pipe()
	if err != nil {
		return err
	}
	cmd := exec.Command("sh", "-c", `trap "" HUP INT QUIT TERM; cat; rm -rf "$0"`, dir)
	cmd.Stdin = input
	cmd.Dir = os.TempDir()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	keepOpen = held
	return input.Close()
}

// keepOpen is the end of the pipe whose closing tells the shell. The collector would close it.
var keepOpen *os.File
