package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/durationpb"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

func apiFiles(pkg protoreflect.FullName) []protoreflect.FileDescriptor {
	var files []protoreflect.FileDescriptor
	protoregistry.GlobalFiles.RangeFilesByPackage(pkg, func(file protoreflect.FileDescriptor) bool {
		files = append(files, file)
		return true
	})
	return files
}

func newMessage(t *testing.T, descriptor protoreflect.MessageDescriptor) proto.Message {
	t.Helper()
	kind, err := protoregistry.GlobalTypes.FindMessageByName(descriptor.FullName())
	if err != nil {
		t.Fatalf("find %s: %v", descriptor.FullName(), err)
	}
	return kind.New().Interface()
}

// sentinels names the variable of each reason; a reason that the API gains fails the test until it has one.
var sentinels = map[setpointv1.ErrorReason]error{
	setpointv1.ErrorReason_SESSION_NOT_FOUND:      ErrSessionNotFound,
	setpointv1.ErrorReason_VARIABLE_NOT_FOUND:     ErrVariableNotFound,
	setpointv1.ErrorReason_DEPENDENCY_NOT_FOUND:   ErrDependencyNotFound,
	setpointv1.ErrorReason_OPTIMIZATION_NOT_FOUND: ErrOptimizationNotFound,
	setpointv1.ErrorReason_RULE_NOT_FOUND:         ErrRuleNotFound,
	setpointv1.ErrorReason_TOKEN_NOT_FOUND:        ErrTokenNotFound,
	setpointv1.ErrorReason_SESSION_EXISTS:         ErrSessionExists,
	setpointv1.ErrorReason_VARIABLE_EXISTS:        ErrVariableExists,
	setpointv1.ErrorReason_VERSION_MISMATCH:       ErrVersionMismatch,
	setpointv1.ErrorReason_CONFLICT_RETRY:         ErrConflictRetry,
	setpointv1.ErrorReason_REQUEST_ID_REUSED:      ErrRequestIDReused,
	setpointv1.ErrorReason_WOULD_CREATE_CYCLE:     ErrWouldCreateCycle,
	setpointv1.ErrorReason_HAS_DEPENDENTS:         ErrHasDependents,
	setpointv1.ErrorReason_DERIVED_VARIABLE:       ErrDerivedVariable,
	setpointv1.ErrorReason_DERIVATION_FAILED:      ErrDerivationFailed,
	setpointv1.ErrorReason_ALREADY_OPTIMIZING:     ErrAlreadyOptimizing,
	setpointv1.ErrorReason_LEASE_LOST:             ErrLeaseLost,
	setpointv1.ErrorReason_OPTIMIZATION_ENDED:     ErrOptimizationEnded,
	setpointv1.ErrorReason_VERSION_NOT_AVAILABLE:  ErrVersionNotAvailable,
	setpointv1.ErrorReason_HISTORY_TRUNCATED:      ErrHistoryTruncated,
	setpointv1.ErrorReason_INVALID_REQUEST:        ErrInvalidRequest,
	setpointv1.ErrorReason_CONSTRAINT_VIOLATION:   ErrConstraintViolation,
	setpointv1.ErrorReason_TYPE_MISMATCH:          ErrTypeMismatch,
	setpointv1.ErrorReason_INVALID_CONSTRAINTS:    ErrInvalidConstraints,
	setpointv1.ErrorReason_INVALID_EXPRESSION:     ErrInvalidExpression,
	setpointv1.ErrorReason_ACCESS_DENIED:          ErrAccessDenied,
	setpointv1.ErrorReason_CREDENTIALS_MISSING:    ErrCredentialsMissing,
	setpointv1.ErrorReason_CREDENTIALS_INVALID:    ErrCredentialsInvalid,
	setpointv1.ErrorReason_LIMIT_EXCEEDED:         ErrLimitExceeded,
	setpointv1.ErrorReason_OVERLOADED:             ErrOverloaded,
	setpointv1.ErrorReason_DATABASE_UNAVAILABLE:   ErrDatabaseUnavailable,
	setpointv1.ErrorReason_INTERNAL_ERROR:         ErrInternal,
}

