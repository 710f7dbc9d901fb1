package agent

import (
	"testing"
	"time"
)

func TestPinger(t *testing.T) {
	t0 := time.Unix(1000, 0)
	at := func(seconds float64) time.Time { return t0.Add(time.Duration(seconds * float64(time.Second))) }
	p := pinger{}
	if !p.deadline().IsZero() {
		t.Error("a deadline without a ping")
	}
	a, b := p.next(at(0)), p.next(at(2))
	if a.Seq == b.Seq || len(a.Pad) < 64 {
		t.Errorf("pings %+v, %+v", a, b)
	}
	if d := p.deadline(); d != at(5) {
		t.Errorf("deadline %v, want 5 s after the oldest", d.Sub(t0))
	}
	if rtt, _ := p.answered(a.Seq, at(2.5)); rtt != 2500*time.Millisecond {
		t.Errorf("rtt %v", rtt)
	}
	if d := p.deadline(); d != at(7) {
		t.Errorf("deadline %v, want 5 s after the second", d.Sub(t0))
	}
	p.lost = true
	if _, back := p.answered(b.Seq, at(9)); !back || p.lost {
		t.Error("a peer that comes back is not reported")
	}

	// After sleep only answers to new pings count, and soon.
	c := p.next(at(20))
	p.restart(at(100), 2*time.Second)
	d := p.next(at(100))
	if limit := p.deadline(); limit != at(102) {
		t.Errorf("deadline %v after sleep", limit.Sub(t0))
	}
	if p.answered(c.Seq, at(100.1)); p.deadline() != at(102) {
		t.Error("an answer from before the sleep counts")
	}
	if p.answered(d.Seq, at(100.2)); !p.deadline().IsZero() {
		t.Error("an answer does not count")
	}
}
