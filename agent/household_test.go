package agent

import (
	"errors"
	"io"
	"net"
	"testing"

	"github.com/sallyport/sallyport/mqttbridge/bridge"
)

// TestStatusNamesTheSideThatIsAway: an error of the relay is not one of the
// broker, and what is over is not told.
func TestStatusNamesTheSideThatIsAway(t *testing.T) {
	for _, c := range []struct {
		broker, link                 bool
		wantBroker, wantLink, wantDB string
	}{
		{false, true, "no broker", "", ""},
		{true, false, "", "no relay", ""},
		{false, false, "no broker", "no relay", ""},
		{true, true, "", "", "disk full"},
		{false, false, "no broker", "no relay", "disk full"},
	} {
		m := mqttStatus("tcp://home", bridge.Status{
			Broker: bridge.Peer{Connected: c.broker, LastError: "no broker"},
			Relay:  bridge.Peer{Connected: c.link, LastError: "no relay"},
			Queue:  bridge.Queue{Problem: c.wantDB},
		})
		if m.Error != c.wantBroker || m.LinkError != c.wantLink || m.QueueError != c.wantDB {
			t.Errorf("broker %v, link %v: %q, %q, %q", c.broker, c.link, m.Error, m.LinkError, m.QueueError)
		}
	}
}

// TestRoadSaysThatItMoved: only an end by a newer session is no error.
func TestRoadSaysThatItMoved(t *testing.T) {
	for _, moved := range []bool{true, false} {
		a, b := net.Pipe()
		r := &road{Conn: a, closed: make(chan struct{})}
		news := make(chan struct{})
		go r.follow(news)
		if moved {
			close(news)
		} else {
			b.Close()
		}
		_, err := r.Read(make([]byte, 1))
		if errors.Is(err, bridge.ErrMoved) != moved || !moved && !errors.Is(err, io.EOF) {
			t.Errorf("moved %v: read: %v", moved, err)
		}
		if _, err := r.Write([]byte("x")); errors.Is(err, bridge.ErrMoved) != moved {
			t.Errorf("moved %v: write: %v", moved, err)
		}
		r.Close()
		b.Close()
	}
}
