package main

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

const aclLong = `A session belongs to the principal that created it, who may do everything with its
variables. What others may do, access rules say: each allows or denies a SUBJECT some
permissions, on one variable (--on) or on all of the session.

A SUBJECT is a principal, as user:ada, service:trainer-1 or session:run-7, or a group,
as group:ops. In it * is any run of characters, as in user:* or *: quote it, or the
shell may take it for file names.

The permissions, and what each includes:

  read       gets, lists, history, snapshots, the graph, optimizations
  write      read; sets, rollbacks, updates, deletes, dependencies; on all of the
             session also new variables
  observe    read; to watch
  optimize   read and write; to start optimizations, and all that is done in them
  admin      everything, and rules, access modes, checks of others, the audit

To allow one is to allow what it includes; to deny one is to deny what includes it. Of
the rules about a caller and a variable, the one with the highest priority decides,
and of those a denial. Where there is none, the variable's access mode does: private
(nothing), protected (read, observe) or public (read, write, observe, optimize); it is
set by 'setpoint var register --access' and 'setpoint var update --access'.

A change of the rules binds every call that comes after it, on every server. A variable
that somebody may not read is to them as one that does not exist; where its name would
show up elsewhere, it is (hidden).`

func newACLCommand(c *cli) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "acl",
		Short: "Access: who may do what",
		Long:  aclLong,
		Example: `  setpoint acl allow group:ops write --on temperature
  setpoint acl deny 'user:*' read --on prompt --priority 10
  setpoint acl check user:bob write --on temperature
  setpoint acl list`,
		Args: cobra.ArbitraryArgs,
		RunE: needsSubcommand,
	}
	cmd.AddCommand(newACLAllowCommand(c), newACLDenyCommand(c), newACLListCommand(c), newACLReplaceCommand(c),
		newACLRemoveCommand(c), newACLCheckCommand(c), newACLAuditCommand(c))
	return cmd
}

func newACLAllowCommand(c *cli) *cobra.Command {
	return newACLAddCommand(c, setpointv1.AccessEffect_ACCESS_EFFECT_ALLOW, &cobra.Command{
		Use:   "allow SUBJECT PERMISSION...",
		Short: "Let a subject do something",
		Long: `Adds a rule that allows a subject some permissions, with all that they include: on the
variable that --on names, or on all of the session.

Needs admin on what it is for. VARIABLE_NOT_FOUND: there is no such variable.
INVALID_REQUEST: that is no SUBJECT, or it would expire before it begins.
LIMIT_EXCEEDED: there are too many rules.`,
		Example: `  setpoint acl allow user:bob read
  setpoint acl allow service:tuner optimize --on learning_rate --expires 8h
  setpoint acl allow 'service:*' read observe --reason "dashboards"`,
	})
}

func newACLDenyCommand(c *cli) *cobra.Command {
	return newACLAddCommand(c, setpointv1.AccessEffect_ACCESS_EFFECT_DENY, &cobra.Command{
		Use:   "deny SUBJECT PERMISSION...",
		Short: "Keep a subject from something",
		Long: `Adds a rule that denies a subject some permissions, with all that include them: on the
variable that --on names, or on all of the session. To deny read is to deny everything.
It gives way to rules of a higher --priority, and does not bind the session's owner.

Needs admin on what it is for. VARIABLE_NOT_FOUND: there is no such variable.
INVALID_REQUEST: that is no SUBJECT, or it would expire before it begins.
LIMIT_EXCEEDED: there are too many rules.`,
		Example: `  setpoint acl deny user:bob write --on temperature
  setpoint acl deny 'user:*' optimize --priority 10 --expires "2026-12-24 18:00"`,
	})
}

