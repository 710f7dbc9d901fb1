package admin

import "time"

// Status is how the relay is.
type Status struct {
	Version  string    `json:"version"`
	Domain   string    `json:"domain"`
	Started  time.Time `json:"started"`
	Listen   []string  `json:"listen"`          // addresses, TCP and UDP
	HTTP     string    `json:"http,omitempty"`  // address of the redirect; empty: off
	Certs    string    `json:"certs,omitempty"` // where public certificates come from
	Data     string    `json:"data,omitempty"`  // the data directory
	Decoy    string    `json:"decoy,omitempty"`
	Visitors int       `json:"visitors"` // connections open now
	Devices  int       `json:"devices"`  // not revoked, not expired
	Agents   []Agent   `json:"agents"`
	Hosts    []Host    `json:"hosts"`
	Warnings []string  `json:"warnings,omitempty"` // what the owner should look at, one sentence each
	MQTT     *MQTT     `json:"mqtt,omitempty"`     // nil: switched off
	DNS      *DNS      `json:"dns,omitempty"`      // nil: the relay answers no DNS
	ECH      *ECH      `json:"ech,omitempty"`      // nil: no Encrypted ClientHello
	Ports    []Port    `json:"ports,omitempty"`    // public ports of services, ordered
}

// MQTT is the state of the hub and of commands.
type MQTT struct {
	Listen      string   `json:"listen,omitempty"` // the hub's own port, beside the public one
	Connections int      `json:"connections"`      // of devices
	Homes       []string `json:"homes"`            // agents whose bridge is joined to the hub
	Commanded   int      `json:"commanded"`        // agents that take commands now
	Waiting     int      `json:"waiting"`          // messages on disk, for homes and devices that are away
	Bytes       int64    `json:"bytes"`            // of those
	Dropped     uint64   `json:"dropped"`          // messages that were too old or had to make room
	Open        int      `json:"open_commands"`    // that have not ended
	Untold      int      `json:"untold,omitempty"` // revoked devices that a home which is away still trusts
}

// A TokenRequest asks for a join token.
type TokenRequest struct {
	Hosts   []string `json:"hosts,omitempty"`       // patterns the agent may claim
	Ports   []string `json:"ports,omitempty"`       // public ports it may use: "2222", "51820/udp"
	TTL     int64    `json:"ttl_seconds,omitempty"` // 0: the relay's default
	Foreign bool     `json:"foreign,omitempty"`     // allow patterns outside the relay's domain
}

// A Token is a join token, shown once.
type Token struct {
	Token   string    `json:"token"`
	Expires time.Time `json:"expires"`
	Hosts   []string  `json:"hosts,omitempty"`
}

// CA holds the relay's own roots, PEM. Empty: the relay has none of that kind.
type CA struct {
	Server string `json:"server,omitempty"` // of --certs internal: visitors must trust it
	Device string `json:"device,omitempty"`
	Agent  string `json:"agent,omitempty"`
}

// A DeviceRequest asks for a device certificate. The key stays with the asker.
type DeviceRequest struct {
	Name  string    `json:"name"`
	CSR   []byte    `json:"csr"`             // PKCS#10, DER; only its public key is used
	Hosts []string  `json:"hosts,omitempty"` // patterns; empty: all hosts
	Until time.Time `json:"until,omitzero"`  // zero: the relay's default lifetime
	Admin bool      `json:"admin,omitempty"` // may open the dashboard at admin.DOMAIN
}

// An IssuedDevice is the answer to a DeviceRequest.
type IssuedDevice struct {
	Device Device `json:"device"`
	Cert   []byte `json:"cert"` // DER
	CA     []byte `json:"ca"`   // the device CA, DER
}

// An Agent is a home.
type Agent struct {
	ID        string    `json:"id"`
	Name      string    `json:"name"`
	Online    bool      `json:"online"`
	Since     time.Time `json:"since,omitzero"`     // online or offline since
	Allowed   []string  `json:"allowed,omitempty"`  // patterns it may claim; empty: all below the domain
	Ports     []string  `json:"ports,omitempty"`    // public ports it may use: "2222", "51820/udp"
	Hosts     []string  `json:"hosts,omitempty"`    // that it holds
	Sessions  []Session `json:"sessions,omitempty"` // newest first
	Streams   int       `json:"streams"`            // open now
	Opened    uint64    `json:"opened"`             // since the relay started
	BytesIn   uint64    `json:"bytes_in"`           // from home, since the relay started
	BytesOut  uint64    `json:"bytes_out"`
	Joined    time.Time `json:"joined"`
	Conflict  time.Time `json:"conflict,omitzero"` // two live instances were seen then
	Revoked   bool      `json:"revoked"`
	RevokedAt time.Time `json:"revoked_at,omitzero"`
}

// A Session is one tunnel of an agent.
type Session struct {
	Transport string    `json:"transport"`
	Addr      string    `json:"addr,omitempty"`
	Instance  string    `json:"instance,omitempty"`
	Since     time.Time `json:"since"`
	RTTMillis float64   `json:"rtt_ms,omitzero"`
	Streams   int       `json:"streams"`
	Draining  bool      `json:"draining,omitzero"`
}

// A Host is a public name that an agent holds.
type Host struct {
	Host     string        `json:"host"`
	Agent    string        `json:"agent"` // its name
	Online   bool          `json:"online"`
	Since    time.Time     `json:"since"`    // when it was claimed
	Services []HostService `json:"services"` // empty: withdrawn, but still held
}

// A HostService is one service on a Host.
type HostService struct {
	Name  string `json:"name"`
	Path  string `json:"path,omitempty"`
	URL   string `json:"url"`
	Proto string `json:"proto"`
	Auth  string `json:"auth"`
	TLS   string `json:"tls"`
	// Reader is who can read what visitors say: ReaderRelay or ReaderEndToEnd.
	Reader string `json:"reader,omitempty"`
}

// Reloaded says what a reload did.
type Reloaded struct {
	Changed []string `json:"changed,omitempty"` // one sentence each; empty: nothing was new
}

type (
	deviceList struct {
		Devices []Device `json:"devices"`
	}
	agentList struct {
		Agents []Agent `json:"agents"`
	}
	hostList struct {
		Hosts []Host `json:"hosts"`
	}
)
