package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

const aclReplaceLong = `Gives a variable the rules of a file in place of all that it has, at once: nobody meets
a state between. Rules for all of the session stay as they are. On a terminal it asks
first. Needs admin on the variable.

The file is what 'setpoint acl list --on NAME -o json' prints, of this variable or of
another one. Of each rule it takes the subject, the permissions, the effect, the
priority and the expiry; ids, times and principals are new. In one of your own making
a rule needs a subject and permissions:

  {"rules": [{"subject": "group:ops", "permissions": ["write"]},
             {"subject": "user:eve", "permissions": ["read"],
              "effect": "deny", "priority": 10}]}

Rules that have expired are left out, which a note on standard error says. No rules
leave the variable with none.

INVALID_FILE: the file is no such list, or has rules of several variables.
VARIABLE_NOT_FOUND: there is no such variable. INVALID_REQUEST: a rule is malformed.
LIMIT_EXCEEDED: there are too many rules.`

func newACLReplaceCommand(c *cli) *cobra.Command {
	var from string
	var yes bool
	request := &setpointv1.SetVariablePermissionsRequest{}
	cmd := &cobra.Command{
		Use:   "replace NAME --from FILE",
		Short: "Give a variable other rules, all at once",
		Long:  aclReplaceLong,
		Example: `  setpoint acl list --on temperature -o json > rules.json
  setpoint acl replace temperature --from rules.json --reason "as reviewed"
  setpoint acl list --on temperature -o json | setpoint acl replace top_p --from -
  echo '{}' | setpoint acl replace temperature --from -`,
		Args:              takes("NAME"),
		ValidArgsFunction: completes(c.completeVariables),
	}
	cmd.Flags().StringVar(&from, "from", "", "`FILE` with the rules, as JSON; - is standard input")
	addReasonFlag(cmd, &request.Reason)
	addRequestIDFlag(cmd, &request.RequestId)
	addYesFlag(cmd, &yes)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		var err error
		if request.Rules, err = c.readRules(from); err != nil {
			return err
		}
		api, err := c.connect(cmd)
		if err != nil {
			return err
		}
		question := fmt.Sprintf("Replace all access rules of variable %s of session %s by %s?", args[0], c.session,
			counted(len(request.GetRules()), "rule", "rules"))
		if err := c.confirmed(yes, question, "nothing was replaced"); err != nil {
			return err
		}
		request.SessionId, request.Variable = c.session, args[0]
		answer, err := api.Access.SetVariablePermissions(cmd.Context(), request)
		if err != nil {
			return err
		}
		return c.print(answer, func() string { return c.replacedText(args[0], answer) })
	}
	return cmd
}

func (c *cli) replacedText(name string, answer *setpointv1.SetVariablePermissionsResponse) string {
	text := &strings.Builder{}
	fmt.Fprintf(text, "%s has %s in place of %d  (revision %d)\n", printable(name),
		counted(len(answer.GetRules()), "rule", "rules"), answer.GetRemovedCount(), answer.GetRevision())
	t := &table{out: text, columns: ruleColumns, width: c.screen.width}
	for _, rule := range answer.GetRules() {
		t.rows = append(t.rows, c.ruleRow(rule))
	}
	if len(t.rows) > 0 {
		writePart(text, t, 0)
	}
	return text.String()
}

// readRules reads a list of rules, for them to be made again.
func (c *cli) readRules(from string) ([]*setpointv1.AccessRuleSpec, error) {
	name, reader := "standard input", c.stdin
	switch from {
	case "":
		return nil, usagef("give the rules --from a FILE, or from - for standard input")
	case "-":
	default:
		file, err := os.Open(from)
		if err != nil {
			return nil, usagef("--from: %v", err)
		}
		defer func() { _ = file.Close() }()
		name, reader = from, file
	}
	text, err := readText(name, reader)
	if err != nil {
		return nil, err
	}
	page, err := parseRules(name, text)
	if err != nil {
		return nil, err
	}
	if page.GetNextPageToken() != "" {
		return nil, invalidFile("%s has not all of the rules: its next_page_token is not empty", name)
	}
	return c.ruleSpecs(name, page.GetRules())
}

