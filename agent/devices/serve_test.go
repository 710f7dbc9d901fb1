package devices

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/protocol"
)

// A stream is the relay's end of one that a Book serves.
type stream struct {
	net.Conn
	t     *testing.T
	ended chan error
	stop  context.CancelCauseFunc
}

func serve(t *testing.T, b *Book) *stream {
	t.Helper()
	here, there := net.Pipe()
	ctx, cancel := context.WithCancelCause(t.Context())
	s := &stream{Conn: there, t: t, ended: make(chan error, 1), stop: cancel}
	go func() { s.ended <- b.Serve(ctx, here) }()
	t.Cleanup(func() { cancel(nil); there.Close() })
	return s
}

// have reads what the home says it has.
func (s *stream) have(want uint64) {
	s.t.Helper()
	_ = s.SetReadDeadline(time.Now().Add(time.Minute))
	f, err := protocol.ReadDeviceFrame(s)
	if err != nil || f.Have != want || f.CA != nil || f.List != nil {
		s.t.Fatalf("the home says %+v, %v; want %d", f, err, want)
	}
}

func (s *stream) send(f protocol.DeviceFrame) {
	s.t.Helper()
	_ = s.SetWriteDeadline(time.Now().Add(time.Minute))
	if err := protocol.WriteDeviceFrame(s, f); err != nil {
		s.t.Fatal(err)
	}
}

// end waits for Serve and returns why it ended.
func (s *stream) end() error {
	s.t.Helper()
	select {
	case err := <-s.ended:
		return err
	case <-time.After(time.Minute):
		s.t.Fatal("it serves on")
		return nil
	}
}

func TestServe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newCA(t)
		var c calls
		b := open(t, c.config(t.TempDir()))
		ok(t, b.Pin(ca.der()))
		c.told(t, 1)
		anna, listed := ca.device("anna-phone")
		s := serve(t, b)
		s.have(0)
		s.send(protocol.DeviceFrame{CA: ca.der(), List: ca.list(listed)})
		s.have(1)
		judged(t, b, anna, host, "")
		gone := ca.list()
		revokedAt := time.Now()
		s.send(protocol.DeviceFrame{CA: ca.der(), List: gone})
		s.have(2)
		c.told(t, 0, listed) // before the answer
		if took := time.Since(revokedAt); took >= time.Second {
			t.Errorf("a revocation took %v", took)
		}
		s.send(protocol.DeviceFrame{CA: ca.der(), List: gone}) // twelve hours later
		s.have(2)
		s.send(protocol.DeviceFrame{}) // of a relay that knows more
		s.have(2)
		s.stop(errors.New("over"))
		if err := s.end(); err == nil || err.Error() != "over" {
			t.Errorf("it ended for %v", err)
		}
		if _, err := s.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("the stream is open: %v", err)
		}
		s = serve(t, b)
		s.have(2)
		s.Close()
		if err := s.end(); !errors.Is(err, io.EOF) {
			t.Errorf("it ended for %v", err)
		}
	})
}

// TestServePinsTheFirst: a home that joined before it could know the CA.
func TestServePinsTheFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca, other := newCA(t), newCA(t)
		var c calls
		b := open(t, c.config(t.TempDir()))
		s := serve(t, b)
		s.have(0)
		s.send(protocol.DeviceFrame{CA: ca.der(), List: ca.list()})
		s.have(1)
		c.told(t, 1)
		s.send(protocol.DeviceFrame{CA: other.der(), List: other.numbered(9)})
		s.send(protocol.DeviceFrame{CA: ca.der(), List: ca.list()}) // a refused frame ends nothing
		s.have(2)
		c.told(t, 0)
		if !b.Pool().Equal(ca.Pool()) {
			t.Error("another CA is trusted")
		}
		s.Close()
		_ = s.end()
	})
}

// TestServePaces: a relay that sends without end writes no disk and no log to
// pieces.
func TestServePaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca, other := newCA(t), newCA(t)
		b := open(t, Config{Dir: t.TempDir(), Now: clock})
		ok(t, b.Pin(ca.der()))
		s := serve(t, b)
		s.have(0)
		start := time.Now()
		for n := range uint64(10) {
			s.send(protocol.DeviceFrame{CA: ca.der(), List: ca.list()})
			s.have(n + 1)
		}
		if took := time.Since(start); took < 9*paceTaken {
			t.Errorf("ten lists in %v", took)
		}
		start = time.Now()
		for range 11 {
			s.send(protocol.DeviceFrame{CA: other.der()})
		}
		if took := time.Since(start); took < 10*paceRefused {
			t.Errorf("ten refusals in %v", took)
		}
		s.stop(nil)
		_ = s.end()
	})
}

// TestServeEnds: what cannot go on.
func TestServeEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newCA(t)
		dir := t.TempDir() + "/book"
		b := open(t, Config{Dir: dir, Now: clock})
		ok(t, b.Pin(ca.der()))
		s := serve(t, b)
		s.have(0)
		if _, err := s.Write([]byte{0xff, 0xff, 0xff, 0xff}); err != nil {
			t.Fatal(err)
		}
		if err := s.end(); !errors.Is(err, protocol.ErrMalformed) {
			t.Errorf("no frame: %v", err)
		}
		s = serve(t, b) // whose other end reads nothing
		if err := s.end(); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a deaf relay: %v", err)
		}
		ok(t, os.RemoveAll(dir))
		anna, listed := ca.device("anna-phone")
		s = serve(t, b)
		s.have(0)
		s.send(protocol.DeviceFrame{CA: ca.der(), List: ca.list(listed)})
		if err := s.end(); !errors.Is(err, ErrUnsaved) {
			t.Errorf("a full disk: %v", err)
		}
		judged(t, b, anna, host, "")
		s = serve(t, b)
		s.have(0)
		ok(t, os.MkdirAll(dir, 0o700))
		s.send(protocol.DeviceFrame{CA: ca.der(), List: ca.numbered(1, listed)})
		s.have(1)
		judged(t, open(t, Config{Dir: dir}), anna, host, "")
		s.stop(nil)
		_ = s.end()
	})
}

// TestServeSilence: a relay that has nothing to say is not cut off.
func TestServeSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newCA(t)
		b := open(t, Config{Dir: t.TempDir(), Now: clock})
		ok(t, b.Pin(ca.der()))
		s := serve(t, b)
		s.have(0)
		time.Sleep(48 * time.Hour) // virtual
		cert, listed := ca.device("anna-phone")
		s.send(protocol.DeviceFrame{CA: ca.der(), List: ca.list(listed)})
		s.have(1)
		judged(t, b, cert, host, "")
		s.stop(nil)
		_ = s.end()
	})
}
