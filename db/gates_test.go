package db

import (
	"context"
	"errors"
	"testing"
)

// A few are inside a session at a time, others wait until one leaves or they give up, another session is not concerned, and
// of what has left nothing is kept.
func TestGates(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	var g gates
	enter := func(id string) func() {
		t.Helper()
		leave, err := g.enter(ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		return leave
	}
	first, second, other := enter("a"), enter("a"), enter("b")
	impatient, giveUp := context.WithCancel(ctx)
	giveUp()
	if _, err := g.enter(impatient, "a"); !errors.Is(err, context.Canceled) {
		t.Errorf("a third at once: %v, want it to wait until it gives up", err)
	}
	third := make(chan func())
	go func() {
		leave, err := g.enter(ctx, "a")
		if err != nil {
			t.Error(err)
		}
		third <- leave
	}()
	first()
	(<-third)()
	second()
	other()
	if len(g.open) != 0 {
		t.Errorf("%d gates are kept for nobody", len(g.open))
	}
}
