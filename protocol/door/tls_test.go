package door

import (
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// alertOf returns the TLS alert in an error, as crypto/tls words it.
func alertOf(err error) string {
	if err == nil {
		return ""
	}
	_, alert, _ := strings.Cut(err.Error(), "tls: ")
	return alert
}

// handshake connects and reads, so that a verdict on the client certificate
// arrives. nil: the server let the visitor in.
func (w *world) handshake(c *tls.Config) error {
	conn, err := w.dial(c)
	if err != nil {
		return err
	}
	defer conn.Close()
	io.WriteString(conn, "GET / HTTP/1.1\r\nHost: "+c.ServerName+"\r\nConnection: close\r\n\r\n")
	_, err = io.ReadAll(conn)
	return err
}

func TestNewRefusesPools(t *testing.T) {
	w := newWorld(t, nil)
	for name, pool := range map[string]*x509.CertPool{"nil": nil, "empty": x509.NewCertPool()} {
		cfg := w.door.cfg
		cfg.ClientCAs = pool
		if _, err := New(cfg); err == nil {
			t.Errorf("%s pool was taken", name)
		}
	}
	if pool, err := x509.SystemCertPool(); err == nil {
		cfg := w.door.cfg
		cfg.ClientCAs = pool
		if _, err := New(cfg); err == nil {
			t.Error("the system's roots were taken")
		}
	}
}

func TestEveryAuthConfigHasOurPool(t *testing.T) {
	w := newWorld(t, nil)
	for _, mode := range []Mode{Require, Ask} {
		v := &visit{door: w.door, site: w.site("x.test", mode, hello)}
		c := v.config()
		if c.ClientCAs == nil || !c.ClientCAs.Equal(w.devices.pool()) || c.MinVersion != tls.VersionTLS13 {
			t.Errorf("%s: pool %v, min version %x", mode, c.ClientCAs, c.MinVersion)
		}
	}
}

func TestUnknownNamesAreRefused(t *testing.T) {
	w := newWorld(t, nil)
	w.site("ha.test", None, hello)
	w.site("*.wild.test", None, hello)
	bad := w.site("broken.test", "", hello)
	bad.Mode = "nonsense"
	nocert := w.site("nocert.test", None, hello)
	nocert.Certificate = func(string) (*tls.Certificate, error) { return nil, errors.New("none yet") }
	for _, name := range []string{"", "other.test", "ha.test.evil.test", "a.b.wild.test", "wild.test", "127.0.0.1", "broken.test", "nocert.test"} {
		c := w.clientTLS(name, w.phone)
		c.InsecureSkipVerify = true
		err := w.handshake(c)
		if got := alertOf(err); got != "unrecognized name" {
			t.Errorf("SNI %q: %v", name, err)
		}
	}
}

func TestServerNameInAnySpelling(t *testing.T) {
	w := newWorld(t, nil)
	w.site("ha.test", Require, hello)
	// The Go client lowers nothing.
	for _, name := range []string{"HA.TEST", "Ha.Test"} {
		c := w.clientTLS(name, nil)
		if err := w.handshake(c); alertOf(err) != "certificate required" {
			t.Errorf("%s without certificate: %v", name, err)
		}
		if err := w.handshake(w.clientTLS(name, w.phone)); err != nil {
			t.Errorf("%s with certificate: %v", name, err)
		}
	}
}

// certificates is the table of visitors; want is the denial.
func (w *world) certificates() map[string]struct {
	cert *tls.Certificate
	want string
} {
	type row = struct {
		cert *tls.Certificate
		want string
	}
	twin := newAuthority(w.t, "devices") // the same name, another key
	other := newAuthority(w.t, "other")
	selfSigned := func() *tls.Certificate {
		key := newKey(w.t)
		template := &x509.Certificate{
			Subject: w.phone.Leaf.Subject, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		}
		cert := sign(w.t, template, template, &key.PublicKey, key)
		return &tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}
	}
	sub := w.devices.device("sub", func(c *x509.Certificate) {
		c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign
	})
	below := (&authority{t: w.t, cert: sub.Leaf, key: sub.PrivateKey.(*ecdsa.PrivateKey)}).device("below", nil)
	below.Certificate = append(below.Certificate, sub.Certificate[0])
	revoked, foreign, expiredForeign := w.devices.device("revoked", nil), other.device("phone", nil), other.device("phone", func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
	})
	w.deny(revoked, DeniedRevoked)
	guest := w.devices.device("guest", nil)
	w.deny(guest, DeniedHost)
	return map[string]row{
		"none":  {nil, DeniedMissing},
		"phone": {w.phone, ""},
		"expired": {w.devices.device("old", func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
		}), DeniedExpired},
		"not yet valid": {w.devices.device("early", func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = time.Now().Add(time.Hour), time.Now().Add(2*time.Hour)
		}), DeniedExpired},
		"expired and foreign": {expiredForeign, DeniedUnknown},
		"other CA":            {foreign, DeniedUnknown},
		"CA of the same name": {twin.device("phone", nil), DeniedUnknown},
		"self-signed":         {selfSigned(), DeniedUnknown},
		"the CA itself":       {w.devices.self(), DeniedUnknown},
		"a CA as leaf":        {sub, DeniedUnknown},
		"below a sub-CA":      {below, DeniedUnknown},
		"server usage": {w.devices.device("srv", func(c *x509.Certificate) {
			c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		}), DeniedUnknown},
		"no usage": {w.devices.device("any", func(c *x509.Certificate) { c.ExtKeyUsage = nil }), DeniedUnknown},
		"revoked":  {revoked, DeniedRevoked},
		"guest":    {guest, DeniedHost},
	}
}

