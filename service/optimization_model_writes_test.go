package service_test

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// The calls that the lease of a variable stands in the way of, and those that read, for the model of leases.

const (
	// leaseMax is what every variable's constraints allow, and leaseBad a value that they do not.
	leaseMax = 1000
	leaseBad = 5000
	// leaseOwner owns the sessions.
	leaseOwner = "user:ada"
)

// leaseChoice is which lease a write presents.
type leaseChoice struct {
	Kind int
	Who  leaseWho
}

// The kinds of choices: the lease of who has the variable, or none; none; that of who had it last; that of one of the
// optimizations; and that of who had it last with the token before, and with the token after.
const (
	ofHolder = iota
	ofNobody
	ofLast
	ofOther
	ofTokenBefore
	ofTokenAfter
)

// presentedLease is a lease that a write presents; none for nil.
type presentedLease struct {
	of    *leaseRecord
	token int64
}

func (l leaseChoice) of(w *leaseWorld, v *leaseVariable) *presentedLease {
	o := w.pick(l.Who)
	if l.Kind != ofOther && v != nil && v.holder != nil {
		o = v.holder
	}
	switch {
	case l.Kind == ofNobody, l.Kind == ofHolder && (v == nil || w.holder(v) == nil), o == nil:
		return nil
	case l.Kind == ofTokenBefore:
		return &presentedLease{o, max(o.token-1, 1)}
	case l.Kind == ofTokenAfter:
		return &presentedLease{o, o.token + 1}
	}
	return &presentedLease{o, max(o.token, 1)}
}

func (l *presentedLease) String() string {
	if l == nil {
		return "-"
	}
	return l.of.String()
}

// fence is why a write of a variable is refused; empty if it is not.
func (w *leaseWorld) fence(v *leaseVariable, l *presentedLease) string {
	holder := w.holder(v)
	switch {
	case l == nil && holder != nil:
		return inTheWayLine(v, holder)
	case l != nil && (holder == nil || holder != l.of || v.token != l.token):
		return refusedLine(setpointv1.ErrorReason_LEASE_LOST, "optimization_id", l.of.String(), "variable", v.name)
	}
	return ""
}

// leaseSet is SetVariable.
type leaseSet struct {
	Name  string
	Value int64
	Dry   bool
	Lease leaseChoice
}

func (l leaseSet) bind(w *leaseWorld, principal string) leaseStep {
	presented := l.Lease.of(w, w.find(l.Name))
	return leaseStep{
		send: func(c leaseCaller) string {
			got, err := c.Variables.SetVariable(c.ctx, &setpointv1.SetVariableRequest{
				SessionId: c.session, Variable: l.Name, Value: client.Integer(l.Value), Lease: c.lease(presented), DryRun: l.Dry,
			})
			if err != nil {
				return c.refusal(err)
			}
			return valueText(got.GetVersion(), l.Value)
		},
		apply: func(string) string { return w.set(l, presented, principal) },
	}
}

func (w *leaseWorld) set(l leaseSet, presented *presentedLease, principal string) string {
	v := w.find(l.Name)
	if v == nil {
		return notFoundLine(l.Name)
	}
	if refused := w.fence(v, presented); refused != "" {
		return refused
	}
	if l.Value > leaseMax {
		return refusedLine(setpointv1.ErrorReason_CONSTRAINT_VIOLATION)
	}
	text := valueText(int64(len(v.versions)), l.Value)
	if !l.Dry {
		w.write("SET", v, l.Value, presented.String(), principal, "")
	}
	return text
}

// leaseBatch is BatchSetVariables, with one lease.
type leaseBatch struct {
	Names  []string
	Value  int64
	Atomic bool
	Lease  leaseChoice
}

func (l leaseBatch) bind(w *leaseWorld, principal string) leaseStep {
	presented := l.Lease.of(w, w.find(l.Names[0]))
	return leaseStep{
		send: func(c leaseCaller) string {
			req := &setpointv1.BatchSetVariablesRequest{SessionId: c.session, Atomic: l.Atomic, Lease: c.lease(presented)}
			for _, name := range l.Names {
				req.Writes = append(req.Writes, &setpointv1.VariableWrite{Variable: name, Value: client.Integer(l.Value)})
			}
			got, err := c.Variables.BatchSetVariables(c.ctx, req)
			if err != nil {
				return c.refusal(err)
			}
			var lines []string
			for _, result := range got.GetResults() {
				if e := result.GetError(); e != nil {
					lines = append(lines, c.refused(e.GetReason(), e.GetMetadata()))
				} else {
					lines = append(lines, valueText(result.GetVersion(), l.Value))
				}
			}
			return strings.Join(lines, "; ")
		},
		apply: func(string) string {
			var lines []string
			for _, name := range l.Names {
				line := w.set(leaseSet{Name: name, Value: l.Value, Dry: true}, presented, principal)
				if l.Atomic && !strings.HasPrefix(line, " ") {
					return line
				}
				lines = append(lines, line)
			}
			for _, name := range l.Names {
				w.set(leaseSet{Name: name, Value: l.Value}, presented, principal)
			}
			return strings.Join(lines, "; ")
		},
	}
}

