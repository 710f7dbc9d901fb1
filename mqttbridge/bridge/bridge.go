// Package bridge joins the broker at home with the hub at the relay: it carries
// the topics that the rules name, and nothing else. It runs in the agent.
//
//	b, err := bridge.New(bridge.Config{
//		Agent: "kitchen", Broker: bridge.Broker{URL: "tcp://127.0.0.1:1883"},
//		Rules: rules, Queue: store, DialRelay: dial,
//	})
//	err = b.Run(ctx)
//
// QoS 1 messages arrive at least once, and in order for each topic, whatever
// crashes: the home broker, this process, the link, the relay. On the way out
// a message is acknowledged at home when it is in the durable queue, and leaves
// that when the hub has it on disk. On the way in the hub hears of it when the
// home broker acknowledged. QoS 0 messages are dropped while the other side is
// away. What is retained at home is retained at the hub: after a cut a snapshot
// is compared there, so that nothing unchanged is sent around again.
//
// A Client is the commands' own connection to the home broker. It shares
// nothing with the bridge but the way in.
package bridge

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
	"github.com/sallyport/sallyport/mqttbridge/queue"
)

// Config is what a Bridge needs. Agent, Broker.URL, Queue and DialRelay are
// required.
type Config struct {
	Agent  string // the agent's name, for client ids
	Broker Broker // the home broker
	Rules  []mqttbridge.Rule
	// Queue keeps what waits for the hub. Its owner closes it after Run.
	Queue *queue.Store
	// DialRelay returns a stream to the hub. It waits until there is one or ctx
	// ends. The bridge closes the stream. An end with ErrMoved is not an error.
	DialRelay func(ctx context.Context) (net.Conn, error)
	// DialBroker connects to the home broker, TLS excepted; nil = net.Dialer.
	DialBroker func(ctx context.Context, network, addr string) (net.Conn, error)
	Limits     queue.Limits     // of what waits for the hub; 0 = the queue's defaults
	Now        func() time.Time // the wall clock; nil = time.Now
	Logger     *slog.Logger     // nil = discard
}

// ErrMoved is what the stream of Config.DialRelay fails with when it was ended
// on this side, because the next one leads over a better way.
var ErrMoved = errors.New("the link moves to a newer session")

// A Bridge carries messages between the home broker and the hub. Make it with
// New.
type Bridge struct {
	cfg    Config
	log    *slog.Logger
	dialer dialer
	rand   func() float64 // of back-offs; nil = math/rand/v2
	quiet  time.Duration  // snapshotQuiet
	rest   time.Duration  // snapshotRest

	rules atomic.Pointer[ruleSet]
	count counters
	// ackedBefore is what earlier processes sent, which the queue counts too.
	ackedBefore uint64
	out         *outbox
	in          *inbox
	echo        *echoes
	recent      *recent
	synced      syncState
	relay       peerState
	broker      peerState

	syncWake chan struct{}
	sent     atomic.Uint64  // newest message that any link sent
	wg       sync.WaitGroup // everything that Run started

	brokerSaid, linkSaid said // of brokerLoop and linkLoop
	// Of messages: that they are not wanted, and that there are too many.
	complained, crowded complaint

	reload      sync.Mutex  // guards the next three, and is held while subscriptions change
	have        *subscribed // nil: not read from the disk yet
	applied     *ruleSet    // whose filters the source session has, or nearly
	noBridgeBit bool        // the broker said so

	mu      sync.Mutex // guards what follows
	link    *link      // nil: down
	gen     *generation
	refused map[string]string // filter → why
}