func TestEveryReasonHasItsError(t *testing.T) {
	t.Parallel()
	for number, name := range setpointv1.ErrorReason_name {
		if number == 0 {
			continue
		}
		want := sentinels[setpointv1.ErrorReason(number)]
		if want == nil {
			t.Errorf("%s has no Err… variable", name)
			continue
		}
		err := fmt.Errorf("outer: %w", newError(refusal(t, codes.Aborted, name, "m", nil), nil))
		for _, other := range sentinels {
			if got := errors.Is(err, other); got != (other == want) {
				t.Errorf("an error of reason %s is %v: %t", name, other, got)
			}
		}
		if item := FromItem(&setpointv1.ItemError{Reason: setpointv1.ErrorReason(number)}); !errors.Is(item, want) {
			t.Errorf("an item's error of reason %s is %v", name, item)
		}
	}
}

func TestErrorCarriesTheDetails(t *testing.T) {
	t.Parallel()
	failed := &setpointv1.FailedItem{Index: 2, Error: &setpointv1.ItemError{Message: "other"}}
	refused := refusal(t, codes.InvalidArgument, "INVALID_REQUEST", "two things", map[string]string{"k": "v"},
		&errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{
			{Field: "name", Description: "empty"}, {Field: "constraints.min", Description: "above max"}}},
		&errdetails.RetryInfo{RetryDelay: durationpb.New(2 * time.Second)},
		&setpointv1.BatchFailure{Items: []*setpointv1.FailedItem{failed}})
	_, c := newPeer(t, []error{refused})
	err := callSet(t.Context(), c)
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("error: got %T, want *Error", err)
	}
	if e.Code != codes.InvalidArgument || e.Reason != setpointv1.ErrorReason_INVALID_REQUEST ||
		e.Message != "two things" || e.RetryAfter != 2*time.Second || e.Metadata["k"] != "v" {
		t.Errorf("error: got %+v", e)
	}
	want := []FieldViolation{{"name", "empty"}, {"constraints.min", "above max"}}
	if diff := cmp.Diff(want, e.Violations); diff != "" {
		t.Errorf("violations (-want +got):\n%s", diff)
	}
	if len(e.Failed) != 1 || !proto.Equal(e.Failed[0], failed) {
		t.Errorf("failed items: got %v", e.Failed)
	}
	if got := err.Error(); got != "INVALID_REQUEST: two things" {
		t.Errorf("text: got %q", got)
	}
	if st, ok := status.FromError(err); !ok || st.Code() != codes.InvalidArgument || len(st.Details()) != 4 {
		t.Errorf("status: got %v", st)
	}
}

func TestReasonOfANewerServer(t *testing.T) {
	t.Parallel()
	e := newError(refusal(t, codes.FailedPrecondition, "LATER_INVENTED", "m", nil), nil)
	if e.Reason != setpointv1.ErrorReason_ERROR_REASON_UNSPECIFIED || e.ReasonName != "LATER_INVENTED" {
		t.Errorf("got reason %v, name %q", e.Reason, e.ReasonName)
	}
	if errors.Is(e, Reason(setpointv1.ErrorReason_ERROR_REASON_UNSPECIFIED)) {
		t.Error("an unknown reason equals no reason")
	}
	if e.Error() != "LATER_INVENTED: m" {
		t.Errorf("text: got %q", e)
	}
}

func TestErrorsOfOthers(t *testing.T) {
	t.Parallel()
	info, err := status.New(codes.Unavailable, "upstream").WithDetails(
		&errdetails.ErrorInfo{Domain: "proxy.example", Reason: "VERSION_MISMATCH"})
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		err  error
		want string
		is   error
	}{
		{"a proxy's reason is not ours", info.Err(), "UNREACHABLE: upstream", ErrUnreachable},
		{"cancelled", context.Canceled, "CANCELLED: context canceled", context.Canceled},
		{"deadline", status.Error(codes.DeadlineExceeded, "late"), "DEADLINE_EXCEEDED: late", context.DeadlineExceeded},
		{"no status at all", io.ErrUnexpectedEOF, "UNKNOWN: unexpected EOF", io.ErrUnexpectedEOF},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			e := newError(tt.err, nil)
			if e.Error() != tt.want || !errors.Is(e, tt.is) || errors.Is(e, ErrVersionMismatch) {
				t.Errorf("got %q", e)
			}
		})
	}
}

