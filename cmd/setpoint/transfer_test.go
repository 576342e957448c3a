package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/setpointdb/setpoint/client"
	"github.com/setpointdb/setpoint/db"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/server"
	"github.com/setpointdb/setpoint/internal/testkit"
	"github.com/setpointdb/setpoint/service"
)

// house is a real server on a database of its own, and a folder for files.
type house struct {
	*client.Client
	t    *testing.T
	addr string
	dir  string
}

func newHouse(t *testing.T) *house {
	t.Helper()
	s, err := server.Start(t.Context(), server.Config{
		GRPCAddr: "127.0.0.1:0", Limits: service.DefaultLimits, Log: slog.New(slog.DiscardHandler),
		Database: db.Config{URL: testkit.NewDatabase(t), MaxConns: 4},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Stop(context.Background()) })
	api, err := client.Dial(s.GRPCAddr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = api.Close() })
	return &house{Client: api, t: t, addr: s.GRPCAddr(), dir: t.TempDir()}
}

func (h *house) session(id string, variables ...*setpointv1.VariableRegistration) {
	h.t.Helper()
	_, err := h.Sessions.CreateSession(h.t.Context(), &setpointv1.CreateSessionRequest{
		SessionId: id, Ttl: durationpb.New(90 * time.Minute), Metadata: map[string]string{"team": "søk"}})
	if err != nil {
		h.t.Fatal(err)
	}
	for batch := range slices.Chunk(variables, maxBatchItems) {
		_, err := h.Variables.BatchRegisterVariables(h.t.Context(),
			&setpointv1.BatchRegisterVariablesRequest{SessionId: id, Registrations: batch, Atomic: true})
		if err != nil {
			h.t.Fatal(err)
		}
	}
}

func (h *house) get(session, name string) *setpointv1.Variable {
	h.t.Helper()
	v, err := h.Variables.GetVariable(h.t.Context(), &setpointv1.GetVariableRequest{SessionId: session, Variable: name})
	if err != nil {
		h.t.Fatal(err)
	}
	return v
}

func (h *house) set(session, name string, v *setpointv1.Value, metadata map[string]string, reason string) {
	h.t.Helper()
	_, err := h.Variables.SetVariable(h.t.Context(), &setpointv1.SetVariableRequest{SessionId: session, Variable: name,
		Value: v, Metadata: metadata, ClearMetadata: metadata == nil, Reason: reason})
	if err != nil {
		h.t.Fatal(err)
	}
}

// revision is where a session stands: it stays if nothing was written.
func (h *house) revision(session string) int64 {
	h.t.Helper()
	s, err := h.Sessions.GetSession(h.t.Context(), &setpointv1.GetSessionRequest{SessionId: session})
	if err != nil {
		h.t.Fatal(err)
	}
	return s.GetRevision()
}

// setpoint runs a command line that has to succeed and to complain of nothing, and returns what it prints.
func (h *house) setpoint(args ...string) string {
	h.t.Helper()
	got := invocation{args: append([]string{"--addr", h.addr}, args...)}.run(h.t)
	if got.status != 0 || got.err != "" {
		h.t.Fatalf("%q: %+v", args, got)
	}
	return got.out
}

// export returns the lines of a session's export.
func (h *house) export(session string, flags ...string) []string {
	h.t.Helper()
	out := h.setpoint(append([]string{"session", "export", session}, flags...)...)
	return strings.Split(strings.TrimSuffix(out, "\n"), "\n")
}

// file writes an export, of which tests make bad ones.
func (h *house) file(lines ...string) string {
	h.t.Helper()
	file, err := os.CreateTemp(h.dir, "*.jsonl")
	if err != nil {
		h.t.Fatal(err)
	}
	if _, err := io.WriteString(file, strings.Join(lines, "\n")+"\n"); err != nil {
		h.t.Fatal(err)
	}
	if err := file.Close(); err != nil {
		h.t.Fatal(err)
	}
	return file.Name()
}

// withoutOrigin are the lines of an export without what belongs to the session that it came from.
func withoutOrigin(t *testing.T, lines []string) []string {
	t.Helper()
	var rest []string
	for _, line := range lines {
		decoder := json.NewDecoder(strings.NewReader(line))
		decoder.UseNumber()
		var fields map[string]any
		if err := decoder.Decode(&fields); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		for _, part := range []any{fields, fields["variable"], fields["history"], fields["end"]} {
			if part, ok := part.(map[string]any); ok {
				for _, own := range []string{"session_id", "revision", "exported_at", "variable_id", "created_at", "updated_at",
					"updated_by", "changed_at", "changed_by", "change"} {
					delete(part, own)
				}
			}
		}
		text, err := json.Marshal(fields)
		if err != nil {
			t.Fatal(err)
		}
		rest = append(rest, string(text))
	}
	return rest
}

func structOf(t *testing.T, text string) *structpb.Struct {
	t.Helper()
	s := &structpb.Struct{}
	if err := protojson.Unmarshal([]byte(text), s); err != nil {
		t.Fatal(err)
	}
	return s
}

