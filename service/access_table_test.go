package service_test

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/server"
	"github.com/setpointdb/setpoint/internal/testkit"
)

// The table of access: what every RPC comes to for every kind of caller. It is over the descriptors of the services: an RPC without
// a row fails the test.

// accessTable says what calls come to that take something, for each kind of caller:
//
//	ok    it is done, and what is listed shows the variable (the session, the rule) that the row is about
//	less  it is done, and shows nothing of that
//	deny  ACCESS_DENIED
//	gone  SESSION_NOT_FOUND
//	lost  as what there is not: OPTIMIZATION_NOT_FOUND, RULE_NOT_FOUND
//
// Lines that are about the variable name it x; y is another one; all is the session as a whole.
const accessTable = `
takes          owner session reader writer observer optimizer admin stranger root expired outdone blind member narrowed elsewhere rootread protected public
nothing        ok    ok      ok     ok     ok       ok        ok    ok       ok   ok      ok      ok    ok     deny     deny      deny     ok        ok
any            ok    ok      ok     ok     ok       ok        ok    gone     ok   gone    ok      ok    ok     ok       gone      ok       ok        ok
any-list       ok    ok      ok     ok     ok       ok        ok    less     ok   less    ok      ok    ok     ok       less      ok       ok        ok
owner          ok    deny    deny   deny   deny     deny      deny  gone     ok   gone    deny    deny  deny   deny     gone      deny     deny      deny
server         deny  deny    deny   deny   deny     deny      deny  deny     ok   deny    deny    deny  deny   deny     deny      deny     deny      deny
read-x         ok    ok      ok     ok     ok       ok        ok    gone     ok   gone    ok      deny  ok     ok       gone      ok       ok        ok
list-x         ok    ok      ok     ok     ok       ok        ok    gone     ok   gone    ok      less  ok     ok       gone      ok       ok        ok
write-x        ok    ok      deny   ok     deny     ok        ok    gone     ok   gone    deny    deny  ok     deny     gone      deny     deny      ok
optimize-x     ok    ok      deny   deny   deny     ok        ok    gone     ok   gone    deny    deny  deny   deny     gone      deny     deny      ok
admin-x        ok    ok      deny   deny   deny     deny      ok    gone     ok   gone    deny    deny  deny   deny     gone      deny     deny      deny
admin-list-x   ok    ok      less   less   less     less      ok    gone     ok   gone    less    less  less   less     gone      less     less      less
rule-of-x      ok    ok      deny   deny   deny     deny      ok    gone     ok   gone    deny    lost  deny   deny     gone      deny     deny      deny
write-all      ok    ok      deny   ok     deny     ok        ok    gone     ok   gone    deny    ok    ok     deny     gone      deny     deny      deny
write-all-read-x ok  ok      deny   ok     deny     ok        ok    gone     ok   gone    deny    deny  ok     deny     gone      deny     deny      deny
admin-all      ok    ok      deny   deny   deny     deny      ok    gone     ok   gone    deny    ok    deny   deny     gone      deny     deny      deny
see            ok    ok      ok     ok     ok       ok        ok    gone     ok   gone    ok      lost  ok     ok       gone      ok       ok        ok
hold           ok    ok      deny   deny   deny     ok        ok    gone     ok   gone    deny    lost  deny   deny     gone      deny     deny      ok
give-up        ok    ok      ok     ok     ok       ok        ok    gone     ok   gone    ok      lost  ok     deny     gone      deny     ok        ok
force          ok    deny    deny   deny   deny     deny      deny  gone     ok   gone    deny    lost  deny   deny     gone      deny     deny      deny
nobody         deny  deny    deny   deny   deny     deny      deny  gone     deny gone    deny    lost  deny   deny     gone      deny     deny      deny
`

// accessKind is a kind of caller.
type accessKind struct {
	principal string
	groups    []string
	// permissions and sessions narrow the token.
	permissions []setpointv1.Permission
	sessions    []string
	rules       []kindRule
	// mode is the access mode of the variables.
	mode setpointv1.AccessMode
}

// kindRule is a rule about a kind of caller, for the session unless ofX.
type kindRule struct {
	*setpointv1.AccessRuleSpec
	ofX, expired bool
}

// forAll is a rule for the whole session.
func forAll(subject string, change ...func(*setpointv1.AccessRuleSpec)) []kindRule {
	return []kindRule{{AccessRuleSpec: spec(subject, change...)}}
}

