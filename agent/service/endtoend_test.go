package service

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
)

// The home's door gets the stream as it is, and nothing is dialled for it.
func TestEndToEnd(t *testing.T) {
	h := newHome(t, Entry{Name: "x", Target: "127.0.0.1:1", TLS: protocol.TLSAgent, Host: "x.example.org"})
	h.Dial = func(context.Context, string, string) (net.Conn, error) {
		t.Error("the backend was dialled before the visitor was through")
		return nil, errors.New("no")
	}
	if err := h.Set([]Entry{{Name: "x", Target: "127.0.0.1:1", TLS: protocol.TLSAgent, Host: "x.example.org"}}); err != nil {
		t.Fatal(err)
	}
	h.EndToEnd = func(_ context.Context, c tunnel.Conn, o protocol.Open) {
		if o != visitorOpen {
			t.Errorf("open %+v", o)
		}
		b, err := io.ReadAll(c)
		if err != nil || string(b) != "hello" {
			t.Errorf("%q, %v", b, err)
		}
		io.WriteString(c, "answer")
		c.Close()
	}
	s, r, done := h.open(t, t.Context(), visitorOpen)
	if r.Code != protocol.CodeOK {
		t.Fatal(r)
	}
	io.WriteString(s, "hello")
	s.CloseWrite()
	if b, err := io.ReadAll(s); err != nil || string(b) != "answer" {
		t.Errorf("%q, %v", b, err)
	}
	<-done
}

// Without a door at home the relay must not get through to the backend.
func TestEndToEndWithoutDoor(t *testing.T) {
	l := listen(t)
	h := newHome(t, Entry{Name: "x", Target: "tcp://" + l.Addr().String(), TLS: protocol.TLSAgent})
	if _, r, _ := h.open(t, t.Context(), visitorOpen); r.Code != protocol.CodeRefused {
		t.Errorf("%+v", r)
	}
}

// A service that goes, or a session that ends, takes its visitors along.
func TestEndToEndCut(t *testing.T) {
	for _, removed := range []bool{true, false} {
		h := newHome(t, Entry{Name: "x", Target: "127.0.0.1:1", TLS: protocol.TLSAgent})
		began := make(chan struct{})
		h.EndToEnd = func(_ context.Context, c tunnel.Conn, _ protocol.Open) {
			close(began)
			io.ReadAll(c)
		}
		ctx, cancel := context.WithCancel(t.Context())
		s, _, done := h.open(t, ctx, visitorOpen)
		<-began
		if removed {
			h.Set(nil)
		} else {
			cancel()
		}
		if _, err := io.ReadAll(s); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("removed %v: the relay saw %v", removed, err)
		}
		<-done
		cancel()
	}
}

// Whom the relay let in does not stay when the home's door is to decide.
func TestEndToEndFromNowOn(t *testing.T) {
	l := listen(t)
	e := Entry{Name: "x", Target: "tcp://" + l.Addr().String()}
	h := newHome(t, e)
	s, _, done := h.open(t, t.Context(), visitorOpen)
	e.TLS = protocol.TLSAgent
	if err := h.Set([]Entry{e}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(s); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the relay saw %v", err)
	}
	<-done
}

func TestEndCode(t *testing.T) {
	for _, tc := range []struct {
		cause error
		want  protocol.Code
	}{
		{context.Canceled, protocol.CodeAborted},
		{&tunnel.CloseError{Code: protocol.CodeRevoked}, protocol.CodeRevoked},
		{&tunnel.CloseError{}, protocol.CodeAborted},
	} {
		if got := endCode(tc.cause); got != tc.want {
			t.Errorf("%v: %v", tc.cause, got)
		}
	}
}

