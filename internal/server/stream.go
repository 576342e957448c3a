package server

import (
	"context"
	"net/http"
	"time"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/grpc/status"
)

// stream answers a request with the messages of a stream, a line each, for as long as there are any and the caller is there.
func (r *rest) stream(next runtime.HandlerFunc, w http.ResponseWriter, req *http.Request, params map[string]string) {
	lines := &lineWriter{ResponseWriter: w, control: http.NewResponseController(w)}
	if err := lines.open(); err != nil {
		r.fail(req.Context(), w, err)
		return
	}
	next(lines, req.WithContext(context.WithValue(req.Context(), linesKey{}, lines)), params)
	_ = lines.allow(writeTimeout) // For the end; without it the caller has as long as it likes.
}

// linesKey finds the lineWriter of a request.
type linesKey struct{}

// failStream returns the error with which a stream ends, which the gateway makes its last line. An error that comes before the
// first message is answered as that of any other call.
func (r *rest) failStream(ctx context.Context, err error) *status.Status {
	s, code := r.status(ctx, err)
	if lines, ok := ctx.Value(linesKey{}).(*lineWriter); ok && !lines.begun {
		lines.refused = true
		r.answer(ctx, lines.ResponseWriter, s, code)
	}
	return s
}

// lineWriter writes the answer of a stream. Not the stream but each of its lines has to be taken within writeTimeout: so a
// stream may last, and a caller that no longer reads does not hold it for ever.
type lineWriter struct {
	http.ResponseWriter
	control *http.ResponseController
	// begun says that lines were written.
	begun bool
	// refused says that an error was answered instead of a stream: what else there is to write goes nowhere.
	refused bool
}

// open lifts the bound that the server sets on the writing of an answer as a whole.
func (l *lineWriter) open() error { return l.control.SetWriteDeadline(time.Time{}) }

// allow bounds what is written from now on.
func (l *lineWriter) allow(d time.Duration) error {
	return l.control.SetWriteDeadline(time.Now().Add(d))
}

// WriteHeader begins the answer.
func (l *lineWriter) WriteHeader(code int) {
	if !l.refused {
		l.ResponseWriter.WriteHeader(code)
	}
}

// Write writes a part of a line.
func (l *lineWriter) Write(p []byte) (int, error) {
	if l.refused {
		return len(p), nil
	}
	l.begun = true
	if err := l.allow(writeTimeout); err != nil {
		return 0, err
	}
	return l.ResponseWriter.Write(p)
}

// FlushError sends what was written; there is no hurry then until the next line.
func (l *lineWriter) FlushError() error {
	if err := l.control.Flush(); err != nil {
		return err
	}
	return l.control.SetWriteDeadline(time.Time{})
}
