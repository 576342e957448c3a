package sweep_test

import (
	"testing"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// permit adds so many rules to a session, by SQL, as if they had been added one by one.
func (b *bundle) permit(session string, rules int) {
	b.t.Helper()
	b.exec(`insert into setpoint.access_rules (session_id, rule_id, subject, permissions, reach, allows, priority, granted_by,
			granted_at, revision)
		select $1, 'rule_' || lpad(i::text, 26, '0'), 'user:' || i, 1, 1, true, 0, 'user:a', clock_timestamp(), i
		from generate_series(1, $2) i`, session, rules)
}

// The rules of a session that has ended go, however many; those of one that lives stay, and so does the audit.
func TestRulesOfExpiredSession(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.session("gone")
	b.permit("s", 3)
	b.permit("gone", 2500)
	b.register("gone", "x", 0)
	_, err := b.AddAccessRule(b.ctx, &setpointv1.AddAccessRuleRequest{SessionId: "gone", Rule: &setpointv1.AccessRuleSpec{
		Subject: "user:*", Permissions: []setpointv1.Permission{setpointv1.Permission_PERMISSION_READ},
	}})
	b.must(err)
	_, err = b.DeleteSession(b.ctx, &setpointv1.DeleteSessionRequest{SessionId: "gone"})
	b.must(err)
	b.must(b.sweeper.Sessions(b.ctx))
	for query, want := range map[string]int64{
		`select count(*) from setpoint.access_rules where session_id = 'gone'`:                        0,
		`select count(*) from setpoint.access_rules where session_id = 's'`:                           3,
		`select count(*) from setpoint.audit_events where session_id = 'gone'`:                        1,
		`select count(*) from setpoint.sessions where session_id = 'gone' and ended_at is not null`:   1,
		`select count(*) from setpoint.history where session_id = 'gone' and access_rule is not null`: 1,
	} {
		if got := b.number(query); got != want {
			t.Errorf("%s: %d, want %d", query, got, want)
		}
	}
	// Rules that a server has left which knew of none do not keep the session's row.
	b.permit("gone", 10)
	b.exec(`update setpoint.sessions set ended_at = ended_at - interval '2 hours' where session_id = 'gone'`)
	b.exec(`update setpoint.history set changed_at = changed_at - interval '2 hours' where session_id = 'gone'`)
	b.must(b.sweeper.History(b.ctx))
	if got := b.number(`select count(*) from setpoint.sessions where session_id = 'gone'`); got != 0 {
		t.Error("the session is not forgotten")
	}
	if got := b.number(`select count(*) from setpoint.access_rules`); got != 3 {
		t.Errorf("%d rules are left, want 3", got)
	}
}

// Access rules go an hour after they expired, of all sessions, however many; those that have not stay, as does what history has of them.
func TestExpiredRules(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.session("t")
	b.permit("s", 2600)
	b.permit("t", 10)
	b.exec(`update setpoint.access_rules set expires_at = clock_timestamp() + case when right(rule_id, 1) = '0' then interval '-59 minutes'
		when right(rule_id, 1) = '1' then interval '1 minute' else interval '-61 minutes' end where right(rule_id, 1) <> '2'`)
	b.must(b.sweeper.History(b.ctx))
	for query, want := range map[string]int64{
		`select count(*) from setpoint.access_rules where session_id = 's'`:                                     780,
		`select count(*) from setpoint.access_rules where session_id = 't'`:                                     3,
		`select count(*) from setpoint.access_rules where expires_at < clock_timestamp() - interval '1 hour'`:   0,
		`select count(*) from setpoint.access_rules where expires_at is null`:                                   261,
		`select count(*) from setpoint.history where change = 'access_rule_removed'`:                            0,
		`select revision from setpoint.sessions where session_id = 't'`:                                         0,
		`select count(*) from setpoint.access_rules where session_id = 's' and expires_at > clock_timestamp()`:  260,
		`select count(*) from setpoint.access_rules where session_id = 's' and expires_at <= clock_timestamp()`: 260,
	} {
		if got := b.number(query); got != want {
			t.Errorf("%s: %d, want %d", query, got, want)
		}
	}
}

// A server that knows of no rules ends a session, and later removes its row, without a look at them.
func TestSessionIsForgottenWithItsRules(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.session("gone")
	b.permit("gone", 10)
	b.permit("s", 3)
	b.exec(`delete from setpoint.sessions where session_id = 'gone'`)
	if got := b.number(`select count(*) from setpoint.access_rules`); got != 3 {
		t.Errorf("%d rules are left, want 3", got)
	}
}

// Audit events go when they are older than the retention, oldest first, whatever their session is.
func TestAuditIsPruned(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.exec(`insert into setpoint.audit_events (session_id, event_id, occurred_at, kind, principal)
		select case when i % 2 = 0 then 's' else '' end, 'evt_' || lpad(i::text, 26, '0'),
			clock_timestamp() - case when i <= 2500 then interval '61 minutes' else interval '59 minutes' end, 'access_denied', 'user:a'
		from generate_series(1, 3000) i`)
	b.must(b.sweeper.History(b.ctx))
	if got := b.number(`select count(*) from setpoint.audit_events where event_id > 'evt_' || lpad('2500', 26, '0')`); got != 500 {
		t.Errorf("%d young events are left, want 500", got)
	}
	if got := b.number(`select count(*) from setpoint.audit_events`); got != 500 {
		t.Errorf("%d events are left, want 500", got)
	}
	if b.noted.audit != 2500 {
		t.Errorf("told of %d events", b.noted.audit)
	}
	// One that is out of its place holds up no more than a batch.
	b.exec(`update setpoint.audit_events set occurred_at = occurred_at - interval '2 minutes'
		where event_id > 'evt_' || lpad('2501', 26, '0')`)
	b.must(b.sweeper.History(b.ctx))
	if got := b.number(`select count(*) from setpoint.audit_events`); got != 1 {
		t.Errorf("%d events are left, want 1", got)
	}
}
