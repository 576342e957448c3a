package main

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/rivo/uniseg"
	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// screen is which of the streams are a terminal.
type screen struct {
	in, out, err bool
	width        int // of the terminal that out is, in columns; 0 where it is none
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

type column struct {
	title string
	right bool // numbers
	// long columns give way where the terminal is too narrow.
	long bool
}

// table writes rows in aligned columns. The last column is not padded. Rows may be flushed in portions: the first one's
// widths then hold for the later ones as far as they fit.
type table struct {
	out     io.Writer
	columns []column
	width   int // of the terminal; 0 shortens nothing
	rows    [][]string

	widths []int
	headed bool
}

const (
	columnGap      = "  "
	narrowestLong  = 8
	ellipsis       = "…"
	timeLayout     = "2006-01-02 15:04:05"
	absent         = "-"
	bytesPerColumn = 64 // more than any sensible grapheme takes; a longer text is cut before it is measured
)

func (t *table) flush() error {
	if !t.headed {
		titles := make([]string, len(t.columns))
		for i, column := range t.columns {
			titles[i] = column.title
		}
		t.rows = append([][]string{titles}, t.rows...)
		t.headed = true
		t.widths = make([]int, len(t.columns))
	}
	for _, row := range t.rows {
		for i, cell := range row {
			if i < len(row)-1 || t.width > 0 {
				t.widths[i] = max(t.widths[i], uniseg.StringWidth(t.bounded(cell)))
			}
		}
	}
	t.shrink()
	for _, row := range t.rows {
		if _, err := io.WriteString(t.out, t.line(row)); err != nil {
			return fmt.Errorf("write output: %w", err)
		}
	}
	t.rows = nil
	return nil
}

// bounded is as much of a cell as can show on the screen, and a little more.
func (t *table) bounded(cell string) string {
	if limit := t.width * bytesPerColumn; t.width > 0 && len(cell) > limit {
		return strings.Clone(strings.ToValidUTF8(cell[:limit], ""))
	}
	return cell
}

// shrink takes from the widest long column until the table fits the terminal.
func (t *table) shrink() {
	if t.width <= 0 {
		return
	}
	total := len(columnGap) * (len(t.columns) - 1)
	for _, width := range t.widths {
		total += width
	}
	for ; total > t.width; total-- {
		widest := -1
		for i, column := range t.columns {
			if column.long && t.widths[i] > narrowestLong && (widest < 0 || t.widths[i] > t.widths[widest]) {
				widest = i
			}
		}
		if widest < 0 {
			return
		}
		t.widths[widest]--
	}
}

func (t *table) line(row []string) string {
	var line strings.Builder
	for i, cell := range row {
		if t.width > 0 && t.columns[i].long {
			cell = truncate(t.bounded(cell), t.widths[i])
		}
		last := i == len(row)-1
		padding := 0
		if !last || t.columns[i].right {
			padding = max(0, t.widths[i]-uniseg.StringWidth(cell))
		}
		if t.columns[i].right {
			line.WriteString(strings.Repeat(" ", padding))
		}
		line.WriteString(cell)
		if last {
			break
		}
		if !t.columns[i].right {
			line.WriteString(strings.Repeat(" ", padding))
		}
		line.WriteString(columnGap)
	}
	return strings.TrimRight(line.String(), " ") + "\n"
}

// truncate shortens text to a width in columns of the terminal.
func truncate(text string, width int) string {
	if uniseg.StringWidth(text) <= width {
		return text
	}
	var short strings.Builder
	used, rest, state := 0, text, -1
	for rest != "" {
		var cluster string
		var w int
		cluster, rest, w, state = uniseg.FirstGraphemeClusterInString(rest, state)
		if used+w > width-1 {
			break
		}
		used += w
		short.WriteString(cluster)
	}
	return short.String() + ellipsis
}

// block is "key: value" lines, the values aligned. Pairs without a value are left out.
func block(pairs ...[2]string) string {
	longest := 0
	for _, pair := range pairs {
		if pair[1] != "" {
			longest = max(longest, len(pair[0]))
		}
	}
	var text strings.Builder
	for _, pair := range pairs {
		if pair[1] != "" {
			fmt.Fprintf(&text, "%-*s %s\n", longest+1, pair[0]+":", pair[1])
		}
	}
	return text.String()
}

// printable keeps text on one line and off the terminal's controls: whoever wrote it was not necessarily a friend.
func printable(text string) string {
	text = strings.ToValidUTF8(text, string(unicode.ReplacementChar))
	if !strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return text
	}
	var safe strings.Builder
	for _, r := range text {
		if unicode.IsPrint(r) {
			safe.WriteRune(r)
			continue
		}
		quoted := strconv.QuoteRune(r)
		safe.WriteString(quoted[1 : len(quoted)-1])
	}
	return safe.String()
}

func (c *cli) timeText(t *timestamppb.Timestamp) string {
	if t == nil {
		return absent
	}
	return t.AsTime().In(c.zone).Format(timeLayout)
}

// typeText is a type's name as "setpoint var register" takes it.
func typeText(t setpointv1.VariableType) string {
	return enumText(t.String(), "VARIABLE_TYPE_")
}

