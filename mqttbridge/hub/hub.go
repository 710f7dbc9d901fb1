// Package hub is the MQTT broker at the relay: devices connect to it, and the
// homes' bridges join it. It is for the relay, which hands it connections whose
// client certificate was verified, and the agents' streams.
//
//	h, err := hub.New(hub.Config{Queue: store, Grants: grants})
//	go h.Run(ctx)
//	go h.ServeConn(ctx, tlsConn, hub.Identity{Name: "anna-phone", ID: keyID, Remote: addr})
//	go h.ServeAgent(ctx, stream, hub.Agent{ID: id, Name: "kitchen"})
//	mux.Handle("/mqtt", h.WebSocket(identify))
//	h.Forget("anna-phone") // revoked
//
// Everything of a home lies below home/NAME/. The hub publishes, retained,
//
//	home/NAME/bridge/state   {"online":true,"at":"2026-11-22T12:00:00Z"}, or false with a "reason"
//
// # What it promises
//
// A message of QoS 1 or 2 is on disk in all mailboxes that it belongs to before
// its sender hears PUBACK, PUBREC or the link's acknowledgement. There is a
// mailbox for each home that takes something in, and for each persistent
// session of a device. Mailboxes are read in order, and again after a
// reconnect; what left and was not acknowledged may come twice. A mailbox of a
// home that is full refuses its senders, and a device that has filled a quarter
// of it, unless a rule says that the oldest make room; in a device's mailbox the
// oldest always make room, so that a device that stays away stops nobody.
//
// Clean sessions, QoS 0, shared subscriptions (shared among the clients of one
// device) and retained messages are in memory, and so is how far a handshake of QoS 2 has come: exactly once holds
// until the relay is killed, at least once always. A connected client gets all messages of QoS 1 and 2 or is
// disconnected, never some of them.
//
// # What it refuses
//
// Rights are asked for at every publication, subscription, will and delivery,
// also of what was stored earlier. MQTT 5 clients get reason codes; a 3.1.1
// client whose publication of QoS 1 or 2 is refused is disconnected, since
// PUBACK would be a lie. (Not so for topics that begin with "$": they have no
// readers, and a message that all of none got is acknowledged.) Refused
// publications of QoS 0 are dropped. User name and password are ignored. What is
// refused is in the log, with what to do: one line in 30 seconds for each device,
// and how many were left out.
package hub

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"

	"github.com/sallyport/sallyport/mqttbridge"
	"github.com/sallyport/sallyport/mqttbridge/queue"
)

// Config is what a Hub needs. Only Queue is required.
type Config struct {
	// Queue keeps mailboxes and sessions. Its owner closes it after Run has
	// returned. Queues named "device/…" and "home/…" and keys named "hub/…"
	// are the hub's.
	Queue *queue.Store
	// Grants returns a device's rights; of a revoked one it returns none. It is
	// asked at every check, so it is fast, and does not call the hub. nil:
	// everybody may publish and read "home/+/#".
	Grants func(device string) Grants
	Limits Limits
	Now    func() time.Time // for what is stored and shown; nil = time.Now
	Logger *slog.Logger     // nil = discard
	// Audit records what an owner wants to know later: mqtt.refused,
	// mqtt.denied, mqtt.overflow, mqtt.forgotten. nil = not. It does not call
	// the hub.
	Audit func(event string, attrs ...slog.Attr)
}

// Limits bound what one device can take. Zero means the default.
type Limits struct {
	Connections   int           // of a device at once, 10
	Rate          int           // packets a second of a device, acknowledgements aside; reading pauses beyond, 200
	Burst         int           // packets at once, 1,000
	Packet        int           // bytes of one packet, 68 KiB: a payload of 64 KiB and its headers
	Subscriptions int           // of a session, 100
	Sessions      int           // persistent ones of a device, 10; the one away for longest makes room
	SessionLife   time.Duration // of a persistent one without a connection, at most, 7 days
	KeepAlive     time.Duration // the longest silence that a client may ask for, 20 min, at most 12 h; it is cut after half as much again
	WriteTimeout  time.Duration // without progress, 10 s
	LinkRate      int           // packets a second of one home's link; reading pauses beyond, 20,000, five times as many at once
	LinkBytes     int           // bytes of payloads a second of one home's link, 32 MiB, twice as many at once
	Mailbox       queue.Limits  // of a home, and of a session, 10,000 messages and 32 MiB; a session's has 8 MiB at most
}

