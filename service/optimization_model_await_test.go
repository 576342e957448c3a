package service_test

import (
	"context"
	"errors"
	"io"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// leaseAwait is AwaitOptimization, until it ends, or, where it would not end, until it has told the place in the queue.
type leaseAwait struct{ Who leaseWho }

func (l leaseAwait) bind(w *leaseWorld, principal string) leaseStep {
	o := w.pick(l.Who)
	if o == nil {
		return leaseGet{}.bind(w, principal)
	}
	ends := !w.waits(o) || w.ready(o)
	return leaseStep{
		send: func(c leaseCaller) string {
			ctx, cancel := context.WithCancel(c.ctx)
			defer cancel()
			stream, err := c.Optimizations.AwaitOptimization(ctx, &setpointv1.AwaitOptimizationRequest{
				SessionId: c.session, OptimizationId: c.id(o),
			})
			last := ""
			for err == nil {
				var got *setpointv1.Optimization
				if got, err = stream.Recv(); err == nil {
					last = c.line(got) + c.checkpoint(got)
				}
				if errors.Is(err, io.EOF) || err == nil && !ends {
					return last
				}
			}
			return c.refusal(err)
		},
		apply: func(string) string { return w.await(o, principal) },
	}
}

func (w *leaseWorld) await(o *leaseRecord, principal string) string {
	if o.by != principal {
		return deniedLine("optimize")
	}
	if w.waits(o) {
		o.renewed = w.now + o.ttl
		if w.ready(o) {
			w.settle(nil, "", "", serverPrincipal)
			w.grant(o)
		}
	}
	if w.open(o) {
		return w.line(o, principal) + o.checkpointLine()
	}
	return w.waitedInVain(o)
}

// waitedInVain is the refusal of one that has ended: of who waited for as long as it was to, who has what it waited for, or is
// the first to wait for it.
func (w *leaseWorld) waitedInVain(o *leaseRecord) string {
	ended := o.ended
	if ended < 0 {
		ended = o.expires()
	}
	if w.state(o) != "CANCELLED" || o.started >= 0 || ended < o.wait {
		return endedLine(o, w.state(o))
	}
	for _, v := range o.byName() {
		if standing := w.standing(v, 0); !v.gone && standing != nil {
			return inTheWayLine(v, standing)
		}
	}
	return refusedLine(setpointv1.ErrorReason_ALREADY_OPTIMIZING, "variable", o.names()[0])
}
