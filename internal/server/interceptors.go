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

// interceptor goes around calls of either kind: those that answer with a message, and those that answer with a stream.
type interceptor func(ctx context.Context, method string, next func(context.Context) error) error

// both are interceptors of calls of either kind.
type both interface {
	unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error)
	stream(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error
}

// interceptors makes every call of a server pass the same ones, the first of them outermost.
func (s *Server) interceptors(from origin) []grpc.ServerOption {
	all := []both{observe(s.events), recoverPanics(s.events), s.guard.at(from)}
	if s.judge != nil {
		all = append(all, judged{s.judge})
	}
	var unary []grpc.UnaryServerInterceptor
	var streams []grpc.StreamServerInterceptor
	for _, i := range append(all, rules{s.validator}) {
		unary, streams = append(unary, i.unary), append(streams, i.stream)
	}
	return []grpc.ServerOption{grpc.ChainUnaryInterceptor(unary...), grpc.ChainStreamInterceptor(streams...)}
}

func (i interceptor) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	var answer any
	err := i(ctx, info.FullMethod, func(ctx context.Context) error {
		var err error
		answer, err = next(ctx, req)
		return err
	})
	if err != nil {
		return nil, err
	}
	return answer, nil
}

func (i interceptor) stream(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	return i(stream.Context(), info.FullMethod, func(ctx context.Context) error {
		return next(server, &streamInContext{stream, ctx})
	})
}

// streamInContext is a stream whose handler sees what the interceptors have put into the context.
type streamInContext struct {
	grpc.ServerStream
	ctx context.Context
}

// Context is the call's.
func (s *streamInContext) Context() context.Context { return s.ctx }

// observe is the outermost interceptor: it names the request, turns whatever error comes out into a status, and records
// the call when it has ended.
func observe(events *telemetry.Events) interceptor {
	return func(ctx context.Context, method string, next func(context.Context) error) error {
		start := time.Now()
		id := requestID(ctx)
		ctx = telemetry.WithRequest(ctx, id)
		_ = grpc.SetHeader(ctx, metadata.Pairs(requestHeader, id)) // Fails only where headers were sent, which none are.
		caller := &identity.Principal{}
		err := next(context.WithValue(ctx, callerKey{}, caller))
		if err == nil {
			events.Call(ctx, method, "OK", "", caller.Name, time.Since(start))
			return nil
		}
		s, defect := service.Status(err, id)
		if defect {
			events.InternalError(ctx, method, err)
		}
		events.Call(ctx, method, s.Code().String(), reasonOf(s), caller.Name, time.Since(start))
		return s.Err()
	}
}

// callerKey finds where the guard notes the caller for observe, which runs before it.
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
func recoverPanics(events *telemetry.Events) interceptor {
	return func(ctx context.Context, method string, next func(context.Context) error) error {
		var err error
		func() {
			defer func() {
				if p := recover(); p != nil {
					events.Panicked(ctx, method, p, debug.Stack())
					err = fmt.Errorf("%w: %v", errPanic, p)
				}
			}()
			err = next(ctx)
		}()
		return err
	}
}

var errPanic = errors.New("panic")

// rules refuse requests that break the rules of their own messages, and U+0000, which PostgreSQL cannot store.
type rules struct{ validator protovalidate.Validator }

func (r rules) check(req any) error {
	message, ok := req.(proto.Message)
	if !ok {
		return nil
	}
	if err := r.validator.Validate(message); err != nil {
		return err
	}
	if field := findNUL(message.ProtoReflect()); field != "" {
		return service.InvalidRequest(field, "must not contain U+0000")
	}
	return nil
}

func (r rules) unary(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if err := r.check(req); err != nil {
		return nil, err
	}
	return next(ctx, req)
}

func (r rules) stream(server any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	return next(server, &checkedStream{stream, r})
}

// checkedStream is a stream whose handler receives what keeps the rules. The request of a streaming call is the first message
// that its handler receives; a bad one ends the call before anything was done.
type checkedStream struct {
	grpc.ServerStream
	rules rules
}

// RecvMsg receives the next message of the client's.
func (s *checkedStream) RecvMsg(message any) error {
	if err := s.ServerStream.RecvMsg(message); err != nil {
		return err
	}
	return s.rules.check(message)
}
