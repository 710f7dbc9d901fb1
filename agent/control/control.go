// Package control is how a person's command reaches a running agent: HTTP with
// JSON on the unix socket agent.sock in the data directory.
//
//	POST /v1/expose    Service  → Exposed
//	POST /v1/unexpose  {"name"} → {}
//	GET  /v1/status             → Status
//	GET  /v1/keys               → []Key
//	POST /v1/trust     {"device", "id"} → {}
//	POST /v1/untrust   {"device"} → {}
//	POST /v1/pin       {"action", "pin"} → {}
//	GET  /v1/found              → []Suggestion
//	POST /v1/confirm-ca {"fingerprint"} → {}
//	     everything else        the devices of the home's own CA, if it has one:
//	                            what the relay's socket has for devices
//
// An error is {"error", "kind"}. The socket has mode 0600 in a directory of
// mode 0700: who may open it may run the agent.
package control

import (
	"context"
	"net/http"
	"time"
)

// SocketName is the socket's name in the data directory.
const SocketName = "agent.sock"

// Schema is the version of the JSON of Status.
const Schema = 1

// An Agent is what the socket speaks for. Its methods are called concurrently.
// An error that is an *Error keeps its Kind on the way to the client.
type Agent interface {
	// Expose adds a service, or replaces the exposed one of that name. It
	// waits a moment for the relay's word. A refused service is not kept.
	Expose(ctx context.Context, s Service) (Exposed, error)
	// Unexpose removes an exposed service.
	Unexpose(ctx context.Context, name string) error
	Status() Status

	// Keys lists the signing keys of devices: trusted ones and those that wait.
	Keys(ctx context.Context) ([]Key, error)
	// Trust lets a device's commands run from now on. ID is the key's, as Keys
	// told it when a person compared the words.
	Trust(ctx context.Context, device, id string) error
	// Untrust takes that back.
	Untrust(ctx context.Context, device string) error
	// SetPIN sets the PIN of an action, or with an empty action that of all that
	// have none of their own. An empty PIN removes it.
	SetPIN(ctx context.Context, action, pin string) error
	// ConfirmCA takes another device CA of the relay, or an older list of its
	// devices, that were refused: a person at home has compared the fingerprint.
	ConfirmCA(ctx context.Context, fingerprint string) error
	// Devices serves the owner's commands about devices of the home's own CA; nil:
	// the home keeps none. Its paths are those of the relay's socket.
	Devices() http.Handler
	// Found lists what the home broker announces that could become actions.
	Found(ctx context.Context) ([]Suggestion, error)
}

// A Key is what a device signs its commands with.
type Key struct {
	ID      string    `json:"id"`
	Device  string    `json:"device"`
	Trusted bool      `json:"trusted"`
	Words   string    `json:"words"` // the device shows the same
	Since   time.Time `json:"since"`
	Seen    time.Time `json:"seen,omitzero"` // last command
	// Withdrawn is when the relay revoked the device, and its trust here with that;
	// zero: it did not.
	Withdrawn time.Time `json:"withdrawn,omitzero"`
}

// A Suggestion is a thing at home that could become an action.
type Suggestion struct {
	Name  string `json:"name"`
	Label string `json:"label"`
	YAML  string `json:"yaml"` // the entry below actions: of agent.yaml
}

// MQTT is the state of the bridge to the home broker.
type MQTT struct {
	Broker          string `json:"broker"` // its address
	BrokerConnected bool   `json:"broker_connected"`
	Link            bool   `json:"link"`                  // to the relay's hub
	Error           string `json:"error,omitempty"`       // why the broker is away
	LinkError       string `json:"link_error,omitempty"`  // why the link to the hub is away
	QueueError      string `json:"queue_error,omitempty"` // why nothing can be kept for the relay
	Rules           int    `json:"rules"`
	Queued          int    `json:"queued"` // messages for the relay, on disk
	QueuedBytes     int64  `json:"queued_bytes"`
	In              uint64 `json:"in"`
	Out             uint64 `json:"out"`
	Dropped         uint64 `json:"dropped"`
}

// An Action is one action as it stands.
type Action struct {
	Name    string    `json:"name"`
	Label   string    `json:"label"`
	Topic   string    `json:"topic"`
	Confirm string    `json:"confirm"`
	Problem string    `json:"problem,omitempty"` // why it cannot run now
	State   string    `json:"state,omitempty"`   // value of its state topic
	LastBy  string    `json:"last_by,omitempty"` // device
	LastAt  time.Time `json:"last_at,omitzero"`
}

// A Service is an exposed service as it travels and as it is stored.
type Service struct {
	Name               string `json:"name"`
	Target             string `json:"target"`
	Host               string `json:"host,omitempty"`
	Path               string `json:"path,omitempty"`
	Auth               string `json:"auth,omitempty"`
	TLS                string `json:"tls,omitempty"`
	Port               uint16 `json:"port,omitempty"`
	InsecureSkipVerify bool   `json:"insecure_skip_verify,omitempty"`
	ServerName         string `json:"server_name,omitempty"`
	CAFile             string `json:"ca_file,omitempty"`
	ClientCert         string `json:"client_cert,omitempty"`
	ClientKey          string `json:"client_key,omitempty"`
	HTTP2              bool   `json:"http2,omitempty"`
	ProxyProtocol      bool   `json:"proxy_protocol,omitempty"`
	RemoteUser         bool   `json:"remote_user,omitempty"`
}

