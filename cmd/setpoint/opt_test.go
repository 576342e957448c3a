package main

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

const (
	tunerID    = "opt_tttttttttttttttttttttttttt"
	tunerLease = tunerID + ":17"
	waiterID   = "opt_wwwwwwwwwwwwwwwwwwwwwwwwww"
	otherID    = "opt_oooooooooooooooooooooooooo"
	endedID    = "opt_eeeeeeeeeeeeeeeeeeeeeeeeee"

	stateWaiting    = setpointv1.OptimizationState_OPTIMIZATION_STATE_WAITING
	stateActive     = setpointv1.OptimizationState_OPTIMIZATION_STATE_ACTIVE
	statePreempting = setpointv1.OptimizationState_OPTIMIZATION_STATE_PREEMPTING
	stateCompleted  = setpointv1.OptimizationState_OPTIMIZATION_STATE_COMPLETED
	stateCancelled  = setpointv1.OptimizationState_OPTIMIZATION_STATE_CANCELLED
)

// tuning is an optimization at work.
func tuning() *setpointv1.Optimization {
	return &setpointv1.Optimization{
		OptimizationId: tunerID, SessionId: "default", State: stateActive, OptimizerId: "tuner", OptimizerProcess: "host7:4711",
		Variables: []string{"lr", "momentum"}, FencingToken: 17, RequestedAt: at("15:40:00"), StartedAt: at("15:48:00"),
		ExpiresAt: at("16:01:00"), Remaining: durationpb.New(48 * time.Second), Ttl: durationpb.New(time.Minute),
		ProgressTimeout: durationpb.New(10 * time.Minute), Priority: 5, StartedBy: "user:ada", TrialCount: 12, LateCount: 1,
		Conflict:     setpointv1.ConflictStrategy_CONFLICT_STRATEGY_WAIT,
		Objective:    &setpointv1.Objective{Metric: "loss", Direction: setpointv1.Direction_DIRECTION_MINIMIZE},
		LastReportAt: at("16:00:07"),
		BestTrial: &setpointv1.Trial{Number: 7, Metrics: map[string]float64{"loss": 0.12, "accuracy": 0.9},
			Values: map[string]*setpointv1.Value{"momentum": client.Float(0.9), "lr": client.Float(0.01)}, Best: true},
		Config:     &structpb.Struct{Fields: map[string]*structpb.Value{"seed": structpb.NewNumberValue(4)}},
		Checkpoint: &setpointv1.Checkpoint{OptimizationId: endedID, TrialNumber: 3, Data: []byte("where I was")},
	}
}

func preempted() *setpointv1.Optimization {
	o := tuning()
	o.State = statePreempting
	o.Preemption = &setpointv1.Preemption{By: otherID, OptimizerId: "urgent", Deadline: at("16:00:15")}
	o.ExpiresAt, o.Remaining = at("16:00:15"), durationpb.New(3*time.Second)
	return o
}

func trial(number int64) *setpointv1.Trial {
	return &setpointv1.Trial{Number: number, Metrics: map[string]float64{"loss": 0.3, "accuracy": 0.9},
		Values: map[string]*setpointv1.Value{"lr": client.Float(0.01)}, ReportedAt: at("16:00:00")}
}

