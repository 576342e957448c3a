package service_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// A variable that the caller may not read is as one that there is not.

// naming is a request that names a variable.
type naming struct {
	// method and field are where the name is; how tells several such requests apart.
	method, field, how string
	call               func(h *hiddenWorld, identifier string) (proto.Message, error)
}

// Whatever a request names: the whole answer for a variable that the caller may not read is that for one that there is not.
func TestUnreadableIsAbsent(t *testing.T) {
	t.Parallel()
	all := slices.Concat(namingsOfVariables(), namingsOfWrites(), namingsOfGraph(), namingsOfOptimizations(), namingsOfAccess())
	covered := map[string]bool{}
	for _, n := range all {
		covered[n.method+" "+n.field] = true
	}
	for _, field := range namingFields() {
		if !covered[field] {
			t.Errorf("no request names a variable in %s", field)
		}
	}
	for name := range hiddenFrom {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHiddenWorld(t, name)
			revision := h.revision()
			for _, n := range all {
				for kind, pair := range map[string][2]string{
					"name": {"zq_plain", "zq_nowhere"}, "id": {h.ids["zq_plain"], madeUp(h.ids["zq_plain"])},
				} {
					hidden, absent := h.outcome(n, pair[0]), h.outcome(n, pair[1])
					if hidden != absent {
						t.Errorf("%s %s %s by %s: hidden\n%s\nabsent\n%s", n.method, n.field, n.how, kind, hidden, absent)
					}
				}
			}
			if h.revision() != revision {
				t.Errorf("the session is at revision %d, was at %d", h.revision(), revision)
			}
		})
	}
}

// madeUp is an id that nothing has, and that looks like another one.
func madeUp(id string) string {
	last := "0"
	if strings.HasSuffix(id, last) {
		last = "1"
	}
	return id[:len(id)-1] + last
}

// outcome is all that the caller sees of what a request came to, without the identifier that it named.
func (h *hiddenWorld) outcome(n naming, identifier string) string {
	h.t.Helper()
	answer, err := n.call(h, identifier)
	if err != nil {
		answer = status.Convert(err).Proto()
	}
	text := protojson.MarshalOptions{}.Format(answer)
	// The whitespace of this format differs from one time to the next, on purpose.
	return strings.ReplaceAll(strings.ReplaceAll(text, " ", ""), identifier, "IT")
}

// namingFields are the fields of all requests that may name a variable that there is, each behind its method.
func namingFields() []string {
	names := []protoreflect.Name{"variable", "variables", "dependent", "dependency", "depends_on", "expression"}
	var fields []string
	var walk func(method string, path string, message protoreflect.MessageDescriptor)
	walk = func(method, path string, message protoreflect.MessageDescriptor) {
		for i := range message.Fields().Len() {
			field := message.Fields().Get(i)
			at := strings.TrimPrefix(path+"."+string(field.Name()), ".")
			switch {
			case field.IsMap():
				if field.Name() == "values" {
					fields = append(fields, method+" "+at)
				}
			case field.Kind() == protoreflect.StringKind && slices.Contains(names, field.Name()):
				fields = append(fields, method+" "+at)
			case field.Kind() == protoreflect.MessageKind && field.Message().ParentFile().Package() == "setpoint.v1" &&
				field.Message().Name() != "Value":
				walk(method, at, field.Message())
			}
		}
	}
	for _, file := range apiFiles() {
		for i := range file.Services().Len() {
			for j := range file.Services().Get(i).Methods().Len() {
				method := file.Services().Get(i).Methods().Get(j)
				walk(string(method.Name()), "", method.Input())
			}
		}
	}
	return fields
}

