package localpg

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// logLimit is the size in bytes at which a start puts the log aside as postgres.log.1.
const logLimit = 16 << 20

// dataDir is a locked data directory.
type dataDir struct {
	path string
	lock *os.File
}

// openDataDir makes the directory if it is absent, and locks it.
func openDataDir(path string) (*dataDir, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("find the data directory: %w", err)
	}
	mode := fs.FileMode(0o700)
	if os.Geteuid() == 0 {
		mode = 0o755 // the account that PostgreSQL runs as passes through
	}
	for {
		if err := os.MkdirAll(path, mode); err != nil {
			return nil, fmt.Errorf("make the data directory: %w", err)
		}
		// One name for one directory: a server that was left running is recognised by it.
		if path, err = filepath.EvalSymlinks(path); err != nil {
			return nil, fmt.Errorf("find the data directory: %w", err)
		}
		d, err := lockDataDir(path)
		if d != nil || err != nil {
			return d, err
		}
	}
}

// lockDataDir returns nil when the lock turned out to be one that Remove took away meanwhile.
func lockDataDir(path string) (*dataDir, error) {
	f, err := os.OpenFile(filepath.Join(path, "setpoint.lock"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lock the data directory: %w", err)
	}
	d := &dataDir{path: path, lock: f}
	locked, err := tryLock(f)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock the data directory: %w", err), f.Close())
	}
	if !locked {
		holder := bytes.TrimSpace(readSome(f))
		return nil, errors.Join(fmt.Errorf("%w: process %s holds %s", ErrInUse, holder, path), f.Close())
	}
	mine, err := f.Stat()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock the data directory: %w", err), f.Close())
	}
	if there, err := os.Stat(f.Name()); err != nil || !os.SameFile(mine, there) {
		return nil, f.Close()
	}
	if err := d.writeHolder(strconv.Itoa(os.Getpid()) + "\n"); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return d, nil
}

// unlock frees the directory. The lock's file stays: to remove it would let two processes lock two files of one name. Remove may, since whoever waits notices.
func (d *dataDir) unlock() error {
	return errors.Join(d.writeHolder(""), d.lock.Close())
}

func (d *dataDir) writeHolder(text string) error {
	if err := d.lock.Truncate(0); err != nil {
		return fmt.Errorf("write the lock's holder: %w", err)
	}
	if _, err := d.lock.WriteAt([]byte(text), 0); err != nil {
		return fmt.Errorf("write the lock's holder: %w", err)
	}
	return nil
}

// postgres is PGDATA. It exists only once it is complete.
func (d *dataDir) postgres() string { return filepath.Join(d.path, "postgres") }

func (d *dataDir) pidFile() string { return filepath.Join(d.postgres(), "postmaster.pid") }

func (d *dataDir) hasPidFile() bool {
	_, err := os.Stat(d.pidFile())
	return err == nil
}

// major is the major version that made the data, 0 where there is none yet.
func (d *dataDir) major() (int, error) {
	text, err := os.ReadFile(filepath.Join(d.postgres(), "PG_VERSION"))
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(d.postgres()); err == nil {
			return 0, fmt.Errorf("%s is not PostgreSQL's data: it has no PG_VERSION", d.postgres())
		}
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read the version of the data: %w", err)
	}
	major, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return 0, fmt.Errorf("read the version of the data: %w", err)
	}
	return major, nil
}

// reachable makes sure that another account gets to the directory. Only the system knows: modes, lists and mounts decide.
func (d *dataDir) reachable(ctx context.Context, b Binaries, a account) error {
	if !a.other() {
		return nil
	}
	cmd := exec.CommandContext(ctx, b.path("postgres"), "--version")
	runAs(cmd, a, d.path, os.Kill)
	err := cmd.Run()
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w: PostgreSQL runs as %s, not as root, and may not enter %s: pass --data-dir with a place open to it, "+
			"such as /var/lib/setpoint/dev", ErrUnreachable, a.name, d.path)
	}
	if err != nil {
		return fmt.Errorf("try the data directory as %s: %w", a.name, err)
	}
	return nil
}

