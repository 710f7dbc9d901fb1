package real

import (
	"net"
	"testing"
	"time"
)

// TestSilentCrowd: 500 connections that say nothing and 500 that say half a
// ClientHello do not delay a good visitor.
func TestSilentCrowd(t *testing.T) {
	needTools(t, "curl")
	w := newWorld(t)
	w.home("first", "--expose", "ha="+startHomeApp(t))
	phone := w.device("phone")
	w.get(phone, "ha", "/")
	alone := best(t, w, phone)

	// The crowd comes from other addresses than the visitor, as it would.
	var crowd []net.Conn
	defer func() {
		for _, c := range crowd {
			c.Close()
		}
	}()
	// A TLS record header that announces 512 bytes, a ClientHello of 508, and a piece of it.
	half := append([]byte{22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3}, make([]byte, 100)...)
	for i := range 1000 {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(1+i%50))}, Timeout: 5 * time.Second}
		c, err := d.Dial("tcp", w.listen)
		if err != nil {
			d.LocalAddr = nil // not every system has all of 127.0.0.0/8
			if c, err = d.Dial("tcp", w.listen); err != nil {
				t.Fatalf("connection %d: %v", i, err)
			}
		}
		crowd = append(crowd, c)
		if i%2 == 1 {
			if _, err := c.Write(half); err != nil {
				t.Logf("connection %d: %v", i, err)
			}
		}
	}
	among := best(t, w, phone)
	t.Logf("a visit takes %v alone, %v in the crowd", alone, among)
	if among > alone+500*time.Millisecond {
		t.Errorf("a visit takes %v in the crowd, %v without it", among, alone)
	}
}

// TestSilentNeighbours is the same from the visitor's own address: everybody
// behind one mobile provider's NAT shares it.
func TestSilentNeighbours(t *testing.T) {
	needTools(t, "curl")
	w := newWorld(t)
	w.home("first", "--expose", "ha="+startHomeApp(t))
	phone := w.device("phone")
	for i := range 1000 {
		c, err := net.DialTimeout("tcp", w.listen, 5*time.Second)
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		defer c.Close()
		if i%2 == 1 {
			_, _ = c.Write([]byte{22, 3, 1, 2, 0, 1})
		}
	}
	if took := best(t, w, phone); took > time.Second {
		t.Errorf("a visit takes %v", took)
	}
}

// best is the shortest of three visits.
func best(t *testing.T, w *world, d device) time.Duration {
	t.Helper()
	least := time.Hour
	for range 3 {
		r := w.curl(&d, "--max-time", "8", "--fail", w.url("ha", "/"))
		if r.code != 0 {
			t.Errorf("a good visitor is not served: %s", r)
		}
		least = min(least, r.took)
	}
	return least
}
