package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

const optReportLong = `Records a trial: the values that were tried, and the metrics that came of them. It
extends the lease, as 'opt renew' does.

VALUE is as of 'setpoint var set': JSON, a bare word, @FILE or -. With --apply the
variables are set to the values, as new versions, in the same transaction; a value that
is refused records no trial, and what follows is shown as of 'setpoint var set'.

A trial is known by its --number: a report of one that was made already changes nothing,
extends nothing, shows the first, and says so on standard error. Left out, it is the
next. With --step it is an intermediate report, which does not count for the best.

Metrics are numbers, NaN, Infinity or -Infinity; NaN is never best.

--checkpoint keeps bytes for whoever goes on, in place of the last ones; 'opt get
--checkpoint' reads them.

After the lease has ended, the report is kept as a late one, without its checkpoint: it
does not count, nothing is set, and the command says so on standard error and succeeds.
While the optimization is being preempted, a note there says until when it may write.

LEASE_LOST: the token is not that of the lease. With --apply also what 'setpoint var
set' meets.`

func newOptReportCommand(c *cli) *cobra.Command {
	var number, step int64
	var metrics []string
	var checkpoint string
	var asText, all bool
	request := &setpointv1.ReportProgressRequest{}
	cmd := &cobra.Command{
		Use:   "report LEASE [NAME=VALUE...]",
		Short: "Record a trial",
		Long:  optReportLong,
		Example: `  setpoint opt report "$LEASE" learning_rate=0.01 momentum=0.9 --metric loss=0.32
  setpoint opt report "$LEASE" learning_rate=0.01 --metric loss=0.29 --number 7 --apply
  setpoint opt report "$LEASE" --number 7 --step 300 --metric loss=0.4
  setpoint opt report "$LEASE" --metric loss=NaN --note diverged --checkpoint @state.bin`,
		Args:              takes("LEASE", "[NAME=VALUE...]"),
		ValidArgsFunction: c.completeReport,
	}
	flags := cmd.Flags()
	flags.StringArrayVar(&metrics, "metric", nil, "`NAME=NUMBER` that came of the trial; repeatable")
	flags.Int64Var(&number, "number", 0, "the trial's `number`; left out, the next one")
	flags.Int64Var(&step, "step", 0, "make it an intermediate report at this `step`; needs --number")
	flags.StringVar(&request.Note, "note", "", "`text` to keep with the trial")
	flags.StringVar(&checkpoint, "checkpoint", "", "`@FILE` to keep for whoever goes on, or - for standard input")
	flags.BoolVar(&request.Apply, "apply", false, "set the variables to the values")
	addRequestIDFlag(cmd, &request.RequestId)
	addAllEffectsFlag(cmd, &all)
	flags.BoolVar(&asText, "text", false, "each VALUE is text as it stands, whatever it looks like")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		lease, err := parseLease(args[0])
		if err != nil {
			return err
		}
		request.OptimizationId, request.FencingToken = lease.GetOptimizationId(), lease.GetFencingToken()
		request.Number, request.Step = ifChanged(cmd, "number", &number), ifChanged(cmd, "step", &step)
		if request.Step != nil && request.Number == nil {
			return usagef("--step needs the --number of the trial")
		}
		if request.Metrics, err = parseMetrics(metrics); err != nil {
			return err
		}
		values, err := c.parseAssignments(args[1:], asText, checkpoint == "-")
		if err != nil {
			return err
		}
		request.Values = values.values()
		if cmd.Flags().Changed("checkpoint") {
			if request.Checkpoint, err = c.readCheckpoint(checkpoint); err != nil {
				return err
			}
		}
		if len(values) == 0 && len(request.Metrics) == 0 && request.Note == "" && request.Checkpoint == nil {
			return usagef("nothing to report: give a NAME=VALUE, a --metric, a --note or a --checkpoint")
		}
		return c.report(cmd, request, values, all)
	}
	return cmd
}

func (c *cli) report(cmd *cobra.Command, request *setpointv1.ReportProgressRequest, values assignments, all bool) error {
	api, err := c.connect(cmd)
	if err != nil {
		return err
	}
	request.SessionId = c.session
	answer, err := api.Optimizations.ReportProgress(cmd.Context(), request)
	if err != nil {
		return values.explain(err)
	}
	if note := c.reportNote(request, answer); note != "" {
		if _, err := fmt.Fprintf(c.stderr, "note: %s\n", note); err != nil {
			return fmt.Errorf("write note: %w", err)
		}
	}
	if err := c.notePreemption(answer.GetPreemption()); err != nil {
		return err
	}
	return c.print(answer, func() string {
		return c.reportLine(answer) + c.effectsText(effects{recomputed: answer.GetRecomputed(), stale: answer.GetStale(),
			omitted: answer.GetValuesOmitted()}, all)
	})
}

