package localpg

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	embeddedpostgres "github.com/fergusstrange/embedded-postgres"
)

// defaultMajor is downloaded where no existing data asks for another.
const defaultMajor = 17

var downloads = map[int]embeddedpostgres.PostgresVersion{
	14: embeddedpostgres.V14,
	15: embeddedpostgres.V15,
	16: embeddedpostgres.V16,
	17: embeddedpostgres.V17,
	18: embeddedpostgres.V18,
}

// cacheDir is where downloads are kept. Root's own cache is closed to the account that runs PostgreSQL.
func cacheDir(given string) (string, error) {
	if given != "" {
		return filepath.Abs(given)
	}
	if os.Geteuid() == 0 {
		return "/var/cache/setpoint", nil
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find a place for downloads: %w", err)
	}
	return filepath.Join(dir, "setpoint"), nil
}

// downloaded is where the binaries of a major version are, once they were downloaded.
func downloaded(cache string, major int) string {
	if major == 0 {
		major = defaultMajor
	}
	return filepath.Join(cache, fmt.Sprintf("postgres-%d", major), "bin")
}

// fetch downloads the binaries and unpacks them into the cache. Processes that want the same wait for one another.
func fetch(ctx context.Context, options FindOptions, cache string, a account) (Binaries, error) {
	if options.NoDownload {
		return Binaries{}, errors.New("nothing was downloaded")
	}
	major := options.Major
	if major == 0 {
		major = defaultMajor
	}
	version, known := downloads[major]
	if !known {
		return Binaries{}, fmt.Errorf("there is no download of PostgreSQL %d", major)
	}
	config := embeddedpostgres.DefaultConfig().Version(version)
	if url := orEnv(options.RepositoryURL, EnvRepository); url != "" {
		config = config.BinaryRepositoryURL(url)
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return Binaries{}, fmt.Errorf("make a place for downloads: %w", err)
	}
	lock, err := lockCache(ctx, cache)
	if err != nil {
		return Binaries{}, err
	}
	bin := downloaded(cache, major)
	if b, err := inspect(ctx, bin, a); err == nil {
		return b, lock.Close() // another process was faster
	}
	// The library takes no context. A download that nobody waits for any more goes on, and keeps the lock until it ends.
	done := make(chan error, 1)
	go func() { done <- errors.Join(unpack(config, cache, filepath.Dir(bin)), lock.Close()) }()
	select {
	case err = <-done:
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		return Binaries{}, fmt.Errorf("download PostgreSQL %s: %w", version, err)
	}
	return inspect(ctx, bin, a)
}

// unpack downloads into a scratch directory and moves what it gets to target in one step.
func unpack(config embeddedpostgres.Config, cache, target string) error {
	const prefix = "download-"
	stale, err := filepath.Glob(filepath.Join(cache, prefix+"*"))
	if err != nil {
		return err
	}
	for _, dir := range append(stale, target) {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	scratch, err := os.MkdirTemp(cache, prefix)
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch) //nolint:errcheck // the next download removes what is left
	// The library has no call that only fetches: its Start downloads, unpacks, prepares data and runs a server. A data
	// directory below a plain file ends it after the second step, before anything runs, so this works as root too.
	// Whether it got that far is told by the files.
	file := filepath.Join(scratch, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		return err
	}
	tree := filepath.Join(scratch, "tree")
	database := embeddedpostgres.NewDatabase(config.Port(0).Logger(io.Discard).CachePath(filepath.Join(scratch, "archive")).
		BinariesPath(tree).RuntimePath(filepath.Join(scratch, "run")).DataPath(filepath.Join(file, "data")))
	err = database.Start()
	if err == nil {
		err = errors.Join(errors.New("a server started where there is no data directory"), database.Stop())
		return err
	}
	for _, name := range []string{"postgres", "initdb"} {
		if _, missing := os.Stat(filepath.Join(tree, "bin", name)); missing != nil {
			return err
		}
	}
	if err := openUp(tree); err != nil {
		return err
	}
	return os.Rename(tree, target)
}

// openUp lets every account read what was unpacked, whatever the caller's umask.
func openUp(tree string) error {
	return filepath.WalkDir(tree, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil || info.Mode()&fs.ModeSymlink != 0 {
			return err
		}
		readable := (info.Mode().Perm() & 0o500) >> 3
		return os.Chmod(path, info.Mode().Perm()|readable|readable>>3)
	})
}

// lockCache polls, since a wait for a file's lock cannot be cancelled. Closing the file gives the lock back.
func lockCache(ctx context.Context, cache string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(cache, "download.lock"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lock the place for downloads: %w", err)
	}
	for {
		locked, err := tryLock(f)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("lock the place for downloads: %w", err), f.Close())
		}
		if locked {
			return f, nil
		}
		if !pause(ctx, 100*time.Millisecond) {
			return nil, errors.Join(fmt.Errorf("wait for another download: %w", ctx.Err()), f.Close())
		}
	}
}
