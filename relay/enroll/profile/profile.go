// Package profile writes configuration profiles (.mobileconfig) for iPhones,
// iPads and Macs. A profile makes the device create an RSA key, fetch its
// certificate by SCEP with a one-time code, and show a link to the owner's page
// on its home screen.
//
//	data, err := profile.Build(profile.Config{
//		Name: "anna-phone", Organization: "example.org",
//		SCEPURL: "https://enroll.example.org/scep", Challenge: code, CA: deviceCA,
//		WebClips: []profile.WebClip{{Label: "Home", URL: "https://home.example.org/"}},
//		Sign: enrollCertificate,
//	})
//	w.Header().Set("Content-Type", profile.MediaType)
//	w.Write(data)
//
// The code stands in the profile in clear, as Apple's format wants it: serve it
// once, over TLS, to whoever already knows the code, and store it nowhere.
package profile

import (
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"howett.net/plist"

	"github.com/sallyport/sallyport/relay/enroll/scep/cms"
)

// MediaType is what profiles must be served as, or Safari shows their text.
const MediaType = "application/x-apple-aspen-config"

// Config says what stands in a profile. SCEPURL, Challenge, Organization and CA
// are required.
type Config struct {
	Name         string              // of the device; "": it is called "this device"
	Organization string              // the relay's domain, and nothing else of the owner
	SCEPURL      string              // https
	Challenge    string              // the one-time code
	CA           *x509.Certificate   // the device CA
	Roots        []*x509.Certificate // of the relay's internal CA, to be trusted for its pages; none when its certificates are public
	WebClips     []WebClip           // links for the home screen
	Identifier   string              // a later profile of the same identifier replaces this one; "": the domain turned round, and ".sallyport"
	Now          func() time.Time    // of signing; nil: time.Now
	Sign         *tls.Certificate    // with its chain, RSA or ECDSA: usually that of the host that serves the profile; nil: unsigned, which the device shows in red
}

// A WebClip is a link on the home screen.
type WebClip struct {
	Label string
	URL   string // https
	Icon  []byte // PNG, square; nil: the device takes a picture of the page

	// FullScreen opens the page without Safari's bars. Not proven: that such
	// pages are offered the certificate on every version of iOS. Safari is.
	FullScreen bool
}

// Build returns a profile: XML, or with Sign that inside a signed message (DER).
func Build(cfg Config) ([]byte, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Name == "" {
		cfg.Name = "this device"
	}
	if cfg.Identifier == "" {
		cfg.Identifier = reversed(cfg.Organization) + ".sallyport"
	}
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("make a configuration profile: %w", err)
	}
	xml, err := plist.MarshalIndent(cfg.document(), plist.XMLFormat, "\t")
	if err != nil {
		return nil, fmt.Errorf("make a configuration profile: %w", err)
	}
	if cfg.Sign == nil {
		return xml, nil
	}
	signed, err := sign(xml, cfg.Sign, cfg.Now())
	if err != nil {
		return nil, fmt.Errorf("make a configuration profile: %w", err)
	}
	return signed, nil
}

func (cfg Config) check() error {
	switch {
	case cfg.CA == nil:
		return errors.New("the device CA's certificate is missing")
	case cfg.Challenge == "":
		return errors.New("the one-time code is missing")
	case cfg.Organization == "":
		return errors.New("the domain is missing")
	}
	links := []string{cfg.SCEPURL}
	for _, clip := range cfg.WebClips {
		links = append(links, clip.URL)
	}
	for _, link := range links {
		// Nothing that carries a code, or asks for a certificate, goes in clear.
		if u, err := url.Parse(link); err != nil || u.Scheme != "https" || u.Host == "" {
			return fmt.Errorf("%q is not an https address", link)
		}
	}
	return nil
}

// reversed turns "home.example.org" into "org.example.home".
func reversed(domain string) string {
	labels := strings.Split(domain, ".")
	slices.Reverse(labels)
	return strings.Join(labels, ".")
}

// sign wraps a profile so that the device shows who it is of.
func sign(xml []byte, with *tls.Certificate, at time.Time) ([]byte, error) {
	key, ok := with.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("a key of type %T cannot sign it", with.PrivateKey)
	}
	var chain []*x509.Certificate
	for _, der := range with.Certificate {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("the certificate to sign with: %w", err)
		}
		chain = append(chain, cert)
	}
	return cms.Sign(cms.Message{Content: xml, Key: key, Certs: chain, Time: at})
}

// newUUID returns a random one, in capitals as Apple's tools write it.
func newUUID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%X-%X-%X-%X-%X", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
