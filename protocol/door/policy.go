package door

import (
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/sallyport/sallyport/protocol/names"
)

// aeadSuites are the TLS 1.2 suites of hosts that are open to everybody.
var aeadSuites = []uint16{
	tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
	tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
	tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
	tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
	tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
	tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
}

var (
	errUnknownName = errors.New("no site of this name")
	errOtherName   = errors.New("server name changed during the handshake")
)

// greet chooses the TLS configuration by the server name. There is no default
// one: crypto/tls itself parses the name, so that no second parser can be
// made to disagree (CVE-2026-32305).
func (v *visit) greet(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	name, err := names.Canonical(hello.ServerName)
	if err != nil {
		return refusal(), nil
	}
	site, ok := v.door.cfg.Lookup(name)
	if !ok || !site.valid() {
		return refusal(), nil
	}
	v.visitor.Host, v.site = name, site
	return v.config(), nil
}

// refusal is a configuration that completes no handshake: it has no
// certificate, to which crypto/tls answers unrecognized_name, and resumes
// nothing.
func refusal() *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS12,
		SessionTicketsDisabled: true,
		VerifyConnection:       func(tls.ConnectionState) error { return errUnknownName },
	}
}

func (v *visit) config() *tls.Config {
	d, site := v.door, v.site
	binding := v.visitor.Host + "\x00" + site.Policy + "\x00" + string(site.Mode)
	c := &tls.Config{
		Time:       d.cfg.Now,
		MinVersion: tls.VersionTLS13,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			cert, err := site.Certificate(v.visitor.Host)
			if err != nil {
				d.log.Warn("no certificate for a host", "host", v.visitor.Host, "err", err)
				return nil, nil // becomes unrecognized_name
			}
			return cert, nil
		},
		VerifyConnection: v.verify,
		WrapSession: func(cs tls.ConnectionState, ss *tls.SessionState) ([]byte, error) {
			if !v.mayResume(cs) {
				return d.tickets.useless(), nil
			}
			return d.tickets.seal(ss, binding)
		},
		UnwrapSession: func(ticket []byte, _ tls.ConnectionState) (*tls.SessionState, error) {
			return d.tickets.open(ticket, binding), nil
		},
	}
	if site.Handler != nil {
		c.NextProtos = []string{"h2", "http/1.1"}
	}
	switch site.Mode {
	case Require:
		c.ClientAuth, c.ClientCAs = tls.RequireAndVerifyClientCert, d.cfg.ClientCAs
	case Ask:
		// crypto/tls must not judge: its verdict would be a browser error, not a
		// page. It still proves that the visitor holds the key.
		c.ClientAuth, c.ClientCAs = tls.RequestClientCert, d.cfg.ClientCAs
	case None:
		c.MinVersion, c.CipherSuites = tls.VersionTLS12, slices.Clone(aeadSuites)
	}
	return c
}

// verify runs at the end of every handshake, resumed ones too
// (VerifyPeerCertificate does not).
func (v *visit) verify(cs tls.ConnectionState) error {
	if name, err := names.Canonical(cs.ServerName); err != nil || name != v.visitor.Host {
		return errOtherName
	}
	if v.site.Mode == None {
		return nil
	}
	v.judge(cs)
	if v.denial != "" && v.site.Mode == Require {
		return fmt.Errorf("device certificate refused: %s", v.denial)
	}
	return nil
}

// mayResume keeps sessions without an allowed device from being resumed: a
// phone that enrolled a minute ago would meet the page again, because a
// resumed session never asks for the new certificate.
func (v *visit) mayResume(cs tls.ConnectionState) bool {
	if v.site.Mode == None {
		return true
	}
	v.judge(cs)
	return v.denial == ""
}

// judge decides once per handshake who the visitor is.
func (v *visit) judge(cs tls.ConnectionState) {
	if v.judged {
		return
	}
	v.judged = true
	if len(cs.PeerCertificates) == 0 {
		v.denial = DeniedMissing
		return
	}
	leaf := cs.PeerCertificates[0]
	now := v.door.cfg.Now()
	if v.denial = v.door.verifyLeaf(leaf, now); v.denial != "" {
		return
	}
	v.leaf = leaf
	dev, denial := v.door.check(leaf, v.visitor.Host, now)
	dev.Cert = leaf
	v.device, v.denial = dev, denial
	if denial == "" {
		v.visitor.Device = &v.device
	}
}

// check asks the owner of the device list. A device without an identity could
// not be disconnected, so it is nobody.
func (d *Door) check(leaf *x509.Certificate, host string, now time.Time) (Device, string) {
	if now.After(leaf.NotAfter) || now.Before(leaf.NotBefore) {
		return Device{}, DeniedExpired
	}
	dev, denial := d.cfg.Check(leaf, host, now)
	if denial == "" && dev.ID == "" {
		denial = DeniedUnknown
	}
	return dev, denial
}

// verifyLeaf checks what does not depend on the device list: that one of our
// CAs itself signed the certificate, for clients, and its dates. Intermediate
// certificates that the visitor sent are not looked at.
func (d *Door) verifyLeaf(leaf *x509.Certificate, now time.Time) string {
	if leaf.IsCA || !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageClientAuth) {
		return DeniedUnknown
	}
	if key, ok := leaf.PublicKey.(*rsa.PublicKey); ok && key.N.BitLen() > 8192 {
		return DeniedUnknown
	}
	if d.chains(leaf, now) {
		return ""
	}
	// Ours, but not now? Then the page may say so.
	if now.After(leaf.NotAfter) && d.chains(leaf, leaf.NotAfter) ||
		now.Before(leaf.NotBefore) && d.chains(leaf, leaf.NotBefore) {
		return DeniedExpired
	}
	return DeniedUnknown
}

func (d *Door) chains(leaf *x509.Certificate, at time.Time) bool {
	chains, err := leaf.Verify(x509.VerifyOptions{
		Roots:       d.cfg.ClientCAs,
		CurrentTime: at,
		KeyUsages:   []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	return err == nil && slices.ContainsFunc(chains, func(c []*x509.Certificate) bool { return len(c) == 2 })
}
