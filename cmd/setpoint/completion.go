package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

const completionLong = `Prints a script that makes a shell complete the command line of setpoint: commands,
flags, and, asked from the server that the line would talk to, the names of sessions
and variables, the versions of a variable, and the ids of optimizations, access rules
and tokens. A server that does not answer within a second completes nothing.

The help of each shell's command tells how to load the script.`

// shell is one that completion scripts are made for.
type shell struct {
	name, title string
	long        string
	example     string
	script      func(root *cobra.Command, w io.Writer, descriptions bool) error
}

var shells = []shell{
	{
		name: "bash", title: "bash",
		long: `Prints the completion script for bash 4.1 or later with the package bash-completion.

In this shell only:

  source <(setpoint completion bash)

In every new one, put the script where bash-completion looks:

  ~/.local/share/bash-completion/completions/setpoint`,
		example: `  source <(setpoint completion bash)
  setpoint completion bash > ~/.local/share/bash-completion/completions/setpoint`,
		script: (*cobra.Command).GenBashCompletionV2,
	},
	{
		name: "zsh", title: "zsh",
		long: `Prints the completion script for zsh. Completion itself has to be on: ~/.zshrc has

  autoload -U compinit; compinit

In this shell only:

  source <(setpoint completion zsh)

In every new one, put the script in a folder of $fpath under the name _setpoint.`,
		example: `  source <(setpoint completion zsh)
  setpoint completion zsh > "${fpath[1]}/_setpoint"`,
		script: func(root *cobra.Command, w io.Writer, descriptions bool) error {
			if descriptions {
				return root.GenZshCompletion(w)
			}
			return root.GenZshCompletionNoDesc(w)
		},
	},
	{
		name: "fish", title: "fish",
		long: `Prints the completion script for fish.

In this shell only:

  setpoint completion fish | source

In every new one, put the script in ~/.config/fish/completions.`,
		example: `  setpoint completion fish | source
  setpoint completion fish > ~/.config/fish/completions/setpoint.fish`,
		script: (*cobra.Command).GenFishCompletion,
	},
	{
		name: "powershell", title: "PowerShell",
		long: `Prints the completion script for PowerShell.

In this shell only, run it; in every new one, let the profile ($PROFILE) run it:

  setpoint completion powershell | Out-String | Invoke-Expression`,
		example: `  setpoint completion powershell | Out-String | Invoke-Expression`,
		script: func(root *cobra.Command, w io.Writer, descriptions bool) error {
			if descriptions {
				return root.GenPowerShellCompletionWithDesc(w)
			}
			return root.GenPowerShellCompletion(w)
		},
	},
}

func newCompletionCommand(c *cli) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "completion",
		Short: "Complete command lines in bash, zsh, fish or PowerShell",
		Long:  completionLong,
		Example: `  source <(setpoint completion bash)
  setpoint completion zsh > "${fpath[1]}/_setpoint"`,
		Args: cobra.ArbitraryArgs,
		RunE: needsSubcommand,
	}
	for _, shell := range shells {
		var plain bool
		child := &cobra.Command{
			Use:     shell.name,
			Short:   "Print the completion script for " + shell.title,
			Long:    shell.long,
			Example: shell.example,
			Args:    takes(),
			RunE: func(cmd *cobra.Command, _ []string) error {
				if err := shell.script(cmd.Root(), c.stdout, !plain); err != nil {
					return fmt.Errorf("write output: %w", err)
				}
				return nil
			},
		}
		child.Flags().BoolVar(&plain, "no-descriptions", false, "complete without saying what each candidate is")
		cmd.AddCommand(child)
	}
	return cmd
}

const (
	// completionPatience is how long a shell waits for the server's answers.
	completionPatience = time.Second
	// maxCandidates is how many names a shell is given; who wants another types more of it.
	maxCandidates = 200
	// recentVersions is how many versions of a variable are offered.
	recentVersions = 50
	// descriptionWidth bounds what is said about a candidate, in columns.
	descriptionWidth = 60
)

