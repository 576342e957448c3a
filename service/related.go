package service

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/setpointdb/setpoint/db/dbgen"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/identity"
)

// wholeGraph is how many variables a session has at most whose graph is read whole for a walk. It costs a third of what the
// walk by the indexes does where that reaches all; above, that costs what it reaches.
const wholeGraph = 2000

// wholeGraphEdges is how many edges that graph has at most.
const wholeGraphEdges = 10_000

// relatedQuery asks for a page of what is related to a variable.
type relatedQuery struct {
	list, sessionID, variable string
	transitive                bool
	pageSize                  int32
	pageToken                 string
	// next are the ways from a variable of a graph that was read whole; page reads a page of one that was not.
	next func(*graphVariable) []*graphVariable
	page func(ctx context.Context, q *dbgen.Queries, c caller, after string, limit int32) ([]relatedRow, error)
}

// ListDependencies returns a page of what a variable depends on, by name.
func (s *Service) ListDependencies(ctx context.Context, req *setpointv1.ListDependenciesRequest) (
	*setpointv1.ListDependenciesResponse, error,
) {
	variables, next, err := s.related(ctx, relatedQuery{
		list: "dependencies", sessionID: req.GetSessionId(), variable: req.GetVariable(), transitive: req.GetTransitive(),
		pageSize: req.GetPageSize(), pageToken: req.GetPageToken(),
		next: func(v *graphVariable) []*graphVariable { return v.dependencies },
		page: func(ctx context.Context, q *dbgen.Queries, c caller, after string, limit int32) ([]relatedRow, error) {
			rows, err := q.DependencyListDependencies(ctx, dbgen.DependencyListDependenciesParams{
				SessionID: req.GetSessionId(), Variable: req.GetVariable(), Transitive: req.GetTransitive(),
				After: after, RowLimit: limit, Principal: c.principal, Groups: c.groups, Authority: c.authority,
			})
			out := make([]relatedRow, 0, len(rows))
			for _, row := range rows {
				out = append(out, relatedRow(row))
			}
			return out, err
		},
	})
	if err != nil {
		return nil, err
	}
	return &setpointv1.ListDependenciesResponse{Dependencies: variables, NextPageToken: next}, nil
}

// ListDependents returns a page of what depends on a variable, by name.
func (s *Service) ListDependents(ctx context.Context, req *setpointv1.ListDependentsRequest) (
	*setpointv1.ListDependentsResponse, error,
) {
	variables, next, err := s.related(ctx, relatedQuery{
		list: "dependents", sessionID: req.GetSessionId(), variable: req.GetVariable(), transitive: req.GetTransitive(),
		pageSize: req.GetPageSize(), pageToken: req.GetPageToken(),
		next: func(v *graphVariable) []*graphVariable { return v.dependents },
		page: func(ctx context.Context, q *dbgen.Queries, c caller, after string, limit int32) ([]relatedRow, error) {
			rows, err := q.DependencyListDependents(ctx, dbgen.DependencyListDependentsParams{
				SessionID: req.GetSessionId(), Variable: req.GetVariable(), Transitive: req.GetTransitive(),
				After: after, RowLimit: limit, Principal: c.principal, Groups: c.groups, Authority: c.authority,
			})
			out := make([]relatedRow, 0, len(rows))
			for _, row := range rows {
				out = append(out, relatedRow(row))
			}
			return out, err
		},
	})
	if err != nil {
		return nil, err
	}
	return &setpointv1.ListDependentsResponse{Dependents: variables, NextPageToken: next}, nil
}

