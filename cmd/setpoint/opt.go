package main

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

const optLong = `An optimization is the exclusive right to change one or more variables, held by a lease.
While it holds, nobody else sets, deletes, rolls back or constrains them anew
(ALREADY_OPTIMIZING), and what is written under it carries its LEASE: OPT:TOKEN, as
'setpoint opt start' prints it. That goes to 'opt renew', 'opt report' and 'opt stop',
and to --lease of the commands that write.

A lease is over when nobody has renewed it, or reported a trial, for its ttl. Then a
write with it is refused (LEASE_LOST), though nobody may have the variables since. The
record of the optimization, with its trials, stays.`

func newOptCommand(c *cli) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "opt",
		Short: "Optimizations: who may change variables, and the trials",
		Long:  optLong,
		Example: `  setpoint opt start learning_rate momentum --objective loss --direction minimize
  setpoint opt report "$LEASE" learning_rate=0.01 momentum=0.9 --metric loss=0.32
  setpoint opt stop "$LEASE" --apply-best
  setpoint opt status learning_rate`,
		Args: cobra.ArbitraryArgs,
		RunE: needsSubcommand,
	}
	cmd.AddCommand(newOptStartCommand(c), newOptRenewCommand(c), newOptReportCommand(c), newOptStopCommand(c),
		newOptGetCommand(c), newOptListCommand(c), newOptStatusCommand(c), newOptTrialsCommand(c))
	return cmd
}

const optStartLong = `Asks for the right to change variables, all of them or none, and shows the LEASE.

--conflict says what to do where somebody else has one of them, or waits for it:

  abort     fail at once: ALREADY_OPTIMIZING names who
  wait      queue up; first in, first out
  preempt   with a higher --priority than all who have them: they are told, and have
            --grace until they lose them; else as abort

A command that waits shows its place in the queue on standard error. It goes on where
the connection breaks or the server starts again, gives its place up when it is
interrupted, and prints the optimization when it has the variables. Nobody renews the
lease after that: 'opt renew' or 'opt report' has to, before --ttl is over. That is also
how long the command blocks the queue if it is killed.

--objective names the metric that tells which trial is the best, and --direction which
of its values are better. With --progress-timeout, a lease that is renewed but not
reported under for that long ends too.

ALREADY_OPTIMIZING: somebody has one of the variables, or has had it for all of
--max-wait. DERIVED_VARIABLE: an expression computes one of them. VARIABLE_NOT_FOUND:
there is no such variable. OPTIMIZATION_ENDED: somebody stopped it while it waited.`

func newOptStartCommand(c *cli) *cobra.Command {
	f := &startFlags{}
	request := &setpointv1.StartOptimizationRequest{}
	cmd := &cobra.Command{
		Use:   "start NAME...",
		Short: "Get the right to change variables",
		Long:  optStartLong,
		Example: `  setpoint opt start learning_rate
  setpoint opt start learning_rate momentum --objective loss --direction minimize
  setpoint opt start learning_rate --ttl 5m --progress-timeout 1h
  setpoint opt start learning_rate --conflict wait --max-wait 1h
  setpoint opt start learning_rate --conflict preempt --priority 10 --grace 30s
  setpoint opt start lr -o json | jq -r '"\(.optimization_id):\(.fencing_token)"'`,
		Args:              takes("NAME..."),
		ValidArgsFunction: c.completeVariables,
	}
	f.add(cmd, request)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := f.read(c, cmd, request); err != nil {
			return err
		}
		api, err := c.connect(cmd)
		if err != nil {
			return err
		}
		request.SessionId, request.Variables = c.session, args
		optimization, err := c.startOptimization(cmd.Context(), api, request)
		if err != nil {
			return err
		}
		if optimization.GetState() == setpointv1.OptimizationState_OPTIMIZATION_STATE_WAITING {
			if optimization, err = c.waitForGrant(cmd.Context(), api, optimization); err != nil {
				return err
			}
		}
		return c.print(optimization, func() string { return c.optimizationBlock(optimization) })
	}
	return cmd
}

// startFlags are the flags of 'opt start' that are not the request's own fields.
type startFlags struct {
	ttl, maxWait, grace, progress time.Duration
	conflict, metric, direction   string
	config, process               string
}

