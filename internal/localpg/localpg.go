// Package localpg runs a real PostgreSQL server from local binaries, for `setpoint dev` and for tests.
//
// The server listens on 127.0.0.1 only, asks for a password that is made with the data, and keeps every commit: fsync,
// full_page_writes and synchronous_commit stay on and cannot be turned off here. A data directory holds
//
//	postgres/      PostgreSQL's own data (PGDATA)
//	password       the superuser's password, mode 0600
//	postgres.log   what PostgreSQL writes about itself
//	setpoint.lock  locked for as long as a process runs a server on the directory
//
// # What each failure does
//
//   - PostgreSQL dies: the Server starts it again on the same port, with growing pauses, until Stop. URL stays valid.
//   - The process that holds the Server is killed: on Linux the kernel then interrupts PostgreSQL, which shuts down in
//     order; elsewhere it runs on. Either way the next Start on the directory waits for it to go, or makes it go.
//   - The first initialization is cut short: it happened in a directory beside the real one, which the next Start removes.
//   - Two processes want one directory: the second gets ErrInUse.
//
// PostgreSQL refuses to run as root. Started by root, it runs as the owner of existing data, else as the account
// "postgres", else as "nobody"; the data directory must then lie where that account can reach it.
package localpg

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	// User is the name of the superuser that URL connects as.
	User = "setpoint"
	// Database is the name of the database that URL connects to.
	Database = "setpoint"
)

// Errors that Start, Find and Remove return, wrapped with what to do about them.
var (
	// ErrInUse means that another process runs a server on the data directory.
	ErrInUse = errors.New("data directory is in use")
	// ErrNotFound means that there are no PostgreSQL binaries and none could be downloaded.
	ErrNotFound = errors.New("no PostgreSQL found")
	// ErrWrongVersion means that the binaries are too old, or of another major version than the data.
	ErrWrongVersion = errors.New("wrong PostgreSQL version")
	// ErrUnreachable means that the account which PostgreSQL runs as cannot reach the data directory.
	ErrUnreachable = errors.New("data directory cannot be reached")
)

const (
	// fastStop bounds a fast shutdown (which ends connections and writes a checkpoint) before an immediate one.
	fastStop = 10 * time.Second
	// immediateStop bounds an immediate shutdown; PostgreSQL itself kills what is left of it after five seconds.
	immediateStop = 10 * time.Second
	// uncleanRetry bounds how long a start waits for the orphans of a killed server to let go of its shared memory.
	uncleanRetry = 15 * time.Second
	// restartPauseMax is the longest pause between two attempts to bring a dead server back.
	restartPauseMax = 5 * time.Second
)

// Config says what to run and where. The zero value of each field but DataDir is usable.
type Config struct {
	// DataDir is made if it is absent. Required; see DefaultDataDir.
	DataDir string
	// Port is the TCP port on 127.0.0.1. 0 takes a free one at each Start.
	Port int
	// BinDir, RepositoryURL and CacheDir are those of FindOptions.
	BinDir, RepositoryURL, CacheDir string
	// Logger gets a line at each start, restart and leftover. nil discards them.
	Logger *slog.Logger
	// ExtraSettings are PostgreSQL's run-time settings, such as max_connections. Those that this package sets itself,
	// durability among them, are refused.
	ExtraSettings map[string]string
}

