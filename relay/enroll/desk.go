package enroll

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"

	"github.com/sallyport/sallyport/relay/store"
)

// New reads the codes and requests that wait. One that cannot be read opens
// nothing and is left alone.
func New(ctx context.Context, cfg Config) (*Desk, error) {
	if err := cfg.fill(); err != nil {
		return nil, err
	}
	d := &Desk{
		cfg: cfg, writing: make(chan struct{}, 1),
		codes: map[string]*code{}, requests: map[string]*request{}, waiting: map[string]chan struct{}{},
	}
	for _, prefix := range []string{codePrefix, requestPrefix} {
		entries, err := cfg.Store.List(ctx, prefix)
		if err != nil {
			return nil, fmt.Errorf("read the enrolments: %w", err)
		}
		for _, e := range entries {
			d.learn(store.Event{Entry: e})
		}
	}
	return d, nil
}

// learn brings one change of the store into memory and reports whether it was
// news.
func (d *Desk) learn(ev store.Event) bool {
	if id, ok := strings.CutPrefix(ev.Key, requestPrefix); ok {
		var r *request
		if !ev.Deleted {
			var err error
			if r, err = decodeRequest(id, ev.Value, ev.Revision); err != nil {
				d.cfg.Logger.Warn("an enrolment request is lost: its record cannot be read", "request", id, "err", err)
			}
		}
		return d.setRequest(id, r)
	}
	hash := strings.TrimPrefix(ev.Key, codePrefix)
	var c *code
	if !ev.Deleted {
		var err error
		if c, err = decodeCode(hash, ev.Value, ev.Revision); err != nil {
			c = nil
			d.cfg.Logger.Warn("an enrolment code opens nothing: its record cannot be read", "err", err)
		}
	}
	return d.setCode(hash, c)
}

// setCode replaces a code in memory unless a newer one is there; nil removes it.
func (d *Desk) setCode(hash string, c *code) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	old := d.codes[hash]
	switch {
	case c == nil:
		delete(d.codes, hash)
		return old != nil
	case old != nil && c.revision <= old.revision:
		return false
	}
	d.codes[hash] = c
	return true
}

// setRequest is setCode for requests. It wakes who waits for the change.
func (d *Desk) setRequest(id string, r *request) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	old := d.requests[id]
	switch {
	case r == nil:
		delete(d.requests, id)
		if old == nil {
			return false
		}
	case old != nil && r.revision <= old.revision:
		return false
	default:
		d.requests[id] = r
	}
	if ch := d.waiting[id]; ch != nil {
		close(ch)
		delete(d.waiting, id)
	}
	return true
}

// Changed returns a channel that is closed at the next change of a request,
// also when it is forgotten. Take it before Status, or a change in between
// goes unnoticed. An unknown request never changes: nil.
func (d *Desk) Changed(id string) <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.requests[id] == nil {
		return nil
	}
	ch := d.waiting[id]
	if ch == nil {
		ch = make(chan struct{})
		d.waiting[id] = ch
	}
	return ch
}

// Status returns a request to whoever knows its ticket. A wrong ticket and an
// unknown request are ErrUnknown and count as wrong tries of the source, which
// gets a *BlockedError after too many.
func (d *Desk) Status(_ context.Context, source netip.Addr, id, ticket string) (Request, error) {
	now, from := d.cfg.Now(), sourceOf(source)
	d.mu.Lock()
	if wait := d.guard.admit(from, now); wait > 0 {
		d.mu.Unlock()
		return Request{}, &BlockedError{wait}
	}
	r := d.requests[id]
	// Where a request has no ticket, no hash is equal to that.
	if r != nil && equal(r.Ticket, hash(ticket)) {
		defer d.mu.Unlock()
		return r.view(now), nil
	}
	v := d.guard.wrong(from, now)
	d.mu.Unlock()
	d.refused(from, v, "ticket")
	return Request{}, ErrUnknown
}

// Admit says whether a source may ask now: a *BlockedError while it waits for
// its wrong tries, otherwise nil. It counts nothing. It is for callers to whom a
// question costs something before Apply and Status can judge it.
func (d *Desk) Admit(source netip.Addr) error {
	if wait := d.admit(sourceOf(source), d.cfg.Now()); wait > 0 {
		return &BlockedError{wait}
	}
	return nil
}

