package server

import (
	"context"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// healthInterval is the time between looks at the database.
const healthInterval = 2 * time.Second

// healthServices are those whose health the health service tells; the empty name is the server as a whole.
var healthServices = []string{
	setpointv1.SessionService_ServiceDesc.ServiceName,
	setpointv1.VariableService_ServiceDesc.ServiceName,
	setpointv1.HistoryService_ServiceDesc.ServiceName,
	setpointv1.DependencyService_ServiceDesc.ServiceName,
	setpointv1.OptimizationService_ServiceDesc.ServiceName,
	setpointv1.AccessService_ServiceDesc.ServiceName,
	setpointv1.TokenService_ServiceDesc.ServiceName,
	"", // The last: it is true of all.
}

// healthService is gRPC's, but that open Watches end with the server: they would keep it from draining.
type healthService struct {
	*health.Server
	ending context.Context
	cancel context.CancelFunc
}

func newHealthService() *healthService {
	ending, cancel := context.WithCancel(context.Background())
	return &healthService{health.NewServer(), ending, cancel}
}

// end has everything be NOT_SERVING for good, and ends the open Watches with that.
func (h *healthService) end() {
	h.Shutdown()
	h.cancel()
}

// Watch tells a service's health now and whenever it changes. When the server stops, the last message is NOT_SERVING, and the
// error UNAVAILABLE.
func (h *healthService) Watch(req *healthv1.HealthCheckRequest, stream healthv1.Health_WatchServer) error {
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	defer context.AfterFunc(h.ending, cancel)()
	told := &healthStream{Health_WatchServer: stream, ctx: ctx}
	err := h.Server.Watch(req, told)
	if h.ending.Err() == nil || stream.Context().Err() != nil {
		return err
	}
	if told.last == healthv1.HealthCheckResponse_SERVING {
		if err := stream.Send(&healthv1.HealthCheckResponse{Status: healthv1.HealthCheckResponse_NOT_SERVING}); err != nil {
			return err
		}
	}
	return status.Error(codes.Unavailable, "the server is stopping")
}

// healthStream is a Watch's, with a context that ends sooner, and what it was sent last.
type healthStream struct {
	healthv1.Health_WatchServer
	ctx  context.Context
	last healthv1.HealthCheckResponse_ServingStatus
}

// Context is over when the call or the server ends.
func (s *healthStream) Context() context.Context { return s.ctx }

// Send tells a status.
func (s *healthStream) Send(r *healthv1.HealthCheckResponse) error {
	s.last = r.GetStatus()
	return s.Health_WatchServer.Send(r)
}

// watchHealth keeps the health service true: SERVING while the database answers.
func (s *Server) watchHealth(ctx context.Context) {
	serving := healthv1.HealthCheckResponse_UNKNOWN
	ticker := time.NewTicker(healthInterval)
	defer ticker.Stop()
	for {
		now := healthv1.HealthCheckResponse_SERVING
		err := s.db.Ping(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			now = healthv1.HealthCheckResponse_NOT_SERVING
		}
		if now != serving {
			s.config.Log.LogAttrs(ctx, slog.LevelInfo, "health", slog.String("status", now.String()), slog.Any("error", err))
			serving = now
			for _, name := range healthServices {
				s.health.SetServingStatus(name, now)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// handler is what the HTTP port serves. /livez answers while the process does, /readyz while the database does too.
func (s *Server) handler() http.Handler {
	api := allowOrigins(s.config.CORSOrigins, s.rest)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		response, err := s.health.Check(r.Context(), &healthv1.HealthCheckRequest{})
		if err != nil || response.GetStatus() != healthv1.HealthCheckResponse_SERVING {
			answer(w, http.StatusServiceUnavailable, "the database cannot be reached, or the server is stopping")
			return
		}
		answer(w, http.StatusOK, "ok")
	})
	if s.exporters.metrics != nil {
		mux.Handle("GET /metrics", s.exporters.metrics)
	}
	mux.Handle("GET /openapi.json", allowOrigins(s.config.CORSOrigins, http.HandlerFunc(openAPI)))
	mux.Handle("/", api)
	all := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/v1/") {
			// The mux would send the caller elsewhere where a part of the path is "..", which is a good name of a variable.
			api.ServeHTTP(w, r)
			return
		}
		mux.ServeHTTP(w, r)
	})
	return onlyLocalHosts(s.httpListener.Addr(), all, s.rest.fail)
}

func answer(w http.ResponseWriter, code int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(code)
	_, _ = w.Write([]byte(text + "\n")) // A caller that has gone needs no answer.
}