// DefaultDataDir returns where `setpoint dev` keeps its data: $XDG_DATA_HOME/setpoint/dev or ~/.local/share/setpoint/dev,
// or /var/lib/setpoint/dev for root, whose home the account that runs PostgreSQL cannot reach.
func DefaultDataDir() (string, error) {
	if os.Geteuid() == 0 {
		return "/var/lib/setpoint/dev", nil
	}
	if base := os.Getenv("XDG_DATA_HOME"); filepath.IsAbs(base) {
		return filepath.Join(base, "setpoint", "dev"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("find a place for the data (pass --data-dir): %w", err)
	}
	return filepath.Join(home, ".local", "share", "setpoint", "dev"), nil
}

// Server is a running PostgreSQL. It is safe for concurrent use.
type Server struct {
	config   Config
	dir      *dataDir
	binaries Binaries
	account  account
	password string
	port     int
	logFile  *os.File
	log      *slog.Logger

	// running is cancelled by Stop, and with it every wait of the supervisor.
	running context.Context
	halt    context.CancelFunc
	// hurry is closed when a Stop has no more time for an orderly shutdown.
	hurry     chan struct{}
	hurryOnce sync.Once
	// done is closed when PostgreSQL is gone and the directory is free again; stopErr is set before.
	done    chan struct{}
	stopErr error
}

// Start runs PostgreSQL on the data directory and returns when it answers. The context bounds the start only, not the
// life of the server: the caller ends that with Stop.
func Start(ctx context.Context, config Config) (*Server, error) {
	if config.DataDir == "" {
		return nil, errors.New("start PostgreSQL: no data directory given")
	}
	if config.Port < 0 || config.Port > 65535 {
		return nil, fmt.Errorf("start PostgreSQL: port %d is not within 0 to 65535", config.Port)
	}
	if err := checkSettings(config.ExtraSettings); err != nil {
		return nil, err
	}
	dir, err := openDataDir(config.DataDir)
	if err != nil {
		return nil, err
	}
	s := &Server{config: config, dir: dir, port: config.Port, log: config.Logger,
		hurry: make(chan struct{}), done: make(chan struct{})}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.running, s.halt = context.WithCancel(context.Background())
	p, err := s.start(ctx)
	if err != nil {
		s.halt()
		return nil, errors.Join(err, s.release())
	}
	s.log.Info("PostgreSQL is running", "version", s.binaries.Version, "port", s.port, "data", dir.path)
	go s.supervise(p)
	return s, nil
}

// URL returns a postgres:// URL of a superuser's connection. It stays the same until Stop.
func (s *Server) URL() string { return s.url(Database) }

// Stop shuts PostgreSQL down and frees the data directory: in order at first, at once when that takes more than ten
// seconds or the context ends (no commit is lost by that; the next start recovers). It returns when the process is gone.
// A second Stop waits for the first.
func (s *Server) Stop(ctx context.Context) error {
	s.halt()
	select {
	case <-s.done:
	case <-ctx.Done():
		s.hurryOnce.Do(func() { close(s.hurry) })
		<-s.done
	}
	return s.stopErr
}

// start does everything up to a server that answers. The data directory is locked already.
func (s *Server) start(ctx context.Context) (*process, error) {
	var err error
	if s.account, err = accountFor(s.dir.postgres()); err != nil {
		return nil, err
	}
	major, err := s.dir.major()
	if err != nil {
		return nil, err
	}
	s.binaries, err = find(ctx, FindOptions{BinDir: s.config.BinDir, RepositoryURL: s.config.RepositoryURL,
		CacheDir: s.config.CacheDir, Major: major}, s.account)
	if err != nil {
		return nil, err
	}
	if err := s.dir.reachable(ctx, s.binaries, s.account); err != nil {
		return nil, err
	}
	if err := s.dir.stopLeftover(ctx, s.log); err != nil {
		return nil, err
	}
	if s.password, err = s.dir.readPassword(major == 0); err != nil {
		return nil, err
	}
	if major == 0 {
		if err := s.dir.initialize(ctx, s.binaries, s.account, s.password); err != nil {
			return nil, err
		}
	}
	if s.logFile, err = s.dir.openLog(); err != nil {
		return nil, err
	}
	return s.firstLaunch(ctx)
}

// firstLaunch settles the port. A free port may be lost to another program before PostgreSQL takes it.
func (s *Server) firstLaunch(ctx context.Context) (*process, error) {
	for attempt := 1; ; attempt++ {
		if s.config.Port == 0 {
			port, err := freePort(ctx)
			if err != nil {
				return nil, err
			}
			s.port = port
		} else if !portIsFree(ctx, s.port) {
			return nil, fmt.Errorf("start PostgreSQL: port %d of 127.0.0.1 is taken by another program", s.port)
		}
		p, err := s.launch(ctx)
		if err == nil {
			return p, nil
		}
		if s.config.Port != 0 || attempt == 5 || ctx.Err() != nil || portIsFree(ctx, s.port) {
			return nil, err
		}
	}
}

// launch runs PostgreSQL and waits until it answers. After an unclean end it tries again for a while, since processes
// of the dead server may hold on to its shared memory for a moment.
func (s *Server) launch(ctx context.Context) (*process, error) {
	unclean := s.dir.hasPidFile()
	begin := time.Now()
	for {
		mark := fileSize(s.logFile)
		p, err := startProcess(s.command())
		if err != nil {
			return nil, fmt.Errorf("start PostgreSQL: %w", err)
		}
		err = s.waitReady(ctx, p)
		if err == nil {
			return p, nil
		}
		err = errors.Join(err, s.shutdown(p))
		if ctx.Err() != nil {
			return nil, err
		}
		if !unclean || !portIsFree(ctx, s.port) || time.Since(begin) > uncleanRetry || !pause(ctx, 200*time.Millisecond) {
			return nil, fmt.Errorf("%w\n%s", err, tail(s.logFile.Name(), mark))
		}
	}
}

// waitReady returns when PostgreSQL answers a query over the URL that callers get.
func (s *Server) waitReady(ctx context.Context, p *process) error {
	wait := 10 * time.Millisecond
	for {
		err := s.probe(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("PostgreSQL ended while it started (%s)", p.outcome())
		case <-ctx.Done():
			return fmt.Errorf("wait for PostgreSQL to answer (%w): %w", ctx.Err(), err)
		case <-time.After(wait):
			wait = min(2*wait, 50*time.Millisecond)
		}
	}
}

// probe connects, and makes the database on the way where it is missing.
func (s *Server) probe(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, s.url("postgres"))
	if err != nil {
		return err
	}
	defer conn.Close(ctx) //nolint:errcheck // nothing depends on how a probe's connection ends
	var there bool
	if err := conn.QueryRow(ctx, "select exists (select from pg_database where datname = $1)", Database).Scan(&there); err != nil {
		return fmt.Errorf("look for the database: %w", err)
	}
	if there {
		return nil
	}
	if _, err := conn.Exec(ctx, "create database "+Database); err != nil {
		return fmt.Errorf("create the database: %w", err)
	}
	return nil
}

