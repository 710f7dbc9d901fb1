package scep

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/sallyport/sallyport/protocol/pki"
)

// The tests with real programs run at the real time: their clocks cannot be set.
func newCA(t testing.TB) *pki.Authority {
	t.Helper()
	ca, err := pki.NewAuthority("device", nil)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// A desk stands for the enrolment desk: codes that work once, a queue, renewals.
type desk struct {
	t  testing.TB
	ca *pki.Authority

	mu       sync.Mutex
	codes    map[string]string // unused → "issue" or "queue"; "" is a request without a code
	requests map[string]*standingRequest
	applied  []string // challenges that Apply was asked about
	renewed  int
	err      error // what Apply answers instead
}

type standingRequest struct {
	code, state string
	csr         []byte
	cert        *x509.Certificate
}

var errCode = errors.New("wrong, used or expired code")

func idOf(t testing.TB, csr []byte) string {
	t.Helper()
	pub, err := pki.ParseCSR(csr)
	if err != nil {
		t.Error(err)
		return ""
	}
	spki, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		t.Error(err)
		return ""
	}
	sum := sha256.Sum256(spki)
	return hex.EncodeToString(sum[:])
}

func (d *desk) issue(csr []byte) *x509.Certificate {
	pub, err := pki.ParseCSR(csr)
	if err != nil {
		d.t.Error(err)
		return nil
	}
	cert, err := d.ca.Issue(pub, pki.Grant{Profile: pki.Device, Name: "anna-phone"})
	if err != nil {
		d.t.Error(err)
	}
	return cert
}

func (d *desk) apply(_ context.Context, challenge string, csr []byte, _ netip.Addr, _ string) (string, *x509.Certificate, error) {
	id := idOf(d.t, csr)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.applied = append(d.applied, challenge)
	if d.err != nil {
		return "", nil, d.err
	}
	if r := d.requests[id]; r != nil && r.code == challenge {
		return r.state, r.cert, nil
	}
	kind := d.codes[challenge]
	delete(d.codes, challenge)
	switch kind {
	case "issue":
		r := &standingRequest{code: challenge, state: "issued", cert: d.issue(csr)}
		d.requests[id] = r
		return r.state, r.cert, nil
	case "queue":
		d.requests[id] = &standingRequest{code: challenge, state: "pending", csr: csr}
		return "pending", nil, nil
	}
	return "", nil, errCode
}

func (d *desk) status(_ context.Context, id string) (string, *x509.Certificate, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if r := d.requests[id]; r != nil {
		return r.state, r.cert, nil
	}
	return "", nil, nil
}

// decide ends the wait of everybody in the queue.
func (d *desk) decide(approve bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, r := range d.requests {
		if r.state != "pending" {
			continue
		}
		if r.state = "denied"; approve {
			r.state, r.cert = "issued", d.issue(r.csr)
		}
	}
}

func (d *desk) renew(_ context.Context, _ *x509.Certificate, csr []byte) (*x509.Certificate, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.renewed++
	return d.issue(csr), nil
}

func (d *desk) applications() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.applied)
}

// A world is a Server on a socket, with its desk.
type world struct {
	*desk
	server *Server
	url    string
	dir    string
}

func newWorld(t testing.TB) *world {
	t.Helper()
	ca := newCA(t)
	dir := t.TempDir()
	pem, err := pki.EncodeKey(raKey())
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "ra"), 0o700), os.WriteFile(filepath.Join(dir, "ra", "scep.key"), pem, 0o600)); err != nil {
		t.Fatal(err)
	}
	ra, key, err := LoadRA(filepath.Join(dir, "ra"), ca, nil)
	if err != nil {
		t.Fatal(err)
	}
	d := &desk{t: t, ca: ca, codes: map[string]string{}, requests: map[string]*standingRequest{}}
	w := &world{desk: d, dir: dir}
	w.server = New(Config{
		RA: ra, Key: key, CA: ca.Cert(),
		Apply: d.apply, StatusOfKey: d.status, Renew: d.renew,
		Source: func(r *http.Request) netip.Addr { return netip.MustParseAddrPort(r.RemoteAddr).Addr() },
		Logger: slog.New(slog.NewTextHandler(testLog{t}, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	srv := httptest.NewServer(w.server)
	t.Cleanup(srv.Close)
	w.url = srv.URL + "/scep"
	return w
}

func (w *world) path(name string) string { return filepath.Join(w.dir, name) }

type testLog struct{ t testing.TB }

func (l testLog) Write(line []byte) (int, error) {
	l.t.Logf("log: %s", line)
	return len(line), nil
}

// tool returns a command of this machine. Where it is not installed the test
// is skipped, but not where everything has to be there.
func tool(t testing.TB, name string, args ...string) *exec.Cmd {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%s is not installed", name)
		}
		t.Skipf("%s is not installed", name)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return exec.CommandContext(ctx, path, args...)
}

// Making keys takes most of the time, so tests share them where they can.
var (
	someRSA = sync.OnceValue(makeRSA)
	raKey   = sync.OnceValue(makeRSA)
)

func makeRSA() *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return key
}
