package door

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/protocol/tunnel/tunneltest"
)

// A site's own page wins over the door's.
func TestDeniedPagePerSite(t *testing.T) {
	say := func(who string) func(http.ResponseWriter, *http.Request, string) {
		return func(w http.ResponseWriter, _ *http.Request, denial string) {
			w.WriteHeader(http.StatusUnauthorized)
			io.WriteString(w, who+" says "+denial)
		}
	}
	w := newWorld(t, func(c *Config) { c.Denied = say("door") })
	home := w.proxyTo(hello, nil)
	w.site("ask.test", Ask, home)
	w.site("check.test", Ask, home).Denied = say("check")
	lost := w.devices.device("lost", nil)
	w.deny(lost, DeniedRevoked)
	for _, h2 := range []bool{false, true} {
		for host, want := range map[string]string{"ask.test": "door says ", "check.test": "check says "} {
			for cert, denial := range map[*tls.Certificate]string{nil: DeniedMissing, lost: DeniedRevoked} {
				if status, body, err := w.get(host, "https://"+host+"/", cert, h2); body != want+denial || status != 401 {
					t.Errorf("%s: %d %q %v", host, status, body, err)
				}
			}
		}
	}
	if w.reached() != 0 {
		t.Error("home was reached")
	}
	// A page of a site that asks for a certificate outright is never shown.
	w.site("door.test", Require, home).Denied = say("require")
	if _, body, err := w.get("door.test", "https://door.test/", lost, false); err == nil {
		t.Errorf("%q", body)
	}
}

// A guest's time ends under everything that is open, and afterwards nothing
// opens.
func TestUntilEndsConnections(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.site("ha.test", Require, w.proxyTo(lively(), nil))
	w.rawSite("raw.test", Require, echoRaw)
	w.site("ask.test", Ask, w.proxyTo(hello, nil))
	until := time.Now().Add(2 * time.Second)
	w.set(func() { w.until = until })
	for kind, wait := range w.live("ha.test", "raw.test", w.phone) {
		if d := wait(until); d > time.Second || d < -10*time.Millisecond {
			t.Errorf("%s ended %v after the guest's time", kind, d)
		}
	}
	if err := w.handshake(w.clientTLS("ha.test", w.phone, "http/1.1")); err == nil {
		t.Error("let in afterwards")
	}
	if status, _, err := w.get("ask.test", "https://ask.test/", w.phone, false); status != 401 {
		t.Error(status, err)
	}
}

// A new end holds for what is open: a shorter one after Recheck, a longer one
// by itself.
func TestUntilChangesUnderALiveConnection(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.site("ha.test", Require, w.proxyTo(lively(), nil))
	w.rawSite("raw.test", Require, echoRaw)
	w.set(func() { w.until = time.Now().Add(time.Hour) })
	connections := w.live("ha.test", "raw.test", w.phone)
	until := time.Now().Add(500 * time.Millisecond)
	w.set(func() { w.until = until })
	w.door.Recheck()
	for kind, wait := range connections {
		if d := wait(until); d > time.Second || d < -10*time.Millisecond {
			t.Errorf("%s ended %v after the new end", kind, d)
		}
	}

	w.set(func() { w.until = time.Now().Add(time.Second) })
	raw, err := w.dial(w.clientTLS("raw.test", w.phone))
	ok(t, err)
	w.set(func() { w.until = time.Time{} })
	<-time.After(1100 * time.Millisecond)
	io.WriteString(raw, "hi")
	if _, err := io.ReadFull(raw, make([]byte, 2)); err != nil {
		t.Error("prolonged, and cut:", err)
	}
}

// A request tells of a new end, too: it holds for what else is open on its
// connection, though nobody calls Recheck.
func TestUntilChangesBetweenRequests(t *testing.T) {
	t.Parallel()
	w := tokenWorld(t, lively(), nil)
	w.site("ha.test", Require, w.proxyTo(lively(), nil))
	set := func(until time.Time) {
		w.set(func() { w.until = until })
		w.token("tv.test", tv, Device{ID: "tv", Name: "tv", Until: until})
	}
	type open struct {
		base, before string
		client       *http.Client
		stream       io.ReadCloser
	}
	var all []open
	for before, until := range map[string]time.Time{"no end": {}, "an end": time.Now().Add(time.Hour)} {
		set(until)
		for base, cert := range map[string]*tls.Certificate{"https://ha.test": w.phone, "https://tv.test/" + tv: nil} {
			c := w.client(strings.Split(base, "/")[2], cert, true)
			res, err := c.Get(base + "/sse")
			ok(t, err)
			all = append(all, open{base, before, c, res.Body})
		}
	}
	until := time.Now().Add(500 * time.Millisecond)
	set(until)
	for _, o := range all {
		res, err := o.client.Get(o.base + "/")
		ok(t, err)
		res.Body.Close()
	}
	for _, o := range all {
		if d := ended(t, o.stream, until); d > time.Second || d < -10*time.Millisecond {
			t.Errorf("%s with %s at first: ended %v after the new one", o.base, o.before, d)
		}
	}
}

