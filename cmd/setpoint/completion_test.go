package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// complete is what a shell is told to complete a line to: the candidates, and the directive.
func complete(t *testing.T, i invocation) ([]string, cobra.ShellCompDirective) {
	t.Helper()
	i.args = append([]string{cobra.ShellCompRequestCmd}, i.args...)
	got := i.run(t)
	lines := strings.Split(strings.TrimSuffix(got.out, "\n"), "\n")
	var directive cobra.ShellCompDirective
	if _, err := fmt.Sscanf(lines[len(lines)-1], ":%d", &directive); err != nil || got.status != 0 {
		t.Fatalf("%q: %+v", i.args, got)
	}
	if strings.Contains(got.err, "rror") {
		t.Errorf("%q: told the shell %q", i.args, got.err)
	}
	return slices.Clip(lines[:len(lines)-1]), directive
}

// shop answers what completion asks, like a server with two sessions and some variables.
func shop(request proto.Message) (proto.Message, error) {
	matches := func(pattern, name string) bool { return strings.HasPrefix(name, strings.TrimSuffix(pattern, "*")) }
	switch r := request.(type) {
	case *setpointv1.ListSessionsRequest:
		page := &setpointv1.ListSessionsResponse{}
		for i, id := range []string{"default", "work:1"} {
			if matches(r.GetPattern(), id) {
				page.Sessions = append(page.Sessions, &setpointv1.Session{SessionId: id, VariableCount: int64(i)})
			}
		}
		return page, nil
	case *setpointv1.ListVariablesRequest:
		page := &setpointv1.ListVariablesResponse{}
		for _, name := range []string{"temperature", "top*k", "topic", "two words", "über", "tab\x1b[2J", r.GetSessionId()} {
			if matches(r.GetPattern(), name) {
				page.Variables = append(page.Variables, &setpointv1.Variable{
					Name: name, Type: setpointv1.VariableType_VARIABLE_TYPE_FLOAT, Value: client.Float(0.7)})
			}
		}
		return page, nil
	case *setpointv1.ListDependenciesRequest:
		return &setpointv1.ListDependenciesResponse{Dependencies: []*setpointv1.RelatedVariable{
			{Name: "batch", Type: kindFloat}, {Name: "topic", Type: kindFloat}}}, nil
	case *setpointv1.ListOptimizationsRequest:
		page := &setpointv1.ListOptimizationsResponse{}
		for _, o := range []*setpointv1.Optimization{
			{OptimizationId: waiterID, State: stateWaiting, Variables: []string{"topic"}},
			{OptimizationId: tunerID, State: stateActive, FencingToken: 17, Variables: []string{"batch", "topic"}},
			{OptimizationId: otherID, State: statePreempting, Variables: []string{"temperature"}},
			{OptimizationId: endedID, State: stateCompleted, FencingToken: 3, EndedAt: at("16:00:00"), Variables: []string{"topic"}},
		} {
			if len(r.GetStates()) == 0 || slices.Contains(r.GetStates(), o.GetState()) {
				page.Optimizations = append(page.Optimizations, o)
			}
		}
		return page, nil
	case *setpointv1.ListAccessRulesRequest:
		return &setpointv1.ListAccessRulesResponse{Rules: []*setpointv1.AccessRule{
			{RuleId: bobsRule, Subject: "user:bob", Permissions: []setpointv1.Permission{mayRead}, Variable: "temperature", VariableId: "var_t"},
			{RuleId: opsRule, Subject: "group:ops", Permissions: []setpointv1.Permission{mayOptimize, mayAdmin}, Effect: denies},
			{RuleId: thirdRule, Subject: "user:bob", Permissions: []setpointv1.Permission{mayWrite}, Variable: "temperature", VariableId: "var_t"},
		}}, nil
	case *setpointv1.ListTokensRequest:
		return &setpointv1.ListTokensResponse{Tokens: []*setpointv1.Token{
			{TokenId: adasToken, Principal: "user:ada"}, {TokenId: evesToken, Principal: "user:eve", Description: "old laptop"}}}, nil
	case *setpointv1.GetOptimizationRequest:
		return &setpointv1.Optimization{OptimizationId: tunerID, Variables: []string{"batch", "topic"}}, nil
	case *setpointv1.ListHistoryRequest:
		page := &setpointv1.ListHistoryResponse{}
		for version := int64(12); version >= 9; version-- {
			page.Entries = append(page.Entries, &setpointv1.HistoryEntry{
				Version: &version, Value: client.String(strings.Repeat("a\n", 100)), Name: r.GetVariable()})
		}
		return page, nil
	}
	return nil, fmt.Errorf("unexpected %T", request)
}

