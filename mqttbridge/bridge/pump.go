package bridge

import (
	"context"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
	"github.com/sallyport/sallyport/mqttbridge/queue"
)

// pumpBatch is how many messages of one kind are written before the others
// have a turn.
const pumpBatch = 64

// write sends what there is to send until ctx ends: answers first, then
// messages, then the snapshot.
func (l *link) write(ctx context.Context) error {
	changed := l.b.cfg.Queue.Changed(outQueue)
	ping := time.NewTicker(linkPing)
	defer ping.Stop()
	for n := uint64(0); ; {
		if err := l.conn.SetWriteDeadline(time.Now().Add(linkWriteLimit)); err != nil {
			return err
		}
		if err := l.answer(); err != nil {
			return err
		}
		more, err := l.pump()
		if err != nil {
			return err
		}
		again, err := l.sync()
		if err != nil {
			return err
		}
		if err := l.out.Flush(); err != nil {
			return err
		}
		if more || again {
			continue
		}
		select {
		case <-l.wake:
		case <-changed:
		case <-ping.C:
			n++
			if err := mqttbridge.WriteLink(l.out, mqttbridge.LinkPacket{Kind: mqttbridge.LinkPing, Seq: n}); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// answer sends acknowledgements, answers to pings, and changed rules.
func (l *link) answer() error {
	l.mu.Lock()
	ack, said, pong, rehello := l.ackTo, l.acked, l.pong, l.rehello
	l.acked, l.pong, l.rehello = ack, nil, false
	l.mu.Unlock()
	if rehello {
		hello, err := l.b.hello(l.b.rules.Load())
		if err != nil {
			return err
		}
		if err := mqttbridge.WriteLink(l.out, mqttbridge.LinkPacket{Kind: mqttbridge.LinkHelloKind, Hello: hello}); err != nil {
			return err
		}
	}
	if ack > said {
		if err := mqttbridge.WriteLink(l.out, mqttbridge.LinkPacket{Kind: mqttbridge.LinkAck, Seq: ack}); err != nil {
			return err
		}
	}
	if pong != nil {
		return mqttbridge.WriteLink(l.out, mqttbridge.LinkPacket{Kind: mqttbridge.LinkPong, Seq: *pong})
	}
	return nil
}

// pump sends messages as far as the window is open; more: there may be others
// that could go at once.
func (l *link) pump() (more bool, err error) {
	loose := l.b.out.catch(pumpBatch)
	for _, m := range loose {
		if err := l.send(m); err != nil {
			return false, err
		}
		l.b.count.outLoose.Add(1)
	}
	l.mu.Lock()
	after, room := l.last, linkWindow-len(l.flying)
	l.mu.Unlock()
	if room <= 0 {
		return len(loose) == pumpBatch, nil
	}
	items, err := l.b.cfg.Queue.Read(outQueue, after, room)
	if err != nil {
		return false, err
	}
	for _, it := range items {
		if err := l.sendItem(it); err != nil {
			return false, err
		}
	}
	return len(loose) == pumpBatch || len(items) > 0, nil
}

// sendItem sends what the queue gave.
func (l *link) sendItem(it queue.Item) error {
	m, err := decodeRecord(it.Data)
	if err != nil {
		// It goes with the next acknowledgement behind it.
		l.b.log.Error("a message in the queue to the relay is broken and not sent", "seq", it.Seq)
		l.mu.Lock()
		l.last = it.Seq
		alone := len(l.flying) == 0
		l.mu.Unlock()
		if alone {
			return l.b.out.taken(it.Seq)
		}
		return nil
	}
	m.Seq = it.Seq
	if !it.Expires.IsZero() {
		m.TTL = max(it.Expires.Sub(l.b.cfg.Now()), time.Millisecond)
	}
	m.Dup = l.b.sentBefore(it.Seq)
	l.mu.Lock() // before it is written: the answer may be quick
	l.last = it.Seq
	l.flying = append(l.flying, it.Seq)
	l.mu.Unlock()
	return l.send(m)
}

func (l *link) send(m mqttbridge.LinkMessage) error {
	return mqttbridge.WriteLink(l.out, mqttbridge.LinkPacket{Kind: mqttbridge.LinkPublish, Message: m})
}
