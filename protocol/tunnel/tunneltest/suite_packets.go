package tunneltest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
	"github.com/sallyport/sallyport/protocol/tunnel/packets"
)

// TestPackets runs the conformance suite of datagrams, package packets over the
// transport's streams, with pair as TestSession has it.
func TestPackets(t *testing.T, pair func(t *testing.T) (a, b tunnel.Session)) {
	for _, c := range []struct {
		name string
		run  func(t *testing.T, a, b tunnel.Session)
	}{
		{"sizes", testPacketSizes},
		{"order of nothing lost", testPacketOrder},
		{"before the other end listens", testPacketsEarly},
		{"close", testPacketsClose},
		{"close while the other end sends", testPacketsCloseBusy},
		{"reset", testPacketsReset},
		{"session close", testPacketsSessionClose},
		{"read deadline", testPacketsDeadline},
		{"nobody reads", testPacketsUnread},
		{"many flows", testManyFlows},
		{"what is no packet", testNoPacket},
	} {
		t.Run(c.name, func(t *testing.T) {
			Bubble(t, func(t *testing.T) {
				a, b := pair(t)
				c.run(t, a, b)
			})
		})
	}
}

// openFlow returns both ends of a flow that a opened.
func openFlow(t *testing.T, a, b tunnel.Session) (fa, fb *packets.Conn) {
	t.Helper()
	x, y := open(t, a, b)
	return packets.New(x), packets.New(y)
}

// transfer sends a packet one way and wants it there.
func transfer(t *testing.T, from, to *packets.Conn, p []byte) {
	t.Helper()
	if err := from.WritePacket(p); err != nil {
		t.Fatalf("write of %d bytes: %v", len(p), err)
	}
	wantPacket(t, to, p)
}

func wantPacket(t *testing.T, f *packets.Conn, want []byte) {
	t.Helper()
	buf := make([]byte, packets.MaxPacket)
	f.SetReadDeadline(time.Now().Add(10 * time.Second))
	n, err := f.ReadPacket(buf)
	if err != nil || !bytes.Equal(buf[:n], want) {
		t.Errorf("read %d bytes, %v; want the %d that were sent", n, err, len(want))
	}
	f.SetReadDeadline(time.Time{})
}

// testPacketSizes: 1452 is what WireGuard sends by default.
func testPacketSizes(t *testing.T, a, b tunnel.Session) {
	x, y := openFlow(t, a, b)
	for _, n := range []int{0, 1, 148, 1100, 1161, 1162, 1200, 1452, 1500, 9000, packets.MaxPacket, 3} {
		transfer(t, x, y, randomBytes(n))
		transfer(t, y, x, randomBytes(n))
	}
	if err := x.WritePacket(make([]byte, packets.MaxPacket+1)); !errors.Is(err, packets.ErrTooLarge) {
		t.Errorf("too large: %v", err)
	}
	transfer(t, x, y, []byte("goes on"))

	x.WritePacket(make([]byte, 100))
	x.WritePacket([]byte("fits"))
	small := make([]byte, 99)
	if _, err := y.ReadPacket(small); !errors.Is(err, io.ErrShortBuffer) {
		t.Errorf("short buffer: %v", err)
	}
	if n, err := y.ReadPacket(make([]byte, 100)); err != nil || n != 100 {
		t.Errorf("with more room: %d bytes, %v", n, err)
	}
	if n, err := y.ReadPacket(small); err != nil || string(small[:n]) != "fits" {
		t.Errorf("after it: %q, %v", small[:n], err)
	}
	if s := y.Stats(); s.Sent != 12 || s.Received != 15 || s.Dropped != 0 {
		t.Errorf("stats: %+v", s)
	}
	x.Close()
	y.Close()
}

// testPacketOrder: on a good path nothing is lost or overtaken.
func testPacketOrder(t *testing.T, a, b tunnel.Session) {
	x, y := openFlow(t, a, b)
	const count = 1000
	var sender sync.WaitGroup
	defer sender.Wait()
	sender.Go(func() {
		for i := range count {
			p := make([]byte, 8+i%1000)
			binary.BigEndian.PutUint64(p, uint64(i))
			x.WritePacket(p)
			time.Sleep(time.Millisecond) // virtual
		}
	})
	buf := make([]byte, packets.MaxPacket)
	for i := range count {
		y.SetReadDeadline(time.Now().Add(10 * time.Second))
		n, err := y.ReadPacket(buf)
		if err != nil {
			t.Fatalf("packet %d: %v", i, err)
		}
		if got := binary.BigEndian.Uint64(buf); got != uint64(i) || n != 8+i%1000 {
			t.Fatalf("packet %d of %d bytes at place %d", got, n, i)
		}
	}
	x.Close()
	y.Close()
}

