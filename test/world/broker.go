package world

import (
	"log/slog"
	"net"
	"sync"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
)

// A Broker is the MQTT broker on a home's network. What it knew is gone after
// Kill, as with most brokers that lose their power.
type Broker struct {
	w *World

	mu      sync.Mutex // guards all below
	server  *mqtt.Server
	conns   map[net.Conn]struct{}
	watches []brokerWatch
}

type brokerWatch struct {
	filter string
	f      func(Message)
}

// A Message is what a Broker saw.
type Message struct {
	Topic, Payload string
	Retained       bool
	At             time.Time
}

// Broker runs a broker at home, without rules about who may do what, and returns
// it with its address ("tcp://10.0.0.2:1883").
func (h *Home) Broker() (*Broker, string) {
	b := &Broker{w: h.w}
	b.Start()
	s := Service{raw: b.serve}
	addr := h.nextAddr()
	h.serve(addr, s)
	h.w.atEnd(b.Kill)
	return b, "tcp://" + addr
}

// letIn lets everybody do everything.
type letIn struct{ mqtt.HookBase }

func (letIn) ID() string { return "let-in" }

func (letIn) Provides(b byte) bool { return b == mqtt.OnConnectAuthenticate || b == mqtt.OnACLCheck }

func (letIn) OnConnectAuthenticate(*mqtt.Client, packets.Packet) bool { return true }

func (letIn) OnACLCheck(*mqtt.Client, string, bool) bool { return true }

// Start runs the broker, empty.
func (b *Broker) Start() {
	s := mqtt.New(&mqtt.Options{InlineClient: true, Logger: slog.New(slog.DiscardHandler)})
	if err := s.AddHook(new(letIn), nil); err != nil {
		b.w.T.Fatal(err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.server, b.conns = s, map[net.Conn]struct{}{}
	for i, watch := range b.watches {
		b.subscribe(i, watch)
	}
}

// Kill ends it without a goodbye to its clients.
func (b *Broker) Kill() {
	b.mu.Lock()
	conns := b.conns
	b.server, b.conns = nil, nil
	b.mu.Unlock()
	for c := range conns {
		c.Close()
	}
}

func (b *Broker) serve(c net.Conn) {
	defer c.Close()
	b.mu.Lock()
	s := b.server
	if s != nil {
		b.conns[c] = struct{}{}
	}
	b.mu.Unlock()
	if s == nil {
		return
	}
	_ = s.EstablishConnection("home", c) // how it ended is for the client's log
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.conns, c)
}

// Watch calls f for every message on a filter, also after a restart. It is
// called by the goroutine that publishes.
func (b *Broker) Watch(filter string, f func(Message)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.watches = append(b.watches, brokerWatch{filter, f})
	if b.server != nil {
		b.subscribe(len(b.watches)-1, b.watches[len(b.watches)-1])
	}
}

// subscribe needs b.mu.
func (b *Broker) subscribe(i int, watch brokerWatch) {
	err := b.server.Subscribe(watch.filter, i+1, func(_ *mqtt.Client, _ packets.Subscription, pk packets.Packet) {
		watch.f(Message{Topic: pk.TopicName, Payload: string(pk.Payload), Retained: pk.FixedHeader.Retain, At: time.Now()})
	})
	if err != nil {
		b.w.T.Error(err)
	}
}

// Publish publishes at QoS 1 as something at home does. Nothing happens while
// the broker is down.
func (b *Broker) Publish(topic, payload string, retain bool) {
	b.mu.Lock()
	s := b.server
	b.mu.Unlock()
	if s == nil {
		return
	}
	if err := s.Publish(topic, []byte(payload), retain, 1); err != nil {
		b.w.T.Error(err)
	}
}
