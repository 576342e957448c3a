package service

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/setpointdb/setpoint/db/dbgen"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/audit"
	"github.com/setpointdb/setpoint/internal/identity"
	"github.com/setpointdb/setpoint/internal/telemetry"
)

// What changes who may do what is audited in its own transaction; denials are collected and written in batches.

const eventPrefix = "evt_"

// The kinds of audit events as the database has them.
const (
	auditDenied        = "access_denied"
	auditRuleAdded     = "rule_added"
	auditRuleRemoved   = "rule_removed"
	auditAccessModeSet = "access_mode_set"
	auditTokenCreated  = "token_created"
	auditTokenRevoked  = "token_revoked"
	auditStopForced    = "stop_forced"
)

var auditKinds = map[setpointv1.AuditEventKind]string{
	setpointv1.AuditEventKind_AUDIT_EVENT_KIND_ACCESS_DENIED:   auditDenied,
	setpointv1.AuditEventKind_AUDIT_EVENT_KIND_RULE_ADDED:      auditRuleAdded,
	setpointv1.AuditEventKind_AUDIT_EVENT_KIND_RULE_REMOVED:    auditRuleRemoved,
	setpointv1.AuditEventKind_AUDIT_EVENT_KIND_ACCESS_MODE_SET: auditAccessModeSet,
	setpointv1.AuditEventKind_AUDIT_EVENT_KIND_TOKEN_CREATED:   auditTokenCreated,
	setpointv1.AuditEventKind_AUDIT_EVENT_KIND_TOKEN_REVOKED:   auditTokenRevoked,
	setpointv1.AuditEventKind_AUDIT_EVENT_KIND_STOP_FORCED:     auditStopForced,
}

var auditKindsByName = func() map[string]setpointv1.AuditEventKind {
	names := make(map[string]setpointv1.AuditEventKind, len(auditKinds))
	for kind, name := range auditKinds {
		names[name] = kind
	}
	return names
}()

// auditEvent is something to be audited.
type auditEvent struct {
	// id is made where there is none.
	id string
	// age is how long ago it was.
	age                                              time.Duration
	sessionID, kind, principal, permission, variable string
	// rule is a ruleRecord; nil for none.
	rule []byte
	// tokenID is empty for the token that the caller has shown, if any.
	tokenID, optimizationID, method, reason, detail string
}

// insertAudit writes events down, in the transaction of what they are about, whose context knows the caller.
func insertAudit(ctx context.Context, q *dbgen.Queries, events []auditEvent) error {
	if len(events) == 0 {
		return nil
	}
	var p dbgen.AuditInsertParams
	for _, e := range events {
		if e.id == "" {
			id, err := newID(eventPrefix)
			if err != nil {
				return fmt.Errorf("make an audit event's id: %w", err)
			}
			e.id = id
		}
		if e.rule == nil {
			e.rule = []byte("null")
		}
		if e.tokenID == "" {
			e.tokenID = identity.FromContext(ctx).Credentials
		}
		p.SessionIds, p.EventIds = append(p.SessionIds, e.sessionID), append(p.EventIds, e.id)
		p.AgesUs, p.Kinds = append(p.AgesUs, e.age.Microseconds()), append(p.Kinds, e.kind)
		p.Principals, p.Permissions = append(p.Principals, e.principal), append(p.Permissions, e.permission)
		p.Variables, p.AccessRules = append(p.Variables, e.variable), append(p.AccessRules, e.rule)
		p.TokenIds, p.OptimizationIds = append(p.TokenIds, e.tokenID), append(p.OptimizationIds, e.optimizationID)
		p.Methods, p.Reasons = append(p.Methods, e.method), append(p.Reasons, e.reason)
		p.Details = append(p.Details, e.detail)
	}
	return q.AuditInsert(ctx, p)
}

// auditForce audits that an optimization is stopped by force.
func auditForce(ctx context.Context, q *dbgen.Queries, sessionID, principal, optimizationID, reason string) error {
	return insertAudit(ctx, q, []auditEvent{{
		sessionID: sessionID, kind: auditStopForced, principal: principal, optimizationID: optimizationID, reason: reason,
		method: methodName(setpointv1.OptimizationService_StopOptimization_FullMethodName),
	}})
}

