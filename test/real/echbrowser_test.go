package real

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/miekg/dns"
)

// dohFront is a resolver for browsers (RFC 8484) that asks the relay's DNS. For
// the host stale it has a config from long ago.
func (w *echWorld) dohFront(ca *testCA, stale string) (template string) {
	w.t.Helper()
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		raw, _ := io.ReadAll(io.LimitReader(r.Body, 64<<10))
		if q := r.URL.Query().Get("dns"); q != "" {
			raw, _ = base64.RawURLEncoding.DecodeString(q)
		}
		q := new(dns.Msg)
		if q.Unpack(raw) != nil {
			http.Error(rw, "not a question", http.StatusBadRequest)
			return
		}
		m, _, err := new(dns.Client).ExchangeContext(r.Context(), q, w.dns)
		if err != nil {
			http.Error(rw, err.Error(), http.StatusBadGateway)
			return
		}
		for _, rr := range m.Answer {
			if rr, ok := rr.(*dns.HTTPS); ok && strings.Contains(rr.Hdr.Name, stale) {
				for _, v := range rr.Value {
					if e, ok := v.(*dns.SVCBECHConfig); ok {
						e.ECH = withAnotherKey(w.t, e.ECH)
					}
				}
			}
		}
		out, _ := m.Pack()
		rw.Header().Set("Content-Type", "application/dns-message")
		_, _ = rw.Write(out)
	}))
	s.TLS = &tls.Config{Certificates: []tls.Certificate{loopbackCert(w.t, ca)}}
	s.StartTLS()
	w.t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	return "https://127.0.0.1:" + itoa(s.Listener.Addr().(*net.TCPAddr).Port) + "/dns-query{?dns}"
}

// loopbackCert is for a server without a name: a browser that resolves by DoH
// alone cannot look up its resolver's.
func loopbackCert(t *testing.T, ca *testCA) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, ca.cert, key.Public(), ca.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// dohBrowser is a Chromium that asks for names by DoH alone. The setting lives
// in its profile: a policy would be the whole machine's.
func (w *echWorld) dohBrowser(template string, roots ...string) *chromium {
	w.t.Helper()
	needTools(w.t, "chromium", "certutil", "unshare")
	needRoot(w.t)
	b := &chromium{t: w.t, who: "anna", home: shortDir(w.t)}
	db := filepath.Join(b.home, ".pki", "nssdb")
	if err := os.MkdirAll(db, 0o700); err != nil {
		w.t.Fatal(err)
	}
	mustRun(w.t, "certutil", "-d", "sql:"+db, "-N", "--empty-password")
	for i, root := range roots {
		mustRun(w.t, "certutil", "-d", "sql:"+db, "-A", "-t", "C,,", "-n", "root"+itoa(i), "-i", root)
	}
	// A browser that finds any policy takes it for a company's and resolves
	// without DoH: this one sees none, whatever other tests have there.
	exe := filepath.Join(b.home, "chromium")
	writeFile(w.t, exe, `#!/bin/sh
exec unshare --mount sh -c 'if [ -d /etc/chromium/policies ]; then mount -t tmpfs none /etc/chromium/policies; fi; exec /usr/bin/chromium "$@"' sh "$@"
`)
	if err := os.Chmod(exe, 0o700); err != nil {
		w.t.Fatal(err)
	}
	profile := filepath.Join(b.home, "profile")
	if err := os.MkdirAll(profile, 0o700); err != nil {
		w.t.Fatal(err)
	}
	state, err := json.Marshal(map[string]any{"dns_over_https": map[string]string{"mode": "secure", "templates": template}})
	if err != nil {
		w.t.Fatal(err)
	}
	writeFile(w.t, filepath.Join(profile, "Local State"), string(state))
	alloc, stop := chromedp.NewExecAllocator(context.Background(), append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(exe), chromedp.NoSandbox, chromedp.Flag("headless", "new"),
		chromedp.Env("HOME="+b.home), chromedp.UserDataDir(profile))...)
	ctx, cancel := chromedp.NewContext(alloc)
	w.t.Cleanup(func() { cancel(); stop() })
	if err := chromedp.Do(ctx); err != nil {
		w.t.Fatalf("Chromium: %v", err)
	}
	b.ctx = ctx
	return b
}

// TestChromiumECH: Chromium finds the config by DoH, and what it sends to the
// relay tells nobody which host it visits; with a config that is out of date, too.
func TestChromiumECH(t *testing.T) {
	slow(t)
	t.Parallel()
	w := newEchWorld(t)
	ca := newTestCA(t, shortDir(t))
	w.expose("first", echStale, startHomeApp(t), "--auth", "none", "--tls", "agent")
	b := w.dohBrowser(w.dohFront(ca, echStale), w.roots, w.agentCA, ca.file)
	c := w.tap(t, "chromium")
	for _, name := range []string{echAtRelay, echAtHome, echStale} {
		b.mustOpen(w.url(name, "/"), "hello from home")
		if proto, err := eval[string](b, `performance.getEntriesByType("navigation")[0].nextHopProtocol`); err != nil || proto != "h2" {
			t.Errorf("%s came over %q, %v", name, proto, err)
		}
	}
	c.hides(echAtRelay, echAtHome, echStale)
}