// Exposed answers Expose.
type Exposed struct {
	Name string `json:"name"`
	// URL is where visitors go. Empty when the relay has not answered yet: the
	// service is kept and registered as soon as the relay is reached.
	URL string `json:"url,omitempty"`
	// Warning is the relay's: visitors cannot use the service as it is.
	Warning string `json:"warning,omitempty"`
	// Replaced is the target that the name had until now; empty: it is new.
	Replaced string `json:"replaced,omitempty"`
	// Before is all that was said of it until now, for undoing; nil: it is new.
	Before *Service `json:"before,omitempty"`
}

// Status is the agent's state for people and scripts.
type Status struct {
	Schema   int       `json:"schema"` // Schema
	ID       string    `json:"id,omitempty"`
	Name     string    `json:"name,omitempty"`
	Relay    string    `json:"relay,omitempty"`
	Domain   string    `json:"domain,omitempty"`
	Software string    `json:"software,omitempty"`
	State    string    `json:"state"` // joining, connecting, waiting, connected, stopped
	Since    time.Time `json:"since,omitzero"`
	Link     *Link     `json:"link,omitempty"` // when connected
	NextTry  time.Time `json:"next_try,omitzero"`
	Demoted  string    `json:"demoted,omitempty"` // a transport that stalls here …
	Until    time.Time `json:"demoted_until,omitzero"`
	Error    string    `json:"last_error,omitempty"`
	ErrorAt  time.Time `json:"last_error_at,omitzero"`
	CertEnds time.Time `json:"certificate_until,omitzero"`
	// Warnings are what somebody should look after, a sentence each: a clock
	// that is wrong, a certificate that is not renewed.
	Warnings []string        `json:"warnings,omitempty"`
	Services []ServiceStatus `json:"services"`
	MQTT     *MQTT           `json:"mqtt,omitempty"`
	Actions  []Action        `json:"actions,omitempty"`
	EndToEnd *EndToEnd       `json:"end_to_end,omitempty"`
}

// EndToEnd is the state of what serves TLS at home.
type EndToEnd struct {
	Own          string        `json:"own"`            // HASH.DOMAIN
	Root         string        `json:"root,omitempty"` // PEM: the CA at home that every visitor must trust; empty: public certificates
	DeviceCA     string        `json:"device_ca"`      // "home" or "relay"
	Certificates []Certificate `json:"certificates,omitempty"`
	LAN          []string      `json:"lan,omitempty"` // URLs on the home network
	List         *DeviceList   `json:"device_list,omitempty"`
}

// A Certificate is one that the home holds.
type Certificate struct {
	Host     string    `json:"host"`
	State    string    `json:"state"`
	Issuer   string    `json:"issuer,omitempty"`
	NotAfter time.Time `json:"not_after,omitzero"`
	Next     time.Time `json:"next,omitzero"` // renewal, or the next try
	Problem  string    `json:"problem,omitempty"`
	Fix      string    `json:"fix,omitempty"`
}

// A DeviceList is the relay's list of devices as it is in force here.
type DeviceList struct {
	Number  uint64    `json:"number"`
	Issued  time.Time `json:"issued,omitzero"`
	Devices int       `json:"devices"`
	Stale   bool      `json:"stale,omitempty"`
	CA      string    `json:"ca,omitempty"`      // fingerprint of the pinned CA
	Pending string    `json:"pending,omitempty"` // fingerprint of one that waits for confirmation
	Problem string    `json:"problem,omitempty"`
}

// A Link is the session to the relay.
type Link struct {
	Transport string  `json:"transport"`
	Addr      string  `json:"addr"`
	RTT       float64 `json:"rtt_ms"`
	Streams   int     `json:"streams"`
	Draining  int     `json:"draining,omitempty"` // older sessions
	BytesIn   uint64  `json:"bytes_in"`
	BytesOut  uint64  `json:"bytes_out"`
}

// A ServiceStatus is one offered service.
type ServiceStatus struct {
	Name    string `json:"name"`
	Target  string `json:"target"`
	Origin  string `json:"origin"`            // config; flag (wins over config for this run); exposed
	Auth    string `json:"auth,omitempty"`    // what the door asks for
	TLS     string `json:"tls,omitempty"`     // who ends the visitor's TLS
	Reader  string `json:"reader,omitempty"`  // who can read what is said: "relay", "end to end", …
	URL     string `json:"url,omitempty"`     // the relay accepted it
	Error   string `json:"error,omitempty"`   // the relay refused it
	Warning string `json:"warning,omitempty"` // the relay accepted it, but visitors cannot use it as it is
}

// Kinds of Error, which decide the exit code of a command.
const (
	KindInvalid  = "invalid"  // the request is wrong: usage
	KindRefused  = "refused"  // the relay or the agent says no
	KindInternal = "internal" // the agent failed
)

// An Error is a failure with its kind. The text may have a second line that
// says what to do.
type Error struct {
	Kind string `json:"kind"`
	Text string `json:"error"`
}

func (e *Error) Error() string { return e.Text }
