package authenticate

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"golang.org/x/time/rate"
)

// How many failures a peer has free, how many more a second, and how many peers are remembered.
const (
	failureBurst = 20
	failureRate  = 1
	maxPeers     = 10_000
)

// How many credentials that are not known to be good are looked at at a time: of a peer below its limit, and of all those above theirs,
// tokens and JWTs each; and how long one waits for its turn.
const (
	lookupsAtOnce = 100
	slowAtOnce    = 4
	patience      = 2 * time.Second
)

// limiter bounds what the failures of peers cost.
type limiter struct {
	mu    sync.Mutex
	peers *simplelru.LRU[netip.Prefix, *peer]
	// slowTokens and slowJWTs are for those above their limit. JWTs may wait for the issuer, and tokens must not wait with them.
	slowTokens, slowJWTs *lane
}

// peer is what is known of those at an address.
type peer struct {
	network  netip.Prefix
	failures *rate.Limiter
	// own is for while there were few.
	own *lane
}

func newLimiter() *limiter {
	peers, err := simplelru.NewLRU[netip.Prefix, *peer](maxPeers, nil)
	if err != nil {
		panic(err) // Its only error is a size below 1.
	}
	return &limiter{peers: peers, slowTokens: newLane(slowAtOnce), slowJWTs: newLane(slowAtOnce)}
}

// peer finds the peer that has an address.
func (l *limiter) peer(addr netip.Addr) *peer {
	network := whose(addr)
	l.mu.Lock()
	defer l.mu.Unlock()
	p, ok := l.peers.Get(network)
	if !ok {
		p = &peer{network: network, failures: rate.NewLimiter(failureRate, failureBurst), own: newLane(lookupsAtOnce)}
		l.peers.Add(network, p)
	}
	return p
}

// whose is the address, or the network of it, that one peer has: an IPv6 /64 is one's to choose addresses from.
func whose(addr netip.Addr) netip.Prefix {
	addr = addr.Unmap().WithZone("")
	bits := 64
	if addr.Is4() {
		bits = 32
	}
	prefix, err := addr.Prefix(bits)
	if err != nil {
		return netip.Prefix{} // The zero address: all that have none are one peer.
	}
	return prefix
}

func (p *peer) isAbove(now time.Time) bool { return p.failures.TokensAt(now) < 1 }

// enter waits until credentials of the peer's may be looked at, in a slow lane if the peer is above its limit. It returns what is to be
// called when they were. A refusal is of the kind Busy.
func (p *peer) enter(ctx context.Context, slow *lane, now func() time.Time) (func(), error) {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	if !p.isAbove(now()) {
		if err := p.own.enter(ctx, p.network, timer.C); err != nil {
			return nil, err
		}
		if !p.isAbove(now()) { // Those before it may all have failed.
			return p.own.leave, nil
		}
		p.own.leave()
	}
	if err := slow.enter(ctx, p.network, timer.C); err != nil {
		return nil, err
	}
	return slow.leave, nil
}

// judge counts a failure, and is what to answer: above the limit nobody is told what was wrong.
func (p *peer) judge(err error, now time.Time) error {
	refusal, ok := errors.AsType[*Error](err)
	if !ok || refusal.Kind != Invalid || p.failures.AllowN(now, 1) {
		return err
	}
	return refuse(Limited, "too many credentials from this address were not good, these among them; try again later")
}
