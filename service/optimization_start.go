package service

import (
	"context"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"
	"unicode"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/setpointdb/setpoint/db/dbgen"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/identity"
	"github.com/setpointdb/setpoint/internal/lease"
)

// Starting: whoever starts joins the queue and, where nothing stands in the way, leaves it with the lease in the same
// transaction. So a start that is granted at once and a grant after years of waiting are one statement.

const (
	// leaseTTL and leaseGrace hold where the request has none, in microseconds.
	leaseTTL   = 60_000_000
	leaseGrace = 5_000_000
	// configBytes bounds a config, as JSON.
	configBytes = 64 << 10
)

// startRequest is a start whose variables have been found, so that it can queue for them before it locks the session.
type startRequest struct {
	*setpointv1.StartOptimizationRequest
	keys []int32
}

// StartOptimization asks for the right to change variables.
func (s *Service) StartOptimization(ctx context.Context, req *setpointv1.StartOptimizationRequest) (
	*setpointv1.Optimization, error,
) {
	principal := identity.FromContext(ctx).Name
	start, err := s.newStart(req, principal)
	if err != nil {
		return nil, err
	}
	response, replayed, err := s.start(ctx, req, start)
	switch {
	case replayed:
		s.events.RequestReplayed(ctx, req.GetSessionId(), principal)
	case err != nil:
		s.recordRefusal(ctx, req.GetSessionId(), principal, err)
	}
	return response, err
}

func (s *Service) start(ctx context.Context, req *setpointv1.StartOptimizationRequest, start *optimizationStart) (
	*setpointv1.Optimization, bool, error,
) {
	if err := s.refuseAgain(ctx, callerIn(ctx, req.GetSessionId()), req.GetSessionId(), req.GetRequestId()); err != nil {
		return nil, false, err
	}
	var found []dbgen.OptimizationAskRow
	err := s.db.Read(ctx, "start optimization", func(ctx context.Context, q *dbgen.Queries) error {
		var err error
		if req.GetRequestId() == "" {
			if err := start.may(ctx, q); err != nil {
				return err
			}
		}
		found, err = q.OptimizationAsk(ctx, start.ask)
		return err
	})
	if err != nil {
		return nil, false, err
	}
	// What a snapshot suffices to refuse takes no lock. A request that may be a repeat is looked up first, under the lock.
	if req.GetRequestId() == "" {
		if _, err := start.decide(found); err != nil {
			return nil, false, err
		}
	}
	queued := startRequest{StartOptimizationRequest: req, keys: startKeys(req.GetSessionId(), found)}
	return write(ctx, s, queued, &setpointv1.Optimization{},
		func(ctx context.Context, q transaction, _ dbgen.SessionStateRow) (*setpointv1.Optimization, error) {
			return s.startLocked(ctx, q, *start)
		})
}

// may refuses a caller who may not optimize all of the variables.
func (st *optimizationStart) may(ctx context.Context, q *dbgen.Queries) error {
	wants := make([]wanted, len(st.ask.Variables))
	for i, variable := range st.ask.Variables {
		wants[i] = wanted{variable, identity.Optimize}
	}
	return mayAll(ctx, q, st.ask.SessionID, wants...)
}

// startKeys are the keys of the variables' advisory locks.
func startKeys(sessionID string, found []dbgen.OptimizationAskRow) []int32 {
	keys := make([]int32, 0, len(found))
	for _, row := range found {
		h := fnv.New32a()
		_, _ = h.Write([]byte(sessionID + "\x00" + row.VariableID)) // Never fails.
		keys = append(keys, int32(h.Sum32()))
	}
	return keys
}

// optimizationStart is a checked request to start.
type optimizationStart struct {
	ask      dbgen.OptimizationAskParams
	add      dbgen.OptimizationAddParams
	conflict setpointv1.ConflictStrategy
	grace    int64
	most     int64
}

