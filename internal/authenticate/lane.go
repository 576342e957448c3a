package authenticate

import (
	"container/list"
	"context"
	"net/netip"
	"sync"
	"time"
)

// lane lets so many pass at a time. Others wait: the peers that do take turns, however many wait of each, and those of one peer pass in
// the order in which they came. Safe for concurrent use.
type lane struct {
	mu   sync.Mutex
	free int
	// turns are the queues that are not empty, the next one first; byPeer finds them.
	turns  list.List
	byPeer map[netip.Prefix]*list.Element
}

// queue are those of a peer that wait: channels, which are closed when it is their turn.
type queue struct {
	peer    netip.Prefix
	waiting list.List
}

func newLane(places int) *lane {
	return &lane{free: places, byPeer: make(map[netip.Prefix]*list.Element)}
}

// enter waits for a place, which leave gives back. Where there is none before the deadline strikes, it refuses with Busy.
func (l *lane) enter(ctx context.Context, peer netip.Prefix, deadline <-chan time.Time) error {
	turn, withdraw := l.ask(peer)
	var err error
	select {
	case <-turn:
		return nil
	case <-deadline:
		err = refuse(Busy, "too many credentials are being looked at; try again")
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	if !withdraw() {
		l.leave() // Its turn has come meanwhile, and is another's.
	}
	return err
}

// ask takes a place, or queues for one: the channel is closed when there is. The function ends the waiting, or is false if it is over.
func (l *lane) ask(peer netip.Prefix) (<-chan struct{}, func() bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	turn := make(chan struct{})
	if l.free > 0 {
		l.free--
		close(turn)
		return turn, func() bool { return false }
	}
	place, ok := l.byPeer[peer]
	if !ok {
		place = l.turns.PushBack(&queue{peer: peer})
		l.byPeer[peer] = place
	}
	waiting := &queueOf(place).waiting
	waiter := waiting.PushBack(turn)
	return turn, func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		select {
		case <-turn:
			return false
		default:
		}
		waiting.Remove(waiter)
		l.dropIfEmpty(place)
		return true
	}
}

// leave gives a place back, to whoever is next.
func (l *lane) leave() {
	l.mu.Lock()
	defer l.mu.Unlock()
	next := l.turns.Front()
	if next == nil {
		l.free++
		return
	}
	waiting := &queueOf(next).waiting
	turn, _ := waiting.Remove(waiting.Front()).(chan struct{})
	close(turn)
	l.turns.MoveToBack(next)
	l.dropIfEmpty(next)
}

func (l *lane) dropIfEmpty(place *list.Element) {
	if q := queueOf(place); q.waiting.Len() == 0 {
		l.turns.Remove(place)
		delete(l.byPeer, q.peer)
	}
}

func queueOf(place *list.Element) *queue {
	q, _ := place.Value.(*queue)
	return q
}
