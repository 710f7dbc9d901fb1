package certs

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"net"
	"time"

	"github.com/mholt/acmez/v3"
	"github.com/mholt/acmez/v3/acme"
)

// probeTime bounds one look at a host.
const probeTime = 10 * time.Second

// A sight is what a look at a host found.
type sight struct {
	hold *failure // the CA would most likely refuse, and counts refusals
	hint *failure // not certain, as this network may hide it; the better explanation if the CA refuses
}

// look shakes hands with a host as the CA will for tls-alpn-01, all the way
// through the internet, the relay and back here.
func (o *orders) look(ctx context.Context, host string) sight {
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	cert, err := acmez.TLSALPN01ChallengeCert(acme.Challenge{
		Identifier: acme.Identifier{Type: "dns", Value: host}, KeyAuthorization: rand.Text(),
	})
	if err != nil {
		return sight{} // nothing is known
	}
	o.answers.set(o.answers.probes, host, cert)
	defer o.answers.set(o.answers.probes, host, nil)
	conn, err := o.config.Dial(ctx, "tcp", net.JoinHostPort(host, "443"))
	if missing, ok := errors.AsType[*net.DNSError](err); ok && missing.IsNotFound {
		return sight{hold: &failure{
			held: true, problem: host + " has no address in the DNS (no A or AAAA record)",
			fix: "add an A record for " + host + " that points to the relay",
		}}
	}
	if err != nil {
		return sight{hint: &failure{
			problem: oneLine(host + " cannot be reached from here: " + err.Error()),
			fix:     "see that the A and AAAA records of " + host + " point to the relay, and to nothing else",
		}}
	}
	defer conn.Close()
	client := tls.Client(conn, &tls.Config{
		ServerName: host, NextProtos: []string{ALPN}, MinVersion: tls.VersionTLS12,
		InsecureSkipVerify: true, // the certificate is compared, byte for byte
	})
	if err := client.HandshakeContext(ctx); err == nil {
		got := client.ConnectionState()
		if got.NegotiatedProtocol == ALPN && bytes.Equal(got.PeerCertificates[0].Raw, cert.Certificate[0]) {
			return sight{}
		}
	}
	if ctx.Err() != nil {
		return sight{hint: &failure{
			problem: host + " does not answer in time", fix: "see that the A and AAAA records of " + host + " point to the relay, and to nothing else",
		}}
	}
	return sight{hold: &failure{
		held: true, problem: host + " leads to something else than this home",
		fix: "point the A and AAAA records of " + host + " to the relay, and see that the relay has accepted the host (sallyport status)",
	}}
}
