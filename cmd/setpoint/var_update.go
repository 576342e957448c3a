package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

const varUpdateLong = `Changes what a variable allows and carries; its value and version stay, unless there is
a new expression. The current value must satisfy the new constraints.

The constraints given are put over those that the variable has, which are read first:
--max alone changes nothing else. With --clear-constraints they replace all the old
ones, and alone it removes them. Of two updates of one variable's constraints at the
same moment, the later one may undo the other.

` + constraintsHelp + `

--expression makes the variable a derived one, or changes how it is derived; its value
is computed at once, as the next version. An empty expression ends that: value and
dependencies stay. --depends-on replaces the dependencies by those that it names and
those that the expression uses; --clear-depends-on leaves only the latter.

` + derivationHelp + `

` + accessModeHelp + `

CONSTRAINT_VIOLATION: the value does not satisfy the constraints. INVALID_CONSTRAINTS:
they contradict themselves, or belong to another type. INVALID_EXPRESSION: the
expression does not parse, or does not fit the type. WOULD_CREATE_CYCLE,
VARIABLE_NOT_FOUND: it cannot depend on that one. DERIVATION_FAILED: it is strict, and
cannot be computed. DERIVED_VARIABLE: it cannot have an expression while somebody
optimizes it; nor other constraints, without --lease: ALREADY_OPTIMIZING, LEASE_LOST.
ACCESS_DENIED: you may not write it; --access needs admin.`

func newVarUpdateCommand(c *cli) *cobra.Command {
	var metadata []string
	var historyLimit, expected int64
	var clearConstraints bool
	var access string
	request := &setpointv1.UpdateVariableRequest{}
	cmd := &cobra.Command{
		Use:   "update NAME",
		Short: "Change a variable's constraints, expression, dependencies, metadata or access",
		Long:  varUpdateLong,
		Example: `  setpoint var update temperature --max 1.5
  setpoint var update temperature --clear-constraints --reason "no bounds known"
  setpoint var update optimizer --choice adam --choice sgd --choice lion
  setpoint var update prompt --metadata owner=search --history-limit 500
  setpoint var update total --expression 'batch_size * steps * epochs' --strict
  setpoint var update total --expression '' --clear-depends-on
  setpoint var update prompt --access private`,
		Args:              takes("NAME"),
		ValidArgsFunction: completes(c.completeVariables),
	}
	flags := cmd.Flags()
	constraints := addConstraintFlags(flags)
	flags.BoolVar(&clearConstraints, "clear-constraints", false, "remove the constraints that are not given here")
	flags.StringArrayVar(&metadata, "metadata", nil, "`KEY=VALUE` of the new metadata, which replaces all; repeatable")
	flags.BoolVar(&request.ClearMetadata, "clear-metadata", false, "remove the metadata")
	flags.Int64Var(&historyLimit, "history-limit", 0, "`number` of previous versions to keep at hand; 0 is all")
	derivation := addDerivationFlags(cmd, request)
	addAccessFlag(cmd, &access)
	addExpectedVersionFlag(cmd, &expected)
	addReasonFlag(cmd, &request.Reason)
	addLeaseFlag(cmd, &request.Lease)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		var err error
		request.Variable = args[0]
		if request.Metadata, err = parseMetadata(metadata); err != nil {
			return err
		}
		if request.ClearMetadata && request.Metadata != nil {
			return usagef("give --metadata or --clear-metadata, not both")
		}
		derived, err := derivation.read(cmd, request)
		if err != nil {
			return err
		}
		if request.AccessMode, err = readAccessMode(cmd, access); err != nil {
			return err
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
		if request.Constraints == nil && request.Metadata == nil && !request.ClearMetadata &&
			request.HistoryLimit == nil && !derived && request.AccessMode == setpointv1.AccessMode_ACCESS_MODE_UNSPECIFIED {
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
		return c.print(variable, func() string { return updateLine(request, variable) })
	}
	return cmd
}

// updateLine shows the value where the update may have changed it.
func updateLine(request *setpointv1.UpdateVariableRequest, v *setpointv1.Variable) string {
	value := ""
	if request.Expression != nil {
		value = ", = " + valueText(v.GetValue())
	}
	return fmt.Sprintf("%s updated%s  (version %d, revision %d%s)\n", printable(v.GetName()), value,
		v.GetVersion(), v.GetRevision(), afterSemicolon(staleNote(v.GetStale())))
}

// accessPrefix is what the names of the access modes begin with in the API's enum.
const accessPrefix = "ACCESS_MODE_"

func addAccessFlag(cmd *cobra.Command, mode *string) {
	cmd.Flags().StringVar(mode, "access", "", "`what` those may do about whom no access rule is: private, protected or public")
}

// readAccessMode reads --access; unspecified, if it was not given.
func readAccessMode(cmd *cobra.Command, text string) (setpointv1.AccessMode, error) {
	if !cmd.Flags().Changed("access") {
		return setpointv1.AccessMode_ACCESS_MODE_UNSPECIFIED, nil
	}
	mode, ok := setpointv1.AccessMode_value[accessPrefix+strings.ToUpper(text)]
	if !ok || mode == 0 {
		return 0, usagef("--access is private, protected or public, not %q", text)
	}
	return setpointv1.AccessMode(mode), nil
}

// accessText is an access mode as --access takes it; empty, where the server said none.
func accessText(mode setpointv1.AccessMode) string {
	if mode == setpointv1.AccessMode_ACCESS_MODE_UNSPECIFIED {
		return ""
	}
	return enumText(mode.String(), accessPrefix)
}

// derivationFlags are the flags of an update that change what a variable follows.
type derivationFlags struct {
	expression string
	strict     bool
}

func addDerivationFlags(cmd *cobra.Command, request *setpointv1.UpdateVariableRequest) *derivationFlags {
	f := &derivationFlags{}
	cmd.Flags().StringVar(&f.expression, "expression", "", "compute the value by this `CEL` expression; empty ends that")
	addDependsOnFlag(cmd, &request.DependsOn)
	cmd.Flags().BoolVar(&request.ClearDependsOn, "clear-depends-on", false,
		"remove the dependencies that the expression does not use")
	cmd.Flags().BoolVar(&f.strict, "strict", false,
		"refuse changes of others after which the expression cannot be computed; --strict=false allows them")
	return f
}

// read puts what was given into the request, and tells whether anything was.
func (f *derivationFlags) read(cmd *cobra.Command, request *setpointv1.UpdateVariableRequest) (bool, error) {
	if request.GetClearDependsOn() && len(request.GetDependsOn()) > 0 {
		return false, usagef("give --depends-on or --clear-depends-on, not both")
	}
	if cmd.Flags().Changed("expression") {
		request.Expression = &f.expression
	}
	if cmd.Flags().Changed("strict") {
		request.Strict = &f.strict
	}
	return request.GetClearDependsOn() || len(request.GetDependsOn()) > 0 || request.Expression != nil ||
		request.Strict != nil, nil
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
