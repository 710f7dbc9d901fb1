package ech

import (
	"fmt"

	"golang.org/x/crypto/cryptobyte"
)

// Extensions and messages of TLS that matter here.
const (
	typeClientHello  = 1
	messageHeader    = 4
	extServerName    = 0
	extVersions      = 43
	extECH           = version
	extOuter         = 0xfd00 // ech_outer_extensions
	echOuter         = 0
	echInner         = 1
	versionTLS13     = 0x0304
	maxMessage       = 64 << 10 // of a hello, inside or outside; the edge has the same bound
	alertUnexpected  = 10
	alertIllegal     = 47
	alertDecode      = 50
	alertDecrypt     = 51
	alertMissingExts = 109
)

// An Error is why a handshake has to end: the visitor held our key and still
// sent what no client may send.
type Error struct {
	Alert  uint8 // RFC 8446 §6
	Reason string
}

func (e *Error) Error() string { return "encrypted ClientHello: " + e.Reason }

// TLSAlert is the alert that the visitor is to be sent.
func (e *Error) TLSAlert() uint8 { return e.Alert }

func illegal(format string, args ...any) error {
	return &Error{alertIllegal, fmt.Sprintf(format, args...)}
}

var errMalformed = &Error{alertDecode, "the message is malformed"}

// An extension as it stands in a hello.
type extension struct {
	id   uint16
	data []byte
}

// An outer is a ClientHello that was taken apart.
type outer struct {
	body      []byte // without the header of the message
	sessionID []byte
	exts      []extension

	// The encrypted_client_hello extension of type outer; ok without it is false.
	ok      bool
	suite   suite
	id      uint8
	enc     []byte
	payload []byte
	offset  int // of payload in body
}

// readOuter reads the handshake message of a ClientHello.
func readOuter(msg []byte) (*outer, error) {
	s := cryptobyte.String(msg)
	var kind uint8
	var body cryptobyte.String
	if len(msg) > maxMessage || !s.ReadUint8(&kind) || kind != typeClientHello || !s.ReadUint24LengthPrefixed(&body) || !s.Empty() {
		return nil, errMalformed
	}
	o := &outer{body: body}
	var sessionID, suites, compression, extensions cryptobyte.String
	if !body.Skip(2+32) || // version, random
		!body.ReadUint8LengthPrefixed(&sessionID) ||
		!body.ReadUint16LengthPrefixed(&suites) ||
		!body.ReadUint8LengthPrefixed(&compression) ||
		!body.ReadUint16LengthPrefixed(&extensions) || !body.Empty() {
		return nil, errMalformed
	}
	o.sessionID = sessionID
	seen := map[uint16]bool{}
	for !extensions.Empty() {
		var id uint16
		var data cryptobyte.String
		if !extensions.ReadUint16(&id) || !extensions.ReadUint16LengthPrefixed(&data) || seen[id] {
			return nil, errMalformed
		}
		seen[id] = true
		o.exts = append(o.exts, extension{id, data})
		if id != extECH {
			continue
		}
		if err := o.readECH(data); err != nil {
			return nil, err
		}
		// The payload is the end of its extension, which ends where the rest begins.
		o.offset = len(o.body) - len(extensions) - len(o.payload)
	}
	return o, nil
}

// readECH reads ECHClientHello (RFC 9849 §5).
func (o *outer) readECH(data cryptobyte.String) error {
	var kind uint8
	var enc, payload cryptobyte.String
	switch {
	case !data.ReadUint8(&kind):
		return errMalformed
	case kind == echInner:
		if !data.Empty() {
			return errMalformed
		}
		return nil // a hello that somebody in front of us opened, or pretends so
	case kind != echOuter:
		return illegal("the extension is of type %d", kind)
	}
	if !data.ReadUint16(&o.suite.kdf) || !data.ReadUint16(&o.suite.aead) || !data.ReadUint8(&o.id) ||
		!data.ReadUint16LengthPrefixed(&enc) || !data.ReadUint16LengthPrefixed(&payload) || payload.Empty() || !data.Empty() {
		return errMalformed
	}
	o.ok, o.enc, o.payload = true, enc, payload
	return nil
}

// aad is ClientHelloOuterAAD (RFC 9849 §5.2): the hello with zeros in the place
// of the payload.
func (o *outer) aad() []byte {
	aad := append([]byte(nil), o.body...)
	clear(aad[o.offset : o.offset+len(o.payload)])
	return aad
}
