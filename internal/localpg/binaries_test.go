package localpg

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash/crc32"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestFindGiven(t *testing.T) {
	found, err := Find(t.Context(), FindOptions{})
	if err != nil {
		t.Fatal(err)
	}
	elsewhere := newDir(t)
	for _, name := range []string{"postgres", "initdb"} {
		if err := os.Symlink(found.path(name), filepath.Join(elsewhere, name)); err != nil {
			t.Fatal(err)
		}
	}
	got, err := Find(t.Context(), FindOptions{BinDir: elsewhere})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(found, got); diff != "" {
		t.Errorf("through symbolic links (-want +got):\n%s", diff)
	}
	t.Setenv(EnvBinDir, newDir(t))
	_, err = Find(t.Context(), FindOptions{})
	wantError(t, err, ErrNotFound, os.Getenv(EnvBinDir))
	if got, err = Find(t.Context(), FindOptions{BinDir: elsewhere}); err != nil || got != found {
		t.Errorf("the option against the environment: got %v, %v", got, err)
	}
}

func TestFindChoosesVersion(t *testing.T) {
	onlyFakes(t)
	packages, path := newDir(t), newDir(t)
	for _, version := range []string{"9", "12", "15", "16", "104"} {
		fakeBinaries(t, filepath.Join(packages, version), version+".2")
	}
	packagePatterns = []string{filepath.Join(packages, "*")}
	want := func(major int, dir string) {
		t.Helper()
		got, err := Find(t.Context(), FindOptions{Major: major, NoDownload: true, CacheDir: newDir(t)})
		if err != nil || got.Dir != dir {
			t.Errorf("major %d: got %v, %v, want %s", major, got, err, dir)
		}
	}
	want(0, filepath.Join(packages, "104"))
	want(15, filepath.Join(packages, "15"))
	t.Setenv("PATH", filepath.Join(path, "old")+":"+filepath.Join(path, "new")+":relative")
	fakeBinaries(t, filepath.Join(path, "old"), "13.9")
	fakeBinaries(t, filepath.Join(path, "new"), "14beta2")
	want(0, filepath.Join(path, "new"))
	want(16, filepath.Join(packages, "16"))
	_, err := Find(t.Context(), FindOptions{Major: 20, NoDownload: true, CacheDir: newDir(t)})
	wantError(t, err, ErrWrongVersion, "the data was made by PostgreSQL 20")
	wantOneLine(t, err)
}

func TestFindNothing(t *testing.T) {
	onlyFakes(t)
	_, err := Find(t.Context(), FindOptions{NoDownload: true, CacheDir: newDir(t)})
	wantError(t, err, ErrNotFound, "no PostgreSQL found: install it (Debian/Ubuntu: apt-get install postgresql; ")
	wantOneLine(t, err)
	nothing := httptest.NewServer(http.NotFoundHandler())
	defer nothing.Close()
	t.Setenv(EnvRepository, nothing.URL)
	_, err = Find(t.Context(), FindOptions{CacheDir: newDir(t)})
	wantError(t, err, ErrNotFound, "or pass --postgres-bin (download PostgreSQL 17.")
	wantOneLine(t, err)
	_, err = Find(t.Context(), FindOptions{CacheDir: newFile(t)})
	wantError(t, err, ErrNotFound, "not a directory")

	dir := newDir(t)
	fakeBinaries(t, dir, "13.1")
	t.Setenv("PATH", dir)
	_, err = Find(t.Context(), FindOptions{NoDownload: true, CacheDir: newDir(t)})
	wantError(t, err, ErrWrongVersion, "PostgreSQL 14 or later is needed, found 13.1 in "+dir)
	wantOneLine(t, err)
	_, err = Find(t.Context(), FindOptions{BinDir: dir})
	wantError(t, err, ErrWrongVersion, "PostgreSQL 14 or later is needed")
}

