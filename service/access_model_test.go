package service_test

import (
	"slices"
	"strings"
	"time"
)

// The model of access: who may do what in a session, by the words of the documentation and not by the statements of the
// database.

// accessPermissions are the permissions, in the order of their bits.
var accessPermissions = []string{"read", "write", "observe", "optimize", "admin"}

// accessIncludes is what each permission includes besides itself.
var accessIncludes = map[string][]string{
	"write":    {"read"},
	"observe":  {"read"},
	"optimize": {"read", "write"},
	"admin":    {"read", "write", "observe", "optimize"},
}

// accessModes are what callers may do whom no rule is about.
var accessModes = map[string][]string{
	"private":   nil,
	"protected": {"read", "observe"},
	"public":    {"read", "write", "observe", "optimize"},
}

func accessHas(permission, wanted string) bool {
	return permission == wanted || slices.Contains(accessIncludes[permission], wanted)
}

// accessAt is the time of all questions.
var accessAt = time.Date(2031, 5, 17, 12, 30, 0, 123456000, time.UTC)

// accessRule is a rule as it was given. The variable is empty where it is for all of the session; without an expiry it is for ever.
type accessRule struct {
	ID, Variable, Subject string
	Permissions           []string
	Allow                 bool
	Priority              int32
	Expires               *time.Time
}

// accessCaller is somebody with credentials, which are for the narrowed permissions and sessions; nil is all.
type accessCaller struct {
	Name                      string
	Groups                    []string
	Admin                     bool
	Permissions, SessionGlobs []string
}

// accessVariable is one that lives.
type accessVariable struct{ ID, Mode string }

// accessWorld is a session. Optimized are the variables of an optimization, some of which may since have been deleted.
type accessWorld struct {
	Session, Owner string
	Living         []accessVariable
	Rules          []accessRule
	Optimized      []string
}

// everything tells whether a caller needs no rules.
func (w *accessWorld) everything(c accessCaller) bool {
	return c.Admin || c.Name == w.Owner || c.Name == "session:"+w.Session
}

// credentialsServe tells whether a caller's credentials may be used for something here.
func (w *accessWorld) credentialsServe(c accessCaller, permission string) bool {
	here := func(glob string) bool { return accessMatches(glob, w.Session) }
	if len(c.SessionGlobs) > 0 && !slices.ContainsFunc(c.SessionGlobs, here) {
		return false
	}
	for _, given := range c.Permissions {
		if accessHas(given, permission) {
			return true
		}
	}
	return len(c.Permissions) == 0
}

// decides are the rules that decide about a permission of a caller who is nobody in particular: those that are about it and not
// expired, of the highest priority, and of these the denials if there are any. The variable is empty for the session as a whole.
func (w *accessWorld) decides(c accessCaller, variable, permission string) []accessRule {
	var best []accessRule
	for _, r := range w.Rules {
		if r.about(c, variable, permission) {
			best = append(best, r)
		}
	}
	if len(best) == 0 {
		return nil
	}
	highest := slices.MaxFunc(best, func(a, b accessRule) int { return int(a.Priority) - int(b.Priority) }).Priority
	best = slices.DeleteFunc(best, func(r accessRule) bool { return r.Priority < highest })
	if denied := slices.ContainsFunc(best, func(r accessRule) bool { return !r.Allow }); denied {
		best = slices.DeleteFunc(best, func(r accessRule) bool { return r.Allow })
	}
	return best
}

func (r accessRule) about(c accessCaller, variable, permission string) bool {
	if r.Variable != "" && r.Variable != variable || r.Expires != nil && !r.Expires.After(accessAt) {
		return false
	}
	for _, given := range r.Permissions {
		// Allowing one allows what it includes; denying one denies what includes it.
		if r.Allow && accessHas(given, permission) || !r.Allow && accessHas(permission, given) {
			return r.concerns(c)
		}
	}
	return false
}

func (r accessRule) concerns(c accessCaller) bool {
	matches := func(name string) bool { return accessMatches(r.Subject, name) }
	return matches(c.Name) || slices.ContainsFunc(c.Groups, matches)
}

// may tells whether a caller may do something with a variable, which may live, or be deleted, or never have been; an empty one is
// one that is yet to be registered.
func (w *accessWorld) may(c accessCaller, variable, permission string) bool {
	if !w.credentialsServe(c, permission) {
		return false
	}
	if w.everything(c) {
		return true
	}
	if rules := w.decides(c, variable, permission); len(rules) > 0 {
		return rules[0].Allow
	}
	mode := "private"
	for _, v := range w.Living {
		if v.ID == variable {
			mode = v.Mode
		}
	}
	return slices.Contains(accessModes[mode], permission)
}

// mask is all that a caller may do with a variable, as bits.
func (w *accessWorld) mask(c accessCaller, variable string) int32 {
	var mask int32
	for i, permission := range accessPermissions {
		if w.may(c, variable, permission) {
			mask |= 1 << i
		}
	}
	return mask
}

// lacks are those variables of the optimization with which a caller may not do something.
func (w *accessWorld) lacks(c accessCaller, permission string) []string {
	var lacking []string
	for _, v := range w.Optimized {
		if !w.may(c, v, permission) {
			lacking = append(lacking, v)
		}
	}
	return lacking
}

// variables are those that live and those that have a rule, and the session as a whole.
func (w *accessWorld) variables() []string {
	all := []string{""}
	for _, v := range w.Living {
		all = append(all, v.ID)
	}
	for _, r := range w.Rules {
		all = append(all, r.Variable)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// anything tells whether there is something that a caller may do.
func (w *accessWorld) anything(c accessCaller) bool {
	return slices.ContainsFunc(w.variables(), func(v string) bool { return w.mask(c, v) != 0 })
}

// readsAll tells whether there is nothing that a caller may not read, whatever is registered next.
func (w *accessWorld) readsAll(c accessCaller) bool {
	return !slices.ContainsFunc(w.variables(), func(v string) bool { return !w.may(c, v, "read") })
}

// readsAllPlainly tells whether a caller may read all and no rule of a variable takes that away, not even one that another
// outdoes.
func (w *accessWorld) readsAllPlainly(c accessCaller) bool {
	return w.readsAll(c) && (w.everything(c) || !slices.ContainsFunc(w.Rules, func(r accessRule) bool {
		return !r.Allow && r.Variable != "" && r.about(c, r.Variable, "read")
	}))
}

// accessMatches tells whether a text matches a pattern in which `*` is any run of characters, and all else itself.
func accessMatches(pattern, text string) bool {
	if pattern == "" {
		return text == ""
	}
	if pattern[0] != '*' {
		return text != "" && text[0] == pattern[0] && accessMatches(pattern[1:], text[1:])
	}
	for skip := range len(text) + 1 {
		if accessMatches(strings.TrimLeft(pattern, "*"), text[skip:]) {
			return true
		}
	}
	return false
}
