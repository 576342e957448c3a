package service

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/setpointdb/setpoint/db"
	"github.com/setpointdb/setpoint/db/dbgen"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/commit"
	"github.com/setpointdb/setpoint/internal/value"
)

// The write path: how values get from a checked request into the statement VariableSet, and what became of them back.

// definitionAttempts bounds how often a write is checked again because somebody keeps changing the constraints.
const definitionAttempts = 10

// set writes the values and returns what became of each, in its place, and what followed. Values are checked against the
// definitions that the server remembers; where one is not known, or has changed, the statement says so and writes nothing of
// the request. Nor does it where others would have to follow: then the general path does it with them.
func (s *Service) set(ctx context.Context, call *setCall) ([]itemOutcome, []follower, error) {
	var wants []wanted
	if !call.batch { // Of a batch each item has its own answer.
		wants = []wanted{{call.items[0].variable, permissionUnder(call.lease)}}
	}
	if err := s.refuseAgain(ctx, call.caller, call.sessionID, call.requestID, wants...); err != nil {
		return nil, nil, err
	}
	for range definitionAttempts {
		items := s.check(call)
		if err := s.checkBatchBytes(items); err != nil {
			return nil, nil, err
		}
		rows, err := s.runSet(ctx, call, items)
		if err != nil {
			return nil, nil, err
		}
		var followers []follower
		if slices.ContainsFunc(rows, hasDependents) {
			if rows, followers, err = s.setAndFollow(ctx, call, items); err != nil {
				return nil, nil, err
			}
		}
		if rows[0].Refused == "REPLAYED" {
			return s.replaySet(ctx, call, rows[0].Outcome)
		}
		learned, err := s.learn(call, rows)
		if err != nil {
			return nil, nil, err
		}
		if !learned {
			return setOutcomes(rows, items), followers, nil
		}
	}
	return nil, nil, refuse(setpointv1.ErrorReason_CONFLICT_RETRY,
		"the constraints of the variables keep changing; try again")
}

func hasDependents(row dbgen.VariableSetRow) bool { return row.Refused == "HAS_DEPENDENTS" }

// replaySet answers as the first call of the request was.
func (s *Service) replaySet(ctx context.Context, call *setCall, outcome []byte) ([]itemOutcome, []follower, error) {
	call.replayed = true
	s.events.RequestReplayed(ctx, call.sessionID, call.principal)
	outcomes, err := recordedOutcomes(outcome)
	if err != nil {
		return nil, nil, err
	}
	revision := int64(0)
	for _, o := range outcomes {
		if o.Disturbs {
			revision = max(revision, o.Revision)
		}
	}
	if revision == 0 {
		return outcomes, nil, nil
	}
	var followers []follower
	err = s.db.Read(ctx, "read what followed", func(ctx context.Context, q *dbgen.Queries) error {
		followers, err = followed(ctx, q, call.sessionID, revision)
		return err
	})
	return outcomes, followers, err
}

// checkedItem is a value to write, checked against a definition: as it is to be stored, or why it is refused.
type checkedItem struct {
	*setCall
	setItem
	definition int64
	stored     value.Stored
	refusal    *savedRefusal
}

// batchBytes bounds the values of a batch as they are stored, which is what the database has to take in one message.
const batchBytes = 64 << 20

func (s *Service) checkBatchBytes(items []checkedItem) error {
	total := 0
	for _, item := range items {
		total += max(item.stored.Bytes, len(item.stored.JSON))
	}
	if len(items) > 1 && total > batchBytes {
		return batchTooLarge(total)
	}
	return nil
}

func batchTooLarge(total int) *Error {
	return limitExceeded("batch_bytes", batchBytes,
		fmt.Sprintf("the values of a batch have at most %d bytes together, not %d", batchBytes, total))
}

func (s *Service) check(call *setCall) []checkedItem {
	items := make([]checkedItem, len(call.items))
	for i, item := range call.items {
		def, known := s.definitions.get(call.sessionID, item.variable)
		if !known {
			def.revision = unknownDefinition
		}
		stored, refusal := accept(def, item, s.limits.ValueBytes)
		items[i] = checkedItem{setCall: call, setItem: item, definition: def.revision, stored: stored, refusal: refusal}
	}
	return items
}

// accept checks a value. With no definition to check against there is nothing to store yet.
func accept(def definition, item setItem, maxBytes int) (value.Stored, *savedRefusal) {
	nothing := value.Stored{JSON: []byte("null")}
	if def.check == nil {
		return nothing, nil
	}
	stored, err := def.check.Accept(item.variable, item.value, maxBytes)
	if err != nil {
		return nothing, refusalOf(err)
	}
	return stored, nil
}

