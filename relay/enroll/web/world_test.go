package web

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sallyport/sallyport/protocol/door"
	"github.com/sallyport/sallyport/protocol/pki"
	"github.com/sallyport/sallyport/relay/enroll"
)

// source is where all requests of the tests come from.
var source = netip.MustParseAddr("192.0.2.7")

const hour = time.Hour

// A fakeDesk keeps its requests in memory and issues real certificates.
type fakeDesk struct {
	ca  *pki.Authority
	end time.Time // of certificates

	mu       sync.Mutex
	codes    map[string]enroll.Invitation
	requests map[string]*fakeRequest
	looked   int
	fail     error // the next call's
	last     enroll.Application
	changes  map[string]chan struct{}
}

type fakeRequest struct {
	enroll.Request
	key    crypto.PublicKey
	ticket string
	code   string
	csr    []byte
}

func (d *fakeDesk) failure() error {
	err := d.fail
	d.fail = nil
	return err
}

func (d *fakeDesk) Look(_ context.Context, from netip.Addr, code string) (enroll.Invitation, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.looked++
	if from != source {
		return enroll.Invitation{}, fmt.Errorf("a request from %v", from)
	}
	if err := d.failure(); err != nil {
		return enroll.Invitation{}, err
	}
	inv, ok := d.codes[code]
	if !ok {
		return enroll.Invitation{}, enroll.ErrCode
	}
	return inv, nil
}

func (d *fakeDesk) Apply(_ context.Context, a enroll.Application) (enroll.Request, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.last = a
	if err := d.failure(); err != nil {
		return enroll.Request{}, err
	}
	for _, r := range d.requests {
		if r.ticket == a.Ticket && bytes.Equal(r.csr, a.CSR) {
			return r.Request, nil
		}
	}
	inv, ok := d.codes[a.Code]
	if !ok && a.Code != "" {
		return enroll.Request{}, enroll.ErrCode
	}
	delete(d.codes, a.Code)
	key, err := pki.ParseCSR(a.CSR)
	if err != nil {
		return enroll.Request{}, err
	}
	name := inv.Name
	if name == "" {
		name = a.Name
	}
	r := &fakeRequest{ticket: a.Ticket, csr: a.CSR, key: key, code: a.Code, Request: enroll.Request{
		ID: fmt.Sprintf("req%05d", len(d.requests)), Name: name, State: enroll.Pending, Via: a.Via,
		Words: "acorn bamboo candle dolphin elbow falcon", Expires: time.Now().Add(time.Hour),
	}}
	d.requests[r.ID] = r
	if ok && !inv.Approve {
		d.issue(r)
	}
	return r.Request, nil
}

func (d *fakeDesk) Status(_ context.Context, _ netip.Addr, id, ticket string) (enroll.Request, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.failure(); err != nil {
		return enroll.Request{}, err
	}
	r := d.requests[id]
	if r == nil || r.ticket != ticket {
		return enroll.Request{}, enroll.ErrUnknown
	}
	return r.Request, nil
}

func (d *fakeDesk) Changed(id string) <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.changes[id] == nil {
		d.changes[id] = make(chan struct{})
	}
	return d.changes[id]
}

// issue wants d.mu.
func (d *fakeDesk) issue(r *fakeRequest) {
	cert, err := d.ca.Issue(r.key, pki.Grant{Profile: pki.Device, Name: r.Name, NotAfter: d.end})
	if err != nil {
		panic(err)
	}
	r.State, r.Cert = enroll.Issued, cert.Raw
}

// decide approves or denies the oldest request that waits, and wakes its page.
func (d *fakeDesk) decide(t *testing.T, approve bool) {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, r := range d.requests {
		if r.State != enroll.Pending {
			continue
		}
		if r.State = enroll.Denied; approve {
			d.issue(r)
		}
		d.wake(r.ID)
		return
	}
	t.Error("nobody waits")
}

// wake wants d.mu.
func (d *fakeDesk) wake(id string) {
	if ch := d.changes[id]; ch != nil {
		close(ch)
		delete(d.changes, id)
	}
}

func (d *fakeDesk) failNext(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fail = err
}

// A relayWorld is the pages with all that they need.
type relayWorld struct {
	t      *testing.T
	ca     *pki.Authority
	desk   *fakeDesk
	pages  *Pages
	cfg    Config
	device *door.Device // who is at check.DOMAIN; nil: nobody
	log    bytes.Buffer
}

func newWorld(t *testing.T, change ...func(*Config)) *relayWorld {
	t.Helper()
	now := time.Now()
	ca, err := pki.NewAuthority("device", func() time.Time { return now })
	if err != nil {
		t.Fatal(err)
	}
	w := &relayWorld{t: t, ca: ca}
	w.desk = &fakeDesk{
		ca: ca, end: time.Now().AddDate(1, 0, 0), codes: map[string]enroll.Invitation{},
		requests: map[string]*fakeRequest{}, changes: map[string]chan struct{}{},
	}
	w.cfg = Config{
		Domain: "home.test", Port: ":8443", Desk: w.desk,
		CA: func() []*x509.Certificate { return []*x509.Certificate{ca.Cert()} },
		Renew: func(_ context.Context, old *x509.Certificate, csr []byte) (*x509.Certificate, error) {
			pub, err := pki.ParseCSR(csr)
			if err != nil {
				return nil, err
			}
			return ca.Issue(pub, pki.Grant{Profile: pki.Device, Name: old.Subject.CommonName, NotAfter: w.desk.end})
		},
		Source:    func(*http.Request) netip.Addr { return source },
		KnownHost: func(host string) bool { return host == "photos.home.test" },
		Logger:    logTo(&w.log),
	}
	for _, f := range change {
		f(&w.cfg)
	}
	if w.pages, err = New(w.cfg); err != nil {
		t.Fatal(err)
	}
	return w
}

// newDevice makes a device with a certificate for so long.
func (w *relayWorld) newDevice(name string, left time.Duration) *door.Device {
	w.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		w.t.Fatal(err)
	}
	cert, err := w.ca.Issue(key.Public(), pki.Grant{Profile: pki.Device, Name: name, NotAfter: time.Now().Add(left)})
	if err != nil {
		w.t.Fatal(err)
	}
	return &door.Device{ID: "id-of-" + name, Name: name, Cert: cert}
}

// check is the handler of check.DOMAIN with the visitor that the door let in.
func (w *relayWorld) check() http.Handler {
	next := w.pages.Check()
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		next.ServeHTTP(rw, r.WithContext(door.WithVisitor(r.Context(), door.Visitor{Device: w.device})))
	})
}

// call sends one request to a handler. header are pairs.
func call(h http.Handler, method, target, body string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, "https://enroll.home.test"+target, strings.NewReader(body))
	if strings.HasPrefix(body, "{") {
		r.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, r)
	return rec
}

// newCSR makes a signing request and returns it with its key.
func newCSR(t *testing.T) ([]byte, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := pki.NewCSR(key)
	if err != nil {
		t.Fatal(err)
	}
	return der, key
}

// tool returns the path of a program that a test needs: without it the test is
// skipped here, and fails in CI, where nothing may be skipped silently.
func tool(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err == nil {
		return path
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s is not installed", name)
	}
	t.Skipf("%s is not installed", name)
	return ""
}

// run runs a program and returns what it says.
func run(t *testing.T, name string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, tool(t, name), args...).CombinedOutput()
	return string(out), err
}

func mustRun(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := run(t, name, args...)
	if err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
	return out
}

func readAllOf(t *testing.T, r io.Reader) string {
	t.Helper()
	data, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
