package integration

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"google.golang.org/grpc"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/testkit"
)

const (
	stateWaiting   = setpointv1.OptimizationState_OPTIMIZATION_STATE_WAITING
	stateActive    = setpointv1.OptimizationState_OPTIMIZATION_STATE_ACTIVE
	stateCompleted = setpointv1.OptimizationState_OPTIMIZATION_STATE_COMPLETED
	stateExpired   = setpointv1.OptimizationState_OPTIMIZATION_STATE_EXPIRED
)

// asks is a request that waits for nobody.
func asks(session, optimizer string, ttl time.Duration, variables ...string) *setpointv1.StartOptimizationRequest {
	return &setpointv1.StartOptimizationRequest{
		SessionId: session, Variables: variables, OptimizerId: optimizer, Ttl: durationpb.New(ttl)}
}

// queues is a request that waits in the queue.
func queues(session, optimizer string, ttl time.Duration, variables ...string) *setpointv1.StartOptimizationRequest {
	request := asks(session, optimizer, ttl, variables...)
	request.Conflict = setpointv1.ConflictStrategy_CONFLICT_STRATEGY_WAIT
	return request
}

func optimize(t *testing.T, c *client.Client, request *setpointv1.StartOptimizationRequest) *setpointv1.Optimization {
	t.Helper()
	o, err := c.Optimizations.StartOptimization(t.Context(), request)
	if err != nil {
		t.Fatalf("start an optimization of %v: %v", request.GetVariables(), err)
	}
	return o
}

func optimization(t *testing.T, c *client.Client, session, id string) *setpointv1.Optimization {
	t.Helper()
	o, err := c.Optimizations.GetOptimization(t.Context(),
		&setpointv1.GetOptimizationRequest{SessionId: session, OptimizationId: id})
	if err != nil {
		t.Fatalf("get optimization %s: %v", id, err)
	}
	return o
}

// awaitState polls until an optimization is in a state, which the clock may bring about.
func awaitState(t *testing.T, c *client.Client, of *setpointv1.Optimization,
	want setpointv1.OptimizationState) *setpointv1.Optimization {
	t.Helper()
	var o *setpointv1.Optimization
	testkit.Eventually(t, patience, func() error {
		if o = optimization(t, c, of.GetSessionId(), of.GetOptimizationId()); o.GetState() != want {
			return fmt.Errorf("%s is %s, not %s", o.GetOptimizerId(), o.GetState(), want)
		}
		return nil
	})
	return o
}

func stop(t *testing.T, c *client.Client, o *setpointv1.Optimization) *setpointv1.StopOptimizationResponse {
	t.Helper()
	answer, err := c.Optimizations.StopOptimization(t.Context(),
		&setpointv1.StopOptimizationRequest{SessionId: o.GetSessionId(), OptimizationId: o.GetOptimizationId()})
	if err != nil {
		t.Fatalf("stop %s: %v", o.GetOptimizerId(), err)
	}
	return answer
}

// setUnder sets an integer under a lease, or under none.
func setUnder(ctx context.Context, c *client.Client, session, variable string, value int64, lease *setpointv1.Lease) error {
	_, err := c.Variables.SetVariable(ctx, &setpointv1.SetVariableRequest{
		SessionId: session, Variable: variable, Value: client.Integer(value), Lease: lease})
	return err
}

// awaited is what came of an AwaitLease.
type awaited struct {
	o   *setpointv1.Optimization
	err error
}

// awaitLease waits for a lease in the background.
func awaitLease(ctx context.Context, c *client.Client, o *setpointv1.Optimization) <-chan awaited {
	done := make(chan awaited, 1)
	go func() {
		granted, err := c.AwaitLease(ctx, o.GetSessionId(), o.GetOptimizationId(), nil)
		done <- awaited{granted, err}
	}()
	return done
}

// granted returns the lease that was waited for.
func granted(t *testing.T, from <-chan awaited) *setpointv1.Optimization {
	t.Helper()
	select {
	case got := <-from:
		if got.err != nil {
			t.Fatalf("wait for a lease: %v", got.err)
		}
		return got.o
	case <-time.After(patience):
		t.Fatal("no lease after a long time")
		return nil
	}
}

