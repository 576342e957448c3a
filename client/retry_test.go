package client

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

func set(name string) *setpointv1.SetVariableRequest {
	return &setpointv1.SetVariableRequest{SessionId: "s", Variable: name, Value: Float(0.9)}
}

func TestRepeatedWriteKeepsItsRequestID(t *testing.T) {
	t.Parallel()
	lost := status.Error(codes.Unavailable, "connection reset")
	p, c := newPeer(t, []error{lost, lost})
	request := set("temperature")
	before := proto.Clone(request)
	response, err := c.Variables.SetVariable(t.Context(), request)
	if err != nil {
		t.Fatalf("SetVariable: %v", err)
	}
	if response.GetVersion() != 1 {
		t.Errorf("version: got %d, want 1", response.GetVersion())
	}
	calls := p.calls()
	if len(calls) != 3 {
		t.Fatalf("calls: got %d, want 3", len(calls))
	}
	id := calls[0].(*setpointv1.SetVariableRequest).GetRequestId()
	if parsed, err := uuid.Parse(id); err != nil || parsed.Version() != 7 {
		t.Errorf("request_id %q is not a UUIDv7", id)
	}
	for i, call := range calls[1:] {
		if diff := cmp.Diff(calls[0], call, protocmp.Transform()); diff != "" {
			t.Errorf("attempt %d differs from the first (-first +it):\n%s", i+2, diff)
		}
	}
	if diff := cmp.Diff(before, proto.Message(request), protocmp.Transform()); diff != "" {
		t.Errorf("the caller's request was changed:\n%s", diff)
	}
	if _, err := c.Variables.SetVariable(t.Context(), request); err != nil {
		t.Fatalf("SetVariable again: %v", err)
	}
	if again := p.calls()[3].(*setpointv1.SetVariableRequest).GetRequestId(); again == id {
		t.Error("a second call of the same request went out under the first one's request_id")
	}
}

func TestRepeatedCallKeepsItsRequestID(t *testing.T) {
	t.Parallel()
	for name, call := range map[string]func(context.Context, *Client) error{
		"add": callAddDependency, "remove": callRemoveDependency,
		"start": callStart, "report": callReport, "stop": callStop,
		"set permissions": callSetPermissions, "add rule": callAddRule, "remove rule": callRemoveRule,
	} {
		p, c := newPeer(t, []error{status.Error(codes.Unavailable, "connection reset")})
		if err := call(t.Context(), c); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		calls := p.calls()
		id := calls[0].(interface{ GetRequestId() string }).GetRequestId()
		if parsed, err := uuid.Parse(id); err != nil || parsed.Version() != 7 {
			t.Errorf("%s: request_id %q is not a UUIDv7", name, id)
		}
		if diff := cmp.Diff(calls[0], calls[1], protocmp.Transform()); diff != "" {
			t.Errorf("%s: the repeat differs (-first +it):\n%s", name, diff)
		}
	}
}

