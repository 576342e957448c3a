package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

func temperature() *setpointv1.Variable {
	return &setpointv1.Variable{
		VariableId:   "var_aaaaaaaaaaaaaaaaaaaaaaaaaa",
		SessionId:    "default",
		Name:         "temperature",
		Type:         setpointv1.VariableType_VARIABLE_TYPE_FLOAT,
		Value:        client.Float(0.7),
		Constraints:  &setpointv1.Constraints{Min: proto.Float64(0), Max: proto.Float64(2)},
		Metadata:     map[string]string{"unit": "none", "by": "hand"},
		Version:      3,
		Revision:     9,
		HistoryLimit: 50,
		CreatedAt:    at("15:04:05"),
		UpdatedAt:    at("16:00:00"),
		UpdatedBy:    "user:ada",
	}
}

func workSession() *setpointv1.Session {
	return &setpointv1.Session{
		SessionId: "work", Owner: "user:ada", Metadata: map[string]string{"team": "search"},
		Ttl: durationpb.New(time.Hour), CreatedAt: at("15:00:00"), ExpiresAt: at("16:00:00"),
		Revision: 9, VariableCount: 2,
	}
}

func changeEntry() *setpointv1.HistoryEntry {
	return &setpointv1.HistoryEntry{
		Revision: 9, Version: proto.Int64(3), VariableId: "var_aaaaaaaaaaaaaaaaaaaaaaaaaa", Name: "temperature",
		Change: setpointv1.HistoryChange_HISTORY_CHANGE_ROLLED_BACK, Value: client.Float(0.7),
		Metadata: map[string]string{"unit": "none"}, Reason: "0.9 rambled", ChangedBy: "user:ada", ChangedAt: at("16:00:00"),
	}
}

