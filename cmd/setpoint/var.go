package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

func newVarCommand(c *cli) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "var",
		Short: "Variables: named, typed, constrained and versioned values",
		Long: `A variable has a name, a type that never changes, constraints that every value
satisfies, and a version: 0 when registered, one more with each set. It is found by
its name or its id (var_…) within the session that --session names.

A derived variable is one with an expression: the server computes its value from those
of others, and again when they change. 'setpoint dep --help' tells of what follows what.`,
		Example: `  setpoint var register temperature float 0.7 --min 0 --max 2
  setpoint var set temperature 0.9
  setpoint var get temperature`,
		Args: cobra.ArbitraryArgs,
		RunE: needsSubcommand,
	}
	cmd.AddCommand(newVarRegisterCommand(c), newVarGetCommand(c), newVarSetCommand(c), newVarListCommand(c),
		newVarUpdateCommand(c), newVarDeleteCommand(c))
	return cmd
}

func newVarGetCommand(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:   "get NAME",
		Short: "Show a variable",
		Long: `Shows a variable with its value, whole, and everything about it. What it depends on and
you may not read is (hidden), and so is an expression that would name it.

VARIABLE_NOT_FOUND: the session has no such variable. ACCESS_DENIED: you may not read
it, or there is none.`,
		Example: `  setpoint var get temperature
  setpoint var get temperature -o json | jq .value.number`,
		Args:              takes("NAME"),
		ValidArgsFunction: completes(c.completeVariables),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := c.connect(cmd)
			if err != nil {
				return err
			}
			variable, err := api.Variables.GetVariable(cmd.Context(),
				&setpointv1.GetVariableRequest{SessionId: c.session, Variable: args[0]})
			if err != nil {
				return err
			}
			return c.print(variable, func() string { return c.variableBlock(variable) })
		},
	}
}

func (c *cli) variableBlock(v *setpointv1.Variable) string {
	limit := strconv.FormatInt(v.GetHistoryLimit(), 10)
	if v.GetHistoryLimit() == 0 {
		limit = "all"
	}
	return block(
		[2]string{"name", printable(v.GetName())},
		[2]string{"value", valueText(v.GetValue())},
		[2]string{"type", typeText(v.GetType())},
		[2]string{"constraints", constraintsText(v.GetConstraints())},
		[2]string{"expression", printable(v.GetExpression())},
		[2]string{"strict", onlyYes(v.GetStrict())},
		[2]string{"depends on", namesText(v.GetDependsOn())},
		[2]string{"stale", staleSince(v.GetStale())},
		[2]string{"error", printable(v.GetStale().GetError())},
		[2]string{"optimized by", c.optimizedBy(v.GetOptimization())},
		[2]string{"version", strconv.FormatInt(v.GetVersion(), 10)},
		[2]string{"revision", strconv.FormatInt(v.GetRevision(), 10)},
		[2]string{"metadata", mapText(v.GetMetadata())},
		[2]string{"history limit", limit},
		[2]string{"access", accessText(v.GetAccessMode())},
		[2]string{"created", c.timeText(v.GetCreatedAt())},
		[2]string{"updated", c.timeText(v.GetUpdatedAt())},
		[2]string{"updated by", printable(v.GetUpdatedBy())},
		[2]string{"session", printable(v.GetSessionId())},
		[2]string{"id", printable(v.GetVariableId())},
	)
}

// onlyYes is nothing for what is not so.
func onlyYes(b bool) string {
	if !b {
		return ""
	}
	return yesNo(b)
}

// staleSince is staleNote for a line that says so itself, and without the error, which has its own.
func staleSince(stale *setpointv1.Stale) string {
	if stale == nil {
		return ""
	}
	return strings.TrimPrefix(staleNote(&setpointv1.Stale{Revision: stale.GetRevision(), Cause: stale.GetCause()}), "stale ")
}

const varSetLong = `Sets a value, as the next version.

` + valueHelp + `

With --expected-version the set takes place only on that version, so that nobody's
change is overwritten unseen; version 0 is the registered one. The command repeats
itself when the connection is lost, and still writes once; --request-id carries that
promise from one run of the command to the next, for 24 hours.

Where other variables depend on this one, the answer shows what followed: derived ones
that were recomputed to another value, with it and their versions, and those that became
stale; the first 20 of each, or --all. With --dry-run it shows what would follow.

VERSION_MISMATCH: another version is current. TYPE_MISMATCH, CONSTRAINT_VIOLATION:
the value does not fit. DERIVED_VARIABLE: the value is computed by an expression.
DERIVATION_FAILED: a strict variable that depends on it could not be computed any more.
ALREADY_OPTIMIZING: somebody optimizes it, and --lease is not theirs; LEASE_LOST: the
lease does not hold, any more or for this variable. In all cases nothing has changed.`

