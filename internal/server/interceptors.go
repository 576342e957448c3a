package server

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
	"time"

	"buf.build/go/protovalidate"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/google/uuid"

	"github.com/setpointdb/setpoint/internal/identity"
	"github.com/setpointdb/setpoint/internal/telemetry"
	"github.com/setpointdb/setpoint/service"
)

// requestHeader carries the id under which the server's log has a request; callers may give their own.
const requestHeader = "x-request-id"

// observe is the outermost interceptor: it names the request, turns whatever error comes out into a status, and records
// the call.
func observe(events *telemetry.Events) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		start := time.Now()
		id := requestID(ctx)
		ctx = telemetry.WithRequest(ctx, id)
		_ = grpc.SetHeader(ctx, metadata.Pairs(requestHeader, id)) // Fails only where headers were sent, which none are.
		caller := &identity.Principal{}
		answer, err := next(context.WithValue(ctx, callerKey{}, caller), req)
		if err == nil {
			events.Call(ctx, info.FullMethod, "OK", "", caller.Name, time.Since(start))
			return answer, nil
		}
		s, defect := service.Status(err, id)
		if defect {
			events.InternalError(ctx, info.FullMethod, err)
		}
		events.Call(ctx, info.FullMethod, s.Code().String(), reasonOf(s), caller.Name, time.Since(start))
		return nil, s.Err()
	}
}

// callerKey finds where identify notes the caller for observe, which runs before it.
type callerKey struct{}

func requestID(ctx context.Context) string {
	if given := metadata.ValueFromIncomingContext(ctx, requestHeader); len(given) > 0 && isRequestID(given[0]) {
		return given[0]
	}
	return uuid.NewString()
}

func isRequestID(id string) bool {
	return id != "" && len(id) <= 128 && !strings.ContainsFunc(id, func(r rune) bool { return r <= ' ' || r > '~' })
}

func reasonOf(s *status.Status) string {
	for _, detail := range s.Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok {
			return info.GetReason()
		}
	}
	return ""
}

// recoverPanics turns a panic of a handler into an error without a reason.
func recoverPanics(events *telemetry.Events) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		return protect(ctx, events, info.FullMethod, func() (any, error) { return next(ctx, req) })
	}
}

func protect(ctx context.Context, events *telemetry.Events, method string, call func() (any, error)) (any, error) {
	var answer any
	var err error
	func() {
		defer func() {
			if p := recover(); p != nil {
				events.Panicked(ctx, method, p, debug.Stack())
				err = fmt.Errorf("%w: %v", errPanic, p)
			}
		}()
		answer, err = call()
	}()
	return answer, err
}

var errPanic = errors.New("panic")

// identify says who is calling a server that does not authenticate: whoever the request's metadata names, else
// identity.Anonymous.
func identify() grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		principal := identity.Anonymous
		if named := metadata.ValueFromIncomingContext(ctx, identity.Header); len(named) > 0 {
			var err error
			if principal, err = identity.Parse(named[0]); err != nil {
				return nil, service.InvalidRequest(identity.Header, err.Error())
			}
		}
		if caller, ok := ctx.Value(callerKey{}).(*identity.Principal); ok {
			*caller = principal
		}
		return next(identity.NewContext(ctx, principal), req)
	}
}

// validate refuses requests that break the rules of their own messages, and U+0000, which PostgreSQL cannot store.
func validate(validator protovalidate.Validator) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		message, ok := req.(proto.Message)
		if !ok {
			return next(ctx, req)
		}
		if err := validator.Validate(message); err != nil {
			return nil, err
		}
		if field := findNUL(message.ProtoReflect()); field != "" {
			return nil, service.InvalidRequest(field, "must not contain U+0000")
		}
		return next(ctx, req)
	}
}