func namingsOfVariables() []naming {
	return []naming{
		{"GetVariable", "variable", "", func(h *hiddenWorld, it string) (proto.Message, error) {
			return h.as.Variables.GetVariable(h.ctx, &setpointv1.GetVariableRequest{SessionId: "s", Variable: it})
		}},
		{"BatchGetVariables", "variables", "", func(h *hiddenWorld, it string) (proto.Message, error) {
			return h.as.Variables.BatchGetVariables(h.ctx, &setpointv1.BatchGetVariablesRequest{
				SessionId: "s", Variables: []string{"open", it, "zq_other"},
			})
		}},
		{"ListHistory", "variable", "", func(h *hiddenWorld, it string) (proto.Message, error) {
			return h.as.History.ListHistory(h.ctx, &setpointv1.ListHistoryRequest{SessionId: "s", Variable: it})
		}},
		{"ListHistory", "variable", "its changes", func(h *hiddenWorld, it string) (proto.Message, error) {
			return h.as.History.ListHistory(h.ctx, &setpointv1.ListHistoryRequest{
				SessionId: "s", Variable: it, Changes: []setpointv1.HistoryChange{setpointv1.HistoryChange_HISTORY_CHANGE_SET},
			})
		}},
		{"GetVariableVersion", "variable", "", func(h *hiddenWorld, it string) (proto.Message, error) {
			return h.as.History.GetVariableVersion(h.ctx, &setpointv1.GetVariableVersionRequest{SessionId: "s", Variable: it})
		}},
		{"GetVariableVersion", "variable", "to come", func(h *hiddenWorld, it string) (proto.Message, error) {
			return h.as.History.GetVariableVersion(h.ctx, &setpointv1.GetVariableVersionRequest{SessionId: "s", Variable: it, Version: 99})
		}},
		{"RegisterVariable", "depends_on", "", registering(func(r *setpointv1.RegisterVariableRequest, it string) {
			r.DependsOn = []string{"a", it}
		})},
		{"RegisterVariable", "expression", "", registering(func(r *setpointv1.RegisterVariableRequest, it string) {
			r.Expression = "a + " + it
		})},
		{"RegisterVariable", "expression", "quoted", registering(func(r *setpointv1.RegisterVariableRequest, it string) {
			r.Expression = fmt.Sprintf("a + deps[%q]", it)
		})},
		{"RegisterVariable", "expression", "strict", registering(func(r *setpointv1.RegisterVariableRequest, it string) {
			r.Expression, r.Strict, r.DependsOn = "a + "+it, true, []string{it}
		})},
		{"BatchRegisterVariables", "registrations.depends_on", "", registeringAll(false, func(r *setpointv1.VariableRegistration, it string) {
			r.DependsOn = []string{it}
		})},
		{"BatchRegisterVariables", "registrations.depends_on", "all or none", registeringAll(true,
			func(r *setpointv1.VariableRegistration, it string) { r.DependsOn = []string{it} })},
		{"BatchRegisterVariables", "registrations.expression", "", registeringAll(false, func(r *setpointv1.VariableRegistration, it string) {
			r.Expression = "a + " + it
		})},
	}
}

// registering asks to add a variable that the change has name another one.
func registering(change func(r *setpointv1.RegisterVariableRequest, it string)) func(*hiddenWorld, string) (proto.Message, error) {
	return func(h *hiddenWorld, it string) (proto.Message, error) {
		req := &setpointv1.RegisterVariableRequest{
			SessionId: "s", Name: "new", Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Value: client.Integer(1),
		}
		change(req, it)
		return h.as.Variables.RegisterVariable(h.ctx, req)
	}
}

func registeringAll(atomic bool, change func(r *setpointv1.VariableRegistration, it string)) func(*hiddenWorld, string) (proto.Message, error) {
	return func(h *hiddenWorld, it string) (proto.Message, error) {
		r := &setpointv1.VariableRegistration{
			Name: "new", Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Value: client.Integer(1),
		}
		change(r, it)
		return h.as.Variables.BatchRegisterVariables(h.ctx, &setpointv1.BatchRegisterVariablesRequest{
			SessionId: "s", Atomic: atomic, Registrations: []*setpointv1.VariableRegistration{r},
		})
	}
}

// setting asks to set a variable; change may alter the request.
func setting(change func(*setpointv1.SetVariableRequest)) func(*hiddenWorld, string) (proto.Message, error) {
	return func(h *hiddenWorld, it string) (proto.Message, error) {
		req := &setpointv1.SetVariableRequest{SessionId: "s", Variable: it, Value: client.Integer(1)}
		change(req)
		return h.as.Variables.SetVariable(h.ctx, req)
	}
}

func settingAll(change func(r *setpointv1.BatchSetVariablesRequest)) func(*hiddenWorld, string) (proto.Message, error) {
	return func(h *hiddenWorld, it string) (proto.Message, error) {
		req := &setpointv1.BatchSetVariablesRequest{SessionId: "s", Writes: []*setpointv1.VariableWrite{
			{Variable: it, Value: client.Integer(1)}, {Variable: "zq_other", Value: client.Integer(1)},
		}}
		change(req)
		return h.as.Variables.BatchSetVariables(h.ctx, req)
	}
}

func updating(change func(r *setpointv1.UpdateVariableRequest, it string)) func(*hiddenWorld, string) (proto.Message, error) {
	return func(h *hiddenWorld, it string) (proto.Message, error) {
		req := &setpointv1.UpdateVariableRequest{SessionId: "s", Variable: it}
		change(req, it)
		return h.as.Variables.UpdateVariable(h.ctx, req)
	}
}

