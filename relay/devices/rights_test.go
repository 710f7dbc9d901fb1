package devices

import (
	"context"
	"crypto/x509"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/protocol/pki"
	"github.com/sallyport/sallyport/relay/store"
)

// TestChange: new rights hold at once, for all generations, over a restart.
func TestChange(t *testing.T) {
	c := newClock()
	cfg := configAt(t, c)
	d := open(t, cfg)
	ctx := t.Context()
	_, old := add(t, d, "anna-phone")
	_, next := renew(t, d, old)
	hosts := []string{"Photos", "tv.example.org"}
	soon, yes := today.Add(time.Hour), true
	dev, err := d.Change(ctx, "anna-phone", Change{Hosts: &hosts, Until: &soon, Admin: &yes})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(dev.Hosts, []string{"photos.example.org", "tv.example.org"}) || !dev.Until.Equal(soon) || !dev.Ends().Equal(soon) || !dev.Admin {
		t.Errorf("changed to %+v", dev)
	}
	for _, d := range []*Devices{d, open(t, cfg)} {
		for _, g := range d.List() {
			if !g.Admin || !g.Until.Equal(soon) {
				t.Errorf("generation %+v", g)
			}
		}
		check(t, d, old, "photos.example.org", soon, Allowed)
		check(t, d, next, "photos.example.org", soon, Allowed)
		check(t, d, old, "ha.example.org", today, DeniedHost)
		check(t, d, next, "ha.example.org", today, DeniedHost)
		check(t, d, old, "photos.example.org", soon.Add(time.Second), DeniedExpired)
		check(t, d, next, "photos.example.org", soon.Add(time.Second), DeniedExpired)
	}
	everywhere, never, no := []string{}, time.Time{}, false
	if dev, err = d.Change(ctx, "anna-phone", Change{Hosts: &everywhere, Until: &never, Admin: &no}); err != nil || dev.Admin || !dev.Until.IsZero() || dev.Hosts != nil {
		t.Errorf("changed back: %+v, %v", dev, err)
	}
	check(t, d, old, "ha.example.org", soon.Add(time.Second), Allowed)
}

func TestChangeRefuses(t *testing.T) {
	cfg := config(t)
	var told revocations
	cfg.OnRevoke = told.add
	d := open(t, cfg)
	ctx := t.Context()
	dev, cert := add(t, d, "anna-phone", "ha")
	if _, _, err := d.Add(ctx, Grant{Name: "guest", Key: newPublic(t), Until: today.Add(time.Hour)}); err != nil {
		t.Fatal(err)
	}
	add(t, d, "gone")
	if _, err := d.Revoke(ctx, "gone"); err != nil {
		t.Fatal(err)
	}
	told.ids = nil
	if _, _, err := d.AddToken(ctx, TokenGrant{Name: "tv", Host: "photos"}); err != nil {
		t.Fatal(err)
	}
	before := d.List()
	yes := true
	at := func(by time.Duration) *time.Time { end := today.Add(by); return &end }
	list := func(hosts ...string) *[]string { return &hosts }
	for _, c := range []struct {
		name   string
		change Change
		says   string
	}{
		{"anna-phone", Change{Until: at(defaultLifetime + time.Hour)}, "renew"},
		{"guest", Change{Until: at(defaultLifetime + time.Hour)}, "renew"},
		{"guest", Change{Until: at(0)}, "past"},
		{"anna-phone", Change{Until: at(0)}, "sallyport device revoke anna-phone"},
		{"anna-phone", Change{Until: at(-time.Hour)}, "past"},
		{"anna-phone", Change{Hosts: list("tv", "*")}, "*"},
		{"nobody", Change{Admin: &yes}, "no such device"},
		{"../x", Change{Admin: &yes}, "no such device"},
		{"", Change{}, "no such device"},
		{"gone", Change{Admin: &yes}, "revoked"},
		{"tv", Change{Admin: &yes}, "dashboard"},
		{"tv", Change{Hosts: list()}, "one host"},
		{"tv", Change{Hosts: list("a", "b")}, "one host"},
		{"tv", Change{Hosts: list("*.example.org")}, "one host"},
		{"tv", Change{Hosts: list("admin")}, "relay itself"},
	} {
		if _, err := d.Change(ctx, c.name, c.change); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("Change(%q, %+v): %v, want %q", c.name, c.change, err, c.says)
		}
	}
	for _, d := range []*Devices{d, open(t, cfg)} {
		if !slices.EqualFunc(d.List(), before, func(a, b Device) bool { return a.ID == b.ID && !shrunkOrGrown(a, b) }) {
			t.Errorf("refused changes changed something: %+v", d.List())
		}
	}
	if len(told.ids) != 0 {
		t.Errorf("refused changes cut %v", told.ids)
	}
	// What cannot be written does not hold.
	cfg.Store = failing{cfg.Store}
	d = open(t, cfg)
	if _, err := d.Change(ctx, "anna-phone", Change{Hosts: list("tv")}); !errors.Is(err, errDisk) {
		t.Errorf("Change on a full disk: %v", err)
	}
	check(t, d, cert, "ha.example.org", today, Allowed)
	if told.count(dev.ID) != 0 {
		t.Error("OnRevoke was told of a change that a restart would forget")
	}
}

