package localpg

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	// MinMajor is the oldest major version of PostgreSQL that Setpoint runs on.
	MinMajor = 14
	// EnvBinDir names the environment variable that holds the directory of PostgreSQL's binaries.
	EnvBinDir = "SETPOINT_POSTGRES_BIN"
	// EnvRepository names the environment variable that holds the address of the repository to download from.
	EnvRepository = "SETPOINT_POSTGRES_REPOSITORY"
)

const advice = "install it (Debian/Ubuntu: apt-get install postgresql; Fedora: dnf install postgresql-server; " +
	"macOS: brew install postgresql@17) or pass --postgres-bin"

// Binaries is a directory that holds PostgreSQL's postgres and initdb.
type Binaries struct {
	// Dir is absolute, with symbolic links resolved: PostgreSQL finds its other files relative to it.
	Dir string
	// Version is what the server calls itself, such as "15.14".
	Version string
	// Major is the leading number of Version.
	Major int
}

func (b Binaries) path(name string) string { return filepath.Join(b.Dir, name) }

// FindOptions say where to look for binaries. The zero value is usable.
type FindOptions struct {
	// BinDir, or else the environment's SETPOINT_POSTGRES_BIN, is the one place to look at.
	BinDir string
	// Major is the major version that existing data needs. 0 takes any from MinMajor on.
	Major int
	// RepositoryURL, or else the environment's SETPOINT_POSTGRES_REPOSITORY, or else Maven Central, is where binaries are
	// downloaded from when there are none: a Maven repository with the artifacts of io.zonky.test.postgres.
	RepositoryURL string
	// CacheDir keeps what was downloaded. "" means the folder setpoint in the user's cache, or /var/cache/setpoint for root.
	CacheDir string
	// NoDownload finds only what is on the machine.
	NoDownload bool
}

// Find looks for PostgreSQL's binaries in BinDir, the PATH, the folders that packages use (the highest version first) and
// the cache, and downloads them as a last resort. It returns ErrNotFound or ErrWrongVersion, each with advice on one line.
func Find(ctx context.Context, options FindOptions) (Binaries, error) {
	a, err := accountFor("")
	if err != nil {
		return Binaries{}, err
	}
	return find(ctx, options, a)
}

// find takes only binaries that the account can run.
func find(ctx context.Context, options FindOptions, a account) (Binaries, error) {
	if dir := orEnv(options.BinDir, EnvBinDir); dir != "" {
		return givenBinaries(ctx, dir, options.Major, a)
	}
	cache, err := cacheDir(options.CacheDir)
	if err != nil {
		return Binaries{}, err
	}
	var misfits []string
	for _, dir := range slices.Concat(pathDirs(), packageDirs(), []string{downloaded(cache, options.Major)}) {
		b, err := inspect(ctx, dir, a)
		if err != nil {
			continue
		}
		if check(b, options.Major) == nil {
			return b, nil
		}
		misfits = append(misfits, b.Version+" in "+b.Dir)
	}
	b, err := fetch(ctx, options, cache, a)
	if err == nil || ctx.Err() != nil {
		return b, err
	}
	if len(misfits) > 0 {
		slices.Sort(misfits)
		return Binaries{}, fmt.Errorf("%w: %s needed, found %s: %s (%w)", ErrWrongVersion, wanted(options.Major),
			strings.Join(slices.Compact(misfits), ", "), advice, err)
	}
	return Binaries{}, fmt.Errorf("%w: %s (%w)", ErrNotFound, advice, err)
}

// givenBinaries are those that the caller insists on, so nothing else will do.
func givenBinaries(ctx context.Context, dir string, major int, a account) (Binaries, error) {
	b, err := inspect(ctx, dir, a)
	if err != nil {
		return Binaries{}, fmt.Errorf("%w in %s: %w", ErrNotFound, dir, err)
	}
	if err := check(b, major); err != nil {
		return Binaries{}, err
	}
	return b, nil
}

