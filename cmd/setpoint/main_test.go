//go:build unix

package main

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// childArgs is in the environment of a process that is the command itself: its arguments.
const childArgs = "SETPOINT_TEST_CHILD_ARGS"

// TestChild is the process that the tests of signals send them to.
func TestChild(t *testing.T) {
	args := os.Getenv(childArgs)
	if args == "" {
		t.Skip("not that process")
	}
	os.Args = append([]string{"setpoint"}, strings.Fields(args)...)
	main()
}

// A wait whose terminal goes away leaves the queue as an interrupted one does, unless it was started so as to outlive that.
func TestHangupWhileWaiting(t *testing.T) {
	t.Parallel()
	const stopped = "error: CANCELLED: interrupted; " + tunerID + " is stopped\n"
	tests := []struct {
		name   string
		launch []string // the command line is appended
		status int
		err    string
		stops  int
	}{
		{"with its terminal", nil, 1, place3 + stopped, 1},
		{"by nohup", []string{"/bin/sh", "-c", `trap "" HUP; exec "$@"`, "sh"}, 0, place3 + place2, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			waiting, hungUp := make(chan struct{}), make(chan struct{})
			p := newQueue(t, func(_ int, stream waitStream) error {
				close(waiting)
				<-hungUp
				if tt.stops > 0 {
					<-stream.Context().Done()
					return nil
				}
				return sends(stream, nil, queued(2), tuning())
			})
			line := append(append([]string{}, tt.launch...), os.Args[0], "-test.run=^TestChild$")
			child := exec.CommandContext(t.Context(), line[0], line[1:]...)
			child.Env = append(os.Environ(), childArgs+"=--addr "+p.addr+" opt start lr --conflict wait")
			var out, errs bytes.Buffer
			child.Stdout, child.Stderr = &out, &errs
			if err := child.Start(); err != nil {
				t.Fatal(err)
			}
			<-waiting
			if err := child.Process.Signal(syscall.SIGHUP); err != nil {
				t.Fatal(err)
			}
			close(hungUp)
			_ = child.Wait() // the status is looked at
			if got := child.ProcessState.ExitCode(); got != tt.status || errs.String() != tt.err {
				t.Errorf("status %d, and %q on standard error; want %d, %q", got, errs.String(), tt.status, tt.err)
			}
			if got := strings.Contains(out.String(), tunerLease); got != (tt.status == 0) {
				t.Errorf("output: %q", out.String())
			}
			stops := p.stops()
			if len(stops) != tt.stops || tt.stops > 0 && stops[0].GetState() != setpointv1.OptimizationState_OPTIMIZATION_STATE_CANCELLED {
				t.Errorf("stopped %v", stops)
			}
		})
	}
}
