package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"regexp"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/setpointdb/setpoint/client"
)

// version is set by the linker for a release: -ldflags "-X main.version=v1.2.3".
var version string

// cli is one run of the program: its streams, its environment, and what the global flags say.
type cli struct {
	stdin  io.Reader
	stdout io.Writer
	stderr io.Writer
	getenv func(string) string
	zone   *time.Location
	screen screen

	addr    string
	session string
	as      string
	output  string
	timeout time.Duration
	caller  callerFlags

	began  bool // a command's own work, after flags and arguments were found good
	client *client.Client
}

// run executes one command line and returns the exit status.
func run(ctx context.Context, c *cli, args []string) int {
	root := newRootCommand(c)
	if isCompletion(args) {
		root.SetArgs(completionLine(args))
		unquoteUsages(root)
	} else {
		root.SetArgs(separateNegatives(root, args))
	}
	root.SetIn(c.stdin)
	root.SetOut(c.stdout)
	root.SetErr(c.stderr)
	noteBeginning(root, &c.began)
	cmd, err := root.ExecuteContextC(ctx)
	if c.client != nil {
		_ = c.client.Close() // the answers are in; nothing is lost with the connection
	}
	if err == nil {
		return 0
	}
	return c.fail(cmd, err)
}

const rootLong = `Setpoint keeps the setpoints of programs that tune themselves: typed, constrained,
versioned variables in sessions, behind gRPC and on PostgreSQL. Programs read
them, optimizers take turns to change them, people see who changed what and take
it back.

The client commands (session, var, history, dep, opt, acl, token) talk to the server at
--addr. Their global flags may also come from the environment:

  SETPOINT_ADDR         --addr
  SETPOINT_SESSION      --session
  SETPOINT_TOKEN_FILE   --token-file
  SETPOINT_TOKEN        --token
  SETPOINT_AS           --as
  SETPOINT_TLS          --tls, as true or false
  SETPOINT_CA_CERT      --ca-cert
  SETPOINT_CERT         --cert
  SETPOINT_KEY          --key

A token is who you are: keep it in a file that only you can read, and name that. It is
sent over TLS, or to this machine itself, and nowhere else.

With -o json they print what the server answered, in protobuf's JSON mapping; a
list is one document, however many pages it took. Without, they print for people:
times are local, and values look as 'setpoint var set' takes them.

A command that fails prints one line, "error: REASON: message", on standard error
and exits with status 1 (UNREACHABLE: no server answers). Wrong usage exits with
status 2.

'setpoint completion' makes a shell complete all this; 'setpoint man' writes manual
pages.`

// helpWidth is how many columns help takes.
const helpWidth = 88

const rootExample = `  # register a variable, change it, look back, go back
  setpoint var register temperature float 0.7 --min 0 --max 2
  setpoint var set temperature 0.9 --reason "less repetition"
  setpoint history list temperature
  setpoint history rollback temperature 0`

func newRootCommand(c *cli) *cobra.Command {
	root := &cobra.Command{
		Use:           "setpoint",
		Short:         "Typed, versioned variables for programs that tune themselves",
		Long:          rootLong,
		Example:       rootExample,
		Version:       buildVersion(),
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE:          needsSubcommand,
		Args:          cobra.ArbitraryArgs,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			formats := outputFormats(cmd)
			if last := len(formats) - 1; !slices.Contains(formats, c.output) {
				return usagef("--output is %s or %s, not %q", strings.Join(formats[:last], ", "), formats[last], c.output)
			}
			return nil
		},
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return flagError(err) })
	root.SetVersionTemplate("setpoint {{.Version}}\n")
	root.SetUsageTemplate(strings.ReplaceAll(root.UsageTemplate(), ".FlagUsages ", fmt.Sprintf(".FlagUsagesWrapped %d ", helpWidth)))
	c.addGlobalFlags(root.PersistentFlags())
	root.AddGroup(&cobra.Group{ID: "client", Title: "Client commands:"})
	for _, cmd := range []*cobra.Command{newSessionCommand(c), newVarCommand(c), newHistoryCommand(c), newDepCommand(c),
		newOptCommand(c), newACLCommand(c), newTokenCommand(c)} {
		cmd.GroupID = "client"
		root.AddCommand(cmd)
	}
	root.AddGroup(&cobra.Group{ID: "server", Title: "Server commands:"})
	for _, cmd := range []*cobra.Command{newDevCommand(c), newServeCommand(c), newMigrateCommand(c), newDoctorCommand(c)} {
		cmd.GroupID = "server"
		root.AddCommand(cmd)
	}
	root.AddCommand(newCompletionCommand(c), newManCommand(c), newVersionCommand(c))
	help := newHelpCommand(root)
	root.SetHelpCommand(help)
	root.AddCommand(help) // cobra would only later
	addCompletions(c, root)
	return root
}

