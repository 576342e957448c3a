package main

import (
	"cmp"
	"encoding/xml"
	"fmt"
	"strconv"
	"strings"

	"github.com/rivo/uniseg"
)

const (
	nameSize = 13.0 // of the letters of a name, in pixels
	noteSize = 10.5 // of those below it
	// columnWidth is how wide a column of text is for its size, in the widest of the usual fonts of fixed width.
	columnWidth = 0.605
	// padding is the room around the text of a box, and margin the one around the picture.
	padding = 10.0
	margin  = 16.0
	// pointWidth is how far the sides of a pointed box stand out.
	pointWidth = 9.0
	svgFonts   = "ui-monospace, 'SF Mono', Menlo, 'DejaVu Sans Mono', 'Liberation Mono', Consolas, monospace"
)

// svgBox is a variable in the picture: its shortened text.
type svgBox struct {
	sketch
	lines []string // below the name
}

func newSVGBox(s sketch) svgBox {
	b := svgBox{sketch: s}
	for _, note := range s.notes {
		b.lines = append(b.lines, truncate(note, noteWidth))
	}
	b.name = truncate(s.name, nameWidth)
	return b
}

// size is the box's width and height.
func (b svgBox) size() (float64, float64) {
	width := textWidth(b.name, nameSize)
	for _, line := range b.lines {
		width = max(width, textWidth(line, noteSize))
	}
	width += 2 * padding
	if b.look.pointed {
		width += 2 * pointWidth
	}
	return width, 2*padding + nameSize + float64(len(b.lines))*(noteSize+4) - 4
}

func textWidth(text string, size float64) float64 {
	return float64(uniseg.StringWidth(text)) * columnWidth * size
}

// writeSVG writes the graph as a picture that needs nothing from elsewhere.
func writeSVG(out pen, p *picture) error {
	boxes := make([]svgBox, len(p.nodes))
	places := make([]box, len(p.nodes))
	for i, n := range p.nodes {
		boxes[i] = newSVGBox(newSketch(n))
		places[i].w, places[i].h = boxes[i].size()
	}
	d, ok := layOut(places, p.edges)
	if !ok {
		return &reasonError{"TOO_LARGE", fmt.Sprintf("%s would make no picture that anyone could read; -o dot or -o json has them",
			counted(len(p.edges), "dependency", "dependencies")+" of "+counted(len(p.nodes), "variable", "variables"))}
	}
	legend := newSVGLegend(p)
	width, height := max(d.w, legend.w)+2*margin, legend.h+d.h+2*margin
	out.printf(`<?xml version="1.0" encoding="UTF-8"?>
<svg xmlns="http://www.w3.org/2000/svg" width="%[1]s" height="%[2]s" viewBox="0 0 %[1]s %[2]s" font-family="%[3]s">
<title>%[4]s</title>
<defs><marker id="arrow" viewBox="0 0 8 8" refX="7.5" refY="4" markerWidth="7" markerHeight="7" orient="auto">`+
		`<path d="M0,0.6 L8,4 L0,7.4 Z" fill="#7b8794"/></marker></defs>
<rect width="100%%" height="100%%" fill="#ffffff"/>
`, pixels(width), pixels(height), svgFonts, svgText(p.title()))
	legend.write(out)
	out.printf("<g transform=\"translate(%s,%s)\">\n", pixels(margin), pixels(margin+legend.h))
	out.printf("<g fill=\"none\" stroke=\"#7b8794\" stroke-width=\"1.1\">\n")
	for i, edge := range p.edges {
		out.printf("<path d=\"%s\" marker-end=\"url(#arrow)\"><title>%s → %s</title></path>\n", svgPath(d.routes[i]),
			svgText(printable(p.nodes[edge[0]].GetName())), svgText(printable(p.nodes[edge[1]].GetName())))
	}
	out.printf("</g>\n")
	for i, b := range boxes {
		writeSVGBox(out, b, d.boxes[i], newSketch(p.nodes[i]))
	}
	out.printf("</g>\n</svg>\n")
	return nil
}

// writeSVGBox draws a variable; whole is its text whole, for the mouse.
func writeSVGBox(out pen, b svgBox, at box, whole sketch) {
	out.printf("<g><title>%s</title>", svgText(strings.Join(append([]string{whole.name}, whole.notes...), "\n")))
	writeOutline(out, b.look, at)
	left, y := at.x+padding, at.y+padding+nameSize-3
	if b.look.pointed {
		left += pointWidth
	}
	out.printf("<text xml:space=\"preserve\" x=\"%s\" y=\"%s\" font-size=\"%s\" font-weight=\"600\" fill=\"%s\">%s</text>",
		pixels(left), pixels(y), pixels(nameSize), b.look.text, svgText(b.name))
	for _, line := range b.lines {
		y += noteSize + 4
		out.printf("<text xml:space=\"preserve\" x=\"%s\" y=\"%s\" font-size=\"%s\" fill=\"%s\">%s</text>",
			pixels(left), pixels(y), pixels(noteSize), b.look.detail, svgText(line))
	}
	out.printf("</g>\n")
}