func (s *Service) related(ctx context.Context, ask relatedQuery) ([]*setpointv1.RelatedVariable, string, error) {
	filter := filterHash(ask.list, ask.sessionID, ask.variable, strconv.FormatBool(ask.transitive))
	token, err := decodePageToken(ask.pageToken, filter)
	if err != nil {
		return nil, "", err
	}
	size := pageSize(ask.pageSize)
	var rows []relatedRow
	err = s.db.Read(ctx, "list "+ask.list, func(ctx context.Context, q *dbgen.Queries) error {
		err := mayRead(ctx, q, ask.sessionID, ask.variable)
		if err != nil {
			return err
		}
		rows, err = s.relatedRows(ctx, q, ask, token.Name, size+1)
		return err
	})
	if err != nil {
		return nil, "", err
	}
	variables, err := s.relatedVariables(rows, ask.sessionID, ask.variable)
	if err != nil {
		return nil, "", err
	}
	next := ""
	if len(variables) > size {
		variables = variables[:size]
		next = pageToken{Filter: filter, Name: variables[size-1].GetName()}.encode()
	}
	return variables, next, hideAll(ctx, s, ask.sessionID, variables)
}

// mayRead refuses a caller who may not read a variable, or one that there is not.
func mayRead(ctx context.Context, q *dbgen.Queries, sessionID, variable string) error {
	return mayAll(ctx, q, sessionID, wanted{variable, identity.Read})
}

// relatedRows are the rows after a name: from the whole graph, if that is small, where a walk is asked for.
func (s *Service) relatedRows(
	ctx context.Context, q *dbgen.Queries, ask relatedQuery, after string, limit int,
) ([]relatedRow, error) {
	if !ask.transitive {
		return ask.page(ctx, q, callerIn(ctx, ask.sessionID), after, int32(limit))
	}
	g, small, err := readGraph(ctx, q, ask.sessionID, ask.variable)
	if err != nil {
		return nil, err
	}
	if !small {
		return ask.page(ctx, q, callerIn(ctx, ask.sessionID), after, int32(limit))
	}
	direct := setOf(ask.next(g.start))
	rows := []relatedRow{g.found}
	for _, v := range g.reach(ask.next) {
		if v.row.Name > after {
			v.row.Direct = direct[v]
			rows = append(rows, v.row)
		}
	}
	if rows, err = readable(ctx, q, ask.sessionID, rows); err != nil {
		return nil, err
	}
	slices.SortFunc(rows[1:], func(a, b relatedRow) int { return cmp.Compare(a.Name, b.Name) })
	return rows[:min(len(rows), limit+1)], nil
}

// readable leaves out what the caller may not read, but for the first row, which tells of the session.
func readable(ctx context.Context, q *dbgen.Queries, sessionID string, rows []relatedRow) ([]relatedRow, error) {
	names := make([]string, 0, len(rows))
	for _, row := range rows[1:] {
		names = append(names, row.Name)
	}
	seen, err := sightOf(ctx, q, sessionID, names...)
	if err != nil || seen.all {
		return rows, err
	}
	return append(rows[:1], slices.DeleteFunc(rows[1:], func(r relatedRow) bool { return !seen.sees(r.Name) })...), nil
}

// relatedVariables are those of the rows, if there is such a variable in such a session; a sign of life of that.
func (s *Service) relatedVariables(rows []relatedRow, sessionID, variable string) ([]*setpointv1.RelatedVariable, error) {
	if len(rows) == 0 {
		return nil, sessionNotFound(sessionID)
	}
	s.extend.Note(sessionID, rows[0].ReadAt.Time, microseconds(rows[0].TTLMicros))
	if rows[0].Start == "" {
		return nil, variableNotFound(sessionID, variable)
	}
	variables := make([]*setpointv1.RelatedVariable, 0, len(rows))
	for _, row := range rows {
		if row.VariableID == "" {
			continue
		}
		v, err := row.proto()
		if err != nil {
			return nil, err
		}
		variables = append(variables, v)
	}
	return variables, nil
}

