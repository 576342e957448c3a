package lease

import (
	"context"
	"sync"
	"time"
)

// Key names an optimization.
type Key struct{ Session, Optimization string }

// Place is where an optimization is in the queue.
type Place struct {
	// State is as the database names it; empty if the optimization, or its session, is gone.
	State string
	// Position counts from 1.
	Position int
	// Ready: nothing stands in the way of the grant.
	Ready bool
}

// Config is what a room needs.
type Config struct {
	// Look tells the places of all, in order, as of one moment.
	Look func(ctx context.Context, keys []Key) ([]Place, error)
	// Stay extends the stays in the queue of a session.
	Stay func(ctx context.Context, session string, optimizations []string) error
	// Failed is told of a Look or a Stay that failed. Both are tried again.
	Failed func(ctx context.Context, err error)
	// Interval is the time between looks; what other servers, and the clock, have done is seen that late. Default 250 ms.
	Interval time.Duration
}

// Room looks after those who wait on this server, all of them with one statement: however many they are, and whoever wakes
// them, the database is asked once. It is idle while nobody waits. Safe for concurrent use.
type Room struct {
	config Config
	ctx    context.Context
	close  context.CancelFunc
	done   chan struct{}

	mu    sync.Mutex
	seats map[*Seat]struct{}
	woken map[string]struct{}
	// wake has room for one: more would say the same.
	wake chan struct{}
}

// Seat is one who waits.
type Seat struct {
	// Places tells of each change, and at every look that the grant is ready. Who is slow sees the latest.
	Places chan Place

	room *Room
	key  Key
	ttl  time.Duration
	last Place
	// stayed is when the stay was last extended.
	stayed time.Time
}

// NewRoom opens a room. Close it before what Look and Stay use.
func NewRoom(config Config) *Room {
	if config.Interval <= 0 {
		config.Interval = 250 * time.Millisecond
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &Room{
		config: config, ctx: ctx, close: cancel, done: make(chan struct{}), seats: map[*Seat]struct{}{},
		woken: map[string]struct{}{}, wake: make(chan struct{}, 1),
	}
	go r.run()
	return r
}

// Close ends the room. Seats hear nothing any more.
func (r *Room) Close() {
	r.close()
	<-r.done
}

// Enter takes a seat for an optimization whose stay in the queue has just begun or been extended, and ends ttl after.
func (r *Room) Enter(key Key, ttl time.Duration) *Seat {
	seat := &Seat{Places: make(chan Place, 1), room: r, key: key, ttl: ttl, stayed: time.Now()}
	r.mu.Lock()
	r.seats[seat] = struct{}{}
	r.mu.Unlock()
	r.Wake(key.Session)
	return seat
}

// Leave gives the seat up. The stay in the queue goes on until its time is over.
func (s *Seat) Leave() {
	s.room.mu.Lock()
	defer s.room.mu.Unlock()
	delete(s.room.seats, s)
}

// Wake has those who wait in a session looked after at once: something there was freed.
func (r *Room) Wake(session string) {
	r.mu.Lock()
	r.woken[session] = struct{}{}
	waits := len(r.seats) > 0
	if !waits {
		delete(r.woken, session)
	}
	r.mu.Unlock()
	if !waits {
		return
	}
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

func (r *Room) run() {
	defer close(r.done)
	ticker := time.NewTicker(r.config.Interval)
	defer ticker.Stop()
	for {
		select {
		case <-r.ctx.Done():
			return
		case <-r.wake:
			r.look(r.chosen(true))
		case <-ticker.C:
			seats := r.chosen(false)
			r.stay(seats)
			r.look(seats)
		}
	}
}

// chosen are the seats in the sessions that were woken, or all.
func (r *Room) chosen(woken bool) []*Seat {
	r.mu.Lock()
	defer r.mu.Unlock()
	var seats []*Seat
	for seat := range r.seats {
		if _, ok := r.woken[seat.key.Session]; ok || !woken {
			seats = append(seats, seat)
		}
	}
	clear(r.woken)
	return seats
}

// timeout bounds a look and a stay: behind a database that is away the next is to be tried.
const timeout = 10 * time.Second

func (r *Room) look(seats []*Seat) {
	if len(seats) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(r.ctx, timeout)
	defer cancel()
	keys := make([]Key, len(seats))
	for i, seat := range seats {
		keys[i] = seat.key
	}
	places, err := r.config.Look(ctx, keys)
	if err != nil {
		r.failed(err)
		return
	}
	for i, seat := range seats {
		if place := places[i]; place != seat.last || place.Ready {
			seat.last = place
			seat.tell(place)
		}
	}
}

// tell replaces what the seat has not heard yet.
func (s *Seat) tell(place Place) {
	select {
	case <-s.Places:
	default:
	}
	s.Places <- place // Nobody else sends.
}

// stay extends those stays of which a third is over.
func (r *Room) stay(seats []*Seat) {
	now := time.Now()
	due := map[string][]string{}
	for _, seat := range seats {
		if now.Sub(seat.stayed) >= seat.ttl/3 {
			due[seat.key.Session] = append(due[seat.key.Session], seat.key.Optimization)
		}
	}
	for session, optimizations := range due {
		ctx, cancel := context.WithTimeout(r.ctx, timeout)
		err := r.config.Stay(ctx, session, optimizations)
		cancel()
		if err != nil {
			r.failed(err)
			continue
		}
		for _, seat := range seats {
			if seat.key.Session == session && now.Sub(seat.stayed) >= seat.ttl/3 {
				seat.stayed = now
			}
		}
	}
}

func (r *Room) failed(err error) {
	if r.ctx.Err() == nil {
		r.config.Failed(r.ctx, err)
	}
}
