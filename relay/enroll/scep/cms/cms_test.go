package cms

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/smallstep/pkcs7"
)

var rsaKey = sync.OnceValue(func() *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return key
})

var ecKey = sync.OnceValue(func() *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	return key
})

func certOf(t testing.TB, key crypto.Signer) *x509.Certificate {
	t.Helper()
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(4711), Subject: pkix.Name{CommonName: "signer"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func openssl(t testing.TB, stdin []byte, args ...string) []byte {
	t.Helper()
	path, err := exec.LookPath("openssl")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("openssl is not installed")
		}
		t.Skip("openssl is not installed")
	}
	cmd := exec.CommandContext(t.Context(), path, args...)
	cmd.Stdin = bytes.NewReader(stdin)
	var out, words bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &words
	if err := cmd.Run(); err != nil {
		t.Fatalf("openssl %s: %v\n%s", strings.Join(args, " "), err, words.Bytes())
	}
	return out.Bytes()
}

// files writes a key and its certificate for openssl.
func files(t testing.TB, key crypto.Signer, cert *x509.Certificate) (keyFile, certFile string) {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	keyFile, certFile = filepath.Join(dir, "key.pem"), filepath.Join(dir, "cert.pem")
	for path, block := range map[string]*pem.Block{
		keyFile: {Type: "PRIVATE KEY", Bytes: der}, certFile: {Type: "CERTIFICATE", Bytes: cert.Raw},
	} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return keyFile, certFile
}

var (
	oidTest = asn1.ObjectIdentifier{1, 2, 3, 4}
	content = []byte("the content of a message")
)

