package localpg

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestServerKeepsData(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(newDir(t), "made", "by", "start")
	s := start(t, Config{DataDir: dir, ExtraSettings: map[string]string{"max_connections": "37"}})
	mustExec(t, s.URL(), "create table kept (v text); insert into kept values ('is here')")
	for name, want := range map[string]string{
		"fsync": "on", "full_page_writes": "on", "synchronous_commit": "on", "data_checksums": "on",
		"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "server_encoding": "UTF8", "max_connections": "37",
	} {
		wantQuery(t, s.URL(), "show "+name, want)
	}
	stop(t, s)
	stop(t, s)
	if err := exec1(t.Context(), s.URL(), "select 1"); err == nil {
		t.Error("the server answers after Stop")
	}
	again := start(t, Config{DataDir: dir})
	wantQuery(t, again.URL(), "select v from kept", "is here")
}

func TestServerAsksForPassword(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	s := start(t, Config{DataDir: dir})
	u, err := url.Parse(s.URL())
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword(User, "guess")
	if err := exec1(t.Context(), u.String(), "select 1"); err == nil {
		t.Error("a wrong password is accepted")
	}
	info, err := os.Stat(filepath.Join(dir, "password"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(fs.FileMode(0o600), info.Mode()); diff != "" {
		t.Errorf("mode of the password (-want +got):\n%s", diff)
	}
	stop(t, s)
	if err := os.Remove(filepath.Join(dir, "password")); err != nil {
		t.Fatal(err)
	}
	_, err = Start(t.Context(), Config{DataDir: dir})
	wantError(t, err, nil, "password is missing")
}

func TestServerComesBack(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	s := start(t, Config{DataDir: dir})
	mustExec(t, s.URL(), "create table kept (v text)")
	for i := range 3 {
		mustExec(t, s.URL(), fmt.Sprintf("insert into kept values ('%d')", i))
		killed := postmaster(t, dir)
		if err := syscall.Kill(killed, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, func() error {
			got, err := query(t.Context(), s.URL(), "select string_agg(v, ',' order by v) from kept")
			if want := "0,1,2"[:2*i+1]; err == nil && got != want {
				t.Fatalf("after kill %d: got %q, want %q", i, got, want)
			}
			if err == nil && postmaster(t, dir) == killed {
				return errors.New("the killed server still answers")
			}
			return err
		})
	}
}

func TestStopEndsRestarts(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	s := start(t, Config{DataDir: dir})
	pid := postmaster(t, dir)
	// Without its data the server cannot come back.
	if err := os.Rename(filepath.Join(dir, "postgres"), filepath.Join(dir, "away")); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		text, err := os.ReadFile(filepath.Join(dir, "postgres.log"))
		if err == nil && !strings.Contains(string(text), "No such file or directory") {
			err = errors.New("no failed restart yet")
		}
		return err
	})
	stop(t, s)
}

func TestStopInAHurry(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	s := start(t, Config{DataDir: dir})
	mustExec(t, s.URL(), "create table kept (v text); insert into kept values ('is here')")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	again := start(t, Config{DataDir: dir})
	wantQuery(t, again.URL(), "select v from kept", "is here")
}

func TestStartAfterKilledProcess(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), childEnv+"="+dir)
	child.Stderr = t.Output()
	output, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	childURL, err := bufio.NewReader(output).ReadString('\n')
	if err != nil {
		t.Fatal(errors.Join(err, child.Wait()))
	}
	childURL = strings.TrimSpace(childURL)
	mustExec(t, childURL, "create table kept (v text); insert into kept values ('is here')")
	orphan := postmaster(t, dir)
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := child.Wait(); err == nil {
		t.Fatal("the child was not killed")
	}
	s := start(t, Config{DataDir: dir})
	wantQuery(t, s.URL(), "select v from kept", "is here")
	if postmaster(t, dir) == orphan {
		t.Error("the server of the killed process still runs")
	}
}

