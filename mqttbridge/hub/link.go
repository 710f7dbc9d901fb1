package hub

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/tunnel"
)

const (
	helloTimeout = 10 * time.Second
	linkSilence  = 60 * time.Second // the agent pings every 20 s
	linkWindow   = 64               // unacknowledged messages each way
	linkBuffer   = 16 << 10
	maxLinkLive  = 512 // messages of QoS 0 that wait for a link

	// Hellos that come again write the rules to disk and change the index.
	helloRate, helloBurst = 1, 10
)

// Reasons why a link ends.
var (
	errStopped   = errors.New("the relay stops")
	errReplaced  = errors.New("the agent opened a newer link")
	errForgotten = errors.New("the agent was revoked")
	errSilent    = errors.New("the agent was silent")
)

// A link is one stream of an agent.
type link struct {
	hub  *Hub
	home *home
	conn net.Conn
	log  *slog.Logger
	done chan struct{} // closed when ServeAgent returns
	wake chan struct{} // one token: the writer has something to do
	gone chan struct{} // closed when the link ends

	// The reader's own.
	packets, bytes, hellos bucket

	mu      sync.Mutex // guards everything below
	cause   error
	welcome *mqttbridge.LinkWelcome
	ack     uint64 // to be told to the agent
	acked   uint64 // was told
	pongs   []uint64
	live    []delivery
	flying  []flying // of the mailbox, in order
}

// flying is a message of the mailbox on its way, or one behind such a message
// that is not to be sent.
type flying struct {
	seq     uint64
	skipped bool
}

// ServeAgent speaks with an agent's bridge and returns, with the reason, when
// the link has ended; it closes conn. A newer link of the same agent ends an
// older one.
func (h *Hub) ServeAgent(ctx context.Context, conn net.Conn, a Agent) error {
	h.mu.Lock()
	stopped := h.stopped
	if !stopped {
		h.running.Add(1)
	}
	h.mu.Unlock()
	if stopped {
		conn.Close()
		return errStopped
	}
	defer h.running.Done()
	l := &link{
		hub: h, conn: conn, log: h.log.With("agent", a.Name),
		done: make(chan struct{}), wake: make(chan struct{}, 1), gone: make(chan struct{}),
	}
	defer close(l.done)
	defer context.AfterFunc(ctx, func() { l.close(context.Cause(ctx)) })()
	l.close(l.serve(a))
	l.mu.Lock()
	defer l.mu.Unlock()
	l.log.Debug("link of a home ended", "reason", l.cause)
	return fmt.Errorf("link of agent %s: %w", a.Name, l.cause)
}

// close ends the link; the first cause counts.
func (l *link) close(cause error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cause != nil {
		return
	}
	l.cause = cause
	close(l.gone)
	tunnel.Abort(l.conn, protocol.CodeGoingAway)
}

func (l *link) serve(a Agent) error {
	r := bufio.NewReaderSize(l.conn, linkBuffer)
	_ = l.conn.SetReadDeadline(time.Now().Add(helloTimeout))
	p, err := mqttbridge.ReadLink(r)
	switch {
	case err != nil:
		return fmt.Errorf("read hello: %w", err)
	case p.Kind != mqttbridge.LinkHelloKind:
		return fmt.Errorf("the first packet is of kind %d, not a hello", p.Kind)
	}
	if err := l.join(a, p.Hello); err != nil {
		l.refuse(a, err)
		return err
	}
	defer l.part()
	var writer sync.WaitGroup
	writer.Go(l.write)
	defer writer.Wait()
	err = l.read(a, r)
	l.close(err)
	return err
}

// refuse tells the agent why the link ends.
func (l *link) refuse(a Agent, cause error) {
	_ = l.conn.SetWriteDeadline(time.Now().Add(lingerTime))
	w := bufio.NewWriter(l.conn)
	if mqttbridge.WriteLink(w, mqttbridge.LinkPacket{Kind: mqttbridge.LinkWelcomeKind, Welcome: &mqttbridge.LinkWelcome{
		Version: mqttbridge.LinkVersion, Agent: a.Name, Problem: cause.Error(),
	}}) != nil || w.Flush() != nil {
		return
	}
	if half, ok := l.conn.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
		_ = l.conn.SetReadDeadline(time.Now().Add(lingerTime))
		var b [512]byte
		for range lingerBytes / len(b) {
			if _, err := l.conn.Read(b[:]); err != nil {
				return
			}
		}
	}
}

// join takes the agent's rules over and makes this link the agent's one.
func (l *link) join(a Agent, hello *mqttbridge.LinkHello) error {
	if a.ID == "" || strings.ContainsAny(a.Name, "/+#") || mqttbridge.CheckTopic(a.Name) != nil {
		return fmt.Errorf("the agent's name %q is no level of a topic: give it another one", a.Name)
	}
	if err := checkHello(hello); err != nil {
		return err
	}
	hm, err := l.hub.homeOf(a)
	if err != nil {
		return err
	}
	l.home = hm
	hm.mu.Lock()
	old := hm.link
	hm.link = l
	hm.mu.Unlock()
	if old != nil {
		old.close(errReplaced)
		<-old.done // what it is carrying out counts for Last
	}
	last, err := hm.configure(a.Name, hello)
	if err == nil {
		select {
		case <-l.gone:
			err = errReplaced
		default:
		}
	}
	if err != nil {
		l.leave()
		return err
	}
	l.mu.Lock()
	l.ack, l.acked = last, last
	l.welcome = &mqttbridge.LinkWelcome{Version: mqttbridge.LinkVersion, Agent: a.Name, Prefix: prefixOf(a.Name), Epoch: hm.epoch, Last: last}
	l.mu.Unlock()
	hm.mu.Lock()
	since := hm.seenRetained
	hm.seen = nil
	if old == nil {
		hm.since = l.hub.cfg.Now()
	}
	hm.mu.Unlock()
	l.catchUp(since)
	signal(l.wake)
	if old == nil {
		hm.announce("")
		l.log.Info("home connected to the hub", "in", len(hello.In), "out", len(hello.Out))
	}
	return nil
}