// everything is a variable of each kind that there is, with values that are easily lost on the way.
func everything(t *testing.T) []*setpointv1.VariableRegistration {
	t.Helper()
	tree, err := client.JSON(json.RawMessage(`{"a": [1, 0.1, 1e300, null, true, {"é\u2028": "<b>&\u0001"}], "": {}}`))
	if err != nil {
		t.Fatal(err)
	}
	nan32 := float32(math.NaN())
	kinds := []struct {
		name        string
		kind        setpointv1.VariableType
		value       *setpointv1.Value
		constraints *setpointv1.Constraints
	}{
		{"boolean", setpointv1.VariableType_VARIABLE_TYPE_BOOLEAN, client.Bool(false), nil},
		{"integer least", setpointv1.VariableType_VARIABLE_TYPE_INTEGER, client.Integer(math.MinInt64), nil},
		{"integer odd", setpointv1.VariableType_VARIABLE_TYPE_INTEGER, client.Integer(1<<53 + 1), nil},
		{"integer", setpointv1.VariableType_VARIABLE_TYPE_INTEGER, client.Integer(6),
			&setpointv1.Constraints{Min: proto.Float64(0), Max: proto.Float64(1e18), Step: proto.Float64(2)}},
		{"float", setpointv1.VariableType_VARIABLE_TYPE_FLOAT, client.Float(0.1), &setpointv1.Constraints{Min: proto.Float64(-0.5)}},
		{"float nan", setpointv1.VariableType_VARIABLE_TYPE_FLOAT, client.Float(math.NaN()), nil},
		{"float inf", setpointv1.VariableType_VARIABLE_TYPE_FLOAT, client.Float(math.Inf(-1)), nil},
		{"float zero", setpointv1.VariableType_VARIABLE_TYPE_FLOAT, client.Float(math.Copysign(0, -1)), nil},
		{"float tiny", setpointv1.VariableType_VARIABLE_TYPE_FLOAT, client.Float(math.SmallestNonzeroFloat64), nil},
		{"string", setpointv1.VariableType_VARIABLE_TYPE_STRING, client.String("a\r\n\t\u2028\"\\<é🙂\u202e\x7f"),
			&setpointv1.Constraints{MinLength: proto.Int64(1), MaxLength: proto.Int64(99), Pattern: proto.String("^a")}},
		{"string enum", setpointv1.VariableType_VARIABLE_TYPE_STRING, client.String(""),
			&setpointv1.Constraints{Enum: []string{"", "b"}}},
		{"choice", setpointv1.VariableType_VARIABLE_TYPE_CHOICE, client.Choice("ä"),
			&setpointv1.Constraints{Choices: []string{"z", "ä"}}},
		{"module", setpointv1.VariableType_VARIABLE_TYPE_MODULE, client.Module("a.b"),
			&setpointv1.Constraints{AllowedModules: []string{"a.b", "c"}}},
		{"embedding", setpointv1.VariableType_VARIABLE_TYPE_EMBEDDING, client.Embedding([]float32{0.1, nan32, -1e-45}),
			&setpointv1.Constraints{Dimensions: proto.Int64(3)}},
		{"tensor", setpointv1.VariableType_VARIABLE_TYPE_TENSOR, client.Tensor("float16", []int64{2, 1}, []byte{0, 0xfe, 1, 0x7f}),
			&setpointv1.Constraints{Shape: []int64{-1, 1}, Dtype: proto.String("float16")}},
		{"tensor empty", setpointv1.VariableType_VARIABLE_TYPE_TENSOR, client.Tensor("int8", []int64{0}, nil), nil},
		{"tensor scalar", setpointv1.VariableType_VARIABLE_TYPE_TENSOR, client.Tensor("bool", nil, []byte{1}), nil},
		{"json", setpointv1.VariableType_VARIABLE_TYPE_JSON, tree,
			&setpointv1.Constraints{JsonSchema: structOf(t, `{"type": "object", "required": ["a"]}`)}},
		{"json null", setpointv1.VariableType_VARIABLE_TYPE_JSON,
			&setpointv1.Value{Kind: &setpointv1.Value_Json{Json: structpb.NewNullValue()}}, nil},
		{`näme "*" 'q' 🙂`, setpointv1.VariableType_VARIABLE_TYPE_BOOLEAN, client.Bool(true), nil},
	}
	var all []*setpointv1.VariableRegistration
	for i, k := range kinds {
		r := &setpointv1.VariableRegistration{Name: k.name, Type: k.kind, Value: k.value, Constraints: k.constraints,
			AccessMode: setpointv1.AccessMode(i % len(setpointv1.AccessMode_name))}
		if i%2 == 0 {
			r.HistoryLimit, r.Metadata = proto.Int64(int64(i)), map[string]string{"é\n": "=", "": strconv.Itoa(i)}
		}
		all = append(all, r)
	}
	return all
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.session("from", everything(t)...)
	lines := h.export("from")
	if len(lines) != len(everything(t))+2 {
		t.Fatalf("exported %d lines", len(lines))
	}
	path := h.file(lines...)
	out := h.setpoint("session", "import", "to", path, "--create")
	want := fmt.Sprintf("imported %[1]d variables (%[1]d registered, 0 replaced, 0 unchanged, 0 kept) in ", len(lines)-2)
	if !strings.HasPrefix(out, want) {
		t.Errorf("got %q, want %q", out, want)
	}
	if diff := cmp.Diff(withoutOrigin(t, lines), withoutOrigin(t, h.export("to"))); diff != "" {
		t.Errorf("exported again (-first +second):\n%s", diff)
	}
	// The server's own view agrees with the files'.
	for _, r := range everything(t) {
		if v := h.get("to", r.GetName()); !sameMessage(v.GetValue(), h.get("from", r.GetName()).GetValue()) {
			t.Errorf("%s: got %v", r.GetName(), v.GetValue())
		}
	}
	// What is there already is not written again, and standard input does as well as a file.
	before := h.revision("to")
	got := invocation{args: []string{"--addr", h.addr, "session", "import", "to", "--merge", "replace"},
		stdin: strings.Join(lines, "\n")}.run(t)
	if got.status != 0 || !strings.Contains(got.out, fmt.Sprintf("(0 registered, 0 replaced, %d unchanged, 0 kept)", len(lines)-2)) {
		t.Errorf("again: %+v", got)
	}
	if after := h.revision("to"); after != before {
		t.Errorf("importing what is there wrote %d changes", after-before)
	}
}

func TestHistoryRoundTrip(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	number := setpointv1.VariableType_VARIABLE_TYPE_FLOAT
	h.session("from",
		&setpointv1.VariableRegistration{Name: "a", Type: number, Value: client.Float(0), Metadata: map[string]string{"v": "0"}},
		&setpointv1.VariableRegistration{Name: "b", Type: number, Value: client.Float(5), HistoryLimit: proto.Int64(2)},
		&setpointv1.VariableRegistration{Name: "c", Type: number, Value: client.Float(7)})
	for i := 1; i <= 4; i++ {
		h.set("from", "a", client.Float(float64(i)), map[string]string{"v": strconv.Itoa(i)}, fmt.Sprintf("try %d", i))
		h.set("from", "b", client.Float(float64(10*i)), nil, "")
	}
	update := func(name string, change *setpointv1.UpdateVariableRequest) {
		t.Helper()
		change.SessionId, change.Variable = "from", name
		if _, err := h.Variables.UpdateVariable(t.Context(), change); err != nil {
			t.Fatal(err)
		}
	}
	update("a", &setpointv1.UpdateVariableRequest{Metadata: map[string]string{"v": "later"}})
	lines := h.export("from", "--history")
	if len(lines) != 2+3+5+3+1 || strings.Count(strings.Join(lines, "\n"), `{"history":`) != 9 {
		t.Fatalf("exported\n%s", strings.Join(lines, "\n"))
	}
	out := h.setpoint("session", "import", "to", h.file(lines...), "--create", "--history")
	if !strings.Contains(out, "3 registered") || !strings.Contains(out, "; 6 versions replayed, 0 skipped)") {
		t.Errorf("got %s", out)
	}
	again := h.export("to", "--history")
	// b's first versions were gone, so its numbers begin anew.
	renumber := strings.NewReplacer(`"version":"2"`, `"version":"0"`, `"version":"3"`, `"version":"1"`, `"version":"4"`, `"version":"2"`)
	want := withoutOrigin(t, lines)
	for i, line := range want {
		if strings.Contains(line, `"name":"b"`) {
			want[i] = renumber.Replace(line)
		}
	}
	if diff := cmp.Diff(want, withoutOrigin(t, again)); diff != "" {
		t.Errorf("exported again (-first +second):\n%s", diff)
	}

	// Without --history the file's history is only checked; without history in the file there is none to replay.
	h.setpoint("session", "import", "plain", h.file(lines...), "--create")
	if v := h.get("plain", "a"); v.GetVersion() != 0 || v.GetValue().GetNumber() != 4 || v.GetMetadata()["v"] != "later" {
		t.Errorf("without --history: got %v", v)
	}
	got := invocation{args: []string{"--addr", h.addr, "session", "import", "plain", h.file(h.export("plain")...), "--history"}}.run(t)
	if got.status != 1 || !strings.HasPrefix(got.err, "error: INVALID_FILE: the file has no history") {
		t.Errorf("--history of a file without: %+v", got)
	}

	// Versions that today's constraints refuse are left out.
	update("a", &setpointv1.UpdateVariableRequest{Constraints: &setpointv1.Constraints{Min: proto.Float64(3)}})
	out = h.setpoint("session", "import", "bound", h.file(h.export("from", "--history")...), "--create", "--history")
	if !strings.Contains(out, "; 3 versions replayed, 3 skipped)") {
		t.Errorf("bounded: got %s", out)
	}
	if v := h.get("bound", "a"); v.GetVersion() != 1 || v.GetValue().GetNumber() != 4 {
		t.Errorf("bounded: got %v", v)
	}
	// Of variables that are replaced or kept, history is not read.
	out = h.setpoint("session", "import", "plain", h.file(lines...), "--history", "--merge", "keep")
	if !strings.Contains(out, "3 kept; 0 versions replayed, 0 skipped)") || h.get("plain", "a").GetVersion() != 0 {
		t.Errorf("kept: got %s", out)
	}
	out = h.setpoint("session", "import", "bound", h.file(lines...), "--history", "--merge", "replace")
	if !strings.Contains(out, "1 replaced, 2 unchanged, 0 kept; 0 versions replayed, 0 skipped)") {
		t.Errorf("replaced: got %s", out)
	}
}

