package bridge

import (
	"context"
	"hash/maphash"
	"sync"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
)

// Limits of what has come in and is not confirmed by the home broker.
const (
	inboxMax     = 256 // more unacknowledged ones break the link's rules (its window is 64)
	inboxHistory = 512
)

// An arrival is one message from the hub.
type arrival struct {
	link  *link // acknowledges it
	seq   uint64
	past  *past // nil at QoS 0
	topic string
	load  []byte
	qos   byte
	retain,
	skip bool // nothing to publish: only its turn to be acknowledged counts
	until time.Time // zero: no end
}

// past is what happened to a message, which may come again over another link.
type past struct {
	tries int  // how often it was handed to the home broker
	fails int  // how often a generation ended while it was the oldest
	blame int  // how often the broker hung up on it alone
	done  bool // confirmed
}

type pastKey struct{ seq, hash uint64 }

// An inbox holds what comes from the hub until the home broker has confirmed
// it, in order. It outlives links and generations: a new generation starts
// with the oldest one that is not confirmed, a new link brings again what was
// not acknowledged.
type inbox struct {
	b    *Bridge
	seed maphash.Seed
	wake chan struct{}

	mu      sync.Mutex // guards what follows
	waiting []*arrival // [:sent] are on their way to the broker
	sent    int
	gen     uint64 // of the generation that publishes; odd numbers: none
	history map[pastKey]*past
	order   []pastKey // of history, the oldest first
}

func newInbox(b *Bridge) *inbox {
	return &inbox{b: b, seed: maphash.MakeSeed(), wake: make(chan struct{}, 1), history: map[pastKey]*past{}, gen: 1}
}

// add takes a message from a link; false: there are too many. At QoS 0 what is
// too much is dropped.
func (in *inbox) add(l *link, m mqttbridge.LinkMessage) bool {
	ok, crowded := in.put(l, m)
	if crowded {
		in.b.complain(&in.b.crowded, m.Topic, "messages from the relay at QoS 0 are dropped: the home broker takes them slower than they come")
	}
	return ok
}

// put is add; crowded: the message was dropped.
func (in *inbox) put(l *link, m mqttbridge.LinkMessage) (ok, crowded bool) {
	a := &arrival{link: l, seq: m.Seq, load: m.Payload, retain: m.Retain}
	c := &in.b.count
	if topic, rule, ok := in.b.rules.Load().local(m.Topic); ok {
		a.topic, a.qos = topic, min(m.QoS, rule.QoS)
	} else {
		a.skip = true
		c.inRefused.Add(1)
		in.b.complain(&in.b.complained, m.Topic, "a message from the relay is refused: no rule lets its topic in")
	}
	if m.TTL > 0 {
		a.until = time.Now().Add(m.TTL)
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	if len(in.waiting) >= inboxMax {
		if m.Seq != 0 {
			return false, false
		}
		if a.skip { // counted as refused
			return true, false
		}
		c.inDropped.Add(1)
		return true, in.gen&1 == 0
	}
	if m.Seq == 0 {
		if a.skip {
			return true, false
		}
		if in.gen&1 == 1 { // the broker is away
			c.inDropped.Add(1)
			return true, false
		}
	} else {
		a.past = in.remember(m)
		if a.past.done {
			a.skip = true
			c.inAbsorbed.Add(1)
		}
		for _, flying := range in.waiting[:in.sent] {
			if flying.past == a.past { // from an older link, on its way to the broker now
				flying.link = l
				c.inAbsorbed.Add(1)
				return true, false
			}
		}
	}
	in.waiting = append(in.waiting, a)
	poke(in.wake)
	return true, false
}

// remember finds what is known of a message; mu is held. The number alone does
// not tell: a hub that lost its disk starts again with 1.
func (in *inbox) remember(m mqttbridge.LinkMessage) *past {
	var h maphash.Hash
	h.SetSeed(in.seed)
	h.WriteString(m.Topic)
	h.WriteByte(0)
	h.Write(m.Payload)
	k := pastKey{m.Seq, h.Sum64()}
	if p := in.history[k]; p != nil {
		return p
	}
	if len(in.order) >= inboxHistory {
		delete(in.history, in.order[0])
		in.order = in.order[1:]
	}
	p := &past{}
	in.history[k] = p
	in.order = append(in.order, k)
	return p
}

// begin makes this generation the one that publishes, from the oldest message
// that is not confirmed.
func (in *inbox) begin() (gen uint64) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.gen = (in.gen + 1) &^ 1
	in.sent = 0
	poke(in.wake)
	return in.gen
}