// modeChange is a variable that is registered with, or gets, another access mode.
type modeChange struct {
	variable string
	// from is empty of a registration.
	from, to string
}

// auditAccessMode audits that variables get other access modes. method is an RPC, as methodName has it.
func auditAccessMode(
	ctx context.Context, q *dbgen.Queries, sessionID, principal, method, reason string, changes ...modeChange,
) error {
	var events []auditEvent
	for _, c := range changes {
		detail := "registered as " + c.to
		if c.from != "" {
			detail = fmt.Sprintf("from %s to %s", c.from, c.to)
		}
		events = append(events, auditEvent{
			sessionID: sessionID, kind: auditAccessModeSet, principal: principal, variable: c.variable, method: method,
			reason: reason, detail: detail,
		})
	}
	return insertAudit(ctx, q, events)
}

// newAudit makes the buffer of denials.
func (s *Service) newAudit() *audit.Buffer {
	return audit.New(audit.Config{
		Flush: func(ctx context.Context, denials []audit.Denial) error {
			var events []auditEvent
			for _, d := range denials {
				e := auditEvent{
					id: d.EventID, age: max(0, time.Since(d.At)), sessionID: d.SessionID, kind: auditDenied, principal: d.Principal,
					permission: d.Permission, variable: d.Variable, method: d.Method, tokenID: d.TokenID, detail: d.Detail,
				}
				if d.RuleID != "" {
					e.rule, _ = json.Marshal(map[string]string{"rule_id": d.RuleID}) // A text always marshals.
				}
				events = append(events, e)
			}
			return s.db.Write(ctx, "audit denials", func(ctx context.Context, q *dbgen.Queries) error {
				return insertAudit(ctx, q, events)
			})
		},
		Waits:    s.events.AuditWaited,
		Failed:   s.events.AuditFailed,
		Hopeless: unacceptable,
		Dropped:  func(ctx context.Context, _ audit.Denial, err error) { s.deniedLog.lost(ctx, s.events, 1, err) },
	})
}

// unacceptable tells that the database answered, and will not take what it was given: data that it cannot read, a constraint, a limit,
// or a trigger. Whatever an operator can mend, such as a missing grant or a full disk, is none of it.
func unacceptable(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && len(pg.Code) >= 2 && slices.Contains([]string{"21", "22", "23", "44", "54", "P0"}, pg.Code[:2])
}

// closeAudit writes down the denials that are held.
func (s *Service) closeAudit(ctx context.Context) {
	if lost := s.audit.Close(ctx); lost > 0 {
		s.deniedLog.lost(ctx, s.events, lost, audit.ErrClosed)
	}
	s.deniedLog.close(ctx, s.events)
}

// Judged records what became of a call by who may do what: to be called after every call, of a stream too, with the path that gRPC
// calls it by, and before its caller has the answer: where there are more denials than can be written, whoever was denied waits,
// for as long as the context lasts.
func (s *Service) Judged(ctx context.Context, method string, req, answer any, err error, took time.Duration) {
	method = methodName(method)
	need := requirements[method]
	sessionID := ""
	if r, ok := req.(interface{ GetSessionId() string }); ok {
		sessionID = r.GetSessionId()
	}
	if need != anybody {
		s.events.AccessChecked(ctx, telemetry.Check{
			Session: sessionID, Permission: need, Result: judgement(err), Took: took,
		})
	}
	denials := denialsIn(answer, err)
	for i := range denials {
		d := &denials[i]
		if d.permission == "" && need != anything {
			d.permission = need
		}
		if r, ok := req.(interface{ GetVariable() string }); ok && d.variable == "" && isHidden(err) {
			d.variable = r.GetVariable()
		}
	}
	gathered := gather(denials)
	for i, d := range gathered {
		if err := s.noteDenial(ctx, method, sessionID, d); err != nil {
			s.deniedLog.lost(ctx, s.events, len(gathered)-i, err)
			return
		}
	}
}

