// Command tune-compression looks for the best way to compress a folder of files, as a program does that tunes itself
// with Setpoint: it takes the right to change two variables, tries values, and leaves the best.
//
// The variables are compression_level (integer, 1 to 9) and block_size (choice, 4KiB to 1MiB):
//
//  1. start an optimization of both; if somebody else is at it, wait
//  2. have a LeaseKeeper keep its lease, and work under the keeper's context
//  3. several workers climb: propose a neighbour, one step of one variable; compress the files that way, and see what it
//     costs (objective.go); report it as a trial, and if it is better, or now and then although it is worse, apply it
//  4. stop, with the values of the best trial, of which the server has kept track
//
// Ctrl-C stops it early, and so does an optimization that preempts it: then it stops as cancelled, with the values of the best
// trial so far, while it still may. In the queue, Ctrl-C gives its place up.
//
// While it runs, whoever reads the variables sees how far it is, and nobody else changes them: try "setpoint var set
// compression_level 5" meanwhile, or start it twice. Should it crash, the variables are free when its lease is over.
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
	api, err := client.Dial(*addr, client.WithPrincipal("service:tune-compression"))
	if err != nil {
		return err
	}
	defer api.Close()
	t := &tuner{api: api, session: *session, eval: newEvaluator(files), out: os.Stdout}
	return t.run(ctx, *workers, *rounds, *seed)
}

func fromEnvironment(name, otherwise string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return otherwise
}
