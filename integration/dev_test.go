package integration

import (
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/testkit"
)

// dev runs `setpoint dev` on a data directory, and returns when it says that it is ready.
func dev(t *testing.T, account *syscall.Credential, dataDir string) *server {
	t.Helper()
	s := listening(t, start(t, account, "dev", "--data-dir", dataDir, "--grpc-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0"))
	s.await(t, s.out, `^Setpoint is ready\.`)
	s.await(t, s.out, "setpoint --addr "+s.grpc+" var set ")
	return s
}

// accounts are those that `setpoint dev` is tried as: the test's own, and, where root runs the tests, an ordinary one.
func accounts(t *testing.T) map[string]*syscall.Credential {
	t.Helper()
	all := map[string]*syscall.Credential{"own": nil}
	if os.Geteuid() == 0 {
		nobody, err := user.Lookup("nobody")
		if err != nil {
			t.Fatal(err)
		}
		uid, uidErr := strconv.ParseUint(nobody.Uid, 10, 32)
		gid, gidErr := strconv.ParseUint(nobody.Gid, 10, 32)
		if uidErr != nil || gidErr != nil {
			t.Fatalf("the account nobody is %v", nobody)
		}
		all["nobody"] = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	}
	return all
}

// dataFolder is a folder of the account's own.
func dataFolder(t *testing.T, account *syscall.Credential) string {
	t.Helper()
	dir := folder(t)
	if account != nil {
		if err := os.Chown(dir, int(account.Uid), int(account.Gid)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// devURL is the database of a running `setpoint dev`, as its data directory tells.
func devURL(t *testing.T, dataDir string) string {
	t.Helper()
	password, err := os.ReadFile(filepath.Join(dataDir, "password"))
	if err != nil {
		t.Fatal(err)
	}
	mark, err := os.ReadFile(filepath.Join(dataDir, "postgres", "postmaster.pid"))
	if err != nil {
		t.Fatal(err)
	}
	const portLine = 3 // of PostgreSQL's file, counted from 0
	return fmt.Sprintf("postgres://setpoint:%s@127.0.0.1:%s/setpoint",
		strings.TrimSpace(string(password)), strings.Split(string(mark), "\n")[portLine])
}

func TestDev(t *testing.T) {
	t.Parallel()
	for name, account := range accounts(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testDev(t, account)
		})
	}
}

func testDev(t *testing.T, account *syscall.Credential) {
	dir := dataFolder(t, account)
	s := dev(t, account, dir)
	c := dial(t, s)
	session, err := c.Sessions.GetSession(t.Context(), &setpointv1.GetSessionRequest{SessionId: "default"})
	if err != nil || session.GetTtl() != nil || session.GetExpiresAt() != nil {
		t.Fatalf("the default session: got %v, %v, want one that never ends", session, err)
	}
	register(t, c, "default", "var_a", typeInteger, client.Integer(0))
	register(t, c, "default", "var_b", typeInteger, client.Integer(0))
	set(t, c, "default", "var_b", client.Integer(42))
	checkDurable(t, devURL(t, dir))

	// Told to stop, it stops its PostgreSQL too; started again, it has the data.
	s.stop(t)
	checkNothingRuns(t, dir)
	s = dev(t, account, dir)
	c = dial(t, s)
	if v := get(t, c, "default", "var_b"); v.GetValue().GetInteger() != 42 || v.GetVersion() != 1 {
		t.Errorf("after a restart: got %v at version %d, want 42 at 1", v.GetValue(), v.GetVersion())
	}

	// Its PostgreSQL is killed under load, and comes back by itself.
	l := startLoad(t.Context(), dial(t, s, stubborn...), "default", 50, 100, 200)
	l.await(t, 50)
	kill(t, postmaster(t, dir))
	l.await(t, 100)
	awaitHealth(t, c, serving)

	// Then it is killed itself.
	l.await(t, 200)
	s.kill(t)
	l.abandon()
	s = dev(t, account, dir)
	l.check(t, checkHistory(t, testkit.Pool(t, devURL(t, dir)), "default"))
	set(t, dial(t, s), "default", "var_b", client.Integer(43))
	s.stop(t)
	checkNothingRuns(t, dir)
}

// checkNothingRuns fails the test if a process names the data directory. What stopped has waited for its children.
func checkNothingRuns(t *testing.T, dataDir string) {
	t.Helper()
	if left := processesOf(t, dataDir); len(left) > 0 {
		t.Errorf("left running:\n%s", strings.Join(left, "\n"))
	}
}

func checkDurable(t *testing.T, url string) {
	t.Helper()
	conn := connect(t, url)
	for _, setting := range []string{"fsync", "full_page_writes", "synchronous_commit"} {
		var is string
		if err := conn.QueryRow(t.Context(), "select current_setting($1)", setting).Scan(&is); err != nil || is != "on" {
			t.Errorf("%s: got %q, %v, want on", setting, is, err)
		}
	}
}

func TestDevHasItsDirectoryAlone(t *testing.T) {
	t.Parallel()
	dir := dataFolder(t, nil)
	s := dev(t, nil, dir)
	second := run(t, command{args: []string{"dev", "--data-dir", dir, "--grpc-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0"}})
	if second.status != 1 || !strings.HasPrefix(second.stderr, "error: FAILED: data directory is in use: process ") {
		t.Errorf("a second dev on the directory: got exit status %d, %q", second.status, second.stderr)
	}
	// The first is none the worse for it.
	register(t, dial(t, s), "default", "var_a", typeInteger, client.Integer(0))
}
