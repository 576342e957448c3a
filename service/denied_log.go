package service

import (
	"context"
	"sync"

	"golang.org/x/time/rate"

	"github.com/setpointdb/setpoint/internal/telemetry"
)

// deniedLog bounds the log's lines about denials, for each principal and altogether: those who are denied decide how many there are.
// All are counted, whether they are logged or not.
type deniedLog struct {
	mu sync.Mutex
	// all bounds the lines of all principals together.
	all *rate.Limiter
	of  map[string]*deniedLines
	// lines bounds those about what is lost; unsaid is what has been lost since the last of them.
	lines  *rate.Limiter
	unsaid int
	why    error
}

// deniedLines are the log's lines about one principal.
type deniedLines struct {
	limit *rate.Limiter
	// unlogged is how many others there have been since the last.
	unlogged int64
}

const (
	// deniedLinesRate is how many lines a second a principal has, and deniedLinesBurst how many at once; all together have
	// deniedLinesOfAll times as many.
	deniedLinesRate, deniedLinesBurst = 5, 50
	deniedLinesOfAll                  = 10
	// deniedPrincipals bounds the principals that are told apart.
	deniedPrincipals = 10_000
)

func newDeniedLog() *deniedLog {
	return &deniedLog{
		all:   rate.NewLimiter(deniedLinesRate*deniedLinesOfAll, deniedLinesBurst*deniedLinesOfAll),
		of:    map[string]*deniedLines{},
		lines: rate.NewLimiter(1, 10),
	}
}

// admit tells whether a denial is only to be counted, and if it is not, how many of the principal's were since the last line. Where
// there are too many principals, all others are forgotten.
func (l *deniedLog) admit(principal string) (int64, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	lines := l.of[principal]
	if lines == nil {
		if len(l.of) >= deniedPrincipals {
			clear(l.of)
		}
		lines = &deniedLines{limit: rate.NewLimiter(deniedLinesRate, deniedLinesBurst)}
		l.of[principal] = lines
	}
	if !lines.limit.Allow() || !l.all.Allow() {
		lines.unlogged++
		return 0, true
	}
	unlogged := lines.unlogged
	lines.unlogged = 0
	return unlogged, false
}

// lost tells of denials that will not be written; where there was much to tell, with those that come.
func (l *deniedLog) lost(ctx context.Context, events *telemetry.Events, denials int, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.unsaid, l.why = l.unsaid+denials, err
	if l.lines.Allow() {
		l.say(ctx, events)
	}
}

// close tells of what was not told of yet.
func (l *deniedLog) close(ctx context.Context, events *telemetry.Events) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.unsaid > 0 {
		l.say(ctx, events)
	}
}

func (l *deniedLog) say(ctx context.Context, events *telemetry.Events) {
	events.AuditLost(ctx, l.unsaid, l.why)
	l.unsaid = 0
}