// moreFormats is the annotation of a command that knows more formats of output than the others.
const moreFormats = "formats"

// outputFormats are what --output may be of a command.
func outputFormats(cmd *cobra.Command) []string {
	return append([]string{"table", "json"}, strings.Fields(cmd.Annotations[moreFormats])...)
}

func (c *cli) addGlobalFlags(flags *pflag.FlagSet) {
	flags.SortFlags = false
	flags.StringVar(&c.addr, "addr", "127.0.0.1:7420", "server's gRPC `address`")
	flags.StringVar(&c.session, "session", "default", "`session` that variables are in")
	flags.StringVar(&c.as, "as", "", "`principal` to act as, on a server without authentication, as user:ada")
	flags.StringVarP(&c.output, "output", "o", "table", "`format` of the output: table or json")
	flags.DurationVar(&c.timeout, "timeout", client.DefaultTimeout, "`limit` for each call, retries included; 0 is none")
	c.caller.addFlags(flags)
}

func newVersionCommand(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version of this program",
		Long:  "Prints the version of this program. It asks no server.",
		Example: `  setpoint version
  setpoint version -o json`,
		Args: takes(),
		RunE: func(*cobra.Command, []string) error {
			if c.output == "json" {
				_, err := fmt.Fprintf(c.stdout, "{\n  \"version\": %q\n}\n", buildVersion())
				return err
			}
			_, err := fmt.Fprintln(c.stdout, "setpoint", buildVersion())
			return err
		},
	}
}

func buildVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}

// newHelpCommand is cobra's, but an unknown topic is wrong usage.
func newHelpCommand(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND...]",
		Short: "Explain a command",
		Long:  "Explains a command; the same as giving it --help.",
		Example: `  setpoint help
  setpoint help var set`,
		ValidArgsFunction: completeCommands,
		RunE: func(_ *cobra.Command, args []string) error {
			cmd, rest, err := root.Find(args)
			if err != nil || len(rest) > 0 {
				return usagef("no command %q", strings.Join(args, " "))
			}
			cmd.InitDefaultHelpFlag()
			return cmd.Help()
		},
	}
}

// needsSubcommand is the work of a command that only holds others.
func needsSubcommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return cmd.Help()
	}
	message := fmt.Sprintf("unknown command %q for %q", args[0], cmd.CommandPath())
	cmd.SuggestionsMinimumDistance = 2 // cobra's own, where it is cobra that suggests
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		message += ", did you mean " + strings.Join(near, " or ") + "?"
	}
	return usagef("%s", message)
}

// noteBeginning makes every command tell when its own work begins. What fails earlier is a wrong flag or argument, of
// which cobra makes many kinds of errors.
func noteBeginning(cmd *cobra.Command, began *bool) {
	if work := cmd.RunE; work != nil {
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			*began = true
			return work(cmd, args)
		}
	}
	for _, child := range cmd.Commands() {
		noteBeginning(child, began)
	}
}

