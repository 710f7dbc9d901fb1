package world

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/coder/websocket"

	"github.com/sallyport/sallyport/protocol/pki"
	"github.com/sallyport/sallyport/relay/admin"
)

// A Phone is a visitor of one relay.
type Phone struct {
	*Machine
	Cert *tls.Certificate // nil: a stranger

	relay    *Relay
	process  *process
	roots    *x509.CertPool
	sessions tls.ClientSessionCache

	mu      sync.Mutex // guards clients
	clients []*http.Transport
}

// Stranger makes a phone without a certificate. It knows the relay's root, as
// everybody knows those of public CAs.
func (r *Relay) Stranger() *Phone {
	r.w.T.Helper()
	p := &Phone{Machine: r.w.machine("stranger"), relay: r, roots: r.roots(), sessions: tls.NewLRUClientSessionCache(32)}
	p.process = p.current
	r.w.atEnd(p.hangUp)
	return p
}

// Phone makes a phone with a device certificate for a year.
func (r *Relay) Phone(name string) *Phone {
	r.w.T.Helper()
	return r.PhoneUntil(name, time.Time{})
}

// PhoneUntil makes a phone whose rights end then.
func (r *Relay) PhoneUntil(name string, until time.Time) *Phone {
	r.w.T.Helper()
	p := r.Stranger()
	p.Name = name
	key, err := pki.NewKey()
	if err != nil {
		r.w.T.Fatal(err)
	}
	csr, err := pki.NewCSR(key)
	if err != nil {
		r.w.T.Fatal(err)
	}
	var issued admin.IssuedDevice
	r.command("devices", admin.DeviceRequest{Name: name, CSR: csr, Until: until}, &issued)
	leaf, err := x509.ParseCertificate(issued.Cert)
	if err != nil {
		r.w.T.Fatal(err)
	}
	p.Cert = &tls.Certificate{Certificate: [][]byte{issued.Cert}, PrivateKey: key, Leaf: leaf}
	return p
}

// TLS is the phone's TLS configuration.
func (p *Phone) TLS(host string, protos ...string) *tls.Config {
	c := &tls.Config{
		ServerName: host, RootCAs: p.roots, Time: p.w.Now, NextProtos: protos, ClientSessionCache: p.sessions,
	}
	if p.Cert != nil {
		c.Certificates = []tls.Certificate{*p.Cert}
	}
	return c
}

// Trust adds the root of a home that makes its own certificates.
func (p *Phone) Trust(pem string) {
	p.w.T.Helper()
	p.roots = p.roots.Clone()
	if !p.roots.AppendCertsFromPEM([]byte(pem)) {
		p.w.T.Fatalf("no root in %q", pem)
	}
}

// DialECH is Dial with an encrypted hello.
func (p *Phone) DialECH(host string, configs []byte) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	raw, err := p.process.dialTCP(ctx, "tcp", net.JoinHostPort(host, "443"))
	if err != nil {
		return nil, err
	}
	conf := p.TLS(host, "h2")
	conf.MinVersion, conf.EncryptedClientHelloConfigList, conf.ClientSessionCache = tls.VersionTLS13, configs, nil
	c := tls.Client(raw, conf)
	if err := c.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, err
	}
	return c, nil
}

// DialPlain opens a TCP connection to a port of the relay.
func (p *Phone) DialPlain(port uint16) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return p.process.dialTCP(ctx, "tcp", netip.AddrPortFrom(p.relay.Addr, port).String())
}

// UDP opens a socket, and returns it with the address of a port of the relay.
func (p *Phone) UDP(port uint16) (net.PacketConn, net.Addr) {
	p.w.T.Helper()
	c, err := p.process.listenUDP(":0")
	if err != nil {
		p.w.T.Fatal(err)
	}
	return c, net.UDPAddrFromAddrPort(netip.AddrPortFrom(p.relay.Addr, port))
}

// DialAt is Dial by a way of its own: a door on a home network.
func (p *Phone) DialAt(addr, host string, protos ...string) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	raw, err := p.process.dialTCP(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	c := tls.Client(raw, p.TLS(host, protos...))
	if err := c.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, err
	}
	return c, nil
}

// Dial opens a TLS connection and completes the handshake. In TLS 1.3 a
// server's refusal of the client arrives later, with the first Read.
func (p *Phone) Dial(host string, protos ...string) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	raw, err := p.process.dialTCP(ctx, "tcp", net.JoinHostPort(host, "443"))
	if err != nil {
		return nil, err
	}
	c := tls.Client(raw, p.TLS(host, protos...))
	if err := c.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, err
	}
	return c, nil
}

