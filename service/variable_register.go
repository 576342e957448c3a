package service

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/setpointdb/setpoint/db/dbgen"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/identity"
	"github.com/setpointdb/setpoint/internal/value"
)

// defaultHistoryLimit is how many previous versions a variable keeps that asks for no other number.
const defaultHistoryLimit = 50

// RegisterVariable adds a variable at version 0.
func (s *Service) RegisterVariable(ctx context.Context, req *setpointv1.RegisterVariableRequest) (
	*setpointv1.Variable, error,
) {
	if err := checkName("name", req.GetName()); err != nil {
		return nil, err
	}
	call, err := s.newRegisterCall(ctx, req, false, &setpointv1.VariableRegistration{
		Name: req.GetName(), Type: req.GetType(), Value: req.GetValue(), Constraints: req.GetConstraints(),
		Metadata: req.GetMetadata(), HistoryLimit: req.HistoryLimit, DependsOn: req.GetDependsOn(),
		Expression: req.GetExpression(), Strict: req.GetStrict(), AccessMode: req.GetAccessMode(),
	})
	if err != nil {
		return nil, err
	}
	if call.connected() {
		return s.registerConnected(ctx, req, call)
	}
	outcomes, err := s.register(ctx, call)
	if err != nil {
		return nil, err
	}
	a := call.asked(s.limits, 0)
	if e := outcomes[0].refusal(a); e != nil {
		s.recordRefusals(ctx, a, call.principal, e)
		return nil, e
	}
	if call.replayed {
		s.signOfLife(ctx, req.GetSessionId())
	} else {
		s.events.VariableRegistered(ctx, req.GetSessionId(), req.GetName(), value.TypeName(req.GetType()), call.principal)
	}
	return call.variable(0, outcomes[0])
}

// BatchRegisterVariables adds variables, all in one statement: each succeeds or fails alone, or all do if it is atomic.
func (s *Service) BatchRegisterVariables(ctx context.Context, req *setpointv1.BatchRegisterVariablesRequest) (
	*setpointv1.BatchRegisterVariablesResponse, error,
) {
	if err := s.checkBatch(len(req.GetRegistrations())); err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	for i, r := range req.GetRegistrations() {
		if seen[r.GetName()] {
			return nil, invalid(fmt.Sprintf("registrations[%d].name", i), fmt.Sprintf("%q is in the batch twice", r.GetName()))
		}
		seen[r.GetName()] = true
		if err := checkName(fmt.Sprintf("registrations[%d].name", i), r.GetName()); err != nil {
			return nil, err
		}
	}
	call, err := s.newRegisterCall(ctx, req, req.GetAtomic(), req.GetRegistrations()...)
	if err != nil {
		return nil, err
	}
	if call.connected() {
		return s.batchRegisterConnected(ctx, req, call)
	}
	outcomes, err := s.register(ctx, call)
	if err != nil {
		return nil, err
	}
	response, failed, err := call.response(outcomes, s.limits)
	if !call.replayed {
		s.events.BatchRegistered(ctx, req.GetSessionId(), call.principal, len(outcomes), failed)
	}
	if err == nil && (call.replayed || failed == len(outcomes)) {
		s.signOfLife(ctx, req.GetSessionId())
	}
	return response, err
}

// response is the answer to a batch, and how many items of it failed.
func (c *registerCall) response(outcomes []itemOutcome, limits Limits) (
	*setpointv1.BatchRegisterVariablesResponse, int, error,
) {
	errs := make([]*Error, len(outcomes))
	response := &setpointv1.BatchRegisterVariablesResponse{}
	for i, o := range outcomes {
		result := &setpointv1.BatchRegisterResult{}
		var err error
		if errs[i] = o.refusal(c.asked(limits, i)); errs[i] != nil {
			result.Error = errs[i].item()
		} else if result.Variable, err = c.variable(i, o); err != nil {
			return nil, 0, err
		}
		response.Results = append(response.Results, result)
	}
	if whole := wholeBatch(outcomes, errs, c.atomic); whole != nil {
		return nil, countFailed(errs), whole
	}
	return response, countFailed(errs), nil
}

// registerItem is one variable to add.
type registerItem struct {
	registration *setpointv1.VariableRegistration
	stored       value.Stored
	constraints  []byte
	refusal      *savedRefusal
	definition   *value.Definition
	// dependsOn are the names of what it depends on, candidates those that its expression may mean, and problem is why a
	// derived one has no computed value: known once the variables that it names are.
	dependsOn, candidates []string
	problem               string
}

