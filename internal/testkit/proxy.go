package testkit

import (
	"net/url"
	"strings"
	"testing"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"
)

// Proxy stands between a server and its database, and breaks the network there. Its methods are for one goroutine.
type Proxy struct {
	t     testing.TB
	proxy *toxiproxy.Proxy
}

// NewProxy starts a proxy for the length of the test and returns the URL that leads through it to the database.
func NewProxy(t testing.TB, databaseURL string) (string, *Proxy) {
	t.Helper()
	u, err := url.Parse(databaseURL)
	if err != nil {
		t.Fatalf("testkit: read the database's URL: %v", err)
	}
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	p := &Proxy{t: t, proxy: toxiproxy.NewProxy(server, "database", "127.0.0.1:0", u.Host)}
	if err := p.proxy.Start(); err != nil {
		t.Fatalf("testkit: start the proxy: %v", err)
	}
	t.Cleanup(p.proxy.Stop)
	u.Host = p.proxy.Listen
	return u.String(), p
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

// Restore ends Cut and Blackhole. Connections that lost something are dropped; new ones work.
func (p *Proxy) Restore() {
	p.t.Helper()
	p.proxy.Toxics.ResetToxics(p.t.Context())
	if p.proxy.Enabled {
		return
	}
	if err := p.proxy.Start(); err != nil {
		p.t.Fatalf("testkit: restart the proxy: %v", err)
	}
}
