package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/rivo/uniseg"
)

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
