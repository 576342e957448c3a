// Command bench measures a running server: what operations cost as what they work on grows. It says nothing of other
// machines; compare within a run.
//
//	bench graph [--addr 127.0.0.1:7420] [--calls 200] [--edges 100,1000,10000] [--most 3ms]
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if len(os.Args) < 2 || os.Args[1] != "graph" {
		fmt.Fprintln(os.Stderr, "usage: bench graph [--addr HOST:PORT] [--calls N] [--edges N,N…] [--most D]")
		os.Exit(2)
	}
	if err := graph(ctx, os.Args[2:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}
