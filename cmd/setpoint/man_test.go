package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
)

// Every command has a page with everything that a page has, and nothing else is there.
func TestManual(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "new", "man1")
	env := map[string]string{"SOURCE_DATE_EPOCH": "86400"}
	got := invocation{args: []string{"man", "--dir", dir}, env: env}.run(t)
	if got.status != 0 || !strings.HasPrefix(got.out, "wrote ") || got.err != "" {
		t.Fatalf("got %+v", got)
	}
	pages := 0
	var check func(cmd *cobra.Command)
	check = func(cmd *cobra.Command) {
		pages++
		name := strings.ReplaceAll(cmd.CommandPath(), " ", "-")
		text, err := os.ReadFile(filepath.Join(dir, name+".1"))
		if err != nil {
			t.Error(err)
			return
		}
		checkManPage(t, name, string(text), cmd)
		for _, child := range cmd.Commands() {
			check(child)
		}
	}
	check(newRootCommand(&cli{}))
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != pages {
		t.Errorf("%d files for %d commands: %v", len(entries), pages, err)
	}
}

var (
	manRequest = regexp.MustCompile(`^\.(TH|SH|PP|RS|RE|TP|B|I|BI|BR|nf|fi|nh|ad)( |$)`)
	manEscape  = regexp.MustCompile(`\\(-|&|\((rs|aq|ga|ha|ti|dq)|\[u[0-9A-F]{4,6}\])`)
)

func checkManPage(t *testing.T, name, page string, cmd *cobra.Command) {
	t.Helper()
	sections := []string{"NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXIT STATUS", "EXAMPLES"}
	if cmd.HasParent() {
		sections = append(sections, "GLOBAL OPTIONS", "SEE ALSO")
	}
	for _, section := range sections {
		if !strings.Contains(page, "\n.SH \""+section+"\"\n") {
			t.Errorf("%s has no section %s", name, section)
		}
	}
	if !strings.HasPrefix(page, ".TH ") || !strings.Contains(page, `"1" "1970\-01\-02"`) {
		t.Errorf("%s begins with %.80q", name, page)
	}
	for _, line := range strings.Split(page, "\n") {
		if strings.HasPrefix(line, ".") && !manRequest.MatchString(line) || strings.HasPrefix(line, "'") {
			t.Errorf("%s: %q is taken for a request", name, line)
		}
		if strings.Contains(manEscape.ReplaceAllString(line, ""), `\`) {
			t.Errorf("%s: %q has a bare backslash", name, line)
		}
		if strings.ContainsFunc(line, func(r rune) bool { return r < ' ' || r > '~' }) {
			t.Errorf("%s: %q is not ASCII", name, line)
		}
	}
	for _, flag := range []string{`\-\-help`, `\-o, \-\-output`} {
		if !strings.Contains(page, flag) {
			t.Errorf("%s does not tell of %s", name, flag)
		}
	}
}

func TestManPageText(t *testing.T) {
	t.Parallel()
	page := &roff{}
	page.text("One \\ two,\n'three' – -4.\n.five:\n\n  six   \"seven\"\n    eight\n\nnine")
	want := strings.Join([]string{
		`One \(rs two,`, `\(aqthree\(aq \[u2013] \-4.`, `\&.five:`, `.PP`, `.RS "4"`, `.nf`, `six   "seven"`, `  eight`,
		`.fi`, `.RE`, `.PP`, `nine`, ``}, "\n")
	if diff := cmp.Diff(want, page.out.String()); diff != "" {
		t.Errorf("roff (-want +got):\n%s", diff)
	}
}

func TestManualFails(t *testing.T) {
	t.Parallel()
	got := invocation{args: []string{"man", "--dir", t.TempDir()}, env: map[string]string{"SOURCE_DATE_EPOCH": "soon"}}.run(t)
	if got.status != 2 || !strings.Contains(got.err, "SOURCE_DATE_EPOCH") {
		t.Errorf("a date that is none: %+v", got)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := (invocation{args: []string{"man", "--dir", file}}).run(t); got.status != 1 {
		t.Errorf("a folder that is none: %+v", got)
	}
}
