package sweep

import (
	"context"
	"time"

	"github.com/setpointdb/setpoint/db/dbgen"
)

const (
	// variablesAtOnce bounds the variables whose versions one statement looks at.
	variablesAtOnce = 200
	// perVariable bounds the versions of one variable that one statement finds.
	perVariable = 500
	// progressRows is how many rows of a session go before the log hears of it.
	progressRows = 100_000
	// floorPatience is how long the sweeper tries to find a session's lock free, every floorPause, before it gives the
	// session up until the next round.
	floorPatience = 10 * time.Second
	floorPause    = 2 * time.Millisecond
)

// History does a round over history: rows, bytes and whole sessions of which nothing is left.
func (s *Sweeper) History(ctx context.Context) error {
	return round(s.history(ctx))
}

func (s *Sweeper) history(ctx context.Context) error {
	after := ""
	for {
		var sessions []string
		err := s.elected(ctx, "find old history", func(ctx context.Context, q *dbgen.Queries) error {
			var err error
			sessions, err = q.SweepSessions(ctx, dbgen.SweepSessionsParams{
				After: after, RetentionUs: s.retention.Microseconds(), RowLimit: sessionsAtOnce,
			})
			return err
		})
		if err != nil {
			return err
		}
		for _, id := range sessions {
			if err := s.prune(ctx, id); err != nil {
				return err
			}
			after = id
		}
		if len(sessions) < sessionsAtOnce {
			break
		}
	}
	if err := s.payloads(ctx); err != nil {
		return err
	}
	return s.forget(ctx)
}

// prune removes what is beyond limit and retention of one session's history.
func (s *Sweeper) prune(ctx context.Context, id string) error {
	var unsaid int64
	count := func(rows int64) {
		if unsaid += rows; unsaid >= progressRows {
			s.events.HistoryPruned(ctx, id, unsaid)
			unsaid = 0
		}
	}
	defer func() {
		if unsaid > 0 {
			s.events.HistoryPruned(ctx, id, unsaid)
		}
	}()
	err := s.batches(ctx, "prune ended history", func(ctx context.Context, q *dbgen.Queries) (int64, error) {
		return q.SweepRemoveEnded(ctx, dbgen.SweepRemoveEndedParams{
			SessionID: id, RetentionUs: s.retention.Microseconds(), RowLimit: batchRows,
		})
	}, count)
	if err != nil {
		return err
	}
	if err := s.pruneDeleted(ctx, id, count); err != nil {
		return err
	}
	return s.pruneVersions(ctx, id, count)
}

// pruneDeleted removes the rows of variables that were deleted before the retention.
func (s *Sweeper) pruneDeleted(ctx context.Context, id string, count func(int64)) error {
	for {
		var deleted []dbgen.SweepDeletionsRow
		err := s.elected(ctx, "find deleted variables", func(ctx context.Context, q *dbgen.Queries) error {
			var err error
			deleted, err = q.SweepDeletions(ctx, dbgen.SweepDeletionsParams{
				SessionID: id, RetentionUs: s.retention.Microseconds(), RowLimit: variablesAtOnce,
			})
			return err
		})
		if err != nil || len(deleted) == 0 {
			return err
		}
		var last int64
		for _, d := range deleted {
			last = max(last, d.Revision)
		}
		raised, err := s.raiseFloors(ctx, id, last, last)
		if err != nil || !raised {
			return err
		}
		for _, d := range deleted {
			err := s.batches(ctx, "prune a deleted variable", func(ctx context.Context, q *dbgen.Queries) (int64, error) {
				return q.SweepRemoveVariable(ctx, dbgen.SweepRemoveVariableParams{
					SessionID: id, VariableID: d.VariableID, UpToRevision: d.Revision, RowLimit: batchRows,
				})
			}, count)
			if err != nil {
				return err
			}
		}
	}
}

// pruneVersions removes versions of variables that there still are.
func (s *Sweeper) pruneVersions(ctx context.Context, id string, count func(int64)) error {
	again := false // A variable had more than one look finds.
	after := ""
	for {
		var found []dbgen.SweepVersionsRow
		err := s.elected(ctx, "find old versions", func(ctx context.Context, q *dbgen.Queries) error {
			var err error
			found, err = q.SweepVersions(ctx, dbgen.SweepVersionsParams{
				SessionID: id, After: after, RetentionUs: s.retention.Microseconds(), RowLimit: variablesAtOnce,
				PerVariable: perVariable,
			})
			return err
		})
		if err != nil {
			return err
		}
		for _, chunk := range chunks(found) {
			done, err := s.removeVersions(ctx, id, chunk, count)
			if err != nil || !done {
				return err
			}
		}
		for _, f := range found {
			again = again || f.Found == perVariable
			after = f.VariableID
		}
		switch {
		case len(found) == variablesAtOnce:
		case again:
			again, after = false, ""
		default:
			return nil
		}
	}
}

