package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate"
	"github.com/getkin/kin-openapi/openapi2"
	"github.com/getkin/kin-openapi/openapi2conv"
	"github.com/google/go-cmp/cmp"
	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/setpointdb/setpoint/db"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/authenticate"
	"github.com/setpointdb/setpoint/internal/telemetry"
	"github.com/setpointdb/setpoint/internal/testkit"
	"github.com/setpointdb/setpoint/service"
)

// caller calls a server over HTTP.
type caller struct {
	t      *testing.T
	url    string
	client *http.Client
	server *Server
	stop   func()
}

// startREST starts a server on a database of its own; change may alter its configuration.
func startREST(t *testing.T, change ...func(*Config)) *caller {
	t.Helper()
	config := Config{
		GRPCAddr: "127.0.0.1:0", HTTPAddr: "127.0.0.1:0", Limits: service.DefaultLimits,
		Log: slog.New(slog.DiscardHandler),
	}
	for _, c := range change {
		c(&config)
	}
	if config.Database.URL == "" {
		config.Database.URL = testkit.NewDatabase(t)
	}
	s, err := Start(context.Background(), config)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{ExpectContinueTimeout: time.Minute}
	stop := sync.OnceFunc(func() {
		transport.CloseIdleConnections()
		s.Stop(context.Background())
	})
	t.Cleanup(stop)
	return &caller{t: t, url: "http://" + s.HTTPAddr(), client: &http.Client{Transport: transport}, server: s, stop: stop}
}

