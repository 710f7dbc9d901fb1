package certs

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3/acme"

	"github.com/sallyport/sallyport/protocol/pki"
)

const testCA = "https://ca.test/dir"

// A fakeCA is an ACME server in memory that has a directory, perhaps advice,
// and never a certificate. It counts how often a certificate was asked for.
type fakeCA struct {
	advice string // body of the renewal information; "": it has none
	refuse *http.Response

	mu    sync.Mutex // guards below
	asked []time.Time
}

func (f *fakeCA) RoundTrip(r *http.Request) (*http.Response, error) {
	body := func(s string) *http.Response {
		return &http.Response{
			StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {"application/json"}, "Replay-Nonce": {"n"}},
			Body: io.NopCloser(strings.NewReader(s)), Request: r,
		}
	}
	switch {
	case r.URL.Path == "/dir":
		return body(`{"newNonce":"https://ca.test/nonce","newAccount":"https://ca.test/account","newOrder":"https://ca.test/order",` +
			`"renewalInfo":"https://ca.test/ari","meta":{"caaIdentities":["ca.test"]}}`), nil
	case strings.HasPrefix(r.URL.Path, "/ari/") && f.advice != "":
		return body(f.advice), nil
	case r.URL.Path == "/nonce":
		return body(""), nil
	case r.URL.Path == "/account":
		f.mu.Lock()
		defer f.mu.Unlock()
		f.asked = append(f.asked, time.Now())
		resp := body(`{"type":"urn:ietf:params:acme:error:unauthorized","detail":"not today","status":403}`)
		resp.StatusCode = http.StatusForbidden
		resp.Header.Set("Content-Type", "application/problem+json")
		if f.refuse != nil {
			resp.StatusCode, resp.Body = f.refuse.StatusCode, f.refuse.Body
			resp.Header.Set("Retry-After", f.refuse.Header.Get("Retry-After"))
		}
		return resp, nil
	}
	return nil, &net.OpError{Op: "dial", Err: errors.New("nobody there")}
}

func (f *fakeCA) times() []time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]time.Time(nil), f.asked...)
}

// keep puts a pair for host where an ACME with this directory finds it.
func keep(t *testing.T, dir, host string, from, to time.Time) *x509.Certificate {
	t.Helper()
	key, err := pki.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(from.Unix()), DNSNames: []string{host}, NotBefore: from, NotAfter: to, AuthorityKeyId: []byte{1}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pem, err := pki.EncodeKey(key)
	if err != nil {
		t.Fatal(err)
	}
	s := newStorage(dir)
	for at, data := range map[string][]byte{
		certmagic.StorageKeys.SiteCert(issuerKey(testCA), host):       pki.EncodeCert(leaf),
		certmagic.StorageKeys.SitePrivateKey(issuerKey(testCA), host): pem,
		certmagic.StorageKeys.SiteMeta(issuerKey(testCA), host):       []byte("{}"),
	} {
		if err := s.Store(t.Context(), at, data); err != nil {
			t.Fatal(err)
		}
	}
	return leaf
}

// virtual runs an ACME with a CA in memory and hosts, in a bubble.
func virtual(t *testing.T, dir string, ca *fakeCA, change func(*ACMEConfig), hosts ...string) (a *ACME, log *logBuffer) {
	t.Helper()
	log = new(logBuffer)
	c := ACMEConfig{
		Dir: dir, CA: testCA, NoPreflight: true, Resolver: new(testDNS),
		Logger: slog.New(slog.NewTextHandler(log, nil)),
	}
	if change != nil {
		change(&c)
	}
	a, err := NewACME(c)
	if err != nil {
		t.Fatal(err)
	}
	a.http = &http.Client{Transport: ca}
	a.SetHosts(hosts)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return a, log
}

const day = 24 * time.Hour

