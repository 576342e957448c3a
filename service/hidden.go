package service

import (
	"context"
	"encoding/json"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/setpointdb/setpoint/db/dbgen"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// What answers say of variables that the caller may not read: there are such, and nothing more.

// hiddenName stands for the name of a variable that the caller may not read, and for a text that may tell of one.
const hiddenName = "(hidden)"

// onlooker is asked for each name in an answer whether the caller may read that variable.
type onlooker interface {
	sees(name string) bool
	// seesAll is asked of texts that may tell of any variable.
	seesAll() bool
}

func (s sight) seesAll() bool { return s.all }

// listener hears what would be asked, and lets everything pass.
type listener struct {
	names []string
	asked bool
}

func (l *listener) sees(name string) bool {
	l.names, l.asked = append(l.names, name), true
	return true
}

func (l *listener) seesAll() bool {
	l.asked = true
	return true
}

// hide takes out of an answer what the caller may not read. The caller may see the session.
func (s *Service) hide(ctx context.Context, sessionID string, answers ...proto.Message) error {
	if callerIn(ctx, sessionID).seesEverything() {
		return nil
	}
	var l listener
	for _, m := range answers {
		hideFrom(m, &l)
	}
	if !l.asked {
		return nil
	}
	seen, err := s.lookAround(ctx, sessionID, l.names)
	if err != nil || seen.all {
		return err
	}
	for _, m := range answers {
		hideFrom(m, seen)
	}
	return nil
}

// hideDone is hide of the answer to what has been done: that it cannot be looked up what the caller may see is then no error, but
// everything is hidden.
func (s *Service) hideDone(ctx context.Context, sessionID string, answer proto.Message) {
	if err := s.hide(ctx, sessionID, answer); err != nil {
		hideFrom(answer, sight{})
	}
}

// hideAll is hide of the elements of a list.
func hideAll[T proto.Message](ctx context.Context, s *Service, sessionID string, answers []T) error {
	messages := make([]proto.Message, len(answers))
	for i, m := range answers {
		messages[i] = m
	}
	return s.hide(ctx, sessionID, messages...)
}

// hideRefusal is hide of the error of a request, which may name what the caller named.
func (s *Service) hideRefusal(ctx context.Context, req writeRequest, refused error) error {
	e := asRefusal(refused)
	if e == nil || callerIn(ctx, req.GetSessionId()).seesEverything() {
		return refused
	}
	var l listener
	_ = hideFromRefusal(e, &l)
	if !l.asked {
		return refused
	}
	seen, _ := s.lookAround(ctx, req.GetSessionId(), l.names) // Where that fails, nothing is seen.
	if seen.all {
		return refused
	}
	if named, ok := req.(interface{ GetName() string }); ok && e.Metadata["variable"] == named.GetName() {
		return refused // Of its own registration.
	}
	return hideFromRefusal(e, seen)
}

func (s *Service) lookAround(ctx context.Context, sessionID string, names []string) (sight, error) {
	var seen sight
	err := s.db.Read(ctx, "look up what the caller may see", func(ctx context.Context, q *dbgen.Queries) error {
		var err error
		seen, err = sightOf(ctx, q, sessionID, distinct(names)...)
		return err
	})
	return seen, err
}

// hideFrom takes out of a message what somebody may not read.
func hideFrom(m proto.Message, who onlooker) {
	switch m := m.(type) {
	case *setpointv1.Variable:
		hideFromVariable(m, who)
	case *setpointv1.BatchRegisterVariablesResponse:
		for _, r := range m.GetResults() {
			hideFromVariable(r.GetVariable(), who)
			hideFromItem(r.GetError(), who)
		}
	case *setpointv1.SetVariableResponse:
		hideFromEffects(m.GetRecomputed(), m.GetStale(), who)
	case *setpointv1.BatchSetVariablesResponse:
		hideFromEffects(m.GetRecomputed(), m.GetStale(), who)
		for _, r := range m.GetResults() {
			hideFromItem(r.GetError(), who)
		}
	case *setpointv1.DeleteVariableResponse:
		hideFromEffects(nil, m.GetStale(), who)
	case *setpointv1.ReportProgressResponse:
		hideFromEffects(m.GetRecomputed(), m.GetStale(), who)
	case *setpointv1.StopOptimizationResponse:
		hideFromEffects(m.GetRecomputed(), m.GetStale(), who)
	case *setpointv1.RollbackSessionResponse:
		hideFromRollback(m, who)
	case *setpointv1.HistoryEntry:
		hideFromEntry(m, who)
	case *setpointv1.RelatedVariable:
		m.Expression, m.Stale = shownExpression(m.GetExpression(), who), shownStale(m.GetStale(), m.GetExpression(), who)
	case *setpointv1.GraphNode:
		m.Expression, m.Stale = shownExpression(m.GetExpression(), who), shownStale(m.GetStale(), m.GetExpression(), who)
	}
}

func hideFromVariable(v *setpointv1.Variable, who onlooker) {
	if v == nil {
		return
	}
	whole := true
	for i, name := range v.GetDependsOn() {
		if !who.sees(name) {
			v.DependsOn[i], whole = hiddenName, false
		}
	}
	if v.GetStale() != nil && v.GetStale().GetCause() != v.GetName() && !who.sees(v.GetStale().GetCause()) {
		v.Stale.Cause, whole = hiddenName, false
	}
	for _, name := range tornFrom(v) {
		whole = who.sees(name) && whole
	}
	if !whole {
		hideDerivation(v)
	}
}

// tornFrom are the names in the expression of a variable that it does not depend on: what was deleted, although it is computed
// from it. It cannot be computed since.
func tornFrom(v *setpointv1.Variable) []string {
	if v.GetStale().GetError() == "" {
		return nil
	}
	names, _, _ := uses(v.GetName(), v.GetExpression()) // What is no expression names nothing.
	return slices.DeleteFunc(names, func(name string) bool { return slices.Contains(v.GetDependsOn(), name) })
}

// hideTorn hides how variables are computed of which the caller may not know what they were computed from.
func (s *Service) hideTorn(ctx context.Context, sessionID string, variables ...*setpointv1.Variable) error {
	var names []string
	for _, v := range variables {
		names = append(names, tornFrom(v)...)
	}
	if len(names) == 0 || callerIn(ctx, sessionID).seesEverything() {
		return nil
	}
	seen, err := s.lookAround(ctx, sessionID, names)
	for _, v := range variables {
		if slices.ContainsFunc(tornFrom(v), func(name string) bool { return !seen.sees(name) }) {
			hideDerivation(v)
		}
	}
	return err
}

// hideDerivation hides how a variable is computed.
func hideDerivation(v *setpointv1.Variable) {
	if v.GetExpression() != "" {
		v.Expression = hiddenName
	}
	if v.GetStale().GetError() != "" {
		v.Stale.Error = hiddenName
	}
}

// shownExpression is the text of an expression, to whoever may read all that it names.
func shownExpression(text string, who onlooker) string {
	if text == "" {
		return ""
	}
	names, _, err := uses("", text)
	if err != nil && !who.seesAll() {
		return hiddenName
	}
	shown := text
	for _, name := range names {
		if !who.sees(name) {
			shown = hiddenName
		}
	}
	return shown
}

// shownStale is why a variable is stale: an error is shown to whoever may read all that the expression names.
func shownStale(s *setpointv1.Stale, expression string, who onlooker) *setpointv1.Stale {
	if s == nil {
		return nil
	}
	if !who.sees(s.GetCause()) {
		s.Cause = hiddenName
	}
	if s.GetError() != "" && shownExpression(expression, who) == hiddenName {
		s.Error = hiddenName
	}
	return s
}

// hideFromEffects hides what followed a change.
func hideFromEffects(recomputed []*setpointv1.RecomputedVariable, stale []*setpointv1.StaleVariable, who onlooker) {
	for i, v := range recomputed {
		if !who.sees(v.GetVariable()) {
			recomputed[i] = &setpointv1.RecomputedVariable{Variable: hiddenName}
		}
	}
	for i, v := range stale {
		switch {
		case !who.sees(v.GetVariable()):
			stale[i] = &setpointv1.StaleVariable{Variable: hiddenName}
		case v.GetError() != "" && !who.seesAll():
			v.Error = hiddenName
		}
	}
}

// hideFromRollback hides what a rollback of the session left as it was.
func hideFromRollback(r *setpointv1.RollbackSessionResponse, who onlooker) {
	hideFromEffects(r.GetRecomputed(), r.GetStale(), who)
	r.RegisteredSince, r.DeletedSince = seenOf(r.GetRegisteredSince(), who), seenOf(r.GetDeletedSince(), who)
	if !who.seesAll() {
		r.UnchangedCount = 0
	}
}

func seenOf(names []string, who onlooker) []string {
	var seen []string
	for _, name := range names {
		if who.sees(name) {
			seen = append(seen, name)
		}
	}
	return seen
}

func hideFromEntry(e *setpointv1.HistoryEntry, who onlooker) {
	if e.GetCausedBy() != nil && !who.sees(e.GetCausedBy().GetVariable()) {
		e.CausedBy.Variable = hiddenName
	}
	if e.GetDependency() != "" && !who.sees(e.GetDependency()) {
		e.Dependency = hiddenName
	}
	if e.GetError() != "" && !who.seesAll() {
		e.Error = hiddenName
	}
	if e.GetExpression() != "" {
		shown := shownExpression(e.GetExpression(), who)
		e.Expression = &shown
	}
}

// hideFromItem hides what the refusal of an item of a batch names.
func hideFromItem(item *setpointv1.ItemError, who onlooker) {
	if item == nil {
		return
	}
	e := hideFromRefusal(&Error{Reason: item.GetReason(), Message: item.GetMessage(), Metadata: item.GetMetadata()}, who)
	item.Message, item.Metadata = e.Message, e.Metadata
}

// hideFromRefusal is a refusal without the names of variables that somebody may not read.
func hideFromRefusal(e *Error, who onlooker) *Error {
	switch e.Reason {
	case setpointv1.ErrorReason_WOULD_CREATE_CYCLE:
		return hideNames(e, "path", who, func(names []string) *Error {
			shown := wouldCreateCycle(names)
			for _, key := range []string{"path_omitted", "path_omitted_after"} {
				if omitted := e.Metadata[key]; omitted != "" {
					shown.Metadata[key] = omitted
				}
			}
			return shown
		})
	case setpointv1.ErrorReason_HAS_DEPENDENTS:
		return hideNames(e, "dependents", who, func(names []string) *Error {
			return hasDependentsError(e.Metadata["variable"], names)
		})
	case setpointv1.ErrorReason_DERIVATION_FAILED:
		variable := e.Metadata["variable"]
		if who.sees(variable) && who.seesAll() {
			return e
		}
		if !who.sees(variable) {
			variable = hiddenName
		}
		shown := derivationFailed(variable, hiddenName)
		shown.Failed = e.Failed
		return hideFromFailed(shown, who)
	}
	return hideFromFailed(e, who)
}

// hideFromFailed is for the failing items of an atomic batch.
func hideFromFailed(e *Error, who onlooker) *Error {
	for _, f := range e.Failed {
		hideFromItem(f.GetError(), who)
	}
	return e
}

// hideNames makes a refusal again that names variables in a list, if one of them is not for the caller.
func hideNames(e *Error, key string, who onlooker, again func(names []string) *Error) *Error {
	var names []string
	if err := json.Unmarshal([]byte(e.Metadata[key]), &names); err != nil || len(names) == 0 {
		return e
	}
	whole := true
	for i, name := range names {
		if !who.sees(name) {
			names[i], whole = hiddenName, false
		}
	}
	if whole {
		return hideFromFailed(e, who)
	}
	shown := again(names)
	shown.Failed = e.Failed
	return hideFromFailed(shown, who)
}
