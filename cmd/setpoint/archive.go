package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// An export is JSON lines: a header, then {"variable": …} for each variable, each followed by {"history": …} for its
// versions, oldest first, where the export has history, and at last {"end": …}, by whose absence a file that was cut off
// is known.

// archiveFormat is the format's number, which goes up when older readers would misread a file.
const archiveFormat = 1

// The kinds of lines after the header: the one key that each has.
const (
	lineVariable = "variable"
	lineHistory  = "history"
	lineEnd      = "end"
)

// archiveHeader is the first line.
type archiveHeader struct {
	Format    int               `json:"setpoint_export"`
	SessionID string            `json:"session_id"`
	Metadata  map[string]string `json:"metadata,omitempty"`
	// TTL is a number of seconds, as "3600s"; empty: the session never ends.
	TTL string `json:"ttl,omitempty"`
	// Revision is the session's before the first variable was read.
	Revision   int64     `json:"revision"`
	ExportedAt time.Time `json:"exported_at"`
	History    bool      `json:"history"`
}

// archiveEnd is the last line.
type archiveEnd struct {
	Variables int64 `json:"variables"`
	History   int64 `json:"history"`
	// Revision is the session's after the last variable was read.
	Revision int64 `json:"revision"`
}

func newArchiveHeader(session *setpointv1.Session, history bool, now time.Time) archiveHeader {
	header := archiveHeader{
		Format: archiveFormat, SessionID: session.GetSessionId(), Metadata: session.GetMetadata(),
		Revision: session.GetRevision(), ExportedAt: now.UTC(), History: history,
	}
	if session.GetTtl() != nil {
		header.TTL = strconv.FormatFloat(session.GetTtl().AsDuration().Seconds(), 'f', -1, 64) + "s"
	}
	return header
}

// ttl is 0 for a session that never ends.
func (h archiveHeader) ttl() (time.Duration, error) {
	if h.TTL == "" {
		return 0, nil
	}
	return time.ParseDuration(h.TTL)
}

// archiveWriter writes the lines of an export.
type archiveWriter struct {
	out *bufio.Writer
}

func (w *archiveWriter) header(header archiveHeader) error { return w.plain(header) }

func (w *archiveWriter) end(end archiveEnd) error {
	return w.plain(map[string]archiveEnd{lineEnd: end})
}

func (w *archiveWriter) plain(line any) error {
	text, err := json.Marshal(line)
	if err != nil {
		return fmt.Errorf("write JSON: %w", err)
	}
	return w.line(text)
}

// record writes a message in protobuf's JSON mapping, without unpopulated fields.
func (w *archiveWriter) record(kind string, message proto.Message) error {
	raw, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(message)
	if err != nil {
		return fmt.Errorf("write JSON: %w", err)
	}
	// The mapping's own white space differs from build to build.
	compact := bytes.NewBufferString(`{"` + kind + `":`)
	if err := json.Compact(compact, raw); err != nil {
		return fmt.Errorf("write JSON: %w", err)
	}
	compact.WriteByte('}')
	return w.line(compact.Bytes())
}

func (w *archiveWriter) line(text []byte) error {
	_, err := w.out.Write(text)
	if err == nil {
		err = w.out.WriteByte('\n')
	}
	if err != nil {
		return fmt.Errorf("write export: %w", err)
	}
	return nil
}

// archiveRecord is a line between the header and the end: a variable, or one of its versions.
type archiveRecord struct {
	line     int
	offset   int64
	variable *setpointv1.Variable
	entry    *setpointv1.HistoryEntry
}

// maxLine bounds a line, in bytes: the longest is the largest embedding, of which each float32 takes up to 16 characters.
const maxLine = 4 * client.MaxMessageBytes

