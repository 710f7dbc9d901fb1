package agent

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
	"time"
)

// Subjects of warnings, in the order in which status shows them.
const (
	aboutClock      = iota // ours differs from the relay's
	aboutRelayClock        // the relay's cannot be right
	aboutVerify            // the relay's certificate is not valid by our clock
	aboutRenewal           // our certificate is not renewed
	aboutDomain            // the relay's domain is not the one that we joined
	warningSubjects
)

// warnings is what status tells of clocks and certificates until it is over.
type warnings struct {
	mu  sync.Mutex // guards now
	now [warningSubjects]string
}

// warn replaces what is said about a subject; "" = it is over. The log gets a
// line when something begins or ends, not again while its numbers change.
func (a *Agent) warn(subject int, text string) {
	a.warnings.mu.Lock()
	before := a.warnings.now[subject]
	a.warnings.now[subject] = text
	a.warnings.mu.Unlock()
	switch {
	case text != "" && (before == "" || subject == aboutRenewal):
		a.log.Warn(text)
	case text == "" && before != "":
		a.log.Info("this is over: " + before)
	}
}

// compareClocks warns while the clocks here and at the relay are too far apart.
func (a *Agent) compareClocks() { a.warn(aboutClock, a.clock.warning()) }

// Warnings returns what somebody should look after, a sentence each.
func (a *Agent) Warnings() []string {
	if a.latest.Load() != nil { // without a session the relay's time is a memory
		a.compareClocks()
	}
	a.warnings.mu.Lock()
	defer a.warnings.mu.Unlock()
	var all []string
	for _, w := range a.warnings.now {
		if w != "" {
			all = append(all, w)
		}
	}
	return all
}

// verifyRelay checks the relay's certificate: from our agent CA, for a server,
// for the tunnel's name, valid now. A certificate that has ended only by a clock
// that was set forward while this agent ran is good by the time that the relay
// told, which went on with a clock that nobody sets.
func (a *Agent) verifyRelay(cs tls.ConnectionState, roots *x509.CertPool, name string) error {
	if len(cs.PeerCertificates) == 0 {
		return errors.New("the relay showed no certificate")
	}
	leaf := cs.PeerCertificates[0]
	o := x509.VerifyOptions{
		Roots: roots, DNSName: name, CurrentTime: a.clock.Now(),
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	_, err := leaf.Verify(o)
	if err == nil {
		a.warn(aboutVerify, "")
		return nil
	}
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); !ok || invalid.Reason != x509.Expired {
		return err
	}
	// Nothing that Verify looks at later may be wrong besides the dates.
	now := o.CurrentTime
	if o.CurrentTime = leaf.NotAfter; now.Before(leaf.NotBefore) {
		o.CurrentTime = leaf.NotBefore
	}
	if _, err := leaf.Verify(o); err != nil {
		return err
	}
	if t, ok := a.clock.relayNow(); ok && !t.Before(leaf.NotBefore) && !t.After(leaf.NotAfter) {
		a.compareClocks()
		return nil
	}
	// Days only: as long as the text is the same, the log has it once.
	why := fmt.Sprintf("the relay's certificate is valid from %s to %s, and the clock here says %s: set this clock if it is wrong (timedatectl shows it), or else look at that of the relay",
		leaf.NotBefore.UTC().Format(time.DateOnly), leaf.NotAfter.UTC().Format(time.DateOnly), now.UTC().Format(time.DateOnly))
	a.warn(aboutVerify, why)
	return errors.New(why)
}
