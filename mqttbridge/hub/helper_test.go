package hub

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/sallyport/sallyport/mqttbridge/queue"
)

// A world is a hub with its queue, and a way to restart it.
type world struct {
	t     *testing.T
	tb    testing.TB // t, or a benchmark
	cfg   Config
	path  string
	store *queue.Store
	hub   *Hub
	stop  func()

	mu     sync.Mutex // guards everything below
	grants map[string]Grants
	events []string
}

// virtual runs f in a bubble, where time is virtual, with a running hub.
func virtual(t *testing.T, f func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { f(newWorld(t, nil)) })
}

func newWorld(t *testing.T, change func(*Config)) *world {
	w := &world{t: t, tb: t, path: filepath.Join(t.TempDir(), "mqtt.db"), grants: make(map[string]Grants)}
	w.cfg = Config{
		Grants: func(device string) Grants {
			w.mu.Lock()
			defer w.mu.Unlock()
			if g, ok := w.grants[device]; ok {
				return g
			}
			return Grants{Publish: everyHome, Subscribe: everyHome}
		},
		Audit: func(event string, attrs ...slog.Attr) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.events = append(w.events, event+" "+fmt.Sprint(attrs))
		},
	}
	if testing.Verbose() && os.Getenv("HUB_LOG") != "" {
		w.cfg.Logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	if change != nil {
		change(&w.cfg)
	}
	w.start()
	t.Cleanup(func() { w.stop() })
	return w
}

func (w *world) start() {
	w.tb.Helper()
	store, err := queue.Open(w.path, queue.Options{NoSync: true, Now: w.cfg.Now})
	if err != nil {
		w.tb.Fatal(err)
	}
	w.store, w.cfg.Queue = store, store
	h, err := New(w.cfg)
	if err != nil {
		w.tb.Fatal(err)
	}
	w.hub = h
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		h.Run(ctx)
	}()
	w.stop = sync.OnceFunc(func() {
		cancel()
		<-done
		if err := store.Close(); err != nil {
			w.tb.Error(err)
		}
	})
}

// elapse lets virtual time pass.
func elapse(d time.Duration) { time.Sleep(d) }

// restart is an orderly restart of the relay.
func (w *world) restart() {
	w.t.Helper()
	w.stop()
	w.start()
}

func (w *world) grant(device string, publish, subscribe []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.grants[device] = Grants{Publish: publish, Subscribe: subscribe}
}

func (w *world) audited(event string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.ContainsFunc(w.events, func(e string) bool { return strings.HasPrefix(e, event+" ") })
}

// A client is a device's end of a connection.
type client struct {
	t       *testing.T
	version byte
	conn    net.Conn
	served  chan struct{} // ServeConn has returned
	closed  chan struct{} // the hub closed the connection
	inbox   chan *packets.Packet

	wmu    sync.Mutex // guards writes
	mu     sync.Mutex // guards everything below
	hold   bool       // nothing is acknowledged
	acks   int        // acknowledgements that are not sent yet
	acked  *sync.Cond // acks is 0
	nextID uint16
}

// device connects a pipe to the hub; nothing is read from it before start.
func (w *world) device(name string, version byte) *client {
	return w.deviceKey(name, "key-"+name, version)
}

func (w *world) deviceKey(name, key string, version byte) *client {
	near, far := net.Pipe()
	c := newClient(w.t, near, version)
	h := w.hub
	go func() {
		defer close(c.served)
		h.ServeConn(context.Background(), far, Identity{Name: name, ID: key, Remote: netip.MustParseAddrPort("192.0.2.1:1")})
	}()
	w.t.Cleanup(func() { near.Close(); <-c.served })
	return c
}

func newClient(t *testing.T, conn net.Conn, version byte) *client {
	c := &client{
		t: t, version: version, conn: conn, served: make(chan struct{}),
		closed: make(chan struct{}), inbox: make(chan *packets.Packet, 1<<15),
	}
	c.acked = sync.NewCond(&c.mu)
	return c
}

