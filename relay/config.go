package relay

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/mail"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/sallyport/sallyport/protocol/names"
	"github.com/sallyport/sallyport/relay/authdns"
	"github.com/sallyport/sallyport/relay/certs"
	"github.com/sallyport/sallyport/relay/store"
)

// Where public certificates come from (Config.Certs).
const (
	CertsACME     = "acme"     // an ACME server, by default Let's Encrypt
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
	Certs      string       // CertsACME, CertsInternal or CertsFiles; default CertsACME for a domain of the public DNS, else CertsInternal
	CertFiles  []certs.Pair // with CertsFiles: at least one pair
	ACME       ACME         // with CertsACME
	Decoy      string       // "tcp://HOST:PORT", DecoyPage, or DecoyOff; default DecoyOff
	Replicas   int          // live instances of one agent key that share its streams; default 1
	Software   string       // version, for people

	AdminHost     bool   // the dashboard at admin.DOMAIN, for devices marked admin
	AdminListen   string // loopback address of the dashboard in plain HTTP; default none
	OpenEnrolment bool   // requests without a code may wait for the owner's approval
	MQTT          MQTT   // the hub at mqtt.DOMAIN and the command page at home.DOMAIN
	DNS           DNS    // the authoritative DNS of Domain; default none
	// ProxyFrom are the addresses of load balancers in front. Their connections to
	// the public TCP port must begin with a PROXY protocol header, and nobody
	// else's may. Empty: there is none.
	ProxyFrom []netip.Prefix

	Logger *slog.Logger // default: none

	// Seams for tests; nil means the real thing.
	LocalAddrs func() []netip.Addr // addresses of this machine's interfaces
	ListenTCP  func(addr string) (net.Listener, error)
	ListenUDP  func(addr string) (net.PacketConn, error)
	// ListenPortTCP and ListenPortUDP make the public ports of services.
	ListenPortTCP func(port uint16) (net.Listener, error)
	ListenPortUDP func(port uint16) (net.PacketConn, error)
	Now           func() time.Time
	// ListenAdmin makes the owner's socket, ListenDashboard that of the
	// owner's pages.
	ListenAdmin     func() (net.Listener, error)
	ListenDashboard func() (net.Listener, error)
}

// ACME says where certificates come from with CertsACME. The zero value is
// Let's Encrypt without an account address.
type ACME struct {
	CA       string // directory URL; default Let's Encrypt's
	RootFile string // PEM, the root that the ACME server's own certificate is verified with; default the system's
	Email    string // for the account: expiry mails, if the CA sends any
}

// DNS says what the relay answers as the authoritative server of its domain.
// The zero value: it does not.
type DNS struct {
	Listen    string           // UDP and TCP address, such as ":53"; empty: off
	Addresses []netip.Addr     // the relay's public addresses; default the public ones of this machine's interfaces
	NS        []string         // names of this server, as set at the registrar; default ns1.DOMAIN
	Records   []authdns.Record // more records of the zone
	Issuers   []string         // CAA: who may issue for the relay's hosts; default by the ACME server. "-" alone: no CAA
	ECHOff    bool             // no Encrypted ClientHello
}

// MQTT says who may use the hub, and where. The zero value: every device, on
// the public port, below home/.
type MQTT struct {
	Off    bool        // no hub and no command page
	Listen string      // one more TCP address of the hub, such as ":8883"; default none
	Allow  []MQTTGrant // what devices may do; empty: publish and subscribe to home/+/#
	// CommandsPerHour bounds what one device may ask of homes; default 600.
	CommandsPerHour int
}

