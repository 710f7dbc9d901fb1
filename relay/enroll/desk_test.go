package enroll

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sallyport/sallyport/protocol/pki"
	"github.com/sallyport/sallyport/relay/store"
	"github.com/sallyport/sallyport/relay/store/memstore"
)

var (
	today = time.Date(2027, 3, 1, 12, 0, 0, 0, time.UTC)
	phone = netip.MustParseAddr("203.0.113.7")
)

// An office stands in for the device records: it survives the desk's crashes,
// and knows names and keys that are taken.
type office struct {
	ca *pki.Authority

	mu     sync.Mutex // guards the fields below
	names  map[string]bool
	certs  map[string]*x509.Certificate // by key ID
	grants []Grant
	fail   error // of the next Issue
	late   bool  // fail after the record is written
}

var errKeyUsed = errors.New("this key was certified before")

func newOffice(t testing.TB) *office {
	t.Helper()
	ca, err := pki.NewAuthority("device", func() time.Time { return today })
	if err != nil {
		t.Fatal(err)
	}
	return &office{ca: ca, names: map[string]bool{}, certs: map[string]*x509.Certificate{}}
}

func (o *office) issue(_ context.Context, g Grant) (*x509.Certificate, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	fail := o.fail
	o.fail = nil
	if fail != nil && !o.late {
		return nil, fail
	}
	if o.names[g.Name] {
		return nil, fmt.Errorf("add: %w", ErrNameTaken)
	}
	spki, err := x509.MarshalPKIXPublicKey(g.Key)
	if err != nil {
		return nil, err
	}
	if o.certs[hash(string(spki))] != nil {
		return nil, errKeyUsed
	}
	cert, err := o.ca.Issue(g.Key, pki.Grant{Profile: pki.Device, Name: g.Name})
	if err != nil {
		return nil, err
	}
	o.names[g.Name] = true
	o.certs[hash(string(cert.RawSubjectPublicKeyInfo))] = cert
	o.grants = append(o.grants, g)
	return cert, fail
}

func (o *office) issued(_ context.Context, keyID string) (*x509.Certificate, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.certs[keyID], nil
}

func (o *office) checkName(name string) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.names[name] {
		return fmt.Errorf("%w, which is in use", ErrNameTaken)
	}
	return nil
}

func (o *office) count() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.grants)
}

// A clock is set by hand.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// A diary keeps what was audited and logged, as text.
type diary struct {
	mu    sync.Mutex
	lines []string
}

func (d *diary) audit(event string, attrs ...slog.Attr) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lines = append(d.lines, fmt.Sprint(event, " ", attrs))
}

func (d *diary) Write(p []byte) (int, error) {
	d.audit(string(p))
	return len(p), nil
}

func (d *diary) count(event string) (n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, l := range d.lines {
		if strings.HasPrefix(l, event+" ") {
			n++
		}
	}
	return n
}

func (d *diary) text() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return strings.Join(d.lines, "\n")
}

// A world is a desk with all that it works with.
type world struct {
	*Desk
	office *office
	clock  *clock
	diary  *diary
	kv     store.KV
}

func newWorld(t testing.TB, change ...func(*Config)) *world {
	t.Helper()
	w := &world{office: newOffice(t), clock: &clock{now: today}, diary: &diary{}, kv: memstore.New()}
	w.Desk = w.open(t, w.kv, change...)
	return w
}

