package edge

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
)

// Everybody who is not known gets the same seven bytes, before any TLS.
func TestRefuse(t *testing.T) {
	addr := serve(t, &Server{Router: routed(&Snapshot{
		Hosts:      hosts(t, map[string]Target{"ha.example.org": tlsEcho(t, "ha.example.org")}),
		TunnelName: "k3jq7x", Tunnel: tlsEcho(t, "k3jq7x"), Join: tlsEcho(t, "k3jq7x"),
	})})
	want := []byte{21, 3, 3, 0, 2, 2, 112}
	for name, hello := range map[string][]byte{
		"unknown name":          helloFor(t, "nobody.example.org", "h2"),
		"foreign name":          helloFor(t, "www.example.com"),
		"no name":               helloFor(t, ""),
		"an IP":                 madeHello(sniExt("192.0.2.1")),
		"no host name":          madeHello(sniExt("ha.example.org\x00")),
		"no extensions":         madeHello(),
		"forbidden protocol":    helloFor(t, "ha.example.org", "acme-tls/1"),
		"tunnel at a host":      helloFor(t, "ha.example.org", protocol.ALPN),
		"tunnel at no name":     helloFor(t, "", protocol.ALPN),
		"tunnel name, h2":       helloFor(t, "k3jq7x", "h2"),
		"tunnel name, nothing":  helloFor(t, "k3jq7x"),
		"tunnel name, and more": helloFor(t, "k3jq7x", protocol.ALPN, "h2"),
		"TLS 1.2":               realHello(t, &tls.Config{ServerName: "nobody.example.org", MaxVersion: tls.VersionTLS12}),
		"with early data":       append(helloFor(t, "nobody.example.org"), bytes.Repeat([]byte{23, 3, 3, 0x3f, 0xfb}, 1000)...),
	} {
		// The answer is all there is: no ServerHello, no Certificate, and a
		// clean end (a reset would have eaten the alert).
		if got, err := answer(t, addr, hello); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: got %x, %v", name, got, err)
		}
	}
	// As a client tells it.
	err := tls.Client(dial(t, addr), &tls.Config{ServerName: "nobody.example.org"}).Handshake()
	if err == nil || !strings.Contains(err.Error(), "unrecognized name") {
		t.Errorf("the client says %v", err)
	}
	mustEcho(t, addr, "ha.example.org")
}

// A halfPipe tells when its write side was ended.
type halfPipe struct {
	net.Conn
	ended chan struct{}
}

func (h halfPipe) CloseWrite() error { close(h.ended); return nil }

// After the alert the refusal reads on for a while: closing a socket with
// unread bytes sends RST, and some visitors would then lose the alert.
func TestRefuseLingers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		here, there := net.Pipe()
		conn := halfPipe{here, make(chan struct{})}
		go Refuse{}.HandleConn(t.Context(), &Conn{Conn: conn})
		if _, err := io.ReadFull(there, make([]byte, 7)); err != nil {
			t.Fatal(err)
		}
		<-conn.ended
		start := time.Now()
		for range 10 {
			if _, err := there.Write(make([]byte, 1000)); err != nil {
				t.Fatalf("what the visitor still sends is not read: %v", err)
			}
		}
		if _, err := there.Read(make([]byte, 1)); err != io.EOF || time.Since(start) != lingerTime {
			t.Errorf("a visitor who stays is kept for %v (%v)", time.Since(start), err)
		}
	})
}

// Garbage gets no answer at all, not even an alert.
func TestGarbageGetsNothing(t *testing.T) {
	addr := serve(t, &Server{Router: routed(&Snapshot{Hosts: hosts(t, map[string]Target{"ha.example.org": tlsEcho(t, "ha.example.org")})})})
	for _, sent := range []string{"GET / HTTP/1.1\r\n\r\n", "\x80\x2e\x01\x00\x02\x00\x15\x00\x00", string(madeHello(sniExt("ha.example.org"), sniExt("ha.example.org")))} {
		if got, _ := answer(t, addr, []byte(sent)); len(got) > 0 {
			t.Errorf("%.20q: answered with %x", sent, got)
		}
	}
}

