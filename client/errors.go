package client

import (
	"context"
	"encoding/json"
	"errors"
	"strconv"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/status"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// errorDomain marks the ErrorInfo of errors that Setpoint itself gives, unlike those of a proxy on the way.
const errorDomain = "setpoint"

// One value for errors.Is per reason of the API; [setpointv1.ErrorReason] tells what each means.
var (
	ErrSessionNotFound  = Reason(setpointv1.ErrorReason_SESSION_NOT_FOUND)
	ErrVariableNotFound = Reason(setpointv1.ErrorReason_VARIABLE_NOT_FOUND)
	// ErrDependencyNotFound: the one variable does not depend on the other, so there is nothing to remove.
	ErrDependencyNotFound = Reason(setpointv1.ErrorReason_DEPENDENCY_NOT_FOUND)
	// ErrOptimizationNotFound: the session has no such optimization.
	ErrOptimizationNotFound = Reason(setpointv1.ErrorReason_OPTIMIZATION_NOT_FOUND)
	// ErrRuleNotFound: the session has no such access rule, or the caller may not know of it.
	ErrRuleNotFound = Reason(setpointv1.ErrorReason_RULE_NOT_FOUND)
	// ErrTokenNotFound: the server knows no such token.
	ErrTokenNotFound   = Reason(setpointv1.ErrorReason_TOKEN_NOT_FOUND)
	ErrSessionExists   = Reason(setpointv1.ErrorReason_SESSION_EXISTS)
	ErrVariableExists  = Reason(setpointv1.ErrorReason_VARIABLE_EXISTS)
	ErrVersionMismatch = Reason(setpointv1.ErrorReason_VERSION_MISMATCH)
	ErrConflictRetry   = Reason(setpointv1.ErrorReason_CONFLICT_RETRY)
	ErrRequestIDReused = Reason(setpointv1.ErrorReason_REQUEST_ID_REUSED)
	// ErrWouldCreateCycle: a variable would come to depend on itself; [CyclePath] tells by way of which others.
	ErrWouldCreateCycle = Reason(setpointv1.ErrorReason_WOULD_CREATE_CYCLE)
	// ErrHasDependents: the variable is not deleted because others depend on it; [Dependents] names them.
	ErrHasDependents = Reason(setpointv1.ErrorReason_HAS_DEPENDENTS)
	// ErrDerivedVariable: the variable's value is computed by its expression, and cannot be written; nor can a dependency
	// that the expression uses be removed.
	ErrDerivedVariable = Reason(setpointv1.ErrorReason_DERIVED_VARIABLE)
	// ErrDerivationFailed: the write would leave a strict derived variable without a value that follows from the others, or
	// a new derived variable without any.
	ErrDerivationFailed = Reason(setpointv1.ErrorReason_DERIVATION_FAILED)
	// ErrAlreadyOptimizing: somebody has the right to change the variable, or waits for it; [Holder] tells who.
	ErrAlreadyOptimizing = Reason(setpointv1.ErrorReason_ALREADY_OPTIMIZING)
	// ErrLeaseLost: the lease that the call presented does not hold on the variable.
	ErrLeaseLost = Reason(setpointv1.ErrorReason_LEASE_LOST)
	// ErrOptimizationEnded: the optimization is over; [EndedAs] tells how.
	ErrOptimizationEnded   = Reason(setpointv1.ErrorReason_OPTIMIZATION_ENDED)
	ErrVersionNotAvailable = Reason(setpointv1.ErrorReason_VERSION_NOT_AVAILABLE)
	ErrHistoryTruncated    = Reason(setpointv1.ErrorReason_HISTORY_TRUNCATED)
	ErrInvalidRequest      = Reason(setpointv1.ErrorReason_INVALID_REQUEST)
	ErrConstraintViolation = Reason(setpointv1.ErrorReason_CONSTRAINT_VIOLATION)
	ErrTypeMismatch        = Reason(setpointv1.ErrorReason_TYPE_MISMATCH)
	ErrInvalidConstraints  = Reason(setpointv1.ErrorReason_INVALID_CONSTRAINTS)
	// ErrInvalidExpression: an expression does not parse, names what is no variable, or does not yield the variable's type.
	ErrInvalidExpression = Reason(setpointv1.ErrorReason_INVALID_EXPRESSION)
	// ErrAccessDenied: the caller may not do this, or may not know whether there is such a variable; [Denied] tells what
	// was lacking.
	ErrAccessDenied = Reason(setpointv1.ErrorReason_ACCESS_DENIED)
	// ErrCredentialsMissing: the server wants a token or a certificate, and the call had none.
	ErrCredentialsMissing = Reason(setpointv1.ErrorReason_CREDENTIALS_MISSING)
	// ErrCredentialsInvalid: the token or the certificate is malformed, unknown, expired or revoked.
	ErrCredentialsInvalid  = Reason(setpointv1.ErrorReason_CREDENTIALS_INVALID)
	ErrLimitExceeded       = Reason(setpointv1.ErrorReason_LIMIT_EXCEEDED)
	ErrOverloaded          = Reason(setpointv1.ErrorReason_OVERLOADED)
	ErrDatabaseUnavailable = Reason(setpointv1.ErrorReason_DATABASE_UNAVAILABLE)
	ErrInternal            = Reason(setpointv1.ErrorReason_INTERNAL_ERROR)
)

// ErrUnreachable matches, with errors.Is, every error of a call that no server answered: nothing listens at the address,
// the connection broke, or none came about in time.
var ErrUnreachable = errors.New("no server answers")

// reason is a reason as an error to compare with.
type reason setpointv1.ErrorReason

func (r reason) Error() string {
	return setpointv1.ErrorReason(r).String()
}

// Reason returns the error that matches, with errors.Is, every error of that reason; equal reasons give equal errors.
// The Err… variables are its values.
func Reason(r setpointv1.ErrorReason) error {
	return reason(r)
}

// Error is why a call failed.
type Error struct {
	// Code is the status code of gRPC.
	Code codes.Code
	// Reason is why Setpoint refused. It is ERROR_REASON_UNSPECIFIED where no Setpoint server spoke (the network, a
	// proxy, a deadline), and where a newer server gave a reason that this client does not know.
	Reason setpointv1.ErrorReason
	// ReasonName is the reason as the server wrote it, known or not; empty where no Setpoint server spoke.
	ReasonName string
	// Message is for people.
	Message string
	// Metadata is the particulars that the reason promises, such as current_version.
	Metadata map[string]string
	// Violations are the fields that the request got wrong.
	Violations []FieldViolation
	// RetryAfter is how long the server asks to wait before another attempt; 0 where it says nothing.
	RetryAfter time.Duration
	// Failed are the failing items of an atomic batch, in the order of the request; [FromItem] makes errors of them.
	Failed []*setpointv1.FailedItem

	unreachable bool
	cause       error
	status      *status.Status
}

// FieldViolation is one thing wrong with a request.
type FieldViolation struct {
	// Field is the path of the field, as "constraints.min".
	Field string
	// Description says what is wrong with it.
	Description string
}

// Name is the reason's name, UNREACHABLE where no server answered, else the name of the code, such as
// DEADLINE_EXCEEDED.
func (e *Error) Name() string {
	switch {
	case e.ReasonName != "":
		return e.ReasonName
	case e.unreachable:
		return "UNREACHABLE"
	}
	return code.Code(e.Code).String()
}

// Error returns the name and the message.
func (e *Error) Error() string {
	return e.Name() + ": " + e.Message
}

// Is makes errors.Is work with the Err… values, and with the context's errors.
func (e *Error) Is(target error) bool {
	switch target {
	case context.Canceled:
		return e.Code == codes.Canceled
	case context.DeadlineExceeded:
		return e.Code == codes.DeadlineExceeded
	case ErrUnreachable:
		return e.unreachable
	}
	r, ok := target.(reason)
	return ok && r != 0 && setpointv1.ErrorReason(r) == e.Reason
}

// Unwrap returns what gRPC returned.
func (e *Error) Unwrap() error {
	return e.cause
}

// GRPCStatus is the status with all its details; status.FromError and status.Code find it.
func (e *Error) GRPCStatus() *status.Status {
	return e.status
}

// CurrentVersion returns the version that a variable has, from the error of a call that expected another one
// ([ErrVersionMismatch]) or asked for one that is not there ([ErrVersionNotAvailable]).
func CurrentVersion(err error) (int64, bool) {
	var e *Error
	if !errors.As(err, &e) {
		return 0, false
	}
	version, err := strconv.ParseInt(e.Metadata["current_version"], 10, 64)
	return version, err == nil
}

// CyclePath returns the names of the variables that would depend on each other in a circle, from the error of a call that
// would have closed one ([ErrWouldCreateCycle]): each depends on the next, and the last is the first again. Of a very long
// circle the server leaves out the middle: then the error's metadata path_omitted tells how many names, and
// path_omitted_after after how many of these, so that there the one does not depend on the next itself.
func CyclePath(err error) ([]string, bool) {
	return namesOf(err, "path")
}

// Dependents returns names of variables that depend on the one that was not deleted because of them ([ErrHasDependents]):
// the first of them, where they are many.
func Dependents(err error) ([]string, bool) {
	return namesOf(err, "dependents")
}

// LeaseHolder is who has the right to change a variable, or waits for it.
type LeaseHolder struct {
	// Variable is the name of the variable.
	Variable string
	// OptimizationID and OptimizerID are of the optimization that has it.
	OptimizationID string
	OptimizerID    string
	// StartedAt is when it got the lease, by the database's clock; zero of one that waits.
	StartedAt time.Time
	// ExpiresAt is when the lease, or the stay in the queue, is over unless it is renewed, by the database's clock.
	ExpiresAt time.Time
}

// Holder tells who stands in the way, from the error of a call that was refused because of somebody's optimization
// ([ErrAlreadyOptimizing]), or that waited for as long as it was to. What the server left out is zero.
func Holder(err error) (LeaseHolder, bool) {
	var e *Error
	if !errors.As(err, &e) || e.Reason != setpointv1.ErrorReason_ALREADY_OPTIMIZING {
		return LeaseHolder{}, false
	}
	return LeaseHolder{
		Variable:       e.Metadata["variable"],
		OptimizationID: e.Metadata["optimization_id"],
		OptimizerID:    e.Metadata["optimizer_id"],
		StartedAt:      timeOf(e.Metadata["started_at"]),
		ExpiresAt:      timeOf(e.Metadata["expires_at"]),
	}, true
}

// Denial is what the caller lacked.
type Denial struct {
	// Permission is its name, as "write"; "owner" where only the session's owner and server admins may do this.
	Permission string
	// Variable is that on which the caller lacked it, as the call named it; empty where it is about no single one.
	Variable string
	// RuleID is the access rule that decided; empty where none did, or the caller may not know it.
	RuleID string
}

// Denied tells what the caller lacked, from the error of a call that was refused ([ErrAccessDenied]). What the server left
// out is empty.
func Denied(err error) (Denial, bool) {
	var e *Error
	if !errors.As(err, &e) || e.Reason != setpointv1.ErrorReason_ACCESS_DENIED {
		return Denial{}, false
	}
	return Denial{Permission: e.Metadata["permission"], Variable: e.Metadata["variable"], RuleID: e.Metadata["rule"]}, true
}

// EndedAs returns the state in which an optimization ended, from the error of a call that came after its end
// ([ErrOptimizationEnded]): UNSPECIFIED for one that this client does not know.
func EndedAs(err error) (setpointv1.OptimizationState, bool) {
	var e *Error
	if !errors.As(err, &e) || e.Reason != setpointv1.ErrorReason_OPTIMIZATION_ENDED {
		return setpointv1.OptimizationState_OPTIMIZATION_STATE_UNSPECIFIED, false
	}
	return stateOf(e.Metadata["state"]), true
}

// statePrefix is what the names of the states begin with in the API's enum.
const statePrefix = "OPTIMIZATION_STATE_"

// stateOf reads the name of a state, with the prefix that the API's enum has or without it.
func stateOf(name string) setpointv1.OptimizationState {
	name = strings.TrimPrefix(strings.ToUpper(name), statePrefix)
	return setpointv1.OptimizationState(setpointv1.OptimizationState_value[statePrefix+name])
}

// timeOf reads an instant of an error's metadata; zero where there is none.
func timeOf(text string) time.Time {
	at, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return time.Time{}
	}
	return at.UTC()
}

