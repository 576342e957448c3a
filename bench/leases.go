package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// leasesConfig is what the command line says.
type leasesConfig struct {
	addrs         []string
	optimizers    int
	variables     int
	mostVariables int
	length        time.Duration
	hold          time.Duration
	conflict      string
	calls         int
	waitMany      bool
	waiting       int
}

func parseLeases(args []string) (leasesConfig, error) {
	var c leasesConfig
	flags := flag.NewFlagSet("leases", flag.ContinueOnError)
	addr := flags.String("addr", orElse(os.Getenv("SETPOINT_ADDR"), "127.0.0.1:7420"), "address of the server")
	servers := flags.String("servers", "", "addresses of more servers on its database, which optimizers take in turn")
	flags.IntVar(&c.optimizers, "optimizers", 200, "how many optimizers race")
	flags.IntVar(&c.variables, "variables", 20, "for how many variables")
	flags.IntVar(&c.mostVariables, "most-variables", 3, "most variables of one optimization; two thirds have one")
	flags.DurationVar(&c.length, "for", 30*time.Second, "how long the race is")
	flags.DurationVar(&c.hold, "hold", 20*time.Millisecond, "longest time that a lease is held besides its calls")
	flags.StringVar(&c.conflict, "conflict", "wait", "what an optimizer does where another is: wait, abort, or mixed, preempt included")
	flags.IntVar(&c.calls, "calls", 200, "calls of each operation without others, or hand-overs with --wait-many")
	flags.BoolVar(&c.waitMany, "wait-many", false, "time a hand-over while many wait, and no race")
	flags.IntVar(&c.waiting, "waiting", 1000, "how many wait with --wait-many")
	if err := flags.Parse(args); err != nil {
		return c, err
	}
	c.addrs = []string{*addr}
	if *servers != "" {
		c.addrs = append(c.addrs, strings.Split(*servers, ",")...)
	}
	switch {
	case flags.NArg() > 0:
		return c, fmt.Errorf("what is %q?", flags.Arg(0))
	case !slices.Contains([]string{"wait", "abort", "mixed"}, c.conflict):
		return c, fmt.Errorf("--conflict: %q is none of wait, abort and mixed", c.conflict)
	case c.optimizers < 1, c.variables < 1, c.mostVariables < 1, c.calls < 1, c.waiting < 1:
		return c, errors.New("there has to be at least one of everything")
	case c.mostVariables > c.variables:
		return c, fmt.Errorf("--most-variables: there are %d", c.variables)
	case c.length <= 0 || c.hold < 0:
		return c, errors.New("a time is negative")
	}
	return c, nil
}

// clientsAtOnce is how many optimizers share a connection: each that waits has a stream open.
const clientsAtOnce = 50

// leaseBench has a session and its connections.
type leaseBench struct {
	leasesConfig
	clients []*client.Client
	session string
	out     *tabwriter.Writer
}

func leases(ctx context.Context, args []string, out io.Writer) error {
	config, err := parseLeases(args)
	if err != nil {
		return err
	}
	b := &leaseBench{leasesConfig: config, out: tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)}
	connections := max(len(b.addrs), 1+max(b.optimizers, b.waiting)/clientsAtOnce)
	for i := range connections {
		c, err := client.Dial(b.addrs[i%len(b.addrs)])
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		b.clients = append(b.clients, c)
	}
	session, err := b.clients[0].Sessions.CreateSession(ctx, &setpointv1.CreateSessionRequest{})
	if err != nil {
		return err
	}
	b.session = session.GetSessionId()
	defer func() {
		_, _ = b.clients[0].Sessions.DeleteSession(context.WithoutCancel(ctx), &setpointv1.DeleteSessionRequest{SessionId: b.session})
	}()
	run := b.race
	if b.waitMany {
		run = b.handOvers
	}
	if err := run(ctx); err != nil {
		return err
	}
	return b.out.Flush()
}

func (b *leaseBench) line(format string, args ...any) { _, _ = fmt.Fprintf(b.out, format, args...) }

// of is the connection of an optimizer.
func (b *leaseBench) of(i int) *client.Client { return b.clients[i%len(b.clients)] }