// Each command: what goes to the server, what comes out.
func TestCommands(t *testing.T) {
	t.Parallel()
	str := structpb.NewStringValue
	sendJSON := func(v *structpb.Value) *setpointv1.Value {
		return &setpointv1.Value{Kind: &setpointv1.Value_Json{Json: v}}
	}
	set := &setpointv1.SetVariableResponse{VariableId: "var_a", Version: 1, Revision: 2, UpdatedAt: at("16:00:00")}
	tests := []struct {
		args    []string
		answer  proto.Message
		request proto.Message
		out     string
	}{
		{
			args:    []string{"session", "create", "work", "--ttl", "1h", "--metadata", "team=search"},
			answer:  workSession(),
			request: &setpointv1.CreateSessionRequest{SessionId: "work", Ttl: durationpb.New(time.Hour), Metadata: map[string]string{"team": "search"}},
			out:     "created session work  (ttl 1h, expires 2026-11-23 16:00:00)\n",
		},
		{
			args:    []string{"session", "create", "work", "--ttl", "0"},
			answer:  &setpointv1.Session{SessionId: "work"},
			request: &setpointv1.CreateSessionRequest{SessionId: "work", Ttl: durationpb.New(0)},
			out:     "created session work  (never ends)\n",
		},
		{
			args:    []string{"session", "get", "work"},
			answer:  workSession(),
			request: &setpointv1.GetSessionRequest{SessionId: "work"},
			out: "session:   work\n" +
				"owner:     user:ada\n" +
				"variables: 2\n" +
				"revision:  9\n" +
				"ttl:       1h\n" +
				"created:   2026-11-23 15:00:00\n" +
				"expires:   2026-11-23 16:00:00\n" +
				"metadata:  team=search\n",
		},
		{
			args:    []string{"session", "list", "w*"},
			answer:  &setpointv1.ListSessionsResponse{Sessions: []*setpointv1.Session{workSession(), {SessionId: "default"}}},
			request: &setpointv1.ListSessionsRequest{Pattern: "w*", PageSize: 1000},
			out: "SESSION  OWNER     VARIABLES  REVISION  TTL  EXPIRES              METADATA\n" +
				"work     user:ada          2         9  1h   2026-11-23 16:00:00  team=search\n" +
				"default                    0         0  -    never\n",
		},
		{
			args:    []string{"session", "keep-alive", "work"},
			answer:  workSession(),
			request: &setpointv1.KeepSessionAliveRequest{SessionId: "work"},
			out:     "kept session work  (ttl 1h, expires 2026-11-23 16:00:00)\n",
		},
		{
			args:    []string{"session", "delete", "work"},
			answer:  &setpointv1.DeleteSessionResponse{},
			request: &setpointv1.DeleteSessionRequest{SessionId: "work"},
			out:     "deleted session work\n",
		},
		{
			args: []string{"var", "register", "temperature", "float", "0.7", "--min", "-1", "--max", "2", "--step=0.1",
				"--history-limit", "0", "--metadata", "unit=none"},
			answer: temperature(),
			request: &setpointv1.RegisterVariableRequest{
				SessionId: "default", Name: "temperature", Type: setpointv1.VariableType_VARIABLE_TYPE_FLOAT,
				Value:       sendJSON(structpb.NewNumberValue(0.7)),
				Constraints: &setpointv1.Constraints{Min: proto.Float64(-1), Max: proto.Float64(2), Step: proto.Float64(0.1)},
				Metadata:    map[string]string{"unit": "none"}, HistoryLimit: proto.Int64(0),
			},
			out: "temperature = 0.7  (float, version 3, revision 9)\n",
		},
		{
			args: []string{"var", "register", "greeting", "string", "5", "--min-length", "1", "--max-length", "9",
				"--pattern", "^[a-z0-9]+$", "--enum", "5", "--enum", "a,b"},
			answer: &setpointv1.Variable{Name: "greeting", Type: setpointv1.VariableType_VARIABLE_TYPE_STRING, Value: client.String("5")},
			request: &setpointv1.RegisterVariableRequest{
				SessionId: "default", Name: "greeting", Type: setpointv1.VariableType_VARIABLE_TYPE_STRING,
				Value: sendJSON(str("5")),
				Constraints: &setpointv1.Constraints{MinLength: proto.Int64(1), MaxLength: proto.Int64(9),
					Pattern: proto.String("^[a-z0-9]+$"), Enum: []string{"5", "a,b"}},
			},
			out: "greeting = \"5\"  (string, version 0, revision 0)\n",
		},
		{
			args: []string{"var", "register", "weights", "tensor", `{"dtype":"uint8","shape":[2],"data":"AQI="}`,
				"--shape", "-1,2", "--dtype", "uint8"},
			answer: &setpointv1.Variable{Name: "weights", Type: setpointv1.VariableType_VARIABLE_TYPE_TENSOR,
				Value: client.Tensor("uint8", []int64{2}, []byte{1, 2})},
			request: &setpointv1.RegisterVariableRequest{
				SessionId: "default", Name: "weights", Type: setpointv1.VariableType_VARIABLE_TYPE_TENSOR,
				Value: sendJSON(structpb.NewStructValue(&structpb.Struct{Fields: map[string]*structpb.Value{
					"dtype": str("uint8"), "data": str("AQI="),
					"shape": structpb.NewListValue(&structpb.ListValue{Values: []*structpb.Value{structpb.NewNumberValue(2)}}),
				}})),
				Constraints: &setpointv1.Constraints{Shape: []int64{-1, 2}, Dtype: proto.String("uint8")},
			},
			out: `weights = {"dtype": "uint8", "shape": [2], "data": "AQI="}  (tensor, version 0, revision 0)` + "\n",
		},
		{
			args: []string{"var", "register", "config", "json", `{}`, "--json-schema", `{"type": "object"}`,
				"--choice", "a", "--allowed-module", "m", "--dimensions", "3"},
			answer: &setpointv1.Variable{Name: "config", Type: setpointv1.VariableType_VARIABLE_TYPE_JSON},
			request: &setpointv1.RegisterVariableRequest{
				SessionId: "default", Name: "config", Type: setpointv1.VariableType_VARIABLE_TYPE_JSON,
				Value: sendJSON(structpb.NewStructValue(&structpb.Struct{})),
				Constraints: &setpointv1.Constraints{
					Choices: []string{"a"}, AllowedModules: []string{"m"}, Dimensions: proto.Int64(3),
					JsonSchema: &structpb.Struct{Fields: map[string]*structpb.Value{"type": str("object")}}},
			},
			out: "config = -  (json, version 0, revision 0)\n",
		},
		{
			args:    []string{"var", "get", "temperature"},
			answer:  temperature(),
			request: &setpointv1.GetVariableRequest{SessionId: "default", Variable: "temperature"},
			out: "name:          temperature\n" +
				"value:         0.7\n" +
				"type:          float\n" +
				"constraints:   min 0, max 2\n" +
				"version:       3\n" +
				"revision:      9\n" +
				"metadata:      by=hand, unit=none\n" +
				"history limit: 50\n" +
				"created:       2026-11-23 15:04:05\n" +
				"updated:       2026-11-23 16:00:00\n" +
				"updated by:    user:ada\n" +
				"session:       default\n" +
				"id:            var_aaaaaaaaaaaaaaaaaaaaaaaaaa\n",
		},
		{
			args: []string{"var", "set", "temperature", "0.9", "--expected-version", "0", "--reason", "why", "--metadata", "a=b=c",
				"--request-id", "once"},
			answer: set,
			request: &setpointv1.SetVariableRequest{SessionId: "default", Variable: "temperature",
				Value: sendJSON(structpb.NewNumberValue(0.9)), ExpectedVersion: proto.Int64(0), Reason: "why",
				Metadata: map[string]string{"a": "b=c"}, RequestId: "once"},
			out: "temperature = 0.9  (version 1, revision 2)\n",
		},
		{
			args:   []string{"--session", "work", "var", "set", "offset", "-1.5", "--dry-run", "--clear-metadata"},
			answer: set,
			request: &setpointv1.SetVariableRequest{SessionId: "work", Variable: "offset",
				Value: sendJSON(structpb.NewNumberValue(-1.5)), DryRun: true, ClearMetadata: true},
			out: "offset = -1.5  (version 1, revision 2; dry run, nothing written)\n",
		},
		{
			args:   []string{"var", "set", "big", "9007199254740993"},
			answer: set,
			request: &setpointv1.SetVariableRequest{SessionId: "default", Variable: "big",
				Value: sendJSON(str("9007199254740993"))},
			out: "big = 9007199254740993  (version 1, revision 2)\n",
		},
		{
			args:   []string{"var", "set", "greeting", "--text", "5"},
			answer: set,
			request: &setpointv1.SetVariableRequest{SessionId: "default", Variable: "greeting",
				Value: sendJSON(str("5"))},
			out: "greeting = \"5\"  (version 1, revision 2)\n",
		},
		{
			args: []string{"var", "list", "t*", "--type", "float", "--type", "STRING"},
			answer: &setpointv1.ListVariablesResponse{Variables: []*setpointv1.Variable{
				temperature(),
				{Name: "t\x1b[2Jé", Type: setpointv1.VariableType_VARIABLE_TYPE_STRING, Value: client.String("a\n\x1b<b>")},
			}},
			request: &setpointv1.ListVariablesRequest{SessionId: "default", Pattern: "t*", PageSize: 1000,
				Types: []setpointv1.VariableType{setpointv1.VariableType_VARIABLE_TYPE_FLOAT, setpointv1.VariableType_VARIABLE_TYPE_STRING}},
			out: "NAME         TYPE    VERSION  UPDATED              BY        VALUE\n" +
				"temperature  float         3  2026-11-23 16:00:00  user:ada  0.7\n" +
				"t\\x1b[2Jé    string        0  -                              \"a\\n\\u001b<b>\"\n",
		},
		{
			args:    []string{"var", "update", "temperature", "--metadata", "a=b", "--history-limit", "0", "--expected-version", "3"},
			answer:  temperature(),
			request: &setpointv1.UpdateVariableRequest{SessionId: "default", Variable: "temperature", Metadata: map[string]string{"a": "b"}, HistoryLimit: proto.Int64(0), ExpectedVersion: proto.Int64(3)},
			out:     "temperature updated  (version 3, revision 9)\n",
		},
		{
			args:   []string{"var", "update", "temperature", "--max", "1.5", "--reason", "hot"},
			answer: temperature(), // answers the read of the current constraints, too
			request: &setpointv1.UpdateVariableRequest{SessionId: "default", Variable: "temperature", Reason: "hot",
				Constraints: &setpointv1.Constraints{Min: proto.Float64(0), Max: proto.Float64(1.5)}},
			out: "temperature updated  (version 3, revision 9)\n",
		},
		{
			args:   []string{"var", "update", "temperature", "--max", "1.5", "--clear-constraints"},
			answer: temperature(),
			request: &setpointv1.UpdateVariableRequest{SessionId: "default", Variable: "temperature",
				Constraints: &setpointv1.Constraints{Max: proto.Float64(1.5)}},
			out: "temperature updated  (version 3, revision 9)\n",
		},
		{
			args:    []string{"var", "update", "temperature", "--clear-constraints", "--clear-metadata"},
			answer:  temperature(),
			request: &setpointv1.UpdateVariableRequest{SessionId: "default", Variable: "temperature", Constraints: &setpointv1.Constraints{}, ClearMetadata: true},
			out:     "temperature updated  (version 3, revision 9)\n",
		},
		{
			args:    []string{"var", "delete", "temperature", "--yes", "--expected-version", "3", "--reason", "old"},
			answer:  &setpointv1.DeleteVariableResponse{VariableId: "var_a", Revision: 10},
			request: &setpointv1.DeleteVariableRequest{SessionId: "default", Variable: "temperature", ExpectedVersion: proto.Int64(3), Reason: "old"},
			out:     "deleted temperature  (revision 10)\n",
		},
		{
			args: []string{"history", "list", "temperature", "--change", "rolled-back", "--change", "updated"},
			answer: &setpointv1.ListHistoryResponse{Entries: []*setpointv1.HistoryEntry{changeEntry(),
				{Revision: 8, Name: "temperature", Change: setpointv1.HistoryChange_HISTORY_CHANGE_UPDATED}}},
			request: &setpointv1.ListHistoryRequest{SessionId: "default", Variable: "temperature", PageSize: 100,
				Changes: []setpointv1.HistoryChange{setpointv1.HistoryChange_HISTORY_CHANGE_ROLLED_BACK, setpointv1.HistoryChange_HISTORY_CHANGE_UPDATED}},
			out: "REVISION  TIME                 NAME         CHANGE       VERSION  BY        REASON       METADATA   VALUE\n" +
				"       9  2026-11-23 16:00:00  temperature  rolled_back        3  user:ada  0.9 rambled  unit=none  0.7\n" +
				"       8  -                    temperature  updated            -            -            -          -\n",
		},
		{
			args:    []string{"history", "get", "temperature", "3"},
			answer:  changeEntry(),
			request: &setpointv1.GetVariableVersionRequest{SessionId: "default", Variable: "temperature", Version: 3},
			out: "name:     temperature\n" +
				"version:  3\n" +
				"value:    0.7\n" +
				"change:   rolled_back\n" +
				"reason:   0.9 rambled\n" +
				"metadata: unit=none\n" +
				"time:     2026-11-23 16:00:00\n" +
				"by:       user:ada\n" +
				"revision: 9\n" +
				"id:       var_aaaaaaaaaaaaaaaaaaaaaaaaaa\n",
		},
		{
			args:    []string{"history", "rollback", "temperature", "1", "--expected-version", "2", "--reason", "0.9 rambled"},
			answer:  temperature(),
			request: &setpointv1.RollbackVariableRequest{SessionId: "default", Variable: "temperature", Version: 1, ExpectedVersion: proto.Int64(2), Reason: "0.9 rambled"},
			out:     "temperature = 0.7  (version 3, revision 9; the value of version 1)\n",
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
			asJSON := p.setpoint(t, append(tt.args, "-o", "json")...)
			checkJSON(t, asJSON, tt.answer)
		})
	}
}

