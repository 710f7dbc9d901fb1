package lan

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
)

// A heardPacket is what a fakeSocket was told to send.
type heardPacket struct {
	at  time.Duration // since the socket was made
	msg *dns.Msg
	on  string
	to  netip.AddrPort // zero: everybody
}

// A fakeSocket plays the network.
type fakeSocket struct {
	t      *testing.T
	made   time.Time
	in     chan fakePacket
	closed chan struct{}
	once   sync.Once

	mu   sync.Mutex // guards sent
	sent []heardPacket
}

type fakePacket struct {
	data  []byte
	iface int
	from  netip.AddrPort
	err   error
}

func newFakeSocket(t *testing.T) *fakeSocket {
	return &fakeSocket{t: t, made: time.Now(), in: make(chan fakePacket), closed: make(chan struct{})}
}

func (s *fakeSocket) read(buf []byte) (int, int, netip.AddrPort, error) {
	select {
	case p := <-s.in:
		return copy(buf, p.data), p.iface, p.from, p.err
	case <-s.closed:
		return 0, 0, netip.AddrPort{}, net.ErrClosed
	}
}

func (s *fakeSocket) write(packet []byte, on *net.Interface, to netip.AddrPort) error {
	m := new(dns.Msg)
	if err := m.Unpack(packet); err != nil {
		s.t.Errorf("sent what nobody can read: %v", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sent = append(s.sent, heardPacket{time.Since(s.made), m, on.Name, to})
	return nil
}

func (s *fakeSocket) Close() error {
	s.once.Do(func() { close(s.closed) })
	return nil
}

// take returns what was sent since the last call.
func (s *fakeSocket) take() []heardPacket {
	s.mu.Lock()
	defer s.mu.Unlock()
	sent := s.sent
	s.sent = nil
	return sent
}

// ask sends a query for the service.
func (s *fakeSocket) ask(from string, iface int, unicast bool) {
	q := question(serviceType, dns.TypePTR)
	if unicast {
		q.Question[0].Qclass |= topBit
	}
	s.in <- fakePacket{data: packed(s.t, q), iface: iface, from: netip.MustParseAddrPort(from)}
}

// responding runs a responder on eth0 (192.168.1.7/24, fd00::7/64), in a bubble.
func responding(t *testing.T) (s *fakeSocket, end func(cause error)) {
	l := linkWith("eth0", "192.168.1.7/24", "fd00::7/64", "fe80::7/64")
	s = newFakeSocket(t)
	r := &responder{stations: []*station{newStation(l, testZone())}, sockets: []socket{s}}
	ctx, cancel := context.WithCancelCause(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.run(ctx)
	}()
	return s, func(cause error) {
		cancel(cause)
		<-done
	}
}

func TestAnnouncement(t *testing.T) {
	for _, c := range []struct {
		cause    error
		farewell bool
	}{{context.Canceled, true}, {errChanged, false}} {
		synctest.Test(t, func(t *testing.T) {
			s, end := responding(t)
			time.Sleep(time.Hour) // virtual
			sent := s.take()
			if len(sent) != 2 || sent[0].at != 0 || sent[1].at != time.Second || sent[0].to.IsValid() || sent[0].on != "eth0" || len(sent[0].msg.Answer) != 5 {
				t.Fatalf("announced: %v", sent)
			}
			end(c.cause)
			sent = s.take()
			if c.farewell != (len(sent) == 1) || c.farewell && sent[0].msg.Answer[0].Header().Ttl != 0 {
				t.Errorf("%v: said at the end: %v", c.cause, sent)
			}
		})
	}
}

func TestOnlyNeighboursAreAnswered(t *testing.T) {
	const index = 4 // of eth0, see linkWith
	synctest.Test(t, func(t *testing.T) {
		s, end := responding(t)
		for _, c := range []struct {
			from  string
			iface int
			want  bool
		}{
			{"192.168.1.20:5353", index, true},
			{"192.168.1.20:5353", 0, true}, // the system does not tell
			{"[fd00::20]:5353", index, true},
			{"[fe80::20%eth0]:5353", index, true},
			{"192.168.1.20:40000", index, true},
			{"[fe80::20%eth1]:5353", 0, false},
			{"192.168.1.20:5353", index + 1, false},
			{"192.168.2.20:5353", index, false},
			{"203.0.113.9:5353", index, false},
			{"[2001:db8::9]:40000", index, false},
			{"0.0.0.0:5353", index, false},
		} {
			time.Sleep(5 * time.Second) // virtual
			s.take()
			s.ask(c.from, c.iface, false)
			time.Sleep(time.Second) // virtual
			synctest.Wait()
			sent := s.take()
			if got := len(sent) == 1; got != c.want {
				t.Errorf("from %s by %d: answered %v, want %v", c.from, c.iface, got, c.want)
				continue
			}
			if legacy := strings.HasSuffix(c.from, "40000"); c.want && legacy != sent[0].to.IsValid() {
				t.Errorf("from %s: sent to %v", c.from, sent[0].to)
			}
		}
		end(context.Canceled)
	})
}

// However often one asks, everybody hears an answer once a second at most, and
// not at the same moment as those of others.
func TestAnswersArePaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, end := responding(t)
		time.Sleep(5 * time.Second) // virtual
		s.take()
		begin := time.Since(s.made)
		for range 100 {
			s.ask("192.168.1.20:5353", 4, false)
			time.Sleep(50 * time.Millisecond) // virtual
		}
		time.Sleep(time.Second) // virtual
		sent := s.take()
		if len(sent) < 4 || len(sent) > 6 {
			t.Errorf("%d answers to 100 questions in 5 s", len(sent))
		}
		if delay := sent[0].at - begin; delay < firstDelay || delay >= firstDelay+moreDelay {
			t.Errorf("answered after %v", delay)
		}
		for range 100 {
			s.ask("192.168.1.20:5353", 4, true)
		}
		synctest.Wait()
		sent = s.take()
		if len(sent) != maxUnicast || slices.ContainsFunc(sent, func(p heardPacket) bool { return !p.to.IsValid() }) {
			t.Errorf("%d answers to 100 questions for the asker alone, want %d", len(sent), maxUnicast)
		}
		end(context.Canceled)
	})
}

