package certs

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sallyport/sallyport/protocol/pki"
)

// pair writes a certificate for names and its key.
func pair(t testing.TB, dir, base string, notAfter time.Time, names ...string) Pair {
	t.Helper()
	key, err := pki.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(notAfter.Unix()), DNSNames: names, NotBefore: notAfter.AddDate(-1, 0, 0), NotAfter: notAfter,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	keyPEM, err := pki.EncodeKey(key)
	if err != nil {
		t.Fatal(err)
	}
	p := Pair{Cert: filepath.Join(dir, base+".crt"), Key: filepath.Join(dir, base+".key")}
	write(t, p.Cert, pki.EncodeCert(cert))
	write(t, p.Key, keyPEM)
	return p
}

func write(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func serial(t testing.TB, s Source, name string) int64 {
	t.Helper()
	cert, err := s.GetCertificate(name)
	if err != nil {
		t.Fatal(err)
	}
	return cert.Leaf.SerialNumber.Int64()
}

func TestFilesMatch(t *testing.T) {
	dir := t.TempDir()
	base := time.Now().Add(90 * 24 * time.Hour)
	at := func(i int) time.Time { return base.Add(time.Duration(i) * time.Hour) }
	f, err := LoadFiles([]Pair{
		pair(t, dir, "wild", at(1), "*.example.org", "Example.ORG"),
		pair(t, dir, "exact", at(2), "ha.example.org"),
		pair(t, dir, "old", at(3), "nas.example.org"),
		pair(t, dir, "new", at(4), "nas.example.org"),
		pair(t, dir, "old2", at(3), "nas.example.org"),
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]int{"example.org": 1, "cam.example.org": 1, "ha.example.org": 2, "nas.example.org": 4} {
		if got := serial(t, f, name); got != at(want).Unix() {
			t.Errorf("%s: the wrong certificate", name)
		}
	}
	for _, name := range []string{"a.cam.example.org", "example.com", "", "org"} {
		if c, err := f.GetCertificate(name); err == nil || c != nil {
			t.Errorf("%q gets a certificate that does not cover it", name)
		}
	}
}

func TestLoadFilesReportsAll(t *testing.T) {
	dir := t.TempDir()
	later := time.Now().AddDate(0, 3, 0)
	a, b := pair(t, dir, "a", later, "a.example.org"), pair(t, dir, "b", later, "b.example.org")
	write(t, filepath.Join(dir, "broken.crt"), []byte("no PEM"))
	none := pair(t, dir, "none", later)
	_, err := LoadFiles([]Pair{
		a, {a.Cert, b.Key}, {filepath.Join(dir, "broken.crt"), a.Key}, none,
	}, nil)
	for _, want := range []string{b.Key, "broken.crt", "none.crt", "no DNS name"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not say %q: %v", want, err)
		}
	}
	_, err = LoadFiles([]Pair{{filepath.Join(dir, "gone.crt"), filepath.Join(dir, "gone.key")}, {a.Cert, filepath.Join(dir, "gone2.key")}}, nil)
	for _, want := range []string{"gone.crt", "gone.key", "gone2.key"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not say %q: %v", want, err)
		}
	}
	if _, err := LoadFiles(nil, nil); err == nil {
		t.Error("no files are enough")
	}
	write(t, filepath.Join(dir, "huge.crt"), make([]byte, maxFile+1))
	if _, err := LoadFiles([]Pair{{filepath.Join(dir, "huge.crt"), a.Key}}, nil); err == nil || !strings.Contains(err.Error(), "1 MiB") {
		t.Errorf("a huge file: %v", err)
	}
}

func TestReloadIsAllOrNothing(t *testing.T) {
	dir := t.TempDir()
	day := time.Now().AddDate(0, 3, 0)
	a, b := pair(t, dir, "a", day, "a.example.org"), pair(t, dir, "b", day, "b.example.org")
	f, err := LoadFiles([]Pair{a, b}, nil)
	if err != nil {
		t.Fatal(err)
	}
	was := serial(t, f, "a.example.org")
	pair(t, dir, "a", day.AddDate(0, 1, 0), "a.example.org")
	write(t, b.Key, []byte("half a k"))
	if err := f.Reload(); err == nil || !strings.Contains(err.Error(), b.Key) {
		t.Errorf("error %v", err)
	}
	if serial(t, f, "a.example.org") != was {
		t.Error("half of the new files serve")
	}
	pair(t, dir, "b", day, "b.example.org")
	if err := f.Reload(); err != nil {
		t.Fatal(err)
	}
	if serial(t, f, "a.example.org") == was {
		t.Error("the old certificate still serves")
	}
}

