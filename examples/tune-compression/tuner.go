package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"sync"
	"text/tabwriter"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

const (
	levelVariable = "compression_level"
	blockVariable = "block_size"

	costMetric = "cost"

	// farewell is how long the calls at the end may take together: less than the usual grace of a preemption.
	farewell = 4 * time.Second
)

// tuner is one run.
type tuner struct {
	api     *client.Client
	session string
	eval    *evaluator
	out     io.Writer

	optimization string
	lease        *client.LeaseKeeper

	// reported: there is a trial, and so a best one.
	reported bool

	// mu is held while a trial is reported, so that the variables are where the run is.
	mu sync.Mutex
	at setting
}

// Why a run ends early, and leaves what it has found.
var (
	errInterrupted = errors.New("interrupted")
	errGivesWay    = errors.New("gave way")
)

// run is the whole of it, from the variables' registration to the best values.
func (t *tuner) run(ctx context.Context, workers, rounds int, seed uint64) error {
	if err := t.prepare(ctx); err != nil {
		return err
	}
	if err := t.acquire(ctx); err != nil {
		return err
	}
	defer t.lease.Close()
	work, stopped := t.work(ctx)
	defer stopped()
	if err := t.climb(work, workers, rounds, seed); err != nil {
		return t.giveUp(work, err)
	}
	return t.finish(&setpointv1.StopOptimizationRequest{Reason: "tuned"})
}

// prepare sees to the session and the variables.
func (t *tuner) prepare(ctx context.Context) error {
	if err := t.enter(ctx); err != nil {
		return fmt.Errorf("session %s: %w", t.session, err)
	}
	choices := make([]string, len(blockSizes))
	for i, size := range blockSizes {
		choices[i] = size.name
	}
	for _, registration := range []*setpointv1.RegisterVariableRequest{
		{
			Name: levelVariable, Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Value: client.Integer(minLevel),
			Constraints: &setpointv1.Constraints{Min: proto.Float64(minLevel), Max: proto.Float64(maxLevel)},
		},
		{
			Name: blockVariable, Type: setpointv1.VariableType_VARIABLE_TYPE_CHOICE, Value: client.Choice(choices[0]),
			Constraints: &setpointv1.Constraints{Choices: choices},
		},
	} {
		registration.SessionId = t.session
		_, err := t.api.Variables.RegisterVariable(ctx, registration)
		if err != nil && !errors.Is(err, client.ErrVariableExists) {
			return fmt.Errorf("register %s: %w", registration.GetName(), err)
		}
	}
	return nil
}

// enter sees to the session. One that is there, but in which this program may do nothing, is not found either.
func (t *tuner) enter(ctx context.Context) error {
	get := &setpointv1.GetSessionRequest{SessionId: t.session}
	_, err := t.api.Sessions.GetSession(ctx, get)
	if !errors.Is(err, client.ErrSessionNotFound) {
		return err
	}
	_, err = t.api.Sessions.CreateSession(ctx, &setpointv1.CreateSessionRequest{SessionId: t.session})
	if !errors.Is(err, client.ErrSessionExists) {
		return err
	}
	// Another run has just created it, or it is somebody else's.
	if _, err = t.api.Sessions.GetSession(ctx, get); errors.Is(err, client.ErrSessionNotFound) {
		return errors.New("it is somebody else's, who allows this program nothing in it: name another by --session")
	}
	return err
}

// acquire gets the right to change the variables, and keeps it. If somebody else has it, it waits.
func (t *tuner) acquire(ctx context.Context) error {
	optimization, err := t.api.Optimizations.StartOptimization(ctx, &setpointv1.StartOptimizationRequest{
		SessionId:        t.session,
		Variables:        []string{levelVariable, blockVariable},
		OptimizerId:      "tune-compression",
		OptimizerProcess: process(),
		Ttl:              durationpb.New(10 * time.Second),
		Conflict:         setpointv1.ConflictStrategy_CONFLICT_STRATEGY_WAIT,
		Objective:        &setpointv1.Objective{Metric: costMetric, Direction: setpointv1.Direction_DIRECTION_MINIMIZE},
	})
	if err != nil {
		return fmt.Errorf("start: %w", err)
	}
	t.optimization = optimization.GetOptimizationId()
	optimization, err = t.api.AwaitLease(ctx, t.session, t.optimization, func(o *setpointv1.Optimization) {
		if place := o.GetQueuePosition(); place > 0 {
			t.printf("somebody else tunes these variables: place %d in the queue\n", place)
		}
	})
	if err != nil {
		return t.leave(fmt.Errorf("wait for the lease: %w", err))
	}
	// An interrupt ends the work, but not the lease: it is kept until the best values are set.
	t.lease, err = t.api.KeepLease(context.WithoutCancel(ctx), optimization)
	if err != nil {
		return t.leave(err)
	}
	return nil
}

