package integration

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/testkit"
)

// race is many optimizers that want the same few variables, and use any of several servers for each call.
type race struct {
	clients   []*client.Client
	variables []string
	until     time.Time

	leases, conflicts, gaveUp, abandoned, lost atomic.Int64
}

func (r *race) client(random *rand.Rand) *client.Client {
	return r.clients[random.IntN(len(r.clients))]
}

// optimizer asks for one lease after the other.
func (r *race) optimizer(ctx context.Context, n int, random *rand.Rand) error {
	for i := 0; time.Now().Before(r.until); i++ {
		o, err := r.acquire(ctx, fmt.Sprintf("optimizer-%d-%d", n, i), random)
		if err == nil && o != nil {
			r.leases.Add(1)
			err = r.use(ctx, o, random)
		}
		if err != nil {
			return fmt.Errorf("optimizer %d: %w", n, err)
		}
	}
	return nil
}

// acquire returns nil where it is refused, or gives up.
func (r *race) acquire(ctx context.Context, name string, random *rand.Rand) (*setpointv1.Optimization, error) {
	var wanted []string
	for _, i := range random.Perm(len(r.variables))[:1+random.IntN(2)] {
		wanted = append(wanted, r.variables[i])
	}
	request := asks("race", name, time.Second, wanted...)
	switch random.IntN(5) {
	case 0, 1:
		request.Conflict = setpointv1.ConflictStrategy_CONFLICT_STRATEGY_WAIT
	case 2:
		request.Conflict = setpointv1.ConflictStrategy_CONFLICT_STRATEGY_PREEMPT
		request.Grace = durationpb.New(time.Duration(random.IntN(200)) * time.Millisecond)
	}
	request.Priority = random.Int32N(4)
	o, err := r.client(random).Optimizations.StartOptimization(ctx, request)
	switch {
	case errors.Is(err, client.ErrAlreadyOptimizing):
		r.conflicts.Add(1)
		return nil, nil
	case err != nil:
		return nil, err
	case o.GetState() == stateActive:
		return o, nil
	}
	patient := random.IntN(20) > 0
	wait, cancel := context.WithTimeout(ctx, patience)
	if !patient {
		wait, cancel = context.WithTimeout(ctx, time.Duration(random.IntN(300))*time.Millisecond)
	}
	defer cancel()
	o, err = r.client(random).AwaitLease(wait, "race", o.GetOptimizationId(), nil)
	if refusal := (*client.Error)(nil); !patient && errors.As(err, &refusal) && refusal.Code == codes.DeadlineExceeded {
		r.gaveUp.Add(1) // It stays in the queue, or is granted a lease that it does not know of.
		return nil, nil
	}
	if err != nil {
		err = fmt.Errorf("wait: %w", err)
	}
	return o, err
}

// use writes under a lease, and stops or walks away. A lease may be lost in between: it is short, and some preempt.
func (r *race) use(ctx context.Context, o *setpointv1.Optimization, random *rand.Rand) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	set := func(lease *setpointv1.Lease) error {
		variable := o.GetVariables()[random.IntN(len(o.GetVariables()))]
		return setUnder(ctx, r.client(random), "race", variable, o.GetFencingToken(), lease)
	}
	writes := random.IntN(4)
	if random.IntN(20) == 0 {
		writes = math.MaxInt // Until the lease is over: nobody renews it.
	}
	for range writes {
		err := set(leaseOf(o))
		if errors.Is(err, client.ErrLeaseLost) {
			r.lost.Add(1)
			return nil
		}
		if err != nil {
			return fmt.Errorf("a write under the lease: %w", err)
		}
	}
	old := leaseOf(o)
	old.FencingToken++
	if err := set(old); !errors.Is(err, client.ErrLeaseLost) {
		return fmt.Errorf("a write with another token: got %w, want %w", err, client.ErrLeaseLost)
	}
	if random.IntN(25) == 0 {
		r.abandoned.Add(1)
		return nil
	}
	_, err := r.client(random).Optimizations.StopOptimization(ctx,
		&setpointv1.StopOptimizationRequest{SessionId: "race", OptimizationId: o.GetOptimizationId()})
	if err != nil && !errors.Is(err, client.ErrOptimizationEnded) {
		return fmt.Errorf("stop: %w", err)
	}
	if err := set(leaseOf(o)); !errors.Is(err, client.ErrLeaseLost) {
		return fmt.Errorf("a write after the end: got %w, want %w", err, client.ErrLeaseLost)
	}
	return nil
}

// Optimizers on two servers that ask for overlapping sets of variables, wait, give up, preempt, write, stop and walk away: nobody
// ever has a variable that another has, and in the end nothing is left of them.
func TestOptimizersRace(t *testing.T) {
	t.Parallel()
	const optimizers, length = 24, 6 * time.Second
	clients, url := serveMany(t, 2)
	r := &race{clients: clients, until: time.Now().Add(length)}
	newSession(t, clients[0], "race")
	for i := range 8 {
		name := fmt.Sprintf("var_%d", i)
		register(t, clients[0], "race", name, typeInteger, client.Integer(0))
		r.variables = append(r.variables, name)
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	err := together(optimizers, func(n int) error {
		return r.optimizer(t.Context(), n, rand.New(rand.NewPCG(seed, uint64(n))))
	})
	if err != nil {
		t.Error(err)
	}

	pool := testkit.Pool(t, url)
	awaitNoLeases(t, pool)
	tenures := checkLeases(t, pool, "race")
	checkHistory(t, pool, "race")
	leases := r.leases.Load()
	if leases < optimizers || int64(tenures) < leases {
		t.Errorf("%d leases, of %d variables together", leases, tenures)
	}
	t.Logf("%d leases, of which %d were abandoned and %d lost; %d refusals, %d gave up", leases, r.abandoned.Load(),
		r.lost.Load(), r.conflicts.Load(), r.gaveUp.Load())
}