func TestRequire(t *testing.T) {
	w := newWorld(t, nil)
	w.site("ha.test", Require, w.proxyTo(hello, nil))
	for name, row := range w.certificates() {
		for _, h2 := range []bool{false, true} {
			before := w.reached()
			status, body, err := w.get("ha.test", "https://ha.test/", row.cert, h2)
			if row.want == "" {
				if status != 200 || body != "home" {
					t.Errorf("%s: %d %q %v", name, status, body, err)
				}
				continue
			}
			if err == nil || w.reached() != before {
				t.Errorf("%s (h2 %v): let in with %d %q", name, h2, status, body)
			}
		}
	}
}

func TestAsk(t *testing.T) {
	w := newWorld(t, nil)
	w.site("ha.test", Ask, w.proxyTo(hello, nil))
	words := map[string]string{
		DeniedMissing: "needs a device certificate", DeniedUnknown: "not known here", DeniedExpired: "has expired",
		DeniedRevoked: "was removed", DeniedHost: "not allowed here",
	}
	for name, row := range w.certificates() {
		for _, h2 := range []bool{false, true} {
			before := w.reached()
			status, body, err := w.get("ha.test", "https://ha.test/", row.cert, h2)
			if row.want == "" {
				if status != 200 || body != "home" {
					t.Errorf("%s: %d %q %v", name, status, body, err)
				}
				continue
			}
			if status != 401 || !strings.Contains(body, words[row.want]) || w.reached() != before {
				t.Errorf("%s (h2 %v): %d %q %v", name, h2, status, body, err)
			}
		}
	}
}

