package certs

import (
	"cmp"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// ErrUnknownHost is the answer of Retry for a host that is not registered.
var ErrUnknownHost = errors.New("no such host is registered")

// A LimitError is the answer of Retry for a host that the CA, or
// ACMEConfig.NewPerDay, keeps waiting: it is tried at Until by itself.
type LimitError struct {
	Host    string
	Until   time.Time
	Problem string // one line, for the owner
}

// Error says why and until when.
func (e *LimitError) Error() string {
	return fmt.Sprintf("certificate of %s: %s\nwait until %s: it is tried then by itself", e.Host, e.Problem, e.Until.UTC().Format(clockFormat))
}

// Status says how each host's certificate stands, by name.
func (a *ACME) Status() []CertStatus {
	a.mu.Lock()
	defer a.mu.Unlock()
	list := make([]CertStatus, 0, len(a.hosts))
	for _, m := range a.hosts {
		list = append(list, m.status(a.config.Now()))
	}
	slices.SortFunc(list, func(x, y CertStatus) int { return cmp.Compare(x.Host, y.Host) })
	return list
}

// HostStatus is Status of one host, as SetHosts named it; false: it did not.
func (a *ACME) HostStatus(host string) (CertStatus, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	m, ok := a.hosts[host]
	if !ok {
		return CertStatus{}, false
	}
	return m.status(a.config.Now()), true
}

func (m *managed) status(now time.Time) CertStatus {
	st := CertStatus{Host: m.name, Problem: m.problem, Fix: m.fix, Next: m.due, State: StateOK, Public: m.public(now)}
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
	return st
}

// public is the problem for homes. What probes and the CA said is not theirs:
// a home decides where its names lead, and would learn what answers there.
func (m *managed) public(now time.Time) string {
	switch {
	case m.problem == "":
		return ""
	case m.refused:
		return m.problem // of the name alone
	case m.cert == nil:
		return "the certificate is not there yet: the relay's owner sees why"
	case now.Before(m.cert.Leaf.NotAfter):
		return "the certificate could not be renewed yet and still serves: the relay's owner sees why"
	}
	return "the certificate has expired: the relay's owner sees why it could not be renewed"
}

// Retry tries a failing host again at once instead of at its next turn, but
// not within a limit (*LimitError). A host whose certificate is fine is left
// alone.
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
	now := a.config.Now()
	if now.Before(m.limit) {
		return &LimitError{Host: host, Until: m.limit, Problem: m.problem}
	}
	m.due, m.failures = now, 0
	a.kick()
	return nil
}

// issuerName is what people call the issuer: "Let's Encrypt R11".
func issuerName(leaf *x509.Certificate) string {
	org := strings.Join(leaf.Issuer.Organization, " ")
	return strings.TrimSpace(org + " " + leaf.Issuer.CommonName)
}
