package telemetry_test

import (
	"log/slog"
	"strings"
	"testing"

	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/setpointdb/setpoint/internal/telemetry"
)

// A failure that is not logged is counted all the same.
func TestQuietFailures(t *testing.T) {
	t.Parallel()
	log := &strings.Builder{}
	reader := sdkmetric.NewManualReader()
	events, err := telemetry.New(slog.New(slog.NewTextHandler(log, nil)), sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader)))
	if err != nil {
		t.Fatal(err)
	}
	for _, quiet := range []bool{true, false, true} {
		events.AuthenticationFailed(t.Context(), telemetry.FailedAuthentication{Peer: "192.0.2.1", Quiet: quiet})
	}
	if got := strings.Count(log.String(), "msg=authentication_failed peer=192.0.2.1"); got != 1 || strings.Contains(log.String(), "unlogged") {
		t.Errorf("the log: %s", log)
	}
	var metrics metricdata.ResourceMetrics
	if err := reader.Collect(t.Context(), &metrics); err != nil {
		t.Fatal(err)
	}
	sum, _ := metrics.ScopeMetrics[0].Metrics[0].Data.(metricdata.Sum[int64])
	if len(sum.DataPoints) != 1 || sum.DataPoints[0].Value != 3 {
		t.Errorf("counted %+v", sum.DataPoints)
	}
}

// Denials that callers keep out of the log are counted all the same.
func TestQuietDenials(t *testing.T) {
	t.Parallel()
	r := newRecorder(t, slog.LevelDebug)
	for _, quiet := range []bool{false, true, true} {
		r.AccessDenied(t.Context(), telemetry.Violation{Principal: "user:a", Quiet: quiet})
	}
	wantSame(t, "lines", 1, len(r.lines(t)))
	wantSame(t, "counts", map[string]float64{"event=access_denied": 3}, r.measured(t, "setpoint.events"))
}
