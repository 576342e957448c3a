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
	"sync"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// accessConfig is what the command line says.
type accessConfig struct {
	addr                    string
	variables, rules, whole int
	calls, rounds, callers  int
	most                    float64
}

func parseAccess(args []string) (accessConfig, error) {
	var c accessConfig
	flags := flag.NewFlagSet("access", flag.ContinueOnError)
	flags.StringVar(&c.addr, "addr", orElse(os.Getenv("SETPOINT_ADDR"), "127.0.0.1:7420"), "address of a server with --auth none")
	flags.IntVar(&c.variables, "variables", 1000, "variables of each session")
	flags.IntVar(&c.rules, "rules", 10_000, "rules of the session that has many; half of them have a wildcard")
	flags.IntVar(&c.whole, "whole-session", 100, "how many of them are for the whole session")
	flags.IntVar(&c.calls, "calls", 200, "calls of each operation in a round")
	flags.IntVar(&c.rounds, "rounds", 7, "rounds; of each figure the median counts")
	flags.IntVar(&c.callers, "callers", 64, "how many call at once, in the second table")
	flags.Float64Var(&c.most, "most", 1.5, "fail if a write is so many times as long with many rules as with one")
	if err := flags.Parse(args); err != nil {
		return c, err
	}
	switch {
	case flags.NArg() > 0:
		return c, fmt.Errorf("what is %q?", flags.Arg(0))
	case c.variables < 1 || c.calls < 1 || c.rounds < 1 || c.callers < 1:
		return c, errors.New("there has to be at least one of everything")
	case c.whole < 1 || c.whole > c.rules:
		return c, fmt.Errorf("--whole-session: from 1 to %d", c.rules)
	case c.variables > 1000:
		return c, errors.New("--variables: at most 1000, which are listed on one page")
	}
	return c, nil
}

// accessBench has two sessions that differ in their rules.
type accessBench struct {
	accessConfig
	owner, caller, reader *client.Client
	// one has one rule for the caller, and many has many.
	one, many string
	out       *tabwriter.Writer
}

func access(ctx context.Context, args []string, out io.Writer) error {
	config, err := parseAccess(args)
	if err != nil {
		return err
	}
	b := &accessBench{accessConfig: config, out: tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)}
	for name, c := range map[string]**client.Client{"user:owner": &b.owner, "user:caller-7": &b.caller, "user:reader": &b.reader} {
		if *c, err = client.Dial(b.addr, client.WithPrincipal(name)); err != nil {
			return err
		}
		defer func() { _ = (*c).Close() }()
	}
	for _, id := range []*string{&b.one, &b.many} {
		session, err := b.owner.Sessions.CreateSession(ctx, &setpointv1.CreateSessionRequest{})
		if err != nil {
			return err
		}
		*id = session.GetSessionId()
		defer func() {
			_, _ = b.owner.Sessions.DeleteSession(context.WithoutCancel(ctx), &setpointv1.DeleteSessionRequest{SessionId: *id})
		}()
	}
	if err := b.build(ctx); err != nil {
		return fmt.Errorf("build the sessions: %w", err)
	}
	alone, err := b.alone(ctx)
	if err != nil {
		return err
	}
	together, err := b.together(ctx)
	if err != nil {
		return err
	}
	return b.judge(map[string]float64{"alone": alone, fmt.Sprintf("of %d callers", b.callers): together})
}

// judge fails where a write costs too much.
func (b *accessBench) judge(ratios map[string]float64) error {
	var slow []string
	for what, ratio := range ratios {
		if ratio >= b.most {
			slow = append(slow, fmt.Sprintf("%s %.2f times", what, ratio))
		}
	}
	slices.Sort(slow)
	if len(slow) == 0 {
		return nil
	}
	return fmt.Errorf("a SetVariable with %d rules is %s as long as with one, at most is %.2f", b.rules, strings.Join(slow, ", "), b.most)
}

func (b *accessBench) line(format string, args ...any) { _, _ = fmt.Fprintf(b.out, format, args...) }

