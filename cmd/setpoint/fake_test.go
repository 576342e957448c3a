package main

import (
	"bytes"
	"cmp"
	"context"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/testkit"
)

func TestMain(m *testing.M) {
	testkit.Main(m)
}

// peer is the server at the other end of the wire: it answers every call with what a function says.
type peer struct {
	setpointv1.UnimplementedSessionServiceServer
	setpointv1.UnimplementedVariableServiceServer
	setpointv1.UnimplementedHistoryServiceServer
	setpointv1.UnimplementedDependencyServiceServer
	setpointv1.UnimplementedOptimizationServiceServer
	setpointv1.UnimplementedAccessServiceServer
	setpointv1.UnimplementedTokenServiceServer

	addr   string
	answer func(request proto.Message) (proto.Message, error)
	stop   func()
	// await answers AwaitOptimization.
	await func(stream grpc.ServerStreamingServer[setpointv1.Optimization]) error

	mu       sync.Mutex
	requests []proto.Message
	headers  []metadata.MD
}

func newPeer(t *testing.T, answer func(proto.Message) (proto.Message, error), opts ...grpc.ServerOption) *peer {
	t.Helper()
	p := &peer{answer: answer}
	p.listen(t, "127.0.0.1:0", opts...)
	return p
}

// listen makes the peer serve at an address.
func (p *peer) listen(t *testing.T, addr string, opts ...grpc.ServerOption) {
	t.Helper()
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(append(opts, grpc.UnaryInterceptor(p.serve))...)
	setpointv1.RegisterSessionServiceServer(server, p)
	setpointv1.RegisterVariableServiceServer(server, p)
	setpointv1.RegisterHistoryServiceServer(server, p)
	setpointv1.RegisterDependencyServiceServer(server, p)
	setpointv1.RegisterOptimizationServiceServer(server, p)
	setpointv1.RegisterAccessServiceServer(server, p)
	setpointv1.RegisterTokenServiceServer(server, p)
	p.addr, p.stop = listener.Addr().String(), server.Stop
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
}

func (p *peer) AwaitOptimization(request *setpointv1.AwaitOptimizationRequest,
	stream grpc.ServerStreamingServer[setpointv1.Optimization]) error {
	p.mu.Lock()
	p.requests = append(p.requests, request)
	p.mu.Unlock()
	return p.await(stream)
}

// always answers every call alike.
func always(answer proto.Message, err error) func(proto.Message) (proto.Message, error) {
	return func(proto.Message) (proto.Message, error) { return answer, err }
}

func (p *peer) serve(ctx context.Context, req any, _ *grpc.UnaryServerInfo, _ grpc.UnaryHandler) (any, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	header, _ := metadata.FromIncomingContext(ctx)
	p.requests = append(p.requests, req.(proto.Message))
	p.headers = append(p.headers, header)
	return p.answer(req.(proto.Message))
}

// last is the latest request, without the request_id that the client made up.
func (p *peer) last(t *testing.T) proto.Message {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.requests) == 0 {
		t.Fatal("the server got no request")
	}
	request := proto.Clone(p.requests[len(p.requests)-1]).ProtoReflect()
	if id := request.Descriptor().Fields().ByName("request_id"); id != nil && len(request.Get(id).String()) == 36 {
		request.Clear(id)
	}
	return request.Interface()
}

func (p *peer) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.requests)
}

// result is what one command line did.
type result struct {
	status int
	out    string
	err    string
}

// invocation is one command line, and what is around it.
type invocation struct {
	args   []string
	stdin  string
	env    map[string]string
	screen screen
	// watch, unless nil, gets what is written to standard error as it is written.
	watch io.Writer
}

// ear is a writer that listens for a word.
type ear struct {
	word  string
	heard chan struct{} // closed as soon as the word was written

	text string
	once sync.Once
}

func newEar(word string) *ear {
	return &ear{word: word, heard: make(chan struct{})}
}

func (e *ear) Write(p []byte) (int, error) {
	e.text += string(p)
	if strings.Contains(e.text, e.word) {
		e.once.Do(func() { close(e.heard) })
	}
	return len(p), nil
}

func (i invocation) run(t *testing.T) result {
	t.Helper()
	return i.runIn(t.Context())
}

// runIn is run until a context is done, as by Ctrl-C.
func (i invocation) runIn(ctx context.Context) result {
	var out, errs bytes.Buffer
	code := run(ctx, &cli{
		stdin:  strings.NewReader(i.stdin),
		stdout: &out,
		stderr: io.MultiWriter(&errs, cmp.Or(i.watch, io.Discard)),
		getenv: func(name string) string { return i.env[name] },
		zone:   time.UTC,
		screen: i.screen,
	}, i.args)
	return result{status: code, out: out.String(), err: errs.String()}
}

// setpoint runs a command line against the peer.
func (p *peer) setpoint(t *testing.T, args ...string) result {
	t.Helper()
	return invocation{args: append([]string{"--addr", p.addr}, args...)}.run(t)
}

func refusal(t *testing.T, code codes.Code, reason, message string) error {
	t.Helper()
	st, err := status.New(code, message).WithDetails(&errdetails.ErrorInfo{Domain: "setpoint", Reason: reason})
	if err != nil {
		t.Fatal(err)
	}
	return st.Err()
}

// at is a moment of the day on which the fake server lives.
func at(clock string) *timestamppb.Timestamp {
	moment, err := time.Parse(time.DateTime, "2026-11-23 "+clock)
	if err != nil {
		panic(err)
	}
	return timestamppb.New(moment)
}