func shrunkOrGrown(a, b Device) bool {
	return a.Admin != b.Admin || !a.Until.Equal(b.Until) || !slices.Equal(a.Hosts, b.Hosts)
}

// TestChangeLater: after a renewal the end may move behind the old
// certificate's.
func TestChangeLater(t *testing.T) {
	c := newClock()
	d := open(t, configAt(t, c))
	_, cert := add(t, d, "anna-phone")
	end := today.AddDate(1, 2, 0)
	if _, err := d.Change(t.Context(), "anna-phone", Change{Until: &end}); err == nil {
		t.Fatal("the end was moved behind the certificate's")
	}
	c.set(today.AddDate(0, 11, 0))
	renew(t, d, cert)
	if dev, err := d.Change(t.Context(), "anna-phone", Change{Until: &end}); err != nil || !dev.Ends().Equal(end) {
		t.Errorf("after the renewal: %+v, %v", dev, err)
	}
}

// TestShrunk: who loses something is cut, who only gains is not.
func TestShrunk(t *testing.T) {
	hour, day := today.Add(time.Hour), today.AddDate(0, 0, 1)
	for _, c := range []struct {
		what    string
		was, is rights
		want    bool
	}{
		{"nothing", rights{}, rights{}, false},
		{"everywhere to somewhere", rights{}, rights{hosts: []string{"a.x"}}, true},
		{"somewhere to everywhere", rights{hosts: []string{"a.x"}}, rights{}, false},
		{"one host more", rights{hosts: []string{"a.x"}}, rights{hosts: []string{"b.x", "a.x"}}, false},
		{"one host less", rights{hosts: []string{"b.x", "a.x"}}, rights{hosts: []string{"a.x"}}, true},
		{"another host", rights{hosts: []string{"a.x"}}, rights{hosts: []string{"b.x"}}, true},
		{"a host to its wildcard", rights{hosts: []string{"a.x"}}, rights{hosts: []string{"*.x"}}, false},
		{"a wildcard to a host", rights{hosts: []string{"*.x"}}, rights{hosts: []string{"a.x"}}, true},
		{"the same wildcard", rights{hosts: []string{"*.x"}}, rights{hosts: []string{"a.y", "*.x"}}, false},
		{"a wildcard to a higher one", rights{hosts: []string{"*.a.x"}}, rights{hosts: []string{"*.x"}}, true},
		{"an end", rights{}, rights{until: hour}, true},
		{"an earlier end", rights{until: day}, rights{until: hour}, true},
		{"a later end", rights{until: hour}, rights{until: day}, false},
		{"no end", rights{until: hour}, rights{}, false},
		{"admin", rights{}, rights{admin: true}, false},
		{"no admin", rights{admin: true}, rights{}, true},
		{"another path", rights{path: "/a/"}, rights{path: "/b/"}, true},
		{"more here, less there", rights{until: day}, rights{until: hour, admin: true}, true},
	} {
		if got := shrunk(c.was, c.is); got != c.want {
			t.Errorf("%s: %v, want %v", c.what, got, c.want)
		}
	}
}

