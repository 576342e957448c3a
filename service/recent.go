package service

import (
	"context"
	"sync"
	"time"

	"github.com/setpointdb/setpoint/db/dbgen"
)

// recentDenials remembers who was denied something in a session a moment ago. Whoever tries again is asked about without the session's
// lock first: under it a refused write costs the others as much as one that is done. It decides nothing: only a refusal is taken from
// the look without the lock, and that is as good as one under it.
type recentDenials struct {
	mu sync.Mutex
	at map[deniedCaller]time.Time
}

// deniedCaller is who was denied something, and where.
type deniedCaller struct{ principal, sessionID string }

const (
	// denialRecent is how long a denial is remembered.
	denialRecent = 10 * time.Second
	// denialsRemembered bounds how many are.
	denialsRemembered = 10_000
)

func newRecentDenials() *recentDenials { return &recentDenials{at: map[deniedCaller]time.Time{}} }

// note remembers a denial. Where there are too many, all older ones are forgotten.
func (r *recentDenials) note(principal, sessionID string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.at) >= denialsRemembered {
		clear(r.at)
	}
	r.at[deniedCaller{principal, sessionID}] = time.Now()
}

// has tells whether the caller was denied something in the session a moment ago.
func (r *recentDenials) has(principal, sessionID string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	at, ok := r.at[deniedCaller{principal, sessionID}]
	return ok && time.Since(at) < denialRecent
}

// refuseAgain refuses somebody who was denied something in the session a moment ago and may still not do what is wanted; with nothing
// wanted, who may do nothing there.
func (s *Service) refuseAgain(ctx context.Context, c caller, sessionID string, wants ...wanted) error {
	if !s.denials.has(c.principal, sessionID) {
		return nil
	}
	return s.db.Read(ctx, "look up what the caller may do", func(ctx context.Context, q *dbgen.Queries) error {
		if len(wants) > 0 {
			return mayAll(ctx, q, sessionID, wants...)
		}
		_, err := sightOf(ctx, q, sessionID)
		return err
	})
}
