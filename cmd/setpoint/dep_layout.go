package main

import (
	"cmp"
	"math"
	"slices"
)

// The layout of a graph in layers, after Sugiyama, Tagawa and Toda: every edge goes from a layer to a later one, from
// left to right. Where it passes over layers, it takes a place in each. Within the layers, vertices are ordered so that
// few edges cross, and then moved so that most are straight. Parts of the graph that hang together only within
// themselves are laid out alone, and set beside and below each other. It draws no lots: the same graph always looks the
// same.

// box is a rectangle to be placed; x and y are its upper left corner.
type box struct{ x, y, w, h float64 }

type point struct{ x, y float64 }

// drawing is a graph that has been laid out.
type drawing struct {
	w, h  float64
	boxes []box
	// routes are the points that each edge goes by. Between the first and the second, the third and the fourth and so on
	// it is level, and otherwise goes from one height to another.
	routes [][]point
}

const (
	layerGap = 64.0 // between layers
	boxGap   = 18.0 // between boxes of a layer
	laneGap  = 9.0  // between edges that pass a layer
	partGap  = 36.0 // between parts of the graph
	// maxVertices bounds a layout: boxes, and places where edges pass a layer. One of so many takes some seconds.
	maxVertices = 50_000
	// orderRounds and placeRounds are how often layers are gone through.
	orderRounds = 24
	placeRounds = 12
)

// layOut places boxes of given sizes. It returns false where they, and their edges, are too many.
func layOut(boxes []box, edges [][2]int) (*drawing, bool) {
	d := &drawing{boxes: slices.Clone(boxes), routes: make([][]point, len(edges))}
	var parts []*layered
	vertices := 0
	for _, part := range partsOf(len(boxes), edges) {
		l := newLayered(d, part, edges)
		if vertices += l.count(); vertices > maxVertices {
			return nil, false
		}
		parts = append(parts, l)
	}
	for _, l := range parts {
		l.addLanes(edges)
		l.order()
		l.place()
	}
	d.pack(parts, edges)
	return d, true
}

// part is the boxes and edges of one connected part of a graph, in ascending order.
type part struct{ boxes, edges []int }

func partsOf(n int, edges [][2]int) []part {
	leader := make([]int, n)
	for i := range leader {
		leader[i] = i
	}
	find := func(i int) int {
		for leader[i] != i {
			leader[i] = leader[leader[i]]
			i = leader[i]
		}
		return i
	}
	for _, e := range edges {
		a, b := find(e[0]), find(e[1])
		leader[max(a, b)] = min(a, b)
	}
	var parts []part
	place := map[int]int{}
	for i := range n {
		root := find(i)
		if root == i {
			place[i] = len(parts)
			parts = append(parts, part{})
		}
		p := &parts[place[root]]
		p.boxes = append(p.boxes, i)
	}
	for i, e := range edges {
		p := &parts[place[find(e[0])]]
		p.edges = append(p.edges, i)
	}
	return parts
}

// vertex is a box, or the lane of an edge that passes a layer.
type vertex struct {
	box   int // -1: a lane
	layer int
	w, h  float64
	y     float64 // of its middle
	in    []int
	out   []int
}

// layered is a part of the graph in layers.
type layered struct {
	drawing  *drawing
	part     part
	vertices []vertex
	layers   [][]int // vertices, from top to bottom
	lanes    map[int][]int
	w, h     float64
}

// newLayered gives each vertex its layer.
func newLayered(d *drawing, p part, edges [][2]int) *layered {
	l := &layered{drawing: d, part: p, lanes: map[int][]int{}}
	place := make(map[int]int, len(p.boxes))
	for i, b := range p.boxes {
		place[b] = i
		l.vertices = append(l.vertices, vertex{box: b, w: d.boxes[b].w, h: d.boxes[b].h})
	}
	for _, e := range p.edges {
		from, to := place[edges[e][0]], place[edges[e][1]]
		l.vertices[from].out = append(l.vertices[from].out, to)
		l.vertices[to].in = append(l.vertices[to].in, from)
	}
	l.rank()
	return l
}

// rank puts each vertex in the layer behind the last of those that it depends on, and then where its edges are shorter.
// Of a circle, which a graph that was read while it changed may seem to have, not every edge leads to a later layer.
func (l *layered) rank() {
	waiting := make([]int, len(l.vertices))
	var ready, sorted []int
	for i, v := range l.vertices {
		if waiting[i] = len(v.in); waiting[i] == 0 {
			ready = append(ready, i)
		}
	}
	for len(ready) > 0 {
		i := ready[0]
		ready, sorted = ready[1:], append(sorted, i)
		for _, to := range l.vertices[i].out {
			l.vertices[to].layer = max(l.vertices[to].layer, l.vertices[i].layer+1)
			if waiting[to]--; waiting[to] == 0 {
				ready = append(ready, to)
			}
		}
	}
	for range 8 {
		moved := false
		for _, i := range slices.Backward(sorted) {
			moved = l.shorten(i) || moved
		}
		if !moved {
			return
		}
	}
}

