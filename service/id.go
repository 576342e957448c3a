package service

import (
	"encoding/base32"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/google/uuid"
)

// idEncoding keeps the order of the bytes, so that ids sort by the time they were made.
var idEncoding = base32.HexEncoding.WithPadding(base32.NoPadding)

const variablePrefix = "var_"

// newID makes an id: a prefix and 26 characters of lower-case base32, a UUIDv7.
func newID(prefix string) (string, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return "", err
	}
	return prefix + strings.ToLower(idEncoding.EncodeToString(id[:])), nil
}

// isVariableID tells whether a text has the exact form of a variable's id, which no name may have.
func isVariableID(s string) bool {
	rest, ok := strings.CutPrefix(s, variablePrefix)
	if !ok || len(rest) != 26 {
		return false
	}
	return strings.Trim(rest, "abcdefghijklmnopqrstuvwxyz0123456789") == ""
}

// checkName refuses what cannot be a variable's name.
func checkName(field, name string) error {
	switch n := utf8.RuneCountInString(name); {
	case n == 0:
		return invalid(field, "must not be empty")
	case n > 256:
		return invalid(field, "must not have more than 256 characters")
	case strings.ContainsFunc(name, unicode.IsControl):
		return invalid(field, "must not have control characters")
	case isVariableID(name):
		return invalid(field, "must not have the form of a variable's id")
	}
	return nil
}
