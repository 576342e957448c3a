package identity

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// GroupKind is the kind of the names of groups, like `group:ops`. No caller has a name of this kind: rules for a group would take it
// for the group.
const GroupKind = "group"

// ParsePrincipal checks the name of a caller who gives one: as Parse does, and its kind is not GroupKind, nor is it the name of
// Anonymous. To that belongs what was made while nobody had to say who they are, and whoever could be called so would own it.
func ParsePrincipal(name string) (Principal, error) {
	p, err := Parse(name)
	switch {
	case err != nil:
		return Principal{}, err
	case isGroup(name):
		return Principal{}, errors.New("principal: must not be a group")
	case name == Anonymous.Name:
		return Principal{}, errors.New("principal: must not be that of callers who do not say who they are")
	}
	return p, nil
}

// ParseGroup checks the name of a group: in the form of a principal's, with the kind GroupKind.
func ParseGroup(name string) error {
	if err := checkForm("group", name); err != nil {
		return err
	}
	if !isGroup(name) {
		return errors.New("group: must begin with group:, like group:ops")
	}
	return nil
}

func isGroup(name string) bool { return strings.HasPrefix(name, GroupKind+":") }

// ParseSubject checks the subject of a rule: `*`, or a pattern over the names of principals and groups, in their form, in which `*` is
// any run of characters.
func ParseSubject(pattern string) error {
	if pattern == "*" {
		return nil
	}
	return checkForm("subject", pattern)
}

// checkForm checks that a text is a kind, a colon and a name, of at most maxNameBytes in all. Errors say what is wrong, and not with
// which text: it may be a secret that was put in the wrong place.
func checkForm(what, name string) error {
	if len(name) > maxNameBytes {
		return fmt.Errorf("%s: must not be longer than %d bytes", what, maxNameBytes)
	}
	if !utf8.ValidString(name) {
		return fmt.Errorf("%s: must be UTF-8", what)
	}
	if kind, rest, found := strings.Cut(name, ":"); !found || kind == "" || rest == "" {
		return fmt.Errorf("%s: must be a kind, a colon and a name, like %s", what, examples[what])
	}
	if strings.ContainsFunc(name, func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsPrint(r) }) {
		return fmt.Errorf("%s: must not contain spaces or control characters", what)
	}
	return nil
}

var examples = map[string]string{"principal": "user:ada", "group": "group:ops", "subject": "user:ada or user:*"}

var likeEscapes = strings.NewReplacer(`\`, `\\`, `%`, `\%`, `_`, `\_`, `*`, `%`)

// SubjectLike is a subject as a pattern of SQL's LIKE, with `\` as its escape; false if there is no wildcard in it, and it stands for
// its own text only.
func SubjectLike(pattern string) (string, bool) {
	return likeEscapes.Replace(pattern), strings.Contains(pattern, "*")
}
