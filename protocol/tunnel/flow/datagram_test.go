package flow

import (
	"context"
	"errors"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
)

// A fakeDatagramLink carries the test's datagrams.
type fakeDatagramLink struct {
	*fakeLink
	arriving chan letter
	bytes    atomic.Uint64
	takes    time.Duration // one SendDatagram

	mu   sync.Mutex // guards sent
	sent []letter
}

func newFakeDatagramLink() *fakeDatagramLink {
	return &fakeDatagramLink{fakeLink: newFakeLink(), arriving: make(chan letter, 1000)}
}

// start starts a listener's session on the link.
func (l *fakeDatagramLink) start(t testing.TB) *Session {
	t.Helper()
	s, err := New(context.Background(), l, Config{})
	if err != nil {
		t.Fatal(err)
	}
	l.fakeLink.open().arrives(appendFrame(nil, frameHello, version, 0))
	return s
}

// openAs is the peer opening the stream of that number.
func (l *fakeDatagramLink) openAs(t *testing.T, s *Session, id uint64) *Stream {
	t.Helper()
	l.next = id - 1
	l.fakeLink.open()
	return accept(t, s)
}

func (l *fakeDatagramLink) arrives(stream uint64, what string) {
	l.arriving <- letter{stream: stream, data: []byte(what)}
}

func (l *fakeDatagramLink) SendDatagram(lane uint64, p []byte) (bool, error) {
	if l.takes > 0 {
		time.Sleep(l.takes) // virtual
	}
	select {
	case <-l.ended:
		return false, net.ErrClosed
	default:
	}
	if len(p) > 1000 {
		return false, nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sent = append(l.sent, letter{stream: lane, data: slices.Clone(p)})
	return true, nil
}

func (l *fakeDatagramLink) ReceiveDatagram() (uint64, []byte, error) {
	select {
	case m := <-l.arriving:
		return m.stream, m.data, nil
	case <-l.ended:
		return 0, nil, net.ErrClosed
	}
}

func (l *fakeDatagramLink) BytesSent() uint64 { return l.bytes.Load() }

// collect takes a stream's datagrams.
func collect(st *Stream) (got func() []string) {
	var mu sync.Mutex
	var all []string
	st.OnDatagram(func(p []byte) {
		mu.Lock()
		defer mu.Unlock()
		all = append(all, string(p))
	})
	return func() []string {
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		return all
	}
}

// TestDatagrams: whom a datagram goes to, when it waits, and when it is nobody's.
func TestDatagrams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newFakeDatagramLink()
		s := l.start(t)
		defer s.Close(protocol.CodeOK, "")
		wantKept := func(what string, n int) {
			t.Helper()
			synctest.Wait()
			s.post.mu.Lock()
			defer s.post.mu.Unlock()
			if len(s.post.early) != n {
				t.Errorf("%s: %d are kept, want %d", what, len(s.post.early), n)
			}
		}

		l.arrives(8, "before its stream")
		wantKept("a stream that may come", 1)
		first := l.openAs(t, s, 8)
		l.arrives(8, "before its owner")
		wantKept("an owner who is not ready", 2)
		got := collect(first)
		l.arrives(8, "after")
		if want := []string{"before its stream", "before its owner", "after"}; !slices.Equal(got(), want) {
			t.Errorf("got %q", got())
		}
		wantKept("a stream that has an owner", 0)

		for _, id := range []uint64{0, 4, 5, 6, 7, 9, 1 << 61} {
			l.arrives(id, "nobody's")
		}
		wantKept("the control stream, one that is over, our own, one-way ones", 1) // 1<<61 may still come
		first.OnDatagram(nil)
		l.arrives(8, "unwanted")
		wantKept("a stream whose owner has gone", 1)

		l.arrives(12, "too old")
		time.Sleep(earlyTime - time.Second) // virtual
		l.arrives(12, "old")
		time.Sleep(1500 * time.Millisecond) // virtual
		second := l.openAs(t, s, 12)
		if got := collect(second); !slices.Equal(got(), []string{"old"}) {
			t.Errorf("got %q", got())
		}
		wantKept("after its time", 0)
		if n := s.Stats().BytesIn; n != uint64(len("before its streambefore its ownerafterold")) {
			t.Errorf("%d bytes in", n)
		}
	})
}

