package protocol

import (
	"net/netip"
	"time"
)

// Version is the protocol version that this code speaks.
const Version = 1

// ALPN names. Both answer only under the random server name that the join
// token carries (DESIGN §5).
const (
	ALPN     = "sallyport/1"      // the tunnel
	ALPNJoin = "sallyport-join/1" // one CSR exchange
)

// A MessageType is the byte that tells a control message's type.
type MessageType uint8

const (
	TypeHello      MessageType = 1  // agent → relay, first
	TypeWelcome    MessageType = 2  // relay → agent, answers Hello
	TypeRegister   MessageType = 3  // agent → relay, whole list, again on every change
	TypeRegistered MessageType = 4  // relay → agent, answers Register
	TypeGoAway     MessageType = 5  // either way
	TypePing       MessageType = 6  // either way
	TypePong       MessageType = 7  // answers Ping
	TypeRenew      MessageType = 8  // agent → relay: a new certificate for the same key
	TypeRenewed    MessageType = 9  // relay → agent, answers Renew
	TypeJoin       MessageType = 10 // agent → relay on ALPNJoin only
	TypeJoined     MessageType = 11 // relay → agent on ALPNJoin only
	TypeNames      MessageType = 12 // agent → relay: what the relay's DNS should know of the home
	TypeNamed      MessageType = 13 // relay → agent, answers Names
	TypeSetTXT     MessageType = 14 // agent → relay: a TXT record below a name of its own
	TypeTXTSet     MessageType = 15 // relay → agent, answers SetTXT
)

// A Message is one control message.
type Message interface{ Type() MessageType }

// Hello opens the control stream.
type Hello struct {
	Versions []int    `json:"versions"`           // protocol versions the agent speaks
	Features []string `json:"features,omitempty"` // optional abilities; unknown ones are ignored
	Instance string   `json:"instance"`           // random per process: tells a restart from a second copy
	Software string   `json:"software,omitempty"` // for people only
	// Alone says that no older session of this instance works any more: the
	// relay ends those it still holds, so that no visitor waits on them.
	Alone bool `json:"alone,omitempty"`
}

// Welcome answers Hello. A relay that cannot serve the agent closes the
// session with a Code instead.
type Welcome struct {
	Version  int       `json:"version"`            // the version both speak from here on
	Features []string  `json:"features,omitempty"` // what both have
	Name     string    `json:"name,omitempty"`     // how the relay calls this agent
	Domain   string    `json:"domain"`             // names are claimed below this
	Time     time.Time `json:"time"`               // the relay's clock, for agents that have none
	Software string    `json:"software,omitempty"`
}

// Features: names in Hello and Welcome. Each is also the service that the agent
// names in the Open of a stream to the relay's half of it; a relay that lacks
// the feature takes no such stream.
const (
	FeatureMQTT     = "mqtt"     // the link between the relay's hub and the home's bridge
	FeatureCommands = "commands" // what devices ask a home to do
	FeatureDevices  = "devices"  // the relay's device CA and its signed list of devices (DeviceFrame)
)

// Features without a stream: what the relay can do for a service or a name. An
// agent that asks a relay without it for such a thing is refused.
const (
	FeatureDNS      = "dns"       // the relay answers the zone's DNS: Names, SetTXT
	FeatureTLSAgent = "tls-agent" // services with TLSAgent
	FeaturePorts    = "ports"     // services with a Port, TCP and UDP
)

// MaxAgentStreams is how many streams an agent may have open to a relay that
// has one of the features, the control stream included. Without any it is 1.
const MaxAgentStreams = 9

// Protocols of a Service: what the relay speaks on its streams.
const (
	ProtoHTTP1 = "http1" // HTTP/1.1
	ProtoH2    = "h2"    // HTTP/2 with prior knowledge
	ProtoRaw   = "raw"   // bytes; the relay does not look inside
	ProtoUDP   = "udp"   // datagrams; only on a Port
)

