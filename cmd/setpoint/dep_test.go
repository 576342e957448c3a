package main

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

const (
	kindFloat   = setpointv1.VariableType_VARIABLE_TYPE_FLOAT
	kindInteger = setpointv1.VariableType_VARIABLE_TYPE_INTEGER
	kindString  = setpointv1.VariableType_VARIABLE_TYPE_STRING
)

// ratio is a derived variable that could not be computed.
func ratio() *setpointv1.Variable {
	return &setpointv1.Variable{
		VariableId: "var_r", SessionId: "default", Name: "ratio", Type: kindInteger, Value: client.Integer(2), Version: 4, Revision: 12,
		DependsOn: []string{"hits", "tries"}, Expression: "hits / tries", Strict: true,
		Stale: &setpointv1.Stale{Revision: 11, Cause: "tries", Error: "1:6: division by zero"},
	}
}

func relatives() []*setpointv1.RelatedVariable {
	return []*setpointv1.RelatedVariable{
		{VariableId: "var_r", Name: "ratio", Type: kindInteger, Version: 4, Expression: "hits / tries", Stale: ratio().GetStale(), Direct: true},
		{VariableId: "var_p", Name: "report\x1b", Type: kindString, Version: 12, Stale: &setpointv1.Stale{Revision: 11, Cause: "tries"}},
		{VariableId: "var_x", Name: "x", Type: kindFloat, Direct: true},
	}
}

