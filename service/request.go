package service

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"

	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/setpointdb/setpoint/db"
	"github.com/setpointdb/setpoint/db/dbgen"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/identity"
	"github.com/setpointdb/setpoint/internal/value"
)

// writeRequest is what every writing request has.
type writeRequest interface {
	proto.Message
	GetSessionId() string
	GetRequestId() string
}

// bodyHash tells requests of one request_id apart: a hash over the whole request. Empty without a request_id.
func bodyHash(req writeRequest) ([]byte, error) {
	if req.GetRequestId() == "" {
		return []byte{}, nil
	}
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(req)
	if err != nil {
		return nil, fmt.Errorf("hash the request: %w", err)
	}
	h := sha256.New()
	h.Write([]byte(req.ProtoReflect().Descriptor().FullName()))
	h.Write([]byte{0})
	h.Write(body)
	return h.Sum(nil), nil
}

// savedRefusal is a refusal as the database keeps it.
type savedRefusal struct {
	Reason   string            `json:"reason"`
	Message  string            `json:"message"`
	Metadata map[string]string `json:"metadata,omitempty"`
	Fields   []FieldViolation  `json:"fields,omitempty"`
	Failed   []savedFailure    `json:"failed,omitempty"`
}

// savedFailure is a failing item of an atomic batch.
type savedFailure struct {
	Index int32 `json:"index"`
	savedRefusal
}

func (r savedRefusal) error() *Error {
	e := &Error{
		Reason:  setpointv1.ErrorReason(setpointv1.ErrorReason_value[r.Reason]),
		Message: r.Message, Metadata: r.Metadata, Fields: r.Fields,
	}
	for _, f := range r.Failed {
		e.Failed = append(e.Failed, &setpointv1.FailedItem{Index: f.Index, Error: f.error().item()})
	}
	return e
}

func (e *Error) saved() *savedRefusal {
	r := &savedRefusal{Reason: e.Reason.String(), Message: e.Message, Metadata: e.Metadata, Fields: e.Fields}
	for _, f := range e.Failed {
		item := f.GetError()
		r.Failed = append(r.Failed, savedFailure{Index: f.GetIndex(), savedRefusal: savedRefusal{
			Reason: item.GetReason().String(), Message: item.GetMessage(), Metadata: item.GetMetadata(),
		}})
	}
	return r
}

// savedOutcome is the outcome of a call of write, as the database keeps it: one of the two.
type savedOutcome struct {
	Error    *savedRefusal   `json:"error,omitempty"`
	Response json.RawMessage `json:"response,omitempty"`
}

// reused is the refusal of a request_id that came with another body before.
func reused(requestID string) *Error {
	return refuse(setpointv1.ErrorReason_REQUEST_ID_REUSED,
		fmt.Sprintf("request_id %q was used before for another request", requestID))
}

func sessionNotFound(sessionID string) *Error {
	return refuse(setpointv1.ErrorReason_SESSION_NOT_FOUND, fmt.Sprintf("no session %q", sessionID),
		"session_id", sessionID)
}

func variableNotFound(sessionID, variable string) *Error {
	return refuse(setpointv1.ErrorReason_VARIABLE_NOT_FOUND, fmt.Sprintf("no variable %q in session %q", variable, sessionID),
		"session_id", sessionID, "variable", variable)
}

// transaction is what the work of a write is done in.
type transaction struct {
	*dbgen.Queries
	tx pgx.Tx
	// after is told what to record when the work is committed.
	after *afterCommit
}

