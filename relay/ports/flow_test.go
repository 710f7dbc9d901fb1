package ports

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
	"github.com/sallyport/sallyport/protocol/tunnel/tunneltest"
)

const (
	alice = "203.0.113.1:40000"
	bob   = "[2001:db8::b]:40001"
)

func TestUDPFlows(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, Limits{})
		s := w.udp(t)
		s.send(alice, "hello")
		s.expect(t, alice, "HELLO")
		s.send(bob, "hi")
		s.expect(t, bob, "HI")
		s.send(alice, "again")
		s.expect(t, alice, "AGAIN")
		s.send(alice, "") // a packet, too
		s.expect(t, alice, "")
		want := []protocol.Open{
			{Service: "wg", Client: netip.MustParseAddrPort(alice), Local: netip.MustParseAddrPort("198.51.100.1:5000"), Packets: true},
			{Service: "wg", Client: netip.MustParseAddrPort(bob), Local: netip.MustParseAddrPort("198.51.100.1:5000"), Packets: true},
		}
		if got := w.opened(); len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
			t.Errorf("opened %+v", got)
		}
		synctest.Wait()
		st := w.Status()
		if len(st) != 1 || st[0].Open != 2 || st[0].Total != 2 || st[0].BytesIn != 12 || st[0].BytesOut != 12 || st[0].Error != "" {
			t.Errorf("status %+v", st)
		}
	})
}

// The largest packets pass, and what is large does not need large buffers to
// wait in.
func TestUDPLargePackets(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, Limits{})
		s := w.udp(t)
		for _, size := range []int{1452, smallPacket, smallPacket + 1, 65507} {
			s.send(alice, strings.Repeat("x", size))
			s.expect(t, alice, strings.Repeat("X", size))
		}
	})
}

// Who comes from another address is somebody else.
func TestUDPRoaming(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, Limits{})
		s := w.udp(t)
		for _, from := range []string{"203.0.113.1:1", "203.0.113.1:2", "203.0.113.2:1"} {
			s.send(from, "x")
			s.expect(t, from, "X")
		}
		if n := len(w.opened()); n != 3 {
			t.Errorf("%d flows", n)
		}
	})
}

// The first packets of a handshake wait for the stream, in order, and no more of
// them than a stranger may have of our memory.
func TestUDPHoldsTheFirstPackets(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, Limits{})
		gate := make(chan struct{})
		w.change(func() { w.gate = gate })
		s := w.udp(t)
		for i := range maxHeld + 3 {
			s.send(alice, fmt.Sprintf("p%d", i))
		}
		s.send(bob, strings.Repeat("b", maxHeldBytes+1))
		synctest.Wait()
		if st := w.Status()[0]; st.Dropped != 4 {
			t.Errorf("%d packets dropped, want 4", st.Dropped)
		}
		close(gate)
		for i := range maxHeld {
			s.expect(t, alice, fmt.Sprintf("P%d", i))
		}
		s.send(alice, "more")
		s.expect(t, alice, "MORE")
		s.silent(t)
	})
}

// Home says no: one stream in five seconds, and not one byte to the visitor.
func TestUDPRefusedIsLeftAlone(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, Limits{})
		w.change(func() { w.answer = protocol.CodeUnknownService })
		s := w.udp(t)
		for range 100 {
			s.send(alice, "x")
			time.Sleep(49 * time.Millisecond) // virtual
		}
		if n := len(w.opened()); n != 1 {
			t.Errorf("%d streams for one visitor in five seconds", n)
		}
		s.send(bob, "x") // another visitor is not held responsible
		synctest.Wait()
		if n := len(w.opened()); n != 2 {
			t.Errorf("%d streams, want 2", n)
		}
		time.Sleep(holdOff) // virtual
		w.change(func() { w.answer = protocol.CodeOK })
		s.silent(t)
		s.send(alice, "y")
		s.expect(t, alice, "Y")
		if log := w.log.String(); !strings.Contains(log, "no stream for a visitor") || !strings.Contains(log, "unknown-service") {
			t.Errorf("log:\n%s", log)
		}
	})
}