// registerCall is a request that adds variables.
type registerCall struct {
	caller
	sessionID, requestID string
	hash                 []byte
	items                []registerItem
	// order is the places of the items in the order in which they get their revisions; nil is as they are.
	order  []int
	atomic bool
	// replayed is set when the outcome is that of an earlier call.
	replayed bool
	// method is the RPC.
	method string
}

func (s *Service) newRegisterCall(
	ctx context.Context, req writeRequest, atomic bool, registrations ...*setpointv1.VariableRegistration,
) (*registerCall, error) {
	hash, err := bodyHash(req)
	if err != nil {
		return nil, err
	}
	call := &registerCall{
		sessionID: req.GetSessionId(), caller: callerIn(ctx, req.GetSessionId()), requestID: req.GetRequestId(),
		hash: hash, atomic: atomic,
	}
	call.method = methodName(setpointv1.VariableService_RegisterVariable_FullMethodName)
	if _, batch := req.(*setpointv1.BatchRegisterVariablesRequest); batch {
		call.method = methodName(setpointv1.VariableService_BatchRegisterVariables_FullMethodName)
	}
	total := 0
	for _, r := range registrations {
		item := newRegisterItem(r, s.limits.ValueBytes)
		total += max(item.stored.Bytes, len(item.stored.JSON))
		call.items = append(call.items, item)
	}
	if len(registrations) > 1 && total > batchBytes {
		return nil, batchTooLarge(total)
	}
	return call, nil
}

// newRegisterItem checks a registration; what refuses it is decided here, and becomes the outcome in its turn.
func newRegisterItem(r *setpointv1.VariableRegistration, maxBytes int) registerItem {
	item := registerItem{
		registration: r, stored: value.Stored{JSON: []byte("null")}, constraints: []byte("{}"),
	}
	if err := item.check(maxBytes); err != nil {
		item.stored = value.Stored{JSON: []byte("null")}
		item.refusal = refusalOf(err)
	}
	return item
}

func (i *registerItem) check(maxBytes int) error {
	if err := checkMetadata(i.registration.GetMetadata()); err != nil {
		return err
	}
	definition, err := value.NewDefinition(i.registration.GetType(), i.registration.GetConstraints())
	if err != nil {
		return err
	}
	i.definition = definition
	if i.constraints, err = value.MarshalConstraints(i.registration.GetConstraints()); err != nil {
		return err
	}
	if i.registration.GetStrict() && i.registration.GetExpression() == "" {
		return invalid("strict", "only a variable with an expression can be strict")
	}
	if i.registration.GetValue() == nil {
		if i.registration.GetExpression() == "" {
			return invalid("value", "value is required")
		}
		return nil
	}
	i.stored, err = definition.Accept(i.registration.GetName(), i.registration.GetValue(), maxBytes)
	return err
}

func (c *registerCall) asked(limits Limits, i int) asked {
	return asked{
		sessionID: c.sessionID, variable: c.items[i].registration.GetName(), requestID: c.requestID, limits: limits,
		permission: identity.Write, registers: true,
	}
}

// variable is what was registered, from the request and its outcome.
func (c *registerCall) variable(i int, o itemOutcome) (*setpointv1.Variable, error) {
	item := c.items[i]
	r := item.registration
	v, err := value.Decode(r.GetType(), item.stored.JSON, item.stored.Payload)
	if err != nil {
		return nil, err
	}
	constraints, err := value.UnmarshalConstraints(item.constraints)
	if err != nil {
		return nil, err
	}
	at := timestamppb.New(o.ChangedAt)
	return &setpointv1.Variable{
		VariableId: o.VariableID, SessionId: c.sessionID, Name: r.GetName(), Type: r.GetType(), Value: v,
		Constraints: constraints, Metadata: r.GetMetadata(), Revision: o.Revision, HistoryLimit: historyLimit(r),
		CreatedAt: at, UpdatedAt: at, UpdatedBy: c.principal, DependsOn: item.dependsOn, Expression: r.GetExpression(),
		Strict: r.GetStrict(), Stale: item.stale(o.Revision), AccessMode: accessModes[item.accessMode()],
	}, nil
}

