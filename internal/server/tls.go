package server

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/setpointdb/setpoint/internal/telemetry"
)

// reloadEvery is the time between looks at the files of certificates.
const reloadEvery = 2 * time.Second

// certificates are the server's certificate and key, and the authorities whose clients it knows, as their files have them. The files
// are read again when they change, so that certificates can be renewed while the server runs; what is wrong, or not yet whole, does
// not count, and what counted before goes on to.
type certificates struct {
	certFile, keyFile, clientCAFile string
	config                          atomic.Pointer[tls.Config]
	// seen is what the files held when they were last read, well or not.
	seen [][]byte
}

// openCertificates reads the files; nil if none are named.
func openCertificates(c Config) (*certificates, error) {
	switch {
	case c.TLSCertFile == "" && c.TLSKeyFile == "" && c.ClientCAFile == "":
		return nil, nil
	case c.TLSCertFile == "" || c.TLSKeyFile == "":
		return nil, errors.New("TLS takes a certificate and its key")
	}
	certs := &certificates{certFile: c.TLSCertFile, keyFile: c.TLSKeyFile, clientCAFile: c.ClientCAFile}
	if _, err := certs.load(); err != nil {
		return nil, err
	}
	return certs, nil
}

// load reads the files, and has what they hold count if it is good; false if it is what was read before.
func (c *certificates) load() (bool, error) {
	var texts [][]byte
	for _, path := range []string{c.certFile, c.keyFile, c.clientCAFile} {
		if path == "" {
			continue
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return c.look(nil), fmt.Errorf("read certificates: %w", err)
		}
		texts = append(texts, text)
	}
	if !c.look(texts) {
		return false, nil
	}
	config, err := c.build(texts)
	if err != nil {
		return true, err
	}
	c.config.Store(config)
	return true, nil
}

// look tells whether what the files hold is new.
func (c *certificates) look(texts [][]byte) bool {
	if c.seen != nil && slices.EqualFunc(c.seen, texts, bytes.Equal) {
		return false
	}
	c.seen = texts
	if texts == nil {
		c.seen = [][]byte{}
	}
	return true
}

func (c *certificates) build(texts [][]byte) (*tls.Config, error) {
	pair, err := tls.X509KeyPair(texts[0], texts[1])
	if err != nil {
		return nil, fmt.Errorf("read the certificate of %s and the key of %s: %w", c.certFile, c.keyFile, err)
	}
	config := &tls.Config{
		MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}, NextProtos: []string{"h2", "http/1.1"},
	}
	if c.clientCAFile == "" {
		return config, nil
	}
	config.ClientCAs = x509.NewCertPool()
	if !config.ClientCAs.AppendCertsFromPEM(texts[2]) {
		return nil, fmt.Errorf("read the authorities of clients: no certificate (PEM) in %s", c.clientCAFile)
	}
	// Who takes a certificate to call is refused by the guard, with a reason, and so health can be looked at without one.
	config.ClientAuth = tls.VerifyClientCertIfGiven
	// A session that was resumed would be one whose certificate an authority has signed that may count no more.
	config.SessionTicketsDisabled = true
	return config, nil
}

// forListener is what listeners are given.
func (c *certificates) forListener() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"},
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return c.config.Load(), nil },
	}
}

// watch reads the files again and again.
func (c *certificates) watch(ctx context.Context, events *telemetry.Events) {
	ticker := time.NewTicker(reloadEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		switch changed, err := c.load(); {
		case changed && err != nil:
			events.CertificatesNotReloaded(ctx, err)
		case changed:
			events.CertificatesReloaded(ctx)
		}
	}
}