var accessKinds = map[string]accessKind{
	"owner":     {principal: theOwner},
	"session":   {principal: "session:"}, // And the session's id.
	"reader":    {principal: "user:reader", rules: forAll("user:reader")},
	"writer":    {principal: "user:writer", rules: forAll("user:writer", to(mayWrite))},
	"observer":  {principal: "user:observer", rules: forAll("user:observer", to(mayObserve))},
	"optimizer": {principal: "user:optimizer", rules: forAll("user:optimizer", to(mayOptimize))},
	"admin":     {principal: "user:admin", rules: forAll("user:ad*", to(mayAdmin))},
	"stranger":  {principal: "user:stranger", rules: forAll("user:strange", to(mayAdmin))},
	"root":      {principal: "user:root"},
	"expired": {principal: "user:late", rules: []kindRule{
		{AccessRuleSpec: spec("user:late", to(mayAdmin)), expired: true},
		{AccessRuleSpec: spec("user:late", to(mayAdmin)), expired: true, ofX: true},
	}},
	"outdone": {principal: "user:outdone", rules: append(forAll("user:outdone", to(mayAdmin)),
		forAll("*", to(mayWrite), deny, priority(1))...)},
	"blind": {principal: "user:blind", rules: append(forAll("user:blind", to(mayAdmin)),
		kindRule{AccessRuleSpec: spec("user:blind", deny), ofX: true})},
	"member": {
		principal: "user:member", groups: []string{"group:others", "group:team"}, rules: forAll("group:team", to(mayWrite)),
	},
	"narrowed":  {principal: theOwner, permissions: []setpointv1.Permission{mayRead}},
	"elsewhere": {principal: theOwner, sessions: []string{"other-*", "another"}},
	"rootread":  {principal: "user:root", permissions: []setpointv1.Permission{mayRead}},
	"protected": {principal: "user:anybody", mode: setpointv1.AccessMode_ACCESS_MODE_PROTECTED},
	"public":    {principal: "user:anybody", mode: setpointv1.AccessMode_ACCESS_MODE_PUBLIC},
}

// accessLines reads the table: what is taken, and by the kind of caller what it comes to. kinds are in the order of the table.
func accessLines(t *testing.T) ([]string, map[string]map[string]string) {
	t.Helper()
	var kinds []string
	lines := map[string]map[string]string{}
	for line := range strings.Lines(strings.TrimSpace(accessTable)) {
		words := strings.Fields(line)
		if words[0] == "takes" {
			kinds = words[1:]
			continue
		}
		if len(words) != 1+len(kinds) {
			t.Fatalf("line %s has %d cells, not %d", words[0], len(words)-1, len(kinds))
		}
		lines[words[0]] = map[string]string{}
		for i, kind := range kinds {
			lines[words[0]][kind] = words[1+i]
		}
	}
	if !slices.Equal(slices.Sorted(slices.Values(kinds)), slices.Sorted(maps.Keys(accessKinds))) {
		t.Fatalf("the table is about %v", kinds)
	}
	return kinds, lines
}

// accessRow is a call of an RPC that succeeds unless access refuses it.
type accessRow struct {
	// rpc is the RPC's full name; how tells its rows apart.
	rpc, how string
	// takes is the line of the table.
	takes string
	// denied is what ACCESS_DENIED says; ofBlind what it says to who may not read the variable, if that is something else.
	denied  denialOf
	ofBlind *denialOf
	// lost is what there is not for those who may not know.
	lost setpointv1.ErrorReason
	// prepare makes what the call needs, as others than the caller, or as the caller before it was who it is.
	prepare func(c *accessCell)
	// shares names what rows that change nothing are prepared with, once for all of them; empty is each for itself.
	shares string
	call   func(c *accessCell) (proto.Message, error)
	// shows tells whether an answer shows what it is about; nil where that is no question.
	shows func(c *accessCell, answer proto.Message) bool
	// audits: what an answer does not show is a denial.
	audits bool
}

// denialOf is the metadata of ACCESS_DENIED, but for the rule.
type denialOf struct{ permission, variable string }