// A history of several pages, and of several batches.
func TestLongHistory(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.session("from", &setpointv1.VariableRegistration{Name: "a", Type: setpointv1.VariableType_VARIABLE_TYPE_STRING,
		Value: client.String(""), HistoryLimit: proto.Int64(0)})
	// Nine versions of 1 MiB make two pages of history, and two batches.
	for i := range 9 {
		h.set("from", "a", client.String(strings.Repeat(string(rune('a'+i)), 1<<20)), nil, "")
	}
	lines := h.export("from", "--history")
	h.setpoint("session", "import", "to", h.file(lines...), "--create", "--history")
	again := h.export("to", "--history")
	if len(lines) != 13 || !slices.Equal(withoutOrigin(t, lines), withoutOrigin(t, again)) {
		t.Errorf("exported %d lines, and then %d others", len(lines), len(again))
	}
}

func numbers(values map[string]float64) []*setpointv1.VariableRegistration {
	var all []*setpointv1.VariableRegistration
	for name, v := range values {
		all = append(all, &setpointv1.VariableRegistration{
			Name: name, Type: setpointv1.VariableType_VARIABLE_TYPE_FLOAT, Value: client.Float(v)})
	}
	return all
}

func TestMerge(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.session("from", numbers(map[string]float64{"a": 1, "b": 2, "c": 3})...)
	path := h.file(h.export("from")...)
	tests := []struct {
		name, flags string
		want        string // of what is printed
		a, b        float64
		reason      string
	}{
		{"fail", "--merge=fail", "error: VARIABLE_EXISTS: line 3: ", -1, -2, ""},
		{"default", "", "error: VARIABLE_EXISTS: line 3: ", -1, -2, ""},
		{"keep", "--merge=keep", "imported 3 variables (2 registered, 0 replaced, 0 unchanged, 1 kept) in ", 1, -2, ""},
		{"replace", "--merge=replace --reason=restore", "imported 3 variables (2 registered, 1 replaced, 0 unchanged, 0 kept) in ", 1, 2, "restore"},
		{"dry fail", "--dry-run", "error: VARIABLE_EXISTS: line 3: ", -1, -2, ""},
		{"dry keep", "--merge=keep --dry-run", "would import 3 variables (2 registered, 0 replaced, 0 unchanged, 1 kept) in ", -1, -2, ""},
		{"dry replace", "--merge=replace --dry-run", "would import 3 variables (2 registered, 1 replaced, 0 unchanged, 0 kept) in ", -1, -2, ""},
	}
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h := &house{Client: h.Client, t: t, addr: h.addr}
			session := "to-" + strconv.Itoa(i)
			h.session(session, numbers(map[string]float64{"b": -2, "other": 9})...)
			before := h.revision(session)
			args := append([]string{"--addr", h.addr, "session", "import", session, path}, strings.Fields(tt.flags)...)
			got := invocation{args: args}.run(t)
			if !strings.HasPrefix(got.out+got.err, tt.want) || strings.Count(got.out+got.err, "\n") != 1 {
				t.Errorf("got %+v, want %q", got, tt.want)
			}
			if tt.a < 0 { // nothing was to be written
				if after := h.revision(session); after != before {
					t.Errorf("%d changes were made", after-before)
				}
			} else if v := h.get(session, "a").GetValue().GetNumber(); v != tt.a {
				t.Errorf("a is %g, want %g", v, tt.a)
			}
			if v := h.get(session, "b").GetValue().GetNumber(); v != tt.b {
				t.Errorf("b is %g, want %g", v, tt.b)
			}
			if tt.reason != "" {
				entry, err := h.History.GetVariableVersion(t.Context(),
					&setpointv1.GetVariableVersionRequest{SessionId: session, Variable: "b", Version: 1})
				if err != nil || entry.GetReason() != tt.reason {
					t.Errorf("reason: got %q, %v", entry.GetReason(), err)
				}
			}
		})
	}
}

// A replaced variable becomes the file's whole, whichever of value and constraints has to change first.
func TestReplaceChangesConstraints(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	bounds := func(low, high float64) *setpointv1.Constraints {
		return &setpointv1.Constraints{Min: &low, Max: &high}
	}
	choices := func(all ...string) *setpointv1.Constraints { return &setpointv1.Constraints{Choices: all} }
	variable := func(name string, v *setpointv1.Value, c *setpointv1.Constraints, limit int64, metadata map[string]string) *setpointv1.VariableRegistration {
		kind := setpointv1.VariableType_VARIABLE_TYPE_FLOAT
		if v.GetChoice() != "" {
			kind = setpointv1.VariableType_VARIABLE_TYPE_CHOICE
		}
		return &setpointv1.VariableRegistration{
			Name: name, Type: kind, Value: v, Constraints: c, HistoryLimit: &limit, Metadata: metadata}
	}
	m := map[string]string{"k": "v"}
	h.session("from",
		variable("apart", client.Float(50), bounds(40, 60), 1, m),
		variable("choices apart", client.Choice("x"), choices("x", "y"), 50, nil),
		variable("narrower", client.Float(5), bounds(4, 6), 50, nil),
		variable("no constraints", client.Float(99), nil, 50, nil),
		variable("only limit", client.Float(1), nil, 7, nil),
		variable("only metadata", client.Float(1), nil, 50, m),
		variable("less metadata", client.Float(1), nil, 50, nil),
		variable("wider", client.Float(50), bounds(0, 100), 50, nil))
	h.session("to",
		variable("apart", client.Float(5), bounds(0, 10), 50, nil),
		variable("choices apart", client.Choice("a"), choices("a", "b"), 50, nil),
		variable("narrower", client.Float(9), bounds(0, 10), 50, nil),
		variable("no constraints", client.Float(9), bounds(0, 10), 50, m),
		variable("only limit", client.Float(1), nil, 50, nil),
		variable("only metadata", client.Float(1), nil, 50, nil),
		variable("less metadata", client.Float(1), nil, 50, m),
		variable("wider", client.Float(5), bounds(0, 10), 50, nil))
	lines := h.export("from")
	out := h.setpoint("session", "import", "to", h.file(lines...), "--merge", "replace")
	if !strings.Contains(out, "(0 registered, 8 replaced, 0 unchanged, 0 kept)") {
		t.Errorf("got %s", out)
	}
	drop := strings.NewReplacer(`"version":"1",`, "", `,"version":"1"`, "")
	again := withoutOrigin(t, h.export("to"))
	for i, line := range again {
		again[i] = drop.Replace(line)
	}
	if diff := cmp.Diff(withoutOrigin(t, lines), again); diff != "" {
		t.Errorf("exported again (-first +second):\n%s", diff)
	}
	for name, want := range map[string]int64{"apart": 1, "only limit": 0, "only metadata": 0, "less metadata": 0} {
		if v := h.get("to", name); v.GetVersion() != want {
			t.Errorf("%s is at version %d, want %d", name, v.GetVersion(), want)
		}
	}
}