func TestWhatIsRetried(t *testing.T) {
	t.Parallel()
	unavailable := status.Error(codes.Unavailable, "gone")
	tests := []struct {
		name    string
		failure error
		call    func(context.Context, *Client) error
		want    int // attempts
	}{
		{"a read while the server is away", unavailable, callGet, 2},
		{"a write while the server is away", unavailable, callSet, 2},
		{"keep-alive, which is idempotent without a request_id", unavailable, callKeepAlive, 2},
		{"another service's call, of which nothing is known", unavailable, callHealth, 1},
		{"a new dependency while the server is away", unavailable, callAddDependency, 2},
		{"the end of a dependency while the server is away", unavailable, callRemoveDependency, 2},
		{"the graph while the server is away", unavailable, callGetGraph, 2},
		{"the start of an optimization while the server is away", unavailable, callStart, 2},
		{"its renewal, which is idempotent without a request_id", unavailable, callRenew, 2},
		{"a report", unavailable, callReport, 2},
		{"its stop", unavailable, callStop, 2},
		{"a look at it", unavailable, callGetOptimization, 2},
		{"a renewal that is repeated elsewhere", unavailable, callRenewOnce, 1},
		{"a new access rule", unavailable, callAddRule, 2},
		{"the end of an access rule", unavailable, callRemoveRule, 2},
		{"a variable's rules", unavailable, callSetPermissions, 2},
		{"a list of rules", unavailable, callListRules, 2},
		{"a check", unavailable, callCheck, 2},
		{"several checks", unavailable, callBatchCheck, 2},
		{"the audit", unavailable, callAudit, 2},
		{"a new token, which would be another one each time", unavailable, callCreateToken, 1},
		{"a new token while the database is away", refusal(t, codes.Unavailable, "DATABASE_UNAVAILABLE", "x", nil), callCreateToken, 1},
		{"a new token that was not made", refusal(t, codes.ResourceExhausted, "OVERLOADED", "x", nil), callCreateToken, 2},
		{"a list of tokens", unavailable, callListTokens, 2},
		{"a revocation, which is idempotent without a request_id", unavailable, callRevokeToken, 2},
		{"no credentials", refusal(t, codes.Unauthenticated, "CREDENTIALS_MISSING", "x", nil), callGet, 1},
		{"bad credentials", refusal(t, codes.Unauthenticated, "CREDENTIALS_INVALID", "x", nil), callGet, 1},
		{"no permission", refusal(t, codes.PermissionDenied, "ACCESS_DENIED", "x", nil), callGet, 1},
		{"a variable that is optimized", refusal(t, codes.FailedPrecondition, "ALREADY_OPTIMIZING", "x", nil), callStart, 1},
		{"a lost lease", refusal(t, codes.FailedPrecondition, "LEASE_LOST", "x", nil), callReport, 1},
		{"a cycle", refusal(t, codes.FailedPrecondition, "WOULD_CREATE_CYCLE", "x", nil), callAddDependency, 1},
		{"the database away", refusal(t, codes.Unavailable, "DATABASE_UNAVAILABLE", "x", nil), callSet, 2},
		{"colliding transactions", refusal(t, codes.Aborted, "CONFLICT_RETRY", "x", nil), callSet, 2},
		{"overload", refusal(t, codes.ResourceExhausted, "OVERLOADED", "x", nil), callSet, 2},
		{"another version", refusal(t, codes.Aborted, "VERSION_MISMATCH", "x", nil), callSet, 1},
		{"a limit", refusal(t, codes.ResourceExhausted, "LIMIT_EXCEEDED", "x", nil), callSet, 1},
		{"aborted by something else", status.Error(codes.Aborted, "x"), callSet, 1},
		{"a defect", refusal(t, codes.Internal, "INTERNAL_ERROR", "x", nil), callGet, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p, c := newPeer(t, []error{tt.failure})
			err := tt.call(t.Context(), c)
			if got := len(p.calls()); got != tt.want {
				t.Errorf("attempts: got %d, want %d", got, tt.want)
			}
			if failed := err != nil; failed != (tt.want == 1) {
				t.Errorf("error: got %v after %d attempts", err, tt.want)
			}
		})
	}
}

func callGet(ctx context.Context, c *Client) error {
	_, err := c.Variables.GetVariable(ctx, &setpointv1.GetVariableRequest{SessionId: "s", Variable: "v"})
	return err
}

func callSet(ctx context.Context, c *Client) error {
	_, err := c.Variables.SetVariable(ctx, set("v"))
	return err
}

func callAddDependency(ctx context.Context, c *Client) error {
	_, err := c.Dependencies.AddDependency(ctx, &setpointv1.AddDependencyRequest{SessionId: "s", Dependent: "b", Dependency: "a"})
	return err
}

func callRemoveDependency(ctx context.Context, c *Client) error {
	_, err := c.Dependencies.RemoveDependency(ctx,
		&setpointv1.RemoveDependencyRequest{SessionId: "s", Dependent: "b", Dependency: "a"})
	return err
}

func callGetGraph(ctx context.Context, c *Client) error {
	_, err := c.Dependencies.GetGraph(ctx, &setpointv1.GetGraphRequest{SessionId: "s"})
	return err
}

