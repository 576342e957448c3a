// Package keepalive extends sessions that are read, without a write per read: reads are noted in memory, and written
// down together, each within a quarter of its session's time to live and at most MaxDelay after it happened.
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

// Flush writes reads down. An error means that they are to be noted again.
type Flush func(ctx context.Context, reads []Read) error

// Extender collects reads and flushes them in the background. Safe for concurrent use.
type Extender struct {
	flush  Flush
	failed func(ctx context.Context, err error)

	mu    sync.Mutex
	reads map[string]time.Time
	due   time.Time // When to flush; zero while there is nothing to.
	timer *time.Timer

	ended  chan struct{}
	idle   sync.WaitGroup
	cancel context.CancelFunc
	ctx    context.Context
}

// New starts an Extender. failed is told of flushes that failed.
func New(flush Flush, failed func(ctx context.Context, err error)) *Extender {
	ctx, cancel := context.WithCancel(context.Background())
	e := &Extender{
		flush: flush, failed: failed, reads: map[string]time.Time{}, ended: make(chan struct{}),
		timer: time.NewTimer(time.Hour), ctx: ctx, cancel: cancel,
	}
	e.timer.Stop()
	e.idle.Go(e.run)
	return e
}

// Note notes a read of a session at a time of the database's clock. A ttl of 0 never ends, and needs no note.
func (e *Extender) Note(sessionID string, at time.Time, ttl time.Duration) {
	if ttl <= 0 {
		return
	}
	due := time.Now().Add(min(MaxDelay, ttl/4))
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.reads[sessionID].Before(at) {
		e.reads[sessionID] = at
	}
	if e.due.IsZero() || due.Before(e.due) {
		e.due = due
		e.timer.Reset(time.Until(due))
	}
}

// Close flushes what is noted, within the context, and ends the background work.
func (e *Extender) Close(ctx context.Context) {
	close(e.ended)
	e.cancel()
	e.idle.Wait()
	e.Flush(ctx)
}

// Flush writes down what is noted.
func (e *Extender) Flush(ctx context.Context) {
	e.mu.Lock()
	reads := make([]Read, 0, len(e.reads))
	for id, at := range e.reads {
		reads = append(reads, Read{SessionID: id, At: at})
	}
	clear(e.reads)
	e.due = time.Time{}
	e.mu.Unlock()
	if len(reads) == 0 {
		return
	}
	if err := e.flush(ctx, reads); err != nil {
		e.failed(ctx, err)
		e.again(reads)
	}
}

// again notes reads whose flush failed, for a second later.
func (e *Extender) again(reads []Read) {
	for _, r := range reads {
		e.Note(r.SessionID, r.At, 4*time.Second)
	}
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