// archiveReader reads the lines of an export one at a time, and checks that together they are a whole one. Beyond the
// line at hand it keeps 16 bytes of each variable, and its type.
type archiveReader struct {
	header archiveHeader
	// line is the number of the line last read, from 1, and offset where it begins, in bytes.
	line   int
	offset int64

	in      *bufio.Reader
	end     int64 // of the line last read
	text    []byte
	names   map[[16]byte]setpointv1.VariableType
	current string // the variable that history belongs to
	version int64  // of its history's last line; -1 before the first
	count   archiveEnd
}

func newArchiveReader(in io.Reader) (*archiveReader, error) {
	r := &archiveReader{in: bufio.NewReaderSize(in, 64<<10), names: map[[16]byte]setpointv1.VariableType{}}
	text, err := r.next()
	if errors.Is(err, io.EOF) {
		return nil, invalidFile("the file is empty")
	} else if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(text, &r.header); err != nil {
		return nil, r.faulty("%v", err)
	}
	switch {
	case r.header.Format == 0:
		return nil, r.faulty("this is no export: it has no setpoint_export")
	case r.header.Format != archiveFormat:
		return nil, r.faulty("the export has format %d, and this program reads %d: use a newer one",
			r.header.Format, archiveFormat)
	}
	if _, err := r.header.ttl(); err != nil {
		return nil, r.faulty("ttl: %v", err)
	}
	return r, nil
}

// read returns the next record, or io.EOF after the end of a whole export.
func (r *archiveReader) read() (archiveRecord, error) {
	text, err := r.next()
	if errors.Is(err, io.EOF) {
		return archiveRecord{}, invalidFile(
			"the file is cut off after line %d: an export's last line is {\"end\": …}", r.line)
	} else if err != nil {
		return archiveRecord{}, err
	}
	var line map[string]json.RawMessage
	if err := json.Unmarshal(text, &line); err != nil {
		if !bytes.HasSuffix(text, []byte("\n")) {
			return archiveRecord{}, invalidFile("the file is cut off within line %d", r.line)
		}
		return archiveRecord{}, r.faulty("%v", err)
	}
	if len(line) == 1 {
		for kind, body := range line {
			switch kind {
			case lineVariable:
				return r.readVariable(body)
			case lineHistory:
				return r.readHistory(body)
			case lineEnd:
				return archiveRecord{}, r.readEnd(body)
			}
		}
	}
	return archiveRecord{}, r.faulty("a line has one key, which is variable, history or end")
}

func (r *archiveReader) readVariable(body []byte) (archiveRecord, error) {
	variable := &setpointv1.Variable{}
	if err := protojson.Unmarshal(body, variable); err != nil {
		return archiveRecord{}, r.faulty("%v", err)
	}
	name := variable.GetName()
	if fault := nameFault(name); fault != "" {
		return archiveRecord{}, r.faulty("the variable's name %s", fault)
	}
	for _, needed := range variable.GetDependsOn() {
		if fault := nameFault(needed); fault != "" {
			return archiveRecord{}, r.faulty("the name of a variable that %s depends on %s", quoted(name), fault)
		}
	}
	key := nameKey(name)
	if _, twice := r.names[key]; twice {
		return archiveRecord{}, r.faulty("the variable %s is in the file twice", quoted(name))
	}
	r.names[key] = variable.GetType()
	r.current, r.version = name, -1
	r.count.Variables++
	return archiveRecord{line: r.line, offset: r.offset, variable: variable}, nil
}

// nameKey stands for a name, and is shorter than most.
func nameKey(name string) [16]byte {
	sum := sha256.Sum256([]byte(name))
	return [16]byte(sum[:16])
}

// spotBuffer is enough to read most lines of a file here and there, in bytes.
const spotBuffer = 4 << 10

