package main

import (
	"fmt"
	"strings"
)

// unreachable says why there was no answer, as gRPC tells it, and what could be done about it. gRPC has nothing but the text.
func (c *cli) unreachable(message string) string {
	has := func(words ...string) bool {
		for _, word := range words {
			if strings.Contains(message, word) {
				return true
			}
		}
		return false
	}
	secure, certificate := c.caller.overTLS(), c.caller.cert != ""
	switch {
	case secure && has("first record does not look like a TLS handshake"):
		return fmt.Sprintf("the server at %s does not speak TLS (leave out --tls, --ca-cert and --cert): %s", c.addr, message)
	case has("failed to verify certificate", "x509:"):
		return fmt.Sprintf("the certificate of the server at %s is not trusted (--ca-cert names the authorities to trust): %s", c.addr, message)
	case secure && certificate && has("remote error: tls:"):
		return fmt.Sprintf("the server at %s refused the client certificate of --cert: %s", c.addr, message)
	case secure && has("tls: certificate required", "tls: handshake failure", "tls: bad certificate"):
		return fmt.Sprintf("the server at %s refused the connection; it may want a client certificate (--cert and --key): %s", c.addr, message)
	case secure && has("broken pipe", "connection reset by peer", "error reading server preface"):
		// So it looks, too, when a server that refuses a certificate has hung up before its reason was read.
		what := "want a client certificate (--cert and --key)"
		if certificate {
			what = "have refused the client certificate of --cert"
		}
		return fmt.Sprintf("the server at %s hung up; it may %s: %s", c.addr, what, message)
	case !secure && has("error reading server preface", "broken pipe", "connection reset by peer"):
		return fmt.Sprintf("no server answers at %s in the clear; if it speaks TLS, try --tls or --ca-cert: %s", c.addr, message)
	}
	return fmt.Sprintf("no server answers at %s: %s", c.addr, message)
}

// credentialsHint is how the credentials are given that a server misses, which are those that its message names.
func credentialsHint(message string) string {
	const token, certificate = "--token-file, or SETPOINT_TOKEN_FILE, names a file with a token", "--cert and --key name a client certificate"
	switch {
	case !strings.Contains(message, "certificate"):
		return " (" + token + ")"
	case !strings.Contains(message, "Bearer"):
		return " (" + certificate + ")"
	}
	return " (" + token + "; " + certificate + ")"
}
