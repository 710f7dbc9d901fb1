package pki

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/sallyport/sallyport/protocol/names"
)

// A Profile is what a certificate may be used for. The zero value is none, so
// that a forgotten profile issues nothing.
type Profile int

// The profiles. Clients and servers never share one: a device's certificate
// must not be able to pose as a server.
const (
	Device    Profile = iota + 1 // a phone or laptop: client authentication
	Agent                        // an agent at home: client authentication
	Server                       // a host of the internal CA: server authentication
	Registrar                    // the go-between of SCEP: signs and decrypts for the CA, is neither client nor server
)

// registrarUsage is the extended usage of registrars: Microsoft's "certificate
// request agent", which phones have met in SCEP for twenty years. Without any
// extended usage a certificate counts as one for every use, of clients and
// servers too.
var registrarUsage = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 20, 2, 1}

// registrarName is every registrar's name: it says nothing of the owner.
const registrarName = "Sallyport registrar"

// A Grant says what Issue writes into a certificate.
type Grant struct {
	Profile   Profile
	Name      string    // common name; at most 64 bytes, or a host name when Server; empty when Registrar
	DNSNames  []string  // Server only: further names, canonical, "*.x" allowed; Name is always one
	NotBefore time.Time // zero: an hour ago, for clocks that lag
	NotAfter  time.Time // zero: in a year; never later than the CA's own end
	CRLURL    string    // Device only: http or https URL of the CA's revocation list, for verifiers elsewhere; empty: none named
}

const (
	clockSlack      = time.Hour
	defaultLifetime = 365 * 24 * time.Hour
	maxCommonName   = 64 // RFC 5280, ub-common-name
)

// Floor is a time before which no clock can be right, because this code did
// not exist. Nothing is issued under such a clock.
func Floor() time.Time { return time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC) }

// Issue signs a certificate for pub. Everything in it comes from the grant.
// It refuses weak keys, the CA's own key, and a clock that cannot be right.
func (a *Authority) Issue(pub crypto.PublicKey, g Grant) (*x509.Certificate, error) {
	if err := CheckKey(pub); err != nil {
		return nil, fmt.Errorf("issue a certificate: %w", err)
	}
	if sameKey(a.cert.PublicKey, pub) {
		return nil, errors.New("issue a certificate: this is the key of the CA itself")
	}
	tmpl, err := a.template(pub, g)
	if err != nil {
		return nil, fmt.Errorf("issue a certificate for %q: %w", g.Name, err)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, pub, a.key)
	if err != nil {
		return nil, fmt.Errorf("issue a certificate for %q: %w", g.Name, err)
	}
	return x509.ParseCertificate(der)
}

func (a *Authority) template(pub crypto.PublicKey, g Grant) (*x509.Certificate, error) {
	now := a.now()
	if err := plausible(now); err != nil {
		return nil, err
	}
	from, to, err := a.validity(g, now)
	if err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	tmpl := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: g.Name},
		NotBefore:             from,
		NotAfter:              to,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true, // and not a CA
	}
	if g.CRLURL != "" {
		if err := checkCRLURL(g); err != nil {
			return nil, err
		}
		tmpl.CRLDistributionPoints = []string{g.CRLURL}
	}
	switch g.Profile {
	case Device, Agent:
		if len(g.DNSNames) > 0 {
			return nil, errors.New("a client certificate carries no host names")
		}
		if err := checkCommonName(g.Name); err != nil {
			return nil, err
		}
		tmpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	case Server:
		tmpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		for _, name := range append([]string{g.Name}, g.DNSNames...) {
			if canonical, err := names.ValidPattern(name); err != nil {
				return nil, err
			} else if canonical != name {
				return nil, fmt.Errorf("host name %q is not in canonical form, which is %q", name, canonical)
			}
			tmpl.DNSNames = append(tmpl.DNSNames, name)
		}
		if len(g.Name) > maxCommonName {
			tmpl.Subject = pkix.Name{} // the name stands in the SAN
		}
	case Registrar:
		if g.Name != "" || len(g.DNSNames) > 0 {
			return nil, errors.New("a registrar's certificate carries no names of ours")
		}
		if _, ok := pub.(*rsa.PublicKey); !ok {
			return nil, fmt.Errorf("a registrar decrypts with its key, which a key of type %T cannot: use RSA", pub)
		}
		tmpl.Subject = pkix.Name{CommonName: registrarName}
		tmpl.KeyUsage |= x509.KeyUsageKeyEncipherment
		tmpl.UnknownExtKeyUsage = []asn1.ObjectIdentifier{registrarUsage}
	default:
		return nil, fmt.Errorf("profile %d does not exist", g.Profile)
	}
	return tmpl, nil
}

// validity returns the grant's dates in whole seconds, inside the CA's own.
func (a *Authority) validity(g Grant, now time.Time) (from, to time.Time, err error) {
	from, to = g.NotBefore, g.NotAfter
	if from.IsZero() {
		from = now.Add(-clockSlack)
	}
	if to.IsZero() {
		to = now.Add(defaultLifetime)
	}
	if from.Before(a.cert.NotBefore) {
		from = a.cert.NotBefore
	}
	if to.After(a.cert.NotAfter) {
		to = a.cert.NotAfter
	}
	from, to = from.UTC().Truncate(time.Second), to.UTC().Truncate(time.Second)
	if !to.After(now) || !to.After(from) {
		return from, to, fmt.Errorf("it would end at %s, before it could be used", to.Format(time.RFC3339))
	}
	return from, to, nil
}

// plausible refuses clocks that were never set: what they date is invalid
// the moment the clock is corrected.
func plausible(now time.Time) error {
	if now.Before(Floor()) {
		return fmt.Errorf("this machine's clock says %s, which cannot be right\n"+
			"Set the clock (timedatectl set-ntp true), then try again.", now.UTC().Format("2006-01-02 15:04 MST"))
	}
	return nil
}

// newSerial returns 128 random bits, never zero (RFC 5280 wants a positive number).
func newSerial() (*big.Int, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 128))
	if err != nil {
		return nil, fmt.Errorf("make a serial number: %w", err)
	}
	if serial.Sign() == 0 {
		serial.SetInt64(1)
	}
	return serial, nil
}

// checkCRLURL keeps a certificate from sending its verifiers anywhere but to a
// plain list: they follow the URL without asking.
func checkCRLURL(g Grant) error {
	if g.Profile != Device {
		return errors.New("only a device's certificate names a revocation list")
	}
	u, err := url.Parse(g.CRLURL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return fmt.Errorf("%q is no address of a revocation list: write http://HOST/PATH", g.CRLURL)
	}
	return nil
}

func checkCommonName(name string) error {
	if name == "" || len(name) > maxCommonName {
		return fmt.Errorf("a name has 1 to %d bytes", maxCommonName)
	}
	if !utf8.ValidString(name) || strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return errors.New("a name consists of printable characters")
	}
	return nil
}