// build registers the variables and adds the rules: in one session the caller has one rule, by its name, in the other one of many
// patterns matches it.
func (b *accessBench) build(ctx context.Context) error {
	for _, session := range []string{b.one, b.many} {
		req := &setpointv1.BatchRegisterVariablesRequest{SessionId: session, Atomic: true}
		for i := range b.variables {
			req.Registrations = append(req.Registrations, &setpointv1.VariableRegistration{
				Name: variable(i), Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Value: client.Integer(0),
			})
		}
		if _, err := b.owner.Variables.BatchRegisterVariables(ctx, req); err != nil {
			return err
		}
	}
	if err := b.add(ctx, b.one, allows("user:caller-7", setpointv1.Permission_PERMISSION_WRITE)); err != nil {
		return err
	}
	for i := range b.whole {
		rule := allows(stranger(i), setpointv1.Permission_PERMISSION_WRITE)
		switch i {
		case 0:
			rule = allows("user:caller-*", setpointv1.Permission_PERMISSION_WRITE)
		case 1:
			rule = allows("user:reader", setpointv1.Permission_PERMISSION_READ)
		}
		if err := b.add(ctx, b.many, rule); err != nil {
			return err
		}
	}
	n := b.whole
	for v := range b.variables {
		req := &setpointv1.SetVariablePermissionsRequest{SessionId: b.many, Variable: variable(v)}
		for i := b.whole + v; i < b.rules; i += b.variables {
			req.Rules = append(req.Rules, allows(stranger(n), setpointv1.Permission_PERMISSION_OPTIMIZE))
			n++
		}
		if len(req.GetRules()) == 0 {
			break
		}
		if _, err := b.owner.Access.SetVariablePermissions(ctx, req); err != nil {
			return err
		}
	}
	return nil
}

func (b *accessBench) add(ctx context.Context, session string, rule *setpointv1.AccessRuleSpec) error {
	_, err := b.owner.Access.AddAccessRule(ctx, &setpointv1.AddAccessRuleRequest{SessionId: session, Rule: rule})
	return err
}

func allows(subject string, permission setpointv1.Permission) *setpointv1.AccessRuleSpec {
	return &setpointv1.AccessRuleSpec{Subject: subject, Permissions: []setpointv1.Permission{permission}}
}

// stranger is a subject that is about nobody here; every second one has a wildcard.
func stranger(i int) string {
	if i%2 == 0 {
		return fmt.Sprintf("user:*-of-team-%d", i)
	}
	return fmt.Sprintf("user:stranger-%d", i)
}

// accessOperation is a call in one of the sessions.
type accessOperation struct {
	name string
	call func(ctx context.Context, c *client.Client, session string, i int) error
	// refused: the caller that may not is timed, and nobody else.
	refused bool
	// long: a tenth of the calls will do.
	long bool
}

// times is how often the operation is called in a round.
func (o accessOperation) times(calls int) int {
	if o.long {
		return max(1, calls/10)
	}
	return calls
}

func (b *accessBench) operations() []accessOperation {
	set := func(ctx context.Context, c *client.Client, session string, i int) error {
		return write(ctx, c, session, variable(i%b.variables), int64(i), nil)
	}
	return []accessOperation{
		{name: "SetVariable", call: set},
		{name: "GetVariable", call: func(ctx context.Context, c *client.Client, session string, i int) error {
			_, err := c.Variables.GetVariable(ctx, &setpointv1.GetVariableRequest{SessionId: session, Variable: variable(i % b.variables)})
			return err
		}},
		{name: fmt.Sprintf("ListVariables of %d", b.variables), long: true, call: func(ctx context.Context, c *client.Client, session string, _ int) error {
			list, err := c.Variables.ListVariables(ctx, &setpointv1.ListVariablesRequest{SessionId: session, PageSize: 1000})
			if err == nil && len(list.GetVariables()) != b.variables {
				err = fmt.Errorf("%d are listed", len(list.GetVariables()))
			}
			return err
		}},
		{name: "CheckAccess", call: func(ctx context.Context, c *client.Client, session string, i int) error {
			answer, err := c.Access.CheckAccess(ctx, &setpointv1.CheckAccessRequest{
				SessionId: session, Variable: variable(i % b.variables), Permission: setpointv1.Permission_PERMISSION_WRITE,
			})
			if err == nil && !answer.GetAllowed() {
				err = errors.New(answer.GetReason())
			}
			return err
		}},
		{name: "SetVariable denied", refused: true, call: func(ctx context.Context, c *client.Client, session string, i int) error {
			if err := set(ctx, c, session, i); !errors.Is(err, client.ErrAccessDenied) {
				return errors.Join(errors.New("a write was not denied"), err)
			}
			return nil
		}},
	}
}