// testPacketsEarly: what arrives before New is not lost.
func testPacketsEarly(t *testing.T, a, b tunnel.Session) {
	st, err := a.OpenStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	st.Write([]byte{'!'})
	x := packets.New(st)
	x.WritePacket([]byte("early"))
	time.Sleep(time.Second) // virtual
	other, err := b.AcceptStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(other, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	y := packets.New(other)
	wantPacket(t, y, []byte("early"))
	transfer(t, y, x, []byte("back"))
	x.Close()
	y.Close()
}

func testPacketsClose(t *testing.T, a, b tunnel.Session) {
	x, y := openFlow(t, a, b)
	transfer(t, x, y, []byte("one"))
	x.WritePacket([]byte("two"))
	time.Sleep(time.Second) // virtual
	x.Close()
	if err := x.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
	time.Sleep(time.Second) // virtual
	buf := make([]byte, 10)
	if n, err := y.ReadPacket(buf); err != nil || string(buf[:n]) != "two" {
		t.Errorf("what came before the end: %q, %v", buf[:n], err)
	}
	if _, err := y.ReadPacket(buf); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
	if err := y.WritePacket(buf); err == nil {
		t.Error("a write to a closed flow")
	}
	if _, err := x.ReadPacket(buf); !errors.Is(err, net.ErrClosed) {
		t.Errorf("read after close: %v", err)
	}
	if err := x.WritePacket(buf); !errors.Is(err, net.ErrClosed) {
		t.Errorf("write after close: %v", err)
	}
	y.Close()
	synctest.Wait()
	time.Sleep(time.Second) // virtual
	if n := a.Stats().Streams + b.Stats().Streams; n != 0 {
		t.Errorf("%d streams are left", n)
	}
}

// testPacketsCloseBusy: the end is a clean one, also for who writes just then.
func testPacketsCloseBusy(t *testing.T, a, b tunnel.Session) {
	x, y := openFlow(t, a, b)
	var writer sync.WaitGroup
	writer.Go(func() {
		for i := 0; ; i++ {
			if err := y.WritePacket(make([]byte, 100+1400*(i%2))); err != nil {
				return
			}
			time.Sleep(time.Millisecond) // virtual
		}
	})
	time.Sleep(time.Second) // virtual
	x.Close()
	if _, err := y.ReadPacket(make([]byte, 10)); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
	writer.Wait()
	y.Close()
}

func testPacketsReset(t *testing.T, a, b tunnel.Session) {
	x, y := openFlow(t, a, b)
	failed := make(chan error, 1)
	go func() {
		_, err := y.ReadPacket(make([]byte, 10))
		failed <- err
	}()
	time.Sleep(time.Second) // virtual
	x.Reset(protocol.CodeIdle)
	wantReset(t, "read", <-failed, protocol.CodeIdle, true)
	wantReset(t, "write", y.WritePacket([]byte("x")), protocol.CodeIdle, true)
	_, err := x.ReadPacket(make([]byte, 10))
	wantReset(t, "own read", err, protocol.CodeIdle, false)
	y.Close()
}

func testPacketsSessionClose(t *testing.T, a, b tunnel.Session) {
	x, y := openFlow(t, a, b)
	transfer(t, x, y, []byte("one"))
	a.Close(protocol.CodeGoingAway, "")
	<-b.Done()
	for _, f := range []*packets.Conn{x, y} {
		if _, err := f.ReadPacket(make([]byte, 10)); err == nil || err == io.EOF {
			t.Errorf("read: %v", err)
		}
		if err := f.WritePacket([]byte("x")); err == nil {
			t.Error("a write after the session's end")
		}
		f.Close()
	}
}

func testPacketsDeadline(t *testing.T, a, b tunnel.Session) {
	x, y := openFlow(t, a, b)
	buf := make([]byte, 10)
	timesOut := func(what string) {
		t.Helper()
		if _, err := x.ReadPacket(buf); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: %v", what, err)
		}
	}
	start := time.Now()
	x.SetReadDeadline(start.Add(3 * time.Second))
	timesOut("deadline ahead")
	if d := time.Since(start); d != 3*time.Second {
		t.Errorf("timed out after %v", d)
	}
	timesOut("still expired")
	x.SetReadDeadline(time.Time{})
	go func() {
		time.Sleep(time.Second) // virtual
		x.SetReadDeadline(time.Unix(1, 0))
	}()
	timesOut("set during the read")
	x.SetReadDeadline(time.Now().Add(time.Second))
	x.SetReadDeadline(time.Now().Add(time.Hour)) // the first alarm must not ring
	go func() {
		time.Sleep(time.Minute) // virtual
		y.WritePacket([]byte("late"))
	}()
	if n, err := x.ReadPacket(buf); err != nil || string(buf[:n]) != "late" {
		t.Errorf("after a new deadline: %q, %v", buf[:n], err)
	}
	x.Close()
	y.Close()
}

