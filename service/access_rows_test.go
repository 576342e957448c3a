package service_test

import (
	"context"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// The rows of the table of access: a valid call of every RPC, and of some several.

// What ACCESS_DENIED says.
var (
	readTarget     = denialOf{"read", "target"}
	writeTarget    = denialOf{"write", "target"}
	optimizeTarget = denialOf{"optimize", "target"}
	adminTarget    = denialOf{"admin", "target"}
	writeAll       = denialOf{permission: "write"}
	optimizeAll    = denialOf{permission: "optimize"}
	adminAll       = denialOf{permission: "admin"}
	ownerAlone     = denialOf{permission: "owner"}
)

func accessRows() []accessRow {
	var rows []accessRow
	for _, of := range [][]accessRow{
		sessionRows(), registerRows(), variableRows(), changeRows(), historyRows(), dependencyRows(), startRows(), holdRows(),
		stopRows(), optimizationRows(), ruleRows(), checkRows(), tokenRows(),
	} {
		rows = append(rows, of...)
	}
	for i, row := range rows {
		if row.prepare == nil && changesNothing(row.rpc) {
			rows[i].shares = "nothing"
		}
	}
	return rows
}

// changesNothing tells of RPCs that say so.
func changesNothing(rpc string) bool {
	method, _ := protoregistry.GlobalFiles.FindDescriptorByName(
		protoreflect.FullName(strings.ReplaceAll(strings.TrimPrefix(rpc, "/"), "/", ".")))
	options, _ := method.Options().(*descriptorpb.MethodOptions)
	return options.GetIdempotencyLevel() == descriptorpb.MethodOptions_NO_SIDE_EFFECTS
}

func sessionRows() []accessRow {
	return []accessRow{
		{
			rpc: setpointv1.SessionService_CreateSession_FullMethodName, takes: "nothing", denied: writeAll,
			call: func(c *accessCell) (proto.Message, error) {
				return c.as.Sessions.CreateSession(c.caller, &setpointv1.CreateSessionRequest{SessionId: c.id + "-new"})
			},
		},
		{
			rpc: setpointv1.SessionService_GetSession_FullMethodName, takes: "any",
			call: func(c *accessCell) (proto.Message, error) {
				return c.as.Sessions.GetSession(c.caller, &setpointv1.GetSessionRequest{SessionId: c.id})
			},
		},
		{
			rpc: setpointv1.SessionService_KeepSessionAlive_FullMethodName, takes: "any",
			call: func(c *accessCell) (proto.Message, error) {
				return c.as.Sessions.KeepSessionAlive(c.caller, &setpointv1.KeepSessionAliveRequest{SessionId: c.id})
			},
		},
		{
			rpc: setpointv1.SessionService_ListSessions_FullMethodName, takes: "any-list",
			call: func(c *accessCell) (proto.Message, error) {
				return c.as.Sessions.ListSessions(c.caller, &setpointv1.ListSessionsRequest{Pattern: c.id})
			},
			shows: func(_ *accessCell, answer proto.Message) bool {
				return len(answer.(*setpointv1.ListSessionsResponse).GetSessions()) == 1
			},
		},
		{
			rpc: setpointv1.SessionService_DeleteSession_FullMethodName, takes: "owner", denied: ownerAlone,
			call: func(c *accessCell) (proto.Message, error) {
				return c.as.Sessions.DeleteSession(c.caller, &setpointv1.DeleteSessionRequest{SessionId: c.id})
			},
		},
	}
}

// register registers a variable; change may alter the request.
func register(change func(*setpointv1.RegisterVariableRequest)) func(*accessCell) (proto.Message, error) {
	return func(c *accessCell) (proto.Message, error) {
		req := &setpointv1.RegisterVariableRequest{
			SessionId: c.id, Name: "new", Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Value: client.Integer(1),
		}
		if change != nil {
			change(req)
		}
		return c.as.Variables.RegisterVariable(c.caller, req)
	}
}

func registerRows() []accessRow {
	rpc, batch := setpointv1.VariableService_RegisterVariable_FullMethodName, setpointv1.VariableService_BatchRegisterVariables_FullMethodName
	registerMany := func(change func(*setpointv1.BatchRegisterVariablesRequest)) func(*accessCell) (proto.Message, error) {
		return func(c *accessCell) (proto.Message, error) {
			req := &setpointv1.BatchRegisterVariablesRequest{SessionId: c.id, Registrations: []*setpointv1.VariableRegistration{
				{Name: "new", Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Value: client.Integer(1)},
			}}
			change(req)
			answer, err := c.as.Variables.BatchRegisterVariables(c.caller, req)
			if err == nil && answer.GetResults()[0].GetError() != nil {
				return nil, client.FromItem(answer.GetResults()[0].GetError())
			}
			return answer, err
		}
	}
	return []accessRow{
		{rpc: rpc, takes: "write-all", denied: writeAll, call: register(nil)},
		{
			rpc: rpc, how: "that depends on it", takes: "write-all-read-x", denied: writeAll, ofBlind: &readTarget,
			call: register(func(r *setpointv1.RegisterVariableRequest) { r.DependsOn = []string{"target"} }),
		},
		{
			rpc: rpc, how: "that is public", takes: "admin-all", denied: adminAll,
			call: register(func(r *setpointv1.RegisterVariableRequest) {
				r.AccessMode = setpointv1.AccessMode_ACCESS_MODE_PUBLIC
			}),
			// Who may not even register lacks that first.
			prepare: func(c *accessCell) {
				c.lacks(writeAll, "reader", "observer", "outdone", "narrowed", "rootread", "protected", "public")
			},
		},
		{
			rpc: batch, how: "each alone", takes: "write-all", denied: writeAll,
			call: registerMany(func(*setpointv1.BatchRegisterVariablesRequest) {}),
		},
		{
			rpc: batch, how: "all or none", takes: "write-all", denied: writeAll,
			call: registerMany(func(r *setpointv1.BatchRegisterVariablesRequest) { r.Atomic = true }),
		},
		{
			rpc: batch, how: "that depend on it", takes: "write-all-read-x", denied: writeAll, ofBlind: &readTarget,
			call: registerMany(func(r *setpointv1.BatchRegisterVariablesRequest) { r.Registrations[0].DependsOn = []string{"target"} }),
		},
	}
}

func variableRows() []accessRow {
	return []accessRow{
		{
			rpc: setpointv1.VariableService_GetVariable_FullMethodName, takes: "read-x", denied: readTarget,
			call: func(c *accessCell) (proto.Message, error) {
				return c.as.Variables.GetVariable(c.caller, &setpointv1.GetVariableRequest{SessionId: c.id, Variable: "target"})
			},
		},
		{
			rpc: setpointv1.VariableService_BatchGetVariables_FullMethodName, takes: "list-x", audits: true,
			call: func(c *accessCell) (proto.Message, error) {
				return c.as.Variables.BatchGetVariables(c.caller, &setpointv1.BatchGetVariablesRequest{
					SessionId: c.id, Variables: []string{"zeta", "target"},
				})
			},
			shows: func(_ *accessCell, answer proto.Message) bool {
				return answer.(*setpointv1.BatchGetVariablesResponse).GetVariables()["target"] != nil
			},
		},
		{
			rpc: setpointv1.VariableService_ListVariables_FullMethodName, takes: "list-x", shows: mentions,
			call: func(c *accessCell) (proto.Message, error) {
				return c.as.Variables.ListVariables(c.caller, &setpointv1.ListVariablesRequest{SessionId: c.id})
			},
		},
	}
}

// leased has somebody else, who may, take the lease, which the call then presents.
func leased(c *accessCell) {
	o, err := c.Optimizations.StartOptimization(c.ctx, &setpointv1.StartOptimizationRequest{
		SessionId: c.id, Variables: []string{"zeta", "target"}, Objective: &setpointv1.Objective{Metric: "m"},
	})
	c.must(err)
	c.lease = o
}

// presented is the lease that was taken, if one was.
func (c *accessCell) presented() *setpointv1.Lease {
	if c.lease == nil {
		return nil
	}
	return lease(c.lease)
}

// withAndWithoutLease are two rows of a call that changes the target: one takes write, and one under a lease optimize.
func withAndWithoutLease(row accessRow) []accessRow {
	row.takes, row.denied = "write-x", writeTarget
	under := row
	under.how, under.takes, under.denied = strings.TrimSpace(row.how+" under a lease"), "optimize-x", optimizeTarget
	under.prepare = func(c *accessCell) {
		if row.prepare != nil {
			row.prepare(c)
		}
		leased(c)
	}
	if row.ofBlind != nil {
		under.ofBlind = &denialOf{"optimize", row.ofBlind.variable}
	}
	return []accessRow{row, under}
}

// setTarget sets the target, and notes the revision before.
func setTarget(c *accessCell) {
	c.row(&c.first, `select revision from setpoint.sessions where session_id = $1`, c.id)
	_, err := c.Variables.SetVariable(c.ctx, &setpointv1.SetVariableRequest{
		SessionId: c.id, Variable: "target", Value: client.Integer(7),
	})
	c.must(err)
}

func setMany(atomic bool) func(*accessCell) (proto.Message, error) {
	return func(c *accessCell) (proto.Message, error) {
		answer, err := c.as.Variables.BatchSetVariables(c.caller, &setpointv1.BatchSetVariablesRequest{
			SessionId: c.id, Atomic: atomic, Lease: c.presented(),
			Writes: []*setpointv1.VariableWrite{{Variable: "target", Value: client.Integer(1)}},
		})
		if err == nil && answer.GetResults()[0].GetError() != nil {
			return nil, client.FromItem(answer.GetResults()[0].GetError())
		}
		return answer, err
	}
}

func setOne(dryRun bool) func(*accessCell) (proto.Message, error) {
	return func(c *accessCell) (proto.Message, error) {
		return c.as.Variables.SetVariable(c.caller, &setpointv1.SetVariableRequest{
			SessionId: c.id, Variable: "target", Value: client.Integer(1), DryRun: dryRun, Lease: c.presented(),
		})
	}
}

func changeRows() []accessRow {
	set, update := setpointv1.VariableService_SetVariable_FullMethodName, setpointv1.VariableService_UpdateVariable_FullMethodName
	batch, remove := setpointv1.VariableService_BatchSetVariables_FullMethodName, setpointv1.VariableService_DeleteVariable_FullMethodName
	rows := []accessRow{{
		rpc: update, how: "of the access mode", takes: "admin-x", denied: adminTarget,
		call: func(c *accessCell) (proto.Message, error) {
			return c.as.Variables.UpdateVariable(c.caller, &setpointv1.UpdateVariableRequest{
				SessionId: c.id, Variable: "target", AccessMode: setpointv1.AccessMode_ACCESS_MODE_PRIVATE,
			})
		},
	}, {
		rpc: update, how: "of another to depend on it", takes: "write-x", denied: denialOf{"write", "zeta"}, ofBlind: &readTarget,
		call: func(c *accessCell) (proto.Message, error) {
			return c.as.Variables.UpdateVariable(c.caller, &setpointv1.UpdateVariableRequest{
				SessionId: c.id, Variable: "zeta", DependsOn: []string{"target"},
			})
		},
	}}
	for _, row := range []accessRow{
		{rpc: set, call: setOne(false)},
		{rpc: set, how: "tried", call: setOne(true)},
		{rpc: batch, how: "each alone", call: setMany(false)},
		{rpc: batch, how: "all or none", call: setMany(true)},
		{rpc: update, call: func(c *accessCell) (proto.Message, error) {
			return c.as.Variables.UpdateVariable(c.caller, &setpointv1.UpdateVariableRequest{
				SessionId: c.id, Variable: "target", Constraints: &setpointv1.Constraints{Max: ptr(9.)}, Lease: c.presented(),
			})
		}},
		{rpc: remove, call: func(c *accessCell) (proto.Message, error) {
			return c.as.Variables.DeleteVariable(c.caller, &setpointv1.DeleteVariableRequest{
				SessionId: c.id, Variable: "target", Lease: c.presented(),
			})
		}},
	} {
		rows = append(rows, withAndWithoutLease(row)...)
	}
	return rows
}

func historyRows() []accessRow {
	list := func(req *setpointv1.ListHistoryRequest) func(*accessCell) (proto.Message, error) {
		return func(c *accessCell) (proto.Message, error) {
			asked := proto.CloneOf(req)
			asked.SessionId = c.id
			return c.as.History.ListHistory(c.caller, asked)
		}
	}
	rows := []accessRow{
		{
			rpc: setpointv1.HistoryService_ListHistory_FullMethodName, how: "of it", takes: "read-x", denied: readTarget,
			call: list(&setpointv1.ListHistoryRequest{Variable: "target"}),
		},
		{
			rpc: setpointv1.HistoryService_ListHistory_FullMethodName, how: "of its changes", takes: "read-x", denied: readTarget,
			call: list(&setpointv1.ListHistoryRequest{
				Variable: "target", Changes: []setpointv1.HistoryChange{setpointv1.HistoryChange_HISTORY_CHANGE_REGISTERED},
			}),
		},
		{
			rpc: setpointv1.HistoryService_ListHistory_FullMethodName, takes: "list-x", shows: mentions,
			call: list(&setpointv1.ListHistoryRequest{}),
		},
		{
			rpc: setpointv1.HistoryService_ListHistory_FullMethodName, how: "of rules", takes: "admin-list-x", shows: mentions,
			prepare: func(c *accessCell) { c.rule = c.addRule(kindRule{AccessRuleSpec: spec("user:unknown"), ofX: true}) },
			call: list(&setpointv1.ListHistoryRequest{
				Changes: []setpointv1.HistoryChange{setpointv1.HistoryChange_HISTORY_CHANGE_ACCESS_RULE_ADDED},
			}),
		},
		{
			rpc: setpointv1.HistoryService_GetVariableVersion_FullMethodName, takes: "read-x", denied: readTarget,
			call: func(c *accessCell) (proto.Message, error) {
				return c.as.History.GetVariableVersion(c.caller, &setpointv1.GetVariableVersionRequest{SessionId: c.id, Variable: "target"})
			},
		},
		{
			rpc: setpointv1.HistoryService_GetSnapshot_FullMethodName, takes: "list-x", shows: mentions,
			call: func(c *accessCell) (proto.Message, error) {
				return c.as.History.GetSnapshot(c.caller, &setpointv1.GetSnapshotRequest{SessionId: c.id})
			},
		},
		{
			rpc: setpointv1.HistoryService_GetSnapshot_FullMethodName, how: "of then", takes: "list-x", shows: mentions, prepare: setTarget,
			call: func(c *accessCell) (proto.Message, error) {
				return c.as.History.GetSnapshot(c.caller, &setpointv1.GetSnapshotRequest{
					SessionId: c.id, At: &setpointv1.GetSnapshotRequest_Revision{Revision: c.first},
				})
			},
		},
	}
	rows = append(rows, withAndWithoutLease(accessRow{
		rpc: setpointv1.HistoryService_RollbackVariable_FullMethodName, prepare: setTarget,
		call: func(c *accessCell) (proto.Message, error) {
			return c.as.History.RollbackVariable(c.caller, &setpointv1.RollbackVariableRequest{
				SessionId: c.id, Variable: "target", Lease: c.presented(),
			})
		},
	})...)
	return append(rows, withAndWithoutLease(accessRow{
		rpc: setpointv1.HistoryService_RollbackSession_FullMethodName, prepare: setTarget,
		ofBlind: &denialOf{"write", "(hidden)"},
		call: func(c *accessCell) (proto.Message, error) {
			req := &setpointv1.RollbackSessionRequest{SessionId: c.id, To: &setpointv1.RollbackSessionRequest_Revision{Revision: c.first}}
			if c.lease != nil {
				req.Leases = []*setpointv1.Lease{c.presented()}
			}
			return c.as.History.RollbackSession(c.caller, req)
		},
	})...)
}

// linked makes one variable depend on another one.
func linked(dependent, dependency string) func(*accessCell) {
	return func(c *accessCell) {
		_, err := c.Dependencies.AddDependency(c.ctx, &setpointv1.AddDependencyRequest{
			SessionId: c.id, Dependent: dependent, Dependency: dependency,
		})
		c.must(err)
	}
}

func dependencyRows() []accessRow {
	add, remove := setpointv1.DependencyService_AddDependency_FullMethodName, setpointv1.DependencyService_RemoveDependency_FullMethodName
	adding := func(dependent, dependency string) func(*accessCell) (proto.Message, error) {
		return func(c *accessCell) (proto.Message, error) {
			return c.as.Dependencies.AddDependency(c.caller, &setpointv1.AddDependencyRequest{
				SessionId: c.id, Dependent: dependent, Dependency: dependency,
			})
		}
	}
	removing := func(dependent, dependency string) func(*accessCell) (proto.Message, error) {
		return func(c *accessCell) (proto.Message, error) {
			return c.as.Dependencies.RemoveDependency(c.caller, &setpointv1.RemoveDependencyRequest{
				SessionId: c.id, Dependent: dependent, Dependency: dependency,
			})
		}
	}
	writeZeta := denialOf{"write", "zeta"}
	rows := []accessRow{
		{rpc: add, how: "from it", takes: "write-x", denied: writeTarget, call: adding("target", "zeta")},
		{rpc: add, how: "to it", takes: "write-x", denied: writeZeta, ofBlind: &readTarget, call: adding("zeta", "target")},
		{
			rpc: remove, how: "from it", takes: "write-x", denied: writeTarget,
			prepare: linked("target", "zeta"), call: removing("target", "zeta"),
		},
		{
			rpc: remove, how: "to it", takes: "write-x", denied: writeZeta, ofBlind: &readTarget,
			prepare: linked("zeta", "target"), call: removing("zeta", "target"),
		},
		{
			rpc: setpointv1.DependencyService_GetGraph_FullMethodName, takes: "list-x", shows: mentions, prepare: linked("zeta", "target"),
			shares: "zeta depends on target",
			call: func(c *accessCell) (proto.Message, error) {
				return c.as.Dependencies.GetGraph(c.caller, &setpointv1.GetGraphRequest{SessionId: c.id})
			},
		},
	}
	for _, list := range []struct {
		rpc, shares string
		prepare     func(*accessCell)
		call        func(c *accessCell, variable string) (proto.Message, error)
	}{
		{
			setpointv1.DependencyService_ListDependencies_FullMethodName, "zeta depends on target", linked("zeta", "target"),
			func(c *accessCell, variable string) (proto.Message, error) {
				return c.as.Dependencies.ListDependencies(c.caller, &setpointv1.ListDependenciesRequest{SessionId: c.id, Variable: variable})
			},
		},
		{
			setpointv1.DependencyService_ListDependents_FullMethodName, "target depends on zeta", linked("target", "zeta"),
			func(c *accessCell, variable string) (proto.Message, error) {
				return c.as.Dependencies.ListDependents(c.caller, &setpointv1.ListDependentsRequest{
					SessionId: c.id, Variable: variable, Transitive: true,
				})
			},
		},
		{
			setpointv1.DependencyService_GetUpdateOrder_FullMethodName, "target depends on zeta", linked("target", "zeta"),
			func(c *accessCell, variable string) (proto.Message, error) {
				return c.as.Dependencies.GetUpdateOrder(c.caller, &setpointv1.GetUpdateOrderRequest{SessionId: c.id, Variable: variable})
			},
		},
	} {
		rows = append(rows, accessRow{
			rpc: list.rpc, how: "of it", takes: "read-x", denied: readTarget, prepare: list.prepare, shares: list.shares,
			call: func(c *accessCell) (proto.Message, error) { return list.call(c, "target") },
		}, accessRow{
			rpc: list.rpc, how: "of another", takes: "list-x", shows: mentions, prepare: list.prepare, shares: list.shares,
			call: func(c *accessCell) (proto.Message, error) { return list.call(c, "zeta") },
		})
	}
	return rows
}

// startedByCaller has the caller hold a lease, taken while that was allowed, with a trial to apply.
func startedByCaller(c *accessCell) {
	c.asOneWhoMay(func(ctx context.Context) {
		var err error
		c.lease, err = c.as.Optimizations.StartOptimization(ctx, &setpointv1.StartOptimizationRequest{
			SessionId: c.id, Variables: []string{"zeta", "target"}, Objective: &setpointv1.Objective{Metric: "m"},
		})
		c.must(err)
		c.tried(ctx, c.as)
	})
}

// waitingOfCaller has the caller wait for a lease that somebody else holds, since that was allowed.
func waitingOfCaller(c *accessCell) {
	leased(c)
	c.asOneWhoMay(func(ctx context.Context) {
		var err error
		c.lease, err = c.as.Optimizations.StartOptimization(ctx, &setpointv1.StartOptimizationRequest{
			SessionId: c.id, Variables: []string{"zeta", "target"}, Conflict: setpointv1.ConflictStrategy_CONFLICT_STRATEGY_WAIT,
		})
		c.must(err)
	})
}

// startedByAnother has somebody else hold a lease, with a trial to apply.
func startedByAnother(c *accessCell) {
	leased(c)
	c.tried(c.ctx, c.Client)
}

// waitingOfAnother has somebody else wait for a lease.
func waitingOfAnother(c *accessCell) {
	leased(c)
	o, err := c.Optimizations.StartOptimization(c.ctx, &setpointv1.StartOptimizationRequest{
		SessionId: c.id, Variables: []string{"zeta", "target"}, Conflict: setpointv1.ConflictStrategy_CONFLICT_STRATEGY_WAIT,
	})
	c.must(err)
	c.lease = o
}

// tried reports a trial.
func (c *accessCell) tried(ctx context.Context, as *client.Client) {
	c.t.Helper()
	_, err := as.Optimizations.ReportProgress(ctx, &setpointv1.ReportProgressRequest{
		SessionId: c.id, OptimizationId: c.lease.GetOptimizationId(), FencingToken: c.lease.GetFencingToken(),
		Values: map[string]*setpointv1.Value{"target": client.Integer(2)}, Metrics: map[string]float64{"m": 1},
	})
	c.must(err)
}

func startRows() []accessRow {
	start := func(c *accessCell, change func(*setpointv1.StartOptimizationRequest)) (proto.Message, error) {
		req := &setpointv1.StartOptimizationRequest{SessionId: c.id, Variables: []string{"target", "zeta"}}
		change(req)
		return c.as.Optimizations.StartOptimization(c.caller, req)
	}
	row := accessRow{rpc: setpointv1.OptimizationService_StartOptimization_FullMethodName, takes: "optimize-x", denied: optimizeTarget}
	at, once, after := row, row, row
	at.call = func(c *accessCell) (proto.Message, error) {
		return start(c, func(*setpointv1.StartOptimizationRequest) {})
	}
	once.how, once.call = "exactly once", func(c *accessCell) (proto.Message, error) {
		return start(c, func(r *setpointv1.StartOptimizationRequest) { r.RequestId = "once" })
	}
	after.how, after.prepare, after.call = "in the queue", leased, func(c *accessCell) (proto.Message, error) {
		return start(c, waits)
	}
	return []accessRow{at, once, after}
}

func renewal(c *accessCell) (proto.Message, error) {
	return c.as.Optimizations.RenewOptimization(c.caller, &setpointv1.RenewOptimizationRequest{
		SessionId: c.id, OptimizationId: c.lease.GetOptimizationId(), FencingToken: c.lease.GetFencingToken(),
	})
}

func progress(apply bool) func(*accessCell) (proto.Message, error) {
	return func(c *accessCell) (proto.Message, error) {
		return c.as.Optimizations.ReportProgress(c.caller, &setpointv1.ReportProgressRequest{
			SessionId: c.id, OptimizationId: c.lease.GetOptimizationId(), FencingToken: c.lease.GetFencingToken(), Apply: apply,
			Values: map[string]*setpointv1.Value{"target": client.Integer(3)},
		})
	}
}

// awaited is the first message of a call that awaits.
func awaited(c *accessCell) (proto.Message, error) {
	ctx, cancel := context.WithCancel(c.caller)
	defer cancel()
	stream, err := c.as.Optimizations.AwaitOptimization(ctx, &setpointv1.AwaitOptimizationRequest{
		SessionId: c.id, OptimizationId: c.lease.GetOptimizationId(),
	})
	if err != nil {
		return nil, err
	}
	return stream.Recv()
}

func holdRows() []accessRow {
	renew, await := setpointv1.OptimizationService_RenewOptimization_FullMethodName, setpointv1.OptimizationService_AwaitOptimization_FullMethodName
	report := setpointv1.OptimizationService_ReportProgress_FullMethodName
	rows := []accessRow{
		{rpc: renew, how: "of one's own", prepare: startedByCaller, call: renewal},
		{rpc: renew, how: "by another's token", prepare: startedByAnother, call: renewal},
		{rpc: renew, how: "in the queue", prepare: waitingOfCaller, call: renewal},
		{rpc: report, how: "on one's own", prepare: startedByCaller, call: progress(false)},
		{rpc: report, how: "by another's token", prepare: startedByAnother, call: progress(false)},
		{rpc: report, how: "that applies", prepare: startedByCaller, call: progress(true)},
		{rpc: await, how: "one's own", prepare: waitingOfCaller, call: awaited},
	}
	for i := range rows {
		rows[i].takes, rows[i].denied = "hold", optimizeTarget
	}
	for _, row := range []accessRow{
		{rpc: renew, how: "of another in the queue", prepare: waitingOfAnother, call: renewal},
		{rpc: await, how: "another's", prepare: waitingOfAnother, call: awaited},
	} {
		row.takes, row.denied = "nobody", optimizeTarget
		row.prepare = func(c *accessCell) {
			waitingOfAnother(c)
			// Who may optimize lacks being the one who started it.
			c.lacks(optimizeAll, "owner", "session", "root", "optimizer", "admin", "public")
		}
		rows = append(rows, row)
	}
	for i := range rows {
		rows[i].lost = setpointv1.ErrorReason_OPTIMIZATION_NOT_FOUND
	}
	return rows
}

func stopping(change func(c *accessCell, r *setpointv1.StopOptimizationRequest)) func(*accessCell) (proto.Message, error) {
	return func(c *accessCell) (proto.Message, error) {
		req := &setpointv1.StopOptimizationRequest{SessionId: c.id, OptimizationId: c.lease.GetOptimizationId()}
		change(c, req)
		return c.as.Optimizations.StopOptimization(c.caller, req)
	}
}

func stopRows() []accessRow {
	plainly := stopping(func(*accessCell, *setpointv1.StopOptimizationRequest) {})
	byToken := func(c *accessCell, r *setpointv1.StopOptimizationRequest) {
		r.FencingToken = ptr(c.lease.GetFencingToken())
	}
	forcing := func(_ *accessCell, r *setpointv1.StopOptimizationRequest) {
		r.Force, r.Reason = true, "it is in the way"
	}
	applying := func(_ *accessCell, r *setpointv1.StopOptimizationRequest) { r.ApplyBest = true }
	rows := []accessRow{
		{how: "of one's own", takes: "give-up", denied: optimizeTarget, prepare: startedByCaller, call: plainly},
		{how: "of one's own by its token", takes: "give-up", denied: optimizeTarget, prepare: startedByCaller, call: stopping(byToken)},
		{how: "of one's own by force", takes: "give-up", denied: optimizeTarget, prepare: startedByCaller, call: stopping(forcing)},
		{how: "of one's own in the queue", takes: "give-up", denied: optimizeTarget, prepare: waitingOfCaller, call: plainly},
		{how: "that applies", takes: "hold", denied: optimizeTarget, prepare: startedByCaller, call: stopping(applying)},
		{how: "by another's token", takes: "hold", denied: optimizeTarget, prepare: startedByAnother, call: stopping(byToken)},
		{how: "of another's", takes: "nobody", denied: optimizeAll, prepare: startedByAnother, call: plainly},
		{how: "of another's by force", takes: "force", denied: ownerAlone, prepare: startedByAnother, call: stopping(forcing)},
		{how: "of another's by force in the queue", takes: "force", denied: ownerAlone, prepare: waitingOfAnother, call: stopping(forcing)},
	}
	for i := range rows {
		rows[i].rpc = setpointv1.OptimizationService_StopOptimization_FullMethodName
		rows[i].lost = setpointv1.ErrorReason_OPTIMIZATION_NOT_FOUND
	}
	return rows
}

func optimizationRows() []accessRow {
	listing := func(variable string) func(*accessCell) (proto.Message, error) {
		return func(c *accessCell) (proto.Message, error) {
			return c.as.Optimizations.ListOptimizations(c.caller, &setpointv1.ListOptimizationsRequest{SessionId: c.id, Variable: variable})
		}
	}
	status := func(variable string) func(*accessCell) (proto.Message, error) {
		return func(c *accessCell) (proto.Message, error) {
			return c.as.Optimizations.GetOptimizationStatus(c.caller, &setpointv1.GetOptimizationStatusRequest{
				SessionId: c.id, Variable: variable,
			})
		}
	}
	rows := []accessRow{
		{
			rpc: setpointv1.OptimizationService_GetOptimization_FullMethodName, takes: "see", shows: mentions,
			call: func(c *accessCell) (proto.Message, error) {
				return c.as.Optimizations.GetOptimization(c.caller, &setpointv1.GetOptimizationRequest{
					SessionId: c.id, OptimizationId: c.lease.GetOptimizationId(),
				})
			},
		},
		{
			rpc: setpointv1.OptimizationService_ListTrials_FullMethodName, takes: "see", shows: mentions,
			call: func(c *accessCell) (proto.Message, error) {
				return c.as.Optimizations.ListTrials(c.caller, &setpointv1.ListTrialsRequest{
					SessionId: c.id, OptimizationId: c.lease.GetOptimizationId(),
				})
			},
		},
		{
			rpc: setpointv1.OptimizationService_ListOptimizations_FullMethodName, takes: "list-x", shows: mentions, call: listing(""),
		},
		{
			rpc: setpointv1.OptimizationService_ListOptimizations_FullMethodName, how: "of it", takes: "read-x", denied: readTarget,
			call: listing("target"),
		},
		{
			rpc: setpointv1.OptimizationService_ListOptimizations_FullMethodName, how: "of another", takes: "list-x", shows: mentions,
			call: listing("zeta"),
		},
		{
			rpc: setpointv1.OptimizationService_GetOptimizationStatus_FullMethodName, how: "of it", takes: "read-x", denied: readTarget,
			call: status("target"),
		},
		{
			rpc: setpointv1.OptimizationService_GetOptimizationStatus_FullMethodName, how: "of another", takes: "list-x", shows: mentions,
			call: status("zeta"),
		},
	}
	for i := range rows {
		rows[i].prepare, rows[i].shares, rows[i].lost = startedByAnother, "optimization", setpointv1.ErrorReason_OPTIMIZATION_NOT_FOUND
	}
	return rows
}

func ruleRows() []accessRow {
	adding := func(variable string) func(*accessCell) (proto.Message, error) {
		return func(c *accessCell) (proto.Message, error) {
			return c.as.Access.AddAccessRule(c.caller, &setpointv1.AddAccessRuleRequest{
				SessionId: c.id, Variable: variable, Rule: spec("user:unknown"),
			})
		}
	}
	added := func(ofX bool) func(*accessCell) {
		return func(c *accessCell) { c.rule = c.addRule(kindRule{AccessRuleSpec: spec("user:unknown"), ofX: ofX}) }
	}
	removing := func(c *accessCell) (proto.Message, error) {
		return c.as.Access.RemoveAccessRule(c.caller, &setpointv1.RemoveAccessRuleRequest{
			SessionId: c.id, RuleId: c.rule.GetRuleId(),
		})
	}
	listing := func(variable string) func(*accessCell) (proto.Message, error) {
		return func(c *accessCell) (proto.Message, error) {
			return c.as.Access.ListAccessRules(c.caller, &setpointv1.ListAccessRulesRequest{SessionId: c.id, Variable: variable})
		}
	}
	add, remove := setpointv1.AccessService_AddAccessRule_FullMethodName, setpointv1.AccessService_RemoveAccessRule_FullMethodName
	list := setpointv1.AccessService_ListAccessRules_FullMethodName
	return []accessRow{
		{
			rpc: setpointv1.AccessService_SetVariablePermissions_FullMethodName, takes: "admin-x", denied: adminTarget,
			call: func(c *accessCell) (proto.Message, error) {
				return c.as.Access.SetVariablePermissions(c.caller, &setpointv1.SetVariablePermissionsRequest{
					SessionId: c.id, Variable: "target", Rules: []*setpointv1.AccessRuleSpec{spec("user:unknown")},
				})
			},
		},
		{rpc: add, how: "for it", takes: "admin-x", denied: adminTarget, call: adding("target")},
		{rpc: add, how: "for all", takes: "admin-all", denied: adminAll, call: adding("")},
		{
			rpc: remove, how: "of it", takes: "rule-of-x", denied: adminAll, lost: setpointv1.ErrorReason_RULE_NOT_FOUND,
			prepare: added(true), call: removing,
		},
		{rpc: remove, how: "of all", takes: "admin-all", denied: adminAll, prepare: added(false), call: removing},
		{rpc: list, how: "of it", takes: "admin-x", denied: adminTarget, prepare: added(true), call: listing("target")},
		{
			rpc: list, takes: "admin-list-x", prepare: added(true), call: listing(""),
			shows: func(c *accessCell, answer proto.Message) bool {
				for _, rule := range answer.(*setpointv1.ListAccessRulesResponse).GetRules() {
					if rule.GetRuleId() == c.rule.GetRuleId() {
						return true
					}
				}
				return false
			},
		},
	}
}

func checkRows() []accessRow {
	checking := func(subject string) func(*accessCell) (proto.Message, error) {
		return func(c *accessCell) (proto.Message, error) {
			return c.as.Access.CheckAccess(c.caller, &setpointv1.CheckAccessRequest{
				SessionId: c.id, Variable: "target", Permission: mayRead, Subject: subject,
			})
		}
	}
	checkingMany := func(subject string) func(*accessCell) (proto.Message, error) {
		return func(c *accessCell) (proto.Message, error) {
			return c.as.Access.BatchCheckAccess(c.caller, &setpointv1.BatchCheckAccessRequest{
				SessionId: c.id, Checks: []*setpointv1.AccessQuery{
					{Variable: "zeta", Permission: mayRead}, {Variable: "target", Permission: mayRead, Subject: subject},
				},
			})
		}
	}
	auditing := func(session func(*accessCell) string) func(*accessCell) (proto.Message, error) {
		return func(c *accessCell) (proto.Message, error) {
			return c.as.Access.ListAuditEvents(c.caller, &setpointv1.ListAuditEventsRequest{SessionId: session(c)})
		}
	}
	check, batch := setpointv1.AccessService_CheckAccess_FullMethodName, setpointv1.AccessService_BatchCheckAccess_FullMethodName
	audit := setpointv1.AccessService_ListAuditEvents_FullMethodName
	return []accessRow{
		{
			rpc: check, how: "of oneself", takes: "list-x", call: checking(""),
			shows: func(_ *accessCell, answer proto.Message) bool {
				return answer.(*setpointv1.CheckAccessResponse).GetAllowed()
			},
		},
		{
			rpc: batch, how: "of oneself", takes: "list-x", call: checkingMany(""),
			shows: func(_ *accessCell, answer proto.Message) bool {
				return answer.(*setpointv1.BatchCheckAccessResponse).GetResults()[1].GetAllowed()
			},
		},
		{rpc: check, how: "of another", takes: "admin-x", denied: adminTarget, call: checking("user:unknown")},
		{rpc: batch, how: "of another", takes: "admin-x", denied: adminTarget, call: checkingMany("user:unknown")},
		{
			rpc: audit, how: "of a session", takes: "admin-all", denied: adminAll,
			call: auditing(func(c *accessCell) string { return c.id }),
		},
		{rpc: audit, takes: "server", denied: adminAll, call: auditing(func(*accessCell) string { return "" })},
	}
}

func tokenRows() []accessRow {
	rows := []accessRow{
		{
			rpc: setpointv1.TokenService_CreateToken_FullMethodName,
			call: func(c *accessCell) (proto.Message, error) {
				return c.as.Tokens.CreateToken(c.caller, &setpointv1.CreateTokenRequest{Principal: "user:unknown", Description: c.id})
			},
		},
		{
			rpc: setpointv1.TokenService_ListTokens_FullMethodName,
			call: func(c *accessCell) (proto.Message, error) {
				return c.as.Tokens.ListTokens(c.caller, &setpointv1.ListTokensRequest{Principal: "user:unknown"})
			},
		},
		{
			rpc: setpointv1.TokenService_RevokeToken_FullMethodName,
			prepare: func(c *accessCell) {
				made, err := c.Tokens.CreateToken(c.ctx, &setpointv1.CreateTokenRequest{Principal: "user:unknown", Description: c.id})
				c.must(err)
				c.revoked = made.GetToken()
			},
			call: func(c *accessCell) (proto.Message, error) {
				return c.as.Tokens.RevokeToken(c.caller, &setpointv1.RevokeTokenRequest{TokenId: c.revoked.GetTokenId()})
			},
		},
	}
	for i := range rows {
		rows[i].takes, rows[i].denied = "server", adminAll
	}
	return rows
}
