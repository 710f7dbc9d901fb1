package devices

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"software.sslmate.com/src/go-pkcs12"

	"github.com/sallyport/sallyport/protocol/pki"
)

func TestPKCS12(t *testing.T) {
	ca := newCA(t)
	key, _ := pki.NewKey()
	cert, err := ca.Issue(key.Public(), pki.Grant{Profile: pki.Device, Name: "anna-phone"})
	if err != nil {
		t.Fatal(err)
	}
	password := GeneratePassword()
	data, err := PKCS12(key, cert, ca.Cert(), password)
	if err != nil {
		t.Fatal(err)
	}
	gotKey, gotCert, chain, err := pkcs12.DecodeChain(data, password)
	if err != nil {
		t.Fatal(err)
	}
	if !key.Equal(gotKey) || !cert.Equal(gotCert) || len(chain) != 1 || !chain[0].Equal(ca.Cert()) {
		t.Error("the bundle holds something else than was put in")
	}
	if _, _, _, err := pkcs12.DecodeChain(data, password+"x"); err == nil {
		t.Error("a wrong password opens the bundle")
	}
	other, _ := pki.NewKey()
	if _, err := PKCS12(other, cert, ca.Cert(), password); err == nil {
		t.Error("a foreign key was packed")
	}
	if _, err := PKCS12(key, cert, ca.Cert(), ""); err == nil {
		t.Error("a bundle without a password was made")
	}
	if _, err := PKCS12("key", cert, nil, password); err == nil {
		t.Error("something that is no key was packed")
	}
}

func TestGeneratePassword(t *testing.T) {
	shape := regexp.MustCompile(`^[a-km-np-z2-9]{4}(-[a-km-np-z2-9]{4}){4}$`)
	seen, letters := map[string]bool{}, map[rune]bool{}
	for range 200 {
		p := GeneratePassword()
		if !shape.MatchString(p) || seen[p] {
			t.Fatalf("password %q", p)
		}
		seen[p] = true
		for _, r := range p {
			letters[r] = true
		}
	}
	if len(letters) != len(passwordLetters)+1 {
		t.Errorf("only %d different letters in 200 passwords", len(letters)-1)
	}
}

// What the relay packs is read by programs that are not ours: both forms, with
// both kinds of key.
func TestPKCS12IsRead(t *testing.T) {
	ca := newCA(t)
	ec, err := pki.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for name, key := range map[string]crypto.Signer{"P-256": ec, "RSA": rsaKey} {
		cert, err := ca.Issue(key.Public(), pki.Grant{Profile: pki.Device, Name: "anna-phone"})
		if err != nil {
			t.Fatal(err)
		}
		for form, pack := range map[string]func(crypto.PrivateKey, *x509.Certificate, *x509.Certificate, string) ([]byte, error){
			"legacy": PKCS12, "modern": PKCS12Modern,
		} {
			t.Run(name+" "+form, func(t *testing.T) {
				password := GeneratePassword()
				data, err := pack(key, cert, ca.Cert(), password)
				if err != nil {
					t.Fatal(err)
				}
				if got, _, _, err := pkcs12.DecodeChain(data, password); err != nil || !key.(interface{ Equal(crypto.PrivateKey) bool }).Equal(got) {
					t.Errorf("go-pkcs12: %v", err)
				}
				file := filepath.Join(t.TempDir(), "anna.p12")
				if err := os.WriteFile(file, data, 0o600); err != nil {
					t.Fatal(err)
				}
				args := []string{"pkcs12", "-in", file, "-passin", "pass:" + password, "-nodes"}
				if form == "legacy" {
					args = append(args, "-legacy")
				}
				if out := tool(t, "openssl", args...); !strings.Contains(out, "PRIVATE KEY") || !strings.Contains(out, "anna-phone") {
					t.Errorf("openssl reads %s", out)
				}
				if out := tool(t, "pk12util", "-l", file, "-W", password); !strings.Contains(out, "anna-phone") {
					t.Errorf("pk12util reads %s", out)
				}
				db := "sql:" + t.TempDir()
				tool(t, "certutil", "-d", db, "-N", "--empty-password")
				tool(t, "pk12util", "-d", db, "-i", file, "-W", password)
			})
		}
	}
}

// tool runs a program that must succeed. Without it the test is skipped, but
// fails in CI.
func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
	return string(out)
}
