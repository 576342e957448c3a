package service_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// What a caller may not read is nowhere in what the caller gets: not its name, not its id, not its value.

// hiddenFrom are those from whom the variables zq_… are hidden, by the rules that they have besides. With "each" a rule is for every
// other variable; else it is for the session.
var hiddenFrom = map[string]struct {
	permissions []setpointv1.Permission
	each        bool
}{
	"user:blind":   {permissions: []setpointv1.Permission{mayWrite, mayObserve, mayOptimize}},
	"user:partial": {permissions: []setpointv1.Permission{mayWrite, mayObserve, mayOptimize}, each: true},
	"user:manager": {permissions: []setpointv1.Permission{mayAdmin}},
	"user:passer":  {}, // The variable `open` is public.
}

// secretValue is the value of zq_plain.
const secretValue = 918273645

// hiddenWorld is a session "s" with variables that are hidden from somebody, and tied to others in all ways that there are.
type hiddenWorld struct {
	*bundle
	caller string
	as     *client.Client
	// ids are the variables', by name.
	ids map[string]string
	// before is a revision before anything was changed, middle one since which zq_plain was not.
	before, middle int64
	// foreign is an optimization of somebody else, own is one of the caller: of a variable that is not hidden. started is the id of
	// one that the caller started while all its variables could be read.
	foreign, own *setpointv1.Optimization
	started      string
	// found is where hidden things were found in what the caller got since the last look.
	found []string
	// called are the methods that the caller has called.
	called map[string]bool
}

func newHiddenWorld(t *testing.T, caller string) *hiddenWorld {
	t.Helper()
	h := &hiddenWorld{bundle: setup(t), caller: caller, ids: map[string]string{}, called: map[string]bool{}}
	options := []client.Option{client.WithDialOptions(
		grpc.WithChainUnaryInterceptor(h.listen), grpc.WithChainStreamInterceptor(h.listenToStream),
	)}
	if caller != "" {
		options = append(options, client.WithPrincipal(caller))
	}
	h.as = h.dial(options...)
	h.makeVariables()
	h.makeOptimizations()
	h.hideVariables()
	h.change()
	h.found = nil
	return h
}

// made notes a variable that was made.
func (h *hiddenWorld) made(v *setpointv1.Variable) { h.ids[v.GetName()] = v.GetVariableId() }

func (h *hiddenWorld) makeVariables() {
	h.made(h.register(&setpointv1.RegisterVariableRequest{
		Name: "open", Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Value: client.Integer(0),
		AccessMode: setpointv1.AccessMode_ACCESS_MODE_PUBLIC,
	}))
	for _, name := range []string{
		"a", "b", "base", "leased", "passed", "own", "spare", "zq_plain", "zq_gone", "zq_late", "zq_leased", "zq_passed", "zq_own",
	} {
		h.made(h.integer(name))
	}
	h.set("zq_plain", client.Integer(secretValue))
	h.set("b", client.Integer(5))
	fallback := func(r *setpointv1.RegisterVariableRequest) { r.Value = client.Integer(1) }
	strict := func(r *setpointv1.RegisterVariableRequest) {
		r.Strict, r.Constraints = true, &setpointv1.Constraints{Max: ptr(1e6)}
	}
	// Hidden ones that follow others.
	h.made(h.derived("zq_derived", "a * 2"))
	h.made(h.dependent("zq_stale", "a"))
	h.made(h.derived("zq_strict", "a + 0", strict))
	h.made(h.dependent("zq_mid", "a"))
	h.made(h.dependent("zq_on_base", "base"))
	h.made(h.derived("zq_of_base", "base + 1"))
	h.made(h.derived("zq_of_own", "own * 3"))
	// Others that follow hidden ones.
	h.made(h.derived("seen_derived", "a + 2 * zq_plain"))
	h.made(h.derived("seen_broken", "b / (zq_plain - zq_plain)", fallback))
	h.made(h.dependent("seen_stale", "zq_plain"))
	h.made(h.derived("seen_orphan", "b + zq_gone"))
	h.made(h.derived("seen_torn", "10 / b + zq_late"))
	h.made(h.dependent("top", "zq_mid"))
	h.before = h.revision()
}