func (f *startFlags) add(cmd *cobra.Command, request *setpointv1.StartOptimizationRequest) {
	flags := cmd.Flags()
	flags.StringVar(&request.OptimizerId, "optimizer", "", "`name` of who tunes, for people; left out, it is made up")
	flags.StringVar(&f.process, "process", "", "`host:pid` that it runs as; left out, it is the process that runs this command")
	flags.DurationVar(&f.ttl, "ttl", time.Minute, "how `long` the lease holds unless it is renewed: 1s to 1h")
	flags.StringVar(&f.conflict, "conflict", "abort", "`what` to do where somebody has a variable: abort, wait or preempt")
	flags.Int32Var(&request.Priority, "priority", 0,
		"`number` against which others preempt, and with which this one does: -1000000 to 1000000")
	flags.DurationVar(&f.maxWait, "max-wait", 0, "how `long` to wait at most: 0s to 720h; left out, for ever")
	flags.DurationVar(&f.grace, "grace", 5*time.Second, "how `long` those who are preempted may still write: 0s to 1h")
	flags.DurationVar(&f.progress, "progress-timeout", 0,
		"how `long` the lease holds without a report, though it be renewed: 1s to 720h; left out, for ever")
	flags.StringVar(&f.metric, "objective", "", "the `metric` that says which trial is the best")
	flags.StringVar(&f.direction, "direction", "", "`which` of its values are better: maximize (the default) or minimize")
	flags.StringVar(&f.config, "config", "", "`JSON or @FILE`: an object to keep with the optimization")
	addRequestIDFlag(cmd, &request.RequestId)
}

// read puts what was given into the request.
func (f *startFlags) read(c *cli, cmd *cobra.Command, request *setpointv1.StartOptimizationRequest) error {
	given := cmd.Flags().Changed
	conflict, ok := setpointv1.ConflictStrategy_value["CONFLICT_STRATEGY_"+strings.ToUpper(f.conflict)]
	switch {
	case !ok || conflict == 0:
		return usagef("--conflict is abort, wait or preempt, not %q", f.conflict)
	case given("max-wait") && f.conflict == "abort":
		return usagef("--max-wait is for --conflict wait or preempt")
	case given("grace") && f.conflict != "preempt":
		return usagef("--grace is for --conflict preempt")
	case given("objective") && f.metric == "":
		return usagef("--objective is the name of a metric, and not empty")
	case given("direction") && f.metric == "":
		return usagef("--direction is for --objective")
	}
	if given("conflict") {
		request.Conflict = setpointv1.ConflictStrategy(conflict)
	}
	ifGiven := func(flag string, value time.Duration) *durationpb.Duration {
		if !given(flag) {
			return nil
		}
		return durationpb.New(value)
	}
	request.Ttl, request.MaxWait = ifGiven("ttl", f.ttl), ifGiven("max-wait", f.maxWait)
	request.Grace, request.ProgressTimeout = ifGiven("grace", f.grace), ifGiven("progress-timeout", f.progress)
	direction, err := parseDirection(f.direction)
	if err != nil {
		return err
	}
	if f.metric != "" {
		request.Objective = &setpointv1.Objective{Metric: f.metric, Direction: direction}
	}
	if request.OptimizerProcess = f.process; !given("process") {
		request.OptimizerProcess = parentProcess()
	}
	if given("config") {
		request.Config, err = c.readObject("--config", f.config)
	}
	return err
}

// parentProcess is what runs this command, as host:pid. The command itself is gone before anybody could look at it.
func parentProcess() string {
	host, err := os.Hostname()
	if err != nil {
		return ""
	}
	return host + ":" + strconv.Itoa(os.Getppid())
}

// parseDirection reads a --direction; none is unspecified.
func parseDirection(text string) (setpointv1.Direction, error) {
	if text == "" {
		return setpointv1.Direction_DIRECTION_UNSPECIFIED, nil
	}
	direction, ok := setpointv1.Direction_value["DIRECTION_"+strings.ToUpper(text)]
	if !ok || direction == 0 {
		return 0, usagef("--direction is maximize or minimize, not %q", text)
	}
	return setpointv1.Direction(direction), nil
}

