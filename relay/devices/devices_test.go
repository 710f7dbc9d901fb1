package devices

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sallyport/sallyport/protocol/pki"
	"github.com/sallyport/sallyport/relay/store/memstore"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var today = time.Date(2027, 3, 1, 12, 0, 0, 0, time.UTC)

func clock() time.Time { return today }

func newCA(t testing.TB) *pki.Authority {
	t.Helper()
	ca, err := pki.NewAuthority("device", clock)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// revocations collects what OnRevoke is told.
type revocations struct {
	mu  sync.Mutex
	ids []string
}

func (r *revocations) add(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ids = append(r.ids, id)
}

func (r *revocations) count(id string) (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, got := range r.ids {
		if got == id {
			n++
		}
	}
	return n
}

// must is for what cannot fail in a test that is right.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// A testClock is the clock of a test that moves it.
type testClock struct{ now atomic.Int64 }

func newClock() *testClock {
	c := &testClock{}
	c.set(today)
	return c
}

func (c *testClock) set(t time.Time)       { c.now.Store(t.Unix()) }
func (c *testClock) time() time.Time       { return time.Unix(c.now.Load(), 0).UTC() }
func (c *testClock) skip(by time.Duration) { c.set(c.time().Add(by)) }

// configAt is config with a clock, for the CA too.
func configAt(t testing.TB, c *testClock) Config {
	t.Helper()
	ca, err := pki.NewAuthority("device", c.time)
	if err != nil {
		t.Fatal(err)
	}
	return Config{Store: memstore.New(), CA: ca, Domain: "example.org", Now: c.time}
}

func config(t testing.TB) Config {
	return Config{Store: memstore.New(), CA: newCA(t), Domain: "example.org", Now: clock}
}

func open(t testing.TB, cfg Config) *Devices {
	t.Helper()
	d, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func newPublic(t testing.TB) crypto.PublicKey {
	t.Helper()
	key, err := pki.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return key.Public()
}

func add(t testing.TB, d *Devices, name string, hosts ...string) (Device, *x509.Certificate) {
	t.Helper()
	dev, cert, err := d.Add(t.Context(), Grant{Name: name, Key: newPublic(t), Hosts: hosts})
	if err != nil {
		t.Fatal(err)
	}
	return dev, cert
}

func check(t testing.TB, d *Devices, leaf *x509.Certificate, host string, now time.Time, want Denial) {
	t.Helper()
	if _, got := d.Check(leaf, host, now); got != want {
		t.Errorf("Check at %q on %s: %q, want %q", host, now.Format(time.DateOnly), got, want)
	}
}

func TestAddAndCheck(t *testing.T) {
	d := open(t, config(t))
	pub := newPublic(t)
	dev, cert, err := d.Add(t.Context(), Grant{Name: "anna-phone", Key: pub})
	if err != nil {
		t.Fatal(err)
	}
	if dev.ID != deviceID(cert) || len(dev.ID) != 64 || dev.Serial != cert.SerialNumber.Text(16) || dev.Name != "anna-phone" ||
		dev.Kind != KindCertificate || !dev.Created.Equal(today) || !dev.NotAfter.Equal(today.Add(defaultLifetime)) || dev.Revoked || !dev.LastSeen.IsZero() {
		t.Errorf("device %+v", dev)
	}
	if cert.Subject.String() != "CN=anna-phone" || !slices.Equal(cert.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}) {
		t.Errorf("certificate %v %v", cert.Subject, cert.ExtKeyUsage)
	}
	got, denial := d.Check(cert, "ha.example.org", today)
	if denial != Allowed || got.ID != dev.ID {
		t.Errorf("Check = %+v, %q", got, denial)
	}
	if g, ok := d.Get("anna-phone"); !ok || g.ID != dev.ID {
		t.Errorf("Get = %+v, %v", g, ok)
	}
	if g, ok := d.ByID(dev.ID); !ok || g.Name != "anna-phone" {
		t.Errorf("ByID = %+v, %v", g, ok)
	}
	add(t, d, "a-tablet")
	if list := d.List(); len(list) != 2 || list[0].Name != "a-tablet" || list[1].Name != "anna-phone" {
		t.Errorf("List = %+v", list)
	}
}

func TestAddRefuses(t *testing.T) {
	cfg := config(t)
	d := open(t, cfg)
	ctx := t.Context()
	for _, name := range []string{"", "-a", "Anna", "a b", "a/b", "a_b", "ä", strings.Repeat("a", 64)} {
		if _, _, err := d.Add(ctx, Grant{Name: name, Key: newPublic(t)}); err == nil {
			t.Errorf("the name %q was taken", name)
		}
	}
	for _, host := range []string{"", "*", "a.*.org", "127.0.0.1", "a b.org", "*.*.org", "ha.example.org:443", "-ha", "*ha"} {
		if _, _, err := d.Add(ctx, Grant{Name: "x", Key: newPublic(t), Hosts: []string{host}}); err == nil {
			t.Errorf("the host pattern %q was taken", host)
		}
	}
	for _, until := range []time.Time{today, today.Add(-time.Hour), today.AddDate(20, 0, 0)} {
		if _, _, err := d.Add(ctx, Grant{Name: "x", Key: newPublic(t), Until: until}); err == nil {
			t.Errorf("a device was added until %v", until)
		}
	}
	if _, _, err := d.Add(ctx, Grant{Name: "x", Key: cfg.CA.Cert().PublicKey}); err == nil {
		t.Error("the CA's own key was added as a device")
	}
	if list := d.List(); len(list) != 0 {
		t.Errorf("failed additions left %+v", list)
	}
	if entries, _ := cfg.Store.List(ctx, ""); len(entries) != 0 {
		t.Errorf("failed additions left %d entries in the store", len(entries))
	}
}

func TestHosts(t *testing.T) {
	d := open(t, config(t))
	dev, cert := add(t, d, "guest", "HA.example.org.", "*.alice.example.org", "ha", "Photos")
	if want := []string{"ha.example.org", "*.alice.example.org", "photos.example.org"}; !slices.Equal(dev.Hosts, want) {
		t.Errorf("hosts %v, want %v", dev.Hosts, want)
	}
	for host, want := range map[string]Denial{
		"ha.example.org":           Allowed,
		"door.alice.example.org":   Allowed,
		"photos.example.org":       Allowed,
		"photos":                   DeniedHost,
		"door.example.org":         DeniedHost,
		"alice.example.org":        DeniedHost,
		"a.door.alice.example.org": DeniedHost,
		"ha.example.org.evil.net":  DeniedHost,
		"HA.example.org":           DeniedHost, // not canonical: fails closed
		"":                         DeniedHost,
	} {
		check(t, d, cert, host, today, want)
	}
	_, everywhere := add(t, d, "owner")
	check(t, d, everywhere, "", today, DeniedHost)
}

// TestForeignCertificates: whatever is not the very certificate that was
// recorded is unknown.
func TestForeignCertificates(t *testing.T) {
	cfg := config(t)
	d := open(t, cfg)
	key, _ := pki.NewKey()
	_, cert, err := d.Add(t.Context(), Grant{Name: "anna-phone", Key: key.Public()})
	if err != nil {
		t.Fatal(err)
	}
	issue := func(ca *pki.Authority, p pki.Profile, pub crypto.PublicKey) *x509.Certificate {
		t.Helper()
		name := "anna-phone"
		cert, err := ca.Issue(pub, pki.Grant{Profile: p, Name: name})
		if err != nil {
			t.Fatal(err)
		}
		return cert
	}
	selfMade := func(change func(*x509.Certificate)) *x509.Certificate {
		t.Helper()
		tmpl := &x509.Certificate{
			SerialNumber: cert.SerialNumber, Subject: cert.Subject, NotBefore: cert.NotBefore, NotAfter: cert.NotAfter,
			KeyUsage: cert.KeyUsage, ExtKeyUsage: cert.ExtKeyUsage, BasicConstraintsValid: true,
		}
		change(tmpl)
		der, err := x509.CreateCertificate(rand.Reader, tmpl, &x509.Certificate{Subject: cert.Issuer}, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	other := newCA(t)
	for name, leaf := range map[string]*x509.Certificate{
		"none":                           nil,
		"empty":                          {},
		"the CA itself":                  cfg.CA.Cert(),
		"another CA":                     other.Cert(),
		"same key, other serial":         issue(cfg.CA, pki.Device, key.Public()),
		"signed but not recorded":        issue(cfg.CA, pki.Device, newPublic(t)),
		"server":                         issue(cfg.CA, pki.Server, key.Public()),
		"same key, another CA":           issue(other, pki.Device, key.Public()),
		"same key and serial, self-made": selfMade(func(*x509.Certificate) {}),
		"self-made CA":                   selfMade(func(c *x509.Certificate) { c.IsCA = true }),
		"self-made, other serial":        selfMade(func(c *x509.Certificate) { c.SerialNumber = big.NewInt(1) }),
		"self-made, other name":          selfMade(func(c *x509.Certificate) { c.Subject = pkix.Name{CommonName: "x"} }),
	} {
		if dev, denial := d.Check(leaf, "ha.example.org", today); denial != DeniedUnknown || dev.ID != "" {
			t.Errorf("%s: %+v, %q", name, dev, denial)
		}
	}
	check(t, d, cert, "ha.example.org", today, Allowed)
}

// TestRecordsAreNotBelieved: a record whose certificate our CA did not sign, or
// signed for another use, lets nobody in.
func TestRecordsAreNotBelieved(t *testing.T) {
	cfg := config(t)
	other := newCA(t)
	server, err := cfg.CA.Issue(newPublic(t), pki.Grant{Profile: pki.Server, Name: "ha.example.org"})
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := other.Issue(newPublic(t), pki.Grant{Profile: pki.Device, Name: "x"})
	if err != nil {
		t.Fatal(err)
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	registrar, err := cfg.CA.Issue(key.Public(), pki.Grant{Profile: pki.Registrar})
	if err != nil {
		t.Fatal(err)
	}
	certs := map[string]*x509.Certificate{"server": server, "foreign": foreign, "ca": cfg.CA.Cert(), "registrar": registrar}
	for name, cert := range certs {
		doc := &document{Version: documentVersion, Devices: []record{{Cert: cert.Raw, Created: today, Kind: KindCertificate}}}
		data, _ := doc.encode()
		if _, err := cfg.Store.Create(t.Context(), docPrefix+name, data); err != nil {
			t.Fatal(err)
		}
	}
	d := open(t, cfg)
	for _, cert := range certs {
		check(t, d, cert, "ha.example.org", today, DeniedUnknown)
	}
}

func TestNamesAndKeysAreUnique(t *testing.T) {
	d := open(t, config(t))
	ctx := t.Context()
	pub := newPublic(t)
	if _, _, err := d.Add(ctx, Grant{Name: "anna-phone", Key: pub}); err != nil {
		t.Fatal(err)
	}
	fresh := newPublic(t)
	_, _, err := d.Add(ctx, Grant{Name: "anna-phone", Key: fresh})
	if !errors.Is(err, ErrNameTaken) || !strings.Contains(err.Error(), "sallyport device revoke anna-phone") {
		t.Errorf("a second device of one name: %v", err)
	}
	if _, _, err := d.Add(ctx, Grant{Name: "other", Key: fresh}); err != nil {
		t.Errorf("the refused key is burnt: %v", err)
	}
	if _, _, err := d.Add(ctx, Grant{Name: "third", Key: pub}); !errors.Is(err, ErrKeyUsed) {
		t.Errorf("one key for two devices: %v", err)
	}
	if _, err := d.Revoke(ctx, "anna-phone"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := d.Add(ctx, Grant{Name: "anna-phone", Key: pub}); !errors.Is(err, ErrKeyUsed) {
		t.Errorf("a revoked key came back: %v", err)
	}
}

// TestLostNameFreesTheKey: the name was taken through another instance, which
// shows only in the store. The key may be used under another name.
func TestLostNameFreesTheKey(t *testing.T) {
	cfg := config(t)
	a, b := open(t, cfg), open(t, cfg)
	add(t, a, "anna-phone")
	pub := newPublic(t)
	if _, _, err := b.Add(t.Context(), Grant{Name: "anna-phone", Key: pub}); !errors.Is(err, ErrNameTaken) {
		t.Fatalf("Add: %v", err)
	}
	if _, _, err := b.Add(t.Context(), Grant{Name: "anna-tablet", Key: pub}); err != nil {
		t.Errorf("under another name: %v", err)
	}
}

// TestNameIsReused: a revoked name may go to a new key; the old certificate
// stays revoked, the new one is free to come in.
func TestNameIsReused(t *testing.T) {
	cfg := config(t)
	d := open(t, cfg)
	old, oldCert := add(t, d, "anna-phone")
	if _, err := d.Revoke(t.Context(), "anna-phone"); err != nil {
		t.Fatal(err)
	}
	now, newCert := add(t, d, "anna-phone")
	for _, d := range []*Devices{d, open(t, cfg)} {
		check(t, d, oldCert, "ha.example.org", today, DeniedRevoked)
		check(t, d, newCert, "ha.example.org", today, Allowed)
		if g, _ := d.Get("anna-phone"); g.ID != now.ID {
			t.Errorf("Get returns %s, want the new device", g.ID)
		}
		if len(d.List()) != 2 {
			t.Errorf("List = %+v", d.List())
		}
		if o, ok := d.ByID(old.ID); !ok || !o.Revoked {
			t.Errorf("the old device is %+v", o)
		}
	}
}

// TestAddRace: of many that want one name, or bring one key, exactly one
// succeeds, also over several instances on one store.
func TestAddRace(t *testing.T) {
	cfg := config(t)
	instances := []*Devices{open(t, cfg), open(t, cfg)}
	shared := newPublic(t)
	for title, pick := range map[string]func(i int) (string, crypto.PublicKey){
		"one name": func(int) (string, crypto.PublicKey) { return "anna-phone", newPublic(t) },
		"one key":  func(i int) (string, crypto.PublicKey) { return "device-" + string(rune('a'+i)), shared },
	} {
		var mu sync.Mutex
		var wg sync.WaitGroup
		won := 0
		for i := range 8 {
			wg.Go(func() {
				name, pub := pick(i)
				_, _, err := instances[i%2].Add(t.Context(), Grant{Name: name, Key: pub})
				mu.Lock()
				defer mu.Unlock()
				switch {
				case err == nil:
					won++
				case !errors.Is(err, ErrNameTaken) && !errors.Is(err, ErrKeyUsed):
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if won != 1 {
			t.Errorf("%s: %d of 8 succeeded", title, won)
		}
	}
	d := open(t, cfg) // and the records are sound
	if n := len(d.List()); n != 2 {
		t.Errorf("%d devices in the store, want 2", n)
	}
}