// accessCell is a caller of a kind in a session of its own, which has the variables target and zeta.
type accessCell struct {
	*bundle
	kind, id, principal string
	// caller and whole are contexts of calls with the caller's token, and with one of the same principal that is not narrowed.
	caller, whole context.Context
	// as is a client of a server that tells callers by their tokens.
	as *client.Client
	// target and zeta are the variables.
	target, zeta *setpointv1.Variable
	// decider is the id of the rule that denies; empty where none does.
	decider string
	// revoked is a token to revoke.
	revoked *setpointv1.Token
	// denied is what ACCESS_DENIED says to this caller, where that is something else than to most.
	denied *denialOf
}

// accessDesk is what all cells share.
type accessDesk struct {
	*bundle
	addr string
	// tokens are by the kind, as they are and not narrowed.
	tokens, whole map[string]string
	lines         map[string]map[string]string
	kinds         []string
	sessions      atomic.Int64
	mu            sync.Mutex
	// shared are the cells of rows that share them, by what they share and the kind.
	shared map[string]*accessCell
	// refused are the calls that were.
	refused []refusedCall
}

// refusedCall is a call that was refused for lack of a permission, whatever it looked like.
type refusedCall struct{ Session, Principal, Method string }

func TestAccessTable(t *testing.T) {
	t.Parallel()
	desk := newAccessDesk(t)
	rows := accessRows()
	covered := map[string]bool{}
	for _, row := range rows {
		covered[row.rpc] = true
	}
	for _, file := range apiFiles() {
		for i := range file.Services().Len() {
			service := file.Services().Get(i)
			for j := range service.Methods().Len() {
				if path := fmt.Sprintf("/%s/%s", service.FullName(), service.Methods().Get(j).Name()); !covered[path] {
					t.Errorf("%s has no row in the table of access", path)
				}
			}
		}
	}
	t.Run("rows", func(t *testing.T) {
		for _, row := range rows {
			name := strings.TrimSpace(row.rpc[strings.LastIndex(row.rpc, "/")+1:] + " " + row.how)
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				desk.run(t, row)
			})
		}
	})
	desk.wantAudited()
}

func newAccessDesk(t *testing.T) *accessDesk {
	t.Helper()
	d := &accessDesk{bundle: setup(t), tokens: map[string]string{}, whole: map[string]string{}, shared: map[string]*accessCell{}}
	d.kinds, d.lines = accessLines(t)
	d.addr = d.startServer(byToken, func(c *server.Config) { c.Authentication.Admins = []string{"user:root"} })
	for name, kind := range accessKinds {
		if kind.principal == "session:" {
			continue
		}
		d.tokens[name] = d.token(&setpointv1.CreateTokenRequest{
			Principal: kind.principal, Groups: kind.groups, Permissions: kind.permissions, Sessions: kind.sessions,
		})
		d.whole[name] = d.token(&setpointv1.CreateTokenRequest{Principal: kind.principal, Groups: kind.groups})
	}
	return d
}

// run tries a row as every kind of caller.
func (d *accessDesk) run(t *testing.T, row accessRow) {
	var called []string
	own := *d.bundle
	own.t, own.addr = t, d.addr
	as := own.dial(client.WithDialOptions(
		grpc.WithChainUnaryInterceptor(func(
			ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption,
		) error {
			called = append(called, method)
			return invoke(ctx, method, req, reply, cc, opts...)
		}),
		grpc.WithChainStreamInterceptor(func(
			ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, stream grpc.Streamer, opts ...grpc.CallOption,
		) (grpc.ClientStream, error) {
			called = append(called, method)
			return stream(ctx, desc, cc, method, opts...)
		}),
	))
	for _, kind := range d.kinds {
		t.Run(kind, func(t *testing.T) {
			c := d.prepared(t, row, kind, as)
			before := c.traces()
			called = nil
			answer, err := row.call(c)
			if !slices.Equal(called, []string{row.rpc}) {
				t.Fatalf("the row calls %v", called)
			}
			want := d.lines[row.takes][kind]
			c.check(row, want, answer, err)
			if err != nil && before != c.traces() {
				t.Errorf("refused, yet it left something behind: %s, was %s", c.traces(), before)
			}
			if want != "ok" && want != "less" || want == "less" && row.audits {
				d.refusedFor(c, row)
			}
		})
	}
}

