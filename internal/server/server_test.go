package server

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/setpointdb/setpoint/db"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/telemetry"
	"github.com/setpointdb/setpoint/internal/testkit"
	"github.com/setpointdb/setpoint/service"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// A panic is one call's internal error: logged with its stack, counted, and the server goes on.
func TestPanic(t *testing.T) {
	t.Parallel()
	log := &strings.Builder{}
	events, err := telemetry.New(slog.New(slog.NewTextHandler(log, nil)), nil)
	if err != nil {
		t.Fatal(err)
	}
	info := &grpc.UnaryServerInfo{FullMethod: "/setpoint.v1.VariableService/GetVariable"}
	handler := func(context.Context, any) (any, error) { panic("mislaid") }
	_, err = recoverPanics(events).unary(context.Background(), nil, info, handler)
	s, defect := service.Status(err, "id")
	if !defect || strings.Contains(s.Message(), "mislaid") {
		t.Errorf("status %v, defect %t; want one without detail", s, defect)
	}
	for _, want := range []string{"msg=panic", "value=mislaid", "server_test.go", info.FullMethod} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log lacks %q: %s", want, log)
		}
	}
}

func TestFindNUL(t *testing.T) {
	t.Parallel()
	bad := "a\x00b"
	nested, err := structpb.NewStruct(map[string]any{"a": []any{"fine", map[string]any{"b": bad}}})
	if err != nil {
		t.Fatal(err)
	}
	for want, message := range map[string]*setpointv1.RegisterVariableRequest{
		"":                    {Name: "x", Metadata: map[string]string{"a": "b"}, Value: &setpointv1.Value{}},
		"name":                {Name: bad},
		`metadata["k"]`:       {Metadata: map[string]string{"k": bad}},
		"metadata[key]":       {Metadata: map[string]string{bad: "v"}},
		"constraints.enum[1]": {Constraints: &setpointv1.Constraints{Enum: []string{"a", bad}}},
		"value.string":        {Value: &setpointv1.Value{Kind: &setpointv1.Value_String_{String_: bad}}},
		`constraints.json_schema.fields["a"].list_value.values[1].struct_value.fields["b"].string_value`: {
			Constraints: &setpointv1.Constraints{JsonSchema: nested},
		},
	} {
		if got := findNUL(message.ProtoReflect()); got != want {
			t.Errorf("found in %q, want %q", got, want)
		}
	}
}

// A server tells of what it measures, and stops listening when it stops.
func TestStartStop(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	s, err := Start(ctx, Config{
		GRPCAddr: "127.0.0.1:0", HTTPAddr: "127.0.0.1:0", Metrics: true, Limits: service.DefaultLimits,
		Database: db.Config{URL: testkit.NewDatabase(t)}, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	s.events.VersionMismatch(ctx, "s", "x", 1, 2, "user:a")
	get := func(path string) (string, error) {
		response, err := http.Get("http://" + s.HTTPAddr() + path)
		if err != nil {
			return "", err
		}
		defer func() { _ = response.Body.Close() }()
		body, err := io.ReadAll(response.Body)
		return response.Status + " " + string(body), err
	}
	metrics, err := get("/metrics")
	if err != nil || !strings.Contains(metrics, `setpoint_events_total{event="version_mismatch"`) {
		t.Errorf("metrics: %v, %s", err, metrics)
	}
	if !strings.Contains(metrics, "setpoint_writes_queued") {
		t.Error("the queue of writes is not measured")
	}
	if live, err := get("/livez"); err != nil || live != "200 OK ok\n" {
		t.Errorf("livez: %q, %v", live, err)
	}
	http.DefaultClient.CloseIdleConnections()
	s.Stop(ctx)
	if _, err := get("/livez"); err == nil {
		t.Error("HTTP is still served")
	}
	if _, err := Start(ctx, Config{GRPCAddr: "nowhere:x", Log: slog.New(slog.DiscardHandler), Database: db.Config{URL: "postgres://h"}}); err == nil {
		t.Error("an address that is none was listened on")
	}
}
