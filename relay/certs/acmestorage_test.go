package certs

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"
)

// Wherever a crash tears a renewal, a whole pair is found, also after a second
// crash.
func TestStorageSurvivesTornWrites(t *testing.T) {
	const host = "ha.relay.test"
	key := issuerKey(testCA)
	now := time.Now().Truncate(time.Second)
	for name, tear := range map[string]func(t *testing.T, crt, key string){
		"whole":            func(*testing.T, string, string) {},
		"key, not yet crt": func(t *testing.T, _, key string) { swap(t, key) },
		"rolled back": func(t *testing.T, _, key string) {
			swap(t, key)
			if err := os.Remove(key); err != nil {
				t.Fatal(err)
			}
		},
		"crt broken": func(t *testing.T, crt, key string) {
			swap(t, crt)
			swap(t, key)
			write(t, crt, []byte("half a c"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			want := keep(t, dir, host, now, now.Add(day))
			crt := filepath.Join(dir, filepath.FromSlash(certmagic.StorageKeys.SiteCert(key, host)))
			private := filepath.Join(dir, filepath.FromSlash(certmagic.StorageKeys.SitePrivateKey(key, host)))
			for range 2 {
				tear(t, crt, private)
				s := newStorage(dir)
				cert, err := s.certificate(key, host)
				if err != nil || cert == nil || !cert.Leaf.Equal(want) {
					t.Fatalf("the pair is gone: %v", err)
				}
			}
		})
	}
}

// swap stores something else over a file, as an interrupted renewal does.
func swap(t *testing.T, path string) {
	t.Helper()
	s := newStorage(filepath.Dir(path))
	if err := s.Store(t.Context(), filepath.Base(path), []byte("something else")); err != nil {
		t.Fatal(err)
	}
}

func TestStorageRefuses(t *testing.T) {
	dir := t.TempDir()
	s, key, now := newStorage(dir), issuerKey(testCA), time.Now()
	if cert, err := s.certificate(key, "ha.relay.test"); cert != nil || err != nil {
		t.Errorf("an empty directory: %v, %v", cert, err)
	}
	keep(t, dir, "ha.relay.test", now, now.Add(day))
	if err := os.Rename(s.Filename(certmagic.StorageKeys.CertsSitePrefix(key, "ha.relay.test")), s.Filename(certmagic.StorageKeys.CertsSitePrefix(key, "nas.relay.test"))); err != nil {
		t.Fatal(err)
	}
	for _, ext := range []string{".crt", ".key"} {
		at := s.Filename(certmagic.StorageKeys.CertsSitePrefix(key, "nas.relay.test"))
		if err := os.Rename(filepath.Join(at, "ha.relay.test"+ext), filepath.Join(at, "nas.relay.test"+ext)); err != nil {
			t.Fatal(err)
		}
	}
	if cert, err := s.certificate(key, "nas.relay.test"); cert != nil || err == nil {
		t.Error("a certificate of another host is used")
	}
	if err := s.forget(t.Context(), key, "nas.relay.test"); err != nil {
		t.Error(err)
	}
	if cert, err := s.certificate(key, "nas.relay.test"); cert != nil || err != nil {
		t.Errorf("forgotten: %v, %v", cert, err)
	}
}

func TestStorageLocks(t *testing.T) {
	s := newStorage(t.TempDir())
	if err := errors.Join(s.Lock(t.Context(), "a"), s.Lock(t.Context(), "b")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Lock(ctx, "a"); !errors.Is(err, context.Canceled) {
		t.Errorf("locked twice: %v", err)
	}
	if err := errors.Join(s.Unlock(t.Context(), "a"), s.Lock(t.Context(), "a")); err != nil {
		t.Error(err)
	}
}

// What certmagic says arrives in slog, fields and all, and never loud.
func TestZapToSlog(t *testing.T) {
	log := new(logBuffer)
	at := func(level slog.Level) *zap.Logger {
		return zap.New(zapToSlog{handler: quiet{slog.NewTextHandler(log, &slog.HandlerOptions{Level: level})}})
	}
	at(slog.LevelDebug).Named("renew").With(zap.String("identifier", "ha.relay.test")).Error("could not", zap.Duration("after", time.Second), zap.Error(errors.New("no way")))
	got := log.String()
	for _, want := range []string{"level=DEBUG", `msg="could not"`, "logger=renew", "identifier=ha.relay.test", "after=1s", `error="no way"`} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not in %s", want, got)
		}
	}
	at(slog.LevelInfo).Error("loud")
	if strings.Contains(log.String(), "loud") {
		t.Error("certmagic is heard without being asked")
	}
}

// The account's key is made once per address, and a broken one is not replaced
// unasked: the account would be lost with it.
func TestAccountKey(t *testing.T) {
	s := newStorage(t.TempDir())
	key := func(email string) any {
		t.Helper()
		k, err := (&account{storage: s, ca: testCA, email: email}).key(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return k.Public()
	}
	first := key("")
	if !reflect.DeepEqual(key(""), first) || reflect.DeepEqual(key("a@example.org"), first) {
		t.Error("the key changes, or another address has the same one")
	}
	at := "acme/ca.test-dir/users/default/account.key"
	private(t, s.Filename("acme"))
	write(t, s.Filename(at), []byte("broken"))
	if _, err := (&account{storage: s, ca: testCA}).key(t.Context()); err == nil || !strings.Contains(err.Error(), "account.key") {
		t.Errorf("%v", err)
	}
}
