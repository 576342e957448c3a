package service_test

import (
	"cmp"
	"math"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/setpointdb/setpoint/db/dbgen"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

const (
	// largeTrials is how many trials an optimization is known to work with.
	largeTrials = 1_000_000
	// chatty is a trial with as many intermediate reports as largeSteps, and so is each of the ten after it.
	chatty     = 500_000
	largeSteps = 2_000
	// largePage is the page that is read, with the row that tells of the next.
	largePage = 101
)

// fillTrials gives the session's newest optimization its trials. Each has its loss, which no other has; half of them one of four
// values of tied, two of which are infinite; and one of a thousand of the last 100,000 is rare.
func fillTrials(b *bundle) {
	o := b.newest()
	for _, table := range []string{"trials", "trial_metrics"} {
		b.exec(`alter table setpoint.` + table + ` set unlogged`) // As fast as can be.
	}
	b.exec(`insert into setpoint.trials (session_id, optimization_id, number, step, vals, metrics, bytes, note, applied, late,
				reported_by, reported_at)
			select 's', $1, i, -1, '{"x": {"type": "integer", "value": 1}}',
				jsonb_build_object('loss', i * 7919 % 1000003), 60, '', false, false, 'anonymous', clock_timestamp()
			from generate_series(1, $2::bigint) i`, o, largeTrials)
	b.exec(`insert into setpoint.trials (session_id, optimization_id, number, step, vals, metrics, bytes, note, applied, late,
				reported_by, reported_at)
			select 's', $1, i, step, '{}', '{"loss": 1}', 20, '', false, false, 'anonymous', clock_timestamp()
			from generate_series($2::bigint, $2::bigint + 10) i, generate_series(0, $3::bigint - 1) step`, o, chatty, largeSteps)
	b.exec(`insert into setpoint.trial_metrics (session_id, optimization_id, metric, value, number)
			select 's', $1, 'loss', i * 7919 % 1000003, i from generate_series(1, $2::bigint) i`, o, largeTrials)
	b.exec(`insert into setpoint.trial_metrics (session_id, optimization_id, metric, value, number)
			select 's', $1, 'tied', ('{-Infinity,-1,0,Infinity}'::float8[])[1 + i / 2 % 4], i
			from generate_series(2, $2::bigint, 2) i`, o, largeTrials)
	b.exec(`insert into setpoint.trial_metrics (session_id, optimization_id, metric, value, number)
			select 's', $1, 'rare', i % 7, i from generate_series($2::bigint - 100000, $2::bigint, 1000) i`, o, largeTrials)
	b.exec(`update setpoint.optimizations set trial_count = $2, last_number = $2, best_objective = 1, best_number =
			(select number from setpoint.trial_metrics where session_id = 's' and metric = 'loss' and value = 1)
		where optimization_id = $1`, o, largeTrials)
}

func startLarge(b *bundle) {
	b.integer("x")
	b.start([]string{"x"}, func(req *setpointv1.StartOptimizationRequest) {
		req.Ttl = durationpb.New(time.Hour)
		req.Objective = &setpointv1.Objective{Metric: "loss", Direction: setpointv1.Direction_DIRECTION_MINIMIZE}
	})
}

// Whatever the planner believes, a million trials cost what a few do: to report, to tell the best, and to read a page of them.
func TestAMillionTrials(t *testing.T) {
	t.Parallel()
	eachBelief(t, startLarge, fillTrials, func(b *bundle, p *planned) {
		trialPages(b, p)
		trialBattery(b, p)
		if !p.quiet {
			wantTrials(b)
		}
		// To be filled takes long, and these are nearly as the others.
	}, "plans of empty tables", "statistics of many small ones", "fresh statistics", "plans of many small ones")
}

// wantTrials fails the test unless the pages by a metric are right, and a new best is first at once.
func wantTrials(b *bundle) {
	b.t.Helper()
	list := func(metric string, direction setpointv1.Direction, pages int) []int64 {
		b.t.Helper()
		req := &setpointv1.ListTrialsRequest{
			SessionId: "s", OptimizationId: b.newest(), Metric: metric, Direction: direction, PageSize: 50,
		}
		var numbers []int64
		for range pages {
			page, err := b.Optimizations.ListTrials(b.ctx, req)
			if err != nil {
				b.t.Fatal(err)
			}
			for _, trial := range page.GetTrials() {
				numbers = append(numbers, trial.GetNumber())
			}
			req.PageToken = page.GetNextPageToken()
		}
		return numbers
	}
	const least, greatest = setpointv1.Direction_DIRECTION_MINIMIZE, setpointv1.Direction_DIRECTION_MAXIMIZE
	var leastTied, greatestTied, leastLoss, rare []int64
	for i := range int64(100) {
		leastTied, greatestTied = append(leastTied, 8*(i+1)), append(greatestTied, 8*i+6)
	}
	for number := int64(1); number <= largeTrials; number++ {
		if loss := number * 7919 % 1_000_003; loss <= 101 {
			leastLoss = append(leastLoss, number)
		}
		if number >= largeTrials-100_000 && number%1000 == 0 {
			rare = append(rare, number)
		}
	}
	slices.SortFunc(leastLoss, func(x, y int64) int { return cmp.Compare(x*7919%1_000_003, y*7919%1_000_003) })
	slices.SortStableFunc(rare, func(x, y int64) int { return cmp.Compare(y%7, x%7) })
	equal(b.t, "the least of tied", leastTied, list("tied", least, 2))
	equal(b.t, "the greatest of tied", greatestTied, list("tied", greatest, 2))
	equal(b.t, "the least loss", leastLoss[:100], list("loss", least, 2))
	equal(b.t, "the greatest of rare, all", rare, list("rare", greatest, 3))
	o := b.optimization(b.newest())
	if o.GetTrialCount() != largeTrials || o.GetBestTrial().GetNumber() != leastLoss[0] {
		b.t.Errorf("%d trials, and the best is %d; want the best %d", o.GetTrialCount(), o.GetBestTrial().GetNumber(), leastLoss[0])
	}
	reported, err := b.Optimizations.ReportProgress(b.ctx, &setpointv1.ReportProgressRequest{
		SessionId: "s", OptimizationId: o.GetOptimizationId(), FencingToken: o.GetFencingToken(),
		Metrics: map[string]float64{"loss": 0.5},
	})
	if err != nil {
		b.t.Fatal(err)
	}
	if !reported.GetIsBest() || reported.GetTrial().GetNumber() != largeTrials+1 {
		b.t.Errorf("reported %v", reported)
	}
	equal(b.t, "the least loss now", append([]int64{largeTrials + 1}, leastLoss[:49]...), list("loss", least, 1))
}

// newest is the session's last optimization.
func (b *bundle) newest() string {
	var id string
	b.row(&id, `select max(optimization_id) from setpoint.optimizations where session_id = 's'`)
	return id
}

// trialPages reads pages: two look-ups for each trial, and no more trials than there are on it.
func trialPages(b *bundle, p *planned) {
	id := b.newest()
	const blocks, rows = 12 * largePage, 4 * largePage
	for _, metric := range []string{"loss", "tied", "rare", "none"} {
		for what, at := range map[string]struct {
			from   bool
			value  float64
			number int64
		}{
			"first page":          {from: true},
			"page in the middle":  {value: 500_000, number: 17},
			"page among ties":     {value: 0, number: 500_000},
			"page of least ones":  {value: math.Inf(-1), number: 600_000},
			"page of greatest":    {value: math.Inf(1), number: 600_000},
			"page after the rare": {value: 3, number: 950_000},
		} {
			params := dbgen.TrialLeastParams{
				SessionID: "s", OptimizationID: id, Metric: metric, FromStart: at.from, Value: at.value, Number: at.number,
				RowLimit: largePage, MaxBytes: 8 << 20,
			}
			p.read("least "+metric+", "+what, blocks, rows, func(q *dbgen.Queries) error {
				_, err := q.TrialLeast(b.ctx, params)
				return err
			})
			p.read("greatest "+metric+", "+what, blocks, rows, func(q *dbgen.Queries) error {
				_, err := q.TrialGreatest(b.ctx, dbgen.TrialGreatestParams(params))
				return err
			})
		}
	}
	for _, intermediate := range []bool{false, true} {
		for what, at := range map[string][2]int64{
			"first page": {-1, math.MinInt64}, "page of the middle": {300_000, -1}, "page at the chatty ones": {chatty - 5, -1},
			"page within a chatty one": {chatty + 1, 700}, "last page": {largeTrials - 50, -1},
		} {
			name := what
			if intermediate {
				name += " with intermediate reports"
			}
			p.read(name, blocks, rows, func(q *dbgen.Queries) error {
				_, err := q.TrialList(b.ctx, dbgen.TrialListParams{
					SessionID: "s", OptimizationID: id, Number: at[0], Step: at[1], IncludeIntermediate: intermediate,
					RowLimit: largePage, MaxBytes: 8 << 20,
				})
				return err
			})
		}
	}
}

func trialBattery(b *bundle, p *planned) {
	id := b.newest()
	get := func(q *dbgen.Queries) error {
		_, err := q.OptimizationGet(b.ctx, dbgen.OptimizationGetParams{SessionID: "s", Authority: 63, OptimizationID: id, WithCheckpoint: true})
		return err
	}
	p.read("best so far", 100, 10, get)
	p.write("best so far", 100, 10, get)
	p.write("a trial that was reported", 10, 10, func(q *dbgen.Queries) error {
		_, err := q.TrialGet(b.ctx, dbgen.TrialGetParams{SessionID: "s", OptimizationID: id, Number: 777_777, Step: -1})
		return err
	})
	p.read("list of optimizations", 100, 10, func(q *dbgen.Queries) error {
		_, err := q.OptimizationList(b.ctx, dbgen.OptimizationListParams{
			SessionID: "s", Authority: 63, Before: "opt_~", States: []string{}, RowLimit: largePage, MaxBytes: 8 << 20,
		})
		return err
	})
	p.write("report", 300, 10, func(q *dbgen.Queries) error {
		_, err := q.OptimizationReport(b.ctx, dbgen.OptimizationReportParams{
			SessionID: "s", OptimizationID: id, Step: -1, MetricNames: []string{"loss", "tied"},
			MetricValues: []float64{0.5, math.Inf(1)}, Vals: []byte(`{}`), Metrics: []byte(`{}`), Principal: "anonymous",
		})
		return err
	})
}
