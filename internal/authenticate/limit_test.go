package authenticate

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/setpointdb/setpoint/internal/identity"
)

// guess shows a token that there is none of, from an address.
func guess(ctx context.Context, a *Authenticator, peer string) error {
	_, text, _, err := identity.NewToken()
	if err != nil {
		return err
	}
	_, err = a.Authenticate(ctx, from(peer, text))
	return err
}

func from(peer, text string) Credentials {
	shown := showing(text)
	shown.Peer = netip.MustParseAddr(peer)
	return shown
}

// guessALot brings a peer above its limit.
func guessALot(t *testing.T, a *Authenticator, peer string) {
	t.Helper()
	for range failureBurst {
		wantKind(t, guess(t.Context(), a, peer), Invalid)
	}
	wantKind(t, guess(t.Context(), a, peer), Limited)
}

// A guesser is told nothing any more, for a while; those at its address go on.
func TestFailuresAreLimited(t *testing.T) {
	t.Parallel()
	a, s, c := newTokens(t)
	good := s.add(t, nil)
	_, err := a.Authenticate(t.Context(), showing(good))
	wantKind(t, err, 0)
	for _, peers := range [][2]string{{"192.0.2.1", "::ffff:192.0.2.1"}, {"2001:db8::1", "2001:db8::ffff:2%eth0"}} {
		guessALot(t, a, peers[0])
		for range 100 {
			wantKind(t, guess(t.Context(), a, peers[1]), Limited)
		}
	}
	wantKind(t, guess(t.Context(), a, "192.0.2.2"), Invalid)
	wantKind(t, guess(t.Context(), a, "2001:db8:0:1::1"), Invalid)

	bad := s.add(t, func(r *identity.TokenRecord) { r.Revoked = true })
	_, err = a.Authenticate(t.Context(), showing(bad))
	wantKind(t, err, Limited)
	again := showing(bad)
	again.Again = true // A call that is open ends for what it ends for.
	_, err = a.Authenticate(t.Context(), again)
	wantKind(t, err, Invalid)

	c.advance(time.Second)
	wantKind(t, guess(t.Context(), a, "192.0.2.1"), Invalid)
	wantKind(t, guess(t.Context(), a, "192.0.2.1"), Limited)
	c.advance(cacheFor) // Known good, and yet to be looked up.
	_, err = a.Authenticate(t.Context(), showing(good))
	wantKind(t, err, 0)
	s.revoke(good)
	c.advance(cacheFor)
	for range failureBurst {
		_ = guess(t.Context(), a, "192.0.2.1")
	}
	_, err = a.Authenticate(t.Context(), showing(good))
	wantKind(t, err, Invalid)
	_, err = a.Authenticate(t.Context(), showing(good))
	wantKind(t, err, Limited)
}

// Whoever shares an address with a guesser gets in, however new: also at a server that has just started.
func TestNewcomersPassGuessers(t *testing.T) {
	t.Parallel()
	a, s, c := newTokens(t)
	restarted := newAuthenticator(t, Config{Modes: []Mode{Token}, LookUp: s.lookUp, Now: c.Now})
	old := s.add(t, nil)
	for _, at := range []*Authenticator{a, restarted} {
		guessALot(t, at, "192.0.2.1")
		for _, text := range []string{old, s.add(t, nil), s.add(t, nil)} {
			for range 2 {
				p, err := at.Authenticate(t.Context(), showing(text))
				if wantKind(t, err, 0); p.Name != "user:ada" {
					t.Errorf("it is %+v", p)
				}
			}
			wantKind(t, guess(t.Context(), at, "192.0.2.1"), Limited)
		}
	}
}

// What is in no form costs no look-up, and counts.
func TestMalformedTokensCount(t *testing.T) {
	t.Parallel()
	a, s, _ := newTokens(t)
	for i := range failureBurst + 100 {
		text, kind := fmt.Sprintf("setpoint_%d", i), Invalid
		if i%2 == 0 {
			text = fmt.Sprintf("guess-%d", i)
		}
		if i >= failureBurst {
			kind = Limited
		}
		_, err := a.Authenticate(t.Context(), showing(text))
		wantKind(t, err, kind)
	}
	if s.count() != 0 {
		t.Error("looked up")
	}
	_, err := a.Authenticate(t.Context(), showing(s.add(t, nil)))
	wantKind(t, err, 0)
}