// testPacketsUnread: a flow that nobody reads keeps the newest packets, and is
// in nobody's way.
func testPacketsUnread(t *testing.T, a, b tunnel.Session) {
	x, y := openFlow(t, a, b)
	const count, kept = 5000, 128
	p := make([]byte, 1000)
	for i := range count {
		binary.BigEndian.PutUint64(p, uint64(i))
		if err := x.WritePacket(p); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond) // virtual
	}
	time.Sleep(time.Second) // virtual
	if n := b.Stats().Unread; n != 0 {
		t.Errorf("%d bytes of the session's budget are taken", n)
	}
	go echo(b)
	roundTrip(t, a, 1<<20)

	buf := make([]byte, 1000)
	got := 0
	for y.SetReadDeadline(time.Now().Add(time.Second)); ; got++ {
		_, err := y.ReadPacket(buf)
		if err != nil {
			break
		}
		if i := binary.BigEndian.Uint64(buf); i != uint64(count-kept+got) {
			t.Fatalf("packet %d at place %d", i, got)
		}
	}
	if s := y.Stats(); got != kept || s.Received != kept || s.Dropped != count-kept {
		t.Errorf("%d packets were kept, %+v", got, s)
	}
	x.Close()
	y.Close()
}

func testManyFlows(t *testing.T, a, b tunnel.Session) {
	go func() {
		for {
			st, err := b.AcceptStream(t.Context())
			if err != nil {
				return
			}
			go echoPackets(st)
		}
	}()
	var wg sync.WaitGroup
	for i := range 300 {
		wg.Go(func() {
			st, err := a.OpenStream(t.Context())
			if err != nil {
				t.Error(err)
				return
			}
			st.Write([]byte{'!'})
			f := packets.New(st)
			defer f.Close()
			p, buf := randomBytes(20+i), make([]byte, 2000)
			for range 20 { // who speaks UDP repeats what was lost
				if err := f.WritePacket(p); err != nil {
					t.Error(err)
					return
				}
				f.SetReadDeadline(time.Now().Add(time.Second))
				n, err := f.ReadPacket(buf)
				if errors.Is(err, os.ErrDeadlineExceeded) {
					continue
				}
				if err != nil || !bytes.Equal(buf[:n], p) {
					t.Errorf("flow %d: %d bytes, %v", i, n, err)
				}
				return
			}
			t.Errorf("flow %d: no answer", i)
		})
	}
	wg.Wait()
}

func echoPackets(st tunnel.Stream) {
	if _, err := io.ReadFull(st, make([]byte, 1)); err != nil {
		st.Close()
		return
	}
	f := packets.New(st)
	defer f.Close()
	buf := make([]byte, packets.MaxPacket)
	for {
		n, err := f.ReadPacket(buf)
		if err != nil {
			return
		}
		f.WritePacket(buf[:n])
	}
}

// testNoPacket: what breaks the form ends the flow, and only that.
func testNoPacket(t *testing.T, a, b tunnel.Session) {
	for _, c := range []struct {
		name, bytes string
		end         bool
	}{
		{"too large", "\xff\xff", false},
		{"ends inside a packet", "\x00\x05abc", true},
		{"ends inside a length", "\x00", true},
	} {
		x, y := open(t, a, b)
		f := packets.New(y)
		io.WriteString(x, c.bytes)
		if c.end {
			x.CloseWrite()
		}
		_, err := f.ReadPacket(make([]byte, 10))
		wantReset(t, c.name, err, protocol.CodeProtocol, false)
		if !c.end {
			_, err = x.Read(make([]byte, 1))
			wantReset(t, c.name+", at its sender", err, protocol.CodeProtocol, true)
		}
		x.Close()
		f.Close()
	}
	go echo(b)
	roundTrip(t, a, 1000)
}
