// Command bench measures a running server: what operations cost as what they work on grows. It says nothing of other
// machines; compare within a run.
//
//	bench graph [--addr 127.0.0.1:7420] [--calls 200] [--edges 100,1000,10000] [--most 3ms]
//	bench leases [--addr 127.0.0.1:7420] [--servers HOST:PORT,…] [--optimizers 200] [--variables 20] [--for 30s]
//	             [--conflict wait|abort|mixed] [--most-variables 3] [--hold 20ms] [--calls 200]
//	bench leases --wait-many [--addr 127.0.0.1:7420] [--servers HOST:PORT,…] [--waiting 1000] [--calls 200]
//	bench access [--addr 127.0.0.1:7420] [--variables 1000] [--rules 10000] [--whole-session 100]
//	             [--calls 200] [--rounds 7] [--callers 64] [--most 1.5]
//
// bench leases also looks at what became of the leases, and ends with status 1 if a variable had two holders at once, a
// write was made outside of its grant, a token did not grow, or a lease or a place in the queue was left behind. bench access
// ends with status 1 if a write by somebody whom rules allow it is --most times as long, or longer, with many rules as with one.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
)

var benches = map[string]func(ctx context.Context, args []string, out io.Writer) error{
	"graph": graph, "leases": leases, "access": access,
}

const usage = `usage: bench graph [--addr HOST:PORT] [--calls N] [--edges N,N…] [--most D]
       bench leases [--addr HOST:PORT] [--servers HOST:PORT,…] [--optimizers N] [--variables N] [--for D]
                    [--conflict wait|abort|mixed] [--most-variables N] [--hold D] [--calls N]
       bench leases --wait-many [--addr HOST:PORT] [--servers HOST:PORT,…] [--waiting N] [--calls N]
       bench access [--addr HOST:PORT] [--variables N] [--rules N] [--whole-session N] [--calls N] [--rounds N]
                    [--callers N] [--most RATIO]`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if len(os.Args) < 2 || benches[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, usage)
		os.Exit(2)
	}
	if err := benches[os.Args[1]](ctx, os.Args[2:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}
