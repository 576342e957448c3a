package authenticate

import (
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"golang.org/x/time/rate"
)

// How many failures a peer has free, how many more a second, how many look-ups at a time, and how many peers are remembered.
const (
	failureBurst  = 20
	failureRate   = 1
	lookupsAtOnce = 100
	maxPeers      = 10_000
)

// limiter bounds the failures of peers.
type limiter struct {
	mu    sync.Mutex
	peers *simplelru.LRU[netip.Prefix, *peer]
}

// peer is what is known of those at an address.
type peer struct {
	failures *rate.Limiter
	// lookups are under way.
	lookups int
}

func newLimiter() *limiter {
	peers, err := simplelru.NewLRU[netip.Prefix, *peer](maxPeers, nil)
	if err != nil {
		panic(err) // Its only error is a size below 1.
	}
	return &limiter{peers: peers}
}

// admit lets a peer try credentials, unless too many were not good; the result is to be told whether these were refused.
func (l *limiter) admit(addr netip.Addr, now time.Time) (func(refused bool), error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	key := whose(addr)
	p, ok := l.peers.Get(key)
	if !ok {
		p = &peer{failures: rate.NewLimiter(failureRate, failureBurst)}
		l.peers.Add(key, p)
	}
	if p.lookups >= lookupsAtOnce || p.failures.TokensAt(now) < 1 {
		return nil, refuse(Limited, "too many credentials from this address were not good; try again later")
	}
	p.lookups++
	return func(refused bool) {
		l.mu.Lock()
		defer l.mu.Unlock()
		p.lookups--
		if refused {
			p.failures.AllowN(now, 1)
		}
	}, nil
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
