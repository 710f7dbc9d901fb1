package bridge

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
)

// Limits of the link.
const (
	linkHelloLimit = 15 * time.Second
	linkPing       = 20 * time.Second
	linkSilence    = 60 * time.Second // nothing read for so long: it is dead
	linkWriteLimit = 30 * time.Second
	linkWindow     = 64 // messages on their way to the hub
)

// streamKey is where the random name of the durable queue is kept.
const streamKey = "bridge/stream"

var errLinkEnded = errors.New("the link to the relay ended")

// A link is one connection with the hub. One goroutine reads it, one writes
// it; everything else leaves a note and pokes the writer.
type link struct {
	b       *Bridge
	conn    net.Conn
	in      *bufio.Reader
	out     *bufio.Writer
	welcome mqttbridge.LinkWelcome
	told    *ruleSet // of the first hello
	wake    chan struct{}
	ended   chan struct{}

	mu       sync.Mutex // guards what follows
	flying   []uint64   // sent, not acknowledged
	last     uint64     // newest that was sent
	ackTo    uint64     // what came in and is done …
	acked    uint64     // … and what of that was said
	pong     *uint64    // to be answered
	rehello  bool       // the rules changed
	snapshot *snapshot  // to be sent
}

// linkLoop keeps a link until ctx ends.
func (b *Bridge) linkLoop(ctx context.Context) {
	wait := backoff{rand: b.rand}
	for ctx.Err() == nil {
		began := time.Now()
		c, err := b.cfg.DialRelay(ctx)
		var up time.Duration
		if err == nil {
			stood := time.Now()
			err = b.serveLink(ctx, c)
			up = time.Since(stood)
		}
		if ctx.Err() != nil {
			return
		}
		d := wait.next(up)
		if errors.Is(err, ErrMoved) {
			b.relay.down(b.cfg.Now(), nil)
			b.log.Debug("the MQTT link to the relay moves to a newer session", "in", d.Round(time.Millisecond))
			pause(ctx, d, nil)
			continue
		}
		err = errors.New(harmless(err.Error(), maxLinkSaid)) // the relay's words may be in it
		b.relay.down(b.cfg.Now(), err)
		b.say(&b.linkSaid, began, "the MQTT link to the relay ended, trying again", d, err)
		pause(ctx, d, nil)
	}
}

// serveLink runs one link to its end. It owns c.
func (b *Bridge) serveLink(ctx context.Context, c net.Conn) error {
	l := &link{
		b: b, conn: c, in: bufio.NewReaderSize(c, 32<<10), out: bufio.NewWriterSize(c, 32<<10),
		wake: make(chan struct{}, 1), ended: make(chan struct{}),
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	defer c.Close()
	if err := l.greet(); err != nil {
		return err
	}
	b.setLink(l)
	if b.rules.Load() != l.told {
		l.note(func() { l.rehello = true })
	}
	var wg sync.WaitGroup
	wg.Go(func() { cancel(l.read()) })
	wg.Go(func() { cancel(l.write(ctx)) })
	wg.Wait()
	close(l.ended)
	b.setLink(nil)
	b.in.unlink(l)
	return context.Cause(ctx)
}

// greet exchanges hello and welcome, and forgets what the hub has already.
func (l *link) greet() error {
	b := l.b
	if err := l.conn.SetDeadline(time.Now().Add(linkHelloLimit)); err != nil {
		return err
	}
	l.told = b.rules.Load()
	hello, err := b.hello(l.told)
	if err != nil {
		return err
	}
	if err := mqttbridge.WriteLink(l.out, mqttbridge.LinkPacket{Kind: mqttbridge.LinkHelloKind, Hello: hello}); err != nil {
		return err
	}
	if err := l.out.Flush(); err != nil {
		return err
	}
	p, err := mqttbridge.ReadLink(l.in)
	if err != nil {
		return fmt.Errorf("the relay did not greet: %w", err)
	}
	if p.Kind != mqttbridge.LinkWelcomeKind {
		return fmt.Errorf("the relay began with a packet of kind %d instead of its welcome", p.Kind)
	}
	l.welcome = *p.Welcome
	l.welcome.Prefix, l.welcome.Problem = harmless(l.welcome.Prefix, maxRelaySaid), harmless(l.welcome.Problem, maxRelaySaid)
	if p.Welcome.Problem != "" {
		return fmt.Errorf("the relay refuses the link: %s", l.welcome.Problem)
	}
	if last := l.welcome.Last; last > b.cfg.Queue.Stats(outQueue).Last {
		// Our disk went back in time (a restored copy). Under the old name the
		// hub would take new messages for ones that it has.
		if err := b.cfg.Queue.Set(streamKey, nil); err != nil {
			return err
		}
		return fmt.Errorf("the relay knows message %d, which this queue has not reached: the queue gets a new name", last)
	}
	if err := b.out.taken(l.welcome.Last); err != nil {
		return err
	}
	l.last = l.welcome.Last
	return l.conn.SetDeadline(time.Time{})
}

// hello says who we are and what we want.
func (b *Bridge) hello(rules *ruleSet) (*mqttbridge.LinkHello, error) {
	stream, ok := b.cfg.Queue.Get(streamKey)
	if !ok {
		stream = []byte(rand.Text())
		if err := b.cfg.Queue.Set(streamKey, stream); err != nil {
			return nil, fmt.Errorf("name the queue: %w", err)
		}
	}
	h := &mqttbridge.LinkHello{Version: mqttbridge.LinkVersion, Stream: string(stream), Epoch: b.synced.epoch()}
	rules.hello(h)
	return h, nil
}

// read takes what the hub sends.
func (l *link) read() error {
	for {
		if err := l.conn.SetReadDeadline(time.Now().Add(linkSilence)); err != nil {
			return err
		}
		p, err := mqttbridge.ReadLink(l.in)
		if err != nil {
			return fmt.Errorf("%w: %w", errLinkEnded, err)
		}
		switch p.Kind {
		case mqttbridge.LinkPublish:
			l.b.count.inSeen.Add(1)
			if !l.b.in.add(l, p.Message) {
				return errors.New("the relay sends more messages than the link allows without an acknowledgement")
			}
		case mqttbridge.LinkAck:
			if err := l.taken(p.Seq); err != nil {
				return err
			}
		case mqttbridge.LinkPing:
			l.note(func() { l.pong = &p.Seq })
		case mqttbridge.LinkPong:
		default:
			return fmt.Errorf("the relay sent a packet of kind %d, which is not for agents", p.Kind)
		}
	}
}

// taken is the hub's acknowledgement: it has everything up to seq on disk.
func (l *link) taken(seq uint64) error {
	l.mu.Lock()
	if seq > l.last {
		l.mu.Unlock()
		return fmt.Errorf("the relay acknowledged message %d, which was not sent", seq)
	}
	n := 0
	for n < len(l.flying) && l.flying[n] <= seq {
		n++
	}
	l.flying = l.flying[n:]
	l.mu.Unlock()
	l.poke()
	return l.b.out.taken(seq)
}

// acknowledge says that everything up to seq is done at home.
func (l *link) acknowledge(seq uint64) {
	l.note(func() { l.ackTo = max(l.ackTo, seq) })
}

func (l *link) note(change func()) {
	l.mu.Lock()
	change()
	l.mu.Unlock()
	l.poke()
}

func (l *link) poke() { poke(l.wake) }

func (l *link) over() bool {
	select {
	case <-l.ended:
		return true
	default:
		return false
	}
}
