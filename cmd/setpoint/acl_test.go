package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

const (
	bobsRule  = "rule_bbbbbbbbbbbbbbbbbbbbbbbbbb"
	opsRule   = "rule_oooooooooooooooooooooooooo"
	thirdRule = "rule_tttttttttttttttttttttttttt"

	mayRead     = setpointv1.Permission_PERMISSION_READ
	mayWrite    = setpointv1.Permission_PERMISSION_WRITE
	mayOptimize = setpointv1.Permission_PERMISSION_OPTIMIZE
	mayAdmin    = setpointv1.Permission_PERMISSION_ADMIN
	allows      = setpointv1.AccessEffect_ACCESS_EFFECT_ALLOW
	denies      = setpointv1.AccessEffect_ACCESS_EFFECT_DENY
)

// inYear is a moment long before or after any on which the tests run.
func inYear(year int) *timestamppb.Timestamp {
	return timestamppb.New(time.Date(year, 1, 31, 15, 4, 5, 0, time.UTC))
}

func bobMayRead() *setpointv1.AccessRule {
	return &setpointv1.AccessRule{RuleId: bobsRule, Subject: "user:bob", Permissions: []setpointv1.Permission{mayRead, mayWrite},
		Effect: allows, Variable: "temperature", VariableId: "var_t", GrantedBy: "user:ada", GrantedAt: at("16:00:00"), Revision: 12}
}

func opsMayNot() *setpointv1.AccessRule {
	return &setpointv1.AccessRule{RuleId: opsRule, Subject: "group:o\x1b*", Permissions: []setpointv1.Permission{mayOptimize}, Effect: denies,
		Priority: -5, ExpiresAt: inYear(2999), GrantedBy: "user:ada", GrantedAt: at("16:00:00"), Revision: 13}
}

