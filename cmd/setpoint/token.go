package main

import (
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

const tokenLong = `A server with --auth token knows its callers by tokens. Each has a principal, groups,
and an end if it is given one; it may be narrowed to some permissions and sessions,
beyond which its bearer may do nothing, whatever else is allowed. Who has a token's
secret is its bearer. The server keeps only a hash of it.

Tokens are for server admins. The first one is made offline, against the
database: 'setpoint token create --bootstrap'.

A client shows its token by --token-file, or SETPOINT_TOKEN_FILE.`

func newTokenCommand(c *cli) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "token",
		Short: "Tokens: what callers show to a server that knows them by tokens",
		Long:  tokenLong,
		Example: `  setpoint token create service:trainer-1 --expires 720h --out trainer-1.token
  setpoint token list
  setpoint token revoke tok_06h0lhte3psih41nb5srpr04kk`,
		Args: cobra.ArbitraryArgs,
		RunE: needsSubcommand,
	}
	cmd.AddCommand(newTokenCreateCommand(c), newTokenListCommand(c), newTokenRevokeCommand(c))
	return cmd
}

const tokenCreateLong = `Makes a token for PRINCIPAL, as service:trainer-1 or user:ada, and prints its secret,
once: to standard output the secret alone, and what there is to say about it to
standard error. With --out the secret goes to FILE, which only you can read, and
nowhere else. A file that is there is replaced, as a client wants it that follows
--token-file. With -o json the answer is printed, with the secret in it unless there
is --out.

A token is narrowed by --permission in what it may be used for, and by --only-session in
where: neither allows anything by itself.

--bootstrap makes the first token, and needs no server: it writes to the database, whose
schema has to be migrated, and records that in the audit. Its bearer is a server
admin. Whoever can write to the database can do this at any time; a server's own role
can too.

The command is not repeated where its answer was lost, for each time makes another
token: 'setpoint token list' shows what was made, and 'setpoint token revoke' ends
what nobody has.

INVALID_REQUEST: that is no principal, no group or no time to come. ACCESS_DENIED: you
are no server admin. LIMIT_EXCEEDED: a list is too long.`

func newTokenCreateCommand(c *cli) *cobra.Command {
	f := &tokenFlags{}
	request := &setpointv1.CreateTokenRequest{}
	cmd := &cobra.Command{
		Use:   "create PRINCIPAL",
		Short: "Make a token, and show its secret once",
		Long:  tokenCreateLong,
		Example: `  setpoint token create service:trainer-1 --out /etc/setpoint/trainer-1.token
  setpoint token create user:ada --group group:ops --expires 720h --out ada.token
  setpoint token create service:board --permission observe --only-session 'run-*'
  setpoint token create user:ada --out ada.token -o json | jq -r .token.token_id
  setpoint token create user:root --bootstrap --database-url @db-url --out root.token`,
		Args:              takes("PRINCIPAL"),
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	f.add(cmd, request)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		request.Principal = args[0]
		if err := f.read(c, cmd, request); err != nil {
			return err
		}
		create, err := f.creator(c, cmd, request)
		if err != nil {
			return err
		}
		if f.out == "" {
			answer, err := create()
			if err != nil {
				return err
			}
			return c.printToken(answer)
		}
		return c.writeToken(f.out, create)
	}
	return cmd
}

// tokenFlags are the flags of 'token create' that are not the request's own fields.
type tokenFlags struct {
	permissions []string
	expires     string
	out         string
	bootstrap   bool
	database    *databaseFlag
}

func (f *tokenFlags) add(cmd *cobra.Command, request *setpointv1.CreateTokenRequest) {
	flags := cmd.Flags()
	flags.StringArrayVar(&request.Groups, "group", nil, "`group` that the bearer is in, as group:ops; repeatable")
	addExpiresFlag(cmd, &f.expires)
	flags.StringArrayVar(&f.permissions, "permission", nil,
		"narrow the token to this `permission` and what it includes: read, write, observe, optimize or admin; repeatable")
	flags.StringArrayVar(&request.Sessions, "only-session", nil,
		"narrow the token to sessions whose id is like this `glob`, in which * is any run of characters; repeatable")
	flags.StringVar(&request.Description, "description", "", "`what` it is for, for people")
	flags.StringVar(&f.out, "out", "", "`FILE` to write the secret to, readable by you alone")
	flags.BoolVar(&f.bootstrap, "bootstrap", false, "make a server admin's token, offline, in the database itself")
	f.database = addDatabaseFlag(cmd)
}

