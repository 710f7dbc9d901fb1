package machine

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"os"

	"github.com/sallyport/sallyport/protocol/pki"
)

// rsaBits: what every TLS stack of the last 15 years takes.
const rsaBits = 2048

func newKey(isRSA bool) (crypto.Signer, error) {
	if isRSA {
		return rsa.GenerateKey(rand.Reader, rsaBits)
	}
	return pki.NewKey()
}

func writeKey(path string, key crypto.Signer) error {
	pem, err := pki.EncodeKey(key)
	if err != nil {
		return err
	}
	return pki.WriteFile(path, pem, 0o600)
}

func readKey(path string) (crypto.Signer, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	key, err := pki.DecodeKey(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return key, nil
}

// readPair reads a key and its certificate, and makes sure that they belong
// together.
func (d *Device) readPair(keyFile, certFile string) (crypto.Signer, *x509.Certificate, error) {
	key, err := readKey(keyFile)
	if err != nil {
		return nil, nil, err
	}
	data, err := os.ReadFile(certFile)
	if err != nil {
		return nil, nil, err
	}
	cert, err := pki.DecodeCert(data)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", certFile, err)
	}
	if !sameKey(cert, key) {
		return nil, nil, fmt.Errorf("%s and %s do not belong together", keyFile, certFile)
	}
	return key, cert, nil
}

func sameKey(cert *x509.Certificate, key crypto.Signer) bool {
	pub, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	return ok && pub.Equal(cert.PublicKey)
}

// swap replaces key and certificate by new ones. Two files cannot be replaced
// at once: the new ones are written beside the old ones first, so that
// finishSwap can go on from wherever a crash leaves them.
func (d *Device) swap(key crypto.Signer, cert *x509.Certificate) error {
	if err := writeKey(d.path(nextPrefix+"key"), key); err != nil {
		return err
	}
	if err := pki.WriteFile(d.path(nextPrefix+"crt"), pki.EncodeCert(cert), 0o644); err != nil {
		return err
	}
	return d.moveNext()
}

func (d *Device) moveNext() error {
	for _, f := range [][2]string{{nextPrefix + "key", d.KeyFile()}, {nextPrefix + "crt", d.CertFile()}} {
		if err := os.Rename(d.path(f[0]), f[1]); err != nil {
			return err
		}
	}
	return nil
}

// finishSwap repairs a pair that does not belong together, because swap was
// cut off after the key. The certificate that waits must belong to that key:
// anything else is not our doing and is left alone.
func (d *Device) finishSwap(cause error) (crypto.Signer, *x509.Certificate, error) {
	key, cert, err := d.readPair(d.KeyFile(), d.path(nextPrefix+"crt"))
	if err != nil {
		return nil, nil, cause
	}
	return key, cert, os.Rename(d.path(nextPrefix+"crt"), d.CertFile())
}
