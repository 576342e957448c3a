package integration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// optimizerTask is in the environment of the processes that optimize: their task, as JSON.
const optimizerTask = "SETPOINT_TEST_OPTIMIZER_TASK"

// task is what a process that optimizes is to do. It renews its lease while it writes, and believes that it holds it until a
// write is refused.
type task struct {
	Addr, Session, Variable, Optimizer string
	TTL                                time.Duration
}

// startOptimizer runs the test's own binary as a process that optimizes. It says on its output what becomes of it.
func startOptimizer(t *testing.T, work task) *process {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(work)
	if err != nil {
		t.Fatal(err)
	}
	return launch(t, exec.Command(path), nil, optimizerTask+"="+string(text))
}

// optimizerMain is that process. It ends with status 0 when it has been refused, or is told to stop.
func optimizerMain(text string) int {
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer cancel()
	var work task
	err := json.Unmarshal([]byte(text), &work)
	if err == nil {
		err = work.run(ctx, os.Stdout)
	}
	if err != nil && ctx.Err() == nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func (w task) run(ctx context.Context, out io.Writer) error {
	c, err := client.Dial(w.Addr)
	if err != nil {
		return err
	}
	defer c.Close()
	o, err := c.Optimizations.StartOptimization(ctx, &setpointv1.StartOptimizationRequest{
		SessionId: w.Session, Variables: []string{w.Variable}, OptimizerId: w.Optimizer, Ttl: durationpb.New(w.TTL),
		Conflict: setpointv1.ConflictStrategy_CONFLICT_STRATEGY_WAIT})
	if err != nil {
		return err
	}
	fmt.Fprintln(out, "asked as", o.GetOptimizationId())
	o, err = c.AwaitLease(ctx, w.Session, o.GetOptimizationId(), func(o *setpointv1.Optimization) {
		fmt.Fprintln(out, "place", o.GetQueuePosition())
	})
	if err != nil {
		return err
	}
	fmt.Fprintln(out, "holds", o.GetFencingToken())
	if err := w.write(ctx, c, o, out); err != nil {
		return err
	}

	report, err := c.Optimizations.ReportProgress(ctx, &setpointv1.ReportProgressRequest{
		SessionId: w.Session, OptimizationId: o.GetOptimizationId(), FencingToken: o.GetFencingToken(),
		Values: map[string]*setpointv1.Value{w.Variable: client.Integer(1_000_000)}, Apply: true,
		Metrics: map[string]float64{"accuracy": 1}})
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "report: late %t, applied %t\n", report.GetLate(), report.GetTrial().GetApplied())
	_, err = c.Optimizations.StopOptimization(ctx, &setpointv1.StopOptimizationRequest{
		SessionId: w.Session, OptimizationId: o.GetOptimizationId()})
	fmt.Fprintln(out, "stop:", reasonOf(err))
	return nil
}

// write writes 1, 2, 3 and so on, and renews the lease now and then, until a write is refused. What a renewal says it does
// not mind.
func (w task) write(ctx context.Context, c *client.Client, o *setpointv1.Optimization, out io.Writer) error {
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for n := int64(1); ; n++ {
		_, err := c.Variables.SetVariable(ctx, &setpointv1.SetVariableRequest{
			SessionId: w.Session, Variable: w.Variable, Value: client.Integer(n), Lease: leaseOf(o)})
		switch reason := reasonOf(err); {
		case err == nil:
			fmt.Fprintln(out, "wrote", n)
		case reason == "":
			return err
		default:
			fmt.Fprintln(out, "write:", reason)
			return nil
		}
		if n%5 == 0 {
			_, err := c.Optimizations.RenewOptimization(ctx, &setpointv1.RenewOptimizationRequest{
				SessionId: w.Session, OptimizationId: o.GetOptimizationId(), FencingToken: o.GetFencingToken()})
			if err != nil && ctx.Err() == nil {
				fmt.Fprintln(out, "renewal:", reasonOf(err))
			}
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// reasonOf is the name of the reason for which a call was refused; empty where there is none.
func reasonOf(err error) string {
	var refusal *client.Error
	if !errors.As(err, &refusal) {
		return ""
	}
	return refusal.ReasonName
}

// leaseOf is what the writes of an optimization present.
func leaseOf(o *setpointv1.Optimization) *setpointv1.Lease {
	return &setpointv1.Lease{OptimizationId: o.GetOptimizationId(), FencingToken: o.GetFencingToken()}
}
