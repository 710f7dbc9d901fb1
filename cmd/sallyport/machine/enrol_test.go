package machine

import (
	"context"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/protocol/pki"
)

func TestEnrol(t *testing.T) {
	f := newFakeRelay(t)
	dir := filepath.Join(t.TempDir(), "new", "nas")
	d := mustEnrol(t, f.enrolment(dir))
	if d.Name != "nas" || d.Due(time.Now()) || d.Usable(time.Now()) != nil || d.Address() != f.addr {
		t.Errorf("%s, due %v, usable %v", d.Name, d.Due(time.Now()), d.Usable(time.Now()))
	}
	for file, want := range map[string]os.FileMode{"nas.key": 0o600, "nas.crt": 0o644, "ca.crt": 0o644, "root.crt": 0o644, "device.json": 0o600} {
		st, err := os.Stat(filepath.Join(dir, file))
		if err != nil || st.Mode().Perm() != want {
			t.Errorf("%s: mode %v, %v, want %v", file, st.Mode().Perm(), err, want)
		}
	}
	if st, _ := os.Stat(dir); st.Mode().Perm() != 0o700 {
		t.Errorf("the directory has mode %v", st.Mode().Perm())
	}
	if _, err := Enrol(t.Context(), f.enrolment(dir)); !errors.Is(err, ErrEnrolled) {
		t.Errorf("a second enrolment: %v", err)
	}
	// Neither the code nor the ticket stays on disk.
	raw, err := os.ReadFile(filepath.Join(dir, recordFile))
	if err != nil || strings.Contains(string(raw), goodCode) || strings.Contains(string(raw), f.ticket) {
		t.Errorf("device.json: %s %v", raw, err)
	}
}

// No request carries the private key, nor a part of it.
func TestKeyStaysHere(t *testing.T) {
	f := newFakeRelay(t)
	d := mustEnrol(t, f.enrolment(t.TempDir()))
	first := d.key
	if err := d.Renew(t.Context()); err != nil {
		t.Fatal(err)
	}
	sent := f.sent()
	if !strings.Contains(sent, "csr") {
		t.Fatal("nothing was recorded")
	}
	for _, key := range []any{first, d.key} {
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		scalar := der[36:68] // of a P-256 key in PKCS#8
		for shift := range 3 {
			if enc := base64.StdEncoding.EncodeToString(scalar[shift : shift+27]); strings.Contains(sent, enc) {
				t.Error("a request carried a private key")
			}
		}
		if strings.Contains(sent, string(scalar)) {
			t.Error("a request carried a private key")
		}
	}
	for line := range strings.Lines(sent) {
		if (strings.HasPrefix(line, "GET") || strings.HasPrefix(line, "POST")) && strings.Contains(line, goodCode) {
			t.Errorf("the code is in an address: %s", line)
		}
	}
}

func TestEnrolRSA(t *testing.T) {
	f := newFakeRelay(t)
	e := f.enrolment(t.TempDir())
	e.RSA = true
	d := mustEnrol(t, e)
	if err := d.Renew(t.Context()); err != nil {
		t.Fatal(err)
	}
	if pub, ok := d.Cert.PublicKey.(*rsa.PublicKey); !ok || pub.N.BitLen() != rsaBits {
		t.Errorf("the renewed key is a %T", d.Cert.PublicKey)
	}
}

func TestNames(t *testing.T) {
	for _, c := range []struct{ code, wish, want, fault string }{
		{"nas", "", "nas", ""},
		{"nas", "nas", "nas", ""},
		{"nas", "other", "", "made out for nas"},
		{"", "mine", "mine", ""},
		{"", "", "box", ""},
		{"../../etc/x", "", "", "cannot be the name"},
		{"", ".hidden", "", "cannot be the name"},
		{"", "ca", "", "cannot be the name"},
		{"", "root", "", "cannot be the name"},
		{"", "next", "", "cannot be the name"},
	} {
		f := newFakeRelay(t)
		f.name = c.code
		e := f.enrolment(t.TempDir())
		e.Name = c.wish
		d, err := Enrol(t.Context(), e)
		if c.fault != "" {
			if err == nil || !strings.Contains(err.Error(), c.fault) {
				t.Errorf("%+v: %v", c, err)
			}
			continue
		}
		if err != nil || d.Name != c.want || f.asked != c.want {
			t.Errorf("%+v: %v, asked as %q", c, err, f.asked)
		}
	}
}

