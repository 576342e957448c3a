package service_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"pgregory.net/rapid"

	"github.com/setpointdb/setpoint/internal/identity"
	"github.com/setpointdb/setpoint/internal/testkit"
)

// Names of callers have what LIKE reads otherwise than rules do, and the wildcard of rules.
func accessName(t *rapid.T, kind string) string {
	return kind + rapid.StringOfN(rapid.RuneFrom([]rune(`abA%_\*é`)), 1, 3, -1).Draw(t, "name")
}

func drawAccessCaller(t *rapid.T, w *accessWorld) accessCaller {
	c := accessCaller{
		Name:  leaseOneOf(t, "principal", "", "", "", "", "", w.Owner, "session:"+w.Session, "session:"+w.Session+"2"),
		Admin: graphOften(t, 10, "server admin"),
	}
	if c.Name == "" {
		c.Name = accessName(t, leaseOneOf(t, "kind", "user:", "service:"))
	}
	for range leaseOneOf(t, "groups", 0, 1, 2, 0) {
		c.Groups = append(c.Groups, accessName(t, "group:"))
	}
	if graphOften(t, 30, "narrowed") {
		c.Permissions = drawAccessPermissions(t)
	}
	if graphOften(t, 20, "in sessions") {
		c.SessionGlobs = rapid.SliceOfN(rapid.SampledFrom([]string{"s", "*", "s*", "t", "S", "ss*", "*x"}), 1, 2).Draw(t, "sessions")
	}
	return c
}

func drawAccessPermissions(t *rapid.T) []string {
	return rapid.SliceOfNDistinct(rapid.SampledFrom(accessPermissions), 1, 3, rapid.ID).Draw(t, "permissions")
}