func TestNoiseAndFaults(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, end := responding(t)
		time.Sleep(5 * time.Second) // virtual
		s.take()
		s.in <- fakePacket{err: errors.New("port unreachable")}
		s.in <- fakePacket{data: []byte("noise"), iface: 4, from: netip.MustParseAddrPort("192.168.1.20:5353")}
		s.in <- fakePacket{data: packed(t, testZone().all(false)), iface: 4, from: netip.MustParseAddrPort("192.168.1.20:5353")}
		synctest.Wait()
		if sent := s.take(); len(sent) != 0 {
			t.Errorf("answered %v", sent)
		}
		s.ask("192.168.1.20:5353", 4, true)
		synctest.Wait()
		if sent := s.take(); len(sent) != 1 {
			t.Errorf("after noise: %v", sent)
		}
		end(context.Canceled)
	})
}

// The announcement follows the addresses; one runs at a time.
func TestAnnouncementFollows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		now := addrs("192.168.1.7")
		var running, most int
		var said [][]netip.Addr
		var causes []error
		listener := newFakeListener()
		l := newLAN(t, Config{
			Announce:  true,
			ListenTCP: func(string) (net.Listener, error) { return listener, nil },
			Addrs: func() []netip.Addr {
				mu.Lock()
				defer mu.Unlock()
				return now
			},
		})
		l.announce = func(ctx context.Context, v *view) error {
			mu.Lock()
			running++
			most = max(most, running)
			said = append(said, v.addrs)
			mu.Unlock()
			<-ctx.Done()
			mu.Lock()
			defer mu.Unlock()
			running--
			causes = append(causes, context.Cause(ctx))
			return nil
		}
		stop := start(t, l)
		set := func(as []netip.Addr) {
			mu.Lock()
			now = as
			mu.Unlock()
			time.Sleep(poll) // virtual
			synctest.Wait()
		}
		time.Sleep(time.Second) // virtual
		if s := l.Status(); s.Announced != instanceName(own) {
			t.Errorf("status %+v", s)
		}
		set(addrs("192.168.1.8"))
		set(nil)
		if s := l.Status(); s.Announced != "" {
			t.Errorf("announced without an address: %+v", s)
		}
		set(addrs("192.168.1.9"))
		stop()
		if !slices.EqualFunc(said, [][]netip.Addr{addrs("192.168.1.7"), addrs("192.168.1.8"), addrs("192.168.1.9")}, slices.Equal) || most != 1 || running != 0 {
			t.Errorf("announced %v, %d at a time, %d left", said, most, running)
		}
		if len(causes) != 3 || causes[0] != errChanged || causes[2] == errChanged {
			t.Errorf("causes %v", causes)
		}
	})
}

func TestAnnouncementFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		listener := newFakeListener()
		l := newLAN(t, Config{
			Announce: true, Addrs: func() []netip.Addr { return addrs("192.0.2.77") }, // no interface of this machine has it
			ListenTCP: func(string) (net.Listener, error) { return listener, nil },
		})
		stop := start(t, l)
		time.Sleep(time.Second) // virtual
		if s := l.Status(); s.Announced != "" || len(s.URLs) != 1 {
			t.Errorf("status %+v", s)
		}
		stop()
	})
}
