package devices

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/relay/store/boltstore"
)

func addToken(t testing.TB, d *Devices, g TokenGrant) (Device, string) {
	t.Helper()
	dev, secret, err := d.AddToken(t.Context(), g)
	if err != nil {
		t.Fatal(err)
	}
	return dev, secret
}

func checkToken(t testing.TB, d *Devices, host, secret string, now time.Time, want Denial) {
	t.Helper()
	dev, got := d.CheckToken(host, secret, now)
	if got != want {
		t.Errorf("CheckToken at %s: %q, want %q", host, got, want)
	}
	if got == DeniedUnknown && dev.ID != "" {
		t.Errorf("a wrong secret learned of %+v", dev)
	}
}

func TestToken(t *testing.T) {
	d := open(t, config(t))
	end := today.Add(time.Hour)
	dev, secret := addToken(t, d, TokenGrant{Name: "tv", Host: "Photos", Path: "/api/v1/", Until: end})
	if !regexp.MustCompile(`^[a-z2-7]{26}$`).MatchString(secret) {
		t.Errorf("a secret of the form %d letters", len(secret))
	}
	if !regexp.MustCompile(`^t-[a-z2-7]{16}\.example\.org$`).MatchString(dev.TokenHost) {
		t.Errorf("its host is %q", dev.TokenHost)
	}
	if dev.Name != "tv" || dev.Kind != KindToken || dev.Target != "photos.example.org" || dev.Path != "/api/v1/" || !dev.Until.Equal(end) ||
		!dev.Ends().Equal(end) || len(dev.ID) != 64 || dev.Admin || dev.Serial != "" || !slices.Equal(dev.Hosts, []string{"photos.example.org"}) {
		t.Errorf("token %+v", dev)
	}
	if sum := sha256.Sum256([]byte(secret)); dev.ID == hex.EncodeToString(sum[:]) {
		t.Error("the ID, which is public, is the hash of the secret")
	}
	other, otherSecret := addToken(t, d, TokenGrant{Name: "radio", Host: "ha.example.org", Path: "/"})
	if other.Path != "" || !other.Ends().IsZero() {
		t.Errorf("token without bounds: %+v", other)
	}
	for _, try := range []struct {
		host, secret string
		want         Denial
	}{
		{dev.TokenHost, secret, Allowed},
		{other.TokenHost, otherSecret, Allowed},
		{dev.TokenHost, otherSecret, DeniedUnknown},
		{other.TokenHost, secret, DeniedUnknown},
		{dev.TokenHost, "", DeniedUnknown},
		{dev.TokenHost, secret[:25], DeniedUnknown},
		{dev.TokenHost, secret + "a", DeniedUnknown},
		{dev.TokenHost, strings.Repeat("a", 1<<20), DeniedUnknown},
		{dev.TokenHost, strings.ToUpper(secret), DeniedUnknown},
		{strings.ToUpper(dev.TokenHost), secret, DeniedUnknown}, // not canonical: fails closed
		{dev.Target, secret, DeniedUnknown},
		{"", secret, DeniedUnknown},
		{"", "", DeniedUnknown},
		{"t-nobody.example.org", "", DeniedUnknown},
		{"t-nobody.example.org", secret, DeniedUnknown},
	} {
		checkToken(t, d, try.host, try.secret, today, try.want)
	}
	checkToken(t, d, dev.TokenHost, secret, end, Allowed)
	checkToken(t, d, dev.TokenHost, secret, end.Add(time.Second), DeniedExpired)
	checkToken(t, d, dev.TokenHost, otherSecret, end.Add(time.Second), DeniedUnknown)
	if list := d.Tokens(); len(list) != 2 || list[0].Name != "radio" || list[1].Name != "tv" {
		t.Errorf("Tokens = %+v", list)
	}
	d.Seen(dev.ID)
	if got, _ := d.Get("tv"); !got.LastSeen.Equal(today) {
		t.Errorf("the token was seen %v", got.LastSeen)
	}
	if _, ok := d.Certificate(dev.ID); ok {
		t.Error("a token has a certificate")
	}
}

// TestTokenSecretIsNotStored: whoever copies the store has nothing that opens
// the door.
func TestTokenSecretIsNotStored(t *testing.T) {
	cfg := config(t)
	d := open(t, cfg)
	dev, secret := addToken(t, d, TokenGrant{Name: "tv", Host: "photos"})
	entries, err := cfg.Store.List(t.Context(), "")
	if err != nil || len(entries) == 0 {
		t.Fatal(entries, err)
	}
	for _, e := range entries {
		if strings.Contains(strings.ToLower(e.Key+string(e.Value)), secret) {
			t.Errorf("the store holds the secret at %s", e.Key)
		}
	}
	if strings.Contains(fmt.Sprintf("%+v", dev), secret) {
		t.Error("the device carries the secret")
	}
	// Neither does the hash open anything.
	sum := sha256.Sum256([]byte(secret))
	checkToken(t, d, dev.TokenHost, string(sum[:]), today, DeniedUnknown)
	checkToken(t, d, dev.TokenHost, hex.EncodeToString(sum[:])[:26], today, DeniedUnknown)
}

