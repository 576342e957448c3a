package service

import "container/heap"

// inUpdateOrder sorts the first n numbers so that each comes after all that it needs, and by name where that leaves a
// choice. What is on a cycle, or after one, is left out; the database has none.
func inUpdateOrder(n int, name func(int) string, needs func(int) []int) []int {
	waiting := make([]int, n)
	dependents := make([][]int, n)
	ready := &byName{name: name}
	for i := range n {
		for _, need := range needs(i) {
			waiting[i]++
			dependents[need] = append(dependents[need], i)
		}
		if waiting[i] == 0 {
			ready.numbers = append(ready.numbers, i)
		}
	}
	heap.Init(ready)
	order := make([]int, 0, n)
	for len(ready.numbers) > 0 {
		i := heap.Pop(ready).(int)
		order = append(order, i)
		for _, d := range dependents[i] {
			if waiting[d]--; waiting[d] == 0 {
				heap.Push(ready, d)
			}
		}
	}
	return order
}

// byName is a heap.
type byName struct {
	numbers []int
	name    func(int) string
}

func (h *byName) Len() int           { return len(h.numbers) }
func (h *byName) Less(i, j int) bool { return h.name(h.numbers[i]) < h.name(h.numbers[j]) }
func (h *byName) Swap(i, j int)      { h.numbers[i], h.numbers[j] = h.numbers[j], h.numbers[i] }
func (h *byName) Push(x any)         { h.numbers = append(h.numbers, x.(int)) }
func (h *byName) Pop() any {
	last := len(h.numbers) - 1
	x := h.numbers[last]
	h.numbers = h.numbers[:last]
	return x
}
