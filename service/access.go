package service

import (
	"context"
	"fmt"
	"strings"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/identity"
)

// Access: who is asking, as the statements take it, and what they refuse. What a caller may do is decided in the database, by
// setpoint.access and its sisters, in the statement or the transaction that does the work.

// caller is who is asking, in a session.
type caller struct {
	principal string
	// groups have a space before each.
	groups string
	// authority is what the credentials count for in the session, in bits; serverAdmin is one of them.
	authority int32
}

// serverAdmin is the bit of an authority that stands for a server admin.
const serverAdmin = 32

// everything is what the server itself may do, where a call has been let in and what it needs is looked up.
var everything = caller{authority: int32(identity.AllPermissions) | serverAdmin}

// callerIn is who is asking for something in a session.
func callerIn(ctx context.Context, sessionID string) caller {
	p := identity.FromContext(ctx)
	return callerWith(p, p.Authority(sessionID))
}

// callerAnywhere is who is asking for something in those sessions in which the credentials count.
func callerAnywhere(ctx context.Context) caller {
	p := identity.FromContext(ctx)
	return callerWith(p, p.ServerAuthority())
}

func callerWith(p identity.Principal, authority identity.Permissions) caller {
	c := caller{principal: p.Name, authority: int32(authority)}
	if p.Admin {
		c.authority |= serverAdmin
	}
	if len(p.Groups) > 0 {
		c.groups = " " + strings.Join(p.Groups, " ")
	}
	return c
}

// denial is what a caller was refused for: for the audit, and not all of it for the caller.
type denial struct {
	permission, variable, rule string
}

// denied refuses what takes a permission on a variable. rule is the one that decided, where the caller may know it.
func denied(permission identity.Permissions, variable, rule string) *Error {
	message := fmt.Sprintf("this takes the permission %s on %s", permission, variable)
	if variable == "" {
		message = fmt.Sprintf("this takes the permission %s in the whole session", permission)
	}
	if rule != "" {
		message += ", which " + rule + " denies"
	}
	e := accessDenied(permission.String(), message)
	if variable != "" {
		e.Metadata["variable"] = variable
	}
	if rule != "" {
		e.Metadata["rule"] = rule
	}
	e.denial = &denial{permission: permission.String(), variable: variable, rule: rule}
	return e
}

// accessDenied refuses what takes a permission, or to be the owner.
func accessDenied(permission, message string) *Error {
	e := refuse(setpointv1.ErrorReason_ACCESS_DENIED, message, "permission", permission)
	e.denial = &denial{permission: permission}
	return e
}

// ownerOnly is the word for what takes the session's owner, or a server admin.
const ownerOnly = "owner"

// sessionHidden answers a caller who may do nothing in the session as if there was none.
func sessionHidden(sessionID string) *Error {
	e := sessionNotFound(sessionID)
	e.denial = &denial{}
	return e
}

// accessRefusal is the error for the word in which setpoint.access_answer refuses; nil for none.
func accessRefusal(word, sessionID, variable, rule string, permission identity.Permissions) *Error {
	switch word {
	case "SESSION_HIDDEN":
		e := sessionHidden(sessionID)
		e.denial = &denial{permission: permission.String(), variable: variable}
		return e
	case "VARIABLE_NOT_FOUND":
		return variableNotFound(sessionID, variable)
	case "ACCESS_DENIED":
		return denied(permission, variable, rule)
	}
	return nil
}