func TestDecoyTCP(t *testing.T) {
	decoy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer decoy.Close()
	got := make(chan []byte, 1)
	go func() {
		conn, err := decoy.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		b, _ := io.ReadAll(conn) // until the visitor's half-close
		conn.Write([]byte("decoy says"))
		got <- b
	}()
	addr := serve(t, &Server{Router: routed(&Snapshot{Default: DecoyTCP{Addr: decoy.Addr().String()}})})
	sent := append(rerecord(helloFor(t, "nobody.example.org"), 99), "and more"...)
	conn := dial(t, addr)
	conn.Write(sent)
	conn.CloseWrite()
	reply, err := io.ReadAll(conn)
	if err != nil || string(reply) != "decoy says" {
		t.Errorf("reply %q, %v", reply, err)
	}
	if b := <-got; !bytes.Equal(b, sent) {
		t.Errorf("the decoy got %d bytes, not the %d that were sent", len(b), len(sent))
	}
}

func TestDecoyTCPDown(t *testing.T) {
	down := func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("connection refused") }
	addr := serve(t, &Server{Router: routed(&Snapshot{Default: DecoyTCP{Addr: "192.0.2.1:443", Dial: down}})})
	if got, err := answer(t, addr, madeHello()); err != nil || !bytes.Equal(got, []byte{21, 3, 3, 0, 2, 2, 112}) {
		t.Errorf("got %x, %v", got, err)
	}
}

func TestDecoyPage(t *testing.T) {
	page := NewDecoyPage(selfSigned(t, "localhost"))
	addr := serve(t, &Server{Router: routed(&Snapshot{
		Hosts:   hosts(t, map[string]Target{"ha.example.org": tlsEcho(t, "ha.example.org")}),
		Default: page,
	})})
	var first string
	for _, name := range []string{"nobody.example.org", "", "www.example.com"} {
		for _, h2 := range []bool{false, true} {
			var names []string
			transport := &http.Transport{
				ForceAttemptHTTP2: h2,
				TLSClientConfig: &tls.Config{ServerName: name, InsecureSkipVerify: true, VerifyConnection: func(s tls.ConnectionState) error {
					names = s.PeerCertificates[0].DNSNames
					return nil
				}},
			}
			client := &http.Client{Transport: transport, Timeout: 10 * time.Second}
			resp, err := client.Get("https://" + addr + "/")
			if err != nil {
				t.Fatalf("%q: %v", name, err)
			}
			body, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			transport.CloseIdleConnections()
			if err != nil || resp.StatusCode != 200 || (resp.ProtoMajor == 2) != h2 {
				t.Errorf("%q: %s over %s, %v", name, resp.Status, resp.Proto, err)
			}
			if first == "" {
				first = string(body)
			}
			if string(body) != first || len(names) != 1 || names[0] != "localhost" {
				t.Errorf("%q: sees %q under %q", name, body, names)
			}
		}
	}
	for _, word := range []string{"sallyport", "example.org", "relay"} {
		if strings.Contains(strings.ToLower(first), word) {
			t.Errorf("the page says %q", word)
		}
	}
}

// pipeStream is a tunnel.Stream over TCP.
type pipeStream struct{ *net.TCPConn }

func (s pipeStream) Reset(protocol.Code) { s.SetLinger(0); s.Close() }

func TestPassthrough(t *testing.T) {
	home, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer home.Close()
	cert := selfSigned(t, "nas.example.org")
	go func() { // the home's own server
		conn, err := home.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		s := tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{cert}})
		io.Copy(s, s)
		s.CloseWrite()
	}()
	open := func(ctx context.Context, c *Conn) (tunnel.Stream, error) {
		if c.Hello.ServerName != "nas.example.org" {
			return nil, errors.New("offline")
		}
		conn, err := net.Dial("tcp", home.Addr().String())
		if err != nil {
			return nil, err
		}
		return pipeStream{conn.(*net.TCPConn)}, nil
	}
	addr := serve(t, &Server{Router: routed(&Snapshot{Hosts: hosts(t, map[string]Target{
		"nas.example.org": Passthrough{Open: open}, "off.example.org": Passthrough{Open: open},
	})})})
	mustEcho(t, addr, "nas.example.org")
	if got, err := answer(t, addr, helloFor(t, "off.example.org")); err != nil || !bytes.Equal(got, []byte{21, 3, 3, 0, 2, 2, 80}) {
		t.Errorf("an offline home answers %x, %v", got, err)
	}
}

