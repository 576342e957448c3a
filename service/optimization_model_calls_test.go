package service_test

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// The calls that change optimizations, each sent to a server and done by the model: both answer with a line of text.

// leaseStep is a call whose subjects have been chosen.
type leaseStep struct {
	send func(c leaseCaller) string
	// apply does the call in the model. It is told what the server answered, where that is a choice.
	apply func(got string) string
	// early is what is refused by a look before the lock; empty if that finds nothing, nil if there is none.
	early func(got string) string
}

// leaseCall is a call that a principal makes.
type leaseCall interface {
	bind(w *leaseWorld, principal string) leaseStep
}

// refusedLine is a refusal as lines tell it: the reason, and the metadata in pairs.
func refusedLine(reason setpointv1.ErrorReason, pairs ...string) string {
	var told []string
	for i := 0; i < len(pairs); i += 2 {
		told = append(told, pairs[i]+"="+pairs[i+1])
	}
	slices.Sort(told)
	return strings.TrimSpace(reason.String() + " " + strings.Join(told, " "))
}

func endedLine(o *leaseRecord, state string) string {
	return refusedLine(setpointv1.ErrorReason_OPTIMIZATION_ENDED, "optimization_id", o.String(), "state", state)
}

func wrongToken(o *leaseRecord) string {
	return refusedLine(setpointv1.ErrorReason_LEASE_LOST, "optimization_id", o.String())
}

func deniedLine(permission string) string {
	return refusedLine(setpointv1.ErrorReason_ACCESS_DENIED, "permission", permission)
}

func notFoundLine(name string) string {
	return refusedLine(setpointv1.ErrorReason_VARIABLE_NOT_FOUND, "variable", name)
}

var invalidLine = refusedLine(setpointv1.ErrorReason_INVALID_REQUEST)

// inTheWayLine is the refusal for one who has a variable, or waits for it.
func inTheWayLine(v *leaseVariable, o *leaseRecord) string {
	pairs := []string{
		"variable", v.name, "optimization_id", o.String(), "optimizer_id", o.optimizer, "expires_at", o.expires().String(),
	}
	if o.started >= 0 {
		pairs = append(pairs, "started_at", o.started.String())
	}
	return refusedLine(setpointv1.ErrorReason_ALREADY_OPTIMIZING, pairs...)
}

// leaseWho is one of the optimizations of a kind, the newest for 0; one of all where there are none of the kind.
type leaseWho struct{ Kind, Back int }

// The kinds: those that have a lease, those that wait, those of them that preempt and their victims, and all.
const (
	whoHolds = iota
	whoWaits
	whoPreempts
	whoever
)

// pick is nil if there are no optimizations.
func (w *leaseWorld) pick(who leaseWho) *leaseRecord {
	among := slices.DeleteFunc(slices.Clone(w.records), func(o *leaseRecord) bool {
		switch who.Kind {
		case whoHolds:
			return !w.holds(o)
		case whoWaits:
			return !w.waits(o)
		case whoPreempts:
			return !w.open(o) || o.rank == 0 && o.state != "PREEMPTING"
		}
		return false
	})
	if len(among) == 0 {
		among = w.records
	}
	if len(among) == 0 {
		return nil
	}
	return among[len(among)-1-who.Back%len(among)]
}

// leaseStart is StartOptimization. Seconds below 0 are not given.
type leaseStart struct {
	Names                         []string
	Conflict                      setpointv1.ConflictStrategy
	Priority                      int32
	TTL, MaxWait, Grace, Progress int
	Objective, Minimize           bool
}

func orAbsent(seconds int) *durationpb.Duration {
	if seconds < 0 {
		return nil
	}
	return durationpb.New(time.Duration(seconds) * time.Second)
}

func (s leaseStart) bind(w *leaseWorld, principal string) leaseStep {
	id := fmt.Sprintf("o%d", len(w.records))
	return leaseStep{
		send: func(c leaseCaller) string {
			req := &setpointv1.StartOptimizationRequest{
				SessionId: c.session, Variables: s.Names, OptimizerId: "of " + principal, Conflict: s.Conflict,
				Priority: s.Priority, Ttl: orAbsent(s.TTL), MaxWait: orAbsent(s.MaxWait), Grace: orAbsent(s.Grace),
				ProgressTimeout: orAbsent(s.Progress),
			}
			if s.Objective {
				req.Objective = &setpointv1.Objective{Metric: "m"}
				if s.Minimize {
					req.Objective.Direction = setpointv1.Direction_DIRECTION_MINIMIZE
				}
			}
			o, err := c.Optimizations.StartOptimization(c.ctx, req)
			if err != nil {
				return c.refusal(err)
			}
			c.learn(o.GetOptimizationId(), id)
			return c.line(o) + c.checkpoint(o)
		},
		early: func(got string) string { return s.refusal(w, got) },
		apply: func(got string) string {
			if refused := s.refusal(w, got); refused != "" {
				return refused
			}
			o := s.add(w, principal)
			return w.line(o, principal) + o.checkpointLine()
		},
	}
}