func TestImportOfManyVariables(t *testing.T) {
	t.Parallel()
	const n = 5000
	h := newHouse(t)
	var all []*setpointv1.VariableRegistration
	for i := range n {
		all = append(all, &setpointv1.VariableRegistration{Name: fmt.Sprintf("v%05d", i),
			Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Value: client.Integer(int64(i))})
	}
	h.session("from", all...)
	path := filepath.Join(h.dir, "export.jsonl")
	if out := h.setpoint("session", "export", "from", path); out != fmt.Sprintf("exported %d variables of session from to %s  (revision %d)\n", n, path, n) {
		t.Errorf("got %q", out)
	}
	var summary struct {
		Variables, Registered, Kept int
		DryRun                      bool `json:"dry_run"`
	}
	if err := json.Unmarshal([]byte(h.setpoint("session", "import", "to", path, "--create", "-o", "json")), &summary); err != nil {
		t.Fatal(err)
	}
	if summary.Variables != n || summary.Registered != n {
		t.Errorf("got %+v", summary)
	}
	// An import that broke off is completed.
	for _, name := range []string{"v00000", "v02500", "v04999"} {
		if _, err := h.Variables.DeleteVariable(t.Context(), &setpointv1.DeleteVariableRequest{SessionId: "to", Variable: name}); err != nil {
			t.Fatal(err)
		}
	}
	out := h.setpoint("session", "import", "to", path, "--merge", "replace")
	if !strings.Contains(out, fmt.Sprintf("(3 registered, 0 replaced, %d unchanged, 0 kept)", n-3)) {
		t.Errorf("got %s", out)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
	if !slices.Equal(withoutOrigin(t, lines), withoutOrigin(t, h.export("to"))) {
		t.Error("the sessions differ")
	}
}

func TestBadFiles(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.session("from", numbers(map[string]float64{"a": 1, "b": 2})...)
	h.set("from", "a", client.Float(3), nil, "")
	good := h.export("from", "--history")
	if len(good) != 7 { // header, a, a@0, a@1, b, b@0, end
		t.Fatalf("exported\n%s", strings.Join(good, "\n"))
	}
	with := func(line int, text string) []string {
		lines := slices.Clone(good)
		lines[line-1] = text
		return lines
	}
	swap := func(line int, old, fresh string) []string {
		if !strings.Contains(good[line-1], old) {
			t.Fatalf("line %d has no %s: %s", line, old, good[line-1])
		}
		return with(line, strings.ReplaceAll(good[line-1], old, fresh))
	}
	typed := func(line string) []string { return []string{good[0], line, `{"end":{"variables":1,"history":0}}`} }
	tests := []struct {
		name  string
		lines []string
		want  string
	}{
		{"nothing", []string{""}, "INVALID_FILE: the file is empty"},
		{"no export", []string{`{"name": "x"}`}, "INVALID_FILE: line 1: this is no export"},
		{"no JSON", []string{"hello"}, "INVALID_FILE: line 1: invalid character"},
		{"of the future", with(1, `{"setpoint_export": 2}`), "INVALID_FILE: line 1: the export has format 2"},
		{"a bad ttl", with(1, `{"setpoint_export": 1, "ttl": "soon"}`), "INVALID_FILE: line 1: ttl: "},
		{"cut off", good[:6], "INVALID_FILE: the file is cut off after line 6"},
		{"only a header", good[:1], "INVALID_FILE: the file is cut off after line 1"},
		{"garbage", with(5, "garbage"), "INVALID_FILE: line 5: invalid character"},
		{"not UTF-8", with(5, "{\"variable\":{\"name\":\"\xff\"}}"), "INVALID_FILE: line 5: the line is not UTF-8"},
		{"two keys", with(5, `{"variable": {}, "history": {}}`), "INVALID_FILE: line 5: a line has one key"},
		{"another key", with(5, `{"rule": {}}`), "INVALID_FILE: line 5: a line has one key"},
		{"an unknown field", swap(5, `"name"`, `"nom"`), `INVALID_FILE: line 5: proto:`},
		{"a lost line", append(good[:4:4], good[6]), "INVALID_FILE: line 5: the end counts 2 variables and 3 versions, but the file has 1 and 2"},
		{"more", append(slices.Clone(good), good[1]), "INVALID_FILE: line 8: there is more after the end"},
		{"twice", append(good[:4:4], good[1]), `INVALID_FILE: line 5: the variable "a" is in the file twice`},
		{"no name", typed(`{"variable":{"type":"VARIABLE_TYPE_FLOAT"}}`), "INVALID_FILE: line 2: the variable's name is empty"},
		{"a long name", swap(2, `"a"`, `"`+strings.Repeat("é", 257)+`"`), "INVALID_FILE: line 2: the variable's name has more than 256"},
		{"a control character", swap(2, `"a"`, `"\u0007"`), "INVALID_FILE: line 2: the variable's name has control characters"},
		{"an id for a name", swap(2, `"name":"a"`, `"name":"var_01234567890123456789012345"`), "INVALID_FILE: line 2: the variable's name has the form"},
		{"history first", append(good[:1:1], good[2]), `INVALID_FILE: line 2: the history of "a" does not follow its variable`},
		{"history of nothing", append(good[:1:1], `{"history":{}}`), "INVALID_FILE: line 2: the history of"},
		{"history elsewhere", with(6, good[2]), `INVALID_FILE: line 6: the history of "a" does not follow`},
		{"history out of order", with(4, good[2]), `INVALID_FILE: line 4: version 0 of "a" comes after version 0`},
		{"history without a value", swap(3, `"value":{"number":1},`, ""), `INVALID_FILE: line 3: the history of "a" lacks`},
		{"no value", typed(`{"variable":{"name":"x","type":"VARIABLE_TYPE_FLOAT"}}`), "INVALID_REQUEST: line 2: x: there is no value"},
		{"no type", typed(`{"variable":{"name":"x","value":{"number":1}}}`), "line 2: "},
		{"another type", swap(2, "FLOAT", "BOOLEAN"), "TYPE_MISMATCH: line 2: a: "},
		{"out of bounds", typed(`{"variable":{"name":"x","type":"VARIABLE_TYPE_FLOAT","value":{"number":3},"constraints":{"max":2}}}`),
			"CONSTRAINT_VIOLATION: line 2: x: 3 is above the maximum 2"},
		{"bad constraints", typed(`{"variable":{"name":"x","type":"VARIABLE_TYPE_FLOAT","value":{"number":3},"constraints":{"choices":["a"]}}}`),
			"INVALID_CONSTRAINTS: line 2: x: "},
	}
	h.session("to")
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h := &house{Client: h.Client, t: t, addr: h.addr, dir: t.TempDir()}
			got := invocation{args: []string{"--addr", h.addr, "session", "import", "to", h.file(tt.lines...)}}.run(t)
			if got.status != 1 || got.out != "" || strings.Count(got.err, "\n") != 1 || !strings.Contains(got.err, tt.want) {
				t.Errorf("got %+v, want %q", got, tt.want)
			}
			if revision := h.revision("to"); revision != 0 {
				t.Errorf("%d changes were made", revision)
			}
		})
	}
	cut := strings.Join(good, "\n")
	got := invocation{args: []string{"--addr", h.addr, "session", "import", "to"}, stdin: cut[:len(cut)-5]}.run(t)
	if got.status != 1 || got.err != "error: INVALID_FILE: the file is cut off within line 7\n" {
		t.Errorf("cut within a line: %+v", got)
	}
}