// reportNote is what came of a report, where that is not what was asked for; else it is empty.
func (c *cli) reportNote(request *setpointv1.ReportProgressRequest, answer *setpointv1.ReportProgressResponse) string {
	switch {
	case answer.GetRepeated():
		return trialName(answer.GetTrial()) + " was reported before; nothing was recorded or set"
	case answer.GetLate():
		lost := ""
		if len(request.GetCheckpoint()) > 0 {
			lost = ", and its checkpoint is not kept"
		}
		return fmt.Sprintf("the report is late: the lease was over at %s; it is kept, but does not count, and nothing was set%s",
			c.timeText(answer.GetExpiresAt()), lost)
	}
	return ""
}

func trialName(trial *setpointv1.Trial) string {
	name := fmt.Sprintf("trial %d", trial.GetNumber())
	if trial.Step != nil {
		name += fmt.Sprintf(", step %d", trial.GetStep())
	}
	return name
}

func (c *cli) reportLine(answer *setpointv1.ReportProgressResponse) string {
	trial := answer.GetTrial()
	line := trialName(trial)
	if metrics := metricsText(trial.GetMetrics(), exactly); metrics != "" {
		line += ": " + metrics
	}
	var notes []string
	if answer.GetIsBest() {
		notes = append(notes, "the best so far")
	}
	switch {
	case trial.GetApplied() && answer.GetRepeated():
		notes = append(notes, "its values were set then")
	case trial.GetApplied():
		notes = append(notes, "its values are set")
	}
	if answer.GetLate() {
		notes = append(notes, "late")
	}
	expires := c.timeText(answer.GetExpiresAt())
	switch {
	case answer.GetRemaining() != nil:
		notes = append(notes, "the lease holds until "+expires)
	case answer.GetRepeated():
		notes = append(notes, "the lease was over at "+expires)
	case !answer.GetLate(): // the answer to an earlier call with the same --request-id
		notes = append(notes, "the lease was to hold until "+expires)
	}
	return fmt.Sprintf("%s  (%s)\n", line, strings.Join(notes, "; "))
}

// assignments are the NAME=VALUE arguments of a report.
type assignments map[string]parsed

// parseAssignments reads them; taken tells that something else is read from standard input.
func (c *cli) parseAssignments(args []string, asText, taken bool) (assignments, error) {
	all := make(assignments, len(args))
	for _, arg := range args {
		name, text, found := strings.Cut(arg, "=")
		if !found || name == "" {
			return nil, usagef("a value is NAME=VALUE, not %q", arg)
		}
		if _, twice := all[name]; twice {
			return nil, usagef("%q has two values", name)
		}
		if text == "-" && taken {
			return nil, usagef("standard input is there for one - only")
		}
		taken = taken || text == "-"
		value, err := c.parseArgument(text, setpointv1.VariableType_VARIABLE_TYPE_UNSPECIFIED, asText)
		if err != nil {
			return nil, err
		}
		all[name] = value
	}
	return all, nil
}

// values are what is sent; nil: there are none.
func (a assignments) values() map[string]*setpointv1.Value {
	if len(a) == 0 {
		return nil
	}
	sent := make(map[string]*setpointv1.Value, len(a))
	for name, value := range a {
		sent[name] = value.value
	}
	return sent
}

// explain adds to a mismatch of types what the user may have meant with the value that it is about.
func (a assignments) explain(err error) error {
	var call *client.Error
	if errors.As(err, &call) {
		if value, ok := a[call.Metadata["variable"]]; ok {
			return value.explain(err)
		}
	}
	return err
}

// parseMetrics reads the flags --metric M=X.
func parseMetrics(pairs []string) (map[string]float64, error) {
	if len(pairs) == 0 {
		return nil, nil
	}
	metrics := make(map[string]float64, len(pairs))
	for _, pair := range pairs {
		// A metric's name may have a =, such as loss@k=5, but a number has none.
		at := strings.LastIndexByte(pair, '=')
		if at < 1 {
			return nil, usagef("--metric wants NAME=NUMBER, not %q", pair)
		}
		name, text := pair[:at], pair[at+1:]
		number, err := strconv.ParseFloat(text, 64)
		if err != nil {
			return nil, usagef("--metric %s is a number, NaN, Infinity or -Infinity, not %q", name, text)
		}
		if _, twice := metrics[name]; twice {
			return nil, usagef("--metric gives %q twice", name)
		}
		metrics[name] = number
	}
	return metrics, nil
}

