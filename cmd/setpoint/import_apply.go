package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strconv"

	"google.golang.org/protobuf/proto"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/value"
)

const (
	// maxBatchItems is how many items the API takes in a batch.
	maxBatchItems = 1000
	// maxBatchBytes bounds a batch, but for one item that alone is larger.
	maxBatchBytes = 8 << 20
	// maxPendingSteps bounds the writes that are gathered for several batches.
	maxPendingSteps = 10_000
)

// importStep is one write of one variable; a variable's steps follow each other.
type importStep struct {
	target *importTarget
	// One of the three.
	register *setpointv1.VariableRegistration
	write    *setpointv1.VariableWrite
	update   *setpointv1.UpdateVariableRequest
}

// apply reads the file a second time, and writes.
func (im *importer) apply(ctx context.Context, in io.ReadSeeker, variables int64) error {
	im.progress = &progress{c: im.c, noun: "imported", total: variables, beside: true}
	defer im.progress.end()
	r, err := im.open(in)
	if err != nil {
		return err
	}
	var target *importTarget
	for {
		record, err := r.read()
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if err == nil && record.entry != nil {
			if err := im.replay(ctx, target, record.entry); err != nil {
				return err
			}
			continue
		}
		if err := im.finish(ctx, target); err != nil {
			return err
		}
		if err != nil {
			if err := im.flush(ctx); err != nil || len(im.graph.connected) == 0 {
				return err
			}
			return im.connect(ctx, r, in)
		}
		if target, err = newImportTarget(record); err != nil {
			return err
		}
		// With its history it is registered now, but will only follow others when all are there. Else it waits until then.
		target.settled = target.connected() && (!im.history || target.variable.GetValue() == nil)
	}
}

// replay adds a version of the file's history.
func (im *importer) replay(ctx context.Context, t *importTarget, entry *setpointv1.HistoryEntry) error {
	if !im.history || t.settled {
		return nil
	}
	if !t.accepts(entry.GetValue()) {
		im.done.Skipped++
		t.skipped++
		return nil
	}
	step := t.step(entry.GetValue(), entry.GetMetadata(), entry.GetReason())
	if step.write != nil && step.write.GetReason() == "" {
		step.write.Reason = im.reason
	}
	return im.add(ctx, step)
}

// finish adds what brings a variable to its present state.
func (im *importer) finish(ctx context.Context, t *importTarget) error {
	if t == nil || t.settled {
		return nil
	}
	v := t.variable
	switch {
	case !t.begun || !sameMessage(t.value, v.GetValue()):
		return im.add(ctx, t.step(v.GetValue(), v.GetMetadata(), im.reason))
	case !maps.Equal(t.metadata, v.GetMetadata()):
		return im.add(ctx, importStep{target: t, update: &setpointv1.UpdateVariableRequest{
			SessionId: im.sessionID, Variable: v.GetName(), Reason: im.reason,
			Metadata: v.GetMetadata(), ClearMetadata: len(v.GetMetadata()) == 0}})
	}
	return nil
}

// step registers the variable, or sets it if it is registered.
func (t *importTarget) step(v *setpointv1.Value, metadata map[string]string, reason string) importStep {
	first := !t.begun
	t.begun, t.value, t.metadata = true, v, metadata
	if first {
		return importStep{target: t, register: &setpointv1.VariableRegistration{
			Name: t.variable.GetName(), Type: t.variable.GetType(), Value: v, Constraints: t.variable.GetConstraints(),
			Metadata: metadata, HistoryLimit: proto.Int64(t.variable.GetHistoryLimit()), AccessMode: t.variable.GetAccessMode()}}
	}
	return importStep{target: t, write: &setpointv1.VariableWrite{
		Variable: t.variable.GetName(), Value: v, Metadata: metadata, ClearMetadata: len(metadata) == 0, Reason: reason}}
}

func (s importStep) bytes() int {
	switch {
	case s.register != nil:
		return proto.Size(s.register)
	case s.write != nil:
		return proto.Size(s.write)
	}
	return proto.Size(s.update)
}

