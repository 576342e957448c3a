package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

func newOptGetCommand(c *cli) *cobra.Command {
	var checkpoint string
	cmd := &cobra.Command{
		Use:   "get ID",
		Short: "Show an optimization",
		Long: `Shows an optimization, ended ones too, and everything about it. ID may be a LEASE. The
LEASE is shown to whoever started it, while it holds.

--checkpoint also writes the bytes of the latest checkpoint to a file: its own, or,
while it has left none, those of the optimization that had one of its variables before.
NO_CHECKPOINT: there are none.

OPTIMIZATION_NOT_FOUND: the session has no such optimization.`,
		Example: `  setpoint opt get "$ID"
  setpoint opt get "$ID" --checkpoint state.bin
  setpoint opt get "$ID" -o json | jq .best_trial.metrics`,
		Args:              takes("ID"),
		ValidArgsFunction: completes(c.completeOptimizations),
	}
	cmd.Flags().StringVar(&checkpoint, "checkpoint", "", "`file` to write the latest checkpoint to")
	_ = cmd.RegisterFlagCompletionFunc("checkpoint", completeFiles) // fails only for a flag that is not there
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		lease, err := parseOptimization(args[0])
		if err != nil {
			return err
		}
		api, err := c.connect(cmd)
		if err != nil {
			return err
		}
		optimization, err := api.Optimizations.GetOptimization(cmd.Context(), &setpointv1.GetOptimizationRequest{
			SessionId: c.session, OptimizationId: lease.GetOptimizationId()})
		if err != nil {
			return err
		}
		if checkpoint != "" {
			if err := writeCheckpoint(checkpoint, optimization); err != nil {
				return err
			}
		}
		return c.print(optimization, func() string { return c.optimizationBlock(optimization) })
	}
	return cmd
}

// writeCheckpoint makes a file of the latest checkpoint.
func writeCheckpoint(path string, o *setpointv1.Optimization) error {
	if o.GetCheckpoint() == nil {
		return &reasonError{reason: "NO_CHECKPOINT", message: fmt.Sprintf("%s has no checkpoint", o.GetOptimizationId())}
	}
	return writeFile(path, func(w io.Writer) error {
		if _, err := w.Write(o.GetCheckpoint().GetData()); err != nil {
			return fmt.Errorf("write checkpoint: %w", err)
		}
		return nil
	})
}

// optimizationBlock is everything about an optimization. The LEASE is what the caller needs next, so it comes first.
func (c *cli) optimizationBlock(o *setpointv1.Optimization) string {
	expires := c.timeText(o.GetExpiresAt()) + unlessText(o)
	if o.GetExpiresAt() == nil || o.GetEndedAt() != nil {
		expires = "" // it is over
	}
	priority := ""
	if o.GetPriority() != 0 {
		priority = strconv.Itoa(int(o.GetPriority()))
	}
	config := ""
	if o.GetConfig() != nil {
		config = messageText(o.GetConfig())
	}
	return block(
		[2]string{"lease", leaseText(o)},
		[2]string{"state", stateLine(o)},
		[2]string{"preempted", c.preemptedText(o)},
		[2]string{"reason", printable(o.GetEndReason())},
		[2]string{"variables", namesText(o.GetVariables())},
		[2]string{"optimizer", printable(o.GetOptimizerId())},
		[2]string{"process", printable(o.GetOptimizerProcess())},
		[2]string{"objective", objectiveText(o.GetObjective())},
		[2]string{"trials", trialsText(o)},
		[2]string{"best", bestText(o, exactly)},
		[2]string{"best values", valuesText(o.GetBestTrial().GetValues(), exactly)},
		[2]string{"last report", c.timeOrNothing(o.GetLastReportAt())},
		[2]string{"checkpoint", checkpointText(o)},
		[2]string{"config", config},
		[2]string{"requested", c.timeOrNothing(o.GetRequestedAt())},
		[2]string{"started", c.timeOrNothing(o.GetStartedAt())},
		[2]string{"expires", expires},
		[2]string{"ended", c.timeOrNothing(o.GetEndedAt())},
		[2]string{"ttl", durationOrNothing(o.GetTtl())},
		[2]string{"progress timeout", durationOrNothing(o.GetProgressTimeout())},
		[2]string{"conflict", conflictText(o.GetConflict())},
		[2]string{"priority", priority},
		[2]string{"started by", printable(o.GetStartedBy())},
		[2]string{"session", printable(o.GetSessionId())},
		[2]string{"id", printable(o.GetOptimizationId())},
	)
}