func TestCurrentVersion(t *testing.T) {
	t.Parallel()
	mismatch := newError(refusal(t, codes.Aborted, "VERSION_MISMATCH", "m",
		map[string]string{"current_version": "42", "expected_version": "0"}), nil)
	if got, ok := CurrentVersion(fmt.Errorf("outer: %w", mismatch)); got != 42 || !ok {
		t.Errorf("got %d, %t", got, ok)
	}
	for _, err := range []error{nil, io.EOF, newError(refusal(t, codes.NotFound, "VARIABLE_NOT_FOUND", "m", nil), nil)} {
		if _, ok := CurrentVersion(err); ok {
			t.Errorf("%v has a current version", err)
		}
	}
}

func TestNamesInErrors(t *testing.T) {
	t.Parallel()
	failed := func(reason string, meta map[string]string) error {
		return fmt.Errorf("outer: %w", newError(refusal(t, codes.FailedPrecondition, reason, "m", meta), nil))
	}
	tests := []struct {
		name             string
		err              error
		path, dependents []string
	}{
		{"a cycle", failed("WOULD_CREATE_CYCLE", map[string]string{"path": `["a","b \"é\"","a"]`}), []string{"a", `b "é"`, "a"}, nil},
		{"of one", failed("WOULD_CREATE_CYCLE", map[string]string{"path": `["a","a"]`}), []string{"a", "a"}, nil},
		{"dependents", failed("HAS_DEPENDENTS", map[string]string{"dependents": `["b","c"]`}), nil, []string{"b", "c"}},
		{"a cycle without its path", failed("WOULD_CREATE_CYCLE", nil), nil, nil},
		{"no JSON", failed("WOULD_CREATE_CYCLE", map[string]string{"path": "a, b"}), nil, nil},
		{"an empty array", failed("HAS_DEPENDENTS", map[string]string{"dependents": "[]"}), nil, nil},
		{"an item", FromItem(&setpointv1.ItemError{Reason: setpointv1.ErrorReason_WOULD_CREATE_CYCLE,
			Metadata: map[string]string{"path": `["a","a"]`}}), []string{"a", "a"}, nil},
		{"another error", io.EOF, nil, nil},
		{"none", nil, nil, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			path, isPath := CyclePath(tt.err)
			if diff := cmp.Diff(tt.path, path); diff != "" || isPath != (tt.path != nil) {
				t.Errorf("path, %t (-want +got):\n%s", isPath, diff)
			}
			dependents, are := Dependents(tt.err)
			if diff := cmp.Diff(tt.dependents, dependents); diff != "" || are != (tt.dependents != nil) {
				t.Errorf("dependents, %t (-want +got):\n%s", are, diff)
			}
		})
	}
}

