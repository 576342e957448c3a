package service_test

import (
	"fmt"
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// Generators for the model of leases. Times are few and often those at which something ends, so that they meet.

// leaseOneOf is one about as often as another, and in a smaller failure the first.
func leaseOneOf[T any](t *rapid.T, what string, choices ...T) T {
	return choices[rapid.IntRange(0, 1<<12-1).Draw(t, what)%len(choices)]
}

func leaseName(t *rapid.T) string { return leaseOneOf(t, "variable", "a", "b", "c", "d", "e") }

func leaseNames(t *rapid.T, least, most int) []string {
	return rapid.SliceOfNDistinct(rapid.Custom(leaseName), least, most, rapid.ID).Draw(t, "variables")
}

func leaseAny(t *rapid.T, kinds ...int) leaseWho {
	return leaseWho{Kind: leaseOneOf(t, "who", kinds...), Back: leaseOneOf(t, "back", 0, 1, 2, 0, 3, 5)}
}

func leaseValue(t *rapid.T) int64 {
	return leaseOneOf[int64](t, "value", 1, 2, 3, 4, 5, 6, 7, 8, 9, leaseBad)
}

func leaseChosen(t *rapid.T) leaseChoice {
	return leaseChoice{
		Kind: leaseOneOf(t, "lease",
			ofHolder, ofNobody, ofHolder, ofLast, ofHolder, ofOther, ofTokenBefore, ofHolder, ofTokenAfter,
		),
		Who: leaseAny(t, whoHolds, whoever),
	}
}

func leaseStarts(t *rapid.T) leaseCall {
	s := leaseStart{
		Names: leaseNames(t, 1, 3), Conflict: setpointv1.ConflictStrategy(leaseOneOf(t, "conflict", 1, 2, 3, 2, 3, 2, 3)),
		TTL: leaseOneOf(t, "ttl", 10, 5, 3, 2, -1, 20), MaxWait: leaseOneOf(t, "max wait", -1, -1, -1, 2, 5, 0, -1),
		Grace: leaseOneOf(t, "grace", -1, 20, 2, 8, 1, 0), Progress: leaseOneOf(t, "progress", -1, -1, -1, 2, 5),
		Objective: graphOften(t, 80, "objective"), Minimize: leaseOneOf(t, "minimize", false, true),
	}
	if s.Conflict == setpointv1.ConflictStrategy_CONFLICT_STRATEGY_PREEMPT {
		s.Priority = leaseOneOf[int32](t, "priority", 3, 2, 1)
	} else {
		s.Priority = leaseOneOf[int32](t, "priority", 0, -1, 1, 2)
	}
	return s
}

func leaseMetrics(t *rapid.T) map[string]float64 {
	metrics := map[string]float64{}
	for _, name := range []string{"m", "n"} {
		if graphOften(t, 80, "has "+name) {
			metrics[name] = leaseOneOf(t, name, 1, 2, 1, 2, 0, math.NaN(), math.Inf(1), math.Inf(-1))
		}
	}
	return metrics
}

func leaseReports(t *rapid.T) leaseCall {
	return leaseReport{
		// Mostly one optimization's, so that it comes to have several.
		Who: leaseWho{
			Kind: leaseOneOf(t, "who", whoHolds, whoHolds, whoPreempts, whoever), Back: leaseOneOf(t, "back", 0, 0, 0, 1),
		},
		Off:    leaseOneOf[int64](t, "off", 0, 0, 0, 0, 0, 0, 0, 1, -1),
		Number: leaseOneOf[int64](t, "number", -1, -1, -1, -1, 1, 2, 5, 0),
		Step:   leaseOneOf[int64](t, "step", -1, -1, -1, -1, 0, 3), Values: leaseOneOf(t, "values", 1, 2, 3, 0),
		Value: leaseValue(t), Metrics: leaseMetrics(t), Stray: graphOften(t, 4, "stray"), Apply: graphOften(t, 50, "apply"),
		Checkpoint: graphOften(t, 30, "checkpoint"),
	}
}

func leaseStops(t *rapid.T) leaseCall {
	return leaseStop{
		Who:   leaseAny(t, whoHolds, whoWaits, whoPreempts, whoHolds, whoever),
		Token: leaseOneOf[int64](t, "token", -1, 0, 0, -1, -1, 1),
		Force: graphOften(t, 20, "force"), ApplyBest: graphOften(t, 30, "apply best"),
		State: setpointv1.OptimizationState(leaseOneOf(t, "state", 0, 0, 0, 4, 5, 6)),
	}
}

// leaseChange is a call that waits for the session's lock.
func leaseChange(t *rapid.T) leaseCall {
	switch kind := leaseOneOf(t, "change", 0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 0, 1, 2, 4, 2, 6, 7, 8, 9); kind {
	case 0:
		return leaseStarts(t)
	case 1:
		return leaseRenew{
			leaseAny(t, whoWaits, whoHolds, whoWaits, whoPreempts, whoever),
			leaseOneOf[int64](t, "off", 0, 0, 0, 0, 0, 0, 1, -1),
		}
	case 2:
		return leaseReports(t)
	case 3:
		return leaseStops(t)
	case 4:
		return leaseSet{leaseName(t), leaseValue(t), graphOften(t, 20, "dry"), leaseChosen(t)}
	case 5:
		return leaseBatch{leaseNames(t, 2, 3), leaseValue(t), leaseOneOf(t, "atomic", false, true), leaseChosen(t)}
	case 6:
		return leaseRollback{leaseName(t), leaseOneOf(t, "version", 0, 1, 2, 3), leaseChosen(t)}
	case 7:
		return leaseUpdate{leaseName(t), leaseOneOf(t, "constraints", true, false), leaseChosen(t)}
	case 8:
		return leaseRestore{int64(leaseOneOf(t, "ago", 0, 2, 5, 9, 20)), graphOften(t, 60, "of holders"), leaseChosen(t)}
	}
	if leaseOneOf(t, "deleted", false, true) {
		return leaseDelete{leaseName(t), leaseChosen(t)}
	}
	return leaseRegister{}
}

func leaseTimes(t *rapid.T) leaseTime {
	ms := time.Millisecond
	return leaseTime{
		ToNext: leaseOneOf(t, "to the next", false, true), Less: leaseOneOf(t, "less", 0, 0, ms),
		On: leaseOneOf(t, "on", 1000*ms, 500*ms, 2000*ms, 1000*ms, 500*ms, 5000*ms),
	}
}

func leaseRead(t *rapid.T) leaseCall {
	switch leaseOneOf(t, "read", 0, 1, 2, 3, 4, 5, 6, 6, 6) {
	case 0:
		return leaseList{}
	case 1:
		states := rapid.SliceOfNDistinct(rapid.IntRange(1, 8), 0, 4, rapid.ID).Draw(t, "states")
		list := leaseList{Name: leaseName(t)}
		for _, state := range states {
			list.States = append(list.States, setpointv1.OptimizationState(state))
		}
		return list
	case 2:
		return leaseStatus{leaseName(t)}
	case 3:
		return leaseVariables{}
	case 6:
		return leaseAwait{leaseAny(t, whoWaits, whoPreempts, whoever, whoWaits)}
	case 4:
		return leaseTrials{
			leaseAny(t, whoever), leaseOneOf(t, "metric", "m", "", "n"),
			setpointv1.Direction(leaseOneOf(t, "direction", 0, 1, 2)), leaseOneOf(t, "steps", false, true),
		}
	}
	return leaseGet{leaseAny(t, whoever, whoPreempts)}
}

func leaseMoves(t *rapid.T) leaseMove {
	move := leaseMove{Principal: leaseOwner}
	if graphOften(t, 15, "bob") {
		move.Principal = leasePrincipals[1]
	}
	switch kind := rapid.IntRange(0, 1<<12-1).Draw(t, "what") % 32; {
	case kind < 19:
		move.Call = leaseChange(t)
	case kind < 24:
		move.Call = leaseAdvance{leaseTimes(t), leaseOneOf(t, "sweep", false, true)}
	case kind < 25:
		move.Call = leaseSweep{}
	case kind < 28:
		move.Call = leaseHeldUp{leaseChange(t), leaseTimes(t)}
	default:
		move.Call = leaseRead(t)
	}
	return move
}

// Whatever is asked of leases in whatever order, at whatever time: each answer is the model's, and so is the history.
func TestLeasesAreTheModels(t *testing.T) {
	t.Parallel()
	servers := newLeaseServers(t)
	round := 0
	rapid.Check(t, func(t *rapid.T) {
		round++
		r := servers.run(fmt.Sprintf("round%d", round))
		defer func() { r.release() }()
		for _, call := range rapid.SliceOfN(rapid.Custom(leaseStarts), 1, 3).Draw(t, "starts") {
			r.do(t, leaseMove{leaseOwner, call})
		}
		for _, move := range rapid.SliceOfN(rapid.Custom(leaseMoves), 15, 40).Draw(t, "moves") {
			r.do(t, move)
		}
		r.finish(t, rapid.IntRange(0, 4).Draw(t, "stopped"))
	})
}
