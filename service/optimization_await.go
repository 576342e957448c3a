package service

import (
	"context"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/setpointdb/setpoint/db/dbgen"
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
	row, err := s.readOptimization(ctx, req, true, identity.Optimize)
	switch {
	case err != nil:
		return err
	case row.StartedBy != principal:
		return notStarter(req.GetOptimizationId())
	case row.State == stateWaiting: // A stay that has nearly ended is extended before anything else.
		if err := s.stayInQueue(ctx, req.GetSessionId(), []string{req.GetOptimizationId()}); err != nil {
			return err
		}
		if row, err = s.readOptimization(ctx, req, true, identity.Optimize); err != nil {
			return err
		}
	}
	seat := s.queue.Enter(lease.Key{Session: req.GetSessionId(), Optimization: req.GetOptimizationId()},
		microseconds(row.TTLMicros))
	defer seat.Leave()
	w := &awaiting{s: s, req: req, stream: stream, principal: principal, seat: seat}
	for {
		if done, err := w.tell(ctx, row); done || err != nil {
			return err
		}
		if row, err = w.changed(ctx); err != nil {
			return err
		}
	}
}

// awaiting is a call that follows an optimization in the queue.
type awaiting struct {
	s         *Service
	req       *setpointv1.AwaitOptimizationRequest
	stream    grpc.ServerStreamingServer[setpointv1.Optimization]
	principal string
	seat      *lease.Seat
	// told is what was sent last.
	told *setpointv1.Optimization
}

// tell sends an optimization as its record has it; true if it is where it waited to be.
func (w *awaiting) tell(ctx context.Context, row optimizationRow) (bool, error) {
	if !isOpen(row.State) {
		return false, w.s.waitedInVain(ctx, w.req, row)
	}
	o, err := row.proto(w.req.GetSessionId(), w.principal)
	if err != nil {
		return false, err
	}
	w.told = o
	return isHolding(row.State), w.stream.Send(o)
}

// move sends another place in the queue.
func (w *awaiting) move(place lease.Seen) error {
	if w.told.GetQueuePosition() == int32(place.Position) {
		return nil
	}
	o := proto.CloneOf(w.told)
	o.QueuePosition, o.ExpiresAt = int32(place.Position), timestamppb.New(place.ExpiresAt)
	o.Remaining = durationpb.New(place.ExpiresAt.Sub(place.ReadAt))
	w.told = o
	return w.stream.Send(o)
}

// changed waits until the optimization does not wait any more, and takes the lease where it can be had. Trouble that passes is
// waited for: the place in the queue is kept meanwhile, or is not, and then the record says so.
func (w *awaiting) changed(ctx context.Context) (optimizationRow, error) {
	look := time.NewTicker(stillMayEvery)
	defer look.Stop()
	for {
		select {
		case <-look.C:
			if err := w.stillMay(ctx); err != nil {
				return optimizationRow{}, err
			}
		case <-ctx.Done():
			return optimizationRow{}, context.Cause(ctx)
		case <-w.s.draining:
			return optimizationRow{}, status.Error(codes.Unavailable, "the server is shutting down: await again")
		case place := <-w.seat.Places:
			row, done, err := w.use(ctx, place)
			switch {
			case err != nil && fromFailure(err) != nil && ctx.Err() == nil:
				w.seat.Again()
			case isDenied(err):
				return row, w.leave(ctx, err)
			case err != nil || done:
				return row, err
			}
		}
	}
}

// stillMayEvery is how often it is looked up whether who waits may still do what it waits for: somebody who may not would be in the way
// of others for as long as the wait takes.
const stillMayEvery = 2 * time.Second

// stillMay ends the wait of somebody who may no longer optimize the variables. What cannot be looked up now is later.
func (w *awaiting) stillMay(ctx context.Context) error {
	if callerIn(ctx, w.req.GetSessionId()).seesEverything() {
		return nil
	}
	if _, err := w.s.readOptimization(ctx, w.req, false, identity.Optimize); isDenied(err) {
		return w.leave(ctx, err)
	}
	return nil
}

// leave takes the optimization out of the queue, and says why.
func (w *awaiting) leave(ctx context.Context, why error) error {
	if err := w.s.leaveQueue(ctx, w.req, w.principal); err != nil {
		return err
	}
	return why
}

// isDenied tells of refusals for lack of a permission, whatever the caller is told.
func isDenied(err error) bool {
	e := asRefusal(err)
	return e != nil && e.denial != nil
}

// use makes what it can of a place; true if the optimization does not wait any more.
func (w *awaiting) use(ctx context.Context, place lease.Seen) (optimizationRow, bool, error) {
	if place.Ready {
		if err := w.s.claim(ctx, w.req); err != nil {
			return optimizationRow{}, false, err
		}
	}
	if place.State == stateWaiting && !place.Ready {
		return optimizationRow{}, false, w.move(place)
	}
	row, err := w.s.readOptimization(ctx, w.req, true, identity.Optimize)
	return row, err == nil && row.State != stateWaiting, err
}

// waitedInVain is the error of one that has ended: of who waited for as long as it was to, who has what it waited for, or is
// before it.
func (s *Service) waitedInVain(ctx context.Context, req *setpointv1.AwaitOptimizationRequest, row optimizationRow) error {
	if row.State != "cancelled" || row.StartedAt.Valid || !row.WaitUntil.Valid || row.EndedAt.Time.Before(row.WaitUntil.Time) {
		return optimizationEnded(row)
	}
	var found []dbgen.OptimizationAskRow
	err := s.db.Read(ctx, "see who has the lease", func(ctx context.Context, q *dbgen.Queries) error {
		variables, err := q.OptimizationVariables(ctx, dbgen.OptimizationVariablesParams{
			SessionID: req.GetSessionId(), OptimizationID: row.OptimizationID,
		})
		if err != nil {
			return err
		}
		ask := dbgen.OptimizationAskParams{SessionID: req.GetSessionId()}
		for _, v := range variables {
			ask.Variables = append(ask.Variables, v.VariableID)
		}
		found, err = q.OptimizationAsk(ctx, ask)
		return err
	})
	if err != nil {
		return err
	}
	for _, f := range found {
		if h := standing(f); h != nil {
			return alreadyOptimizing(f.Name, h)
		}
	}
	return refuse(setpointv1.ErrorReason_ALREADY_OPTIMIZING, // Who had it has just gone.
		fmt.Sprintf("%s waited for %s for as long as it was to", row.OptimizationID, strings.Join(row.Variables, ", ")),
		"variable", row.Variables[0])
}
