package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// effects are what followed from a change: in it, or after it in the same transaction.
type effects struct {
	recomputed []*setpointv1.RecomputedVariable
	stale      []*setpointv1.StaleVariable
	// omitted: some values are not in the answer.
	omitted bool
}

// hiddenName stands for the name of a variable that the caller may not read.
const hiddenName = "(hidden)"

// visible are the variables that the caller may read, and how many there are besides. One of which there is no id is known by
// its name: a variable may be called so.
func visible[V interface {
	GetVariable() string
	GetVariableId() string
}](variables []V) ([]V, int) {
	var shown []V
	for _, v := range variables {
		if v.GetVariable() != hiddenName || v.GetVariableId() != "" {
			shown = append(shown, v)
		}
	}
	return shown, len(variables) - len(shown)
}

// writeHidden says how many variables of a kind there are besides those that are shown.
func writeHidden(text *strings.Builder, hidden, shown int, what string) {
	switch {
	case hidden > 0 && shown > 0:
		fmt.Fprintf(text, "and %d that you may not read\n", hidden)
	case hidden > 0:
		fmt.Fprintf(text, "\n%s: %s that you may not read\n", what, counted(hidden, "variable", "variables"))
	}
}

// maxEffects is how many variables of each kind are shown unless all are asked for.
const maxEffects = 20

func addAllEffectsFlag(cmd *cobra.Command, all *bool) {
	cmd.Flags().BoolVar(all, "all", false,
		fmt.Sprintf("show all variables that followed, not the first %d of each kind", maxEffects))
}

// effectsText is what followed, below what a command says of the change itself; empty: nothing did.
func (c *cli) effectsText(e effects, all bool) string {
	text := &strings.Builder{}
	c.recomputedText(text, e.recomputed, all)
	c.staleText(text, e.stale, all)
	if e.omitted {
		text.WriteString("some values are too large to show together; 'setpoint history list' has them\n")
	}
	return text.String()
}

func (c *cli) recomputedText(text *strings.Builder, variables []*setpointv1.RecomputedVariable, all bool) {
	variables, hidden := visible(variables)
	defer func() { writeHidden(text, hidden, len(variables), "recomputed") }()
	if len(variables) == 0 {
		return
	}
	shown, rest := firstOf(variables, all)
	t := &table{out: text, width: c.screen.width,
		columns: []column{{title: "RECOMPUTED"}, {title: "VERSION", right: true}, {title: "VALUE", long: true}}}
	for _, v := range shown {
		value := "(not shown)"
		if v.GetValue() != nil {
			value = valueText(v.GetValue())
		}
		t.rows = append(t.rows, []string{printable(v.GetVariable()), strconv.FormatInt(v.GetVersion(), 10), value})
	}
	writePart(text, t, rest)
}

// staleText has a column of errors only where there are some.
func (c *cli) staleText(text *strings.Builder, variables []*setpointv1.StaleVariable, all bool) {
	variables, hidden := visible(variables)
	defer func() { writeHidden(text, hidden, len(variables), "stale") }()
	if len(variables) == 0 {
		return
	}
	shown, rest := firstOf(variables, all)
	failed := false
	for _, v := range shown {
		failed = failed || v.GetError() != ""
	}
	t := &table{out: text, width: c.screen.width, columns: []column{{title: "STALE"}}}
	if failed {
		t.columns = append(t.columns, column{title: "ERROR", long: true})
	}
	for _, v := range shown {
		row := []string{printable(v.GetVariable()), orAbsent(printable(v.GetError()))}
		t.rows = append(t.rows, row[:len(t.columns)])
	}
	writePart(text, t, rest)
}

// firstOf is the part of a list that is shown, and how many more there are.
func firstOf[T any](items []T, all bool) ([]T, int) {
	if all || len(items) <= maxEffects {
		return items, 0
	}
	return items[:maxEffects], len(items) - maxEffects
}

// writePart writes a table with a blank line before it, and how many rows are left out.
func writePart(text *strings.Builder, t *table, rest int) {
	text.WriteByte('\n')
	_ = t.flush() // to memory
	if rest > 0 {
		fmt.Fprintf(text, "and %d more; --all shows them\n", rest)
	}
}
