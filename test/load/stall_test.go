//go:build linux

package load

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"
)

const (
	noisyDevices = 4
	noiseEvery   = 20 * time.Millisecond // of one device: 200 messages a second in all
	noiseSize    = 4 << 10
	fillFor      = 8 * time.Second  // until what is between hub and subscriber is full
	stallFor     = 20 * time.Second // the hub cuts a client that has not read for 10 s; then it comes again
)

// BenchmarkStalled presses a button while others misbehave. quiet: they do not
// exist. traffic: devices publish 200 messages of 4 KiB a second, which two
// subscribers read, one of them with a session that is kept. stalled: the same
// messages, but the subscribers do not read and come again when they are cut
// off, and a thousand connections of other devices say nothing.
func BenchmarkStalled(b *testing.B) {
	for _, scene := range []string{"quiet", "traffic", "stalled"} {
		b.Run(scene, func(b *testing.B) { stalled(b, needCrossing(b, way{peer: "quic"}), scene) })
	}
}

func stalled(b *testing.B, x *crossing, scene string) {
	buttons, err := x.pressable(b.Context(), size(doors, 4))
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(b.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel(nil)
	background := func(f func(context.Context) error) {
		running.Go(func() {
			if err := f(ctx); err != nil && ctx.Err() == nil {
				cancel(err)
			}
		})
	}
	if scene == "stalled" {
		silent, err := x.openSilent(ctx, size(1000, 100))
		defer silent.close()
		if err != nil {
			b.Fatal(err)
		}
	}
	if scene != "quiet" {
		for _, kept := range []bool{false, true} {
			background(func(ctx context.Context) error { return x.listen(ctx, kept, scene == "traffic") })
		}
		for i := range noisyDevices {
			background(func(ctx context.Context) error { return x.makeNoise(ctx, fmt.Sprintf("noisy%d", i)) })
		}
		time.Sleep(size(fillFor, time.Second))
	}
	r := &road{peer: scene, service: "quic, prefetched", procs: x.procs}
	var all presses
	for b.Loop() {
		p, err := pressOneByOne(ctx, buttons, size(20, 2), false)
		if err = errors.Join(err, context.Cause(ctx)); err != nil {
			b.Fatalf("%v\n%s", err, x.said())
		}
		all.published, all.done = append(all.published, p.published...), append(all.done, p.done...)
	}
	b.ReportMetric(0, "ns/op")
	all.sort()
	for _, m := range []struct {
		column string
		took   []time.Duration
	}{{"published p50", all.published}, {"done p50", all.done}} {
		theLab.table.add("Command beside a stalled subscriber and 1,000 silent connections: ms p50", m.column, r, millis(quantile(m.took, 50)), "", 0)
	}
	for _, m := range []struct {
		column string
		took   []time.Duration
	}{{"published p99", all.published}, {"done p99", all.done}} {
		theLab.table.add("The same: ms p99", m.column, r, millis(quantile(m.took, 99)), "", 0)
	}
	b.ReportMetric(millis(quantile(all.done, 50)), "done-p50-ms")
	b.ReportMetric(millis(quantile(all.done, 99)), "done-p99-ms")
}

// crowd is connections that say nothing.
type crowd []*mqttClient

func (c crowd) close() {
	for _, m := range c {
		if m != nil {
			m.close()
		}
	}
}

// openSilent connects n clients; every other one subscribes.
func (x *crossing) openSilent(ctx context.Context, n int) (crowd, error) {
	const at = 16
	all := make(crowd, n)
	return all, together(at, func(k int) (err error) {
		for i := k; i < n && err == nil; i += at {
			all[i], err = x.atHub(ctx, fromAddress(i).IP.String(), fmt.Sprintf("silent%d", i/connectionsPerDevice), fmt.Sprintf("-%d", i), false)
			if err == nil && i%2 == 0 {
				err = all[i].subscribe(prefix+"silence", 1)
			}
		}
		return err
	})
}

// makeNoise publishes until ctx ends.
func (x *crossing) makeNoise(ctx context.Context, device string) error {
	m, err := x.atHub(ctx, "", device, "", false)
	if err != nil {
		return err
	}
	defer m.close()
	defer context.AfterFunc(ctx, m.close)()
	go m.receive(func(string, []byte) {}) // PUBACKs
	payload := make([]byte, noiseSize)
	for t := time.NewTicker(noiseEvery); ; {
		select {
		case <-t.C:
			if err := m.publish(prefix+"noise/"+device, payload, 1); err != nil {
				return fmt.Errorf("%s: %w", device, err)
			}
		case <-ctx.Done():
			t.Stop()
			return nil
		}
	}
}

// listen subscribes to the noise, again whenever it is cut off.
func (x *crossing) listen(ctx context.Context, kept, reads bool) error {
	for ctx.Err() == nil {
		m, err := x.atHub(ctx, "", fmt.Sprintf("listener-%t", kept), "", kept)
		if err != nil {
			return err
		}
		if tc, ok := m.c.(interface{ NetConn() net.Conn }); ok && !reads { // what is in buffers stalls nobody
			_ = tc.NetConn().(*net.TCPConn).SetReadBuffer(4 << 10)
		}
		if err := m.subscribe(prefix+"noise/#", 1); err != nil {
			m.close()
			return err
		}
		stop := context.AfterFunc(ctx, m.close)
		if reads {
			err = m.receive(func(string, []byte) {})
		} else {
			select {
			case <-time.After(stallFor):
			case <-ctx.Done():
			}
		}
		stop()
		m.close()
		if reads && ctx.Err() == nil {
			return fmt.Errorf("a subscriber that reads was cut off: %w", err)
		}
	}
	return nil
}