// completes offers for each argument what the function of its place finds, and nothing beyond.
func completes(places ...cobra.CompletionFunc) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
		if len(args) >= len(places) {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return places[len(args)](cmd, args, prefix)
	}
}

// completeFiles leaves it to the shell, which knows files best.
func completeFiles(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return nil, cobra.ShellCompDirectiveDefault
}

func completeFolders(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return nil, cobra.ShellCompDirectiveFilterDirs
}

// completeWords offers fixed words.
func completeWords(words ...string) cobra.CompletionFunc {
	return func(_ *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
		var found []string
		for _, word := range words {
			if strings.HasPrefix(word, prefix) {
				found = append(found, word)
			}
		}
		return found, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveKeepOrder
	}
}

// enumWords are what enumList lists.
func enumWords(names map[int32]string, prefix string) []string {
	return strings.Split(enumList(names, prefix), ", ")
}

var completeTypes = completeWords(enumWords(setpointv1.VariableType_name, "VARIABLE_TYPE_")...)

// addCompletions says of flags what their values may be, and that nothing is a file's name unless something says so.
func addCompletions(c *cli, root *cobra.Command) {
	root.CompletionOptions.SetDefaultShellCompDirective(cobra.ShellCompDirectiveNoFileComp)
	known := map[string]cobra.CompletionFunc{
		"output":       completeFormats,
		"depends-on":   c.completeVariables,
		"session":      c.completeSessions,
		"token-file":   completeFiles,
		"ca-cert":      completeFiles,
		"cert":         completeFiles,
		"key":          completeFiles,
		"tls-cert":     completeFiles,
		"tls-key":      completeFiles,
		"client-ca":    completeFiles,
		"from":         completeFiles,
		"out":          completeFiles,
		"on":           c.completeVariables,
		"subject":      c.completeSubjects,
		"permission":   completeWords(enumWords(setpointv1.Permission_name, permissionPrefix)...),
		"access":       completeWords(enumWords(setpointv1.AccessMode_name, accessPrefix)...),
		"kind":         completeWords(enumWords(setpointv1.AuditEventKind_name, auditPrefix)...),
		"only-session": c.completeSessions,
		"type":         completeTypes,
		"change":       completeWords(enumWords(setpointv1.HistoryChange_name, "HISTORY_CHANGE_")...),
		"merge":        completeWords(mergeFail, mergeReplace, mergeKeep),
		"log-level":    completeWords("debug", "info", "warn", "error"),
		"log-format":   completeWords("text", "json"),
		"auth":         completeWords("none", "token", "oidc", "token,oidc"),
		"data-dir":     completeFolders,
		"postgres-bin": completeFolders,
		"dir":          completeFolders,
		"lease":        c.completeLeases,
		"variable":     c.completeVariables,
		"state":        completeWords(enumWords(setpointv1.OptimizationState_name, statePrefix)...),
		"conflict":     completeWords(enumWords(setpointv1.ConflictStrategy_name, "CONFLICT_STRATEGY_")...),
		"direction":    completeWords(enumWords(setpointv1.Direction_name, "DIRECTION_")...),
	}
	var visit func(cmd *cobra.Command)
	visit = func(cmd *cobra.Command) {
		add := func(flag *pflag.Flag) {
			if complete := known[flag.Name]; complete != nil {
				_ = cmd.RegisterFlagCompletionFunc(flag.Name, complete) // fails only for flags that are not there, or done
			}
		}
		cmd.PersistentFlags().VisitAll(add)
		cmd.Flags().VisitAll(add)
		for _, child := range cmd.Commands() {
			visit(child)
		}
	}
	visit(root)
}

// completeFormats offers the formats of output that a command knows.
func completeFormats(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	return completeWords(outputFormats(cmd)...)(cmd, args, prefix)
}

// completionLine is the line that a shell wants completed, as the flag library can read it: a negative VALUE, which it
// would take for a flag, stands there without its sign, for no completion depends on it.
func completionLine(args []string) []string {
	line := slices.Clone(args)
	for i, word := range line[:len(line)-1] {
		if negative.MatchString(word) {
			line[i] = word[1:]
		}
	}
	return line
}

