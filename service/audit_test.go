package service_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/identity"
	"github.com/setpointdb/setpoint/internal/testkit"
)

// denials waits until so many denials are written, and returns them, in order.
func (d *desk) denials(want int) []string {
	d.t.Helper()
	const sql = `select concat_ws('|', session_id, principal, permission, variable, access_rule->>'rule_id', method)
		from setpoint.audit_events where kind = 'access_denied' order by event_id`
	var got []string
	eventually(d.t, 10*time.Second, func() bool {
		got = d.texts(sql)
		return len(got) >= want
	})
	return got
}

// eventually polls what another goroutine brings about.
func eventually(t *testing.T, within time.Duration, done func() bool) {
	t.Helper()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for deadline := time.Now().Add(within); !done(); <-ticker.C {
		if time.Now().After(deadline) {
			t.Fatal("it does not happen")
		}
	}
}

// Denials of two servers are in the database within a second, as what they were.
func TestDenialsAreWritten(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	other := deskOn(t, d.url)
	id := d.variable("x")
	d.variable("y")
	d.permit("x", "user:bob")
	rule := d.permit("x", "user:*", deny, to(mayWrite))
	for i, server := range []*desk{d, other} {
		ctx := server.as("user:bob")
		_, err := call(ctx, server, setpointv1.VariableService_GetVariable_FullMethodName, server.GetVariable,
			&setpointv1.GetVariableRequest{SessionId: "s", Variable: "x"})
		server.must(err)
		_, err = call(ctx, server, setpointv1.VariableService_SetVariable_FullMethodName, server.SetVariable,
			&setpointv1.SetVariableRequest{SessionId: "s", Variable: id, Value: client.Integer(1)})
		refused(t, err, setpointv1.ErrorReason_ACCESS_DENIED)
		_, err = call(ctx, server, setpointv1.VariableService_GetVariable_FullMethodName, server.GetVariable,
			&setpointv1.GetVariableRequest{SessionId: "s", Variable: "y"})
		refused(t, err, setpointv1.ErrorReason_ACCESS_DENIED)
		_, err = call(server.as("user:eve"), server, setpointv1.VariableService_GetVariable_FullMethodName, server.GetVariable,
			&setpointv1.GetVariableRequest{SessionId: "s", Variable: "y"})
		refused(t, err, setpointv1.ErrorReason_SESSION_NOT_FOUND)
		_, err = call(ctx, server, setpointv1.TokenService_ListTokens_FullMethodName, server.ListTokens, &setpointv1.ListTokensRequest{})
		refused(t, err, setpointv1.ErrorReason_ACCESS_DENIED)
		d.denials(4 * (i + 1))
	}
	want := []string{
		"s|user:bob|write|x|" + rule.GetRuleId() + "|setpoint.v1.VariableService/SetVariable",
		"s|user:bob|read|y|setpoint.v1.VariableService/GetVariable", "s|user:eve|read|y|setpoint.v1.VariableService/GetVariable",
		"|user:bob|admin||setpoint.v1.TokenService/ListTokens",
	}
	equal(t, "denials", append(want, want...), d.denials(8))
	late := d.number(`select count(*) from setpoint.audit_events where occurred_at > clock_timestamp()
		or occurred_at < clock_timestamp() - interval '1 minute'`)
	equal(t, "at other times", int64(0), late)
	equal(t, "told of", 4, len(d.events("access_denied")))
	var checks []string
	for _, e := range d.events("access_check") {
		checks = append(checks, fmt.Sprint(e["session"], " ", e["permission"], " ", e["result"]))
	}
	equal(t, "checks", []string{"s read allowed", "s write denied", "s read denied", "s read denied", " admin denied"}, checks)
}

// Close writes down what is held: a server that ends loses nothing.
func TestDenialsAreWrittenAtTheEnd(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	other := deskOn(t, d.url)
	for range 50 {
		_, err := call(other.as("user:eve"), other, setpointv1.SessionService_GetSession_FullMethodName, other.GetSession,
			&setpointv1.GetSessionRequest{SessionId: "s"})
		refused(t, err, setpointv1.ErrorReason_SESSION_NOT_FOUND)
	}
	other.close()
	equal(t, "written", int64(50), d.number(`select count(*) from setpoint.audit_events where kind = 'access_denied'`))
	_, err := call(other.as("user:eve"), other, setpointv1.TokenService_ListTokens_FullMethodName, other.ListTokens,
		&setpointv1.ListTokensRequest{})
	refused(t, err, setpointv1.ErrorReason_ACCESS_DENIED)
	equal(t, "told that it is lost", 1, len(other.events("audit_lost")))
}

