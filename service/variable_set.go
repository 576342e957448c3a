package service

import (
	"context"
	"fmt"

	"google.golang.org/protobuf/types/known/timestamppb"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/identity"
)

// SetVariable sets a value: one statement under the session's lock, in one round trip.
func (s *Service) SetVariable(ctx context.Context, req *setpointv1.SetVariableRequest) (
	*setpointv1.SetVariableResponse, error,
) {
	call, err := newSetCall(ctx, req, req.GetDryRun(), setItem{
		variable: req.GetVariable(), value: req.GetValue(), expected: expectedVersion(req.ExpectedVersion),
		metadata: setMetadata(req.GetMetadata(), req.GetClearMetadata()), reason: req.GetReason(),
	})
	if err != nil {
		return nil, err
	}
	outcomes, followers, err := s.set(ctx, call)
	if err != nil {
		return nil, err
	}
	o := outcomes[0]
	a := call.asked(s.limits, 0)
	if e := o.refusal(a); e != nil {
		s.recordRefusals(ctx, a, call.principal, e)
		return nil, s.hideRefusal(ctx, req, e)
	}
	if call.dryRun || call.replayed {
		s.signOfLife(ctx, req.GetSessionId())
	} else {
		s.events.VariableSet(ctx, req.GetSessionId(), o.Name, o.FoundVersion+1, call.principal)
	}
	response := &setpointv1.SetVariableResponse{
		VariableId: o.VariableID, Version: o.FoundVersion + 1, Revision: o.Revision, UpdatedAt: timestamppb.New(o.ChangedAt),
	}
	response.Recomputed, response.Stale, response.ValuesOmitted = tell(followers, s.limits.PageBytes)
	s.hideDone(ctx, req.GetSessionId(), response)
	return response, nil
}

// BatchSetVariables sets values, all in one statement: each succeeds or fails alone, or all do if the batch is atomic.
func (s *Service) BatchSetVariables(ctx context.Context, req *setpointv1.BatchSetVariablesRequest) (
	*setpointv1.BatchSetVariablesResponse, error,
) {
	if err := s.checkBatch(len(req.GetWrites())); err != nil {
		return nil, err
	}
	var items []setItem
	seen := map[string]bool{}
	for i, w := range req.GetWrites() {
		if seen[w.GetVariable()] {
			return nil, invalid(fmt.Sprintf("writes[%d].variable", i), fmt.Sprintf("%q is in the batch twice", w.GetVariable()))
		}
		seen[w.GetVariable()] = true
		items = append(items, setItem{
			variable: w.GetVariable(), value: w.GetValue(), expected: expectedVersion(w.ExpectedVersion),
			metadata: setMetadata(w.GetMetadata(), w.GetClearMetadata()), reason: w.GetReason(),
		})
	}
	call, err := newSetCall(ctx, req, req.GetDryRun(), items...)
	if err != nil {
		return nil, err
	}
	call.batch, call.atomic = true, req.GetAtomic()
	outcomes, followers, err := s.set(ctx, call)
	if err != nil {
		return nil, err
	}
	response, err := s.batchSetResponse(ctx, call, outcomes, followers)
	if err != nil {
		return nil, s.hideRefusal(ctx, req, err)
	}
	s.hideDone(ctx, req.GetSessionId(), response)
	return response, nil
}

func (s *Service) batchSetResponse(ctx context.Context, call *setCall, outcomes []itemOutcome, followers []follower) (
	*setpointv1.BatchSetVariablesResponse, error,
) {
	errs := make([]*Error, len(outcomes))
	response := &setpointv1.BatchSetVariablesResponse{}
	response.Recomputed, response.Stale, response.ValuesOmitted = tell(followers, s.limits.PageBytes)
	for i, o := range outcomes {
		a := call.asked(s.limits, i)
		result := &setpointv1.BatchSetResult{Variable: call.items[i].variable, VariableId: o.VariableID}
		if errs[i] = o.refusal(a); errs[i] != nil {
			s.recordRefusals(ctx, a, call.principal, errs[i])
			result.Error = errs[i].item()
			if errs[i].Reason == setpointv1.ErrorReason_ACCESS_DENIED {
				result.VariableId = "" // As of one that there is not.
			}
		} else {
			result.Version, result.Revision = o.FoundVersion+1, o.Revision
		}
		response.Results = append(response.Results, result)
	}
	if !call.dryRun && !call.replayed {
		s.events.BatchSet(ctx, call.sessionID, call.principal, len(outcomes), countFailed(errs))
	}
	if whole := wholeBatch(outcomes, errs, call.atomic); whole != nil {
		return nil, whole
	}
	if call.dryRun || call.replayed || countFailed(errs) == len(errs) {
		s.signOfLife(ctx, call.sessionID)
	}
	return response, nil
}

// anyVersion stands for no expected version.
const anyVersion = -1

func expectedVersion(v *int64) int64 {
	if v == nil {
		return anyVersion
	}
	return *v
}

// keepMetadata, as jsonb, keeps the last metadata.
var keepMetadata = []byte("null")

func setMetadata(metadata map[string]string, clear bool) []byte {
	if len(metadata) == 0 && !clear {
		return keepMetadata
	}
	return metadataJSON(metadata)
}

// setItem is one value to write.
type setItem struct {
	variable string
	value    *setpointv1.Value
	expected int64
	metadata []byte
	reason   string
}

// setCall is a request that sets values.
type setCall struct {
	caller
	sessionID, requestID  string
	hash                  []byte
	items                 []setItem
	lease                 *setpointv1.Lease
	batch, atomic, dryRun bool
	// replayed is set when the outcome is that of an earlier call.
	replayed bool
}

func newSetCall(ctx context.Context, req writeRequest, dryRun bool, items ...setItem) (*setCall, error) {
	call := &setCall{
		sessionID: req.GetSessionId(), caller: callerIn(ctx, req.GetSessionId()), requestID: req.GetRequestId(),
		items: items, dryRun: dryRun,
	}
	if l, ok := req.(leased); ok {
		call.lease = l.GetLease()
	}
	for _, item := range items {
		if len(item.metadata) > metadataBytes {
			return nil, limitExceeded("metadata_bytes", metadataBytes,
				fmt.Sprintf("%s: metadata has at most %d bytes as JSON, not %d", item.variable, metadataBytes, len(item.metadata)))
		}
	}
	if dryRun {
		call.requestID = "" // There is no outcome to repeat.
		return call, nil
	}
	var err error
	call.hash, err = bodyHash(req)
	return call, err
}

// leased is a request that may present a lease.
type leased interface{ GetLease() *setpointv1.Lease }

func (c *setCall) asked(limits Limits, i int) asked {
	return asked{
		sessionID: c.sessionID, variable: c.items[i].variable, requestID: c.requestID,
		expectedVersion: c.items[i].expected, limits: limits, lease: c.lease, permission: permissionUnder(c.lease),
	}
}

// permissionUnder is what a write takes: under a lease, what the lease took.
func permissionUnder(lease *setpointv1.Lease) identity.Permissions {
	if lease != nil {
		return identity.Optimize
	}
	return identity.Write
}
