//go:build linux

package load

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"
)

const (
	messageSize = 128 // bytes of payload
	onTheWay    = 128 // messages between publishers and the subscriber at a time, so that nothing overflows

	// The hub lets a device publish 200 messages a second.
	hubPublishers  = 64
	homePublishers = 8
)

var everyCrossing = []string{"quic", "tcp", "mosquitto"}

// eachCrossing runs a sub-benchmark for every peer, without delay.
func eachCrossing(b *testing.B, run func(*testing.B, *crossing)) {
	for _, peer := range everyCrossing {
		b.Run(peer, func(b *testing.B) { run(b, needCrossing(b, way{peer: peer})) })
	}
}

func needCrossing(b *testing.B, w way) *crossing {
	b.Helper()
	x, err := theLab.crossing(w)
	switch {
	case err != nil:
		b.Fatal(err)
	case x == nil && inCI():
		b.Fatal("mosquitto is not installed: apt-get install mosquitto")
	case x == nil:
		b.Skip("no mosquitto here")
	}
	return x
}

// BenchmarkBridge moves messages between home and a device at the hub, through
// hub and bridge. up is from home to a device that subscribed, down from devices
// to home. qos1 goes to a session that ends with its connection, kept to one
// that outlives it.
//
// Ours has what it acknowledges at QoS 1 on disk, with fsync, at the agent on
// the way up, at the relay on the way down, and for kept sessions at the relay
// too. mosquitto writes every half hour.
func BenchmarkBridge(b *testing.B) {
	fsync(b)
	for _, dir := range []string{"up", "down"} {
		for _, kind := range []string{"qos0", "qos1", "kept"} {
			if dir == "down" && kind == "kept" {
				continue // at home that is the home broker's matter
			}
			b.Run(dir+"/"+kind, func(b *testing.B) {
				eachCrossing(b, func(b *testing.B, x *crossing) { bridged(b, x, dir, kind) })
			})
		}
	}
}

func bridged(b *testing.B, x *crossing, dir, kind string) {
	s, err := x.openStream(b.Context(), dir, kind)
	if err != nil {
		b.Fatal(err)
	}
	defer s.close()
	move := func(n int) {
		if err := s.move(n); err != nil {
			b.Fatalf("%s: %v\n%s", x.way.peer, err, x.said())
		}
	}
	batch := size(4096, 512)
	move(onTheWay)
	r := &road{peer: x.way.peer, service: kind, procs: x.procs}
	m := begin(b, r)
	lost := s.lost
	for b.Loop() {
		move(batch)
	}
	n := float64(batch * b.N)
	cost, rate := m.cpu().Seconds()*1e6/n, n/b.Elapsed().Seconds()
	b.ReportMetric(cost, "cpu-µs/msg")
	b.ReportMetric(rate, "msg/s")
	b.ReportMetric(float64(s.lost-lost), "lost")
	b.ReportMetric(float64(s.twice), "twice")
	column := map[string]string{"up": "home to hub", "down": "hub to home"}[dir]
	theLab.table.add("MQTT, 128 bytes, 128 on the way: CPU µs per message, all processes (ours has QoS 1 on disk with fsync, mosquitto does not)", column, r, cost, "", 0)
	theLab.table.add("MQTT, 128 bytes, 128 on the way: messages per second (the same)", column, r, rate, "", 0)
}

func (x *crossing) said() (text string) {
	for _, p := range x.procs {
		text += p.name + ": " + p.said() + "\n"
	}
	return text
}

// stream is publishers on one side and a subscriber on the other.
type stream struct {
	pubs  []*mqttClient
	topic string // and the publisher's number
	qos   byte
	sub   *mqttClient

	room chan struct{} // a token for each message that may be on its way

	mu          sync.Mutex // guards the rest
	first       uint64     // number of the batch's first message …
	seen        []bool     // … and which of them have come
	left        int
	whole       chan struct{} // closed when nothing is left
	last        time.Time     // when one came
	lost, twice int
}