// isCompletion tells whether it is a shell that asks.
func isCompletion(args []string) bool {
	return len(args) > 0 && (args[0] == cobra.ShellCompRequestCmd || args[0] == cobra.ShellCompNoDescRequestCmd)
}

// unquoteUsages takes the quotes from what flags are, which mark for the help what their values are called, and which
// shells would show.
func unquoteUsages(cmd *cobra.Command) {
	unquote := func(flag *pflag.Flag) { _, flag.Usage = pflag.UnquoteUsage(flag) }
	cmd.PersistentFlags().VisitAll(unquote)
	cmd.Flags().VisitAll(unquote)
	for _, child := range cmd.Commands() {
		unquoteUsages(child)
	}
}

// candidate is a name to complete to, and what it is.
type candidate struct{ name, description string }

func (c *cli) completeSessions(cmd *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
	return c.gather(cmd, prefix, func(ctx context.Context, api *client.Client, pattern, token string) (
		[]candidate, string, error,
	) {
		page, err := api.Sessions.ListSessions(ctx,
			&setpointv1.ListSessionsRequest{Pattern: pattern, PageSize: maxCandidates, PageToken: token})
		var found []candidate
		for _, s := range page.GetSessions() {
			found = append(found, candidate{s.GetSessionId(), fmt.Sprintf("%d variables", s.GetVariableCount())})
		}
		return found, page.GetNextPageToken(), err
	})
}

func (c *cli) completeVariables(cmd *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
	return c.gather(cmd, prefix, func(ctx context.Context, api *client.Client, pattern, token string) (
		[]candidate, string, error,
	) {
		page, err := api.Variables.ListVariables(ctx, &setpointv1.ListVariablesRequest{
			SessionId: c.session, Pattern: pattern, PageSize: maxCandidates, PageToken: token})
		var found []candidate
		for _, v := range page.GetVariables() {
			found = append(found, candidate{v.GetName(), typeText(v.GetType()) + " " + valueText(v.GetValue())})
		}
		return found, page.GetNextPageToken(), err
	})
}

// completeDependencies offers what the variable that the first argument names depends on.
func (c *cli) completeDependencies(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	return c.gather(cmd, prefix, func(ctx context.Context, api *client.Client, _, token string) (
		[]candidate, string, error,
	) {
		page, err := api.Dependencies.ListDependencies(ctx, &setpointv1.ListDependenciesRequest{
			SessionId: c.session, Variable: args[0], PageSize: maxCandidates, PageToken: token})
		var found []candidate
		for _, v := range page.GetDependencies() {
			found = append(found, candidate{v.GetName(), typeText(v.GetType())})
		}
		return found, page.GetNextPageToken(), err
	})
}

// completeOptimizations offers the ids of optimizations, the newest first.
func (c *cli) completeOptimizations(cmd *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
	return c.gatherOptimizations(cmd, prefix, nil, func(o *setpointv1.Optimization) string { return o.GetOptimizationId() })
}

// completeLeases offers each LEASE that the caller may see.
func (c *cli) completeLeases(cmd *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
	return c.gatherOptimizations(cmd, prefix, holding, leaseText)
}

// completeOpen offers what is open: each LEASE that the caller may see, and else the id.
func (c *cli) completeOpen(cmd *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
	open := append([]setpointv1.OptimizationState{setpointv1.OptimizationState_OPTIMIZATION_STATE_WAITING}, holding...)
	return c.gatherOptimizations(cmd, prefix, open, func(o *setpointv1.Optimization) string {
		return cmp.Or(leaseText(o), o.GetOptimizationId())
	})
}

