package service_test

import (
	"fmt"
	"testing"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// fillLargeGraph gives the large session 90,000 edges: the variables depend on each other in chains of ten, and those from
// 1 to 1,000 in one chain, each on the one before.
func fillLargeGraph(exec func(sql string, args ...any)) {
	exec(`insert into setpoint.dependencies (session_id, dependent_id, dependency_id, revision, created_at, created_by)
		select 's', 'var_' || lpad(i::text, 26, '0'), 'var_' || lpad((i - 1)::text, 26, '0'), i, clock_timestamp(), 'user:a'
		from generate_series(2, $1::bigint) i where i % 10 <> 1 or i <= 1000`, largeVariables)
	exec(`update setpoint.variables v set
		has_dependencies = v.definition_revision > 1 and (v.definition_revision % 10 <> 1 or v.definition_revision <= 1000),
		has_dependents = v.definition_revision < $1::bigint and (v.definition_revision % 10 <> 0 or v.definition_revision < 1000)
		where v.session_id = 's'`, largeVariables)
}

func largeID(i int) string { return fmt.Sprintf("var_%026d", i) }

// What walks a part of a large graph reads that part, whatever the planner believes: a plan that reads all edges at each of
// a thousand steps takes longer than a statement may.
func TestLargeGraphWhateverThePlannerBelieves(t *testing.T) {
	t.Parallel()
	for name, prepare := range plannerBeliefs {
		t.Run(name, func(t *testing.T) {
			b := setup(t, quickTimeout)
			for _, table := range []string{"variables", "history", "dependencies"} {
				b.exec(`alter table setpoint.` + table + ` set (autovacuum_enabled = off)`)
			}
			prepare(b)
			fillLarge(t, b.exec)
			fillLargeGraph(b.exec)
			walkLargeGraph(t, b)
		})
	}
}

func walkLargeGraph(t *testing.T, b *bundle) {
	t.Helper()
	set, err := b.Variables.SetVariable(b.ctx, &setpointv1.SetVariableRequest{
		SessionId: "s", Variable: largeID(1), Value: client.Integer(7),
	})
	if err != nil || len(set.GetStale()) != 999 {
		t.Errorf("set of the first of a chain: %d stale, %v", len(set.GetStale()), err)
	}
	add := func(dependent, dependency int) error {
		_, err := b.Dependencies.AddDependency(b.ctx, &setpointv1.AddDependencyRequest{
			SessionId: "s", Dependent: largeID(dependent), Dependency: largeID(dependency),
		})
		return err
	}
	wantReason(t, add(1, 1000), setpointv1.ErrorReason_WOULD_CREATE_CYCLE)
	if err := add(900, 100); err != nil {
		t.Errorf("add: %v", err)
	}
	order, err := b.Dependencies.GetUpdateOrder(b.ctx, &setpointv1.GetUpdateOrderRequest{SessionId: "s", Variable: largeID(1)})
	if err != nil || len(order.GetVariables()) != 999 {
		t.Errorf("update order: %d, %v", len(order.GetVariables()), err)
	}
	dependents, err := b.Dependencies.ListDependents(b.ctx, &setpointv1.ListDependentsRequest{
		SessionId: "s", Variable: largeID(1), Transitive: true, PageSize: 1000,
	})
	if err != nil || len(dependents.GetDependents()) != 999 {
		t.Errorf("dependents: %d, %v", len(dependents.GetDependents()), err)
	}
	dependencies, err := b.Dependencies.ListDependencies(b.ctx, &setpointv1.ListDependenciesRequest{
		SessionId: "s", Variable: largeID(1000), Transitive: true, PageSize: 1000,
	})
	if err != nil || len(dependencies.GetDependencies()) != 999 {
		t.Errorf("dependencies: %d, %v", len(dependencies.GetDependencies()), err)
	}
	graph, err := b.Dependencies.GetGraph(b.ctx, &setpointv1.GetGraphRequest{SessionId: "s", PageSize: 1000})
	if err != nil || len(graph.GetNodes()) != 1000 || graph.GetNextPageToken() == "" {
		t.Errorf("a page of the graph: %d, %v", len(graph.GetNodes()), err)
	}
	registrations := &setpointv1.BatchRegisterVariablesRequest{SessionId: "s", Atomic: true}
	b.exec(`update setpoint.sessions set variable_count = variable_count - 1000 where session_id = 's'`)
	for i := range 1000 {
		registrations.Registrations = append(registrations.Registrations, &setpointv1.VariableRegistration{
			Name: fmt.Sprintf("new%04d", i), Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Value: client.Integer(1),
			DependsOn: []string{largeID(i + 1)},
		})
	}
	if _, err := b.Variables.BatchRegisterVariables(b.ctx, registrations); err != nil {
		t.Errorf("register 1,000: %v", err)
	}
	if _, err := b.Variables.DeleteVariable(b.ctx, &setpointv1.DeleteVariableRequest{
		SessionId: "s", Variable: largeID(500), Cascade: true,
	}); err != nil {
		t.Errorf("delete: %v", err)
	}
}
