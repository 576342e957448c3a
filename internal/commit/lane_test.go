package commit_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/setpointdb/setpoint/internal/commit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// gate is a Run that a test holds: it announces each group and waits for its results.
type gate struct {
	groups  chan []string
	results chan func([]string) ([]commit.Result[string], error)
}

func newGate() *gate {
	return &gate{groups: make(chan []string), results: make(chan func([]string) ([]commit.Result[string], error))}
}

func (g *gate) run(_ context.Context, items []string) ([]commit.Result[string], error) {
	g.groups <- items
	return (<-g.results)(items)
}

func done(items []string) ([]commit.Result[string], error) {
	results := make([]commit.Result[string], len(items))
	for i, item := range items {
		results[i].Value = "did " + item
	}
	return results, nil
}

// caller starts calls, each of which is in the queue (or on its way) before the next.
type caller struct {
	lane    *commit.Lane[string, string]
	queued  chan string
	answers map[string]chan string
}

func newCaller(g *gate, maxItems int) *caller {
	c := &caller{queued: make(chan string, 100), answers: map[string]chan string{}}
	c.lane = commit.NewLane(commit.Config[string, string]{
		Run: g.run, MaxItems: maxItems,
		Keys: func(item string) []string {
			return []string{item[:1]}
		},
	})
	return c
}

func (c *caller) call(ctx context.Context, item string) {
	answer := make(chan string, 1)
	c.answers[item] = answer
	before := c.lane.Queued()
	go func() {
		v, err := c.lane.Do(ctx, item)
		if err != nil {
			v = err.Error()
		}
		answer <- v
	}()
	for c.lane.Queued() == before {
		runtime.Gosched() // The goroutine takes a moment to queue.
	}
}

func TestGroups(t *testing.T) {
	t.Parallel()
	g := newGate()
	c := newCaller(g, 3)
	ctx, cancel := context.WithCancel(context.Background())
	first := make(chan string, 1)
	go func() {
		v, _ := c.lane.Do(context.Background(), "a1")
		first <- v
	}()
	if diff := cmp.Diff([]string{"a1"}, <-g.groups); diff != "" {
		t.Fatalf("a lone call goes at once:\n%s", diff)
	}
	for _, item := range []string{"b1", "a2", "b2", "c1", "d1", "e1"} {
		c.call(ctx, item)
	}
	g.results <- done
	if got := <-first; got != "did a1" {
		t.Errorf("a1: %q", got)
	}
	// The oldest that share no key, three at most.
	if diff := cmp.Diff([]string{"b1", "a2", "c1"}, <-g.groups); diff != "" {
		t.Errorf("second group:\n%s", diff)
	}
	g.results <- func(items []string) ([]commit.Result[string], error) {
		results, err := done(items)
		results[1].Again = true
		return results, err
	}
	// What is to be done again goes first.
	if diff := cmp.Diff([]string{"a2", "b2", "d1"}, <-g.groups); diff != "" {
		t.Errorf("third group:\n%s", diff)
	}
	failure := errors.New("lost")
	g.results <- func([]string) ([]commit.Result[string], error) { return nil, failure }
	if diff := cmp.Diff([]string{"e1"}, <-g.groups); diff != "" {
		t.Errorf("fourth group:\n%s", diff)
	}
	// A caller that gives up while its group is on its way is told so; one that is queued leaves the queue.
	c.call(ctx, "f1")
	cancel()
	for _, item := range []string{"e1", "f1"} {
		if got := <-c.answers[item]; got != context.Canceled.Error() {
			t.Errorf("%s: %q", item, got)
		}
	}
	g.results <- func([]string) ([]commit.Result[string], error) { panic("mislaid") }
	c.lane.Close()
	for item, want := range map[string]string{"b1": "did b1", "c1": "did c1", "a2": "lost", "b2": "lost", "d1": "lost"} {
		if got := <-c.answers[item]; got != want {
			t.Errorf("%s: %q, want %q", item, got, want)
		}
	}
}

func TestFailures(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		result func([]string) ([]commit.Result[string], error)
		want   string
	}{
		"too few results": {func([]string) ([]commit.Result[string], error) { return nil, nil }, "a group of 1 calls has 0 results"},
		"a panic":         {func([]string) ([]commit.Result[string], error) { panic("mislaid") }, "panic in a group: mislaid"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lane := commit.NewLane(commit.Config[string, string]{
				Run:      func(_ context.Context, items []string) ([]commit.Result[string], error) { return test.result(items) },
				MaxItems: 1,
			})
			defer lane.Close()
			_, err := lane.Do(context.Background(), "a")
			if err == nil || len(err.Error()) < len(test.want) || err.Error()[:len(test.want)] != test.want {
				t.Errorf("error %v, want %q", err, test.want)
			}
		})
	}
}

func TestClose(t *testing.T) {
	t.Parallel()
	g := newGate()
	c := newCaller(g, 10)
	ctx := context.Background()
	c.call(ctx, "warm")
	<-g.groups
	c.call(ctx, "late")
	closed := make(chan struct{})
	go func() {
		c.lane.Close()
		close(closed)
	}()
	if got := <-c.answers["late"]; got != commit.ErrClosed.Error() {
		t.Errorf("a queued call: %q", got)
	}
	g.results <- func(items []string) ([]commit.Result[string], error) {
		results, err := done(items)
		results[0].Again = true
		return results, err
	}
	<-closed
	if got := <-c.answers["warm"]; got != commit.ErrClosed.Error() {
		t.Errorf("a call to be done again: %q", got)
	}
	if _, err := c.lane.Do(ctx, "after"); !errors.Is(err, commit.ErrClosed) {
		t.Errorf("a call after: %v", err)
	}
}

// Whatever the load and the refusals: every call is done once, and no group has a key twice.
func TestEveryCallOnce(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		calls := rapid.SliceOfN(rapid.IntRange(0, 5), 1, 60).Draw(t, "keys of the calls")
		repeats := rapid.SliceOfN(rapid.Bool(), 1, 20).Draw(t, "who goes again")
		var mu sync.Mutex
		var problems []string
		times, runs := map[int]int{}, 0
		lane := commit.NewLane(commit.Config[int, int]{
			MaxItems: rapid.IntRange(1, 8).Draw(t, "most in a group"),
			Keys:     func(i int) []string { return []string{fmt.Sprint(calls[i])} },
			Run: func(_ context.Context, items []int) ([]commit.Result[int], error) {
				mu.Lock()
				defer mu.Unlock()
				var keys []int
				results := make([]commit.Result[int], len(items))
				for i, item := range items {
					keys = append(keys, calls[item])
					results[i].Value = item
					runs++
					if i > 0 && repeats[runs%len(repeats)] {
						results[i].Again = true
						continue
					}
					times[item]++
				}
				slices.Sort(keys)
				if len(slices.Compact(keys)) != len(items) {
					problems = append(problems, fmt.Sprintf("a group %v has a key twice", items))
				}
				return results, nil
			},
		})
		var wg sync.WaitGroup
		for i := range calls {
			wg.Go(func() {
				if v, err := lane.Do(context.Background(), i); err != nil || v != i {
					t.Errorf("call %d: %d, %v", i, v, err)
				}
			})
		}
		wg.Wait()
		lane.Close()
		for i := range calls {
			if times[i] != 1 {
				t.Errorf("call %d was done %d times", i, times[i])
			}
		}
		for _, p := range problems {
			t.Error(p)
		}
	})
}
