package devices

import "time"

// A Status is what a person should know.
type Status struct {
	CA      string    // fingerprint of the pinned CA: SHA-256, hex; empty: none yet
	Number  uint64    // of the list in force; 0: none yet, nobody comes in
	Issued  time.Time // when the relay made it
	Next    time.Time // when the relay promised another one
	Age     time.Duration
	Stale   bool     // Next is past: the relay is silent, or keeps lists back
	Saved   bool     // it is on disk, too
	Devices int      // certificates that may come in
	Problem string   // why the last thing that came was not taken; what to do is on lines of its own
	Pending *Pending // what waits for a person; nil: nothing
}

// A Pending is what was refused and what Confirm would take.
type Pending struct {
	CA     string    // fingerprint, for Confirm; that of the pinned CA: an older list
	Since  time.Time // when it was refused first
	Number uint64    // of the list that came with it; 0: none
}

// Status returns how things are now.
func (b *Book) Status() Status {
	p, now := b.page.Load(), b.cfg.Now()
	var s Status
	if p.ca != nil {
		s.CA = fingerprint(p.ca)
	}
	s.Saved = p.saved
	if s.Number = p.list.Number; s.Number != 0 {
		s.Issued, s.Next = p.list.Issued, p.list.Next
		s.Age = max(now.Sub(s.Issued), 0) // clocks differ
		s.Stale = now.After(s.Next)
	}
	for _, d := range p.devices {
		if !d.Revoked {
			s.Devices++
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	s.Problem = b.problem
	if held := b.pending; held != nil {
		s.Pending = &Pending{CA: fingerprint(held.page.ca), Since: held.since, Number: held.page.list.Number}
	}
	return s
}
