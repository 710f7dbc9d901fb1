package bridge

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"

	"github.com/sallyport/sallyport/mqttbridge"
	"github.com/sallyport/sallyport/mqttbridge/queue"
)

// Limits of what waits in memory to be stored. Brokers keep to a window of
// their own (Mosquitto: 20); this one is for those that have none.
const (
	intakeMax   = 1024
	intakeBytes = 8 << 20
	intakeBatch = 256 // stored with one fsync
)

// errSpilled ends a generation on purpose: the home broker sends again what
// there was no room for.
var errSpilled = errors.New("messages are fetched again for which there was no room")

// An intake takes what one source session delivers, stores it, and
// acknowledges it when it is on disk. It lives as long as the session: to
// acknowledge on another one what came on this one would do nothing, or worse.
type intake struct {
	b       *Bridge
	guessed bool // the broker does not say what is retained
	// replays is until when a retained message that the hub knows already is
	// taken for the answer to a subscription.
	replays atomic.Int64

	wake chan struct{}

	mu      sync.Mutex // guards what follows
	waiting []mqtt.Message
	bytes   int
	spilled bool // at QoS 1 everything is left to the broker from here on, in order
}

func newIntake(b *Bridge, guessed bool) *intake {
	return &intake{b: b, guessed: guessed, wake: make(chan struct{}, 1)}
}

// replayTime is how long after a subscription its retained messages may come.
const replayTime = 5 * time.Second

// expectReplays is called before and after a subscription is made.
func (in *intake) expectReplays() {
	in.replays.Store(time.Now().Add(replayTime).UnixNano())
}

// take is the source session's handler. It never blocks: behind it wait the
// broker's answers to pings.
func (in *intake) take(m mqtt.Message) {
	in.b.count.outSeen.Add(1)
	if m.Duplicate() {
		in.b.count.outDuplicates.Add(1)
	}
	size := len(m.Topic()) + len(m.Payload())
	in.mu.Lock()
	defer in.mu.Unlock()
	switch full := len(in.waiting) >= intakeMax || in.bytes+size > intakeBytes; {
	case m.Qos() > 0 && (full || in.spilled):
		in.spilled = true
	case full:
		in.b.count.outDropped.Add(1)
		if m.Retained() {
			in.b.dirty()
		}
	default:
		in.waiting = append(in.waiting, m)
		in.bytes += size
	}
	poke(in.wake)
}

// next waits for messages and takes up to intakeBatch of them.
func (in *intake) next(ctx context.Context) ([]mqtt.Message, error) {
	for {
		in.mu.Lock()
		n := min(len(in.waiting), intakeBatch)
		batch := in.waiting[:n:n]
		in.waiting = in.waiting[n:]
		for _, m := range batch {
			in.bytes -= len(m.Topic()) + len(m.Payload())
		}
		spilled := in.spilled
		in.mu.Unlock()
		switch {
		case n > 0:
			return batch, nil
		case spilled:
			return nil, errSpilled
		}
		select {
		case <-in.wake:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// run stores and acknowledges until ctx ends or the store is closed.
func (in *intake) run(ctx context.Context) error {
	for {
		batch, err := in.next(ctx)
		if err != nil {
			return err
		}
		rules := in.b.rules.Load()
		// Acknowledged in the order of arrival: acks[:ends[i]] when item i is on disk.
		var items []queue.Item
		var ends []int
		for i, m := range batch {
			if item, ok := in.sort(rules, m); ok {
				items = append(items, item)
				ends = append(ends, i+1)
			}
		}
		acked := 0
		ack := func(to int) {
			for ; acked < to; acked++ {
				batch[acked].Ack()
			}
		}
		if len(items) > 0 {
			if err := in.b.out.keep(ctx, items, func(i int) { ack(ends[i]) }); err != nil {
				return err
			}
		}
		ack(len(batch))
	}
}

// sort decides about a message: an item for the queue, or none. What can never
// be sent is acknowledged too, or the broker would send it for ever.
func (in *intake) sort(rules *ruleSet, m mqtt.Message) (item queue.Item, ok bool) {
	b := in.b
	if len(m.Payload()) > mqttbridge.MaxPayload || mqttbridge.CheckTopic(m.Topic()) != nil {
		b.count.outRefused.Add(1)
		b.complain(&b.complained, m.Topic(), "a message from the home broker cannot be sent and is dropped: its topic is not valid, or its payload is longer than 64 KiB")
		return item, false
	}
	if b.echo.take(m.Topic(), m.Payload()) {
		b.count.echoes.Add(1)
		return item, false
	}
	topic, rule, ok := rules.remote(m.Topic())
	if !ok {
		b.count.outIgnored.Add(1)
		return item, false
	}
	msg := mqttbridge.LinkMessage{
		Topic: topic, Payload: m.Payload(), QoS: min(m.Qos(), rule.QoS),
		Retain: m.Retained() || in.guessed && b.recent.knows(topic),
	}
	if m.Retained() && time.Now().UnixNano() < in.replays.Load() && b.recent.same(topic, msg.Payload) {
		b.count.outIgnored.Add(1) // sent because we subscribed, not because somebody published
		return item, false
	}
	if msg.Retain {
		b.recent.note(topic, msg.Payload)
	}
	if msg.QoS == 0 {
		b.out.throw(msg)
		return item, false
	}
	item = queue.Item{Queue: outQueue, Data: encodeRecord(msg), Droppable: rule.DropOldest}
	if rule.MaxAge > 0 {
		item.Expires = b.cfg.Now().Add(rule.MaxAge)
	}
	return item, true
}
