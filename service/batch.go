package service

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"google.golang.org/protobuf/proto"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/identity"
)

// itemOutcome is what became of one item of a statement that writes: as its row says, or, where the request is a repeat,
// as the record of the first says (which is where the JSON comes from).
type itemOutcome struct {
	Ord          int32         `json:"ord"`
	Refused      string        `json:"refused,omitempty"`
	VariableID   string        `json:"variable_id,omitempty"`
	Name         string        `json:"name,omitempty"`
	FoundVersion int64         `json:"found_version,omitempty"`
	Revision     int64         `json:"revision,omitempty"`
	ChangedAt    time.Time     `json:"changed_at"`
	Refusal      *savedRefusal `json:"refusal,omitempty"`
	// Disturbs: others had to follow.
	Disturbs bool `json:"disturbs,omitempty"`
	// Holder has the lease, where that is the refusal.
	Holder *holder `json:"holder,omitempty"`
	// Access is what the caller may do with the variable, in bits, and Rule what denies the rest, where that is the refusal.
	Access int32  `json:"access,omitempty"`
	Rule   string `json:"rule,omitempty"`
}

// recordedOutcomes reads the record of a request's items.
func recordedOutcomes(data []byte) ([]itemOutcome, error) {
	var outcomes []itemOutcome
	if err := json.Unmarshal(data, &outcomes); err != nil {
		return nil, fmt.Errorf("read a recorded outcome: %w", err)
	}
	return outcomes, nil
}

// asked is what a refusal tells the caller of its own request.
type asked struct {
	sessionID, variable, requestID string
	expectedVersion                int64
	limits                         Limits
	lease                          *setpointv1.Lease
	// permission is what the item takes; registers: in the whole session.
	permission identity.Permissions
	registers  bool
}

// refusals turn the words in which the statements refuse into errors.
var refusals = map[string]func(o itemOutcome, a asked) *Error{
	"SESSION_NOT_FOUND":  func(_ itemOutcome, a asked) *Error { return sessionNotFound(a.sessionID) },
	"SESSION_HIDDEN":     func(o itemOutcome, a asked) *Error { return o.denied(a) },
	"ACCESS_DENIED":      func(o itemOutcome, a asked) *Error { return o.denied(a) },
	"ADMIN_DENIED":       func(_ itemOutcome, _ asked) *Error { return denied(identity.Admin, "", "") },
	"VARIABLE_NOT_FOUND": func(_ itemOutcome, a asked) *Error { return variableNotFound(a.sessionID, a.variable) },
	"REQUEST_ID_REUSED":  func(_ itemOutcome, a asked) *Error { return reused(a.requestID) },
	"ALREADY_OPTIMIZING": func(o itemOutcome, _ asked) *Error { return alreadyOptimizing(o.Name, o.Holder) },
	"LEASE_LOST":         func(o itemOutcome, a asked) *Error { return leaseLost(a.lease.GetOptimizationId(), o.Name) },
	"DERIVED_VARIABLE":   func(o itemOutcome, _ asked) *Error { return derivedVariable(o.Name) },
	"VALUE_REFUSED":      func(o itemOutcome, _ asked) *Error { return o.Refusal.error() },
	"VERSION_MISMATCH": func(o itemOutcome, a asked) *Error {
		return versionMismatch(o.Name, a.expectedVersion, o.FoundVersion)
	},
	"VARIABLE_EXISTS": func(_ itemOutcome, a asked) *Error {
		return refuse(setpointv1.ErrorReason_VARIABLE_EXISTS,
			fmt.Sprintf("session %q has a variable %q", a.sessionID, a.variable),
			"session_id", a.sessionID, "variable", a.variable)
	},
	"LIMIT_EXCEEDED": func(_ itemOutcome, a asked) *Error {
		return limitExceeded("variables", a.limits.Variables,
			fmt.Sprintf("session %q has %d variables, as many as one may have", a.sessionID, a.limits.Variables))
	},
	"DUPLICATE": func(o itemOutcome, _ asked) *Error {
		return invalid("writes", fmt.Sprintf("variable %q is in the batch twice", o.Name))
	},
}

// refusal is why an item was refused; nil if it was not.
func (o itemOutcome) refusal(a asked) *Error {
	if o.Refused == "" {
		return nil
	}
	return refusals[o.Refused](o, a)
}