// Each command about dependencies: what goes to the server, what comes out.
func TestDependencyCommands(t *testing.T) {
	t.Parallel()
	tests := []struct {
		args    []string
		answer  proto.Message
		request proto.Message
		out     string
	}{
		{
			args: []string{"dep", "add", "report", "total", "--reason", "why", "--request-id", "once"},
			answer: &setpointv1.Dependency{SessionId: "default", Dependent: "report", Dependency: "total", DependentId: "var_a",
				DependencyId: "var_b", Revision: 7, CreatedAt: at("16:00:00"), CreatedBy: "user:ada"},
			request: &setpointv1.AddDependencyRequest{SessionId: "default", Dependent: "report", Dependency: "total", Reason: "why", RequestId: "once"},
			out:     "report depends on total  (revision 7)\n",
		},
		{
			args:    []string{"--session", "s", "dep", "remove", "report", "total", "--reason", "why", "--request-id", "once"},
			answer:  &setpointv1.RemoveDependencyResponse{Revision: 8},
			request: &setpointv1.RemoveDependencyRequest{SessionId: "s", Dependent: "report", Dependency: "total", Reason: "why", RequestId: "once"},
			out:     "report does not depend on total any more  (revision 8)\n",
		},
		{
			args:    []string{"dep", "list", "report"},
			answer:  &setpointv1.ListDependenciesResponse{Dependencies: relatives()},
			request: &setpointv1.ListDependenciesRequest{SessionId: "default", Variable: "report", PageSize: 1000},
			out: "NAME        TYPE     VERSION  STATE\n" +
				"ratio       integer        4  derived: hits / tries; stale since revision 11, after tries: 1:6: division by zero\n" +
				"report\\x1b  string        12  stale since revision 11, after tries\n" +
				"x           float          0  -\n",
		},
		{
			args:    []string{"dep", "dependents", "tries", "--transitive"},
			answer:  &setpointv1.ListDependentsResponse{Dependents: relatives()[1:]},
			request: &setpointv1.ListDependentsRequest{SessionId: "default", Variable: "tries", Transitive: true, PageSize: 1000},
			out: "NAME        TYPE    VERSION  DIRECT  STATE\n" +
				"report\\x1b  string       12  no      stale since revision 11, after tries\n" +
				"x           float         0  yes     -\n",
		},
		{
			args:    []string{"dep", "order", "tries"},
			answer:  &setpointv1.GetUpdateOrderResponse{Variables: relatives()[1:]},
			request: &setpointv1.GetUpdateOrderRequest{SessionId: "default", Variable: "tries"},
			out: "#  NAME        TYPE    VERSION  DIRECT  STATE\n" +
				"1  report\\x1b  string       12  no      stale since revision 11, after tries\n" +
				"2  x           float         0  yes     -\n",
		},
		{
			args:    []string{"dep", "order", "report"},
			answer:  &setpointv1.GetUpdateOrderResponse{},
			request: &setpointv1.GetUpdateOrderRequest{SessionId: "default", Variable: "report"},
			out:     "nothing depends on report\n",
		},
		{
			args: []string{"dep", "graph", "--all"},
			answer: &setpointv1.GetGraphResponse{Nodes: []*setpointv1.GraphNode{
				{Name: "ratio", Type: kindInteger, Version: 4, Expression: "hits / tries", DependsOn: []string{"hits", "tries"}},
				{Name: "tries", Type: kindInteger, Version: 9},
			}},
			request: &setpointv1.GetGraphRequest{SessionId: "default", IncludeUnconnected: true, PageSize: 1000},
			out: "NAME   TYPE     VERSION  STATE                  DEPENDS ON\n" +
				"ratio  integer        4  derived: hits / tries  hits, tries\n" +
				"tries  integer        9  -                      -\n",
		},
		{
			args: []string{"var", "register", "ratio", "integer", "--expression", "hits / tries", "--depends-on", "a,b", "--depends-on", "c",
				"--strict", "--max", "9"},
			answer: ratio(),
			request: &setpointv1.RegisterVariableRequest{SessionId: "default", Name: "ratio", Type: kindInteger, Expression: "hits / tries",
				DependsOn: []string{"a,b", "c"}, Strict: true, Constraints: &setpointv1.Constraints{Max: proto.Float64(9)}},
			out: "ratio = 2  (integer, version 4, revision 12; stale since revision 11, after tries: 1:6: division by zero)\n",
		},
		{
			args:   []string{"var", "register", "ratio", "integer", "-7", "--expression", "-hits"},
			answer: &setpointv1.Variable{Name: "ratio", Type: kindInteger, Value: client.Integer(-7)},
			request: &setpointv1.RegisterVariableRequest{SessionId: "default", Name: "ratio", Type: kindInteger, Expression: "-hits",
				Value: &setpointv1.Value{Kind: &setpointv1.Value_Json{Json: structpb.NewNumberValue(-7)}}},
			out: "ratio = -7  (integer, version 0, revision 0)\n",
		},
		{
			args:    []string{"var", "get", "ratio"},
			answer:  ratio(),
			request: &setpointv1.GetVariableRequest{SessionId: "default", Variable: "ratio"},
			out: "name:          ratio\n" +
				"value:         2\n" +
				"type:          integer\n" +
				"expression:    hits / tries\n" +
				"strict:        yes\n" +
				"depends on:    hits, tries\n" +
				"stale:         since revision 11, after tries\n" +
				"error:         1:6: division by zero\n" +
				"version:       4\n" +
				"revision:      12\n" +
				"history limit: all\n" +
				"created:       -\n" +
				"updated:       -\n" +
				"session:       default\n" +
				"id:            var_r\n",
		},
		{
			args: []string{"var", "list"},
			answer: &setpointv1.ListVariablesResponse{Variables: []*setpointv1.Variable{
				{Name: "mean", Type: kindFloat, Expression: "a", Value: client.Float(1)}, ratio(),
				{Name: "report", Type: kindString, Stale: &setpointv1.Stale{Revision: 1}, Value: client.String("x")}, {Name: "tries", Type: kindInteger, Value: client.Integer(0)}}},
			request: &setpointv1.ListVariablesRequest{SessionId: "default", PageSize: 1000},
			out: "NAME    TYPE                     VERSION  UPDATED  BY  VALUE\n" +
				"mean    float, derived                 0  -            1\n" +
				"ratio   integer, derived, stale        4  -            2\n" +
				"report  string, stale                  0  -            \"x\"\n" +
				"tries   integer                        0  -            0\n",
		},
		{
			args:   []string{"var", "update", "ratio", "--expression", "hits / tries", "--depends-on", "x", "--strict"},
			answer: ratio(),
			request: &setpointv1.UpdateVariableRequest{SessionId: "default", Variable: "ratio", Expression: proto.String("hits / tries"),
				DependsOn: []string{"x"}, Strict: proto.Bool(true)},
			out: "ratio updated, = 2  (version 4, revision 12; stale since revision 11, after tries: 1:6: division by zero)\n",
		},
		{
			args:   []string{"var", "update", "ratio", "--expression=", "--clear-depends-on"},
			answer: &setpointv1.Variable{Name: "ratio", Version: 4, Revision: 13, Value: client.Integer(2)},
			request: &setpointv1.UpdateVariableRequest{SessionId: "default", Variable: "ratio", Expression: proto.String(""),
				ClearDependsOn: true},
			out: "ratio updated, = 2  (version 4, revision 13)\n",
		},
		{
			args:    []string{"var", "update", "ratio", "--strict=false"},
			answer:  &setpointv1.Variable{Name: "ratio", Version: 4, Revision: 13},
			request: &setpointv1.UpdateVariableRequest{SessionId: "default", Variable: "ratio", Strict: proto.Bool(false)},
			out:     "ratio updated  (version 4, revision 13)\n",
		},
		{
			args: []string{"var", "delete", "tries", "--cascade", "--yes"},
			answer: &setpointv1.DeleteVariableResponse{Revision: 14, Stale: []*setpointv1.StaleVariable{
				{Variable: "ratio", Error: "tries was deleted"}}},
			request: &setpointv1.DeleteVariableRequest{SessionId: "default", Variable: "tries", Cascade: true},
			out: "deleted tries  (revision 14)\n" +
				"\n" +
				"STALE  ERROR\n" +
				"ratio  tries was deleted\n",
		},
		{
			args: []string{"history", "list", "--change", "stale-cleared", "--change", "recomputed", "--change", "dependency_added"},
			answer: &setpointv1.ListHistoryResponse{Entries: []*setpointv1.HistoryEntry{
				{Revision: 9, Name: "report", Change: setpointv1.HistoryChange_HISTORY_CHANGE_DEPENDENCY_ADDED, Dependency: "total", Reason: "why"},
				{Revision: 8, Name: "ratio", Change: setpointv1.HistoryChange_HISTORY_CHANGE_STALE, Error: "division by zero",
					CausedBy: &setpointv1.Cause{Variable: "tries", Revision: 6}},
				{Revision: 7, Name: "total", Change: setpointv1.HistoryChange_HISTORY_CHANGE_RECOMPUTED, Version: proto.Int64(2),
					CausedBy: &setpointv1.Cause{Variable: "tries", Revision: 6}, Value: client.Integer(4)},
				{Revision: 5, Name: "total", Change: setpointv1.HistoryChange_HISTORY_CHANGE_UPDATED, Expression: proto.String("a\n+ b")},
			}},
			request: &setpointv1.ListHistoryRequest{SessionId: "default", PageSize: 100, Changes: []setpointv1.HistoryChange{
				setpointv1.HistoryChange_HISTORY_CHANGE_STALE_CLEARED, setpointv1.HistoryChange_HISTORY_CHANGE_RECOMPUTED,
				setpointv1.HistoryChange_HISTORY_CHANGE_DEPENDENCY_ADDED}},
			out: "REVISION  TIME  NAME    CHANGE            VERSION  BY  REASON                                       METADATA  VALUE\n" +
				"       9  -     report  dependency_added        -      why; dependency: total                       -         -\n" +
				"       8  -     ratio   stale                   -      after tries at revision 6; division by zero  -         -\n" +
				"       7  -     total   recomputed              2      after tries at revision 6                    -         4\n" +
				"       5  -     total   updated                 -      expression: a\\n+ b                           -         -\n",
		},
		{
			args: []string{"history", "get", "total", "2"},
			answer: &setpointv1.HistoryEntry{Revision: 7, Name: "total", Version: proto.Int64(2), Value: client.Integer(4),
				Change: setpointv1.HistoryChange_HISTORY_CHANGE_RECOMPUTED, CausedBy: &setpointv1.Cause{Variable: "tries", Revision: 6},
				Expression: proto.String("a + b")},
			request: &setpointv1.GetVariableVersionRequest{SessionId: "default", Variable: "total", Version: 2},
			out: "name:       total\n" +
				"version:    2\n" +
				"value:      4\n" +
				"change:     recomputed\n" +
				"follows:    after tries at revision 6\n" +
				"expression: a + b\n" +
				"time:       -\n" +
				"revision:   7\n",
		},
		{
			args: []string{"history", "rollback-session", "--revision", "6", "--dry-run"},
			answer: &setpointv1.RollbackSessionResponse{TargetRevision: 6, Revision: 20, UnchangedCount: 3,
				Restored:   []*setpointv1.RestoredVariable{{Name: "tries", Then: client.Integer(1), Previous: client.Integer(2), PreviousVersion: 4, Version: 5}},
				Recomputed: []*setpointv1.RecomputedVariable{{Variable: "ratio", Version: 6, Value: client.Integer(9)}},
				Stale:      []*setpointv1.StaleVariable{{Variable: "report"}}, ValuesOmitted: true},
			request: &setpointv1.RollbackSessionRequest{SessionId: "default", DryRun: true, To: &setpointv1.RollbackSessionRequest_Revision{Revision: 6}},
			out: "NAME   THEN  NOW  VERSION\n" +
				"tries  1     2    4 → 5\n" +
				"would restore 1 variable as of revision 6; unchanged since: 3\n" +
				"\n" +
				"RECOMPUTED  VERSION  VALUE\n" +
				"ratio             6  9\n" +
				"\n" +
				"STALE\n" +
				"report\n" +
				"some values are too large to show together; 'setpoint history list' has them\n",
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

// What followed from a set, for any number of variables.
func TestEffectsOfASet(t *testing.T) {
	t.Parallel()
	answer := func(recomputed, stale int) *setpointv1.SetVariableResponse {
		set := &setpointv1.SetVariableResponse{VariableId: "var_a", Version: 1, Revision: 2}
		for i := range recomputed {
			set.Recomputed = append(set.Recomputed, &setpointv1.RecomputedVariable{
				Variable: fmt.Sprintf("r%03d", i), Version: int64(i), Value: client.Integer(int64(i))})
		}
		for i := range stale {
			set.Stale = append(set.Stale, &setpointv1.StaleVariable{Variable: fmt.Sprintf("s%03d", i)})
		}
		return set
	}
	const first = "a = 5  (version 1, revision 2)\n"
	recomputed := func(n int) string {
		text := "\nRECOMPUTED  VERSION  VALUE\n"
		for i := range n {
			text += fmt.Sprintf("r%03[1]d        %7[1]d  %[1]d\n", i)
		}
		return text
	}
	stale := func(n int) string {
		text := "\nSTALE\n"
		for i := range n {
			text += fmt.Sprintf("s%03d\n", i)
		}
		return text
	}
	tests := []struct {
		recomputed, stale int
		flags             string
		want              string
	}{
		{0, 0, "", first},
		{1, 0, "", first + recomputed(1)},
		{0, 1, "", first + stale(1)},
		{20, 20, "", first + recomputed(20) + stale(20)},
		{21, 1000, "", first + recomputed(20) + "and 1 more; --all shows them\n" +
			stale(20) + "and 980 more; --all shows them\n"},
		{1000, 21, "--all", first + recomputed(1000) + stale(21)},
		{1, 0, "--dry-run", "a = 5  (version 1, revision 2; dry run, nothing written)\n" + recomputed(1)},
	}
	for _, tt := range tests {
		p := newPeer(t, always(answer(tt.recomputed, tt.stale), nil))
		got := p.setpoint(t, append([]string{"var", "set", "a", "5"}, strings.Fields(tt.flags)...)...)
		if diff := cmp.Diff(result{out: tt.want}, got, cmp.AllowUnexported(result{})); diff != "" {
			t.Errorf("%d recomputed, %d stale %s (-want +got):\n%s", tt.recomputed, tt.stale, tt.flags, diff)
		}
	}

	mixed := answer(1, 2)
	mixed.Recomputed[0].Value, mixed.ValuesOmitted = nil, true
	mixed.Stale[1].Error = "division\nby zero"
	want := first + recomputed(0) + "r000              0  (not shown)\n" + "\nSTALE  ERROR\ns000   -\ns001   division\\nby zero\n" +
		"some values are too large to show together; 'setpoint history list' has them\n"
	if got := newPeer(t, always(mixed, nil)).setpoint(t, "var", "set", "a", "5"); got.out != want {
		t.Errorf("mixed: got\n%s, want\n%s", got.out, want)
	}
	mixed.Recomputed[0].Value = client.String(strings.Repeat("long ", 1000))
	p := newPeer(t, always(mixed, nil))
	narrow := invocation{args: []string{"--addr", p.addr, "var", "set", "a", "5"}, screen: screen{out: true, width: 40}}.run(t)
	for _, line := range strings.Split(narrow.out, "\n")[1:5] {
		if len([]rune(line)) > 40 {
			t.Errorf("on a narrow terminal: %q", line)
		}
	}
}

func TestRefusedDependencies(t *testing.T) {
	t.Parallel()
	tests := []struct{ args, reason, want string }{
		{"dep add a a", "WOULD_CREATE_CYCLE", "error: WOULD_CREATE_CYCLE: so not\n"},
		{"dep remove a b", "DEPENDENCY_NOT_FOUND", "error: DEPENDENCY_NOT_FOUND: so not\n"},
		{"var set a 1", "DERIVED_VARIABLE", "error: DERIVED_VARIABLE: so not\n"},
		{"var delete a --yes", "HAS_DEPENDENTS", "error: HAS_DEPENDENTS: so not (--cascade deletes it all the same, and leaves them)\n"},
	}
	for _, tt := range tests {
		p := newPeer(t, always(nil, refusal(t, codes.FailedPrecondition, tt.reason, "so not")))
		got := p.setpoint(t, strings.Fields(tt.args)...)
		if diff := cmp.Diff(result{status: 1, err: tt.want}, got, cmp.AllowUnexported(result{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.args, diff)
		}
	}
}

// pagedGraph answers GetGraph with all nodes, a page of so many at a time.
func pagedGraph(nodes []*setpointv1.GraphNode, size int) func(proto.Message) (proto.Message, error) {
	return func(request proto.Message) (proto.Message, error) {
		first := 0
		if token := request.(*setpointv1.GetGraphRequest).GetPageToken(); token != "" {
			if _, err := fmt.Sscanf(token, "from-%d", &first); err != nil {
				return nil, err
			}
		}
		last := min(len(nodes), first+size)
		page := &setpointv1.GetGraphResponse{Nodes: nodes[first:last]}
		if last < len(nodes) {
			page.NextPageToken = fmt.Sprintf("from-%d", last)
		}
		return page, nil
	}
}

func TestGraphOfSeveralPages(t *testing.T) {
	t.Parallel()
	nodes := exampleGraph()
	for _, format := range []string{"table", "json", "dot", "svg"} {
		whole := newPeer(t, pagedGraph(nodes, 100)).setpoint(t, "dep", "graph", "-o", format)
		if whole.status != 0 || whole.err != "" || whole.out == "" {
			t.Fatalf("-o %s: %+v", format, whole)
		}
		for size := 1; size < len(nodes); size++ {
			p := newPeer(t, pagedGraph(nodes, size))
			if diff := cmp.Diff(whole, p.setpoint(t, "dep", "graph", "-o", format), cmp.AllowUnexported(result{})); diff != "" {
				t.Errorf("-o %s in pages of %d (-at once +in pages):\n%s", format, size, diff)
			}
			if want := (len(nodes) + size - 1) / size; p.count() != want {
				t.Errorf("-o %s in pages of %d: %d calls, want %d", format, size, p.count(), want)
			}
		}
	}
}

// What the commands do to a real session.
func TestDependenciesOnAServer(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.session("s")
	steps := []struct {
		line string // its words are separated by |
		want string // a pattern that the whole output has
	}{
		{"var|register|a|float|1", `^a = 1  \(float, version 0, revision 1\)\n$`},
		{"var|register|b c|float|2", `^b c = 2 `},
		{"var|register|sum|float|--expression|a + deps[\"b c\"]", `^sum = 3  \(float, version 0, revision \d+\)\n$`},
		{"var|register|half|float|--expression|sum / 2.0|--strict", `^half = 1.5  `},
		{"var|register|report|string|none yet|--depends-on|half", `^report = "none yet"  `},
		{"dep|list|report", `^NAME +TYPE +VERSION +STATE\nhalf +float +0 +derived: sum / 2\.0\n$`},
		{"dep|list|report|--transitive", `(?s)^NAME .*\na +float +0 +no +-\nb c .*\nhalf +float +0 +yes +derived.*\nsum .* no `},
		{"dep|dependents|a", `^NAME .*\nsum +float +0 +derived: a \+ deps\["b c"\]\n$`},
		{"dep|dependents|a|--transitive", `(?s)^NAME .*\nhalf .*\nreport .*\nsum `},
		{"dep|order|a", `(?s)^# .*\n1  sum .* yes .*\n2  half .* no .*\n3  report .* no `},
		{"dep|order|report", `^nothing depends on report\n$`},
		{"var|set|a|3|--dry-run", `^a = 3  \(version 1, revision \d+; dry run, nothing written\)\n\nRECOMPUTED  VERSION  VALUE\n` +
			`sum +1  5\nhalf +1  2\.5\n\nSTALE\nreport\n$`},
		{"var|get|report", `depends on: +half\nversion`},
		{"var|set|a|3", `^a = 3  \(version 1, revision \d+\)\n\nRECOMPUTED  VERSION  VALUE\nsum +1  5\nhalf +1  2\.5\n\nSTALE\nreport\n$`},
		{"var|set|a|3", `^a = 3  \(version 2, revision \d+\)\n$`},
		{"var|get|report", `(?s)stale: +since revision \d+, after a\nversion`},
		{"var|list", `(?s)^NAME .*\nhalf +float, derived +1 .*\nreport +string, stale +0 .*\nsum +float, derived +1 `},
		{"history|list|--change|recomputed|--change|stale|--change|dependency_added", `(?s)report +stale .* after a at revision \d+ .*half +recomputed +1 .* after a at`},
		{"dep|add|report|a|--reason|it quotes it", `^report depends on a  \(revision \d+\)\n$`},
		{"history|list|--change|dependency_added|--limit|1", `it quotes it; dependency: a`},
		{"dep|graph", `(?s)^NAME .*\na +float +2 +- +-\n.*\nhalf +float +1 +derived: sum / 2\.0 +sum\nreport +string +0 +stale since .* +a, half\n`},
		{"dep|graph|-o|dot", `(?s)^// Session s: 5 variables, 5 dependencies\n.*\t"sum" -> "half";\n\t"a" -> "report";\n`},
		{"dep|graph|-o|svg", `(?s)^<\?xml .*<title>a → report</title>.*</svg>\n$`},
		{"dep|graph|-o|json", `(?s)^\{\n  "nodes": \[.*"next_page_token": ""\n\}\n$`},
		{"dep|remove|report|half", `^report does not depend on half any more  \(revision \d+\)\n$`},
		{"var|update|half|--expression|sum / 4.0", `^half updated, = 1\.25  \(version 2, revision \d+\)\n$`},
		{"history|rollback|a|0", `^a = 1  `},
		{"history|rollback-session|--revision|2|--dry-run", `(?s)would restore \d variable`},
		{"var|delete|b c|--cascade|--yes", `(?s)^deleted b c  \(revision \d+\)\n`},
		{"var|update|sum|--expression|", `^sum updated, = 3  `},
		{"var|update|report|--clear-depends-on", `^report updated  `},
		{"dep|graph|--all", `\nreport +string +0 +stale since revision \d+, after a +-\n`},
	}
	for _, step := range steps {
		args := append([]string{"--addr", h.addr, "--session", "s"}, strings.Split(step.line, "|")...)
		got := invocation{args: args}.run(t)
		if got.status != 0 || got.err != "" || !regexp.MustCompile(step.want).MatchString(got.out) {
			t.Errorf("%s: got %d %s\n%s\nwant %s", step.line, got.status, got.err, got.out, step.want)
		}
	}
	refused := []struct{ line, want string }{
		{"dep|add|sum|half", `^error: WOULD_CREATE_CYCLE: `},
		{"dep|add|a|a", `^error: WOULD_CREATE_CYCLE: `},
		{"dep|add|a|nobody", `^error: VARIABLE_NOT_FOUND: `},
		{"dep|remove|report|half", `^error: DEPENDENCY_NOT_FOUND: `},
		{"dep|remove|half|sum", `^error: DERIVED_VARIABLE: `},
		{"dep|list|nobody", `^error: VARIABLE_NOT_FOUND: `},
		{"var|set|half|1", `^error: DERIVED_VARIABLE: `},
		{"var|delete|sum|--yes", `^error: HAS_DEPENDENTS: .* \(--cascade deletes it all the same, and leaves them\)\n$`},
		{"var|register|x|float|--expression|1.0 / nobody", `^error: INVALID_EXPRESSION: `},
		{"var|register|x|integer|--expression|1 / 0", `^error: DERIVATION_FAILED: `},
	}
	for _, step := range refused {
		args := append([]string{"--addr", h.addr, "--session", "s"}, strings.Split(step.line, "|")...)
		got := invocation{args: args}.run(t)
		if got.status != 1 || got.out != "" || !regexp.MustCompile(step.want).MatchString(got.err) {
			t.Errorf("%s: got %+v, want %s", step.line, got, step.want)
		}
	}
}