func (i *registerItem) stale(revision int64) *setpointv1.Stale {
	if i.problem == "" {
		return nil
	}
	return stale(revision, i.registration.GetName(), i.problem)
}

func historyLimit(r *setpointv1.VariableRegistration) int64 {
	if r.HistoryLimit == nil {
		return defaultHistoryLimit
	}
	return r.GetHistoryLimit()
}

// register adds the variables and returns what became of each, in its place.
func (s *Service) register(ctx context.Context, call *registerCall) ([]itemOutcome, error) {
	params, err := call.params(s.limits.Variables)
	if err != nil {
		return nil, err
	}
	var rows []dbgen.VariableRegisterRow
	err = s.db.Locked(ctx, "register variables", []string{call.sessionID},
		func(ctx context.Context, q *dbgen.Queries) error {
			rows, err = q.VariableRegister(ctx, params)
			return err
		})
	if err != nil {
		return nil, err
	}
	if len(rows) > 0 && rows[0].Refused == "REPLAYED" {
		call.replayed = true
		s.events.RequestReplayed(ctx, call.sessionID, call.principal)
		return recordedOutcomes(rows[0].Outcome)
	}
	outcomes, err := registerOutcomes(call, rows)
	if err != nil {
		return nil, err
	}
	for i, o := range outcomes {
		if o.Refused == "" && o.Revision > 0 {
			s.definitions.remember(call.sessionID, o.Name, definition{
				revision: o.Revision, check: call.items[i].definition, learned: time.Now(),
			})
		}
	}
	return outcomes, nil
}

// registerOutcomes is what became of each registration.
func registerOutcomes(call *registerCall, rows []dbgen.VariableRegisterRow) ([]itemOutcome, error) {
	if len(rows) != len(call.items) {
		return nil, fmt.Errorf("register variables: %d answers for %d items", len(rows), len(call.items))
	}
	outcomes := make([]itemOutcome, len(rows))
	order := call.inOrder()
	for _, row := range rows {
		i := order[row.Ord]
		outcomes[i] = itemOutcome{
			Ord: row.Ord, Refused: row.Refused, VariableID: row.VariableID, Revision: row.Revision,
			Name: call.items[i].registration.GetName(), ChangedAt: row.ChangedAt.Time, Refusal: call.items[i].refusal,
		}
	}
	return outcomes, nil
}

// inOrder are the places of the items in the order in which they get their revisions.
func (c *registerCall) inOrder() []int {
	if c.order != nil {
		return c.order
	}
	order := make([]int, len(c.items))
	for i := range order {
		order[i] = i
	}
	return order
}

func (c *registerCall) params(maxVariables int64) (dbgen.VariableRegisterParams, error) {
	p := dbgen.VariableRegisterParams{
		SessionID: c.sessionID, Principal: c.principal, Groups: c.groups, Authority: c.authority, RequestID: c.requestID, BodyHash: orEmpty(c.hash),
		MaxVariables: maxVariables, Atomic: c.atomic,
	}
	for ord, i := range c.inOrder() {
		item := c.items[i]
		id, err := newID(variablePrefix)
		if err != nil {
			return p, fmt.Errorf("make a variable id: %w", err)
		}
		p.Ords = append(p.Ords, int32(ord))
		p.VariableIds = append(p.VariableIds, id)
		p.Names = append(p.Names, item.registration.GetName())
		p.Types = append(p.Types, value.TypeName(item.registration.GetType()))
		p.Vals = append(p.Vals, item.stored.JSON)
		p.PayloadHashes = append(p.PayloadHashes, orEmpty(item.stored.SHA256))
		p.Payloads = append(p.Payloads, orEmpty(item.stored.Payload))
		p.ValueBytes = append(p.ValueBytes, int64(item.stored.Bytes))
		p.Constraints = append(p.Constraints, item.constraints)
		p.Metadatas = append(p.Metadatas, metadataJSON(item.registration.GetMetadata()))
		p.HistoryLimits = append(p.HistoryLimits, historyLimit(item.registration))
		p.AccessModes = append(p.AccessModes, item.accessMode())
		p.Expressions = append(p.Expressions, item.registration.GetExpression())
		p.Stricts = append(p.Stricts, item.registration.GetStrict())
		p.StaleErrors = append(p.StaleErrors, item.problem)
		p.Refusals = append(p.Refusals, refusalJSON(item.refusal))
	}
	return p, nil
}