// TestChangeCuts: OnRevoke hears of whoever lost rights, after it is true, and
// of nobody else; OnChange hears of everything.
func TestChangeCuts(t *testing.T) {
	cfg := config(t)
	var told revocations
	changes := 0
	var d *Devices
	cfg.OnChange = func() {
		changes++
		if d != nil {
			d.Tokens() // no lock is held
		}
	}
	cfg.OnRevoke = func(id string) {
		told.add(id)
		if dev, _ := d.ByID(id); len(dev.Hosts) != 1 {
			t.Errorf("OnRevoke was told before it was true: %+v", dev)
		}
	}
	d = open(t, cfg)
	first, old := add(t, d, "anna-phone")
	second, _ := renew(t, d, old)
	other, _ := add(t, d, "ben-phone")
	before := changes
	hosts, yes := []string{"ha"}, true
	if _, err := d.Change(t.Context(), "anna-phone", Change{Hosts: &hosts}); err != nil {
		t.Fatal(err)
	}
	if told.count(first.ID) == 0 || told.count(second.ID) == 0 || told.count(other.ID) != 0 {
		t.Errorf("OnRevoke was told %v", told.ids)
	}
	told.ids = nil
	more := []string{"*.example.org"}
	if _, err := d.Change(t.Context(), "anna-phone", Change{Hosts: &more, Admin: &yes}); err != nil || len(told.ids) != 0 {
		t.Errorf("gaining rights: %v, cut %v", err, told.ids)
	}
	if changes < before+2 {
		t.Errorf("OnChange was called %d times for two changes", changes-before)
	}
}

// TestChangeBesideAnother: two relays change one device; the one that was
// slower tells its visitors of both.
func TestChangeBesideAnother(t *testing.T) {
	cfg := config(t)
	a := open(t, cfg)
	dev, _, err := a.Add(t.Context(), Grant{Name: "anna-phone", Key: newPublic(t), Admin: true})
	if err != nil {
		t.Fatal(err)
	}
	var told revocations
	cfg.OnRevoke = told.add
	b := open(t, cfg)
	no := false
	if _, err := a.Change(t.Context(), "anna-phone", Change{Admin: &no}); err != nil {
		t.Fatal(err)
	}
	// b has not heard (its Run does not run) and takes nothing away itself.
	if _, err := b.Change(t.Context(), "anna-phone", Change{Hosts: &[]string{}}); err != nil {
		t.Fatal(err)
	}
	if told.count(dev.ID) == 0 {
		t.Error("the other relay's change reached nobody here")
	}
	if got, _ := b.Get("anna-phone"); got.Admin {
		t.Error("the other relay's change was overwritten")
	}
}

func TestCheckNameAndCertificate(t *testing.T) {
	d := open(t, config(t))
	dev, cert := add(t, d, "anna-phone")
	for name, free := range map[string]bool{"ben-phone": true, "anna-phone": false, "Anna": false, "": false} {
		if err := d.CheckName(name); (err == nil) != free {
			t.Errorf("CheckName(%q): %v", name, err)
		}
	}
	if err := d.CheckName("anna-phone"); !errors.Is(err, ErrNameTaken) {
		t.Errorf("a taken name: %v", err)
	}
	if got, ok := d.Certificate(dev.ID); !ok || !got.Equal(cert) {
		t.Error("Certificate returns another one")
	}
	if _, ok := d.Certificate("nobody"); ok {
		t.Error("Certificate of nobody")
	}
	if _, err := d.Revoke(t.Context(), "anna-phone"); err != nil {
		t.Fatal(err)
	}
	if err := d.CheckName("anna-phone"); err != nil {
		t.Errorf("a freed name: %v", err)
	}
}