func TestDialBackend(t *testing.T) {
	l := listen(t)
	h := newHome(t, Entry{Name: "x", Target: "tcp://" + l.Addr().String(), TLS: protocol.TLSAgent, ProxyProtocol: true})
	conn, err := h.DialBackend(t.Context(), "x", visitorOpen)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(conn, "GET")
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	b := make([]byte, 28+len("GET"))
	io.ReadFull(c, b)
	src, _, rest, err := decodeProxyV2(b)
	if err != nil || src != visitorOpen.Client || string(rest) != "GET" {
		t.Errorf("%v, %q, %v", src, rest, err)
	}
	if e, ok := h.Entry("x"); !ok || e.Target != "tcp://"+l.Addr().String() {
		t.Errorf("%+v", e)
	}
	if _, ok := h.Entry("y"); ok {
		t.Error("an entry that is not there")
	}
	// It ends with its service, and not cleanly.
	h.Set(nil)
	if _, err := io.ReadAll(c); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the backend saw %v", err)
	}
	conn.Close()
}

// Close is the end of it; what comes later does not concern it.
func TestDialBackendClose(t *testing.T) {
	l := listen(t)
	h := newHome(t, Entry{Name: "x", Target: "tcp://" + l.Addr().String()})
	for _, abort := range []bool{false, true} {
		conn, err := h.DialBackend(t.Context(), "x", visitorOpen)
		if err != nil {
			t.Fatal(err)
		}
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if abort {
			tunnel.Abort(conn, protocol.CodeAborted)
		} else {
			conn.Close()
		}
		c.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := io.ReadAll(c); (err != nil) != abort {
			t.Errorf("abort %v: the backend saw %v", abort, err)
		}
		if conn.(*tied).untie() {
			t.Errorf("abort %v: the connection still waits for its service's end", abort)
		}
	}
}

func TestDialBackendErrors(t *testing.T) {
	down := listen(t)
	downAddr := down.Addr().String()
	down.Close()
	h := newHome(t, Entry{Name: "x", Target: downAddr})
	for name, want := range map[string]protocol.Code{"x": protocol.CodeBackendDown, "y": protocol.CodeUnknownService} {
		_, err := h.DialBackend(t.Context(), name, visitorOpen)
		fault, ok := errors.AsType[*DialError](err)
		if !ok || fault.Code != want || fault.Reason == "" || strings.Contains(fault.Reason, "127.0.0.1") {
			t.Errorf("%s: %+v", name, fault)
		}
		if name == "x" && fault.Fix == "" {
			t.Error("nothing to do about a backend that is down")
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := h.DialBackend(ctx, "x", visitorOpen); err == nil {
		t.Error("dialled after the end")
	}
}

// The PROXY header comes before the visitor's TLS, which passes unread, also
// where the target is written without a scheme.
func TestPassthroughProxyProtocol(t *testing.T) {
	for _, scheme := range []string{"", "https://", "tcp://"} {
		l := listen(t)
		h := newHome(t, Entry{Name: "x", Target: scheme + l.Addr().String(), TLS: protocol.TLSBackend, ProxyProtocol: true, Host: "*.hash.example.org"})
		if svc := h.Services()[0]; !svc.Solo || svc.Proto != protocol.ProtoRaw || svc.Auth != protocol.AuthNone {
			t.Errorf("the relay learns %+v", svc)
		}
		cert := homeCert(t, nil, nil)
		served := make(chan error, 1)
		go func() {
			c, err := l.Accept()
			if err != nil {
				served <- err
				return
			}
			defer c.Close()
			head := make([]byte, 28)
			if _, err := io.ReadFull(c, head); err != nil {
				served <- err
				return
			}
			if src, dst, rest, err := decodeProxyV2(head); err != nil || src != visitorOpen.Client || dst != visitorOpen.Local || len(rest) > 0 {
				t.Errorf("%v → %v, %v", src, dst, err)
			}
			conn := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{cert}})
			_, err = io.Copy(conn, conn)
			conn.CloseWrite()
			served <- err
		}()
		s, r, _ := h.open(t, t.Context(), visitorOpen)
		if r.Code != protocol.CodeOK {
			t.Fatal(r)
		}
		visitor := tls.Client(s, &tls.Config{InsecureSkipVerify: true, ServerName: "a.hash.example.org"})
		io.WriteString(visitor, "secret")
		visitor.CloseWrite()
		if b, err := io.ReadAll(visitor); err != nil || string(b) != "secret" {
			t.Errorf("%q, %v", b, err)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
	}
}
