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
its name or its id (var_…) within the session that --session names.`,
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

const varRegisterLong = `Adds a variable at version 0. NAME is 1 to 256 characters. TYPE is boolean, integer,
float, string, choice, module, embedding, tensor or json.

` + valueHelp + `

For the types string, choice and module a bare VALUE is always text: 5 is "5".

` + constraintsHelp + `

VARIABLE_EXISTS: the session has a variable of this name. CONSTRAINT_VIOLATION,
TYPE_MISMATCH: the value does not fit. INVALID_CONSTRAINTS: the constraints
contradict themselves, or belong to another type.`

func newVarRegisterCommand(c *cli) *cobra.Command {
	var metadata []string
	var historyLimit int64
	var asText bool
	cmd := &cobra.Command{
		Use:   "register NAME TYPE VALUE",
		Short: "Add a variable",
		Long:  varRegisterLong,
		Example: `  setpoint var register temperature float 0.7 --min 0 --max 2
  setpoint var register optimizer choice adam --choice adam --choice sgd
  setpoint var register prompt string @prompt.txt --max-length 4000
  setpoint var register offset integer -1 --history-limit 0
  setpoint var register query embedding '[0.1, 0.2]' --dimensions 2`,
		Args:              takes("NAME", "TYPE", "VALUE"),
		ValidArgsFunction: completes(cobra.NoFileCompletions, completeTypes),
	}
	constraints := addConstraintFlags(cmd.Flags())
	cmd.Flags().Int64Var(&historyLimit, "history-limit", 50, "`number` of previous versions to keep at hand; 0 is all")
	cmd.Flags().StringArrayVar(&metadata, "metadata", nil, "`KEY=VALUE` to keep with the variable; repeatable")
	addTextFlag(cmd, &asText)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		request := &setpointv1.RegisterVariableRequest{Name: args[0]}
		var err error
		if request.Type, err = parseType(args[1]); err != nil {
			return err
		}
		value, err := c.parseArgument(args[2], request.Type, asText)
		if err != nil {
			return err
		}
		request.Value = value.value
		if request.Constraints, err = constraints.read(c); err != nil {
			return err
		}
		if request.Metadata, err = parseMetadata(metadata); err != nil {
			return err
		}
		if cmd.Flags().Changed("history-limit") {
			request.HistoryLimit = &historyLimit
		}
		api, err := c.connect(cmd)
		if err != nil {
			return err
		}
		request.SessionId = c.session
		variable, err := api.Variables.RegisterVariable(cmd.Context(), request)
		if err != nil {
			return value.explain(err)
		}
		return c.print(variable, func() string {
			return fmt.Sprintf("%s = %s  (%s, version %d, revision %d)\n", printable(variable.GetName()),
				valueText(variable.GetValue()), typeText(variable.GetType()), variable.GetVersion(), variable.GetRevision())
		})
	}
	return cmd
}

func newVarGetCommand(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:   "get NAME",
		Short: "Show a variable",
		Long: `Shows a variable with its value, whole, and everything about it.

VARIABLE_NOT_FOUND: the session has no such variable.`,
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
		[2]string{"version", strconv.FormatInt(v.GetVersion(), 10)},
		[2]string{"revision", strconv.FormatInt(v.GetRevision(), 10)},
		[2]string{"metadata", mapText(v.GetMetadata())},
		[2]string{"history limit", limit},
		[2]string{"created", c.timeText(v.GetCreatedAt())},
		[2]string{"updated", c.timeText(v.GetUpdatedAt())},
		[2]string{"updated by", printable(v.GetUpdatedBy())},
		[2]string{"session", printable(v.GetSessionId())},
		[2]string{"id", printable(v.GetVariableId())},
	)
}

const varSetLong = `Sets a value, as the next version.

` + valueHelp + `

With --expected-version the set takes place only on that version, so that nobody's
change is overwritten unseen; version 0 is the registered one. The command repeats
itself when the connection is lost, and still writes once; --request-id carries that
promise from one run of the command to the next, for 24 hours.