// Failed counts a wrong try of a source that a caller found: a message that no
// honest client sends. Errors of Apply, Look and Status are counted already.
func (d *Desk) Failed(source netip.Addr) {
	now, from := d.cfg.Now(), sourceOf(source)
	d.mu.Lock()
	v := d.guard.wrong(from, now)
	d.mu.Unlock()
	d.refused(from, v, "message")
}

// StatusOfKey returns the newest request of a key (Request.KeyID) to a caller
// who has proven that it holds the key.
func (d *Desk) StatusOfKey(_ context.Context, keyID string) (Request, bool, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	r := d.newestOf(keyID)
	if r == nil {
		return Request{}, false, nil
	}
	return r.view(d.cfg.Now()), true, nil
}

// newestOf wants d.mu.
func (d *Desk) newestOf(keyID string) (newest *request) {
	for _, r := range d.requests {
		if r.keyID == keyID && (newest == nil || r.Created.After(newest.Created)) {
			newest = r
		}
	}
	return newest
}

// Pending returns the requests that wait for the owner, the oldest first.
func (d *Desk) Pending() []Request {
	now := d.cfg.Now()
	d.mu.Lock()
	defer d.mu.Unlock()
	var list []Request
	for _, r := range d.requests {
		if v := r.view(now); v.State == Pending {
			list = append(list, v)
		}
	}
	slices.SortFunc(list, func(a, b Request) int {
		if c := a.Created.Compare(b.Created); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return list
}

// refused writes down a wrong try. While somebody floods the desk that happens
// once an hour, so that the audit log cannot be filled from outside.
func (d *Desk) refused(source netip.Prefix, v verdict, what string) {
	if v.flood {
		d.cfg.Logger.Warn("many wrong enrolment codes from many addresses: each of them is answered twice an hour now")
		d.cfg.Audit("enrol.flood")
	}
	if v.quiet {
		return
	}
	attrs := []slog.Attr{slog.String("source", source.String()), slog.String("what", what), slog.Int("wrong", v.wrong)}
	if v.wait > 0 {
		attrs = append(attrs, slog.Duration("blocked", v.wait))
	}
	d.cfg.Audit("enrol.refused", attrs...)
}

// begin takes the token of writers.
func (d *Desk) begin(ctx context.Context) error {
	select {
	case d.writing <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (d *Desk) end() { <-d.writing }

// put writes a request with compare-and-set (revision 0 creates it), then
// shows it. A conflict means that somebody else decided: nothing is shown.
func (d *Desk) put(ctx context.Context, r request) (*request, error) {
	data, err := encode(&r)
	if err != nil {
		return nil, err
	}
	if r.revision == 0 {
		r.revision, err = d.cfg.Store.Create(ctx, requestPrefix+r.ID, data)
	} else {
		r.revision, err = d.cfg.Store.Update(ctx, requestPrefix+r.ID, data, r.revision)
	}
	if err != nil {
		return nil, fmt.Errorf("write the request: %w", err)
	}
	d.setRequest(r.ID, &r)
	return &r, nil
}

// putCode is put for codes.
func (d *Desk) putCode(ctx context.Context, c code) (*code, error) {
	data, err := encode(&c)
	if err != nil {
		return nil, err
	}
	if c.revision == 0 {
		c.revision, err = d.cfg.Store.Create(ctx, codePrefix+c.hash, data)
	} else {
		c.revision, err = d.cfg.Store.Update(ctx, codePrefix+c.hash, data, c.revision)
	}
	if err != nil {
		return nil, fmt.Errorf("write the code: %w", err)
	}
	d.setCode(c.hash, &c)
	return &c, nil
}

// drop deletes a code or request of a known revision. That it is gone already
// or has changed is no error: somebody was quicker.
func (d *Desk) drop(ctx context.Context, key string, revision uint64) (done bool, err error) {
	err = d.cfg.Store.Delete(ctx, key, revision)
	if errors.Is(err, store.ErrConflict) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("delete an enrolment: %w", err)
	}
	d.learn(store.Event{Entry: store.Entry{Key: key}, Deleted: true})
	return true, nil
}
