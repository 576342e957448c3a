package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"pgregory.net/rapid"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

func number(name string, value float64, needs ...string) *setpointv1.VariableRegistration {
	return &setpointv1.VariableRegistration{Name: name, Type: kindFloat, Value: client.Float(value), DependsOn: needs}
}

func derived(name, expression string, needs ...string) *setpointv1.VariableRegistration {
	return &setpointv1.VariableRegistration{Name: name, Type: kindFloat, Expression: expression, DependsOn: needs}
}

// exactly is a variable without what belongs to its session.
func (h *house) exactly(session, name string) *setpointv1.Variable {
	h.t.Helper()
	v := h.get(session, name)
	return &setpointv1.Variable{Name: v.GetName(), Type: v.GetType(), Value: v.GetValue(), Constraints: v.GetConstraints(),
		Metadata: v.GetMetadata(), HistoryLimit: v.GetHistoryLimit(), DependsOn: v.GetDependsOn(), Expression: v.GetExpression(),
		Strict: v.GetStrict()}
}

// sameSessions compares the variables of two sessions; no variable of the second is stale.
func (h *house) sameSessions(first, second string, names ...string) {
	h.t.Helper()
	for _, name := range names {
		if diff := cmp.Diff(h.exactly(first, name), h.exactly(second, name), protocmp.Transform()); diff != "" {
			h.t.Errorf("%s (-%s +%s):\n%s", name, first, second, diff)
		}
		if stale := h.get(second, name).GetStale(); stale != nil {
			h.t.Errorf("%s is stale in %s: %v", name, second, stale)
		}
	}
}

// family is variables that depend on each other in each way that there is.
func family() []*setpointv1.VariableRegistration {
	limited := derived("z limited", `deps["a"] * 2.0`)
	limited.Constraints, limited.Metadata, limited.HistoryLimit = &setpointv1.Constraints{Max: proto.Float64(1000)}, map[string]string{"k": "v"}, proto.Int64(3)
	strict := derived("k", "b + c", "y")
	strict.Strict = true
	return []*setpointv1.VariableRegistration{
		number("a", 1), number("b", 2, "a"), derived("c", "a + b"), strict, number("y", 5),
		number("d", 9, "k", "c"), limited, number("alone", 0),
	}
}

func familyNames() []string {
	var names []string
	for _, r := range family() {
		names = append(names, r.GetName())
	}
	return names
}

func TestDependenciesRoundTrip(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.session("from", family()...)
	lines := h.export("from")
	names := familyNames()
	out := h.setpoint("session", "import", "to", h.file(lines...), "--create")
	if !strings.HasPrefix(out, "imported 8 variables (8 registered, 0 replaced, 0 unchanged, 0 kept) in ") {
		t.Errorf("got %s", out)
	}
	h.sameSessions("from", "to", names...)
	if diff := cmp.Diff(withoutOrigin(t, lines), withoutOrigin(t, h.export("to"))); diff != "" {
		t.Errorf("exported again (-first +second):\n%s", diff)
	}
	for _, name := range names {
		if v := h.get("to", name); v.GetVersion() != 0 {
			t.Errorf("%s is at version %d", name, v.GetVersion())
		}
	}
	// Whatever order the file has. Once more writes nothing.
	backwards := slices.Clone(lines)
	slices.Reverse(backwards[1 : len(backwards)-1])
	h.setpoint("session", "import", "back", h.file(backwards...), "--create")
	h.sameSessions("from", "back", names...)
	for _, merge := range []string{"replace", "keep"} {
		before := h.revision("back")
		out := h.setpoint("session", "import", "back", h.file(lines...), "--merge", merge)
		if want := map[string]string{"replace": "8 unchanged", "keep": "8 kept"}[merge]; !strings.Contains(out, want) {
			t.Errorf("--merge %s: got %s, want %s", merge, out, want)
		}
		if after := h.revision("back"); after != before {
			t.Errorf("--merge %s: %d changes", merge, after-before)
		}
	}
	// The copy lives.
	h.set("to", "a", client.Float(10), nil, "")
	if v := h.get("to", "k").GetValue().GetNumber(); v != 14 {
		t.Errorf("k is %g", v)
	}
}