// read puts what was given into the request.
func (f *tokenFlags) read(c *cli, cmd *cobra.Command, request *setpointv1.CreateTokenRequest) error {
	given := cmd.Flags().Changed
	switch {
	case given("database-url") && !f.bootstrap:
		return usagef("--database-url is for --bootstrap")
	case given("out") && f.out == "":
		return usagef("--out is the name of a file, and not empty")
	}
	var err error
	if request.Permissions, err = parsePermissions(f.permissions); err != nil {
		return err
	}
	until, err := c.readExpiry(cmd, f.expires)
	switch {
	case err != nil:
		return err
	case until.ttl != nil:
		request.Expiry = &setpointv1.CreateTokenRequest_Ttl{Ttl: until.ttl}
	case until.at != nil:
		request.Expiry = &setpointv1.CreateTokenRequest_ExpiresAt{ExpiresAt: until.at}
	}
	return nil
}

// creator returns what makes the token: a server, or without one, this program.
func (f *tokenFlags) creator(c *cli, cmd *cobra.Command, request *setpointv1.CreateTokenRequest) (
	func() (*setpointv1.CreateTokenResponse, error), error,
) {
	if f.bootstrap {
		url, err := f.database.url(c)
		if err != nil {
			return nil, err
		}
		return func() (*setpointv1.CreateTokenResponse, error) { return bootstrapToken(cmd.Context(), url, request) }, nil
	}
	api, err := c.connect(cmd)
	if err != nil {
		return nil, err
	}
	return func() (*setpointv1.CreateTokenResponse, error) { return api.Tokens.CreateToken(cmd.Context(), request) }, nil
}

// printToken shows a new token. What it is for comes first: should the secret not get through, it is known what to revoke.
func (c *cli) printToken(answer *setpointv1.CreateTokenResponse) error {
	if c.output == "json" {
		return c.print(answer, nil)
	}
	if err := c.noteToken(answer.GetToken(), "its secret, which is not shown again:"); err != nil {
		return err
	}
	return c.print(answer, func() string { return printable(answer.GetSecret()) + "\n" })
}

// writeToken puts the secret of a new token into a file. The file is there before the token is made: a secret that could not
// be written would be lost.
func (c *cli) writeToken(path string, create func() (*setpointv1.CreateTokenResponse, error)) error {
	var answer *setpointv1.CreateTokenResponse
	err := writeFile(path, func(w io.Writer) error {
		made, err := create()
		if err != nil {
			return err
		}
		answer = made
		_, err = io.WriteString(w, answer.GetSecret()+"\n")
		return err
	})
	if err != nil && answer != nil {
		return &hintedError{error: err, hint: fmt.Sprintf("%s was made, and nobody has its secret: revoke it",
			printable(answer.GetToken().GetTokenId()))}
	}
	if err != nil {
		return err
	}
	if c.output == "json" {
		shown := proto.CloneOf(answer)
		shown.Secret = ""
		return c.print(shown, nil)
	}
	return c.noteToken(answer.GetToken(), "its secret is in "+path)
}

// noteToken says on standard error what was made.
func (c *cli) noteToken(t *setpointv1.Token, secret string) error {
	notes := []string{"never ends"}
	if t.GetExpiresAt() != nil {
		notes[0] = "until " + c.timeText(t.GetExpiresAt())
	}
	if len(t.GetGroups()) > 0 {
		notes = append(notes, "in "+namesText(t.GetGroups()))
	}
	if t.GetServerAdmin() {
		notes = append(notes, "a server admin")
	}
	if len(t.GetPermissions()) > 0 {
		notes = append(notes, "narrowed to "+permissionsText(t.GetPermissions()))
	}
	if len(t.GetSessions()) > 0 {
		notes = append(notes, "narrowed to sessions "+namesText(t.GetSessions()))
	}
	if _, err := fmt.Fprintf(c.stderr, "created %s for %s  (%s)\n%s\n", printable(t.GetTokenId()), printable(t.GetPrincipal()),
		strings.Join(notes, "; "), printable(secret)); err != nil {
		return fmt.Errorf("write note: %w", err)
	}
	return nil
}

