package service

import (
	"context"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgtype"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/setpointdb/setpoint/db/dbgen"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/identity"
)

// Reading the audit.

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
