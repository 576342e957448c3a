package sweep

import (
	"context"
	"errors"
	"time"

	"github.com/setpointdb/setpoint/db/dbgen"
)

const (
	// variablesAtOnce bounds the variables whose versions one statement looks at.
	variablesAtOnce = 200
	// perVariable bounds the versions of one variable that one statement finds.
	perVariable = 500
	// payloadsAtOnce bounds the payloads that one transaction removes, under the session's lock.
	payloadsAtOnce = 100
	// progressRows is how many rows of a session go before the log hears of it.
	progressRows = 100_000
	// floorPatience is how long the sweeper tries to find a session's lock free, every floorPause, before it gives the
	// session up until the next round.
	floorPatience = 10 * time.Second
	floorPause    = 2 * time.Millisecond
)

// History does a round over history: rows, bytes, expired access rules, whole sessions of which nothing is left, and the audit.
func (s *Sweeper) History(ctx context.Context) error {
	return round(s.history(ctx))
}

func (s *Sweeper) history(ctx context.Context) error {
	return errors.Join(s.pruneAll(ctx), s.payloads(ctx), s.optimizations(ctx), s.rules(ctx), s.forget(ctx), s.audit(ctx))
}

// audit removes audit events beyond the retention.
func (s *Sweeper) audit(ctx context.Context) error {
	var total int64
	err := s.batches(ctx, "prune the audit", func(ctx context.Context, q *dbgen.Queries) (int64, error) {
		return q.SweepAudit(ctx, dbgen.SweepAuditParams{RetentionUs: s.retention.Microseconds(), RowLimit: batchRows})
	}, func(rows int64) { total += rows })
	if total > 0 {
		s.events.AuditPruned(ctx, total)
	}
	return err
}

