package service

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/setpointdb/setpoint/db/dbgen"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/identity"
	"github.com/setpointdb/setpoint/internal/value"
)

// ReportProgress records a trial, and extends the lease. After the lease has ended it only records: a worker that comes too
// late is told so, and goes on.
func (s *Service) ReportProgress(ctx context.Context, req *setpointv1.ReportProgressRequest) (
	*setpointv1.ReportProgressResponse, error,
) {
	principal := identity.FromContext(ctx).Name
	if err := s.checkReport(req); err != nil {
		return nil, err
	}
	response, replayed, err := write(ctx, s, req, &setpointv1.ReportProgressResponse{},
		func(ctx context.Context, q transaction, _ dbgen.SessionStateRow) (*setpointv1.ReportProgressResponse, error) {
			return s.report(ctx, q, req, principal)
		})
	switch {
	case replayed:
		s.events.RequestReplayed(ctx, req.GetSessionId(), principal)
	case err != nil:
		s.recordRefusal(ctx, req.GetSessionId(), principal, err)
	}
	return response, err
}

func (s *Service) checkReport(req *setpointv1.ReportProgressRequest) error {
	total := 0
	for _, v := range req.GetValues() {
		total += proto.Size(v)
	}
	switch {
	case req.Step != nil && req.Number == nil:
		return invalid("number", "an intermediate report needs the number of its trial")
	case req.Step != nil && req.GetApply():
		return invalid("apply", "an intermediate report applies nothing")
	case req.GetApply() && len(req.GetValues()) == 0:
		return invalid("apply", "there are no values to apply")
	case len(req.GetCheckpoint()) > s.limits.ValueBytes:
		return limitExceeded("checkpoint_bytes", int64(s.limits.ValueBytes),
			fmt.Sprintf("a checkpoint has at most %d bytes, not %d", s.limits.ValueBytes, len(req.GetCheckpoint())))
	case total > s.limits.ValueBytes:
		return limitExceeded("value_bytes", int64(s.limits.ValueBytes),
			fmt.Sprintf("the values of a report have at most %d bytes together, not %d", s.limits.ValueBytes, total))
	}
	return nil
}

// maxTrialNumber is the greatest that JSON has exactly.
const maxTrialNumber = 1<<53 - 1

// reportedValue is a value of a report, checked.
type reportedValue struct {
	variableID, kind string
	stored           value.Stored
	value            *setpointv1.Value
}

func (s *Service) report(
	ctx context.Context, q transaction, req *setpointv1.ReportProgressRequest, principal string,
) (*setpointv1.ReportProgressResponse, error) {
	row, err := getOptimization(ctx, q.Queries, req, false, identity.Optimize)
	switch {
	case err != nil:
		return nil, err
	case row.FencingToken != req.GetFencingToken():
		return nil, tokenRefused(row.OptimizationID) // One that waits has none.
	}
	step := int64(noStep)
	if req.Step != nil {
		step = req.GetStep()
	}
	number := row.LastNumber + 1
	if number > maxTrialNumber && req.Number == nil {
		return nil, limitExceeded("trial_number", maxTrialNumber, fmt.Sprintf("trials are numbered up to %d", maxTrialNumber))
	}
	if req.Number != nil {
		number = req.GetNumber()
		if response, err := reportedBefore(ctx, q, req, row, step); response != nil || err != nil {
			return response, err
		}
	}
	late := !isHolding(row.State)
	values, err := s.reportedValues(ctx, q.Queries, req, row, late)
	if err != nil {
		return nil, err
	}
	var followers []follower
	if req.GetApply() && !late {
		lease := &setpointv1.Lease{OptimizationId: row.OptimizationID, FencingToken: row.FencingToken}
		followers, err = s.applyTrial(ctx, q, appliedTrial{
			sessionID: req.GetSessionId(), principal: principal, lease: lease, number: number, values: values, now: row.ReadAt,
		})
		if err != nil {
			return nil, err
		}
	}
	params, err := reportParams(req, row, number, step, values)
	if err != nil {
		return nil, err
	}
	params.Late, params.Applied, params.Principal = late, req.GetApply() && !late, principal
	recorded, err := q.OptimizationReport(ctx, params)
	if err != nil {
		return nil, err
	}
	q.after.add(func(ctx context.Context) {
		s.events.OptimizationProgress(ctx, req.GetSessionId(), row.OptimizationID, number, recorded.IsBest, late)
	})
	best := row.BestNumber
	if recorded.IsBest {
		best = &number
	}
	response, err := reported(row, trialRow{
		Number: number, Step: step, Vals: params.Vals, Payloads: params.Payloads, Metrics: params.Metrics, Note: req.GetNote(),
		Applied: params.Applied, Late: late, ReportedAt: recorded.ReportedAt,
	}, recorded.ExpiresAt, best)
	if err != nil {
		return nil, err
	}
	response.Recomputed, response.Stale, response.ValuesOmitted = tell(followers, s.limits.PageBytes)
	return response, nil
}

