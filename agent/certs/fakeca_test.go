package certs

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

const (
	domain = "relay.test"
	own    = "abcdefgh234567abcdefgh234567abcdefgh234567abcdefgh23." + domain
)

// A fakeCA is an ACME server in memory. It looks at challenges as a CA does,
// trusts its callers' signatures, and issues.
type fakeCA struct {
	url    string
	life   time.Duration                    // of certificates
	advice func(now time.Time) string       // body of the renewal information; nil: it has none
	answer func(path string) *http.Response // comes before all else; nil, or a nil response: nothing does
	txt    func(name string) []string       // its resolver; nil: no zone answers
	alpn   func(*tls.ClientHelloInfo) (*tls.Certificate, bool)
	key    *ecdsa.PrivateKey
	root   *x509.Certificate

	mu       sync.Mutex // guards below
	thumb    string     // of the account's key
	accounts int
	orders   []fakeOrder
	asked    []time.Time // when an order was wanted
	keys     []string    // public keys that were certified
}

type fakeOrder struct {
	names    []string
	replaces string
	methods  map[int]string // by authorization: the challenge that was met
	failed   map[int]string
	chain    []byte
}

var fakeCAs atomic.Int64

func newFakeCA(t *testing.T) *fakeCA {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{Organization: []string{"Fake"}, CommonName: "CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(50, 0, 0), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	root, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	// acmez remembers directories by URL.
	return &fakeCA{url: fmt.Sprintf("https://ca%d.test/dir", fakeCAs.Add(1)), life: 90 * 24 * time.Hour, key: key, root: root}
}

func problem(kind, detail string, status int) *http.Response {
	return &http.Response{
		StatusCode: status, Header: http.Header{"Content-Type": {"application/problem+json"}},
		Body: io.NopCloser(strings.NewReader(fmt.Sprintf(`{"type":"urn:ietf:params:acme:error:%s","detail":%q,"status":%d}`, kind, detail, status))),
	}
}

// RoundTrip answers one request.
func (f *fakeCA) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	var resp *http.Response
	if f.answer != nil {
		resp = f.answer(r.URL.Path)
	}
	if resp == nil {
		resp = f.serve(r)
	}
	if resp == nil {
		return nil, &net.OpError{Op: "dial", Err: errors.New("nobody there")}
	}
	resp.Request = r
	resp.Header.Set("Replay-Nonce", rand.Text())
	return resp, nil
}

func reply(v any, location string) *http.Response {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	h := http.Header{"Content-Type": {"application/json"}}
	if location != "" {
		h.Set("Location", location)
	}
	return &http.Response{StatusCode: http.StatusOK, Header: h, Body: io.NopCloser(bytes.NewReader(data))}
}

// serve answers; f.mu is held.
func (f *fakeCA) serve(r *http.Request) *http.Response {
	base := strings.TrimSuffix(f.url, "/dir")
	protected, payload := f.decode(r)
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	number := func(i int) int { n, _ := strconv.Atoi(parts[i]); return n }
	switch parts[0] {
	case "dir":
		dir := map[string]any{
			"newNonce": base + "/nonce", "newAccount": base + "/account", "newOrder": base + "/order",
			"meta": map[string]any{"caaIdentities": []string{"ca.test"}},
		}
		if f.advice != nil {
			dir["renewalInfo"] = base + "/ari"
		}
		return reply(dir, "")
	case "nonce":
		return reply(struct{}{}, "")
	case "ari":
		return &http.Response{StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {"application/json"}, "Retry-After": {"21600"}}, Body: io.NopCloser(strings.NewReader(f.advice(time.Now())))}
	case "account":
		if len(parts) == 1 {
			f.accounts++
			f.thumb = thumbprint(protected)
		}
		return reply(map[string]string{"status": "valid"}, base+"/account/1")
	case "order":
		if len(parts) == 1 {
			return f.newOrder(payload, base)
		}
		return reply(f.orderJSON(number(1), base), "")
	case "authz":
		return reply(f.authzJSON(number(1), number(2), base), "")
	case "challenge":
		f.validate(number(1), number(2), parts[3])
		return reply(map[string]string{"type": parts[3], "status": "processing", "url": base + r.URL.Path}, "")
	case "finalize":
		f.finalize(number(1), payload)
		return reply(f.orderJSON(number(1), base), base+"/order/"+parts[1])
	case "cert":
		return &http.Response{StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {"application/pem-certificate-chain"}}, Body: io.NopCloser(bytes.NewReader(f.orders[number(1)].chain))}
	}
	return nil
}

