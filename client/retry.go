package client

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"

	"github.com/google/uuid"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// RetryPolicy tells how often and how soon a call is repeated. Before attempt n + 1 the client waits a random time
// between 0 and InitialBackoff × 2^(n-1), at most MaxBackoff; where the server said when to come again, that much longer.
// A wait that would outlast the context's deadline is not begun: the call returns its last error at once.
type RetryPolicy struct {
	// MaxAttempts counts the first attempt too; 1 never repeats. The default is 5.
	MaxAttempts int
	// InitialBackoff is the longest wait after the first attempt. The default is 100 ms.
	InitialBackoff time.Duration
	// MaxBackoff is the longest wait of all. The default is 5 s.
	MaxBackoff time.Duration
}

// DefaultRetryPolicy is the policy of a client that was given none.
func DefaultRetryPolicy() RetryPolicy {
	return RetryPolicy{MaxAttempts: 5, InitialBackoff: 100 * time.Millisecond, MaxBackoff: 5 * time.Second}
}

func (p RetryPolicy) withDefaults() RetryPolicy {
	d := DefaultRetryPolicy()
	if p.MaxAttempts <= 0 {
		p.MaxAttempts = d.MaxAttempts
	}
	if p.InitialBackoff <= 0 {
		p.InitialBackoff = d.InitialBackoff
	}
	if p.MaxBackoff <= 0 {
		p.MaxBackoff = d.MaxBackoff
	}
	return p
}

// backoff is the longest wait after attempt n, counted from 1.
func (p RetryPolicy) backoff(attempt int) time.Duration {
	wait := p.InitialBackoff
	for range attempt - 1 {
		if wait >= p.MaxBackoff/2 {
			return p.MaxBackoff
		}
		wait *= 2
	}
	return min(wait, p.MaxBackoff)
}

// wait is how long to wait after attempt n failed with e. The jitter comes on top of what the server asks for, so that
// everybody whom an overloaded server sent away does not return at the same instant.
func (p RetryPolicy) wait(attempt int, e *Error) time.Duration {
	wait := e.RetryAfter
	if longest := p.backoff(attempt); longest > 0 {
		wait += rand.N(longest)
	}
	return wait
}

// interceptor is what all calls of a client go through.
type interceptor struct {
	retry     RetryPolicy
	timeout   time.Duration
	principal string
}

func (i *interceptor) unary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn,
	invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	ctx, cancel := withTimeout(i.withPrincipal(ctx), i.timeout)
	defer cancel()
	attempts := i.retry.MaxAttempts
	if slices.ContainsFunc(opts, isOnce) {
		attempts = 1
	}
	repeatable := false
	if attempts > 1 {
		req, repeatable = prepare(method, req)
	}
	for attempt := 1; ; attempt++ {
		err := invoke(ctx, method, req, reply, cc, opts...)
		if err == nil {
			return nil
		}
		e := newError(err, cc)
		if attempt >= attempts || ctx.Err() != nil || !e.retryable(repeatable) {
			return e
		}
		if err := pause(ctx, i.retry.wait(attempt, e), e); err != nil {
			return err
		}
	}
}

// once is the option of a call whose caller repeats it by itself.
type once struct{ grpc.EmptyCallOption }

func isOnce(opt grpc.CallOption) bool {
	_, ok := opt.(once)
	return ok
}

func (i *interceptor) withPrincipal(ctx context.Context) context.Context {
	if i.principal == "" {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, PrincipalMetadata, i.principal)
}

// pause waits before the next attempt. Where there is not the time for that, what the last attempt met is of more use to
// the caller than that a deadline passed.
func pause(ctx context.Context, wait time.Duration, last *Error) error {
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) < wait {
		return last
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		st := status.FromContextError(ctx.Err())
		return newError(status.Errorf(st.Code(), "%s while waiting to try again after %s", st.Message(), last), nil)
	}
}

// prepare returns the request to send, and whether sending it twice does no more than sending it once. Writes become so
// by a request_id; the caller's message is left as it is, for the caller may send it again and mean a second write.
func prepare(method string, req any) (any, bool) {
	message, ok := req.(proto.Message)
	if !ok || isIdempotent(method) {
		return req, ok
	}
	m := message.ProtoReflect()
	if dry := m.Descriptor().Fields().ByName("dry_run"); dry != nil && m.Get(dry).Bool() {
		return req, true
	}
	id := m.Descriptor().Fields().ByName("request_id")
	if id == nil || id.Kind() != protoreflect.StringKind || id.IsList() {
		return req, false
	}
	if m.Get(id).String() != "" {
		return req, true
	}
	sent := shallowCopy(m)
	sent.Set(id, protoreflect.ValueOfString(newID()))
	if create, ok := sent.Interface().(*setpointv1.CreateSessionRequest); ok && create.GetSessionId() == "" {
		// A request_id belongs to a session: without a name, the server could not find the first attempt's.
		create.SessionId = newID()
	}
	return sent.Interface(), true
}

// shallowCopy is a message with the same field values; what is beneath is shared, up to 16 MiB of value included.
func shallowCopy(m protoreflect.Message) protoreflect.Message {
	c := m.New()
	m.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		c.Set(field, value)
		return true
	})
	c.SetUnknown(m.GetUnknown())
	return c
}

// isIdempotent tells whether the API declares that repeating a call changes nothing more.
func isIdempotent(method string) bool {
	name := strings.ReplaceAll(strings.TrimPrefix(method, "/"), "/", ".")
	descriptor, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(name))
	if err != nil {
		return false
	}
	options, ok := descriptor.Options().(*descriptorpb.MethodOptions)
	return ok && options.GetIdempotencyLevel() != descriptorpb.MethodOptions_IDEMPOTENCY_UNKNOWN
}

// newID is a UUIDv7: unique without asking anyone, and in order of time.
func newID() string {
	return uuid.Must(uuid.NewV7()).String()
}

func (i *interceptor) stream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string,
	open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	s, err := open(i.withPrincipal(ctx), desc, cc, method, opts...)
	if err != nil {
		return nil, newError(err, cc)
	}
	return &stream{ClientStream: s, cc: cc}, nil
}

// stream gives a stream's errors their type.
type stream struct {
	grpc.ClientStream
	cc *grpc.ClientConn
}

func (s *stream) RecvMsg(m any) error {
	return s.convert(s.ClientStream.RecvMsg(m))
}

func (s *stream) SendMsg(m any) error {
	return s.convert(s.ClientStream.SendMsg(m))
}

func (s *stream) Header() (metadata.MD, error) {
	header, err := s.ClientStream.Header()
	return header, s.convert(err)
}

func (s *stream) convert(err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return err
	}
	return newError(err, s.cc)
}

// retryable tells whether the call is worth repeating, and safe to.
func (e *Error) retryable(repeatable bool) bool {
	switch e.Reason {
	case setpointv1.ErrorReason_CONFLICT_RETRY, setpointv1.ErrorReason_OVERLOADED:
		return true // the server says that nothing was written
	}
	return repeatable && e.Code == codes.Unavailable
}
