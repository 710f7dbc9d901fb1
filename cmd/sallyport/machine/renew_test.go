package machine

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/protocol/pki"
)

func TestRenew(t *testing.T) {
	f := newFakeRelay(t)
	d := mustEnrol(t, f.enrolment(t.TempDir()))
	begin, end := d.Cert.NotBefore, d.Cert.NotAfter
	third := end.Sub(begin) / 3
	if d.Due(begin.Add(2*third - time.Hour)) {
		t.Error("due before two thirds of its life")
	}
	if !d.Due(begin.Add(2*third + time.Hour)) {
		t.Error("not due after two thirds of its life")
	}
	if did, err := d.RenewIfDue(t.Context(), time.Now()); did || err != nil {
		t.Errorf("renewed at once: %v %v", did, err)
	}
	old := d.Cert
	other, err := Open(d.Dir) // a second process
	if err != nil {
		t.Fatal(err)
	}
	if did, err := d.RenewIfDue(t.Context(), begin.Add(2*third+time.Hour)); !did || err != nil {
		t.Fatalf("not renewed: %v %v", did, err)
	}
	again, err := Open(d.Dir)
	if err != nil || bytes.Equal(again.Cert.Raw, old.Raw) || !bytes.Equal(again.Cert.Raw, d.Cert.Raw) {
		t.Errorf("on disk is not the new certificate: %v", err)
	}
	if bytes.Equal(again.Cert.RawSubjectPublicKeyInfo, old.RawSubjectPublicKeyInfo) {
		t.Error("the key is the old one")
	}
	if st, _ := os.Stat(d.KeyFile()); st.Mode().Perm() != 0o600 {
		t.Errorf("the key has mode %v", st.Mode().Perm())
	}
	if left, _ := filepath.Glob(filepath.Join(d.Dir, nextPrefix+"*")); left != nil {
		t.Errorf("left behind: %v", left)
	}
	if _, err := other.RenewIfDue(t.Context(), time.Now()); err != nil || !bytes.Equal(other.Cert.Raw, again.Cert.Raw) || f.renewed != 1 {
		t.Errorf("the other process did not take the new one over: %v, %d renewals", err, f.renewed)
	}
}

