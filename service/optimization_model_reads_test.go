package service_test

import (
	"fmt"
	"slices"
	"strings"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// The calls that read, for the model of leases.

// noOptimization has the form of an optimization's id, and is none's.
const noOptimization = "opt_00000000000000000000000000"

// leaseGet is GetOptimization; of one that does not exist, while there are none.
type leaseGet struct{ Who leaseWho }

func (l leaseGet) bind(w *leaseWorld, principal string) leaseStep {
	o := w.pick(l.Who)
	return leaseStep{
		send: func(c leaseCaller) string {
			got, err := c.Optimizations.GetOptimization(c.ctx, &setpointv1.GetOptimizationRequest{
				SessionId: c.session, OptimizationId: c.id(o),
			})
			if err != nil {
				return c.refusal(err)
			}
			return c.line(got) + c.checkpoint(got)
		},
		apply: func(string) string {
			if o == nil {
				return refusedLine(setpointv1.ErrorReason_OPTIMIZATION_NOT_FOUND, "optimization_id", noOptimization)
			}
			return w.line(o, principal) + o.checkpointLine()
		},
	}
}

// leaseList is ListOptimizations, of some states and of a variable, or of all.
type leaseList struct {
	States []setpointv1.OptimizationState
	Name   string
}

func (l leaseList) bind(w *leaseWorld, principal string) leaseStep {
	return leaseStep{
		send: func(c leaseCaller) string {
			got, err := c.Optimizations.ListOptimizations(c.ctx, &setpointv1.ListOptimizationsRequest{
				SessionId: c.session, States: l.States, Variable: l.Name, PageSize: 1000,
			})
			if err != nil {
				return c.refusal(err)
			}
			var lines []string
			for _, o := range got.GetOptimizations() {
				lines = append(lines, c.line(o))
			}
			return strings.Join(lines, "\n")
		},
		apply: func(string) string {
			v := w.find(l.Name)
			if l.Name != "" && v == nil {
				return notFoundLine(l.Name)
			}
			var lines []string
			for _, o := range slices.Backward(w.records) {
				among := slices.ContainsFunc(l.States, func(s setpointv1.OptimizationState) bool {
					return stateText(s) == w.state(o)
				})
				if (v == nil || o.wants(v)) && (among || len(l.States) == 0) {
					lines = append(lines, w.line(o, principal))
				}
			}
			return strings.Join(lines, "\n")
		},
	}
}

// leaseStatus is GetOptimizationStatus.
type leaseStatus struct{ Name string }

func (l leaseStatus) bind(w *leaseWorld, principal string) leaseStep {
	return leaseStep{
		send: func(c leaseCaller) string {
			got, err := c.Optimizations.GetOptimizationStatus(c.ctx, &setpointv1.GetOptimizationStatusRequest{
				SessionId: c.session, Variable: l.Name,
			})
			if err != nil {
				return c.refusal(err)
			}
			text := fmt.Sprintf("%t, %d wait", got.GetOptimizing(), got.GetWaitingCount())
			if got.GetOptimization() != nil {
				text += ": " + c.line(got.GetOptimization())
			}
			return text
		},
		apply: func(string) string {
			v := w.find(l.Name)
			if v == nil {
				return notFoundLine(l.Name)
			}
			holder := w.holder(v)
			text := fmt.Sprintf("%t, %d wait", holder != nil, len(w.queue(v)))
			if holder != nil {
				text += ": " + w.line(holder, principal)
			}
			return text
		},
	}
}

// leaseVariables is ListVariables: their values, and who optimizes them.
type leaseVariables struct{}

func (leaseVariables) bind(w *leaseWorld, _ string) leaseStep {
	return leaseStep{
		send: func(c leaseCaller) string {
			got, err := c.Variables.ListVariables(c.ctx, &setpointv1.ListVariablesRequest{SessionId: c.session})
			if err != nil {
				return c.refusal(err)
			}
			var lines []string
			for _, v := range got.GetVariables() {
				line := fmt.Sprintf("%s(%s)%s", v.GetName(), c.text(v.GetVariableId()),
					valueText(v.GetVersion(), v.GetValue().GetInteger()))
				if o := v.GetOptimization(); o != nil {
					line += fmt.Sprintf(" %s (%s) from %s until %s", c.text(o.GetOptimizationId()), o.GetOptimizerId(),
						c.since(o.GetStartedAt()), c.since(o.GetExpiresAt()))
				}
				lines = append(lines, line)
			}
			return strings.Join(lines, "\n")
		},
		apply: func(string) string {
			var lines []string
			for _, name := range w.names {
				v := w.find(name)
				if v == nil {
					continue
				}
				line := v.String() + valueText(int64(len(v.versions)-1), v.value())
				if o := w.holder(v); o != nil {
					line += fmt.Sprintf(" %s (%s) from %s until %s", o, o.optimizer, o.started, o.expires())
				}
				lines = append(lines, line)
			}
			return strings.Join(lines, "\n")
		},
	}
}

// leaseTrials is ListTrials, by number or by a metric.
type leaseTrials struct {
	Who       leaseWho
	Metric    string
	Direction setpointv1.Direction
	Steps     bool
}

func (l leaseTrials) bind(w *leaseWorld, principal string) leaseStep {
	o := w.pick(l.Who)
	if o == nil {
		return leaseGet{}.bind(w, principal)
	}
	return leaseStep{
		send: func(c leaseCaller) string {
			got, err := c.Optimizations.ListTrials(c.ctx, &setpointv1.ListTrialsRequest{
				SessionId: c.session, OptimizationId: c.id(o), Metric: l.Metric, Direction: l.Direction,
				IncludeIntermediate: l.Steps && l.Metric == "",
			})
			if err != nil {
				return c.refusal(err)
			}
			var lines []string
			for _, t := range got.GetTrials() {
				lines = append(lines, c.trial(t))
			}
			return strings.Join(lines, "\n")
		},
		apply: func(string) string {
			var lines []string
			for _, t := range l.trials(o) {
				lines = append(lines, o.trialLine(t))
			}
			return strings.Join(lines, "\n")
		},
	}
}

func (l leaseTrials) trials(o *leaseRecord) []*leaseTrial {
	if l.Metric != "" {
		minimize := l.Direction == setpointv1.Direction_DIRECTION_MINIMIZE
		if l.Direction == setpointv1.Direction_DIRECTION_UNSPECIFIED {
			minimize = o.minimizes && o.metric == l.Metric
		}
		return o.trialsBy(l.Metric, minimize)
	}
	trials := slices.DeleteFunc(slices.Clone(o.trials), func(t *leaseTrial) bool { return t.step >= 0 && !l.Steps })
	slices.SortFunc(trials, byNumber)
	return trials
}
