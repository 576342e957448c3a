// Package server wires Setpoint together: the gRPC server with its interceptors, the HTTP port with the same API as JSON,
// the database, and the background work, from start to drain.
package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"buf.build/go/protovalidate"
	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/otel/propagation"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"

	"github.com/setpointdb/setpoint/db"
	"github.com/setpointdb/setpoint/internal/authenticate"
	"github.com/setpointdb/setpoint/internal/sweep"
	"github.com/setpointdb/setpoint/internal/telemetry"
	"github.com/setpointdb/setpoint/service"
)

// MaxMessageBytes bounds a request and an answer on the wire: several of the largest values.
const MaxMessageBytes = 64 << 20

// How long a caller of the HTTP port may take: to send the headers, to send MaxMessageBytes of a body, to have been sent as
// much, and to think of another request on the same connection.
const (
	headerTimeout = 10 * time.Second
	readTimeout   = 2 * time.Minute
	writeTimeout  = 5 * time.Minute
	idleTimeout   = 2 * time.Minute
)

// maxHeaderBytes bounds the metadata of a call, and the headers of a request.
const maxHeaderBytes = 1 << 20

// Config says how to serve.
type Config struct {
	// GRPCAddr and HTTPAddr are host:port; port 0 takes a free one. An empty HTTPAddr serves no HTTP.
	GRPCAddr, HTTPAddr string
	// Database is what to keep everything in.
	Database db.Config
	// Limits bound what callers may ask for.
	Limits service.Limits
	// HistoryRetention is how long history is kept at least, beyond what history_limit keeps. Default 30 days.
	HistoryRetention time.Duration
	// DrainTimeout is how long calls under way may take once the server is told to stop. Default 10 s.
	DrainTimeout time.Duration
	// CORSOrigins are the sites whose pages may call over HTTP: see CheckOrigin. Empty allows none.
	CORSOrigins []string
	// Authentication says who is believed to be who; what it takes from the server is set here: LookUp, Certificates, Events. Without
	// modes the server does not authenticate.
	Authentication authenticate.Config
	// TLSCertFile and TLSKeyFile are the server's certificate (PEM, with the intermediate ones behind it) and its key, for both ports;
	// empty serves in the clear. ClientCAFile holds the authorities (PEM) whose client certificates count; empty counts none. The files
	// are read again when they change.
	TLSCertFile, TLSKeyFile, ClientCAFile string
	// Metrics offers measurements on the HTTP port, at /metrics.
	Metrics bool
	// Log takes the log.
	Log *slog.Logger
}

// Server is a running server.
type Server struct {
	config    Config
	db        *db.DB
	service   *service.Service
	events    *telemetry.Events
	exporters *exporters
	validator protovalidate.Validator
	certs     *certificates // nil serves in the clear.
	guard     *guard
	judge     judge
	grpc      *grpc.Server
	health    *healthService
	http      *http.Server
	rest      *rest

	grpcListener net.Listener
	httpListener net.Listener

	background sync.WaitGroup
	stop       context.CancelFunc
	failed     chan error
}

// Start listens and serves. It does not wait for the database: until that is reached, calls answer DATABASE_UNAVAILABLE
// and the health service NOT_SERVING. The caller waits for Failed or for its own reasons, and then calls Stop.
func Start(ctx context.Context, config Config) (*Server, error) {
	if config.DrainTimeout <= 0 {
		config.DrainTimeout = 10 * time.Second
	}
	if config.HistoryRetention <= 0 {
		config.HistoryRetention = 30 * 24 * time.Hour
	}
	s := &Server{config: config, health: newHealthService(), failed: make(chan error, 3)}
	for _, name := range healthServices {
		s.health.SetServingStatus(name, healthv1.HealthCheckResponse_NOT_SERVING) // Until the database has answered.
	}
	if err := s.open(ctx); err != nil {
		s.release(ctx)
		return nil, err
	}
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.stop = stop
	s.background.Go(func() { s.watchHealth(background) })
	s.background.Go(func() { sweep.New(s.db, s.events, s.config.HistoryRetention).Run(background) })
	if s.certs != nil {
		s.background.Go(func() { s.certs.watch(background, s.events) })
	}
	s.background.Go(func() { s.fail("serve gRPC", s.grpc.Serve(s.grpcListener)) })
	if s.httpListener != nil {
		s.background.Go(func() { s.fail("serve REST", s.rest.serve()) })
		s.background.Go(func() { s.fail("serve HTTP", s.serveHTTP()) })
	}
	return s, nil
}

