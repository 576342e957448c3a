package client

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"sync"
)

// tlsOptions are the options about TLS; with none of them, the connection is in the clear.
type tlsOptions struct {
	wanted            bool
	caFile            string
	given             *tls.Config
	certFile, keyFile string
	certificateGiven  bool
}

// WithTLS connects over TLS, to a server whose certificate is for the name in the address, by an authority of the file
// (PEM, one or more certificates); or, if that is empty, by one that the system trusts. The file is read once, by [Dial].
func WithTLS(caFile string) Option {
	return func(o *options) { o.tls.wanted, o.tls.caFile = true, caFile }
}

// WithClientCertificate shows the server a certificate (PEM, with the intermediate ones behind it) and its key, and connects
// over TLS, as [WithTLS] with an empty name unless that is given too. A server that asks for certificates knows the caller
// by its subject alternative name. The files are read again when they change, each time that a connection is made, so a
// certificate can be renewed while the program runs; while they cannot be read, or do not belong together, the last one is
// shown. [Dial] fails where they are not good to begin with.
func WithClientCertificate(certFile, keyFile string) Option {
	return func(o *options) {
		o.tls.wanted, o.tls.certificateGiven = true, true
		o.tls.certFile, o.tls.keyFile = certFile, keyFile
	}
}

// WithTLSConfig connects over TLS as a configuration says, for what [WithTLS] and [WithClientCertificate] do not reach. It
// takes the place of the file of the one, and goes with the other unless it has certificates of its own. Nil is an empty
// one.
func WithTLSConfig(config *tls.Config) Option {
	if config == nil {
		config = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	return func(o *options) { o.tls.wanted, o.tls.given = true, config }
}

// config returns what to connect with; nil is in the clear.
func (o *tlsOptions) config() (*tls.Config, error) {
	if !o.wanted {
		return nil, nil
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if o.given != nil {
		config = o.given.Clone()
	}
	switch {
	case o.given != nil && o.caFile != "":
		return nil, errors.New("give a TLS configuration or a file of certificate authorities, not both")
	case o.certificateGiven && (len(config.Certificates) > 0 || config.GetClientCertificate != nil):
		return nil, errors.New("give the client certificate in the TLS configuration or by its files, not both")
	}
	if o.caFile != "" {
		pool, err := readAuthorities(o.caFile)
		if err != nil {
			return nil, err
		}
		config.RootCAs = pool
	}
	if o.certificateGiven {
		pair := &keyPair{certFile: o.certFile, keyFile: o.keyFile}
		if _, err := pair.read(); err != nil {
			return nil, err
		}
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return pair.read() }
	}
	return config, nil
}

func readAuthorities(path string) (*x509.CertPool, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, unreadable("certificate authorities", path, err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("cannot read certificate authorities %s: there is no certificate (PEM) in it", path)
	}
	return pool, nil
}

// keyPair is a certificate and its key that may be replaced on disk at any time.
type keyPair struct {
	certFile, keyFile string

	mu                sync.Mutex
	certSeen, keySeen fileStamp
	certificate       *tls.Certificate
}

// read returns the certificate of the files. Where they cannot be read, or one of the two has been replaced and the other
// not yet, it is the last one.
func (p *keyPair) read() (*tls.Certificate, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	certStamp, err := stampOf(p.certFile)
	if err != nil {
		return p.last(err)
	}
	keyStamp, err := stampOf(p.keyFile)
	if err != nil {
		return p.last(err)
	}
	if certStamp.same(p.certSeen) && keyStamp.same(p.keySeen) {
		return p.certificate, nil
	}
	certificate, err := tls.LoadX509KeyPair(p.certFile, p.keyFile)
	if err != nil {
		return p.last(err)
	}
	p.certSeen, p.keySeen, p.certificate = certStamp, keyStamp, &certificate
	return p.certificate, nil
}

func (p *keyPair) last(err error) (*tls.Certificate, error) {
	if p.certificate == nil {
		return nil, fmt.Errorf("read client certificate: %w", err)
	}
	return p.certificate, nil
}