func TestCompletion(t *testing.T) {
	t.Parallel()
	const (
		noFiles = cobra.ShellCompDirectiveNoFileComp
		ordered = cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveKeepOrder
		files   = cobra.ShellCompDirectiveDefault
		folders = cobra.ShellCompDirectiveFilterDirs
	)
	const is = "\tfloat 0.7"
	long := `"` + strings.Repeat(`a\n`, 19) + "a…"
	tests := []struct {
		line      string // its words are separated by |
		want      []string
		directive cobra.ShellCompDirective
	}{
		{"var|get|te", []string{"temperature" + is}, noFiles},
		{"var|get|t", []string{"temperature" + is, "top*k" + is, "topic" + is, "two words" + is}, noFiles},
		{"var|get|top*", []string{"top*k" + is}, noFiles},
		{"var|get|ü", []string{"über" + is}, noFiles},
		{"var|get|nothing", nil, noFiles},
		{"var|get|temperature|", nil, noFiles},
		{"var|get|--session|other|o", []string{"other" + is}, noFiles},
		{"--session=other|var|get|o", []string{"other" + is}, noFiles},
		{"var|set|te", []string{"temperature" + is}, noFiles},
		{"var|set|temperature|", nil, noFiles},
		{"var|set|temperature|-1|--reas", []string{"--reason\twhy, for those who read the history"}, noFiles},
		{"var|set|temperature|-1|--session|de", []string{"default\t0 variables"}, noFiles},
		{"var|update|te", []string{"temperature" + is}, noFiles},
		{"var|delete|te", []string{"temperature" + is}, noFiles},
		{"var|list|te", []string{"temperature" + is}, noFiles},
		{"var|register|te", nil, noFiles},
		{"var|register|x|b", []string{"boolean"}, ordered},
		{"var|register|x|float|", nil, noFiles},
		{"var|list|--type|in", []string{"integer"}, ordered},
		{"history|list|te", []string{"temperature" + is}, noFiles},
		{"history|get|te", []string{"temperature" + is}, noFiles},
		{"history|get|temperature|", []string{"12\t" + long, "11\t" + long, "10\t" + long, "9\t" + long}, ordered},
		{"history|rollback|temperature|1", []string{"12\t" + long, "11\t" + long, "10\t" + long}, ordered},
		{"history|list|--change|re", []string{"registered", "recomputed"}, ordered},
		{"history|list|--change|dep", []string{"dependency_added", "dependency_removed"}, ordered},
		{"dep|add|te", []string{"temperature" + is}, noFiles},
		{"dep|add|temperature|te", []string{"temperature" + is}, noFiles},
		{"dep|add|temperature|topic|t", nil, noFiles},
		{"dep|remove|te", []string{"temperature" + is}, noFiles},
		{"dep|remove|report|t", []string{"topic\tfloat"}, noFiles},
		{"dep|list|te", []string{"temperature" + is}, noFiles},
		{"dep|dependents|te", []string{"temperature" + is}, noFiles},
		{"dep|order|te", []string{"temperature" + is}, noFiles},
		{"dep|order|temperature|te", nil, noFiles},
		{"dep|graph|te", nil, noFiles},
		{"dep|graph|-o|", []string{"table", "json", "dot", "svg"}, ordered},
		{"dep|list|-o|", []string{"table", "json"}, ordered},
		{"var|register|x|float|--depends-on|te", []string{"temperature" + is}, noFiles},
		{"var|register|x|float|--depends-on=te", []string{"temperature" + is}, noFiles},
		{"var|update|topic|--depends-on|te", []string{"temperature" + is}, noFiles},
		{"opt|start|te", []string{"temperature" + is}, noFiles},
		{"opt|start|topic|te", []string{"temperature" + is}, noFiles},
		{"opt|start|topic|--conflict|", []string{"abort", "wait", "preempt"}, ordered},
		{"opt|start|topic|--direction|m", []string{"maximize", "minimize"}, ordered},
		{"opt|renew|", []string{waiterID + "\twaiting, topic", tunerLease + "\tactive, batch, topic", otherID + "\tpreempting, temperature"}, ordered},
		{"opt|report|opt_t", []string{tunerLease + "\tactive, batch, topic"}, ordered},
		{"opt|report|" + tunerLease + "|", []string{"batch=", "topic="}, noFiles | cobra.ShellCompDirectiveNoSpace},
		{"opt|report|" + tunerLease + "|batch=1|t", []string{"topic="}, noFiles | cobra.ShellCompDirectiveNoSpace},
		{"opt|report|" + tunerLease + "|batch=", nil, noFiles | cobra.ShellCompDirectiveNoSpace},
		{"opt|report|nothing|", nil, noFiles | cobra.ShellCompDirectiveNoSpace},
		{"opt|stop|opt_w", []string{waiterID + "\twaiting, topic"}, ordered},
		{"opt|stop|x|--state|", []string{"completed", "failed", "cancelled"}, ordered},
		{"opt|get|opt_e", []string{endedID + "\tcompleted, topic"}, ordered},
		{"opt|get|x|--checkpoint|", nil, files},
		{"opt|trials|opt_t", []string{tunerID + "\tactive, batch, topic"}, ordered},
		{"opt|list|--state|p", []string{"preempting", "preempted"}, ordered},
		{"opt|list|--variable|te", []string{"temperature" + is}, noFiles},
		{"opt|status|te", []string{"temperature" + is}, noFiles},
		{"var|set|topic|1|--lease|", []string{tunerLease + "\tactive, batch, topic"}, ordered},
		{"history|rollback-session|--lease|opt", []string{tunerLease + "\tactive, batch, topic"}, ordered},
		{"session|get|", []string{"default\t0 variables", "work:1\t1 variables"}, noFiles},
		{"session|delete|w", []string{"work:1\t1 variables"}, noFiles},
		{"session|keep-alive|w", []string{"work:1\t1 variables"}, noFiles},
		{"session|list|w", []string{"work:1\t1 variables"}, noFiles},
		{"session|create|w", nil, noFiles},
		{"session|export|w", []string{"work:1\t1 variables"}, noFiles},
		{"session|export|work:1|", nil, files},
		{"session|import|w", []string{"work:1\t1 variables"}, noFiles},
		{"session|import|work:1|", nil, files},
		{"session|import|--merge|", []string{"fail", "replace", "keep"}, ordered},
		{"var|get|--session|w", []string{"work:1\t1 variables"}, noFiles},
		{"var|get|--session=w", []string{"work:1\t1 variables"}, noFiles},
		{"var|get|-o|", []string{"table", "json"}, ordered},
		{"var|get|--token-file|", nil, files},
		{"var|get|--timeout|", nil, noFiles},
		{"serve|--log-level|", []string{"debug", "info", "warn", "error"}, ordered},
		{"serve|--auth|", []string{"none", "token", "oidc", "token,oidc"}, ordered},
		{"acl|allow|", []string{"user:bob", "group:ops"}, ordered},
		{"acl|deny|g", []string{"group:ops"}, ordered},
		{"acl|allow|user:bob|", []string{"read", "write", "observe", "optimize", "admin"}, ordered},
		{"acl|allow|user:bob|read|o", []string{"observe", "optimize"}, ordered},
		{"acl|allow|user:bob|observe|o", []string{"optimize"}, ordered},
		{"acl|check|user:bob|w", []string{"write"}, ordered},
		{"acl|check|me|read|--on|te", []string{"temperature" + is}, noFiles},
		{"acl|allow|me|read|--on|te", []string{"temperature" + is}, noFiles},
		{"acl|list|--subject|u", []string{"user:bob"}, ordered},
		{"acl|remove|", []string{bobsRule + "\tallows user:bob read on temperature", opsRule + "\tdenies group:ops optimize, admin",
			thirdRule + "\tallows user:bob write on temperature"}, ordered},
		{"acl|remove|" + bobsRule + "|", []string{opsRule + "\tdenies group:ops optimize, admin",
			thirdRule + "\tallows user:bob write on temperature"}, ordered},
		{"acl|replace|te", []string{"temperature" + is}, noFiles},
		{"acl|replace|x|--from|", nil, files},
		{"acl|audit|--kind|token", []string{"token_created", "token_revoked"}, ordered},
		{"token|create|", nil, noFiles},
		{"token|create|user:a|--permission|o", []string{"observe", "optimize"}, ordered},
		{"token|create|user:a|--only-session|w", []string{"work:1\t1 variables"}, noFiles},
		{"token|create|user:a|--out|", nil, files},
		{"token|revoke|", []string{adasToken + "\tuser:ada", evesToken + "\tuser:eve old laptop"}, ordered},
		{"token|revoke|" + adasToken + "|", []string{evesToken + "\tuser:eve old laptop"}, ordered},
		{"var|register|x|float|--access|p", []string{"private", "protected", "public"}, ordered},
		{"var|update|x|--access|pu", []string{"public"}, ordered},
		{"history|list|--change|access", []string{"access_rule_added", "access_rule_removed"}, ordered},
		{"var|get|--ca-cert|", nil, files},
		{"var|get|--cert|", nil, files},
		{"var|get|--key|", nil, files},
		{"dev|--data-dir|", nil, folders},
		{"man|--dir|", nil, folders},
		{"dev|", nil, noFiles},
		{"help|var|s", []string{"set\tSet a variable's value"}, noFiles},
		{"completion|b", []string{"bash\tPrint the completion script for bash"}, noFiles},
		{"hist", []string{"history\tHistory: every change, and the way back"}, noFiles},
	}
	for _, tt := range tests {
		t.Run(tt.line, func(t *testing.T) {
			t.Parallel()
			p := newPeer(t, shop)
			args := append([]string{"--addr", p.addr}, strings.Split(tt.line, "|")...)
			got, directive := complete(t, invocation{args: args})
			if diff := cmp.Diff(tt.want, got, cmp.Transformer("", func(s []string) []string { return append([]string{}, s...) })); diff != "" {
				t.Errorf("candidates (-want +got):\n%s", diff)
			}
			if directive != tt.directive {
				t.Errorf("directive: got %d, want %d", directive, tt.directive)
			}
		})
	}
}

