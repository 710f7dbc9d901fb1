package edge

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"log/slog"
	"math/big"
	"net"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/cryptobyte"

	"github.com/sallyport/sallyport/protocol/names"
)

// realHello returns the bytes that crypto/tls sends first.
func realHello(t testing.TB, config *tls.Config) []byte {
	t.Helper()
	here, there := net.Pipe()
	defer there.Close()
	go func() {
		client := tls.Client(here, config)
		_ = client.Handshake() // fails: nobody answers
		_ = here.Close()
	}()
	header := make([]byte, recordHeader)
	if _, err := io.ReadFull(there, header); err != nil {
		t.Fatal(err)
	}
	body := make([]byte, int(header[3])<<8|int(header[4]))
	if _, err := io.ReadFull(there, body); err != nil {
		t.Fatal(err)
	}
	return append(header, body...)
}

// readAll reads a hello and every byte that came with it.
func readAll(r io.Reader) (Hello, []byte, error) {
	var m messageReader
	msg, err := m.next(r)
	if err != nil {
		return Hello{}, m.raw, err
	}
	h, err := parseHello(msg[messageHeader:])
	return h, m.raw, err
}

func helloFor(t testing.TB, name string, alpn ...string) []byte {
	t.Helper()
	return realHello(t, &tls.Config{ServerName: name, InsecureSkipVerify: true, NextProtos: alpn})
}

// An ext is one extension of a hand-made hello.
type ext struct {
	id   uint16
	data []byte
}

// sniExt returns a server_name extension with host names as they are.
func sniExt(hosts ...string) ext {
	var b cryptobyte.Builder
	b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
		for _, h := range hosts {
			b.AddUint8(0)
			b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes([]byte(h)) })
		}
	})
	return ext{extServerName, b.BytesOrPanic()}
}

// alpnExt returns an ALPN extension.
func alpnExt(protos ...string) ext {
	var b cryptobyte.Builder
	b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
		for _, p := range protos {
			b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes([]byte(p)) })
		}
	})
	return ext{extALPN, b.BytesOrPanic()}
}

// madeHello returns a hello made by hand, in records of full size.
func madeHello(exts ...ext) []byte {
	var b cryptobyte.Builder
	b.AddUint8(typeClientHello)
	b.AddUint24LengthPrefixed(func(b *cryptobyte.Builder) {
		b.AddUint16(tls.VersionTLS12)
		b.AddBytes(make([]byte, 32))
		b.AddUint8LengthPrefixed(func(*cryptobyte.Builder) {})
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddUint16(tls.TLS_AES_128_GCM_SHA256) })
		b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { b.AddUint8(0) })
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
			for _, e := range exts {
				b.AddUint16(e.id)
				b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(e.data) })
			}
		})
	})
	return inRecords(b.BytesOrPanic(), maxRecord)
}

// inRecords puts a handshake message into records of at most size bytes.
func inRecords(msg []byte, size int) []byte {
	var out []byte
	for len(msg) > 0 {
		n := min(size, len(msg))
		out = append(out, recordHandshake, 3, 1, byte(n>>8), byte(n))
		out = append(out, msg[:n]...)
		msg = msg[n:]
	}
	return out
}

// rerecord splits a one-record hello into records of size bytes.
func rerecord(hello []byte, size int) []byte { return inRecords(hello[recordHeader:], size) }

// selfSigned makes a certificate for tests.
func selfSigned(t testing.TB, host string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: host}, DNSNames: []string{host},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// hosts makes a table.
func hosts(t testing.TB, m map[string]Target) *names.Table[Target] {
	t.Helper()
	table, err := names.NewTable(m)
	if err != nil {
		t.Fatal(err)
	}
	return table
}

// tlsEcho terminates TLS as a home's server would, and echoes.
func tlsEcho(t testing.TB, host string) Target {
	config := &tls.Config{Certificates: []tls.Certificate{selfSigned(t, host)}}
	return Named("terminate", TargetFunc(func(_ context.Context, c *Conn) {
		defer c.Close()
		conn := tls.Server(c, config)
		defer conn.Close()
		if err := conn.Handshake(); err != nil {
			c.Fail(err)
			return
		}
		c.Settled()
		_, err := io.Copy(conn, conn)
		c.Fail(err)
	}))
}

// serve runs a server on loopback until the test ends.
func serve(t testing.TB, s *Server) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serveOn(t, s, l)
	return l.Addr().String()
}

// serveOn runs a server until the test ends, or until stop, which waits.
func serveOn(t testing.TB, s *Server, l net.Listener) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// routed returns a router with one snapshot.
func routed(s *Snapshot) *Router {
	r := NewRouter()
	r.Swap(s)
	return r
}

// dial opens a connection that the test closes; nothing in it takes over 10 s.
func dial(t testing.TB, addr string) *net.TCPConn {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return conn.(*net.TCPConn)
}

// answer sends bytes and returns everything that comes back until the end.
func answer(t testing.TB, addr string, send []byte) ([]byte, error) {
	t.Helper()
	conn := dial(t, addr)
	if _, err := conn.Write(send); err != nil {
		t.Fatal(err)
	}
	return io.ReadAll(conn)
}

// within fails the test when f takes too long, instead of hanging with it.
func within(t testing.TB, limit time.Duration, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(limit):
		t.Fatalf("not done after %v", limit)
	}
}

// mustEcho visits a tlsEcho.
func mustEcho(t testing.TB, addr, host string) {
	t.Helper()
	conn := tls.Client(dial(t, addr), &tls.Config{ServerName: host, InsecureSkipVerify: true})
	echoes(t, conn)
	conn.Close()
}

// echoes fails unless what is sent comes back.
func echoes(t testing.TB, conn *tls.Conn) {
	t.Helper()
	if _, err := conn.Write([]byte("ping")); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 4)
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != "ping" {
		t.Fatalf("echo: %q, %v", got, err)
	}
}

// A logBuffer is where a test reads the log.
type logBuffer struct {
	mu   sync.Mutex // guards buf
	buf  bytes.Buffer
	line chan struct{}
}

func newLog() (*logBuffer, *slog.Logger) {
	b := &logBuffer{line: make(chan struct{}, 10000)}
	return b, slog.New(slog.NewTextHandler(b, nil))
}

// wait returns after the next line.
func (b *logBuffer) wait(t testing.TB) {
	t.Helper()
	within(t, 10*time.Second, func() { <-b.line })
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.line <- struct{}{}
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