// catchUp sends what was retained at QoS 0 while there was no link: nothing
// else would bring it.
func (l *link) catchUp(since uint64) {
	hm := l.home
	hm.mu.Lock()
	subs := hm.subscriptions(hm.name, hm.in)
	hm.mu.Unlock()
	for _, s := range subs {
		for _, m := range l.hub.retained.match(s.Filter, since, l.hub.cfg.Now()) {
			if min(m.qos, s.QoS) == 0 && m.sender.agent != hm.id {
				l.push(delivery{m: m, retain: true, retained: true})
			}
		}
	}
}

// leave gives the home up; false: a newer link has it.
func (l *link) leave() bool {
	hm := l.home
	version, _ := l.hub.retained.now()
	hm.mu.Lock()
	defer hm.mu.Unlock()
	if hm.link != l {
		return false
	}
	hm.link, hm.seen, hm.seenRetained, hm.since = nil, nil, version, l.hub.cfg.Now()
	return true
}

// part says that the home is away, unless a newer link has taken over.
func (l *link) part() {
	if !l.leave() {
		return
	}
	l.mu.Lock()
	cause := l.cause
	l.mu.Unlock()
	if errors.Is(cause, errStopped) {
		return
	}
	l.home.announce("the home is not connected to the relay")
	l.log.Info("home disconnected from the hub", "reason", cause)
}

// read takes what the agent sends until the link ends.
func (l *link) read(a Agent, r *bufio.Reader) error {
	for {
		_ = l.conn.SetReadDeadline(time.Now().Add(linkSilence))
		p, err := mqttbridge.ReadLink(r)
		if err != nil {
			if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
				return errSilent
			}
			return err
		}
		var batch []mqttbridge.LinkMessage
		for p.Kind == mqttbridge.LinkPublish {
			batch = append(batch, p.Message)
			if len(batch) >= linkWindow || r.Buffered() == 0 {
				p = mqttbridge.LinkPacket{}
				break
			}
			// What is partly here comes at once, or the link is dead.
			if p, err = mqttbridge.ReadLink(r); err != nil {
				return err
			}
		}
		size := 0
		for _, m := range batch {
			size += len(m.Payload)
		}
		if limits := l.hub.cfg.Limits; !l.pace(&l.packets, max(1, len(batch)), limits.LinkRate, 5*limits.LinkRate) ||
			!l.pace(&l.bytes, size, limits.LinkBytes, 2*limits.LinkBytes) {
			return errStopped // by whoever closed the link
		}
		if len(batch) > 0 {
			if err := l.take(batch); err != nil {
				return err
			}
		}
		switch p.Kind {
		case 0, mqttbridge.LinkPong:
		case mqttbridge.LinkPing:
			l.mu.Lock()
			if len(l.pongs) < linkWindow {
				l.pongs = append(l.pongs, p.Seq)
			}
			l.mu.Unlock()
			signal(l.wake)
		case mqttbridge.LinkAck:
			if err := l.landed(p.Seq); err != nil {
				return err
			}
		case mqttbridge.LinkSynced:
			l.synced()
		case mqttbridge.LinkHelloKind:
			if !l.pace(&l.hellos, 1, helloRate, helloBurst) {
				return errStopped
			}
			if err := checkHello(p.Hello); err != nil {
				return err
			}
			if _, err := l.home.configure(a.Name, p.Hello); err != nil {
				return err
			}
			l.log.Info("rules of a home changed", "in", len(p.Hello.In), "out", len(p.Hello.Out))
			signal(l.wake)
		default:
			return fmt.Errorf("a packet of kind %d is not the agent's to send", p.Kind)
		}
	}
}

// pace waits until an agent that sends too fast may go on; false: the link has
// ended.
func (l *link) pace(b *bucket, n, rate, burst int) bool {
	wait := b.take(n, rate, burst, time.Now())
	if wait <= 0 {
		return true
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-l.gone:
		return false
	}
}

// write sends until the link ends.
func (l *link) write() {
	w := bufio.NewWriterSize(deadlineWriter{l.conn, l.hub.cfg.Limits.WriteTimeout}, linkBuffer)
	hm := l.home
	hm.mu.Lock()
	seenBefore := hm.sent
	hm.mu.Unlock()
	var after uint64
	for {
		p, ok, err := l.next(&after, seenBefore)
		if err == nil && ok {
			err = mqttbridge.WriteLink(w, p)
			if errors.Is(err, mqttbridge.ErrMalformed) {
				l.log.Error("a message does not fit the link and is dropped", "topic", p.Message.Topic, "err", err)
				l.skip(p.Message.Seq)
				err = nil
			}
		} else if err == nil {
			err = w.Flush()
		}
		if err != nil {
			l.close(fmt.Errorf("write: %w", err))
			return
		}
		if ok {
			continue
		}
		select {
		case <-l.wake:
		case <-l.gone:
			return
		}
	}
}

// A deadlineWriter gives every write its time.
type deadlineWriter struct {
	conn  net.Conn
	limit time.Duration
}

func (d deadlineWriter) Write(p []byte) (int, error) {
	if err := d.conn.SetWriteDeadline(time.Now().Add(d.limit)); err != nil {
		return 0, err
	}
	return d.conn.Write(p)
}
