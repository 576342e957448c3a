package main

import (
	"bufio"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

func newSessionCommand(c *cli) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "session",
		Short: "Sessions: the namespaces that variables live in",
		Long: `A session is a namespace of variables with an owner and a time to live. Every call
that succeeds in a session extends its life to another full ttl; past that, it is
gone with all its variables, and its id may be taken again.

'setpoint dev' creates the session "default", which never ends.`,
		Example: `  setpoint session create run-7 --ttl 24h
  setpoint session list 'run-*'
  setpoint session export run-7 run-7.jsonl`,
		Args: cobra.ArbitraryArgs,
		RunE: needsSubcommand,
	}
	cmd.AddCommand(newSessionCreateCommand(c), newSessionGetCommand(c), newSessionListCommand(c),
		newSessionKeepAliveCommand(c), newSessionDeleteCommand(c), newSessionExportCommand(c), newSessionImportCommand(c))
	return cmd
}

func newSessionCreateCommand(c *cli) *cobra.Command {
	var ttl time.Duration
	var metadata []string
	cmd := &cobra.Command{
		Use:   "create [ID]",
		Short: "Open a session",
		Long: `Opens a session, which the caller then owns. ID is 1 to 128 letters, digits and
. _ : - with a letter or digit first; left out, it is made up.

SESSION_EXISTS: a session of this ID is alive.`,
		Example: `  setpoint session create run-7
  setpoint session create production --ttl 0 --metadata team=search`,
		Args: takes("[ID]"),
		RunE: func(cmd *cobra.Command, args []string) error {
			request := &setpointv1.CreateSessionRequest{SessionId: strings.Join(args, "")}
			if cmd.Flags().Changed("ttl") {
				request.Ttl = durationpb.New(ttl)
			}
			var err error
			if request.Metadata, err = parseMetadata(metadata); err != nil {
				return err
			}
			api, err := c.connect(cmd)
			if err != nil {
				return err
			}
			session, err := api.Sessions.CreateSession(cmd.Context(), request)
			if err != nil {
				return err
			}
			return c.print(session, func() string { return "created " + c.sessionLine(session) })
		},
	}
	cmd.Flags().DurationVar(&ttl, "ttl", time.Hour,
		"how `long` the session outlives the last call in it: 1s to 720h, or 0 for no end")
	cmd.Flags().StringArrayVar(&metadata, "metadata", nil, "`KEY=VALUE` to keep with the session; repeatable")
	return cmd
}

func newSessionGetCommand(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:   "get ID",
		Short: "Show a session",
		Long: `Shows a session. Its revision is the number of changes that were ever made under
its id; expires is when it ends, unless a call comes before.`,
		Example:           `  setpoint session get run-7`,
		Args:              takes("ID"),
		ValidArgsFunction: completes(c.completeSessions),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := c.connect(cmd)
			if err != nil {
				return err
			}
			session, err := api.Sessions.GetSession(cmd.Context(), &setpointv1.GetSessionRequest{SessionId: args[0]})
			if err != nil {
				return err
			}
			return c.print(session, func() string {
				return block(
					[2]string{"session", printable(session.GetSessionId())},
					[2]string{"owner", printable(session.GetOwner())},
					[2]string{"variables", strconv.FormatInt(session.GetVariableCount(), 10)},
					[2]string{"revision", strconv.FormatInt(session.GetRevision(), 10)},
					[2]string{"ttl", ttlText(session)},
					[2]string{"created", c.timeText(session.GetCreatedAt())},
					[2]string{"expires", c.expiresText(session)},
					[2]string{"metadata", mapText(session.GetMetadata())},
				)
			})
		},
	}
}