func signedBy(t testing.TB, key crypto.Signer) []byte {
	t.Helper()
	value, err := asn1.Marshal("value")
	if err != nil {
		t.Fatal(err)
	}
	der, err := Sign(Message{
		Content: content, Key: key, Certs: []*x509.Certificate{certOf(t, key)}, Time: time.Now(),
		Attributes: []Attribute{{OID: oidTest, Value: value}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestSignIsReadElsewhere(t *testing.T) {
	for name, key := range map[string]crypto.Signer{"RSA": rsaKey(), "ECDSA": ecKey()} {
		t.Run(name, func(t *testing.T) {
			der := signedBy(t, key)
			p7, err := pkcs7.Parse(der)
			if err != nil {
				t.Fatal(err)
			}
			if err := p7.Verify(); err != nil || !bytes.Equal(p7.Content, content) {
				t.Errorf("pkcs7: %v, %q", err, p7.Content)
			}
			_, certFile := files(t, key, p7.Certificates[0])
			if out := openssl(t, der, "cms", "-verify", "-inform", "DER", "-CAfile", certFile, "-purpose", "any"); !bytes.Equal(out, content) {
				t.Errorf("openssl: %q", out)
			}
			s, err := Verify(der)
			if err != nil || !bytes.Equal(s.Content, content) || !bytes.Equal(s.Signer.Raw, p7.Certificates[0].Raw) {
				t.Fatalf("our own: %v", err)
			}
			if tag, value, ok := s.Attribute(oidTest); !ok || int(tag) != asn1.TagPrintableString || string(value) != "value" {
				t.Errorf("attribute %v %q %v", tag, value, ok)
			}
			if _, _, ok := s.Attribute(asn1.ObjectIdentifier{1, 2, 3}); ok {
				t.Error("an attribute that is not there")
			}
		})
	}
}

func TestSignWithoutContent(t *testing.T) {
	der, err := Sign(Message{Key: rsaKey(), Certs: []*x509.Certificate{certOf(t, rsaKey())}})
	if err != nil {
		t.Fatal(err)
	}
	s, err := Verify(der)
	if err != nil || s.Content != nil {
		t.Errorf("%q, %v", s.Content, err)
	}
}

func TestSignRefuses(t *testing.T) {
	cert := certOf(t, rsaKey())
	for name, m := range map[string]Message{
		"no key":         {Certs: []*x509.Certificate{cert}},
		"no certificate": {Key: rsaKey()},
		"another's":      {Key: ecKey(), Certs: []*x509.Certificate{cert}},
	} {
		if _, err := Sign(m); err == nil {
			t.Errorf("%s: signed", name)
		}
	}
}

// TestVerifyReadsOthers: what openssl writes, streamed (BER) and whole, with
// every digest that is accepted.
func TestVerifyReadsOthers(t *testing.T) {
	for name, key := range map[string]crypto.Signer{"RSA": rsaKey(), "ECDSA": ecKey()} {
		for _, md := range []string{"sha256", "sha384", "sha512", "sha1", "sha224"} {
			for _, form := range []string{"-nodetach", "-stream"} {
				t.Run(name+"/"+md+form, func(t *testing.T) {
					cert := certOf(t, key)
					keyFile, certFile := files(t, key, cert)
					der := openssl(t, content, "cms", "-sign", "-binary", "-nodetach", form, "-outform", "DER",
						"-md", md, "-signer", certFile, "-inkey", keyFile)
					s, err := Verify(der)
					if md == "sha1" || md == "sha224" {
						if !errors.Is(err, ErrAlgorithm) {
							t.Errorf("accepted: %v", err)
						}
						return
					}
					if err != nil || !bytes.Equal(s.Content, content) {
						t.Errorf("%v", err)
					}
				})
			}
		}
	}
	cert := certOf(t, rsaKey())
	keyFile, certFile := files(t, rsaKey(), cert)
	for name, extra := range map[string][]string{
		"no attributes":  {"-noattr"},
		"by key id":      {"-keyid"},
		"no certificate": {"-nocerts"},
		"PSS":            {"-keyopt", "rsa_padding_mode:pss"},
	} {
		args := append([]string{"cms", "-sign", "-binary", "-nodetach", "-outform", "DER", "-md", "sha256", "-signer", certFile, "-inkey", keyFile}, extra...)
		_, err := Verify(openssl(t, content, args...))
		if err == nil || name == "PSS" && !errors.Is(err, ErrAlgorithm) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestNoByteCanChange: with any one bit of a message changed, it is refused,
// or means the same (some fields are not signed, and not used either).
func TestNoByteCanChange(t *testing.T) {
	for _, key := range []crypto.Signer{rsaKey(), ecKey()} {
		der := signedBy(t, key)
		good, err := Verify(der)
		if err != nil {
			t.Fatal(err)
		}
		refused := 0
		for i := range der {
			bad := bytes.Clone(der)
			bad[i] ^= 1 << (i % 8)
			s, err := Verify(bad)
			if err != nil {
				refused++
				continue
			}
			pub := s.Signer.Key.(interface{ Equal(crypto.PublicKey) bool })
			_, value, _ := s.Attribute(oidTest)
			if !bytes.Equal(s.Content, content) || string(value) != "value" || !pub.Equal(good.Signer.Key) {
				t.Errorf("byte %d changes the meaning", i)
			}
		}
		if refused < len(der)/2 {
			t.Errorf("only %d of %d changes were noticed", refused, len(der))
		}
	}
}

func TestCertsOnly(t *testing.T) {
	a, b := certOf(t, rsaKey()), certOf(t, ecKey())
	der, err := CertsOnly(b, a)
	if err != nil {
		t.Fatal(err)
	}
	p7, err := pkcs7.Parse(der)
	if err != nil || len(p7.Certificates) != 2 || !p7.Certificates[0].Equal(b) || !p7.Certificates[1].Equal(a) {
		t.Errorf("%v", err)
	}
	if out := openssl(t, der, "pkcs7", "-inform", "DER", "-print_certs"); bytes.Count(out, []byte("BEGIN CERTIFICATE")) != 2 {
		t.Errorf("openssl: %s", out)
	}
	if _, err := Verify(der); err == nil {
		t.Error("a message without signature was verified")
	}
}