// leaseRollback is RollbackVariable.
type leaseRollback struct {
	Name    string
	Version int
	Lease   leaseChoice
}

func (l leaseRollback) bind(w *leaseWorld, principal string) leaseStep {
	v := w.find(l.Name)
	presented := l.Lease.of(w, v)
	version := 0
	if v != nil {
		version = l.Version % len(v.versions)
	}
	return leaseStep{
		send: func(c leaseCaller) string {
			got, err := c.History.RollbackVariable(c.ctx, &setpointv1.RollbackVariableRequest{
				SessionId: c.session, Variable: l.Name, Version: int64(version), Lease: c.lease(presented),
			})
			if err != nil {
				return c.refusal(err)
			}
			return valueText(got.GetVersion(), got.GetValue().GetInteger())
		},
		apply: func(string) string {
			v := w.find(l.Name)
			if v == nil {
				return notFoundLine(l.Name)
			}
			if refused := w.fence(v, presented); refused != "" {
				return refused
			}
			w.write("ROLLED_BACK", v, v.versions[version].value, presented.String(), principal, "")
			return valueText(int64(len(v.versions)-1), v.value())
		},
	}
}

// leaseDelete is DeleteVariable.
type leaseDelete struct {
	Name  string
	Lease leaseChoice
}

func (l leaseDelete) bind(w *leaseWorld, principal string) leaseStep {
	presented := l.Lease.of(w, w.find(l.Name))
	return leaseStep{
		send: func(c leaseCaller) string {
			_, err := c.Variables.DeleteVariable(c.ctx, &setpointv1.DeleteVariableRequest{
				SessionId: c.session, Variable: l.Name, Lease: c.lease(presented),
			})
			return c.done(err)
		},
		apply: func(string) string {
			v := w.find(l.Name)
			if v == nil {
				return notFoundLine(l.Name)
			}
			if refused := w.fence(v, presented); refused != "" {
				return refused
			}
			w.rows = append(w.rows, leaseRow("DELETED", v.String(), "", presented.String(), principal, ""))
			v.gone = true
			return "done"
		},
	}
}

// leaseUpdate is UpdateVariable, of the constraints or of the metadata alone.
type leaseUpdate struct {
	Name        string
	Constraints bool
	Lease       leaseChoice
}

func (l leaseUpdate) bind(w *leaseWorld, principal string) leaseStep {
	presented := l.Lease.of(w, w.find(l.Name))
	return leaseStep{
		send: func(c leaseCaller) string {
			req := &setpointv1.UpdateVariableRequest{
				SessionId: c.session, Variable: l.Name, Lease: c.lease(presented), Metadata: map[string]string{"m": "x"},
			}
			if l.Constraints {
				req.Constraints = &setpointv1.Constraints{Max: ptr(float64(leaseMax)), Min: ptr(float64(-c.number))}
			}
			_, err := c.Variables.UpdateVariable(c.ctx, req)
			return c.done(err)
		},
		apply: func(string) string {
			v := w.find(l.Name)
			if v == nil {
				return notFoundLine(l.Name)
			}
			if refused := w.fence(v, presented); refused != "" && (l.Constraints || presented != nil) {
				return refused
			}
			w.rows = append(w.rows, leaseRow("UPDATED", v.String(), "", presented.String(), principal, ""))
			return "done"
		},
	}
}

// leaseRegister is RegisterVariable: of the first name that is free, or else of one that is not.
type leaseRegister struct{}

func leaseRegistration(session, name string) *setpointv1.RegisterVariableRequest {
	return &setpointv1.RegisterVariableRequest{
		SessionId: session, Name: name, Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Value: client.Integer(0),
		Constraints: &setpointv1.Constraints{Max: ptr(float64(leaseMax))},
	}
}

func (leaseRegister) bind(w *leaseWorld, principal string) leaseStep {
	name := w.names[0]
	for _, free := range w.names {
		if w.find(free) == nil {
			name = free
			break
		}
	}
	number := len(w.all)
	return leaseStep{
		send: func(c leaseCaller) string {
			got, err := c.Variables.RegisterVariable(c.ctx, leaseRegistration(c.session, name))
			if err == nil {
				c.learn(got.GetVariableId(), fmt.Sprintf("v%d", number))
			}
			return c.done(err)
		},
		apply: func(string) string {
			if w.find(name) != nil {
				return refusedLine(setpointv1.ErrorReason_VARIABLE_EXISTS, "variable", name)
			}
			v := &leaseVariable{name: name, number: number}
			w.all = append(w.all, v)
			w.write("REGISTERED", v, 0, "-", principal, "")
			return "done"
		},
	}
}

