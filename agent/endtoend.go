package agent

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sallyport/sallyport/agent/certs"
	"github.com/sallyport/sallyport/agent/devices"
	"github.com/sallyport/sallyport/agent/lan"
	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/door"
	"github.com/sallyport/sallyport/protocol/names"
	"github.com/sallyport/sallyport/protocol/tunnel"
)

// Where the CA is whose devices come in at services with TLS "agent".
const (
	DeviceCAHome  = "home"  // here: the relay can make no device
	DeviceCARelay = "relay" // at the relay, which could
)

// EndToEnd says how services with TLS "agent" are served: here, with keys that
// never leave the home.
type EndToEnd struct {
	Certs Certs // where their certificates come from
	// DeviceCA is DeviceCAHome or DeviceCARelay; empty: home where OpenDevices is
	// set, else relay.
	DeviceCA string
	// OpenDevices opens the devices of the home's own CA, once the agent has
	// joined. Run and Close are called by the agent.
	OpenDevices func(HomeDevices) (Devices, error)
	// LAN serves the same hosts on the home network; nil = not.
	LAN *LAN
}

// Certs says where the certificates of services with TLS "agent" come from.
type Certs struct {
	Mode  string // certs.ModeACME, ModeFiles or ModeInternal; default by the relay's domain
	ACME  certs.ACME
	Files []certs.Pair
}

// LAN is the door on the home network.
type LAN struct {
	Listen   string // TCP address; default ":8443"
	Service  string // what names such as 192-168-1-7.HASH.DOMAIN reach; default the first web service with TLS "agent" and auth require
	Announce bool   // by multicast DNS
	Split    bool   // the relay's DNS answers queries from this home with LAN addresses
	Open     bool   // for addresses outside private networks, too
	// ListenTCP replaces net.Listen and Addrs the interfaces' addresses, in tests.
	Addrs     func() []netip.Addr
	ListenTCP func(addr string) (net.Listener, error)
}

// HomeDevices is what OpenDevices works with.
type HomeDevices struct {
	Dir    string // the agent's data directory
	Own    string // HASH.DOMAIN: the enrolment pages are at https://HASH.DOMAIN/
	Port   string // ":8443" in public URLs, "" for 443
	Now    func() time.Time
	Logger *slog.Logger
	Lost   func(deviceID string) // a device lost rights: after that is on disk
	// Hosts are the web hosts that are served at home, for links on pages.
	Hosts func() []string
	// Roots are what visitors must trust to reach the pages; none: public CAs.
	Roots func() []*x509.Certificate
	// Certificate is that of a canonical name, to sign profiles with.
	Certificate func(name string) (*tls.Certificate, error)
}

// Devices are the devices of the home's own CA.
type Devices interface {
	Pool() *x509.CertPool
	// Check judges a certificate that the pool has signed, as door.Config says.
	Check(leaf *x509.Certificate, host string, now time.Time) (door.Device, string)
	Seen(deviceID string)
	// Site serves the enrolment pages, for everybody.
	Site() http.Handler
	// SelfTest serves the self-test and renewal of devices, on a host that asks for
	// a certificate.
	SelfTest() http.Handler
	// Denied answers a visitor of an ask site who may not come in.
	Denied(w http.ResponseWriter, r *http.Request, denial string)
	// API serves the owner's commands about devices on the agent's socket.
	API() http.Handler
	Run(ctx context.Context) error
	Close() error
}

// homeService is the name of the service that carries visitors of HASH.DOMAIN:
// no owner can give it to another.
const homeService = "sallyport-home"

// wellKnown is where every site with TLS "agent" tells of the home network.
const wellKnown = "/.well-known/sallyport/"

// An indoors is everything that serves TLS at home.
type indoors struct {
	a    *Agent
	own  string // HASH.DOMAIN
	port string // of public URLs, "" for 443
	log  *slog.Logger

	certs *certs.Certs
	home  Devices       // nil: the relay's CA
	guest *devices.Book // of the relay's CA; nil: the home's own
	lan   *lan.LAN      // nil: none
	sites atomic.Pointer[sites]

	strangers strangers // visitors by the relay that showed no device

	mu       sync.Mutex // guards what follows
	door     *door.Door // nil until a CA is known
	proxies  map[proxyKey]*door.Proxy
	policies map[string]string // host → policy
}

// sites are what is served now.
type sites struct {
	table *names.Table[*door.Site]
	alias map[string]string // pattern → the host whose rules hold there
	web   []string          // exact hosts of web services
}

// serveEndToEnd serves a visitor whose TLS ends here; the relay has been told
// that the stream is taken.
func (in *indoors) serve(ctx context.Context, c tunnel.Conn, o protocol.Open) {
	v := &visitorConn{Conn: c, client: o.Client, local: o.Local, crowd: &in.strangers}
	defer in.strangers.add(v, in.a.cfg.MaxStreams/unprovenShare)()
	in.ServeConn(ctx, v)
}

