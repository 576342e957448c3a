package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// A command's arguments show in the list of processes, and stay in the history of the shell.
var (
	// environmentOf is what a line sets before the command, which does not show so.
	environmentOf = regexp.MustCompile(`^(\s*([$#] )?(export )?([A-Za-z_]\w*=("[^"]*"|'[^']*'|\$\([^)]*\)|\S)*\s*)*)`)
	// notArguments are what a YAML file puts into an environment, and tests by the shell itself.
	notArguments = regexp.MustCompile(`^\s*[A-Z][A-Z0-9_]*: .*|\[ [^\]]* \]`)
	// asArgument are secrets, or what stands for them, in the arguments of a command.
	asArgument = []*regexp.Regexp{
		regexp.MustCompile(`(^|\s)--token[ =]`),
		regexp.MustCompile(`(?i)(-H|--header|-rpc-header|-reflect-header)[ =]?["']?(proxy-)?authorization:`),
		regexp.MustCompile(`(?i)\bcurl\b.*\s(-u|--user|--oauth2-bearer|-b|--cookie)[ =]`),
		regexp.MustCompile(`://[^\s/:@"']+:[^\s/@"']+@`),
		regexp.MustCompile(`(?i)\b(password|secret)=[^\s&]`),
		// A variable of the shell, or the contents of a file, that the shell puts there.
		regexp.MustCompile(`\$\{?([A-Z0-9]+_)*(URL|DSN|TOKEN|PASSWORD|SECRET)\b`),
		regexp.MustCompile(`(?i)\$(\(cat |\(< ?)[^)]*(url|dsn|token|password|secret)`),
	}
	// expanded is what grpcurl itself puts in, from its environment, if it is told to: the quotes keep the shell from it.
	expanded = regexp.MustCompile(`'[Aa]uthorization: Bearer \$\{\w+\}'`)
	// asText are secrets wherever they are.
	asText = []*regexp.Regexp{
		regexp.MustCompile(`setpoint_[0-9a-v]{26}_`),
		regexp.MustCompile(`\beyJ[\w-]{8,}\.`),
	}
	inlineCode = regexp.MustCompile("`([^`\n]+)`")
	// shown is inline code that is a command, or an argument that is recommended.
	shown = regexp.MustCompile(`^(setpoint|curl|grpcurl|psql|-H|SETPOINT_\w+=) ?`)
)

// showsSecret tells whether a line of a shell has a secret where others see it.
func showsSecret(line string) bool {
	arguments := notArguments.ReplaceAllString(line[len(environmentOf.FindString(line)):], "")
	if strings.Contains(arguments, " -expand-headers ") {
		arguments = expanded.ReplaceAllString(arguments, "''")
	}
	matches := func(in string) func(*regexp.Regexp) bool {
		return func(x *regexp.Regexp) bool { return x.MatchString(in) }
	}
	return slices.ContainsFunc(asText, matches(line)) || slices.ContainsFunc(asArgument, matches(arguments))
}

// commandsIn are the lines of a document that people would copy: those of its blocks, and of its inline code those that are commands.
func commandsIn(document string) []string {
	var found []string
	block := false
	for line := range strings.Lines(strings.ReplaceAll(document, "\\\n", " ")) {
		switch {
		case strings.HasPrefix(strings.TrimSpace(line), "```"):
			block = !block
		case block:
			found = append(found, strings.TrimSuffix(line, "\n"))
		default:
			for _, code := range inlineCode.FindAllStringSubmatch(line, -1) {
				if shown.MatchString(code[1]) {
					found = append(found, code[1])
				}
			}
		}
	}
	return found
}

func TestShowsSecret(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]bool{
		`setpoint var list --token $TOKEN`:                                              true,
		`$ setpoint --token="$(cat token)" var list`:                                    true,
		`curl -H "Authorization: Bearer $TOKEN" http://127.0.0.1:7421/v1/sessions`:      true,
		`curl --header 'authorization: bearer x' http://127.0.0.1:7421/v1/sessions`:     true,
		`-H 'authorization: Bearer …'`:                                                  true,
		`curl -s -u ada:hush http://127.0.0.1:7421/v1/sessions`:                         true,
		`setpoint serve --database-url postgres://setpoint:hush@db/setpoint`:            true,
		`psql "host=db password=hush"`:                                                  true,
		`echo setpoint_06h0lhte3psih41nb5srpr04kk_0123 > token`:                         true,
		`# eyJhbGciOiJFUzI1NiJ9.e30`:                                                    true,
		`pg_dump -Fc -f setpoint.dump "$URL"`:                                           true,
		`psql ${DATABASE_URL} -c 'select 1'`:                                            true,
		`setpoint doctor --database-url "$SETPOINT_DATABASE_URL"`:                       true,
		`psql "$(cat server-url)"`:                                                      true,
		`psql "$(< db.dsn)"`:                                                            true,
		`grpcurl -H 'authorization: Bearer ${TOKEN}' db:7420 list`:                      true,
		`TOKEN=x grpcurl -expand-headers -H "authorization: Bearer ${TOKEN}" db:1 list`: true,

		`setpoint var list --token-file token`:                                   false,
		`SETPOINT_TOKEN="$(cat token)" setpoint var list`:                        false,
		`$ export SETPOINT_TOKEN_FILE=root.token PGPASSWORD=$(cat password)`:     false,
		`curl -H @authorization http://127.0.0.1:7421/v1/sessions`:               false,
		`curl http://127.0.0.1:7421/v1/x -d '{"fencing_token": '$token'}'`:       false,
		`      PGPASSWORD: ${POSTGRES_PASSWORD:?into .env}`:                      false,
		`if [ -n "${DATABASE_URL-}" ]; then`:                                     false,
		`URL=$(cat server-url) pg_dump -Fc`:                                      false,
		`export PGUSER=setpoint_owner PGPASSFILE=/etc/setpoint/pgpass`:           false,
		`T="$(cat t)" grpcurl -expand-headers -H 'authorization: Bearer ${T}' x`: false,
		`SETPOINT_DATABASE_URL=postgres://setpoint:hush@db/x setpoint serve`:     false,
		`setpoint serve --database-url @/etc/setpoint/url`:                       false,
		`setpoint token create user:root --bootstrap --database-url @db-url`:     false,
		`curl -d '{"value": {"string": "a: b@c"}}' http://127.0.0.1:7421/v1/x`:   false,
		`setpoint token revoke tok_06h0lhte3psih41nb5srpr04kk --reason "leaked"`: false,
	} {
		if got := showsSecret(line); got != want {
			t.Errorf("%s: got %v", line, got)
		}
	}
	document := "a `setpoint --token x` and `the --token TOKEN`\n```sh\ncurl \\\n -H 'authorization: x'\n```\n`-H @file`"
	if got, want := commandsIn(document), []string{"setpoint --token x", "curl   -H 'authorization: x'", "-H @file"}; !slices.Equal(got, want) {
		t.Errorf("commands: got %q, want %q", got, want)
	}
}