// The denied items of a batch are one denial, as are those of an atomic one that fails. What is refused for another reason, or only
// asked about, is none.
func TestDenialsInBatches(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	for _, name := range []string{"a", "b", "c"} {
		d.variable(name)
	}
	d.permit("", "user:bob", to(mayWrite))
	d.permit("b", "user:bob", deny)
	d.permit("c", "user:bob", deny, to(mayWrite))
	bob := d.as("user:bob")
	var writes []*setpointv1.VariableWrite
	for _, name := range []string{"a", "b", "c"} {
		writes = append(writes, &setpointv1.VariableWrite{Variable: name, Value: client.Integer(1)})
	}
	set := func(atomic bool) error {
		_, err := call(bob, d, setpointv1.VariableService_BatchSetVariables_FullMethodName, d.BatchSetVariables,
			&setpointv1.BatchSetVariablesRequest{SessionId: "s", Writes: writes, Atomic: atomic})
		return err
	}
	d.must(set(false))
	refused(t, set(true), setpointv1.ErrorReason_ACCESS_DENIED)
	_, err := call(bob, d, setpointv1.VariableService_BatchGetVariables_FullMethodName, d.BatchGetVariables,
		&setpointv1.BatchGetVariablesRequest{SessionId: "s", Variables: []string{"a", "b", "none"}})
	d.must(err)
	_, err = call(bob, d, setpointv1.AccessService_CheckAccess_FullMethodName, d.CheckAccess,
		&setpointv1.CheckAccessRequest{SessionId: "s", Variable: "c", Permission: mayWrite})
	d.must(err)
	_, err = call(bob, d, setpointv1.VariableService_SetVariable_FullMethodName, d.SetVariable,
		&setpointv1.SetVariableRequest{SessionId: "s", Variable: "a", Value: client.String("no")})
	refused(t, err, setpointv1.ErrorReason_TYPE_MISMATCH)
	_, err = call(bob, d, setpointv1.VariableService_SetVariable_FullMethodName, d.SetVariable,
		&setpointv1.SetVariableRequest{SessionId: "none", Variable: "a", Value: client.Integer(1)})
	refused(t, err, setpointv1.ErrorReason_SESSION_NOT_FOUND)
	inBatch := "s|user:bob|write|b|setpoint.v1.VariableService/BatchSetVariables"
	want := []string{inBatch, inBatch, "s|user:bob|read|b|setpoint.v1.VariableService/BatchGetVariables"}
	equal(t, "denials", want, d.denials(len(want)))
	equal(t, "what else", []string{"and 1 more: c", "and 1 more: c", "and 1 more: none"},
		d.texts(`select detail from setpoint.audit_events where kind = 'access_denied' order by event_id`))
	var results []string
	for _, e := range d.events("access_check") {
		results = append(results, e["result"].(string))
	}
	equal(t, "checks", []string{"allowed", "denied", "allowed", "allowed", "allowed", "undecided"}, results)
}

// While the database is away denials are held, and written when it is back.
func TestDenialsOutlastTheDatabase(t *testing.T) {
	t.Parallel()
	url := testkit.NewDatabase(t)
	through, proxy := testkit.NewProxy(t, url)
	d := deskBehind(t, url, through)
	proxy.Cut()
	_, err := call(d.as("user:eve"), d, setpointv1.TokenService_ListTokens_FullMethodName, d.ListTokens, &setpointv1.ListTokensRequest{})
	refused(t, err, setpointv1.ErrorReason_ACCESS_DENIED)
	eventually(t, time.Minute, func() bool { return len(d.events("audit_failed")) > 1 })
	proxy.Restore()
	equal(t, "denials", []string{"|user:eve|admin||setpoint.v1.TokenService/ListTokens"}, d.denials(1))
}

