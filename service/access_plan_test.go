package service_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// fillAccess gives the session "s" 1,000 variables and 10,000 rules, 100 of them for the whole session and half of all with a
// wildcard. user:bob, of group:ops, may write the first variable by an exact rule and read the second by a pattern, and nothing
// else; 98 of the patterns for the whole session are of others.
func fillAccess(b *bundle) {
	b.exec(`insert into setpoint.variables (session_id, variable_id, name, type, value, value_bytes, version, revision,
			definition_revision, created_at, updated_at, updated_by)
		select 's', 'var_' || lpad(i::text, 26, '0'), 'v' || lpad(i::text, 6, '0'), 'integer', '1'::jsonb, 1, 1, i, i,
			clock_timestamp(), clock_timestamp(), 'user:a'
		from generate_series(1, 1000) i`)
	b.exec(`insert into setpoint.access_rules (session_id, rule_id, variable_id, subject, pattern, permissions, reach, allows,
			priority, expires_at, granted_by, granted_at, revision)
		select 's', 'rule_' || lpad(i::text, 26, '0'), case when i <= 100 then '' else 'var_' || lpad((i % 1000 + 1)::text, 26, '0') end,
			case when i % 20 >= 10 then 'user:*' || i else 'user:x' || i end,
			case when i % 20 >= 10 then 'user:%' || i end, 2, case when i % 3 > 0 then 3 else 26 end, i % 3 > 0, i % 5,
			case when i % 7 = 0 then clock_timestamp() + interval '1 hour' end, 'user:a', clock_timestamp(), i
		from generate_series(1, 9998) i`)
	b.exec(`insert into setpoint.access_rules (session_id, rule_id, variable_id, subject, pattern, permissions, reach, allows,
			priority, granted_by, granted_at, revision)
		values ('s', 'rule_y', $1, 'group:ops', null, 2, 3, true, 0, 'user:a', clock_timestamp(), 1),
			('s', 'rule_z', $2, 'user:b*', 'user:b%', 1, 1, true, 0, 'user:a', clock_timestamp(), 1)`, accessID(1), accessID(2))
}

func accessID(i int) string { return fmt.Sprintf("var_%026d", i) }

// accessPlanned is how an operation asks whether it may do something with a variable.
const accessPlanned = `
select coalesce(k.refusal, '')
from setpoint.sessions s
left join setpoint.variables v on v.session_id = s.session_id and v.variable_id = $2
cross join lateral setpoint.access_check(s.session_id, s.owner, v.variable_id, v.access_mode, $3, $4, 31, $5, $6) k
where s.session_id = $1`

// Whatever the planner believes, and however many rules a session has, to ask about one variable is to look at the rules of that
// variable and at those with a wildcard that are for the whole session.
func TestAccessWithManyRules(t *testing.T) {
	t.Parallel()
	open := func(b *bundle) {
		for _, table := range []string{"access_rules", "tokens", "audit_events"} {
			b.exec(`alter table setpoint.` + table + ` set (autovacuum_enabled = off)`)
		}
	}
	eachBelief(t, open, fillAccess, accessBattery)
}

func accessBattery(b *bundle, p *planned) {
	const (
		read, write = 1, 2
		bob, ops    = "user:bob", " group:dev group:ops"
		// Rules of a variable are 10 or so, and 50 for the whole session have a wildcard. To refuse takes functions that are
		// planned when they are first called.
		rules, planning = 80, 400
		// To know that there is nothing at all that somebody may do takes a look at all 5,000 with a wildcard.
		wild = 5000
	)
	for _, q := range []struct {
		what, variable, principal, groups string
		permission                        int32
		refusal                           string
		blocks                            int64
		rows                              float64
	}{
		{"what a group may", accessID(1), bob, ops, write, "", rules, 3 * rules},
		{"what a pattern allows", accessID(2), bob, ops, read, "", rules, 3 * rules},
		{"what the owner may", accessID(500), "user:anonymous", "", write, "", rules, rules},
		{"what the session may", accessID(500), "session:s", "", write, "", rules, rules},
		{"more than is allowed", accessID(2), bob, ops, write, "ACCESS_DENIED", rules + planning, 3 * rules},
		{"one that is hidden", accessID(500), bob, ops, write, "ACCESS_DENIED", rules + planning, 3 * rules},
		{"of a stranger", accessID(1), "service:x", "", read, "SESSION_HIDDEN", 2*wild + planning, 2 * wild},
		{"one that there is not", accessID(2000), bob, ops, write, "ACCESS_DENIED", rules + planning, 3 * rules},
	} {
		p.both(q.what, q.blocks, q.rows, func(x *planExplainer) error {
			var refusal string
			err := x.QueryRow(b.ctx, accessPlanned, "s", q.variable, q.principal, q.groups, q.permission, time.Now()).Scan(&refusal)
			if err == nil && refusal != q.refusal && !p.quiet {
				err = fmt.Errorf("refused by %q, want %q", refusal, q.refusal)
			}
			return err
		})
	}
}

// both runs one statement as the pool for reads does, and as that for writes does.
func (p *planned) both(what string, mostBlocks int64, mostRows float64, run func(x *planExplainer) error) {
	p.t.Helper()
	tx, err := p.reads.Begin(p.ctx)
	if err != nil {
		p.t.Fatal(err)
	}
	x := &planExplainer{p: p, conn: p.reads}
	err = run(x)
	if rollbackErr := tx.Rollback(p.ctx); rollbackErr != nil {
		p.t.Fatal(rollbackErr)
	}
	p.check("read", what, x, mostBlocks, mostRows, err)
	if err := p.writes.InTx(p.ctx, what, func(_ context.Context, tx pgx.Tx) error {
		x = &planExplainer{p: p, conn: tx.Conn()}
		err = run(x)
		return errUndo
	}); !errors.Is(err, errUndo) {
		p.t.Fatalf("%s: %v", what, err)
	}
	p.check("write", what, x, mostBlocks, mostRows, err)
}
