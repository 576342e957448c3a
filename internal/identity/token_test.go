package identity_test

import (
	"crypto/sha256"
	"encoding/base32"
	"regexp"
	"strings"
	"testing"

	"github.com/setpointdb/setpoint/internal/identity"
)

func newToken(t testing.TB) (string, string, [sha256.Size]byte) {
	t.Helper()
	id, text, hash, err := identity.NewToken()
	if err != nil {
		t.Fatal(err)
	}
	return id, text, hash
}

func TestNewToken(t *testing.T) {
	t.Parallel()
	form := regexp.MustCompile(`^setpoint_[0-9a-v]{26}_[0-9a-v]{52}$`)
	seen := make(map[string]bool)
	last := ""
	for range 100 {
		id, text, hash := newToken(t)
		if !form.MatchString(text) || id != "tok_"+text[len("setpoint_"):][:26] {
			t.Fatalf("token %s of id %s", text, id)
		}
		if seen[id] || seen[text[36:]] || id <= last {
			t.Errorf("id %s after %s, or its secret, is not new", id, last)
		}
		seen[id], seen[text[36:]], last = true, true, id
		secret, err := base32.HexEncoding.WithPadding(base32.NoPadding).DecodeString(strings.ToUpper(text[36:]))
		if err != nil || len(secret) != 32 || sha256.Sum256(secret) != hash {
			t.Errorf("%x is not the hash of the secret, %v", hash, err)
		}
		gotID, gotHash, err := identity.ParseToken(text)
		if err != nil || gotID != id || gotHash != hash {
			t.Errorf("parsed as %s %x, %v", gotID, gotHash, err)
		}
	}
}

func TestParseTokenRefuses(t *testing.T) {
	t.Parallel()
	_, good, _ := newToken(t)
	id, secret := good[9:35], good[36:]
	// The last characters have bits to spare: 2 of the id's, 4 of the secret's.
	otherLast := func(s string) string {
		return s[:len(s)-1] + string("0123456789abcdefghijklmnopqrstuv"[1+strings.IndexByte("0123456789abcdefghijklmnopqrstuv", s[len(s)-1])])
	}
	for name, text := range map[string]string{
		"empty":               "",
		"the prefix":          "setpoint_",
		"another prefix":      "setpoimt_" + id + "_" + secret,
		"no secret":           "setpoint_" + id,
		"an empty secret":     "setpoint_" + id + "_",
		"no separator":        "setpoint_" + id + "0" + secret,
		"the kept id":         "tok_" + id + "_" + secret,
		"upper case":          "setpoint_" + id + "_" + strings.ToUpper(secret[:51]) + "W",
		"outside of alphabet": "setpoint_" + id + "_" + "w" + secret[1:],
		"padded":              good + "=",
		"a space behind":      good + " ",
		"a space before":      " " + good,
		"a line feed in it":   "setpoint_" + id + "_" + secret[:51] + "\n",
		"line feeds":          "setpoint_" + id[:25] + "\n_" + secret,
		"one more":            good + "0",
		"one less":            good[:len(good)-1],
		"not canonical":       "setpoint_" + id + "_" + otherLast(secret),
		"id not canonical":    "setpoint_" + otherLast(id) + "_" + secret,
		"not UTF-8":           "setpoint_" + id + "_\xff" + secret[1:],
	} {
		if _, _, err := identity.ParseToken(text); err == nil {
			t.Errorf("%s: %q was taken", name, text)
		} else if len(text) > 40 && strings.Contains(err.Error(), text[20:30]) {
			t.Errorf("%s: the error shows it: %v", name, err)
		}
	}
}

// What is parsed is what is written: there is one text for an id and a secret.
func FuzzParseToken(f *testing.F) {
	_, good, _ := newToken(f)
	for _, seed := range []string{"", good, good[:35], "setpoint_" + strings.Repeat("0", 26) + "_" + strings.Repeat("v", 52)} {
		f.Add(seed)
	}
	form := regexp.MustCompile(`^setpoint_[0-9a-v]{25}[048cgkos]_[0-9a-v]{51}[0g]$`)
	f.Fuzz(func(t *testing.T, text string) {
		id, hash, err := identity.ParseToken(text)
		if good := form.MatchString(text) && !strings.HasSuffix(text, "\n"); good != (err == nil) {
			t.Fatalf("%q: %v, want taken %t", text, err, good)
		}
		if err != nil {
			if id != "" || hash != [sha256.Size]byte{} {
				t.Errorf("refused, yet %q", id)
			}
			return
		}
		if id != "tok_"+text[9:35] {
			t.Errorf("id %q of %q", id, text)
		}
	})
}