// shorten moves a vertex that has more edges on its right to the right, as far as they let it.
func (l *layered) shorten(i int) bool {
	v := &l.vertices[i]
	if len(v.out) <= len(v.in) {
		return false
	}
	layer := math.MaxInt
	for _, to := range v.out {
		layer = min(layer, l.vertices[to].layer-1)
	}
	if layer <= v.layer {
		return false
	}
	v.layer = layer
	return true
}

// count is how many vertices there will be.
func (l *layered) count() int {
	n := len(l.vertices)
	for _, v := range l.vertices {
		for _, to := range v.out {
			n += max(0, l.vertices[to].layer-v.layer-1)
		}
	}
	return n
}

// addLanes gives edges their places in the layers that they pass, and fills the layers.
func (l *layered) addLanes(edges [][2]int) {
	boxes := len(l.vertices)
	place := make(map[int]int, boxes)
	for i := range l.vertices {
		v := &l.vertices[i]
		place[v.box] = i
		v.in, v.out = nil, nil
	}
	for _, e := range l.part.edges {
		from, to := place[edges[e][0]], place[edges[e][1]]
		last := from
		for layer := l.vertices[from].layer + 1; layer < l.vertices[to].layer; layer++ {
			l.vertices = append(l.vertices, vertex{box: -1, layer: layer, h: 1})
			lane := len(l.vertices) - 1
			l.lanes[e] = append(l.lanes[e], lane)
			l.connect(last, lane)
			last = lane
		}
		if l.vertices[from].layer < l.vertices[to].layer { // not so in a circle
			l.connect(last, to)
		}
	}
	for i, v := range l.vertices {
		for len(l.layers) <= v.layer {
			l.layers = append(l.layers, nil)
		}
		l.layers[v.layer] = append(l.layers[v.layer], i)
	}
}

func (l *layered) connect(from, to int) {
	l.vertices[from].out = append(l.vertices[from].out, to)
	l.vertices[to].in = append(l.vertices[to].in, from)
}

// order orders the vertices of each layer by where their neighbours are, to and fro, and keeps the best order found.
func (l *layered) order() {
	position := make([]int, len(l.vertices))
	renumber := func() {
		for _, layer := range l.layers {
			for i, v := range layer {
				position[v] = i
			}
		}
	}
	renumber()
	best, fewest := l.copyLayers(), l.crossings(position)
	for round := 0; round < orderRounds && fewest > 0; round++ {
		for i := range l.layers {
			layer := l.layers[i]
			neighbours := func(v int) []int { return l.vertices[v].in }
			if round%2 == 1 {
				layer = l.layers[len(l.layers)-1-i]
				neighbours = func(v int) []int { return l.vertices[v].out }
			}
			sortByMedian(layer, neighbours, position)
		}
		l.exchange(position)
		if now := l.crossings(position); now < fewest {
			best, fewest = l.copyLayers(), now
		}
	}
	l.layers = best
}

func (l *layered) copyLayers() [][]int {
	layers := make([][]int, len(l.layers))
	for i, layer := range l.layers {
		layers[i] = slices.Clone(layer)
	}
	return layers
}

// sortByMedian sorts a layer by the medians of its vertices' neighbours; one without neighbours stays where it is.
func sortByMedian(layer []int, neighbours func(int) []int, position []int) {
	key := make(map[int]float64, len(layer))
	var movable []int
	for _, v := range layer {
		var at []int
		for _, n := range neighbours(v) {
			at = append(at, position[n])
		}
		if len(at) > 0 {
			slices.Sort(at)
			key[v] = median(at)
			movable = append(movable, v)
		}
	}
	slices.SortStableFunc(movable, func(a, b int) int { return cmp.Compare(key[a], key[b]) })
	next := 0
	for i, v := range layer {
		if _, ok := key[v]; ok {
			layer[i] = movable[next]
			next++
		}
	}
	for i, v := range layer {
		position[v] = i
	}
}

func median(sorted []int) float64 {
	half := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return float64(sorted[half])
	}
	return float64(sorted[half-1]+sorted[half]) / 2
}