// open makes everything that serving needs.
func (s *Server) open(ctx context.Context) error {
	var err error
	if s.exporters, err = newExporters(ctx, s.config.Metrics); err != nil {
		return fmt.Errorf("set up telemetry: %w", err)
	}
	if s.events, err = telemetry.New(s.config.Log, s.exporters.meters); err != nil {
		return fmt.Errorf("set up telemetry: %w", err)
	}
	if s.config.Database.Tracer == nil {
		s.config.Database.Tracer = s.exporters.queryTracer()
	}
	if s.certs, err = openCertificates(s.config); err != nil {
		return err
	}
	if s.db, err = db.Open(ctx, s.config.Database); err != nil {
		return err
	}
	s.db.OnRetry(s.events.TransactionRetried)
	s.service = service.New(s.db, s.config.Limits, s.events)
	if s.validator, err = protovalidate.New(); err != nil {
		return fmt.Errorf("compile the rules of the messages: %w", err)
	}
	if err := s.openGuard(); err != nil {
		return err
	}
	s.grpc = s.newGRPC(fromTransport, s.transport()...)
	s.service.Register(s.grpc)
	healthv1.RegisterHealthServer(s.grpc, s.health)
	reflection.Register(s.grpc)
	if s.grpcListener, err = new(net.ListenConfig).Listen(ctx, "tcp", s.config.GRPCAddr); err != nil {
		return fmt.Errorf("listen for gRPC: %w", err)
	}
	if s.config.HTTPAddr == "" {
		return nil
	}
	return s.openHTTP(ctx)
}

// openGuard makes what knows the callers.
func (s *Server) openGuard() error {
	config := s.config.Authentication
	if len(config.Modes) == 0 {
		config.Modes = []authenticate.Mode{authenticate.None}
	}
	config.LookUp, config.Events, config.Certificates = s.service.LookUpToken, s.events, s.config.ClientCAFile != ""
	authenticator, err := authenticate.New(config)
	if err != nil {
		return fmt.Errorf("set up authentication: %w", err)
	}
	s.guard, s.judge = newGuard(authenticator, s.events), s.service
	return nil
}

// transport is how the server for callers outside of the process talks to them.
func (s *Server) transport() []grpc.ServerOption {
	if s.certs == nil {
		return nil
	}
	return []grpc.ServerOption{grpc.Creds(credentials.NewTLS(s.certs.forListener()))}
}

func (s *Server) openHTTP(ctx context.Context) error {
	if slices.Contains(s.config.CORSOrigins, AnyOrigin) {
		s.config.Log.WarnContext(ctx, "every page that a browser opens may call this server, wherever the page is from")
	}
	var err error
	if s.rest, err = s.newREST(ctx, s.service.Register); err != nil {
		return fmt.Errorf("set up REST: %w", err)
	}
	if s.httpListener, err = new(net.ListenConfig).Listen(ctx, "tcp", s.config.HTTPAddr); err != nil {
		return fmt.Errorf("listen for HTTP: %w", err)
	}
	s.http = &http.Server{
		Handler: s.handler(), ErrorLog: slog.NewLogLogger(s.config.Log.Handler(), slog.LevelWarn),
		MaxHeaderBytes:    maxHeaderBytes,
		ReadHeaderTimeout: headerTimeout, ReadTimeout: readTimeout, WriteTimeout: writeTimeout, IdleTimeout: idleTimeout,
	}
	if s.certs != nil {
		s.http.TLSConfig = s.certs.forListener()
	}
	return nil
}

