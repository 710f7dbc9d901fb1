package hub

import (
	"errors"
	"log/slog"
	"strings"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/sallyport/sallyport/mqttbridge"
)

// The engine is mochi-mqtt v2.7.9. It reads, checks and writes packets, and
// knows how the handshakes go. Everything else is ours, since it
//
//   - writes PUBACK before anything is kept, and ignores what its store says;
//   - has one map of packet ids for both directions, so that a client's
//     publication can swallow a delivery with the same id (its issue 545);
//   - publishes wills, and sends in-flight messages again, without asking for
//     rights (503, 504);
//   - sends queued messages in the order of uint16(seconds);
//   - holds a client's lock while it writes, and needs it to publish.
//
// So it has no store, no subscriptions, no retained messages and no wills, and
// its event loop does not run. It is asked for nothing else than what the hook
// below and the functions at the end of this file use.
const (
	puback  = packets.Puback
	pubrec  = packets.Pubrec
	pubrel  = packets.Pubrel
	pubcomp = packets.Pubcomp

	receiveMaximum = 256 // publications of QoS 2 that a client has under way
	readBuffer     = 256 // of each connection; longer packets are read past it
	maxAliases     = 32  // topic aliases that we give to one client
)

func newEngine(l Limits) (*mqtt.Server, *hook) {
	caps := mqtt.NewDefaultServerCapabilities()
	caps.MaximumPacketSize = uint32(l.Packet)
	caps.MaximumClientWritesPending = 1 // nothing is ever put there
	caps.MaximumSessionExpiryInterval = uint32(l.SessionLife / time.Second)
	caps.ReceiveMaximum = receiveMaximum
	caps.TopicAliasMaximum = 0 // resolved after the check of rights
	caps.Compatibilities.NoInheritedPropertiesOnAck = true
	s := mqtt.New(&mqtt.Options{
		Capabilities:             caps,
		ClientNetReadBufferSize:  readBuffer,
		ClientNetWriteBufferSize: readBuffer,
		Logger:                   slog.New(slog.DiscardHandler), // it prints payloads
	})
	return s, &hook{}
}

// errPacketTooLarge: the client said that it takes no packets of this size.
var errPacketTooLarge error = packets.ErrPacketTooLarge

// hook is where the engine asks.
type hook struct {
	mqtt.HookBase
	hub *Hub
}

// ID names the hook.
func (*hook) ID() string { return "hub" }

// Provides lists what the engine asks for.
func (*hook) Provides(b byte) bool {
	switch b {
	case mqtt.OnPacketRead, mqtt.OnConnect, mqtt.OnConnectAuthenticate, mqtt.OnSessionEstablished, mqtt.OnACLCheck,
		mqtt.OnSubscribe, mqtt.OnUnsubscribe, mqtt.OnPublish, mqtt.OnPacketProcessed, mqtt.OnPacketEncode:
		return true
	}
	return false
}

func connOf(cl *mqtt.Client) *conn { return cl.Net.Conn.(*conn) }

// nothing is a packet that the engine takes and does nothing with: the
// acknowledgement of what it never sent.
func nothing(pk packets.Packet) packets.Packet {
	return packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Puback}, ProtocolVersion: pk.ProtocolVersion}
}

// OnPacketRead sees every packet before the engine does.
func (k *hook) OnPacketRead(cl *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
	c := connOf(cl)
	// The engine goes on with what it has in its buffer.
	if c.ending() {
		return pk, packets.ErrRejectPacket
	}
	switch pk.FixedHeader.Type {
	case packets.Puback, packets.Pubrec, packets.Pubcomp:
		// What acknowledges nothing is no answer, but somebody's flood.
		known := c.session != nil && c.session.acknowledged(c, pk.FixedHeader.Type, pk.PacketID, pk.ReasonCode >= 0x80)
		if !known && !c.throttle(1) {
			return pk, packets.ErrRejectPacket
		}
		return nothing(pk), nil
	case packets.Connect:
		if c.cl == nil {
			c.cl = cl
			c.readConnect(&pk)
		}
	case packets.Publish:
		if !c.throttle(1) {
			return pk, packets.ErrRejectPacket
		}
		if known, ok := cl.State.Inflight.Get(pk.PacketID); ok && pk.FixedHeader.Qos > 0 && known.FixedHeader.Type == packets.Pubrec {
			if pk.FixedHeader.Qos != 2 {
				c.shut(ending{code: 0x82, reason: "a packet id was used twice"})
				return pk, packets.ErrRejectPacket
			}
			// It came before. The engine would call it an error, and an MQTT 5
			// client believe that the message was refused.
			_ = c.writeAck(pubrec, pk.PacketID, 0) // an error here would let the packet through
			return nothing(pk), nil
		}
		// The engine does not answer these at all.
		if strings.HasPrefix(pk.TopicName, "$") && !strings.ContainsAny(pk.TopicName, "+#") {
			c.auditDenied("publish", pk.TopicName)
			c.warnRefused("publication refused", mqttbridge.CheckTopic(pk.TopicName).Error(), "topic", said(pk.TopicName))
			c.refuse(pk, packets.ErrTopicNameInvalid)
			return nothing(pk), nil
		}
	case packets.Subscribe, packets.Unsubscribe:
		if !c.throttle(max(1, len(pk.Filters))) {
			return pk, packets.ErrRejectPacket
		}
	case packets.Disconnect:
		// 4 asks for the will, and so do all that tell of a fault.
		c.farewell = pk.ReasonCode == 0
	case packets.Auth:
		c.shut(ending{code: 0x82, reason: "AUTH without an authentication method"})
		return pk, packets.ErrRejectPacket
	default:
		if !c.throttle(1) {
			return pk, packets.ErrRejectPacket
		}
	}
	return pk, nil
}

