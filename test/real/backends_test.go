package real

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// freePort is a loopback address that was free a moment ago, TCP and UDP, for
// servers that cannot pick one themselves or come back to it. The kernel gives
// ports of this range to nobody who does not ask for them, so that it stays free.
func freePort(t *testing.T) string {
	t.Helper()
	for range 100 {
		addr := "127.0.0.1:" + itoa(10_000+mathrand.IntN(20_000))
		l, err := net.Listen("tcp", addr)
		if err != nil {
			continue
		}
		pc, err := net.ListenPacket("udp", addr)
		l.Close()
		if err != nil {
			continue
		}
		pc.Close()
		return addr
	}
	t.Fatal("no free port")
	return ""
}

// waitListening waits until somebody accepts connections there.
func waitListening(t *testing.T, p *process, network, addr string) {
	t.Helper()
	eventually(t, 10*time.Second, p.name+" listens on "+addr, func() bool {
		if !p.running() {
			t.Fatalf("%s ended: %v\n%s", p.name, p.err, p.out)
		}
		c, err := net.Dial(network, addr)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
}

// nginxConf is a whole configuration; %s are the directory, the plain
// address, the unix socket and the address that wants the PROXY protocol.
const nginxConf = `daemon off; master_process off; worker_processes 1;
pid %[1]s/nginx.pid; error_log stderr warn;
events { worker_connections 256; }
http {
  access_log off; client_max_body_size 0;
  client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/proxy; fastcgi_temp_path %[1]s/fcgi; uwsgi_temp_path %[1]s/uwsgi; scgi_temp_path %[1]s/scgi;
  default_type text/plain;
  server {
    listen %[2]s; listen unix:%[3]s;
    location = / { return 200 "nginx for $host, from $http_x_forwarded_for\n"; }
    location /files/ { alias %[1]s/files/; }
  }
  server {
    listen %[4]s proxy_protocol;
    location / { return 200 "from $proxy_protocol_addr\n"; }
  }
}
`

func TestNginx(t *testing.T) {
	t.Parallel()
	needTools(t, "curl", "nginx")
	dir := shortDir(t)
	if err := os.MkdirAll(filepath.Join(dir, "files"), 0o755); err != nil {
		t.Fatal(err)
	}
	big := strings.Repeat("0123456789abcdef", 1<<16) // 1 MB
	if err := os.WriteFile(filepath.Join(dir, "files", "big"), []byte(big), 0o644); err != nil {
		t.Fatal(err)
	}
	plain, proxied, sock := freePort(t), freePort(t), filepath.Join(dir, "nginx.sock")
	conf := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(conf, fmt.Appendf(nil, nginxConf, dir, plain, sock, proxied), 0o644); err != nil {
		t.Fatal(err)
	}
	nginx := start(t, "nginx", "nginx", "-p", dir, "-c", conf, "-e", "stderr")
	waitListening(t, nginx, "tcp", proxied)
	waitListening(t, nginx, "unix", sock)

	w := newWorld(t)
	w.home("first", "--expose", "web="+plain, "--expose", "sock=unix:"+sock)
	w.expose("first", "pp", "http://"+proxied, "--proxy-protocol")
	phone := w.device("phone")
	for _, name := range []string{"web", "sock"} {
		if body := w.get(phone, name, "/"); body != fmt.Sprintf("nginx for %s, from 127.0.0.1\n", host(name)) {
			t.Errorf("%s answers %q", name, body)
		}
		if body := w.get(phone, name, "/files/big"); body != big {
			t.Errorf("%s: a file of %d bytes arrives with %d", name, len(big), len(body))
		}
		r := w.curl(&phone, "-r", "16-31", "-w", " %{http_code}", w.url(name, "/files/big"))
		if r.stdout != "0123456789abcdef 206" {
			t.Errorf("%s: range request: %s", name, r)
		}
	}
	// The backend hears each visitor's own address, whoever came before on a
	// kept connection.
	for _, from := range []string{"127.0.0.2", "127.0.0.3", "127.0.0.2"} {
		r := w.curl(&phone, "--interface", from, w.url("pp", "/"))
		if r.stdout != "from "+from+"\n" {
			t.Errorf("PROXY protocol for %s: %s", from, r)
		}
	}
}

// pythonUnix is python3's http.server on a unix socket.
const pythonUnix = `
import http.server, socketserver, sys
class H(http.server.SimpleHTTPRequestHandler):
    def address_string(self): return "unix"
class S(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
S(sys.argv[1], H).serve_forever()
`

func TestPython(t *testing.T) {
	t.Parallel()
	needTools(t, "curl", "python3")
	dir := shortDir(t)
	if err := os.WriteFile(filepath.Join(dir, "page.txt"), []byte("from python\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	addr, sock := freePort(t), filepath.Join(dir, "py.sock")
	_, port, _ := net.SplitHostPort(addr)
	overTCP := start(t, "python over tcp", "python3", "-m", "http.server", "--bind", "127.0.0.1", "--directory", dir, port)
	script := filepath.Join(dir, "unix.py")
	if err := os.WriteFile(script, []byte("import os\nos.chdir("+fmt.Sprintf("%q", dir)+")\n"+pythonUnix), 0o644); err != nil {
		t.Fatal(err)
	}
	overUnix := start(t, "python over unix", "python3", script, sock)
	waitListening(t, overTCP, "tcp", addr)
	waitListening(t, overUnix, "unix", sock)

	w := newWorld(t)
	w.home("first", "--expose", "tcp="+addr, "--expose", "unix=unix:"+sock)
	phone := w.device("phone")
	for _, name := range []string{"tcp", "unix"} {
		if body := w.get(phone, name, "/page.txt"); body != "from python\n" {
			t.Errorf("%s answers %q", name, body)
		}
		r := w.curl(&phone, "-o", os.DevNull, "-w", "%{http_code}", w.url(name, "/absent"))
		if r.stdout != "404" {
			t.Errorf("%s: want the backend's own 404: %s", name, r)
		}
	}
}

// TestHTTPSBackend: a certificate of the home's own CA, a name that is not
// the address, a client certificate, HTTP/2; and no way around verification.
func TestHTTPSBackend(t *testing.T) {
	t.Parallel()
	needTools(t, "curl")
	dir := shortDir(t)
	ca := newTestCA(t, dir)
	cert, key := ca.issue(t, "nas.home.test")
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		who := "nobody"
		if len(r.TLS.PeerCertificates) > 0 {
			who = r.TLS.PeerCertificates[0].Subject.CommonName
		}
		fmt.Fprintf(w, "nas, %s, %s\n", r.Proto, who)
	}))
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: pool}
	srv.EnableHTTP2 = true
	srv.StartTLS()
	t.Cleanup(func() { srv.CloseClientConnections(); srv.Close() })
	target := "https://" + srv.Listener.Addr().String()

	w := newWorld(t)
	w.home("first")
	phone := w.device("phone")
	w.expose("first", "pinned", target, "--ca", ca.file, "--server-name", "nas.home.test")
	w.expose("first", "h2", target, "--ca", ca.file, "--server-name", "nas.home.test", "--http2")
	clientCert, clientKey := ca.issue(t, "agent")
	w.expose("first", "mutual", target, "--ca", ca.file, "--server-name", "nas.home.test", "--cert", clientCert, "--key", clientKey)
	w.expose("first", "unsafe", target, "--insecure-skip-verify")
	w.expose("first", "wrongname", target, "--ca", ca.file)
	w.expose("first", "nopin", target, "--server-name", "nas.home.test")
	for name, want := range map[string]string{
		"pinned": "nas, HTTP/1.1, nobody\n", "h2": "nas, HTTP/2.0, nobody\n", "mutual": "nas, HTTP/1.1, agent\n", "unsafe": "nas, HTTP/1.1, nobody\n",
	} {
		if body := w.get(phone, name, "/"); body != want {
			t.Errorf("%s answers %q, want %q", name, body, want)
		}
	}
	for _, name := range []string{"wrongname", "nopin"} {
		r := w.curl(&phone, "-w", "\n%{http_code}", w.url(name, "/"))
		if !strings.HasSuffix(r.stdout, "\n502") || strings.Contains(r.stdout, "nas, ") {
			t.Errorf("%s: an unverified backend was believed: %s", name, r)
		}
		noInternals(t, r.stdout, srv.Listener.Addr().String())
	}
	if out := w.agents["first"].out.String(); !strings.Contains(out, "x509") && !strings.Contains(out, "certificate") {
		t.Error("the agent's log does not say why")
	}
}