// Each command about optimizations: what goes to the server, what comes out.
func TestOptimizationCommands(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "state.bin")
	if err := os.WriteFile(file, []byte("\xff\x00bytes"), 0o600); err != nil {
		t.Fatal(err)
	}
	sendJSON := func(v *structpb.Value) *setpointv1.Value {
		return &setpointv1.Value{Kind: &setpointv1.Value_Json{Json: v}}
	}
	lease := &setpointv1.Lease{OptimizationId: tunerID, FencingToken: 17}
	const whole = "lease:            " + tunerLease + "\n" +
		"state:            active, 48s left\n" +
		"variables:        lr, momentum\n" +
		"optimizer:        tuner\n" +
		"process:          host7:4711\n" +
		"objective:        minimize loss\n" +
		"trials:           12 trials, 1 late\n" +
		"best:             trial 7, loss=0.12\n" +
		"best values:      lr=0.01, momentum=0.9\n" +
		"last report:      2026-11-23 16:00:07\n" +
		"checkpoint:       11 bytes, of trial 3 of " + endedID + "\n" +
		"config:           {\"seed\":4}\n" +
		"requested:        2026-11-23 15:40:00\n" +
		"started:          2026-11-23 15:48:00\n" +
		"expires:          2026-11-23 16:01:00 unless it is renewed\n" +
		"ttl:              1m\n" +
		"progress timeout: 10m\n" +
		"conflict:         wait\n" +
		"priority:         5\n" +
		"started by:       user:ada\n" +
		"session:          default\n" +
		"id:               " + tunerID + "\n"
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		args    []string
		answer  proto.Message
		request proto.Message
		out     string
	}{
		{
			args: []string{"opt", "start", "lr"},
			answer: &setpointv1.Optimization{OptimizationId: tunerID, State: stateActive, FencingToken: 17, OptimizerId: "made-up\x1b",
				Variables: []string{"lr"}},
			request: &setpointv1.StartOptimizationRequest{SessionId: "default", Variables: []string{"lr"},
				OptimizerProcess: fmt.Sprintf("%s:%d", host, os.Getppid())},
			out: "lease:     " + tunerLease + "\n" +
				"state:     active\n" +
				"variables: lr\n" +
				"optimizer: made-up\\x1b\n" +
				"trials:    no trials\n" +
				"id:        " + tunerID + "\n",
		},
		{
			args: []string{"--session", "s", "opt", "start", "momentum", "lr", "--optimizer", "tuner", "--ttl", "5m", "--conflict", "preempt",
				"--priority", "-5", "--max-wait", "1h", "--grace", "0s", "--progress-timeout", "10m", "--objective", "loss", "--direction", "minimize",
				"--config", `{"seed": 4}`, "--process", "host7:4711", "--request-id", "once"},
			answer: tuning(),
			request: &setpointv1.StartOptimizationRequest{SessionId: "s", Variables: []string{"momentum", "lr"}, OptimizerId: "tuner",
				OptimizerProcess: "host7:4711", Config: tuning().GetConfig(), Ttl: durationpb.New(5 * time.Minute), Priority: -5,
				Conflict: setpointv1.ConflictStrategy_CONFLICT_STRATEGY_PREEMPT, MaxWait: durationpb.New(time.Hour), Grace: durationpb.New(0),
				ProgressTimeout: durationpb.New(10 * time.Minute), Objective: tuning().GetObjective(), RequestId: "once"},
			out: whole,
		},
		{
			args:   []string{"opt", "start", "lr", "--objective", "accuracy", "--process", ""},
			answer: &setpointv1.Optimization{OptimizationId: tunerID, State: stateActive, FencingToken: 17},
			request: &setpointv1.StartOptimizationRequest{SessionId: "default", Variables: []string{"lr"},
				Objective: &setpointv1.Objective{Metric: "accuracy"}},
			out: "lease:  " + tunerLease + "\nstate:  active\ntrials: no trials\nid:     " + tunerID + "\n",
		},
		{
			args:    []string{"opt", "renew", tunerLease},
			answer:  tuning(),
			request: &setpointv1.RenewOptimizationRequest{SessionId: "default", OptimizationId: tunerID, FencingToken: 17},
			out:     "renewed " + tunerID + "  (active, 48s left, until 2026-11-23 16:01:00)\n",
		},
		{
			args: []string{"opt", "renew", waiterID},
			answer: &setpointv1.Optimization{OptimizationId: waiterID, State: stateWaiting, QueuePosition: 2, ExpiresAt: at("16:01:00"),
				Remaining: durationpb.New(time.Minute)},
			request: &setpointv1.RenewOptimizationRequest{SessionId: "default", OptimizationId: waiterID},
			out:     "renewed " + waiterID + "  (waiting, place 2 in the queue, until 2026-11-23 16:01:00)\n",
		},
		{
			args: []string{"opt", "report", tunerLease, "lr=0.01", "name=adam=w", "--metric", "loss=-0.3", "--metric", "f@k=5=NaN",
				"--metric", "up=Infinity", "--metric", "down=-Infinity", "--number", "0", "--step", "0", "--note", "n", "--checkpoint", "@" + file,
				"--request-id", "once"},
			answer: &setpointv1.ReportProgressResponse{ExpiresAt: at("16:01:00"), Trial: &setpointv1.Trial{Step: proto.Int64(0),
				Metrics: map[string]float64{"loss": -0.3, "up": math.Inf(1)}}},
			request: &setpointv1.ReportProgressRequest{SessionId: "default", OptimizationId: tunerID, FencingToken: 17,
				Number: proto.Int64(0), Step: proto.Int64(0), Note: "n", Checkpoint: []byte("\xff\x00bytes"), RequestId: "once",
				Values:  map[string]*setpointv1.Value{"lr": sendJSON(structpb.NewNumberValue(0.01)), "name": sendJSON(structpb.NewStringValue("adam=w"))},
				Metrics: map[string]float64{"loss": -0.3, "f@k=5": math.NaN(), "up": math.Inf(1), "down": math.Inf(-1)}},
			out: "trial 0, step 0: loss=-0.3, up=Infinity  (the lease was to hold until 2026-11-23 16:01:00)\n",
		},
		{
			args: []string{"opt", "report", tunerLease, "lr=5", "--text", "--metric", "loss=3e-1", "--apply"},
			answer: &setpointv1.ReportProgressResponse{IsBest: true, ExpiresAt: at("16:01:00"), Remaining: durationpb.New(time.Minute),
				Trial:         &setpointv1.Trial{Number: 8, Metrics: map[string]float64{"loss": 0.3}, Applied: true},
				Recomputed:    []*setpointv1.RecomputedVariable{{Variable: "rate", Version: 6, Value: client.Integer(9)}},
				Stale:         []*setpointv1.StaleVariable{{Variable: "report"}},
				ValuesOmitted: true},
			request: &setpointv1.ReportProgressRequest{SessionId: "default", OptimizationId: tunerID, FencingToken: 17, Apply: true,
				Values:  map[string]*setpointv1.Value{"lr": sendJSON(structpb.NewStringValue("5"))},
				Metrics: map[string]float64{"loss": 0.3}},
			out: "trial 8: loss=0.3  (the best so far; its values are set; the lease holds until 2026-11-23 16:01:00)\n" +
				"\nRECOMPUTED  VERSION  VALUE\nrate              6  9\n" +
				"\nSTALE\nreport\n" +
				"some values are too large to show together; 'setpoint history list' has them\n",
		},
		{
			args: []string{"opt", "stop", tunerLease, "--state", "failed", "--apply-best", "--reason", "why", "--request-id", "once"},
			answer: &setpointv1.StopOptimizationResponse{
				Optimization: &setpointv1.Optimization{OptimizationId: tunerID, State: setpointv1.OptimizationState_OPTIMIZATION_STATE_FAILED,
					TrialCount: 1, BestTrial: tuning().GetBestTrial(), Objective: tuning().GetObjective()},
				FinalValues: map[string]*setpointv1.Value{"momentum": client.Float(0.9), "lr": client.Float(0.01)},
				Stale:       []*setpointv1.StaleVariable{{Variable: "report"}},
			},
			request: &setpointv1.StopOptimizationRequest{SessionId: "default", OptimizationId: tunerID, FencingToken: proto.Int64(17),
				State: setpointv1.OptimizationState_OPTIMIZATION_STATE_FAILED, ApplyBest: true, Reason: "why", RequestId: "once"},
			out: tunerID + " is failed  (1 trial; the best: trial 7, loss=0.12; its values are set)\n" +
				"\nVARIABLE  VALUE\nlr        0.01\nmomentum  0.9\n" +
				"\nSTALE\nreport\n",
		},
		{
			args: []string{"opt", "stop", tunerLease, "--state", "Cancelled"},
			answer: &setpointv1.StopOptimizationResponse{
				Optimization: &setpointv1.Optimization{OptimizationId: tunerID, State: stateCancelled, TrialCount: 12,
					BestTrial: tuning().GetBestTrial(), Objective: tuning().GetObjective()},
				FinalValues: map[string]*setpointv1.Value{"momentum": client.Float(0.9), "lr": client.Float(0.02)},
			},
			request: &setpointv1.StopOptimizationRequest{SessionId: "default", OptimizationId: tunerID, FencingToken: proto.Int64(17),
				State: stateCancelled},
			out: tunerID + " is cancelled  (12 trials; the best: trial 7, loss=0.12; its values were not set (--apply-best sets them))\n" +
				"\nVARIABLE  VALUE\nlr        0.02\nmomentum  0.9\n",
		},
		{
			args: []string{"opt", "stop", tunerLease},
			answer: &setpointv1.StopOptimizationResponse{
				Optimization: &setpointv1.Optimization{OptimizationId: tunerID, State: stateCompleted, TrialCount: 12,
					BestTrial: tuning().GetBestTrial(), Objective: tuning().GetObjective()},
				FinalValues: tuning().GetBestTrial().GetValues(),
			},
			request: &setpointv1.StopOptimizationRequest{SessionId: "default", OptimizationId: tunerID, FencingToken: proto.Int64(17)},
			out: tunerID + " is completed  (12 trials; the best: trial 7, loss=0.12)\n" +
				"\nVARIABLE  VALUE\nlr        0.01\nmomentum  0.9\n",
		},
		{
			args:   []string{"opt", "stop", waiterID, "--force", "--reason", "its machine is gone"},
			answer: &setpointv1.StopOptimizationResponse{Optimization: &setpointv1.Optimization{OptimizationId: waiterID, State: stateCancelled}},
			request: &setpointv1.StopOptimizationRequest{SessionId: "default", OptimizationId: waiterID, Force: true,
				Reason: "its machine is gone"},
			out: waiterID + " is cancelled  (no trials)\n",
		},
		{
			args:    []string{"opt", "get", tunerID},
			answer:  tuning(),
			request: &setpointv1.GetOptimizationRequest{SessionId: "default", OptimizationId: tunerID},
			out:     whole,
		},
		{
			args: []string{"opt", "get", waiterID},
			answer: &setpointv1.Optimization{OptimizationId: waiterID, State: statePreempting, ExpiresAt: at("16:00:15"),
				Remaining: durationpb.New(3 * time.Second), Preemption: preempted().GetPreemption()},
			request: &setpointv1.GetOptimizationRequest{SessionId: "default", OptimizationId: waiterID},
			out: "state:     preempting, 3s left\n" +
				"preempted: by urgent (" + otherID + ") at 2026-11-23 16:00:15 (in 3s)\n" +
				"trials:    no trials\n" +
				"expires:   2026-11-23 16:00:15\n" +
				"id:        " + waiterID + "\n",
		},
		{
			args: []string{"opt", "get", endedID + ":3"},
			answer: &setpointv1.Optimization{OptimizationId: endedID, State: stateCompleted, FencingToken: 3, EndedAt: at("16:00:00"),
				ExpiresAt: at("16:01:00"), EndReason: "done\n", OptimizerId: "tuner", LateCount: 2,
				Checkpoint: &setpointv1.Checkpoint{OptimizationId: endedID, TrialNumber: 1, Data: []byte("x")}},
			request: &setpointv1.GetOptimizationRequest{SessionId: "default", OptimizationId: endedID},
			out: "state:      completed\n" +
				"reason:     done\\n\n" +
				"optimizer:  tuner\n" +
				"trials:     no trials, 2 late\n" +
				"checkpoint: 1 byte, of trial 1\n" +
				"ended:      2026-11-23 16:00:00\n" +
				"id:         " + endedID + "\n",
		},
		{
			args: []string{"opt", "list", "--state", "active", "--state", "WAITING", "--variable", "lr", "--limit", "7"},
			answer: &setpointv1.ListOptimizationsResponse{Optimizations: []*setpointv1.Optimization{
				{OptimizationId: waiterID, State: stateWaiting, QueuePosition: 2, OptimizerId: "late comer", Variables: []string{"lr"},
					RequestedAt: at("16:00:00"), Remaining: durationpb.New(time.Minute)},
				preempted(),
				{OptimizationId: endedID, State: stateCancelled, OptimizerId: "x", Variables: []string{"lr"}, EndReason: "waited for longer than max_wait",
					EndedAt: at("15:00:00")},
			}},
			request: &setpointv1.ListOptimizationsRequest{SessionId: "default", Variable: "lr", PageSize: 7,
				States: []setpointv1.OptimizationState{stateActive, stateWaiting}},
			out: "OPTIMIZATION                    STATE       REQUESTED            OPTIMIZER   VARIABLES     TRIALS  BEST                NOTE\n" +
				waiterID + "  waiting     2026-11-23 16:00:00  late comer  lr                 0  -                   place 2 in the queue\n" +
				tunerID + "  preempting  2026-11-23 15:40:00  tuner       lr, momentum      12  trial 7, loss=0.12  3s left, preempted by urgent (" + otherID + ")\n" +
				endedID + "  cancelled   -                    x           lr                 0  -                   waited for longer than max_wait\n",
		},
		{
			args: []string{"opt", "trials", tunerID},
			answer: &setpointv1.ListTrialsResponse{Trials: []*setpointv1.Trial{trial(1),
				{Number: 2, ReportedAt: at("16:00:01"), Metrics: map[string]float64{"loss": math.NaN()}, Note: "diverged\n", Late: true, Applied: true},
				{Number: 10, Best: true}}},
			request: &setpointv1.ListTrialsRequest{SessionId: "default", OptimizationId: tunerID, PageSize: 100},
			out: "TRIAL  REPORTED             MARK           METRICS                 VALUES   NOTE\n" +
				"    1  2026-11-23 16:00:00  -              accuracy=0.9, loss=0.3  lr=0.01  -\n" +
				"    2  2026-11-23 16:00:01  applied, late  loss=NaN                -        diverged\\n\n" +
				"   10  -                    best           -                       -        -\n",
		},
		{
			args:   []string{"opt", "trials", tunerLease, "--metric", "loss", "--direction", "minimize", "--limit", "1"},
			answer: &setpointv1.ListTrialsResponse{Trials: []*setpointv1.Trial{trial(1)}, NextPageToken: "more"},
			request: &setpointv1.ListTrialsRequest{SessionId: "default", OptimizationId: tunerID, Metric: "loss", PageSize: 1,
				Direction: setpointv1.Direction_DIRECTION_MINIMIZE},
			out: "TRIAL  REPORTED             MARK  METRICS                 VALUES   NOTE\n" +
				"    1  2026-11-23 16:00:00  -     accuracy=0.9, loss=0.3  lr=0.01  -\n",
		},
		{
			args: []string{"opt", "trials", tunerID, "--intermediate", "--limit", "0"},
			answer: &setpointv1.ListTrialsResponse{Trials: []*setpointv1.Trial{trial(1),
				{Number: 1, Step: proto.Int64(300), Metrics: map[string]float64{"loss": 1}}}},
			request: &setpointv1.ListTrialsRequest{SessionId: "default", OptimizationId: tunerID, IncludeIntermediate: true, PageSize: 1000},
			out: "TRIAL  STEP  REPORTED             MARK  METRICS                 VALUES   NOTE\n" +
				"    1     -  2026-11-23 16:00:00  -     accuracy=0.9, loss=0.3  lr=0.01  -\n" +
				"    1   300  -                    -     loss=1                  -        -\n",
		},
		{
			args:   []string{"var", "set", "lr", "0.1", "--lease", tunerLease},
			answer: &setpointv1.SetVariableResponse{VariableId: "var_a", Version: 1, Revision: 2},
			request: &setpointv1.SetVariableRequest{SessionId: "default", Variable: "lr", Value: sendJSON(structpb.NewNumberValue(0.1)),
				Lease: lease},
			out: "lr = 0.1  (version 1, revision 2)\n",
		},
		{
			args:    []string{"var", "delete", "lr", "--lease", tunerLease},
			answer:  &setpointv1.DeleteVariableResponse{Revision: 3},
			request: &setpointv1.DeleteVariableRequest{SessionId: "default", Variable: "lr", Lease: lease},
			out:     "deleted lr  (revision 3)\n",
		},
		{
			args:   []string{"var", "update", "lr", "--max", "1", "--clear-constraints", "--lease", tunerLease},
			answer: &setpointv1.Variable{Name: "lr", Version: 1, Revision: 2},
			request: &setpointv1.UpdateVariableRequest{SessionId: "default", Variable: "lr", Lease: lease,
				Constraints: &setpointv1.Constraints{Max: proto.Float64(1)}},
			out: "lr updated  (version 1, revision 2)\n",
		},
		{
			args:    []string{"history", "rollback", "lr", "1", "--lease", tunerLease},
			answer:  &setpointv1.Variable{Name: "lr", Version: 3, Revision: 9, Value: client.Float(0.5)},
			request: &setpointv1.RollbackVariableRequest{SessionId: "default", Variable: "lr", Version: 1, Lease: lease},
			out:     "lr = 0.5  (version 3, revision 9; the value of version 1)\n",
		},
		{
			args:   []string{"history", "rollback-session", "--revision", "6", "--lease", tunerLease, "--lease", otherID + ":18"},
			answer: &setpointv1.RollbackSessionResponse{TargetRevision: 6},
			request: &setpointv1.RollbackSessionRequest{SessionId: "default", To: &setpointv1.RollbackSessionRequest_Revision{Revision: 6},
				Leases: []*setpointv1.Lease{lease, {OptimizationId: otherID, FencingToken: 18}}},
			out: "restored 0 variables as of revision 6; unchanged since: 0\n",
		},
		{
			args: []string{"var", "get", "lr"},
			answer: &setpointv1.Variable{Name: "lr", Type: kindFloat, Value: client.Float(0.5), HistoryLimit: 50,
				Optimization: &setpointv1.VariableOptimization{OptimizationId: tunerID, OptimizerId: "tuner", StartedAt: at("15:48:00"), ExpiresAt: at("16:01:00")}},
			request: &setpointv1.GetVariableRequest{SessionId: "default", Variable: "lr"},
			out: "name:          lr\n" +
				"value:         0.5\n" +
				"type:          float\n" +
				"optimized by:  tuner (" + tunerID + ") since 2026-11-23 15:48:00, lease until 2026-11-23 16:01:00\n" +
				"version:       0\n" +
				"revision:      0\n" +
				"history limit: 50\n" +
				"created:       -\n" +
				"updated:       -\n",
		},
		{
			args: []string{"var", "list"},
			answer: &setpointv1.ListVariablesResponse{Variables: []*setpointv1.Variable{
				{Name: "lr", Type: kindFloat, Value: client.Float(0.5), Stale: &setpointv1.Stale{},
					Optimization: &setpointv1.VariableOptimization{OptimizerId: strings.Repeat("tuner", 20)}},
				{Name: "x", Type: kindFloat, Value: client.Float(0.5)}}},
			request: &setpointv1.ListVariablesRequest{SessionId: "default", PageSize: 1000},
			out: "NAME  TYPE                                                         VERSION  UPDATED  BY  VALUE\n" +
				"lr    float, stale, optimized by tunertunertunertunertunertunert…        0  -            0.5\n" +
				"x     float                                                              0  -            0.5\n",
		},
		{
			args: []string{"dep", "graph"},
			answer: &setpointv1.GetGraphResponse{Nodes: []*setpointv1.GraphNode{
				{Name: "lr", Type: kindFloat, Optimization: &setpointv1.VariableOptimization{OptimizerId: "tuner"}},
				{Name: "x", Type: kindFloat, Stale: &setpointv1.Stale{Revision: 3}, Optimization: &setpointv1.VariableOptimization{OptimizerId: "tuner"}}}},
			request: &setpointv1.GetGraphRequest{SessionId: "default", PageSize: 1000},
			out: "NAME  TYPE   VERSION  STATE                                       DEPENDS ON\n" +
				"lr    float        0  optimized by tuner                          -\n" +
				"x     float        0  stale since revision 3; optimized by tuner  -\n",
		},
		{
			args: []string{"history", "list", "--change", "lease_granted", "--change", "lease-ended"},
			answer: &setpointv1.ListHistoryResponse{Entries: []*setpointv1.HistoryEntry{
				{Revision: 9, Name: "lr", Change: setpointv1.HistoryChange_HISTORY_CHANGE_LEASE_ENDED, Reason: "not renewed", OptimizationId: tunerID},
				{Revision: 8, Name: "lr", Change: setpointv1.HistoryChange_HISTORY_CHANGE_SET, Version: proto.Int64(2), OptimizationId: tunerID,
					TrialNumber: proto.Int64(0), Value: client.Integer(4)},
			}},
			request: &setpointv1.ListHistoryRequest{SessionId: "default", PageSize: 100, Changes: []setpointv1.HistoryChange{
				setpointv1.HistoryChange_HISTORY_CHANGE_LEASE_GRANTED, setpointv1.HistoryChange_HISTORY_CHANGE_LEASE_ENDED}},
			out: "REVISION  TIME  NAME  CHANGE       VERSION  BY  REASON                                       METADATA  VALUE\n" +
				"       9  -     lr    lease_ended        -      not renewed; " + tunerID + "  -         -\n" +
				"       8  -     lr    set                2      " + tunerID + ", trial 0      -         4\n",
		},
		{
			args:    []string{"history", "get", "lr", "2"},
			answer:  &setpointv1.HistoryEntry{Revision: 8, Name: "lr", Version: proto.Int64(2), OptimizationId: tunerID, TrialNumber: proto.Int64(4)},
			request: &setpointv1.GetVariableVersionRequest{SessionId: "default", Variable: "lr", Version: 2},
			out: "name:         lr\n" +
				"version:      2\n" +
				"value:        -\n" +
				"change:       unspecified\n" +
				"optimization: " + tunerID + ", trial 4\n" +
				"time:         -\n" +
				"revision:     8\n",
		},
	}
	for _, tt := range tests {
		t.Run(strings.Join(tt.args, " "), func(t *testing.T) {
			t.Parallel()
			p := newPeer(t, always(tt.answer, nil))
			got := p.setpoint(t, tt.args...)
			if diff := cmp.Diff(result{out: tt.out}, got, cmp.AllowUnexported(result{})); diff != "" {
				t.Fatalf("result (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.request, p.last(t), protocmp.Transform(), cmpopts.EquateNaNs()); diff != "" {
				t.Errorf("request (-want +got):\n%s", diff)
			}
			checkJSON(t, p.setpoint(t, append(tt.args, "-o", "json")...), tt.answer)
		})
	}
}