func callStart(ctx context.Context, c *Client) error {
	_, err := c.Optimizations.StartOptimization(ctx, &setpointv1.StartOptimizationRequest{SessionId: "s", Variables: []string{"v"}})
	return err
}

func callRenew(ctx context.Context, c *Client) error {
	_, err := c.Optimizations.RenewOptimization(ctx, &setpointv1.RenewOptimizationRequest{SessionId: "s"})
	return err
}

func callRenewOnce(ctx context.Context, c *Client) error {
	_, err := c.Optimizations.RenewOptimization(ctx, &setpointv1.RenewOptimizationRequest{SessionId: "s"}, once{})
	return err
}

func callReport(ctx context.Context, c *Client) error {
	_, err := c.Optimizations.ReportProgress(ctx, &setpointv1.ReportProgressRequest{SessionId: "s"})
	return err
}

func callStop(ctx context.Context, c *Client) error {
	_, err := c.Optimizations.StopOptimization(ctx, &setpointv1.StopOptimizationRequest{SessionId: "s"})
	return err
}

func callGetOptimization(ctx context.Context, c *Client) error {
	_, err := c.Optimizations.GetOptimization(ctx, &setpointv1.GetOptimizationRequest{SessionId: "s"})
	return err
}

func callSetPermissions(ctx context.Context, c *Client) error {
	_, err := c.Access.SetVariablePermissions(ctx, &setpointv1.SetVariablePermissionsRequest{SessionId: "s", Variable: "v"})
	return err
}

func callAddRule(ctx context.Context, c *Client) error {
	_, err := c.Access.AddAccessRule(ctx, &setpointv1.AddAccessRuleRequest{SessionId: "s",
		Rule: &setpointv1.AccessRuleSpec{Subject: "user:ada", Permissions: []setpointv1.Permission{setpointv1.Permission_PERMISSION_READ}}})
	return err
}

func callRemoveRule(ctx context.Context, c *Client) error {
	_, err := c.Access.RemoveAccessRule(ctx, &setpointv1.RemoveAccessRuleRequest{SessionId: "s", RuleId: "rule_1"})
	return err
}

func callListRules(ctx context.Context, c *Client) error {
	_, err := c.Access.ListAccessRules(ctx, &setpointv1.ListAccessRulesRequest{SessionId: "s"})
	return err
}

func callCheck(ctx context.Context, c *Client) error {
	_, err := c.Access.CheckAccess(ctx, &setpointv1.CheckAccessRequest{SessionId: "s", Variable: "v"})
	return err
}

func callBatchCheck(ctx context.Context, c *Client) error {
	_, err := c.Access.BatchCheckAccess(ctx, &setpointv1.BatchCheckAccessRequest{SessionId: "s"})
	return err
}

func callAudit(ctx context.Context, c *Client) error {
	_, err := c.Access.ListAuditEvents(ctx, &setpointv1.ListAuditEventsRequest{SessionId: "s"})
	return err
}

func callCreateToken(ctx context.Context, c *Client) error {
	_, err := c.Tokens.CreateToken(ctx, &setpointv1.CreateTokenRequest{Principal: "user:ada"})
	return err
}

func callListTokens(ctx context.Context, c *Client) error {
	_, err := c.Tokens.ListTokens(ctx, &setpointv1.ListTokensRequest{})
	return err
}

func callRevokeToken(ctx context.Context, c *Client) error {
	_, err := c.Tokens.RevokeToken(ctx, &setpointv1.RevokeTokenRequest{TokenId: "tok_1"})
	return err
}

func callKeepAlive(ctx context.Context, c *Client) error {
	_, err := c.Sessions.KeepSessionAlive(ctx, &setpointv1.KeepSessionAliveRequest{SessionId: "s"})
	return err
}

func callHealth(ctx context.Context, c *Client) error {
	_, err := healthpb.NewHealthClient(c.Conn()).Check(ctx, &healthpb.HealthCheckRequest{})
	return err
}

