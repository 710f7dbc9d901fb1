package ports

import (
	"errors"
	"io"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
	"github.com/sallyport/sallyport/protocol/tunnel/tunneltest"
)

func (w *world) tcp(t *testing.T) *fakeListener {
	t.Helper()
	w.set(t, tcpRoute("ssh", 2222))
	return w.listener(2222)
}

// Bytes go both ways, and each direction ends by itself.
func TestTCP(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, Limits{})
		c := w.tcp(t).dial()
		io.WriteString(c, "hello")
		c.CloseWrite()
		if b, err := io.ReadAll(c); err != nil || string(b) != "HELLO" {
			t.Fatalf("%q, %v", b, err)
		}
		synctest.Wait()
		o := w.opened()
		if len(o) != 1 || o[0].Service != "ssh" || o[0].Packets || o[0].Client.String() != c.LocalAddr().String() || o[0].Local.String() != c.RemoteAddr().String() {
			t.Errorf("opened %+v", o)
		}
		if st := w.Status()[0]; st.Open != 0 || st.Total != 1 || st.BytesIn != 5 || st.BytesOut != 5 {
			t.Errorf("status %+v", st)
		}
		if log := w.log.String(); strings.Count(log, "connection ended") != 1 || !strings.Contains(log, "port=2222/tcp") || !strings.Contains(log, "in=5 out=5") {
			t.Errorf("log:\n%s", log)
		}
	})
}

// A home that says no is no clean end.
func TestTCPRefused(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, Limits{})
		w.change(func() { w.answer = protocol.CodeBackendDown })
		c := w.tcp(t).dial()
		if _, err := io.ReadAll(c); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the visitor saw %v", err)
		}
		synctest.Wait()
		if log := w.log.String(); !strings.Contains(log, "backend-down") {
			t.Errorf("log:\n%s", log)
		}
	})
}

func TestTCPAbort(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, Limits{})
		w.change(func() { w.quiet = true })
		c := w.tcp(t).dial()
		synctest.Wait()
		c.Abort()
		_, err := io.ReadAll(w.streams[0])
		if reset, ok := errors.AsType[*tunnel.ResetError](err); !ok || reset.Code != protocol.CodeAborted {
			t.Errorf("home saw %v", err)
		}
	})
}

// Connections end with their port, at once and not cleanly, at whatever stage.
func TestTCPUnbind(t *testing.T) {
	for _, stop := range []bool{false, true} {
		tunneltest.Bubble(t, func(t *testing.T) {
			w := newWorld(t, Limits{})
			w.change(func() { w.quiet = true })
			l := w.tcp(t)
			joined := l.dial()
			synctest.Wait()
			w.change(func() { w.gate = make(chan struct{}) })
			opening := l.dial()
			synctest.Wait()
			if stop {
				w.stop()
				w.run.Wait()
			} else {
				w.set(t)
			}
			for _, c := range []*tunneltest.Conn{joined, opening} {
				if _, err := io.ReadAll(c); !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("stop %v: the visitor saw %v", stop, err)
				}
			}
			if _, err := l.Accept(); err == nil {
				t.Error("the listener is open")
			}
			var reset *tunnel.ResetError
			if _, err := io.ReadAll(w.streams[0]); !errors.As(err, &reset) || !stop && reset.Code != protocol.CodeUnknownService {
				t.Errorf("stop %v: home saw %v", stop, err)
			}
		})
	}
}

func TestTCPLimits(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, Limits{PerSource: 2, TCPIdle: time.Minute})
		w.change(func() { w.quiet = true })
		l := w.tcp(t)
		settled := l.dial() // all of them come from one address
		synctest.Wait()
		w.change(func() { w.gate = make(chan struct{}) })
		stranger := l.dial()
		synctest.Wait()
		l.dial()
		if _, err := io.ReadAll(stranger); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the oldest stranger saw %v", err)
		}
		close(w.gate)
		synctest.Wait()
		late := l.dial()
		if _, err := io.ReadAll(late); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("one too many saw %v", err)
		}
		if st := w.Status()[0]; st.Open != 2 || st.Refused != 1 {
			t.Errorf("status %+v", st)
		}
		if !strings.Contains(w.log.String(), errCrowded.Error()) {
			t.Errorf("log:\n%s", w.log.String())
		}
		start := time.Now()
		if _, err := io.ReadAll(settled); err == nil || time.Since(start) > time.Minute {
			t.Errorf("idle: %v after %v", err, time.Since(start))
		}
	})
}

// No error of Accept ends the port; they are neither a busy loop nor a flood of
// lines.
func TestTCPAcceptBackOff(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, Limits{})
		l := w.tcp(t)
		start := time.Now()
		for range 12 {
			l.conns <- errors.New("too many open files")
		}
		c := l.dial()
		c.CloseWrite()
		if _, err := io.ReadAll(c); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took < 4*time.Second || took > 8*time.Second {
			t.Errorf("twelve errors took %v", took)
		}
		if n := strings.Count(w.log.String(), "accept failed"); n != 1 {
			t.Errorf("%d lines", n)
		}
	})
}
