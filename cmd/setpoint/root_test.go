package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"maps"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

func TestFailures(t *testing.T) {
	t.Parallel()
	invalid, err := status.New(codes.InvalidArgument, "the request is malformed").WithDetails(
		&errdetails.ErrorInfo{Domain: "setpoint", Reason: "INVALID_REQUEST"},
		&errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{
			{Field: "ttl", Description: "must be 0 or more"}}})
	if err != nil {
		t.Fatal(err)
	}
	mismatch := refusal(t, codes.InvalidArgument, "TYPE_MISMATCH", "greeting: a number is no string")
	tests := []struct {
		name string
		err  error
		args string
		want string
	}{
		{"a reason", refusal(t, codes.Aborted, "VERSION_MISMATCH", "temperature is at version 3"),
			"var set temperature 1 --expected-version 2", "error: VERSION_MISMATCH: temperature is at version 3\n"},
		{"a reason of a newer server", refusal(t, codes.Aborted, "LATER_INVENTED", "so there"),
			"var get temperature", "error: LATER_INVENTED: so there\n"},
		{"a message of several lines", refusal(t, codes.Internal, "INTERNAL_ERROR", "one\ntwo\x1b[31m"),
			"var get temperature", "error: INTERNAL_ERROR: one\\ntwo\\x1b[31m\n"},
		{"a code without a reason", status.Error(codes.Unimplemented, "no such method"),
			"session list", "error: UNIMPLEMENTED: no such method\n"},
		{"fields", invalid.Err(), "session get x",
			"error: INVALID_REQUEST: the request is malformed; ttl: must be 0 or more\n"},
		{"a number for a string", mismatch, "var set greeting 5",
			"error: TYPE_MISMATCH: greeting: a number is no string (to send text, quote it: '\"5\"', or add --text)\n"},
		{"true for a string", mismatch, "var set greeting true",
			"error: TYPE_MISMATCH: greeting: a number is no string (to send text, quote it: '\"true\"', or add --text)\n"},
		{"an object for a string", mismatch, "var set greeting {}",
			"error: TYPE_MISMATCH: greeting: a number is no string\n"},
		{"a great integer for a float", mismatch, "var set greeting 9007199254740993",
			"error: TYPE_MISMATCH: greeting: a number is no string (to send a float, write 9007199254740993.0)\n"},
		{"no credentials", refusal(t, codes.Unauthenticated, "CREDENTIALS_MISSING", "the call has no token"), "session list",
			"error: CREDENTIALS_MISSING: the call has no token (--token-file, or SETPOINT_TOKEN_FILE, names a file with a token)\n"},
		{"bad credentials", refusal(t, codes.Unauthenticated, "CREDENTIALS_INVALID", "the token is unknown"), "session list",
			"error: CREDENTIALS_INVALID: the token is unknown\n"},
		{"no permission", refusal(t, codes.PermissionDenied, "ACCESS_DENIED", "user:bob may not write temperature"), "var set temperature 1",
			"error: ACCESS_DENIED: user:bob may not write temperature\n"},
		{"no such rule", refusal(t, codes.NotFound, "RULE_NOT_FOUND", "so not"), "acl remove " + bobsRule, "error: RULE_NOT_FOUND: so not\n"},
		{"no such token", refusal(t, codes.NotFound, "TOKEN_NOT_FOUND", "so not"), "token revoke " + adasToken, "error: TOKEN_NOT_FOUND: so not\n"},
		{"no subject", invalid.Err(), "acl allow bob read", "error: INVALID_REQUEST: the request is malformed; ttl: must be 0 or more\n"},
		{"a check that fails", refusal(t, codes.NotFound, "SESSION_NOT_FOUND", "no session"), "acl check me read",
			"error: SESSION_NOT_FOUND: no session\n"},
		{"the database away", refusal(t, codes.Unavailable, "DATABASE_UNAVAILABLE", "no database"),
			"var get temperature", "error: DATABASE_UNAVAILABLE: no database\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := newPeer(t, always(nil, tt.err))
			for _, output := range []string{"table", "json"} {
				got := p.setpoint(t, append(strings.Fields(tt.args), "-o", output)...)
				if diff := cmp.Diff(result{status: 1, err: tt.want}, got, cmp.AllowUnexported(result{})); diff != "" {
					t.Errorf("-o %s (-want +got):\n%s", output, diff)
				}
			}
		})
	}
}

func TestUnreachable(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := listener.Addr().String()
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	got := invocation{args: []string{"--addr", addr, "var", "get", "x"}}.run(t)
	want := "error: UNREACHABLE: no server answers at " + addr
	if got.status != 1 || !strings.HasPrefix(got.err, want) || strings.Count(got.err, "\n") != 1 || got.out != "" {
		t.Errorf("got %+v, want %q…", got, want)
	}
}

// A listener that never speaks HTTP/2 is no server either, though it accepts.
func TestSilentListenerIsUnreachable(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	got := invocation{args: []string{"--addr", listener.Addr().String(), "--timeout", "100ms", "var", "get", "x"}}.run(t)
	if got.status != 1 || !strings.HasPrefix(got.err, "error: UNREACHABLE: ") {
		t.Errorf("got %+v", got)
	}
}