func enumText(name, prefix string) string {
	return strings.ToLower(strings.TrimPrefix(name, prefix))
}

// mapText is metadata on one line.
func mapText(metadata map[string]string) string {
	pairs := make([]string, 0, len(metadata))
	for _, key := range slices.Sorted(maps.Keys(metadata)) {
		pairs = append(pairs, printable(key)+"="+printable(metadata[key]))
	}
	return strings.Join(pairs, ", ")
}

// constraintsText is the constraints that are set, on one line, by the names of their fields.
func constraintsText(constraints *setpointv1.Constraints) string {
	m := constraints.ProtoReflect()
	fields := m.Descriptor().Fields()
	var parts []string
	for i := range fields.Len() {
		field := fields.Get(i)
		if !m.Has(field) {
			continue
		}
		parts = append(parts, strings.ReplaceAll(string(field.Name()), "_", "-")+" "+fieldText(field, m.Get(field)))
	}
	return strings.Join(parts, ", ")
}

func fieldText(field protoreflect.FieldDescriptor, value protoreflect.Value) string {
	switch {
	case field.IsList():
		elements := make([]string, 0, value.List().Len())
		for i := range value.List().Len() {
			elements = append(elements, scalarText(value.List().Get(i)))
		}
		return "[" + strings.Join(elements, ", ") + "]"
	case field.Message() != nil:
		return messageText(value.Message().Interface())
	}
	return scalarText(value)
}

func scalarText(value protoreflect.Value) string {
	switch v := value.Interface().(type) {
	case string:
		return quoted(v)
	case float64:
		return numberText(v, 64)
	}
	return value.String()
}

// valueText is a value in the form in which "setpoint var set" takes it.
func valueText(value *setpointv1.Value) string {
	switch kind := value.GetKind().(type) {
	case *setpointv1.Value_Boolean:
		return strconv.FormatBool(kind.Boolean)
	case *setpointv1.Value_Integer:
		return strconv.FormatInt(kind.Integer, 10)
	case *setpointv1.Value_Number:
		return numberText(kind.Number, 64)
	case *setpointv1.Value_String_:
		return quoted(kind.String_)
	case *setpointv1.Value_Choice:
		return quoted(kind.Choice)
	case *setpointv1.Value_Module:
		return quoted(kind.Module)
	case *setpointv1.Value_Embedding:
		elements := make([]string, 0, len(kind.Embedding.GetValues()))
		for _, v := range kind.Embedding.GetValues() {
			elements = append(elements, numberText(float64(v), 32))
		}
		return "[" + strings.Join(elements, ", ") + "]"
	case *setpointv1.Value_Tensor:
		shape := make([]string, 0, len(kind.Tensor.GetShape()))
		for _, size := range kind.Tensor.GetShape() {
			shape = append(shape, strconv.FormatInt(size, 10))
		}
		return fmt.Sprintf(`{"dtype": %s, "shape": [%s], "data": "%s"}`, quoted(kind.Tensor.GetDtype()),
			strings.Join(shape, ", "), base64.StdEncoding.EncodeToString(kind.Tensor.GetData()))
	case *setpointv1.Value_Json:
		return messageText(kind.Json)
	}
	return absent
}

func messageText(message proto.Message) string {
	raw, err := protojson.Marshal(message)
	if err != nil {
		return absent // a number that JSON has no form for, which no server sends
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, raw); err != nil {
		return absent
	}
	return escapeJSON(compact.String())
}

// numberText is a number as JSON writes it, or the name that stands for it.
func numberText(number float64, bits int) string {
	switch {
	case math.IsNaN(number):
		return "NaN"
	case math.IsInf(number, 1):
		return "Infinity"
	case math.IsInf(number, -1):
		return "-Infinity"
	}
	var raw []byte
	if bits == 32 {
		raw, _ = json.Marshal(float32(number)) // finite, so it has a form
	} else {
		raw, _ = json.Marshal(number)
	}
	return string(raw)
}

// quoted is text as a JSON string.
func quoted(text string) string {
	var buffer bytes.Buffer
	encoder := json.NewEncoder(&buffer)
	encoder.SetEscapeHTML(false)
	_ = encoder.Encode(text) // a string always has a form
	return escapeJSON(strings.TrimSuffix(buffer.String(), "\n"))
}

// escapeJSON writes what a terminal would not print, or would obey, as JSON's escapes. JSON has such characters only
// within strings.
func escapeJSON(text string) string {
	if !strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return text
	}
	var safe strings.Builder
	for _, r := range text {
		switch {
		case unicode.IsPrint(r):
			safe.WriteRune(r)
		case r > 0xffff:
			r -= 0x10000
			fmt.Fprintf(&safe, `\u%04x\u%04x`, 0xd800+r>>10, 0xdc00+r&0x3ff)
		default:
			fmt.Fprintf(&safe, `\u%04x`, r)
		}
	}
	return safe.String()
}

// durationText is a duration without its zero parts: 1h, not 1h0m0s.
func durationText(d time.Duration) string {
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}
