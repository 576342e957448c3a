package service

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	"buf.build/go/protovalidate"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/setpointdb/setpoint/db"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/value"
)

// domain is the ErrorInfo.domain of every error of the API.
const domain = "setpoint"

// retryAfter is what RetryInfo asks for where the database is away or busy.
const retryAfter = 500 * time.Millisecond

// reasons is the one table of what can go wrong: each reason and its status code.
var reasons = map[setpointv1.ErrorReason]codes.Code{
	setpointv1.ErrorReason_SESSION_NOT_FOUND:      codes.NotFound,
	setpointv1.ErrorReason_VARIABLE_NOT_FOUND:     codes.NotFound,
	setpointv1.ErrorReason_DEPENDENCY_NOT_FOUND:   codes.NotFound,
	setpointv1.ErrorReason_OPTIMIZATION_NOT_FOUND: codes.NotFound,
	setpointv1.ErrorReason_RULE_NOT_FOUND:         codes.NotFound,
	setpointv1.ErrorReason_TOKEN_NOT_FOUND:        codes.NotFound,
	setpointv1.ErrorReason_SESSION_EXISTS:         codes.AlreadyExists,
	setpointv1.ErrorReason_VARIABLE_EXISTS:        codes.AlreadyExists,
	setpointv1.ErrorReason_VERSION_MISMATCH:       codes.Aborted,
	setpointv1.ErrorReason_CONFLICT_RETRY:         codes.Aborted,
	setpointv1.ErrorReason_REQUEST_ID_REUSED:      codes.FailedPrecondition,
	setpointv1.ErrorReason_WOULD_CREATE_CYCLE:     codes.FailedPrecondition,
	setpointv1.ErrorReason_HAS_DEPENDENTS:         codes.FailedPrecondition,
	setpointv1.ErrorReason_DERIVED_VARIABLE:       codes.FailedPrecondition,
	setpointv1.ErrorReason_DERIVATION_FAILED:      codes.FailedPrecondition,
	setpointv1.ErrorReason_ALREADY_OPTIMIZING:     codes.FailedPrecondition,
	setpointv1.ErrorReason_LEASE_LOST:             codes.FailedPrecondition,
	setpointv1.ErrorReason_OPTIMIZATION_ENDED:     codes.FailedPrecondition,
	setpointv1.ErrorReason_VERSION_NOT_AVAILABLE:  codes.OutOfRange,
	setpointv1.ErrorReason_HISTORY_TRUNCATED:      codes.OutOfRange,
	setpointv1.ErrorReason_INVALID_REQUEST:        codes.InvalidArgument,
	setpointv1.ErrorReason_CONSTRAINT_VIOLATION:   codes.InvalidArgument,
	setpointv1.ErrorReason_TYPE_MISMATCH:          codes.InvalidArgument,
	setpointv1.ErrorReason_INVALID_CONSTRAINTS:    codes.InvalidArgument,
	setpointv1.ErrorReason_INVALID_EXPRESSION:     codes.InvalidArgument,
	setpointv1.ErrorReason_ACCESS_DENIED:          codes.PermissionDenied,
	setpointv1.ErrorReason_CREDENTIALS_MISSING:    codes.Unauthenticated,
	setpointv1.ErrorReason_CREDENTIALS_INVALID:    codes.Unauthenticated,
	setpointv1.ErrorReason_LIMIT_EXCEEDED:         codes.ResourceExhausted,
	setpointv1.ErrorReason_OVERLOADED:             codes.ResourceExhausted,
	setpointv1.ErrorReason_DATABASE_UNAVAILABLE:   codes.Unavailable,
	setpointv1.ErrorReason_INTERNAL_ERROR:         codes.Internal,
}

// constraintReasons are what the named constraints of the schema mean to a caller. The statements check all of these before,
// under the lock; a constraint that is not here refuses nothing but a defect, which is INTERNAL.
var constraintReasons = map[string]setpointv1.ErrorReason{
	"sessions_pkey":          setpointv1.ErrorReason_SESSION_EXISTS,
	"variables_name_unique":  setpointv1.ErrorReason_VARIABLE_EXISTS,
	"variables_session_fkey": setpointv1.ErrorReason_SESSION_NOT_FOUND,
	// Two servers at one revision, or at one request: the second is to look again.
	"history_pkey":  setpointv1.ErrorReason_CONFLICT_RETRY,
	"requests_pkey": setpointv1.ErrorReason_CONFLICT_RETRY,
}

// Error is a refusal by its reason.
type Error struct {
	// Reason decides the status code, by the table above.
	Reason setpointv1.ErrorReason
	// Message is for people; it names what was wrong.
	Message string
	// Metadata is for programs; which keys there are depends on the reason.
	Metadata map[string]string
	// Fields are the request's fields that broke a rule, for INVALID_REQUEST.
	Fields []FieldViolation
	// Failed are the failing items of an atomic batch.
	Failed []*setpointv1.FailedItem

	// denial is set where it was for lack of a permission, whatever the caller is told.
	denial *denial
}

// FieldViolation is a field of a request and the rule that it broke.
type FieldViolation struct {
	Field       string `json:"field"`
	Description string `json:"description"`
}

func (e *Error) Error() string { return e.Reason.String() + ": " + e.Message }

// refuse makes an Error; pairs are the metadata, key and value in turn.
func refuse(reason setpointv1.ErrorReason, message string, pairs ...string) *Error {
	e := &Error{Reason: reason, Message: message}
	for i := 0; i+1 < len(pairs); i += 2 {
		if e.Metadata == nil {
			e.Metadata = make(map[string]string, len(pairs)/2)
		}
		e.Metadata[pairs[i]] = pairs[i+1]
	}
	return e
}

