package service

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/setpointdb/setpoint/db/dbgen"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/identity"
	"github.com/setpointdb/setpoint/internal/value"
)

// SetVariable sets a value: one statement under the session's lock, in one round trip.
func (s *Service) SetVariable(ctx context.Context, req *setpointv1.SetVariableRequest) (
	*setpointv1.SetVariableResponse, error,
) {
	call, err := newSetCall(ctx, req, req.GetDryRun(), setItem{
		variable: req.GetVariable(), value: req.GetValue(), expected: expectedVersion(req.ExpectedVersion),
		metadata: setMetadata(req.GetMetadata(), req.GetClearMetadata()), reason: req.GetReason(),
	})
	if err != nil {
		return nil, err
	}
	outcomes, err := s.set(ctx, call)
	if err != nil {
		return nil, err
	}
	o := outcomes[0]
	a := call.asked(s.limits, 0)
	if e := o.refusal(a); e != nil {
		s.recordRefusals(ctx, a, call.principal, e)
		return nil, e
	}
	s.events.VariableSet(ctx, req.GetSessionId(), o.Name, o.FoundVersion+1, call.principal)
	return &setpointv1.SetVariableResponse{
		VariableId: o.VariableID, Version: o.FoundVersion + 1, Revision: o.Revision, UpdatedAt: timestamppb.New(o.ChangedAt),
	}, nil
}

// BatchSetVariables sets values, all in one statement: each succeeds or fails alone, or all do if the batch is atomic.
func (s *Service) BatchSetVariables(ctx context.Context, req *setpointv1.BatchSetVariablesRequest) (
	*setpointv1.BatchSetVariablesResponse, error,
) {
	if err := s.checkBatch(len(req.GetWrites())); err != nil {
		return nil, err
	}
	var items []setItem
	seen := map[string]bool{}
	for i, w := range req.GetWrites() {
		if seen[w.GetVariable()] {
			return nil, invalid(fmt.Sprintf("writes[%d].variable", i), fmt.Sprintf("%q is in the batch twice", w.GetVariable()))
		}
		seen[w.GetVariable()] = true
		items = append(items, setItem{
			variable: w.GetVariable(), value: w.GetValue(), expected: expectedVersion(w.ExpectedVersion),
			metadata: setMetadata(w.GetMetadata(), w.GetClearMetadata()), reason: w.GetReason(),
		})
	}
	call, err := newSetCall(ctx, req, req.GetDryRun(), items...)
	if err != nil {
		return nil, err
	}
	call.batch, call.atomic = true, req.GetAtomic()
	outcomes, err := s.set(ctx, call)
	if err != nil {
		return nil, err
	}
	return s.batchSetResponse(ctx, call, outcomes)
}

func (s *Service) batchSetResponse(ctx context.Context, call *setCall, outcomes []itemOutcome) (
	*setpointv1.BatchSetVariablesResponse, error,
) {
	errs := make([]*Error, len(outcomes))
	response := &setpointv1.BatchSetVariablesResponse{}
	for i, o := range outcomes {
		a := call.asked(s.limits, i)
		result := &setpointv1.BatchSetResult{Variable: call.items[i].variable, VariableId: o.VariableID}
		if errs[i] = o.refusal(a); errs[i] != nil {
			s.recordRefusals(ctx, a, call.principal, errs[i])
			result.Error = errs[i].item()
		} else {
			result.Version, result.Revision = o.FoundVersion+1, o.Revision
		}
		response.Results = append(response.Results, result)
	}
	s.events.BatchSet(ctx, call.sessionID, call.principal, len(outcomes), countFailed(errs))
	if whole := wholeBatch(outcomes, errs, call.atomic); whole != nil {
		return nil, whole
	}
	return response, nil
}

// anyVersion stands for no expected version.
const anyVersion = -1

func expectedVersion(v *int64) int64 {
	if v == nil {
		return anyVersion
	}
	return *v
}

// keepMetadata, as jsonb, keeps the last metadata.
var keepMetadata = []byte("null")

func setMetadata(metadata map[string]string, clear bool) []byte {
	if len(metadata) == 0 && !clear {
		return keepMetadata
	}
	return metadataJSON(metadata)
}

// setItem is one value to write.
type setItem struct {
	variable string
	value    *setpointv1.Value
	expected int64
	metadata []byte
	reason   string
}

// setCall is a request that sets values.
type setCall struct {
	sessionID, principal, requestID string
	hash                            []byte
	items                           []setItem
	change                          setpointv1.HistoryChange
	batch, atomic, dryRun           bool
}

func newSetCall(ctx context.Context, req writeRequest, dryRun bool, items ...setItem) (*setCall, error) {
	call := &setCall{
		sessionID: req.GetSessionId(), principal: identity.FromContext(ctx).Name, requestID: req.GetRequestId(),
		items: items, change: setpointv1.HistoryChange_HISTORY_CHANGE_SET, dryRun: dryRun,
	}
	if dryRun {
		call.requestID = "" // There is no outcome to repeat.
		return call, nil
	}
	var err error
	call.hash, err = bodyHash(req)
	return call, err
}

func (c *setCall) asked(limits Limits, i int) asked {
	return asked{
		sessionID: c.sessionID, variable: c.items[i].variable, requestID: c.requestID,
		expectedVersion: c.items[i].expected, limits: limits,
	}
}

// definitionAttempts bounds how often a write is checked again because somebody keeps changing the constraints.
const definitionAttempts = 10