// The same goes for JWTs, of which those in no form have no keys fetched.
func TestFailuresOfJWTsAreLimited(t *testing.T) {
	t.Parallel()
	rs := newRSA(t, "rsa")
	p := newProvider(t, rs)
	a, c := newOIDC(t, p)
	for i := range failureBurst + 10 {
		kind := Invalid
		if i >= failureBurst {
			kind = Limited
		}
		_, err := a.Authenticate(t.Context(), showing(fmt.Sprintf("a.%d.c", i)))
		wantKind(t, err, kind)
	}
	if p.hits() != 0 {
		t.Error("keys were fetched")
	}
	expired := rs.sign(t, p.claims(c, map[string]any{"exp": c.Now().Add(-time.Hour).Unix()}))
	_, err := a.Authenticate(t.Context(), showing(expired))
	wantKind(t, err, Limited)
	_, err = a.Authenticate(t.Context(), showing(rs.sign(t, p.claims(c, nil))))
	wantKind(t, err, 0)
}

// slowStore is one whose look-ups take a while, of the clock of a bubble.
func slowStore(takes time.Duration) (*store, LookUp, func() int) {
	s := &store{}
	var mu sync.Mutex
	now, most := 0, 0
	count := func(more int) int {
		mu.Lock()
		defer mu.Unlock()
		now += more
		most = max(most, now)
		return most
	}
	return s, func(ctx context.Context, id string) (identity.TokenRecord, bool, error) {
		count(1)
		defer count(-1)
		<-time.After(takes)
		return s.lookUp(ctx, id)
	}, func() int { return count(0) }
}

// Everybody comes back at once, from one address, with credentials that are good: nobody is refused, above the limit or below.
func TestStormsPass(t *testing.T) {
	t.Parallel()
	for name, row := range map[string]struct {
		above bool
		takes time.Duration
		most  int
	}{
		"below the limit": {false, 100 * time.Millisecond, lookupsAtOnce},
		"above the limit": {true, 5 * time.Millisecond, slowAtOnce},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s, lookUp, most := slowStore(row.takes)
				a := newAuthenticator(t, Config{Modes: []Mode{Token}, LookUp: lookUp})
				if row.above {
					for range failureBurst + 1 {
						_, err := a.Authenticate(t.Context(), showing("setpoint_x"))
						if err == nil {
							t.Error("it was taken")
						}
					}
				}
				var storm sync.WaitGroup
				for range 1000 {
					text := s.add(t, nil)
					storm.Go(func() {
						_, err := a.Authenticate(t.Context(), showing(text))
						wantKind(t, err, 0)
					})
				}
				storm.Wait()
				if most() != row.most {
					t.Errorf("%d look-ups at a time, want %d", most(), row.most)
				}
			})
		})
	}
}

// A flood of guesses has few looked up at a time, is told to come again, and hinders nobody at another address.
func TestFloodsAreBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, lookUp, most := slowStore(10 * time.Millisecond)
		a := newAuthenticator(t, Config{Modes: []Mode{Token}, LookUp: lookUp})
		for _, peer := range []string{"192.0.2.1", "192.0.2.2"} {
			for range failureBurst + 1 {
				_, _ = a.Authenticate(t.Context(), from(peer, "setpoint_x"))
			}
		}
		var flood sync.WaitGroup
		var mu sync.Mutex
		kinds := make(map[Kind]int)
		began := time.Now()
		for range 2000 {
			flood.Go(func() {
				refusal, _ := errors.AsType[*Error](guess(t.Context(), a, "192.0.2.1"))
				mu.Lock()
				defer mu.Unlock()
				if kinds[refusal.Kind]++; refusal.Kind == Busy && !strings.Contains(refusal.Message, "being looked at") {
					t.Errorf("the text is %q", refusal.Message)
				}
			})
		}
		synctest.Wait()
		for _, peer := range []string{"192.0.2.2", "192.0.2.3"} { // One above its limit, and one below.
			asked := time.Now()
			_, err := a.Authenticate(t.Context(), from(peer, s.add(t, nil)))
			if wantKind(t, err, 0); time.Since(asked) > 50*time.Millisecond {
				t.Errorf("%s waited for %s", peer, time.Since(asked))
			}
		}
		flood.Wait()
		if took := time.Since(began); took < patience || took > patience+100*time.Millisecond {
			t.Errorf("it took %s", took)
		}
		if kinds[Busy] == 0 || kinds[Invalid] > 3 || kinds[Limited] < 700 || kinds[Busy]+kinds[Limited]+kinds[Invalid] != 2000 {
			t.Errorf("refused as %v", kinds)
		}
		if most() > slowAtOnce+1 { // And the one below the limit.
			t.Errorf("%d look-ups at a time", most())
		}
	})
}