// InvalidRequest refuses a request for one of its fields, or for one of its headers.
func InvalidRequest(field, description string) error { return invalid(field, description) }

// invalid refuses a request for one of its fields.
func invalid(field, description string) *Error {
	e := refuse(setpointv1.ErrorReason_INVALID_REQUEST, field+": "+description)
	e.Fields = []FieldViolation{{Field: field, Description: description}}
	return e
}

// asRefusal returns the refusal that an error is; nil where the error is a failure of the server or the database, or
// the caller's own cancellation.
func asRefusal(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	if r, ok := errors.AsType[*value.Refusal](err); ok {
		return fromValue(r)
	}
	if v, ok := errors.AsType[*protovalidate.ValidationError](err); ok {
		return fromValidation(v)
	}
	return nil
}

func isRefusal(err error) bool { return asRefusal(err) != nil }

// fromValue is a refusal of a value or of constraints. Where the value is no value at all, the field is to be named.
func fromValue(r *value.Refusal) *Error {
	e := &Error{Reason: r.Reason, Message: r.Message, Metadata: r.Metadata}
	if r.Reason == setpointv1.ErrorReason_INVALID_REQUEST {
		e.Fields = []FieldViolation{{Field: "value", Description: r.Message}}
	}
	return e
}

// shownViolations bounds the fields that an error names: a status has to fit into what clients take as headers, 8 KiB.
const shownViolations = 10

func fromValidation(v *protovalidate.ValidationError) *Error {
	e := &Error{Reason: setpointv1.ErrorReason_INVALID_REQUEST}
	var messages []string
	for i, violation := range v.Violations {
		if i == shownViolations {
			messages = append(messages, fmt.Sprintf("and %d more", len(v.Violations)-i))
			break
		}
		field := protovalidate.FieldPathString(violation.Proto.GetField())
		description := violation.Proto.GetMessage()
		e.Fields = append(e.Fields, FieldViolation{Field: field, Description: description})
		messages = append(messages, strings.TrimPrefix(field+": "+description, ": "))
	}
	e.Message = strings.Join(messages, "; ")
	return e
}

// fromFailure turns what is no refusal into one where the API has a reason for it; else nil.
func fromFailure(err error) *Error {
	switch {
	case constraintReasons[db.Constraint(err)] != 0:
		return refuse(constraintReasons[db.Constraint(err)], "a constraint of the database refused the write")
	case errors.Is(err, db.ErrUnavailable):
		return refuse(setpointv1.ErrorReason_DATABASE_UNAVAILABLE, "the database cannot be reached; try again")
	case errors.Is(err, db.ErrOverloaded):
		return refuse(setpointv1.ErrorReason_OVERLOADED, "the database is too busy; try again")
	case errors.Is(err, db.ErrConflict):
		return refuse(setpointv1.ErrorReason_CONFLICT_RETRY, "the write kept losing to concurrent ones; try again")
	}
	return nil
}

// Status turns any error of a handler or an interceptor into the status that the caller sees. requestID names the
// request in the server's log. Errors that have no reason are INTERNAL, without detail; the second result is then true
// and the error is for the log.
func Status(err error, requestID string) (*status.Status, bool) {
	if e := asRefusal(err); e != nil {
		return e.status(), false
	}
	if s, ok := contextStatus(err); ok {
		return s, false
	}
	if e := fromFailure(err); e != nil {
		return e.status(), false
	}
	if s, ok := status.FromError(err); ok {
		return s, false
	}
	e := refuse(setpointv1.ErrorReason_INTERNAL_ERROR,
		fmt.Sprintf("internal error; the server's log has it as request %s", requestID), "request_id", requestID)
	return e.status(), true
}

func contextStatus(err error) (*status.Status, bool) {
	switch {
	case errors.Is(err, db.ErrUnavailable):
		return nil, false
	case errors.Is(err, context.Canceled):
		return status.New(codes.Canceled, context.Canceled.Error()), true
	case errors.Is(err, context.DeadlineExceeded):
		return status.New(codes.DeadlineExceeded, context.DeadlineExceeded.Error()), true
	}
	return nil, false
}

func (e *Error) status() *status.Status {
	s := status.New(reasons[e.Reason], e.Message)
	details := []protoadapt.MessageV1{
		&errdetails.ErrorInfo{Domain: domain, Reason: e.Reason.String(), Metadata: e.Metadata},
	}
	if len(e.Fields) > 0 {
		bad := &errdetails.BadRequest{}
		for _, f := range e.Fields {
			bad.FieldViolations = append(bad.FieldViolations,
				&errdetails.BadRequest_FieldViolation{Field: f.Field, Description: f.Description})
		}
		details = append(details, bad)
	}
	if e.Reason == setpointv1.ErrorReason_OVERLOADED || e.Reason == setpointv1.ErrorReason_DATABASE_UNAVAILABLE {
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(retryAfter)})
	}
	if len(e.Failed) > 0 {
		details = append(details, protoadapt.MessageV1Of(&setpointv1.BatchFailure{Items: e.Failed}))
	}
	with, err := s.WithDetails(details...)
	if err != nil {
		return s
	}
	return with
}

// item is the refusal as one item of a batch carries it.
func (e *Error) item() *setpointv1.ItemError {
	return &setpointv1.ItemError{
		Code: int32(reasons[e.Reason]), Reason: e.Reason, Message: e.Message, Metadata: maps.Clone(e.Metadata),
	}
}
