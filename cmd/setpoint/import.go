package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/expression"
	"github.com/setpointdb/setpoint/internal/server"
	"github.com/setpointdb/setpoint/internal/value"
)

const sessionImportLong = `Reads what 'setpoint session export' wrote, from FILE or standard input, into session
ID. Of each variable it takes the name, type, value, constraints, metadata, history
limit, access mode, dependencies and expression; ids, revisions, times and principals
are the new session's own, and so are its access rules.

The file is read twice. First all of it is checked: that it is whole, that every line
is good, that every value satisfies its constraints, that variables depend on such as
are there, and none on itself, that expressions fit their types, and, as --merge says,
that names are free. Until then nothing is written. Then it is written in batches; how
many variables and how large values the server takes shows only then.
Both go through the file as a stream; standard input is put in a temporary file first.

Variables that depend on others come last, each after what it depends on, whatever order
the file has. Derived ones are computed; their values in the file stand only where that
fails. Stale marks are not imported.

--merge says what becomes of a variable whose name the session has already:
  fail      refuse the whole import (the default)
  replace   give it the file's value, constraints, metadata, history limit, access mode,
            dependencies and expression; one that has them all is left as it is; one of
            another type refuses the import
  keep      leave it as it is

An import that ends early, by an error or Ctrl-C, says how much is imported; running it
again with --merge replace completes it.

With --history, variables that the session did not have get their past too: registered
with the oldest version of the file, and set to each later one with its metadata and
reason. These are new versions, by you and of today, and versions that today's
constraints refuse are left out. Derived ones have one more, of when they begin to
follow the others. Of variables that are replaced, history is not read.

--create opens the session, with the ttl and metadata of the file, if there is none.

INVALID_FILE: the file is none, or not whole. VARIABLE_EXISTS, TYPE_MISMATCH: the
session has such a variable. CONSTRAINT_VIOLATION, INVALID_CONSTRAINTS: a line of the
file contradicts itself. VARIABLE_NOT_FOUND, WOULD_CREATE_CYCLE, INVALID_EXPRESSION: a
variable cannot depend on what the file says. DERIVATION_FAILED: a derived one cannot be
computed, and has no value in the file. SESSION_NOT_FOUND: there is no such session.
ACCESS_DENIED: you may not write in all of it, or, where a file gives a variable another
access mode, lack admin.`

func newSessionImportCommand(c *cli) *cobra.Command {
	var create, dryRun bool
	var ttl time.Duration
	im := &importer{}
	cmd := &cobra.Command{
		Use:   "import ID [FILE]",
		Short: "Read variables from a file into a session",
		Long:  sessionImportLong,
		Example: `  setpoint session import run-8 run-7.jsonl --create
  setpoint session import run-8 run-7.jsonl --merge replace --dry-run
  setpoint session import run-8 run-7.jsonl --create --ttl 0 --history
  gunzip < run-7.jsonl.gz | setpoint session import run-8 -`,
		Args:              takes("ID", "[FILE]"),
		ValidArgsFunction: completes(c.completeSessions, completeFiles),
	}
	flags := cmd.Flags()
	flags.StringVar(&im.merge, "merge", mergeFail, "what becomes of variables that exist: `fail|replace|keep`")
	flags.BoolVar(&dryRun, "dry-run", false, "check everything, say what the import would do, and do not do it")
	flags.BoolVar(&im.history, "history", false, "replay the history that the file has")
	flags.BoolVar(&create, "create", false, "open the session if there is none")
	flags.DurationVar(&ttl, "ttl", 0,
		"with --create: how `long` the session outlives the last call in it, instead of the file's ttl")
	addReasonFlag(cmd, &im.reason)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		switch im.merge {
		case mergeFail, mergeReplace, mergeKeep:
		default:
			return usagef("--merge is fail, replace or keep, not %q", im.merge)
		}
		im.c, im.sessionID, im.dryRun = c, args[0], dryRun
		if create {
			im.create = &setpointv1.CreateSessionRequest{SessionId: args[0]}
		}
		if cmd.Flags().Changed("ttl") {
			if !create {
				return usagef("--ttl is for --create")
			}
			im.create.Ttl = durationpb.New(ttl)
		}
		in, err := c.openImport(args[1:])
		if err != nil {
			return err
		}
		defer in.close()
		if im.api, err = c.connect(cmd); err != nil {
			return err
		}
		start := time.Now()
		if err := im.run(cmd.Context(), in); err != nil {
			return err
		}
		return im.printSummary(time.Since(start))
	}
	return cmd
}

