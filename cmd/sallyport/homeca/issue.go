package homeca

import (
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"net/netip"
	"time"

	"github.com/sallyport/sallyport/protocol/pki"
	"github.com/sallyport/sallyport/relay/devices"
	"github.com/sallyport/sallyport/relay/enroll"
)

// A known error lets the desk and its protocols decide by an error of package
// devices.
type known struct {
	error
	as error // the desk's word for it
}

func (e known) Unwrap() error        { return e.error }
func (e known) Is(target error) bool { return target == e.as }

func deskError(err error) error {
	for _, same := range []struct{ devices, desk error }{
		{devices.ErrNameTaken, enroll.ErrNameTaken},
		{devices.ErrKeyUsed, enroll.ErrKeyUsed},
		{devices.ErrNotAllowed, enroll.ErrNotAllowed},
	} {
		if errors.Is(err, same.devices) {
			return known{err, same.desk}
		}
	}
	return err
}

func (h *Home) checkName(name string) error { return deskError(h.devices.CheckName(name)) }

// issue is the desk's way to a certificate. Asked again for the same device it
// returns the same certificate.
func (h *Home) issue(ctx context.Context, g enroll.Grant) (*x509.Certificate, error) {
	if g.Admin {
		return nil, errAdmin
	}
	d, cert, err := h.devices.Add(ctx, devices.Grant{Name: g.Name, Key: g.Key, Hosts: g.Hosts, Until: g.Until})
	if err != nil {
		return nil, deskError(err)
	}
	h.added(d)
	return cert, nil
}

// issued tells the desk what became of an issuing that was cut short.
func (h *Home) issued(_ context.Context, keyID string) (*x509.Certificate, error) {
	if d, ok := h.devices.ByID(keyID); !ok || d.Revoked {
		return nil, nil
	}
	cert, _ := h.devices.Certificate(keyID)
	return cert, nil
}

func (h *Home) added(d devices.Device) {
	h.event("device.added", slog.String("device", d.Name), slog.String("id", d.ID), slog.Any("hosts", d.Hosts),
		slog.Time("not_after", d.NotAfter), slog.Time("until", d.Until))
}

// renew gives a device that the door let in a certificate for a new key.
func (h *Home) renew(ctx context.Context, old *x509.Certificate, csr []byte) (*x509.Certificate, error) {
	pub, err := pki.ParseCSR(csr)
	if err != nil {
		return nil, err
	}
	d, cert, err := h.devices.Renew(ctx, old, pub)
	if err != nil {
		return nil, deskError(err)
	}
	h.event("device.renewed", slog.String("device", d.Name), slog.String("id", d.ID), slog.Time("not_after", d.NotAfter))
	return cert, nil
}

// estRetry is how long an EST client is told to wait for the owner.
const estRetry = 10 * time.Second

func (h *Home) applyEST(ctx context.Context, code string, csr []byte, source netip.Addr, agent string) (string, *x509.Certificate, time.Duration, error) {
	state, cert, err := h.apply(ctx, enroll.Application{Code: code, CSR: csr, Source: source, Via: enroll.ViaEST, Agent: agent})
	return state, cert, estRetry, err
}

func (h *Home) applySCEP(ctx context.Context, challenge string, csr []byte, source netip.Addr, agent string) (string, *x509.Certificate, error) {
	return h.apply(ctx, enroll.Application{Code: challenge, CSR: csr, Source: source, Via: enroll.ViaSCEP, Agent: agent})
}

func (h *Home) apply(ctx context.Context, a enroll.Application) (string, *x509.Certificate, error) {
	q, err := h.desk.Apply(ctx, a)
	if err != nil {
		return "", nil, err
	}
	cert, err := certOf(q)
	return string(q.State), cert, err
}

func (h *Home) statusOfKey(ctx context.Context, keyID string) (string, *x509.Certificate, error) {
	q, ok, err := h.desk.StatusOfKey(ctx, keyID)
	if err != nil || !ok {
		return "", nil, err
	}
	cert, err := certOf(q)
	return string(q.State), cert, err
}

// certOf is the certificate of a request, nil while there is none.
func certOf(q enroll.Request) (*x509.Certificate, error) {
	if len(q.Cert) == 0 {
		return nil, nil
	}
	return x509.ParseCertificate(q.Cert)
}