func (im *importer) add(ctx context.Context, step importStep) error {
	size := step.bytes()
	if len(im.pending) == maxPendingSteps || len(im.pending) > 0 && im.pendingBytes+size > maxBatchBytes {
		if err := im.flush(ctx); err != nil {
			return err
		}
	}
	im.pending, im.pendingBytes = append(im.pending, step), im.pendingBytes+size
	return nil
}

// flush makes the pending writes, in rounds: a batch takes a variable only once, so the first round has the first step
// of each variable, the second the second of those that have one.
func (im *importer) flush(ctx context.Context) error {
	var queues [][]importStep
	for i, step := range im.pending {
		if i == 0 || im.pending[i-1].target != step.target {
			queues = append(queues, nil)
		}
		last := len(queues) - 1
		queues[last] = append(queues[last], step)
	}
	im.pending, im.pendingBytes = nil, 0
	for round := 0; len(queues) > 0; round++ {
		var steps []importStep
		for _, queue := range queues {
			if !queue[round].target.settled {
				steps = append(steps, queue[round])
			}
		}
		for batch := range slices.Chunk(steps, maxBatchItems) {
			if err := im.write(ctx, batch); err != nil {
				return err
			}
		}
		queues = slices.DeleteFunc(queues, func(queue []importStep) bool { return len(queue) == round+1 })
	}
	return nil
}

// write makes one write each of some variables.
func (im *importer) write(ctx context.Context, steps []importStep) error {
	var registers, writes, updates []importStep
	for _, step := range steps {
		switch {
		case step.register != nil:
			registers = append(registers, step)
		case step.write != nil:
			writes = append(writes, step)
		default:
			updates = append(updates, step)
		}
	}
	if err := im.register(ctx, registers); err != nil {
		return err
	}
	if err := im.set(ctx, writes); err != nil {
		return err
	}
	im.done.Versions += int64(len(writes))
	return im.update(ctx, updates)
}

func (im *importer) register(ctx context.Context, steps []importStep) error {
	if len(steps) == 0 {
		return nil
	}
	request := &setpointv1.BatchRegisterVariablesRequest{SessionId: im.sessionID}
	for _, step := range steps {
		request.Registrations = append(request.Registrations, step.register)
	}
	answer, err := im.api.Variables.BatchRegisterVariables(ctx, request)
	if err != nil {
		return im.batchFailed(steps, err)
	}
	var all, found []*importTarget
	var failure error
	for i, result := range answer.GetResults() {
		target := steps[i].target
		all = append(all, target)
		switch err := client.FromItem(result.GetError()); {
		case err == nil:
			im.done.Registered++
			im.progress.add(1)
			im.moved(target, nodeBare)
		case errors.Is(err, client.ErrVariableExists) && im.merge != mergeFail:
			target.settled = true
			im.done.Skipped -= target.skipped
			if im.merge == mergeReplace && target.connected() && !im.connecting {
				continue // what it is to depend on may not be there yet: it waits
			}
			im.moved(target, nodeDone)
			found = append(found, target)
		case failure == nil:
			failure = im.failed(target, err)
		}
	}
	if im.merge == mergeReplace {
		// Also after a failure: what is registered may need the new values of what was there.
		return errors.Join(failure, im.replace(ctx, found, all))
	}
	im.done.Kept += int64(len(found))
	im.progress.add(len(found))
	return failure
}

// moved notes how far a variable has come that depends on others.
func (im *importer) moved(t *importTarget, state nodeState) {
	if n := im.graph.node(t.variable.GetName()); n != nil {
		n.state = state
	}
}

func (im *importer) set(ctx context.Context, steps []importStep) error {
	if len(steps) == 0 {
		return nil
	}
	request := &setpointv1.BatchSetVariablesRequest{SessionId: im.sessionID}
	for _, step := range steps {
		request.Writes = append(request.Writes, step.write)
	}
	answer, err := im.api.Variables.BatchSetVariables(ctx, request)
	if err != nil {
		return im.batchFailed(steps, err)
	}
	for i, result := range answer.GetResults() {
		if err := client.FromItem(result.GetError()); err != nil {
			return im.failed(steps[i].target, err)
		}
	}
	return nil
}

