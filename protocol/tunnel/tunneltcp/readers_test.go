package tunneltcp

import (
	"crypto/tls"
	"net"
	"testing"
)

// TestReaders: whoever may wait in Read is woken when yamux closes the
// connection, and nobody else.
func TestReaders(t *testing.T) {
	freshTimers()
	near, far := net.Pipe()
	defer far.Close()
	cork := &cork{Conn: near}
	l, err := newLink(tls.Client(cork, &tls.Config{ServerName: "relay.test"}), cork, Config{}.withDefaults(), true)
	if err != nil {
		t.Fatal(err)
	}
	waits, late := &fakeYamux{}, &fakeYamux{}
	newLane(l, waits, false, false)
	l.session.Close()
	newLane(l, late, false, false)
	for name, y := range map[string]*fakeYamux{"one that waits": waits, "one that comes after": late} {
		if !y.woken.Equal(longAgo) {
			t.Errorf("%s: the read deadline is %v", name, y.woken)
		}
	}

	gone := &fakeYamux{}
	var r readers
	r.add(gone)
	r.remove(gone)
	r.close()
	if !gone.woken.IsZero() || len(r.open) != 0 {
		t.Errorf("one that was done: the read deadline is %v", gone.woken)
	}
}