// standing is who has a variable, or else waits for it before a start of a rank; nil for nobody.
func (w *leaseWorld) standing(v *leaseVariable, rank int64) *leaseRecord {
	if holder := w.holder(v); holder != nil {
		return holder
	}
	return w.waitsBefore(v, rank)
}

func (w *leaseWorld) waitsBefore(v *leaseVariable, rank int64) *leaseRecord {
	for _, q := range w.queue(v) {
		if q.rank <= rank {
			return q
		}
	}
	return nil
}

func (s leaseStart) rank() int64 {
	if s.Conflict == setpointv1.ConflictStrategy_CONFLICT_STRATEGY_PREEMPT {
		return -1 - int64(s.Priority) - 1_000_000
	}
	return 0
}

// refusal is why a start is refused; empty if it is not. Who of several in the way is named is the server's choice.
func (s leaseStart) refusal(w *leaseWorld, got string) string {
	var inTheWay []string
	yields := true
	for _, name := range s.Names {
		v := w.find(name)
		if v == nil {
			return notFoundLine(name)
		}
		if o := w.standing(v, s.rank()); o != nil {
			inTheWay = append(inTheWay, inTheWayLine(v, o))
			yields = yields && w.waitsBefore(v, s.rank()) == nil && o.priority < s.Priority
		}
	}
	switch {
	case len(inTheWay) == 0:
		return ""
	case s.MaxWait != 0 && (s.Conflict == setpointv1.ConflictStrategy_CONFLICT_STRATEGY_WAIT ||
		s.Conflict == setpointv1.ConflictStrategy_CONFLICT_STRATEGY_PREEMPT && yields):
		return ""
	case slices.Contains(inTheWay, got):
		return got
	}
	return inTheWay[0]
}

// add has a start join the queue, and leave it if it can.
func (s leaseStart) add(w *leaseWorld, principal string) *leaseRecord {
	w.settle(nil, "", "", serverPrincipal)
	w.ticket++
	o := &leaseRecord{
		number: len(w.records), by: principal, optimizer: "of " + principal, priority: s.Priority, rank: s.rank(),
		ticket: w.ticket, ttl: time.Minute, state: "WAITING", requested: w.now, started: -1, ended: -1, reported: -1,
		progress: never, preempt: never, wait: never, minimizes: s.Minimize,
		progressWithin: time.Duration(max(s.Progress, 0)) * time.Second,
	}
	if s.Objective {
		o.metric = "m"
	}
	if s.TTL >= 0 {
		o.ttl = time.Duration(s.TTL) * time.Second
	}
	if s.MaxWait >= 0 {
		o.wait = w.now + time.Duration(s.MaxWait)*time.Second
	}
	o.renewed = w.now + o.ttl
	blocked := false
	for _, name := range s.Names {
		v := w.find(name)
		o.variables = append(o.variables, v)
		blocked = blocked || w.standing(v, o.rank) != nil
	}
	if !blocked {
		o.wait = never
	}
	w.records = append(w.records, o)
	grace := 5 * time.Second
	if s.Grace >= 0 {
		grace = time.Duration(s.Grace) * time.Second
	}
	switch {
	case !blocked:
		w.grant(o)
	case s.Conflict == setpointv1.ConflictStrategy_CONFLICT_STRATEGY_PREEMPT:
		w.tell(o, grace)
	}
	return o
}

// leaseRenew is RenewOptimization, with a token that is off by so much.
type leaseRenew struct {
	Who leaseWho
	Off int64
}

func (l leaseRenew) bind(w *leaseWorld, principal string) leaseStep {
	o := w.pick(l.Who)
	if o == nil {
		return leaseGet{}.bind(w, principal)
	}
	token := max(o.token+l.Off, 0)
	return leaseStep{
		send: func(c leaseCaller) string {
			got, err := c.Optimizations.RenewOptimization(c.ctx, &setpointv1.RenewOptimizationRequest{
				SessionId: c.session, OptimizationId: c.id(o), FencingToken: token,
			})
			if err != nil {
				return c.refusal(err)
			}
			return c.line(got)
		},
		apply: func(string) string { return w.renew(o, token, principal) },
	}
}