// Each command about access: what goes to the server, what comes out.
func TestAccessCommands(t *testing.T) {
	t.Parallel()
	expired := bobMayRead()
	expired.RuleId, expired.Variable, expired.VariableId, expired.ExpiresAt = thirdRule, "var_gone", "var_gone", inYear(2001)
	tests := []struct {
		args    []string
		answer  proto.Message
		request proto.Message
		out     string
	}{
		{
			args: []string{"acl", "allow", "user:bob", "read", "WRITE", "--on", "temperature", "--reason", "why", "--request-id", "once",
				"--expires", "8h"},
			answer: bobMayRead(),
			request: &setpointv1.AddAccessRuleRequest{SessionId: "default", Variable: "temperature", Reason: "why", RequestId: "once",
				Rule: &setpointv1.AccessRuleSpec{Subject: "user:bob", Permissions: []setpointv1.Permission{mayRead, mayWrite}, Effect: allows,
					Expiry: &setpointv1.AccessRuleSpec_Ttl{Ttl: durationpb.New(8 * time.Hour)}}},
			out: bobsRule + " allows user:bob read, write on temperature  (revision 12)\n",
		},
		{
			args:   []string{"--session", "s", "acl", "deny", "group:o*", "optimize", "--priority", "-5", "--expires", "2999-01-31 15:04:05"},
			answer: opsMayNot(),
			request: &setpointv1.AddAccessRuleRequest{SessionId: "s",
				Rule: &setpointv1.AccessRuleSpec{Subject: "group:o*", Permissions: []setpointv1.Permission{mayOptimize}, Effect: denies, Priority: -5,
					Expiry: &setpointv1.AccessRuleSpec_ExpiresAt{ExpiresAt: inYear(2999)}}},
			out: opsRule + " denies group:o\\x1b* optimize on all of session s  (priority -5, until 2999-01-31 15:04:05, revision 13)\n",
		},
		{
			// What is malformed is for the server to say, which knows more than this program.
			args:   []string{"acl", "allow", "bob the builder", "read,optimize", "--expires", "1ns"},
			answer: bobMayRead(),
			request: &setpointv1.AddAccessRuleRequest{SessionId: "default", Rule: &setpointv1.AccessRuleSpec{Subject: "bob the builder",
				Permissions: []setpointv1.Permission{mayRead, mayOptimize}, Effect: allows, Expiry: &setpointv1.AccessRuleSpec_Ttl{Ttl: durationpb.New(1)}}},
			out: bobsRule + " allows user:bob read, write on temperature  (revision 12)\n",
		},
		{
			args:    []string{"acl", "list", "--on", "temperature", "--subject", "user:*"},
			answer:  &setpointv1.ListAccessRulesResponse{Rules: []*setpointv1.AccessRule{bobMayRead(), opsMayNot(), expired}},
			request: &setpointv1.ListAccessRulesRequest{SessionId: "default", Variable: "temperature", Subject: "user:*", PageSize: 1000},
			out: "RULE                             SUBJECT       EFFECT  PERMISSIONS  ON           PRIORITY  EXPIRES                        GRANTED BY\n" +
				bobsRule + "  user:bob      allow   read, write  temperature         0  never                          user:ada\n" +
				opsRule + "  group:o\\x1b*  deny    optimize     (all)              -5  2999-01-31 15:04:05            user:ada\n" +
				thirdRule + "  user:bob      allow   read, write  var_gone            0  2001-01-31 15:04:05 (expired)  user:ada\n",
		},
		{
			args:    []string{"acl", "remove", bobsRule, "--reason", "why", "--request-id", "once"},
			answer:  &setpointv1.RemoveAccessRuleResponse{Revision: 14},
			request: &setpointv1.RemoveAccessRuleRequest{SessionId: "default", RuleId: bobsRule, Reason: "why", RequestId: "once"},
			out:     "removed " + bobsRule + "  (revision 14)\n",
		},
		{
			args: []string{"acl", "check", "user:bob", "write", "--on", "temperature", "--group", "group:ops", "--group", "group:a"},
			answer: &setpointv1.CheckAccessResponse{Allowed: true, Reason: "user:bob may write temperature: so there", Rule: bobMayRead(),
				Decider: setpointv1.AccessDecider_ACCESS_DECIDER_RULE},
			request: &setpointv1.CheckAccessRequest{SessionId: "default", Variable: "temperature", Permission: mayWrite, Subject: "user:bob",
				SubjectGroups: []string{"group:ops", "group:a"}},
			out: "yes: user:bob may write temperature: so there\n" + bobsRule + " allows user:bob read, write\n",
		},
		{
			args:    []string{"acl", "check", "me", "admin"},
			answer:  &setpointv1.CheckAccessResponse{Allowed: true, Reason: "it is\na server admin"},
			request: &setpointv1.CheckAccessRequest{SessionId: "default", Permission: mayAdmin},
			out:     "yes: it is\\na server admin\n",
		},
		{
			args: []string{"acl", "check", "me", "read", "write", "--on", "a", "--on", "b"},
			answer: &setpointv1.BatchCheckAccessResponse{Results: []*setpointv1.CheckAccessResponse{
				{Allowed: true, Reason: "one"}, {Allowed: true, Reason: "two"}, {Allowed: true}, {Allowed: true, Reason: "four"}}},
			request: &setpointv1.BatchCheckAccessRequest{SessionId: "default", Checks: []*setpointv1.AccessQuery{
				{Variable: "a", Permission: mayRead}, {Variable: "a", Permission: mayWrite},
				{Variable: "b", Permission: mayRead}, {Variable: "b", Permission: mayWrite}}},
			out: "ON  PERMISSION  ALLOWED  WHY\n" +
				"a   read        yes      one\n" +
				"a   write       yes      two\n" +
				"b   read        yes      -\n" +
				"b   write       yes      four\n",
		},
		{
			args: []string{"acl", "audit", "--kind", "access-denied", "--kind", "RULE_ADDED", "--principal", "user:eve", "--on", "temperature",
				"--since", "2001-01-31 15:04:05", "--until", "2999-01-31T16:04:05+01:00", "--limit", "7"},
			answer: &setpointv1.ListAuditEventsResponse{Events: []*setpointv1.AuditEvent{
				{EventId: "evt_3", OccurredAt: at("16:00:00"), Kind: setpointv1.AuditEventKind_AUDIT_EVENT_KIND_ACCESS_DENIED, SessionId: "default",
					Principal: "user:eve", Permission: mayWrite, Variable: "temperature", Rule: &setpointv1.AccessRule{RuleId: opsRule},
					Method: "setpoint.v1.VariableService/SetVariable"},
				{EventId: "evt_2", OccurredAt: at("15:00:00"), Kind: setpointv1.AuditEventKind_AUDIT_EVENT_KIND_RULE_ADDED, SessionId: "default",
					Principal: "user:ada", Variable: "temperature", Rule: bobMayRead(), Reason: "wh\x1by", Method: "setpoint.v1.AccessService/AddAccessRule"},
				{EventId: "evt_1", OccurredAt: at("14:00:00"), Kind: setpointv1.AuditEventKind_AUDIT_EVENT_KIND_STOP_FORCED, SessionId: "default",
					Principal: "user:ada", OptimizationId: "opt_1", Detail: "of user:bob"},
			}},
			request: &setpointv1.ListAuditEventsRequest{SessionId: "default", Principal: "user:eve", Variable: "temperature", PageSize: 7,
				Kinds: []setpointv1.AuditEventKind{setpointv1.AuditEventKind_AUDIT_EVENT_KIND_ACCESS_DENIED,
					setpointv1.AuditEventKind_AUDIT_EVENT_KIND_RULE_ADDED}, Since: inYear(2001), Until: inYear(2999)},
			out: "TIME                 KIND           BY        PERMISSION  ON           METHOD                       DETAIL\n" +
				"2026-11-23 16:00:00  access_denied  user:eve  write       temperature  VariableService/SetVariable  " + opsRule + "\n" +
				"2026-11-23 15:00:00  rule_added     user:ada  -           temperature  AccessService/AddAccessRule  wh\\x1by; " + bobsRule + " allows user:bob read, write\n" +
				"2026-11-23 14:00:00  stop_forced    user:ada  -           -            -                            opt_1; of user:bob\n",
		},
		{
			args: []string{"acl", "audit", "--all-sessions"},
			answer: &setpointv1.ListAuditEventsResponse{Events: []*setpointv1.AuditEvent{
				{OccurredAt: at("16:00:00"), Kind: setpointv1.AuditEventKind_AUDIT_EVENT_KIND_TOKEN_CREATED, Principal: "os:ada@host", TokenId: "tok_1",
					Detail: "for user:ada"},
				{OccurredAt: at("15:00:00"), Kind: setpointv1.AuditEventKind_AUDIT_EVENT_KIND_ACCESS_MODE_SET, SessionId: "s", Principal: "user:ada",
					Variable: "v", Detail: "public"}}},
			request: &setpointv1.ListAuditEventsRequest{PageSize: 100},
			out: "TIME                 KIND             SESSION  BY           PERMISSION  ON  METHOD  DETAIL\n" +
				"2026-11-23 16:00:00  token_created    -        os:ada@host  -           -   -       tok_1; for user:ada\n" +
				"2026-11-23 15:00:00  access_mode_set  s        user:ada     -           v   -       public\n",
		},
		{
			args:   []string{"var", "register", "seed", "integer", "7", "--access", "Protected"},
			answer: &setpointv1.Variable{Name: "seed", Type: kindInteger, Value: client.Integer(7)},
			request: &setpointv1.RegisterVariableRequest{SessionId: "default", Name: "seed", Type: kindInteger, Value: mustParse(t, "7"),
				AccessMode: setpointv1.AccessMode_ACCESS_MODE_PROTECTED},
			out: "seed = 7  (integer, version 0, revision 0)\n",
		},
		{
			args:    []string{"var", "update", "seed", "--access", "private"},
			answer:  &setpointv1.Variable{Name: "seed", Version: 1, Revision: 4},
			request: &setpointv1.UpdateVariableRequest{SessionId: "default", Variable: "seed", AccessMode: setpointv1.AccessMode_ACCESS_MODE_PRIVATE},
			out:     "seed updated  (version 1, revision 4)\n",
		},
		{
			args: []string{"var", "get", "ratio"},
			answer: &setpointv1.Variable{Name: "ratio", Type: kindInteger, Value: client.Integer(2), DependsOn: []string{"(hidden)", "hits"},
				Expression: "(hidden)", AccessMode: setpointv1.AccessMode_ACCESS_MODE_PUBLIC,
				Stale: &setpointv1.Stale{Revision: 11, Cause: "(hidden)", Error: "(hidden)"}},
			request: &setpointv1.GetVariableRequest{SessionId: "default", Variable: "ratio"},
			out: "name:          ratio\n" +
				"value:         2\n" +
				"type:          integer\n" +
				"expression:    (hidden)\n" +
				"depends on:    (hidden), hits\n" +
				"stale:         since revision 11, after (hidden)\n" +
				"error:         (hidden)\n" +
				"version:       0\n" +
				"revision:      0\n" +
				"history limit: all\n" +
				"access:        public\n" +
				"created:       -\n" +
				"updated:       -\n",
		},
		{
			args: []string{"history", "list", "--change", "access-rule-added", "--change", "access_rule_removed"},
			answer: &setpointv1.ListHistoryResponse{Entries: []*setpointv1.HistoryEntry{
				{Revision: 14, Change: setpointv1.HistoryChange_HISTORY_CHANGE_ACCESS_RULE_REMOVED, AccessRule: opsMayNot(), ChangedBy: "user:ada"},
				{Revision: 12, Name: "temperature", Change: setpointv1.HistoryChange_HISTORY_CHANGE_ACCESS_RULE_ADDED, AccessRule: bobMayRead(),
					ChangedBy: "user:ada", Reason: "why"},
			}},
			request: &setpointv1.ListHistoryRequest{SessionId: "default", PageSize: 100, Changes: []setpointv1.HistoryChange{
				setpointv1.HistoryChange_HISTORY_CHANGE_ACCESS_RULE_ADDED, setpointv1.HistoryChange_HISTORY_CHANGE_ACCESS_RULE_REMOVED}},
			out: "REVISION  TIME  NAME         CHANGE               VERSION  BY        REASON" + strings.Repeat(" ", 97) + "METADATA  VALUE\n" +
				"      14  -     -            access_rule_removed        -  user:ada  " + opsRule +
				" denies group:o\\x1b* optimize (priority -5, until 2999-01-31 15:04:05)  -         -\n" +
				"      12  -     temperature  access_rule_added          -  user:ada  why; " + bobsRule + " allows user:bob read, write" +
				strings.Repeat(" ", 37) + "  -         -\n",
		},
	}
	for _, tt := range tests {
		t.Run(strings.Join(tt.args, " "), func(t *testing.T) {
			t.Parallel()
			p := newPeer(t, always(tt.answer, nil))
			got := p.setpoint(t, tt.args...)
			if diff := cmp.Diff(result{out: tt.out}, got, cmp.AllowUnexported(result{})); diff != "" {
				t.Fatalf("result (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.request, p.last(t), protocmp.Transform()); diff != "" {
				t.Errorf("request (-want +got):\n%s", diff)
			}
			checkJSON(t, p.setpoint(t, append(tt.args, "-o", "json")...), tt.answer)
		})
	}
}

// mustParse is a VALUE as the command line sends it.
func mustParse(t *testing.T, text string) *setpointv1.Value {
	t.Helper()
	value, err := parseValue(input{text: text})
	if err != nil {
		t.Fatal(err)
	}
	return value.value
}

// A no is an answer, with a status of its own and no error line.
func TestCheckSaysNo(t *testing.T) {
	t.Parallel()
	no := &setpointv1.CheckAccessResponse{Reason: "no rule is about it", Decider: setpointv1.AccessDecider_ACCESS_DECIDER_ACCESS_MODE}
	ruled := &setpointv1.CheckAccessResponse{Reason: "a rule denies it", Rule: &setpointv1.AccessRule{RuleId: opsRule}}
	yes := &setpointv1.CheckAccessResponse{Allowed: true, Reason: "it owns the session"}
	tests := []struct {
		args   []string
		answer proto.Message
		out    string
	}{
		{[]string{"read"}, no, "no: no rule is about it\n"},
		{[]string{"read"}, ruled, "no: a rule denies it\n"},
		{[]string{"read", "write"}, &setpointv1.BatchCheckAccessResponse{Results: []*setpointv1.CheckAccessResponse{yes, no}},
			"ON     PERMISSION  ALLOWED  WHY\n(all)  read        yes      it owns the session\n(all)  write       no       no rule is about it\n"},
	}
	for _, tt := range tests {
		p := newPeer(t, always(tt.answer, nil))
		args := append([]string{"acl", "check", "user:bob"}, tt.args...)
		if diff := cmp.Diff(result{status: 1, out: tt.out}, p.setpoint(t, args...), cmp.AllowUnexported(result{})); diff != "" {
			t.Errorf("%q (-want +got):\n%s", tt.args, diff)
		}
		asJSON := p.setpoint(t, append(args, "-o", "json")...)
		if asJSON.status != 1 || asJSON.err != "" {
			t.Errorf("-o json: %+v", asJSON)
		}
		asJSON.status = 0
		checkJSON(t, asJSON, tt.answer)
	}
}

func TestRemoveSeveralRules(t *testing.T) {
	t.Parallel()
	answer := func(request proto.Message) (proto.Message, error) {
		if page, ok := request.(*setpointv1.ListAccessRulesRequest); ok {
			if page.GetPageToken() == "" {
				return &setpointv1.ListAccessRulesResponse{Rules: []*setpointv1.AccessRule{bobMayRead()}, NextPageToken: "2"}, nil
			}
			return &setpointv1.ListAccessRulesResponse{Rules: []*setpointv1.AccessRule{opsMayNot()}}, nil
		}
		if request.(*setpointv1.RemoveAccessRuleRequest).GetRuleId() == opsRule {
			return nil, refusal(t, codes.NotFound, "RULE_NOT_FOUND", "no such rule")
		}
		return &setpointv1.RemoveAccessRuleResponse{Revision: 14}, nil
	}
	terminal := screen{in: true, err: true}
	const question = bobsRule + " allows user:bob read, write on temperature\n" +
		thirdRule + " is not there, or not for you to see\n" +
		opsRule + " denies group:o\\x1b* optimize (priority -5, until 2999-01-31 15:04:05) on all of session default\n" +
		"Remove 3 access rules of session default? [y/N] "
	removed := "removed " + bobsRule + "  (revision 14)\nremoved " + thirdRule + "  (revision 14)\n"
	tests := []struct {
		name   string
		flags  []string
		stdin  string
		screen screen
		want   result
		calls  int
	}{
		{"in a pipe", nil, "", screen{}, result{status: 1, out: removed, err: "error: RULE_NOT_FOUND: no such rule\n"}, 3},
		{"no", nil, "n\n", terminal, result{status: 1, err: question + "error: CANCELLED: nothing was removed\n"}, 0},
		{"yes", nil, "y\n", terminal, result{status: 1, out: removed, err: question + "error: RULE_NOT_FOUND: no such rule\n"}, 3},
		{"--yes", []string{"--yes"}, "", terminal, result{status: 1, out: removed, err: "error: RULE_NOT_FOUND: no such rule\n"}, 3},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := newPeer(t, answer)
			args := append([]string{"--addr", p.addr, "acl", "remove", bobsRule, thirdRule, opsRule}, tt.flags...)
			got := invocation{args: args, stdin: tt.stdin, screen: tt.screen}.run(t)
			if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(result{})); diff != "" {
				t.Errorf("result (-want +got):\n%s", diff)
			}
			ids := map[string]bool{}
			calls := 0
			for _, request := range p.requests {
				if removal, ok := request.(*setpointv1.RemoveAccessRuleRequest); ok {
					calls++
					ids[removal.GetRequestId()] = true
				}
			}
			if calls != tt.calls || len(ids) != tt.calls {
				t.Errorf("got %d calls under %d request ids, want %d", calls, len(ids), tt.calls)
			}
		})
	}
}

