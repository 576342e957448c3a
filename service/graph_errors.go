package service

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// Refusals of the graph. They name variables, as many as fit: a status has to fit into what clients take as headers.

// namesBytes is how much of names a refusal tells.
const namesBytes = 1 << 10

// wouldCreateCycle refuses an edge. The path begins and ends with the same name, each depending on the next. Of a long one
// the middle is left out: path_omitted names, after the first path_omitted_after.
func wouldCreateCycle(path []string) *Error {
	head, tail := fitting(path[:len(path)/2], namesBytes/2), fittingEnd(path[len(path)/2:], namesBytes/2)
	first, last := path[:head], path[len(path)-tail:]
	message := "variables would depend on each other in a cycle: " + strings.Join(first, " → ")
	left := len(path) - head - tail
	if left > 0 {
		message += fmt.Sprintf(" → (%d more)", left)
	}
	e := refuse(setpointv1.ErrorReason_WOULD_CREATE_CYCLE, message+" → "+strings.Join(last, " → "),
		"path", jsonNames(slices.Concat(first, last)))
	if left > 0 {
		e.Metadata["path_omitted"], e.Metadata["path_omitted_after"] = strconv.Itoa(left), strconv.Itoa(head)
	}
	return e
}

// hasDependentsError refuses to delete a variable.
func hasDependentsError(name string, dependents []string) *Error {
	shown := dependents[:fitting(dependents, namesBytes)]
	list := strings.Join(shown, ", ")
	if left := len(dependents) - len(shown); left > 0 {
		list += fmt.Sprintf(" and %d more", left)
	}
	return refuse(setpointv1.ErrorReason_HAS_DEPENDENTS,
		fmt.Sprintf("%s: others depend on it: %s", name, list), "variable", name, "dependents", jsonNames(shown))
}

// fitting is how many of the names, from the first on, have at most so many bytes together; one at least.
func fitting(names []string, bytes int) int {
	total := 0
	for i, name := range names {
		if total += len(name); total > bytes && i > 0 {
			return i
		}
	}
	return len(names)
}

// fittingEnd is fitting from the last one back.
func fittingEnd(names []string, bytes int) int {
	total := 0
	for i := range names {
		if total += len(names[len(names)-1-i]); total > bytes && i > 0 {
			return i
		}
	}
	return len(names)
}

func jsonNames(names []string) string {
	data, _ := json.Marshal(names) // Strings always marshal.
	return string(data)
}

func tooManyDependencies(name string, most int64) *Error {
	return limitExceeded("dependencies", most, fmt.Sprintf("%s: a variable depends on at most %d others directly", name, most))
}

func dependencyNotFound(dependent, dependency string) *Error {
	return refuse(setpointv1.ErrorReason_DEPENDENCY_NOT_FOUND,
		fmt.Sprintf("%s does not depend on %s", dependent, dependency), "dependent", dependent, "dependency", dependency)
}

// usedByExpression refuses to end a dependency that the dependent is computed from.
func usedByExpression(dependent, dependency string) *Error {
	return refuse(setpointv1.ErrorReason_DERIVED_VARIABLE,
		fmt.Sprintf("the expression of %s uses %s", dependent, dependency), "variable", dependent, "dependency", dependency)
}
