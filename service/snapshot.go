package service

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/setpointdb/setpoint/db/dbgen"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/value"
)

// GetSnapshot returns a page of the session's variables as they stood. Its first page decides what it is as of.
func (s *Service) GetSnapshot(ctx context.Context, req *setpointv1.GetSnapshotRequest) (
	*setpointv1.GetSnapshotResponse, error,
) {
	filter := filterHash("snapshot", req.GetSessionId(), fmt.Sprintf("%T %d %d %d", req.GetAt(), req.GetRevision(),
		req.GetTime().GetSeconds(), req.GetTime().GetNanos()))
	token, err := decodePageToken(req.GetPageToken(), filter)
	if err != nil {
		return nil, err
	}
	params := dbgen.SnapshotPageParams{
		SessionID: req.GetSessionId(), After: token.Name, RowLimit: int32(pageSize(req.GetPageSize())) + 1,
		MaxBytes: s.limits.PageBytes,
	}
	c := callerIn(ctx, req.GetSessionId())
	params.Principal, params.Groups, params.Authority = c.principal, c.groups, c.authority
	var rows []dbgen.SnapshotPageRow
	err = s.db.Read(ctx, "read a snapshot", func(ctx context.Context, q *dbgen.Queries) error {
		if _, err := sightOf(ctx, q, req.GetSessionId()); err != nil {
			return err
		}
		if params.At, err = snapshotAt(ctx, q, req, token); err != nil {
			return err
		}
		rows, err = q.SnapshotPage(ctx, params)
		return err
	})
	if err != nil {
		return nil, err
	}
	if len(rows) == 0 {
		return nil, sessionNotFound(req.GetSessionId())
	}
	s.extend.Note(req.GetSessionId(), rows[0].ReadAt.Time, microseconds(rows[0].TTLMicros))
	if rows[0].At < rows[0].OldestRevision {
		return nil, historyTruncated(rows[0].OldestRevision)
	}
	return snapshotPage(rows, int(params.RowLimit)-1, filter)
}

// snapshotAt is the revision to read at: that of the page before, or what the request names; nil is the current one.
func snapshotAt(
	ctx context.Context, q *dbgen.Queries, req *setpointv1.GetSnapshotRequest, token pageToken,
) (*int64, error) {
	if req.GetPageToken() != "" {
		return &token.At, nil
	}
	if req.GetAt() == nil {
		return nil, nil
	}
	var revision *int64
	if r, ok := req.GetAt().(*setpointv1.GetSnapshotRequest_Revision); ok {
		revision = &r.Revision
	}
	at, err := findRevision(ctx, q, req.GetSessionId(), revision, req.GetTime())
	return &at, err
}

// findRevision is the revision that a request names, or the last one at the time that it names.
func findRevision(
	ctx context.Context, q *dbgen.Queries, sessionID string, revision *int64, at *timestamppb.Timestamp,
) (int64, error) {
	params := dbgen.SnapshotTargetParams{SessionID: sessionID}
	params.Revision = revision
	if revision == nil {
		if err := at.CheckValid(); err != nil {
			return 0, invalid("time", err.Error())
		}
		params.Time = pgtype.Timestamptz{Time: at.AsTime(), Valid: true}
	}
	row, err := q.SnapshotTarget(ctx, params)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return 0, sessionNotFound(sessionID)
	case err != nil:
		return 0, err
	case revision == nil && row.TooOld:
		return 0, historyTruncated(row.OldestRevision)
	case revision == nil:
		revision = &row.RevisionAtTime
	case *revision > row.Revision:
		return 0, invalid("revision", fmt.Sprintf("%d is to come; the current one is %d", *revision, row.Revision))
	}
	if *revision < row.OldestRevision {
		return 0, historyTruncated(row.OldestRevision)
	}
	if row.Settled != nil {
		revision = row.Settled
	}
	return *revision, nil
}

func historyTruncated(oldest int64) *Error {
	return refuse(setpointv1.ErrorReason_HISTORY_TRUNCATED,
		fmt.Sprintf("the history is not kept that far back: the oldest revision is %d", oldest),
		"oldest_revision", strconv.FormatInt(oldest, 10))
}

// snapshotPage makes a page of at most size variables of the candidates.
func snapshotPage(rows []dbgen.SnapshotPageRow, size int, filter string) (*setpointv1.GetSnapshotResponse, error) {
	response := &setpointv1.GetSnapshotResponse{Revision: rows[0].At}
	looked := min(len(rows), size, int(rows[0].Candidates))
	for _, row := range rows[:looked] {
		if row.Name == "" {
			continue // Registered since.
		}
		variable, err := snapshotVariable(row)
		if err != nil {
			return nil, err
		}
		response.Variables = append(response.Variables, variable)
	}
	if int64(looked) < rows[0].Candidates {
		response.NextPageToken = pageToken{Filter: filter, Name: rows[looked-1].VariableID, At: rows[0].At}.encode()
	}
	return response, nil
}

func snapshotVariable(row dbgen.SnapshotPageRow) (*setpointv1.SnapshotVariable, error) {
	v, err := storedValue(row.Type, row.Value, row.Payload)
	if err != nil {
		return nil, fmt.Errorf("variable %s: %w", row.VariableID, err)
	}
	metadata, err := metadataOf(row.Metadata)
	if err != nil {
		return nil, fmt.Errorf("variable %s: %w", row.VariableID, err)
	}
	kind, _ := value.ParseType(row.Type) // storedValue knew it.
	return &setpointv1.SnapshotVariable{
		VariableId: row.VariableID, Name: row.Name, Type: kind, Value: v, Version: row.Version, Metadata: metadata,
	}, nil
}

// wholeSession is how long work on a whole session may take.
const wholeSession = 5 * time.Minute
