package service

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/identity"
	"github.com/setpointdb/setpoint/internal/lease"
)

// AwaitOptimization follows an optimization in the queue until it has its lease. While the call is open its stay in the queue
// is extended; the grant is made by the server that it waits on, so that nobody is granted who does not wait.
func (s *Service) AwaitOptimization(
	req *setpointv1.AwaitOptimizationRequest, stream grpc.ServerStreamingServer[setpointv1.Optimization],
) error {
	ctx := stream.Context()
	principal := identity.FromContext(ctx).Name
	row, err := s.readOptimization(ctx, req, true)
	switch {
	case err != nil:
		return err
	case row.StartedBy != principal:
		return notStarter(req.GetOptimizationId())
	case row.State == stateWaiting: // A stay that has nearly ended is extended before anything else.
		if err := s.stayInQueue(ctx, req.GetSessionId(), []string{req.GetOptimizationId()}); err != nil {
			return err
		}
	}
	seat := s.queue.Enter(lease.Key{Session: req.GetSessionId(), Optimization: req.GetOptimizationId()},
		microseconds(row.TTLMicros))
	defer seat.Leave()
	for told := (optimizationRow{}); ; {
		if told.State != row.State || told.QueuePosition != row.QueuePosition {
			if done, err := s.tellAwaiting(ctx, req, stream, row, principal); done || err != nil {
				return err
			}
			told = row
		}
		if row, err = s.nextPlace(ctx, req, seat); err != nil {
			return err
		}
	}
}

// tellAwaiting sends where an optimization is; true if it is where it waited to be.
func (s *Service) tellAwaiting(
	ctx context.Context, req *setpointv1.AwaitOptimizationRequest, stream grpc.ServerStreamingServer[setpointv1.Optimization],
	row optimizationRow, principal string,
) (bool, error) {
	if !isOpen(row.State) {
		return false, s.waitedInVain(ctx, req, row)
	}
	o, err := row.proto(req.GetSessionId(), principal)
	if err != nil {
		return false, err
	}
	return isHolding(row.State), stream.Send(o)
}

// nextPlace waits for a change of the place in the queue, and takes the lease where it can be had.
func (s *Service) nextPlace(ctx context.Context, req *setpointv1.AwaitOptimizationRequest, seat *lease.Seat) (
	optimizationRow, error,
) {
	select {
	case <-ctx.Done():
		return optimizationRow{}, context.Cause(ctx)
	case <-s.draining:
		return optimizationRow{}, status.Error(codes.Unavailable, "the server is shutting down: await again")
	case place := <-seat.Places:
		if place.Ready {
			if err := s.claim(ctx, req); err != nil {
				return optimizationRow{}, err
			}
		}
	}
	return s.readOptimization(ctx, req, true)
}

// waitedInVain is the error of one that has ended: of who waited for as long as it was to, who has what it waited for.
func (s *Service) waitedInVain(ctx context.Context, req *setpointv1.AwaitOptimizationRequest, row optimizationRow) error {
	if row.State != "cancelled" || row.StartedAt.Valid || row.WaitUntil.Time.IsZero() || row.EndedAt.Time.Before(row.WaitUntil.Time) {
		return optimizationEnded(row)
	}
	for _, name := range row.Variables {
		of, err := s.GetOptimizationStatus(ctx, &setpointv1.GetOptimizationStatusRequest{
			SessionId: req.GetSessionId(), Variable: name,
		})
		if err != nil && !isRefusal(err) {
			return err
		}
		if o := of.GetOptimization(); err == nil && o != nil {
			started, expires := o.GetStartedAt().AsTime(), o.GetExpiresAt().AsTime()
			return alreadyOptimizing(name, &holder{
				OptimizationID: o.GetOptimizationId(), OptimizerID: o.GetOptimizerId(), StartedAt: &started, ExpiresAt: expires,
			})
		}
	}
	return refuse(setpointv1.ErrorReason_ALREADY_OPTIMIZING, row.OptimizationID+": "+row.EndReason,
		"optimization_id", row.OptimizationID)
}