func writeOutline(out pen, l look, at box) {
	style := fmt.Sprintf("fill=\"%s\" stroke=\"%s\" stroke-width=\"1.3\"", l.fill, l.line)
	if l.dashed {
		style += ` stroke-dasharray="5 3"`
	}
	if !l.pointed {
		out.printf("<rect x=\"%s\" y=\"%s\" width=\"%s\" height=\"%s\" rx=\"6\" %s/>",
			pixels(at.x), pixels(at.y), pixels(at.w), pixels(at.h), style)
		return
	}
	inset := min(pointWidth, at.w/4)
	corners := []point{{at.x, at.y + at.h/2}, {at.x + inset, at.y}, {at.x + at.w - inset, at.y}, {at.x + at.w, at.y + at.h/2},
		{at.x + at.w - inset, at.y + at.h}, {at.x + inset, at.y + at.h}}
	var text []string
	for _, corner := range corners {
		text = append(text, pixels(corner.x)+","+pixels(corner.y))
	}
	out.printf("<polygon points=\"%s\" %s/>", strings.Join(text, " "), style)
}

// svgLegend tells, above the picture, what there is and what it means.
type svgLegend struct {
	title string
	marks []graphMark
	w, h  float64
}

const legendLine = 20.0

func newSVGLegend(p *picture) svgLegend {
	l := svgLegend{title: p.title(), marks: p.marks()}
	l.w = max(textWidth(l.title, nameSize), textWidth(arrowLegend, noteSize)+32)
	for _, mark := range l.marks {
		l.w = max(l.w, textWidth(mark.legend, noteSize)+32)
	}
	l.h = legendLine * float64(len(l.marks)+3)
	return l
}

func (l svgLegend) write(out pen) {
	y := margin + nameSize
	out.printf("<text x=\"%s\" y=\"%s\" font-size=\"%s\" font-weight=\"600\" fill=\"%s\">%s</text>\n",
		pixels(margin), pixels(y), pixels(nameSize), plainLook.text, svgText(l.title))
	y += legendLine
	out.printf("<path d=\"M%s,%s H%s\" stroke=\"#7b8794\" stroke-width=\"1.1\" marker-end=\"url(#arrow)\"/>",
		pixels(margin), pixels(y-4), pixels(margin+24))
	l.line(out, y, arrowLegend)
	for _, mark := range l.marks {
		y += legendLine
		writeOutline(out, plainLook.with(mark.look), box{x: margin, y: y - 10, w: 24, h: 12})
		l.line(out, y, mark.legend)
	}
}

func (l svgLegend) line(out pen, y float64, text string) {
	out.printf("<text x=\"%s\" y=\"%s\" font-size=\"%s\" fill=\"%s\">%s</text>\n",
		pixels(margin+32), pixels(y), pixels(noteSize), plainLook.detail, svgText(text))
}

// svgPath is a route as a line that bends where it changes its height.
func svgPath(route []point) string {
	var path strings.Builder
	fmt.Fprintf(&path, "M%s,%s", pixels(route[0].x), pixels(route[0].y))
	for i := 1; i < len(route); i++ {
		from, to := route[i-1], route[i]
		switch middle := (from.x + to.x) / 2; {
		case from == to:
		case i%2 == 1 || from.y == to.y:
			fmt.Fprintf(&path, " L%s,%s", pixels(to.x), pixels(to.y))
		default:
			fmt.Fprintf(&path, " C%[1]s,%[2]s %[1]s,%[4]s %[3]s,%[4]s",
				pixels(middle), pixels(from.y), pixels(to.x), pixels(to.y))
		}
	}
	return path.String()
}

// pixels is a length, to a tenth.
func pixels(length float64) string {
	text := strings.TrimSuffix(strconv.FormatFloat(length, 'f', 1, 64), ".0")
	return cmp.Or(map[string]string{"-0": "0"}[text], text)
}

// svgText is text as XML has it.
func svgText(text string) string {
	var escaped strings.Builder
	_ = xml.EscapeText(&escaped, []byte(text)) // to memory
	return escaped.String()
}