func (im *importer) update(ctx context.Context, steps []importStep) error {
	for _, step := range steps {
		if _, err := im.api.Variables.UpdateVariable(ctx, step.update); err != nil {
			return im.failed(step.target, err)
		}
	}
	return nil
}

// failed tells which line of the file an error of the server is about.
func (im *importer) failed(target *importTarget, err error) error {
	reason, message := im.c.describe(err)
	return target.failed(reason, message)
}

// batchItem is how the server names an item of a batch that it refuses whole.
var batchItem = regexp.MustCompile(`^(?:registrations|writes)\[([0-9]+)\]`)

// batchFailed is failed for an error of a whole batch, which may be about one of its items.
func (im *importer) batchFailed(steps []importStep, err error) error {
	var call *client.Error
	if errors.As(err, &call) && len(call.Violations) > 0 {
		if match := batchItem.FindStringSubmatch(call.Violations[0].Field); match != nil {
			if i, atoiErr := strconv.Atoi(match[1]); atoiErr == nil && i < len(steps) {
				return im.failed(steps[i].target, err)
			}
		}
	}
	return err
}

// replacement is what makes a variable of the session the file's, in this order. Each may be missing.
type replacement struct {
	before *setpointv1.UpdateVariableRequest
	write  *setpointv1.VariableWrite
	after  *setpointv1.UpdateVariableRequest
	// again: it is the file's, but this import made it stale.
	again bool
}