func TestApproval(t *testing.T) {
	f := newFakeRelay(t)
	f.approve, f.busy = true, 2
	e := f.enrolment(t.TempDir())
	told := make(chan string, 2)
	e.Waiting = func(name, words string) {
		told <- name + ": " + words
		f.set(func() { f.state = "issued" })
	}
	e.Words = func(id string) string {
		if len(id) != 64 {
			t.Errorf("key ID %q", id)
		}
		return "six words"
	}
	mustEnrol(t, e)
	if len(told) != 1 || <-told != "nas: six words" {
		t.Error("the words were not told once")
	}
}

func TestWordsOfAnotherKey(t *testing.T) {
	f := newFakeRelay(t)
	f.approve = true
	e := f.enrolment(t.TempDir())
	e.Words = func(string) string { return "other words" }
	e.Waiting = func(string, string) { t.Error("wrong words were shown") }
	if _, err := Enrol(t.Context(), e); err == nil || !strings.Contains(err.Error(), "another key") {
		t.Errorf("got %v", err)
	}
}

func TestDeniedAndRefused(t *testing.T) {
	for name, c := range map[string]struct {
		arrange func(*fakeRelay, *Enrolment)
		denied  bool
	}{
		"denied":     {func(f *fakeRelay, _ *Enrolment) { f.state = "denied" }, true},
		"expired":    {func(f *fakeRelay, _ *Enrolment) { f.state = "expired" }, true},
		"wrong code": {func(_ *fakeRelay, e *Enrolment) { e.Code = "WRONG" }, false},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeRelay(t)
			e := f.enrolment(t.TempDir())
			c.arrange(f, &e)
			_, err := Enrol(t.Context(), e)
			no, refused := errors.AsType[*Refusal](err)
			if errors.Is(err, ErrDenied) != c.denied || refused == c.denied {
				t.Fatalf("got %v", err)
			}
			if refused && (no.Status != http.StatusForbidden || no.Advice != "do better") {
				t.Errorf("%+v", no)
			}
			if strings.Contains(err.Error(), e.Code) {
				t.Errorf("the code is in the error: %v", err)
			}
			// The next try begins anew.
			if left, _ := filepath.Glob(filepath.Join(e.Dir, "*.key")); left != nil {
				t.Errorf("left behind: %v", left)
			}
			if _, err := Open(e.Dir); !errors.Is(err, ErrNotEnrolled) {
				t.Errorf("open: %v", err)
			}
		})
	}
}

// The relay took the request and bound the code to the key, but its answer was
// lost: the next call is the same applicant.
func TestLostAnswer(t *testing.T) {
	f := newFakeRelay(t)
	f.lose = 1
	e := f.enrolment(t.TempDir())
	if _, err := Enrol(t.Context(), e); err == nil {
		t.Fatal("no error")
	}
	mustEnrol(t, e)
}

// A name that is taken does not cost the code.
func TestAnotherNameAfterConflict(t *testing.T) {
	f := newFakeRelay(t)
	f.name, f.taken = "", "nas"
	e := f.enrolment(t.TempDir())
	e.Name = "nas"
	_, err := Enrol(t.Context(), e)
	if no, ok := errors.AsType[*Refusal](err); !ok || no.Status != http.StatusConflict {
		t.Fatalf("got %v", err)
	}
	e.Name = "nas2"
	if d := mustEnrol(t, e); d.Name != "nas2" {
		t.Errorf("name %s", d.Name)
	}
	if keys, _ := filepath.Glob(filepath.Join(e.Dir, "*.key")); len(keys) != 1 {
		t.Errorf("keys: %v", keys)
	}
}

