package est

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sallyport/sallyport/protocol/pki"
	"github.com/sallyport/sallyport/relay/enroll"
	"github.com/sallyport/sallyport/relay/store/memstore"
)

// A site is a whole EST server: TLS, desk, device CA. Only the records of
// devices are missing.
type site struct {
	desk *enroll.Desk
	ca   *pki.Authority
	url  string
	dir  string // holds server-ca.pem and device-ca.pem

	mu  sync.Mutex // guards log
	log []string   // method, path and status of every request
}

// tool skips the test where strongSwan's pki is missing, except in CI.
func tool(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("pki")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("strongSwan's pki is missing: apt-get install strongswan-pki libstrongswan-extra-plugins libstrongswan-standard-plugins")
		}
		t.Skip("strongSwan's pki is missing")
	}
	return path
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{dir: t.TempDir()}
	var err error
	if s.ca, err = pki.NewAuthority("device", time.Now); err != nil {
		t.Fatal(err)
	}
	s.desk, err = enroll.New(t.Context(), enroll.Config{
		Store: memstore.New(), CheckName: func(string) error { return nil },
		Issue: func(_ context.Context, g enroll.Grant) (*x509.Certificate, error) {
			return s.ca.Issue(g.Key, pki.Grant{Profile: pki.Device, Name: g.Name})
		},
		Issued: func(context.Context, string) (*x509.Certificate, error) { return nil, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	handler := New(Config{
		CA:    func() []*x509.Certificate { return []*x509.Certificate{s.ca.Cert()} },
		Apply: s.apply, Renew: s.renew,
		Peer: func(r *http.Request) *x509.Certificate {
			if len(r.TLS.PeerCertificates) == 0 {
				return nil
			}
			return r.TLS.PeerCertificates[0]
		},
		Source: func(r *http.Request) netip.Addr { return netip.MustParseAddrPort(r.RemoteAddr).Addr() },
	})
	serverCA, err := pki.NewAuthority("server", time.Now)
	if err != nil {
		t.Fatal(err)
	}
	key, err := pki.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := serverCA.Issue(key.Public(), pki.Grant{Profile: pki.Server, Name: "localhost"})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen := &status{ResponseWriter: w}
		handler.ServeHTTP(seen, r)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.log = append(s.log, r.Method+" "+r.URL.Path+" "+http.StatusText(seen.code))
	}))
	srv.TLS = &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: key}},
		ClientAuth:   tls.VerifyClientCertIfGiven, ClientCAs: s.ca.Pool(),
		MinVersion: tls.VersionTLS13, // as a host that asks for certificates
	}
	srv.StartTLS()
	t.Cleanup(srv.Close)
	s.url = "https://localhost:" + srv.URL[strings.LastIndexByte(srv.URL, ':')+1:]
	s.write(t, "server-ca.pem", pki.EncodeCert(serverCA.Cert()))
	s.write(t, "device-ca.pem", pki.EncodeCert(s.ca.Cert()))
	return s
}

type status struct {
	http.ResponseWriter
	code int
}

func (s *status) WriteHeader(code int) {
	s.code = code
	s.ResponseWriter.WriteHeader(code)
}

func (s *status) Write(p []byte) (int, error) {
	if s.code == 0 {
		s.code = http.StatusOK
	}
	return s.ResponseWriter.Write(p)
}

func (s *site) apply(ctx context.Context, code string, csr []byte, source netip.Addr, agent string) (string, *x509.Certificate, time.Duration, error) {
	r, err := s.desk.Apply(ctx, enroll.Application{Code: code, CSR: csr, Source: source, Via: enroll.ViaEST, Agent: agent})
	if err != nil || r.State != enroll.Issued {
		return string(r.State), nil, time.Second, err
	}
	cert, err := x509.ParseCertificate(r.Cert)
	return string(r.State), cert, 0, err
}

func (s *site) renew(_ context.Context, peer *x509.Certificate, csr []byte) (*x509.Certificate, error) {
	pub, err := pki.ParseCSR(csr)
	if err != nil {
		return nil, err
	}
	return s.ca.Issue(pub, pki.Grant{Profile: pki.Device, Name: peer.Subject.CommonName})
}

