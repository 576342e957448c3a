package service_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// campWriter makes calls of one kind, one after another.
type campWriter struct {
	*client.Client
	camp      *camp
	principal string
	does      campDeed
	// optimization is the writer's own, and linked tells of an edge; both outlive the right to have them.
	optimization *setpointv1.Optimization
	linked       bool
}

// campDeed is a writer's call number n; it tells whether the call only reads.
type campDeed func(w *campWriter, ctx context.Context, n int) (bool, error)

var campDeeds = []campDeed{
	(*campWriter).setAlone, (*campWriter).setAlone, (*campWriter).setTogether, (*campWriter).setBeside, (*campWriter).underLease,
	(*campWriter).rollBack, (*campWriter).readAll, (*campWriter).updateAndLink,
}

var (
	// errUnseen is a refusal, by leaving out.
	errUnseen = errors.New("left out")
	// errMixed is no refusal: some of what was asked for was done.
	errMixed = errors.New("done in part")
)

func isRefusal(err error) bool {
	for _, reason := range []error{client.ErrAccessDenied, client.ErrSessionNotFound, client.ErrOptimizationNotFound, errUnseen} {
		if errors.Is(err, reason) {
			return true
		}
	}
	return false
}

// run makes calls until it is over, and returns how many.
func (w *campWriter) run(ctx context.Context, over <-chan struct{}) (int64, error) {
	var enough, epoch int64 // Calls with the right end in the epoch.
	for n := 0; ; n++ {
		select {
		case <-over:
			return int64(n), nil
		case <-ctx.Done():
			return int64(n), context.Cause(ctx)
		default:
		}
		before := w.camp.epoch.Load()
		reads, err := w.does(w, ctx, n)
		after := w.camp.epoch.Load()
		if ctx.Err() != nil {
			return int64(n), context.Cause(ctx)
		}
		if !w.mayEnd(before, after, reads, err) {
			return int64(n), fmt.Errorf("%s: call %d (reads: %v), from epoch %d to %d: %w", w.principal, n, reads, before, after, orDone(err))
		}
		if before != after || before%2 != 0 {
			continue
		}
		if before != epoch {
			enough, epoch = 0, before
		}
		if enough++; enough == campEnough {
			select {
			case w.camp.settled <- epoch:
			case <-over:
			case <-ctx.Done():
			}
		}
	}
}

func orDone(err error) error {
	if err == nil {
		return errors.New("it was done")
	}
	return err
}

// mayEnd tells whether a call that began in one epoch and ended in another may end so.
func (w *campWriter) mayEnd(before, after int64, reads bool, err error) bool {
	switch {
	case before%2 != 0 || before != after:
		return err == nil || isRefusal(err) || errors.Is(err, errMixed)
	case before%4 == 2 || reads && w.camp.way.reads:
		return err == nil
	}
	return isRefusal(err)
}

// wrote notes what was acknowledged.
func (w *campWriter) wrote(revision int64) {
	w.camp.mu.Lock()
	defer w.camp.mu.Unlock()
	w.camp.done[revision] = w.principal
}

// setAlone has its place in a group with the writes of others.
func (w *campWriter) setAlone(ctx context.Context, n int) (bool, error) {
	return false, w.set(ctx, w.camp.variables()[0], n, nil)
}

func (w *campWriter) set(ctx context.Context, name string, n int, lease *setpointv1.Lease) error {
	answer, err := w.Variables.SetVariable(ctx, &setpointv1.SetVariableRequest{
		SessionId: "s", Variable: name, Value: client.Integer(int64(n)), Lease: lease,
	})
	if err == nil {
		w.wrote(answer.GetRevision())
	}
	return err
}

func (w *campWriter) setTogether(ctx context.Context, n int) (bool, error) {
	return false, w.batch(ctx, n, true)
}

func (w *campWriter) setBeside(ctx context.Context, n int) (bool, error) {
	return false, w.batch(ctx, n, false)
}

func (w *campWriter) batch(ctx context.Context, n int, atomic bool) error {
	req := &setpointv1.BatchSetVariablesRequest{SessionId: "s", Atomic: atomic}
	for _, i := range []int{0, 2} {
		req.Writes = append(req.Writes, &setpointv1.VariableWrite{Variable: w.camp.variables()[i], Value: client.Integer(int64(n))})
	}
	answer, err := w.Variables.BatchSetVariables(ctx, req)
	if err != nil {
		return err
	}
	var refused []error
	for _, result := range answer.GetResults() {
		switch e := client.FromItem(result.GetError()); {
		case result.GetError() == nil:
			w.wrote(result.GetRevision())
		case isRefusal(e):
			refused = append(refused, e)
		default:
			return e
		}
	}
	if len(refused) == 1 {
		return errMixed
	}
	return errors.Join(refused...)
}

