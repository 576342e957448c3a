package service

import "container/heap"

// inUpdateOrder sorts variables so that each comes after all that it depends on, as far as that is among them, and by name
// where that leaves a choice. describe gives a variable's name and what it depends on. What is on a cycle is left out; the
// database has none.
func inUpdateOrder[T comparable](variables []T, describe func(T) (string, []T)) []T {
	waiting := make(map[T]int, len(variables))
	dependents := make(map[T][]T, len(variables))
	for _, v := range variables {
		waiting[v] = 0
	}
	ready := &byName[T]{}
	for _, v := range variables {
		name, needs := describe(v)
		for _, need := range needs {
			if _, among := waiting[need]; among {
				waiting[v]++
				dependents[need] = append(dependents[need], v)
			}
		}
		if waiting[v] == 0 {
			heap.Push(ready, named[T]{name, v})
		}
	}
	order := make([]T, 0, len(variables))
	for ready.Len() > 0 {
		v := heap.Pop(ready).(named[T]).variable
		order = append(order, v)
		for _, d := range dependents[v] {
			if waiting[d]--; waiting[d] == 0 {
				name, _ := describe(d)
				heap.Push(ready, named[T]{name, d})
			}
		}
	}
	return order
}

type named[T any] struct {
	name     string
	variable T
}

// byName is a heap.
type byName[T any] []named[T]

func (h byName[T]) Len() int           { return len(h) }
func (h byName[T]) Less(i, j int) bool { return h[i].name < h[j].name }
func (h byName[T]) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *byName[T]) Push(x any)        { *h = append(*h, x.(named[T])) }
func (h *byName[T]) Pop() any {
	last := len(*h) - 1
	x := (*h)[last]
	*h = (*h)[:last]
	return x
}
