package service

import (
	"context"
	"maps"
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

// note remembers a denial. Where there are too many, those are forgotten that are not recent, or else any.
func (r *recentDenials) note(principal, sessionID string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.at) >= denialsRemembered {
		maps.DeleteFunc(r.at, func(_ deniedCaller, at time.Time) bool { return time.Since(at) >= denialRecent })
	}
	for one := range r.at {
		if len(r.at) < denialsRemembered {
			break
		}
		delete(r.at, one)
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
// wanted, who may do nothing there. A request that was answered before is not refused.
func (s *Service) refuseAgain(ctx context.Context, c caller, sessionID, requestID string, wants ...wanted) error {
	if !s.denials.has(c.principal, sessionID) {
		return nil
	}
	return s.db.Read(ctx, "look up what the caller may do", func(ctx context.Context, q *dbgen.Queries) error {
		state, err := q.SessionState(ctx, dbgen.SessionStateParams{
			SessionID: sessionID, Principal: c.principal, Groups: c.groups, Authority: c.authority, RequestID: requestID,
		})
		switch {
		case err != nil:
			return err
		case requestID != "" && len(state.BodyHash) > 0:
			return nil
		case state.Alive && !state.Anything:
			return sessionHidden(sessionID)
		case len(wants) > 0:
			return mayAll(ctx, q, sessionID, wants...)
		}
		return nil
	})
}