// A home that ends flows at once is not asked for each packet.
func TestUDPEndedAtOnce(t *testing.T) {
	for _, clean := range []bool{true, false} {
		tunneltest.Bubble(t, func(t *testing.T) {
			w := newWorld(t, Limits{})
			w.change(func() { w.quiet = true })
			s := w.udp(t)
			s.send(alice, "x")
			synctest.Wait()
			if clean {
				w.flow(t, 0).Close()
			} else {
				w.flow(t, 0).Reset(protocol.CodeInternal)
			}
			for range 10 {
				synctest.Wait()
				s.send(alice, "x")
			}
			synctest.Wait()
			if n := len(w.opened()); n != 1 {
				t.Errorf("clean %v: %d streams at once", clean, n)
			}
			// One that went well for a while is opened anew at once.
			time.Sleep(holdOff + time.Second) // virtual
			s.send(alice, "x")
			time.Sleep(holdOff) // virtual
			w.flow(t, 1).Reset(protocol.CodeGoingAway)
			synctest.Wait()
			s.send(alice, "x")
			synctest.Wait()
			if n := len(w.opened()); n != 3 {
				t.Errorf("clean %v: %d streams in all, want 3", clean, n)
			}
		})
	}
}

// A visitor who never answers an answer may be a forged address: it is forgotten
// soon, and home cannot keep sending to it.
func TestUDPStrangerIsForgotten(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, Limits{})
		w.change(func() { w.quiet = true })
		s := w.udp(t)
		s.send(alice, "x")
		synctest.Wait()
		home := w.flow(t, 0)
		start := time.Now()
		for home.WritePacket([]byte("stream")) == nil && time.Since(start) < time.Hour {
			time.Sleep(time.Second) // virtual
		}
		if took := time.Since(start); took < strangerIdle || took > strangerIdle+2*time.Second {
			t.Errorf("home could send for %v", took)
		}
		if err := ended(home); !errors.Is(err, io.EOF) {
			t.Errorf("the flow ended with %v", err)
		}
		synctest.Wait()
		if st := w.Status()[0]; st.Open != 0 {
			t.Errorf("status %+v", st)
		}
	})
}

// Until a visitor has sent again after an answer it is sent three times what it
// sent, or a little: a forged source aims no stream at anybody with one packet.
func TestUDPStrangerIsSentLittle(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, Limits{})
		w.change(func() { w.quiet = true })
		s := w.udp(t)
		s.send(alice, "x")
		synctest.Wait()
		home := w.flow(t, 0)
		answer := func(n, size int) (came int) {
			dropped := w.Status()[0].Dropped
			for range n {
				if err := home.WritePacket(make([]byte, size)); err != nil {
					t.Fatal(err)
				}
			}
			synctest.Wait()
			for range n {
				select {
				case <-s.out:
					came++
				default:
				}
			}
			if more := w.Status()[0].Dropped - dropped; int(more) != n-came {
				t.Errorf("%d packets dropped, %d counted", n-came, more)
			}
			return came
		}
		for _, want := range []int{4, 0} {
			if n := answer(10, 1024); n != want {
				t.Errorf("one byte was answered with %d KiB, want %d", n, want)
			}
		}
		// Two packets at once are no proof, but count.
		s.send(alice, strings.Repeat("x", 2048))
		synctest.Wait()
		if n := answer(10, 1024); n != 2 {
			t.Errorf("2 KiB were answered with %d KiB, want 4 before and 2 now", n)
		}
		if n := answer(10, 0); n != 0 {
			t.Errorf("%d empty packets are nothing", n)
		}
		if n := strings.Count(w.log.String(), "too much for a visitor"); n != 1 {
			t.Errorf("%d lines:\n%s", n, w.log.String())
		}
		time.Sleep(proofDelay) // virtual
		s.send(alice, "x")
		synctest.Wait()
		if n := answer(50, 1024); n != 50 {
			t.Errorf("%d of 50 packets came to a visitor who had sent again", n)
		}
	})
}

