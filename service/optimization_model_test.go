package service_test

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
)

// The model of leases: what optimizations, their queue and their variables are, by a clock that the test moves. Times are
// since the beginning of the round; optimizations and variables are told apart by the order in which they came to be.

// never is a time that does not come.
const never = time.Duration(math.MaxInt64)

// leaseVersion is a value of a variable, and the revision that made it.
type leaseVersion struct{ revision, value int64 }

type leaseVariable struct {
	name   string
	number int
	gone   bool
	// versions are all there ever were.
	versions []leaseVersion
	// holder has, or last had, the lease; until is 0 where it was ended.
	holder *leaseRecord
	token  int64
	until  time.Duration
}

func (v *leaseVariable) String() string { return fmt.Sprintf("%s(v%d)", v.name, v.number) }

func (v *leaseVariable) value() int64 { return v.versions[len(v.versions)-1].value }

// leaseTrial is a report.
type leaseTrial struct {
	number, step  int64
	values        map[string]int64
	metrics       map[string]float64
	applied, late bool
	at            time.Duration
}

// leaseRecord is an optimization.
type leaseRecord struct {
	number              int
	by, optimizer       string
	variables           []*leaseVariable
	priority            int32
	rank, ticket        int64
	ttl, progressWithin time.Duration
	metric              string
	minimizes           bool

	// state is as it was last written; the times may have ended it since.
	state                                   string
	renewed, progress, preempt, wait, grace time.Duration
	preemptedBy                             *leaseRecord
	requested, started, ended, reported     time.Duration
	reason                                  string
	token, last, count, late                int64
	trials                                  []*leaseTrial
	best                                    *leaseTrial
	// checkpoint is the trial of the latest; inherits is whose it was handed.
	checkpoint *leaseTrial
	inherits   *leaseRecord
}

func (o *leaseRecord) String() string {
	if o == nil {
		return "-"
	}
	return fmt.Sprintf("o%d", o.number)
}

func (o *leaseRecord) names() []string {
	var names []string
	for _, v := range o.variables {
		names = append(names, v.name)
	}
	slices.Sort(names)
	return names
}

func (o *leaseRecord) byName() []*leaseVariable {
	return slices.SortedFunc(slices.Values(o.variables), func(a, b *leaseVariable) int {
		return strings.Compare(a.name, b.name)
	})
}

func (o *leaseRecord) wants(v *leaseVariable) bool { return slices.Contains(o.variables, v) }

func (o *leaseRecord) expires() time.Duration { return min(o.renewed, o.progress, o.preempt, o.wait) }

// end is what and why an optimization is once its time is over.
func (o *leaseRecord) end() (string, string) {
	switch {
	case o.preempt <= min(o.renewed, o.progress):
		return "PREEMPTED", "preempted by " + o.preemptedBy.String()
	case o.wait <= o.renewed:
		return "CANCELLED", "max_wait was over"
	case o.state == "WAITING":
		return "EXPIRED", "its stay in the queue was not renewed in time"
	case o.progress <= o.renewed:
		return "EXPIRED", "no progress was reported in time"
	}
	return "EXPIRED", "the lease was not renewed in time"
}

// leaseWorld is a session as the model knows it.
type leaseWorld struct {
	now     time.Duration
	names   []string
	all     []*leaseVariable
	records []*leaseRecord
	ticket  int64
	// rows is the history.
	rows []string
}

func (w *leaseWorld) revision() int64 { return int64(len(w.rows)) }

// find is the variable of a name; nil if there is none.
func (w *leaseWorld) find(name string) *leaseVariable {
	for _, v := range w.all {
		if v.name == name && !v.gone {
			return v
		}
	}
	return nil
}

// open tells whether neither a stop nor the clock has ended an optimization.
func (w *leaseWorld) open(o *leaseRecord) bool { return o.ended < 0 && o.expires() > w.now }

func (w *leaseWorld) state(o *leaseRecord) string {
	if o.ended < 0 && o.expires() <= w.now {
		state, _ := o.end()
		return state
	}
	return o.state
}

func (w *leaseWorld) waits(o *leaseRecord) bool { return w.open(o) && o.state == "WAITING" }

func (w *leaseWorld) holds(o *leaseRecord) bool { return w.open(o) && o.state != "WAITING" }

// holder is who has the lease of a variable; nil for nobody.
func (w *leaseWorld) holder(v *leaseVariable) *leaseRecord {
	if v.until > w.now {
		return v.holder
	}
	return nil
}

// queue is who waits for a variable, the first one first.
func (w *leaseWorld) queue(v *leaseVariable) []*leaseRecord {
	var queue []*leaseRecord
	for _, o := range w.records {
		if w.waits(o) && o.wants(v) {
			queue = append(queue, o)
		}
	}
	slices.SortFunc(queue, inQueue)
	return queue
}

func inQueue(a, b *leaseRecord) int {
	return cmp.Or(cmp.Compare(a.rank, b.rank), cmp.Compare(a.ticket, b.ticket))
}

// place is where an optimization is in the queue in which it is furthest back.
func (w *leaseWorld) place(o *leaseRecord) int {
	place := 0
	for _, v := range o.variables {
		place = max(place, 1+slices.Index(w.queue(v), o))
	}
	return place
}

