package integration

import (
	"math"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/testkit"
)

// step is a command and what it has to answer: patterns that match in each stream, empty for a stream that stays empty.
type step struct {
	args           []string
	stdin          string
	status         int
	stdout, stderr string
}

// steps runs commands in turn, under more variables of the environment.
func steps(t *testing.T, env []string, list []step) {
	t.Helper()
	for _, s := range list {
		got := run(t, command{args: s.args, stdin: s.stdin, env: env})
		if got.status != s.status {
			t.Errorf("setpoint %q: exit status %d, want %d\n%s", s.args, got.status, s.status, got.stderr)
		}
		for stream, pair := range map[string][2]string{"output": {got.stdout, s.stdout}, "error": {got.stderr, s.stderr}} {
			text, want := pair[0], pair[1]
			if want == "" && text != "" || want != "" && !regexp.MustCompile(want).MatchString(text) {
				t.Errorf("setpoint %q: standard %s: got %q, want %q", s.args, stream, text, want)
			}
		}
	}
}

func words(args ...string) []string { return args }

func TestCommands(t *testing.T) {
	t.Parallel()
	s := serve(t, testkit.NewDatabase(t))
	file := filepath.Join(t.TempDir(), "prompt.txt")
	if err := os.WriteFile(file, []byte("Be brief.\nBe kind.\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	const moment = `\d{4}-\d\d-\d\d \d\d:\d\d:\d\d`
	steps(t, []string{"SETPOINT_ADDR=" + s.grpc, "SETPOINT_SESSION=work"}, []step{
		{args: words("var", "list"), status: 1, stderr: `^error: SESSION_NOT_FOUND: no session "work"\n$`},
		{args: words("session", "create", "work", "--ttl", "0"), stdout: `^created session work  \(never ends\)\n$`},
		{args: words("session", "create", "work"), status: 1, stderr: `^error: SESSION_EXISTS: session "work" exists\n$`},
		{args: words("session", "create", "-bad-", "--ttl", "1h"), status: 2, stderr: `^error: USAGE: `},
		{args: words("session", "create", "bad/id"), status: 1, stderr: `^error: INVALID_REQUEST: session_id: `},
		{args: words("session", "create", "brief", "--ttl", "1ms"), status: 1, stderr: `^error: INVALID_REQUEST: ttl: must be 0 `},
		{args: words("session", "create", "brief", "--ttl", "90m", "--metadata", "team=search"),
			stdout: `^created session brief  \(ttl 1h30m, expires ` + moment + `\)\n$`},
		{args: words("session", "keep-alive", "brief"), stdout: `^kept session brief  \(ttl 1h30m, `},
		{args: words("session", "get", "brief"), stdout: `(?s)session: +brief\n.*ttl: +1h30m\n.*metadata: +team=search\n`},
		{args: words("session", "list"), stdout: `(?s)^SESSION .*\nbrief .*\nwork `},
		{args: words("session", "delete", "brief", "--yes"), stdout: `^deleted session brief\n$`},
		{args: words("session", "get", "brief"), status: 1, stderr: `^error: SESSION_NOT_FOUND: no session "brief"\n$`},

		{args: words("var", "register", "temperature", "float", "0.7", "--min", "-2", "--max", "2", "--history-limit", "0"),
			stdout: `^temperature = 0.7  \(float, version 0, revision 1\)\n$`},
		{args: words("var", "register", "temperature", "float", "1"), status: 1,
			stderr: `^error: VARIABLE_EXISTS: session "work" has a variable "temperature"\n$`},
		{args: words("var", "set", "temperature", "0.9", "--expected-version", "0", "--reason", "less repetition"),
			stdout: `^temperature = 0.9  \(version 1, revision 2\)\n$`},
		{args: words("var", "set", "temperature", "0.9", "--expected-version", "0"), status: 1,
			stderr: `^error: VERSION_MISMATCH: temperature: expected version 0, but the current version is 1\n$`},
		{args: words("var", "set", "temperature", "2.5"), status: 1,
			stderr: `^error: CONSTRAINT_VIOLATION: temperature: 2.5 is above the maximum 2\n$`},
		{args: words("var", "set", "temperature", "warm"), status: 1, stderr: `^error: TYPE_MISMATCH: temperature: `},
		{args: words("var", "set", "temperature", "1.1", "--dry-run"),
			stdout: `^temperature = 1.1  \(version 2, revision 3; dry run, nothing written\)\n$`},
		{args: words("var", "set", "temperature", "-1.5"), stdout: `^temperature = -1.5  \(version 2, revision 3\)\n$`},
		{args: words("var", "set", "temperature", "--", "-1e-3"), stdout: `^temperature = -0.001  \(version 3, `},
		{args: words("var", "set", "temperature", "1", "--request-id", "once"), stdout: `^temperature = 1  \(version 4, `},
		{args: words("var", "set", "temperature", "1", "--request-id", "once"), stdout: `^temperature = 1  \(version 4, `},
		{args: words("var", "set", "temperature", "2", "--request-id", "once"), status: 1, stderr: `^error: REQUEST_ID_REUSED: `},
		{args: words("var", "get", "temperature"),
			stdout: `(?s)^name: +temperature\nvalue: +1\ntype: +float\nconstraints: +min -2, max 2\nversion: +4\n`},
		{args: words("var", "get", "humidity"), status: 1,
			stderr: `^error: VARIABLE_NOT_FOUND: no variable "humidity" in session "work"\n$`},
		{args: words("var", "update", "temperature", "--max", "0.5"), status: 1, stderr: `^error: CONSTRAINT_VIOLATION: `},
		{args: words("var", "update", "temperature", "--max", "1.5"), stdout: `^temperature updated  \(version 4, revision 6\)\n$`},
		{args: words("var", "set", "temperature", "1.6"), status: 1, stderr: `is above the maximum 1.5\n$`},
		{args: words("history", "list", "temperature"), stdout: `(?s)^REVISION .* less repetition .* registered `},
		{args: words("history", "get", "temperature", "1"), stdout: `(?s)^name: +temperature\nversion: +1\nvalue: +0.9\nchange: +set\nreason: +less repetition\n`},
		{args: words("history", "get", "temperature", "9"), status: 1, stderr: `^error: VERSION_NOT_AVAILABLE: `},
		{args: words("history", "rollback", "temperature", "1"),
			stdout: `^temperature = 0.9  \(version 5, revision 7; the value of version 1\)\n$`},
		{args: words("--as", "user:ada", "var", "set", "temperature", "0.3"), status: 1, stderr: `^error: SESSION_NOT_FOUND: no session "work"\n$`},
		{args: words("acl", "allow", "user:ada", "write"), stdout: `^rule_\w{26} allows user:ada write on all of session work  \(revision 8\)\n$`},
		{args: words("--as", "user:ada", "var", "set", "temperature", "0.3"), stdout: `version 6`},
		{args: words("history", "list", "temperature", "--limit", "2"), stdout: ` user:ada (?s:.*) user:anonymous `},
		{args: words("--as", "nobody", "var", "get", "temperature"), status: 1, stderr: `^error: INVALID_REQUEST: setpoint-principal: `},

		{args: words("var", "register", "prompt", "string", "@"+file), stdout: `^prompt = "Be brief.\\nBe kind."  \(string, version 0, `},
		{args: words("var", "set", "prompt", "-"), stdin: "From a pipe\n", stdout: `^prompt = "From a pipe"  \(version 1, `},
		{args: words("var", "set", "prompt", "5"), status: 1, stderr: `^error: TYPE_MISMATCH: prompt: .* \(to send text, quote it: .* or add --text\)\n$`},
		{args: words("var", "set", "prompt", "5", "--text"), stdout: `^prompt = "5"  \(version 2, `},
		{args: words("var", "set", "prompt", "@"+file+".absent"), status: 2, stderr: `^error: USAGE: .*no such file`},
		{args: words("var", "list", "t*"), stdout: `(?s)^NAME .*\ntemperature +float +6 [^\n]*\n$`},
		{args: words("var", "delete", "prompt", "--yes", "--expected-version", "1"), status: 1, stderr: `^error: VERSION_MISMATCH: `},
		{args: words("var", "delete", "prompt", "--yes"), stdout: `^deleted prompt  \(revision 13\)\n$`},
		{args: words("var", "get", "prompt"), status: 1, stderr: `^error: VARIABLE_NOT_FOUND: `},
	})
}

// The way of docs/dependencies.md, and what else there is to the graph.
func TestDependencyCommands(t *testing.T) {
	t.Parallel()
	s := serve(t, testkit.NewDatabase(t))
	env := []string{"SETPOINT_ADDR=" + s.grpc, "SETPOINT_SESSION=graph"}
	steps(t, env, []step{
		{args: words("dep", "graph"), status: 1, stderr: `^error: SESSION_NOT_FOUND: no session "graph"\n$`},
		{args: words("session", "create", "graph", "--ttl", "0"), stdout: `created`},
		{args: words("var", "register", "window", "integer", "8192", "--min", "1024"), stdout: `revision 1\)\n$`},
		{args: words("var", "register", "answer tokens", "integer", "1024"), stdout: `revision 2\)\n$`},
		{args: words("var", "register", "budget", "integer", "--expression", `window - deps["answer tokens"]`, "--min", "512"),
			stdout: `^budget = 7168  \(integer, version 0, revision 3\)\n$`},
		{args: words("var", "register", "chunk", "integer", "--expression", "math.least(budget / 8, 512)"), stdout: `^chunk = 512 `},
		{args: words("var", "register", "embedding", "choice", "small", "--choice", "small", "--choice", "large"), stdout: `revision 5`},
		{args: words("var", "register", "threshold", "float", "0.35", "--depends-on", "embedding"), stdout: `revision 6`},
		{args: words("var", "register", "wrong", "integer", "--expression", "window - missing"), status: 1,
			stderr: `^error: INVALID_EXPRESSION: wrong: 1:10: undeclared reference to "missing": there is no such variable\n$`},
		{args: words("var", "register", "wrong", "integer", "--expression", "1 / 0"), status: 1,
			stderr: `^error: DERIVATION_FAILED: wrong cannot be computed: 1:3: division by zero\n$`},

		{args: words("var", "set", "window", "4096", "--dry-run"),
			stdout: `(?s)^window = 4096  \(version 1, revision 7; dry run, nothing written\)\n.*budget +1 +3072\nchunk +1 +384\n$`},
		{args: words("var", "set", "window", "4096", "--request-id", "once"),
			stdout: `(?s)^window = 4096  \(version 1, revision 7\)\n.*budget +1 +3072\nchunk +1 +384\n$`},
		{args: words("var", "set", "window", "4096", "--request-id", "once"),
			stdout: `(?s)^window = 4096  \(version 1, revision 7\)\n.*budget +1 +3072\nchunk +1 +384\n$`},
		{args: words("var", "set", "budget", "1"), status: 1, stderr: `^error: DERIVED_VARIABLE: budget is computed by its expression\n$`},
		{args: words("var", "set", "embedding", "large"), stdout: `(?s)^embedding = "large"  .*STALE\nthreshold\n$`},
		{args: words("var", "get", "threshold"), stdout: `(?m)^stale: +since revision 10, after embedding$`},
		{args: words("var", "set", "threshold", "0.42"), stdout: `^threshold = 0.42  \(version 1, revision 12\)\n$`},
		{args: words("var", "set", "window", "1100"), stdout: `budget +budget: 76 is below the minimum 512\n$`},
		{args: words("var", "set", "window", "8192"), stdout: `(?s)budget +2 +7168\nchunk +2 +512\n$`},
		{args: words("var", "update", "budget", "--strict"), stdout: `^budget updated `},
		{args: words("var", "set", "window", "1100"), status: 1,
			stderr: `^error: DERIVATION_FAILED: budget cannot be computed: budget: 76 is below the minimum 512\n$`},
		{args: words("history", "list", "chunk", "--limit", "1"), stdout: `chunk +recomputed +2 .*after window at revision 15`},

		{args: words("dep", "add", "window", "chunk"), status: 1,
			stderr: `^error: WOULD_CREATE_CYCLE: .*: window → chunk → budget → window\n$`},
		{args: words("dep", "add", "window", "missing"), status: 1, stderr: `^error: VARIABLE_NOT_FOUND: no variable "missing" `},
		{args: words("dep", "add", "threshold", "chunk", "--reason", "longer chunks score lower"), stdout: `^threshold depends on chunk  `},
		{args: words("dep", "list", "chunk"), stdout: `(?s)^NAME .*\nbudget [^\n]*\n$`},
		{args: words("dep", "list", "chunk", "--transitive"), stdout: `(?s)\nanswer tokens .*\nbudget .*\nwindow [^\n]*\n$`},
		{args: words("dep", "dependents", "window"), stdout: `(?s)^NAME .*\nbudget [^\n]*\n$`},
		{args: words("dep", "order", "window"), stdout: `(?s)\n1 +budget .*\n2 +chunk .*\n3 +threshold [^\n]*\n$`},
		{args: words("dep", "graph"), stdout: `(?m)^threshold +float +1 +- +chunk, embedding$`},
		{args: words("dep", "graph", "-o", "dot"), stdout: `"budget" -> "chunk";`},
		{args: words("dep", "graph", "-o", "svg"), stdout: `(?s)^<\?xml .*</svg>\n$`},
		{args: words("dep", "remove", "chunk", "window"), status: 1, stderr: `^error: DEPENDENCY_NOT_FOUND: chunk does not depend on window\n$`},
		{args: words("dep", "remove", "chunk", "budget"), status: 1, stderr: `^error: DERIVED_VARIABLE: the expression of chunk uses budget\n$`},
		{args: words("dep", "remove", "threshold", "chunk"), stdout: `^threshold does not depend on chunk any more  `},
		{args: words("dep", "remove", "threshold"), status: 2, stderr: `^error: USAGE: takes FROM TO; 1 argument given`},

		{args: words("var", "delete", "embedding", "--yes"), status: 1, stderr: `^error: HAS_DEPENDENTS: embedding: others depend on it: threshold`},
		{args: words("var", "delete", "embedding", "--yes", "--cascade"), stdout: `^deleted embedding  \(revision \d+\)\n$`},
		{args: words("var", "delete", "window", "--yes", "--cascade"), status: 1, stderr: `^error: DERIVATION_FAILED: budget cannot be computed: `},
		{args: words("var", "update", "budget", "--expression", "", "--clear-depends-on"), stdout: `^budget updated`},
		{args: words("var", "delete", "window", "--yes"), stdout: `^deleted window `},
		{args: words("var", "set", "budget", "800"), stdout: `(?s)^budget = 800  .*chunk +3 +100\n$`},
	})
	order, graph := &setpointv1.GetUpdateOrderResponse{}, &setpointv1.GetGraphResponse{}
	runJSON(t, env, order, "dep", "order", "budget")
	runJSON(t, env, graph, "dep", "graph")
	if len(order.GetVariables()) != 1 || len(graph.GetNodes()) != 2 {
		t.Errorf("order %v, graph %v; want chunk, and budget with chunk", order, graph)
	}
	runJSON(t, env, &setpointv1.Dependency{}, "dep", "add", "threshold", "chunk")
	runJSON(t, env, &setpointv1.ListDependenciesResponse{}, "dep", "list", "threshold")
	runJSON(t, env, &setpointv1.ListDependentsResponse{}, "dep", "dependents", "chunk")
	runJSON(t, env, &setpointv1.RemoveDependencyResponse{}, "dep", "remove", "threshold", "chunk")
}

func TestCommandsMisused(t *testing.T) {
	t.Parallel()
	steps(t, nil, []step{
		{args: words("nonsense"), status: 2, stderr: `^error: USAGE: unknown command "nonsense" for "setpoint"; see 'setpoint --help'\n$`},
		{args: words("var", "set", "x"), status: 2, stderr: `^error: USAGE: takes NAME VALUE; 1 argument given; see 'setpoint var set --help'\n$`},
		{args: words("var", "register", "x", "number", "1"), status: 2, stderr: `^error: USAGE: no type "number"; the types are boolean, `},
		{args: words("var", "get", "x", "-o", "xml"), status: 2, stderr: `^error: USAGE: --output is table or json, not "xml"`},
		{args: words("var", "get", "x", "--colour"), status: 2, stderr: `^error: USAGE: unknown flag: --colour`},
		{args: words("var", "set", "x", "{"), status: 2, stderr: `^error: USAGE: the value begins like JSON, but is not`},
		{args: words("history", "get", "x", "first"), status: 2, stderr: `^error: USAGE: VERSION is a whole number`},
		{args: words("serve"), status: 2, stderr: `^error: USAGE: --auth is required`},
		{args: words("serve", "--auth", "none"), status: 2, stderr: `^error: USAGE: --database-url is required`},
		{args: words("serve", "--auth", "none", "--grpc-addr", "0.0.0.0:0"), status: 2, stderr: `^error: USAGE: --auth none lets everybody`},
		{args: words("serve", "--auth", "none", "--database-url", "@/nowhere"), status: 2, stderr: `^error: USAGE: --database-url: open /nowhere: `},
		{args: words("migrate", "up"), status: 2, stderr: `^error: USAGE: --database-url is required`},
		{args: words("--addr", "127.0.0.1:1", "--timeout", "5s", "var", "get", "x"), status: 1,
			stderr: `^error: UNREACHABLE: no server answers at 127\.0\.0\.1:1: .*\n$`},
		{args: words("help"), stdout: `^Setpoint keeps the setpoints of programs`},
		{args: words("help", "var", "set"), stdout: `^Sets a value, as the next version\.`},
		{args: words("version"), stdout: `^setpoint \S+\n$`},
	})
}

// Every type goes in on the command line, and comes out of it as protobuf's JSON.
func TestCommandsOfEveryType(t *testing.T) {
	t.Parallel()
	s := serve(t, testkit.NewDatabase(t))
	env := []string{"SETPOINT_ADDR=" + s.grpc, "SETPOINT_SESSION=types"}
	steps(t, env, []step{{args: words("session", "create", "types"), stdout: "created"}})
	document, err := structpb.NewValue(map[string]any{"a": []any{1.0, nil, "x"}, "b": false})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		kind        setpointv1.VariableType
		first, then string
		flags       []string
		want        [2]*setpointv1.Value
	}{
		{typeBoolean, "true", "false", nil, [2]*setpointv1.Value{client.Bool(true), client.Bool(false)}},
		{typeInteger, "-7", "9007199254740993", nil, [2]*setpointv1.Value{client.Integer(-7), client.Integer(9007199254740993)}},
		{typeFloat, "NaN", "-Infinity", nil, [2]*setpointv1.Value{client.Float(math.NaN()), client.Float(math.Inf(-1))}},
		{typeString, "5", `"quoted ☃"`, words("--min-length", "1"), [2]*setpointv1.Value{client.String("5"), client.String("quoted ☃")}},
		{typeChoice, "adam", "sgd", words("--choice", "adam", "--choice", "sgd"), [2]*setpointv1.Value{client.Choice("adam"), client.Choice("sgd")}},
		{typeModule, "torch.nn", "jax", words("--allowed-module", "torch.nn", "--allowed-module", "jax"),
			[2]*setpointv1.Value{client.Module("torch.nn"), client.Module("jax")}},
		{typeEmbedding, "[0.5, -1]", "[1e-3, 2]", words("--dimensions", "2"),
			[2]*setpointv1.Value{client.Embedding([]float32{0.5, -1}), client.Embedding([]float32{1e-3, 2})}},
		{typeTensor, `{"dtype": "uint8", "shape": [2], "data": "AQI="}`, `{"dtype": "uint8", "shape": [2], "data": "//8="}`,
			words("--dtype", "uint8", "--shape", "-1"),
			[2]*setpointv1.Value{client.Tensor("uint8", []int64{2}, []byte{1, 2}), client.Tensor("uint8", []int64{2}, []byte{255, 255})}},
		{typeJSON, `{"a": [1, null, "x"], "b": false}`, "null", words("--json-schema", `{"type": ["object", "null"]}`),
			[2]*setpointv1.Value{{Kind: &setpointv1.Value_Json{Json: document}},
				{Kind: &setpointv1.Value_Json{Json: structpb.NewNullValue()}}}},
	} {
		name := tt.kind.String()
		typeWord := map[setpointv1.VariableType]string{typeBoolean: "boolean", typeInteger: "integer", typeFloat: "float",
			typeString: "string", typeChoice: "choice", typeModule: "module", typeEmbedding: "embedding", typeTensor: "tensor",
			typeJSON: "json"}[tt.kind]
		registered, shown := &setpointv1.Variable{}, &setpointv1.Variable{}
		runJSON(t, env, registered, append(words("var", "register", name, typeWord, tt.first), tt.flags...)...)
		answer := &setpointv1.SetVariableResponse{}
		runJSON(t, env, answer, "var", "set", name, tt.then)
		runJSON(t, env, shown, "var", "get", name)
		if answer.GetVersion() != 1 || shown.GetVersion() != 1 || shown.GetRevision() != answer.GetRevision() {
			t.Errorf("%s: set answered %v, and get shows %v", name, answer, shown)
		}
		got := [2]*setpointv1.Value{registered.GetValue(), shown.GetValue()}
		if diff := cmp.Diff(tt.want, got, protocmp.Transform(), cmpopts.EquateNaNs()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		if registered.GetType() != tt.kind || len(tt.flags) > 0 && proto.Size(registered.GetConstraints()) == 0 {
			t.Errorf("%s: registered as %v", name, registered)
		}
	}

	// The other answers, with -o json.
	variables, entries := &setpointv1.ListVariablesResponse{}, &setpointv1.ListHistoryResponse{}
	runJSON(t, env, variables, "var", "list")
	runJSON(t, env, entries, "history", "list", "--limit", "0")
	if len(variables.GetVariables()) != 9 || len(entries.GetEntries()) != 18 {
		t.Errorf("listed: %d variables and %d changes, want 9 and 18", len(variables.GetVariables()), len(entries.GetEntries()))
	}
	const anyone = "VARIABLE_TYPE_INTEGER"
	runJSON(t, env, &setpointv1.HistoryEntry{}, "history", "get", anyone, "0")
	runJSON(t, env, &setpointv1.Variable{}, "history", "rollback", anyone, "0")
	runJSON(t, env, &setpointv1.Variable{}, "var", "update", anyone, "--min", "-10")
	runJSON(t, env, &setpointv1.DeleteVariableResponse{}, "var", "delete", anyone)
	runJSON(t, env, &setpointv1.Session{}, "session", "create", "other")
	runJSON(t, env, &setpointv1.Session{}, "session", "get", "other")
	runJSON(t, env, &setpointv1.Session{}, "session", "keep-alive", "other")
	runJSON(t, env, &setpointv1.ListSessionsResponse{}, "session", "list")
	runJSON(t, env, &setpointv1.DeleteSessionResponse{}, "session", "delete", "other")
}

// runJSON runs a command that succeeds and reads what it prints.
func runJSON(t *testing.T, env []string, into proto.Message, args ...string) {
	t.Helper()
	got := run(t, command{args: append(words("-o", "json"), args...), env: env})
	if got.status != 0 || got.stderr != "" {
		t.Fatalf("setpoint %q: exit status %d, %s", args, got.status, got.stderr)
	}
	if err := protojson.Unmarshal([]byte(got.stdout), into); err != nil {
		t.Fatalf("setpoint %q printed what is no %s: %v\n%s", args, into.ProtoReflect().Descriptor().Name(), err, got.stdout)
	}
}

// The commands for operators, on a database that begins empty.
func TestOperatorsCommands(t *testing.T) {
	t.Parallel()
	file := databaseFile(t, testkit.NewEmptyDatabase(t))
	on := func(args ...string) []string { return append(args, "--database-url", file) }
	steps(t, nil, []step{
		{args: on("migrate", "status"), stdout: `^pending   00001_sessions`},
		{args: on("migrate", "plan"), stdout: `create table setpoint\.sessions`},
		{args: on("serve", "--auth", "none", "--grpc-addr", "127.0.0.1:0", "--http-addr", ""), status: 1,
			stderr: `^error: \S+: the schema is too old: it is at version 0, .*; run 'setpoint migrate up'\n$`},
		{args: on("doctor"), status: 1, stdout: `(?s)ok +database .*BAD +schema `, stderr: `^error: UNHEALTHY: 1 of `},
		{args: on("migrate", "up"), stdout: `(?s)^applied 00001_sessions.*applied 00009_access`},
		{args: on("migrate", "up"), stdout: `^the schema is up to date\n$`},
		{args: on("migrate", "status"), stdout: `^applied   00001_sessions`},
		{args: on("doctor"), stdout: `(?s)ok +durability +fsync on, full_page_writes on, synchronous_commit on\n.*ok +schema `},
		{args: on("migrate", "down", "--yes"), stdout: `^taken back 00009_access`},
		{args: words("doctor", "--database-url", "postgres://nobody@127.0.0.1:1/none"), status: 1,
			stdout: `^BAD +database `, stderr: `^error: UNHEALTHY: 1 of 1 checks`},
	})

	// A server may migrate by itself, and several at once.
	url := testkit.NewEmptyDatabase(t)
	first, second := serve(t, url, "--migrate"), serve(t, url, "--migrate")
	newSession(t, dial(t, first), "migrated")
	register(t, dial(t, second), "migrated", "var_a", typeInteger, client.Integer(0))
}