func (b *leaseBench) register(ctx context.Context, names ...string) error {
	all := int64(0) // Every version is listed, however many there are: the verdict counts them.
	req := &setpointv1.BatchRegisterVariablesRequest{SessionId: b.session, Atomic: true}
	for _, name := range names {
		req.Registrations = append(req.Registrations, &setpointv1.VariableRegistration{
			Name: name, Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Value: client.Integer(0),
			HistoryLimit: &all,
		})
	}
	_, err := b.clients[0].Variables.BatchRegisterVariables(ctx, req)
	return err
}

// alone times the calls of an optimizer that nobody is in the way of, beside those of others.
func (b *leaseBench) alone(ctx context.Context) error {
	c, name := b.clients[0], "alone"
	if err := b.register(ctx, name, "free"); err != nil {
		return err
	}
	var o *setpointv1.Optimization
	steps := []operation{
		{name: "GetVariable", call: func(int) error {
			_, err := c.Variables.GetVariable(ctx, &setpointv1.GetVariableRequest{SessionId: b.session, Variable: "free"})
			return err
		}},
		{name: "SetVariable", call: func(i int) error {
			return write(ctx, c, b.session, "free", int64(i), nil)
		}},
		{name: "StartOptimization", call: func(int) error {
			var err error
			o, err = c.Optimizations.StartOptimization(ctx, &setpointv1.StartOptimizationRequest{
				SessionId: b.session, Variables: []string{name},
			})
			return err
		}},
		{name: "SetVariable under it", call: func(i int) error {
			return write(ctx, c, b.session, name, int64(i), o)
		}},
		{name: "RenewOptimization", call: func(int) error {
			_, err := c.Optimizations.RenewOptimization(ctx, &setpointv1.RenewOptimizationRequest{
				SessionId: b.session, OptimizationId: o.GetOptimizationId(), FencingToken: o.GetFencingToken(),
			})
			return err
		}},
		{name: "ReportProgress", call: func(i int) error { return report(ctx, c, o, i) }},
		{name: "StopOptimization", call: func(int) error { return stop(ctx, c, o) }},
	}
	took := make([][]time.Duration, len(steps))
	for i := range b.calls + b.calls/10 {
		for j, step := range steps {
			began := time.Now()
			if err := step.call(i); err != nil {
				return fmt.Errorf("%s: %w", step.name, err)
			}
			if i >= b.calls/10 {
				took[j] = append(took[j], time.Since(began))
			}
		}
	}
	b.line("alone\tp50 ms\tp99 ms\tp50 of a GetVariable\tof a SetVariable\t\n")
	for _, t := range took {
		slices.Sort(t)
	}
	for j, step := range steps {
		median := percentile(took[j], .5)
		b.line("%s\t%.2f\t%.2f\t%.1f\t%.1f\t\n", step.name, milliseconds(median), milliseconds(percentile(took[j], .99)),
			ratio(median, percentile(took[0], .5)), ratio(median, percentile(took[1], .5)))
	}
	return b.out.Flush()
}

func ratio(of, to time.Duration) float64 { return float64(of) / float64(to) }

// write sets a variable, under the lease of an optimization unless that is nil.
func write(ctx context.Context, c *client.Client, session, name string, v int64, o *setpointv1.Optimization) error {
	req := &setpointv1.SetVariableRequest{SessionId: session, Variable: name, Value: client.Integer(v)}
	if o != nil {
		req.Lease = &setpointv1.Lease{OptimizationId: o.GetOptimizationId(), FencingToken: o.GetFencingToken()}
	}
	_, err := c.Variables.SetVariable(ctx, req)
	return err
}

func report(ctx context.Context, c *client.Client, o *setpointv1.Optimization, i int) error {
	_, err := c.Optimizations.ReportProgress(ctx, &setpointv1.ReportProgressRequest{
		SessionId: o.GetSessionId(), OptimizationId: o.GetOptimizationId(), FencingToken: o.GetFencingToken(),
		Values: map[string]*setpointv1.Value{o.GetVariables()[0]: client.Integer(int64(i))}, Metrics: map[string]float64{"loss": 1},
	})
	return err
}

// stop ends a lease, or a stay in the queue.
func stop(ctx context.Context, c *client.Client, o *setpointv1.Optimization) error {
	_, err := c.Optimizations.StopOptimization(ctx, &setpointv1.StopOptimizationRequest{
		SessionId: o.GetSessionId(), OptimizationId: o.GetOptimizationId(),
	})
	return err
}

