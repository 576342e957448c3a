package service_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// Rights that come and go while those who have them write.

// camp is eight writers whose rights come and go together, with three variables of their own.
type camp struct {
	b   *bundle
	way campWay
	// rights is a client of the server that the writers do not call, and may change what they may do.
	rights *client.Client
	// epoch tells what the writers may: 4n is nothing, 4n+2 what they want. It is odd while that changes.
	epoch atomic.Int64
	// settled is told, once by each writer in each epoch that is even, that enough calls which began in it had the right end.
	settled chan int64
	// rules are those that are to be removed; changed is the revision of the last change of the rights.
	rules   []string
	changed int64
	// gone are the ranges of revisions, the first excluded, in which the writers had no rights. Both change under the lock of the
	// session: not even a call that began before a revocation writes after it.
	gone [][2]int64

	mu   sync.Mutex
	done map[int64]string // Who wrote what was acknowledged, by its revision.
}

// campWay is how the rights of a camp come and go.
type campWay struct {
	name string
	// groups of writer i, who shows a token; else it has none, and says who it is.
	groups func(i int) []string
	grant  func(c *camp, ctx context.Context) error
	revoke func(c *camp, ctx context.Context) error
	// reads: they are left.
	reads bool
}

const campWriters, campEnough = 8, 4

func (c *camp) variables() []string {
	return []string{c.way.name + "-x", c.way.name + "-y", c.way.name + "-z"}
}

func (c *camp) principal(i int) string { return fmt.Sprintf("user:%s-%d", c.way.name, i) }

// add adds a rule for each variable; for none it is for the session.
func (c *camp) add(ctx context.Context, rule *setpointv1.AccessRuleSpec, variables ...string) error {
	for _, v := range variables {
		added, err := c.rights.Access.AddAccessRule(ctx, &setpointv1.AddAccessRuleRequest{SessionId: "s", Variable: v, Rule: rule})
		if err != nil {
			return err
		}
		c.rules, c.changed = append(c.rules, added.GetRuleId()), added.GetRevision()
	}
	return nil
}

// remove takes the rules away that were added.
func (c *camp) remove(ctx context.Context) error {
	for _, id := range c.rules {
		removed, err := c.rights.Access.RemoveAccessRule(ctx, &setpointv1.RemoveAccessRuleRequest{SessionId: "s", RuleId: id})
		if err != nil {
			return err
		}
		c.changed = removed.GetRevision()
	}
	c.rules = nil
	return nil
}

// replace has the variables' rules replaced by one.
func (c *camp) replace(ctx context.Context, rule *setpointv1.AccessRuleSpec) error {
	for _, v := range c.variables() {
		replaced, err := c.rights.Access.SetVariablePermissions(ctx, &setpointv1.SetVariablePermissionsRequest{
			SessionId: "s", Variable: v, Rules: []*setpointv1.AccessRuleSpec{rule},
		})
		if err != nil {
			return err
		}
		c.changed = replaced.GetRevision()
	}
	return nil
}

func (c *camp) setMode(ctx context.Context, mode setpointv1.AccessMode) error {
	for _, v := range c.variables() {
		updated, err := c.rights.Variables.UpdateVariable(ctx, &setpointv1.UpdateVariableRequest{SessionId: "s", Variable: v, AccessMode: mode})
		if err != nil {
			return err
		}
		c.changed = updated.GetRevision()
	}
	return nil
}

// wholeSession is what a rule is for that names no variable.
const wholeSession = ""

func inGroup(name string) func(int) []string {
	return func(int) []string { return []string{"group:other", name} }
}

