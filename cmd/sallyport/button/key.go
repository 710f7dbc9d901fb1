package button

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/sallyport/sallyport/mqttbridge"
	"github.com/sallyport/sallyport/protocol/pki"
)

// A Key signs the commands of this machine. Beside its file lies a second one
// with the homes that it was offered to.
type Key struct {
	SPKI []byte // the public half, as it is offered
	ID   string // mqttbridge.KeyID of SPKI

	file string
	key  *ecdsa.PrivateKey
}

const pemKind = "PRIVATE KEY"

// OpenKey reads the key in file, or makes one there, mode 0600. It refuses a
// file that others may read.
func OpenKey(file string) (k *Key, made bool, err error) {
	raw, err := os.ReadFile(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		made = true
		if raw, err = makeKey(file); err != nil {
			return nil, false, fmt.Errorf("make a signing key: %w", err)
		}
	case err != nil:
		return nil, false, fmt.Errorf("read the signing key: %w", err)
	}
	if err := private(file); err != nil {
		return nil, false, err
	}
	block, _ := pem.Decode(raw)
	if block == nil || block.Type != pemKind {
		return nil, false, fmt.Errorf("%s holds no signing key", file)
	}
	any, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, false, fmt.Errorf("%s holds no signing key: %w", file, err)
	}
	k = &Key{file: file}
	k.key, _ = any.(*ecdsa.PrivateKey)
	if k.key == nil || k.key.Curve != elliptic.P256() {
		return nil, false, fmt.Errorf("%s holds a key of another kind; commands are signed with P-256", file)
	}
	if k.SPKI, err = x509.MarshalPKIXPublicKey(k.key.Public()); err != nil {
		return nil, false, err
	}
	k.ID, err = mqttbridge.KeyID(k.SPKI)
	return k, made, err
}

// makeKey writes a new key unless another process was faster.
func makeKey(file string) ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return os.ReadFile(file)
	}
	if err != nil {
		return nil, err
	}
	raw := pem.EncodeToMemory(&pem.Block{Type: pemKind, Bytes: der})
	_, err = f.Write(raw)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return nil, errors.Join(err, os.Remove(file))
	}
	return raw, nil
}

func private(file string) error {
	st, err := os.Stat(file)
	if err != nil {
		return err
	}
	if st.Mode().Perm()&0o077 != 0 && filepath.Separator == '/' { // Windows knows no such bits
		return fmt.Errorf("%s may be read by others (mode %04o); whoever holds it can press the buttons of this machine\nchmod 600 it, or if somebody may have read it: sallyport agent untrust NAME at home, and delete it", file, st.Mode().Perm())
	}
	return nil
}

// Words are what this machine and the home must both show.
func (k *Key) Words(home mqttbridge.Home) (string, error) {
	return mqttbridge.TrustWords(home.Key, k.SPKI)
}

// ErrHomeChanged is in the error of Known when a home shows another key than before.
var ErrHomeChanged = errors.New("the home shows another key than before")

// known is the file of homes.
type known struct {
	Schema int              `json:"schema"` // 1
	Homes  map[string]place `json:"homes"`  // by Client.Place
}

type place struct {
	ID    string    `json:"id"` // KeyID of the home's command key
	Since time.Time `json:"since"`
}

// HomesFile is the path of the file with the keys of known homes.
func (k *Key) HomesFile() string { return strings.TrimSuffix(k.file, ".key") + ".homes.json" }

// Known reports whether a home's key was pinned here. The error is
// ErrHomeChanged when another one was.
func (k *Key) Known(place string, home mqttbridge.Home) (bool, error) {
	id, err := idOf(home)
	if err != nil {
		return false, err
	}
	all, err := k.readHomes()
	if err != nil {
		return false, err
	}
	was, ok := all.Homes[place]
	if ok && was.ID != id {
		return false, fmt.Errorf("%s: %w (%s… since %s, now %s…)", home.Name, ErrHomeChanged, was.ID[:8], was.Since.Local().Format(time.DateOnly), id[:8])
	}
	return ok, nil
}

// idOf is the id that goes into envelopes, proved to be that of the key which
// PINs are sealed to and words are made of.
func idOf(home mqttbridge.Home) (string, error) {
	id, err := mqttbridge.KeyID(home.Key)
	if err != nil || id != home.ID {
		return "", fmt.Errorf("%s: its key does not fit its id", home.Name)
	}
	return id, nil
}

// Pin keeps the key of a home, after a person compared the words of Words.
func (k *Key) Pin(place string, home mqttbridge.Home) error {
	id, err := idOf(home)
	if err != nil {
		return err
	}
	all, err := k.readHomes()
	if err != nil {
		return err
	}
	return k.writeHomes(all, place, id)
}

// Forget drops a home, as if it was never met. It reports whether it was known.
func (k *Key) Forget(place string) (bool, error) {
	all, err := k.readHomes()
	if err != nil {
		return false, err
	}
	if _, ok := all.Homes[place]; !ok {
		return false, nil
	}
	return true, k.writeHomes(all, place, "")
}

func (k *Key) readHomes() (known, error) {
	all := known{Schema: 1, Homes: map[string]place{}}
	raw, err := os.ReadFile(k.HomesFile())
	if errors.Is(err, fs.ErrNotExist) {
		return all, nil
	}
	if err == nil {
		err = json.Unmarshal(raw, &all)
	}
	if err == nil && all.Schema != 1 {
		err = fmt.Errorf("schema %d, this version knows 1", all.Schema)
	}
	for name, p := range all.Homes {
		if err == nil && len(p.ID) < 8 {
			err = fmt.Errorf("the id of %s is cut", name)
		}
	}
	if err != nil { // never begin anew: that would trust whoever comes
		return all, fmt.Errorf("the file of known homes %s: %w", k.HomesFile(), err)
	}
	return all, nil
}

func (k *Key) writeHomes(all known, name, id string) error {
	if id == "" {
		delete(all.Homes, name)
	} else {
		all.Homes[name] = place{ID: id, Since: time.Now().UTC().Truncate(time.Second)}
	}
	raw, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return err
	}
	return pki.WriteFile(k.HomesFile(), append(raw, '\n'), 0o600)
}
