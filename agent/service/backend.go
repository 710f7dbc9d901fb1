package service

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
)

// A backend is an entry made ready to dial. It is never changed.
type backend struct {
	entry   Entry
	service protocol.Service
	target  Target
	tls     *tls.Config // nil: none
	dialer  *dialer

	// gone ends with the service: its connections end then, too.
	gone   context.Context
	remove context.CancelCauseFunc
}

// prepare checks an entry and reads its files.
func prepare(e Entry, d *dialer) (*backend, error) {
	s, target, err := e.parse()
	if err != nil {
		return nil, err
	}
	b := &backend{entry: e, service: s, target: target, dialer: d}
	if target.Scheme == SchemeHTTPS && e.TLS != protocol.TLSBackend {
		if b.tls, err = tlsConfig(e, target); err != nil {
			return nil, fmt.Errorf("service %q: %w", e.Name, err)
		}
	}
	return b, nil
}

func tlsConfig(e Entry, t Target) (*tls.Config, error) {
	c := &tls.Config{
		ServerName:         t.Host,
		NextProtos:         []string{"http/1.1"},
		InsecureSkipVerify: e.InsecureSkipVerify,
		ClientSessionCache: tls.NewLRUClientSessionCache(8),
	}
	if e.ServerName != "" {
		c.ServerName = e.ServerName
	}
	if e.HTTP2 {
		c.NextProtos = []string{"h2"}
	}
	var errs []error
	if e.CAFile != "" {
		certs, err := readCerts(e.CAFile)
		if err != nil {
			errs = append(errs, fmt.Errorf("ca: %w", err))
		} else {
			pin(c, certs)
		}
	}
	if e.ClientCert != "" {
		cert, err := tls.LoadX509KeyPair(e.ClientCert, e.ClientKey)
		if err != nil {
			errs = append(errs, fmt.Errorf("cert: %w", err))
		}
		c.Certificates = []tls.Certificate{cert}
	}
	return c, errors.Join(errs...)
}

func readCerts(file string) (certs []*x509.Certificate, err error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", file, err)
		}
		certs = append(certs, cert)
	}
	if len(certs) == 0 {
		return nil, fmt.Errorf("%s holds no PEM certificate", file)
	}
	return certs, nil
}

// pin makes c trust these certificates only. One that the backend itself shows
// is as good as its key: home devices make theirs with no usable name, and
// many are born expired.
func pin(c *tls.Config, certs []*x509.Certificate) {
	roots := x509.NewCertPool()
	for _, cert := range certs {
		roots.AddCert(cert)
	}
	name := c.ServerName
	c.InsecureSkipVerify = true // VerifyConnection does it, on resumption too
	c.VerifyConnection = func(state tls.ConnectionState) error {
		leaf := state.PeerCertificates[0]
		for _, cert := range certs {
			if bytes.Equal(cert.Raw, leaf.Raw) {
				return nil
			}
		}
		options := x509.VerifyOptions{Roots: roots, DNSName: name, Intermediates: x509.NewCertPool()}
		for _, cert := range state.PeerCertificates[1:] {
			options.Intermediates.AddCert(cert)
		}
		if _, err := leaf.Verify(options); err != nil {
			return &tls.CertificateVerificationError{UnverifiedCertificates: state.PeerCertificates, Err: err}
		}
		return nil
	}
}

// dial connects to the backend, ready for the visitor's first byte. Its error
// is always a *DialError.
func (b *backend) dial(ctx context.Context, o protocol.Open) (tunnel.Conn, error) {
	plain, err := b.dialer.dial(ctx, b.target)
	if err != nil {
		return nil, b.explain(ctx, err)
	}
	conn, err := b.prepareConn(ctx, plain, o)
	if err != nil {
		tunnel.Abort(plain, protocol.CodeAborted)
		return nil, b.explain(ctx, err)
	}
	return conn, nil
}

// prepareConn sends the PROXY header, before any TLS, and makes the handshake.
func (b *backend) prepareConn(ctx context.Context, plain tunnel.Conn, o protocol.Open) (tunnel.Conn, error) {
	if b.entry.ProxyProtocol {
		if deadline, ok := ctx.Deadline(); ok {
			plain.SetWriteDeadline(deadline)
		}
		if _, err := plain.Write(appendProxyHeader(nil, o)); err != nil {
			return nil, fmt.Errorf("write PROXY header: %w", err)
		}
	}
	if b.tls == nil {
		return plain, nil
	}
	conn := tls.Client(plain, b.tls)
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, &handshakeError{err}
	}
	if b.entry.HTTP2 && conn.ConnectionState().NegotiatedProtocol != "h2" {
		return nil, &handshakeError{errNoHTTP2}
	}
	return conn, nil
}

var errNoHTTP2 = errors.New("the backend does not speak HTTP/2")

// A handshakeError says that the backend was reached and its TLS failed.
type handshakeError struct{ error }

func (e *handshakeError) Unwrap() error { return e.error }

// A dialer reaches targets at home.
type dialer struct {
	local   Resolver
	connect func(ctx context.Context, network, address string) (net.Conn, error)
}

// dial connects to a target whose two directions end separately.
func (d *dialer) dial(ctx context.Context, t Target) (tunnel.Conn, error) {
	conn, err := d.open(ctx, t)
	if err != nil {
		return nil, err
	}
	c, ok := conn.(tunnel.Conn)
	if !ok {
		conn.Close()
		return nil, fmt.Errorf("dial %s: a %T cannot end its two directions separately", t, conn)
	}
	return c, nil
}

// open connects to any target.
func (d *dialer) open(ctx context.Context, t Target) (net.Conn, error) {
	network, address := t.dialArgs()
	if t.Unix == "" && t.isLocal() {
		addr, err := d.local.LookupLocal(ctx, t.Host)
		if err != nil {
			return nil, &lookupError{err}
		}
		address = net.JoinHostPort(addr.String(), fmt.Sprint(t.Port))
	}
	conn, err := d.connect(ctx, network, address)
	if err != nil {
		if f, ok := d.local.(forgetter); ok && t.isLocal() {
			f.Forget(t.Host) // it may have moved
		}
		return nil, err
	}
	return conn, nil
}

// A lookupError says that multicast DNS did not find a name.
type lookupError struct{ error }

func (e *lookupError) Unwrap() error { return e.error }