// leave gives up the place in the queue, or the lease that nothing was done under, rather than have others wait until it is
// over by its time.
func (t *tuner) leave(why error) error {
	ctx, cancel := context.WithTimeout(context.Background(), farewell)
	defer cancel()
	_, err := t.api.Optimizations.StopOptimization(ctx, &setpointv1.StopOptimizationRequest{
		SessionId: t.session, OptimizationId: t.optimization, Reason: why.Error(),
		State: setpointv1.OptimizationState_OPTIMIZATION_STATE_CANCELLED,
	})
	if errors.Is(err, client.ErrOptimizationEnded) {
		err = nil // The server has ended it.
	}
	return errors.Join(why, err)
}

// work is the context of the work: it ends with the lease, and before that with an interrupt, or when somebody is about to
// preempt this run. The function that it returns ends it, and has to be called.
func (t *tuner) work(ctx context.Context) (context.Context, func()) {
	work, cancel := context.WithCancelCause(t.lease.Context())
	go func() {
		select {
		case <-ctx.Done():
			cancel(errInterrupted)
		case notice := <-t.lease.Preemptions():
			cancel(fmt.Errorf("%w to %s", errGivesWay, notice.OptimizerID))
		case <-work.Done():
		}
	}()
	return work, func() { cancel(nil) }
}

// process is this one as "host:pid", for those who want to know who optimizes a variable.
func process() string {
	host, err := os.Hostname()
	if err != nil {
		host = "?"
	}
	return fmt.Sprintf("%s:%d", host, os.Getpid())
}

// read returns both variables. One call, so that no change lies between the two.
func (t *tuner) read(ctx context.Context) (setting, error) {
	answer, err := t.api.Variables.BatchGetVariables(ctx, &setpointv1.BatchGetVariablesRequest{
		SessionId: t.session, Variables: []string{levelVariable, blockVariable},
	})
	if err != nil {
		return setting{}, fmt.Errorf("read the variables: %w", err)
	}
	if len(answer.GetMissing()) > 0 {
		return setting{}, fmt.Errorf("somebody deleted %v", answer.GetMissing())
	}
	return settingOf(map[string]*setpointv1.Value{
		levelVariable: answer.GetVariables()[levelVariable].GetValue(),
		blockVariable: answer.GetVariables()[blockVariable].GetValue(),
	})
}

// climb has the workers look for a better setting, from where the variables are. It ends early when the context does: when
// the run is interrupted, or its lease is about to be lost.
func (t *tuner) climb(ctx context.Context, workers, rounds int, seed uint64) error {
	var err error
	if t.at, err = t.read(ctx); err != nil {
		return err
	}
	cost, err := t.eval.cost(t.at)
	if err != nil {
		return err
	}
	t.printf("start: %s, cost %.4f\n\n", t.at, cost)
	if _, err := t.lease.Report(ctx, trial(t.at, cost, "where it began")); err != nil { // it may be the best
		return fmt.Errorf("report: %w", err)
	}
	t.reported = true
	group, ctx := errgroup.WithContext(ctx)
	for worker := range workers {
		group.Go(func() error {
			random := rand.New(rand.NewPCG(seed, uint64(worker)))
			for round := range rounds {
				if err := t.round(ctx, worker+1, float64(round)/float64(rounds), random); err != nil {
					return fmt.Errorf("worker %d: %w", worker+1, err)
				}
			}
			return nil
		})
	}
	return group.Wait()
}

// round is one trial; done is how much of the run is over, from 0 to 1.
func (t *tuner) round(ctx context.Context, worker int, done float64, random *rand.Rand) error {
	t.mu.Lock()
	proposed := propose(t.at, random)
	t.mu.Unlock()
	after, err := t.eval.cost(proposed)
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	before, err := t.eval.cost(t.at) // Another worker may have moved on: known already, in any case.
	if err != nil {
		return err
	}
	report := trial(proposed, after, fmt.Sprintf("worker %d", worker))
	report.Apply = proposed != t.at && accept(before, after, done, random)
	reported, err := t.lease.Report(ctx, report)
	switch {
	case err != nil:
		return fmt.Errorf("report: %w", err)
	case !reported.GetTrial().GetApplied():
		return nil
	}
	t.at = proposed
	best := ""
	if reported.GetIsBest() {
		best = "  the best so far"
	}
	t.printf("worker %d  trial %-3d  %-24s  cost %.4f -> %.4f%s\n",
		worker, reported.GetTrial().GetNumber(), proposed, before, after, best)
	return nil
}

