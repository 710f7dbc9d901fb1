package e2e_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/test/world"
)

// A service gets a public port when the relay's owner has granted it, and loses
// it with the grant.
func TestPublicPort(t *testing.T) {
	world.Run(t, func(w *world.World) {
		r := w.Relay(domain)
		h := r.NewHome("kitchen", world.Echo("ssh").Port(2222).Auth(protocol.AuthNone))
		h.Start()
		p := r.Stranger()
		w.Until(time.Minute, "the relay refuses the port", func() bool {
			s := h.Status().Services
			return len(s) == 1 && s[0].Error != ""
		})
		if _, err := p.DialPlain(2222); err == nil {
			t.Error("a port that nobody granted is open")
		}
		r.Grant("kitchen", "2222")
		w.Until(time.Minute, "the port is open", func() bool {
			c, err := p.DialPlain(2222)
			if err == nil {
				c.Close()
			}
			return err == nil
		})
		w.Until(time.Minute, "the home knows where it is", func() bool { return h.Status().Services[0].URL == "tcp://example.org:2222" })
		echo := func() net.Conn {
			t.Helper()
			c, err := p.DialPlain(2222)
			if err != nil {
				t.Fatal(err)
			}
			io.WriteString(c, "hello")
			got := make([]byte, 5)
			if _, err := io.ReadFull(c, got); err != nil || string(got) != "hello" {
				t.Errorf("got %q, %v", got, err)
			}
			return c
		}
		c := echo()

		// A restart of the relay changes nothing.
		r.Stop()
		r.Start()
		w.Until(2*time.Minute, "the home is back", func() bool { return r.Online("kitchen") })
		c.Close()
		c = echo()

		r.Grant("kitchen")
		c.SetReadDeadline(time.Now().Add(time.Second))
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("a connection outlived the grant")
		} else if nerr, ok := err.(net.Error); ok && nerr.Timeout() {
			t.Error("a connection is open a second after the grant was taken back")
		}
		if _, err := p.DialPlain(2222); err == nil {
			t.Error("the port is open though the grant was taken back")
		}
	})
}

// Datagrams of a public port cross the tunnel, over QUIC and over TCP, small ones
// and those that no QUIC datagram takes; visitors are kept apart; a flow that is
// silent ends.
func TestUDPService(t *testing.T) {
	for _, transport := range []string{"quic", "tcp"} {
		t.Run(transport, func(t *testing.T) {
			world.Run(t, func(w *world.World) {
				r := w.Relay(domain)
				h := r.NewHome("kitchen", world.EchoUDP("wg", 51820))
				h.Transports = []string{transport}
				h.Start()
				w.Until(time.Minute, "the home is there", func() bool { return h.Status().Link != nil })
				r.Grant("kitchen", "51820/udp")
				w.Until(time.Minute, "the port is granted", func() bool { return h.Status().Services[0].URL == "udp://example.org:51820" })
				phones := []*world.Phone{r.Stranger(), r.Stranger()}
				for round, size := range []int{1, 148, 1200, 1252, 1400} {
					for i, p := range phones {
						c, to := p.UDP(51820)
						defer c.Close()
						packet := bytes.Repeat(fmt.Appendf(nil, "%d", i), size)
						if got := askUDP(t, w, c, to, packet); !bytes.Equal(got, packet) {
							t.Fatalf("round %d: phone %d got %d bytes %.10q for %d of %.10q", round, i, len(got), got, len(packet), packet)
						}
					}
				}
				ports := r.Status().Ports
				if len(ports) != 1 || ports[0].Open != 10 {
					t.Errorf("ports %+v, want 10 flows", ports)
				}
				w.Sleep(4 * time.Minute)
				if ports := r.Status().Ports; ports[0].Open != 0 {
					t.Errorf("%d flows after four silent minutes", ports[0].Open)
				}
				if n := r.Agent("kitchen").Streams; n > 2 {
					t.Errorf("%d streams are open to the home", n)
				}
			})
		})
	}
}

// askUDP sends a packet until an answer comes: datagrams may be lost.
func askUDP(t *testing.T, w *world.World, c net.PacketConn, to net.Addr, packet []byte) []byte {
	t.Helper()
	buf := make([]byte, 1<<16)
	for range 5 {
		if _, err := c.WriteTo(packet, to); err != nil {
			t.Fatal(err)
		}
		c.SetReadDeadline(time.Now().Add(2 * time.Second))
		n, _, err := c.ReadFrom(buf)
		if err == nil {
			return buf[:n]
		}
	}
	return nil
}
