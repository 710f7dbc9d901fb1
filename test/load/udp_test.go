//go:build linux

package load

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"
)

// packetsAhead is how many packets are sent ahead of those that have arrived: enough
// to keep everybody busy, and fewer than any queue in between holds.
const packetsAhead = 32

// lostAfter ends the wait for a packet.
const lostAfter = 250 * time.Millisecond

// BenchmarkUDP moves packets of one visitor through a udp:// service: CPU time per
// GB of what arrives, packets per second, and what was lost. 1452 bytes is what
// WireGuard sends by default, more than a QUIC datagram takes.
func BenchmarkUDP(b *testing.B) {
	for _, dir := range []string{"up", "down"} {
		for _, size := range []int{160, 1200, 1452} {
			b.Run(fmt.Sprintf("%s/%d", dir, size), func(b *testing.B) {
				eachUDPRoad(b, func(b *testing.B, r *road, v *udpVisit) { udpBulk(b, r, v, dir, size) })
			})
		}
	}
}

// BenchmarkUDPEcho sends one packet at a time, there and back.
func BenchmarkUDPEcho(b *testing.B) {
	eachUDPRoad(b, udpEcho)
}

func eachUDPRoad(b *testing.B, run func(*testing.B, *road, *udpVisit)) {
	u, err := startUDP()
	if err != nil {
		b.Fatal(err)
	}
	for _, r := range u.roads {
		b.Run(r.String(), func(b *testing.B) {
			v, err := visitUDP(r, u.homes[r])
			if err != nil {
				b.Fatal(err)
			}
			defer v.visitor.Close()
			run(b, r, v)
		})
	}
}

// A udpVisit is one flow, both ends of it.
type udpVisit struct {
	visitor, home *net.UDPConn
	flow          netip.AddrPort // where the home sees the visitor
	round         uint64         // numbers packets, so that late ones are known
}

// visitUDP begins a flow: the home answers once, and the visitor once more, as a
// relay sends little to who may be forged.
func visitUDP(r *road, home *net.UDPConn) (*udpVisit, error) {
	to, err := net.ResolveUDPAddr("udp4", r.addr)
	if err != nil {
		return nil, err
	}
	c, err := net.DialUDP("udp4", nil, to)
	if err != nil {
		return nil, err
	}
	_ = c.SetReadBuffer(4 << 20)
	v := &udpVisit{visitor: c, home: home}
	buf := make([]byte, 2048)
	for try := byte(0); try < 20; try++ {
		_, _ = c.Write([]byte{'?', try})
		_ = home.SetReadDeadline(time.Now().Add(lostAfter))
		n, from, err := home.ReadFromUDPAddrPort(buf)
		if err != nil || n != 2 || buf[0] != '?' {
			continue
		}
		v.flow = from
		_, _ = home.WriteToUDPAddrPort([]byte{'!'}, from)
		_ = c.SetReadDeadline(time.Now().Add(lostAfter))
		if n, err := c.Read(buf); err != nil || n != 1 {
			continue
		}
		time.Sleep(5 * time.Millisecond) // what came at once was not an answer to the answer
		_, _ = c.Write([]byte{'.'})
		_ = home.SetReadDeadline(time.Now().Add(lostAfter))
		if n, _, err := home.ReadFromUDPAddrPort(buf); err == nil && n == 1 {
			return v, nil
		}
	}
	c.Close()
	return nil, fmt.Errorf("%s: no packet comes through", r)
}

// pipe returns how to send and receive in one direction.
func (v *udpVisit) pipe(dir string) (send func([]byte) error, receive func([]byte) (int, error)) {
	up := func(p []byte) error { _, err := v.visitor.Write(p); return err }
	down := func(p []byte) error { _, err := v.home.WriteToUDPAddrPort(p, v.flow); return err }
	at := func(c *net.UDPConn) func([]byte) (int, error) {
		return func(buf []byte) (int, error) {
			_ = c.SetReadDeadline(time.Now().Add(lostAfter))
			return c.Read(buf)
		}
	}
	if dir == "up" {
		return up, at(v.home)
	}
	return down, at(v.visitor)
}

// move sends n packets of a size, a few ahead of what has arrived; returns how
// many have.
func (v *udpVisit) move(dir string, n, size int) (arrived int, err error) {
	send, receive := v.pipe(dir)
	v.round++
	packet, buf := make([]byte, size), make([]byte, 2048)
	binary.BigEndian.PutUint64(packet, v.round)
	sent, lost := 0, 0
	for arrived+lost < n {
		for sent < n && sent-arrived-lost < packetsAhead {
			if err := send(packet); err != nil {
				return arrived, err
			}
			sent++
		}
		got, err := receive(buf)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			lost = sent - arrived
		case err != nil:
			return arrived, err
		case got == size && binary.BigEndian.Uint64(buf) == v.round:
			arrived++
			lost = min(lost, sent-arrived) // it was only late
		}
	}
	return arrived, nil
}

func udpBulk(b *testing.B, r *road, v *udpVisit, dir string, packet int) {
	batch := size(20_000, 5_000)
	run := func(n int) int {
		arrived, err := v.move(dir, n, packet)
		if err != nil {
			b.Fatalf("%s: %v", r, err)
		}
		return arrived
	}
	run(batch / 5)
	arrived := 0
	m := begin(b, r)
	for b.Loop() {
		arrived += run(batch)
	}
	if arrived == 0 {
		b.Fatalf("%s: nothing arrived", r)
	}
	cpu := m.cpu().Seconds()
	cost, rate := cpu/(float64(arrived)*float64(packet)/1e9), float64(arrived)/b.Elapsed().Seconds()
	b.ReportMetric(cost, "cpu-s/GB")
	b.ReportMetric(cpu*1e6/float64(arrived), "cpu-µs/packet")
	b.ReportMetric(rate, "packets/s")
	b.ReportMetric(100-100*float64(arrived)/float64(batch*b.N), "%lost")
	theLab.table.add("UDP: CPU-seconds per GB (thousand packets per second)", fmt.Sprintf("%s, %d bytes", dir, packet), r, cost, "(%.0f)", rate/1e3)
}

func udpEcho(b *testing.B, r *road, v *udpVisit) {
	batch := size(5_000, 500)
	var took []time.Duration
	lost := 0
	run := func(n int) {
		for range n {
			start := time.Now()
			for _, dir := range []string{"up", "down"} {
				if got, err := v.move(dir, 1, 160); err != nil {
					b.Fatalf("%s: %v", r, err)
				} else if got == 0 {
					lost++
				}
			}
			took = append(took, time.Since(start))
		}
	}
	run(batch / 5)
	took, lost = took[:0], 0
	m := begin(b, r)
	for b.Loop() {
		run(batch)
	}
	cost := m.cpu().Seconds() * 1e6 / float64(len(took))
	slices.Sort(took)
	p50 := micros(quantile(took, 50))
	b.ReportMetric(cost, "cpu-µs/echo")
	b.ReportMetric(p50, "p50-µs")
	b.ReportMetric(micros(quantile(took, 99)), "p99-µs")
	b.ReportMetric(100*float64(lost)/float64(len(took)), "%lost")
	theLab.table.add("UDP, one packet there and back: CPU µs (p50 µs)", "160 bytes", r, cost, "(%.0f µs)", p50)
}