// With the history, variables are what they were, and follow as they did, without an own version for it.
func TestDependenciesRoundTripWithHistory(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.session("from", family()...)
	for i := range 3 {
		h.set("from", "a", client.Float(float64(10*i+3)), nil, fmt.Sprintf("step %d", i))
		h.set("from", "b", client.Float(float64(i)), nil, "")
		h.set("from", "d", client.Float(float64(i)), nil, "")
	}
	lines := h.export("from", "--history")
	h.setpoint("session", "import", "to", h.file(lines...), "--create", "--history")
	h.sameSessions("from", "to", familyNames()...)
	// All versions are there; a derived variable has one more, from when it began to follow.
	for _, name := range familyNames() {
		more := int64(0)
		if h.get("from", name).GetExpression() != "" {
			more = 1
		}
		if from, to := h.get("from", name).GetVersion(), h.get("to", name).GetVersion(); to != from+more && name != "z limited" {
			t.Errorf("%s is at version %d in one session, and at %d in the other", name, from, to)
		}
	}
	for version := range h.get("from", "c").GetVersion() + 1 {
		first, second := h.version("from", "c", version), h.version("to", "c", version)
		if !sameMessage(first.GetValue(), second.GetValue()) {
			t.Errorf("c at version %d: %v and %v", version, first, second)
		}
	}
	h.set("to", "b", client.Float(100), nil, "")
	if v := h.get("to", "c").GetValue().GetNumber(); v != 123 {
		t.Errorf("c is %g", v)
	}
	// An import that broke off within, and goes on.
	h.session("part", number("a", 23), number("b", 0), number("k", 77), number("y", 5))
	out := h.setpoint("session", "import", "part", h.file(lines...), "--history", "--merge", "replace")
	if !strings.Contains(out, "4 registered, 2 replaced, 2 unchanged") {
		t.Errorf("got %s", out)
	}
	h.sameSessions("from", "part", familyNames()...)
}

func (h *house) version(session, name string, version int64) *setpointv1.HistoryEntry {
	h.t.Helper()
	entry, err := h.History.GetVariableVersion(h.t.Context(),
		&setpointv1.GetVariableVersionRequest{SessionId: session, Variable: name, Version: version})
	if err != nil {
		h.t.Fatal(err)
	}
	return entry
}

