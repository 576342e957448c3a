package service

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgtype"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/setpointdb/setpoint/db/dbgen"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/value"
)

// timestamp is absent for no time and for infinity.
func timestamp(t pgtype.Timestamptz) *timestamppb.Timestamp {
	if !t.Valid || t.InfinityModifier != pgtype.Finite {
		return nil
	}
	return timestamppb.New(t.Time)
}

func microseconds(us int64) time.Duration { return time.Duration(us) * time.Microsecond }

// metadataJSON is a metadata map as jsonb: {} for none.
func metadataJSON(metadata map[string]string) []byte {
	if len(metadata) == 0 {
		return []byte("{}")
	}
	data, _ := json.Marshal(metadata) // A map of strings always marshals.
	return data
}

// metadataBytes bounds a metadata map, as JSON: it comes with every version, and with every row of a list.
const metadataBytes = 16 << 10

func checkMetadata(metadata map[string]string) error {
	if size := len(metadataJSON(metadata)); size > metadataBytes {
		return limitExceeded("metadata_bytes", metadataBytes,
			fmt.Sprintf("metadata has at most %d bytes as JSON, not %d", metadataBytes, size))
	}
	return nil
}

func metadataOf(data []byte) (map[string]string, error) {
	var metadata map[string]string
	if len(data) == 0 {
		return nil, nil
	}
	if err := json.Unmarshal(data, &metadata); err != nil {
		return nil, fmt.Errorf("read metadata: %w", err)
	}
	return metadata, nil
}

// sessionRow is the one shape of the rows that the session queries return.
type sessionRow dbgen.SessionBeginRow

func (r sessionRow) proto() (*setpointv1.Session, error) {
	metadata, err := metadataOf(r.Metadata)
	if err != nil {
		return nil, err
	}
	s := &setpointv1.Session{
		SessionId: r.SessionID, Owner: r.Owner, Metadata: metadata, CreatedAt: timestamp(r.CreatedAt),
		ExpiresAt: timestamp(r.ExpiresAt), Revision: r.Revision, VariableCount: r.VariableCount,
	}
	if r.TTLMicros > 0 {
		s.Ttl = durationpb.New(microseconds(r.TTLMicros))
	}
	return s, nil
}

// variableRow is the one shape of the rows that the variable queries return.
type variableRow dbgen.VariableGetManyRow

func (r variableRow) proto(sessionID string) (*setpointv1.Variable, error) {
	kind, ok := value.ParseType(r.Type)
	if !ok {
		return nil, fmt.Errorf("variable %s: unknown type %q", r.VariableID, r.Type)
	}
	v, err := value.Decode(kind, r.Value, r.Payload)
	if err != nil {
		return nil, fmt.Errorf("variable %s: %w", r.VariableID, err)
	}
	constraints, err := value.UnmarshalConstraints(r.Constraints)
	if err != nil {
		return nil, fmt.Errorf("variable %s: %w", r.VariableID, err)
	}
	metadata, err := metadataOf(r.Metadata)
	if err != nil {
		return nil, fmt.Errorf("variable %s: %w", r.VariableID, err)
	}
	return &setpointv1.Variable{
		VariableId: r.VariableID, SessionId: sessionID, Name: r.Name, Type: kind, Value: v, Constraints: constraints,
		Metadata: metadata, Version: r.Version, Revision: r.Revision, HistoryLimit: r.HistoryLimit,
		CreatedAt: timestamp(r.CreatedAt), UpdatedAt: timestamp(r.UpdatedAt), UpdatedBy: r.UpdatedBy,
		DependsOn: r.DependsOn, Expression: r.Expression, Strict: r.Strict,
		Stale: stale(r.StaleRevision, r.StaleCause, r.StaleError), Optimization: r.holder().proto(),
		AccessMode: accessModes[r.AccessMode],
	}, nil
}

// privateMode is the access mode of a variable that asks for none.
const privateMode = "private"

// accessModes are the access modes, by the words that the database has for them.
var accessModes = map[string]setpointv1.AccessMode{
	"private":   setpointv1.AccessMode_ACCESS_MODE_PRIVATE,
	"protected": setpointv1.AccessMode_ACCESS_MODE_PROTECTED,
	"public":    setpointv1.AccessMode_ACCESS_MODE_PUBLIC,
}

// accessModeName is the database's word for an access mode.
func accessModeName(mode setpointv1.AccessMode) string {
	for name, m := range accessModes {
		if m == mode {
			return name
		}
	}
	return privateMode
}

// shown is proto for the caller of the row: without what that may not read.
func (r variableRow) shown(sessionID string) (*setpointv1.Variable, error) {
	v, err := r.proto(sessionID)
	if err == nil && len(r.Hidden) > 0 {
		hidden := wordSet(r.Hidden)
		hideFromVariable(v, exceptFor(hidden))
	}
	return v, err
}

// exceptFor sees all but some names.
type exceptFor map[string]bool

