package service_test

import (
	"context"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// The calls of those from whom something is hidden.

const hiddenText = "(hidden)"

// allPages asks for pages until there is none left; the answer is the last.
func allPages[A interface {
	proto.Message
	GetNextPageToken() string
}](next func(token string) (A, error)) (proto.Message, error) {
	token := ""
	for {
		page, err := next(token)
		if err != nil {
			return nil, err
		}
		if token = page.GetNextPageToken(); token == "" {
			return page, nil
		}
	}
}

func stepsOfReads() []hiddenStep {
	steps := []hiddenStep{
		{what: "the session", call: func(h *hiddenWorld) (proto.Message, error) {
			return h.as.Sessions.GetSession(h.ctx, &setpointv1.GetSessionRequest{SessionId: "s"})
		}, check: func(h *hiddenWorld, answer proto.Message, _ error) {
			equal(h.t, "variable_count", int64(0), answer.(*setpointv1.Session).GetVariableCount())
		}},
		{what: "keeping the session alive", call: func(h *hiddenWorld) (proto.Message, error) {
			return h.as.Sessions.KeepSessionAlive(h.ctx, &setpointv1.KeepSessionAliveRequest{SessionId: "s"})
		}, check: func(h *hiddenWorld, answer proto.Message, _ error) {
			equal(h.t, "variable_count", int64(0), answer.(*setpointv1.Session).GetVariableCount())
		}},
		{what: "the sessions", call: func(h *hiddenWorld) (proto.Message, error) {
			return h.as.Sessions.ListSessions(h.ctx, &setpointv1.ListSessionsRequest{})
		}, check: func(h *hiddenWorld, answer proto.Message, _ error) {
			equal(h.t, "variable_count", int64(0), answer.(*setpointv1.ListSessionsResponse).GetSessions()[0].GetVariableCount())
		}},
		{what: "the variables", tells: true, call: func(h *hiddenWorld) (proto.Message, error) {
			return allPages(func(token string) (*setpointv1.ListVariablesResponse, error) {
				return h.as.Variables.ListVariables(h.ctx, &setpointv1.ListVariablesRequest{SessionId: "s", PageSize: 2, PageToken: token})
			})
		}},
		{what: "the variables of a pattern", tells: true, call: func(h *hiddenWorld) (proto.Message, error) {
			return h.as.Variables.ListVariables(h.ctx, &setpointv1.ListVariablesRequest{SessionId: "s", Pattern: "z*", PageSize: 1})
		}, check: func(h *hiddenWorld, answer proto.Message, _ error) {
			equal(h.t, "variables of a pattern", &setpointv1.ListVariablesResponse{}, answer)
		}},
		{what: "several variables", tells: true, call: func(h *hiddenWorld) (proto.Message, error) {
			return h.as.Variables.BatchGetVariables(h.ctx, &setpointv1.BatchGetVariablesRequest{
				SessionId: "s", Variables: []string{"a", "seen_derived", "seen_broken", "seen_stale", "seen_orphan", "seen_torn", "nowhere"},
			})
		}},
	}
	for name, tells := range map[string]bool{
		"a": false, "leased": false, "seen_derived": true, "seen_broken": true, "seen_stale": true, "seen_orphan": true,
		"seen_torn": true, "top": true,
	} {
		steps = append(steps, hiddenStep{what: "variable " + name, tells: tells, call: func(h *hiddenWorld) (proto.Message, error) {
			return h.as.Variables.GetVariable(h.ctx, &setpointv1.GetVariableRequest{SessionId: "s", Variable: name})
		}})
	}
	return steps
}

func stepsOfHistory() []hiddenStep {
	history := func(req *setpointv1.ListHistoryRequest) func(*hiddenWorld) (proto.Message, error) {
		return func(h *hiddenWorld) (proto.Message, error) {
			return allPages(func(token string) (*setpointv1.ListHistoryResponse, error) {
				req := proto.CloneOf(req)
				req.SessionId, req.PageToken = "s", token
				return h.as.History.ListHistory(h.ctx, req)
			})
		}
	}
	snapshot := func(at func(h *hiddenWorld, r *setpointv1.GetSnapshotRequest)) func(*hiddenWorld) (proto.Message, error) {
		return func(h *hiddenWorld) (proto.Message, error) {
			return allPages(func(token string) (*setpointv1.GetSnapshotResponse, error) {
				req := &setpointv1.GetSnapshotRequest{SessionId: "s", PageSize: 3, PageToken: token}
				at(h, req)
				return h.as.History.GetSnapshot(h.ctx, req)
			})
		}
	}
	moment := timestamppb.New(time.Now().Add(time.Hour))
	steps := []hiddenStep{
		{what: "the history", tells: true, call: history(&setpointv1.ListHistoryRequest{PageSize: 3})},
		{what: "versions", tells: true, call: history(&setpointv1.ListHistoryRequest{Variable: "seen_derived", PageSize: 1})},
		{what: "a version", tells: true, call: func(h *hiddenWorld) (proto.Message, error) {
			return h.as.History.GetVariableVersion(h.ctx, &setpointv1.GetVariableVersionRequest{
				SessionId: "s", Variable: "seen_derived", Version: 2,
			})
		}, check: func(h *hiddenWorld, answer proto.Message, _ error) {
			equal(h.t, "cause", hiddenText, answer.(*setpointv1.HistoryEntry).GetCausedBy().GetVariable())
		}},
		{what: "the snapshot", tells: true, call: snapshot(func(*hiddenWorld, *setpointv1.GetSnapshotRequest) {})},
		{what: "the snapshot of before", tells: true, call: snapshot(func(h *hiddenWorld, r *setpointv1.GetSnapshotRequest) {
			r.At = &setpointv1.GetSnapshotRequest_Revision{Revision: h.before}
		})},
		{what: "the snapshot of a time", tells: true, call: snapshot(func(_ *hiddenWorld, r *setpointv1.GetSnapshotRequest) {
			r.At = &setpointv1.GetSnapshotRequest_Time{Time: moment}
		})},
	}
	for change := range setpointv1.HistoryChange_name {
		if change == 0 {
			continue
		}
		kind := setpointv1.HistoryChange(change)
		steps = append(steps, hiddenStep{
			what: "history of " + kind.String(),
			call: history(&setpointv1.ListHistoryRequest{Changes: []setpointv1.HistoryChange{kind}}),
		})
		for _, name := range []string{"seen_derived", "seen_stale", "seen_orphan", "seen_torn", "leased", "own"} {
			steps = append(steps, hiddenStep{what: kind.String() + " of " + name, call: history(&setpointv1.ListHistoryRequest{
				Variable: name, Changes: []setpointv1.HistoryChange{kind},
			})})
		}
	}
	return steps
}

func stepsOfGraph() []hiddenStep {
	path := func(h *hiddenWorld, _ proto.Message, err error) {
		h.t.Helper()
		names, _ := client.CyclePath(err)
		equal(h.t, "path", []string{"a", "top", hiddenText, "a"}, names)
	}
	cycle := setpointv1.ErrorReason_WOULD_CREATE_CYCLE
	steps := []hiddenStep{
		{what: "the graph", tells: true, call: func(h *hiddenWorld) (proto.Message, error) {
			return allPages(func(token string) (*setpointv1.GetGraphResponse, error) {
				return h.as.Dependencies.GetGraph(h.ctx, &setpointv1.GetGraphRequest{
					SessionId: "s", IncludeUnconnected: true, PageSize: 2, PageToken: token,
				})
			})
		}},
		{what: "the order", tells: true, call: func(h *hiddenWorld) (proto.Message, error) {
			return h.as.Dependencies.GetUpdateOrder(h.ctx, &setpointv1.GetUpdateOrderRequest{SessionId: "s", Variable: "a"})
		}},
		{what: "a cycle", tells: true, blind: cycle, check: path, call: func(h *hiddenWorld) (proto.Message, error) {
			return h.as.Dependencies.AddDependency(h.ctx, &setpointv1.AddDependencyRequest{
				SessionId: "s", Dependent: "a", Dependency: "top", RequestId: "cycle",
			})
		}},
		{what: "a cycle again", tells: true, blind: cycle, check: path, call: func(h *hiddenWorld) (proto.Message, error) {
			return h.as.Dependencies.AddDependency(h.ctx, &setpointv1.AddDependencyRequest{
				SessionId: "s", Dependent: "a", Dependency: "top", RequestId: "cycle",
			})
		}},
		{what: "a cycle by an update", tells: true, blind: cycle, check: path, call: func(h *hiddenWorld) (proto.Message, error) {
			return h.as.Variables.UpdateVariable(h.ctx, &setpointv1.UpdateVariableRequest{
				SessionId: "s", Variable: "a", DependsOn: []string{"top"},
			})
		}},
		{what: "an edge", call: func(h *hiddenWorld) (proto.Message, error) {
			return h.as.Dependencies.AddDependency(h.ctx, &setpointv1.AddDependencyRequest{SessionId: "s", Dependent: "open", Dependency: "a"})
		}},
		{what: "no edge", call: func(h *hiddenWorld) (proto.Message, error) {
			return h.as.Dependencies.RemoveDependency(h.ctx, &setpointv1.RemoveDependencyRequest{
				SessionId: "s", Dependent: "open", Dependency: "a",
			})
		}},
	}
	for _, transitive := range []bool{false, true} {
		for _, name := range []string{"seen_derived", "seen_stale", "top"} {
			steps = append(steps, hiddenStep{what: "dependencies of " + name, tells: true, call: func(h *hiddenWorld) (proto.Message, error) {
				return allPages(func(token string) (*setpointv1.ListDependenciesResponse, error) {
					return h.as.Dependencies.ListDependencies(h.ctx, &setpointv1.ListDependenciesRequest{
						SessionId: "s", Variable: name, Transitive: transitive, PageSize: 1, PageToken: token,
					})
				})
			}})
		}
		steps = append(steps, hiddenStep{what: "dependents", tells: true, call: func(h *hiddenWorld) (proto.Message, error) {
			return allPages(func(token string) (*setpointv1.ListDependentsResponse, error) {
				return h.as.Dependencies.ListDependents(h.ctx, &setpointv1.ListDependentsRequest{
					SessionId: "s", Variable: "a", Transitive: transitive, PageSize: 1, PageToken: token,
				})
			})
		}})
	}
	return steps
}

func stepsOfOptimizations() []hiddenStep {
	busy := setpointv1.ErrorReason_ALREADY_OPTIMIZING
	listing := func(variable string) func(*hiddenWorld) (proto.Message, error) {
		return func(h *hiddenWorld) (proto.Message, error) {
			return allPages(func(token string) (*setpointv1.ListOptimizationsResponse, error) {
				return h.as.Optimizations.ListOptimizations(h.ctx, &setpointv1.ListOptimizationsRequest{
					SessionId: "s", Variable: variable, PageSize: 1, PageToken: token,
				})
			})
		}
	}
	starting := func(variable string, conflict setpointv1.ConflictStrategy) func(*hiddenWorld) (proto.Message, error) {
		return func(h *hiddenWorld) (proto.Message, error) {
			o, err := h.as.Optimizations.StartOptimization(h.ctx, &setpointv1.StartOptimizationRequest{
				SessionId: "s", Variables: []string{variable}, Conflict: conflict,
			})
			if err == nil {
				h.lease = o
			}
			return o, err
		}
	}
	reporting := func(h *hiddenWorld) (proto.Message, error) {
		return h.as.Optimizations.ReportProgress(h.ctx, &setpointv1.ReportProgressRequest{
			SessionId: "s", OptimizationId: h.own.GetOptimizationId(), FencingToken: h.own.GetFencingToken(), Apply: true,
			Values: map[string]*setpointv1.Value{"own": client.Integer(4)}, Metrics: map[string]float64{"m": 1}, RequestId: "report",
		})
	}
	return []hiddenStep{
		{what: "one's own", call: func(h *hiddenWorld) (proto.Message, error) {
			return h.as.Optimizations.GetOptimization(h.ctx, &setpointv1.GetOptimizationRequest{
				SessionId: "s", OptimizationId: h.own.GetOptimizationId(),
			})
		}},
		{what: "the optimizations", tells: true, call: listing("")},
		{what: "the optimizations of a variable", tells: true, call: listing("leased")},
		{what: "status", tells: true, call: func(h *hiddenWorld) (proto.Message, error) {
			return h.as.Optimizations.GetOptimizationStatus(h.ctx, &setpointv1.GetOptimizationStatusRequest{SessionId: "s", Variable: "leased"})
		}, check: func(h *hiddenWorld, answer proto.Message, _ error) {
			equal(h.t, "status", &setpointv1.GetOptimizationStatusResponse{Optimizing: true}, answer)
		}},
		{what: "the trials", call: func(h *hiddenWorld) (proto.Message, error) {
			return h.as.Optimizations.ListTrials(h.ctx, &setpointv1.ListTrialsRequest{
				SessionId: "s", OptimizationId: h.own.GetOptimizationId(),
			})
		}},
		{what: "a start refused", blind: busy, call: starting("leased", setpointv1.ConflictStrategy_CONFLICT_STRATEGY_ABORT)},
		{what: "a write refused", blind: busy, call: func(h *hiddenWorld) (proto.Message, error) {
			return h.as.Variables.SetVariable(h.ctx, &setpointv1.SetVariableRequest{SessionId: "s", Variable: "leased", Value: client.Integer(1)})
		}},
		{what: "a start that waits", call: starting("leased", setpointv1.ConflictStrategy_CONFLICT_STRATEGY_WAIT)},
		{what: "its turn", call: func(h *hiddenWorld) (proto.Message, error) {
			ctx, cancel := context.WithCancel(h.ctx)
			defer cancel()
			stream, err := h.as.Optimizations.AwaitOptimization(ctx, &setpointv1.AwaitOptimizationRequest{
				SessionId: "s", OptimizationId: h.lease.GetOptimizationId(),
			})
			if err != nil {
				return nil, err
			}
			return stream.Recv()
		}},
		{what: "the renewal of one that waits", call: func(h *hiddenWorld) (proto.Message, error) {
			return h.as.Optimizations.RenewOptimization(h.ctx, &setpointv1.RenewOptimizationRequest{
				SessionId: "s", OptimizationId: h.lease.GetOptimizationId(),
			})
		}},
		{what: "a start after somebody", tells: true, call: starting("passed", setpointv1.ConflictStrategy_CONFLICT_STRATEGY_ABORT)},
		{what: "what one got of somebody", tells: true, call: func(h *hiddenWorld) (proto.Message, error) {
			return h.as.Optimizations.GetOptimization(h.ctx, &setpointv1.GetOptimizationRequest{
				SessionId: "s", OptimizationId: h.lease.GetOptimizationId(),
			})
		}},
		{what: "a report", tells: true, call: reporting, check: func(h *hiddenWorld, answer proto.Message, _ error) {
			equal(h.t, "recomputed", []*setpointv1.RecomputedVariable{{Variable: hiddenText}},
				answer.(*setpointv1.ReportProgressResponse).GetRecomputed())
		}},
		{what: "a report again", tells: true, call: reporting},
		{what: "a preemption", call: func(h *hiddenWorld) (proto.Message, error) {
			h.start([]string{"own", "zq_passed"}, preempts(5))
			return h.as.Optimizations.RenewOptimization(h.ctx, &setpointv1.RenewOptimizationRequest{
				SessionId: "s", OptimizationId: h.own.GetOptimizationId(), FencingToken: h.own.GetFencingToken(),
			})
		}},
		{what: "a stop", call: func(h *hiddenWorld) (proto.Message, error) {
			return h.as.Optimizations.StopOptimization(h.ctx, &setpointv1.StopOptimizationRequest{
				SessionId: "s", OptimizationId: h.own.GetOptimizationId(), ApplyBest: true, RequestId: "stop",
			})
		}},
		{what: "a stop again", call: func(h *hiddenWorld) (proto.Message, error) {
			return h.as.Optimizations.StopOptimization(h.ctx, &setpointv1.StopOptimizationRequest{
				SessionId: "s", OptimizationId: h.own.GetOptimizationId(), ApplyBest: true, RequestId: "stop",
			})
		}},
		{what: "a look back", call: func(h *hiddenWorld) (proto.Message, error) {
			return h.as.Optimizations.GetOptimization(h.ctx, &setpointv1.GetOptimizationRequest{
				SessionId: "s", OptimizationId: h.own.GetOptimizationId(),
			})
		}},
	}
}

func stepsOfAccess() []hiddenStep {
	denied := setpointv1.ErrorReason_ACCESS_DENIED
	steps := []hiddenStep{
		{what: "a check", call: func(h *hiddenWorld) (proto.Message, error) {
			return h.as.Access.CheckAccess(h.ctx, &setpointv1.CheckAccessRequest{SessionId: "s", Variable: "a", Permission: mayRead})
		}},
		{what: "checks", call: func(h *hiddenWorld) (proto.Message, error) {
			return h.as.Access.BatchCheckAccess(h.ctx, &setpointv1.BatchCheckAccessRequest{SessionId: "s", Checks: []*setpointv1.AccessQuery{
				{Variable: "a", Permission: mayRead}, {Permission: mayAdmin},
			}})
		}},
		{what: "the rules", call: func(h *hiddenWorld) (proto.Message, error) {
			return allPages(func(token string) (*setpointv1.ListAccessRulesResponse, error) {
				return h.as.Access.ListAccessRules(h.ctx, &setpointv1.ListAccessRulesRequest{SessionId: "s", PageSize: 2, PageToken: token})
			})
		}},
		{what: "the audit", blind: denied, call: func(h *hiddenWorld) (proto.Message, error) {
			return allPages(func(token string) (*setpointv1.ListAuditEventsResponse, error) {
				return h.as.Access.ListAuditEvents(h.ctx, &setpointv1.ListAuditEventsRequest{SessionId: "s", PageSize: 7, PageToken: token})
			})
		}},
		{what: "a rule", blind: denied, call: func(h *hiddenWorld) (proto.Message, error) {
			rule, err := h.as.Access.AddAccessRule(h.ctx, &setpointv1.AddAccessRuleRequest{
				SessionId: "s", Variable: "a", Rule: spec("user:unknown"),
			})
			if err == nil {
				h.rule = rule
			}
			return rule, err
		}},
		{what: "no rule", blind: denied, call: func(h *hiddenWorld) (proto.Message, error) {
			id := h.rule.GetRuleId()
			if id == "" {
				id = "rule_" + strings.Repeat("0", 26)
			}
			return h.as.Access.RemoveAccessRule(h.ctx, &setpointv1.RemoveAccessRuleRequest{SessionId: "s", RuleId: id})
		}},
		{what: "other rules", blind: denied, call: func(h *hiddenWorld) (proto.Message, error) {
			return h.as.Access.SetVariablePermissions(h.ctx, &setpointv1.SetVariablePermissionsRequest{
				SessionId: "s", Variable: "spare", Rules: []*setpointv1.AccessRuleSpec{spec(h.caller+"*", to(mayWrite, mayAdmin))},
			})
		}},
		{what: "a token", blind: denied, call: func(h *hiddenWorld) (proto.Message, error) {
			return h.as.Tokens.CreateToken(h.ctx, &setpointv1.CreateTokenRequest{Principal: "user:unknown"})
		}},
		{what: "the tokens", blind: denied, call: func(h *hiddenWorld) (proto.Message, error) {
			return h.as.Tokens.ListTokens(h.ctx, &setpointv1.ListTokensRequest{})
		}},
		{what: "no token", blind: denied, call: func(h *hiddenWorld) (proto.Message, error) {
			return h.as.Tokens.RevokeToken(h.ctx, &setpointv1.RevokeTokenRequest{TokenId: "tok_" + strings.Repeat("0", 26)})
		}},
	}
	return steps
}

func stepsOfWrites() []hiddenStep {
	failed := setpointv1.ErrorReason_DERIVATION_FAILED
	set := func(v int64, change func(*setpointv1.SetVariableRequest)) func(*hiddenWorld) (proto.Message, error) {
		return func(h *hiddenWorld) (proto.Message, error) {
			req := &setpointv1.SetVariableRequest{SessionId: "s", Variable: "a", Value: client.Integer(v)}
			change(req)
			return h.as.Variables.SetVariable(h.ctx, req)
		}
	}
	setAll := func(v int64, change func(*setpointv1.BatchSetVariablesRequest)) func(*hiddenWorld) (proto.Message, error) {
		return func(h *hiddenWorld) (proto.Message, error) {
			req := &setpointv1.BatchSetVariablesRequest{SessionId: "s", Writes: []*setpointv1.VariableWrite{
				{Variable: "a", Value: client.Integer(v)}, {Variable: "open", Value: client.Integer(v)},
			}}
			change(req)
			return h.as.Variables.BatchSetVariables(h.ctx, req)
		}
	}
	asIs, once := func(*setpointv1.SetVariableRequest) {}, func(r *setpointv1.SetVariableRequest) { r.RequestId = "set" }
	asTheyAre, allOnce := func(*setpointv1.BatchSetVariablesRequest) {}, func(r *setpointv1.BatchSetVariablesRequest) { r.RequestId = "sets" }
	tooMuch := func(h *hiddenWorld, _ proto.Message, err error) {
		h.t.Helper()
		equal(h.t, "what cannot be computed", hiddenText, wantReason(h.t, err, failed).Metadata["variable"])
	}
	followed := func(h *hiddenWorld, answer proto.Message, _ error) {
		h.t.Helper()
		var recomputed []string
		for _, r := range answer.(interface {
			GetRecomputed() []*setpointv1.RecomputedVariable
		}).GetRecomputed() {
			recomputed = append(recomputed, r.GetVariable())
		}
		// zq_derived, zq_strict and seen_derived, in the order of names but for what comes after another.
		equal(h.t, "recomputed", []string{"seen_derived", hiddenText, hiddenText}, recomputed)
	}
	const tooLarge = 2_000_000
	steps := []hiddenStep{
		{what: "a set tried", tells: true, check: followed, call: set(4, func(r *setpointv1.SetVariableRequest) { r.DryRun = true })},
		{what: "a set", tells: true, check: followed, call: set(4, once)},
		{what: "a set again", tells: true, check: followed, call: set(4, once)},
		{what: "a set of too much", tells: true, blind: failed, check: tooMuch, call: set(tooLarge, asIs)},
		{what: "a set of too much once", tells: true, blind: failed, check: tooMuch, call: set(tooLarge, func(r *setpointv1.SetVariableRequest) {
			r.RequestId = "too much"
		})},
		{what: "a set of too much again", tells: true, blind: failed, check: tooMuch, call: set(tooLarge, func(r *setpointv1.SetVariableRequest) {
			r.RequestId = "too much"
		})},
		{what: "sets tried", tells: true, check: followed, call: setAll(5, func(r *setpointv1.BatchSetVariablesRequest) { r.DryRun = true })},
		{what: "sets", tells: true, check: followed, call: setAll(5, allOnce)},
		{what: "sets again", tells: true, check: followed, call: setAll(5, allOnce)},
		{what: "sets of too much", tells: true, call: setAll(tooLarge, asTheyAre)},
		{what: "sets of too much, all or none", tells: true, blind: failed, call: setAll(tooLarge, func(r *setpointv1.BatchSetVariablesRequest) {
			r.Atomic = true
		})},
		{what: "a way back", call: func(h *hiddenWorld) (proto.Message, error) {
			return h.as.History.RollbackVariable(h.ctx, &setpointv1.RollbackVariableRequest{SessionId: "s", Variable: "a"})
		}},
		{what: "a way back of one that is stale", tells: true, call: func(h *hiddenWorld) (proto.Message, error) {
			return h.as.History.RollbackVariable(h.ctx, &setpointv1.RollbackVariableRequest{SessionId: "s", Variable: "seen_stale"})
		}},
	}
	return append(steps, stepsOfOtherWrites()...)
}

func stepsOfOtherWrites() []hiddenStep {
	back := func(h *hiddenWorld, to int64, change func(r *setpointv1.RollbackSessionRequest)) (proto.Message, error) {
		req := &setpointv1.RollbackSessionRequest{SessionId: "s", To: &setpointv1.RollbackSessionRequest_Revision{Revision: to}}
		change(req)
		return h.as.History.RollbackSession(h.ctx, req)
	}
	tried := func(r *setpointv1.RollbackSessionRequest) { r.DryRun = true }
	once := func(r *setpointv1.RollbackSessionRequest) { r.RequestId = "back" }
	since := func(h *hiddenWorld, answer proto.Message, _ error) {
		h.t.Helper()
		r := answer.(*setpointv1.RollbackSessionResponse)
		equal(h.t, "registered since", []string{"new", "newer", "since"}, r.GetRegisteredSince())
		equal(h.t, "deleted since", []string(nil), r.GetDeletedSince())
		equal(h.t, "unchanged", int64(0), r.GetUnchangedCount())
	}
	update := func(change func(*setpointv1.UpdateVariableRequest)) func(*hiddenWorld) (proto.Message, error) {
		return func(h *hiddenWorld) (proto.Message, error) {
			req := &setpointv1.UpdateVariableRequest{SessionId: "s"}
			change(req)
			return h.as.Variables.UpdateVariable(h.ctx, req)
		}
	}
	remove := func(name string, cascade bool) func(*hiddenWorld) (proto.Message, error) {
		return func(h *hiddenWorld) (proto.Message, error) {
			return h.as.Variables.DeleteVariable(h.ctx, &setpointv1.DeleteVariableRequest{
				SessionId: "s", Variable: name, Cascade: cascade, RequestId: "delete " + name,
			})
		}
	}
	dependents := func(h *hiddenWorld, _ proto.Message, err error) {
		h.t.Helper()
		names, _ := client.Dependents(err)
		equal(h.t, "dependents", []string{hiddenText, hiddenText}, names)
	}
	stale := func(h *hiddenWorld, answer proto.Message, _ error) {
		h.t.Helper()
		equal(h.t, "stale", []*setpointv1.StaleVariable{{Variable: hiddenText}}, answer.(*setpointv1.DeleteVariableResponse).GetStale())
	}
	some := func(r *setpointv1.UpdateVariableRequest) {
		r.Metadata, r.RequestId = map[string]string{"k": "v"}, "update"
	}
	return []hiddenStep{
		{what: "the way back to before", blind: setpointv1.ErrorReason_ACCESS_DENIED, call: func(h *hiddenWorld) (proto.Message, error) {
			return back(h, h.before, tried)
		}, check: func(h *hiddenWorld, _ proto.Message, err error) {
			wantMetadata(h.t, wantReason(h.t, err, setpointv1.ErrorReason_ACCESS_DENIED), map[string]string{
				"permission": "write", "variable": hiddenText,
			})
		}},
		{what: "an update", tells: true, call: update(func(r *setpointv1.UpdateVariableRequest) { r.Variable = "seen_derived"; some(r) })},
		{what: "an update again", tells: true, call: update(func(r *setpointv1.UpdateVariableRequest) { r.Variable = "seen_derived"; some(r) })},
		{what: "an update of what lost something", tells: true, call: update(func(r *setpointv1.UpdateVariableRequest) {
			r.Variable, r.HistoryLimit = "seen_torn", ptr(int64(9))
		})},
		{what: "another expression", call: update(func(r *setpointv1.UpdateVariableRequest) {
			r.Variable, r.Expression = "seen_broken", ptr("b + 1")
		})},
		{what: "a registration", call: func(h *hiddenWorld) (proto.Message, error) {
			return h.as.Variables.RegisterVariable(h.ctx, &setpointv1.RegisterVariableRequest{
				SessionId: "s", Name: "new", Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Expression: "a + 1",
			})
		}},
		{what: "registrations", call: func(h *hiddenWorld) (proto.Message, error) {
			return h.as.Variables.BatchRegisterVariables(h.ctx, &setpointv1.BatchRegisterVariablesRequest{
				SessionId: "s", Registrations: []*setpointv1.VariableRegistration{
					{Name: "newer", Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Expression: "new + 1"},
				},
			})
		}},
		{what: "the way back to the middle, tried", tells: true, call: func(h *hiddenWorld) (proto.Message, error) {
			return back(h, h.middle, tried)
		}},
		{what: "the end of what others depend on", tells: true, blind: setpointv1.ErrorReason_HAS_DEPENDENTS, check: dependents,
			call: remove("base", false)},
		{what: "the end, again", tells: true, blind: setpointv1.ErrorReason_HAS_DEPENDENTS, check: dependents, call: remove("base", false)},
		{what: "a session", call: func(h *hiddenWorld) (proto.Message, error) {
			return h.as.Sessions.CreateSession(h.ctx, &setpointv1.CreateSessionRequest{SessionId: "another"})
		}},
		{what: "the way back to the middle", tells: true, check: since, call: func(h *hiddenWorld) (proto.Message, error) { return back(h, h.middle, once) }},
		{what: "the way back again", tells: true, check: since, call: func(h *hiddenWorld) (proto.Message, error) { return back(h, h.middle, once) }},
		{what: "the end of all that depends", tells: true, check: stale, call: func(h *hiddenWorld) (proto.Message, error) {
			return h.as.Variables.DeleteVariable(h.ctx, &setpointv1.DeleteVariableRequest{SessionId: "s", Variable: "base", Cascade: true})
		}},
		{what: "the end of another", call: remove("open", true)},
		{what: "the history at the end", tells: true, call: func(h *hiddenWorld) (proto.Message, error) {
			return h.as.History.ListHistory(h.ctx, &setpointv1.ListHistoryRequest{SessionId: "s", PageSize: 1000})
		}},
		{what: "the variables at the end", tells: true, call: func(h *hiddenWorld) (proto.Message, error) {
			return h.as.Variables.ListVariables(h.ctx, &setpointv1.ListVariablesRequest{SessionId: "s"})
		}},
		{what: "the graph at the end", tells: true, call: func(h *hiddenWorld) (proto.Message, error) {
			return h.as.Dependencies.GetGraph(h.ctx, &setpointv1.GetGraphRequest{SessionId: "s", IncludeUnconnected: true})
		}},
		{what: "the end of the session", blind: setpointv1.ErrorReason_ACCESS_DENIED, call: func(h *hiddenWorld) (proto.Message, error) {
			return h.as.Sessions.DeleteSession(h.ctx, &setpointv1.DeleteSessionRequest{SessionId: "s"})
		}},
	}
}
