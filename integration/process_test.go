package integration

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience bounds every wait for something that is about to happen. It is no measure of how long that may take.
const patience = time.Minute

// process is a setpoint that runs until it is told to stop.
type process struct {
	cmd      *exec.Cmd
	out, log *lines // standard output and standard error
	ended    chan struct{}
}

// start runs the binary. What still runs at the end of the test is told to stop then, and has to do so in order. The
// account is the test's own if it is nil.
func start(t *testing.T, account *syscall.Credential, args ...string) *process {
	t.Helper()
	return launch(t, exec.Command(binary(t), args...), account)
}

// launch is start for any program, with more variables of its environment.
func launch(t *testing.T, cmd *exec.Cmd, account *syscall.Credential, env ...string) *process {
	t.Helper()
	p := &process{
		cmd: cmd, out: newLines(t.Output()), log: newLines(t.Output()), ended: make(chan struct{}),
	}
	p.cmd.Stdout, p.cmd.Stderr = p.out, p.log
	// A child of the process may outlive it and hold the pipes.
	p.cmd.WaitDelay = 5 * time.Second
	p.cmd.Dir = filepath.Dir(p.cmd.Path)
	p.cmd.Env = environment(env...)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: account}
	dieWithParent(p.cmd.SysProcAttr)
	started := make(chan error)
	go func() {
		// The kernel's signal at the parent's death comes when this thread ends.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			_ = p.cmd.Wait() // ProcessState has the outcome.
			close(p.ended)
		}
	}()
	if err := <-started; err != nil {
		t.Fatalf("start setpoint: %v", err)
	}
	t.Cleanup(func() {
		if p.running() {
			p.stop(t)
		}
	})
	return p
}

// environment is the test's own without what steers setpoint.
func environment(more ...string) []string {
	var env []string
	for _, entry := range os.Environ() {
		if !strings.HasPrefix(entry, "SETPOINT_") && !strings.HasPrefix(entry, "OTEL_") {
			env = append(env, entry)
		}
	}
	return append(env, more...)
}

func (p *process) running() bool {
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

// terminate asks the process to stop.
func (p *process) terminate(t testing.TB) {
	t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatalf("stop setpoint: %v", err)
	}
}

// stop asks the process to stop, and fails the test unless it does so with exit status 0.
func (p *process) stop(t testing.TB) {
	t.Helper()
	p.terminate(t)
	if status := p.wait(t); status != 0 {
		t.Errorf("setpoint stopped with exit status %d, not 0:\n%s", status, p.log)
	}
}

// wait returns the exit status of a process that is about to end, -1 if a signal ended it.
func (p *process) wait(t testing.TB) int {
	t.Helper()
	select {
	case <-p.ended:
	case <-time.After(patience):
		_ = p.cmd.Process.Kill()
		<-p.ended
		t.Fatalf("setpoint did not end:\n%s", p.log)
	}
	return p.cmd.ProcessState.ExitCode()
}

// kill ends the process without a warning.
func (p *process) kill(t testing.TB) {
	t.Helper()
	if err := p.cmd.Process.Kill(); err != nil {
		t.Fatalf("kill setpoint: %v", err)
	}
	<-p.ended
}

// pause stops the process where it is; it goes on with resume, or at the end of the test.
func (p *process) pause(t *testing.T) {
	t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatalf("pause the process: %v", err)
	}
	t.Cleanup(func() {
		if p.running() {
			p.resume(t)
		}
	})
}

func (p *process) resume(t *testing.T) {
	t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatalf("let the process go on: %v", err)
	}
}

// await returns the first line of the log, or of the output, that matches, as soon as the process has written it.
func (p *process) await(t testing.TB, from *lines, pattern string) []string {
	t.Helper()
	match := regexp.MustCompile(pattern)
	deadline := time.After(patience)
	for {
		found, changed := from.find(match)
		if found != nil {
			return found
		}
		select {
		case <-changed:
			continue
		case <-deadline:
		case <-p.ended:
			if found, _ := from.find(match); found != nil {
				return found
			}
		}
		t.Fatalf("setpoint did not say %q:\n%s", pattern, p.log)
	}
}

// lines is what a process writes. It shows with a test that fails.
type lines struct {
	show io.Writer

	mu      sync.Mutex
	text    []byte
	changed chan struct{} // Closed at the next write.
}

func newLines(show io.Writer) *lines { return &lines{show: show, changed: make(chan struct{})} }

func (l *lines) Write(text []byte) (int, error) {
	l.mu.Lock()
	l.text = append(l.text, text...)
	close(l.changed)
	l.changed = make(chan struct{})
	l.mu.Unlock()
	return l.show.Write(text)
}

// find returns the submatches in the first complete line that matches, nil for none, and what tells of more lines.
func (l *lines) find(match *regexp.Regexp) ([]string, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(string(l.text)) {
		if found := match.FindStringSubmatch(line); found != nil && strings.HasSuffix(line, "\n") {
			return found, l.changed
		}
	}
	return nil, l.changed
}

// count tells how often complete lines match.
func (l *lines) count(match *regexp.Regexp) int {
	n := 0
	for line := range strings.Lines(l.String()) {
		if strings.HasSuffix(line, "\n") && match.MatchString(line) {
			n++
		}
	}
	return n
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.text)
}

// folder is a new empty folder that every account can reach, unlike t.TempDir's.
func folder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp(filepath.Dir(binary(t)), "folder-")
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

// processesOf lists the processes whose command line names the text.
func processesOf(t *testing.T, text string) []string {
	t.Helper()
	output, err := exec.Command("ps", "-A", "-ww", "-o", "pid=,command=").Output()
	if err != nil {
		t.Fatalf("list processes: %v", err)
	}
	var found []string
	for line := range strings.Lines(string(output)) {
		if strings.Contains(line, text) {
			found = append(found, strings.TrimSpace(line))
		}
	}
	return found
}

// databaseFile is the argument that names a database without showing its password in the list of processes.
func databaseFile(t *testing.T, url string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "database-url")
	if err := os.WriteFile(path, []byte(url+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return "@" + path
}

// together runs functions at once, and tells how many of them failed, and of some how.
func together(n int, f func(i int) error) error {
	errs := make(chan error, n)
	for i := range n {
		go func() { errs <- f(i) }()
	}
	var failed []error
	for range n {
		if err := <-errs; err != nil {
			failed = append(failed, err)
		}
	}
	if len(failed) == 0 {
		return nil
	}
	return fmt.Errorf("%d of %d failed: %w", len(failed), n, errors.Join(failed[:min(5, len(failed))]...))
}
