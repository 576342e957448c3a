package server

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/authenticate"
	"github.com/setpointdb/setpoint/internal/identity"
	"github.com/setpointdb/setpoint/internal/telemetry"
	"github.com/setpointdb/setpoint/service"
)

// services make the API's paths known to the gateway.
var services = []func(context.Context, *runtime.ServeMux, *grpc.ClientConn) error{
	setpointv1.RegisterSessionServiceHandler,
	setpointv1.RegisterVariableServiceHandler,
	setpointv1.RegisterHistoryServiceHandler,
	setpointv1.RegisterDependencyServiceHandler,
	setpointv1.RegisterOptimizationServiceHandler,
	setpointv1.RegisterAccessServiceHandler,
	setpointv1.RegisterTokenServiceHandler,
}

// rest serves the API as JSON over HTTP. It makes each request a call over a connection inside the process, to a gRPC
// server for it alone: so requests pass the interceptors that other calls pass, whatever the other server asks of its
// transport.
type rest struct {
	grpc     *grpc.Server
	listener *bufconn.Listener
	conn     *grpc.ClientConn
	gateway  *runtime.ServeMux
	routes   routes
	origins  *http.CrossOriginProtection // nil lets every site's pages write.
	events   *telemetry.Events
	guard    *guard
	tickets  *tickets
}

// newREST makes the gRPC server too; register gives it the services.
func (s *Server) newREST(ctx context.Context, register func(grpc.ServiceRegistrar)) (*rest, error) {
	r := &rest{guard: s.guard, tickets: &tickets{}, events: s.events}
	r.grpc = s.newGRPC(r.tickets.origin)
	register(r.grpc)
	if err := r.open(ctx, s.config.CORSOrigins); err != nil {
		return nil, err
	}
	return r, nil
}

// open makes what leads from requests to the gRPC server. origins are the sites whose pages may call.
func (r *rest) open(ctx context.Context, origins []string) error {
	r.listener, r.routes = bufconn.Listen(256<<10), newRoutes()
	var err error
	if r.origins, err = newProtection(origins); err != nil {
		return err
	}
	r.conn, err = grpc.NewClient("passthrough:///rest",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return r.listener.DialContext(ctx) }),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(MaxMessageBytes), grpc.MaxCallSendMsgSize(MaxMessageBytes)),
	)
	if err != nil {
		return fmt.Errorf("connect to the server inside the process: %w", err)
	}
	none := func(string) (string, bool) { return "", false }
	r.gateway = runtime.NewServeMux(
		runtime.WithMarshalerOption(runtime.MIMEWildcard, form),
		// A name's escaped `/` and `:` are the name's, not the path's.
		runtime.WithUnescapingMode(runtime.UnescapingModeAllExceptReserved),
		// A POST is nothing else, whatever its headers say.
		runtime.WithDisablePathLengthFallback(),
		runtime.WithDisableHTTPMethodOverride(),
		// The gateway itself forwards `authorization`.
		runtime.WithIncomingHeaderMatcher(func(name string) (string, bool) {
			return identity.Header, strings.EqualFold(name, identity.Header)
		}),
		runtime.WithMetadata(func(ctx context.Context, _ *http.Request) metadata.MD {
			ticket, _ := ctx.Value(ticketKey{}).(string)
			return metadata.Pairs(requestHeader, telemetry.Request(ctx), ticketHeader, ticket)
		}),
		runtime.WithOutgoingHeaderMatcher(none),
		runtime.WithOutgoingTrailerMatcher(none),
		runtime.WithMiddlewares(r.admit),
		runtime.WithErrorHandler(func(ctx context.Context, _ *runtime.ServeMux, _ runtime.Marshaler, w http.ResponseWriter,
			_ *http.Request, err error,
		) {
			r.fail(ctx, w, err)
		}),
		runtime.WithStreamErrorHandler(r.failStream),
		runtime.WithRoutingErrorHandler(r.noRoute),
	)
	for _, register := range services {
		if err := register(ctx, r.gateway, r.conn); err != nil {
			return fmt.Errorf("register the paths: %w", err)
		}
	}
	return nil
}

// serve serves the calls that requests become, until the gRPC server stops.
func (r *rest) serve() error { return r.grpc.Serve(r.listener) }

// close gives back what newREST made.
func (r *rest) close() {
	r.grpc.Stop()
	_ = r.listener.Close() // Closed already if it was served.
	_ = r.conn.Close()     // Nothing is sent any more.
}

// ServeHTTP answers with JSON, whatever the request.
func (r *rest) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	id := req.Header.Get(requestHeader)
	if !isRequestID(id) {
		id = uuid.NewString()
	}
	ctx := telemetry.WithRequest(req.Context(), id)
	w.Header().Set(requestHeader, id)
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if r.origins != nil {
		if err := r.origins.Check(req); err != nil {
			r.fail(ctx, w, &runtime.HTTPStatusError{HTTPStatus: http.StatusForbidden, Err: service.InvalidRequest("origin",
				"this server takes no writes from pages of other sites, but from those of --cors-origin")})
			return
		}
	}
	for _, name := range []string{identity.Header, authorizationHeader} {
		for _, text := range req.Header.Values(name) {
			// The gateway would leave such a header out, and so take the caller for somebody else.
			if strings.ContainsFunc(text, func(c rune) bool { return c < ' ' || c > '~' }) {
				r.fail(ctx, w, service.InvalidRequest(name, "must be printable ASCII"))
				return
			}
		}
	}
	ticket, end := r.tickets.give(fromRequest(req))
	defer end()
	r.gateway.ServeHTTP(w, req.WithContext(context.WithValue(ctx, ticketKey{}, ticket)))
}

// ticketKey finds the ticket of a request.
type ticketKey struct{}