// readObject reads a flag that holds a JSON object, or the name of a file with one.
func (c *cli) readObject(flag, argument string) (*structpb.Struct, error) {
	in, err := c.readInput(argument)
	if err != nil {
		return nil, err
	}
	value, err := parseValue(in)
	if err != nil {
		return nil, usagef("%s: %v", flag, err)
	}
	object := value.value.GetJson().GetStructValue()
	if object == nil {
		return nil, usagef("%s is not a JSON object", flag)
	}
	return object, nil
}

func newOptRenewCommand(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:   "renew LEASE",
		Short: "Extend a lease",
		Long: `Extends a lease to its ttl from now. An id without a token, instead of a LEASE, extends
the stay in the queue of an optimization that waits.

A lease that is being preempted is not extended beyond the grace. A note on standard
error says who gets the variables, and until when they may be written; the command
succeeds, for the lease still holds.

What takes longer than the ttl needs somebody who renews meanwhile, until that fails:

  while setpoint opt renew "$LEASE" >/dev/null; do sleep 20; done &

OPTIMIZATION_ENDED: it is over. LEASE_LOST: the token is not that of the lease.`,
		Example: `  setpoint opt renew "$LEASE"
  setpoint opt renew "$ID" -o json | jq -r .remaining`,
		Args:              takes("LEASE"),
		ValidArgsFunction: completes(c.completeOpen),
		RunE: func(cmd *cobra.Command, args []string) error {
			lease, err := parseOptimization(args[0])
			if err != nil {
				return err
			}
			api, err := c.connect(cmd)
			if err != nil {
				return err
			}
			optimization, err := api.Optimizations.RenewOptimization(cmd.Context(), &setpointv1.RenewOptimizationRequest{
				SessionId: c.session, OptimizationId: lease.GetOptimizationId(), FencingToken: lease.GetFencingToken()})
			if err != nil {
				return explainToken(err, lease)
			}
			if err := c.notePreemption(optimization.GetPreemption()); err != nil {
				return err
			}
			return c.print(optimization, func() string { return c.renewLine(optimization) })
		},
	}
}

// renewLine leaves out what notePreemption says.
func (c *cli) renewLine(o *setpointv1.Optimization) string {
	if o.GetPreemption() != nil {
		return fmt.Sprintf("%s still holds  (%s%s)\n", printable(o.GetOptimizationId()), stateLine(o), unlessText(o))
	}
	return fmt.Sprintf("renewed %s  (%s, until %s)\n", printable(o.GetOptimizationId()), stateLine(o), c.timeText(o.GetExpiresAt()))
}

// explainToken adds to a lost lease that it may only be that no token was given.
func explainToken(err error, lease *setpointv1.Lease) error {
	if lease.GetFencingToken() == 0 && errors.Is(err, client.Reason(setpointv1.ErrorReason_LEASE_LOST)) {
		return &hintedError{error: err, hint: "an optimization that has its lease is renewed as OPT:TOKEN"}
	}
	return err
}

// notePreemption tells a holder that it is about to lose its variables.
func (c *cli) notePreemption(p *setpointv1.Preemption) error {
	if p == nil {
		return nil
	}
	if _, err := fmt.Fprintf(c.stderr, "note: the optimization is being preempted by %s, and may write until %s\n",
		takerText(p), c.timeText(p.GetDeadline())); err != nil {
		return fmt.Errorf("write note: %w", err)
	}
	return nil
}

const optStopLong = `Ends an optimization, and with it the lease or the place in the queue, and shows its
variables' values as it leaves them. It takes the LEASE, or the id alone of whoever
started it; --force, with a --reason, is for the session's owner and for admins.

Without --state it is completed, but cancelled if it waits or is forced. With
--apply-best the variables are first set to the values of the best trial; what follows
from that is shown as of 'setpoint var set'. Without, they keep the values they have.

OPTIMIZATION_ENDED: it is over already. LEASE_LOST: the token is not that of the lease.
ACCESS_DENIED: it is somebody else's. With --apply-best also what 'setpoint var set'
meets, such as CONSTRAINT_VIOLATION: then the optimization goes on.`