type connectOption func(*packets.Packet)

func clientID(id string) connectOption {
	return func(pk *packets.Packet) { pk.Connect.ClientIdentifier = id }
}

func persistent(pk *packets.Packet) {
	pk.Connect.Clean = false
	if pk.ProtocolVersion == 5 {
		pk.Properties.SessionExpiryInterval, pk.Properties.SessionExpiryIntervalFlag = 3600, true
	}
}

func lastWill(topic, payload string, qos byte, retain bool) connectOption {
	return func(pk *packets.Packet) {
		p := &pk.Connect
		p.WillFlag, p.WillTopic, p.WillPayload, p.WillQos, p.WillRetain = true, topic, []byte(payload), qos, retain
	}
}

func (w *world) connect(name string, version byte, opts ...connectOption) *client {
	w.t.Helper()
	c := w.device(name, version)
	if ack := c.hello(name, opts...); ack.ReasonCode != 0 {
		w.t.Fatalf("%s: CONNACK %#x", name, ack.ReasonCode)
	}
	return c
}

// hello says CONNECT, starts reading and returns CONNACK; its ReasonCode is
// 0xFF when the hub closed instead.
func (c *client) hello(id string, opts ...connectOption) packets.Packet {
	c.t.Helper()
	pk := packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Connect}, ProtocolVersion: c.version,
		Connect: packets.ConnectParams{ProtocolName: []byte("MQTT"), Clean: true, Keepalive: 600, ClientIdentifier: id},
	}
	for _, o := range opts {
		o(&pk)
	}
	go c.read()
	c.send(pk)
	ack, ok := c.next()
	if !ok || ack.FixedHeader.Type != packets.Connack {
		return packets.Packet{ReasonCode: 0xFF}
	}
	return ack
}

func (c *client) read() {
	defer close(c.closed)
	r := bufio.NewReader(c.conn)
	for {
		pk, err := readPacket(r, c.version)
		if err != nil {
			return
		}
		c.mu.Lock()
		if !c.hold {
			c.acks++
			go c.acknowledge(pk)
		}
		c.mu.Unlock()
		c.inbox <- &pk
	}
}

// acknowledge answers a publication as a good client does.
func (c *client) acknowledge(pk packets.Packet) {
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.acks--; c.acks == 0 {
			c.acked.Broadcast()
		}
	}()
	switch {
	case pk.FixedHeader.Type == packets.Publish && pk.FixedHeader.Qos == 1:
		c.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Puback}, PacketID: pk.PacketID})
	case pk.FixedHeader.Type == packets.Publish && pk.FixedHeader.Qos == 2:
		c.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pubrec}, PacketID: pk.PacketID})
	case pk.FixedHeader.Type == packets.Pubrel:
		c.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pubcomp}, PacketID: pk.PacketID})
	}
}

func readPacket(r *bufio.Reader, version byte) (packets.Packet, error) {
	pk := packets.Packet{ProtocolVersion: version}
	b, err := r.ReadByte()
	if err != nil {
		return pk, err
	}
	if err := pk.FixedHeader.Decode(b); err != nil {
		return pk, err
	}
	n, _, err := packets.DecodeLength(r)
	if err != nil {
		return pk, err
	}
	pk.FixedHeader.Remaining = n
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return pk, err
	}
	switch pk.FixedHeader.Type {
	case packets.Connack:
		err = pk.ConnackDecode(body)
	case packets.Publish:
		err = pk.PublishDecode(body)
	case packets.Puback:
		err = pk.PubackDecode(body)
	case packets.Pubrec:
		err = pk.PubrecDecode(body)
	case packets.Pubrel:
		err = pk.PubrelDecode(body)
	case packets.Pubcomp:
		err = pk.PubcompDecode(body)
	case packets.Suback:
		err = pk.SubackDecode(body)
	case packets.Unsuback:
		err = pk.UnsubackDecode(body)
	case packets.Disconnect:
		err = pk.DisconnectDecode(body)
	}
	return pk, err
}