// trial is the report of a setting and what it costs.
func trial(s setting, cost float64, note string) *setpointv1.ReportProgressRequest {
	return &setpointv1.ReportProgressRequest{
		Values: map[string]*setpointv1.Value{
			levelVariable: client.Integer(int64(s.level)),
			blockVariable: client.Choice(blockSizes[s.block].name),
		},
		Metrics: map[string]float64{costMetric: cost},
		Note:    note,
	}
}

// settingOf is the setting that values of the two variables stand for.
func settingOf(values map[string]*setpointv1.Value) (setting, error) {
	s := setting{level: int(values[levelVariable].GetInteger()), block: -1}
	for i, size := range blockSizes {
		if size.name == values[blockVariable].GetChoice() {
			s.block = i
		}
	}
	if s.level < minLevel || s.level > maxLevel || s.block < 0 {
		return setting{}, fmt.Errorf("%s or %s is not this program's: try another session", levelVariable, blockVariable)
	}
	return s, nil
}

// accept takes what is better. What is worse it takes at times, less and less as the run goes on, to get down from hills
// that are not the highest.
func accept(before, after, done float64, random *rand.Rand) bool {
	if after <= before {
		return true
	}
	const boldness = 0.01 // in units of cost
	patience := boldness * (1 - done) * (1 - done)
	return patience > 0 && random.Float64() < math.Exp((before-after)/patience)
}

// finish sets the variables to the best trial's values, gives them free, and prints what came of it.
func (t *tuner) finish(request *setpointv1.StopOptimizationRequest) error {
	ctx, cancel := context.WithTimeout(context.Background(), farewell)
	defer cancel()
	request.ApplyBest = true
	stopped, err := t.lease.Stop(ctx, request)
	if err != nil {
		return fmt.Errorf("stop: %w", err)
	}
	trials, err := t.api.Optimizations.ListTrials(ctx, &setpointv1.ListTrialsRequest{
		SessionId: t.session, OptimizationId: t.optimization, Metric: costMetric, PageSize: 5,
	})
	if err != nil {
		return fmt.Errorf("list trials: %w", err)
	}
	t.printf("\nthe best of %d trials (%d of %d settings):\n", stopped.GetOptimization().GetTrialCount(), t.eval.tried(),
		(maxLevel-minLevel+1)*len(blockSizes))
	table := tabwriter.NewWriter(t.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "TRIAL\tCOST\tSETTING\tBY")
	for _, trial := range trials.GetTrials() {
		s, err := settingOf(trial.GetValues())
		if err != nil {
			return err
		}
		fmt.Fprintf(table, "%d\t%.4f\t%s\t%s\n", trial.GetNumber(), trial.GetMetrics()[costMetric], s, trial.GetNote())
	}
	if err := table.Flush(); err != nil {
		return fmt.Errorf("print trials: %w", err)
	}
	end, err := settingOf(stopped.GetFinalValues())
	if err != nil {
		return err
	}
	t.printf("\nend: %s\n%s\n", end, t.optimization)
	return nil
}

// giveUp frees the variables for others at once, and says why the run ended. What was found until then is not lost: one
// that was interrupted, or gives way, leaves the best trial's values.
func (t *tuner) giveUp(work context.Context, why error) error {
	if ended := context.Cause(work); ended != nil {
		why = ended // What the workers met only follows from it.
	}
	request := &setpointv1.StopOptimizationRequest{
		State: setpointv1.OptimizationState_OPTIMIZATION_STATE_FAILED, Reason: why.Error(),
	}
	if errors.Is(why, errInterrupted) || errors.Is(why, errGivesWay) || errors.Is(why, client.ErrPreempted) {
		request.State = setpointv1.OptimizationState_OPTIMIZATION_STATE_CANCELLED
	}
	var err error
	if t.reported && request.GetState() == setpointv1.OptimizationState_OPTIMIZATION_STATE_CANCELLED {
		err = t.finish(request)
	} else {
		ctx, cancel := context.WithTimeout(context.Background(), farewell)
		defer cancel()
		_, err = t.lease.Stop(ctx, request)
	}
	if errors.Is(err, client.ErrOptimizationEnded) {
		err = nil // The lease is over.
	}
	return errors.Join(why, err)
}

func (t *tuner) printf(format string, args ...any) {
	fmt.Fprintf(t.out, format, args...)
}
