package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// moment is the --revision and --time of the commands that look back.
type moment struct {
	revision int64
	time     string
}

func addMomentFlags(cmd *cobra.Command) *moment {
	m := &moment{}
	cmd.Flags().Int64Var(&m.revision, "revision", 0, "as of this `revision` of the session")
	cmd.Flags().StringVar(&m.time, "time", "",
		"as of this `time`: 2026-01-31T15:04:05Z, 2026-01-31 15:04:05 (local), or how long ago, as 90m")
	return m
}

// read returns the revision or the time that was given; both are nil if none was.
func (m *moment) read(c *cli, cmd *cobra.Command) (*int64, *timestamppb.Timestamp, error) {
	byRevision, byTime := cmd.Flags().Changed("revision"), cmd.Flags().Changed("time")
	switch {
	case byRevision && byTime:
		return nil, nil, usagef("give --revision or --time, not both")
	case byRevision:
		return &m.revision, nil, nil
	case !byTime:
		return nil, nil, nil
	}
	at, ok := c.parsePast(m.time)
	if !ok {
		return nil, nil, usagef("--time %q is no time; write it as 2026-01-31T15:04:05Z or 90m", m.time)
	}
	return nil, timestamppb.New(at), nil
}

// parsePast reads a time, or how long ago it was.
func (c *cli) parsePast(text string) (time.Time, bool) {
	if ago, err := time.ParseDuration(text); err == nil {
		return time.Now().Add(-ago), true
	}
	return c.parseTime(text)
}

// parseTime reads a time as RFC 3339 has it, or as people write it, which is local.
func (c *cli) parseTime(text string) (time.Time, bool) {
	if t, err := time.Parse(time.RFC3339Nano, text); err == nil {
		return t, true
	}
	for _, layout := range []string{"2006-01-02 15:04:05", "2006-01-02 15:04", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, text, c.zone); err == nil {
			return t, true
		}
	}
	return time.Time{}, false
}

func newHistorySnapshotCommand(c *cli) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "snapshot",
		Short: "Show all variables as they stood",
		Long: `Shows the session's variables as they stood at a revision or a time; without either,
as they stand. All of it is as of one revision, however many pages it takes.

HISTORY_TRUNCATED: the history is not kept that far back.`,
		Example: `  setpoint history snapshot --revision 120
  setpoint history snapshot --time 90m
  setpoint history snapshot --time "2026-01-31 15:04" -o json`,
		Args: takes(),
	}
	at := addMomentFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		revision, when, err := at.read(c, cmd)
		if err != nil {
			return err
		}
		api, err := c.connect(cmd)
		if err != nil {
			return err
		}
		request := &setpointv1.GetSnapshotRequest{SessionId: c.session}
		switch {
		case revision != nil:
			request.At = &setpointv1.GetSnapshotRequest_Revision{Revision: *revision}
		case when != nil:
			request.At = &setpointv1.GetSnapshotRequest_Time{Time: when}
		}
		var asOf int64
		variables := list[*setpointv1.SnapshotVariable]{
			field:   "variables",
			noun:    "variables",
			columns: []column{{title: "NAME"}, {title: "TYPE"}, {title: "VERSION", right: true}, {title: "METADATA", long: true}, {title: "VALUE", long: true}},
			row: func(v *setpointv1.SnapshotVariable) []string {
				return []string{printable(v.GetName()), typeText(v.GetType()), strconv.FormatInt(v.GetVersion(), 10),
					orAbsent(mapText(v.GetMetadata())), valueText(v.GetValue())}
			},
			member: func() string { return fmt.Sprintf("\"revision\": \"%d\"", asOf) },
			fetch: func(token string, size int32) ([]*setpointv1.SnapshotVariable, string, error) {
				request.PageToken, request.PageSize = token, size
				page, err := api.History.GetSnapshot(cmd.Context(), request)
				asOf = page.GetRevision()
				return page.GetVariables(), page.GetNextPageToken(), err
			},
		}
		if err := variables.run(c, 0); err != nil || c.output == "json" {
			return err
		}
		_, err = fmt.Fprintf(c.stdout, "as of revision %d\n", asOf)
		return err
	}
	return cmd
}

