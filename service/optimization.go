package service

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/setpointdb/setpoint/db/dbgen"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/identity"
)

// Reading optimizations.

const optimizationPrefix = "opt_"

func optimizationNotFound(sessionID, optimizationID string) *Error {
	return refuse(setpointv1.ErrorReason_OPTIMIZATION_NOT_FOUND,
		fmt.Sprintf("no optimization %s in session %q", optimizationID, sessionID),
		"session_id", sessionID, "optimization_id", optimizationID)
}

func optimizationEnded(row optimizationRow) *Error {
	e := ended(row.OptimizationID, row.State)
	if row.EndReason != "" {
		e.Message += ": " + row.EndReason
	}
	return e
}

func ended(optimizationID, state string) *Error {
	return refuse(setpointv1.ErrorReason_OPTIMIZATION_ENDED, fmt.Sprintf("%s has ended: %s", optimizationID, state),
		"optimization_id", optimizationID, "state", statesByName[state].String())
}

// ofOptimization is a request on one optimization.
type ofOptimization interface {
	GetSessionId() string
	GetOptimizationId() string
}

// getOptimization reads the record of an optimization with all of whose variables the caller may do what is asked. One of whose
// variables the caller may not read is as one that there is not.
func getOptimization(
	ctx context.Context, q *dbgen.Queries, req ofOptimization, withCheckpoint bool, permission identity.Permissions,
) (optimizationRow, error) {
	row, err := lookUpOptimization(ctx, q, req, withCheckpoint, permission)
	if err != nil {
		return row, err
	}
	return row, row.allows(ctx, q, req.GetSessionId(), permission)
}

// lookUpOptimization reads the record of an optimization that the caller may see. The row tells what the caller may do with it, and
// where that is not what is asked.
func lookUpOptimization(
	ctx context.Context, q *dbgen.Queries, req ofOptimization, withCheckpoint bool, permission identity.Permissions,
) (optimizationRow, error) {
	c := callerIn(ctx, req.GetSessionId())
	row, err := q.OptimizationGet(ctx, dbgen.OptimizationGetParams{
		SessionID: req.GetSessionId(), OptimizationID: req.GetOptimizationId(), WithCheckpoint: withCheckpoint,
		Principal: c.principal, Groups: c.groups, Authority: c.authority, Permission: int32(permission),
	})
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return optimizationRow{}, sessionNotFound(req.GetSessionId())
	case err != nil:
		return optimizationRow{}, err
	case row.Hidden == "SESSION_HIDDEN":
		return optimizationRow{}, sessionHidden(req.GetSessionId())
	case row.OptimizationID == "":
		return optimizationRow{}, optimizationNotFound(req.GetSessionId(), req.GetOptimizationId())
	case row.Hidden != "":
		e := optimizationNotFound(req.GetSessionId(), req.GetOptimizationId())
		e.denial = &denial{permission: permission.String()}
		return optimizationRow{}, e
	}
	found := optimizationRow(row)
	return found, found.hideInherited(ctx, q, req)
}

// hideInherited takes out the checkpoint of another optimization that the caller may not see.
func (r *optimizationRow) hideInherited(ctx context.Context, q *dbgen.Queries, req ofOptimization) error {
	if r.CheckpointID == nil || *r.CheckpointID == r.OptimizationID || callerIn(ctx, req.GetSessionId()).seesEverything() {
		return nil
	}
	_, err := lookUpOptimization(ctx, q, &setpointv1.GetOptimizationRequest{
		SessionId: req.GetSessionId(), OptimizationId: *r.CheckpointID,
	}, false, identity.Read)
	if e := asRefusal(err); e != nil && e.Reason == setpointv1.ErrorReason_OPTIMIZATION_NOT_FOUND {
		r.CheckpointID, r.CheckpointNumber, r.Checkpoint = nil, nil, nil
		return nil
	}
	return err
}

// allows refuses a caller who may not do something with all variables of an optimization that the caller may see.
func (r optimizationRow) allows(ctx context.Context, q *dbgen.Queries, sessionID string, permission identity.Permissions) error {
	if r.Access&int32(permission) != 0 {
		return nil
	}
	lacking := r.Lacking
	if lacking == "" { // Of those who need no rules it is the credentials that lack it, for each variable.
		lacking = r.Variables[0]
	}
	return deniedOn(ctx, q, sessionID, wanted{lacking, permission})
}

// readOptimization is getOptimization outside of a transaction, as a sign of life of its session.
func (s *Service) readOptimization(
	ctx context.Context, req ofOptimization, withCheckpoint bool, permission identity.Permissions,
) (optimizationRow, error) {
	var row optimizationRow
	err := s.db.Read(ctx, "get optimization", func(ctx context.Context, q *dbgen.Queries) error {
		var err error
		row, err = getOptimization(ctx, q, req, withCheckpoint, permission)
		return err
	})
	if err == nil {
		s.extend.Note(req.GetSessionId(), row.ReadAt.Time, microseconds(row.SessionTtlUs))
	}
	return row, err
}

