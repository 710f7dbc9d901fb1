package relay

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"time"

	"github.com/sallyport/sallyport/protocol/door"
	"github.com/sallyport/sallyport/protocol/names"
	"github.com/sallyport/sallyport/protocol/pki"
	"github.com/sallyport/sallyport/relay/devices"
	"github.com/sallyport/sallyport/relay/enroll"
	"github.com/sallyport/sallyport/relay/enroll/est"
	"github.com/sallyport/sallyport/relay/enroll/profile"
	"github.com/sallyport/sallyport/relay/enroll/scep"
	"github.com/sallyport/sallyport/relay/enroll/web"
)

// The relay's own hosts, below its domain.
const (
	enrollLabel = "enroll" // the enrolment page, SCEP, EST, the CRL: for those who have no certificate yet
	checkLabel  = "check"  // the self-test and renewal: for those who have one
	adminLabel  = "admin"  // the dashboard
	mqttLabel   = "mqtt"   // the hub
	homeLabel   = "home"   // the command page
)

// For whoever checks device certificates elsewhere.
const (
	crlPath = "/device-ca.crl" // DER
	caPath  = "/device-ca.crt" // PEM
)

func (r *Relay) ownHost(label string) string { return label + "." + r.conf.Domain }

// ownURL is the address of one of the relay's own hosts, without a path.
func (r *Relay) ownURL(label string) string {
	return "https://" + r.ownHost(label) + r.portSuffix()
}

// portSuffix is ":8443", or "" for 443.
func (r *Relay) portSuffix() string {
	if port := r.conf.urlPort(r.tcp.Addr()); port != "" {
		return ":" + port
	}
	return ""
}

// An enrolment is everything with which a device gets its certificate.
type enrolment struct {
	desk   *enroll.Desk
	pages  *web.Pages
	enroll http.Handler // at enroll.DOMAIN
	check  http.Handler // at check.DOMAIN
	est    http.Handler
}

func (r *Relay) newDesk() (*enroll.Desk, error) {
	return enroll.New(context.Background(), enroll.Config{
		Store: r.conf.Store, Now: r.now, Logger: r.log, Open: r.conf.OpenEnrolment, Audit: r.event,
		Issue: r.issueDevice, Issued: r.issuedDevice, CheckName: r.checkName, Changed: r.bell.Ring,
	})
}

// newEnrolment builds what stands on the own hosts. It needs to know the port
// of public URLs, so that it runs in Listen.
func (r *Relay) newEnrolment() (*enrolment, error) {
	ca := r.state.deviceCA
	ra, raKey, err := scep.LoadRA(r.conf.DataDir, ca, r.now)
	if err != nil {
		return nil, fmt.Errorf("registration authority of SCEP: %w", err)
	}
	e := &enrolment{desk: r.desk}
	e.pages, err = web.New(web.Config{
		Domain: r.conf.Domain, Port: r.portSuffix(), Desk: r.desk, Open: r.conf.OpenEnrolment,
		CA: r.deviceChain, Roots: r.publicRoots, Renew: r.renewDevice, Profile: r.profile,
		Source: visitorAddr, KnownHost: r.knownHost, Due: r.dueForRenewal, Hosts: r.hostsOf, Now: r.now, Logger: r.log,
	})
	if err != nil {
		return nil, fmt.Errorf("enrolment pages: %w", err)
	}
	e.est = est.New(est.Config{
		CA: r.deviceChain, Apply: r.applyEST, Renew: r.renewDevice, Peer: peerCert, Source: visitorAddr, Logger: r.log,
	})
	mux := http.NewServeMux()
	mux.Handle("/", e.pages.Enroll())
	mux.Handle("/.well-known/est/", e.est)
	mux.Handle("/scep", scep.New(scep.Config{
		RA: ra, Key: raKey, CA: ca.Cert(), Apply: r.applySCEP, StatusOfKey: r.statusOfKey,
		Renew: r.renewDevice, Allow: r.desk.Admit, Failed: r.desk.Failed, Source: visitorAddr, Logger: r.log, Now: r.now,
	}))
	mux.HandleFunc("GET "+crlPath, r.serveCRL)
	mux.HandleFunc("GET "+caPath, r.serveDeviceCA)
	e.enroll = mux
	mux = http.NewServeMux()
	mux.Handle("/", e.pages.Check())
	mux.Handle("/.well-known/est/", e.est)
	e.check = mux
	return e, nil
}

// deviceChain is what a device is given beside its certificate.
func (r *Relay) deviceChain() []*x509.Certificate {
	return []*x509.Certificate{r.state.deviceCA.Cert()}
}

// publicRoots are the roots that a visitor must trust to reach this relay:
// none when a public CA vouches for it.
func (r *Relay) publicRoots() []*x509.Certificate {
	if r.state.publicCA == nil {
		return nil
	}
	return []*x509.Certificate{r.state.publicCA.Cert()}
}

// visitorAddr is where a request comes from, as the door saw it.
func visitorAddr(req *http.Request) netip.Addr {
	v, _ := door.VisitorFrom(req.Context())
	return v.Remote.Addr()
}

// peerCert is the certificate of a device that the door let in, nil otherwise.
func peerCert(req *http.Request) *x509.Certificate {
	if v, ok := door.VisitorFrom(req.Context()); ok && v.Device != nil {
		return v.Device.Cert
	}
	return nil
}

