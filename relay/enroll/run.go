package enroll

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/sallyport/sallyport/relay/store"
)

// tidyEvery is how often old codes and requests are looked for.
const tidyEvery = time.Minute

// Run issues what was approved before a crash, applies what others change
// through the same store, and forgets old codes and requests, until ctx ends.
// It returns an error when the store stops telling.
func (d *Desk) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	events, err := d.cfg.Store.Watch(ctx, "enroll/")
	if err != nil {
		return fmt.Errorf("watch the enrolments: %w", err)
	}
	if err := d.catchUp(ctx); err != nil && ctx.Err() == nil {
		return err
	}
	d.tidy(ctx)
	tick := time.NewTicker(tidyEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			d.tidy(ctx)
		case ev, ok := <-events:
			if !ok {
				if ctx.Err() != nil {
					return nil
				}
				return errors.New("watch the enrolments: the store stopped telling of changes")
			}
			if d.learn(ev) {
				d.cfg.Changed()
			}
		}
	}
}

// catchUp applies what changed between New and the begin of the watch.
func (d *Desk) catchUp(ctx context.Context) error {
	for _, prefix := range []string{codePrefix, requestPrefix} {
		entries, err := d.cfg.Store.List(ctx, prefix)
		if err != nil {
			return fmt.Errorf("read the enrolments: %w", err)
		}
		for _, e := range entries {
			if d.learn(store.Event{Entry: e}) {
				d.cfg.Changed()
			}
		}
	}
	return nil
}

// tidy does one round. Failures wait for the next, said once a round.
func (d *Desk) tidy(ctx context.Context) {
	if d.begin(ctx) != nil {
		return
	}
	defer d.end()
	now := d.cfg.Now().UTC()
	var failed error
	for _, r := range d.allRequests() {
		if err := d.tidyRequest(ctx, r, now); err != nil {
			failed = err
		}
	}
	for _, c := range d.allCodes() {
		if err := d.tidyCode(ctx, c, now); err != nil {
			failed = err
		}
	}
	if failed != nil && !errors.Is(failed, store.ErrClosed) && ctx.Err() == nil {
		d.cfg.Logger.Warn("cannot tidy the enrolments", "err", failed)
	}
}

func (d *Desk) tidyRequest(ctx context.Context, r *request, now time.Time) error {
	late := !now.Before(r.Expires)
	switch {
	case r.State == stateApproved && !late:
		if _, err := d.finish(ctx, r); err != nil {
			return fmt.Errorf("issue the certificate of request %s: %w", r.ID, err)
		}
	case r.undecided() && late:
		return d.expire(ctx, r, now)
	case !r.undecided() && !now.Before(r.Forget):
		// The code goes first: without its request it would open again.
		if r.Code != "" {
			if err := d.dropCodeOf(ctx, r); err != nil {
				return err
			}
		}
		_, err := d.drop(ctx, requestPrefix+r.ID, r.revision)
		return err
	}
	return nil
}

// expire ends a request that nobody decided, or that could not be issued.
func (d *Desk) expire(ctx context.Context, r *request, now time.Time) error {
	if r.State == stateApproved {
		if cert, err := d.issued(ctx, r); err != nil {
			return err
		} else if cert != nil {
			_, err := d.keep(ctx, r, cert)
			return err
		}
	}
	over := *r
	over.State = Expired
	over.Forget = now.Add(keepDecided)
	if _, err := d.put(ctx, over); err != nil {
		return err
	}
	d.cfg.Audit("enrol.expired", slog.String("request", r.ID), slog.String("device", r.Name), slog.String("key", r.keyID))
	d.cfg.Changed()
	return nil
}

func (d *Desk) dropCodeOf(ctx context.Context, r *request) error {
	d.mu.Lock()
	c := d.codes[r.Code]
	d.mu.Unlock()
	if c == nil || c.UsedBy == nil || c.UsedBy.Request != r.ID {
		return nil
	}
	_, err := d.drop(ctx, codePrefix+c.hash, c.revision)
	return err
}

// tidyCode forgets a code that opens nothing any more. A used one is kept as
// long as its request, and where a crash came before that was written, as long
// as its applicant may come back.
func (d *Desk) tidyCode(ctx context.Context, c *code, now time.Time) error {
	end := c.Expires
	if c.UsedBy != nil {
		if d.request(c.UsedBy.Request) != nil {
			return nil
		}
		end = end.Add(keepDecided)
	}
	if now.Before(end) {
		return nil
	}
	done, err := d.drop(ctx, codePrefix+c.hash, c.revision)
	if done {
		d.cfg.Changed()
	}
	return err
}

func (d *Desk) allRequests() (list []*request) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, r := range d.requests {
		list = append(list, r)
	}
	return list
}

func (d *Desk) allCodes() (list []*code) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, c := range d.codes {
		list = append(list, c)
	}
	return list
}
