package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

const manLong = `Writes a manual page for this program and one for each of its commands into a folder,
as setpoint.1, setpoint-var-set.1 and so on.

'man' finds them in a folder man1 of its path, such as ~/.local/share/man/man1. The
date in them is today's, or that of SOURCE_DATE_EPOCH in the environment, a number of
seconds since 1970, for those who need the same bytes each time.`

func newManCommand(c *cli) *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "man",
		Short: "Write the manual pages",
		Long:  manLong,
		Example: `  setpoint man --dir ~/.local/share/man/man1
  SOURCE_DATE_EPOCH=0 setpoint man --dir man`,
		Args: takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			date, err := c.sourceDate()
			if err != nil {
				return err
			}
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return fmt.Errorf("write manual pages: %w", err)
			}
			pages, err := writeManual(cmd.Root(), dir, date)
			if err != nil {
				return err
			}
			return c.printSummary(struct {
				Dir   string `json:"dir"`
				Pages int    `json:"pages"`
			}{dir, pages}, func() string { return fmt.Sprintf("wrote %d pages to %s\n", pages, printable(dir)) })
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "man", "`folder` to write to, made if it is not there")
	return cmd
}

// sourceDate is the date of generated files.
func (c *cli) sourceDate() (time.Time, error) {
	epoch := c.getenv("SOURCE_DATE_EPOCH")
	if epoch == "" {
		return time.Now(), nil
	}
	seconds, err := strconv.ParseInt(epoch, 10, 64)
	if err != nil {
		return time.Time{}, usagef("SOURCE_DATE_EPOCH is a number of seconds, not %q", epoch)
	}
	return time.Unix(seconds, 0).UTC(), nil
}

// writeManual writes the pages of a command and all below it, and returns their number.
func writeManual(cmd *cobra.Command, dir string, date time.Time) (int, error) {
	path := filepath.Join(dir, manName(cmd)+".1")
	if err := os.WriteFile(path, []byte(manPage(cmd, date)), 0o644); err != nil {
		return 0, fmt.Errorf("write manual pages: %w", err)
	}
	pages := 1
	for _, child := range cmd.Commands() {
		if child.Hidden {
			continue
		}
		below, err := writeManual(child, dir, date)
		if err != nil {
			return 0, err
		}
		pages += below
	}
	return pages, nil
}

func manName(cmd *cobra.Command) string {
	return strings.ReplaceAll(cmd.CommandPath(), " ", "-")
}

// manPage is a command's help as a manual page, in the man macros of roff.
func manPage(cmd *cobra.Command, date time.Time) string {
	page := &roff{}
	page.macro("TH", strings.ToUpper(manName(cmd)), "1", date.Format(time.DateOnly), "setpoint "+buildVersion(),
		"Setpoint Manual")
	page.out.WriteString(".nh\n.ad l\n") // names of errors are not to be broken, nor lines padded
	page.macro("SH", "NAME")
	page.line(manName(cmd) + " - " + cmd.Short)
	page.macro("SH", "SYNOPSIS")
	page.macro("B", strings.TrimSuffix(cmd.UseLine(), " [flags]"))
	if cmd.HasAvailableSubCommands() {
		page.macro("I", "COMMAND")
	}
	page.line("[flags]")
	page.macro("SH", "DESCRIPTION")
	page.text(cmd.Long)
	if cmd.HasAvailableSubCommands() {
		page.macro("SH", "COMMANDS")
		for _, child := range cmd.Commands() {
			if !child.Hidden {
				page.macro("TP")
				page.macro("BR", manName(child), "(1)")
				page.line(child.Short)
			}
		}
	}
	cmd.InitDefaultHelpFlag()
	cmd.InitDefaultVersionFlag()
	page.flags("OPTIONS", cmd.LocalFlags())
	page.flags("GLOBAL OPTIONS", cmd.InheritedFlags())
	page.macro("SH", "EXIT STATUS")
	page.line("0 on success, 1 on failure, with one line on standard error, and 2 on wrong usage.")
	page.macro("SH", "EXAMPLES")
	page.verbatim(strings.Split(strings.Trim(cmd.Example, "\n"), "\n"))
	page.seeAlso(cmd)
	return page.out.String()
}

