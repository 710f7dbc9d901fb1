package certs

import (
	"cmp"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// ErrUnknownHost is the answer of Retry for a host that is not registered.
var ErrUnknownHost = errors.New("no such host is registered")

// Status says how each host's certificate stands, by name.
func (a *ACME) Status() []CertStatus {
	a.mu.Lock()
	defer a.mu.Unlock()
	list := make([]CertStatus, 0, len(a.hosts))
	for _, m := range a.hosts {
		st := CertStatus{Host: m.name, Problem: m.problem, Fix: m.fix, Next: m.due, State: StateOK}
		switch {
		case m.refused:
			st.State = StateRefused
		case m.problem != "":
			st.State = StateFailing
		case m.cert == nil:
			st.State = StateIssuing
		}
		if m.cert != nil {
			st.NotAfter, st.Issuer = m.cert.Leaf.NotAfter, issuerName(m.cert.Leaf)
			if m.problem == "" {
				st.Next = m.renewAt() // what comes before is only a look at the CA's advice
			}
		}
		list = append(list, st)
	}
	slices.SortFunc(list, func(x, y CertStatus) int { return cmp.Compare(x.Host, y.Host) })
	return list
}

// Retry tries a failing host again at once instead of at its next turn. A host
// whose certificate is fine is left alone.
func (a *ACME) Retry(host string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	m, ok := a.hosts[host]
	switch {
	case !ok:
		return fmt.Errorf("certificate of %s: %w", host, ErrUnknownHost)
	case m.refused:
		return fmt.Errorf("certificate of %s: %s\n%s", host, m.problem, m.fix)
	case m.problem == "":
		return nil
	}
	m.due, m.failures = a.config.Now(), 0
	a.kick()
	return nil
}

// issuerName is what people call the issuer: "Let's Encrypt R11".
func issuerName(leaf *x509.Certificate) string {
	org := strings.Join(leaf.Issuer.Organization, " ")
	return strings.TrimSpace(org + " " + leaf.Issuer.CommonName)
}
