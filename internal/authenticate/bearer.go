package authenticate

import "strings"

// maxBearerBytes bounds a bearer token: JWTs with a few hundred groups are shorter.
const maxBearerBytes = 16 << 10

// bearer returns the token of an authorization: the scheme, in letters of either case, spaces, and a token in the alphabet that RFC 6750
// gives it.
func bearer(values []string) (string, error) {
	if len(values) > 1 {
		return "", refuse(Invalid, "authorization: must be given once")
	}
	scheme, text, _ := strings.Cut(values[0], " ")
	text = strings.TrimLeft(text, " ")
	switch {
	case !strings.EqualFold(scheme, "bearer"):
		return "", refuse(Invalid, "authorization: must be `Bearer` and a token")
	case len(text) > maxBearerBytes:
		return "", refuse(Invalid, "authorization: the token is too long")
	case !isBearer(text):
		return "", refuse(Invalid, "authorization: what is behind `Bearer` is no token")
	}
	return text, nil
}

func isBearer(text string) bool {
	text = strings.TrimRight(text, "=")
	return text != "" && strings.Trim(text, bearerAlphabet) == ""
}

const bearerAlphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~+/"
