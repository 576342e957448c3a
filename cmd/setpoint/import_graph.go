package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/expression"
)

// Variables that depend on others are imported last, each after all that it depends on: whatever order the file has, what
// a variable needs is there by then, and has the value that it keeps. Until then the import knows their names, their
// dependencies, and where in the file they are; the rest is read again when it is their turn.

// importGraph is the dependencies of the file's variables and, where these meet the session's, of those.
type importGraph struct {
	places map[string]int
	nodes  []importNode
	// connected are the variables of the file that depend on others, or are derived, in the file's order.
	connected []int
}

// importNode is a variable that depends on others, or on which others depend.
type importNode struct {
	name string
	kind setpointv1.VariableType
	// line and offset are of its line, if it depends on others there; else 0.
	line   int
	offset int64
	// needs are the variables that it depends on in the file, and has those that it depends on in the session.
	needs, has []int
	// inFile, inSession: that has a variable of this name. derived: the session's is.
	inFile, inSession, derived bool
	state                      nodeState
}

// nodeState is how far a connected variable has come.
type nodeState int

const (
	// nodeWaits: nothing of it is written.
	nodeWaits nodeState = iota
	// nodeBare: it is registered, with its history, but does not depend on anything yet.
	nodeBare
	// nodeDone: it is as it has to be.
	nodeDone
)

func newImportGraph() *importGraph {
	return &importGraph{places: map[string]int{}}
}

// place returns where the graph has a name, and puts it there if it has not.
func (g *importGraph) place(name string) int {
	at, ok := g.places[name]
	if !ok {
		at = len(g.nodes)
		g.places[name] = at
		g.nodes = append(g.nodes, importNode{name: name})
	}
	return at
}

func (g *importGraph) placesOf(names []string) []int {
	places := make([]int, 0, len(names))
	for _, name := range names {
		places = append(places, g.place(name))
	}
	return places
}

// node returns the node of a variable that is connected in the file; nil of others.
func (g *importGraph) node(name string) *importNode {
	if at, ok := g.places[name]; ok && g.nodes[at].line > 0 {
		return &g.nodes[at]
	}
	return nil
}

// add notes what a variable of the file depends on.
func (g *importGraph) add(t *importTarget) {
	if !t.connected() {
		return
	}
	at, needs := g.place(t.variable.GetName()), g.placesOf(t.needs)
	n := &g.nodes[at]
	n.line, n.offset, n.needs = t.line, t.offset, needs
	g.connected = append(g.connected, at)
}

// sorted walks from some variables to all that they depend on. It returns them, each after those that it depends on, or,
// if there is one, a circle: each depends on the next, and the last is the first again.
func (g *importGraph) sorted(from []int, needs func(int) []int) ([]int, []int) {
	const unseen, open, done = 0, 1, 2
	state := make([]int8, len(g.nodes))
	type step struct{ at, next int }
	var order []int
	for _, start := range from {
		if state[start] != unseen {
			continue
		}
		state[start] = open
		path := []step{{at: start}}
		for len(path) > 0 {
			top := &path[len(path)-1]
			all := needs(top.at)
			if top.next == len(all) {
				state[top.at] = done
				order = append(order, top.at)
				path = path[:len(path)-1]
				continue
			}
			need := all[top.next]
			top.next++
			switch state[need] {
			case unseen:
				state[need] = open
				path = append(path, step{at: need})
			case open:
				begin := slices.IndexFunc(path, func(s step) bool { return s.at == need })
				var circle []int
				for _, s := range path[begin:] {
					circle = append(circle, s.at)
				}
				return nil, append(circle, need)
			}
		}
	}
	return order, nil
}

