package testkit

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/setpointdb/setpoint/internal/localpg"
)

const (
	// EnvDatabaseURL names the environment variable that holds the URL of a running server.
	EnvDatabaseURL = "SETPOINT_TEST_DATABASE_URL"
	// EnvImage names the environment variable that holds the image to run.
	EnvImage = "SETPOINT_TEST_POSTGRES_IMAGE"
	// EnvBackend names the environment variable that insists on "docker" or "local".
	EnvBackend = "SETPOINT_TEST_BACKEND"
	// DefaultImage is run where EnvImage is not set.
	DefaultImage = "postgres:17"
)

const (
	// startPatience bounds the start of a server, the download of an image or of binaries included.
	startPatience = 10 * time.Minute
	// maxConnections serves many packages at once, each with pools of its own.
	maxConnections = "400"
)

// Backend is a server for tests to make databases on.
type Backend struct {
	// URL is that of a user who may create databases.
	URL string
	// Name tells a person what it is.
	Name string

	stop func() error
}

// Stop ends what StartBackend started. A server that was running before keeps running.
func (b *Backend) Stop() error { return b.stop() }

// NewDatabase returns the URL of a new database with all migrations applied, and a function that drops it.
func (b *Backend) NewDatabase(ctx context.Context) (string, func() error, error) {
	c, err := newCluster(ctx, b)
	if err != nil {
		return "", nil, err
	}
	template, err := c.template(ctx)
	name := databaseName("")
	if err == nil {
		err = c.create(ctx, name, template)
	}
	if err != nil {
		c.admin.Close()
		return "", nil, err
	}
	drop := func() error {
		defer c.admin.Close()
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		return c.drop(ctx, name)
	}
	return c.url(name), drop, nil
}

// StartBackend finds a server, or starts one, in the order of the package's documentation, and says on standard error
// what it took. The context bounds the start. The caller stops it.
func StartBackend(ctx context.Context) (*Backend, error) {
	if url := os.Getenv(EnvDatabaseURL); url != "" {
		return &Backend{URL: url, Name: EnvDatabaseURL, stop: func() error { return nil }}, nil
	}
	if err := sweep(ctx); err != nil {
		return nil, err
	}
	var b *Backend
	var err error
	switch kind := os.Getenv(EnvBackend); kind {
	case "docker":
		b, err = startContainer(ctx)
	case "local":
		b, err = startLocal(ctx)
	case "":
		b, err = startContainer(ctx)
		if errors.Is(err, errNoEngine) {
			b, err = startLocal(ctx)
		} else if err != nil {
			say("Docker answers, but gives no PostgreSQL (%v): using local binaries", err)
			b, err = startLocal(ctx)
		}
	default:
		return nil, fmt.Errorf("%s is %q, and may be docker or local", EnvBackend, kind)
	}
	if err != nil {
		return nil, err
	}
	say("PostgreSQL from %s", b.Name)
	return b, nil
}

func startLocal(ctx context.Context) (*Backend, error) {
	var s *localpg.Server
	dir, err := own(localPrefix, func(dir string) error {
		var err error
		s, err = localpg.Start(ctx, localpg.Config{DataDir: dir,
			ExtraSettings: map[string]string{"max_connections": maxConnections}})
		return err
	})
	if err != nil {
		return nil, err
	}
	return &Backend{URL: s.URL(), Name: "local binaries", stop: func() error {
		return errors.Join(s.Stop(context.Background()), localpg.Remove(context.Background(), dir))
	}}, nil
}

// What a process owns beyond its own life lies in a folder that it locks: the next process recognises by the free lock
// that the owner is gone, and removes what it left.
const (
	localPrefix     = "local-"
	containerPrefix = "container-"
)

// ownedRoot is this user's folder. PostgreSQL's own account passes through when root runs the tests.
func ownedRoot() (string, error) {
	root := filepath.Join(os.TempDir(), "setpoint-test-"+strconv.Itoa(os.Geteuid()))
	mode := fs.FileMode(0o700)
	if os.Geteuid() == 0 {
		mode = 0o755
	}
	if err := os.MkdirAll(root, mode); err != nil {
		return "", fmt.Errorf("make a place for test servers: %w", err)
	}
	// The name is no secret, and everybody may make folders in the parent.
	info, err := os.Lstat(root)
	if err != nil {
		return "", fmt.Errorf("make a place for test servers: %w", err)
	}
	if owner, ok := info.Sys().(*syscall.Stat_t); !ok || !info.IsDir() || int(owner.Uid) != os.Geteuid() {
		return "", fmt.Errorf("%s, where test servers would go, belongs to somebody else", root)
	}
	return root, nil
}

// own makes a folder and lets a function lock it. Between the two, another process's sweep may take the folder for one
// that was left; then there is another.
func own(prefix string, lock func(dir string) error) (string, error) {
	for {
		dir, err := newOwned(prefix)
		if err != nil {
			return "", err
		}
		err = lock(dir)
		if errors.Is(err, localpg.ErrInUse) {
			continue
		}
		if err != nil {
			return "", errors.Join(err, localpg.Remove(context.Background(), dir))
		}
		return dir, nil
	}
}

func newOwned(prefix string) (string, error) {
	root, err := ownedRoot()
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp(root, prefix)
	if err != nil {
		return "", fmt.Errorf("make a place for a test server: %w", err)
	}
	if os.Geteuid() == 0 {
		if err := os.Chmod(dir, 0o755); err != nil {
			return "", fmt.Errorf("make a place for a test server: %w", err)
		}
	}
	return dir, nil
}

// sweep removes what killed processes left.
func sweep(ctx context.Context) error {
	root, err := ownedRoot()
	if err != nil {
		return err
	}
	entries, err := os.ReadDir(root)
	if err != nil {
		return fmt.Errorf("look for what earlier tests left: %w", err)
	}
	for _, entry := range entries {
		dir := filepath.Join(root, entry.Name())
		switch {
		case strings.HasPrefix(entry.Name(), containerPrefix):
			err = sweepContainer(ctx, dir)
		case strings.HasPrefix(entry.Name(), localPrefix):
			err = localpg.Remove(ctx, dir)
		}
		if err != nil && !errors.Is(err, localpg.ErrInUse) {
			say("left behind by earlier tests: %s: %v", dir, err)
		}
	}
	return nil
}

// sweepContainer removes a container whose owner is gone, then the folder that told of it.
func sweepContainer(ctx context.Context, dir string) error {
	unlock, err := localpg.Lock(dir)
	if err != nil {
		return err
	}
	name, err := os.ReadFile(filepath.Join(dir, "name"))
	if err == nil {
		err = removeContainer(ctx, string(name))
	} else if errors.Is(err, fs.ErrNotExist) {
		err = nil // the owner was killed before it had a container
	}
	if err := errors.Join(err, unlock()); err != nil {
		return err
	}
	return localpg.Remove(ctx, dir)
}

// say writes a line for the person who runs the tests, before or after any test that it could belong to.
func say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "testkit: "+format+"\n", args...)
}