func TestVersionsAndSuites(t *testing.T) {
	w := newWorld(t, nil)
	w.site("open.test", None, hello)
	w.site("ask.test", Ask, hello)
	w.site("door.test", Require, hello)
	for _, host := range []string{"open.test", "ask.test", "door.test"} {
		for _, version := range []uint16{tls.VersionTLS10, tls.VersionTLS11, tls.VersionTLS12, tls.VersionTLS13} {
			c := w.clientTLS(host, w.phone)
			c.MinVersion, c.MaxVersion = version, version
			err := w.handshake(c)
			want := version == tls.VersionTLS13 || version == tls.VersionTLS12 && host == "open.test"
			if (err == nil) != want {
				t.Errorf("%s %s: %v", host, tls.VersionName(version), err)
			}
		}
	}
	all := append(tls.CipherSuites(), tls.InsecureCipherSuites()...)
	for _, suite := range all {
		c := w.clientTLS("open.test", nil)
		c.MaxVersion, c.CipherSuites = tls.VersionTLS12, []uint16{suite.ID}
		if err := w.handshake(c); err == nil && !strings.Contains(suite.Name, "GCM") && !strings.Contains(suite.Name, "POLY1305") {
			t.Errorf("%s was accepted", suite.Name)
		}
	}
}

func TestHandshakeDeadline(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *Config) { c.HandshakeTimeout = 50 * time.Millisecond })
	c, err := net.Dial("tcp", w.addr)
	ok(t, err)
	defer c.Close()
	if d := ended(t, c, time.Now()); d > 2*time.Second {
		t.Errorf("a silent visitor stayed %v", d)
	}
}

// A ticketCache keeps the last session whatever host it is for.
type ticketCache struct{ s *tls.ClientSessionState }

func (c *ticketCache) Get(string) (*tls.ClientSessionState, bool) { return c.s, c.s != nil }
func (c *ticketCache) Put(_ string, s *tls.ClientSessionState) {
	if s != nil {
		c.s = s
	}
}

// visitWith makes one request on a new connection and reports whether the
// session was resumed.
func (w *world) visitWith(cache tls.ClientSessionCache, host string, cert *tls.Certificate) (resumed bool, answer string, err error) {
	c := w.clientTLS(host, cert, "http/1.1")
	c.ClientSessionCache = cache
	// The Go client offers no session whose certificate does not fit the name.
	c.InsecureSkipVerify = true
	conn, err := w.dial(c)
	if err != nil {
		return false, "", err
	}
	defer conn.Close()
	io.WriteString(conn, "GET / HTTP/1.1\r\nHost: "+host+"\r\nConnection: close\r\n\r\n")
	b, err := io.ReadAll(conn)
	return conn.ConnectionState().DidResume, string(b), err
}

func TestResumption(t *testing.T) {
	w := newWorld(t, nil)
	for host, mode := range map[string]Mode{"a.test": Require, "b.test": Require, "ask.test": Ask, "open.test": None} {
		w.site(host, mode, hello)
	}
	seed := func(host string, cert *tls.Certificate) *ticketCache {
		cache := &ticketCache{}
		if _, answer, err := w.visitWith(cache, host, cert); err != nil || statusOf(answer) == 0 {
			t.Fatalf("%s: %q %v", host, answer, err)
		}
		if cache.s == nil {
			t.Fatalf("%s gave no ticket", host)
		}
		return cache
	}
	t.Run("same host", func(t *testing.T) {
		for _, host := range []string{"a.test", "ask.test", "open.test"} {
			resumed, answer, err := w.visitWith(seed(host, w.phone), host, nil)
			if !resumed || statusOf(answer) != 200 {
				t.Errorf("%s: resumed %v, %q, %v", host, resumed, answer, err)
			}
		}
	})
	t.Run("other host", func(t *testing.T) {
		for _, from := range []string{"a.test", "ask.test", "open.test"} {
			for _, to := range []string{"a.test", "b.test", "ask.test", "open.test"} {
				if from == to {
					continue
				}
				resumed, answer, _ := w.visitWith(seed(from, w.phone), to, nil)
				if resumed || to != "open.test" && statusOf(answer) == 200 {
					t.Errorf("%s → %s: resumed %v, %q", from, to, resumed, answer)
				}
			}
		}
	})
	t.Run("without a certificate nothing is resumed on ask", func(t *testing.T) {
		cache := seed("ask.test", nil)
		resumed, answer, _ := w.visitWith(cache, "ask.test", w.phone)
		if resumed || statusOf(answer) != 200 {
			t.Errorf("resumed %v, %q: a phone that just enrolled stays out", resumed, answer)
		}
	})
	t.Run("policy change", func(t *testing.T) {
		cache := seed("a.test", w.phone)
		w.site("a.test", Require, hello).Policy = "other"
		if resumed, answer, _ := w.visitWith(cache, "a.test", nil); resumed || answer != "" {
			t.Errorf("resumed %v, %q", resumed, answer)
		}
	})
	t.Run("revocation without Disconnect", func(t *testing.T) {
		phone := w.devices.device("p2", nil)
		cache, askCache := seed("b.test", phone), seed("ask.test", phone)
		w.deny(phone, DeniedRevoked)
		if _, answer, err := w.visitWith(cache, "b.test", nil); err == nil || answer != "" {
			t.Errorf("require: %q %v", answer, err)
		}
		if _, answer, _ := w.visitWith(askCache, "ask.test", nil); statusOf(answer) != 401 {
			t.Errorf("ask: %q", answer)
		}
	})
	t.Run("Disconnect and Recheck void tickets", func(t *testing.T) {
		for name, rotate := range map[string]func(){"Disconnect": func() { w.door.Disconnect("nobody") }, "Recheck": w.door.Recheck} {
			cache := seed("b.test", w.phone)
			rotate()
			if resumed, answer, _ := w.visitWith(cache, "b.test", nil); resumed || answer != "" {
				t.Errorf("%s: resumed %v, %q", name, resumed, answer)
			}
		}
	})
}

