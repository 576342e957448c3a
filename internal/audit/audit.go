// Package audit writes denials down: collected in memory, and written together by one goroutine, each within a second of its
// happening as long as the database keeps up. No denial is dropped to make room: where the buffer is full, or half of it is of one
// principal, whoever was denied waits. What cannot be written now is kept and tried again, but for what the database will never take.
// A server that is killed loses at most its last second of denials.
package audit

import (
	"context"
	"errors"
	"sync"
	"time"
)

const (
	// gather is the longest that the first denial of a batch waits for others.
	gather = 200 * time.Millisecond
	// batchDenials bounds a batch; a full one does not wait.
	batchDenials = 1000
	// DefaultRoom is how many denials a buffer holds, unless it is told.
	DefaultRoom = 10_000
	// firstPause is the time after a failure until the next try; it doubles with every other, up to lastPause.
	firstPause, lastPause = 100 * time.Millisecond, time.Second
)

// Denial is one thing that somebody was refused for lack of a permission.
type Denial struct {
	// EventID is the id under which it is written down, once.
	EventID string
	// At is when it happened, by this machine's clock.
	At time.Time
	// SessionID is empty where no session is involved.
	SessionID string
	Principal string
	// Permission is the word for it.
	Permission string
	// Variable is as the caller named it; empty where none is involved.
	Variable string
	// RuleID is the rule that denied; empty where none did.
	RuleID string
	// Method is the RPC, like `setpoint.v1.VariableService/SetVariable`.
	Method string
	// TokenID is the token that was shown; empty where there was none.
	TokenID string
	// Detail is what else there is to say, for people.
	Detail string
}

// ErrClosed is the answer of a buffer that takes no more.
var ErrClosed = errors.New("the audit is closed")

// Config is what a buffer needs.
type Config struct {
	// Flush writes denials down, all or none of them. It may be given the same ones again after an error: whether they were
	// written is then unknown. It must not keep the slice.
	Flush func(ctx context.Context, denials []Denial) error
	// Waits is told of everyone who has to wait for room. May be nil.
	Waits func(ctx context.Context)
	// Failed is told of each Flush that failed, which is tried again. May be nil.
	Failed func(ctx context.Context, err error)
	// Hopeless tells that a Flush failed for what it was given, of which nothing was written, and not for want of a database: the
	// batch is divided, down to the denials that cannot be written. Nil is never.
	Hopeless func(err error) bool
	// Dropped is told of each denial that will not be written, for its own sake. May be nil.
	Dropped func(ctx context.Context, d Denial, err error)
	// Room is how many denials are held, half of them of one principal at most; 0 is DefaultRoom.
	Room int
}

// Buffer collects denials. Safe for concurrent use.
type Buffer struct {
	config Config

	mu sync.Mutex
	// held are those that are not known to be written, in order; only the goroutine takes some away, from the front.
	held []Denial
	// of is how many of held each principal has.
	of     map[string]int
	closed bool
	// room is closed, and replaced, when there is room again.
	room chan struct{}

	// size is how many are written together: fewer than batchDenials where one among them cannot be. Only the goroutine that writes,
	// and Close after it, use it.
	size int

	// some and full have room for one: that there is something, or a batch, is not said twice.
	some, full chan struct{}
	ended      chan struct{}
	idle       sync.WaitGroup
	ctx        context.Context
	cancel     context.CancelFunc
}

// New starts a buffer.
func New(config Config) *Buffer {
	if config.Room <= 0 {
		config.Room = DefaultRoom
	}
	if config.Waits == nil {
		config.Waits = func(context.Context) {}
	}
	if config.Failed == nil {
		config.Failed = func(context.Context, error) {}
	}
	if config.Hopeless == nil {
		config.Hopeless = func(error) bool { return false }
	}
	if config.Dropped == nil {
		config.Dropped = func(context.Context, Denial, error) {}
	}
	ctx, cancel := context.WithCancel(context.Background())
	b := &Buffer{
		config: config, of: map[string]int{}, size: batchDenials, room: make(chan struct{}), some: make(chan struct{}, 1), full: make(chan struct{}, 1),
		ended: make(chan struct{}), ctx: ctx, cancel: cancel,
	}
	b.idle.Go(b.run)
	return b
}

// Note takes a denial, and waits for as long as there is no room for it, or for others of the same principal. An error means that it was not taken: the context
// ended, or the buffer is closed.
func (b *Buffer) Note(ctx context.Context, d Denial) error {
	for waits := false; ; waits = true {
		room, err := b.take(d)
		if room == nil {
			return err
		}
		if !waits {
			b.config.Waits(ctx)
		}
		select {
		case <-room:
		case <-b.ended:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// take takes a denial, or returns what to wait for.
func (b *Buffer) take(d Denial) (<-chan struct{}, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, ErrClosed
	}
	if len(b.held) >= b.config.Room || b.of[d.Principal] >= (b.config.Room+1)/2 {
		return b.room, nil
	}
	b.held = append(b.held, d)
	b.of[d.Principal]++
	signal(b.some)
	if len(b.held) >= min(batchDenials, b.config.Room) {
		signal(b.full)
	}
	return nil, nil
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Close takes no more, writes down what is held, each batch once more and all within the context, and ends the background
// work. It returns how many denials could not be written. Call it once.
func (b *Buffer) Close(ctx context.Context) int {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	close(b.ended)
	b.cancel()
	b.idle.Wait()
	for batch := b.batch(); len(batch) > 0; batch = b.batch() {
		if !b.flush(ctx, batch) {
			break
		}
	}
	return len(b.held)
}

func (b *Buffer) run() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		select {
		case <-b.some:
		case <-b.ended:
			return
		}
		timer.Reset(gather)
		select {
		case <-timer.C:
		case <-b.full:
		case <-b.ended:
			return
		}
		pause := firstPause
		for batch := b.batch(); len(batch) > 0; batch = b.batch() {
			if b.flush(b.ctx, batch) {
				pause = firstPause
				continue
			}
			timer.Reset(pause)
			select {
			case <-timer.C:
			case <-b.ended:
				return
			}
			pause = min(2*pause, lastPause)
		}
	}
}

// batch is the next to write.
func (b *Buffer) batch() []Denial {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.held[:min(len(b.held), b.size)]
}

// flush writes down what is at the front, and lets it go. Where the database will never take it, a smaller batch is next, or the one
// denial that it was goes unwritten. false: it is to be tried again, later.
func (b *Buffer) flush(ctx context.Context, batch []Denial) bool {
	err := b.config.Flush(ctx, batch)
	switch {
	case err == nil:
		b.size = min(2*b.size, batchDenials)
	case !b.config.Hopeless(err):
		b.config.Failed(ctx, err)
		return false
	case len(batch) > 1:
		b.size = len(batch) / 2
		return true
	default:
		b.config.Dropped(ctx, batch[0], err)
	}
	b.letGo(batch)
	return true
}

// letGo makes the room of what is at the front free.
func (b *Buffer) letGo(batch []Denial) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, d := range batch {
		if b.of[d.Principal]--; b.of[d.Principal] == 0 {
			delete(b.of, d.Principal)
		}
	}
	if b.held = b.held[len(batch):]; len(b.held) == 0 {
		b.held = nil // What it stood on can go.
	}
	close(b.room)
	b.room = make(chan struct{})
}