// leaseRestore is RollbackSession to so many revisions ago, with the leases of all who hold one, or of none, and one
// besides.
type leaseRestore struct {
	Ago       int64
	OfHolders bool
	Lease     leaseChoice
}

func (l leaseRestore) leases(w *leaseWorld) []*presentedLease {
	var leases []*presentedLease
	for _, o := range w.records {
		if l.OfHolders && w.holds(o) {
			leases = append(leases, &presentedLease{o, o.token})
		}
	}
	one := l.Lease.of(w, nil)
	if one != nil && !slices.ContainsFunc(leases, func(p *presentedLease) bool { return p.of == one.of }) {
		leases = append(leases, one)
	}
	return leases
}

func (l leaseRestore) bind(w *leaseWorld, principal string) leaseStep {
	leases := l.leases(w)
	to := max(w.revision()-l.Ago, 0)
	return leaseStep{
		send: func(c leaseCaller) string {
			req := &setpointv1.RollbackSessionRequest{
				SessionId: c.session, To: &setpointv1.RollbackSessionRequest_Revision{Revision: to},
			}
			for _, presented := range leases {
				req.Leases = append(req.Leases, c.lease(presented))
			}
			got, err := c.History.RollbackSession(c.ctx, req)
			if err != nil {
				return c.refusal(err)
			}
			return fmt.Sprintf("restored %d", len(got.GetRestored()))
		},
		apply: func(string) string { return w.restore(to, leases, principal) },
	}
}

func (w *leaseWorld) restore(to int64, leases []*presentedLease, principal string) string {
	of := map[*leaseRecord]*presentedLease{}
	for _, presented := range leases {
		if !w.holds(presented.of) || presented.token != presented.of.token {
			return wrongToken(presented.of)
		}
		of[presented.of] = presented
	}
	restored, refusals := map[*leaseVariable]int64{}, map[string]string{}
	for _, v := range w.all {
		i := len(v.versions) - 1
		for i >= 0 && v.versions[i].revision > to {
			i--
		}
		if v.gone || i < 0 || i == len(v.versions)-1 {
			continue
		}
		restored[v] = v.versions[i].value
		if refused := w.fence(v, of[v.holder]); refused != "" {
			refusals[v.name] = refused
		}
	}
	for _, name := range w.names {
		if refused, ok := refusals[name]; ok {
			return refused
		}
	}
	for _, v := range w.all {
		if then, ok := restored[v]; ok {
			w.write("ROLLED_BACK", v, then, of[v.holder].String(), principal, "")
		}
	}
	return fmt.Sprintf("restored %d", len(restored))
}

// leaseTime is how far the clock moves: to when the next optimization is over, less some time, or, where that is nothing,
// on.
type leaseTime struct {
	ToNext   bool
	Less, On time.Duration
}

func (l leaseTime) by(w *leaseWorld) time.Duration {
	next := never
	for _, o := range w.records {
		if w.open(o) {
			next = min(next, o.expires())
		}
	}
	if by := next - w.now - l.Less; l.ToNext && next < never && by > 0 {
		return by
	}
	return l.On
}

// leaseAdvance moves the clock, and has a sweeper see what is over.
type leaseAdvance struct {
	Time  leaseTime
	Sweep bool
}

func (l leaseAdvance) bind(w *leaseWorld, _ string) leaseStep {
	by := l.Time.by(w)
	return leaseStep{
		send: func(c leaseCaller) string {
			c.clock.Advance(by)
			if l.Sweep {
				c.sweep()
			}
			return ""
		},
		apply: func(string) string {
			w.now += by
			if l.Sweep {
				w.settle(nil, "", "", serverPrincipal)
			}
			return ""
		},
	}
}

// leaseSweep is a round of the sweeper.
type leaseSweep struct{}

func (leaseSweep) bind(w *leaseWorld, _ string) leaseStep {
	return leaseStep{
		send: func(c leaseCaller) string {
			c.sweep()
			return ""
		},
		apply: func(string) string {
			w.settle(nil, "", "", serverPrincipal)
			return ""
		},
	}
}

// leaseHeldUp is a call that waits for the session's lock while the clock moves.
type leaseHeldUp struct {
	Call leaseCall
	Time leaseTime
}

func (l leaseHeldUp) bind(w *leaseWorld, principal string) leaseStep {
	step, by := l.Call.bind(w, principal), l.Time.by(w)
	refused := ""
	return leaseStep{
		send: func(c leaseCaller) string {
			release := c.b.holdSession(c.session)
			answer := make(chan string, 1)
			go func() { answer <- step.send(c) }()
			c.blockedOr(answer)
			if step.early != nil && len(answer) > 0 {
				refused = <-answer
				answer <- refused
			}
			c.clock.Advance(by)
			release()
			return <-answer
		},
		apply: func(got string) string {
			if step.early != nil {
				if want := step.early(got); want != "" || refused != "" {
					w.now += by
					return want
				}
			}
			w.now += by
			return step.apply(got)
		},
	}
}