// prepared is a caller of a kind in a session with what a row needs: of its own, or that of all rows that share it.
func (d *accessDesk) prepared(t *testing.T, row accessRow, kind string, as *client.Client) *accessCell {
	t.Helper()
	fresh := func() *accessCell {
		c := d.cell(t, kind, as)
		if row.prepare != nil {
			row.prepare(c)
		}
		return c
	}
	if row.shares == "" {
		return fresh()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	key := row.shares + " " + kind
	if d.shared[key] == nil {
		d.shared[key] = fresh()
	}
	c, own := *d.shared[key], *d.shared[key].bundle
	own.t, c.bundle, c.as = t, &own, as
	return &c
}

// cell begins a session with what a kind of caller needs to be of that kind.
func (d *accessDesk) cell(t *testing.T, name string, as *client.Client) *accessCell {
	t.Helper()
	kind, own := accessKinds[name], *d.bundle
	own.t = t
	c := &accessCell{
		bundle: &own, kind: name, as: as, id: fmt.Sprintf("cell-%d", d.sessions.Add(1)), principal: kind.principal,
	}
	mine, whole := d.tokens[name], d.whole[name]
	if kind.principal == "session:" {
		c.principal += c.id
		mine = c.token(&setpointv1.CreateTokenRequest{Principal: c.principal})
		whole = mine
	}
	c.caller, c.whole = bearing(c.ctx, mine), bearing(c.ctx, whole)
	owner := bearing(c.ctx, d.whole["owner"])
	_, err := as.Sessions.CreateSession(owner, &setpointv1.CreateSessionRequest{SessionId: c.id})
	c.must(err)
	registered, err := c.Variables.BatchRegisterVariables(c.ctx, &setpointv1.BatchRegisterVariablesRequest{
		SessionId: c.id, Atomic: true, Registrations: []*setpointv1.VariableRegistration{
			{Name: "target", Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Value: client.Integer(0), AccessMode: kind.mode},
			{Name: "zeta", Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Value: client.Integer(0), AccessMode: kind.mode},
		},
	})
	c.must(err)
	c.target, c.zeta = registered.GetResults()[0].GetVariable(), registered.GetResults()[1].GetVariable()
	for _, rule := range kind.rules {
		c.addRule(rule)
	}
	return c
}

// bearing is a context of calls with a token.
func bearing(ctx context.Context, token string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
}

func (c *accessCell) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *accessCell) addRule(rule kindRule) *setpointv1.AccessRule {
	c.t.Helper()
	req := &setpointv1.AddAccessRuleRequest{SessionId: c.id, Rule: rule.AccessRuleSpec}
	if rule.ofX {
		req.Variable = "target"
	}
	added, err := c.Access.AddAccessRule(c.ctx, req)
	c.must(err)
	if added.GetEffect() == setpointv1.AccessEffect_ACCESS_EFFECT_DENY {
		c.decider = added.GetRuleId()
	}
	if rule.expired {
		c.exec(`update setpoint.access_rules set expires_at = clock_timestamp() where session_id = $1 and rule_id = $2`,
			c.id, added.GetRuleId())
	}
	return added
}

// lacks has some kinds of callers be told something else than others.
func (c *accessCell) lacks(denied denialOf, kinds ...string) {
	if slices.Contains(kinds, c.kind) {
		c.denied = &denied
	}
}

// asOneWhoMay has the caller do something while a rule allows it.
func (c *accessCell) asOneWhoMay(do func(ctx context.Context)) {
	c.t.Helper()
	rule, err := c.Access.AddAccessRule(c.ctx, &setpointv1.AddAccessRuleRequest{
		SessionId: c.id, Rule: spec(c.principal, to(mayAdmin), priority(1000)),
	})
	c.must(err)
	do(c.whole)
	_, err = c.Access.RemoveAccessRule(c.ctx, &setpointv1.RemoveAccessRuleRequest{SessionId: c.id, RuleId: rule.GetRuleId()})
	c.must(err)
}