func (x *crossing) openStream(ctx context.Context, dir, kind string) (*stream, error) {
	s := &stream{room: make(chan struct{}, onTheWay), qos: 1}
	if kind == "qos0" {
		s.qos = 0
	}
	client := fmt.Sprint("-", kind)
	var err error
	if dir == "up" {
		s.topic = "up/" + kind + "/"
		if s.sub, err = x.atHub(ctx, "", "reader", client, kind == "kept"); err == nil {
			err = s.sub.subscribe(prefix+s.topic+"+", s.qos)
		}
	} else {
		s.topic = prefix + "down/" + kind + "/"
		if s.sub, err = x.atHome("reader"+client, false); err == nil {
			err = s.sub.subscribe("down/"+kind+"/+", s.qos)
		}
	}
	if err == nil {
		err = s.openPublishers(ctx, x, dir)
	}
	if err != nil {
		s.close()
		return nil, err
	}
	go s.sub.receive(s.arrived) // its end is seen by who waits
	return s, nil
}

func (s *stream) openPublishers(ctx context.Context, x *crossing, dir string) error {
	n := size(hubPublishers, 8)
	if dir == "up" {
		n = homePublishers
	}
	for i := range n {
		p, err := x.atHome(fmt.Sprintf("thing%d", i), false)
		if dir == "down" {
			if err == nil {
				p.close()
			}
			p, err = x.atHub(ctx, "", fmt.Sprintf("writer%d", i), "", false)
		}
		if err != nil {
			return err
		}
		s.pubs = append(s.pubs, p)
		go p.receive(func(string, []byte) {}) // PUBACKs
	}
	return nil
}

func (s *stream) close() {
	for _, p := range append(slices.Clone(s.pubs), s.sub) {
		if p != nil {
			p.close()
		}
	}
}

// arrived counts a message.
func (s *stream) arrived(_ string, payload []byte) {
	if len(payload) < 8 {
		return
	}
	number := binary.BigEndian.Uint64(payload)
	s.mu.Lock()
	defer s.mu.Unlock()
	i := number - s.first
	switch {
	case i >= uint64(len(s.seen)): // of an earlier batch
		s.twice++
		return
	case s.seen[i]:
		s.twice++
		return
	}
	s.seen[i], s.last = true, time.Now()
	select {
	case <-s.room:
	default: // given back because it seemed lost
	}
	if s.left--; s.left == 0 {
		close(s.whole)
	}
}

// move sends n messages and returns when they have come. At QoS 0 it may miss
// some; at QoS 1 that is an error.
func (s *stream) move(n int) error {
	s.mu.Lock()
	s.first += uint64(len(s.seen))
	s.seen, s.left, s.whole, s.last = make([]bool, n), n, make(chan struct{}), time.Now()
	first, whole := s.first, s.whole
	s.mu.Unlock()
	stuck, stop := make(chan struct{}), make(chan struct{})
	defer close(stop)
	go s.watch(stuck, stop)
	err := together(len(s.pubs), func(i int) error {
		payload := make([]byte, messageSize)
		topic := s.topic + fmt.Sprint(i)
		for k := i; k < n; k += len(s.pubs) {
			select {
			case s.room <- struct{}{}:
			case <-stuck:
				return nil
			}
			binary.BigEndian.PutUint64(payload, first+uint64(k))
			if err := s.pubs[i].publish(topic, payload, s.qos); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	select {
	case <-whole:
		return nil
	case <-stuck:
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lost += s.left
	for len(s.room) > 0 {
		<-s.room
	}
	if s.qos > 0 {
		return fmt.Errorf("%d of %d messages did not come", s.left, n)
	}
	return nil
}

// watch closes stuck when nothing has come for long.
func (s *stream) watch(stuck, stop chan struct{}) {
	patience := 15 * time.Second
	if s.qos == 0 {
		patience = 2 * time.Second
	}
	for {
		s.mu.Lock()
		left := time.Until(s.last.Add(patience))
		s.mu.Unlock()
		if left <= 0 {
			close(stuck)
			return
		}
		select {
		case <-time.After(left):
		case <-stop:
			return
		}
	}
}

// fsync tells what the disk costs: everything durable pays it.
func fsync(b *testing.B) {
	f, err := os.Create(filepath.Join(theLab.dir, "fsync"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	var took []time.Duration
	for range size(200, 50) {
		start := time.Now()
		_, err := f.Write(make([]byte, 4096))
		if err := errors.Join(err, f.Sync()); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	theLab.table.add("Disk: µs of 4 KiB with fsync, p50 (p99)", "", &road{service: "fsync"}, micros(quantile(took, 50)), "(%.0f)", micros(quantile(took, 99)))
}
