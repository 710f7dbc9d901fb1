package certs

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3/acme"
	"go.uber.org/zap"
)

const (
	maxAttempts = 4                // at the same time
	attemptTime = 5 * time.Minute  // of one attempt
	adviceTime  = 20 * time.Second // of one look at the CA's advice
	adviceFirst = time.Hour        // after a certificate was obtained
	adviceEvery = 6 * time.Hour    // when the CA does not say how often
	longestWait = 10 * time.Minute // of Run, so that clocks that jump are noticed
	heldWait    = 5 * time.Minute  // between looks at something that only its owner can mend
	heldAtMost  = time.Hour        // until the CA is asked in spite of the preflight
)

// defaultRetries keeps below Let's Encrypt's five failed validations per host
// and hour.
var defaultRetries = []time.Duration{
	time.Minute, 5 * time.Minute, 15 * time.Minute, 30 * time.Minute,
	time.Hour, 2 * time.Hour, 4 * time.Hour, 6 * time.Hour,
}

// managed is one host. All fields are guarded by ACME.mu.
type managed struct {
	name    string
	refused bool             // no CA will be asked; problem and fix say why
	cert    *tls.Certificate // serves; nil: none yet
	at      time.Time        // when it was obtained; zero: it was there at the start

	due      time.Time // of the next look
	busy     bool      // an attempt is under way
	failures int       // since the last success
	problem  string
	fix      string
	limit    time.Time // the CA, or the budget, does not want to hear of the host before; zero: no limit
	asked    time.Time // when the CA was last asked, or the preflight began to hold

	advice    acme.RenewalInfo // the CA's, when it gives any (ARI)
	adviceDue time.Time
}

// renewAt is when the certificate should be replaced: in the window that the
// CA asks for, else at two thirds of its life (half, when it lasts ten days or
// less), and never later than a tenth before its end.
func (m *managed) renewAt() time.Time {
	leaf := m.cert.Leaf
	life := leaf.NotAfter.Sub(leaf.NotBefore)
	at := leaf.NotBefore.Add(life * 2 / 3)
	if life <= 10*24*time.Hour {
		at = leaf.NotBefore.Add(life / 2)
	}
	if !m.advice.SelectedTime.IsZero() {
		at = m.advice.SelectedTime
		// A window that lies in the past even for a new certificate would
		// have us order without end.
		if first := m.at.Add(min(time.Hour, life/3)); at.Before(first) {
			at = first
		}
	}
	if last := leaf.NotAfter.Add(-life / 10); at.After(last) {
		at = last
	}
	return at
}

