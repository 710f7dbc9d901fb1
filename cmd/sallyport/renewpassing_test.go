package main

import (
	"crypto/tls"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/cmd/sallyport/machine"
	"github.com/sallyport/sallyport/protocol/pki"
)

// Connect renews a certificate that is due while it runs, and goes on with the
// old one where that fails.
func TestRenewInPassing(t *testing.T) {
	public, err1 := pki.LoadOrCreate(t.TempDir(), "public-ca")
	deviceCA, err2 := pki.LoadOrCreate(t.TempDir(), "device-ca")
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	broken, renewed := true, 0
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var in struct{ CSR []byte }
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil || r.URL.Path != "/api/renew" || r.Host != "check.home.test" || len(r.TLS.PeerCertificates) != 1 {
			t.Errorf("%s %s%s: %v", r.Method, r.Host, r.URL, err)
		}
		pub, err := pki.ParseCSR(in.CSR)
		if broken || err != nil {
			http.Error(w, "not now", http.StatusServiceUnavailable)
			return
		}
		cert, err := deviceCA.Issue(pub, pki.Grant{Profile: pki.Device, Name: "nas", NotAfter: time.Now().AddDate(1, 0, 0)})
		if err != nil {
			t.Error(err)
			return
		}
		renewed++
		_ = json.NewEncoder(w).Encode(map[string]any{"name": "nas", "cert": cert.Raw, "ca": [][]byte{deviceCA.Cert().Raw}})
	}))
	key, err := pki.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := public.Issue(key.Public(), pki.Grant{Profile: pki.Server, Name: "home.test", DNSNames: []string{"check.home.test"}, NotAfter: time.Now().Add(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	s.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: key}}, ClientAuth: tls.RequestClientCert}
	s.StartTLS()
	defer s.Close()

	// Certificates begin an hour ago: two thirds of this one's life are over.
	dir := t.TempDir()
	own, err := deviceCA.Issue(key.Public(), pki.Grant{Profile: pki.Device, Name: "nas", NotAfter: time.Now().Add(10 * time.Minute)})
	if err != nil {
		t.Fatal(err)
	}
	keyPEM, err := pki.EncodeKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string]string{
		"nas.key": string(keyPEM), "nas.crt": string(pki.EncodeCert(own)), "root.crt": string(pki.EncodeCert(public.Cert())),
		"device.json": `{"schema":1,"name":"nas","relay":"https://enroll.home.test","address":"127.0.0.1:1"}`,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	open := func() *machine.Device {
		d, err := machine.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	passing := func(address string) string {
		d := open()
		d.Dial(address)
		var errs strings.Builder
		renewInPassing(t.Context(), &errs, d)()
		return errs.String()
	}
	if got := passing(s.Listener.Addr().String()); !strings.HasPrefix(got, "sallyport: warning: the certificate ends 20") || !strings.Contains(got, "was not renewed: ") || strings.Count(got, "\n") != 1 {
		t.Errorf("a failure is told as %q", got)
	}
	if d := open(); !d.Cert.Equal(own) || d.Address() != "127.0.0.1:1" {
		t.Errorf("a renewal that failed changed the certificate, or the address to %s", d.Address())
	}
	broken = false
	for range 2 {
		if got := passing(s.Listener.Addr().String()); got != "" {
			t.Errorf("said %q", got)
		}
	}
	if d := open(); renewed != 1 || d.Cert.Equal(own) || d.Due(time.Now()) || d.Address() != s.Listener.Addr().String() {
		t.Errorf("renewed %d times, due %v, address %s: the one that worked is to be kept", renewed, d.Due(time.Now()), d.Address())
	}
}