func TestAddTokenRefuses(t *testing.T) {
	cfg := config(t)
	d := open(t, cfg)
	add(t, d, "taken")
	for what, g := range map[string]TokenGrant{
		"no name":       {Host: "photos"},
		"a bad name":    {Name: "a b", Host: "photos"},
		"a taken name":  {Name: "taken", Host: "photos"},
		"no host":       {Name: "tv"},
		"a wildcard":    {Name: "tv", Host: "*.example.org"},
		"an address":    {Name: "tv", Host: "127.0.0.1"},
		"a port":        {Name: "tv", Host: "photos.example.org:443"},
		"the domain":    {Name: "tv", Host: "example.org"},
		"admin":         {Name: "tv", Host: "admin"},
		"enroll":        {Name: "tv", Host: "enroll.example.org"},
		"check":         {Name: "tv", Host: "CHECK.example.org."},
		"another token": {Name: "tv", Host: "t-abc"},
		"the past":      {Name: "tv", Host: "photos", Until: today},
		"no slash":      {Name: "tv", Host: "photos", Path: "api/"},
		"an open end":   {Name: "tv", Host: "photos", Path: "/api"},
		"dots":          {Name: "tv", Host: "photos", Path: "/api/../"},
		"a dot":         {Name: "tv", Host: "photos", Path: "/./api/"},
		"an empty part": {Name: "tv", Host: "photos", Path: "/api//x/"},
		"two slashes":   {Name: "tv", Host: "photos", Path: "//"},
		"encoding":      {Name: "tv", Host: "photos", Path: "/%61pi/"},
		"a question":    {Name: "tv", Host: "photos", Path: "/api/?x/"},
		"a backslash":   {Name: "tv", Host: "photos", Path: `/api\x/`},
		"a semicolon":   {Name: "tv", Host: "photos", Path: "/api;x/"},
		"a space":       {Name: "tv", Host: "photos", Path: "/a b/"},
		"no ASCII":      {Name: "tv", Host: "photos", Path: "/ä/"},
		"a long one":    {Name: "tv", Host: "photos", Path: "/" + strings.Repeat("a", maxTokenPath) + "/"},
	} {
		if dev, secret, err := d.AddToken(t.Context(), g); err == nil || secret != "" || dev.ID != "" {
			t.Errorf("%s: %+v, %v", what, dev, err)
		}
	}
	if len(d.List()) != 1 || len(d.Tokens()) != 0 {
		t.Errorf("refusals left %+v", d.List())
	}
	cfg.Domain = ""
	if _, _, err := open(t, cfg).AddToken(t.Context(), TokenGrant{Name: "tv", Host: "photos.example.org"}); err == nil {
		t.Error("a token without a domain")
	}
}

// TestTokenRevoke: as for devices, over a restart, and told to whoever holds
// its connections and routes.
func TestTokenRevoke(t *testing.T) {
	path := filepath.Join(t.TempDir(), "relay.db")
	cfg := config(t)
	var told revocations
	cfg.OnRevoke = told.add
	kv := must(boltstore.Open(path))
	cfg.Store = kv
	var hosts []string // as a relay would route them
	var d *Devices
	cfg.OnChange = func() {
		hosts = nil
		for _, dev := range d.Tokens() {
			hosts = append(hosts, dev.TokenHost)
		}
	}
	d = open(t, cfg)
	gone, goneSecret := addToken(t, d, TokenGrant{Name: "gone", Host: "photos"})
	stays, staysSecret := addToken(t, d, TokenGrant{Name: "stays", Host: "photos"})
	if !slices.Equal(hosts, []string{gone.TokenHost, stays.TokenHost}) {
		t.Errorf("routed: %v", hosts)
	}
	if got, err := d.Revoke(t.Context(), "gone"); err != nil || !got.Revoked || told.count(gone.ID) == 0 || told.count(stays.ID) != 0 {
		t.Errorf("Revoke: %+v, %v, told %v", got, err, told.ids)
	}
	if !slices.Equal(hosts, []string{stays.TokenHost}) {
		t.Errorf("routed after the revocation: %v", hosts)
	}
	kv.Close()
	kv = must(boltstore.Open(path))
	defer kv.Close()
	cfg.Store = kv
	for _, d := range []*Devices{d, open(t, cfg)} {
		checkToken(t, d, gone.TokenHost, goneSecret, today, DeniedRevoked)
		checkToken(t, d, gone.TokenHost, staysSecret, today, DeniedUnknown)
		checkToken(t, d, stays.TokenHost, staysSecret, today, Allowed)
		if list := d.Tokens(); len(list) != 1 || list[0].ID != stays.ID {
			t.Errorf("Tokens = %+v", list)
		}
	}
	// A name is one, whatever kind it is of.
	d = open(t, cfg)
	if _, _, err := d.Add(t.Context(), Grant{Name: "stays", Key: newPublic(t)}); !errors.Is(err, ErrNameTaken) {
		t.Errorf("a device beside a token: %v", err)
	}
	next, cert := add(t, d, "gone")
	check(t, d, cert, "ha.example.org", today, Allowed)
	checkToken(t, d, gone.TokenHost, goneSecret, today, DeniedRevoked)
	if _, err := d.Revoke(t.Context(), "gone"); err != nil || told.count(next.ID) == 0 {
		t.Errorf("the next owner: %v, told %v", err, told.ids)
	}
}