// A certificate of 90 days is first tried at two thirds, then as often as the
// CA's limits allow, and serves all the while.
func TestRenewalSchedule(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "acme")
	if err := pki.SecureDir(dir); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		ca, begin := new(fakeCA), time.Now()
		leaf := keep(t, dir, "ha.relay.test", begin, begin.Add(90*day))
		a, log := virtual(t, dir, ca, nil, "ha.relay.test")
		time.Sleep(60*day - time.Minute)
		if n := len(ca.times()); n > 0 {
			t.Errorf("asked %d times before two thirds", n)
		}
		if st := a.Status()[0]; st.State != StateOK || !st.Next.Equal(begin.Add(60*day)) {
			t.Errorf("%+v", st)
		}
		time.Sleep(time.Hour)
		asked := ca.times()
		if n := len(asked); n < 3 || n > 5 {
			t.Errorf("asked %d times in the first hour", n)
		}
		if late := asked[0].Sub(begin.Add(60 * day)); late < 0 || late > adviceTime {
			t.Errorf("first asked %v after two thirds", late)
		}
		time.Sleep(day)
		if n := len(ca.times()) - len(asked); n < 4 || n > 12 {
			t.Errorf("asked %d times in the next day", n)
		}
		st := a.Status()[0]
		if st.State != StateFailing || !strings.Contains(st.Problem, "not today") || strings.Contains(st.Problem, "\n") || st.Fix == "" || !st.NotAfter.Equal(leaf.NotAfter) {
			t.Errorf("%+v", st)
		}
		if n := strings.Count(log.String(), "certificate.failed"); n != 1 {
			t.Errorf("the same failure is logged %d times", n)
		}
		if cert, err := a.GetCertificate("ha.relay.test"); err != nil || !cert.Leaf.Equal(leaf) {
			t.Errorf("while renewals fail: %v", err)
		}
		// The owner does not wait for the next turn.
		n := len(ca.times())
		if err := a.Retry("ha.relay.test"); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		if len(ca.times()) == n {
			t.Error("Retry asked nobody")
		}
		if err := a.Retry("nas.relay.test"); !errors.Is(err, ErrUnknownHost) {
			t.Errorf("%v", err)
		}
		// An expired one is better than none: the visitor's warning says what is wrong.
		time.Sleep(40 * day)
		if cert, err := a.GetCertificate("ha.relay.test"); err != nil || !cert.Leaf.Equal(leaf) {
			t.Errorf("expired: %v", err)
		}
		// What is not registered any more is not asked for any more.
		a.SetHosts(nil)
		synctest.Wait()
		n = len(ca.times())
		time.Sleep(10 * day)
		if len(ca.times()) != n {
			t.Error("the CA is asked for a host that is gone")
		}
		if _, err := a.GetCertificate("ha.relay.test"); err == nil {
			t.Error("a host that is gone is served")
		}
	})
}

// The CA's window decides, but for one that would have us order without end or
// let the certificate run out.
func TestRenewalAdvice(t *testing.T) {
	for name, tt := range map[string]struct {
		from, to time.Duration // the window, after the certificate's begin
		min, max time.Duration // when it is first asked for a new one
	}{
		"early": {10 * day, 11 * day, 10 * day, 11 * day},
		"past":  {-2 * day, -day, 0, time.Minute},
		"late":  {95 * day, 96 * day, 81 * day, 81*day + time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "acme")
			if err := pki.SecureDir(dir); err != nil {
				t.Fatal(err)
			}
			synctest.Test(t, func(t *testing.T) {
				begin := time.Now()
				window := func(d time.Duration) string { return begin.Add(d).Format(time.RFC3339) }
				ca := &fakeCA{advice: `{"suggestedWindow":{"start":"` + window(tt.from) + `","end":"` + window(tt.to) + `"}}`}
				keep(t, dir, "ha.relay.test", begin, begin.Add(90*day))
				virtual(t, dir, ca, nil, "ha.relay.test")
				time.Sleep(tt.max + time.Second)
				asked := ca.times()
				if len(asked) == 0 {
					t.Fatal("not asked")
				}
				if at := asked[0].Sub(begin); at < tt.min || at > tt.max+time.Second {
					t.Errorf("asked after %v, want %v to %v", at, tt.min, tt.max)
				}
			})
		})
	}
	// A window in the past for a certificate that was obtained just now.
	begin := time.Now()
	m := &managed{
		cert: &tls.Certificate{Leaf: &x509.Certificate{NotBefore: begin, NotAfter: begin.Add(90 * day)}}, at: begin,
		advice: acme.RenewalInfo{SelectedTime: begin.Add(-time.Hour)},
	}
	if at := m.renewAt(); at.Before(begin.Add(time.Hour)) {
		t.Errorf("a new certificate is replaced after %v", at.Sub(begin))
	}
	m.advice = acme.RenewalInfo{}
	m.cert.Leaf.NotAfter = begin.Add(6 * day)
	if at := m.renewAt(); !at.Equal(begin.Add(3 * day)) {
		t.Errorf("a certificate of six days is replaced after %v", at.Sub(begin))
	}
}

// A host that comes and goes with its agent does not get around the waits.
func TestFlappingHost(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "acme")
	synctest.Test(t, func(t *testing.T) {
		ca := new(fakeCA)
		a, _ := virtual(t, dir, ca, nil, "ha.relay.test")
		for range 300 {
			time.Sleep(10 * time.Second)
			a.SetHosts(nil)
			synctest.Wait()
			a.SetHosts([]string{"ha.relay.test"})
			synctest.Wait()
		}
		if n := len(ca.times()); n < 2 || n > 5 {
			t.Errorf("asked %d times in 50 minutes", n)
		}
		for i := range 2 * maxRetired {
			a.SetHosts([]string{"h" + strconv.Itoa(i) + ".relay.test"})
		}
		a.mu.Lock()
		defer a.mu.Unlock()
		if len(a.retired) > maxRetired {
			t.Errorf("%d hosts are remembered", len(a.retired))
		}
	})
}

