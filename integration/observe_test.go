package integration

import (
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"testing"

	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	"github.com/setpointdb/setpoint/client"
	"github.com/setpointdb/setpoint/internal/testkit"
)

var services = []string{
	"setpoint.v1.DependencyService", "setpoint.v1.HistoryService", "setpoint.v1.OptimizationService", "setpoint.v1.SessionService",
	"setpoint.v1.VariableService",
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	url := testkit.NewDatabase(t)
	measured, plain := ready(t, url, "--metrics"), ready(t, url)
	c := dial(t, measured)
	newSession(t, c, "measured")
	register(t, c, "measured", "var_a", typeInteger, client.Integer(0))
	for i := range int64(3) {
		set(t, c, "measured", "var_a", client.Integer(i))
	}
	derive(t, c, "measured", "var_b", "2 * var_a")
	set(t, c, "measured", "var_a", client.Integer(3))

	code, text := probe(t, measured, "/metrics")
	if code != http.StatusOK {
		t.Fatalf("/metrics: got %d", code)
	}
	for pattern, want := range map[string]int{
		`setpoint_events_total\{[^}]*event="variable_set"[^}]*\} (\d+)`:                                                 4,
		`setpoint_events_total\{[^}]*event="session_created"[^}]*\} (\d+)`:                                              1,
		`setpoint_rpc_duration_seconds_count\{[^}]*method="/setpoint.v1.VariableService/SetVariable"[^}]*\} (\d+)`:      4,
		`setpoint_rpc_duration_seconds_count\{[^}]*method="/setpoint.v1.VariableService/RegisterVariable"[^}]*\} (\d+)`: 2,
		`setpoint_propagation_duration_seconds_count(?:\{[^}]*\})? (\d+)`:                                               1,
	} {
		found := regexp.MustCompile(`(?m)^` + pattern + `$`).FindStringSubmatch(text)
		if found == nil || found[1] != strconv.Itoa(want) {
			t.Errorf("%s: got %q, want %d", pattern, found, want)
		}
	}
	// What callers choose is in no label: it would make a series for each.
	if regexp.MustCompile(`measured|var_a|var_b`).MatchString(text) {
		t.Error("the measurements name a session or a variable")
	}
	if code, _ := probe(t, plain, "/metrics"); code != http.StatusNotFound {
		t.Errorf("/metrics of a server that does not measure: got %d, want %d", code, http.StatusNotFound)
	}
}

func TestReflection(t *testing.T) {
	t.Parallel()
	c := dial(t, serve(t, testkit.NewDatabase(t)))
	stream, err := reflectionv1.NewServerReflectionClient(c.Conn()).ServerReflectionInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	err = stream.Send(&reflectionv1.ServerReflectionRequest{
		MessageRequest: &reflectionv1.ServerReflectionRequest_ListServices{}})
	if err != nil {
		t.Fatal(err)
	}
	answer, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	var listed []string
	for _, service := range answer.GetListServicesResponse().GetService() {
		listed = append(listed, service.GetName())
	}
	for _, want := range append(services, "grpc.health.v1.Health") {
		if !slices.Contains(listed, want) {
			t.Errorf("reflection lists %v, without %s", listed, want)
		}
	}
	if err := stream.CloseSend(); err != nil {
		t.Error(err)
	}
}

func TestHealth(t *testing.T) {
	t.Parallel()
	s := ready(t, testkit.NewDatabase(t))
	health := healthv1.NewHealthClient(dial(t, s, client.WithoutRetry()).Conn())
	for _, service := range append(services, "") {
		answer, err := health.Check(t.Context(), &healthv1.HealthCheckRequest{Service: service})
		if err != nil || answer.GetStatus() != serving {
			t.Errorf("health of %q: got %v, %v", service, answer.GetStatus(), err)
		}
	}
	_, err := health.Check(t.Context(), &healthv1.HealthCheckRequest{Service: "setpoint.v1.NoService"})
	if status.Code(err) != codes.NotFound {
		t.Errorf("health of an unknown service: got %v, want %v", err, codes.NotFound)
	}
	for path, want := range map[string]string{"/livez": "200 ok\n", "/readyz": "200 ok\n"} {
		code, text := probe(t, s, path)
		if got := fmt.Sprint(code, " ", text); got != want {
			t.Errorf("%s: got %q, want %q", path, got, want)
		}
	}
}