// underLease takes the right to change a variable, uses it, and gives it back.
func (w *campWriter) underLease(ctx context.Context, n int) (bool, error) {
	o, name := w.optimization, w.camp.variables()[1]
	if o == nil {
		var err error
		w.optimization, err = w.Optimizations.StartOptimization(ctx, &setpointv1.StartOptimizationRequest{
			SessionId: "s", Variables: []string{name}, Ttl: seconds(3600),
		})
		if err != nil {
			w.optimization = nil
		}
		return false, err
	}
	id := o.GetOptimizationId()
	switch n % 6 {
	case 0:
		_, err := w.Optimizations.RenewOptimization(ctx, &setpointv1.RenewOptimizationRequest{
			SessionId: "s", OptimizationId: id, FencingToken: o.GetFencingToken(),
		})
		return false, err
	case 1:
		_, err := w.Optimizations.ReportProgress(ctx, &setpointv1.ReportProgressRequest{
			SessionId: "s", OptimizationId: id, FencingToken: o.GetFencingToken(),
			Values: map[string]*setpointv1.Value{name: client.Integer(int64(n))}, Metrics: map[string]float64{"loss": 1},
		})
		return false, err
	case 2:
		_, err := w.Optimizations.GetOptimization(ctx, &setpointv1.GetOptimizationRequest{SessionId: "s", OptimizationId: id})
		return true, err
	case 3:
		_, err := w.Optimizations.StopOptimization(ctx, &setpointv1.StopOptimizationRequest{SessionId: "s", OptimizationId: id})
		if err == nil {
			w.optimization = nil
		}
		return true, err // Who may read it may give it back.
	}
	return false, w.set(ctx, name, n, lease(o))
}

func (w *campWriter) rollBack(ctx context.Context, _ int) (bool, error) {
	v, err := w.History.RollbackVariable(ctx, &setpointv1.RollbackVariableRequest{SessionId: "s", Variable: w.camp.variables()[0]})
	if err == nil {
		w.wrote(v.GetRevision())
	}
	return false, err
}

func (w *campWriter) readAll(ctx context.Context, n int) (bool, error) {
	name := w.camp.variables()[n%3]
	switch n % 4 {
	case 0:
		_, err := w.Variables.GetVariable(ctx, &setpointv1.GetVariableRequest{SessionId: "s", Variable: name})
		return true, err
	case 1:
		answer, err := w.Variables.BatchGetVariables(ctx, &setpointv1.BatchGetVariablesRequest{SessionId: "s", Variables: []string{name}})
		if err == nil && len(answer.GetVariables()) == 0 {
			err = errUnseen
		}
		return true, err
	case 2:
		answer, err := w.Variables.ListVariables(ctx, &setpointv1.ListVariablesRequest{SessionId: "s", Pattern: name})
		if err == nil && len(answer.GetVariables()) == 0 {
			err = errUnseen
		}
		return true, err
	}
	_, err := w.History.ListHistory(ctx, &setpointv1.ListHistoryRequest{SessionId: "s", Variable: name, PageSize: 3})
	return true, err
}

func (w *campWriter) updateAndLink(ctx context.Context, n int) (bool, error) {
	x, z := w.camp.variables()[0], w.camp.variables()[2]
	switch {
	case n%3 > 0:
		v, err := w.Variables.UpdateVariable(ctx, &setpointv1.UpdateVariableRequest{
			SessionId: "s", Variable: x, Metadata: map[string]string{"n": fmt.Sprint(n)},
		})
		if err == nil {
			w.wrote(v.GetRevision())
		}
		return false, err
	case w.linked:
		_, err := w.Dependencies.RemoveDependency(ctx, &setpointv1.RemoveDependencyRequest{SessionId: "s", Dependent: z, Dependency: x})
		if err == nil {
			w.linked = false
		}
		return false, err
	}
	_, err := w.Dependencies.AddDependency(ctx, &setpointv1.AddDependencyRequest{SessionId: "s", Dependent: z, Dependency: x})
	if err == nil {
		w.linked = true
	}
	return false, err
}
