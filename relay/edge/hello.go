package edge

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/crypto/cryptobyte"

	"github.com/sallyport/sallyport/protocol/names"
)

// maxHello bounds all bytes read before a ClientHello is complete, record
// headers included. Post-quantum hellos are about 2 KiB.
const maxHello = 64 << 10

// maxALPN bounds the names of one ALPN list: a connection keeps them for as
// long as it lives, and no real client sends more than a handful.
const maxALPN = 64

// A Hello is what the router needs of a ClientHello.
type Hello struct {
	ServerName string   // canonical; empty when absent or not a host name
	SNIPresent bool     // the client sent the server_name extension
	ALPN       []string // as sent, in order
	Asked      string   // the server name as sent, cut and escaped: for logs only
	// ECH: the hello came encrypted inside another one, and all of the above is
	// what was inside.
	ECH bool

	hasECH bool // it carries the extension encrypted_client_hello, whatever is in it
}

// Errors of hellos that crypto/tls might accept and that are refused here all
// the same. Everything else that fails, fails there too (FuzzReadHello).
var (
	errTooLong  = fmt.Errorf("the ClientHello is longer than %d bytes", maxHello)
	errStray    = errors.New("a record that is no handshake stands before the end of the ClientHello")
	errVersion  = errors.New("the record's version is not TLS")
	errManyALPN = fmt.Errorf("more than %d protocols in ALPN", maxALPN)
)

var (
	errNotTLS    = errors.New("the first bytes are not TLS")
	errNotHello  = errors.New("the first message is not a ClientHello")
	errRecord    = errors.New("a record is empty or too long")
	errMalformed = errors.New("the ClientHello is malformed")
)

// isHelloError tells what a visitor sent from how its connection failed.
func isHelloError(err error) bool {
	return slices.Contains([]error{errTooLong, errStray, errVersion, errManyALPN, errNotTLS, errNotHello, errRecord, errMalformed}, err)
}

const (
	recordHeader    = 5
	recordAlert     = 21
	recordHandshake = 22
	maxRecord       = 1 << 14
	messageHeader   = 4
	typeClientHello = 1
	extServerName   = 0
	extALPN         = 16
	extECH          = 0xfe0d // RFC 9849
)

// parseHello reads the body of a ClientHello (RFC 8446 §4.1.2). An extension
// that stands there twice fails: two readers could take different ones.
func parseHello(body cryptobyte.String) (Hello, error) {
	var h Hello
	var sessionID, suites, compression, extensions cryptobyte.String
	if !body.Skip(2+32) || // version, random
		!body.ReadUint8LengthPrefixed(&sessionID) ||
		!body.ReadUint16LengthPrefixed(&suites) || len(suites)%2 != 0 ||
		!body.ReadUint8LengthPrefixed(&compression) {
		return h, errMalformed
	}
	if body.Empty() {
		return h, nil // a hello from before extensions; it names nobody
	}
	if !body.ReadUint16LengthPrefixed(&extensions) || !body.Empty() {
		return h, errMalformed
	}
	seen := make(map[uint16]bool, 24)
	for !extensions.Empty() {
		var id uint16
		var data cryptobyte.String
		if !extensions.ReadUint16(&id) || !extensions.ReadUint16LengthPrefixed(&data) || seen[id] {
			return h, errMalformed
		}
		seen[id] = true
		var err error
		switch id {
		case extServerName:
			err = h.parseServerName(data)
		case extALPN:
			err = h.parseALPN(data)
		case extECH:
			h.hasECH = true
		}
		if err != nil {
			return h, err
		}
	}
	return h, nil
}

// parseServerName reads RFC 6066 §3: a list with at most one name of type
// host_name. Other types were never defined and are skipped, as crypto/tls does.
func (h *Hello) parseServerName(data cryptobyte.String) error {
	var list cryptobyte.String
	if !data.ReadUint16LengthPrefixed(&list) || list.Empty() || !data.Empty() {
		return errMalformed
	}
	h.SNIPresent = true
	asked := ""
	for !list.Empty() {
		var kind uint8
		var name cryptobyte.String
		if !list.ReadUint8(&kind) || !list.ReadUint16LengthPrefixed(&name) || name.Empty() {
			return errMalformed
		}
		if kind != 0 {
			continue
		}
		if asked != "" {
			return errMalformed
		}
		asked = string(name)
	}
	h.Asked = printable(asked, 100)
	// What is no host name stays empty here: such a visitor is a stranger.
	if name, err := names.Canonical(asked); err == nil {
		h.ServerName = name
	}
	return nil
}

// parseALPN reads RFC 7301 §3.1.
func (h *Hello) parseALPN(data cryptobyte.String) error {
	var list cryptobyte.String
	if !data.ReadUint16LengthPrefixed(&list) || list.Empty() || !data.Empty() {
		return errMalformed
	}
	for !list.Empty() {
		var proto cryptobyte.String
		if !list.ReadUint8LengthPrefixed(&proto) || proto.Empty() {
			return errMalformed
		}
		if len(h.ALPN) == maxALPN {
			return errManyALPN
		}
		h.ALPN = append(h.ALPN, string(proto))
	}
	return nil
}
