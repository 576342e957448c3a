package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// screen is which of the streams are a terminal.
type screen struct {
	in, out, err bool
	width        int // of the terminal that out is, in columns; 0 where it is none
	errWidth     int // of the one that err is
}

func detectScreen() screen {
	s := screen{
		in:  term.IsTerminal(int(os.Stdin.Fd())),
		out: term.IsTerminal(int(os.Stdout.Fd())),
		err: term.IsTerminal(int(os.Stderr.Fd())),
	}
	if s.out {
		if width, _, err := term.GetSize(int(os.Stdout.Fd())); err == nil {
			s.width = width
		}
	}
	if s.err {
		if width, _, err := term.GetSize(int(os.Stderr.Fd())); err == nil {
			s.errWidth = width
		}
	}
	return s
}

// print writes an answer: as JSON, or as text for people.
func (c *cli) print(answer proto.Message, text func() string) error {
	out := text
	if c.output == "json" {
		document, err := jsonText(answer, "")
		if err != nil {
			return err
		}
		out = func() string { return document + "\n" }
	}
	if _, err := io.WriteString(c.stdout, out()); err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	return nil
}

// jsonText is a message in protobuf's JSON mapping, indented; prefix begins every line but the first. The mapping's own
// formatter varies its white space from build to build on purpose, which nobody wants in a pipe.
func jsonText(message proto.Message, prefix string) (string, error) {
	raw, err := protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true}.Marshal(message)
	if err != nil {
		return "", fmt.Errorf("write JSON: %w", err)
	}
	var indented bytes.Buffer
	if err := json.Indent(&indented, raw, prefix, "  "); err != nil {
		return "", fmt.Errorf("write JSON: %w", err)
	}
	return indented.String(), nil
}

// list is a listing that comes in pages.
type list[T proto.Message] struct {
	field   string // of the response, that holds the items
	noun    string // of the items, plural
	columns []column
	row     func(T) []string
	// member is another member of the JSON document, for the end, when it is known; nil is none.
	member func() string
	// fetch returns one page of at most size items, and the token of the next.
	fetch func(token string, size int32) ([]T, string, error)
}

// pageSize is the greatest that the API allows.
const pageSize = 1000

// run prints the list page by page, so that neither its length nor its size matters. It stops after limit items; 0 is
// all of them.
func (l *list[T]) run(c *cli, limit int) error {
	out := bufio.NewWriter(c.stdout)
	var sink listSink[T] = &tableSink[T]{table: &table{out: out, columns: l.columns, width: c.screen.width}, row: l.row}
	if c.output == "json" {
		sink = &jsonSink[T]{out: out, field: l.field, member: l.member}
	}
	progress := &progress{c: c, noun: l.noun}
	defer progress.end()
	token, printed := "", 0
	for {
		size := pageSize
		if limit > 0 {
			size = min(size, limit-printed)
		}
		items, next, err := l.fetch(token, int32(size))
		if err != nil {
			return err
		}
		printed += len(items)
		if err := sink.page(items); err != nil {
			return err
		}
		if next == "" || limit > 0 && printed >= limit {
			if err := sink.end(next); err != nil {
				return err
			}
			break
		}
		progress.add(len(items))
		token = next
	}
	if err := out.Flush(); err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	return nil
}

// all is the list whole, for what cannot be done in parts.
func (l *list[T]) all(c *cli) ([]T, error) {
	progress := &progress{c: c, noun: l.noun}
	defer progress.end()
	var all []T
	for token := ""; ; {
		items, next, err := l.fetch(token, pageSize)
		if err != nil {
			return nil, err
		}
		all = append(all, items...)
		if next == "" {
			return all, nil
		}
		progress.add(len(items))
		token = next
	}
}

type listSink[T proto.Message] interface {
	page(items []T) error
	end(next string) error
}

// tableSink gathers pages, which large values make small, until there is enough to choose the columns' widths by.
type tableSink[T proto.Message] struct {
	table *table
	row   func(T) []string
	bytes int
}

// maxGathered is when rows are printed at the latest, in bytes.
const maxGathered = 32 << 20

func (s *tableSink[T]) page(items []T) error {
	for _, item := range items {
		row := s.row(item)
		for i, cell := range row {
			row[i] = s.table.bounded(cell)
			s.bytes += len(row[i])
		}
		s.table.rows = append(s.table.rows, row)
	}
	if len(s.table.rows) < pageSize && s.bytes < maxGathered {
		return nil
	}
	s.bytes = 0
	return s.table.flush()
}

func (s *tableSink[T]) end(string) error {
	return s.table.flush()
}

// jsonSink writes the pages of a response as the one response that they are.
type jsonSink[T proto.Message] struct {
	out    *bufio.Writer
	field  string
	member func() string
	count  int
}

func (s *jsonSink[T]) page(items []T) error {
	for _, item := range items {
		document, err := jsonText(item, "    ")
		if err != nil {
			return err
		}
		separator := ",\n    "
		if s.count == 0 {
			separator = fmt.Sprintf("{\n  %q: [\n    ", s.field)
		}
		s.count++
		if _, err := s.out.WriteString(separator + document); err != nil {
			return fmt.Errorf("write output: %w", err)
		}
	}
	return nil
}

func (s *jsonSink[T]) end(next string) error {
	closing := "\n  ],\n"
	if s.count == 0 {
		closing = fmt.Sprintf("{\n  %q: [],\n", s.field)
	}
	if s.member != nil {
		closing += "  " + s.member() + ",\n"
	}
	token, err := json.Marshal(next)
	if err != nil {
		return fmt.Errorf("write JSON: %w", err)
	}
	if _, err := fmt.Fprintf(s.out, "%s  \"next_page_token\": %s\n}\n", closing, token); err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	return nil
}

// progress counts on standard error while something long goes somewhere else than to the screen.
type progress struct {
	c    *cli
	noun string
	// total is how many items there will be; 0 where nobody knows.
	total int64
	// beside: nothing is written to standard output meanwhile, so that it may be the screen.
	beside bool
	bar    *progressbar.ProgressBar
}

func (p *progress) add(items int) {
	if !p.c.screen.err || p.c.screen.out && !p.beside {
		return
	}
	if p.bar == nil {
		total := p.total
		if total <= 0 {
			total = -1
		}
		p.bar = progressbar.NewOptions64(total,
			progressbar.OptionSetWriter(p.c.stderr),
			progressbar.OptionSetDescription(p.noun),
			progressbar.OptionShowCount(),
			progressbar.OptionThrottle(50*time.Millisecond),
			progressbar.OptionSetSpinnerChangeInterval(0), // no goroutine: what is added moves it
			progressbar.OptionClearOnFinish())
	}
	_ = p.bar.Add(items)
}

func (p *progress) end() {
	if p.bar != nil {
		_ = p.bar.Finish()
	}
}
