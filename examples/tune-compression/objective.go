package main

import (
	"compress/flate"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
)

// blockSizes are the choices for the size of a block, in bytes, by the name that the variable has for them.
var blockSizes = []struct {
	name  string
	bytes int
}{
	{"4KiB", 4 << 10}, {"8KiB", 8 << 10}, {"16KiB", 16 << 10}, {"32KiB", 32 << 10}, {"64KiB", 64 << 10},
	{"128KiB", 128 << 10}, {"256KiB", 256 << 10}, {"512KiB", 512 << 10}, {"1MiB", 1 << 20},
}

const (
	minLevel = 1 // of compress/flate: fastest
	maxLevel = 9 // smallest
)

// setting is one point of the search: a compression level, and an index into blockSizes.
type setting struct {
	level int
	block int
}

func (s setting) String() string {
	return fmt.Sprintf("level %d, blocks of %s", s.level, blockSizes[s.block].name)
}

// corpus is what gets compressed: the files of a folder, one after the other.
type corpus struct {
	data  []byte
	files int
}

// maxFile is how much is taken of one file, so that a few large ones do not make up the whole corpus.
const maxFile = 64 << 10

// readCorpus reads the regular files beneath dir, in the order of their paths, until it has limit bytes. It leaves out
// folders whose names begin with a dot, such as .git.
func readCorpus(dir string, limit int) (*corpus, error) {
	c := &corpus{}
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && path != dir && strings.HasPrefix(entry.Name(), "."):
			return filepath.SkipDir
		case len(c.data) >= limit:
			return filepath.SkipAll
		case entry.Type().IsRegular():
			return c.add(path, limit)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", dir, err)
	}
	if len(c.data) == 0 {
		return nil, fmt.Errorf("read %s: there is nothing to compress", dir)
	}
	return c, nil
}

func (c *corpus) add(path string, limit int) error {
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return nil // gone since it was listed, or somebody else's
	} else if err != nil {
		return err
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, int64(min(maxFile, limit-len(c.data)))))
	if err != nil {
		return err
	}
	c.data = append(c.data, data...)
	c.files++
	return nil
}

// What a setting costs; lower is better:
//
//	cost = stored + read/1 MiB + levelPrice × level
//
//	stored   compressed bytes per byte of the corpus, every block compressed alone
//	read     compressed bytes to fetch for a 4 KiB page somewhere in the corpus: the block that it is in, whole
//	level    effort: a level has to save levelPrice of the corpus to be worth its time
//
// Larger blocks compress better and are dearer to read from; higher levels compress better, each by less than the one
// before, and take longer. So the best setting lies somewhere in the middle, and where depends on the files. Nothing is
// timed: a setting costs the same on every machine and under any load.
const (
	readUnit   = 1 << 20
	levelPrice = 0.002
)

// cost compresses the whole corpus.
func (c *corpus) cost(s setting) (float64, error) {
	var size counter
	compressor, err := flate.NewWriter(&size, s.level)
	if err != nil {
		return 0, fmt.Errorf("level %d: %w", s.level, err)
	}
	var stored, read float64
	total := float64(len(c.data))
	for rest := c.data; len(rest) > 0; {
		block := rest[:min(blockSizes[s.block].bytes, len(rest))]
		rest = rest[len(block):]
		size = 0
		compressor.Reset(&size)
		if _, err := compressor.Write(block); err != nil {
			return 0, fmt.Errorf("compress: %w", err)
		}
		if err := compressor.Close(); err != nil {
			return 0, fmt.Errorf("compress: %w", err)
		}
		stored += float64(size) / total
		// A page is as likely in a block as the block is long.
		read += float64(size) * float64(len(block)) / total
	}
	return stored + read/readUnit + levelPrice*float64(s.level), nil
}

// counter counts what is written to it.
type counter int

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

// evaluator knows the costs of the settings that were tried; each is compressed once, whoever asks.
type evaluator struct {
	corpus *corpus

	mu    sync.Mutex
	known map[setting]func() (float64, error)
}

func newEvaluator(c *corpus) *evaluator {
	return &evaluator{corpus: c, known: map[setting]func() (float64, error){}}
}

func (e *evaluator) cost(s setting) (float64, error) {
	e.mu.Lock()
	find, ok := e.known[s]
	if !ok {
		find = sync.OnceValues(func() (float64, error) { return e.corpus.cost(s) })
		e.known[s] = find
	}
	e.mu.Unlock()
	return find()
}

// tried is the number of settings evaluated.
func (e *evaluator) tried() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.known)
}

// propose returns a neighbour: one step of level or block size, up or down. At an end the step goes back inside.
func propose(s setting, random *rand.Rand) setting {
	step := 1 - 2*random.IntN(2)
	if random.IntN(2) == 0 {
		s.level = inside(s.level, step, minLevel, maxLevel)
	} else {
		s.block = inside(s.block, step, 0, len(blockSizes)-1)
	}
	return s
}

func inside(at, step, lowest, highest int) int {
	if next := at + step; next >= lowest && next <= highest {
		return next
	}
	return at - step
}