// denials are what one call was refused for, for lack of one permission: the first of them, and what the others were about.
type denials struct {
	denial
	// more is how many others there are; also are the first few of their variables.
	more int
	also []string
}

// alsoShown is how many variables of a call an event names besides the first.
const alsoShown = 10

// gather puts together what lacks the same permission, so that no call fills the audit.
func gather(all []denial) []denials {
	var out []denials
	for _, d := range all {
		i := slices.IndexFunc(out, func(g denials) bool { return g.permission == d.permission })
		if i < 0 {
			out = append(out, denials{denial: d})
			continue
		}
		if out[i].more++; len(out[i].also) < alsoShown && d.variable != "" {
			out[i].also = append(out[i].also, d.variable)
		}
	}
	return out
}

// detail says what the event's columns do not: of how many others the call was about, and after a colon which.
func (d denials) detail() string {
	if d.more == 0 {
		return ""
	}
	text := fmt.Sprintf("and %d more", d.more)
	if len(d.also) == 0 {
		return text
	}
	text += ": " + strings.Join(d.also, ", ")
	if len(d.also) < d.more {
		text += ", …"
	}
	return text
}

// noteDenial tells of a denial, and has it audited.
func (s *Service) noteDenial(ctx context.Context, method, sessionID string, d denials) error {
	who := identity.FromContext(ctx)
	s.denials.note(who.Name, sessionID)
	violation := telemetry.Violation{
		Session: sessionID, Principal: who.Name, Permission: d.permission, Variable: d.variable, Rule: d.rule, Method: method,
		Token: who.Credentials, More: d.more,
	}
	violation.Unlogged, violation.Quiet = s.deniedLog.admit(who.Name)
	s.events.AccessDenied(ctx, violation)
	id, err := newID(eventPrefix)
	if err != nil {
		return fmt.Errorf("make an audit event's id: %w", err)
	}
	return s.audit.Note(ctx, audit.Denial{
		EventID: id, At: time.Now(), SessionID: sessionID, Principal: who.Name, Permission: d.permission,
		Variable: d.variable, RuleID: d.rule, Method: method, TokenID: who.Credentials, Detail: d.detail(),
	})
}

// judgement is the word for what became of a call by who may do what.
func judgement(err error) string {
	e := asRefusal(err)
	switch {
	case err == nil:
		return "allowed"
	case e == nil:
		return "undecided"
	case isDenial(e):
		return "denied"
	case e.Reason == setpointv1.ErrorReason_SESSION_NOT_FOUND || e.Reason == setpointv1.ErrorReason_INVALID_REQUEST:
		return "undecided"
	}
	return "allowed"
}

func isDenial(e *Error) bool {
	return e.denial != nil || e.Reason == setpointv1.ErrorReason_ACCESS_DENIED
}

// isHidden tells of a denial that was answered as if the session was not there.
func isHidden(err error) bool {
	e := asRefusal(err)
	return e != nil && e.Reason == setpointv1.ErrorReason_SESSION_NOT_FOUND
}

// denialsIn are the denials in what became of a call: of an atomic batch, and of one that did what it could, each item's.
func denialsIn(answer any, err error) []denial {
	if err != nil {
		return denialsOfError(asRefusal(err))
	}
	var out []denial
	switch m := answer.(type) {
	case *setpointv1.BatchSetVariablesResponse:
		for _, r := range m.GetResults() {
			out = append(out, denialOfItem(r.GetError())...)
		}
	case *setpointv1.BatchRegisterVariablesResponse:
		for _, r := range m.GetResults() {
			out = append(out, denialOfItem(r.GetError())...)
		}
	case *setpointv1.BatchGetVariablesResponse:
		for _, variable := range m.GetDenied() {
			out = append(out, denial{permission: toRead, variable: variable})
		}
	}
	return out
}

func denialsOfError(e *Error) []denial {
	if e == nil {
		return nil
	}
	var out []denial
	for _, f := range e.Failed {
		out = append(out, denialOfItem(f.GetError())...)
	}
	switch {
	case len(out) > 0:
		return out
	case e.denial != nil:
		return []denial{*e.denial}
	case isDenial(e):
		return []denial{{permission: e.Metadata["permission"], variable: e.Metadata["variable"], rule: e.Metadata["rule"]}}
	}
	return nil
}

