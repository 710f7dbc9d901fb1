package real

import (
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// Hosts of these tests: words that stand in a capture for nothing else.
const (
	echAtRelay = "livingroom" // the relay ends TLS
	echAtHome  = "winecellar" // the home does
	echBackend = "summerhouse"
	echStale   = "gardenshed" // the resolver has an old config
	echPublic  = "www"
)

// An echWorld is a relay that answers for its domain in the DNS, and a home.
type echWorld struct {
	*world
	dns     string // the relay's DNS server
	agentCA string // PEM: who certifies what the home serves itself
	pool    *x509.CertPool
}

func newEchWorld(t *testing.T) *echWorld {
	t.Helper()
	at := freePort(t)
	w := &echWorld{world: newWorld(t, "--dns", at, "--dns-address", "127.0.0.1"), dns: at}
	app := startHomeApp(t)
	w.home("first", "--expose", "mtls="+app)
	w.expose("first", echAtRelay, app, "--auth", "none")
	w.expose("first", echAtHome, app, "--auth", "none", "--tls", "agent")
	backend := httptest.NewUnstartedServer(homeApp())
	ca := newTestCA(t, w.dir)
	cert, err := tls.LoadX509KeyPair(ca.issue(t, host(echBackend)))
	if err != nil {
		t.Fatal(err)
	}
	backend.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	backend.StartTLS()
	t.Cleanup(backend.Close)
	w.expose("first", echBackend, "tcp://"+backend.Listener.Addr().String(), "--tls", "backend")

	w.pool = x509.NewCertPool()
	w.pool.AddCert(ca.cert)
	root, err := os.ReadFile(w.roots)
	if err != nil {
		t.Fatal(err)
	}
	own := w.homeRoot("first")
	w.agentCA = w.file("home-ca.pem")
	writeFile(t, w.agentCA, own)
	if !w.pool.AppendCertsFromPEM(root) || !w.pool.AppendCertsFromPEM([]byte(own)) {
		t.Fatal("no roots")
	}
	return w
}

// homeRoot is the root of the certificates that a home serves itself, as its
// owner sees it.
func (w *world) homeRoot(name string) string {
	w.t.Helper()
	var st struct {
		Agent struct {
			EndToEnd struct{ Root string } `json:"end_to_end"`
		}
	}
	out := mustRun(w.t, binary, "status", "--json", "--data", w.agentDir(name))
	if err := json.Unmarshal([]byte(out), &st); err != nil || st.Agent.EndToEnd.Root == "" {
		w.t.Fatalf("status does not show the home's root: %v\n%s", err, out)
	}
	return st.Agent.EndToEnd.Root
}

// https asks the relay's DNS for a host's HTTPS record, as a browser does; nil:
// there is none.
func (w *echWorld) https(name string) *dns.HTTPS {
	w.t.Helper()
	q := new(dns.Msg)
	q.SetQuestion("_"+w.port()+"._https."+dns.Fqdn(host(name)), dns.TypeHTTPS)
	m, _, err := new(dns.Client).Exchange(q, w.dns)
	if err != nil {
		w.t.Fatalf("ask for the HTTPS record of %s: %v", name, err)
	}
	for _, rr := range m.Answer {
		if rr, ok := rr.(*dns.HTTPS); ok {
			return rr
		}
	}
	return nil
}

// echOf is the config list in a record.
func echOf(rr *dns.HTTPS) []byte {
	if rr == nil {
		return nil
	}
	for _, v := range rr.Value {
		if e, ok := v.(*dns.SVCBECHConfig); ok {
			return e.ECH
		}
	}
	return nil
}

// dial is Go's client: it shows which name it means to nobody but who has the
// key of the config.
func (w *echWorld) dial(name string, config []byte, certs ...tls.Certificate) (*tls.Conn, error) {
	d := &tls.Dialer{NetDialer: &net.Dialer{Timeout: 20 * time.Second}, Config: &tls.Config{
		ServerName: host(name), RootCAs: w.pool, Certificates: certs, EncryptedClientHelloConfigList: config, NextProtos: []string{"http/1.1"},
	}}
	c, err := d.DialContext(w.t.Context(), "tcp", w.listen)
	if err != nil {
		return nil, err
	}
	w.t.Cleanup(func() { c.Close() })
	return c.(*tls.Conn), nil
}

// visit says hello to the home with the config.
func (w *echWorld) visit(name string, config []byte, certs ...tls.Certificate) {
	w.t.Helper()
	c, err := w.dial(name, config, certs...)
	if err != nil {
		w.t.Errorf("%s: %v", name, err)
		return
	}
	if !c.ConnectionState().ECHAccepted {
		w.t.Errorf("%s: the encrypted hello was not accepted", name)
	}
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: "+net.JoinHostPort(host(name), w.port())+"\r\nConnection: close\r\n\r\n"); err != nil {
		w.t.Errorf("%s: %v", name, err)
	}
	if answer, err := io.ReadAll(c); !strings.Contains(string(answer), "hello from home") {
		w.t.Errorf("%s answers %q, %v", name, answer, err)
	}
}

// rejected dials with a config that does not lead there; what comes back is the
// public name's word on what to use.
func (w *echWorld) rejected(name string, config []byte) []byte {
	w.t.Helper()
	_, err := w.dial(name, config)
	no, ok := errors.AsType[*tls.ECHRejectionError](err)
	if !ok {
		w.t.Errorf("%s: want a rejection with new configs, got %v", name, err)
		return nil
	}
	return no.RetryConfigList
}

// withAnotherKey is a config list whose first config nobody has the key of, as
// after the loss of all keys.
func withAnotherKey(t *testing.T, list []byte) []byte {
	t.Helper()
	// List length, version, length, id, KEM: each 2 bytes, the id 1; then the key
	// with its length (draft-ietf-tls-esni, section 4).
	const at = 2 + 2 + 2 + 1 + 2 + 2
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil || len(list) < at+32 || list[at-1] != 32 {
		t.Fatalf("not a config of X25519: %v %x", err, list)
	}
	other := bytes.Clone(list)
	copy(other[at:], key.PublicKey().Bytes())
	return other
}