// checkGraph sees, before anything is written, that what the file's variables depend on is there or will be, that nothing
// will depend on itself, and that expressions fit the types.
func (im *importer) checkGraph(ctx context.Context, r *archiveReader, in io.ReadSeeker) error {
	g := im.graph
	if len(g.connected) == 0 {
		return nil
	}
	missing := g.resolve(r)
	if !im.empty && (missing || im.merge != mergeFail) {
		// Which names are taken matters where one is missed, or where the session's variable is kept.
		if err := im.readSessionGraph(ctx, missing || im.merge == mergeKeep); err != nil {
			return err
		}
	}
	for _, at := range g.connected {
		for _, need := range g.nodes[at].needs {
			if n := g.nodes[need]; !n.inFile && !n.inSession && n.name == hiddenName {
				return nothingImported(g.nodes[at].line, "VARIABLE_NOT_FOUND", fmt.Sprintf(
					"%s depends on a variable that whoever made the file could not read", g.nodes[at].name))
			} else if !n.inFile && !n.inSession {
				return nothingImported(g.nodes[at].line, "VARIABLE_NOT_FOUND", fmt.Sprintf(
					"%s depends on %s, which is neither in the file nor in session %q",
					g.nodes[at].name, quoted(n.name), im.sessionID))
			}
		}
	}
	if err := im.checkCircles(); err != nil {
		return err
	}
	return im.checkExpressions(r, in)
}

// resolve notes which variables are in the file, and tells whether one that others depend on is not.
func (g *importGraph) resolve(r *archiveReader) bool {
	missing := false
	for i := range g.nodes {
		n := &g.nodes[i]
		n.kind, n.inFile = r.names[nameKey(n.name)]
		missing = missing || !n.inFile
	}
	return missing
}

// readSessionGraph notes what the session's variables depend on; with all, also which there are beside these.
func (im *importer) readSessionGraph(ctx context.Context, all bool) error {
	request := &setpointv1.GetGraphRequest{SessionId: im.sessionID, IncludeUnconnected: all, PageSize: pageSize}
	for {
		page, err := im.api.Dependencies.GetGraph(ctx, request)
		if err != nil {
			return err
		}
		for _, found := range page.GetNodes() {
			at, has := im.graph.place(found.GetName()), im.graph.placesOf(found.GetDependsOn())
			n := &im.graph.nodes[at]
			n.inSession, n.derived, n.has = true, found.GetExpression() != "", has
			if !n.inFile || im.merge == mergeKeep {
				n.kind = found.GetType()
			}
		}
		if page.GetNextPageToken() == "" {
			return nil
		}
		request.PageToken = page.GetNextPageToken()
	}
}

// checkCircles looks for one in the file, and in what the session will be.
func (im *importer) checkCircles() error {
	g := im.graph
	_, circle := g.sorted(g.connected, func(i int) []int { return g.nodes[i].needs })
	if circle == nil {
		_, circle = g.sorted(g.connected, func(i int) []int {
			if n := g.nodes[i]; n.inSession && (im.merge == mergeKeep || !n.inFile) {
				return n.has
			}
			return g.nodes[i].needs
		})
	}
	if circle == nil {
		return nil
	}
	first := circle[0]
	for i, at := range circle { // one of the file's, to have a line to name
		if first = at; g.nodes[at].line > 0 {
			circle = slices.Concat(circle[i:], circle[1:i+1])
			break
		}
	}
	return nothingImported(g.nodes[first].line, "WOULD_CREATE_CYCLE",
		fmt.Sprintf("%s would depend on itself: %s", g.nodes[first].name, g.circleText(circle)))
}

// circleText says who depends on whom.
func (g *importGraph) circleText(circle []int) string {
	const most = 10
	parts := []string{fmt.Sprintf("%s depends on %s", quoted(g.nodes[circle[0]].name), quoted(g.nodes[circle[1]].name))}
	for i := 2; i < len(circle); i++ {
		if i > most && i < len(circle)-1 {
			if i == most+1 {
				parts = append(parts, ellipsis)
			}
			continue
		}
		parts = append(parts, "that on "+quoted(g.nodes[circle[i]].name))
	}
	return strings.Join(parts, ", ")
}