// Who fills half of the buffer waits for room, and others do not; in a full one all wait who are denied, as long as their calls last.
func TestDeniedWaitForRoom(t *testing.T) {
	t.Parallel()
	url := testkit.NewDatabase(t)
	through, proxy := testkit.NewProxy(t, url)
	d := deskBehind(t, url, through)
	proxy.Cut()
	denied := errorOf(d.ListTokens(d.as("user:eve"), &setpointv1.ListTokensRequest{}))
	judge := func(name string, patience time.Duration) bool {
		ctx, cancel := context.WithTimeout(d.as(name), patience)
		defer cancel()
		d.Judged(ctx, setpointv1.TokenService_ListTokens_FullMethodName, &setpointv1.ListTokensRequest{}, nil, denied, 0)
		return ctx.Err() == nil
	}
	for range 5000 {
		if !judge("user:eve", time.Minute) {
			t.Fatal("she waits too early")
		}
	}
	equal(t, "one too many", false, judge("user:eve", 50*time.Millisecond))
	for range 5000 {
		if !judge("user:mallory", time.Minute) {
			t.Fatal("he waits for her")
		}
	}
	equal(t, "in a full buffer", false, judge("user:late", 50*time.Millisecond))
	equal(t, "told that they waited", 2, len(d.events("audit_waited")))
	equal(t, "told that it is lost", 2, len(d.events("audit_lost")))
	proxy.Restore()
	eventually(t, time.Minute, func() bool { return d.number(`select count(*) from setpoint.audit_events`) == 10_000 })
}

func errorOf[T any](_ T, err error) error { return err }

