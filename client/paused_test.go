//go:build unix

package client

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// pausedAddr is in the environment of the process that TestPausedProcess pauses.
const pausedAddr = "SETPOINT_TEST_PAUSED_KEEPER"

const pausedTTL = 2 * time.Second

// generous renews whatever it is asked to, as if nobody had noticed.
type generous struct {
	setpointv1.UnimplementedOptimizationServiceServer

	mu       sync.Mutex
	renewals int
	arrived  chan struct{}
}

func (g *generous) RenewOptimization(context.Context, *setpointv1.RenewOptimizationRequest) (*setpointv1.Optimization, error) {
	g.mu.Lock()
	g.renewals++
	g.mu.Unlock()
	select {
	case g.arrived <- struct{}{}:
	default:
	}
	return &setpointv1.Optimization{
		Ttl:       durationpb.New(pausedTTL),
		ExpiresAt: timestamppb.New(time.Now().Add(pausedTTL)),
		Remaining: durationpb.New(pausedTTL),
	}, nil
}

func (g *generous) count() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.renewals
}

// A holder that is stopped past its lease's time gives the lease up when it goes on, and does not ask for it again,
// although it would be renewed.
func TestPausedProcess(t *testing.T) {
	t.Parallel()
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &generous{arrived: make(chan struct{}, 1)}
	server := grpc.NewServer()
	setpointv1.RegisterOptimizationServiceServer(server, g)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)

	child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKeeperToPause$", "-test.v")
	child.Env = append(os.Environ(), pausedAddr+"="+listener.Addr().String())
	child.Stderr = os.Stderr
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the first, and one of the keeper's own
		<-g.arrived
	}
	if err := child.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	// A request that was on its way has come before the time is over.
	<-time.After(pausedTTL)
	before := g.count()
	<-time.After(pausedTTL / 4)
	if err := child.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	var said []string
	for lines := bufio.NewScanner(out); lines.Scan(); {
		said = append(said, lines.Text())
	}
	if err := child.Wait(); err != nil {
		t.Errorf("the process: %v", err)
	}
	if !strings.Contains(strings.Join(said, "\n"), "given up: "+ErrNotRenewed.Error()) {
		t.Errorf("the process said: %q", said)
	}
	if after := g.count(); after != before {
		t.Errorf("%d renewals after it went on", after-before)
	}
}

// TestKeeperToPause is the process that TestPausedProcess pauses.
func TestKeeperToPause(t *testing.T) {
	addr := os.Getenv(pausedAddr)
	if addr == "" {
		return // not that process
	}
	c, err := Dial(addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	k, err := c.KeepLease(t.Context(),
		&setpointv1.Optimization{SessionId: "s", OptimizationId: leaseID, FencingToken: leaseToken})
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	<-k.Context().Done()
	cause := context.Cause(k.Context())
	if !errors.Is(cause, ErrNotRenewed) {
		t.Errorf("cause: %v", cause)
	}
	fmt.Fprintln(os.Stdout, "given up: "+cause.Error())
}
