package service

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"

	"github.com/setpointdb/setpoint/db/dbgen"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/identity"
)

// sight is what a caller may see of a session.
type sight struct {
	// all: there is nothing that the caller may not read.
	all   bool
	names map[string]bool
}

// sees tells whether the caller may read the variable of a name, or of an id where it was looked for by that.
func (s sight) sees(name string) bool { return s.all || s.names[name] }

// seesEverything tells of a caller for whom nothing needs to be looked up.
func (c caller) seesEverything() bool {
	return c.authority >= serverAdmin && c.authority&int32(identity.Read) != 0
}

// sightOf is what the caller may see of these names of a session's variables. A session in which the caller may do nothing is
// as one that there is not.
func sightOf(ctx context.Context, q *dbgen.Queries, sessionID string, names ...string) (sight, error) {
	c := callerIn(ctx, sessionID)
	if c.seesEverything() {
		return sight{all: true}, nil
	}
	row, err := q.SightOf(ctx, dbgen.SightOfParams{
		SessionID: sessionID, Principal: c.principal, Groups: c.groups, Authority: c.authority, Names: names,
	})
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return sight{}, sessionNotFound(sessionID)
	case err != nil:
		return sight{}, err
	case !row.Anything:
		return sight{}, sessionHidden(sessionID)
	}
	return sight{all: row.ReadsAll, names: wordSet(row.Readable)}, nil
}

func wordSet(words []string) map[string]bool {
	set := make(map[string]bool, len(words))
	for _, w := range words {
		set[w] = true
	}
	return set
}

// checked is a variable on which a permission was asked for.
type checked dbgen.SightCheckRow

// refusal is why the caller may not; nil if the caller may.
func (c checked) refusal(sessionID string) *Error {
	name := c.Identifier
	if c.Access&int32(identity.Read) != 0 && c.Name != "" {
		name = c.Name
	}
	return accessRefusal(c.Refused, sessionID, name, c.RuleID, identity.Permissions(c.Permission))
}

// wanted is a permission on a variable.
type wanted struct {
	variable   string
	permission identity.Permissions
}

// mayAll refuses the first of these that the caller may not.
func mayAll(ctx context.Context, q *dbgen.Queries, sessionID string, wants ...wanted) error {
	c := callerIn(ctx, sessionID)
	if c.seesEverything() && c.authority&int32(identity.AllPermissions) == int32(identity.AllPermissions) {
		return nil // Whatever the variables are, or are not.
	}
	params := dbgen.SightCheckParams{
		SessionID: sessionID, Principal: c.principal, Groups: c.groups, Authority: c.authority,
	}
	for _, w := range wants {
		params.Identifiers = append(params.Identifiers, w.variable)
		params.Permissions = append(params.Permissions, int32(w.permission))
	}
	rows, err := q.SightCheck(ctx, params)
	if err != nil {
		return err
	}
	for _, row := range rows {
		if !row.Alive {
			return sessionNotFound(sessionID)
		}
		if e := checked(row).refusal(sessionID); e != nil {
			return e
		}
	}
	return nil
}

// deniedOn refuses a permission on a variable that the caller may read and was found to lack, by the rule that decides. A variable that
// is gone meanwhile has none to tell of.
func deniedOn(ctx context.Context, q *dbgen.Queries, sessionID string, want wanted) error {
	err := mayAll(ctx, q, sessionID, want)
	if e := asRefusal(err); err != nil && (e == nil || e.Reason == setpointv1.ErrorReason_ACCESS_DENIED) {
		return err
	}
	return denied(want.permission, want.variable, "")
}
