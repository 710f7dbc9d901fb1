package dispatch

import (
	"context"
	"slices"
	"time"
)

const (
	sweepEvery = time.Second
	tidyEvery  = time.Minute
)

// sweepUntil looks after commands and records until ctx ends.
func (d *Dispatcher) sweepUntil(ctx context.Context) {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	d.tidy()
	tidied := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if d.sweep() || time.Since(tidied) >= tidyEvery {
			d.tidy()
			tidied = time.Now()
		}
		d.writer.ringForHomes()
	}
}

// sweep ends commands that nobody spoke of for too long. It reports whether
// there are far too many records.
func (d *Dispatcher) sweep() (crowded bool) {
	d.mu.Lock()
	defer d.unlock()
	now := d.now()
	for _, c := range d.commands.open {
		switch {
		case c.recorded != nil: // the ledger has a deadline of its own
			continue
		case c.signed != nil:
			if d.late(c, now) {
				d.expire(c)
			}
			continue
		case now.Before(c.until):
			continue
		}
		d.giveUp(c, "the home did not say what became of it; look whether it happened before you press again")
	}
	for _, h := range d.homes {
		if h.unasked {
			d.askAbout(h)
		}
		if h.untold {
			d.tellRevoked(h)
		}
	}
	for _, g := range d.guests {
		d.noteLeftOut(g)
	}
	return len(d.commands.byID) > d.cfg.Limits.KeepCount+d.cfg.Limits.KeepCount/10
}

// tidy forgets old commands and devices that were not here for a while.
func (d *Dispatcher) tidy() {
	d.mu.Lock()
	defer d.unlock()
	now := d.now()
	byDevice := map[string][]*command{}
	for _, c := range d.commands.byID {
		switch {
		case !c.status.Final || c.recorded != nil:
		case now.Sub(c.status.Created) >= d.cfg.Limits.Keep:
			d.forget(c)
		default:
			byDevice[c.status.Device] = append(byDevice[c.status.Device], c)
		}
	}
	d.thin(byDevice)
	for name, g := range d.guests {
		if g.idle(now) {
			delete(d.guests, name)
		}
	}
}

// thin forgets commands until no more than allowed are left. The device with
// the most loses its oldest, so that one device's flood does not wash away what
// others did. It wants d.mu.
func (d *Dispatcher) thin(byDevice map[string][]*command) {
	excess := len(d.commands.byID) - d.cfg.Limits.KeepCount
	for _, list := range byDevice {
		slices.SortFunc(list, func(a, b *command) int { return b.status.Created.Compare(a.status.Created) })
	}
	for ; excess > 0; excess-- {
		most := ""
		for device, list := range byDevice {
			if len(list) > len(byDevice[most]) {
				most = device
			}
		}
		list := byDevice[most]
		if len(list) == 0 {
			return
		}
		d.forget(list[len(list)-1])
		byDevice[most] = list[:len(list)-1]
	}
}

// forget removes an ended command. It wants d.mu.
func (d *Dispatcher) forget(c *command) {
	d.commands.drop(c)
	d.writer.drop(commandPrefix + c.status.ID)
}

// Status is what an owner wants to know of commands at a glance.
type Status struct {
	Homes    int    `json:"homes"`    // known
	Online   int    `json:"online"`   // of these
	Watches  int    `json:"watches"`  // pages that look on
	Open     int    `json:"open"`     // commands without an end
	Commands int    `json:"commands"` // kept, with the open ones
	Unsaved  int    `json:"unsaved"`  // ends and revocations that the ledger does not know yet
	Untold   int    `json:"untold"`   // revoked devices that some home does not know of yet
	Problem  string `json:"problem,omitempty"`
}

// Status counts.
func (d *Dispatcher) Status() Status {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := Status{Homes: len(d.homes), Untold: len(d.revoked), Open: len(d.commands.open), Commands: len(d.commands.byID)}
	for _, h := range d.homes {
		if h.current() != nil {
			s.Online++
		}
	}
	for _, g := range d.guests {
		s.Watches += len(g.watches)
	}
	s.Unsaved = d.writer.unsaved()
	if err := d.writer.problem(); err != nil {
		s.Problem = "the ledger of commands cannot be written, new commands are refused: " + err.Error()
	}
	return s
}
