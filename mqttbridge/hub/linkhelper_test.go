package hub

import (
	"bufio"
	"context"
	"net"
	"sync"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
)

// An agentEnd is an agent's end of a link.
type agentEnd struct {
	w       *world
	conn    net.Conn
	welcome mqttbridge.LinkWelcome
	served  chan struct{}
	err     error // of ServeAgent, after served
	inbox   chan *mqttbridge.LinkPacket

	hold bool // nothing is acknowledged; set before hello
	seq  uint64

	mu sync.Mutex // guards bw
	bw *bufio.Writer
}

type helloOption func(*mqttbridge.LinkHello)

func inFilter(f string, qos byte) helloOption {
	return func(h *mqttbridge.LinkHello) {
		h.In = append(h.In, mqttbridge.LinkFilter{Filter: f, QoS: qos})
	}
}

func stream(s string) helloOption { return func(h *mqttbridge.LinkHello) { h.Stream = s } }

func (w *world) agentEnd(a Agent) *agentEnd {
	near, far := net.Pipe()
	e := &agentEnd{w: w, conn: near, served: make(chan struct{}), inbox: make(chan *mqttbridge.LinkPacket, 1<<15), bw: bufio.NewWriterSize(near, 64<<10)}
	h := w.hub
	go func() {
		defer close(e.served)
		e.err = h.ServeAgent(context.Background(), far, a)
	}()
	w.t.Cleanup(func() { near.Close(); <-e.served })
	return e
}

// agent connects an agent and waits for its welcome.
func (w *world) agent(name string, opts ...helloOption) *agentEnd {
	w.t.Helper()
	e := w.agentEnd(Agent{ID: "id-" + name, Name: name})
	e.hello(opts...)
	p, ok := e.next()
	if !ok || p.Kind != mqttbridge.LinkWelcomeKind || p.Welcome.Problem != "" {
		w.t.Fatalf("no welcome: %+v %+v", p, p.Welcome)
	}
	e.welcome = *p.Welcome
	return e
}

func (e *agentEnd) hello(opts ...helloOption) {
	hello := &mqttbridge.LinkHello{Version: mqttbridge.LinkVersion, Stream: "s", Out: []string{"#"}}
	for _, o := range opts {
		o(hello)
	}
	go e.read()
	e.send(mqttbridge.LinkPacket{Kind: mqttbridge.LinkHelloKind, Hello: hello})
}

func (e *agentEnd) read() {
	defer close(e.inbox)
	r := bufio.NewReader(e.conn)
	for {
		p, err := mqttbridge.ReadLink(r)
		if err != nil {
			return
		}
		// No lock: whoever writes holds it while the hub does not read, and a
		// bubble's time stands still while somebody waits for a lock.
		if p.Kind == mqttbridge.LinkPublish && p.Message.Seq > 0 && !e.hold {
			go e.send(mqttbridge.LinkPacket{Kind: mqttbridge.LinkAck, Seq: p.Message.Seq})
		}
		e.inbox <- &p
	}
}

func (e *agentEnd) send(p mqttbridge.LinkPacket) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := mqttbridge.WriteLink(e.bw, p); err == nil {
		e.bw.Flush()
	}
}

// flood sends n messages, numbered from 1, as fast as it can.
func (e *agentEnd) flood(n int, topic string, payload func(seq int) string) {
	e.w.t.Helper()
	e.mu.Lock()
	defer e.mu.Unlock()
	for seq := 1; seq <= n; seq++ {
		m := mqttbridge.LinkMessage{Seq: uint64(seq), Topic: topic, Payload: []byte(payload(seq)), QoS: 1}
		if err := mqttbridge.WriteLink(e.bw, mqttbridge.LinkPacket{Kind: mqttbridge.LinkPublish, Message: m}); err != nil {
			e.w.t.Fatal(err)
		}
	}
	e.bw.Flush()
}

func (e *agentEnd) next() (mqttbridge.LinkPacket, bool) {
	select {
	case p, ok := <-e.inbox:
		if !ok {
			return mqttbridge.LinkPacket{}, false
		}
		return *p, true
	case <-time.After(2 * time.Minute):
		return mqttbridge.LinkPacket{}, false
	}
}

// want reads messages and compares them with "topic=payload" each.
func (e *agentEnd) want(messages ...string) []mqttbridge.LinkMessage {
	e.w.t.Helper()
	var got []mqttbridge.LinkMessage
	for _, m := range messages {
		p, ok := e.next()
		for ok && p.Kind == mqttbridge.LinkAck {
			p, ok = e.next()
		}
		if !ok {
			e.w.t.Fatalf("waited for %s, and nothing came", m)
		}
		if s := p.Message.Topic + "=" + string(p.Message.Payload); p.Kind != mqttbridge.LinkPublish || s != m {
			e.w.t.Fatalf("kind %d, %s came instead of %s", p.Kind, s, m)
		}
		got = append(got, p.Message)
	}
	return got
}

func (e *agentEnd) quiet() {
	e.w.t.Helper()
	synctest.Wait()
	for {
		select {
		case p, ok := <-e.inbox:
			if ok && p.Kind == mqttbridge.LinkPublish {
				e.w.t.Fatalf("%s=%s came", p.Message.Topic, p.Message.Payload)
			}
			if !ok {
				return
			}
		default:
			return
		}
	}
}

// publish sends a message with the next number and waits for its
// acknowledgement.
func (e *agentEnd) publish(topic, payload string, retain bool) {
	e.w.t.Helper()
	e.seq++
	e.send(mqttbridge.LinkPacket{Kind: mqttbridge.LinkPublish, Message: mqttbridge.LinkMessage{
		Seq: e.seq, Topic: topic, Payload: []byte(payload), QoS: 1, Retain: retain,
	}})
	e.acknowledged(e.seq)
}

// acknowledged waits until the hub has said that seq is on disk.
func (e *agentEnd) acknowledged(seq uint64) {
	e.w.t.Helper()
	for {
		p, ok := e.next()
		if !ok {
			e.w.t.Fatalf("number %d was not acknowledged", seq)
		}
		if p.Kind == mqttbridge.LinkAck && p.Seq >= seq {
			return
		}
	}
}

// cut ends the link and waits until the hub has noticed.
func (e *agentEnd) cut() {
	e.conn.Close()
	<-e.served
}
