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

	"github.com/mholt/acmez/v3/acme"
)

// A failure is why there is no certificate, for people: one line each.
type failure struct {
	problem, fix string
	until        time.Time // the CA said not before
	held         bool      // the CA was not asked: another look costs nothing
	off          bool      // the relay answers no DNS, and it takes that
	byDNS        bool      // dns-01 was tried
}

// Error is problem and fix.
func (f *failure) Error() string { return f.problem + "\n" + f.fix }

func asFailure(err error) *failure {
	if f, ok := errors.AsType[*failure](err); ok {
		return f
	}
	return &failure{problem: oneLine(err.Error()), fix: debugFix}
}

const debugFix = "the agent's log at debug level has every step"

// waitUntil finds the time in Let's Encrypt's words for a rate limit.
var waitUntil = regexp.MustCompile(`(?i)retry after (\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d)`)

// clockFormat is how people are told when; in UTC.
const clockFormat = "2006-01-02 15:04 MST"

// shortestLimit is the wait after a rate limit that does not say how long.
const shortestLimit = time.Hour

// explain puts an error of an order into one line and what to do about it.
func (o *orders) explain(err error, j job, byDNS bool, seen sight, w *waiter) *failure {
	f := o.explainOrder(err, j, byDNS, seen, w)
	f.byDNS = byDNS
	return f
}

func (o *orders) explainOrder(err error, j job, byDNS bool, seen sight, w *waiter) *failure {
	if f, ok := errors.AsType[*failure](err); ok {
		own := *f
		return &own
	}
	if away, ok := errors.AsType[txtError](err); ok { // not held: an order is open, and the CA counts those too
		return &failure{
			problem: oneLine("the relay has not taken the DNS record for " + j.name + ": " + away.Error()),
			fix:     "nothing to do while the relay is away: it is tried again",
		}
	}
	ca := caName(o.config.ACME.CA)
	problem, ok := errors.AsType[acme.Problem](err)
	if !ok {
		return explainWay(err, ca, w)
	}
	said := problemText(problem)
	f := &failure{problem: oneLine(ca + " refused: " + said)}
	switch strings.TrimPrefix(problem.Type, acme.ProblemTypeNamespace) {
	case "rateLimited":
		f.until = o.limitedUntil(said, w)
		f.problem = oneLine(ca + "'s rate limit is used up: " + said)
		f.fix = "wait: it is tried again at " + f.until.UTC().Format(clockFormat) + " by itself"
		return f
	case "caa":
		f.problem = oneLine("a CAA record forbids " + ca + " to certify " + j.name + ": " + said)
		f.fix = "see that no CAA record of the zone names another CA or another account; the relay's DNS names ours by itself"
		return f
	case "dns", "connection", "unauthorized", "tls", "incorrectResponse":
		f.fix = "see that the A and AAAA records of " + j.name + " point to the relay, and that the relay has accepted the host (sallyport status)"
		if byDNS {
			f.problem = oneLine(ca + " does not find our DNS record for " + j.name + ": " + said)
			f.fix = "see that the zone " + o.config.Domain + " is delegated to the relay (sallyport doctor at the relay says which NS records to set at the registrar)"
		}
	case "rejectedIdentifier", "unsupportedIdentifier":
		f.fix = "use a domain of your own, files of your own, or the home's own CA"
		return f
	case "invalidContact", "unsupportedContact":
		f.fix = "correct the e-mail address of ACME or leave it out"
		return f
	case "userActionRequired", "externalAccountRequired":
		f.fix = "do what it asks for, or choose another CA"
		return f
	case "serverInternal":
		f.fix, f.until = "nothing to do here: it is tried again", w.asked()
		return f
	default:
		f.fix, f.until = debugFix, w.asked()
		return f
	}
	if better := cmp.Or(seen.hold, seen.hint); better != nil {
		f.problem, f.fix = oneLine(better.problem+" ("+ca+": "+said+")"), better.fix
	}
	return f
}

// explainWay explains why no answer came.
func explainWay(err error, ca string, w *waiter) *failure {
	f := &failure{problem: oneLine("no certificate from " + ca + ": " + err.Error()), fix: debugFix, until: w.asked()}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		f.problem = "the ACME server " + ca + " shows a certificate of a CA that this machine does not know"
		f.fix = "name the file with its root in the settings of ACME; or install ca-certificates"
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
func (o *orders) limitedUntil(said string, w *waiter) time.Time {
	if m := waitUntil.FindStringSubmatch(said); m != nil {
		if at, err := time.Parse(time.DateTime, strings.Replace(m[1], "T", " ", 1)); err == nil {
			return at.Add(time.Minute) // their clock and ours
		}
	}
	if at := w.asked(); !at.IsZero() {
		return at
	}
	return o.config.Now().Add(shortestLimit)
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
	if ca == letsEncrypt {
		return "Let's Encrypt"
	}
	if u, err := url.Parse(ca); err == nil {
		return u.Host
	}
	return ca
}

// oneLine makes text of a server fit for one line of a terminal.
func oneLine(s string) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t' || r == '\r':
			return ' '
		case r < ' ' || r >= 0x7f && r < 0xa0 || r == 0x2028 || r == 0x2029 || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069:
			return -1
		}
		return r
	}, s)
	s = strings.Join(strings.Fields(s), " ")
	if r := []rune(s); len(r) > 300 {
		s = string(r[:300]) + "…"
	}
	return s
}
