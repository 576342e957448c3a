package lease_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/setpointdb/setpoint/internal/lease"
)

// hall is a room with what it was asked for.
type hall struct {
	*lease.Room
	t      *testing.T
	mu     sync.Mutex
	places map[lease.Key]lease.Place
	looks  [][]lease.Key
	stays  []string
	errs   []error
	broken error
	// stuck holds up the stays of a session until it is closed.
	stuck map[string]chan struct{}
	// gate holds up every look until it is closed.
	gate chan struct{}
}

func open(t *testing.T) *hall {
	h := &hall{t: t, places: map[lease.Key]lease.Place{}}
	h.Room = lease.NewRoom(lease.Config{
		Look: h.look, Stay: h.stay, Interval: time.Second,
		Failed: func(_ context.Context, err error) {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.errs = append(h.errs, err)
		},
	})
	t.Cleanup(h.Close)
	return h
}

func (h *hall) look(_ context.Context, keys []lease.Key) ([]lease.Seen, error) {
	if h.gate != nil {
		<-h.gate
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.broken != nil {
		return nil, h.broken
	}
	h.looks = append(h.looks, slices.SortedFunc(slices.Values(keys), func(a, b lease.Key) int {
		return slices.Compare([]string{a.Session, a.Optimization}, []string{b.Session, b.Optimization})
	}))
	places := make([]lease.Seen, len(keys))
	for i, key := range keys {
		places[i].Place = h.places[key]
	}
	return places, nil
}

func (h *hall) stay(_ context.Context, session string, ids []string) error {
	if stuck, ok := h.stuck[session]; ok {
		<-stuck
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.broken != nil {
		return h.broken
	}
	slices.Sort(ids)
	h.stays = append(h.stays, fmt.Sprint(session, ids))
	return nil
}

func (h *hall) put(key lease.Key, place lease.Place) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.places[key] = place
}

func (h *hall) fail(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.broken = err
}

func (h *hall) want(what string, want, got any) {
	h.t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	if diff := cmp.Diff(want, got); diff != "" {
		h.t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

// pass has time go by, and then all come to rest.
func pass(d time.Duration) {
	time.Sleep(d) //nolint:forbidigo // The bubble's clock.
	synctest.Wait()
}

// Whoever wakes a session has all that wait in it looked after at once, by one look; a room in which nobody sits asks nothing.
func TestOneLookForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := open(t)
		h.Wake("s")
		pass(10 * time.Second)
		h.want("looks of an empty room", [][]lease.Key(nil), h.looks)
		a, b, other := lease.Key{Session: "s", Optimization: "a"}, lease.Key{Session: "s", Optimization: "b"},
			lease.Key{Session: "t", Optimization: "c"}
		var seats []*lease.Seat
		for _, key := range []lease.Key{a, b, other} {
			h.put(key, lease.Place{State: "waiting", Position: 2})
			seats = append(seats, h.Enter(key, time.Hour))
		}
		synctest.Wait()
		for _, seat := range seats {
			h.want("first place", lease.Place{State: "waiting", Position: 2}, (<-seat.Places).Place)
		}
		h.looks = nil
		h.put(a, lease.Place{State: "waiting", Position: 1, Ready: true})
		h.gate = make(chan struct{})
		for range 100 {
			h.Wake("s")
			synctest.Wait()
		}
		close(h.gate)
		synctest.Wait()
		h.want("the place", lease.Place{State: "waiting", Position: 1, Ready: true}, (<-seats[0].Places).Place)
		h.want("looks: the one under way, and one for all who came since", 2, len(h.looks))
		for _, keys := range h.looks {
			h.want("who is looked after", []lease.Key{a, b}, keys)
		}
		select {
		case place := <-seats[1].Places:
			t.Errorf("told of no change: %v", place)
		default:
		}
		// What other servers and the clock do is seen at the next interval, and readiness is told until it is used.
		h.put(other, lease.Place{State: "expired"})
		pass(time.Second)
		h.want("another server's change", lease.Place{State: "expired"}, (<-seats[2].Places).Place)
		h.want("still ready", lease.Place{State: "waiting", Position: 1, Ready: true}, (<-seats[0].Places).Place)
		for _, seat := range seats {
			seat.Leave()
		}
		h.looks = nil
		pass(10 * time.Second)
		h.want("looks after all have left", [][]lease.Key(nil), h.looks)
	})
}

// Who is slow to listen hears the latest, and holds nobody up.
func TestTheLatestPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := open(t)
		key := lease.Key{Session: "s", Optimization: "a"}
		seat := h.Enter(key, time.Hour)
		for position := range 5 {
			h.put(key, lease.Place{State: "waiting", Position: 5 - position})
			pass(time.Second)
		}
		h.want("place", lease.Place{State: "waiting", Position: 1}, (<-seat.Places).Place)
	})
}

// Stays are extended when a third of them is over, those of a session together; what fails is tried again.
func TestStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := open(t)
		for _, id := range []string{"a", "b"} {
			h.Enter(lease.Key{Session: "s", Optimization: id}, 30*time.Second)
		}
		h.Enter(lease.Key{Session: "t", Optimization: "c"}, 60*time.Second)
		pass(9500 * time.Millisecond)
		h.want("too early", []string(nil), h.stays)
		h.fail(errors.New("the database is away"))
		pass(3 * time.Second)
		if len(h.errs) == 0 {
			t.Error("nobody was told")
		}
		h.fail(nil)
		pass(time.Second)
		h.want("at last", []string{"s[a b]"}, h.stays)
		pass(8 * time.Second)
		h.want("each in its time", []string{"s[a b]", "t[c]"}, h.stays)
		pass(2 * time.Second)
		h.want("and again", []string{"s[a b]", "t[c]", "s[a b]"}, h.stays)
	})
}

// A session that is locked holds up nobody in another, neither stays nor looks.
func TestOneStuckSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := open(t)
		free := make(chan struct{})
		h.stuck = map[string]chan struct{}{"s": free}
		h.Enter(lease.Key{Session: "s", Optimization: "a"}, 3*time.Second)
		other := lease.Key{Session: "t", Optimization: "b"}
		seat := h.Enter(other, 3*time.Second)
		pass(5500 * time.Millisecond)
		h.want("stays", []string{"t[b]", "t[b]", "t[b]", "t[b]", "t[b]"}, h.stays)
		h.put(other, lease.Place{State: "waiting", Ready: true})
		h.Wake("t")
		synctest.Wait()
		h.want("place", lease.Place{State: "waiting", Ready: true}, (<-seat.Places).Place)
		close(free)
		synctest.Wait()
		h.want("the last one", "s[a]", h.stays[len(h.stays)-1])
	})
}

// A place that could not be used is told again.
func TestAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := open(t)
		key := lease.Key{Session: "s", Optimization: "a"}
		h.put(key, lease.Place{State: "active"})
		seat := h.Enter(key, time.Hour)
		synctest.Wait()
		<-seat.Places
		pass(3 * time.Second)
		select {
		case place := <-seat.Places:
			t.Errorf("told twice: %v", place)
		default:
		}
		seat.Again()
		pass(time.Second)
		h.want("place", lease.Place{State: "active"}, (<-seat.Places).Place)
	})
}
