package keepalive_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/setpointdb/setpoint/internal/keepalive"
)

// The tests run on a clock of their own, which goes on when everything waits: waits take no time, and end on the dot.

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// epoch is the time of the database's clock that reads are given relative to.
var epoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

func at(seconds int) time.Time { return epoch.Add(time.Duration(seconds) * time.Second) }

// flush is one call of the Flush under test.
type flush struct {
	After time.Duration // Since the test began.
	Reads map[string]time.Time
}

// stage is an Extender whose flushes the test answers.
type stage struct {
	*keepalive.Extender
	t       *testing.T
	start   time.Time
	flushes chan flush
	errs    chan error // What failed was told.
}

// newStage starts an Extender whose n-th flush, from 0, is answered by answer(n, …); nil writes all down.
func newStage(t *testing.T, answer func(n int, ctx context.Context, reads []keepalive.Read) ([]keepalive.Read, error)) *stage {
	s := &stage{t: t, start: time.Now(), flushes: make(chan flush, 100), errs: make(chan error, 100)}
	n := 0
	s.Extender = keepalive.New(func(ctx context.Context, reads []keepalive.Read) ([]keepalive.Read, error) {
		f := flush{After: time.Since(s.start), Reads: map[string]time.Time{}}
		for _, r := range reads {
			f.Reads[r.SessionID] = r.At
		}
		if len(f.Reads) != len(reads) {
			t.Errorf("a session twice in one flush: %v", reads)
		}
		s.flushes <- f
		if answer == nil {
			return nil, nil
		}
		n++
		return answer(n-1, ctx, reads)
	}, func(_ context.Context, err error) { s.errs <- err })
	return s
}

// want waits for the next flush.
func (s *stage) want(after time.Duration, reads map[string]time.Time) {
	s.t.Helper()
	select {
	case got := <-s.flushes:
		if diff := cmp.Diff(flush{after, reads}, got); diff != "" {
			s.t.Errorf("flush (-want +got):\n%s", diff)
		}
	case <-time.After(time.Hour):
		s.t.Errorf("no flush; want one of %v", reads)
	}
}

// wantNone lets an hour pass without a flush.
func (s *stage) wantNone() {
	s.t.Helper()
	select {
	case got := <-s.flushes:
		s.t.Errorf("a flush: %v", got)
	case <-time.After(time.Hour):
	}
}

func TestDueTime(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		ttls []time.Duration
		want time.Duration
	}{
		"a quarter of the ttl":    {[]time.Duration{40 * time.Millisecond}, 10 * time.Millisecond},
		"the shortest ttl":        {[]time.Duration{time.Second}, 250 * time.Millisecond},
		"a quarter of it is 5 s":  {[]time.Duration{20 * time.Second}, keepalive.MaxDelay},
		"never later than 5 s":    {[]time.Duration{24 * time.Hour}, keepalive.MaxDelay},
		"a sooner one comes next": {[]time.Duration{time.Hour, 4 * time.Second}, time.Second},
		"a later one comes next":  {[]time.Duration{4 * time.Second, time.Hour}, time.Second},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := newStage(t, nil)
				reads := map[string]time.Time{}
				for i, ttl := range test.ttls {
					id := string(rune('a' + i))
					s.Note(id, at(i), ttl)
					reads[id] = at(i)
				}
				s.want(test.want, reads)
				s.wantNone()
				s.Close(t.Context())
			})
		})
	}
}

// However often a session is read, one flush has it once, at its latest read, which need not be the last to be noted.
func TestLatestRead(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t, nil)
		for _, second := range []int{1, 3, 2} {
			s.Note("s", at(second), 8*time.Second)
		}
		s.Note("other", at(1), 8*time.Second)
		s.want(2*time.Second, map[string]time.Time{"s": at(3), "other": at(1)})
		s.wantNone()
		s.Note("s", at(9), 8*time.Second)
		s.want(time.Hour+4*time.Second, map[string]time.Time{"s": at(9)})
		s.Close(t.Context())
	})
}

func TestFailedFlush(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	synctest.Test(t, func(t *testing.T) {
		var s *stage
		s = newStage(t, func(n int, _ context.Context, reads []keepalive.Read) ([]keepalive.Read, error) {
			if n > 0 {
				return nil, nil
			}
			s.Note("read meanwhile", at(9), 8*time.Second)
			clear(reads) // They are the flush's to keep.
			return nil, broken
		})
		s.Note("read meanwhile", at(1), 8*time.Second)
		s.Note("s", at(1), 8*time.Second)
		s.want(2*time.Second, map[string]time.Time{"s": at(1), "read meanwhile": at(1)})
		s.want(4*time.Second, map[string]time.Time{"s": at(1), "read meanwhile": at(9)})
		s.wantNone()
		if err := <-s.errs; !errors.Is(err, broken) || len(s.errs) > 0 {
			t.Errorf("told of %v and %d more, want %v alone", err, len(s.errs), broken)
		}
		s.Close(t.Context())
	})
}

// What a flush could not write down comes again, what it could does not.
func TestLeftover(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t, func(n int, _ context.Context, _ []keepalive.Read) ([]keepalive.Read, error) {
			if n == 0 {
				return []keepalive.Read{{SessionID: "locked", At: at(1)}}, nil
			}
			return nil, nil
		})
		s.Note("locked", at(1), 4*time.Second)
		s.Note("s", at(1), 4*time.Second)
		s.want(time.Second, map[string]time.Time{"s": at(1), "locked": at(1)})
		s.want(2*time.Second, map[string]time.Time{"locked": at(1)})
		s.wantNone()
		if len(s.errs) > 0 {
			t.Errorf("told of a failure: %v", <-s.errs)
		}
		s.Close(t.Context())
	})
}

// A read is given up when the session that it extends would have ended.
func TestLeftoverLapses(t *testing.T) {
	t.Parallel()
	tests := map[string]error{"left over": nil, "failed": errors.New("broken")}
	for name, err := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := newStage(t, func(_ int, _ context.Context, reads []keepalive.Read) ([]keepalive.Read, error) {
					return reads, err
				})
				s.Note("s", at(1), 4*time.Second)
				for second := range 4 {
					s.want(time.Duration(second+1)*time.Second, map[string]time.Time{"s": at(1)})
				}
				s.wantNone()
				s.Close(t.Context())
				s.wantNone()
			})
		})
	}
}

func TestEndlessSession(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t, nil)
		s.Note("s", at(1), 0)
		s.wantNone()
		s.Close(t.Context())
		s.wantNone()
	})
}

func TestClose(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t, nil)
		s.Note("s", at(1), time.Hour)
		s.Close(t.Context())
		s.want(0, map[string]time.Time{"s": at(1)})
		s.wantNone()
	})
}

// Close ends a flush that hangs, and what that had is in the last.
func TestCloseDuringFlush(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t, func(n int, ctx context.Context, _ []keepalive.Read) ([]keepalive.Read, error) {
			if n == 0 {
				<-ctx.Done()
			}
			return nil, ctx.Err()
		})
		s.Note("in flight", at(1), 4*time.Second)
		s.want(time.Second, map[string]time.Time{"in flight": at(1)})
		s.Note("noted since", at(2), 4*time.Second)
		s.Close(t.Context())
		s.want(time.Second, map[string]time.Time{"in flight": at(1), "noted since": at(2)})
		s.wantNone()
		if err := <-s.errs; !errors.Is(err, context.Canceled) || len(s.errs) > 0 {
			t.Errorf("told of %v and %d more, want the cancellation alone", err, len(s.errs))
		}
	})
}