func TestListAuditEvents(t *testing.T) {
	t.Parallel()
	url := testkit.NewDatabase(t)
	clock := testkit.TakeClock(t, url)
	d := deskOn(t, url)
	root := d.admin(identity.Scope{})
	d.begin("s")
	d.variable("x")
	began := clock.Now()
	rule := d.permit("x", "user:bob")
	clock.Advance(time.Minute)
	all := d.permit("", "user:manager", to(mayAdmin))
	clock.Advance(time.Minute)
	token := d.token(&setpointv1.CreateTokenRequest{Principal: "user:a"}).GetToken().GetTokenId()
	clock.Advance(time.Minute)
	_, err := call(d.as("user:bob"), d, setpointv1.SessionService_DeleteSession_FullMethodName, d.DeleteSession,
		&setpointv1.DeleteSessionRequest{SessionId: "s"})
	refused(t, err, setpointv1.ErrorReason_ACCESS_DENIED)
	_, err = call(d.as("user:bob"), d, setpointv1.VariableService_SetVariable_FullMethodName, d.SetVariable,
		&setpointv1.SetVariableRequest{SessionId: "s", Variable: "x", Value: client.Integer(1)})
	refused(t, err, setpointv1.ErrorReason_ACCESS_DENIED)
	d.denials(2)
	list := func(ctx context.Context, req *setpointv1.ListAuditEventsRequest) []string {
		t.Helper()
		var got []string
		for req.PageSize = 2; ; {
			page, err := d.ListAuditEvents(ctx, req)
			d.must(err)
			for _, e := range page.GetEvents() {
				what := strings.TrimPrefix(e.GetKind().String(), "AUDIT_EVENT_KIND_")
				got = append(got, strings.Join(strings.Fields(strings.Join([]string{
					what, e.GetSessionId(), e.GetPrincipal(), e.GetVariable(), e.GetRule().GetRuleId(), e.GetTokenId(),
				}, " ")), " "))
			}
			if req.PageToken = page.GetNextPageToken(); req.PageToken == "" {
				return got
			}
		}
	}
	ofX, ofAll := "RULE_ADDED s user:owner x "+rule.GetRuleId(), "RULE_ADDED s user:owner "+all.GetRuleId()
	made, denied, forbidden := "TOKEN_CREATED user:root "+token, "ACCESS_DENIED s user:bob x", "ACCESS_DENIED s user:bob"
	tests := map[string]struct {
		ctx  context.Context
		req  *setpointv1.ListAuditEventsRequest
		want []string
	}{
		"the whole server": {root, &setpointv1.ListAuditEventsRequest{}, []string{denied, forbidden, made, ofAll, ofX}},
		"a session, its owner": {
			d.owner(), &setpointv1.ListAuditEventsRequest{SessionId: "s"}, []string{denied, forbidden, ofAll, ofX},
		},
		"a session, who manages it": {
			d.as("user:manager"), &setpointv1.ListAuditEventsRequest{SessionId: "s"}, []string{denied, forbidden, ofAll, ofX},
		},
		"a kind": {d.owner(), &setpointv1.ListAuditEventsRequest{
			SessionId: "s", Kinds: []setpointv1.AuditEventKind{setpointv1.AuditEventKind_AUDIT_EVENT_KIND_RULE_ADDED},
		}, []string{ofAll, ofX}},
		"kinds": {root, &setpointv1.ListAuditEventsRequest{Kinds: []setpointv1.AuditEventKind{
			setpointv1.AuditEventKind_AUDIT_EVENT_KIND_TOKEN_CREATED, setpointv1.AuditEventKind_AUDIT_EVENT_KIND_STOP_FORCED,
		}}, []string{made}},
		"a principal":         {root, &setpointv1.ListAuditEventsRequest{Principal: "user:bob"}, []string{denied, forbidden}},
		"a variable":          {d.owner(), &setpointv1.ListAuditEventsRequest{SessionId: "s", Variable: "x"}, []string{denied, ofX}},
		"from a time on":      {d.owner(), &setpointv1.ListAuditEventsRequest{SessionId: "s", Since: at(began, 1)}, []string{denied, forbidden, ofAll}},
		"before a time":       {root, &setpointv1.ListAuditEventsRequest{Until: at(began, 1)}, []string{ofX}},
		"between two times":   {root, &setpointv1.ListAuditEventsRequest{Since: at(began, 1), Until: at(began, 2)}, []string{ofAll}},
		"nothing of a kind":   {d.owner(), &setpointv1.ListAuditEventsRequest{SessionId: "s", Principal: "user:none"}, nil},
		"nothing on a server": {root, &setpointv1.ListAuditEventsRequest{Variable: "none"}, nil},
	}
	for name, test := range tests {
		equal(t, name, test.want, list(test.ctx, test.req))
	}
	page, err := d.ListAuditEvents(d.owner(), &setpointv1.ListAuditEventsRequest{SessionId: "s", PageSize: 3})
	d.must(err)
	event := page.GetEvents()[2]
	equal(t, "an event", &setpointv1.AuditEvent{
		EventId: event.GetEventId(), OccurredAt: at(began, 1), Kind: setpointv1.AuditEventKind_AUDIT_EVENT_KIND_RULE_ADDED, SessionId: "s",
		Principal: theOwner, Method: "setpoint.v1.AccessService/AddAccessRule", Rule: &setpointv1.AccessRule{
			RuleId: all.GetRuleId(), Subject: "user:manager", Permissions: []setpointv1.Permission{mayAdmin},
			Effect: setpointv1.AccessEffect_ACCESS_EFFECT_ALLOW,
		},
	}, event)
	equal(t, "a denial", mayWrite, page.GetEvents()[0].GetPermission())
	equal(t, "what is the owner's", "PERMISSION_UNSPECIFIED only the session's owner and server admins may",
		page.GetEvents()[1].GetPermission().String()+" "+page.GetEvents()[1].GetDetail())
	for name, test := range map[string]struct {
		ctx  context.Context
		req  *setpointv1.ListAuditEventsRequest
		want string
	}{
		"a stranger":                 {d.as("user:eve"), &setpointv1.ListAuditEventsRequest{SessionId: "s"}, "SESSION_NOT_FOUND"},
		"a reader":                   {d.as("user:bob"), &setpointv1.ListAuditEventsRequest{SessionId: "s"}, "ACCESS_DENIED"},
		"of no session":              {root, &setpointv1.ListAuditEventsRequest{SessionId: "none"}, "SESSION_NOT_FOUND"},
		"another's token":            {d.owner(), &setpointv1.ListAuditEventsRequest{SessionId: "s", PageToken: page.GetNextPageToken(), Variable: "x"}, "INVALID_REQUEST"},
		"at no time":                 {d.owner(), &setpointv1.ListAuditEventsRequest{SessionId: "s", Since: &timestamppb.Timestamp{Nanos: -1}}, "INVALID_REQUEST"},
		"before no time":             {root, &setpointv1.ListAuditEventsRequest{Until: &timestamppb.Timestamp{Seconds: 1 << 50}}, "INVALID_REQUEST"},
		"the server's, of the owner": {d.owner(), &setpointv1.ListAuditEventsRequest{}, "ACCESS_DENIED"},
	} {
		_, err := d.ListAuditEvents(test.ctx, test.req)
		equal(t, name, test.want, answered(t, err))
	}
	// Who takes the id again sees nothing of what was before.
	_, err = d.DeleteSession(d.owner(), &setpointv1.DeleteSessionRequest{SessionId: "s"})
	d.must(err)
	clock.Advance(time.Second)
	d.begin("s")
	equal(t, "of the next life", 0, len(list(d.owner(), &setpointv1.ListAuditEventsRequest{SessionId: "s"})))
	equal(t, "of the server", 5, len(list(root, &setpointv1.ListAuditEventsRequest{})))
}