func denialOfItem(item *setpointv1.ItemError) []denial {
	if item.GetReason() != setpointv1.ErrorReason_ACCESS_DENIED {
		return nil
	}
	m := item.GetMetadata()
	return []denial{{permission: m["permission"], variable: m["variable"], rule: m["rule"]}}
}

// auditPage is what a page of audit events is of.
type auditPage struct {
	before       string
	kinds        []string
	since, until pgtype.Timestamptz
	size         int
	filter       string
}

func newAuditPage(req *setpointv1.ListAuditEventsRequest) (auditPage, error) {
	page := auditPage{size: pageSize(req.GetPageSize()), kinds: []string{}}
	for _, kind := range req.GetKinds() {
		page.kinds = append(page.kinds, auditKinds[kind])
	}
	slices.Sort(page.kinds)
	page.kinds = slices.Compact(page.kinds)
	var err error
	if page.since, err = timeOf("since", req.GetSince()); err != nil {
		return page, err
	}
	if page.until, err = timeOf("until", req.GetUntil()); err != nil {
		return page, err
	}
	page.filter = filterHash(append([]string{
		"audit", req.GetSessionId(), req.GetPrincipal(), req.GetVariable(), moment(page.since), moment(page.until),
	}, page.kinds...)...)
	token, err := decodePageToken(req.GetPageToken(), page.filter)
	if page.before = token.Name; page.before == "" {
		page.before = eventPrefix + "~" // Behind every id.
	}
	return page, err
}

func timeOf(field string, at *timestamppb.Timestamp) (pgtype.Timestamptz, error) {
	if at == nil {
		return pgtype.Timestamptz{}, nil
	}
	return pgtype.Timestamptz{Time: at.AsTime(), Valid: true}, checkExpiry(field, at)
}

// moment is a time as a text; empty for none.
func moment(t pgtype.Timestamptz) string {
	if !t.Valid {
		return ""
	}
	return strconv.FormatInt(t.Time.UnixMicro(), 10)
}

// ListAuditEvents returns a page of what was audited, newest first.
func (s *Service) ListAuditEvents(ctx context.Context, req *setpointv1.ListAuditEventsRequest) (
	*setpointv1.ListAuditEventsResponse, error,
) {
	if req.GetSessionId() == "" && !identity.FromContext(ctx).ServesServer() {
		return nil, accessDenied(toAdmin, "only server admins, with credentials that are not narrowed, may see the whole server's audit")
	}
	page, err := newAuditPage(req)
	if err != nil {
		return nil, err
	}
	var rows []dbgen.SetpointAuditEvent
	if req.GetSessionId() == "" {
		rows, err = s.auditOfServer(ctx, req, page)
	} else {
		rows, err = s.auditOfSession(ctx, req, page)
	}
	if err != nil {
		return nil, err
	}
	response := &setpointv1.ListAuditEventsResponse{}
	if len(rows) > page.size {
		rows = rows[:page.size]
		response.NextPageToken = pageToken{Filter: page.filter, Name: rows[page.size-1].EventID}.encode()
	}
	for _, row := range rows {
		event, err := auditEventOf(row)
		if err != nil {
			return nil, err
		}
		response.Events = append(response.Events, event)
	}
	return response, nil
}

func (s *Service) auditOfServer(ctx context.Context, req *setpointv1.ListAuditEventsRequest, page auditPage) (
	[]dbgen.SetpointAuditEvent, error,
) {
	var rows []dbgen.SetpointAuditEvent
	err := s.db.Read(ctx, "list audit events", func(ctx context.Context, q *dbgen.Queries) error {
		var err error
		rows, err = q.AuditList(ctx, dbgen.AuditListParams{
			Before: page.before, Kinds: page.kinds, Principal: req.GetPrincipal(), Variable: req.GetVariable(), Since: page.since,
			Until: page.until, RowLimit: int32(page.size) + 1,
		})
		return err
	})
	return rows, err
}