var campWays = []campWay{
	{
		name: "exact", // A rule for each of them is removed.
		grant: func(c *camp, ctx context.Context) error {
			var errs []error
			for i := range campWriters {
				errs = append(errs, c.add(ctx, spec(c.principal(i), to(mayOptimize)), wholeSession))
			}
			return errors.Join(errs...)
		},
		revoke: (*camp).remove,
	},
	{
		name: "wild", // Rules for each variable with a wildcard are removed.
		grant: func(c *camp, ctx context.Context) error {
			return c.add(ctx, spec("user:w*d-*", to(mayOptimize)), c.variables()...)
		},
		revoke: (*camp).remove,
	},
	{
		name: "crew", groups: inGroup("group:crew"), // A rule for their group is removed.
		grant: func(c *camp, ctx context.Context) error {
			return c.add(ctx, spec("group:crew", to(mayOptimize)), wholeSession)
		},
		revoke: (*camp).remove,
	},
	{
		name: "team", groups: func(i int) []string { return []string{fmt.Sprintf("group:team-%d", i)} }, // Rules are replaced by others'.
		grant: func(c *camp, ctx context.Context) error {
			return c.replace(ctx, spec("group:team-*", to(mayOptimize)))
		},
		revoke: func(c *camp, ctx context.Context) error {
			return c.replace(ctx, spec("group:teams", to(mayAdmin)))
		},
	},
	{
		name: "denied", // A denial of a higher priority is added to what allows.
		grant: func(c *camp, ctx context.Context) error {
			if len(c.rules) > 0 {
				return c.remove(ctx)
			}
			defer func() { c.rules = nil }() // It stays.
			return c.add(ctx, spec("user:denied-*", to(mayOptimize), priority(1)), wholeSession)
		},
		revoke: func(c *camp, ctx context.Context) error {
			return c.add(ctx, spec("user:*enied-*", deny, priority(2)), wholeSession)
		},
	},
	{
		name: "band", groups: inGroup("group:band"), // A denial of the same priority is added for each variable.
		grant: func(c *camp, ctx context.Context) error {
			if len(c.rules) > 0 {
				return c.remove(ctx)
			}
			defer func() { c.rules = nil }()
			return c.add(ctx, spec("group:band", to(mayOptimize)), wholeSession)
		},
		revoke: func(c *camp, ctx context.Context) error {
			return c.add(ctx, spec("group:ba*", deny), c.variables()...)
		},
	},
	{
		name: "mode", // No rule is about them: the variables' access mode changes.
		grant: func(c *camp, ctx context.Context) error {
			return c.setMode(ctx, setpointv1.AccessMode_ACCESS_MODE_PUBLIC)
		},
		revoke: func(c *camp, ctx context.Context) error {
			return c.setMode(ctx, setpointv1.AccessMode_ACCESS_MODE_PRIVATE)
		},
	},
	{
		name: "less", groups: inGroup("group:less"), reads: true, // They are left with less.
		grant: func(c *camp, ctx context.Context) error {
			return c.replace(ctx, spec("group:less", to(mayOptimize)))
		},
		revoke: func(c *camp, ctx context.Context) error {
			return c.replace(ctx, spec("group:less"))
		},
	},
}

