package scep

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/protocol/pki"
)

// strongSwan's pki is an independent client of SCEP. Version 5.9.8 takes the
// word AES of GetCACaps for no AES, so it is told to use triple DES.

// keyFile makes an RSA key and returns where it lies.
func (w *world) keyFile(name string) string {
	w.t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		w.t.Fatal(err)
	}
	pem, err := pki.EncodeKey(key)
	if err != nil {
		w.t.Fatal(err)
	}
	return w.file(name, pem)
}

func (w *world) file(name string, data []byte) string {
	w.t.Helper()
	path := w.path(name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		w.t.Fatal(err)
	}
	return path
}

// fetchCA lets pki fetch the certificates, and returns the files.
func (w *world) fetchCA() (ca, ra string) {
	w.t.Helper()
	ca, ra = w.path("ca.pem"), w.path("ra.pem")
	out, err := tool(w.t, "pki", "--scepca", "--url", w.url, "--caout", ca, "--raout", ra, "--outform", "pem", "--force").CombinedOutput()
	if err != nil {
		w.t.Fatalf("pki --scepca: %v\n%s", err, out)
	}
	return ca, ra
}

// enrol runs pki --scep and returns the certificate that it prints.
func (w *world) enrol(args ...string) (*x509.Certificate, string, error) {
	w.t.Helper()
	ca, ra := w.path("ca.pem"), w.path("ra.pem")
	cmd := tool(w.t, "pki", append([]string{
		"--scep", "--url", w.url, "--cipher", "des3", "--outform", "pem",
		"--cacert-enc", ra, "--cacert-sig", ra, "--cacert", ca,
	}, args...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return nil, stderr.String(), err
	}
	cert, err := pki.DecodeCert(stdout.Bytes())
	if err != nil {
		w.t.Fatalf("%v\n%s", err, stderr.Bytes())
	}
	return cert, stderr.String(), nil
}

func TestStrongSwanEnrols(t *testing.T) {
	w := newWorld(t)
	w.fetchCA()
	w.codes["code-1"] = "issue"
	cert, words, err := w.enrol("--in", w.keyFile("k.pem"), "--dn", "CN=admin, O=somebody else", "--password", "code-1")
	if err != nil {
		t.Fatalf("%v\n%s", err, words)
	}
	if err := cert.CheckSignatureFrom(w.ca.Cert()); err != nil {
		t.Error(err)
	}
	if got := cert.Subject.String(); got != "CN=anna-phone" {
		t.Errorf("subject %s came from the request", got)
	}
	// Another key with the same code gets nothing.
	if _, words, err := w.enrol("--in", w.keyFile("k2.pem"), "--dn", "CN=x", "--password", "code-1"); err == nil {
		t.Error("the code worked twice")
	} else if !strings.Contains(words, "badRequest") {
		t.Errorf("pki was not told badRequest:\n%s", words)
	}
}

func TestStrongSwanWaitsForApproval(t *testing.T) {
	w := newWorld(t)
	w.fetchCA()
	for _, approve := range []bool{true, false} {
		w.codes["code-1"] = "queue"
		key := w.keyFile("k.pem")
		go func() {
			for w.waiting() == 0 && t.Context().Err() == nil {
				<-time.After(10 * time.Millisecond) // another process's step
			}
			w.decide(approve)
		}()
		cert, words, err := w.enrol("--in", key, "--dn", "CN=x", "--password", "code-1", "--interval", "1", "--maxpolltime", "30")
		if (err == nil) != approve {
			t.Errorf("approved %v: %v\n%s", approve, err, words)
		}
		if approve && (cert == nil || cert.CheckSignatureFrom(w.ca.Cert()) != nil) {
			t.Error("the certificate is not of the CA")
		}
		if !strings.Contains(words, "SCEP request pending") {
			t.Errorf("pki did not have to wait:\n%s", words)
		}
	}
	if n := w.applications(); n != 2 {
		t.Errorf("the desk was applied to %d times: polls must not apply", n)
	}
}

func (d *desk) waiting() (n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, r := range d.requests {
		if r.state == "pending" {
			n++
		}
	}
	return n
}

func TestStrongSwanRenews(t *testing.T) {
	w := newWorld(t)
	w.fetchCA()
	w.codes["code-1"] = "issue"
	oldKey := w.keyFile("old.pem")
	old, words, err := w.enrol("--in", oldKey, "--dn", "CN=x", "--password", "code-1")
	if err != nil {
		t.Fatalf("%v\n%s", err, words)
	}
	oldCert := w.file("old.crt", pki.EncodeCert(old))
	renewed, words, err := w.enrol("--in", w.keyFile("new.pem"), "--dn", "CN=x", "--cert", oldCert, "--key", oldKey)
	if err != nil {
		t.Fatalf("%v\n%s", err, words)
	}
	if w.renewed != 1 || renewed.Equal(old) {
		t.Errorf("renewed %d times", w.renewed)
	}
	if n := w.applications(); n != 1 {
		t.Errorf("the desk was applied to %d times: a renewal needs no code", n)
	}
}
