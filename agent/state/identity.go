package state

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/sallyport/sallyport/protocol"
	"github.com/sallyport/sallyport/protocol/pki"
)

// ErrNotJoined is the error of Identity before the first join.
var ErrNotJoined = errors.New("this agent has not joined a relay yet")

// An Identity is who this agent is and which relay it belongs to.
type Identity struct {
	Key        crypto.Signer     // from Key; only its certificate is stored by SaveIdentity
	Cert       *x509.Certificate // issued by CA for Key
	CA         *x509.Certificate // the relay's agent CA: the only root that the tunnel trusts
	Relay      string            // host:port
	ServerName string            // the tunnel's random server name
	Name       string            // how the relay calls this agent
	Domain     string            // names are claimed below this
	DeviceCA   *x509.Certificate // the relay's device CA, as it said at the join; nil: an older relay
}

// ID returns the agent's name on the wire.
func (i *Identity) ID() protocol.AgentID { return protocol.AgentIDOf(i.Cert) }

// Joined reports whether a directory holds an identity, without locking it or
// looking into that.
func Joined(dir string) bool {
	_, err := os.Lstat(filepath.Join(dir, identityFile))
	return err == nil
}

// identityJSON is the form on disk.
type identityJSON struct {
	Version    int    `json:"version"` // 1
	Relay      string `json:"relay"`
	ServerName string `json:"server_name"`
	Name       string `json:"name"`
	Domain     string `json:"domain"`
	Cert       string `json:"cert"`                // PEM
	CA         string `json:"ca"`                  // PEM
	DeviceCA   string `json:"device_ca,omitempty"` // PEM
}

// Key returns the agent's private key and makes it at the first call. It is on
// disk before it is returned: an agent that dies between sending its request
// and storing the answer asks again with the same key.
func (d *Dir) Key() (crypto.Signer, error) {
	data, err := d.read(keyFile)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return d.newKey()
	case err != nil:
		return nil, fmt.Errorf("read the agent's key: %w", err)
	}
	key, err := pki.DecodeKey(data)
	if err != nil {
		return nil, fmt.Errorf("%s is damaged: %w\n%s", d.file(keyFile), err, d.rejoinHint())
	}
	return key, nil
}

func (d *Dir) newKey() (crypto.Signer, error) {
	if _, err := d.read(identityFile); err == nil {
		return nil, fmt.Errorf("%s is missing, but %s is there\n%s", d.file(keyFile), d.file(identityFile), d.rejoinHint())
	}
	key, err := pki.NewKey()
	if err != nil {
		return nil, err
	}
	data, err := pki.EncodeKey(key)
	if err != nil {
		return nil, err
	}
	if err := d.write(keyFile, data); err != nil {
		return nil, err
	}
	return key, nil
}

func (d *Dir) rejoinHint() string {
	return fmt.Sprintf("Restore it from a backup, or join again: remove %s and %s, then: sallyport agent up TOKEN (a token comes from: sallyport relay token, for a second home with --hosts)",
		d.file(keyFile), d.file(identityFile))
}

// Identity reads and checks what SaveIdentity stored.
func (d *Dir) Identity() (*Identity, error) {
	var j identityJSON
	found, err := d.loadJSON(identityFile, &j)
	if err != nil {
		return nil, fmt.Errorf("%w\n%s", err, d.rejoinHint())
	}
	if !found {
		return nil, ErrNotJoined
	}
	id, err := d.decode(j)
	if err != nil {
		return nil, fmt.Errorf("%s is damaged: %w\n%s", d.file(identityFile), err, d.rejoinHint())
	}
	return id, nil
}

func (d *Dir) decode(j identityJSON) (*Identity, error) {
	if j.Version != 1 {
		return nil, fmt.Errorf("version %d is not known to this program", j.Version)
	}
	key, err := d.Key()
	if err != nil {
		return nil, err
	}
	cert, err := pki.DecodeCert([]byte(j.Cert))
	if err != nil {
		return nil, err
	}
	ca, err := pki.DecodeCert([]byte(j.CA))
	if err != nil {
		return nil, err
	}
	var deviceCA *x509.Certificate
	if j.DeviceCA != "" {
		if deviceCA, err = pki.DecodeCert([]byte(j.DeviceCA)); err != nil {
			return nil, fmt.Errorf("device CA: %w", err)
		}
	}
	id := &Identity{DeviceCA: deviceCA, Key: key, Cert: cert, CA: ca, Relay: j.Relay, ServerName: j.ServerName, Name: j.Name, Domain: j.Domain}
	return id, id.Check()
}

// Check says what does not fit together: the certificate must be for the key
// and signed by the CA. Validity in time is not checked, as an expired
// certificate may still renew.
func (i *Identity) Check() error {
	if i.Relay == "" || i.ServerName == "" {
		return errors.New("the relay's address or server name is missing")
	}
	pub, ok := i.Key.Public().(*ecdsa.PublicKey)
	if !ok || !pub.Equal(i.Cert.PublicKey) {
		return errors.New("the certificate is not for this agent's key")
	}
	if !i.CA.IsCA {
		return errors.New("the CA certificate is not one of a CA")
	}
	if err := i.Cert.CheckSignatureFrom(i.CA); err != nil {
		return fmt.Errorf("the certificate was not issued by the stored CA: %w", err)
	}
	return nil
}

// SaveIdentity stores an identity after checking it. The file is replaced
// whole: certificate, CA and address never mix.
func (d *Dir) SaveIdentity(i *Identity) error {
	if err := i.Check(); err != nil {
		return fmt.Errorf("store the identity: %w", err)
	}
	deviceCA := ""
	if i.DeviceCA != nil {
		deviceCA = string(pki.EncodeCert(i.DeviceCA))
	}
	return d.saveJSON(identityFile, identityJSON{
		Version: 1, DeviceCA: deviceCA, Relay: i.Relay, ServerName: i.ServerName, Name: i.Name, Domain: i.Domain,
		Cert: string(pki.EncodeCert(i.Cert)), CA: string(pki.EncodeCert(i.CA)),
	})
}
