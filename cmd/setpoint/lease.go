package main

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// optimizationID is the form of an optimization's id.
var optimizationID = regexp.MustCompile(`^opt_[a-z0-9]{26}$`)

// parseLease reads a LEASE, as 'opt start' prints it.
func parseLease(text string) (*setpointv1.Lease, error) {
	lease, err := parseOptimization(text)
	if err != nil {
		return nil, err
	}
	if lease.GetFencingToken() == 0 {
		return nil, usagef("LEASE is OPT:TOKEN; %q lacks the token that 'setpoint opt start' printed", text)
	}
	return lease, nil
}

// parseOptimization reads ID[:TOKEN], the id of an optimization or its LEASE. Without a token, that is 0.
func parseOptimization(text string) (*setpointv1.Lease, error) {
	id, token, found := strings.Cut(text, ":")
	if !optimizationID.MatchString(id) {
		return nil, usagef("an optimization is opt_ and 26 small letters and digits, with :TOKEN behind as a LEASE, not %q", text)
	}
	if !found {
		return &setpointv1.Lease{OptimizationId: id}, nil
	}
	number, err := strconv.ParseInt(token, 10, 64)
	if err != nil || number < 1 {
		return nil, usagef("LEASE is OPT:TOKEN with a whole number from 1 as its TOKEN, not %q", text)
	}
	return &setpointv1.Lease{OptimizationId: id, FencingToken: number}, nil
}

// leaseText is the LEASE of an optimization; empty where it has none, or none to show to the caller.
func leaseText(o *setpointv1.Optimization) string {
	if o.GetFencingToken() == 0 || o.GetEndedAt() != nil {
		return ""
	}
	return fmt.Sprintf("%s:%d", printable(o.GetOptimizationId()), o.GetFencingToken())
}

// leaseFlag is a flag of which the last LEASE counts.
type leaseFlag struct{ lease **setpointv1.Lease }

func (f leaseFlag) Set(text string) error {
	lease, err := parseLease(text)
	if err == nil {
		*f.lease = lease
	}
	return err
}

// String is empty: the flag has no default, and nobody asks for its value.
func (leaseFlag) String() string { return "" }

func (leaseFlag) Type() string { return "lease" }

// leasesFlag is a flag that collects each LEASE.
type leasesFlag struct{ leases *[]*setpointv1.Lease }

func (f leasesFlag) Set(text string) error {
	lease, err := parseLease(text)
	if err == nil {
		*f.leases = append(*f.leases, lease)
	}
	return err
}

func (leasesFlag) String() string { return "" }

func (leasesFlag) Type() string { return "leases" }

func addLeaseFlag(cmd *cobra.Command, lease **setpointv1.Lease) {
	cmd.Flags().Var(leaseFlag{lease}, "lease", "write under this `OPT:TOKEN`, as a variable needs that is being optimized")
}

func addLeasesFlag(cmd *cobra.Command, leases *[]*setpointv1.Lease) {
	cmd.Flags().Var(leasesFlag{leases}, "lease",
		"write under this `OPT:TOKEN`, as variables need that are being optimized; repeatable")
}