// Nothing that people are told to type, nor what runs by itself, has a secret among its arguments: neither in the documents, nor in
// the help of the commands, nor in scripts and files of deployments.
func TestDocumentsShowNoSecret(t *testing.T) {
	t.Parallel()
	commands := map[string][]string{}
	for _, pattern := range []string{"docs/*.md", "*.md", "examples/*/*.md", "deploy/*.md"} {
		for _, path := range filesLike(t, pattern) {
			commands[path] = commandsIn(contents(t, path))
		}
	}
	for _, pattern := range []string{"scripts/*", "deploy/*", "docker-compose.yml", "Makefile", "examples/*/*.go"} {
		for _, path := range filesLike(t, pattern) {
			commands[path] = strings.Split(contents(t, path), "\n")
		}
	}
	var help func(cmd *cobra.Command)
	help = func(cmd *cobra.Command) {
		commands[cmd.CommandPath()] = strings.Split(strings.ReplaceAll(cmd.Long+"\n"+cmd.Example, "\\\n", " "), "\n")
		for _, child := range cmd.Commands() {
			help(child)
		}
	}
	help(newRootCommand(&cli{}))
	seen := 0
	for where, lines := range commands {
		for _, line := range lines {
			seen++
			if showsSecret(line) {
				t.Errorf("%s: a secret among the arguments: %s", where, line)
			}
		}
	}
	if seen < 1000 || len(commands["docs/security.md"]) < 5 || len(commands["README.md"]) < 20 {
		t.Errorf("only %d lines were looked at, %d of docs/security.md and %d of the README", seen, len(commands["docs/security.md"]),
			len(commands["README.md"]))
	}
}

// The threats of docs/security.md name the tests that show what stops them, and all of these are there.
func TestThreatsHaveTests(t *testing.T) {
	t.Parallel()
	tests := map[string]bool{}
	declared := regexp.MustCompile(`(?m)^func ((Test|Fuzz)\w+)\(`)
	for _, pattern := range []string{"*/*_test.go", "*/*/*_test.go"} {
		for _, path := range filesLike(t, pattern) {
			for _, found := range declared.FindAllStringSubmatch(contents(t, path), -1) {
				tests[found[1]] = true
			}
		}
	}
	_, threats, _ := strings.Cut(contents(t, "docs/security.md"), "\n## Threats\n")
	threats, _, _ = strings.Cut(threats, "\n## ")
	rows := 0
	for line := range strings.Lines(threats) {
		cells := strings.Split(strings.TrimSpace(line), " | ")
		if !strings.HasPrefix(line, "| ") || strings.HasPrefix(line, "| who | could |") || strings.HasPrefix(line, "| ---") {
			continue
		}
		rows++
		named := regexp.MustCompile("`((Test|Fuzz)\\w+)`").FindAllStringSubmatch(cells[len(cells)-1], -1)
		if len(named) == 0 && !strings.Contains(line, "| nothing") {
			t.Errorf("no test shows: %s", line)
		}
		for _, name := range named {
			if !tests[name[1]] {
				t.Errorf("there is no %s", name[1])
			}
		}
	}
	if rows < 15 {
		t.Errorf("%d threats were found", rows)
	}
}

// filesLike are the files of the repository that are like a pattern.
func filesLike(t *testing.T, pattern string) []string {
	t.Helper()
	root := filepath.Join("..", "..")
	found, err := filepath.Glob(filepath.Join(root, pattern))
	if err != nil {
		t.Fatal(err)
	}
	var files []string
	for _, path := range found {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if name, err := filepath.Rel(root, path); err == nil && info.Mode().IsRegular() {
			files = append(files, filepath.ToSlash(name))
		}
	}
	return files
}

func contents(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", filepath.FromSlash(path)))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
