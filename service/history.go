package service

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"

	"github.com/jackc/pgx/v5"

	"github.com/setpointdb/setpoint/db/dbgen"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/identity"
)

// ListHistory returns a page of changes, newest first: the versions of one variable, or, if kinds of change are named or
// no variable is, whatever happened.
func (s *Service) ListHistory(ctx context.Context, req *setpointv1.ListHistoryRequest) (
	*setpointv1.ListHistoryResponse, error,
) {
	changes := changeList(req.GetChanges())
	filter := filterHash(slices.Concat([]string{"history", req.GetSessionId(), req.GetVariable()}, changes)...)
	token, err := decodePageToken(req.GetPageToken(), filter)
	if err != nil {
		return nil, err
	}
	page := historyPage{
		sessionID: req.GetSessionId(), before: token.Before, size: pageSize(req.GetPageSize()), maxBytes: s.limits.PageBytes,
	}
	if token.Before == 0 {
		page.before = math.MaxInt64
	}
	var rows []historyRow
	byVersion := req.GetVariable() != "" && len(changes) == 0
	if byVersion {
		rows, err = s.listVersions(ctx, req.GetVariable(), page)
	} else {
		rows, err = s.listChanges(ctx, req.GetVariable(), changes, page)
	}
	if err != nil {
		return nil, err
	}
	response := &setpointv1.ListHistoryResponse{}
	for _, row := range rows[:min(page.size, len(rows))] {
		entry, err := row.proto()
		if err != nil {
			return nil, err
		}
		response.Entries = append(response.Entries, entry)
	}
	if n := len(response.Entries); n > 0 && int64(n) < rows[0].Candidates {
		last := rows[n-1]
		next := pageToken{Filter: filter, Before: last.Revision}
		if byVersion {
			next.Before = *last.Version
		}
		response.NextPageToken = next.encode()
	}
	return response, hideAll(ctx, s, req.GetSessionId(), response.GetEntries())
}

// historyPage is where a page begins, and where it ends.
type historyPage struct {
	sessionID string
	before    int64
	size      int
	maxBytes  int64
}

// listVersions reads versions that the variable's history limit still shows.
func (s *Service) listVersions(ctx context.Context, variable string, page historyPage) ([]historyRow, error) {
	current, err := s.readVariable(ctx, page.sessionID, variable)
	if err != nil {
		return nil, err
	}
	var rows []dbgen.HistoryOfVersionsRow
	err = s.db.Read(ctx, "list versions", func(ctx context.Context, q *dbgen.Queries) error {
		rows, err = q.HistoryOfVersions(ctx, dbgen.HistoryOfVersionsParams{
			SessionID: page.sessionID, VariableID: current.VariableID, OldestVersion: current.oldestVersion(),
			Before: page.before, RowLimit: int32(page.size) + 1, MaxBytes: page.maxBytes,
		})
		return err
	})
	out := make([]historyRow, 0, len(rows))
	for _, row := range rows {
		out = append(out, historyRow(row))
	}
	return out, err
}

func (s *Service) listChanges(ctx context.Context, variable string, changes []string, page historyPage) (
	[]historyRow, error,
) {
	var rows []dbgen.HistoryListRow
	err := s.inLiveSession(ctx, "list history", page.sessionID, func(ctx context.Context, q *dbgen.Queries) error {
		c := callerIn(ctx, page.sessionID)
		params := dbgen.HistoryListParams{
			SessionID: page.sessionID, Principal: c.principal, Groups: c.groups, Authority: c.authority, Before: page.before, Changes: changes, RowLimit: int32(page.size) + 1,
			MaxBytes: page.maxBytes,
		}
		if variable != "" {
			row, err := getVariable(ctx, q, page.sessionID, variable, identity.Read)
			if err != nil {
				return err
			}
			params.VariableID = row.VariableID
		}
		var err error
		rows, err = q.HistoryList(ctx, params)
		return err
	})
	out := make([]historyRow, 0, len(rows))
	for _, row := range rows {
		out = append(out, historyRow(row))
	}
	return out, err
}

func changeList(changes []setpointv1.HistoryChange) []string {
	names := make([]string, 0, len(changes))
	for _, c := range changes {
		names = append(names, changeNames[c])
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// oldestVersion is the oldest version that the history limit shows.
func (r variableRow) oldestVersion() int64 {
	if r.HistoryLimit == 0 {
		return 0
	}
	return max(0, r.Version-r.HistoryLimit)
}

// GetVariableVersion returns the change that made a version.
func (s *Service) GetVariableVersion(ctx context.Context, req *setpointv1.GetVariableVersionRequest) (
	*setpointv1.HistoryEntry, error,
) {
	current, err := s.readVariable(ctx, req.GetSessionId(), req.GetVariable())
	if err != nil {
		return nil, err
	}
	var row dbgen.HistoryGetVersionRow
	err = s.db.Read(ctx, "get version", func(ctx context.Context, q *dbgen.Queries) error {
		row, err = getVersion(ctx, q, req.GetSessionId(), current, req.GetVersion())
		return err
	})
	if err != nil {
		return nil, err
	}
	entry, err := versionRow(row).proto()
	if err != nil {
		return nil, err
	}
	return entry, s.hide(ctx, req.GetSessionId(), entry)
}

// getVersion reads a version of a variable, within its history limit and what is kept.
func getVersion(ctx context.Context, q *dbgen.Queries, sessionID string, current variableRow, version int64) (
	dbgen.HistoryGetVersionRow, error,
) {
	oldest := current.oldestVersion()
	if version > current.Version || version < oldest {
		return dbgen.HistoryGetVersionRow{}, versionNotAvailable(current, version, oldest)
	}
	row, err := q.HistoryGetVersion(ctx, dbgen.HistoryGetVersionParams{
		SessionID: sessionID, VariableID: current.VariableID, Version: version,
	})
	if !errors.Is(err, pgx.ErrNoRows) {
		return row, err
	}
	kept, err := q.HistoryOldestVersion(ctx, dbgen.HistoryOldestVersionParams{
		SessionID: sessionID, VariableID: current.VariableID, OldestVersion: oldest,
	})
	if err != nil {
		return row, err
	}
	return row, versionNotAvailable(current, version, kept)
}

func versionNotAvailable(current variableRow, version, oldest int64) *Error {
	return refuse(setpointv1.ErrorReason_VERSION_NOT_AVAILABLE,
		fmt.Sprintf("%s: version %d is not available: the oldest is %d, the current %d",
			current.Name, version, oldest, current.Version),
		"variable", current.Name, "oldest_version", strconv.FormatInt(oldest, 10),
		"current_version", strconv.FormatInt(current.Version, 10))
}

func versionRow(r dbgen.HistoryGetVersionRow) historyRow {
	return historyRow{
		Revision: r.Revision, VariableID: r.VariableID, Name: r.Name, Type: r.Type, Change: r.Change, Version: r.Version,
		Value: r.Value, Payload: r.Payload, Metadata: r.Metadata, Reason: r.Reason, ChangedBy: r.ChangedBy,
		ChangedAt: r.ChangedAt, CauseRevision: r.CauseRevision, Cause: r.Cause, Error: r.Error, Dependency: r.Dependency,
		Expression: r.Expression,
	}
}