// A session becomes the file's, whatever depended on what before.
func TestReplaceDependencies(t *testing.T) {
	t.Parallel()
	limited := func(r *setpointv1.VariableRegistration, low, high float64) *setpointv1.VariableRegistration {
		r.Constraints = &setpointv1.Constraints{Min: &low, Max: &high}
		return r
	}
	strict := func(r *setpointv1.VariableRegistration) *setpointv1.VariableRegistration {
		r.Strict = true
		return r
	}
	tests := []struct {
		name     string
		to, from []*setpointv1.VariableRegistration
		replaced int
	}{
		{"plain becomes derived", []*setpointv1.VariableRegistration{number("a", 1), number("b", 7)},
			[]*setpointv1.VariableRegistration{number("a", 2), derived("b", "a * 3.0")}, 2},
		{"derived becomes plain", []*setpointv1.VariableRegistration{number("a", 1), derived("b", "a * 3.0")},
			[]*setpointv1.VariableRegistration{number("a", 2), number("b", 7)}, 2},
		{"derived becomes plain with the same value", []*setpointv1.VariableRegistration{number("a", 1), derived("b", "a * 3.0")},
			[]*setpointv1.VariableRegistration{number("a", 1), number("b", 3)}, 1},
		{"another expression", []*setpointv1.VariableRegistration{number("a", 1), derived("b", "a * 3.0")},
			[]*setpointv1.VariableRegistration{number("a", 1), derived("b", "a * 4.0")}, 1},
		{"another strictness", []*setpointv1.VariableRegistration{number("a", 1), derived("b", "a"), strict(derived("c", "a"))},
			[]*setpointv1.VariableRegistration{number("a", 1), strict(derived("b", "a")), derived("c", "a")}, 2},
		{"more dependencies", []*setpointv1.VariableRegistration{number("a", 1), number("b", 7)},
			[]*setpointv1.VariableRegistration{number("a", 1), number("b", 7, "a", "c"), number("c", 3)}, 1},
		{"fewer dependencies", []*setpointv1.VariableRegistration{number("a", 1), number("b", 7, "a", "c"), number("c", 3)},
			[]*setpointv1.VariableRegistration{number("a", 1), number("b", 7, "c"), number("c", 3)}, 1},
		{"none", []*setpointv1.VariableRegistration{number("a", 1), number("b", 7, "a")},
			[]*setpointv1.VariableRegistration{number("a", 2), number("b", 7)}, 2},
		{"the other way around", []*setpointv1.VariableRegistration{number("a", 1), number("b", 7, "a")},
			[]*setpointv1.VariableRegistration{number("a", 1, "b"), number("b", 7)}, 2},
		{"around, by way of another", []*setpointv1.VariableRegistration{number("a", 1), derived("b", "a"), derived("c", "b + a")},
			[]*setpointv1.VariableRegistration{derived("a", "b * 2.0"), derived("b", "c"), number("c", 4)}, 3},
		{"a ring that turns", []*setpointv1.VariableRegistration{number("a", 1, "b"), number("b", 7, "c"), number("c", 8)},
			[]*setpointv1.VariableRegistration{number("a", 1, "c"), number("b", 7), number("c", 8, "b")}, 3},
		{"values that others follow", []*setpointv1.VariableRegistration{number("a", 1), number("b", 2, "a"), number("c", 3, "b"), derived("d", "c")},
			[]*setpointv1.VariableRegistration{number("a", 5), number("b", 6, "a"), number("c", 3, "b"), derived("d", "c")}, 2},
		{"constraints of a derived one", []*setpointv1.VariableRegistration{number("a", 1), limited(derived("b", "a"), 0, 10)},
			[]*setpointv1.VariableRegistration{number("a", 50), limited(derived("b", "a"), 40, 60)}, 2},
		{"constraints of one that becomes derived", []*setpointv1.VariableRegistration{number("a", 50), limited(number("b", 5), 0, 10)},
			[]*setpointv1.VariableRegistration{number("a", 50), limited(derived("b", "a"), 40, 60)}, 1},
		{"constraints of one that was derived", []*setpointv1.VariableRegistration{number("a", 5), limited(derived("b", "a"), 0, 10)},
			[]*setpointv1.VariableRegistration{number("a", 5), limited(number("b", 50), 40, 60)}, 1},
		{"new ones between", []*setpointv1.VariableRegistration{number("a", 1), number("z", 2, "a")},
			[]*setpointv1.VariableRegistration{number("a", 5), derived("m", "a"), number("z", 2, "m")}, 2},
	}
	h := newHouse(t)
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h := &house{Client: h.Client, t: t, addr: h.addr, dir: t.TempDir()}
			from := fmt.Sprintf("from-%d", i)
			h.session(from, tt.from...)
			for _, turned := range []bool{false, true} {
				session := fmt.Sprintf("to-%d-%t", i, turned)
				h.session(session, tt.to...)
				lines := h.export(from)
				if turned { // the same from a file in another order
					slices.Reverse(lines[1 : len(lines)-1])
				}
				path := h.file(lines...)
				dry := h.setpoint("session", "import", session, path, "--merge", "replace", "--dry-run")
				out := h.setpoint("session", "import", session, path, "--merge", "replace")
				if want := fmt.Sprintf(" %d replaced", tt.replaced); !strings.Contains(out, want) || !strings.Contains(dry, want) {
					t.Errorf("got %s, and before that %s; want %s", out, dry, want)
				}
				var names []string
				for _, r := range tt.from {
					names = append(names, r.GetName())
				}
				h.sameSessions(from, session, names...)
				before := h.revision(session)
				if out := h.setpoint("session", "import", session, path, "--merge", "replace"); !strings.Contains(out, " 0 replaced") ||
					h.revision(session) != before {
					t.Errorf("again: %s, %d changes", out, h.revision(session)-before)
				}
			}
		})
	}
}