func (h *hiddenWorld) makeOptimizations() {
	objective := func(r *setpointv1.StartOptimizationRequest) { r.Objective = &setpointv1.Objective{Metric: "m"} }
	tried := func(name string) func(*setpointv1.ReportProgressRequest) {
		return func(r *setpointv1.ReportProgressRequest) {
			r.Values, r.Metrics = map[string]*setpointv1.Value{name: client.Integer(3)}, map[string]float64{"m": 1}
			r.Note, r.Checkpoint, r.Apply = "of "+name, []byte("checkpoint of "+name), true
		}
	}
	h.foreign = h.start([]string{"leased", "zq_leased"}, objective)
	h.report(h.foreign, tried("zq_leased"))
	h.start([]string{"zq_leased"}, waits)
	passed := h.start([]string{"passed", "zq_passed"}, objective)
	h.report(passed, tried("zq_passed"))
	h.stop(passed)
	if h.caller == "user:passer" {
		return
	}
	if h.caller != "" {
		h.allow("s", h.caller)
	}
	own, err := h.as.Optimizations.StartOptimization(h.ctx, &setpointv1.StartOptimizationRequest{
		SessionId: "s", Variables: []string{"spare", "zq_own"},
	})
	if err != nil {
		h.t.Fatal(err)
	}
	h.started = own.GetOptimizationId()
	h.own, err = h.as.Optimizations.StartOptimization(h.ctx, &setpointv1.StartOptimizationRequest{
		SessionId: "s", Variables: []string{"own"}, Objective: &setpointv1.Objective{Metric: "m"},
	})
	if err != nil {
		h.t.Fatal(err)
	}
	h.exec(`delete from setpoint.access_rules where session_id = 's'`)
}

// hideVariables gives the caller the rules that it has.
func (h *hiddenWorld) hideVariables() {
	if h.caller == "" {
		return
	}
	rules := hiddenFrom[h.caller]
	if len(rules.permissions) > 0 && !rules.each {
		h.permit("", spec(h.caller, to(rules.permissions...)))
	}
	for name := range h.ids {
		switch hidden := strings.HasPrefix(name, "zq_"); {
		case hidden && !rules.each && len(rules.permissions) > 0:
			h.permit(name, spec(h.caller, deny))
		case !hidden && rules.each:
			h.permit(name, spec(h.caller, to(rules.permissions...)))
		}
	}
}

// change changes what there is, so that there is a history of it.
func (h *hiddenWorld) change() {
	h.set("a", client.Integer(3))
	h.set("zq_plain", client.Integer(secretValue+1))
	h.set("zq_plain", client.Integer(secretValue))
	h.middle = h.revision()
	h.set("b", client.Integer(0)) // seen_torn cannot be computed from now on, for a reason that everybody may see.
	for _, name := range []string{"zq_gone", "zq_late"} {
		if _, err := h.Variables.DeleteVariable(h.ctx, &setpointv1.DeleteVariableRequest{
			SessionId: "s", Variable: name, Cascade: true,
		}); err != nil {
			h.t.Fatal(err)
		}
	}
	h.made(h.integer("since"))
	h.made(h.integer("zq_since"))
	if rules := hiddenFrom[h.caller]; h.caller != "" && len(rules.permissions) > 0 {
		if rules.each {
			h.permit("since", spec(h.caller, to(rules.permissions...)))
		} else {
			h.permit("zq_since", spec(h.caller, deny))
		}
	}
}

// secrets are the texts that are to be nowhere.
func (h *hiddenWorld) secrets() []string {
	secrets := []string{"zq_", strconv.Itoa(secretValue), strconv.Itoa(secretValue + 1)}
	for name, id := range h.ids {
		if strings.HasPrefix(name, "zq_") {
			secrets = append(secrets, id)
		}
	}
	return secrets
}

func (h *hiddenWorld) listen(
	ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption,
) error {
	err := invoke(ctx, method, req, reply, cc, opts...)
	h.called[method] = true
	h.look(method, req.(proto.Message), reply.(proto.Message), err)
	return err
}

func (h *hiddenWorld) listenToStream(
	ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, stream grpc.Streamer, opts ...grpc.CallOption,
) (grpc.ClientStream, error) {
	h.called[method] = true
	s, err := stream(ctx, desc, cc, method, opts...)
	return &heardStream{ClientStream: s, h: h, method: method}, err
}

// heardStream is a stream whose messages are looked through.
type heardStream struct {
	grpc.ClientStream
	h      *hiddenWorld
	method string
}

func (s *heardStream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	s.h.look(s.method, nil, m.(proto.Message), err)
	return err
}

