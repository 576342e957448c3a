package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

const depLong = `A variable may depend on others of its session: FROM depends on TO. Together these
dependencies are a graph, in which nothing ever depends on itself, however far around.

When a variable gets another value, what depends on it follows in the same transaction.
A derived variable, one with an expression, is computed anew, each once and after all
that it depends on. Every other one, however far, is marked stale: its value may not fit
any more, and it is stale until somebody sets it. Behind a derived variable whose value
stays the same, nothing happens. One whose value cannot be computed keeps the last one,
and is stale with the error; but if it is strict, the change itself is refused.
'setpoint var register --expression' makes a derived variable; a dependency of it that
its expression uses cannot be removed.`

func newDepCommand(c *cli) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "dep",
		Short: "Dependencies: which variables follow which",
		Long:  depLong,
		Example: `  setpoint dep add report temperature
  setpoint dep dependents temperature --transitive
  setpoint dep graph -o svg > graph.svg`,
		Args: cobra.ArbitraryArgs,
		RunE: needsSubcommand,
	}
	cmd.AddCommand(newDepAddCommand(c), newDepRemoveCommand(c), newDepListCommand(c), newDepDependentsCommand(c),
		newDepOrderCommand(c), newDepGraphCommand(c))
	return cmd
}

func newDepAddCommand(c *cli) *cobra.Command {
	request := &setpointv1.AddDependencyRequest{}
	cmd := &cobra.Command{
		Use:   "add FROM TO",
		Short: "Make a variable depend on another one",
		Long: `Makes the variable FROM depend on the variable TO: when TO gets another value, FROM is
stale until it is set. Where FROM depends on TO already, nothing changes.

WOULD_CREATE_CYCLE: TO depends on FROM, or is FROM; the message has the way around.
VARIABLE_NOT_FOUND: there is no such variable.`,
		Example: `  setpoint dep add report temperature
  setpoint dep add report temperature --reason "written at this temperature"`,
		Args:              takes("FROM", "TO"),
		ValidArgsFunction: completes(c.completeVariables, c.completeVariables),
	}
	addReasonFlag(cmd, &request.Reason)
	addRequestIDFlag(cmd, &request.RequestId)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		api, err := c.connect(cmd)
		if err != nil {
			return err
		}
		request.SessionId, request.Dependent, request.Dependency = c.session, args[0], args[1]
		edge, err := api.Dependencies.AddDependency(cmd.Context(), request)
		if err != nil {
			return err
		}
		return c.print(edge, func() string {
			return fmt.Sprintf("%s depends on %s  (revision %d)\n",
				printable(edge.GetDependent()), printable(edge.GetDependency()), edge.GetRevision())
		})
	}
	return cmd
}

func newDepRemoveCommand(c *cli) *cobra.Command {
	request := &setpointv1.RemoveDependencyRequest{}
	cmd := &cobra.Command{
		Use:   "remove FROM TO",
		Short: "End a dependency",
		Long: `Ends that the variable FROM depends on the variable TO. If FROM is stale, it stays so
until it is set.

DEPENDENCY_NOT_FOUND: FROM does not depend on TO. DERIVED_VARIABLE: the expression of
FROM uses TO; 'setpoint var update FROM --expression' changes it first.`,
		Example: `  setpoint dep remove report temperature
  setpoint dep remove report temperature --reason "temperature is fixed now"`,
		Args:              takes("FROM", "TO"),
		ValidArgsFunction: completes(c.completeVariables, c.completeDependencies),
	}
	addReasonFlag(cmd, &request.Reason)
	addRequestIDFlag(cmd, &request.RequestId)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		api, err := c.connect(cmd)
		if err != nil {
			return err
		}
		request.SessionId, request.Dependent, request.Dependency = c.session, args[0], args[1]
		answer, err := api.Dependencies.RemoveDependency(cmd.Context(), request)
		if err != nil {
			return err
		}
		return c.print(answer, func() string {
			return fmt.Sprintf("%s does not depend on %s any more  (revision %d)\n",
				printable(args[0]), printable(args[1]), answer.GetRevision())
		})
	}
	return cmd
}

func addRequestIDFlag(cmd *cobra.Command, id *string) {
	cmd.Flags().StringVar(id, "request-id", "", "`id` under which this takes place once, however often it is sent")
}