// newACLAddCommand makes a command that adds rules of one effect.
func newACLAddCommand(c *cli, effect setpointv1.AccessEffect, cmd *cobra.Command) *cobra.Command {
	var expires string
	spec := &setpointv1.AccessRuleSpec{Effect: effect}
	request := &setpointv1.AddAccessRuleRequest{Rule: spec}
	cmd.Args = takes("SUBJECT", "PERMISSION...")
	cmd.ValidArgsFunction = c.completeGrant
	addOnFlag(cmd, &request.Variable, "the `variable` that the rule is for; left out, all of the session")
	cmd.Flags().Int32Var(&spec.Priority, "priority", 0, "`number` against other rules; the highest decides")
	addExpiresFlag(cmd, &expires)
	addReasonFlag(cmd, &request.Reason)
	addRequestIDFlag(cmd, &request.RequestId)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		var err error
		spec.Subject = args[0]
		if spec.Permissions, err = parsePermissions(args[1:]); err != nil {
			return err
		}
		if err := givenOn(cmd, request.GetVariable()); err != nil {
			return err
		}
		until, err := c.readExpiry(cmd, expires)
		switch {
		case err != nil:
			return err
		case until.ttl != nil:
			spec.Expiry = &setpointv1.AccessRuleSpec_Ttl{Ttl: until.ttl}
		case until.at != nil:
			spec.Expiry = &setpointv1.AccessRuleSpec_ExpiresAt{ExpiresAt: until.at}
		}
		api, err := c.connect(cmd)
		if err != nil {
			return err
		}
		request.SessionId = c.session
		rule, err := api.Access.AddAccessRule(cmd.Context(), request)
		if err != nil {
			return err
		}
		return c.print(rule, func() string {
			notes := append(c.ruleNotes(rule), fmt.Sprintf("revision %d", rule.GetRevision()))
			return fmt.Sprintf("%s %s on %s  (%s)\n", printable(rule.GetRuleId()), grantText(rule), c.ruleTarget(rule), strings.Join(notes, ", "))
		})
	}
	return cmd
}

func newACLListCommand(c *cli) *cobra.Command {
	request := &setpointv1.ListAccessRulesRequest{}
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the session's rules",
		Long: `Lists the rules of the session in the order in which they were added, those that have
expired too: all whose variable, or for which session, you have admin on. ON is
(all) where a rule is for all of the session; of a deleted variable it is the id, for
such a rule goes on deciding about its history.

With --on, only the rules for that variable are shown, though those for all of the
session count for it as well; 'setpoint acl check' weighs them all.`,
		Example: `  setpoint acl list
  setpoint acl list --on temperature
  setpoint acl list --subject 'user:*' -o json | jq -r '.rules[].rule_id'`,
		Args: takes(),
	}
	addOnFlag(cmd, &request.Variable, "only rules for this `variable`")
	cmd.Flags().StringVar(&request.Subject, "subject", "", "only rules whose `subject` reads like this")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := givenOn(cmd, request.GetVariable()); err != nil {
			return err
		}
		api, err := c.connect(cmd)
		if err != nil {
			return err
		}
		request.SessionId = c.session
		rules := list[*setpointv1.AccessRule]{
			field:   "rules",
			noun:    "rules",
			columns: ruleColumns,
			row:     c.ruleRow,
			fetch: func(token string, size int32) ([]*setpointv1.AccessRule, string, error) {
				request.PageToken, request.PageSize = token, size
				page, err := api.Access.ListAccessRules(cmd.Context(), request)
				return page.GetRules(), page.GetNextPageToken(), err
			},
		}
		return rules.run(c, 0)
	}
	return cmd
}

// ruleID is the form of a rule's id.
var ruleID = regexp.MustCompile(`^rule_[a-z0-9]{26}$`)