// Client returns an HTTP client with connections of its own.
func (p *Phone) Client(http2 bool) *http.Client {
	t := &http.Transport{
		DialContext: p.process.dialTCP, TLSClientConfig: p.TLS(""), Protocols: new(http.Protocols),
	}
	t.Protocols.SetHTTP1(!http2)
	t.Protocols.SetHTTP2(http2)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clients = append(p.clients, t)
	return &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

func (p *Phone) hangUp() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.process.kill()
	for _, t := range p.clients {
		t.CloseIdleConnections()
	}
}

// A Reply is an answer that was read to its end.
type Reply struct {
	Status int
	Proto  string
	Header http.Header
	Body   string
}

// Get asks over a new HTTP/2 connection, and gives up after 20 s.
func (p *Phone) Get(url string) (Reply, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	client := p.Client(true)
	defer client.CloseIdleConnections()
	res, err := p.open(ctx, client, url)
	if err != nil {
		return Reply{}, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	return Reply{res.StatusCode, res.Proto, res.Header, string(body)}, err
}

// Visits reports whether Get succeeds now.
func (p *Phone) Visits(url string) bool {
	r, err := p.Get(url)
	return err == nil && r.Status == http.StatusOK
}

// Open begins a download over a connection of its own. Closing the body ends it.
func (p *Phone) Open(url string, http2 bool) (*http.Response, error) {
	return p.open(context.Background(), p.Client(http2), url)
}

func (p *Phone) open(ctx context.Context, client *http.Client, url string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	return client.Do(req)
}

// WebSocket opens one.
func (p *Phone) WebSocket(url string) (*websocket.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	c, _, err := websocket.Dial(ctx, url, &websocket.DialOptions{HTTPClient: p.Client(false)})
	if err == nil {
		p.w.atEnd(func() { c.CloseNow() })
	}
	return c, err
}

// A Watch reads one connection in the background and knows how it ended.
type Watch struct {
	What string

	mu    sync.Mutex // guards the fields below
	bytes int64
	err   error
	at    time.Time
	done  chan struct{}
}

// Watch reads r until it ends.
func (w *World) Watch(what string, r io.Reader) *Watch {
	h := &Watch{What: what, done: make(chan struct{})}
	w.wg.Go(func() {
		defer close(h.done)
		buf := make([]byte, 4096)
		for {
			n, err := r.Read(buf)
			h.mu.Lock()
			h.bytes += int64(n)
			if err != nil {
				h.err, h.at = err, time.Now()
			}
			h.mu.Unlock()
			if err != nil {
				return
			}
		}
	})
	return h
}

// Bytes is how much came so far.
func (h *Watch) Bytes() int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.bytes
}

// Ended returns the error that ended it; nil while it lives.
func (h *Watch) Ended() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.err
}

// Cut checks that the connection ended by itself within limit of since, and
// not in a way that a visitor could take for the end of the data.
func (h *Watch) Cut(since time.Time, limit time.Duration) error {
	select {
	case <-h.done:
	case <-time.After(time.Until(since.Add(limit + time.Nanosecond))):
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.err == nil:
		return fmt.Errorf("%s: still open after %v", h.What, limit)
	case errors.Is(h.err, io.EOF):
		return fmt.Errorf("%s: ended as if all were there", h.What)
	case h.at.Sub(since) > limit:
		return fmt.Errorf("%s: cut after %v, not within %v", h.What, h.at.Sub(since), limit)
	}
	return nil
}

// After returns how long after since it ended.
func (h *Watch) After(since time.Time) time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.at.Sub(since).Round(time.Millisecond)
}

// Renew asks for the next certificate of this device, as the renewal page
// does, with a PKCS#10 request (DER). It returns the certificate (DER).
func (p *Phone) Renew(csr []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	body, err := json.Marshal(map[string][]byte{"csr": csr})
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://check."+p.relay.Domain+"/api/renew", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	client := p.Client(true)
	defer client.CloseIdleConnections()
	res, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	var answer struct {
		Cert  []byte
		Error string
	}
	if err := json.NewDecoder(res.Body).Decode(&answer); err != nil || answer.Error != "" {
		return nil, fmt.Errorf("renew: %s: %s, %v", res.Status, answer.Error, err)
	}
	return answer.Cert, nil
}
