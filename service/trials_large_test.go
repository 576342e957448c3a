package service_test

import (
	"math"
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

// The metrics of the trials of a large optimization: each has its loss, which no other has; half of them one of four values
// of tied, two of which are infinite; and one of a thousand of the last 100,000 is rare.
func lossOf(number int64) float64 { return float64(number * 7919 % 1_000_003) }

func tiedOf(number int64) float64 {
	return []float64{math.Inf(-1), -1, 0, math.Inf(1)}[number/2%4]
}

func fillTrials(b *bundle) {
	o := b.newest()
	for _, table := range []string{"trials", "trial_metrics"} {
		b.exec(`alter table setpoint.` + table + ` set unlogged`) // As fast as can be.
	}
	b.exec(`insert into setpoint.trials (session_id, optimization_id, number, step, vals, metrics, note, applied, late,
				reported_by, reported_at)
			select 's', $1, i, -1, '{"x": {"type": "integer", "value": 1}}',
				case when i % 2 = 0 then '{"loss": 1, "tied": 1}'::jsonb else '{"loss": 1}' end, '', false, false, 'anonymous',
				clock_timestamp()
			from generate_series(1, $2::bigint) i`, o, largeTrials)
	b.exec(`insert into setpoint.trials (session_id, optimization_id, number, step, vals, metrics, note, applied, late,
				reported_by, reported_at)
			select 's', $1, i, step, '{}', '{"loss": 1}', '', false, false, 'anonymous', clock_timestamp()
			from generate_series($2::bigint, $2::bigint + 10) i, generate_series(0, $3::bigint - 1) step`, o, chatty, largeSteps)
	b.exec(`insert into setpoint.trial_metrics (session_id, optimization_id, metric, value, number)
			select 's', $1, 'loss', i * 7919 % 1000003, i from generate_series(1, $2::bigint) i`, o, largeTrials)
	b.exec(`insert into setpoint.trial_metrics (session_id, optimization_id, metric, value, number)
			select 's', $1, 'tied', ('{-Infinity,-1,0,Infinity}'::float8[])[1 + i / 2 % 4], i
			from generate_series(2, $2::bigint, 2) i`, o, largeTrials)
	b.exec(`insert into setpoint.trial_metrics (session_id, optimization_id, metric, value, number)
			select 's', $1, 'rare', i % 7, i from generate_series($2::bigint - 100000, $2::bigint, 1000) i`, o, largeTrials)
	b.exec(`update setpoint.optimizations set trial_count = $2, last_number = $2, best_number = 1, best_objective = 7919
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
	eachBelief(t, startLarge, fillTrials, trialBattery)
}

// newest is the session's last optimization.
func (b *bundle) newest() string {
	var id string
	b.row(&id, `select max(optimization_id) from setpoint.optimizations where session_id = 's'`)
	return id
}

func trialBattery(b *bundle, p *planned) {
	id := b.newest()
	const blocks, rows = 10 * largePage, 4 * largePage
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
	get := func(q *dbgen.Queries) error {
		_, err := q.OptimizationGet(b.ctx, dbgen.OptimizationGetParams{SessionID: "s", OptimizationID: id, WithCheckpoint: true})
		return err
	}
	p.read("best so far", 100, 10, get)
	p.write("best so far", 100, 10, get)
	p.write("a trial that was reported", 10, 10, func(q *dbgen.Queries) error {
		_, err := q.TrialGet(b.ctx, dbgen.TrialGetParams{SessionID: "s", OptimizationID: id, Number: 777_777, Step: -1})
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
