package homeca

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sallyport/sallyport/protocol/door"
	"github.com/sallyport/sallyport/protocol/names"
	"github.com/sallyport/sallyport/protocol/pki"
)

const (
	domain = "relay.test"
	own    = "abcdefghijklmnopqrstuvwxyz234567abcdefghijklmnopqrst." + domain
)

// A world is a home with its door on loopback, and its owner at the socket.
type world struct {
	t      *testing.T
	dir    string
	home   *Home
	door   *door.Door
	server *pki.Authority // vouches for the hosts
	addr   string
	port   string
	owner  *Client
	log    *lockedBuffer

	mu   sync.Mutex // guards lost
	lost []string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	if !names.IsAgentLabel(strings.TrimSuffix(own, "."+domain)) {
		t.Fatal("the agent's name has the wrong shape")
	}
	server, err := pki.NewAuthority("server", nil)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, dir: t.TempDir() + "/agent", server: server, log: new(lockedBuffer)}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.addr = l.Addr().String()
	_, port, _ := net.SplitHostPort(w.addr)
	w.port = ":" + port
	w.open()
	var served sync.WaitGroup
	served.Go(func() { w.accept(l, &served) })
	t.Cleanup(func() { l.Close(); w.door.Close(); served.Wait() })
	return w
}

// open opens the home and runs it.
func (w *world) open() {
	w.t.Helper()
	h, err := Open(Config{
		Dir: w.dir, Own: own, Port: w.port, Logger: slog.New(slog.NewTextHandler(w.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Hosts:       func() []string { return []string{"ha." + domain, "nas." + domain, "*.x." + domain} },
		Lost:        w.isLost,
		Certificate: w.certificate,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.home = h
	w.door = w.newDoor()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- h.Run(ctx) }()
	w.t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			w.t.Errorf("Run: %v", err)
		}
		if err := h.Close(); err != nil {
			w.t.Error(err)
		}
	})
	mux := http.NewServeMux()
	mux.Handle(Prefix, h.API())
	w.owner = clientOf(w.t, mux)
}

// clientOf returns a client whose socket a handler answers.
func clientOf(t *testing.T, h http.Handler) *Client {
	t.Helper()
	l := &pipes{conns: make(chan net.Conn), done: make(chan struct{})}
	srv := &http.Server{Handler: h}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	return NewClient("agent.sock", func(ctx context.Context) (net.Conn, error) {
		ours, theirs := net.Pipe()
		select {
		case l.conns <- theirs:
			return ours, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	})
}

func (w *world) isLost(id string) {
	w.mu.Lock()
	w.lost = append(w.lost, id)
	w.mu.Unlock()
	w.door.Disconnect(id)
}

// newDoor is the agent's: the home's own hosts, and two services.
func (w *world) newDoor() *door.Door {
	h := w.home
	sites := map[string]*door.Site{
		own:                     {Mode: door.None, Handler: h.Site()},
		EnrollLabel + "." + own: {Mode: door.None, Handler: h.Site()},
		CheckLabel + "." + own:  {Mode: door.Ask, Handler: h.SelfTest()},
		"ha." + domain:          {Mode: door.Require, Handler: http.HandlerFunc(greet)},
		"nas." + domain:         {Mode: door.Ask, Handler: http.HandlerFunc(greet)},
	}
	for host, s := range sites {
		s.Host, s.Policy, s.Certificate = host, host, w.certificate
	}
	table, err := names.NewTable(sites)
	if err != nil {
		w.t.Fatal(err)
	}
	d, err := door.New(door.Config{Lookup: table.Lookup, ClientCAs: h.Pool(), Check: h.Check, Seen: h.Seen, Denied: h.Denied})
	if err != nil {
		w.t.Fatal(err)
	}
	return d
}

func greet(w http.ResponseWriter, r *http.Request) {
	v, _ := door.VisitorFrom(r.Context())
	io.WriteString(w, "hello "+v.Device.Name)
}

func (w *world) accept(l net.Listener, served *sync.WaitGroup) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		served.Go(func() { w.door.ServeConn(context.Background(), c) })
	}
}

func (w *world) certificate(name string) (*tls.Certificate, error) {
	key, err := pki.NewKey()
	if err != nil {
		return nil, err
	}
	leaf, err := w.server.Issue(key.Public(), pki.Grant{Profile: pki.Server, Name: name, NotAfter: time.Now().Add(24 * time.Hour)})
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}, nil
}

// visitor is somebody's client; with a certificate, or nil.
func (w *world) visitor(cert *tls.Certificate) *http.Client {
	conf := &tls.Config{RootCAs: w.server.Pool()}
	if cert != nil {
		conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	}
	t := &http.Transport{TLSClientConfig: conf, DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, w.addr)
	}}
	w.t.Cleanup(t.CloseIdleConnections)
	return &http.Client{Transport: t}
}

// get returns the status and body of a page; 0 when there was no answer.
func (w *world) get(c *http.Client, url string) (int, string) {
	w.t.Helper()
	res, err := c.Get(url)
	if err != nil {
		return 0, err.Error()
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return res.StatusCode, string(body)
}

// post sends JSON and decodes the answer into out.
func (w *world) post(c *http.Client, url string, in, out any) int {
	w.t.Helper()
	data, err := json.Marshal(in)
	if err != nil {
		w.t.Fatal(err)
	}
	res, err := c.Post(url, "application/json", bytes.NewReader(data))
	if err != nil {
		w.t.Fatal(err)
	}
	defer res.Body.Close()
	if err := json.NewDecoder(res.Body).Decode(out); err != nil {
		w.t.Fatal(err)
	}
	return res.StatusCode
}

// at is the URL of a path at a host.
func (w *world) at(host, path string) string { return "https://" + host + w.port + path }

// root is what a machine is told to trust.
func (w *world) root() []byte { return pki.EncodeCert(w.server.Cert()) }

// request is the answer of the enrolment API.
type request struct {
	ID, State, Name, Words string
	Cert                   []byte
	CA                     [][]byte
}

func (r request) certificate(t *testing.T, key any) *tls.Certificate {
	t.Helper()
	leaf, err := x509.ParseCertificate(r.Cert)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
}

// pipes is a listener of connections in memory.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { p.once.Do(func() { close(p.done) }); return nil }
func (p *pipes) Addr() net.Addr { return net.TCPAddrFromAddrPort(netip.AddrPort{}) }

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