func newACLRemoveCommand(c *cli) *cobra.Command {
	var yes bool
	request := &setpointv1.RemoveAccessRuleRequest{}
	cmd := &cobra.Command{
		Use:   "remove RULE...",
		Short: "Take rules away",
		Long: `Removes rules, one after the other, by the ids that 'setpoint acl list' shows. On a
terminal it shows them and asks first. Needs admin on what each is for. With -o json it
prints one answer for each.

RULE_NOT_FOUND: the session has no such rule; those before it are removed.`,
		Example: `  setpoint acl remove rule_06h0lhte3psih41nb5srpr04kk
  setpoint acl remove rule_06h0lhte3psih41nb5srpr04kk --yes --reason "bob has left"`,
		Args:              takes("RULE..."),
		ValidArgsFunction: c.completeRules,
	}
	addReasonFlag(cmd, &request.Reason)
	cmd.Flags().StringVar(&request.RequestId, "request-id", "", "with one RULE: `id` under which this takes place once")
	addYesFlag(cmd, &yes)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		for _, id := range args {
			if !ruleID.MatchString(id) {
				return usagef("a rule is rule_ and 26 small letters and digits, not %q", id)
			}
		}
		if len(args) > 1 && request.GetRequestId() != "" {
			return usagef("--request-id is for one RULE")
		}
		api, err := c.connect(cmd)
		if err != nil {
			return err
		}
		if err := c.confirmRemoval(cmd, api, yes, args); err != nil {
			return err
		}
		request.SessionId = c.session
		for _, id := range args {
			request.RuleId = id
			answer, err := api.Access.RemoveAccessRule(cmd.Context(), request)
			if err != nil {
				return err
			}
			if err := c.print(answer, func() string {
				return fmt.Sprintf("removed %s  (revision %d)\n", id, answer.GetRevision())
			}); err != nil {
				return err
			}
		}
		return nil
	}
	return cmd
}

// confirmRemoval shows, where somebody is there to be asked, the rules that are to go, and asks.
func (c *cli) confirmRemoval(cmd *cobra.Command, api *client.Client, yes bool, ids []string) error {
	if yes || !c.screen.in || !c.screen.err {
		return nil
	}
	request := &setpointv1.ListAccessRulesRequest{SessionId: c.session, PageSize: pageSize}
	rules := map[string]*setpointv1.AccessRule{}
	for {
		page, err := api.Access.ListAccessRules(cmd.Context(), request)
		if err != nil {
			return err
		}
		for _, rule := range page.GetRules() {
			if slices.Contains(ids, rule.GetRuleId()) {
				rules[rule.GetRuleId()] = rule
			}
		}
		if request.PageToken = page.GetNextPageToken(); request.PageToken == "" || len(rules) == len(ids) {
			break
		}
	}
	for _, id := range ids {
		text := id + " is not there, or not for you to see"
		if rule := rules[id]; rule != nil {
			text = c.ruleText(rule) + " on " + c.ruleTarget(rule)
		}
		if _, err := fmt.Fprintln(c.stderr, text); err != nil {
			return fmt.Errorf("ask: %w", err)
		}
	}
	question := fmt.Sprintf("Remove %s of session %s?", counted(len(ids), "access rule", "access rules"), c.session)
	return c.confirmed(yes, question, "nothing was removed")
}

// ruleTarget is what a rule is for, in a sentence.
func (c *cli) ruleTarget(rule *setpointv1.AccessRule) string {
	if isForSession(rule) {
		return "all of session " + printable(c.session)
	}
	return printable(rule.GetVariable())
}

var ruleColumns = []column{{title: "RULE"}, {title: "SUBJECT", long: true}, {title: "EFFECT"}, {title: "PERMISSIONS"},
	{title: "ON", long: true}, {title: "PRIORITY", right: true}, {title: "EXPIRES", spare: 2}, {title: "GRANTED BY", long: true, spare: 1}}

func (c *cli) ruleRow(r *setpointv1.AccessRule) []string {
	on := printable(r.GetVariable())
	if isForSession(r) {
		on = "(all)"
	}
	return []string{printable(r.GetRuleId()), printable(r.GetSubject()), effectText(r.GetEffect()),
		permissionsText(r.GetPermissions()), on, strconv.FormatInt(int64(r.GetPriority()), 10),
		c.endText(r.GetExpiresAt()), printable(r.GetGrantedBy())}
}