// dial returns a connection for gRPC.
func (c *caller) dial() *grpc.ClientConn {
	c.t.Helper()
	conn, err := grpc.NewClient(c.server.GRPCAddr(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// reply is an answer; its body is JSON without white space.
type reply struct {
	code   int
	header http.Header
	body   string
}

// call sends a request; headers are names and values in turn.
func (c *caller) call(method, path, body string, headers ...string) reply {
	c.t.Helper()
	return c.send(method, path, strings.NewReader(body), headers...)
}

func (c *caller) send(method, path string, body io.Reader, headers ...string) reply {
	c.t.Helper()
	req, err := http.NewRequestWithContext(c.t.Context(), method, c.url+path, body)
	if err != nil {
		c.t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Add(headers[i], headers[i+1])
	}
	response, err := c.client.Do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	return reply{response.StatusCode, response.Header, compact(c.t, text)}
}

func compact(t *testing.T, text []byte) string {
	t.Helper()
	if len(text) == 0 {
		return ""
	}
	var out bytes.Buffer
	if err := json.Compact(&out, text); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return out.String()
}

// must is call where nothing may go wrong.
func (c *caller) must(method, path, body string, headers ...string) string {
	c.t.Helper()
	got := c.call(method, path, body, headers...)
	if got.code != http.StatusOK {
		c.t.Fatalf("%s %s: %d %s", method, path, got.code, got.body)
	}
	return got.body
}

// wantError checks an error's answer: its HTTP code, and the reason in a google.rpc.Status.
func wantError(t *testing.T, got reply, code int, reason string) {
	t.Helper()
	if got.code != code || reasonIn(t, got.body) != reason {
		t.Errorf("answered %d %s, want %d %s", got.code, got.body, code, reason)
	}
	if kind := got.header.Get("Content-Type"); kind != "application/json" || got.header.Get("X-Request-Id") == "" {
		t.Errorf("headers %v of %s", got.header, got.body)
	}
}

// reasonIn reads a google.rpc.Status.
func reasonIn(t *testing.T, body string) string {
	t.Helper()
	var s struct {
		Code    int
		Message string
		Details []struct {
			Type   string `json:"@type"`
			Reason string
			Domain string
		}
	}
	if err := json.Unmarshal([]byte(body), &s); err != nil || s.Code == 0 || s.Message == "" {
		t.Errorf("no google.rpc.Status: %s, %v", body, err)
	}
	for _, detail := range s.Details {
		if detail.Type == "type.googleapis.com/google.rpc.ErrorInfo" && detail.Domain == "setpoint" {
			return detail.Reason
		}
	}
	return ""
}

// rpcs returns every RPC of the API.
func rpcs() []protoreflect.MethodDescriptor {
	var all []protoreflect.MethodDescriptor
	protoregistry.GlobalFiles.RangeFilesByPackage("setpoint.v1", func(file protoreflect.FileDescriptor) bool {
		for i := range file.Services().Len() {
			methods := file.Services().Get(i).Methods()
			for j := range methods.Len() {
				all = append(all, methods.Get(j))
			}
		}
		return true
	})
	return all
}

// Every RPC works over HTTP. The rows are run in their order, in one session.
func TestRESTEveryRPC(t *testing.T) {
	t.Parallel()
	rows := []struct{ rpc, method, path, body, want string }{
		{"CreateSession", "POST", "/v1/sessions", `{"session_id": "s", "ttl": "0s"}`, `"session_id":"s","owner":"user:anonymous"`},
		{"GetSession", "GET", "/v1/sessions/s", "", `"ttl":null`},
		{"ListSessions", "GET", "/v1/sessions?pattern=s*&page_size=5", "", `"sessions":[{"session_id":"s"`},
		{"KeepSessionAlive", "POST", "/v1/sessions/s:keepAlive", "", `"session_id":"s"`},
		{
			"RegisterVariable", "POST", "/v1/sessions/s/variables",
			`{"name": "a", "type": "VARIABLE_TYPE_FLOAT", "value": {"number": 1}, "constraints": {"max": 2}}`, `"value":{"number":1}`,
		},
		{
			"BatchRegisterVariables", "POST", "/v1/sessions/s/variables:batchRegister",
			`{"registrations": [{"name": "b", "type": "VARIABLE_TYPE_STRING", "value": {"string": "x"}}], "atomic": true}`,
			`"results":[{"variable":{"variable_id":"var_`,
		},
		{"GetVariable", "GET", "/v1/sessions/s/variables/a", "", `"name":"a"`},
		{"BatchGetVariables", "POST", "/v1/sessions/s/variables:batchGet", `{"variables": ["b", "c"]}`, `"missing":["c"]`},
		{"ListVariables", "GET", "/v1/sessions/s/variables?types=VARIABLE_TYPE_FLOAT&types=VARIABLE_TYPE_STRING", "", `"name":"b"`},
		{
			"SetVariable", "POST", "/v1/sessions/s/variables/a:set", `{"value": {"json": 1.5}, "expected_version": 0, "reason": "why"}`,
			`"version":"1"`,
		},
		{
			"BatchSetVariables", "POST", "/v1/sessions/s/variables:batchSet",
			`{"writes": [{"variable": "a", "value": {"json": 9}}, {"variable": "b", "value": {"json": "y"}}]}`,
			`"reason":"CONSTRAINT_VIOLATION"`,
		},
		{"UpdateVariable", "PATCH", "/v1/sessions/s/variables/a", `{"metadata": {"k": "v"}}`, `"metadata":{"k":"v"}`},
		{"ListHistory", "GET", "/v1/sessions/s/history?variable=a&page_size=1", "", `"reason":"why"`},
		{"GetVariableVersion", "GET", "/v1/sessions/s/variables/a/versions/0", "", `"change":"HISTORY_CHANGE_REGISTERED"`},
		{"RollbackVariable", "POST", "/v1/sessions/s/variables/a:rollback", `{"version": "0"}`, `"version":"2"`},
		{
			"AddDependency", "POST", "/v1/sessions/s/dependencies", `{"dependent": "b", "dependency": "a", "reason": "why"}`,
			`"dependent":"b","dependency":"a"`,
		},
		{"ListDependencies", "GET", "/v1/sessions/s/variables/b/dependencies?transitive=true&page_size=5", "", `"name":"a"`},
		{"ListDependents", "GET", "/v1/sessions/s/variables/a/dependents?transitive=true", "", `"direct":true`},
		{"GetUpdateOrder", "GET", "/v1/sessions/s/variables/a/updateOrder", "", `"variables":[{"variable_id":"var_`},
		{"GetGraph", "GET", "/v1/sessions/s/graph?include_unconnected=true", "", `"depends_on":["a"]`},
		{"RemoveDependency", "DELETE", "/v1/sessions/s/dependencies/b/a?reason=done", "", `"revision":"`},
		{"GetSnapshot", "GET", "/v1/sessions/s/snapshot?revision=1", "", `"revision":"1"`},
		{"RollbackSession", "POST", "/v1/sessions/s:rollback", `{"revision": 2, "dry_run": true}`, `"target_revision":"2"`},
		{
			"StartOptimization", "POST", "/v1/sessions/s/optimizations",
			`{"variables": ["b"], "optimizer_id": "sweep", "optimizer_process": "host:42", "config": {"seed": 7}, "ttl": "60s",
				"conflict": "CONFLICT_STRATEGY_WAIT", "objective": {"metric": "accuracy", "direction": "DIRECTION_MAXIMIZE"}}`,
			`"state":"OPTIMIZATION_STATE_ACTIVE","optimizer_id":"sweep"`,
		},
		{"AwaitOptimization", "GET", "/v1/sessions/s/optimizations/{optimization}:await", "", `"fencing_token":"{token}"`},
		{"RenewOptimization", "POST", "/v1/sessions/s/optimizations/{optimization}:renew", `{"fencing_token": "{token}"}`, `"expires_at":"`},
		{
			"ReportProgress", "POST", "/v1/sessions/s/optimizations/{optimization}:report",
			`{"fencing_token": {token}, "number": 1, "values": {"b": {"json": "z"}}, "metrics": {"accuracy": 0.9}, "checkpoint": "AAE="}`,
			`"is_best":true`,
		},
		{
			"ListTrials", "GET", "/v1/sessions/s/optimizations/{optimization}/trials?metric=accuracy&direction=DIRECTION_MAXIMIZE", "",
			`"metrics":{"accuracy":0.9}`,
		},
		{"GetOptimizationStatus", "GET", "/v1/sessions/s/variables/b/optimization", "", `"optimizing":true`},
		{"GetOptimization", "GET", "/v1/sessions/s/optimizations/{optimization}", "", `"trial_count":"1"`},
		{
			"ListOptimizations", "GET", "/v1/sessions/s/optimizations?states=OPTIMIZATION_STATE_ACTIVE&variable=b&page_size=5", "",
			`"optimization_id":"{optimization}"`,
		},
		{
			"StopOptimization", "POST", "/v1/sessions/s/optimizations/{optimization}:stop",
			`{"fencing_token": "{token}", "state": "OPTIMIZATION_STATE_COMPLETED", "apply_best": true}`,
			`"final_values":{"b":{"string":"z"}}`,
		},
		{
			"AddAccessRule", "POST", "/v1/sessions/s/rules",
			`{"rule": {"subject": "user:*", "permissions": ["PERMISSION_READ"], "effect": "ACCESS_EFFECT_DENY", "priority": 3}}`,
			`"subject":"user:*","permissions":["PERMISSION_READ"],"effect":"ACCESS_EFFECT_DENY"`,
		},
		{"ListAccessRules", "GET", "/v1/sessions/s/rules?subject=user:*", "", `"rule_id":"{rule}"`},
		{
			"CheckAccess", "GET", "/v1/sessions/s/access?variable=a&permission=PERMISSION_READ&subject=user:ada&subject_groups=group:x", "",
			`"allowed":false`,
		},
		{
			"BatchCheckAccess", "POST", "/v1/sessions/s/access:batchCheck", `{"checks": [{"permission": "PERMISSION_ADMIN"}]}`,
			`"results":[{"allowed":true`,
		},
		{"RemoveAccessRule", "DELETE", "/v1/sessions/s/rules/{rule}?reason=done", "", `"revision":"`},
		{
			"SetVariablePermissions", "PUT", "/v1/sessions/s/variables/a/permissions",
			`{"rules": [{"subject": "group:ops", "permissions": ["PERMISSION_WRITE"]}]}`, `"variable":"a"`,
		},
		{"ListAuditEvents", "GET", "/v1/sessions/s/audit-events?kinds=AUDIT_EVENT_KIND_RULE_REMOVED", "", `"reason":"done"`},
		{"ListAuditEvents", "GET", "/v1/audit-events?page_size=1", "", `"kind":"AUDIT_EVENT_KIND_RULE_ADDED"`},
		{
			"CreateToken", "POST", "/v1/tokens",
			`{"principal": "user:ada", "groups": ["group:ops"], "permissions": ["PERMISSION_READ"], "sessions": ["s*"], "ttl": "3600s"}`,
			`"secret":"setpoint_`,
		},
		{"ListTokens", "GET", "/v1/tokens?principal=user:ada&include_ended=true", "", `"token_id":"{id}"`},
		{"RevokeToken", "POST", "/v1/tokens/{id}:revoke", `{}`, `"revoked_by":"user:anonymous"`},
		{"DeleteVariable", "DELETE", "/v1/sessions/s/variables/a?expected_version=2&reason=done", "", `"variable_id":"var_`},
		{"DeleteSession", "DELETE", "/v1/sessions/s", "", `{}`},
	}
	c := startREST(t)
	routes := newRoutes()
	left := make(map[string]protoreflect.MethodDescriptor)
	for _, rpc := range rpcs() {
		left[string(rpc.Name())] = rpc
	}
	all := maps.Clone(left)
	known := strings.NewReplacer()
	for _, row := range rows {
		row.path, row.body, row.want = known.Replace(row.path), known.Replace(row.body), known.Replace(row.want)
		if diff := cmp.Diff(row.rpc, routes.at(row.method, row.path)); diff != "" {
			t.Errorf("RPC at %s %s: %s", row.method, row.path, diff)
		}
		got := c.must(row.method, row.path, row.body)
		if !strings.Contains(got, row.want) {
			t.Errorf("%s: %s lacks %s", row.rpc, got, row.want)
		}
		rpc := all[row.rpc]
		delete(left, row.rpc)
		if rpc.IsStreamingServer() {
			got = resultIn(t, got)
		}
		kind, err := protoregistry.GlobalTypes.FindMessageByName(rpc.Output().FullName())
		if err != nil {
			t.Fatal(err)
		}
		answer := kind.New().Interface()
		if err := protojson.Unmarshal([]byte(got), answer); err != nil {
			t.Errorf("%s: %v", row.rpc, err)
		}
		switch a := answer.(type) {
		case *setpointv1.Optimization:
			if row.rpc == "StartOptimization" {
				known = strings.NewReplacer("{optimization}", a.GetOptimizationId(), "{token}", strconv.FormatInt(a.GetFencingToken(), 10))
			}
		case *setpointv1.AccessRule:
			known = strings.NewReplacer("{rule}", a.GetRuleId())
		case *setpointv1.CreateTokenResponse:
			known = strings.NewReplacer("{id}", a.GetToken().GetTokenId())
		}
	}
	for rpc := range left {
		t.Errorf("no row calls %s", rpc)
	}
}

// at returns the name of the RPC at a path. A verb at its end is not taken for a part of a parameter where there is such a verb.
func (rs routes) at(method, path string) string {
	path, _, _ = strings.Cut(path, "?")
	var found route
	for _, r := range rs {
		if r.method == method && r.path.MatchString(path) && (found.rpc == "" || strings.Contains(r.template, ":")) {
			found = r
		}
	}
	return string(found.rpc.Name())
}

// resultIn returns the message of a stream that has one line.
func resultIn(t *testing.T, text string) string {
	t.Helper()
	var line struct{ Result json.RawMessage }
	if err := json.Unmarshal([]byte(text), &line); err != nil || line.Result == nil {
		t.Errorf("not a line of a stream: %s, %v", text, err)
	}
	return string(line.Result)
}

// Names that look like something else in a path: percent-encoded, they are names.
func TestRESTNames(t *testing.T) {
	t.Parallel()
	c := startREST(t)
	c.must("POST", "/v1/sessions", `{"session_id": "s:set"}`)
	for _, name := range []string{
		"a/b", "a//b", "/", "a:set", "x:rollback", ":set", "50%", "a%2Fb", "a%3Aset", "日本", "a b", "a+b", "*", "..", ".",
		"a?b=c", "a#b", "a;b", "versions", "a/versions/1", "{variable}", `"`, `\`, "é",
	} {
		quoted, err := json.Marshal(name)
		if err != nil {
			t.Fatal(err)
		}
		const all = "/v1/sessions/s%3Aset/variables"
		one := all + "/" + strings.ReplaceAll(url.PathEscape(name), ":", "%3A")
		c.must("POST", all, fmt.Sprintf(`{"name": %s, "type": "VARIABLE_TYPE_INTEGER", "value": {"integer": "1"}}`, quoted))
		if got := c.must("GET", one, ""); !strings.Contains(got, `"name":`+string(quoted)+`,`) {
			t.Errorf("%q: got %s", name, got)
		}
		if got := c.must("POST", one+":set", `{"value": {"integer": "2"}}`); !strings.Contains(got, `"version":"1"`) {
			t.Errorf("%q: set %s", name, got)
		}
		c.must("PATCH", one, `{"history_limit": "3"}`)
		if got := c.must("GET", one+"/versions/1", ""); !strings.Contains(got, `"value":{"integer":"2"}`) {
			t.Errorf("%q: version %s", name, got)
		}
		if got := c.must("GET", "/v1/sessions/s:set/history?variable="+url.QueryEscape(name), ""); strings.Count(got, `"name"`) != 2 {
			t.Errorf("%q: history %s", name, got)
		}
		c.must("POST", one+":rollback", `{"version": 0}`)
		c.must("DELETE", one, "")
	}
}

// Both ends of a dependency are parts of its path, whatever they look like.
func TestRESTNamesOfDependencies(t *testing.T) {
	t.Parallel()
	c := startREST(t)
	c.must("POST", "/v1/sessions", `{"session_id": "s"}`)
	names := []string{"a", "a/b", "b/a", "/", "//", "dependencies", "a:set", ":", "50%", "a%2Fb", "日本", "a b", "a+b", "..", ".", "a?b", `"`}
	for _, name := range names {
		quoted, err := json.Marshal(name)
		if err != nil {
			t.Fatal(err)
		}
		c.must("POST", "/v1/sessions/s/variables",
			fmt.Sprintf(`{"name": %s, "type": "VARIABLE_TYPE_INTEGER", "value": {"integer": 1}}`, quoted))
	}
	escape := func(name string) string { return strings.ReplaceAll(url.PathEscape(name), ":", "%3A") }
	for i, name := range names {
		other := names[(i+1)%len(names)]
		body, err := json.Marshal(map[string]string{"dependent": name, "dependency": other})
		if err != nil {
			t.Fatal(err)
		}
		edge := "/v1/sessions/s/dependencies/" + escape(name) + "/" + escape(other)
		back := "/v1/sessions/s/dependencies/" + escape(other) + "/" + escape(name)
		c.must("POST", "/v1/sessions/s/dependencies", string(body))
		wantError(t, c.call("DELETE", back, ""), http.StatusNotFound, "DEPENDENCY_NOT_FOUND")
		quoted, err := json.Marshal(other)
		if err != nil {
			t.Fatal(err)
		}
		for _, list := range []string{"/dependencies", "/dependencies?transitive=true"} {
			got := c.must("GET", "/v1/sessions/s/variables/"+escape(name)+list, "")
			if !strings.Contains(got, `"name":`+string(quoted)+`,`) {
				t.Errorf("%q depends on %s, want %q", name, got, other)
			}
		}
		for _, list := range []string{"/dependents", "/updateOrder"} {
			if got := c.must("GET", "/v1/sessions/s/variables/"+escape(other)+list, ""); strings.Count(got, `"name"`) != 1 {
				t.Errorf("%s of %q: %s", list, other, got)
			}
		}
		c.must("DELETE", edge, "")
		wantError(t, c.call("DELETE", edge, ""), http.StatusNotFound, "DEPENDENCY_NOT_FOUND")
	}

	// Not encoded, a colon in either end is the name's.
	c.must("POST", "/v1/sessions/s/dependencies", `{"dependent": "a:set", "dependency": ":"}`)
	c.must("DELETE", "/v1/sessions/s/dependencies/a:set/:", "")
}

// What the graph refuses, as HTTP has it.
func TestRESTErrorsOfDependencies(t *testing.T) {
	t.Parallel()
	c := startREST(t)
	c.must("POST", "/v1/sessions", `{"session_id": "s"}`)
	const all, edges = "/v1/sessions/s/variables", "/v1/sessions/s/dependencies"
	for _, body := range []string{
		`{"name": "a", "type": "VARIABLE_TYPE_INTEGER", "value": {"integer": 1}}`,
		`{"name": "b", "type": "VARIABLE_TYPE_INTEGER", "value": {"integer": 1}, "depends_on": ["a"]}`,
		`{"name": "twice", "type": "VARIABLE_TYPE_INTEGER", "expression": "2 * a", "strict": true, "constraints": {"max": 10}}`,
	} {
		c.must("POST", all, body)
	}
	for name, row := range map[string]struct {
		method, path, body string
		code               int
		reason, message    string
	}{
		"cycle":              {"POST", edges, `{"dependent": "a", "dependency": "b"}`, 400, "WOULD_CREATE_CYCLE", `"path":"[\"a\",\"b\",\"a\"]"`},
		"self":               {"POST", edges, `{"dependent": "a", "dependency": "a"}`, 400, "WOULD_CREATE_CYCLE", `"path":"[\"a\",\"a\"]"`},
		"no dependent":       {"POST", edges, `{"dependent": "x", "dependency": "a"}`, 404, "VARIABLE_NOT_FOUND", `"variable":"x"`},
		"no dependency":      {"POST", edges, `{"dependent": "a", "dependency": "x"}`, 404, "VARIABLE_NOT_FOUND", `"variable":"x"`},
		"empty dependency":   {"POST", edges, `{"dependent": "a"}`, 400, "INVALID_REQUEST", `"field":"dependency"`},
		"other words":        {"POST", edges, `{"from": "a", "to": "b"}`, 400, "INVALID_REQUEST", "unknown field"},
		"edge that is none":  {"DELETE", edges + "/a/b", "", 404, "DEPENDENCY_NOT_FOUND", `"dependent":"a"`},
		"one end":            {"DELETE", edges + "/a", "", 404, "INVALID_REQUEST", `"field":"path"`},
		"an end too many":    {"DELETE", edges + "/b/a/a", "", 404, "INVALID_REQUEST", `"field":"path"`},
		"empty end":          {"DELETE", edges + "/b/", "", 400, "INVALID_REQUEST", `"field":"dependency"`},
		"used edge":          {"DELETE", edges + "/twice/a", "", 400, "DERIVED_VARIABLE", `"dependency":"a"`},
		"edges are no list":  {"GET", edges, "", 405, "INVALID_REQUEST", "this path takes POST"},
		"has dependents":     {"DELETE", all + "/a", "", 400, "HAS_DEPENDENTS", `"dependents":"[\"b\",\"twice\"]"`},
		"derived":            {"POST", all + "/twice:set", `{"value": {"integer": 3}}`, 400, "DERIVED_VARIABLE", `"variable":"twice"`},
		"strict":             {"POST", all + "/a:set", `{"value": {"integer": 6}}`, 400, "DERIVATION_FAILED", "above the maximum 10"},
		"no expression":      {"PATCH", all + "/twice", `{"expression": "2 *"}`, 400, "INVALID_EXPRESSION", `"variable":"twice"`},
		"long expression":    {"PATCH", all + "/b", `{"expression": "` + strings.Repeat("1", 4097) + `"}`, 400, "INVALID_REQUEST", `"field":"expression"`},
		"neither of the two": {"POST", all, `{"name": "x", "type": "VARIABLE_TYPE_INTEGER"}`, 400, "INVALID_REQUEST", `"field":"value"`},
		"page of the order":  {"GET", all + "/a/updateOrder?page_size=3", "", 400, "INVALID_REQUEST", "there is no parameter page_size"},
		"page too large":     {"GET", "/v1/sessions/s/graph?page_size=1001", "", 400, "INVALID_REQUEST", `"field":"page_size"`},
		"no boolean":         {"GET", all + "/a/dependents?transitive=very", "", 400, "INVALID_REQUEST", "transitive"},
		"foreign page token": {"GET", all + "/a/dependents?page_token=x", "", 400, "INVALID_REQUEST", `"field":"page_token"`},
		"no session":         {"GET", "/v1/sessions/t/graph", "", 404, "SESSION_NOT_FOUND", ""},
	} {
		t.Log(name)
		got := c.call(row.method, row.path, row.body)
		wantError(t, got, row.code, row.reason)
		if !strings.Contains(got.body, row.message) {
			t.Errorf("%s: %s lacks %s", name, got.body, row.message)
		}
	}
	if got := c.must("GET", "/v1/sessions/s", ""); !strings.Contains(got, `"revision":"3"`) {
		t.Errorf("the session after the refusals: %s", got)
	}
	// A deletion may cascade, unless a strict variable would be left without a value.
	wantError(t, c.call("DELETE", all+"/a?cascade=true", ""), http.StatusBadRequest, "DERIVATION_FAILED")
	c.must("PATCH", all+"/twice", `{"strict": false}`)
	if got := c.must("DELETE", all+"/a?cascade=true", ""); !strings.Contains(got, `"variable":"twice"`) {
		t.Errorf("deleted: %s", got)
	}
}

// leased starts an optimization and returns its id and its token.
func (c *caller) leased(session, body string) (string, string) {
	c.t.Helper()
	var o struct {
		ID    string `json:"optimization_id"`
		Token string `json:"fencing_token"`
	}
	if err := json.Unmarshal([]byte(c.must("POST", "/v1/sessions/"+session+"/optimizations", body)), &o); err != nil {
		c.t.Fatal(err)
	}
	return o.ID, o.Token
}

// What is refused because of leases, as HTTP has it.
func TestRESTErrorsOfOptimizations(t *testing.T) {
	t.Parallel()
	c := startREST(t)
	c.must("POST", "/v1/sessions", `{"session_id": "s"}`)
	const vars, opts = "/v1/sessions/s/variables", "/v1/sessions/s/optimizations"
	for _, name := range []string{"a", "b"} {
		c.must("POST", vars, `{"name": "`+name+`", "type": "VARIABLE_TYPE_INTEGER", "value": {"integer": 1}, "constraints": {"max": 9}}`)
	}
	id, token := c.leased("s", `{"variables": ["a"], "optimizer_id": "first"}`)
	one, none := opts+"/"+id, opts+"/opt_00000000000000000000000000"
	lease := "lease.optimization_id=" + id + "&lease.fencing_token="
	stale := `"lease": {"optimization_id": "` + id + `", "fencing_token": 9223372036854775807}`
	for name, row := range map[string]struct {
		method, path, body string
		code               int
		reason, message    string
	}{
		"taken":             {"POST", opts, `{"variables": ["b", "a"]}`, 400, "ALREADY_OPTIMIZING", `"optimizer_id":"first"`},
		"no variable":       {"POST", opts, `{"variables": ["b", "x"]}`, 404, "VARIABLE_NOT_FOUND", `"variable":"x"`},
		"no variables":      {"POST", opts, `{"variables": []}`, 400, "INVALID_REQUEST", `"field":"variables"`},
		"short ttl":         {"POST", opts, `{"variables": ["b"], "ttl": "0.5s"}`, 400, "INVALID_REQUEST", `"field":"ttl"`},
		"no duration":       {"POST", opts, `{"variables": ["b"], "ttl": "60"}`, 400, "INVALID_REQUEST", "body: "},
		"set without":       {"POST", vars + "/a:set", `{"value": {"integer": 2}}`, 400, "ALREADY_OPTIMIZING", id},
		"set with another":  {"POST", vars + "/a:set", `{"value": {"integer": 2}, ` + stale + `}`, 400, "LEASE_LOST", id},
		"constraints":       {"PATCH", vars + "/a", `{"constraints": {"max": 8}}`, 400, "ALREADY_OPTIMIZING", id},
		"delete without":    {"DELETE", vars + "/a", "", 400, "ALREADY_OPTIMIZING", id},
		"delete with other": {"DELETE", vars + "/a?" + lease + "9223372036854775807", "", 400, "LEASE_LOST", id},
		"report with other": {"POST", one + ":report", `{"fencing_token": "9223372036854775807"}`, 400, "LEASE_LOST", id},
		"force, no reason":  {"POST", one + ":stop", `{"force": true}`, 400, "INVALID_REQUEST", `"field":"reason"`},
		"stop as waiting":   {"POST", one + ":stop", `{"state": "OPTIMIZATION_STATE_WAITING"}`, 400, "INVALID_REQUEST", `"field":"state"`},
		"await none":        {"GET", none + ":await", "", 404, "OPTIMIZATION_NOT_FOUND", ""},
		"get none":          {"GET", none, "", 404, "OPTIMIZATION_NOT_FOUND", ""},
		"trials of none":    {"GET", none + "/trials", "", 404, "OPTIMIZATION_NOT_FOUND", ""},
		"status of none":    {"GET", vars + "/x/optimization", "", 404, "VARIABLE_NOT_FOUND", `"variable":"x"`},
		"no session":        {"GET", "/v1/sessions/t/optimizations", "", 404, "SESSION_NOT_FOUND", ""},
	} {
		t.Log(name)
		got := c.call(row.method, row.path, row.body)
		wantError(t, got, row.code, row.reason)
		if !strings.Contains(got.body, row.message) {
			t.Errorf("%s: %s lacks %s", name, got.body, row.message)
		}
	}
	// In the query as in the body, the lease is what allows it.
	c.must("POST", vars+"/a:set", `{"value": {"integer": 2}, "lease": {"optimization_id": "`+id+`", "fencing_token": `+token+`}}`)
	c.must("DELETE", vars+"/a?expected_version=1&"+lease+token, "")
}

// A message in a query is given field by field.
func TestRESTMessageInQuery(t *testing.T) {
	t.Parallel()
	c := startREST(t)
	const id = "lease.optimization_id=opt_00000000000000000000000000"
	for query, message := range map[string]string{
		id:                             `"field":"lease.fencing_token"`,
		"lease.fencing_token=1":        `"field":"lease.optimization_id"`,
		id + "&lease.fencing_token=x":  "fencing_token",
		id + "&lease.fencing_token=-1": `"field":"lease.fencing_token"`,
		"lease.optimizationId=opt_0":   `"field":"lease.optimization_id"`,
		id + "&lease.fencing_token=1&lease.fencingToken=2":  "duplicate",
		id + "&lease.fencing_token=1&lease.fencing_token=2": "too many values",
		"lease=1":                 "there is no parameter lease here",
		"lease.=1":                "there is no parameter lease. here",
		"lease.token=1":           "there is no parameter lease.token here",
		"lease.fencing_token.x=1": "there is no parameter lease.fencing_token.x here",
		"lease[fencing_token]=1":  "there is no parameter lease[fencing_token] here",
		"variable.x=1":            "there is no parameter variable.x here",
		".lease=1":                "there is no parameter .lease here",
	} {
		got := c.call("DELETE", "/v1/sessions/s/variables/a?"+query, "")
		wantError(t, got, http.StatusBadRequest, "INVALID_REQUEST")
		if !strings.Contains(got.body, message) {
			t.Errorf("%s: %s lacks %s", query, got.body, message)
		}
	}
	wantError(t, c.call("DELETE", "/v1/sessions/s/variables/a?"+id+"&lease.fencingToken=1", ""), http.StatusNotFound, "SESSION_NOT_FOUND")
}

// An answer without pages has its limit.
func TestRESTLimitOfTheUpdateOrder(t *testing.T) {
	t.Parallel()
	c := startREST(t, func(config *Config) { config.Limits.PageBytes = 500 })
	c.must("POST", "/v1/sessions", `{"session_id": "s"}`)
	const all = "/v1/sessions/s/variables"
	c.must("POST", all, `{"name": "a", "type": "VARIABLE_TYPE_INTEGER", "value": {"integer": 1}}`)
	for i := range 20 {
		c.must("POST", all, fmt.Sprintf(`{"name": "b%02d", "type": "VARIABLE_TYPE_INTEGER", "value": {"integer": 1}, "depends_on": ["a"]}`, i))
	}
	got := c.call("GET", all+"/a/updateOrder", "")
	wantError(t, got, http.StatusTooManyRequests, "LIMIT_EXCEEDED")
	if !strings.Contains(got.body, `"metadata":{"limit":"answer_bytes","value":"500"}`) {
		t.Errorf("got %s", got.body)
	}
	// What has pages goes on with the next one.
	seen, token := 0, ""
	for page := 0; page == 0 || token != ""; page++ {
		var graph struct {
			Nodes         []json.RawMessage
			NextPageToken string `json:"next_page_token"`
		}
		got := c.must("GET", "/v1/sessions/s/graph?page_token="+url.QueryEscape(token), "")
		if err := json.Unmarshal([]byte(got), &graph); err != nil {
			t.Fatal(err)
		}
		seen, token = seen+len(graph.Nodes), graph.NextPageToken
	}
	if seen != 21 {
		t.Errorf("the pages of the graph have %d variables, want 21", seen)
	}
}

// Not encoded, a name with a colon is a name where it is read or removed, and only a POST has verbs.
func TestRESTColonsAsTheyAre(t *testing.T) {
	t.Parallel()
	c := startREST(t)
	c.must("POST", "/v1/sessions", `{"session_id": "s"}`)
	const all = "/v1/sessions/s/variables"
	for _, name := range []string{"a", "a:set"} {
		c.must("POST", all, `{"name": "`+name+`", "type": "VARIABLE_TYPE_INTEGER", "value": {"integer": 1}}`)
	}
	if got := c.must("GET", all+"/a:set", ""); !strings.Contains(got, `"name":"a:set"`) {
		t.Errorf("got %s", got)
	}
	c.must("POST", all+"/a:set:set", `{"value": {"integer": 2}}`)
	if got := c.must("GET", all+"/a", ""); !strings.Contains(got, `"version":"0"`) {
		t.Errorf("the other one was set: %s", got)
	}
	c.must("DELETE", all+"/a:set", "")
	c.must("GET", all+"/a", "")
	wantError(t, c.call("POST", all+"/a:unset", "{}"), http.StatusMethodNotAllowed, "INVALID_REQUEST")
}

func TestRESTErrors(t *testing.T) {
	t.Parallel()
	c := startREST(t)
	c.must("POST", "/v1/sessions", `{"session_id": "s"}`)
	const a = "/v1/sessions/s/variables/a"
	c.must("POST", "/v1/sessions/s/variables",
		`{"name": "a", "type": "VARIABLE_TYPE_JSON", "value": {"json": {}}, "history_limit": 1}`)
	for name, row := range map[string]struct {
		method, path, body string
		code               int
		reason, message    string
	}{
		"not found":               {"GET", "/v1/sessions/s/variables/b", "", 404, "VARIABLE_NOT_FOUND", `"code":5`},
		"exists":                  {"POST", "/v1/sessions", `{"session_id": "s"}`, 409, "SESSION_EXISTS", ""},
		"mismatch":                {"POST", a + ":set", `{"value": {"json": 1}, "expected_version": "4"}`, 409, "VERSION_MISMATCH", `"current_version":"0"`},
		"out of range":            {"GET", a + "/versions/5", "", 400, "VERSION_NOT_AVAILABLE", ""},
		"rule of a field":         {"DELETE", a + "?expected_version=-1", "", 400, "INVALID_REQUEST", `"field":"expected_version"`},
		"no name":                 {"GET", "/v1/sessions/s/variables/", "", 400, "INVALID_REQUEST", `"field":"variable"`},
		"no session":              {"DELETE", "/v1/sessions/", "", 400, "INVALID_REQUEST", `"field":"session_id"`},
		"U+0000":                  {"GET", "/v1/sessions/s/variables/a%00", "", 400, "INVALID_REQUEST", "U+0000"},
		"path not UTF-8":          {"GET", "/v1/sessions/s/variables/%ff", "", 400, "INVALID_REQUEST", `"field":"variable"`},
		"query not UTF-8":         {"GET", "/v1/sessions?pattern=%ff", "", 400, "INVALID_REQUEST", `"field":"pattern"`},
		"query's name not UTF-8":  {"GET", "/v1/sessions?%ff=1", "", 400, "INVALID_REQUEST", `"field":"query"`},
		"query no query":          {"GET", "/v1/sessions?a;b", "", 400, "INVALID_REQUEST", `"field":"query"`},
		"unknown parameter":       {"DELETE", a + "?expect_version=3", "", 400, "INVALID_REQUEST", "there is no parameter expect_version"},
		"unknown where none is":   {"GET", a + "?page_size=3", "", 400, "INVALID_REQUEST", "there is no parameter page_size"},
		"parameter of the path":   {"GET", a + "?session_id=t", "", 400, "INVALID_REQUEST", "there is no parameter session_id"},
		"part of a parameter":     {"GET", "/v1/sessions/s/snapshot?time.seconds=1", "", 400, "INVALID_REQUEST", "time.seconds"},
		"parameter for the body":  {"POST", a + ":set?expected_version=0", `{"value": {"json": 1}}`, 400, "INVALID_REQUEST", "expected_version"},
		"parameter twice":         {"DELETE", a + "?reason=a&reason=b", "", 400, "INVALID_REQUEST", "too many values"},
		"two spellings":           {"DELETE", a + "?expected_version=0&expectedVersion=1", "", 400, "INVALID_REQUEST", "duplicate"},
		"no number":               {"GET", "/v1/sessions?page_size=x", "", 400, "INVALID_REQUEST", "page_size"},
		"no number in the path":   {"GET", a + "/versions/one", "", 400, "INVALID_REQUEST", "version"},
		"no such enum":            {"GET", "/v1/sessions/s/variables?types=FLOAT", "", 400, "INVALID_REQUEST", "types"},
		"body for the query":      {"DELETE", a, `{"expected_version": 3}`, 400, "INVALID_REQUEST", `"field":"body"`},
		"no JSON":                 {"POST", a + ":set", `{"value": `, 400, "INVALID_REQUEST", "body: "},
		"no object":               {"POST", a + ":set", `[]`, 400, "INVALID_REQUEST", "body: "},
		"null":                    {"POST", a + ":set", `null`, 400, "INVALID_REQUEST", "body: "},
		"form":                    {"POST", a + ":set", `value=1`, 400, "INVALID_REQUEST", "body: "},
		"not UTF-8":               {"POST", a + ":set", "{\"value\": {\"json\": \"\xff\"}}", 400, "INVALID_REQUEST", "body: "},
		"a second document":       {"POST", a + ":set", `{"value": {"json": 1}} {}`, 400, "INVALID_REQUEST", "body: "},
		"unknown field":           {"POST", a + ":set", `{"value": {"json": 1}, "expected": 3}`, 400, "INVALID_REQUEST", "unknown field"},
		"field twice":             {"POST", a + ":set", `{"value": {"json": 1}, "reason": "a", "reason": "b"}`, 400, "INVALID_REQUEST", "duplicate"},
		"other session":           {"POST", a + ":set", `{"value": {"json": 1}, "session_id": "t"}`, 400, "INVALID_REQUEST", "session_id is not"},
		"no body":                 {"POST", a + ":set", "", 400, "INVALID_REQUEST", `"field":"value"`},
		"blank body":              {"POST", a + ":set", "\n", 400, "INVALID_REQUEST", `"field":"value"`},
		"deep":                    {"POST", a + ":set", nestedJSON(5000), 400, "INVALID_REQUEST", ""},
		"deeper than a value may": {"POST", a + ":set", nestedJSON(31), 400, "INVALID_REQUEST", "30"},
		"no path":                 {"GET", "/v2/sessions", "", 404, "INVALID_REQUEST", `"field":"path"`},
		"no path of the API":      {"GET", "/v1/variables", "", 404, "INVALID_REQUEST", `"field":"path"`},
		"verb alone":              {"POST", "/v1/sessions/s/variables/:set", "{}", 405, "INVALID_REQUEST", `"field":"method"`},
		"no method":               {"PUT", a, "{}", 405, "INVALID_REQUEST", "DELETE, GET, PATCH"},
		"options":                 {"OPTIONS", "/v1/sessions", "", 405, "INVALID_REQUEST", "GET, POST"},
	} {
		t.Log(name)
		got := c.call(row.method, row.path, row.body)
		wantError(t, got, row.code, row.reason)
		if !strings.Contains(got.body, row.message) {
			t.Errorf("%s lacks %s", got.body, row.message)
		}
		allow := got.header.Get("Allow")
		if (allow != "") != (row.code == http.StatusMethodNotAllowed) || !strings.Contains(got.body, allow) {
			t.Errorf("Allow: %q", allow)
		}
	}
	// Nothing was written. What the path says the body may say too.
	got := c.must("POST", a+":set", `{"session_id": "s", "variable": "a", "value": {"json": 1}}`)
	if !strings.Contains(got, `"version":"1"`) {
		t.Errorf("the first version is %s", got)
	}
}

func nestedJSON(depth int) string {
	return `{"value": {"json": ` + strings.Repeat("[", depth) + strings.Repeat("]", depth) + `}}`
}

func TestRESTLimits(t *testing.T) {
	t.Parallel()
	c := startREST(t, func(config *Config) { config.Limits.ValueBytes = 1000 })
	c.must("POST", "/v1/sessions", `{"session_id": "s"}`)
	c.must("POST", "/v1/sessions/s/variables", `{"name": "a", "type": "VARIABLE_TYPE_STRING", "value": {"string": "x"}}`)
	const set = "/v1/sessions/s/variables/a:set"
	got := c.call("POST", set, `{"value": {"string": "`+strings.Repeat("x", 1001)+`"}}`)
	wantError(t, got, http.StatusTooManyRequests, "LIMIT_EXCEEDED")
	if got.header.Get("Retry-After") != "" {
		t.Error("another try would help as little")
	}
	blanks := func(n int64) io.Reader { return io.LimitReader(endless(' '), n) }
	got = c.send("POST", set, io.MultiReader(strings.NewReader(`{"value": {"string": "y"}}`), blanks(MaxMessageBytes)))
	wantError(t, got, http.StatusRequestEntityTooLarge, "LIMIT_EXCEEDED")
	if !strings.Contains(got.body, `"metadata":{"limit":"message_bytes","value":"67108864"}`) {
		t.Errorf("got %s", got.body)
	}
	document := `{"value": {"string": "y"}}`
	c.send("POST", set, io.MultiReader(strings.NewReader(document), blanks(MaxMessageBytes-int64(len(document)))))
	if got := c.must("GET", "/v1/sessions/s/variables/a", ""); !strings.Contains(got, `"value":{"string":"y"}`) {
		t.Errorf("as much as may be: %s", got)
	}

	got = c.send("POST", set, io.MultiReader(strings.NewReader(`{"value": {"json": [0`),
		io.LimitReader(endless(','), MaxMessageBytes/4+1), strings.NewReader(`]}}`)))
	wantError(t, got, http.StatusRequestEntityTooLarge, "LIMIT_EXCEEDED")

	// What is announced to be too large is not read.
	body := &untouched{}
	req, err := http.NewRequestWithContext(t.Context(), "POST", c.url+set, body)
	if err != nil {
		t.Fatal(err)
	}
	req.ContentLength = MaxMessageBytes + 1
	req.Header.Set("Expect", "100-continue")
	response, err := c.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if err := response.Body.Close(); err != nil || response.StatusCode != http.StatusRequestEntityTooLarge || body.touched {
		t.Errorf("answered %s, %v, read %t", response.Status, err, body.touched)
	}
}

func TestCountElements(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]int{
		``: 0, `[1,2,3]`: 2, `{"a,b":1,"c":","}`: 1, `["\",",1]`: 1, `["\\",1,","`: 2, `"\`: 0,
	} {
		if got := countElements([]byte(text)); got != want {
			t.Errorf("%s has %d, want %d", text, got, want)
		}
	}
}

type endless byte

func (e endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(e)
	}
	return len(p), nil
}

type untouched struct{ touched bool }

func (u *untouched) Read([]byte) (int, error) {
	u.touched = true
	return 0, io.EOF
}

func TestRESTHeaders(t *testing.T) {
	t.Parallel()
	c := startREST(t)
	got := c.call("POST", "/v1/sessions", `{"session_id": "s"}`, "Setpoint-Principal", "user:ada", "X-Request-Id", "mine")
	if !strings.Contains(got.body, `"owner":"user:ada"`) || got.header.Get("X-Request-Id") != "mine" {
		t.Errorf("got %s with %v", got.body, got.header)
	}
	for name, want := range map[string]string{
		"X-Request-Id": "mine", "Content-Type": "application/json", "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff",
	} {
		if diff := cmp.Diff([]string{want}, got.header.Values(name)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	for name := range got.header {
		if strings.HasPrefix(name, "Grpc") || strings.HasPrefix(name, "Access-Control") {
			t.Errorf("there is a header %s", name)
		}
	}
	wantError(t, c.call("GET", "/v1/sessions/s", "", "Setpoint-Principal", "ada"), 400, "INVALID_REQUEST")
	wantError(t, c.call("GET", "/v1/sessions/s", "", "Setpoint-Principal", ""), 400, "INVALID_REQUEST")
	// Left out, it would make the caller an administrator.
	wantError(t, c.call("GET", "/v1/sessions/s", "", "Setpoint-Principal", "user:ä"), 400, "INVALID_REQUEST")
	wantError(t, c.call("GET", "/v1/sessions/s", "", "Grpc-Timeout", "soon"), 400, "INVALID_REQUEST")
	if got := c.call("GET", "/v1/sessions/s", "", "Grpc-Timeout", "1n"); got.code != http.StatusGatewayTimeout {
		t.Errorf("after its time: %d %s", got.code, got.body)
	}
	got = c.call("GET", "/v1/sessions/s", "", "X-Request-Id", "not an id")
	if id := got.header.Get("X-Request-Id"); got.code != 200 || len(id) != 36 {
		t.Errorf("%d with id %q", got.code, id)
	}
	// A form that says it is a GET is a POST.
	got = c.call("POST", "/v1/sessions/s", "", "Content-Type", "application/x-www-form-urlencoded", "X-HTTP-Method-Override", "DELETE")
	wantError(t, got, http.StatusMethodNotAllowed, "INVALID_REQUEST")
	c.must("GET", "/v1/sessions/s", "")
}

func TestRESTWithoutDatabase(t *testing.T) {
	t.Parallel()
	c := startREST(t, func(config *Config) { config.Database = db.Config{URL: "postgres://nobody@127.0.0.1:1/none"} })
	got := c.call("GET", "/v1/sessions/s", "")
	wantError(t, got, http.StatusServiceUnavailable, "DATABASE_UNAVAILABLE")
	if after := got.header.Get("Retry-After"); after != "1" {
		t.Errorf("Retry-After: %q", after)
	}
}

// insideREST is REST before a gRPC server whose every call answers with what handle returns.
func insideREST(t *testing.T, log io.Writer, handle func(context.Context) (any, error)) *caller {
	t.Helper()
	server := grpc.NewServer(grpc.UnaryInterceptor(
		func(ctx context.Context, _ any, _ *grpc.UnaryServerInfo, _ grpc.UnaryHandler) (any, error) {
			return handle(ctx)
		}))
	setpointv1.RegisterSessionServiceServer(server, setpointv1.UnimplementedSessionServiceServer{})
	events, err := telemetry.New(slog.New(slog.NewTextHandler(log, nil)), nil)
	if err != nil {
		t.Fatal(err)
	}
	known, err := authenticate.New(authenticate.Config{Modes: []authenticate.Mode{authenticate.None}})
	if err != nil {
		t.Fatal(err)
	}
	r := &rest{grpc: server, guard: newGuard(known, events), tickets: &tickets{}, events: events}
	if err := r.open(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- r.serve() }()
	front := httptest.NewServer(r)
	t.Cleanup(func() {
		front.Close()
		r.close()
		if err := <-served; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			t.Error(err)
		}
	})
	return &caller{t: t, url: front.URL, client: front.Client(), server: &Server{rest: r}}
}

func TestRESTMetadata(t *testing.T) {
	t.Parallel()
	got := make(chan metadata.MD, 1)
	c := insideREST(t, io.Discard, func(ctx context.Context) (any, error) {
		md, _ := metadata.FromIncomingContext(ctx)
		got <- md
		return &setpointv1.Session{}, grpc.SetHeader(ctx, metadata.Pairs("secret", "s"))
	})
	answer := c.call("GET", "/v1/sessions/s", "", "Authorization", "Bearer t", "Setpoint-Principal", "user:ada", "X-Request-Id", "mine",
		"Cookie", "a=b", "Grpc-Metadata-Authorization", "Bearer other", "Grpc-Metadata-Setpoint-Principal", "user:eve", "TE", "trailers")
	if answer.header.Get("Secret") != "" || answer.header.Get("Grpc-Metadata-Secret") != "" {
		t.Errorf("headers: %v", answer.header)
	}
	md := <-got
	for name, want := range map[string][]string{
		"authorization": {"Bearer t"}, "setpoint-principal": {"user:ada"}, "x-request-id": {"mine"}, "cookie": nil,
		"grpcgateway-cookie": nil, "grpcgateway-authorization": nil,
	} {
		if diff := cmp.Diff(want, md.Get(name)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

// What has no reason because gRPC refused it below the interceptors.
func TestRESTErrorsWithoutReason(t *testing.T) {
	t.Parallel()
	for from, want := range map[codes.Code]struct {
		code   int
		reason string
	}{
		codes.Internal:          {500, "INTERNAL_ERROR"},
		codes.ResourceExhausted: {413, "LIMIT_EXCEEDED"},
		codes.InvalidArgument:   {400, "INVALID_REQUEST"},
		codes.Canceled:          {499, ""},
		codes.DeadlineExceeded:  {504, ""},
		codes.Unavailable:       {503, ""},
	} {
		t.Run(from.String(), func(t *testing.T) {
			t.Parallel()
			log := &strings.Builder{}
			c := insideREST(t, log, func(context.Context) (any, error) { return nil, status.Error(from, "mislaid") })
			got := c.call("GET", "/v1/sessions/s", "", "X-Request-Id", "mine")
			wantError(t, got, want.code, want.reason)
			if hidden := !strings.Contains(got.body, "mislaid"); from == codes.Internal &&
				(!hidden || !strings.Contains(got.body, `"request_id":"mine"`) || !strings.Contains(log.String(), "mislaid")) {
				t.Errorf("answered %s, logged %s", got.body, log)
			}
		})
	}
}

// Streams come as lines, the last of which may be an error.
func TestRESTStream(t *testing.T) {
	t.Parallel()
	c := insideREST(t, io.Discard, func(context.Context) (any, error) { return nil, errors.ErrUnsupported })
	r := c.server.rest
	left := []proto.Message{&setpointv1.Session{SessionId: "a"}, &setpointv1.Session{SessionId: "b"}}
	w := httptest.NewRecorder()
	ctx := runtime.NewServerMetadataContext(t.Context(), runtime.ServerMetadata{})
	req := httptest.NewRequestWithContext(ctx, http.MethodGet, "/", nil)
	runtime.ForwardResponseStream(ctx, r.gateway, form, w, req, func() (proto.Message, error) {
		if len(left) == 0 {
			return nil, &service.Error{Reason: setpointv1.ErrorReason_SESSION_NOT_FOUND, Message: "gone"}
		}
		next := left[0]
		left = left[1:]
		return next, nil
	})
	if kind := w.Header().Get("Content-Type"); kind != "application/x-ndjson" {
		t.Errorf("it comes as %s", kind)
	}
	lines := strings.Split(w.Body.String(), "\n")
	if len(lines) != 4 || lines[3] != "" {
		t.Fatalf("lines: %q", lines)
	}
	for i, want := range []string{`{"result":{"session_id":"a",`, `{"result":{"session_id":"b",`, `{"error":{"code":5,`} {
		if got := compact(t, []byte(lines[i])); !strings.HasPrefix(got, want) {
			t.Errorf("line %d: %s", i, got)
		}
	}
	var last struct{ Error json.RawMessage }
	if err := json.Unmarshal([]byte(lines[2]), &last); err != nil || reasonIn(t, string(last.Error)) != "SESSION_NOT_FOUND" {
		t.Errorf("last line %s, %v", lines[2], err)
	}
}

func TestCORS(t *testing.T) {
	t.Parallel()
	const allowed, other = "https://app.example.com", "https://other.example.com"
	off := startREST(t)
	on := startREST(t, func(config *Config) { config.CORSOrigins = []string{allowed, "http://127.0.0.1:8080"} })
	all := startREST(t, func(config *Config) { config.CORSOrigins = []string{AnyOrigin} })
	allow := func(r reply) string { return r.header.Get("Access-Control-Allow-Origin") }
	for name, row := range map[string]struct {
		c      *caller
		origin string
		allow  string
		writes bool
	}{
		"off":            {off, allowed, "", false},
		"on":             {on, allowed, allowed, true},
		"on for another": {on, other, "", false},
		"on for nobody":  {on, "null", "", false},
		"on for all":     {all, other, "*", true},
		"off, same site": {off, off.url, "", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := &caller{t: t, url: row.c.url, client: row.c.client}
			read := c.call("GET", "/v1/sessions", "", "Origin", row.origin)
			if read.code != 200 || allow(read) != row.allow {
				t.Errorf("read: %d, %v", read.code, read.header)
			}
			if row.c == on && !slices.Contains(read.header.Values("Vary"), "Origin") {
				t.Errorf("Vary: %v", read.header)
			}
			if exposed := read.header.Get("Access-Control-Expose-Headers"); row.allow != "" && exposed != "X-Request-Id, Retry-After" {
				t.Errorf("exposed: %s", exposed)
			}
			if got := c.call("GET", "/openapi.json", "", "Origin", row.origin); allow(got) != row.allow {
				t.Errorf("OpenAPI: %v", got.header)
			}
			// A page may send this without asking first.
			write := c.call("POST", "/v1/sessions", "{}", "Origin", row.origin, "Content-Type", "text/plain")
			if row.writes && (write.code != 200 || allow(write) != row.allow) {
				t.Errorf("write: %d %s", write.code, write.body)
			}
			if !row.writes {
				wantError(t, write, http.StatusForbidden, "INVALID_REQUEST")
			}
			ask := c.call("OPTIONS", "/v1/sessions/s/variables/a", "", "Origin", row.origin, "Access-Control-Request-Method", "PATCH",
				"Access-Control-Request-Headers", "authorization,content-type,setpoint-principal,x-request-id")
			if allow(ask) != row.allow || (ask.header.Get("Access-Control-Allow-Methods") == "PATCH") != (row.allow != "") {
				t.Errorf("asked: %d, %v", ask.code, ask.header)
			}
			if want := map[bool]int{false: 204, true: 405}[row.c == off]; ask.code != want {
				t.Errorf("asked: %d, want %d", ask.code, want)
			}
			ask = c.call("OPTIONS", "/v1/sessions", "", "Origin", row.origin, "Access-Control-Request-Method", "TRACE")
			if allow(ask) != "" {
				t.Errorf("asked for what is not there: %v", ask.header)
			}
			if probe := c.send("GET", "/metrics", nil, "Origin", row.origin); allow(probe) != row.allow && allow(probe) != "" {
				t.Errorf("metrics: %v", probe.header)
			}
		})
	}
}

func TestCheckOrigin(t *testing.T) {
	t.Parallel()
	for origin, good := range map[string]bool{
		"*": true, "https://example.com": true, "http://localhost:3000": true, "https://Example.com": true,
		"": false, "example.com": false, "null": false, "https://example.com/": false, "https://*.example.com": false,
		"https://example.com?a": false, "https://": false,
	} {
		if err := CheckOrigin(origin); (err == nil) != good {
			t.Errorf("%q: %v", origin, err)
		}
	}
	_, err := Start(t.Context(), Config{
		GRPCAddr: "127.0.0.1:0", HTTPAddr: "127.0.0.1:0", CORSOrigins: []string{"nowhere"},
		Database: db.Config{URL: "postgres://h"}, Log: slog.New(slog.DiscardHandler),
	})
	if err == nil {
		t.Error("a site that is none was allowed")
	}
}

// The rules that keep names from being read as verbs, and parameters from going unheeded.
func TestRoutes(t *testing.T) {
	t.Parallel()
	routes := newRoutes()
	byRPC := make(map[protoreflect.FullName][]route)
	for _, r := range routes {
		byRPC[r.rpc] = append(byRPC[r.rpc], r)
	}
	for _, rpc := range rpcs() {
		rule := proto.GetExtension(rpc.Options(), annotations.E_Http).(*annotations.HttpRule)
		if found := len(byRPC[rpc.FullName()]); rule == nil || found != 1+len(rule.GetAdditionalBindings()) {
			t.Errorf("%s has %d paths", rpc.FullName(), found)
		}
		for _, r := range byRPC[rpc.FullName()] {
			checkRoute(t, rpc, r, byRPC)
		}
	}
}

func checkRoute(t *testing.T, rpc protoreflect.MethodDescriptor, r route, byRPC map[protoreflect.FullName][]route) {
	t.Helper()
	rules := []*annotations.HttpRule{proto.GetExtension(rpc.Options(), annotations.E_Http).(*annotations.HttpRule)}
	for _, rule := range append(rules, rules[0].GetAdditionalBindings()...) {
		verb := strings.Contains(r.template, ":")
		switch {
		case !strings.HasPrefix(r.template, "/v1/") || strings.ContainsAny(r.template, "*="):
			t.Errorf("%s: %s is not a path below /v1/ with a part for each parameter", r.rpc, r.template)
		case rule.GetResponseBody() != "":
			t.Errorf("%s has a part of its answer", r.rpc)
		case r.body != slices.Contains([]string{http.MethodPost, http.MethodPut, http.MethodPatch}, r.method) || !r.body && rule.GetBody() != "":
			t.Errorf("%s: the body of a POST, PUT or PATCH is the request, and nothing else has one", r.rpc)
		case verb && r.method != http.MethodPost && !hasNoColon(r):
			t.Errorf("%s: %s would take names that end like the verb", r.rpc, r.template)
		case verb && isShadowed(rpc, r, byRPC):
			t.Errorf("%s has to come after the RPC without its verb in the .proto file: the gateway tries the last one first, "+
				"and that one would take the verb for a part of its parameter", r.rpc)
		case !verb && r.method == http.MethodPost && strings.HasSuffix(r.template, "}"):
			t.Errorf("%s: verbs would take names from %s", r.rpc, r.template)
		}
	}
}

// hasNoColon tells whether the parameter before a route's verb is one that has no colon.
func hasNoColon(r route) bool {
	name := r.template[strings.LastIndex(r.template, "{")+1 : strings.LastIndex(r.template, "}")]
	rules, _ := proto.GetExtension(r.fields.ByName(protoreflect.Name(name)).Options(), validate.E_Field).(*validate.FieldRules)
	pattern := rules.GetString().GetPattern()
	return strings.HasPrefix(pattern, "^") && strings.HasSuffix(pattern, "$") && !strings.ContainsAny(pattern, ":.\\")
}

// isShadowed tells whether another RPC of the service, of the same path but for the verb, is found first.
func isShadowed(rpc protoreflect.MethodDescriptor, r route, byRPC map[protoreflect.FullName][]route) bool {
	path, _, _ := strings.Cut(r.template, ":")
	methods := rpc.Parent().(protoreflect.ServiceDescriptor).Methods()
	for i := rpc.Index() + 1; i < methods.Len(); i++ {
		for _, other := range byRPC[methods.Get(i).FullName()] {
			if other.method == r.method && other.template == path {
				return true
			}
		}
	}
	return false
}

func TestOpenAPI(t *testing.T) {
	t.Parallel()
	w := httptest.NewRecorder()
	openAPI(w, nil)
	var document openapi2.T
	if err := json.Unmarshal(w.Body.Bytes(), &document); err != nil {
		t.Fatal(err)
	}
	converted, err := openapi2conv.ToV3(&document)
	if err != nil {
		t.Fatal(err)
	}
	if err := converted.Validate(t.Context()); err != nil {
		t.Error(err)
	}
	wantMore := map[string][]string{"AccessService_ListAuditEvents": {"AccessService_ListAuditEvents2"}} // Of two paths.
	for _, r := range newRoutes() {
		at := document.Paths[r.template]
		if at == nil || at.Operations()[r.method] == nil {
			t.Errorf("%s is not at %s %s", r.rpc, r.method, r.template)
			continue
		}
		operation := at.Operations()[r.method]
		want := string(r.rpc.Parent().Name()) + "_" + string(r.rpc.Name())
		if id := operation.OperationID; id != want && !slices.Contains(wantMore[want], id) {
			t.Errorf("%s %s is %s, want %s", r.method, r.template, id, want)
		}
		if failure := operation.Responses.Value("default"); failure == nil || failure.Schema.Ref != "#/definitions/google.rpc.Status" {
			t.Errorf("%s does not fail with a google.rpc.Status", r.rpc)
		}
	}
}

// halfBody is a body whose rest is kept back. Its first part is asked for when the server reads it.
type halfBody struct {
	asked chan struct{}
	rest  chan string
	parts int
}

func (b *halfBody) Read(p []byte) (int, error) {
	b.parts++
	if b.parts == 1 {
		close(b.asked)
		return copy(p, `{"session_id": `), nil
	}
	text, ok := <-b.rest
	if !ok {
		return 0, io.EOF
	}
	return copy(p, text), nil
}

// startHalf sends a request that the server has begun to read when startHalf returns.
func (c *caller) startHalf() (*halfBody, chan error) {
	c.t.Helper()
	body := &halfBody{asked: make(chan struct{}), rest: make(chan string, 1)}
	req, err := http.NewRequestWithContext(c.t.Context(), "POST", c.url+"/v1/sessions", body)
	if err != nil {
		c.t.Fatal(err)
	}
	req.Header.Set("Expect", "100-continue")
	ended := make(chan error, 1)
	go func() {
		response, err := c.client.Do(req)
		if err == nil {
			_, err = io.Copy(io.Discard, response.Body)
			err = errors.Join(err, response.Body.Close())
			if response.StatusCode != http.StatusOK {
				err = errors.New(response.Status)
			}
		}
		ended <- err
	}()
	<-body.asked
	return body, ended
}

// Requests under way end before the server does.
func TestRESTDrain(t *testing.T) {
	t.Parallel()
	c := startREST(t, func(config *Config) { config.DrainTimeout = time.Minute })
	body, ended := c.startHalf()
	stopped := make(chan struct{})
	go func() {
		c.stop()
		close(stopped)
	}()
	for { // Until nothing new is taken.
		conn, err := net.Dial("tcp", c.server.HTTPAddr())
		if err != nil {
			break
		}
		_ = conn.Close()
	}
	body.rest <- `"s"}`
	close(body.rest)
	if err := <-ended; err != nil {
		t.Error(err)
	}
	<-stopped
}

// Those that do not end are cut off.
func TestRESTCut(t *testing.T) {
	t.Parallel()
	c := startREST(t, func(config *Config) { config.DrainTimeout = 50 * time.Millisecond })
	body, ended := c.startHalf()
	c.stop()
	close(body.rest)
	if err := <-ended; err == nil {
		t.Error("it was answered without being whole")
	}
}
