package ech

import (
	"crypto/hpke"
)

// An Opener opens hellos with the keys of one moment. It is never changed and
// safe for concurrent use.
type Opener struct{ keys []*key } // newest first

// Open opens the hello that is encrypted in outer, the handshake message of a
// ClientHello whose canonical server name is name. It returns nil and no error
// when there is nothing to open: another name, no such extension, a config
// that we do not have (any more), or random bytes that only look like one
// (GREASE). Then outer is the hello that counts.
//
// An error is an *Error and ends the handshake.
func (o *Opener) Open(name string, msg []byte) (*Inner, error) {
	if !o.public(name) {
		return nil, nil
	}
	out, err := readOuter(msg)
	if err != nil {
		return nil, err
	}
	if !out.ok {
		return nil, nil
	}
	for _, k := range o.keys {
		if k.id != out.id || k.public != name || !known(out.suite) {
			continue
		}
		recipient, encoded := k.open(out)
		if recipient == nil {
			continue
		}
		inner, server, err := out.decode(encoded)
		if err != nil {
			return nil, err
		}
		return &Inner{Message: inner, ServerName: server, recipient: recipient, suite: out.suite, id: out.id}, nil
	}
	return nil, nil
}

func (o *Opener) public(name string) bool {
	for _, k := range o.keys {
		if k.public == name {
			return true
		}
	}
	return false
}

func known(s suite) bool {
	for _, ours := range suites {
		if s == ours {
			return true
		}
	}
	return false
}

// open decrypts; nil when it was not encrypted to this key.
func (k *key) open(o *outer) (*hpke.Recipient, []byte) {
	kdf, err1 := hpke.NewKDF(o.suite.kdf)
	aead, err2 := hpke.NewAEAD(o.suite.aead)
	if err1 != nil || err2 != nil {
		return nil, nil
	}
	info := append([]byte("tls ech\x00"), k.config...)
	recipient, err := hpke.NewRecipient(o.enc, k.private, kdf, aead, info)
	if err != nil {
		return nil, nil
	}
	encoded, err := recipient.Open(o.aad(), o.payload)
	if err != nil {
		return nil, nil
	}
	return recipient, encoded
}

// An Inner is a hello that was opened.
type Inner struct {
	Message    []byte // ClientHelloInner, a handshake message with its header
	ServerName string // as sent

	recipient *hpke.Recipient // nil once it was used again
	suite     suite
	id        uint8
}

// Again opens the hello that follows a HelloRetryRequest (RFC 9849 §7.1.1): it
// belongs to the same encryption context and names the same server. It works
// once, as TLS allows one retry. An error is an *Error and ends the handshake.
func (in *Inner) Again(msg []byte) ([]byte, error) {
	if in.recipient == nil {
		return nil, &Error{alertUnexpected, "a third hello"}
	}
	recipient := in.recipient
	in.recipient = nil
	out, err := readOuter(msg)
	switch {
	case err != nil:
		return nil, err
	case !out.ok:
		return nil, &Error{alertMissingExts, "the second hello is not encrypted"}
	case out.suite != in.suite || out.id != in.id || len(out.enc) != 0:
		return nil, illegal("the second hello is encrypted in another way")
	}
	encoded, err := recipient.Open(out.aad(), out.payload)
	if err != nil {
		return nil, &Error{alertDecrypt, "the second hello cannot be opened"}
	}
	inner, name, err := out.decode(encoded)
	if err != nil {
		return nil, err
	}
	if name != in.ServerName {
		return nil, illegal("the second hello names another server")
	}
	return inner, nil
}
