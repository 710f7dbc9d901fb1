//go:build linux

package load

import (
	"context"
	"flag"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"
	"time"
)

// quick: one turn of each benchmark, for a look; everything is smaller then.
func quick() bool { return flag.Lookup("test.benchtime").Value.String() == "1x" }

func size[N ~int | ~int64](full, small N) N {
	if quick() {
		return small
	}
	return full
}

// together calls f(0) … f(n-1) at the same time and returns the first error.
func together(n int, f func(i int) error) error {
	errs := make(chan error, n)
	for i := range n {
		go func() { errs <- f(i) }()
	}
	var first error
	for range n {
		if err := <-errs; first == nil {
			first = err
		}
	}
	return first
}

// meter measures the processes of a road while a benchmark loops.
type meter struct {
	b    *testing.B
	r    *road
	from time.Duration
}

// begin is called right before the loop, cpu right after it.
func begin(b *testing.B, r *road) *meter {
	b.Helper()
	from, err := total(r.procs, (*process).cpu)
	if err != nil {
		b.Fatal(err)
	}
	return &meter{b, r, from}
}

func (m *meter) cpu() time.Duration {
	m.b.Helper()
	to, err := total(m.r.procs, (*process).cpu)
	if err != nil {
		m.b.Fatal(err)
	}
	m.b.ReportMetric(0, "ns/op") // hides it: an operation is a batch
	return to - m.from
}

// BenchmarkBulk moves big bodies: CPU time per GB and Gbit/s.
func BenchmarkBulk(b *testing.B) {
	for _, dir := range []string{"down", "up"} {
		for _, streams := range []int{1, 8} {
			b.Run(fmt.Sprintf("%s/%d", dir, streams), func(b *testing.B) {
				eachRoad(b, everyService, func(b *testing.B, r *road) { bulk(b, r, dir, streams) })
			})
		}
	}
}

func bulk(b *testing.B, r *road, dir string, streams int) {
	vs, err := r.visit(b.Context(), streams)
	if err != nil {
		b.Fatal(err)
	}
	defer closeAll(vs)
	move := func(n int64) {
		err := together(streams, func(i int) error {
			if dir == "up" {
				return vs[i].upload(n / int64(streams))
			}
			return vs[i].download(n / int64(streams))
		})
		if err != nil {
			b.Fatalf("%s: %v", r, err)
		}
	}
	batch := size[int64](256<<20, 24<<20)
	move(batch / 4) // windows open
	m := begin(b, r)
	for b.Loop() {
		move(batch)
	}
	gb := float64(batch) * float64(b.N) / 1e9
	cost, rate := m.cpu().Seconds()/gb, 8*gb/b.Elapsed().Seconds()
	b.ReportMetric(cost, "cpu-s/GB")
	b.ReportMetric(rate, "Gbit/s")
	theLab.table.add("Bulk: CPU-seconds per GB (Gbit/s)", fmt.Sprintf("%s, %d streams", dir, streams), r, cost, "(%.1f)", rate)
}

// BenchmarkConnect makes new connections, each with a full TLS handshake and
// client certificate, one echo, and an orderly end.
func BenchmarkConnect(b *testing.B) {
	for _, at := range []int{1, 64} {
		b.Run(fmt.Sprint(at), func(b *testing.B) {
			eachRoad(b, []string{"raw", "pass"}, func(b *testing.B, r *road) { connect(b, r, at) })
		})
	}
}

func connect(b *testing.B, r *road, at int) {
	batch := size(512, 64)
	var mu sync.Mutex // guards took
	var took []time.Duration
	run := func(n int) {
		next := make(chan struct{}, n)
		for range n {
			next <- struct{}{}
		}
		close(next)
		err := together(at, func(int) error {
			for range next {
				d, err := connectOnce(b.Context(), r)
				if err != nil {
					return err
				}
				mu.Lock()
				took = append(took, d)
				mu.Unlock()
			}
			return nil
		})
		if err != nil {
			b.Fatalf("%s: %v", r, err)
		}
	}
	run(16)
	took = took[:0]
	m := begin(b, r)
	for b.Loop() {
		run(batch)
	}
	n := float64(batch * b.N)
	cost, rate := m.cpu().Seconds()*1e6/n, n/b.Elapsed().Seconds()
	slices.Sort(took)
	b.ReportMetric(cost, "cpu-µs/conn")
	b.ReportMetric(rate, "conn/s")
	b.ReportMetric(micros(quantile(took, 50)), "p50-µs")
	b.ReportMetric(micros(quantile(took, 99)), "p99-µs")
	theLab.table.add("New connections, TLS and one echo: CPU µs each (per second)", fmt.Sprintf("%d at once", at), r, cost, "(%.0f/s)", rate)
}

// connectOnce returns how long it took until the echo was back.
func connectOnce(ctx context.Context, r *road) (time.Duration, error) {
	start := time.Now()
	c, err := r.dial(ctx)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	v := &rawVisitor{c: c, buf: make([]byte, 32)}
	if err := v.small(); err != nil {
		return 0, err
	}
	took := time.Since(start)
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		return 0, err
	}
	_, err = io.Copy(io.Discard, struct{ io.Reader }{c})
	return took, err
}

func quantile(sorted []time.Duration, percent int) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[(len(sorted)-1)*percent/100]
}

func micros(d time.Duration) float64 { return float64(d) / 1e3 }

// BenchmarkRequest makes small HTTP requests over connections that stay.
func BenchmarkRequest(b *testing.B) {
	for _, at := range []int{1, 16} {
		b.Run(fmt.Sprint(at), func(b *testing.B) {
			eachRoad(b, []string{"http", "h2"}, func(b *testing.B, r *road) { request(b, r, at) })
		})
	}
}

func request(b *testing.B, r *road, at int) {
	vs, err := r.visit(b.Context(), at)
	if err != nil {
		b.Fatal(err)
	}
	defer closeAll(vs)
	each := size(1024, 256) / at
	took := make([][]time.Duration, at)
	run := func(n int) {
		err := together(at, func(i int) error {
			for range n {
				start := time.Now()
				if err := vs[i].small(); err != nil {
					return err
				}
				took[i] = append(took[i], time.Since(start))
			}
			return nil
		})
		if err != nil {
			b.Fatalf("%s: %v", r, err)
		}
	}
	run(8)
	clear(took)
	m := begin(b, r)
	for b.Loop() {
		run(each)
	}
	n := float64(each * at * b.N)
	cost := m.cpu().Seconds() * 1e6 / n
	all := slices.Sorted(slices.Values(slices.Concat(took...)))
	p50, p99 := micros(quantile(all, 50)), micros(quantile(all, 99))
	b.ReportMetric(cost, "cpu-µs/req")
	b.ReportMetric(p50, "p50-µs")
	b.ReportMetric(p99, "p99-µs")
	theLab.table.add("Small requests over keep-alive: p50 µs (p99 µs)", fmt.Sprintf("%d at once", at), r, p50, "(%.0f)", p99)
	theLab.table.add("Small requests over keep-alive: CPU µs each", fmt.Sprintf("%d at once", at), r, cost, "", 0)
}