func TestImportRefused(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.session("from", numbers(map[string]float64{"a": 1, "x": 2})...)
	path := h.file(h.export("from")...)
	h.session("to", &setpointv1.VariableRegistration{
		Name: "x", Type: setpointv1.VariableType_VARIABLE_TYPE_STRING, Value: client.String("text")})
	before := h.revision("to")
	for _, dry := range []string{"--dry-run=false", "--dry-run"} {
		got := invocation{args: []string{"--addr", h.addr, "session", "import", "to", path, "--merge", "replace", dry}}.run(t)
		want := `error: TYPE_MISMATCH: line 3: x is of type string in session "to", and of type float in the file` + "\n"
		if got.status != 1 || got.err != want {
			t.Errorf("%s: got %+v, want %q", dry, got, want)
		}
	}
	if after := h.revision("to"); after != before {
		t.Errorf("%d changes were made", after-before)
	}
	got := invocation{args: []string{"--addr", h.addr, "session", "import", "nowhere", path}}.run(t)
	if got.status != 1 || !strings.HasPrefix(got.err, "error: SESSION_NOT_FOUND: ") || !strings.Contains(got.err, "(--create opens it)") {
		t.Errorf("no session: %+v", got)
	}
	if got := (invocation{args: []string{"--addr", h.addr, "session", "export", "nowhere"}}).run(t); got.status != 1 ||
		!strings.HasPrefix(got.err, "error: SESSION_NOT_FOUND: ") || got.out != "" {
		t.Errorf("export of no session: %+v", got)
	}
	terminal := invocation{args: []string{"--addr", h.addr, "session", "import", "to"}, screen: screen{in: true}}.run(t)
	if terminal.status != 2 || !strings.Contains(terminal.err, "give a FILE") {
		t.Errorf("from a terminal: %+v", terminal)
	}
}

func TestImportCreatesTheSession(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.session("from", numbers(map[string]float64{"a": 1})...)
	path := h.file(h.export("from")...)
	if out := h.setpoint("session", "import", "dry", path, "--create", "--dry-run"); !strings.HasPrefix(out, "would import 1 variables (1 registered, ") {
		t.Errorf("dry run: got %s", out)
	}
	_, err := h.Sessions.GetSession(t.Context(), &setpointv1.GetSessionRequest{SessionId: "dry"})
	if !errors.Is(err, client.ErrSessionNotFound) {
		t.Errorf("a dry run opened the session: %v", err)
	}
	for flags, want := range map[string]*durationpb.Duration{
		"--create": durationpb.New(90 * time.Minute), "--create --ttl=5m": durationpb.New(5 * time.Minute), "--create --ttl=0": nil,
	} {
		id := "to" + strings.NewReplacer(" ", "", "=", ".").Replace(flags)
		h.setpoint(append([]string{"session", "import", id, path}, strings.Fields(flags)...)...)
		s, err := h.Sessions.GetSession(t.Context(), &setpointv1.GetSessionRequest{SessionId: id})
		if err != nil || !proto.Equal(s.GetTtl(), want) || s.GetMetadata()["team"] != "søk" {
			t.Errorf("%s: got %v, %v", flags, s, err)
		}
		// A session that is there is taken as it is.
		h.setpoint("session", "import", id, path, "--create", "--merge", "keep")
	}
	// A session without an end is exported, and imported, as one.
	h.setpoint("session", "import", "endless", h.file(h.export("to--create--ttl.0")...), "--create")
	if s, err := h.Sessions.GetSession(t.Context(), &setpointv1.GetSessionRequest{SessionId: "endless"}); err != nil || s.GetTtl() != nil {
		t.Errorf("endless: got %v, %v", s, err)
	}
}

