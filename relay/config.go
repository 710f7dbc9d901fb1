package relay

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/sallyport/sallyport/protocol/names"
	"github.com/sallyport/sallyport/relay/certs"
	"github.com/sallyport/sallyport/relay/store"
)

// Where public certificates come from (Config.Certs).
const (
	CertsInternal = "internal" // an internal CA, made at first start
	CertsFiles    = "files"    // PEM files, reloaded when they change
)

// Values of Config.Decoy besides "tcp://HOST:PORT".
const (
	DecoyOff  = "off"
	DecoyPage = "page"
)

// Config is what a relay needs to know. The zero value of every field but
// DataDir, Domain and Store is usable.
type Config struct {
	DataDir string   // state directory, mode 0700; required
	Domain  string   // homes claim their names below it; required
	Store   store.KV // what survives a restart; required; closed by its owner after Run

	Listen     string       // TCP and UDP address; default ":443"
	HTTP       string       // address that redirects to HTTPS, or "off"; default ":80"
	Address    string       // host:port that agents dial; default relay.DOMAIN and the port of Listen, or Listen itself when that names one address
	PublicPort int          // the port in visitors' URLs; default the port of Listen
	Certs      string       // CertsInternal or CertsFiles; default CertsInternal
	CertFiles  []certs.Pair // with CertsFiles: at least one pair
	Decoy      string       // "tcp://HOST:PORT", DecoyPage, or DecoyOff; default DecoyOff
	Replicas   int          // live instances of one agent key that share its streams; default 1
	Software   string       // version, for people

	Logger *slog.Logger // default: none

	// Seams for tests; nil means the real thing.
	ListenTCP func(addr string) (net.Listener, error)
	ListenUDP func(addr string) (net.PacketConn, error)
	Now       func() time.Time
	// ListenAdmin makes the owner's socket.
	ListenAdmin func() (net.Listener, error)
}

// Problem is one thing wrong with a Config: the key as the configuration file
// spells it, and what to do.
type Problem struct{ Key, Message string }

// Check returns everything that is wrong with the configuration as far as can
// be told without opening a file or a socket.
func (c Config) Check() []Problem {
	var ps []Problem
	bad := func(key, format string, args ...any) {
		ps = append(ps, Problem{key, fmt.Sprintf(format, args...)})
	}
	if c.DataDir == "" {
		bad("data", "no state directory; give --data DIR")
	}
	if c.Domain == "" {
		bad("domain", "no domain; give --domain example.org")
	} else if _, err := names.Canonical(c.Domain); err != nil {
		bad("domain", "%q is not a host name: %v", c.Domain, err)
	}
	if err := checkAddr(c.listen()); err != nil {
		bad("listen", "%v", err)
	}
	if c.http() != "off" {
		if err := checkAddr(c.http()); err != nil {
			bad("http", "%v; or off", err)
		}
	}
	if c.Address != "" {
		if host, port, err := net.SplitHostPort(c.Address); err != nil || host == "" || port == "" || port == "0" {
			bad("address", "%q is not HOST:PORT as agents dial it", c.Address)
		}
	}
	switch c.certs() {
	case CertsInternal:
		if len(c.CertFiles) > 0 {
			bad("certificates", "certificate files are given, but certs is internal; write certs: files")
		}
	case CertsFiles:
		if len(c.CertFiles) == 0 {
			bad("certificates", "certs is files, but no pair is given; give --cert FILE --key FILE")
		}
	default:
		bad("certs", "%q is not internal or files", c.Certs)
	}
	switch d := c.decoy(); {
	case d == DecoyOff, d == DecoyPage:
	case strings.HasPrefix(d, "tcp://"):
		if host, port, err := net.SplitHostPort(strings.TrimPrefix(d, "tcp://")); err != nil || host == "" || port == "" {
			bad("decoy", "%q is not tcp://HOST:PORT", d)
		}
	default:
		bad("decoy", "%q is not tcp://HOST:PORT, page or off", d)
	}
	if c.PublicPort < 0 || c.PublicPort > 65535 {
		bad("public_port", "%d is not a port", c.PublicPort)
	}
	if c.Replicas < 0 || c.Replicas > 16 {
		bad("replicas", "%d is not between 1 and 16", c.Replicas)
	}
	return ps
}

// err joins Check's problems.
func (c Config) err() error {
	var errs []error
	for _, p := range c.Check() {
		errs = append(errs, fmt.Errorf("%s: %s", p.Key, p.Message))
	}
	if c.Store == nil {
		errs = append(errs, errors.New("no store"))
	}
	return errors.Join(errs...)
}

func checkAddr(a string) error {
	host, port, err := net.SplitHostPort(a)
	if err != nil {
		return fmt.Errorf("%q is not an address such as :443 or 203.0.113.7:443", a)
	}
	if n, err := strconv.Atoi(port); err != nil || n < 0 || n > 65535 {
		return fmt.Errorf("%q has no valid port", a)
	}
	if host == "" || host == "localhost" {
		return nil
	}
	if _, err := netip.ParseAddr(host); err != nil {
		return fmt.Errorf("%q: listen on an IP address of this machine, not on a name", a)
	}
	return nil
}

func (c Config) listen() string { return orDefault(c.Listen, ":443") }
func (c Config) http() string   { return orDefault(c.HTTP, ":80") }
func (c Config) certs() string  { return orDefault(c.Certs, CertsInternal) }
func (c Config) decoy() string  { return orDefault(c.Decoy, DecoyOff) }

func (c Config) now() func() time.Time {
	if c.Now == nil {
		return time.Now
	}
	return c.Now
}

func (c Config) logger() *slog.Logger {
	if c.Logger == nil {
		return slog.New(slog.DiscardHandler)
	}
	return c.Logger
}

func orDefault(s, def string) string {
	if s == "" {
		return def
	}
	return s
}

// agentAddress is what a token tells agents to dial. The DNS entry that every
// set-up has is *.DOMAIN, so relay.DOMAIN leads here; a relay that listens on
// one address, or for a .localhost domain, names that address.
func (c Config) agentAddress(bound net.Addr) string {
	if c.Address != "" {
		return c.Address
	}
	ap, err := netip.ParseAddrPort(bound.String())
	if err != nil {
		return bound.String()
	}
	port := strconv.Itoa(int(ap.Port()))
	switch {
	case !ap.Addr().IsUnspecified():
		return ap.String()
	case c.Domain == "localhost" || strings.HasSuffix(c.Domain, ".localhost"):
		return net.JoinHostPort("127.0.0.1", port)
	}
	return net.JoinHostPort("relay."+c.Domain, port)
}

// urlPort is the port that URLs must spell out, "" for 443.
func (c Config) urlPort(bound net.Addr) string {
	port := c.PublicPort
	if port == 0 {
		if ap, err := netip.ParseAddrPort(bound.String()); err == nil {
			port = int(ap.Port())
		}
	}
	if port == 443 || port == 0 {
		return ""
	}
	return strconv.Itoa(port)
}
