package main

import (
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// expiry is when something ends: so long from now, by the database's clock, or at a time. Neither is never.
type expiry struct {
	ttl *durationpb.Duration
	at  *timestamppb.Timestamp
}

func addExpiresFlag(cmd *cobra.Command, text *string) {
	cmd.Flags().StringVar(text, "expires", "",
		"`when` it ends: after so long, as 8h, or at a time, as 2026-01-31T15:04:05Z or 2026-01-31 15:04 (local); left out, never")
}

// readExpiry reads --expires.
func (c *cli) readExpiry(cmd *cobra.Command, text string) (expiry, error) {
	if !cmd.Flags().Changed("expires") {
		return expiry{}, nil
	}
	if ttl, err := time.ParseDuration(text); err == nil {
		if ttl <= 0 {
			return expiry{}, usagef("--expires %s is no time to come; write it as 8h or 2026-01-31T15:04:05Z, or leave it out for never", text)
		}
		return expiry{ttl: durationpb.New(ttl)}, nil
	}
	if at, ok := c.parseTime(text); ok {
		return expiry{at: timestamppb.New(at)}, nil
	}
	return expiry{}, usagef("--expires %q is neither for how long nor a time; write it as 8h or 2026-01-31T15:04:05Z", text)
}