// ready tells whether nothing stands in the way of a grant.
func (w *leaseWorld) ready(o *leaseRecord) bool {
	return w.place(o) == 1 && !slices.ContainsFunc(o.variables, func(v *leaseVariable) bool {
		return !v.gone && w.holder(v) != nil
	})
}

// leaseRow is a row of the history.
func leaseRow(change, variable, value, under, by, reason string) string {
	return strings.TrimSpace(fmt.Sprintf("%s %s%s under %s by %s %s", change, variable, value, under, by, reason))
}

func valueText(version, value int64) string { return fmt.Sprintf(" v%d=%d", version, value) }

// row appends a row that changes no value.
func (w *leaseWorld) row(change string, v *leaseVariable, under *leaseRecord, by, reason string) {
	w.rows = append(w.rows, leaseRow(change, v.String(), "", under.String(), by, reason))
}

// write gives a variable a value.
func (w *leaseWorld) write(change string, v *leaseVariable, value int64, under, by, reason string) {
	text := valueText(int64(len(v.versions)), value)
	w.rows = append(w.rows, leaseRow(change, v.String(), text, under, by, reason))
	v.versions = append(v.versions, leaseVersion{w.revision(), value})
}

// held are the variables that an optimization has, or last had.
func (o *leaseRecord) held() []*leaseVariable {
	var held []*leaseVariable
	for _, v := range o.variables {
		if !v.gone && v.holder == o {
			held = append(held, v)
		}
	}
	slices.SortFunc(held, func(a, b *leaseVariable) int { return cmp.Compare(a.number, b.number) })
	return held
}

// lease writes the time of a lease where writes ask for it.
func (o *leaseRecord) lease() {
	for _, v := range o.held() {
		v.until = o.expires()
	}
}

const serverPrincipal = "service:setpoint"

// settle writes down what the clock has ended, and ends one besides if it is not nil.
func (w *leaseWorld) settle(one *leaseRecord, state, reason, by string) {
	waited := false
	for _, o := range w.records {
		if o.ended >= 0 || o != one && o.expires() > w.now {
			continue
		}
		waited = waited || o.state == "WAITING"
		o.endNow(w, state, reason, by)
	}
	if waited {
		w.keep(by)
	}
}

func (o *leaseRecord) endNow(w *leaseWorld, state, reason, by string) {
	if o.expires() <= w.now {
		state, reason = o.end()
		by = serverPrincipal
	}
	if o.state != "WAITING" {
		for _, v := range o.held() {
			w.row("LEASE_ENDED", v, o, by, reason)
			v.until = 0
		}
	}
	o.state, o.reason, o.ended = state, reason, min(o.expires(), w.now)
}

// keep gives those their leases back whom nobody is to preempt any more, and tells others who is to, and when.
func (w *leaseWorld) keep(by string) {
	for _, o := range w.records {
		if !w.holds(o) || o.state != "PREEMPTING" {
			continue
		}
		o.preempt, o.preemptedBy = never, nil
		for _, p := range w.records {
			if !w.waits(p) || p.rank == 0 || p.priority <= o.priority || !slices.ContainsFunc(p.variables, o.wants) {
				continue
			}
			o.preempt = min(o.preempt, p.grace)
			if o.preemptedBy == nil || inQueue(p, o.preemptedBy) < 0 {
				o.preemptedBy = p
			}
		}
		o.lease()
		if o.preemptedBy != nil {
			continue
		}
		o.state = "ACTIVE"
		for _, v := range o.held() {
			w.row("LEASE_KEPT", v, o, by, "")
		}
	}
}

// grant gives a waiting optimization its lease, or cancels it where it can have none.
func (w *leaseWorld) grant(o *leaseRecord) {
	var missing []string
	for _, v := range o.variables {
		if v.gone {
			missing = append(missing, v.name)
		}
	}
	switch {
	case !w.waits(o):
		return
	case len(missing) > 0:
		w.settle(o, "CANCELLED", slices.Min(missing)+" was deleted", serverPrincipal)
		return
	case !w.ready(o):
		return
	}
	o.inherits = o.predecessor()
	for _, v := range o.variables {
		o.token = max(o.token, v.token+1)
	}
	o.state, o.started, o.wait, o.renewed = "ACTIVE", w.now, never, w.now+o.ttl
	o.report(w.now)
	for _, v := range o.variables {
		v.holder, v.token = o, o.token
	}
	o.lease()
	for _, v := range o.held() {
		w.row("LEASE_GRANTED", v, o, o.by, "")
	}
}

// report puts off the end of one that makes no progress.
func (o *leaseRecord) report(now time.Duration) {
	if o.progressWithin > 0 {
		o.progress = now + o.progressWithin
	}
}

// predecessor is whose checkpoint a new holder is handed: of those who had its variables last, the latest who has one.
func (o *leaseRecord) predecessor() *leaseRecord {
	var latest *leaseRecord
	for _, v := range o.variables {
		p := v.holder
		if p == nil || p.checkpoint == nil && p.inherits == nil {
			continue
		}
		if latest == nil || cmp.Or(cmp.Compare(p.started, latest.started), cmp.Compare(p.number, latest.number)) > 0 {
			latest = p
		}
	}
	if latest != nil && latest.checkpoint == nil {
		return latest.inherits
	}
	return latest
}

