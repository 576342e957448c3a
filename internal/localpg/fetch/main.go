// Command fetch prints the directory of a PostgreSQL's binaries, after downloading them where the machine has none. What
// it downloads is found again by `setpoint dev` and by the tests.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/setpointdb/setpoint/internal/localpg" //nolint:depguard // this is its own command
)

func main() {
	var options localpg.FindOptions
	flag.StringVar(&options.BinDir, "postgres-bin", "", "the directory to look at, and no other")
	flag.StringVar(&options.RepositoryURL, "repository", "", "the Maven repository to download from")
	flag.BoolVar(&options.NoDownload, "no-download", false, "find only what is on the machine")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	found, err := localpg.Find(ctx, options)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if _, err := fmt.Fprintln(os.Stdout, found.Version, found.Dir); err != nil {
		os.Exit(1)
	}
}
