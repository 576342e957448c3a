package telemetry

import (
	"context"
	"log/slog"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

const authenticationFailed = "authentication_failed"

// FailedAuthentication is a caller who did not show who it is. What it showed is no part of it.
type FailedAuthentication struct {
	Peer, Method, Reason string
	// Unlogged is how many others were only counted since the last that was logged.
	Unlogged int64
	// Quiet counts this one without logging it: callers decide how much of a log they fill.
	Quiet bool
}

// AuthenticationFailed records that a caller did not show who it is.
func (e *Events) AuthenticationFailed(ctx context.Context, f FailedAuthentication) {
	if f.Quiet {
		e.events.Add(ctx, 1, metric.WithAttributeSet(attribute.NewSet(attribute.String("event", authenticationFailed))))
		return
	}
	attrs := []slog.Attr{slog.String("peer", f.Peer), slog.String("method", f.Method), slog.String("reason", f.Reason)}
	if f.Unlogged > 0 {
		attrs = append(attrs, slog.Int64("unlogged", f.Unlogged))
	}
	e.event(ctx, slog.LevelInfo, authenticationFailed, attrs...)
}

// IssuerKeysFetched records that the keys with which an issuer signs were read.
func (e *Events) IssuerKeysFetched(ctx context.Context, issuer string, keys int) {
	e.event(ctx, slog.LevelDebug, "issuer_keys_fetched", slog.String("issuer", issuer), slog.Int("keys", keys))
}

// IssuerKeysFailed records that they could not be read; the next token that needs them has them tried again.
func (e *Events) IssuerKeysFailed(ctx context.Context, issuer string, err error) {
	e.event(ctx, slog.LevelWarn, "issuer_keys_failed", slog.String("issuer", issuer), slog.Any("error", err))
}

// CertificatesReloaded records that the server shows another certificate, or trusts other authorities.
func (e *Events) CertificatesReloaded(ctx context.Context) {
	e.event(ctx, slog.LevelInfo, "certificates_reloaded")
}

// CertificatesNotReloaded records that the files have changed, and not for the better: what they held before goes on to count.
func (e *Events) CertificatesNotReloaded(ctx context.Context, err error) {
	e.event(ctx, slog.LevelError, "certificates_not_reloaded", slog.Any("error", err))
}