func newDepListCommand(c *cli) *cobra.Command {
	request := &setpointv1.ListDependenciesRequest{}
	cmd := &cobra.Command{
		Use:   "list NAME",
		Short: "List what a variable depends on",
		Long: `Lists the variables that a variable depends on, by name. With --transitive also what
those depend on, and so on; DIRECT tells which are its own.`,
		Example: `  setpoint dep list report
  setpoint dep list report --transitive -o json | jq -r '.dependencies[].name'`,
		Args:              takes("NAME"),
		ValidArgsFunction: completes(c.completeVariables),
	}
	cmd.Flags().BoolVar(&request.Transitive, "transitive", false, "also what those depend on, and so on")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		api, err := c.connect(cmd)
		if err != nil {
			return err
		}
		request.SessionId, request.Variable = c.session, args[0]
		found := relatedList("dependencies", request.GetTransitive())
		found.fetch = func(token string, size int32) ([]*setpointv1.RelatedVariable, string, error) {
			request.PageToken, request.PageSize = token, size
			page, err := api.Dependencies.ListDependencies(cmd.Context(), request)
			return page.GetDependencies(), page.GetNextPageToken(), err
		}
		return found.run(c, 0)
	}
	return cmd
}

func newDepDependentsCommand(c *cli) *cobra.Command {
	request := &setpointv1.ListDependentsRequest{}
	cmd := &cobra.Command{
		Use:   "dependents NAME",
		Short: "List what depends on a variable",
		Long: `Lists the variables that depend on a variable, by name. With --transitive also what
depends on those, and so on: all that a change of the variable may reach.`,
		Example: `  setpoint dep dependents temperature
  setpoint dep dependents temperature --transitive`,
		Args:              takes("NAME"),
		ValidArgsFunction: completes(c.completeVariables),
	}
	cmd.Flags().BoolVar(&request.Transitive, "transitive", false, "also what depends on those, and so on")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		api, err := c.connect(cmd)
		if err != nil {
			return err
		}
		request.SessionId, request.Variable = c.session, args[0]
		found := relatedList("dependents", request.GetTransitive())
		found.fetch = func(token string, size int32) ([]*setpointv1.RelatedVariable, string, error) {
			request.PageToken, request.PageSize = token, size
			page, err := api.Dependencies.ListDependents(cmd.Context(), request)
			return page.GetDependents(), page.GetNextPageToken(), err
		}
		return found.run(c, 0)
	}
	return cmd
}

// relatedList is a listing of a variable's relatives, but for where it comes from. Only where some may be indirect, a
// column tells which are.
func relatedList(field string, transitive bool) *list[*setpointv1.RelatedVariable] {
	columns := []column{{title: "NAME"}, {title: "TYPE"}, {title: "VERSION", right: true}}
	if transitive {
		columns = append(columns, column{title: "DIRECT"})
	}
	return &list[*setpointv1.RelatedVariable]{
		field:   field,
		noun:    "variables",
		columns: append(columns, column{title: "STATE", long: true}),
		row: func(v *setpointv1.RelatedVariable) []string {
			row := []string{printable(v.GetName()), typeText(v.GetType()), strconv.FormatInt(v.GetVersion(), 10)}
			if transitive {
				row = append(row, yesNo(v.GetDirect()))
			}
			return append(row, orAbsent(stateText(v.GetExpression(), v.GetStale())))
		},
	}
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func newDepOrderCommand(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:   "order NAME",
		Short: "Show the order in which a change spreads",
		Long: `Shows all that depends on a variable, directly or not, in the order in which a change
of its value reaches them: each after all that it depends on, and by name where that
leaves a choice.

LIMIT_EXCEEDED: the answer would be too large.`,
		Example: `  setpoint dep order temperature
  setpoint dep order temperature -o json | jq -r '.variables[].name'`,
		Args:              takes("NAME"),
		ValidArgsFunction: completes(c.completeVariables),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := c.connect(cmd)
			if err != nil {
				return err
			}
			answer, err := api.Dependencies.GetUpdateOrder(cmd.Context(),
				&setpointv1.GetUpdateOrderRequest{SessionId: c.session, Variable: args[0]})
			if err != nil {
				return err
			}
			return c.print(answer, func() string { return c.orderText(args[0], answer.GetVariables()) })
		},
	}
}

