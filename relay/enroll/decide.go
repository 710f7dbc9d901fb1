package enroll

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"

	"github.com/sallyport/sallyport/relay/store"
)

// Approve grants a request that waits, by its ID or by the name that it asks
// for, and returns it issued. Approving what is issued already changes
// nothing. When the certificate cannot be issued (the name went to another
// device), the request goes on waiting.
func (d *Desk) Approve(ctx context.Context, idOrName string) (Request, error) {
	r, err := d.decide(ctx, idOrName, d.approve)
	if err != nil {
		return Request{}, fmt.Errorf("approve %q: %w", idOrName, err)
	}
	return r.view(d.cfg.Now()), nil
}

// Deny refuses a request that waits, by its ID or by the name that it asks
// for. What was issued can only be revoked.
func (d *Desk) Deny(ctx context.Context, idOrName string) (Request, error) {
	r, err := d.decide(ctx, idOrName, d.deny)
	if err != nil {
		return Request{}, fmt.Errorf("deny %q: %w", idOrName, err)
	}
	return r.view(d.cfg.Now()), nil
}

// decide finds a request and lets f decide it; again when another relay wrote
// it in between.
func (d *Desk) decide(ctx context.Context, idOrName string, f func(context.Context, *request) (*request, error)) (*request, error) {
	if err := d.begin(ctx); err != nil {
		return nil, err
	}
	defer d.end()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), finishIn)
	defer cancel()
	for {
		r, err := d.find(idOrName)
		if err != nil {
			return nil, err
		}
		decided, err := f(ctx, r)
		if !errors.Is(err, store.ErrConflict) {
			return decided, err
		}
		if err := d.reread(ctx, r.ID); err != nil {
			return nil, err
		}
	}
}

// find returns the request that an owner means.
func (d *Desk) find(idOrName string) (*request, error) {
	now := d.cfg.Now()
	d.mu.Lock()
	defer d.mu.Unlock()
	if r := d.requests[idOrName]; r != nil {
		return r, nil
	}
	var found *request
	for _, r := range d.requests {
		if r.Name != idOrName || r.view(now).State != Pending {
			continue
		}
		if found != nil {
			return nil, errors.New("several requests ask for this name\nSay which one by its ID: sallyport device list")
		}
		found = r
	}
	if found == nil {
		return nil, fmt.Errorf("%w\nThose that wait are in: sallyport device list", ErrUnknown)
	}
	return found, nil
}

// reread brings the store's present record into memory.
func (d *Desk) reread(ctx context.Context, id string) error {
	e, err := d.cfg.Store.Get(ctx, requestPrefix+id)
	if errors.Is(err, store.ErrNotFound) {
		d.setRequest(id, nil)
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the request: %w", err)
	}
	d.learn(store.Event{Entry: e})
	return nil
}

func (d *Desk) approve(ctx context.Context, r *request) (*request, error) {
	switch now := d.cfg.Now(); {
	case r.State == Issued:
		return r, nil
	case r.view(now).State == Expired:
		return nil, errors.New("nobody decided in time, the request has expired\nThe device must ask again.")
	case r.State == Denied:
		return nil, errors.New("the request was denied\nThe device must ask again.")
	case r.State == Pending:
		approved := *r
		approved.State = stateApproved
		var err error
		if r, err = d.put(ctx, approved); err != nil {
			return nil, err
		}
		d.cfg.Audit("enrol.approved", slog.String("request", r.ID), slog.String("device", r.Name), slog.String("key", r.keyID))
	}
	return d.finish(ctx, r)
}

func (d *Desk) deny(ctx context.Context, r *request) (*request, error) {
	if r.State == stateApproved { // and not issued, as far as is known here
		if cert, err := d.issued(ctx, r); err != nil {
			return nil, err
		} else if cert != nil {
			if r, err = d.keep(ctx, r, cert); err != nil {
				return nil, err
			}
		}
	}
	switch {
	case r.State == Issued:
		return nil, fmt.Errorf("its certificate is issued\nTake it back: sallyport device revoke %s", r.Name)
	case r.State == Denied:
		return r, nil
	case !r.undecided():
		return nil, errors.New("nobody decided in time, the request has expired")
	}
	denied := *r
	denied.State = Denied
	denied.Forget = d.cfg.Now().UTC().Add(keepDecided)
	r, err := d.put(ctx, denied)
	if err != nil {
		return nil, err
	}
	d.cfg.Audit("enrol.denied", slog.String("request", r.ID), slog.String("device", r.Name), slog.String("key", r.keyID))
	d.cfg.Changed()
	return r, nil
}

