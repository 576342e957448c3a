package main

import (
	"fmt"

	"github.com/spf13/cobra"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

const varRegisterLong = `Adds a variable at version 0. NAME is 1 to 256 characters. TYPE is boolean, integer,
float, string, choice, module, embedding, tensor or json.

` + valueHelp + `

For the types string, choice and module a bare VALUE is always text: 5 is "5".

` + constraintsHelp + `

` + derivationHelp + `

` + accessModeHelp + `

With --expression, VALUE may be left out: it stands only if the expression cannot be
computed now. --depends-on without --expression makes the variable stale whenever one
of those changes.

VARIABLE_EXISTS: the session has a variable of this name. CONSTRAINT_VIOLATION,
TYPE_MISMATCH: the value does not fit. INVALID_CONSTRAINTS: the constraints
contradict themselves, or belong to another type. VARIABLE_NOT_FOUND,
WOULD_CREATE_CYCLE: it cannot depend on that one. INVALID_EXPRESSION: the expression
does not parse, or does not fit the type. DERIVATION_FAILED: it cannot be computed, and
there is no VALUE, or it is --strict. ACCESS_DENIED: you may not write in all of the
session.`

const accessModeHelp = `--access says what those may do with the variable about whom no access rule is, and who
do not own the session ('setpoint acl --help'):

  private     nothing (where nothing else is said)
  protected   read and observe
  public      read, observe, write and optimize`

const derivationHelp = `An expression is CEL over other variables, each by its name, or as deps["any name"]:

  batch_size * steps
  rate < 0.1 ? "slow" : "fast"
  deps["learning rate"] / 2.0

The variables that it uses are taken from it; --depends-on adds others.`

func newVarRegisterCommand(c *cli) *cobra.Command {
	var metadata []string
	var historyLimit int64
	var asText bool
	var access string
	request := &setpointv1.RegisterVariableRequest{}
	cmd := &cobra.Command{
		Use:   "register NAME TYPE [VALUE]",
		Short: "Add a variable",
		Long:  varRegisterLong,
		Example: `  setpoint var register temperature float 0.7 --min 0 --max 2
  setpoint var register optimizer choice adam --choice adam --choice sgd
  setpoint var register prompt string @prompt.txt --max-length 4000
  setpoint var register offset integer -1 --history-limit 0
  setpoint var register query embedding '[0.1, 0.2]' --dimensions 2
  setpoint var register total integer --expression 'batch_size * steps'
  setpoint var register report string "none yet" --depends-on total
  setpoint var register seed integer 7 --access protected`,
		Args:              takes("NAME", "TYPE", "[VALUE]"),
		ValidArgsFunction: completes(cobra.NoFileCompletions, completeTypes),
	}
	constraints := addConstraintFlags(cmd.Flags())
	cmd.Flags().Int64Var(&historyLimit, "history-limit", 50, "`number` of previous versions to keep at hand; 0 is all")
	cmd.Flags().StringArrayVar(&metadata, "metadata", nil, "`KEY=VALUE` to keep with the variable; repeatable")
	addTextFlag(cmd, &asText)
	cmd.Flags().StringVar(&request.Expression, "expression", "", "compute the value by this `CEL` expression")
	addDependsOnFlag(cmd, &request.DependsOn)
	cmd.Flags().BoolVar(&request.Strict, "strict", false,
		"with --expression: refuse changes of others after which it cannot be computed")
	addAccessFlag(cmd, &access)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		value, err := c.readRegistration(args, asText, request)
		if err != nil {
			return err
		}
		if request.AccessMode, err = readAccessMode(cmd, access); err != nil {
			return err
		}
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
			return fmt.Sprintf("%s = %s  (%s, version %d, revision %d%s)\n", printable(variable.GetName()),
				valueText(variable.GetValue()), typeText(variable.GetType()), variable.GetVersion(), variable.GetRevision(),
				afterSemicolon(staleNote(variable.GetStale())))
		})
	}
	return cmd
}

// readRegistration puts the arguments into the request, and returns VALUE, if there is one.
func (c *cli) readRegistration(args []string, asText bool, request *setpointv1.RegisterVariableRequest) (parsed, error) {
	kind, err := parseType(args[1])
	if err != nil {
		return parsed{}, err
	}
	request.Name, request.Type = args[0], kind
	switch {
	case len(args) < 3 && request.GetExpression() == "":
		return parsed{}, usagef("give a VALUE or --expression")
	case request.GetStrict() && request.GetExpression() == "":
		return parsed{}, usagef("--strict is for --expression")
	case len(args) < 3:
		return parsed{}, nil
	}
	value, err := c.parseArgument(args[2], kind, asText)
	request.Value = value.value
	return value, err
}

// afterSemicolon puts a note behind others; an empty one is none.
func afterSemicolon(note string) string {
	if note == "" {
		return ""
	}
	return "; " + note
}