func namingsOfWrites() []naming {
	return []naming{
		{"SetVariable", "variable", "", setting(func(*setpointv1.SetVariableRequest) {})},
		{"SetVariable", "variable", "of another type", setting(func(r *setpointv1.SetVariableRequest) { r.Value = client.String("no") })},
		{"SetVariable", "variable", "tried", setting(func(r *setpointv1.SetVariableRequest) { r.DryRun = true })},
		{"SetVariable", "variable", "exactly once", setting(func(r *setpointv1.SetVariableRequest) { r.RequestId = "once" })},
		{"SetVariable", "variable", "of a version", setting(func(r *setpointv1.SetVariableRequest) { r.ExpectedVersion = ptr(int64(77)) })},
		{"SetVariable", "variable", "under a lease", setting(func(r *setpointv1.SetVariableRequest) {
			r.Lease = &setpointv1.Lease{OptimizationId: "opt_" + strings.Repeat("0", 26), FencingToken: 1}
		})},
		{"BatchSetVariables", "writes.variable", "", settingAll(func(*setpointv1.BatchSetVariablesRequest) {})},
		{"BatchSetVariables", "writes.variable", "all or none", settingAll(func(r *setpointv1.BatchSetVariablesRequest) { r.Atomic = true })},
		{"BatchSetVariables", "writes.variable", "tried", settingAll(func(r *setpointv1.BatchSetVariablesRequest) { r.DryRun = true })},
		{"BatchSetVariables", "writes.variable", "exactly once", settingAll(func(r *setpointv1.BatchSetVariablesRequest) {
			r.RequestId, r.Atomic = "batch", true
		})},
		{"UpdateVariable", "variable", "", updating(func(r *setpointv1.UpdateVariableRequest, _ string) { r.HistoryLimit = ptr(int64(1)) })},
		{"UpdateVariable", "variable", "of the access mode", updating(func(r *setpointv1.UpdateVariableRequest, _ string) {
			r.AccessMode = setpointv1.AccessMode_ACCESS_MODE_PUBLIC
		})},
		{"UpdateVariable", "depends_on", "", updating(func(r *setpointv1.UpdateVariableRequest, it string) {
			r.Variable, r.DependsOn = "b", []string{it}
		})},
		{"UpdateVariable", "depends_on", "as it does", updating(func(r *setpointv1.UpdateVariableRequest, it string) {
			r.Variable, r.DependsOn = "seen_stale", []string{it}
		})},
		{"UpdateVariable", "depends_on", "as its expression does", updating(func(r *setpointv1.UpdateVariableRequest, it string) {
			r.Variable, r.DependsOn = "seen_derived", []string{it}
		})},
		{"UpdateVariable", "expression", "", updating(func(r *setpointv1.UpdateVariableRequest, it string) {
			r.Variable, r.Expression = "b", ptr("a + "+it)
		})},
		{"UpdateVariable", "expression", "as it has", updating(func(r *setpointv1.UpdateVariableRequest, it string) {
			r.Variable, r.Expression = "seen_derived", ptr("a - "+it)
		})},
		{"UpdateVariable", "expression", "of what it depends on", updating(func(r *setpointv1.UpdateVariableRequest, it string) {
			r.Variable, r.Expression = "seen_stale", ptr("a + "+it)
		})},
		{"UpdateVariable", "expression", "quoted", updating(func(r *setpointv1.UpdateVariableRequest, it string) {
			r.Variable, r.Expression = "seen_derived", ptr(fmt.Sprintf("a - deps[%q]", it))
		})},
		{"DeleteVariable", "variable", "", func(h *hiddenWorld, it string) (proto.Message, error) {
			return h.as.Variables.DeleteVariable(h.ctx, &setpointv1.DeleteVariableRequest{SessionId: "s", Variable: it})
		}},
		{"DeleteVariable", "variable", "exactly once", func(h *hiddenWorld, it string) (proto.Message, error) {
			return h.as.Variables.DeleteVariable(h.ctx, &setpointv1.DeleteVariableRequest{
				SessionId: "s", Variable: it, Cascade: true, RequestId: "gone",
			})
		}},
		{"RollbackVariable", "variable", "", func(h *hiddenWorld, it string) (proto.Message, error) {
			return h.as.History.RollbackVariable(h.ctx, &setpointv1.RollbackVariableRequest{SessionId: "s", Variable: it})
		}},
	}
}

