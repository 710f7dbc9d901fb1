package est

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/smallstep/pkcs7"

	"github.com/sallyport/sallyport/protocol/pki"
	"github.com/sallyport/sallyport/relay/enroll"
)

var today = time.Date(2027, 3, 1, 12, 0, 0, 0, time.UTC)

// A fake answers for the desk and for the device records.
type fake struct {
	ca      *pki.Authority
	handler http.Handler

	peer *x509.Certificate

	state enroll.State
	cert  *x509.Certificate
	wait  time.Duration
	err   error

	applied []string // code and agent of each Apply
	renewed int
	csr     []byte
	log     bytes.Buffer
}

func newFake(t testing.TB) *fake {
	t.Helper()
	ca, err := pki.NewAuthority("device", func() time.Time { return today })
	if err != nil {
		t.Fatal(err)
	}
	f := &fake{ca: ca, state: enroll.Issued}
	f.cert = f.issue(t, newKey(t), "anna-laptop")
	f.handler = New(Config{
		CA: func() []*x509.Certificate { return []*x509.Certificate{ca.Cert()} },
		Apply: func(_ context.Context, code string, csr []byte, source netip.Addr, agent string) (string, *x509.Certificate, time.Duration, error) {
			f.applied = append(f.applied, code+" "+source.String()+" "+agent)
			f.csr = csr
			return string(f.state), f.cert, f.wait, f.err
		},
		Renew: func(_ context.Context, peer *x509.Certificate, csr []byte) (*x509.Certificate, error) {
			if peer != f.peer {
				t.Error("renewed for somebody else")
			}
			f.renewed++
			return f.cert, f.err
		},
		Peer:   func(*http.Request) *x509.Certificate { return f.peer },
		Source: func(*http.Request) netip.Addr { return netip.MustParseAddr("203.0.113.7") },
		Logger: slog.New(slog.NewTextHandler(&f.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	return f
}

func newKey(t testing.TB) crypto.Signer {
	t.Helper()
	key, err := pki.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (f *fake) issue(t testing.TB, key crypto.Signer, name string) *x509.Certificate {
	t.Helper()
	cert, err := f.ca.Issue(key.Public(), pki.Grant{Profile: pki.Device, Name: name})
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func newCSR(t testing.TB, key crypto.Signer, tmpl x509.CertificateRequest) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &tmpl, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func named(name string) x509.CertificateRequest {
	return x509.CertificateRequest{Subject: pkix.Name{CommonName: name}}
}

// post sends a request as a good client does; change may spoil it.
func (f *fake) post(op string, csr []byte, change ...func(*http.Request)) *httptest.ResponseRecorder {
	r := httptest.NewRequest("POST", "https://enroll.example.org"+root+op, strings.NewReader(base64.StdEncoding.EncodeToString(csr)))
	r.Header.Set("Content-Type", "application/pkcs10")
	r.Header.Set("User-Agent", "client/1")
	r.SetBasicAuth("anybody", "CODE")
	for _, c := range change {
		c(r)
	}
	w := httptest.NewRecorder()
	f.handler.ServeHTTP(w, r)
	return w
}

// certsOf reads a certs-only answer and checks its form.
func certsOf(t testing.TB, w *httptest.ResponseRecorder) []*x509.Certificate {
	t.Helper()
	if w.Code != http.StatusOK || w.Header().Get("Content-Type") != "application/pkcs7-mime; smime-type=certs-only" || w.Header().Get("Content-Transfer-Encoding") != "base64" {
		t.Fatalf("%d %v %s", w.Code, w.Header(), w.Body)
	}
	if bytes.ContainsAny(w.Body.Bytes(), "\r\n ") {
		t.Error("the base64 has line breaks")
	}
	der, err := base64.StdEncoding.DecodeString(w.Body.String())
	if err != nil {
		t.Fatal(err)
	}
	p7, err := pkcs7.Parse(der)
	if err != nil {
		t.Fatal(err)
	}
	return p7.Certificates
}

func TestCACerts(t *testing.T) {
	f := newFake(t)
	w := httptest.NewRecorder()
	f.handler.ServeHTTP(w, httptest.NewRequest("GET", root+"cacerts", nil))
	if certs := certsOf(t, w); len(certs) != 1 || !certs[0].Equal(f.ca.Cert()) {
		t.Errorf("%d certificates", len(certs))
	}
	if w.Header().Get("Cache-Control") != "no-store" || w.Header().Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("headers %v", w.Header())
	}
}

func TestEnrol(t *testing.T) {
	f := newFake(t)
	csr := newCSR(t, newKey(t), named("whatever"))
	if certs := certsOf(t, f.post("simpleenroll", csr)); len(certs) != 1 || !certs[0].Equal(f.cert) {
		t.Errorf("%d certificates", len(certs))
	}
	if fmt.Sprint(f.applied) != "[CODE 203.0.113.7 client/1]" || !bytes.Equal(f.csr, csr) {
		t.Errorf("applied %q", f.applied)
	}
	f.state, f.cert, f.wait = enroll.Pending, nil, 1500*time.Millisecond
	if w := f.post("simpleenroll", csr); w.Code != http.StatusAccepted || w.Header().Get("Retry-After") != "2" {
		t.Errorf("pending: %d %v", w.Code, w.Header())
	}
	f.wait = 0
	if w := f.post("simpleenroll", csr); w.Header().Get("Retry-After") != "60" {
		t.Errorf("pending: %v", w.Header())
	}
	for _, state := range []enroll.State{enroll.Denied, enroll.Expired, enroll.Issued /* and no certificate */, ""} {
		f.state = state
		if w := f.post("simpleenroll", csr); w.Code != http.StatusForbidden {
			t.Errorf("%s: %d", state, w.Code)
		}
	}
}

// TestCodeIsNeeded: without a code nobody is asked, and nobody falls into the
// queue of those without one by accident.
func TestCodeIsNeeded(t *testing.T) {
	f := newFake(t)
	csr := newCSR(t, newKey(t), named("x"))
	for name, change := range map[string]func(*http.Request){
		"none":        func(r *http.Request) { r.Header.Del("Authorization") },
		"empty":       func(r *http.Request) { r.SetBasicAuth("CODE", "") },
		"bearer":      func(r *http.Request) { r.Header.Set("Authorization", "Bearer CODE") },
		"broken":      func(r *http.Request) { r.Header.Set("Authorization", "Basic !") },
		"certificate": func(r *http.Request) { f.peer = f.cert; r.Header.Del("Authorization") },
		"in the URL":  func(r *http.Request) { r.Header.Del("Authorization"); r.URL.RawQuery = "password=CODE" },
	} {
		w := f.post("simpleenroll", csr, change)
		if w.Code != http.StatusUnauthorized || !strings.HasPrefix(w.Header().Get("WWW-Authenticate"), "Basic ") {
			t.Errorf("%s: %d %v", name, w.Code, w.Header())
		}
	}
	if len(f.applied) != 0 {
		t.Errorf("applied %q", f.applied)
	}
}

// TestRefusals: what strangers may know has a status and a fixed text; the
// error itself, which may name anything, is for the log only.
func TestRefusals(t *testing.T) {
	f := newFake(t)
	csr := newCSR(t, newKey(t), named("anna-laptop"))
	f.peer = f.issue(t, newKey(t), "anna-laptop")
	const secret = "/var/lib/sallyport/relay.db 10.0.0.5"
	for _, c := range []struct {
		err    error
		status int
		header string
	}{
		{enroll.ErrCode, 401, "WWW-Authenticate"},
		{&enroll.BlockedError{After: 90 * time.Second}, 429, "Retry-After"},
		{enroll.ErrNameTaken, 409, ""},
		{errors.Join(enroll.ErrForm, enroll.ErrNameTaken), 409, ""},
		{enroll.ErrForm, 400, ""},
		{enroll.ErrKeyUsed, 409, ""},
		{enroll.ErrNotAllowed, 403, ""},
		{enroll.ErrFull, 503, "Retry-After"},
		{context.Canceled, 503, "Retry-After"},
		{context.DeadlineExceeded, 503, "Retry-After"},
		{errors.New("the disk is full"), 500, ""},
	} {
		for _, op := range []string{"simpleenroll", "simplereenroll"} {
			f.log.Reset()
			f.err = fmt.Errorf("%s: %w", secret, c.err)
			w := f.post(op, csr)
			if w.Code != c.status || c.header != "" && w.Header().Get(c.header) == "" {
				t.Errorf("%s, %v: %d %v", op, c.err, w.Code, w.Header())
			}
			if body := w.Body.String(); strings.Contains(body, "CODE") || strings.Contains(body, "disk") || strings.Contains(body, secret) ||
				len(body) < 20 || !strings.HasPrefix(w.Header().Get("Content-Type"), "text/plain") {
				t.Errorf("%s, %v: %v %s", op, c.err, w.Header(), w.Body)
			}
			if !strings.Contains(f.log.String(), secret) || strings.Contains(f.log.String(), "ERROR") != (c.status == 500) {
				t.Errorf("%s, %v: the log says %q", op, c.err, f.log.String())
			}
		}
	}
	f.err = &enroll.BlockedError{After: 90 * time.Second}
	if w := f.post("simpleenroll", csr); w.Header().Get("Retry-After") != "90" {
		t.Errorf("%v", w.Header())
	}
}

func TestBadRequests(t *testing.T) {
	f := newFake(t)
	f.peer = f.cert
	good := newCSR(t, newKey(t), named("anna-laptop"))
	tampered := bytes.Clone(good)
	tampered[len(tampered)-1] ^= 1
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	body := func(s string) func(*http.Request) {
		return func(r *http.Request) { r.Body = io.NopCloser(strings.NewReader(s)) }
	}
	header := func(name, value string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Set(name, value) }
	}
	for _, op := range []string{"simpleenroll", "simplereenroll"} {
		for _, c := range []struct {
			name   string
			change func(*http.Request)
			status int
		}{
			{"no type", header("Content-Type", ""), 415},
			{"form", header("Content-Type", "application/x-www-form-urlencoded"), 415},
			{"text", header("Content-Type", "text/plain; application/pkcs10"), 415},
			{"other site", header("Sec-Fetch-Site", "cross-site"), 403},
			{"neighbouring host", header("Sec-Fetch-Site", "same-site"), 403},
			{"unknown site", header("Sec-Fetch-Site", "x"), 403},
			{"other origin", header("Origin", "https://evil.example"), 403},
			{"empty", body(""), 400},
			{"not base64", body("%%%%"), 400},
			{"not a request", body("AAAA"), 400},
			{"not signed", body(base64.StdEncoding.EncodeToString(tampered)), 400},
			{"weak key", body(base64.StdEncoding.EncodeToString(newCSR(t, weak, named("anna-laptop")))), 400},
			{"too long", body(strings.Repeat("A", maxBody+1)), 413},
			{"GET", func(r *http.Request) { r.Method = "GET" }, 405},
			{"other label", func(r *http.Request) { r.URL.Path = root + "x/" + op }, 404},
			{"key made here", func(r *http.Request) { r.URL.Path = root + "serverkeygen" }, 404},
		} {
			if w := f.post(op, good, c.change); w.Code != c.status {
				t.Errorf("%s, %s: %d %s", op, c.name, w.Code, w.Body)
			}
		}
	}
	if len(f.applied) != 0 || f.renewed != 0 {
		t.Errorf("applied %q, renewed %d", f.applied, f.renewed)
	}
	folded := body(base64.StdEncoding.EncodeToString(good[:30]) + "\r\n " + base64.StdEncoding.EncodeToString(good[30:]) + "\n")
	if w := f.post("simpleenroll", good, folded, header("Content-Type", "application/pkcs10; charset=x")); w.Code != http.StatusOK {
		t.Errorf("with line breaks: %d %s", w.Code, w.Body)
	}
}

// TestReenrol: only under a client certificate, and only for the same names.
func TestReenrol(t *testing.T) {
	f := newFake(t)
	csr := newCSR(t, newKey(t), named("anna-laptop"))
	if w := f.post("simplereenroll", csr); w.Code != http.StatusForbidden {
		t.Errorf("with a code, without a certificate: %d", w.Code)
	}
	f.peer = f.issue(t, newKey(t), "anna-laptop")
	if certs := certsOf(t, f.post("simplereenroll", csr)); len(certs) != 1 || !certs[0].Equal(f.cert) || f.renewed != 1 {
		t.Errorf("%d certificates, %d renewals", len(certs), f.renewed)
	}
	san := named("anna-laptop")
	san.DNSNames = []string{"ha.example.org"}
	more := named("anna-laptop")
	more.Subject.Organization = []string{"admins"}
	joined, err := asn1.Marshal(pkix.RDNSequence{{
		{Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: "anna-laptop"},
		{Type: asn1.ObjectIdentifier{2, 5, 4, 10}, Value: "admins"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	for name, tmpl := range map[string]x509.CertificateRequest{
		"other name": named("berta"), "no name": {}, "more in the subject": more, "alternative name": san, "two in one step": {RawSubject: joined},
	} {
		if w := f.post("simplereenroll", newCSR(t, newKey(t), tmpl)); w.Code != http.StatusBadRequest {
			t.Errorf("%s: %d %s", name, w.Code, w.Body)
		}
	}
	// The same name in another type of string is the same name: openssl writes
	// UTF8String where Go writes PrintableString.
	raw := []byte{0x30, 0x16, 0x31, 0x14, 0x30, 0x12, 0x06, 0x03, 0x55, 0x04, 0x03, 0x0c, 0x0b}
	if w := f.post("simplereenroll", newCSR(t, newKey(t), x509.CertificateRequest{RawSubject: append(raw, "anna-laptop"...)})); w.Code != http.StatusOK {
		t.Errorf("in UTF8String: %d %s", w.Code, w.Body)
	}
	if f.renewed != 2 {
		t.Errorf("%d renewals", f.renewed)
	}
	f.err = errors.New("revoked meanwhile")
	if w := f.post("simplereenroll", csr); w.Code != http.StatusInternalServerError {
		t.Errorf("%d", w.Code)
	}
}

func TestAttributes(t *testing.T) {
	f := newFake(t)
	w := httptest.NewRecorder()
	f.handler.ServeHTTP(w, httptest.NewRequest("GET", root+"csrattrs", nil))
	if w.Code != http.StatusNoContent {
		t.Errorf("%d", w.Code)
	}
}

func TestConfig(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("a handler without anybody to ask")
		}
	}()
	New(Config{})
}

// FuzzRequest: no body makes the handler panic or reach the desk with
// something that is not a checked request.
func FuzzRequest(f *testing.F) {
	srv := newFake(f)
	srv.peer = srv.cert
	f.Add([]byte(base64.StdEncoding.EncodeToString(newCSR(f, newKey(f), named("anna-laptop")))), true)
	f.Add([]byte("MIIB\r\n"), false)
	f.Fuzz(func(t *testing.T, body []byte, again bool) {
		op := "simpleenroll"
		if again {
			op = "simplereenroll"
		}
		srv.csr = nil
		w := srv.post(op, nil, func(r *http.Request) { r.Body = io.NopCloser(bytes.NewReader(body)) })
		if w.Code == http.StatusOK && !again {
			if _, err := pki.ParseCSR(srv.csr); err != nil {
				t.Errorf("applied with %x: %v", srv.csr, err)
			}
		}
		if w.Code >= 500 {
			t.Errorf("%d %s", w.Code, w.Body)
		}
	})
}