// A list is no wider than the terminal, and says at least what is going on.
func TestOptimizationListOnATerminal(t *testing.T) {
	t.Parallel()
	waiting := &setpointv1.Optimization{OptimizationId: waiterID, State: stateWaiting, QueuePosition: 2, OptimizerId: "late comer",
		Variables: []string{"learning_rate", "momentum", "weight_decay"}, RequestedAt: at("16:00:00"), Remaining: durationpb.New(time.Minute)}
	best := tuning()
	best.BestTrial.Metrics["loss"] = 0.12345678901234567
	p := newPeer(t, always(&setpointv1.ListOptimizationsResponse{Optimizations: []*setpointv1.Optimization{waiting, preempted(), best}}, nil))
	for width, want := range map[int]string{
		60: "OPTIMIZATION                    STATE       VARIABLES\n" +
			waiterID + "  waiting     learning_rate, …\n" +
			tunerID + "  preempting  lr, momentum\n" +
			tunerID + "  active      lr, momentum\n",
		80: "OPTIMIZATION                    STATE       OPTIMIZER   VARIABLES    NOTE\n" +
			waiterID + "  waiting     late comer  learning_r…  place 2 in…\n" +
			tunerID + "  preempting  tuner       lr, moment…  3s left, p…\n" +
			tunerID + "  active      tuner       lr, moment…  48s left\n",
		150: "OPTIMIZATION                    STATE       REQUESTED            OPTIMIZER   VARIABLES             TRIALS  BEST                  NOTE\n" +
			waiterID + "  waiting     2026-11-23 16:00:00  late comer  learning_rate, mome…       0  -                     place 2 in the queue\n" +
			tunerID + "  preempting  2026-11-23 15:40:00  tuner       lr, momentum              12  trial 7, loss=0.12    3s left, preempted b…\n" +
			tunerID + "  active      2026-11-23 15:40:00  tuner       lr, momentum              12  trial 7, loss=0.123…  48s left\n",
	} {
		got := invocation{args: []string{"--addr", p.addr, "opt", "list"}, screen: screen{out: true, width: width}}.run(t)
		if diff := cmp.Diff(result{out: want}, got, cmp.AllowUnexported(result{})); diff != "" {
			t.Errorf("at %d (-want +got):\n%s", width, diff)
		}
		for line := range strings.Lines(got.out) {
			if utf8.RuneCountInString(line) > width+1 {
				t.Errorf("at %d: %q is too wide", width, line)
			}
		}
	}
}

