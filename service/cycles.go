package service

import (
	"math/big"
	"slices"
)

// cycleSteps bounds the search for the circles to tell; behind it, numbers share one.
const cycleSteps = 2_000_000

// cycles are the numbers that need each other in a circle, each with a shortest one: it begins and ends with the number.
// Past cycleSteps it is one that somebody before was told, and that the number can reach.
func cycles(needs [][]int) map[int][]int {
	reach := closure(needs)
	found := map[int][]int{}
	steps := 0
	for i := range needs {
		if reach[i].Bit(i) == 0 {
			continue
		}
		if steps < cycleSteps {
			found[i] = circle(needs, reach, i, &steps)
			continue
		}
		for j, path := range found {
			if reach[i].Bit(j) == 1 {
				found[i] = path
				break
			}
		}
	}
	return found
}

// closure has for each number the set of those that it needs, directly or not.
func closure(needs [][]int) []*big.Int {
	reach := make([]*big.Int, len(needs))
	for i := range needs {
		reach[i] = new(big.Int)
		for _, need := range needs[i] {
			reach[i].SetBit(reach[i], need, 1)
		}
	}
	for via := range reach { // Warshall's: a thousand numbers take some milliseconds.
		for i := range reach {
			if reach[i].Bit(via) == 1 {
				reach[i].Or(reach[i], reach[via])
			}
		}
	}
	return reach
}

// circle is a shortest way from a number back to itself.
func circle(needs [][]int, reach []*big.Int, start int, steps *int) []int {
	from := make([]int, len(needs))
	for i := range from {
		from[i] = -1
	}
	for next := []int{start}; from[start] < 0; next = next[1:] {
		for _, need := range needs[next[0]] {
			*steps++
			if from[need] < 0 && (need == start || reach[need].Bit(start) == 1) {
				from[need] = next[0]
				next = append(next, need)
			}
		}
	}
	path := []int{start}
	for at := from[start]; at != start; at = from[at] {
		path = append(path, at)
	}
	path = append(path, start)
	slices.Reverse(path)
	return path
}
