package main

import (
	"bufio"
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

func exampleGraph() []*setpointv1.GraphNode {
	return []*setpointv1.GraphNode{
		{Name: "batch_size", Type: kindInteger, Version: 1},
		{Name: "ratio", Type: kindFloat, Version: 7, Expression: "1.0 / double(total)", DependsOn: []string{"total"},
			Stale: &setpointv1.Stale{Revision: 12, Cause: "steps", Error: "division by zero"}},
		{Name: "report", Type: kindString, Version: 2, DependsOn: []string{"batch_size", "total"},
			Stale: &setpointv1.Stale{Revision: 12, Cause: "steps"}},
		{Name: "steps", Type: kindInteger, Version: 3},
		{Name: "total", Type: kindInteger, Version: 4, Expression: "batch_size * steps", DependsOn: []string{"batch_size", "steps"}},
	}
}

func draw(t *testing.T, write func(pen, *picture) error, nodes []*setpointv1.GraphNode) string {
	t.Helper()
	var text bytes.Buffer
	out := pen{bufio.NewWriter(&text)}
	if err := write(out, newPicture("run-7", slices.Clone(nodes))); err != nil {
		t.Fatal(err)
	}
	if err := out.Flush(); err != nil {
		t.Fatal(err)
	}
	return text.String()
}

func TestDot(t *testing.T) {
	t.Parallel()
	want := `// Session run-7: 5 variables, 5 dependencies
// An arrow leads from a variable to one that depends on it.
digraph setpoint {
	graph [rankdir=LR, labelloc=t, labeljust=l, fontname="Helvetica,Arial,sans-serif", fontsize=11, label="Session run-7: 5 variables, 5 dependencies\lAn arrow leads from a variable to one that depends on it.\lderived: computed from what it depends on\lstale: may not fit what it depends on any more\l"];
	node [shape=box, style="rounded,filled", fontname="Helvetica,Arial,sans-serif", fontsize=12, margin="0.15,0.08"];
	edge [color="#7b8794", arrowsize=0.7];

	"batch_size" [label="batch_size\ninteger, version 1", tooltip="batch_size\ninteger, version 1", color="#5f6b7a", fillcolor="#ffffff", fontcolor="#1f2933", style="rounded,filled"];
	"ratio" [label="ratio\nfloat, version 7\n= 1.0 / double(total)\nstale since revision 12\nafter steps\ndivision by zero", tooltip="ratio\nfloat, version 7\n= 1.0 / double(total)\nstale since revision 12\nafter steps\ndivision by zero", color="#c62828", fillcolor="#fdecea", fontcolor="#1f2933", shape=hexagon, margin=0, style="filled,dashed"];
	"report" [label="report\nstring, version 2\nstale since revision 12\nafter steps", tooltip="report\nstring, version 2\nstale since revision 12\nafter steps", color="#c62828", fillcolor="#fdecea", fontcolor="#1f2933", style="rounded,filled,dashed"];
	"steps" [label="steps\ninteger, version 3", tooltip="steps\ninteger, version 3", color="#5f6b7a", fillcolor="#ffffff", fontcolor="#1f2933", style="rounded,filled"];
	"total" [label="total\ninteger, version 4\n= batch_size * steps", tooltip="total\ninteger, version 4\n= batch_size * steps", color="#2f6fb2", fillcolor="#eaf3fc", fontcolor="#1f2933", shape=hexagon, margin=0, style="filled"];

	"total" -> "ratio";
	"batch_size" -> "report";
	"total" -> "report";
	"batch_size" -> "total";
	"steps" -> "total";
}
`
	if diff := cmp.Diff(want, draw(t, writeDot, exampleGraph())); diff != "" {
		t.Errorf("dot (-want +got):\n%s", diff)
	}
}

// What the order of the answer is does not matter, nor does the run.
func TestPicturesAreDeterministic(t *testing.T) {
	t.Parallel()
	nodes := exampleGraph()
	for name, write := range map[string]func(pen, *picture) error{"dot": writeDot, "svg": writeSVG} {
		want := draw(t, write, nodes)
		for range 5 {
			again := slices.Clone(nodes)
			slices.Reverse(again)
			if diff := cmp.Diff(want, draw(t, write, again)); diff != "" {
				t.Errorf("%s differs (-first +again):\n%s", name, diff)
			}
		}
		if empty := draw(t, write, nil); !strings.Contains(empty, "0 variables, 0 dependencies") {
			t.Errorf("%s of nothing: %s", name, empty)
		}
	}
}

// dotStrings are the quoted strings of a text in dot, as its grammar has them.
var dotStrings = regexp.MustCompile(`"(?:[^"\\]|\\.)*"`)

func TestDotEscapes(t *testing.T) {
	t.Parallel()
	names := []string{`a"b`, `a\`, `a\\`, `\N`, "a&amp;b", "<b>x</b>", "new\u2028line", `new\u2028line`, "rtl\u202e", "é🙂", "->", "a;b", `\"`}
	var nodes []*setpointv1.GraphNode
	for i, name := range names {
		nodes = append(nodes, &setpointv1.GraphNode{Name: name, Type: kindFloat, Expression: "deps[\"a\\\"b\"]\n+ '\\'", DependsOn: names[i+1 : min(i+2, len(names))]})
	}
	text := draw(t, writeDot, nodes)
	ids := map[string]bool{}
	for _, line := range strings.Split(text, "\n") {
		if !strings.HasPrefix(line, "\t\"") {
			continue
		}
		// Without its strings, a line is nothing but the language's own.
		rest := dotStrings.ReplaceAllString(line, "S")
		if rest != "\tS -> S;" && rest != "\tS [label=S, tooltip=S, color=S, fillcolor=S, fontcolor=S, shape=hexagon, margin=0, style=S];" {
			t.Errorf("%s reads as %s", line, rest)
		}
		if !strings.Contains(rest, "->") {
			ids[dotStrings.FindString(line)] = true
		}
	}
	if len(ids) != len(names) {
		t.Errorf("%d names became %d identifiers: %v", len(names), len(ids), ids)
	}
	for _, want := range []string{`label="a\"b\n`, `label="a\\\n`, `label="\\N\n`, `label="a&amp;amp;b\n`, `label="rtl\\u202e\n`} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s in\n%s", want, text)
		}
	}
}