func TestCheckDecoy(t *testing.T) {
	tcp := func(s string) net.Addr {
		a, err := net.ResolveTCPAddr("tcp", s)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	tests := []struct {
		addr, own string
		refused   bool
	}{
		{"127.0.0.1:443", "0.0.0.0:443", true},
		{"127.0.0.2:443", "0.0.0.0:443", true},
		{"127.0.0.1:443", "[::]:443", true},
		{"127.0.0.1:https", "[::]:443", true},
		{"localhost:443", "[::]:443", true},
		{"LOCALHOST:443", "127.0.0.1:443", true},
		{"[::1]:443", "[::]:443", true},
		{"[::1]:443", "0.0.0.0:443", true}, // Go listens on both families
		{"[::ffff:127.0.0.1]:443", "127.0.0.1:443", true},
		{"0.0.0.0:443", "127.0.0.1:443", true},
		{"0.0.0.0:443", "[::]:443", true},
		{"[::]:443", "[::1]:443", true},
		{":443", "[::]:443", true},
		{"192.0.2.7:443", "192.0.2.7:443", true},
		{"no-port", "[::]:443", true},
		{"127.0.0.1:0", "[::]:443", true},
		{"127.0.0.1:nonsense", "[::]:443", true},
		{"127.0.0.1:8443", "[::]:443", false},
		{"192.0.2.7:443", "[::]:443", false},
		{"127.0.0.2:443", "127.0.0.1:443", false},
		{"127.0.0.1:443", "192.0.2.7:443", false},
	}
	for _, tt := range tests {
		if err := CheckDecoy(tt.addr, []net.Addr{tcp("127.0.0.1:9"), tcp(tt.own)}); (err != nil) != tt.refused {
			t.Errorf("decoy %s, listening on %s: %v", tt.addr, tt.own, err)
		}
	}
	// Whatever address this machine has.
	local, err := localAddrs()
	if err != nil || len(local) == 0 {
		t.Skipf("this machine's addresses are unknown: %v", err)
	}
	for _, ip := range local {
		if err := CheckDecoy(net.JoinHostPort(ip.String(), "443"), []net.Addr{tcp("[::]:443")}); err == nil {
			t.Errorf("own address %s is taken for another server", ip)
		}
	}
}

// A halfless connection fails to half-close as a socket does whose peer has gone.
type halfless struct{ net.Conn }

func (halfless) CloseWrite() error {
	return &net.OpError{Op: "close", Net: "tcp", Err: os.NewSyscallError("shutdown", syscall.ENOTCONN)}
}

// A decoy that hung up already is a plain end; one that broke off is not.
func TestDecoyTCPGoneAtTheEnd(t *testing.T) {
	for _, broken := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			decoy, far := net.Pipe()
			go io.Copy(io.Discard, far)
			here, there := net.Pipe()
			c := &Conn{Conn: memStream{here}}
			done := make(chan struct{})
			go func() {
				defer close(done)
				DecoyTCP{Dial: func(context.Context, string, string) (net.Conn, error) {
					if broken {
						return memStream{failing{decoy}}, nil
					}
					return halfless{decoy}, nil
				}}.HandleConn(t.Context(), c)
			}()
			there.Close() // the end that is to be passed on
			<-done
			far.Close()
			if err := c.failed(); (err != nil) != broken {
				t.Errorf("broken %v: the log says %v", broken, err)
			}
		})
	}
}

// A failing connection breaks off at once.
type failing struct{ net.Conn }

func (failing) Read([]byte) (int, error) { return 0, syscall.ECONNRESET }

// memStream is a tunnel.Stream in memory. It has no half-close: the end of
// writing is its end.
type memStream struct{ net.Conn }

func (s memStream) CloseWrite() error   { return s.Close() }
func (s memStream) Reset(protocol.Code) { s.Close() }