// supervise holds the server up until Stop.
func (s *Server) supervise(p *process) {
	defer close(s.done)
	for p != nil {
		select {
		case <-p.done:
			s.log.Warn("PostgreSQL ended; starting it again", "outcome", p.outcome())
			p = s.relaunch()
		case <-s.running.Done():
			s.stopErr = s.shutdown(p)
			p = nil
		}
	}
	s.stopErr = errors.Join(s.stopErr, s.release())
}

// relaunch brings a dead server back, however long it takes. It returns nil when Stop was called meanwhile.
func (s *Server) relaunch() *process {
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, restartPauseMax) {
		p, err := s.launch(s.running)
		if err == nil {
			s.log.Info("PostgreSQL is back", "port", s.port)
			return p
		}
		if s.running.Err() != nil {
			return nil
		}
		s.log.Error("PostgreSQL does not start; trying again", "pause", wait, "error", err)
		if !pause(s.running, wait) {
			return nil
		}
	}
}

// shutdown ends the process: fast, then immediate, then by force.
func (s *Server) shutdown(p *process) error {
	p.signal(interruptSignal)
	select {
	case <-p.done:
		return nil
	case <-s.hurry:
	case <-time.After(fastStop):
	}
	p.signal(quitSignal)
	select {
	case <-p.done:
		return nil
	case <-time.After(immediateStop):
	}
	p.signal(os.Kill)
	<-p.done
	return errors.New("stop PostgreSQL: it did not end when asked to, and was killed")
}

// release gives back what start took. PostgreSQL is gone by then.
func (s *Server) release() error {
	var err error
	if s.logFile != nil {
		err = s.logFile.Close()
	}
	return errors.Join(err, s.dir.unlock())
}

func (s *Server) url(database string) string {
	u := url.URL{Scheme: "postgres", User: url.UserPassword(User, s.password),
		Host: net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)), Path: "/" + database, RawQuery: "sslmode=disable"}
	return u.String()
}

// settings are those that this package decides. A caller's come on top, but never in their place.
func (s *Server) settings() map[string]string {
	return map[string]string{
		"fsync": "on", "full_page_writes": "on", "synchronous_commit": "on",
		"listen_addresses": "127.0.0.1", "port": strconv.Itoa(s.port), "unix_socket_directories": "",
		"log_destination": "stderr", "logging_collector": "off",
	}
}

var (
	settingName = regexp.MustCompile(`^[a-z_][a-z0-9_]*(\.[a-z_][a-z0-9_]*)?$`)
	// elsewhere are settings that would move what this package relies on.
	elsewhere = []string{"config_file", "data_directory", "external_pid_file", "hba_file", "ident_file"}
)

func checkSettings(extra map[string]string) error {
	own := (&Server{}).settings()
	for name := range extra {
		if !settingName.MatchString(name) {
			return fmt.Errorf("start PostgreSQL: %q is not the name of a setting", name)
		}
		if _, fixed := own[name]; fixed || slices.Contains(elsewhere, name) {
			return fmt.Errorf("start PostgreSQL: the setting %s cannot be changed", name)
		}
	}
	return nil
}

// pause waits, and tells whether the context still runs.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

func freePort(ctx context.Context) (int, error) {
	l, err := listen(ctx, 0)
	if err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	if err := l.Close(); err != nil {
		return 0, fmt.Errorf("give the free port back: %w", err)
	}
	return port, nil
}

func portIsFree(ctx context.Context, port int) bool {
	l, err := listen(ctx, port)
	if err != nil {
		return false
	}
	return l.Close() == nil
}

func listen(ctx context.Context, port int) (net.Listener, error) {
	return (&net.ListenConfig{}).Listen(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
}

func fileSize(f *os.File) int64 {
	info, err := f.Stat()
	if err != nil {
		return 0
	}
	return info.Size()
}

// tail returns the end of a log from an offset on, at most 4096 bytes, as context for an error.
func tail(path string, from int64) string {
	f, err := os.Open(path)
	if err != nil {
		return err.Error()
	}
	defer f.Close() //nolint:errcheck // it was only read
	from = max(from, fileSize(f)-4096)
	text, err := io.ReadAll(io.NewSectionReader(f, from, 4096))
	if err != nil {
		return err.Error()
	}
	return string(text)
}
