package client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// MaxMessageBytes is the greatest size of a request or a response, in bytes.
const MaxMessageBytes = 64 << 20

// DefaultTimeout bounds a unary call, retries included, whose context has no deadline.
const DefaultTimeout = 30 * time.Second

// PrincipalMetadata is the request metadata in which a caller names its principal to a server without authentication.
const PrincipalMetadata = "setpoint-principal"

// ErrInsecureToken is what [Dial] returns for a token that would travel in the clear beyond this machine: whoever is on the
// way could read it, and be its bearer. [WithTLS] protects it; [WithInsecureToken] accepts that.
var ErrInsecureToken = errors.New("a token is sent without TLS only to a loopback address")

// Client calls one Setpoint server (or several behind one address). Its fields are the generated clients of the API's
// services; their calls retry, time out, authenticate and return errors as the package documentation tells. It is safe
// for concurrent use.
type Client struct {
	Sessions      setpointv1.SessionServiceClient
	Variables     setpointv1.VariableServiceClient
	History       setpointv1.HistoryServiceClient
	Dependencies  setpointv1.DependencyServiceClient
	Optimizations setpointv1.OptimizationServiceClient
	Access        setpointv1.AccessServiceClient
	Tokens        setpointv1.TokenServiceClient

	conn  *grpc.ClientConn
	retry RetryPolicy
}

// Dial makes a client of the server at addr: "host:port", or any target that gRPC understands, such as
// "unix:/run/setpoint.sock" or "dns:///setpoint.internal:7420". It connects in the background, so a server that does not
// answer shows on the first call, as [ErrUnreachable]; an error here is one of the options ([ErrInsecureToken] among
// them) or of the address. Close the client when done with it.
func Dial(addr string, opts ...Option) (*Client, error) {
	o := options{retry: DefaultRetryPolicy(), timeout: DefaultTimeout}
	for _, opt := range opts {
		opt(&o)
	}
	if addr == "" {
		return nil, errors.New("dial: the address is empty")
	}
	dialOptions, err := o.dialOptions(addr)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", addr, err)
	}
	conn, err := grpc.NewClient(addr, dialOptions...)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", addr, err)
	}
	return &Client{
		Sessions:      setpointv1.NewSessionServiceClient(conn),
		Variables:     setpointv1.NewVariableServiceClient(conn),
		History:       setpointv1.NewHistoryServiceClient(conn),
		Dependencies:  setpointv1.NewDependencyServiceClient(conn),
		Optimizations: setpointv1.NewOptimizationServiceClient(conn),
		Access:        setpointv1.NewAccessServiceClient(conn),
		Tokens:        setpointv1.NewTokenServiceClient(conn),
		conn:          conn,
		retry:         o.retry,
	}, nil
}

// Conn is the connection beneath, for services that the client has no field for: gRPC's health service, or reflection.
// Their calls get the client's credentials, timeout and errors too.
func (c *Client) Conn() grpc.ClientConnInterface {
	return c.conn
}

// Close ends the connection; calls under way fail with code CANCELED.
func (c *Client) Close() error {
	if err := c.conn.Close(); err != nil {
		return fmt.Errorf("close connection: %w", err)
	}
	return nil
}

// Option changes what [Dial] makes.
type Option func(*options)

type options struct {
	tls           tlsOptions
	token         *string
	tokenFile     *string
	insecureToken bool
	principal     string
	retry         RetryPolicy
	timeout       time.Duration
	dial          []grpc.DialOption
}

// WithToken sends a bearer token with every call, surrounding white space aside. Without TLS, [Dial] takes it only for a
// loopback address ([ErrInsecureToken]); see [WithInsecureToken]. It is in no error and no log of the client's. Of an empty
// one Dial makes an error: a secret that is missing is not to be taken for a server that wants none.
func WithToken(token string) Option {
	return func(o *options) { o.token = &token }
}

