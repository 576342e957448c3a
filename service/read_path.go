package service

import (
	"context"
	"errors"
	"fmt"

	"github.com/setpointdb/setpoint/db"
	"github.com/setpointdb/setpoint/db/dbgen"
	"github.com/setpointdb/setpoint/internal/commit"
	"github.com/setpointdb/setpoint/internal/identity"
)

// The read path: concurrent reads of single variables share statements, as writes do.

// readItem is one variable to read.
type readItem struct {
	caller
	sessionID, variable string
}

// readBytes bounds the values that one statement returns, but for the first.
const readBytes = 8 << 20

func newReadLane(s *Service) *commit.Lane[readItem, dbgen.VariableGetManyRow] {
	return commit.NewLane(commit.Config[readItem, dbgen.VariableGetManyRow]{
		Run: s.runReads, MaxItems: groupedItems, Panicked: s.events.Panicked,
	})
}

// runReads reads a group in one statement. Those whose values would be too much together are read again, the first of them
// first, and that one whole.
func (s *Service) runReads(ctx context.Context, items []readItem) ([]commit.Result[dbgen.VariableGetManyRow], error) {
	params := dbgen.VariableGetManyParams{MaxBytes: readBytes}
	for _, item := range items {
		params.SessionIds = append(params.SessionIds, item.sessionID)
		params.Variables = append(params.Variables, item.variable)
		params.Principals = append(params.Principals, item.principal)
		params.Groups = append(params.Groups, item.groups)
		params.Authorities = append(params.Authorities, item.authority)
		params.Permissions = append(params.Permissions, int32(identity.Read))
	}
	var rows []dbgen.VariableGetManyRow
	err := s.db.Read(ctx, "get variable", func(ctx context.Context, q *dbgen.Queries) error {
		var err error
		rows, err = q.VariableGetMany(ctx, params)
		return err
	})
	if err != nil {
		return nil, err
	}
	results := make([]commit.Result[dbgen.VariableGetManyRow], len(rows))
	for i, row := range rows {
		results[i].Value = row
		results[i].Again = row.VariableID != "" && row.Value == nil && row.Refused == ""
	}
	return results, nil
}

// laneError is the error of a call that a lane did not do because it is closed: that of a server that goes away.
func laneError(err error) error {
	if errors.Is(err, commit.ErrClosed) {
		return fmt.Errorf("%w: %w", db.ErrUnavailable, err)
	}
	return err
}