// Values of Service.TLS: who terminates the visitor's TLS.
const (
	TLSRelay   = "relay"
	TLSBackend = "backend" // passed through unread by SNI
	TLSAgent   = "agent"   // the agent, with a key that never leaves the home
	TLSNone    = "none"    // nobody: bytes of a public Port as they come
)

// Values of Service.Auth: what the door asks of a visitor.
const (
	AuthRequire = "require" // no certificate, no handshake
	AuthAsk     = "ask"     // no certificate, a page that says so
	AuthNone    = "none"    // open to everybody
)

// A Service is one line of the agent's offer. The relay learns its name and
// how to speak to it, never its address.
type Service struct {
	Name  string `json:"name"`           // a DNS label: [a-z0-9-], at most 63 bytes, unique in the list
	Proto string `json:"proto"`          // ProtoHTTP1, ProtoH2 or ProtoRaw
	Host  string `json:"host,omitempty"` // wanted host, canonical, exact or "*.x"; empty: NAME.DOMAIN
	Path  string `json:"path,omitempty"` // "/prefix/" for a path route; empty: the whole host
	Auth  string `json:"auth,omitempty"` // empty: AuthRequire; with TLSBackend AuthNone, as the relay cannot ask
	TLS   string `json:"tls,omitempty"`  // empty: TLSRelay
	Solo  bool   `json:"solo,omitempty"` // one visitor connection per stream: never pool (PROXY protocol needs it)
	// Port is a public port of the relay of the service's own, TCP or, with
	// ProtoUDP, UDP. 0: none. The service then has no Host and no TLS, and its Auth
	// is AuthNone, spelled out. Only ports that the relay's owner granted.
	Port uint16 `json:"port,omitempty"`
	// RemoteUser asks the relay to name the visitor's device in Remote-User, for
	// services that sign in whom a proxy names so.
	RemoteUser bool `json:"remote_user,omitempty"`
}

// Register carries the whole list of services. What is not in it is withdrawn.
type Register struct {
	Seq      uint64    `json:"seq"` // counts up; Registered repeats it
	Services []Service `json:"services"`
}

// Registered answers one Register, service by service.
type Registered struct {
	Seq      uint64         `json:"seq"`
	Services []Registration `json:"services"`
}

// A Registration says how it went for one service.
type Registration struct {
	Name  string `json:"name"`
	URL   string `json:"url,omitempty"`   // accepted: where visitors go
	Error string `json:"error,omitempty"` // refused: why and what to do
	// Warning is about an accepted service that visitors cannot use as it is.
	Warning string `json:"warning,omitempty"`
}

// GoAway announces that the sender will end this session soon. The peer opens
// a new session first and lets old streams finish.
type GoAway struct {
	Code        Code          `json:"code"`
	Reason      string        `json:"reason,omitempty"`
	ReconnectIn time.Duration `json:"reconnect_in"` // nanoseconds; earliest redial
	TryFor      time.Duration `json:"try_for"`      // nanoseconds; retry this long without growing the back-off
}

// Ping asks for a Pong with the same Seq. Pad makes the whole message at
// least 64 bytes: a smaller packet cannot provoke a QUIC stateless reset
// (RFC 9000 §10.3), and a lost relay would go unnoticed for half a minute.
type Ping struct {
	Seq uint64 `json:"seq"`
	Pad string `json:"pad"`
}

// Pong answers Ping.
type Pong struct {
	Seq uint64 `json:"seq"`
	Pad string `json:"pad"`
}

// NewPing returns a Ping with its padding.
func NewPing(seq uint64) Ping { return Ping{Seq: seq, Pad: pingPad} }

const pingPad = "................................................................"

// Renew asks for a new certificate for the key of this session.
type Renew struct {
	CSR []byte `json:"csr"` // PKCS#10, DER
}

