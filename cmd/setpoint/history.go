package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

func newHistoryCommand(c *cli) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "history",
		Short: "History: every change, and the way back",
		Long: `Every change of a session is kept with what, who, when and why, under the session's
next revision. Of each variable, as many previous versions as its history limit says
can be shown and rolled back to.`,
		Example: `  setpoint history list temperature
  setpoint history rollback temperature 1`,
		Args: cobra.ArbitraryArgs,
		RunE: needsSubcommand,
	}
	cmd.AddCommand(newHistoryListCommand(c), newHistoryGetCommand(c), newHistoryRollbackCommand(c),
		newHistorySnapshotCommand(c), newHistoryRollbackSessionCommand(c))
	return cmd
}

func newHistoryListCommand(c *cli) *cobra.Command {
	var limit int
	var changes []string
	names := enumList(setpointv1.HistoryChange_name, "HISTORY_CHANGE_")
	kinds := wrapped(strings.Fields(names), 84)
	cmd := &cobra.Command{
		Use:   "list [NAME]",
		Short: "List changes, newest first",
		Long: `Lists changes, newest first: of a variable's value, or without NAME everything that
happened in the session. --change picks kinds of changes:
` + kinds + `.

REASON is what the caller gave, and of a change that followed from another one after
which: the variable and its revision. There stand also the error of a derived variable
that became stale, the expression that a change gave, the dependency that was added or
removed, the optimization that made the change, with the trial that it applied, and the
access rule that came or went; NAME is - where that was for all of the session.

What you may not read is left out, and (hidden) where something else names it.

With -o json, next_page_token is not empty where --limit left changes out.`,
		Example: `  setpoint history list temperature
  setpoint history list --limit 20
  setpoint history list --change deleted --change registered --limit 0
  setpoint history list total --change recomputed --change stale`,
		Args:              takes("[NAME]"),
		ValidArgsFunction: completes(c.completeVariables),
	}
	cmd.Flags().IntVar(&limit, "limit", 100, "greatest `number` of changes; 0 is all")
	cmd.Flags().StringArrayVar(&changes, "change", nil, "only this `kind` of change; repeatable")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if limit < 0 {
			return usagef("--limit %d is negative", limit)
		}
		request := &setpointv1.ListHistoryRequest{Variable: strings.Join(args, "")}
		for _, name := range changes {
			change, ok := setpointv1.HistoryChange_value["HISTORY_CHANGE_"+strings.ToUpper(strings.ReplaceAll(name, "-", "_"))]
			if !ok || change == 0 {
				return usagef("no kind of change %q; the kinds are %s", name, names)
			}
			request.Changes = append(request.Changes, setpointv1.HistoryChange(change))
		}
		api, err := c.connect(cmd)
		if err != nil {
			return err
		}
		request.SessionId = c.session
		entries := list[*setpointv1.HistoryEntry]{
			field:   "entries",
			noun:    "changes",
			columns: historyColumns,
			row:     c.historyRow,
			fetch: func(token string, size int32) ([]*setpointv1.HistoryEntry, string, error) {
				request.PageToken, request.PageSize = token, size
				page, err := api.History.ListHistory(cmd.Context(), request)
				return page.GetEntries(), page.GetNextPageToken(), err
			},
		}
		return entries.run(c, limit)
	}
	return cmd
}

var historyColumns = []column{{title: "REVISION", right: true}, {title: "TIME"}, {title: "NAME"}, {title: "CHANGE"},
	{title: "VERSION", right: true}, {title: "BY"}, {title: "REASON", long: true}, {title: "METADATA", long: true},
	{title: "VALUE", long: true}}

func (c *cli) historyRow(e *setpointv1.HistoryEntry) []string {
	return []string{strconv.FormatInt(e.GetRevision(), 10), c.timeText(e.GetChangedAt()), orAbsent(printable(e.GetName())),
		changeText(e.GetChange()), versionText(e), printable(e.GetChangedBy()), orAbsent(c.reasonText(e)),
		orAbsent(mapText(e.GetMetadata())), valueText(e.GetValue())}
}

// reasonText is why a change came about, on one line.
func (c *cli) reasonText(e *setpointv1.HistoryEntry) string {
	var parts []string
	add := func(format, text string) {
		if text != "" {
			parts = append(parts, fmt.Sprintf(format, printable(text)))
		}
	}
	add("%s", e.GetReason())
	add("%s", causeText(e.GetCausedBy()))
	add("%s", e.GetError())
	add("dependency: %s", e.GetDependency())
	add("expression: %s", e.GetExpression())
	add("%s", underText(e))
	if e.GetAccessRule() != nil {
		parts = append(parts, c.ruleText(e.GetAccessRule()))
	}
	return strings.Join(parts, "; ")
}

