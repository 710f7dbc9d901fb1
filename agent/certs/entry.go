package certs

import (
	"crypto/tls"
	"log/slog"
	"time"

	"github.com/mholt/acmez/v3/acme"
)

// An entry is one certificate. name and sans never change; the other fields
// are guarded by orders.mu.
type entry struct {
	name string   // the first of sans; names the file too
	sans []string // patterns that it covers

	wanted   bool             // a host is served with it
	optional bool             // the agent's own, which no service needs at the moment
	refused  bool             // no CA will be asked; problem and fix say why
	cert     *tls.Certificate // serves; nil: none yet
	at       time.Time        // when it was obtained; zero: it was there at the start
	unkept   []byte           // the file of cert, when it could not be written

	due      time.Time // of the next look
	busy     bool      // an attempt is under way
	held     bool      // the last look did not get as far as the CA
	back     bool      // a relay came back during the attempt that is under way
	failures int       // since the last success; those that the CA counts too
	byDNS    bool      // the last of them was by dns-01
	problem  string
	fix      string
	off      bool      // the problem is that the relay answers no DNS
	limit    time.Time // the CA does not want to hear of it before; zero: no limit
	asked    time.Time // when the CA was last asked, or a look began to hold it

	advice    acme.RenewalInfo // the CA's, when it gives any (ARI)
	adviceDue time.Time
}

// A try is what is kept of failures over a restart, so that an agent that is
// started again and again does not ask the CA again and again.
type try struct {
	Failures int       `json:"failures"`
	ByDNS    bool      `json:"by_dns,omitempty"`
	Next     time.Time `json:"next"`
	Limit    time.Time `json:"limit,omitzero"`
	Problem  string    `json:"problem"`
	Fix      string    `json:"fix"`
}

// longestLimit bounds what a CA, or a clock that was wrong when it was written
// down, can keep us waiting. Let's Encrypt counts over a week.
const longestLimit = 8 * 24 * time.Hour

// remember takes over what is known from before a restart.
func (e *entry) remember(t try, now time.Time) {
	if t.Failures <= 0 || t.Next.Sub(now) > longestLimit || t.Limit.Sub(now) > longestLimit {
		return
	}
	e.failures, e.byDNS, e.limit, e.problem, e.fix = t.Failures, t.ByDNS, t.Limit, t.Problem, t.Fix
	if t.Next.After(now) {
		e.due = t.Next
	}
}

// try is what to keep; false: nothing.
func (e *entry) try() (try, bool) {
	if e.failures == 0 {
		return try{}, false
	}
	return try{Failures: e.failures, ByDNS: e.byDNS, Next: e.due, Limit: e.limit, Problem: e.problem, Fix: e.fix}, true
}

// renewAt is when the certificate should be replaced: in the window that the
// CA asks for, else at two thirds of its life (half, when it lasts ten days or
// less), and never later than a tenth before its end.
func (e *entry) renewAt() time.Time {
	leaf := e.cert.Leaf
	life := leaf.NotAfter.Sub(leaf.NotBefore)
	at := leaf.NotBefore.Add(life * 2 / 3)
	if life <= 10*24*time.Hour {
		at = leaf.NotBefore.Add(life / 2)
	}
	if spread := int64(life / 100); spread > 0 && leaf.SerialNumber != nil {
		// Not all hosts, nor all homes that came back after the same power cut, in
		// the same second. The serial makes it the same at every look.
		at = at.Add(time.Duration(leaf.SerialNumber.Int64() % spread).Abs())
	}
	if !e.advice.SelectedTime.IsZero() {
		at = e.advice.SelectedTime
		// A window that lies in the past even for a new certificate would
		// have us order without end.
		if first := e.at.Add(min(time.Hour, life/3)); at.Before(first) {
			at = first
		}
	}
	if last := leaf.NotAfter.Add(-life / 10); at.After(last) {
		at = last
	}
	return at
}