// What becomes of variables that exist.
const (
	mergeFail    = "fail"
	mergeReplace = "replace"
	mergeKeep    = "keep"
)

// importFile is a file that can be read twice.
type importFile struct {
	*os.File
	temporary bool
}

func (f importFile) close() {
	_ = f.Close() // it was only read
	if f.temporary {
		_ = os.Remove(f.Name())
	}
}

// openImport opens the FILE argument. What cannot be read twice is copied.
func (c *cli) openImport(args []string) (importFile, error) {
	if len(args) == 0 && c.screen.in {
		return importFile{}, usagef("give a FILE, or - to type it")
	}
	in := c.stdin
	if path := strings.Join(args, ""); path != "" && path != "-" {
		file, err := os.Open(path)
		if err != nil {
			return importFile{}, usagef("%v", err)
		}
		info, err := file.Stat()
		if err != nil {
			return importFile{}, errors.Join(fmt.Errorf("read the file: %w", err), file.Close())
		}
		if info.Mode().IsRegular() {
			return importFile{File: file}, nil
		}
		defer func() { _ = file.Close() }()
		in = file
	}
	spool, err := os.CreateTemp("", "setpoint-import-*")
	if err != nil {
		return importFile{}, fmt.Errorf("make a temporary file: %w", err)
	}
	file := importFile{File: spool, temporary: true}
	if _, err := io.Copy(spool, in); err != nil {
		file.close()
		return importFile{}, fmt.Errorf("copy to a temporary file: %w", err)
	}
	return file, nil
}

// importer is one import into a session.
type importer struct {
	c         *cli
	api       *client.Client
	sessionID string
	merge     string
	reason    string
	history   bool
	dryRun    bool
	// create opens the session if there is none; nil does not.
	create *setpointv1.CreateSessionRequest

	// empty: the session has no variables, or is not there yet, so none has to be looked for.
	empty bool
	// began is the session's revision before the import.
	began int64
	// graph is what depends on what; connecting: it is the turn of the variables that depend on others.
	graph      *importGraph
	connecting bool
	// pending are the writes that the next batches make, of pendingBytes.
	pending      []importStep
	pendingBytes int
	progress     *progress
	done         importCounts
}

// importCounts is what an import did, or would do.
type importCounts struct {
	Registered int64 `json:"registered"`
	Replaced   int64 `json:"replaced"`
	Unchanged  int64 `json:"unchanged"`
	Kept       int64 `json:"kept"`
	// Versions counts those that history added to registered variables; Skipped those that today's constraints refuse.
	Versions int64 `json:"versions"`
	Skipped  int64 `json:"skipped_versions"`
}

func (n importCounts) variables() int64 { return n.Registered + n.Replaced + n.Unchanged + n.Kept }

