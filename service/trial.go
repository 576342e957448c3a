package service

import (
	"context"
	"math"
	"strconv"

	"github.com/setpointdb/setpoint/db/dbgen"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/identity"
)

// ListTrials returns a page of the trials of an optimization: by number, or the best first by a metric, which an index has in
// order.
func (s *Service) ListTrials(ctx context.Context, req *setpointv1.ListTrialsRequest) (*setpointv1.ListTrialsResponse, error) {
	if req.GetMetric() != "" && req.GetIncludeIntermediate() {
		return nil, invalid("include_intermediate", "intermediate reports have no place among trials by a metric")
	}
	token, err := decodePageToken(req.GetPageToken(), filterHash("trials", req.GetSessionId(), req.GetOptimizationId(),
		req.GetMetric(), req.GetDirection().String(), strconv.FormatBool(req.GetIncludeIntermediate())))
	if err != nil {
		return nil, err
	}
	row, err := s.readOptimization(ctx, req, false, identity.Read)
	if err != nil {
		return nil, err
	}
	size := pageSize(req.GetPageSize())
	var page []trialOnPage
	err = s.db.Read(ctx, "list trials", func(ctx context.Context, q *dbgen.Queries) error {
		page, err = s.trialPage(ctx, q, req, row, token, int32(size)+1)
		return err
	})
	if err != nil || len(page) == 0 {
		return &setpointv1.ListTrialsResponse{}, err
	}
	response := &setpointv1.ListTrialsResponse{}
	for _, t := range page[:min(size, len(page), int(page[0].candidates))] {
		trial, err := t.proto(row.BestNumber)
		if err != nil {
			return nil, err
		}
		response.Trials = append(response.Trials, trial)
	}
	if n := len(response.Trials); int64(n) < page[0].candidates {
		last := page[n-1]
		next := pageToken{Filter: token.Filter, Number: last.Number, Step: last.Step, Started: true}
		if req.GetMetric() != "" {
			next.Name = strconv.FormatFloat(last.value, 'g', -1, 64)
		}
		response.NextPageToken = next.encode()
	}
	return response, nil
}

// trialOnPage is a trial with its value of the metric that the page is by.
type trialOnPage struct {
	trialRow
	value      float64
	candidates int64
}

func (s *Service) trialPage(
	ctx context.Context, q *dbgen.Queries, req *setpointv1.ListTrialsRequest, row optimizationRow, token pageToken, limit int32,
) ([]trialOnPage, error) {
	if req.GetMetric() == "" {
		params := dbgen.TrialListParams{
			SessionID: req.GetSessionId(), OptimizationID: row.OptimizationID, Number: token.Number, Step: token.Step,
			IncludeIntermediate: req.GetIncludeIntermediate(), RowLimit: limit, MaxBytes: s.limits.PageBytes,
		}
		if !token.Started {
			params.Number, params.Step = -1, math.MinInt64
		}
		rows, err := q.TrialList(ctx, params)
		page := make([]trialOnPage, len(rows))
		for i, r := range rows {
			page[i] = trialOnPage{trialRow: trialRow{
				r.Number, r.Step, r.Vals, r.Payloads, r.Metrics, r.Note, r.Applied, r.Late, r.ReportedAt,
			}, candidates: r.Candidates}
		}
		return page, err
	}
	params := dbgen.TrialLeastParams{
		SessionID: req.GetSessionId(), OptimizationID: row.OptimizationID, Metric: req.GetMetric(), FromStart: !token.Started,
		Number: token.Number, RowLimit: limit, MaxBytes: s.limits.PageBytes,
	}
	if token.Started {
		var err error
		if params.Value, err = strconv.ParseFloat(token.Name, 64); err != nil {
			return nil, invalid("page_token", "is none that this server gave")
		}
	}
	rows, err := bestTrials(ctx, q, params, lessIsBetter(req, row))
	page := make([]trialOnPage, len(rows))
	for i, r := range rows {
		page[i] = trialOnPage{trialRow: trialRow{
			r.Number, r.Step, r.Vals, r.Payloads, r.Metrics, r.Note, r.Applied, r.Late, r.ReportedAt,
		}, value: r.Value, candidates: r.Candidates}
	}
	return page, err
}

func bestTrials(ctx context.Context, q *dbgen.Queries, params dbgen.TrialLeastParams, least bool) ([]dbgen.TrialLeastRow, error) {
	if least {
		return q.TrialLeast(ctx, params)
	}
	greatest, err := q.TrialGreatest(ctx, dbgen.TrialGreatestParams(params))
	rows := make([]dbgen.TrialLeastRow, len(greatest))
	for i, r := range greatest {
		rows[i] = dbgen.TrialLeastRow(r)
	}
	return rows, err
}

// lessIsBetter is the direction of a list by a metric: as asked for, or that of the objective for its metric.
func lessIsBetter(req *setpointv1.ListTrialsRequest, row optimizationRow) bool {
	if req.GetDirection() != setpointv1.Direction_DIRECTION_UNSPECIFIED {
		return req.GetDirection() == setpointv1.Direction_DIRECTION_MINIMIZE
	}
	return row.Minimizes && orNone(row.ObjectiveMetric) == req.GetMetric()
}