func newTokenListCommand(c *cli) *cobra.Command {
	request := &setpointv1.ListTokensRequest{}
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List tokens, without their secrets",
		Long: `Lists the tokens that are active, in the order in which they were made; with --all also
those that have expired or were revoked. NARROWED TO is what a token may be used for,
and in which sessions, whatever its bearer may do. SERVER ADMIN is yes where the token
itself makes its bearer one.

ACCESS_DENIED: you are no server admin.`,
		Example: `  setpoint token list
  setpoint token list --principal service:trainer-1 --all
  setpoint token list -o json | jq -r '.tokens[] | select(.expires_at == null) | .token_id'`,
		Args: takes(),
	}
	cmd.Flags().StringVar(&request.Principal, "principal", "", "only tokens of this `principal`")
	cmd.Flags().BoolVar(&request.IncludeEnded, "all", false, "also tokens that have expired or were revoked")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		api, err := c.connect(cmd)
		if err != nil {
			return err
		}
		tokens := list[*setpointv1.Token]{
			field: "tokens",
			noun:  "tokens",
			columns: []column{{title: "TOKEN"}, {title: "PRINCIPAL", long: true}, {title: "GROUPS", long: true}, {title: "NARROWED TO", long: true},
				{title: "SERVER ADMIN"}, {title: "STATUS"}, {title: "EXPIRES"}, {title: "CREATED", spare: 1}, {title: "BY", long: true, spare: 2}, {title: "DESCRIPTION", long: true, spare: 3}},
			row: c.tokenRow,
			fetch: func(token string, size int32) ([]*setpointv1.Token, string, error) {
				request.PageToken, request.PageSize = token, size
				page, err := api.Tokens.ListTokens(cmd.Context(), request)
				return page.GetTokens(), page.GetNextPageToken(), err
			},
		}
		return tokens.run(c, 0)
	}
	return cmd
}

func (c *cli) tokenRow(t *setpointv1.Token) []string {
	expires, admin := "never", absent
	if t.GetExpiresAt() != nil {
		expires = c.timeText(t.GetExpiresAt())
	}
	if t.GetServerAdmin() {
		admin = "yes"
	}
	return []string{printable(t.GetTokenId()), printable(t.GetPrincipal()), orAbsent(namesText(t.GetGroups())),
		orAbsent(narrowedText(t)), admin, tokenStatus(t), expires, c.timeText(t.GetCreatedAt()), printable(t.GetCreatedBy()), orAbsent(printable(t.GetDescription()))}
}

// tokenStatus is whether a token counts: active, expired or revoked.
func tokenStatus(t *setpointv1.Token) string {
	switch {
	case t.GetRevokedAt() != nil:
		return "revoked"
	case t.GetExpiresAt() != nil && !t.GetExpiresAt().AsTime().After(time.Now()):
		return "expired"
	}
	return "active"
}

// narrowedText is what a token is narrowed to.
func narrowedText(t *setpointv1.Token) string {
	var parts []string
	if len(t.GetPermissions()) > 0 {
		parts = append(parts, permissionsText(t.GetPermissions()))
	}
	if len(t.GetSessions()) > 0 {
		parts = append(parts, "in "+namesText(t.GetSessions()))
	}
	return strings.Join(parts, " ")
}

// tokenID is the form of a token's id.
var tokenID = regexp.MustCompile(`^tok_[a-z0-9]{26}$`)

func newTokenRevokeCommand(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:   "revoke ID...",
		Short: "End tokens for good",
		Long: `Ends tokens, one after the other, by the ids that 'setpoint token list' shows: on
every server within 5 s, open streams included. It does not ask, for a token that got
about is to end at once. One that is revoked stays as it is. With -o json it prints
one answer for each.

TOKEN_NOT_FOUND: there is no such token; those before it are revoked. ACCESS_DENIED: you
are no server admin.`,
		Example:           `  setpoint token revoke tok_06h0lhte3psih41nb5srpr04kk tok_06h0lht8cssihvcjo9m2kd04kk`,
		Args:              takes("ID..."),
		ValidArgsFunction: c.completeTokens,
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, id := range args {
				if !tokenID.MatchString(id) {
					// Not the text: who takes a token's secret for its id is not to find it in a log.
					return usagef("a token's id is tok_ and 26 small letters and digits, as 'setpoint token list' shows it")
				}
			}
			api, err := c.connect(cmd)
			if err != nil {
				return err
			}
			for _, id := range args {
				if err := c.revokeToken(cmd, api, id); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

func (c *cli) revokeToken(cmd *cobra.Command, api *client.Client, id string) error {
	token, err := api.Tokens.RevokeToken(cmd.Context(), &setpointv1.RevokeTokenRequest{TokenId: id})
	if err != nil {
		return err
	}
	return c.print(token, func() string {
		return fmt.Sprintf("revoked %s of %s  (%s, by %s)\n", printable(token.GetTokenId()), printable(token.GetPrincipal()),
			c.timeText(token.GetRevokedAt()), printable(token.GetRevokedBy()))
	})
}
