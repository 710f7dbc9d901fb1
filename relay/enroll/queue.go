package enroll

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"time"

	"github.com/sallyport/sallyport/relay/store"
)

// neighbours returns what is taken for one stranger when the queue is full: an
// IPv4 /24 or an IPv6 /64. Ten addresses of one network are cheap.
func neighbours(addr netip.Addr) netip.Prefix {
	addr = addr.Unmap().WithZone("")
	if !addr.Is4() {
		return sourceOf(addr)
	}
	p, _ := addr.Prefix(24)
	return p
}

// openRequest returns the request that the key made without a code before, or
// why there cannot be one more; in a full queue, who has to make place for it.
func (d *Desk) openRequest(a *applicant, now time.Time) (again, displaced *request, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var waiting []*request
	var ofSource int
	for _, r := range d.requests {
		if r.Code != "" {
			continue
		}
		if r.keyID == a.keyID && r.undecided() && now.Before(r.Expires) {
			if equal(r.Ticket, a.ticket) {
				return r, nil, nil
			}
			return nil, nil, formError{errors.New("this key waits under another ticket already\nMake a new key and apply again.")}
		}
		if r.keyID == a.keyID && r.State == Issued && equal(r.Ticket, a.ticket) {
			return r, nil, nil
		}
		if r.view(now).State == Pending {
			waiting = append(waiting, r)
		}
		if r.State != Issued && sourceOf(r.Source) == a.from {
			ofSource++
		}
	}
	if ofSource >= maxPerSource {
		return nil, nil, ErrFull
	}
	if len(waiting) < maxOpen {
		return nil, nil, nil
	}
	if displaced = crowded(waiting, neighbours(a.Source)); displaced == nil {
		return nil, nil, ErrFull
	}
	return nil, displaced, nil
}

// crowded returns who makes place for a newcomer: the oldest of those that have
// the most requests in a full queue. Nobody does for one who waits already, and
// nobody's only request goes. So places move from those who have many to those
// who have none, and a queue of a hundred strangers stands still: no flood, from
// however many addresses, pushes out the one request of somebody honest.
func crowded(waiting []*request, newcomer netip.Prefix) *request {
	count := map[netip.Prefix]int{}
	for _, r := range waiting {
		count[neighbours(r.Source)]++
	}
	if count[newcomer] > 0 {
		return nil
	}
	var found *request
	most := 1
	for _, r := range waiting {
		if r.State != Pending { // granted, and being issued: it does not wait for the owner
			continue
		}
		if n := count[neighbours(r.Source)]; n > most || n == most && found != nil && r.before(found) {
			found, most = r, n
		}
	}
	return found
}

// before is the order in the queue.
func (r *request) before(o *request) bool {
	if c := r.Created.Compare(o.Created); c != 0 {
		return c < 0
	}
	return r.ID < o.ID
}

// displace ends a request that made place. It wants the token of writers.
func (d *Desk) displace(ctx context.Context, r *request, now time.Time) error {
	over := *r
	over.State = Expired
	over.Forget = now.UTC().Add(keepDecided)
	_, err := d.put(ctx, over)
	if errors.Is(err, store.ErrConflict) { // another relay decided it: there is place, too
		return d.reread(ctx, r.ID)
	}
	if err != nil {
		return err
	}
	d.cfg.Audit("enrol.displaced", slog.String("request", r.ID), slog.String("device", r.Name), slog.String("source", r.Source.String()))
	return nil
}
