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
//
// It works in a session of its own, which it creates and so owns. In somebody else's it needs the permission optimize: "setpoint acl
// allow service:tune-compression optimize", and if the variables are yet to be registered, write. To a server that knows its callers by
// tokens, it shows the one in --token-file; over TLS with --ca-cert.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/setpointdb/setpoint/client"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

const (
	// principal is who the program says it is, where there is no token to tell.
	principal = "service:tune-compression"
	// ownSession is where it works unless told otherwise.
	ownSession = "tune-compression"
)

func run(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("tune-compression", flag.ContinueOnError)
	addr := flags.String("addr", fromEnvironment("SETPOINT_ADDR", "127.0.0.1:7420"), "server's gRPC `address`")
	session := flags.String("session", fromEnvironment("SETPOINT_SESSION", ownSession), "`session`, created if there is none")
	tokenFile := flags.String("token-file", os.Getenv("SETPOINT_TOKEN_FILE"), "`file` with the bearer token")
	caCert := flags.String("ca-cert", os.Getenv("SETPOINT_CA_CERT"),
		"`file` with the certificate authorities (PEM) to trust; connects over TLS")
	dir := flags.String("dir", ".", "`folder` of the files to compress")
	megabytes := flags.Int("max-mib", 4, "stop reading files at so many `MiB`")
	workers := flags.Int("workers", 4, "`number` of workers")
	rounds := flags.Int("rounds", 25, "`number` of proposals by each worker")
	seed := flags.Uint64("seed", 1, "`seed` of the proposals")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *workers < 1 || *rounds < 1 || *megabytes < 1 {
		return errors.New("--workers, --rounds and --max-mib are at least 1")
	}
	files, err := readCorpus(*dir, *megabytes<<20)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "%d files of %s, %.1f MiB\n", files.files, *dir, float64(len(files.data))/(1<<20))
	api, err := client.Dial(*addr, callerOptions(*tokenFile, *caCert)...)
	if err != nil {
		return err
	}
	defer api.Close()
	t := &tuner{api: api, session: *session, eval: newEvaluator(files), out: out}
	return t.run(ctx, *workers, *rounds, *seed)
}

// callerOptions say who calls, and over what.
func callerOptions(tokenFile, caCert string) []client.Option {
	options := []client.Option{client.WithPrincipal(principal)}
	if tokenFile != "" {
		options = []client.Option{client.WithTokenFile(tokenFile)} // It is the token that says who calls.
	}
	if caCert != "" {
		options = append(options, client.WithTLS(caCert))
	}
	return options
}

func fromEnvironment(name, otherwise string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return otherwise
}