func TestWrongUsage(t *testing.T) {
	t.Parallel()
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	twoLines := filepath.Join(t.TempDir(), "two")
	if err := os.WriteFile(twoLines, []byte("one\ntwo\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		args []string
		want string // within the line
		help string // the command whose help it names
	}{
		{[]string{"nope"}, `unknown command "nope"`, "setpoint"},
		{[]string{"var", "gett"}, "did you mean get or set?", "setpoint var"},
		{[]string{"var", "get"}, "takes NAME; no arguments given", "setpoint var get"},
		{[]string{"var", "get", "a", "b"}, "takes NAME; 2 arguments given", "setpoint var get"},
		{[]string{"version", "a"}, `takes no arguments, not "a"`, "setpoint version"},
		{[]string{"var", "get", "a", "--nope"}, "unknown flag: --nope", "setpoint var get"},
		{[]string{"var", "get", "a", "-x"}, "unknown shorthand flag", "setpoint var get"},
		{[]string{"var", "get", "a", "-o", "yaml"}, `not "yaml"`, "setpoint var get"},
		{[]string{"var", "get", "a", "--timeout", "soon"}, "invalid duration", "setpoint var get"},
		{[]string{"var", "get", "a", "--timeout", "-1s"}, "negative", "setpoint var get"},
		{[]string{"var", "get", "a", "--addr", ""}, "address is empty", "setpoint var get"},
		{[]string{"var", "get", "a", "--token", "t", "--token-file", empty}, "not both", "setpoint var get"},
		{[]string{"var", "get", "a", "--token-file", empty}, "token is empty", "setpoint var get"},
		{[]string{"var", "get", "a", "--token", "t", "--addr", "10.0.0.1:7420"}, "add --tls", "setpoint var get"},
		{[]string{"var", "get", "a", "--token-file", empty + "x"}, "USAGE: cannot read token file " + empty + "x: no such file", "setpoint var get"},
		{[]string{"var", "get", "a", "--token-file", twoLines}, "it has more than one line", "setpoint var get"},
		{[]string{"var", "get", "a", "--token-file", filepath.Dir(empty)}, "is a directory", "setpoint var get"},
		{[]string{"var", "get", "a", "--token-file", ""}, "--token-file is the name of a file", "setpoint var get"},
		{[]string{"var", "get", "a", "--token", ""}, "--token is empty", "setpoint var get"},
		{[]string{"var", "get", "a", "--token", "a\nb"}, "printable ASCII", "setpoint var get"},
		{[]string{"var", "get", "a", "--ca-cert", empty}, "no certificate", "setpoint var get"},
		{[]string{"var", "get", "a", "--ca-cert", empty + "x"}, "no such file", "setpoint var get"},
		{[]string{"var", "get", "a", "--cert", empty}, "--cert and --key", "setpoint var get"},
		{[]string{"var", "get", "a", "--key", empty}, "--cert and --key", "setpoint var get"},
		{[]string{"var", "get", "a", "--cert", empty + "x", "--key", empty}, "no such file", "setpoint var get"},
		{[]string{"var", "get", "a", "--cert", empty, "--key", empty}, "client certificate", "setpoint var get"},
		{[]string{"var", "get", "a", "--tls=false", "--ca-cert", empty}, "--tls=false contradicts", "setpoint var get"},
		{[]string{"var", "register", "a", "float", "1", "--access", "open"}, "private, protected or public, not", "setpoint var register"},
		{[]string{"var", "register", "a", "float", "1", "--access", "unspecified"}, "private, protected or public, not", "setpoint var register"},
		{[]string{"var", "update", "a", "--access", ""}, "private, protected or public, not", "setpoint var update"},
		{[]string{"acl", "allow", "user:bob"}, "takes SUBJECT PERMISSION...; 1 argument given", "setpoint acl allow"},
		{[]string{"acl", "allow", "user:bob", "raed"}, "the permissions are read, write, observe, optimize, admin", "setpoint acl allow"},
		{[]string{"acl", "allow", "user:bob", "unspecified"}, "no permission", "setpoint acl allow"},
		{[]string{"acl", "deny", "user:bob", "read,wrt"}, `no permission "wrt"`, "setpoint acl deny"},
		{[]string{"acl", "deny", "user:bob", "read,"}, `no permission ""`, "setpoint acl deny"},
		{[]string{"acl", "deny", "user:bob", "read,write", "read"}, "read is given twice", "setpoint acl deny"},
		{[]string{"acl", "allow", "user:bob", "read", "--expires", "-3h"}, "--expires -3h is no time to come", "setpoint acl allow"},
		{[]string{"token", "create", "user:bob", "--expires", "0"}, "--expires 0 is no time to come", "setpoint token create"},
		{[]string{"acl", "allow", "user:bob", "read", "--priority", "99999999999"},
			"--priority 99999999999 is out of range: it is from -2147483648 to 2147483647;", "setpoint acl allow"},
		{[]string{"acl", "allow", "user:bob", "read", "--priority", "high"}, `--priority "high" is no number`, "setpoint acl allow"},
		{[]string{"acl", "deny", "user:bob", "read", "READ"}, "read is given twice", "setpoint acl deny"},
		{[]string{"acl", "allow", "user:bob", "read", "--on", ""}, "--on is the name of a variable", "setpoint acl allow"},
		{[]string{"acl", "allow", "user:bob", "read", "--expires", "soon"}, "neither for how long nor a time", "setpoint acl allow"},
		{[]string{"acl", "allow", "user:bob", "read", "--expires", "30d"}, "neither for how long nor a time", "setpoint acl allow"},
		{[]string{"acl", "allow", "user:bob", "read", "--expires", ""}, "neither for how long nor a time", "setpoint acl allow"},
		{[]string{"acl", "allow", "user:bob", "read", "--priority", "high"}, "--priority", "setpoint acl allow"},
		{[]string{"acl", "list", "--on", ""}, "--on is the name of a variable", "setpoint acl list"},
		{[]string{"acl", "list", "x"}, "takes no arguments", "setpoint acl list"},
		{[]string{"acl", "remove"}, "takes RULE...; no arguments given", "setpoint acl remove"},
		{[]string{"acl", "remove", bobsRule, "rule_1"}, "a rule is rule_ and 26 small letters", "setpoint acl remove"},
		{[]string{"acl", "remove", bobsRule, opsRule, "--request-id", "once"}, "for one RULE", "setpoint acl remove"},
		{[]string{"acl", "replace", "a"}, "give the rules --from a FILE", "setpoint acl replace"},
		{[]string{"acl", "replace", "a", "--from", empty + "x"}, "no such file", "setpoint acl replace"},
		{[]string{"acl", "check", "user:bob"}, "takes SUBJECT PERMISSION...", "setpoint acl check"},
		{[]string{"acl", "check", "", "read"}, "SUBJECT is empty", "setpoint acl check"},
		{[]string{"acl", "check", "me", "reed"}, "no permission", "setpoint acl check"},
		{[]string{"acl", "check", "me", "read", "--group", "group:ops"}, "another SUBJECT than me", "setpoint acl check"},
		{[]string{"acl", "check", "me", "read", "--on", "a", "--on", ""}, "--on is the name of a variable", "setpoint acl check"},
		{[]string{"acl", "audit", "--kind", "x"}, "the kinds are access_denied, rule_added, rule_removed,", "setpoint acl audit"},
		{[]string{"acl", "audit", "--since", "yesterday"}, "--since \"yesterday\" is no time", "setpoint acl audit"},
		{[]string{"acl", "audit", "--until", ""}, "--until \"\" is no time", "setpoint acl audit"},
		{[]string{"acl", "audit", "--limit", "-1"}, "negative", "setpoint acl audit"},
		{[]string{"acl", "audit", "--session", "s", "--all-sessions"}, "not both", "setpoint acl audit"},
		{[]string{"token", "create"}, "takes PRINCIPAL; no arguments given", "setpoint token create"},
		{[]string{"token", "create", "user:ada", "--permission", "all"}, "no permission", "setpoint token create"},
		{[]string{"token", "create", "user:ada", "--expires", "next week"}, "neither for how long nor a time", "setpoint token create"},
		{[]string{"token", "create", "user:ada", "--out", ""}, "--out is the name of a file", "setpoint token create"},
		{[]string{"token", "create", "user:ada", "--database-url", "postgres://x"}, "--database-url is for --bootstrap", "setpoint token create"},
		{[]string{"token", "create", "user:ada", "--bootstrap"}, "--database-url is required", "setpoint token create"},
		{[]string{"token", "create", "user:ada", "--bootstrap", "--database-url", "@" + empty + "x"}, "no such file", "setpoint token create"},
		{[]string{"token", "revoke"}, "takes ID...; no arguments given", "setpoint token revoke"},
		{[]string{"token", "revoke", "tok_1"}, "a token's id is tok_ and 26 small letters", "setpoint token revoke"},
		{[]string{"var", "set", "a", "1", "--expected-version", "x"}, "--expected-version", "setpoint var set"},
		{[]string{"var", "set", "a", "1e400"}, "1e400", "setpoint var set"},
		{[]string{"var", "set", "a", "[1"}, "begins like JSON", "setpoint var set"},
		{[]string{"var", "set", "a", "@" + empty + "x"}, "no such file", "setpoint var set"},
		{[]string{"var", "set", "a", "\xff"}, "UTF-8", "setpoint var set"},
		{[]string{"var", "set", "a", "1", "--metadata", "x"}, "KEY=VALUE", "setpoint var set"},
		{[]string{"var", "set", "a", "1", "--metadata", "x=1", "--metadata", "x=2"}, "twice", "setpoint var set"},
		{[]string{"var", "set", "a", "1", "--metadata", "x=1", "--clear-metadata"}, "not both", "setpoint var set"},
		{[]string{"var", "register", "a", "flaot", "1"}, "the types are boolean, integer, float,", "setpoint var register"},
		{[]string{"var", "register", "a", "unspecified", "1"}, "no type", "setpoint var register"},
		{[]string{"var", "register", "a", "float", "1", "--min", "low"}, "--min", "setpoint var register"},
		{[]string{"var", "register", "a", "json", "1", "--json-schema", "7"}, "not a JSON object", "setpoint var register"},
		{[]string{"var", "register", "a", "float"}, "give a VALUE or --expression", "setpoint var register"},
		{[]string{"var", "register", "a", "float", "1", "--strict"}, "--strict is for --expression", "setpoint var register"},
		{[]string{"var", "update", "a"}, "nothing to change", "setpoint var update"},
		{[]string{"var", "update", "a", "--depends-on", "b", "--clear-depends-on"}, "not both", "setpoint var update"},
		{[]string{"dep", "add", "a"}, "takes FROM TO; 1 argument given", "setpoint dep add"},
		{[]string{"dep", "list"}, "takes NAME; no arguments given", "setpoint dep list"},
		{[]string{"dep", "graph", "-o", "png"}, `--output is table, json, dot or svg, not "png"`, "setpoint dep graph"},
		{[]string{"dep", "list", "a", "-o", "dot"}, `--output is table or json, not "dot"`, "setpoint dep list"},
		{[]string{"var", "list", "--type", "x"}, "no type", "setpoint var list"},
		{[]string{"history", "get", "a", "-1"}, "VERSION is a whole number", "setpoint history get"},
		{[]string{"history", "rollback", "a", "one"}, "VERSION is a whole number", "setpoint history rollback"},
		{[]string{"history", "list", "--limit", "-1"}, "negative", "setpoint history list"},
		{[]string{"history", "list", "--change", "x"}, "registered, set, rolled_back, updated, deleted", "setpoint history list"},
		{[]string{"session", "create", "a", "--ttl", "1"}, "--ttl", "setpoint session create"},
		{[]string{"opt", "start"}, "takes NAME...; no arguments given", "setpoint opt start"},
		{[]string{"opt", "start", "a", "--conflict", "fight"}, "abort, wait or preempt, not", "setpoint opt start"},
		{[]string{"opt", "start", "a", "--conflict", "unspecified"}, "abort, wait or preempt, not", "setpoint opt start"},
		{[]string{"opt", "start", "a", "--max-wait", "1m"}, "--max-wait is for --conflict wait or preempt", "setpoint opt start"},
		{[]string{"opt", "start", "a", "--conflict", "wait", "--grace", "1s"}, "--grace is for --conflict preempt", "setpoint opt start"},
		{[]string{"opt", "start", "a", "--direction", "minimize"}, "--direction is for --objective", "setpoint opt start"},
		{[]string{"opt", "start", "a", "--objective", ""}, "--objective is the name of a metric", "setpoint opt start"},
		{[]string{"opt", "start", "a", "--objective", "", "--direction", "minimize"}, "--objective is the name of a metric", "setpoint opt start"},
		{[]string{"opt", "start", "a", "--objective", "m", "--direction", "up"}, "maximize or minimize, not", "setpoint opt start"},
		{[]string{"opt", "start", "a", "--config", "7"}, "--config is not a JSON object", "setpoint opt start"},
		{[]string{"opt", "start", "a", "--config", "{"}, "begins like JSON", "setpoint opt start"},
		{[]string{"opt", "start", "a", "--config", "@" + empty + "x"}, "no such file", "setpoint opt start"},
		{[]string{"opt", "start", "a", "--ttl", "60"}, "--ttl", "setpoint opt start"},
		{[]string{"opt", "renew", "opt_1:7"}, "an optimization is opt_ and 26 small letters and digits", "setpoint opt renew"},
		{[]string{"opt", "renew", tunerID + ":"}, "a whole number from 1 as its TOKEN", "setpoint opt renew"},
		{[]string{"opt", "report"}, "takes LEASE [NAME=VALUE...]; no arguments given", "setpoint opt report"},
		{[]string{"opt", "report", tunerID}, "lacks the token that 'setpoint opt start' printed", "setpoint opt report"},
		{[]string{"opt", "report", tunerID + ":0"}, "a whole number from 1 as its TOKEN", "setpoint opt report"},
		{[]string{"opt", "report", tunerID + ":99999999999999999999"}, "a whole number from 1 as its TOKEN", "setpoint opt report"},
		{[]string{"opt", "report", tunerLease, "lr"}, "a value is NAME=VALUE", "setpoint opt report"},
		{[]string{"opt", "report", tunerLease, "=1"}, "a value is NAME=VALUE", "setpoint opt report"},
		{[]string{"opt", "report", tunerLease, "lr=1", "lr=2"}, "two values", "setpoint opt report"},
		{[]string{"opt", "report", tunerLease, "lr=-", "b=-"}, "for one - only", "setpoint opt report"},
		{[]string{"opt", "report", tunerLease, "lr=-", "--checkpoint", "-"}, "for one - only", "setpoint opt report"},
		{[]string{"opt", "report", tunerLease, "lr=[1"}, "begins like JSON", "setpoint opt report"},
		{[]string{"opt", "report", tunerLease, "--metric", "loss"}, "NAME=NUMBER", "setpoint opt report"},
		{[]string{"opt", "report", tunerLease, "--metric", "=1"}, "NAME=NUMBER", "setpoint opt report"},
		{[]string{"opt", "report", tunerLease, "--metric", "loss=low"}, "is a number, NaN, Infinity or -Infinity", "setpoint opt report"},
		{[]string{"opt", "report", tunerLease, "--metric", "loss=1e400"}, "is a number", "setpoint opt report"},
		{[]string{"opt", "report", tunerLease, "--metric", "a=1", "--metric", "a=1"}, "twice", "setpoint opt report"},
		{[]string{"opt", "report", tunerLease}, "nothing to report", "setpoint opt report"},
		{[]string{"opt", "report", tunerLease, "--number", "3", "--step", "1", "--note", ""}, "nothing to report", "setpoint opt report"},
		{[]string{"opt", "report", tunerLease, "--step", "3"}, "--step needs the --number", "setpoint opt report"},
		{[]string{"opt", "report", tunerLease, "--checkpoint", "state"}, "@FILE, or - for standard input", "setpoint opt report"},
		{[]string{"opt", "report", tunerLease, "--checkpoint", "@" + empty}, "is empty", "setpoint opt report"},
		{[]string{"opt", "report", tunerLease, "--checkpoint", "@" + empty + "x"}, "no such file", "setpoint opt report"},
		{[]string{"opt", "stop", tunerLease + ":1"}, "a whole number from 1 as its TOKEN", "setpoint opt stop"},
		{[]string{"opt", "stop", tunerID, "--state", "expired"}, "completed, failed or cancelled, not", "setpoint opt stop"},
		{[]string{"opt", "stop", tunerID, "--force"}, "--force needs a --reason", "setpoint opt stop"},
		{[]string{"opt", "get", "var_1"}, "an optimization is opt_", "setpoint opt get"},
		{[]string{"opt", "list", "--state", "busy"}, "the states are waiting, active, preempting, completed,", "setpoint opt list"},
		{[]string{"opt", "list", "--limit", "-1"}, "negative", "setpoint opt list"},
		{[]string{"opt", "trials", tunerID, "--limit", "-1"}, "negative", "setpoint opt trials"},
		{[]string{"opt", "trials", tunerID, "--direction", "minimize"}, "--direction is for --metric", "setpoint opt trials"},
		{[]string{"opt", "trials", tunerID, "--metric", "m", "--direction", "up"}, "maximize or minimize", "setpoint opt trials"},
		{[]string{"opt", "trials", tunerID, "--metric", "m", "--intermediate"}, "not both", "setpoint opt trials"},
		{[]string{"var", "set", "a", "1", "--lease", "mine"}, "an optimization is opt_", "setpoint var set"},
		{[]string{"var", "set", "a", "1", "--lease", tunerID}, "lacks the token", "setpoint var set"},
		{[]string{"var", "delete", "a", "--lease", tunerID + ":x"}, "a whole number from 1", "setpoint var delete"},
		{[]string{"var", "update", "a", "--lease", tunerLease}, "nothing to change", "setpoint var update"},
		{[]string{"history", "rollback", "a", "1", "--lease", ""}, "an optimization is opt_", "setpoint history rollback"},
		{[]string{"history", "rollback-session", "--revision", "1", "--lease", "x:1"}, "an optimization is opt_", "setpoint history rollback-session"},
		{[]string{"session", "export"}, "takes ID [FILE]", "setpoint session export"},
		{[]string{"session", "import", "a", "--merge", "mix", empty}, "fail, replace or keep", "setpoint session import"},
		{[]string{"session", "import", "a", "--ttl", "1h", empty}, "--ttl is for --create", "setpoint session import"},
		{[]string{"session", "import", "a", empty + "x"}, "no such file", "setpoint session import"},
		{[]string{"completion", "tcsh"}, "unknown command", "setpoint completion"},
		{[]string{"help", "nope"}, "no command", "setpoint help"},
	}
	for _, tt := range tests {
		t.Run(strings.Join(tt.args, " "), func(t *testing.T) {
			t.Parallel()
			got := invocation{args: tt.args}.run(t)
			if got.status != 2 || got.out != "" || strings.Count(got.err, "\n") != 1 ||
				!strings.HasPrefix(got.err, "error: USAGE: ") || !strings.Contains(got.err, tt.want) ||
				!strings.HasSuffix(got.err, "; see '"+tt.help+" --help'\n") {
				t.Errorf("got %+v, want status 2 and %q, help of %q", got, tt.want, tt.help)
			}
		})
	}
}

func TestHelp(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{nil, {"--help"}, {"help"}, {"var"}, {"var", "--help"}, {"help", "var", "set"}, {"--version"}} {
		got := invocation{args: args}.run(t)
		if got.status != 0 || got.err != "" || got.out == "" {
			t.Errorf("%q: got %+v", args, got)
		}
	}
	if got := (invocation{args: []string{"help", "var", "set"}}).run(t); !strings.Contains(got.out, "--expected-version") {
		t.Errorf("help var set:\n%s", got.out)
	}
}

// Help is documentation: every command has some, and its examples are command lines that parse.
func TestEveryCommandExplainsItself(t *testing.T) {
	t.Parallel()
	var explained []string
	var check func(cmd *cobra.Command)
	check = func(cmd *cobra.Command) {
		if cmd.Short == "" || cmd.Long == "" || cmd.Example == "" {
			t.Errorf("%s lacks a short, a long description or an example", cmd.CommandPath())
		}
		for _, line := range strings.Split(cmd.Long, "\n") {
			if len(line) > helpWidth {
				t.Errorf("%s: the line %q is wider than help is to be", cmd.CommandPath(), line)
			}
		}
		for _, line := range strings.Split(cmd.UsageString(), "\n") {
			if strings.HasPrefix(line, "   ") && utf8.RuneCountInString(line) > helpWidth {
				t.Errorf("%s: the line %q about a flag is wider than help is to be", cmd.CommandPath(), line)
			}
		}
		shown := false
		for _, words := range exampleLines(cmd) {
			shown = checkExample(t, cmd, words) || shown
		}
		if !shown {
			t.Errorf("the examples of %s do not show it", cmd.CommandPath())
		}
		cmd.Flags().VisitAll(func(flag *pflag.Flag) {
			if flag.Usage == "" {
				t.Errorf("%s does not say what --%s is", cmd.CommandPath(), flag.Name)
			}
		})
		explained = append(explained, cmd.CommandPath())
		for _, child := range cmd.Commands() {
			check(child)
		}
	}
	check(newRootCommand(&cli{}))
	for _, path := range []string{"setpoint serve", "setpoint dev", "setpoint migrate up", "setpoint migrate down",
		"setpoint doctor", "setpoint session export", "setpoint opt start", "setpoint opt trials",
		"setpoint acl allow", "setpoint acl replace", "setpoint acl audit", "setpoint token create", "setpoint completion bash", "setpoint dep graph", "setpoint man", "setpoint help"} {
		if !slices.Contains(explained, path) {
			t.Errorf("%s is no command", path)
		}
	}
}

// exampleLines are the command lines of setpoint in a command's examples, without the program's name.
func exampleLines(cmd *cobra.Command) [][]string {
	var lines [][]string
	for _, line := range strings.Split(strings.ReplaceAll(cmd.Example, "\\\n", " "), "\n") {
		words := shellWords(strings.NewReplacer("<(", "", ")", "", "$LEASE", tunerLease, "$ID", tunerID).Replace(line))
		for len(words) > 0 {
			command, rest := words, []string(nil)
			if pipe := slices.Index(words, "|"); pipe >= 0 {
				command, rest = words[:pipe], words[pipe+1:]
			}
			words = rest
			if to := slices.IndexFunc(command, func(word string) bool { return word == ">" || word == "<" }); to >= 0 {
				command = command[:to]
			}
			if i := slices.Index(command, "setpoint"); i >= 0 {
				lines = append(lines, command[i+1:])
			}
		}
	}
	return lines
}

// checkExample tells whether a command line, which has to be a good one, is of a command or one below it.
func checkExample(t *testing.T, of *cobra.Command, words []string) bool {
	t.Helper()
	root := newRootCommand(&cli{})
	cmd, rest, err := root.Find(separateNegatives(root, words))
	if err == nil {
		err = cmd.ParseFlags(rest)
	}
	if err == nil {
		err = cmd.ValidateArgs(cmd.Flags().Args())
	}
	if err != nil {
		t.Errorf("example %q: %v", words, err)
	}
	return strings.HasPrefix(cmd.CommandPath()+" ", of.CommandPath()+" ")
}

// shellWords splits as a shell does, as far as the examples go.
func shellWords(line string) []string {
	var words []string
	var quote rune
	word := ""
	for _, r := range line + " " {
		switch {
		case r == quote:
			quote = 0
		case quote == 0 && (r == '\'' || r == '"'):
			quote = r
		case quote == 0 && r == ' ':
			if word != "" {
				words = append(words, word)
			}
			word = ""
		default:
			word += string(r)
		}
	}
	return words
}

func TestEnvironmentAndFlags(t *testing.T) {
	t.Parallel()
	tokenFile := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(tokenFile, []byte("from-file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := newPeer(t, always(&setpointv1.Variable{}, nil))
	environment := map[string]string{
		"SETPOINT_ADDR": p.addr, "SETPOINT_SESSION": "env-session", "SETPOINT_TOKEN": "env-token", "SETPOINT_AS": "user:env",
	}
	byFile := maps.Clone(environment)
	delete(byFile, "SETPOINT_TOKEN")
	byFile["SETPOINT_TOKEN_FILE"] = tokenFile
	type seen struct{ session, token, principal string }
	tests := []struct {
		env  map[string]string
		args []string
		want seen
	}{
		{environment, nil, seen{"env-session", "Bearer env-token", "user:env"}},
		{environment, []string{"--session", "s", "--token", "t", "--as", "user:ada"}, seen{"s", "Bearer t", "user:ada"}},
		{environment, []string{"--token-file", tokenFile}, seen{"env-session", "Bearer from-file", "user:env"}},
		{byFile, nil, seen{"env-session", "Bearer from-file", "user:env"}},
		{byFile, []string{"--token", "t"}, seen{"env-session", "Bearer t", "user:env"}},
		{nil, []string{"--addr", p.addr}, seen{"default", "", ""}},
	}
	for _, tt := range tests {
		got := invocation{args: append(tt.args, "var", "get", "x"), env: tt.env}.run(t)
		if got.status != 0 {
			t.Fatalf("%q: %s", tt.args, got.err)
		}
		header := p.headers[len(p.headers)-1]
		is := seen{
			session:   p.last(t).(*setpointv1.GetVariableRequest).GetSessionId(),
			token:     strings.Join(header.Get("authorization"), ","),
			principal: strings.Join(header.Get(client.PrincipalMetadata), ","),
		}
		if is != tt.want {
			t.Errorf("%q: got %+v, want %+v", tt.args, is, tt.want)
		}
	}
}

func TestBadEnvironment(t *testing.T) {
	t.Parallel()
	missing := filepath.Join(t.TempDir(), "missing")
	tests := []struct {
		env  map[string]string
		args []string
		want string // within the line
	}{
		{map[string]string{"SETPOINT_TOKEN": "t", "SETPOINT_TOKEN_FILE": missing}, nil, "not both (nor SETPOINT_TOKEN and SETPOINT_TOKEN_FILE)"},
		{map[string]string{"SETPOINT_TOKEN_FILE": missing}, nil, "no such file"},
		{map[string]string{"SETPOINT_TOKEN": "t", "SETPOINT_ADDR": "10.0.0.1:7420"}, nil, "add --tls or --ca-cert"},
		{map[string]string{"SETPOINT_TOKEN": "t", "SETPOINT_ADDR": "10.0.0.1:7420", "SETPOINT_TLS": "true"}, []string{"--tls=false"},
			"add --tls or --ca-cert"},
		{map[string]string{"SETPOINT_TLS": "yes please"}, nil, "SETPOINT_TLS is true or false"},
		{map[string]string{"SETPOINT_CA_CERT": missing}, nil, "no such file"},
		{map[string]string{"SETPOINT_CERT": missing}, nil, "SETPOINT_CERT and SETPOINT_KEY"},
		{map[string]string{"SETPOINT_CERT": missing, "SETPOINT_KEY": missing}, nil, "no such file"},
		{map[string]string{"SETPOINT_CERT": missing, "SETPOINT_KEY": missing}, []string{"--key", missing}, "--cert and --key"},
	}
	for _, tt := range tests {
		got := invocation{args: append([]string{"var", "get", "x"}, tt.args...), env: tt.env}.run(t)
		if got.status != 2 || !strings.HasPrefix(got.err, "error: USAGE: ") || !strings.Contains(got.err, tt.want) {
			t.Errorf("%v %q: got %+v, want %q", tt.env, tt.args, got, tt.want)
		}
	}
}

func TestTLS(t *testing.T) {
	t.Parallel()
	certificate, authority := selfSigned(t)
	key, err := x509.MarshalECPrivateKey(certificate.PrivateKey.(*ecdsa.PrivateKey))
	if err != nil {
		t.Fatal(err)
	}
	keyFile := filepath.Join(t.TempDir(), "key.pem")
	if err := os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: key}), 0o600); err != nil {
		t.Fatal(err)
	}
	answer := always(&setpointv1.Variable{Name: "x"}, nil)
	serve := func(auth tls.ClientAuthType) *peer {
		return newPeer(t, answer, grpc.Creds(credentials.NewTLS(&tls.Config{
			MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{certificate}, ClientAuth: auth, ClientCAs: x509.NewCertPool()})))
	}
	open, asking, strict := serve(tls.NoClientCert), serve(tls.RequireAnyClientCert), serve(tls.RequireAndVerifyClientCert)
	plain := newPeer(t, answer)
	tests := []struct {
		name string
		to   *peer
		args []string
		env  map[string]string
		want string // within the error line; empty is success
	}{
		{"--ca-cert", open, []string{"--ca-cert", authority, "--token", "t"}, nil, ""},
		{"SETPOINT_CA_CERT", open, []string{"--token", "t"}, map[string]string{"SETPOINT_CA_CERT": authority}, ""},
		{"both TLS variables", open, nil, map[string]string{"SETPOINT_CA_CERT": authority, "SETPOINT_TLS": "1"}, ""},
		{"--tls, which does not trust that authority", open, []string{"--tls"}, nil, "is not trusted (--ca-cert names"},
		{"SETPOINT_TLS, which does not either", open, nil, map[string]string{"SETPOINT_TLS": "true"}, "is not trusted (--ca-cert names"},
		{"in the clear", open, []string{"--tls=false"}, map[string]string{"SETPOINT_CA_CERT": authority, "SETPOINT_TLS": "true"},
			"in the clear; if it speaks TLS, try --tls or --ca-cert"},
		{"a client certificate", asking, []string{"--ca-cert", authority, "--cert", authority, "--key", keyFile}, nil, ""},
		{"a client certificate from the environment", asking, []string{"--ca-cert", authority},
			map[string]string{"SETPOINT_CERT": authority, "SETPOINT_KEY": keyFile}, ""},
		{"no client certificate", asking, []string{"--ca-cert", authority}, nil, "want a client certificate (--cert and --key)"},
		{"a client certificate of a strange authority", strict, []string{"--ca-cert", authority, "--cert", authority, "--key", keyFile}, nil,
			"refused the client certificate of --cert: "},
		{"TLS, where there is none", plain, []string{"--tls"}, nil, "does not speak TLS (leave out --tls"},
		{"a certificate, where there is no TLS", plain, []string{"--cert", authority, "--key", keyFile}, nil, "does not speak TLS"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			args := append([]string{"--addr", tt.to.addr, "--timeout", "2s", "var", "get", "x"}, tt.args...)
			got := invocation{args: args, env: tt.env}.run(t)
			good := got.status == 0
			if tt.want != "" {
				good = got.status == 1 && strings.HasPrefix(got.err, "error: UNREACHABLE: ") && strings.Contains(got.err, tt.want)
			}
			if !good {
				t.Errorf("got %+v, want %q", got, tt.want)
			}
		})
	}
}