func TestHolder(t *testing.T) {
	t.Parallel()
	refused := func(reason string, meta map[string]string) error {
		return fmt.Errorf("outer: %w", newError(refusal(t, codes.FailedPrecondition, reason, "m", meta), nil))
	}
	started := time.Date(2026, 3, 1, 12, 0, 0, 250_000_000, time.UTC)
	full := map[string]string{
		"variable": "lr", "optimization_id": "opt_1", "optimizer_id": "tuner",
		"started_at": "2026-03-01T12:00:00.25Z", "expires_at": "2026-03-01T14:01:00+02:00",
	}
	holder := LeaseHolder{Variable: "lr", OptimizationID: "opt_1", OptimizerID: "tuner",
		StartedAt: started, ExpiresAt: time.Date(2026, 3, 1, 12, 1, 0, 0, time.UTC)}
	tests := []struct {
		name string
		err  error
		want LeaseHolder
		ok   bool
	}{
		{"a holder", refused("ALREADY_OPTIMIZING", full), holder, true},
		{"an item of a batch", FromItem(&setpointv1.ItemError{
			Reason: setpointv1.ErrorReason_ALREADY_OPTIMIZING, Metadata: full}), holder, true},
		{"one that waits", refused("ALREADY_OPTIMIZING", map[string]string{"optimization_id": "opt_1"}),
			LeaseHolder{OptimizationID: "opt_1"}, true},
		{"of no time", refused("ALREADY_OPTIMIZING", map[string]string{"expires_at": "soon"}),
			LeaseHolder{}, true},
		{"a lost lease", refused("LEASE_LOST", full), LeaseHolder{}, false},
		{"another error", io.EOF, LeaseHolder{}, false},
		{"none", nil, LeaseHolder{}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, ok := Holder(tt.err)
			if diff := cmp.Diff(tt.want, got); diff != "" || ok != tt.ok {
				t.Errorf("holder, %t (-want +got):\n%s", ok, diff)
			}
		})
	}
}

func TestDenied(t *testing.T) {
	t.Parallel()
	meta := map[string]string{"permission": "write", "variable": "lr", "rule": "rule_1"}
	tests := []struct {
		name string
		err  error
		want Denial
		ok   bool
	}{
		{"by a rule", newError(refusal(t, codes.PermissionDenied, "ACCESS_DENIED", "m", meta), nil),
			Denial{Permission: "write", Variable: "lr", RuleID: "rule_1"}, true},
		{"an item of a batch", FromItem(&setpointv1.ItemError{Reason: setpointv1.ErrorReason_ACCESS_DENIED, Metadata: meta}),
			Denial{Permission: "write", Variable: "lr", RuleID: "rule_1"}, true},
		{"of no variable", newError(refusal(t, codes.PermissionDenied, "ACCESS_DENIED", "m",
			map[string]string{"permission": "owner"}), nil), Denial{Permission: "owner"}, true},
		{"a proxy's", newError(status.Error(codes.PermissionDenied, "no"), nil), Denial{}, false},
		{"another error", io.EOF, Denial{}, false},
		{"none", nil, Denial{}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if got, ok := Denied(fmt.Errorf("outer: %w", tt.err)); got != tt.want || ok != tt.ok {
				t.Errorf("got %+v, %t", got, ok)
			}
		})
	}
}

func TestEndedAs(t *testing.T) {
	t.Parallel()
	ended := newError(refusal(t, codes.FailedPrecondition, "OPTIMIZATION_ENDED", "m",
		map[string]string{"state": "PREEMPTED"}), nil)
	state, ok := EndedAs(fmt.Errorf("outer: %w", ended))
	if state != setpointv1.OptimizationState_OPTIMIZATION_STATE_PREEMPTED || !ok {
		t.Errorf("got %s, %t", state, ok)
	}
	for _, err := range []error{nil, io.EOF, newError(refusal(t, codes.FailedPrecondition, "LEASE_LOST", "m", nil), nil)} {
		if _, ok := EndedAs(err); ok {
			t.Errorf("%v tells how an optimization ended", err)
		}
	}
}

func TestNoItemError(t *testing.T) {
	t.Parallel()
	if err := FromItem(nil); err != nil {
		t.Errorf("got %v", err)
	}
}

func TestStreamErrorsAreTyped(t *testing.T) {
	t.Parallel()
	_, c := newPeer(t, nil, WithPrincipal("user:ada"))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stream, err := healthpb.NewHealthClient(c.Conn()).Watch(ctx, &healthpb.HealthCheckRequest{})
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatalf("receive: %v", err)
	}
	cancel()
	_, err = stream.Recv()
	var e *Error
	if !errors.As(err, &e) || e.Code != codes.Canceled {
		t.Errorf("error: got %#v, want an *Error of code CANCELED", err)
	}
}