// What 'acl list' prints, 'acl replace' reads.
func TestReplaceRules(t *testing.T) {
	t.Parallel()
	until, expired := bobMayRead(), bobMayRead()
	until.ExpiresAt, until.Priority, until.Effect = inYear(2999), 3, denies
	expired.ExpiresAt = inYear(2001)
	listed, err := jsonText(&setpointv1.ListAccessRulesResponse{Rules: []*setpointv1.AccessRule{bobMayRead(), expired, until}}, "")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "rules.json")
	if err := os.WriteFile(path, []byte(listed), 0o600); err != nil {
		t.Fatal(err)
	}
	specs := []*setpointv1.AccessRuleSpec{
		{Subject: "user:bob", Permissions: []setpointv1.Permission{mayRead, mayWrite}, Effect: allows},
		{Subject: "user:bob", Permissions: []setpointv1.Permission{mayRead, mayWrite}, Effect: denies, Priority: 3,
			Expiry: &setpointv1.AccessRuleSpec_ExpiresAt{ExpiresAt: inYear(2999)}},
	}
	answer := &setpointv1.SetVariablePermissionsResponse{Rules: []*setpointv1.AccessRule{bobMayRead()}, Revision: 15, RemovedCount: 4}
	const note = "note: 1 rule that has expired is left out\n"
	const table = "\nRULE                             SUBJECT   EFFECT  PERMISSIONS  ON           PRIORITY  EXPIRES  GRANTED BY\n" +
		bobsRule + "  user:bob  allow   read, write  temperature         0  never    user:ada\n"
	tests := []struct {
		name, from, stdin string
		screen            screen
		rules             []*setpointv1.AccessRuleSpec
		answer            *setpointv1.SetVariablePermissionsResponse
		want              result
	}{
		{"a file", path, "", screen{}, specs, answer, result{out: "top_p has 1 rule in place of 4  (revision 15)\n" + table, err: note}},
		{"standard input", "-", listed, screen{}, specs, answer, result{out: "top_p has 1 rule in place of 4  (revision 15)\n" + table, err: note}},
		{"by hand", "-", `{"rules": [{"subject": "*", "permissions": ["PERMISSION_READ"]}]}`, screen{},
			[]*setpointv1.AccessRuleSpec{{Subject: "*", Permissions: []setpointv1.Permission{mayRead}}}, answer,
			result{out: "top_p has 1 rule in place of 4  (revision 15)\n" + table}},
		{"by hand, in words", "-", `{"rules": [{"subject": "*", "permissions": ["Read", "optimize"], "effect": "deny", "priority": 10}]}`, screen{},
			[]*setpointv1.AccessRuleSpec{{Subject: "*", Permissions: []setpointv1.Permission{mayRead, mayOptimize}, Effect: denies, Priority: 10}}, answer,
			result{out: "top_p has 1 rule in place of 4  (revision 15)\n" + table}},
		{"none", "-", "{}", screen{}, nil, &setpointv1.SetVariablePermissionsResponse{Revision: 15},
			result{out: "top_p has 0 rules in place of 0  (revision 15)\n"}},
		{"nobody confirms", path, "\n", screen{in: true, err: true}, nil, nil, result{status: 1,
			err: note + "Replace all access rules of variable top_p of session default by 2 rules? [y/N] error: CANCELLED: nothing was replaced\n"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := newPeer(t, always(tt.answer, nil))
			args := []string{"--addr", p.addr, "acl", "replace", "top_p", "--from", tt.from, "--reason", "why", "--request-id", "once"}
			got := invocation{args: args, stdin: tt.stdin, screen: tt.screen}.run(t)
			if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(result{})); diff != "" {
				t.Fatalf("result (-want +got):\n%s", diff)
			}
			if tt.answer == nil {
				return
			}
			request := &setpointv1.SetVariablePermissionsRequest{SessionId: "default", Variable: "top_p", Rules: tt.rules, Reason: "why",
				RequestId: "once"}
			if diff := cmp.Diff(proto.Message(request), p.last(t), protocmp.Transform()); diff != "" {
				t.Errorf("request (-want +got):\n%s", diff)
			}
			asJSON := invocation{args: append(args, "-o", "json", "--yes"), stdin: tt.stdin}.run(t)
			asJSON.err = ""
			checkJSON(t, asJSON, tt.answer)
		})
	}
}

