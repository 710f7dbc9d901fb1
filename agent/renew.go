package agent

import (
	"cmp"
	"crypto/x509"
	"fmt"
	"time"

	"github.com/sallyport/sallyport/agent/state"
	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/pki"
	"github.com/sallyport/sallyport/protocol/tunnel"
)

// welcome takes what the relay tells about itself and about the time.
func (a *Agent) welcome(w protocol.Welcome, peer tunnel.Peer) {
	a.trustTime(w.Time, peer.Cert)
	// The domain is the one of the join: the hosts of services whose TLS ends here,
	// and the rights of devices there, hang on it.
	said := ""
	if d := a.identity.Load().Domain; d != "" && w.Domain != "" && w.Domain != d {
		said = fmt.Sprintf("the relay says that its domain is %.253q now, this home joined %s: if the owner moved it, join anew with a fresh directory", w.Domain, d)
	}
	a.warn(aboutDomain, said)
	err := a.change(func(id *state.Identity) error {
		id.Name, id.Domain = cmp.Or(w.Name, id.Name), cmp.Or(id.Domain, w.Domain)
		return nil
	})
	if err != nil {
		a.log.Warn("cannot store the relay's name for this agent", "err", err)
	}
}

// change replaces the identity by a changed copy, on disk first.
func (a *Agent) change(edit func(*state.Identity) error) error {
	a.identityMu.Lock()
	defer a.identityMu.Unlock()
	next := *a.identity.Load()
	if err := edit(&next); err != nil {
		return err
	}
	if next == *a.identity.Load() {
		return nil
	}
	if err := a.dir.SaveIdentity(&next); err != nil {
		return err
	}
	a.become(&next)
	return nil
}

// trustTime takes the relay's clock as a floor for ours, but never a time at
// which its own certificate is not valid: a relay with a wrong clock must not
// make all its later certificates look expired.
func (a *Agent) trustTime(t time.Time, cert *x509.Certificate) {
	if t.IsZero() {
		t = a.cfg.Now()
	}
	if cert == nil || t.Before(cert.NotBefore) || t.After(cert.NotAfter) {
		a.clock.hear(time.Time{})
		a.warn(aboutRelayClock, fmt.Sprintf("the relay's clock says %s, when its own certificate is not valid: set the clock of the relay", t.UTC().Format(minutes)))
		return
	}
	a.warn(aboutRelayClock, "")
	a.clock.hear(t)
	a.compareClocks()
	a.clock.tell(t)
	if t.Sub(a.dir.LastSeen()) > 24*time.Hour { // the hourly write does the rest
		a.saveClock()
	}
}

// renew asks for a new certificate when two thirds of the life are over.
func (c *session) renew() {
	id := c.a.identity.Load()
	life := id.Cert.NotAfter.Sub(id.Cert.NotBefore)
	if c.a.clock.issuer().Before(id.Cert.NotBefore.Add(life / 3 * 2)) {
		return
	}
	csr, err := pki.NewCSR(id.Key)
	if err != nil {
		c.log.Error("cannot ask for a new certificate", "err", err)
		return
	}
	c.send(protocol.Renew{CSR: csr})
}

// renewed puts a new certificate into use for the next dial. The session goes
// on with the old one.
func (a *Agent) renewed(m protocol.Renewed) {
	until := a.identity.Load().Cert.NotAfter.UTC().Format(minutes)
	if m.Error != "" {
		a.warn(aboutRenewal, "the relay does not renew this agent's certificate, which ends "+until+": "+m.Error)
		return
	}
	if err := a.adopt(m.Cert); err != nil {
		a.warn(aboutRenewal, fmt.Sprintf("the renewed certificate is not usable, the old one ends %s: %v", until, err))
		return
	}
	a.warn(aboutRenewal, "")
	a.log.Info("certificate renewed", "until", a.identity.Load().Cert.NotAfter)
}

func (a *Agent) adopt(der []byte) error {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return fmt.Errorf("read it: %w", err)
	}
	return a.change(func(id *state.Identity) error {
		if !cert.NotAfter.After(id.Cert.NotAfter) {
			return fmt.Errorf("it ends at %s, not later than the old one", cert.NotAfter)
		}
		id.Cert = cert
		return nil // SaveIdentity checks that it fits
	})
}