func TestStartAfterHalfAnInitialization(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	half := filepath.Join(dir, "initdb-half", "data")
	if err := os.MkdirAll(half, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(half, "PG_VERSION"), []byte("15\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	// Wherever this cuts it off, the next start has to cope.
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if s, err := Start(ctx, Config{DataDir: dir}); err == nil {
		stop(t, s)
	}
	s := start(t, Config{DataDir: dir})
	wantQuery(t, s.URL(), "select 'works'", "works")
	left, err := filepath.Glob(filepath.Join(dir, "initdb-*"))
	if err != nil {
		t.Fatal(err)
	}
	if len(left) > 0 {
		t.Errorf("unfinished data was left: %v", left)
	}
}

func TestStartRefusesDirectoryInUse(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	s := start(t, Config{DataDir: dir})
	_, err := Start(t.Context(), Config{DataDir: dir})
	wantError(t, err, ErrInUse, fmt.Sprintf("process %d holds %s", os.Getpid(), dir))
	wantError(t, Remove(t.Context(), dir), ErrInUse, dir)
	wantQuery(t, s.URL(), "select 'still here'", "still here")
	stop(t, s)
	if err := Remove(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after Remove: %v", err)
	}
	if err := Remove(t.Context(), dir); err != nil {
		t.Errorf("Remove of nothing: %v", err)
	}
}

// The process of a postmaster.pid may be gone and its number in use again.
func TestStartIgnoresReusedProcessNumber(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	s := start(t, Config{DataDir: dir})
	pidFile := filepath.Join(dir, "postgres", "postmaster.pid")
	text, err := os.ReadFile(pidFile)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "\n")
	stop(t, s)
	if err := os.WriteFile(pidFile, []byte(strconv.Itoa(os.Getpid())+"\n"+rest), 0o600); err != nil {
		t.Fatal(err)
	}
	start(t, Config{DataDir: dir})
}

func TestPort(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	dir := newDir(t)
	_, err = Start(t.Context(), Config{DataDir: dir, Port: port})
	wantError(t, err, nil, fmt.Sprintf("port %d of 127.0.0.1 is taken", port))
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	s := start(t, Config{DataDir: dir, Port: port})
	if !strings.Contains(s.URL(), fmt.Sprintf("@127.0.0.1:%d/", port)) {
		t.Errorf("got %s, want port %d", s.URL(), port)
	}
}

func TestStartRefuses(t *testing.T) {
	t.Parallel()
	set := func(name string) Config {
		return Config{DataDir: newDir(t), ExtraSettings: map[string]string{name: "off"}}
	}
	made := func(version string) string {
		dir := newDir(t)
		if err := os.Mkdir(filepath.Join(dir, "postgres"), 0o700); err != nil {
			t.Fatal(err)
		}
		if version != "" {
			if err := os.WriteFile(filepath.Join(dir, "postgres", "PG_VERSION"), []byte(version), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if os.Geteuid() == 0 {
			if err := os.Chown(filepath.Join(dir, "postgres"), 65534, 65534); err != nil {
				t.Fatal(err)
			}
		}
		return dir
	}
	found, err := Find(t.Context(), FindOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		config  Config
		is      error
		message string
	}{
		"no directory":      {Config{}, nil, "no data directory"},
		"port":              {Config{DataDir: newDir(t), Port: 65536}, nil, "65535"},
		"fsync":             {set("fsync"), nil, "fsync cannot be changed"},
		"full_page_writes":  {set("full_page_writes"), nil, "full_page_writes cannot be changed"},
		"commit":            {set("synchronous_commit"), nil, "synchronous_commit cannot be changed"},
		"address":           {set("listen_addresses"), nil, "listen_addresses cannot be changed"},
		"configuration":     {set("config_file"), nil, "config_file cannot be changed"},
		"upper case":        {set("FSYNC"), nil, "not the name of a setting"},
		"option injection":  {set("a=b -c fsync"), nil, "not the name of a setting"},
		"unknown setting":   {set("no_such_setting"), nil, `unrecognized configuration parameter "no_such_setting"`},
		"a file, not a dir": {Config{DataDir: filepath.Join(newFile(t), "data")}, nil, "not a directory"},
		"other data":        {Config{DataDir: made("")}, nil, "no PG_VERSION"},
		"unreadable":        {Config{DataDir: made("fifteen")}, nil, "read the version of the data"},
		"other version":     {Config{DataDir: made("13\n"), BinDir: found.Dir}, ErrWrongVersion, "made by PostgreSQL 13"},
		"no binaries":       {Config{DataDir: newDir(t), BinDir: newDir(t)}, ErrNotFound, "no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, err := Start(t.Context(), test.config)
			if err == nil {
				stop(t, s)
			}
			wantError(t, err, test.is, test.message)
		})
	}
}

// TestAsOrdinaryUser runs this package's tests once more without privileges, where root runs them. An ordinary user has
// shown the same by running the others.
func TestAsOrdinaryUser(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		return
	}
	a, err := unprivileged()
	if err != nil {
		t.Fatal(err)
	}
	dir := newDir(t)
	if err := a.give(dir); err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(dir, "test")
	copyFile(t, os.Args[0], binary)
	cmd := exec.CommandContext(t.Context(), binary, "-test.v", "-test.timeout=5m",
		"-test.run=^(TestServerKeepsData|TestServerComesBack|TestStartAfterKilledProcess|TestStartRefusesDirectoryInUse|"+
			"TestDefaultDataDir)$")
	cmd.Env = append(os.Environ(), "HOME="+dir, "TMPDIR="+dir)
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(a.uid), Gid: uint32(a.gid)}}
	output, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("as %s: %v\n%s", a.name, err, output)
	}
	if got := strings.Count(string(output), "--- PASS: "); got != 5 {
		t.Errorf("as %s %d tests passed, want 5:\n%s", a.name, got, output)
	}
}

// TestUnreachable concerns root only: an ordinary user runs PostgreSQL as itself.
func TestUnreachable(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		return
	}
	dir := newDir(t)
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	_, err := Start(t.Context(), Config{DataDir: filepath.Join(dir, "data")})
	wantError(t, err, ErrUnreachable, "--data-dir")
}

func TestDefaultDataDir(t *testing.T) {
	got, err := DefaultDataDir()
	if err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		if want := "/var/lib/setpoint/dev"; got != want {
			t.Errorf("for root: got %s, want %s", got, want)
		}
		return
	}
	t.Setenv("XDG_DATA_HOME", "/xdg")
	if got, err = DefaultDataDir(); err != nil || got != "/xdg/setpoint/dev" {
		t.Errorf("with XDG_DATA_HOME: got %s, %v", got, err)
	}
	t.Setenv("XDG_DATA_HOME", "")
	t.Setenv("HOME", "/home/ada")
	if got, err = DefaultDataDir(); err != nil || got != "/home/ada/.local/share/setpoint/dev" {
		t.Errorf("with HOME: got %s, %v", got, err)
	}
}

// wantError checks an error's kind, where one is given, and a part of its text.
func wantError(t *testing.T, err, is error, message string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want one with %q", message)
	}
	if is != nil && !errors.Is(err, is) {
		t.Errorf("got %v, want it to be %v", err, is)
	}
	if !strings.Contains(err.Error(), message) {
		t.Errorf("got %q, want it to contain %q", err, message)
	}
}

func newFile(t *testing.T) string {
	t.Helper()
	path := filepath.Join(newDir(t), "file")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, data, 0o755); err != nil {
		t.Fatal(err)
	}
}