func (c *cli) orderText(name string, variables []*setpointv1.RelatedVariable) string {
	if len(variables) == 0 {
		return fmt.Sprintf("nothing depends on %s\n", printable(name))
	}
	text := &strings.Builder{}
	t := &table{out: text, width: c.screen.width, columns: []column{{title: "#", right: true}, {title: "NAME"}, {title: "TYPE"},
		{title: "VERSION", right: true}, {title: "DIRECT"}, {title: "STATE", long: true}}}
	for i, v := range variables {
		t.rows = append(t.rows, []string{strconv.Itoa(i + 1), printable(v.GetName()), typeText(v.GetType()),
			strconv.FormatInt(v.GetVersion(), 10), yesNo(v.GetDirect()), orAbsent(stateText(v.GetExpression(), v.GetStale()))})
	}
	_ = t.flush() // to memory
	return text.String()
}

const depGraphLong = `Shows the session's graph: its variables by name, each with what it depends on. Without
--all, variables that neither depend on others nor have dependents are left out.

-o names the format, which of this command has two more:

  table   a line for each variable
  json    one document, {"nodes": […]}
  dot     for Graphviz, as in: setpoint dep graph -o dot | dot -Tpng > graph.png
  svg     a picture, laid out by this program, with nothing in it from elsewhere

In the pictures an arrow leads from a variable to one that depends on it: the way that
changes go. Derived variables have pointed sides and show their expression; those that
somebody optimizes are green and say who; stale ones are red and dashed, and say since
when and after what. A name or expression that is too long is shortened; dot and svg
have it whole where the mouse points.

TOO_LARGE: a picture would need more than 50,000 boxes and bends; dot and json have no
such limit.`

func newDepGraphCommand(c *cli) *cobra.Command {
	request := &setpointv1.GetGraphRequest{}
	cmd := &cobra.Command{
		Use:   "graph",
		Short: "Show the whole graph, as a list or a picture",
		Long:  depGraphLong,
		Example: `  setpoint dep graph
  setpoint dep graph -o svg > graph.svg
  setpoint dep graph -o dot | dot -Tpdf > graph.pdf
  setpoint dep graph --all -o json | jq -r '.nodes[] | select(.stale) | .name'`,
		Args:        takes(),
		Annotations: map[string]string{moreFormats: "dot svg"},
	}
	cmd.Flags().BoolVar(&request.IncludeUnconnected, "all", false,
		"also variables that neither depend on others nor have dependents")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		api, err := c.connect(cmd)
		if err != nil {
			return err
		}
		request.SessionId = c.session
		nodes := &list[*setpointv1.GraphNode]{
			field: "nodes",
			noun:  "variables",
			columns: []column{{title: "NAME"}, {title: "TYPE"}, {title: "VERSION", right: true}, {title: "STATE", long: true},
				{title: "DEPENDS ON", long: true}},
			row: func(n *setpointv1.GraphNode) []string {
				return []string{printable(n.GetName()), typeText(n.GetType()), strconv.FormatInt(n.GetVersion(), 10),
					orAbsent(graphNodeText(n)), orAbsent(namesText(n.GetDependsOn()))}
			},
			fetch: func(token string, size int32) ([]*setpointv1.GraphNode, string, error) {
				request.PageToken, request.PageSize = token, size
				page, err := api.Dependencies.GetGraph(cmd.Context(), request)
				return page.GetNodes(), page.GetNextPageToken(), err
			},
		}
		switch c.output {
		case "dot":
			return c.drawGraph(nodes, writeDot)
		case "svg":
			return c.drawGraph(nodes, writeSVG)
		}
		return nodes.run(c, 0)
	}
	return cmd
}

// graphNodeText is stateText of a variable in the graph, and who optimizes it.
func graphNodeText(n *setpointv1.GraphNode) string {
	text := stateText(n.GetExpression(), n.GetStale())
	if note := optimizedNote(n.GetOptimization()); note != "" {
		return strings.TrimPrefix(text+"; "+note, "; ")
	}
	return text
}
