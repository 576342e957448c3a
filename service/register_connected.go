package service

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/setpointdb/setpoint/db/dbgen"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/identity"
	"github.com/setpointdb/setpoint/internal/value"
)

// Registering variables that depend on others, which may be of the same batch: what they name is looked up under the lock,
// then the derived ones are computed, each after what it depends on, and all is added in one statement.

// connected tells whether any of the variables depends on others, or is for others and so to be audited: what takes more than the
// one statement.
func (c *registerCall) connected() bool {
	return slices.ContainsFunc(c.items, func(i registerItem) bool {
		return i.registration.GetExpression() != "" || len(i.registration.GetDependsOn()) > 0 || i.accessMode() != privateMode
	})
}

// accessMode is the database's word for the variable's access mode.
func (i registerItem) accessMode() string { return accessModeName(i.registration.GetAccessMode()) }

func (s *Service) registerConnected(
	ctx context.Context, req *setpointv1.RegisterVariableRequest, call *registerCall,
) (*setpointv1.Variable, error) {
	variable, replayed, err := write(ctx, s, req, &setpointv1.Variable{},
		func(ctx context.Context, q transaction, state dbgen.SessionStateRow) (*setpointv1.Variable, error) {
			tried := call.again()
			if err := mayRegister(state); err != nil {
				return nil, err
			}
			outcomes, err := s.addConnected(ctx, q, tried, state.VariableCount)
			if err != nil {
				return nil, err
			}
			if e := outcomes[0].refusal(tried.asked(s.limits, 0)); e != nil {
				return nil, e
			}
			return tried.variable(0, outcomes[0])
		})
	switch {
	case replayed:
		s.events.RequestReplayed(ctx, call.sessionID, call.principal)
	case err != nil:
		s.recordRefusals(ctx, call.asked(s.limits, 0), call.principal, asRefusal(err))
	default:
		s.events.VariableRegistered(ctx, call.sessionID, req.GetName(), value.TypeName(req.GetType()), call.principal)
	}
	return variable, err
}

func (s *Service) batchRegisterConnected(
	ctx context.Context, req *setpointv1.BatchRegisterVariablesRequest, call *registerCall,
) (*setpointv1.BatchRegisterVariablesResponse, error) {
	failed := 0
	response, replayed, err := write(ctx, s, req, &setpointv1.BatchRegisterVariablesResponse{},
		func(ctx context.Context, q transaction, state dbgen.SessionStateRow) (
			*setpointv1.BatchRegisterVariablesResponse, error,
		) {
			tried := call.again()
			if err := mayRegister(state); err != nil {
				return nil, err
			}
			outcomes, err := s.addConnected(ctx, q, tried, state.VariableCount)
			if err != nil {
				return nil, err
			}
			var response *setpointv1.BatchRegisterVariablesResponse
			response, failed, err = tried.response(outcomes, s.limits)
			return response, err
		})
	switch {
	case replayed:
		s.events.RequestReplayed(ctx, call.sessionID, call.principal)
	case err == nil || asRefusal(err) != nil:
		s.events.BatchRegistered(ctx, call.sessionID, call.principal, len(call.items), failed)
		for i, result := range response.GetResults() {
			s.recordItem(ctx, call.asked(s.limits, i), call.principal, result.GetError())
		}
		if err == nil && failed == len(call.items) {
			s.signOfLife(ctx, call.sessionID)
		}
	}
	return response, err
}

// mayRegister refuses those who may not write in the whole session, before anything is looked up for them.
func mayRegister(state dbgen.SessionStateRow) error {
	if state.Alive && state.Access&int32(identity.Write) == 0 {
		return denied(identity.Write, "", "")
	}
	return nil
}

// again is the call as it was before a transaction tried it. The record of the request is for who runs that.
func (c *registerCall) again() *registerCall {
	tried := *c
	tried.items, tried.requestID = slices.Clone(c.items), ""
	return &tried
}

// addConnected adds the variables, and their edges, to a session that has so many.
func (s *Service) addConnected(ctx context.Context, q transaction, call *registerCall, count int64) (
	[]itemOutcome, error,
) {
	m := &mates{s: s, call: call, places: map[string]int{}, links: make([][]link, len(call.items)), budget: s.limits.DerivationCost}
	if err := m.lookUp(ctx, q.Queries); err != nil {
		return nil, err
	}
	m.refuseBeyond(s.limits.Variables - count)
	if err := m.connect(ctx); err != nil {
		return nil, err
	}
	params, err := call.params(s.limits.Variables)
	if err != nil {
		return nil, err
	}
	rows, err := q.VariableRegister(ctx, params)
	if err != nil {
		return nil, err
	}
	outcomes, err := registerOutcomes(call, rows)
	if err != nil {
		return nil, err
	}
	edges := dbgen.DependencyLinkParams{SessionID: call.sessionID, Principal: call.principal}
	for i, o := range outcomes {
		if o.Refused != "" || o.Revision == 0 {
			continue
		}
		for _, l := range m.links[i] {
			edges.DependentIds = append(edges.DependentIds, o.VariableID)
			edges.DependencyIds = append(edges.DependencyIds, l.id(outcomes))
			q.after.add(func(ctx context.Context) {
				s.events.DependencyAdded(ctx, call.sessionID, o.Name, l.name, call.principal)
			})
		}
	}
	if err := call.audit(ctx, q, outcomes); err != nil {
		return nil, err
	}
	return outcomes, q.DependencyLink(ctx, edges)
}