// denied is the refusal of an item for lack of a permission.
func (o itemOutcome) denied(a asked) *Error {
	variable := a.variable
	if a.permission == identity.Write && a.registers {
		variable = "" // It takes the whole session.
	}
	if o.Access&int32(identity.Read) != 0 && o.Name != "" {
		variable = o.Name
	}
	return accessRefusal(o.Refused, a.sessionID, variable, o.Rule, a.permission)
}

func derivedVariable(name string) *Error {
	return refuse(setpointv1.ErrorReason_DERIVED_VARIABLE,
		fmt.Sprintf("%s is computed by its expression", name), "variable", name)
}

func versionMismatch(name string, expected, current int64) *Error {
	return refuse(setpointv1.ErrorReason_VERSION_MISMATCH,
		fmt.Sprintf("%s: expected version %d, but the current version is %d", name, expected, current),
		"variable", name, "expected_version", strconv.FormatInt(expected, 10),
		"current_version", strconv.FormatInt(current, 10))
}

// wholeBatch is the refusal of all of a batch: for what concerns it as a whole, or for the failing items of an atomic
// one. nil: its items have their own outcomes.
func wholeBatch(outcomes []itemOutcome, errs []*Error, atomic bool) *Error {
	for i, o := range outcomes {
		switch o.Refused {
		case "SESSION_NOT_FOUND", "SESSION_HIDDEN", "REQUEST_ID_REUSED", "DUPLICATE":
			return errs[i]
		}
	}
	if !atomic {
		return nil
	}
	var whole *Error
	detailed := 0
	for i, e := range errs {
		if e == nil {
			continue
		}
		if whole == nil {
			whole = refuse(e.Reason, fmt.Sprintf("item %d: %s", i, e.Message))
			whole.Metadata, whole.denial = e.Metadata, e.denial
		}
		item := e.item()
		if detailed += proto.Size(item); detailed > failureBytes {
			item = &setpointv1.ItemError{Code: item.GetCode(), Reason: item.GetReason()}
		}
		whole.Failed = append(whole.Failed, &setpointv1.FailedItem{Index: int32(i), Error: item})
	}
	return whole
}

// failureBytes is how much of the failing items is told in full; of the others, what and why. A status has to fit into
// what clients take as headers.
const failureBytes = 2 << 10

func countFailed(errs []*Error) int {
	n := 0
	for _, e := range errs {
		if e != nil {
			n++
		}
	}
	return n
}

// recordItem is recordRefusals of an item that has been answered.
func (s *Service) recordItem(ctx context.Context, a asked, principal string, e *setpointv1.ItemError) {
	if e != nil {
		s.recordRefusals(ctx, a, principal, &Error{Reason: e.GetReason(), Message: e.GetMessage(), Metadata: e.GetMetadata()})
	}
}

// recordRefusal is recordRefusals of a call that names its variable in its error alone.
func (s *Service) recordRefusal(ctx context.Context, sessionID, principal string, err error) {
	if e := asRefusal(err); e != nil {
		s.recordRefusals(ctx, asked{sessionID: sessionID, variable: e.Metadata["variable"]}, principal, e)
	}
}

// recordRefusals records the refusals of items that telemetry has an event for.
func (s *Service) recordRefusals(ctx context.Context, a asked, principal string, e *Error) {
	if e == nil {
		return
	}
	switch e.Reason {
	case setpointv1.ErrorReason_VERSION_MISMATCH:
		current, _ := strconv.ParseInt(e.Metadata["current_version"], 10, 64) // versionMismatch wrote it.
		s.events.VersionMismatch(ctx, a.sessionID, a.variable, a.expectedVersion, current, principal)
	case setpointv1.ErrorReason_CONSTRAINT_VIOLATION, setpointv1.ErrorReason_TYPE_MISMATCH:
		s.events.ValueRefused(ctx, a.sessionID, a.variable, e.Reason.String(), principal)
	case setpointv1.ErrorReason_WOULD_CREATE_CYCLE:
		s.events.CycleDetected(ctx, a.sessionID, e.Metadata["path"], principal)
	case setpointv1.ErrorReason_ALREADY_OPTIMIZING, setpointv1.ErrorReason_LEASE_LOST:
		s.events.LockConflict(ctx, a.sessionID, a.variable, e.Reason.String(), e.Metadata["optimization_id"], principal)
	}
}
