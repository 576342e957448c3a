package audit_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/setpointdb/setpoint/internal/audit"
)

// The tests run on a clock of their own, which goes on when everything waits: waits take no time, and end on the dot.

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// stage is a buffer whose flushes the test answers.
type stage struct {
	*audit.Buffer
	t     *testing.T
	start time.Time

	mu      sync.Mutex
	written []string
	// batches are the times and sizes of flushes that succeeded.
	batches []string
	tries   int
	waits   int
	failed  []error
}

// newStage starts a buffer whose n-th flush, from 0, is answered by answer(n, ctx); nil writes all down.
func newStage(t *testing.T, room int, answer func(n int, ctx context.Context) error) *stage {
	s := &stage{t: t, start: time.Now()}
	s.Buffer = audit.New(audit.Config{
		Flush: func(ctx context.Context, denials []audit.Denial) error {
			s.mu.Lock()
			n := s.tries
			s.tries++
			s.mu.Unlock()
			if answer != nil {
				if err := answer(n, ctx); err != nil {
					return err
				}
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			for _, d := range denials {
				s.written = append(s.written, d.EventID)
			}
			s.batches = append(s.batches, fmt.Sprintf("%v: %d", time.Since(s.start), len(denials)))
			return nil
		},
		Waits: func(context.Context) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.waits++
		},
		Failed: func(_ context.Context, err error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.failed = append(s.failed, err)
		},
		Room: room,
	})
	return s
}

func (s *stage) note(ids ...string) {
	s.t.Helper()
	for _, id := range ids {
		if err := s.Note(s.t.Context(), audit.Denial{EventID: id, Principal: "user:" + id}); err != nil {
			s.t.Fatalf("note %s: %v", id, err)
		}
	}
}

func (s *stage) wantWritten(want ...string) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if diff := cmp.Diff(want, s.written); diff != "" {
		s.t.Errorf("written (-want +got):\n%s", diff)
	}
}

func (s *stage) wantBatches(want ...string) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if diff := cmp.Diff(want, s.batches); diff != "" {
		s.t.Errorf("batches (-want +got):\n%s", diff)
	}
}

// close wants a number of denials to be left.
func (s *stage) close(want int) {
	s.t.Helper()
	if left := s.Close(s.t.Context()); left != want {
		s.t.Errorf("%d are lost, want %d", left, want)
	}
}

func ids(from, to int) []string {
	var out []string
	for i := from; i < to; i++ {
		out = append(out, fmt.Sprint(i))
	}
	return out
}

// after lets time pass.
func after(d time.Duration) { <-time.After(d) }

func TestWrittenTogether(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t, 0, nil)
		s.note("a")
		after(150 * time.Millisecond)
		s.note("b", "c")
		after(time.Hour)
		s.note("d")
		after(time.Second)
		s.wantBatches("200ms: 3", "1h0m0.35s: 1")
		s.wantWritten("a", "b", "c", "d")
		s.close(0)
	})
}

// A batch that is full does not wait for the time to pass, and none has more.
func TestFullBatches(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		noted := make(chan struct{})
		s := newStage(t, 0, func(int, context.Context) error {
			<-noted
			return nil
		})
		s.note(ids(0, 2500)...)
		close(noted)
		after(time.Second)
		s.wantWritten(ids(0, 2500)...)
		s.wantBatches("0s: 1000", "0s: 1000", "0s: 500")
		s.close(0)
	})
}

// While the database is away denials are kept, in order, and tried again ever more seldom, but within a second.
func TestDatabaseAway(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t, 0, func(n int, _ context.Context) error {
			if n < 6 {
				return broken
			}
			return nil
		})
		s.note("a")
		after(250 * time.Millisecond)
		s.note("b")
		after(time.Minute)
		// Tried at 0.2 s, and then after 0.1, 0.2, 0.4, 0.8, 1 and 1 s.
		s.wantBatches("3.7s: 2")
		s.wantWritten("a", "b")
		if len(s.failed) != 6 || !errors.Is(s.failed[5], broken) {
			t.Errorf("told of %v", s.failed)
		}
		s.close(0)
	})
}

// A full buffer has those wait who are denied, and counts them; none is lost.
func TestFullBufferWaits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		away := make(chan struct{})
		s := newStage(t, 3, func(int, context.Context) error {
			select {
			case <-away:
				return nil
			default:
				return errors.New("away")
			}
		})
		s.note("0", "1", "2")
		errs := make(chan error, 2)
		for i := range cap(errs) {
			go func() {
				errs <- s.Note(t.Context(), audit.Denial{EventID: fmt.Sprint(3 + i), Principal: fmt.Sprint("user:", i)})
			}()
		}
		impatient, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := s.Note(impatient, audit.Denial{EventID: "impatient"}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("who gave up was told %v", err)
		}
		after(time.Minute)
		if len(errs) > 0 || s.waits != 3 {
			t.Errorf("%d did not wait; counted %d", len(errs), s.waits)
		}
		close(away)
		for range cap(errs) {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
		after(time.Minute)
		slices.Sort(s.written) // Who came first after the wait is open.
		s.wantWritten(ids(0, 5)...)
		s.close(0)
	})
}

func TestClose(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t, 0, nil)
		s.note(ids(0, 999)...)
		s.close(0)
		s.wantBatches("0s: 999")
		if err := s.Note(t.Context(), audit.Denial{}); !errors.Is(err, audit.ErrClosed) {
			t.Errorf("after the end: %v", err)
		}
	})
}