// handOvers times how soon after a stop the next one has its lease, while one waits and while many do.
func (b *leaseBench) handOvers(ctx context.Context) error {
	b.line("waiting\thand-over p50 ms\tp99 ms\tlongest ms\tqueued in s\t\n")
	for _, waiting := range slices.Compact([]int{1, b.waiting}) {
		name := fmt.Sprintf("wanted by %d", waiting)
		if err := b.register(ctx, name); err != nil {
			return err
		}
		if err := b.handOver(ctx, name, waiting); err != nil {
			return fmt.Errorf("%d waiting: %w", waiting, err)
		}
	}
	return nil
}

// granted is news of one that waited.
type granted struct {
	by  int
	o   *setpointv1.Optimization
	err error
}

func (b *leaseBench) handOver(ctx context.Context, name string, waiting int) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	holder, err := b.ask(ctx, 0, setpointv1.ConflictStrategy_CONFLICT_STRATEGY_ABORT, name)
	if err != nil {
		return err
	}
	// Whoever has had the lease queues again: so as many wait at each hand-over.
	news := make(chan granted, waiting+b.calls)
	queued := make(chan struct{}, waiting+b.calls)
	began := time.Now()
	for i := range waiting {
		go b.queue(ctx, i, name, queued, news)
	}
	took := make([]time.Duration, 0, b.calls)
	if err := awaitQueued(ctx, waiting, queued, news); err != nil {
		return err
	}
	settled := time.Since(began)
	for i := range b.calls {
		began := time.Now()
		if err := stop(ctx, b.of(i), holder); err != nil {
			return err
		}
		next, err := first(ctx, news)
		if err != nil {
			return err
		}
		took = append(took, time.Since(began))
		if next.o.GetFencingToken() <= holder.GetFencingToken() {
			return fmt.Errorf("token %d was granted after %d", next.o.GetFencingToken(), holder.GetFencingToken())
		}
		holder = next.o
		go b.queue(ctx, next.by, name, queued, news)
		if err := awaitQueued(ctx, 1, queued, news); err != nil {
			return err
		}
	}
	slices.Sort(took)
	b.line("%d\t%.2f\t%.2f\t%.2f\t%.1f\t\n", waiting, milliseconds(percentile(took, .5)), milliseconds(percentile(took, .99)),
		milliseconds(took[len(took)-1]), settled.Seconds())
	return nil
}

// queue waits for a variable: it tells when it is in the queue and followed by a server, and when it has the lease.
func (b *leaseBench) queue(ctx context.Context, i int, name string, queued chan<- struct{}, news chan<- granted) {
	o, err := b.ask(ctx, i, setpointv1.ConflictStrategy_CONFLICT_STRATEGY_WAIT, name)
	if err != nil {
		news <- granted{by: i, err: err}
		return
	}
	told := false
	o, err = b.of(i).AwaitLease(ctx, b.session, o.GetOptimizationId(), func(*setpointv1.Optimization) {
		if !told {
			told = true
			queued <- struct{}{}
		}
	})
	if ctx.Err() == nil {
		news <- granted{by: i, o: o, err: err}
	}
}

func first(ctx context.Context, news <-chan granted) (granted, error) {
	select {
	case g := <-news:
		return g, g.err
	case <-ctx.Done():
		return granted{}, context.Cause(ctx)
	}
}

func awaitQueued(ctx context.Context, n int, queued <-chan struct{}, news <-chan granted) error {
	for range n {
		select {
		case <-queued:
		case <-ctx.Done():
			return context.Cause(ctx)
		case early := <-news:
			return errors.Join(errors.New("a lease was granted while another held it"), early.err)
		}
	}
	return nil
}

func (b *leaseBench) ask(ctx context.Context, i int, conflict setpointv1.ConflictStrategy, variables ...string) (
	*setpointv1.Optimization, error,
) {
	return b.of(i).Optimizations.StartOptimization(ctx, &setpointv1.StartOptimizationRequest{
		SessionId: b.session, Variables: variables, Conflict: conflict, OptimizerId: fmt.Sprintf("optimizer-%d", i),
		Ttl: durationpb.New(time.Minute),
	})
}
