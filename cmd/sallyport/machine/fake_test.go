package machine

import (
	"bytes"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sallyport/sallyport/protocol/pki"
)

const goodCode = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

// fakeRelay speaks the relay's JSON API with one code and one request.
type fakeRelay struct {
	t      *testing.T
	device *pki.Authority
	root   []byte // PEM
	addr   string

	mu      sync.Mutex // guards what follows
	name    string     // that the code is made out for
	taken   string     // a name that is refused
	approve bool       // requests wait
	state   string     // decided by the test
	pub     crypto.PublicKey
	ticket  string
	asked   string // name of the request
	words   string
	lose    int          // so many answers to /api/requests are lost
	busy    int          // so many polls are answered 429
	swapKey bool         // certificates are for another key
	end     time.Time    // of what it issues; zero: a year from now
	bodies  bytes.Buffer // all that was sent
	renewed int
	polled  int
}

func newFakeRelay(t *testing.T) *fakeRelay {
	t.Helper()
	f := &fakeRelay{t: t, name: "nas", words: "six words"}
	var err error
	if f.device, err = pki.LoadOrCreate(t.TempDir(), "device-ca"); err != nil {
		t.Fatal(err)
	}
	public, err := pki.LoadOrCreate(t.TempDir(), "public-ca")
	if err != nil {
		t.Fatal(err)
	}
	f.root = pki.EncodeCert(public.Cert())
	key, err := pki.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := public.Issue(key.Public(), pki.Grant{
		Profile: pki.Server, Name: "home.test", DNSNames: []string{"enroll.home.test", "check.home.test"}, NotAfter: time.Now().Add(time.Hour),
	})
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST enroll.home.test/api/code", f.code)
	mux.HandleFunc("POST enroll.home.test/api/requests", f.apply)
	mux.HandleFunc("GET enroll.home.test/api/requests/{id}", f.status)
	mux.HandleFunc("POST check.home.test/api/renew", f.renew)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		f.mu.Lock()
		f.bodies.WriteString(r.Method + " " + r.URL.String() + "\n")
		f.bodies.Write(body)
		f.mu.Unlock()
		r.Body = io.NopCloser(bytes.NewReader(body))
		mux.ServeHTTP(w, r)
	}))
	s.TLS = &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: key}},
		ClientAuth:   tls.RequestClientCert, NextProtos: []string{"h2", "http/1.1"},
	}
	s.EnableHTTP2 = true
	s.StartTLS()
	t.Cleanup(s.Close)
	f.addr = s.Listener.Addr().String()
	return f
}

// enrolment is one that succeeds as things are.
func (f *fakeRelay) enrolment(dir string) Enrolment {
	return Enrolment{
		Dir: dir, Relay: "https://enroll.home.test", Address: f.addr, Code: goodCode, Root: f.root,
		Hostname: "box", every: time.Millisecond,
	}
}

// refuse answers as the relay does when it says no.
func refuse(w http.ResponseWriter, status int, message string) {
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"error": message, "hint": "do better", "retry_after": 0.001})
}

func decode(r *http.Request) map[string]string {
	in := map[string]string{}
	_ = json.NewDecoder(r.Body).Decode(&in)
	if r.Header.Get("Content-Type") != "application/json" {
		in = nil
	}
	return in
}

func (f *fakeRelay) code(w http.ResponseWriter, r *http.Request) {
	if decode(r)["code"] != goodCode {
		refuse(w, http.StatusForbidden, "the code is not valid")
		return
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"name": f.name, "approve": f.approve})
}

func (f *fakeRelay) apply(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var in struct {
		Code, Name, Ticket string
		CSR                []byte
	}
	_ = json.NewDecoder(r.Body).Decode(&in)
	pub, err := pki.ParseCSR(in.CSR)
	if err != nil || in.Code != goodCode {
		refuse(w, http.StatusForbidden, "the code is not valid")
		return
	}
	if f.pub != nil && !(f.pub.(interface{ Equal(crypto.PublicKey) bool }).Equal(pub) && f.ticket == in.Ticket) {
		refuse(w, http.StatusForbidden, "the code is used")
		return
	}
	f.pub, f.ticket = pub, in.Ticket
	if in.Name == f.taken {
		refuse(w, http.StatusConflict, "the name is taken")
		return
	}
	f.asked = in.Name
	if f.state == "" {
		f.state = "issued"
		if f.approve {
			f.state = "pending"
		}
	}
	if f.lose > 0 {
		f.lose--
		panic(http.ErrAbortHandler)
	}
	w.WriteHeader(http.StatusCreated)
	f.answer(w, f.pub)
}

func (f *fakeRelay) status(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.polled++
	if r.PathValue("id") != "REQUEST1" || r.Header.Get("Authorization") != "Bearer "+f.ticket {
		refuse(w, http.StatusNotFound, "no such request")
		return
	}
	if f.busy > 0 {
		f.busy--
		refuse(w, http.StatusTooManyRequests, "slowly")
		return
	}
	f.answer(w, f.pub)
}

func (f *fakeRelay) renew(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var in struct{ CSR []byte }
	_ = json.NewDecoder(r.Body).Decode(&in)
	pub, err := pki.ParseCSR(in.CSR)
	if err != nil || len(r.TLS.PeerCertificates) != 1 || r.TLS.PeerCertificates[0].CheckSignatureFrom(f.device.Cert()) != nil {
		refuse(w, http.StatusUnauthorized, "no certificate that is known")
		return
	}
	f.renewed++
	f.state = "issued"
	w.WriteHeader(http.StatusCreated)
	f.answer(w, pub)
}

func (f *fakeRelay) answer(w http.ResponseWriter, pub crypto.PublicKey) {
	out := map[string]any{"id": "REQUEST1", "state": f.state, "name": f.asked, "words": f.words}
	if f.state == "issued" {
		if f.swapKey {
			other, _ := pki.NewKey()
			pub = other.Public()
		}
		end := f.end
		if end.IsZero() {
			end = time.Now().AddDate(1, 0, 0)
		}
		cert, err := f.device.Issue(pub, pki.Grant{Profile: pki.Device, Name: "nas", NotAfter: end})
		if err != nil {
			f.t.Error(err)
			return
		}
		out["cert"], out["ca"] = cert.Raw, [][]byte{f.device.Cert().Raw}
	}
	_ = json.NewEncoder(w).Encode(out)
}

func (f *fakeRelay) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

func (f *fakeRelay) sent() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.bodies.String()
}

// mustEnrol enrols and proves that the pair works.
func mustEnrol(t *testing.T, e Enrolment) *Device {
	t.Helper()
	d, err := Enrol(t.Context(), e)
	if err != nil {
		t.Fatal(err)
	}
	again, err := Open(e.Dir)
	if err != nil {
		t.Fatal(err)
	}
	if !sameKey(again.Cert, again.key) || !bytes.Equal(again.Cert.Raw, d.Cert.Raw) {
		t.Error("what is on disk is not what was enrolled")
	}
	if _, err := again.Cert.Verify(x509.VerifyOptions{Roots: pool(t, again.CA), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Errorf("ca.crt does not vouch for the certificate: %v", err)
	}
	return again
}

func pool(t *testing.T, pem []byte) *x509.CertPool {
	t.Helper()
	p := x509.NewCertPool()
	if !p.AppendCertsFromPEM(pem) {
		t.Fatalf("no PEM certificate in %q", strings.SplitN(string(pem), "\n", 2)[0])
	}
	return p
}
