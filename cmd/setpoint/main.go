// Command setpoint is the whole of Setpoint in one binary: the server, and the command line that talks to one. Run
// "setpoint help" for what it can do; every command explains itself with --help.
//
// A command that fails writes one line, "error: REASON: message", to standard error and exits with status 1; REASON is
// the API's, UNREACHABLE where no server answers, or FAILED for what has no reason of its own. Wrong usage exits with
// status 2.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), endings()...)
	// A second signal ends the process the hard way, should the first one's orderly end take too long. One that comes at once
	// is the same: timeout(1), and a terminal with a group of processes, send it twice.
	context.AfterFunc(ctx, func() { time.AfterFunc(time.Second, stop) })
	status := run(ctx, &cli{
		stdin:  os.Stdin,
		stdout: os.Stdout,
		stderr: os.Stderr,
		getenv: os.Getenv,
		zone:   time.Local,
		screen: detectScreen(),
	}, os.Args[1:])
	stop()
	os.Exit(status)
}

// endings are the signals by which the process is asked to end. Among them is the one that tells that the terminal is gone,
// so that nothing is left behind there either; not for a process that is to outlive its terminal, as by nohup(1).
func endings() []os.Signal {
	signals := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) {
		signals = append(signals, syscall.SIGHUP)
	}
	return signals
}