// Timers do not notice that the clock is set, and not what nobody tells: the
// door looks every minute.
func TestUntilWhenTheClockIsSet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, what := range []string{"clock", "rights"} {
			quietChange(t, what)
		}
	})
}

// quietChange runs in a bubble.
func quietChange(t *testing.T, what string) {
	began := time.Now()
	devices := newAuthority(t, "devices")
	var mu sync.Mutex
	var jump time.Duration
	denial := ""
	cert := devices.server("raw.test")
	site := &Site{Policy: "p", Mode: Require, Raw: echoRaw, Certificate: func(string) (*tls.Certificate, error) { return cert, nil }}
	d, err := New(Config{
		Lookup:    func(string) (*Site, bool) { return site, true },
		ClientCAs: devices.pool(),
		Check: func(*x509.Certificate, string, time.Time) (Device, string) {
			mu.Lock()
			defer mu.Unlock()
			return Device{ID: "guest", Until: began.Add(20 * time.Hour)}, denial
		},
		Now: func() time.Time { mu.Lock(); defer mu.Unlock(); return time.Now().Add(jump) },
	})
	ok(t, err)
	near, far := tunneltest.MemConn()
	served := make(chan struct{})
	go func() { d.ServeConn(context.Background(), far); close(served) }()
	guest := devices.device("guest", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(48 * time.Hour) })
	c := tls.Client(near, &tls.Config{ServerName: "raw.test", RootCAs: devices.pool(), Certificates: []tls.Certificate{*guest}})
	io.WriteString(c, "hi")
	_, err = io.ReadFull(c, make([]byte, 2))
	ok(t, err)
	time.Sleep(3 * time.Hour)
	mu.Lock()
	if what == "clock" {
		jump = 20 * time.Hour
	} else {
		denial = DeniedHost
	}
	mu.Unlock()
	since := time.Now()
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("no end")
	}
	if d := time.Since(since); d > lookAgain+time.Second {
		t.Errorf("%s: cut %v after the change", what, d)
	}
	c.Close()
	<-served
	d.Close()
}

// What the owner changes about a device holds for the next request of a live
// connection: a mark that was taken away above all.
func TestVisitorIsAsNow(t *testing.T) {
	w := newWorld(t, nil)
	w.site("admin.test", Require, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		v, ok := VisitorFrom(r.Context())
		fmt.Fprint(rw, ok, v.Device.Admin, v.Device.Name, len(v.Device.Chain), v.Device.Cert.Subject.CommonName, v.Host)
	}))
	c := w.client("admin.test", w.phone, true)
	for _, admin := range []bool{true, false, true} {
		w.set(func() { w.admin = admin })
		res, err := c.Get("https://admin.test/")
		ok(t, err)
		body, _ := io.ReadAll(res.Body)
		if want := fmt.Sprint(true, admin, "phone", 1, "phone", "admin.test"); string(body) != want {
			t.Errorf("%s, want %s", body, want)
		}
	}
}

// A certificate's device may be confined to a path, too.
func TestPathOfACertificateDevice(t *testing.T) {
	w := newWorld(t, func(c *Config) {
		check := c.Check
		c.Check = func(leaf *x509.Certificate, host string, now time.Time) (Device, string) {
			d, denial := check(leaf, host, now)
			d.Path = "/api/"
			return d, denial
		}
	})
	w.site("ha.test", Require, w.proxyTo(hello, nil))
	for path, want := range map[string]int{"/api/": 200, "/api/x": 200, "/": 404, "/apix": 404, "/api/..%2fx": 404} {
		if status, _, err := w.get("ha.test", "https://ha.test"+path, w.phone, false); status != want {
			t.Errorf("%s: %d %v", path, status, err)
		}
	}
}

