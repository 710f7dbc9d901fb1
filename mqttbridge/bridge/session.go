package bridge

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"sync"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
)

// Limits of one connection to the broker.
const (
	dialLimit    = 10 * time.Second // TCP and TLS
	connectLimit = 10 * time.Second // CONNECT → CONNACK
	ackLimit     = 20 * time.Second // SUBSCRIBE → SUBACK, PUBLISH → PUBACK
	keepAlive    = 20 * time.Second
	pingLimit    = 10 * time.Second
	// handLimit bounds paho's hand-over of a packet to its writer. A call that
	// meets a lost connection just so hangs for that long (v1.5.1), which is
	// why nobody waits for such calls but Run's end.
	handLimit = 5 * time.Second
)

// Protocol levels. With the bridge bit a broker that knows it sends retained
// flags as they were published.
const (
	level4      = 4
	levelBridge = 0x84
)

var errSlow = fmt.Errorf("the broker did not acknowledge within %v", ackLimit)

var errClosed = errors.New("the connection was closed here")

// A dialer makes sessions with one broker.
type dialer struct {
	broker Broker
	dial   func(ctx context.Context, network, addr string) (net.Conn, error)
}

// sessionOptions are what one session wants.
type sessionOptions struct {
	id      string
	clean   bool
	level   uint         // level4 or levelBridge
	will    bool         // leave stateTopic = 0 when we vanish
	before  func() error // called when the connection stands, before CONNECT; nil = nothing
	handler func(mqtt.Message)
}

// A session is one connection to the broker, from CONNACK to its end. There
// is no reconnecting: paho's tokens say "done" when a connection is lost and
// made again, though nothing was acknowledged.
type session struct {
	client  mqtt.Client
	guard   *guard
	present bool // the broker remembers the session of this id

	once sync.Once
	lost chan struct{} // closed at the end
	err  error         // why; set before lost is closed

	mu     sync.Mutex // guards closed, and that no call begins after it
	closed bool
	calls  sync.WaitGroup
}

// connect makes a session. The messages of a session that the broker
// remembers may reach the handler before connect returns. The handler must not
// block: it runs in the way of everything else that the broker says. It
// acknowledges with Message.Ack, from any goroutine.
func (d *dialer) connect(ctx context.Context, o sessionOptions) (*session, error) {
	password, err := d.broker.password()
	if err != nil {
		return nil, &Reason{Text: err.Error(), Err: err, early: true}
	}
	g, err := d.open(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, explain(d.broker, true, err)
	}
	if o.before != nil {
		if err := o.before(); err != nil {
			g.kill()
			return nil, &Reason{Text: err.Error(), Err: err, early: true}
		}
	}
	s := &session{guard: g, lost: make(chan struct{})}
	opts := mqtt.NewClientOptions().
		AddBroker("tcp://broker"). // never dialled
		SetCustomOpenConnectionFn(func(*url.URL, mqtt.ClientOptions) (net.Conn, error) { return g, nil }).
		SetClientID(o.id).
		SetUsername(d.broker.User).
		SetPassword(password).
		SetCleanSession(o.clean).
		SetProtocolVersion(o.level).
		SetAutoReconnect(false).
		SetAutoAckDisabled(true).
		SetOrderMatters(true).
		SetKeepAlive(keepAlive).
		SetPingTimeout(pingLimit).
		SetConnectTimeout(connectLimit).
		SetWriteTimeout(handLimit).
		SetStore(noStore{}).
		SetDefaultPublishHandler(func(_ mqtt.Client, m mqtt.Message) {
			if o.handler != nil {
				o.handler(m)
			} else {
				m.Ack()
			}
		}).
		SetConnectionLostHandler(func(_ mqtt.Client, err error) { s.end(err) })
	if o.will {
		opts.SetBinaryWill(stateTopic, []byte("0"), 1, true)
	}
	s.client = mqtt.NewClient(opts)
	token := s.client.Connect()
	select {
	case <-token.Done():
	case <-ctx.Done():
		g.kill()
		<-token.Done() // at once, now that the connection is dead
	}
	if err := token.Error(); err != nil {
		g.kill()
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, explain(d.broker, false, err)
	}
	s.present = token.(*mqtt.ConnectToken).SessionPresent()
	if ctx.Err() != nil {
		s.close()
		return nil, ctx.Err()
	}
	return s, nil
}