func TestRetriesEnd(t *testing.T) {
	t.Parallel()
	away := refusal(t, codes.Unavailable, "DATABASE_UNAVAILABLE", "no database", nil)
	p, c := newPeer(t, []error{away, away, away, away, away})
	err := callGet(t.Context(), c)
	if !errors.Is(err, ErrDatabaseUnavailable) || errors.Is(err, ErrUnreachable) {
		t.Errorf("error: got %v, want DATABASE_UNAVAILABLE alone", err)
	}
	if got := len(p.calls()); got != 4 {
		t.Errorf("attempts: got %d, want MaxAttempts, 4", got)
	}
}

func TestWithoutRetry(t *testing.T) {
	t.Parallel()
	p, c := newPeer(t, []error{status.Error(codes.Unavailable, "gone")}, WithoutRetry())
	if err := callSet(t.Context(), c); !errors.Is(err, ErrUnreachable) {
		t.Errorf("error: got %v, want UNREACHABLE", err)
	}
	calls := p.calls()
	if len(calls) != 1 {
		t.Fatalf("attempts: got %d, want 1", len(calls))
	}
	if id := calls[0].(*setpointv1.SetVariableRequest).GetRequestId(); id != "" {
		t.Errorf("request_id: got %q, want none for a write that is not repeated", id)
	}
}

func TestDeadlineCutsTheWaitShort(t *testing.T) {
	t.Parallel()
	busy := refusal(t, codes.ResourceExhausted, "OVERLOADED", "come back later", nil,
		&errdetails.RetryInfo{RetryDelay: durationpb.New(time.Hour)})
	p, c := newPeer(t, []error{busy})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	err := callSet(ctx, c)
	var e *Error
	if !errors.As(err, &e) || !errors.Is(err, ErrOverloaded) || e.RetryAfter != time.Hour {
		t.Errorf("error: got %v, want the server's OVERLOADED with its hour", err)
	}
	if got := len(p.calls()); got != 1 {
		t.Errorf("attempts: got %d, want 1", got)
	}
}

func TestCancelDuringTheWait(t *testing.T) {
	t.Parallel()
	busy := refusal(t, codes.ResourceExhausted, "OVERLOADED", "come back later", nil,
		&errdetails.RetryInfo{RetryDelay: durationpb.New(time.Hour)})
	p, c := newPeer(t, []error{busy}, WithTimeout(0))
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-p.arrived
		cancel()
	}()
	err := callSet(ctx, c)
	if !errors.Is(err, context.Canceled) || status.Code(err) != codes.Canceled {
		t.Errorf("error: got %v, want the cancellation", err)
	}
}

func TestTimeoutOfAServerThatHangs(t *testing.T) {
	t.Parallel()
	p := &peer{arrived: make(chan struct{}, 1), block: true}
	c := p.dial(t, WithTimeout(50*time.Millisecond))
	err := callGet(t.Context(), c)
	if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrUnreachable) {
		t.Errorf("error: got %v, want DEADLINE_EXCEEDED of a server that is there", err)
	}
}

func TestUnreachable(t *testing.T) {
	t.Parallel()
	c, err := Dial("127.0.0.1:1", WithRetry(RetryPolicy{MaxAttempts: 2, InitialBackoff: time.Millisecond}))
	if err != nil {
		t.Fatalf("dial: %v", err)
	}
	defer c.Close()
	err = callGet(t.Context(), c)
	if !errors.Is(err, ErrUnreachable) || !strings.HasPrefix(err.Error(), "UNREACHABLE: ") {
		t.Errorf("error: got %v, want UNREACHABLE", err)
	}
}