// roff writes the language of manual pages.
type roff struct{ out strings.Builder }

// macro writes a request with its arguments.
func (r *roff) macro(name string, args ...string) {
	r.out.WriteString("." + name)
	for _, arg := range args {
		r.out.WriteString(` "` + strings.ReplaceAll(roffText(arg), `"`, `\(dq`) + `"`)
	}
	r.out.WriteByte('\n')
}

// line writes a line of text, which is filled with its neighbours.
func (r *roff) line(text string) {
	text = roffText(text)
	if strings.HasPrefix(text, ".") || strings.HasPrefix(text, "'") {
		text = `\&` + text // it is no request
	}
	r.out.WriteString(text + "\n")
}

// text writes a help text: paragraphs, and indented lines, which stay as they are.
func (r *roff) text(text string) {
	lines := strings.Split(strings.Trim(text, "\n"), "\n")
	for i := 0; i < len(lines); i++ {
		switch {
		case strings.HasPrefix(lines[i], " "):
			end := i
			for end < len(lines) && strings.HasPrefix(lines[end], " ") {
				end++
			}
			r.verbatim(lines[i:end])
			i = end - 1
		case lines[i] == "":
			if i+1 < len(lines) && !strings.HasPrefix(lines[i+1], " ") {
				r.macro("PP")
			}
		default:
			r.line(lines[i])
		}
	}
}

// verbatim writes indented lines as they are.
func (r *roff) verbatim(lines []string) {
	r.macro("PP")
	r.macro("RS", "4")
	r.macro("nf")
	for _, line := range lines {
		r.line(strings.TrimPrefix(line, "  "))
	}
	r.macro("fi")
	r.macro("RE")
}

func (r *roff) flags(title string, flags *pflag.FlagSet) {
	if !flags.HasAvailableFlags() {
		return
	}
	r.macro("SH", title)
	flags.VisitAll(func(flag *pflag.Flag) {
		if flag.Hidden {
			return
		}
		name := "--" + flag.Name
		if flag.Shorthand != "" {
			name = "-" + flag.Shorthand + ", " + name
		}
		value, usage := pflag.UnquoteUsage(flag)
		if value != "" {
			name += " "
		}
		r.macro("TP")
		r.macro("BI", name, value)
		switch flag.DefValue {
		case "", "[]", "0", "0s", "false":
		default:
			usage += " (default " + flag.DefValue + ")"
		}
		r.line(usage)
	})
}

// seeAlso names the page above, and those below have been named.
func (r *roff) seeAlso(cmd *cobra.Command) {
	if !cmd.HasParent() {
		return
	}
	r.macro("SH", "SEE ALSO")
	var pages []string
	cmd.VisitParents(func(parent *cobra.Command) { pages = append(pages, manName(parent)) })
	for i, page := range pages {
		if i < len(pages)-1 {
			r.macro("BR", page, "(1),")
			continue
		}
		r.macro("BR", page, "(1)")
	}
}

// roffEscapes are what roff would read, or print otherwise than as the character that it is.
var roffEscapes = map[rune]string{'\\': `\(rs`, '-': `\-`, '\'': `\(aq`, '`': `\(ga`, '^': `\(ha`, '~': `\(ti`}

// roffText is text for roff, in ASCII, for not every roff knows another encoding.
func roffText(text string) string {
	var escaped strings.Builder
	for _, r := range text {
		switch {
		case roffEscapes[r] != "":
			escaped.WriteString(roffEscapes[r])
		case r > '~':
			fmt.Fprintf(&escaped, `\[u%04X]`, r)
		default:
			escaped.WriteRune(r)
		}
	}
	return escaped.String()
}