// Waiting can be interrupted and taken up again, without the code.
func TestResume(t *testing.T) {
	f := newFakeRelay(t)
	f.approve = true
	e := f.enrolment(t.TempDir())
	ctx, cancel := context.WithCancel(t.Context())
	e.Waiting = func(string, string) { cancel() }
	if _, err := Enrol(ctx, e); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	key, err := os.ReadFile(filepath.Join(e.Dir, "nas.key"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(e.Dir); !errors.Is(err, ErrNotEnrolled) {
		t.Errorf("open while waiting: %v", err)
	}
	other := e
	other.Relay = "https://enroll.other.test"
	if _, err := Enrol(t.Context(), other); err == nil || !strings.Contains(err.Error(), "another directory") {
		t.Errorf("another relay: %v", err)
	}
	f.set(func() { f.state = "issued" })
	e.Code, e.Waiting = "", nil
	mustEnrol(t, e)
	if after, _ := os.ReadFile(filepath.Join(e.Dir, "nas.key")); string(after) != string(key) {
		t.Error("another key was made")
	}
}

func TestHostileRelay(t *testing.T) {
	t.Run("another key", func(t *testing.T) {
		f := newFakeRelay(t)
		f.swapKey = true
		e := f.enrolment(t.TempDir())
		if _, err := Enrol(t.Context(), e); err == nil || !strings.Contains(err.Error(), "for another key") {
			t.Errorf("got %v", err)
		}
		if _, err := os.Stat(filepath.Join(e.Dir, "nas.crt")); err == nil {
			t.Error("it was kept")
		}
	})
	t.Run("unknown root", func(t *testing.T) {
		f := newFakeRelay(t)
		e := f.enrolment(t.TempDir())
		e.Root = nil
		_, err := Enrol(t.Context(), e)
		if _, ok := errors.AsType[x509.UnknownAuthorityError](err); !ok {
			t.Errorf("got %v", err)
		}
		if f.sent() != "" {
			t.Error("something was sent")
		}
	})
	t.Run("root that is none", func(t *testing.T) {
		f := newFakeRelay(t)
		e := f.enrolment(t.TempDir())
		e.Root = []byte("nothing")
		if _, err := Enrol(t.Context(), e); err == nil || !strings.Contains(err.Error(), "no PEM certificate") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("another CA", func(t *testing.T) {
		key, err := pki.NewKey()
		if err != nil {
			t.Fatal(err)
		}
		var cas [2]*pki.Authority
		for i := range cas {
			if cas[i], err = pki.LoadOrCreate(t.TempDir(), "device-ca"); err != nil {
				t.Fatal(err)
			}
		}
		cert, err := cas[0].Issue(key.Public(), pki.Grant{Profile: pki.Device, Name: "nas", NotAfter: time.Now().Add(time.Hour)})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := checkIssued(cert.Raw, [][]byte{cas[0].Cert().Raw}, key); err != nil {
			t.Error(err)
		}
		for _, chain := range [][][]byte{nil, {cas[1].Cert().Raw}, {{1}}} {
			if _, err := checkIssued(cert.Raw, chain, key); err == nil {
				t.Error("a certificate was believed without its CA")
			}
		}
	})
}

func TestParseRelay(t *testing.T) {
	for in, want := range map[string][2]string{
		"example.org":                           {"https://enroll.example.org", ""},
		"https://example.org:8443/":             {"https://enroll.example.org:8443", ""},
		"https://enroll.example.org/#ABC":       {"https://enroll.example.org", "ABC"},
		"HTTPS://Enroll.Example.org:8443/# AB ": {"https://enroll.example.org:8443", "AB"},
		"enroll.example.org#AB":                 {"https://enroll.example.org", "AB"},
	} {
		base, code, err := ParseRelay(in)
		if err != nil || base != want[0] || code != want[1] {
			t.Errorf("%s: %q %q %v", in, base, code, err)
		}
	}
	for _, in := range []string{"", "http://example.org/#SECRET", "https://u:p@example.org#SECRET", "https://example.org/x#SECRET", "https://e/?q=1#SECRET", "https://%zz#SECRET"} {
		if _, _, err := ParseRelay(in); err == nil || strings.Contains(err.Error(), "SECRET") {
			t.Errorf("%s: %v", in, err)
		}
	}
}

func FuzzParseRelay(f *testing.F) {
	f.Add("https://enroll.example.org:8443/#ABC")
	f.Add("example.org")
	f.Fuzz(func(t *testing.T, s string) {
		base, _, err := ParseRelay(s)
		if err == nil && (!strings.HasPrefix(base, "https://enroll.") || strings.ContainsAny(base[8:], "/#?@")) {
			t.Errorf("%q became %q", s, base)
		}
	})
}
