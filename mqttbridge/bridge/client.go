package bridge

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"

	"github.com/sallyport/sallyport/mqttbridge"
)

// Errors of Client.Publish that callers decide by.
var (
	// ErrOffline: the home broker is not connected, or was lost before a byte
	// of the message left. It was not published and will not be.
	ErrOffline = errors.New("the home broker is not connected")
	// ErrUncertain: the connection was lost, or the caller's time was up, with
	// the message on its way. It may have been published, once, or not. The
	// connection is cut then, so that it is not published later.
	ErrUncertain = errors.New("the home broker did not confirm: it may have been published or not")
)

// ClientConfig is what a Client needs. Agent and Broker.URL are required.
type ClientConfig struct {
	Agent  string
	Broker Broker
	// DialBroker connects to the home broker, TLS excepted; nil = net.Dialer.
	DialBroker func(ctx context.Context, network, addr string) (net.Conn, error)
	Now        func() time.Time // the wall clock, for Status; nil = time.Now
	Logger     *slog.Logger     // nil = discard
}

// A Client is a connection to the home broker that is made again whenever it
// is lost. Its session is clean: the broker keeps nothing for it. Make it with
// NewClient; all methods may be called at any time by anybody.
type Client struct {
	dialer dialer
	id     string
	log    *slog.Logger
	now    func() time.Time
	rand   func() float64 // of back-offs; nil = math/rand/v2
	peer   peerState
	wg     sync.WaitGroup
	wake   chan struct{} // receives when subscriptions changed

	changes sync.Mutex // one onChange call at a time, in order

	mu       sync.Mutex    // guards what follows
	session  *session      // nil: not connected
	settled  chan struct{} // closed when asked and granted are the same; made anew when they are not
	subs     []*subscription
	asked    map[string]uint64 // filter → how often Subscribe was called for it
	granted  map[string]uint64 // filter → asked when the session was subscribed to it
	onChange []func(bool)
}

type subscription struct {
	filter string
	f      func(topic string, payload []byte, retained bool)
}

// NewClient checks the configuration. It starts nothing.
func NewClient(cfg ClientConfig) (*Client, error) {
	if cfg.Agent == "" && cfg.Broker.ClientID == "" {
		return nil, errors.New("bridge: no agent name")
	}
	if faults := cfg.Broker.Check(); len(faults) > 0 {
		return nil, errors.Join(faults...)
	}
	full := Config{DialBroker: cfg.DialBroker, Now: cfg.Now, Logger: cfg.Logger}.filled()
	c := &Client{
		dialer: dialer{broker: cfg.Broker, dial: full.DialBroker},
		id:     cmp.Or(cfg.Broker.ClientID, "sallyport-"+cfg.Agent) + "-commands",
		log:    full.Logger, now: full.Now, wake: make(chan struct{}, 1), settled: make(chan struct{}),
		asked: map[string]uint64{},
	}
	close(c.settled)
	return c, nil
}

// Run keeps the connection until ctx ends, and returns nil after everything
// that it started ended. It is called once.
func (c *Client) Run(ctx context.Context) error {
	wait := backoff{rand: c.rand}
	var said said
	for ctx.Err() == nil {
		began := time.Now()
		var up time.Duration
		s, err := c.dialer.connect(ctx, sessionOptions{id: c.id, clean: true, level: level4, handler: c.dispatch})
		if err == nil {
			stood := time.Now()
			said.over()
			c.log.Info("connected to the home broker for commands", "url", c.dialer.broker.URL)
			err = c.serve(ctx, s)
			up = time.Since(stood)
		}
		if ctx.Err() != nil {
			break
		}
		d := wait.next(up)
		c.peer.down(c.now(), err)
		sayTo(c.log, &said, began, "the home broker cannot be used for commands, trying again", d, err)
		pause(ctx, d, nil)
	}
	c.peer.down(c.now(), nil)
	c.wg.Wait()
	return nil
}