// A guest's certificate is due at once, as its begin lies in the past. Renewal
// brings no later end, so that it is asked for once.
func TestGuestRenewsOnce(t *testing.T) {
	f := newFakeRelay(t)
	f.end = time.Now().Add(10 * time.Minute)
	d := mustEnrol(t, f.enrolment(t.TempDir()))
	for range 3 {
		again, err := Open(d.Dir)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := again.RenewIfDue(t.Context(), time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	if f.renewed != 1 {
		t.Errorf("renewed %d times", f.renewed)
	}
	// The owner gave more time: asked for by hand, it is regular again.
	f.set(func() { f.end = time.Now().Add(365 * 24 * time.Hour) })
	if err := d.Renew(t.Context()); err != nil || d.Due(time.Now()) || !d.Due(d.Cert.NotAfter.Add(-time.Hour)) {
		t.Errorf("after more time: %v, due %v", err, d.Due(time.Now()))
	}
}

func TestOnlyOneRenews(t *testing.T) {
	f := newFakeRelay(t)
	d := mustEnrol(t, f.enrolment(t.TempDir()))
	unlock, err := lock(d.Dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Renew(t.Context()); !errors.Is(err, ErrBusy) {
		t.Errorf("got %v", err)
	}
	unlock()
	if err := d.Renew(t.Context()); err != nil {
		t.Error(err)
	}
}

// Whatever the relay answers, the old pair stays as it is.
func TestRenewalThatFails(t *testing.T) {
	f := newFakeRelay(t)
	d := mustEnrol(t, f.enrolment(t.TempDir()))
	f.swapKey = true
	if err := d.Renew(t.Context()); err == nil || !strings.Contains(err.Error(), "another key") {
		t.Errorf("got %v", err)
	}
	again, err := Open(d.Dir)
	if err != nil || !bytes.Equal(again.Cert.Raw, d.Cert.Raw) {
		t.Errorf("the old pair is gone: %v", err)
	}
	// A stranger to the relay is refused.
	stranger := newFakeRelay(t)
	d.record.Address = stranger.addr
	d.roots = pool(t, stranger.root)
	if err := errors.Join(pki.WriteFile(d.path(rootFile), stranger.root, 0o644), writeRecord(d.Dir, d.record)); err != nil {
		t.Fatal(err)
	}
	if no, ok := errors.AsType[*Refusal](d.Renew(t.Context())); !ok || no.Status != 401 {
		t.Errorf("got %v", no)
	}
}

// A crash between any two writes leaves a pair that belongs together.
func TestCrashWhileRenewing(t *testing.T) {
	f := newFakeRelay(t)
	for cut := range 5 {
		d := mustEnrol(t, f.enrolment(t.TempDir()))
		f.set(func() { f.pub, f.state = nil, "" })
		key, err := newKey(false)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := f.device.Issue(key.Public(), pki.Grant{Profile: pki.Device, Name: "nas", NotAfter: time.Now().Add(time.Hour)})
		if err != nil {
			t.Fatal(err)
		}
		for i, step := range []func() error{
			func() error { return writeKey(d.path(nextPrefix+"key"), key) },
			func() error { return pki.WriteFile(d.path(nextPrefix+"crt"), pki.EncodeCert(cert), 0o644) },
			func() error { return os.Rename(d.path(nextPrefix+"key"), d.KeyFile()) },
			func() error { return os.Rename(d.path(nextPrefix+"crt"), d.CertFile()) },
		} {
			if i >= cut {
				break
			}
			if err := step(); err != nil {
				t.Fatal(err)
			}
		}
		again, err := Open(d.Dir)
		if err != nil {
			t.Errorf("cut after %d writes: %v", cut, err)
			continue
		}
		if isNew := bytes.Equal(again.Cert.Raw, cert.Raw); isNew != (cut >= 3) {
			t.Errorf("cut after %d writes: the new certificate is used: %v", cut, isNew)
		}
		if err := again.Renew(t.Context()); err != nil {
			t.Errorf("cut after %d writes, renewing: %v", cut, err)
		}
	}
}

// Somebody else's certificate beside our key is an error, never taken.
func TestPairThatDoesNotBelongTogether(t *testing.T) {
	f := newFakeRelay(t)
	d := mustEnrol(t, f.enrolment(t.TempDir()))
	other := mustEnrol(t, func() Enrolment {
		f.set(func() { f.pub, f.state = nil, "" })
		return f.enrolment(t.TempDir())
	}())
	raw, err := os.ReadFile(other.CertFile())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{d.CertFile(), d.path(nextPrefix + "crt")} {
		if err := os.WriteFile(name, raw, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Open(d.Dir); err == nil || !strings.Contains(err.Error(), "do not belong together") {
		t.Errorf("got %v", err)
	}
	if err := os.Remove(d.KeyFile()); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(d.Dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a key: %v", err)
	}
}

// Roots that are there but broken must not become "trust everybody".
func TestBrokenRoots(t *testing.T) {
	f := newFakeRelay(t)
	d := mustEnrol(t, f.enrolment(t.TempDir()))
	if err := os.WriteFile(d.path(rootFile), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(d.Dir); err == nil || !strings.Contains(err.Error(), "no PEM certificate") {
		t.Errorf("got %v", err)
	}
}

// A clock that is wrong is called so, and is not taken for the end.
func TestUsable(t *testing.T) {
	f := newFakeRelay(t)
	d := mustEnrol(t, f.enrolment(t.TempDir()))
	if err := d.Usable(d.Cert.NotBefore.Add(-time.Hour)); err == nil || errors.Is(err, ErrEnded) || !strings.Contains(err.Error(), "set the clock") {
		t.Errorf("before its begin: %v", err)
	}
	if err := d.Usable(d.Cert.NotAfter.Add(time.Hour)); !errors.Is(err, ErrEnded) || !strings.Contains(err.Error(), "clock says") {
		t.Errorf("after its end: %v", err)
	}
}

func TestBrokenRecord(t *testing.T) {
	for text, want := range map[string]string{
		`{`: "not readable", `{"schema":2,"name":"a"}`: "schema 2", `{"schema":1,"name":"../x"}`: "cannot be the name",
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, recordFile), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(dir); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
}
