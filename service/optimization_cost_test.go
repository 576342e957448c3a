package service_test

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// A set under a lease costs what any set does, and so does one that a lease refuses; a start that is refused takes no lock. All
// of it costs the same for a thousand variables as for one.
func TestRoundTripsOfALease(t *testing.T) {
	t.Parallel()
	m := measure(t)
	costs := map[int]map[string][2]int64{}
	for _, n := range []int{1, 2, 1000} { // The first prepares the statements.
		costs[n] = m.leaseCosts(t, n)
	}
	equal(t, "round trips and statements of 2 and of 1000 variables", costs[2], costs[1000])
	equal(t, "round trips and statements", map[string][2]int64{
		"1 start": {7, 10}, "2 set": {1, 2}, "3 refused set": {1, 2}, "4 refused start": {1, 1}, "5 renew": {2, 3},
		"6 report": {5, 7}, "7 status": {2, 2}, "8 stop": {6, 8},
	}, costs[1000])
}

// leaseCosts takes a lease on n variables and tells what each call cost.
func (m *measured) leaseCosts(t *testing.T, n int) map[string][2]int64 {
	t.Helper()
	variables := names(fmt.Sprintf("of%d.", n), n)
	register := &setpointv1.BatchRegisterVariablesRequest{SessionId: "s", Atomic: true}
	for _, name := range variables {
		register.Registrations = append(register.Registrations, &setpointv1.VariableRegistration{
			Name: name, Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Value: client.Integer(1),
		})
	}
	if _, err := m.BatchRegisterVariables(m.ctx, register); err != nil {
		t.Fatal(err)
	}
	var o *setpointv1.Optimization
	start := &setpointv1.StartOptimizationRequest{SessionId: "s", Variables: variables, Ttl: durationpb.New(3600e9)}
	set := func(lease *setpointv1.Lease) error {
		_, err := m.SetVariable(m.ctx, &setpointv1.SetVariableRequest{
			SessionId: "s", Variable: variables[n-1], Value: client.Integer(7), Lease: lease,
		})
		return err
	}
	refused := func(err error) error {
		if err == nil {
			return fmt.Errorf("it was not refused")
		}
		return nil
	}
	calls := map[string]func() error{
		"1 start": func() error {
			var err error
			o, err = m.StartOptimization(m.ctx, start)
			return err
		},
		"2 set":         func() error { return set(lease(o)) },
		"3 refused set": func() error { return refused(set(nil)) },
		"4 refused start": func() error {
			_, err := m.StartOptimization(m.ctx, start)
			return refused(err)
		},
		"5 renew": func() error {
			_, err := m.RenewOptimization(m.ctx, &setpointv1.RenewOptimizationRequest{
				SessionId: "s", OptimizationId: o.GetOptimizationId(), FencingToken: o.GetFencingToken(),
			})
			return err
		},
		"6 report": func() error {
			_, err := m.ReportProgress(m.ctx, &setpointv1.ReportProgressRequest{
				SessionId: "s", OptimizationId: o.GetOptimizationId(), FencingToken: o.GetFencingToken(),
				Metrics: map[string]float64{"loss": 1},
			})
			return err
		},
		"7 status": func() error {
			_, err := m.GetOptimizationStatus(m.ctx, &setpointv1.GetOptimizationStatusRequest{SessionId: "s", Variable: variables[0]})
			return err
		},
		"8 stop": func() error {
			_, err := m.StopOptimization(m.ctx, &setpointv1.StopOptimizationRequest{SessionId: "s", OptimizationId: o.GetOptimizationId()})
			return err
		},
	}
	costs := map[string][2]int64{}
	for _, name := range sortedNames(calls) {
		m.awake(t)
		trips, statements := m.cost(t, calls[name])
		costs[name] = [2]int64{trips, statements}
	}
	return costs
}

func sortedNames[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
