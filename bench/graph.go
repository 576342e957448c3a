package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// graphBench measures the operations of a graph on sessions of one shape and one size each.
type graphBench struct {
	*client.Client
	calls int
	// most bounds the median of what is asked of a graph of thousand edges; 0 does not.
	most time.Duration
	slow []string
	out  *tabwriter.Writer
}

func graph(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("graph", flag.ContinueOnError)
	addr := flags.String("addr", orElse(os.Getenv("SETPOINT_ADDR"), "127.0.0.1:7420"), "address of the server")
	calls := flags.Int("calls", 200, "calls of each operation")
	edges := flags.String("edges", "100,1000,10000", "sizes of the graphs, in edges")
	most := flags.Duration("most", 0, "fail if the median of an operation on a graph of 1,000 edges is longer; 0 is never")
	if err := flags.Parse(args); err != nil {
		return err
	}
	c, err := client.Dial(*addr)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	b := &graphBench{Client: c, calls: *calls, most: *most, out: tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)}
	b.line("graph\tedges\toperation\tp50 ms\tp99 ms\tp50 of a GetVariable\t\n")
	for _, shape := range shapes {
		for text := range strings.SplitSeq(*edges, ",") {
			n, err := strconv.Atoi(text)
			if err != nil || n < 1 {
				return fmt.Errorf("--edges: %q is no size", text)
			}
			if err := b.run(ctx, shape, n); err != nil {
				return fmt.Errorf("%s of %d edges: %w", shape.name, n, err)
			}
		}
	}
	if err := b.out.Flush(); err != nil || len(b.slow) == 0 {
		return err
	}
	return fmt.Errorf("longer than %s: %s", b.most, strings.Join(b.slow, "; "))
}

// line adds to the table; what fails is told when it is flushed.
func (b *graphBench) line(format string, args ...any) { _, _ = fmt.Fprintf(b.out, format, args...) }

func orElse(text, other string) string {
	if text == "" {
		return other
	}
	return text
}

// shape is a family of graphs: on gives the variables that variable i depends on, all of them below i.
type shape struct {
	name      string
	variables func(edges int) int
	on        func(i, edges int, r *rand.Rand) []int
}

var shapes = []shape{
	{"chain", func(edges int) int { return edges + 1 }, func(i, _ int, _ *rand.Rand) []int { return upTo(i, i-1) }},
	{"fan-out", func(edges int) int { return edges + 1 }, func(i, _ int, _ *rand.Rand) []int { return upTo(i, 0) }},
	{"random", func(edges int) int { return edges/3 + 2 }, func(i, _ int, r *rand.Rand) []int {
		var on []int
		for range min(3, i) {
			on = append(on, r.IntN(i))
		}
		slices.Sort(on)
		return slices.Compact(on)
	}},
	{"layers of 20", func(edges int) int { return edges/20 + 20 }, func(i, _ int, _ *rand.Rand) []int {
		var on []int
		for j := i/20*20 - 20; j >= 0 && j < i/20*20; j++ {
			on = append(on, j)
		}
		return on
	}},
}

func upTo(i, on int) []int {
	if i == 0 {
		return nil
	}
	return []int{on}
}

func variable(i int) string { return fmt.Sprintf("v%06d", i) }

func (b *graphBench) run(ctx context.Context, s shape, edges int) error {
	r := rand.New(rand.NewPCG(1, uint64(edges)))
	session, err := b.Sessions.CreateSession(ctx, &setpointv1.CreateSessionRequest{})
	if err != nil {
		return err
	}
	id := session.GetSessionId()
	defer func() {
		_, _ = b.Sessions.DeleteSession(context.WithoutCancel(ctx), &setpointv1.DeleteSessionRequest{SessionId: id})
	}()
	n := s.variables(edges)
	if err := b.build(ctx, id, n, func(i int) []int { return s.on(i, edges, r) }); err != nil {
		return err
	}
	baseline, err := b.measure(func(i int) error {
		_, err := b.Variables.GetVariable(ctx, &setpointv1.GetVariableRequest{SessionId: id, Variable: variable(i % n)})
		return err
	})
	if err != nil {
		return err
	}
	for _, o := range b.operations(ctx, id, n, r) {
		took, err := b.measure(o.call)
		if err != nil {
			return fmt.Errorf("%s: %w", o.name, err)
		}
		if median := percentile(took, .5); b.most > 0 && edges == 1000 && o.bounded && median > b.most {
			b.slow = append(b.slow, fmt.Sprintf("%s, %s: %s", s.name, o.name, median))
		}
		b.line("%s\t%d\t%s\t%.2f\t%.2f\t%.1f\t\n", s.name, edges, o.name,
			milliseconds(percentile(took, .5)), milliseconds(percentile(took, .99)),
			float64(percentile(took, .5))/float64(percentile(baseline, .5)))
	}
	return nil
}

func (b *graphBench) build(ctx context.Context, session string, n int, on func(i int) []int) error {
	for from := 0; from < n; from += 500 {
		req := &setpointv1.BatchRegisterVariablesRequest{SessionId: session, Atomic: true}
		for i := from; i < min(from+500, n); i++ {
			registration := &setpointv1.VariableRegistration{
				Name: variable(i), Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Value: client.Integer(0),
			}
			for _, j := range on(i) {
				registration.DependsOn = append(registration.DependsOn, variable(j))
			}
			req.Registrations = append(req.Registrations, registration)
		}
		if _, err := b.Variables.BatchRegisterVariables(ctx, req); err != nil {
			return err
		}
	}
	return nil
}

// operation is a call that is timed; i is its number.
type operation struct {
	name string
	call func(i int) error
	// bounded operations count for --most.
	bounded bool
}

// operations are those that read first: the others add to the graph.
func (b *graphBench) operations(ctx context.Context, session string, n int, r *rand.Rand) []operation {
	add := func(dependent, dependency int) error {
		_, err := b.Dependencies.AddDependency(ctx, &setpointv1.AddDependencyRequest{
			SessionId: session, Dependent: variable(dependent), Dependency: variable(dependency),
		})
		return err
	}
	return []operation{
		{"ListDependents transitive", func(int) error {
			_, err := b.Dependencies.ListDependents(ctx, &setpointv1.ListDependentsRequest{
				SessionId: session, Variable: variable(0), Transitive: true,
			})
			return err
		}, true},
		{"GetUpdateOrder", func(int) error {
			_, err := b.Dependencies.GetUpdateOrder(ctx, &setpointv1.GetUpdateOrderRequest{
				SessionId: session, Variable: variable(0),
			})
			return err
		}, true},
		{"AddDependency", func(int) error {
			low := r.IntN(n - 1)
			return add(low+1+r.IntN(n-1-low), low)
		}, true},
		{"AddDependency refused", func(int) error {
			if err := add(0, n-1); !errors.Is(err, client.ErrWouldCreateCycle) {
				return errors.Join(errors.New("a cycle was not refused"), err)
			}
			return nil
		}, false},
	}
}

// measure times the calls, one after another, after a few that are not counted.
func (b *graphBench) measure(call func(i int) error) ([]time.Duration, error) {
	took := make([]time.Duration, 0, b.calls)
	for i := range b.calls + b.calls/10 {
		began := time.Now()
		if err := call(i); err != nil {
			return nil, err
		}
		if i >= b.calls/10 {
			took = append(took, time.Since(began))
		}
	}
	slices.Sort(took)
	return took, nil
}

func percentile(sorted []time.Duration, p float64) time.Duration {
	return sorted[min(len(sorted)-1, int(p*float64(len(sorted))))]
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