// write runs the writes that have no statement of their own: in one transaction that locks the session, looks the
// request up, does the work, and records its outcome. The work must not have effects outside of the transaction. The
// second result tells that the answer is that of an earlier call.
func write[T proto.Message](
	ctx context.Context, s *Service, req writeRequest, answer T,
	work func(ctx context.Context, tx transaction, state dbgen.SessionStateRow) (T, error),
) (T, bool, error) {
	var response T
	var refused error
	var after afterCommit
	replayed := false
	principal := identity.FromContext(ctx)
	hash, err := bodyHash(req)
	if err != nil {
		return response, false, err
	}
	run, requestID := s.db.InSession, req.GetRequestId()
	if isDryRun(req) {
		run, requestID = s.db.DryRun, "" // There is no outcome to repeat.
	}
	c, seesAll := callerIn(ctx, req.GetSessionId()), false
	if !isReservation(req) {
		if err := s.refuseAgain(ctx, c, req.GetSessionId(), requestID); err != nil {
			return response, false, err
		}
	}
	err = run(ctx, "write", req.GetSessionId(), func(ctx context.Context, tx pgx.Tx) error {
		replayed, refused, after = false, nil, nil
		q := dbgen.New(tx)
		if r, ok := req.(reservation); ok {
			if err := q.SessionReserve(ctx, dbgen.SessionReserveParams{
				SessionID: req.GetSessionId(), Owner: r.owner,
			}); err != nil {
				return err
			}
		}
		var queue []int32
		if r, ok := req.(startRequest); ok {
			queue = r.keys
		}
		state, err := db.QueueLockAndMark(tx, req.GetSessionId(), queue).SessionState(ctx, dbgen.SessionStateParams{
			SessionID: req.GetSessionId(), Principal: c.principal, Groups: c.groups, Authority: c.authority, RequestID: requestID,
		})
		if err != nil {
			return err
		}
		seesAll = state.ReadsAll
		if len(state.BodyHash) > 0 && requestID != "" {
			if err := c.mayBeTold(req); err != nil {
				return err
			}
			replayed = true
			response, err = replay(ctx, s, q, req, state, hash, answer)
			return err
		}
		work := func(ctx context.Context) (T, error) {
			if state.Alive && !state.Anything && !isReservation(req) {
				return answer, sessionHidden(req.GetSessionId())
			}
			return work(ctx, transaction{Queries: q, tx: tx, after: &after}, state)
		}
		response, refused, err = attempt(ctx, tx, requestID != "", work)
		switch {
		case err != nil:
			return err
		case requestID == "":
			return refused
		}
		if isPassing(refused) {
			return refused
		}
		return record(ctx, q, req, principal.Name, hash, response, refused)
	})
	if err != nil {
		// A refusal that could not be recorded is not final.
		return response, replayed, s.hideRefusal(ctx, req, err)
	}
	if refused == nil && !replayed && !isDryRun(req) {
		after.run(ctx)
	}
	if refused == nil && (replayed || isDryRun(req)) && !outlivesSession(req) {
		s.signOfLife(ctx, req.GetSessionId())
	}
	if refused != nil {
		return response, replayed, s.hideRefusal(ctx, req, refused)
	}
	if !seesAll {
		s.hideDone(ctx, req.GetSessionId(), response)
	}
	return response, replayed, nil
}

// mayBeTold refuses credentials that are narrowed to less than any write, before they are told what others of the same principal did.
func (c caller) mayBeTold(req writeRequest) error {
	switch {
	case c.authority&int32(identity.AllPermissions) == 0:
		return sessionHidden(req.GetSessionId())
	case c.authority&int32(identity.Write) == 0:
		return denied(identity.Write, "", "")
	}
	return nil
}

// isPassing tells of refusals that hold for this time only: they are not recorded, and who may do nothing leaves nothing behind.
func isPassing(refused error) bool {
	e := asRefusal(refused)
	return e != nil && (e.Reason == setpointv1.ErrorReason_SESSION_NOT_FOUND || e.denial != nil)
}

func isReservation(req writeRequest) bool {
	_, ok := req.(reservation)
	return ok
}

// attempt does the work; a refusal undoes it, but not the transaction if something is still to be recorded about it.
func attempt[T proto.Message](
	ctx context.Context, tx pgx.Tx, recorded bool, work func(ctx context.Context) (T, error),
) (T, error, error) {
	response, err := work(ctx)
	switch {
	case err == nil:
		return response, nil, nil
	case asRefusal(err) == nil:
		return response, nil, err
	case recorded:
		return response, err, db.BackToMark(ctx, tx)
	}
	return response, err, nil
}

func record[T proto.Message](
	ctx context.Context, q *dbgen.Queries, req writeRequest, principal string, hash []byte, response T, refused error,
) error {
	var outcome savedOutcome
	if refused != nil {
		outcome.Error = asRefusal(refused).saved()
	} else {
		data, err := protojson.Marshal(withoutValues(response))
		if err != nil {
			return fmt.Errorf("record the outcome: %w", err)
		}
		outcome.Response = data
	}
	data, err := json.Marshal(outcome)
	if err != nil {
		return fmt.Errorf("record the outcome: %w", err)
	}
	return q.RequestInsert(ctx, dbgen.RequestInsertParams{
		SessionID: req.GetSessionId(), Principal: principal, RequestID: req.GetRequestId(), BodyHash: hash, Outcome: data,
		OutlivesSession: outlivesSession(req),
	})
}

