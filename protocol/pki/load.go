package pki

import (
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"time"
)

// LoadOrCreate opens the CA that lives in dir/NAME.crt and dir/NAME.key
// (0600, the directory 0700), and makes it when there is neither. Any other
// state, one half missing, broken, mismatched, expired or a key that others
// can read, is an error that says what to do.
func LoadOrCreate(dir, name string) (*Authority, error) { return Open(dir, name, nil) }

// Open is LoadOrCreate with a clock; nil is time.Now.
func Open(dir, name string, now func() time.Time) (*Authority, error) {
	if now == nil {
		now = time.Now
	}
	if err := checkAuthorityName(name); err != nil {
		return nil, err
	}
	if err := SecureDir(dir); err != nil {
		return nil, err
	}
	unlock, err := lockDir(dir) // two first starts at once must agree on one CA
	if err != nil {
		return nil, err
	}
	defer unlock()

	f := authorityFiles{name: name, crt: filepath.Join(dir, name+".crt"), key: filepath.Join(dir, name+".key")}
	hasCrt, hasKey := exists(f.crt), exists(f.key)
	if !hasCrt && !hasKey {
		return f.create(now)
	}
	if hasCrt != hasKey {
		if err := f.finish(hasCrt); err != nil {
			return nil, err
		}
	}
	return f.load(now)
}

type authorityFiles struct{ name, crt, key string }

// newSuffix marks a half that is written but not yet in its place.
const newSuffix = ".new"

// create makes both halves durable under other names before either gets its
// own, so that a crash at any point leaves nothing, or something that finish
// can complete.
func (f authorityFiles) create(now func() time.Time) (*Authority, error) {
	a, err := NewAuthority(f.name, now)
	if err != nil {
		return nil, err
	}
	key, err := EncodeKey(a.key)
	if err != nil {
		return nil, err
	}
	if err := WriteFile(f.key+newSuffix, key, 0o600); err != nil {
		return nil, err
	}
	if err := WriteFile(f.crt+newSuffix, EncodeCert(a.cert), 0o644); err != nil {
		return nil, err
	}
	if err := errors.Join(os.Rename(f.key+newSuffix, f.key), os.Rename(f.crt+newSuffix, f.crt)); err != nil {
		return nil, fmt.Errorf("make the %s CA: %w", f.name, err)
	}
	return a, syncDir(filepath.Dir(f.key))
}

// finish completes a creation that a crash cut between its two renames. The
// waiting half counts only when it belongs to the one in place.
func (f authorityFiles) finish(hasCrt bool) error {
	have, missing := f.key, f.crt
	crtFrom, keyFrom := f.crt+newSuffix, f.key
	if hasCrt {
		have, missing = f.crt, f.key
		crtFrom, keyFrom = f.crt, f.key+newSuffix
	}
	if cert, key, err := readPair(crtFrom, keyFrom); err == nil && sameKey(cert.PublicKey, key.Public()) {
		if err := os.Rename(missing+newSuffix, missing); err != nil {
			return fmt.Errorf("make the %s CA: %w", f.name, err)
		}
		return syncDir(filepath.Dir(missing))
	}
	return f.refuse(fmt.Errorf("%s exists, but %s is missing", have, missing))
}

func (f authorityFiles) load(now func() time.Time) (*Authority, error) {
	cert, key, err := readPair(f.crt, f.key)
	if err != nil {
		return nil, f.refuse(err)
	}
	if err := private(f.key); err != nil {
		return nil, fmt.Errorf("the %s CA is not used: %w", f.name, err)
	}
	if err := checkAuthority(cert, key, now()); err != nil {
		return nil, f.refuse(fmt.Errorf("%s: %w", f.crt, err))
	}
	return &Authority{cert: cert, key: key, now: now}, nil
}

// refuse wraps why the CA cannot be used with what to do about it.
func (f authorityFiles) refuse(err error) error {
	return fmt.Errorf("the %s CA is not used: %w\n"+
		"Restore %s and %s from a backup. To begin anew instead, move both away and start again:\n"+
		"a new CA is made, and everything that the old one had certified must be added again.", f.name, err, f.crt, f.key)
}

func readPair(crtPath, keyPath string) (*x509.Certificate, crypto.Signer, error) {
	crt, err := os.ReadFile(crtPath)
	if err != nil {
		return nil, nil, err
	}
	cert, err := DecodeCert(crt)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", crtPath, err)
	}
	pem, err := os.ReadFile(keyPath)
	if err != nil {
		return nil, nil, err
	}
	key, err := DecodeKey(pem)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", keyPath, err)
	}
	return cert, key, nil
}

// private refuses a key file that others can read. It is not repaired: the
// owner should know that the key may have been copied.
func private(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if runtime.GOOS != "windows" && info.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("%s can be read by other users (mode %#o)\n"+
			"If nobody else has used this machine: chmod 600 %s", path, info.Mode().Perm(), path)
	}
	return nil
}

// exists reports whether something is at path, also when it cannot be read:
// what is there in any form is never replaced.
func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}