// admit lets a request through to its RPC if it gives that RPC parameters in the form that it has.
func (r *rest) admit(next runtime.HandlerFunc) runtime.HandlerFunc {
	return func(w http.ResponseWriter, req *http.Request, params map[string]string) {
		pattern, _ := runtime.HTTPPattern(req.Context())
		route, ok := r.routes[req.Method+" "+pattern.String()]
		if !ok {
			r.fail(req.Context(), w, fmt.Errorf("no description of %s %s", req.Method, pattern))
			return
		}
		if err := r.authenticate(req, route); err != nil {
			r.fail(req.Context(), w, err)
			return
		}
		if err := route.admit(w, req, params); err != nil {
			r.fail(req.Context(), w, err)
			return
		}
		if route.stream {
			r.stream(next, w, req, params)
			return
		}
		next(w, req, params)
	}
}

// authenticate refuses a caller who does not say who it is before anything of the request is read. The call that is made of it is
// authenticated again, by what is remembered.
func (r *rest) authenticate(req *http.Request, of route) error {
	start := time.Now()
	from := fromRequest(req)
	method := "/" + string(of.rpc.Parent()) + "/" + string(of.rpc.Name())
	_, err := r.guard.admit(req.Context(), method, authenticate.Credentials{
		Authorization: req.Header.Values(authorizationHeader), Named: req.Header.Values(identity.Header),
		Peer: from.peer, Certificate: from.certificate,
	})
	if err != nil {
		s, _ := service.Status(err, telemetry.Request(req.Context()))
		r.events.Call(req.Context(), method, s.Code().String(), reasonOf(s), "", time.Since(start))
	}
	return err
}

// noRoute answers requests that are no RPC's.
func (r *rest) noRoute(ctx context.Context, _ *runtime.ServeMux, _ runtime.Marshaler, w http.ResponseWriter,
	req *http.Request, code int,
) {
	err := service.InvalidRequest("path", "nothing is there; /openapi.json has every path")
	if code == http.StatusMethodNotAllowed {
		allowed := strings.Join(r.routes.allowed(req.URL.EscapedPath()), ", ")
		w.Header().Set("Allow", allowed)
		err = service.InvalidRequest("method", "this path takes "+allowed)
	}
	r.fail(ctx, w, &runtime.HTTPStatusError{HTTPStatus: code, Err: err})
}

// fail answers an error: the google.rpc.Status that a gRPC client would get, as JSON.
func (r *rest) fail(ctx context.Context, w http.ResponseWriter, err error) {
	s, code := r.status(ctx, err)
	r.answer(ctx, w, s, code)
}

func (r *rest) answer(ctx context.Context, w http.ResponseWriter, s *status.Status, code int) {
	for _, detail := range s.Details() {
		if retry, ok := detail.(*errdetails.RetryInfo); ok {
			seconds := math.Ceil(retry.GetRetryDelay().AsDuration().Seconds())
			w.Header().Set("Retry-After", strconv.FormatFloat(seconds, 'f', 0, 64))
		}
	}
	if code == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", "Bearer")
	}
	body, err := form.Marshal(s.Proto())
	if err != nil {
		r.events.InternalError(ctx, methodOf(ctx), err)
		code = http.StatusInternalServerError
	}
	// The gateway may have announced what only answers have.
	w.Header().Del("Trailer")
	w.Header().Del("Transfer-Encoding")
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, _ = w.Write(body) // A caller that has gone needs no answer.
}

// status turns any error into the status that the caller sees, and its HTTP code.
func (r *rest) status(ctx context.Context, err error) (*status.Status, int) {
	err = withReason(err)
	code := 0
	if special, ok := errors.AsType[*runtime.HTTPStatusError](err); ok {
		code, err = special.HTTPStatus, special.Err
	}
	s, defect := service.Status(err, telemetry.Request(ctx))
	if defect {
		r.events.InternalError(ctx, methodOf(ctx), err)
	}
	if code == 0 {
		code = runtime.HTTPStatusFromCode(s.Code())
	}
	return s, code
}

func methodOf(ctx context.Context) string {
	method, _ := runtime.RPCMethod(ctx)
	return method
}

// longText is what the gateway quotes of a request, where that is longer than a parameter of the query that it could read: it may be a
// secret in the wrong place.
var longText = regexp.MustCompile(`"[^"\s]{40,}"`)

// withReason gives errors their reason that come from the gateway, or from gRPC below the interceptors, and have none.
// Cancellation, deadline and a stopping server keep gRPC's codes.
func withReason(err error) error {
	s, ok := status.FromError(err)
	if !ok || reasonOf(s) != "" {
		return err
	}
	switch s.Code() {
	case codes.InvalidArgument: // The gateway could not read the request.
		message := longText.ReplaceAllString(s.Message(), `"…"`)
		return &service.Error{
			Reason: setpointv1.ErrorReason_INVALID_REQUEST, Message: message,
			Fields: []service.FieldViolation{{Field: "request", Description: message}},
		}
	case codes.ResourceExhausted: // A message may be larger than its JSON was: `[0,0]` has 8 bytes as an embedding.
		return tooLarge()
	case codes.Internal:
		return errors.New(s.Message())
	}
	return err
}

// tooLarge refuses a request of more than MaxMessageBytes.
func tooLarge() error {
	return &runtime.HTTPStatusError{HTTPStatus: http.StatusRequestEntityTooLarge, Err: &service.Error{
		Reason:  setpointv1.ErrorReason_LIMIT_EXCEEDED,
		Message: fmt.Sprintf("the request is larger than %d bytes", MaxMessageBytes),
		Metadata: map[string]string{
			"limit": "message_bytes", "value": strconv.Itoa(MaxMessageBytes),
		},
	}}
}