func encodePacket(pk packets.Packet) ([]byte, error) {
	var b bytes.Buffer
	var err error
	switch pk.FixedHeader.Type {
	case packets.Connect:
		err = pk.ConnectEncode(&b)
	case packets.Publish:
		err = pk.PublishEncode(&b)
	case packets.Puback:
		err = pk.PubackEncode(&b)
	case packets.Pubrec:
		err = pk.PubrecEncode(&b)
	case packets.Pubrel:
		err = pk.PubrelEncode(&b)
	case packets.Pubcomp:
		err = pk.PubcompEncode(&b)
	case packets.Subscribe:
		err = pk.SubscribeEncode(&b)
	case packets.Unsubscribe:
		err = pk.UnsubscribeEncode(&b)
	case packets.Pingreq:
		err = pk.PingreqEncode(&b)
	case packets.Disconnect:
		err = pk.DisconnectEncode(&b)
	case packets.Auth:
		err = pk.AuthEncode(&b)
	default:
		err = fmt.Errorf("packet of type %d", pk.FixedHeader.Type)
	}
	return b.Bytes(), err
}

// send writes a packet; a connection that is gone is no error.
func (c *client) send(pk packets.Packet) {
	if pk.FixedHeader.Type != packets.Connect { // whose level may be wrong on purpose
		pk.ProtocolVersion = c.version
	}
	pk.Mods.AllowResponseInfo = true
	switch pk.FixedHeader.Type {
	case packets.Pubrel, packets.Subscribe, packets.Unsubscribe:
		pk.FixedHeader.Qos = 1
	}
	b, err := encodePacket(pk)
	if err != nil {
		c.t.Error(err)
		return
	}
	c.sendRaw(b)
}

// sendRaw writes pieces of one packet; no other comes between them.
func (c *client) sendRaw(pieces ...[]byte) {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	for _, b := range pieces {
		c.conn.Write(b)
	}
}

// next returns the next packet of the hub; false: the connection was closed, or
// nothing came for a minute.
func (c *client) next() (packets.Packet, bool) {
	timeout := time.NewTimer(2 * time.Minute)
	defer timeout.Stop()
	select {
	case pk := <-c.inbox:
		return *pk, true
	default:
	}
	select {
	case pk := <-c.inbox:
		return *pk, true
	case <-c.closed:
		select {
		case pk := <-c.inbox:
			return *pk, true
		default:
		}
	case <-timeout.C:
	}
	return packets.Packet{}, false
}

// await returns the next packet of a type; publications that come before are
// put back behind it.
func (c *client) await(kind byte) packets.Packet {
	c.t.Helper()
	var aside []packets.Packet
	defer func() {
		for _, pk := range aside {
			c.inbox <- &pk
		}
	}()
	for {
		pk, ok := c.next()
		switch {
		case !ok:
			c.t.Fatalf("no %s came", packets.PacketNames[kind])
		case pk.FixedHeader.Type == kind:
			return pk
		default:
			aside = append(aside, pk)
		}
	}
}

func (c *client) id() uint16 {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nextID++
	if c.nextID == 0 {
		c.nextID = 1
	}
	return c.nextID
}

type publishOption func(*packets.Packet)

func retained(pk *packets.Packet) { pk.FixedHeader.Retain = true }

func expiry(seconds uint32) publishOption {
	return func(pk *packets.Packet) { pk.Properties.MessageExpiryInterval = seconds }
}