// New checks the configuration and makes the queue. It starts nothing.
func New(cfg Config) (*Bridge, error) {
	switch {
	case cfg.Agent == "" && cfg.Broker.ClientID == "":
		return nil, errors.New("bridge: no agent name")
	case cfg.Queue == nil:
		return nil, errors.New("bridge: no queue")
	case cfg.DialRelay == nil:
		return nil, errors.New("bridge: no way to the relay")
	}
	if faults := cfg.Broker.Check(); len(faults) > 0 {
		return nil, errors.Join(faults...)
	}
	rules, err := newRuleSet(cfg.Rules)
	if err != nil {
		return nil, err
	}
	cfg = cfg.filled()
	if err := cfg.Queue.Create(outQueue, cfg.Limits); err != nil {
		return nil, fmt.Errorf("make the queue to the relay: %w", err)
	}
	b := &Bridge{
		cfg: cfg, log: cfg.Logger, dialer: dialer{broker: cfg.Broker, dial: cfg.DialBroker},
		quiet: snapshotQuiet, rest: snapshotRest, echo: newEchoes(), recent: newRecent(), syncWake: make(chan struct{}, 1),
	}
	b.synced.due = 1
	b.ackedBefore = cfg.Queue.Stats(outQueue).Acked
	b.rules.Store(rules)
	b.in = newInbox(b)
	b.out = &outbox{store: cfg.Queue, log: b.log, count: &b.count, dirty: b.dirty, room: make(chan struct{}, 1)}
	return b, nil
}

func (c Config) filled() Config {
	if c.DialBroker == nil {
		c.DialBroker = (&net.Dialer{}).DialContext
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// Run carries messages until ctx ends, and returns nil after everything that
// it started ended, which takes some seconds when a connection was lost just
// before. It never ends because the broker or the relay is away. It is called
// once.
func (b *Bridge) Run(ctx context.Context) error {
	b.wg.Go(func() { b.brokerLoop(ctx) })
	b.wg.Go(func() { b.linkLoop(ctx) })
	b.wg.Go(func() { b.syncLoop(ctx) })
	<-ctx.Done()
	b.wg.Wait()
	now := b.cfg.Now()
	b.relay.down(now, nil)
	b.broker.down(now, nil)
	return nil
}

// SetRules changes the rules. It returns an error and changes nothing when
// they are not good. Otherwise they count from the next message on;
// subscriptions at home follow, and the hub is told, without dropping a
// connection. What the queue holds already is sent.
func (b *Bridge) SetRules(rules []mqttbridge.Rule) error {
	set, err := newRuleSet(rules)
	if err != nil {
		return err
	}
	b.rules.Store(set)
	l, g := b.current()
	if g != nil {
		poke(g.filters)
	}
	if l != nil {
		l.note(func() { l.rehello = true })
	}
	b.dirty()
	return nil
}

func (b *Bridge) clientID(suffix string) string {
	return cmp.Or(b.cfg.Broker.ClientID, "sallyport-"+b.cfg.Agent) + suffix
}

// current returns the live link and generation; nil = there is none.
func (b *Bridge) current() (*link, *generation) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.link, b.gen
}

func (b *Bridge) setLink(l *link) {
	b.mu.Lock()
	b.link = l
	g := b.gen
	b.mu.Unlock()
	if l != nil {
		b.out.linkUp(l)
		b.relay.up(b.cfg.Now())
		b.linkSaid.over()
		b.log.Info("the MQTT link to the relay is up", "prefix", l.welcome.Prefix)
	} else {
		b.out.linkDown()
	}
	if g != nil {
		poke(g.state)
	}
	b.pokeSync()
}

func (b *Bridge) setGeneration(g *generation) {
	if g != nil {
		b.synced.dirty() // QoS 0 messages that are retained may have been missed
	}
	b.mu.Lock()
	b.gen = g
	b.mu.Unlock()
	if g == nil {
		return
	}
	b.pokeSync()
	b.broker.up(b.cfg.Now())
	b.brokerSaid.over()
	b.log.Info("connected to the home broker", "url", b.cfg.Broker.URL, "session", g.source.present)
}

func (b *Bridge) linkIsUp() bool {
	l, _ := b.current()
	return l != nil
}

func (b *Bridge) setRefused(refused map[string]string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.refused = refused
}

// sentBefore says whether a link sent this message already, and remembers it.
func (b *Bridge) sentBefore(seq uint64) bool {
	if seq <= b.sent.Load() {
		return true
	}
	b.sent.Store(seq)
	return false
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