// gatherOptimizations offers optimizations in some states, or in all, under the names that a function gives them; none:
// not that one.
func (c *cli) gatherOptimizations(cmd *cobra.Command, prefix string, states []setpointv1.OptimizationState,
	name func(*setpointv1.Optimization) string) ([]string, cobra.ShellCompDirective) {
	found, directive := c.gather(cmd, prefix, func(ctx context.Context, api *client.Client, _, token string) (
		[]candidate, string, error,
	) {
		page, err := api.Optimizations.ListOptimizations(ctx, &setpointv1.ListOptimizationsRequest{
			SessionId: c.session, States: states, PageSize: maxCandidates, PageToken: token})
		var found []candidate
		for _, o := range page.GetOptimizations() {
			if name(o) == "" {
				continue
			}
			found = append(found, candidate{name(o), stateName(o.GetState()) + ", " + namesText(o.GetVariables())})
		}
		return found, page.GetNextPageToken(), err
	})
	return found, directive | cobra.ShellCompDirectiveKeepOrder
}

// completeRules offers the ids of rules that the line has not yet.
func (c *cli) completeRules(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	return c.gatherRules(cmd, prefix, func(r *setpointv1.AccessRule) candidate {
		if slices.Contains(args, r.GetRuleId()) {
			return candidate{}
		}
		on := ""
		if !isForSession(r) {
			on = " on " + r.GetVariable()
		}
		return candidate{r.GetRuleId(), grantText(r) + on}
	})
}

// completeSubjects offers the subjects that rules have already.
func (c *cli) completeSubjects(cmd *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
	var seen []string
	return c.gatherRules(cmd, prefix, func(r *setpointv1.AccessRule) candidate {
		if slices.Contains(seen, r.GetSubject()) {
			return candidate{}
		}
		seen = append(seen, r.GetSubject())
		return candidate{name: r.GetSubject()}
	})
}

// gatherRules offers what a function makes of rules; a candidate without a name is none.
func (c *cli) gatherRules(cmd *cobra.Command, prefix string, as func(*setpointv1.AccessRule) candidate) (
	[]string, cobra.ShellCompDirective,
) {
	found, directive := c.gather(cmd, prefix, func(ctx context.Context, api *client.Client, _, token string) (
		[]candidate, string, error,
	) {
		page, err := api.Access.ListAccessRules(ctx,
			&setpointv1.ListAccessRulesRequest{SessionId: c.session, PageSize: maxCandidates, PageToken: token})
		var found []candidate
		for _, rule := range page.GetRules() {
			if one := as(rule); one.name != "" {
				found = append(found, one)
			}
		}
		return found, page.GetNextPageToken(), err
	})
	return found, directive | cobra.ShellCompDirectiveKeepOrder
}

// completeGrant offers a SUBJECT, and then each PERMISSION that the line has not yet.
func (c *cli) completeGrant(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return c.completeSubjects(cmd, args, prefix)
	}
	left := slices.DeleteFunc(enumWords(setpointv1.Permission_name, permissionPrefix), func(word string) bool {
		return slices.Contains(args[1:], word)
	})
	return completeWords(left...)(cmd, args, prefix)
}

// completeTokens offers the ids of tokens that the line has not yet.
func (c *cli) completeTokens(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	found, directive := c.gather(cmd, prefix, func(ctx context.Context, api *client.Client, _, token string) (
		[]candidate, string, error,
	) {
		page, err := api.Tokens.ListTokens(ctx, &setpointv1.ListTokensRequest{PageSize: maxCandidates, PageToken: token})
		var found []candidate
		for _, t := range page.GetTokens() {
			if !slices.Contains(args, t.GetTokenId()) {
				found = append(found, candidate{t.GetTokenId(), strings.TrimSpace(t.GetPrincipal() + " " + t.GetDescription())})
			}
		}
		return found, page.GetNextPageToken(), err
	})
	return found, directive | cobra.ShellCompDirectiveKeepOrder
}

