package service

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/setpointdb/setpoint/db/dbgen"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/identity"
	"github.com/setpointdb/setpoint/internal/value"
)

// The states of optimizations, as the database names them.
var stateNames = map[setpointv1.OptimizationState]string{
	setpointv1.OptimizationState_OPTIMIZATION_STATE_WAITING:    "waiting",
	setpointv1.OptimizationState_OPTIMIZATION_STATE_ACTIVE:     "active",
	setpointv1.OptimizationState_OPTIMIZATION_STATE_PREEMPTING: "preempting",
	setpointv1.OptimizationState_OPTIMIZATION_STATE_COMPLETED:  "completed",
	setpointv1.OptimizationState_OPTIMIZATION_STATE_FAILED:     "failed",
	setpointv1.OptimizationState_OPTIMIZATION_STATE_CANCELLED:  "cancelled",
	setpointv1.OptimizationState_OPTIMIZATION_STATE_EXPIRED:    "expired",
	setpointv1.OptimizationState_OPTIMIZATION_STATE_PREEMPTED:  "preempted",
}

var statesByName = inverted(stateNames)

// The strategies, as the database names them.
var conflictNames = map[setpointv1.ConflictStrategy]string{
	setpointv1.ConflictStrategy_CONFLICT_STRATEGY_ABORT:   "abort",
	setpointv1.ConflictStrategy_CONFLICT_STRATEGY_WAIT:    "wait",
	setpointv1.ConflictStrategy_CONFLICT_STRATEGY_PREEMPT: "preempt",
}

var conflictsByName = inverted(conflictNames)

func inverted[K comparable](names map[K]string) map[string]K {
	m := make(map[string]K, len(names))
	for k, name := range names {
		m[name] = k
	}
	return m
}

const stateWaiting = "waiting"

// isHolding tells of the states in which an optimization has the lease.
func isHolding(state string) bool { return state == "active" || state == "preempting" }

func isOpen(state string) bool { return state == stateWaiting || isHolding(state) }

// optimizationRow is the one shape of the rows that the queries for optimizations return.
type optimizationRow dbgen.OptimizationGetRow

// proto is the optimization as the principal may see it.
func (r optimizationRow) proto(sessionID, principal string) (*setpointv1.Optimization, error) {
	o := &setpointv1.Optimization{
		OptimizationId: r.OptimizationID, SessionId: sessionID, State: statesByName[r.State], OptimizerId: r.OptimizerID,
		OptimizerProcess: r.OptimizerProcess, Variables: r.Variables, StartedAt: timestamp(r.StartedAt),
		ExpiresAt: timestamp(r.ExpiresAt), QueuePosition: r.QueuePosition, TrialCount: r.TrialCount, LateCount: r.LateCount,
		LastReportAt: timestamp(r.LastReportAt), EndedAt: timestamp(r.EndedAt), EndReason: r.EndReason,
		RequestedAt: timestamp(r.RequestedAt), StartedBy: r.StartedBy, Conflict: conflictsByName[r.Conflict], Priority: r.Priority,
		Ttl: durationpb.New(microseconds(r.TTLMicros)), Preemption: r.preemption(), Objective: r.objective(),
	}
	if r.StartedBy == principal && r.Access&int32(identity.Optimize) != 0 {
		o.FencingToken = r.FencingToken
	}
	if r.ProgressUs != nil {
		o.ProgressTimeout = durationpb.New(microseconds(*r.ProgressUs))
	}
	if isOpen(r.State) {
		o.Remaining = durationpb.New(r.ExpiresAt.Time.Sub(r.ReadAt.Time))
	}
	if r.Config != nil {
		o.Config = &structpb.Struct{}
		if err := protojson.Unmarshal(r.Config, o.Config); err != nil {
			return nil, fmt.Errorf("optimization %s: %w", r.OptimizationID, err)
		}
	}
	if r.BestNumber != nil {
		best, err := trialRow{
			Number: *r.BestNumber, Step: noStep, Vals: r.BestVals, Payloads: r.BestPayloads, Metrics: r.BestMetrics,
			Note: orNone(r.BestNote), Applied: r.BestApplied != nil && *r.BestApplied, ReportedAt: r.BestReportedAt,
		}.proto(r.BestNumber)
		if err != nil {
			return nil, fmt.Errorf("optimization %s: %w", r.OptimizationID, err)
		}
		o.BestTrial = best
	}
	if r.CheckpointID != nil {
		o.Checkpoint = &setpointv1.Checkpoint{
			OptimizationId: *r.CheckpointID, Data: r.Checkpoint, ReportedAt: timestamp(r.CheckpointAt),
		}
		if r.CheckpointNumber != nil {
			o.Checkpoint.TrialNumber = *r.CheckpointNumber
		}
	}
	return o, nil
}