func (s *site) write(t *testing.T, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(s.dir, name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// request makes a key and a signing request by strongSwan's own hand.
func (s *site) request(t *testing.T, kind, name string) (keyFile, csrFile string) {
	t.Helper()
	args := map[string][]string{"ecdsa": {"--size", "256"}, "rsa": {"--size", "2048"}}[kind]
	key := run(t, slices.Concat([]string{"--gen", "--type", kind, "--outform", "pem"}, args)...)
	keyFile = s.write(t, rand.Text()+".key", key)
	csr := run(t, "--req", "--type", "priv", "--in", keyFile, "--dn", "CN="+name)
	return keyFile, s.write(t, rand.Text()+".csr", csr)
}

func run(t *testing.T, args ...string) []byte {
	t.Helper()
	out, err := try(t, args...)
	if err != nil {
		t.Fatalf("pki %s: %v", strings.Join(args, " "), err)
	}
	return out
}

func try(t *testing.T, args ...string) ([]byte, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	conf := filepath.Join(t.TempDir(), "strongswan.conf")
	if err := os.WriteFile(conf, []byte("libtls {\n  version_max = 1.3\n}\n"), 0o600); err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, tool(t), args...)
	cmd.Env = append(os.Environ(), "STRONGSWAN_CONF="+conf)
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	t.Logf("pki %s\n%s", args[0], said.String())
	return out, err
}

func (s *site) est(t *testing.T, args ...string) ([]byte, error) {
	t.Helper()
	return try(t, slices.Concat([]string{
		"--est", "--url", s.url, "--outform", "pem",
		"--cacert", filepath.Join(s.dir, "server-ca.pem"), "--cacert", filepath.Join(s.dir, "device-ca.pem"),
	}, args)...)
}

func (s *site) invite(t *testing.T, inv enroll.Invitation) string {
	t.Helper()
	code, _, err := s.desk.Invite(t.Context(), inv)
	if err != nil {
		t.Fatal(err)
	}
	return code
}

// enrolled checks what a client wrote and returns the path of it.
func (s *site) enrolled(t *testing.T, out []byte, name string) (*x509.Certificate, string) {
	t.Helper()
	cert, err := pki.DecodeCert(out)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cert.Verify(x509.VerifyOptions{Roots: s.ca.Pool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Error(err)
	}
	if cert.Subject.CommonName != name {
		t.Errorf("it is for %q", cert.Subject)
	}
	return cert, s.write(t, rand.Text()+".crt", out)
}

// TestStrongSwan enrols and renews with an independent client.
func TestStrongSwan(t *testing.T) {
	tool(t)
	for _, kind := range []string{"ecdsa", "rsa"} {
		t.Run(kind, func(t *testing.T) {
			s := newSite(t)
			out := run(t, "--estca", "--url", s.url, "--cacert", filepath.Join(s.dir, "server-ca.pem"), "--outform", "pem")
			if got, err := pki.DecodeCert(out); err != nil || !got.Equal(s.ca.Cert()) {
				t.Fatalf("cacerts: %v", err)
			}
			code := s.invite(t, enroll.Invitation{Name: "work-laptop"})
			keyFile, csr := s.request(t, kind, "root of all")
			out, err := s.est(t, "--in", csr, "--userpass", "anybody:"+code)
			if err != nil {
				t.Fatal(err)
			}
			first, certFile := s.enrolled(t, out, "work-laptop")

			// A used code serves nobody else.
			_, foreign := s.request(t, kind, "thief")
			if out, err := s.est(t, "--in", foreign, "--userpass", "anybody:"+code); err == nil {
				t.Errorf("the code was used twice: %s", out)
			}

			_, next := s.request(t, kind, "work-laptop")
			out, err = s.est(t, "--in", next, "--cert", certFile, "--key", keyFile)
			if err != nil {
				t.Fatal(err)
			}
			if second, _ := s.enrolled(t, out, "work-laptop"); second.SerialNumber.Cmp(first.SerialNumber) == 0 {
				t.Error("renewal gave the old certificate")
			}
			_, other := s.request(t, kind, "admin")
			if out, err := s.est(t, "--in", other, "--cert", certFile, "--key", keyFile); err == nil {
				t.Errorf("renewed under another name: %s", out)
			}
		})
	}
}

// TestStrongSwanQueue: the client waits, and asks again, until the owner has
// decided.
func TestStrongSwanQueue(t *testing.T) {
	tool(t)
	for _, allow := range []bool{true, false} {
		s := newSite(t)
		code := s.invite(t, enroll.Invitation{Name: "work-laptop", Approve: true})
		_, csr := s.request(t, "ecdsa", "x")
		done := make(chan error, 1)
		var out []byte
		go func() {
			var err error
			out, err = s.est(t, "--in", csr, "--userpass", "anybody:"+code, "--interval", "1", "--maxpolltime", "20")
			done <- err
		}()
		s.decide(t, allow)
		err := <-done
		if (err == nil) != allow {
			t.Errorf("allowed %v: %v", allow, err)
		}
		if allow && err == nil {
			s.enrolled(t, out, "work-laptop")
		}
		s.mu.Lock()
		if !slices.Contains(s.log, "POST /.well-known/est/simpleenroll Accepted") {
			t.Errorf("the client never waited: %q", s.log)
		}
		s.mu.Unlock()
	}
}

// decide waits for the one request and decides it.
func (s *site) decide(t *testing.T, allow bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	timeout := time.After(20 * time.Second)
	for len(s.desk.Pending()) == 0 {
		select {
		case <-tick.C:
		case <-timeout:
			t.Fatal("no request came")
		}
	}
	f := s.desk.Deny
	if allow {
		f = s.desk.Approve
	}
	if _, err := f(t.Context(), "work-laptop"); err != nil {
		t.Fatal(err)
	}
}