// protoPlace is where in the text protobuf found an error: not in the one that the user wrote, but in what was made of it.
var protoPlace = regexp.MustCompile(`^proto:[\s\x{a0}]*(\(line \d+:\d+\): )?`)

// parseRules reads the JSON of a list of rules, in which permissions and effects may also be as on the command line.
func parseRules(name, text string) (*setpointv1.ListAccessRulesResponse, error) {
	var document map[string]any
	decoder := json.NewDecoder(strings.NewReader(text))
	decoder.UseNumber()
	if err := decoder.Decode(&document); err != nil {
		return nil, invalidFile("%s: %s", name, jsonFault(text, err))
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return nil, invalidFile("%s: there is something behind the list of rules", name)
	}
	rules, _ := document["rules"].([]any)
	for i, rule := range rules {
		if rule, ok := rule.(map[string]any); ok {
			if err := nameEnums(rule); err != nil {
				return nil, invalidFile("%s: rule %d: %v", name, i+1, err)
			}
		}
	}
	exact, err := json.Marshal(document)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	page := &setpointv1.ListAccessRulesResponse{}
	if err := protojson.Unmarshal(exact, page); err != nil {
		return nil, invalidFile("%s is no list of rules: %s", name, protoPlace.ReplaceAllString(err.Error(), ""))
	}
	return page, nil
}

// jsonFault says what is wrong with a text that is no JSON object, and in which line.
func jsonFault(text string, err error) string {
	if strings.TrimSpace(text) == "" {
		return "it is empty; {} is no rules"
	}
	if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
		line := 1 + strings.Count(text[:min(int(syntax.Offset), len(text))], "\n")
		return fmt.Sprintf("it is no JSON: line %d: %v", line, err)
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return "it is no JSON: it ends too early"
	}
	return `it is no JSON object as {"rules": […]}`
}

// nameEnums puts a rule's words for permissions and its effect as the API has them.
func nameEnums(rule map[string]any) error {
	permissions, _ := rule["permissions"].([]any)
	for i, element := range permissions {
		word, ok := element.(string)
		if !ok {
			continue // numbers are protobuf's to judge
		}
		p, err := permissionOf(strings.TrimPrefix(word, permissionPrefix))
		if err != nil {
			return err
		}
		permissions[i] = p.String()
	}
	word, ok := rule["effect"].(string)
	if !ok {
		return nil
	}
	full := effectPrefix + strings.ToUpper(strings.TrimPrefix(word, effectPrefix))
	if _, ok := setpointv1.AccessEffect_value[full]; !ok {
		return fmt.Errorf("no effect %q; it is %s", word, strings.Join(enumWords(setpointv1.AccessEffect_name, effectPrefix), " or "))
	}
	rule["effect"] = full
	return nil
}

func (c *cli) ruleSpecs(name string, rules []*setpointv1.AccessRule) ([]*setpointv1.AccessRuleSpec, error) {
	var specs []*setpointv1.AccessRuleSpec
	expired := 0
	for _, rule := range rules {
		if first := rules[0]; rule.GetVariable() != first.GetVariable() || rule.GetVariableId() != first.GetVariableId() {
			return nil, invalidFile("%s has rules of several variables, or of one and all of the session; "+
				"'setpoint acl list --on' lists those of one", name)
		}
		spec := &setpointv1.AccessRuleSpec{Subject: rule.GetSubject(), Permissions: rule.GetPermissions(), Effect: rule.GetEffect(),
			Priority: rule.GetPriority()}
		if end := rule.GetExpiresAt(); end != nil {
			spec.Expiry = &setpointv1.AccessRuleSpec_ExpiresAt{ExpiresAt: end}
			if end.AsTime().Before(time.Now()) {
				expired++
				continue
			}
		}
		specs = append(specs, spec)
	}
	if expired == 0 {
		return specs, nil
	}
	_, err := fmt.Fprintf(c.stderr, "note: %s left out\n",
		counted(expired, "rule that has expired is", "rules that have expired are"))
	return specs, err
}