// checkJSON compares output with an answer, and looks for the fields that JSON leaves out if not asked to.
func checkJSON(t *testing.T, got result, want proto.Message) {
	t.Helper()
	if got.status != 0 || got.err != "" {
		t.Fatalf("-o json: status %d, %s", got.status, got.err)
	}
	parsed := want.ProtoReflect().New().Interface()
	if err := protojson.Unmarshal([]byte(got.out), parsed); err != nil {
		t.Fatalf("-o json: %v in\n%s", err, got.out)
	}
	if diff := cmp.Diff(want, parsed, protocmp.Transform(), cmpopts.EquateNaNs()); diff != "" {
		t.Errorf("-o json (-want +got):\n%s", diff)
	}
	var fields map[string]any
	if err := json.Unmarshal([]byte(got.out), &fields); err != nil {
		t.Fatalf("-o json: %v", err)
	}
	descriptor := want.ProtoReflect().Descriptor().Fields()
	for i := range descriptor.Len() {
		field := descriptor.Get(i)
		if _, found := fields[string(field.Name())]; !found && !field.HasOptionalKeyword() {
			t.Errorf("-o json has no %s:\n%s", field.Name(), got.out)
		}
	}
}

func TestValuesFromFilesAndStandardInput(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "value")
	if err := os.WriteFile(path, []byte("Answer in verse.\nAlways.\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := newPeer(t, always(&setpointv1.SetVariableResponse{}, nil))
	for _, tt := range []struct {
		argument, stdin, want string
	}{
		{"@" + path, "", "Answer in verse.\nAlways."},
		{"-", "hello\r\n", "hello"},
		{"-", `"quoted"` + "\n", "quoted"},
	} {
		got := invocation{args: []string{"--addr", p.addr, "var", "set", "prompt", tt.argument}, stdin: tt.stdin}.run(t)
		if got.status != 0 {
			t.Fatalf("%s: %s", tt.argument, got.err)
		}
		sent := p.last(t).(*setpointv1.SetVariableRequest).GetValue().GetJson().GetStringValue()
		if sent != tt.want {
			t.Errorf("%s: sent %q, want %q", tt.argument, sent, tt.want)
		}
	}
}

// paged answers ListVariables with n variables in pages of at most size.
func paged(n, size int) func(proto.Message) (proto.Message, error) {
	return func(request proto.Message) (proto.Message, error) {
		list := request.(*setpointv1.ListVariablesRequest)
		first := 0
		if list.GetPageToken() != "" {
			if _, err := fmt.Sscanf(list.GetPageToken(), "from-%d", &first); err != nil {
				return nil, err
			}
		}
		page := &setpointv1.ListVariablesResponse{}
		for i := first; i < min(n, first+size); i++ {
			page.Variables = append(page.Variables, &setpointv1.Variable{Name: fmt.Sprintf("v%03d", i)})
		}
		if first+size < n {
			page.NextPageToken = fmt.Sprintf("from-%d", first+size)
		}
		return page, nil
	}
}

func TestPagesBecomeOneList(t *testing.T) {
	t.Parallel()
	for _, n := range []int{0, 1, 5, 6, 7} {
		p := newPeer(t, paged(n, 3))
		want := &setpointv1.ListVariablesResponse{}
		for i := range n {
			want.Variables = append(want.Variables, &setpointv1.Variable{Name: fmt.Sprintf("v%03d", i)})
		}
		got := p.setpoint(t, "var", "list", "-o", "json")
		checkJSON(t, got, want)
		whole, err := jsonText(want, "")
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(whole+"\n", got.out); diff != "" {
			t.Errorf("%d in pages read otherwise than at once (-once +pages):\n%s", n, diff)
		}
		table := p.setpoint(t, "var", "list")
		if lines := strings.Count(table.out, "\n"); lines != n+1 || strings.Count(table.out, "NAME") != 1 {
			t.Errorf("table of %d has %d lines:\n%s", n, lines, table.out)
		}
	}
}

func TestHistoryLimit(t *testing.T) {
	t.Parallel()
	var sizes []int32
	p := newPeer(t, func(request proto.Message) (proto.Message, error) {
		size := request.(*setpointv1.ListHistoryRequest).GetPageSize()
		sizes = append(sizes, size)
		page := &setpointv1.ListHistoryResponse{NextPageToken: "more"}
		for range min(size, 600) {
			page.Entries = append(page.Entries, changeEntry())
		}
		return page, nil
	})
	got := p.setpoint(t, "history", "list", "--limit", "1300", "-o", "json")
	response := &setpointv1.ListHistoryResponse{}
	if err := protojson.Unmarshal([]byte(got.out), response); err != nil {
		t.Fatalf("%v: %s", err, got.err)
	}
	if len(response.GetEntries()) != 1300 || response.GetNextPageToken() != "more" {
		t.Errorf("got %d entries, next page %q", len(response.GetEntries()), response.GetNextPageToken())
	}
	if diff := cmp.Diff([]int32{1000, 700, 100}, sizes); diff != "" {
		t.Errorf("page sizes (-want +got):\n%s", diff)
	}
}