// svgElements are the elements of a picture, which has to be XML and to need nothing from elsewhere.
func svgElements(t *testing.T, text string) []xml.StartElement {
	t.Helper()
	var all []xml.StartElement
	decoder := xml.NewDecoder(strings.NewReader(text))
	for {
		token, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatalf("%v in\n%s", err, text)
		}
		if element, ok := token.(xml.StartElement); ok {
			all = append(all, element.Copy())
		}
	}
}

func TestSVG(t *testing.T) {
	t.Parallel()
	nodes := exampleGraph()
	nodes[0].Name = `<b a="1">&'` + "\u202e" + strings.Repeat("é", 50)
	nodes[4].DependsOn[0], nodes[2].DependsOn[0] = nodes[0].Name, nodes[0].Name
	text := draw(t, writeSVG, nodes)
	counts := map[string]int{}
	for _, element := range svgElements(t, text) {
		counts[element.Name.Local]++
		for _, attribute := range element.Attr {
			value := attribute.Value
			if attribute.Name.Local != "xmlns" && (strings.Contains(value, "://") || strings.Contains(value, "url(") && value != "url(#arrow)") {
				t.Errorf("%s is asked for elsewhere", value)
			}
		}
	}
	// An outline for each variable and each mark of the legend, and the page; a path for each edge, and two arrows.
	if counts["rect"]+counts["polygon"] != 5+2+1 || counts["polygon"] != 2+1 || counts["path"] != 5+2 {
		t.Errorf("elements: %v", counts)
	}
	for _, want := range []string{"&lt;b a=&#34;1&#34;&gt;&amp;&#39;\\u202eé", "é…</text>", "= batch_size * steps", "stale since revision 12",
		"after steps", "division by zero", `stroke-dasharray="5 3"`, arrowLegend, "Session run-7: 5 variables, 5 dependencies"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s in\n%s", want, text)
		}
	}
	if strings.Contains(text, "<script") || strings.Contains(text, "\u202e") {
		t.Errorf("a name means something in\n%s", text)
	}
}

// A graph that is read while it changes may lack a variable, or have a circle: it is drawn all the same.
func TestPictureOfAChangingGraph(t *testing.T) {
	t.Parallel()
	nodes := []*setpointv1.GraphNode{
		{Name: "a", Type: kindFloat, DependsOn: []string{"b", "gone"}}, {Name: "b", Type: kindFloat, DependsOn: []string{"a"}},
		{Name: "b", Type: kindFloat, DependsOn: []string{"a"}}, {Name: "self", Type: kindFloat, DependsOn: []string{"self"}},
	}
	dot := draw(t, writeDot, nodes)
	if !strings.Contains(dot, `"gone" [label="gone\nnot read"`) || strings.Count(dot, "->") != 4 || !strings.Contains(dot, "4 variables") {
		t.Errorf("dot:\n%s", dot)
	}
	svgElements(t, draw(t, writeSVG, nodes))
}

func TestGraphTooLargeToDraw(t *testing.T) {
	t.Parallel()
	nodes := make([]*setpointv1.GraphNode, maxVertices+1)
	for i := range nodes {
		nodes[i] = &setpointv1.GraphNode{Name: fmt.Sprintf("v%06d", i)}
	}
	err := writeSVG(pen{bufio.NewWriter(io.Discard)}, newPicture("s", nodes))
	var own *reasonError
	if !errors.As(err, &own) || own.reason != "TOO_LARGE" {
		t.Errorf("got %v", err)
	}
	// So is a chain of which each depends on all before it.
	nodes = nodes[:200]
	var names []string
	for _, n := range nodes {
		n.DependsOn = slices.Clone(names)
		names = append(names, n.GetName())
	}
	if err := writeSVG(pen{bufio.NewWriter(io.Discard)}, newPicture("s", nodes)); !errors.As(err, &own) {
		t.Errorf("edges: got %v", err)
	}
	if err := writeDot(pen{bufio.NewWriter(io.Discard)}, newPicture("s", nodes)); err != nil {
		t.Errorf("dot: %v", err)
	}
}

