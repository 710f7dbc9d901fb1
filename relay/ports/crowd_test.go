package ports

import (
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/protocol/tunnel/tunneltest"
)

// visitors are so many addresses of one source.
func visitors(n int) (all []string) {
	for i := range n {
		all = append(all, fmt.Sprintf("203.0.113.1:%d", 1000+i))
	}
	return all
}

// One more flow than a source may have costs it its oldest stranger, and nobody
// who has talked to home.
func TestUDPPerSource(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, Limits{PerSource: 4})
		s := w.udp(t)
		all := visitors(7)
		for _, v := range all[:4] {
			s.send(v, "x")
			s.expect(t, v, "X")
		}
		time.Sleep(proofDelay)      // virtual
		for _, v := range all[:2] { // no strangers any more
			s.send(v, "y")
			s.expect(t, v, "Y")
		}
		for _, v := range all[4:] {
			s.send(v, "x")
			s.expect(t, v, "X")
		}
		synctest.Wait()
		if st := w.Status()[0]; st.Open != 4 || st.Refused != 0 {
			t.Errorf("%+v", st)
		}
		for _, v := range all[:2] {
			s.send(v, "z")
			s.expect(t, v, "Z")
		}
		if n := len(w.opened()); n != 7 {
			t.Errorf("%d flows: one that talked to home had to go", n)
		}
		if alive(w.flow(t, 2)) || alive(w.flow(t, 3)) || alive(w.flow(t, 4)) {
			t.Error("a stranger did not have to go")
		}
		s.send("203.0.113.2:1", "x") // another source has its own places
		s.expect(t, "203.0.113.2:1", "X")
		s.silent(t)
		if st := w.Status()[0]; st.Open != 5 || st.Refused != 0 {
			t.Errorf("%+v", st)
		}
	})
}

// Forged sources push each other out, and nobody who has talked to home.
func TestUDPPerPort(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, Limits{PerPort: 10})
		s := w.udp(t)
		s.settle(t, alice)
		for i := range 100 {
			from := fmt.Sprintf("198.18.%d.1:1", i)
			s.send(from, "x")
			s.expect(t, from, "X")
		}
		synctest.Wait()
		if st := w.Status()[0]; st.Open != 10 {
			t.Errorf("%+v", st)
		}
		s.send(alice, "z")
		s.expect(t, alice, "Z")
		if n := len(w.opened()); n != 101 {
			t.Errorf("%d flows", n)
		}
	})
}

// Two packets with a forged source settle a flow. A port, or a source, that is
// full of such is not closed to others: who is silent longest goes.
func TestUDPSettledMakeRoom(t *testing.T) {
	const places = 16
	for _, one := range []bool{false, true} {
		limits := Limits{PerPort: places}
		forged := func(i int) string { return fmt.Sprintf("198.18.%d.1:1", i) }
		if one {
			limits = Limits{PerSource: places}
			forged = func(i int) string { return fmt.Sprintf("203.0.113.1:%d", 1+i) } // alice's household
		}
		tunneltest.Bubble(t, func(t *testing.T) {
			w := newWorld(t, limits)
			s := w.udp(t)
			for i := range places {
				s.settle(t, forged(i))
			}
			s.send(forged(0), "x") // not the one that is silent longest
			s.expect(t, forged(0), "X")
			newcomers := []string{alice} // and as many as have time for a round trip
			for i := range places/strangersShare - 1 {
				newcomers = append(newcomers, forged(places+i))
			}
			for _, v := range newcomers {
				time.Sleep(proofDelay) // virtual
				s.send(v, "x")
				s.expect(t, v, "X")
			}
			stay := []string{alice, forged(0)}
			for i := 1 + len(newcomers); i < places; i++ {
				stay = append(stay, forged(i))
			}
			before := len(w.opened())
			for _, v := range stay {
				s.send(v, "y")
				s.expect(t, v, "Y")
			}
			synctest.Wait()
			if n := len(w.opened()); n != before {
				t.Errorf("one source %v: %d of those who should stay had to go", one, n-before)
			}
			for i := range newcomers {
				if alive(w.flow(t, 1+i)) {
					t.Errorf("one source %v: flow %d stayed, which was silent longer than others", one, 1+i)
				}
			}
			if st := w.Status()[0]; st.Open != places || st.Refused != 0 {
				t.Errorf("one source %v: %+v", one, st)
			}
			if n := strings.Count(w.log.String(), "to make room for a newcomer"); n != 1 {
				t.Errorf("%d lines for a flood:\n%s", n, w.log.String())
			}
			if strings.Contains(w.log.String(), "flow ended\"") {
				t.Errorf("a line for each:\n%s", w.log.String())
			}
		})
	}
}

