// Package keepalive extends sessions that are read, without a write per read: reads are noted in memory, and written
// down together, each within a quarter of its session's time to live and at most MaxDelay after it happened. A read that
// cannot be written down then is tried again as long as it could still matter.
package keepalive

import (
	"context"
	"sync"
	"time"
)

// MaxDelay is the longest that a read waits before it is written down.
const MaxDelay = 5 * time.Second

// Read is the latest read of a session.
type Read struct {
	SessionID string
	// At is when it was read, by the database's clock.
	At time.Time
}

// Flush writes reads down, and may keep the slice. It returns those that could not be written down now, which are noted
// again; an error means that none was.
type Flush func(ctx context.Context, reads []Read) ([]Read, error)

// Extender collects reads and flushes them in the background. Safe for concurrent use.
type Extender struct {
	flush  Flush
	failed func(ctx context.Context, err error)

	mu    sync.Mutex
	notes map[string]note
	due   time.Time // When to flush; zero while there is nothing to.
	timer *time.Timer

	ended  chan struct{}
	idle   sync.WaitGroup
	cancel context.CancelFunc
	ctx    context.Context
}

// note is the latest read of a session that is to be written down.
type note struct {
	at    time.Time // By the database's clock.
	ttl   time.Duration
	until time.Time // By this machine's clock: when a session would end that nothing came after this read in.
}

// New starts an Extender. failed is told of flushes that failed.
func New(flush Flush, failed func(ctx context.Context, err error)) *Extender {
	ctx, cancel := context.WithCancel(context.Background())
	e := &Extender{
		flush: flush, failed: failed, notes: map[string]note{}, ended: make(chan struct{}),
		timer: time.NewTimer(time.Hour), ctx: ctx, cancel: cancel,
	}
	e.timer.Stop()
	e.idle.Go(e.run)
	return e
}

// Note notes a read of a session at a time of the database's clock. A ttl of 0 never ends, and needs no note.
func (e *Extender) Note(sessionID string, at time.Time, ttl time.Duration) {
	if ttl > 0 {
		e.note(sessionID, note{at: at, ttl: ttl, until: time.Now().Add(ttl)})
	}
}

func (e *Extender) note(sessionID string, n note) {
	due := time.Now().Add(min(MaxDelay, n.ttl/4))
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.notes[sessionID].at.Before(n.at) {
		e.notes[sessionID] = n
	}
	if e.due.IsZero() || due.Before(e.due) {
		e.due = due
		e.timer.Reset(time.Until(due))
	}
}

// Close flushes what is noted, once and within the context, and ends the background work. Call it once.
func (e *Extender) Close(ctx context.Context) {
	close(e.ended)
	e.cancel()
	e.idle.Wait()
	e.Flush(ctx)
}

// Flush writes down what is noted.
func (e *Extender) Flush(ctx context.Context) {
	e.mu.Lock()
	notes := e.notes
	e.notes = map[string]note{}
	e.due = time.Time{}
	e.mu.Unlock()
	if len(notes) == 0 {
		return
	}
	left, err := e.flush(ctx, list(notes))
	if err != nil {
		e.failed(ctx, err)
		left = list(notes)
	}
	for _, r := range left {
		// Later than that the session has ended, or something else has extended it.
		if n := notes[r.SessionID]; time.Now().Before(n.until) {
			e.note(r.SessionID, n)
		}
	}
}

func list(notes map[string]note) []Read {
	reads := make([]Read, 0, len(notes))
	for id, n := range notes {
		reads = append(reads, Read{SessionID: id, At: n.at})
	}
	return reads
}

func (e *Extender) run() {
	for {
		select {
		case <-e.timer.C:
			e.Flush(e.ctx)
		case <-e.ended:
			e.timer.Stop()
			return
		}
	}
}
