package web

import (
	"bufio"
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"software.sslmate.com/src/go-pkcs12"

	"github.com/sallyport/sallyport/protocol/pki"
)

// scripts copies our modules and a test's into a directory in which node takes
// them for modules.
func scripts(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	sub, err := fs.Sub(files, "assets")
	if err == nil {
		err = os.CopyFS(dir, sub)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "package.json"), []byte(`{"type":"module"}`), 0o600)
	}
	if err == nil {
		err = os.CopyFS(dir, os.DirFS("testdata"))
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestPrimitives(t *testing.T) {
	mustRun(t, "node", filepath.Join(scripts(t), "primitives.mjs"))
}

// TestPKCS12: what the page packs, everybody can open: two kinds of keys, two
// forms of files, three programs that know nothing of each other.
func TestPKCS12(t *testing.T) {
	ca, err := pki.NewAuthority("device", nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{"ec", "rsa"} {
		t.Run(kind, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), tool(t, "node"), filepath.Join(scripts(t), "pkcs12.mjs"), kind)
			cmd.Stderr = os.Stderr
			in, e1 := cmd.StdinPipe()
			out, e2 := cmd.StdoutPipe()
			if e1 != nil || e2 != nil || cmd.Start() != nil {
				t.Fatal("node does not start", e1, e2)
			}
			lines := bufio.NewReader(out)
			var made struct{ CSR, Password string }
			next(t, lines, &made)
			csr := unhex(t, made.CSR)
			pub, err := pki.ParseCSR(csr)
			if err != nil {
				t.Fatal(err)
			}
			cert, err := ca.Issue(pub, pki.Grant{Profile: pki.Device, Name: "anna-phone"})
			if err != nil {
				t.Fatal(err)
			}
			name := "Anna’s phone 日本"
			ask, err := json.Marshal(map[string]any{
				"certs": []string{hex.EncodeToString(cert.Raw), hex.EncodeToString(ca.Cert().Raw)}, "name": name, "password": made.Password,
			})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := in.Write(append(ask, '\n')); err != nil {
				t.Fatal(err)
			}
			if err := in.Close(); err != nil { // node ends with its input
				t.Fatal(err)
			}
			var files struct{ Legacy, Modern string }
			next(t, lines, &files)
			if err := cmd.Wait(); err != nil {
				t.Fatal(err)
			}
			if req, err := x509.ParseCertificateRequest(csr); err != nil || len(req.Subject.Names) != 0 || len(req.Extensions) != 0 {
				t.Errorf("the request says more than its key: %v %v", req.Subject, err)
			}
			for form, text := range map[string]string{"legacy": files.Legacy, "modern": files.Modern} {
				checkPKCS12(t, form, unhex(t, text), made.Password, name, cert, ca.Cert())
			}
		})
	}
}

func next(t *testing.T, lines *bufio.Reader, into any) {
	t.Helper()
	line, err := lines.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, into)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	data, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// checkPKCS12 reads a file with go-pkcs12, OpenSSL and NSS.
func checkPKCS12(t *testing.T, form string, file []byte, password, name string, cert, ca *x509.Certificate) {
	t.Helper()
	key, leaf, chain, err := pkcs12.DecodeChain(file, password)
	if err != nil {
		t.Fatalf("%s: go-pkcs12: %v", form, err)
	}
	if !leaf.Equal(cert) || len(chain) != 1 || !chain[0].Equal(ca) || !samePublic(key, cert) {
		t.Errorf("%s: go-pkcs12 found another key or certificate", form)
	}
	if _, _, _, err := pkcs12.DecodeChain(file, password+"x"); err == nil {
		t.Errorf("%s: another password opens it", form)
	}

	dir := t.TempDir()
	path := filepath.Join(dir, "device.p12")
	if err := os.WriteFile(path, file, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("P12_PASSWORD", password)
	args := []string{"pkcs12", "-in", path, "-passin", "env:P12_PASSWORD", "-nodes", "-info"}
	if form == "legacy" {
		args = append(args, "-legacy")
	}
	said := mustRun(t, "openssl", args...)
	marks := map[string][]string{
		"legacy": {"MAC: sha1, Iteration 2048", "pbeWithSHA1And3-KeyTripleDES-CBC", "salt length: 8"},
		"modern": {"MAC: sha256, Iteration 2048", "PBES2, PBKDF2, AES-256-CBC, Iteration 100000, PRF hmacWithSHA256"},
	}[form]
	for _, want := range append(marks, "BEGIN PRIVATE KEY", "friendlyName: "+name[:4], "localKeyID: ") {
		if !strings.Contains(said, want) {
			t.Errorf("%s: openssl does not say %q", form, want)
		}
	}
	if n := strings.Count(said, "BEGIN CERTIFICATE"); n != 2 {
		t.Errorf("%s: openssl finds %d certificates", form, n)
	}

	db := "sql:" + dir
	mustRun(t, "certutil", "-d", db, "-N", "--empty-password")
	mustRun(t, "pk12util", "-d", db, "-i", path, "-W", password)
	if said := mustRun(t, "certutil", "-d", db, "-K"); !strings.Contains(said, name) {
		t.Errorf("%s: NSS has no key of this name:\n%s", form, said)
	}
	if out, err := run(t, "pk12util", "-d", db, "-i", path, "-W", "wrong"); err == nil {
		t.Errorf("%s: NSS takes a wrong password: %s", form, out)
	}
}

func samePublic(key any, cert *x509.Certificate) bool {
	signer, ok := key.(crypto.Signer)
	if !ok {
		return false
	}
	switch signer.(type) {
	case *ecdsa.PrivateKey, *rsa.PrivateKey:
	default:
		return false
	}
	der, err := x509.MarshalPKIXPublicKey(signer.Public())
	return err == nil && bytes.Equal(der, cert.RawSubjectPublicKeyInfo)
}