// Close ends those who wait for room, and a flush that hangs; what that had is tried once more.
func TestCloseDuringFlush(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t, 2, func(n int, ctx context.Context) error {
			if n == 0 {
				<-ctx.Done()
			}
			return ctx.Err()
		})
		s.note("a", "b")
		waiting := make(chan error)
		go func() { waiting <- s.Note(t.Context(), audit.Denial{EventID: "c"}) }()
		after(time.Minute)
		s.close(0)
		if err := <-waiting; !errors.Is(err, audit.ErrClosed) {
			t.Errorf("who waited was told %v", err)
		}
		s.wantWritten("a", "b")
	})
}

// Close does not wait for a database that stays away: it tells how much is lost.
func TestCloseInVain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t, 0, func(_ int, ctx context.Context) error {
			<-ctx.Done()
			return ctx.Err()
		})
		s.note(ids(0, 1001)...)
		bounded, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if left := s.Close(bounded); left != 1001 {
			t.Errorf("%d are lost, want 1001", left)
		}
		if took := time.Since(s.start); took != 5*time.Second {
			t.Errorf("it took %v", took)
		}
		s.wantWritten()
	})
}

// Whoever notes at the same time, each denial is written once.
func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	s := newStage(t, 50, func(n int, _ context.Context) error {
		if n%3 == 0 {
			return errors.New("broken")
		}
		return nil
	})
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			for j := range 100 {
				if err := s.Note(t.Context(), audit.Denial{EventID: fmt.Sprintf("%02d-%03d", i, j), Principal: fmt.Sprint("user:", i)}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	left := s.Close(t.Context())
	slices.Sort(s.written)
	if got := len(slices.Compact(s.written)); got+left != 1600 || got != len(s.written) {
		t.Errorf("%d written, %d of them distinct, %d left", len(s.written), got, left)
	}
}

// Who is denied a lot fills half of the buffer, and waits then; others do not.
func TestShareOfAPrincipal(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		away := make(chan struct{})
		s := newStage(t, 5, func(_ int, ctx context.Context) error {
			select {
			case <-away:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
		noisy := func(id string) error { return s.Note(t.Context(), audit.Denial{EventID: id, Principal: "user:noisy"}) }
		for _, id := range ids(0, 3) {
			if err := noisy(id); err != nil {
				t.Fatal(err)
			}
		}
		waiting := make(chan error)
		go func() { waiting <- noisy("3") }()
		synctest.Wait()
		s.note("other", "another")
		if s.waits != 1 {
			t.Errorf("%d waited, want the noisy one", s.waits)
		}
		close(away)
		if err := <-waiting; err != nil {
			t.Error(err)
		}
		after(time.Minute)
		s.wantWritten("0", "1", "2", "other", "another", "3")
		// What is written counts no more.
		for _, id := range ids(4, 7) {
			if err := noisy(id); err != nil {
				t.Fatal(err)
			}
		}
		if s.waits != 1 {
			t.Errorf("%d waited afterwards", s.waits-1)
		}
		s.close(0)
	})
}

// What the database will never take holds up nothing: it is dropped, told of, and all else is written.
func TestHopelessDenials(t *testing.T) {
	t.Parallel()
	bad := errors.New("refused")
	tests := map[string]struct {
		bad     []string
		closing bool
	}{
		"none":                    {},
		"one":                     {bad: []string{"1234"}},
		"the first and the last":  {bad: []string{"0", "2499"}},
		"some in a row":           {bad: ids(700, 720)},
		"when the buffer is shut": {bad: []string{"17", "18", "2000"}, closing: true},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var mu sync.Mutex
				var written, dropped []string
				tries := 0
				b := audit.New(audit.Config{
					Flush: func(_ context.Context, denials []audit.Denial) error {
						mu.Lock()
						defer mu.Unlock()
						tries++
						for _, d := range denials {
							if slices.Contains(test.bad, d.EventID) {
								return bad
							}
						}
						for _, d := range denials {
							written = append(written, d.EventID)
						}
						return nil
					},
					Hopeless: func(err error) bool { return errors.Is(err, bad) },
					Dropped: func(_ context.Context, d audit.Denial, err error) {
						if !errors.Is(err, bad) {
							t.Errorf("dropped %s for %v", d.EventID, err)
						}
						dropped = append(dropped, d.EventID)
					},
					Failed: func(_ context.Context, err error) { t.Errorf("it is to be tried again: %v", err) },
				})
				var good []string
				for _, id := range ids(0, 2500) {
					if err := b.Note(t.Context(), audit.Denial{EventID: id}); err != nil {
						t.Fatal(err)
					}
					if !slices.Contains(test.bad, id) {
						good = append(good, id)
					}
				}
				if !test.closing {
					after(10 * time.Second)
				}
				if left := b.Close(t.Context()); left != 0 {
					t.Errorf("%d are left", left)
				}
				if diff := cmp.Diff(good, written); diff != "" {
					t.Errorf("written (-want +got):\n%s", diff)
				}
				if diff := cmp.Diff(test.bad, dropped); diff != "" {
					t.Errorf("dropped (-want +got):\n%s", diff)
				}
				if most := 10 + 25*len(test.bad); tries > most {
					t.Errorf("it took %d tries, want %d at most", tries, most)
				}
			})
		})
	}
}
