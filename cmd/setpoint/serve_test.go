package main

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"

	"github.com/setpointdb/setpoint/internal/authenticate"
	"github.com/setpointdb/setpoint/internal/server"
)

// What makes no sense, or is not safe, is refused before anything is done.
func TestServeUsage(t *testing.T) {
	t.Parallel()
	const oidc = "--auth oidc --oidc-issuer https://issuer.example --oidc-audience a "
	for args, want := range map[string]string{
		"":                   "--auth is required",
		"--auth basic":       "--auth is none, token or oidc",
		"--auth none,token":  "--auth is none, or something else",
		"--auth token,token": "--auth has token twice",
		"--auth oidc":        "--auth oidc takes --oidc-issuer and --oidc-audience",
		"--auth oidc --oidc-issuer https://issuer.example":                         "--auth oidc takes --oidc-issuer and --oidc-audience",
		"--auth oidc --oidc-issuer http://issuer.example --oidc-audience a":        "https",
		"--auth token --oidc-issuer https://issuer.example":                        "--oidc-issuer is for --auth oidc",
		"--auth none --oidc-groups-claim roles":                                    "--oidc-groups-claim is for --auth oidc",
		oidc + "--oidc-jwks-url http://issuer.example/keys":                        "https",
		"--auth token --admin ada":                                                 "an admin's pattern: subject: must be",
		"--auth token --tls-cert x":                                                "--tls-cert and --tls-key go together",
		"--auth token --tls-key x":                                                 "--tls-cert and --tls-key go together",
		"--auth token --client-ca x":                                               "--client-ca takes --tls-cert and --tls-key",
		"--auth none --grpc-addr 0.0.0.0:0":                                        "do everything: serve with --auth token, or listen on 127.0.0.1, or add --insecure",
		"--auth none --http-addr :0":                                               "--auth none lets everybody who reaches :0",
		"--auth none --http-addr :0 --tls-cert x --tls-key x":                      "--auth none lets everybody who reaches :0",
		"--auth token --grpc-addr [::]:0":                                          "tokens go to [::]:0 in the clear",
		oidc + "--grpc-addr example.com:0":                                         "tokens go to example.com:0 in the clear",
		"--auth token":                                                             "--database-url is required",
		"--auth token,oidc --oidc-issuer https://issuer.example --oidc-audience a": "--database-url is required",
		"--auth none --http-addr localhost:0":                                      "--database-url is required",
		"--auth none --grpc-addr :0 --insecure":                                    "--database-url is required",
		"--auth token --grpc-addr :0 --insecure":                                   "--database-url is required",
		"--auth token --grpc-addr :0 --tls-cert x --tls-key x":                     "--database-url is required",
		"--auth none --grpc-addr :0 --tls-cert x --tls-key x --client-ca x":        "--database-url is required",
		"--auth none --admin user:root --admin group:ops-*":                        "--database-url is required",
	} {
		got := invocation{args: append([]string{"serve"}, strings.Fields(args)...)}.run(t)
		if got.status != 2 || !strings.HasPrefix(got.err, "error: USAGE: ") || !strings.Contains(got.err, want) {
			t.Errorf("serve %s: %d %s, want %s", args, got.status, got.err, want)
		}
	}
	for args, want := range map[string]string{
		"--grpc-addr :0": "lets everybody who reaches :0", "--auth token": "unknown flag", "--admin user:x": "unknown flag", "--insecure": "unknown flag",
	} {
		got := invocation{args: append([]string{"dev"}, strings.Fields(args)...)}.run(t)
		if got.status != 2 || !strings.Contains(got.err, want) {
			t.Errorf("dev %s: %d %s, want %s", args, got.status, got.err, want)
		}
	}
}

