package server

import (
	"context"
	"log/slog"
	"net/http"
	"strings"
	"time"

	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

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
	"", // The last: it is true of all.
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