func newOptListCommand(c *cli) *cobra.Command {
	var limit int
	var states []string
	request := &setpointv1.ListOptimizationsRequest{}
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List optimizations, newest first",
		Long: `Lists the session's optimizations, newest first, ended ones too. --state picks those in
some states:
` + wrapped(strings.Fields(enumList(setpointv1.OptimizationState_name, statePrefix)), 84) + `.

NOTE is how long the lease still holds, the place in the queue, or why it ended. Long
numbers are rounded, and a narrow terminal leaves columns out: -o json has everything,
and next_page_token there is not empty where --limit left some out.`,
		Example: `  setpoint opt list
  setpoint opt list --state active --state preempting --state waiting
  setpoint opt list --variable learning_rate --limit 1`,
		Args: takes(),
	}
	flags := cmd.Flags()
	flags.StringArrayVar(&states, "state", nil, "only those in this `state`; repeatable")
	flags.StringVar(&request.Variable, "variable", "", "only those of this `variable`")
	flags.IntVar(&limit, "limit", 100, "greatest `number` of optimizations; 0 is all")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if limit < 0 {
			return usagef("--limit %d is negative", limit)
		}
		for _, name := range states {
			state, err := parseState(name)
			if err != nil {
				return err
			}
			request.States = append(request.States, state)
		}
		api, err := c.connect(cmd)
		if err != nil {
			return err
		}
		request.SessionId = c.session
		optimizations := list[*setpointv1.Optimization]{
			field: "optimizations",
			noun:  "optimizations",
			columns: []column{{title: "OPTIMIZATION"}, {title: "STATE"}, {title: "REQUESTED", spare: 1},
				{title: "OPTIMIZER", long: true, spare: 4},
				{title: "VARIABLES", long: true}, {title: "TRIALS", right: true, spare: 3},
				{title: "BEST", long: true, spare: 2}, {title: "NOTE", long: true, spare: 5}},
			row: func(o *setpointv1.Optimization) []string {
				return []string{printable(o.GetOptimizationId()), stateName(o.GetState()), c.timeText(o.GetRequestedAt()),
					printable(o.GetOptimizerId()), namesText(o.GetVariables()), strconv.FormatInt(o.GetTrialCount(), 10),
					orAbsent(bestText(o, rounded)), orAbsent(cmp.Or(listNote(o), printable(o.GetEndReason())))}
			},
			fetch: func(token string, size int32) ([]*setpointv1.Optimization, string, error) {
				request.PageToken, request.PageSize = token, size
				page, err := api.Optimizations.ListOptimizations(cmd.Context(), request)
				return page.GetOptimizations(), page.GetNextPageToken(), err
			},
		}
		return optimizations.run(c, limit)
	}
	return cmd
}

func newOptStatusCommand(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:   "status NAME",
		Short: "Show who optimizes a variable",
		Long: `Shows who has the right to change a variable: since when and for how long yet, how far
they have come, and who is waiting. That nobody has it is an answer, and no failure.

VARIABLE_NOT_FOUND: the session has no such variable.`,
		Example: `  setpoint opt status learning_rate
  setpoint opt status learning_rate -o json | jq .optimizing`,
		Args:              takes("NAME"),
		ValidArgsFunction: completes(c.completeVariables),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := c.connect(cmd)
			if err != nil {
				return err
			}
			status, err := api.Optimizations.GetOptimizationStatus(cmd.Context(),
				&setpointv1.GetOptimizationStatusRequest{SessionId: c.session, Variable: args[0]})
			if err != nil {
				return err
			}
			return c.print(status, func() string { return c.statusText(args[0], status) })
		},
	}
}

