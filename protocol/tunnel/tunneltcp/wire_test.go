package tunneltcp_test

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/hashicorp/yamux"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
	"github.com/sallyport/sallyport/protocol/tunnel/tunneltcp"
	"github.com/sallyport/sallyport/protocol/tunnel/tunneltest"
)

// A rawPeer is a dialer made by hand from the wire format in the package
// comment, which can do what no honest one does.
type rawPeer struct {
	y       *yamux.Session
	control *yamux.Stream
}

// rawPair returns a hand-made dialer and the listener's session.
func rawPair(t *testing.T) (*rawPeer, tunnel.Session) {
	t.Helper()
	serverTLS, clientTLS := tunneltest.TLS(t)
	clientTLS.NextProtos = []string{protocol.ALPN}
	near, far := tunneltest.MemConn()
	served := make(chan tunnel.Session, 1)
	go func() {
		s, err := tunneltcp.Server(context.Background(), far, serverTLS, tunneltcp.Config{})
		if err != nil {
			t.Error(err)
		}
		served <- s
	}()
	cfg := yamux.DefaultConfig()
	cfg.LogOutput = io.Discard
	y, err := yamux.Client(tls.Client(near, clientTLS), cfg)
	if err != nil {
		t.Fatal(err)
	}
	control, err := y.OpenStream()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := control.Write(data(frame(0, 1, 0))); err != nil {
		t.Fatal(err)
	}
	var hello [4 + 17]byte
	if _, err := io.ReadFull(control, hello[:]); err != nil || string(hello[:]) != string(data(frame(0, 1, 0))) {
		t.Fatalf("hello %x, %v", hello, err)
	}
	s := <-served
	t.Cleanup(func() {
		y.Close()
		s.Close(protocol.CodeOK, "")
	})
	return &rawPeer{y, control}, s
}

func (p *rawPeer) open(t *testing.T, s tunnel.Session, first []byte) (*yamux.Stream, tunnel.Stream) {
	t.Helper()
	x, err := p.y.OpenStream()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := x.Write(first); err != nil {
		t.Fatal(err)
	}
	st, err := s.AcceptStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return x, st
}

func frame(typ byte, stream, value uint64) []byte {
	b := binary.BigEndian.AppendUint64([]byte{typ}, stream)
	return binary.BigEndian.AppendUint64(b, value)
}

func data(p []byte) []byte { return append([]byte{0, 0, byte(len(p) >> 8), byte(len(p))}, p...) }

var (
	end   = []byte{1, 0, 0, 0}
	reset = []byte{2, 0, 0, 4, 0, 0, 0, 5}
	stop  = []byte{3, 0, 0, 4, 0, 0, 0, 6}
)