// TestEarlyBounds: a peer who sends for streams that never come takes little.
func TestEarlyBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newFakeDatagramLink()
		s := l.start(t)
		defer s.Close(protocol.CodeOK, "")
		kept := func() (n, bytes int) {
			synctest.Wait()
			s.post.mu.Lock()
			defer s.post.mu.Unlock()
			return len(s.post.early), s.post.bytes
		}
		for range 100 {
			l.arrives(400, "one stream")
		}
		if n, _ := kept(); n != earlyStream {
			t.Errorf("%d of one stream", n)
		}
		for i := range 500 {
			l.arrives(uint64(404+4*i), "many streams")
		}
		if n, bytes := kept(); n != earlyCount || bytes != earlyCount*len("many streams") {
			t.Errorf("%d of many streams, %d bytes", n, bytes)
		}
		for i := range 500 {
			l.arrives(uint64(404+4*i), string(make([]byte, 10_000)))
		}
		if n, bytes := kept(); bytes > earlyBytes || n == 0 {
			t.Errorf("%d of %d bytes", n, bytes)
		}
		before, _ := kept()
		l.arrives(4, string(make([]byte, earlyBytes+1)))
		if n, _ := kept(); n != before {
			t.Error("one that is larger than all may be")
		}
	})
}

func TestSendDatagram(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newFakeDatagramLink()
		s := l.start(t)
		st := l.openAs(t, s, 4)
		if sent, err := st.SendDatagram([]byte("hello")); !sent || err != nil {
			t.Errorf("sent %v, %v", sent, err)
		}
		if sent, err := st.SendDatagram(make([]byte, 1001)); sent || err != nil {
			t.Errorf("too large: sent %v, %v", sent, err)
		}
		if len(l.sent) != 1 || l.sent[0].stream != 4 || string(l.sent[0].data) != "hello" || s.Stats().BytesOut != 5 {
			t.Errorf("sent %v, stats %+v", l.sent, s.Stats())
		}
		other := l.openAs(t, s, 8)
		other.Reset(protocol.CodeIdle)
		if sent, err := other.SendDatagram([]byte("x")); sent || err == nil {
			t.Errorf("after a reset: sent %v, %v", sent, err)
		}
		other.OnDatagram(nil)

		l.takes = 5 * time.Second
		failed := make(chan error, 1)
		go func() {
			_, err := st.SendDatagram([]byte("waits"))
			failed <- err
		}()
		time.Sleep(time.Second) // virtual
		if at := s.Stats().BlockedAt; time.Since(at) != time.Second {
			t.Errorf("a datagram waits for a second, BlockedAt is %v", at)
		}
		s.Close(protocol.CodeGoingAway, "")
		if e, ok := errors.AsType[*tunnel.ResetError](<-failed); !ok || e.Code != protocol.CodeGoingAway {
			t.Errorf("after the session's end: %v", e)
		}
	})

	l := newFakeLink() // a link without datagrams
	s, _ := l.listener(t, Config{})
	l.open()
	if sent, err := accept(t, s).SendDatagram([]byte("x")); sent || err != nil {
		t.Errorf("sent %v, %v", sent, err)
	}
	s.Close(protocol.CodeOK, "")
}

// TestTurns: a pause begins when most of a turn was spent waiting, and lasts until
// the queue is empty and the streams that wait have had as much, or have nothing.
func TestTurns(t *testing.T) {
	const size = 1000
	for _, c := range []struct {
		name    string
		takes   time.Duration // one datagram
		streams bool          // wait
		rate    int           // of the link, bytes a millisecond
		least   time.Duration // a pause takes so long
		most    time.Duration
	}{
		{"fast enough", 0, true, 1000, 0, 0},
		{"a busy path", time.Millisecond, false, 1000, 30 * time.Millisecond, 40 * time.Millisecond},
		{"streams wait", time.Millisecond, true, 1000, 130 * time.Millisecond, 150 * time.Millisecond},
		{"nothing leaves any more", time.Millisecond, true, 0, 4 * time.Millisecond, 10 * time.Millisecond},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newFakeDatagramLink()
				s := l.start(t)
				st := l.openAs(t, s, 4)
				if c.streams {
					s.sending.begin()
				}
				var run sync.WaitGroup
				done := make(chan struct{})
				run.Go(func() {
					tick := time.NewTicker(time.Millisecond)
					defer tick.Stop()
					for {
						select {
						case <-tick.C:
							l.bytes.Add(uint64(c.rate))
						case <-done:
							return
						}
					}
				})
				l.takes = c.takes
				var longest time.Duration
				for range 150 {
					time.Sleep(10 * time.Microsecond) // virtual
					start := time.Now()
					st.SendDatagram(make([]byte, size))
					longest = max(longest, time.Since(start)-c.takes)
				}
				if longest < c.least || longest > c.most {
					t.Errorf("the longest pause took %v, want %v to %v", longest, c.least, c.most)
				}
				close(done)
				run.Wait()
				s.Close(protocol.CodeOK, "")
			})
		})
	}
}