func (w *leaseWorld) renew(o *leaseRecord, token int64, principal string) string {
	waits := w.waits(o)
	switch {
	case !w.open(o):
		return endedLine(o, w.state(o))
	case waits && o.by != principal:
		return deniedLine("optimize")
	case !waits && token != o.token:
		return wrongToken(o)
	}
	o.renewed = w.now + o.ttl
	o.lease()
	if waits && w.ready(o) {
		w.settle(nil, "", "", serverPrincipal)
		w.grant(o)
	}
	if !w.open(o) { // It was cancelled at its turn.
		return endedLine(o, w.state(o))
	}
	return w.line(o, principal)
}

// leaseStop is StopOptimization. Token is -1 for none, else it is off by so much.
type leaseStop struct {
	Who       leaseWho
	Token     int64
	Force     bool
	State     setpointv1.OptimizationState
	ApplyBest bool
}

func (l leaseStop) bind(w *leaseWorld, principal string) leaseStep {
	o := w.pick(l.Who)
	if o == nil {
		return leaseGet{}.bind(w, principal)
	}
	token := max(o.token+l.Token, 1)
	reason := ""
	if l.Force {
		reason = "in the way"
	}
	return leaseStep{
		send: func(c leaseCaller) string {
			req := &setpointv1.StopOptimizationRequest{
				SessionId: c.session, OptimizationId: c.id(o), State: l.State, ApplyBest: l.ApplyBest, Force: l.Force,
				Reason: reason,
			}
			if l.Token >= 0 {
				req.FencingToken = &token
			}
			got, err := c.Optimizations.StopOptimization(c.ctx, req)
			if err != nil {
				return c.refusal(err)
			}
			return c.line(got.GetOptimization()) + fmt.Sprint(integersOf(got.GetFinalValues()))
		},
		apply: func(string) string {
			state, refused := l.decide(w, o, token, principal)
			if refused != "" {
				return refused
			}
			if l.ApplyBest {
				if refused := w.applyBest(o, principal, reason); refused != "" {
					return refused
				}
			}
			ended := reason
			if l.Force {
				ended += " (forced by " + principal + ")"
			}
			return w.stop(o, state, ended, principal)
		},
	}
}

// decide is the state in which a stop ends an optimization, or why it does not.
func (l leaseStop) decide(w *leaseWorld, o *leaseRecord, token int64, principal string) (string, string) {
	waits := w.waits(o)
	cancels := l.State == setpointv1.OptimizationState_OPTIMIZATION_STATE_CANCELLED
	switch {
	case !w.open(o):
		return "", endedLine(o, w.state(o))
	case l.Force && principal != leaseOwner && principal != o.by:
		return "", deniedLine("owner")
	case !l.Force && l.Token < 0 && principal != o.by:
		return "", deniedLine("optimize")
	case !l.Force && l.Token >= 0 && (waits || token != o.token):
		return "", wrongToken(o)
	case l.ApplyBest && (waits || o.best == nil), waits && l.State != 0 && !cancels:
		return "", invalidLine
	case l.State == 0 && (waits || l.Force):
		return "CANCELLED", ""
	case l.State == 0:
		return "COMPLETED", ""
	}
	return stateText(l.State), ""
}

func stateText(state setpointv1.OptimizationState) string {
	return strings.TrimPrefix(state.String(), "OPTIMIZATION_STATE_")
}

func (w *leaseWorld) applyBest(o *leaseRecord, principal, reason string) string {
	if len(o.best.values) == 0 {
		return invalidLine
	}
	return w.applyTrial(o, o.best, principal, reason)
}

// applyTrial gives variables the values of a trial, or tells which of them is gone.
func (w *leaseWorld) applyTrial(o *leaseRecord, t *leaseTrial, principal, reason string) string {
	for _, v := range o.byName() {
		if _, ok := t.values[v.name]; ok && v.gone {
			return notFoundLine(v.name)
		}
	}
	for _, v := range o.byName() {
		if value, ok := t.values[v.name]; ok {
			w.write("SET", v, value, fmt.Sprintf("%s trial %d", o, t.number), principal, reason)
		}
	}
	return ""
}

