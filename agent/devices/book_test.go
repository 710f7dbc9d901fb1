package devices

import (
	"crypto/x509"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sallyport/sallyport/protocol/door"
	"github.com/sallyport/sallyport/protocol/pki"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var today = time.Date(2027, 3, 1, 12, 0, 0, 0, time.UTC)

func clock() time.Time { return today }

// A relayCA is the relay's side: what signs devices and lists.
type relayCA struct {
	*pki.Authority
	t      testing.TB
	number uint64
}

func newCA(t testing.TB) *relayCA {
	t.Helper()
	a, err := pki.NewAuthority("device", clock)
	if err != nil {
		t.Fatal(err)
	}
	return &relayCA{Authority: a, t: t}
}

func (ca *relayCA) der() []byte { return ca.Cert().Raw }

// device issues a certificate and says how it is listed.
func (ca *relayCA) device(name string, hosts ...string) (*x509.Certificate, pki.ListedDevice) {
	ca.t.Helper()
	key, err := pki.NewKey()
	if err != nil {
		ca.t.Fatal(err)
	}
	cert, err := ca.Issue(key.Public(), pki.Grant{Profile: pki.Device, Name: name})
	if err != nil {
		ca.t.Fatal(err)
	}
	return cert, pki.ListedDevice{Key: pki.DeviceKey(cert), Name: name, Hosts: hosts}
}

// numbered signs a list with a number; its date is today.
func (ca *relayCA) numbered(number uint64, devices ...pki.ListedDevice) []byte {
	ca.t.Helper()
	signed, err := ca.SignDeviceList(pki.DeviceList{Number: number, Issued: today, Next: today.AddDate(0, 0, 7), Devices: devices})
	if err != nil {
		ca.t.Fatal(err)
	}
	return signed
}

// list signs the next list.
func (ca *relayCA) list(devices ...pki.ListedDevice) []byte {
	ca.t.Helper()
	ca.number++
	return ca.numbered(ca.number, devices...)
}

// calls collects what a Book tells.
type calls struct {
	mu    sync.Mutex
	lost  []string
	newCA int
}

func (c *calls) config(dir string) Config {
	return Config{
		Dir: dir, Now: clock,
		Lost: func(ids ...string) {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.lost = append(c.lost, ids...)
		},
		NewCA: func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.newCA++
		},
	}
}

// told fails unless exactly these devices were told of, and a new CA so often,
// since it was asked last.
func (c *calls) told(t testing.TB, newCA int, lost ...pki.ListedDevice) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	var want []string
	for _, d := range lost {
		want = append(want, d.Key)
	}
	slices.Sort(want)
	slices.Sort(c.lost)
	if !slices.Equal(c.lost, want) || c.newCA != newCA {
		t.Errorf("lost %v and %d new CAs were told, want %v and %d", c.lost, c.newCA, want, newCA)
	}
	c.lost, c.newCA = nil, 0
}