func TestTokenChange(t *testing.T) {
	cfg := config(t)
	var told revocations
	cfg.OnRevoke = told.add
	d := open(t, cfg)
	dev, secret := addToken(t, d, TokenGrant{Name: "tv", Host: "photos", Path: "/api/"})
	later := today.AddDate(30, 0, 0) // a token has no certificate that ends
	if got, err := d.Change(t.Context(), "tv", Change{Until: &later}); err != nil || !got.Ends().Equal(later) {
		t.Errorf("Until: %+v, %v", got, err)
	}
	told.ids = nil
	hosts := []string{"videos"}
	got, err := d.Change(t.Context(), "tv", Change{Hosts: &hosts})
	if err != nil || got.Target != "videos.example.org" || got.Path != "/api/" || got.TokenHost != dev.TokenHost || got.ID != dev.ID {
		t.Errorf("Hosts: %+v, %v", got, err)
	}
	if told.count(dev.ID) == 0 {
		t.Error("connections to the old target live on")
	}
	checkToken(t, open(t, cfg), dev.TokenHost, secret, today, Allowed)
}

// TestTokenElsewhere: another relay on the same store knows a token, and its
// end, at once.
func TestTokenElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := config(t)
		var told revocations
		var mu sync.Mutex
		changes := 0
		a := open(t, cfg)
		cfg.OnRevoke = told.add
		cfg.OnChange = func() { mu.Lock(); changes++; mu.Unlock() }
		b := open(t, cfg)
		defer start(t, b)()
		dev, secret := addToken(t, a, TokenGrant{Name: "tv", Host: "photos"})
		synctest.Wait()
		checkToken(t, b, dev.TokenHost, secret, today, Allowed)
		mu.Lock()
		if changes != 1 {
			t.Errorf("OnChange was called %d times for one token", changes)
		}
		mu.Unlock()
		if _, err := a.Revoke(t.Context(), "tv"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		checkToken(t, b, dev.TokenHost, secret, today, DeniedRevoked)
		if told.count(dev.ID) != 1 {
			t.Errorf("the other relay was told %d times", told.count(dev.ID))
		}
	})
}

// TestTokenRecordsAreNotBelieved: what a record cannot say keeps the relay
// from starting, and a token with a certificate's rights is one of these.
func TestTokenRecordsAreNotBelieved(t *testing.T) {
	good := record{
		Kind: KindToken, TokenHost: "t-abc.example.org", Secret: make([]byte, 32),
		Hosts: []string{"photos.example.org"}, Path: "/api/", Created: today,
	}
	cert, err := newCA(t).Issue(newPublic(t), grantFor("x"))
	if err != nil {
		t.Fatal(err)
	}
	decode := func(change func(*record)) error {
		r := good
		change(&r)
		doc := document{Devices: []record{r}}
		_, err := decodeDocument("tv", must(doc.encode()))
		return err
	}
	if err := decode(func(*record) {}); err != nil {
		t.Fatal(err)
	}
	for what, change := range map[string]func(*record){
		"no host":         func(r *record) { r.TokenHost = "" },
		"a bad host":      func(r *record) { r.TokenHost = "T-abc.example.org" },
		"no secret":       func(r *record) { r.Secret = nil },
		"half a secret":   func(r *record) { r.Secret = r.Secret[:16] },
		"no target":       func(r *record) { r.Hosts = nil },
		"two targets":     func(r *record) { r.Hosts = []string{"a.example.org", "b.example.org"} },
		"all targets":     func(r *record) { r.Hosts = []string{"*.example.org"} },
		"a bad path":      func(r *record) { r.Path = "/a/../" },
		"admin":           func(r *record) { r.Admin = true },
		"a chain":         func(r *record) { r.Chain = "x" },
		"a certificate":   func(r *record) { r.Cert = cert.Raw },
		"of both kinds":   func(r *record) { r.Kind, r.Cert = KindCertificate, cert.Raw },
		"no kind":         func(r *record) { r.Kind = "" },
		"not even a cert": func(r *record) { r.Kind = KindCertificate },
	} {
		if decode(change) == nil {
			t.Errorf("a record with %s was read", what)
		}
	}
}

func BenchmarkCheckToken(b *testing.B) {
	d := open(b, config(b))
	dev, secret := addToken(b, d, TokenGrant{Name: "tv", Host: "photos"})
	b.ReportAllocs()
	for b.Loop() {
		if _, denial := d.CheckToken(dev.TokenHost, secret, today); denial != Allowed {
			b.Fatal(denial)
		}
	}
}