// serve uses one session to its end.
func (c *Client) serve(ctx context.Context, s *session) error {
	c.set(s)
	defer c.wg.Go(s.close)
	defer c.set(nil)
	for {
		if err := c.resubscribe(ctx, s); err != nil {
			return err
		}
		select {
		case <-c.wake:
		case <-s.lost:
			return fmt.Errorf("connection lost: %w", s.err)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (c *Client) set(s *session) {
	c.changes.Lock()
	defer c.changes.Unlock()
	c.mu.Lock()
	c.session = s
	c.granted = map[string]uint64{}
	c.unsettle()
	calls := c.onChange
	c.mu.Unlock()
	if s != nil {
		c.peer.up(c.now())
	}
	for _, f := range calls {
		f(s != nil)
	}
}

// unsettle is called when the subscriptions are not those that are wanted; mu
// is held.
func (c *Client) unsettle() {
	select {
	case <-c.settled:
		c.settled = make(chan struct{})
	default:
	}
	poke(c.wake)
}

// resubscribe makes the session's subscriptions those that are wanted.
func (c *Client) resubscribe(ctx context.Context, s *session) error {
	for {
		c.mu.Lock()
		filter, add, ok := c.difference()
		asked := c.asked[filter]
		if !ok {
			select {
			case <-c.settled:
			default:
				close(c.settled)
			}
			c.mu.Unlock()
			return nil
		}
		c.mu.Unlock()
		if !add {
			if err := s.unsubscribe(ctx, filter); err != nil {
				return err
			}
			c.mu.Lock()
			delete(c.granted, filter)
			c.mu.Unlock()
			continue
		}
		err := s.subscribe(ctx, filter, 1)
		if err != nil && !errors.Is(err, errRefusedFilter) {
			return err
		}
		if err != nil {
			c.log.Warn("the home broker refuses a subscription: its access rules must let the agent read the topic", "filter", filter)
		}
		c.mu.Lock()
		c.granted[filter] = asked
		c.mu.Unlock()
	}
}

// difference returns one filter that is to be added or removed; mu is held.
func (c *Client) difference() (filter string, add, ok bool) {
	for _, sub := range c.subs {
		if c.granted[sub.filter] != c.asked[sub.filter] {
			return sub.filter, true, true
		}
	}
	for f := range c.granted {
		wanted := false
		for _, sub := range c.subs {
			wanted = wanted || sub.filter == f
		}
		if !wanted {
			return f, false, true
		}
	}
	return "", false, false
}

// dispatch is the session's handler.
func (c *Client) dispatch(m mqtt.Message) {
	m.Ack() // nothing more is promised than that it is called
	topic, payload := m.Topic(), m.Payload()
	if len(payload) > mqttbridge.MaxPayload {
		return
	}
	c.mu.Lock()
	subs := c.subs // never changed in place
	c.mu.Unlock()
	for _, sub := range subs {
		if mqttbridge.Match(sub.filter, topic) {
			sub.f(topic, payload, m.Retained())
		}
	}
}

// Publish sends one message, of at most MaxPayload bytes, and returns nil when
// the broker has acknowledged it on this very connection; at QoS 0, when it is
// written. It waits first until the broker has answered the subscriptions that
// were made before, so that their handlers see what follows. qos is 0 or 1.
// When ctx ends with the message on its way, the connection is cut, for other
// messages on their way too.
// Errors: ErrOffline, ErrUncertain, or that the message is not valid. A nil
// error means that the broker has it, not that its access rules let it pass:
// MQTT 3.1.1 has no word for that.
func (c *Client) Publish(ctx context.Context, topic string, payload []byte, qos byte, retain bool) error {
	if err := mqttbridge.CheckTopic(topic); err != nil {
		return fmt.Errorf("publish: %w", err)
	}
	if qos > 1 || len(payload) > mqttbridge.MaxPayload {
		return fmt.Errorf("publish: QoS %d and %d bytes; QoS 0 or 1 and %d bytes are allowed", qos, len(payload), mqttbridge.MaxPayload)
	}
	c.mu.Lock()
	s, settled := c.session, c.settled
	c.mu.Unlock()
	if s == nil {
		return ErrOffline
	}
	select {
	case <-settled:
	case <-s.lost:
		return ErrOffline
	case <-ctx.Done():
		return fmt.Errorf("%w: subscriptions are not answered: %w", ErrOffline, ctx.Err())
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%w: %w", ErrOffline, ctx.Err())
	}
	before := s.guard.begun()
	var token mqtt.Token
	err := s.call(ctx, func() { token = s.publish(topic, qos, retain, payload) })
	if err == nil {
		err = s.wait(ctx, token)
	}
	if err == nil {
		return nil
	}
	// The connection is cut, so that nothing of it arrives later. When not one
	// message was begun on it meanwhile, then not this one.
	s.kill(err)
	if s.guard.begun() == before {
		return fmt.Errorf("%w: %w", ErrOffline, err)
	}
	return fmt.Errorf("%w: %w", ErrUncertain, err)
}

// Subscribe has f called for every message that the filter matches, in order,
// on this connection and all that follow; retained ones come again with each.
// Where filters overlap, f may get a message more than once. f must not block,
// nor change what it is given. It may be called before Subscribe returns, and
// for a moment after cancel did. A filter that the broker refuses is in the
// log, and is asked for again on the next connection.
func (c *Client) Subscribe(filter string, f func(topic string, payload []byte, retained bool)) (cancel func()) {
	if err := mqttbridge.CheckFilter(filter); err != nil {
		c.log.Error("a subscription is not valid and is not made", "filter", filter, "err", err)
		return func() {}
	}
	sub := &subscription{filter, f}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.subs = append(c.subs[:len(c.subs):len(c.subs)], sub)
	c.asked[filter]++ // subscribed to again, since its retained messages are for f too
	c.unsettle()
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		var rest []*subscription
		for _, other := range c.subs {
			if other != sub {
				rest = append(rest, other)
			}
		}
		c.subs = rest
		c.unsettle()
	}
}

// Connected says whether there is a connection now.
func (c *Client) Connected() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.session != nil
}

// OnChange has f called when the connection was made or lost, in order. f must
// not block.
func (c *Client) OnChange(f func(connected bool)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.onChange = append(c.onChange[:len(c.onChange):len(c.onChange)], f)
}

// Status returns how the connection is.
func (c *Client) Status() Peer { return c.peer.get() }
