package service

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/setpointdb/setpoint/db/dbgen"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/audit"
	"github.com/setpointdb/setpoint/internal/identity"
	"github.com/setpointdb/setpoint/internal/telemetry"
)

// Denials: every call is judged when it has ended, and those that were denied are collected and audited in batches.

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
