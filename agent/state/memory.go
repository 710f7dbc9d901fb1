package state

import "time"

// memory is what makes the next start faster. Losing it costs nothing but
// time, so a damaged file is reported and forgotten.
type memory struct {
	Transport string    `json:"transport,omitempty"`
	Seen      time.Time `json:"last_seen,omitzero"`
}

func (d *Dir) loadMemory() memory {
	var m memory
	if _, err := d.loadJSON(memoryFile, &m); err != nil {
		d.log.Warn("the agent's memory of its last run cannot be read and is started anew", "err", err)
		return memory{}
	}
	return m
}

// Transport returns the name of the transport that worked last, "" at first.
func (d *Dir) Transport() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.memory.Transport
}

// SetTransport remembers the transport that works.
func (d *Dir) SetTransport(name string) error {
	return d.remember(func(m *memory) bool {
		changed := m.Transport != name
		m.Transport = name
		return changed
	})
}

// LastSeen returns the latest time that was stored: a floor for the clock of a
// board that starts in 1970.
func (d *Dir) LastSeen() time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.memory.Seen
}

// SetLastSeen moves LastSeen forward; an earlier time does nothing.
func (d *Dir) SetLastSeen(t time.Time) error {
	t = t.UTC().Truncate(time.Second)
	return d.remember(func(m *memory) bool {
		if !t.After(m.Seen) {
			return false
		}
		m.Seen = t
		return true
	})
}

// remember changes the memory and writes it. The lock is held while writing so
// that an older write can never overtake a newer one.
func (d *Dir) remember(change func(*memory) bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !change(&d.memory) {
		return nil
	}
	return d.saveJSON(memoryFile, d.memory)
}