// At its start, a server's log says how it serves, and what is not safe about it.
func TestLogServing(t *testing.T) {
	t.Parallel()
	key := filepath.Join(t.TempDir(), "tls.key")
	if err := os.WriteFile(key, []byte("key"), 0o600); err != nil {
		t.Fatal(err)
	}
	open := filepath.Join(t.TempDir(), "tls.key")
	if err := os.WriteFile(open, []byte("key"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(open, 0o644); err != nil { // whatever the umask
		t.Fatal(err)
	}
	none, token := []authenticate.Mode{authenticate.None}, []authenticate.Mode{authenticate.Token, authenticate.OIDC}
	tests := []struct {
		name   string
		config server.Config
		want   []string
	}{
		{"on this machine", server.Config{GRPCAddr: "127.0.0.1:0", Authentication: authenticate.Config{Modes: none}},
			[]string{`INFO msg=serving grpc=1:1 http="" auth=none tls=false client_ca="" admins=""`}},
		{"safe", server.Config{GRPCAddr: ":0", TLSCertFile: "c", TLSKeyFile: key, ClientCAFile: "ca.pem",
			Authentication: authenticate.Config{Modes: token, Admins: []string{"user:root", "group:ops-*"}}},
			[]string{`INFO msg=serving grpc=1:1 http="" auth=token,oidc tls=true client_ca=ca.pem admins=user:root,group:ops-*`}},
		{"a key for all to read", server.Config{GRPCAddr: ":0", TLSCertFile: "c", TLSKeyFile: open, Authentication: authenticate.Config{Modes: token}},
			[]string{`INFO msg=serving`, `WARN msg="everybody on this machine can get at the key of --tls-key" file=` + open + ` mode=-rw-r--r-- advice="chmod o= `}},
		{"insecure", server.Config{GRPCAddr: ":1", HTTPAddr: ":2", Authentication: authenticate.Config{Modes: none}},
			[]string{`INFO msg=serving`, `WARN msg="--auth none lets everybody who reaches :1 do everything" advice="serve with --auth token`,
				`WARN msg="--auth none lets everybody who reaches :2`}},
		{"in the clear", server.Config{GRPCAddr: ":1", Authentication: authenticate.Config{Modes: token}},
			[]string{`INFO msg=serving`, `WARN msg="without --tls-cert, tokens go to :1 in the clear" advice="give --tls-cert`}},
	}
	for _, tt := range tests {
		var log strings.Builder
		tt.config.Log = slog.New(slog.NewTextHandler(&log, nil))
		logServing(t.Context(), tt.config, "1:1", "")
		lines := strings.Split(strings.TrimSpace(log.String()), "\n")
		if len(lines) != len(tt.want) {
			t.Errorf("%s: got\n%s", tt.name, log.String())
			continue
		}
		for i, want := range tt.want {
			if !strings.Contains(lines[i], "level="+want) {
				t.Errorf("%s: got %s, want %s", tt.name, lines[i], want)
			}
		}
	}
}

// What the flags say is what the server is told.
func TestServeFlags(t *testing.T) {
	t.Parallel()
	flags := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	auth := addAuthFlags(flags)
	err := flags.Parse(strings.Fields("--auth oidc,token --oidc-issuer https://issuer.example --oidc-audience a " +
		"--oidc-jwks-url https://issuer.example/keys --oidc-principal-claim email --oidc-groups-claim roles --admin user:root --admin group:ops " +
		"--tls-cert c --tls-key k --client-ca a"))
	if err != nil {
		t.Fatal(err)
	}
	config := server.Config{GRPCAddr: ":1", HTTPAddr: ":2", DrainTimeout: time.Second}
	if err := auth.apply(flags, &config); err != nil {
		t.Fatal(err)
	}
	got := config.Authentication
	want := authenticate.Issuer{
		URL: "https://issuer.example", Audience: "a", KeysURL: "https://issuer.example/keys", PrincipalClaim: "email", GroupsClaim: "roles",
	}
	if diff := cmp.Diff(authenticate.Config{
		Modes: []authenticate.Mode{authenticate.OIDC, authenticate.Token}, Admins: []string{"user:root", "group:ops"}, Issuer: want,
	}, got); diff != "" {
		t.Error(diff)
	}
	if config.TLSCertFile != "c" || config.TLSKeyFile != "k" || config.ClientCAFile != "a" || config.DrainTimeout != time.Second {
		t.Errorf("got %+v", config)
	}
}