// serveHTTP serves until the server stops.
func (s *Server) serveHTTP() error {
	if s.certs != nil {
		return s.http.ServeTLS(s.httpListener, "", "")
	}
	return s.http.Serve(s.httpListener)
}

// newGRPC makes a server with the interceptors, and as yet without services.
func (s *Server) newGRPC(from origin, more ...grpc.ServerOption) *grpc.Server {
	options := append(s.interceptors(from),
		grpc.MaxHeaderListSize(maxHeaderBytes),
		grpc.MaxRecvMsgSize(MaxMessageBytes),
		grpc.MaxSendMsgSize(MaxMessageBytes),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.StatsHandler(otelgrpc.NewServerHandler(
			otelgrpc.WithMeterProvider(s.exporters.meters), otelgrpc.WithTracerProvider(s.exporters.traces),
			otelgrpc.WithPropagators(propagation.TraceContext{}))),
	)
	return grpc.NewServer(append(options, more...)...)
}

// GRPCAddr is the address on which gRPC is served.
func (s *Server) GRPCAddr() string { return s.grpcListener.Addr().String() }

// HTTPAddr is the address on which HTTP is served; empty where it is not.
func (s *Server) HTTPAddr() string {
	if s.httpListener == nil {
		return ""
	}
	return s.httpListener.Addr().String()
}

// Failed yields an error if the server can no longer serve.
func (s *Server) Failed() <-chan error { return s.failed }

func (s *Server) fail(doing string, err error) {
	if err != nil && !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, grpc.ErrServerStopped) {
		s.failed <- fmt.Errorf("%s: %w", doing, err)
	}
}

// Stop drains: the health service says so, open streams end so that their clients go elsewhere, no new call is taken, and
// those under way may end within DrainTimeout.
func (s *Server) Stop(ctx context.Context) {
	s.endStreams()
	drained := make(chan struct{})
	go func() {
		s.drain(ctx)
		close(drained)
	}()
	timer := time.NewTimer(s.config.DrainTimeout)
	defer timer.Stop()
	select {
	case <-drained:
	case <-timer.C:
		s.config.Log.WarnContext(ctx, "calls still under way are cut off", slog.Duration("after", s.config.DrainTimeout))
		s.cut()
		<-drained
	}
	s.stop()
	s.background.Wait()
	s.release(ctx)
}

// endStreams ends the calls that would not end by themselves; others like them are refused from now on.
func (s *Server) endStreams() {
	s.health.end()
	s.service.Drain()
}

// drain takes no new calls, and returns when those under way have ended or are cut off.
func (s *Server) drain(ctx context.Context) {
	var calls sync.WaitGroup
	calls.Go(s.grpc.GracefulStop)
	if s.http != nil {
		calls.Go(func() {
			// REST's own gRPC server is the last to go: requests under way have yet to become calls.
			_ = s.http.Shutdown(context.WithoutCancel(ctx)) // Fails only where the listener does not close.
			s.rest.grpc.GracefulStop()
		})
	}
	calls.Wait()
}

// cut ends the calls under way.
func (s *Server) cut() {
	s.grpc.Stop()
	if s.http != nil {
		_ = s.http.Close() // Fails only where the listener does not close.
		s.rest.grpc.Stop()
	}
}

// release gives back what open made, as far as it came.
func (s *Server) release(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	for _, listener := range []net.Listener{s.grpcListener, s.httpListener} {
		if listener != nil {
			_ = listener.Close() // Closed already if it was served.
		}
	}
	if s.rest != nil {
		s.rest.close()
	}
	if s.service != nil {
		s.service.Close(ctx)
	}
	if s.db != nil {
		s.db.Close()
	}
	if s.exporters != nil {
		s.exporters.close(ctx)
	}
}
