package enroll

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"time"
	"unicode"

	"github.com/sallyport/sallyport/protocol/pki"
	"github.com/sallyport/sallyport/relay/store"
)

// Limits of requests.
const (
	pendingTTL   = 24 * time.Hour
	keepDecided  = 24 * time.Hour // so that the applicant hears of it
	maxOpen      = 100            // requests without a code that wait
	maxPerSource = 10             // requests without a code of one source, denied ones included until they are forgotten
	minTicket    = 22             // 128 bits in base64
	maxTicket    = 200
	maxAgent     = 160
	finishIn     = 30 * time.Second
)

// An applicant is an Application whose form was checked.
type applicant struct {
	Application
	spki   []byte
	keyID  string
	ticket string // hash, or empty
	from   netip.Prefix
	wish   string // a valid name, or empty
}

// Apply takes an application and returns what became of it: Issued at once
// with a code that needs no approval, otherwise Pending. The same application
// again (code, key and ticket) gets the same request in its present state.
//
// ErrCode and *BlockedError are about the code, ErrFull is about requests
// without one, ErrForm about the application, ErrNameTaken about its name.
// After every error but ErrCode the code is as good as before for this key and
// ticket.
func (d *Desk) Apply(ctx context.Context, app Application) (Request, error) {
	r, err := d.apply(ctx, app)
	if err != nil {
		return Request{}, err // it is for the applicant to read: nothing is put before it
	}
	return r.view(d.cfg.Now()), nil
}

func (d *Desk) apply(ctx context.Context, app Application) (*request, error) {
	now, hash := d.cfg.Now(), hash(normal(app.Code))
	if wait := d.admit(sourceOf(app.Source), now); wait > 0 {
		return nil, &BlockedError{wait}
	}
	// The form is checked before the code, so that a broken request uses up
	// nothing, and says nothing about a code.
	a, err := examine(app)
	if err != nil {
		return nil, formError{err}
	}
	if app.Code == "" {
		return d.applyOpen(ctx, a)
	}
	good := func() *code {
		if c := d.codes[hash]; c != nil && c.opens(a.keyID, a.ticket, now) {
			return c
		}
		return nil
	}
	if _, err := d.try(a.from, now, good); err != nil {
		return nil, err
	}
	if err := d.begin(ctx); err != nil {
		return nil, err
	}
	defer d.end()
	// Others may have come first while this one waited for the token.
	c, err := d.try(a.from, now, good)
	if err != nil {
		return nil, err
	}
	// From here on somebody who hangs up changes nothing any more.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), finishIn)
	defer cancel()
	return d.applyCode(ctx, a, c)
}

// examine checks everything about an application but its code.
func examine(app Application) (*applicant, error) {
	pub, err := pki.ParseCSR(app.CSR)
	if err != nil {
		return nil, err
	}
	spki, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, fmt.Errorf("signing request: %w", err)
	}
	a := &applicant{Application: app, spki: spki, keyID: hash(string(spki)), from: sourceOf(app.Source)}
	if n := len(app.Ticket); n != 0 {
		if n < minTicket || n > maxTicket {
			return nil, fmt.Errorf("the ticket has %d characters: it needs at least 128 random bits, that is %d to %d characters", n, minTicket, maxTicket)
		}
		a.ticket = hash(app.Ticket)
	}
	wish := app.Name
	if wish == "" {
		if csr, err := x509.ParseCertificateRequest(app.CSR); err == nil {
			wish = csr.Subject.CommonName // no more than a wish
		}
	}
	a.wish = cleanName(wish)
	a.Via = clip(app.Via, 16)
	a.Agent = clip(app.Agent, maxAgent)
	return a, nil
}

// clip makes a line of at most n printable characters of what a stranger sent.
func clip(s string, n int) string {
	var b strings.Builder
	for _, c := range s {
		if n == 0 {
			break
		}
		if unicode.IsPrint(c) {
			b.WriteRune(c)
			n--
		}
	}
	return b.String()
}

// name decides the name of a request. It is returned with the error, too, if
// there is one.
func (d *Desk) name(given, wish string) (string, error) {
	if given == "" {
		given = wish
	}
	if given == "" {
		return "", formError{errors.New("the device needs a name\nName it with letters, digits and hyphens, for example anna-phone.")}
	}
	if err := d.checkName(given); err != nil {
		return given, formError{fmt.Errorf("device name %q: %w", given, err)}
	}
	return given, nil
}