func namingsOfGraph() []naming {
	adding := func(dependent, dependency func(it string) string) func(*hiddenWorld, string) (proto.Message, error) {
		return func(h *hiddenWorld, it string) (proto.Message, error) {
			return h.as.Dependencies.AddDependency(h.ctx, &setpointv1.AddDependencyRequest{
				SessionId: "s", Dependent: dependent(it), Dependency: dependency(it),
			})
		}
	}
	removing := func(dependent, dependency func(it string) string) func(*hiddenWorld, string) (proto.Message, error) {
		return func(h *hiddenWorld, it string) (proto.Message, error) {
			return h.as.Dependencies.RemoveDependency(h.ctx, &setpointv1.RemoveDependencyRequest{
				SessionId: "s", Dependent: dependent(it), Dependency: dependency(it),
			})
		}
	}
	it := func(it string) string { return it }
	named := func(name string) func(string) string { return func(string) string { return name } }
	return []naming{
		{"AddDependency", "dependent", "", adding(it, named("a"))},
		{"AddDependency", "dependent", "of itself", adding(it, it)},
		{"AddDependency", "dependency", "", adding(named("b"), it)},
		{"AddDependency", "dependency", "that there is", adding(named("seen_stale"), it)},
		{"RemoveDependency", "dependent", "", removing(it, named("a"))},
		{"RemoveDependency", "dependency", "", removing(named("b"), it)},
		{"RemoveDependency", "dependency", "that there is", removing(named("seen_stale"), it)},
		{"ListDependencies", "variable", "", func(h *hiddenWorld, it string) (proto.Message, error) {
			return h.as.Dependencies.ListDependencies(h.ctx, &setpointv1.ListDependenciesRequest{SessionId: "s", Variable: it})
		}},
		{"ListDependents", "variable", "", func(h *hiddenWorld, it string) (proto.Message, error) {
			return h.as.Dependencies.ListDependents(h.ctx, &setpointv1.ListDependentsRequest{
				SessionId: "s", Variable: it, Transitive: true,
			})
		}},
		{"GetUpdateOrder", "variable", "", func(h *hiddenWorld, it string) (proto.Message, error) {
			return h.as.Dependencies.GetUpdateOrder(h.ctx, &setpointv1.GetUpdateOrderRequest{SessionId: "s", Variable: it})
		}},
	}
}

func namingsOfOptimizations() []naming {
	starting := func(change func(r *setpointv1.StartOptimizationRequest)) func(*hiddenWorld, string) (proto.Message, error) {
		return func(h *hiddenWorld, it string) (proto.Message, error) {
			req := &setpointv1.StartOptimizationRequest{SessionId: "s", Variables: []string{it}}
			change(req)
			return h.as.Optimizations.StartOptimization(h.ctx, req)
		}
	}
	return []naming{
		{"StartOptimization", "variables", "", starting(func(*setpointv1.StartOptimizationRequest) {})},
		{"StartOptimization", "variables", "beside others", starting(func(r *setpointv1.StartOptimizationRequest) {
			r.Variables = []string{"a", r.Variables[0]}
		})},
		{"StartOptimization", "variables", "in the queue, exactly once", starting(func(r *setpointv1.StartOptimizationRequest) {
			r.Conflict, r.RequestId = setpointv1.ConflictStrategy_CONFLICT_STRATEGY_WAIT, "start"
		})},
		{"ReportProgress", "values", "", func(h *hiddenWorld, it string) (proto.Message, error) {
			return h.as.Optimizations.ReportProgress(h.ctx, &setpointv1.ReportProgressRequest{
				SessionId: "s", OptimizationId: h.own.GetOptimizationId(), FencingToken: h.own.GetFencingToken(),
				Values: map[string]*setpointv1.Value{it: client.Integer(1)},
			})
		}},
		{"ListOptimizations", "variable", "", func(h *hiddenWorld, it string) (proto.Message, error) {
			return h.as.Optimizations.ListOptimizations(h.ctx, &setpointv1.ListOptimizationsRequest{SessionId: "s", Variable: it})
		}},
		{"GetOptimizationStatus", "variable", "", func(h *hiddenWorld, it string) (proto.Message, error) {
			return h.as.Optimizations.GetOptimizationStatus(h.ctx, &setpointv1.GetOptimizationStatusRequest{SessionId: "s", Variable: it})
		}},
	}
}

