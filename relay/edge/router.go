package edge

import (
	"slices"
	"sync/atomic"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/names"
)

const (
	alpnACME = "acme-tls/1" // the challenge protocol of RFC 8737
	alpnMQTT = "mqtt"       // MQTT in TLS, IANA
)

// A Snapshot is all routes at one moment. It is never changed after Swap.
type Snapshot struct {
	// Hosts are the claimed hosts. Nil: none.
	Hosts *names.Table[Target]
	// TunnelName is the random server name of the join token, canonical, and
	// Tunnel and Join are what ALPN sallyport/1 and sallyport-join/1 reach
	// under it and under no other name. Empty or nil: nobody reaches them.
	TunnelName   string
	Tunnel, Join Target
	// ACME answers challenges of RFC 8737 for Hosts whose TLS ends here: those
	// that ask for acme-tls/1 and for nothing beside it. Hosts whose TLS ends at
	// home get theirs forwarded. Nil: nobody answers. See Challenge.
	ACME Target
	// MQTTName is the only one of the Hosts whose TLS ends here that speaks ALPN
	// "mqtt": elsewhere whoever asks for it is a stranger, so that no web page's
	// client certificate opens an MQTT session, nor the other way round
	// (ALPACA). Empty: none does.
	MQTTName string
	// Default takes every stranger. Nil: Refuse.
	Default Target
}

// A Router chooses a Target for a hello. It is safe for concurrent use and
// never blocks.
type Router struct{ now atomic.Pointer[Snapshot] }

// NewRouter returns a router without routes: everybody is a stranger.
func NewRouter() *Router { return new(Router) }

// Swap replaces all routes at once. Connections that were routed before keep
// their target.
func (r *Router) Swap(s *Snapshot) { r.now.Store(s) }

// Match returns the target of a hello, never nil. All hellos that name nothing
// that exists here meet the same one: a scanner learns nothing from the
// difference between no name, a wrong name, and the right name with the wrong
// protocol.
func (r *Router) Match(h Hello) Target {
	s := r.now.Load()
	if s == nil {
		return Refuse{}
	}
	if t := s.find(h); t != nil {
		return t
	}
	if s.Default == nil {
		return Refuse{}
	}
	return s.Default
}

// find returns nil for strangers.
func (s *Snapshot) find(h Hello) Target {
	if h.ServerName == "" {
		return nil
	}
	// The tunnel answers to its name and its protocol together, and to nothing
	// that only has one of the two or asks for something else beside it.
	if h.ServerName == s.TunnelName {
		switch {
		case len(h.ALPN) != 1:
			return nil
		case h.ALPN[0] == protocol.ALPN:
			return s.Tunnel
		case h.ALPN[0] == protocol.ALPNJoin:
			return s.Join
		}
		return nil
	}
	if slices.Contains(h.ALPN, protocol.ALPN) || slices.Contains(h.ALPN, protocol.ALPNJoin) {
		return nil
	}
	if s.Hosts == nil {
		return nil
	}
	t, ok := s.Hosts.Lookup(h.ServerName)
	if !ok || t == nil {
		return nil
	}
	if slices.Contains(h.ALPN, alpnMQTT) && h.ServerName != s.MQTTName && !forwardsACME(t) {
		return nil
	}
	if slices.Contains(h.ALPN, alpnACME) && !forwardsACME(t) {
		// A visitor that asks for more could be served as one, under a
		// certificate that is none.
		if len(h.ALPN) != 1 {
			return nil
		}
		return s.ACME
	}
	return t
}