// underText is the optimization under whose lease a change was made, or whose lease changed, and the trial that it applied.
func underText(e *setpointv1.HistoryEntry) string {
	if e.GetOptimizationId() == "" || e.TrialNumber == nil {
		return e.GetOptimizationId()
	}
	return fmt.Sprintf("%s, trial %d", e.GetOptimizationId(), e.GetTrialNumber())
}

func causeText(cause *setpointv1.Cause) string {
	if cause == nil {
		return ""
	}
	return fmt.Sprintf("after %s at revision %d", cause.GetVariable(), cause.GetRevision())
}

func newHistoryGetCommand(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:   "get NAME VERSION",
		Short: "Show the change that made a version",
		Long: `Shows the change that made a version of a variable, with the value, whole.

VERSION_NOT_AVAILABLE: the version is older than what is kept, or not there yet.`,
		Example:           `  setpoint history get temperature 1`,
		Args:              takes("NAME", "VERSION"),
		ValidArgsFunction: completes(c.completeVariables, c.completeVersions),
		RunE: func(cmd *cobra.Command, args []string) error {
			version, err := parseVersion(args[1])
			if err != nil {
				return err
			}
			api, err := c.connect(cmd)
			if err != nil {
				return err
			}
			entry, err := api.History.GetVariableVersion(cmd.Context(), &setpointv1.GetVariableVersionRequest{
				SessionId: c.session, Variable: args[0], Version: version})
			if err != nil {
				return err
			}
			return c.print(entry, func() string {
				return block(
					[2]string{"name", printable(entry.GetName())},
					[2]string{"version", versionText(entry)},
					[2]string{"value", valueText(entry.GetValue())},
					[2]string{"change", changeText(entry.GetChange())},
					[2]string{"reason", printable(entry.GetReason())},
					[2]string{"follows", printable(causeText(entry.GetCausedBy()))},
					[2]string{"expression", printable(entry.GetExpression())},
					[2]string{"error", printable(entry.GetError())},
					[2]string{"dependency", printable(entry.GetDependency())},
					[2]string{"optimization", printable(underText(entry))},
					[2]string{"metadata", mapText(entry.GetMetadata())},
					[2]string{"time", c.timeText(entry.GetChangedAt())},
					[2]string{"by", printable(entry.GetChangedBy())},
					[2]string{"revision", strconv.FormatInt(entry.GetRevision(), 10)},
					[2]string{"id", printable(entry.GetVariableId())},
				)
			})
		},
	}
}

func newHistoryRollbackCommand(c *cli) *cobra.Command {
	var expected int64
	request := &setpointv1.RollbackVariableRequest{}
	cmd := &cobra.Command{
		Use:   "rollback NAME VERSION",
		Short: "Set a variable to the value of an earlier version",
		Long: `Sets a variable to the value that it had at VERSION, as a new version: after 100 as
version 1 and 200 as version 2, a rollback to 1 makes version 3 of 100. Nothing is
erased, and a rollback can be rolled back.

VERSION_NOT_AVAILABLE: the version is older than what is kept, or not there yet.
CONSTRAINT_VIOLATION: today's constraints refuse its value. VERSION_MISMATCH:
--expected-version is not the current one. DERIVED_VARIABLE: its value is computed.
DERIVATION_FAILED: a strict variable that depends on it could not be.
ALREADY_OPTIMIZING, LEASE_LOST: somebody optimizes it, and --lease is not theirs, or is
over.`,
		Example: `  setpoint history rollback temperature 1
  setpoint history rollback temperature 0 --expected-version 5 --reason "0.9 rambled"`,
		Args:              takes("NAME", "VERSION"),
		ValidArgsFunction: completes(c.completeVariables, c.completeVersions),
	}
	addExpectedVersionFlag(cmd, &expected)
	addReasonFlag(cmd, &request.Reason)
	addLeaseFlag(cmd, &request.Lease)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		var err error
		request.Variable = args[0]
		if request.Version, err = parseVersion(args[1]); err != nil {
			return err
		}
		request.ExpectedVersion = ifChanged(cmd, "expected-version", &expected)
		api, err := c.connect(cmd)
		if err != nil {
			return err
		}
		request.SessionId = c.session
		variable, err := api.History.RollbackVariable(cmd.Context(), request)
		if err != nil {
			return err
		}
		return c.print(variable, func() string {
			return fmt.Sprintf("%s = %s  (version %d, revision %d; the value of version %d)\n",
				printable(variable.GetName()), valueText(variable.GetValue()), variable.GetVersion(),
				variable.GetRevision(), request.GetVersion())
		})
	}
	return cmd
}

func changeText(change setpointv1.HistoryChange) string {
	return enumText(change.String(), "HISTORY_CHANGE_")
}

func versionText(e *setpointv1.HistoryEntry) string {
	if e.Version == nil {
		return absent
	}
	return strconv.FormatInt(e.GetVersion(), 10)
}

func orAbsent(text string) string {
	if text == "" {
		return absent
	}
	return text
}
