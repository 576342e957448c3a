package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

const sessionExportLong = `Writes a session's variables to FILE, or to standard output, for 'setpoint session
import': values, constraints, metadata, history limits, access modes, dependencies and
expressions, exactly. With --history, the kept versions of each variable follow it,
oldest first. Access rules are not in it: 'setpoint acl list -o json' writes those.

What you may not read is not in it either. A variable that depends on such a one has
(hidden) in its place; a note says how many do. Those cannot be imported as they are.

The export is JSON lines: a header with the session's metadata, ttl and revision; a
line for each variable, by name; and an end with their number. It is read and written
a page at a time, however large the session is. FILE appears under its name when it is
whole, readable by you alone; a file that is there is replaced.

Pages are read one after the other. Where somebody changes the session meanwhile, a
note says so, and the export may hold one variable from before and another from after
that change.

With -o json, an export to FILE prints what it did as JSON.

SESSION_NOT_FOUND: there is no such session.`

func newSessionExportCommand(c *cli) *cobra.Command {
	var history bool
	cmd := &cobra.Command{
		Use:   "export ID [FILE]",
		Short: "Write a session's variables to a file",
		Long:  sessionExportLong,
		Example: `  setpoint session export run-7 run-7.jsonl
  setpoint session export run-7 run-7.jsonl --history
  setpoint session export run-7 | gzip > run-7.jsonl.gz
  setpoint session export run-7 | jq -r '.variable.name // empty'
  setpoint session export staging | setpoint session import production --merge replace`,
		Args:              takes("ID", "[FILE]"),
		ValidArgsFunction: completes(c.completeSessions, completeFiles),
	}
	cmd.Flags().BoolVar(&history, "history", false, "write the kept versions of each variable too")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		api, err := c.connect(cmd)
		if err != nil {
			return err
		}
		e := &exporter{api: api, sessionID: args[0], history: history}
		if len(args) == 1 || args[1] == "-" {
			e.progress = &progress{c: c, noun: "variables"}
			if err := e.run(cmd.Context(), c.stdout); err != nil {
				return err
			}
			return c.noteExport(e)
		}
		e.progress = &progress{c: c, noun: "variables", beside: true}
		err = writeFile(args[1], func(w io.Writer) error { return e.run(cmd.Context(), w) })
		if err != nil {
			return err
		}
		if err := c.noteExport(e); err != nil {
			return err
		}
		return c.printExported(e, args[1])
	}
	return cmd
}

// noteExport tells that the export is not whole, or not of one moment.
func (c *cli) noteExport(e *exporter) error {
	if e.hidden > 0 {
		if _, err := fmt.Fprintf(c.stderr, "note: %s on what you may not read, and cannot be imported as the file has it\n",
			counted(e.hidden, "variable depends", "variables depend")); err != nil {
			return err
		}
	}
	if e.begin == e.end.Revision {
		return nil
	}
	_, err := fmt.Fprintf(c.stderr, "note: session %s changed during the export, from revision %d to %d\n",
		printable(e.sessionID), e.begin, e.end.Revision)
	return err
}

func (c *cli) printExported(e *exporter, path string) error {
	return c.printSummary(struct {
		SessionID string `json:"session_id"`
		File      string `json:"file"`
		archiveEnd
	}{e.sessionID, path, e.end}, func() string {
		versions := ""
		if e.history {
			versions = fmt.Sprintf(" and %d versions", e.end.History)
		}
		return fmt.Sprintf("exported %d variables%s of session %s to %s  (revision %d)\n",
			e.end.Variables, versions, printable(e.sessionID), printable(path), e.end.Revision)
	})
}

// printSummary prints what a command did that is more than one call: as JSON, or as text for people.
func (c *cli) printSummary(summary any, text func() string) error {
	if c.output == "json" {
		document, err := json.MarshalIndent(summary, "", "  ")
		if err != nil {
			return fmt.Errorf("write JSON: %w", err)
		}
		text = func() string { return string(document) + "\n" }
	}
	if _, err := io.WriteString(c.stdout, text()); err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	return nil
}

// exporter is one export of a session.
type exporter struct {
	api       *client.Client
	sessionID string
	history   bool
	progress  *progress

	// begin is the session's revision before the first variable was read; end counts what was written.
	begin int64
	end   archiveEnd
	// hidden counts the variables that depend on others that the caller may not read.
	hidden int
}

