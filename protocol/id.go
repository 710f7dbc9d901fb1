package protocol

import (
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base32"
	"fmt"

	"github.com/sallyport/sallyport/protocol/names"
)

// An AgentID names an agent: the SHA-256 of its public key (the DER
// SubjectPublicKeyInfo) in lower-case base32 without padding, 52 letters, so
// that it is a DNS label and survives renewal of the certificate.
type AgentID string

var idEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// AgentIDOf returns the identity of a certificate's key. The caller has
// verified the certificate.
func AgentIDOf(cert *x509.Certificate) AgentID { return agentID(cert.RawSubjectPublicKeyInfo) }

// AgentIDOfKey returns the identity of a public key. It fails for key types
// that PKIX cannot encode.
func AgentIDOfKey(pub crypto.PublicKey) (AgentID, error) {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return "", fmt.Errorf("encode agent key: %w", err)
	}
	return agentID(der), nil
}

func agentID(spki []byte) AgentID {
	sum := sha256.Sum256(spki)
	return AgentID(idEncoding.EncodeToString(sum[:]))
}

// Short returns the first eight letters, enough for a person to tell a few
// agents apart. Never compare short forms.
func (id AgentID) Short() string {
	if len(id) < 8 {
		return string(id)
	}
	return string(id[:8])
}

// IsAgentID reports whether a DNS label has the shape of an AgentID. Such
// names are reserved (DESIGN §6.16).
func IsAgentID(label string) bool { return names.IsAgentLabel(label) }