VERSION_MISMATCH: another version is current. TYPE_MISMATCH, CONSTRAINT_VIOLATION:
the value does not fit. In all cases nothing has changed.`

func newVarSetCommand(c *cli) *cobra.Command {
	var metadata []string
	var expected int64
	var asText bool
	request := &setpointv1.SetVariableRequest{}
	cmd := &cobra.Command{
		Use:   "set NAME VALUE",
		Short: "Set a variable's value",
		Long:  varSetLong,
		Example: `  setpoint var set temperature 0.9 --reason "less repetition"
  setpoint var set temperature 0.9 --expected-version 3
  setpoint var set offset -1
  setpoint var set prompt @prompt.txt --text
  jq .config run.json | setpoint var set config -
  setpoint var set temperature 2.5 --dry-run`,
		Args:              takes("NAME", "VALUE"),
		ValidArgsFunction: completes(c.completeVariables),
	}
	flags := cmd.Flags()
	addExpectedVersionFlag(cmd, &expected)
	addReasonFlag(cmd, &request.Reason)
	flags.StringArrayVar(&metadata, "metadata", nil,
		"`KEY=VALUE` for the new version, in place of the last one's metadata; repeatable")
	flags.BoolVar(&request.ClearMetadata, "clear-metadata", false, "give the new version no metadata")
	flags.StringVar(&request.RequestId, "request-id", "", "`id` under which this set takes place once, however often it is sent")
	flags.BoolVar(&request.DryRun, "dry-run", false, "answer what the set would do, and do not do it")
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
		return c.print(answer, func() string { return setLine(request, value, answer) })
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
to its width.`,
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
				return []string{printable(v.GetName()), typeText(v.GetType()), strconv.FormatInt(v.GetVersion(), 10),
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

const varUpdateLong = `Changes what a variable allows and carries; its value and version stay. The current
value must satisfy the new constraints.

The constraints given are put over those that the variable has, which are read first:
--max alone changes nothing else. With --clear-constraints they replace all the old
ones, and alone it removes them. Of two updates of one variable's constraints at the
same moment, the later one may undo the other.

` + constraintsHelp + `

CONSTRAINT_VIOLATION: the current value does not satisfy them. INVALID_CONSTRAINTS:
they contradict themselves, or belong to another type.`

func newVarUpdateCommand(c *cli) *cobra.Command {
	var metadata []string
	var historyLimit, expected int64
	var clearConstraints bool
	request := &setpointv1.UpdateVariableRequest{}
	cmd := &cobra.Command{
		Use:   "update NAME",
		Short: "Change a variable's constraints, metadata or history limit",
		Long:  varUpdateLong,
		Example: `  setpoint var update temperature --max 1.5
  setpoint var update temperature --clear-constraints --reason "no bounds known"
  setpoint var update optimizer --choice adam --choice sgd --choice lion
  setpoint var update prompt --metadata owner=search --history-limit 500`,
		Args:              takes("NAME"),
		ValidArgsFunction: completes(c.completeVariables),
	}
	flags := cmd.Flags()
	constraints := addConstraintFlags(flags)
	flags.BoolVar(&clearConstraints, "clear-constraints", false, "remove the constraints that are not given here")
	flags.StringArrayVar(&metadata, "metadata", nil, "`KEY=VALUE` of the new metadata, which replaces all; repeatable")
	flags.BoolVar(&request.ClearMetadata, "clear-metadata", false, "remove the metadata")
	flags.Int64Var(&historyLimit, "history-limit", 0, "`number` of previous versions to keep at hand; 0 is all")
	addExpectedVersionFlag(cmd, &expected)
	addReasonFlag(cmd, &request.Reason)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		var err error
		request.Variable = args[0]
		if request.Metadata, err = parseMetadata(metadata); err != nil {
			return err
		}
		if request.ClearMetadata && request.Metadata != nil {
			return usagef("give --metadata or --clear-metadata, not both")
		}
		request.HistoryLimit = ifChanged(cmd, "history-limit", &historyLimit)
		request.ExpectedVersion = ifChanged(cmd, "expected-version", &expected)
		if request.Constraints, err = constraints.read(c); err != nil {
			return err
		}
		overlay := request.Constraints != nil && !clearConstraints
		if clearConstraints && request.Constraints == nil {
			request.Constraints = &setpointv1.Constraints{}
		}
		if request.Constraints == nil && request.Metadata == nil && !request.ClearMetadata && request.HistoryLimit == nil {
			return usagef("nothing to change")
		}
		api, err := c.connect(cmd)
		if err != nil {
			return err
		}
		request.SessionId = c.session
		variable, err := updateVariable(cmd, api, request, overlay)
		if err != nil {
			return err
		}
		return c.print(variable, func() string {
			return fmt.Sprintf("%s updated  (version %d, revision %d)\n",
				printable(variable.GetName()), variable.GetVersion(), variable.GetRevision())
		})
	}
	return cmd
}

// updateVariable sends an update; with overlay, its constraints are put over those that the variable has.
func updateVariable(cmd *cobra.Command, api *client.Client, request *setpointv1.UpdateVariableRequest,
	overlay bool) (*setpointv1.Variable, error) {
	if overlay {
		current, err := api.Variables.GetVariable(cmd.Context(),
			&setpointv1.GetVariableRequest{SessionId: request.GetSessionId(), Variable: request.GetVariable()})
		if err != nil {
			return nil, err
		}
		request.Constraints = overlaid(current.GetConstraints(), request.GetConstraints())
	}
	return api.Variables.UpdateVariable(cmd.Context(), request)
}

func newVarDeleteCommand(c *cli) *cobra.Command {
	var expected int64
	var yes bool
	request := &setpointv1.DeleteVariableRequest{}
	cmd := &cobra.Command{
		Use:   "delete NAME",
		Short: "Remove a variable",
		Long: `Removes a variable. Its history stays, and its name may be registered again. On a
terminal it asks first.`,
		Example: `  setpoint var delete temperature
  setpoint var delete temperature --yes --expected-version 3 --reason "not used any more"`,
		Args:              takes("NAME"),
		ValidArgsFunction: completes(c.completeVariables),
	}
	addExpectedVersionFlag(cmd, &expected)
	addReasonFlag(cmd, &request.Reason)
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
		if err := c.confirm(yes, question); err != nil {
			return err
		}
		answer, err := api.Variables.DeleteVariable(cmd.Context(), request)
		if err != nil {
			return err
		}
		return c.print(answer, func() string {
			return fmt.Sprintf("deleted %s  (revision %d)\n", printable(args[0]), answer.GetRevision())
		})
	}
	return cmd
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