func TestStartDownloads(t *testing.T) {
	found, err := Find(t.Context(), FindOptions{})
	if err != nil {
		t.Fatal(err)
	}
	repository := newRepository(t, found.Dir)
	onlyFakes(t)
	cache := filepath.Join(newDir(t), "cache")
	if err := os.MkdirAll(filepath.Join(cache, "download-cut-short"), 0o755); err != nil {
		t.Fatal(err)
	}
	s := start(t, Config{DataDir: newDir(t), RepositoryURL: repository.URL, CacheDir: cache})
	wantQuery(t, s.URL(), "select 'works'", "works")
	link, err := os.Readlink(filepath.Join(s.binaries.Dir, "..", "lib", "link"))
	if err != nil || link != "../bin/postgres" {
		t.Errorf("a symbolic link in the archive: got %q, %v", link, err)
	}
	if want := filepath.Join(cache, "postgres-17", "bin"); s.binaries.Dir != want {
		t.Errorf("got binaries in %s, want %s", s.binaries.Dir, want)
	}
	before := repository.requests()
	if len(before) != 2 {
		t.Errorf("got requests %v, want an archive and its checksum", before)
	}
	if _, err := Find(t.Context(), FindOptions{RepositoryURL: repository.URL, CacheDir: cache}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, repository.requests()); diff != "" {
		t.Errorf("the cache was not used (-want +got):\n%s", diff)
	}
	left, err := filepath.Glob(filepath.Join(cache, "download-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestDownloadOnce(t *testing.T) {
	onlyFakes(t)
	repository := newRepository(t, fakeBinaries(t, filepath.Join(newDir(t), "bin"), "17.1"))
	options := FindOptions{RepositoryURL: repository.URL, CacheDir: newDir(t), Major: 0}
	var callers sync.WaitGroup
	for range 4 {
		callers.Go(func() {
			if _, err := Find(t.Context(), options); err != nil {
				t.Error(err)
			}
		})
	}
	callers.Wait()
	if got := repository.requests(); len(got) != 2 {
		t.Errorf("got requests %v, want one archive and its checksum", got)
	}
}

func TestDownloadDamaged(t *testing.T) {
	onlyFakes(t)
	repository := newRepository(t, fakeBinaries(t, filepath.Join(newDir(t), "bin"), "17.1"))
	repository.archive[len(repository.archive)/2] ^= 1
	cache := newDir(t)
	_, err := Find(t.Context(), FindOptions{RepositoryURL: repository.URL, CacheDir: cache})
	wantError(t, err, ErrNotFound, "checksums do not match")
	repository.archive[len(repository.archive)/2] ^= 1
	if _, err := Find(t.Context(), FindOptions{RepositoryURL: repository.URL, CacheDir: cache}); err != nil {
		t.Errorf("after a damaged download: %v", err)
	}
}

func TestDownloadCancelled(t *testing.T) {
	onlyFakes(t)
	ctx, cancel := context.WithCancel(t.Context())
	answer := make(chan struct{})
	repository := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		cancel()
		<-answer
		w.WriteHeader(http.StatusNotFound)
	}))
	defer repository.Close()
	defer close(answer)
	_, err := Find(ctx, FindOptions{RepositoryURL: repository.URL, CacheDir: newDir(t)})
	wantError(t, err, context.Canceled, "download PostgreSQL")
}

// onlyFakes hides the machine's own binaries from a test, which must not be parallel.
func onlyFakes(t *testing.T) {
	t.Helper()
	t.Setenv("TMPDIR", newDir(t)) // the library leaves a file there
	t.Setenv("PATH", "")
	t.Setenv(EnvBinDir, "")
	t.Setenv(EnvRepository, "")
	patterns := packagePatterns
	t.Cleanup(func() { packagePatterns = patterns })
	packagePatterns = nil
}

// fakeBinaries only know their version.
func fakeBinaries(t *testing.T, dir, version string) string {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"postgres", "initdb"} {
		script := "#!/bin/sh\necho '" + name + " (PostgreSQL) " + version + " (Debian)'\n"
		if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func wantOneLine(t *testing.T, err error) {
	t.Helper()
	if err != nil && strings.Contains(err.Error(), "\n") {
		t.Errorf("more than one line: %q", err)
	}
}

// repository serves binaries in the layout of the public one.
type repository struct {
	*httptest.Server
	archive  []byte
	checksum string
	mu       sync.Mutex
	paths    []string
}

var artifact = regexp.MustCompile(`^/io/zonky/test/postgres/embedded-postgres-binaries-([a-z0-9-]+)/(17\.[0-9]+\.0)/` +
	`embedded-postgres-binaries-([a-z0-9-]+)-(17\.[0-9]+\.0)\.jar(\.sha256)?$`)

func newRepository(t *testing.T, bin string) *repository {
	t.Helper()
	r := &repository{archive: jar(t, bin)}
	sum := sha256.Sum256(r.archive)
	r.checksum = hex.EncodeToString(sum[:])
	r.Server = httptest.NewServer(r)
	t.Cleanup(r.Close)
	return r
}

func (r *repository) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	r.mu.Lock()
	r.paths = append(r.paths, request.URL.Path)
	r.mu.Unlock()
	match := artifact.FindStringSubmatch(request.URL.Path)
	switch {
	case match == nil || match[1] != match[3] || match[2] != match[4]:
		w.WriteHeader(http.StatusNotFound)
	case match[5] == "":
		_, _ = w.Write(r.archive)
	default:
		_, _ = w.Write([]byte(r.checksum))
	}
}

