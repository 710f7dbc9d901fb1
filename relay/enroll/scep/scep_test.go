package scep

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/smallstep/pkcs7"

	"github.com/sallyport/sallyport/relay/enroll/scep/cms"
)

func get(t *testing.T, address string) (*http.Response, []byte) {
	t.Helper()
	resp, err := http.Get(address)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, body
}

func TestCapabilities(t *testing.T) {
	w := newWorld(t)
	_, body := get(t, w.url+"?operation=GetCACaps")
	words := strings.Fields(string(body))
	for _, want := range []string{"AES", "DES3", "POSTPKIOperation", "Renewal", "SCEPStandard", "SHA-256"} {
		if !slices.Contains(words, want) {
			t.Errorf("%s is missing", want)
		}
	}
	for _, weak := range []string{"SHA-1", "DES"} {
		if slices.Contains(words, weak) {
			t.Errorf("%s is offered", weak)
		}
	}
}

func TestCertificates(t *testing.T) {
	w := newWorld(t)
	resp, body := get(t, w.url+"?operation=GetCACert&message=whoever")
	if got := resp.Header.Get("Content-Type"); got != "application/x-x509-ca-ra-cert" {
		t.Errorf("content type %s", got)
	}
	p7, err := pkcs7.Parse(body)
	if err != nil {
		t.Fatal(err)
	}
	if len(p7.Certificates) != 2 || !p7.Certificates[0].Equal(w.server.cfg.RA) || !p7.Certificates[1].Equal(w.ca.Cert()) {
		t.Errorf("%d certificates, want the go-between and its CA", len(p7.Certificates))
	}
	cmd := tool(t, "openssl", "pkcs7", "-inform", "DER", "-print_certs", "-noout")
	cmd.Stdin = bytes.NewReader(body)
	if out, err := cmd.CombinedOutput(); err != nil || !bytes.Contains(out, []byte("CN = Sallyport registrar")) {
		t.Errorf("openssl: %v\n%s", err, out)
	}
}

func TestEnrol(t *testing.T) {
	w := newWorld(t)
	for _, cipher := range []cms.Cipher{cms.AES128, cms.AES256, cms.TripleDES} {
		w.codes["code-1"] = "issue"
		w.requests = map[string]*standingRequest{}
		c := newClient(t, w)
		c.cipher = cipher
		c.plain = csr(t, someRSA(), printable("code-1"))
		out := c.send()
		if out.status != "0" || !someRSA().PublicKey.Equal(out.cert.PublicKey) {
			t.Fatalf("cipher %v: %+v", cipher, out)
		}
		if out.header.Get("Content-Type") != "application/x-pki-message" || out.header.Get("Cache-Control") != "no-store" {
			t.Errorf("headers %v", out.header)
		}
		// The answer may be lost: the same message gets the same again.
		if again := c.send(); again.status != "0" || !again.cert.Equal(out.cert) {
			t.Errorf("asked again: %+v", again)
		}
	}
}

func TestChallenge(t *testing.T) {
	const tagBMP = 30
	for _, test := range []struct {
		name       string
		challenges [][]byte
		want       string // what Apply sees
		refused    bool
	}{
		{name: "printable", challenges: [][]byte{printable("code-1")}, want: "code-1"},
		{name: "UTF-8", challenges: [][]byte{element(asn1.TagUTF8String, "cöde")}, want: "cöde"},
		{name: "IA5", challenges: [][]byte{element(asn1.TagIA5String, "code-1")}, want: "code-1"},
		{name: "T61", challenges: [][]byte{element(asn1.TagT61String, "code-1")}, want: "code-1"},
		{name: "BMP", challenges: [][]byte{element(tagBMP, "\x00c\x00o")}, want: "co"},
		{name: "none", want: ""},
		{name: "broken UTF-8", challenges: [][]byte{element(asn1.TagUTF8String, "c\xff")}, refused: true},
		{name: "odd BMP", challenges: [][]byte{element(tagBMP, "\x00c\x00")}, refused: true},
		{name: "two", challenges: [][]byte{printable("code-1"), printable("code-2")}, refused: true},
		{name: "two values", challenges: [][]byte{append(printable("code-1"), printable("code-2")...)}, refused: true},
		{name: "a number", challenges: [][]byte{element(asn1.TagInteger, "1")}, refused: true},
		{name: "too long", challenges: [][]byte{printable(strings.Repeat("x", 257))}, refused: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			w.codes[test.want] = "issue"
			c := newClient(t, w)
			c.plain = csr(t, someRSA(), test.challenges...)
			out := c.send()
			if test.refused {
				if out.status != "2" || out.info != "1" || w.applications() != 0 {
					t.Errorf("%+v, %d applications", out, w.applications())
				}
				return
			}
			if out.status != "0" || !slices.Equal(w.applied, []string{test.want}) {
				t.Errorf("%+v, applied %q", out, w.applied)
			}
		})
	}
}