func TestCompletionFollowsTheEnvironment(t *testing.T) {
	t.Parallel()
	p := newPeer(t, shop)
	env := map[string]string{"SETPOINT_ADDR": p.addr, "SETPOINT_SESSION": "env-session"}
	got, _ := complete(t, invocation{args: []string{"var", "get", "env"}, env: env})
	if diff := cmp.Diff([]string{"env-session\tfloat 0.7"}, got); diff != "" {
		t.Errorf("candidates (-want +got):\n%s", diff)
	}
}

// A server that fails is asked once, and the shell hears nothing of it.
func TestCompletionWithoutAServer(t *testing.T) {
	t.Parallel()
	p := newPeer(t, always(nil, refusal(t, codes.Unavailable, "DATABASE_UNAVAILABLE", "no database")))
	for _, line := range [][]string{{"var", "get", "t"}, {"session", "get", ""}, {"history", "get", "x", ""}} {
		before := p.count()
		got, directive := complete(t, invocation{args: append([]string{"--addr", p.addr}, line...)})
		if len(got) > 0 || directive&cobra.ShellCompDirectiveNoFileComp == 0 {
			t.Errorf("%q: got %q, %d", line, got, directive)
		}
		if calls := p.count() - before; calls != 1 {
			t.Errorf("%q: asked %d times", line, calls)
		}
	}
	shop := newPeer(t, shop)
	for _, bad := range [][]string{{"--addr", ""}, {"--token-file", "/nonexistent"}, {"--token", "a\nb"}} {
		line := slices.Concat([]string{"--addr", shop.addr}, bad, []string{"var", "get", "t"})
		if got, _ := complete(t, invocation{args: line}); len(got) > 0 {
			t.Errorf("%q: got %q", bad, got)
		}
	}
}

