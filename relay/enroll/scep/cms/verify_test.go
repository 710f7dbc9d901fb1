package cms

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"strings"
	"testing"

	"github.com/smallstep/pkcs7"
)

// signedElsewhere makes a message by another library, which lets itself be
// talked into more.
func signedElsewhere(t *testing.T, edit func(sd *pkcs7.SignedData)) []byte {
	t.Helper()
	sd, err := pkcs7.NewSignedData(content)
	if err != nil {
		t.Fatal(err)
	}
	sd.SetDigestAlgorithm(pkcs7.OIDDigestAlgorithmSHA256)
	edit(sd)
	der, err := sd.Finish()
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestVerifyRefuses(t *testing.T) {
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	add := func(t *testing.T, sd *pkcs7.SignedData, key crypto.Signer, cfg pkcs7.SignerInfoConfig) {
		t.Helper()
		if err := sd.AddSigner(certOf(t, key), key, cfg); err != nil {
			t.Fatal(err)
		}
	}
	attribute := pkcs7.Attribute{Type: oidTest, Value: "a"}
	for _, test := range []struct {
		name string
		edit func(t *testing.T, sd *pkcs7.SignedData)
		want string // in the error; "": it is accepted
	}{
		{"a good one", func(t *testing.T, sd *pkcs7.SignedData) {
			add(t, sd, rsaKey(), pkcs7.SignerInfoConfig{ExtraSignedAttributes: []pkcs7.Attribute{attribute}})
		}, ""},
		{"no signature", func(*testing.T, *pkcs7.SignedData) {}, "no signature"},
		{"two signatures", func(t *testing.T, sd *pkcs7.SignedData) {
			add(t, sd, rsaKey(), pkcs7.SignerInfoConfig{})
			add(t, sd, ecKey(), pkcs7.SignerInfoConfig{})
		}, "more than one"},
		{"a weak key", func(t *testing.T, sd *pkcs7.SignedData) { add(t, sd, weak, pkcs7.SignerInfoConfig{}) }, "too weak"},
		{"an attribute twice", func(t *testing.T, sd *pkcs7.SignedData) {
			add(t, sd, rsaKey(), pkcs7.SignerInfoConfig{ExtraSignedAttributes: []pkcs7.Attribute{attribute, attribute}})
		}, "twice"},
		{"too many attributes", func(t *testing.T, sd *pkcs7.SignedData) {
			var many []pkcs7.Attribute
			for i := range 40 {
				many = append(many, pkcs7.Attribute{Type: asn1.ObjectIdentifier{1, 2, 3, i}, Value: "a"})
			}
			add(t, sd, rsaKey(), pkcs7.SignerInfoConfig{ExtraSignedAttributes: many})
		}, "too many attributes"},
		{"too many certificates", func(t *testing.T, sd *pkcs7.SignedData) {
			for range maxCertificates {
				sd.AddCertificate(certOf(t, ecKey()))
			}
			key, err := rsa.GenerateKey(rand.Reader, 2048)
			if err != nil {
				t.Fatal(err)
			}
			cert := certOf(t, key)
			cert.SerialNumber.SetInt64(1) // so that none before is the signer's
			if err := sd.AddSigner(cert, key, pkcs7.SignerInfoConfig{}); err != nil {
				t.Fatal(err)
			}
		}, "certificates"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := Verify(signedElsewhere(t, func(sd *pkcs7.SignedData) { test.edit(t, sd) }))
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("%v, want %q", err, test.want)
			}
		})
	}
}

// TestContentTypeIsSigned: it stands outside of the signature, and again in it.
func TestContentTypeIsSigned(t *testing.T) {
	der := signedBy(t, rsaKey())
	data, err := asn1.Marshal(oidData)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(der, data) // the first one, of the content
	der[at+len(data)-1] = 5
	if _, err := Verify(der); err == nil || !strings.Contains(err.Error(), "type") {
		t.Errorf("%v", err)
	}
}

// TestSignerIsInTheMessage: a certificate that only shares the serial number
// is not taken for the signer's.
func TestSignerIsInTheMessage(t *testing.T) {
	der, err := Sign(Message{Content: content, Key: rsaKey(), Certs: []*x509.Certificate{certOf(t, rsaKey())}})
	if err != nil {
		t.Fatal(err)
	}
	// The issuer's name stands in the certificate twice, and last in the signature.
	at := bytes.LastIndex(der, []byte("signer"))
	der[at] = 'S'
	if _, err := Verify(der); err == nil || !strings.Contains(err.Error(), "not in it") {
		t.Errorf("%v", err)
	}
}

// TestDigestAndSignatureAgree: the algorithm of the signature names a digest
// again, and must name the same.
func TestDigestAndSignatureAgree(t *testing.T) {
	was, err := asn1.Marshal(oidECDSASHA256)
	if err != nil {
		t.Fatal(err)
	}
	der := signedBy(t, ecKey())
	at := bytes.LastIndex(der, was) // the certificate names it too, before
	der[at+len(was)-1] = 3          // with SHA-384
	if _, err := Verify(der); !errors.Is(err, ErrAlgorithm) {
		t.Errorf("%v", err)
	}
}