// pruneAll prunes session after session; one that fails holds up no other. A round that another server ended goes on where
// it was at the next.
func (s *Sweeper) pruneAll(ctx context.Context) error {
	var failed error
	for {
		var sessions []string
		err := s.elected(ctx, "find old history", func(ctx context.Context, q *dbgen.Queries) error {
			var err error
			sessions, err = q.SweepSessions(ctx, dbgen.SweepSessionsParams{
				After: s.after, RetentionUs: s.retention.Microseconds(), RowLimit: sessionsAtOnce,
			})
			return err
		})
		if err != nil {
			return errors.Join(failed, err)
		}
		for _, id := range sessions {
			err := s.prune(ctx, id)
			if errors.Is(err, errNotElected) || ctx.Err() != nil {
				return errors.Join(failed, err)
			}
			failed = errors.Join(failed, err)
			s.after = id
		}
		if len(sessions) < sessionsAtOnce {
			s.after = ""
			return failed
		}
	}
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
		floors := dbgen.SweepRaiseFloorsParams{SessionID: id}
		for _, d := range deleted {
			floors.HistoryFloor = max(floors.HistoryFloor, d.Revision)
			floors.SnapshotFloor = floors.HistoryFloor
			if !floors.SnapshotFloorAt.Valid || floors.SnapshotFloorAt.Time.Before(d.ChangedAt.Time) {
				floors.SnapshotFloorAt = d.ChangedAt
			}
		}
		raised, err := s.raiseFloors(ctx, floors)
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
	params := dbgen.SweepRemoveVersionsParams{SessionID: id, RetentionUs: s.retention.Microseconds()}
	floors := dbgen.SweepRaiseFloorsParams{SessionID: id}
	for _, f := range chunk {
		params.VariableIds = append(params.VariableIds, f.VariableID)
		params.UpTo = append(params.UpTo, f.UpTo)
		params.StaysRevisions = append(params.StaysRevisions, f.StaysRevision)
		floors.HistoryFloor = max(floors.HistoryFloor, f.LastRevision, f.StaysRevision-1)
		floors.SnapshotFloor = max(floors.SnapshotFloor, f.StaysRevision)
	}
	raised, err := s.raiseFloors(ctx, floors)
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
func (s *Sweeper) raiseFloors(ctx context.Context, floors dbgen.SweepRaiseFloorsParams) (bool, error) {
	return patiently(ctx, func() (bool, error) {
		var rows int64
		err := s.db.Write(ctx, "raise floors", func(ctx context.Context, q *dbgen.Queries) error {
			var err error
			rows, err = q.SweepRaiseFloors(ctx, floors)
			return err
		})
		return rows > 0, err
	})
}

// patiently tries until it is done, or fails, or floorPatience is over.
func patiently(ctx context.Context, try func() (bool, error)) (bool, error) {
	pause := time.NewTicker(floorPause)
	defer pause.Stop()
	for deadline := time.Now().Add(floorPatience); ; {
		done, err := try()
		if done || err != nil || time.Now().After(deadline) {
			return done, err
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
		func(ctx context.Context, q *dbgen.Queries, after string) ([]string, error) {
			return q.SweepUnusedPayloads(ctx, dbgen.SweepUnusedPayloadsParams{After: after, RowLimit: sessionsAtOnce})
		},
		func(ctx context.Context, q *dbgen.Queries, id string) (bool, error) {
			rows, err := q.SweepPayloads(ctx, dbgen.SweepPayloadsParams{SessionID: id, RowLimit: payloadsAtOnce})
			return rows < payloadsAtOnce, err
		})
}

// rules removes access rules that expired long ago.
func (s *Sweeper) rules(ctx context.Context) error {
	return s.eachLocked(ctx, "forget expired rules",
		func(ctx context.Context, q *dbgen.Queries, after string) ([]string, error) {
			return q.SweepExpiredRules(ctx, dbgen.SweepExpiredRulesParams{After: after, RowLimit: sessionsAtOnce})
		},
		func(ctx context.Context, q *dbgen.Queries, id string) (bool, error) {
			rows, err := q.SweepForgetRules(ctx, dbgen.SweepForgetRulesParams{SessionID: id, RowLimit: batchRows})
			return rows < batchRows, err
		})
}

// forget removes the rows of sessions of which nothing is left.
func (s *Sweeper) forget(ctx context.Context) error {
	return s.eachLocked(ctx, "forget sessions",
		func(ctx context.Context, q *dbgen.Queries, after string) ([]string, error) {
			return q.SweepForgettable(ctx, dbgen.SweepForgettableParams{
				After: after, RetentionUs: s.retention.Microseconds(), RowLimit: sessionsAtOnce,
			})
		},
		func(ctx context.Context, q *dbgen.Queries, id string) (bool, error) {
			_, err := q.SweepForget(ctx, dbgen.SweepForgetParams{SessionID: id})
			return true, err
		})
}

// eachLocked does something to each session that is found, batch by batch until it is done, each under the session's lock.
func (s *Sweeper) eachLocked(
	ctx context.Context, doing string, find func(ctx context.Context, q *dbgen.Queries, after string) ([]string, error),
	do func(ctx context.Context, q *dbgen.Queries, id string) (bool, error),
) error {
	var failed error
	after := ""
	for {
		var found []string
		err := s.elected(ctx, doing, func(ctx context.Context, q *dbgen.Queries) error {
			var err error
			found, err = find(ctx, q, after)
			return err
		})
		if err != nil {
			return errors.Join(failed, err)
		}
		for _, id := range found {
			failed = errors.Join(failed, s.locked(ctx, doing, id, do))
			after = id
		}
		if len(found) < sessionsAtOnce || ctx.Err() != nil {
			return failed
		}
	}
}

// locked does batch after batch under a session's lock, which it waits for by trying; what it does not get to is the next
// round's.
func (s *Sweeper) locked(
	ctx context.Context, doing, id string, do func(ctx context.Context, q *dbgen.Queries, id string) (bool, error),
) error {
	for done := false; !done; {
		got, err := patiently(ctx, func() (bool, error) {
			free := false
			err := s.elected(ctx, doing, func(ctx context.Context, q *dbgen.Queries) error {
				locked, err := q.SessionLockNoWait(ctx, dbgen.SessionLockNoWaitParams{SessionIds: []string{id}})
				if free = len(locked) > 0; err != nil || !free {
					return err
				}
				done, err = do(ctx, q, id)
				return err
			})
			return free, err
		})
		if err != nil || !got {
			return err
		}
	}
	return nil
}
