package client

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/protoadapt"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

// peer is a server that answers every call from a script: the n-th call gets the n-th error, nil being success, and
// calls beyond the script succeed.
type peer struct {
	setpointv1.UnimplementedSessionServiceServer
	setpointv1.UnimplementedVariableServiceServer
	setpointv1.UnimplementedHistoryServiceServer
	setpointv1.UnimplementedDependencyServiceServer
	setpointv1.UnimplementedOptimizationServiceServer
	setpointv1.UnimplementedAccessServiceServer
	setpointv1.UnimplementedTokenServiceServer

	mu       sync.Mutex
	script   []error
	requests []proto.Message
	headers  []metadata.MD
	arrived  chan struct{} // gets one for each call
	block    bool          // calls wait for their context's end
	awaits   []func(grpc.ServerStreamingServer[setpointv1.Optimization]) error
	timed    bool // a stream came with a deadline
}

// newPeer starts a server with a script and returns a client of it.
func newPeer(t *testing.T, script []error, opts ...Option) (*peer, *Client) {
	t.Helper()
	p := &peer{script: script, arrived: make(chan struct{}, 100)}
	return p, p.dial(t, opts...)
}

func (p *peer) dial(t *testing.T, opts ...Option) *Client {
	t.Helper()
	listener := bufconn.Listen(1 << 20)
	server := grpc.NewServer(grpc.UnaryInterceptor(p.record), grpc.MaxRecvMsgSize(MaxMessageBytes))
	setpointv1.RegisterSessionServiceServer(server, p)
	setpointv1.RegisterVariableServiceServer(server, p)
	setpointv1.RegisterHistoryServiceServer(server, p)
	setpointv1.RegisterDependencyServiceServer(server, p)
	setpointv1.RegisterOptimizationServiceServer(server, p)
	setpointv1.RegisterAccessServiceServer(server, p)
	setpointv1.RegisterTokenServiceServer(server, p)
	healthpb.RegisterHealthServer(server, health.NewServer())
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	dialer := grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
		return listener.DialContext(ctx)
	})
	opts = append([]Option{
		WithRetry(RetryPolicy{MaxAttempts: 4, InitialBackoff: time.Millisecond, MaxBackoff: 2 * time.Millisecond}),
		WithDialOptions(dialer, grpc.WithTransportCredentials(insecure.NewCredentials())),
	}, opts...)
	c, err := Dial("passthrough:///localhost", opts...)
	if err != nil {
		t.Fatalf("dial: %v", err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func (p *peer) record(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	p.mu.Lock()
	n := len(p.requests)
	p.requests = append(p.requests, req.(proto.Message))
	header, _ := metadata.FromIncomingContext(ctx)
	p.headers = append(p.headers, header)
	p.mu.Unlock()
	p.arrived <- struct{}{}
	if p.block {
		<-ctx.Done()
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	if n < len(p.script) && p.script[n] != nil {
		return nil, p.script[n]
	}
	return handle(ctx, req)
}

func (p *peer) calls() []proto.Message {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]proto.Message(nil), p.requests...)
}

func (p *peer) header(t *testing.T, call int, name string) string {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	values := p.headers[call].Get(name)
	if len(values) != 1 {
		t.Fatalf("header %s of call %d: got %q, want one value", name, call, values)
	}
	return values[0]
}

func (p *peer) CreateSession(_ context.Context, r *setpointv1.CreateSessionRequest) (*setpointv1.Session, error) {
	return &setpointv1.Session{SessionId: r.GetSessionId()}, nil
}

func (p *peer) KeepSessionAlive(_ context.Context, r *setpointv1.KeepSessionAliveRequest) (*setpointv1.Session, error) {
	return &setpointv1.Session{SessionId: r.GetSessionId()}, nil
}

func (p *peer) GetVariable(_ context.Context, r *setpointv1.GetVariableRequest) (*setpointv1.Variable, error) {
	return &setpointv1.Variable{Name: r.GetVariable(), Value: Float(0.7)}, nil
}

func (p *peer) SetVariable(_ context.Context, r *setpointv1.SetVariableRequest) (*setpointv1.SetVariableResponse, error) {
	return &setpointv1.SetVariableResponse{VariableId: r.GetVariable(), Version: 1}, nil
}

func (p *peer) AddDependency(_ context.Context, r *setpointv1.AddDependencyRequest) (*setpointv1.Dependency, error) {
	return &setpointv1.Dependency{Dependent: r.GetDependent(), Dependency: r.GetDependency()}, nil
}

func (p *peer) RemoveDependency(context.Context, *setpointv1.RemoveDependencyRequest) (*setpointv1.RemoveDependencyResponse, error) {
	return &setpointv1.RemoveDependencyResponse{Revision: 1}, nil
}

func (p *peer) GetGraph(context.Context, *setpointv1.GetGraphRequest) (*setpointv1.GetGraphResponse, error) {
	return &setpointv1.GetGraphResponse{}, nil
}

func (p *peer) StartOptimization(_ context.Context, r *setpointv1.StartOptimizationRequest) (*setpointv1.Optimization, error) {
	return &setpointv1.Optimization{SessionId: r.GetSessionId(), Variables: r.GetVariables()}, nil
}

func (p *peer) RenewOptimization(_ context.Context, r *setpointv1.RenewOptimizationRequest) (*setpointv1.Optimization, error) {
	return &setpointv1.Optimization{OptimizationId: r.GetOptimizationId()}, nil
}

func (p *peer) ReportProgress(context.Context, *setpointv1.ReportProgressRequest) (*setpointv1.ReportProgressResponse, error) {
	return &setpointv1.ReportProgressResponse{}, nil
}

func (p *peer) StopOptimization(context.Context, *setpointv1.StopOptimizationRequest) (*setpointv1.StopOptimizationResponse, error) {
	return &setpointv1.StopOptimizationResponse{}, nil
}

func (p *peer) GetOptimization(_ context.Context, r *setpointv1.GetOptimizationRequest) (*setpointv1.Optimization, error) {
	return &setpointv1.Optimization{OptimizationId: r.GetOptimizationId()}, nil
}

func (p *peer) SetVariablePermissions(context.Context, *setpointv1.SetVariablePermissionsRequest) (
	*setpointv1.SetVariablePermissionsResponse, error) {
	return &setpointv1.SetVariablePermissionsResponse{}, nil
}

func (p *peer) AddAccessRule(_ context.Context, r *setpointv1.AddAccessRuleRequest) (*setpointv1.AccessRule, error) {
	return &setpointv1.AccessRule{Subject: r.GetRule().GetSubject()}, nil
}

func (p *peer) RemoveAccessRule(context.Context, *setpointv1.RemoveAccessRuleRequest) (*setpointv1.RemoveAccessRuleResponse, error) {
	return &setpointv1.RemoveAccessRuleResponse{}, nil
}

func (p *peer) ListAccessRules(context.Context, *setpointv1.ListAccessRulesRequest) (*setpointv1.ListAccessRulesResponse, error) {
	return &setpointv1.ListAccessRulesResponse{}, nil
}

func (p *peer) CheckAccess(context.Context, *setpointv1.CheckAccessRequest) (*setpointv1.CheckAccessResponse, error) {
	return &setpointv1.CheckAccessResponse{Allowed: true}, nil
}

func (p *peer) BatchCheckAccess(context.Context, *setpointv1.BatchCheckAccessRequest) (*setpointv1.BatchCheckAccessResponse, error) {
	return &setpointv1.BatchCheckAccessResponse{}, nil
}

func (p *peer) ListAuditEvents(context.Context, *setpointv1.ListAuditEventsRequest) (*setpointv1.ListAuditEventsResponse, error) {
	return &setpointv1.ListAuditEventsResponse{}, nil
}

func (p *peer) CreateToken(_ context.Context, r *setpointv1.CreateTokenRequest) (*setpointv1.CreateTokenResponse, error) {
	return &setpointv1.CreateTokenResponse{Token: &setpointv1.Token{Principal: r.GetPrincipal()}}, nil
}

func (p *peer) ListTokens(context.Context, *setpointv1.ListTokensRequest) (*setpointv1.ListTokensResponse, error) {
	return &setpointv1.ListTokensResponse{}, nil
}

func (p *peer) RevokeToken(_ context.Context, r *setpointv1.RevokeTokenRequest) (*setpointv1.Token, error) {
	return &setpointv1.Token{TokenId: r.GetTokenId()}, nil
}

// AwaitOptimization answers the n-th stream by the n-th of awaits.
func (p *peer) AwaitOptimization(r *setpointv1.AwaitOptimizationRequest,
	stream grpc.ServerStreamingServer[setpointv1.Optimization]) error {
	p.mu.Lock()
	n := len(p.requests)
	p.requests = append(p.requests, r)
	header, _ := metadata.FromIncomingContext(stream.Context())
	p.headers = append(p.headers, header)
	if _, ok := stream.Context().Deadline(); ok {
		p.timed = true
	}
	p.mu.Unlock()
	return p.awaits[n](stream)
}

// refusal is an error as the service gives it.
func refusal(t *testing.T, code codes.Code, reason, message string, meta map[string]string,
	details ...protoadapt.MessageV1) error {
	t.Helper()
	info := &errdetails.ErrorInfo{Domain: "setpoint", Reason: reason, Metadata: meta}
	st, err := status.New(code, message).WithDetails(append([]protoadapt.MessageV1{info}, details...)...)
	if err != nil {
		t.Fatalf("build status: %v", err)
	}
	return st.Err()
}
