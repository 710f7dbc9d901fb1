package lan

import (
	"context"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/sallyport/sallyport/protocol/names"
)

// WellKnown is the prefix of the paths that Helper serves.
const WellKnown = "/.well-known/sallyport/"

// Defaults of Config.
const (
	DefaultListen   = ":8443"
	defaultMaxConns = 512
)

// Config is what New needs. Own and Serve are required.
type Config struct {
	// Listen is the TCP address. Default DefaultListen. With an address before
	// the port only that one is told of.
	Listen string
	// Serve is the agent's door. It owns c and returns when c has ended; the end
	// of ctx must end it. c has Settled, which the door calls after the
	// handshake.
	Serve func(ctx context.Context, c net.Conn)
	// Own is HASH.DOMAIN, canonical.
	Own string
	// Port stands in public URLs (":8443"); "" for 443.
	Port string
	// Ours reports whether a canonical host is one of this agent's sites: their
	// pages may ask whether we are here. Nil: none may.
	Ours func(host string) bool
	// Open lets addresses connect that are not of a home network: other
	// networks of a VPN, or IPv6 without private addresses.
	Open bool
	// MaxConns is how many connections may be open; one address may have half
	// of them. Default 512.
	MaxConns int

	// Announce tells the home network by multicast DNS.
	Announce bool
	// Name is the instance there and the name in lan.json: a DNS label. Default
	// "sallyport-" and a digest of Own.
	Name string

	// Changed is told which addresses we have on the home network, at the start
	// of Run and whenever they change; none while the port cannot be opened. One
	// call at a time. Nil: nobody asks.
	Changed func([]netip.Addr)
	// Addrs gives the addresses that this machine has on the home network.
	// Nil: the private ones of its interfaces, without those of containers,
	// virtual machines and VPNs.
	Addrs func() []netip.Addr
	// ListenTCP replaces net.Listen, in tests.
	ListenTCP func(addr string) (net.Listener, error)
	Logger    *slog.Logger // nil: no logs
}

func (c *Config) fill() {
	if c.Listen == "" {
		c.Listen = DefaultListen
	}
	if c.Ours == nil {
		c.Ours = func(string) bool { return false }
	}
	if c.MaxConns == 0 {
		c.MaxConns = defaultMaxConns
	}
	if c.Name == "" {
		c.Name = instanceName(c.Own)
	}
	if c.Changed == nil {
		c.Changed = func([]netip.Addr) {}
	}
	if c.Addrs == nil {
		c.Addrs = homeAddrs
	}
	if c.ListenTCP == nil {
		c.ListenTCP = func(addr string) (net.Listener, error) { return net.Listen("tcp", addr) }
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
}

func (c *Config) check() error {
	if c.Serve == nil {
		return errors.New("the door on the home network: there is nobody to serve")
	}
	if own, err := names.Canonical(c.Own); err != nil {
		return fmt.Errorf("the door on the home network: the agent's own name: %w", err)
	} else if own != c.Own {
		return fmt.Errorf("the door on the home network: %q is not in canonical form, which is %q", c.Own, own)
	}
	if _, err := listenAddr(c.Listen); err != nil {
		return err
	}
	if c.MaxConns < 2 {
		return fmt.Errorf("the door on the home network: at most %d connections: give 2 or more, or 0 for %d", c.MaxConns, defaultMaxConns)
	}
	if len(c.Name) > 63 || strings.Trim(strings.ToLower(c.Name), "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		return fmt.Errorf("the door on the home network: %q cannot be announced\nUse at most 63 letters, digits and hyphens.", c.Name)
	}
	return nil
}

// listenAddr returns the address that Listen names; the zero Addr is all.
func listenAddr(listen string) (netip.Addr, error) {
	bad := func(why string) error {
		return fmt.Errorf("the door on the home network: cannot listen on %q: %s\nUse :8443, or ADDRESS:PORT with an address of this machine.", listen, why)
	}
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return netip.Addr{}, bad("that is no ADDRESS:PORT")
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return netip.Addr{}, bad("the port is no number from 0 to 65535")
	}
	if host == "" {
		return netip.Addr{}, nil
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return netip.Addr{}, bad("the address is no IP address")
	}
	return addr.Unmap(), nil
}

// instanceName is a digest of HASH.DOMAIN: who knows that name can tell ours
// from a neighbour's, and nobody can find the name from it.
func instanceName(own string) string {
	sum := sha256.Sum256([]byte("sallyport lan instance\x00" + own))
	return "sallyport-" + strings.ToLower(base32.StdEncoding.EncodeToString(sum[:5]))
}
