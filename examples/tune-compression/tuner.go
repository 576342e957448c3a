package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"text/tabwriter"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

const (
	levelVariable = "compression_level"
	blockVariable = "block_size"
)

// The metadata of a version: whose run made it, what it costs, and with which version of the other variable.
const (
	runKey   = "run"
	costKey  = "cost"
	otherKey = "other_version"
)

// tuner is one run.
type tuner struct {
	api     *client.Client
	session string
	eval    *evaluator
	id      string // of the run

	mu  sync.Mutex
	out io.Writer

	proposals, accepted, worse, conflicts atomic.Int64
}

// state is both variables as of one moment.
type state struct {
	setting
	levelVersion, blockVersion int64
	revision                   int64 // the latest change of either
}

// candidate is a pair of versions whose cost is known.
type candidate struct {
	levelVersion, blockVersion int64
	cost                       float64
}

// prepare sees to the session and the variables. Where an earlier run left them, this one goes on from there.
func (t *tuner) prepare(ctx context.Context) (state, error) {
	t.id = uuid.NewString()
	_, err := t.api.Sessions.GetSession(ctx, &setpointv1.GetSessionRequest{SessionId: t.session})
	if errors.Is(err, client.ErrSessionNotFound) {
		_, err = t.api.Sessions.CreateSession(ctx, &setpointv1.CreateSessionRequest{SessionId: t.session})
	}
	if err != nil && !errors.Is(err, client.ErrSessionExists) {
		return state{}, fmt.Errorf("session %s: %w", t.session, err)
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
		registration.HistoryLimit = proto.Int64(10_000) // the best version must still be there when the run ends
		_, err := t.api.Variables.RegisterVariable(ctx, registration)
		if err != nil && !errors.Is(err, client.ErrVariableExists) {
			return state{}, fmt.Errorf("register %s: %w", registration.GetName(), err)
		}
	}
	start, err := t.read(ctx)
	if err != nil {
		return state{}, err
	}
	cost, err := t.eval.cost(start.setting)
	if err != nil {
		return state{}, err
	}
	t.printf("start: %s, cost %.4f\n\n", start.setting, cost)
	return start, nil
}

// read returns both variables. One call, so that no change lies between the two.
func (t *tuner) read(ctx context.Context) (state, error) {
	answer, err := t.api.Variables.BatchGetVariables(ctx, &setpointv1.BatchGetVariablesRequest{
		SessionId: t.session, Variables: []string{levelVariable, blockVariable},
	})
	if err != nil {
		return state{}, fmt.Errorf("read the variables: %w", err)
	}
	if len(answer.GetMissing()) > 0 {
		return state{}, fmt.Errorf("somebody deleted %v", answer.GetMissing())
	}
	level, block := answer.GetVariables()[levelVariable], answer.GetVariables()[blockVariable]
	s := state{
		levelVersion: level.GetVersion(),
		blockVersion: block.GetVersion(),
		revision:     max(level.GetRevision(), block.GetRevision()),
	}
	s.level = int(level.GetValue().GetInteger())
	s.block = -1
	for i, size := range blockSizes {
		if size.name == block.GetValue().GetChoice() {
			s.block = i
		}
	}
	if s.level < minLevel || s.level > maxLevel || s.block < 0 {
		return state{}, fmt.Errorf("%s and %s hold %v and %v, which are not this program's",
			levelVariable, blockVariable, level.GetValue(), block.GetValue())
	}
	return s, nil
}