func selfSigned(t *testing.T) (tls.Certificate, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, path
}

func TestDeleteAsksOnATerminal(t *testing.T) {
	t.Parallel()
	terminal := screen{in: true, err: true}
	question := "Delete variable x of session default? [y/N] "
	cancelled := question + "error: CANCELLED: nothing was deleted\n"
	tests := []struct {
		name   string
		args   []string
		stdin  string
		screen screen
		want   result
		calls  int
	}{
		{"no, with --cascade", []string{"--cascade"}, "n\n", terminal, result{status: 1, err: "Delete variable x of session default, " +
			"though others may depend on it? [y/N] error: CANCELLED: nothing was deleted\n"}, 0},
		{"yes", nil, "Yes\n", terminal, result{out: "deleted x  (revision 5)\n", err: question}, 1},
		{"no", nil, "n\n", terminal, result{status: 1, err: cancelled}, 0},
		{"return", nil, "\n", terminal, result{status: 1, err: cancelled}, 0},
		{"no answer", nil, "", terminal, result{status: 1, err: cancelled}, 0},
		{"--yes", []string{"--yes"}, "", terminal, result{out: "deleted x  (revision 5)\n"}, 1},
		{"no terminal", nil, "n\n", screen{}, result{out: "deleted x  (revision 5)\n"}, 1},
		{"nowhere to ask", nil, "n\n", screen{in: true}, result{out: "deleted x  (revision 5)\n"}, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := newPeer(t, always(&setpointv1.DeleteVariableResponse{Revision: 5}, nil))
			args := append([]string{"--addr", p.addr, "var", "delete", "x"}, tt.args...)
			got := invocation{args: args, stdin: tt.stdin, screen: tt.screen}.run(t)
			if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(result{})); diff != "" {
				t.Errorf("result (-want +got):\n%s", diff)
			}
			if p.count() != tt.calls {
				t.Errorf("calls: got %d, want %d", p.count(), tt.calls)
			}
		})
	}
}