func TestOptimizationStatus(t *testing.T) {
	t.Parallel()
	quiet := &setpointv1.Optimization{OptimizationId: tunerID, State: stateActive, OptimizerId: "tuner", Variables: []string{"lr"},
		StartedAt: at("16:00:00"), ExpiresAt: at("16:01:00")}
	stuck := &setpointv1.Optimization{OptimizationId: tunerID, State: stateActive, OptimizerId: "tuner", Variables: []string{"lr"},
		StartedAt: at("16:00:00"), ExpiresAt: at("16:00:40"), Remaining: durationpb.New(10 * time.Second),
		ProgressTimeout: durationpb.New(40 * time.Second)}
	tests := []struct {
		name   string
		answer *setpointv1.GetOptimizationStatusResponse
		want   string
	}{
		{"nobody", &setpointv1.GetOptimizationStatusResponse{}, "nobody optimizes lr\n"},
		{"nobody yet", &setpointv1.GetOptimizationStatusResponse{WaitingCount: 1}, "nobody optimizes lr; 1 waiter ('setpoint opt list --variable lr --state waiting' shows them)\n"},
		{"somebody", &setpointv1.GetOptimizationStatusResponse{Optimizing: true, WaitingCount: 2, Optimization: tuning()},
			"tuner optimizes lr, since 2026-11-23 15:48:00 (12m12s ago)\n\n" +
				"lease:       48s left, until 2026-11-23 16:01:00 unless it is renewed\n" +
				"queue:       2 waiters ('setpoint opt list --variable lr --state waiting' shows them)\n" +
				"variables:   lr, momentum\n" +
				"objective:   minimize loss\n" +
				"trials:      12 trials, 1 late\n" +
				"best:        trial 7, loss=0.12\n" +
				"best values: lr=0.01, momentum=0.9\n" +
				"last report: 2026-11-23 16:00:07 (5s ago); due every 10m\n" +
				"process:     host7:4711\n" +
				"started by:  user:ada\n" +
				"id:          " + tunerID + "\n"},
		{"somebody on the way out", &setpointv1.GetOptimizationStatusResponse{Optimizing: true, WaitingCount: 1, Optimization: preempted()},
			"tuner optimizes lr, since 2026-11-23 15:48:00 (12m12s ago)\n\n" +
				"lease:       3s left, until 2026-11-23 16:00:15\n" +
				"preempted:   by urgent (" + otherID + ") at 2026-11-23 16:00:15 (in 3s)\n" +
				"queue:       1 waiter ('setpoint opt list --variable lr --state waiting' shows them)\n" +
				"variables:   lr, momentum\n" +
				"objective:   minimize loss\n" +
				"trials:      12 trials, 1 late\n" +
				"best:        trial 7, loss=0.12\n" +
				"best values: lr=0.01, momentum=0.9\n" +
				"last report: 2026-11-23 16:00:07 (5s ago); due every 10m\n" +
				"process:     host7:4711\n" +
				"started by:  user:ada\n" +
				"id:          " + tunerID + "\n"},
		{"somebody who renews but reports nothing", &setpointv1.GetOptimizationStatusResponse{Optimizing: true, Optimization: stuck},
			"tuner optimizes lr, since 2026-11-23 16:00:00 (30s ago)\n\n" +
				"lease:       10s left, until 2026-11-23 16:00:40 unless something is reported\n" +
				"queue:       nobody waits for it\n" +
				"variables:   lr\n" +
				"trials:      no trials\n" +
				"last report: none yet; due every 40s\n" +
				"id:          " + tunerID + "\n"},
		{"somebody of whom little is known", &setpointv1.GetOptimizationStatusResponse{Optimizing: true, Optimization: quiet},
			"tuner optimizes lr, since 2026-11-23 16:00:00\n\n" +
				"lease:       until 2026-11-23 16:01:00 unless it is renewed\n" +
				"queue:       nobody waits for it\n" +
				"variables:   lr\n" +
				"trials:      no trials\n" +
				"last report: none yet\n" +
				"id:          " + tunerID + "\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := newPeer(t, always(tt.answer, nil))
			if diff := cmp.Diff(result{out: tt.want}, p.setpoint(t, "opt", "status", "lr"), cmp.AllowUnexported(result{})); diff != "" {
				t.Errorf("result (-want +got):\n%s", diff)
			}
			want := &setpointv1.GetOptimizationStatusRequest{SessionId: "default", Variable: "lr"}
			if diff := cmp.Diff(want, p.last(t), protocmp.Transform()); diff != "" {
				t.Errorf("request (-want +got):\n%s", diff)
			}
			checkJSON(t, p.setpoint(t, "opt", "status", "lr", "-o", "json"), tt.answer)
		})
	}
}

