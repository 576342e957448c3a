package main

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/setpointdb/setpoint/db"
	"github.com/setpointdb/setpoint/internal/authenticate"
	"github.com/setpointdb/setpoint/internal/server"
	"github.com/setpointdb/setpoint/internal/testkit"
	"github.com/setpointdb/setpoint/service"
)

// accessStep is a command line and what comes of it.
type accessStep struct {
	line   string // its words are separated by |
	status int
	want   string // a pattern that the whole output has, what is said on standard error before it
	stdin  string
}

// follow runs steps one after the other. What the patterns name, later lines may use.
func follow(t *testing.T, global []string, steps []accessStep, said map[string]string) {
	t.Helper()
	for _, step := range steps {
		fill := func(text string) string {
			return regexp.MustCompile(`\$[A-Z]+`).ReplaceAllStringFunc(text, func(name string) string {
				if value, ok := said[name[1:]]; ok {
					return value
				}
				return name
			})
		}
		args := append(append([]string{}, global...), strings.Split(fill(step.line), "|")...)
		got := invocation{args: args, stdin: fill(step.stdin)}.run(t)
		pattern := regexp.MustCompile(fill(step.want))
		found := pattern.FindStringSubmatch(got.err + got.out)
		if got.status != step.status || found == nil {
			t.Errorf("%s: got %d %s\n%s\nwant %d %s", fill(step.line), got.status, got.err, got.out, step.status, pattern)
			continue
		}
		for i, name := range pattern.SubexpNames() {
			if name != "" {
				said[name] = found[i]
			}
		}
	}
}

