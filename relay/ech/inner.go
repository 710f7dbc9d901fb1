package ech

import (
	"golang.org/x/crypto/cryptobyte"
)

// decode makes ClientHelloInner from what was encrypted (RFC 9849 §5.1): the
// session id and the extensions that the inner hello refers to come from the
// outer one. It returns the whole handshake message and the name inside.
func (o *outer) decode(encoded []byte) (msg []byte, name string, err error) {
	s := cryptobyte.String(encoded)
	var head []byte
	var sessionID, suites, compression, list cryptobyte.String
	if !s.ReadBytes(&head, 2+32) ||
		!s.ReadUint8LengthPrefixed(&sessionID) || !sessionID.Empty() ||
		!s.ReadUint16LengthPrefixed(&suites) ||
		!s.ReadUint8LengthPrefixed(&compression) ||
		!s.ReadUint16LengthPrefixed(&list) {
		return nil, "", illegal("the inner hello is malformed")
	}
	for _, b := range s {
		if b != 0 {
			return nil, "", illegal("the padding is not zero")
		}
	}
	exts, err := o.expand(list)
	if err != nil {
		return nil, "", err
	}
	if name, err = checkInner(exts); err != nil {
		return nil, "", err
	}
	var b cryptobyte.Builder
	b.AddUint8(typeClientHello)
	b.AddUint24LengthPrefixed(func(b *cryptobyte.Builder) {
		b.AddBytes(head)
		b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(o.sessionID) })
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(suites) })
		b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(compression) })
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
			for _, e := range exts {
				b.AddUint16(e.id)
				b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(e.data) })
			}
		})
	})
	msg, berr := b.Bytes()
	if berr != nil || len(msg) > maxMessage {
		return nil, "", illegal("the inner hello is too long")
	}
	return msg, name, nil
}

// expand replaces ech_outer_extensions by what it refers to: extensions of the
// outer hello in their order there, none twice. So the work is bounded by the
// length of both hellos.
func (o *outer) expand(list cryptobyte.String) ([]extension, error) {
	var exts []extension
	at, expanded := 0, false
	for !list.Empty() {
		var id uint16
		var data, refs cryptobyte.String
		if !list.ReadUint16(&id) || !list.ReadUint16LengthPrefixed(&data) {
			return nil, illegal("the inner hello is malformed")
		}
		if id != extOuter {
			exts = append(exts, extension{id, data})
			continue
		}
		if expanded || !data.ReadUint8LengthPrefixed(&refs) || refs.Empty() || !data.Empty() {
			return nil, illegal("the references to the outer hello are malformed")
		}
		expanded = true
		for !refs.Empty() {
			var ref uint16
			if !refs.ReadUint16(&ref) || ref == extECH || ref == extOuter {
				return nil, illegal("the references to the outer hello are malformed")
			}
			for at < len(o.exts) && o.exts[at].id != ref {
				at++
			}
			if at == len(o.exts) {
				return nil, illegal("extension %d is not in the outer hello, or not in this order", ref)
			}
			exts = append(exts, o.exts[at])
			at++
		}
	}
	return exts, nil
}

// checkInner holds an inner hello to the rules of RFC 9849 §7.1 and returns
// its server name, as sent.
func checkInner(exts []extension) (name string, err error) {
	seen := map[uint16]bool{}
	marked, modern := false, false
	for _, e := range exts {
		if seen[e.id] {
			return "", illegal("extension %d stands twice in the inner hello", e.id)
		}
		seen[e.id] = true
		switch e.id {
		case extECH:
			marked = len(e.data) == 1 && e.data[0] == echInner
		case extVersions:
			modern = onlyTLS13(e.data)
		case extServerName:
			name = serverName(e.data)
		}
	}
	switch {
	case !marked:
		return "", illegal("the inner hello is not marked as one")
	case !modern:
		return "", illegal("the inner hello offers other versions than TLS 1.3")
	case name == "":
		return "", illegal("the inner hello names no server")
	}
	return name, nil
}

// onlyTLS13 reports whether supported_versions has TLS 1.3 and nothing older.
// Values of RFC 8701 (GREASE) count as nothing.
func onlyTLS13(data cryptobyte.String) bool {
	var list cryptobyte.String
	if !data.ReadUint8LengthPrefixed(&list) || !data.Empty() {
		return false
	}
	found := false
	for !list.Empty() {
		var v uint16
		if !list.ReadUint16(&v) {
			return false
		}
		if v&0x0f0f == 0x0a0a && v>>8 == v&0xff {
			continue
		}
		if v < versionTLS13 {
			return false
		}
		found = found || v == versionTLS13
	}
	return found
}

// serverName reads the host name of RFC 6066 §3; empty when there is none or
// more than one.
func serverName(data cryptobyte.String) string {
	var list, name cryptobyte.String
	var kind uint8
	if !data.ReadUint16LengthPrefixed(&list) || !data.Empty() ||
		!list.ReadUint8(&kind) || kind != 0 || !list.ReadUint16LengthPrefixed(&name) || !list.Empty() {
		return ""
	}
	return string(name)
}