// Who manages a session, but for a variable that is closed to it, learns of that nothing from the audit.
func TestAuditHidesNames(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.variable("x")
	d.variable("closed")
	d.permit("", "user:manager", to(mayAdmin))
	d.permit("closed", "user:manager", deny, priority(1))
	d.permit("x", "user:bob")
	list := func(ctx context.Context, variable string) []string {
		t.Helper()
		page, err := d.ListAuditEvents(ctx, &setpointv1.ListAuditEventsRequest{SessionId: "s", Variable: variable})
		d.must(err)
		var got []string
		for _, e := range page.GetEvents() {
			got = append(got, e.GetVariable()+" "+e.GetRule().GetSubject())
		}
		return got
	}
	manager := d.as("user:manager")
	equal(t, "the owner sees", []string{"x user:bob", "closed user:manager", " user:manager"}, list(d.owner(), ""))
	equal(t, "the manager sees", []string{"x user:bob", "(hidden) ", " user:manager"}, list(manager, ""))
	equal(t, "of x", []string{"x user:bob"}, list(manager, "x"))
	equal(t, "of nothing, the owner", 0, len(list(d.owner(), "none")))
	for _, variable := range []string{"closed", "none"} {
		_, err := d.ListAuditEvents(manager, &setpointv1.ListAuditEventsRequest{SessionId: "s", Variable: variable})
		equal(t, "metadata", map[string]string{"permission": "admin", "variable": variable},
			refused(t, err, setpointv1.ErrorReason_ACCESS_DENIED).Metadata)
	}
}

// Nor does it from what else a call was denied.
func TestAuditHidesOtherNames(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	for _, name := range []string{"x", "closed"} {
		d.variable(name)
		d.permit(name, "user:bob")
	}
	d.permit("", "user:manager", to(mayAdmin))
	d.permit("closed", "user:manager", deny, priority(1))
	_, err := call(d.as("user:bob"), d, setpointv1.VariableService_BatchSetVariables_FullMethodName, d.BatchSetVariables,
		&setpointv1.BatchSetVariablesRequest{SessionId: "s", Atomic: true, Writes: []*setpointv1.VariableWrite{
			{Variable: "x", Value: client.Integer(1)}, {Variable: "closed", Value: client.Integer(1)},
		}})
	refused(t, err, setpointv1.ErrorReason_ACCESS_DENIED)
	d.denials(1)
	for who, want := range map[string]string{theOwner: "x and 1 more: closed", "user:manager": "x and 1 more"} {
		page, err := d.ListAuditEvents(d.as(who), &setpointv1.ListAuditEventsRequest{
			SessionId: "s", Kinds: []setpointv1.AuditEventKind{setpointv1.AuditEventKind_AUDIT_EVENT_KIND_ACCESS_DENIED},
		})
		d.must(err)
		equal(t, who+" sees", want, page.GetEvents()[0].GetVariable()+" "+page.GetEvents()[0].GetDetail())
	}
}

// A server has its denials audited, over the wire, and shows them at another one.
func TestServersAuditDenials(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.integer("x")
	b.permit("x", spec("user:bob"))
	bob := b.dial(client.WithPrincipal("user:bob"))
	_, err := bob.Variables.SetVariable(b.ctx, &setpointv1.SetVariableRequest{
		SessionId: "s", Variable: "x", Value: client.Integer(1),
	})
	wantReason(t, err, setpointv1.ErrorReason_ACCESS_DENIED)
	other := deskOn(t, b.url)
	var page *setpointv1.ListAuditEventsResponse
	eventually(t, 10*time.Second, func() bool {
		page, err = other.ListAuditEvents(other.admin(identity.Scope{}), &setpointv1.ListAuditEventsRequest{SessionId: "s", PageSize: 1})
		other.must(err)
		return page.GetEvents()[0].GetKind() == setpointv1.AuditEventKind_AUDIT_EVENT_KIND_ACCESS_DENIED
	})
	event := page.GetEvents()[0]
	equal(t, "event", &setpointv1.AuditEvent{
		EventId: event.GetEventId(), OccurredAt: event.GetOccurredAt(), SessionId: "s", Principal: "user:bob", Variable: "x",
		Kind: setpointv1.AuditEventKind_AUDIT_EVENT_KIND_ACCESS_DENIED, Permission: mayWrite,
		Method: "setpoint.v1.VariableService/SetVariable",
	}, event)
}

func at(began time.Time, minutes int) *timestamppb.Timestamp {
	return timestamppb.New(began.Add(time.Duration(minutes) * time.Minute))
}

