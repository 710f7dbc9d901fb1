package service

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
)

// tcpStream is a stream of a tunnel, played by a TCP connection.
type tcpStream struct{ *net.TCPConn }

func (s tcpStream) Reset(protocol.Code) { s.SetLinger(0); s.Close() }

// tcpStreams returns the two ends of one stream.
func tcpStreams(t *testing.T) (relay, agent tcpStream) {
	t.Helper()
	l := listen(t)
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); s.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	return tcpStream{c.(*net.TCPConn)}, tcpStream{s.(*net.TCPConn)}
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// home is a table with its log.
type home struct {
	*Table
	mu  sync.Mutex // guards log
	log bytes.Buffer
}

func (h *home) Write(b []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.log.Write(b)
}

func (h *home) logged() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.log.String()
}

// fakeResolver stands for the home network's multicast DNS.
type fakeResolver map[string]string

func (f fakeResolver) LookupLocal(_ context.Context, name string) (netip.Addr, error) {
	if a, ok := f[name]; ok {
		return netip.MustParseAddr(a), nil
	}
	return netip.Addr{}, errors.New("nobody answered")
}

func newHome(t *testing.T, entries ...Entry) *home {
	t.Helper()
	h := &home{}
	h.Table = NewTable(slog.New(slog.NewTextHandler(h, nil)), fakeResolver{"lamp.local": "127.0.0.1"})
	if err := h.Set(entries); err != nil {
		t.Fatal(err)
	}
	return h
}

var visitorOpen = protocol.Open{
	Service: "x", SNI: "x.example.org",
	Client: netip.MustParseAddrPort("203.0.113.9:50000"), Local: netip.MustParseAddrPort("198.51.100.1:443"),
}

// open has the agent serve one stream and returns the relay's end after the
// Result, and a channel that closes when ServeStream has returned.
func (h *home) open(t *testing.T, ctx context.Context, o protocol.Open) (tcpStream, protocol.Result, <-chan struct{}) {
	t.Helper()
	relay, agent := tcpStreams(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		h.ServeStream(ctx, agent)
	}()
	if err := protocol.WriteOpen(relay, o); err != nil {
		t.Fatal(err)
	}
	r, err := protocol.ReadResult(relay)
	if err != nil {
		t.Fatal(err)
	}
	return relay, r, done
}

// mustGet asks for / as the relay does, over an open stream.
func (h *home) mustGet(t *testing.T, h2 bool) string {
	t.Helper()
	transport := &http.Transport{Protocols: new(http.Protocols), DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		s, r, _ := h.open(t, context.Background(), visitorOpen)
		if r.Code != protocol.CodeOK {
			t.Errorf("result %+v; log:\n%s", r, h.logged())
			return nil, errors.New(r.Reason)
		}
		return s, nil
	}}
	transport.Protocols.SetHTTP1(!h2)
	transport.Protocols.SetUnencryptedHTTP2(h2)
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport}).Get("http://x.example.org/")
	if err != nil {
		t.Fatalf("%v; log:\n%s", err, h.logged())
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

var helloHandler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	who := ""
	if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
		who = " client certificate"
	}
	io.WriteString(w, "hello over "+r.Proto+who)
})

func TestServePlainTargets(t *testing.T) {
	server := httptest.NewUnstartedServer(helloHandler)
	server.Config.Protocols = new(http.Protocols)
	server.Config.Protocols.SetHTTP1(true)
	server.Config.Protocols.SetUnencryptedHTTP2(true)
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	server.Start()
	defer server.Close()
	_, port, _ := net.SplitHostPort(server.Listener.Addr().String())

	socket := filepath.Join(t.TempDir(), "app.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go http.Serve(l, helloHandler)

	for _, tc := range []struct {
		target string
		h2     bool
	}{
		{"127.0.0.1:" + port, false},
		{"http://localhost:" + port, false},
		{"http://Lamp.local:" + port, false}, // by the Resolver
		{"h2c://127.0.0.1:" + port, true},
		{"tcp://127.0.0.1:" + port, false},
		{"unix:" + socket, false},
		{"tcp+unix:" + socket, false},
	} {
		t.Run(tc.target, func(t *testing.T) {
			h := newHome(t, Entry{Name: "x", Target: tc.target})
			want := "hello over HTTP/1.1"
			if tc.h2 {
				want = "hello over HTTP/2.0"
			}
			if got := h.mustGet(t, tc.h2); got != want {
				t.Errorf("got %q", got)
			}
		})
	}
}

func TestServeHalfClose(t *testing.T) {
	l := listen(t)
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		b, _ := io.ReadAll(c) // the reply begins after the visitor's end
		c.Write(bytes.ToUpper(b))
	}()
	h := newHome(t, Entry{Name: "x", Target: "tcp://" + l.Addr().String()})
	s, r, done := h.open(t, t.Context(), visitorOpen)
	if r.Code != protocol.CodeOK {
		t.Fatal(r)
	}
	io.WriteString(s, "question")
	s.CloseWrite()
	if b, err := io.ReadAll(s); err != nil || string(b) != "QUESTION" {
		t.Fatalf("%q, %v", b, err)
	}
	<-done
	if log := h.logged(); strings.Count(log, "\n") != 1 || !strings.Contains(log, "in=8 out=8") || !strings.Contains(log, "client=203.0.113.9:50000") {
		t.Errorf("want one line with the counts, got:\n%s", log)
	}
}