// reportedBefore answers a report that was made already; nil for one that was not.
func reportedBefore(
	ctx context.Context, q transaction, req *setpointv1.ReportProgressRequest, row optimizationRow, step int64,
) (*setpointv1.ReportProgressResponse, error) {
	first, err := q.TrialGet(ctx, dbgen.TrialGetParams{
		SessionID: req.GetSessionId(), OptimizationID: row.OptimizationID, Number: req.GetNumber(), Step: step,
	})
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	response, err := reported(row, trialRow(first), row.ExpiresAt, row.BestNumber)
	if err != nil {
		return nil, err
	}
	response.Repeated = true
	return response, nil
}

func reportParams(
	req *setpointv1.ReportProgressRequest, row optimizationRow, number, step int64, values map[string]reportedValue,
) (dbgen.OptimizationReportParams, error) {
	params := dbgen.OptimizationReportParams{
		SessionID: req.GetSessionId(), OptimizationID: row.OptimizationID, Number: &number, Step: step, Note: req.GetNote(),
		Now: row.ReadAt, MetricNames: []string{}, MetricValues: []float64{},
	}
	if len(req.GetCheckpoint()) > 0 {
		params.Checkpoint = req.GetCheckpoint()
	}
	for _, name := range sortedKeys(req.GetMetrics()) {
		params.MetricNames = append(params.MetricNames, name)
		params.MetricValues = append(params.MetricValues, req.GetMetrics()[name])
	}
	var err error
	if params.Metrics, err = metricsJSON(req.GetMetrics()); err != nil {
		return params, err
	}
	params.Vals, params.Payloads, err = encodeTrialValues(values)
	params.Bytes = int64(len(params.Vals) + len(params.Payloads) + len(params.Metrics) + len(params.Note))
	return params, err
}

// reported answers a report.
func reported(row optimizationRow, trial trialRow, expiresAt pgtype.Timestamptz, best *int64) (
	*setpointv1.ReportProgressResponse, error,
) {
	t, err := trial.proto(best)
	if err != nil {
		return nil, err
	}
	response := &setpointv1.ReportProgressResponse{
		Trial: t, IsBest: t.GetBest(), Late: trial.Late, ExpiresAt: timestamp(expiresAt), Preemption: row.preemption(),
	}
	if row.EndedAt.Valid {
		response.ExpiresAt = timestamp(row.EndedAt)
	}
	if isHolding(row.State) {
		response.Remaining = durationpb.New(expiresAt.Time.Sub(row.ReadAt.Time))
	}
	return response, nil
}

// reportedValues finds the variables of a report's values, and checks the values: of a report in time as a write would, of a
// late one the types alone, for what it was about may have changed.
func (s *Service) reportedValues(
	ctx context.Context, q *dbgen.Queries, req *setpointv1.ReportProgressRequest, row optimizationRow, late bool,
) (map[string]reportedValue, error) {
	if len(req.GetValues()) == 0 {
		return nil, nil
	}
	variables, err := q.OptimizationVariables(ctx, dbgen.OptimizationVariablesParams{
		SessionID: req.GetSessionId(), OptimizationID: row.OptimizationID,
	})
	if err != nil {
		return nil, err
	}
	byKey := map[string]dbgen.OptimizationVariablesRow{}
	for _, v := range variables {
		byKey[v.Name] = v
	}
	for _, v := range variables { // Ids go first.
		byKey[v.VariableID] = v
	}
	values := make(map[string]reportedValue, len(req.GetValues()))
	for _, key := range sortedKeys(req.GetValues()) {
		v, ok := byKey[key]
		if !ok {
			return nil, invalid("values", fmt.Sprintf("%q is no variable of %s", key, row.OptimizationID))
		}
		if _, twice := values[v.Name]; twice {
			return nil, invalid("values", fmt.Sprintf("%q is in the report twice", v.Name))
		}
		values[v.Name] = reportedValue{variableID: v.VariableID, kind: v.Type, value: req.GetValues()[key]}
	}
	definitions, err := currentDefinitions(ctx, q, req.GetSessionId(), values, late)
	if err != nil {
		return nil, err
	}
	for name, v := range values {
		if v.stored, err = definitions[name].Accept(name, v.value, s.limits.ValueBytes); err != nil {
			return nil, err
		}
		// As the variable would have it: a json value of an embedding is an embedding.
		if v.value, err = value.Decode(definitions[name].Type(), v.stored.JSON, v.stored.Payload); err != nil {
			return nil, err
		}
		values[name] = v
	}
	return values, nil
}

