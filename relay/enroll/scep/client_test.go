package scep

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"io"
	"math/big"
	"net/http"
	"strconv"
	"testing"
	"time"

	"github.com/smallstep/pkcs7"
	"golang.org/x/crypto/cryptobyte"
	casn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/sallyport/sallyport/relay/enroll/scep/cms"
)

// A client sends what a test asks for, also what no honest client sends.
type client struct {
	t    testing.TB
	w    *world
	key  crypto.Signer
	cert *x509.Certificate

	kind        int
	transaction string
	nonce       []byte
	cipher      cms.Cipher
	plain       []byte                     // inside of the envelope
	meddle      func(sealed []byte) []byte // with the envelope, before it is signed
	extra       []cms.Attribute
}

func newClient(t testing.TB, w *world) *client {
	key := someRSA()
	return &client{
		t: t, w: w, key: key, cert: selfSigned(t, key, 1), kind: 19, transaction: "transaction-1",
		nonce: []byte("0123456789abcdef"), cipher: cms.AES128,
	}
}

func selfSigned(t testing.TB, key crypto.Signer, serial int64) *x509.Certificate {
	t.Helper()
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "whoever"},
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

// csr makes a request of the key with challenge passwords, each an element.
func csr(t testing.TB, key *rsa.PrivateKey, challenges ...[]byte) []byte {
	t.Helper()
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	var info cryptobyte.Builder
	info.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1Int64(0)
		b.AddASN1(casn1.SEQUENCE, func(*cryptobyte.Builder) {})
		b.AddBytes(spki)
		b.AddASN1(casn1.Tag(0).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
			for _, c := range challenges {
				b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddASN1ObjectIdentifier(oidChallenge)
					b.AddASN1(casn1.SET, func(b *cryptobyte.Builder) { b.AddBytes(c) })
				})
			}
		})
	})
	signed := info.BytesOrPanic()
	sum := sha256.Sum256(signed)
	signature, err := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	var b cryptobyte.Builder
	b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(signed)
		b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11})
			b.AddASN1NULL()
		})
		b.AddASN1BitString(signature)
	})
	return b.BytesOrPanic()
}

func element(tag int, value string) []byte {
	der, err := asn1.Marshal(asn1.RawValue{Tag: tag, Bytes: []byte(value)})
	if err != nil {
		panic(err)
	}
	return der
}

func printable(value string) []byte { return element(asn1.TagPrintableString, value) }

// message makes what is posted.
func (c *client) message() []byte {
	c.t.Helper()
	to, err := cms.FromX509(c.w.server.cfg.RA)
	if err != nil {
		c.t.Fatal(err)
	}
	sealed, err := cms.Seal(c.plain, to, c.cipher)
	if err != nil {
		c.t.Fatal(err)
	}
	if c.meddle != nil {
		sealed = c.meddle(sealed)
	}
	body, err := cms.Sign(cms.Message{
		Content: sealed, Key: c.key, Certs: []*x509.Certificate{c.cert},
		Attributes: append([]cms.Attribute{
			{OID: oidMessageType, Value: printable(strconv.Itoa(c.kind))},
			{OID: oidTransaction, Value: printable(c.transaction)},
			{OID: oidSenderNonce, Value: element(asn1.TagOctetString, string(c.nonce))},
		}, c.extra...),
	})
	if err != nil {
		c.t.Fatal(err)
	}
	return body
}

// An outcome is what a client understands of an answer.
type outcome struct {
	http         int
	status, info string // "" when the answer is no CertRep
	text         string
	cert         *x509.Certificate
	header       http.Header
}

// send posts a message and reads the answer by another library.
func (c *client) send() outcome {
	c.t.Helper()
	return c.post(c.message())
}

func (c *client) post(body []byte) outcome {
	c.t.Helper()
	resp, err := http.Post(c.w.url+"?operation=PKIOperation", "application/x-pki-message", bytes.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	out := outcome{http: resp.StatusCode, header: resp.Header}
	if resp.StatusCode != http.StatusOK {
		out.text = string(data)
		return out
	}
	return c.read(data, out)
}

func (c *client) read(data []byte, out outcome) outcome {
	c.t.Helper()
	p7, err := pkcs7.Parse(data)
	if err != nil {
		c.t.Fatal(err)
	}
	if err := p7.VerifyWithChain(c.w.ca.Pool()); err != nil {
		c.t.Errorf("the answer is not signed by a go-between of the CA: %v", err)
	}
	get := func(oid asn1.ObjectIdentifier, into any) {
		if err := p7.UnmarshalSignedAttribute(oid, into); err != nil {
			c.t.Errorf("attribute %v of the answer: %v", oid, err)
		}
	}
	var kind, transaction string
	var nonce, own []byte
	get(oidMessageType, &kind)
	get(oidTransaction, &transaction)
	get(oidRecipientNonce, &nonce)
	get(oidSenderNonce, &own)
	get(oidStatus, &out.status)
	if kind != "3" || transaction != c.transaction || !bytes.Equal(nonce, c.nonce) || len(own) != 16 || bytes.Equal(own, nonce) {
		c.t.Errorf("the answer is of type %s to transaction %q with nonces %x and %x", kind, transaction, nonce, own)
	}
	if out.status == "2" {
		get(oidFailInfo, &out.info)
		get(oidFailText, &out.text)
	}
	if out.status != "0" {
		if len(p7.Content) != 0 {
			c.t.Errorf("an answer without certificate has %d bytes of content", len(p7.Content))
		}
		return out
	}
	sealed, err := pkcs7.Parse(p7.Content)
	if err != nil {
		c.t.Fatal(err)
	}
	plain, err := sealed.Decrypt(c.cert, c.key)
	if err != nil {
		c.t.Fatal(err)
	}
	inner, err := pkcs7.Parse(plain)
	if err != nil || len(inner.Certificates) != 1 {
		c.t.Fatalf("the answer does not hold one certificate: %v", err)
	}
	env, err := cms.ParseEnvelope(p7.Content)
	if err != nil || env.Cipher != c.cipher {
		c.t.Errorf("the answer is encrypted by %v, the request was by %v: %v", env.Cipher, c.cipher, err)
	}
	out.cert = inner.Certificates[0]
	return out
}