func TestExportToAFile(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.session("from", numbers(map[string]float64{"a": 1})...)
	path := filepath.Join(h.dir, "export.jsonl")
	if err := os.WriteFile(path, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(h.dir, "link.jsonl")
	if err := os.Symlink("export.jsonl", link); err != nil {
		t.Fatal(err)
	}
	var summary struct {
		File      string `json:"file"`
		Variables int    `json:"variables"`
	}
	if err := json.Unmarshal([]byte(h.setpoint("session", "export", "from", link, "-o", "json")), &summary); err != nil {
		t.Fatal(err)
	}
	if summary.File != link || summary.Variables != 1 {
		t.Errorf("got %+v", summary)
	}
	text, err := os.ReadFile(path)
	if err != nil || !bytes.HasPrefix(text, []byte(`{"setpoint_export":1,"session_id":"from",`)) {
		t.Errorf("got %q, %v", text, err)
	}
	got := invocation{args: []string{"--addr", h.addr, "session", "export", "nowhere", path}}.run(t)
	if got.status != 1 {
		t.Errorf("no session: %+v", got)
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, text) {
		t.Errorf("an export that failed left %q, %v", after, err)
	}
	entries, err := os.ReadDir(h.dir)
	if err != nil || len(entries) != 2 {
		t.Errorf("the folder has %v, %v", entries, err)
	}
	if got := (invocation{args: []string{"--addr", h.addr, "session", "export", "from", h.dir}}).run(t); got.status != 1 {
		t.Errorf("onto a folder: %+v", got)
	}
	if out := h.setpoint("session", "export", "from", os.DevNull); !strings.HasPrefix(out, "exported 1 variables") {
		t.Errorf("to a device: %s", out)
	}
	if info, err := os.Stat(os.DevNull); err != nil || info.Mode().IsRegular() {
		t.Errorf("the device is now %v, %v", info, err)
	}
}

// countingWriter counts the lines that have come out.
type countingWriter struct{ lines atomic.Int64 }

func (w *countingWriter) Write(p []byte) (int, error) {
	w.lines.Add(int64(bytes.Count(p, []byte("\n"))))
	return len(p), nil
}

// blob is a variable of some KiB, so that a buffer holds only a few.
func blob(i int) *setpointv1.Variable {
	return &setpointv1.Variable{Name: fmt.Sprintf("v%05d", i), Type: setpointv1.VariableType_VARIABLE_TYPE_STRING,
		Value: client.String(strings.Repeat("x", 4096)), HistoryLimit: 50}
}

// When the export asks for a page, all pages before it have been written, but for what a buffer of 64 KiB holds.
func TestExportHoldsOnePage(t *testing.T) {
	t.Parallel()
	const pages, size, slack = 20, 100, 20
	out := &countingWriter{}
	sent := 0
	p := newPeer(t, func(request proto.Message) (proto.Message, error) {
		if _, ok := request.(*setpointv1.GetSessionRequest); ok {
			return &setpointv1.Session{SessionId: "s", VariableCount: pages * size}, nil
		}
		if behind := sent - int(out.lines.Load()); behind > slack {
			t.Errorf("after %d variables, %d are held", sent, behind)
		}
		page := &setpointv1.ListVariablesResponse{}
		for range size {
			page.Variables = append(page.Variables, blob(sent))
			sent++
		}
		if sent < pages*size {
			page.NextPageToken = "more"
		}
		return page, nil
	})
	api, err := client.Dial(p.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer api.Close()
	e := &exporter{api: api, sessionID: "s", progress: &progress{c: &cli{}}}
	if err := e.run(t.Context(), out); err != nil {
		t.Fatal(err)
	}
	if got := out.lines.Load(); got != pages*size+2 {
		t.Errorf("wrote %d lines", got)
	}
}

// endlessFile is an export that is made while it is read, and counts the variables that have been.
type endlessFile struct {
	n    int
	read atomic.Int64
	rest []byte
	line int
}

func (f *endlessFile) Seek(int64, int) (int64, error) {
	f.line, f.rest = 0, nil
	f.read.Store(0)
	return 0, nil
}

func (f *endlessFile) Read(p []byte) (int, error) {
	if len(f.rest) == 0 {
		switch {
		case f.line == 0:
			f.rest = []byte(`{"setpoint_export":1}` + "\n")
		case f.line <= f.n:
			f.rest = fmt.Appendf(nil, `{"variable":{"name":"v%05d","type":"VARIABLE_TYPE_STRING","value":{"string":"%s"}}}`+"\n",
				f.line, strings.Repeat("x", 4096))
			f.read.Add(1)
		case f.line == f.n+1:
			f.rest = fmt.Appendf(nil, `{"end":{"variables":%d}}`+"\n", f.n)
		default:
			return 0, io.EOF
		}
		f.line++
	}
	n := copy(p, f.rest)
	f.rest = f.rest[n:]
	return n, nil
}

// When the import sends a batch, it has read no more of the file than the batches so far, the one that is gathered, and
// what a buffer of 64 KiB holds.
func TestImportHoldsOneBatch(t *testing.T) {
	t.Parallel()
	const n, slack = 5000, 20
	in := &endlessFile{n: n}
	const perGathering = maxBatchBytes / 4096
	sent, largest := 0, 0
	p := newPeer(t, func(request proto.Message) (proto.Message, error) {
		switch r := request.(type) {
		case *setpointv1.GetSessionRequest:
			return &setpointv1.Session{SessionId: "s"}, nil
		case *setpointv1.BatchRegisterVariablesRequest:
			answer := &setpointv1.BatchRegisterVariablesResponse{}
			for range r.GetRegistrations() {
				answer.Results = append(answer.Results, &setpointv1.BatchRegisterResult{})
			}
			if ahead := int(in.read.Load()) - sent; ahead > perGathering+slack {
				t.Errorf("after %d variables, %d are held", sent, ahead)
			}
			sent += len(r.GetRegistrations())
			largest = max(largest, len(r.GetRegistrations()), proto.Size(r)>>13)
			return answer, nil
		}
		return nil, fmt.Errorf("unexpected %T", request)
	})
	api, err := client.Dial(p.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer api.Close()
	im := &importer{c: &cli{}, api: api, sessionID: "s", merge: mergeFail}
	if err := im.run(t.Context(), in); err != nil {
		t.Fatal(err)
	}
	if sent != n || im.done.Registered != n || largest > maxBatchItems {
		t.Errorf("sent %d, counted %d, at most %d at once", sent, im.done.Registered, largest)
	}
}

// What the server answers in the middle of an import.
func TestImportBreaksOff(t *testing.T) {
	t.Parallel()
	lines := []string{`{"setpoint_export":1}`,
		`{"variable":{"name":"a","type":"VARIABLE_TYPE_FLOAT","value":{"number":1}}}`,
		`{"variable":{"name":"b","type":"VARIABLE_TYPE_FLOAT","value":{"number":2}}}`,
		`{"end":{"variables":2}}`}
	tests := []struct {
		name   string
		answer func() (proto.Message, error)
		want   string
	}{
		{"one item", func() (proto.Message, error) {
			return &setpointv1.BatchRegisterVariablesResponse{Results: []*setpointv1.BatchRegisterResult{{}, {
				Error: &setpointv1.ItemError{Code: int32(codes.ResourceExhausted), Reason: setpointv1.ErrorReason_LIMIT_EXCEEDED,
					Message: "no room"}}}}, nil
		}, "error: LIMIT_EXCEEDED: line 3: no room (1 of 2 variables are imported; running it again with --merge replace goes on)\n"},
		{"somebody was faster", func() (proto.Message, error) {
			return &setpointv1.BatchRegisterVariablesResponse{Results: []*setpointv1.BatchRegisterResult{{}, {
				Error: &setpointv1.ItemError{Code: int32(codes.AlreadyExists), Reason: setpointv1.ErrorReason_VARIABLE_EXISTS,
					Message: "there is b"}}}}, nil
		}, "error: VARIABLE_EXISTS: line 3: there is b (1 of 2 variables are imported; running it again with --merge replace goes on)\n"},
		{"the whole batch", func() (proto.Message, error) {
			return nil, refusal(t, codes.Unimplemented, "INTERNAL_ERROR", "broken")
		}, "error: INTERNAL_ERROR: broken (0 of 2 variables are imported; running it again with --merge replace goes on)\n"},
		{"the whole batch, for one item", func() (proto.Message, error) {
			return nil, invalidField(t, "registrations[1].metadata", "must not have U+0000")
		}, "error: INVALID_REQUEST: line 3: the request is malformed; registrations[1].metadata: must not have U+0000 " +
			"(0 of 2 variables are imported; running it again with --merge replace goes on)\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := newPeer(t, func(request proto.Message) (proto.Message, error) {
				if _, ok := request.(*setpointv1.GetSessionRequest); ok {
					return &setpointv1.Session{}, nil
				}
				return tt.answer()
			})
			got := invocation{args: []string{"--addr", p.addr, "session", "import", "s"}, stdin: strings.Join(lines, "\n")}.run(t)
			if diff := cmp.Diff(result{status: 1, err: tt.want}, got, cmp.AllowUnexported(result{})); diff != "" {
				t.Errorf("result (-want +got):\n%s", diff)
			}
		})
	}
}