// contestant is who calls in which session.
type contestant struct {
	client  *client.Client
	session string
}

func (b *accessBench) contestants(o accessOperation) []contestant {
	if o.refused {
		return []contestant{{b.reader, b.many}}
	}
	return []contestant{{b.caller, b.one}, {b.caller, b.many}, {b.owner, b.many}}
}

// alone times each operation in the sessions in turn, call by call, and returns how much longer a write is with many rules.
func (b *accessBench) alone(ctx context.Context) (float64, error) {
	b.line("alone, p50 ms\twith one rule\twith %d\tratio\tthe owner, with %d\tratio\t\n", b.rules, b.rules)
	operations := b.operations()
	found := 0.
	for i, o := range operations {
		who := b.contestants(o)
		medians := make([][]time.Duration, len(who))
		var ratios, ownerRatios []float64
		for round := range b.rounds {
			took, err := b.round(ctx, o, who, round)
			if err != nil {
				return 0, fmt.Errorf("%s: %w", o.name, err)
			}
			for j := range who {
				medians[j] = append(medians[j], percentile(took[j], .5))
			}
			if !o.refused {
				ratios = append(ratios, ratio(medians[1][round], medians[0][round]))
				ownerRatios = append(ownerRatios, ratio(medians[2][round], medians[0][round]))
			}
		}
		if o.refused {
			b.line("%s\t\t%.2f\t\t\t\t\n", o.name, milliseconds(median(medians[0])))
			continue
		}
		b.line("%s\t%.2f\t%.2f\t%.2f\t%.2f\t%.2f\t\n", o.name, milliseconds(median(medians[0])), milliseconds(median(medians[1])),
			median(ratios), milliseconds(median(medians[2])), median(ownerRatios))
		if i == 0 {
			found = median(ratios)
		}
	}
	return found, b.out.Flush()
}

// round has the contestants call in turn; the times of each are sorted.
func (b *accessBench) round(ctx context.Context, o accessOperation, who []contestant, round int) ([][]time.Duration, error) {
	took := make([][]time.Duration, len(who))
	calls := o.times(b.calls)
	for i := range calls + calls/10 {
		for j, c := range who {
			began := time.Now()
			if err := o.call(ctx, c.client, c.session, round*calls+i); err != nil {
				return nil, err
			}
			if i >= calls/10 {
				took[j] = append(took[j], time.Since(began))
			}
		}
	}
	for _, t := range took {
		slices.Sort(t)
	}
	return took, nil
}

// together times writes of many callers at once, in the sessions in turn, and returns how much longer one takes with many rules.
func (b *accessBench) together(ctx context.Context) (float64, error) {
	o := b.operations()[0]
	who := b.contestants(o)
	rates := make([][]float64, len(who))
	var ratios, ownerRatios []float64
	for range b.rounds {
		for j, c := range who {
			took, err := b.rush(ctx, o, c)
			if err != nil {
				return 0, fmt.Errorf("%d callers: %w", b.callers, err)
			}
			rates[j] = append(rates[j], float64(b.callers*b.calls)/took.Seconds())
		}
		last := len(rates[0]) - 1
		ratios = append(ratios, rates[0][last]/rates[1][last])
		ownerRatios = append(ownerRatios, rates[0][last]/rates[2][last])
	}
	b.line("%d callers, per s\twith one rule\twith %d\tratio\tthe owner, with %d\tratio\t\n", b.callers, b.rules, b.rules)
	b.line("%s\t%.0f\t%.0f\t%.2f\t%.0f\t%.2f\t\n", o.name, median(rates[0]), median(rates[1]), median(ratios), median(rates[2]),
		median(ownerRatios))
	return median(ratios), b.out.Flush()
}

// rush has many call at once, and returns how long all of it took.
func (b *accessBench) rush(ctx context.Context, o accessOperation, c contestant) (time.Duration, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var all sync.WaitGroup
	var next atomic.Int64
	began := time.Now()
	for range b.callers {
		all.Go(func() {
			for range b.calls {
				if err := o.call(ctx, c.client, c.session, int(next.Add(1))); err != nil {
					cancel(err)
					return
				}
			}
		})
	}
	all.Wait()
	return time.Since(began), context.Cause(ctx)
}

func median[T time.Duration | float64](of []T) T {
	sorted := slices.Sorted(slices.Values(of))
	return sorted[len(sorted)/2]
}
