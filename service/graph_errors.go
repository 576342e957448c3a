package service

import (
	"encoding/json"
	"fmt"
	"strings"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// Refusals of the graph. They name variables, as many as fit: a status has to fit into what clients take as headers.

// namesBytes is how much of names a refusal tells.
const namesBytes = 1 << 10

// wouldCreateCycle refuses an edge. The path begins and ends with the same name, each depending on the next; of a long one
// the middle is left out.
func wouldCreateCycle(path []string) *Error {
	shown := path
	head, tail := fitting(path[:len(path)/2], namesBytes/2), fittingEnd(path[len(path)/2:], namesBytes/2)
	if left := len(path) - head - tail; left > 0 {
		shown = append(append(append([]string{}, path[:head]...), fmt.Sprintf("(%d more)", left)), path[len(path)-tail:]...)
	}
	return refuse(setpointv1.ErrorReason_WOULD_CREATE_CYCLE,
		"variables would depend on each other in a cycle: "+strings.Join(shown, " → "), "path", jsonNames(shown))
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
