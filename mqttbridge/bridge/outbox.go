package bridge

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
	"github.com/sallyport/sallyport/mqttbridge/queue"
)

// outQueue is the name of the durable queue.
const outQueue = "bridge/out"

// Limits of what goes out at QoS 0, which is kept in memory while the link is
// up and not at all while it is down.
const (
	looseMax   = 512
	looseBytes = 1 << 20
)

// An outbox holds what goes to the hub: at QoS 1 on disk, at QoS 0 in memory.
type outbox struct {
	store *queue.Store
	log   *slog.Logger
	count *counters
	dirty func() // a retained message was lost: the hub's retained state is not ours

	room chan struct{} // receives when the hub has taken something
	full atomic.Bool   // somebody waits for room
	disk atomic.Pointer[string]

	mu    sync.Mutex // guards what follows
	up    *link      // who sends; nil: QoS 0 is dropped
	loose []mqttbridge.LinkMessage
	bytes int
}

// keep puts items on disk and calls done for each of them, in order, when it
// is there. It waits for room and for the disk as long as it takes. It returns
// an error when ctx ends or the store is closed; what done was not called for
// must come again.
func (o *outbox) keep(ctx context.Context, items []queue.Item, done func(i int)) error {
	err := o.append(ctx, items)
	if len(items) > 1 && (errors.Is(err, queue.ErrFull) || errors.Is(err, queue.ErrTooLarge)) {
		for i := range items { // perhaps some fit
			if err := o.keep(ctx, items[i:i+1], func(int) { done(i) }); err != nil {
				return err
			}
		}
		return nil
	}
	var wait backoff
	for err != nil {
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, queue.ErrClosed), errors.Is(err, queue.ErrNoQueue):
			return err
		case errors.Is(err, queue.ErrTooLarge):
			o.count.outRefused.Add(1)
			o.log.Warn("a message does not fit into the queue at all and is dropped", "err", err)
			done(0)
			return nil
		case errors.Is(err, queue.ErrFull):
			if !o.full.Swap(true) {
				o.log.Warn("the queue to the relay is full: the home broker keeps further messages until there is room", "err", err)
			}
			if !pause(ctx, time.Second, o.room) {
				return ctx.Err()
			}
		default:
			o.diskFailed(err)
			if !pause(ctx, wait.next(0), nil) {
				return ctx.Err()
			}
		}
		err = o.append(ctx, items)
	}
	if o.full.Swap(false) {
		o.log.Info("the queue to the relay has room again")
	}
	for i := range items {
		done(i)
	}
	return nil
}

func (o *outbox) append(ctx context.Context, items []queue.Item) error {
	dropped, err := o.store.Append(ctx, items, nil)
	if err != nil {
		return err
	}
	if dropped > 0 {
		o.dirty()
	}
	if o.disk.Swap(nil) != nil {
		o.log.Info("the queue to the relay can be written again")
	}
	return nil
}

// diskFailed says it once; Status shows it as long as it lasts.
func (o *outbox) diskFailed(err error) {
	text := err.Error()
	if o.disk.Swap(&text) == nil {
		o.log.Error("the queue to the relay cannot be written: nothing is taken from the home broker until it can. Free some disk space", "err", err)
	}
}

// throw takes a message at QoS 0.
func (o *outbox) throw(m mqttbridge.LinkMessage) {
	o.mu.Lock()
	l := o.up
	if l == nil {
		o.mu.Unlock()
		o.lose(m)
		return
	}
	o.loose = append(o.loose, m)
	o.bytes += len(m.Topic) + len(m.Payload)
	var lost []mqttbridge.LinkMessage
	for len(o.loose) > looseMax || o.bytes > looseBytes {
		lost = append(lost, o.shift())
	}
	o.mu.Unlock()
	for _, m := range lost {
		o.lose(m)
	}
	l.poke()
}

// shift takes the oldest; mu is held.
func (o *outbox) shift() mqttbridge.LinkMessage {
	m := o.loose[0]
	o.loose[0] = mqttbridge.LinkMessage{}
	o.loose = o.loose[1:]
	o.bytes -= len(m.Topic) + len(m.Payload)
	return m
}

func (o *outbox) lose(m mqttbridge.LinkMessage) {
	o.count.outDropped.Add(1)
	if m.Retain {
		o.dirty()
	}
}

// catch returns up to limit messages at QoS 0.
func (o *outbox) catch(limit int) (list []mqttbridge.LinkMessage) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for len(o.loose) > 0 && len(list) < limit {
		list = append(list, o.shift())
	}
	return list
}

// linkUp and linkDown say who sends.
func (o *outbox) linkUp(l *link) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.up = l
}

func (o *outbox) linkDown() {
	o.mu.Lock()
	lost := o.loose
	o.up, o.loose, o.bytes = nil, nil, 0
	o.mu.Unlock()
	for _, m := range lost {
		o.lose(m)
	}
}

// taken removes everything up to seq: the hub has it on disk.
func (o *outbox) taken(seq uint64) error {
	if err := o.store.Ack(outQueue, seq); err != nil {
		return err
	}
	poke(o.room)
	return nil
}
