package client_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// A session with one variable: registered, set, looked back at, rolled back.
func Example() {
	ctx := context.Background()
	c, err := client.Dial("127.0.0.1:7420")
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()

	session, err := c.Sessions.CreateSession(ctx, &setpointv1.CreateSessionRequest{
		Ttl: durationpb.New(24 * time.Hour),
	})
	if err != nil {
		log.Fatal(err)
	}
	v, err := c.Variables.RegisterVariable(ctx, &setpointv1.RegisterVariableRequest{
		SessionId:   session.GetSessionId(),
		Name:        "temperature",
		Type:        setpointv1.VariableType_VARIABLE_TYPE_FLOAT,
		Value:       client.Float(0.7),
		Constraints: &setpointv1.Constraints{Min: proto.Float64(0), Max: proto.Float64(2)},
	})
	if err != nil {
		log.Fatal(err)
	}
	if _, err := c.Variables.SetVariable(ctx, &setpointv1.SetVariableRequest{
		SessionId: session.GetSessionId(), Variable: v.GetName(), Value: client.Float(0.9), Reason: "less repetition",
	}); err != nil {
		log.Fatal(err)
	}
	history, err := c.History.ListHistory(ctx, &setpointv1.ListHistoryRequest{
		SessionId: session.GetSessionId(), Variable: v.GetName(),
	})
	if err != nil {
		log.Fatal(err)
	}
	for _, entry := range history.GetEntries() {
		fmt.Println(entry.GetVersion(), entry.GetValue().GetNumber(), entry.GetChangedBy(), entry.GetReason())
	}
	v, err = c.History.RollbackVariable(ctx, &setpointv1.RollbackVariableRequest{
		SessionId: session.GetSessionId(), Variable: v.GetName(), Version: 0,
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(v.GetValue().GetNumber(), "is version", v.GetVersion())
}

// A server that checks tokens, over TLS, with a token that may be replaced while the program runs.
func ExampleDial() {
	c, err := client.Dial("setpoint.example.com:7420",
		client.WithTLS("/etc/setpoint/ca.pem"),
		client.WithTokenFile("/run/secrets/setpoint-token"),
		client.WithTimeout(5*time.Second),
		client.WithRetry(client.RetryPolicy{MaxAttempts: 8, MaxBackoff: time.Second}),
	)
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
}

// Halving a value that others change too: the set takes place only on the version that was read.
func ExampleCurrentVersion() {
	halve := func(ctx context.Context, c *client.Client, session, variable string) error {
		for {
			v, err := c.Variables.GetVariable(ctx, &setpointv1.GetVariableRequest{
				SessionId: session, Variable: variable,
			})
			if err != nil {
				return err
			}
			_, err = c.Variables.SetVariable(ctx, &setpointv1.SetVariableRequest{
				SessionId:       session,
				Variable:        variable,
				Value:           client.Float(v.GetValue().GetNumber() / 2),
				ExpectedVersion: proto.Int64(v.GetVersion()),
			})
			if !errors.Is(err, client.ErrVersionMismatch) {
				return err
			}
			if current, ok := client.CurrentVersion(err); ok {
				log.Printf("%s is at version %d already; reading again", variable, current)
			}
		}
	}
	_ = halve
}

// The particulars of an error.
func ExampleError() {
	explain := func(err error) {
		var e *client.Error
		if !errors.As(err, &e) {
			return // not of a call
		}
		fmt.Println(e.Name(), e.Message)
		for _, violation := range e.Violations {
			fmt.Println("field", violation.Field, violation.Description)
		}
	}
	_ = explain
}

// A batch in which every write stands alone.
func ExampleFromItem() {
	ctx := context.Background()
	c, err := client.Dial("127.0.0.1:7420")
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	response, err := c.Variables.BatchSetVariables(ctx, &setpointv1.BatchSetVariablesRequest{
		SessionId: "default",
		Writes: []*setpointv1.VariableWrite{
			{Variable: "temperature", Value: client.Float(0.8)},
			{Variable: "optimizer", Value: client.Choice("adam")},
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	for _, result := range response.GetResults() {
		if err := client.FromItem(result.GetError()); err != nil {
			fmt.Println(result.GetVariable(), "stays:", err)
		}
	}
}

// Tuning a variable that nobody else may touch meanwhile: start, wait for the turn, keep the lease, report, stop.
func ExampleLeaseKeeper() {
	tune := func(ctx context.Context, c *client.Client, train func(context.Context, float64) (float64, error)) error {
		optimization, err := c.Optimizations.StartOptimization(ctx, &setpointv1.StartOptimizationRequest{
			SessionId:   "default",
			Variables:   []string{"learning_rate"},
			OptimizerId: "grid",
			Conflict:    setpointv1.ConflictStrategy_CONFLICT_STRATEGY_WAIT,
			Objective:   &setpointv1.Objective{Metric: "loss", Direction: setpointv1.Direction_DIRECTION_MINIMIZE},
		})
		if err != nil {
			return err
		}
		optimization, err = c.AwaitLease(ctx, "default", optimization.GetOptimizationId(), func(o *setpointv1.Optimization) {
			log.Printf("%d in the queue", o.GetQueuePosition())
		})
		if err != nil {
			return err
		}
		keeper, err := c.KeepLease(ctx, optimization)
		if err != nil {
			return err
		}
		defer keeper.Close()
		for _, rate := range []float64{0.1, 0.03, 0.01} {
			loss, err := train(keeper.Context(), rate)
			if err := keeper.Err(); err != nil {
				return err // the variable is no longer ours, or is about to be somebody else's
			}
			if err != nil {
				return err
			}
			if _, err := keeper.Report(ctx, &setpointv1.ReportProgressRequest{
				Values:  map[string]*setpointv1.Value{"learning_rate": client.Float(rate)},
				Metrics: map[string]float64{"loss": loss},
			}); err != nil {
				return err
			}
		}
		_, err = keeper.Stop(ctx, &setpointv1.StopOptimizationRequest{ApplyBest: true})
		return err
	}
	_ = tune
}

// Leaving a checkpoint for whoever goes on, when an optimization of a higher priority comes.
func ExampleLeaseKeeper_Preemptions() {
	yield := func(ctx context.Context, keeper *client.LeaseKeeper, checkpoint func() []byte) error {
		select {
		case notice := <-keeper.Preemptions():
			log.Printf("%s takes over in %s", notice.OptimizerID, time.Until(notice.Until))
			_, err := keeper.Report(ctx, &setpointv1.ReportProgressRequest{Note: "yielding", Checkpoint: checkpoint()})
			if err != nil {
				return err
			}
			_, err = keeper.Stop(ctx, &setpointv1.StopOptimizationRequest{
				State: setpointv1.OptimizationState_OPTIMIZATION_STATE_CANCELLED, Reason: "preempted",
			})
			return err
		case <-keeper.Context().Done():
			return context.Cause(keeper.Context())
		}
	}
	_ = yield
}

// A write under a lease, besides the trials. Always with the lease: should it be over, the write is refused.
func ExampleLeaseKeeper_Lease() {
	set := func(keeper *client.LeaseKeeper, c *client.Client) error {
		_, err := c.Variables.SetVariable(keeper.Context(), &setpointv1.SetVariableRequest{
			SessionId: "default", Variable: "learning_rate", Value: client.Float(0.02), Lease: keeper.Lease(),
		})
		if errors.Is(err, client.ErrLeaseLost) {
			log.Print("somebody else may have it now")
		}
		return err
	}
	_ = set
}

// Who has the variable.
func ExampleHolder() {
	explain := func(err error) {
		if holder, ok := client.Holder(err); ok {
			fmt.Printf("%s is being optimized by %s, until %s unless it goes on\n",
				holder.Variable, holder.OptimizerID, holder.ExpiresAt.Local().Format(time.TimeOnly))
		}
	}
	_ = explain
}
