package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	neturl "net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/sallyport/sallyport/cmd/sallyport/machine"
	"github.com/sallyport/sallyport/protocol/pki"
	"github.com/sallyport/sallyport/relay/admin"
	"github.com/sallyport/sallyport/relay/devices"
)

// invite makes a one-time link, as `device add NAME` does.
func (w *demoWorld) invite(ctx context.Context, name string, ttl time.Duration) (link string, err error) {
	inv, err := w.admin.Invite(ctx, admin.InviteRequest{Name: name, TTL: int64(ttl / time.Second)})
	return inv.Link, err
}

// enrol makes a directory of this machine a device with a link, as `device
// enroll --code-file F --out DIR` does.
func (w *demoWorld) enrol(ctx context.Context, link, dir string) (*machine.Device, error) {
	base, code, err := machine.ParseRelay(link)
	if err != nil {
		return nil, err
	}
	root, err := os.ReadFile(w.rootFile())
	if err != nil {
		return nil, err
	}
	return machine.Enrol(ctx, machine.Enrolment{
		Dir: filepath.Join(w.dir, dir), Relay: base, Address: w.addr, Code: code, Root: root,
	})
}

// rootFile is where roots puts the internal CA's root.
func (w *demoWorld) rootFile() string { return filepath.Join(w.dir, "ca.pem") }

// roots writes the internal CA's root for curl and returns it.
func (w *demoWorld) roots(ctx context.Context) (*x509.CertPool, error) {
	ca, err := w.admin.CA(ctx)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(ca.Server)) {
		return nil, errors.New("the relay's root is not PEM")
	}
	return pool, pki.WriteFile(w.rootFile(), []byte(ca.Server), 0o644)
}

// addP12 is `device add NAME --p12 FILE`.
func (w *demoWorld) addP12(ctx context.Context, name string) (password string, err error) {
	key, err := pki.NewKey()
	if err != nil {
		return "", err
	}
	csr, err := pki.NewCSR(key)
	if err != nil {
		return "", err
	}
	issued, err := w.admin.AddDevice(ctx, admin.DeviceRequest{Name: name, CSR: csr})
	if err != nil {
		return "", err
	}
	cert, err1 := x509.ParseCertificate(issued.Cert)
	ca, err2 := x509.ParseCertificate(issued.CA)
	if err := errors.Join(err1, err2); err != nil {
		return "", err
	}
	password = devices.GeneratePassword()
	p12, err := devices.PKCS12(key, cert, ca, password)
	if err != nil {
		return "", err
	}
	return password, pki.WriteFile(filepath.Join(w.dir, name+".p12"), p12, 0o600)
}

func stepDevice(ctx context.Context, s *story) (string, error) {
	link, err := s.w.invite(ctx, "phone", 0)
	if err != nil {
		return "", err
	}
	d, err := s.w.enrol(ctx, link, "phone")
	if err != nil {
		return "", err
	}
	s.device, s.phone = d, d.TLS()
	if _, err := s.w.enrol(ctx, link, "thief"); err == nil {
		return "", errors.New("the link worked twice")
	} else if no, ok := errors.AsType[*machine.Refusal](err); !ok || no.Status != http.StatusForbidden {
		return "", fmt.Errorf("the second use of the link: %w", err)
	}
	return "its key was made on it, and the link does not work twice", nil
}

// stepToken lets a TV in that cannot hold a certificate.
func stepToken(ctx context.Context, s *story) (string, error) {
	t, err := s.w.admin.AddTokenDevice(ctx, admin.TokenDeviceRequest{Name: "tv", Host: "web"})
	if err != nil {
		return "", err
	}
	for _, c := range []struct {
		path   string
		status int
		greets bool
	}{{t.Secret + "/", http.StatusOK, true}, {"", http.StatusNotFound, false}, {t.Secret + "x/", http.StatusNotFound, false}} {
		status, body, err := s.get(ctx, t.URL+c.path, nil)
		if err != nil {
			return "", err
		}
		if status != c.status || strings.Contains(body, "<b>tv</b>") != c.greets {
			return "", fmt.Errorf("status %d, want %d", status, c.status)
		}
	}
	return "with the secret the home greets \"tv\", without it 404", nil
}

// get fetches a page with a certificate, or without one.
func (s *story) get(ctx context.Context, url string, cert *tls.Certificate) (status int, body string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, "", err
	}
	res, err := s.w.client(s.roots, cert).Do(req)
	if u, ok := errors.AsType[*neturl.Error](err); ok {
		return 0, "", u.Err // without the URL, which may hold a secret
	} else if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	return res.StatusCode, string(raw), err
}