func (w *leaseWorld) stop(o *leaseRecord, state, reason, principal string) string {
	if reason == "" {
		reason = "stopped by " + principal
	}
	held := w.holds(o)
	w.settle(o, state, reason, principal)
	final := map[string]int64{}
	for _, v := range o.variables {
		if held && !v.gone {
			final[v.name] = v.value()
		}
	}
	return w.line(o, principal) + fmt.Sprint(final)
}

// leaseReport is ReportProgress: of so many of the optimization's variables, with a token that is off by so much.
type leaseReport struct {
	Who                      leaseWho
	Off                      int64
	Number, Step             int64 // -1 is none.
	Values                   int
	Value                    int64
	Metrics                  map[string]float64
	Stray, Apply, Checkpoint bool
}

func (l leaseReport) bind(w *leaseWorld, principal string) leaseStep {
	o := w.pick(l.Who)
	if o == nil {
		return leaseGet{}.bind(w, principal)
	}
	token := max(o.token+l.Off, 1)
	t := leaseTrial{number: l.Number, step: l.Step, metrics: l.Metrics, values: map[string]int64{}}
	for i, name := range o.names() {
		if i < l.Values {
			t.values[name] = l.Value
		}
	}
	if l.Stray {
		t.values["nowhere"] = 1
	}
	if l.Number < 0 {
		t.step = -1
	}
	apply := l.Apply && len(t.values) > 0 && t.step < 0
	return leaseStep{
		send: func(c leaseCaller) string {
			req := &setpointv1.ReportProgressRequest{
				SessionId: c.session, OptimizationId: c.id(o), FencingToken: token, Values: map[string]*setpointv1.Value{},
				Metrics: t.metrics, Apply: apply,
			}
			for name, v := range t.values {
				req.Values[name] = client.Integer(v)
			}
			if l.Number >= 0 {
				req.Number = &l.Number
			}
			if t.step >= 0 {
				req.Step = &l.Step
			}
			if l.Checkpoint {
				req.Checkpoint = []byte("c")
			}
			got, err := c.Optimizations.ReportProgress(c.ctx, req)
			if err != nil {
				return c.refusal(err)
			}
			return c.reported(got)
		},
		apply: func(string) string { return w.reportTrial(o, t, token, principal, apply, l.Checkpoint) },
	}
}

func (w *leaseWorld) reportTrial(
	o *leaseRecord, t leaseTrial, token int64, principal string, apply, checkpoint bool,
) string {
	if o.token != token {
		return wrongToken(o)
	}
	if t.number < 0 {
		t.number = o.last + 1
	}
	for _, first := range o.trials {
		if first.number == t.number && first.step == t.step {
			return w.reportedLine(o, first) + " again"
		}
	}
	t.late, t.at = !w.holds(o), w.now
	if refused := w.checkValues(o, t); refused != "" {
		return refused
	}
	if apply && !t.late {
		if refused := w.applyTrial(o, &t, principal, ""); refused != "" {
			return refused
		}
		t.applied = true
	}
	w.record(o, &t, checkpoint)
	return w.reportedLine(o, &t)
}

// checkValues refuses values of a report: of a late one, and for variables that were deleted, only those that are of no
// variable of it.
func (w *leaseWorld) checkValues(o *leaseRecord, t leaseTrial) string {
	if _, stray := t.values["nowhere"]; stray {
		return invalidLine
	}
	for _, v := range o.variables {
		if t.values[v.name] > leaseMax && !t.late && !v.gone {
			return refusedLine(setpointv1.ErrorReason_CONSTRAINT_VIOLATION)
		}
	}
	return ""
}

func (w *leaseWorld) reportedLine(o *leaseRecord, t *leaseTrial) string {
	preemption, remaining := "", time.Duration(-1)
	if w.holds(o) {
		remaining = o.expires() - w.now
		if o.state == "PREEMPTING" {
			preemption = fmt.Sprintf("by %s until %s", o.preemptedBy, o.preempt)
		}
	}
	expires := o.expires()
	if !w.holds(o) && o.ended >= 0 {
		expires = o.ended
	}
	return reportText(o.trialLine(t), t == o.best, t.late, expires, remaining, preemption)
}

func reportText(trial string, best, late bool, expires, remaining time.Duration, preemption string) string {
	return fmt.Sprintf("%s best=%t late=%t expires=%s remaining=%s preempted %q",
		trial, best, late, expires, remaining, preemption)
}

func (o *leaseRecord) checkpointLine() string {
	from := o
	if o.checkpoint == nil {
		from = o.inherits
	}
	if from == nil {
		return ""
	}
	return fmt.Sprintf(" checkpoint of %s #%d", from, from.checkpoint.number)
}