func (r optimizationRow) preemption() *setpointv1.Preemption {
	if r.State != "preempting" {
		return nil
	}
	return &setpointv1.Preemption{
		By: orNone(r.PreemptedBy), OptimizerId: orNone(r.PreemptingOptimizerID), Deadline: timestamp(r.PreemptUntil),
	}
}

func (r optimizationRow) objective() *setpointv1.Objective {
	if r.ObjectiveMetric == nil {
		return nil
	}
	objective := &setpointv1.Objective{Metric: *r.ObjectiveMetric, Direction: setpointv1.Direction_DIRECTION_MAXIMIZE}
	if r.Minimizes {
		objective.Direction = setpointv1.Direction_DIRECTION_MINIMIZE
	}
	return objective
}

// noStep stands for a trial's result, as opposed to an intermediate report.
const noStep = -1

// trialRow is the one shape of the rows that the queries for trials return.
type trialRow dbgen.TrialGetRow

// proto is the trial; best is the number of the best one.
func (r trialRow) proto(best *int64) (*setpointv1.Trial, error) {
	t := &setpointv1.Trial{
		Number: r.Number, Note: r.Note, ReportedAt: timestamp(r.ReportedAt), Applied: r.Applied, Late: r.Late,
		Best: r.Step == noStep && !r.Late && best != nil && *best == r.Number,
	}
	if r.Step != noStep {
		t.Step = &r.Step
	}
	var err error
	if t.Values, err = trialValues(r.Vals, r.Payloads); err != nil {
		return nil, fmt.Errorf("trial %d: %w", r.Number, err)
	}
	if t.Metrics, err = metricsOf(r.Metrics); err != nil {
		return nil, fmt.Errorf("trial %d: %w", r.Number, err)
	}
	return t, nil
}

// trialValue is a value in a trial: its form in the table of variables, with the type.
type trialValue struct {
	Type  string          `json:"type"`
	Value json.RawMessage `json:"value"`
}

// encodeTrialValues lays the values of a trial out: as JSON for those who query, and, of those whose bytes are not in that, as
// a message.
func encodeTrialValues(values map[string]reportedValue) ([]byte, []byte, error) {
	plain := make(map[string]trialValue, len(values))
	bytes := &setpointv1.Trial{Values: map[string]*setpointv1.Value{}}
	for name, v := range values {
		plain[name] = trialValue{Type: v.kind, Value: v.stored.JSON}
		if v.stored.Payload != nil {
			bytes.Values[name] = v.value
		}
	}
	vals, err := json.Marshal(plain)
	if err != nil || len(bytes.GetValues()) == 0 {
		return vals, nil, err
	}
	payloads, err := proto.Marshal(bytes)
	return vals, payloads, err
}

func trialValues(vals, payloads []byte) (map[string]*setpointv1.Value, error) {
	var plain map[string]trialValue
	if err := json.Unmarshal(vals, &plain); err != nil {
		return nil, fmt.Errorf("read values: %w", err)
	}
	bytes := &setpointv1.Trial{}
	if err := proto.Unmarshal(payloads, bytes); err != nil {
		return nil, fmt.Errorf("read values: %w", err)
	}
	if len(plain) == 0 {
		return nil, nil
	}
	values := make(map[string]*setpointv1.Value, len(plain))
	for name, v := range plain {
		if values[name] = bytes.GetValues()[name]; values[name] != nil {
			continue
		}
		kind, ok := value.ParseType(v.Type)
		if !ok {
			return nil, fmt.Errorf("%s: unknown type %q", name, v.Type)
		}
		decoded, err := value.Decode(kind, v.Value, nil)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		values[name] = decoded
	}
	return values, nil
}

// metricsJSON is metrics as jsonb. What JSON has no number for, and -0, which jsonb would not keep, is text.
func metricsJSON(metrics map[string]float64) ([]byte, error) {
	plain := make(map[string]any, len(metrics))
	for name, m := range metrics {
		switch {
		case math.IsNaN(m):
			plain[name] = "NaN"
		case math.IsInf(m, 1):
			plain[name] = "Infinity"
		case math.IsInf(m, -1):
			plain[name] = "-Infinity"
		case m == 0 && math.Signbit(m):
			plain[name] = "-0"
		default:
			plain[name] = json.RawMessage(strconv.FormatFloat(m, 'g', -1, 64))
		}
	}
	return json.Marshal(plain)
}

func metricsOf(data []byte) (map[string]float64, error) {
	var plain map[string]any
	if err := json.Unmarshal(data, &plain); err != nil {
		return nil, fmt.Errorf("read metrics: %w", err)
	}
	metrics := make(map[string]float64, len(plain))
	for name, m := range plain {
		switch m := m.(type) {
		case float64:
			metrics[name] = m
		case string:
			parsed, err := strconv.ParseFloat(m, 64)
			if err != nil {
				return nil, fmt.Errorf("read metrics: %w", err)
			}
			metrics[name] = parsed
		}
	}
	return metrics, nil
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
