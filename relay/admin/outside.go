package admin

import (
	"context"
	"net/http"
	"time"
)

// Values of HostService.Reader: who can read what visitors say.
const (
	ReaderRelay    = "relay"      // its door ends their TLS
	ReaderEndToEnd = "end to end" // their TLS ends at home. Whether the relay could still let a device in is known there
)

// ReaderOf is the Reader of a service by who ends the TLS of its visitors.
func ReaderOf(tls string) string {
	if tls == "agent" || tls == "backend" {
		return ReaderEndToEnd
	}
	return ReaderRelay
}

// WhoReads is Reader, also of a relay that does not tell it.
func (s HostService) WhoReads() string {
	if s.Reader != "" {
		return s.Reader
	}
	return ReaderOf(s.TLS)
}

// DNS is the relay as the authoritative server of its domain.
type DNS struct {
	Zone      string   `json:"zone"`
	Listen    string   `json:"listen,omitempty"` // address, UDP and TCP
	NS        []string `json:"ns"`               // its names, as set at the registrar
	Addresses []string `json:"addresses"`        // the relay's, as the zone tells them
	Serial    uint32   `json:"serial"`
	Questions uint64   `json:"questions"` // since the relay started
	Refused   uint64   `json:"refused"`   // other zones, transfers
	Limited   uint64   `json:"limited"`   // over the limit, not answered
}

// ECH is the state of Encrypted ClientHello.
type ECH struct {
	PublicName string    `json:"public_name"` // the name that everybody on the way sees
	Made       time.Time `json:"made"`        // the published key
	Next       time.Time `json:"next"`        // when another one takes its place
	Kept       int       `json:"kept"`        // keys that still open hellos
}

// A Port is a public port of a service's own.
type Port struct {
	Port    string `json:"port"`  // "2222/tcp", "51820/udp"
	Agent   string `json:"agent"` // its name
	Service string `json:"service"`
	Open    int    `json:"open"`            // connections, or flows of UDP, now
	Error   string `json:"error,omitempty"` // why nobody is let in; empty: the port is open
	Bytes   uint64 `json:"bytes"`           // both ways, since the port was opened
	Refused uint64 `json:"refused"`         // visitors turned away because there were too many
	Dropped uint64 `json:"dropped"`         // UDP packets that went nowhere
}

// A GrantRequest changes what an agent may do. What it has without a grant from
// then on ends at once.
type GrantRequest struct {
	Agent   string    `json:"agent"`             // name or ID
	Hosts   *[]string `json:"hosts,omitempty"`   // the patterns it may claim; nil: as they are; never empty
	Ports   *[]string `json:"ports,omitempty"`   // the public ports it may use; nil: as they are; empty: none
	Foreign bool      `json:"foreign,omitempty"` // allow patterns outside the relay's domain
}

// Grant changes what an agent may claim.
func (c *Client) Grant(ctx context.Context, q GrantRequest) (Agent, error) {
	// JSON's null would mean "as they are", and not "none".
	for _, l := range []**[]string{&q.Hosts, &q.Ports} {
		if *l != nil && **l == nil {
			*l = &[]string{}
		}
	}
	return call[Agent](ctx, c, http.MethodPost, "/v1/grants", q)
}
