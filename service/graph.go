package service

import (
	"context"
	"fmt"
	"strconv"

	"google.golang.org/protobuf/proto"

	"github.com/setpointdb/setpoint/db/dbgen"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/value"
)

// relatedRow is the one shape of the rows that the queries of the graph return.
type relatedRow dbgen.DependencyListDependenciesRow

func (r relatedRow) proto() (*setpointv1.RelatedVariable, error) {
	kind, ok := value.ParseType(r.Type)
	if !ok {
		return nil, fmt.Errorf("variable %s: unknown type %q", r.VariableID, r.Type)
	}
	return &setpointv1.RelatedVariable{
		VariableId: r.VariableID, Name: r.Name, Type: kind, Version: r.Version, Expression: r.Expression,
		Stale: stale(r.StaleRevision, r.StaleCause, r.StaleError), Direct: r.Direct,
	}, nil
}

// GetGraph returns a page of the session's graph, by name.
func (s *Service) GetGraph(ctx context.Context, req *setpointv1.GetGraphRequest) (*setpointv1.GetGraphResponse, error) {
	filter := filterHash("graph", req.GetSessionId(), strconv.FormatBool(req.GetIncludeUnconnected()))
	token, err := decodePageToken(req.GetPageToken(), filter)
	if err != nil {
		return nil, err
	}
	size := pageSize(req.GetPageSize())
	var rows []dbgen.DependencyGraphRow
	err = s.db.Read(ctx, "get the graph", func(ctx context.Context, q *dbgen.Queries) error {
		if _, err := sightOf(ctx, q, req.GetSessionId()); err != nil {
			return err
		}
		c := callerIn(ctx, req.GetSessionId())
		rows, err = q.DependencyGraph(ctx, dbgen.DependencyGraphParams{
			SessionID: req.GetSessionId(), Principal: c.principal, Groups: c.groups, Authority: c.authority, IncludeUnconnected: req.GetIncludeUnconnected(), After: token.Name,
			RowLimit: int32(size) + 1,
		})
		return err
	})
	if err != nil {
		return nil, err
	}
	if len(rows) == 0 {
		return nil, sessionNotFound(req.GetSessionId())
	}
	s.extend.Note(req.GetSessionId(), rows[0].ReadAt.Time, microseconds(rows[0].TTLMicros))
	response, total := &setpointv1.GetGraphResponse{}, 0
	for i, row := range rows {
		if row.VariableID == "" {
			break
		}
		node, err := graphNode(row)
		if err != nil {
			return nil, err
		}
		if total += proto.Size(node); i > 0 && (i == size || int64(total) > s.limits.PageBytes) {
			response.NextPageToken = pageToken{Filter: filter, Name: rows[i-1].Name}.encode()
			break
		}
		response.Nodes = append(response.Nodes, node)
	}
	return response, hideAll(ctx, s, req.GetSessionId(), response.GetNodes())
}

func graphNode(row dbgen.DependencyGraphRow) (*setpointv1.GraphNode, error) {
	kind, ok := value.ParseType(row.Type)
	if !ok {
		return nil, fmt.Errorf("variable %s: unknown type %q", row.VariableID, row.Type)
	}
	return &setpointv1.GraphNode{
		VariableId: row.VariableID, Name: row.Name, Type: kind, Version: row.Version, Expression: row.Expression,
		Stale: stale(row.StaleRevision, row.StaleCause, row.StaleError), DependsOn: row.DependsOn,
		Optimization: holderOf(row.OptimizationID, row.LeaseOptimizerID, row.LeaseStartedAt, row.LeaseExpiresAt).proto(),
	}, nil
}
