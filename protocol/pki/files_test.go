package pki

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func writeFile(t *testing.T, path string, data []byte, perm os.FileMode) {
	t.Helper()
	if err := WriteFile(path, data, perm); err != nil {
		t.Fatal(err)
	}
}

func modeOf(t *testing.T, path string) os.FileMode {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Mode().Perm()
}

func TestLoadOrCreate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state", "ca")
	a, err := LoadOrCreate(dir, "device")
	if err != nil {
		t.Fatal(err)
	}
	if m := modeOf(t, dir); m != 0o700 {
		t.Errorf("directory mode %#o, want 0700", m)
	}
	if m := modeOf(t, filepath.Join(dir, "device.key")); m != 0o600 {
		t.Errorf("key mode %#o, want 0600", m)
	}
	b, err := LoadOrCreate(dir, "device")
	if err != nil {
		t.Fatal(err)
	}
	if a.Fingerprint() != b.Fingerprint() {
		t.Error("the second start made another CA")
	}
	other, err := LoadOrCreate(dir, "agent")
	if err != nil || other.Fingerprint() == a.Fingerprint() {
		t.Errorf("the agent CA is not its own: %v", err)
	}
	for _, name := range []string{"", "../x", "a/b", "Device", "a.b"} {
		if _, err := LoadOrCreate(dir, name); err == nil {
			t.Errorf("the name %q was taken", name)
		}
	}
}

// TestFirstStartRace: two processes that start at once agree on one CA.
func TestFirstStartRace(t *testing.T) {
	dir := t.TempDir()
	prints := make([][32]byte, 6)
	var wg sync.WaitGroup
	for i := range prints {
		wg.Go(func() {
			a, err := LoadOrCreate(dir, "device")
			if err != nil {
				t.Error(err)
				return
			}
			prints[i] = a.Fingerprint()
		})
	}
	wg.Wait()
	if len(slices.Compact(prints)) != 1 {
		t.Error("several CAs were made")
	}
}

// TestDamagedAuthority: every damage is refused with words on what to do, and
// not one byte of what is there changes.
func TestDamagedAuthority(t *testing.T) {
	other := newAuthority(t, time.Now())
	otherKey, _ := EncodeKey(other.key)
	leafKey, _ := NewKey()
	leafPEM, _ := EncodeKey(leafKey)
	leaf, err := other.Issue(leafKey.Public(), Grant{Profile: Device, Name: "x"})
	if err != nil {
		t.Fatal(err)
	}
	subTemplate := *other.cert
	subDER, err := x509.CreateCertificate(rand.Reader, &subTemplate, other.cert, leafKey.Public(), other.key)
	if err != nil {
		t.Fatal(err)
	}
	sub, err := x509.ParseCertificate(subDER) // a CA, but below another one
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name   string
		damage func(t *testing.T, crt, key string)
		want   string
	}{
		{"no certificate", func(t *testing.T, crt, _ string) { os.Remove(crt) }, "is missing"},
		{"no key", func(t *testing.T, _, key string) { os.Remove(key) }, "is missing"},
		{"empty certificate", func(t *testing.T, crt, _ string) { writeFile(t, crt, nil, 0o644) }, "empty"},
		{"empty key", func(t *testing.T, _, key string) { writeFile(t, key, []byte("\n"), 0o600) }, "empty"},
		{"cut certificate", func(t *testing.T, crt, _ string) { writeFile(t, crt, readFile(t, crt)[:200], 0o644) }, "PEM"},
		{"cut key", func(t *testing.T, _, key string) { writeFile(t, key, readFile(t, key)[:100], 0o600) }, "PEM"},
		{"rubbish", func(t *testing.T, crt, _ string) { writeFile(t, crt, []byte("hello"), 0o644) }, "PEM"},
		{"two certificates", func(t *testing.T, crt, _ string) {
			writeFile(t, crt, append(readFile(t, crt), EncodeCert(other.cert)...), 0o644)
		}, "more"},
		{"foreign certificate", func(t *testing.T, crt, _ string) { writeFile(t, crt, EncodeCert(other.cert), 0o644) }, "belong together"},
		{"foreign key", func(t *testing.T, _, key string) { writeFile(t, key, otherKey, 0o600) }, "belong together"},
		{"leaf instead of a CA", func(t *testing.T, crt, key string) {
			writeFile(t, crt, EncodeCert(leaf), 0o644)
			writeFile(t, key, leafPEM, 0o600)
		}, "not one of a CA"},
		{"second level", func(t *testing.T, crt, key string) {
			writeFile(t, crt, EncodeCert(sub), 0o644)
			writeFile(t, key, leafPEM, 0o600)
		}, "own key"},
		{"files swapped", func(t *testing.T, crt, key string) {
			c, k := readFile(t, crt), readFile(t, key)
			writeFile(t, crt, k, 0o600)
			writeFile(t, key, c, 0o600)
		}, "PEM block is a"},
		{"directory in its place", func(t *testing.T, crt, _ string) {
			os.Remove(crt)
			os.Mkdir(crt, 0o700)
		}, "directory"},
		{"dangling link", func(t *testing.T, crt, key string) {
			os.Remove(crt)
			os.Remove(key)
			os.Symlink("/nonexistent/elsewhere", key)
		}, "is missing"},
		{"waiting half of another CA", func(t *testing.T, crt, key string) {
			os.Remove(crt)
			writeFile(t, crt+newSuffix, EncodeCert(other.cert), 0o644)
		}, "is missing"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			if _, err := LoadOrCreate(dir, "device"); err != nil {
				t.Fatal(err)
			}
			crt, key := filepath.Join(dir, "device.crt"), filepath.Join(dir, "device.key")
			test.damage(t, crt, key)
			before := snapshot(t, dir)
			_, err := LoadOrCreate(dir, "device")
			if err == nil {
				t.Fatal("the CA was opened or made anew")
			}
			for _, want := range []string{test.want, "device.", "backup"} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("the error does not say %q:\n%v", want, err)
				}
			}
			if after := snapshot(t, dir); after != before {
				t.Errorf("the files changed from\n%s\nto\n%s", before, after)
			}
		})
	}
}