// run writes the export. It holds a page of variables, and at most two of history.
func (e *exporter) run(ctx context.Context, w io.Writer) error {
	defer e.progress.end()
	session, err := e.api.Sessions.GetSession(ctx, &setpointv1.GetSessionRequest{SessionId: e.sessionID})
	if err != nil {
		return err
	}
	e.begin, e.progress.total = session.GetRevision(), session.GetVariableCount()
	out := &archiveWriter{out: bufio.NewWriterSize(w, 64<<10)}
	if err := out.header(newArchiveHeader(session, e.history, time.Now())); err != nil {
		return err
	}
	for variable, err := range sessionVariables(ctx, e.api, e.sessionID) {
		if err != nil {
			return err
		}
		if err := e.write(ctx, out, variable); err != nil {
			return err
		}
		e.progress.add(1)
	}
	if session, err = e.api.Sessions.GetSession(ctx, &setpointv1.GetSessionRequest{SessionId: e.sessionID}); err != nil {
		return err
	}
	e.end.Revision = session.GetRevision()
	if err := out.end(e.end); err != nil {
		return err
	}
	if err := out.out.Flush(); err != nil {
		return fmt.Errorf("write export: %w", err)
	}
	return nil
}

func (e *exporter) write(ctx context.Context, out *archiveWriter, variable *setpointv1.Variable) error {
	e.end.Variables++
	if slices.Contains(variable.GetDependsOn(), hiddenName) {
		e.hidden++
	}
	variable.Optimization = nil // who has a lease at this moment is not a part of what the variable is
	if err := out.record(lineVariable, variable); err != nil || !e.history {
		return err
	}
	for entry, err := range versionsOf(ctx, e.api, variable) {
		if err != nil {
			return err
		}
		e.end.History++
		if err := out.record(lineHistory, entry); err != nil {
			return err
		}
	}
	return nil
}

// sessionVariables are the variables of a session, by name, read a page at a time. Pages are of different moments.
func sessionVariables(ctx context.Context, api *client.Client, sessionID string) iter.Seq2[*setpointv1.Variable, error] {
	return func(yield func(*setpointv1.Variable, error) bool) {
		request := &setpointv1.ListVariablesRequest{SessionId: sessionID, PageSize: pageSize}
		for {
			page, err := api.Variables.ListVariables(ctx, request)
			if err != nil {
				yield(nil, err)
				return
			}
			for _, variable := range page.GetVariables() {
				if !yield(variable, nil) {
					return
				}
			}
			if page.GetNextPageToken() == "" {
				return
			}
			request.PageToken = page.GetNextPageToken()
		}
	}
}

// versionsOf are the versions that are kept of a variable, oldest first, up to the one that it was read at. It is none
// where the variable was deleted since.
//
// The server lists the newest first. So the pages are read to the end, of which only their tokens are kept, and those
// between the first and the last are read again on the way back: versions never change, so a page after the first is
// the same each time, but for the oldest versions, which may have gone.
func versionsOf(ctx context.Context, api *client.Client, v *setpointv1.Variable) iter.Seq2[*setpointv1.HistoryEntry, error] {
	list := func(token string) (*setpointv1.ListHistoryResponse, error) {
		return api.History.ListHistory(ctx, &setpointv1.ListHistoryRequest{
			SessionId: v.GetSessionId(), Variable: v.GetVariableId(), PageSize: pageSize, PageToken: token})
	}
	return func(yield func(*setpointv1.HistoryEntry, error) bool) {
		first, err := list("")
		page, tokens := first, []string{""}
		for err == nil && page.GetNextPageToken() != "" {
			tokens = append(tokens, page.GetNextPageToken())
			page, err = list(page.GetNextPageToken())
		}
		for i := len(tokens) - 1; err == nil; i-- {
			for _, entry := range slices.Backward(page.GetEntries()) {
				if entry.GetVersion() <= v.GetVersion() && !yield(entry, nil) {
					return
				}
			}
			switch i {
			case 0:
				return
			case 1:
				page = first
			default:
				page, err = list(tokens[i-1])
			}
		}
		if !errors.Is(err, client.ErrVariableNotFound) {
			yield(nil, err)
		}
	}
}

// writeFile makes a file of what a function writes: whole under its name, or not at all. A path that is there and no
// regular file, such as a pipe, is written to as it is.
func writeFile(path string, write func(io.Writer) error) error {
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		out, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return fmt.Errorf("write file: %w", err)
		}
		return errors.Join(write(out), out.Close())
	}
	if target, err := filepath.EvalSymlinks(path); err == nil {
		path = target // a link stays a link
	}
	out, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("write file: %w", err)
	}
	err = write(out)
	if err == nil {
		err = out.Sync()
	}
	err = errors.Join(err, out.Close())
	if err == nil {
		err = os.Rename(out.Name(), path)
	}
	if err != nil {
		_ = os.Remove(out.Name()) // what went wrong is what there is to tell
	}
	return err
}
