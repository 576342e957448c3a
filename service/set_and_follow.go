package service

import (
	"context"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/setpointdb/setpoint/db/dbgen"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// setAndFollow is the general path of a write: the statement of every other one, and then what follows, in one transaction.
// What a strict variable refuses is undone, and done again without the values that it refuses, for which another one may
// refuse others; after a few such rounds, all that could be refused is. A dry run is undone at the end.
func (s *Service) setAndFollow(ctx context.Context, call *setCall, items []checkedItem) (
	[]dbgen.VariableSetRow, []follower, error,
) {
	var rows []dbgen.VariableSetRow
	var followers []follower
	var after afterCommit
	var tried []checkedItem // A transaction that lost to others begins again with none refused.
	run := s.db.InSession
	if call.dryRun {
		run = s.db.DryRun
	}
	err := run(ctx, "set variables", call.sessionID, func(ctx context.Context, tx pgx.Tx) error {
		lock := dbgen.SessionLockParams{SessionIds: []string{call.sessionID}}
		if err := dbgen.New(tx).SessionLock(ctx, lock); err != nil {
			return err
		}
		tried, after = slices.Clone(items), nil
		for round := 1; ; round++ {
			p := propagation{sessionID: call.sessionID, principal: call.principal, all: round == strictRounds, after: &after}
			refused, err := s.attemptSet(ctx, tx, p, call, tried, &rows, &followers)
			if err != nil || refused == nil {
				return err
			}
			for i, row := range rows {
				if refused.roots[row.VariableID] && row.Revision > 0 {
					tried[i].refusal = refused.saved()
				}
			}
		}
	})
	copy(items, tried)
	if err == nil && !call.dryRun {
		after.run(ctx)
	}
	return rows, followers, err
}

// strictRounds bounds how often a batch is tried again for what strict variables refuse.
const strictRounds = 3

// attemptSet writes the values, and has others follow; it undoes both where a strict variable refuses.
func (s *Service) attemptSet(
	ctx context.Context, tx pgx.Tx, p propagation, call *setCall, items []checkedItem, rows *[]dbgen.VariableSetRow,
	followers *[]follower,
) (*strictFailure, error) {
	attempt, err := tx.Begin(ctx)
	if err != nil {
		return nil, err
	}
	q := dbgen.New(attempt)
	params := setParams(setpointv1.HistoryChange_HISTORY_CHANGE_SET, items...)
	params.Batch, params.Atomic, params.Follows = call.batch, call.atomic, true
	if *rows, err = answered(len(items))(q.VariableSet(ctx, params)); err != nil {
		return nil, err
	}
	var refused *strictFailure
	p.written(*rows)
	if *followers, refused, err = s.follow(ctx, q, p); err != nil {
		return nil, err
	}
	if refused != nil {
		return refused, attempt.Rollback(ctx)
	}
	return nil, attempt.Commit(ctx)
}

// written takes what the statement wrote for the changes.
func (p *propagation) written(rows []dbgen.VariableSetRow) {
	for _, row := range rows {
		if row.Refused != "" || row.Revision == 0 {
			continue
		}
		if p.first == 0 || row.Revision < p.first {
			p.first = row.Revision
		}
		p.changes = append(p.changes, change{variableID: row.VariableID, revision: row.Revision, disturbs: row.Disturbs})
	}
}