func (s *Service) newStart(req *setpointv1.StartOptimizationRequest, principal string) (*optimizationStart, error) {
	if n, most := len(req.GetVariables()), s.limits.LeaseVariables; n > most {
		return nil, limitExceeded("lease_variables", int64(most),
			fmt.Sprintf("an optimization has at most %d variables, not %d", most, n))
	}
	for field, text := range map[string]string{
		"optimizer_id": req.GetOptimizerId(), "optimizer_process": req.GetOptimizerProcess(),
	} {
		if strings.ContainsFunc(text, unicode.IsControl) {
			return nil, invalid(field, "must not have control characters")
		}
	}
	id, err := newID(optimizationPrefix)
	if err != nil {
		return nil, err
	}
	start := &optimizationStart{
		conflict: req.GetConflict(), grace: microsecondsOf(req.GetGrace(), leaseGrace), most: s.limits.Optimizations,
	}
	if start.conflict == setpointv1.ConflictStrategy_CONFLICT_STRATEGY_UNSPECIFIED {
		start.conflict = setpointv1.ConflictStrategy_CONFLICT_STRATEGY_ABORT
	}
	start.add = dbgen.OptimizationAddParams{
		SessionID: req.GetSessionId(), OptimizationID: id, OptimizerID: req.GetOptimizerId(),
		OptimizerProcess: req.GetOptimizerProcess(), Conflict: conflictNames[start.conflict], Priority: req.GetPriority(),
		TTLMicros: microsecondsOf(req.GetTtl(), leaseTTL), Principal: principal, RowLimit: int32(s.limits.Optimizations) + 1,
		Minimizes: req.GetObjective().GetDirection() == setpointv1.Direction_DIRECTION_MINIMIZE,
	}
	if start.add.OptimizerID == "" {
		start.add.OptimizerID = "optimizer-" + id[len(id)-8:]
	}
	if req.GetObjective() != nil {
		start.add.ObjectiveMetric = &req.GetObjective().Metric
	}
	if req.GetMaxWait() != nil {
		us := req.GetMaxWait().AsDuration().Microseconds()
		start.add.MaxWaitUs = &us
	}
	if req.GetProgressTimeout() != nil {
		us := req.GetProgressTimeout().AsDuration().Microseconds()
		start.add.ProgressUs = &us
	}
	if start.conflict == setpointv1.ConflictStrategy_CONFLICT_STRATEGY_PREEMPT {
		start.add.Rank = preemptingRank(req.GetPriority())
	}
	start.ask = dbgen.OptimizationAskParams{SessionID: req.GetSessionId(), Variables: req.GetVariables(), Rank: start.add.Rank}
	if req.GetConfig() == nil {
		return start, nil
	}
	if start.add.Config, err = protojson.Marshal(req.GetConfig()); err != nil {
		return nil, invalid("config", err.Error())
	}
	if len(start.add.Config) > configBytes {
		return nil, limitExceeded("config_bytes", configBytes,
			fmt.Sprintf("a config has at most %d bytes as JSON, not %d", configBytes, len(start.add.Config)))
	}
	return start, nil
}

func microsecondsOf(d *durationpb.Duration, absent int64) int64 {
	if d == nil {
		return absent
	}
	return d.AsDuration().Microseconds()
}

// preemptingRank is less than that of those who wait, and the less the higher the priority, which is at least -1,000,000.
func preemptingRank(priority int32) int64 { return -1_000_001 - int64(priority) }

// inTheWay is why a start is not granted at once: a variable, and who has it or waits for it.
type inTheWay struct {
	variable string
	*holder
}

// decide refuses what can never be, and what stands in the way of a start that does not wait. The result is what stands in
// the way of one that does; nil for nothing.
func (st *optimizationStart) decide(found []dbgen.OptimizationAskRow) (*inTheWay, error) {
	seen := map[string]bool{}
	var first *inTheWay
	yields := true
	for i, row := range found {
		switch {
		case !row.Alive:
			return nil, sessionNotFound(st.add.SessionID)
		case row.VariableID == "":
			return nil, variableNotFound(st.add.SessionID, row.Identifier)
		case seen[row.VariableID]:
			return nil, invalid(fmt.Sprintf("variables[%d]", i), fmt.Sprintf("%q is in the list twice", row.Name))
		case row.Derived:
			return nil, derivedVariable(row.Name)
		}
		seen[row.VariableID] = true
		h := standing(row)
		if h == nil {
			continue
		}
		if gives := row.WaiterID == "" && row.HolderPriority < st.add.Priority; first == nil || yields && !gives {
			first = &inTheWay{variable: row.Name, holder: h}
			yields = yields && gives
		}
	}
	waits := st.conflict == setpointv1.ConflictStrategy_CONFLICT_STRATEGY_WAIT ||
		st.conflict == setpointv1.ConflictStrategy_CONFLICT_STRATEGY_PREEMPT && yields
	if first != nil && (!waits || st.add.MaxWaitUs != nil && *st.add.MaxWaitUs == 0) {
		return nil, alreadyOptimizing(first.variable, first.holder)
	}
	return first, nil
}

// standing is who has a variable, or else waits for it before; nil for nobody.
func standing(row dbgen.OptimizationAskRow) *holder {
	switch {
	case row.HolderID != "":
		return holderOf(row.HolderID, row.HolderOptimizerID, row.HolderStartedAt, row.HolderExpiresAt)
	case row.WaiterID != "":
		h := holderOf(row.WaiterID, row.WaiterOptimizerID, row.HolderStartedAt, row.WaiterExpiresAt)
		h.waits = true
		return h
	}
	return nil
}