// replace makes variables that exist the file's. all are these and those that were registered with them.
func (im *importer) replace(ctx context.Context, targets, all []*importTarget) error {
	var before, writes, after []importStep
	replaced := map[*importTarget]bool{}
	err := im.compare(ctx, targets, func(target *importTarget, current *setpointv1.Variable) error {
		if current == nil {
			return target.failed("VARIABLE_NOT_FOUND", fmt.Sprintf(
				"%s was deleted from session %q while it was to be replaced, or you may not read it", target.variable.GetName(), im.sessionID))
		}
		plan, err := im.plan(target, current)
		if err != nil || plan == nil {
			return err
		}
		if !plan.again {
			replaced[target] = true
		}
		if plan.before != nil {
			before = append(before, importStep{target: target, update: plan.before})
		}
		if plan.write != nil {
			writes = append(writes, importStep{target: target, write: plan.write})
		}
		if plan.after != nil {
			after = append(after, importStep{target: target, update: plan.after})
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := im.update(ctx, before); err != nil {
		return err
	}
	if err := im.set(ctx, writes); err != nil {
		return err
	}
	if err := im.update(ctx, after); err != nil {
		return err
	}
	if im.connecting && len(replaced) > 0 {
		fresh := slices.DeleteFunc(slices.Clone(all), func(t *importTarget) bool {
			return t.derived() || t.variable.GetStale() != nil
		})
		if err := im.refresh(ctx, fresh); err != nil {
			return err
		}
	}
	im.done.Replaced += int64(len(replaced))
	im.done.Unchanged += int64(len(targets) - len(replaced))
	im.progress.add(len(targets))
	return nil
}

// plan says how a variable of the session becomes the file's; nil: it is. A value has to satisfy the constraints of its
// time at every moment, so which of the two changes first depends on them.
func (im *importer) plan(t *importTarget, current *setpointv1.Variable) (*replacement, error) {
	wanted := t.variable
	name := wanted.GetName()
	if current.GetType() != wanted.GetType() {
		return nil, t.failed("TYPE_MISMATCH", fmt.Sprintf("%s is of type %s in session %q, and of type %s in the file",
			name, typeText(current.GetType()), im.sessionID, typeText(wanted.GetType())))
	}
	change := im.changeOf(t, current)
	if t.derived() {
		return change.derive(t), nil
	}
	return change.set(t, current), nil
}

// change is how a variable of the file differs from the session's.
type change struct {
	// update makes it the file's in everything but the value and what it follows.
	update *setpointv1.UpdateVariableRequest
	// sameRules, sameMetadata and sameRest: update does not change the constraints, the metadata, the rest.
	sameRules, sameMetadata, sameRest bool
	// follow makes it follow what the file's follows; nil: it does.
	follow *setpointv1.UpdateVariableRequest
	// value: the session's is another one, or is stale where the file's is not. again: this import made it stale, and that
	// is all.
	value, again bool
}

func (im *importer) changeOf(t *importTarget, current *setpointv1.Variable) change {
	wanted := t.variable
	c := change{
		update:       im.updateOf(t),
		sameRules:    sameMessage(current.GetConstraints(), wanted.GetConstraints()),
		sameMetadata: maps.Equal(current.GetMetadata(), wanted.GetMetadata()),
	}
	sameLimit := current.GetHistoryLimit() == wanted.GetHistoryLimit()
	sameAccess := current.GetAccessMode() == wanted.GetAccessMode() ||
		wanted.GetAccessMode() == setpointv1.AccessMode_ACCESS_MODE_UNSPECIFIED // files from before there were any
	c.sameRest = sameLimit && sameAccess
	if !t.derived() {
		sameValue := sameMessage(current.GetValue(), wanted.GetValue())
		c.value = !sameValue || current.GetStale() != nil && wanted.GetStale() == nil
		c.again = sameValue && c.value && current.GetStale().GetRevision() > im.began
	}
	if !c.sameRules {
		c.update.Constraints = orNone(wanted.GetConstraints())
	}
	if !sameAccess {
		c.update.AccessMode = wanted.GetAccessMode()
	}
	if !sameLimit {
		c.update.HistoryLimit = proto.Int64(wanted.GetHistoryLimit())
	}
	if !c.sameMetadata && !c.value {
		c.update.Metadata, c.update.ClearMetadata = wanted.GetMetadata(), len(wanted.GetMetadata()) == 0
	}
	has := slices.Sorted(slices.Values(current.GetDependsOn()))
	if !slices.Equal(has, t.needs) || current.GetExpression() != wanted.GetExpression() ||
		t.derived() && current.GetStrict() != t.strict() {
		c.follow = im.updateOf(t)
		c.follow.DependsOn, c.follow.ClearDependsOn = t.needs, len(t.needs) == 0
		if current.GetExpression() != wanted.GetExpression() {
			c.follow.Expression = proto.String(wanted.GetExpression())
		}
		if t.derived() {
			c.follow.Strict = proto.Bool(t.strict())
		}
	}
	return c
}

// updateOf is an update of a variable that changes nothing yet.
func (im *importer) updateOf(t *importTarget) *setpointv1.UpdateVariableRequest {
	return &setpointv1.UpdateVariableRequest{SessionId: im.sessionID, Variable: t.variable.GetName(), Reason: im.reason}
}

// set is the replacement of a variable that is not derived. What it follows changes first: nobody sets a derived one.
func (c change) set(t *importTarget, current *setpointv1.Variable) *replacement {
	plan := &replacement{}
	if !c.sameRules || !c.sameRest || !c.sameMetadata && !c.value {
		plan.after = c.update
	}
	if c.value {
		wanted := t.variable
		plan.again = c.again && c.follow == nil && plan.after == nil && c.sameMetadata
		plan.write = &setpointv1.VariableWrite{Variable: wanted.GetName(), Value: wanted.GetValue(),
			Metadata: wanted.GetMetadata(), ClearMetadata: len(wanted.GetMetadata()) == 0, Reason: c.update.GetReason()}
		switch {
		case c.sameRules || fits(current, wanted.GetValue()):
		case t.accepts(current.GetValue()):
			plan.before, plan.after = c.update, nil
		default:
			plan.before = c.relaxed(t, current)
		}
	}
	switch {
	case c.follow == nil && plan.write == nil && plan.after == nil:
		return nil
	case c.follow != nil && plan.before != nil:
		proto.Merge(plan.before, c.follow)
	case c.follow != nil:
		plan.before = c.follow
	}
	return plan
}

// derive is the replacement of a variable that will be derived: its value comes of itself. New constraints go with the
// expression, though it may be the old one, so that it is the value computed now that has to satisfy them.
func (c change) derive(t *importTarget) *replacement {
	if c.follow == nil && c.sameRules && c.sameRest && c.sameMetadata {
		return nil
	}
	if c.follow != nil {
		proto.Merge(c.update, c.follow)
	}
	if !c.sameRules {
		c.update.Expression = proto.String(t.variable.GetExpression())
	}
	return &replacement{after: c.update}
}

// relaxed is an update for values of which neither is good in the other's time: for a moment both are.
func (c change) relaxed(t *importTarget, current *setpointv1.Variable) *setpointv1.UpdateVariableRequest {
	choices := slices.Concat(current.GetConstraints().GetChoices(), t.variable.GetConstraints().GetChoices())
	slices.Sort(choices)
	return &setpointv1.UpdateVariableRequest{SessionId: c.update.GetSessionId(), Variable: c.update.GetVariable(),
		Reason: c.update.GetReason(), Constraints: &setpointv1.Constraints{Choices: slices.Compact(choices)}}
}

func orNone(constraints *setpointv1.Constraints) *setpointv1.Constraints {
	if constraints == nil {
		return &setpointv1.Constraints{}
	}
	return constraints
}

// fits tells whether a variable, as it is, takes a value.
func fits(variable *setpointv1.Variable, v *setpointv1.Value) bool {
	definition, err := value.NewDefinition(variable.GetType(), variable.GetConstraints())
	if err != nil {
		return false
	}
	_, err = definition.Accept(variable.GetName(), v, maxValueBytes)
	return err == nil
}

// sameMessage tells whether two messages say the same, to the bit: 0 and −0 differ, NaN and NaN do not. An absent message
// says what an empty one does.
func sameMessage(a, b proto.Message) bool {
	encode := proto.MarshalOptions{Deterministic: true}
	first, err := encode.Marshal(a)
	if err != nil {
		return false
	}
	second, err := encode.Marshal(b)
	return err == nil && bytes.Equal(first, second)
}

// compare calls use with each of some variables as the session has it, nil where it has none. An answer has a limit in
// bytes: beyond it, each half is asked for alone, so that no more than that is ever held.
func (im *importer) compare(ctx context.Context, targets []*importTarget,
	use func(*importTarget, *setpointv1.Variable) error) error {
	if len(targets) == 1 {
		variable, err := im.api.Variables.GetVariable(ctx,
			&setpointv1.GetVariableRequest{SessionId: im.sessionID, Variable: targets[0].variable.GetName()})
		// What the caller may not read is as what is not there, for those who may not know it.
		if err != nil && !errors.Is(err, client.ErrVariableNotFound) && !errors.Is(err, client.ErrAccessDenied) {
			return err
		}
		return use(targets[0], variable)
	}
	request := &setpointv1.BatchGetVariablesRequest{SessionId: im.sessionID}
	for _, target := range targets {
		request.Variables = append(request.Variables, target.variable.GetName())
	}
	if len(targets) == 0 {
		return nil
	}
	answer, err := im.api.Variables.BatchGetVariables(ctx, request)
	if errors.Is(err, client.ErrLimitExceeded) {
		half := len(targets) / 2
		if err := im.compare(ctx, targets[:half], use); err != nil {
			return err
		}
		return im.compare(ctx, targets[half:], use)
	}
	if err != nil {
		return err
	}
	for _, target := range targets {
		if err := use(target, answer.GetVariables()[target.variable.GetName()]); err != nil {
			return err
		}
	}
	return nil
}