// What the commands about access do to a real session.
func TestAccessOnAServer(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.session("s")
	const rule = `rule_[a-z0-9]{26}`
	follow(t, []string{"--addr", h.addr, "--session", "s"}, []accessStep{
		{line: "var|register|temperature|float|0.5", want: `^temperature = 0.5 `},
		{line: "var|register|secret|float|1", want: `^secret = 1 `},
		{line: "var|register|double|float|--expression|temperature * 2.0", want: `^double = 1 `},
		{line: "var|get|temperature", want: `\naccess: +private\n`},
		{line: "--as|user:bob|var|get|temperature", status: 1, want: `^error: SESSION_NOT_FOUND: `},
		{line: "acl|check|user:bob|read|--on|temperature", status: 1, want: `^no: .*private`},
		{line: "acl|check|me|admin", want: `^yes: `},
		{line: "acl|allow|user:b*|read|--on|temperature|--reason|he asked|--expires|1h",
			want: `^(?P<RULE>` + rule + `) allows user:b\* read on temperature  \(until .*, revision \d+\)\n$`},
		{line: "acl|check|user:bob|read|write|--on|temperature", status: 1,
			want: `^ON .*\ntemperature +read +yes +.*$RULE.*\ntemperature +write +no +`},
		{line: "acl|check|user:bob|read|--on|temperature", want: `^yes: .*\n$RULE allows user:b\* read \(until `},
		{line: "--as|user:bob|acl|check|me|read|--on|temperature", want: `^yes: `},
		{line: "--as|user:bob|acl|check|user:eve|read|--on|temperature", status: 1, want: `^error: ACCESS_DENIED: `},
		{line: "--as|user:bob|var|get|temperature", want: `^name: +temperature\n`},
		{line: "--as|user:bob|var|list", want: `^NAME .*\ntemperature .*\n$`},
		{line: "--as|user:bob|var|get|secret", status: 1, want: `^error: ACCESS_DENIED: `},
		{line: "--as|user:bob|var|get|nothing", status: 1, want: `^error: ACCESS_DENIED: `},
		{line: "--as|user:bob|var|set|temperature|0.6", status: 1, want: `^error: ACCESS_DENIED: `},
		{line: "--as|user:bob|acl|list", want: `^RULE [^\n]*\n$`},
		{line: "acl|list", want: `\n$RULE +user:b\* +allow +read +temperature +0 +\d{4}-.* +user:anonymous\n$`},
		{line: "acl|allow|group:ops|write|--on|temperature", want: ` allows group:ops write on temperature `},
		{line: "acl|check|user:eve|write|--on|temperature|--group|group:ops", want: `^yes: `},
		{line: "acl|list|--on|temperature|-o|json", want: `(?s)^(?P<RULES>\{.*\}\n)$`},
		{line: "acl|replace|secret|--from|-", stdin: "$RULES", want: `^secret has 2 rules in place of 0  \(revision \d+\)\n\nRULE .*\n(?P<COPY>` + rule + `) +user:b\*`},
		{line: "--as|user:bob|var|get|secret", want: `^name: +secret\n`},
		{line: "acl|remove|$COPY|$RULE", want: `^removed $COPY  \(revision \d+\)\nremoved $RULE  \(revision \d+\)\n$`},
		{line: "acl|remove|$RULE", status: 1, want: `^error: RULE_NOT_FOUND: `},
		{line: "--as|user:bob|var|get|secret", status: 1, want: `^error: SESSION_NOT_FOUND: `},
		{line: "acl|replace|secret|--from|-", stdin: "{}", want: `^secret has 0 rules in place of 1  `},
		{line: "var|update|temperature|--access|public", want: `^temperature updated `},
		{line: "--as|user:bob|var|set|temperature|0.6", want: `^temperature = 0.6 .*\n\nrecomputed: 1 variable that you may not read\n$`},
		{line: "var|update|double|--access|protected", want: `^double updated `},
		{line: "--as|user:bob|var|get|double", want: `\naccess: +protected\n`},
		{line: "--as|user:bob|var|set|double|1", status: 1, want: `^error: ACCESS_DENIED: `},
		{line: "acl|deny|user:*|read|--on|temperature|--priority|5", want: ` denies user:\* read on temperature  \(priority 5, revision`},
		{line: "--as|user:bob|var|set|temperature|0.7", status: 1, want: `^error: ACCESS_DENIED: `},
		{line: "--as|user:bob|var|get|double", want: `\nexpression: +\(hidden\)\ndepends on: +\(hidden\)\n`},
		{line: "--as|user:bob|var|update|double|--access|public", status: 1, want: `^error: ACCESS_DENIED: `},
		{line: "history|list|--change|access_rule_added|--change|access_rule_removed", want: `(?s)access_rule_removed .* $RULE allows user:b\* read .*access_rule_added .*he asked; $RULE `},
		{line: "acl|allow|bob|read", status: 1, want: `^error: INVALID_REQUEST: `},
		{line: "acl|allow|user:bob|read|--expires|1ms", status: 1, want: `^error: INVALID_REQUEST: `},
		{line: "acl|allow|user:bob|read|--on|nothing", status: 1, want: `^error: VARIABLE_NOT_FOUND: `},
		{line: "acl|audit|--kind|rule_added", want: `(?s)^TIME .*rule_added +user:anonymous .*AccessService/AddAccessRule .*he asked; $RULE`},
		{line: "acl|audit|--kind|access_mode_set", want: `access_mode_set +user:anonymous .* double .*\n.*access_mode_set .* temperature `},
		{line: "--as|user:bob|acl|audit", status: 1, want: `^error: ACCESS_DENIED: `},
		{line: "--as|user:bob|token|list", status: 1, want: `^error: ACCESS_DENIED: `},
	}, map[string]string{})
	if got := h.setpoint("acl", "audit", "--all-sessions", "--limit", "1"); !regexp.MustCompile(`^TIME +KIND +SESSION .*\n.*\n$`).MatchString(got) {
		t.Errorf("the audit of the server:\n%s", got)
	}
}