// variableAt reads a variable once more, of which the line's number and place are known.
func (r *archiveReader) variableAt(in io.ReadSeeker, line int, offset int64) (archiveRecord, error) {
	if _, err := in.Seek(offset, io.SeekStart); err != nil {
		return archiveRecord{}, fmt.Errorf("read the file: %w", err)
	}
	if r.in.Size() > spotBuffer {
		r.in = bufio.NewReaderSize(in, spotBuffer)
	}
	r.in.Reset(in)
	r.line = line - 1
	text, err := r.next()
	if err != nil {
		return archiveRecord{}, r.faulty("the file has changed meanwhile: %v", err)
	}
	body := map[string]json.RawMessage{}
	variable := &setpointv1.Variable{}
	err = json.Unmarshal(text, &body)
	if err == nil {
		err = protojson.Unmarshal(body[lineVariable], variable)
	}
	if err != nil {
		return archiveRecord{}, r.faulty("the file has changed meanwhile: %v", err)
	}
	return archiveRecord{line: line, offset: offset, variable: variable}, nil
}

func (r *archiveReader) readHistory(body []byte) (archiveRecord, error) {
	entry := &setpointv1.HistoryEntry{}
	if err := protojson.Unmarshal(body, entry); err != nil {
		return archiveRecord{}, r.faulty("%v", err)
	}
	switch {
	case r.current == "" || entry.GetName() != r.current:
		return archiveRecord{}, r.faulty("the history of %s does not follow its variable", quoted(entry.GetName()))
	case entry.Version == nil || entry.GetValue() == nil:
		return archiveRecord{}, r.faulty("the history of %s lacks a version or a value", quoted(entry.GetName()))
	case entry.GetVersion() <= r.version:
		return archiveRecord{}, r.faulty("version %d of %s comes after version %d",
			entry.GetVersion(), quoted(entry.GetName()), r.version)
	}
	r.version = entry.GetVersion()
	r.count.History++
	return archiveRecord{line: r.line, entry: entry}, nil
}

var variableID = regexp.MustCompile(`^var_[a-z0-9]{26}$`)

// nameFault says what keeps a variable from having a name; empty: nothing.
func nameFault(name string) string {
	switch {
	case name == "":
		return "is empty"
	case utf8.RuneCountInString(name) > 256:
		return "has more than 256 characters"
	case strings.ContainsFunc(name, unicode.IsControl):
		return "has control characters"
	case variableID.MatchString(name):
		return "has the form of a variable's id"
	}
	return ""
}

// readEnd returns io.EOF if the end says what was read, and nothing follows it.
func (r *archiveReader) readEnd(body []byte) error {
	var end archiveEnd
	if err := json.Unmarshal(body, &end); err != nil {
		return r.faulty("%v", err)
	}
	if end.Variables != r.count.Variables || end.History != r.count.History {
		return r.faulty("the end counts %d variables and %d versions, but the file has %d and %d",
			end.Variables, end.History, r.count.Variables, r.count.History)
	}
	_, err := r.next()
	if err == nil {
		return r.faulty("there is more after the end")
	}
	return err
}

// next returns the next line that is not blank; it is good until the next call.
func (r *archiveReader) next() ([]byte, error) {
	for {
		r.text, r.offset = r.text[:0], r.end
		for more := true; more; {
			part, err := r.in.ReadSlice('\n')
			r.text, r.end = append(r.text, part...), r.end+int64(len(part))
			more = errors.Is(err, bufio.ErrBufferFull)
			switch {
			case errors.Is(err, io.EOF) && len(r.text) == 0:
				return nil, io.EOF
			case err != nil && !more && !errors.Is(err, io.EOF):
				return nil, fmt.Errorf("read the file: %w", err)
			case len(r.text) > maxLine:
				r.line++
				return nil, r.faulty("the line is longer than %d MiB", maxLine>>20)
			}
		}
		r.line++
		if !utf8.Valid(r.text) {
			return nil, r.faulty("the line is not UTF-8 text")
		}
		if len(bytes.TrimSpace(r.text)) > 0 {
			return r.text, nil
		}
	}
}

// faulty is an error of the line last read.
func (r *archiveReader) faulty(format string, args ...any) error {
	return invalidFile("line %d: %s", r.line, fmt.Sprintf(format, args...))
}

func invalidFile(format string, args ...any) error {
	return &reasonError{reason: "INVALID_FILE", message: fmt.Sprintf(format, args...)}
}
