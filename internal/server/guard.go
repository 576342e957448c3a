package server

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/authenticate"
	"github.com/setpointdb/setpoint/internal/identity"
	"github.com/setpointdb/setpoint/internal/telemetry"
	"github.com/setpointdb/setpoint/service"
)

// authorizationHeader is where callers show a bearer token.
const authorizationHeader = "authorization"

// reauthenticateEvery is the time between looks at the credentials of an open stream. With what the authenticator remembers, a stream
// ends within twice as much of when they cease to count.
const reauthenticateEvery = 2 * time.Second

// connection is what is known of where a call comes from, apart from what the call itself says.
type connection struct {
	peer netip.Addr
	// certificate is the client's, verified; nil if it has none.
	certificate *x509.Certificate
}

// origin finds the connection of a call.
type origin func(context.Context) (connection, error)

// fromTransport is the origin of calls that came over the network.
func fromTransport(ctx context.Context) (connection, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return connection{}, errors.New("a call without a connection")
	}
	c := connection{peer: addrOf(p.Addr)}
	if info, ok := p.AuthInfo.(credentials.TLSInfo); ok {
		c.certificate = verified(info.State.VerifiedChains)
	}
	return c, nil
}

func verified(chains [][]*x509.Certificate) *x509.Certificate {
	if len(chains) == 0 || len(chains[0]) == 0 {
		return nil
	}
	return chains[0][0]
}

func addrOf(addr net.Addr) netip.Addr {
	if tcp, ok := addr.(*net.TCPAddr); ok {
		return tcp.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}

// fromRequest is the connection that an HTTP request came over.
func fromRequest(req *http.Request) connection {
	var c connection
	if addr, err := netip.ParseAddrPort(req.RemoteAddr); err == nil {
		c.peer = addr.Addr().Unmap()
	}
	if req.TLS != nil {
		c.certificate = verified(req.TLS.VerifiedChains)
	}
	return c
}

// ticketHeader is the metadata by which REST's own gRPC server finds the connection of the HTTP request that a call was made of. It
// holds a random word that counts while the request lasts; nobody can reach that server but through REST, which passes on no such
// header, and no other server looks at it.
const ticketHeader = "setpoint-ticket"

// tickets are the connections of the HTTP requests that are being served.
type tickets struct{ open sync.Map }

// give returns the word for a connection, and takes it back when it is told to.
func (t *tickets) give(c connection) (string, func()) {
	word := uuid.NewString()
	t.open.Store(word, c)
	return word, func() { t.open.Delete(word) }
}

// origin is that of the calls which REST makes of requests.
func (t *tickets) origin(ctx context.Context) (connection, error) {
	words := metadata.ValueFromIncomingContext(ctx, ticketHeader)
	if len(words) != 1 {
		return connection{}, fmt.Errorf("a call inside the process has %d tickets", len(words))
	}
	c, ok := t.open.Load(words[0])
	if !ok {
		return connection{}, status.Error(codes.Canceled, "the caller has gone")
	}
	return c.(connection), nil //nolint:forcetypeassert // give stores nothing else.
}

// guard lets calls pass whose callers say who they are.
type guard struct {
	authenticator *authenticate.Authenticator
	events        *telemetry.Events
	// logged bounds the log's lines about failures; unlogged are those that it kept out.
	logged   *rate.Limiter
	unlogged atomic.Int64
	// every is reauthenticateEvery, but in tests.
	every time.Duration
}

func newGuard(authenticator *authenticate.Authenticator, events *telemetry.Events) *guard {
	return &guard{authenticator: authenticator, events: events, logged: rate.NewLimiter(5, 50), every: reauthenticateEvery}
}

// isOpen tells whether a method is everybody's to call: whoever balances loads has no credentials.
func isOpen(method string) bool {
	return strings.HasPrefix(method, "/"+healthv1.Health_ServiceDesc.ServiceName+"/")
}

// credentialsOf are what the caller of an RPC shows.
func credentialsOf(ctx context.Context, from origin) (authenticate.Credentials, error) {
	c, err := from(ctx)
	return authenticate.Credentials{
		Authorization: metadata.ValueFromIncomingContext(ctx, authorizationHeader),
		Named:         metadata.ValueFromIncomingContext(ctx, identity.Header),
		Certificate:   c.certificate, Peer: c.peer,
	}, err
}

// admit finds out who shows credentials, and records it if that is nobody.
func (g *guard) admit(ctx context.Context, method string, shown authenticate.Credentials) (identity.Principal, error) {
	principal, err := g.authenticator.Authenticate(ctx, shown)
	if err == nil {
		if caller, ok := ctx.Value(callerKey{}).(*identity.Principal); ok {
			*caller = principal
		}
		return principal, nil
	}
	refusal, ok := errors.AsType[*authenticate.Error](err)
	if !ok {
		return principal, err
	}
	refused := refusalOf(refusal)
	if refusal.Kind == authenticate.Misnamed {
		return principal, refused
	}
	g.record(ctx, method, shown, refused)
	return principal, refused
}

// record records a failure, in the log too if there were not many before.
func (g *guard) record(ctx context.Context, method string, shown authenticate.Credentials, refused *service.Error) {
	f := telemetry.FailedAuthentication{Peer: shown.Peer.String(), Method: method, Reason: refused.Reason.String()}
	if g.logged.Allow() {
		f.Unlogged = g.unlogged.Swap(0)
	} else {
		g.unlogged.Add(1)
		f.Quiet = true
	}
	g.events.AuthenticationFailed(ctx, f)
}

// refusalOf is how the API puts a refusal.
func refusalOf(e *authenticate.Error) *service.Error {
	switch e.Kind {
	case authenticate.Missing:
		return &service.Error{Reason: setpointv1.ErrorReason_CREDENTIALS_MISSING, Message: e.Message}
	case authenticate.Limited, authenticate.Busy, authenticate.Unavailable:
		return &service.Error{Reason: setpointv1.ErrorReason_OVERLOADED, Message: e.Message}
	case authenticate.Misnamed:
		return &service.Error{
			Reason: setpointv1.ErrorReason_INVALID_REQUEST, Message: identity.Header + ": " + e.Message,
			Fields: []service.FieldViolation{{Field: identity.Header, Description: e.Message}},
		}
	}
	return &service.Error{Reason: setpointv1.ErrorReason_CREDENTIALS_INVALID, Message: e.Message}
}

// at is the guard of the calls of an origin.
func (g *guard) at(from origin) guarded { return guarded{g, from} }

// guarded is a guard where calls come from one origin.
type guarded struct {
	*guard
	from origin
}

func (g guarded) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if isOpen(info.FullMethod) {
		return next(ctx, req)
	}
	shown, err := credentialsOf(ctx, g.from)
	if err != nil {
		return nil, err
	}
	principal, err := g.admit(ctx, info.FullMethod, shown)
	if err != nil {
		return nil, err
	}
	return next(identity.NewContext(ctx, principal), req)
}