func newVarSetCommand(c *cli) *cobra.Command {
	var metadata []string
	var expected int64
	var asText, all bool
	request := &setpointv1.SetVariableRequest{}
	cmd := &cobra.Command{
		Use:   "set NAME VALUE",
		Short: "Set a variable's value",
		Long:  varSetLong,
		Example: `  setpoint var set temperature 0.9 --reason "less repetition"
  setpoint var set temperature 0.9 --expected-version 3
  setpoint var set offset -1
  setpoint var set prompt @prompt.txt --text
  setpoint var set temperature 0.9 --lease "$LEASE"
  jq .config run.json | setpoint var set config -
  setpoint var set temperature 2.5 --dry-run`,
		Args:              takes("NAME", "VALUE"),
		ValidArgsFunction: completes(c.completeVariables),
	}
	flags := cmd.Flags()
	addExpectedVersionFlag(cmd, &expected)
	addReasonFlag(cmd, &request.Reason)
	addLeaseFlag(cmd, &request.Lease)
	flags.StringArrayVar(&metadata, "metadata", nil,
		"`KEY=VALUE` for the new version, in place of the last one's metadata; repeatable")
	flags.BoolVar(&request.ClearMetadata, "clear-metadata", false, "give the new version no metadata")
	flags.StringVar(&request.RequestId, "request-id", "", "`id` under which this set takes place once, however often it is sent")
	flags.BoolVar(&request.DryRun, "dry-run", false, "answer what the set would do, and do not do it")
	addAllEffectsFlag(cmd, &all)
	addTextFlag(cmd, &asText)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		value, err := c.parseArgument(args[1], setpointv1.VariableType_VARIABLE_TYPE_UNSPECIFIED, asText)
		if err != nil {
			return err
		}
		request.Variable, request.Value = args[0], value.value
		request.ExpectedVersion = ifChanged(cmd, "expected-version", &expected)
		if request.Metadata, err = parseMetadata(metadata); err != nil {
			return err
		}
		if request.ClearMetadata && request.Metadata != nil {
			return usagef("give --metadata or --clear-metadata, not both")
		}
		api, err := c.connect(cmd)
		if err != nil {
			return err
		}
		request.SessionId = c.session
		answer, err := api.Variables.SetVariable(cmd.Context(), request)
		if err != nil {
			return value.explain(err)
		}
		return c.print(answer, func() string {
			return setLine(request, value, answer) + c.effectsText(effects{recomputed: answer.GetRecomputed(),
				stale: answer.GetStale(), omitted: answer.GetValuesOmitted()}, all)
		})
	}
	return cmd
}

func setLine(request *setpointv1.SetVariableRequest, value parsed, answer *setpointv1.SetVariableResponse) string {
	note := ""
	if request.GetDryRun() {
		note = "; dry run, nothing written"
	}
	return fmt.Sprintf("%s = %s  (version %d, revision %d%s)\n", printable(request.GetVariable()),
		value.text(), answer.GetVersion(), answer.GetRevision(), note)
}

func newVarListCommand(c *cli) *cobra.Command {
	var types []string
	cmd := &cobra.Command{
		Use:   "list [PATTERN]",
		Short: "List a session's variables",
		Long: `Lists a session's variables by name. In PATTERN, * is any run of characters; quote
it, or the shell may take it for file names. On a terminal, long values are shortened
to its width. TYPE also tells which variables are derived, which are stale, and who
optimizes which.`,
		Example: `  setpoint var list
  setpoint var list 'layer.*' --type float --type integer
  setpoint var list -o json | jq -r '.variables[].name'`,
		Args:              takes("[PATTERN]"),
		ValidArgsFunction: completes(c.completeVariables),
	}
	cmd.Flags().StringArrayVar(&types, "type", nil, "only variables of this `type`; repeatable")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		request := &setpointv1.ListVariablesRequest{Pattern: strings.Join(args, "")}
		for _, name := range types {
			kind, err := parseType(name)
			if err != nil {
				return err
			}
			request.Types = append(request.Types, kind)
		}
		api, err := c.connect(cmd)
		if err != nil {
			return err
		}
		request.SessionId = c.session
		variables := list[*setpointv1.Variable]{
			field: "variables",
			noun:  "variables",
			columns: []column{{title: "NAME"}, {title: "TYPE"}, {title: "VERSION", right: true}, {title: "UPDATED"},
				{title: "BY"}, {title: "VALUE", long: true}},
			row: func(v *setpointv1.Variable) []string {
				return []string{printable(v.GetName()), markedType(v), strconv.FormatInt(v.GetVersion(), 10),
					c.timeText(v.GetUpdatedAt()), printable(v.GetUpdatedBy()), valueText(v.GetValue())}
			},
			fetch: func(token string, size int32) ([]*setpointv1.Variable, string, error) {
				request.PageToken, request.PageSize = token, size
				page, err := api.Variables.ListVariables(cmd.Context(), request)
				return page.GetVariables(), page.GetNextPageToken(), err
			},
		}
		return variables.run(c, 0)
	}
	return cmd
}