func (d *Desk) newRequest(a *applicant, name string, now time.Time) request {
	id := newID()
	for d.request(id) != nil {
		id = newID()
	}
	now = now.UTC()
	return request{
		Version: recordVersion, ID: id, Name: name, State: Pending, Via: a.Via, Agent: a.Agent,
		Source: a.Source.Unmap().WithZone(""), SPKI: a.spki, Ticket: a.ticket, keyID: a.keyID,
		Created: now, Expires: now.Add(pendingTTL), Forget: now.Add(pendingTTL + keepDecided),
	}
}

// applyOpen queues a request without a code. Where codes are needed, to have
// none is a wrong one: it counts.
func (d *Desk) applyOpen(ctx context.Context, a *applicant) (*request, error) {
	if !d.cfg.Open {
		_, err := d.try(a.from, d.cfg.Now(), func() *code { return nil })
		return nil, err
	}
	if err := d.begin(ctx); err != nil {
		return nil, err
	}
	defer d.end()
	now := d.cfg.Now()
	again, displaced, err := d.openRequest(a, now)
	if again != nil || err != nil {
		return again, err
	}
	// Whether the name is free is not said to strangers: it would tell them the
	// names of devices. Issue finds out.
	name, err := d.name("", a.wish)
	if err != nil && !errors.Is(err, ErrNameTaken) {
		return nil, err
	}
	if displaced != nil {
		if err := d.displace(ctx, displaced, now); err != nil {
			return nil, err
		}
	}
	r, err := d.put(ctx, d.newRequest(a, name, now))
	if err != nil {
		return nil, err
	}
	d.requested(r)
	return r, nil
}

func (d *Desk) admit(from netip.Prefix, now time.Time) time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.guard.admit(from, now)
}

// applyCode binds a code to the applicant and goes on where an earlier try of
// the same one ended. It wants the token of writers.
func (d *Desk) applyCode(ctx context.Context, a *applicant, c *code) (*request, error) {
	if c.UsedBy != nil {
		if r := d.request(c.UsedBy.Request); r != nil && r.Code == c.hash {
			return d.resume(ctx, r)
		} else if r != nil {
			return nil, ErrCode // never somebody else's request
		}
	}
	now := d.cfg.Now()
	name, err := d.name(c.Name, a.wish)
	if err != nil {
		return nil, err
	}
	r := d.newRequest(a, name, now)
	r.Hosts, r.Until, r.Admin, r.Approve, r.Code = c.Hosts, c.Until, c.Admin, c.Approve, c.hash
	if !c.Approve {
		r.State = stateApproved
	}
	if c.UsedBy == nil {
		used := *c
		used.UsedBy = &user{Request: r.ID, KeyID: a.keyID, Ticket: a.ticket}
		if _, err := d.putCode(ctx, used); errors.Is(err, store.ErrConflict) {
			return nil, d.lost(a) // another relay's applicant was quicker
		} else if err != nil {
			return nil, err
		}
	} else {
		r.ID = c.UsedBy.Request // a crash came before the request was written
	}
	kept, err := d.put(ctx, r)
	if err != nil {
		return nil, err
	}
	d.requested(kept)
	return d.resume(ctx, kept)
}

// lost counts the applicant's try as a wrong one.
func (d *Desk) lost(a *applicant) error {
	_, err := d.try(a.from, d.cfg.Now(), func() *code { return nil })
	return err
}

// resume brings a request further if nobody but the desk is in the way.
func (d *Desk) resume(ctx context.Context, r *request) (*request, error) {
	if r.State != stateApproved {
		return r, nil
	}
	return d.finish(ctx, r)
}

func (d *Desk) request(id string) *request {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.requests[id]
}

func (d *Desk) requested(r *request) {
	d.cfg.Audit("enrol.requested", slog.String("request", r.ID), slog.String("device", r.Name), slog.String("key", r.keyID),
		slog.String("source", r.Source.String()), slog.String("via", r.Via), slog.Bool("code", r.Code != ""), slog.String("state", string(r.State)))
	d.cfg.Changed()
}
