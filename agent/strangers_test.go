package agent

import (
	"net"
	"net/netip"
	"testing"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/door"
)

// cutConn notes whether it was reset.
type cutConn struct {
	net.Conn
	cut bool
}

func (c *cutConn) CloseWrite() error   { return nil }
func (c *cutConn) Reset(protocol.Code) { c.cut = true }

func TestStrangers(t *testing.T) {
	var s strangers
	conns := map[*visitorConn]*cutConn{}
	enter := func(addr string, most int) *visitorConn {
		raw := new(cutConn)
		c := &visitorConn{Conn: raw, client: netip.AddrPortFrom(netip.MustParseAddr(addr), 1), crowd: &s}
		conns[c] = raw
		s.add(c, most)
		return c
	}
	first := enter("203.0.113.1", 3)
	known := enter("203.0.113.2", 3)
	known.Met(&door.Device{ID: "anna"})
	known.Met(&door.Device{ID: "anna"})
	second := enter("203.0.113.3", 3)
	anonymous := enter("203.0.113.4", 3)
	anonymous.Met(nil) // an open site: still a stranger
	if conns[first].cut || conns[second].cut {
		t.Fatal("there was room")
	}
	last := enter("203.0.113.5", 3)
	if !conns[first].cut || conns[known].cut || conns[second].cut || conns[last].cut {
		t.Errorf("the oldest stranger goes, and nobody else: %v %v %v %v", conns[first].cut, conns[known].cut, conns[second].cut, conns[last].cut)
	}
	for range strangersPerAddr + 1 {
		enter("203.0.113.9", 1000)
	}
	cut := 0
	for c, raw := range conns {
		if raw.cut && c.client.Addr() == netip.MustParseAddr("203.0.113.9") {
			cut++
		}
	}
	if cut != 1 {
		t.Errorf("%d of one address were cut, want 1", cut)
	}
	for c := range conns {
		s.remove(c)
	}
	if s.all.Len() != 0 || len(s.at) != 0 || len(s.byAddr) != 0 {
		t.Errorf("left over: %d, %d, %v", s.all.Len(), len(s.at), s.byAddr)
	}
}