// run imports what a file has, which is read from its beginning twice.
func (im *importer) run(ctx context.Context, in io.ReadSeeker) error {
	session, err := im.api.Sessions.GetSession(ctx, &setpointv1.GetSessionRequest{SessionId: im.sessionID})
	missing := errors.Is(err, client.ErrSessionNotFound)
	if missing && im.create == nil {
		return &hintedError{err, "--create opens it"}
	}
	if err != nil && !missing {
		return err
	}
	im.empty, im.began = session.GetVariableCount() == 0, session.GetRevision()
	header, variables, err := im.check(ctx, in)
	if err != nil || im.dryRun {
		return err
	}
	im.done = importCounts{}
	if missing {
		if err := im.createSession(ctx, header); err != nil {
			return err
		}
	}
	if err := im.apply(ctx, in, variables); err != nil {
		return &hintedError{im.placed(err), fmt.Sprintf(
			"%d of %d variables are imported; running it again with --merge replace goes on", im.done.variables(), variables)}
	}
	return nil
}

// placed keeps the name and message of an error that gets a hint.
func (im *importer) placed(err error) error {
	reason, message := im.c.describe(err)
	return &reasonError{reason, message}
}

func (im *importer) createSession(ctx context.Context, header archiveHeader) error {
	im.create.Metadata = header.Metadata
	if im.create.Ttl == nil {
		ttl, err := header.ttl()
		if err != nil {
			return err
		}
		im.create.Ttl = durationpb.New(ttl)
	}
	_, err := im.api.Sessions.CreateSession(ctx, im.create)
	return err
}

// check reads all of the file, writes nothing, and counts what an import would do. It returns the number of variables.
func (im *importer) check(ctx context.Context, in io.ReadSeeker) (archiveHeader, int64, error) {
	im.progress = &progress{c: im.c, noun: "checked", beside: true}
	defer im.progress.end()
	r, err := im.open(in)
	if err != nil {
		return archiveHeader{}, 0, err
	}
	im.graph = newImportGraph()
	var chunk []*importTarget
	bytes := 0
	for {
		record, err := r.read()
		if errors.Is(err, io.EOF) {
			if err := im.checkChunk(ctx, chunk); err != nil {
				return archiveHeader{}, 0, err
			}
			return r.header, r.count.Variables, im.checkGraph(ctx, r, in)
		} else if err != nil {
			return archiveHeader{}, 0, err
		}
		if record.variable == nil {
			continue
		}
		target, err := newImportTarget(record)
		if err != nil {
			return archiveHeader{}, 0, err
		}
		im.graph.add(target)
		size := proto.Size(record.variable)
		if len(chunk) == maxBatchItems || len(chunk) > 0 && bytes+size > maxBatchBytes {
			if err := im.checkChunk(ctx, chunk); err != nil {
				return archiveHeader{}, 0, err
			}
			chunk, bytes = nil, 0
		}
		chunk, bytes = append(chunk, target), bytes+size
	}
}

// open begins to read the file from its beginning.
func (im *importer) open(in io.ReadSeeker) (*archiveReader, error) {
	if _, err := in.Seek(0, io.SeekStart); err != nil {
		return nil, fmt.Errorf("read the file: %w", err)
	}
	r, err := newArchiveReader(in)
	if err == nil && im.history && !r.header.History {
		return nil, invalidFile("the file has no history; 'setpoint session export --history' writes it")
	}
	return r, err
}

// checkChunk sees what the session has of some of the file's variables.
func (im *importer) checkChunk(ctx context.Context, chunk []*importTarget) error {
	im.progress.add(len(chunk))
	if im.empty || im.merge == mergeKeep && !im.dryRun {
		im.done.Registered += int64(len(chunk))
		return nil
	}
	return im.compare(ctx, chunk, func(target *importTarget, current *setpointv1.Variable) error {
		switch {
		case current == nil:
			im.done.Registered++
			return nil
		case im.merge == mergeKeep:
			im.done.Kept++
			return nil
		case im.merge == mergeFail:
			return &hintedError{target.failed("VARIABLE_EXISTS", fmt.Sprintf("session %q has a variable %q; nothing was imported",
				im.sessionID, target.variable.GetName())), "--merge replace or --merge keep would go on"}
		}
		plan, err := im.plan(target, current)
		switch {
		case err != nil:
			return err
		case plan == nil:
			im.done.Unchanged++
		default:
			im.done.Replaced++
		}
		return nil
	})
}

