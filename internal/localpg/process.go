package localpg

import (
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
)

// process is a child that is waited for as soon as it is started.
type process struct {
	cmd *exec.Cmd
	// done is closed when the process has ended; err is set before.
	done chan struct{}
	err  error
}

// startProcess starts the command from a goroutine that keeps its thread until the child has ended: the kernel's signal
// at the parent's death comes when the thread that forked ends, and Go ends idle threads.
func startProcess(cmd *exec.Cmd) (*process, error) {
	p := &process{cmd: cmd, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		p.err = cmd.Wait()
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

// signal does nothing to a process that has ended.
func (p *process) signal(sig os.Signal) {
	_ = p.cmd.Process.Signal(sig)
}

// outcome tells how an ended process ended.
func (p *process) outcome() string {
	if p.err != nil {
		return p.err.Error()
	}
	return "exit status 0"
}

// command is the server itself. Arguments take precedence over the files in the data directory.
func (s *Server) command() *exec.Cmd {
	args := []string{"-D", s.dir.postgres()}
	settings := s.settings()
	for name, value := range s.config.ExtraSettings {
		settings[name] = value
	}
	var names []string
	for name := range settings {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		args = append(args, "-c", name+"="+settings[name])
	}
	cmd := exec.Command(s.binaries.path("postgres"), args...) //nolint:noctx // shutdown ends it in order
	cmd.Stdout, cmd.Stderr = s.logFile, s.logFile
	runAs(cmd, s.account, s.dir.path, interruptSignal)
	return cmd
}

// runAs makes the command a child of its own process group, so that the terminal's Ctrl-C does not reach it, under the
// account, and ends it with the signal when this process dies (where the system can do that).
func runAs(cmd *exec.Cmd, a account, dir string, atParentsDeath os.Signal) {
	cmd.Dir = dir
	cmd.Env = environment()
	cmd.SysProcAttr = processAttributes(a, atParentsDeath)
}

// environment is the caller's without what would steer PostgreSQL, and with messages in English.
func environment() []string {
	env := slices.DeleteFunc(os.Environ(), func(entry string) bool {
		return strings.HasPrefix(entry, "PG") || strings.HasPrefix(entry, "LC_") || strings.HasPrefix(entry, "LANG")
	})
	return append(env, "LC_ALL=C")
}
