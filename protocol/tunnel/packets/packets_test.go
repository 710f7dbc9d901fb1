package packets

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/protocol"
)

// A fakeStream is a stream over a pipe, with datagrams that go to the test.
type fakeStream struct {
	net.Conn
	most  int           // the largest datagram
	takes time.Duration // one datagram

	mu    sync.Mutex // guards the fields below
	sent  [][]byte   // datagrams
	give  func([]byte)
	reset bool
}

func (s *fakeStream) CloseWrite() error { return s.Close() }

func (s *fakeStream) Reset(protocol.Code) {
	s.mu.Lock()
	s.reset = true
	s.mu.Unlock()
	s.Close()
}

func (s *fakeStream) SendDatagram(p []byte) (bool, error) {
	if len(p) > s.most {
		return false, nil
	}
	time.Sleep(s.takes) // virtual
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sent = append(s.sent, bytes.Clone(p))
	return true, nil
}

func (s *fakeStream) OnDatagram(give func([]byte)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.give = give
}

// datagrams returns what was sent so far.
func (s *fakeStream) datagrams() [][]byte {
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sent
}

func newFake(most int, takes time.Duration) (s *fakeStream, peer net.Conn) {
	near, far := net.Pipe()
	return &fakeStream{Conn: near, most: most, takes: takes}, far
}

// TestAge: what the path did not take in time is dropped, and what came last goes.
func TestAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st, peer := newFake(1000, 400*time.Millisecond)
		defer peer.Close()
		c := New(st)
		defer c.Close()
		for _, p := range []string{"a", "b", "c", "d"} { // b leaves after 400 ms, c would after 800
			c.WritePacket([]byte(p))
		}
		time.Sleep(700 * time.Millisecond) // virtual
		c.WritePacket([]byte("e"))
		time.Sleep(10 * time.Second) // virtual
		if got := string(bytes.Join(st.datagrams(), nil)); got != "abe" {
			t.Errorf("sent %q", got)
		}
		if s := c.Stats(); s.Sent != 3 || s.Dropped != 2 {
			t.Errorf("stats: %+v", s)
		}
	})
}

// TestNeverWaits: whoever writes to a path that takes nothing loses the oldest.
func TestNeverWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st, peer := newFake(1000, time.Hour)
		defer peer.Close()
		c := New(st)
		start := time.Now()
		for range 200 {
			if err := c.WritePacket([]byte("x")); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if d := time.Since(start); d != 0 {
			t.Errorf("the writes took %v", d)
		}
		if n := c.Stats().Dropped; n < 200-maxPackets-1 || n > 200-maxPackets {
			t.Errorf("%d were dropped", n)
		}
		c.Close()
		if n := c.Stats().Dropped; n < 199 {
			t.Errorf("after Close %d are dropped", n)
		}
		time.Sleep(2 * time.Hour) // virtual: until the path has taken the one that it had
	})
}

// TestBothWays: what fits goes as a datagram, the rest over the stream, and both
// are received.
func TestBothWays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st, peer := newFake(100, 0)
		c := New(st)
		big := bytes.Repeat([]byte("big"), 100)
		c.WritePacket(make([]byte, 100))
		c.WritePacket(big)
		var head [2]byte
		io.ReadFull(peer, head[:])
		got := make([]byte, binary.BigEndian.Uint16(head[:]))
		if io.ReadFull(peer, got); !bytes.Equal(got, big) {
			t.Errorf("over the stream: %d bytes", len(got))
		}
		if sent := st.datagrams(); len(sent) != 1 || len(sent[0]) != 100 {
			t.Errorf("datagrams: %d", len(sent))
		}

		st.give([]byte("small"))
		go peer.Write(appendFrame(nil, big))
		buf := make([]byte, MaxPacket)
		if n, err := c.ReadPacket(buf); err != nil || string(buf[:n]) != "small" {
			t.Errorf("a datagram: %d bytes, %v", n, err)
		}
		if n, err := c.ReadPacket(buf); err != nil || !bytes.Equal(buf[:n], big) {
			t.Errorf("over the stream: %d bytes, %v", n, err)
		}
		peer.Close()
		if _, err := c.ReadPacket(buf); err != io.EOF {
			t.Errorf("at the end: %v", err)
		}
		if err := c.WritePacket(buf[:1]); err != io.ErrClosedPipe {
			t.Errorf("after the end: %v", err)
		}
		if st.mu.Lock(); st.give != nil || st.reset {
			t.Errorf("after the end it still takes datagrams: %v; reset: %v", st.give != nil, st.reset)
		}
		st.mu.Unlock()
		c.Close()
	})
}