func (im *importer) printSummary(took time.Duration) error {
	n := im.done
	summary := struct {
		SessionID string `json:"session_id"`
		Variables int64  `json:"variables"`
		importCounts
		DryRun  bool    `json:"dry_run"`
		Seconds float64 `json:"seconds"`
	}{im.sessionID, n.variables(), n, im.dryRun, took.Seconds()}
	return im.c.printSummary(summary, func() string {
		did, note := "imported", ""
		if im.dryRun {
			did, note = "would import", "; dry run, nothing written"
		}
		history := ""
		if im.history && !im.dryRun {
			history = fmt.Sprintf("; %d versions replayed, %d skipped", n.Versions, n.Skipped)
		}
		return fmt.Sprintf("%s %d variables (%d registered, %d replaced, %d unchanged, %d kept%s) in %.1f s%s\n",
			did, n.variables(), n.Registered, n.Replaced, n.Unchanged, n.Kept, history, took.Seconds(), note)
	})
}

// importTarget is a variable of the file: what the session's is to become.
type importTarget struct {
	line       int
	offset     int64
	variable   *setpointv1.Variable
	definition *value.Definition
	// needs are the names of the variables that it depends on: those that the file names and those that its expression uses.
	needs []string
	// settled: the session had a variable of this name, and it is dealt with.
	settled bool
	// begun: it is registered, or about to be, with value and metadata.
	begun    bool
	value    *setpointv1.Value
	metadata map[string]string
	// skipped counts the versions that today's constraints refuse.
	skipped int64
}

// maxValueBytes is the largest value that any server takes; this one may take less.
const maxValueBytes = server.MaxMessageBytes / 2

// newImportTarget checks that the file's variable is one: that its value satisfies its constraints, or is computed.
func newImportTarget(record archiveRecord) (*importTarget, error) {
	target := &importTarget{line: record.line, offset: record.offset, variable: record.variable}
	v := record.variable
	target.needs = slices.Clone(v.GetDependsOn())
	if target.derived() {
		source, err := expression.Parse(v.GetExpression())
		if err != nil {
			return nil, target.failed("INVALID_EXPRESSION", fmt.Sprintf("%s: %v", v.GetName(), err))
		}
		target.needs = append(target.needs, source.Candidates()...)
	}
	slices.Sort(target.needs)
	target.needs = slices.Compact(target.needs)
	var err error
	target.definition, err = value.NewDefinition(v.GetType(), v.GetConstraints())
	if err != nil {
		return nil, target.refused(fmt.Errorf("%s: %w", v.GetName(), err))
	}
	if target.derived() && v.GetValue() == nil {
		return target, nil
	}
	if !target.accepts(v.GetValue()) {
		_, err := target.definition.Accept(v.GetName(), v.GetValue(), maxValueBytes)
		return nil, target.refused(err)
	}
	return target, nil
}

func (t *importTarget) derived() bool { return t.variable.GetExpression() != "" }

func (t *importTarget) strict() bool { return t.derived() && t.variable.GetStrict() }

// connected tells whether its turn comes after that of others.
func (t *importTarget) connected() bool { return len(t.needs) > 0 || t.derived() }

func (t *importTarget) accepts(v *setpointv1.Value) bool {
	_, err := t.definition.Accept(t.variable.GetName(), v, maxValueBytes)
	return err == nil
}

// refused is an error of the variable's own.
func (t *importTarget) refused(err error) error {
	reason := "INVALID_FILE"
	var refusal *value.Refusal
	if errors.As(err, &refusal) {
		reason = refusal.Reason.String()
	}
	return t.failed(reason, err.Error())
}

func (t *importTarget) failed(reason, message string) error {
	return &reasonError{reason, fmt.Sprintf("line %d: %s", t.line, message)}
}