// change lets the rights come or go, and returns when each writer has made enough calls since.
func (c *camp) change(ctx context.Context, change func(c *camp, ctx context.Context) error) error {
	c.epoch.Add(1)
	if err := change(c, ctx); err != nil {
		return fmt.Errorf("%s: change the rights: %w", c.way.name, err)
	}
	epoch := c.epoch.Add(1)
	for range campWriters {
		select {
		case of := <-c.settled:
			if of != epoch {
				return fmt.Errorf("%s: a writer has settled in %d, not in %d", c.way.name, of, epoch)
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// run has the rights come and go.
func (c *camp) run(ctx context.Context, rounds int) error {
	for range rounds {
		if err := c.change(ctx, c.way.grant); err != nil {
			return err
		}
		if err := c.change(ctx, c.way.revoke); err != nil {
			return err
		}
		var revision int64
		err := c.b.sql.QueryRow(ctx, `select revision from setpoint.sessions where session_id = 's'`).Scan(&revision)
		if err != nil {
			return err
		}
		c.gone = append(c.gone, [2]int64{c.changed, revision})
	}
	return nil
}

// newCamp is a camp with its variables and writers.
func newCamp(b *bundle, way campWay, rights *client.Client) *camp {
	c := &camp{way: way, b: b, rights: rights, settled: make(chan int64), done: map[int64]string{}}
	for _, name := range c.variables() {
		b.register(&setpointv1.RegisterVariableRequest{
			Name: name, Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Value: client.Integer(0), HistoryLimit: ptr[int64](0),
		})
	}
	return c
}

func (c *camp) writers() []*campWriter {
	writers := make([]*campWriter, campWriters)
	for i := range writers {
		w := &campWriter{camp: c, principal: c.principal(i), does: campDeeds[i%len(campDeeds)]}
		if c.way.groups == nil {
			w.Client = c.b.dial(client.WithPrincipal(w.principal))
		} else {
			secret := c.b.token(&setpointv1.CreateTokenRequest{Principal: w.principal, Groups: c.way.groups(i)})
			w.Client = c.b.withTokens(client.WithToken(secret)).Client
		}
		writers[i] = w
	}
	return writers
}

// While 64 writers, on two servers, do what they may, their rights are taken away, in every way that there is and always on
// the server that they do not call, and given back: no call that began after a revocation had returned does anything, every
// call that began after a grant had returned does, and what was refused has left nothing behind.
func TestRevocationUnderWriters(t *testing.T) {
	t.Parallel()
	b := setup(t)
	session := b.withTokens(client.WithToken(b.token(&setpointv1.CreateTokenRequest{Principal: "session:s"}))).Client
	var camps []*camp
	var writers []*campWriter
	for _, way := range campWays {
		rights := session
		if way.groups != nil {
			rights = b.Client
		}
		c := newCamp(b, way, rights)
		camps, writers = append(camps, c), append(writers, c.writers()...)
	}
	calls := underWriters(t, b, writers, func(ctx context.Context) error {
		var changes errgroup.Group
		for _, c := range camps {
			changes.Go(func() error { return c.run(ctx, 2) })
		}
		return changes.Wait()
	})
	for _, c := range camps {
		c.wantHistory(t)
	}
	t.Logf("%d calls of %d writers", calls, len(writers))
}

// underWriters does something while the writers call, and fails the test if one of them meets what it should not.
func underWriters(t *testing.T, b *bundle, writers []*campWriter, do func(ctx context.Context) error) int64 {
	t.Helper()
	ctx, cancel := context.WithCancelCause(b.ctx)
	defer cancel(nil)
	var calls atomic.Int64
	var all errgroup.Group
	over := make(chan struct{})
	for _, w := range writers {
		all.Go(func() error {
			n, err := w.run(ctx, over)
			calls.Add(n)
			if err != nil {
				cancel(err)
			}
			return err
		})
	}
	err := do(ctx)
	close(over)
	if err := errors.Join(err, all.Wait()); err != nil {
		t.Fatal(err)
	}
	return calls.Load()
}

// wantHistory compares the history with what was acknowledged, and looks for what was written without the right.
func (c *camp) wantHistory(t *testing.T) {
	t.Helper()
	rows, err := c.b.sql.Query(c.b.ctx, `select revision, changed_by, change from setpoint.history
		where session_id = 's' and starts_with(changed_by, $1) order by revision`, "user:"+c.way.name+"-")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	values := 0
	for rows.Next() {
		var revision int64
		var by, change string
		if err := rows.Scan(&revision, &by, &change); err != nil {
			t.Fatal(err)
		}
		for _, gone := range c.gone {
			givesBack := c.way.reads && change == "lease_ended"
			if revision > gone[0] && revision <= gone[1] && !givesBack {
				t.Errorf("revision %d: %s by %s, who had no right from %d to %d", revision, change, by, gone[0], gone[1])
			}
		}
		switch change {
		case "set", "rolled_back", "updated":
			values++
			if c.done[revision] != by {
				t.Errorf("revision %d: %s by %s, acknowledged to %q", revision, change, by, c.done[revision])
			}
		}
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	if values != len(c.done) || values < campWriters {
		t.Errorf("%s: history has %d changes, %d were acknowledged", c.way.name, values, len(c.done))
	}
}