// outlivesSession tells of a request that begins or ends a session: its repeat must not do so to the id's next life.
func outlivesSession(req writeRequest) bool {
	switch req.(type) {
	case reservation, *setpointv1.DeleteSessionRequest:
		return true
	}
	return false
}

func isDryRun(req writeRequest) bool {
	r, ok := req.(interface{ GetDryRun() bool })
	return ok && r.GetDryRun()
}

func replay[T proto.Message](
	ctx context.Context, s *Service, q *dbgen.Queries, req writeRequest, state dbgen.SessionStateRow, hash []byte, answer T,
) (T, error) {
	if string(state.BodyHash) != string(hash) {
		return answer, reused(req.GetRequestId())
	}
	var outcome savedOutcome
	if err := json.Unmarshal(state.Outcome, &outcome); err != nil {
		return answer, fmt.Errorf("read a recorded outcome: %w", err)
	}
	if outcome.Error != nil {
		return answer, outcome.Error.error()
	}
	if err := protojson.Unmarshal(outcome.Response, answer); err != nil {
		return answer, fmt.Errorf("read a recorded outcome: %w", err)
	}
	return answer, s.restoreValues(ctx, q, req, answer)
}

// withoutValues leaves values out of what is recorded: history has them, for longer than the record lives.
func withoutValues(m proto.Message) proto.Message {
	switch m := m.(type) {
	case *setpointv1.Variable:
		return withoutValue(m)
	case *setpointv1.Optimization:
		return withoutCheckpoint(m)
	case *setpointv1.ReportProgressResponse:
		return withoutReported(m)
	case *setpointv1.StopOptimizationResponse:
		return withoutFinal(m)
	case *setpointv1.RollbackSessionResponse:
		return withoutRestored(m)
	case *setpointv1.BatchRegisterVariablesResponse:
		bare := &setpointv1.BatchRegisterVariablesResponse{}
		for _, result := range m.GetResults() {
			without := &setpointv1.BatchRegisterResult{Error: result.GetError()}
			if result.GetVariable() != nil {
				without.Variable = withoutValue(result.GetVariable())
			}
			bare.Results = append(bare.Results, without)
		}
		return bare
	}
	return m
}

func withoutValue(v *setpointv1.Variable) *setpointv1.Variable {
	bare := &setpointv1.Variable{}
	v.ProtoReflect().Range(func(field protoreflect.FieldDescriptor, x protoreflect.Value) bool {
		if field.Name() != "value" {
			bare.ProtoReflect().Set(field, x)
		}
		return true
	})
	return bare
}

// restoreValues puts back what withoutValues left out.
func (s *Service) restoreValues(ctx context.Context, q *dbgen.Queries, req writeRequest, m proto.Message) error {
	sessionID := req.GetSessionId()
	switch m := m.(type) {
	case *setpointv1.Variable:
		row, err := q.HistoryGetVersion(ctx, dbgen.HistoryGetVersionParams{
			SessionID: sessionID, VariableID: m.GetVariableId(), Version: m.GetVersion(),
		})
		if err != nil {
			return fmt.Errorf("read the value of a recorded outcome: %w", err)
		}
		m.Value, err = value.Decode(m.GetType(), row.Value, row.Payload)
		return err
	case *setpointv1.Optimization:
		return restoreCheckpoint(ctx, q, m)
	case *setpointv1.ReportProgressResponse:
		return restoreReported(ctx, q, sessionID, req, m)
	case *setpointv1.RollbackSessionResponse:
		restored := int64(len(m.GetRestored()))
		m.Restored = nil
		followers, err := followed(ctx, q, sessionID, m.GetRevision())
		if err != nil {
			return err
		}
		return s.fillRestored(ctx, q, sessionID, restored, followers, m)
	case *setpointv1.BatchRegisterVariablesResponse:
		for _, result := range m.GetResults() {
			if result.GetVariable() == nil {
				continue
			}
			if err := s.restoreValues(ctx, q, req, result.GetVariable()); err != nil {
				return err
			}
		}
	}
	return nil
}
