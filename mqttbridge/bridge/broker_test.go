package bridge

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
)

// TestBrokerCheck: what is wrong is said, with what to write instead, and a
// password in the URL is never repeated.
func TestBrokerCheck(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good, empty := file("good", "secret\r\nmore"), file("empty", "\nsecret")
	for _, tt := range []struct {
		b    Broker
		want string // in one of the errors; "" = none
	}{
		{Broker{URL: "tcp://127.0.0.1:1883"}, ""},
		{Broker{URL: "mqtt://[::1]"}, ""},
		{Broker{URL: "tls://broker.lan"}, ""},
		{Broker{URL: "mqtts://broker.lan:8884/", User: "u", PasswordFile: good}, ""},
		{Broker{}, "no broker URL"},
		{Broker{URL: "127.0.0.1:1883"}, "tcp://127.0.0.1:1883"},
		{Broker{URL: "http://broker"}, "tcp:// or tls://"},
		{Broker{URL: "tcp://broker/path"}, "leave out what follows"},
		{Broker{URL: "tcp://:1883"}, "no host"},
		{Broker{URL: "tcp://broker:0"}, "1 to 65535"},
		{Broker{URL: "tcp://broker:70000"}, "1 to 65535"},
		{Broker{URL: "tcp://me:hunter2@broker"}, "password_file"},
		{Broker{URL: "tcp://me:hunter2@broker:x"}, "cannot be read"},
		{Broker{URL: "tcp://b", PasswordFile: good}, "without a user"},
		{Broker{URL: "tcp://b", User: "u", PasswordFile: filepath.Join(dir, "no")}, "no such file"},
		{Broker{URL: "tcp://b", User: "u", PasswordFile: empty}, "is empty"},
		{Broker{URL: "tcp://b", CAFile: good}, "not TLS"},
		{Broker{URL: "tcp://b", CertFile: good}, "not TLS"},
		{Broker{URL: "tls://b", CertFile: good}, "both"},
		{Broker{URL: "tls://b", CAFile: good}, "no certificate"},
		{Broker{URL: "tls://b", CAFile: filepath.Join(dir, "no")}, "no such file"},
		{Broker{URL: "tls://b", CertFile: good, KeyFile: good}, "load the client certificate"},
		{Broker{URL: "tcp://b", ClientID: "a b"}, "client id"},
	} {
		var text []string
		for _, err := range tt.b.Check() {
			text = append(text, err.Error())
		}
		got := strings.Join(text, "\n")
		if tt.want == "" && got != "" || !strings.Contains(got, tt.want) {
			t.Errorf("%+v: %q, not %q", tt.b, got, tt.want)
		}
		if strings.Contains(got, "hunter2") {
			t.Errorf("the password is repeated: %s", got)
		}
	}
	if p, err := (Broker{User: "u", PasswordFile: good}).password(); p != "secret" || err != nil {
		t.Errorf("password %q, %v", p, err)
	}
}

// lastError runs a client until it says why it cannot connect.
func lastError(t *testing.T, b Broker) string {
	t.Helper()
	c, stop := runClient(t, ClientConfig{Broker: b})
	defer stop()
	eventually(t, "it fails or connects", func() bool { return c.Connected() || c.Status().LastError != "" })
	if c.Connected() {
		return "connected"
	}
	return c.Status().LastError
}

func expectError(t *testing.T, b Broker, want ...string) {
	t.Helper()
	got := lastError(t, b)
	for _, w := range want {
		if !strings.Contains(got, w) {
			t.Errorf("%+v: %q, without %q", b, got, w)
		}
	}
}

// TestPassword: who is not let in is told what to set.
func TestPassword(t *testing.T) {
	t.Parallel()
	tool, err := exec.LookPath("mosquitto_passwd")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	dir := t.TempDir()
	users := filepath.Join(dir, "users")
	if out, err := exec.Command(tool, "-b", "-c", users, "anna", "right").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	m := startMosquitto(t, "password_file "+users)
	right, wrong := filepath.Join(dir, "right"), filepath.Join(dir, "wrong")
	os.WriteFile(right, []byte("right\n"), 0o600)
	os.WriteFile(wrong, []byte("wrong\n"), 0o600)
	expectError(t, Broker{URL: m.url()}, "without a user name", "set user and password_file")
	expectError(t, Broker{URL: m.url(), User: "anna", PasswordFile: wrong}, `"anna"`, "wrong password", "password_file")
	expectError(t, Broker{URL: m.url(), User: "anna", PasswordFile: right}, "connected")
	expectError(t, Broker{URL: "tls://" + m.addr, User: "anna", PasswordFile: right}, "tcp://")
	// A new password in the file counts at the next attempt.
	c, _ := runClient(t, ClientConfig{Broker: Broker{URL: m.url(), User: "anna", PasswordFile: wrong}})
	eventually(t, "refused", func() bool { return c.Status().LastError != "" })
	os.WriteFile(wrong, []byte("right\n"), 0o600)
	eventually(t, "let in", c.Connected)
}