func TestCompletionOfManyNames(t *testing.T) {
	t.Parallel()
	p := newPeer(t, paged(1000, 150))
	got, _ := complete(t, invocation{args: []string{"--addr", p.addr, "var", "get", "v"}})
	if len(got) != maxCandidates || p.count() != 2 {
		t.Errorf("got %d candidates in %d calls", len(got), p.count())
	}
}

// Whatever the help calls NAME or ID is completed.
func TestEveryNameIsCompleted(t *testing.T) {
	t.Parallel()
	var check func(cmd *cobra.Command)
	check = func(cmd *cobra.Command) {
		if strings.ContainsAny(cmd.Use, " ") && cmd.ValidArgsFunction == nil && !strings.HasPrefix(cmd.Use, "create ") {
			t.Errorf("nothing completes the arguments of %s", cmd.CommandPath())
		}
		for _, child := range cmd.Commands() {
			check(child)
		}
	}
	check(newRootCommand(&cli{}))
}

func TestCompletionScripts(t *testing.T) {
	t.Parallel()
	for _, shell := range shells {
		for _, flags := range [][]string{nil, {"--no-descriptions"}} {
			got := invocation{args: append([]string{"completion", shell.name}, flags...)}.run(t)
			want := cobra.ShellCompRequestCmd + " "
			if flags != nil {
				want = cobra.ShellCompNoDescRequestCmd + " "
			}
			if got.status != 0 || got.err != "" || !strings.Contains(got.out, want) {
				t.Errorf("%s %q: status %d, %s, no %q in %d bytes", shell.name, flags, got.status, got.err, want, len(got.out))
			}
		}
	}
}
