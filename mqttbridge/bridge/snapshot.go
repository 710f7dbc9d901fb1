package bridge

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"

	"github.com/sallyport/sallyport/mqttbridge"
)

// Times of taking a snapshot.
const (
	snapshotQuiet = time.Second // no retained message for so long: these were all
	snapshotLimit = time.Minute
	// snapshotRest is the least time between two of them while both connections
	// last: under a flood there is always a reason for one more.
	snapshotRest = 10 * time.Second
)

// A syncState says whether the hub's retained state is ours. It is not on
// disk: after a restart of either side a snapshot is due.
type syncState struct {
	mu    sync.Mutex // guards what follows
	due   uint64     // rises with each reason for a snapshot
	done  uint64     // due at the begin of the newest one that the hub has …
	with  string     // … and the hub's epoch then
	fault string     // why the last attempt failed, to people
}

func (s *syncState) dirty() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.due++
}

// epoch is what the hello says: "" when a snapshot will come anyway.
func (s *syncState) epoch() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.done != s.due {
		return ""
	}
	return s.with
}

// wanted says whether a snapshot is due for a hub of that epoch.
func (s *syncState) wanted(epoch string) (due uint64, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.due, s.done != s.due || s.with != epoch
}

func (s *syncState) finished(due uint64, epoch string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.done, s.with, s.fault = due, epoch, ""
}

func (s *syncState) failed(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = err.Error()
}

func (s *syncState) problem() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fault
}

// dirty says that the hub's retained state may not be ours any more.
func (b *Bridge) dirty() {
	b.synced.dirty()
	b.pokeSync()
}

func (b *Bridge) pokeSync() { poke(b.syncWake) }

// syncLoop takes a snapshot of the home broker's retained messages and hands
// it to the link, whenever one is due and both sides are there.
func (b *Bridge) syncLoop(ctx context.Context) {
	wait := backoff{rand: b.rand}
	var last struct {
		l  *link
		g  *generation
		at time.Time
	}
	for ctx.Err() == nil {
		l, g := b.current()
		if l != nil && g != nil {
			if due, ok := b.synced.wanted(l.welcome.Epoch); ok {
				if left := b.rest - time.Since(last.at); left > 0 && last.l == l && last.g == g {
					pause(ctx, left, nil)
					continue
				}
				switch err := b.syncOnce(ctx, l, g); {
				case err == nil:
					b.synced.finished(due, l.welcome.Epoch)
					wait.fails = 0
					last.l, last.g, last.at = l, g, time.Now()
				case ctx.Err() == nil && !l.over() && !g.over():
					b.synced.failed(err)
					d := backoffFirst + wait.next(0)
					b.log.Warn("cannot tell the relay what is retained at home, trying again", "in", d.Round(time.Millisecond), "err", err)
					pause(ctx, d, nil)
				default:
					pause(ctx, backoffFirst, b.syncWake) // one of them is going
				}
				continue
			}
		}
		select {
		case <-b.syncWake:
		case <-ctx.Done():
		}
	}
}

func (b *Bridge) syncOnce(ctx context.Context, l *link, g *generation) error {
	ctx, cancel := context.WithTimeout(ctx, snapshotLimit)
	defer cancel()
	b.recent.start() // before the snapshot, so that nothing newer is missed
	defer b.recent.stop()
	list, err := b.takeSnapshot(ctx, l, g)
	if err != nil {
		return err
	}
	s := &snapshot{list: list, named: map[string]struct{}{}, done: make(chan error, 1)}
	l.note(func() { l.snapshot = s })
	select {
	case err := <-s.done:
		return err
	case <-l.ended:
		return errLinkEnded
	case <-ctx.Done(): // it is sent or not: the next one is whole again
		l.note(func() { l.snapshot = nil })
		return context.Cause(ctx)
	}
}

