package certs

import (
	"context"
	"log/slog"
	"maps"
	"sync"
	"time"
)

const (
	maxAttempts = 4                // at the same time
	attemptTime = 5 * time.Minute  // of one attempt
	adviceTime  = 20 * time.Second // of one look at the CA's advice
	adviceFirst = time.Hour        // after a certificate was obtained
	adviceEvery = 6 * time.Hour    // when the CA does not say how often
	longestWait = 10 * time.Minute // of run, so that clocks that jump are noticed
	heldFirst   = time.Minute      // until the second look at something that is not the CA's
	heldWait    = 5 * time.Minute  // between the later ones
	heldAtMost  = time.Hour        // until the CA is asked in spite of what a look at the host found
)

// defaultRetries keeps below Let's Encrypt's five failed validations per host
// and hour.
var defaultRetries = []time.Duration{
	time.Minute, 5 * time.Minute, 15 * time.Minute, 30 * time.Minute,
	time.Hour, 2 * time.Hour, 4 * time.Hour, 6 * time.Hour,
}

func (o *orders) run(ctx context.Context) error {
	defer o.http.CloseIdleConnections()
	var attempts sync.WaitGroup
	defer attempts.Wait()
	o.account.announce()
	for {
		timer := time.NewTimer(o.startDue(ctx, &attempts))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-o.wake:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// startDue starts what is due and returns how long nothing else will be.
func (o *orders) startDue(ctx context.Context, attempts *sync.WaitGroup) time.Duration {
	o.mu.Lock()
	defer o.mu.Unlock()
	wait, now := longestWait, o.config.Now()
	for _, e := range o.entries {
		if e.refused || e.busy || !e.wanted || ctx.Err() != nil {
			continue
		}
		if in := e.due.Sub(now); in > 0 {
			wait = min(wait, in)
			continue
		}
		if o.running == maxAttempts {
			continue // the next one that ends wakes run
		}
		o.running++
		e.busy = true
		attempts.Go(func() { o.attend(ctx, e) })
	}
	return wait
}

// attend looks after one certificate once.
func (o *orders) attend(ctx context.Context, e *entry) {
	limited, cancel := context.WithTimeout(ctx, attemptTime)
	defer cancel()
	got, err := o.attempt(limited, e)
	var say event
	changed := false
	o.mu.Lock()
	e.busy = false
	o.running--
	if err == nil || ctx.Err() == nil { // one that the end of run cut short leaves no trace
		say, changed = o.settle(e, got, err)
	}
	o.mu.Unlock()
	if changed {
		o.keepTries()
	}
	o.kick()
	if say.name != "" {
		o.config.Logger.LogAttrs(ctx, say.level, say.name, say.attrs...)
	}
}

// keepTries writes down what failed.
func (o *orders) keepTries() {
	o.saving.Lock() // held while a small file is written, so that the last write is the newest
	defer o.saving.Unlock()
	o.mu.Lock()
	all := make(map[string]try)
	maps.Copy(all, o.away)
	for name, e := range o.entries {
		if t, ok := e.try(); ok {
			all[name] = t
		}
	}
	o.mu.Unlock()
	if err := o.keeper.keepTries(all, o.config.Now()); err != nil {
		o.config.Logger.Warn("a restart forgets how often the CA was asked", "err", err)
	}
}

// attempt returns a new certificate, or nil when the one there is will do.
func (o *orders) attempt(ctx context.Context, e *entry) (*obtained, error) {
	o.mu.Lock()
	unkept := e.unkept
	o.mu.Unlock()
	if unkept != nil {
		if err := o.keeper.keepCertificate(e.name, unkept); err != nil {
			return nil, &failure{held: true, problem: oneLine("the certificate serves, but cannot be kept: " + err.Error()), fix: "see whether the disk is full or broken: a restart would lose it"}
		}
		o.mu.Lock()
		e.unkept = nil
		o.mu.Unlock()
	}
	o.refreshAdvice(ctx, e)
	now := o.config.Now()
	o.mu.Lock()
	old := e.cert
	if old != nil && now.Before(e.renewAt()) {
		o.mu.Unlock()
		return nil, nil
	}
	job := job{
		name: e.name, sans: e.sans,
		// The CA may have lost the old one: every other attempt does not mention it.
		again: e.failures%2 == 1, byDNS: e.byDNS,
	}
	if old != nil {
		job.old = old.Leaf
	}
	if e.asked.IsZero() {
		e.asked = now
	}
	asked := e.asked
	o.mu.Unlock()

	if err := o.ready(); err != nil {
		return nil, err
	}
	byDNS, err := o.choose(ctx, job)
	if err != nil {
		return nil, err
	}
	var seen sight
	if !byDNS {
		seen = o.look(ctx, job.name)
		if seen.hold != nil && now.Sub(asked) < heldAtMost {
			return nil, seen.hold
		}
	}
	o.mu.Lock()
	e.asked = now
	o.mu.Unlock()
	return o.obtain(ctx, job, byDNS, seen)
}

// refreshAdvice asks the CA when it wants the certificate renewed. Without an
// answer the certificate's own dates decide.
func (o *orders) refreshAdvice(ctx context.Context, e *entry) {
	o.mu.Lock()
	cert, due := e.cert, e.adviceDue
	o.mu.Unlock()
	now := o.config.Now()
	if cert == nil || now.Before(due) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, adviceTime)
	defer cancel()
	got, err := o.client(nil).GetRenewalInfo(ctx, cert.Leaf)
	o.mu.Lock()
	defer o.mu.Unlock()
	e.adviceDue = now.Add(adviceEvery)
	if err != nil {
		o.config.Logger.LogAttrs(ctx, slog.LevelDebug, "no renewal advice", slog.String("host", e.name), slog.Any("err", err))
		return
	}
	if got.RetryAfter != nil && got.RetryAfter.After(now) {
		e.adviceDue = *got.RetryAfter
	}
	if last := now.Add(24 * time.Hour); e.adviceDue.After(last) {
		e.adviceDue = last // whatever the CA says: it may want to revoke
	}
	if got.SameWindow(e.advice) {
		got.SelectedTime = e.advice.SelectedTime // chosen once per window
	}
	e.advice = got
}