// finish issues the certificate of an approved request. It wants the token of
// writers. After an error that certainly left no certificate, it takes the
// approval back; after any other, the request stays approved and Run tries
// again.
func (d *Desk) finish(ctx context.Context, r *request) (*request, error) {
	pub, err := x509.ParsePKIXPublicKey(r.SPKI)
	if err != nil {
		return nil, fmt.Errorf("the key of the request: %w", err)
	}
	cert, failed := d.cfg.Issue(ctx, Grant{Name: r.Name, Key: pub, Hosts: r.Hosts, Until: r.Until, Admin: r.Admin})
	if failed == nil && hash(string(cert.RawSubjectPublicKeyInfo)) != r.keyID {
		failed = errors.New("the certificate is for another key") // a fault of ours: give it to nobody
	}
	if failed != nil {
		// It may have been issued before a crash, or in spite of the error.
		cert, err = d.issued(ctx, r)
		if err != nil {
			return nil, errors.Join(failed, err)
		}
	}
	if cert != nil {
		return d.keep(ctx, r, cert)
	}
	d.cfg.Audit("enrol.failed", slog.String("request", r.ID), slog.String("device", r.Name), slog.String("err", failed.Error()))
	if err := d.takeBack(ctx, r); err != nil {
		return nil, errors.Join(failed, err)
	}
	return nil, failed
}

// issued returns the live certificate that the request's key has under the
// request's name, or nil.
func (d *Desk) issued(ctx context.Context, r *request) (*x509.Certificate, error) {
	cert, err := d.cfg.Issued(ctx, r.keyID)
	if err != nil {
		return nil, fmt.Errorf("look for its certificate: %w", err)
	}
	if cert == nil || cert.Subject.CommonName != r.Name || hash(string(cert.RawSubjectPublicKeyInfo)) != r.keyID {
		return nil, nil
	}
	return cert, nil
}

// keep records the certificate of a request.
func (d *Desk) keep(ctx context.Context, r *request, cert *x509.Certificate) (*request, error) {
	done := *r
	done.State, done.Cert = Issued, cert.Raw
	done.Forget = d.cfg.Now().UTC().Add(keepDecided)
	kept, err := d.put(ctx, done)
	if errors.Is(err, store.ErrConflict) { // another relay did the same
		if err := d.reread(ctx, r.ID); err != nil {
			return nil, err
		}
		if kept := d.request(r.ID); kept != nil && kept.State == Issued {
			return kept, nil
		}
	}
	if err != nil {
		return nil, err
	}
	d.cfg.Audit("enrol.issued", slog.String("request", kept.ID), slog.String("device", kept.Name), slog.String("key", kept.keyID),
		slog.String("serial", cert.SerialNumber.Text(16)), slog.Time("not_after", cert.NotAfter))
	d.cfg.Changed()
	return kept, nil
}

// takeBack undoes the approval of a request for which nothing was issued: it
// waits again, or, where the code was the approval, the code waits again. The
// request goes first: in between, the code still belongs to its applicant.
func (d *Desk) takeBack(ctx context.Context, r *request) error {
	if r.Code == "" || r.Approve {
		back := *r
		back.State = Pending
		_, err := d.put(ctx, back)
		return err
	}
	if done, err := d.drop(ctx, requestPrefix+r.ID, r.revision); err != nil || !done {
		return err
	}
	d.mu.Lock()
	c := d.codes[r.Code]
	d.mu.Unlock()
	if c == nil || c.UsedBy == nil || c.UsedBy.Request != r.ID {
		return nil
	}
	free := *c
	free.UsedBy = nil
	_, err := d.putCode(ctx, free)
	d.cfg.Changed()
	return err
}
