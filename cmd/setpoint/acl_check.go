package main

import (
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

const aclCheckLong = `Tells whether a subject has a permission, and why: yes or no, and what decided. The
exit status is 0 for yes, and 1 for no, without an error line; so a script can ask,
but has to look at standard error to tell a no from a failure.

SUBJECT is a principal, with --group in the groups that are given, or me: whoever runs
the command, as the server knows them. Everybody may ask about themselves; about others
it needs admin. Of others it is not looked at whether they are server admins.

Without --on it is about the session as a whole, as for a variable that is yet to be
registered. Several permissions, or --on several times, are answered as of one moment,
in a table; the status is then 0 if all are allowed. To those who may list the rule
that decides, a second line shows it.`

// aclMe is the subject that is the caller: no principal reads like that.
const aclMe = "me"

func newACLCheckCommand(c *cli) *cobra.Command {
	var on, groups []string
	cmd := &cobra.Command{
		Use:   "check SUBJECT PERMISSION...",
		Short: "Tell whether a subject may do something, and why",
		Long:  aclCheckLong,
		Example: `  setpoint acl check me write --on temperature
  setpoint acl check user:bob write --on temperature --group group:ops
  setpoint acl check service:tuner optimize --on learning_rate --on momentum
  setpoint acl check user:bob read write -o json | jq '.results[].allowed'`,
		Args:              takes("SUBJECT", "PERMISSION..."),
		ValidArgsFunction: c.completeGrant,
	}
	cmd.Flags().StringArrayVar(&on, "on", nil, "`variable` that it is about; repeatable")
	cmd.Flags().StringArrayVar(&groups, "group", nil, "`group` that the subject is in, as group:ops; repeatable")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		checks, err := readChecks(args, on, groups)
		if err != nil {
			return err
		}
		if err := givenOn(cmd, on...); err != nil {
			return err
		}
		api, err := c.connect(cmd)
		if err != nil {
			return err
		}
		if len(checks) == 1 {
			return c.checkOne(cmd, api, checks[0])
		}
		return c.checkAll(cmd, api, checks)
	}
	return cmd
}

// readChecks makes of a subject and permissions, and what they are to be on, each single check.
func readChecks(args, on, groups []string) ([]*setpointv1.AccessQuery, error) {
	subject := args[0]
	switch {
	case subject == "":
		return nil, usagef("SUBJECT is empty; write me for yourself")
	case subject == aclMe && len(groups) > 0:
		return nil, usagef("--group is for another SUBJECT than me, whose groups the server knows")
	case subject == aclMe:
		subject = ""
	}
	permissions, err := parsePermissions(args[1:])
	if err != nil {
		return nil, err
	}
	if len(on) == 0 {
		on = []string{""}
	}
	var checks []*setpointv1.AccessQuery
	for _, variable := range on {
		for _, permission := range permissions {
			checks = append(checks, &setpointv1.AccessQuery{Variable: variable, Permission: permission, Subject: subject,
				SubjectGroups: groups})
		}
	}
	return checks, nil
}

func (c *cli) checkOne(cmd *cobra.Command, api *client.Client, check *setpointv1.AccessQuery) error {
	answer, err := api.Access.CheckAccess(cmd.Context(), &setpointv1.CheckAccessRequest{SessionId: c.session,
		Variable: check.GetVariable(), Permission: check.GetPermission(), Subject: check.GetSubject(),
		SubjectGroups: check.GetSubjectGroups()})
	if err != nil {
		return err
	}
	if err := c.print(answer, func() string {
		text := yesNo(answer.GetAllowed())
		if answer.GetReason() != "" {
			text += ": " + printable(answer.GetReason())
		}
		// Whoever may not list the rule knows no more of it than the reason says.
		if answer.GetRule().GetSubject() != "" {
			text += "\n" + c.ruleText(answer.GetRule())
		}
		return text + "\n"
	}); err != nil {
		return err
	}
	return statusOf(answer)
}

func (c *cli) checkAll(cmd *cobra.Command, api *client.Client, checks []*setpointv1.AccessQuery) error {
	answer, err := api.Access.BatchCheckAccess(cmd.Context(),
		&setpointv1.BatchCheckAccessRequest{SessionId: c.session, Checks: checks})
	if err != nil {
		return err
	}
	if err := c.print(answer, func() string {
		text := &strings.Builder{}
		t := &table{out: text, width: c.screen.width,
			columns: []column{{title: "ON", long: true}, {title: "PERMISSION"}, {title: "ALLOWED"}, {title: "WHY", long: true}}}
		for i, result := range answer.GetResults() {
			on := "(all)"
			if checks[i].GetVariable() != "" {
				on = printable(checks[i].GetVariable())
			}
			t.rows = append(t.rows, []string{on, permissionText(checks[i].GetPermission()), yesNo(result.GetAllowed()),
				orAbsent(printable(result.GetReason()))})
		}
		_ = t.flush() // to memory
		return text.String()
	}); err != nil {
		return err
	}
	return statusOf(answer.GetResults()...)
}

// statusOf ends the command with the status of a no, if there is one.
func statusOf(answers ...*setpointv1.CheckAccessResponse) error {
	if slices.ContainsFunc(answers, func(a *setpointv1.CheckAccessResponse) bool { return !a.GetAllowed() }) {
		return negativeAnswer{}
	}
	return nil
}