// currentDefinitions are what values are checked against, by name.
func currentDefinitions(
	ctx context.Context, q *dbgen.Queries, sessionID string, values map[string]reportedValue, late bool,
) (map[string]*value.Definition, error) {
	definitions := make(map[string]*value.Definition, len(values))
	names := sortedKeys(values)
	if late {
		for _, name := range names {
			definition, err := unconstrained(values[name].kind)
			if err != nil {
				return nil, err
			}
			definitions[name] = definition
		}
		return definitions, nil
	}
	ids := make([]string, len(names))
	for i, name := range names {
		ids[i] = values[name].variableID
	}
	rows, err := getVariables(ctx, q, everything, sessionID, ids)
	if err != nil {
		return nil, err
	}
	for i, row := range rows {
		if row.VariableID == "" { // It was deleted under the lease: what was tried is worth recording all the same.
			if definitions[names[i]], err = unconstrained(values[names[i]].kind); err != nil {
				return nil, err
			}
			continue
		}
		if definitions[names[i]], err = compile(row.Type, row.Constraints); err != nil {
			return nil, err
		}
	}
	return definitions, nil
}

// unconstrained is a type without constraints. A choice has to have some, and is a text without.
func unconstrained(kind string) (*value.Definition, error) {
	t, ok := value.ParseType(kind)
	if !ok {
		return nil, fmt.Errorf("unknown type %q", kind)
	}
	if t == setpointv1.VariableType_VARIABLE_TYPE_CHOICE {
		t = setpointv1.VariableType_VARIABLE_TYPE_STRING
	}
	return value.NewDefinition(t, nil)
}

// appliedTrial is a trial whose values are to become versions.
type appliedTrial struct {
	sessionID, principal, reason string
	lease                        *setpointv1.Lease
	number                       int64
	values                       map[string]reportedValue
	// now is the time at which the lease was seen to hold: that it still does is for the fence to say at the same time.
	now pgtype.Timestamptz
}

// applyTrial writes the values of a trial, all or none, by the statement of every other write.
func (s *Service) applyTrial(ctx context.Context, q transaction, t appliedTrial) ([]follower, error) {
	names := sortedKeys(t.values)
	call := &setCall{sessionID: t.sessionID, caller: callerIn(ctx, t.sessionID), lease: t.lease, batch: true, atomic: true}
	items := make([]checkedItem, len(names))
	ids := make([]string, len(names))
	for i, name := range names {
		ids[i] = t.values[name].variableID
	}
	rows, err := getVariables(ctx, q.Queries, everything, t.sessionID, ids)
	if err != nil {
		return nil, err
	}
	for i, name := range names {
		v := t.values[name]
		items[i] = checkedItem{
			setCall:    call,
			setItem:    setItem{variable: v.variableID, expected: anyVersion, metadata: keepMetadata, reason: t.reason},
			definition: rows[i].DefinitionRevision, stored: v.stored,
		}
	}
	params := setParams(setpointv1.HistoryChange_HISTORY_CHANGE_SET, items...)
	params.Batch, params.Atomic, params.Follows, params.Now, params.TrialNumber = true, true, true, t.now, &t.number
	written, err := answered(len(items))(q.VariableSet(ctx, params))
	if err != nil {
		return nil, err
	}
	for i, o := range setOutcomes(written, items) {
		if e := o.refusal(asked{
			sessionID: t.sessionID, variable: names[i], lease: t.lease, permission: identity.Optimize,
		}); e != nil {
			return nil, e
		}
	}
	p := propagation{sessionID: t.sessionID, principal: t.principal, after: q.after}
	p.written(written)
	followers, refused, err := s.follow(ctx, q.Queries, p)
	if err != nil || refused != nil {
		return nil, refusedOr(refused, err)
	}
	q.after.add(func(ctx context.Context) { s.events.BatchSet(ctx, t.sessionID, t.principal, len(items), 0) })
	return followers, nil
}

// recordedBytes is how large an answer is recorded whole.
const recordedBytes = 64 << 10

// withoutReported leaves out of what is recorded what is true of the moment alone, and of a large answer what restoreReported
// reads again, and what followed.
func withoutReported(r *setpointv1.ReportProgressResponse) proto.Message {
	bare := proto.CloneOf(r)
	bare.Remaining = nil
	if proto.Size(r) <= recordedBytes {
		return bare
	}
	bare.Trial.Values = nil
	for _, v := range bare.GetRecomputed() {
		bare.ValuesOmitted = bare.ValuesOmitted || v.GetValue() != nil
		v.Value = nil
	}
	return bare
}

func restoreReported(
	ctx context.Context, q *dbgen.Queries, sessionID string, req writeRequest, r *setpointv1.ReportProgressResponse,
) error {
	report, ok := req.(*setpointv1.ReportProgressRequest)
	if !ok || r.GetTrial().GetValues() != nil || len(report.GetValues()) == 0 {
		return nil
	}
	step := int64(noStep)
	if report.Step != nil {
		step = report.GetStep()
	}
	row, err := q.TrialGet(ctx, dbgen.TrialGetParams{
		SessionID: sessionID, OptimizationID: report.GetOptimizationId(), Number: r.GetTrial().GetNumber(), Step: step,
	})
	if err != nil {
		return fmt.Errorf("read the values of a recorded outcome: %w", err)
	}
	r.Trial.Values, err = trialValues(row.Vals, row.Payloads)
	return err
}