// completeReport offers a LEASE, and then the variables that are under it, for a value to follow.
func (c *cli) completeReport(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	const directive = cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
	if len(args) == 0 {
		return c.completeLeases(cmd, args, prefix)
	}
	lease, err := parseOptimization(args[0])
	if err != nil || strings.Contains(prefix, "=") {
		return nil, directive
	}
	found, _ := c.gather(cmd, prefix, func(ctx context.Context, api *client.Client, _, _ string) ([]candidate, string, error) {
		o, err := api.Optimizations.GetOptimization(ctx,
			&setpointv1.GetOptimizationRequest{SessionId: c.session, OptimizationId: lease.GetOptimizationId()})
		var found []candidate
		for _, variable := range o.GetVariables() {
			found = append(found, candidate{name: variable + "="})
		}
		return found, "", err
	})
	return found, directive
}

// gather asks the server for names that begin with a prefix, until there are enough or time is up. What fails completes
// nothing, and says nothing: it would land in the middle of somebody's typing.
func (c *cli) gather(cmd *cobra.Command, prefix string,
	list func(ctx context.Context, api *client.Client, pattern, token string) ([]candidate, string, error),
) ([]string, cobra.ShellCompDirective) {
	const directive = cobra.ShellCompDirectiveNoFileComp
	ctx, cancel := context.WithTimeout(cmd.Context(), completionPatience)
	defer cancel()
	api, err := c.connectOnce(cmd)
	if err != nil {
		return nil, directive
	}
	// A * of a name cannot be told from the wildcard, so the pattern ends before the first.
	begin, _, _ := strings.Cut(prefix, "*")
	var found []string
	for token := ""; ; {
		page, next, err := list(ctx, api, begin+"*", token)
		if err != nil {
			return found, directive
		}
		for _, one := range page {
			// A shell would show the name as it is; what it could not show, or would obey, is not offered.
			if strings.HasPrefix(one.name, prefix) && printable(one.name) == one.name {
				found = append(found, describe(one.name, one.description))
			}
			if len(found) == maxCandidates {
				return found, directive
			}
		}
		if next == "" {
			return found, directive
		}
		token = next
	}
}

// completeVersions offers the latest versions of the variable that the first argument names.
func (c *cli) completeVersions(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	const directive = cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveKeepOrder
	ctx, cancel := context.WithTimeout(cmd.Context(), completionPatience)
	defer cancel()
	api, err := c.connectOnce(cmd)
	if err != nil {
		return nil, directive
	}
	page, err := api.History.ListHistory(ctx,
		&setpointv1.ListHistoryRequest{SessionId: c.session, Variable: args[0], PageSize: recentVersions})
	if err != nil {
		return nil, directive
	}
	var found []string
	for _, entry := range page.GetEntries() {
		version := strconv.FormatInt(entry.GetVersion(), 10)
		if strings.HasPrefix(version, prefix) {
			found = append(found, describe(version, valueText(entry.GetValue())))
		}
	}
	return found, directive
}

// completeCommands offers the commands below the one that the arguments name.
func completeCommands(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	parent, rest, err := cmd.Root().Find(args)
	if err != nil || len(rest) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var found []string
	for _, child := range parent.Commands() {
		if !child.Hidden && strings.HasPrefix(child.Name(), prefix) {
			found = append(found, describe(child.Name(), child.Short))
		}
	}
	return found, cobra.ShellCompDirectiveNoFileComp
}

// describe is a candidate as the scripts of the shells read it.
func describe(word, description string) string {
	// What a terminal's line has room for is cut out before it is measured: a value may have megabytes.
	if limit := descriptionWidth * bytesPerColumn; len(description) > limit {
		description = strings.ToValidUTF8(description[:limit], "") + ellipsis
	}
	if description == "" {
		return word
	}
	return cobra.CompletionWithDesc(word, truncate(printable(description), descriptionWidth))
}

// connectOnce is connect for a shell: nobody has the patience for a second attempt.
func (c *cli) connectOnce(cmd *cobra.Command) (*client.Client, error) {
	opts, err := c.clientOptions(cmd)
	if err != nil {
		return nil, err
	}
	made, err := client.Dial(c.addr, append(opts, client.WithoutRetry())...)
	if err != nil {
		return nil, err
	}
	c.client = made
	return made, nil
}
