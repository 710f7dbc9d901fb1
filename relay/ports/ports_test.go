package ports

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/protocol/tunnel/tunneltest"
)

func TestNewNeedsOpen(t *testing.T) {
	if _, err := New(Config{}); err == nil {
		t.Error("no error")
	}
}

// What stays is not disturbed; what goes to somebody else is.
func TestSetKeeps(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, Limits{})
		wg, dns := udpRoute("wg", 5000), udpRoute("dns", 5353)
		ssh := tcpRoute("ssh", 5000) // the same number is another port
		w.set(t, wg, dns, ssh)
		first, second := w.socket(5000), w.socket(5353)
		first.send(alice, "x")
		first.expect(t, alice, "X")
		w.set(t, ssh, wg, wg)
		if first.isClosed() || w.socket(5000) != first || !second.isClosed() {
			t.Error("the wrong socket was closed")
		}
		first.send(alice, "y")
		first.expect(t, alice, "Y")
		if n := len(w.opened()); n != 1 {
			t.Errorf("%d flows", n)
		}
		// Another agent's: its visitors must not reach the one before.
		other := wg
		other.Agent = "other"
		w.set(t, other)
		if !first.isClosed() || w.socket(5000) == first {
			t.Error("a port of another agent kept its socket")
		}
		if alive(w.flow(t, 0)) {
			t.Error("a flow of the former agent goes on")
		}
		want := []string{
			"port.opened 5000/tcp", "port.opened 5000/udp", "port.opened 5353/udp", "port.closed 5353/udp",
			"port.closed 5000/tcp", "port.closed 5000/udp", "port.opened 5000/udp",
		}
		w.change(func() {
			slices.Sort(w.audit[4:6]) // two that are closed at once
			if !slices.Equal(w.audit, want) {
				t.Errorf("audit %q", w.audit)
			}
		})
	})
}

// Whoever counts what an agent causes finds it by its whole ID.
func TestAuditNamesTheAgent(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, Limits{})
		w.set(t, udpRoute("wg", 5000))
		w.set(t)
		line := "[port=5000/udp service=wg agent=" + string(agentID) + "]"
		w.change(func() {
			if !slices.Equal(w.attrs, []string{line, line}) {
				t.Errorf("attributes %q", w.attrs)
			}
		})
	})
}

func TestSetBeforeRun(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, Limits{})
		w.set(t, udpRoute("wg", 5000)) // perhaps Run has not begun yet
		w.set(t)
		w.set(t, udpRoute("wg", 5000))
		s := w.socket(5000)
		s.send(alice, "x")
		s.expect(t, alice, "X")
	})
}

func TestSetErrors(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, Limits{})
		w.change(func() {
			w.busy[53] = fmt.Errorf("listen: %w", syscall.EADDRINUSE)
			w.busy[80] = fmt.Errorf("listen: %w", fs.ErrPermission)
			w.busy[9999] = errors.New("out of luck")
		})
		good, twice := udpRoute("good", 5000), udpRoute("twice", 5000)
		routes := []Route{good, twice, udpRoute("zero", 0), udpRoute("dns", 53), tcpRoute("web", 80), tcpRoute("luck", 9999)}
		failed := w.Set(routes)
		for r, want := range map[Route]string{
			twice:                  "is taken by another service: choose",
			udpRoute("zero", 0):    "from 1 to 65535",
			udpRoute("dns", 53):    "port 53/udp is in use at the relay: choose another one",
			tcpRoute("web", 80):    "CAP_NET_BIND_SERVICE",
			tcpRoute("luck", 9999): "out of luck",
		} {
			if err := failed[r]; err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, want %q", r.Service, err, want)
			}
		}
		if len(failed) != 5 {
			t.Errorf("%d failed: %v", len(failed), failed)
		}
		if strings.Contains(fmt.Sprint(failed[twice]), "good") {
			t.Error("an agent is told the name of another one's service")
		}
		var seen []string
		for _, st := range w.Status() {
			seen = append(seen, fmt.Sprint(st.Route, " ", st.Service, " ", st.Addr != "", " ", st.Error != ""))
		}
		want := []string{"0/udp zero false true", "53/udp dns false true", "80/tcp web false true", "5000/udp good true false", "5000/udp twice false true", "9999/tcp luck false true"}
		if !slices.Equal(seen, want) {
			t.Errorf("status %q", seen)
		}

		// Who has a port keeps it, wherever it stands in the list.
		s := w.socket(5000)
		routes[0], routes[1] = routes[1], routes[0]
		if failed := w.Set(routes); failed[good] != nil || failed[twice] == nil || s.isClosed() {
			t.Errorf("the one that came later took the port: %v", failed)
		}

		// What could not be had is tried again, and the log says so once.
		w.change(func() { delete(w.busy, 53) })
		time.Sleep(retryBind + time.Second) // virtual
		synctest.Wait()
		dns := w.socket(53)
		if dns == nil {
			t.Fatal("the port was not tried again")
		}
		dns.send(alice, "x")
		dns.expect(t, alice, "X")
		if n := strings.Count(w.log.String(), "CAP_NET"); n != 1 {
			t.Errorf("%d lines for one port:\n%s", n, w.log.String())
		}
	})
}