func (f *fakeCA) decode(r *http.Request) (protected, payload []byte) {
	if r.Body == nil {
		return nil, nil
	}
	var jws struct{ Protected, Payload string }
	if json.NewDecoder(r.Body).Decode(&jws) != nil {
		return nil, nil
	}
	protected, _ = base64.RawURLEncoding.DecodeString(jws.Protected)
	payload, _ = base64.RawURLEncoding.DecodeString(jws.Payload)
	return protected, payload
}

func thumbprint(protected []byte) string {
	var head struct {
		JWK struct{ Crv, Kty, X, Y string }
	}
	_ = json.Unmarshal(protected, &head)
	sum := sha256.Sum256(fmt.Appendf(nil, `{"crv":%q,"kty":%q,"x":%q,"y":%q}`, head.JWK.Crv, head.JWK.Kty, head.JWK.X, head.JWK.Y))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

func (f *fakeCA) newOrder(payload []byte, base string) *http.Response {
	var wish struct {
		Identifiers []struct{ Value string }
		Replaces    string
	}
	_ = json.Unmarshal(payload, &wish)
	o := fakeOrder{replaces: wish.Replaces, methods: make(map[int]string), failed: make(map[int]string)}
	for _, id := range wish.Identifiers {
		o.names = append(o.names, id.Value)
	}
	f.orders = append(f.orders, o)
	f.asked = append(f.asked, time.Now())
	n := len(f.orders) - 1
	resp := reply(f.orderJSON(n, base), fmt.Sprintf("%s/order/%d", base, n))
	resp.StatusCode = http.StatusCreated
	return resp
}

func (f *fakeCA) orderJSON(n int, base string) any {
	o := f.orders[n]
	status := "pending"
	var ids []map[string]string
	var authz []string
	for i, name := range o.names {
		ids = append(ids, map[string]string{"type": "dns", "value": name})
		authz = append(authz, fmt.Sprintf("%s/authz/%d/%d", base, n, i))
	}
	if len(o.methods) == len(o.names) {
		status = "ready"
	}
	v := map[string]any{"identifiers": ids, "authorizations": authz, "finalize": fmt.Sprintf("%s/finalize/%d", base, n)}
	if o.chain != nil {
		status = "valid"
		v["certificate"] = fmt.Sprintf("%s/cert/%d", base, n)
	}
	v["status"] = status
	return v
}

func (f *fakeCA) authzJSON(n, i int, base string) any {
	o := f.orders[n]
	name, wild := strings.CutPrefix(o.names[i], "*.")
	status := "pending"
	if o.methods[i] != "" {
		status = "valid"
	}
	if o.failed[i] != "" {
		status = "invalid"
	}
	challenges := []map[string]any{}
	for _, kind := range []string{"dns-01", "tls-alpn-01", "http-01"} {
		if wild && kind != "dns-01" {
			continue
		}
		c := map[string]any{"type": kind, "status": "pending", "token": fmt.Sprintf("token-%d-%d", n, i), "url": fmt.Sprintf("%s/challenge/%d/%d/%s", base, n, i, kind)}
		if o.failed[i] == kind {
			c["status"] = "invalid"
			c["error"] = map[string]any{"type": "urn:ietf:params:acme:error:unauthorized", "detail": "not what was expected", "status": 403}
		}
		challenges = append(challenges, c)
	}
	return map[string]any{"identifier": map[string]string{"type": "dns", "value": name}, "status": status, "wildcard": wild, "challenges": challenges}
}

func (f *fakeCA) validate(n, i int, kind string) {
	o := f.orders[n]
	name := strings.TrimPrefix(o.names[i], "*.")
	proof := sha256.Sum256(fmt.Appendf(nil, "token-%d-%d.%s", n, i, f.thumb))
	met := false
	switch kind {
	case "dns-01":
		met = f.txt != nil && slices.Contains(f.txt("_acme-challenge."+name), base64.RawURLEncoding.EncodeToString(proof[:]))
	case "tls-alpn-01":
		if f.alpn != nil {
			cert, ok := f.alpn(&tls.ClientHelloInfo{ServerName: name, SupportedProtos: []string{"acme-tls/1"}})
			met = ok && bytes.Contains(cert.Certificate[0], proof[:])
		}
	}
	if met {
		o.methods[i] = kind
	} else {
		o.failed[i] = kind
	}
}

func (f *fakeCA) finalize(n int, payload []byte) {
	var wish struct{ CSR string }
	_ = json.Unmarshal(payload, &wish)
	der, _ := base64.RawURLEncoding.DecodeString(wish.CSR)
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil || len(f.orders[n].methods) != len(f.orders[n].names) {
		return
	}
	now := time.Now()
	serial, _ := rand.Int(rand.Reader, big.NewInt(1<<62))
	der, err = x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: serial, DNSNames: csr.DNSNames, NotBefore: now.Add(-time.Minute), NotAfter: now.Add(f.life),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, AuthorityKeyId: []byte{1},
	}, f.root, csr.PublicKey, f.key)
	if err != nil {
		panic(err)
	}
	f.keys = append(f.keys, string(csr.RawSubjectPublicKeyInfo))
	f.orders[n].chain = append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: f.root.Raw})...)
}

