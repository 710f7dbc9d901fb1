package devices

import (
	"regexp"
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