// climb runs the workers.
func (t *tuner) climb(ctx context.Context, workers, rounds int, seed uint64) error {
	group, ctx := errgroup.WithContext(ctx)
	for worker := range workers {
		random := rand.New(rand.NewPCG(seed, uint64(worker)))
		group.Go(func() error {
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

// round is one proposal; done is how much of the run is over, from 0 to 1.
func (t *tuner) round(ctx context.Context, worker int, done float64, random *rand.Rand) error {
	now, err := t.read(ctx)
	if err != nil {
		return err
	}
	proposed := propose(now.setting, random)
	before, err := t.eval.cost(now.setting)
	if err != nil {
		return err
	}
	after, err := t.eval.cost(proposed)
	if err != nil {
		return err
	}
	t.proposals.Add(1)
	if !accept(before, after, done, random) {
		return nil
	}
	request := t.write(now, proposed, after)
	request.Reason = fmt.Sprintf("worker %d: cost %.4f -> %.4f", worker, before, after)
	set, err := t.api.Variables.SetVariable(ctx, request)
	if errors.Is(err, client.ErrVersionMismatch) {
		t.conflicts.Add(1)
		current, _ := client.CurrentVersion(err)
		t.printf("worker %d  %-17s was at version %d, another worker made it %d\n",
			worker, request.GetVariable(), request.GetExpectedVersion(), current)
		return nil
	} else if err != nil {
		return fmt.Errorf("set %s: %w", request.GetVariable(), err)
	}
	t.accepted.Add(1)
	if after > before {
		t.worse.Add(1)
	}
	t.printf("worker %d  %-17s version %-3d %-24s cost %.4f -> %.4f\n",
		worker, request.GetVariable(), set.GetVersion(), proposed, before, after)
	return nil
}

// write is the request that makes a state the proposed setting, if the variable that it changes is as it was read. The
// other one may have moved since: its version in the metadata tells what the cost stands for.
func (t *tuner) write(from state, to setting, cost float64) *setpointv1.SetVariableRequest {
	request := &setpointv1.SetVariableRequest{
		SessionId:       t.session,
		Variable:        levelVariable,
		Value:           client.Integer(int64(to.level)),
		ExpectedVersion: proto.Int64(from.levelVersion),
	}
	other := from.blockVersion
	if to.block != from.block {
		request.Variable = blockVariable
		request.Value = client.Choice(blockSizes[to.block].name)
		request.ExpectedVersion = proto.Int64(from.blockVersion)
		other = from.levelVersion
	}
	request.Metadata = map[string]string{
		runKey:   t.id,
		costKey:  strconv.FormatFloat(cost, 'g', -1, 64),
		otherKey: strconv.FormatInt(other, 10),
	}
	return request
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

// finish prints the history of the run and goes back to the best of it.
func (t *tuner) finish(ctx context.Context, start state) error {
	entries, err := t.history(ctx, start.revision)
	if err != nil {
		return err
	}
	if err := t.printHistory(entries); err != nil {
		return err
	}
	cost, err := t.eval.cost(start.setting)
	if err != nil {
		return err
	}
	best := t.best(entries, candidate{start.levelVersion, start.blockVersion, cost})
	t.printf("\n%d proposals by all workers: %d accepted (%d of them worse), %d came too late (VERSION_MISMATCH);\n"+
		"%d of %d settings tried\n", t.proposals.Load(), t.accepted.Load(), t.worse.Load(), t.conflicts.Load(),
		t.eval.tried(), (maxLevel-minLevel+1)*len(blockSizes))
	t.printf("best: %s version %d with %s version %d, cost %.4f\n\n",
		levelVariable, best.levelVersion, blockVariable, best.blockVersion, best.cost)
	return t.goBack(ctx, best)
}

// history returns the changes of both variables since a revision, oldest first.
func (t *tuner) history(ctx context.Context, since int64) ([]*setpointv1.HistoryEntry, error) {
	var entries []*setpointv1.HistoryEntry
	for _, variable := range []string{levelVariable, blockVariable} {
		request := &setpointv1.ListHistoryRequest{SessionId: t.session, Variable: variable, PageSize: 1000}
		for {
			page, err := t.api.History.ListHistory(ctx, request)
			if err != nil {
				return nil, fmt.Errorf("history of %s: %w", variable, err)
			}
			older := false
			for _, entry := range page.GetEntries() {
				if older = entry.GetRevision() <= since; older {
					break // they come newest first
				}
				entries = append(entries, entry)
			}
			if request.PageToken = page.GetNextPageToken(); older || request.PageToken == "" {
				break
			}
		}
	}
	slices.SortFunc(entries, func(a, b *setpointv1.HistoryEntry) int {
		return cmp.Compare(a.GetRevision(), b.GetRevision())
	})
	return entries, nil
}

func (t *tuner) printHistory(entries []*setpointv1.HistoryEntry) error {
	t.printf("\nhistory:\n")
	table := tabwriter.NewWriter(t.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "REVISION\tVARIABLE\tVERSION\tVALUE\tREASON")
	for _, e := range entries {
		value := e.GetValue().GetChoice()
		if e.GetName() == levelVariable {
			value = strconv.FormatInt(e.GetValue().GetInteger(), 10)
		}
		fmt.Fprintf(table, "%d\t%s\t%d\t%s\t%s\n", e.GetRevision(), e.GetName(), e.GetVersion(), value, e.GetReason())
	}
	if err := table.Flush(); err != nil {
		return fmt.Errorf("print history: %w", err)
	}
	return nil
}

// best is the cheapest of the start and the pairs that this run made; of equal ones, the earliest.
func (t *tuner) best(entries []*setpointv1.HistoryEntry, start candidate) candidate {
	best := start
	for _, e := range entries {
		cost, badCost := strconv.ParseFloat(e.GetMetadata()[costKey], 64)
		other, badVersion := strconv.ParseInt(e.GetMetadata()[otherKey], 10, 64)
		if e.GetChange() != setpointv1.HistoryChange_HISTORY_CHANGE_SET || e.GetMetadata()[runKey] != t.id ||
			badCost != nil || badVersion != nil || cost >= best.cost {
			continue
		}
		best = candidate{levelVersion: e.GetVersion(), blockVersion: other, cost: cost}
		if e.GetName() == blockVariable {
			best.levelVersion, best.blockVersion = other, e.GetVersion()
		}
	}
	return best
}

// goBack makes the variables what they were at the best pair of versions.
func (t *tuner) goBack(ctx context.Context, best candidate) error {
	now, err := t.read(ctx)
	if err != nil {
		return err
	}
	for _, v := range []struct {
		name          string
		current, want int64
	}{
		{levelVariable, now.levelVersion, best.levelVersion},
		{blockVariable, now.blockVersion, best.blockVersion},
	} {
		if v.current == v.want {
			t.printf("%s stays at version %d\n", v.name, v.current)
			continue
		}
		variable, err := t.api.History.RollbackVariable(ctx, &setpointv1.RollbackVariableRequest{
			SessionId: t.session, Variable: v.name, Version: v.want, ExpectedVersion: proto.Int64(v.current),
			Reason: fmt.Sprintf("the best of the run: cost %.4f", best.cost),
		})
		if err != nil {
			return fmt.Errorf("roll back %s to version %d: %w", v.name, v.want, err)
		}
		t.printf("%s rolled back to version %d, as version %d\n", v.name, v.want, variable.GetVersion())
	}
	end, err := t.read(ctx)
	if err != nil {
		return err
	}
	cost, err := t.eval.cost(end.setting)
	if err != nil {
		return err
	}
	t.printf("end: %s, cost %.4f\n", end.setting, cost)
	return nil
}

func (t *tuner) printf(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	fmt.Fprintf(t.out, format, args...)
}