func TestWire(t *testing.T) {
	readsReset := func(code protocol.Code) func(*testing.T, *yamux.Stream, tunnel.Stream) {
		return func(t *testing.T, _ *yamux.Stream, st tunnel.Stream) {
			_, err := io.ReadAll(st)
			if e, ok := errors.AsType[*tunnel.ResetError](err); !ok || e.Code != code {
				t.Errorf("read: %v, want %v", err, code)
			}
		}
	}
	for _, c := range []struct {
		name  string
		sent  []byte
		fin   bool
		check func(t *testing.T, x *yamux.Stream, st tunnel.Stream)
	}{
		{"data and end", append(data([]byte("hi")), end...), false, func(t *testing.T, x *yamux.Stream, st tunnel.Stream) {
			if got, err := io.ReadAll(st); err != nil || string(got) != "hi" {
				t.Errorf("read %q, %v", got, err)
			}
			st.Write([]byte("yo"))
			st.Close()
			got, err := io.ReadAll(x) // until the FIN, which comes now that both sides ended
			if want := append(data([]byte("yo")), end...); err != nil || string(got) != string(want) {
				t.Errorf("got records %x, %v, want %x", got, err, want)
			}
		}},
		{"reset", append(data([]byte("hi")), reset...), false, readsReset(protocol.CodeBackendTLS)},
		{"FIN without an end", data([]byte("hi")), true, readsReset(protocol.CodeAborted)},
		{"FIN within a record", data([]byte("hi"))[:5], true, readsReset(protocol.CodeAborted)},
		{"unknown record", []byte{9, 0, 0, 0}, false, readsReset(protocol.CodeProtocol)},
		{"reset of a wrong length", []byte{2, 0, 0, 3, 0, 0, 5}, false, readsReset(protocol.CodeProtocol)},
		{"stop", append(data([]byte("hi")), stop...), false, func(t *testing.T, x *yamux.Stream, st tunnel.Stream) {
			time.Sleep(time.Second) // virtual
			_, err := st.Write([]byte("x"))
			if e, ok := errors.AsType[*tunnel.ResetError](err); !ok || e.Code != protocol.CodeRefused || !e.Remote {
				t.Errorf("write: %v", err)
			}
			x.Write(end)
			if got, err := io.ReadAll(st); err != nil || string(got) != "hi" {
				t.Errorf("read %q, %v", got, err)
			}
		}},
		{"stop after end", append(append([]byte{}, end...), stop...), false, func(t *testing.T, x *yamux.Stream, st tunnel.Stream) {
			time.Sleep(time.Second) // virtual
			_, err := st.Write([]byte("x"))
			if e, ok := errors.AsType[*tunnel.ResetError](err); !ok || e.Code != protocol.CodeRefused {
				t.Errorf("write: %v", err)
			}
		}},
		{"misshapen stop after end", append(append([]byte{}, end...), 3, 0, 1, 4, 0, 0, 0, 6), false, func(t *testing.T, x *yamux.Stream, st tunnel.Stream) {
			time.Sleep(time.Second) // virtual
			_, err := st.Write([]byte("x"))
			if e, ok := errors.AsType[*tunnel.ResetError](err); !ok || e.Code != protocol.CodeProtocol {
				t.Errorf("write: %v", err)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			tunneltest.Bubble(t, func(t *testing.T) {
				p, s := rawPair(t)
				x, st := p.open(t, s, c.sent)
				if c.fin {
					x.Close()
				}
				c.check(t, x, st)
				st.Close()
				x.Close()
			})
		})
	}
}

func TestRemoteClose(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		p, s := rawPair(t)
		p.control.Write(data(frame(77, 1, 1))) // unknown: ignored
		p.control.Write(data(append(frame(2, 3, 9), "bye"...)))
		<-s.Done()
		if e, ok := errors.AsType[*tunnel.CloseError](s.Err()); !ok || e.Code != protocol.CodeReplaced || e.Reason != "bye" || !e.Remote {
			t.Errorf("got %v", s.Err())
		}
	})
}

// TestCreditExceeded: a peer that sends more than it may is thrown out before
// it can fill our memory.
func TestCreditExceeded(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		p, s := rawPair(t)
		x, _ := p.open(t, s, data([]byte("x")))
		go func() {
			record := data(make([]byte, 32<<10))
			for {
				if _, err := x.Write(record); err != nil {
					return
				}
			}
		}()
		<-s.Done()
		if e, ok := errors.AsType[*tunnel.CloseError](s.Err()); !ok || e.Code != protocol.CodeProtocol || e.Remote {
			t.Errorf("got %v", s.Err())
		}
		if in := s.Stats().BytesIn; in > 512<<10 {
			t.Errorf("took %d bytes", in)
		}
	})
}

func TestNoHello(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		serverTLS, clientTLS := tunneltest.TLS(t)
		clientTLS.NextProtos = []string{protocol.ALPN}
		near, far := tunneltest.MemConn()
		go tls.Client(near, clientTLS).Handshake()
		s, err := tunneltcp.Server(t.Context(), far, serverTLS, tunneltcp.Config{})
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		<-s.Done()
		if d := time.Since(start); d > 11*time.Second {
			t.Errorf("waited %v for a hello", d)
		}
		near.Close()
	})
}