func (e *entry) status(host string, now time.Time) Status {
	st := Status{Host: host, State: StateOK, Next: e.due, Problem: e.problem, Fix: e.fix}
	switch {
	case e.refused:
		st.State, st.Next = StateRefused, time.Time{}
	case e.off && e.optional && e.cert == nil:
		st.State = StateOff
	case e.problem != "":
		st.State = StateFailing
	case e.cert == nil:
		st.State = StateIssuing
	}
	if e.cert != nil {
		st.NotAfter, st.Issuer = e.cert.Leaf.NotAfter, issuerName(e.cert.Leaf)
		if e.problem == "" {
			st.Next = e.renewAt() // what comes before is only a look at the CA's advice
		}
	}
	return st
}

// An event is what there is to say of an attempt. Repetitions are debug level.
type event struct {
	level slog.Level
	name  string
	attrs []slog.Attr
}

// settle notes how an attempt ended; mu is held. changed: what is kept of
// failures has to be written. A failure that the end of run brought leaves no
// trace; see attend.
func (o *orders) settle(e *entry, got *obtained, err error) (say event, changed bool) {
	before := e.failures
	if err == nil {
		say = o.succeeded(e, got)
	} else {
		say = o.failed(e, err)
	}
	return say, before > 0 || e.failures > 0
}

func (o *orders) succeeded(e *entry, got *obtained) (say event) {
	if got != nil {
		say = event{level: slog.LevelInfo, name: "certificate.issued"}
		if e.cert != nil {
			say.name = "certificate.renewed"
		}
		say.attrs = []slog.Attr{slog.String("host", e.name), slog.String("issuer", issuerName(got.cert.Leaf)), slog.Time("until", got.cert.Leaf.NotAfter)}
		e.cert, e.at, e.advice, e.unkept = got.cert, o.config.Now(), acme.RenewalInfo{}, nil
		e.adviceDue = e.at.Add(adviceFirst)
		o.publish()
	}
	e.failures, e.held, e.back, e.off, e.byDNS, e.problem, e.fix = 0, false, false, false, false, "", ""
	e.limit, e.asked = time.Time{}, time.Time{}
	e.due = e.renewAt()
	if e.adviceDue.Before(e.due) {
		e.due = e.adviceDue
	}
	if got != nil && got.unkept != nil {
		// It serves, and the CA has counted it: it must not be ordered again
		// because a disk is full.
		e.unkept, e.due = got.unkept, e.at.Add(heldWait)
		e.problem, e.fix, e.held = got.problem, "see whether the disk is full or broken: a restart would lose this certificate", true
		say.level = slog.LevelError
		say.attrs = append(say.attrs, slog.String("problem", e.problem), slog.String("fix", e.fix))
	}
	return say
}

func (o *orders) failed(e *entry, err error) event {
	f := asFailure(err)
	now := o.config.Now()
	wait := o.retries[min(e.failures, len(o.retries)-1)]
	switch {
	case f.held && e.problem == "":
		wait = heldFirst
	case f.held: // looks are free, and once its owner has mended it nobody should wait long
		wait = heldWait
	default:
		e.failures++
		e.byDNS = f.byDNS
		wait += o.jitter(wait / 4)
	}
	e.held, e.off = f.held, f.off
	e.due, e.limit = now.Add(wait), time.Time{}
	if f.until.After(now) {
		e.limit = f.until
		if last := now.Add(longestLimit); e.limit.After(last) {
			e.limit = last
		}
	}
	if e.held && e.back {
		e.due = now
	}
	e.back = false
	if e.limit.After(e.due) {
		e.due = e.limit.Add(o.jitter(time.Minute))
	}
	level := slog.LevelDebug
	if e.problem != f.problem { // the same thing once, not at every attempt
		level = slog.LevelError
		if f.off && e.optional {
			level = slog.LevelInfo
		}
	}
	e.problem, e.fix = f.problem, f.fix
	return event{level, "certificate.failed", []slog.Attr{
		slog.String("host", e.name), slog.String("problem", f.problem), slog.String("fix", f.fix), slog.Time("next", e.due),
		slog.Bool("old_serves", e.cert != nil && now.Before(e.cert.Leaf.NotAfter)),
	}}
}