// set writes the values and returns what became of each, in its place. Values are checked against the definitions that
// the server remembers; where one is not known, or has changed, the statement says so and writes nothing of the request.
func (s *Service) set(ctx context.Context, call *setCall) ([]itemOutcome, error) {
	for range definitionAttempts {
		params, checked := s.setParams(call)
		rows, err := s.runSet(ctx, call, params)
		if err != nil {
			return nil, err
		}
		if rows[0].Refused == "REPLAYED" {
			s.events.RequestReplayed(ctx, call.sessionID, call.principal)
			return recordedOutcomes(rows[0].Outcome)
		}
		learned, err := s.learn(call, rows)
		if err != nil {
			return nil, err
		}
		if !learned {
			return setOutcomes(rows, checked), nil
		}
	}
	return nil, refuse(setpointv1.ErrorReason_CONFLICT_RETRY,
		"the constraints of the variables keep changing; try again")
}

// setParams checks the values and lays them out for the statement; the second result are the refusals by place.
func (s *Service) setParams(call *setCall) (dbgen.VariableSetParams, []*savedRefusal) {
	p := dbgen.VariableSetParams{Batch: call.batch, Atomic: call.atomic, Change: changeNames[call.change]}
	checked := make([]*savedRefusal, len(call.items))
	for i, item := range call.items {
		def, known := s.definitions.get(call.sessionID, item.variable)
		if !known {
			def.revision = unknownDefinition
		}
		stored, refusal := accept(def, item, s.limits.ValueBytes)
		checked[i] = refusal
		p.Ords = append(p.Ords, int32(i))
		p.SessionIds = append(p.SessionIds, call.sessionID)
		p.Variables = append(p.Variables, item.variable)
		p.Definitions = append(p.Definitions, def.revision)
		p.Vals = append(p.Vals, stored.JSON)
		p.PayloadHashes = append(p.PayloadHashes, orEmpty(stored.SHA256))
		p.Payloads = append(p.Payloads, orEmpty(stored.Payload))
		p.ValueBytes = append(p.ValueBytes, int64(stored.Bytes))
		p.Metadatas = append(p.Metadatas, item.metadata)
		p.ExpectedVersions = append(p.ExpectedVersions, item.expected)
		p.Refusals = append(p.Refusals, refusalJSON(refusal))
		p.Principals = append(p.Principals, call.principal)
		p.Reasons = append(p.Reasons, item.reason)
		p.RequestIds = append(p.RequestIds, call.requestID)
		p.BodyHashes = append(p.BodyHashes, orEmpty(call.hash))
	}
	return p, checked
}

// accept checks a value. With no definition to check against there is nothing to store yet.
func accept(def definition, item setItem, maxBytes int) (value.Stored, *savedRefusal) {
	nothing := value.Stored{JSON: []byte("null")}
	if def.check == nil {
		return nothing, nil
	}
	stored, err := def.check.Accept(item.variable, item.value, maxBytes)
	if err != nil {
		return nothing, refusalOf(err)
	}
	return stored, nil
}

// refusalOf is the refusal of package value as it is recorded. It refuses with nothing but a Refusal.
func refusalOf(err error) *savedRefusal {
	if e := asRefusal(err); e != nil {
		return e.saved()
	}
	return refuse(setpointv1.ErrorReason_INVALID_REQUEST, err.Error()).saved()
}

func refusalJSON(r *savedRefusal) []byte {
	data, _ := json.Marshal(r) // Strings always marshal; nil is null.
	return data
}

func orEmpty(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

// runSet runs the statement: in one round trip, or, for a dry run, in a transaction that is rolled back.
func (s *Service) runSet(ctx context.Context, call *setCall, params dbgen.VariableSetParams) ([]dbgen.VariableSetRow, error) {
	var rows []dbgen.VariableSetRow
	var err error
	if call.dryRun {
		err = s.db.DryRun(ctx, "set variables", func(ctx context.Context, tx pgx.Tx) error {
			rows, err = lockAndSet(ctx, tx, call.sessionID, params)
			return err
		})
	} else {
		err = s.db.Locked(ctx, "set variables", []string{call.sessionID}, func(ctx context.Context, q *dbgen.Queries) error {
			rows, err = q.VariableSet(ctx, params)
			return err
		})
	}
	if err == nil && len(rows) != len(call.items) {
		err = errors.New("set variables: the statement did not answer for every item")
	}
	return rows, err
}

func lockAndSet(ctx context.Context, tx pgx.Tx, sessionID string, params dbgen.VariableSetParams) (
	[]dbgen.VariableSetRow, error,
) {
	q := dbgen.New(tx)
	if err := q.SessionLock(ctx, dbgen.SessionLockParams{SessionIds: []string{sessionID}}); err != nil {
		return nil, err
	}
	return q.VariableSet(ctx, params)
}

// learn remembers the definitions that the statement sent back; true if there were any.
func (s *Service) learn(call *setCall, rows []dbgen.VariableSetRow) (bool, error) {
	learned := false
	for i, row := range rows {
		if row.Refused != "DEFINITION_CHANGED" {
			continue
		}
		_, err := s.definitions.learn(call.sessionID, call.items[i].variable, row.Type, row.Constraints, row.DefinitionRevision)
		if err != nil {
			return false, err
		}
		learned = true
	}
	return learned, nil
}

func setOutcomes(rows []dbgen.VariableSetRow, checked []*savedRefusal) []itemOutcome {
	outcomes := make([]itemOutcome, len(rows))
	for i, row := range rows {
		outcomes[i] = itemOutcome{
			Ord: row.Ord, Refused: row.Refused, VariableID: row.VariableID, Name: row.Name,
			FoundVersion: row.FoundVersion, Revision: row.Revision, ChangedAt: row.ChangedAt.Time, Refusal: checked[i],
		}
	}
	return outcomes
}