// OnConnect decides about a client.
func (k *hook) OnConnect(cl *mqtt.Client, pk packets.Packet) error {
	c := connOf(cl)
	code := c.connect(pk)
	if code == packets.CodeSuccess {
		return nil
	}
	_ = k.hub.engine.SendConnack(cl, code, false, nil) // the connection ends anyway
	return code
}

// OnConnectAuthenticate has nothing to do: whoever handed the connection over
// has seen the certificate.
func (*hook) OnConnectAuthenticate(*mqtt.Client, packets.Packet) bool { return true }

// OnACLCheck has nothing to do: OnPublish, OnSubscribe and every delivery ask
// for rights themselves, with better answers to the client.
func (*hook) OnACLCheck(*mqtt.Client, string, bool) bool { return true }

// OnSessionEstablished comes after CONNACK.
func (*hook) OnSessionEstablished(cl *mqtt.Client, _ packets.Packet) { connOf(cl).establish() }

// OnPublish carries a publication out, before the engine acknowledges it.
func (*hook) OnPublish(cl *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
	c := connOf(cl)
	if code := c.publish(pk); code != packets.CodeSuccess {
		c.refuse(pk, code)
		return pk, packets.ErrRejectPacket
	}
	return pk, packets.CodeSuccessIgnore // acknowledge it; the rest is done
}

// refuse answers a publication that is not carried out.
func (c *conn) refuse(pk packets.Packet, code packets.Code) {
	kind := puback
	if pk.FixedHeader.Qos == 2 {
		kind = pubrec
	}
	switch {
	case pk.FixedHeader.Qos == 0: // nobody waits for an answer
	case c.version == 5:
		_ = c.writeAck(kind, pk.PacketID, code.Code) // an error means that the connection ends
	case strings.HasPrefix(pk.TopicName, "$"):
		// Nobody can ever read these topics, so all who do have got the
		// message. Clients that try them would only come back.
		_ = c.writeAck(kind, pk.PacketID, 0)
	default:
		// 3.1.1 has no other word for no.
		c.shut(ending{reason: "a publication was refused: " + code.Reason})
	}
}

// OnSubscribe carries a subscription out. The engine gets none of its filters,
// so that it remembers nothing; OnPacketEncode puts the codes into its answer.
func (*hook) OnSubscribe(cl *mqtt.Client, pk packets.Packet) packets.Packet {
	c := connOf(cl)
	if c.busy(pk) {
		return pk
	}
	subs := make([]subscription, len(pk.Filters))
	for i, f := range pk.Filters {
		subs[i] = subscription{
			Filter: f.Filter, QoS: f.Qos, NoLocal: f.NoLocal, RetainAsPublished: f.RetainAsPublished,
			RetainHandling: f.RetainHandling, ID: uint32(f.Identifier),
		}
	}
	c.session.hold(true)
	c.subCodes = c.subscribe(subs)
	pk.Filters = nil
	return pk
}

// OnUnsubscribe is like OnSubscribe.
func (*hook) OnUnsubscribe(cl *mqtt.Client, pk packets.Packet) packets.Packet {
	c := connOf(cl)
	if c.busy(pk) {
		return pk
	}
	filters := make([]string, len(pk.Filters))
	for i, f := range pk.Filters {
		filters[i] = f.Filter
	}
	c.subCodes = c.unsubscribe(filters)
	pk.Filters = nil
	return pk
}

// busy says whether a packet's id belongs to a publication that is under way:
// the engine refuses the packet then.
func (c *conn) busy(pk packets.Packet) bool {
	c.subCodes = nil
	_, busy := c.cl.State.Inflight.Get(pk.PacketID)
	return busy
}

// OnPacketProcessed lets deliveries go on once SUBACK is written.
func (*hook) OnPacketProcessed(cl *mqtt.Client, pk packets.Packet, _ error) {
	if pk.FixedHeader.Type == packets.Subscribe {
		connOf(cl).session.hold(false)
	}
}