// startLocked joins the queue, and leaves it if it can.
func (s *Service) startLocked(ctx context.Context, q transaction, st optimizationStart) (*setpointv1.Optimization, error) {
	sessionID, principal := st.add.SessionID, st.add.Principal
	if err := st.may(ctx, q.Queries); err != nil {
		return nil, err
	}
	found, err := q.OptimizationAsk(ctx, st.ask)
	if err != nil {
		return nil, err
	}
	blocked, err := st.decide(found)
	if err != nil {
		return nil, err
	}
	now := found[0].ReadAt
	if found[0].Overdue {
		if err := s.settle(ctx, q, sessionID, now); err != nil {
			return nil, err
		}
	}
	add, err := st.join(ctx, q, found, blocked != nil)
	if err != nil {
		return nil, err
	}
	if blocked != nil {
		change := lease.Change{
			Session: sessionID, Optimization: add.OptimizationID, Optimizer: add.OptimizerID, To: stateWaiting,
			Variables: slices.Sorted(slices.Values(add.Names)),
		}
		q.after.add(func(ctx context.Context) { s.events.OptimizationStatusChanged(ctx, change) })
	}
	switch {
	case blocked == nil:
		granted, err := s.grant(ctx, q, sessionID, add.OptimizationID, "", now)
		switch {
		case err != nil:
			return nil, err
		case !granted.Granted:
			return nil, fmt.Errorf("start %s: nothing stood in the way, and it was not granted", add.OptimizationID)
		case granted.InheritsID == nil: // All there is to know of it is known.
			return started(add, granted).proto(sessionID, principal)
		}
	case st.conflict == setpointv1.ConflictStrategy_CONFLICT_STRATEGY_PREEMPT:
		if err := s.preempt(ctx, q, add, st.grace); err != nil {
			return nil, err
		}
	}
	row, err := getOptimization(ctx, q.Queries, &setpointv1.GetOptimizationRequest{
		SessionId: sessionID, OptimizationId: add.OptimizationID,
	}, true, identity.Optimize)
	if err != nil {
		return nil, err
	}
	return row.proto(sessionID, principal)
}

// join adds the record to the queue; one that does not wait there has no end of its waiting.
func (st optimizationStart) join(
	ctx context.Context, q transaction, found []dbgen.OptimizationAskRow, waits bool,
) (dbgen.OptimizationAddParams, error) {
	add := st.add
	add.Now = found[0].ReadAt
	if !waits {
		add.MaxWaitUs = nil
	}
	for _, row := range found {
		add.VariableIds = append(add.VariableIds, row.VariableID)
		add.Names = append(add.Names, row.Name)
		add.Types = append(add.Types, row.Type)
	}
	added, err := q.OptimizationAdd(ctx, add)
	if err == nil && added.OpenCount >= st.most {
		err = limitExceeded("optimizations", st.most,
			fmt.Sprintf("session %q has %d open optimizations, as many as one may have", add.SessionID, st.most))
	}
	return add, err
}

// started is the record of a request that was granted at once, and was handed nothing.
func started(add dbgen.OptimizationAddParams, granted dbgen.OptimizationGrantRow) optimizationRow {
	return optimizationRow{
		Access: int32(identity.Optimize), ReadAt: granted.GrantedAt, OptimizationID: add.OptimizationID, State: "active", OptimizerID: add.OptimizerID,
		OptimizerProcess: add.OptimizerProcess, Variables: granted.Variables, Conflict: add.Conflict, Priority: add.Priority,
		TTLMicros: add.TTLMicros, ProgressUs: add.ProgressUs, ObjectiveMetric: add.ObjectiveMetric, Minimizes: add.Minimizes,
		Config: add.Config, StartedBy: add.Principal, RequestedAt: granted.RequestedAt, FencingToken: granted.FencingToken,
		StartedAt: granted.GrantedAt, ExpiresAt: granted.ExpiresAt,
	}
}

// preempt tells those who have the variables that they are to lose them.
func (s *Service) preempt(ctx context.Context, q transaction, add dbgen.OptimizationAddParams, grace int64) error {
	told, err := q.OptimizationPreempt(ctx, dbgen.OptimizationPreemptParams{
		SessionID: add.SessionID, OptimizationID: add.OptimizationID, GraceUs: grace, Principal: add.Principal, Now: add.Now,
	})
	if err != nil {
		return err
	}
	for _, t := range told {
		q.after.add(func(ctx context.Context) {
			s.events.OptimizationPreempted(ctx, add.SessionID, t.OptimizationID, add.OptimizationID,
				t.ToldAt.Time.Sub(t.StartedAt.Time))
			s.events.OptimizationStatusChanged(ctx, lease.Change{
				Session: add.SessionID, Optimization: t.OptimizationID, Optimizer: t.OptimizerID, From: "active", To: "preempting",
				Variables: t.Variables, Reason: "preempted by " + add.OptimizationID,
			})
		})
	}
	return nil
}
