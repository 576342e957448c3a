package server

import (
	"context"
	"net/http"
	"os"

	"github.com/exaring/otelpgx"
	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	otelprometheus "go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/metric"
	noopmetric "go.opentelemetry.io/otel/metric/noop"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	nooptrace "go.opentelemetry.io/otel/trace/noop"
)

// exporters are where telemetry goes: nowhere, but for metrics if they are asked for, and for traces if the environment
// names an OTLP endpoint.
type exporters struct {
	meters  metric.MeterProvider
	traces  trace.TracerProvider
	metrics http.Handler // nil without metrics.
	tracing bool
	closers []func(context.Context) error
}

func newExporters(ctx context.Context, metrics bool) (*exporters, error) {
	e := &exporters{meters: noopmetric.NewMeterProvider(), traces: nooptrace.NewTracerProvider()}
	if metrics {
		if err := e.addMetrics(); err != nil {
			return nil, err
		}
	}
	if os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") != "" || os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") != "" {
		exporter, err := otlptracegrpc.New(ctx)
		if err != nil {
			return nil, err
		}
		provider := sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter))
		e.traces, e.tracing = provider, true
		e.closers = append(e.closers, provider.Shutdown)
	}
	return e, nil
}

func (e *exporters) addMetrics() error {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	exporter, err := otelprometheus.New(otelprometheus.WithRegisterer(registry))
	if err != nil {
		return err
	}
	provider := sdkmetric.NewMeterProvider(sdkmetric.WithReader(exporter))
	e.meters = provider
	e.metrics = promhttp.HandlerFor(registry, promhttp.HandlerOpts{})
	e.closers = append(e.closers, provider.Shutdown)
	return nil
}

// queryTracer traces statements; nil where traces go nowhere.
func (e *exporters) queryTracer() pgx.QueryTracer {
	if !e.tracing {
		return nil
	}
	return otelpgx.NewTracer(otelpgx.WithTracerProvider(e.traces))
}

func (e *exporters) close(ctx context.Context) {
	for _, shutdown := range e.closers {
		_ = shutdown(ctx) // What could not be sent is lost with the process.
	}
}