// dialAny connects to the first server that is there, in their order, whenever it has no connection.
func dialAny(t *testing.T, servers []*server, options ...client.Option) *client.Client {
	t.Helper()
	addresses := manual.NewBuilderWithScheme("servers")
	var state resolver.State
	for _, s := range servers {
		state.Endpoints = append(state.Endpoints, resolver.Endpoint{Addresses: []resolver.Address{{Addr: s.grpc}}})
	}
	addresses.InitialState(state)
	c, err := client.Dial("servers:///", append(options, client.WithDialOptions(grpc.WithResolvers(addresses)))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// leaseRow is a row of history, of what leases are about.
type leaseRow struct {
	Revision       int64
	Variable       string
	Change         string
	OptimizationID *string
	TrialNumber    *int64
	Value          *string
	Reason         string
	ChangedBy      string
}

func leaseHistory(t *testing.T, pool *pgxpool.Pool, session string) []leaseRow {
	t.Helper()
	found, err := pool.Query(t.Context(), `select revision, name, change, optimization_id, trial_number, value #>> '{}', reason,
		changed_by from setpoint.history where session_id = $1 order by revision`, session)
	if err != nil {
		t.Fatalf("read history: %v", err)
	}
	rows, err := pgx.CollectRows(found, pgx.RowToStructByPos[leaseRow])
	if err != nil {
		t.Fatalf("read history: %v", err)
	}
	return rows
}

// changesOf are the changes that history has of an optimization, in order.
func changesOf(rows []leaseRow, o *setpointv1.Optimization) []string {
	var changes []string
	for _, r := range rows {
		if r.OptimizationID != nil && *r.OptimizationID == o.GetOptimizationId() {
			changes = append(changes, r.Change)
		}
	}
	return changes
}

// tenure is the lease of one optimization on one variable, as its record has it.
type tenure struct {
	Variable       string
	OptimizationID string
	Token          int64
	StartedAt      time.Time
	EndedAt        *time.Time
}

// checkLeases fails the test unless at every moment at most one optimization had each variable, by the records and by
// history; tokens only grew; and every change of a value that history has was made by the one that had the variable, if there
// was one. It returns how many leases there were.
func checkLeases(t *testing.T, pool *pgxpool.Pool, session string) int {
	t.Helper()
	found, err := pool.Query(t.Context(), `select x.name, o.optimization_id, o.fencing_token, o.started_at, o.ended_at
		from setpoint.optimizations o join setpoint.optimization_variables x using (session_id, optimization_id)
		where session_id = $1 and o.started_at is not null order by x.name, o.fencing_token`, session)
	if err != nil {
		t.Fatalf("read optimizations: %v", err)
	}
	tenures, err := pgx.CollectRows(found, pgx.RowToStructByPos[tenure])
	if err != nil {
		t.Fatalf("read optimizations: %v", err)
	}
	var last tenure
	for _, next := range tenures {
		if next.Variable == last.Variable && (next.Token <= last.Token || last.EndedAt == nil ||
			next.StartedAt.Before(*last.EndedAt)) {
			t.Errorf("%s: %+v overlaps %+v, or its token is not greater", next.Variable, next, last)
		}
		last = next
	}

	holder := map[string]string{}
	for _, r := range leaseHistory(t, pool, session) {
		by := ""
		if r.OptimizationID != nil {
			by = *r.OptimizationID
		}
		switch r.Change {
		case "lease_granted":
			if holder[r.Variable] != "" {
				t.Errorf("revision %d: %s was granted to %s while %s had it", r.Revision, r.Variable, by, holder[r.Variable])
			}
			holder[r.Variable] = by
		case "lease_ended":
			if holder[r.Variable] != by {
				t.Errorf("revision %d: the lease of %s on %s ended while %s had it", r.Revision, by, r.Variable, holder[r.Variable])
			}
			delete(holder, r.Variable)
		default:
			if holder[r.Variable] != by {
				t.Errorf("revision %d: %s %s by %q while %q had it", r.Revision, r.Change, r.Variable, by, holder[r.Variable])
			}
		}
	}
	var late int
	err = pool.QueryRow(t.Context(), `select count(*) from setpoint.history h join setpoint.optimizations o
		using (session_id, optimization_id) where session_id = $1 and h.change = 'set' and h.changed_at >= o.ended_at`,
		session).Scan(&late)
	if err != nil || late > 0 {
		t.Errorf("%d writes under a lease came after its end (%v)", late, err)
	}
	return len(tenures)
}

// awaitNoLeases returns when nothing is left of the leases: no optimization is open, nobody is in the queue, and no variable is
// leased.
func awaitNoLeases(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	testkit.Eventually(t, patience, func() error {
		var open, waiting, leased int
		err := pool.QueryRow(t.Context(), `select
			(select count(*) from setpoint.optimizations where ended_at is null),
			(select count(*) from setpoint.optimization_waiters),
			(select count(*) from setpoint.variables where lease_expires_at is not null)`).Scan(&open, &waiting, &leased)
		if err == nil && open+waiting+leased > 0 {
			err = fmt.Errorf("%d optimizations are open, %d rows in the queue, %d variables leased", open, waiting, leased)
		}
		return err
	})
}

// Those who wait are one queue, on whichever server each of them waits.
func TestWaitersOnTwoServersAreOneQueue(t *testing.T) {
	t.Parallel()
	const waiters, ttl = 8, 5 * time.Second
	clients, url := serveMany(t, 2)
	newSession(t, clients[0], "queue")
	register(t, clients[0], "queue", "var_a", typeInteger, client.Integer(0))
	register(t, clients[0], "queue", "var_b", typeInteger, client.Integer(0))
	holder := optimize(t, clients[0], asks("queue", "holder", time.Minute, "var_a"))

	var leases []<-chan awaited
	for i := range waiters {
		c := clients[i%2]
		o := optimize(t, c, queues("queue", fmt.Sprintf("waiter-%d", i), ttl, "var_a"))
		if o.GetState() != stateWaiting || o.GetQueuePosition() != int32(i)+1 || o.GetFencingToken() != 0 {
			t.Errorf("waiter %d was answered %v", i, o)
		}
		// Waiting at another server than it asked is as good.
		leases = append(leases, awaitLease(t.Context(), clients[(i/2)%2], o))
	}
	// Who wants a part of what nobody has is not held up by those who wait for the rest, and does not overtake them.
	_, err := clients[1].Optimizations.StartOptimization(t.Context(), asks("queue", "late", ttl, "var_b", "var_a"))
	refused(t, "start of one that does not wait", err, client.ErrAlreadyOptimizing)
	stop(t, clients[1], optimize(t, clients[1], asks("queue", "beside", ttl, "var_b")))
	status, err := clients[1].Optimizations.GetOptimizationStatus(t.Context(),
		&setpointv1.GetOptimizationStatusRequest{SessionId: "queue", Variable: "var_a"})
	if err != nil || status.GetOptimization().GetOptimizerId() != "holder" || status.GetWaitingCount() != waiters {
		t.Errorf("status: got %v, %v", status, err)
	}

	stop(t, clients[1], holder)
	token := holder.GetFencingToken()
	for i, lease := range leases {
		o := granted(t, lease)
		want := fmt.Sprintf("waiter-%d", i)
		if o.GetOptimizerId() != want || o.GetState() != stateActive || o.GetFencingToken() <= token {
			t.Errorf("grant %d: got %v", i, o)
		}
		token = o.GetFencingToken()
		for j, later := range leases[i+1:] {
			select {
			case got := <-later:
				t.Fatalf("waiter %d was answered before waiter %d had gone: %v, %v", i+1+j, i, got.o, got.err)
			default:
			}
		}
		if err := setUnder(t.Context(), clients[(i+1)%2], "queue", "var_a", int64(i), leaseOf(o)); err != nil {
			t.Errorf("a write by waiter %d: %v", i, err)
		}
		stop(t, clients[(i+1)%2], o)
	}
	pool := testkit.Pool(t, url)
	awaitNoLeases(t, pool)
	if n := checkLeases(t, pool, "queue"); n != waiters+2 {
		t.Errorf("there were %d leases, want %d", n, waiters+2)
	}
	checkHistory(t, pool, "queue")
}

// Analysts see which trial gave a variable which value, and nothing but the views.
func TestAnalystsReadOptimizations(t *testing.T) {
	t.Parallel()
	url := testkit.NewDatabase(t)
	c := dial(t, serve(t, url), client.WithPrincipal("service:trainer"))
	newSession(t, c, "study")
	register(t, c, "study", "var_a", typeFloat, client.Float(0.5))
	register(t, c, "study", "var_b", typeInteger, client.Integer(1))
	request := asks("study", "tuner", time.Second, "var_b", "var_a")
	request.Objective = &setpointv1.Objective{Metric: "loss", Direction: setpointv1.Direction_DIRECTION_MINIMIZE}
	request.OptimizerProcess, request.Priority = "gpu-7:4711", 3
	o := optimize(t, c, request)
	report := func(number int64, change func(*setpointv1.ReportProgressRequest)) {
		t.Helper()
		r := &setpointv1.ReportProgressRequest{SessionId: "study", OptimizationId: o.GetOptimizationId(),
			FencingToken: o.GetFencingToken(), Number: proto.Int64(number)}
		change(r)
		if _, err := c.Optimizations.ReportProgress(t.Context(), r); err != nil {
			t.Fatalf("report of trial %d: %v", number, err)
		}
	}
	report(1, func(r *setpointv1.ReportProgressRequest) {
		r.Step, r.Metrics = proto.Int64(10), map[string]float64{"loss": 0.1}
	})
	for n, loss := range []float64{0.4, 0.2, math.NaN()} {
		report(int64(n)+1, func(r *setpointv1.ReportProgressRequest) {
			r.Metrics, r.Note, r.Apply = map[string]float64{"loss": loss, "accuracy": 1 - loss}, fmt.Sprint("try ", n+1), true
			r.Values = map[string]*setpointv1.Value{"var_a": client.Float(loss), "var_b": client.Integer(int64(n))}
		})
	}
	awaitState(t, c, o, stateExpired)
	report(4, func(r *setpointv1.ReportProgressRequest) { r.Metrics = map[string]float64{"loss": 0} })
	set(t, c, "study", "var_b", client.Integer(7))
	analyst := connect(t, url)
	if _, err := analyst.Exec(t.Context(), "set role setpoint_analyst"); err != nil {
		t.Fatal(err)
	}

	for query, want := range map[string]string{
		`select state || ' ' || optimizer_id || ' ' || optimizer_process || ' ' || array_to_string(variables, '+') || ' ' || priority
			|| ' ' || objective_metric || ' ' || direction || ' ' || started_by || ' ' || trial_count || ' ' || late_count || ' '
			|| best_trial || ' ' || best_objective || ' ' || (ended_at > started_at) || ' ' || end_reason
			from setpoint_analytics.optimizations`: "expired tuner gpu-7:4711 var_a+var_b 3 loss minimize service:trainer 3 1 2 0.2 true " +
			"the lease was not renewed in time",
		`select number || ' ' || coalesce(step::text, '-') || ' ' || (metrics ->> 'loss') || ' ' || applied || ' ' || late || ' '
			|| note from setpoint_analytics.trials where reported_by = 'service:trainer' order by number, step nulls last`: "1 10 0.1 " +
			"false false , 1 - 0.4 true false try 1, 2 - 0.2 true false try 2, 3 - NaN true false try 3, 4 - 0 false true ",
		// What each trial made of the variables.
		`select h.variable || ' ' || h.version || ' ' || t.number || ' ' || h.json_value || ' ' ||
			(t.variable_values -> h.variable ->> 'value')
			from setpoint_analytics.variable_history h
			join setpoint_analytics.trials t on t.session_id = h.session_id and t.optimization_id = h.optimization_id
				and t.number = h.trial_number and t.step is null
			where h.change = 'set' order by h.variable, h.version`: `var_a 1 1 0.4 0.4, var_a 2 2 0.2 0.2, var_a 3 3 "NaN" NaN, ` +
			"var_b 1 1 0 0, var_b 2 2 1 1, var_b 3 3 2 2",
		`select h.change || ' ' || h.variable || ' ' || h.reason || ' ' || h.changed_by || ' ' || (h.version is null)
			from setpoint_analytics.variable_history h join setpoint_analytics.optimizations o using (session_id, optimization_id)
			where h.change like 'lease%' order by h.change, h.variable`: "lease_ended var_a the lease was not renewed in time " +
			"service:setpoint true, lease_ended var_b the lease was not renewed in time service:setpoint true, " +
			"lease_granted var_a  service:trainer true, lease_granted var_b  service:trainer true",
		`select variable || ' ' || integer_value from setpoint_analytics.variable_history
			where change = 'set' and optimization_id is null and trial_number is null`: "var_b 7",
	} {
		testkit.Eventually(t, patience, func() error { // The end is written down by the sweeper.
			found, err := analyst.Query(t.Context(), query)
			if err != nil {
				return err
			}
			rows, err := pgx.CollectRows(found, pgx.RowTo[string])
			if err != nil {
				return err
			}
			if diff := cmp.Diff(want, strings.Join(rows, ", ")); diff != "" {
				return fmt.Errorf("%s (-want +got):\n%s", query, diff)
			}
			return nil
		})
	}
	for _, forbidden := range []string{
		"select from setpoint.optimizations", "select from setpoint.trials", "select from setpoint.optimization_waiters",
		"delete from setpoint_analytics.trials", "delete from setpoint_analytics.optimizations",
	} {
		_, err := analyst.Exec(t.Context(), forbidden)
		if e := (*pgconn.PgError)(nil); !errors.As(err, &e) || e.Code != "42501" {
			t.Errorf("%s: got %v, want permission denied", forbidden, err)
		}
	}
}
