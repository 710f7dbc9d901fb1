package scep

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"log/slog"
	"math/big"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/smallstep/pkcs7"

	"github.com/sallyport/sallyport/protocol/pki"
	"github.com/sallyport/sallyport/relay/enroll/scep/cms"
)

// TestGetChangesNothing: a link preview, a prefetch or a cache must never use
// up a code.
func TestGetChangesNothing(t *testing.T) {
	w := newWorld(t)
	w.codes["code-1"] = "issue"
	c := newClient(t, w)
	c.plain = csr(t, someRSA(), printable("code-1"))
	address := w.url + "?operation=PKIOperation&message=" + url.QueryEscape(base64.StdEncoding.EncodeToString(c.message()))
	for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodPut} {
		req, err := http.NewRequestWithContext(t.Context(), method, address, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusMethodNotAllowed || resp.Header.Get("Allow") != http.MethodPost {
			t.Errorf("%s: %s", method, resp.Status)
		}
	}
	if n := w.applications(); n != 0 {
		t.Fatalf("the desk was applied to %d times", n)
	}
	if out := c.send(); out.status != "0" {
		t.Errorf("the code does not work any more: %+v", out)
	}
	for _, query := range []string{"", "?operation=", "?operation=GetNextCACert", "?operation=pkioperation"} {
		if resp, _ := get(t, w.url+query); resp.StatusCode != http.StatusBadRequest {
			t.Errorf("%q: %s", query, resp.Status)
		}
	}
}

// TestSignerMustHoldTheKey: a request that somebody else signed is refused
// before the desk hears of it. Otherwise a thief of a request could spend its
// code, and read the answer.
func TestSignerMustHoldTheKey(t *testing.T) {
	w := newWorld(t)
	w.codes["code-1"] = "issue"
	victim, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	c := newClient(t, w)
	c.plain = csr(t, victim, printable("code-1"))
	if out := c.send(); out.status != "2" || w.applications() != 0 {
		t.Errorf("%+v, %d applications", out, w.applications())
	}
}

// TestPollNeedsTheKey: the certificate of a waiting request goes to its key
// and to nobody who knows the transaction.
func TestPollNeedsTheKey(t *testing.T) {
	w := newWorld(t)
	w.codes["code-1"] = "queue"
	c := newClient(t, w)
	c.plain = csr(t, someRSA(), printable("code-1"))
	if out := c.send(); out.status != "3" {
		t.Fatalf("%+v", out)
	}
	w.decide(true)
	thief := newClient(t, w)
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	thief.key, thief.cert = key, selfSigned(t, key, 1)
	thief.kind, thief.plain = 20, issuerAndSubject
	if out := thief.send(); out.status != "2" || out.info != "4" {
		t.Errorf("the thief: %+v", out)
	}
	c.kind, c.plain = 20, issuerAndSubject
	if out := c.send(); out.status != "0" {
		t.Errorf("the owner: %+v", out)
	}
	for _, broken := range [][]byte{{0x30, 0}, {0x30, 2, 0x30, 0}, append(slices.Clone(issuerAndSubject), 0), {4, 0}} {
		if c.plain = broken; c.send().info != "1" {
			t.Errorf("a poll with %x was answered", broken)
		}
	}
}