// GetOptimization returns an optimization, ended ones too.
func (s *Service) GetOptimization(ctx context.Context, req *setpointv1.GetOptimizationRequest) (*setpointv1.Optimization, error) {
	row, err := s.readOptimization(ctx, req, true, identity.Read)
	if err != nil {
		return nil, err
	}
	return row.proto(req.GetSessionId(), identity.FromContext(ctx).Name)
}

// ListOptimizations returns a page of a session's optimizations, newest first.
func (s *Service) ListOptimizations(ctx context.Context, req *setpointv1.ListOptimizationsRequest) (
	*setpointv1.ListOptimizationsResponse, error,
) {
	states := make([]string, 0, len(req.GetStates()))
	for _, state := range req.GetStates() {
		states = append(states, stateNames[state])
	}
	token, err := decodePageToken(req.GetPageToken(), filterHash(append([]string{
		"optimizations", req.GetSessionId(), req.GetVariable(),
	}, states...)...))
	if err != nil {
		return nil, err
	}
	size := pageSize(req.GetPageSize())
	c := callerIn(ctx, req.GetSessionId())
	params := dbgen.OptimizationListParams{
		SessionID: req.GetSessionId(), Principal: c.principal, Groups: c.groups, Authority: c.authority,
		Before: token.Name, States: states, RowLimit: int32(size) + 1, MaxBytes: s.limits.PageBytes,
	}
	if params.Before == "" {
		params.Before = optimizationPrefix + "~" // After every id.
	}
	var rows []dbgen.OptimizationListRow
	err = s.db.Read(ctx, "list optimizations", func(ctx context.Context, q *dbgen.Queries) error {
		if req.GetVariable() != "" {
			variable, err := getVariable(ctx, q, req.GetSessionId(), req.GetVariable(), identity.Read)
			if err != nil {
				return err
			}
			params.VariableID = variable.VariableID
		}
		if _, err := sightOf(ctx, q, req.GetSessionId()); err != nil {
			return err
		}
		rows, err = q.OptimizationList(ctx, params)
		return err
	})
	switch {
	case err != nil:
		return nil, err
	case len(rows) == 0:
		return nil, sessionNotFound(req.GetSessionId())
	}
	s.extend.Note(req.GetSessionId(), rows[0].ReadAt.Time, microseconds(rows[0].SessionTtlUs))
	response := &setpointv1.ListOptimizationsResponse{}
	page := rows[:min(size, len(rows), int(rows[0].Candidates))]
	for _, row := range page {
		o, err := optimizationRow(row).proto(req.GetSessionId(), identity.FromContext(ctx).Name)
		if err != nil {
			return nil, err
		}
		response.Optimizations = append(response.Optimizations, o)
	}
	if n := len(page); int64(n) < rows[0].Candidates {
		response.NextPageToken = pageToken{Filter: token.Filter, Name: rows[n-1].OptimizationID}.encode()
	}
	return response, nil
}

// GetOptimizationStatus tells who optimizes a variable.
func (s *Service) GetOptimizationStatus(ctx context.Context, req *setpointv1.GetOptimizationStatusRequest) (
	*setpointv1.GetOptimizationStatusResponse, error,
) {
	response := &setpointv1.GetOptimizationStatusResponse{}
	err := s.db.Read(ctx, "get optimization status", func(ctx context.Context, q *dbgen.Queries) error {
		if err := mayRead(ctx, q, req.GetSessionId(), req.GetVariable()); err != nil {
			return err
		}
		of, err := q.OptimizationOf(ctx, dbgen.OptimizationOfParams{SessionID: req.GetSessionId(), Variable: req.GetVariable()})
		switch {
		case errors.Is(err, pgx.ErrNoRows):
			return sessionNotFound(req.GetSessionId())
		case err != nil:
			return err
		case of.VariableID == "":
			return variableNotFound(req.GetSessionId(), req.GetVariable())
		}
		s.extend.Note(req.GetSessionId(), of.ReadAt.Time, microseconds(of.SessionTtlUs))
		response.WaitingCount, response.Optimizing, response.Optimization = int32(of.Waiting), false, nil
		if of.OptimizationID == "" {
			return nil
		}
		row, err := getOptimization(ctx, q, &setpointv1.GetOptimizationRequest{
			SessionId: req.GetSessionId(), OptimizationId: of.OptimizationID,
		}, false, identity.Read)
		if e := asRefusal(err); e != nil && e.Reason == setpointv1.ErrorReason_OPTIMIZATION_NOT_FOUND {
			response.Optimizing = true // It is about other variables too, which the caller may not read.
			return nil
		}
		if err != nil || !isHolding(row.State) { // It has ended meanwhile.
			return err
		}
		response.Optimizing = true
		response.Optimization, err = row.proto(req.GetSessionId(), identity.FromContext(ctx).Name)
		return err
	})
	return response, err
}