// The relay is told what happened and nothing about the home.
func TestServeRefusals(t *testing.T) {
	down := listen(t)
	downAddr := down.Addr().String()
	down.Close()
	noSocket := filepath.Join(t.TempDir(), "none.sock")
	for _, tc := range []struct {
		name   string
		entry  Entry
		change func(*protocol.Open)
		code   protocol.Code
		log    []string
	}{
		{"refused", Entry{Target: downAddr}, nil, protocol.CodeBackendDown, []string{downAddr, "is the service running"}},
		{"no socket", Entry{Target: "unix:" + noSocket}, nil, protocol.CodeBackendDown, []string{noSocket, "is the service running"}},
		{"not on the network", Entry{Target: "absent.local"}, nil, protocol.CodeBackendDown, []string{"absent.local", "nobody answered", "Multicast DNS"}},
		{"unknown", Entry{Target: downAddr}, func(o *protocol.Open) { o.Service = "other" }, protocol.CodeUnknownService, []string{"service=other", "not offered"}},
		{"too many hops", Entry{Target: downAddr}, func(o *protocol.Open) { o.Hop = protocol.MaxHops + 1 }, protocol.CodeRefused, []string{"relays"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.entry.Name = "x"
			h := newHome(t, tc.entry)
			o := visitorOpen
			if tc.change != nil {
				tc.change(&o)
			}
			s, r, done := h.open(t, t.Context(), o)
			if r.Code != tc.code {
				t.Fatalf("result %+v", r)
			}
			<-done
			if r.Reason == "" || strings.ContainsAny(r.Reason, "./:") {
				t.Errorf("reason %q is empty or tells internals", r.Reason)
			}
			if b, err := io.ReadAll(s); err != nil || len(b) > 0 {
				t.Errorf("after the result: %q, %v", b, err)
			}
			for _, want := range tc.log {
				if !strings.Contains(h.logged(), want) {
					t.Errorf("the log does not say %q:\n%s", want, h.logged())
				}
			}
		})
	}
}

// At the highest hop allowed the stream is served.
func TestServeLastHop(t *testing.T) {
	l := listen(t)
	h := newHome(t, Entry{Name: "x", Target: "tcp://" + l.Addr().String()})
	o := visitorOpen
	o.Hop = protocol.MaxHops
	if _, r, _ := h.open(t, t.Context(), o); r.Code != protocol.CodeOK {
		t.Error(r)
	}
}

func TestServeMalformedOpen(t *testing.T) {
	h := newHome(t, Entry{Name: "x", Target: "127.0.0.1:1"})
	relay, agent := tcpStreams(t)
	io.WriteString(relay, "GET / HTTP/1.1\r\n\r\n")
	h.ServeStream(t.Context(), agent)
	if _, err := io.ReadAll(relay); err == nil {
		t.Error("a malformed open ended cleanly")
	}
	if !strings.Contains(h.logged(), "header") {
		t.Errorf("log: %s", h.logged())
	}
}

// pipeStream is a stream in memory whose deadlines follow virtual time.
type pipeStream struct {
	net.Conn
	reset protocol.Code
}

func (s *pipeStream) CloseWrite() error { return s.Close() }
func (s *pipeStream) Reset(code protocol.Code) {
	s.reset = code
	s.Close()
}

func TestServeSlowOpen(t *testing.T) {
	for _, begin := range []string{"", "\x00"} { // silent; stuck after one byte
		synctest.Test(t, func(t *testing.T) {
			relay, agent := net.Pipe()
			defer relay.Close()
			go io.WriteString(relay, begin)
			s := &pipeStream{Conn: agent}
			start := time.Now()
			NewTable(nil, fakeResolver{}).ServeStream(t.Context(), s)
			if took := time.Since(start); took != openTimeout || s.reset != protocol.CodeTimeout {
				t.Errorf("ended after %v with %v", took, s.reset)
			}
		})
	}
}

// A backend that swallows packets costs the visitor ten seconds, no more.
func TestServeDialTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := NewTable(nil, fakeResolver{})
		table.Dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		if err := table.Set([]Entry{{Name: "x", Target: "10.0.0.1:80"}}); err != nil {
			t.Fatal(err)
		}
		relay, agent := net.Pipe()
		defer relay.Close()
		go table.ServeStream(t.Context(), &pipeStream{Conn: agent})
		start := time.Now()
		protocol.WriteOpen(relay, visitorOpen)
		r, err := protocol.ReadResult(relay)
		if err != nil || r.Code != protocol.CodeBackendDown || r.Reason != "no answer in time" || time.Since(start) != dialTimeout {
			t.Errorf("%+v, %v after %v", r, err, time.Since(start))
		}
	})
}

// Whether the stream is cut by its service's removal or by its session's end,
// neither side may take it for a clean end.
func TestServeCut(t *testing.T) {
	for _, removed := range []bool{true, false} {
		l := listen(t)
		h := newHome(t, Entry{Name: "x", Target: "tcp://" + l.Addr().String()}, Entry{Name: "y", Target: "127.0.0.1:1"})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		s, _, done := h.open(t, ctx, visitorOpen)
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		// A change elsewhere in the table, or of the target, leaves the stream alone.
		if err := h.Set([]Entry{{Name: "x", Target: "127.0.0.1:2"}}); err != nil {
			t.Fatal(err)
		}
		io.WriteString(s, "x")
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		if removed {
			h.Set(nil)
		} else {
			cancel()
		}
		c.SetDeadline(time.Now().Add(20 * time.Second))
		for _, end := range []net.Conn{s, c} {
			if _, err := io.ReadAll(end); !errors.Is(err, syscall.ECONNRESET) {
				t.Fatalf("removed %v: an end saw %v, want a reset", removed, err)
			}
		}
		<-done
	}
}

var (
	_ tunnel.Stream = tcpStream{}
	_ tunnel.Stream = (*pipeStream)(nil)
)

// writePEM writes DER blocks to a file of the test.
