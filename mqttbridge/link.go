package mqttbridge

import (
	"encoding/binary"
	"time"
)

// LinkVersion is the version of the link that this package speaks. It is not
// MQTT: a broker's session loses messages where a queue on each side and
// acknowledged numbers do not.
//
// The stream "mqtt", which the agent opens to the relay, carries packets in both
// directions:
//
//	length   uvarint       of what follows; at most maxLinkPublish, maxLinkHello, or 11, by kind
//	kind     1 byte        LinkKind
//	fields   length-1 bytes:
//
//	LinkHello    agent → hub, first    JSON of LinkHello; again when its rules change
//	LinkWelcome  hub → agent, first    JSON of LinkWelcome
//	LinkPublish  both ways
//	    flags    1 byte    bits 0–1 QoS (0–2), 2 retain, 3 sync, 4 dup, 5 a ttl follows; 6–7 are 0
//	    seq      uvarint   0: not acknowledged
//	    ttl      uvarint   only with bit 5: milliseconds, from 1
//	    topic    uvarint, then that many bytes (1–MaxTopic), relative to home/<agent>/
//	    payload  the rest, at most MaxPayload
//	LinkAck      both ways             seq uvarint: everything up to it is on disk at the other end
//	LinkSynced   agent → hub           seq uvarint, 0: the retained snapshot is complete
//	LinkPing     both ways             seq uvarint, comes back in LinkPong
//	LinkPong     both ways             seq uvarint
//
// A uvarint is encoding/binary's, in its shortest form. Version 1 is the first.
const LinkVersion = 1

// A LinkKind is the second field of a packet on the link.
type LinkKind byte

// Kinds of packets. Their numbers are the wire's.
const (
	LinkHelloKind   LinkKind = 1 // field Hello
	LinkWelcomeKind LinkKind = 2 // field Welcome
	LinkPublish     LinkKind = 3 // field Message
	LinkAck         LinkKind = 4 // field Seq
	LinkSynced      LinkKind = 5 // field Seq, 0 for now
	LinkPing        LinkKind = 6 // field Seq
	LinkPong        LinkKind = 7 // field Seq
)

const (
	maxLinkPublish = 1 + 1 + binary.MaxVarintLen64*2 + 2 + MaxTopic + MaxPayload
	maxLinkHello   = 260 << 10
	maxLinkNumber  = 1 + binary.MaxVarintLen64
)

// LinkHello is the agent's first packet, and comes again when its rules change.
// Filters lie below home/<agent>/ and do not name it.
type LinkHello struct {
	Version int          `json:"v"`
	Stream  string       `json:"stream"`          // random name of the agent's durable queue: LinkMessage.Seq counts in it, and starts anew with another
	In      []LinkFilter `json:"in,omitempty"`    // what the hub keeps for the agent, also while it is away
	Out     []string     `json:"out,omitempty"`   // what the agent publishes
	Epoch   string       `json:"epoch,omitempty"` // of the hub's retained state that the agent last completed a sync with
}

// A LinkFilter is the hub's side of a rule that comes in.
type LinkFilter struct {
	Filter     string        `json:"filter"` // relative to home/<agent>/
	QoS        byte          `json:"qos"`
	DropOldest bool          `json:"drop_oldest,omitempty"` // as Rule.DropOldest
	MaxAge     time.Duration `json:"max_age,omitempty"`     // as Rule.MaxAge, nanoseconds
}

// LinkWelcome is the hub's first packet.
type LinkWelcome struct {
	Version int    `json:"v"`
	Agent   string `json:"agent"`             // the agent's name at the relay
	Prefix  string `json:"prefix"`            // "home/<agent>/"
	Epoch   string `json:"epoch"`             // random, one for each start of the hub, whose retained state is in memory
	Last    uint64 `json:"last"`              // newest LinkMessage.Seq of LinkHello.Stream that the hub has on disk, 0 for a new stream; the hub acknowledges up to it without delivering again
	Problem string `json:"problem,omitempty"` // why the hub ends the link, to people
}

// A LinkMessage is one message on the link.
type LinkMessage struct {
	Seq     uint64        // of the sender's durable queue, rising; 0: QoS 0, not acknowledged
	Topic   string        // relative to home/<agent>/, see CheckTopic
	Payload []byte        // at most MaxPayload; nil when empty
	QoS     byte          // 0 to 2
	Retain  bool          // as it was published
	Sync    bool          // part of a retained snapshot
	Dup     bool          // was on its way before
	TTL     time.Duration // remaining life, whole milliseconds on the wire, rounded up; 0: no end
}

// A LinkPacket is one packet; which field counts depends on Kind.
type LinkPacket struct {
	Kind    LinkKind
	Hello   *LinkHello
	Welcome *LinkWelcome
	Message LinkMessage
	Seq     uint64
}