func TestReplaceRulesByABadFile(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, text, want string }{
		{"nothing", "", "INVALID_FILE: standard input: it is empty; {} is no rules"},
		{"no JSON", "user:bob=read", "INVALID_FILE: standard input: it is no JSON: line 1: "},
		{"a comma too many", "{\"rules\": [\n{},\n]}", "INVALID_FILE: standard input: it is no JSON: line 3: "},
		{"half of it", `{"rules": [`, "INVALID_FILE: standard input: it is no JSON: it ends too early"},
		{"two documents", `{} {}`, "INVALID_FILE: standard input: there is something behind"},
		{"a list", `[]`, "INVALID_FILE: standard input: it is no JSON object as {"},
		{"another document", `{"tokens": []}`, `INVALID_FILE: standard input is no list of rules: unknown field "tokens"`},
		{"no permission", `{"rules": [{"subject": "*", "permissions": ["read", "reed"]}]}`,
			`INVALID_FILE: standard input: rule 1: no permission "reed"; the permissions are read, write, observe, optimize, admin`},
		{"no effect", `{"rules": [{}, {"subject": "*", "effect": "maybe"}]}`,
			`INVALID_FILE: standard input: rule 2: no effect "maybe"; it is allow or deny`},
		{"a number for a subject", `{"rules": [{"subject": 7}]}`, "INVALID_FILE: standard input is no list of rules: invalid value for string"},
		{"of two variables", `{"rules": [{"subject": "*", "variable": "a"}, {"subject": "*", "variable": "b"}]}`, "INVALID_FILE: standard input has rules of several"},
		{"of one and of all of the session", `{"rules": [{"subject": "*", "variable": "a"}, {"subject": "*"}]}`, "INVALID_FILE: standard input has rules of several"},
		{"a part of a list", `{"rules": [], "next_page_token": "x"}`, "INVALID_FILE: standard input has not all of the rules"},
		{"no text", "\xff", "USAGE: standard input: the value is not UTF-8 text"},
	}
	for _, tt := range tests {
		p := newPeer(t, always(&setpointv1.SetVariablePermissionsResponse{}, nil))
		got := invocation{args: []string{"--addr", p.addr, "acl", "replace", "a", "--from", "-"}, stdin: tt.text}.run(t)
		if got.status == 0 || got.out != "" || !strings.HasPrefix(got.err, "error: "+tt.want) || p.count() != 0 {
			t.Errorf("%s: got %+v in %d calls", tt.name, got, p.count())
		}
	}
}