// Another access mode than private, given or taken away, is audited with the change, and a change of something else is not.
func TestAccessModesAreAudited(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.variable("plain")
	registration := func(name string, mode setpointv1.AccessMode) *setpointv1.VariableRegistration {
		return &setpointv1.VariableRegistration{
			Name: name, Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Value: client.Integer(0), AccessMode: mode,
		}
	}
	_, err := d.RegisterVariable(d.owner(), &setpointv1.RegisterVariableRequest{
		SessionId: "s", Name: "open", Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Value: client.Integer(0),
		AccessMode: setpointv1.AccessMode_ACCESS_MODE_PUBLIC,
	})
	d.must(err)
	_, err = d.BatchRegisterVariables(d.owner(), &setpointv1.BatchRegisterVariablesRequest{
		SessionId: "s", Registrations: []*setpointv1.VariableRegistration{
			registration("a", setpointv1.AccessMode_ACCESS_MODE_PROTECTED), registration("open", setpointv1.AccessMode_ACCESS_MODE_PUBLIC),
			registration("b", setpointv1.AccessMode_ACCESS_MODE_PRIVATE),
		},
	})
	d.must(err)
	update := func(req *setpointv1.UpdateVariableRequest) error {
		req.SessionId = "s"
		_, err := d.UpdateVariable(d.owner(), req)
		return err
	}
	d.must(update(&setpointv1.UpdateVariableRequest{
		Variable: "plain", AccessMode: setpointv1.AccessMode_ACCESS_MODE_PROTECTED, Reason: "all may see it",
	}))
	d.must(update(&setpointv1.UpdateVariableRequest{Variable: "plain", Metadata: map[string]string{"a": "b"}}))
	d.must(update(&setpointv1.UpdateVariableRequest{Variable: "open", AccessMode: setpointv1.AccessMode_ACCESS_MODE_PRIVATE}))
	d.must(update(&setpointv1.UpdateVariableRequest{Variable: "open", AccessMode: setpointv1.AccessMode_ACCESS_MODE_PRIVATE}))
	refused(t, update(&setpointv1.UpdateVariableRequest{
		Variable: "open", AccessMode: setpointv1.AccessMode_ACCESS_MODE_PUBLIC, ExpectedVersion: ptr(int64(7)),
	}), setpointv1.ErrorReason_VERSION_MISMATCH)
	equal(t, "audit", []string{
		"access_mode_set|user:owner|open|setpoint.v1.VariableService/RegisterVariable||registered as public",
		"access_mode_set|user:owner|a|setpoint.v1.VariableService/BatchRegisterVariables||registered as protected",
		"access_mode_set|user:owner|plain|setpoint.v1.VariableService/UpdateVariable|all may see it|from private to protected",
		"access_mode_set|user:owner|open|setpoint.v1.VariableService/UpdateVariable||from public to private",
	}, d.texts(`select concat_ws('|', kind, principal, variable, method, reason, detail) from setpoint.audit_events order by event_id`))
}

// A forced stop is audited with the stop; one that is refused is not, and neither is another stop.
func TestForcedStopsAreAudited(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.variable("x")
	d.permit("x", "user:bob", to(mayOptimize))
	d.exec(`delete from setpoint.audit_events`)
	start := func() *setpointv1.Optimization {
		o, err := d.StartOptimization(d.as("user:bob"), &setpointv1.StartOptimizationRequest{SessionId: "s", Variables: []string{"x"}})
		d.must(err)
		return o
	}
	stop := func(ctx context.Context, o *setpointv1.Optimization, force bool) error {
		_, err := d.StopOptimization(ctx, &setpointv1.StopOptimizationRequest{
			SessionId: "s", OptimizationId: o.GetOptimizationId(), Force: force, Reason: "enough",
		})
		return err
	}
	d.must(stop(d.as("user:bob"), start(), false))
	forced := start()
	if err := stop(d.owner(), forced, false); err == nil {
		t.Fatal("stopped without force")
	}
	d.must(stop(d.owner(), forced, true))
	if err := stop(d.owner(), forced, true); err == nil {
		t.Fatal("stopped twice")
	}
	equal(t, "audit", []string{
		"stop_forced|user:owner|" + forced.GetOptimizationId() + "|setpoint.v1.OptimizationService/StopOptimization|enough",
	}, d.texts(`select concat_ws('|', kind, principal, optimization_id, method, reason) from setpoint.audit_events order by event_id`))
}
