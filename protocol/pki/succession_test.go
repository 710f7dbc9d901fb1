package pki

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"testing"
)

func TestSuccessor(t *testing.T) {
	old, next, other := newAuthority(t, day(2027)), newAuthority(t, day(2036)), newAuthority(t, day(2036))
	sig, err := old.SignSuccessor(next.Cert())
	if err != nil {
		t.Fatal(err)
	}
	if err := VerifySuccessor(old.Cert(), next.Cert(), sig); err != nil {
		t.Error(err)
	}
	byOther, err := other.SignSuccessor(next.Cert())
	if err != nil {
		t.Fatal(err)
	}
	list, err := old.sign(listContext, successor(old.cert, next.cert)...)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		old, next *x509.Certificate
		sig       []byte
	}{
		"another's word":      {old.Cert(), next.Cert(), byOther},
		"of another CA":       {other.Cert(), next.Cert(), sig},
		"for another CA":      {old.Cert(), other.Cert(), sig},
		"the way back":        {next.Cert(), old.Cert(), sig},
		"no signature":        {old.Cert(), next.Cert(), nil},
		"cut off":             {old.Cert(), next.Cert(), sig[:len(sig)-1]},
		"of a list":           {old.Cert(), next.Cert(), list},
		"itself":              {old.Cert(), old.Cert(), sig},
		"no old one":          {nil, next.Cert(), sig},
		"no new one":          {old.Cert(), nil, sig},
		"of a changed old CA": {resigned(t, old), next.Cert(), sig},
	} {
		if VerifySuccessor(c.old, c.next, c.sig) == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

// resigned is the certificate of a CA made once more, with the same key and name.
func resigned(t *testing.T, a *Authority) *x509.Certificate {
	t.Helper()
	tmpl := *a.cert
	tmpl.NotAfter = tmpl.NotAfter.AddDate(1, 0, 0)
	der, err := x509.CreateCertificate(rand.Reader, &tmpl, &tmpl, a.key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ParseCA(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// TestSuccessorIsACA: nothing that a CA issued can follow it.
func TestSuccessorIsACA(t *testing.T) {
	old := newAuthority(t, day(2027))
	device, err := old.Issue(newPublic(t), Grant{Profile: Device, Name: "anna-phone"})
	if err != nil {
		t.Fatal(err)
	}
	forged := *device
	forged.IsCA, forged.KeyUsage = true, x509.KeyUsageCertSign
	for name, next := range map[string]*x509.Certificate{"device": device, "not signed by itself": &forged} {
		if _, err := old.SignSuccessor(next); err == nil {
			t.Errorf("%s: signed", name)
		}
		sig, err := old.sign(successorContext, successor(old.cert, next)...)
		if err != nil {
			t.Fatal(err)
		}
		if VerifySuccessor(old.Cert(), next, sig) == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

func TestParseCA(t *testing.T) {
	a := newAuthority(t, day(2027))
	cert, err := ParseCA(a.Cert().Raw)
	if err != nil || !cert.Equal(a.Cert()) {
		t.Errorf("a CA: %v", err)
	}
	leaf, err := a.Issue(newPublic(t), Grant{Profile: Device, Name: "anna-phone"})
	if err != nil {
		t.Fatal(err)
	}
	changed := bytes.Clone(a.Cert().Raw)
	changed[len(changed)-1] ^= 1
	for name, der := range map[string][]byte{
		"nothing": nil, "a device": leaf.Raw, "a changed CA": changed, "cut off": a.Cert().Raw[:100],
		"with a tail": append(bytes.Clone(a.Cert().Raw), 0), "PEM": EncodeCert(a.Cert()), "too long": make([]byte, maxEncoded+1),
	} {
		if _, err := ParseCA(der); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}