// namesOf reads a JSON array of names from an error's metadata.
func namesOf(err error, key string) ([]string, bool) {
	var e *Error
	if !errors.As(err, &e) {
		return nil, false
	}
	var names []string
	if err := json.Unmarshal([]byte(e.Metadata[key]), &names); err != nil || len(names) == 0 {
		return nil, false
	}
	return names, true
}

// FromItem makes of one failed item of a batch the error that a call of its own would have returned; nil of nil.
func FromItem(item *setpointv1.ItemError) error {
	if item == nil {
		return nil
	}
	st := status.New(codes.Code(item.GetCode()), item.GetMessage())
	e := &Error{
		Code:     st.Code(),
		Reason:   item.GetReason(),
		Message:  item.GetMessage(),
		Metadata: item.GetMetadata(),
		cause:    st.Err(),
		status:   st,
	}
	if e.Reason != setpointv1.ErrorReason_ERROR_REASON_UNSPECIFIED {
		e.ReasonName = e.Reason.String()
	}
	return e
}

// asError is the error of a call as the package gives it, also where the call went around the client's interceptors.
func asError(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	return newError(err, nil)
}

// newError makes an Error of what a call returned. The connection, nil where there was none, tells a server that is slow
// from one that is not there.
func newError(err error, cc *grpc.ClientConn) *Error {
	st, ok := status.FromError(err)
	if !ok {
		st = status.FromContextError(err)
	}
	e := &Error{Code: st.Code(), Message: st.Message(), cause: err, status: st}
	e.readDetails(st.Details())
	if e.ReasonName == "" {
		e.unreachable = e.Code == codes.Unavailable || e.Code == codes.DeadlineExceeded && !connected(cc)
	}
	return e
}

func connected(cc *grpc.ClientConn) bool {
	if cc == nil {
		return true
	}
	state := cc.GetState()
	return state != connectivity.Connecting && state != connectivity.TransientFailure
}

func (e *Error) readDetails(details []any) {
	for _, detail := range details {
		switch d := detail.(type) {
		case *errdetails.ErrorInfo:
			if d.GetDomain() != errorDomain {
				continue
			}
			e.ReasonName = d.GetReason()
			e.Reason = setpointv1.ErrorReason(setpointv1.ErrorReason_value[d.GetReason()])
			e.Metadata = d.GetMetadata()
		case *errdetails.BadRequest:
			for _, v := range d.GetFieldViolations() {
				e.Violations = append(e.Violations, FieldViolation{Field: v.GetField(), Description: v.GetDescription()})
			}
		case *errdetails.RetryInfo:
			e.RetryAfter = max(0, d.GetRetryDelay().AsDuration())
		case *setpointv1.BatchFailure:
			e.Failed = d.GetItems()
		}
	}
}