// takeSnapshot subscribes with a session of its own, and takes what is sent as
// retained until nothing more comes. At protocol level 4 only what was
// retained before the subscription has that flag.
func (b *Bridge) takeSnapshot(ctx context.Context, l *link, g *generation) ([]mqttbridge.LinkMessage, error) {
	rules := b.rules.Load()
	if len(rules.filters) == 0 {
		return nil, nil
	}
	var mu sync.Mutex // guards the next three
	found := map[string][]byte{}
	bytes := 0
	newest := time.Now()
	s, err := b.dialer.connect(ctx, sessionOptions{
		id: b.clientID("-sync"), clean: true, level: level4,
		handler: func(m mqtt.Message) {
			m.Ack()
			if !m.Retained() || len(m.Payload()) == 0 || len(m.Payload()) > mqttbridge.MaxPayload || mqttbridge.CheckTopic(m.Topic()) != nil {
				return
			}
			topic, _, ok := rules.remote(m.Topic())
			if !ok {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			newest = time.Now()
			bytes += len(topic) + len(m.Payload()) - len(found[topic])
			if len(found) <= snapshotTopics && bytes <= snapshotBytes {
				found[topic] = m.Payload()
			}
		},
	})
	if err != nil {
		return nil, err
	}
	defer s.close()
	for _, f := range slices.Sorted(maps.Keys(rules.filters)) {
		// At QoS 0: at QoS 1 Mosquitto drops what exceeds its queue of 1,000.
		if err := s.subscribe(ctx, f, 0); err != nil && !errors.Is(err, errRefusedFilter) {
			return nil, err
		}
	}
	mu.Lock()
	newest = time.Now()
	mu.Unlock()
	for {
		mu.Lock()
		left := b.quiet - time.Since(newest)
		full := len(found) > snapshotTopics || bytes > snapshotBytes
		mu.Unlock()
		if full {
			return nil, fmt.Errorf("more than %d topics or %d MiB are retained: make the rules narrower", snapshotTopics, snapshotBytes>>20)
		}
		if left <= 0 {
			break
		}
		select {
		case <-time.After(left):
		case <-s.lost:
			return nil, fmt.Errorf("connection lost: %w", s.err)
		case <-l.ended:
			return nil, errLinkEnded
		case <-g.target.lost:
			return nil, errors.New("the home broker is away")
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	mu.Lock()
	defer mu.Unlock()
	list := make([]mqttbridge.LinkMessage, 0, len(found))
	for _, topic := range slices.Sorted(maps.Keys(found)) {
		list = append(list, syncMessage(topic, found[topic]))
	}
	return list, nil
}

// A snapshot is on its way to the hub; the link's writer has it.
type snapshot struct {
	list  []mqttbridge.LinkMessage
	named map[string]struct{}
	done  chan error // receives once
}

// sync sends some of the snapshot; more: there is more of it. What came live
// meanwhile is newer, so that its value is sent instead. As one goroutine
// writes everything, nothing can come in between.
func (l *link) sync() (more bool, err error) {
	l.mu.Lock()
	s := l.snapshot
	l.mu.Unlock()
	if s == nil {
		return false, nil
	}
	n := min(len(s.list), pumpBatch)
	chunk := s.list[:n]
	s.list = s.list[n:]
	last := len(s.list) == 0
	complete := true
	if last {
		for _, m := range chunk {
			s.named[m.Topic] = struct{}{}
		}
		var rest []mqttbridge.LinkMessage
		rest, complete = l.b.recent.rest(s.named)
		chunk = append(slices.Clone(chunk), rest...)
	}
	sent := chunk[:0:0]
	for _, m := range chunk {
		s.named[m.Topic] = struct{}{}
		if payload, ok := l.b.recent.newest(m.Topic); ok {
			m.Payload = payload
		}
		if len(m.Payload) == 0 {
			continue // cleared meanwhile
		}
		if err := l.send(m); err != nil {
			return false, err
		}
		sent = append(sent, m)
	}
	l.b.recent.learn(sent)
	l.b.count.synced.Add(uint64(len(sent)))
	if !last {
		return true, nil
	}
	l.mu.Lock()
	if l.snapshot == s {
		l.snapshot = nil
	}
	l.mu.Unlock()
	if !complete {
		s.done <- errors.New("too much was published meanwhile")
		return false, nil
	}
	err = mqttbridge.WriteLink(l.out, mqttbridge.LinkPacket{Kind: mqttbridge.LinkSynced})
	if err == nil {
		err = l.out.Flush()
	}
	s.done <- err
	return false, err
}

func (g *generation) over() bool { return g.target.over() || g.source.over() }