// checkExpressions compiles the file's expressions, as far as they will be used.
func (im *importer) checkExpressions(r *archiveReader, in io.ReadSeeker) error {
	g := im.graph
	for _, at := range g.connected {
		n := &g.nodes[at]
		if n.inSession && im.merge == mergeKeep {
			continue
		}
		record, err := r.variableAt(in, n.line, n.offset)
		if err != nil {
			return err
		}
		text := record.variable.GetExpression()
		if text == "" {
			continue
		}
		var inputs []expression.Input
		for _, need := range n.needs {
			inputs = append(inputs, expression.Input{Name: g.nodes[need].name, Type: g.nodes[need].kind})
		}
		source, err := expression.Parse(text)
		if err == nil {
			_, err = source.Compile(record.variable.GetType(), inputs)
		}
		if err != nil {
			return nothingImported(n.line, "INVALID_EXPRESSION", fmt.Sprintf("%s: %v", n.name, err))
		}
	}
	return nil
}

func nothingImported(line int, reason, message string) error {
	return &reasonError{reason, fmt.Sprintf("line %d: %s; nothing was imported", line, message)}
}

// connect writes the variables that depend on others.
func (im *importer) connect(ctx context.Context, r *archiveReader, in io.ReadSeeker) error {
	g := im.graph
	order, circle := g.sorted(g.connected, func(i int) []int { return g.nodes[i].needs })
	if circle != nil {
		return errors.New("the dependencies make a circle") // checkCircles has found none
	}
	if err := im.untangle(ctx); err != nil {
		return err
	}
	im.connecting = true
	for _, at := range order {
		n := &g.nodes[at]
		if n.line == 0 || n.state == nodeDone {
			continue
		}
		record, err := r.variableAt(in, n.line, n.offset)
		if err != nil {
			return err
		}
		t, err := newImportTarget(record)
		if err != nil {
			return err
		}
		step := importStep{target: t, update: t.link(im)}
		if n.state == nodeWaits {
			step = t.step(t.variable.GetValue(), t.variable.GetMetadata(), im.reason)
			step.register.DependsOn, step.register.Expression = t.needs, t.variable.GetExpression()
			step.register.Strict = t.strict()
		}
		if err := im.add(ctx, step); err != nil {
			return err
		}
	}
	return im.flush(ctx)
}

// link makes a bare variable depend on what the file's depends on.
func (t *importTarget) link(im *importer) *setpointv1.UpdateVariableRequest {
	update := im.updateOf(t)
	update.DependsOn = t.needs
	if t.derived() {
		update.Expression, update.Strict = proto.String(t.variable.GetExpression()), proto.Bool(t.strict())
	}
	return update
}

// untangle removes dependencies of the session that the file does not have, where the file's would close a circle with
// them for as long as not all are replaced.
func (im *importer) untangle(ctx context.Context) error {
	if im.merge != mergeReplace {
		return nil
	}
	g := im.graph
	_, circle := g.sorted(g.connected, func(i int) []int {
		n := &g.nodes[i]
		if n.inFile && n.line == 0 {
			return nil // it is replaced already, and depends on nothing
		}
		return slices.Concat(n.needs, n.has)
	})
	if circle == nil {
		return nil
	}
	for _, at := range g.connected {
		n := &g.nodes[at]
		var stay []string
		for _, has := range n.has {
			if slices.Contains(n.needs, has) {
				stay = append(stay, g.nodes[has].name)
			}
		}
		if len(stay) == len(n.has) {
			continue
		}
		t := &importTarget{line: n.line, variable: &setpointv1.Variable{Name: n.name}}
		update := im.updateOf(t)
		update.DependsOn, update.ClearDependsOn = stay, len(stay) == 0
		if n.derived {
			update.Expression = proto.String("")
		}
		if err := im.update(ctx, []importStep{{target: t, update: update}}); err != nil {
			return err
		}
	}
	return nil
}

// refresh sets variables again that this import itself made stale, by what it did to others: in the file they are not.
func (im *importer) refresh(ctx context.Context, targets []*importTarget) error {
	var writes []importStep
	err := im.compare(ctx, targets, func(t *importTarget, current *setpointv1.Variable) error {
		if current.GetStale() != nil {
			writes = append(writes, importStep{target: t, write: &setpointv1.VariableWrite{
				Variable: t.variable.GetName(), Value: t.variable.GetValue(), Reason: im.reason}})
		}
		return nil
	})
	if err != nil {
		return err
	}
	return im.set(ctx, writes)
}