// More variables than a batch takes, in the worst order for it: each depends on the next, and on one of another batch.
func TestImportOfManyDependencies(t *testing.T) {
	t.Parallel()
	const n = 2500
	h := newHouse(t)
	lines := []string{`{"setpoint_export":1}`}
	for i := range n - 1 {
		lines = append(lines, fmt.Sprintf(`{"variable":{"name":"v%05d","type":"VARIABLE_TYPE_FLOAT","expression":"v%05d + 1.0",`+
			`"depends_on":["v%05d"]}}`, i, i+1, min(n-1, i+1200)))
	}
	lines = append(lines, fmt.Sprintf(`{"variable":{"name":"v%05d","type":"VARIABLE_TYPE_FLOAT","value":{"number":1}}}`, n-1),
		fmt.Sprintf(`{"end":{"variables":%d}}`, n))
	path := h.file(lines...)
	out := h.setpoint("session", "import", "to", path, "--create")
	if !strings.HasPrefix(out, fmt.Sprintf("imported %[1]d variables (%[1]d registered", n)) {
		t.Errorf("got %s", out)
	}
	if v := h.get("to", "v00000"); v.GetValue().GetNumber() != n || v.GetVersion() != 0 || v.GetStale() != nil {
		t.Errorf("the last one to be computed: %v", v)
	}
	before := h.revision("to")
	out = h.setpoint("session", "import", "to", path, "--merge", "replace")
	if !strings.Contains(out, fmt.Sprintf("%d unchanged", n)) || h.revision("to") != before {
		t.Errorf("again: %s, %d changes", out, h.revision("to")-before)
	}
}

// What cannot be imported is refused before anything is written.
func TestBadDependencies(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.session("to", number("have", 1), number("x", 1), number("needs x", 2, "x"), &setpointv1.VariableRegistration{
		Name: "text", Type: kindString, Value: client.String("t")})
	before := h.revision("to")
	t.Cleanup(func() {
		s, err := h.Sessions.GetSession(context.Background(), &setpointv1.GetSessionRequest{SessionId: "to"})
		if err != nil || s.GetRevision() != before {
			t.Errorf("%d changes were made: %v", s.GetRevision()-before, err)
		}
	})
	variable := func(name, rest string) string {
		return fmt.Sprintf(`{"variable":{"name":%q,"type":"VARIABLE_TYPE_FLOAT","value":{"number":3},%s}}`, name, rest)
	}
	tests := []struct {
		name, flags string
		variables   []string
		want        string
	}{
		{"itself", "", []string{variable("a", `"depends_on":["a"]`)},
			`WOULD_CREATE_CYCLE: line 2: a would depend on itself: "a" depends on "a"; nothing was imported`},
		{"a circle", "", []string{variable("a", `"depends_on":["c"]`), variable("b", `"depends_on":["a"]`), variable("c", `"expression":"b"`)},
			`WOULD_CREATE_CYCLE: line 2: a would depend on itself: "a" depends on "c", that on "b", that on "a"; nothing was imported`},
		{"a circle with the session", "--merge replace", []string{variable("x", `"depends_on":["needs x"]`)},
			`WOULD_CREATE_CYCLE: line 2: x would depend on itself: "x" depends on "needs x", that on "x"; nothing was imported`},
		{"nobody", "", []string{variable("a", `"depends_on":["have"]`), variable("b", `"depends_on":["nobody \" é"]`)},
			`VARIABLE_NOT_FOUND: line 3: b depends on "nobody \" é", which is neither in the file nor in session "to"; nothing was imported`},
		{"nobody, in an expression", "", []string{variable("a", `"expression":"nobody + 1.0"`)}, `VARIABLE_NOT_FOUND: line 2: a depends on "nobody"`},
		{"no expression", "", []string{variable("a", `"expression":"have +"`)}, `INVALID_EXPRESSION: line 2: a: `},
		{"a type", "", []string{variable("a", `"expression":"have > 1.0"`)}, `INVALID_EXPRESSION: line 2: a: `},
		{"another's type", "", []string{variable("b", `"expression":"text"`)}, `INVALID_EXPRESSION: line 2: b: `},
		{"another's type, in the file", "", []string{variable("a", `"expression":"b"`),
			`{"variable":{"name":"b","type":"VARIABLE_TYPE_BOOLEAN","value":{"boolean":true}}}`}, `INVALID_EXPRESSION: line 2: a: `},
		{"a type that will be kept", "--merge keep", []string{variable("a", `"expression":"text"`), variable("text", `"history_limit":"3"`)},
			`INVALID_EXPRESSION: line 2: a: `},
		{"an id", "", []string{variable("a", `"depends_on":["var_01234567890123456789012345"]`)},
			`INVALID_FILE: line 2: the name of a variable that "a" depends on has the form of a variable's id`},
		{"no value", "", []string{`{"variable":{"name":"a","type":"VARIABLE_TYPE_FLOAT","depends_on":["have"]}}`}, `INVALID_REQUEST: line 2: a: there is no value`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h := &house{Client: h.Client, t: t, addr: h.addr, dir: t.TempDir()}
			lines := slices.Concat([]string{`{"setpoint_export":1}`}, tt.variables, []string{fmt.Sprintf(`{"end":{"variables":%d}}`, len(tt.variables))})
			args := append([]string{"--addr", h.addr, "session", "import", "to", h.file(lines...)}, strings.Fields(tt.flags)...)
			for _, dry := range []string{"--dry-run=false", "--dry-run"} {
				got := invocation{args: append(args, dry)}.run(t)
				if got.status != 1 || got.out != "" || strings.Count(got.err, "\n") != 1 || !strings.HasPrefix(got.err, "error: "+tt.want) {
					t.Errorf("%s: got %+v, want %q", dry, got, tt.want)
				}
			}
		})
	}
}