// A session that changes while it is read is exported all the same, and a note says so.
func TestExportOfAChangingSession(t *testing.T) {
	t.Parallel()
	revision := int64(6)
	p := newPeer(t, func(request proto.Message) (proto.Message, error) {
		switch r := request.(type) {
		case *setpointv1.GetSessionRequest:
			revision++
			return &setpointv1.Session{SessionId: r.GetSessionId(), Revision: revision}, nil
		case *setpointv1.ListVariablesRequest:
			return &setpointv1.ListVariablesResponse{Variables: []*setpointv1.Variable{
				{VariableId: "gone", Name: "a", Version: 3}, {VariableId: "set", Name: "b", Version: 1}}}, nil
		case *setpointv1.ListHistoryRequest:
			if r.GetVariable() == "gone" {
				return nil, refusal(t, codes.NotFound, "VARIABLE_NOT_FOUND", "no such variable")
			}
			return &setpointv1.ListHistoryResponse{Entries: []*setpointv1.HistoryEntry{
				{Name: "b", Version: proto.Int64(2)}, {Name: "b", Version: proto.Int64(1)}, {Name: "b", Version: proto.Int64(0)}}}, nil
		}
		return nil, fmt.Errorf("unexpected %T", request)
	})
	got := p.setpoint(t, "session", "export", "s", "--history")
	lines := withoutOrigin(t, strings.Split(strings.TrimSuffix(got.out, "\n"), "\n"))
	want := []string{`{"history":true,"setpoint_export":1}`, `{"variable":{"name":"a","version":"3"}}`,
		`{"variable":{"name":"b","version":"1"}}`, `{"history":{"name":"b","version":"0"}}`,
		`{"history":{"name":"b","version":"1"}}`, `{"end":{"history":2,"variables":2}}`}
	if diff := cmp.Diff(want, lines); diff != "" {
		t.Errorf("lines (-want +got):\n%s", diff)
	}
	if got.status != 0 || got.err != "note: session s changed during the export, from revision 7 to 8\n" {
		t.Errorf("got %+v", got)
	}
}

// Pages of history between the first and the last are read twice, and come out in order.
func TestHistoryOfManyPages(t *testing.T) {
	t.Parallel()
	p := newPeer(t, func(request proto.Message) (proto.Message, error) {
		before := int64(10)
		if token := request.(*setpointv1.ListHistoryRequest).GetPageToken(); token != "" {
			var err error
			if before, err = strconv.ParseInt(token, 10, 64); err != nil {
				return nil, err
			}
		}
		page := &setpointv1.ListHistoryResponse{}
		for version := before - 1; version >= max(0, before-3); version-- {
			page.Entries = append(page.Entries, &setpointv1.HistoryEntry{Version: proto.Int64(version)})
		}
		if before > 3 {
			page.NextPageToken = strconv.FormatInt(before-3, 10)
		}
		return page, nil
	})
	api, err := client.Dial(p.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer api.Close()
	var got []int64
	for entry, err := range versionsOf(t.Context(), api, &setpointv1.Variable{Version: 9}) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, entry.GetVersion())
	}
	if diff := cmp.Diff([]int64{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}, got); diff != "" || p.count() != 6 {
		t.Errorf("%d calls, versions (-want +got):\n%s", p.count(), diff)
	}
}

// Values beyond the limit of one answer are compared in smaller portions.
func TestReplaceOfLargeValues(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	large := func(letter string) []*setpointv1.VariableRegistration {
		var all []*setpointv1.VariableRegistration
		for i := range 3 {
			all = append(all, &setpointv1.VariableRegistration{Name: fmt.Sprintf("v%d", i),
				Type: setpointv1.VariableType_VARIABLE_TYPE_STRING, Value: client.String(strings.Repeat(letter, 3<<20))})
		}
		return all
	}
	h.session("to", large("a")...)
	h.session("from", numbers(nil)...)
	for _, r := range large("b") {
		r.Value = client.String("small")
		h.session("one-"+r.GetName(), r)
	}
	var lines []string
	for i := range 3 {
		lines = append(lines, h.export(fmt.Sprintf("one-v%d", i))[1])
	}
	path := h.file(slices.Concat([]string{`{"setpoint_export":1}`}, lines, []string{`{"end":{"variables":3}}`})...)
	if out := h.setpoint("session", "import", "to", path, "--merge", "replace"); !strings.Contains(out, "3 replaced") {
		t.Errorf("got %s", out)
	}
	if v := h.get("to", "v2"); v.GetValue().GetString_() != "small" {
		t.Errorf("got %.20s", v.GetValue().GetString_())
	}
}

func TestTransferProgress(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.session("from", numbers(map[string]float64{"a": 1, "b": 2, "c": 3})...)
	path := filepath.Join(h.dir, "export.jsonl")
	terminal := screen{err: true, out: true, width: 80}
	for _, args := range [][]string{
		{"session", "export", "from", path}, {"session", "import", "to", path, "--create"},
	} {
		got := invocation{args: append([]string{"--addr", h.addr}, args...), screen: terminal}.run(t)
		if got.status != 0 || got.err == "" || strings.Contains(got.err, "error") {
			t.Errorf("%q: got %+v", args, got)
		}
	}
}

// A field that variables get is either carried by exports, or known not to be.
func TestEveryFieldIsCarried(t *testing.T) {
	t.Parallel()
	carried := []string{"name", "type", "value", "constraints", "metadata", "history_limit", "access_mode",
		"depends_on", "expression", "strict"}
	own := []string{"stale", "optimization", "variable_id", "session_id", "version", "revision", "created_at", "updated_at", "updated_by"}
	fields := (&setpointv1.Variable{}).ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		if name := string(fields.Get(i).Name()); !slices.Contains(carried, name) && !slices.Contains(own, name) {
			t.Errorf("'session import' does not know what to do with %s", name)
		}
	}
}

