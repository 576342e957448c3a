package main

import (
	"context"
	"fmt"
	"slices"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// lookBack looks for what must not have happened in the session's history, and for what must not be left.
func (b *leaseBench) lookBack(ctx context.Context, names []string, t *tally) ([]string, error) {
	history, err := b.history(ctx)
	if err != nil {
		return nil, err
	}
	wrong, writes := violations(history, t.tokens)
	if writes != t.writes {
		wrong = append(wrong, fmt.Sprintf("%d writes were acknowledged, and history has %d", t.writes, writes))
	}
	left, err := b.left(ctx, names)
	return append(wrong, left...), err
}

// history is what happened to leases, and the writes, the oldest first.
func (b *leaseBench) history(ctx context.Context) ([]*setpointv1.HistoryEntry, error) {
	req := &setpointv1.ListHistoryRequest{SessionId: b.session, PageSize: 1000, Changes: []setpointv1.HistoryChange{
		setpointv1.HistoryChange_HISTORY_CHANGE_SET, setpointv1.HistoryChange_HISTORY_CHANGE_LEASE_GRANTED,
		setpointv1.HistoryChange_HISTORY_CHANGE_LEASE_ENDED,
	}}
	var entries []*setpointv1.HistoryEntry
	for {
		page, err := b.clients[0].History.ListHistory(ctx, req)
		if err != nil {
			return nil, err
		}
		entries = append(entries, page.GetEntries()...)
		if req.PageToken = page.GetNextPageToken(); req.PageToken == "" {
			slices.Reverse(entries)
			return entries, nil
		}
	}
}

// violations reads a history, the oldest first, with the tokens that clients were given, by optimization; and counts the
// writes under those.
func violations(history []*setpointv1.HistoryEntry, tokens map[string]int64) ([]string, int) {
	var wrong []string
	writes := 0
	holders, last := map[string]string{}, map[string]int64{}
	add := func(e *setpointv1.HistoryEntry, format string, args ...any) {
		wrong = append(wrong, fmt.Sprintf("revision %d, %s: ", e.GetRevision(), e.GetName())+fmt.Sprintf(format, args...))
	}
	for _, e := range history {
		id, holder := e.GetOptimizationId(), holders[e.GetVariableId()]
		switch e.GetChange() {
		case setpointv1.HistoryChange_HISTORY_CHANGE_LEASE_GRANTED:
			if holder != "" {
				add(e, "%s was granted while %s held it", id, holder)
			}
			holders[e.GetVariableId()] = id
			if token, known := tokens[id]; known {
				if token <= last[e.GetVariableId()] {
					add(e, "token %d was granted after %d", token, last[e.GetVariableId()])
				}
				last[e.GetVariableId()] = token
			}
		case setpointv1.HistoryChange_HISTORY_CHANGE_SET:
			if id != holder {
				add(e, "%q wrote while %q held it", id, holder)
			}
			if _, known := tokens[id]; known {
				writes++
			}
		case setpointv1.HistoryChange_HISTORY_CHANGE_LEASE_ENDED:
			if id != holder {
				add(e, "%s ended while %q held it", id, holder)
			}
			delete(holders, e.GetVariableId())
		}
	}
	for variable, holder := range holders {
		wrong = append(wrong, fmt.Sprintf("%s still holds %s", holder, variable))
	}
	slices.Sort(wrong[len(wrong)-len(holders):])
	return wrong, writes
}

// left is the leases and the waiters that are left, when all have stopped.
func (b *leaseBench) left(ctx context.Context, names []string) ([]string, error) {
	var wrong []string
	open, err := b.clients[0].Optimizations.ListOptimizations(ctx, &setpointv1.ListOptimizationsRequest{
		SessionId: b.session, States: []setpointv1.OptimizationState{
			setpointv1.OptimizationState_OPTIMIZATION_STATE_WAITING, setpointv1.OptimizationState_OPTIMIZATION_STATE_ACTIVE,
			setpointv1.OptimizationState_OPTIMIZATION_STATE_PREEMPTING,
		},
	})
	if err != nil {
		return nil, err
	}
	for _, o := range open.GetOptimizations() {
		wrong = append(wrong, fmt.Sprintf("%s is left %s", o.GetOptimizationId(), o.GetState()))
	}
	for _, name := range names {
		status, err := b.clients[0].Optimizations.GetOptimizationStatus(ctx, &setpointv1.GetOptimizationStatusRequest{
			SessionId: b.session, Variable: name,
		})
		if err != nil {
			return nil, err
		}
		if status.GetOptimizing() || status.GetWaitingCount() > 0 {
			wrong = append(wrong, fmt.Sprintf("%s: optimizing %t, and %d wait", name, status.GetOptimizing(), status.GetWaitingCount()))
		}
	}
	return wrong, nil
}