// Run obtains and renews until ctx ends, and returns after all attempts have.
func (a *ACME) Run(ctx context.Context) error {
	// certmagic wants a cache, and starts its maintenance with it. It stays
	// empty: renewals are ordered below, where they can be seen, timed,
	// cancelled and waited for.
	var cache *certmagic.Cache
	logger := zap.New(zapToSlog{handler: quiet{a.config.Logger.Handler()}})
	cache = certmagic.NewCache(certmagic.CacheOptions{
		GetConfigForCert: func(certmagic.Certificate) (*certmagic.Config, error) {
			return nil, errors.New("the cache holds nothing")
		},
		Logger: logger,
	})
	defer cache.Stop()
	defer a.http.CloseIdleConnections()
	var attempts sync.WaitGroup
	defer attempts.Wait()
	manager := func(i *acmeIssuer) *certmagic.Config {
		return certmagic.New(cache, certmagic.Config{
			Issuers: []certmagic.Issuer{i}, Storage: a.storage, Logger: logger, DisableARI: true,
			KeySource: certmagic.StandardKeyGenerator{KeyType: certmagic.P256},
			OCSP:      certmagic.OCSPConfig{DisableStapling: true},
		})
	}
	for {
		timer := time.NewTimer(a.startDue(ctx, &attempts, manager))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-a.wake:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// startDue starts what is due and returns how long nothing else will be.
func (a *ACME) startDue(ctx context.Context, attempts *sync.WaitGroup, manager func(*acmeIssuer) *certmagic.Config) time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	wait, now := longestWait, a.config.Now()
	for _, m := range a.hosts {
		if m.refused || m.busy || ctx.Err() != nil {
			continue
		}
		if in := m.due.Sub(now); in > 0 {
			wait = min(wait, in)
			continue
		}
		if a.running == maxAttempts {
			continue // the next one that ends wakes Run
		}
		a.running++
		m.busy = true
		attempts.Go(func() { a.attend(ctx, m, manager) })
	}
	return wait
}

// attend looks after one host once.
func (a *ACME) attend(ctx context.Context, m *managed, manager func(*acmeIssuer) *certmagic.Config) {
	limited, cancel := context.WithTimeout(ctx, attemptTime)
	defer cancel()
	cert, err := a.attempt(limited, m, manager)
	say := a.settle(ctx, m, cert, err)
	a.kick()
	if say.name == "" {
		return
	}
	a.config.Logger.LogAttrs(ctx, say.level, say.name, say.attrs...)
	if say.level > slog.LevelDebug {
		a.config.Events(say.name, say.attrs...)
	}
}

// An event is what there is to say of an attempt. Repetitions are debug level.
type event struct {
	level slog.Level
	name  string
	attrs []slog.Attr
}

// settle notes how an attempt ended. One that the end of Run cut short leaves
// no trace.
func (a *ACME) settle(ctx context.Context, m *managed, cert *tls.Certificate, err error) event {
	a.mu.Lock()
	defer a.mu.Unlock()
	m.busy = false
	a.running--
	switch {
	case err == nil:
		return a.succeeded(m, cert)
	case ctx.Err() != nil:
		return event{}
	}
	return a.failed(m, err)
}

// attempt returns a new certificate, or nil when the one there is will do.
func (a *ACME) attempt(ctx context.Context, m *managed, manager func(*acmeIssuer) *certmagic.Config) (*tls.Certificate, error) {
	a.refreshAdvice(ctx, m)
	a.mu.Lock()
	old, now := m.cert, a.config.Now()
	if old != nil && now.Before(m.renewAt()) {
		a.mu.Unlock()
		return nil, nil
	}
	a.mu.Unlock()
	// Before any look, too: hosts without number must not keep renewals waiting.
	if until := a.budget.full(m.name, now); old == nil && !until.IsZero() {
		return nil, a.budget.spentFailure(m.name, until)
	}
	a.mu.Lock()
	if m.asked.IsZero() {
		m.asked = now
	}
	asked, again := m.asked, m.failures%2 == 1
	a.mu.Unlock()

	var found report
	if !a.config.NoPreflight {
		found = a.preflight(ctx, m.name)
	}
	if found.hold != nil && now.Sub(asked) < heldAtMost {
		return nil, found.hold
	}
	if old == nil {
		until, err := a.budget.take(m.name, now)
		if err != nil {
			a.config.Logger.Warn("a restart forgets part of the budget", "err", err)
		}
		if !until.IsZero() {
			return nil, a.budget.spentFailure(m.name, until)
		}
	}
	a.mu.Lock()
	m.asked = now
	a.mu.Unlock()

	i := &acmeIssuer{acme: a, methods: found.methods, waiter: new(waiter)}
	var err error
	if old != nil {
		if !again { // the CA may have lost the old one: every other attempt does not mention it
			i.replaces = old.Leaf
		}
		err = manager(i).RenewCertSync(ctx, m.name, true)
	} else {
		if err = a.storage.forget(ctx, i.IssuerKey(), m.name); err == nil {
			err = manager(i).ObtainCertSync(ctx, m.name)
		}
	}
	if err != nil {
		return nil, a.explain(err, found, i.waiter)
	}
	cert, err := a.storage.certificate(i.IssuerKey(), m.name)
	if err == nil && cert == nil {
		err = errors.New("it was not kept")
	}
	if err != nil {
		return nil, &failure{problem: oneLine("the new certificate cannot be used: " + err.Error()), fix: "see whether the disk is full or broken"}
	}
	return cert, nil
}

// refreshAdvice asks the CA when it wants the certificate renewed. Without an
// answer the certificate's own dates decide.
func (a *ACME) refreshAdvice(ctx context.Context, m *managed) {
	a.mu.Lock()
	cert, due := m.cert, m.adviceDue
	a.mu.Unlock()
	now := a.config.Now()
	if cert == nil || now.Before(due) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, adviceTime)
	defer cancel()
	got, err := a.client(nil).GetRenewalInfo(ctx, cert.Leaf)
	a.mu.Lock()
	defer a.mu.Unlock()
	m.adviceDue = now.Add(adviceEvery)
	if err != nil {
		a.config.Logger.Debug("no renewal advice", "host", m.name, "err", err)
		return
	}
	if got.RetryAfter != nil && got.RetryAfter.After(now) {
		m.adviceDue = *got.RetryAfter
	}
	if got.SameWindow(m.advice) {
		got.SelectedTime = m.advice.SelectedTime // chosen once per window
	}
	m.advice = got
}

// succeeded notes that all is well, with a new certificate or the old one; mu
// is held.
func (a *ACME) succeeded(m *managed, cert *tls.Certificate) (say event) {
	if cert != nil {
		say = event{level: slog.LevelInfo, name: "certificate.issued"}
		if m.cert != nil {
			say.name = "certificate.renewed"
		}
		say.attrs = []slog.Attr{slog.String("host", m.name), slog.String("issuer", issuerName(cert.Leaf)), slog.Time("until", cert.Leaf.NotAfter)}
		m.cert, m.at, m.advice = cert, a.config.Now(), acme.RenewalInfo{}
		m.adviceDue = m.at.Add(adviceFirst)
		a.publish()
	}
	m.failures, m.problem, m.fix, m.limit, m.asked = 0, "", "", time.Time{}, time.Time{}
	m.due = m.renewAt()
	if m.adviceDue.Before(m.due) {
		m.due = m.adviceDue
	}
	return say
}

// failed notes why, and when to try again; mu is held.
func (a *ACME) failed(m *managed, err error) event {
	f, ok := errors.AsType[*failure](err)
	if !ok {
		f = &failure{problem: oneLine(err.Error()), fix: "the relay's log at debug level has every step"}
	}
	now := a.config.Now()
	wait := a.retries[min(m.failures, len(a.retries)-1)]
	if f.held { // looks are free, and once its owner has mended it nobody should wait long
		wait = min(wait, heldWait)
	} else {
		m.failures++
	}
	m.due, m.limit = now.Add(wait), f.until
	if f.until.After(m.due) {
		m.due = f.until
	}
	level := slog.LevelDebug
	if m.problem != f.problem { // the same thing once, not at every attempt
		level = slog.LevelError
	}
	m.problem, m.fix = f.problem, f.fix
	return event{level, "certificate.failed", []slog.Attr{
		slog.String("host", m.name), slog.String("problem", f.problem), slog.String("fix", f.fix), slog.Time("next", m.due),
		slog.Bool("old_serves", m.cert != nil && now.Before(m.cert.Leaf.NotAfter)),
	}}
}

// directory asks the CA what it is, also to see that it is there.
func (a *ACME) directory(ctx context.Context) (acme.Directory, error) {
	dir, err := a.client(nil).GetDirectory(ctx)
	if err != nil {
		return dir, fmt.Errorf("read the directory of the ACME server: %w", err)
	}
	return dir, nil
}