// A variable gets the file's access mode; one that has it, or of which the file knows none, is left as it is.
func TestImportOfAccessModes(t *testing.T) {
	t.Parallel()
	const (
		private   = setpointv1.AccessMode_ACCESS_MODE_PRIVATE
		protected = setpointv1.AccessMode_ACCESS_MODE_PROTECTED
		public    = setpointv1.AccessMode_ACCESS_MODE_PUBLIC
	)
	session := map[string]setpointv1.AccessMode{"same": public, "narrower": public, "derived": public, "old": protected}
	var registered []*setpointv1.VariableRegistration
	var updates []*setpointv1.UpdateVariableRequest
	p := newPeer(t, func(request proto.Message) (proto.Message, error) {
		switch r := request.(type) {
		case *setpointv1.GetSessionRequest:
			return &setpointv1.Session{SessionId: "s", VariableCount: int64(len(session))}, nil
		case *setpointv1.GetGraphRequest:
			return &setpointv1.GetGraphResponse{}, nil
		case *setpointv1.GetVariableRequest:
			return &setpointv1.Variable{Name: r.GetVariable(), Type: kindInteger, Value: client.Integer(1), DependsOn: []string{"same"},
				Expression: "same", AccessMode: session[r.GetVariable()]}, nil
		case *setpointv1.BatchGetVariablesRequest:
			answer := &setpointv1.BatchGetVariablesResponse{Variables: map[string]*setpointv1.Variable{}}
			for _, name := range r.GetVariables() {
				if mode, ok := session[name]; ok {
					answer.Variables[name] = &setpointv1.Variable{Name: name, Type: kindInteger, Value: client.Integer(1), AccessMode: mode}
				}
			}
			return answer, nil
		case *setpointv1.BatchRegisterVariablesRequest:
			answer := &setpointv1.BatchRegisterVariablesResponse{}
			for _, registration := range r.GetRegistrations() {
				result := &setpointv1.BatchRegisterResult{}
				if _, taken := session[registration.GetName()]; taken {
					result.Error = &setpointv1.ItemError{Reason: setpointv1.ErrorReason_VARIABLE_EXISTS}
				} else {
					registered = append(registered, registration)
				}
				answer.Results = append(answer.Results, result)
			}
			return answer, nil
		case *setpointv1.UpdateVariableRequest:
			updates = append(updates, r)
			return &setpointv1.Variable{Name: r.GetVariable()}, nil
		}
		return nil, fmt.Errorf("unexpected %T", request)
	})
	line := func(name, rest string) string {
		return fmt.Sprintf(`{"variable":{"name":%q,"type":"VARIABLE_TYPE_INTEGER","value":{"integer":"1"}%s}}`, name, rest)
	}
	file := strings.Join([]string{`{"setpoint_export":1,"session_id":"x"}`,
		line("new", `,"access_mode":"ACCESS_MODE_PROTECTED"`), line("new of old", ""),
		line("same", `,"access_mode":"ACCESS_MODE_PUBLIC"`), line("narrower", `,"access_mode":"ACCESS_MODE_PRIVATE"`), line("old", ""),
		line("derived", `,"access_mode":"ACCESS_MODE_PROTECTED","depends_on":["same"],"expression":"same"`),
		`{"end":{"variables":6}}`}, "\n")
	got := invocation{args: []string{"--addr", p.addr, "session", "import", "s", "-", "--merge", "replace"}, stdin: file}.run(t)
	if got.status != 0 || !strings.Contains(got.out, "2 registered, 2 replaced, 2 unchanged") {
		t.Fatalf("got %+v", got)
	}
	modes := map[string]setpointv1.AccessMode{}
	for _, r := range registered {
		modes[r.GetName()] = r.GetAccessMode()
	}
	want := map[string]setpointv1.AccessMode{"new": protected, "new of old": setpointv1.AccessMode_ACCESS_MODE_UNSPECIFIED}
	if diff := cmp.Diff(want, modes); diff != "" {
		t.Errorf("registered (-want +got):\n%s", diff)
	}
	wantUpdates := []*setpointv1.UpdateVariableRequest{{SessionId: "s", Variable: "narrower", AccessMode: private},
		{SessionId: "s", Variable: "derived", AccessMode: protected}}
	for _, update := range updates {
		update.RequestId = ""
	}
	if diff := cmp.Diff(wantUpdates, updates, protocmp.Transform()); diff != "" {
		t.Errorf("updates (-want +got):\n%s", diff)
	}
}

// What the caller may not read is not in an export; what depends on it is, and cannot be imported.
func TestExportOfWhatDependsOnHidden(t *testing.T) {
	t.Parallel()
	p := newPeer(t, func(request proto.Message) (proto.Message, error) {
		if _, ok := request.(*setpointv1.GetSessionRequest); ok {
			return &setpointv1.Session{SessionId: "s", Revision: 3}, nil
		}
		return &setpointv1.ListVariablesResponse{Variables: []*setpointv1.Variable{
			{Name: "a", Type: kindInteger, Value: client.Integer(1)},
			{Name: "b", Type: kindInteger, Value: client.Integer(1), DependsOn: []string{"(hidden)", "a"}, Expression: "(hidden)"},
		}}, nil
	})
	got := p.setpoint(t, "session", "export", "s")
	const note = "note: 1 variable depends on what you may not read, and cannot be imported as the file has it\n"
	if got.status != 0 || got.err != note || strings.Count(got.out, "\n") != 4 {
		t.Fatalf("got %+v", got)
	}
	q := newPeer(t, always(&setpointv1.Session{SessionId: "s"}, nil))
	again := invocation{args: []string{"--addr", q.addr, "session", "import", "s"}, stdin: got.out}.run(t)
	const want = "error: VARIABLE_NOT_FOUND: line 3: b depends on a variable that whoever made the file could not read; nothing was imported\n"
	if again.status != 1 || again.err != want {
		t.Errorf("imported: %+v", again)
	}
}

// For those who may not read everything, what is not there is as what they may not read: it is theirs to register.
func TestImportByWhoMayNotReadAll(t *testing.T) {
	t.Parallel()
	p := newPeer(t, func(request proto.Message) (proto.Message, error) {
		switch r := request.(type) {
		case *setpointv1.GetSessionRequest:
			return &setpointv1.Session{SessionId: "s", VariableCount: 5}, nil
		case *setpointv1.GetVariableRequest:
			return nil, refusal(t, codes.PermissionDenied, "ACCESS_DENIED", "no")
		case *setpointv1.BatchGetVariablesRequest:
			return &setpointv1.BatchGetVariablesResponse{Denied: r.GetVariables()}, nil
		case *setpointv1.BatchRegisterVariablesRequest:
			return &setpointv1.BatchRegisterVariablesResponse{Results: make([]*setpointv1.BatchRegisterResult, len(r.GetRegistrations()))}, nil
		}
		return nil, fmt.Errorf("unexpected %T", request)
	})
	for _, names := range [][]string{{"a"}, {"a", "b"}} {
		lines := []string{`{"setpoint_export":1,"session_id":"x"}`}
		for _, name := range names {
			lines = append(lines, fmt.Sprintf(`{"variable":{"name":%q,"type":"VARIABLE_TYPE_INTEGER","value":{"integer":"1"}}}`, name))
		}
		file := strings.Join(append(lines, fmt.Sprintf(`{"end":{"variables":%d}}`, len(names))), "\n")
		got := invocation{args: []string{"--addr", p.addr, "session", "import", "s"}, stdin: file}.run(t)
		if got.status != 0 || !strings.Contains(got.out, fmt.Sprintf("(%d registered, ", len(names))) {
			t.Errorf("of %d: %+v", len(names), got)
		}
	}
}

func invalidField(t *testing.T, field, description string) error {
	t.Helper()
	st, err := status.New(codes.InvalidArgument, "the request is malformed").WithDetails(
		&errdetails.ErrorInfo{Domain: "setpoint", Reason: "INVALID_REQUEST"},
		&errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{
			{Field: field, Description: description}}})
	if err != nil {
		t.Fatal(err)
	}
	return st.Err()
}