// What the server refuses in the middle is told with the line, and with what is imported.
func TestDerivationFailsInAnImport(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.session("to")
	lines := []string{`{"setpoint_export":1}`,
		`{"variable":{"name":"b","type":"VARIABLE_TYPE_INTEGER","expression":"1 / a"}}`,
		`{"variable":{"name":"a","type":"VARIABLE_TYPE_INTEGER","value":{"integer":"0"}}}`,
		`{"variable":{"name":"c","type":"VARIABLE_TYPE_INTEGER","value":{"integer":"7"},"expression":"1 / a"}}`,
		`{"end":{"variables":3}}`}
	got := invocation{args: []string{"--addr", h.addr, "session", "import", "to", h.file(lines...)}}.run(t)
	if got.status != 1 || !strings.HasPrefix(got.err, "error: DERIVATION_FAILED: line 2: b ") ||
		!strings.HasSuffix(got.err, "(2 of 3 variables are imported; running it again with --merge replace goes on)\n") {
		t.Errorf("got %+v", got)
	}
	// The value of the file stands where none can be computed.
	if v := h.get("to", "c"); v.GetValue().GetInteger() != 7 || v.GetStale().GetError() == "" {
		t.Errorf("c: got %v", v)
	}
	lines[1] = strings.Replace(lines[1], "1 / a", "1 + a", 1)
	if out := h.setpoint("session", "import", "to", h.file(lines...), "--merge", "replace"); !strings.Contains(out, "1 registered, 0 replaced, 2 unchanged") {
		t.Errorf("again: %s", out)
	}
}

// A stale mark is not carried: what is imported is as good as new.
func TestStaleIsNotImported(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.session("from", number("a", 1), number("b", 2, "a"))
	h.set("from", "a", client.Float(3), nil, "")
	if h.get("from", "b").GetStale() == nil {
		t.Fatal("b is not stale")
	}
	h.setpoint("session", "import", "to", h.file(h.export("from")...), "--create")
	h.sameSessions("from", "to", "a", "b")
}

