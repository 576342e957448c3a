// Package telemetry records what happens: one function per event, each of which writes a structured log line and an
// OpenTelemetry measurement. Measurements go nowhere unless a meter provider is configured.
package telemetry

import (
	"context"
	"log/slog"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"
)

// Scope is the name of Setpoint's OpenTelemetry instrumentation.
const Scope = "github.com/setpointdb/setpoint"

// Events records events. Safe for concurrent use.
type Events struct {
	log       *slog.Logger
	meter     metric.Meter
	events    metric.Int64Counter
	batches   metric.Int64Histogram
	durations metric.Float64Histogram
	// propagations are the times that dependents take to follow.
	propagations metric.Float64Histogram
	// waits are the times from the request for a lease to its grant.
	waits metric.Float64Histogram
	// checks are the times of calls that were judged by what their callers may do.
	checks metric.Float64Histogram
}

// New makes the recorder of a server; a nil provider measures nothing.
func New(log *slog.Logger, provider metric.MeterProvider) (*Events, error) {
	if provider == nil {
		provider = noop.NewMeterProvider()
	}
	meter := provider.Meter(Scope)
	events, err := meter.Int64Counter("setpoint.events",
		metric.WithDescription("What happened to sessions, variables and optimizations, by event."))
	if err != nil {
		return nil, err
	}
	batches, err := meter.Int64Histogram("setpoint.batch.items",
		metric.WithDescription("Items of a batch, by event."), metric.WithUnit("{item}"),
		metric.WithExplicitBucketBoundaries(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000))
	if err != nil {
		return nil, err
	}
	durations, err := meter.Float64Histogram("setpoint.rpc.duration",
		metric.WithDescription("Time a call took in the server, by method and error reason."), metric.WithUnit("s"),
		metric.WithExplicitBucketBoundaries(.0005, .001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10))
	if err != nil {
		return nil, err
	}
	propagations, err := meter.Float64Histogram("setpoint.propagation.duration",
		metric.WithDescription("Time that dependents took to follow a change."), metric.WithUnit("s"),
		metric.WithExplicitBucketBoundaries(.0005, .001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10))
	if err != nil {
		return nil, err
	}
	waits, err := meter.Float64Histogram("setpoint.lock.wait",
		metric.WithDescription("Time from the request for a lease to its grant."), metric.WithUnit("s"),
		metric.WithExplicitBucketBoundaries(.001, .005, .01, .05, .1, .5, 1, 5, 10, 60, 300, 1800, 3600))
	if err != nil {
		return nil, err
	}
	checks, err := meter.Float64Histogram("setpoint.access.duration",
		metric.WithDescription("Time that calls took in the server, by the permission that they take and what became of it."),
		metric.WithUnit("s"),
		metric.WithExplicitBucketBoundaries(.0005, .001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10))
	if err != nil {
		return nil, err
	}
	return &Events{
		log: log, meter: meter, events: events, batches: batches, durations: durations, propagations: propagations, waits: waits,
		checks: checks,
	}, nil
}

// WatchQueue has the number of writes that wait or are on their way measured, by asking for it.
func (e *Events) WatchQueue(queued func() int) {
	_, err := e.meter.Int64ObservableGauge("setpoint.writes.queued",
		metric.WithDescription("Single writes that wait for a group or are on their way in one."), metric.WithUnit("{write}"),
		metric.WithInt64Callback(func(_ context.Context, o metric.Int64Observer) error {
			o.Observe(int64(queued()))
			return nil
		}))
	if err != nil {
		e.log.Warn("the queue of writes is not measured", slog.Any("error", err))
	}
}

type requestKey struct{}

// WithRequest returns a context whose events carry the id of the request.
func WithRequest(ctx context.Context, id string) context.Context {
	return context.WithValue(ctx, requestKey{}, id)
}

// Request returns the id of the context's request, empty outside of one.
func Request(ctx context.Context) string {
	id, _ := ctx.Value(requestKey{}).(string)
	return id
}

// event counts an event by its name and logs it. Names and ids go to the log alone: as attributes of a measurement they
// would make a time series each.
func (e *Events) event(ctx context.Context, level slog.Level, name string, attrs ...slog.Attr) {
	e.events.Add(ctx, 1, metric.WithAttributeSet(attribute.NewSet(attribute.String("event", name))))
	if e.log.Enabled(ctx, level) {
		if id := Request(ctx); id != "" {
			attrs = append(attrs, slog.String("request", id))
		}
		e.log.LogAttrs(ctx, level, name, attrs...)
	}
}

func (e *Events) batch(ctx context.Context, name string, session, principal string, items, failed int) {
	e.batches.Record(ctx, int64(items), metric.WithAttributeSet(attribute.NewSet(attribute.String("event", name))))
	e.event(ctx, slog.LevelDebug, name, slog.String("session", session), slog.String("by", principal),
		slog.Int("items", items), slog.Int("failed", failed))
}

// Call records a finished call.
func (e *Events) Call(ctx context.Context, method, code, reason, principal string, took time.Duration) {
	e.durations.Record(ctx, took.Seconds(), metric.WithAttributeSet(attribute.NewSet(
		attribute.String("method", method), attribute.String("code", code), attribute.String("reason", reason))))
	if e.log.Enabled(ctx, slog.LevelDebug) {
		e.log.LogAttrs(ctx, slog.LevelDebug, "call", slog.String("method", method), slog.String("code", code),
			slog.String("reason", reason), slog.String("by", principal), slog.Duration("took", took),
			slog.String("request", Request(ctx)))
	}
}