func (e exceptFor) sees(name string) bool { return !e[name] }
func (e exceptFor) seesAll() bool         { return len(e) == 0 }

// stale is absent where there is no revision.
func stale(revision int64, cause, problem string) *setpointv1.Stale {
	if revision == 0 {
		return nil
	}
	return &setpointv1.Stale{Revision: revision, Cause: cause, Error: problem}
}

// orNone is empty for nothing.
func orNone(text *string) string {
	if text == nil {
		return ""
	}
	return *text
}

// storedValue reads a value of a type by its name; nil for none.
func storedValue(kind string, data, payload []byte) (*setpointv1.Value, error) {
	if data == nil {
		return nil, nil
	}
	t, ok := value.ParseType(kind)
	if !ok {
		return nil, fmt.Errorf("unknown type %q", kind)
	}
	return value.Decode(t, data, payload)
}

// The kinds of history rows, as the database names them.
var changeNames = map[setpointv1.HistoryChange]string{
	setpointv1.HistoryChange_HISTORY_CHANGE_REGISTERED:          "registered",
	setpointv1.HistoryChange_HISTORY_CHANGE_SET:                 "set",
	setpointv1.HistoryChange_HISTORY_CHANGE_ROLLED_BACK:         "rolled_back",
	setpointv1.HistoryChange_HISTORY_CHANGE_UPDATED:             "updated",
	setpointv1.HistoryChange_HISTORY_CHANGE_DELETED:             "deleted",
	setpointv1.HistoryChange_HISTORY_CHANGE_RECOMPUTED:          "recomputed",
	setpointv1.HistoryChange_HISTORY_CHANGE_STALE:               "stale",
	setpointv1.HistoryChange_HISTORY_CHANGE_STALE_CLEARED:       "stale_cleared",
	setpointv1.HistoryChange_HISTORY_CHANGE_DEPENDENCY_ADDED:    "dependency_added",
	setpointv1.HistoryChange_HISTORY_CHANGE_DEPENDENCY_REMOVED:  "dependency_removed",
	setpointv1.HistoryChange_HISTORY_CHANGE_LEASE_GRANTED:       "lease_granted",
	setpointv1.HistoryChange_HISTORY_CHANGE_LEASE_PREEMPTING:    "lease_preempting",
	setpointv1.HistoryChange_HISTORY_CHANGE_LEASE_KEPT:          "lease_kept",
	setpointv1.HistoryChange_HISTORY_CHANGE_LEASE_ENDED:         "lease_ended",
	setpointv1.HistoryChange_HISTORY_CHANGE_ACCESS_RULE_ADDED:   "access_rule_added",
	setpointv1.HistoryChange_HISTORY_CHANGE_ACCESS_RULE_REMOVED: "access_rule_removed",
}

var changesByName = func() map[string]setpointv1.HistoryChange {
	m := make(map[string]setpointv1.HistoryChange, len(changeNames))
	for change, name := range changeNames {
		m[name] = change
	}
	return m
}()

// historyRow is the one shape of the rows that the history queries return.
type historyRow dbgen.HistoryListRow

func (r historyRow) proto() (*setpointv1.HistoryEntry, error) {
	metadata, err := metadataOf(r.Metadata)
	if err != nil {
		return nil, fmt.Errorf("revision %d: %w", r.Revision, err)
	}
	entry := &setpointv1.HistoryEntry{
		Revision: r.Revision, Version: r.Version, VariableId: r.VariableID, Name: r.Name, Change: changesByName[r.Change],
		Metadata: metadata, Reason: r.Reason, ChangedBy: r.ChangedBy, ChangedAt: timestamp(r.ChangedAt), Error: r.Error,
		Dependency: orNone(r.Dependency), Expression: r.Expression, OptimizationId: orNone(r.OptimizationID),
		TrialNumber: r.TrialNumber,
	}
	if r.CauseRevision != nil {
		entry.CausedBy = &setpointv1.Cause{Variable: orNone(r.Cause), Revision: *r.CauseRevision}
	}
	if entry.Value, err = storedValue(r.Type, r.Value, r.Payload); err != nil {
		return nil, fmt.Errorf("revision %d: %w", r.Revision, err)
	}
	if entry.AccessRule, err = r.accessRule(); err != nil {
		return nil, fmt.Errorf("revision %d: %w", r.Revision, err)
	}
	return entry, nil
}

// accessRule is the rule that came or went; nil for other changes.
func (r historyRow) accessRule() (*setpointv1.AccessRule, error) {
	rule, err := recordedRule(r.AccessRule)
	if rule == nil || err != nil {
		return nil, err
	}
	rule.VariableId, rule.Variable = r.VariableID, r.Name
	if r.Change == changeNames[setpointv1.HistoryChange_HISTORY_CHANGE_ACCESS_RULE_ADDED] {
		rule.GrantedBy, rule.GrantedAt, rule.Revision = r.ChangedBy, timestamp(r.ChangedAt), r.Revision
	}
	return rule, nil
}