func newHistoryRollbackSessionCommand(c *cli) *cobra.Command {
	var all bool
	request := &setpointv1.RollbackSessionRequest{}
	cmd := &cobra.Command{
		Use:   "rollback-session",
		Short: "Set all variables to their values of a revision or a time",
		Long: `Gives every variable that has changed since a revision or a time its value of then, as
a new version, all or none. Variables that were registered or deleted since are left
as they are, and named. Derived variables are not restored but computed from what is.
Below come those that were recomputed to another value, and those that became stale.
Look first with --dry-run: it shows the same, and writes nothing.

HISTORY_TRUNCATED: the history is not kept that far back. CONSTRAINT_VIOLATION:
today's constraints refuse a value of then. DERIVATION_FAILED: a strict variable could
not be computed. ALREADY_OPTIMIZING: somebody optimizes one of the variables, and no
--lease is theirs; LEASE_LOST: a lease is over. In all cases nothing was changed.`,
		Example: `  setpoint history rollback-session --revision 120 --dry-run
  setpoint history rollback-session --time 90m --reason "evaluation got worse"`,
		Args: takes(),
	}
	to := addMomentFlags(cmd)
	addReasonFlag(cmd, &request.Reason)
	addLeasesFlag(cmd, &request.Leases)
	cmd.Flags().BoolVar(&request.DryRun, "dry-run", false, "show what would change, and change nothing")
	cmd.Flags().StringVar(&request.RequestId, "request-id", "", "`id` that makes repeats of this call harmless")
	addAllEffectsFlag(cmd, &all)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		revision, when, err := to.read(c, cmd)
		switch {
		case err != nil:
			return err
		case revision != nil:
			request.To = &setpointv1.RollbackSessionRequest_Revision{Revision: *revision}
		case when != nil:
			request.To = &setpointv1.RollbackSessionRequest_Time{Time: when}
		default:
			return usagef("give --revision or --time")
		}
		api, err := c.connect(cmd)
		if err != nil {
			return err
		}
		request.SessionId = c.session
		answer, err := api.History.RollbackSession(cmd.Context(), request)
		if err != nil {
			return err
		}
		if c.output == "json" {
			return c.print(answer, nil)
		}
		return c.printRollback(answer, request.GetDryRun(), all)
	}
	return cmd
}

// printRollback writes what a rollback did as a difference: the name, the value of then, the value before.
func (c *cli) printRollback(answer *setpointv1.RollbackSessionResponse, dryRun, all bool) error {
	text := &strings.Builder{}
	t := &table{out: text, width: c.screen.width, columns: []column{
		{title: "NAME"}, {title: "THEN", long: true}, {title: "NOW", long: true}, {title: "VERSION", right: true},
	}}
	for _, v := range answer.GetRestored() {
		then, now := valueText(v.GetThen()), valueText(v.GetPrevious())
		if v.GetThen() == nil {
			then, now = "(not shown)", "(not shown)"
		}
		t.rows = append(t.rows, []string{printable(v.GetName()), then, now, fmt.Sprintf("%d → %d", v.GetPreviousVersion(), v.GetVersion())})
	}
	if len(t.rows) > 0 {
		if err := t.flush(); err != nil {
			return err
		}
	}
	did := "restored"
	if dryRun {
		did = "would restore"
	}
	noun := "variables"
	if len(answer.GetRestored()) == 1 {
		noun = "variable"
	}
	fmt.Fprintf(text, "%s %d %s as of revision %d; unchanged since: %d\n", did, len(answer.GetRestored()), noun,
		answer.GetTargetRevision(), answer.GetUnchangedCount())
	writeNames(text, "registered since, left as they are", answer.GetRegisteredSince())
	writeNames(text, "deleted since, still deleted", answer.GetDeletedSince())
	text.WriteString(c.effectsText(effects{recomputed: answer.GetRecomputed(), stale: answer.GetStale(),
		omitted: answer.GetValuesOmitted()}, all))
	if _, err := io.WriteString(c.stdout, text.String()); err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	return nil
}

func writeNames(w io.Writer, what string, names []string) {
	if len(names) == 0 {
		return
	}
	_, _ = fmt.Fprintf(w, "%s: %s\n", what, namesText(names)) // To memory.
}