// audit audits the variables that were added with another access mode than private.
func (c *registerCall) audit(ctx context.Context, q transaction, outcomes []itemOutcome) error {
	var changes []modeChange
	for i, o := range outcomes {
		if o.Refused == "" && o.Revision > 0 && c.items[i].accessMode() != privateMode {
			changes = append(changes, modeChange{variable: o.Name, to: c.items[i].accessMode()})
		}
	}
	return auditAccessMode(ctx, q.Queries, c.sessionID, c.principal,
		c.method, "", changes...)
}

// mates are the variables of a batch, and those that they name outside of it.
type mates struct {
	s    *Service
	call *registerCall
	// found are the variables that exist, by the identifiers that name them, and refused those that the caller may not read, or
	// that there are not.
	found, refused map[string]dbgen.VariableGetManyRow
	// places are those of the variables that are to be added, by their names.
	places map[string]int
	// links are what each depends on.
	links  [][]link
	budget uint64
}

// link is a variable that another one depends on: one that exists, or the batch's at a place.
type link struct {
	name  string
	found *dbgen.VariableGetManyRow
	place int
}

func (l link) id(outcomes []itemOutcome) string {
	if l.found != nil {
		return l.found.VariableID
	}
	return outcomes[l.place].VariableID
}

// batchEdges bounds what the variables of a batch name: the session is locked for some 50 µs for each.
const batchEdges = 50_000

// lookUp reads what the registrations name, and decides which of them can be added as far as the session goes.
func (m *mates) lookUp(ctx context.Context, q *dbgen.Queries) error {
	var used, names []string
	edges := 0
	for i := range m.call.items {
		item := &m.call.items[i]
		named, _, err := uses(item.registration.GetName(), item.registration.GetExpression())
		if e := asRefusal(err); e != nil {
			item.refuse(e)
		} else if err != nil {
			return err
		}
		item.candidates = named
		names = append(names, item.registration.GetName())
		names = append(names, item.registration.GetDependsOn()...)
		used = append(used, named...)
		edges += len(item.registration.GetDependsOn())
	}
	if edges > batchEdges {
		return limitExceeded("batch_edges", batchEdges,
			fmt.Sprintf("the variables of a batch depend on at most %d together, not %d", batchEdges, edges))
	}
	rows, err := getVariables(ctx, q, m.call.caller, m.call.sessionID, distinct(slices.Concat(used, names))) // Values of the used ones first.
	if err != nil {
		return err
	}
	m.found = make(map[string]dbgen.VariableGetManyRow, len(rows))
	m.refused = make(map[string]dbgen.VariableGetManyRow)
	for _, row := range rows {
		switch {
		case row.Refused != "":
			m.refused[row.Identifier] = row
		case row.VariableID != "":
			m.found[row.Identifier] = row
		}
	}
	for i, item := range m.call.items {
		_, exists := m.found[item.registration.GetName()]
		if hidden := m.refused[item.registration.GetName()].VariableID != ""; !exists && !hidden && item.refusal == nil {
			m.places[item.registration.GetName()] = i
		}
	}
	return nil
}

// refuseBeyond refuses the variables for which the session has no room, before others are computed from them.
func (m *mates) refuseBeyond(room int64) {
	for _, i := range m.added() {
		if room--; room < 0 {
			o := itemOutcome{Refused: "LIMIT_EXCEEDED"}
			m.call.items[i].refuse(o.refusal(m.call.asked(m.s.limits, i)))
		}
	}
}

// added are the places of the variables that are not refused, in the order of the request.
func (m *mates) added() []int {
	var added []int
	for i := range m.call.items {
		if m.isAdded(i) {
			added = append(added, i)
		}
	}
	return added
}

func (m *mates) isAdded(i int) bool {
	place, ok := m.places[m.call.items[i].registration.GetName()]
	return ok && place == i && m.call.items[i].refusal == nil
}

// find is the variable that an identifier names; false if there is none, or none that will be.
func (m *mates) find(identifier string) (link, bool) {
	if row, ok := m.found[identifier]; ok {
		return link{name: row.Name, found: &row}, true
	}
	place, ok := m.places[identifier]
	if !ok || m.call.items[place].refusal != nil {
		return link{}, false
	}
	return link{name: identifier, place: place}, true
}

// notFound refuses a variable that cannot be depended on, because there is none or the caller may not read it.
func (m *mates) notFound(identifier string) *Error {
	if row, ok := m.refused[identifier]; ok {
		if e := refusalOfRow(row, m.call.sessionID, identifier, identity.Read); e != nil {
			return e
		}
	}
	return variableNotFound(m.call.sessionID, identifier)
}

