package certs

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/mholt/acmez/v3"
	"github.com/mholt/acmez/v3/acme"
)

const (
	probeTime  = 5 * time.Second // of one connection
	probeTries = 3               // routes may be swapped in only after SetHosts
	probePause = time.Second
	maxProbed  = 6 // addresses
)

// A prober asks a host's addresses, as the CA will, for answers that only this
// relay can give.
type prober struct {
	answers         *answers
	port80, port443 int           // port80 below zero: none
	loopback        bool          // it may be probed; see mayDial
	pause           time.Duration // between tries
}

// reached is what came back from one port.
type reached int

const (
	silent  reached = iota // nothing: refused, filtered, or this machine cannot reach its own public address
	foreign                // an answer, and not ours
	ours
)

// sight is what came back from one address.
type sight struct {
	addr      netip.Addr
	http, tls reached
}

// look probes the addresses that may be, and says when there are others: a CA
// would not reach those. Only a hint, since names can mean something else in
// this network than outside (split DNS, a line in /etc/hosts). Which address
// it is stays untold.
func (p *prober) look(ctx context.Context, host string, addrs []netip.Addr) report {
	public := slices.DeleteFunc(slices.Clone(addrs), func(a netip.Addr) bool { return !p.mayDial(a) })
	found := p.lookPublic(ctx, host, public)
	if len(public) < len(addrs) {
		found.methods = methods{}
		found.hint = &failure{
			problem: host + " leads to a private address",
			fix:     "point its A and AAAA records to this machine's public address" + ownAddresses() + ", and to no other",
		}
	}
	return found
}

// lookPublic probes until everything leads here, or a few times.
func (p *prober) lookPublic(ctx context.Context, host string, addrs []netip.Addr) report {
	addrs = addrs[:min(len(addrs), maxProbed)]
	var seen []sight
	for try := 0; ; try++ {
		seen = p.lookOnce(ctx, host, addrs)
		found := judge(host, seen, p.port80 > 0)
		if found.hold == nil || try == probeTries-1 {
			return found
		}
		select {
		case <-time.After(p.pause):
		case <-ctx.Done():
			return found
		}
	}
}

// lookOnce probes all addresses at once.
func (p *prober) lookOnce(ctx context.Context, host string, addrs []netip.Addr) []sight {
	seen := make([]sight, len(addrs))
	token, text := rand.Text(), rand.Text()
	cert, err := acmez.TLSALPN01ChallengeCert(acme.Challenge{
		Identifier: acme.Identifier{Type: "dns", Value: host}, KeyAuthorization: text,
	})
	if err != nil {
		return seen // all silent: nothing is known
	}
	p.answers.setToken(token, answer{host, text})
	defer p.answers.dropToken(token)
	p.answers.setProbe(host, cert)
	defer p.answers.dropProbe(host)
	var probes sync.WaitGroup
	for i, addr := range addrs {
		seen[i].addr = addr.Unmap()
		probes.Go(func() { seen[i].tls = probeTLS(ctx, join(addr, p.port443), host, cert.Certificate[0]) })
		if p.port80 > 0 {
			probes.Go(func() { seen[i].http = probeHTTP(ctx, join(addr, p.port80), host, token, text) })
		}
	}
	probes.Wait()
	return seen
}

// judge turns what was seen into a report.
func judge(host string, seen []sight, served80 bool) report {
	all := methods{http: served80, tls: true}
	var wrong, dumb *sight
	for _, s := range seen {
		all.http = all.http && s.http == ours
		all.tls = all.tls && s.tls == ours
		switch {
		case s.http == ours || s.tls == ours:
		case s.http == foreign || s.tls == foreign:
			wrong = &s
		default:
			dumb = &s
		}
	}
	found := report{methods: all}
	switch {
	case wrong != nil:
		found.hold = &failure{
			held: true, problem: fmt.Sprintf("%s points to %s, where something else than this relay answers", host, wrong.addr),
			fix: fmt.Sprintf("point the %s record of %s to this machine%s, or stop what holds ports 80 and 443 there", recordOf(wrong.addr), host, ownAddresses()),
		}
	case dumb != nil:
		found.hint = &failure{
			problem: fmt.Sprintf("%s points to %s, and nobody answers there on ports 80 and 443", host, dumb.addr),
			fix: fmt.Sprintf("open ports 80 and 443 in every firewall in front of this machine; if %s is not this machine%s, correct the %s record",
				dumb.addr, ownAddresses(), recordOf(dumb.addr)),
		}
	}
	return found
}

func recordOf(a netip.Addr) string {
	if a.Is4() {
		return "A"
	}
	return "AAAA"
}

func join(a netip.Addr, port int) string {
	return net.JoinHostPort(a.Unmap().String(), strconv.Itoa(port))
}

// probeTLS shakes hands as a CA does for tls-alpn-01.
func probeTLS(ctx context.Context, addr, host string, want []byte) reached {
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return silent
	}
	defer conn.Close()
	client := tls.Client(conn, &tls.Config{
		ServerName: host, NextProtos: []string{acmez.ACMETLS1Protocol}, MinVersion: tls.VersionTLS12,
		InsecureSkipVerify: true, // the certificate is compared, byte for byte
		VerifyConnection: func(cs tls.ConnectionState) error {
			if len(cs.PeerCertificates) == 0 || !bytes.Equal(cs.PeerCertificates[0].Raw, want) {
				return errors.New("not the relay's own certificate")
			}
			return nil
		},
	})
	if client.HandshakeContext(ctx) != nil {
		return foreign
	}
	return ours
}

// probeHTTP asks as a CA does for http-01.
func probeHTTP(ctx context.Context, addr, host, token, want string) reached {
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return silent
	}
	defer conn.Close()
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(context.Context, string, string) (net.Conn, error) { return conn, nil },
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+host+challengePath+token, nil)
	if err != nil {
		return silent
	}
	resp, err := transport.RoundTrip(r) // follows no redirects
	if err != nil {
		return foreign
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
	if string(body) != want {
		return foreign
	}
	return ours
}