func (r *repository) requests() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.paths...)
}

// jar holds a .txz of the binaries and of what they look for beside them.
func jar(t *testing.T, bin string) []byte {
	t.Helper()
	var tree bytes.Buffer
	w := tar.NewWriter(&tree)
	root := filepath.Dir(bin)
	for _, pattern := range []string{"lib*/dict_snowball.*", "lib*/*/dict_snowball.*", "lib*/plpgsql.*", "lib*/*/plpgsql.*",
		"share/postgres.bki", "share/*/postgres.bki"} {
		matches, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range matches {
			if filepath.Base(path) == "postgres.bki" {
				path = filepath.Dir(path) // the folder that initdb reads
			}
			addTree(t, w, root, path)
		}
	}
	for _, name := range []string{"postgres", "initdb"} {
		addTree(t, w, root, filepath.Join(bin, name))
	}
	link := &tar.Header{Typeflag: tar.TypeSymlink, Name: "lib/link", Linkname: "../bin/postgres"}
	if err := errors.Join(w.WriteHeader(link), w.Close()); err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	z := zip.NewWriter(&archive)
	entry, err := z.Create("postgres-test.txz")
	if err != nil {
		t.Fatal(err)
	}
	_, err = entry.Write(xz(tree.Bytes()))
	if err := errors.Join(err, z.Close()); err != nil {
		t.Fatal(err)
	}
	return archive.Bytes()
}

// addTree adds the plain files at and below a path, readable by their owner only.
func addTree(t *testing.T, w *tar.Writer, root, path string) {
	t.Helper()
	err := filepath.WalkDir(path, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		header := &tar.Header{Typeflag: tar.TypeReg, Name: filepath.ToSlash(name), Mode: 0o700, Size: int64(len(data))}
		if err := w.WriteHeader(header); err != nil {
			return err
		}
		_, err = w.Write(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// xz wraps data into the .xz format without compressing it: one block, LZMA2 chunks that are stored, no checksum of the
// data.
func xz(data []byte) []byte {
	checked := func(b []byte) []byte { return binary.LittleEndian.AppendUint32(b, crc32.ChecksumIEEE(b)) }
	number := func(b []byte, n int) []byte { return binary.AppendUvarint(b, uint64(n)) }
	flags := []byte{0, 0}
	out := append([]byte{0xfd, '7', 'z', 'X', 'Z', 0}, checked(flags)...)

	// The block's header: its size in words less one, no optional fields, the LZMA2 filter with a 64 KiB dictionary.
	block := checked([]byte{2, 0, 0x21, 1, 8, 0, 0, 0})
	for i, rest := 0, data; len(rest) > 0; i++ {
		size := min(len(rest), 1<<16)
		control := byte(2)
		if i == 0 {
			control = 1 // the first chunk resets the dictionary
		}
		block = append(block, control, byte((size-1)>>8), byte(size-1))
		block = append(block, rest[:size]...)
		rest = rest[size:]
	}
	block = append(block, 0)
	unpadded := len(block)
	for len(block)%4 != 0 {
		block = append(block, 0)
	}
	out = append(out, block...)

	index := number(number([]byte{0, 1}, unpadded), len(data))
	for len(index)%4 != 0 {
		index = append(index, 0)
	}
	index = checked(index)
	out = append(out, index...)

	footer := append(binary.LittleEndian.AppendUint32(nil, uint32(len(index)/4-1)), flags...)
	out = binary.LittleEndian.AppendUint32(out, crc32.ChecksumIEEE(footer))
	return append(append(out, footer...), 'Y', 'Z')
}
