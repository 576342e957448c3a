package main

import (
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
		"--auth none --grpc-addr 0.0.0.0:0":                                        "--auth none lets everybody who reaches 0.0.0.0:0",
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