func newVarDeleteCommand(c *cli) *cobra.Command {
	var expected int64
	var yes, all bool
	request := &setpointv1.DeleteVariableRequest{}
	cmd := &cobra.Command{
		Use:   "delete NAME",
		Short: "Remove a variable",
		Long: `Removes a variable. Its history stays, and its name may be registered again. On a
terminal it asks first.

A variable that others depend on is deleted only with --cascade. They stay, without that
dependency; those that are derived from it become stale, and what is behind them. They
are shown: the first 20, or --all.

HAS_DEPENDENTS: others depend on it, and there is no --cascade. DERIVATION_FAILED: one
of them is strict, so that it must not become stale. ALREADY_OPTIMIZING, LEASE_LOST: as
of 'setpoint var set'.`,
		Example: `  setpoint var delete temperature
  setpoint var delete temperature --cascade --reason "fixed from now on"
  setpoint var delete temperature --yes --expected-version 3 --reason "not used any more"`,
		Args:              takes("NAME"),
		ValidArgsFunction: completes(c.completeVariables),
	}
	addExpectedVersionFlag(cmd, &expected)
	addReasonFlag(cmd, &request.Reason)
	addLeaseFlag(cmd, &request.Lease)
	cmd.Flags().BoolVar(&request.Cascade, "cascade", false, "delete it although others depend on it")
	addAllEffectsFlag(cmd, &all)
	addYesFlag(cmd, &yes)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		request.Variable = args[0]
		request.ExpectedVersion = ifChanged(cmd, "expected-version", &expected)
		api, err := c.connect(cmd)
		if err != nil {
			return err
		}
		request.SessionId = c.session
		question := fmt.Sprintf("Delete variable %s of session %s?", args[0], c.session)
		if request.GetCascade() {
			question = fmt.Sprintf("Delete variable %s of session %s, though others may depend on it?", args[0], c.session)
		}
		if err := c.confirm(yes, question); err != nil {
			return err
		}
		answer, err := api.Variables.DeleteVariable(cmd.Context(), request)
		if err != nil {
			return explainDependents(err)
		}
		return c.print(answer, func() string {
			return fmt.Sprintf("deleted %s  (revision %d)\n", printable(args[0]), answer.GetRevision()) +
				c.effectsText(effects{stale: answer.GetStale()}, all)
		})
	}
	return cmd
}

// explainDependents adds to a refused deletion how it goes.
func explainDependents(err error) error {
	if errors.Is(err, client.ErrHasDependents) {
		return &hintedError{error: err, hint: "--cascade deletes it all the same, and leaves them"}
	}
	return err
}

func addDependsOnFlag(cmd *cobra.Command, names *[]string) {
	cmd.Flags().StringArrayVar(names, "depends-on", nil, "a `variable` that it depends on; repeatable")
}

func addExpectedVersionFlag(cmd *cobra.Command, expected *int64) {
	cmd.Flags().Int64Var(expected, "expected-version", 0, "refuse unless this `version` is the current one")
}

func addReasonFlag(cmd *cobra.Command, reason *string) {
	cmd.Flags().StringVar(reason, "reason", "", "`why`, for those who read the history")
}

func addTextFlag(cmd *cobra.Command, asText *bool) {
	cmd.Flags().BoolVar(asText, "text", false, "VALUE is text as it stands, whatever it looks like")
}

// ifChanged is the value of a flag that was given, else nil.
func ifChanged(cmd *cobra.Command, flag string, value *int64) *int64 {
	if cmd.Flags().Changed(flag) {
		return proto.Int64(*value)
	}
	return nil
}

// parseArgument reads a VALUE argument; an unspecified kind is one that only the server knows.
func (c *cli) parseArgument(argument string, kind setpointv1.VariableType, asText bool) (parsed, error) {
	in, err := c.readInput(argument)
	if err != nil {
		return parsed{}, err
	}
	if asText {
		return textValue(in.verbatim())
	}
	return parseTyped(in, kind)
}

// explain adds to a mismatch of types what the user may have meant.
func (p parsed) explain(err error) error {
	if p.hint != "" && errors.Is(err, client.ErrTypeMismatch) {
		return &hintedError{error: err, hint: p.hint}
	}
	return err
}