// open makes a desk over a store, as after a restart.
func (w *world) open(t testing.TB, kv store.KV, change ...func(*Config)) *Desk {
	t.Helper()
	cfg := Config{
		Store: kv, Issue: w.office.issue, Issued: w.office.issued, CheckName: w.office.checkName,
		Now: w.clock.Now, Audit: w.diary.audit, Logger: slog.New(slog.NewTextHandler(w.diary, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	for _, f := range change {
		f(&cfg)
	}
	d, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func (w *world) invite(t testing.TB, inv Invitation) string {
	t.Helper()
	code, _, err := w.Invite(t.Context(), inv)
	if err != nil {
		t.Fatal(err)
	}
	return code
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := pki.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newCSR(t testing.TB, key crypto.Signer, name string) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func keyIDOf(t testing.TB, key crypto.Signer) string {
	t.Helper()
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return hash(string(spki))
}

// application makes one with a fresh key and ticket.
func application(t testing.TB, code string) Application {
	t.Helper()
	return Application{Code: code, CSR: newCSR(t, newKey(t), ""), Ticket: rand.Text(), Source: phone, Via: ViaBrowser, Agent: "Mozilla/5.0"}
}

func (w *world) apply(t testing.TB, app Application, want State) Request {
	t.Helper()
	r, err := w.Apply(t.Context(), app)
	if err != nil {
		t.Fatal(err)
	}
	if r.State != want {
		t.Fatalf("state %q, want %q", r.State, want)
	}
	return r
}

func TestEnrolment(t *testing.T) {
	w := newWorld(t)
	until := today.Add(48 * time.Hour)
	code := w.invite(t, Invitation{Name: "anna-phone", Hosts: []string{"HA.example.org", "photos", "photos"}, Until: until, Admin: true})
	if len(code) != 26 {
		t.Fatalf("code %q", code)
	}
	for range 3 { // a link preview changes nothing
		inv, err := w.Look(t.Context(), phone, code)
		if err != nil || inv.Name != "anna-phone" || inv.TTL != 15*time.Minute || !inv.Expires.Equal(today.Add(15*time.Minute)) || fmt.Sprint(inv.Hosts) != "[ha.example.org photos]" {
			t.Fatalf("Look = %+v, %v", inv, err)
		}
	}
	app := application(t, strings.ToLower(code[:4])+"-"+code[4:9]+" "+code[9:]+"\n")
	app.Name = "mallory" // the invitation knows better
	r := w.apply(t, app, Issued)
	cert, err := x509.ParseCertificate(r.Cert)
	if err != nil || cert.Subject.CommonName != "anna-phone" {
		t.Fatalf("certificate for %v: %v", cert.Subject, err)
	}
	if g := w.office.grants[0]; g.Name != "anna-phone" || !g.Until.Equal(until) || !g.Admin || fmt.Sprint(g.Hosts) != "[ha.example.org photos]" {
		t.Errorf("grant %+v", g)
	}
	if got, err := w.Status(t.Context(), phone, r.ID, app.Ticket); err != nil || got.State != Issued || len(got.Cert) == 0 {
		t.Errorf("Status = %+v, %v", got, err)
	}
	if got, ok, err := w.StatusOfKey(t.Context(), r.KeyID); err != nil || !ok || got.ID != r.ID {
		t.Errorf("StatusOfKey = %+v, %v, %v", got, ok, err)
	}
	if len(w.Pending()) != 0 || len(w.Codes()) != 0 {
		t.Errorf("still waiting: %v, %v", w.Pending(), w.Codes())
	}
	// The same again is the same answer; anything else of it is a used code.
	if again := w.apply(t, app, Issued); again.ID != r.ID || string(again.Cert) != string(r.Cert) {
		t.Error("the same application got another answer")
	}
	for name, change := range map[string]func(*Application){
		"other key":    func(a *Application) { a.CSR = newCSR(t, newKey(t), "") },
		"other ticket": func(a *Application) { a.Ticket = rand.Text() },
		"no ticket":    func(a *Application) { a.Ticket = "" },
	} {
		thief := app
		thief.Source = netip.MustParseAddr("198.51.100.1")
		change(&thief)
		if _, err := w.Apply(t.Context(), thief); !errors.Is(err, ErrCode) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := w.Look(t.Context(), phone, code); !errors.Is(err, ErrCode) {
		t.Errorf("a used code shows %v", err)
	}
	if w.office.count() != 1 {
		t.Errorf("%d certificates", w.office.count())
	}
}

// TestSecretsStaySecret: what is stored, audited and logged does not contain
// codes and tickets, in no spelling.
func TestSecretsStaySecret(t *testing.T) {
	w := newWorld(t)
	code := w.invite(t, Invitation{Name: "a"})
	app := application(t, code)
	w.apply(t, app, Issued)
	waiting := w.invite(t, Invitation{Name: "b", Approve: true})
	late := application(t, waiting)
	w.apply(t, late, Pending)
	wrong := rand.Text()
	if _, err := w.Look(t.Context(), phone, wrong); err == nil || strings.Contains(err.Error(), wrong) {
		t.Errorf("error %v", err)
	}
	w.Status(t.Context(), phone, "abcdefgh", wrong)
	entries, err := w.kv.List(t.Context(), "")
	if err != nil || len(entries) != 4 {
		t.Fatalf("%d records, %v", len(entries), err)
	}
	text := w.diary.text()
	for _, e := range entries {
		text += e.Key + string(e.Value)
	}
	text = strings.ToUpper(text)
	for _, secret := range []string{code, waiting, app.Ticket, late.Ticket, wrong} {
		if strings.Contains(text, strings.ToUpper(secret)) {
			t.Errorf("the secret %s was written down", secret)
		}
	}
	for _, event := range []string{"enrol.invited", "enrol.requested", "enrol.issued", "enrol.refused"} {
		if w.diary.count(event) == 0 {
			t.Errorf("%s was not audited", event)
		}
	}
}

func TestInvite(t *testing.T) {
	w := newWorld(t)
	w.office.names["taken"] = true
	for name, inv := range map[string]Invitation{
		"taken":         {Name: "taken"},
		"malformed":     {Name: "Anna's phone"},
		"leading -":     {Name: "-x"},
		"too long":      {Name: strings.Repeat("x", 64)},
		"bad host":      {Name: "a", Hosts: []string{"ha.example.org", "1.2.3.4"}},
		"past":          {Name: "a", Until: today},
		"too long life": {Name: "a", TTL: 8 * 24 * time.Hour},
		"no life":       {Name: "a", TTL: time.Nanosecond},
		"negative life": {Name: "a", TTL: -time.Hour},
	} {
		if _, _, err := w.Invite(t.Context(), inv); err == nil {
			t.Errorf("%s: was accepted", name)
		}
	}
	if _, _, err := w.Invite(t.Context(), Invitation{Name: "taken"}); !errors.Is(err, ErrNameTaken) {
		t.Errorf("taken: %v", err)
	}
	// A guest who may come for ten minutes cannot use the code afterwards.
	_, expires, err := w.Invite(t.Context(), Invitation{Name: "guest", Until: today.Add(10 * time.Minute)})
	if err != nil || !expires.Equal(today.Add(10*time.Minute)) {
		t.Errorf("expires %v, %v", expires, err)
	}
	// A second link for a name voids the first.
	first := w.invite(t, Invitation{Name: "anna"})
	second := w.invite(t, Invitation{Name: "anna"})
	if _, err := w.Look(t.Context(), phone, first); !errors.Is(err, ErrCode) {
		t.Errorf("the older code: %v", err)
	}
	if _, err := w.Look(t.Context(), phone, second); err != nil {
		t.Errorf("the newer code: %v", err)
	}
	if c := w.Codes(); len(c) != 2 || c[0].Name != "guest" || c[1].Name != "anna" {
		t.Errorf("Codes = %+v", c)
	}
	if err := w.Withdraw(t.Context(), "anna"); err != nil {
		t.Error(err)
	}
	if _, err := w.Apply(t.Context(), application(t, second)); !errors.Is(err, ErrCode) {
		t.Errorf("a withdrawn code: %v", err)
	}
	if err := w.Withdraw(t.Context(), "anna"); !errors.Is(err, ErrUnknown) {
		t.Errorf("withdrawn twice: %v", err)
	}
}

func TestCodesAreBounded(t *testing.T) {
	w := newWorld(t)
	for range maxCodes {
		w.invite(t, Invitation{})
	}
	if _, _, err := w.Invite(t.Context(), Invitation{}); err == nil {
		t.Error("one more was made")
	}
	w.clock.add(codeTTL)
	w.invite(t, Invitation{})
}

func TestCodeExpires(t *testing.T) {
	w := newWorld(t)
	code := w.invite(t, Invitation{Name: "anna"})
	app := application(t, code)
	w.clock.add(15 * time.Minute)
	if _, err := w.Look(t.Context(), phone, code); !errors.Is(err, ErrCode) {
		t.Errorf("Look at its end: %v", err)
	}
	if _, err := w.Apply(t.Context(), app); !errors.Is(err, ErrCode) {
		t.Errorf("Apply at its end: %v", err)
	}
	w.clock.add(-time.Second)
	w.apply(t, app, Issued)
	// A clock that fell back does not make old codes live on.
	code = w.invite(t, Invitation{Name: "berta"})
	w.clock.add(-2 * time.Minute)
	if _, err := w.Apply(t.Context(), application(t, code)); !errors.Is(err, ErrCode) {
		t.Errorf("from the future: %v", err)
	}
}

// TestOneAnswer: whoever holds no good code learns nothing about codes.
func TestOneAnswer(t *testing.T) {
	w := newWorld(t)
	used := w.invite(t, Invitation{Name: "used"})
	w.apply(t, application(t, used), Issued)
	old := w.invite(t, Invitation{Name: "old"})
	w.clock.add(codeTTL)
	var first string
	for i, code := range []string{rand.Text(), used, old, "x", strings.Repeat("A", 5000), "\x00", "   "} {
		from := netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})
		_, err := w.Look(t.Context(), from, code)
		app := application(t, code)
		app.Source = from
		_, err2 := w.Apply(t.Context(), app)
		if !errors.Is(err, ErrCode) || !errors.Is(err2, ErrCode) || err.Error() != err2.Error() {
			t.Fatalf("%.10q: %v, %v", code, err, err2)
		}
		if first == "" {
			first = err.Error()
		}
		if err.Error() != first {
			t.Errorf("%.10q is told apart: %v", code, err)
		}
	}
}

func TestBadApplicationsUseNothingUp(t *testing.T) {
	w := newWorld(t)
	code := w.invite(t, Invitation{})
	good := application(t, code)
	good.Name = "Anna's Phone"
	tampered := newCSR(t, newKey(t), "x")
	tampered[len(tampered)-1] ^= 1
	w.office.names["taken"] = true
	for name, change := range map[string]func(*Application){
		"no CSR":       func(a *Application) { a.CSR = nil },
		"bad CSR":      func(a *Application) { a.CSR = tampered },
		"long CSR":     func(a *Application) { a.CSR = make([]byte, 1<<20) },
		"weak ticket":  func(a *Application) { a.Ticket = "1234" },
		"long ticket":  func(a *Application) { a.Ticket = strings.Repeat("x", 201) },
		"no name":      func(a *Application) { a.Name = "" },
		"no such name": func(a *Application) { a.Name = "日本" },
		"taken":        func(a *Application) { a.Name = "Taken" },
	} {
		bad := good
		change(&bad)
		if _, err := w.Apply(t.Context(), bad); !errors.Is(err, ErrForm) || errors.Is(err, ErrNameTaken) != (name == "taken") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if r := w.apply(t, good, Pending); r.Name != "anna-s-phone" {
		t.Errorf("name %q", r.Name)
	}
}

// TestNameFromCSR: clients that cannot say a name otherwise wish one there.
func TestNameFromCSR(t *testing.T) {
	w := newWorld(t)
	app := application(t, w.invite(t, Invitation{}))
	app.CSR = newCSR(t, newKey(t), "Work Laptop")
	if r := w.apply(t, app, Pending); r.Name != "work-laptop" {
		t.Errorf("name %q", r.Name)
	}
	app = application(t, w.invite(t, Invitation{Name: "anna"}))
	app.CSR = newCSR(t, newKey(t), "admin")
	if r := w.apply(t, app, Issued); r.Name != "anna" {
		t.Errorf("name %q", r.Name)
	}
}