// statusText tells first who it is, and then how they are doing.
func (c *cli) statusText(name string, status *setpointv1.GetOptimizationStatusResponse) string {
	name = printable(name)
	waiting := int(status.GetWaitingCount())
	queue := counted(waiting, "waiter", "waiters")
	if waiting > 0 {
		queue += fmt.Sprintf(" ('setpoint opt list --variable %s --state waiting' shows them)", shellWord(name))
	}
	if !status.GetOptimizing() {
		if waiting > 0 {
			return fmt.Sprintf("nobody optimizes %s; %s\n", name, queue)
		}
		return fmt.Sprintf("nobody optimizes %s\n", name)
	}
	if waiting == 0 {
		queue = "nobody waits for it"
	}
	o := status.GetOptimization()
	now := databaseTime(o)
	lease := "until " + c.timeText(o.GetExpiresAt())
	if o.GetRemaining() != nil {
		lease = fmt.Sprintf("%s left, until %s", roughly(o.GetRemaining().AsDuration()), c.timeText(o.GetExpiresAt()))
	}
	lease += unlessText(o)
	report := "none yet"
	if o.GetLastReportAt() != nil {
		report = c.timeText(o.GetLastReportAt()) + agoText(o.GetLastReportAt(), now)
	}
	if o.GetProgressTimeout() != nil {
		report += fmt.Sprintf("; due every %s", durationText(o.GetProgressTimeout().AsDuration()))
	}
	return fmt.Sprintf("%s optimizes %s, since %s%s\n\n", printable(o.GetOptimizerId()), name, c.timeText(o.GetStartedAt()),
		agoText(o.GetStartedAt(), now)) + block(
		[2]string{"lease", lease},
		[2]string{"preempted", c.preemptedText(o)},
		[2]string{"queue", queue},
		[2]string{"variables", namesText(o.GetVariables())},
		[2]string{"objective", objectiveText(o.GetObjective())},
		[2]string{"trials", trialsText(o)},
		[2]string{"best", bestText(o, exactly)},
		[2]string{"best values", valuesText(o.GetBestTrial().GetValues(), exactly)},
		[2]string{"last report", report},
		[2]string{"process", printable(o.GetOptimizerProcess())},
		[2]string{"started by", printable(o.GetStartedBy())},
		[2]string{"id", printable(o.GetOptimizationId())},
	)
}

const statePrefix = "OPTIMIZATION_STATE_"

func stateName(state setpointv1.OptimizationState) string {
	return enumText(state.String(), statePrefix)
}

// holding are the states in which an optimization has its lease.
var holding = []setpointv1.OptimizationState{setpointv1.OptimizationState_OPTIMIZATION_STATE_ACTIVE,
	setpointv1.OptimizationState_OPTIMIZATION_STATE_PREEMPTING}

func hasLease(o *setpointv1.Optimization) bool {
	return slices.Contains(holding, o.GetState())
}

// stateLine is an optimization's state, with what there is to know while it is open.
func stateLine(o *setpointv1.Optimization) string {
	if note := stateNote(o); note != "" {
		return stateName(o.GetState()) + ", " + note
	}
	return stateName(o.GetState())
}

// stateNote is how long an open optimization has, or which place; empty of one that has ended.
func stateNote(o *setpointv1.Optimization) string {
	var notes []string
	if o.GetState() == setpointv1.OptimizationState_OPTIMIZATION_STATE_WAITING && o.GetQueuePosition() > 0 {
		notes = append(notes, placeText(o.GetQueuePosition()))
	}
	if hasLease(o) && o.GetRemaining() != nil {
		notes = append(notes, roughly(o.GetRemaining().AsDuration())+" left")
	}
	return strings.Join(notes, ", ")
}