// takes accepts as many arguments as it names; those in brackets may be left out, and of the last one there may be many
// if it has dots.
func takes(names ...string) cobra.PositionalArgs {
	required, many := 0, false
	for _, name := range names {
		if !strings.HasPrefix(name, "[") {
			required++
		}
		many = strings.Contains(name, "...")
	}
	return func(_ *cobra.Command, args []string) error {
		switch {
		case required <= len(args) && (len(args) <= len(names) || many):
			return nil
		case len(names) == 0:
			return usagef("takes no arguments, not %q", strings.Join(args, " "))
		}
		given := "no arguments"
		if len(args) > 0 {
			given = counted(len(args), "argument", "arguments")
		}
		return usagef("takes %s; %s given", strings.Join(names, " "), given)
	}
}

// usageError is a command line that means nothing; exit status 2.
type usageError struct{ message string }

func (e *usageError) Error() string { return e.message }

func usagef(format string, args ...any) error {
	return &usageError{message: fmt.Sprintf(format, args...)}
}

// flagError is what is wrong with a flag's value without the names of what has read it.
func flagError(err error) error {
	number, isNumber := errors.AsType[*strconv.NumError](err)
	invalid, isValue := errors.AsType[*pflag.InvalidValueError](err)
	if !isNumber || !isValue {
		return err
	}
	flag := "--" + invalid.GetFlag().Name
	if !errors.Is(number.Err, strconv.ErrRange) {
		return usagef("%s %q is no number: %v", flag, invalid.GetValue(), number.Err)
	}
	if invalid.GetFlag().Value.Type() == "int32" {
		return usagef("%s %s is out of range: it is from %d to %d", flag, invalid.GetValue(), math.MinInt32, math.MaxInt32)
	}
	return usagef("%s %s is out of range", flag, invalid.GetValue())
}

// reasonError is a failure of the command line's own that has a name.
type reasonError struct{ reason, message string }

func (e *reasonError) Error() string { return e.message }

// negativeAnswer is the end of a command that has answered no: nothing failed, and there is no more to say.
type negativeAnswer struct{}

func (negativeAnswer) Error() string { return "the answer is no" }

// hintedError adds to an error what could be done about it.
type hintedError struct {
	error
	hint string
}

func (e *hintedError) Unwrap() error { return e.error }

// fail writes the one line about err and returns the exit status.
func (c *cli) fail(cmd *cobra.Command, err error) int {
	var usage *usageError
	if errors.Is(err, negativeAnswer{}) {
		return 1
	}
	if !c.began || errors.As(err, &usage) {
		_, _ = fmt.Fprintf(c.stderr, "error: USAGE: %s; see '%s --help'\n", printable(err.Error()), cmd.CommandPath())
		return 2
	}
	reason, message := c.describe(err)
	var hinted *hintedError
	if errors.As(err, &hinted) {
		message += " (" + hinted.hint + ")"
	}
	_, _ = fmt.Fprintf(c.stderr, "error: %s: %s\n", printable(reason), printable(message))
	return 1
}

func (c *cli) describe(err error) (string, string) {
	var call *client.Error
	var own *reasonError
	switch {
	case errors.As(err, &call) && errors.Is(call, client.ErrUnreachable):
		return call.Name(), c.unreachable(call.Message)
	case errors.As(err, &call):
		message := c.localTimes(call)
		if errors.Is(call, client.ErrCredentialsMissing) {
			message += credentialsHint(call.Message)
		}
		for _, v := range call.Violations {
			if !strings.Contains(message, v.Description) {
				message += fmt.Sprintf("; %s: %s", v.Field, v.Description)
			}
		}
		return call.Name(), message
	case errors.As(err, &own):
		return own.reason, own.message
	case errors.Is(err, context.Canceled):
		return "CANCELLED", err.Error()
	}
	return "FAILED", err.Error()
}

// localTimes is the message of an error with the time in it, if it tells how long somebody has a variable, as all times are
// shown: the server knows no zone but UTC.
func (c *cli) localTimes(call *client.Error) string {
	holder, ok := client.Holder(call)
	if !ok || holder.ExpiresAt.IsZero() {
		return call.Message
	}
	return strings.ReplaceAll(call.Message, call.Metadata["expires_at"], holder.ExpiresAt.In(c.zone).Format(timeLayout))
}