// Renewed answers Renew.
type Renewed struct {
	Cert  []byte `json:"cert,omitempty"` // DER
	Error string `json:"error,omitempty"`
}

// Join is the one request on ALPNJoin.
type Join struct {
	Secret string `json:"secret"`         // from the token
	CSR    []byte `json:"csr"`            // PKCS#10, DER; only its public key is used
	Name   string `json:"name,omitempty"` // how the owner may call the agent; a wish
}

// Joined is the one answer on ALPNJoin.
type Joined struct {
	Cert   []byte `json:"cert,omitempty"` // the agent's certificate, DER
	CA     []byte `json:"ca,omitempty"`   // the agent CA, DER; its SHA-256 is the token's fingerprint
	Name   string `json:"name,omitempty"`
	Domain string `json:"domain,omitempty"`
	// DeviceCA is the relay's device CA, DER: what an agent pins that lets the
	// relay's devices in at services whose TLS ends at home.
	DeviceCA []byte `json:"device_ca,omitempty"`
	Error    string `json:"error,omitempty"` // refused: why and what to do
}

// Names tells a relay with FeatureDNS what its zone should know of the home. It
// replaces what was told before, and holds until the agent is revoked.
type Names struct {
	Seq uint64 `json:"seq"` // counts up; Named repeats it
	// LAN are addresses of the agent on its own network, at most 16, for names
	// such as 192-168-1-7.HASH.DOMAIN. The relay takes private ones only
	// (RFC 1918, RFC 4193, RFC 3927, RFC 4291 link-local without a zone is refused).
	LAN []netip.Addr `json:"lan,omitempty"`
	// Split asks the relay to answer queries for the agent's own hosts with LAN
	// addresses when they come from the home's own public address.
	Split bool `json:"split,omitempty"`
	// Account is the agent's ACME account URI, and Issuers are the names that its
	// CA is known by in CAA records (RFC 8659, RFC 8657). Empty: no CAA.
	Account string   `json:"account,omitempty"`
	Issuers []string `json:"issuers,omitempty"` // at most 4
}

// Named answers Names.
type Named struct {
	Seq    uint64 `json:"seq"`
	Host   string `json:"host"`             // HASH.DOMAIN: the agent's own name
	Public string `json:"public,omitempty"` // the home's public address, as the relay sees it
	Error  string `json:"error,omitempty"`  // what of Names was not taken, and why
}

// SetTXT sets all values of one TXT record, which must be _acme-challenge below
// a host of the agent whose TLS ends at home, or below its own name. No values:
// the record goes. It goes by itself after an hour.
type SetTXT struct {
	Seq    uint64   `json:"seq"`
	Name   string   `json:"name"`             // canonical host with "_acme-challenge." before it
	Values []string `json:"values,omitempty"` // at most 8 of at most 255 bytes
}

// TXTSet answers SetTXT: the relay's DNS gives the new values from now on.
type TXTSet struct {
	Seq   uint64 `json:"seq"`
	Error string `json:"error,omitempty"` // refused: why
}

func (Hello) Type() MessageType      { return TypeHello }
func (Welcome) Type() MessageType    { return TypeWelcome }
func (Register) Type() MessageType   { return TypeRegister }
func (Registered) Type() MessageType { return TypeRegistered }
func (GoAway) Type() MessageType     { return TypeGoAway }
func (Ping) Type() MessageType       { return TypePing }
func (Pong) Type() MessageType       { return TypePong }
func (Renew) Type() MessageType      { return TypeRenew }
func (Renewed) Type() MessageType    { return TypeRenewed }
func (Join) Type() MessageType       { return TypeJoin }
func (Joined) Type() MessageType     { return TypeJoined }
func (Names) Type() MessageType      { return TypeNames }
func (Named) Type() MessageType      { return TypeNamed }
func (SetTXT) Type() MessageType     { return TypeSetTXT }
func (TXTSet) Type() MessageType     { return TypeTXTSet }