// open dials, with TLS on top where the URL asks for it.
func (d *dialer) open(ctx context.Context) (*guard, error) {
	addr, secure, err := d.broker.address()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, dialLimit)
	defer cancel()
	raw, err := d.dial(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	if !secure {
		return newGuard(raw, raw), nil
	}
	host, _, _ := net.SplitHostPort(addr)
	cfg, err := d.broker.tls(host)
	if err != nil {
		raw.Close()
		return nil, err
	}
	c := tls.Client(raw, cfg)
	if err := c.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, fmt.Errorf("TLS: %w", err)
	}
	return newGuard(c, raw), nil
}

// kill ends the session without manners. paho does not say that a connection
// is lost which was closed on this side.
func (s *session) kill(err error) {
	s.guard.kill()
	s.end(err)
}

func (s *session) end(err error) {
	s.once.Do(func() {
		s.err = err
		close(s.lost)
	})
}

// close says goodbye, ends the connection, and returns after everything that
// belongs to it ended. Closing twice is fine.
func (s *session) close() {
	s.client.Disconnect(uint(time.Second / time.Millisecond))
	s.guard.kill()
	s.end(errClosed)
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.calls.Wait()
}

// publish hands a message over and returns its token; no wait for PUBACK. It
// may block for handLimit when the connection is lost just now.
func (s *session) publish(topic string, qos byte, retain bool, payload []byte) mqtt.Token {
	if payload == nil {
		payload = []byte{}
	}
	return s.client.Publish(topic, qos, retain, payload)
}

// wait returns when the broker acknowledged, the session or ctx ended, or it
// took too long. A session that is too slow to acknowledge is killed.
func (s *session) wait(ctx context.Context, token mqtt.Token) error {
	limit := time.NewTimer(ackLimit)
	defer limit.Stop()
	select {
	case <-token.Done():
		return token.Error()
	case <-s.lost:
	case <-ctx.Done():
		return ctx.Err()
	case <-limit.C:
		s.kill(errSlow)
		return errSlow
	}
	select {
	case <-token.Done(): // both happened: the acknowledgement counts
		return token.Error()
	default:
		return fmt.Errorf("connection lost: %w", s.err)
	}
}

// errRefusedFilter is a SUBACK that says no.
var errRefusedFilter = errors.New("the broker refused the subscription: its access rules must let this user read the topic")

// subscribeAgain are the pauses before a refused filter is asked for again.
// Mochi (v2.7.9) refuses a SUBSCRIBE whose packet id is that of one of its own
// messages that we have not acknowledged yet, such as those that were retained
// below the filter before, and says it as it says that somebody has no right.
var subscribeAgain = []time.Duration{50 * time.Millisecond, 250 * time.Millisecond}

// subscribe asks for one filter, again when it is refused.
func (s *session) subscribe(ctx context.Context, filter string, qos byte) error {
	err := s.subscribeOnce(ctx, filter, qos)
	for _, d := range subscribeAgain {
		if !errors.Is(err, errRefusedFilter) {
			return err
		}
		select {
		case <-time.After(d):
		case <-s.lost:
			return fmt.Errorf("connection lost: %w", s.err)
		case <-ctx.Done():
			return ctx.Err()
		}
		err = s.subscribeOnce(ctx, filter, qos)
	}
	return err
}

// subscribeOnce looks at the answer: with a refusal in it paho's token has no
// error.
func (s *session) subscribeOnce(ctx context.Context, filter string, qos byte) error {
	var token mqtt.Token
	if err := s.call(ctx, func() { token = s.client.Subscribe(filter, qos, nil) }); err != nil {
		return err
	}
	if err := s.wait(ctx, token); err != nil {
		return fmt.Errorf("subscribe to %s: %w", filter, err)
	}
	for _, code := range token.(*mqtt.SubscribeToken).Result() {
		if code > 2 {
			return fmt.Errorf("subscribe to %s: %w", filter, errRefusedFilter)
		}
	}
	return nil
}

func (s *session) unsubscribe(ctx context.Context, filter string) error {
	var token mqtt.Token
	if err := s.call(ctx, func() { token = s.client.Unsubscribe(filter) }); err != nil {
		return err
	}
	if err := s.wait(ctx, token); err != nil {
		return fmt.Errorf("unsubscribe from %s: %w", filter, err)
	}
	return nil
}

// call runs a call of paho that may hang on a lost connection, and leaves it
// behind when it does.
func (s *session) call(ctx context.Context, f func()) error {
	done := make(chan struct{})
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return fmt.Errorf("connection lost: %w", s.err)
	}
	s.calls.Go(func() {
		defer close(done)
		f()
	})
	s.mu.Unlock()
	select {
	case <-done:
		return nil
	case <-s.lost:
		return fmt.Errorf("connection lost: %w", s.err)
	case <-ctx.Done():
		return ctx.Err()
	}
}