func TestRenewal(t *testing.T) {
	w := newWorld(t)
	good := w.issue(csr(t, someRSA()))
	next, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	forged := forge(t, someRSA(), good)
	foreign, err := newCA(t).Issue(someRSA().Public(), pki.Grant{Profile: pki.Device, Name: "anna-phone"})
	if err != nil {
		t.Fatal(err)
	}
	ended, err := w.ca.Issue(someRSA().Public(), pki.Grant{Profile: pki.Device, Name: "anna-phone", NotAfter: time.Now().Add(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name   string
		cert   *x509.Certificate
		later  time.Duration
		status string
	}{
		{"good", good, 0, "0"},
		{"self-made", newClient(t, w).cert, 0, "2"},
		{"with the name and number of a good one", forged, 0, "2"},
		{"of another CA", foreign, 0, "2"},
		{"ended", ended, 2 * time.Hour, "2"},
		{"not begun", good, -48 * time.Hour, "2"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w.renewed = 0
			w.server.cfg.Now = func() time.Time { return time.Now().Add(test.later) }
			c := newClient(t, w)
			c.kind, c.cert, c.plain = 17, test.cert, csr(t, next)
			out := c.send()
			if out.status != test.status || (w.renewed == 1) != (test.status == "0") {
				t.Errorf("%+v, renewed %d times", out, w.renewed)
			}
			if test.status == "0" && !next.PublicKey.Equal(out.cert.PublicKey) {
				t.Error("the new certificate is not of the new key")
			}
		})
	}
	if w.applications() != 0 {
		t.Error("the desk was applied to")
	}
}

// forge makes a certificate with the issuer's name and the number of another.
func forge(t *testing.T, key *rsa.PrivateKey, like *x509.Certificate) *x509.Certificate {
	t.Helper()
	tmpl := &x509.Certificate{SerialNumber: like.SerialNumber, RawSubject: like.RawSubject, NotBefore: like.NotBefore, NotAfter: like.NotAfter}
	parent := &x509.Certificate{RawSubject: like.RawIssuer}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func TestWeakAlgorithms(t *testing.T) {
	w := newWorld(t)
	w.codes["code-1"] = "issue"
	c := newClient(t, w)
	c.plain = csr(t, someRSA(), printable("code-1"))
	c.meddle = func([]byte) []byte { // the library's defaults: single DES
		sealed, err := pkcs7.Encrypt(c.plain, []*x509.Certificate{w.server.cfg.RA})
		if err != nil {
			t.Fatal(err)
		}
		return sealed
	}
	if out := c.send(); out.status != "2" || out.info != "0" {
		t.Errorf("single DES: %+v", out)
	}

	sd, err := pkcs7.NewSignedData([]byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	if err := sd.AddSigner(c.cert, c.key, pkcs7.SignerInfoConfig{}); err != nil { // SHA-1
		t.Fatal(err)
	}
	body, err := sd.Finish()
	if err != nil {
		t.Fatal(err)
	}
	if out := c.post(body); out.http != http.StatusBadRequest || !strings.Contains(out.text, "SHA-256") {
		t.Errorf("SHA-1: %+v", out)
	}

	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c = newClient(t, w)
	c.key, c.cert, c.plain = key, selfSigned(t, key, 1), []byte("x")
	if out := c.send(); out.status != "2" || out.info != "0" || !strings.Contains(out.text, "RSA") {
		t.Errorf("an EC key: %+v", out)
	}
	if w.applications() != 0 {
		t.Error("the desk was applied to")
	}
}

// TestOneAnswer: whatever is wrong with an envelope, the answer is the same, so
// that nobody can open another's by asking many times.
func TestOneAnswer(t *testing.T) {
	w := newWorld(t)
	w.codes["code-1"] = "issue"
	good := csr(t, someRSA(), printable("code-1"))
	tail := func(n int) func([]byte) []byte { // changes a byte from the end, which lies in the content
		return func(b []byte) []byte {
			b = bytes.Clone(b)
			b[len(b)-n] ^= 1
			return b
		}
	}
	otherRA, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	otherSealed, err := cms.Seal(good, cms.Certificate{Issuer: []byte{0x30, 0}, Serial: []byte{2, 1, 1}, Key: otherRA.Public()}, cms.AES128)
	if err != nil {
		t.Fatal(err)
	}
	var answers []string
	for name, edit := range map[string]func(c *client){
		"last block":     func(c *client) { c.meddle = tail(1) },
		"padding":        func(c *client) { c.meddle = tail(17) },
		"middle":         func(c *client) { c.meddle = tail(200) },
		"another key":    func(c *client) { c.meddle = func([]byte) []byte { return otherSealed } },
		"no request":     func(c *client) { c.plain = []byte("hello") },
		"nothing":        func(c *client) { c.plain = nil },
		"bad signature":  func(c *client) { c.plain = bytes.Clone(good); c.plain[len(c.plain)-1] ^= 1 },
		"cut":            func(c *client) { c.plain = good[:len(good)-20] },
		"two challenges": func(c *client) { c.plain = csr(t, someRSA(), printable("code-1"), printable("code-1")) },
	} {
		c := newClient(t, w)
		c.plain = good
		edit(c)
		out := c.send()
		if out.status != "2" || out.info != "1" {
			t.Errorf("%s: %+v", name, out)
		}
		answers = append(answers, out.status+" "+out.info+" "+out.text)
	}
	for _, a := range answers {
		if a != answers[0] {
			t.Errorf("the answers differ: %q and %q", a, answers[0])
		}
	}
	if w.applications() != 0 {
		t.Error("the desk was applied to")
	}
}

func TestAttributes(t *testing.T) {
	w := newWorld(t)
	w.codes["code-1"] = "issue"
	for name, edit := range map[string]func(c *client){
		"no nonce":              func(c *client) { c.nonce = nil },
		"huge nonce":            func(c *client) { c.nonce = make([]byte, 65) },
		"no transaction":        func(c *client) { c.transaction = "" },
		"huge transaction":      func(c *client) { c.transaction = strings.Repeat("x", 257) },
		"transaction in binary": func(c *client) { c.transaction = "a\nb" },
		"kind of three digits":  func(c *client) { c.kind = 199 },
		"two kinds":             func(c *client) { c.extra = []cms.Attribute{{OID: oidMessageType, Value: printable("17")}} },
	} {
		c := newClient(t, w)
		c.plain = csr(t, someRSA(), printable("code-1"))
		edit(c)
		if out := c.send(); out.http != http.StatusBadRequest {
			t.Errorf("%s: %+v", name, out)
		}
	}
	if w.applications() != 0 {
		t.Error("the desk was applied to")
	}
}

func TestBodies(t *testing.T) {
	w := newWorld(t)
	c := newClient(t, w)
	c.plain = []byte("x")
	good := c.message()
	for name, body := range map[string][]byte{
		"empty":    nil,
		"rubbish":  []byte("hello"),
		"cut":      good[:len(good)-1],
		"longer":   append(bytes.Clone(good), 0),
		"too long": make([]byte, cms.MaxBytes+1),
		"base64":   []byte(base64.StdEncoding.EncodeToString(good)),
	} {
		if out := c.post(body); out.http != http.StatusBadRequest {
			t.Errorf("%s: %+v", name, out)
		}
	}
}

// TestNoSecretsInTheLog: neither codes nor what strangers send as such.
func TestNoSecretsInTheLog(t *testing.T) {
	w := newWorld(t)
	var log bytes.Buffer
	w.server.cfg.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	w.codes["SECRETCODE"] = "issue"
	c := newClient(t, w)
	for _, code := range []string{"SECRETCODE", "SECRETGUESS"} {
		c.plain = csr(t, someRSA(), printable(code))
		c.send()
	}
	c.plain = csr(t, someRSA(), printable("SECRETGUESS"), printable("SECRETCODE"))
	c.send()
	if log.Len() == 0 {
		t.Error("refusals are not logged")
	}
	if strings.Contains(log.String(), "SECRET") {
		t.Errorf("a code is in the log:\n%s", log.String())
	}
}

// TestOddCertificates: what a client puts into the certificate that it makes
// for itself does not matter, as long as the key is right.
func TestOddCertificates(t *testing.T) {
	w := newWorld(t)
	w.codes["code-1"] = "issue"
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "x"},
		NotBefore: time.Now().AddDate(-3, 0, 0), NotAfter: time.Now().AddDate(-2, 0, 0), // ended
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3}, Critical: true, Value: []byte("rubbish")}},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, someRSA().Public(), someRSA())
	if err != nil {
		t.Fatal(err)
	}
	c := newClient(t, w)
	if c.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	c.plain = csr(t, someRSA(), printable("code-1"))
	if out := c.send(); out.status != "0" {
		t.Errorf("%+v", out)
	}
}
