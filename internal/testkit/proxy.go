package testkit

import (
	"net/url"
	"strings"
	"testing"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"
	"go.uber.org/goleak"
)

// Proxy stands between a server and its database, and breaks the network there. Its methods are for one goroutine.
type Proxy struct {
	t        testing.TB
	server   *toxiproxy.ApiServer
	proxy    *toxiproxy.Proxy
	upstream string
}

// NewProxy starts a proxy for the length of the test and returns the URL that leads through it to the database.
func NewProxy(t testing.TB, databaseURL string) (string, *Proxy) {
	t.Helper()
	u, err := url.Parse(databaseURL)
	if err != nil {
		t.Fatalf("testkit: read the database's URL: %v", err)
	}
	p := &Proxy{t: t, upstream: u.Host, server: toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())}
	p.start("127.0.0.1:0")
	t.Cleanup(func() { p.proxy.Stop() })
	u.Host = p.proxy.Listen
	return u.String(), p
}

func (p *Proxy) start(listen string) {
	p.t.Helper()
	p.proxy = toxiproxy.NewProxy(p.server, "database", listen, p.upstream)
	if err := p.proxy.Start(); err != nil {
		p.t.Fatalf("testkit: start the proxy: %v", err)
	}
}

// Cut drops every connection and refuses new ones.
func (p *Proxy) Cut() { p.proxy.Stop() }

// Blackhole lets every connection stand, new ones too, and loses what is sent either way.
func (p *Proxy) Blackhole() {
	p.t.Helper()
	for _, stream := range []string{"upstream", "downstream"} {
		toxic := `{"name": "` + stream + `", "type": "timeout", "stream": "` + stream + `", "attributes": {"timeout": 0}}`
		if _, err := p.proxy.Toxics.AddToxicJson(strings.NewReader(toxic)); err != nil {
			p.t.Fatalf("testkit: make a black hole: %v", err)
		}
	}
}

// Restore ends Cut and Blackhole: connections that stood are dropped, and new ones work, at the same address. It takes a
// new proxy, because a connection that still sends while its black hole is taken away stays half alive for ever.
func (p *Proxy) Restore() {
	p.t.Helper()
	p.proxy.Stop()
	p.start(p.proxy.Listen)
}

// leaks are goroutines that toxiproxy leaves behind, without harm, for a connection that is cut while it carries data.
func leaks() []goleak.Option {
	const library = "github.com/Shopify/toxiproxy/v2"
	return []goleak.Option{
		goleak.IgnoreAnyFunction(library + "/toxics.(*NoopToxic).Pipe"),
		goleak.IgnoreAnyFunction(library + ".(*ToxicLink).read"),
	}
}
