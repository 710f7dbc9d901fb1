package state

import (
	"crypto/ecdsa"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/protocol/pki"
)

func open(t *testing.T, path string) *Dir {
	t.Helper()
	d, err := Open(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func identity(t *testing.T, d *Dir) *Identity {
	t.Helper()
	key, err := d.Key()
	if err != nil {
		t.Fatal(err)
	}
	ca, err := pki.NewAuthority("test", nil)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.Issue(key.Public(), pki.Grant{Profile: pki.Agent, Name: "home", NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	return &Identity{Key: key, Cert: cert, CA: ca.Cert(), Relay: "relay.test:443", ServerName: "x.invalid", Name: "home", Domain: "example.org"}
}

func TestIdentityRoundTrip(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data")
	d := open(t, path)
	if _, err := d.Identity(); !errors.Is(err, ErrNotJoined) {
		t.Fatalf("fresh directory: %v", err)
	}
	id := identity(t, d)
	if err := d.SaveIdentity(id); err != nil {
		t.Fatal(err)
	}
	d.Close()
	got, err := open(t, path).Identity()
	if err != nil {
		t.Fatal(err)
	}
	if got.Relay != id.Relay || got.ServerName != id.ServerName || got.Name != id.Name || got.Domain != id.Domain ||
		!got.Cert.Equal(id.Cert) || !got.CA.Equal(id.CA) || !got.Key.(*ecdsa.PrivateKey).Equal(id.Key) {
		t.Errorf("read back %+v", got)
	}
}

func TestEverythingIsPrivate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data")
	d := open(t, path)
	if err := errors.Join(d.SaveIdentity(identity(t, d)), d.SaveServices([]string{"a"}), d.SetTransport("tcp")); err != nil {
		t.Fatal(err)
	}
	err := filepath.WalkDir(path, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", p, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestKeySurvivesACrashBeforeTheAnswer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data")
	d := open(t, path)
	first, err := d.Key()
	if err != nil {
		t.Fatal(err)
	}
	d.Close() // kill -9: nothing else was written
	second, err := open(t, path).Key()
	if err != nil {
		t.Fatal(err)
	}
	if !first.(*ecdsa.PrivateKey).Equal(second) {
		t.Error("another key: a redeemed token would be lost")
	}
}

// A crash while a file is replaced leaves a temporary file at most.
func TestLeftoversDoNotMatter(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data")
	d := open(t, path)
	if err := d.SaveIdentity(identity(t, d)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(path, ".identity.json.123"), []byte("{\"version"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Identity(); err != nil {
		t.Error(err)
	}
}

func TestSecondAgentIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data")
	d := open(t, path)
	if _, err := Open(path, nil); !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), "--data") {
		t.Fatalf("second Open: %v", err)
	}
	d.Close()
	open(t, path)
}

func TestDamageIsReportedWithWhatToDo(t *testing.T) {
	for _, test := range []struct {
		name, file, content, want string
	}{
		{"truncated", identityFile, `{"version": 1, "relay": "re`, "join again"},
		{"empty", identityFile, "", "join again"},
		{"newer", identityFile, `{"version": 2}`, "version 2"},
		{"two values", identityFile, `{"version": 1}{}`, "more in it"},
		{"key gone", keyFile, "", "join again"},
		{"key of another", keyFile, "other", "not for this agent's key"},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "data")
			d := open(t, path)
			if err := d.SaveIdentity(identity(t, d)); err != nil {
				t.Fatal(err)
			}
			content := []byte(test.content)
			if test.content == "other" {
				key, _ := pki.NewKey()
				content, _ = pki.EncodeKey(key)
			}
			if err := os.WriteFile(filepath.Join(path, test.file), content, 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := d.Identity()
			if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), path) {
				t.Errorf("error %v, want one with %q and the path", err, test.want)
			}
		})
	}
}

func TestKeyIsNotMadeAnewForAnExistingIdentity(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data")
	d := open(t, path)
	if err := d.SaveIdentity(identity(t, d)); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(path, keyFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Identity(); err == nil || !strings.Contains(err.Error(), "is missing") {
		t.Errorf("error %v", err)
	}
	if _, err := os.Stat(filepath.Join(path, keyFile)); !errors.Is(err, fs.ErrNotExist) {
		t.Error("a new key was put beside the old certificate")
	}
}

func TestForeignCertificateIsNotStored(t *testing.T) {
	d := open(t, filepath.Join(t.TempDir(), "data"))
	id := identity(t, d)
	other := identity(t, d)
	id.CA = other.CA
	if err := d.SaveIdentity(id); err == nil {
		t.Error("stored a certificate of another CA")
	}
	if _, err := d.Identity(); !errors.Is(err, ErrNotJoined) {
		t.Errorf("something was written: %v", err)
	}
}

func TestUnwritableDirectory(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(filepath.Join(file, "data"), nil); err == nil || !strings.Contains(err.Error(), "--data") {
		t.Errorf("error %v", err)
	}
}

func TestServices(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data")
	d := open(t, path)
	var got []string
	if err := d.LoadServices(&got); err != nil || got != nil {
		t.Fatalf("fresh: %v, %v", got, err)
	}
	if err := d.SaveServices([]string{"a", "b"}); err != nil {
		t.Fatal(err)
	}
	if err := d.LoadServices(&got); err != nil || len(got) != 2 {
		t.Fatalf("%v, %v", got, err)
	}
	if err := os.WriteFile(filepath.Join(path, servicesFile), []byte("["), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := d.LoadServices(&got); err == nil || !strings.Contains(err.Error(), "expose the services again") {
		t.Errorf("damaged: %v", err)
	}
}

func TestMemory(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data")
	d := open(t, path)
	later := time.Date(2027, 1, 2, 3, 4, 5, 0, time.UTC)
	if err := errors.Join(d.SetTransport("tcp"), d.SetLastSeen(later), d.SetLastSeen(later.Add(-time.Hour))); err != nil {
		t.Fatal(err)
	}
	d.Close()
	d = open(t, path)
	if d.Transport() != "tcp" || !d.LastSeen().Equal(later) {
		t.Errorf("remembered %q, %v", d.Transport(), d.LastSeen())
	}
	d.Close()
	if err := os.WriteFile(filepath.Join(path, memoryFile), []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	d = open(t, path) // not worth failing for
	if d.Transport() != "" || !d.LastSeen().IsZero() {
		t.Errorf("remembered %q, %v from a damaged file", d.Transport(), d.LastSeen())
	}
}