// refusalOf is the refusal of package value as it is recorded. It refuses with nothing but a Refusal.
func refusalOf(err error) *savedRefusal {
	if e := asRefusal(err); e != nil {
		return e.saved()
	}
	return refuse(setpointv1.ErrorReason_INVALID_REQUEST, err.Error()).saved()
}

func refusalJSON(r *savedRefusal) []byte {
	data, _ := json.Marshal(r) // Strings always marshal; nil is null.
	return data
}

// setParams lays items out for the statement.
func setParams(change setpointv1.HistoryChange, items ...checkedItem) dbgen.VariableSetParams {
	p := dbgen.VariableSetParams{Change: changeNames[change]}
	for i, item := range items {
		p.Ords = append(p.Ords, int32(i))
		p.SessionIds = append(p.SessionIds, item.sessionID)
		p.Variables = append(p.Variables, item.variable)
		p.Definitions = append(p.Definitions, item.definition)
		p.Vals = append(p.Vals, item.stored.JSON)
		p.PayloadHashes = append(p.PayloadHashes, orEmpty(item.stored.SHA256))
		p.Payloads = append(p.Payloads, orEmpty(item.stored.Payload))
		p.ValueBytes = append(p.ValueBytes, int64(item.stored.Bytes))
		p.Metadatas = append(p.Metadatas, item.metadata)
		p.ExpectedVersions = append(p.ExpectedVersions, item.expected)
		p.Refusals = append(p.Refusals, refusalJSON(item.refusal))
		p.Principals = append(p.Principals, item.principal)
		p.Groups = append(p.Groups, item.groups)
		p.Authorities = append(p.Authorities, item.authority)
		p.Reasons = append(p.Reasons, item.reason)
		p.RequestIds = append(p.RequestIds, item.requestID)
		p.BodyHashes = append(p.BodyHashes, orEmpty(item.hash))
		p.LeaseIds = append(p.LeaseIds, item.lease.GetOptimizationId())
		p.LeaseTokens = append(p.LeaseTokens, item.lease.GetFencingToken())
	}
	return p
}

