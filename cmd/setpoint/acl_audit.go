package main

import (
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// auditPrefix is what the names of the kinds of audit events begin with in the API's enum.
const auditPrefix = "AUDIT_EVENT_KIND_"

func newACLAuditCommand(c *cli) *cobra.Command {
	f := &auditFlags{}
	request := &setpointv1.ListAuditEventsRequest{}
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "List who was denied what, and who changed who may do what",
		Long: `Lists what was audited, newest first: of the session, which needs admin on all of it, or
with --all-sessions of the whole server, which is for its admins. --kind picks kinds:
` + wrapped(strings.Fields(enumList(setpointv1.AuditEventKind_name, auditPrefix)), 84) + `.

BY is who did it, or was denied it; PERMISSION is what was denied, and METHOD the call.
DETAIL has the rule, token or optimization that it is about, and the reason that was
given. Denials are written within a second, in which they may not show yet.

With -o json, next_page_token is not empty where --limit left events out.`,
		Example: `  setpoint acl audit
  setpoint acl audit --kind access_denied --principal user:eve --since 24h
  setpoint acl audit --on temperature --since 2026-11-01 --until 2026-12-01 --limit 0
  setpoint acl audit --all-sessions --kind token_created --kind token_revoked`,
		Args: takes(),
	}
	f.add(cmd, request)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := f.read(c, cmd, request); err != nil {
			return err
		}
		api, err := c.connect(cmd)
		if err != nil {
			return err
		}
		if !f.allSessions {
			request.SessionId = c.session
		}
		events := list[*setpointv1.AuditEvent]{
			field:   "events",
			noun:    "events",
			columns: auditColumns(f.allSessions),
			row:     func(e *setpointv1.AuditEvent) []string { return c.auditRow(e, f.allSessions) },
			fetch: func(token string, size int32) ([]*setpointv1.AuditEvent, string, error) {
				request.PageToken, request.PageSize = token, size
				page, err := api.Access.ListAuditEvents(cmd.Context(), request)
				return page.GetEvents(), page.GetNextPageToken(), err
			},
		}
		return events.run(c, f.limit)
	}
	return cmd
}

// auditFlags are the flags of 'acl audit' that are not the request's own fields.
type auditFlags struct {
	kinds        []string
	since, until string
	limit        int
	allSessions  bool
}

func (f *auditFlags) add(cmd *cobra.Command, request *setpointv1.ListAuditEventsRequest) {
	flags := cmd.Flags()
	flags.StringArrayVar(&f.kinds, "kind", nil, "only this `kind` of event; repeatable")
	flags.StringVar(&request.Principal, "principal", "", "only what this `principal` did, or was denied")
	addOnFlag(cmd, &request.Variable, "only events about this `variable`, by the name that they have")
	flags.StringVar(&f.since, "since", "",
		"only from this `time` on: 2026-01-31T15:04:05Z, 2026-01-31 15:04:05 (local), or how long ago, as 90m")
	flags.StringVar(&f.until, "until", "", "only before this `time`, written as of --since")
	flags.IntVar(&f.limit, "limit", 100, "greatest `number` of events; 0 is all")
	flags.BoolVar(&f.allSessions, "all-sessions", false, "events of the whole server, also those that are of no session")
}

// read puts what was given into the request.
func (f *auditFlags) read(c *cli, cmd *cobra.Command, request *setpointv1.ListAuditEventsRequest) error {
	switch {
	case f.limit < 0:
		return usagef("--limit %d is negative", f.limit)
	case f.allSessions && cmd.Flags().Changed("session"):
		return usagef("give --session or --all-sessions, not both")
	}
	if err := givenOn(cmd, request.GetVariable()); err != nil {
		return err
	}
	for _, name := range f.kinds {
		kind, ok := setpointv1.AuditEventKind_value[auditPrefix+strings.ToUpper(strings.ReplaceAll(name, "-", "_"))]
		if !ok || kind == 0 {
			return usagef("no kind of event %q; the kinds are %s", name, enumList(setpointv1.AuditEventKind_name, auditPrefix))
		}
		request.Kinds = append(request.Kinds, setpointv1.AuditEventKind(kind))
	}
	var err error
	if request.Since, err = c.readPast(cmd, "since", f.since); err != nil {
		return err
	}
	request.Until, err = c.readPast(cmd, "until", f.until)
	return err
}

// readPast reads a flag that is a time, or how long ago it was; nil where it was not given.
func (c *cli) readPast(cmd *cobra.Command, flag, text string) (*timestamppb.Timestamp, error) {
	if !cmd.Flags().Changed(flag) {
		return nil, nil
	}
	at, ok := c.parsePast(text)
	if !ok {
		return nil, usagef("--%s %q is no time; write it as 2026-01-31T15:04:05Z or 90m", flag, text)
	}
	return timestamppb.New(at), nil
}

func auditColumns(allSessions bool) []column {
	columns := []column{{title: "TIME"}, {title: "KIND"}}
	if allSessions {
		columns = append(columns, column{title: "SESSION", long: true})
	}
	return append(columns, column{title: "BY", long: true}, column{title: "PERMISSION"}, column{title: "ON", long: true},
		column{title: "METHOD", spare: 1}, column{title: "DETAIL", long: true})
}

func (c *cli) auditRow(e *setpointv1.AuditEvent, allSessions bool) []string {
	row := []string{c.timeText(e.GetOccurredAt()), enumText(e.GetKind().String(), auditPrefix)}
	if allSessions {
		row = append(row, orAbsent(printable(e.GetSessionId())))
	}
	permission := absent
	if e.GetPermission() != setpointv1.Permission_PERMISSION_UNSPECIFIED {
		permission = permissionText(e.GetPermission())
	}
	return append(row, printable(e.GetPrincipal()), permission, orAbsent(printable(e.GetVariable())),
		orAbsent(printable(strings.TrimPrefix(e.GetMethod(), "setpoint.v1."))), orAbsent(c.auditDetail(e)))
}

// auditDetail is what an event is about beside its columns, on one line.
func (c *cli) auditDetail(e *setpointv1.AuditEvent) string {
	var parts []string
	add := func(text string) {
		if text != "" {
			parts = append(parts, printable(text))
		}
	}
	add(e.GetReason())
	if e.GetRule() != nil {
		parts = append(parts, c.ruleText(e.GetRule()))
	}
	add(e.GetTokenId())
	add(e.GetOptimizationId())
	add(e.GetDetail())
	return strings.Join(parts, "; ")
}