// The visitor keeps a flow alive, not the home (RFC 4787).
func TestUDPIdle(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, Limits{UDPIdle: 2 * time.Minute})
		s := w.udp(t)
		s.send(alice, "x")
		s.expect(t, alice, "X")
		for range 10 { // longer than a stranger may be silent, shorter than the limit
			time.Sleep(110 * time.Second / 4) // virtual
			s.send(alice, "x")
			s.expect(t, alice, "X")
		}
		time.Sleep(110 * time.Second) // virtual
		s.send(alice, "x")
		s.expect(t, alice, "X")
		if n := len(w.opened()); n != 1 {
			t.Errorf("%d flows, want the first one to live", n)
		}
		home, start := w.flow(t, 0), time.Now()
		for home.WritePacket([]byte("stream")) == nil && time.Since(start) < time.Hour {
			time.Sleep(time.Second) // virtual
		}
		if took := time.Since(start); took < 2*time.Minute || took > 2*time.Minute+2*time.Second {
			t.Errorf("home could send for %v to a silent visitor", took)
		}
	})
}

// Nobody is a multicast group, a broadcast address or port 0.
func TestUDPSourcesThatCannotBe(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, Limits{})
		s := w.udp(t)
		for _, from := range []string{"203.0.113.1:0", "0.0.0.0:5", "224.0.0.251:5", "255.255.255.255:5", "[::]:5", "[ff02::1]:5"} {
			s.send(from, "x")
		}
		synctest.Wait()
		if n := len(w.opened()); n != 0 {
			t.Errorf("%d flows", n)
		}
		s.silent(t)
	})
}

// When the port is taken away its flows end, and home is told why.
func TestUDPUnbind(t *testing.T) {
	for _, stop := range []bool{false, true} {
		tunneltest.Bubble(t, func(t *testing.T) {
			w := newWorld(t, Limits{})
			gate := make(chan struct{})
			w.change(func() { w.quiet = true })
			s := w.udp(t)
			s.send(alice, "x")
			synctest.Wait()
			w.change(func() { w.gate = gate })
			s.send(bob, "x") // opening
			synctest.Wait()
			want := protocol.CodeUnknownService
			if stop {
				want = protocol.CodeAborted
				w.stop()
				w.run.Wait()
			} else {
				w.set(t)
			}
			if !s.isClosed() {
				t.Error("the socket is open")
			}
			var reset *tunnel.ResetError
			if err := ended(w.flow(t, 0)); !errors.As(err, &reset) || reset.Code != want {
				t.Errorf("stop %v: home saw %v", stop, err)
			}
			if failed := w.Set([]Route{udpRoute("wg", 5001)}); (len(failed) > 0) != stop {
				t.Errorf("stop %v: %v", stop, failed)
			}
		})
	}
}

// No error of a socket ends the port or a flow; they are no busy loop either.
func TestUDPSocketErrors(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, Limits{})
		s := w.udp(t)
		start := time.Now()
		for range 12 {
			s.broken <- errors.New("no memory")
		}
		synctest.Wait()
		time.Sleep(8 * time.Second) // virtual
		if n := len(s.broken); n > 0 {
			t.Errorf("%d errors wait after %v", n, time.Since(start))
		}
		if n := strings.Count(w.log.String(), "receive failed"); n != 1 {
			t.Errorf("%d lines", n)
		}
		s.refuse <- syscall.EPERM
		s.send(alice, "a firewall drops the answer")
		s.send(alice, "not this one")
		s.expect(t, alice, "NOT THIS ONE")
		synctest.Wait()
		if st := w.Status()[0]; st.Dropped != 1 || st.Open != 1 {
			t.Errorf("status %+v", st)
		}
	})
}