func newOptStopCommand(c *cli) *cobra.Command {
	var state string
	var all bool
	request := &setpointv1.StopOptimizationRequest{}
	cmd := &cobra.Command{
		Use:   "stop ID[:TOKEN]",
		Short: "End an optimization",
		Long:  optStopLong,
		Example: `  setpoint opt stop "$LEASE" --apply-best
  setpoint opt stop "$LEASE" --state failed --reason "loss is NaN since trial 31"
  setpoint opt stop "$ID" --force --reason "its machine is gone"`,
		Args:              takes("ID[:TOKEN]"),
		ValidArgsFunction: completes(c.completeOpen),
	}
	flags := cmd.Flags()
	flags.StringVar(&state, "state", "", "how it `ended`: completed, failed or cancelled")
	flags.BoolVar(&request.ApplyBest, "apply-best", false, "set the variables to the values of the best trial")
	flags.BoolVar(&request.Force, "force", false, "stop somebody else's; needs --reason")
	flags.StringVar(&request.Reason, "reason", "", "`why`, for those who look at it later")
	addRequestIDFlag(cmd, &request.RequestId)
	addAllEffectsFlag(cmd, &all)
	_ = cmd.RegisterFlagCompletionFunc("state", completeWords(stopStates...)) // fails only for a flag that is not there
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		lease, err := parseOptimization(args[0])
		if err != nil {
			return err
		}
		if request.State, err = parseStopState(state); err != nil {
			return err
		}
		if request.GetForce() && request.GetReason() == "" {
			return usagef("--force needs a --reason")
		}
		request.OptimizationId = lease.GetOptimizationId()
		if lease.GetFencingToken() != 0 {
			request.FencingToken = proto.Int64(lease.GetFencingToken())
		}
		api, err := c.connect(cmd)
		if err != nil {
			return err
		}
		request.SessionId = c.session
		answer, err := api.Optimizations.StopOptimization(cmd.Context(), request)
		if err != nil {
			return err
		}
		return c.print(answer, func() string {
			return c.stopText(request, answer) + c.effectsText(effects{recomputed: answer.GetRecomputed(),
				stale: answer.GetStale(), omitted: answer.GetValuesOmitted()}, all)
		})
	}
	return cmd
}

// stopStates are the states that somebody may stop an optimization in.
var stopStates = []string{"completed", "failed", "cancelled"}

func parseStopState(text string) (setpointv1.OptimizationState, error) {
	switch {
	case text == "":
		return setpointv1.OptimizationState_OPTIMIZATION_STATE_UNSPECIFIED, nil
	case !slices.Contains(stopStates, strings.ToLower(text)):
		return 0, usagef("--state is completed, failed or cancelled, not %q", text)
	}
	return parseState(text)
}

// parseState reads the name of a state.
func parseState(text string) (setpointv1.OptimizationState, error) {
	state, ok := setpointv1.OptimizationState_value[statePrefix+strings.ToUpper(text)]
	if !ok || state == 0 {
		return 0, usagef("no state %q; the states are %s", text, enumList(setpointv1.OptimizationState_name, statePrefix))
	}
	return setpointv1.OptimizationState(state), nil
}

// stopText says how the optimization ended, and what it leaves.
func (c *cli) stopText(request *setpointv1.StopOptimizationRequest, answer *setpointv1.StopOptimizationResponse) string {
	o := answer.GetOptimization()
	notes := []string{trialsText(o)}
	if best := bestText(o, exactly); best != "" {
		notes = append(notes, "the best: "+best)
	}
	switch {
	case request.GetApplyBest():
		notes = append(notes, "its values are set")
	case !areFinal(o.GetBestTrial().GetValues(), answer.GetFinalValues()):
		notes = append(notes, "its values were not set (--apply-best sets them)")
	}
	text := &strings.Builder{}
	fmt.Fprintf(text, "%s is %s  (%s)\n", printable(o.GetOptimizationId()), stateName(o.GetState()), strings.Join(notes, "; "))
	t := &table{out: text, width: c.screen.width, columns: []column{{title: "VARIABLE"}, {title: "VALUE", long: true}}}
	for _, name := range slices.Sorted(maps.Keys(answer.GetFinalValues())) {
		t.rows = append(t.rows, []string{printable(name), valueText(answer.GetFinalValues()[name])})
	}
	if len(t.rows) > 0 {
		writePart(text, t, 0)
	}
	return text.String()
}

// areFinal tells whether values are those that the variables were left with.
func areFinal(values, final map[string]*setpointv1.Value) bool {
	for name, value := range values {
		if !proto.Equal(value, final[name]) {
			return false
		}
	}
	return true
}