// exchange swaps vertices next to each other where that leaves fewer crossings, until it does nowhere.
func (l *layered) exchange(position []int) {
	for range 8 {
		swapped := false
		for _, layer := range l.layers {
			for i := range len(layer) - 1 {
				a, b := layer[i], layer[i+1]
				before := l.pairCrossings(a, b, position)
				if before > 0 && l.pairCrossings(b, a, position) < before {
					layer[i], layer[i+1] = b, a
					position[a], position[b] = i+1, i
					swapped = true
				}
			}
		}
		if !swapped {
			return
		}
	}
}

// pairCrossings counts the crossings of the edges of two vertices, the first above the second. Of vertices with very many
// edges it knows nothing, for they would take too long.
func (l *layered) pairCrossings(upper, lower int, position []int) int {
	count := 0
	u, w := &l.vertices[upper], &l.vertices[lower]
	for _, sides := range [2][2][]int{{u.in, w.in}, {u.out, w.out}} {
		if len(sides[0])*len(sides[1]) > 10_000 {
			continue
		}
		for _, a := range sides[0] {
			for _, b := range sides[1] {
				if position[a] > position[b] {
					count++
				}
			}
		}
	}
	return count
}

// crossings counts all crossings.
func (l *layered) crossings(position []int) int {
	count := 0
	for i := 1; i < len(l.layers); i++ {
		tree := make([]int, len(l.layers[i-1])+1) // how many edges so far end at a position: a Fenwick tree
		ended := 0
		for _, v := range l.layers[i] {
			for _, n := range l.vertices[v].in {
				above := 0
				for k := position[n] + 1; k > 0; k -= k & -k {
					above += tree[k]
				}
				count += ended - above
			}
			for _, n := range l.vertices[v].in {
				for k := position[n] + 1; k < len(tree); k += k & -k {
					tree[k]++
				}
				ended++
			}
		}
	}
	return count
}

// place gives the vertices of each layer their heights: in their order, with the gaps between them, and otherwise as near
// as can be to the middle of their neighbours.
func (l *layered) place() {
	for _, layer := range l.layers {
		y := 0.0
		for i, v := range layer {
			if i > 0 {
				y += l.distance(layer[i-1], v)
			}
			l.vertices[v].y = y
		}
	}
	for round := range placeRounds {
		toRight, both := round%2 == 0, round >= placeRounds-2
		for i := range l.layers {
			if toRight {
				l.settle(l.layers[i], true, both)
			} else {
				l.settle(l.layers[len(l.layers)-1-i], both, true)
			}
		}
	}
}

// distance is how far apart the middles of two vertices next to each other have to be.
func (l *layered) distance(a, b int) float64 {
	gap := boxGap
	if l.vertices[a].box < 0 && l.vertices[b].box < 0 {
		gap = laneGap
	}
	return (l.vertices[a].h+l.vertices[b].h)/2 + gap
}

// cluster is a row of vertices that touch each other, and where it wants to be.
type cluster struct{ sum, weight float64 }

// settle moves a layer's vertices to where they are wanted, as the least squares have it: those that would come too near
// to each other make a cluster, which goes to the mean of what its members want.
func (l *layered) settle(layer []int, useIn, useOut bool) {
	clusters := make([]cluster, 0, len(layer))
	sizes := make([]int, 0, len(layer))
	offset := 0.0 // of a vertex below the first, when all touch
	offsets := make([]float64, len(layer))
	for i, v := range layer {
		if i > 0 {
			offset += l.distance(layer[i-1], v)
		}
		offsets[i] = offset
		wanted, weight := l.wanted(v, useIn, useOut)
		clusters, sizes = append(clusters, cluster{sum: (wanted - offset) * weight, weight: weight}), append(sizes, 1)
		for len(clusters) > 1 {
			top, below := len(clusters)-2, len(clusters)-1
			if clusters[top].sum/clusters[top].weight <= clusters[below].sum/clusters[below].weight {
				break
			}
			clusters[top].sum += clusters[below].sum
			clusters[top].weight += clusters[below].weight
			sizes[top] += sizes[below]
			clusters, sizes = clusters[:below], sizes[:below]
		}
	}
	i := 0
	for r, size := range sizes {
		for range size {
			l.vertices[layer[i]].y = clusters[r].sum/clusters[r].weight + offsets[i]
			i++
		}
	}
}

// wanted is the height at which a vertex's edges would be straight, and how much that matters: most for an edge that
// passes, least for a vertex that has no neighbours on that side.
func (l *layered) wanted(v int, useIn, useOut bool) (float64, float64) {
	vertex := &l.vertices[v]
	sum, count := 0.0, 0
	add := func(neighbours []int) {
		for _, n := range neighbours {
			sum += l.vertices[n].y
			count++
		}
	}
	if useIn {
		add(vertex.in)
	}
	if useOut {
		add(vertex.out)
	}
	switch {
	case count == 0:
		return vertex.y, 0.1
	case vertex.box < 0:
		return sum / float64(count), 4
	}
	return sum / float64(count), 1
}