func open(t testing.TB, cfg Config) *Book {
	t.Helper()
	b, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// judged fails unless Check gives a denial.
func judged(t testing.TB, b *Book, cert *x509.Certificate, host, want string) {
	t.Helper()
	if _, denial := b.Check(cert, host, today); denial != want {
		t.Errorf("%s at %s: %q, want %q", cert.Subject.CommonName, host, denial, want)
	}
}

const host = "ha.example.org"

func TestCheck(t *testing.T) {
	ca := newCA(t)
	b := open(t, Config{Dir: t.TempDir(), Now: clock})
	all, allListed := ca.device("all")
	some, someListed := ca.device("some", host, "*.photos.example.org")
	guest, guestListed := ca.device("guest")
	guestListed.Until = today.Add(time.Hour)
	gone, goneListed := ca.device("gone")
	goneListed.Revoked = true
	stranger, _ := ca.device("stranger")
	judged(t, b, all, host, door.DeniedUnknown)
	ok(t, b.Pin(ca.der()))
	judged(t, b, all, host, door.DeniedUnknown)
	ok(t, b.Update(ca.list(allListed, someListed, guestListed, goneListed)))
	for i, c := range []struct {
		cert *x509.Certificate
		host string
		at   time.Time
		want string
	}{
		{all, host, today, ""},
		{all, "x.y.z", today, ""},
		{all, "", today, door.DeniedHost},
		{some, host, today, ""},
		{some, "a.photos.example.org", today, ""},
		{some, "photos.example.org", today, door.DeniedHost},
		{some, "a.b.photos.example.org", today, door.DeniedHost},
		{some, "HA.example.org", today, door.DeniedHost},
		{some, "nas.example.org", today, door.DeniedHost},
		{some, "", today, door.DeniedHost},
		{guest, host, today.Add(time.Hour), ""},
		{guest, host, today.Add(time.Hour + time.Second), door.DeniedExpired},
		{gone, host, today, door.DeniedRevoked},
		{stranger, host, today, door.DeniedUnknown},
		{nil, host, today, door.DeniedMissing},
		{all, host, all.NotAfter, ""},
		{all, host, all.NotAfter.Add(time.Second), door.DeniedExpired},
		// A clock that is behind: it is as late as the list at least.
		{all, host, time.Unix(0, 0), ""},
		{guest, host, time.Unix(0, 0), ""},
	} {
		dev, denial := b.Check(c.cert, c.host, c.at)
		if denial != c.want {
			t.Errorf("%d: %q, want %q", i, denial, c.want)
		}
		if known := denial != door.DeniedUnknown && denial != door.DeniedMissing; known && (dev.ID != pki.DeviceKey(c.cert) || dev.Name != c.cert.Subject.CommonName) || !known && dev.ID != "" {
			t.Errorf("%d: the device is %+v", i, dev)
		}
	}
	if dev, _ := b.Check(guest, host, today); !dev.Until.Equal(guestListed.Until) {
		t.Errorf("the guest's connections end at %v, want %v", dev.Until, guestListed.Until)
	}
}

// TestCheckGuestWithoutClock: who is over is over though the clock says that it
// is not yet.
func TestCheckGuestWithoutClock(t *testing.T) {
	ca := newCA(t)
	b := open(t, Config{Dir: t.TempDir(), Now: clock})
	guest, listed := ca.device("guest")
	listed.Until = today.Add(-time.Second)
	ok(t, b.Pin(ca.der()))
	ok(t, b.Update(ca.list(listed)))
	if _, denial := b.Check(guest, host, today.AddDate(-1, 0, 0)); denial != door.DeniedExpired {
		t.Errorf("%q", denial)
	}
}

// TestCheckCosts no memory, whatever the length of the list.
func TestCheckCosts(t *testing.T) {
	ca := newCA(t)
	b := open(t, Config{Dir: t.TempDir(), Now: clock})
	cert, listed := ca.device("anna-phone", host)
	list := []pki.ListedDevice{listed}
	for i := range 1000 {
		list = append(list, pki.ListedDevice{Key: fmt.Sprintf("%064x", i), Name: "x"})
	}
	ok(t, b.Pin(ca.der()))
	ok(t, b.Update(ca.list(list...)))
	if n := testing.AllocsPerRun(100, func() { b.Check(cert, host, today) }); n > 2 { // those of matching a pattern
		t.Errorf("%v allocations a request", n)
	}
}

func TestPool(t *testing.T) {
	ca := newCA(t)
	dir := t.TempDir()
	b := open(t, Config{Dir: dir, Now: clock})
	if b.Pool() != nil {
		t.Error("a pool of nobody")
	}
	ok(t, b.Pin(ca.der()))
	if !b.Pool().Equal(ca.Pool()) {
		t.Error("the pool does not hold the pinned CA, or more")
	}
	if !open(t, Config{Dir: dir}).Pool().Equal(ca.Pool()) {
		t.Error("a restart forgot the pinned CA")
	}
}

func TestStatus(t *testing.T) {
	ca := newCA(t)
	now := today
	b := open(t, Config{Dir: t.TempDir(), Now: func() time.Time { return now }})
	if s := b.Status(); s != (Status{}) {
		t.Errorf("of nothing: %+v", s)
	}
	ok(t, b.Pin(ca.der()))
	if s := b.Status(); s.CA != fingerprint(ca.Cert()) || s.Number != 0 || s.Age != 0 || s.Stale {
		t.Errorf("of a CA: %+v", s)
	}
	_, anna := ca.device("anna-phone")
	_, gone := ca.device("gone")
	gone.Revoked = true
	ok(t, b.Update(ca.list(anna, gone)))
	now = today.AddDate(0, 0, 7)
	if s := b.Status(); s.Number != 1 || s.Devices != 1 || s.Age != 7*24*time.Hour || s.Stale || !s.Saved || s.Problem != "" {
		t.Errorf("of a list: %+v", s)
	}
	now = now.Add(time.Second)
	if s := b.Status(); !s.Stale || !s.Next.Equal(today.AddDate(0, 0, 7)) || !s.Issued.Equal(today) {
		t.Errorf("of an old list: %+v", s)
	}
	now = today.Add(-time.Hour)
	if s := b.Status(); s.Age != 0 {
		t.Errorf("of a list from tomorrow: %+v", s)
	}
}

func TestOpenRefuses(t *testing.T) {
	if _, err := Open(Config{}); err == nil {
		t.Error("no directory")
	}
}
