package door

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/sallyport/sallyport/protocol"
)

// A lateConn holds back what is written after the first flight, so that the
// visitor's Finished and his first request leave together.
type lateConn struct {
	net.Conn
	begun bool
	held  bytes.Buffer
}

func (c *lateConn) Write(p []byte) (int, error) {
	if !c.begun {
		c.begun = true
		return c.Conn.Write(p)
	}
	return c.held.Write(p)
}

// With TLS 1.3 a visitor is done before his certificate was judged and sends
// his first request along. He must read why he may not come in all the same:
// closing a socket with unread bytes sends RST, which makes many kernels drop
// the alert (Linux on loopback keeps it, so the test looks for the RST as well).
func TestAlertOutlivesTheFirstRequest(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.site("door.test", Require, w.proxyTo(hello, nil))
	request := "POST / HTTP/1.1\r\nHost: door.test\r\nContent-Length: 65536\r\n\r\n" + strings.Repeat("a", 64<<10)
	var all sync.WaitGroup // at once: the door waits a second for each of them
	for i := range 30 {
		all.Go(func() {
			tcp, err := net.Dial("tcp", w.addr)
			if err != nil {
				t.Error(err)
				return
			}
			defer tcp.Close()
			late := &lateConn{Conn: tcp}
			c := tls.Client(late, w.clientTLS("door.test", nil, "http/1.1"))
			c.SetDeadline(time.Now().Add(10 * time.Second))
			if err := c.Handshake(); err != nil {
				t.Error(err)
				return
			}
			io.WriteString(c, request)
			tcp.Write(late.held.Bytes())
			if _, err := io.ReadAll(c); alertOf(err) != "certificate required" {
				t.Errorf("visitor %d of 30 reads %v", i, err)
			}
			if _, err := io.Copy(io.Discard, tcp); err != nil {
				t.Errorf("visitor %d of 30: behind the alert came %v", i, err)
			}
		})
	}
	all.Wait()
}

// An earlyHome speaks just enough HTTP/2 to answer a request whose body is
// still open, with a status in trailers as gRPC servers do, and to end no more
// than its own half of the stream.
func earlyHome(t *testing.T) (addr string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ok(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go answerEarly(c)
		}
	}()
	return l.Addr().String()
}

func answerEarly(c net.Conn) {
	defer c.Close()
	io.ReadFull(c, make([]byte, len(http2.ClientPreface)))
	fr := http2.NewFramer(c, c)
	fr.WriteSettings()
	block := func(fields ...string) []byte {
		var b bytes.Buffer
		enc := hpack.NewEncoder(&b)
		for i := 0; i < len(fields); i += 2 {
			enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
		}
		return b.Bytes()
	}
	for {
		f, err := fr.ReadFrame()
		if err != nil {
			return
		}
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				fr.WriteSettingsAck()
			}
		case *http2.HeadersFrame:
			fr.WriteHeaders(http2.HeadersFrameParam{
				StreamID: f.StreamID, EndHeaders: true,
				BlockFragment: block(":status", "200", "content-type", "application/grpc", "trailer", "grpc-status"),
			})
			fr.WriteHeaders(http2.HeadersFrameParam{
				StreamID: f.StreamID, EndHeaders: true, EndStream: true, BlockFragment: block("grpc-status", "16"),
			})
		}
	}
}

// A home may answer, usually with an error, before the visitor has finished
// sending. The answer ends then and there.
func TestAnswerBeforeTheRequestEnds(t *testing.T) {
	w := newWorld(t, nil)
	w.site("grpc.test", None, w.proxyAddr(earlyHome(t), func(b *Backend) { b.Proto = protocol.ProtoH2 }))
	body, more := io.Pipe()
	defer more.Close()
	req, _ := http.NewRequest("POST", "https://grpc.test/some.Service/Call", body)
	c := w.client("grpc.test", nil, true)
	c.Timeout = 3 * time.Second
	res, err := c.Do(req)
	ok(t, err)
	defer res.Body.Close()
	if _, err := io.ReadAll(res.Body); err != nil || res.Trailer.Get("Grpc-Status") != "16" {
		t.Errorf("while the request is open the answer ends with %v, trailers %v", err, res.Trailer)
	}
}

// 103 may carry headers that the final answer must not have either.
func TestEarlyHintsAnnounceNoHTTP3(t *testing.T) {
	w := newWorld(t, nil)
	for _, proto := range []string{protocol.ProtoHTTP1, protocol.ProtoH2} {
		w.site("pub.test", None, w.proxyTo(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
			rw.Header().Set("Alt-Svc", `h3=":443"`)
			rw.Header().Set("Link", "</style.css>; rel=preload")
			rw.WriteHeader(http.StatusEarlyHints)
			io.WriteString(rw, "home")
		}), func(b *Backend) { b.Proto = proto }))
		answer := w.raw("pub.test", nil, "GET / HTTP/1.1\r\nHost: pub.test\r\nConnection: close\r\n\r\n")
		if !strings.HasPrefix(answer, "HTTP/1.1 103 ") || !strings.Contains(answer, "rel=preload") || !strings.Contains(answer, " 200 ") {
			t.Errorf("%s: the hints are lost: %q", proto, answer)
		}
		if strings.Contains(strings.ToLower(answer), "alt-svc") {
			t.Errorf("%s: %q", proto, answer)
		}
	}
}