func (s *Service) auditOfSession(ctx context.Context, req *setpointv1.ListAuditEventsRequest, page auditPage) (
	[]dbgen.SetpointAuditEvent, error,
) {
	c := callerIn(ctx, req.GetSessionId())
	var found []dbgen.AuditListOfSessionRow
	err := s.db.Read(ctx, "list a session's audit events", func(ctx context.Context, q *dbgen.Queries) error {
		var err error
		found, err = q.AuditListOfSession(ctx, dbgen.AuditListOfSessionParams{
			SessionID: req.GetSessionId(), Caller: c.principal, Groups: c.groups, Authority: c.authority, Before: page.before,
			Kinds: page.kinds, Principal: req.GetPrincipal(), Variable: req.GetVariable(), Since: page.since, Until: page.until,
			RowLimit: int32(page.size) + 1,
		})
		return err
	})
	switch {
	case err != nil:
		return nil, err
	case len(found) == 0:
		return nil, sessionNotFound(req.GetSessionId())
	case !found[0].Anything:
		return nil, sessionHidden(req.GetSessionId())
	case found[0].Access&int32(identity.Admin) == 0:
		return nil, denied(identity.Admin, "", "")
	}
	s.extend.Note(req.GetSessionId(), found[0].ReadAt.Time, microseconds(found[0].TTLMicros))
	return s.shownEvents(ctx, req, found)
}

// shownEvents are the events of a session as the caller may see them: who may not read all of the session is not told of what
// variable it is where the caller may not read that, nor of a rule for it.
func (s *Service) shownEvents(
	ctx context.Context, req *setpointv1.ListAuditEventsRequest, found []dbgen.AuditListOfSessionRow,
) ([]dbgen.SetpointAuditEvent, error) {
	seen := sight{all: true}
	if !found[0].ReadsAll {
		names := []string{req.GetVariable()}
		for _, f := range found {
			names = append(names, f.Variable)
		}
		var err error
		if seen, err = s.lookAround(ctx, req.GetSessionId(), names); err != nil {
			return nil, err
		}
	}
	if req.GetVariable() != "" && !seen.sees(req.GetVariable()) {
		return nil, denied(identity.Admin, req.GetVariable(), "")
	}
	rows := make([]dbgen.SetpointAuditEvent, 0, len(found))
	for _, f := range found {
		if f.EventID == "" {
			return nil, nil // There is none.
		}
		if f.Variable != "" && !seen.sees(f.Variable) {
			f.Variable, f.AccessRule = hiddenName, nil
		}
		if f.Kind == auditDenied && !seen.all {
			f.Detail, _, _ = strings.Cut(f.Detail, ":") // It names others.
		}
		rows = append(rows, dbgen.SetpointAuditEvent{
			SessionID: req.GetSessionId(), EventID: f.EventID, OccurredAt: f.OccurredAt, Kind: f.Kind, Principal: f.Principal,
			Permission: f.Permission, Variable: f.Variable, AccessRule: f.AccessRule, TokenID: f.TokenID,
			OptimizationID: f.OptimizationID, Method: f.Method, Reason: f.Reason, Detail: f.Detail,
		})
	}
	return rows, nil
}

func auditEventOf(row dbgen.SetpointAuditEvent) (*setpointv1.AuditEvent, error) {
	rule, err := recordedRule(row.AccessRule)
	if err != nil {
		return nil, err
	}
	event := &setpointv1.AuditEvent{
		EventId: row.EventID, OccurredAt: timestamp(row.OccurredAt), Kind: auditKindsByName[row.Kind], SessionId: row.SessionID,
		Principal: row.Principal, Variable: row.Variable, Rule: rule, TokenId: row.TokenID, OptimizationId: row.OptimizationID,
		Method: row.Method, Reason: row.Reason, Detail: row.Detail,
	}
	if set, ok := identity.ParsePermission(row.Permission); ok {
		event.Permission = permissionList(set)[0]
	} else if row.Permission == ownerOnly && row.Detail == "" {
		event.Detail = "only the session's owner and server admins may"
	}
	return event, nil
}
