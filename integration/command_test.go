package integration

import (
	"bytes"
	"errors"
	"os/exec"
	"strings"
	"testing"
)

// command is a run of the binary that ends by itself.
type command struct {
	args  []string
	stdin string
	env   []string // more variables of the environment
}

// answer is what became of it.
type answer struct {
	status         int
	stdout, stderr string
}

func run(t *testing.T, c command) answer {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), binary(t), c.args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.Stdin = strings.NewReader(c.stdin)
	cmd.Env = environment(c.env...)
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatalf("run setpoint %q: %v", c.args, err)
	}
	return answer{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}