// A visitor who opens streams only to reset them is cut; one who cancels a
// page full of pictures is not.
func TestRapidReset(t *testing.T) {
	w := newWorld(t, nil)
	w.site("pub.test", None, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	for cancels, want := range map[int]bool{150: false, 5000: true} {
		c, err := w.dial(w.clientTLS("pub.test", nil, "h2"))
		ok(t, err)
		if cut := rapidReset(c, cancels); cut != want {
			t.Errorf("%d cancelled requests: cut %v", cancels, cut)
		}
	}
}

// rapidReset opens and resets n streams, fifty at a time, and reports whether
// the connection was cut.
func rapidReset(c net.Conn, n int) bool {
	io.WriteString(c, http2.ClientPreface)
	fr := http2.NewFramer(c, c)
	fr.WriteSettings()
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for i := range n {
		block.Reset()
		for _, f := range [][2]string{{":method", "GET"}, {":scheme", "https"}, {":authority", "pub.test"}, {":path", "/"}} {
			enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
		}
		id := uint32(2*i + 1)
		fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block.Bytes(), EndStream: true, EndHeaders: true})
		fr.WriteRSTStream(id, http2.ErrCodeCancel)
		if i%50 < 49 {
			continue
		}
		fr.WritePing(false, [8]byte{})
		for acked := false; !acked; {
			f, err := fr.ReadFrame()
			if err != nil {
				return true
			}
			ping, ok := f.(*http2.PingFrame)
			acked = ok && ping.IsAck()
		}
	}
	return false
}

// A settlingConn counts what the door tells it.
type settlingConn struct {
	*net.TCPConn
	settled *atomic.Int32
}

func (c settlingConn) Settled() { c.settled.Add(1) }

// Only a finished handshake makes a visitor more than a stranger.
func TestSettledAfterTheHandshake(t *testing.T) {
	w := newWorld(t, nil)
	w.site("door.test", Require, hello)
	w.site("ask.test", Ask, hello)
	for _, row := range []struct {
		host string
		cert *tls.Certificate
		stop bool // after the hello
		want int32
	}{
		{"door.test", w.phone, false, 1},
		{"door.test", nil, false, 0},
		{"door.test", w.phone, true, 0},
		{"ask.test", nil, false, 1},
		{"other.test", w.phone, false, 0},
	} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		ok(t, err)
		var settled atomic.Int32
		done := make(chan struct{})
		go func() {
			defer close(done)
			if c, err := l.Accept(); err == nil {
				w.door.ServeConn(context.Background(), settlingConn{c.(*net.TCPConn), &settled})
			}
		}()
		tcp, err := net.Dial("tcp", l.Addr().String())
		ok(t, err)
		tcp.SetDeadline(time.Now().Add(5 * time.Second))
		var visitor net.Conn = tcp
		if row.stop {
			visitor = &lateConn{Conn: tcp}
		}
		c := tls.Client(visitor, w.clientTLS(row.host, row.cert, "http/1.1"))
		if c.Handshake() == nil && !row.stop {
			io.WriteString(c, "GET / HTTP/1.1\r\nHost: "+row.host+"\r\nConnection: close\r\n\r\n")
			io.Copy(io.Discard, c)
		}
		tcp.Close()
		<-done
		l.Close()
		if n := settled.Load(); n != row.want {
			t.Errorf("%s, stopped %v: settled %d times, want %d", row.host, row.stop, n, row.want)
		}
	}
}

// Two names below one wildcard share site, policy and mode; a ticket of one is
// worth nothing at the other all the same.
func TestTicketsAreBoundToTheHost(t *testing.T) {
	w := newWorld(t, nil)
	for name, mode := range map[string]Mode{"door": Require, "ask": Ask, "open": None} {
		w.site("*."+name+".test", mode, hello)
		from, to := "a."+name+".test", "b."+name+".test"
		for host, want := range map[string]bool{from: true, to: false} {
			cache := &ticketCache{}
			if _, answer, err := w.visitWith(cache, from, w.phone); statusOf(answer) != 200 || cache.s == nil {
				t.Fatalf("%s: %q, %v", from, answer, err)
			}
			if resumed, answer, err := w.visitWith(cache, host, w.phone); resumed != want || statusOf(answer) != 200 {
				t.Errorf("a ticket of %s at %s: resumed %v, %q, %v", from, host, resumed, answer, err)
			}
		}
	}
}