// The way from an empty database to callers who are known by their tokens.
func TestTokensOnAServer(t *testing.T) {
	t.Parallel()
	url := testkit.NewDatabase(t)
	dir := t.TempDir()
	urlFile, root, trainer := filepath.Join(dir, "url"), filepath.Join(dir, "root.token"), filepath.Join(dir, "trainer.token")
	if err := os.WriteFile(urlFile, []byte(url+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	said := map[string]string{}
	const token = `tok_[a-z0-9]{26}`
	follow(t, nil, []accessStep{
		{line: "token|create|user:root|--bootstrap|--database-url|@" + urlFile + "|--out|" + root,
			want: `^created (?P<ROOT>` + token + `) for user:root  \(never ends; a server admin\)\nits secret is in `},
		{line: "token|create|group:root|--bootstrap|--database-url|@" + urlFile, status: 1, want: `^error: INVALID_REQUEST: .*kind other than group`},
		{line: "token|create|user:x|--expires|1ms|--bootstrap|--database-url|@" + urlFile, status: 1, want: `^error: INVALID_REQUEST: `},
	}, said)

	s, err := server.Start(t.Context(), server.Config{
		GRPCAddr: "127.0.0.1:0", Limits: service.DefaultLimits, Log: slog.New(slog.DiscardHandler),
		Database:       db.Config{URL: url, MaxConns: 4},
		Authentication: authenticate.Config{Modes: []authenticate.Mode{authenticate.Token}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Stop(context.Background()) })
	follow(t, []string{"--addr", s.GRPCAddr()}, []accessStep{
		{line: "session|list", status: 1, want: `^error: CREDENTIALS_MISSING: .*SETPOINT_TOKEN_FILE`},
		{line: "--token|setpoint_x|session|list", status: 1, want: `^error: CREDENTIALS_INVALID: `},
		{line: "--token-file|" + root + "|token|create|service:trainer|--group|group:ops|--permission|optimize|--only-session|run-*|--out|" + trainer,
			want: `^created (?P<TRAINER>` + token + `) for service:trainer  \(never ends; in group:ops; narrowed to read, write, optimize; narrowed to sessions run-\*\)\n`},
		{line: "--token-file|" + root + "|token|create|user:ada|--expires|720h",
			want: `(?s)^created (?P<ADA>` + token + `) for user:ada  \(until .*\)\nits secret, which is not shown again:\n(?P<SECRET>setpoint_[a-z0-9_]+)\n$`},
		{line: "--token|$SECRET|session|create|run-1", want: `^created session run-1 `},
		{line: "--token|$SECRET|--session|run-1|var|register|lr|float|0.1", want: `^lr = 0.1 `},
		{line: "--token|$SECRET|token|list", status: 1, want: `^error: ACCESS_DENIED: `},
		{line: "--token-file|" + trainer + "|--session|run-1|var|set|lr|0.2", status: 1, want: `^error: SESSION_NOT_FOUND: `},
		{line: "--token|$SECRET|--session|run-1|acl|allow|group:ops|admin", want: ` allows group:ops admin on all of session run-1 `},
		{line: "--token-file|" + trainer + "|--session|run-1|var|set|lr|0.2", want: `^lr = 0.2 `},
		{line: "--token-file|" + trainer + "|--session|run-1|acl|list", want: `^RULE [^\n]*\n$`},
		{line: "--token-file|" + trainer + "|--session|run-1|acl|check|me|admin", status: 1, want: `^no: .*narrowed`},
		{line: "--token-file|" + root + "|token|list", want: `(?s)^TOKEN .*\n$ROOT +user:root +- +- +yes +active +never .*\n$TRAINER +service:trainer +group:ops +read, write, optimize in run-\*.*\n$ADA +user:ada +- +- +- +active +\d`},
		{line: "--token-file|" + root + "|token|revoke|$TRAINER|$TRAINER", want: `^(revoked $TRAINER of service:trainer  \(.*, by user:root\)\n){2}$`},
		{line: "--token-file|" + root + "|token|revoke|tok_00000000000000000000000000", status: 1, want: `^error: TOKEN_NOT_FOUND: `},
		{line: "--token-file|" + root + "|token|list|--principal|service:trainer", want: `^TOKEN [^\n]*\n$`},
		{line: "--token-file|" + root + "|token|list|--principal|service:trainer|--all", want: `\n$TRAINER .* revoked +never `},
		{line: "--token-file|" + root + "|acl|audit|--all-sessions|--kind|token_created", want: `token_created +- +os:\S+@\S+ .*$ROOT`},
	}, said)
}

// A database that is not ready, or not there, gets no token, and the file that was there stays.
func TestBootstrapFails(t *testing.T) {
	t.Parallel()
	out := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(out, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name, url string
		status    int
		want      string
	}{
		{"not migrated", testkit.NewEmptyDatabase(t), 1, `^error: FAILED: the schema is too old: .* run 'setpoint migrate up'\n$`},
		{"not there", "postgres://setpoint:hunter2@127.0.0.1:1/setpoint", 1, `^error: FAILED: .*127\.0\.0\.1`},
		{"no URL", "nonsense", 2, `^error: USAGE: --database-url: `},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			args := []string{"token", "create", "user:root", "--bootstrap", "--out", out}
			got := invocation{args: args, env: map[string]string{"SETPOINT_DATABASE_URL": tt.url}}.run(t)
			if got.status != tt.status || got.out != "" || !regexp.MustCompile(tt.want).MatchString(got.err) ||
				strings.Contains(got.err, "hunter2") {
				t.Errorf("got %+v, want %s", got, tt.want)
			}
			if text, err := os.ReadFile(out); err != nil || string(text) != "old" {
				t.Errorf("the file has %q: %v", text, err)
			}
		})
	}
}
