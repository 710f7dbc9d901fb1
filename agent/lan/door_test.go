package lan

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/protocol/door"
)

func newCert(t *testing.T, template *x509.Certificate, parent *tls.Certificate) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	by, with := template, any(key)
	if parent != nil {
		by, with = parent.Leaf, parent.PrivateKey
	}
	der, err := x509.CreateCertificate(rand.Reader, template, by, &key.PublicKey, with)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// TestThroughTheDoor: the same site on the home network and through a tunnel,
// with one certificate; only on the home network a page is "here".
func TestThroughTheDoor(t *testing.T) {
	ca := newCert(t, &x509.Certificate{Subject: pkix.Name{CommonName: "devices"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, nil)
	device := newCert(t, &x509.Certificate{Subject: pkix.Name{CommonName: "phone"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, ca)
	server := newCert(t, &x509.Certificate{DNSNames: []string{"*." + own, "ha.example.org"}}, nil)
	pool, roots := x509.NewCertPool(), x509.NewCertPool()
	pool.AddCert(ca.Leaf)
	roots.AddCert(server.Leaf)

	var l *LAN
	site := func(host string) *door.Site {
		return &door.Site{
			Host: host, Policy: "p", Mode: door.Require,
			Certificate: func(string) (*tls.Certificate, error) { return server, nil },
			Handler:     http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { l.Helper().ServeHTTP(w, r) }),
		}
	}
	lookup := func(name string) (*door.Site, bool) {
		switch {
		case name == "ha.example.org":
			return site(name), true
		case strings.HasSuffix(name, "."+own):
			return site("*." + own), true
		}
		return nil, false
	}
	d, err := door.New(door.Config{
		Lookup: lookup, ClientCAs: pool,
		Check: func(leaf *x509.Certificate, _ string, _ time.Time) (door.Device, string) {
			return door.Device{ID: leaf.Subject.CommonName}, ""
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })

	ready := make(chan struct{}, 1)
	l = newLAN(t, Config{
		Listen: "127.0.0.1:0", Serve: d.ServeConn,
		Addrs:   func() []netip.Addr { return addrs("127.0.0.1") },
		Changed: func([]netip.Addr) { ready <- struct{}{} },
		Ours:    func(name string) bool { _, ok := lookup(name); return ok },
	})
	start(t, l)
	<-ready

	tunnel, err := net.Listen("tcp", "127.0.0.1:0") // what else leads to the door
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tunnel.Close() })
	go func() {
		for {
			c, err := tunnel.Accept()
			if err != nil {
				return
			}
			go d.ServeConn(t.Context(), c)
		}
	}()

	url, address := l.URL(), ""
	if host := "127-0-0-1." + own; !strings.HasPrefix(url, "https://"+host+":") {
		t.Fatalf("URL %q", url)
	} else {
		address = "127.0.0.1" + strings.TrimPrefix(url, "https://"+host)
	}
	get := func(to, url string, cert *tls.Certificate) (map[string]any, http.Header, error) {
		conf := &tls.Config{RootCAs: roots}
		if cert != nil {
			conf.Certificates = []tls.Certificate{*cert}
		}
		tr := &http.Transport{
			TLSClientConfig: conf, ForceAttemptHTTP2: true,
			DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, network, to)
			},
		}
		defer tr.CloseIdleConnections()
		req, _ := http.NewRequestWithContext(t.Context(), "GET", url, nil)
		req.Header.Set("Origin", "https://ha.example.org")
		res, err := (&http.Client{Transport: tr}).Do(req)
		if err != nil {
			return nil, nil, err
		}
		defer res.Body.Close()
		m := map[string]any{}
		return m, res.Header, json.NewDecoder(res.Body).Decode(&m)
	}

	if m, _, err := get(address, "https://ha.example.org"+WellKnown+"lan.json", device); err != nil || m["here"] != true {
		t.Errorf("the usual name on the home network: %v %v", m, err)
	}
	m, header, err := get(address, url+WellKnown+"here", device)
	if err != nil || m["here"] != true || header.Get("Access-Control-Allow-Origin") != "https://ha.example.org" {
		t.Errorf("the home network's name: %v %v %v", m, header, err)
	}
	m, _, err = get(tunnel.Addr().String(), "https://ha.example.org"+WellKnown+"lan.json", device)
	if urls, _ := m["urls"].([]any); err != nil || m["here"] != false || len(urls) != 1 || urls[0] != url {
		t.Errorf("through the tunnel: %v %v", m, err)
	}
	if m, _, err := get(tunnel.Addr().String(), "https://ha.example.org"+WellKnown+"here", device); err != nil || m["here"] != false {
		t.Errorf("here through the tunnel: %v %v", m, err)
	}
	if m, _, err := get(address, url+WellKnown+"here", nil); err == nil {
		t.Errorf("without a device certificate: %v", m)
	}
}
