package service

import (
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"

	"github.com/setpointdb/setpoint/db/dbgen"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/identity"
	"github.com/setpointdb/setpoint/internal/value"
)

// GetVariable returns a variable by its id or its name.
func (s *Service) GetVariable(ctx context.Context, req *setpointv1.GetVariableRequest) (*setpointv1.Variable, error) {
	row, err := s.readVariable(ctx, req.GetSessionId(), req.GetVariable())
	if err != nil {
		return nil, err
	}
	s.events.VariableRead(ctx, req.GetSessionId(), row.Name, row.Version)
	variable, err := row.shown(req.GetSessionId())
	if err != nil {
		return nil, err
	}
	return variable, s.hideTorn(ctx, req.GetSessionId(), variable)
}

// readVariable reads a variable in one statement, as a sign of life of its session.
func (s *Service) readVariable(ctx context.Context, sessionID, variable string) (variableRow, error) {
	var row dbgen.VariableGetManyRow
	err := s.db.Wait(ctx, "get variable", func(ctx context.Context) error {
		var err error
		row, err = s.reads.Do(ctx, readItem{caller: callerIn(ctx, sessionID), sessionID: sessionID, variable: variable})
		return err
	})
	if err != nil {
		return variableRow{}, laneError(err)
	}
	found, err := foundVariable(row, sessionID, variable, identity.Read)
	if err == nil {
		s.extend.Note(sessionID, row.ReadAt.Time, microseconds(row.TTLMicros))
	}
	return found, err
}

// foundVariable is the variable of a row, if it is one with which the caller may do what was asked.
func foundVariable(row dbgen.VariableGetManyRow, sessionID, variable string, permission identity.Permissions) (variableRow, error) {
	if !row.Alive {
		return variableRow{}, sessionNotFound(sessionID)
	}
	if e := refusalOfRow(row, sessionID, variable, permission); e != nil {
		return variableRow{}, e
	}
	return variableRow(row), nil
}

// refusalOfRow is why the caller may not have a variable, or that there is none; nil if the caller may.
func refusalOfRow(row dbgen.VariableGetManyRow, sessionID, variable string, permission identity.Permissions) *Error {
	if row.Access&int32(identity.Read) != 0 && row.Name != "" {
		variable = row.Name // The caller may know it.
	}
	return accessRefusal(row.Refused, sessionID, variable, row.RuleID, permission)
}

// getVariable reads a variable with which the caller is to do something.
func getVariable(
	ctx context.Context, q *dbgen.Queries, sessionID, variable string, permission identity.Permissions,
) (variableRow, error) {
	params := getParams(callerIn(ctx, sessionID), sessionID, permission, variable)
	params.MaxBytes = math.MaxInt64
	rows, err := q.VariableGetMany(ctx, params)
	if err != nil {
		return variableRow{}, err
	}
	return foundVariable(rows[0], sessionID, variable, permission)
}

func getParams(c caller, sessionID string, permission identity.Permissions, identifiers ...string) dbgen.VariableGetManyParams {
	n := len(identifiers)
	return dbgen.VariableGetManyParams{
		SessionIds: slices.Repeat([]string{sessionID}, n), Variables: identifiers,
		Principals: slices.Repeat([]string{c.principal}, n), Groups: slices.Repeat([]string{c.groups}, n),
		Authorities: slices.Repeat([]int32{c.authority}, n), Permissions: slices.Repeat([]int32{int32(permission)}, n),
	}
}

// getVariables reads the variables of a session, a row for each identifier; an empty variable_id where there is none. Values
// are null from the one on with which they would be more than affectedBytes together, and of what the caller may not read.
func getVariables(ctx context.Context, q *dbgen.Queries, c caller, sessionID string, identifiers []string) (
	[]dbgen.VariableGetManyRow, error,
) {
	params := getParams(c, sessionID, identity.Read, identifiers...)
	params.MaxBytes = affectedBytes
	rows, err := q.VariableGetMany(ctx, params)
	switch {
	case err != nil:
		return nil, err
	case !rows[0].Alive:
		return nil, sessionNotFound(sessionID)
	}
	return rows, nil
}

// BatchGetVariables returns variables as of one moment.
func (s *Service) BatchGetVariables(ctx context.Context, req *setpointv1.BatchGetVariablesRequest) (
	*setpointv1.BatchGetVariablesResponse, error,
) {
	if err := s.checkBatch(len(req.GetVariables())); err != nil {
		return nil, err
	}
	variables := distinct(req.GetVariables())
	var rows []dbgen.VariableGetManyRow
	err := s.db.Read(ctx, "get variables", func(ctx context.Context, q *dbgen.Queries) error {
		var err error
		params := getParams(callerIn(ctx, req.GetSessionId()), req.GetSessionId(), identity.Read, variables...)
		params.MaxBytes = s.limits.PageBytes
		rows, err = q.VariableGetMany(ctx, params)
		return err
	})
	if err != nil {
		return nil, err
	}
	if !rows[0].Alive {
		return nil, sessionNotFound(req.GetSessionId())
	}
	if total := rows[0].TotalBytes; total > s.limits.PageBytes {
		return nil, limitExceeded("batch_bytes", s.limits.PageBytes,
			fmt.Sprintf("the values have %d bytes together, more than %d: ask for fewer at a time", total, s.limits.PageBytes))
	}
	response := &setpointv1.BatchGetVariablesResponse{Variables: map[string]*setpointv1.Variable{}}
	for _, row := range rows {
		switch e := refusalOfRow(row, req.GetSessionId(), row.Identifier, identity.Read); {
		case e == nil:
		case e.Reason == setpointv1.ErrorReason_SESSION_NOT_FOUND:
			return nil, e
		case e.Reason == setpointv1.ErrorReason_VARIABLE_NOT_FOUND:
			response.Missing = append(response.Missing, row.Identifier)
			continue
		default:
			response.Denied = append(response.Denied, row.Identifier)
			continue
		}
		variable, err := variableRow(row).shown(req.GetSessionId())
		if err != nil {
			return nil, err
		}
		response.Variables[row.Identifier] = variable
	}
	s.extend.Note(req.GetSessionId(), rows[0].ReadAt.Time, microseconds(rows[0].TTLMicros))
	s.events.BatchRead(ctx, req.GetSessionId(), identity.FromContext(ctx).Name, len(rows), len(response.GetMissing())+len(response.GetDenied()))
	return response, s.hideTorn(ctx, req.GetSessionId(), slices.Collect(maps.Values(response.GetVariables()))...)
}