// TestStatesOfApply: whatever the desk says, a certificate comes only with
// "issued", and only for the key that asked.
func TestStatesOfApply(t *testing.T) {
	w := newWorld(t)
	other, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	mine, theirs := w.issue(csr(t, someRSA())), w.issue(csr(t, other))
	for _, test := range []struct {
		state        string
		cert         *x509.Certificate
		status, info string
	}{
		{"issued", mine, "0", ""},
		{"issued", theirs, "2", "2"},
		{"issued", nil, "2", "2"},
		{"pending", mine, "3", ""},
		{"denied", mine, "2", "2"},
		{"expired", mine, "2", "2"},
		{"", mine, "2", "2"},
	} {
		w.requests[idOf(t, csr(t, someRSA()))] = &standingRequest{code: "x", state: test.state, cert: test.cert}
		c := newClient(t, w)
		c.plain = csr(t, someRSA(), printable("x"))
		if out := c.send(); out.status != test.status || out.info != test.info {
			t.Errorf("PKCSReq, %q: %+v", test.state, out)
		}
		c.kind, c.plain = 20, issuerAndSubject
		if test.state == "" { // which StatusOfKey says of strangers
			test.info = "4"
		}
		if out := c.send(); out.status != test.status || out.info != test.info {
			t.Errorf("CertPoll, %q: %+v", test.state, out)
		}
	}
}

// issuerAndSubject is what a CertPoll carries: two empty names.
var issuerAndSubject = []byte{0x30, 4, 0x30, 0, 0x30, 0}

func TestOtherKindsAreRefused(t *testing.T) {
	w := newWorld(t)
	for _, kind := range []int{0, 3, 18, 21, 22, 99} {
		c := newClient(t, w)
		c.kind, c.plain = kind, csr(t, someRSA(), printable("code-1"))
		if out := c.send(); out.status != "2" || out.info != "2" {
			t.Errorf("kind %d: %+v", kind, out)
		}
	}
	if w.applications() != 0 || w.renewed != 0 {
		t.Error("something was done")
	}
}

type blocked time.Duration

func (blocked) Error() string               { return "too many wrong codes" }
func (b blocked) RetryAfter() time.Duration { return time.Duration(b) }

func TestBlockedSource(t *testing.T) {
	w := newWorld(t)
	c := newClient(t, w)
	c.plain = csr(t, someRSA(), printable("code-1"))
	for wait, want := range map[time.Duration]string{90 * time.Second: "90", 0: "1"} {
		w.err = blocked(wait)
		if out := c.send(); out.http != http.StatusTooManyRequests || out.header.Get("Retry-After") != want {
			t.Errorf("%v: %+v", wait, out)
		}
	}
}

// TestSourceAndAgent: the desk is told who asks.
func TestSourceAndAgent(t *testing.T) {
	w := newWorld(t)
	var source netip.Addr
	var agent string
	w.server.cfg.Apply = func(_ context.Context, _ string, _ []byte, s netip.Addr, a string) (string, *x509.Certificate, error) {
		source, agent = s, a
		return "", nil, errors.New("no")
	}
	w.server.cfg.Source = func(*http.Request) netip.Addr { return netip.MustParseAddr("192.0.2.7") }
	c := newClient(t, w)
	c.plain = csr(t, someRSA())
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, w.url+"?operation=PKIOperation", bytes.NewReader(c.message()))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("User-Agent", strings.Repeat("a", 1000))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if source.String() != "192.0.2.7" || len(agent) != maxAgent {
		t.Errorf("source %v, agent of %d bytes", source, len(agent))
	}
}
