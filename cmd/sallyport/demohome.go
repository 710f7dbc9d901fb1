package main

import (
	"bytes"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/listeners"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/sallyport/sallyport/agent"
	"github.com/sallyport/sallyport/mqttbridge"
	"github.com/sallyport/sallyport/mqttbridge/bridge"
	"github.com/sallyport/sallyport/mqttbridge/executor"
)

// Topics of the demo's home, as its devices know them.
const (
	garageSet   = "garage/set"   // TOGGLE moves the door
	garageState = "garage/state" // closed, opening, open, closing; retained
	notes       = "notes/"       // what is written there …
	board       = "board/last"   // … appears here, retained
)

const (
	demoPIN   = "2580"
	doorMoves = 300 * time.Millisecond
)

// garageAction is the one button of the demo. life is how long a press may be
// on its way.
func garageAction(life time.Duration) executor.Action {
	return executor.Action{
		Name: "garage", Label: "Garage door", Icon: "garage", Topic: garageSet, Payload: "TOGGLE", QoS: 1,
		Confirm: mqttbridge.ConfirmPIN, State: garageState, Life: life,
		Ack: &executor.Ack{Topic: garageState, Match: "/^(open|closed)$/", Timeout: 10 * time.Second},
	}
}

// demoMQTT joins the home broker: notes come in, the board and the door's state
// go out. The door's command topic is crossed by no rule.
func demoMQTT(addr string) (*agent.MQTT, error) {
	m := &agent.MQTT{Broker: bridge.Broker{URL: "tcp://" + addr}}
	for _, line := range []string{"notes/# in", "board/# out", garageState + " out"} {
		r, err := mqttbridge.ParseRule(line)
		if err != nil {
			return nil, err
		}
		m.Rules = append(m.Rules, r)
	}
	return m, nil
}

// homeBroker is an MQTT broker on loopback with two things that live on it: a
// garage door and a notice board.
type homeBroker struct {
	addr   string
	server *mqtt.Server
	quit   chan struct{}
	orders chan string // to the door
	said   chan []byte // to the board
	wg     sync.WaitGroup

	mu    sync.Mutex // guards what follows
	state string
	moved int // how often the door was told to move
}

// openToAll lets every program of this machine in: it is a demo's home.
type openToAll struct{ mqtt.HookBase }

func (*openToAll) ID() string { return "open-to-all" }

func (*openToAll) Provides(b byte) bool {
	return bytes.Contains([]byte{mqtt.OnConnectAuthenticate, mqtt.OnACLCheck}, []byte{b})
}

func (*openToAll) OnConnectAuthenticate(*mqtt.Client, packets.Packet) bool { return true }
func (*openToAll) OnACLCheck(*mqtt.Client, string, bool) bool              { return true }

// startHomeBroker listens on loopback; close ends everything.
func startHomeBroker() (*homeBroker, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("home broker: %w", err)
	}
	b := &homeBroker{
		addr:   l.Addr().String(),
		server: mqtt.New(&mqtt.Options{InlineClient: true, Logger: slog.New(slog.DiscardHandler)}),
		quit:   make(chan struct{}), orders: make(chan string, 16), said: make(chan []byte, 16),
	}
	for _, f := range []func() error{
		func() error { return b.server.AddHook(&openToAll{}, nil) },
		func() error { return b.server.AddListener(listeners.NewNet("home", l)) },
		b.server.Serve,
		func() error {
			return b.server.Subscribe(garageSet, 1, handOver(b.orders, func(p []byte) string { return string(p) }))
		},
		func() error { return b.server.Subscribe(notes+"#", 2, handOver(b.said, bytes.Clone)) },
	} {
		if err := f(); err != nil {
			l.Close()
			return nil, fmt.Errorf("home broker: %w", err)
		}
	}
	b.becomes("closed")
	_ = b.server.Publish(board, []byte("nothing yet"), true, 1)
	b.wg.Go(b.door)
	b.wg.Go(b.pinNotes)
	return b, nil
}

// handOver passes payloads to a thing, which must not publish in the broker's
// own call. One that is too busy misses some, as things do.
func handOver[T any](to chan<- T, of func([]byte) T) mqtt.InlineSubFn {
	return func(_ *mqtt.Client, _ packets.Subscription, p packets.Packet) {
		select {
		case to <- of(p.Payload):
		default:
		}
	}
}

func (b *homeBroker) close() {
	close(b.quit)
	b.wg.Wait()
	_ = b.server.Close()
}

// door moves at each TOGGLE and tells its state.
func (b *homeBroker) door() {
	open := false
	for {
		select {
		case order := <-b.orders:
			if order != "TOGGLE" {
				continue
			}
			b.mu.Lock()
			b.moved++
			b.mu.Unlock()
			open = !open
			way, end := "closing", "closed"
			if open {
				way, end = "opening", "open"
			}
			b.becomes(way)
			select {
			case <-time.After(doorMoves):
				b.becomes(end)
			case <-b.quit:
				return
			}
		case <-b.quit:
			return
		}
	}
}

func (b *homeBroker) becomes(state string) {
	b.mu.Lock()
	b.state = state
	b.mu.Unlock()
	_ = b.server.Publish(garageState, []byte(state), true, 1)
}

// seen is the door's state, and how often it was told to move.
func (b *homeBroker) seen() (state string, moved int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.state, b.moved
}

// pinNotes puts the last note on the board.
func (b *homeBroker) pinNotes() {
	for {
		select {
		case note := <-b.said:
			_ = b.server.Publish(board, note, true, 1)
		case <-b.quit:
			return
		}
	}
}