// OnPacketEncode mends what the engine says.
func (k *hook) OnPacketEncode(cl *mqtt.Client, pk packets.Packet) packets.Packet {
	c := connOf(cl)
	switch pk.FixedHeader.Type {
	case packets.Connack:
		pk.SessionPresent = c.present && pk.ReasonCode == 0
		if cl.Properties.ProtocolVersion < 5 || cl.Properties.ProtocolVersion > 5 {
			pk.ReasonCode = connack3(pk.ReasonCode)
		} else if pk.ReasonCode == 0 {
			pk.Properties.MaximumPacketSize = k.hub.engine.Options.Capabilities.MaximumPacketSize
		}
	case packets.Suback, packets.Unsuback:
		if len(pk.ReasonCodes) == 0 {
			pk.ReasonCodes = c.subCodes
		}
	case packets.Publish:
		// Request Problem Information is about everything else.
		pk.Mods.DisallowProblemInfo = false
	}
	return pk
}

// connack3 turns a reason of MQTT 5 into one of the five of 3.1.1.
func connack3(code byte) byte {
	switch code {
	case 0, 1, 2, 3, 4, 5:
		return code
	case packets.ErrProtocolViolationProtocolVersion.Code, packets.ErrUnsupportedProtocolVersion.Code:
		return 1
	case packets.ErrUnspecifiedError.Code, packets.ErrClientIdentifierNotValid.Code:
		return 2 // unspecified: no client id, and a session to keep
	case packets.ErrNotAuthorized.Code, packets.ErrTopicNameInvalid.Code, packets.ErrBadUsernameOrPassword.Code:
		return 5
	}
	return 3
}

// newMessage takes a publication over.
func (c *conn) newMessage(pk packets.Packet) *message {
	h := c.hub
	m := &message{
		topic: pk.TopicName, payload: pk.Payload, qos: pk.FixedHeader.Qos, retain: pk.FixedHeader.Retain,
		sender: sender{device: c.id.Name, id: c.id.ID, client: c.key, since: c.era},
		props:  propsOf(&pk.Properties),
	}
	if s := pk.Properties.MessageExpiryInterval; s > 0 {
		m.expires = h.cfg.Now().Add(time.Duration(s) * time.Second)
	}
	return m
}

func propsOf(p *packets.Properties) *props {
	q := props{format: p.PayloadFormat, hasFormat: p.PayloadFormatFlag, contentType: p.ContentType, responseTopic: p.ResponseTopic}
	if len(p.CorrelationData) > 0 {
		q.correlation = p.CorrelationData
	}
	for _, u := range p.User {
		q.user = append(q.user, pair{u.Key, u.Val})
	}
	if !q.hasFormat && q.contentType == "" && q.responseTopic == "" && q.correlation == nil && q.user == nil {
		return nil
	}
	return &q
}

// writePublish sends a delivery; fl is nil for QoS 0. errPacketTooLarge: the
// client does not want it. Other errors mean that the connection ends.
func (c *conn) writePublish(d delivery, fl *flight) error {
	m := d.m
	pk := packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: d.qos, Retain: d.retain, Dup: d.again && d.qos > 0},
		TopicName:   m.topic,
		Payload:     m.payload,
	}
	if fl != nil {
		pk.PacketID = fl.pid
	}
	if c.version == 5 {
		p := &pk.Properties
		if q := m.props; q != nil {
			p.PayloadFormat, p.PayloadFormatFlag = q.format, q.hasFormat
			p.ContentType, p.ResponseTopic, p.CorrelationData = q.contentType, q.responseTopic, q.correlation
			for _, u := range q.user {
				p.User = append(p.User, packets.UserProperty{Key: u.key, Val: u.value})
			}
		}
		if !m.expires.IsZero() {
			left := m.expires.Sub(c.hub.cfg.Now()) + time.Second - 1
			p.MessageExpiryInterval = uint32(max(1, left/time.Second))
		}
		for _, id := range d.ids {
			p.SubscriptionIdentifier = append(p.SubscriptionIdentifier, int(id))
		}
		if alias := c.aliases[m.topic]; alias > 0 {
			p.TopicAlias, p.TopicAliasFlag = alias, true
			pk.TopicName = ""
		} else if len(c.aliases) < c.maxAliases {
			p.TopicAlias, p.TopicAliasFlag = uint16(len(c.aliases)+1), true
		}
	}
	err := c.cl.WritePacket(pk)
	switch {
	case errors.Is(err, packets.ErrPacketTooLarge):
		return errPacketTooLarge
	case err == nil && pk.Properties.TopicAlias > 0 && pk.TopicName != "":
		if c.aliases == nil {
			c.aliases = make(map[string]uint16)
		}
		c.aliases[m.topic] = pk.Properties.TopicAlias // the client has seen it
	}
	return err
}

// writeAck sends a PUBACK, PUBREC or PUBREL.
func (c *conn) writeAck(kind byte, pid uint16, code byte) error {
	pk := packets.Packet{FixedHeader: packets.FixedHeader{Type: kind}, PacketID: pid, ReasonCode: code}
	if kind == pubrel {
		pk.FixedHeader.Qos = 1
	}
	return c.cl.WritePacket(pk)
}

// inboundFlights are the publications of QoS 2 that a client has not released.
func (c *conn) inboundFlights() (pks []packets.Packet) {
	for _, pk := range c.cl.State.Inflight.GetAll(false) {
		if pk.FixedHeader.Type == packets.Pubrec {
			pks = append(pks, pk)
		}
	}
	return pks
}
