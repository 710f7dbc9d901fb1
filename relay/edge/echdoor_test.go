package edge

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/sallyport/sallyport/protocol/door"
	"github.com/sallyport/sallyport/protocol/pki"
)

// The door asks for the device's certificate inside the encryption: nobody on
// the way sees the host, nor the device.
func TestECHThroughDoor(t *testing.T) {
	f := newFrontDoor(t)
	cert := selfSigned(t, "secret.example.org")
	devices, device := deviceCert(t)
	site := &door.Site{
		Host: "secret.example.org", Policy: "1", Mode: door.Require,
		Certificate: func(string) (*tls.Certificate, error) { return &cert, nil },
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			v, _ := door.VisitorFrom(r.Context())
			io.WriteString(w, v.Host+" "+v.Device.Name)
		}),
	}
	d, err := door.New(door.Config{
		Lookup:    func(name string) (*door.Site, bool) { return site, name == site.Host },
		ClientCAs: devices,
		Check: func(*x509.Certificate, string, time.Time) (door.Device, string) {
			return door.Device{ID: "1", Name: "phone"}, ""
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	addr := serve(t, &Server{ECH: f, Router: routed(&Snapshot{Hosts: hosts(t, map[string]Target{
		"secret.example.org": WithECH(Named("terminate", TargetFunc(func(ctx context.Context, c *Conn) { d.ServeConn(ctx, c) }))),
	})})})
	for _, certificates := range [][]tls.Certificate{{device}, nil} {
		transport := &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{
			ServerName: "secret.example.org", RootCAs: trust(t, cert), EncryptedClientHelloConfigList: f.list(), Certificates: certificates,
		}}
		request, _ := http.NewRequest("GET", "https://"+addr+"/", nil)
		request.Host = "secret.example.org"
		client := &http.Client{Transport: transport, Timeout: 10 * time.Second}
		resp, err := client.Do(request)
		if certificates == nil {
			if err == nil {
				t.Errorf("without a certificate: %s", resp.Status)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		transport.CloseIdleConnections()
		if string(body) != "secret.example.org phone" || resp.ProtoMajor != 2 || !resp.TLS.ECHAccepted {
			t.Errorf("%q over %s", body, resp.Proto)
		}
	}
}

// deviceCert is a device's certificate and the CA that issued it.
func deviceCert(t *testing.T) (*x509.CertPool, tls.Certificate) {
	t.Helper()
	ca, err := pki.NewAuthority("devices", time.Now)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := ca.Issue(key.Public(), pki.Grant{Profile: pki.Device, Name: "phone"})
	if err != nil {
		t.Fatal(err)
	}
	return ca.Pool(), tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key}
}