// knownHost reports whether a page may link to a host: only to those that are
// served here.
func (r *Relay) knownHost(host string) bool {
	name, err := names.Canonical(host)
	if err != nil {
		return false
	}
	_, ok := r.site(name)
	return ok
}

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

func (r *Relay) checkName(name string) error { return deskError(r.devices.CheckName(name)) }

// issueDevice is the desk's way to a certificate. Asked again for the same
// device it returns the same certificate.
func (r *Relay) issueDevice(ctx context.Context, g enroll.Grant) (*x509.Certificate, error) {
	d, cert, err := r.devices.Add(ctx, devices.Grant{Name: g.Name, Key: g.Key, Hosts: g.Hosts, Until: g.Until, Admin: g.Admin})
	if err != nil {
		return nil, deskError(err)
	}
	r.deviceAdded(d)
	return cert, nil
}

// issuedDevice tells the desk what became of an issuing that was cut short.
func (r *Relay) issuedDevice(_ context.Context, keyID string) (*x509.Certificate, error) {
	if d, ok := r.devices.ByID(keyID); !ok || d.Revoked {
		return nil, nil
	}
	cert, _ := r.devices.Certificate(keyID)
	return cert, nil
}

func (r *Relay) deviceAdded(d devices.Device) {
	attrs := []slog.Attr{
		slog.String("device", d.Name), slog.String("id", d.ID), slog.Any("hosts", d.Hosts),
		slog.Time("not_after", d.NotAfter), slog.Bool("admin", d.Admin),
	}
	if !d.Until.IsZero() {
		attrs = append(attrs, slog.Time("until", d.Until))
	}
	r.event("device.added", attrs...)
}

// renewDevice gives a device that the door let in a certificate for a new key.
func (r *Relay) renewDevice(ctx context.Context, old *x509.Certificate, csr []byte) (*x509.Certificate, error) {
	pub, err := pki.ParseCSR(csr)
	if err != nil {
		return nil, err
	}
	d, cert, err := r.devices.Renew(ctx, old, pub)
	if err != nil {
		return nil, deskError(err)
	}
	r.event("device.renewed", slog.String("device", d.Name), slog.String("id", d.ID), slog.Time("not_after", d.NotAfter))
	return cert, nil
}

// estRetry is how long an EST client is told to wait for the owner.
const estRetry = 10 * time.Second

func (r *Relay) applyEST(ctx context.Context, code string, csr []byte, source netip.Addr, agent string) (string, *x509.Certificate, time.Duration, error) {
	q, err := r.desk.Apply(ctx, enroll.Application{Code: code, CSR: csr, Source: source, Via: "est", Agent: agent})
	if err != nil {
		return "", nil, 0, err
	}
	cert, err := certOf(q)
	return string(q.State), cert, estRetry, err
}

func (r *Relay) applySCEP(ctx context.Context, challenge string, csr []byte, source netip.Addr, agent string) (string, *x509.Certificate, error) {
	q, err := r.desk.Apply(ctx, enroll.Application{Code: challenge, CSR: csr, Source: source, Via: "scep", Agent: agent})
	if err != nil {
		return "", nil, err
	}
	cert, err := certOf(q)
	return string(q.State), cert, err
}

func (r *Relay) statusOfKey(ctx context.Context, keyID string) (string, *x509.Certificate, error) {
	q, ok, err := r.desk.StatusOfKey(ctx, keyID)
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

// profile is the .mobileconfig with which an Apple device fetches its own
// certificate by SCEP. The code is checked, not used up: SCEP does that.
func (r *Relay) profile(code string, req *http.Request) ([]byte, error) {
	inv, err := r.desk.Look(req.Context(), visitorAddr(req), code)
	if err != nil {
		return nil, err
	}
	name := inv.Name
	if name == "" {
		// The visitor names the device: the request will carry the name, and the
		// desk makes it fit. That it is taken is better said before it installs.
		name = req.PostFormValue("name")
		if err := r.checkName(name); errors.Is(err, enroll.ErrNameTaken) {
			return nil, err
		}
	}
	conf := profile.Config{
		Name: name, Organization: r.conf.Domain, Challenge: code,
		SCEPURL: r.ownURL(enrollLabel) + "/scep", CA: r.state.deviceCA.Cert(), Roots: r.publicRoots(),
		WebClips: []profile.WebClip{{Label: r.conf.Domain, URL: r.ownURL(checkLabel) + "/"}},
		Now:      r.now,
	}
	// A profile without a signature still installs; it only looks worse.
	if cert, err := r.public.GetCertificate(r.ownHost(enrollLabel)); err == nil {
		conf.Sign = cert
	}
	return profile.Build(conf)
}

// serveCRL serves the revoked device certificates for whoever checks them
// elsewhere. The relay itself does not need it: it asks its records.
func (r *Relay) serveCRL(w http.ResponseWriter, req *http.Request) {
	der, err := r.devices.CRL(r.now())
	if err != nil {
		r.log.Error("no revocation list", "err", err)
		http.Error(w, "the revocation list cannot be made now", http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/pkix-crl")
	w.Header().Set("Cache-Control", "no-cache")
	_, _ = w.Write(der)
}

// serveDeviceCA serves the certificate of the device CA, which is public.
func (r *Relay) serveDeviceCA(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/x-pem-file")
	_, _ = w.Write(pki.EncodeCert(r.state.deviceCA.Cert()))
}
