package e2e_test

import (
	"crypto/tls"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/relay"
	"github.com/sallyport/sallyport/test/world"
)

// named is indoors with a relay that answers DNS.
func named(w *world.World, services ...world.Service) (*world.Relay, *world.Home, *world.Phone) {
	w.T.Helper()
	r, h, p := indoors(w, services...)
	r.Config = func(c *relay.Config) {
		c.DNS = relay.DNS{Listen: ":53", Addresses: []netip.Addr{r.Addr}}
	}
	h.Stop()
	r.Stop()
	r.Start()
	h.Start()
	h.AwaitOnline(time.Minute)
	return r, h, p
}

// lookup asks the relay's DNS and returns the answers as text.
func lookup(w *world.World, p *world.Phone, name string, qtype uint16) (answers []string, rcode int) {
	w.T.Helper()
	m := new(dns.Msg)
	m.SetQuestion(dns.Fqdn(name), qtype)
	m.SetEdns0(1232, false)
	packed, err := m.Pack()
	if err != nil {
		w.T.Fatal(err)
	}
	c, to := p.UDP(53)
	defer c.Close()
	if _, err := c.WriteTo(packed, to); err != nil {
		w.T.Fatal(err)
	}
	c.SetReadDeadline(time.Now().Add(5 * time.Second))
	buf := make([]byte, 4096)
	n, _, err := c.ReadFrom(buf)
	if err != nil {
		w.T.Fatalf("%s %s: %v", name, dns.TypeToString[qtype], err)
	}
	reply := new(dns.Msg)
	if err := reply.Unpack(buf[:n]); err != nil {
		w.T.Fatal(err)
	}
	for _, rr := range reply.Answer {
		answers = append(answers, strings.TrimPrefix(rr.String(), rr.Header().String()))
	}
	return answers, reply.Rcode
}

// The zone tells the way to every host, and to the home network for what the home
// itself has registered, and nothing else.
func TestZone(t *testing.T) {
	world.Run(t, func(w *world.World) {
		r, h, p := named(w, world.Web("web").TLS(protocol.TLSAgent), world.Web("plain"))
		own := h.Status().EndToEnd.Own
		relayAddr := r.Addr.String()
		w.Until(time.Minute, "the home has told its address", func() bool {
			got, _ := lookup(w, p, "192-168-1-7."+own, dns.TypeA)
			return len(got) == 1 && got[0] == "192.168.1.7"
		})
		for _, c := range []struct {
			name  string
			rcode int
			want  string
		}{
			{domain, 0, relayAddr},
			{"web." + domain, 0, relayAddr},
			{"plain." + domain, 0, relayAddr},
			{"no-such-host." + domain, 0, relayAddr}, // the DNS does not tell which hosts there are
			{own, 0, relayAddr},
			{"192-168-1-8." + own, 0, ""},
			{"8-8-8-8." + own, 0, ""},
			{"192-168-1-7." + strings.Repeat("a", 52) + "." + domain, dns.RcodeNameError, ""},
			{"elsewhere.net", dns.RcodeRefused, ""},
		} {
			got, rcode := lookup(w, p, c.name, dns.TypeA)
			if rcode != c.rcode || strings.Join(got, " ") != c.want {
				t.Errorf("%s: %v, code %d; want %q, %d", c.name, got, rcode, c.want, c.rcode)
			}
		}

		// The relay remembers while the home is away, and after a restart.
		h.Stop()
		r.Stop()
		r.Start()
		if got, _ := lookup(w, p, "192-168-1-7."+own, dns.TypeA); len(got) != 1 {
			t.Errorf("after a restart: %v", got)
		}
	})
}

// A browser that encrypts its hello reaches hosts of the relay and of the home;
// one with a config that nobody knows is told the right one.
func TestEncryptedHello(t *testing.T) {
	world.Run(t, func(w *world.World) {
		_, h, p := named(w, world.Web("web").TLS(protocol.TLSAgent), world.Web("plain"))
		p.Trust(h.Status().EndToEnd.Root)
		list := func(host string) []byte {
			t.Helper()
			m := new(dns.Msg)
			m.SetQuestion(dns.Fqdn(host), dns.TypeHTTPS)
			packed, _ := m.Pack()
			c, to := p.UDP(53)
			defer c.Close()
			c.WriteTo(packed, to)
			buf := make([]byte, 4096)
			c.SetReadDeadline(time.Now().Add(5 * time.Second))
			n, _, err := c.ReadFrom(buf)
			if err != nil {
				t.Fatal(err)
			}
			reply := new(dns.Msg)
			if err := reply.Unpack(buf[:n]); err != nil {
				t.Fatal(err)
			}
			for _, rr := range reply.Answer {
				for _, kv := range rr.(*dns.HTTPS).Value {
					if ech, ok := kv.(*dns.SVCBECHConfig); ok {
						return ech.ECH
					}
				}
			}
			t.Fatalf("%s has no ECH config: %v", host, reply)
			return nil
		}
		configs := list("web.example.org")
		for _, host := range []string{"web.example.org", "plain.example.org"} {
			c, err := p.DialECH(host, list(host))
			if err != nil {
				t.Fatalf("%s: %v", host, err)
			}
			if cs := c.ConnectionState(); !cs.ECHAccepted || cs.ServerName != host {
				t.Errorf("%s: accepted %t as %s", host, cs.ECHAccepted, cs.ServerName)
			}
			c.Close()
		}

		// A host that is not there: the public name answers, under its own
		// certificate, with the configs of today.
		_, err := p.DialECH("nobody.example.org", configs)
		rejected, ok := errors.AsType[*tls.ECHRejectionError](err)
		if !ok || len(rejected.RetryConfigList) == 0 {
			t.Errorf("a host that is not there: %v", err)
		}
	})
}
