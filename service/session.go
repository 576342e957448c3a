package service

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/setpointdb/setpoint/db"
	"github.com/setpointdb/setpoint/db/dbgen"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/identity"
	"github.com/setpointdb/setpoint/internal/keepalive"
)

// defaultTTL is the time to live of a session that asks for none.
const defaultTTL = time.Hour

// CreateSession opens a session that the caller owns.
func (s *Service) CreateSession(ctx context.Context, req *setpointv1.CreateSessionRequest) (*setpointv1.Session, error) {
	if err := checkMetadata(req.GetMetadata()); err != nil {
		return nil, err
	}
	if req.GetSessionId() == "" {
		if req.GetRequestId() != "" {
			return nil, invalid("request_id", "needs a session_id, which a repeat can be found by")
		}
		id, err := uuid.NewV7()
		if err != nil {
			return nil, fmt.Errorf("make a session id: %w", err)
		}
		req.SessionId = id.String()
	}
	ttl := defaultTTL
	if req.Ttl != nil {
		ttl = req.GetTtl().AsDuration()
	}
	owner := identity.FromContext(ctx).Name
	if callerIn(ctx, req.GetSessionId()).authority&int32(identity.Write) == 0 {
		return nil, accessDenied(identity.Write.String(), "the credentials are narrowed to less than creating this session")
	}
	session, replayed, err := write(ctx, s, reservation{req, owner}, &setpointv1.Session{},
		func(ctx context.Context, q transaction, state dbgen.SessionStateRow) (*setpointv1.Session, error) {
			if !state.Alive {
				if err := s.endOptimizations(ctx, q, req.GetSessionId()); err != nil {
					return nil, err
				}
			}
			row, err := q.SessionBegin(ctx, dbgen.SessionBeginParams{
				SessionID: req.GetSessionId(), Owner: owner, TTLMicros: ttl.Microseconds(),
				Metadata: metadataJSON(req.GetMetadata()),
			})
			if errors.Is(err, pgx.ErrNoRows) {
				return nil, refuse(setpointv1.ErrorReason_SESSION_EXISTS,
					fmt.Sprintf("session %q exists", req.GetSessionId()), "session_id", req.GetSessionId())
			}
			if err != nil {
				return nil, err
			}
			return sessionRow(row).proto()
		})
	if err != nil {
		return nil, err
	}
	if replayed {
		s.events.RequestReplayed(ctx, req.GetSessionId(), owner)
	} else {
		s.events.SessionCreated(ctx, req.GetSessionId(), owner)
	}
	return session, nil
}

// reservation is a request in a session that need not exist yet: the transaction makes it a row to lock.
type reservation struct {
	writeRequest
	owner string
}

// GetSession returns a session.
func (s *Service) GetSession(ctx context.Context, req *setpointv1.GetSessionRequest) (*setpointv1.Session, error) {
	var row dbgen.SessionGetRow
	err := s.db.Read(ctx, "get session", func(ctx context.Context, q *dbgen.Queries) error {
		var err error
		row, err = getSession(ctx, q, req.GetSessionId())
		return err
	})
	if err != nil {
		return nil, err
	}
	s.extend.Note(req.GetSessionId(), row.ReadAt.Time, microseconds(row.TTLMicros))
	return sessionRow{
		SessionID: row.SessionID, Owner: row.Owner, TTLMicros: row.TTLMicros, ExpiresAt: row.ExpiresAt,
		Metadata: row.Metadata, Revision: row.Revision, CreatedAt: row.CreatedAt, VariableCount: row.VariableCount,
	}.proto()
}

// getSession reads a session that is alive and in which the caller may do something.
func getSession(ctx context.Context, q *dbgen.Queries, sessionID string) (dbgen.SessionGetRow, error) {
	c := callerIn(ctx, sessionID)
	row, err := q.SessionGet(ctx, dbgen.SessionGetParams{
		SessionID: sessionID, Principal: c.principal, Groups: c.groups, Authority: c.authority,
	})
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return row, sessionNotFound(sessionID)
	case err == nil && !row.Anything:
		return row, sessionHidden(sessionID)
	}
	return row, err
}