// tell has those who hold what an optimization wants know that they are to lose it.
func (w *leaseWorld) tell(by *leaseRecord, grace time.Duration) {
	by.grace = w.now + grace
	for _, o := range w.records {
		if !slices.ContainsFunc(by.variables, func(v *leaseVariable) bool { return w.holder(v) == o }) {
			continue
		}
		knew := o.state == "PREEMPTING"
		o.state, o.preemptedBy, o.preempt = "PREEMPTING", by, min(o.preempt, by.grace)
		o.lease()
		for _, v := range o.held() {
			if !knew {
				w.row("LEASE_PREEMPTING", v, o, by.by, "preempted by "+by.String())
			}
		}
	}
}

// trialsBy are the trials that count by a metric, the best first.
func (o *leaseRecord) trialsBy(metric string, minimize bool) []*leaseTrial {
	var trials []*leaseTrial
	for _, t := range o.trials {
		if m, ok := t.metrics[metric]; ok && !math.IsNaN(m) && !t.late && t.step < 0 {
			trials = append(trials, t)
		}
	}
	slices.SortFunc(trials, func(a, b *leaseTrial) int {
		order := cmp.Compare(b.metrics[metric], a.metrics[metric])
		if minimize {
			order = -order
		}
		return cmp.Or(order, cmp.Compare(a.number, b.number))
	})
	return trials
}

// record keeps a report, and puts off the lease's end where it is in time.
func (w *leaseWorld) record(o *leaseRecord, t *leaseTrial, checkpoint bool) {
	o.trials = append(o.trials, t)
	o.last, o.reported = max(o.last, t.number), w.now
	if t.late {
		o.late++
		return
	}
	if checkpoint {
		o.checkpoint = t
	}
	if t.step < 0 {
		o.count++
		if m, ok := t.metrics[o.metric]; ok && !math.IsNaN(m) && o.beats(t) {
			o.best = t
		}
	}
	o.renewed = w.now + o.ttl
	o.report(w.now)
	o.lease()
}

// beats tells whether a trial is better than the best one, or as good and of a lower number.
func (o *leaseRecord) beats(t *leaseTrial) bool {
	if o.best == nil {
		return true
	}
	order := cmp.Compare(o.best.metrics[o.metric], t.metrics[o.metric])
	if o.minimizes {
		order = -order
	}
	return order < 0 || order == 0 && t.number < o.best.number
}

// line is an optimization as a principal is told of it.
func (w *leaseWorld) line(o *leaseRecord, principal string) string {
	token, position, remaining, preemption := int64(0), 0, time.Duration(-1), ""
	expires, ended, reason := o.expires(), o.ended, o.reason
	if o.by == principal {
		token = o.token
	}
	switch {
	case w.waits(o):
		position = w.place(o)
	case w.holds(o) && o.state == "PREEMPTING":
		preemption = fmt.Sprintf("by %s until %s", o.preemptedBy, o.preempt)
	case o.ended < 0 && expires <= w.now:
		ended = expires
		_, reason = o.end()
	}
	if w.open(o) {
		remaining = expires - w.now
	}
	return leaseLine(leaseText{
		id: o.String(), state: w.state(o), by: o.by, optimizer: o.optimizer, reason: reason, preemption: preemption,
		best: w.bestLine(o), names: o.names(), token: token, count: o.count, late: o.late, position: position,
		requested: o.requested, started: o.started, expires: expires, ended: ended, reported: o.reported, remaining: remaining,
	})
}

func (w *leaseWorld) bestLine(o *leaseRecord) string {
	if o.best == nil {
		return "none"
	}
	return o.trialLine(o.best)
}

func (o *leaseRecord) trialLine(t *leaseTrial) string {
	return trialText(t.number, t.step, t.values, t.metrics, t.applied, t.late, t == o.best, t.at)
}

func trialText(
	number, step int64, values map[string]int64, metrics map[string]float64, applied, late, best bool, at time.Duration,
) string {
	return fmt.Sprintf("#%d/%d %v %v applied=%t late=%t best=%t @%s", number, step, values, metrics, applied, late, best, at)
}

// leaseText is what is compared of an optimization. A time before the round is none.
type leaseText struct {
	id, state, by, optimizer, reason, preemption, best      string
	names                                                   []string
	token, count, late                                      int64
	position                                                int
	requested, started, expires, ended, reported, remaining time.Duration
}

func leaseLine(t leaseText) string {
	return fmt.Sprintf("%s %s %v of %s (%s) token=%d place=%d asked=%s started=%s expires=%s remaining=%s ended=%s %q"+
		" preempted %q trials=%d late=%d last=%s best: %s", t.id, t.state, t.names, t.by, t.optimizer, t.token, t.position,
		t.requested, t.started, t.expires, t.remaining, t.ended, t.reason, t.preemption, t.count, t.late, t.reported, t.best)
}