// readCheckpoint reads the bytes of a --checkpoint.
func (c *cli) readCheckpoint(argument string) ([]byte, error) {
	path, isFile := strings.CutPrefix(argument, "@")
	name, reader := "standard input", c.stdin
	switch {
	case isFile:
		name = path
		file, err := os.Open(path)
		if err != nil {
			return nil, usagef("--checkpoint: %v", err)
		}
		defer func() { _ = file.Close() }()
		reader = file
	case argument != "-":
		return nil, usagef("--checkpoint is @FILE, or - for standard input, not %q", argument)
	}
	data, err := io.ReadAll(io.LimitReader(reader, maxInput+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("read %s: %w", name, err)
	case len(data) > maxInput:
		return nil, usagef("%s has more than %d MiB", name, maxInput>>20)
	case len(data) == 0:
		return nil, usagef("the checkpoint in %s is empty", name)
	}
	return data, nil
}

func newOptTrialsCommand(c *cli) *cobra.Command {
	var limit int
	var direction string
	request := &setpointv1.ListTrialsRequest{}
	cmd := &cobra.Command{
		Use:   "trials ID",
		Short: "List the trials of an optimization",
		Long: `Lists the trials of an optimization by number. With --metric they come best first by
that metric, without those that do not have it, or came late. ID may be a LEASE.

MARK says which trial is the best by the objective, whose values were set (applied), and
which came after the lease had ended (late). Long numbers are rounded, and a narrow
terminal leaves columns out: -o json has everything, and next_page_token there is not
empty where --limit left trials out.`,
		Example: `  setpoint opt trials "$ID"
  setpoint opt trials "$ID" --metric loss --direction minimize --limit 10
  setpoint opt trials "$ID" --intermediate --limit 0 -o json`,
		Args:              takes("ID"),
		ValidArgsFunction: completes(c.completeOptimizations),
	}
	flags := cmd.Flags()
	flags.StringVar(&request.Metric, "metric", "", "best first by this `metric`")
	flags.StringVar(&direction, "direction", "",
		"`which` values are better: maximize or minimize; left out, that of the objective, or maximize")
	flags.BoolVar(&request.IncludeIntermediate, "intermediate", false, "intermediate reports too")
	flags.IntVar(&limit, "limit", 100, "greatest `number` of trials; 0 is all")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		lease, err := parseOptimization(args[0])
		if err != nil {
			return err
		}
		switch {
		case limit < 0:
			return usagef("--limit %d is negative", limit)
		case direction != "" && request.GetMetric() == "":
			return usagef("--direction is for --metric")
		case request.GetIncludeIntermediate() && request.GetMetric() != "":
			return usagef("give --metric or --intermediate, not both")
		}
		if request.Direction, err = parseDirection(direction); err != nil {
			return err
		}
		api, err := c.connect(cmd)
		if err != nil {
			return err
		}
		request.SessionId, request.OptimizationId = c.session, lease.GetOptimizationId()
		trials := c.trialList(request.GetIncludeIntermediate())
		trials.fetch = func(token string, size int32) ([]*setpointv1.Trial, string, error) {
			request.PageToken, request.PageSize = token, size
			page, err := api.Optimizations.ListTrials(cmd.Context(), request)
			return page.GetTrials(), page.GetNextPageToken(), err
		}
		return trials.run(c, limit)
	}
	return cmd
}

// trialList is a listing of trials, but for where it comes from. Only where some may be intermediate reports, a column
// tells of which step they are.
func (c *cli) trialList(intermediate bool) *list[*setpointv1.Trial] {
	columns := []column{{title: "TRIAL", right: true}}
	if intermediate {
		columns = append(columns, column{title: "STEP", right: true})
	}
	return &list[*setpointv1.Trial]{
		field: "trials",
		noun:  "trials",
		columns: append(columns, column{title: "REPORTED", spare: 1}, column{title: "MARK"}, column{title: "METRICS", long: true},
			column{title: "VALUES", long: true}, column{title: "NOTE", long: true, spare: 2}),
		row: func(trial *setpointv1.Trial) []string {
			row := []string{strconv.FormatInt(trial.GetNumber(), 10)}
			if intermediate {
				step := absent
				if trial.Step != nil {
					step = strconv.FormatInt(trial.GetStep(), 10)
				}
				row = append(row, step)
			}
			return append(row, c.timeText(trial.GetReportedAt()), orAbsent(trialMarks(trial)), orAbsent(metricsText(trial.GetMetrics(), rounded)),
				orAbsent(valuesText(trial.GetValues(), rounded)), orAbsent(printable(trial.GetNote())))
		},
	}
}

func trialMarks(trial *setpointv1.Trial) string {
	var marks []string
	for _, mark := range []struct {
		is   bool
		name string
	}{{trial.GetBest(), "best"}, {trial.GetApplied(), "applied"}, {trial.GetLate(), "late"}} {
		if mark.is {
			marks = append(marks, mark.name)
		}
	}
	return strings.Join(marks, ", ")
}