func TestProgressOfLongLists(t *testing.T) {
	t.Parallel()
	p := newPeer(t, paged(10, 3))
	args := []string{"--addr", p.addr, "var", "list"}
	if got := (invocation{args: args, screen: screen{err: true}}).run(t); !strings.Contains(got.err, "variables") {
		t.Errorf("no progress on a terminal: %+v", got)
	}
	for _, s := range []screen{{}, {err: true, out: true, width: 80}} {
		if got := (invocation{args: args, screen: s}).run(t); got.err != "" {
			t.Errorf("progress in the way: %+v", got)
		}
	}
}

func TestSeparateNegatives(t *testing.T) {
	t.Parallel()
	tests := []struct{ in, want string }{
		{"var set x 1", "var set x 1"},
		{"var set x -1", "var set -- x -1"},
		{"var set x -.5 --reason why", "var set --reason why -- x -.5"},
		{"--session s var set -o json x -Infinity --dry-run", "var set --session s -o json --dry-run -- x -Infinity"},
		{"var set x -1 -ojson", "var set -ojson -- x -1"},
		{"var register x integer -1 --min -5 --max=-1", "var register --min -5 --max=-1 -- x integer -1"},
		{"var register x integer 1 --min -5", "var register x integer 1 --min -5"},
		{"var set x -- -1", "var set x -- -1"},
		{"var set x -1 -- y", "var set -- x -1 y"},
		{"var set x -", "var set x -"},
		{"var set x -1 --reason", "var set --reason -- x -1"},
		{"var set x -Inf", "var set x -Inf"},
		{"nope -1", "-- nope -1"},
	}
	for _, tt := range tests {
		got := separateNegatives(newRootCommand(&cli{}), strings.Fields(tt.in))
		if strings.Join(got, " ") != tt.want {
			t.Errorf("%s: got %q, want %q", tt.in, strings.Join(got, " "), tt.want)
		}
	}
}

func TestInterrupted(t *testing.T) {
	t.Parallel()
	p := newPeer(t, func(proto.Message) (proto.Message, error) {
		return nil, status.Error(codes.Canceled, "context canceled")
	})
	got := p.setpoint(t, "var", "get", "x")
	if got.status != 1 || got.err != "error: CANCELLED: context canceled\n" {
		t.Errorf("got %+v", got)
	}
}
