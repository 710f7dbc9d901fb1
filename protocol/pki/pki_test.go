package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"
)

func day(y int) time.Time { return time.Date(y, 6, 1, 12, 0, 0, 0, time.UTC) }

func newAuthority(t testing.TB, now time.Time) *Authority {
	t.Helper()
	a, err := NewAuthority("device", func() time.Time { return now })
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func newPublic(t testing.TB) crypto.PublicKey {
	t.Helper()
	key, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return key.Public()
}

func TestAuthorityCertificate(t *testing.T) {
	a, b := newAuthority(t, day(2027)), newAuthority(t, day(2027))
	c := a.Cert()
	if cn := c.Subject.CommonName; !strings.HasPrefix(cn, "Sallyport device CA ") || cn == b.Cert().Subject.CommonName {
		t.Errorf("common name %q, want a random one that says what it is", cn)
	}
	if names := c.Subject.Names; len(names) != 1 || len(c.DNSNames)+len(c.EmailAddresses)+len(c.URIs)+len(c.IPAddresses) != 0 {
		t.Errorf("the CA names more than its common name: %v", names)
	}
	if !c.IsCA || c.MaxPathLen != 0 || !c.MaxPathLenZero || c.KeyUsage != x509.KeyUsageCertSign|x509.KeyUsageCRLSign {
		t.Error("the CA is not a single-level CA, or may do more than sign")
	}
	if k, ok := c.PublicKey.(*ecdsa.PublicKey); !ok || k.Curve != elliptic.P256() {
		t.Errorf("the CA's key is a %T, want P-256", c.PublicKey)
	}
	if years := c.NotAfter.Year() - day(2027).Year(); years != 10 {
		t.Errorf("the CA lives %d years, want 10", years)
	}
	if a.Fingerprint() == b.Fingerprint() {
		t.Error("two CAs have one fingerprint")
	}
}

// TestProfilesAreApart: a device's certificate is no server's and no CA's, and
// the other way round.
func TestProfilesAreApart(t *testing.T) {
	now := day(2027)
	a := newAuthority(t, now)
	for _, test := range []struct {
		profile Profile
		name    string
		good    x509.ExtKeyUsage
		bad     x509.ExtKeyUsage
	}{
		{Device, "anna-phone", x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		{Agent, strings.Repeat("a", 52), x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		{Server, "ha.example.org", x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	} {
		cert, err := a.Issue(newPublic(t), Grant{Profile: test.profile, Name: test.name})
		if err != nil {
			t.Fatal(err)
		}
		verify := func(usage x509.ExtKeyUsage) error {
			_, err := cert.Verify(x509.VerifyOptions{Roots: a.Pool(), CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage}})
			return err
		}
		if err := verify(test.good); err != nil {
			t.Errorf("profile %d does not verify for its own use: %v", test.profile, err)
		}
		if verify(test.bad) == nil {
			t.Errorf("profile %d verifies for a use that it is not for", test.profile)
		}
		if cert.IsCA || !cert.BasicConstraintsValid || cert.KeyUsage != x509.KeyUsageDigitalSignature || len(cert.ExtKeyUsage) != 1 {
			t.Errorf("profile %d: CA %v, usage %v %v", test.profile, cert.IsCA, cert.KeyUsage, cert.ExtKeyUsage)
		}
		if cert.Subject.CommonName != test.name {
			t.Errorf("common name %q", cert.Subject.CommonName)
		}
		if test.profile != Server && len(cert.DNSNames) != 0 {
			t.Errorf("a client certificate names hosts: %v", cert.DNSNames)
		}
	}
}

func TestServerNames(t *testing.T) {
	a := newAuthority(t, day(2027))
	cert, err := a.Issue(newPublic(t), Grant{Profile: Server, Name: "example.org", DNSNames: []string{"*.example.org"}})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(cert.DNSNames, []string{"example.org", "*.example.org"}) {
		t.Errorf("names %v", cert.DNSNames)
	}
	long := strings.Repeat("a", 60) + ".example.org"
	cert, err = a.Issue(newPublic(t), Grant{Profile: Server, Name: long})
	if err != nil || cert.Subject.CommonName != "" || !slices.Equal(cert.DNSNames, []string{long}) {
		t.Errorf("a name too long for the subject: %v, %v", cert, err)
	}
	for _, name := range []string{"", "Example.org", "example.org.", "*", "a.*.org", "127.0.0.1", "ex ample.org", "ä.org", "example.org:443"} {
		if _, err := a.Issue(newPublic(t), Grant{Profile: Server, Name: name}); err == nil {
			t.Errorf("a server certificate was issued for %q", name)
		}
		if _, err := a.Issue(newPublic(t), Grant{Profile: Server, Name: "example.org", DNSNames: []string{name}}); err == nil {
			t.Errorf("a server certificate was issued for the further name %q", name)
		}
	}
}

func TestIssueRefusesGrants(t *testing.T) {
	a := newAuthority(t, day(2027))
	for name, g := range map[string]Grant{
		"no profile":       {Name: "x"},
		"unknown profile":  {Profile: 9, Name: "x"},
		"no name":          {Profile: Device},
		"long name":        {Profile: Device, Name: strings.Repeat("x", 65)},
		"control letters":  {Profile: Device, Name: "a\nb"},
		"broken UTF-8":     {Profile: Agent, Name: "a\xff"},
		"named registrar":  {Profile: Registrar, Name: "x"},
		"registrar's host": {Profile: Registrar, DNSNames: []string{"ha.example.org"}},
		"registrar P-256":  {Profile: Registrar},
		"agent with list":  {Profile: Agent, Name: "x", CRLURL: "http://example.org/crl"},
		"server with list": {Profile: Server, Name: "example.org", CRLURL: "http://example.org/crl"},
		"list in a file":   {Profile: Device, Name: "x", CRLURL: "file:///etc/passwd"},
		"list in LDAP":     {Profile: Device, Name: "x", CRLURL: "ldap://example.org/crl"},
		"list nowhere":     {Profile: Device, Name: "x", CRLURL: "http:///crl"},
		"list for a user":  {Profile: Device, Name: "x", CRLURL: "http://user:secret@example.org/crl"},
		"list with query":  {Profile: Device, Name: "x", CRLURL: "http://example.org/crl?x=1"},
		"relative list":    {Profile: Device, Name: "x", CRLURL: "/crl"},
		"device with host": {Profile: Device, Name: "x", DNSNames: []string{"ha.example.org"}},
		"agent with host":  {Profile: Agent, Name: "x", DNSNames: []string{"ha.example.org"}},
		"already over":     {Profile: Device, Name: "x", NotAfter: day(2026)},
		"end before begin": {Profile: Device, Name: "x", NotBefore: day(2029), NotAfter: day(2028)},
	} {
		if _, err := a.Issue(newPublic(t), g); err == nil {
			t.Errorf("%s: a certificate was issued", name)
		}
	}
}

func TestValidity(t *testing.T) {
	now := day(2027)
	a := newAuthority(t, now)
	issue := func(g Grant) *x509.Certificate {
		t.Helper()
		g.Profile, g.Name = Device, "x"
		cert, err := a.Issue(newPublic(t), g)
		if err != nil {
			t.Fatal(err)
		}
		return cert
	}
	c := issue(Grant{})
	if !c.NotBefore.Equal(now.Add(-time.Hour)) || !c.NotAfter.Equal(now.Add(365*24*time.Hour)) {
		t.Errorf("default dates %v – %v", c.NotBefore, c.NotAfter)
	}
	c = issue(Grant{NotBefore: day(2000), NotAfter: day(2999)})
	if !c.NotBefore.Equal(a.Cert().NotBefore) || !c.NotAfter.Equal(a.Cert().NotAfter) {
		t.Errorf("dates %v – %v leave the CA's own", c.NotBefore, c.NotAfter)
	}
	end := now.Add(90 * time.Minute)
	if c = issue(Grant{NotAfter: end}); !c.NotAfter.Equal(end) {
		t.Errorf("end %v, want %v", c.NotAfter, end)
	}
}

func TestSerials(t *testing.T) {
	a := newAuthority(t, day(2027))
	seen, long := map[string]bool{}, 0
	for range 16 {
		cert, err := a.Issue(newPublic(t), Grant{Profile: Device, Name: "x"})
		if err != nil {
			t.Fatal(err)
		}
		if seen[cert.SerialNumber.String()] || cert.SerialNumber.Sign() <= 0 {
			t.Fatal("a serial number came twice, or is not positive")
		}
		seen[cert.SerialNumber.String()] = true
		long = max(long, cert.SerialNumber.BitLen())
	}
	if long < 120 || long > 128 {
		t.Errorf("the longest of 16 serial numbers has %d bits, want about 128", long)
	}
}

// TestClock: under a clock that was never set nothing is issued or made.
func TestClock(t *testing.T) {
	boot := time.Unix(0, 0)
	if _, err := NewAuthority("device", func() time.Time { return boot }); err == nil || !strings.Contains(err.Error(), "clock") {
		t.Errorf("a CA was made in 1970: %v", err)
	}
	now := day(2027)
	a := newAuthority(t, now)
	a.now = func() time.Time { return Floor().Add(-time.Second) }
	_, err := a.Issue(newPublic(t), Grant{Profile: Device, Name: "x"})
	if err == nil || !strings.Contains(err.Error(), "clock") || !strings.Contains(err.Error(), "timedatectl") {
		t.Errorf("a certificate was issued before the build floor: %v", err)
	}
}

func weakKeys(t testing.TB) map[string]crypto.PublicKey {
	t.Helper()
	p224, _ := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	p521, _ := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	ed, _, _ := ed25519.GenerateKey(rand.Reader)
	modulus := func(bits uint) *big.Int {
		n := new(big.Int).Lsh(big.NewInt(1), bits-1)
		return n.Add(n, big.NewInt(12345))
	}
	return map[string]crypto.PublicKey{
		"P-224":          p224.Public(),
		"P-521":          p521.Public(),
		"Ed25519":        ed,
		"RSA 1024":       &rsa.PublicKey{N: modulus(1024), E: 65537},
		"RSA 2047":       &rsa.PublicKey{N: modulus(2047), E: 65537},
		"RSA 16384":      &rsa.PublicKey{N: modulus(16384), E: 65537},
		"RSA exponent 3": &rsa.PublicKey{N: modulus(2048), E: 3},
		"RSA empty":      &rsa.PublicKey{},
		"RSA nil":        (*rsa.PublicKey)(nil),
		"ECDSA nil":      (*ecdsa.PublicKey)(nil),
		//lint:ignore SA1019 no decoder makes such a key
		"ECDSA off curve":  &ecdsa.PublicKey{Curve: elliptic.P256(), X: big.NewInt(1), Y: big.NewInt(1)},
		"nothing":          nil,
		"a private key":    p224,
		"a foreign object": "key",
	}
}

func TestIssueRefusesKeys(t *testing.T) {
	a := newAuthority(t, day(2027))
	for name, pub := range weakKeys(t) {
		if _, err := a.Issue(pub, Grant{Profile: Device, Name: "x"}); err == nil {
			t.Errorf("%s: a certificate was issued", name)
		}
	}
	if _, err := a.Issue(a.Cert().PublicKey, Grant{Profile: Device, Name: "x"}); err == nil || !strings.Contains(err.Error(), "CA itself") {
		t.Errorf("the CA certified its own key as a device: %v", err)
	}
}

func TestIssueTakesGoodKeys(t *testing.T) {
	a := newAuthority(t, day(2027))
	p384, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	rsa2048, _ := rsa.GenerateKey(rand.Reader, 2048)
	for _, pub := range []crypto.PublicKey{newPublic(t), p384.Public(), rsa2048.Public()} {
		if _, err := a.Issue(pub, Grant{Profile: Device, Name: "x"}); err != nil {
			t.Errorf("%T: %v", pub, err)
		}
	}
}

func TestCSR(t *testing.T) {
	key, _ := NewKey()
	der, err := NewCSR(key)
	if err != nil {
		t.Fatal(err)
	}
	for _, form := range [][]byte{der, EncodeCSR(der)} {
		form, err := DecodeCSR(form)
		if err != nil {
			t.Fatal(err)
		}
		pub, err := ParseCSR(form)
		if err != nil || !key.PublicKey.Equal(pub) {
			t.Errorf("ParseCSR = %v, %v", pub, err)
		}
	}
	broken := slices.Clone(der)
	broken[len(broken)-1] ^= 1 // in the signature
	for name, data := range map[string][]byte{
		"empty":            {},
		"broken signature": broken,
		"cut":              der[:len(der)-5],
		"trailing bytes":   append(slices.Clone(der), 0),
		"too large":        make([]byte, maxEncoded+1),
	} {
		if _, err := ParseCSR(data); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	t.Setenv("GODEBUG", "rsa1024min=0") // else Go does not even make one
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	der, err = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, weak)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ParseCSR(der); err == nil || !strings.Contains(err.Error(), "1024 bits is too weak") {
		t.Errorf("a request with a 1024-bit RSA key: %v", err)
	}
}

// TestCSRWishesAreDropped: a request that asks to be a CA, a server and the
// owner's domain gets what the grant says (DESIGN §6.12).
func TestCSRWishesAreDropped(t *testing.T) {
	key, _ := NewKey()
	caWish := pkix.Extension{Id: []int{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 3, 1, 1, 0xff}}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject:         pkix.Name{CommonName: "admin", Organization: []string{"Evil"}},
		DNSNames:        []string{"example.org"},
		EmailAddresses:  []string{"a@example.org"},
		ExtraExtensions: []pkix.Extension{caWish},
	}, key)
	if err != nil {
		t.Fatal(err)
	}
	pub, err := ParseCSR(der)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := newAuthority(t, day(2027)).Issue(pub, Grant{Profile: Device, Name: "anna-phone"})
	if err != nil {
		t.Fatal(err)
	}
	if got := cert.Subject.String(); got != "CN=anna-phone" || cert.IsCA || len(cert.DNSNames)+len(cert.EmailAddresses) != 0 {
		t.Errorf("the request's wishes came through: %s, CA %v, %v %v", got, cert.IsCA, cert.DNSNames, cert.EmailAddresses)
	}
}

func ExampleAuthority_Issue() {
	ca, err := NewAuthority("device", nil)
	if err != nil {
		panic(err)
	}
	key, err := NewKey() // stays on the device
	if err != nil {
		panic(err)
	}
	request, err := NewCSR(key) // travels
	if err != nil {
		panic(err)
	}
	pub, err := ParseCSR(request)
	if err != nil {
		panic(err)
	}
	cert, err := ca.Issue(pub, Grant{Profile: Device, Name: "anna-phone", NotAfter: time.Now().AddDate(1, 0, 0)})
	fmt.Println(cert.Subject, err)
	// Output: CN=anna-phone <nil>
}
