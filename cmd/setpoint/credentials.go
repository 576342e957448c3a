package main

import (
	"strconv"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/setpointdb/setpoint/client"
)

// callerFlags are the global flags by which a server is known, and the caller to it.
type callerFlags struct {
	token, tokenFile  string
	tls               bool
	caCert, cert, key string
}

func (f *callerFlags) addFlags(flags *pflag.FlagSet) {
	flags.StringVar(&f.tokenFile, "token-file", "", "`file` with the bearer token")
	flags.StringVar(&f.token, "token", "",
		"bearer `token`; others on this machine can see it in the list of processes: prefer --token-file")
	flags.BoolVar(&f.tls, "tls", false, "connect over TLS, to a server that the system's certificate authorities know")
	flags.StringVar(&f.caCert, "ca-cert", "",
		"`file` with the certificate authorities (PEM) to trust instead of the system's; implies --tls")
	flags.StringVar(&f.cert, "cert", "", "`file` with the client certificate (PEM) to show; needs --key, implies --tls")
	flags.StringVar(&f.key, "key", "", "`file` with the key (PEM) of that certificate")
}

// options are what the flags say to a client, and where there is no flag the environment.
func (f *callerFlags) options(cmd *cobra.Command, getenv func(string) string) ([]client.Option, error) {
	if err := f.fromEnvironment(cmd.Flags().Changed, getenv); err != nil {
		return nil, err
	}
	var opts []client.Option
	switch {
	case f.token != "" && f.tokenFile != "":
		return nil, usagef("give --token or --token-file, not both (nor SETPOINT_TOKEN and SETPOINT_TOKEN_FILE)")
	case f.tokenFile != "":
		opts = append(opts, client.WithTokenFile(f.tokenFile))
	case f.token != "":
		opts = append(opts, client.WithToken(f.token))
	case cmd.Flags().Changed("token-file"):
		return nil, usagef("--token-file is the name of a file, and not empty")
	case cmd.Flags().Changed("token"):
		return nil, usagef("--token is empty")
	}
	switch {
	case (f.cert == "") != (f.key == ""):
		return nil, usagef("--cert and --key (SETPOINT_CERT and SETPOINT_KEY) go together")
	case f.noTLS(cmd) && (f.caCert != "" || f.cert != ""):
		return nil, usagef("--tls=false contradicts --ca-cert, --cert and --key")
	}
	if f.tls || f.caCert != "" {
		opts = append(opts, client.WithTLS(f.caCert))
	}
	if f.cert != "" {
		opts = append(opts, client.WithClientCertificate(f.cert, f.key))
	}
	return opts, nil
}

// overTLS tells whether the flags, as they are read, ask for TLS.
func (f *callerFlags) overTLS() bool { return f.tls || f.caCert != "" || f.cert != "" }

// noTLS tells whether the line itself says so.
func (f *callerFlags) noTLS(cmd *cobra.Command) bool { return cmd.Flags().Changed("tls") && !f.tls }

// fromEnvironment fills in what no flag says. A flag about the token stands for both, and so does one against TLS for all
// that is about it.
func (f *callerFlags) fromEnvironment(given func(string) bool, getenv func(string) string) error {
	if !given("token") && !given("token-file") {
		f.token, f.tokenFile = getenv("SETPOINT_TOKEN"), getenv("SETPOINT_TOKEN_FILE")
	}
	if given("tls") && !f.tls {
		return nil
	}
	if text := getenv("SETPOINT_TLS"); text != "" && !given("tls") {
		var err error
		if f.tls, err = strconv.ParseBool(text); err != nil {
			return usagef("SETPOINT_TLS is true or false, not %q", text)
		}
	}
	if !given("ca-cert") {
		f.caCert = getenv("SETPOINT_CA_CERT")
	}
	if !given("cert") && !given("key") {
		f.cert, f.key = getenv("SETPOINT_CERT"), getenv("SETPOINT_KEY")
	}
	return nil
}
