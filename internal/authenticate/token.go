package authenticate

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"time"

	"github.com/setpointdb/setpoint/internal/identity"
)

// read is what a look-up found.
type read struct {
	record identity.TokenRecord
	found  bool
	// began is when it began, by this machine's clock.
	began time.Time
}

// verifyToken looks up one of the server's own tokens, by its id and the hash of the secret that was shown.
func (a *Authenticator) verifyToken(ctx context.Context, id string, hash [sha256.Size]byte) (known, error) {
	r, err := a.lookUp(ctx, id)
	if err != nil {
		return known{}, err
	}
	// Where there is no such token, its secret is compared with nothing but zeros, in the same time.
	same := subtle.ConstantTimeCompare(hash[:], r.record.SecretSHA256[:]) == 1
	if !r.found || !same {
		return known{}, refuse(Invalid, "this server has no such token")
	}
	return r.judge()
}

// judge tells whose a token is, to its bearer.
func (r read) judge() (known, error) {
	if r.record.Revoked {
		return known{}, refuse(Invalid, "the token was revoked")
	}
	lasts := cacheFor
	if !r.record.ExpiresAt.IsZero() {
		left := r.record.ExpiresAt.Sub(r.record.ReadAt)
		if left <= 0 {
			return known{}, refuse(Invalid, "the token has expired")
		}
		lasts = min(lasts, left)
	}
	principal, err := identity.ParsePrincipal(r.record.Principal)
	if err != nil {
		return known{}, fmt.Errorf("token %s: %w", r.record.ID, err)
	}
	principal.Groups, principal.Admin, principal.Credentials = r.record.Groups, r.record.ServerAdmin, r.record.ID
	principal.Scope = identity.Scope{Permissions: r.record.Permissions, Sessions: r.record.Sessions}
	return known{principal, r.began.Add(lasts)}, nil
}

// lookUp reads a token's record; those who ask for it at the same time share what one of them reads. None of them is answered with
// more than cacheFor of age, however long the database takes.
func (a *Authenticator) lookUp(ctx context.Context, id string) (read, error) {
	for {
		asked := a.now()
		shared := a.lookups.DoChan(id, func() (any, error) {
			r := read{began: a.now()}
			var err error
			// Whoever began must not, by going away, fail it for the others.
			if r.record, r.found, err = a.config.LookUp(context.WithoutCancel(ctx), id); err != nil {
				return read{}, fmt.Errorf("look up a token: %w", err)
			}
			return r, nil
		})
		select {
		case <-ctx.Done():
			return read{}, context.Cause(ctx)
		case result := <-shared:
			if result.Err != nil {
				return read{}, result.Err
			}
			if r, _ := result.Val.(read); asked.Sub(r.began) < cacheFor {
				return r, nil
			}
		}
	}
}