func TestRetryAfterComesFirst(t *testing.T) {
	t.Parallel()
	policy := RetryPolicy{MaxAttempts: 9, InitialBackoff: 100 * time.Millisecond, MaxBackoff: time.Second}
	tests := []struct {
		attempt    int
		retryAfter time.Duration
		least      time.Duration
		most       time.Duration
	}{
		{1, 0, 0, 100 * time.Millisecond},
		{2, 0, 0, 200 * time.Millisecond},
		{4, 0, 0, 800 * time.Millisecond},
		{5, 0, 0, time.Second},
		{1000, 0, 0, time.Second},
		{1, 3 * time.Second, 3 * time.Second, 3100 * time.Millisecond},
	}
	for _, tt := range tests {
		for range 200 {
			wait := policy.wait(tt.attempt, &Error{RetryAfter: tt.retryAfter})
			if wait < tt.least || wait >= tt.most {
				t.Errorf("wait after attempt %d: got %s, want from %s to %s", tt.attempt, wait, tt.least, tt.most)
			}
		}
	}
}

func TestPrepare(t *testing.T) {
	t.Parallel()
	create := "/setpoint.v1.SessionService/CreateSession"
	write := "/setpoint.v1.VariableService/SetVariable"
	t.Run("a session without an id gets one", func(t *testing.T) {
		t.Parallel()
		sent, repeatable := prepare(create, &setpointv1.CreateSessionRequest{})
		got := sent.(*setpointv1.CreateSessionRequest)
		if !repeatable || got.GetSessionId() == "" || got.GetRequestId() == "" {
			t.Errorf("got %v, repeatable %t", got, repeatable)
		}
	})
	t.Run("a session keeps its id", func(t *testing.T) {
		t.Parallel()
		sent, _ := prepare(create, &setpointv1.CreateSessionRequest{SessionId: "mine"})
		if got := sent.(*setpointv1.CreateSessionRequest).GetSessionId(); got != "mine" {
			t.Errorf("session_id: got %q", got)
		}
	})
	t.Run("the caller's request_id stays", func(t *testing.T) {
		t.Parallel()
		request := set("v")
		request.RequestId = "mine"
		sent, repeatable := prepare(write, request)
		if sent != any(request) || !repeatable {
			t.Errorf("got %v, repeatable %t", sent, repeatable)
		}
	})
	t.Run("a dry run needs none", func(t *testing.T) {
		t.Parallel()
		request := set("v")
		request.DryRun = true
		sent, repeatable := prepare(write, request)
		if sent != any(request) || !repeatable {
			t.Errorf("got %v, repeatable %t", sent, repeatable)
		}
	})
	t.Run("the value is shared, everything is sent", func(t *testing.T) {
		t.Parallel()
		request := set("v")
		request.Value = Tensor("uint8", []int64{1}, []byte{7})
		request.ExpectedVersion = proto.Int64(0)
		request.Metadata = map[string]string{"k": "v"}
		sent, _ := prepare(write, request)
		got := sent.(*setpointv1.SetVariableRequest)
		if got.GetValue() != request.GetValue() {
			t.Error("the value was copied")
		}
		if diff := cmp.Diff(request, got, protocmp.Transform(),
			protocmp.IgnoreFields(&setpointv1.SetVariableRequest{}, "request_id")); diff != "" {
			t.Errorf("fields were lost:\n%s", diff)
		}
	})
}

// Every RPC of the API is either declared free of side effects or can carry a request_id, so that all of them may be
// repeated; one that is neither would fail on the first lost connection. The one that makes a secret is such: repeated after
// an answer was lost, it would leave a token behind that nobody has.
func TestEveryCallCanBeRepeated(t *testing.T) {
	t.Parallel()
	files := setpointv1.File_setpoint_v1_session_proto.Package()
	count := 0
	for _, file := range apiFiles(files) {
		for i := range file.Services().Len() {
			service := file.Services().Get(i)
			for j := range service.Methods().Len() {
				method := service.Methods().Get(j)
				if method.IsStreamingServer() || method.IsStreamingClient() {
					continue
				}
				count++
				path := "/" + string(service.FullName()) + "/" + string(method.Name())
				want := path != setpointv1.TokenService_CreateToken_FullMethodName
				if _, repeatable := prepare(path, newMessage(t, method.Input())); repeatable != want {
					t.Errorf("%s may be repeated: %t, want %t", path, repeatable, want)
				}
			}
		}
	}
	if count < 42 {
		t.Errorf("methods found: %d", count)
	}
}