// readPassword returns the superuser's password; where there is no data yet, it may make one.
func (d *dataDir) readPassword(fresh bool) (string, error) {
	path := filepath.Join(d.path, "password")
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("read the database's password: %w", err)
	}
	if password := strings.TrimSpace(string(text)); password != "" {
		return password, nil
	}
	if !fresh {
		return "", fmt.Errorf("%s is missing, and with it the password of the data beside it: put it back", path)
	}
	password := rand.Text()
	if err := writeSynced(path, password+"\n"); err != nil {
		return "", fmt.Errorf("write the database's password: %w", err)
	}
	return password, nil
}

// initialize makes PGDATA in a directory of its own and moves it into place, so that what is in place is complete.
func (d *dataDir) initialize(ctx context.Context, b Binaries, a account, password string) error {
	const prefix = "initdb-"
	halves, err := filepath.Glob(filepath.Join(d.path, prefix+"*"))
	if err != nil {
		return fmt.Errorf("look for unfinished data: %w", err)
	}
	for _, half := range halves {
		if err := os.RemoveAll(half); err != nil {
			return fmt.Errorf("remove unfinished data: %w", err)
		}
	}
	work, err := os.MkdirTemp(d.path, prefix)
	if err != nil {
		return fmt.Errorf("make the data: %w", err)
	}
	defer os.RemoveAll(work) //nolint:errcheck // the next start removes what is left
	secret := filepath.Join(work, "password")
	if err := writeSynced(secret, password+"\n"); err != nil {
		return fmt.Errorf("make the data: %w", err)
	}
	if err := errors.Join(a.give(work), a.give(secret)); err != nil {
		return err
	}
	data := filepath.Join(work, "data")
	if err := initdb(ctx, b, a, data, secret); err != nil {
		return err
	}
	if err := os.Rename(data, d.postgres()); err != nil {
		return fmt.Errorf("move the data into place: %w", err)
	}
	return syncDir(d.path)
}

func initdb(ctx context.Context, b Binaries, a account, data, secret string) error {
	cmd := exec.CommandContext(ctx, b.path("initdb"), "--pgdata="+data, "--username="+User, "--pwfile="+secret,
		"--auth-local=scram-sha-256", "--auth-host=scram-sha-256", "--encoding=UTF8", "--locale=C", "--data-checksums")
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	runAs(cmd, a, filepath.Dir(data), os.Kill)
	// A process that initdb started may outlive it and hold the pipe.
	cmd.WaitDelay = 5 * time.Second
	p, err := startProcess(cmd)
	if err != nil {
		return fmt.Errorf("run initdb: %w", err)
	}
	<-p.done
	if ctx.Err() != nil {
		return fmt.Errorf("run initdb: %w", ctx.Err())
	}
	if p.err != nil {
		return fmt.Errorf("run initdb: %w\n%s", p.err, bytes.TrimSpace(output.Bytes()))
	}
	return nil
}

// stopLeftover ends a server that still runs on the data although the process that started it is gone.
func (d *dataDir) stopLeftover(ctx context.Context, log *slog.Logger) error {
	text, err := os.ReadFile(d.pidFile())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for a server that was left running: %w", err)
	}
	line, _, _ := strings.Cut(string(text), "\n")
	pid, _ := strconv.Atoi(strings.TrimSpace(line)) // a half-written file names no process
	if pid <= 0 || !isAlive(pid) {
		return nil // PostgreSQL removes a stale file itself
	}
	running, err := d.isServer(ctx, pid)
	if err != nil {
		return err
	}
	if !running {
		// The number belongs to another process by now, as happens soon in containers. PostgreSQL would take that for
		// a running server for ever.
		log.Warn("removing the mark of a PostgreSQL that is gone", "pid", pid)
		if err := os.Remove(d.pidFile()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove a stale mark: %w", err)
		}
		return nil
	}
	log.Warn("stopping a PostgreSQL that was left running", "pid", pid)
	for _, step := range []struct {
		signal os.Signal
		within time.Duration
	}{{interruptSignal, fastStop}, {quitSignal, immediateStop}} {
		if err := sendSignal(pid, step.signal); err != nil {
			return fmt.Errorf("stop the PostgreSQL that was left running as process %d: %w", pid, err)
		}
		gone, err := d.waitGone(ctx, pid, step.within)
		if gone || err != nil {
			return err
		}
	}
	return fmt.Errorf("the PostgreSQL that was left running as process %d does not stop", pid)
}

