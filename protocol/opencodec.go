package protocol

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"unicode/utf8"

	"github.com/sallyport/sallyport/protocol/names"
)

const (
	openKind    = 1    // byte 0 of an Open body: one visitor connection, bytes both ways
	openPackets = 2    // one UDP visitor: datagrams both ways
	maxOpen     = 1024 // body of an Open; this version writes at most 358 bytes
	maxReason   = 255
)

// WriteOpen writes the header of a data stream with one Write call. Addresses
// are written unmapped and without a zone.
func WriteOpen(w io.Writer, o Open) error {
	if err := checkOpen(o); err != nil {
		return fmt.Errorf("write open: %w", err)
	}
	kind := byte(openKind)
	if o.Packets {
		kind = openPackets
	}
	frame := []byte{0, 0, kind, o.Hop}
	frame = appendString(frame, o.Service)
	frame = appendAddr(frame, o.Client)
	frame = appendAddr(frame, o.Local)
	frame = appendString(frame, o.SNI)
	binary.BigEndian.PutUint16(frame, uint16(len(frame)-2))
	if _, err := w.Write(frame); err != nil {
		return fmt.Errorf("write open: %w", err)
	}
	return nil
}

// ReadOpen reads the header of a data stream and not one byte after it. It
// checks the form only: the caller judges Hop, and whether the service is
// offered. It returns io.EOF when r ends before the first byte.
func ReadOpen(r io.Reader) (Open, error) {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return Open{}, readError("open", err)
	}
	n := binary.BigEndian.Uint16(head[:])
	if n > maxOpen {
		return Open{}, fmt.Errorf("open of %d bytes, at most %d are allowed: %w", n, maxOpen, ErrMalformed)
	}
	body := make([]byte, n)
	if err := readRest(r, body); err != nil {
		return Open{}, readError("open", err)
	}
	o, err := parseOpen(body)
	if err != nil {
		return Open{}, fmt.Errorf("open: %w: %w", ErrMalformed, err)
	}
	return o, nil
}

func parseOpen(body []byte) (Open, error) {
	p := &parser{b: body}
	kind := p.byte()
	o := Open{Hop: p.byte(), Service: p.string(), Client: p.addr(), Local: p.addr(), SNI: p.string(), Packets: kind == openPackets}
	// What follows is from a newer version and ignored.
	switch {
	case p.err != nil:
		return Open{}, p.err
	case kind != openKind && kind != openPackets:
		return Open{}, fmt.Errorf("kind %d is not known", kind)
	}
	return o, checkOpen(o)
}

func checkOpen(o Open) error {
	if err := checkServiceName(o.Service); err != nil {
		return err
	}
	if o.SNI == "" {
		return nil
	}
	if name, err := names.Canonical(o.SNI); err != nil || name != o.SNI {
		return fmt.Errorf("server name %q is not canonical", o.SNI)
	}
	return nil
}

// WriteResult writes the answer to an Open with one Write call. A Reason of
// more than 255 bytes is cut.
func WriteResult(w io.Writer, r Result) error {
	reason := strings.ToValidUTF8(r.Reason[:min(len(r.Reason), maxReason)], "")
	frame := binary.BigEndian.AppendUint32(make([]byte, 0, 5+len(reason)), uint32(r.Code))
	frame = appendString(frame, reason)
	if _, err := w.Write(frame); err != nil {
		return fmt.Errorf("write result: %w", err)
	}
	return nil
}

// ReadResult reads the answer to an Open and not one byte after it: what
// follows is the visitor's. It returns io.EOF when r ends before the first
// byte. The Reason comes from the peer; log it quoted.
func ReadResult(r io.Reader) (Result, error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return Result{}, readError("result", err)
	}
	reason := make([]byte, head[4])
	if err := readRest(r, reason); err != nil {
		return Result{}, readError("result", err)
	}
	if !utf8.Valid(reason) {
		return Result{}, fmt.Errorf("result: %w: reason is not UTF-8", ErrMalformed)
	}
	return Result{Code: Code(binary.BigEndian.Uint32(head[:4])), Reason: string(reason)}, nil
}

// appendString appends a byte of length and s, which the caller has checked
// to be at most 255 bytes.
func appendString(b []byte, s string) []byte {
	return append(append(b, byte(len(s))), s...)
}

// appendAddr appends a byte of length (0, 4 or 16), the address, and the port
// unless the length is 0.
func appendAddr(b []byte, ap netip.AddrPort) []byte {
	if !ap.Addr().IsValid() {
		return append(b, 0)
	}
	a := ap.Addr().Unmap().AsSlice()
	b = append(append(b, byte(len(a))), a...)
	return binary.BigEndian.AppendUint16(b, ap.Port())
}

// A parser takes fields off b. After the first error it returns zero values.
type parser struct {
	b   []byte
	err error
}

var errShort = errors.New("ends inside a field")

func (p *parser) take(n int) []byte {
	if p.err == nil && len(p.b) < n {
		p.err = errShort
	}
	if p.err != nil {
		return nil
	}
	f := p.b[:n]
	p.b = p.b[n:]
	return f
}

func (p *parser) byte() byte {
	if f := p.take(1); f != nil {
		return f[0]
	}
	return 0
}

func (p *parser) string() string { return string(p.take(int(p.byte()))) }

func (p *parser) addr() netip.AddrPort {
	n := int(p.byte())
	if n == 0 {
		return netip.AddrPort{}
	}
	a, ok := netip.AddrFromSlice(p.take(n))
	port := p.take(2)
	if p.err == nil && !ok {
		p.err = fmt.Errorf("address of %d bytes", n)
	}
	if p.err != nil {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(a.Unmap(), binary.BigEndian.Uint16(port))
}