// GetUpdateOrder returns all that depends on a variable, in the order in which a change reaches it.
func (s *Service) GetUpdateOrder(ctx context.Context, req *setpointv1.GetUpdateOrderRequest) (
	*setpointv1.GetUpdateOrderResponse, error,
) {
	var rows []relatedRow
	err := s.db.Read(ctx, "get the update order", func(ctx context.Context, q *dbgen.Queries) error {
		if err := mayRead(ctx, q, req.GetSessionId(), req.GetVariable()); err != nil {
			return err
		}
		g, small, err := readGraph(ctx, q, req.GetSessionId(), req.GetVariable())
		if err != nil {
			return err
		}
		if !small {
			if g, err = readReached(ctx, q, req.GetSessionId(), req.GetVariable()); err != nil {
				return err
			}
		}
		rows, err = readable(ctx, q, req.GetSessionId(), g.inUpdateOrder())
		return err
	})
	if err != nil {
		return nil, err
	}
	variables, err := s.relatedVariables(rows, req.GetSessionId(), req.GetVariable())
	if err != nil {
		return nil, err
	}
	if bytes := sizeOf(rows); bytes > s.limits.PageBytes {
		return nil, limitExceeded("answer_bytes", s.limits.PageBytes,
			fmt.Sprintf("the order has %d variables, which are %d bytes, more than %d", len(variables), bytes, s.limits.PageBytes))
	}
	return &setpointv1.GetUpdateOrderResponse{Variables: variables}, hideAll(ctx, s, req.GetSessionId(), variables)
}

// sizeOf is about how large the rows are as messages, in bytes.
func sizeOf(rows []relatedRow) int64 {
	const rest = 30 // Numbers, and what tells fields apart.
	bytes := 0
	for _, r := range rows {
		bytes += len(r.VariableID) + len(r.Name) + len(r.Expression) + len(r.StaleCause) + len(r.StaleError) + rest
	}
	return int64(bytes)
}

// graph is what a walk goes over.
type graph struct {
	// found is a row without a variable: it tells of the session, and whether there is a variable to start from.
	found     relatedRow
	start     *graphVariable
	variables map[string]*graphVariable
}

type graphVariable struct {
	row                      relatedRow
	dependencies, dependents []*graphVariable
	// place is that among what a walk has reached, -1 where it has not.
	place int
}

// readGraph reads a session's whole graph; the second result is false if that is too large.
func readGraph(ctx context.Context, q *dbgen.Queries, sessionID, variable string) (*graph, bool, error) {
	row, err := q.DependencyAll(ctx, dbgen.DependencyAllParams{SessionID: sessionID, Variable: variable, Most: wholeGraph, EdgeLimit: wholeGraphEdges + 1})
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil, false, sessionNotFound(sessionID)
	case err != nil:
		return nil, false, err
	case !row.Small || row.EdgeCount > wholeGraphEdges:
		return nil, false, nil
	}
	found := relatedRow{Start: row.Start, TTLMicros: row.TTLMicros, ReadAt: row.ReadAt}
	g := newGraph(found, strings.Count(row.Variables, "\n")+1)
	for line := range strings.Lines(row.Variables) {
		v, err := variableOfLine(found, strings.TrimSuffix(line, "\n"))
		if err != nil {
			return nil, false, err
		}
		g.add(v)
	}
	for i, id := range row.DerivedIds {
		g.variables[id].row.Expression = row.Expressions[i]
	}
	for i, id := range row.StaleIds {
		stale := &g.variables[id].row
		stale.StaleRevision, stale.StaleCause, stale.StaleError = row.StaleRevisions[i], row.StaleCauses[i], row.StaleErrors[i]
	}
	for line := range strings.Lines(row.Edges) {
		dependent, dependency, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		g.link(dependent, dependency)
	}
	return g, true, nil
}

// variableOfLine reads a line of DependencyAll.
func variableOfLine(found relatedRow, line string) (relatedRow, error) {
	fields := strings.SplitN(line, "\t", 4)
	if len(fields) < 4 {
		return found, fmt.Errorf("read the graph: %q is no line of it", line)
	}
	version, err := strconv.ParseInt(fields[2], 10, 64)
	if err != nil {
		return found, fmt.Errorf("read the graph: %w", err)
	}
	found.VariableID, found.Type, found.Version, found.Name = fields[0], fields[1], version, fields[3]
	return found, nil
}

