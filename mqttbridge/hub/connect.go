package hub

import (
	"crypto/rand"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/sallyport/sallyport/mqttbridge"
)

const (
	maxClientID  = 200              // bytes: it is part of a queue's name
	takeoverTime = 10 * time.Second // for the older connection of a client to end
	bridgeBit    = 0x80             // of the protocol level: "I am a bridge", as Mosquitto says it
)

// readConnect takes out of CONNECT what the engine must not see: the will, which
// it would publish for anybody, and name and password, which prove nothing.
func (c *conn) readConnect(pk *packets.Packet) {
	p := &pk.Connect
	if pk.ProtocolVersion&bridgeBit != 0 {
		pk.ProtocolVersion &^= bridgeBit
		c.bridge = true
	}
	c.version, c.client = pk.ProtocolVersion, p.ClientIdentifier
	if p.WillFlag {
		w := &will{
			m: message{
				topic: strings.Clone(p.WillTopic), payload: p.WillPayload, qos: p.WillQos, retain: p.WillRetain,
				props: propsOf(&p.WillProperties),
			},
			life:  time.Duration(p.WillProperties.MessageExpiryInterval) * time.Second,
			delay: time.Duration(p.WillProperties.WillDelayInterval) * time.Second,
		}
		c.will = w
	}
	p.WillFlag, p.WillRetain, p.WillQos, p.WillTopic, p.WillPayload = false, false, 0, "", nil
	p.WillProperties = packets.Properties{}
	p.UsernameFlag, p.PasswordFlag, p.Username, p.Password = false, false, nil, nil
}

// connect decides whether a client may come in and prepares its session. When it
// says no, c.why says why.
func (c *conn) connect(pk packets.Packet) packets.Code {
	h, props := c.hub, &c.cl.Properties.Props
	if props.AuthenticationMethod != "" {
		c.why = "the certificate alone says who the client is; take the authentication method out of its settings"
		return packets.ErrBadAuthenticationMethod
	}
	client := pk.Connect.ClientIdentifier
	switch {
	case client == "":
		client = c.id.Name + "-" + strings.ToLower(rand.Text()[:16])
		props.AssignedClientID = client
	case !ownsClientID(c.id.Name, client), len(client) > maxClientID:
		h.auditOften("mqtt.refused", c.id.Name, "client-id", slog.String("client", said(client)), slog.String("reason", "the client id is not the device's name"))
		c.why = wantClientID(c.id.Name)
		if len(client) > maxClientID {
			c.why = fmt.Sprintf("the client id has more than %d bytes; use a shorter one", maxClientID)
		}
		return packets.ErrClientIdentifierNotValid
	}
	if code := c.checkWill(); code != packets.CodeSuccess {
		return code
	}
	if !c.throttle(1) {
		return packets.ErrServerBusy
	}
	c.keepAlive()
	c.window, c.maxAliases = maxWindow, min(int(props.TopicAliasMaximum), maxAliases)
	if n := int(props.ReceiveMaximum); n > 0 {
		c.window = min(c.window, n)
	}
	keep := c.keep()
	c.key = sessionKey(c.id.Name, client)
	c.cl.ID = c.key
	if !h.claim(c) {
		c.why = "an older connection with this client id does not end; try again, and give every client an id of its own"
		return packets.ErrServerBusy
	}
	if !h.admit(c) {
		c.why = fmt.Sprintf("the device has %d connections, more are not allowed; close one", h.cfg.Limits.Connections)
		h.auditOften("mqtt.refused", c.id.Name, "connections", slog.String("client", client), slog.String("reason", "the device has too many connections"))
		return packets.ErrQuotaExceeded
	}
	if c.will != nil {
		c.will.m.sender = sender{device: c.id.Name, id: c.id.ID, client: c.key, since: c.era}
	}
	if err := h.attach(c, client, pk.Connect.Clean, keep); err != nil {
		c.why = fmt.Sprintf("its session cannot be kept: %v", err)
		return packets.ErrServerUnavailable
	}
	c.client = "" // the session has it; this one would keep the packet
	return packets.CodeSuccess
}

// checkWill: a client whose will would not be published is told so at once.
func (c *conn) checkWill() packets.Code {
	w := c.will
	if w == nil {
		return packets.CodeSuccess
	}
	say := func(code packets.Code, why string) packets.Code {
		c.why = fmt.Sprintf("its last will on %q: %s", said(w.m.topic), why)
		return code
	}
	if w.m.qos > 2 {
		return packets.ErrMalformedPacket
	}
	if err := mqttbridge.CheckTopic(w.m.topic); err != nil {
		return say(packets.ErrTopicNameInvalid, err.Error())
	}
	if len(w.m.payload) > mqttbridge.MaxPayload {
		return say(packets.ErrPacketTooLarge, tooLarge)
	}
	if !c.hub.mayPublish(c.id.Name, w.m.topic) {
		c.auditDenied("will", w.m.topic)
		return say(packets.ErrNotAuthorized, c.hub.whyNotPublish(c.id.Name, w.m.topic))
	}
	if w.m.retain {
		if err := c.hub.retained.room(&w.m); err != nil {
			return say(whyNotKept(err))
		}
	}
	return packets.CodeSuccess
}

// keepAlive bounds how long a client may be silent. A shorter time is its own
// choice; a longer one, or none, would leave half-open connections for ever.
func (c *conn) keepAlive() {
	limit := uint16(c.hub.cfg.Limits.KeepAlive / time.Second)
	if k := c.cl.State.Keepalive; k == 0 || k > limit {
		c.cl.State.Keepalive, c.cl.State.ServerKeepalive = limit, true
	}
}

// keep returns how long the client's session lives without a connection.
func (c *conn) keep() time.Duration {
	limit := c.hub.cfg.Limits.SessionLife
	if c.version < 5 {
		if c.cl.Properties.Clean {
			return 0
		}
		return limit
	}
	return min(limit, time.Duration(c.cl.Properties.Props.SessionExpiryInterval)*time.Second)
}

// claim takes the client id, ending an older connection that has it. It waits
// until that has let go of the session. false: this connection ends too.
func (h *Hub) claim(c *conn) bool {
	timeout := time.NewTimer(takeoverTime)
	defer timeout.Stop()
	for {
		h.mu.Lock()
		old := h.live[c.key]
		if old == nil && !c.ending() && !h.stopped {
			h.live[c.key] = c
			h.mu.Unlock()
			return true
		}
		h.mu.Unlock()
		if old == nil {
			return false
		}
		old.shut(endTakenOver)
		select {
		case <-old.released:
		case <-c.gone:
			return false
		case <-timeout.C:
			return false
		}
	}
}

// release gives the client id and the session back.
func (h *Hub) release(c *conn) {
	if s := c.session; s != nil {
		keep := s.detach(c, c.keep())
		h.willEnds(c, keep)
	}
	h.mu.Lock()
	h.dismiss(c)
	if h.live[c.key] == c {
		delete(h.live, c.key)
	}
	h.mu.Unlock()
	close(c.released)
}

// establish lets deliveries go out: CONNACK was the first packet.
func (c *conn) establish() {
	s := c.session
	s.mu.Lock()
	s.ready = s.conn == c
	s.mu.Unlock()
	s.kick()
	c.logger().Debug("MQTT client connected", "version", c.version, "session", c.present)
}