// A plainStream has no datagrams and a slow path.
type plainStream struct {
	net.Conn
	flushed chan struct{}
}

func (s plainStream) CloseWrite() error   { return s.Close() }
func (s plainStream) Reset(protocol.Code) { s.Close() }
func (s plainStream) Flush()              { <-s.flushed }

// TestBatches: what waits for the path goes at once, and not before the path
// has taken what went before.
func TestBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, peer := net.Pipe()
		st := plainStream{near, make(chan struct{})}
		c := New(st)
		defer c.Close()
		buf := make([]byte, 64<<10)
		read := func() int {
			t.Helper()
			peer.SetReadDeadline(time.Now().Add(time.Millisecond))
			n, _ := peer.Read(buf)
			return n
		}
		const packet = 1000
		c.WritePacket(make([]byte, packet))
		if n := read(); n != packet+2 {
			t.Errorf("the first packet made %d bytes", n)
		}
		for range 40 {
			c.WritePacket(make([]byte, packet))
		}
		if n := read(); n != 0 {
			t.Errorf("%d bytes before the first ones were taken", n)
		}
		st.flushed <- struct{}{}
		if n := read(); n < maxBatch || n > maxBatch+packet+2 || n%(packet+2) != 0 {
			t.Errorf("a batch of %d bytes", n)
		}
		close(st.flushed)
	})
}

func TestQueue(t *testing.T) {
	before := held.Load()
	var q queue
	for i := range 3 * maxPackets {
		p := newPacket(1)
		p.data[0] = byte(i)
		if dropped := q.push(p); dropped != 0 && i < maxPackets || dropped != 1 && i >= maxPackets {
			t.Fatalf("packet %d: %d were dropped", i, dropped)
		}
	}
	for i := 2 * maxPackets; i < 3*maxPackets; i++ {
		if p := q.pop(); p.data[0] != byte(i) {
			t.Fatalf("packet %d at place %d", p.data[0], i)
		}
	}
	for range 100 {
		q.push(newPacket(MaxPacket))
		if q.bytes > maxBytes {
			t.Fatalf("%d bytes wait", q.bytes)
		}
	}
	if q.count != maxBytes/MaxPacket {
		t.Errorf("%d large packets wait", q.count)
	}
	if n := q.clear(); n != maxBytes/MaxPacket || q.count != 0 || q.bytes != 0 || held.Load() != before {
		t.Errorf("%d were cleared, %d are left with %d bytes, %d are held", n, q.count, q.bytes, held.Load()-before)
	}
}

// TestHeld: many flows whose paths take nothing do not take all memory, and one
// whose packets move does not notice them.
func TestHeld(t *testing.T) {
	const flows = 2 * maxHeld / maxBytes
	before := held.Load()
	stuck := make([]queue, flows)
	for i := range stuck {
		for range 4 {
			stuck[i].push(newPacket(MaxPacket))
		}
	}
	if n := held.Load(); n > maxHeld+flows*MaxPacket {
		t.Errorf("%d bytes are held", n)
	}
	var moves queue
	for range 10 {
		if dropped := moves.push(newPacket(1000)); dropped != 0 {
			t.Errorf("%d were dropped where nothing waits", dropped)
		}
		moves.pop().free()
	}
	for i := range stuck {
		if stuck[i].count == 0 {
			t.Fatal("a flow with nothing left")
		}
		stuck[i].clear()
	}
	if n := held.Load(); n != before {
		t.Errorf("%d bytes are held by nobody", n-before)
	}
}

// FuzzFrames reads anything as packets: what comes out is what went in, and only
// whole packets come out.
func FuzzFrames(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{0})
	f.Add([]byte{0, 0, 0, 1, 'x'})
	f.Add([]byte{0, 5, 'a'})
	f.Add([]byte{0xff, 0xe3, 1})
	f.Add([]byte{0xff, 0xe4, 1})
	f.Add(append(appendFrame(nil, make([]byte, MaxPacket)), 0, 1, 2))
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bytes.NewReader(in)
		var out []byte
		for {
			p, err := readFrame(r)
			if err == nil {
				out = appendFrame(out, p.data)
				p.free()
				continue
			}
			rest := in[len(out):]
			whole := len(rest) == 0
			if whole != (err == io.EOF) {
				t.Errorf("%d bytes are left, %v", len(rest), err)
			}
			if tooLarge := len(rest) >= 2 && binary.BigEndian.Uint16(rest) > MaxPacket; tooLarge != (err == ErrTooLarge) {
				t.Errorf("a packet of %x: %v", rest[:2], err)
			}
			break
		}
		if !bytes.HasPrefix(in, out) {
			t.Errorf("%x became %x", in, out)
		}
	})
}