// ListVariables returns a page of a session's variables, by name.
func (s *Service) ListVariables(ctx context.Context, req *setpointv1.ListVariablesRequest) (
	*setpointv1.ListVariablesResponse, error,
) {
	types := typeNames(req.GetTypes())
	filter := filterHash(slices.Concat([]string{"variables", req.GetSessionId(), req.GetPattern()}, types)...)
	token, err := decodePageToken(req.GetPageToken(), filter)
	if err != nil {
		return nil, err
	}
	size := pageSize(req.GetPageSize())
	names := globRange(req.GetPattern(), token.Name)
	var rows []dbgen.VariableListRow
	err = s.db.Read(ctx, "list variables", func(ctx context.Context, q *dbgen.Queries) error {
		c := callerIn(ctx, req.GetSessionId())
		rows, err = q.VariableList(ctx, dbgen.VariableListParams{
			SessionID: req.GetSessionId(), Principal: c.principal, Groups: c.groups, Authority: c.authority, Lo: names.Lo, Hi: names.Hi, Pattern: names.Like, Types: types,
			RowLimit: int32(size) + 1, MaxBytes: s.limits.PageBytes,
		})
		return err
	})
	if err != nil {
		return nil, err
	}
	if len(rows) == 0 {
		return nil, sessionNotFound(req.GetSessionId())
	}
	if e := refusalOfRow(dbgen.VariableGetManyRow(rows[0]), req.GetSessionId(), "", identity.Read); e != nil {
		return nil, e
	}
	s.extend.Note(req.GetSessionId(), rows[0].ReadAt.Time, microseconds(rows[0].TTLMicros))
	response := &setpointv1.ListVariablesResponse{}
	for _, row := range rows[:min(size, len(rows), int(rows[0].Candidates))] {
		variable, err := variableRow(row).shown(req.GetSessionId())
		if err != nil {
			return nil, err
		}
		response.Variables = append(response.Variables, variable)
	}
	if n := len(response.Variables); int64(n) < rows[0].Candidates {
		response.NextPageToken = pageToken{Filter: filter, Name: rows[n-1].Name}.encode()
	}
	return response, s.hideTorn(ctx, req.GetSessionId(), response.GetVariables()...)
}

// inLiveSession reads in a session: the work is done only if the session is alive and the caller may do something in it, which
// counts as a sign of life.
func (s *Service) inLiveSession(
	ctx context.Context, doing, sessionID string, work func(context.Context, *dbgen.Queries) error,
) error {
	return s.db.Read(ctx, doing, func(ctx context.Context, q *dbgen.Queries) error {
		session, err := getSession(ctx, q, sessionID)
		if err != nil {
			return err
		}
		s.extend.Note(sessionID, session.ReadAt.Time, microseconds(session.TTLMicros))
		return work(ctx, q)
	})
}

// signOfLife counts a call that succeeded and wrote nothing: a repeat, a dry run, a batch of which every item failed.
func (s *Service) signOfLife(ctx context.Context, sessionID string) {
	err := s.inLiveSession(ctx, "extend a session", sessionID, func(context.Context, *dbgen.Queries) error { return nil })
	if err != nil && !isRefusal(err) {
		s.events.ExtendFailed(ctx, err)
	}
}

func typeNames(types []setpointv1.VariableType) []string {
	names := make([]string, 0, len(types))
	for _, t := range types {
		names = append(names, value.TypeName(t))
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// distinct keeps the first of equal texts, in order.
func distinct(texts []string) []string {
	seen := make(map[string]bool, len(texts))
	var out []string
	for _, t := range texts {
		if !seen[t] {
			seen[t] = true
			out = append(out, t)
		}
	}
	return out
}

// checkBatch refuses batches with too many items.
func (s *Service) checkBatch(items int) error {
	if items > s.limits.BatchItems {
		return limitExceeded("batch_items", int64(s.limits.BatchItems),
			fmt.Sprintf("a batch has at most %d items, not %d", s.limits.BatchItems, items))
	}
	return nil
}

func limitExceeded(limit string, bound int64, message string) *Error {
	return refuse(setpointv1.ErrorReason_LIMIT_EXCEEDED, message, "limit", limit, "value", strconv.FormatInt(bound, 10))
}
