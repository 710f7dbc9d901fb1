package relay

import (
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/sallyport/sallyport/protocol/pki"
)

// state is what a relay is born with and keeps in its data directory: two
// CAs, the secret server name of the tunnel, and the QUIC reset key.
type state struct {
	agentCA  *pki.Authority
	deviceCA *pki.Authority
	publicCA *pki.Authority // certs: internal only, else nil
	tunnel   tunnelSecrets
}

// tunnelSecrets is the file tunnel.json.
type tunnelSecrets struct {
	ServerName string   `json:"server_name"` // random; the tunnel answers under no other (DESIGN §5)
	ResetKey   [32]byte `json:"reset_key"`   // QUIC stateless resets work across restarts
}

func loadState(dir string, internalCerts bool, now func() time.Time) (*state, error) {
	if err := pki.SecureDir(dir); err != nil {
		return nil, err
	}
	var s state
	var errs []error
	load := func(into **pki.Authority, name string) {
		ca, err := pki.Open(dir, name, now)
		*into = ca
		errs = append(errs, err)
	}
	load(&s.agentCA, "agent-ca")
	load(&s.deviceCA, "device-ca")
	if internalCerts {
		load(&s.publicCA, "public-ca")
	}
	var err error
	s.tunnel, err = loadTunnelSecrets(filepath.Join(dir, "tunnel.json"))
	if err := errors.Join(append(errs, err)...); err != nil {
		return nil, err
	}
	return &s, nil
}

func loadTunnelSecrets(path string) (tunnelSecrets, error) {
	var t tunnelSecrets
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		t.ServerName = strings.ToLower(rand.Text())
		rand.Read(t.ResetKey[:])
		raw, err := json.Marshal(t)
		if err != nil {
			return t, fmt.Errorf("encode %s: %w", path, err)
		}
		return t, pki.WriteFile(path, raw, 0o600)
	}
	if err != nil {
		return t, fmt.Errorf("read tunnel secrets: %w", err)
	}
	if err := json.Unmarshal(raw, &t); err != nil || t.ServerName == "" || t.ResetKey == ([32]byte{}) {
		return t, fmt.Errorf("%s is broken: restore it from a backup, or remove it and join every agent again", path)
	}
	return t, nil
}

// tunnelCert hands out the certificate of the tunnel's server name, made anew
// when two thirds of its year have passed. It is valid from the CA's birth:
// an agent's clock may be years behind (DESIGN §5).
type tunnelCert struct {
	ca   *pki.Authority
	name string
	now  func() time.Time

	mu    sync.Mutex // guards cert and renew
	cert  *tls.Certificate
	renew time.Time
}

const tunnelCertLife = 365 * 24 * time.Hour

func (t *tunnelCert) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	if t.cert != nil && now.Before(t.renew) {
		return t.cert, nil
	}
	key, err := pki.NewKey()
	if err != nil {
		return nil, err
	}
	leaf, err := t.ca.Issue(key.Public(), pki.Grant{
		Profile: pki.Server, Name: t.name,
		NotBefore: t.ca.Cert().NotBefore, NotAfter: now.Add(tunnelCertLife),
	})
	if err != nil {
		return nil, fmt.Errorf("certificate of the tunnel: %w", err)
	}
	// The CA travels with the leaf: a joining agent knows only its fingerprint.
	t.cert = &tls.Certificate{Certificate: [][]byte{leaf.Raw, t.ca.Cert().Raw}, PrivateKey: key, Leaf: leaf}
	t.renew = now.Add(tunnelCertLife * 2 / 3)
	return t.cert, nil
}

// PublicCAFile is where a data directory keeps the root of the internal CA, a
// public file in PEM.
func PublicCAFile(dataDir string) string { return filepath.Join(dataDir, "public-ca.crt") }