// listNote is stateNote for where nothing else tells who is to have the variables.
func listNote(o *setpointv1.Optimization) string {
	note := stateNote(o)
	if p := o.GetPreemption(); p != nil {
		note += ", preempted by " + takerText(p)
	}
	return strings.TrimPrefix(note, ", ")
}

// unlessText says, after the time at which a lease ends, what moves that; empty: nothing does.
func unlessText(o *setpointv1.Optimization) string {
	if !hasLease(o) || o.GetExpiresAt() == nil {
		return ""
	}
	end := o.GetExpiresAt().AsTime()
	if p := o.GetPreemption(); p != nil && !end.Before(p.GetDeadline().AsTime()) {
		return ""
	}
	progress := cmp.Or(o.GetLastReportAt(), o.GetStartedAt())
	if limit := o.GetProgressTimeout(); limit != nil && progress != nil && !progress.AsTime().Add(limit.AsDuration()).After(end) {
		return " unless something is reported"
	}
	return " unless it is renewed"
}

// preemptedText is by whom an optimization is being preempted, and when it ends at the latest; empty: by nobody.
func (c *cli) preemptedText(o *setpointv1.Optimization) string {
	p := o.GetPreemption()
	if p == nil {
		return ""
	}
	return fmt.Sprintf("by %s at %s%s", takerText(p), c.timeText(p.GetDeadline()), inTime(p.GetDeadline(), databaseTime(o)))
}

// takerText is who preempts an optimization.
func takerText(p *setpointv1.Preemption) string {
	if p.GetOptimizerId() == "" {
		return printable(p.GetBy())
	}
	return fmt.Sprintf("%s (%s)", printable(p.GetOptimizerId()), printable(p.GetBy()))
}

func objectiveText(objective *setpointv1.Objective) string {
	if objective == nil {
		return ""
	}
	verb := "maximize"
	if objective.GetDirection() == setpointv1.Direction_DIRECTION_MINIMIZE {
		verb = "minimize"
	}
	return verb + " " + printable(objective.GetMetric())
}

// bestText is the best trial, by the one metric that makes it so.
func bestText(o *setpointv1.Optimization, number func(float64) string) string {
	best := o.GetBestTrial()
	if best == nil {
		return ""
	}
	text := fmt.Sprintf("trial %d", best.GetNumber())
	metric := o.GetObjective().GetMetric()
	if value, ok := best.GetMetrics()[metric]; ok {
		text += fmt.Sprintf(", %s=%s", printable(metric), number(value))
	}
	return text
}

// trialsText is how many trials were reported.
func trialsText(o *setpointv1.Optimization) string {
	text := counted(int(o.GetTrialCount()), "trial", "trials")
	if o.GetTrialCount() == 0 {
		text = "no trials"
	}
	if o.GetLateCount() > 0 {
		text += fmt.Sprintf(", %d late", o.GetLateCount())
	}
	return text
}

// checkpointText is what the latest checkpoint is, of which nobody wants to see the bytes.
func checkpointText(o *setpointv1.Optimization) string {
	checkpoint := o.GetCheckpoint()
	if checkpoint == nil {
		return ""
	}
	text := fmt.Sprintf("%s, of trial %d", counted(len(checkpoint.GetData()), "byte", "bytes"), checkpoint.GetTrialNumber())
	if checkpoint.GetOptimizationId() != o.GetOptimizationId() {
		text += " of " + printable(checkpoint.GetOptimizationId())
	}
	return text
}

func conflictText(conflict setpointv1.ConflictStrategy) string {
	if conflict == setpointv1.ConflictStrategy_CONFLICT_STRATEGY_UNSPECIFIED {
		return ""
	}
	return enumText(conflict.String(), "CONFLICT_STRATEGY_")
}

