package service

import (
	"container/heap"
	"slices"
	"sort"
	"strings"
)

// inUpdateOrder sorts the first n numbers so that each comes after all that it needs, and by name where that leaves a
// choice. What is on a cycle, or after one, is left out; the database has none.
func inUpdateOrder(n int, name func(int) string, needs func(int) []int) []int {
	byName := make([]int, n)
	for i := range byName {
		byName[i] = i
	}
	slices.SortFunc(byName, func(a, b int) int { return strings.Compare(name(a), name(b)) })
	rank := make([]int, n)
	for r, i := range byName {
		rank[i] = r
	}
	waiting := make([]int, n)
	dependents := make([][]int, n)
	ready := &ranks{}
	for i := range n {
		for _, need := range needs(i) {
			waiting[i]++
			dependents[need] = append(dependents[need], i)
		}
	}
	for r, i := range byName { // What is sorted is a heap.
		if waiting[i] == 0 {
			ready.Push(r)
		}
	}
	order := make([]int, 0, n)
	for ready.Len() > 0 {
		i := byName[heap.Pop(ready).(int)]
		order = append(order, i)
		for _, d := range dependents[i] {
			if waiting[d]--; waiting[d] == 0 {
				heap.Push(ready, rank[d])
			}
		}
	}
	return order
}

// ranks is a heap of places in the order of names.
type ranks struct{ sort.IntSlice }

// Push adds a place.
func (h *ranks) Push(x any) { h.IntSlice = append(h.IntSlice, x.(int)) }

// Pop takes the last.
func (h *ranks) Pop() any {
	last := h.Len() - 1
	x := h.IntSlice[last]
	h.IntSlice = h.IntSlice[:last]
	return x
}