// Each new flow costs the home a stream: they are paced, by source and in all.
func TestUDPPace(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, Limits{PerSource: 1000, NewPerSource: 10, NewPerPort: 20})
		s := w.udp(t)
		burst := func(source string, n int) (began int) {
			before := len(w.opened())
			for i := range n {
				s.send(fmt.Sprintf("%s:%d", source, 1+i+before), "x")
			}
			synctest.Wait()
			return len(w.opened()) - before
		}
		if n := burst("203.0.113.1", 100); n != 10*bucketDepth {
			t.Errorf("one source began %d flows at once", n)
		}
		if n := burst("203.0.113.2", 100) + burst("203.0.113.3", 100); n != 10*bucketDepth {
			t.Errorf("other sources began %d flows at once", n)
		}
		time.Sleep(time.Second) // virtual
		if n := burst("203.0.113.1", 100); n != 10 {
			t.Errorf("one source began %d flows a second later", n)
		}
		if st := w.Status()[0]; st.Refused != 400-90 || st.Dropped != st.Refused {
			t.Errorf("%+v", st)
		}
		// A flood writes no flood of lines.
		if n := strings.Count(w.log.String(), errPaced.Error()); n != 1 {
			t.Errorf("%d lines", n)
		}
	})
}

func TestSourceOf(t *testing.T) {
	for in, want := range map[string]string{
		"203.0.113.7":        "203.0.113.7/32",
		"::ffff:203.0.113.7": "203.0.113.7/32",
		"2001:db8:1:2:3::4":  "2001:db8:1:2::/64",
		"fe80::1%eth0":       "fe80::/64",
	} {
		if got := sourceOf(netip.MustParseAddr(in)); got.String() != want {
			t.Errorf("%s: %v, want %s", in, got, want)
		}
	}
}

// The lists agree with each other whatever happens.
func FuzzCrowd(f *testing.F) {
	f.Add([]byte{0, 0, 1, 2, 3, 250, 251, 0, 1})
	f.Fuzz(func(t *testing.T, steps []byte) {
		limits := Limits{PerSource: 3, PerPort: 7}.withDefaults()
		c := newCrowd(limits)
		var in []*member
		for _, step := range steps {
			switch n := int(step & 31); step >> 5 {
			case 0, 1, 2, 3:
				var heard *atomic.Int64
				if step>>5 == 1 {
					heard = new(atomic.Int64)
					heard.Store(int64(n))
				}
				from := netip.AddrFrom4([4]byte{10, 0, 0, byte(n & 7)})
				if m, err := c.admit(from, func(error) {}, heard); err == nil {
					in = append(in, m)
				}
			case 4, 5:
				if len(in) > 0 {
					c.settle(in[n%len(in)])
				}
			default:
				if len(in) > 0 {
					c.leave(in[n%len(in)])
				}
			}
			total, strangers, settled := 0, 0, 0
			for _, s := range c.sources {
				if s.count == 0 || s.count > limits.PerSource || s.strangers.Len()+s.settled.Len() > s.count {
					t.Fatalf("a source has %d, %d of them strangers, %d settled flows", s.count, s.strangers.Len(), s.settled.Len())
				}
				total += s.count
				strangers += s.strangers.Len()
				settled += s.settled.Len()
			}
			all := &c.all
			if total != all.count || strangers != all.strangers.Len() || settled != all.settled.Len() || total > limits.PerPort {
				t.Fatalf("%d in all, sources have %d; %d strangers, sources have %d; %d settled flows, sources have %d",
					all.count, total, all.strangers.Len(), strangers, all.settled.Len(), settled)
			}
		}
		for _, m := range in {
			c.leave(m)
		}
		if c.len() != 0 || len(c.sources) != 0 {
			t.Fatal("somebody stayed")
		}
	})
}