// metricsText is metrics on one line, by name.
func metricsText(metrics map[string]float64, number func(float64) string) string {
	pairs := make([]string, 0, len(metrics))
	for _, name := range slices.Sorted(maps.Keys(metrics)) {
		pairs = append(pairs, printable(name)+"="+number(metrics[name]))
	}
	return strings.Join(pairs, ", ")
}

// valuesText is values on one line, by the names of their variables.
func valuesText(values map[string]*setpointv1.Value, number func(float64) string) string {
	pairs := make([]string, 0, len(values))
	for _, name := range slices.Sorted(maps.Keys(values)) {
		text := valueText(values[name])
		if kind, ok := values[name].GetKind().(*setpointv1.Value_Number); ok {
			text = number(kind.Number)
		}
		pairs = append(pairs, printable(name)+"="+text)
	}
	return strings.Join(pairs, ", ")
}

// exactly is a number with all its digits, for where somebody may copy it.
func exactly(number float64) string { return numberText(number, 64) }

// rounded is a number for tables: six digits that count, and all that are before the point.
func rounded(number float64) string {
	const digits = 6
	if size := math.Abs(number); size >= 1e5 && size < 1e21 { // from there on JSON has an exponent
		return exactly(math.Round(number))
	}
	short, _ := strconv.ParseFloat(strconv.FormatFloat(number, 'g', digits, 64), 64) // the greatest is rounded down
	return exactly(short)
}

// plainWord is what a shell takes as it stands.
var plainWord = regexp.MustCompile(`^[A-Za-z0-9_./:@%+,-]+$`)

// shellWord is text as a word for a shell.
func shellWord(text string) string {
	if plainWord.MatchString(text) {
		return text
	}
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}

// optimizedNote says who has the right to change a variable; empty: nobody.
func optimizedNote(o *setpointv1.VariableOptimization) string {
	if o == nil {
		return ""
	}
	return "optimized by " + truncate(printable(o.GetOptimizerId()), nameWidth)
}

// optimizedBy is optimizedNote for a line that says so itself, and with all there is to know.
func (c *cli) optimizedBy(o *setpointv1.VariableOptimization) string {
	if o == nil {
		return ""
	}
	return fmt.Sprintf("%s (%s) since %s, lease until %s", printable(o.GetOptimizerId()),
		printable(o.GetOptimizationId()), c.timeText(o.GetStartedAt()), c.timeText(o.GetExpiresAt()))
}

func (c *cli) timeOrNothing(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return c.timeText(t)
}

func durationOrNothing(d *durationpb.Duration) string {
	if d == nil {
		return ""
	}
	return durationText(d.AsDuration())
}

// databaseTime is when the database answered, by its own clock, which need not agree with the one here; zero where the
// answer does not tell.
func databaseTime(o *setpointv1.Optimization) time.Time {
	if o.GetRemaining() == nil || o.GetExpiresAt() == nil {
		return time.Time{}
	}
	return o.GetExpiresAt().AsTime().Add(-o.GetRemaining().AsDuration())
}

// agoText is how long something is past; empty where now is not known.
func agoText(t *timestamppb.Timestamp, now time.Time) string {
	if t == nil || now.IsZero() {
		return ""
	}
	return fmt.Sprintf(" (%s ago)", roughly(now.Sub(t.AsTime())))
}

// inTime is how far something is ahead; empty where now is not known.
func inTime(t *timestamppb.Timestamp, now time.Time) string {
	if t == nil || now.IsZero() {
		return ""
	}
	return fmt.Sprintf(" (in %s)", roughly(t.AsTime().Sub(now)))
}

// roughly is a duration as exactly as people care; what is past is 0.
func roughly(d time.Duration) string {
	switch {
	case d <= 0:
		return "0s"
	case d < 10*time.Second:
		return max(d.Round(100*time.Millisecond), 100*time.Millisecond).String()
	case d < time.Hour:
		return durationText(d.Round(time.Second))
	}
	return durationText(d.Round(time.Minute))
}