// waitGone polls, since only a parent is told of a process's end.
func (d *dataDir) waitGone(ctx context.Context, pid int, within time.Duration) (bool, error) {
	for deadline := time.Now().Add(within); time.Now().Before(deadline); {
		running, err := d.isServer(ctx, pid)
		if !running || err != nil {
			return true, err
		}
		if !pause(ctx, 20*time.Millisecond) {
			return false, fmt.Errorf("wait for the PostgreSQL that was left running as process %d: %w", pid, ctx.Err())
		}
	}
	return false, nil
}

// isServer tells whether the process is a PostgreSQL server of this directory. A zombie is not. It returns an error where
// the system does not tell, since a mistake either way does harm.
func (d *dataDir) isServer(ctx context.Context, pid int) (bool, error) {
	command, err := commandLine(ctx, pid)
	if err != nil {
		return false, fmt.Errorf("find out what process %d is, which %s names: %w", pid, d.pidFile(), err)
	}
	if !bytes.Contains(command, []byte("postgres")) {
		return false, nil
	}
	// A server works in its data, under whatever name it was given that. Root in a container may not look there.
	if cwd, err := os.Stat(fmt.Sprintf("/proc/%d/cwd", pid)); err == nil {
		data, err := os.Stat(d.postgres())
		if err != nil {
			return false, fmt.Errorf("look at the data: %w", err)
		}
		return os.SameFile(cwd, data), nil
	}
	switch {
	case bytes.Contains(command, []byte(d.postgres())):
		return isAlive(pid), nil
	case !isAlive(pid):
		return false, nil
	}
	return false, fmt.Errorf("process %d may be a PostgreSQL that was started by hand on %s: stop it", pid, d.postgres())
}

// commandLine is empty for a process that is gone and for a zombie.
func commandLine(ctx context.Context, pid int) ([]byte, error) {
	if _, err := os.Stat("/proc/self/cmdline"); err == nil {
		command, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil && isAlive(pid) {
			return nil, err
		}
		return command, nil
	}
	command, err := exec.CommandContext(ctx, "ps", "-ww", "-o", "command=", "-p", strconv.Itoa(pid)).Output()
	if err != nil && isAlive(pid) {
		return nil, err
	}
	return command, nil
}

// openLog opens PostgreSQL's log to append to, after putting a large one aside.
func (d *dataDir) openLog() (*os.File, error) {
	path := filepath.Join(d.path, "postgres.log")
	if info, err := os.Stat(path); err == nil && info.Size() > logLimit {
		if err := os.Rename(path, path+".1"); err != nil {
			return nil, fmt.Errorf("put PostgreSQL's log aside: %w", err)
		}
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open PostgreSQL's log: %w", err)
	}
	return f, nil
}

// Lock locks a directory, which it makes if it is absent, as Start does, without running anything there. The returned
// function gives it back; the end of the process does too. It returns ErrInUse while another process has it.
func Lock(path string) (func() error, error) {
	d, err := openDataDir(path)
	if err != nil {
		return nil, err
	}
	return d.unlock, nil
}

// Remove deletes a data directory with all data, after stopping a server that was left running on it. It returns
// ErrInUse, and deletes nothing, while a process runs a server there.
func Remove(ctx context.Context, path string) error {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	d, err := openDataDir(path)
	if err != nil {
		return err
	}
	if err := d.stopLeftover(ctx, slog.New(slog.DiscardHandler)); err != nil {
		return errors.Join(err, d.unlock())
	}
	if err := os.RemoveAll(d.path); err != nil {
		return errors.Join(fmt.Errorf("remove the data directory: %w", err), d.unlock())
	}
	return d.unlock()
}

func readSome(f *os.File) []byte {
	buffer := make([]byte, 64)
	n, _ := f.ReadAt(buffer, 0) // an empty answer is as good as none
	return buffer[:n]
}

// writeSynced writes a file that only its owner reads, and that a power cut does not take back.
func writeSynced(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Sync(), f.Close())
}

func syncDir(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open the data directory: %w", err)
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("sync the data directory: %w", err)
	}
	return nil
}
