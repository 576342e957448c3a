// Command tune-compression looks for the best way to compress a folder of files, as a program does that tunes itself
// with Setpoint: several workers change the same two variables at once, and nobody overwrites what they have not seen.
//
// The variables are compression_level (integer, 1 to 9) and block_size (choice, 4KiB to 1MiB). Each worker climbs:
//
//  1. read both variables, as of one moment
//  2. propose a neighbour: one step of one of them
//  3. compress the files that way, and see what it costs (objective.go)
//  4. if it is better, or now and then although it is worse, set the variable with expected_version: the version read
//
// When another worker was faster, step 4 is refused with VERSION_MISMATCH, and the worker starts from what is there now.
// Each new version carries in its metadata what it costs, together with which version of the other variable, so at the
// end the history says which pair was best; both variables are rolled back to it.
//
// Start a server first, as with "setpoint dev"; then:
//
//	go run ./examples/tune-compression --dir .
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/setpointdb/setpoint/client"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	addr := flag.String("addr", fromEnvironment("SETPOINT_ADDR", "127.0.0.1:7420"), "server's gRPC `address`")
	session := flag.String("session", fromEnvironment("SETPOINT_SESSION", "default"), "`session`, created if there is none")
	dir := flag.String("dir", ".", "`folder` of the files to compress")
	megabytes := flag.Int("max-mib", 4, "stop reading files at so many `MiB`")
	workers := flag.Int("workers", 4, "`number` of workers")
	rounds := flag.Int("rounds", 25, "`number` of proposals by each worker")
	seed := flag.Uint64("seed", 1, "`seed` of the proposals")
	flag.Parse()
	if *workers < 1 || *rounds < 1 || *megabytes < 1 {
		return fmt.Errorf("--workers, --rounds and --max-mib are at least 1")
	}
	files, err := readCorpus(*dir, *megabytes<<20)
	if err != nil {
		return err
	}
	fmt.Printf("%d files of %s, %.1f MiB\n", files.files, *dir, float64(len(files.data))/(1<<20))
	api, err := client.Dial(*addr)
	if err != nil {
		return err
	}
	defer api.Close()
	t := &tuner{api: api, session: *session, eval: newEvaluator(files), out: os.Stdout}
	start, err := t.prepare(ctx)
	if err != nil {
		return err
	}
	if err := t.climb(ctx, *workers, *rounds, *seed); err != nil {
		return err
	}
	return t.finish(ctx, start)
}

func fromEnvironment(name, otherwise string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return otherwise
}