// shape sets the part's boxes and routes as if it were alone: from 0, 0 to its width and height.
func (l *layered) shape(edges [][2]int) {
	top, bottom := math.Inf(1), math.Inf(-1)
	for _, v := range l.vertices {
		top, bottom = min(top, v.y-v.h/2), max(bottom, v.y+v.h/2)
	}
	l.h = bottom - top
	left := make([]float64, len(l.layers))
	right := make([]float64, len(l.layers))
	x := 0.0
	for i, layer := range l.layers {
		width, arriving := 0.0, 0
		for _, v := range layer {
			width = max(width, l.vertices[v].w)
			arriving += len(l.vertices[v].in)
		}
		if i > 0 {
			x += layerGap + min(layerGap, float64(arriving)) // room to tell edges apart
		}
		left[i], right[i] = x, x+width
		x += width
	}
	l.w = x
	for i := range l.vertices {
		v := &l.vertices[i]
		v.y -= top
		if v.box >= 0 {
			b := &l.drawing.boxes[v.box]
			b.x, b.y = left[v.layer], v.y-v.h/2
		}
	}
	l.route(edges, left, right)
}

// route finds the points of the part's edges.
func (l *layered) route(edges [][2]int, left, right []float64) {
	place := make(map[int]int, len(l.part.boxes))
	for i := range l.part.boxes {
		place[l.vertices[i].box] = i
	}
	leaving, arriving := map[int][]port{}, map[int][]port{}
	for _, e := range l.part.edges {
		from, to := place[edges[e][0]], place[edges[e][1]]
		next, last := to, from
		if lanes := l.lanes[e]; len(lanes) > 0 {
			next, last = lanes[0], lanes[len(lanes)-1]
		}
		leaving[from] = append(leaving[from], port{e, l.vertices[next].y})
		arriving[to] = append(arriving[to], port{e, l.vertices[last].y})
	}
	begin, end := l.spread(leaving), l.spread(arriving)
	for _, e := range l.part.edges {
		from, to := &l.vertices[place[edges[e][0]]], &l.vertices[place[edges[e][1]]]
		b := l.drawing.boxes[from.box]
		points := []point{{b.x + b.w, begin[e]}, {right[from.layer], begin[e]}}
		for _, lane := range l.lanes[e] {
			v := l.vertices[lane]
			points = append(points, point{left[v.layer], v.y}, point{right[v.layer], v.y})
		}
		at := point{left[to.layer], end[e]}
		l.drawing.routes[e] = append(points, at, at)
	}
}

// port is where an edge meets a box, and the height that it comes from or goes to.
type port struct {
	edge int
	y    float64
}

// spread gives each edge at a side of a box a height of its own, in the order in which they come.
func (l *layered) spread(sides map[int][]port) map[int]float64 {
	heights := map[int]float64{}
	for v, ports := range sides {
		slices.SortFunc(ports, func(a, b port) int { return cmp.Or(cmp.Compare(a.y, b.y), a.edge-b.edge) })
		vertex := l.vertices[v]
		step := min(7, vertex.h*0.6/float64(len(ports)))
		for i, p := range ports {
			heights[p.edge] = vertex.y + (float64(i)-float64(len(ports)-1)/2)*step
		}
	}
	return heights
}

// pack sets the parts in rows, the high ones first, so that the whole is not much wider than high.
func (d *drawing) pack(parts []*layered, edges [][2]int) {
	area, widest := 0.0, 0.0
	for _, l := range parts {
		l.shape(edges)
		area += (l.w + partGap) * (l.h + partGap)
		widest = max(widest, l.w)
	}
	width := max(widest, 1.3*math.Sqrt(area))
	slices.SortStableFunc(parts, func(a, b *layered) int { return cmp.Compare(b.h, a.h) })
	x, y, row := 0.0, 0.0, 0.0
	for _, l := range parts {
		if x > 0 && x+l.w > width {
			x, y, row = 0, y+row+partGap, 0
		}
		l.shift(x, y)
		d.w, d.h = max(d.w, x+l.w), max(d.h, y+l.h)
		x, row = x+l.w+partGap, max(row, l.h)
	}
}

func (l *layered) shift(x, y float64) {
	for _, b := range l.part.boxes {
		l.drawing.boxes[b].x += x
		l.drawing.boxes[b].y += y
	}
	for _, e := range l.part.edges {
		for i := range l.drawing.routes[e] {
			l.drawing.routes[e][i].x += x
			l.drawing.routes[e][i].y += y
		}
	}
}