// A logBuffer is where a test reads the log of another goroutine.
type logBuffer struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func TestRunFollowsTheFiles(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		log := new(logBuffer)
		day := time.Now().AddDate(0, 3, 0)
		a := pair(t, dir, "a", day, "a.example.org")
		f, err := LoadFiles([]Pair{a}, slog.New(slog.NewTextHandler(log, nil)))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- f.Run(ctx) }()
		was := serial(t, f, "a.example.org")
		next := func() {
			time.Sleep(pollEvery)
			synctest.Wait()
		}
		next()
		if log.String() != "" {
			t.Errorf("nothing changed, but: %s", log)
		}
		// The certificate is there, its key not yet: the old pair serves on,
		// and the log says so once.
		info, err := os.Stat(a.Cert)
		if err != nil {
			t.Fatal(err)
		}
		oldKey, err := os.ReadFile(a.Key)
		if err != nil {
			t.Fatal(err)
		}
		pair(t, dir, "a", day.AddDate(0, 1, 0), "a.example.org")
		newKey, err := os.ReadFile(a.Key)
		if err != nil {
			t.Fatal(err)
		}
		write(t, a.Key, oldKey)
		for range 3 {
			next()
		}
		if serial(t, f, "a.example.org") != was || strings.Count(log.String(), "not reloaded") != 1 {
			t.Errorf("half a change; the log: %s", log)
		}
		// The old modification time hides nothing.
		write(t, a.Key, newKey)
		for _, p := range []string{a.Cert, a.Key} {
			if err := os.Chtimes(p, info.ModTime(), info.ModTime()); err != nil {
				t.Fatal(err)
			}
		}
		next()
		if serial(t, f, "a.example.org") == was || strings.Count(log.String(), "files reloaded") != 1 {
			t.Errorf("the change is not seen; the log: %s", log)
		}
		if err := os.Remove(a.Key); err != nil {
			t.Fatal(err)
		}
		next()
		serial(t, f, "a.example.org")
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestFilesWarn(t *testing.T) {
	dir := t.TempDir()
	for name, tt := range map[string]struct {
		until time.Duration
		mode  os.FileMode
		want  string
	}{
		"fresh":   {90 * 24 * time.Hour, 0o600, ""},
		"soon":    {3 * 24 * time.Hour, 0o600, "expires soon"},
		"expired": {-time.Hour, 0o600, "has expired"},
		"open":    {90 * 24 * time.Hour, 0o644, "every user of this machine"},
	} {
		var log bytes.Buffer
		p := pair(t, dir, name, time.Now().Add(tt.until), "a.example.org", "not a name")
		if err := os.Chmod(p.Key, tt.mode); err != nil {
			t.Fatal(err)
		}
		f, err := LoadFiles([]Pair{p}, slog.New(slog.NewTextHandler(&log, nil)))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		serial(t, f, "a.example.org")
		if !strings.Contains(log.String(), tt.want) || !strings.Contains(log.String(), "is not used") || (tt.want == "" && strings.Count(log.String(), "\n") != 1) {
			t.Errorf("%s: the log says %q", name, log.String())
		}
	}
}

func TestRandomCert(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	first, err := RandomCert(dir)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(filepath.Join(dir, randomFile)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("kept as %v, %v", info.Mode(), err)
	}
	again, err := RandomCert(dir)
	if err != nil || !bytes.Equal(first.Certificate[0], again.Certificate[0]) {
		t.Errorf("a restart changes the certificate (%v)", err)
	}
	elsewhere, err := RandomCert(other)
	if err != nil || bytes.Equal(first.Leaf.RawSubjectPublicKeyInfo, elsewhere.Leaf.RawSubjectPublicKeyInfo) {
		t.Errorf("two installations share a key (%v)", err)
	}
	if s := first.Leaf.Subject.String(); s != "CN=localhost" || len(first.Leaf.DNSNames) != 1 || first.Leaf.DNSNames[0] != "localhost" {
		t.Errorf("it names %s, %q", s, first.Leaf.DNSNames)
	}
	write(t, filepath.Join(dir, randomFile), []byte("torn"))
	if fresh, err := RandomCert(dir); err != nil || bytes.Equal(fresh.Certificate[0], first.Certificate[0]) {
		t.Errorf("a broken file is not replaced (%v)", err)
	}
	if _, err := RandomCert(filepath.Join(dir, "absent")); err == nil {
		t.Error("an absent directory is no error")
	}
}