// stream looks at the credentials again for as long as the call is open, and ends it when they cease to count.
func (g guarded) stream(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	if isOpen(info.FullMethod) {
		return next(server, stream)
	}
	shown, err := credentialsOf(stream.Context(), g.from)
	if err != nil {
		return err
	}
	principal, err := g.admit(stream.Context(), info.FullMethod, shown)
	if err != nil {
		return err
	}
	ctx, end := context.WithCancelCause(identity.NewContext(stream.Context(), principal))
	var watching sync.WaitGroup
	if g.authenticator.Changing() {
		watching.Go(func() { g.watch(ctx, info.FullMethod, shown, end) })
	}
	err = next(server, &endingStream{stream, ctx, info.IsClientStream})
	end(nil)
	watching.Wait()
	if ended, ok := errors.AsType[*service.Error](context.Cause(ctx)); ok && err != nil {
		return ended // Whatever the handler made of it.
	}
	return err
}

// watch ends a call when its credentials do not count any more. While it cannot be told, for want of the database or of the issuer, they
// do: such a call could do nothing that needs either.
func (g guarded) watch(ctx context.Context, method string, shown authenticate.Credentials, end context.CancelCauseFunc) {
	shown.Again = true
	ticker := time.NewTicker(g.every)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		_, err := g.authenticator.Authenticate(ctx, shown)
		if refusal, ok := errors.AsType[*authenticate.Error](err); ok && refusal.Kind == authenticate.Invalid {
			refused := refusalOf(refusal)
			g.record(ctx, method, shown, refused)
			end(refused)
			return
		}
	}
}

// endingStream is a stream that may end before its caller's does.
type endingStream struct {
	grpc.ServerStream
	ctx context.Context
	// receives says that the caller sends more than one message, which may never come.
	receives bool
}

// Context is over when the call is, or its credentials do not count any more; its cause is then what to end the call with.
func (s *endingStream) Context() context.Context { return s.ctx }

// SendMsg sends nothing to whom the credentials do not open the stream any more.
func (s *endingStream) SendMsg(message any) error {
	if s.ctx.Err() != nil {
		return context.Cause(s.ctx)
	}
	return s.ServerStream.SendMsg(message)
}

// RecvMsg waits for the next message of the caller's, while the credentials count.
func (s *endingStream) RecvMsg(message any) error {
	if !s.receives {
		return s.ServerStream.RecvMsg(message)
	}
	received := make(chan error, 1)
	go func() { // It ends with the stream at the latest.
		err := fmt.Errorf("%w: in a message", errPanic)
		defer func() {
			_ = recover() //nolint:errcheck // Then err is what it was.
			received <- err
		}()
		err = s.ServerStream.RecvMsg(message)
	}()
	select {
	case <-s.ctx.Done():
		return context.Cause(s.ctx)
	case err := <-received:
		return err
	}
}
