package main

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/rivo/uniseg"
)

type column struct {
	title string
	right bool // numbers
	// long columns give way where the terminal is too narrow.
	long bool
	// spare columns are left out where that is not enough, the least first; those with 0 stay.
	spare int
}

// table writes rows in aligned columns. The last column is not padded. Rows may be flushed in portions: the first one's
// widths then hold for the later ones as far as they fit.
type table struct {
	out     io.Writer
	columns []column
	width   int // of the terminal; 0 shortens nothing
	rows    [][]string

	widths []int
	shown  []int // the columns that are not left out
	headed bool
}

const (
	columnGap      = "  "
	narrowestLong  = 8
	readable       = 10 // a long column is made no narrower than this while there are spare ones
	ellipsis       = "…"
	timeLayout     = "2006-01-02 15:04:05"
	absent         = "-"
	bytesPerColumn = 64 // more than any sensible grapheme takes; a longer text is cut before it is measured
)

func (t *table) flush() error {
	first := !t.headed
	if first {
		titles := make([]string, len(t.columns))
		for i, column := range t.columns {
			titles[i] = column.title
			t.shown = append(t.shown, i)
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
	if first {
		t.leaveOut()
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

// leaveOut takes spare columns away until the others have room on the terminal.
func (t *table) leaveOut() {
	if t.width <= 0 {
		return
	}
	for {
		least, spare := len(columnGap)*(len(t.shown)-1), -1
		for at, i := range t.shown {
			width := t.widths[i]
			if t.columns[i].long {
				width = min(width, readable)
			}
			least += width
			if t.columns[i].spare > 0 && (spare < 0 || t.columns[i].spare < t.columns[t.shown[spare]].spare) {
				spare = at
			}
		}
		if least <= t.width || spare < 0 {
			return
		}
		t.shown = slices.Delete(t.shown, spare, spare+1)
	}
}

// shrink takes from the widest long column until the table fits the terminal.
func (t *table) shrink() {
	if t.width <= 0 {
		return
	}
	total := len(columnGap) * (len(t.shown) - 1)
	for _, i := range t.shown {
		total += t.widths[i]
	}
	for ; total > t.width; total-- {
		widest := -1
		for _, i := range t.shown {
			if t.columns[i].long && t.widths[i] > narrowestLong && (widest < 0 || t.widths[i] > t.widths[widest]) {
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
	for at, i := range t.shown {
		cell := row[i]
		if t.width > 0 && t.columns[i].long {
			cell = truncate(t.bounded(cell), t.widths[i])
		}
		last := at == len(t.shown)-1
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