func newSessionListCommand(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:   "list [PATTERN]",
		Short: "List the live sessions",
		Long: `Lists the live sessions by id. In PATTERN, * is any run of characters; quote it, or
the shell may take it for file names.`,
		Example: `  setpoint session list
  setpoint session list 'run-*' -o json`,
		Args:              takes("[PATTERN]"),
		ValidArgsFunction: completes(c.completeSessions),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := c.connect(cmd)
			if err != nil {
				return err
			}
			sessions := list[*setpointv1.Session]{
				field: "sessions",
				noun:  "sessions",
				columns: []column{{title: "SESSION"}, {title: "OWNER"}, {title: "VARIABLES", right: true},
					{title: "REVISION", right: true}, {title: "TTL"}, {title: "EXPIRES"}, {title: "METADATA", long: true}},
				row: func(s *setpointv1.Session) []string {
					return []string{printable(s.GetSessionId()), printable(s.GetOwner()),
						strconv.FormatInt(s.GetVariableCount(), 10), strconv.FormatInt(s.GetRevision(), 10),
						ttlText(s), c.expiresText(s), mapText(s.GetMetadata())}
				},
				fetch: func(token string, size int32) ([]*setpointv1.Session, string, error) {
					page, err := api.Sessions.ListSessions(cmd.Context(), &setpointv1.ListSessionsRequest{
						Pattern: strings.Join(args, ""), PageSize: size, PageToken: token})
					return page.GetSessions(), page.GetNextPageToken(), err
				},
			}
			return sessions.run(c, 0)
		},
	}
}

func newSessionKeepAliveCommand(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:   "keep-alive ID",
		Short: "Extend a session's life",
		Long: `Extends a session's life to a full ttl from now, as every other call that succeeds
in the session does too.`,
		Example:           `  setpoint session keep-alive run-7`,
		Args:              takes("ID"),
		ValidArgsFunction: completes(c.completeSessions),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := c.connect(cmd)
			if err != nil {
				return err
			}
			session, err := api.Sessions.KeepSessionAlive(cmd.Context(),
				&setpointv1.KeepSessionAliveRequest{SessionId: args[0]})
			if err != nil {
				return err
			}
			return c.print(session, func() string { return "kept " + c.sessionLine(session) })
		},
	}
}

func newSessionDeleteCommand(c *cli) *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:   "delete ID",
		Short: "End a session and remove its variables",
		Long: `Ends a session at once, as if it had expired: its variables are gone, and its history
is left to those who read the database. On a terminal it asks first.`,
		Example: `  setpoint session delete run-7
  setpoint session delete run-7 --yes`,
		Args:              takes("ID"),
		ValidArgsFunction: completes(c.completeSessions),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := c.connect(cmd)
			if err != nil {
				return err
			}
			if err := c.confirm(yes, fmt.Sprintf("Delete session %s and all its variables?", args[0])); err != nil {
				return err
			}
			answer, err := api.Sessions.DeleteSession(cmd.Context(),
				&setpointv1.DeleteSessionRequest{SessionId: args[0]})
			if err != nil {
				return err
			}
			return c.print(answer, func() string { return fmt.Sprintf("deleted session %s\n", printable(args[0])) })
		},
	}
	addYesFlag(cmd, &yes)
	return cmd
}

func (c *cli) sessionLine(session *setpointv1.Session) string {
	if session.GetExpiresAt() == nil {
		return fmt.Sprintf("session %s  (never ends)\n", printable(session.GetSessionId()))
	}
	return fmt.Sprintf("session %s  (ttl %s, expires %s)\n",
		printable(session.GetSessionId()), ttlText(session), c.timeText(session.GetExpiresAt()))
}

func ttlText(session *setpointv1.Session) string {
	if session.GetTtl() == nil {
		return absent
	}
	return durationText(session.GetTtl().AsDuration())
}

func (c *cli) expiresText(session *setpointv1.Session) string {
	if session.GetExpiresAt() == nil {
		return "never"
	}
	return c.timeText(session.GetExpiresAt())
}

func addYesFlag(cmd *cobra.Command, yes *bool) {
	cmd.Flags().BoolVarP(yes, "yes", "y", false, "do not ask")
}

// confirm asks before something is lost, where there is somebody to ask.
func (c *cli) confirm(yes bool, question string) error {
	return c.confirmed(yes, question, "nothing was deleted")
}

// confirmed is confirm where a no leaves something else undone.
func (c *cli) confirmed(yes bool, question, undone string) error {
	if yes || !c.screen.in || !c.screen.err {
		return nil
	}
	if _, err := fmt.Fprintf(c.stderr, "%s [y/N] ", printable(question)); err != nil {
		return fmt.Errorf("ask: %w", err)
	}
	// What ends without an answer has the answer no.
	answer, _ := bufio.NewReader(c.stdin).ReadString('\n')
	switch strings.ToLower(strings.TrimSpace(answer)) {
	case "y", "yes":
		return nil
	}
	return &reasonError{reason: "CANCELLED", message: undone}
}