// Of any graph: boxes do not overlap, all is within the picture, and edges lead from the left to the right.
func TestLayout(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(0, 40).Draw(t, "boxes")
		boxes := make([]box, n)
		for i := range boxes {
			boxes[i] = box{w: rapid.Float64Range(20, 200).Draw(t, "width"), h: rapid.Float64Range(20, 90).Draw(t, "height")}
		}
		var edges [][2]int
		if n > 1 {
			for range rapid.IntRange(0, 3*n).Draw(t, "edges") {
				to := rapid.IntRange(1, n-1).Draw(t, "to")
				edge := [2]int{rapid.IntRange(0, to-1).Draw(t, "from"), to}
				if !slices.Contains(edges, edge) {
					edges = append(edges, edge)
				}
			}
		}
		d, ok := layOut(boxes, edges)
		if !ok {
			t.Fatal("too large")
		}
		checkLayout(t, d, boxes, edges)
	})
}

func checkLayout(t *rapid.T, d *drawing, boxes []box, edges [][2]int) {
	const slack = 1e-6
	for i, b := range d.boxes {
		if b.w != boxes[i].w || b.h != boxes[i].h {
			t.Fatalf("box %d changed its size", i)
		}
		if b.x < -slack || b.y < -slack || b.x+b.w > d.w+slack || b.y+b.h > d.h+slack || math.IsNaN(b.x+b.y) {
			t.Fatalf("box %d at %v is outside of %g × %g", i, b, d.w, d.h)
		}
		for j, other := range d.boxes[:i] {
			if b.x < other.x+other.w-slack && other.x < b.x+b.w-slack && b.y < other.y+other.h-slack && other.y < b.y+b.h-slack {
				t.Fatalf("boxes %d at %v and %d at %v overlap", j, other, i, b)
			}
		}
	}
	for i, route := range d.routes {
		from, to := d.boxes[edges[i][0]], d.boxes[edges[i][1]]
		first, last := route[0], route[len(route)-1]
		if math.Abs(first.x-from.x-from.w) > slack || first.y < from.y-slack || first.y > from.y+from.h+slack ||
			math.Abs(last.x-to.x) > slack || last.y < to.y-slack || last.y > to.y+to.h+slack {
			t.Fatalf("edge %v goes from %v to %v, between boxes at %v and %v", edges[i], first, last, from, to)
		}
		for k := 1; k < len(route); k++ {
			if route[k].x < route[k-1].x-slack || k%2 == 1 && math.Abs(route[k].y-route[k-1].y) > slack {
				t.Fatalf("edge %v goes by %v", edges[i], route)
			}
		}
	}
}

// The layers follow from the edges, and crossings that need not be are not there.
func TestLayoutOfKnownGraphs(t *testing.T) {
	t.Parallel()
	square := func(n int) []box { return slices.Repeat([]box{{w: 40, h: 20}}, n) }
	tests := []struct {
		name  string
		n     int
		edges [][2]int
		left  []int // which boxes are as far left as the one at each place
	}{
		{"a diamond", 4, [][2]int{{0, 1}, {0, 2}, {1, 3}, {2, 3}}, []int{0, 1, 1, 3}},
		{"a long edge", 3, [][2]int{{0, 1}, {1, 2}, {0, 2}}, []int{0, 1, 2}},
		{"crossed pairs", 4, [][2]int{{0, 3}, {1, 2}, {0, 2}}, []int{0, 0, 2, 2}},
	}
	for _, tt := range tests {
		d, ok := layOut(square(tt.n), tt.edges)
		if !ok {
			t.Fatalf("%s: too large", tt.name)
		}
		for i, same := range tt.left {
			if d.boxes[i].x != d.boxes[same].x {
				t.Errorf("%s: box %d is at %v, and %d at %v", tt.name, i, d.boxes[i], same, d.boxes[same])
			}
		}
		for i, e := range tt.edges {
			if d.boxes[e[0]].x >= d.boxes[e[1]].x {
				t.Errorf("%s: edge %d leads back", tt.name, i)
			}
		}
	}
	d, _ := layOut(square(4), [][2]int{{0, 3}, {1, 2}, {0, 2}})
	if crossed := (d.boxes[0].y < d.boxes[1].y) != (d.boxes[3].y < d.boxes[2].y); crossed {
		t.Errorf("edges cross: %v", d.boxes)
	}
}