// What a holder ought to know stands on standard error, whatever the format, and the command succeeds.
func TestNotesToTheHolder(t *testing.T) {
	t.Parallel()
	const taken = "note: the optimization is being preempted by urgent (" + otherID + "), and may write until 2026-11-23 16:00:15\n"
	left := durationpb.New(3 * time.Second)
	late, applied, step := trial(9), trial(9), trial(9)
	late.Late, applied.Applied, step.Step = true, true, proto.Int64(4)
	brief := preempted()
	brief.ExpiresAt, brief.Remaining = at("16:00:13"), durationpb.New(time.Second)
	file := filepath.Join(t.TempDir(), "state.bin")
	if err := os.WriteFile(file, []byte("state"), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		args   []string
		answer proto.Message
		want   result
	}{
		{[]string{"opt", "renew", tunerLease}, preempted(), result{err: taken, out: tunerID + " still holds  (preempting, 3s left)\n"}},
		{[]string{"opt", "renew", tunerLease}, brief, result{err: taken, out: tunerID + " still holds  (preempting, 1s left unless it is renewed)\n"}},
		{[]string{"opt", "report", tunerLease, "--metric", "loss=0.3"},
			&setpointv1.ReportProgressResponse{Trial: trial(9), ExpiresAt: at("16:00:15"), Preemption: preempted().GetPreemption(), Remaining: left},
			result{err: taken, out: "trial 9: accuracy=0.9, loss=0.3  (the lease holds until 2026-11-23 16:00:15)\n"}},
		{[]string{"opt", "report", tunerLease, "--metric", "loss=0.3"},
			&setpointv1.ReportProgressResponse{Trial: late, Late: true, ExpiresAt: at("15:59:00")},
			result{err: "note: the report is late: the lease was over at 2026-11-23 15:59:00; it is kept, but does not count, and nothing was set\n",
				out: "trial 9: accuracy=0.9, loss=0.3  (late)\n"}},
		{[]string{"opt", "report", tunerLease, "--metric", "loss=0.3", "--checkpoint", "@" + file},
			&setpointv1.ReportProgressResponse{Trial: late, Late: true, ExpiresAt: at("15:59:00")},
			result{err: "note: the report is late: the lease was over at 2026-11-23 15:59:00; it is kept, but does not count, and nothing was set, " +
				"and its checkpoint is not kept\n", out: "trial 9: accuracy=0.9, loss=0.3  (late)\n"}},
		{[]string{"opt", "report", tunerLease, "--metric", "loss=0.3", "--number", "9"},
			&setpointv1.ReportProgressResponse{Trial: applied, Repeated: true, IsBest: true, ExpiresAt: at("16:00:15"), Remaining: left},
			result{err: "note: trial 9 was reported before; nothing was recorded or set\n",
				out: "trial 9: accuracy=0.9, loss=0.3  (the best so far; its values were set then; the lease holds until 2026-11-23 16:00:15)\n"}},
		{[]string{"opt", "report", tunerLease, "--metric", "loss=0.3", "--number", "9", "--step", "4"},
			&setpointv1.ReportProgressResponse{Trial: step, Repeated: true, ExpiresAt: at("15:59:00")},
			result{err: "note: trial 9, step 4 was reported before; nothing was recorded or set\n",
				out: "trial 9, step 4: accuracy=0.9, loss=0.3  (the lease was over at 2026-11-23 15:59:00)\n"}},
		{[]string{"opt", "report", tunerLease, "--metric", "loss=0.3", "--number", "9"},
			&setpointv1.ReportProgressResponse{Trial: late, Late: true, Repeated: true, ExpiresAt: at("15:59:00")},
			result{err: "note: trial 9 was reported before; nothing was recorded or set\n",
				out: "trial 9: accuracy=0.9, loss=0.3  (late; the lease was over at 2026-11-23 15:59:00)\n"}},
	}
	for _, tt := range tests {
		p := newPeer(t, always(tt.answer, nil))
		if diff := cmp.Diff(tt.want, p.setpoint(t, tt.args...), cmp.AllowUnexported(result{})); diff != "" {
			t.Errorf("%q (-want +got):\n%s", tt.args, diff)
		}
		asJSON := p.setpoint(t, append(tt.args, "-o", "json")...)
		if asJSON.err != tt.want.err {
			t.Errorf("%q -o json: said %q, want %q", tt.args, asJSON.err, tt.want.err)
		}
		asJSON.err = ""
		checkJSON(t, asJSON, tt.answer)
	}
}