// noInternals: a page for visitors tells nothing of the home's inside.
func noInternals(t *testing.T, page, addr string) {
	t.Helper()
	h, port, _ := net.SplitHostPort(addr)
	for _, bad := range []string{addr, h, port, "127.0.0.1", "dial", "connection refused", "x509", "panic", "goroutine"} {
		if strings.Contains(page, bad) {
			t.Errorf("the page shows internals (%q):\n%s", bad, page)
		}
	}
}

// TestBackendDown: a page that says so, the reason in the home's log, and
// "offline" for a device when the home is away.
func TestBackendDown(t *testing.T) {
	t.Parallel()
	needTools(t, "curl", "openssl")
	w := newWorld(t)
	down := freePort(t)
	w.home("first", "--expose", "ha="+down, "--expose", "raw=tcp://"+down)
	w.expose("first", "open", down, "--auth", "none")
	phone := w.device("phone")
	page := func(d *device, name string) result {
		return w.curl(d, "-w", "\n%{http_code}", w.url(name, "/"))
	}
	r := page(&phone, "ha")
	if !strings.HasSuffix(r.stdout, "\n502") || !strings.Contains(r.stdout, "not answer") {
		t.Errorf("want a 502 page that says that the service does not answer: %s", r)
	}
	noInternals(t, strings.TrimSuffix(r.stdout, "\n502"), down)
	w.agents["first"].waitFor("connection refused", 5*time.Second)

	known := func() string {
		out := scan(t, w.listen, host("ha"))
		return certNames(t, w, host("ha")) + first(out, "Acceptable client certificate CA names") + w.refusal(host("ha"))
	}
	online := known()
	w.agents["first"].stop()
	eventually(t, 5*time.Second, "the relay knows that the home is away", func() bool {
		st, _ := w.relayStatus()
		return len(st.Agents) == 1 && !st.Agents[0].Online
	})
	if offline := known(); offline != online {
		t.Errorf("without a certificate, online and offline can be told apart:\nonline  %s\noffline %s", online, offline)
	}
	r = page(&phone, "ha")
	if !strings.Contains(r.stdout, "offline since") || !strings.HasSuffix(r.stdout, "\n503") && !strings.HasSuffix(r.stdout, "\n502") {
		t.Errorf("want a page that says since when the home is offline: %s", r)
	}
	if r := page(nil, "open"); strings.Contains(r.stdout, "since") {
		t.Errorf("a visitor without a certificate learns since when the home is offline: %s", r)
	}
}

