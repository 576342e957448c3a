package commit

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"sync"
)

// ErrClosed is the error of calls that a closed lane did not get to.
var ErrClosed = errors.New("the lane is closed")

// Result is what became of one call of a group.
type Result[O any] struct {
	// Value is the answer.
	Value O
	// Again: the call could not be done together with others of the group, and goes first in the next.
	Again bool
}

// Config says how a lane does its groups.
type Config[I, O any] struct {
	// Run does a group in one go and returns a result for each call, in its place; or an error, if nothing of it was done
	// or that is not known.
	Run func(ctx context.Context, items []I) ([]Result[O], error)
	// Keys names what a call shares with no other of its group. nil: every call may share a group with every other.
	Keys func(item I) []string
	// MaxItems bounds a group.
	MaxItems int
	// Panicked is told of a panic of Run, which is the error of its group. nil: nobody is.
	Panicked func(ctx context.Context, doing string, value any, stack []byte)
}

// Lane does calls in groups, one group at a time. Safe for concurrent use.
type Lane[I, O any] struct {
	config Config[I, O]

	mu      sync.Mutex
	queue   []*call[I, O]
	onWay   int // Calls of the group on its way.
	running bool
	closed  bool
	idle    sync.WaitGroup
}

type call[I, O any] struct {
	item   I
	answer chan answer[O]
}

type answer[O any] struct {
	value O
	err   error
}

// NewLane makes a lane. The caller closes it.
func NewLane[I, O any](config Config[I, O]) *Lane[I, O] { return &Lane[I, O]{config: config} }

// Do does a call in a group and returns when that is over, or when the context ends.
func (l *Lane[I, O]) Do(ctx context.Context, item I) (O, error) {
	c := &call[I, O]{item: item, answer: make(chan answer[O], 1)}
	if err := l.enqueue(c); err != nil {
		return *new(O), err
	}
	select {
	case a := <-c.answer:
		return a.value, a.err
	case <-ctx.Done():
		l.withdraw(c)
		return *new(O), ctx.Err()
	}
}

// Close lets the group on its way end, and fails the calls in the queue.
func (l *Lane[I, O]) Close() {
	l.mu.Lock()
	l.closed = true
	for _, c := range l.queue {
		c.answer <- answer[O]{err: ErrClosed}
	}
	l.queue = nil
	l.mu.Unlock()
	l.idle.Wait()
}

func (l *Lane[I, O]) enqueue(c *call[I, O]) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return ErrClosed
	}
	l.queue = append(l.queue, c)
	if !l.running {
		l.running = true
		l.idle.Go(l.drain)
	}
	return nil
}

// withdraw takes a call out of the queue, if it is still there.
func (l *Lane[I, O]) withdraw(c *call[I, O]) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if i := slices.Index(l.queue, c); i >= 0 {
		l.queue = slices.Delete(l.queue, i, i+1)
	}
}

// drain does groups until the queue is empty.
func (l *Lane[I, O]) drain() {
	for {
		group := l.take()
		if len(group) == 0 {
			return
		}
		l.do(group)
	}
}

// take removes the next group from the queue: the oldest calls, but none that shares a key with one before it. With
// nothing to take the lane is idle.
func (l *Lane[I, O]) take() []*call[I, O] {
	l.mu.Lock()
	defer l.mu.Unlock()
	var group, rest []*call[I, O]
	taken := map[string]bool{}
	for _, c := range l.queue {
		if len(group) < l.config.MaxItems && l.claim(taken, c) {
			group = append(group, c)
		} else {
			rest = append(rest, c)
		}
	}
	l.queue, l.onWay = rest, len(group)
	l.running = len(group) > 0
	return group
}

// claim takes a call's keys, all or none.
func (l *Lane[I, O]) claim(taken map[string]bool, c *call[I, O]) bool {
	if l.config.Keys == nil {
		return true
	}
	keys := l.config.Keys(c.item)
	for _, k := range keys {
		if taken[k] {
			return false
		}
	}
	for _, k := range keys {
		taken[k] = true
	}
	return true
}

func (l *Lane[I, O]) do(group []*call[I, O]) {
	items := make([]I, len(group))
	for i, c := range group {
		items[i] = c.item
	}
	results, err := l.run(items)
	if err == nil && len(results) != len(group) {
		err = fmt.Errorf("a group of %d calls has %d results", len(group), len(results))
	}
	var again []*call[I, O]
	for i, c := range group {
		switch {
		case err != nil:
			c.answer <- answer[O]{err: err}
		case results[i].Again:
			again = append(again, c)
		default:
			c.answer <- answer[O]{value: results[i].Value}
		}
	}
	l.putBack(again)
}

// putBack puts calls before all others.
func (l *Lane[I, O]) putBack(again []*call[I, O]) {
	if len(again) == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		for _, c := range again {
			c.answer <- answer[O]{err: ErrClosed}
		}
		return
	}
	l.queue = append(again, l.queue...)
}

func (l *Lane[I, O]) run(items []I) ([]Result[O], error) {
	var results []Result[O]
	var err error
	func() {
		defer func() {
			if p := recover(); p != nil {
				err = fmt.Errorf("panic in a group: %v", p)
				if l.config.Panicked != nil {
					l.config.Panicked(context.Background(), "group commit", p, debug.Stack())
				}
			}
		}()
		results, err = l.config.Run(context.Background(), items)
	}()
	return results, err
}

// Queued is how many calls wait or are on their way, for what reports on the lane.
func (l *Lane[I, O]) Queued() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.queue) + l.onWay
}