func snapshot(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, e := range entries {
		b.WriteString(e.Name() + " " + e.Type().String() + "\n")
		if data, err := os.ReadFile(filepath.Join(dir, e.Name())); err == nil {
			b.Write(data)
		}
	}
	return b.String()
}

func TestAuthorityDates(t *testing.T) {
	dir := t.TempDir()
	at := func(now time.Time) error {
		_, err := Open(dir, "device", func() time.Time { return now })
		return err
	}
	if err := at(day(2027)); err != nil {
		t.Fatal(err)
	}
	if err := at(day(2036)); err != nil {
		t.Errorf("in its last year: %v", err)
	}
	if err := at(day(2038)); err == nil || !strings.Contains(err.Error(), "expired on 2037-06-01") {
		t.Errorf("after its end: %v", err)
	}
	if err := at(day(2026)); err == nil || !strings.Contains(err.Error(), "set the clock") {
		t.Errorf("before its begin: %v", err)
	}
}

func TestKeyThatOthersCanRead(t *testing.T) {
	dir := t.TempDir()
	if _, err := LoadOrCreate(dir, "device"); err != nil {
		t.Fatal(err)
	}
	key := filepath.Join(dir, "device.key")
	os.Chmod(key, 0o640)
	if _, err := LoadOrCreate(dir, "device"); err == nil || !strings.Contains(err.Error(), "chmod 600 "+key) {
		t.Errorf("a key with mode 0640 was used: %v", err)
	}
}

// TestCreationCutByCrash: whatever a crash leaves of a first start, the next
// one works, and a CA that was in place for one half stays that one.
func TestCreationCutByCrash(t *testing.T) {
	for _, half := range []string{"crt", "key"} {
		dir := t.TempDir()
		a, err := LoadOrCreate(dir, "device")
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, "device."+half)
		os.Rename(path, path+newSuffix)
		b, err := LoadOrCreate(dir, "device")
		if err != nil || a.Fingerprint() != b.Fingerprint() {
			t.Errorf("%s was still waiting: %v", half, err)
		}
	}
	dir := t.TempDir() // before the first rename
	writeFile(t, filepath.Join(dir, "device.key"+newSuffix), []byte("half"), 0o600)
	if _, err := os.Stat(filepath.Join(dir, markerName)); err == nil {
		t.Fatal("marker is there too early")
	}
	writeFile(t, filepath.Join(dir, markerName), nil, 0o600)
	if _, err := LoadOrCreate(dir, "device"); err != nil {
		t.Errorf("with a leftover: %v", err)
	}
}

func TestWriteFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	for _, perm := range []os.FileMode{0o600, 0o644, 0o600} {
		writeFile(t, path, []byte(perm.String()), perm)
		if got := readFile(t, path); string(got) != perm.String() || modeOf(t, path) != perm {
			t.Errorf("%q with mode %v, want %v", got, modeOf(t, path), perm)
		}
	}
	// A failed write leaves the old content and no litter.
	if err := os.Mkdir(filepath.Join(dir, "d"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(filepath.Join(dir, "d"), []byte("x"), 0o600); err == nil {
		t.Error("a directory was overwritten")
	}
	if err := WriteFile(filepath.Join(dir, "nowhere", "f"), nil, 0o600); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("in a missing directory: %v", err)
	}
	entries, _ := os.ReadDir(dir)
	if len(entries) != 2 {
		t.Errorf("temporary files stayed: %v", entries)
	}
}

func TestSecureDir(t *testing.T) {
	base := t.TempDir()
	fresh := filepath.Join(base, "a", "b")
	if err := SecureDir(fresh); err != nil || modeOf(t, fresh) != 0o700 {
		t.Fatalf("fresh: %v", err)
	}
	os.Chmod(fresh, 0o755)
	writeFile(t, filepath.Join(fresh, "x"), nil, 0o600)
	if err := SecureDir(fresh); err != nil || modeOf(t, fresh) != 0o700 {
		t.Errorf("one of ours that somebody opened: %v, mode %#o", err, modeOf(t, fresh))
	}

	empty := filepath.Join(base, "empty")
	os.Mkdir(empty, 0o755)
	if err := SecureDir(empty); err != nil || modeOf(t, empty) != 0o700 {
		t.Errorf("an empty directory: %v", err)
	}

	link := filepath.Join(base, "link")
	os.Symlink(empty, link)
	if err := SecureDir(link); err != nil {
		t.Errorf("through a link: %v", err)
	}

	file := filepath.Join(base, "file")
	writeFile(t, file, nil, 0o600)
	for _, path := range []string{file, filepath.Join(file, "below")} {
		if err := SecureDir(path); err == nil || !strings.Contains(err.Error(), "--data") {
			t.Errorf("SecureDir(%s): %v", path, err)
		}
	}
}

// TestSecureDirLeavesOthersAlone: a mistyped path must not close a directory
// of the machine.
func TestSecureDirLeavesOthersAlone(t *testing.T) {
	dir := t.TempDir()
	os.Chmod(dir, 0o755)
	writeFile(t, filepath.Join(dir, "passwd"), []byte("x"), 0o644)
	if err := SecureDir(dir); err == nil || !strings.Contains(err.Error(), "chmod 700") {
		t.Errorf("SecureDir of a foreign directory: %v", err)
	}
	if m := modeOf(t, dir); m != 0o755 {
		t.Errorf("its mode became %#o", m)
	}
	os.Chmod(dir, 0o700) // the owner did as told
	if err := SecureDir(dir); err != nil {
		t.Errorf("after chmod: %v", err)
	}

	sticky := t.TempDir()
	os.Chmod(sticky, 0o777|os.ModeSticky)
	if err := SecureDir(sticky); err == nil {
		t.Error("a directory like /tmp was taken")
	}
}

func TestPEM(t *testing.T) {
	a := newAuthority(t, day(2027))
	pem, err := EncodeKey(a.key)
	if err != nil {
		t.Fatal(err)
	}
	key, err := DecodeKey(pem)
	if err != nil || !sameKey(key.Public(), a.cert.PublicKey) {
		t.Errorf("DecodeKey: %v", err)
	}
	params := []byte("-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n")
	if _, err := DecodeKey(append(params, pem...)); err != nil {
		t.Errorf("with EC PARAMETERS before it: %v", err)
	}
	cert, err := DecodeCert(EncodeCert(a.cert))
	if err != nil || !cert.Equal(a.cert) {
		t.Errorf("DecodeCert: %v", err)
	}
	encrypted := bytes.ReplaceAll(pem, []byte("PRIVATE KEY"), []byte("ENCRYPTED PRIVATE KEY"))
	if _, err := DecodeKey(encrypted); err == nil || !strings.Contains(err.Error(), "password") {
		t.Errorf("an encrypted key: %v", err)
	}
}
