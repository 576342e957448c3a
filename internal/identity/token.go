package identity

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
)

// TokenPrefix begins every token, so that one is known for what it is where it lies in a file or a log.
const TokenPrefix = "setpoint_"

// tokenIDPrefix begins the id of a token.
const tokenIDPrefix = "tok_"

// A token's id has 128 bits, its secret 256; in base32 these are so many characters.
const (
	tokenIDBytes, tokenIDChars         = 16, 26
	tokenSecretBytes, tokenSecretChars = 32, 52
	tokenChars                         = len(TokenPrefix) + tokenIDChars + 1 + tokenSecretChars
)

// tokenEncoding keeps the order of the bytes, so that ids sort by the time they were made.
var tokenEncoding = base32.NewEncoding("0123456789abcdefghijklmnopqrstuv").WithPadding(base32.NoPadding)

// errTokenForm tells nothing of the text: that may be a secret of another kind.
var errTokenForm = errors.New("not in the form of a token")

// TokenRecord is what a server keeps of a token.
type TokenRecord struct {
	// ID is `tok_` and 26 characters.
	ID string
	// SecretSHA256 is the SHA-256 of the token's secret, which nobody keeps.
	SecretSHA256 [sha256.Size]byte
	// Principal is who the token's bearer is.
	Principal string
	// Groups are those that the bearer is in, like `group:ops`.
	Groups []string
	// Permissions are what the token may be used for, with what those include; 0 is everything.
	Permissions Permissions
	// Sessions are globs over the ids of the sessions in which the token counts; none is all.
	Sessions []string
	// ServerAdmin says that the bearer is a server admin.
	ServerAdmin bool
	// ExpiresAt is when the token ends; zero is never.
	ExpiresAt time.Time
	// Revoked says that the token was ended.
	Revoked bool
	// ReadAt is the database's clock when this was read: ExpiresAt is judged by it.
	ReadAt time.Time
}

// NewToken makes a token: its id, the text that its bearer shows, and the hash of its secret, which is all of it that is to be kept.
// It fails where the system has no randomness.
func NewToken() (string, string, [sha256.Size]byte, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return "", "", [sha256.Size]byte{}, fmt.Errorf("make a token's id: %w", err)
	}
	var secret [tokenSecretBytes]byte
	if _, err := rand.Read(secret[:]); err != nil {
		return "", "", [sha256.Size]byte{}, fmt.Errorf("make a token's secret: %w", err)
	}
	name := tokenEncoding.EncodeToString(id[:])
	text := TokenPrefix + name + "_" + tokenEncoding.EncodeToString(secret[:])
	return tokenIDPrefix + name, text, sha256.Sum256(secret[:]), nil
}

// ParseToken reads what NewToken wrote, and nothing else: it returns the token's id and the hash of its secret. An error does not
// show the text.
func ParseToken(text string) (string, [sha256.Size]byte, error) {
	rest, ok := strings.CutPrefix(text, TokenPrefix)
	if len(text) != tokenChars || !ok || rest[tokenIDChars] != '_' {
		return "", [sha256.Size]byte{}, errTokenForm
	}
	name := rest[:tokenIDChars]
	var id [tokenIDBytes]byte
	var secret [tokenSecretBytes]byte
	if !decodeExactly(id[:], name) || !decodeExactly(secret[:], rest[tokenIDChars+1:]) {
		return "", [sha256.Size]byte{}, errTokenForm
	}
	return tokenIDPrefix + name, sha256.Sum256(secret[:]), nil
}

// decodeExactly fills bytes with what they are the one encoding of. The last character of an encoding has bits to spare, and line
// feeds are skipped when decoding: many texts decode to the same bytes, and one is meant.
func decodeExactly(bytes []byte, text string) bool {
	n := tokenEncoding.DecodedLen(len(text))
	if n != len(bytes) {
		return false
	}
	decoded, err := tokenEncoding.DecodeString(text)
	if err != nil || len(decoded) != len(bytes) || tokenEncoding.EncodeToString(decoded) != text {
		return false
	}
	copy(bytes, decoded)
	return true
}
