package devices

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/sallyport/sallyport/relay/store"
)

// seenInterval is how often "last seen" goes to disk, at most once per device.
const seenInterval = time.Minute

// Seen notes that a device is here. It costs a few nanoseconds: Run writes it
// down later. Unknown IDs are ignored.
func (d *Devices) Seen(id string) {
	if e := d.current.Load().byID[id]; e != nil {
		now := d.cfg.Now()
		raise(&e.seen.last, now.Unix())
		d.learnTime(now)
	}
}

// Run applies what others change through the same store, writes down when
// devices were seen, and logs what ClockWarning says, until ctx ends. Without it Add, Revoke and Check work all
// the same. It returns an error when the store stops telling.
func (d *Devices) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	docs, err := d.cfg.Store.Watch(ctx, docPrefix)
	if err != nil {
		return fmt.Errorf("watch the devices: %w", err)
	}
	times, err := d.cfg.Store.Watch(ctx, seenPrefix)
	if err != nil {
		return fmt.Errorf("watch when devices are seen: %w", err)
	}
	clocks, err := d.cfg.Store.Watch(ctx, clockKey)
	if err != nil {
		return fmt.Errorf("watch what is said about the clock: %w", err)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { d.saveSeenUntil(ctx) })
	if err := d.catchUp(ctx); err != nil && ctx.Err() == nil {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case ev, ok := <-docs:
			if !ok {
				return d.lostWatch(ctx)
			}
			d.learn(ev)
		case ev, ok := <-clocks:
			if !ok {
				return d.lostWatch(ctx)
			}
			if !ev.Deleted {
				d.learnReset(ev.Entry)
			}
		case ev, ok := <-times:
			if !ok {
				return d.lostWatch(ctx)
			}
			if !ev.Deleted {
				d.learnSeen(ev.Entry)
			}
		}
	}
}

func (d *Devices) lostWatch(ctx context.Context) error {
	if ctx.Err() != nil {
		return nil
	}
	return errors.New("watch the devices: the store stopped telling of changes")
}

// catchUp applies what changed between New and the begin of the watch.
func (d *Devices) catchUp(ctx context.Context) error {
	if e, err := d.cfg.Store.Get(ctx, clockKey); err == nil {
		d.learnReset(e)
	} else if !errors.Is(err, store.ErrNotFound) {
		return fmt.Errorf("read what was said about the clock: %w", err)
	}
	entries, err := d.cfg.Store.List(ctx, docPrefix)
	if err != nil {
		return fmt.Errorf("read the devices: %w", err)
	}
	for _, e := range entries {
		d.learn(store.Event{Entry: e})
	}
	return nil
}

// learn applies one change. A document that cannot be read shuts its devices
// out: what it wanted to restrict is not known.
func (d *Devices) learn(ev store.Event) {
	name := strings.TrimPrefix(ev.Key, docPrefix)
	if ev.Deleted {
		d.apply(name, ev.Revision, nil)
		return
	}
	doc, err := decodeDocument(name, ev.Value)
	if err != nil {
		d.cfg.Logger.Error("device is shut out: its new record cannot be read", "device", name, "err", err)
	}
	d.apply(name, ev.Revision, doc)
}

func (d *Devices) learnSeen(se store.Entry) {
	e := d.current.Load().byID[strings.TrimPrefix(se.Key, seenPrefix)]
	if e == nil {
		return
	}
	at, err := time.Parse(time.RFC3339, string(se.Value))
	if err != nil {
		return // it is for people only, and the next visit writes it anew
	}
	if d.resets.Load().denies(at) {
		return // it was not seen then
	}
	raise(&e.seen.last, at.Unix())
	raise(&e.seen.saved, at.Unix())
	d.learnTime(at)
}

func (d *Devices) saveSeenUntil(ctx context.Context) {
	tick := time.NewTicker(seenInterval)
	defer tick.Stop()
	warning := d.watchClock("")
	for {
		select {
		case <-tick.C:
			d.saveSeen(ctx)
			warning = d.watchClock(warning)
		case <-ctx.Done():
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
			defer cancel()
			d.saveSeen(ctx)
			return
		}
	}
}

// saveSeen writes down what is newer than on disk. Failures wait for the next
// round, said once a round.
func (d *Devices) saveSeen(ctx context.Context) {
	d.seenTurn.Lock()
	defer d.seenTurn.Unlock()
	var failed error
	for id, e := range d.current.Load().byID {
		last := e.seen.last.Load()
		if last <= e.seen.saved.Load() {
			continue
		}
		if err := d.putSeen(ctx, seenPrefix+id, time.Unix(last, 0).UTC().Format(time.RFC3339)); err != nil {
			failed = err
			continue
		}
		raise(&e.seen.saved, last)
	}
	if failed != nil && !errors.Is(failed, store.ErrClosed) {
		d.cfg.Logger.Warn("cannot write down when devices were seen", "err", failed)
	}
}

func (d *Devices) putSeen(ctx context.Context, key, value string) error {
	e, err := d.cfg.Store.Get(ctx, key)
	switch {
	case errors.Is(err, store.ErrNotFound):
		_, err = d.cfg.Store.Create(ctx, key, []byte(value))
	case err == nil:
		_, err = d.cfg.Store.Update(ctx, key, []byte(value), e.Revision)
	}
	if errors.Is(err, store.ErrExists) || errors.Is(err, store.ErrConflict) {
		return nil // another relay saw it in the same moment: as good as ours
	}
	return err
}

// raise moves v up to at, never down: clocks of several relays differ.
func raise(v interface {
	Load() int64
	CompareAndSwap(old, new int64) bool
}, at int64,
) {
	for {
		old := v.Load()
		if at <= old || v.CompareAndSwap(old, at) {
			return
		}
	}
}