// readReached reads the part of a session's graph that depends on a variable.
func readReached(ctx context.Context, q *dbgen.Queries, sessionID, variable string) (*graph, error) {
	rows, err := q.DependencyOrder(ctx, dbgen.DependencyOrderParams{SessionID: sessionID, Variable: variable})
	switch {
	case err != nil:
		return nil, err
	case len(rows) == 0:
		return nil, sessionNotFound(sessionID)
	}
	g := newGraph(relatedRow{Start: rows[0].Start, TTLMicros: rows[0].TTLMicros, ReadAt: rows[0].ReadAt}, len(rows))
	for _, row := range rows {
		g.add(relatedRow{
			Start: row.Start, TTLMicros: row.TTLMicros, ReadAt: row.ReadAt, VariableID: row.VariableID, Name: row.Name,
			Type: row.Type, Version: row.Version, Expression: row.Expression, StaleRevision: row.StaleRevision,
			StaleCause: row.StaleCause, StaleError: row.StaleError,
		})
	}
	for _, row := range rows {
		for _, dependency := range row.DependencyIds {
			g.link(row.VariableID, dependency)
		}
	}
	return g, nil
}

func newGraph(found relatedRow, size int) *graph {
	g := &graph{found: found, start: &graphVariable{place: -1}, variables: make(map[string]*graphVariable, size)}
	if found.Start != "" {
		g.variables[found.Start] = g.start
	}
	return g
}

func (g *graph) add(row relatedRow) {
	switch {
	case row.VariableID == "":
	case g.variables[row.VariableID] != nil: // The start.
		g.variables[row.VariableID].row = row
	default:
		g.variables[row.VariableID] = &graphVariable{row: row, place: -1}
	}
}

// link adds an edge, if both ends are in the graph.
func (g *graph) link(dependentID, dependencyID string) {
	dependent, dependency := g.variables[dependentID], g.variables[dependencyID]
	if dependent == nil || dependency == nil {
		return
	}
	dependent.dependencies = append(dependent.dependencies, dependency)
	dependency.dependents = append(dependency.dependents, dependent)
}

// reach are the variables that can be reached from the start, each once, without the start.
func (g *graph) reach(next func(*graphVariable) []*graphVariable) []*graphVariable {
	seen := map[*graphVariable]bool{g.start: true}
	var reached []*graphVariable
	for at := []*graphVariable{g.start}; len(at) > 0; {
		v := at[len(at)-1]
		at = at[:len(at)-1]
		for _, n := range next(v) {
			if !seen[n] {
				seen[n] = true
				reached, at = append(reached, n), append(at, n)
			}
		}
	}
	return reached
}

func setOf(variables []*graphVariable) map[*graphVariable]bool {
	set := make(map[*graphVariable]bool, len(variables))
	for _, v := range variables {
		set[v] = true
	}
	return set
}

// inUpdateOrder are the rows of what depends on the start, after the one that tells of the session.
func (g *graph) inUpdateOrder() []relatedRow {
	dependents := func(v *graphVariable) []*graphVariable { return v.dependents }
	direct := setOf(g.start.dependents)
	rows := []relatedRow{g.found}
	reached := g.reach(dependents)
	rows = slices.Grow(rows, len(reached))
	for i, v := range reached {
		v.place = i
	}
	for _, i := range inUpdateOrder(len(reached), func(i int) string { return reached[i].row.Name }, func(i int) []int {
		var needs []int
		for _, need := range reached[i].dependencies {
			if need.place >= 0 {
				needs = append(needs, need.place)
			}
		}
		return needs
	}) {
		reached[i].row.Direct = direct[reached[i]]
		rows = append(rows, reached[i].row)
	}
	return rows
}