// connect returns the client of this run. It is made on first use, so that wrong usage is found before.
func (c *cli) connect(cmd *cobra.Command) (*client.Client, error) {
	if c.client != nil {
		return c.client, nil
	}
	opts, err := c.clientOptions(cmd)
	if err != nil {
		return nil, err
	}
	made, err := client.Dial(c.addr, opts...)
	if errors.Is(err, client.ErrInsecureToken) {
		return nil, usagef("%v; add --tls or --ca-cert", err)
	} else if err != nil {
		return nil, usagef("%s", strings.Replace(err.Error(), "dial "+c.addr+": cannot read", "cannot read", 1))
	}
	c.client = made
	return made, nil
}

func (c *cli) clientOptions(cmd *cobra.Command) ([]client.Option, error) {
	c.fromEnvironment(cmd)
	opts := []client.Option{client.WithTimeout(c.timeout)}
	if c.timeout < 0 {
		return nil, usagef("--timeout %s is negative", c.timeout)
	}
	if c.as != "" {
		opts = append(opts, client.WithPrincipal(c.as))
	}
	more, err := c.caller.options(cmd, c.getenv)
	return append(opts, more...), err
}

// fromEnvironment fills in what no flag says.
func (c *cli) fromEnvironment(cmd *cobra.Command) {
	fill := func(flag, variable string, target *string) {
		if value := c.getenv(variable); value != "" && !cmd.Flags().Changed(flag) {
			*target = value
		}
	}
	fill("addr", "SETPOINT_ADDR", &c.addr)
	fill("session", "SETPOINT_SESSION", &c.session)
	fill("as", "SETPOINT_AS", &c.as)
}

// negative is what begins like a flag but is a VALUE.
var negative = regexp.MustCompile(`^-(\.?[0-9]|Infinity$)`)

// separateNegatives makes negative numbers work as arguments, as in "setpoint var set x -1 --reason why": the flag
// library would take -1 for a flag. Where there is one, the line is put in the form "COMMAND FLAGS -- ARGUMENTS".
func separateNegatives(root *cobra.Command, line []string) []string {
	cmd, rest, err := root.Find(line)
	if err != nil {
		return line
	}
	inherited := cmd.InheritedFlags()
	var flags, arguments []string
	found := false
	for i := 0; i < len(rest); i++ {
		word := rest[i]
		switch {
		case word == "--":
			arguments = append(arguments, rest[i+1:]...)
			i = len(rest)
		case negative.MatchString(word):
			found = true
			arguments = append(arguments, word)
		case !strings.HasPrefix(word, "-") || word == "-":
			arguments = append(arguments, word)
		default:
			flags = append(flags, word)
			if takesNext(cmd.Flags(), word) || takesNext(inherited, word) {
				flags = append(flags, rest[min(i+1, len(rest)):min(i+2, len(rest))]...)
				i++
			}
		}
	}
	if !found {
		return line
	}
	path := strings.Fields(cmd.CommandPath())[1:]
	return slices.Concat(path, flags, []string{"--"}, arguments)
}

// takesNext tells whether the word after a flag is its value.
func takesNext(flags *pflag.FlagSet, word string) bool {
	if name, long := strings.CutPrefix(word, "--"); long {
		flag := flags.Lookup(name) // "name=value" is not found, and needs no more
		return flag != nil && flag.NoOptDefVal == ""
	}
	// Of several letters only the last one can want the next word, unless one before it takes the rest of this one.
	for i := 1; i < len(word); i++ {
		if word[i] >= 0x80 {
			return false
		}
		flag := flags.ShorthandLookup(word[i : i+1])
		if flag != nil && flag.NoOptDefVal == "" {
			return i == len(word)-1
		}
	}
	return false
}