// An MQTTGrant lets devices use topics. A device may do what any grant says that
// its name matches; none: nothing.
type MQTTGrant struct {
	Device    string   // name, "*" stands for any letters; empty: all
	Publish   []string // topic filters
	Subscribe []string
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
	case CertsInternal, CertsACME:
		if len(c.CertFiles) > 0 {
			bad("certificates", "certificate files are given, but certs is %s; write certs: files", c.certs())
		}
	case CertsFiles:
		if len(c.CertFiles) == 0 {
			bad("certificates", "certs is files, but no pair is given; give --cert FILE --key FILE")
		}
	default:
		bad("certs", "%q is not acme, internal or files", c.Certs)
	}
	c.checkACME(bad)
	c.checkMQTT(bad)
	c.checkDNS(bad)
	if c.AdminListen != "" {
		if err := checkLoopback(c.AdminListen); err != nil {
			bad("admin_listen", "%v", err)
		}
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

func (c Config) checkACME(bad func(key, format string, args ...any)) {
	if c.certs() != CertsACME {
		if c.ACME != (ACME{}) {
			bad("acme", "certs is %s: the acme settings would not be used; write certs: acme", c.certs())
		}
		return
	}
	if c.ACME.CA != "" {
		if u, err := url.Parse(c.ACME.CA); err != nil || u.Scheme != "https" || u.Host == "" {
			bad("acme.ca", "%q is not the https:// URL of an ACME directory", c.ACME.CA)
		}
	}
	if c.ACME.Email != "" {
		if a, err := mail.ParseAddress(c.ACME.Email); err != nil || a.Address != c.ACME.Email {
			bad("acme.email", "%q is not a mail address", c.ACME.Email)
		}
	}
}

func (c Config) checkDNS(bad func(key, format string, args ...any)) {
	d := c.DNS
	if d.Listen == "" {
		if len(d.Addresses)+len(d.NS)+len(d.Records)+len(d.Issuers) > 0 {
			bad("dns", "dns settings without dns.listen would not be used; write listen: \":53\"")
		}
		return
	}
	if err := checkAddr(d.Listen); err != nil {
		bad("dns.listen", "%v", err)
	}
	for i, a := range d.Addresses {
		if !a.IsValid() || a.IsUnspecified() || a.Is4In6() || a.Zone() != "" {
			bad(fmt.Sprintf("dns.addresses[%d]", i), "%v is not an address that visitors can reach", a)
		}
	}
	for i, n := range d.NS {
		if _, err := names.Canonical(n); err != nil {
			bad(fmt.Sprintf("dns.ns[%d]", i), "%v", err)
		}
	}
	domain, err := names.Canonical(c.Domain)
	if err != nil {
		return // said already
	}
	for i, r := range d.Records {
		if err := authdns.CheckRecord(r, domain); err != nil {
			bad(fmt.Sprintf("dns.records[%d]", i), "%v", err)
		}
	}
}

// checkLoopback refuses what others on the network could reach (DESIGN §6.14).
func checkLoopback(a string) error {
	if err := checkAddr(a); err != nil {
		return err
	}
	host, _, _ := net.SplitHostPort(a)
	if ip, err := netip.ParseAddr(host); host != "localhost" && (err != nil || !ip.IsLoopback()) {
		return fmt.Errorf("%q is not a loopback address: write 127.0.0.1:PORT, and reach it with ssh -L", a)
	}
	return nil
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
func (c Config) certs() string {
	if c.Certs == "" && names.IsPublic(c.Domain) {
		return CertsACME
	}
	return orDefault(c.Certs, CertsInternal)
}
func (c Config) decoy() string { return orDefault(c.Decoy, DecoyOff) }

// probeHTTPS is the port on which the public reaches this relay, as far as the
// configuration tells.
func (c Config) probeHTTPS() int {
	if c.PublicPort != 0 {
		return c.PublicPort
	}
	return portOf(c.listen())
}

// probeHTTP is the same for plain HTTP, below zero when it is off. Where a
// router leads 443 here, it leads 80 here too, whatever the port on this side.
func (c Config) probeHTTP() int {
	switch {
	case c.http() == "off":
		return -1
	case c.probeHTTPS() == 443:
		return 80
	}
	return portOf(c.http())
}

func portOf(addr string) int {
	_, port, _ := net.SplitHostPort(addr)
	n, _ := strconv.Atoi(port) // checked in Check; 0 stands for the default
	return n
}

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
