package executor

import (
	"bytes"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/sallyport/sallyport/protocol/pki"
)

const (
	keyFile   = "commands.key"
	trustFile = "trust.json"
	pinsFile  = "pins.json"
	seenFile  = "commands.db"
	logName   = "commands.log"
)

// maxFile bounds what is read of any small file.
const maxFile = 1 << 20

// A folder is the executor's directory.
type folder struct {
	path string
	// write replaces a whole file, so that after a crash the old or the new
	// content is there. Tests let it fail.
	write func(path string, data []byte, perm os.FileMode) error
}

func openFolder(path string) (folder, error) {
	if path == "" {
		return folder{}, errors.New("no directory for commands is named")
	}
	d := folder{path: path, write: pki.WriteFile}
	info, err := os.Stat(path)
	if err == nil && info.IsDir() && info.Mode().Perm()&0o077 == 0 {
		if _, err := os.Lstat(d.file(keyFile)); err == nil {
			return d, nil // ours and private; SecureDir writes, and a full disk is no reason not to start
		}
	}
	return d, pki.SecureDir(path)
}

func (d folder) file(name string) string { return filepath.Join(d.path, name) }

func (d folder) read(name string) ([]byte, error) {
	f, err := os.Open(d.file(name))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(data) > maxFile {
		err = fmt.Errorf("%s is longer than %d bytes", d.file(name), maxFile)
	}
	return data, err
}

// loadJSON reads name into v, strictly; a missing file is found=false.
func (d folder) loadJSON(name string, v any) (found bool, err error) {
	data, err := d.read(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return true, fmt.Errorf("%s is damaged: %w", d.file(name), err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return true, fmt.Errorf("%s is damaged: there is more in it than one JSON value", d.file(name))
	}
	return true, nil
}

func (d folder) saveJSON(name string, v any) error {
	data, err := json.MarshalIndent(v, "", "\t")
	if err != nil {
		return fmt.Errorf("encode %s: %w", name, err)
	}
	return d.write(d.file(name), append(data, '\n'), 0o600)
}

// homeKey returns the home's command key and its DER SubjectPublicKeyInfo, and
// makes it at the first start.
func (d folder) homeKey() (*ecdh.PrivateKey, []byte, error) {
	data, err := d.read(keyFile)
	if errors.Is(err, fs.ErrNotExist) {
		data, err = d.newHomeKey()
	}
	if err != nil {
		return nil, nil, fmt.Errorf("the home's command key: %w", err)
	}
	signer, err := pki.DecodeKey(data)
	if err != nil {
		return nil, nil, fmt.Errorf("%s is damaged: %w\n%s", d.file(keyFile), err, d.newKeyHint())
	}
	private, ok := signer.(*ecdsa.PrivateKey)
	if !ok {
		return nil, nil, fmt.Errorf("%s holds no P-256 key\n%s", d.file(keyFile), d.newKeyHint())
	}
	key, err := private.ECDH()
	if err != nil || key.Curve() != ecdh.P256() {
		return nil, nil, fmt.Errorf("%s holds no P-256 key\n%s", d.file(keyFile), d.newKeyHint())
	}
	spki, err := x509.MarshalPKIXPublicKey(&private.PublicKey)
	return key, spki, err
}

func (d folder) newHomeKey() ([]byte, error) {
	if _, err := os.Lstat(d.file(trustFile)); err == nil {
		// With another key this is another home: the words that the owner
		// compared are no longer true.
		return nil, fmt.Errorf("%s is missing, but %s is there\n%s", d.file(keyFile), d.file(trustFile), d.newKeyHint())
	}
	key, err := pki.NewKey()
	if err != nil {
		return nil, err
	}
	data, err := pki.EncodeKey(key)
	if err != nil {
		return nil, err
	}
	return data, d.write(d.file(keyFile), data, 0o600)
}

func (d folder) newKeyHint() string {
	return fmt.Sprintf("Restore it from a backup, or remove it and %s: then every device must be trusted anew with: sallyport agent trust NAME", d.file(trustFile))
}