func TestCheckpointToAFile(t *testing.T) {
	t.Parallel()
	p := newPeer(t, always(tuning(), nil))
	path := filepath.Join(t.TempDir(), "state.bin")
	got := p.setpoint(t, "opt", "get", tunerID, "--checkpoint", path)
	if data, err := os.ReadFile(path); err != nil || string(data) != "where I was" || got.status != 0 {
		t.Errorf("wrote %q, %v: %+v", data, err, got)
	}
	if got := p.setpoint(t, "opt", "get", tunerID, "--checkpoint", filepath.Join(path, "below")); got.status != 1 || got.out != "" {
		t.Errorf("where no file can be: %+v", got)
	}
	none := newPeer(t, always(&setpointv1.Optimization{OptimizationId: tunerID}, nil))
	want := result{status: 1, err: "error: NO_CHECKPOINT: " + tunerID + " has no checkpoint\n"}
	if diff := cmp.Diff(want, none.setpoint(t, "opt", "get", tunerID, "--checkpoint", path), cmp.AllowUnexported(result{})); diff != "" {
		t.Errorf("none (-want +got):\n%s", diff)
	}
}

func TestReportReadsStandardInput(t *testing.T) {
	t.Parallel()
	p := newPeer(t, always(&setpointv1.ReportProgressResponse{Trial: trial(1)}, nil))
	args := []string{"--addr", p.addr, "opt", "report", tunerLease}
	if got := (invocation{args: append(args, "--checkpoint", "-"), stdin: "\xffstate"}).run(t); got.status != 0 {
		t.Errorf("a checkpoint: %+v", got)
	}
	if data := p.last(t).(*setpointv1.ReportProgressRequest).GetCheckpoint(); string(data) != "\xffstate" {
		t.Errorf("the checkpoint is %q", data)
	}
	if got := (invocation{args: append(args, "lr=-"), stdin: "0.5\n"}).run(t); got.status != 0 {
		t.Errorf("a value: %+v", got)
	}
	if v := p.last(t).(*setpointv1.ReportProgressRequest).GetValues()["lr"].GetJson().GetNumberValue(); v != 0.5 {
		t.Errorf("the value is %v", v)
	}
}