// A session that was resumed is as revocable as the one that it came from, and
// a door that starts anew resumes nothing of the one before.
func TestRevocationInAResumedSession(t *testing.T) {
	for _, mode := range []Mode{Require, Ask} {
		for _, alpn := range []string{"http/1.1", "h2"} {
			w := newWorld(t, nil)
			w.site("ha.test", mode, w.proxyTo(lively(), nil))
			cache := &ticketCache{}
			if _, _, err := w.visitWith(cache, "ha.test", w.phone); err != nil || cache.s == nil {
				t.Fatal("no ticket:", err)
			}
			conf := w.clientTLS("ha.test", nil, alpn) // from here on without the certificate
			conf.ClientSessionCache, conf.InsecureSkipVerify = cache, true
			transport := &http.Transport{TLSClientConfig: conf, ForceAttemptHTTP2: alpn == "h2", DialContext: dialTo(w.addr)}
			t.Cleanup(transport.CloseIdleConnections)
			res, err := (&http.Client{Transport: transport}).Get("https://ha.test/sse")
			ok(t, err)
			if !res.TLS.DidResume || res.StatusCode != 200 || (res.ProtoMajor == 2) != (alpn == "h2") {
				t.Fatalf("%s: resumed %v, %s", alpn, res.TLS.DidResume, res.Status)
			}
			_, err = bufio.NewReader(res.Body).ReadString('\n')
			ok(t, err)
			since := time.Now()
			w.deny(w.phone, DeniedRevoked)
			w.door.Disconnect(deviceID(w.phone.Leaf))
			if d := ended(t, res.Body, since); d > time.Second {
				t.Errorf("%s %s: lived for %v", mode, alpn, d)
			}
			before := w.reached()
			if _, answer, _ := w.visitWith(cache, "ha.test", nil); statusOf(answer) == 200 || w.reached() != before {
				t.Errorf("%s: resumed after the revocation: %q", mode, answer)
			}
		}
	}
	// A restart: the same sites and devices, another process.
	w := newWorld(t, nil)
	w.site("ha.test", Require, hello)
	cache := &ticketCache{}
	if _, _, err := w.visitWith(cache, "ha.test", w.phone); err != nil {
		t.Fatal(err)
	}
	again, err := New(w.door.cfg)
	ok(t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ok(t, err)
	served := make(chan struct{})
	go func() {
		defer close(served)
		if c, err := l.Accept(); err == nil {
			again.ServeConn(t.Context(), c)
		}
	}()
	w.addr = l.Addr().String()
	if resumed, answer, _ := w.visitWith(cache, "ha.test", nil); resumed || answer != "" {
		t.Errorf("resumed over a restart: %q", answer)
	}
	l.Close()
	<-served
	again.Close()
}

func dialTo(addr string) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	}
}

// No ticket of a host is worth anything at another, whatever the two ask for,
// in both versions of TLS.
func TestTicketsOfEveryPairOfHosts(t *testing.T) {
	t.Parallel()
	modes := []Mode{Require, Ask, None, Token}
	w := newWorld(t, nil)
	type host struct {
		name string
		mode Mode
	}
	var hosts []host
	for _, mode := range modes {
		for i := range 2 {
			h := host{fmt.Sprintf("%s%d.test", mode, i), mode}
			hosts = append(hosts, h)
			w.site(h.name, mode, w.proxyTo(hello, nil))
			w.token(h.name, tv, Device{ID: "tv", Name: "tv"})
		}
	}
	w.site("*.twins.test", Require, w.proxyTo(hello, nil)) // one site, two hosts
	hosts = append(hosts, host{"a.twins.test", Require}, host{"b.twins.test", Require})

	visit := func(cache *ticketCache, h host, cert *tls.Certificate, version uint16) (bool, int) {
		c := w.clientTLS(h.name, cert, "http/1.1")
		c.ClientSessionCache, c.InsecureSkipVerify, c.MaxVersion = cache, true, version
		conn, err := w.dial(c)
		if err != nil {
			return false, 0
		}
		defer conn.Close()
		fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", h.name)
		b, _ := io.ReadAll(conn)
		return conn.ConnectionState().DidResume, statusOf(string(b))
	}
	pairs := 0
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for _, from := range hosts {
			if from.mode.asks() && version == tls.VersionTLS12 {
				continue
			}
			for _, to := range hosts {
				if to.mode.asks() && version == tls.VersionTLS12 {
					continue
				}
				cache := &ticketCache{}
				if visit(cache, from, w.phone, version); cache.s == nil {
					t.Fatalf("%s gives no ticket", from.name)
				}
				before := w.reached()
				resumed, status := visit(cache, to, nil, version)
				pairs++
				if resumed != (from == to) {
					t.Errorf("%s: %s → %s: resumed %v", tls.VersionName(version), from.name, to.name, resumed)
				}
				if opened := w.reached() != before; opened && from != to && to.mode != None {
					t.Errorf("%s: %s → %s: home was reached, %d", tls.VersionName(version), from.name, to.name, status)
				}
			}
		}
	}
	if pairs < 100 {
		t.Errorf("only %d pairs", pairs)
	}

	// One host that changes its mode, with the same policy.
	for _, from := range modes {
		for _, to := range modes {
			if from == to {
				continue
			}
			h := host{"changing.test", from}
			w.site(h.name, from, w.proxyTo(hello, nil))
			cache := &ticketCache{}
			if visit(cache, h, w.phone, 0); cache.s == nil {
				t.Fatalf("%s gives no ticket", from)
			}
			w.site(h.name, to, w.proxyTo(hello, nil))
			if resumed, status := visit(cache, h, nil, 0); resumed || status == 200 && to != None {
				t.Errorf("%s → %s on one host: resumed %v, %d", from, to, resumed, status)
			}
		}
	}
}