func (l Limits) filled() Limits {
	def := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	life := func(v *time.Duration, d time.Duration) {
		if *v <= 0 {
			*v = d
		}
	}
	def(&l.Connections, 10)
	def(&l.Rate, 200)
	def(&l.Burst, 1000)
	def(&l.Packet, mqttbridge.MaxPayload+4<<10)
	def(&l.Subscriptions, 100)
	def(&l.Sessions, 10)
	def(&l.LinkRate, 20_000)
	def(&l.LinkBytes, 32<<20)
	life(&l.SessionLife, 7*24*time.Hour)
	life(&l.KeepAlive, 20*time.Minute)
	life(&l.WriteTimeout, 10*time.Second)
	def(&l.Mailbox.Messages, queue.DefaultMessages)
	if l.Mailbox.Bytes <= 0 {
		l.Mailbox.Bytes = queue.DefaultBytes
	}
	l.SessionLife = max(time.Second, l.SessionLife)
	l.KeepAlive = min(max(time.Second, l.KeepAlive), 12*time.Hour) // the engine counts half as much again in 16 bits
	return l
}

// A Hub is a broker. Make it with New.
type Hub struct {
	cfg       Config
	log       *slog.Logger
	engine    *mqtt.Server
	index     index
	retained  *retainedSet
	lanes     *lanes
	stats     counters
	era       atomic.Uint64 // counts revocations
	forgotten atomic.Pointer[forgotten]
	audited   auditLimit
	refused   refusalLimit

	running sync.WaitGroup // connections, links and wills

	mu       sync.Mutex // guards everything below; held for map accesses only
	stopped  bool
	devices  map[string]*device
	live     map[string]*conn    // by session key: who has the client id
	sessions map[string]*session // by session key
	homes    map[string]*home    // by agent id
	wills    map[string]*will    // delayed ones, by session key
	saidFull time.Time
}

const (
	sweepEvery    = time.Minute
	overflowEvery = time.Minute
)

// New returns a hub with the sessions and mailboxes that an earlier process
// left in the queue. It starts nothing.
func New(cfg Config) (*Hub, error) {
	if cfg.Queue == nil {
		return nil, errors.New("hub: Config.Queue is missing")
	}
	cfg.Limits = cfg.Limits.filled()
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	h := &Hub{
		cfg: cfg, log: cfg.Logger, retained: newRetainedSet(), lanes: newLanes(),
		devices: make(map[string]*device), live: make(map[string]*conn), sessions: make(map[string]*session),
		homes: make(map[string]*home), wills: make(map[string]*will),
	}
	engine, hook := newEngine(cfg.Limits)
	hook.hub = h
	if err := engine.AddHook(hook, nil); err != nil {
		return nil, fmt.Errorf("hub: %w", err)
	}
	h.engine = engine
	if err := h.restoreForgotten(); err != nil {
		return nil, fmt.Errorf("hub: read who was revoked: %w", err)
	}
	if err := h.restoreSessions(); err != nil {
		return nil, fmt.Errorf("hub: read sessions: %w", err)
	}
	if err := h.restoreHomes(); err != nil {
		return nil, fmt.Errorf("hub: read homes: %w", err)
	}
	return h, nil
}

// Run keeps the hub tidy until ctx ends; then it ends all connections and links
// and returns when they have ended.
func (h *Hub) Run(ctx context.Context) error {
	t := time.NewTicker(sweepEvery)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			h.sweep()
			continue
		case <-ctx.Done():
		}
		break
	}
	h.mu.Lock()
	h.stopped = true
	for _, d := range h.devices {
		for c := range d.conns {
			c.shut(endStopping)
		}
	}
	homes := make([]*home, 0, len(h.homes))
	for _, hm := range h.homes {
		homes = append(homes, hm)
	}
	for _, w := range h.wills {
		w.timer.Stop()
	}
	h.mu.Unlock()
	for _, hm := range homes {
		hm.cut(errStopped)
	}
	h.running.Wait()
	return nil
}

// sweep removes what has ended by itself.
func (h *Hub) sweep() {
	now := h.cfg.Now()
	h.audited.sweep(time.Now())
	h.sweepRefusals(time.Now())
	h.mu.Lock()
	h.sweepDevices(time.Now())
	sessions := make([]*session, 0, len(h.sessions))
	for _, s := range h.sessions {
		sessions = append(sessions, s)
	}
	h.mu.Unlock()
	for _, s := range sessions {
		if s.kill(func() bool { return s.isOver(now) }) {
			h.bury(s)
		}
	}
	h.retained.purge(func(m *message) bool { return m.expired(now) })
}

func randomName() string { return rand.Text() }