// traces is all that a call could change in the session.
func (c *accessCell) traces() string {
	c.t.Helper()
	var traces string
	c.row(&traces, `select concat_ws(' ', s.revision, s.expires_at > clock_timestamp(), s.variable_count,
			(select count(*) from setpoint.variables v where v.session_id = s.session_id),
			(select count(*) from setpoint.history h where h.session_id = s.session_id),
			(select count(*) from setpoint.dependencies e where e.session_id = s.session_id),
			(select count(*) from setpoint.access_rules r where r.session_id = s.session_id),
			(select count(*) from setpoint.requests q where q.session_id = s.session_id),
			(select count(*) from setpoint.trials x where x.session_id = s.session_id),
			(select string_agg(o.state || o.renewed_until, ' ' order by o.optimization_id) from setpoint.optimizations o
				where o.session_id = s.session_id),
			(select count(*) from setpoint.tokens k where k.description = s.session_id and k.revoked_at is null),
			(select count(*) from setpoint.sessions n where n.session_id = s.session_id || '-new'))
		from setpoint.sessions s where s.session_id = $1`, c.id)
	return traces
}

// check compares what a call came to with the table.
func (c *accessCell) check(row accessRow, want string, answer proto.Message, err error) {
	c.t.Helper()
	switch want {
	case "ok", "less":
		if err != nil {
			c.t.Fatal(err)
		}
		if row.shows != nil && row.shows(c, answer) != (want == "ok") {
			c.t.Errorf("want %s; the answer is %v", want, answer)
		}
	case "deny":
		denied := wantReason(c.t, err, setpointv1.ErrorReason_ACCESS_DENIED)
		says := row.denied
		switch {
		case c.denied != nil:
			says = *c.denied
		case c.kind == "blind" && row.ofBlind != nil:
			says = *row.ofBlind
		}
		metadata := map[string]string{"permission": says.permission}
		if says.variable != "" {
			metadata["variable"] = says.variable
		}
		if c.kind == "outdone" && says.variable != "" { // Who may read the variable, and is denied by a rule.
			metadata["rule"] = c.decider
		}
		wantMetadata(c.t, denied, metadata)
		if denied.Metadata["rule"] == "" && strings.Contains(denied.Message, "rule_") {
			c.t.Errorf("the message names a rule: %s", denied.Message)
		}
	case "gone":
		gone := wantReason(c.t, err, setpointv1.ErrorReason_SESSION_NOT_FOUND)
		wantMetadata(c.t, gone, map[string]string{"session_id": c.id})
		equal(c.t, "message", fmt.Sprintf("no session %q", c.id), gone.Message)
	case "lost":
		wantReason(c.t, err, row.lost)
	default:
		c.t.Fatalf("the table has no word %q", want)
	}
}

// refusedFor notes a call that was refused.
func (d *accessDesk) refusedFor(c *accessCell, row accessRow) {
	call := refusedCall{Session: c.id, Principal: c.principal, Method: strings.TrimPrefix(row.rpc, "/")}
	switch row.rpc {
	case setpointv1.SessionService_CreateSession_FullMethodName:
		call.Session += "-new"
	case setpointv1.AccessService_ListAuditEvents_FullMethodName:
		if row.takes == "server" {
			call.Session = ""
		}
	case setpointv1.TokenService_CreateToken_FullMethodName, setpointv1.TokenService_ListTokens_FullMethodName,
		setpointv1.TokenService_RevokeToken_FullMethodName:
		call.Session = "" // There is none.
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.refused = append(d.refused, call)
}

// wantAudited wants all that was refused in the audit, and nothing else.
func (d *accessDesk) wantAudited() {
	d.t.Helper()
	compare := func(a, b refusedCall) int {
		return cmp.Or(cmp.Compare(a.Session, b.Session), cmp.Compare(a.Principal, b.Principal), cmp.Compare(a.Method, b.Method))
	}
	slices.SortFunc(d.refused, compare)
	want := slices.Compact(d.refused)
	var got []refusedCall
	testkit.Eventually(d.t, 10*time.Second, func() error {
		rows, err := d.sql.Query(d.ctx, `select distinct session_id, principal, method from setpoint.audit_events
			where kind = 'access_denied'`)
		if err != nil {
			return err
		}
		got, err = pgx.CollectRows(rows, pgx.RowToStructByPos[refusedCall])
		if err != nil {
			return err
		}
		if len(got) < len(want) {
			return fmt.Errorf("%d of %d denials are audited", len(got), len(want))
		}
		return nil
	})
	slices.SortFunc(got, compare)
	equal(d.t, "audited denials", want, got)
}

// mentions tells whether a message has the name or the id of the variable that the table is about.
func mentions(c *accessCell, answer proto.Message) bool {
	text := protojson.Format(answer)
	return strings.Contains(text, `"target"`) || strings.Contains(text, c.target.GetVariableId())
}
