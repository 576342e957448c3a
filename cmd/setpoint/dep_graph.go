package main

import (
	"bufio"
	"cmp"
	"fmt"
	"slices"
	"strings"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// picture is a session's graph, about to be drawn.
type picture struct {
	session string
	// nodes are the variables, by name. What one depends on is among them.
	nodes []*setpointv1.GraphNode
	// edges are the pairs of a dependency and its dependent, by their places: the way that a change goes.
	edges [][2]int
}

// newPicture puts the graph in an order that depends on nothing but what it is. Pages of it are of different moments, so
// that a variable may be missing on which another one depends: then it is there by its name only.
func newPicture(session string, nodes []*setpointv1.GraphNode) *picture {
	known := make(map[string]bool, len(nodes))
	for _, n := range nodes {
		known[n.GetName()] = true
	}
	for _, n := range nodes {
		for _, name := range n.GetDependsOn() {
			if !known[name] {
				known[name] = true
				nodes = append(nodes, &setpointv1.GraphNode{Name: name})
			}
		}
	}
	byName := func(a, b *setpointv1.GraphNode) int { return cmp.Compare(a.GetName(), b.GetName()) }
	slices.SortFunc(nodes, byName)
	p := &picture{session: session}
	p.nodes = slices.CompactFunc(nodes, func(a, b *setpointv1.GraphNode) bool { return byName(a, b) == 0 })
	place := make(map[string]int, len(p.nodes))
	for i, n := range p.nodes {
		place[n.GetName()] = i
	}
	for to, n := range p.nodes {
		for _, name := range slices.Sorted(slices.Values(n.GetDependsOn())) {
			p.edges = append(p.edges, [2]int{place[name], to})
		}
	}
	return p
}

// look is how a variable is drawn. Of several marks, the later one's fields go before the earlier one's.
type look struct {
	dashed       bool
	pointed      bool
	line, fill   string // colours
	text, detail string // colours of the name, and of the lines below it
}

var plainLook = look{line: "#5f6b7a", fill: "#ffffff", text: "#1f2933", detail: "#52606d"}

// graphMark is something about a variable that its picture shows.
type graphMark struct {
	// legend tells what the mark means.
	legend string
	// notes are the lines about it below the variable's name; none: the variable does not have the mark.
	notes func(*setpointv1.GraphNode) []string
	// look is what the mark changes; what is empty stays.
	look look
}

var graphMarks = []graphMark{
	{
		legend: "derived: computed from what it depends on",
		notes: func(n *setpointv1.GraphNode) []string {
			if n.GetExpression() == "" {
				return nil
			}
			return []string{"= " + printable(n.GetExpression())}
		},
		look: look{pointed: true, line: "#2f6fb2", fill: "#eaf3fc"},
	},
	{
		legend: "optimized: only who optimizes it may change it",
		notes: func(n *setpointv1.GraphNode) []string {
			if n.GetOptimization() == nil {
				return nil
			}
			return []string{optimizedNote(n.GetOptimization())}
		},
		look: look{line: "#2e7d32", fill: "#e8f5e9"},
	},
	{
		legend: "stale: may not fit what it depends on any more",
		notes: func(n *setpointv1.GraphNode) []string {
			if n.GetStale() == nil {
				return nil
			}
			notes := []string{fmt.Sprintf("stale since revision %d", n.GetStale().GetRevision())}
			if cause := n.GetStale().GetCause(); cause != "" {
				notes = append(notes, "after "+printable(cause))
			}
			if failure := n.GetStale().GetError(); failure != "" {
				notes = append(notes, printable(failure))
			}
			return notes
		},
		look: look{dashed: true, line: "#c62828", fill: "#fdecea", detail: "#b71c1c"},
	},
}

func (l look) with(over look) look {
	return look{
		dashed: l.dashed || over.dashed, pointed: l.pointed || over.pointed,
		line: cmp.Or(over.line, l.line), fill: cmp.Or(over.fill, l.fill),
		text: cmp.Or(over.text, l.text), detail: cmp.Or(over.detail, l.detail),
	}
}

// sketch is a variable as it is drawn: its look, and its text whole.
type sketch struct {
	look  look
	name  string
	notes []string
}

func newSketch(n *setpointv1.GraphNode) sketch {
	s := sketch{look: plainLook, name: printable(n.GetName()), notes: []string{"not read"}}
	if n.GetType() != setpointv1.VariableType_VARIABLE_TYPE_UNSPECIFIED {
		s.notes[0] = fmt.Sprintf("%s, version %d", typeText(n.GetType()), n.GetVersion())
	}
	for _, mark := range graphMarks {
		if notes := mark.notes(n); len(notes) > 0 {
			s.notes = append(s.notes, notes...)
			s.look = s.look.with(mark.look)
		}
	}
	return s
}

// marks are those that some variable of the picture has.
func (p *picture) marks() []graphMark {
	return slices.DeleteFunc(slices.Clone(graphMarks), func(mark graphMark) bool {
		return !slices.ContainsFunc(p.nodes, func(n *setpointv1.GraphNode) bool { return len(mark.notes(n)) > 0 })
	})
}

const (
	// nameWidth and noteWidth are how many columns of a name, and of a line below it, a picture shows.
	nameWidth = 32
	noteWidth = 40
	// arrowLegend says what an arrow is.
	arrowLegend = "An arrow leads from a variable to one that depends on it."
)

func (p *picture) title() string {
	return fmt.Sprintf("Session %s: %s, %s", printable(p.session), counted(len(p.nodes), "variable", "variables"),
		counted(len(p.edges), "dependency", "dependencies"))
}

func counted(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// drawGraph reads the graph to its end, and writes a picture of it.
func (c *cli) drawGraph(nodes *list[*setpointv1.GraphNode], write func(pen, *picture) error) error {
	all, err := nodes.all(c)
	if err != nil {
		return err
	}
	out := pen{bufio.NewWriter(c.stdout)}
	if err := write(out, newPicture(c.session, all)); err != nil {
		return err
	}
	if err := out.Flush(); err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	return nil
}

// pen writes a picture. That a write failed shows when it is flushed.
type pen struct{ *bufio.Writer }

func (p pen) printf(format string, args ...any) {
	_, _ = fmt.Fprintf(p.Writer, format, args...)
}

// writeDot writes the graph in the language of Graphviz.
func writeDot(out pen, p *picture) error {
	legend := dotText(p.title()) + `\l` + dotText(arrowLegend) + `\l`
	for _, mark := range p.marks() {
		legend += dotText(mark.legend) + `\l`
	}
	out.printf(`// %s
// %s
digraph setpoint {
	graph [rankdir=LR, labelloc=t, labeljust=l, fontname="Helvetica,Arial,sans-serif", fontsize=11, label="%s"];
	node [shape=box, style="rounded,filled", fontname="Helvetica,Arial,sans-serif", fontsize=12, margin="0.15,0.08"];
	edge [color="#7b8794", arrowsize=0.7];

`, p.title(), arrowLegend, legend)
	for _, n := range p.nodes {
		writeDotNode(out, n)
	}
	out.printf("\n")
	for _, edge := range p.edges {
		out.printf("\t%s -> %s;\n", dotID(p.nodes[edge[0]].GetName()), dotID(p.nodes[edge[1]].GetName()))
	}
	out.printf("}\n")
	return nil
}

func writeDotNode(out pen, n *setpointv1.GraphNode) {
	s := newSketch(n)
	label, tooltip := dotText(truncate(s.name, nameWidth)), dotText(s.name)
	for _, note := range s.notes {
		label += `\n` + dotText(truncate(note, noteWidth))
		tooltip += `\n` + dotText(note)
	}
	out.printf("\t%s [label=\"%s\", tooltip=\"%s\", color=\"%s\", fillcolor=\"%s\", fontcolor=\"%s\"",
		dotID(n.GetName()), label, tooltip, s.look.line, s.look.fill, s.look.text)
	style := []string{"rounded", "filled"}
	if s.look.pointed {
		out.printf(", shape=hexagon, margin=0")
		style = style[1:]
	}
	if s.look.dashed {
		style = append(style, "dashed")
	}
	out.printf(", style=\"%s\"];\n", strings.Join(style, ","))
}

// dotID is a name as an identifier: in quotes, in which only these mean anything, and so that no two names become one.
func dotID(name string) string {
	return `"` + escapeJSON(strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(name)) + `"`
}

// dotText is printable text within a label, where a backslash begins an escape, and an ampersand the name of a character.
func dotText(text string) string {
	return strings.NewReplacer(`\`, `\\`, `"`, `\"`, `&`, `&amp;`).Replace(text)
}
