package edge

import (
	"context"
	"crypto/tls"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"time"
)

// decoyHTML is what a stranger reads: a server that somebody set up and forgot.
const decoyHTML = `<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>Welcome</title></head>
<body><h1>Welcome</h1><p>This server is up and running.</p></body>
</html>
`

// DecoyPage shows strangers a page under a certificate that names nobody.
type DecoyPage struct {
	tls    *tls.Config
	server *http.Server
}

// NewDecoyPage returns the page under cert, which certs.RandomCert made.
func NewDecoyPage(cert tls.Certificate) *DecoyPage {
	return &DecoyPage{
		tls: &tls.Config{
			Certificates: []tls.Certificate{cert},
			MinVersion:   tls.VersionTLS12,
			NextProtos:   []string{"h2", "http/1.1"},
		},
		server: &http.Server{
			Handler:           http.HandlerFunc(serveDecoy),
			ReadHeaderTimeout: 10 * time.Second, // of the TLS handshake too
			ReadTimeout:       20 * time.Second,
			WriteTimeout:      20 * time.Second,
			IdleTimeout:       time.Minute,
			MaxHeaderBytes:    16 << 10,
			ErrorLog:          log.New(io.Discard, "", 0), // strangers' mistakes
		},
	}
}

// HandleConn serves the page until the visitor leaves or ctx ends.
func (d *DecoyPage) HandleConn(ctx context.Context, c *Conn) {
	last := &lastConn{Conn: c, closed: make(chan struct{})}
	stop := context.AfterFunc(ctx, func() { _ = last.Close() })
	defer stop()
	// Serve returns when the connection is closed: see oneListener.
	_ = d.server.Serve(&oneListener{conn: tls.Server(last, d.tls), closed: last.closed})
	_ = last.Close()
}

// Kind is "decoy-page".
func (*DecoyPage) Kind() string { return "decoy-page" }

// serveDecoy answers as a server with a single page does.
func serveDecoy(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/" && r.URL.Path != "/index.html" {
		http.NotFound(w, r)
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_, _ = io.WriteString(w, decoyHTML)
}

// A lastConn tells when it is closed.
type lastConn struct {
	*Conn
	once   sync.Once
	closed chan struct{}
}

func (c *lastConn) Close() error {
	err := net.ErrClosed
	c.once.Do(func() {
		err = c.Conn.Close()
		close(c.closed)
	})
	return err
}

// A oneListener yields one connection, and its end after that one's end.
// net/http has no other way to serve a connection that somebody else accepted.
type oneListener struct {
	conn   net.Conn
	given  bool
	closed <-chan struct{}
}

func (l *oneListener) Accept() (net.Conn, error) {
	if !l.given {
		l.given = true
		return l.conn, nil
	}
	<-l.closed
	return nil, net.ErrClosed
}

func (l *oneListener) Close() error   { return nil }
func (l *oneListener) Addr() net.Addr { return l.conn.LocalAddr() }