// times are when orders were wanted.
func (f *fakeCA) times() []time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.asked)
}

// last is the last order.
func (f *fakeCA) last() fakeOrder {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.orders[len(f.orders)-1]
}

// A fakeZone is the relay's DNS as SetTXT sees it.
type fakeZone struct {
	mu   sync.Mutex // guards below
	err  error      // of SetTXT
	txt  map[string][]string
	sets int
	said []string // everything that the relay was told
}

func newZone() *fakeZone { return &fakeZone{txt: make(map[string][]string)} }

func (z *fakeZone) set(_ context.Context, name string, values []string) error {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.sets++
	z.said = append(append(z.said, name), values...)
	if z.err != nil {
		return z.err
	}
	z.txt[name] = values
	if len(values) == 0 {
		delete(z.txt, name)
	}
	return nil
}

func (z *fakeZone) get(name string) []string {
	z.mu.Lock()
	defer z.mu.Unlock()
	return slices.Clone(z.txt[name])
}

func (z *fakeZone) fail(err error) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.err = err
}

// day is when tests in bubbles begin: bubbles start in 2000, before any
// certificate of ours.
var day = time.Date(2027, 3, 1, 12, 0, 0, 0, time.UTC)

// A home is a Certs with a CA and a zone in memory.
type home struct {
	*Certs
	t      *testing.T
	ca     *fakeCA
	zone   *fakeZone
	config Config
	log    *logBuffer
	told   []string // accounts
	stop   func()
}

// newHome makes one, not running. In a bubble it begins in 2027 (virtual).
func newHome(t *testing.T, change func(*home)) *home {
	t.Helper()
	time.Sleep(time.Until(day)) // virtual
	h := &home{t: t, ca: newFakeCA(t), zone: newZone(), log: new(logBuffer)}
	h.ca.txt = h.zone.get
	h.config = Config{
		Dir: t.TempDir(), Domain: domain, Own: own, SetTXT: h.zone.set,
		Account:    func(uri string, issuers []string) { h.told = append(h.told, uri+" "+strings.Join(issuers, ",")) },
		Logger:     slog.New(slog.NewTextHandler(h.log, nil)),
		HTTPClient: &http.Client{Transport: h.ca, Timeout: 30 * time.Second}, ACME: ACME{CA: h.ca.url},
		Dial: func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("no network") },
	}
	if change != nil {
		change(h)
	}
	h.start()
	return h
}

// pass lets virtual time go by, and what it brought come to rest.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// start makes the Certs, as after a restart.
func (h *home) start() {
	h.t.Helper()
	var err error
	if h.Certs, err = New(h.config); err != nil {
		h.t.Fatal(err)
	}
	h.acme.jitter = func(time.Duration) time.Duration { return 0 }
	h.ca.mu.Lock()
	h.ca.alpn = h.Challenge
	h.ca.mu.Unlock()
}

// run runs it until stop, or the end of the test.
func (h *home) run() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	h.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			h.t.Errorf("Run: %v", err)
		}
	})
}

// of is the status of one host.
func (h *home) of(host string) Status {
	h.t.Helper()
	for _, st := range h.Status() {
		if st.Host == host {
			return st
		}
	}
	h.t.Fatalf("no status of %s", host)
	return Status{}
}

type logBuffer struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