func isForSession(r *setpointv1.AccessRule) bool {
	return r.GetVariable() == "" && r.GetVariableId() == ""
}

// grantText says what a rule does, as "allows user:ada read, write".
func grantText(r *setpointv1.AccessRule) string {
	does := "allows"
	if r.GetEffect() == setpointv1.AccessEffect_ACCESS_EFFECT_DENY {
		does = "denies"
	}
	return fmt.Sprintf("%s %s %s", does, printable(r.GetSubject()), permissionsText(r.GetPermissions()))
}

// ruleNotes are a rule's priority and end, as far as it has them.
func (c *cli) ruleNotes(r *setpointv1.AccessRule) []string {
	var notes []string
	if r.GetPriority() != 0 {
		notes = append(notes, fmt.Sprintf("priority %d", r.GetPriority()))
	}
	if r.GetExpiresAt() != nil {
		notes = append(notes, "until "+c.timeText(r.GetExpiresAt()))
	}
	return notes
}

// ruleText is a rule on one line, without what it is for; of one of which only the id is known, that.
func (c *cli) ruleText(r *setpointv1.AccessRule) string {
	text := printable(r.GetRuleId())
	if r.GetSubject() != "" {
		text += " " + grantText(r)
	}
	if notes := c.ruleNotes(r); len(notes) > 0 {
		text += " (" + strings.Join(notes, ", ") + ")"
	}
	return text
}

func effectText(effect setpointv1.AccessEffect) string {
	if effect == setpointv1.AccessEffect_ACCESS_EFFECT_UNSPECIFIED {
		return "allow"
	}
	return enumText(effect.String(), effectPrefix)
}

// effectPrefix is what the names of the effects begin with in the API's enum.
const effectPrefix = "ACCESS_EFFECT_"

// permissionPrefix is what the names of the permissions begin with in the API's enum.
const permissionPrefix = "PERMISSION_"

func permissionText(p setpointv1.Permission) string { return enumText(p.String(), permissionPrefix) }

func permissionsText(permissions []setpointv1.Permission) string {
	words := make([]string, 0, len(permissions))
	for _, p := range permissions {
		words = append(words, permissionText(p))
	}
	return strings.Join(words, ", ")
}

// permissionOf reads a word for a permission.
func permissionOf(word string) (setpointv1.Permission, error) {
	p, ok := setpointv1.Permission_value[permissionPrefix+strings.ToUpper(word)]
	if !ok || p == 0 {
		return 0, usagef("no permission %q; the permissions are %s", word, enumList(setpointv1.Permission_name, permissionPrefix))
	}
	return setpointv1.Permission(p), nil
}

// parsePermissions reads words for permissions, or lists of them as "read,write".
func parsePermissions(lists []string) ([]setpointv1.Permission, error) {
	if len(lists) == 0 {
		return nil, nil
	}
	var permissions []setpointv1.Permission
	for word := range strings.SplitSeq(strings.Join(lists, ","), ",") {
		word = strings.TrimSpace(word)
		p, err := permissionOf(word)
		if err != nil {
			return nil, err
		}
		if slices.Contains(permissions, p) {
			return nil, usagef("the permission %s is given twice", strings.ToLower(word))
		}
		permissions = append(permissions, p)
	}
	return permissions, nil
}

func addOnFlag(cmd *cobra.Command, variable *string, usage string) {
	cmd.Flags().StringVar(variable, "on", "", usage)
}

// givenOn refuses an --on that is empty, as of a shell's variable that is not set: it would be all of the session.
func givenOn(cmd *cobra.Command, names ...string) error {
	if cmd.Flags().Changed("on") && slices.Contains(names, "") {
		return usagef("--on is the name of a variable, and not empty")
	}
	return nil
}

// endText says when something is over: never, where it is not to be.
func (c *cli) endText(end *timestamppb.Timestamp) string {
	switch {
	case end == nil:
		return "never"
	case end.AsTime().Before(time.Now()):
		return c.timeText(end) + " (expired)"
	}
	return c.timeText(end)
}