func orEmpty(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

// groupedBytes is the largest value that is written in a group: what is larger would hold the others up.
const groupedBytes = 16 << 10

// groupedItems bounds a group.
const groupedItems = 512

// runSet runs the statement: a small single write in a group of concurrent ones; the rest alone.
func (s *Service) runSet(ctx context.Context, call *setCall, items []checkedItem) ([]dbgen.VariableSetRow, error) {
	if call.dryRun {
		return trySet(len(items)), nil
	}
	var rows []dbgen.VariableSetRow
	// The time limit holds for the wait in the queue too: behind a database that is gone each group takes all of its own.
	err := s.db.Wait(ctx, "set variables", func(ctx context.Context) error {
		if !call.batch && items[0].stored.Bytes+len(items[0].metadata) <= groupedBytes {
			outcome, err := s.writes.Do(ctx, items[0])
			if err != nil || !outcome.alone {
				rows = []dbgen.VariableSetRow{outcome.row}
				return laneError(err)
			}
		}
		params := setParams(setpointv1.HistoryChange_HISTORY_CHANGE_SET, items...)
		params.Batch, params.Atomic = call.batch, call.atomic
		return s.db.Locked(ctx, "set variables", []string{call.sessionID}, func(ctx context.Context, q *dbgen.Queries) error {
			var err error
			rows, err = answered(len(items))(q.VariableSet(ctx, params))
			return err
		})
	})
	return rows, err
}

// trySet sends a dry run to the general path, which can undo what it does.
func trySet(items int) []dbgen.VariableSetRow {
	return slices.Repeat([]dbgen.VariableSetRow{{Refused: "HAS_DEPENDENTS"}}, items)
}

// answered sees that the statement answered for every item.
func answered(items int) func([]dbgen.VariableSetRow, error) ([]dbgen.VariableSetRow, error) {
	return func(rows []dbgen.VariableSetRow, err error) ([]dbgen.VariableSetRow, error) {
		if err == nil && len(rows) != items {
			return nil, fmt.Errorf("set variables: %d answers for %d items", len(rows), items)
		}
		return rows, err
	}
}

// groupOutcome is what became of a write in a group: the statement's row, or that it is to be done alone.
type groupOutcome struct {
	row   dbgen.VariableSetRow
	alone bool
}

func newWriteLane(s *Service) *commit.Lane[checkedItem, groupOutcome] {
	return commit.NewLane(commit.Config[checkedItem, groupOutcome]{
		Run: s.runGroup, Keys: groupKeys, MaxItems: groupedItems, Panicked: s.events.Panicked,
	})
}

// groupKeys keeps apart what a group would not do together: a request and its repeat, and writes of one variable that
// expect no version, of which the statement would write one. Those that expect one are refused together.
func groupKeys(item checkedItem) []string {
	var keys []string
	if item.requestID != "" {
		keys = append(keys, "r\x00"+item.sessionID+"\x00"+item.principal+"\x00"+item.requestID)
	}
	if item.expected == anyVersion {
		keys = append(keys, "v\x00"+item.sessionID+"\x00"+item.variable)
	}
	return keys
}

// runGroup writes a group in one statement. If somebody else holds the lock of one of its sessions for long, the group is
// done without those that are locked, which then wait each for itself. If the statement fails, each is done alone: one
// must not spoil it for the others.
func (s *Service) runGroup(ctx context.Context, items []checkedItem) ([]commit.Result[groupOutcome], error) {
	sessions := sessionsOf(items)
	var rows []dbgen.VariableSetRow
	err := s.db.Group(ctx, "set variables", sessions, func(ctx context.Context, q *dbgen.Queries) error {
		var err error
		params := setParams(setpointv1.HistoryChange_HISTORY_CHANGE_SET, items...)
		rows, err = answered(len(items))(q.VariableSet(ctx, params))
		return err
	})
	switch {
	case err == nil:
		return groupResults(items, items, rows), nil
	case errors.Is(err, db.ErrLocked) && len(sessions) > 1:
		return s.runUnlocked(ctx, items, sessions)
	case isSpoilt(err):
		return groupResults(items, nil, nil), nil
	}
	return nil, err
}

// isSpoilt tells whether a group failed for one of its items, or for a lock, so that each is worth a try of its own; where
// the database is overloaded that would make it worse.
func isSpoilt(err error) bool {
	return db.IsRolledBack(err) && (errors.Is(err, db.ErrLocked) || !errors.Is(err, db.ErrOverloaded))
}

// runUnlocked writes those of a group whose sessions are not locked.
func (s *Service) runUnlocked(ctx context.Context, items []checkedItem, sessions []string) (
	[]commit.Result[groupOutcome], error,
) {
	var free []checkedItem
	var rows []dbgen.VariableSetRow
	err := s.db.GroupSkipLocked(ctx, "set variables", sessions,
		func(ctx context.Context, q *dbgen.Queries, locked []string) error {
			free, rows = nil, nil
			for _, item := range items {
				if slices.Contains(locked, item.sessionID) {
					free = append(free, item)
				}
			}
			if len(free) == 0 {
				return nil
			}
			var err error
			params := setParams(setpointv1.HistoryChange_HISTORY_CHANGE_SET, free...)
			rows, err = answered(len(free))(q.VariableSet(ctx, params))
			return err
		})
	switch {
	case err == nil:
		return groupResults(items, free, rows), nil
	case isSpoilt(err):
		return groupResults(items, nil, nil), nil
	}
	return nil, err
}

// groupResults gives each item the row of the written one that it is, in order; those that are none are to be done alone.
func groupResults(items, written []checkedItem, rows []dbgen.VariableSetRow) []commit.Result[groupOutcome] {
	results := make([]commit.Result[groupOutcome], len(items))
	next := 0
	for i, item := range items {
		if next == len(written) || item.setCall != written[next].setCall {
			results[i].Value.alone = true
			continue
		}
		results[i].Value.row = rows[next]
		results[i].Again = rows[next].Refused == "NEXT_GROUP"
		next++
	}
	return results
}

func sessionsOf(items []checkedItem) []string {
	ids := make([]string, len(items))
	for i, item := range items {
		ids[i] = item.sessionID
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

// learn remembers the definitions that the statement sent back; true if there were any.
func (s *Service) learn(call *setCall, rows []dbgen.VariableSetRow) (bool, error) {
	learned := false
	for i, row := range rows {
		if row.Refused != "DEFINITION_CHANGED" {
			continue
		}
		_, err := s.definitions.learn(call.sessionID, call.items[i].variable, row.Type, row.Constraints, row.DefinitionRevision)
		if err != nil {
			return false, err
		}
		learned = true
	}
	return learned, nil
}

func setOutcomes(rows []dbgen.VariableSetRow, items []checkedItem) []itemOutcome {
	outcomes := make([]itemOutcome, len(rows))
	for i, row := range rows {
		outcomes[i] = itemOutcome{
			Ord: row.Ord, Refused: row.Refused, VariableID: row.VariableID, Name: row.Name,
			FoundVersion: row.FoundVersion, Revision: row.Revision, ChangedAt: row.ChangedAt.Time, Refusal: items[i].refusal,
			Holder: holderOf(row.OptimizationID, row.LeaseOptimizerID, row.LeaseStartedAt, row.LeaseExpiresAt),
			Access: row.Access, Rule: row.RuleID,
		}
	}
	return outcomes
}