// ListSessions returns a page of the live sessions in which the caller may do something, by id.
func (s *Service) ListSessions(ctx context.Context, req *setpointv1.ListSessionsRequest) (
	*setpointv1.ListSessionsResponse, error,
) {
	filter := filterHash("sessions", req.GetPattern())
	token, err := decodePageToken(req.GetPageToken(), filter)
	if err != nil {
		return nil, err
	}
	size := pageSize(req.GetPageSize())
	names := globRange(req.GetPattern(), token.Name)
	var rows []dbgen.SessionListRow
	err = s.db.Read(ctx, "list sessions", func(ctx context.Context, q *dbgen.Queries) error {
		c := callerAnywhere(ctx)
		rows, err = q.SessionList(ctx, dbgen.SessionListParams{
			Principal: c.principal, Groups: c.groups, Authority: c.authority, Scope: sessionScope(ctx), Lo: names.Lo, Hi: names.Hi, Pattern: names.Like, RowLimit: int32(size) + 1,
		})
		return err
	})
	if err != nil {
		return nil, err
	}
	response := &setpointv1.ListSessionsResponse{}
	if len(rows) > size {
		rows = rows[:size]
		response.NextPageToken = pageToken{Filter: filter, Name: rows[size-1].SessionID}.encode()
	}
	for _, row := range rows {
		session, err := sessionRow(row).proto()
		if err != nil {
			return nil, err
		}
		response.Sessions = append(response.Sessions, session)
	}
	return response, nil
}

// sessionScope are LIKE patterns for the ids of the sessions in which the caller's credentials count.
func sessionScope(ctx context.Context) []string {
	globs := identity.FromContext(ctx).Scope.Sessions
	if len(globs) == 0 {
		return []string{"%"}
	}
	patterns := make([]string, 0, len(globs))
	for _, glob := range globs {
		patterns = append(patterns, globRange(glob, "").Like)
	}
	return patterns
}

// KeepSessionAlive extends a session from now.
func (s *Service) KeepSessionAlive(ctx context.Context, req *setpointv1.KeepSessionAliveRequest) (
	*setpointv1.Session, error,
) {
	if err := s.refuseAgain(ctx, callerIn(ctx, req.GetSessionId()), req.GetSessionId(), ""); err != nil {
		return nil, err
	}
	var row dbgen.SessionKeepAliveRow
	ids := []string{req.GetSessionId()}
	err := s.db.Locked(ctx, "keep a session alive", ids, func(ctx context.Context, q *dbgen.Queries) error {
		var err error
		c := callerIn(ctx, req.GetSessionId())
		row, err = q.SessionKeepAlive(ctx, dbgen.SessionKeepAliveParams{
			SessionID: req.GetSessionId(), Principal: c.principal, Groups: c.groups, Authority: c.authority,
		})
		return err
	})
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil, sessionNotFound(req.GetSessionId())
	case err != nil:
		return nil, err
	case !row.Anything:
		return nil, sessionHidden(req.GetSessionId())
	}
	return sessionRow{
		SessionID: row.SessionID, Owner: row.Owner, TTLMicros: row.TTLMicros, ExpiresAt: row.ExpiresAt,
		Metadata: row.Metadata, Revision: row.Revision, CreatedAt: row.CreatedAt, VariableCount: row.VariableCount,
	}.proto()
}

// DeleteSession ends a session at once.
func (s *Service) DeleteSession(ctx context.Context, req *setpointv1.DeleteSessionRequest) (
	*setpointv1.DeleteSessionResponse, error,
) {
	response, replayed, err := write(ctx, s, req, &setpointv1.DeleteSessionResponse{},
		func(ctx context.Context, q transaction, state dbgen.SessionStateRow) (*setpointv1.DeleteSessionResponse, error) {
			switch {
			case !state.Alive:
				return nil, sessionNotFound(req.GetSessionId())
			case !state.Owns || callerIn(ctx, req.GetSessionId()).authority&int32(identity.Admin) == 0:
				return nil, accessDenied(ownerOnly, "only the session's owner and server admins may delete it")
			}
			err := q.SessionEnd(ctx, dbgen.SessionEndParams{SessionID: req.GetSessionId()})
			return &setpointv1.DeleteSessionResponse{}, err
		})
	if err == nil && !replayed {
		s.events.SessionDeleted(ctx, req.GetSessionId(), identity.FromContext(ctx).Name)
	}
	return response, err
}

// extendSessions writes down what reads have extended, and gives back those of sessions that are locked.
func extendSessions(database *db.DB) keepalive.Flush {
	return func(ctx context.Context, reads []keepalive.Read) ([]keepalive.Read, error) {
		var params dbgen.SessionExtendParams
		for _, r := range reads {
			params.SessionIds = append(params.SessionIds, r.SessionID)
			params.ReadAt = append(params.ReadAt, pgtype.Timestamptz{Time: r.At, Valid: true})
		}
		var locked []string
		err := database.Write(ctx, "extend sessions", func(ctx context.Context, q *dbgen.Queries) error {
			var err error
			locked, err = q.SessionExtend(ctx, params)
			return err
		})
		if err != nil {
			return reads, err
		}
		left := map[string]bool{}
		for _, id := range locked {
			left[id] = true
		}
		return slices.DeleteFunc(reads, func(r keepalive.Read) bool { return !left[r.SessionID] }), nil
	}
}
