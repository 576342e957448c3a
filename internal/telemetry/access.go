package telemetry

import (
	"context"
	"log/slog"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// Check is a call that was judged by what its caller may do.
type Check struct {
	// Session is empty where no session is involved.
	Session string
	// Permission is the word for what the call takes.
	Permission string
	// Result is `allowed`, `denied`, or `undecided` where the call ended before.
	Result string
	// Took is the time of the whole call: what a caller may do is decided in the statements that do the work.
	Took time.Duration
}

// AccessChecked records that a call was let in, or was not.
func (e *Events) AccessChecked(ctx context.Context, c Check) {
	e.checks.Record(ctx, c.Took.Seconds(), metric.WithAttributeSet(attribute.NewSet(
		attribute.String("permission", c.Permission), attribute.String("result", c.Result))))
	e.event(ctx, slog.LevelDebug, "access_check", slog.String("session", c.Session), slog.String("permission", c.Permission),
		slog.String("result", c.Result), slog.Duration("duration", c.Took))
}

// Violation is what somebody was refused for lack of a permission.
type Violation struct {
	Session, Principal, Permission, Variable, Rule, Method string
	// Token is the id of the token that was shown; empty where there was none.
	Token string
	// More is how many other variables of the same call the same was refused for.
	More int
	// Unlogged is how many other violations of this principal were only counted since the last that was logged.
	Unlogged int64
	// Quiet counts this one without logging it: callers decide how much of a log they fill.
	Quiet bool
}

const accessDenied = "access_denied"

// AccessDenied records that somebody was refused for lack of a permission.
func (e *Events) AccessDenied(ctx context.Context, v Violation) {
	if v.Quiet {
		e.events.Add(ctx, 1, metric.WithAttributeSet(attribute.NewSet(attribute.String("event", accessDenied))))
		return
	}
	attrs := []slog.Attr{
		slog.String("session", v.Session), slog.String("by", v.Principal), slog.String("token", v.Token),
		slog.String("permission", v.Permission), slog.String("variable", v.Variable), slog.String("rule", v.Rule),
		slog.String("method", v.Method),
	}
	if v.More > 0 {
		attrs = append(attrs, slog.Int("more", v.More))
	}
	if v.Unlogged > 0 {
		attrs = append(attrs, slog.Int64("unlogged", v.Unlogged))
	}
	e.event(ctx, slog.LevelInfo, accessDenied, attrs...)
}

// RuleChange is a rule that came or went.
type RuleChange struct {
	Session string
	// Change is `added` or `removed`.
	Change string
	Rule   string
	// Variable is empty of a rule for the whole session.
	Variable           string
	Subject, Principal string
	// Token is the id of the token that was shown; empty where there was none.
	Token string
}

// AccessRuleChanged records that a rule came or went.
func (e *Events) AccessRuleChanged(ctx context.Context, c RuleChange) {
	e.event(ctx, slog.LevelInfo, "access_rule_changed", slog.String("session", c.Session), slog.String("change", c.Change),
		slog.String("rule", c.Rule), slog.String("variable", c.Variable), slog.String("subject", c.Subject),
		slog.String("by", c.Principal), slog.String("token", c.Token))
}

// TokenCreated records a new token, and whose it is.
func (e *Events) TokenCreated(ctx context.Context, token, principal, by string) {
	e.event(ctx, slog.LevelInfo, "token_created", slog.String("token", token), slog.String("principal", principal),
		slog.String("by", by))
}

// TokenRevoked records the end of a token.
func (e *Events) TokenRevoked(ctx context.Context, token, principal, by string) {
	e.event(ctx, slog.LevelInfo, "token_revoked", slog.String("token", token), slog.String("principal", principal),
		slog.String("by", by))
}

// AuditWaited records that a denied call waits: there are more denials than can be written.
func (e *Events) AuditWaited(ctx context.Context) {
	e.event(ctx, slog.LevelDebug, "audit_waited")
}

// AuditFailed records that denials could not yet be written; they will be tried again.
func (e *Events) AuditFailed(ctx context.Context, err error) {
	e.event(ctx, slog.LevelWarn, "audit_failed", slog.Any("error", err))
}

// AuditLost records that denials will not be written: the server ends, those who were denied did not wait for it, or the database does
// not take them.
func (e *Events) AuditLost(ctx context.Context, denials int, err error) {
	e.event(ctx, slog.LevelError, "audit_lost", slog.Int("denials", denials), slog.Any("error", err))
}

// AuditPruned records that audit events beyond the retention were removed.
func (e *Events) AuditPruned(ctx context.Context, rows int64) {
	e.event(ctx, slog.LevelInfo, "audit_pruned", slog.Int64("rows", rows))
}
