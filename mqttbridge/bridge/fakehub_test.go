package bridge

import (
	"bufio"
	"context"
	"errors"
	"maps"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
)

// A fakeHub is the relay's end of the link: it keeps what came, gives out a
// mailbox, and can be cut.
type fakeHub struct {
	t testing.TB

	mu       sync.Mutex // guards what follows
	down     bool
	upAgain  chan struct{}
	mute     bool // takes messages and does not acknowledge
	greeting func(*mqttbridge.LinkWelcome)
	epoch    string
	conn     net.Conn
	wake     chan struct{} // of the live link's writer
	hellos   []mqttbridge.LinkHello
	last     map[string]uint64 // by stream
	got      []mqttbridge.LinkMessage
	repeated int // messages that came again
	syncs    []map[string]string
	syncing  map[string]string
	retained map[string]string
	mailbox  []mqttbridge.LinkMessage // not acknowledged
	seq      uint64
	sent     uint64 // of mailbox, on the live link
	loose    []mqttbridge.LinkMessage
	acks     int
}

func newHub(t testing.TB) *fakeHub {
	h := &fakeHub{t: t, epoch: "one", last: map[string]uint64{}, retained: map[string]string{}, upAgain: make(chan struct{}), wake: make(chan struct{}, 1)}
	return h
}

// dial is a Config.DialRelay.
func (h *fakeHub) dial(ctx context.Context) (net.Conn, error) {
	for {
		h.mu.Lock()
		down, again := h.down, h.upAgain
		h.mu.Unlock()
		if !down {
			break
		}
		select {
		case <-again:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	a, b := net.Pipe()
	go h.serve(b)
	return a, nil
}

// serve is the hub's end of one link.
func (h *fakeHub) serve(c net.Conn) {
	defer c.Close()
	r, w := bufio.NewReader(c), bufio.NewWriter(c)
	p, err := mqttbridge.ReadLink(r)
	if err != nil || p.Kind != mqttbridge.LinkHelloKind {
		return
	}
	h.mu.Lock()
	h.hellos = append(h.hellos, *p.Hello)
	stream := p.Hello.Stream
	welcome := &mqttbridge.LinkWelcome{Version: mqttbridge.LinkVersion, Agent: "kitchen", Prefix: "home/kitchen/", Epoch: h.epoch, Last: h.last[stream]}
	if h.greeting != nil {
		h.greeting(welcome)
	}
	h.conn, h.sent, h.syncing = c, 0, nil
	wake := make(chan struct{}, 1)
	poke(wake) // what is in the mailbox
	h.wake = wake
	h.mu.Unlock()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer c.Close()
	done := make(chan struct{})
	defer close(done)
	out := make(chan mqttbridge.LinkPacket, 1024)
	if mqttbridge.WriteLink(w, mqttbridge.LinkPacket{Kind: mqttbridge.LinkWelcomeKind, Welcome: welcome}) != nil || w.Flush() != nil {
		return
	}
	wg.Go(func() { h.write(w, out, wake, done, c) })
	for {
		p, err := mqttbridge.ReadLink(r)
		if err != nil {
			return
		}
		if reply, ok := h.take(stream, p); ok {
			select {
			case out <- reply:
			default:
				h.t.Error("the hub's answers are not read")
				return
			}
		}
	}
}

func (h *fakeHub) write(w *bufio.Writer, out <-chan mqttbridge.LinkPacket, wake <-chan struct{}, done <-chan struct{}, c net.Conn) {
	defer c.Close()
	for {
		var list []mqttbridge.LinkPacket
		select {
		case p := <-out:
			list = append(list, p)
		case <-wake:
			h.mu.Lock()
			for _, m := range h.loose {
				list = append(list, mqttbridge.LinkPacket{Kind: mqttbridge.LinkPublish, Message: m})
			}
			h.loose = nil
			for i, m := range h.mailbox {
				if i >= 64 || m.Seq <= h.sent {
					continue
				}
				h.sent = m.Seq
				list = append(list, mqttbridge.LinkPacket{Kind: mqttbridge.LinkPublish, Message: m})
			}
			h.mu.Unlock()
		case <-done:
			return
		}
		for _, p := range list {
			if mqttbridge.WriteLink(w, p) != nil {
				return
			}
		}
		if w.Flush() != nil {
			return
		}
	}
}

// take is one packet from the agent.
func (h *fakeHub) take(stream string, p mqttbridge.LinkPacket) (reply mqttbridge.LinkPacket, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch p.Kind {
	case mqttbridge.LinkPublish:
		m := p.Message
		if m.Sync {
			if h.syncing == nil {
				h.syncing = map[string]string{}
			}
			h.syncing[m.Topic] = string(m.Payload)
			h.retained[m.Topic] = string(m.Payload)
			return reply, false
		}
		if m.Seq != 0 && m.Seq <= h.last[stream] {
			h.repeated++
		} else {
			h.got = append(h.got, m)
			if m.Retain {
				h.retained[m.Topic] = string(m.Payload)
				if len(m.Payload) == 0 {
					delete(h.retained, m.Topic)
				}
			}
		}
		if m.Seq == 0 {
			return reply, false
		}
		h.last[stream] = max(h.last[stream], m.Seq)
		return mqttbridge.LinkPacket{Kind: mqttbridge.LinkAck, Seq: m.Seq}, !h.mute
	case mqttbridge.LinkSynced:
		named := h.syncing
		h.syncing = nil
		h.syncs = append(h.syncs, named)
		for topic := range h.retained {
			if _, ok := named[topic]; !ok {
				delete(h.retained, topic)
			}
		}
	case mqttbridge.LinkAck:
		h.acks++
		h.mailbox = slices.DeleteFunc(h.mailbox, func(m mqttbridge.LinkMessage) bool { return m.Seq <= p.Seq })
		poke(h.wake)
	case mqttbridge.LinkHelloKind:
		h.hellos = append(h.hellos, *p.Hello)
	case mqttbridge.LinkPing:
		return mqttbridge.LinkPacket{Kind: mqttbridge.LinkPong, Seq: p.Seq}, true
	}
	return reply, false
}

// give puts a message into the mailbox.
func (h *fakeHub) give(m mqttbridge.LinkMessage) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if m.QoS == 0 {
		h.loose = append(h.loose, m)
	} else {
		h.seq++
		m.Seq = h.seq
		h.mailbox = append(h.mailbox, m)
	}
	poke(h.wake)
}

// cut ends the link; the agent may come again.
func (h *fakeHub) cut() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.conn != nil {
		h.conn.Close()
	}
}

// setDown cuts the link and lets nobody in, or lets in again.
func (h *fakeHub) setDown(down bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if down {
		if h.conn != nil {
			h.conn.Close()
		}
		h.upAgain = make(chan struct{})
	} else {
		close(h.upAgain)
	}
	h.down = down
}

// with looks or changes under the lock.
func (h *fakeHub) with(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f()
}

// on returns the payloads that came live on a topic.
func (h *fakeHub) on(topic string) (list []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, m := range h.got {
		if m.Topic == topic {
			list = append(list, string(m.Payload))
		}
	}
	return list
}

func (h *fakeHub) count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.got)
}

func (h *fakeHub) left() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.mailbox)
}

func (h *fakeHub) kept() map[string]string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return maps.Clone(h.retained)
}

// failDial is a Config.DialRelay that never works.
func failDial(ctx context.Context) (net.Conn, error) {
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(time.Hour):
		return nil, errors.New("no relay")
	}
}