// A rate limit is waited for, for as long as the CA says.
func TestRateLimit(t *testing.T) {
	begin := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC) // of every bubble
	for name, tt := range map[string]struct {
		detail, after string
		wait          time.Duration
	}{
		"in words":  {"too many certificates (5) already issued, retry after 2000-01-02 03:04:05 UTC: see https://x", "", 27*time.Hour + 5*time.Minute + 5*time.Second},
		"in header": {"slow down", "7200", 2 * time.Hour},
		"unsaid":    {"slow down", "", time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "acme")
			synctest.Test(t, func(t *testing.T) {
				refuse := &http.Response{
					StatusCode: http.StatusTooManyRequests, Header: http.Header{"Retry-After": {tt.after}},
					Body: io.NopCloser(strings.NewReader(`{"type":"urn:ietf:params:acme:error:rateLimited","status":429,"detail":"` + tt.detail + `"}`)),
				}
				ca := &fakeCA{refuse: refuse}
				a, _ := virtual(t, dir, ca, nil, "ha.relay.test")
				synctest.Wait()
				time.Sleep(time.Second)
				st := a.Status()[0]
				if wait := st.Next.Sub(begin).Round(10 * time.Second); wait != tt.wait.Round(10*time.Second) {
					t.Errorf("next after %v, want %v", wait, tt.wait)
				}
				if !strings.Contains(st.Problem, "rate limit") || !strings.Contains(st.Fix, st.Next.UTC().Format("2006-01-02 15:04")) {
					t.Errorf("%+v", st)
				}
				time.Sleep(tt.wait - time.Minute)
				if n := len(ca.times()); n != 1 {
					t.Errorf("asked %d times before the limit ended", n)
				}
			})
		})
	}
}

// What the preflight finds keeps the CA from being asked, but not for ever:
// this machine may see another DNS than the CA.
func TestPreflightHolds(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "acme")
	synctest.Test(t, func(t *testing.T) {
		ca, names := new(fakeCA), &testDNS{addrs: map[string][]netip.Addr{"ha.relay.test": {}}}
		a, _ := virtual(t, dir, ca, func(c *ACMEConfig) { c.NoPreflight, c.Resolver = false, names }, "ha.relay.test")
		synctest.Wait()
		time.Sleep(59 * time.Minute)
		if n := len(ca.times()); n > 0 {
			t.Errorf("asked %d times for a host without an address", n)
		}
		st := a.Status()[0]
		if st.State != StateFailing || !strings.Contains(st.Problem, "no address") || !strings.Contains(st.Fix, "A record") {
			t.Errorf("%+v", st)
		}
		if wait := time.Until(st.Next); wait > heldWait {
			t.Errorf("the next look is in %v", wait)
		}
		time.Sleep(10 * time.Minute)
		if n := len(ca.times()); n != 1 {
			t.Errorf("asked %d times after an hour", n)
		}
		time.Sleep(24 * time.Hour)
		if n := len(ca.times()); n < 20 || n > 26 {
			t.Errorf("asked %d times in a day", n)
		}
	})
}

func TestNewACMERefuses(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "none.pem"), []byte("no PEM"))
	for want, c := range map[string]ACMEConfig{
		"directory":   {},
		"without TLS": {Dir: filepath.Join(dir, "a"), CA: "http://ca.example.org/dir"},
		"not a URL":   {Dir: filepath.Join(dir, "a"), CA: "letsencrypt"},
		"none.pem":    {Dir: filepath.Join(dir, "a"), RootFile: filepath.Join(dir, "none.pem")},
		"gone.pem":    {Dir: filepath.Join(dir, "a"), RootFile: filepath.Join(dir, "gone.pem")},
	} {
		if _, err := NewACME(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	a, err := NewACME(ACMEConfig{Dir: filepath.Join(dir, "state")})
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(filepath.Join(dir, "state")); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", info, err)
	}
	a.SetHosts([]string{"ha.example.org", "ha.home.arpa", "localhost", "nas", "*.example.org"})
	for _, st := range a.Status() {
		if want := map[bool]string{true: StateIssuing, false: StateRefused}[st.Host == "ha.example.org"]; st.State != want {
			t.Errorf("%+v, want %s", st, want)
		}
		if wild := strings.Contains(st.Problem, "wildcard"); wild != strings.HasPrefix(st.Host, "*") {
			t.Errorf("%+v", st)
		}
	}
	if !strings.HasPrefix(issuerKey(a.config.CA), "acme-v02.api.letsencrypt.org") || a.config.Port80 != 80 || a.config.Port443 != 443 {
		t.Errorf("defaults: %+v", a.config)
	}
}
