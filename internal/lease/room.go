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

// Seen is a place, with the time that the stay in the queue had left when it was seen.
type Seen struct {
	Place
	// ExpiresAt and ReadAt are by the database's clock.
	ExpiresAt, ReadAt time.Time
}

// Config is what a room needs.
type Config struct {
	// Look tells the places of all, in order, as of one moment.
	Look func(ctx context.Context, keys []Key) ([]Seen, error)
	// Stay extends the stays in the queue of a session. Those of several sessions are extended at once.
	Stay func(ctx context.Context, session string, optimizations []string) error
	// Failed is told of a Look or a Stay that failed. Both are tried again.
	Failed func(ctx context.Context, err error)
	// Interval is the time between looks; what other servers, and the clock, have done is seen that late. Default 250 ms.
	Interval time.Duration
}

// Room looks after those who wait on this server, all of them with one statement: however many they are, and whoever wakes
// them, the database is asked once. A session that somebody has locked for long holds up its own stays alone. The room is idle
// while nobody waits. Safe for concurrent use.
type Room struct {
	config Config
	ctx    context.Context
	close  context.CancelFunc
	tasks  sync.WaitGroup

	mu    sync.Mutex
	seats map[*Seat]struct{}
	woken map[string]struct{}
	// staying are the sessions whose stays are being extended.
	staying map[string]struct{}
	// wake has room for one: more would say the same.
	wake chan struct{}
}

// Seat is one who waits.
type Seat struct {
	// Places tells of each change, and at every look that the grant is ready. Who is slow sees the latest.
	Places chan Seen

	room *Room
	key  Key
	ttl  time.Duration
	// What follows is guarded by the room's lock.
	last Place
	// again: the place is to be told though it is as before.
	again bool
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
		config: config, ctx: ctx, close: cancel, seats: map[*Seat]struct{}{}, woken: map[string]struct{}{},
		staying: map[string]struct{}{}, wake: make(chan struct{}, 1),
	}
	r.tasks.Go(r.run)
	return r
}

// Close ends the room. Seats hear nothing any more.
func (r *Room) Close() {
	r.close()
	r.tasks.Wait()
}

// Enter takes a seat for an optimization whose stay in the queue has just begun or been extended, and ends ttl after.
func (r *Room) Enter(key Key, ttl time.Duration) *Seat {
	seat := &Seat{Places: make(chan Seen, 1), room: r, key: key, ttl: ttl, stayed: time.Now()}
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

// Again has the place told at the next look, whatever it is: who was told of it could do nothing about it.
func (s *Seat) Again() {
	s.room.mu.Lock()
	defer s.room.mu.Unlock()
	s.again = true
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
	ticker := time.NewTicker(r.config.Interval)
	defer ticker.Stop()
	for {
		select {
		case <-r.ctx.Done():
			return
		case <-r.wake:
			r.hurry(r.woke())
		case <-ticker.C:
			r.stay()
			r.look(r.seated(func(*Seat) bool { return true }))
		}
	}
}

// woke are the sessions that were woken since.
func (r *Room) woke() map[string]struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	woken := r.woken
	r.woken = map[string]struct{}{}
	return woken
}

// seated are the seats that are asked for.
func (r *Room) seated(asked func(*Seat) bool) []*Seat {
	r.mu.Lock()
	defer r.mu.Unlock()
	var seats []*Seat
	for seat := range r.seats {
		if asked(seat) {
			seats = append(seats, seat)
		}
	}
	return seats
}

// front is how far back in the queue those are who may have come to its head since they were last looked at.
const front = 2

// hurry looks after those who may get what was freed: those in front, as far as is known, and, where it is for none of them,
// all. Their new places the others are told at the next interval.
func (r *Room) hurry(woken map[string]struct{}) {
	inThese := func(seat *Seat) bool {
		_, ok := woken[seat.key.Session]
		return ok
	}
	if !r.look(r.seated(func(seat *Seat) bool { return inThese(seat) && seat.last.Position <= front })) {
		r.look(r.seated(func(seat *Seat) bool { return inThese(seat) && seat.last.Position > front }))
	}
}

// timeout bounds a look and a stay: behind a database that is away the next is to be tried.
const timeout = 10 * time.Second

// look tells the seats their places; true if one of them can be granted.
func (r *Room) look(seats []*Seat) bool {
	if len(seats) == 0 {
		return false
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
		return false
	}
	ready := false
	for i, seat := range seats {
		ready = ready || places[i].Ready
		if r.isNews(seat, places[i].Place) {
			seat.tell(places[i])
		}
	}
	return ready
}

func (r *Room) isNews(seat *Seat, place Place) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	news := place != seat.last || place.Ready || seat.again
	seat.last, seat.again = place, false
	return news
}

// tell replaces what the seat has not heard yet.
func (s *Seat) tell(place Seen) {
	select {
	case <-s.Places:
	default:
	}
	s.Places <- place // Nobody else sends.
}

// stay extends those stays of which a third is over, each session on its own.
func (r *Room) stay() {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	due := map[string][]*Seat{}
	for seat := range r.seats {
		if _, busy := r.staying[seat.key.Session]; !busy && now.Sub(seat.stayed) >= seat.ttl/3 {
			due[seat.key.Session] = append(due[seat.key.Session], seat)
		}
	}
	for session, seats := range due {
		r.staying[session] = struct{}{}
		r.tasks.Go(func() { r.stayIn(session, seats, now) })
	}
}

// stayIn extends the stays of a session. What fails is due again.
func (r *Room) stayIn(session string, seats []*Seat, now time.Time) {
	ctx, cancel := context.WithTimeout(r.ctx, timeout)
	defer cancel()
	ids := make([]string, len(seats))
	for i, seat := range seats {
		ids[i] = seat.key.Optimization
	}
	err := r.config.Stay(ctx, session, ids)
	r.mu.Lock()
	delete(r.staying, session)
	for _, seat := range seats {
		if err == nil {
			seat.stayed = now
		}
	}
	r.mu.Unlock()
	if err != nil {
		r.failed(err)
	}
}

func (r *Room) failed(err error) {
	if r.ctx.Err() == nil {
		r.config.Failed(r.ctx, err)
	}
}
