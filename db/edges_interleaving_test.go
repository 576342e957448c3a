package db_test

import (
	"context"
	"testing"

	"github.com/setpointdb/setpoint/db/dbgen"
)

// link adds an edge in a round trip of its own, as the service does where it locks first.
func (s *stage) link(dependent, dependency string) (string, error) {
	var row dbgen.DependencyAddRow
	err := s.db.Locked(context.Background(), "add a dependency", []string{"s"},
		func(ctx context.Context, q *dbgen.Queries) error {
			var err error
			row, err = q.DependencyAdd(ctx, edge(dependent, dependency))
			return err
		})
	return row.Refused, err
}

func edge(dependent, dependency string) dbgen.DependencyAddParams {
	return dbgen.DependencyAddParams{
		SessionID: "s", Dependent: dependent, Dependency: dependency, Principal: "user:a", MaxDependencies: 10,
	}
}

// An edge is judged by the graph that the wait for the lock left behind: whoever would close a cycle with what the first
// party did is refused, and nobody else.
func TestEdgeAfterWaiting(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		before, first [][2]string
		forget        string // A variable that the first party removes.
		refused       string
	}{
		"the other way round":       {nil, [][2]string{{"b", "a"}}, "", "CYCLE"},
		"closing a longer one":      {[][2]string{{"x", "a"}}, [][2]string{{"b", "x"}}, "", "CYCLE"},
		"the same edge":             {nil, [][2]string{{"a", "b"}}, "", "EXISTS"},
		"an edge beside it":         {nil, [][2]string{{"x", "b"}}, "", ""},
		"the dependency has gone":   {nil, nil, "b", "DEPENDENCY_NOT_FOUND"},
		"nobody has changed a bit":  {[][2]string{{"x", "b"}}, nil, "", ""},
		"the dependent has gone":    {nil, nil, "a", "DEPENDENT_NOT_FOUND"},
		"a way that leads past one": {[][2]string{{"x", "b"}}, [][2]string{{"x", "a"}}, "", ""},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStage(t)
			s.register(t, "a", "b")
			for _, e := range test.before {
				if refused, err := s.link(e[0], e[1]); err != nil || refused != "" {
					t.Fatalf("before: %q, %v", refused, err)
				}
			}
			tx := s.lock(t)
			second := make(chan string, 1)
			go func() {
				refused, err := s.link("a", "b")
				if err != nil {
					refused = err.Error()
				}
				second <- refused
			}()
			s.waiting(t, 1)
			for _, e := range test.first {
				row, err := dbgen.New(tx).DependencyAdd(context.Background(), edge(e[0], e[1]))
				if err != nil || row.Refused != "" {
					t.Fatalf("first party: %q, %v", row.Refused, err)
				}
			}
			if test.forget != "" {
				_, err := dbgen.New(tx).VariableDelete(context.Background(), dbgen.VariableDeleteParams{
					SessionID: "s", VariableID: "var_" + test.forget, Principal: "user:a",
				})
				if err != nil {
					t.Fatal(err)
				}
			}
			commit(t, tx)
			if got := <-second; got != test.refused {
				t.Errorf("second party: refused %q, want %q", got, test.refused)
			}
			s.consistent(t)
		})
	}
}
