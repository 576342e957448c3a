package db

import (
	"context"
	"sync"
)

// perSession bounds the connections that wait for one session's lock. Its writers take turns all the same; without a bound,
// a session that somebody holds would take all connections, and hold up every other session.
const perSession = 2

// gates let a few at a time into each session. The zero value is ready.
type gates struct {
	mu   sync.Mutex
	open map[string]*gate
}

type gate struct {
	places chan struct{}
	users  int // Inside and waiting.
}

// enter waits for a place in a session, which the returned function gives back.
func (g *gates) enter(ctx context.Context, sessionID string) (func(), error) {
	g.mu.Lock()
	if g.open == nil {
		g.open = map[string]*gate{}
	}
	mine := g.open[sessionID]
	if mine == nil {
		mine = &gate{places: make(chan struct{}, perSession)}
		g.open[sessionID] = mine
	}
	mine.users++
	g.mu.Unlock()
	select {
	case mine.places <- struct{}{}:
		return func() {
			<-mine.places
			g.leave(sessionID, mine)
		}, nil
	case <-ctx.Done():
		g.leave(sessionID, mine)
		return nil, ctx.Err()
	}
}

func (g *gates) leave(sessionID string, mine *gate) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if mine.users--; mine.users == 0 {
		delete(g.open, sessionID)
	}
}