// TestAddAgain: who was killed before it heard the answer gets the same answer
// again, and nothing more than was granted.
func TestAddAgain(t *testing.T) {
	cfg := config(t)
	d := open(t, cfg)
	ctx := t.Context()
	g := Grant{Name: "anna-phone", Key: newPublic(t), Hosts: []string{"ha"}, Until: today.Add(time.Hour)}
	dev, cert, err := d.Add(ctx, g)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range []*Devices{d, open(t, cfg)} {
		again, same, err := d.Add(ctx, g)
		if err != nil || again.ID != dev.ID || !same.Equal(cert) || len(d.List()) != 1 {
			t.Errorf("again: %+v, %v", again, err)
		}
	}
	for what, change := range map[string]func(*Grant){
		"more hosts":  func(g *Grant) { g.Hosts = nil },
		"longer":      func(g *Grant) { g.Until = time.Time{} },
		"admin":       func(g *Grant) { g.Admin = true },
		"another key": func(g *Grant) { g.Key = newPublic(t) },
	} {
		more := g
		change(&more)
		if _, _, err := d.Add(ctx, more); !errors.Is(err, ErrNameTaken) {
			t.Errorf("%s: %v", what, err)
		}
	}
	g.Name = "other"
	if _, _, err := d.Add(ctx, g); !errors.Is(err, ErrKeyUsed) {
		t.Errorf("under another name: %v", err)
	}
	g.Name = "anna-phone"
	if _, err := d.Revoke(ctx, "anna-phone"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := d.Add(ctx, g); !errors.Is(err, ErrKeyUsed) {
		t.Errorf("after the revocation: %v", err)
	}
}

// TestAbandonedClaim: a crash between the two writes of Add does not burn the
// key for the device that holds it. For everybody else it stays used.
func TestAbandonedClaim(t *testing.T) {
	c := newClock()
	cfg := configAt(t, c)
	key := newPublic(t)
	cfg.Store = dying{cfg.Store} // claims, then dies; not even the claim can be given back
	if _, _, err := open(t, cfg).Add(t.Context(), Grant{Name: "anna-phone", Key: key}); !errors.Is(err, errDisk) {
		t.Fatal(err)
	}
	cfg.Store = cfg.Store.(dying).KV
	d := open(t, cfg)
	if _, _, err := d.Add(t.Context(), Grant{Name: "somebody", Key: key}); !errors.Is(err, ErrKeyUsed) {
		t.Errorf("under another name: %v", err)
	}
	c.skip(claimLife + time.Hour)
	if _, _, err := d.Add(t.Context(), Grant{Name: "anna-phone", Key: key}); !errors.Is(err, ErrKeyUsed) {
		t.Errorf("much later: %v", err)
	}
	c.skip(-2 * time.Hour)
	if _, _, err := d.Add(t.Context(), Grant{Name: "anna-phone", Key: key}); err != nil {
		t.Errorf("the same device again: %v", err)
	}
	if _, err := d.Revoke(t.Context(), "anna-phone"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := d.Add(t.Context(), Grant{Name: "anna-phone", Key: key}); !errors.Is(err, ErrKeyUsed) {
		t.Errorf("after the revocation: %v", err)
	}
}

// A racing store lets somebody else in before the first change of a document.
type racing struct {
	store.KV
	before *func()
}

func (s racing) Update(ctx context.Context, key string, v []byte, rev uint64) (uint64, error) {
	if f := *s.before; f != nil {
		*s.before = nil
		f()
	}
	return s.KV.Update(ctx, key, v, rev)
}

// TestAbandonedClaimRace: two that take over one abandoned claim at once do
// not both get a certificate.
func TestAbandonedClaimRace(t *testing.T) {
	cfg := config(t)
	a := open(t, cfg)
	_, cert := add(t, a, "anna-phone")
	key := newPublic(t)
	id := keyID(must(x509.MarshalPKIXPublicKey(key)))
	if _, err := cfg.Store.Create(t.Context(), keyPrefix+id, []byte("anna-phone "+today.Format(time.RFC3339))); err != nil {
		t.Fatal(err)
	}
	won := func() { renewWith(t, a, cert, key) }
	cfg.Store = racing{cfg.Store, &won}
	if _, _, err := open(t, cfg).Renew(t.Context(), cert, key); !errors.Is(err, ErrKeyUsed) {
		t.Errorf("the second: %v", err)
	}
	if n := len(open(t, cfg).List()); n != 2 {
		t.Errorf("%d certificates, want 2", n)
	}
}

// TestFullDocument: a name that had very many owners forgets those that ended
// long ago, whose keys stay used, and none of those that still matter.
func TestFullDocument(t *testing.T) {
	c := newClock()
	cfg := configAt(t, c)
	d := open(t, cfg)
	var doc document
	keep := func(days int, revoked bool) *record {
		cert := must(cfg.CA.Issue(newPublic(t), pki.Grant{Profile: pki.Device, Name: "x", NotAfter: today.AddDate(0, 0, days)}))
		r := record{Kind: KindCertificate, Cert: cert.Raw, cert: cert, Created: today}
		if revoked {
			r.RevokedAt = today
		}
		doc.Devices = append(doc.Devices, r)
		return doc.last()
	}
	first := keep(300, true).id()
	short := keep(1, true).id()
	for range maxRecords - 2 {
		keep(300, true)
	}
	for _, days := range []int{0, 30} {
		c.set(today.AddDate(0, 0, days))
		if err := d.makeRoom(&doc); err == nil || len(doc.Devices) != maxRecords {
			t.Errorf("after %d days a full document took one more: %v, %d records", days, err, len(doc.Devices))
		}
	}
	c.set(today.AddDate(0, 0, 32))
	for range 2 { // the second time there is room
		if err := d.makeRoom(&doc); err != nil || len(doc.Devices) != maxRecords-1 || doc.find(short) != nil || doc.find(first) == nil {
			t.Errorf("room for one: %v, %d records", err, len(doc.Devices))
		}
	}
	if data := must(doc.encode()); len(data) > 1<<20 {
		t.Errorf("a full document has %d bytes, more than a store takes", len(data))
	}
}