func TestRefusedOptimizations(t *testing.T) {
	t.Parallel()
	tests := []struct{ args, reason, want string }{
		{"opt start lr", "ALREADY_OPTIMIZING", "error: ALREADY_OPTIMIZING: so not\n"},
		{"opt start lr --conflict wait", "ALREADY_OPTIMIZING", "error: ALREADY_OPTIMIZING: so not\n"},
		{"var set lr 1", "ALREADY_OPTIMIZING", "error: ALREADY_OPTIMIZING: so not\n"},
		{"var set lr 1 --lease " + tunerLease, "LEASE_LOST", "error: LEASE_LOST: so not\n"},
		{"opt renew " + tunerLease, "LEASE_LOST", "error: LEASE_LOST: so not\n"},
		{"opt renew " + tunerID, "LEASE_LOST", "error: LEASE_LOST: so not (an optimization that has its lease is renewed as OPT:TOKEN)\n"},
		{"opt renew " + tunerLease, "OPTIMIZATION_ENDED", "error: OPTIMIZATION_ENDED: so not\n"},
		{"opt get " + tunerID, "OPTIMIZATION_NOT_FOUND", "error: OPTIMIZATION_NOT_FOUND: so not\n"},
		{"opt stop " + tunerID, "ACCESS_DENIED", "error: ACCESS_DENIED: so not\n"},
		{"opt list --variable lr", "VARIABLE_NOT_FOUND", "error: VARIABLE_NOT_FOUND: so not\n"},
		{"opt trials " + tunerID, "OPTIMIZATION_NOT_FOUND", "error: OPTIMIZATION_NOT_FOUND: so not\n"},
		{"opt status lr", "VARIABLE_NOT_FOUND", "error: VARIABLE_NOT_FOUND: so not\n"},
		{"opt report " + tunerLease + " lr=1 --apply", "CONSTRAINT_VIOLATION", "error: CONSTRAINT_VIOLATION: so not\n"},
	}
	for _, tt := range tests {
		p := newPeer(t, always(nil, refusal(t, codes.FailedPrecondition, tt.reason, "so not")))
		if diff := cmp.Diff(result{status: 1, err: tt.want}, p.setpoint(t, strings.Fields(tt.args)...), cmp.AllowUnexported(result{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.args, diff)
		}
	}
}

// The time until which somebody has a variable is shown as all others are, whatever the server writes in its message.
func TestRefusalsHaveLocalTimes(t *testing.T) {
	t.Parallel()
	const until = "2026-11-23T16:01:00.250001Z"
	for message, want := range map[string]string{
		"lr is tuner's until " + until + " unless it is renewed": "lr is tuner's until 2026-11-23 18:01:00 unless it is renewed",
		"lr is tuner's": "lr is tuner's",
	} {
		call := &client.Error{Reason: setpointv1.ErrorReason_ALREADY_OPTIMIZING, Message: message, Metadata: map[string]string{"expires_at": until}}
		c := &cli{zone: time.FixedZone("two hours ahead", 2*60*60)}
		if _, got := c.describe(fmt.Errorf("start: %w", call)); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		call.Metadata = map[string]string{"expires_at": "soon"}
		if _, got := c.describe(call); got != message {
			t.Errorf("of a time that is none: got %q", got)
		}
	}
}

// Every field of a request about optimizations can be given on the command line, and every write takes a LEASE.
func TestEveryRequestFieldHasAFlag(t *testing.T) {
	t.Parallel()
	// What is an argument, a global flag, a part of another flag, or the listing's own.
	other := map[string]bool{"session_id": true, "variables": true, "optimization_id": true, "fencing_token": true, "values": true,
		"page_size": true, "page_token": true}
	renamed := map[string]string{"optimizer_id": "optimizer", "optimizer_process": "process", "metrics": "metric", "states": "state",
		"include_intermediate": "intermediate", "leases": "lease"}
	for path, request := range map[string]proto.Message{
		"opt start": &setpointv1.StartOptimizationRequest{}, "opt report": &setpointv1.ReportProgressRequest{},
		"opt stop": &setpointv1.StopOptimizationRequest{}, "opt list": &setpointv1.ListOptimizationsRequest{},
		"opt trials": &setpointv1.ListTrialsRequest{}, "opt renew": &setpointv1.RenewOptimizationRequest{},
		"opt get": &setpointv1.GetOptimizationRequest{},
	} {
		cmd, _, err := newRootCommand(&cli{}).Find(strings.Fields(path))
		if err != nil {
			t.Fatal(err)
		}
		fields := request.ProtoReflect().Descriptor().Fields()
		for i := range fields.Len() {
			name := string(fields.Get(i).Name())
			flag := strings.ReplaceAll(name, "_", "-")
			if renamed[name] != "" {
				flag = renamed[name]
			}
			if !other[name] && cmd.Flags().Lookup(flag) == nil {
				t.Errorf("'%s' has no flag for %s", path, name)
			}
		}
	}
	for _, path := range []string{"var set", "var update", "var delete", "history rollback", "history rollback-session"} {
		cmd, _, err := newRootCommand(&cli{}).Find(strings.Fields(path))
		if err != nil || cmd.Flags().Lookup("lease") == nil {
			t.Errorf("'%s' has no --lease: %v", path, err)
		}
	}
}

func TestOptimizedVariablesInPictures(t *testing.T) {
	t.Parallel()
	optimized := &setpointv1.VariableOptimization{OptimizerId: `tuner "7"`}
	nodes := []*setpointv1.GraphNode{
		{Name: "lr", Type: kindFloat, Optimization: optimized},
		{Name: "old", Type: kindFloat, DependsOn: []string{"lr"}, Optimization: optimized, Stale: &setpointv1.Stale{Revision: 3}},
	}
	dot := draw(t, writeDot, nodes)
	for _, want := range []string{
		`"lr" [label="lr\nfloat, version 0\noptimized by tuner \"7\"", `, `color="#2e7d32"`,
		`"old" [label="old\nfloat, version 0\noptimized by tuner \"7\"\nstale since revision 3", `,
		`optimized: only who optimizes it may change it\l`,
	} {
		if !strings.Contains(dot, want) {
			t.Errorf("no %s in\n%s", want, dot)
		}
	}
	svg := draw(t, writeSVG, nodes)
	svgElements(t, svg)
	for _, want := range []string{"optimized by tuner &#34;7&#34;", "optimized: only who optimizes it may change it", "#e8f5e9"} {
		if !strings.Contains(strings.ReplaceAll(svg, "&quot;", "&#34;"), want) {
			t.Errorf("no %s in\n%s", want, svg)
		}
	}
	if plain := draw(t, writeDot, exampleGraph()); strings.Contains(plain, "optimized") {
		t.Errorf("nobody optimizes in\n%s", plain)
	}
}

// What the commands do to a real session.
func TestOptimizationsOnAServer(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.session("s")
	checkpoint := filepath.Join(t.TempDir(), "state.bin")
	said := map[string]string{} // what later lines say of earlier ones
	steps := []struct {
		line   string // its words are separated by |
		status int
		want   string // a pattern that the whole output has, what is said on standard error before it
	}{
		{"var|register|lr|float|0.5|--max|1", 0, `^lr = 0.5 `},
		{"var|register|momentum|float|0.9", 0, `^momentum = 0.9 `},
		{"var|register|report|string|none|--depends-on|lr", 0, `^report = `},
		{"opt|status|lr", 0, `^nobody optimizes lr\n$`},
		{"opt|start|lr|momentum|--optimizer|tuner|--ttl|10m|--objective|loss|--direction|minimize|--config|{\"seed\": 4}", 0,
			`(?s)^lease: +(?P<LEASE>(?P<ID>opt_[a-z0-9]{26}):\d+)\nstate: +active, .* left\nvariables: +lr, momentum\noptimizer: +tuner\n` +
				`process: +\S+:\d+\nobjective: +minimize loss\n.*config: +\{"seed":4\}\n`},
		{"opt|start|lr|--optimizer|late", 1, `^error: ALREADY_OPTIMIZING: .*tuner .*until \d{4}-\d\d-\d\d \d\d:\d\d:\d\d\b[^.Z]*\n$`},
		{"var|set|lr|0.6", 1, `^error: ALREADY_OPTIMIZING: .*tuner`},
		{"var|set|lr|0.6|--lease|$LEASE", 0, `^lr = 0.6  \(version 1, revision \d+\)\n`},
		{"var|set|lr|0.6|--lease|$ID:1000000", 1, `^error: LEASE_LOST: `},
		{"var|update|lr|--max|2", 1, `^error: ALREADY_OPTIMIZING: `},
		{"var|update|lr|--max|2|--lease|$LEASE", 0, `^lr updated `},
		{"var|delete|lr|--cascade", 1, `^error: ALREADY_OPTIMIZING: `},
		{"history|rollback|lr|0", 1, `^error: ALREADY_OPTIMIZING: `},
		{"history|rollback|lr|0|--lease|$LEASE", 0, `^lr = 0.5 `},
		{"history|rollback-session|--revision|6", 1, `^error: ALREADY_OPTIMIZING: `},
		{"history|rollback-session|--revision|6|--lease|$LEASE", 0, `(?s)restored \d variable`},
		{"var|get|lr", 0, `\noptimized by: +tuner \($ID\) since .*, lease until .*\n`},
		{"var|list|lr", 0, `\nlr +float, optimized by tuner `},
		{"dep|graph", 0, `\nlr .* optimized by tuner +-\n`},
		{"opt|renew|$LEASE", 0, `^renewed $ID  \(active, (10m|9m5\ds) left, until .*\)\n$`},
		{"opt|renew|$ID", 1, `^error: LEASE_LOST: .* \(an optimization that has its lease is renewed as OPT:TOKEN\)\n$`},
		{"opt|report|$LEASE|lr=0.1|--metric|loss=0.3|--metric|accuracy=0.7", 0, `^trial 1: accuracy=0.7, loss=0.3  \(the best so far; the lease holds until .*\)\n$`},
		{"opt|report|$LEASE|lr=0.2|--metric|loss=NaN|--note|diverged", 0, `^trial 2: loss=NaN  \(the lease holds until .*\)\n$`},
		{"opt|report|$LEASE|--number|3|--step|10|--metric|loss=0.1", 0, `^trial 3, step 10: loss=0.1  \(the lease`},
		{"var|set|report|written", 0, `^report = `},
		{"opt|report|$LEASE|lr=0.3|--metric|loss=0.2|--number|3|--apply|--checkpoint|-", 0, `(?s)^trial 3: loss=0.2  \(the best so far; its values are set; .*\n\nSTALE\nreport\n$`},
		{"opt|report|$LEASE|lr=0.9|--metric|loss=0.1|--number|3", 0, `^note: trial 3 was reported before; nothing was recorded or set\ntrial 3: loss=0.2  \(the best so far; its values were set then; the lease holds until .*\)\n$`},
		{"opt|report|$LEASE|lr=9|--metric|loss=0.1|--apply", 1, `^error: CONSTRAINT_VIOLATION: `},
		{"opt|report|$ID:1000000|--metric|loss=0.1", 1, `^error: LEASE_LOST: `},
		{"opt|trials|$ID", 0, `(?s)^TRIAL .*\n +1 .*\n +2 .* loss=NaN .* diverged\n +3 .* best, applied +loss=0.2 +lr=0.3 +-\n$`},
		{"opt|trials|$ID|--metric|loss|--limit|1", 0, `(?s)^TRIAL [^\n]*\n +3 .*lr=0.3 +-\n$`},
		{"opt|trials|$LEASE|--intermediate", 0, `(?s)\n +3 +10 .*loss=0.1 `},
		{"opt|get|$ID|--checkpoint|" + checkpoint, 0, `\ncheckpoint: +5 bytes, of trial 3\n`},
		{"opt|status|momentum", 0, `(?s)^tuner optimizes momentum, since .* ago\)\n\nlease: +(10m|9m5\ds) left, until .*\nqueue: +nobody waits for it\n` +
			`variables: +lr, momentum\n.*trials: +3 trials\nbest: +trial 3, loss=0.2\nbest values: lr=0.3\nlast report: .* ago\)\n`},
		{"history|list|lr|--limit|1", 0, `; $ID, trial 3 |  $ID, trial 3 `},
		{"history|list|lr|--change|lease_granted", 0, `lease_granted`},
		{"opt|list|--state|active|--variable|lr", 0, `\n$ID +active .* tuner +lr, momentum +3 +trial 3, loss=0.2 +(10m|9m5\ds) left\n$`},
		{"--as|user:eve|opt|stop|$ID", 1, `^error: SESSION_NOT_FOUND: `},
		{"acl|allow|user:eve|read", 0, ` allows user:eve read on all of session s `},
		{"--as|user:eve|opt|stop|$ID", 1, `^error: ACCESS_DENIED: `},
		{"opt|stop|$ID:1000000", 1, `^error: LEASE_LOST: `},
		{"opt|stop|$LEASE|--apply-best|--reason|good enough", 0, `(?s)^$ID is completed  \(3 trials; the best: trial 3, loss=0.2; its values are set\)\n` +
			`\nVARIABLE +VALUE\nlr +0.3\nmomentum +0.9\n`},
		{"opt|stop|$LEASE", 1, `^error: OPTIMIZATION_ENDED: `},
		{"opt|renew|$LEASE", 1, `^error: OPTIMIZATION_ENDED: `},
		{"opt|report|$LEASE|--metric|loss=0.1", 0, `(?s)^note: the report is late: the lease was over at .*nothing was set\ntrial 4: loss=0.1  \(late\)\n$`},
		{"opt|report|$LEASE|--number|1|--metric|loss=0.1", 0, `^note: trial 1 was reported before; nothing was recorded or set\ntrial 1: accuracy=0.7, loss=0.3  \(the lease was over at .*\)\n$`},
		{"opt|report|$LEASE|--metric|loss=0.1|--checkpoint|-", 0, `and its checkpoint is not kept\ntrial 5: loss=0.1  \(late\)\n$`},
		{"var|set|lr|0.7|--lease|$LEASE", 1, `^error: LEASE_LOST: `},
		{"var|set|lr|0.7", 0, `^lr = 0.7 `},
		{"opt|get|$LEASE", 0, `(?s)^state: +completed\nreason: +good enough\n.*trials: +3 trials, 2 late\n.*\nended: `},
		{"opt|start|lr|--optimizer|next", 0, `(?s)^lease: +(?P<LEASE>(?P<ID>opt_[a-z0-9]{26}):\d+)\n.*checkpoint: +5 bytes, of trial 3 of opt_`},
		{"--as|user:eve|opt|get|$ID", 0, `(?s)^state: +active`},
		{"opt|stop|$ID|--force|--reason|why", 0, `^$ID is cancelled  \(no trials\)\n`},
		{"opt|get|opt_aaaaaaaaaaaaaaaaaaaaaaaaaa", 1, `^error: OPTIMIZATION_NOT_FOUND: `},
		{"opt|status|nobody", 1, `^error: VARIABLE_NOT_FOUND: `},
		{"opt|start|lr|nobody", 1, `^error: VARIABLE_NOT_FOUND: `},
		{"opt|start|lr|lr", 1, `^error: INVALID_REQUEST: `},
		{"opt|start|lr|--ttl|1ms", 1, `^error: INVALID_REQUEST: `},
	}
	for _, step := range steps {
		fill := strings.NewReplacer("$LEASE", said["LEASE"], "$ID", said["ID"]).Replace
		args := append([]string{"--addr", h.addr, "--session", "s"}, strings.Split(fill(step.line), "|")...)
		got := invocation{args: args, stdin: "bytes"}.run(t)
		pattern := regexp.MustCompile(fill(step.want))
		found := pattern.FindStringSubmatch(got.err + got.out)
		if got.status != step.status || found == nil {
			t.Errorf("%s: got %d %s\n%s\nwant %d %s", fill(step.line), got.status, got.err, got.out, step.status, pattern)
			continue
		}
		for i, name := range pattern.SubexpNames() {
			if name != "" {
				said[name] = found[i]
			}
		}
	}
	if data, err := os.ReadFile(checkpoint); err != nil || string(data) != "bytes" {
		t.Errorf("the checkpoint is %q: %v", data, err)
	}
}

// Two command lines want one variable: the second waits until the first has stopped; a third is interrupted.
func TestQueueOnAServer(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.session("s", &setpointv1.VariableRegistration{Name: "lr", Type: kindFloat, Value: client.Float(0.5)})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	line := []string{"--addr", h.addr, "--session", "s", "opt", "start", "lr", "--optimizer"}
	// wait starts a command line, and returns when it has said at which place it is.
	wait := func(ctx context.Context, name, place string) <-chan result {
		ended, said := make(chan result, 1), newEar(place)
		go func() {
			ended <- invocation{args: append(line[:len(line):len(line)], name, "--conflict", "wait"), watch: said}.runIn(ctx)
		}()
		select {
		case <-said.heard:
		case got := <-ended:
			t.Fatalf("%s: %+v", name, got)
		}
		return ended
	}
	first := invocation{args: append(line, "first", "-o", "json")}.runIn(ctx)
	holder := &setpointv1.Optimization{}
	if err := protojson.Unmarshal([]byte(first.out), holder); err != nil {
		t.Fatalf("first: %v: %+v", err, first)
	}
	second := wait(ctx, "second", "place 1 in the queue\n")
	impatient, interrupt := context.WithCancel(ctx)
	defer interrupt()
	third := wait(impatient, "third", "place 2 in the queue\n")
	interrupt()
	if got := <-third; got.status != 1 || !strings.Contains(got.err, "\nerror: CANCELLED: interrupted; opt_") {
		t.Errorf("third: %+v", got)
	}
	if got := h.setpoint("--session", "s", "opt", "list", "--state", "cancelled"); !strings.Contains(got, " third ") || !strings.Contains(got, "interrupted") {
		t.Errorf("cancelled:\n%s", got)
	}
	if got := h.setpoint("--session", "s", "opt", "status", "lr"); !strings.Contains(got, "\nqueue: ") || !strings.Contains(got, " 1 waiter (") {
		t.Errorf("while the second waits:\n%s", got)
	}
	h.setpoint("--session", "s", "opt", "stop", leaseText(holder))
	if got := <-second; got.status != 0 || got.err != "waiting for lr: place 1 in the queue\n" || !strings.HasPrefix(got.out, "lease: ") {
		t.Errorf("second: %+v", got)
	}
}

// A lease is not a part of what is exported, and an import does not write over what somebody optimizes.
func TestTransferOfOptimizedVariables(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.session("s", &setpointv1.VariableRegistration{Name: "lr", Type: kindFloat, Value: client.Float(0.5)})
	before := h.export("s")
	h.setpoint("--session", "s", "opt", "start", "lr", "--optimizer", "tuner")
	after := h.export("s")
	if diff := cmp.Diff(before[1], after[1]); diff != "" {
		t.Errorf("the variable's line (-before +under a lease):\n%s", diff)
	}
	changed := h.file(before[0], strings.Replace(before[1], "0.5", "0.7", 1), before[2])
	got := invocation{args: []string{"--addr", h.addr, "session", "import", "s", changed, "--merge", "replace"}}.run(t)
	if got.status != 1 || !strings.HasPrefix(got.err, "error: ALREADY_OPTIMIZING: ") {
		t.Errorf("import: %+v", got)
	}
	h.setpoint("session", "import", "s", h.file(before...), "--merge", "replace")
}

func TestRoughly(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 0: "0s", time.Millisecond: "100ms", 1240 * time.Millisecond: "1.2s", 3 * time.Second: "3s",
		47600 * time.Millisecond: "48s", time.Minute: "1m", 61 * time.Second: "1m1s", 2*time.Hour + 29*time.Second: "2h",
		2*time.Hour + 31*time.Minute: "2h31m", 72 * time.Hour: "72h",
	} {
		if got := roughly(d); got != want {
			t.Errorf("%s is roughly %s, want %s", d, got, want)
		}
	}
}
