package flow

import (
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
)

// wantClose waits for the session's end. That it does not come fails the
// bubble.
func wantClose(t *testing.T, s *Session, code protocol.Code) {
	t.Helper()
	<-s.Done()
	if e, ok := errors.AsType[*tunnel.CloseError](s.Err()); !ok || e.Code != code || e.Remote {
		t.Errorf("the session ended with %v, want %v", s.Err(), code)
	}
}

func accept(t *testing.T, s *Session) *Stream {
	t.Helper()
	st, err := s.AcceptStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return st.(*Stream)
}

func TestMaxStreams(t *testing.T) {
	for _, c := range []struct {
		name   string
		breach bool
		run    func(t *testing.T, l *fakeLink, s *Session)
	}{
		{"one too many", true, func(t *testing.T, l *fakeLink, s *Session) {
			l.open()
			accept(t, s)
		}},
		{"after one that ended", false, func(t *testing.T, l *fakeLink, s *Session) {
			x := l.open()
			st := accept(t, s)
			x.arrives([]byte("unread"))
			x.arrives(io.EOF)
			st.CloseWrite()
		}},
		{"before the end of another one is noticed", false, func(t *testing.T, l *fakeLink, s *Session) {
			x := l.open()
			accept(t, s).CloseWrite()
			time.AfterFunc(100*time.Millisecond, func() { x.arrives(io.EOF) })
		}},
		{"after one that ended and nobody has accepted", true, func(t *testing.T, l *fakeLink, _ *Session) {
			x := l.open()
			x.stops()
			x.arrives(io.EOF)
		}},
		{"after one of which only one direction ended", true, func(t *testing.T, l *fakeLink, s *Session) {
			x := l.open()
			accept(t, s)
			x.arrives(io.EOF)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newFakeLink()
				s, _ := l.listener(t, Config{MaxStreams: 1})
				c.run(t, l, s)
				synctest.Wait()
				l.open()
				time.Sleep(time.Second)
				if c.breach {
					wantClose(t, s, protocol.CodeProtocol)
				} else if s.Err() != nil {
					t.Errorf("the session ended: %v", s.Err())
				} else {
					accept(t, s)
				}
				s.Close(protocol.CodeOK, "")
			})
		})
	}
}

// TestHeld: the budget bounds the memory of unread bytes, not their number.
func TestHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newFakeLink()
		const budget = 32 << 10
		s, _ := l.listener(t, Config{Budget: budget})
		var all []*Stream
		for range 100 { // a byte each
			l.open().arrives([]byte("x"))
			all = append(all, accept(t, s))
			synctest.Wait()
			var memory int
			for _, st := range all {
				for c := st.in.buf.head; c != nil; c = c.next {
					memory += cap(c.data)
				}
			}
			if held := s.ledger.held.Load(); memory > budget || held != int64(memory) {
				t.Fatalf("%d bytes of memory for %d streams, known of %d", memory, len(all), held)
			}
			time.Sleep(time.Millisecond)
		}
		if _, err := all[0].Read(make([]byte, 1)); !isReset(err, protocol.CodeOverload) {
			t.Errorf("the longest-stalled: %v", err)
		}
		for _, st := range all[1:] {
			st.Read(make([]byte, 1))
		}
		if s.ledger.held.Load() != 0 || s.ledger.unread.Load() != 0 {
			t.Errorf("all is read, %d bytes are held", s.ledger.held.Load())
		}
		s.Close(protocol.CodeOK, "")
	})
}

func isReset(err error, code protocol.Code) bool {
	e, ok := errors.AsType[*tunnel.ResetError](err)
	return ok && e.Code == code
}

// TestLinkEnd: a link that breaks without a word wakes the readers, also of
// streams whose sending direction had ended before.
func TestLinkEnd(t *testing.T) {
	for _, c := range []struct {
		name string
		end  func(x *fakeLane, st *Stream)
	}{
		{"nothing ended", func(*fakeLane, *Stream) {}},
		{"the peer had stopped", func(x *fakeLane, _ *Stream) { x.stops() }},
		{"we had ended", func(_ *fakeLane, st *Stream) { st.CloseWrite() }},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newFakeLink()
				l.cause = &tunnel.CloseError{Code: protocol.CodeTimeout, Err: net.ErrClosed}
				s, control := l.listener(t, Config{})
				x := l.open()
				st := accept(t, s)
				c.end(x, st)
				failed := make(chan error, 1)
				go func() {
					_, err := st.Read(make([]byte, 1))
					failed <- err
				}()
				x.arrives(net.ErrClosed) // the stream hears of it first
				synctest.Wait()
				control.arrives(net.ErrClosed)
				wantClose(t, s, protocol.CodeTimeout)
				synctest.Wait()
				select {
				case err := <-failed:
					if !isReset(err, protocol.CodeTimeout) {
						t.Errorf("read: %v", err)
					}
				default:
					t.Error("the read hangs")
					st.Reset(protocol.CodeAborted)
				}
			})
		})
	}
}

// TestCreditsForgotten: a peer that does not read its control stream makes us
// keep no credits of streams that are over.
func TestCreditsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newFakeLink()
		s, control := l.listener(t, Config{})
		synctest.Wait()
		control.stick()
		for range 50 {
			x := l.open()
			x.arrives(make([]byte, InitialWindow/2))
			st := accept(t, s)
			if _, err := io.ReadFull(st, make([]byte, InitialWindow/2)); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			x.arrives(io.EOF)
			st.Close()
			synctest.Wait()
		}
		s.sendCredit(7, 1<<20) // a Read that was a moment late
		s.ctl.mu.Lock()
		n := len(s.ctl.credits)
		s.ctl.mu.Unlock()
		if n > 0 || len(s.list()) > 0 {
			t.Errorf("%d credits for %d streams", n, len(s.list()))
		}
		s.Close(protocol.CodeOK, "")
	})
}