// drawAccessSubject is about one of the callers, or nearly so.
func drawAccessSubject(t *rapid.T, callers []accessCaller) string {
	var known []string
	for _, c := range callers {
		known = append(append(known, c.Name), c.Groups...)
	}
	subject := []rune(rapid.SampledFrom(known).Draw(t, "subject of"))
	replace := func(what string, with rune) {
		from := rapid.IntRange(0, len(subject)).Draw(t, what+" from")
		to := rapid.IntRange(from, len(subject)).Draw(t, what+" to")
		subject = slices.Replace(subject, from, to, with)
	}
	switch leaseOneOf(t, "form", 0, 1, 1, 2, 3, 4) {
	case 1:
		replace("wildcard", '*')
	case 2:
		replace("wildcard", '*')
		replace("another", '*')
	case 3: // what LIKE takes for a wildcard
		replace("character", leaseOneOf(t, "with", '%', '_', '\\'))
	case 4:
		return leaseOneOf(t, "everybody of", "*", "user:*", "group:*", "*:*", `user:*\`, "service:a**")
	}
	return string(subject)
}

// drawAccessWorld draws a session, and four who call in it.
func drawAccessWorld(t *rapid.T) (*accessWorld, []accessCaller) {
	w := &accessWorld{Session: "s", Owner: leaseOneOf(t, "owner", "user:o", "service:*", `user:%`)}
	ids := []string{"var_never"}
	// Where the session as a whole says little, it is single variables that make a difference.
	apart := graphOften(t, 40, "apart")
	if !apart {
		ids = append(ids, "", "", "")
	}
	for i := range rapid.IntRange(0, 6).Draw(t, "variables") {
		id := fmt.Sprintf("var_%d", i)
		ids = append(ids, id)
		switch mode := leaseOneOf(t, "mode", "private", "protected", "public", "private", "deleted"); {
		case mode == "deleted":
		case apart && i > 0:
			w.Living = append(w.Living, accessVariable{id, "private"})
		default:
			w.Living = append(w.Living, accessVariable{id, mode})
		}
	}
	w.Optimized = rapid.SliceOfNDistinct(rapid.SampledFrom(ids), 1, 3, rapid.ID).Draw(t, "optimized")
	w.Optimized = slices.DeleteFunc(w.Optimized, func(id string) bool { return id == "" })
	callers := make([]accessCaller, 4)
	for i := range callers {
		callers[i] = drawAccessCaller(t, w)
	}
	for i := range rapid.IntRange(0, 12).Draw(t, "rules") {
		r := accessRule{
			ID: fmt.Sprintf("rule_%02d", i), Variable: rapid.SampledFrom(ids).Draw(t, "variable"),
			Subject: drawAccessSubject(t, callers), Permissions: drawAccessPermissions(t), Allow: graphOften(t, 60, "allow"),
			Priority: rapid.Int32Range(-2, 2).Draw(t, "priority"),
		}
		if graphOften(t, 30, "expires") {
			r.Expires = ptr(accessAt.Add(leaseOneOf(t, "after", 0, time.Microsecond, -time.Microsecond, -time.Hour)))
		}
		w.Rules = append(w.Rules, r)
	}
	return w, callers
}

func accessBits(words []string) identity.Permissions {
	var bits identity.Permissions
	for _, word := range words {
		p, _ := identity.ParsePermission(word)
		bits |= p
	}
	return bits
}

// accessSave is one statement that writes a session.
const accessSave = `
with s as (
	insert into setpoint.sessions (session_id, owner, ttl_us, expires_at, changed_at, created_at)
	values ($1, $2, 0, 'infinity', now(), now())
), v as (
	insert into setpoint.variables (session_id, variable_id, name, type, value, value_bytes, revision, definition_revision,
		created_at, updated_at, updated_by, access_mode)
	select $1, x."ID", x."ID", 'integer', '1', 1, 1, 1, now(), now(), 'user:o', x."Mode"
	from jsonb_to_recordset($3::jsonb) x ("ID" text, "Mode" text)
), o as (
	insert into setpoint.optimization_variables (session_id, optimization_id, variable_id, name, type)
	select $1, 'opt_a', x.id, x.id, 'integer' from unnest($5::text[]) x (id)
)
insert into setpoint.access_rules (session_id, rule_id, variable_id, subject, pattern, permissions, reach, allows, priority,
	expires_at, granted_by, granted_at, revision)
select $1, x."ID", x."Variable", x."Subject", x."Pattern", x."Bits", x."Reach", x."Allow", x."Priority", x."Expires",
	'user:o', now(), 1
from jsonb_to_recordset($4::jsonb) x ("ID" text, "Variable" text, "Subject" text, "Pattern" text, "Bits" integer,
	"Reach" integer, "Allow" boolean, "Priority" integer, "Expires" timestamptz)`

func accessJSON(v any) string {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(data)
}

func (w *accessWorld) save(ctx context.Context, tx pgx.Tx) error {
	type row struct {
		accessRule
		Pattern     *string
		Bits, Reach identity.Permissions
	}
	rows := []row{}
	for _, r := range w.Rules {
		bits := accessBits(r.Permissions)
		reach := bits.Including()
		if !r.Allow {
			reach = bits.IncludedBy()
		}
		kept := row{accessRule: r, Bits: bits, Reach: reach}
		if pattern, wild := identity.SubjectLike(r.Subject); wild {
			kept.Pattern = &pattern
		}
		rows = append(rows, kept)
	}
	living := append([]accessVariable{}, w.Living...)
	_, err := tx.Exec(ctx, accessSave, w.Session, w.Owner, accessJSON(living), accessJSON(rows), w.Optimized)
	return err
}

// accessAsk asks all there is to ask: one row for each caller, variable and permission.
const accessAsk = `
with callers as materialized (
	select c.number, c.principal, c.groups, c.authority, s.session_id, s.owner, m.mask, m.anything, m.reads_all
	from unnest($2::text[], $3::text[], $4::integer[]) with ordinality c (principal, groups, authority, number)
	join setpoint.sessions s on s.session_id = $1
	cross join lateral setpoint.access_session(s.session_id, s.owner, c.principal, c.groups, c.authority, $6) m
)
select c.number - 1, coalesce(v.id, ''), p.bit, c.mask, c.anything, c.reads_all, a.mask, k.mask, coalesce(k.refusal, ''),
	coalesce(k.rule_id, ''),
	coalesce(setpoint.access_rule(c.session_id, v.id, c.principal, c.groups, 1 << p.bit, $6), ''), o.mask, coalesce(o.lacking, '')
from callers c
cross join unnest($5::text[]) v (id)
left join setpoint.variables x on x.session_id = c.session_id and x.variable_id = v.id
cross join lateral setpoint.access(c.session_id, c.owner, v.id, x.access_mode, c.principal, c.groups, c.authority, $6) a
cross join generate_series(0, 4) p (bit)
cross join lateral setpoint.access_check(c.session_id, c.owner, v.id, x.access_mode, c.principal, c.groups, c.authority,
	1 << p.bit, $6) k
cross join lateral setpoint.access_optimization(c.session_id, c.owner, 'opt_a', c.principal, c.groups, c.authority, 1 << p.bit,
	$6) o`

// accessAnswer is what the database says of a caller, a variable and a permission. Rules and the refusal are empty where there is none.
type accessAnswer struct {
	Caller                      int
	Variable                    string
	Permission                  int
	SessionMask                 int32
	Anything, ReadsAll          bool
	Mask, CheckedMask           int32
	Refusal, ShownRule, Decider string
	// OptimizationMask is of all variables of the optimization, and Lacking the first that refuses the permission.
	OptimizationMask int32
	Lacking          string
}

func (w *accessWorld) ask(ctx context.Context, tx pgx.Tx, callers []accessCaller) ([]accessAnswer, error) {
	var principals, groups []string
	var authorities []int32
	for _, c := range callers {
		p := identity.Principal{
			Name: c.Name, Scope: identity.Scope{Permissions: accessBits(c.Permissions), Sessions: c.SessionGlobs},
		}
		authority := int32(p.Authority(w.Session))
		if c.Admin {
			authority += 32
		}
		all := ""
		for _, g := range c.Groups {
			all += " " + g
		}
		principals, groups, authorities = append(principals, c.Name), append(groups, all), append(authorities, authority)
	}
	var variables []*string
	for _, v := range append(w.variables(), "var_nobody") {
		if v == "" {
			variables = append(variables, nil)
		} else {
			variables = append(variables, &v)
		}
	}
	rows, err := tx.Query(ctx, accessAsk, w.Session, principals, groups, authorities, variables, accessAt)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[accessAnswer])
}

// wrong is what an answer should have been and was not; empty if it is right.
func (w *accessWorld) wrong(c accessCaller, a accessAnswer) []string {
	var all []string
	want := func(ok bool, format string, args ...any) {
		if !ok {
			all = append(all, fmt.Sprintf(format, args...))
		}
	}
	permission := accessPermissions[a.Permission]
	mask := w.mask(c, a.Variable)
	want(a.Mask == mask && a.CheckedMask == mask, "may %05b, by the check %05b, want %05b", a.Mask, a.CheckedMask, mask)
	want(a.SessionMask == w.mask(c, ""), "in the session may %05b, want %05b", a.SessionMask, w.mask(c, ""))
	want(a.Anything == w.anything(c), "anything %t", a.Anything)
	want(!a.ReadsAll || w.readsAll(c), "reads all")
	want(a.ReadsAll || !w.readsAllPlainly(c), "does not read all")
	for i, p := range accessPermissions {
		for _, included := range accessIncludes[p] {
			has := a.Mask&(1<<slices.Index(accessPermissions, included)) != 0
			want(a.Mask&(1<<i) == 0 || has, "may %s and not %s", p, included)
		}
	}

	want(len(w.Optimized) == 0 || a.OptimizationMask&(1<<a.Permission) != 0 == (len(w.lacks(c, permission)) == 0),
		"with the optimization may %05b", a.OptimizationMask)
	if lacking := w.lacks(c, permission); !w.everything(c) && len(lacking) > 0 {
		want(a.Lacking == slices.Min(lacking), "lacks %q, want the first of %q", a.Lacking, lacking)
	} else {
		want(a.Lacking == "", "lacks %q", a.Lacking)
	}

	var deciding []string
	for _, r := range w.decides(c, a.Variable, permission) {
		deciding = append(deciding, r.ID)
	}
	isDeciding := func(id string) bool {
		return len(deciding) == 0 && id == "" || slices.Contains(deciding, id)
	}
	want(isDeciding(a.Decider), "decided by %q, want one of %q", a.Decider, deciding)

	refusal, shown := "", false
	switch absent := a.Variable == ""; {
	case absent && a.ReadsAll:
		refusal = "VARIABLE_NOT_FOUND"
	case !absent && w.may(c, a.Variable, permission):
	case w.anything(c):
		refusal = "ACCESS_DENIED"
		shown = !absent && w.may(c, a.Variable, "read") && w.credentialsServe(c, permission)
	default:
		refusal = "SESSION_HIDDEN"
	}
	want(a.Refusal == refusal, "refused by %q, want %q", a.Refusal, refusal)
	want(shown && isDeciding(a.ShownRule) || a.ShownRule == "", "shown rule %q, want one of %q: %t", a.ShownRule, deciding, shown)
	want(!shown || a.ShownRule == a.Decider, "shown rule %q, and not %q", a.ShownRule, a.Decider)
	return all
}

// hides tells what is wrong where the answers about a variable that a caller may not read are not those about one that there is not.
func accessHides(answers []accessAnswer) string {
	type question struct{ caller, permission int }
	absent := map[question]string{}
	for _, a := range answers {
		if a.Variable == "" {
			absent[question{a.Caller, a.Permission}] = a.Refusal
		}
	}
	for _, a := range answers {
		if unread := a.Mask&1 == 0; unread && (a.Refusal != absent[question{a.Caller, a.Permission}] || a.ShownRule != "") {
			return fmt.Sprintf("is to be hidden: %+v", a)
		}
	}
	return ""
}

// Whatever rules, variables and callers there are: the database decides as the words of the documentation do.
func TestAccessIsTheModels(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	url := testkit.NewDatabase(t)
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	// As in the pools of a server.
	config.ConnConfig.RuntimeParams["jit"] = "off"
	config.ConnConfig.RuntimeParams["plan_cache_mode"] = "force_generic_plan"
	sql, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(sql.Close)
	// Each is some hundreds of sessions, from seeds of its own.
	for part := range 2 {
		t.Run(fmt.Sprint(part), func(t *testing.T) {
			t.Parallel()
			rapid.Check(t, func(t *rapid.T) {
				for range 2 {
					w, callers := drawAccessWorld(t)
					w.check(ctx, t, sql, callers)
				}
			})
		})
	}
}

// opposite is another session, in which all is otherwise and counts for more: it must not matter.
func (w *accessWorld) opposite() *accessWorld {
	o := &accessWorld{Session: w.Session + "2", Owner: w.Owner + "2"}
	for _, v := range w.variables()[1:] {
		o.Living = append(o.Living, accessVariable{v, "public"})
	}
	for _, r := range w.Rules {
		r.ID, r.Allow, r.Priority, r.Expires = r.ID[:5]+"0"+r.ID[5:], !r.Allow, r.Priority+9, nil
		o.Rules = append(o.Rules, r)
	}
	return o
}

type accessBeginner interface {
	Begin(ctx context.Context) (pgx.Tx, error)
}

// check compares what the database says with what the model says, and leaves nothing behind.
func (w *accessWorld) check(ctx context.Context, t *rapid.T, sql accessBeginner, callers []accessCaller) {
	tx, err := sql.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(ctx) }()
	for _, session := range []*accessWorld{w, w.opposite()} {
		if err := session.save(ctx, tx); err != nil {
			t.Fatal(err)
		}
	}
	answers, err := w.ask(ctx, tx, callers)
	if err != nil {
		t.Fatal(err)
	}
	if want := len(callers) * len(append(w.variables(), "var_nobody")) * len(accessPermissions); len(answers) != want {
		t.Fatalf("%d answers, want %d", len(answers), want)
	}
	for _, a := range answers {
		if wrong := w.wrong(callers[a.Caller], a); len(wrong) > 0 {
			t.Fatalf("session %+v\ncaller %+v\nvariable %q, %s: %s", w, callers[a.Caller], a.Variable,
				accessPermissions[a.Permission], strings.Join(wrong, "\n"))
		}
	}
	if wrong := accessHides(answers); wrong != "" {
		t.Fatalf("session %+v\ncallers %+v\n%s", w, callers, wrong)
	}
}