func check(b Binaries, major int) error {
	if b.Major < MinMajor || (major != 0 && b.Major != major) {
		return fmt.Errorf("%w: %s needed, but %s holds %s", ErrWrongVersion, wanted(major), b.Dir, b.Version)
	}
	return nil
}

func wanted(major int) string {
	if major != 0 {
		return fmt.Sprintf("the data was made by PostgreSQL %d, which is", major)
	}
	return fmt.Sprintf("PostgreSQL %d or later is", MinMajor)
}

// pathDirs are the folders of the PATH. A relative one would mean whatever the current directory is.
func pathDirs() []string {
	return slices.DeleteFunc(filepath.SplitList(os.Getenv("PATH")), func(dir string) bool { return !filepath.IsAbs(dir) })
}

// packagePatterns match the folders that packages use without putting them into the PATH.
var packagePatterns = []string{
	"/usr/lib/postgresql/*/bin",                       // Debian, Ubuntu
	"/usr/pgsql-*/bin",                                // PGDG on Fedora, RHEL
	"/usr/libexec/postgresql*",                        // Alpine
	"/usr/lib/postgresql*/bin",                        // SUSE
	"/opt/homebrew/opt/postgresql@*/bin",              // Homebrew
	"/usr/local/opt/postgresql@*/bin",                 // Homebrew on Intel
	"/home/linuxbrew/.linuxbrew/opt/postgresql@*/bin", // Homebrew on Linux
	"/opt/local/lib/postgresql*/bin",                  // MacPorts
	"/Applications/Postgres.app/Contents/Versions/*/bin",
	"/Library/PostgreSQL/*/bin", // EDB
	"/usr/local/pgsql/bin",      // make install
}

// packageDirs are the folders that match, those with the highest number first.
func packageDirs() []string {
	var dirs []string
	for _, pattern := range packagePatterns {
		matches, _ := filepath.Glob(pattern) // the patterns are well-formed
		dirs = append(dirs, matches...)
	}
	slices.SortStableFunc(dirs, func(x, y string) int { return number(y) - number(x) })
	return dirs
}

var digits = regexp.MustCompile(`\d+`)

func number(dir string) int {
	n, _ := strconv.Atoi(digits.FindString(dir)) // no number counts as 0
	return n
}

var versionLine = regexp.MustCompile(`\(PostgreSQL\) ((\d+)\S*)`)

// inspect asks the binaries in a directory for their version, as the account that is to run them.
func inspect(ctx context.Context, dir string, a account) (Binaries, error) {
	server, err := filepath.Abs(filepath.Join(dir, "postgres"))
	if err != nil {
		return Binaries{}, err
	}
	if server, err = filepath.EvalSymlinks(server); err != nil {
		return Binaries{}, err
	}
	dir = filepath.Dir(server)
	if _, err := os.Stat(filepath.Join(dir, "initdb")); err != nil {
		return Binaries{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, server, "--version")
	runAs(cmd, a, "/", os.Kill)
	output, err := cmd.Output()
	if errors.Is(err, fs.ErrPermission) && a.other() {
		return Binaries{}, fmt.Errorf("%s cannot be run by %s, as whom root runs PostgreSQL", server, a.name)
	}
	if err != nil {
		return Binaries{}, fmt.Errorf("ask %s for its version: %w", server, err)
	}
	match := versionLine.FindStringSubmatch(string(output))
	if match == nil {
		return Binaries{}, fmt.Errorf("%s gives no version but %q", server, output)
	}
	major, err := strconv.Atoi(match[2])
	if err != nil {
		return Binaries{}, fmt.Errorf("read the version of %s: %w", server, err)
	}
	return Binaries{Dir: dir, Version: match[1], Major: major}, nil
}

func orEnv(value, name string) string {
	if value != "" {
		return value
	}
	return os.Getenv(name)
}