// A certificate that stands in the pool itself, and a device that nobody could
// disconnect, are refused.
func TestNobodyWithoutIssuerOrIdentity(t *testing.T) {
	other := newAuthority(t, "other")
	pinned := other.device("pinned", nil)
	var nameless atomic.Bool
	w := newWorld(t, func(c *Config) {
		c.ClientCAs = c.ClientCAs.Clone()
		c.ClientCAs.AddCert(pinned.Leaf)
		check := c.Check
		c.Check = func(leaf *x509.Certificate, host string, now time.Time) (Device, string) {
			d, denial := check(leaf, host, now)
			if nameless.Load() {
				d.ID = ""
			}
			return d, denial
		}
	})
	w.site("ha.test", Require, hello)
	if status, _, err := w.get("ha.test", "https://ha.test/", pinned, false); err == nil {
		t.Errorf("a certificate without issuer: %d", status)
	}
	if status, _, _ := w.get("ha.test", "https://ha.test/", w.phone, false); status != 200 {
		t.Error("phone:", status)
	}
	nameless.Store(true)
	if status, _, err := w.get("ha.test", "https://ha.test/", w.phone, false); err == nil {
		t.Errorf("a device without identity: %d", status)
	}
}

func TestOwnDeniedPageAndAudit(t *testing.T) {
	var events atomic.Int32
	w := newWorld(t, func(c *Config) {
		c.Denied = func(w http.ResponseWriter, _ *http.Request, denial string) { io.WriteString(w, "enrol: "+denial) }
		c.Audit = func(event string, _ ...slog.Attr) {
			if event == eventRefused {
				events.Add(1)
			}
		}
	})
	w.site("ask.test", Ask, hello)
	w.site("door.test", Require, hello)
	phone := w.devices.device("lost", nil)
	w.deny(phone, DeniedRevoked)
	if _, body, err := w.get("ask.test", "https://ask.test/", phone, true); body != "enrol: revoked" {
		t.Errorf("%q %v", body, err)
	}
	w.get("door.test", "https://door.test/", phone, false)
	w.get("door.test", "https://door.test/", nil, false) // a stranger is no event
	w.door.Close()
	if n := events.Load(); n != 2 {
		t.Errorf("%d audit events", n)
	}
}
