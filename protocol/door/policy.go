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
	if !ok || !v.door.serves(site) {
		return refusal(), nil
	}
	if slices.Contains(hello.SupportedProtos, alpnACME) {
		return v.challengeConfig(hello), nil
	}
	v.visitor.Host, v.site = name, site
	return v.config(), nil
}

// alpnACME is the protocol of challenges of RFC 8737.
const alpnACME = "acme-tls/1"

// challengeConfig answers a challenge of RFC 8737, or nobody: a visitor that
// asks for more beside it could be served under a certificate that is none.
func (v *visit) challengeConfig(hello *tls.ClientHelloInfo) *tls.Config {
	if v.door.cfg.Challenge == nil || len(hello.SupportedProtos) != 1 {
		return refusal()
	}
	cert, ok := v.door.cfg.Challenge(hello)
	if !ok {
		return refusal()
	}
	v.challenge = true
	return &tls.Config{
		Time: v.door.cfg.Now, MinVersion: tls.VersionTLS12, NextProtos: []string{alpnACME},
		SessionTicketsDisabled: true, Certificates: []tls.Certificate{*cert},
	}
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
	switch {
	case site.RawALPN != "":
		c.NextProtos = []string{site.RawALPN, "http/1.1"}
	case site.Handler != nil:
		c.NextProtos = []string{"h2", "http/1.1"}
	}
	switch site.Mode {
	case Require:
		c.ClientAuth, c.ClientCAs = tls.RequireAndVerifyClientCert, d.cfg.ClientCAs
	case Ask:
		// crypto/tls must not judge: its verdict would be a browser error, not a
		// page. It still proves that the visitor holds the key.
		c.ClientAuth, c.ClientCAs = tls.RequestClientCert, d.cfg.ClientCAs
	case None, Token:
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
	if !v.site.Mode.asks() {
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
	if !v.site.Mode.asks() {
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
	issuer, denial := v.door.verifyLeaf(leaf, now)
	if v.denial = denial; denial != "" {
		return
	}
	v.leaf, v.chain = leaf, []*x509.Certificate{issuer}
	dev, denial := v.check(now)
	v.until.Store(unixNano(dev.Until))
	v.device, v.denial = dev, denial
	if denial == "" {
		v.visitor.Device = &v.device
	}
}

// check asks the owner of the device list about the visitor's certificate,
// whose signature is known to be good.
func (v *visit) check(now time.Time) (Device, string) {
	if now.After(v.leaf.NotAfter) || now.Before(v.leaf.NotBefore) {
		return Device{}, DeniedExpired
	}
	dev, denial := v.door.cfg.Check(v.leaf, v.visitor.Host, now)
	dev.Cert, dev.Chain = v.leaf, v.chain
	return dev, stricter(dev, denial, now)
}

// stricter refuses what a list of devices let pass: one whose time is over,
// and one without an identity, which nobody could disconnect.
func stricter(dev Device, denial string, now time.Time) string {
	switch {
	case denial != "":
		return denial
	case dev.ID == "":
		return DeniedUnknown
	case !dev.Until.IsZero() && !now.Before(dev.Until):
		return DeniedExpired
	}
	return ""
}

// verifyLeaf checks what does not depend on the device list: that one of our
// CAs itself signed the certificate, for clients, and its dates. Intermediate
// certificates that the visitor sent are not looked at.
func (d *Door) verifyLeaf(leaf *x509.Certificate, now time.Time) (issuer *x509.Certificate, denial string) {
	if leaf.IsCA || !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageClientAuth) {
		return nil, DeniedUnknown
	}
	if key, ok := leaf.PublicKey.(*rsa.PublicKey); ok && key.N.BitLen() > 8192 {
		return nil, DeniedUnknown
	}
	if issuer := d.issuer(leaf, now); issuer != nil {
		return issuer, ""
	}
	// Ours, but not now? Then the page may say so.
	if now.After(leaf.NotAfter) && d.issuer(leaf, leaf.NotAfter) != nil ||
		now.Before(leaf.NotBefore) && d.issuer(leaf, leaf.NotBefore) != nil {
		return nil, DeniedExpired
	}
	return nil, DeniedUnknown
}

// issuer returns the CA that itself signed a certificate which is good at a
// time; nil: none of ours did.
func (d *Door) issuer(leaf *x509.Certificate, at time.Time) *x509.Certificate {
	chains, err := leaf.Verify(x509.VerifyOptions{
		Roots:       d.cfg.ClientCAs,
		CurrentTime: at,
		KeyUsages:   []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return nil
	}
	for _, chain := range chains {
		if len(chain) == 2 {
			return chain[1]
		}
	}
	return nil
}
