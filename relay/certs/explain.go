package certs

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3/acme"
)

// waitUntil finds the time in Let's Encrypt's words for a rate limit.
var waitUntil = regexp.MustCompile(`(?i)retry after (\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d)`)

// clockFormat is how people are told when; in UTC.
const clockFormat = "2006-01-02 15:04 MST"

// shortestLimit is the wait after a rate limit that does not say how long.
const shortestLimit = time.Hour

// explain puts an error of an attempt into one line and what to do about it.
// What the preflight saw explains more than what the CA says of it.
func (a *ACME) explain(err error, found report, w *waiter) *failure {
	if f, ok := errors.AsType[*failure](err); ok {
		return f
	}
	ca := caName(a.config.CA)
	problem, ok := errors.AsType[acme.Problem](err)
	if !ok {
		return a.explainWay(err, ca, w)
	}
	said := problemText(problem)
	f := &failure{problem: oneLine(ca + " refused: " + said)}
	switch strings.TrimPrefix(problem.Type, acme.ProblemTypeNamespace) {
	case "rateLimited":
		f.until = a.limitedUntil(said, w)
		f.problem = oneLine(ca + "'s rate limit is used up: " + said)
		f.fix = "wait: it is tried again at " + f.until.UTC().Format(clockFormat) + " by itself"
		return f
	case "caa":
		f.problem = oneLine("a CAA record forbids " + ca + " to certify the host: " + said)
		f.fix = "add a CAA record for this CA, or remove the one that is there"
	case "dns":
		f.fix = "see that the host has an A record that points to this machine" + ownAddresses() + ", and that its zone's name servers answer"
	case "connection":
		f.problem = oneLine(ca + " cannot reach this relay: " + said)
		f.fix = "open ports 80 and 443 in every firewall in front of this machine, and forward them here"
	case "unauthorized", "tls", "incorrectResponse":
		f.problem = oneLine(ca + " reached something that is not this relay: " + said)
		f.fix = "see that every A and AAAA record of the host points to this machine" + ownAddresses() + " and that no proxy stands in front of it"
	case "rejectedIdentifier", "unsupportedIdentifier":
		f.fix = "use a domain of your own, or another CA (--acme-ca), or the internal one (--certs internal)"
		return f
	case "invalidContact", "unsupportedContact":
		f.fix = "correct the address (--acme-email) or leave it out"
		return f
	case "userActionRequired", "externalAccountRequired":
		f.fix = "do what it asks for, or choose another CA (--acme-ca)"
		return f
	case "serverInternal":
		f.fix = "nothing to do here: it is tried again"
		return f
	default:
		f.fix = "the relay's log at debug level has every step; another CA: --acme-ca"
		return f
	}
	if seen := cmp.Or(found.hold, found.hint); seen != nil {
		return &failure{problem: oneLine(seen.problem + " (" + ca + ": " + said + ")"), fix: seen.fix, held: seen.held}
	}
	return f
}

// explainWay explains why no answer came.
func (a *ACME) explainWay(err error, ca string, w *waiter) *failure {
	f := &failure{problem: oneLine("no certificate from " + ca + ": " + err.Error()), fix: "the relay's log at debug level has every step"}
	if w != nil && w.until.Load() != nil {
		f.until = *w.until.Load()
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		f.problem = "the ACME server " + ca + " shows a certificate of a CA that this machine does not know"
		f.fix = "name its root: --acme-root FILE; or install ca-certificates"
		return f
	}
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok && invalid.Reason == x509.Expired {
		f.problem = oneLine("the certificate of the ACME server " + ca + " is not valid at this machine's time: " + invalid.Error())
		f.fix = "see that this machine's clock is right"
		return f
	}
	if way, ok := errors.AsType[*url.Error](err); ok {
		f.problem = oneLine("the ACME server " + ca + " cannot be reached: " + way.Err.Error())
		f.fix = "see that this machine can open connections to it (DNS, firewall, proxy); it is tried again by itself"
	} else if errors.Is(err, context.DeadlineExceeded) {
		f.problem, f.fix = "the ACME server "+ca+" took too long", "nothing to do here: it is tried again"
	}
	return f
}

// limitedUntil is when the CA will listen again.
func (a *ACME) limitedUntil(said string, w *waiter) time.Time {
	if m := waitUntil.FindStringSubmatch(said); m != nil {
		if at, err := time.Parse(time.DateTime, strings.Replace(m[1], "T", " ", 1)); err == nil {
			return at.Add(time.Minute) // their clock and ours
		}
	}
	if w != nil && w.until.Load() != nil {
		return *w.until.Load()
	}
	return a.config.Now().Add(shortestLimit)
}

// problemText is what the CA says, subproblems too.
func problemText(p acme.Problem) string {
	said := []string{p.Detail}
	for _, sub := range p.Subproblems {
		said = append(said, sub.Detail)
	}
	if text := strings.Trim(strings.Join(said, "; "), "; "); text != "" {
		return text
	}
	return strings.TrimPrefix(p.Type, acme.ProblemTypeNamespace)
}

// caName is how people call a CA.
func caName(ca string) string {
	switch ca {
	case certmagic.LetsEncryptProductionCA:
		return "Let's Encrypt"
	case certmagic.LetsEncryptStagingCA:
		return "Let's Encrypt (staging)"
	}
	if u, err := url.Parse(ca); err == nil {
		return u.Host
	}
	return ca
}