// TestUnreachable: the words for brokers that are not there.
func TestUnreachable(t *testing.T) {
	t.Parallel()
	expectError(t, Broker{URL: "tcp://127.0.0.1:1"}, "nothing listens", "is the broker running")
	expectError(t, Broker{URL: "tcp://broker.invalid"}, "not found in the DNS", "broker.invalid")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	expectError(t, Broker{URL: "tcp://" + l.Addr().String()}, "closed the connection", "tls://")
}

// An authority signs certificates for tests.
type authority struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string
}

func newAuthority(t *testing.T, name string) *authority {
	a := &authority{t: t, dir: t.TempDir()}
	a.key, _ = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &a.key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	a.cert, _ = x509.ParseCertificate(der)
	a.file = a.write(name+".pem", "CERTIFICATE", der)
	return a
}

func (a *authority) write(name, kind string, der []byte) string {
	path := filepath.Join(a.dir, name)
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		a.t.Fatal(err)
	}
	return path
}

// issue makes a certificate that is valid until then, for a host or a client.
func (a *authority) issue(name string, until time.Time) (cert, key string) {
	k, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: until,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		DNSNames: []string{name},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &k.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	keyDER, _ := x509.MarshalPKCS8PrivateKey(k)
	return a.write(name+".crt", "CERTIFICATE", der), a.write(name+".key", "PRIVATE KEY", keyDER)
}

// TestTLS: with a client certificate to Mosquitto, and the words for what can
// go wrong.
func TestTLS(t *testing.T) {
	t.Parallel()
	ca, other := newAuthority(t, "home"), newAuthority(t, "stranger")
	hour := time.Now().Add(time.Hour)
	server, serverKey := ca.issue("broker.lan", hour)
	client, clientKey := ca.issue("agent", hour)
	strange, strangeKey := other.issue("agent", hour)
	m := startMosquitto(t, "cafile "+ca.file, "certfile "+server, "keyfile "+serverKey, "require_certificate true", "use_identity_as_username true")
	good := Broker{URL: "tls://" + m.addr, CAFile: ca.file, CertFile: client, KeyFile: clientKey, ServerName: "broker.lan"}

	h := newHub(t)
	b := start(t, Config{Broker: good, Rules: rules(t, "t/# in"), DialRelay: h.dial})
	b.up(t)
	h.give(mqttbridge.LinkMessage{Topic: "t/x", Payload: []byte("x"), QoS: 1})
	eventually(t, "a message over TLS", func() bool { return h.left() == 0 })

	bad := good
	bad.CAFile = other.file
	expectError(t, bad, "not signed by a CA in "+other.file)
	bad.CAFile = ""
	expectError(t, bad, "does not know", "ca_file")
	bad = good
	bad.ServerName = ""
	expectError(t, bad, "for other names (broker.lan)", "server_name")
	bad = good
	bad.CertFile, bad.KeyFile = "", ""
	expectError(t, bad, "client certificate", "cert_file and key_file")
	bad.CertFile, bad.KeyFile = strange, strangeKey
	expectError(t, bad, "client certificate", strange)
	bad = good
	bad.URL = m.url()
	bad.CAFile, bad.CertFile, bad.KeyFile, bad.ServerName = "", "", "", ""
	expectError(t, bad, "does the port want TLS")
	bad.URL, bad.InsecureSkipVerify, bad.CertFile, bad.KeyFile = good.URL, true, client, clientKey
	expectError(t, bad, "connected")

	oldServer, oldKey := ca.issue("old.lan", time.Now().Add(-time.Hour))
	m2 := startMosquitto(t, "cafile "+ca.file, "certfile "+oldServer, "keyfile "+oldKey, "allow")
	expectError(t, Broker{URL: "tls://" + m2.addr, CAFile: ca.file, ServerName: "old.lan"}, "expired", "clock")
}
