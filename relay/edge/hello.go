package edge

import (
	"errors"
	"fmt"
	"io"

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

const (
	recordHeader    = 5
	recordAlert     = 21
	recordHandshake = 22
	maxRecord       = 1 << 14
	messageHeader   = 4
	typeClientHello = 1
	extServerName   = 0
	extALPN         = 16
)

// readHello reads from r until the ClientHello is complete, over as many
// segments and records as it takes, and returns every byte read: the hello and
// what came with it. Memory grows with what arrived, never with what a length
// field claims.
func readHello(r io.Reader) (Hello, []byte, error) {
	raw := make([]byte, 0, 2048)
	var msg []byte // the handshake message, without record headers
	for record := 0; ; {
		var err error
		if raw, err = fill(r, raw, record+recordHeader); err != nil {
			return Hello{}, raw, err
		}
		size, err := recordSize(raw[record:], record == 0)
		if err != nil {
			return Hello{}, raw, err
		}
		body := record + recordHeader
		record = body + size
		if raw, err = fill(r, raw, record); err != nil {
			return Hello{}, raw, err
		}
		msg = append(msg, raw[body:record]...)
		if len(msg) < messageHeader {
			continue
		}
		if msg[0] != typeClientHello {
			return Hello{}, raw, errNotHello
		}
		end := messageHeader + int(msg[1])<<16 + int(msg[2])<<8 + int(msg[3])
		if end > maxHello {
			return Hello{}, raw, errTooLong
		}
		if len(msg) >= end {
			h, err := parseHello(msg[messageHeader:end])
			return h, raw, err
		}
	}
}

// fill reads until raw holds at least want bytes. A connection that ends
// before its first byte is io.EOF, later io.ErrUnexpectedEOF.
func fill(r io.Reader, raw []byte, want int) ([]byte, error) {
	if want > maxHello {
		return raw, errTooLong
	}
	for len(raw) < want {
		if len(raw) == cap(raw) {
			grown := make([]byte, len(raw), min(2*cap(raw), maxHello))
			copy(grown, raw)
			raw = grown
		}
		n, err := r.Read(raw[len(raw):cap(raw)])
		raw = raw[:len(raw)+n]
		if err != nil && len(raw) < want {
			if err == io.EOF && len(raw) > 0 {
				err = io.ErrUnexpectedEOF
			}
			return raw, err
		}
	}
	return raw, nil
}

// recordSize checks a record header and returns the length of what follows.
func recordSize(header []byte, first bool) (int, error) {
	size := int(header[3])<<8 | int(header[4])
	switch {
	case header[0] == recordHandshake:
	case first && header[0] != recordAlert:
		return 0, errNotTLS
	default:
		return 0, errStray
	}
	if header[1] != 3 {
		return 0, errVersion
	}
	if size == 0 || size > maxRecord {
		return 0, errRecord
	}
	return size, nil
}

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