// ServeConn is the door for every way in: the relay's streams and the home
// network. It owns c.
func (in *indoors) ServeConn(ctx context.Context, c net.Conn) {
	d, err := in.getDoor()
	if err != nil {
		in.log.Warn("a visitor was turned away", "err", err)
		c.Close()
		return
	}
	d.ServeConn(ctx, c)
}

// errNoCA means that the relay has not shown its device CA yet.
var errNoCA = errors.New("the relay has not told its device CA yet: nobody can be let in")

func (in *indoors) getDoor() (*door.Door, error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.door != nil {
		return in.door, nil
	}
	pool := in.pool()
	if pool == nil {
		return nil, errNoCA
	}
	d, err := door.New(door.Config{
		Lookup: in.lookup, ClientCAs: pool, Check: in.check, Seen: in.seen, Denied: in.denied(),
		Challenge: in.certs.Challenge, Now: in.a.clock.own, Logger: in.log, Audit: in.audit,
	})
	if err != nil {
		return nil, err
	}
	in.door = d
	return d, nil
}

func (in *indoors) pool() *x509.CertPool {
	if in.home != nil {
		return in.home.Pool()
	}
	return in.guest.Pool()
}

// newCA takes the door away after its CA has changed: the next visitor gets one
// with the new CA, and the present ones end, as the old CA vouched for them.
func (in *indoors) newCA() {
	in.mu.Lock()
	d := in.door
	in.door = nil
	in.mu.Unlock()
	if d != nil {
		d.Close()
	}
}

func (in *indoors) lookup(name string) (*door.Site, bool) {
	s := in.sites.Load()
	if s == nil {
		return nil, false
	}
	return s.table.Lookup(name)
}

// check asks whoever keeps the devices. A name of the home network has the rules
// of the service behind it.
func (in *indoors) check(leaf *x509.Certificate, host string, now time.Time) (door.Device, string) {
	if s, ok := in.lookup(host); ok {
		host = cmp.Or(in.sites.Load().alias[s.Host], host)
	}
	if in.home != nil {
		return in.home.Check(leaf, host, now)
	}
	return in.guest.Check(leaf, host, now)
}

func (in *indoors) seen(id string) {
	if in.home != nil {
		in.home.Seen(id)
	}
}

func (in *indoors) denied() func(http.ResponseWriter, *http.Request, string) {
	if in.home == nil {
		return nil
	}
	return in.home.Denied
}

// audit logs refused devices. The relay does not see them.
func (in *indoors) audit(event string, attrs ...slog.Attr) {
	in.log.LogAttrs(context.Background(), slog.LevelWarn, event, attrs...)
}

// lost ends the connections of devices that lost rights.
func (in *indoors) lost(ids ...string) {
	in.mu.Lock()
	d := in.door
	in.mu.Unlock()
	if d == nil {
		return
	}
	for _, id := range ids {
		if n := d.Disconnect(id); n > 0 {
			in.log.Info("a device lost rights", "id", id, "connections_closed", n)
		}
	}
}

// close ends all visitors.
func (in *indoors) close() error {
	in.mu.Lock()
	d := in.door
	in.door = nil
	for _, p := range in.proxies {
		p.Close()
	}
	clear(in.proxies)
	in.mu.Unlock()
	var errs []error
	if d != nil {
		errs = append(errs, d.Close())
	}
	if in.home != nil {
		errs = append(errs, in.home.Close())
	}
	return errors.Join(errs...)
}

// certificate is the site's way to its certificate.
func (in *indoors) certificate(name string) (*tls.Certificate, error) {
	return in.certs.GetCertificate(name)
}

// A visitorConn is a stream of the tunnel with the addresses of its visitor.
type visitorConn struct {
	tunnel.Conn
	client, local netip.AddrPort
	crowd         *strangers
}

// Met takes a visitor with a device out of the crowd of strangers.
func (c *visitorConn) Met(d *door.Device) {
	if d != nil {
		c.crowd.remove(c)
	}
}

func (c *visitorConn) RemoteAddr() net.Addr { return addrOf(c.client, c.Conn.RemoteAddr()) }
func (c *visitorConn) LocalAddr() net.Addr  { return addrOf(c.local, c.Conn.LocalAddr()) }

func addrOf(ap netip.AddrPort, otherwise net.Addr) net.Addr {
	if !ap.IsValid() {
		return otherwise
	}
	return net.TCPAddrFromAddrPort(ap)
}

// Reset aborts the stream, so that the visitor never takes it for a clean end.
func (c *visitorConn) Reset(code protocol.Code) { tunnel.Abort(c.Conn, code) }

// isOwnName reports whether a host is HASH.DOMAIN or lies below it.
func (in *indoors) isOwnName(host string) bool {
	return host == in.own || strings.HasSuffix(host, "."+in.own)
}
