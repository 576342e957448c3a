package service_test

import (
	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/authenticate"
	"github.com/setpointdb/setpoint/internal/server"
)

// Servers that tell callers by their tokens.

// byToken has a server tell callers by their tokens.
func byToken(c *server.Config) {
	c.Authentication = authenticate.Config{Modes: []authenticate.Mode{authenticate.Token}}
}

// withTokens is a client of another server on the same database, which tells callers by their tokens.
func (b *bundle) withTokens(options ...client.Option) *tokenClient {
	b.t.Helper()
	if b.tokens == "" {
		b.tokens = b.startServer(byToken)
	}
	other := *b
	other.addr = b.tokens
	return &tokenClient{b, other.dial(options...)}
}

// tokenClient is a client of a server that tells callers by their tokens.
type tokenClient struct {
	b *bundle
	*client.Client
}

// read reads the variable x.
func (c *tokenClient) read() error {
	_, err := c.Variables.GetVariable(c.b.ctx, &setpointv1.GetVariableRequest{SessionId: "s", Variable: "x"})
	return err
}

// token is the secret of a new token.
func (b *bundle) token(req *setpointv1.CreateTokenRequest) string {
	b.t.Helper()
	made, err := b.Tokens.CreateToken(b.ctx, req)
	if err != nil {
		b.t.Fatal(err)
	}
	return made.GetSecret()
}