// WithTokenFile is [WithToken] with the token in a file. The file is read again when it changes, so a token can be replaced
// while the program runs, best by a new file under the old name; while it cannot be read, the last one is used. [Dial] fails
// where there is no such file, or no token in it. Let nobody but the program read it (mode 0600, or 0400): who has the
// token is its bearer. The client does not insist, for secrets that are mounted often have modes of their own.
func WithTokenFile(path string) Option {
	return func(o *options) { o.tokenFile = &path }
}

// WithInsecureToken allows a token to be sent without TLS to other machines, where anyone on the way can read and use
// it. It is for networks that encrypt by themselves.
func WithInsecureToken() Option {
	return func(o *options) { o.insecureToken = true }
}

// WithPrincipal names the caller, as "user:ada". Only a server that runs without authentication believes it.
func WithPrincipal(principal string) Option {
	return func(o *options) { o.principal = principal }
}

// WithRetry replaces the policy by which calls are repeated. Zero fields take their values from [DefaultRetryPolicy].
func WithRetry(policy RetryPolicy) Option {
	return func(o *options) { o.retry = policy.withDefaults() }
}

// WithoutRetry sends every call once, and writes without a request_id of the client's making.
func WithoutRetry() Option {
	return func(o *options) { o.retry = RetryPolicy{MaxAttempts: 1} }
}

// WithTimeout bounds each unary call whose context has no deadline, retries included; the default is [DefaultTimeout].
// Zero or less sets no bound.
func WithTimeout(timeout time.Duration) Option {
	return func(o *options) { o.timeout = timeout }
}

// WithDialOptions adds options of gRPC's own; they come after the client's, and win. Interceptors among them see each
// attempt of a call.
func WithDialOptions(opts ...grpc.DialOption) Option {
	return func(o *options) { o.dial = append(o.dial, opts...) }
}

func (o *options) dialOptions(addr string) ([]grpc.DialOption, error) {
	if !isHeaderValue(o.principal) {
		return nil, errors.New("the principal is not printable ASCII")
	}
	calls := &interceptor{retry: o.retry, timeout: o.timeout, principal: o.principal}
	dial := []grpc.DialOption{
		grpc.WithUserAgent("setpoint-go"),
		grpc.WithChainUnaryInterceptor(calls.unary),
		grpc.WithChainStreamInterceptor(calls.stream),
		grpc.WithDefaultCallOptions(
			grpc.MaxCallRecvMsgSize(MaxMessageBytes), grpc.MaxCallSendMsgSize(MaxMessageBytes)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		// gRPC waits a second before it connects again, in which the client's own first retries would all fail.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{
				BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 5 * time.Second},
			MinConnectTimeout: 10 * time.Second,
		}),
		// The retries here are the only ones: a policy found in DNS knows nothing of request ids.
		grpc.WithDisableServiceConfig(),
		grpc.WithDisableRetry(),
	}
	config, err := o.tls.config()
	if err != nil {
		return nil, err
	}
	if config != nil {
		dial = append(dial, grpc.WithTransportCredentials(credentials.NewTLS(config)))
	} else {
		dial = append(dial, grpc.WithTransportCredentials(insecure.NewCredentials()))
	}
	token, err := o.tokenSource()
	if err != nil {
		return nil, err
	}
	if token != nil {
		if config == nil && !o.insecureToken && !isLoopback(addr) {
			return nil, ErrInsecureToken
		}
		dial = append(dial, grpc.WithPerRPCCredentials(&bearer{token: token, secure: config != nil}))
	}
	return append(dial, o.dial...), nil
}

// isLoopback tells whether a gRPC target stays on this machine.
func isLoopback(target string) bool {
	if strings.HasPrefix(target, "unix:") || strings.HasPrefix(target, "unix-abstract:") {
		return true
	}
	// What a resolver of another kind makes of a name is not known here.
	for _, scheme := range []string{"dns:///", "passthrough:///"} {
		if rest, found := strings.CutPrefix(target, scheme); found {
			target = rest
			break
		}
	}
	host, _, err := net.SplitHostPort(target)
	if err != nil {
		host = strings.Trim(target, "[]")
	}
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// withTimeout gives ctx the client's deadline where it has none of its own.
func withTimeout(ctx context.Context, timeout time.Duration) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok || timeout <= 0 {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, timeout)
}
