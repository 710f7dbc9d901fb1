package dispatch

import (
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
)

// truth is a home that keeps what really happened, over all its streams.
type truth struct {
	mu    sync.Mutex
	came  map[string]int  // command frames by id
	ran   map[string]bool // what the home did
	bar   map[string]bool // ids that it said had never come
	flaky *rand.Rand
}

// live speaks for the home on one stream, which may break at any frame.
func (h *truth) live(conn net.Conn) {
	defer conn.Close()
	offer := aHome()
	if mqttbridge.WriteFrame(conn, mqttbridge.Frame{Type: mqttbridge.FrameHome, Home: &offer}) != nil {
		return
	}
	for {
		f, err := mqttbridge.ReadFrame(conn)
		if err != nil {
			return
		}
		var say []mqttbridge.Status
		h.mu.Lock()
		switch f.Type {
		case mqttbridge.FrameCommand:
			id := idOf(*f.Command)
			h.came[id]++
			if h.bar[id] {
				say = append(say, mqttbridge.Status{ID: id, State: mqttbridge.Expired})
				break
			}
			h.ran[id] = true
			say = append(say, mqttbridge.Status{ID: id, State: mqttbridge.Delivered}, mqttbridge.Status{ID: id, State: mqttbridge.Done})
		case mqttbridge.FrameQuery:
			for _, id := range f.IDs {
				state := mqttbridge.Done
				if !h.ran[id] {
					state, h.bar[id] = mqttbridge.Expired, true
				}
				say = append(say, mqttbridge.Status{ID: id, State: state})
			}
		}
		breaks := h.flaky.IntN(12) == 0
		h.mu.Unlock()
		if breaks {
			return
		}
		for _, s := range say {
			if mqttbridge.WriteFrame(conn, mqttbridge.Frame{Type: mqttbridge.FrameStatus, Status: &s}) != nil {
				return
			}
		}
	}
}

// Streams break, the relay restarts, the disk fails, presses are repeated:
// nothing reaches the home twice, everything ends, and no end is a lie.
func TestFaults(t *testing.T) {
	for seed := range uint64(3) {
		inWorld(t, Limits{Burst: 100_000, Open: 100_000, PerHour: 100_000}, func(t *testing.T, w *world) { faults(t, w, seed) })
	}
}

func faults(t *testing.T, w *world, seed uint64) {
	dice := rand.New(rand.NewPCG(seed, 0))
	home := &truth{came: map[string]int{}, ran: map[string]bool{}, bar: map[string]bool{}, flaky: rand.New(rand.NewPCG(seed, 1))}
	w.ledger.fail(func(op, _ string) error {
		home.mu.Lock()
		defer home.mu.Unlock()
		if (op == "create" || op == "put") && home.flaky.IntN(10) == 0 {
			return errFull
		}
		return nil
	})
	connect := func() {
		theirs, ours := net.Pipe()
		d, ctx := w.d, w.ctx
		w.wg.Go(func() { d.ServeAgent(ctx, ours, kitchen) })
		w.wg.Go(func() { home.live(theirs) })
	}
	connect()
	synctest.Wait()
	const presses = 300
	taken := map[string]bool{}   // Send returned no error
	refused := map[string]bool{} // Send said no
	for i := range presses {
		switch dice.IntN(20) {
		case 0:
			w.restart(Limits{Burst: 100_000, Open: 100_000, PerHour: 100_000})
		case 1, 2, 3:
			connect()
		case 4:
			time.Sleep(time.Duration(dice.IntN(120)) * time.Second) // virtual
		}
		signed := press("anna-phone", "door")
		var wg sync.WaitGroup
		for range 1 + dice.IntN(3) { // some presses are repeated by the network
			wg.Go(func() {
				s, err := w.d.Send(w.ctx, "anna-phone", "kitchen", signed)
				home.mu.Lock()
				defer home.mu.Unlock()
				if err != nil || s.State == mqttbridge.Refused {
					refused[idOf(signed)] = true
				} else {
					taken[idOf(signed)] = true
				}
			})
		}
		wg.Wait()
		if i%7 == 0 {
			synctest.Wait()
		}
	}
	w.ledger.fail(nil)
	connect()
	time.Sleep(10 * time.Minute) // virtual
	connect()                    // asks for what is unknown
	time.Sleep(time.Minute)      // virtual
	w.restart(Limits{})

	home.mu.Lock()
	defer home.mu.Unlock()
	for id, n := range home.came {
		if n != 1 {
			t.Errorf("seed %d: command %s reached the home %d times", seed, id, n)
		}
	}
	ends := map[mqttbridge.State]int{}
	for id := range taken {
		s, ok := w.d.Command("anna-phone", id)
		if !ok || !s.Final {
			t.Errorf("seed %d: command %s has no end: %+v", seed, id, s)
		}
		ends[s.State]++
		if did := s.State == mqttbridge.Done; did != home.ran[id] && s.State != mqttbridge.Unknown {
			t.Errorf("seed %d: command %s ended as %q, and it ran is %v", seed, id, s.State, home.ran[id])
		}
	}
	for id := range refused {
		if home.ran[id] {
			t.Errorf("seed %d: command %s was refused and ran", seed, id)
		}
	}
	if ends[mqttbridge.Done] < presses/4 || len(refused) == 0 {
		t.Errorf("seed %d: the faults left nothing to look at: %v, refused %d", seed, ends, len(refused))
	}
	t.Logf("seed %d: ends %v, refused at once %d, came %d", seed, ends, len(refused), len(home.came))
}