// chunks groups what is to go by batches of rows.
func chunks(found []dbgen.SweepVersionsRow) [][]dbgen.SweepVersionsRow {
	var out [][]dbgen.SweepVersionsRow
	rows := int64(batchRows)
	for _, f := range found {
		if f.UpTo < 0 {
			continue
		}
		if rows+f.Found > batchRows {
			out, rows = append(out, nil), 0
		}
		out[len(out)-1] = append(out[len(out)-1], f)
		rows += f.Found
	}
	return out
}

// removeVersions raises the floors and removes a chunk; false if the session's lock was never free.
func (s *Sweeper) removeVersions(
	ctx context.Context, id string, chunk []dbgen.SweepVersionsRow, count func(int64),
) (bool, error) {
	params := dbgen.SweepRemoveVersionsParams{SessionID: id}
	var historyFloor, snapshotFloor int64
	for _, f := range chunk {
		params.VariableIds = append(params.VariableIds, f.VariableID)
		params.UpTo = append(params.UpTo, f.UpTo)
		params.StaysRevisions = append(params.StaysRevisions, f.StaysRevision)
		historyFloor = max(historyFloor, f.LastRevision, f.StaysRevision-1)
		snapshotFloor = max(snapshotFloor, f.StaysRevision)
	}
	raised, err := s.raiseFloors(ctx, id, historyFloor, snapshotFloor)
	if err != nil || !raised {
		return false, err
	}
	return true, s.elected(ctx, "prune versions", func(ctx context.Context, q *dbgen.Queries) error {
		rows, err := q.SweepRemoveVersions(ctx, params)
		if err == nil {
			count(rows)
		}
		return err
	})
}

// raiseFloors raises a session's floors when its lock is free; false if it never was.
func (s *Sweeper) raiseFloors(ctx context.Context, id string, historyFloor, snapshotFloor int64) (bool, error) {
	pause := time.NewTicker(floorPause)
	defer pause.Stop()
	for deadline := time.Now().Add(floorPatience); ; {
		var rows int64
		err := s.db.Write(ctx, "raise floors", func(ctx context.Context, q *dbgen.Queries) error {
			var err error
			rows, err = q.SweepRaiseFloors(ctx, dbgen.SweepRaiseFloorsParams{
				SessionID: id, HistoryFloor: historyFloor, SnapshotFloor: snapshotFloor,
			})
			return err
		})
		if err != nil || rows > 0 {
			return rows > 0, err
		}
		if time.Now().After(deadline) {
			return false, nil
		}
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case <-pause.C:
		}
	}
}

// payloads removes bytes that nothing refers to any more.
func (s *Sweeper) payloads(ctx context.Context) error {
	return s.eachLocked(ctx, "remove unused bytes",
		func(ctx context.Context, q *dbgen.Queries) ([]string, error) {
			return q.SweepUnusedPayloads(ctx, dbgen.SweepUnusedPayloadsParams{RowLimit: sessionsAtOnce})
		},
		func(ctx context.Context, q *dbgen.Queries, id string) error {
			_, err := q.SweepPayloads(ctx, dbgen.SweepPayloadsParams{SessionID: id, RowLimit: batchRows / 10})
			return err
		})
}

// forget removes the rows of sessions of which nothing is left.
func (s *Sweeper) forget(ctx context.Context) error {
	return s.eachLocked(ctx, "forget sessions",
		func(ctx context.Context, q *dbgen.Queries) ([]string, error) {
			return q.SweepForgettable(ctx, dbgen.SweepForgettableParams{
				RetentionUs: s.retention.Microseconds(), RowLimit: sessionsAtOnce,
			})
		},
		func(ctx context.Context, q *dbgen.Queries, id string) error {
			_, err := q.SweepForget(ctx, dbgen.SweepForgetParams{SessionID: id})
			return err
		})
}

// eachLocked does something to each session that is found, under its lock if that is free.
func (s *Sweeper) eachLocked(
	ctx context.Context, doing string, find func(context.Context, *dbgen.Queries) ([]string, error),
	do func(ctx context.Context, q *dbgen.Queries, id string) error,
) error {
	var found []string
	err := s.elected(ctx, doing, func(ctx context.Context, q *dbgen.Queries) error {
		var err error
		found, err = find(ctx, q)
		return err
	})
	if err != nil {
		return err
	}
	for _, id := range found {
		err := s.elected(ctx, doing, func(ctx context.Context, q *dbgen.Queries) error {
			locked, err := q.SessionLockNoWait(ctx, dbgen.SessionLockNoWaitParams{SessionIds: []string{id}})
			if err != nil || len(locked) == 0 {
				return err // The next round will find it.
			}
			return do(ctx, q, id)
		})
		if err != nil {
			return err
		}
	}
	return nil
}