// needs are the places of the batch's variables that one names.
func (m *mates) needs(place int) []int {
	item := m.call.items[place]
	var needs []int
	for _, identifier := range slices.Concat(item.registration.GetDependsOn(), item.candidates) {
		if l, ok := m.find(identifier); ok && l.found == nil {
			needs = append(needs, l.place)
		}
	}
	slices.Sort(needs)
	return slices.Compact(needs)
}

// connect resolves and computes the variables, each after those that it depends on.
func (m *mates) connect(ctx context.Context) error {
	for {
		needs := make([][]int, len(m.call.items)) // Empty for what is refused, which nobody needs either.
		for _, i := range m.added() {
			needs[i] = m.needs(i)
		}
		order := inUpdateOrder(len(m.call.items),
			func(i int) string { return m.call.items[i].registration.GetName() }, func(i int) []int { return needs[i] })
		if len(order) < len(m.call.items) {
			m.refuseCycles(order, needs) // What comes after them is then in the order.
			continue
		}
		m.call.order = order // So that at no revision there is a variable without what it depends on.
		for _, i := range order {
			if !m.isAdded(i) {
				continue
			}
			if err := m.connectOne(ctx, i); err != nil {
				return err
			}
		}
		return nil
	}
}

// refuseCycles refuses the variables that depend on each other in a circle, each with one such circle. What the order of an
// update leaves out is on one, or after one.
func (m *mates) refuseCycles(order []int, needs [][]int) {
	left := make([][]int, len(needs))
	copy(left, needs)
	for _, i := range order {
		left[i] = nil
	}
	for i, path := range cycles(left) {
		m.call.items[i].refuse(m.cycle(path))
	}
}

func (m *mates) cycle(places []int) *Error {
	path := make([]string, len(places))
	for i, place := range places {
		path[i] = m.call.items[place].registration.GetName()
	}
	return wouldCreateCycle(path)
}

// connectOne resolves what a variable depends on, and computes it if it is derived. What refuses it becomes its outcome.
func (m *mates) connectOne(ctx context.Context, place int) error {
	item := &m.call.items[place]
	err := m.resolve(ctx, place, item)
	if e := asRefusal(err); e != nil {
		item.refuse(e)
		return nil
	}
	return err
}

func (m *mates) resolve(ctx context.Context, place int, item *registerItem) error {
	name := item.registration.GetName()
	var links []link
	for _, identifier := range item.registration.GetDependsOn() {
		l, ok := m.find(identifier)
		if !ok {
			return m.notFound(identifier)
		}
		links = append(links, l)
	}
	if item.registration.GetExpression() != "" {
		var err error
		if links, err = m.derive(ctx, item, links); err != nil {
			return err
		}
	}
	m.links[place] = distinctLinks(links)
	if n := int64(len(m.links[place])); n > m.s.limits.Dependencies {
		return tooManyDependencies(name, m.s.limits.Dependencies)
	}
	for _, l := range m.links[place] {
		item.dependsOn = append(item.dependsOn, l.name)
	}
	return nil
}

// derive computes a variable, and adds what its expression uses to its links.
func (m *mates) derive(ctx context.Context, item *registerItem, links []link) ([]link, error) {
	d := derivation{
		text: item.registration.GetExpression(), kind: item.registration.GetType(), name: item.registration.GetName(),
	}
	explicit := len(links)
	for _, identifier := range item.candidates {
		if l, ok := m.find(identifier); ok {
			links = append(links, l)
		}
	}
	for _, l := range distinctLinks(links) {
		d.inputs = append(d.inputs, m.input(l))
	}
	program, err := m.s.compile(d)
	if err != nil {
		return nil, err
	}
	used := func(l link) bool { return slices.Contains(program.Uses(), l.name) }
	links = slices.Concat(links[:explicit], slices.DeleteFunc(links[explicit:], func(l link) bool { return !used(l) }))
	d.inputs = nil
	for _, l := range distinctLinks(links) {
		d.inputs = append(d.inputs, m.input(l))
	}
	stored, _, problem, err := m.s.derive(ctx, d, item.definition, &m.budget)
	switch {
	case err != nil:
		return nil, err
	case problem == "":
		item.stored = stored
	case item.registration.GetStrict() || item.registration.GetValue() == nil:
		return nil, derivationFailed(d.name, problem)
	default:
		item.problem = problem
	}
	return links, nil
}

func (m *mates) input(l link) input {
	if l.found != nil {
		return storedInput(l.name, l.found.Type, l.found.Value, l.found.Payload)
	}
	item := m.call.items[l.place]
	kind := item.registration.GetType()
	return input{name: l.name, kind: kind, read: func() (*setpointv1.Value, error) {
		return value.Decode(kind, item.stored.JSON, item.stored.Payload)
	}}
}

// distinctLinks are the links by name, each once.
func distinctLinks(links []link) []link {
	sorted := slices.Clone(links)
	slices.SortFunc(sorted, func(a, b link) int { return strings.Compare(a.name, b.name) })
	return slices.CompactFunc(sorted, func(a, b link) bool { return a.name == b.name })
}

func (i *registerItem) refuse(e *Error) {
	i.refusal, i.stored = e.saved(), value.Stored{JSON: []byte("null")}
}