// refusal is how a visitor without a certificate is sent away.
func (w *world) refusal(sni string) string {
	w.t.Helper()
	conf := w.tlsOf(nil)
	conf.ServerName = sni
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: 10 * time.Second}, "tcp", w.listen, conf)
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	_, err = c.Read(make([]byte, 1))
	return fmt.Sprint(err)
}

// first returns the first line that contains text.
func first(out, text string) string {
	for line := range strings.Lines(out) {
		if strings.Contains(line, text) {
			_, said, _ := strings.Cut(line, text) // without openssl's thread ids
			return text + said
		}
	}
	return ""
}

// testCA signs certificates for backends and for --certs files.
type testCA struct {
	dir, file string
	cert      *x509.Certificate
	key       *ecdsa.PrivateKey
	serial    int64
}

func newTestCA(t *testing.T, dir string) *testCA {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	ca := &testCA{dir: dir, file: filepath.Join(dir, "test-ca.pem"), key: key, serial: 1}
	if ca.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	writePEM(t, ca.file, "CERTIFICATE", der)
	return ca
}

// issue makes a certificate and returns its files; serial numbers tell later
// ones of a name from earlier ones.
func (ca *testCA) issue(t *testing.T, name string) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca.serial++
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(ca.serial), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, ca.cert, key.Public(), ca.key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	base := filepath.Join(ca.dir, strings.NewReplacer("*", "wild", ".", "-").Replace(name))
	writePEM(t, base+".crt", "CERTIFICATE", der)
	writePEM(t, base+".key", "PRIVATE KEY", keyDER)
	return base + ".crt", base + ".key"
}

func writePEM(t *testing.T, file, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}