// look looks through what a call came to for what is hidden, but for what the request named itself.
func (h *hiddenWorld) look(method string, req, answer proto.Message, err error) {
	said := strings.Join(texts(req), "\n")
	got := texts(answer)
	if err != nil {
		got = texts(status.Convert(err).Proto())
		for _, detail := range status.Convert(err).Details() {
			got = append(got, texts(detail.(proto.Message))...)
		}
	}
	for _, secret := range h.secrets() {
		for _, text := range got {
			if strings.Contains(text, secret) && !strings.Contains(said, secret) {
				h.found = append(h.found, fmt.Sprintf("%s: %s in %q", method, secret, text))
			}
		}
	}
}

// texts are all texts, bytes and integers in a message, and what is in its page tokens.
func texts(m proto.Message) []string {
	if m == nil || !m.ProtoReflect().IsValid() {
		return nil
	}
	var out []string
	var add func(v protoreflect.Value)
	message := func(m protoreflect.Message) {
		m.Range(func(field protoreflect.FieldDescriptor, v protoreflect.Value) bool {
			switch {
			case field.IsMap():
				v.Map().Range(func(key protoreflect.MapKey, v protoreflect.Value) bool {
					out = append(out, key.String())
					add(v)
					return true
				})
			case field.IsList():
				for i := range v.List().Len() {
					add(v.List().Get(i))
				}
			default:
				add(v)
			}
			if field.Name() == "next_page_token" {
				token, _ := base64.RawURLEncoding.DecodeString(v.String())
				out = append(out, string(token))
			}
			return true
		})
	}
	add = func(v protoreflect.Value) {
		switch v := v.Interface().(type) {
		case protoreflect.Message:
			message(v)
		case []byte:
			out = append(out, string(v))
		default:
			out = append(out, fmt.Sprint(v))
		}
	}
	message(m.ProtoReflect())
	return out
}

// hiddenStep is a call of somebody from whom something is hidden.
type hiddenStep struct {
	what string
	// tells: to who may see everything, it tells of what is hidden.
	tells bool
	// blind is what it comes to for user:blind, who may do everything but administer with what is not hidden; empty is OK.
	blind setpointv1.ErrorReason
	call  func(h *hiddenWorld) (proto.Message, error)
	// check looks at what user:blind got.
	check func(h *hiddenWorld, answer proto.Message, err error)
}

func TestHiddenIsNowhere(t *testing.T) {
	t.Parallel()
	steps := slices.Concat(stepsOfReads(), stepsOfHistory(), stepsOfGraph(), stepsOfOptimizations(), stepsOfAccess(), stepsOfWrites())
	for _, caller := range []string{"", "user:blind", "user:partial", "user:manager", "user:passer"} {
		t.Run("as "+caller, func(t *testing.T) {
			t.Parallel()
			h := newHiddenWorld(t, caller)
			for _, s := range steps {
				h.found = nil
				answer, err := s.call(h)
				switch {
				case caller != "" && len(h.found) > 0:
					t.Errorf("%s shows %s", s.what, strings.Join(h.found, "\n"))
				case caller == "" && s.tells && len(h.found) == 0:
					t.Errorf("%s shows nothing hidden, to anybody: %v, %v", s.what, answer, err)
				}
				if caller == "user:blind" {
					s.wantOutcome(h, answer, err)
				}
			}
			if caller != "user:blind" {
				return
			}
			for _, file := range apiFiles() {
				for i := range file.Services().Len() {
					service := file.Services().Get(i)
					for j := range service.Methods().Len() {
						if path := fmt.Sprintf("/%s/%s", service.FullName(), service.Methods().Get(j).Name()); !h.called[path] {
							t.Errorf("%s is not called", path)
						}
					}
				}
			}
		})
	}
}

// wantOutcome wants what the call is to come to for user:blind.
func (s hiddenStep) wantOutcome(h *hiddenWorld, answer proto.Message, err error) {
	h.t.Helper()
	switch {
	case s.blind == 0 && err != nil:
		h.t.Errorf("%s: %v", s.what, err)
	case s.blind != 0:
		if e, ok := errors.AsType[*client.Error](err); !ok || e.Reason != s.blind {
			h.t.Errorf("%s: %v, %v, want %s", s.what, answer, err, s.blind)
		}
	}
	if s.check != nil {
		s.check(h, answer, err)
	}
}
