//go:build linux

package load

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"
)

// farAway is one way between the relay and everybody else: 40 ms is a mobile
// line, or half way round the world.
const farAway = 40 * time.Millisecond

// presses are how long commands took.
type presses struct{ published, done []time.Duration }

func (p *presses) sort() {
	slices.Sort(p.published)
	slices.Sort(p.done)
}

// pressSome has four phones press at the same time, but not in step.
func pressSome(ctx context.Context, buttons []button, each int, challengeFirst bool) (p presses, err error) {
	buttons = buttons[:min(4, len(buttons))]
	var mu sync.Mutex // guards p
	err = together(len(buttons), func(i int) error {
		time.Sleep(time.Duration(i) * farAway)
		for range each {
			t, err := buttons[i].press(ctx, challengeFirst)
			if err != nil {
				return err
			}
			mu.Lock()
			p.published, p.done = append(p.published, t.published), append(p.done, t.done)
			mu.Unlock()
		}
		return nil
	})
	return p, err
}

// pressOneByOne has phones press one after the other.
func pressOneByOne(ctx context.Context, buttons []button, each int, challengeFirst bool) (p presses, err error) {
	for range each {
		for i := range buttons {
			t, err := buttons[i].press(ctx, challengeFirst)
			if err != nil {
				return p, err
			}
			p.published, p.done = append(p.published, t.published), append(p.done, t.done)
		}
	}
	return p, nil
}

// BenchmarkCommand presses a button on a page: until the command is published
// at the home broker, and until the page has heard that it is done; sixteen pages
// are open. On loopback one command runs at a time. With 40 ms each way between
// phone and relay and between agent and relay, four do: the line alone takes 80
// ms and 160 ms, and 160 ms more when the challenge is asked for first.
//
// The peer is what people do without it: a message to a mosquitto on the VPS,
// its bridge, and the state's message back. That signs nothing, asks for no
// challenge, and writes nothing down.
func BenchmarkCommand(b *testing.B) {
	for _, hold := range []time.Duration{0, farAway} {
		w := way{hold: hold}
		b.Run(w.String(), func(b *testing.B) {
			for _, peer := range everyCrossing {
				w := way{peer: peer, hold: hold}
				if quick() && hold > 0 && peer == "tcp" {
					continue // a look is short
				}
				services := []string{"prefetched", "challenge first"}
				if peer == "mosquitto" {
					services = []string{"topic"}
				}
				for _, service := range services {
					b.Run(service+"/"+peer, func(b *testing.B) { command(b, needCrossing(b, w), service) })
				}
			}
		})
	}
}

func command(b *testing.B, x *crossing, service string) {
	buttons, err := x.pressable(b.Context(), size(doors, 4))
	if err != nil {
		b.Fatal(err)
	}
	press, each := pressOneByOne, size(20, 2)
	if x.way.hold > 0 {
		press = pressSome
	}
	r := &road{peer: x.way.peer, service: service, procs: x.procs}
	var all presses
	m := begin(b, r)
	for b.Loop() {
		p, err := press(b.Context(), buttons, each, service == "challenge first")
		if err != nil {
			b.Fatalf("%v\n%s", err, x.said())
		}
		all.published, all.done = append(all.published, p.published...), append(all.done, p.done...)
	}
	cost := m.cpu().Seconds() * 1e6 / float64(len(all.done))
	all.sort()
	b.ReportMetric(cost, "cpu-µs/command")
	report(b, x.way.String(), r, all)
	theLab.table.add("Command: CPU µs each, all processes", x.way.String(), r, cost, "", 0)
}

// report adds the times to the table.
func report(b *testing.B, column string, r *road, p presses) {
	b.Helper()
	for _, m := range []struct {
		what string
		took []time.Duration
	}{{"published", p.published}, {"done", p.done}} {
		p50, p99 := millis(quantile(m.took, 50)), millis(quantile(m.took, 99))
		b.ReportMetric(p50, m.what+"-p50-ms")
		b.ReportMetric(p99, m.what+"-p99-ms")
		theLab.table.add("Command, from the press until it is "+m.what+": ms p50 (p99)", column, r, p50, "(%.1f)", p99)
	}
}

func millis(d time.Duration) float64 { return float64(d) / 1e6 }