// end is the end of the generation that begin made.
func (in *inbox) end(gen uint64) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.gen != gen {
		return
	}
	in.gen++
	if in.sent > 0 && in.waiting[0].past != nil {
		in.waiting[0].past.fails++
	}
	in.sent = 0
	// QoS 0 does not wait for a broker.
	kept := in.waiting[:0]
	for _, a := range in.waiting {
		if a.seq == 0 {
			in.b.count.inDropped.Add(1)
			continue
		}
		if !a.link.over() {
			kept = append(kept, a)
		}
	}
	clear(in.waiting[len(kept):])
	in.waiting = kept
}

// next waits for the next message to publish; nil: ctx or the generation ended.
func (in *inbox) next(ctx context.Context, gen uint64) *arrival {
	for {
		in.mu.Lock()
		if in.gen != gen {
			in.mu.Unlock()
			return nil
		}
		if in.sent < len(in.waiting) {
			a := in.waiting[in.sent]
			in.sent++
			if a.past != nil && !a.skip {
				if a.past.tries > 0 {
					in.b.count.inDuplicates.Add(1)
				}
				a.past.tries++
			}
			in.mu.Unlock()
			return a
		}
		in.mu.Unlock()
		select {
		case <-in.wake:
		case <-ctx.Done():
			return nil
		}
	}
}

// confirm is for the oldest one: the broker has it, or it needs none.
func (in *inbox) confirm(gen uint64, a *arrival) {
	in.mu.Lock()
	if in.gen != gen || in.sent == 0 || in.waiting[0] != a {
		in.mu.Unlock()
		return
	}
	in.waiting[0] = nil
	in.waiting = in.waiting[1:]
	in.sent--
	if a.past != nil {
		a.past.done = true
	}
	l := a.link
	in.mu.Unlock()
	if a.seq != 0 {
		l.acknowledge(a.seq)
	}
}

// unlink forgets what came over a link that ended and is not on its way to the
// broker: it comes again.
func (in *inbox) unlink(l *link) {
	in.mu.Lock()
	defer in.mu.Unlock()
	kept := in.waiting[:in.sent]
	for _, a := range in.waiting[in.sent:] {
		if a.link != l {
			kept = append(kept, a)
		}
	}
	clear(in.waiting[len(kept):])
	in.waiting = kept
}

// wanted says whether the message is to be published still.
func (in *inbox) wanted(a *arrival) bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	if !a.skip && !a.until.IsZero() && !time.Now().Before(a.until) {
		a.skip = true
		in.b.count.inExpired.Add(1)
	}
	return !a.skip
}

// blamed counts that the broker hung up on exactly this message; true: it is
// given up. It is not published again then, and acknowledged in its turn by
// whichever generation comes to that.
func (in *inbox) blamed(a *arrival) bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	a.past.blame++
	if a.past.blame < blameMax {
		return false
	}
	a.past.done, a.skip = true, true
	return true
}

// suspicious says whether this is the oldest message and was so at the end of
// several generations.
func (in *inbox) suspicious(a *arrival) bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	return a.past != nil && !a.past.done && a.past.fails >= suspectAfter && len(in.waiting) > 0 && in.waiting[0] == a
}