// publish sends a publication and returns the reason code of its
// acknowledgement; 0xFF: the connection was closed instead.
func (c *client) publish(topic, payload string, qos byte, opts ...publishOption) byte {
	c.t.Helper()
	pk := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: qos}, TopicName: topic, Payload: []byte(payload)}
	if qos > 0 {
		pk.PacketID = c.id()
	}
	for _, o := range opts {
		o(&pk)
	}
	c.send(pk)
	switch qos {
	case 1:
		return c.answer(packets.Puback)
	case 2:
		code := c.answer(packets.Pubrec)
		if code < 0x80 {
			c.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pubrel}, PacketID: pk.PacketID})
			return c.answer(packets.Pubcomp)
		}
		return code
	}
	return 0
}

// answer waits for a packet of a type, or for the end: 0xFF.
func (c *client) answer(kind byte) byte {
	var aside []packets.Packet
	defer func() {
		for _, pk := range aside {
			c.inbox <- &pk
		}
	}()
	for {
		pk, ok := c.next()
		if !ok {
			return 0xFF
		}
		if pk.FixedHeader.Type == kind {
			return pk.ReasonCode
		}
		aside = append(aside, pk)
	}
}

func filter(f string, qos byte) packets.Subscription {
	return packets.Subscription{Filter: f, Qos: qos}
}

// subscribe returns the codes of SUBACK.
func (c *client) subscribe(filters ...packets.Subscription) []byte {
	c.t.Helper()
	pk := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Subscribe}, PacketID: c.id(), Filters: filters}
	if n := filters[0].Identifier; n > 0 {
		pk.Properties.SubscriptionIdentifier = []int{n}
	}
	c.send(pk)
	return c.await(packets.Suback).ReasonCodes
}

func (c *client) unsubscribe(filters ...string) []byte {
	c.t.Helper()
	pk := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Unsubscribe}, PacketID: c.id()}
	for _, f := range filters {
		pk.Filters = append(pk.Filters, filter(f, 0))
	}
	c.send(pk)
	return c.await(packets.Unsuback).ReasonCodes
}

// want reads publications and compares them with "topic=payload" each.
func (c *client) want(messages ...string) []packets.Packet {
	c.t.Helper()
	var got []packets.Packet
	for _, m := range messages {
		pk, ok := c.next()
		if !ok {
			c.t.Fatalf("waited for %s, and nothing came", m)
		}
		for pk.FixedHeader.Type == packets.Pubrel {
			pk, _ = c.next()
		}
		if s := pk.TopicName + "=" + string(pk.Payload); pk.FixedHeader.Type != packets.Publish || s != m {
			c.t.Fatalf("%s %s came instead of %s", packets.PacketNames[pk.FixedHeader.Type], s, m)
		}
		got = append(got, pk)
	}
	return got
}

// quiet waits until nothing moves in the bubble and fails when something came.
func (c *client) quiet() {
	c.t.Helper()
	synctest.Wait()
	for {
		select {
		case pk := <-c.inbox:
			if pk.FixedHeader.Type != packets.Pubrel {
				c.t.Fatalf("%s %s came: %s", packets.PacketNames[pk.FixedHeader.Type], pk.TopicName, pk.Payload)
			}
		default:
			return
		}
	}
}

// leave says DISCONNECT and waits until the hub has noticed. What has come is
// acknowledged before: otherwise it would come again.
func (c *client) leave() {
	c.mu.Lock()
	for c.acks > 0 {
		c.acked.Wait()
	}
	c.mu.Unlock()
	c.send(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Disconnect}})
	<-c.served
}

// vanish cuts the connection.
func (c *client) vanish() {
	c.conn.Close()
	<-c.served
}

// ended waits for the hub to end the connection and returns the reason code of
// its DISCONNECT, 0xFF when it said none.
func (c *client) ended() byte {
	c.t.Helper()
	code := byte(0xFF)
	for {
		pk, ok := c.next()
		if !ok {
			break
		}
		if pk.FixedHeader.Type == packets.Disconnect {
			code = pk.ReasonCode
		}
	}
	select {
	case <-c.served:
	case <-time.After(time.Minute):
		c.t.Fatal("the connection was not ended")
	}
	return code
}
