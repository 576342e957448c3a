package identity

import "strings"

// Permissions is a set of permissions, in the bits that the database has them in.
type Permissions uint8

// The permissions.
const (
	Read Permissions = 1 << iota
	Write
	Observe
	Optimize
	Admin
	// AllPermissions are all of them.
	AllPermissions = Read | Write | Observe | Optimize | Admin
)

// permissionNames are the words for single permissions, by bit.
var permissionNames = []struct {
	permission Permissions
	name       string
	includes   Permissions
}{
	{Read, "read", Read},
	{Write, "write", Write | Read},
	{Observe, "observe", Observe | Read},
	{Optimize, "optimize", Optimize | Write | Read},
	{Admin, "admin", AllPermissions},
}

// Including returns the permissions with all that they include: what allowing them allows.
func (p Permissions) Including() Permissions {
	out := p
	for _, n := range permissionNames {
		if p&n.permission != 0 {
			out |= n.includes
		}
	}
	return out
}

// IncludedBy returns the permissions with all that include them: what denying them denies.
func (p Permissions) IncludedBy() Permissions {
	out := p
	for _, n := range permissionNames {
		if p&n.includes != 0 {
			out |= n.permission
		}
	}
	return out
}

// Names are the words for the permissions, from read to admin.
func (p Permissions) Names() []string {
	var names []string
	for _, n := range permissionNames {
		if p&n.permission != 0 {
			names = append(names, n.name)
		}
	}
	return names
}

// String is the words, with commas.
func (p Permissions) String() string { return strings.Join(p.Names(), ",") }

// ParsePermission is the permission of a word; false if it is none.
func ParsePermission(name string) (Permissions, bool) {
	for _, n := range permissionNames {
		if n.name == name {
			return n.permission, true
		}
	}
	return 0, false
}
