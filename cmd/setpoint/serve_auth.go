package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"github.com/setpointdb/setpoint/internal/authenticate"
	"github.com/setpointdb/setpoint/internal/server"
)

// authFlags are the flags of serve that say who is calling, and over what.
type authFlags struct {
	modes    string
	insecure bool
	admins   []string
	issuer   authenticate.Issuer

	certFile, keyFile, clientCAFile string
}

func addAuthFlags(flags *pflag.FlagSet) *authFlags {
	f := &authFlags{}
	flags.StringVar(&f.modes, "auth", "", "`way` to tell who is calling: none, token or oidc, or token,oidc for both")
	flags.StringArrayVar(&f.admins, "admin", nil,
		"`pattern` of principals and groups that are server admins, as user:root or group:ops-*; may be repeated")
	flags.StringVar(&f.certFile, "tls-cert", "", "`file` with the server's certificate (PEM); both ports then speak TLS")
	flags.StringVar(&f.keyFile, "tls-key", "", "`file` with the key (PEM) of --tls-cert")
	flags.StringVar(&f.clientCAFile, "client-ca", "", "`file` with the authorities (PEM) whose client certificates count")
	flags.StringVar(&f.issuer.URL, "oidc-issuer", "", "`URL` of the issuer whose JWTs count, as they have it in iss")
	flags.StringVar(&f.issuer.Audience, "oidc-audience", "", "`name` that a JWT must have in aud")
	flags.StringVar(&f.issuer.KeysURL, "oidc-jwks-url", "", "`URL` of the issuer's keys (default: as its configuration says)")
	flags.StringVar(&f.issuer.PrincipalClaim, "oidc-principal-claim", "sub", "`claim` of a JWT that gives the principal user:…")
	flags.StringVar(&f.issuer.GroupsClaim, "oidc-groups-claim", "groups", "`claim` of a JWT that gives the groups group:…")
	flags.BoolVar(&f.insecure, "insecure", false,
		"allow what is not safe on an address that others can reach: --auth none without --client-ca, and tokens without TLS")
	return f
}

// apply checks the flags, and puts what they say into a configuration.
func (f *authFlags) apply(flags *pflag.FlagSet, config *server.Config) error {
	if f.modes == "" {
		return usagef("--auth is required, and is: none, token or oidc, or token,oidc")
	}
	modes, err := authenticate.ParseModes(f.modes)
	if err != nil {
		return usagef("--auth %v", err)
	}
	if !slices.Contains(modes, authenticate.OIDC) {
		for _, name := range []string{"oidc-issuer", "oidc-audience", "oidc-jwks-url", "oidc-principal-claim", "oidc-groups-claim"} {
			if flags.Changed(name) {
				return usagef("--%s is for --auth oidc", name)
			}
		}
	}
	switch {
	case slices.Contains(modes, authenticate.OIDC) && (f.issuer.URL == "" || f.issuer.Audience == ""):
		return usagef("--auth oidc takes --oidc-issuer and --oidc-audience")
	case (f.certFile == "") != (f.keyFile == ""):
		return usagef("--tls-cert and --tls-key go together")
	case f.clientCAFile != "" && f.certFile == "":
		return usagef("--client-ca takes --tls-cert and --tls-key: without TLS nobody shows a certificate")
	}
	config.Authentication = authenticate.Config{Modes: modes, Admins: f.admins, Issuer: f.issuer}
	if !slices.Contains(modes, authenticate.OIDC) {
		config.Authentication.Issuer = authenticate.Issuer{}
	}
	if err := config.Authentication.Check(); err != nil {
		return usagef("%v", err)
	}
	config.TLSCertFile, config.TLSKeyFile, config.ClientCAFile = f.certFile, f.keyFile, f.clientCAFile
	return checkExposure(*config, f.insecure)
}

// checkExposure refuses to listen where others could do what they should not, or read what they should not.
func checkExposure(config server.Config, insecure bool) error {
	if open := exposures(config); len(open) > 0 && !insecure {
		return usagef("%s: %s, or add --insecure", open[0].danger, open[0].remedy)
	}
	return nil
}

// exposure is what is not safe about an address that others can reach, and what to do instead.
type exposure struct{ danger, remedy string }

func exposures(config server.Config) []exposure {
	none := slices.Contains(config.Authentication.Modes, authenticate.None)
	var found []exposure
	for _, addr := range []string{config.GRPCAddr, config.HTTPAddr} {
		switch {
		case addr == "" || isLoopback(addr):
		case none && config.ClientCAFile == "":
			found = append(found, exposure{fmt.Sprintf("--auth none lets everybody who reaches %s do everything", addr),
				"serve with --auth token, or listen on 127.0.0.1"})
		case config.TLSCertFile == "":
			found = append(found, exposure{fmt.Sprintf("without --tls-cert, tokens go to %s in the clear", addr),
				"give --tls-cert and --tls-key, or listen on 127.0.0.1"})
		}
	}
	return found
}

// logServing says how a server serves, and warns of what is not safe.
func logServing(ctx context.Context, config server.Config, grpcAddr, httpAddr string) {
	modes := make([]string, 0, len(config.Authentication.Modes))
	for _, mode := range config.Authentication.Modes {
		modes = append(modes, string(mode))
	}
	config.Log.InfoContext(ctx, "serving", slog.String("grpc", grpcAddr), slog.String("http", httpAddr),
		slog.String("auth", strings.Join(modes, ",")), slog.Bool("tls", config.TLSCertFile != ""),
		slog.String("client_ca", config.ClientCAFile), slog.String("admins", strings.Join(config.Authentication.Admins, ",")))
	for _, e := range exposures(config) {
		config.Log.WarnContext(ctx, e.danger, slog.String("advice", e.remedy))
	}
	if config.TLSKeyFile == "" {
		return
	}
	if info, err := os.Stat(config.TLSKeyFile); err == nil && info.Mode().Perm()&0o007 != 0 {
		config.Log.WarnContext(ctx, "everybody on this machine can get at the key of --tls-key", slog.String("file", config.TLSKeyFile),
			slog.String("mode", info.Mode().Perm().String()), slog.String("advice", "chmod o= "+config.TLSKeyFile))
	}
}

func isLoopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