// Of variables that depend on others the import keeps the place in the file, not what they are. The test is not parallel,
// for it looks at the memory of all.
func TestImportHoldsNoConnectedVariables(t *testing.T) {
	const n, each = 1200, 8 << 10
	path := filepath.Join(t.TempDir(), "export.jsonl")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	fmt.Fprintln(file, `{"setpoint_export":1}`)
	for i := range n {
		fmt.Fprintf(file, `{"variable":{"name":"v%05d","type":"VARIABLE_TYPE_STRING","value":{"string":"x"},`+
			`"metadata":{"k":"%s"},"depends_on":["v%05d"]}}`+"\n", i, strings.Repeat("x", each), n)
	}
	fmt.Fprintf(file, `{"variable":{"name":"v%05d","type":"VARIABLE_TYPE_STRING","value":{"string":"x"}}}`+"\n", n)
	fmt.Fprintf(file, `{"end":{"variables":%d}}`+"\n", n+1)
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	var p *peer
	sent := 0
	p = newPeer(t, func(request proto.Message) (proto.Message, error) {
		p.requests, p.headers = nil, nil
		r, ok := request.(*setpointv1.BatchRegisterVariablesRequest)
		if !ok {
			return &setpointv1.Session{SessionId: "s"}, nil
		}
		sent += len(r.GetRegistrations())
		return &setpointv1.BatchRegisterVariablesResponse{
			Results: slices.Repeat([]*setpointv1.BatchRegisterResult{{}}, len(r.GetRegistrations()))}, nil
	}, grpc.MaxRecvMsgSize(client.MaxMessageBytes))
	api, err := client.Dial(p.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer api.Close()
	im := &importer{c: &cli{}, api: api, sessionID: "s", merge: mergeFail, empty: true}
	before := heap()
	if _, _, err := im.check(t.Context(), file); err != nil {
		t.Fatal(err)
	}
	if kept := int64(heap()) - int64(before); kept > n*each/5 {
		t.Errorf("%d bytes are kept of %d", kept, n*each)
	}
	if err := im.run(t.Context(), file); err != nil {
		t.Fatal(err)
	}
	if sent != n+1 {
		t.Errorf("sent %d", sent)
	}
}

// Whatever a session has, an import of another one with --merge replace makes it that, and once more changes nothing.
func TestReplaceAnyGraphByAny(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	graphs := rapid.Custom(drawVariables)
	for i := range 30 {
		from, to := fmt.Sprintf("from-%d", i), fmt.Sprintf("to-%d", i)
		wanted := graphs.Example(2 * i)
		h.session(from, wanted...)
		h.session(to, graphs.Example(2*i+1)...)
		lines := h.export(from)
		if i%2 == 1 {
			slices.Reverse(lines[1 : len(lines)-1])
		}
		path := h.file(lines...)
		dry := h.setpoint("session", "import", to, path, "--merge", "replace", "--dry-run")
		out := h.setpoint("session", "import", to, path, "--merge", "replace")
		if counts(dry) != counts(out) {
			t.Errorf("%s: the dry run says %s, and the import %s", to, counts(dry), counts(out))
		}
		for _, v := range wanted {
			h.sameSessions(from, to, v.GetName())
		}
		before := h.revision(to)
		h.setpoint("session", "import", to, path, "--merge", "replace")
		if after := h.revision(to); after != before {
			t.Errorf("%s: again, %d changes", to, after-before)
		}
	}
}

// counts is what an import counted, without what it says around.
func counts(summary string) string {
	_, rest, _ := strings.Cut(summary, "(")
	text, _, _ := strings.Cut(rest, ")")
	return text
}

// drawVariables draws some of five variables, each of which may depend on those before it in a drawn order.
func drawVariables(r *rapid.T) []*setpointv1.VariableRegistration {
	names := rapid.Permutation([]string{"a", "b", "c", "d", "e"}).Draw(r, "order")
	names = names[:rapid.IntRange(1, 5).Draw(r, "count")]
	var all []*setpointv1.VariableRegistration
	for i, name := range names {
		v := number(name, float64(rapid.IntRange(0, 2).Draw(r, "value")))
		for _, need := range names[:i] {
			if rapid.Bool().Draw(r, "needs") {
				v.DependsOn = append(v.DependsOn, need)
			}
		}
		if len(v.DependsOn) > 0 && rapid.Bool().Draw(r, "derived") {
			v.Expression, v.Value = v.DependsOn[0]+" + 1.0", nil
			v.Strict = rapid.Bool().Draw(r, "strict")
		}
		all = append(all, v)
	}
	return all
}