func namingsOfAccess() []naming {
	checking := func(subject string) func(*hiddenWorld, string) (proto.Message, error) {
		return func(h *hiddenWorld, it string) (proto.Message, error) {
			return h.as.Access.CheckAccess(h.ctx, &setpointv1.CheckAccessRequest{
				SessionId: "s", Variable: it, Permission: mayRead, Subject: subject,
			})
		}
	}
	checkingMany := func(subject string) func(*hiddenWorld, string) (proto.Message, error) {
		return func(h *hiddenWorld, it string) (proto.Message, error) {
			return h.as.Access.BatchCheckAccess(h.ctx, &setpointv1.BatchCheckAccessRequest{
				SessionId: "s", Checks: []*setpointv1.AccessQuery{{Variable: it, Permission: mayWrite, Subject: subject}},
			})
		}
	}
	return []naming{
		{"SetVariablePermissions", "variable", "", func(h *hiddenWorld, it string) (proto.Message, error) {
			return h.as.Access.SetVariablePermissions(h.ctx, &setpointv1.SetVariablePermissionsRequest{SessionId: "s", Variable: it})
		}},
		{"AddAccessRule", "variable", "", func(h *hiddenWorld, it string) (proto.Message, error) {
			return h.as.Access.AddAccessRule(h.ctx, &setpointv1.AddAccessRuleRequest{SessionId: "s", Variable: it, Rule: spec("user:unknown")})
		}},
		{"ListAccessRules", "variable", "", func(h *hiddenWorld, it string) (proto.Message, error) {
			return h.as.Access.ListAccessRules(h.ctx, &setpointv1.ListAccessRulesRequest{SessionId: "s", Variable: it})
		}},
		{"CheckAccess", "variable", "of oneself", checking("")},
		{"CheckAccess", "variable", "of another", checking("user:unknown")},
		{"BatchCheckAccess", "checks.variable", "of oneself", checkingMany("")},
		{"BatchCheckAccess", "checks.variable", "of another", checkingMany("user:unknown")},
		{"ListAuditEvents", "variable", "", func(h *hiddenWorld, it string) (proto.Message, error) {
			return h.as.Access.ListAuditEvents(h.ctx, &setpointv1.ListAuditEventsRequest{
				SessionId: "s", Variable: it, Kinds: []setpointv1.AuditEventKind{setpointv1.AuditEventKind_AUDIT_EVENT_KIND_RULE_ADDED},
			})
		}},
	}
}

// An optimization of whose variables the caller may not read all is as one that there is not.
func TestUnreadableOptimizationIsAbsent(t *testing.T) {
	t.Parallel()
	calls := map[string]func(h *hiddenWorld, id string) (proto.Message, error){
		"get": func(h *hiddenWorld, id string) (proto.Message, error) {
			return h.as.Optimizations.GetOptimization(h.ctx, &setpointv1.GetOptimizationRequest{SessionId: "s", OptimizationId: id})
		},
		"trials": func(h *hiddenWorld, id string) (proto.Message, error) {
			return h.as.Optimizations.ListTrials(h.ctx, &setpointv1.ListTrialsRequest{SessionId: "s", OptimizationId: id})
		},
		"renew": func(h *hiddenWorld, id string) (proto.Message, error) {
			return h.as.Optimizations.RenewOptimization(h.ctx, &setpointv1.RenewOptimizationRequest{
				SessionId: "s", OptimizationId: id, FencingToken: 1,
			})
		},
		"report": func(h *hiddenWorld, id string) (proto.Message, error) {
			return h.as.Optimizations.ReportProgress(h.ctx, &setpointv1.ReportProgressRequest{
				SessionId: "s", OptimizationId: id, FencingToken: 1,
			})
		},
		"stop": func(h *hiddenWorld, id string) (proto.Message, error) {
			return h.as.Optimizations.StopOptimization(h.ctx, &setpointv1.StopOptimizationRequest{SessionId: "s", OptimizationId: id})
		},
		"stop by force": func(h *hiddenWorld, id string) (proto.Message, error) {
			return h.as.Optimizations.StopOptimization(h.ctx, &setpointv1.StopOptimizationRequest{
				SessionId: "s", OptimizationId: id, Force: true, Reason: "why not", RequestId: "stop",
			})
		},
		"await": func(h *hiddenWorld, id string) (proto.Message, error) {
			stream, err := h.as.Optimizations.AwaitOptimization(h.ctx, &setpointv1.AwaitOptimizationRequest{
				SessionId: "s", OptimizationId: id,
			})
			if err != nil {
				return nil, err
			}
			return stream.Recv()
		},
	}
	for name := range hiddenFrom {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHiddenWorld(t, name)
			for _, id := range []string{h.foreign.GetOptimizationId(), h.started} {
				if id == "" {
					continue // Who could never have started one.
				}
				for call, do := range calls {
					n := naming{method: call, call: do}
					if hidden, absent := h.outcome(n, id), h.outcome(n, madeUp(id)); hidden != absent {
						t.Errorf("%s: hidden\n%s\nabsent\n%s", call, hidden, absent)
					}
				}
			}
		})
	}
}
