package main

import (
	"strings"
	"testing"
)

func TestCredentialsHint(t *testing.T) {
	t.Parallel()
	for message, want := range map[string][2]bool{ // a token, a certificate
		"show who you are: with `Authorization: Bearer …`":                         {true, false},
		"show who you are: with `Authorization: Bearer …` or a client certificate": {true, true},
		"this server takes callers with a client certificate only":                 {false, true},
	} {
		hint := credentialsHint(message)
		if got := [2]bool{strings.Contains(hint, "--token-file"), strings.Contains(hint, "--cert and --key")}; got != want {
			t.Errorf("%s%s", message, hint)
		}
	}
}