// Failures of many that came at once, below the limit, send those behind them into the slow lane.
func TestFloodsThatBeginBelow(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, lookUp, _ := slowStore(100 * time.Millisecond)
		a := newAuthenticator(t, Config{Modes: []Mode{Token}, LookUp: lookUp})
		var flood sync.WaitGroup
		for range 1000 {
			flood.Go(func() { _ = guess(t.Context(), a, "192.0.2.1") })
		}
		flood.Wait()
		if limit := lookupsAtOnce + slowAtOnce*int(patience/(100*time.Millisecond)); s.count() > 2*limit {
			t.Errorf("%d look-ups", s.count())
		}
	})
}

// Who goes away gives up its turn; what it has begun keeps its place to the end, and counts.
func TestGuessersWhoGoAway(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		_, lookUp, most := slowStore(10 * time.Millisecond)
		a := newAuthenticator(t, Config{Modes: []Mode{Token}, LookUp: lookUp})
		gone := errors.New("gone")
		leave := func(n int) {
			ctx, cancel := context.WithCancelCause(t.Context())
			var guesses sync.WaitGroup
			for range n {
				guesses.Go(func() {
					if err := guess(ctx, a, "192.0.2.1"); !errors.Is(err, gone) {
						t.Errorf("got %v", err)
					}
				})
			}
			synctest.Wait()
			cancel(gone)
			guesses.Wait()
		}
		leave(failureBurst)
		wantKind(t, guess(t.Context(), a, "192.0.2.1"), Limited)
		p := a.limiter.peer(netip.MustParseAddr("192.0.2.1"))
		if before := most(); before != failureBurst {
			t.Fatalf("%d look-ups at a time", before)
		}
		leave(100)
		if l := a.limiter.slowTokens; l.free != slowAtOnce || l.turns.Len() != 0 || len(l.byPeer) != 0 || p.own.free != lookupsAtOnce {
			t.Errorf("what is left: %d places, %d queues", l.free, l.turns.Len())
		}
	})
}

func TestPeersAreBounded(t *testing.T) {
	t.Parallel()
	l := newLimiter()
	for i := range maxPeers + 100 {
		l.peer(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}))
	}
	if got := l.peers.Len(); got != maxPeers {
		t.Errorf("%d peers are remembered", got)
	}
	first, second := l.peer(netip.Addr{}), l.peer(netip.Addr{})
	if first != second || first.network.IsValid() {
		t.Error("those without an address are not one peer")
	}
}

// Peers take turns, however many each has waiting.
func TestLaneTurns(t *testing.T) {
	t.Parallel()
	l := newLane(1)
	if turn, withdraw := l.ask(netip.Prefix{}); !isOpen(turn) || withdraw() {
		t.Fatal("a place was free")
	}
	type waiter struct {
		turn     <-chan struct{}
		withdraw func() bool
	}
	waiting := make(map[string]waiter)
	for _, name := range []string{"a1", "a2", "a3", "b1", "c1", "b2"} {
		turn, withdraw := l.ask(netip.PrefixFrom(netip.AddrFrom4([4]byte{name[0]}), 32))
		waiting[name] = waiter{turn, withdraw}
	}
	if !waiting["c1"].withdraw() {
		t.Error("c has had its turn")
	}
	delete(waiting, "c1")
	for _, next := range []string{"a1", "b1", "a2", "b2", "a3"} {
		l.leave()
		if !isOpen(waiting[next].turn) || waiting[next].withdraw() {
			t.Errorf("it is not the turn of %s", next)
		}
		delete(waiting, next)
		for name, w := range waiting {
			if isOpen(w.turn) {
				t.Errorf("%s has its turn with %s", name, next)
			}
		}
	}
	if l.leave(); l.free != 1 || l.turns.Len() != 0 || len(l.byPeer) != 0 {
		t.Errorf("what is left: %d places, %d queues", l.free, l.turns.Len())
	}
}

func isOpen(turn <-chan struct{}) bool {
	select {
	case <-turn:
		return true
	default:
		return false
	}
}
