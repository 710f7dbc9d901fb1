package certs

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/caddyserver/certmagic"

	"github.com/sallyport/sallyport/protocol/pki"
)

// storage keeps certmagic's files in its own layout. It differs from
// certmagic's FileStorage in two ways. Locks are in memory: nobody else uses
// the directory, and lock files would make a start after a crash wait for
// them. And the last version of each file stays beside it: certmagic writes
// key and certificate one after the other, and a crash in between must not
// cost the pair that serves.
type storage struct {
	certmagic.FileStorage

	mu    sync.Mutex // guards locks
	locks map[string]chan struct{}
}

const lastSuffix = ".last"

func newStorage(dir string) *storage {
	return &storage{FileStorage: certmagic.FileStorage{Path: dir}, locks: make(map[string]chan struct{})}
}

// Lock waits until nobody holds name.
func (s *storage) Lock(ctx context.Context, name string) error {
	select {
	case s.lock(name) <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Unlock frees name.
func (s *storage) Unlock(_ context.Context, name string) error {
	<-s.lock(name)
	return nil
}

func (s *storage) lock(name string) chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.locks[name] == nil {
		s.locks[name] = make(chan struct{}, 1)
	}
	return s.locks[name]
}

// Store writes a file, whole or not at all, and keeps the one before it.
func (s *storage) Store(_ context.Context, key string, value []byte) error {
	path := s.Filename(key)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("keep %s: %w", key, err)
	}
	switch old, err := os.ReadFile(path); {
	case err == nil:
		if err := pki.WriteFile(path+lastSuffix, old, 0o600); err != nil {
			return err
		}
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("keep %s: %w", key, err)
	}
	return pki.WriteFile(path, value, 0o600)
}

// certificate reads the pair of a host; nil when there is none. A pair that
// was torn while it was written is made whole from the versions before.
func (s *storage) certificate(issuer, host string) (*tls.Certificate, error) {
	crt := s.Filename(certmagic.StorageKeys.SiteCert(issuer, host))
	key := s.Filename(certmagic.StorageKeys.SitePrivateKey(issuer, host))
	var first error
	for i, files := range [][2]string{{crt, key}, {crt, key + lastSuffix}, {crt + lastSuffix, key + lastSuffix}} {
		cert, err := tls.LoadX509KeyPair(files[0], files[1])
		if err == nil {
			err = cert.Leaf.VerifyHostname(host)
		}
		if err == nil && i > 0 { // or the next write would push the last whole pair out
			err = errors.Join(copyFile(crt, files[0]), copyFile(key, files[1]))
		}
		if err == nil {
			return &cert, nil
		}
		if first == nil && !errors.Is(err, fs.ErrNotExist) {
			first = err
		}
	}
	if first != nil {
		return nil, fmt.Errorf("read the pair %s, %s: %w", crt, key, first)
	}
	return nil, nil
}

func copyFile(to, from string) error {
	if to == from {
		return nil
	}
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return pki.WriteFile(to, data, 0o600)
}

// forget removes what is kept for a host and cannot be used.
func (s *storage) forget(ctx context.Context, issuer, host string) error {
	return s.Delete(ctx, certmagic.StorageKeys.CertsSitePrefix(issuer, host))
}
