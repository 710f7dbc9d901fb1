package dispatch

import (
	"context"
	"fmt"
	"net"
	"sync"
	"testing"

	"github.com/sallyport/sallyport/mqttbridge"
)

// One home changes, a thousand devices look on: the time until all have read
// it. With "who", each action is for a part of them.
func BenchmarkThousandWatches(b *testing.B) {
	for _, who := range []bool{false, true} {
		b.Run(fmt.Sprintf("who=%v", who), func(b *testing.B) {
			const watchers = 1000
			d, err := New(b.Context(), Config{Ledger: newLedger()})
			if err != nil {
				b.Fatal(err)
			}
			offer := func(value string) mqttbridge.Home {
				h := aHome()
				for i := range 20 {
					a := mqttbridge.Action{Name: fmt.Sprint("lamp-", i), Label: "Lamp", Confirm: mqttbridge.ConfirmNone, State: &mqttbridge.Live{Value: value}}
					if who && i%2 == 0 {
						a.Who = []string{"anna-*", fmt.Sprintf("phone-*%d", i%10)}
					}
					h.Actions = append(h.Actions, a)
				}
				return h
			}
			st := newStream(nopConn{}, kitchen)
			d.join(st)
			clean, err := cleanHome(offer("start"))
			if err != nil {
				b.Fatal(err)
			}
			d.offer(st, clean)
			ctx, cancel := context.WithCancel(b.Context())
			var all, round sync.WaitGroup
			for i := range watchers {
				ch := d.Watch(ctx, fmt.Sprint("phone-", i))
				<-ch
				all.Go(func() {
					for range ch {
						round.Done()
					}
				})
			}
			n := 0
			for b.Loop() {
				n++
				clean, err := cleanHome(offer(fmt.Sprint(n)))
				if err != nil {
					b.Fatal(err)
				}
				round.Add(watchers)
				d.offer(st, clean)
				round.Wait()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n*watchers), "ns/watcher")
			cancel()
			all.Wait()
		})
	}
}

type nopConn struct{ net.Conn }

func (nopConn) Close() error { return nil }

// From Send to done, with a ledger in memory and a home over a pipe: what the
// relay itself costs.
func BenchmarkPress(b *testing.B) {
	ctx, cancel := context.WithCancel(b.Context())
	d, err := New(ctx, Config{Ledger: newLedger(), Limits: Limits{PerSecond: 1e9, Burst: 1e9, PerHour: 1e9, Open: 1e9}})
	if err != nil {
		b.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { d.Run(ctx) })
	theirs, ours := net.Pipe()
	wg.Go(func() { d.ServeAgent(ctx, ours, kitchen) })
	h := aHome()
	if err := mqttbridge.WriteFrame(theirs, mqttbridge.Frame{Type: mqttbridge.FrameHome, Home: &h}); err != nil {
		b.Fatal(err)
	}
	wg.Go(func() {
		for {
			f, err := mqttbridge.ReadFrame(theirs)
			if err != nil {
				return
			}
			for _, reply := range obedient(f) {
				if mqttbridge.WriteFrame(theirs, reply) != nil {
					return
				}
			}
		}
	})
	events := d.Watch(ctx, "anna-phone")
	<-events
	for b.Loop() {
		b.StopTimer()
		signed := press("anna-phone", "door")
		id := idOf(signed)
		b.StartTimer()
		if _, err := d.Send(ctx, "anna-phone", "kitchen", signed); err != nil {
			b.Fatal(err)
		}
		for ev := range events {
			if ev.Status != nil && ev.Status.ID == id && ev.Status.Final {
				break
			}
		}
	}
	cancel()
	wg.Wait()
}
