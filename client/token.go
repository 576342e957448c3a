package client

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// bearer sends a token with each attempt of each call.
type bearer struct {
	token  func() (string, error)
	secure bool
}

func (b *bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	token, err := b.token()
	if err != nil {
		return nil, status.Error(codes.Unauthenticated, err.Error())
	}
	return map[string]string{"authorization": "Bearer " + token}, nil
}

// RequireTransportSecurity makes gRPC itself refuse to send the token in the clear, should another option undo TLS.
func (b *bearer) RequireTransportSecurity() bool {
	return b.secure
}

// tokenSource returns where the token comes from, or nil if there is none.
func (o *options) tokenSource() (func() (string, error), error) {
	switch {
	case o.token != nil && o.tokenFile != nil:
		return nil, errors.New("give a token or a token file, not both")
	case o.tokenFile != nil:
		file := &tokenFile{path: *o.tokenFile}
		if _, err := file.read(); err != nil {
			return nil, err
		}
		return file.read, nil
	case o.token != nil:
		token, err := checkToken(*o.token)
		if err != nil {
			return nil, err
		}
		return func() (string, error) { return token, nil }, nil
	}
	return nil, nil
}

// tokenFile is a token that may be replaced on disk at any time.
type tokenFile struct {
	path string

	mu    sync.Mutex
	seen  fileStamp
	token string
}

// read returns the file's token. A stat costs a microsecond, so each call can afford to notice a new one.
func (f *tokenFile) read() (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	stamp, err := stampOf(f.path)
	if err == nil && stamp.same(f.seen) {
		return f.token, nil
	}
	var token string
	if err == nil {
		token, err = readToken(f.path)
	}
	if err != nil {
		// Between the removal of an old file and the arrival of the new one, the old token is most likely still good.
		if f.token != "" {
			return f.token, nil
		}
		return "", unreadable("token file", f.path, err)
	}
	f.seen, f.token = stamp, token
	return token, nil
}

func readToken(path string) (string, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	// More than a line is another file, or two tokens of which nobody says which one counts.
	if strings.ContainsAny(strings.TrimSpace(string(text)), "\r\n") {
		return "", errors.New("it has more than one line: it is to hold the token and nothing else")
	}
	return checkToken(string(text))
}

// unreadable is the error of a file that options name: what it is, its name once, and why.
func unreadable(what, path string, err error) error {
	if pathError, ok := errors.AsType[*fs.PathError](err); ok {
		err = pathError.Err
	}
	return fmt.Errorf("cannot read %s %s: %w", what, path, err)
}

func checkToken(text string) (string, error) {
	token := strings.TrimSpace(text)
	if token == "" {
		return "", errors.New("the token is empty")
	}
	if !isHeaderValue(token) {
		return "", errors.New("the token is not printable ASCII")
	}
	return token, nil
}

// isHeaderValue tells whether HTTP/2 carries s as a header's value.
func isHeaderValue(s string) bool {
	for i := range len(s) {
		if s[i] < 0x20 || s[i] > 0x7e {
			return false
		}
	}
	return true
}
