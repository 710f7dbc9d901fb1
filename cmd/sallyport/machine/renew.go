package machine

import (
	"context"
	"crypto"
	"fmt"
	"time"

	"github.com/sallyport/sallyport/protocol/pki"
)

// Renew replaces key and certificate, under the certificate that is still
// there, whether or not it is due. The old one goes on working until its own
// end. ErrEnded when the certificate is over, ErrBusy when another process
// renews.
func (d *Device) Renew(ctx context.Context) error {
	_, err := d.renew(ctx, func() bool { return true })
	return err
}

// RenewIfDue renews when it is time, and reports whether it did. What another
// process renewed in the meantime is taken over.
func (d *Device) RenewIfDue(ctx context.Context, now time.Time) (bool, error) {
	return d.renew(ctx, func() bool { return d.Due(now) })
}

func (d *Device) renew(ctx context.Context, wanted func() bool) (bool, error) {
	unlock, err := lock(d.Dir)
	if err != nil {
		return false, err
	}
	defer unlock()
	if d.record, err = readRecord(d.Dir); err != nil { // what is on disk now
		return false, err
	}
	if err := d.load(); err != nil {
		return false, err
	}
	if !wanted() {
		return false, nil
	}
	if err := d.Usable(time.Now()); err != nil {
		return false, err
	}
	key, ans, err := d.askAgain(ctx)
	if err != nil {
		return false, err
	}
	cert, err := checkIssued(ans.Cert, ans.CA, key)
	if err != nil {
		return false, err
	}
	if err := d.swap(key, cert); err != nil {
		return false, fmt.Errorf("keep the renewed certificate: %w", err)
	}
	later := cert.NotAfter.Sub(d.Cert.NotAfter)
	d.key, d.Cert = key, cert
	moved := d.Address() != d.record.Address
	if later < time.Minute {
		d.record.LastEnd = cert.NotAfter
	}
	if d.record.Address = d.Address(); later < time.Minute || moved {
		if err := writeRecord(d.Dir, d.record); err != nil {
			return true, err
		}
	}
	return true, d.writeCA(ans.CA)
}

// askAgain makes a new key and asks for its certificate.
func (d *Device) askAgain(ctx context.Context) (key crypto.Signer, ans answer, err error) {
	if key, err = newKey(d.record.RSA); err != nil {
		return nil, ans, err
	}
	csr, err := pki.NewCSR(key)
	if err != nil {
		return nil, ans, err
	}
	cert := d.TLS()
	a := newAPI(d.CheckURL(), d.Address(), d.roots, &cert)
	defer a.close()
	err = a.do(ctx, "/api/renew", "", map[string][]byte{"csr": csr}, &ans)
	return key, ans, err
}