// What followed from a change is told of those variables that the caller may read; of others, how many they are.
func TestHiddenEffects(t *testing.T) {
	t.Parallel()
	hidden := func(n int) []*setpointv1.RecomputedVariable {
		var all []*setpointv1.RecomputedVariable
		for range n {
			all = append(all, &setpointv1.RecomputedVariable{Variable: "(hidden)"})
		}
		return all
	}
	total := &setpointv1.RecomputedVariable{VariableId: "var_t", Variable: "total", Version: 3, Value: client.Integer(5)}
	called := &setpointv1.RecomputedVariable{VariableId: "var_h", Variable: "(hidden)", Version: 1, Value: client.Integer(6)}
	const first = "a = 5  (version 1, revision 2)\n"
	tests := []struct {
		name   string
		answer *setpointv1.SetVariableResponse
		want   string
	}{
		{"some", &setpointv1.SetVariableResponse{Recomputed: append(hidden(2), total),
			Stale: []*setpointv1.StaleVariable{{Variable: "(hidden)"}, {VariableId: "var_r", Variable: "report", Error: "(hidden)"}}},
			"\nRECOMPUTED  VERSION  VALUE\ntotal             3  5\nand 2 that you may not read\n" +
				"\nSTALE   ERROR\nreport  (hidden)\nand 1 that you may not read\n"},
		{"all", &setpointv1.SetVariableResponse{Recomputed: hidden(1), Stale: []*setpointv1.StaleVariable{{Variable: "(hidden)"}, {Variable: "(hidden)"}}},
			"\nrecomputed: 1 variable that you may not read\n\nstale: 2 variables that you may not read\n"},
		{"one that is called so", &setpointv1.SetVariableResponse{Recomputed: []*setpointv1.RecomputedVariable{called}},
			"\nRECOMPUTED  VERSION  VALUE\n(hidden)          1  6\n"},
	}
	for _, tt := range tests {
		tt.answer.Version, tt.answer.Revision = 1, 2
		got := newPeer(t, always(tt.answer, nil)).setpoint(t, "var", "set", "a", "5")
		if diff := cmp.Diff(result{out: first + tt.want}, got, cmp.AllowUnexported(result{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

// Every field of a request about access and tokens can be given on the command line.
func TestEveryAccessFieldHasAFlag(t *testing.T) {
	t.Parallel()
	// What is an argument, a global flag, a part of another flag, or the listing's own.
	other := map[string]bool{"session_id": true, "rule_id": true, "token_id": true, "page_size": true, "page_token": true}
	for path, of := range map[string]struct {
		requests []proto.Message
		flags    map[string]string // by field; empty is the command itself, or an argument
	}{
		"acl allow": {[]proto.Message{&setpointv1.AddAccessRuleRequest{}, &setpointv1.AccessRuleSpec{}},
			map[string]string{"rule": "", "subject": "", "permissions": "", "effect": "", "variable": "on", "ttl": "expires", "expires_at": "expires"}},
		"acl list":   {[]proto.Message{&setpointv1.ListAccessRulesRequest{}}, map[string]string{"variable": "on"}},
		"acl remove": {[]proto.Message{&setpointv1.RemoveAccessRuleRequest{}}, nil},
		"acl replace": {[]proto.Message{&setpointv1.SetVariablePermissionsRequest{}},
			map[string]string{"variable": "", "rules": "from"}},
		"acl check": {[]proto.Message{&setpointv1.CheckAccessRequest{}, &setpointv1.BatchCheckAccessRequest{}},
			map[string]string{"variable": "on", "permission": "", "subject": "", "subject_groups": "group", "checks": ""}},
		"acl audit": {[]proto.Message{&setpointv1.ListAuditEventsRequest{}}, map[string]string{"kinds": "kind", "variable": "on"}},
		"token create": {[]proto.Message{&setpointv1.CreateTokenRequest{}}, map[string]string{"principal": "", "groups": "group",
			"permissions": "permission", "sessions": "only-session", "ttl": "expires", "expires_at": "expires"}},
		"token list":   {[]proto.Message{&setpointv1.ListTokensRequest{}}, map[string]string{"include_ended": "all"}},
		"token revoke": {[]proto.Message{&setpointv1.RevokeTokenRequest{}}, nil},
	} {
		cmd, _, err := newRootCommand(&cli{}).Find(strings.Fields(path))
		if err != nil {
			t.Fatal(err)
		}
		for _, request := range of.requests {
			fields := request.ProtoReflect().Descriptor().Fields()
			for i := range fields.Len() {
				name := string(fields.Get(i).Name())
				flag, named := of.flags[name]
				if !named {
					flag = strings.ReplaceAll(name, "_", "-")
				}
				if !other[name] && flag != "" && cmd.Flags().Lookup(flag) == nil {
					t.Errorf("'%s' has no flag for %s", path, name)
				}
			}
		}
	}
}
